#!/bin/sh
# A tour of FolioFS on a real mount: build, make a volume, mount it, copy a tree, compile and run a
# program inside, share memory between two processes, share the cache's own pages with one, look at
# the cache, unmount, check, mount again, compare everything.
#
#   sh fs/demo.sh
#
# From any directory, as root or with sudo. Needs room for two copies of /usr/include and
# /usr/share/doc below ${TMPDIR:-/tmp}; everything lives in a private directory there, and nothing is
# left behind, however it ends.
set -u
export LC_ALL=C
umask 022

root=$(cd "$(dirname -- "$0")/.." && pwd -P) || exit 1
if [ "$(id -u)" -ne 0 ]; then
    command -v sudo >/dev/null || {
        echo 'demo.sh: mounting needs root, and there is no sudo here' >&2
        exit 1
    }
    exec sudo -- sh "$root/fs/demo.sh"
fi

bin=$root/build/release/bin
t=
pid=

say()
{
    printf '\n== %s\n' "$*"
}
fail()
{
    echo "demo.sh: $*" >&2
    exit 1
}
# Every process of foliofs that was started for our private volume.
daemons()
{
    for dir in /proc/[0-9]*; do
        case $({ tr '\0' ' ' <"$dir/cmdline"; } 2>/dev/null) in
        "$bin/foliofs "*"$t/volume"*) echo "${dir#/proc/}" ;;
        esac
    done
}
wait_for_end() # SECONDS
{
    tries=$(($1 * 20))
    while [ -n "$(daemons)" ]; do
        [ $((tries -= 1)) -gt 0 ] || return 1
        sleep 0.05
    done
}
clean_up()
{
    trap '' INT TERM HUP EXIT
    cd /
    [ -n "$t" ] || return
    umount "$t/mnt" 2>/dev/null || umount -l "$t/mnt" 2>/dev/null
    wait_for_end 10 || daemons | xargs -r kill
    wait_for_end 10 || daemons | xargs -r kill -KILL
    rm -rf --one-file-system "$t"
}
trap clean_up EXIT
trap 'exit 129' HUP
trap 'exit 130' INT
trap 'exit 143' TERM

mount_it()
{
    "$bin/foliofs" "$@" "$t/volume" "$t/mnt" || fail 'foliofs did not mount'
    pid=$(daemons)
    findmnt -t fuse.foliofs -M "$t/mnt" || fail 'it is not mounted'
}
# umount returns when the kernel is done; the volume is complete when the daemon has ended.
unmount_it()
{
    umount "$t/mnt" || fail 'umount failed'
    wait_for_end 120 || fail "the daemon ($pid) is still there two minutes after umount"
}
check_it()
{
    "$bin/fsck.foliofs" -n "$t/volume" || fail 'fsck.foliofs found damage'
}

# What rsync calls a difference, in contents, modes, owners, times, hard links, ACLs and xattrs.
compare() # SOURCE/ COPY/
{
    rsync -aHAXnc --delete --itemize-changes "$1" "$2" >"$t/differences" || fail 'rsync failed'
    if [ -s "$t/differences" ]; then
        head -n 20 "$t/differences" >&2
        fail "$2 is not the same as $1 (above)"
    fi
    echo "$2 is the same as $1"
}
sums()
{
    (cd "$1" && find . -type f -print0 | sort -z | xargs -0 sha256sum)
}

say 'build'
sh "$root/tests/install.sh" build test || exit 1
(cd "$root" && cmake --preset release >/dev/null && cmake --build --preset release) ||
    fail 'the build failed'

t=$(mktemp -d "${TMPDIR:-/tmp}/folio-demo.XXXXXX") || fail 'no temporary directory'
t=$(cd "$t" && pwd -P)
mkdir "$t/mnt" "$t/source" || exit 1

say 'make a volume and mount it'
"$bin/mkfs.foliofs" -L demo "$t/volume" || fail 'mkfs.foliofs failed'
mount_it -o suid,dev,attach
df -h "$t/mnt"

