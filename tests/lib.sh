# shellcheck shell=sh
# lib.sh: what every mounted test begins with.
#
#   . "$(dirname -- "$0")/lib.sh"
#   make_volume [mkfs options]
#   mount_volume [-o options]
#       ... work in "$M" ...
#   unmount_volume
#   check_volume
#
# FOLIO_BIN holds the programs; FOLIO_MOUNT_OPTIONS is added to the options of every mount. Everything
# lives below $T, a private directory: the volume $V, the mount point $M. Whatever happens to the script,
# a trap unmounts, ends the daemons and removes $T; if the script itself is killed, a guardian process
# does. A test ends with 0, 1 (fail says why) or 77 (skip says why).
set -u
export LC_ALL=C
PATH=/usr/bin:$PATH # what tests/install.sh installs (a wrapper of python3 before it would cost seconds)
umask 022

test_name=$(basename -- "$0" .sh)
source_dir=$(cd "$(dirname -- "$0")/.." && pwd -P)
: "${FOLIO_BIN:=$source_dir/build/release/bin}"

say()
{
    echo "$test_name: $*"
}
fail()
{
    echo "FAIL $test_name: $*" >&2
    # FOLIO_KEEP names a directory that gets the files of a test that failed.
    [ -z "${FOLIO_KEEP-}" ] || cp -ax --sparse=always "$T" "$FOLIO_KEEP"
    exit 1
}
skip()
{
    echo "SKIP $test_name: $*"
    exit 77
}
need()
{
    for program in "$@"; do
        command -v "$program" >/dev/null 2>&1 || skip "$program is not installed"
    done
}
is_root()
{
    [ "$(id -u)" -eq 0 ]
}

# --- cleaning up -------------------------------------------------------------------------------

# Mount points below $1, the innermost first; our names have no characters that need unescaping.
mounts_below()
{
    awk -v under="$1/" 'index($5, under) == 1 { print $5 }' /proc/self/mountinfo | sort -r
}

is_mounted()
{
    awk -v point="$1" '$5 == point { found = 1 } END { exit !found }' /proc/self/mountinfo
}

detach() # MOUNTPOINT: never blocks, whatever state the daemon is in
{
    umount -l "$1" 2>/dev/null || fusermount3 -uz "$1" 2>/dev/null
}

# Still the process that we noted? A number may have gone to another process meanwhile.
is_ours() # PID START
{
    [ "$(started "$1")" = "$2" ]
}
started() # PID: when, in ticks since boot; nothing if there is no such process
{
    sed 's/.*) //' "/proc/$1/stat" 2>/dev/null | cut -d ' ' -f 20
}
has_ended() # PID: no such process, or nobody has asked for its status yet
{
    case $(sed 's/.*) //' "/proc/$1/stat" 2>/dev/null) in
    '' | Z*) return 0 ;;
    esac
    return 1
}
note_process() # PID
{
    started "$1" >"$T/pids/$1"
}

end_processes() # SIGNAL
{
    for file in "$T"/pids/*; do
        [ -f "$file" ] || continue
        is_ours "${file##*/}" "$(cat "$file")" && kill -s "$1" "${file##*/}" 2>/dev/null
    done
}

# Daemons that went to the background are found by our directory in their command line. Those of other
# programs are not looked at: reading it waits for a process that hangs in a page fault.
note_daemons()
{
    for line in /proc/[0-9]*/cmdline; do
        pid=${line#/proc/}
        pid=${pid%/cmdline}
        case $(cat "/proc/$pid/comm" 2>/dev/null) in
        foliofs*) ;;
        *) continue ;;
        esac
        case $({ tr '\0' ' ' <"$line"; } 2>/dev/null) in
        *foliofs*" $T/"*) [ -f "$T/pids/$pid" ] || note_process "$pid" ;;
        esac
    done
}

# --- FUSE over io_uring: a switch of the machine's, on only while something is being mounted -----

