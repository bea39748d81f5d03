#!/bin/sh
# Attached mappings, on mounts of every kind that offer them: what is stored is what is read, counted
# exactly, durable after msync, and SIGBUS where it cannot be; other programs' ends are survived.
#
#   FOLIO_ROUNDS       how often (1)
#   FOLIO_ATTACH_LONG  with a client that is stopped for a minute
. "$(dirname -- "$0")/lib.sh"
need python3
build_client attach_ops
build_client attach_ends
build_client attach_hostile
FOLIO_CTL=$(cd "$FOLIO_BIN" && pwd -P)/foliofsctl
export FOLIO_CTL
mkfifo "$T/answers"

# Can anything be attached here?
offered()
{
    export FOLIO_DAEMON="$daemon"
    wait_for_control
    (cd "$M" && FOLIO_VERBOSE=1 timeout 60 "$T/attach_ops" parts) >"$T/offered" 2>&1
    grep -qi userfaultfd "$T/offered" && skip "$(head -n 1 "$T/offered")"
}
mount_attached() # OPTIONS
{
    mount_volume -o "$1"
    offered
}

ops() # TEST...
{
    (cd "$M" && timeout -s KILL 280 "$T/attach_ops" "$@") >"$T/ops.out" 2>&1 ||
        fail "$what: attach_ops $*: status $?: $(head -n 20 "$T/ops.out")"
}

ends() # TEST
{
    (cd "$M" && timeout -s KILL 280 "$T/attach_ends" "$1") >"$T/ops.out" 2>&1 ||
        fail "$what: attach_ends $1: status $?: $(head -n 20 "$T/ops.out")"
}

hostile() # [ATTACK]
{
    (cd "$M" && timeout -s KILL 280 "$T/attach_hostile" "$@") >"$T/ops.out" 2>&1 ||
        fail "$what: attach_hostile $*: status $?: $(head -n 20 "$T/ops.out")"
}

# One in the background, to speak with: $client. say_on lets it go on.
start_client() # PROGRAM TEST
{
    : >"$T/ops.out"
    (cd "$M" && exec "$T/$1" "$2") <"$T/answers" >"$T/ops.out" 2>&1 &
    client=$!
    note_process "$client"
    exec 9>"$T/answers"
    until_true 60 grep -q ready "$T/ops.out" || fail "$what: $1 $2: $(cat "$T/ops.out")"
}
start_ends() # TEST
{
    start_client attach_ends "$1"
}
say_on()
{
    echo >&9
}
end_client()
{
    until_true 60 has_ended "$client" || fail "$what: the client hangs"
    wait "$client"
    status=$?
    rm -f "$T/pids/$client"
    exec 9>&-
    [ "$status" -eq 0 ] || fail "$what: status $status: $(head -n 20 "$T/ops.out")"
}

file_of() # NAME MIB
{
    dd if=/dev/urandom of="$M/$1" bs=1M count="$2" conv=fsync 2>"$T/dd.out" ||
        fail "$what: $(cat "$T/dd.out")"
}

everything()
{
    for options in cache=direct cache=kernel,attach cache=direct,cache_size=1M; do
        what=$options
        make_volume -s 256M
        : >"$T/daemon.out"
        mount_attached "$options"
        case $options in
        *cache_size*) # is written back at any time, and so counts what it likes
            ops coherent two times size tail race_write race_punch race_truncate pressure errors locked \
                limited read_only private parts fork exec robust descriptors stopped crowd many both
            ;;
        *)
            ops
            [ -z "${FOLIO_ATTACH_LONG-}" ] || ops stopped_a_minute
            ;;
        esac
        grep -q 'stored to through a kernel mapping and an attached one' "$T/daemon.out" ||
            fail "$what: the log does not say that both kinds of mappings stored"
        unmount_volume
        check_volume "$what"
    done

    what='a hostile client'
    make_volume -s 256M
    options=cache=direct
    is_root && options=$options,allow_other
    mount_attached "$options"
    hostile
    ops coherent two many
    ! is_root || ops files_of_nobody
    unmount_volume
    check_volume "$what"
}

