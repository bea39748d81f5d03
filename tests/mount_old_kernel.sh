#!/bin/sh
# A kernel that offers less than the newest: the mount says what that costs, and the rest works. (The kernel is
# this one; tests/old_kernel.c hides what it offers.)
. "$(dirname -- "$0")/lib.sh"
need python3 tar cmp
grep -q '__[at]san_init' "$FOLIO_BIN/foliofs" && skip 'a library before a sanitizer is in its way'
build_helper old_kernel -shared -fPIC
build_helper mmap_ops
FOLIO_CTL=$(cd "$FOLIO_BIN" && pwd -P)/foliofsctl
export FOLIO_CTL

mount_without() # FLAGS MOUNT-OPTIONS
{
    daemon_env="LD_PRELOAD=$T/old_kernel FOLIO_WITHHOLD=$1"
    : >"$T/daemon.out"
    mount_volume -o "$2"
    wait_for_control
}
says() # PATTERN
{
    grep -q -- "$1" "$T/daemon.out" || fail "$what: the mount does not say: $1: $(cat "$T/daemon.out")"
}
keeps_silent() # PATTERN
{
    ! grep -q -- "$1" "$T/daemon.out" || fail "$what: the mount says: $(cat "$T/daemon.out")"
}

# A tree goes there and back.
copies()
{
    mkdir "$M/copy" || fail "$what: mkdir"
    (cd "$source_dir" && tar -c tests fs) | tar -x -C "$M/copy" -f - || fail "$what: tar"
    "$FOLIO_CTL" "$M" drop >/dev/null || fail "$what: foliofsctl drop"
    for dir in tests fs; do
        diff -r "$source_dir/$dir" "$M/copy/$dir" >"$T/diff" || fail "$what: $(head -n 5 "$T/diff")"
    done
    rm -r "$M/copy" || fail "$what: rm"
}

# mmap(2) of a file, shared and private; "no": a shared mapping is refused as POSIX allows, and files are as they were.
maps() # yes|no
{
    timeout 60 python3 - "$M/mapped" "$1" <<'END' || fail "$what: mmap"
import errno, mmap, os, sys

path, shared = sys.argv[1], sys.argv[2] == "yes"
with open(path, "w+b") as f:
    f.write(b"a" * 8192)
    f.flush()
    for prot in mmap.PROT_READ, mmap.PROT_READ | mmap.PROT_WRITE:
        try:
            m = mmap.mmap(f.fileno(), 8192, mmap.MAP_SHARED, prot)
            assert shared, "mapped"
            assert m[4096] == ord("a")
            if prot & mmap.PROT_WRITE:
                m[4096] = ord("b")
                m.flush()
                assert os.pread(f.fileno(), 1, 4096) == b"b"
        except OSError as e:
            assert not shared and e.errno == errno.ENODEV, e
    m = mmap.mmap(f.fileno(), 8192, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_WRITE)
    m[0] = ord("p")
    assert m[0] == ord("p") and m[1] == ord("a")
    assert os.pread(f.fileno(), 1, 0) == b"a"
    os.fsync(f.fileno())
END
    "$FOLIO_CTL" "$M" drop >/dev/null || fail "$what: foliofsctl drop"
    [ "$(tail -c +4097 "$M/mapped" | head -c 1)" = "$([ "$1" = yes ] && echo b || echo a)" ] ||
        fail "$what: what was stored is not in the file"
}

# Linux before 6.6
what='no DIRECT_IO_ALLOW_MMAP'
make_volume -s 256M
mount_without 1000000000 cache=direct
says 'without DIRECT_IO_ALLOW_MMAP: no mmap(MAP_SHARED) with cache=direct'
maps no
copies
unmount_volume
check_volume "$what"
mount_without 1000000000 cache=kernel
maps yes
unmount_volume

what='no WRITEBACK_CACHE'
mount_without 10000 cache=kernel
says 'without WRITEBACK_CACHE: every write is a request'
maps yes
timeout 120 "$T/mmap_ops" all "$M" >"$T/out" 2>&1
grep -q '^ok' "$T/out" || fail "$what: mmap_ops ended early: $(cat "$T/out")"
grep -v '^ok' "$T/out" | grep -Ev '^FAIL (tail_is_zeros_after_[a-z_]*):' >"$T/bad"
[ ! -s "$T/bad" ] || fail "$what: $(cat "$T/bad")"
copies
unmount_volume
check_volume "$what"

what='nothing is offered'
for cache in kernel direct; do
    mount_without ffffffffffffffff "cache=$cache"
    for ability in HANDLE_KILLPRIV_V2 PARALLEL_DIROPS DIRECT_IO_ALLOW_MMAP; do
        says "without $ability"
    done
    maps "$([ $cache = kernel ] && echo yes || echo no)"
    copies
    unmount_volume
    check_volume "$what"
done

what='all that this kernel has'
daemon_env=
: >"$T/daemon.out"
mount_volume
keeps_silent 'without WRITEBACK_CACHE'
unmount_volume
say passed