uring_switch=/sys/module/fuse/parameters/enable_uring
why_no_uring()
{
    if [ ! -e $uring_switch ]; then
        echo 'this kernel has no FUSE over io_uring'
    elif [ "$(cat $uring_switch)" != Y ] && [ ! -w $uring_switch ]; then
        echo "FUSE over io_uring is switched off ($uring_switch)"
    elif [ "$(cat /proc/sys/kernel/io_uring_disabled 2>/dev/null || echo 0)" -gt "$(is_root && echo 1 || echo 0)" ]; then
        echo 'io_uring is switched off (/proc/sys/kernel/io_uring_disabled)'
    fi
}
# One at a time, so that each finds the switch as it was.
with_uring() # COMMAND...
{
    exec 8<$uring_switch
    flock 8
    uring_was=$(cat $uring_switch)
    [ "$uring_was" = Y ] || echo "$uring_was" >"$T/uring_was"
    [ "$uring_was" = Y ] || echo Y >$uring_switch
    "$@" 8<&-
    uring_status=$?
    restore_uring
    exec 8<&-
    return $uring_status
}
restore_uring()
{
    [ ! -f "$T/uring_was" ] || cat "$T/uring_was" >$uring_switch
    rm -f "$T/uring_was"
}

clean_up()
{
    trap '' INT TERM HUP EXIT
    cd /
    [ -n "${guardian-}" ] || restore_uring
    note_daemons
    end_processes CONT
    mounts_below "$T" | while read -r point; do
        detach "$point"
    done
    end_processes TERM
    for _ in 1 2 3 4 5 6 7 8 9 10; do
        alive=
        for file in "$T"/pids/*; do
            [ -f "$file" ] && is_ours "${file##*/}" "$(cat "$file")" &&
                ! has_ended "${file##*/}" && alive=1
        done
        [ -n "$alive" ] || break
        sleep 0.1
    done
    end_processes KILL
    [ ! -f "$T/group" ] || rmdir "$(cat "$T/group")"
    rm -rf --one-file-system "$T"
}
# The guardian: this file again, in a session of its own, so that what kills the script does not
# kill it. FOLIO_GUARD is the script's process and its start, and T is set.
if [ -n "${FOLIO_GUARD-}" ]; then
    trap '' INT TERM HUP
    # shellcheck disable=SC2086 # two words
    while is_ours $FOLIO_GUARD; do
        sleep 1
    done
    [ -d "$T" ] || exit 0
    guardian=1
    uring_was=$(cat "$T/uring_was" 2>/dev/null)
    clean_up
    # The script's lock is gone with it: somebody else may rely on the switch by now.
    [ -z "$uring_was" ] || { exec 8<$uring_switch && flock 8 && echo "$uring_was" >$uring_switch; }
    exit 0
fi

T=$(mktemp -d "${TMPDIR:-/tmp}/folio-$test_name.XXXXXX") || exit 1
T=$(cd "$T" && pwd -P)
M=$T/mnt
V=$T/volume
mkdir "$M"
chmod 755 "$T" # a test that becomes another user must reach the mount
mkdir "$T/pids" # a file for each process that must not stay behind
trap clean_up EXIT
trap 'exit 129' HUP
trap 'exit 130' INT
trap 'exit 143' TERM
FOLIO_GUARD="$$ $(started $$)" T=$T setsid -f sh "$source_dir/tests/lib.sh" \
    </dev/null >/dev/null 2>&1

# --- volumes and mounts ------------------------------------------------------------------------

[ -x "$FOLIO_BIN/foliofs" ] || fail "FOLIO_BIN=$FOLIO_BIN has no foliofs: build first"
[ -w /dev/fuse ] || skip "/dev/fuse is not there, or not for us"
for program in foliofs mkfs.foliofs fsck.foliofs foliofsctl; do
    [ -x "$FOLIO_BIN/$program" ] || fail "FOLIO_BIN=$FOLIO_BIN has no $program"
done
daemon=
more_options=${FOLIO_MOUNT_OPTIONS-} # for every mount, beside the test's own
daemon_env= # NAME=VALUE words, for the daemons that are started

