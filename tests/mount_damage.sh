#!/bin/sh
# A damaged volume is refused, or gives errors for what is damaged: never a crash, a hang, or wrong
# data without an error.
#
#   FOLIO_SEED    repeats a run
#   FOLIO_TRIALS  how many random damages (40)
. "$(dirname -- "$0")/lib.sh"
need python3
start_random
trials=${FOLIO_TRIALS:-40}

# look: read everything that was there. Each line says what was wrong in a way that must not be.
# NAMES: files that may give errors; "all": any may.
look()
{
    timeout 60 python3 - "$M" "$T/known" "$1" <<'END'
import errno, hashlib, json, os, sys
root, known, may = sys.argv[1], json.load(open(sys.argv[2])), sys.argv[3].split()
allowed = (errno.EIO, errno.ENOENT, errno.ENOTDIR, errno.EUCLEAN, errno.ESTALE, errno.ELOOP)
for name, want in known.items():
    path = os.path.join(root, name)
    try:
        s = os.lstat(path)
        if "link" in want:
            got = {"link": os.readlink(path)}
        elif "list" in want:
            got = {"list": sorted(os.listdir(path))}
        else:
            with open(path, "rb", buffering=0) as f:
                data, at = b"", 0
                while True:
                    piece = os.pread(f.fileno(), 65536, at)
                    if not piece:
                        break
                    data += piece
                    at += len(piece)
            got = {"sum": hashlib.sha256(data).hexdigest(), "size": s.st_size}
            if "xattr" in want:
                got["xattr"] = os.getxattr(path, "user.note").hex()
        got["mode"] = s.st_mode
        if got != want:
            print("WRONG without an error: %s: %s" % (name, {k: (want[k], got[k]) for k in want if got.get(k) != want[k]}))
    except OSError as e:
        if e.errno not in allowed:
            print("strange error: %s: %s" % (name, e))
        elif "all" not in may and name not in may:
            print("error where nothing is damaged: %s: %s" % (name, e))
        elif "all" not in may and e.errno != errno.EIO:
            print("not EIO: %s: %s" % (name, e))
        else:
            print("error:", name, errno.errorcode[e.errno], file=sys.stderr)
END
}

make_files()
{
    python3 - "$M" "$T/known" <<'END'
import hashlib, json, os, random, sys
root, known = sys.argv[1], {}
r = random.Random(5)
os.chdir(root)

def note(name):
    s = os.lstat(name)
    k = {"mode": s.st_mode}
    if os.path.islink(name):
        k["link"] = os.readlink(name)
    elif os.path.isdir(name):
        k["list"] = sorted(os.listdir(name))
    else:
        data = open(name, "rb").read()
        k.update(sum=hashlib.sha256(data).hexdigest(), size=len(data))
        if "user.note" in os.listxattr(name):
            k["xattr"] = os.getxattr(name, "user.note").hex()
    known[name] = k

os.mkdir("dir")
names = ["dir"]
for i in range(60):
    name = "dir/file%d" % i
    with open(name, "wb") as f:
        f.write(r.randbytes(r.choice([10, 4096, 20_000, 70_000])))
    names.append(name)
for mark in ("marked-one", "marked-two"):  # 10 bytes
    with open(mark, "wb") as f:
        # (A block's first 16 bytes lie elsewhere than the other 4,080.)
        f.write(b"".join(b"%s-%05d" % (mark.encode(), i) + b"%s block %06d" % (mark.encode(), i) +
                         r.randbytes(4096 - 2 * len(mark) - 19) for i in range(20)))
    names.append(mark)
for name in ("noted-first", "noted", "noted-last"):
    with open(name, "wb") as f:
        f.write(b"content")
    os.setxattr(name, "user.note", b"the-%s-value-in-an-attribute" % name.encode())
    names.append(name)
os.symlink("the-target-of-the-symbolic-link", "symbolic")
names += ["symbolic"]
os.mkdir("other")
with open("other/plain", "wb") as f:
    f.write(b"plain")
names += ["other", "other/plain"]
os.sync()
for name in names:
    note(name)
json.dump(known, open(sys.argv[2], "w"))
END
}

