#!/bin/sh
# What goes wrong at the command line is said in one clear line, with a non-zero status, and changes
# nothing; and every way to end a mount writes everything back.
. "$(dirname -- "$0")/lib.sh"
need timeout flock prlimit python3

# refuses STATUS PATTERN COMMAND...: it fails with that status (or any, "-") and one line that
# matches.
refuses()
{
    want=$1 pattern=$2
    shift 2
    timeout 60 "$@" >"$T/out" 2>&1 </dev/null
    got=$?
    [ "$got" -ne 0 ] && [ "$got" -lt 124 ] || fail "$*: exit status $got: $(cat "$T/out")"
    [ "$want" = - ] || [ "$got" -eq "$want" ] || fail "$*: exit status $got, not $want"
    [ "$(wc -l <"$T/out")" -eq 1 ] || fail "$*: not one line: $(cat "$T/out")"
    grep -qE -- "$pattern" "$T/out" || fail "$*: unclear: $(cat "$T/out")"
    is_mounted "$M" && [ -z "${may_be_mounted-}" ] && fail "$*: mounted nevertheless"
    return 0
}
foliofs=$FOLIO_BIN/foliofs
mkfs=$FOLIO_BIN/mkfs.foliofs
fsck=$FOLIO_BIN/fsck.foliofs
ctl=$FOLIO_BIN/foliofsctl

# --- wrong command lines -----------------------------------------------------------------------

make_volume
before=$(cksum <"$V")
refuses - nosuch "$foliofs" -o nosuch "$V" "$M"
refuses - nosuch "$foliofs" -o cache=kernel,nosuch=5,ro "$V" "$M"
refuses - 'cache' "$foliofs" -o cache=maybe "$V" "$M"
refuses - 'commit' "$foliofs" -o commit=soon "$V" "$M"
refuses - 'memory' "$foliofs" -o memory=lots "$V" "$M"
refuses - 'memory' "$foliofs" -o memory=64K "$V" "$M"
refuses - ' 1 KiB is too small' "$foliofs" -o cache_size=1K "$V" "$M"
refuses - 'unmount' "$foliofs" -o remount,ro "$V" "$M"
refuses - '^foliofs: sync: .*fsync' "$foliofs" -o ro,sync "$V" "$M"
refuses - '^foliofs: dirsync: .*fsync' "$foliofs" -o dirsync "$V" "$M"
refuses - 'is empty' "$foliofs" '' "$M"
refuses - 'readahead' "$foliofs" -o readahead=psychic "$V" "$M"
refuses - 'dirty_ratio' "$foliofs" -o dirty_ratio=101 "$V" "$M"
refuses - 'fsname' "$foliofs" -o fsname= "$V" "$M"
refuses - 'subtype' "$foliofs" -o subtype= "$V" "$M"
refuses - 'nosuch.*help' "$mkfs" --nosuch "$T/new"
refuses - 'nosuch.*help' "$fsck" --nosuch "$V"
refuses - 'nosuch.*help' "$ctl" --nosuch "$M" stats
refuses - ' -X: .*help' "$mkfs" -Xq "$T/new"
refuses - ' -X: .*help' "$fsck" -Xn "$V"
refuses - ' -X: .*help' "$ctl" -Xj "$M" stats
refuses - ' --json=3: .*help' "$ctl" --json=3 "$M" stats
refuses - ' -L: .*help' "$mkfs" "$T/new" -L
refuses - 'label' "$mkfs" -L "$(printf 'a\tb')" "$T/new"
refuses - 'empty' "$mkfs" ''
refuses - . "$foliofs" -o
refuses - . "$foliofs" --nosuch "$V" "$M"
refuses - . "$foliofs" "$V"
refuses - . "$foliofs"
refuses - . "$foliofs" "$V" "$M" "$M"

# --- wrong volumes and mount points ------------------------------------------------------------

