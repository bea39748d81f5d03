#!/bin/sh
# mount_powercut.sh with 1800 cuts of longer loads, which also see that names become durable in time.
FOLIO_ROUNDS=12
FOLIO_CUTS=50
FOLIO_SECONDS=10
export FOLIO_ROUNDS FOLIO_CUTS FOLIO_SECONDS
exec sh "$(dirname -- "$0")/mount_powercut.sh"