say 'copy a tree'
cp -a /usr/include /usr/share/doc "$t/source" || fail 'cp from /usr failed'
ln "$t/source/include/stdio.h" "$t/source/hard_link"
ln -s include/stdio.h "$t/source/symlink"
setfattr -n user.folio -v demo "$t/source/hard_link" 2>/dev/null ||
    echo "(no user xattrs in ${TMPDIR:-/tmp}: none will be compared)"
mkfifo "$t/source/fifo"
install -m 6755 /bin/true "$t/source/suid" && chown 12345:54321 "$t/source/include"
start=$(date +%s)
cp -a "$t/source" "$t/mnt/tree" || fail 'cp -a into the mount failed'
files=$(find "$t/mnt/tree" | wc -l)
echo "$files files and directories, $(du -sh "$t/source" | cut -f 1), in $(($(date +%s) - start)) s"

say 'compile and run a program inside the mount'
mkdir "$t/mnt/src"
cat >"$t/mnt/src/share.c" <<'END'
/* share w|r FILE: one process writes the file through a shared mapping, the other reads it so. */
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

int main(int argc, char **argv)
{
    const size_t size = 8 << 20;
    if (argc != 3)
        return 2;
    int fd = open(argv[2], O_RDWR | O_CREAT, 0644);
    if (fd < 0 || ftruncate(fd, (off_t)size) != 0)
        return perror(argv[2]), 1;
    unsigned char *p = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (p == MAP_FAILED)
        return perror("mmap"), 1;
    size_t bad = 0;
    for (size_t i = 0; i < size; i++)
        if (argv[1][0] == 'w')
            p[i] = (unsigned char)(i * 7 + i / 4096);
        else
            bad += p[i] != (unsigned char)(i * 7 + i / 4096);
    printf("process %d %s %zu bytes through mmap, %zu wrong\n", (int)getpid(),
           argv[1][0] == 'w' ? "wrote" : "read", size, bad);
    return bad != 0 || munmap(p, size) != 0 || close(fd) != 0;
}
END
cat >"$t/mnt/src/Makefile" <<'END'
share: share.o
	$(CC) -o $@ share.o
share.o: share.c
	$(CC) -O2 -Wall -c share.c
END
make -C "$t/mnt/src" || fail 'make failed inside the mount'

say 'share memory'
"$t/mnt/src/share" w "$t/mnt/shared" || fail 'writing through mmap failed'
"$t/mnt/src/share" r "$t/mnt/shared" || fail 'reading through mmap failed'

say "share the cache's own pages: libfolio attaches what the program maps"
if (cd "$t/mnt" && FOLIO_VERBOSE=1 LD_PRELOAD="$root/build/release/lib/libfolio-preload.so" \
    src/share w attached) >"$t/attached.out" 2>&1; then
    cat "$t/attached.out"
else
    cat "$t/attached.out" >&2
    fail 'writing through an attached mapping failed'
fi
attached=$("$bin/foliofsctl" --json "$t/mnt" stats | jq .stats.faults.attached_mkwrite)
if [ "$attached" -gt 0 ]; then
    echo "the cache was asked before the first store to each of $attached pages"
else
    echo '(this machine does not allow it, so the kernel mapped the file)'
fi
"$t/mnt/src/share" r "$t/mnt/attached" || fail 'what was stored through it is not in the file'
"$bin/foliofsctl" "$t/mnt" pages "$t/mnt/attached" || fail 'foliofsctl pages failed'

say 'foliofsctl stats'
"$bin/foliofsctl" "$t/mnt" stats || fail 'foliofsctl failed'

say 'unmount and check'
sums "$t/mnt" >"$t/sums"
unmount_it
check_it

say 'mount again and compare'
mount_it -o suid,dev
compare "$t/source/" "$t/mnt/tree/"
sums "$t/mnt" >"$t/sums.again"
cmp "$t/sums" "$t/sums.again" || fail 'checksums differ after mounting again'
"$t/mnt/src/share" r "$t/mnt/shared" || fail 'the shared file changed'
unmount_it
check_it

say 'summary'
echo "$files files copied, compiled in, mapped, unmounted, checked and found again unchanged;"
echo "the volume took $(du -h "$t/volume" | cut -f 1). Nothing is left mounted or running."
