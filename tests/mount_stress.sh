#!/bin/sh
# folio-stress on tmpfs, ext4 and xfs, which shows that what it reports is not of its own making, and on
# FolioFS: through both caches, with one of 1 MiB, on a disk that is full now and then, with a store
# that fails now and then, with a daemon that finds no memory now and then, and with one that is killed.
#
#   FOLIO_SECONDS  of each part (30)
#   FOLIO_LANES    how many at a time (14: more are no faster)
#   FOLIO_SEED     repeats a run (as far as an interleaving can be repeated)
#   FOLIO_PARTS    which of them ("all": those below, too)
. "$(dirname -- "$0")/lib.sh"
stress=$FOLIO_BIN/folio-stress
[ -x "$stress" ] || fail "FOLIO_BIN=$FOLIO_BIN has no folio-stress"
seconds=${FOLIO_SECONDS:-30}
parts=${FOLIO_PARTS:-'tmpfs ext4 xfs kernel direct_1M attached mixed full errors_kernel errors_attached memory_mixed
crash_kernel crash_attached replay'}
[ "$parts" != all ] || parts='tmpfs ext4 xfs kernel kernel_1M direct direct_1M through attached attached_kernel mixed
mixed_kernel full errors_kernel errors_direct errors_attached errors_mixed memory_kernel memory_direct memory_attached
memory_mixed crash_kernel crash_direct crash_attached crash_mixed replay'

# --- several parts: each is a run of this script ------------------------------------------------

# Take the parts that nobody has taken.
lane()
{
    running=
    trap 'kill -s TERM "$running" 2>/dev/null; wait "$running"; exit 143' TERM
    for part in $parts; do
        mkdir "$T/part.$part" 2>/dev/null || continue
        FOLIO_PARTS=$part sh "$source_dir/tests/mount_stress.sh" >"$T/part.$part/out" 2>&1 &
        running=$!
        wait "$running"
        echo $? >"$T/part.$part/status"
    done
}
in_lanes()
{
    for _ in $(seq "${FOLIO_LANES:-14}"); do
        lane &
        note_process $!
    done
    wait_for_lanes=$(ls "$T/pids")
    for lane in $wait_for_lanes; do
        wait "$lane"
        rm -f "$T/pids/$lane"
    done
    failed=
    for part in $parts; do
        cat "$T/part.$part/out"
        status=$(cat "$T/part.$part/status" 2>/dev/null)
        case $status in
        0) ;;
        77) without "$part" "$(tail -n 1 "$T/part.$part/out")" ;;
        *) failed="$failed $part ($status)" ;;
        esac
    done
    [ -z "$failed" ] || fail "failed:$failed"
}
if [ "$(echo "$parts" | wc -w)" -gt 1 ]; then
    in_lanes
    exit
fi
start_random

# One part that cannot be done here; the others go on. (run.sh lists lines with this mark.)
without() # PART WHY
{
    say "[SKIP] $1: $2"
}

run_stress() # PART DIRECTORY OPTIONS...: 1 if it cannot be done here
{
    part=$1 where=$2
    shift 2
    random_below 1000000000
    # In the background, or the trap of a signal would wait for its end.
    timeout $((seconds * 3 + 300)) "$stress" --seed "$random" --seconds "$seconds" "$@" "$where" \
        >"$T/stress.out" 2>&1 &
    load=$!
    note_process "$load"
    wait "$load"
    status=$?
    rm -f "$T/pids/$load"
    if [ "$status" -eq 77 ]; then
        without "$part" "$(tail -n 1 "$T/stress.out")"
        return 1
    fi
    [ "$status" -eq 0 ] || fail "$part: folio-stress $*: status $status: $(cat "$T/stress.out")"
    say "$part: $(tail -n 1 "$T/stress.out" | cut -d : -f 2-)"
}

# --- a seed repeats a run --------------------------------------------------------------------

# What one worker did, in an empty directory, into $did: how often each operation, check, ... (no times)
do_alone() # DIRECTORY SEED OPTIONS...
{
    where=$1 draws=$2
    shift 2
    mkdir "$where"
    timeout 120 "$stress" --procs 1 --threads 1 --ops 2000 --seconds 100 --seed "$draws" "$@" "$where" \
        >"$T/stress.out" 2>&1 || fail "replay: folio-stress $*: status $?: $(cat "$T/stress.out")"
    did=$(sed -n 's/.* passed: seed [0-9]*: //p' "$T/stress.out")
    [ -n "$did" ] || fail "replay: it does not say what it did: $(cat "$T/stress.out")"
    rmdir "$where" # it leaves nothing behind
}
replays() # DIRECTORY OPTIONS...
{
    below=$1
    shift
    random_below 1000000000
    do_alone "$below/once" "$random" "$@"
    once=$did
    do_alone "$below/again" "$random" "$@"
    [ "$did" = "$once" ] || fail "replay: --seed $random $* once: $once; again: $did"
    do_alone "$below/other" $((random + 1)) "$@"
    [ "$did" != "$once" ] || fail "replay: another seed than $random $* does the same: $did"
}
replay()
{
    replays "$T"
    make_volume
    mount_volume -o cache=direct,cache_size=1M
    replays "$M" --without tail
    unmount_volume
    check_volume replay
    say "replay: $once"
}

