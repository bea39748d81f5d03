#!/bin/sh
# O_SYNC, O_DSYNC, RWF_SYNC and RWF_DSYNC: what was written so is there after the daemon was killed, in every mode of
# caching and however the kernel sends it. Of one that fails, its error is what write(2) returns.
. "$(dirname -- "$0")/lib.sh"
need python3 timeout
build_helper sync_ops
never=commit=3600,dirty_writeback=3600,dirty_expire=3600

ended_or_written()
{
    has_ended "$writer" || grep -q written "$T/out"
}
survives() # OPTIONS
{
    what=$1
    make_volume
    mount_volume -o "$1,$never"
    mkdir "$M/d"
    timeout 60 "$T/sync_ops" prepare "$M/d" >"$T/out" 2>&1 || fail "$1: $(cat "$T/out")"
    sync "$M" || fail "$1: sync"
    "$T/sync_ops" write "$M/d" >"$T/out" 2>&1 &
    writer=$!
    note_process "$writer"
    until_true 60 ended_or_written || fail "$1: the writer hangs"
    grep -q written "$T/out" || fail "$1: $(cat "$T/out")"
    kill_daemon
    kill -s KILL "$writer"
    wait "$writer" 2>/dev/null
    rm -f "$T/pids/$writer"
    detach "$M"
    check_volume "$1, killed"
    mount_volume -o "$1"
    timeout 60 "$T/sync_ops" verify "$M/d" >"$T/out" 2>&1 || fail "$1: $(cat "$T/out")"
    unmount_volume
    check_volume "$1"
}

for options in cache=kernel cache=direct attach; do
    survives "$options"
done
if [ -z "$(why_no_uring)" ]; then
    with_uring survives cache=direct,io_uring
else
    say "not over io_uring: $(why_no_uring)"
fi

# The error of a commit is the write's. It has been made nevertheless, and is retried: kernel and daemon have one size.
cat >"$T/errors.py" <<'END'
import errno, os, subprocess, sys
mnt, program = sys.argv[1:3]

def ctl(*args):
    out = subprocess.run([program, mnt, *args], capture_output=True, text=True, timeout=30)
    assert out.returncode == 0, (args, out.stderr)

def fails(call, *args):
    try:
        call(*args)
    except OSError as e:
        return e.errno == errno.EIO
    return False

fd = os.open(mnt + "/file", os.O_RDWR | os.O_CREAT | os.O_DSYNC)
append = os.open(mnt + "/file", os.O_WRONLY | os.O_APPEND)
assert os.pwrite(fd, b"A" * 5000, 0) == 5000
for kind in "--writes", "--commits":
    size = os.fstat(fd).st_size
    ctl("inject", "--eio", kind)
    assert fails(os.pwrite, fd, b"B" * 5000, size), kind
    assert os.write(append, b"C") == 1
    assert fails(os.posix_fallocate, fd, size + 5000, 5000), kind
    ctl("inject", "--clear")
    ctl("drop")
    assert os.fstat(fd).st_size == os.stat(mnt + "/file").st_size == size + 10000, (kind, os.fstat(fd))
    assert os.pread(fd, 5002, size) == b"B" * 5000 + b"C\0", kind
    assert os.pwrite(fd, b"D", size) == 1
END
for options in cache=direct attach; do
    make_volume
    mount_volume -o "$options,$never,inject"
    wait_for_control
    timeout 60 python3 "$T/errors.py" "$M" "$FOLIO_BIN/foliofsctl" || fail "$options: errors"
    unmount_volume
    check_volume "$options: errors"
done
say passed
