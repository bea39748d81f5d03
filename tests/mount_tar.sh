#!/bin/sh
# tar with hard links and sparse files, to and from a mount, loses nothing.
. "$(dirname -- "$0")/lib.sh"
need tar python3 setfattr

make_tree() # DIRECTORY
{
    mkdir -p "$1/deep/er/still"
    for i in 1 2 3 4 5 6 7 8; do
        head -c $((i * 7919)) /dev/urandom >"$1/deep/file$i"
        ln "$1/deep/file$i" "$1/deep/er/link$i"
    done
    ln -s ../file1 "$1/deep/er/symbolic"
    ln -s /nowhere/at/all "$1/dangling"
    mkfifo "$1/fifo"
    python3 - "$1" <<'END'
import os, sys
for name, far in (("sparse", 8 << 20), ("huge", 5 << 30)):
    f = os.open(sys.argv[1] + "/" + name, os.O_RDWR | os.O_CREAT, 0o640)
    for at in (0, 1 << 20, (3 << 20) + 5, far):
        os.pwrite(f, b"data at %d\n" % at, at)
    os.ftruncate(f, far + (1 << 20))
END
    setfattr -n user.colour -v blue "$1/deep/file1"
    chmod 4711 "$1/deep/file2"
    touch -d '2001-02-03 04:05:06.123456789' "$1/deep/file3"
}

# A file that somebody has open and writes to, or has mapped and stores to: in an archive of it nothing is missing.
# (Whoever makes the archive must not have inherited the descriptor: the kernel writes back when it is closed.)
archive_in_use() # FILE SIZE-BEFORE
{
    rm -f "$1"
    [ "$2" = new ] || truncate -s "$2" "$1"
    [ "$2" = new ] || stat "$1" >"$T/stat" # what the kernel may keep
    python3 - "$1" "$T/in_use.tar" <<'END' || fail "$cache: a file that is in use ($2 before): see above"
import mmap, os, subprocess, sys
path, archive = sys.argv[1:]
go_in, go_out = os.pipe()
done_in, done_out = os.pipe()
archiver = os.fork()
if archiver == 0:
    for moment in "not synced", "synced":
        os.read(go_in, 1)
        make = ["tar", "-C", os.path.dirname(path), "-cSf", archive, os.path.basename(path)]
        if subprocess.run(make, stderr=subprocess.DEVNULL).returncode > 1:  # 1: changed as it was read
            sys.exit("tar -c")
        there = subprocess.run(["tar", "-xOf", archive], stdout=subprocess.PIPE).stdout
        if there != open(path, "rb").read():
            sys.exit("tar -S lost something of what was " + moment)
        os.write(done_out, b"d")
    sys.exit(0 if os.stat(path).st_blocks * 512 >= 1000000 else "synced, and st_blocks is too small")
f = os.open(path, os.O_RDWR | os.O_CREAT)
size = os.fstat(f).st_size
if size > 0:
    m = mmap.mmap(f, size)
    m[:1000000] = os.urandom(1000000)
else:
    os.write(f, os.urandom(1000000))
os.write(go_out, b"g")
os.read(done_in, 1)
os.fsync(f)
os.write(go_out, b"g")
os.close(done_out)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(archiver, 0)[1]))
END
}

# What must be equal, in words: names, kinds, modes, owners, times, links, sizes, sums.
describe() # DIRECTORY
{
    python3 - "$1" <<'END'
import hashlib, os, stat, sys
os.chdir(sys.argv[1])
first = {}
for where, dirs, files in os.walk("."):
    dirs.sort()
    for name in sorted(dirs + files):
        path = os.path.join(where, name)
        s = os.lstat(path)
        what = [path, oct(s.st_mode), s.st_uid, s.st_gid]
        if not stat.S_ISDIR(s.st_mode):
            what += [s.st_nlink, s.st_mtime_ns, first.setdefault(s.st_ino, path)]
        if stat.S_ISLNK(s.st_mode):
            what.append(os.readlink(path))
        else:
            what.append([(a, os.getxattr(path, a)) for a in sorted(os.listxattr(path))])
        if stat.S_ISREG(s.st_mode):
            what.append(s.st_size)
            sha = hashlib.sha256()
            with open(path, "rb") as f:
                if s.st_size > 1 << 30:  # huge: where its data is, and what
                    at = 0
                    while True:
                        try:
                            at = os.lseek(f.fileno(), at, os.SEEK_DATA)
                        except OSError:
                            break
                        end = os.lseek(f.fileno(), at, os.SEEK_HOLE)
                        piece = os.pread(f.fileno(), min(end - at, 1 << 20), at)
                        sha.update(piece.strip(b"\0"))
                        at = end
                else:
                    sha.update(f.read())
            what.append(sha.hexdigest())
        print(what)
END
}

make_volume
for cache in kernel direct; do
    mount_volume -o cache=$cache
    make_tree "$M/tree"
    describe "$M/tree" >"$T/there"
    archive_in_use "$M/in_use" new
    archive_in_use "$M/in_use" 0
    archive_in_use "$M/in_use" 2M
    blocks=$(stat -c %b "$M/tree/huge")
    [ "$blocks" -le 64 ] || fail "$cache: the sparse file takes $blocks blocks of 512 bytes"

    tar -C "$M" -cSf "$T/tree.tar" --xattrs tree || fail "$cache: tar -c from the mount"
    [ "$(stat -c %s "$T/tree.tar")" -le 2000000 ] || fail "$cache: tar saw no holes"
    mkdir "$M/again"
    tar -C "$M/again" -xSpf "$T/tree.tar" --xattrs || fail "$cache: tar -x to the mount"
    # (tar -d would read through 5 GiB of hole in pieces of 512 bytes.)
    tar -C "$M/again" -d --exclude=huge -f "$T/tree.tar" || fail "$cache: tar -d finds differences"
    describe "$M/again/tree" | diff "$T/there" - || fail "$cache: the copy differs"
    unmount_volume
    check_volume "$cache"
    mount_volume -o cache=$cache
    describe "$M/again/tree" | diff "$T/there" - || fail "$cache: the copy differs after a remount"
    rm -rf "$M/tree" "$M/again" || fail "$cache: rm -rf"
    unmount_volume
done
check_volume
say passed
