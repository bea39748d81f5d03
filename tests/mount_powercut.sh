#!/bin/sh
# The power goes while a mixed load works on a mount. What the daemon does to its volume is recorded, volumes are made
# of it as a disk may hold after a cut, and each of them mounts, without fsck, and holds what was durable: what
# crash_load's log says up to that moment. Some lose power once more while they are mounted, or repaired by fsck. The
# next load goes on with such a volume. That disks that lie are found out shows that a flush that is missing is seen.
#
#   FOLIO_SEED     repeats a run (as far as the load's can be repeated)
#   FOLIO_ROUNDS   how often each load comes (1)
#   FOLIO_CUTS     how many cuts of each (6)
#   FOLIO_SECONDS  how long each works (2)
. "$(dirname -- "$0")/lib.sh"
rounds=${FOLIO_ROUNDS:-1}
cuts=${FOLIO_CUTS:-6}
seconds=${FOLIO_SECONDS:-2}
workers=3
age=5000000000 # ns: commit=1, and four for a machine that is busy
! grep -q '__[at]san_init' "$FOLIO_BIN/foliofs" || skip 'foliofs has a sanitizer, which has to be loaded first'
build_helper crash_load
build_helper power_cut
build_helper record_writes -shared -fPIC
preload=$(cd "$FOLIO_BIN/../lib" && pwd -P)/libfolio-preload.so
mkdir "$T/empty"
seq 1000000 >"$T/pattern"
start_random

# The daemons that are started from now on.
record_to() # RECORD
{
    daemon_env="LD_PRELOAD=$T/record_writes FOLIO_RECORDED=$V FOLIO_RECORD=$1"
    rm -f "$1"
}
record_nothing()
{
    daemon_env=
}

# A file that takes long to write back, beside those who sync: only then are there blocks on the disk that lie behind
# the end of file there.
write_large()
{
    while [ -e "$T/working" ]; do
        cat "$T/pattern" >"$M/$load/large" || return 1
    done
}
# What there is of it has been written.
is_written()
{
    large=$M/$load/large
    [ -z "$in_order" ] || [ ! -e "$large" ] || cmp -n "$(stat -c %s "$large")" "$large" "$T/pattern"
}

# Each load has a directory, and removes that of the one before. $why_not: files cannot be mapped so here.
start_load()
{
    mkdir "$M/$load" "$M/$load/shared"
    for i in $(seq 0 $((workers - 1))); do
        mkdir "$M/$load/own$i"
    done
    sync "$M/$load/shared" "$M/$load"/own* "$M/$load" "$M" || fail "$what: sync of the directories"
    rm -rf "${M:?}/${previous:-none}" &
    remover=$!
    note_process "$remover"
    : >"$T/working"
    write_large &
    writer=$!
    note_process "$writer"
    random_below 1000000000
    LD_PRELOAD=$1 FOLIO_VERBOSE=1 timeout -s KILL $((seconds + 120)) \
        "$T/crash_load" run "$M/$load" "$T/log" "$random" $workers "$seconds" >"$T/load.out" 2>&1
    status=$?
    why_not=$(grep -i -m 1 'userfaultfd\|mmap: No such device' "$T/load.out")
    [ $status -eq 0 ] || [ -n "$why_not" ] || fail "$what: the load met an error: $(cat "$T/load.out")"
    wait_for_control
    [ -z "$1" ] || [ -n "$why_not" ] || [ "$(stat_of faults.attached_mkwrite)" -gt 0 ] ||
        fail "$what: nothing was attached"
    rm "$T/working"
    wait "$writer" || fail "$what: the large file"
    wait "$remover" || fail "$what: rm -rf"
    rm -f "$T/pids/$writer" "$T/pids/$remover"
    previous=$load
}

# From $T/before to $V; the disk's part is in $T/record, the load's in $T/log.*.
work_recorded() # OPTIONS LIBRARY
{
    cp --sparse=always "$V" "$T/before"
    record_to "$T/record"
    mount_volume -o "$1"
    start_load "$2"
    unmount_volume
    record_nothing
    "$T/power_cut" "$T/record" "$T/before" "$T/whole" whole >"$T/cut" || fail "$what: power_cut failed"
    cmp "$T/whole" "$V" || fail "$what: the volume was changed in a way that is not recorded"
    "$T/crash_load" acks "$T/log" $workers >"$T/acks" || fail "$what: acks"
    say "$what: $(sed 's/.* of //' "$T/cut") on the disk, $(wc -l <"$T/acks") acknowledged"
}