refuses - 'missing' "$foliofs" "$T/missing" "$M"
refuses - 'directory' "$foliofs" "$T" "$M"
refuses - '/dev/null' "$foliofs" /dev/null "$M"
: >"$T/empty"
refuses - 'empty' "$foliofs" "$T/empty" "$M"
echo 'this is a text, not a volume' >"$T/text"
refuses - 'text' "$foliofs" "$T/text" "$M"
[ "$(cat "$T/text")" = 'this is a text, not a volume' ] || fail 'the text has changed'
refuses - 'nowhere' "$foliofs" "$V" "$T/nowhere"
refuses - 'text' "$foliofs" "$V" "$T/text"
if ! is_root; then
    cp "$V" "$T/forbidden"
    chmod 000 "$T/forbidden"
    refuses - 'ermission' "$foliofs" "$T/forbidden" "$M"
fi
[ "$(cksum <"$V")" = "$before" ] || fail 'a refused mount has changed the volume'

# --- mkfs --------------------------------------------------------------------------------------

refuses - 'text' "$mkfs" "$T/text"
refuses - "$V" "$mkfs" "$V"
refuses - 'apacity|-s|size' "$mkfs" -s 1K "$T/new"
refuses - 'apacity|-s|size' "$mkfs" -s plenty "$T/new"
refuses - 'abel' "$mkfs" -L "$(printf '%0100d' 0)" "$T/new"
refuses - nowhere "$mkfs" "$T/nowhere/new"
refuses - . "$mkfs" --nosuch "$T/new"
refuses - . "$mkfs"
[ ! -e "$T/new" ] || fail 'a refused mkfs has left a file'
[ "$(cat "$T/text")" = 'this is a text, not a volume' ] || fail 'mkfs has changed the text'
[ "$(cksum <"$V")" = "$before" ] || fail 'mkfs has changed the volume'
"$mkfs" --force "$T/text" >/dev/null 2>&1 || fail 'mkfs --force'
"$fsck" -n "$T/text" >/dev/null 2>&1 || fail 'fsck after mkfs --force'

# --- fsck --------------------------------------------------------------------------------------

refuses 8 missing "$fsck" -n "$T/missing"
refuses 16 . "$fsck" --nosuch "$V"
refuses 16 . "$fsck"

# --- in use ------------------------------------------------------------------------------------

mount_volume
echo before >"$M/file"
mkdir "$T/second"
may_be_mounted=1
refuses - "$daemon" "$foliofs" "$V" "$T/second"
is_mounted "$T/second" && fail 'mounted twice'
refuses 8 "$daemon" "$fsck" -n "$V"
refuses - "$daemon" "$mkfs" --force "$V"
[ "$(cat "$M/file")" = before ] || fail 'the mount has suffered'

# --- nobody gets what is printed ---------------------------------------------------------------

may_be_mounted=1
not_printed() # PROGRAM ARGUMENTS...
{
    # shellcheck disable=SC2016 # expanded in there
    refuses - 'standard output' sh -c 'exec "$0" "$@" >/dev/full' "$@"
}
for program in foliofs mkfs.foliofs fsck.foliofs foliofsctl folio-stress; do
    not_printed "$FOLIO_BIN/$program" --help
done
not_printed "$ctl" "$M" stats
not_printed "$fsck" -n "$T/text"
not_printed "$FOLIO_BIN/folio-stress" -t 1 "$T"

# --- unmount while busy ------------------------------------------------------------------------

exec 9<"$M/file"
unmount_now 2>/dev/null && fail 'unmounted while a file is open'
[ "$(cat <&9)" = before ] || fail 'the open file has suffered'
exec 9<&-
unmount_volume
check_volume

# --- the control tool --------------------------------------------------------------------------

may_be_mounted=
refuses 1 'not on a FolioFS mount' "$ctl" "$M" stats
refuses 1 . "$ctl" "$T/nowhere" stats
refuses 2 ' COMMAND is missing' "$ctl" "$M"
refuses 2 . "$ctl" "$M" dance
refuses 2 . "$ctl" "$M" pages
refuses 2 . "$ctl" "$M" set x
refuses 2 . "$ctl" --nosuch "$M" stats

# --- signals, and every other end, write everything back ---------------------------------------

