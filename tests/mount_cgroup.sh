#!/bin/sh
# In a control group of 100 MiB the daemon takes no more unless it is asked to, and is not killed for it by the kernel
# when it is written to and stored to; what it is asked for beyond that is refused.
. "$(dirname -- "$0")/lib.sh"
need python3 jq
is_root || skip 'control groups are root'\''s to make'
limit=$((100 << 20))

# Where a group can be made whose memory is limited, and the name of that limit.
make_group()
{
    for place in /sys/fs/cgroup/memory /sys/fs/cgroup; do
        name=memory.limit_in_bytes
        [ $place = /sys/fs/cgroup/memory ] || name=memory.max
        group=$place/folio-test-$$
        mkdir "$group" 2>/dev/null || continue
        echo "$group" >"$T/group"
        # (Where there is no such controller it may be any filesystem.)
        [ -e "$group/$name" ] && echo $limit 2>/dev/null >"$group/$name" && return
        rmdir "$group"
        rm "$T/group"
    done
    skip 'no control group with a limit on memory can be made in /sys/fs/cgroup'
}
make_group
cat >"$T/in_group" <<'END'
echo $$ >"$(cat "${0%/*}/group")/cgroup.procs" && exec "$@"
END
preload=$(cd "$FOLIO_BIN/../lib" && pwd -P)/libfolio-preload.so
make_volume -s 1G

work() # PRELOAD
{
    dd if=/dev/zero of="$M/written" bs=1M count=300 2>"$T/dd.out" || fail "$what: $(cat "$T/dd.out")"
    LD_PRELOAD=$1 python3 - "$M/stored" 200 <<'END' || fail "$what: what was stored is not what is read"
import mmap, sys
n = int(sys.argv[2]) << 20
with open(sys.argv[1], "w+b") as f:
    f.truncate(n)
    m = mmap.mmap(f.fileno(), n)
    for at in range(0, n, 4096):
        m[at:at + 8] = at.to_bytes(8, "little")
    for at in range(0, n, 4096):
        f.seek(at)
        if f.read(8) != at.to_bytes(8, "little"):
            sys.exit(1)
END
    ! has_ended "$daemon" || fail "$what: the daemon has ended: $(dmesg 2>/dev/null | tail -n 3)"
}

daemon_env="sh $T/in_group"
for what in cache=kernel cache=direct; do
    mount_volume -o $what
    wait_for_control
    pages=$(stat_of cache.limit)
    [ "$((pages * 4096))" -le $((limit / 2)) ] || fail "$what: the cache may have $pages pages"
    work ''
    work "$preload"
    unmount_volume
    check_volume "$what"
done
what='too much memory'
! try_mount -o memory=512M || fail 'memory=512M is taken in a group of 100 MiB'
grep -q 'memory: 512 MiB is more than .*group.*100 MiB' "$T/daemon.out" || fail "$(cat "$T/daemon.out")"
say passed
