#!/bin/sh
# mount_attach.sh three times, with what takes longer.
FOLIO_ATTACH_LONG=1
FOLIO_ROUNDS=3
export FOLIO_ATTACH_LONG FOLIO_ROUNDS
exec sh "$(dirname -- "$0")/mount_attach.sh"