write_much()
{
    head -c 3000000 /dev/urandom >"$M/$1"
    mkdir -p "$M/dir/$1"
    cksum <"$M/$1" >"$T/$1.sum"
}
is_unmounted()
{
    ! is_mounted "$M"
}
is_free() # the daemon in the background holds a lock on the volume until it has written everything
{
    flock -n "$V" true
}
all_there() # NAME
{
    until_true 60 is_free || fail "after $1: the daemon still holds the volume"
    check_volume "after $1"
    mount_volume
    cksum <"$M/$1" | cmp -s - "$T/$1.sum" || fail "after $1: the content is not there"
    [ -d "$M/dir/$1" ] || fail "after $1: the directory is not there"
    unmount_volume
}

for signal in TERM INT HUP; do
    # (A background process of this shell ignores SIGINT.)
    env --default-signal=INT,QUIT "$foliofs" -f "$V" "$M" >"$T/daemon.out" 2>&1 </dev/null &
    daemon=$!
    note_process "$daemon"
    until_true 10 is_mounted "$M" || fail "does not mount: $(cat "$T/daemon.out")"
    write_much SIG$signal
    kill -s $signal "$daemon"
    until_true 30 is_unmounted || fail "SIG$signal does not unmount"
    until_true 30 has_ended "$daemon" || fail "SIG$signal does not end the daemon"
    reap_daemon
    [ "$daemon_status" -eq 0 ] || fail "SIG$signal: exit status $daemon_status"
    all_there SIG$signal
done

# It ends, too, where the mount lives on: in another mount namespace, with what was written there.
if is_root && unshare --mount true 2>/dev/null; then
    mount_volume
    # shellcheck disable=SC2016 # expanded in there
    exec_in_namespace sh -c 'exec 3>"$1/elsewhere"; echo kept >&3; : >"$2"; exec sleep 300' \
        sh "$M" "$T/written" &
    elsewhere=$!
    note_process "$elsewhere"
    until_true 10 test -e "$T/written" || fail 'unshare: nothing written'
    kill -s TERM "$daemon"
    until_true 60 has_ended "$daemon" || fail 'SIGTERM does not end the daemon of a mount in another namespace'
    reap_daemon
    [ "$daemon_status" -eq 0 ] || fail "a mount in another namespace: exit status $daemon_status"
    grep -q 'another mount namespace' "$T/daemon.out" || fail 'a mount in another namespace: it is not said'
    kill -s KILL "$elsewhere"
    wait "$elsewhere" 2>/dev/null
    rm -f "$T/pids/$elsewhere"
    mount_volume
    [ "$(cat "$M/elsewhere")" = kept ] || fail 'a mount in another namespace: a write is lost'
    unmount_volume
    check_volume 'a mount in another namespace'
fi

# What others have mounted over it stays, also where they have moved it away; what was written below is kept.
ends_below() # WHERE: it is now
{
    kill -s TERM "$daemon"
    until_true 60 has_ended "$daemon" || fail "$what: SIGTERM does not end the daemon"
    reap_daemon
    [ "$daemon_status" -eq 0 ] || fail "$what: exit status $daemon_status"
    [ "$(cat "$M/above")" = above ] || fail "$what: that is unmounted"
    [ "$(grep -c 'something else is mounted' "$T/daemon.out")" -eq 1 ] || fail "$what: $(cat "$T/daemon.out")"
    umount "$M" || fail "$what: umount"
    stat "$1" >"$T/out" 2>&1 && fail "$what: it goes on"
    detach "$1"
    mount_volume
    [ "$(cat "$M/below")" = "$what" ] || fail "$what: what was written is lost"
    unmount_volume
    check_volume "$what"
    : >"$T/daemon.out"
}
if is_root; then
    : >"$T/daemon.out"
    mkdir "$T/private"
    mount -t tmpfs none "$T/private" && mount --make-private "$T/private" || fail 'mount -t tmpfs'
    mkdir "$T/private/mnt" "$T/private/moved"
    for options in cache=kernel cache=direct; do
        M=$T/mnt
        what="something is mounted over it, $options"
        mount_volume -o "$options"
        echo "$what" >"$M/below"
        mount -t tmpfs none "$M" || fail "$what: mount"
        echo above >"$M/above"
        ends_below "$M"

        M=$T/private/mnt
        what="it was moved, and something mounted there, $options"
        mount_volume -o "$options"
        echo "$what" >"$M/below"
        mount --move "$M" "$T/private/moved" && mount -t tmpfs none "$M" || fail "$what: mount"
        echo above >"$M/above"
        ends_below "$T/private/moved"
    done
    M=$T/mnt
    umount "$T/private"
