#!/bin/sh
# Measure FolioFS beside what one would use instead, in turns, and print ratios with their spread.
#
#   run.sh [--quick] [--rounds N] [--only ROW,...] [--peers PEER,...] [--out DIR] [--profile] [--all]
#
# --quick     small files and one round, some minutes: does it work here at all?
# --rounds N  every peer has N turns at every row (3); the order rotates
# --only      these rows (bench/rows.tsv lists them)
# --peers     these: ext4 xfs tmpfs fuse2fs ll ll_wb folio folio_direct folio_ring direct_ring null
#             null_ring null_stock
# --out DIR   where the results go: table.md, raw.csv, plots (./bench-results)
# --profile   record FolioFS's daemon meanwhile: out/profile says which requests came, how long they
#             took, and where the processor time went. The table of such a run is slowed by it
# --all       afterwards what is not a row as well, below the table: faults.sh, micro.sh, layout.c,
#             hitratio.sh, readahead.sh and scale.sh. In earnest this takes some hours
#
# ext4 and xfs lie on loop files, fuse2fs has an ext4 image of the same kind, ll and ll_wb are
# libfuse's passthrough_ll over a directory of the ext4 peer, as it comes and with "writeback,
# cache=always"; null, null_ring and null_stock are FUSE servers that do nothing (bench/null_fuse.c); what
# ends in _ring gets its requests by io_uring, which is switched on while it is being mounted. All images
# and the volumes lie in one directory below $TMPDIR. Needs root, or sudo without a password.
#
# FOLIO_OPTIONS: mount options of FolioFS (memory=1536M). FOLIO_BUILD: a build directory to use as it
# is, instead of building the preset "release".
set -u

bench=$(cd "$(dirname -- "$0")" && pwd -P)
. "$bench/setup.sh"

quick= rounds= only= peers= out=bench-results profile= all=
parse_options 'quick profile all' 'rounds only peers out' "$@"
only=$(echo "$only" | tr , ' ') peers=$(echo "$peers" | tr , ' ')
be_root "$@"

# --- what is measured --------------------------------------------------------------------------

if [ -n "$quick" ]; then
    SIZE=$((192 << 20)) SYNC_SIZE=$((16 << 20)) FILES=1000 TREE_FILES=900 UNITS=6 SECONDS_EACH=1
    : "${rounds:=1}"
else
    SIZE=$((512 << 20)) SYNC_SIZE=$((64 << 20)) FILES=10000 TREE_FILES=9060 UNITS=30 SECONDS_EACH=4
    : "${rounds:=3}"
fi
QUARTER=$((SIZE / 4)) EIGHTH=$((SIZE / 8))
LIMIT=600         # seconds for one piece of work
IMAGE_SIZE=8G     # sparse
NEEDED_KB=$((SIZE / 1024 * 7 + (4 << 20)))
: "${FOLIO_OPTIONS:=memory=1536M}"

# --- build and set up --------------------------------------------------------------------------

build_all
make_out "$out"

. "$bench/../tests/lib.sh" # $T, and the trap that leaves nothing behind
. "$bench/peers.sh"
. "$bench/work.sh"
. "$bench/profile.sh"
[ -z "$profile" ] || need perf
need fio python3 make tar find grep git sqlite3

mkdir "$T/mnt" 2>/dev/null
mkdir "$T/memory" && mount -t tmpfs bench "$T/memory" || fail 'no tmpfs could be mounted'
[ "$(df -k --output=avail "$T" | tail -n 1)" -gt $NEEDED_KB ] ||
    fail "$T has less than $((NEEDED_KB >> 20)) GiB free; TMPDIR names another place"
build_passthrough
make_archive || fail 'the tree could not be made'
write_sql

csv=$out/raw.csv
echo 'row,peer,round,value,unit,p50_us,p99_us,idle_percent,steal_percent,load,server_cpu_s' >"$csv"
: >"$out/skipped"
skip_with() # WHAT REASON
{
    say "skipped: $1: $2"
    echo "$1: $2" >>"$out/skipped"
}

