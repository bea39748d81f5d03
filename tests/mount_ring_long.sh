#!/bin/sh
# mount_ring.sh with more tests on the ring, and all parts of folio-stress for 100 seconds each.
FOLIO_RING_LONG=1
FOLIO_SECONDS=100
FOLIO_PARTS='kernel kernel_1M direct direct_1M attached attached_kernel mixed mixed_kernel full errors_kernel
errors_direct errors_attached crash_kernel crash_direct crash_attached'
export FOLIO_RING_LONG FOLIO_SECONDS FOLIO_PARTS
exec sh "$(dirname -- "$0")/mount_ring.sh"