fi

# In the background, as a person starts it: ready when the command returns.
"$foliofs" "$V" "$M" >"$T/out" 2>&1 || fail "foliofs: $(cat "$T/out")"
is_mounted "$M" || fail 'the command returned before the mount was there'
write_much background
"$ctl" "$M" version >/dev/null || fail 'no control socket when the command returned'
unmount_now || fail 'umount'
all_there background

# A mount point that is relative, and a link; a lazy unmount.
ln -s mnt "$T/link"
(cd "$T" && "$foliofs" volume link) >"$T/out" 2>&1 || fail "relative: $(cat "$T/out")"
is_mounted "$M" || fail 'relative paths: not mounted'
write_much lazy
umount -l "$M" 2>/dev/null || fusermount3 -uz "$M" || fail 'umount -l'
all_there lazy

# Read only: nothing changes, and it says so.
before=$(cksum <"$V")
mount_volume -o ro
touch "$M/new" 2>"$T/out" && fail 'ro: a file was made'
grep -q 'Read-only' "$T/out" || fail "ro: $(cat "$T/out")"
cksum <"$M/lazy" | cmp -s - "$T/lazy.sum" || fail 'ro: cannot read'
unmount_volume
[ "$(cksum <"$V")" = "$before" ] || fail 'ro: the volume has changed'

# --- too little memory: mounted, or one line and nothing left -----------------------------------

mounting_without_memory()
{
    mounted=0 refused=0
    for often in 2000 5000 20000 50000 200000; do
        for _ in 1 2 3 4 5; do
            set_failing $often
            timeout 60 env "$daemon_env" "$foliofs" "$V" "$M" >"$T/out" 2>&1 </dev/null
            got=$?
            set_failing 0
            if [ "$got" -eq 0 ]; then
                mounted=$((mounted + 1))
                unmount_now || fail "mounted with little memory: cannot unmount"
            else
                refused=$((refused + 1))
                [ "$got" -lt 124 ] || fail "no memory: status $got: $(cat "$T/out")"
                is_mounted "$M" && fail "no memory: status $got, but it is mounted"
                [ "$(wc -l <"$T/out")" -ge 1 ] && ! grep -qE 'damaged|fsck|unknown' "$T/out" ||
                    fail "no memory: unclear: $(cat "$T/out")"
            fi
            until_true 60 is_free || fail 'no memory: the daemon still holds the volume'
        done
    done
    say "with little memory: mounted $mounted times, refused $refused times"
    check_volume 'little memory'
}
if use_fail_alloc; then
    mounting_without_memory
    daemon_env=
else
    say '[SKIP] mounting without memory: no compiler, or a foliofs with a sanitizer'
fi

# --- started with nothing, or little, of what a process usually has ---------------------------------

