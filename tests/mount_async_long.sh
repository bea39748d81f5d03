#!/bin/sh
# msync(MS_ASYNC) of a mapping through the mount: Linux has nothing done at once; its flusher hands the pages over when
# they are as old as vm.dirty_expire_centisecs says, and we write them in time. Nothing else is called, and the
# mapping stays; then the daemon is killed.
. "$(dirname -- "$0")/lib.sh"
build_helper mmap_durable
expire=$(($(cat /proc/sys/vm/dirty_expire_centisecs) / 100))
number=0

for cache in kernel direct; do
    what=cache=$cache
    number=$((number + 1))
    make_volume
    mount_volume -o "cache=$cache,commit=1,dirty_expire=1,dirty_writeback=1"
    if [ $cache = direct ] && grep -q 'without DIRECT_IO_ALLOW_MMAP' "$T/daemon.out"; then
        say "$what: the kernel does not let such files be mapped"
        unmount_volume
        continue
    fi
    wait_for_control
    "$T/mmap_durable" make "$M/file" || fail "$what: make"
    "$FOLIO_BIN/foliofsctl" "$M" sync || fail "$what: foliofsctl sync"
    handed_over=$(stat_of faults.kernel_mkwrite)
    mkfifo "$T/go"
    "$T/mmap_durable" async "$M/file" $number <"$T/go" >"$T/out" 2>&1 &
    holder=$!
    note_process "$holder"
    exec 9>"$T/go"
    until_true 10 grep -q stored "$T/out" || fail "$what: async: $(cat "$T/out")"
    begin=$(date +%s)
    came()
    {
        [ "$(stat_of faults.kernel_mkwrite)" -ge $((handed_over + 16)) ]
    }
    until_true $((expire + 30)) came || fail "$what: nothing has come for $((expire + 30)) s"
    say "$what: the pages came after $(($(date +%s) - begin)) s"
    sleep 4 # dirty_expire and dirty_writeback, and commit
    kill_daemon
    detach "$M"
    exec 9>&-
    wait "$holder"
    rm -f "$T/pids/$holder" "$T/go"
    mount_volume -o "cache=$cache"
    "$T/mmap_durable" verify "$M/file" $number >"$T/out" || fail "$what: $(cat "$T/out")"
    unmount_volume
    check_volume "$what"
done
say passed