# --- other filesystems -------------------------------------------------------------------------

on_tmpfs()
{
    is_root || { without tmpfs 'not root'; return; }
    mkdir "$T/tmpfs"
    mount -t tmpfs -o size=64M none "$T/tmpfs" 2>"$T/out" || { without tmpfs "$(cat "$T/out")"; return; }
    run_stress tmpfs "$T/tmpfs"
    umount "$T/tmpfs"
}

on_loop() # TYPE MOUNT-OPTIONS MKFS-OPTIONS...
{
    type=$1 options=$2
    shift 2
    is_root || { without "$type" 'not root'; return; }
    command -v "mkfs.$type" >/dev/null || { without "$type" "mkfs.$type is not installed"; return; }
    mkdir "$T/$type"
    truncate -s 320M "$T/$type.image"
    "mkfs.$type" "$@" "$T/$type.image" >"$T/out" 2>&1 || fail "mkfs.$type: $(cat "$T/out")"
    mount -o "loop,$options" "$T/$type.image" "$T/$type" 2>"$T/out" ||
        { without "$type" "$(head -n 1 "$T/out")"; return; }
    run_stress "$type" "$T/$type"
    umount "$T/$type"
    rm "$T/$type.image"
}

# --- FolioFS -----------------------------------------------------------------------------------

on_foliofs() # PART MOUNT-OPTIONS COHERENCE STRESS-OPTIONS...
{
    part=$1 options=$2 coherence=$3
    shift 3
    make_volume
    mount_volume -o "$options"
    run_stress "$part" "$M" "--coherence=$coherence" "$@"
    unmount_volume
    check_volume "$part"
}

# The disk under the volume is full half of the time. What fails is told to who asked, and nothing
# else is lost. (Stores through the kernel's mappings are left out: when their writing fails the
# kernel drops them, having said so to fsync.)
has_begun()
{
    set -- "$M"/folio-stress.*
    [ -d "$1" ]
}
full_now_and_then()
{
    until_true 60 has_begun # a test that cannot make its directory counts as one that cannot be had
    while :; do
        dd if=/dev/zero of="$T/disk/ballast" bs=1M 2>/dev/null
        sleep 0.2
        rm -f "$T/disk/ballast"
        sleep 0.2
    done
}
on_full_disk()
{
    is_root || { without full 'not root'; return; }
    mkdir "$T/disk"
    mount -t tmpfs -o size=80M none "$T/disk" || fail 'mount -t tmpfs'
    V=$T/disk/volume
    make_volume
    mount_volume -o cache=direct,cache_size=1M
    full_now_and_then &
    filler=$!
    note_process "$filler"
    run_stress full "$M" --errors --without store,fork,tail
    kill "$filler"
    wait "$filler" 2>/dev/null
    rm -f "$T/pids/$filler" "$T/disk/ballast"
    unmount_volume
    check_volume full
    umount "$T/disk"
    V=$T/volume
}

# The store fails now and then: a few of its reads, writes or commits, or all of them. What fails is
# told to who asked. When it is over, all that was written goes to the store, and comes from there.
# (The kernel drops stores through its mappings when it cannot hand them on, having said so to fsync;
# FolioFS cannot take the part of a page that it has to read first. So either reads or these stores are
# left out; and with cache=kernel there is memory for all that cannot be written meanwhile.)
make_injector() # WHAT...: "sh $T/injector on" and "sh $T/injector off" are for folio-stress to run
{
    cat >"$T/injector" <<END
drawn=\$(od -An -N2 -tu2 /dev/urandom)
ctl()
{
    "$FOLIO_BIN/foliofsctl" "$M" "\$@" >/dev/null
}
case \$1 in
on)
    set -- $*
    shift \$((drawn % $#))
    case \$((drawn / 16 % 3)) in
    0) often=2000 ;;
    1) often=50000 ;;
    2) often=1000000 ;;
    esac
    ctl inject --eio --\$1 --per-million=\$often
    ;;
off)
    ctl inject --clear && ctl sync && ctl drop
    ;;
esac
END
}
with_errors() # PART MOUNT-OPTIONS COHERENCE WHAT STRESS-OPTIONS...
{
    part=$1 options=$2 coherence=$3 kinds=$4
    shift 4
    make_volume
    mount_volume -o "$options,inject"
    wait_for_control
    # shellcheck disable=SC2086 # several words
    make_injector $kinds
    run_stress "$part" "$M" "--coherence=$coherence" --inject "sh $T/injector" "$@"
    say "$part: $("$FOLIO_BIN/foliofsctl" "$M" stats | grep -A2 '^injected' | tr -s '\n ' ' ')"
    unmount_volume
    check_volume "$part"
}

