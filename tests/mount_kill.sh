#!/bin/sh
# The daemon is killed again and again under a mixed load; what was fsynced is always there.
#
#   FOLIO_SEED    repeats a run (as far as the moment of a kill can be repeated)
#   FOLIO_ROUNDS  how many kills (35)
. "$(dirname -- "$0")/lib.sh"
build_helper crash_load
start_random
rounds=${FOLIO_ROUNDS:-35}
workers=3

start_load() # DIRECTORY
{
    mkdir "$1" "$1/shared"
    for i in $(seq 0 $((workers - 1))); do
        mkdir "$1/own$i"
    done
    sync "$1" "$1/shared" "$1"/own* "$M" || fail "sync of the directories"
    random_below 1000000000
    "$T/crash_load" run "$1" "$T/log" "$random" $workers >"$T/load.out" 2>&1 &
    load=$!
    note_process "$load"
}

end_load()
{
    until_true 30 has_ended "$load" || fail "round $round: the load hangs on the dead mount"
    wait "$load" || fail "round $round: the load met an error: $(cat "$T/load.out")"
    rm -f "$T/pids/$load"
}

make_volume
previous=
for round in $(seq "$rounds"); do
    # Both caches, and short commit intervals now and then, so that kills meet commits.
    random_below 4
    case $random in
    0) options=cache=kernel ;;
    1) options=cache=direct ;;
    2) options=cache=kernel,commit=1,memory=64M,dirty_writeback=1,dirty_expire=1 ;;
    *) options=cache=direct,commit=1,memory=64M,dirty_writeback=1,dirty_expire=1 ;;
    esac
    mount_volume -o "$options"
    if [ -n "$previous" ]; then
        "$T/crash_load" verify "$M/$previous" "$T/log" $workers >"$T/verify.out" 2>&1 ||
            fail "round $round: the state from before changed: $(cat "$T/verify.out")"
    fi
    rm -f "$T"/log.*
    current=round$round
    start_load "$M/$current"
    # Deleting is part of the load: the round before goes meanwhile.
    rm -rf "${M:?}/${previous:-none}" 2>/dev/null &
    remover=$!
    note_process "$remover"
    random_below 500
    sleep "0.$(printf %03d $((random + 100)))"
    has_ended "$load" && fail "round $round: the load ended early: $(cat "$T/load.out")"
    kill_daemon
    end_load
    wait "$remover"
    detach "$M"

    cp --sparse=always "$V" "$T/before" # for FOLIO_KEEP, when the next lines fail
    check_volume "round $round ($options)"
    mount_volume -o "$options"
    "$T/crash_load" verify "$M/$current" "$T/log" $workers >"$T/verify.out" 2>&1 ||
        fail "round $round ($options): $(cat "$T/verify.out")"
    "$T/crash_load" sum "$M/$current" >"$T/sum" || fail "round $round: sum"
    # The second crash comes at once: what was found after the first stays.
    kill_daemon
    detach "$M"
    mount_volume -o "$options"
    "$T/crash_load" sum "$M/$current" | cmp -s - "$T/sum" ||
        fail "round $round: a kill after the recovery changed something"
    unmount_volume
    previous=$current
done
check_volume 'at the end'
mount_volume
rm -rf "${M:?}"/*
unmount_volume
check_volume 'emptied'
say "$rounds kills survived"
