#!/bin/sh
# With memory=128M, gigabytes copied through leave the daemon's own memory within the budget plus a
# fixed base. So do hundreds of readers whose reads wait until the kernel has given up its copies.
#
#   FOLIO_GIB  how much to copy (1)
. "$(dirname -- "$0")/lib.sh"
need python3
build_helper held_load -pthread
gib=${FOLIO_GIB:-1}
budget=$((128 * 1024))
base=$((32 * 1024)) # KiB: code's data, stacks and malloc's own, whatever the budget

start_sampling()
{
    : >"$T/samples"
    while [ -r "/proc/$daemon/status" ]; do
        awk '/^RssAnon|^RssShmem/ { kib += $2 } END { print kib }' "/proc/$daemon/status" 2>/dev/null
        sleep 0.05
    done >"$T/samples" &
    sampler=$!
    note_process "$sampler"
}

work()
{
    python3 - "$M" "$gib" <<'END'
import hashlib, os, random, sys
root, gib = sys.argv[1], int(sys.argv[2])
r = random.Random(1)
piece = bytearray(r.randbytes(1 << 20))

def stream(n):  # n MiB, each different
    for i in range(n):
        piece[0:8] = i.to_bytes(8, "little")
        yield bytes(piece)

wrote = hashlib.blake2b()
with open(root + "/large", "wb", buffering=0) as f:
    for data in stream(gib * 1024):
        f.write(data)
        wrote.update(data)
# many inodes, names and records
for d in range(20):
    os.mkdir("%s/d%d" % (root, d))
    for i in range(500):
        with open("%s/d%d/%0100d" % (root, d, i), "wb") as f:
            f.write(b"small")
# scattered overwriting: dirty pages and tree nodes
with open(root + "/scattered", "r+b" if os.path.exists(root + "/scattered") else "w+b", buffering=0) as f:
    f.truncate(8 << 30)
    for i in range(20_000):
        os.pwrite(f.fileno(), b"x" * 100, r.randrange(2 << 20) * 4096)
for d in range(20):
    for i in range(500):
        os.stat("%s/d%d/%0100d" % (root, d, i))
read = hashlib.blake2b()
with open(root + "/large", "rb", buffering=0) as f:
    while True:
        data = f.read(1 << 20)
        if not data:
            break
        read.update(data)
sys.exit(0 if read.digest() == wrote.digest() else "what was read is not what was written")
END
}

held() # 300 reads of 1 MiB at a time
{
    timeout 60 "$T/held_load" "$M/file" 6 300
}

within_budget() # WHAT KIB MOUNT-OPTIONS COMMAND...
{
    what=$1 allowed=$2
    make_volume
    mount_volume -o "$3,memory=128M"
    shift 3
    start_sampling
    "$@" >"$T/out" || fail "$what: status $?"
    unmount_volume
    wait "$sampler"
    most=$(sort -n "$T/samples" | tail -n 1)
    [ "$(wc -l <"$T/samples")" -ge 10 ] || fail "$what: too few samples"
    say "$what: at most $most KiB, of $allowed KiB allowed $(cat "$T/out")"
    [ "$most" -le "$allowed" ] || fail "$what: $most KiB"
}

for cache in direct kernel; do
    within_budget "cache=$cache, $gib GiB copied" $((budget + base)) "cache=$cache" work
done
within_budget 'reads that wait' $((budget + budget / 16 + base)) cache=direct held
say passed