# The daemon finds no memory: now and then, often, or nearly always. Who is told ENOMEM has lost nothing; attached
# clients wait. (The first syncs may tell of files' times that could not be set: an error of one kind that the kernel
# finds at a munmap it notes as a new one; and the programs go on unmapping. So one sync has to go well.)
make_starver() # likewise
{
    cat >"$T/injector" <<END
ctl()
{
    "$FOLIO_BIN/foliofsctl" "$M" "\$@" >/dev/null
}
fail_so_often() # four bytes
{
    printf "\$1" | dd of="$FOLIO_FAIL_ALLOC" conv=notrunc bs=4 count=1 2>/dev/null
}
case \$1 in
on)
    case \$((\$(od -An -N2 -tu2 /dev/urandom) % 3)) in
    0) fail_so_often '\350\003\000\000' ;; #    1,000 of a million
    1) fail_so_often '\060\165\000\000' ;; #   30,000
    2) fail_so_often '\340\223\004\000' ;; #  300,000
    esac
    ;;
off)
    fail_so_often '\000\000\000\000'
    for _ in 1 2 3 4 5 6 7 8 9; do
        ! ctl sync 2>/dev/null || break
        false
    done || ctl sync || exit 1
    ctl drop
    ;;
esac
END
}
without_memory() # PART MOUNT-OPTIONS COHERENCE STRESS-OPTIONS...
{
    part=$1 options=$2 coherence=$3
    shift 3
    use_fail_alloc || { without "$part" 'no compiler, or a foliofs with a sanitizer'; return; }
    make_volume
    mount_volume -o "$options"
    wait_for_control
    make_starver
    if run_stress "$part" "$M" "--coherence=$coherence" --inject "sh $T/injector" "$@"; then
        failures=$(failed_allocations)
        [ "$failures" -gt 0 ] || [ "$seconds" -lt 20 ] || fail "$part: no allocation has failed"
        say "$part: $failures allocations failed"
    fi
    # What is written at last is written, if memory is found by trying.
    head -c 2M /dev/urandom >"$T/last"
    cp "$T/last" "$M/last" || fail "$part: cp"
    set_failing 1000
    unmount_volume
    check_volume "$part"
    daemon_env=
    mount_volume
    cmp "$T/last" "$M/last" || fail "$part: what was written before umount is not there"
    unmount_volume
}

with_crashes() # PART MOUNT-OPTIONS COHERENCE STRESS-OPTIONS...
{
    part=$1 options=$2 coherence=$3
    shift 3
    make_volume
    mount_to_crash "$options"
    run_stress "$part" "$M" "--coherence=$coherence" --crash "sh $T/crasher" "$@"
    unmount_to_crash
    check_volume "$part"
}

for part in $parts; do
    case $part in
    tmpfs) on_tmpfs ;;
    ext4) # left alone, it takes smaller blocks for an image like this; without data=journal, large folios
        on_loop ext4 data=journal -q -F -b 4096
        ;;
    xfs) on_loop xfs rw -q ;;
    kernel) on_foliofs kernel cache=kernel full --without tail ;;
    kernel_1M) on_foliofs kernel_1M cache=kernel,cache_size=1M full --without tail ;;
    direct) on_foliofs direct cache=direct full --without tail ;;
    direct_1M) on_foliofs direct_1M cache=direct,cache_size=1M full --without tail ;;
    through) on_foliofs through attach,cache=kernel full --without tail ;;
    attached) on_foliofs attached cache=direct,cache_size=1M full --attach ;;
    attached_kernel) on_foliofs attached_kernel attach,cache=kernel,store_around=64 full --attach ;;
    mixed) on_foliofs mixed cache=direct,cache_size=1M,store_around=64 fuse --attach=mixed ;;
    mixed_kernel) on_foliofs mixed_kernel attach,cache=kernel fuse --attach=mixed ;;
    full) on_full_disk ;;
    errors_kernel) with_errors errors_kernel cache=kernel full 'writes commits' --without tail ;;
    errors_direct)
        with_errors errors_direct cache=direct,cache_size=1M full 'reads writes commits' \
            --without store,fork,tail
        ;;
    errors_attached)
        with_errors errors_attached cache=direct,cache_size=1M full 'reads writes commits' --attach
        ;;
    errors_mixed) with_errors errors_mixed attach,cache=kernel fuse 'writes commits' --attach=mixed ;;
    memory_kernel) without_memory memory_kernel cache=kernel full --without tail ;;
    memory_direct)
        without_memory memory_direct cache=direct,cache_size=1M full --without store,fork,tail
        ;;
    memory_attached) without_memory memory_attached cache=direct,cache_size=1M full --attach ;;
    memory_mixed) without_memory memory_mixed attach,cache=kernel fuse --attach=mixed ;;
    crash_kernel) with_crashes crash_kernel cache=kernel,cache_size=1M full --without tail ;;
    crash_direct) with_crashes crash_direct cache=direct,cache_size=1M full --without tail --stable ;;
    crash_attached) with_crashes crash_attached cache=direct,cache_size=1M,store_around=64 full --attach ;;
    crash_mixed) with_crashes crash_mixed attach,cache=kernel fuse --attach=mixed ;;
    replay) replay ;;
    *) fail "there is no part $part" ;;
    esac
done