# flip OFFSET... : one bit in each of these bytes of the volume.
flip()
{
    [ $# -gt 0 ] || fail "$what: not found in the volume"
    python3 - "$V" "$@" <<'END'
import sys
with open(sys.argv[1], "r+b") as f:
    for at in map(int, sys.argv[2:]):
        f.seek(at)
        byte = f.read(1)
        f.seek(at)
        f.write(bytes([byte[0] ^ (1 << at % 8)]))
END
}
offsets_of() # TEXT: everywhere in the volume, old copies too
{
    LC_ALL=C grep -obUaF -- "$1" "$V" | cut -d : -f 1
}

fsck_says() # EXIT STATUSES
{
    timeout 60 "$FOLIO_BIN/fsck.foliofs" -n "$V" >"$T/fsck.out" 2>&1
    fsck_status=$?
    case " $1 " in
    *" $fsck_status "*) ;;
    *) fail "$what: fsck.foliofs -n ended with $fsck_status: $(tail -n 5 "$T/fsck.out")" ;;
    esac
    case " $1 " in
    *' 0 '*) ;;
    *) [ -s "$T/fsck.out" ] || fail "$what: fsck.foliofs -n says nothing" ;;
    esac
}

# The mount is refused, in one line, with a small exit status.
refused()
{
    : >"$T/daemon.out"
    if try_mount; then
        fail "$what: it mounts"
    fi
    reap_daemon
    clearly_refused
}
clearly_refused()
{
    [ "$daemon_status" -gt 0 ] && [ "$daemon_status" -lt 100 ] ||
        fail "$what: foliofs ended with $daemon_status: $(tail -n 5 "$T/daemon.out")"
    # (With -f it prints its memory budget before.)
    [ "$(grep -c '^foliofs: .*volume: ' "$T/daemon.out")" -eq 1 ] ||
        fail "$what: not one clear line: $(cat "$T/daemon.out")"
}

# It may be refused or not; errors may come; nothing else.
survives()
{
    : >"$T/daemon.out"
    mounted=
    if try_mount; then
        mounted=1
        look all >"$T/look.out" 2>/dev/null || fail "$what: reading hangs or crashed"
        [ ! -s "$T/look.out" ] || fail "$what: $(head -n 5 "$T/look.out")"
        timeout 10 touch "$M/new" 2>/dev/null # an error, or not
        has_ended "$daemon" && fail "$what: the daemon has ended: $(tail -n 5 "$T/daemon.out")"
        until_true 10 unmount_now 2>/dev/null || fail "$what: cannot unmount"
        until_true 60 has_ended "$daemon" || fail "$what: the daemon hangs after umount"
    fi
    reap_daemon
    [ "$daemon_status" -lt 100 ] ||
        fail "$what: foliofs ended with $daemon_status: $(tail -n 5 "$T/daemon.out")"
    timeout 60 "$FOLIO_BIN/fsck.foliofs" -n "$V" >"$T/fsck.out" 2>&1
    fsck_status=$?
    [ "$fsck_status" -lt 100 ] ||
        fail "$what: fsck.foliofs ended with $fsck_status: $(tail -n 5 "$T/fsck.out")"
    [ -z "$mounted" ] || ! grep -q 'Way out' "$T/fsck.out" || grep -q 'mount it read-only' "$T/fsck.out" ||
        fail "$what: it was mounted, and fsck.foliofs says it cannot be: $(tail -n 5 "$T/fsck.out")"
}

