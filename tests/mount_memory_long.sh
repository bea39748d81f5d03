#!/bin/sh
# mount_memory.sh with 4 GiB.
FOLIO_GIB=4
export FOLIO_GIB
exec sh "$(dirname -- "$0")/mount_memory.sh"