cpu_times() # total, idle, stolen ticks since boot, of all processors
{
    awk '/^cpu / { print $2 + $3 + $4 + $5 + $6 + $7 + $8 + $9, $5 + $6, $9; exit }' /proc/stat
}
cpu_use() # TOTAL IDLE STOLEN, of the beginning: idle and stolen per cent since
{
    cpu_times | awk -v t="$1" -v i="$2" -v s="$3" '{
        d = $1 > t ? $1 - t : 1
        printf "%.0f,%.0f\n", 100 * ($2 - i) / d, 100 * ($3 - s) / d
    }'
}

# Of a peer's server, if it has one: the processor time it took so far, in ticks.
server_ticks() # PEER
{
    [ ! -f "$T/server/$1" ] || sed 's/.*) //' "/proc/$(cat "$T/server/$1")/stat" |
        awk '{ print $12 + $13 }'
}
server_cpu() # PEER TICKS: seconds since
{
    now=$(server_ticks "$1")
    [ -z "$2" ] && echo - || awk "BEGIN { print ($now - $2) / $(getconf CLK_TCK) }"
}

# The processors, while nothing of ours runs.
others_busy()
{
    before=$(cpu_times)
    sleep 2
    # shellcheck disable=SC2086 # three words
    cpu_use $before | awk -F, '{ print 100 - $1 }'
}

write_environment()
{
    echo "machine: $(machine)"
    echo "versions: Linux $(uname -r); $(version_of fio --version); libfuse" \
        "$(pkg-config --modversion fuse3); lmdb $(pkg-config --modversion lmdb);" \
        "$(version_of mkfs.ext4 -V); $(version_of mkfs.xfs -V); FolioFS" \
        "$(folio_version)"
    echo "directory: $(df --output=fstype,source "$T" | tail -n 1 | tr -s ' ')," \
        "$(df -h --output=avail "$T" | tail -n 1 | tr -d ' ') free, for all images and volumes"
    echo "FolioFS options: $FOLIO_OPTIONS, and cache=kernel or cache=direct; build" \
        "$(sed -n 's/^CMAKE_BUILD_TYPE:[^=]*=//p' "$FOLIO_BUILD/CMakeCache.txt")"
    echo "sizes: file $((SIZE >> 20)) MiB, $FILES files, a tree of $TREE_FILES files;" \
        "$rounds rounds${quick:+; quick}"
    echo "load: $(cut -d ' ' -f 1-3 /proc/loadavg); others used $others % of the processors before" \
        'the first round'
}

# --- rows and rounds ---------------------------------------------------------------------------

tab=$(printf '\t')
takes_part() # PEER KIND: of row
{
    case $2:$1 in
    all:null | all:null_ring | all:null_stock | names:null_stock) return 1 ;;
    trip:null | trip:null_ring | trip:null_stock | trip:folio_direct | trip:direct_ring) return 0 ;;
    trip:*) return 1 ;;
    esac
}
rotated() # N WORDS...
{
    turns=$(($1 % ($# > 1 ? $# - 1 : 1)))
    shift
    while [ $turns -gt 0 ]; do
        first=$1
        shift
        set -- "$@" "$first"
        turns=$((turns - 1))
    done
    echo "$@"
}

measure() # ROW STATE PEER
{
    dir=$(work_dir "$3")
    : >"$T/work.out"
    "prepare_$1" "$dir" || {
        skip_with "$1 on $3" "not prepared: $(tail -n 2 "$T/work.out" | tr '\n' ' ')"
        return
    }
    quiesce
    case $2 in
    cold) drop_all ;;
    cold-names) drop_names ;;
    esac
    case $profile:$3 in
    1:folio* | 1:direct_ring) start_profile "$3" ;;
    esac
    ticks=$(server_ticks "$3")
    before=$(cpu_times)
    if "row_$1" "$dir"; then
        [ -z "$wrap" ] || end_profile "$1" "$3"
        # shellcheck disable=SC2086 # three words
        used=$(cpu_use $before),$(cut -d ' ' -f 1 /proc/loadavg),$(server_cpu "$3" "$ticks")
        echo "$1,$3,$round,$value,$unit,$p50,$p99,$used" >>"$csv"
    else
        skip_with "$1 on $3" "$(tail -n 2 "$T/work.out" | tr '\n' ' ')"
    fi
    wrap=
}

