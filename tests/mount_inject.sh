#!/bin/sh
# foliofsctl inject: a store that fails when it is told to. What fails is told to who asked, once; nothing
# that was written is lost; and when it is over all is well. A store that lies loses data, and
# folio-stress finds out.
. "$(dirname -- "$0")/lib.sh"
need python3 timeout
ctl=$FOLIO_BIN/foliofsctl
FOLIO_LIBRARY=${FOLIO_LIBDIR:-$FOLIO_BIN/../lib}/libfolio.so
export FOLIO_LIBRARY
options=cache=direct,commit=3600,dirty_writeback=3600,dirty_expire=3600,readahead=none

inject() # OPTIONS...
{
    timeout 30 "$ctl" "$M" inject "$@" >"$T/table" 2>&1 ||
        fail "foliofsctl inject $*: $(cat "$T/table")"
}
refuses() # STATUS PATTERN ARGUMENTS...
{
    want=$1 pattern=$2
    shift 2
    timeout 30 "$ctl" "$M" "$@" >"$T/out" 2>&1
    got=$?
    [ "$got" -eq "$want" ] || fail "$*: exit status $got, not $want: $(cat "$T/out")"
    [ "$(wc -l <"$T/out")" -eq 1 ] || fail "$*: not one line: $(cat "$T/out")"
    grep -qE -- "$pattern" "$T/out" || fail "$*: $pattern is not in: $(cat "$T/out")"
}
# python: the script on standard input, with these words for it.
#   ctl(...)                   foliofsctl MOUNTPOINT ...
#   error(call, ...)           the errno that it fails with, 0: it does not
#   dies(first, at)            by SIGBUS, a process that reads a byte there
python() # WHAT, then ARGUMENTS for sys.argv
{
    what=$1
    shift
    cat >"$T/prelude.py" <<'END'
import ctypes, errno, mmap, os, signal, subprocess, sys, time
mnt, program = sys.argv[1:3]

def ctl(*args):
    out = subprocess.run([program, mnt, *args], capture_output=True, text=True, timeout=30)
    assert out.returncode == 0, (args, out.stderr)
    return out.stdout

def error(call, *args):
    try:
        call(*args)
    except OSError as e:
        return e.errno
    return 0

def dies(work):
    child = os.fork()
    if child == 0:
        os._exit(0 if work() is not None else 1)
    status = os.waitpid(child, 0)[1]
    assert status == 0 or os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGBUS, status
    return status != 0

EIO = errno.EIO
END
    cat "$T/prelude.py" - >"$T/part.py"
    timeout 120 python3 "$T/part.py" "$M" "$ctl" "$@" || fail "$what"
}

# --- what is refused ---------------------------------------------------------------------------

make_volume -s 1G
mount_volume -o "$options"
wait_for_control
refuses 1 'mount with -o inject' inject
refuses 1 'mount with -o inject' inject --eio --writes
[ "$(stat_of injected.rules)" -eq 0 ] || fail 'a rule without -o inject'
unmount_volume