# Whatever is opened first gets the number of a standard descriptor that is not there.
with_some_closed() # COMMAND...
{
    case $closed in
    0) "$@" <&- >"$T/out" 2>&1 ;;
    1) "$@" >&- 2>"$T/out" ;;
    2) "$@" >"$T/out" 2>&- ;;
    12) "$@" >&- 2>&- ;;
    01) "$@" <&- >&- 2>"$T/out" ;;
    012) "$@" <&- >&- 2>&- ;;
    esac
}
without_descriptors()
{
    for closed in 0 1 2 12 01 012; do
        what="standard descriptors $closed are closed"
        with_some_closed timeout 30 "$mkfs" --force "$V" || fail "$what: mkfs.foliofs"
        with_some_closed timeout 30 "$foliofs" "$V" "$M" || fail "$what: foliofs: status $?"
        echo kept >"$M/file"
        "$fsck" -n "$V" >"$T/out" 2>&1 && fail "$what: fsck.foliofs looks at a mounted volume"
        mkdir -p "$T/second"
        "$foliofs" "$V" "$T/second" >"$T/out" 2>&1 && fail "$what: it is mounted twice"
        unmount_now || fail "$what: umount"
        until_true 60 is_free || fail "$what: the daemon still holds the volume"
        with_some_closed timeout 30 "$fsck" -n "$V" || fail "$what: fsck.foliofs -n: status $?"
        with_some_closed timeout 30 "$fsck" "$V" || fail "$what: fsck.foliofs: status $?"
        (with_some_closed "$foliofs" -f "$V" "$M") &
        until_true 30 is_mounted "$M" || fail "$what: foliofs -f does not mount"
        [ "$(cat "$M/file")" = kept ] || fail "$what: the file is gone"
        unmount_now || fail "$what: umount"
        wait
        check_volume "$what"
    done
}
without_descriptors

# No descriptor is left when it ends: it needs none.
ends_without_descriptors() # umount|TERM
{
    what="$options, no descriptor left, $1"
    mount_volume -o "$options,commit=60"
    write_much kept
    prlimit --pid "$daemon" --nofile=3: || fail "$what: prlimit"
    case $1 in
    umount) unmount_now || fail "$what: umount" ;;
    *) kill -s "$1" "$daemon" ;;
    esac
    until_true 60 has_ended "$daemon" || fail "$what: the daemon does not end"
    reap_daemon
    [ "$daemon_status" -eq 0 ] || fail "$what: exit status $daemon_status: $(cat "$T/daemon.out")"
    all_there kept
}
for options in cache=kernel cache=direct; do
    ends_without_descriptors umount
    ends_without_descriptors TERM
done
# One is left, and many who want to attach files come for it: that keeps nobody waiting either.
ends_in_a_crowd()
{
    what='one descriptor left, and a crowd'
    mount_volume -o cache=direct,commit=60
    write_much kept
    wait_for_control
    timeout 60 python3 - "$M" "$daemon" <<'END' || fail "$what: python3: status $?"
import glob, os, resource, socket, subprocess, sys, time
mnt, daemon = sys.argv[1], int(sys.argv[2])
dev = os.stat(mnt).st_dev
place = "%d:%d" % (os.major(dev), os.minor(dev))
paths = glob.glob("/run/foliofs-attach/" + place) + glob.glob("/run/user/%d/foliofs/%s.attach" % (os.getuid(), place)) + \
    glob.glob("/tmp/foliofs-%d/%s.attach" % (os.getuid(), place))
used = {int(n) for n in os.listdir("/proc/%d/fd" % daemon)}
free = next(n for n in range(4096) if n not in used)
resource.prlimit(daemon, resource.RLIMIT_NOFILE, (free + 1, resource.prlimit(daemon, resource.RLIMIT_NOFILE)[1]))
crowd = []
for _ in range(100):
    s = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    s.setblocking(False)
    try:
        s.connect(paths[0])
    except BlockingIOError:
        break
    crowd.append(s)
time.sleep(0.05)
begun = time.monotonic()
subprocess.run(["umount", mnt] if os.getuid() == 0 else ["fusermount3", "-u", mnt], check=True)
while os.path.exists("/proc/%d" % daemon) and open("/proc/%d/stat" % daemon).read().rsplit(") ", 1)[1][0] != "Z":
    if time.monotonic() - begun > 8:
        sys.exit("the daemon does not end")
    time.sleep(0.01)
END
    reap_daemon
    [ "$daemon_status" -eq 0 ] || fail "$what: exit status $daemon_status: $(cat "$T/daemon.out")"
    all_there kept
}
ends_in_a_crowd