one_row() # NUMBER NAME STATE KIND
{
    case $3 in
    cold*) can_drop || {
        [ "$round" -gt 1 ] || skip_with "$2" 'the kernel does not let us drop its caches'
        return
    } ;;
    esac
    # shellcheck disable=SC2086 # words
    for peer in $(rotated $((round + $1)) $up); do
        ! takes_part "$peer" "$4" || measure "$2" "$3" "$peer"
    done
}

one_round()
{
    up=
    for peer in $peers; do
        if up_peer "$peer"; then
            up="$up $peer"
        else
            is_mounted "$T/mnt/$peer" && down_peer "$peer"
            [ "$round" -gt 1 ] || skip_with "$peer" "$reason"
        fi
    done
    number=0
    grep -v '^#' "$bench/rows.tsv" >"$T/rows"
    while IFS=$tab read -r row title base aim state kind trips <&3; do
        number=$((number + 1))
        [ -z "$only" ] || is_in "$row" "$only" || continue
        say "round $round of $rounds: $title"
        one_row $number "$row" "$state" "$kind"
    done 3<"$T/rows"
    for peer in $(echo "$up" | tr ' ' '\n' | tac); do
        down_peer "$peer"
    done
}

# --- what is not a row -------------------------------------------------------------------------

append() # NAME TITLE RESULT COMMAND...: run it, and put RESULT, a file it writes, below the table
{
    name=$1 title=$2 result=$3
    shift 3
    say "then: $title"
    "$@" >"$T/$name.out" 2>"$T/$name.err" </dev/null &
    child=$!
    note_process "$child"
    if wait "$child"; then
        [ "$result" != - ] || result=$T/$name.out
        { printf '\n# %s\n\n' "$title" && grep -v '^# ' "$result"; } >>"$out/table.md"
    else
        reason=$(cat "$T/$name.out" "$T/$name.err" | tail -n 2 | tr '\n' ' ')
        skip_with "$name" "$reason"
        printf '\n# %s\n\nskipped: %s\n' "$title" "$reason" >>"$out/table.md"
    fi
    rm -f "$T/pids/$child"
}
run_others()
{
    append faults 'What a page fault costs' "$out/faults/faults.md" \
        sh "$bench/faults.sh" ${quick:+--quick} --out "$out/faults"
    # shellcheck disable=SC2086 # two words
    append micro 'What a hit, a read, a write and a miss cost' - \
        env "WAIT=${quick:+0}" sh "$bench/micro.sh" "$T" ${quick:+256 1}
    # shellcheck disable=SC2086 # two words
    append layout 'How file bytes may lie in LMDB' - "$programs/bench_layout" "$T" ${quick:+16 2}
    append hitratio 'Hit ratios of the reclaim policies, per cent' - \
        sh "$bench/hitratio.sh" "$FOLIO_BUILD" "$out/hitratio" ${quick:+1024}
    append readahead 'What readahead policies save and cost' - \
        sh "$bench/readahead.sh" "$FOLIO_BUILD" "$out/readahead"
    append scale 'Cost as work grows' "$out/scale/scale.md" \
        sh "$bench/scale.sh" ${quick:+--quick} --out "$out/scale"
}

: "${peers:=$all_peers}"
is_in ext4 "$peers" || peers="ext4 $peers" # the base, and below ll
for row in $only; do
    grep -q "^$row$tab" "$bench/rows.tsv" || fail "there is no row $row in bench/rows.tsv"
done
[ -z "$profile" ] || can_profile || fail "perf cannot record: $(tail -n 2 "$T/perf.out")"
others=$(others_busy)
write_environment | tee "$out/environment"
round=1
while [ "$round" -le "$rounds" ]; do
    one_round
    round=$((round + 1))
done
end_profiling
echo "load at the end: $(cut -d ' ' -f 1-3 /proc/loadavg)" >>"$out/environment"

python3 "$bench/table.py" "$bench/rows.tsv" "$out" >"$out/table.md" || fail 'table.py failed'
command -v gnuplot >/dev/null && (cd "$out" && gnuplot "$bench/ratios.gp") ||
    skip_with plots 'gnuplot is not installed, or failed'
[ -z "$all" ] || run_others
cat "$out/table.md"
say "written to $out: table.md, raw.csv, ratios.svg${all:+, and what the others wrote below it}"