others=
is_root && others=,allow_other
mount_volume -o "$options,inject$others"
wait_for_control
echo hello >"$M/file"
mkdir "$M/dir"
refuses 2 'which kind' inject --writes
refuses 2 'which kind' inject --count=2
refuses 2 'one kind' inject --eio --enospc --writes
refuses 2 'given twice' inject --eio --count=1 --count=2
refuses 2 'per-million=lots: not a number' inject --eio --writes --per-million=lots
refuses 2 'count=-1: not a number' inject --eio --writes --count=-1
refuses 2 'it is for inject' stats --eio
refuses 2 'FILE is for' inject --clear "$M/file"
refuses 2 'too many' inject --eio --writes "$M/file" "$M/file"
refuses 2 'clear goes alone' inject --clear --writes
refuses 2 'clear goes alone' inject --clear --eio
refuses 1 'reads, writes, commits' inject --eio
refuses 1 'per_million is 1 to' inject --eio --writes --per-million=0
refuses 1 'per_million is 1 to' inject --eio --writes --per-million=1000001
refuses 1 'count is at least 1' inject --eio --writes --count=0
refuses 1 'lost and torn' inject --lost --reads
refuses 1 'lost and torn' inject --torn --writes --commits
refuses 1 'not a file' inject --eio --commits "$M/file"
refuses 1 'not a regular file' inject --eio --writes "$M/dir"
refuses 1 'not on the mount' inject --eio --writes /etc/passwd
refuses 1 'No such file' inject --eio --writes "$M/nosuch"
inject
grep -q 'no errors are injected' "$T/table" || fail "refused, and yet: $(cat "$T/table")"
if is_root && command -v setpriv >/dev/null; then
    cp "$ctl" "$T/foliofsctl"
    (
        ctl=./foliofsctl
        cd "$T" || exit 1
        setpriv --reuid=65534 --regid=65534 --clear-groups ./foliofsctl mnt inject --eio --writes \
            >"$T/out" 2>&1 && fail 'somebody else may inject'
        grep -q 'not permitted' "$T/out" || fail "somebody else: $(cat "$T/out")"
    ) || exit 1
fi
for _ in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16; do
    inject --eio --writes --after=1000000
done
[ "$(grep -c '^eio ' "$T/table")" -eq 16 ] || fail "not 16 rules: $(cat "$T/table")"
refuses 1 'as many rules' inject --eio --writes
[ "$(stat_of injected.rules)" -eq 16 ] || fail 'stats: not 16 rules'
inject --clear

# --- writes ------------------------------------------------------------------------------------

python 'writes that fail' <<'END'
def dirty():
    return "dirty" in ctl("pages", mnt + "/file")

fds = [os.open(mnt + "/file", os.O_RDWR) for _ in range(3)]
other = os.open(mnt + "/other", os.O_RDWR | os.O_CREAT)
os.pwrite(fds[0], b"A" * 20000, 0)
os.pwrite(other, b"O" * 20000, 0)

# Each open file is told once of the one block that could not be written; it is written then.
ctl("inject", "--eio", "--writes", "--after=2", "--count=1", mnt + "/file")
assert error(os.fsync, fds[0]) == EIO and dirty()
assert error(os.fsync, fds[1]) == EIO and not dirty()
assert error(os.fsync, fds[0]) == 0 and error(os.fsync, fds[1]) == 0
assert error(os.fsync, other) == 0
table = ctl("inject").split()
assert table[-1] == "1" and table[-2] == "6", table  # five blocks, and the one again
ctl("inject", "--clear")

# As long as nothing can be written every fsync says so, and nothing is lost.
ctl("inject", "--enospc", "--writes", mnt + "/file")
os.pwrite(fds[0], b"B" * 20000, 0)
os.pwrite(other, b"P" * 20000, 0)
for _ in range(3):
    assert error(os.fsync, fds[0]) == errno.ENOSPC and dirty()
assert error(os.fsync, other) == 0
assert os.pread(fds[0], 20001, 0) == b"B" * 20000
ctl("inject", "--clear")
assert error(os.fsync, fds[0]) == 0 and not dirty()
assert error(os.fsync, fds[1]) != 0 and error(os.fsync, fds[1]) == 0  # it had not been told
assert error(os.fsync, fds[2]) != 0 and error(os.fsync, fds[2]) == 0
END
kill_daemon
detach "$M"
check_volume 'after failed writes and a kill'
mount_volume -o "$options,inject"
wait_for_control
python 'what was written' <<'END'
assert open(mnt + "/file", "rb").read() == b"B" * 20000
assert open(mnt + "/other", "rb").read() == b"P" * 20000