# Errors on the named files alone.
only() # NAMES
{
    mount_volume
    look "$1" >"$T/look.out" 2>"$T/look.err" || fail "$what: reading hangs"
    [ ! -s "$T/look.out" ] || fail "$what: $(head -n 5 "$T/look.out")"
    [ -s "$T/look.err" ] || fail "$what: nobody noticed"
    unmount_volume
}

make_volume -s 64M
mount_volume
make_files
unmount_volume
check_volume
cp --sparse=always "$V" "$T/good"
restore()
{
    cp --sparse=always "$T/good" "$V"
}

what='a block of a file'
flip $(offsets_of 'marked-one block 000007' | awk '{ print $1 + 2000 }')
fsck_says '4'
only marked-one

what='the first bytes of a block'
restore
flip $(offsets_of 'marked-two-00003')
fsck_says '4'
only marked-two

what="a symbolic link's record"
restore
flip $(offsets_of 'the-target-of-the-symbolic')
fsck_says '4'
only symbolic

what="an attribute's record"
restore
flip $(offsets_of 'the-noted-value-in-an')
fsck_says '4'
only noted

# The first record of a kind is also a witness that there is none of the kind before it: damage
# there may refuse the mount, clearly.
what="the first attribute's record"
restore
flip $(offsets_of 'the-noted-first-value-in-an')
fsck_says '4'
: >"$T/daemon.out"
if try_mount; then
    look noted-first >"$T/look.out" 2>"$T/look.err" || fail "$what: reading hangs"
    [ ! -s "$T/look.out" ] || fail "$what: $(head -n 5 "$T/look.out")"
    unmount_volume
else
    reap_daemon
    clearly_refused
fi

what='the superblock'
restore
# The magic is in its payload: "FolioFS\n".
flip $(offsets_of 'FolioFS')
refused
fsck_says '4 8'

what='both meta pages'
restore
flip 24 4120
survives

for size in 0 1 4095 4096 8192 12288 half almost; do
    what="cut off at $size"
    restore
    whole=$(stat -c %s "$V")
    used=$(($(stat -c %b "$V") * 512))
    case $size in
    half) truncate -s $((used / 8192 * 4096)) "$V" ;;
    almost) # the last page in use
        last=$(python3 -c 'import sys
data = open(sys.argv[1], "rb").read().rstrip(b"\0")
print((len(data) - 1) // 4096 * 4096)' "$V")
        truncate -s "$last" "$V" ;;
    *) truncate -s "$size" "$V" ;;
    esac
    [ "$(stat -c %s "$V")" -lt "$whole" ] || fail "$what: not shorter"
    refused
    fsck_says '4 8'
    ! grep -q 'mount it read-only' "$T/fsck.out" || fail "$what: fsck advises what foliofs refuses"
done

what='another kind of file'
head -c 1000000 /dev/urandom >"$V"
refused
fsck_says '4 8'

# Anything, anywhere where the good volume has data.
damaged=0
for trial in $(seq "$trials"); do
    restore
    random_below 2000000000
    what="trial $trial ($random)"
    offsets=$(python3 - "$T/good" "$random" <<'END'
import random, sys
data = open(sys.argv[1], "rb").read()
pages = [n for n in range(len(data) // 4096) if data[n * 4096:n * 4096 + 4096].strip(b"\0")]
r = random.Random(int(sys.argv[2]))
kind = r.randrange(3)
if kind == 0:    # a few bits
    at = [r.choice(pages) * 4096 + r.randrange(4096) for _ in range(r.choice([1, 2, 10]))]
elif kind == 1:  # page headers
    at = [r.choice(pages) * 4096 + r.randrange(40) for _ in range(r.choice([1, 3, 20]))]
else:            # much of one page
    page = r.choice(pages)
    at = [page * 4096 + r.randrange(4096) for _ in range(300)]
print(*at)
END
)
    flip $offsets
    survives
    [ "$fsck_status" -eq 0 ] || damaged=$((damaged + 1))
done
say "$trials random damages: fsck.foliofs saw $damaged of them"
