#!/bin/sh
# readahead=linux reads the same pages at the same steps as the running kernel does on ext4, and a
# policy in a shared object decides what a mount reads ahead.
#
# FOLIO_STEPS: how many accesses to compare (default 20000); FOLIO_SEED: which.
. "$(dirname -- "$0")/lib.sh"
: "${FOLIO_STEPS:=20000}"
need python3 pkg-config "${CC:-cc}"

# --- a policy of one's own ---------------------------------------------------------------------

cat >"$T/mine.c" <<'END'
#include "cache/readahead.h"
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
static int init(void *config, const char *args, char *error, size_t n)
{
    *(uint32_t *)config = (uint32_t)atoi(args);
    snprintf(error, n, "mine wants a number, not %s", args);
    return atoi(args) > 0 ? 0 : -EINVAL;
}
static void on_access(void *state, const struct ra_access *a, struct ra_window *out)
{
    (void)state;
    if (a->event == RA_MISS)
        *out = (struct ra_window){ .start = a->index, .size = *(const uint32_t *)a->config };
}
const struct ra_policy folio_ra_policy = {
    .abi = RA_ABI, .name = "mine", .access = on_access, .init = init
};
END
"${CC:-cc}" -shared -fPIC -I "$source_dir" -o "$T/mine.so" "$T/mine.c" || fail 'mine.c'

refuses() # PATTERN READAHEAD
{
    timeout 30 "$FOLIO_BIN/foliofs" -o "readahead=$2" "$V" "$M" >"$T/out" 2>&1 </dev/null &&
        fail "readahead=$2 was taken"
    [ "$(wc -l <"$T/out")" -eq 1 ] || fail "readahead=$2: not one line: $(cat "$T/out")"
    grep -q "$1" "$T/out" || fail "readahead=$2: $1 is not in: $(cat "$T/out")"
}
cached() # FILE
{
    "$FOLIO_BIN/foliofsctl" --json "$M" pages "$1" |
        python3 -c 'import json, sys; print(json.load(sys.stdin)["cached"])'
}
reads_ahead() # PAGES: one page of a fresh file is read; so many are cached then
{
    wait_for_control
    dd if="$M/file" of="$T/page" bs=4096 skip=50 count=1 2>/dev/null
    [ "$(cached "$M/file")" = "$1" ] || fail "not $1 pages were read: $(cached "$M/file")"
}

make_volume
mount_volume -o cache=direct
dd if=/dev/zero of="$M/file" bs=4096 count=200 2>/dev/null
unmount_volume
refuses 'linux, none, fixed, stride, leap' psychic
refuses 'No such file\|cannot open' "$T/none.so"
refuses 'mine wants a number, not much' "$T/mine.so:much"
mount_volume -o "cache=direct,readahead=$T/mine.so:7"
reads_ahead 7
unmount_volume
mount_volume -o cache=direct,readahead=fixed:12
reads_ahead 12
"$FOLIO_BIN/foliofsctl" "$M" set "readahead=$T/mine.so:9" >"$T/out" 2>&1 || fail "$(cat "$T/out")"
"$FOLIO_BIN/foliofsctl" "$M" drop >/dev/null
reads_ahead 9
"$FOLIO_BIN/foliofsctl" "$M" set readahead=leap:1 >"$T/out" 2>&1 && fail 'leap:1 was taken'
grep -q 'no arguments' "$T/out" || fail "set readahead=leap:1: $(cat "$T/out")"
unmount_volume

# --- the kernel's decisions --------------------------------------------------------------------

is_root || skip 'comparing with the kernel: only root can mount ext4 (the rest passed)'
need mkfs.ext4 losetup mountpoint
ext4=$T/ext4
truncate -s 64M "$T/image"
mkfs.ext4 -q -F "$T/image" >"$T/out" 2>&1 || skip "mkfs.ext4: $(cat "$T/out") (the rest passed)"
mkdir "$ext4"
# With data=journal ext4 has no large folios; they would round windows.
mount -o loop,data=journal,noatime "$T/image" "$ext4" 2>"$T/out" ||
    skip "cannot mount ext4 on a loop device: $(cat "$T/out") (the rest passed)"
bdi=/sys/class/bdi/$(mountpoint -d "$ext4")
loop=$(losetup -n -O NAME -j "$T/image" | head -n 1)
# The largest request decides how far a read that is larger than the window is read at once.
echo 1024 2>"$T/out" >"/sys/block/${loop#/dev/}/queue/max_sectors_kb" ||
    skip "cannot set max_sectors_kb of $loop (the rest passed)"

# shellcheck disable=SC2046 # flags are words
"${CC:-cc}" -std=gnu17 -O1 -g -D_GNU_SOURCE -D_FILE_OFFSET_BITS=64 -I "$source_dir" -o "$T/compare" \
    "$source_dir"/tests/ra_compare.c "$source_dir"/cache/*.c \
    $(printf "$source_dir/store/%s.c " bio device dev_memory) \
    $(pkg-config --cflags --libs liburcu-bp) -pthread || fail 'ra_compare.c does not compile'

start_random
compare() # KB STEPS
{
    echo "$1" 2>"$T/out" >"$bdi/read_ahead_kb" || skip "cannot set read_ahead_kb (the rest passed)"
    timeout 600 "$T/compare" "$ext4" "$1" "$seed" "$2" >"$T/compared" 2>&1
    status=$?
    say "read_ahead_kb=$1, Linux $(uname -r): $(tail -n 1 "$T/compared")"
    [ "$status" -ne 2 ] || skip "$(cat "$T/compared") (the rest passed)"
    [ "$status" -eq 0 ] || fail "read_ahead_kb=$1, seed $seed: $(cat "$T/compared")"
}
compare 128 "$FOLIO_STEPS"
compare 60 $((FOLIO_STEPS / 2))
umount "$ext4"