# until SECONDS COMMAND...: try again until it succeeds; 1 when the time is over.
until_true()
{
    end=$(($(date +%s) + $1))
    shift
    until "$@"; do
        [ "$(date +%s)" -ge "$end" ] && return 1
        sleep 0.02
    done
}

make_volume()
{
    rm -f "$V"
    "$FOLIO_BIN/mkfs.foliofs" "$@" "$V" >"$T/mkfs.out" 2>&1 ||
        fail "mkfs.foliofs $*: $(cat "$T/mkfs.out")"
}

is_up_or_dead()
{
    is_mounted "$M" || has_ended "$daemon"
}

# mount_volume [-o OPTIONS]...: in the foreground, so that we know its process. $daemon is its number.
try_mount()
{
    # shellcheck disable=SC2086 # several words
    env $daemon_env "$FOLIO_BIN/foliofs" -f ${more_options:+-o "$more_options"} "$@" "$V" "$M" \
        >>"$T/daemon.out" 2>&1 </dev/null &
    daemon=$!
    note_process "$daemon"
    until_true 30 is_up_or_dead && is_mounted "$M" && ! has_ended "$daemon"
}
mount_volume()
{
    try_mount "$@" || fail "${what:+$what: }foliofs $* does not mount: $(tail -n 5 "$T/daemon.out")"
}

# Take the daemon's exit status.
reap_daemon()
{
    wait "$daemon"
    daemon_status=$?
    rm -f "$T/pids/$daemon"
    daemon=
}

unmount_now()
{
    if is_root; then
        umount "$M"
    else
        fusermount3 -u "$M"
    fi
}
unmount_volume()
{
    # A process that has just ended may hold the mount a moment longer.
    until_true 10 unmount_now 2>"$T/umount.out" || fail "cannot unmount: $(cat "$T/umount.out")"
    until_true 120 has_ended "$daemon" || fail "the daemon is still there 120 s after umount"
    reap_daemon
    [ "$daemon_status" -eq 0 ] ||
        fail "the daemon ended with status $daemon_status: $(tail -n 5 "$T/daemon.out")"
}

kill_daemon()
{
    kill -s KILL "$daemon"
    wait "$daemon" 2>/dev/null
    rm -f "$T/pids/$daemon"
    daemon=
}

check_volume()
{
    timeout 300 "$FOLIO_BIN/fsck.foliofs" -n "$V" >"$T/fsck.out" 2>&1
    fsck_status=$?
    [ "$fsck_status" -eq 0 ] ||
        fail "${1:+$1: }fsck.foliofs -n ended with $fsck_status: $(head -n 20 "$T/fsck.out")"
}

# Becomes the command, in a mount namespace of its own. What other tests have mounted is not kept there, or it would
# outlive their unmounting.
exec_in_namespace() # COMMAND...
{
    # shellcheck disable=SC2016 # expanded in there
    exec unshare --mount --propagation private sh -c '
        awk -v ours="$1" "\$3 == \"fuse.foliofs\" && \$2 != ours { print \$2 }" /proc/self/mounts |
            while read -r other; do umount -l "$other"; done
        shift
        exec "$@"' sh "$M" "$@"
}

# --- mounts that folio-stress --crash kills ----------------------------------------------------

# "sh $T/crasher kill" and "sh $T/crasher mount" are for it to run.
make_crasher() # MOUNT-OPTIONS
{
    cat >"$T/crasher" <<END
case \$1 in
kill)
    kill -s KILL \$(cat "$T/daemon.pid")
    ;;
mount)
    umount -l "$M" 2>/dev/null || fusermount3 -uz "$M" 2>/dev/null
    "$FOLIO_BIN/foliofs" -f -o "$1" "$V" "$M" >>"$T/daemon.out" 2>&1 </dev/null &
    echo \$! >"$T/daemon.pid"
    for _ in \$(seq 1500); do
        ! mountpoint -q "$M" || exit 0
        sleep 0.02
    done
    exit 1
    ;;
