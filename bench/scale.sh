#!/bin/sh
# How the cost of an operation grows with the work: as numbers and plots, FolioFS beside ext4.
#
#   scale.sh [--quick] [--only SERIES,...] [--inodes N] [--out DIR]
#
# --quick     smaller tops, some minutes
# --only      of: directory size inodes cache clients age
# --inodes N  the top of "inodes" (5000000; the series takes some minutes per million)
# --out DIR   where scale.csv, scale.md and the plots go (./bench-scale)
#
# directory   files in one directory: create, stat without dentries, list, unlink
# size        a sparse file: random 4k reads and writes (cache=direct: the daemon's own cost)
# inodes      a volume's inodes, 10,000 to a directory: create, stat without dentries, the daemon's
#             memory, the volume's bytes, time to unmount and to mount again
# cache       cache_size, with a file of fixed size read at random (cache=direct); memory per page. The tree
#             also remembers evicted pages, so a small cache has more of it for each cached page
# clients     threads that read a cached page each (cache=direct); processes that create files
# age         ten times: all of a file overwritten in random order; then reading it cold. Bytes that the
#             disk below wrote for each byte; blocks of the volume once it is at rest, when room that was
#             promised in vain has been given back
#
# Needs root, or sudo without a password. FOLIO_BUILD as for run.sh.
set -u

bench=$(cd "$(dirname -- "$0")" && pwd -P)
. "$bench/setup.sh"

quick= only= inodes= out=bench-scale
parse_options quick 'only inodes out' "$@"
only=$(echo "$only" | tr , ' ')
be_root "$@"

if [ -n "$quick" ]; then
    directory_sizes='10 100 1000 10000'
    file_sizes='4k 1m 64m 1g 64g'
    inode_step=20000
    : "${inodes:=60000}"
    cache_sizes='8 32 128'
    cache_file=$((64 << 20))
    clients='1 2 4 8'
    age_file=$((64 << 20))
    ages='1 2 3'
    SECONDS_EACH=1
else
    directory_sizes='10 100 1000 10000 100000 1000000'
    file_sizes='4k 64k 1m 16m 256m 1g 4g 16g 64g'
    : "${inodes:=5000000}"
    inode_step=$((inodes / 5))
    cache_sizes='16 32 64 128 256 512 1024'
    cache_file=$((512 << 20))
    clients='1 2 4 8 16 32'
    age_file=$((512 << 20))
    ages='1 2 3 4 5 6 7 8 9 10'
    SECONDS_EACH=3
fi
PER_DIRECTORY=10000
STAT_SAMPLE=1000
LIMIT=3600
IMAGE_SIZE=32G
memory=memory=1536M

build_all
make_out "$out"

. "$bench/../tests/lib.sh" # $T, and the trap that leaves nothing behind
. "$bench/peers.sh"
. "$bench/work.sh"
need fio python3
mkdir "$T/mnt" 2>/dev/null
can_drop || skip "the kernel does not let us drop its caches"

csv=$out/scale.csv
[ -n "$only" ] && [ -f "$csv" ] || echo 'series,peer,x,metric,unit,value' >"$csv"
for series in $only; do # taken again
    sed -i "/^$series,/d" "$csv"
done
note() # SERIES PEER X METRIC UNIT VALUE
{
    echo "$1,$2,$3,$4,$5,$6" >>"$csv"
    say "$1 $2 $3: $4 $6 $5"
}

must() # COMMAND...
{
    run "$@" || fail "$*: $(tail -n 2 "$T/work.out")"
}
first_word()
{
    read -r value _ <"$T/run.out"
}
start() # PEER
{
    FOLIO_OPTIONS=${2-$memory}
    up_peer "$1" || fail "$1: $reason"
    M=$T/mnt/$1 # for stat_of
}
seconds_since() # NANOSECONDS
{
    awk "BEGIN { printf \"%.3f\", ($(date +%s%N) - $1) / 1e9 }"
}
resident_kb() # PEER: of its server
{
    awk '/^VmRSS/ { print $2 }' "/proc/$(cat "$T/server/$1")/status"
}

# --- files in one directory --------------------------------------------------------------------

# A small directory is made several times, so that at least 1,000 operations are timed.
mean_rate() # OPERATION DIRECTORIES FILES: mean of the directories' rates, by time
{
    sum=0
    for d in $(seq "$2"); do
        must "$programs/bench_meta" "$1" "$work/d$d" "$3"
        first_word
        sum=$(awk "BEGIN { print $sum + 1 / $value }")
    done
    value=$(awk "BEGIN { printf \"%.1f\", $2 / $sum }")
}
series_directory()
{
    for peer in ext4 folio; do
        start $peer
        work=$(work_dir $peer)
        for files in $directory_sizes; do
            directories=$((files < 1000 ? 1000 / files : 1))
            for d in $(seq $directories); do mkdir "$work/d$d"; done
            for operation in create stat readdir unlink; do
                quiesce
                drop_names
                mean_rate $operation $directories "$files"
                note directory $peer "$files" $operation /s "$value"
            done
            rmdir "$work"/d*
        done
        down_peer $peer
    done
}

