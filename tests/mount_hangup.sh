#!/bin/sh
# A daemon that is killed, or crashes, while a thread of its own waits inside the kernel, for a page to be written
# that the kernel has been told to give up, or that cannot read requests any more: nobody hangs. And nothing stays behind
# it, nor behind one that ends.
#
#   FOLIO_ROUNDS  how often, of each kind (2)
. "$(dirname -- "$0")/lib.sh"
build_helper kill_load
rounds=${FOLIO_ROUNDS:-2}

in_the_kernel() # PID: is one of its threads waiting so that no signal ends it?
{
    cat "/proc/$1/task/"*/stat 2>/dev/null | grep -q ') D '
}
has_let_go() # PID
{
    has_ended "$1" && ! in_the_kernel "$1"
}

give_up() # WHY; not before they can be waited for
{
    umount -f "$M" 2>/dev/null
    fail "$what: $1"
}

round() # OPTIONS KIND SIGNAL, or EIO
{
    rm -f "$T/failing"
    mount_volume -o "$1"
    "$T/kill_load" "$2" "$M/file" 2>"$T/out" &
    load=$!
    note_process "$load"
    random_below 400
    sleep "0.$((random + 100))"
    [ -d "/proc/$load" ] || fail "$what: $(cat "$T/out")"
    if [ "$3" = EIO ]; then
        : >"$T/failing"
    else
        kill -s "$3" "$daemon"
    fi
    kill -s KILL "$load" 2>/dev/null
    until_true 30 has_let_go "$load" || give_up "$3: a program hangs after its daemon"
    until_true 30 has_let_go "$daemon" || give_up "$3: the daemon hangs"
    wait "$load" 2>/dev/null
    rm -f "$T/pids/$load"
    reap_daemon
    detach "$M"
    check_volume "$what"
}

start_random
make_volume
mount_volume -o cache=kernel
if grep -q 'without fusectl' "$T/daemon.out"; then
    skip 'the fusectl filesystem is not mounted, and cannot be'
fi
watcher=$(cat "/proc/$daemon/task/$daemon/children")
[ -n "$watcher" ] || fail 'there is no process to hang up'
# Signals that mean something else, and one that stops it.
# shellcheck disable=SC2086 # with a blank behind it
kill -s USR1 $watcher && kill -s TERM $watcher
echo there >"$M/file"
grep -q there "$M/file" || fail 'a stray signal ended the mount'
# shellcheck disable=SC2086
kill -s STOP $watcher
unmount_volume
# shellcheck disable=SC2086 # with a blank behind it
until_true 10 has_ended $watcher || fail 'it outlives its daemon'

ends='KILL ABRT EIO'
if grep -q '__[at]san_init' "$FOLIO_BIN/foliofs"; then
    say 'reading is not made to fail: a library would be in the way of a sanitizer'
    ends='KILL ABRT'
else
    build_helper fail_read -shared -fPIC
    daemon_env="LD_PRELOAD=$T/fail_read FOLIO_FAIL_READ=$T/failing"
fi
if is_root && [ "$ends" != 'KILL ABRT' ]; then
    what='something is mounted over it, and no requests can be read'
    rm -f "$T/failing"
    mount_volume -o cache=direct
    echo below >"$M/file"
    exec 7<"$M/file"
    mount -t tmpfs none "$M" || fail "$what: mount"
    echo above >"$M/above"
    : >"$T/failing"
    timeout 10 cat "/proc/$$/fd/7" >/dev/null 2>&1
    until_true 30 has_let_go "$daemon" || give_up 'the daemon hangs'
    reap_daemon
    [ "$(cat "$M/above")" = above ] || fail "$what: that is unmounted"
    exec 7<&-
    umount "$M"
    detach "$M"
    check_volume "$what"
fi
for kind in hole rename write; do
    for options in cache=direct cache=kernel; do
        what="$kind, $options"
        for _ in $(seq "$rounds"); do
            for end in $ends; do
                round "$options" "$kind" "$end"
            done
        done
        say "$what: $rounds times each: $ends"
    done
done
say passed