esac
END
}
mount_to_crash() # MOUNT-OPTIONS
{
    make_crasher "$1${more_options:+,$more_options}"
    sh "$T/crasher" mount || fail "does not mount: $(tail -n 5 "$T/daemon.out")"
}
crashed_daemon_ended()
{
    has_ended "$(cat "$T/daemon.pid")"
}
unmount_to_crash()
{
    until_true 10 unmount_now 2>"$T/umount.out" || fail "cannot unmount: $(cat "$T/umount.out")"
    until_true 120 crashed_daemon_ended || fail 'the daemon is still there 120 s after umount'
}

control_answers()
{
    "$FOLIO_BIN/foliofsctl" "$M" version >"$T/version.out" 2>&1
}
# The control socket comes a moment after the mount.
wait_for_control()
{
    until_true 10 control_answers || fail "foliofsctl version: $(cat "$T/version.out")"
}

# One number of "foliofsctl stats", as PART.NAME.
stat_of()
{
    "$FOLIO_BIN/foliofsctl" --json "$M" stats >"$T/stats.json" || fail "foliofsctl stats failed"
    jq -e ".stats.$1" "$T/stats.json" ||
        fail "there is no $1 in stats"
}

# Compile tests/NAME.c to $T/NAME.   build_helper NAME [LIBRARIES]
build_helper()
{
    need "${CC:-cc}"
    helper=$1
    shift
    "${CC:-cc}" -std=gnu17 -O1 -g -Wall -Wextra -D_FILE_OFFSET_BITS=64 -I "$source_dir" \
        -o "$T/$helper" "$source_dir/tests/$helper.c" "$@" ||
        fail "tests/$helper.c does not compile"
}
# Likewise, with libfolio. FOLIO_LIBDIR is where it lies; one for a program without a sanitizer.
build_client()
{
    : "${FOLIO_LIBDIR:=$(cd "$FOLIO_BIN/../lib" && pwd -P)}"
    build_helper "$1" "$FOLIO_LIBDIR/libfolio.so" "-Wl,-rpath,$FOLIO_LIBDIR" -pthread
}

# Daemons that are mounted from now on find no memory as often as the file $FOLIO_FAIL_ALLOC says; see
# fail_alloc.c.   1: there is no compiler, or it would be in the way of a sanitizer.
use_fail_alloc()
{
    command -v "${CC:-cc}" >/dev/null || return 1
    ! grep -q '__[at]san_init' "$FOLIO_BIN/foliofs" || return 1
    build_helper fail_alloc -shared -fPIC
    FOLIO_FAIL_ALLOC=$T/failing
    export FOLIO_FAIL_ALLOC # the clients' word, too
    head -c 8 /dev/zero >"$FOLIO_FAIL_ALLOC"
    daemon_env="LD_PRELOAD=$T/fail_alloc"
}
set_failing() # N: of a million allocations
{
    # shellcheck disable=SC2059 # the bytes, by their numbers
    printf "$(printf '\\%03o\\%03o\\%03o\\%03o' $(($1 % 256)) $(($1 / 256 % 256)) $(($1 / 65536)) 0)" |
        dd of="$FOLIO_FAIL_ALLOC" conv=notrunc bs=4 count=1 2>/dev/null
}
failed_allocations()
{
    od -An -tu4 -j4 -N4 "$FOLIO_FAIL_ALLOC" | tr -d ' '
}

# A number below $1 from the seed, which is printed so that a run can be repeated.
seed=${FOLIO_SEED:-}
start_random()
{
    [ -n "$seed" ] || seed=$(($(od -An -N4 -tu4 /dev/urandom) % 2147483647))
    say "FOLIO_SEED=$seed repeats this run"
    random_state=$((seed % 2147483647))
}
random_below() # N: into $random
{
    random_state=$(((random_state * 48271 + 11) % 2147483647))
    random=$((random_state / 7 % $1))
}
