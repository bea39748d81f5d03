#!/bin/sh
# Several hundred calls give the results and the errors that the host's file system gives.
. "$(dirname -- "$0")/lib.sh"
build_helper posix_ops

# The oracle: a disk file system; tmpfs has no FALLOC_FL_ZERO_RANGE, overlayfs its own numbers.
host=$T/host
mkdir "$host"
oracle=$(stat -f -c %T "$host")
case $oracle in
ext2/ext3 | xfs | btrfs) ;;
*) skip "$T is on $oracle: set TMPDIR to a place on ext4, xfs or btrfs to compare with" ;;
esac
"$T/posix_ops" compare "$host" >"$T/expected" || fail 'posix_ops on the host ended early'
say "the host's file system ($oracle) gave $(wc -l <"$T/expected") answers"

options=
is_root && options=,allow_other,suid,dev
for cache in kernel direct kernel,attach; do
    make_volume
    mount_volume -o "cache=$cache$options"
    mkdir "$M/compare" "$M/own"
    timeout 120 "$T/posix_ops" compare "$M/compare" >"$T/got" ||
        fail "$cache: posix_ops ended early, after: $(tail -n 1 "$T/got")"
    diff "$T/expected" "$T/got" >"$T/differences"
    timeout 120 "$T/posix_ops" own "$M/own" >>"$T/differences"
    [ ! -s "$T/differences" ] || fail "cache=$cache: (host's <, ours >)
$(cat "$T/differences")"
    unmount_volume
    check_volume "$cache"
done

# Times are the kernel's while it has a file, and stay when it forgets it: also those of a file that was cut in the tick
# of its clock in which it was written. (The clock is ahead of the one that we can read while others get fine times.)
what='times after a remount'
make_volume
mount_volume -o cache=kernel
: >"$T/fine"
for i in $(seq 40); do
    stat "$T/fine" >"$T/out"
    echo >"$T/fine"
    echo "$i" >"$M/$i"
    : >"$M/$i"
done
stat -c '%n %y %z' "$M"/* >"$T/before"
unmount_volume
mount_volume -o cache=kernel,noatime
stat -c '%n %y %z' "$M"/* >"$T/after"
diff "$T/before" "$T/after" >"$T/differences" || fail "$what: $(cat "$T/differences")"

what=noatime
touch -a -d @1 "$M/1"
mkdir "$M/listed"
touch -a -d @1 "$M/listed"
cat "$M/1" && ls "$M/listed"
[ "$(stat -c %X "$M/1" "$M/listed" | tr '\n' ' ')" = '1 1 ' ] || fail "$what: $(stat "$M/1" "$M/listed")"
unmount_volume

what='file handles after a remount'
if is_root; then
    mount_volume
    mkdir -p "$M/above/below"
    echo content >"$M/above/below/file"
    for name in below below/file; do
        "$T/posix_ops" handle "$M/above/$name" >"$T/handle.${name##*/}" 2>"$T/out" || fail "$what: $(cat "$T/out")"
    done
    unmount_volume
    mount_volume
    mv "$M/above" "$M/renamed"
    [ "$("$T/posix_ops" by-handle "$M" <"$T/handle.below")" = "$M/renamed/below" ] || fail "$what: a directory"
    "$T/posix_ops" by-handle "$M" <"$T/handle.file" >"$T/out" 2>"$T/content" || fail "$what: a file"
    [ "$(cat "$T/content")" = content ] || fail "$what: a file: $(cat "$T/out" "$T/content")"
    rm -r "$M/renamed"
    for name in below file; do
        [ "$("$T/posix_ops" by-handle "$M" <"$T/handle.$name")" = ESTALE ] || fail "$what: a deleted $name is there"
    done
    echo another >"$M/another"
    [ "$("$T/posix_ops" by-handle "$M" <"$T/handle.file")" = ESTALE ] || fail "$what: it is another file now"
    unmount_volume
    check_volume "$what"
else
    say "[SKIP] $what: not root"
fi

what='strictatime, nodiratime'
mount_volume -o cache=direct,noatime,strictatime,nodiratime
echo read >"$M/1"
for _ in 1 2; do
    touch -a "$M/1"
    stat -c %x "$M/1" >"$T/before"
    cat "$M/1" >"$T/out"
    stat -c %x "$M/1" >"$T/after"
    ! cmp -s "$T/before" "$T/after" || fail "$what: atime stays"
done
ls "$M/listed"
[ "$(stat -c %X "$M/listed")" = 1 ] || fail "$what: $(stat "$M/listed")"
unmount_volume
check_volume "$what"

# FUSE's truncation does not wait for asynchronous writes: kernel and daemon have one size nevertheless. (By io_uring
# requests come without numbers that tell which was sent first.)
build_helper aio_cut
caches='kernel direct'
case ${FOLIO_MOUNT_OPTIONS-} in
*io_uring*)
    say '[SKIP] asynchronous writes beside ftruncate: not with io_uring (README.md)'
    caches=
    ;;
esac
for cache in $caches; do
    what="asynchronous writes beside ftruncate, cache=$cache"
    make_volume
    mount_volume -o "cache=$cache"
    timeout 60 "$T/aio_cut" "$M" 40 | sort >"$T/before" || fail "$what"
    unmount_volume
    check_volume "$what"
    mount_volume
    (cd "$M" && stat -c '%n %s' cut*) | sort >"$T/after"
    [ "$(wc -l <"$T/after")" -eq 40 ] || fail "$what: $(cat "$T/before")"
    diff "$T/before" "$T/after" >"$T/differences" || fail "$what: $(cat "$T/differences")"
    unmount_volume
done

# As many long fallocates as there are threads keep nobody waiting, nor does one who reads or writes that file.
for cache in kernel direct; do
    what="fallocates, cache=$cache"
    make_volume
    mount_volume -o "cache=$cache,threads=2,cache_size=64M"
    cat >"$T/long.py" <<'END'
import os, sys, time
mnt = sys.argv[1]
fds = [os.open("%s/long%d" % (mnt, i), os.O_RDWR | os.O_CREAT) for i in range(3)]
for fd in fds:
    os.pwrite(fd, b"A" * 8192, 0)
    os.fsync(fd)
children = []
for fd in fds:
    child = os.fork()
    if child == 0:
        os.posix_fallocate(fd, 1 << 20, 256 << 20)
        os._exit(0)
    children.append(child)
time.sleep(0.2)
for i in range(3):
    os.close(os.open("%s/short%d" % (mnt, i), os.O_RDWR | os.O_CREAT))
    assert os.pread(fds[i], 8192, 0) == b"A" * 8192
    assert os.fstat(fds[i]).st_size == 8192, "it grew before it was done"
for child in children:
    ended, status = os.waitpid(child, os.WNOHANG)
    assert ended == 0, "a fallocate was waited for"
for child in children:
    assert os.waitpid(child, 0)[1] == 0
for fd in fds:
    assert os.fstat(fd).st_size == 257 << 20
    assert os.fstat(fd).st_blocks * 512 >= 256 << 20
    assert os.pread(fd, 4096, (200 << 20) + 1) == bytes(4096)
END
    timeout 120 python3 "$T/long.py" "$M" || fail "$what"
    unmount_volume
    check_volume "$what"
done
say passed
