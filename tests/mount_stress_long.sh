#!/bin/sh
# mount_stress.sh, ten minutes for each part.
FOLIO_SECONDS=600
export FOLIO_SECONDS
exec sh "$(dirname -- "$0")/mount_stress.sh"