# The daemon is killed: threads that wait in a fault, and all that touch a page later, get SIGBUS.
losing_the_daemon()
{
    what='the daemon is killed'
    make_volume -s 256M
    mount_attached "cache=direct,$1"
    python3 -c 'import sys; sys.stdout.buffer.write(b"\1" * 4194304)' >"$M/lose"
    start_ends lose
    kill_daemon
    end_client
    detach "$M"

    what='MS_SYNC, and the daemon is killed'
    mount_attached cache=direct
    file_of durable 1
    start_ends durable
    kill_daemon
    say_on
    end_client
    detach "$M"
    mount_attached cache=direct
    ends verify
    unmount_volume
    check_volume "$what"
}

a_full_volume()
{
    what='a full volume'
    make_volume -s 48M
    mount_attached cache=direct
    truncate -s 2M "$M/holes"
    dd if=/dev/zero of="$M/filler" bs=64K conv=fsync 2>/dev/null
    dd if=/dev/zero of="$M/filler" bs=4K conv=fsync,notrunc oflag=append 2>/dev/null
    ends full
    unmount_volume
    check_volume "$what"
}

flip() # OFFSET: one bit of the volume's byte there
{
    python3 - "$V" "$1" <<'END'
import sys
with open(sys.argv[1], "r+b") as f:
    f.seek(int(sys.argv[2]))
    byte = f.read(1)
    f.seek(int(sys.argv[2]))
    f.write(bytes([byte[0] ^ 1]))
END
}

a_damaged_page()
{
    what='a damaged page'
    make_volume -s 64M
    mount_volume
    python3 -c 'import sys
for c in b"ABDE":
    sys.stdout.buffer.write((b"%c" % c) * 2000 + b"marked-%c" % c + (b"%c" % c) * 2088)' >"$M/damaged"
    unmount_volume
    at=$(LC_ALL=C grep -obUaF marked-D "$V" | head -n 1 | cut -d : -f 1)
    [ -n "$at" ] || fail "$what: not found in the volume"
    flip "$at"
    mount_attached cache=direct,readahead=none
    start_ends damaged
    has_ended "$daemon" && fail "$what: the daemon has ended"
    flip "$at"
    say_on
    end_client
    unmount_volume
    check_volume "$what"
}

unmounting()
{
    what='unmounting what is attached'
    make_volume -s 64M
    mount_attached cache=direct
    file_of busy 1
    start_ends busy
    unmount_now 2>/dev/null && fail "$what: it is not busy"
    say_on
    until_true 60 grep -q stored "$T/ops.out" || fail "$what: $(cat "$T/ops.out")"
    detach "$M"
    say_on # it stores once more, and ends
    end_client
    until_true 60 has_ended "$daemon" || fail "$what: the daemon does not end"
    reap_daemon
    [ "$daemon_status" -eq 0 ] || fail "$what: the daemon ended with $daemon_status"
    mount_volume
    [ "$(head -c 1 "$M/busy")$(tail -c +4097 "$M/busy" | head -c 1)" = bb ] ||
        fail "$what: a store is lost"

    what='SIGTERM while it is attached, but detached from the tree'
    unmount_volume
    mount_attached cache=direct
    start_ends cut_off
    detach "$M"
    kill -s TERM "$daemon"
    until_true 60 has_ended "$daemon" || fail "$what: the daemon does not end"
    reap_daemon
    [ "$daemon_status" -eq 0 ] || fail "$what: the daemon ended with $daemon_status"
    say_on
    end_client
    mount_volume
    [ "$(head -c 1 "$M/busy")" = c ] || fail "$what: a store is lost"
    unmount_volume
    check_volume "$what"
}

