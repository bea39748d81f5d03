#!/bin/sh
# A volume filled to its cap, and a disk filled under it: ENOSPC comes at the right call, nothing
# acknowledged is lost, deleting works, and the space comes back.
. "$(dirname -- "$0")/lib.sh"
need python3

# fill DIRECTORY SUMS [N]: write N files, or until ENOSPC; only files whose fsync went well are
# acknowledged, into SUMS. Fails on any other error, and if no ENOSPC comes.
fill()
{
    python3 - "$@" <<'END'
import errno, hashlib, os, sys
where, sums = sys.argv[1], open(sys.argv[2], "a")
known = sum(1 for _ in open(sys.argv[2]))
full = 0
for i in range(known, known + int(sys.argv[3]) if len(sys.argv) > 3 else 4000):
    size = [300_000, 5000, 1_000_001, 70_000][i % 4]
    data = hashlib.sha256(b"%d" % i).digest() * (size // 32 + 1)
    data = data[:size]
    name = "%s/fill%d" % (where, i)
    fd, fsynced, closed = -1, False, False
    try:
        fd = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        at = 0
        while at < size:
            at += os.write(fd, data[at:at + 131072])
        os.fsync(fd)
        fsynced = True
        os.close(fd)
        closed = True
    except OSError as e:
        if e.errno != errno.ENOSPC:
            sys.exit("%s: %s" % (name, e))
        full += 1
        if fd >= 0 and not closed:
            try:
                os.close(fd)
            except OSError as e2:
                if e2.errno != errno.ENOSPC:
                    sys.exit("close of %s: %s" % (name, e2))
        if full == 5:
            sys.exit(0)
    if fsynced:
        print(hashlib.sha256(data).hexdigest() + "  " + name, file=sums)
sys.exit(0 if len(sys.argv) > 3 else "4000 files, and no ENOSPC")
END
}

# Names, links and attributes until ENOSPC: metadata takes space too.
fill_names()
{
    python3 - "$1" <<'END'
import errno, os, sys
for i in range(400_000):
    try:
        os.close(os.open("%s/%0200d" % (sys.argv[1], i), os.O_CREAT | os.O_EXCL | os.O_WRONLY))
    except OSError as e:
        if e.errno == errno.ENOSPC:
            print(i)
            sys.exit(0)
        sys.exit("create %d: %s" % (i, e))
sys.exit("400000 files, and no ENOSPC")
END
}

intact() # WHEN
{
    sha256sum --quiet -c "$T/sums" >"$T/sums.out" 2>&1 ||
        fail "$what, $1: acknowledged data is gone: $(head -n 5 "$T/sums.out")"
}

can_write() # MiB: a new file of so much, fsynced
{
    rm -f "$M/again"
    dd if=/dev/zero of="$M/again" bs=1M count="$1" conv=fsync 2>"$T/dd.out"
}

is_trimmed()
{
    [ "$(stat_of store.pending_trims)" -eq 0 ]
}

remount()
{
    unmount_volume
    check_volume "$what"
    mount_volume -o "$options"
}

# The volume in $V is mounted and has room for a few ten MiB.
try_filling()
{
    : >"$T/sums"
    fill "$M" "$T/sums" || fail "$what: filling"
    [ -s "$T/sums" ] || fail "$what: nothing was acknowledged"
    say "$what: $(wc -l <"$T/sums") files acknowledged before ENOSPC"
    intact 'when full'
    # What is there can be overwritten with as much, or it is said at once.
    first=$(head -n 1 "$T/sums" | cut -d ' ' -f 3)
    cp "$first" "$T/copy" || fail "$what: reading when full"
    remount
    intact 'after a remount'

    # Deleting works on the full volume, with no help.
    rm "$M"/fill*[05] || fail "$what: deleting when full"
    grep -v 'fill[0-9]*[05]$' "$T/sums" >"$T/sums.left"
    mv "$T/sums.left" "$T/sums"
    until_true 20 can_write 2 || fail "$what: no space after deleting: $(cat "$T/dd.out")"
    intact 'after deleting'
    rm -f "$M/again"
    truncate -s 0 "$M"/fill*[1-4] || fail "$what: truncating"
    grep -v 'fill[0-9]*[1-4]$' "$T/sums" >"$T/sums.left"
    mv "$T/sums.left" "$T/sums"
    until_true 20 is_trimmed || fail "$what: what was cut off stays"
    can_write 8 || fail "$what: no space after truncating: $(cat "$T/dd.out")"
    remount
    intact 'after truncating'
    rm -rf "${M:?}"/* || fail "$what: rm -rf"
    until_true 20 can_write 16 || fail "$what: no space when empty: $(cat "$T/dd.out")"
    rm "$M/again"
}

# What neither closes nor syncs hears of it at the write, too: files that a shell redirects into. There is room to make
# them, and with cache=kernel none that is not kept.
try_redirecting()
{
    dd if=/dev/urandom of="$M/big" bs=1M count=100 conv=fsync 2>/dev/null && fail "$what: no ENOSPC"
    size=$(stat -c %s "$M/big")
    truncate -s $((size > 40000000 ? 40000000 : size)) "$M/big"
    dd if=/dev/urandom of="$M/big" bs=64K count=320 oflag=append conv=notrunc,fsync 2>/dev/null
    truncate -s -1M "$M/big"
    : >"$T/accepted"
    refused=0
    for i in $(seq 300); do
        # shellcheck disable=SC2320 # it is echo's status that counts
        if echo "line $i" 2>/dev/null >"$M/small$i"; then
            echo "$i" >>"$T/accepted"
        elif [ -f "$M/small$i" ]; then
            refused=$((refused + 1))
        fi
    done
    say "$what: the full volume accepted $(wc -l <"$T/accepted") small files, and refused to write $refused"
    [ "$1" = direct ] || [ $refused -gt 0 ] || fail "$what: no write was refused"
    for path in "$M/big" "$M/small1"; do
        stat "$path" >"$T/out" 2>&1 || fail "$what: stat when full: $(cat "$T/out")"
        tail -c 100 "$path" >"$T/out" || fail "$what: reading when full"
    done
    remount
    while read -r i; do
        [ "$(cat "$M/small$i")" = "line $i" ] || fail "$what: small$i was accepted, and is gone"
    done <"$T/accepted"
    rm -f "$M/big" "$M"/small*
    for i in $(seq 300); do
        echo "line $i" >"$M/small$i" || fail "$what: no space after deleting"
    done
    remount
    for i in $(seq 300); do
        [ "$(cat "$M/small$i")" = "line $i" ] || fail "$what: small$i is gone"
    done
    rm -f "$M"/small*
}

# SIGTERM, while somebody has a mapping with stores for which there is no room: they are lost, and that is said.
try_ending()
{
    truncate -s 4M "$M/sparse"
    dd if=/dev/zero of="$M/big" bs=64K count=1000 conv=fsync 2>/dev/null
    dd if=/dev/zero of="$M/big" bs=4K count=2000 conv=fsync,notrunc oflag=append 2>/dev/null
    python3 - "$M/sparse" >"$T/stored" 2>&1 <<'END' &
import mmap, signal, sys
with open(sys.argv[1], "r+b") as f:
    m = mmap.mmap(f.fileno(), 0)
    for at in range(0, len(m), 4096):
        m[at] = 1
    print("stored", flush=True)
    signal.pause()
END
    storer=$!
    note_process "$storer"
    until_true 60 grep -q stored "$T/stored" || fail "$what: $(cat "$T/stored")"
    : >"$T/daemon.out"
    kill -s TERM "$daemon"
    until_true 60 has_ended "$daemon" || fail "$what: SIGTERM does not end the daemon"
    reap_daemon
    kill -s KILL "$storer"
    wait "$storer" 2>/dev/null
    rm -f "$T/pids/$storer"
    detach "$M" 2>/dev/null
    [ "$daemon_status" -ne 0 ] || fail "$what: stores are lost, and the status is 0"
    grep -q 'could not be written' "$T/daemon.out" || fail "$what: $(cat "$T/daemon.out")"
    grep -q 'was not written, and is lost' "$T/daemon.out" || fail "$what: $(cat "$T/daemon.out")"
    mount_volume -o "$options"
    rm "$M/big" "$M/sparse"
}

try_names()
{
    made=$(fill_names "$M") || fail "$what: filling with names"
    say "$what: $made names before ENOSPC"
    remount
    find "$M" -mindepth 1 -delete || fail "$what: removing the names"
    until_true 20 can_write 16 || fail "$what: no space after the names: $(cat "$T/dd.out")"
}

for cache in kernel direct; do
    options=cache=$cache
    what="a cap of 48 MiB, cache=$cache"
    make_volume -s 48M
    mount_volume -o "$options"
    try_filling
    try_redirecting $cache
    try_ending
    [ $cache = direct ] || try_names # which no cache of the kernel's keeps
    unmount_volume
    check_volume "$what"
done

# A fallocate that finds out half-way that there is no room (it cannot know which of the file's blocks lie in its range):
# the file is as long as it was, to the kernel as well, and what was set aside is free when it is cut.
for cache in kernel direct; do
    what="fallocate half-way, cache=$cache"
    make_volume -s 64M
    mount_volume -o "cache=$cache"
    python3 - "$M/file" <<'END' || fail "$what"
import errno, os, sys

def free():
    st = os.fstatvfs(fd)
    return st.f_bavail * st.f_frsize

fd = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)
size = os.pwrite(fd, b"A" * (24 << 20), 0)
os.fsync(fd)
before = free()
try:
    os.posix_fallocate(fd, 30 << 20, before + (8 << 20))
    sys.exit("no ENOSPC")
except OSError as e:
    assert e.errno == errno.ENOSPC, e
assert os.fstat(fd).st_size == size, os.fstat(fd)
assert free() < before // 2, "nothing was set aside"
os.ftruncate(fd, size)
os.fsync(fd)
assert os.pwrite(fd, b"B" * (8 << 20), size) == 8 << 20
os.fsync(fd)
END
    unmount_volume
    check_volume "$what"
done

if is_root && mkdir "$T/disk" && mount -t tmpfs -o size=64m none "$T/disk" 2>"$T/mount.out"; then
    umount "$T/disk"
    whole=$V
    for disk in tmpfs ext4; do
        for cache in kernel direct; do
            options=cache=$cache
            what="a full $disk of 64 MiB, cache=$cache"
            if [ $disk = tmpfs ]; then
                mount -t tmpfs -o size=64m none "$T/disk" || fail "$what: mount"
            else
                command -v mkfs.ext4 >/dev/null || continue
                rm -f "$T/image"
                truncate -s 64M "$T/image"
                mkfs.ext4 -q -m 0 "$T/image" || fail "$what: mkfs.ext4"
                if ! mount -o loop "$T/image" "$T/disk" 2>"$T/mount.out"; then
                    say "no loop device here: $(cat "$T/mount.out")"
                    continue
                fi
            fi
            V=$T/disk/volume
            make_volume
            mount_volume -o "$options"
            try_filling
            unmount_volume
            check_volume "$what"

            # A new volume, and somebody else takes the rest of the disk while it is in use.
            what="$what, beside somebody else"
            make_volume
            mount_volume -o "$options"
            : >"$T/sums"
            fill "$M" "$T/sums" 30 || fail "$what: the first 30 files"
            dd if=/dev/zero of="$T/disk/other" bs=64K 2>/dev/null
            fill "$M" "$T/sums" || fail "$what: filling"
            intact 'when full'
            rm "$T/disk/other"
            until_true 20 can_write 8 || fail "$what: no space after the other went: $(cat "$T/dd.out")"
            remount
            intact 'after a remount'
            unmount_volume
            check_volume "$what"
            until_true 10 umount "$T/disk" || fail "umount of the disk"
            V=$whole
        done
    done
else
    say 'not root: the tests with a full disk are left out'
fi
say passed