# There is no memory from when it is mounted to its end: what is said to be done is done, and the rest is an error.
works_without_memory()
{
    what="$options, no memory left"
    mount_volume -o "$options"
    prlimit --pid "$daemon" --as="$(($(awk '/^VmSize/ { print $2 }' "/proc/$daemon/status") * 1024)):" ||
        fail "$what: prlimit"
    numbers='1 2 3 4 5 6 7 8 9 10 11 12'
    for i in $numbers; do
        timeout 60 dd if="$T/kept.sum" of="$M/small$i" bs=1 conv=fsync >"$T/out.$i" 2>&1 &
        echo $! >"$T/writer.$i"
    done
    synced=0
    for i in $numbers; do
        wait "$(cat "$T/writer.$i")" || continue
        synced=$((synced + 1))
        cp "$T/kept.sum" "$T/synced.$i"
    done
    has_ended "$daemon" && fail "$what: the daemon is gone: $(tail -n 5 "$T/daemon.out")"
    unmount_volume
    check_volume "$what"
    mount_volume
    for i in $numbers; do
        [ ! -e "$T/synced.$i" ] || cmp -s "$M/small$i" "$T/synced.$i" || fail "$what: what was synced is not there"
        rm -f "$T/synced.$i" "$M/small$i"
    done
    unmount_volume
    say "$what: $synced of 12 files could be written"
}
if grep -q '__[at]san_init' "$FOLIO_BIN/foliofs"; then
    say '[SKIP] no memory left: a foliofs with a sanitizer, which cannot do without'
else
    for options in cache=kernel cache=direct; do
        works_without_memory
    done
fi

# The file may not be longer than so much: no room, and nothing worse.
with_short_files() # [-S]: only the soft limit
{
    what="ulimit $* -f"
    "$mkfs" --force "$V" >/dev/null
    # shellcheck disable=SC3045 # dash has -S, and so have the others
    (ulimit "$@" -f 20000 && exec "$foliofs" "$V" "$M") || fail "$what: foliofs"
    dd if=/dev/urandom of="$M/long" bs=1M count=40 conv=fsync >"$T/out" 2>&1
    status=$?
    case $* in
    -S) [ $status -eq 0 ] || fail "$what: $(cat "$T/out")" ;; # it is ours to raise
    *) grep -q 'No space left' "$T/out" || fail "$what: $(cat "$T/out")" ;;
    esac
    echo still >"$M/short" || fail "$what: the daemon is gone"
    [ "$(cat "$M/short")" = still ] || fail "$what: a small file"
    unmount_now || fail "$what: umount"
    until_true 60 is_free || fail "$what: the daemon still holds the volume"
    check_volume "$what"
}
with_short_files -S
with_short_files

# --- mount(8) ----------------------------------------------------------------------------------

# It runs foliofs as found in PATH by mount.fuse; without the helper there is nothing to test.
if is_root && command -v mount.fuse3 >/dev/null && mount_helper=$(command -v mount.fuse.foliofs ||
    command -v mount.fuse); then
    say "mount(8) uses $mount_helper"
    if command -v foliofs >/dev/null; then
        mount -t fuse.foliofs -o cache=direct,noatime "$V" "$M" || fail 'mount -t fuse.foliofs'
        is_mounted "$M" || fail 'mount -t: not mounted'
        write_much mount8
        umount "$M" || fail 'umount after mount(8)'
        all_there mount8
    fi
fi
# The helper itself, with our directory in PATH.
if command -v mount.fuse3 >/dev/null; then
    ln -s "$(command -v mount.fuse3)" "$T/mount.fuse.foliofs"
    PATH=$FOLIO_BIN:$PATH "$T/mount.fuse.foliofs" "$V" "$M" -o rw,fsname=named,commit=2 \
        >"$T/out" 2>&1 || fail "mount.fuse.foliofs: $(cat "$T/out")"
    is_mounted "$M" || fail 'mount.fuse.foliofs: not mounted'
    grep -q " $M fuse.foliofs " /proc/self/mounts || fail 'the type is not fuse.foliofs'
    grep -q "^named $M " /proc/self/mounts || fail 'fsname= is not honoured'
    write_much helper
    unmount_now || fail 'umount after mount.fuse.foliofs'
    all_there helper
fi
say passed
