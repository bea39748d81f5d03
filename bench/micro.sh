#!/bin/sh
# What a hit, a read, a write and a miss of the cache cost (bench/micro.c), on which machine.
#
#   micro.sh DIR [MIB [ROUNDS [CASE]]]
#
# DIR: where files of some 2 GiB may lie while it runs, on the filesystem to compare with. Waits for a
# quiet machine first: WAIT is for how many seconds, at most, for a load below 0.5 (120).
# FOLIO_BUILD as for run.sh.
set -eu

bench=$(cd "$(dirname -- "$0")" && pwd -P)
. "$bench/setup.sh"
[ $# -ge 1 ] || {
    usage >&2
    exit 2
}
build_all

waited=0
while [ "$waited" -lt "${WAIT:-120}" ] &&
    awk '{ exit !($1 >= 0.5) }' /proc/loadavg; do
    sleep 5
    waited=$((waited + 5))
done

echo "machine: $(machine)"
echo "versions: Linux $(uname -r), $(version_of cc --version)," \
    "glibc $(getconf GNU_LIBC_VERSION | sed 's/.* //')," \
    "liburcu $(pkg-config --modversion liburcu-cds), lmdb $(pkg-config --modversion lmdb)," \
    "FolioFS $(folio_version)"
echo "directory: $1, $(df --output=fstype,source "$1" | tail -1 | tr -s ' ')"
echo "load: $(cat /proc/loadavg), after waiting $waited s"
status=0
timeout "${LIMIT:-900}" "$programs/bench_micro" "$@" || status=$?
echo "load: $(cat /proc/loadavg)"
exit $status
