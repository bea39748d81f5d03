#!/bin/sh
# For a user who is not root: mounts of both kinds, attached mappings, the control socket, and every end of a mount.
#
# Root runs it as nobody, in a mount namespace of its own, where /dev/fuse and /dev/userfaultfd are everybody's.
. "$(dirname -- "$0")/lib.sh"

# --- as root: become nobody ---------------------------------------------------------------------

if is_root; then
    need unshare setpriv fusermount3
    build=${FOLIO_BUILD:-$source_dir/build/release}
    # /mnt holds all of it, as nobody may not get to where it lies.
    cat >"$T/become" <<'END2'
set -e
mount -t tmpfs none /mnt
mkdir /mnt/source /mnt/build
mkdir -m 1777 /mnt/tmp
mount --bind "$1" /mnt/source
mount --bind "$2" /mnt/build
mknod -m 666 /mnt/fuse c 10 229
mount --bind /mnt/fuse /dev/fuse
if [ -e /dev/userfaultfd ]; then
    # shellcheck disable=SC2046 # two numbers
    mknod -m 666 /mnt/userfaultfd c $(stat -c '0x%t 0x%T' /dev/userfaultfd)
    mount --bind /mnt/userfaultfd /dev/userfaultfd
fi
cd /mnt
exec setpriv --reuid 65534 --regid 65534 --clear-groups env HOME=/mnt/tmp TMPDIR=/mnt/tmp \
    FOLIO_BIN=/mnt/build/bin FOLIO_BUILD=/mnt/build sh /mnt/source/tests/mount_user.sh
END2
    unshare --mount true 2>"$T/out" || skip "no mount namespaces: $(cat "$T/out")"
    # In the background, or the trap of a signal would wait for its end.
    exec_in_namespace sh "$T/become" "$source_dir" "$build" &
    note_process $!
    wait $!
    exit
fi

# --- as nobody ----------------------------------------------------------------------------------

need fusermount3 python3
build_client attach_ops
FOLIO_CTL=$FOLIO_BIN/foliofsctl
export FOLIO_CTL

each() # OPTIONS
{
    what=$1
    make_volume -s 256M
    : >"$T/daemon.out"
    mount_volume -o "$1"
    wait_for_control
    cp -a "$source_dir/cache" "$M/" || fail "$what: cp"
    diff -r "$source_dir/cache" "$M/cache" || fail "$what: diff"
    [ "$(stat -c %u "$M/cache")" -eq "$(id -u)" ] || fail "$what: whose is it?"
    [ "$(stat_of cache.pages)" -gt 0 ] || fail "$what: stats"
}
attached()
{
    (cd "$M" && FOLIO_DAEMON=$daemon FOLIO_VERBOSE=1 timeout -s KILL 120 "$T/attach_ops" coherent two size fork exec many) \
        >"$T/ops.out" 2>&1 && return
    grep -qi 'userfaultfd' "$T/ops.out" && say "[SKIP] $what: $(head -n 1 "$T/ops.out")" && return
    fail "$what: attach_ops: $(head -n 20 "$T/ops.out")"
}

for options in cache=kernel cache=direct cache=kernel,attach; do
    each "$options"
    [ "$options" = cache=kernel ] || attached
    unmount_volume
    check_volume "$what"
done

what='two mounts of one volume'
mount_volume
mkdir "$T/other"
"$FOLIO_BIN/foliofs" "$V" "$T/other" >"$T/out" 2>&1 && fail "$what: both are mounted"
grep -q 'in use' "$T/out" || fail "$what: $(cat "$T/out")"

what='a mount that is in use is ended by SIGTERM'
exec 7<"$M/cache/page.h"
kill -s TERM "$daemon"
until_true 30 has_ended "$daemon" || fail "$what: the daemon is still there"
reap_daemon
[ "$daemon_status" -eq 0 ] || fail "$what: status $daemon_status: $(tail -n 3 "$T/daemon.out")"
exec 7<&-
detach "$M"
check_volume "$what"

what='the daemon is killed'
mount_volume
echo there >"$M/there"
sync "$M/there"
kill_daemon
detach "$M"
mount_volume
grep -q there "$M/there" || fail "$what: what was synced is lost"
unmount_volume
check_volume "$what"
say passed