# Make $V what may be there after a cut, which was at $until.
cut_power() # RECORD BEFORE [ACKS [LIE]]
{
    random_below 1000000000
    record=$1
    before=$2
    shift 2
    "$T/power_cut" "$record" "$before" "$T/image" "$random" "$@" >"$T/cut" || fail "$what: power_cut failed"
    what="$what, cut $random: $(cut -d ' ' -f 2- "$T/cut")"
    mv "$T/image" "$V"
}
cut_load() # [LIE]
{
    cut_power "$T/record" "$T/before" "$T/acks" "$@"
    until=$(cut -d ' ' -f 1 "$T/cut")
}

# A directory that was not there yet has nothing in it.
is_as_durable()
{
    where=$M/$load
    [ -d "$where" ] || where=$T/empty
    # shellcheck disable=SC2086 # one word or none
    "$T/crash_load" verify "$where" "$T/log" $workers until="$until" age=$age $in_order >"$T/verify.out" 2>&1
}

cut_fsck()
{
    record_to "$T/record2"
    # shellcheck disable=SC2086 # several words
    env $daemon_env "$FOLIO_BIN/fsck.foliofs" "$V" >"$T/fsck.out" 2>&1 ||
        fail "$what: fsck.foliofs ended with $?: $(cat "$T/fsck.out")"
    record_nothing
    what="$what; fsck.foliofs"
    cut_power "$T/record2" "$T/cut1"
    check_volume "$what"
}

# What has been seen after the first cut stays.
cut_again() # OPTIONS
{
    "$T/crash_load" sum "$M" >"$T/sum" || fail "$what: sum"
    kill_daemon
    detach "$M"
    what="$what; mounted"
    cut_power "$T/record2" "$T/cut1"
    check_volume "$what"
    mount_volume -o "$1"
    "$T/crash_load" sum "$M" | cmp -s - "$T/sum" || fail "$what: this second cut changed something"
}
check_cut() # NUMBER OPTIONS
{
    what=$load
    cut_load
    cp --sparse=always "$V" "$T/cut1"
    check_volume "$what"
    [ $(($1 % 3)) -ne 0 ] || cut_fsck
    [ $(($1 % 3)) -ne 1 ] || record_to "$T/record2"
    mount_volume -o "$2"
    record_nothing
    is_as_durable || fail "$what: $(cat "$T/verify.out")"
    is_written >"$T/verify.out" 2>&1 || fail "$what: $(cat "$T/verify.out")"
    [ $(($1 % 3)) -ne 1 ] || cut_again "$2"
    "$T/crash_load" grow "$M" >"$T/verify.out" 2>&1 || fail "$what: $(cat "$T/verify.out")"
    unmount_volume
    check_volume "$what; mounted and unmounted"
}

# Does the volume look sound, mount, and hold what was durable?
is_good()
{
    "$FOLIO_BIN/fsck.foliofs" -n "$V" >"$T/fsck.out" 2>&1 || return 1
    if ! try_mount; then
        reap_daemon
        return 1
    fi
    is_as_durable
    good=$?
    kill_daemon
    detach "$M"
    return $good
}
# One of ten is enough: what was acknowledged may just have been flushed for somebody else.
check_lie() # LIE
{
    for _ in $(seq 10); do
        what="$load, $1"
        cut_load "$1"
        is_good || return 0
    done
    fail "$load: ten disks with $1, and nothing is seen to be lost"
}

work_and_cut() # NAME OPTIONS [LIBRARY]
{
    load=$1$round
    what=$load
    work_recorded "$2" "${3-}"
    if [ -n "$why_not" ]; then
        say "[SKIP] $what: $why_not"
        return
    fi
    for number in $(seq "$cuts"); do
        check_cut "$number" "$2"
        survived=$((survived + 1))
    done
    check_lie cache-lies
    check_lie through-lies
    what=$load
    cut_load # the next goes on with it
}

make_volume -s 128M
previous=
survived=0
for round in $(seq "$rounds"); do
    in_order=
    work_and_cut kernel cache=kernel,commit=1,memory=64M,dirty_writeback=1,dirty_expire=1
    in_order=in-order
    work_and_cut direct cache=direct,commit=1,memory=64M,dirty_writeback=1,dirty_expire=1
    work_and_cut attached attach,commit=1 "$preload"
done
say "$survived cuts survived"
