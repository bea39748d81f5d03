#!/bin/sh
# What page faults cost, by who resolves them (bench/faults.c), FolioFS beside ext4 and a naive handler.
#
#   faults.sh [--quick] [--mib N] [--rounds N] [--umap DIR] [--out DIR]
#
# --quick     4 MiB and one round: does it work here?
# --mib N     the file's size (32)
# --rounds N  every door has N turns (3); the least counts
# --umap DIR  LLNL's UMap, too: DIR holds its sources (https://github.com/LLNL/umap), which are built elsewhere
# --out DIR   where faults.csv, faults.md and faults.svg go (./bench-faults)
#
# Needs root, or sudo without a password. FOLIO_BUILD as for run.sh. What invalidates a figure: other
# processes at work; the load is printed before and after.
set -u

bench=$(cd "$(dirname -- "$0")" && pwd -P)
. "$bench/setup.sh"

quick= mib= rounds= umap= out=bench-faults
parse_options quick 'mib rounds umap out' "$@"
if [ -n "$quick" ]; then
    : "${mib:=4}" "${rounds:=1}"
fi
: "${mib:=32}" "${rounds:=3}"
be_root "$@"
build_all
make_out "$out"
. "$bench/../tests/lib.sh" # $T, and the trap that leaves nothing behind
. "$bench/peers.sh"
need python3
mkdir "$T/mnt" 2>/dev/null

# Its buffer holds the file twice: so nothing is evicted.
build_umap()
{
    [ -f "$umap/CMakeLists.txt" ] || fail "--umap: $umap has no CMakeLists.txt"
    cmake -S "$umap" -B "$T/umap" -DCMAKE_BUILD_TYPE=Release -DENABLE_TESTS=Off -DENABLE_LOGGING=Off \
        >"$T/umap.out" 2>&1 && cmake --build "$T/umap" -j "$(nproc)" >>"$T/umap.out" 2>&1 ||
        fail "UMap does not build: $(tail -n 5 "$T/umap.out")"
    FOLIO_UMAP=$(find "$T/umap" -name libumap.so | head -n 1)
    [ -n "$FOLIO_UMAP" ] || fail "$umap builds no libumap.so"
    export FOLIO_UMAP UMAP_PAGESIZE=4096 UMAP_BUFSIZE=$((mib * 512)) UMAP_LOG_LEVEL=error
}
if [ -n "$umap" ]; then
    build_umap
else
    say '[SKIP] umap: its sources are not given (--umap DIR)'
fi
IMAGE_SIZE=1G
FOLIO_OPTIONS=memory=1G,dirty_ratio=80,dirty_background_ratio=70
for peer in ext4 folio_direct; do
    up_peer $peer || fail "$peer: $reason"
done

{
    echo "machine: $(machine)"
    echo "versions: Linux $(uname -r); FolioFS $(folio_version)"
    echo "sizes: $mib MiB, the least of $rounds rounds"
    echo "options of FolioFS: cache=direct,$FOLIO_OPTIONS"
    echo "load: $(cut -d ' ' -f 1-3 /proc/loadavg)"
} >"$out/faults.environment"
"$programs/bench_faults" "$(work_dir ext4)" "$(work_dir folio_direct)" "$FOLIO_BIN/foliofsctl" \
    "$(cat "$T/server/folio_direct")" "$mib" "$rounds" >"$out/faults.csv" || fail 'bench_faults failed'
echo "load at the end: $(cut -d ' ' -f 1-3 /proc/loadavg)" >>"$out/faults.environment"
for peer in folio_direct ext4; do
    down_peer $peer
done
python3 "$bench/faults_table.py" "$out" >"$out/faults.md" || fail 'faults_table.py failed'
cat "$out/faults.md"
