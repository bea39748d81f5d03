#!/bin/sh
# mount_stress.sh, all of its parts, ten minutes for each.
FOLIO_SECONDS=600
FOLIO_PARTS=all
export FOLIO_SECONDS FOLIO_PARTS
exec sh "$(dirname -- "$0")/mount_stress.sh"
