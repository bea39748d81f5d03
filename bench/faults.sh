#!/bin/sh
# What page faults cost: build bench/faults.c, make an ext4 and a FolioFS mount, run, take both away.
#
#   faults.sh [MIB [ROUNDS]]          root; the results are Markdown
#
# What invalidates a figure: other processes at work (see the load, printed before and after).
set -eu
root=$(cd "$(dirname -- "$0")/.." && pwd)
build=${FOLIO_BENCH_BUILD:-${TMPDIR:-/tmp}/folio-bench}
[ "$(id -u)" -eq 0 ] || { echo 'faults.sh: needs root: it mounts' >&2; exit 1; }
sh "$root/tests/install.sh" build bench >/dev/null
cmake -S "$root" -B "$build" -DCMAKE_BUILD_TYPE=RelWithDebInfo -DFOLIO_BENCH=ON \
    -DBUILD_TESTING=OFF >/dev/null
cmake --build "$build" -j "$(nproc)" >/dev/null

T=$(mktemp -d "${TMPDIR:-/tmp}/folio-faults.XXXXXX")
clean_up()
{
    umount "$T/ext4" "$T/folio" 2>/dev/null || true
    rm -rf --one-file-system "$T"
}
trap clean_up EXIT
trap 'exit 130' HUP INT TERM
mkdir "$T/ext4" "$T/folio"
truncate -s 1G "$T/ext4.img"
mkfs.ext4 -q -F "$T/ext4.img"
mount -o loop "$T/ext4.img" "$T/ext4"
"$build/bin/mkfs.foliofs" "$T/volume" >/dev/null
"$build/bin/foliofs" "$T/volume" "$T/folio" \
    -o cache=direct,memory=1G,dirty_ratio=80,dirty_background_ratio=70
echo "Linux $(uname -r), $(nproc) processors; load $(cat /proc/loadavg)"
"$build/bench/bench_faults" "$T/ext4" "$T/folio" "$build/bin/foliofsctl" "$@"
echo "load $(cat /proc/loadavg)"
