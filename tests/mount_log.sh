#!/bin/sh
# The redo log on a mount: what fsync made durable is in it when the daemon is killed; mounting, a read-only
# mount and fsck see it there; a damaged one is refused, and cut by fsck.
. "$(dirname -- "$0")/lib.sh"
need python3 cmp

# Write number N to the file, durably.
write_durably() # N
{
    printf 'number %04d\n' "$1" | dd of="$M/file" bs=4096 conv=notrunc,fsync 2>"$T/out" ||
        fail "$what: dd: $(cat "$T/out")"
}
holds() # N
{
    [ "$(head -n 1 "$M/file")" = "$(printf 'number %04d' "$1")" ] ||
        fail "$what: the file holds $(head -n 1 "$M/file"), not number $1"
}
crash()
{
    kill_daemon
    detach "$M"
}
# A volume with the numbers up to 20, durable but not committed: the commit is an hour away.
crashed_volume()
{
    cp --sparse=always "$T/new" "$V"
    mount_volume -o commit=3600
    wait_for_control
    commits=$(stat_of store.commits)
    for number in $(seq 20); do
        write_durably "$number"
    done
    [ "$(stat_of store.log_records)" -ge 20 ] || fail "$what: fsync does not use the log"
    [ "$(stat_of store.commits)" -eq "$commits" ] || fail "$what: fsync commits"
    crash
}
fsck_ends() # STATUS OPTION...
{
    expected=$1
    shift
    timeout 60 "$FOLIO_BIN/fsck.foliofs" "$@" "$V" >"$T/fsck.out" 2>&1
    status=$?
    [ $status -eq "$expected" ] ||
        fail "$what: fsck.foliofs $*: status $status, not $expected: $(cat "$T/fsck.out")"
}
says() # TEXT
{
    grep -q -- "$1" "$T/fsck.out" || fail "$what: fsck.foliofs does not say '$1': $(cat "$T/fsck.out")"
}
is_silent_about() # TEXT
{
    ! grep -q -- "$1" "$T/fsck.out" || fail "$what: fsck.foliofs says: $(cat "$T/fsck.out")"
}

what='making a volume'
make_volume -s 256M
mount_volume
: >"$M/file"
unmount_volume
cp --sparse=always "$V" "$T/new"

what='a kill'
crashed_volume
fsck_ends 0 -n
says 'changes wait in the log'
cp "$V" "$T/before"
mount_volume -o ro
holds 20
unmount_volume
cmp "$V" "$T/before" || fail "$what: a read-only mount has changed the volume"
mount_volume
holds 20
unmount_volume
fsck_ends 0 -n
is_silent_about 'wait in the log'
mount_volume
holds 20
unmount_volume

what='fsck puts it into place'
crashed_volume
fsck_ends 0
fsck_ends 0 -n
is_silent_about 'wait in the log'
mount_volume
holds 20
unmount_volume

what='kills one after the other'
cp --sparse=always "$T/new" "$V"
for number in $(seq 12); do
    mount_volume -o commit=3600
    [ "$number" -eq 1 ] || holds $((number - 1))
    write_durably "$number"
    crash
done

# A byte of the last record but six. (Records begin with these letters, on a block of their own.)
what='a damaged log'
crashed_volume
python3 - "$V" <<'END' || fail "$what: there are no records"
import sys
with open(sys.argv[1], "r+b") as f:
    data = f.read()
    blocks = [n for n in range(0, len(data), 4096) if data[n:n + 8] == b"FolioLg1"]
    blocks.sort(key=lambda n: int.from_bytes(data[n + 16:n + 24], "little"))
    f.seek(blocks[-7] + 100)
    f.write(bytes([data[blocks[-7] + 100] ^ 1]))
END
: >"$T/daemon.out"
if try_mount; then
    fail "$what: it mounts"
fi
reap_daemon
[ "$daemon_status" -gt 0 ] && [ "$daemon_status" -lt 100 ] || fail "$what: status $daemon_status"
grep -q '^foliofs: .*volume: its log is damaged.*fsck.foliofs' "$T/daemon.out" ||
    fail "$what: $(cat "$T/daemon.out")"
fsck_ends 4 -n
says 'the log: damaged'
mount_volume -o ro
holds 13
grep -q 'its log is damaged: changes' "$T/daemon.out" || fail "$what: a read-only mount says nothing"
unmount_volume
fsck_ends 1
fsck_ends 0 -n
mount_volume
holds 13
write_durably 99
crash
mount_volume
holds 99
unmount_volume
check_volume "$what"

# What is under way when the daemon is killed: the last record, or a part of it.
what='a record that was cut off'
crashed_volume
python3 - "$V" <<'END' || fail "$what: there are no records"
import sys
with open(sys.argv[1], "r+b") as f:
    data = f.read()
    blocks = [n for n in range(0, len(data), 4096) if data[n:n + 8] == b"FolioLg1"]
    last = max(blocks, key=lambda n: int.from_bytes(data[n + 16:n + 24], "little"))
    f.seek(last + 512)
    f.write(b"\xff" * 512)
END
fsck_ends 0 -n
mount_volume
holds 19
unmount_volume
check_volume "$what"
say passed
