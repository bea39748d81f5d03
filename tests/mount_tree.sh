#!/bin/sh
# A real tree and every kind of file, copied in, is the same after unmount, fsck and remount.
. "$(dirname -- "$0")/lib.sh"
need rsync python3 setfattr

# What /usr has not: odd names, odd kinds, odd times. Made in a directory of the host first.
make_odd_files() # DIRECTORY
{
    mkdir -p "$1/many"
    python3 - "$1" <<'END'
import os, socket, stat, sys
os.chdir(sys.argv[1])
root = os.geteuid() == 0

def write(name, data=b"x"):
    with open(name, "wb") as f:
        f.write(data)

names = [b" ", b"  two  ", b"-rf", b"new\nline", b"tab\there", b"back\\slash", b"quote'\"`$(x)", b"*?[a]",
         b"\xff\xfe\x80 not utf-8", "snow☃man".encode(), b"...", b".hidden", b"a" * 255, b"\x01\x02\x7f",
         "é".encode() * 127, b"~", b"#", b"CON", b"x:y"]
for i, name in enumerate(names):
    write(name, b"%d" % i)
os.mkdir(b"d" * 255)
write(b"d" * 255 + b"/" + b"f" * 255)

deep = "deep"
os.mkdir(deep)
for i in range(40):
    deep += "/%02d" % i
    os.mkdir(deep)
write(deep + "/bottom")

for i in range(3000):
    write("many/file%04d" % i, b"")

# Sizes around the borders of pages and of large requests.
for size in (0, 1, 4079, 4080, 4081, 4095, 4096, 4097, 8191, 65535, 65536, 131073, 1 << 20, (1 << 20) + 1):
    write("size%d" % size, os.urandom(size))

# Hard links, also over directories' borders.
write("linked", b"one inode")
for i in range(50):
    os.link("linked", "many/link%d" % i)

os.mkfifo("fifo", 0o620)
s = socket.socket(socket.AF_UNIX)
s.bind("socket")
s.close()
if root:
    os.mknod("null", 0o666 | stat.S_IFCHR, os.makedev(1, 3))
    os.mknod("block", 0o640 | stat.S_IFBLK, os.makedev(7, 200))
    os.mknod("far", 0o600 | stat.S_IFCHR, os.makedev(259, 70000))

os.symlink("linked", "symbolic")
os.symlink("/nowhere/" + "long/" * 800, "long symbolic")
os.symlink("../../..", "many/up")

# Sparse: holes before, between and behind.
with open("sparse", "wb") as f:
    for at in (1 << 20, (100 << 20) + 4095, 300 << 20):
        f.seek(at)
        f.write(b"island %d" % at)
    f.truncate((300 << 20) + 123456)

write("attributes")
os.setxattr("attributes", "user.empty", b"")
os.setxattr("attributes", "user.binary", bytes(range(256)))
os.setxattr("attributes", "user.large", b"v" * 1500)
os.setxattr("many", "user.on a directory", b"yes")
if root:
    os.setxattr("attributes", "trusted.secret", b"root's")
    os.setxattr("symbolic", "trusted.link", b"l", follow_symlinks=False)

modes = {"suid": 0o4755, "sgid": 0o2755, "nothing": 0, "everything": 0o7777, "one": 0o001}
for name, mode in modes.items():
    write("mode " + name)
    if root:
        os.chown("mode " + name, 1234, 4321)
    os.chmod("mode " + name, mode)
os.mkdir("sticky")
os.chmod("sticky", 0o1777)
if root:
    write("large owner")
    os.chown("large owner", 4000000000, 4294967294)

times = {"epoch": 0, "first nanosecond": 1, "before": -1234567890123456789 // 4, "y2038": (1 << 31) * 10**9 + 999999999,
         "far": 13_569_465_600 * 10**9, "just before": 1_000_000_000_000_000_001}
for name, ns in times.items():
    write("time " + name)
    os.utime("time " + name, ns=(ns, ns))
os.symlink("x", "time of a link")
os.utime("time of a link", ns=(5, 1_234_567_890_987_654_321), follow_symlinks=False)
os.utime("deep", ns=(7, 1_111_111_111_111_111_111))
END
}

same() # WHAT
{
    rsync -aHAXnc --delete --itemize-changes "$T/odd/" "$M/odd/" >"$T/rsync.out" 2>&1 ||
        fail "$1: rsync: $(tail -n 3 "$T/rsync.out")"
    rsync -aHAXnc --delete --itemize-changes "$T/include/" "$M/include/" >>"$T/rsync.out" 2>&1 ||
        fail "$1: rsync: $(tail -n 3 "$T/rsync.out")"
    rsync -aHAXnc --delete --itemize-changes "$T/doc/" "$M/doc/" >>"$T/rsync.out" 2>&1 ||
        fail "$1: rsync: $(tail -n 3 "$T/rsync.out")"
    [ ! -s "$T/rsync.out" ] ||
        fail "$1: $(wc -l <"$T/rsync.out") differences: $(head -n 10 "$T/rsync.out")"
    # rsync compares times to the second, or so.
    (cd "$T/odd" && list_exactly) >"$T/there"
    (cd "$M/odd" && list_exactly) >"$T/here"
    cmp -s "$T/there" "$T/here" ||
        fail "$1: $(diff -a "$T/there" "$T/here" | head -n 10)"
}
list_exactly()
{
    find . ! -type d -printf '%p %y %m %U %G %n %s %T@ %l\0' -o -printf '%p %m %U %G %T@\0' | sort -z
}

mkdir "$T/odd" "$T/doc" "$T/include"
make_odd_files "$T/odd"
# What is in /usr/include, but for the largest libraries.
for entry in /usr/include/*; do
    [ "$(du -sk "$entry" | cut -f 1)" -gt 32768 ] || cp -a "$entry" "$T/include/"
done
# Part of /usr/share/doc, its symbolic links and compressed files with it.
find /usr/share/doc -mindepth 1 -maxdepth 1 -name 'lib*' | sort | head -n 200 |
    while read -r directory; do
        cp -a "$directory" "$T/doc/"
    done

for cache in kernel direct; do
    make_volume
    mount_volume -o "cache=$cache,suid,dev"
    cp -a "$T/include" "$M/include" || fail "$cache: cp -a include"
    cp -a "$T/doc" "$M/doc" || fail "$cache: cp -a doc"
    cp -a --sparse=always "$T/odd" "$M/odd" || fail "$cache: cp -a odd"
    same "$cache, before unmounting"
    unmount_volume
    check_volume "$cache"
    mount_volume -o "cache=$cache,suid,dev"
    same "$cache, mounted again"
    [ "$(stat -c %b "$M/odd/sparse")" -le 256 ] || fail "$cache: the holes are gone"
    rm -rf "$M/odd" "$M/include" "$M/doc" || fail "$cache: rm -rf"
    [ -z "$(ls -A "$M")" ] || fail "$cache: rm -rf left something"
    unmount_volume
    check_volume "$cache, emptied"
done
say passed
