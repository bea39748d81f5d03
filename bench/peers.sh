# shellcheck shell=sh
# peers.sh: the filesystems that are compared, below $T/mnt. For run.sh and scale.sh.
#
# up_peer NAME mounts it, new and empty; $reason says why it cannot. work_dir NAME is where to work.

all_peers='ext4 xfs tmpfs fuse2fs ll ll_wb folio folio_direct folio_ring direct_ring null null_ring
    null_stock'

work_dir()
{
    case $1 in
    null | null_ring | null_stock) echo "$T/mnt/$1" ;;
    *) echo "$T/mnt/$1/work" ;;
    esac
}

# Why this peer cannot be had here; nothing when it can.
why_not()
{
    case $1 in
    ext4 | fuse2fs) tool=mkfs.ext4 ;;
    xfs) tool=mkfs.xfs ;;
    ll | ll_wb) tool=passthrough_ll ;;
    *_ring)
        why_no_uring
        return
        ;;
    *) tool=sh ;;
    esac
    if [ "$tool" = passthrough_ll ]; then
        [ -x "$T/passthrough_ll" ] || echo "$no_passthrough"
    elif ! command -v "$tool" >/dev/null; then
        echo "$tool is not installed"
    elif [ "$1" = fuse2fs ] && ! command -v fuse2fs >/dev/null; then
        echo "fuse2fs is not installed"
    elif [ "$1" = ext4 ] || [ "$1" = xfs ]; then
        modprobe -q "$1" 2>/dev/null
        grep -qw "$1" /proc/filesystems || echo "the kernel has no $1"
        [ -e /dev/loop-control ] || echo "there are no loop devices"
    fi
}

# libfuse's example, from where Debian puts its source.
no_passthrough='passthrough_ll.c of libfuse3-dev was not found'
build_passthrough()
{
    examples=/usr/share/doc/libfuse3-dev/examples
    mkdir "$T/ll" || return
    for file in passthrough_ll.c passthrough_helpers.h; do
        if [ -f "$examples/$file" ]; then
            cp "$examples/$file" "$T/ll/"
        elif [ -f "$examples/$file.gz" ]; then
            gunzip -c "$examples/$file.gz" >"$T/ll/$file"
        else
            return 1
        fi
    done
    # shellcheck disable=SC2046 # words
    if ! "${CC:-cc}" -O2 -w -o "$T/passthrough_ll" "$T/ll/passthrough_ll.c" \
        $(pkg-config --cflags --libs fuse3) 2>"$T/ll/out"; then
        no_passthrough="passthrough_ll.c does not compile: $(tail -n 1 "$T/ll/out")"
        return 1
    fi
}

make_ext4() # IMAGE: nothing is left for the kernel to initialise later
{
    truncate -s "$IMAGE_SIZE" "$1" &&
        mkfs.ext4 -q -F -E lazy_itable_init=0,lazy_journal_init=0 "$1" >"$T/up.out" 2>&1
}

mount_kernel() # PEER COMMAND...
{
    point=$T/mnt/$1
    shift
    "$@" "$point" >"$T/up.out" 2>&1 || reason=$(tail -n 1 "$T/up.out")
}

serve() # PEER COMMAND...: a FUSE server in the foreground; its process goes to $T/server/PEER
{
    peer_name=$1
    shift
    point=$T/mnt/$peer_name
    "$@" >"$T/$peer_name.out" 2>&1 </dev/null &
    server=$!
    note_process "$server"
    echo "$server" >"$T/server/$peer_name"
    # stat waits until the two have agreed on how to talk.
    until_true 30 is_up_or_dead_at "$point" "$server" && is_mounted "$point" &&
        stat "$point" >/dev/null 2>&1 && return 0
    reason=$(tail -n 1 "$T/$peer_name.out")
    return 1
}
is_up_or_dead_at()
{
    is_mounted "$1" || has_ended "$2"
}

up_ll() # PEER OPTIONS: over a directory of the ext4 peer
{
    is_mounted "$T/mnt/ext4" || {
        reason='it needs ext4'
        return 1
    }
    mkdir -p "$T/mnt/ext4/$1"
    serve "$1" "$T/passthrough_ll" -f -o "source=$T/mnt/ext4/$1$2" "$T/mnt/$1"
}

