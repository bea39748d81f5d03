#!/bin/sh
# rsync to, from and within a mount: first copy, update, deletion, --inplace, --sparse, hard links.
. "$(dirname -- "$0")/lib.sh"
need rsync python3

quietly()
{
    "$@" >"$T/rsync.log" 2>&1 || fail "$cache: $*: $(tail -n 5 "$T/rsync.log")"
}
nothing_to_do() # FROM TO
{
    rsync -aHAXnc --delete --itemize-changes "$1" "$2" >"$T/rsync.out" 2>&1 ||
        fail "$cache: rsync: $(tail -n 3 "$T/rsync.out")"
    [ ! -s "$T/rsync.out" ] || fail "$cache: $1 and $2 differ: $(head -n 5 "$T/rsync.out")"
}
# Change the source as a day's work would.
change_source()
{
    python3 - "$T/source" <<'END'
import os, sys
os.chdir(sys.argv[1])
files = sorted(n for n in os.listdir(".") if n.endswith(".h"))
for name in files[::5]:
    os.unlink(name)
for name in files[1::5]:
    with open(name, "r+b") as f:
        f.seek(100)
        f.write(b"CHANGED")
for name in files[2::5]:
    with open(name, "ab") as f:
        f.write(b"appended" * 1000)
for name in files[3::5]:
    os.chmod(name, 0o600)
with open("large", "r+b") as f:
    for at in range(0, 20 << 20, 3 << 20):
        f.seek(at + 77)
        f.write(os.urandom(5000))
os.mkdir("new directory")
os.rename(files[4], "new directory/moved")
END
}

for cache in kernel direct; do
    make_volume
    mount_volume -o cache=$cache
    rm -rf "$T/source"
    mkdir "$T/source"
    cp -a /usr/include/linux/*.h "$T/source/"
    head -c 20971520 /dev/urandom >"$T/source/large"
    ln "$T/source/large" "$T/source/hard link"
    truncate -s 200M "$T/source/holes"

    quietly rsync -aHAXS "$T/source/" "$M/copy/"
    nothing_to_do "$T/source/" "$M/copy/"
    quietly rsync -aHAX "$M/copy/" "$M/second/"
    nothing_to_do "$M/copy/" "$M/second/"
    change_source
    quietly rsync -aHAXS --delete "$T/source/" "$M/copy/"
    nothing_to_do "$T/source/" "$M/copy/"
    quietly rsync -aHAX --inplace --no-whole-file --delete "$T/source/" "$M/second/"
    nothing_to_do "$T/source/" "$M/second/"
    unmount_volume
    check_volume "$cache"
    mount_volume -o cache=$cache
    nothing_to_do "$T/source/" "$M/copy/"
    rm -rf "$T/back"
    quietly rsync -aHAX "$M/copy/" "$T/back/"
    nothing_to_do "$T/source/" "$T/back/"
    unmount_volume
done
say passed
