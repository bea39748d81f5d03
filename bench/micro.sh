#!/bin/sh
# Build bench/micro.c optimised, wait for a quiet machine, say which machine it is, and run.
#
#   micro.sh DIR [MIB [ROUNDS [CASE]]]
#
# DIR: where files of some 2 GiB may lie while it runs, on the filesystem to compare with
# FOLIO_BENCH_BUILD: build directory; WAIT: seconds to wait for a load below 0.5 (120)
set -eu
[ $# -ge 1 ] || {
    sed -n '2,7s/^# \{0,1\}//p' "$0" >&2
    exit 2
}
root=$(cd "$(dirname -- "$0")/.." && pwd)
build=${FOLIO_BENCH_BUILD:-${TMPDIR:-/tmp}/folio-bench}

cmake -S "$root" -B "$build" -DCMAKE_BUILD_TYPE=RelWithDebInfo -DFOLIO_BENCH=ON \
    -DBUILD_TESTING=OFF >/dev/null
cmake --build "$build" --target bench_micro -j 2 >/dev/null

waited=0
while [ "$waited" -lt "${WAIT:-120}" ] &&
    awk '{ exit !($1 >= 0.5) }' /proc/loadavg; do
    sleep 5
    waited=$((waited + 5))
done

echo "machine: $(sed -n 's/^model name[[:space:]]*: //p' /proc/cpuinfo | head -1)," \
    "$(nproc) processors, $(awk '/^MemTotal/ { printf "%.0f GiB", $2 / 1048576 }' /proc/meminfo)," \
    "$(systemd-detect-virt 2>/dev/null || true)"
echo "versions: Linux $(uname -r), $(cc --version | head -1)," \
    "glibc $(getconf GNU_LIBC_VERSION | sed 's/.* //')," \
    "liburcu $(pkg-config --modversion liburcu-cds), lmdb $(pkg-config --modversion lmdb)," \
    "FolioFS $(git -C "$root" describe --always --dirty 2>/dev/null || echo unknown)"
echo "directory: $1, $(df --output=fstype,source "$1" | tail -1 | tr -s ' ')"
echo "load: $(cat /proc/loadavg), after waiting $waited s"
status=0
timeout "${LIMIT:-900}" "$build/bench/bench_micro" "$@" || status=$?
echo "load: $(cat /proc/loadavg)"
exit $status