up_folio() # PEER OPTIONS
{
    "$FOLIO_BIN/mkfs.foliofs" "$T/$1.folio" >"$T/up.out" 2>&1 || {
        reason=$(tail -n 1 "$T/up.out")
        return 1
    }
    start_folio "$1" "$2"
}
start_folio() # PEER OPTIONS
{
    serve "$1" "$FOLIO_BIN/foliofs" -f -o "$2" "$T/$1.folio" "$T/mnt/$1"
}

up_peer()
{
    reason=$(why_not "$1")
    [ -z "$reason" ] || return 1
    reason=
    mkdir -p "$T/mnt/$1" "$T/server"
    case $1 in
    ext4) make_ext4 "$T/ext4.img" && mount_kernel ext4 mount -o loop "$T/ext4.img" ;;
    xfs)
        truncate -s "$IMAGE_SIZE" "$T/xfs.img" &&
            mkfs.xfs -q -f "$T/xfs.img" >"$T/up.out" 2>&1 &&
            mount_kernel xfs mount -o loop "$T/xfs.img"
        ;;
    tmpfs) mount_kernel tmpfs mount -t tmpfs -o size=50% bench ;;
    fuse2fs) make_ext4 "$T/fuse2fs.img" && serve fuse2fs fuse2fs -f "$T/fuse2fs.img" "$T/mnt/fuse2fs" ;;
    ll) up_ll ll '' ;;
    ll_wb) up_ll ll_wb ,writeback,cache=always ;;
    folio) up_folio folio "cache=kernel${FOLIO_OPTIONS:+,$FOLIO_OPTIONS}" ;;
    folio_direct) up_folio folio_direct "cache=direct${FOLIO_OPTIONS:+,$FOLIO_OPTIONS}" ;;
    folio_ring) with_uring up_folio folio_ring "cache=kernel,io_uring${FOLIO_OPTIONS:+,$FOLIO_OPTIONS}" ;;
    direct_ring) with_uring up_folio direct_ring "cache=direct,io_uring${FOLIO_OPTIONS:+,$FOLIO_OPTIONS}" ;;
    null) serve null "$programs/bench_null_fuse" "$T/mnt/null" ;;
    null_ring) with_uring serve null_ring "$programs/bench_null_fuse" --ring "$T/mnt/null_ring" ;;
    null_stock) serve null_stock "$programs/bench_null_fuse" --stock "$T/mnt/null_stock" ;;
    *) reason='there is no such peer' ;;
    esac || reason=${reason:-$(tail -n 1 "$T/up.out")}
    [ -z "$reason" ] && is_mounted "$T/mnt/$1" || return 1
    case $1 in
    null | null_ring | null_stock) ;;
    *) mkdir -p "$T/mnt/$1/work/names" || reason='it could not be written to' ;;
    esac
    [ -z "$reason" ]
}

try_umount() # POINT
{
    ! is_mounted "$1" || umount "$1" 2>"$T/umount.out"
}

stop_peer() # PEER: what it wrote stays
{
    until_true 30 try_umount "$T/mnt/$1" || fail "$1: $(cat "$T/umount.out")"
    if [ -f "$T/server/$1" ]; then
        server=$(cat "$T/server/$1")
        until_true 300 has_ended "$server" || fail "$1: the server is still there"
        wait "$server" || say "$1: the server ended with status $?: $(tail -n 1 "$T/$1.out")"
        rm -f "$T/pids/$server" "$T/server/$1"
    fi
}

down_peer()
{
    stop_peer "$1"
    rm -f "$T/$1.img" "$T/$1.folio" "$T/$1.folio"-*
}

# --- quiet and cold ----------------------------------------------------------------------------

ctl_folios() # COMMAND...
{
    for folio in folio folio_direct folio_ring direct_ring; do
        if is_mounted "$T/mnt/$folio"; then
            "$FOLIO_BIN/foliofsctl" "$T/mnt/$folio" "$@" >"$T/ctl.out" 2>&1 ||
                fail "foliofsctl $*: $(cat "$T/ctl.out")"
        fi
    done
}

# Nothing of what was written before is left to be written during what comes.
quiesce()
{
    ctl_folios sync
    sync
}

can_drop()
{
    [ -w /proc/sys/vm/drop_caches ]
}
drop_all()
{
    quiesce
    echo 3 >/proc/sys/vm/drop_caches
    ctl_folios drop
    echo 3 >/proc/sys/vm/drop_caches
}
drop_names()
{
    echo 2 >/proc/sys/vm/drop_caches
}
