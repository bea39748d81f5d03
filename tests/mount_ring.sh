#!/bin/sh
# FUSE over io_uring: what it says where it cannot be had, how it ends, requests that wait for others; and
# other tests again, on mounts that have it.
#
#   FOLIO_RING_LONG  not empty: more of them
. "$(dirname -- "$0")/lib.sh"

# --- refused -----------------------------------------------------------------------------------

make_volume
refused() # PATTERN OPTIONS
{
    timeout 30 "$FOLIO_BIN/foliofs" -o "$2" "$V" "$M" >"$T/out" 2>&1 && fail "-o $2 was taken"
    grep -q "$1" "$T/out" && [ "$(wc -l <"$T/out")" -eq 1 ] || fail "-o $2: $(cat "$T/out")"
    ! is_mounted "$M" || fail "-o $2: mounted all the same"
}
refused 'spin' io_uring,spin=50
reason=$(why_no_uring)
[ -z "$reason" ] || {
    refused '^foliofs: io_uring: ' io_uring
    skip "$reason"
}
exec 8<$uring_switch
flock 8
[ "$(cat $uring_switch)" = Y ] || refused 'echo Y' io_uring
exec 8<&-

# --- requests that wait for others -------------------------------------------------------------

# More holes and renames at once than a queue has threads, all from one processor, of files that are dirty:
# each waits for the notifier, and it for WRITEs that come by the same queue.
holes()
{
    mount_volume -o io_uring,threads=2
    build_helper ring_holes -pthread
    timeout 60 "$T/ring_holes" "$M/holes" 24 || fail "ring_holes: status $?"
    unmount_volume
    check_volume holes
}

# --- endings -----------------------------------------------------------------------------------

busy() # DIRECTORY: until it fails
{
    while echo "$1" >"$1/a" && cat "$1/a" && mv "$1/a" "$1/b" && rm "$1/b"; do
        :
    done >/dev/null 2>&1
}
start_busy()
{
    for n in 1 2 3; do
        mkdir -p "$M/$n"
        busy "$M/$n" &
        echo $! >"$T/busy.$n"
        note_process $!
    done
    sleep 0.5 # of work
}
end_busy()
{
    for n in 1 2 3; do
        until_true 30 has_ended "$(cat "$T/busy.$n")" || fail "$1: a program still waits for its answer"
        rm -f "$T/pids/$(cat "$T/busy.$n")"
    done
}
killed()
{
    mount_volume -o io_uring
    start_busy
    kill_daemon
    end_busy 'kill -9'
    detach "$M"
    mount_volume -o io_uring
    unmount_volume
    check_volume 'kill -9'
}
told_to_end()
{
    mount_volume -o io_uring
    start_busy
    exec 7>"$M/open"
    echo written >&7
    kill -s TERM "$daemon"
    until_true 60 has_ended "$daemon" || fail 'SIGTERM: the daemon is still there'
    reap_daemon
    [ "$daemon_status" -eq 0 ] || fail "SIGTERM: status $daemon_status: $(tail -n 3 "$T/daemon.out")"
    exec 7>&-
    end_busy SIGTERM
    mount_volume -o io_uring
    [ "$(cat "$M/open")" = written ] || fail 'SIGTERM: what an open file had is lost'
    unmount_volume
    check_volume SIGTERM
}

again() # MOUNT-OPTIONS TEST...
{
    options=$1
    shift
    for test in "$@"; do
        FOLIO_MOUNT_OPTIONS=$options sh "$source_dir/tests/mount_$test.sh" >"$T/test.out" 2>&1
        status=$?
        case $status in
        0) say "$test: as without" ;;
        77) say "[SKIP] $test: $(tail -n 1 "$T/test.out")" ;;
        *) fail "$test: status $status: $(tail -n 20 "$T/test.out")" ;;
        esac
        grep '\[SKIP\]' "$T/test.out"
    done
}

on_the_ring()
{
    holes
    killed
    told_to_end
    again io_uring posix
    few=io_uring,threads=8 # some have a cache of 1 MiB
    export FOLIO_SECONDS="${FOLIO_SECONDS:-4}"
    export FOLIO_PARTS="${FOLIO_PARTS:-kernel direct_1M mixed crash_kernel}"
    again $few stress
    [ -z "${FOLIO_RING_LONG-}" ] || again $few mmap attach tree enospc kill git tar sqlite
}
with_uring on_the_ring