# --- the size of a file ------------------------------------------------------------------------

random_io() # DIR NAME SIZE RW AMOUNT
{
    export DIR="$1" NAME="$2" SIZE="$3" RW="$4" AMOUNT="$5"
    must fio --output-format=json --output="$T/fio.json" "$bench/fio/scale.fio"
    python3 "$bench/fio_result.py" "$T/fio.json" >"$T/result" || fail 'fio gave no result'
    read -r value unit p50 p99 <"$T/result"
}
series_size()
{
    for peer in ext4 folio_direct; do
        start $peer
        work=$(work_dir $peer)
        for size in $file_sizes; do
            bytes=$(numfmt --from=iec "$(echo "$size" | tr kmg KMG)")
            truncate -s "$bytes" "$work/sparse"
            quiesce
            random_io "$work" sparse "$bytes" randread 64m
            note size $peer "$bytes" 'read 4k' /s "$value"
            random_io "$work" sparse "$bytes" randwrite 32m
            note size $peer "$bytes" 'write 4k' /s "$value"
            rm "$work/sparse"
        done
        down_peer $peer
    done
}

# --- inodes ------------------------------------------------------------------------------------

more_inodes() # FROM TO: rate into $value
{
    begin=$(date +%s%N)
    for d in $(seq $(($1 / PER_DIRECTORY)) $(($2 / PER_DIRECTORY - 1))); do
        mkdir "$work/d$d"
        must "$programs/bench_meta" create "$work/d$d" $PER_DIRECTORY
    done
    value=$(awk "BEGIN { printf \"%.1f\", ($2 - $1) / $(seconds_since "$begin") }")
}
remount_times() # INODES
{
    begin=$(date +%s%N)
    stop_peer folio
    note inodes folio "$1" unmount s "$(seconds_since "$begin")"
    begin=$(date +%s%N)
    start_folio folio "$memory" || fail "folio does not mount again: $reason"
    note inodes folio "$1" mount s "$(seconds_since "$begin")"
}
series_inodes()
{
    start folio
    work=$(work_dir folio)
    have=0
    base_kb=$(resident_kb folio)
    base_bytes=$(stat_of store.used_bytes)
    while [ $have -lt "$inodes" ]; do
        more_inodes $have $((have + inode_step))
        have=$((have + inode_step))
        note inodes folio $have create /s "$value"
        drop_names
        must "$programs/bench_meta" stat "$work/d0" $STAT_SAMPLE
        first_word
        note inodes folio $have 'stat in the oldest directory' /s "$value"
        begin=$(date +%s%N)
        quiesce
        note inodes folio $have sync s "$(seconds_since "$begin")"
        used=$(stat_of memory.inodes_bytes)
        known=$(stat_of inodes.inodes)
        note inodes folio $have 'memory per cached inode' B \
            "$(awk "BEGIN { printf \"%.0f\", $used / ($known > 0 ? $known : 1) }")"
        note inodes folio $have 'resident memory more than empty' MiB \
            "$((($(resident_kb folio) - base_kb) / 1024))"
        note inodes folio $have 'volume per inode' B \
            "$((($(stat_of store.used_bytes) - base_bytes) / have))"
        remount_times $have
    done
    down_peer folio
}

# --- cache, clients, age -----------------------------------------------------------------------

series_cache()
{
    for mib in $cache_sizes; do
        start folio_direct "memory=$((mib * 3 + 256))M,cache_size=${mib}M"
        work=$(work_dir folio_direct)
        must dd if=/dev/zero "of=$work/data" bs=1M count=$((cache_file >> 20)) conv=fsync
        must cat "$work/data"
        quiesce
        random_io "$work" data $cache_file randread $((cache_file / 4))
        note cache folio_direct "$mib" 'read 4k' /s "$value"
        begin=$(date +%s%N)
        must dd if=/dev/zero "of=$work/data" bs=1M count=$((cache_file >> 20)) conv=notrunc,fsync
        note cache folio_direct "$mib" 'sequential write' MiB/s \
            "$(awk "BEGIN { printf \"%.0f\", $((cache_file >> 20)) / $(seconds_since "$begin") }")"
        note cache folio_direct "$mib" 'memory per page beside its data' B \
            "$(awk "BEGIN { printf \"%.1f\", $(stat_of memory.page_structs_bytes) / ($mib * 256) }")"
        pages=$(stat_of cache.pages)
        note cache folio_direct "$mib" 'tree memory per cached page' B \
            "$(awk "BEGIN { printf \"%.1f\", $(stat_of memory.tree_nodes_bytes) / ($pages > 0 ? $pages : 1) }")"
        down_peer folio_direct
    done
}

