# shellcheck shell=sh
# profile.sh: what a row asks of the daemon, and what the daemon does then. For run.sh --profile.
#
# $wrap, before the row's command, records the daemon of one peer (cpu-clock, call graphs) and the
# kernel's two FUSE tracepoints of its mount. What is left in $out/profile: ROW.PEER.txt,
# ROW.PEER.folded (stacks as the usual flame graph tools take them) and ROW.PEER.svg, their flame graph.

had_tracefs=1

can_profile()
{
    is_mounted /sys/kernel/tracing || had_tracefs= # perf mounts it, and leaves it
    perf record -q -e fuse:fuse_request_send -o "$T/perf.try" true >"$T/perf.out" 2>&1
}
end_profiling()
{
    [ -n "$had_tracefs" ] || umount /sys/kernel/tracing 2>/dev/null
}

start_profile() # PEER
{
    mount_number=$(awk -v point="$T/mnt/$1" '$5 == point { sub(/.*:/, "", $3); print $3 }' \
        /proc/self/mountinfo)
    wrap="perf record -q -a -o $T/requests.data
        -e fuse:fuse_request_send --filter connection==$mount_number
        -e fuse:fuse_request_end --filter connection==$mount_number --
        perf record -q --call-graph dwarf,8192 -F 399 -e cpu-clock -p $(cat "$T/server/$1") -o $T/stacks.data --"
}

end_profile() # ROW PEER
{
    wrap=
    mkdir -p "$out/profile"
    base=$out/profile/$1.$2
    {
        echo "$1 on $2: $value $unit, p50 $p50, p99 $p99 µs, while it was recorded"
        perf script -i "$T/requests.data" -F time,event,trace 2>/dev/null |
            python3 "$bench/profile.py" requests
        perf script -i "$T/stacks.data" -F comm,ip,sym 2>/dev/null |
            python3 "$bench/profile.py" stacks "$base.folded"
    } >"$base.txt"
    python3 "$bench/flame.py" "$base.folded" >"$base.svg" || fail 'flame.py failed'
    rm -f "$T/requests.data" "$T/stacks.data"
}