# What a client has sent keeps whoever closes it: not the daemon's end, nor what has to be written then.
a_slow_descriptor()
{
    what='a descriptor that is slow to close'
    make_volume -s 64M
    mount_attached cache=direct
    start_client attach_hostile slow
    file_of written 1
    until_true 10 unmount_now 2>"$T/umount.out" || fail "$what: $(cat "$T/umount.out")"
    until_true 20 has_ended "$daemon" || fail "$what: the daemon does not end"
    reap_daemon
    [ "$daemon_status" -eq 0 ] || fail "$what: the daemon ended with $daemon_status"
    say_on
    end_client
    check_volume "$what"
}

# Stores, while the daemon is told to end, or while somebody unmounts again and again until it works: each is in the
# file, or was a SIGBUS.
racing_the_end()
{
    FOLIO_NOTES=$T/notes
    export FOLIO_NOTES
    make_volume -s 64M
    for options in cache=direct cache=direct,cache_size=1M cache=kernel,attach; do
        for racer in 'attach_ends racing' 'attach_hostile deaf'; do
            what="SIGTERM while stores go on, $racer, $options"
            mount_attached "$options"
            # shellcheck disable=SC2086 # two words
            start_client $racer
            detach "$M"
            kill -s TERM "$daemon"
            end_client
            until_true 60 has_ended "$daemon" || fail "$what: the daemon does not end"
            reap_daemon
            [ "$daemon_status" -eq 0 ] || fail "$what: the daemon ended with $daemon_status"
            mount_attached "$options"
            ends raced
            unmount_volume
        done
        what="umount while stores go on, $options"
        mount_attached "$options"
        FOLIO_LEAVES=100 start_ends racing
        unmount_volume
        end_client
        mount_attached "$options"
        ends raced
        unmount_volume
        check_volume "$what"
    done
}

# The client waits while the daemon finds no memory.
out_of_memory()
{
    what='out of memory'
    use_fail_alloc || { say "[SKIP] $what: no compiler, or a foliofs with a sanitizer"; return; }
    make_volume -s 64M
    mount_attached cache=direct,cache_size=1M
    ends starved
    unmount_volume
    check_volume "$what"
    daemon_env=
}

# A client whose address space stays locked, by a store to a file whose daemon does not answer.
a_locked_client()
{
    what='a client that keeps its memory locked'
    make_volume -s 64M
    mkdir -p "$T/other"
    "$FOLIO_BIN/mkfs.foliofs" -s 64M "$T/other.volume" >"$T/mkfs.out" 2>&1 || fail "$(cat "$T/mkfs.out")"
    mount_attached cache=direct
    "$FOLIO_BIN/foliofs" -f "$T/other.volume" "$T/other" >"$T/other.out" 2>&1 </dev/null &
    other=$!
    note_process "$other"
    until_true 30 is_mounted "$T/other" || fail "$what: $(cat "$T/other.out")"
    export FOLIO_OTHER="$T/other" FOLIO_OTHER_DAEMON="$other"
    : >"$T/daemon.out"
    hostile locked
    grep -q 'kept its memory locked.*a thread of this daemon' "$T/daemon.out" || fail "$what: the log says nothing"
    ends held
    grep -q 'kept its memory locked.*who uses inode' "$T/daemon.out" || fail "$what: the log says nothing"
    unset FOLIO_OTHER FOLIO_OTHER_DAEMON
    umount "$T/other" 2>/dev/null || fusermount3 -u "$T/other"
    until_true 60 has_ended "$other" || fail "$what: the other daemon does not end"
    rm -f "$T/pids/$other" "$T/other.volume"
    unmount_volume
    check_volume "$what"
}

not_offered()
{
    what='a mount that does not offer it'
    make_volume
    mount_volume -o cache=kernel
    ops unoffered
    unmount_volume
}

for round in $(seq "${FOLIO_ROUNDS:-1}"); do
    everything
    losing_the_daemon readahead=linux
    losing_the_daemon cache_size=1M
    a_full_volume
    a_damaged_page
    unmounting
    a_slow_descriptor
    racing_the_end
    out_of_memory
    a_locked_client
    not_offered
    say "round $round passed"
done