# A rule for a file stays with it when it is cut to nothing, and is no other file's.
ctl("inject", "--eio", "--writes", mnt + "/file")
fd = os.open(mnt + "/file", os.O_RDWR | os.O_TRUNC)
os.pwrite(fd, b"C" * 20000, 0)
assert error(os.fsync, fd) == EIO
ctl("inject", "--clear")
assert error(os.fsync, fd) == 0

# What has been done is no error of fallocate's: kernel and daemon have one size.
ctl("inject", "--eio", "--writes", mnt + "/file")
assert error(os.posix_fallocate, fd, 0, 100000) == 0
ctl("drop")
assert os.fstat(fd).st_size == os.stat(mnt + "/file").st_size == 100000
assert error(os.fsync, fd) == EIO
ctl("inject", "--clear")
assert error(os.fsync, fd) == 0
assert open(mnt + "/file", "rb").read() == b"C" * 20000 + bytes(80000)
END

# --- commits -----------------------------------------------------------------------------------

errors=$(stat_of store.commit_errors)
inject --eio --commits
python 'commits that fail' <<'END'
fd = os.open(mnt + "/committed", os.O_RDWR | os.O_CREAT)
os.pwrite(fd, b"D" * 20000, 0)
os.mkdir(mnt + "/committed.dir")
there = os.open(mnt + "/committed.dir", os.O_RDONLY)
assert error(os.fsync, there) == EIO and error(os.fsync, fd) == EIO
assert os.pread(fd, 20001, 0) == b"D" * 20000
ctl("inject", "--clear")
assert error(os.fsync, fd) == 0 and error(os.fsync, there) == 0
END
[ "$(stat_of store.commit_errors)" -ge $((errors + 2)) ] || fail 'stats: no commit errors'
until_true 30 grep -q 'changes cannot be written (Input/output error)' "$T/daemon.out" || fail 'commits that fail: it is not said'
[ "$(stat_of store.read_only)" -eq 0 ] || fail 'stats: read-only'
[ "$(stat_of injected.hits)" -ge 2 ] || fail 'stats: no hits'
kill_daemon
detach "$M"
check_volume 'after failed commits and a kill'
mount_volume -o "$options,inject"
wait_for_control
[ -d "$M/committed.dir" ] || fail 'a directory is lost'
[ "$(tr -d D <"$M/committed" | wc -c)-$(wc -c <"$M/committed")" = 0-20000 ] || fail 'data is lost'

# --- reads -------------------------------------------------------------------------------------

head -c 409600 /dev/urandom >"$M/read"
cksum <"$M/read" >"$T/read.sum"
"$ctl" "$M" sync || fail sync
"$ctl" "$M" drop >/dev/null || fail drop
python 'reads that fail' <<'END'
fd = os.open(mnt + "/read", os.O_RDWR)
kernel = mmap.mmap(fd, 409600, access=mmap.ACCESS_READ)
ctl("inject", "--eio", "--reads", mnt + "/read")
assert error(os.pread, fd, 100, 0) == EIO
assert dies(lambda: kernel[5 * 4096]), "no SIGBUS through the kernel's mapping"
ctl("inject", "--clear")
assert not dies(lambda: kernel[5 * 4096])
assert kernel[5 * 4096] == os.pread(fd, 1, 5 * 4096)[0]
END
python 'reads that fail through an attached mapping' <<'END'
try:
    folio = ctypes.CDLL(os.environ["FOLIO_LIBRARY"], use_errno=True)
except OSError as e:
    print("[SKIP] attached mappings:", e)
    sys.exit(0)
folio.folio_mmap.restype = ctypes.c_void_p
folio.folio_mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
fd = os.open(mnt + "/read", os.O_RDWR)

def attach():
    return folio.folio_mmap(None, 409600, mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_SHARED, fd, 0)

def byte(at):
    p = attach()
    return ctypes.cast(p, ctypes.POINTER(ctypes.c_ubyte))[at]

