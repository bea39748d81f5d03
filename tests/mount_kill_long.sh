#!/bin/sh
# mount_kill.sh with 1000 kills.
FOLIO_ROUNDS=1000
export FOLIO_ROUNDS
exec sh "$(dirname -- "$0")/mount_kill.sh"