create_together() # PROCESSES FILES
{
    begin=$(date +%s%N)
    for d in $(seq "$1"); do
        "$programs/bench_meta" create "$work/c$d" "$2" >"$T/client.$d" 2>&1 &
        note_process $!
        echo $! >>"$T/clients"
    done
    while read -r client; do
        wait "$client" || fail "a client failed: $(cat "$T"/client.*)"
        rm -f "$T/pids/$client"
    done <"$T/clients"
    value=$(awk "BEGIN { printf \"%.1f\", $1 * $2 / $(seconds_since "$begin") }")
    rm -f "$T/clients" "$T"/client.*
}
series_clients()
{
    start folio_direct
    work=$(work_dir folio_direct)
    must dd if=/dev/zero "of=$work/data" bs=1M count=1
    quiesce
    for n in $clients; do
        must "$programs/bench_pread" "$work/data" "$n" $SECONDS_EACH
        first_word
        note clients folio_direct "$n" 'read a cached page' /s "$value"
    done
    down_peer folio_direct
    for peer in ext4 folio; do
        start $peer
        work=$(work_dir $peer)
        for n in $clients; do
            for d in $(seq "$n"); do mkdir "$work/c$d"; done
            create_together "$n" $((4000 / n))
            note clients $peer "$n" create /s "$value"
            rm -rf "$work"/c*
        done
        down_peer $peer
    done
}

# What the disk below $T has written since it was attached, bytes.
device_written()
{
    disk=/sys/dev/block/$(stat -c '%Hd:%Ld' "$T")
    awk '{ printf "%.0f\n", $7 * 512 }' "$disk/stat"
}
at_rest() # the daemon looks for what it can give back every "commit" seconds (5)
{
    quiesce
    sleep 11
}

series_age()
{
    start folio_direct
    work=$(work_dir folio_direct)
    volume=$T/folio_direct.folio
    begin=$(date +%s%N)
    must dd if=/dev/urandom "of=$work/data" bs=1M count=$((age_file >> 20)) conv=fsync
    note age folio_direct 0 write MiB/s \
        "$(awk "BEGIN { printf \"%.0f\", $((age_file >> 20)) / $(seconds_since "$begin") }")"
    for age in 0 $ages; do
        if [ "$age" != 0 ]; then
            written=$(device_written)
            pages=$(stat_of cache.written_pages)
            begin=$(date +%s%N)
            random_io "$work" data $age_file randwrite $age_file
            quiesce
            note age folio_direct "$age" 'overwrite 4k and sync' /s \
                "$(awk "BEGIN { printf \"%.0f\", $((age_file / 4096)) / $(seconds_since "$begin") }")"
            written=$(($(device_written) - written))
            pages=$(($(stat_of cache.written_pages) - pages))
            note age folio_direct "$age" 'device bytes per byte overwritten' x \
                "$(awk "BEGIN { printf \"%.3f\", $written / $age_file }")"
            note age folio_direct "$age" 'device bytes per byte written back' x \
                "$(awk "BEGIN { printf \"%.3f\", $written / ($pages * 4096) }")"
        fi
        drop_all
        begin=$(date +%s%N)
        must cat "$work/data"
        note age folio_direct "$age" 'read cold' MiB/s \
            "$(awk "BEGIN { printf \"%.0f\", $((age_file >> 20)) / $(seconds_since "$begin") }")"
        at_rest
        note age folio_direct "$age" 'used to data' x \
            "$(awk "BEGIN { printf \"%.3f\", $(stat_of store.used_bytes) / $age_file }")"
        note age folio_direct "$age" 'blocks on disk to data' x \
            "$(awk "BEGIN { printf \"%.3f\", $(du -B1 "$volume" | cut -f 1) / $age_file }")"
    done
    down_peer folio_direct
}

: "${only:=directory size inodes cache clients age}"
{
    echo "machine: $(machine)"
    echo "versions: Linux $(uname -r); FolioFS $(folio_version); options $memory"
    echo "load: $(cut -d ' ' -f 1-3 /proc/loadavg)"
} >"$out/scale.environment"
for series in $only; do
    case $series in
    directory | size | inodes | cache | clients | age) "series_$series" ;;
    *) fail "there is no series $series" ;;
    esac
done
echo "load at the end: $(cut -d ' ' -f 1-3 /proc/loadavg)" >>"$out/scale.environment"
python3 "$bench/scale_table.py" "$out" >"$out/scale.md" || fail 'scale_table.py failed'
cat "$out/scale.md"