def store(at, value):
    p = attach()
    ctypes.cast(p, ctypes.POINTER(ctypes.c_ubyte))[at] = value
    return value

if attach() in (None, ctypes.c_void_p(-1).value):
    print("[SKIP] attached mappings:", os.strerror(ctypes.get_errno()))
    sys.exit(0)
ctl("drop")
ctl("inject", "--eio", "--reads", mnt + "/read")
assert dies(lambda: byte(9 * 4096)), "no SIGBUS for a load"
assert dies(lambda: store(9 * 4096, 1)), "no SIGBUS for a store"
ctl("inject", "--clear")
assert not dies(lambda: byte(9 * 4096))
before = os.pread(fd, 1, 9 * 4096)[0]
assert not dies(lambda: store(9 * 4096, before ^ 255))
assert os.pread(fd, 1, 9 * 4096)[0] == before ^ 255
store(9 * 4096, before)
END
cksum <"$M/read" | cmp -s - "$T/read.sum" || fail 'what was read is not what was written'
unmount_volume
check_volume

# --- a store that lies -------------------------------------------------------------------------

mount_volume -o "$options,inject"
wait_for_control
python 'a disk that lies' <<'END'
fd = os.open(mnt + "/lied", os.O_RDWR | os.O_CREAT)
os.pwrite(fd, b"1" * 8192, 0)
os.fsync(fd)
ctl("inject", "--lost", "--writes", mnt + "/lied")
os.pwrite(fd, b"2" * 8192, 4096)
os.fsync(fd)
ctl("inject", "--clear")
ctl("drop")
assert os.pread(fd, 12288, 0) == b"1" * 8192 + bytes(4096)
ctl("inject", "--torn", "--writes", mnt + "/lied")
os.pwrite(fd, b"3" * 12288, 0)
os.fsync(fd)
ctl("inject", "--clear")
ctl("drop")
assert os.pread(fd, 12288, 0) == (b"3" * 2048 + bytes(2048)) * 3
os.pwrite(fd, b"4" * 12288, 0)
os.fsync(fd)
ctl("drop")
assert os.pread(fd, 12288, 0) == b"4" * 12288
END
unmount_volume
check_volume 'after lies'
# Now folio-stress, with the lies in a store that is much used.
mount_volume -o cache=direct,cache_size=1M,inject
wait_for_control
cat >"$T/liar" <<END
case \$1 in
on) "$ctl" "$M" inject --lost --writes --per-million=50000 >/dev/null ;;
off) "$ctl" "$M" inject --clear >/dev/null && "$ctl" "$M" sync && "$ctl" "$M" drop >/dev/null ;;
esac
END
timeout 120 "$FOLIO_BIN/folio-stress" --seconds 20 --without store,fork,tail \
    --inject "sh $T/liar" "$M" >"$T/out" 2>&1
status=$?
[ "$status" -eq 1 ] || fail "folio-stress on a disk that lies: status $status: $(cat "$T/out")"
grep -qE 'LOST|STALE|TORN|RESURRECTED|MISPLACED' "$T/out" ||
    fail "folio-stress on a disk that lies: $(cat "$T/out")"
say "folio-stress on a disk that lies: $(grep -oE 'LOST|STALE|TORN|RESURRECTED|MISPLACED' "$T/out" | head -n 1)"
inject --clear
unmount_volume
check_volume 'after folio-stress on a disk that lies'

# --- rules hold until the end ------------------------------------------------------------------

mount_volume -o "$options,inject"
wait_for_control
echo text >"$M/unwritten"
inject --eio --writes
unmount_now || fail umount
until_true 60 has_ended "$daemon" || fail 'the daemon does not end'
reap_daemon
[ "$daemon_status" -ne 0 ] || fail 'lost at the unmount, and not a word'
grep -q 'are lost' "$T/daemon.out" || fail "at the unmount: $(tail -n 3 "$T/daemon.out")"
check_volume 'after an unmount that could not write'
say passed
