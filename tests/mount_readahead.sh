#!/bin/sh
# readahead=linux reads the same pages at the same steps as the running kernel does on ext4, without
# and with large folios; a policy in a shared object decides what a mount reads ahead; and the policy
# can be changed for the volume, a file, and those who have it open.
#
# FOLIO_STEPS: how many accesses to compare (default 20000); FOLIO_SEED: which.
. "$(dirname -- "$0")/lib.sh"
: "${FOLIO_STEPS:=20000}"
need python3 pkg-config "${CC:-cc}"

# --- a policy of one's own ---------------------------------------------------------------------

policy() # NAME SOURCE
{
    "${CC:-cc}" -Wall -Wextra -Werror -shared -fPIC -I "$source_dir" -o "$T/$1.so" "$2" ||
        fail "$2 does not compile"
}
policy example "$source_dir/tests/ra_example.c"
# the one in the header's first comment
sed -n '/^ \*     #include/,/^ \*     const struct/ s/^ \*     //p' "$source_dir/cache/readahead.h" \
    >"$T/twice.c"
sed -i 's/(void \*state,/(void *state __attribute__((unused)),/' "$T/twice.c"
policy twice "$T/twice.c"
echo 'int nothing;' >"$T/empty.c"
policy empty "$T/empty.c"
printf '#include "cache/readahead.h"\nconst struct ra_policy folio_ra_policy = { .abi = RA_ABI - 1 };\n' \
    >"$T/old.c"
policy old "$T/old.c"

one_line() # WHAT PATTERN: on stderr, nothing on stdout
{
    [ ! -s "$T/out" ] || fail "$1: on stdout: $(cat "$T/out")"
    [ "$(wc -l <"$T/err")" -eq 1 ] || fail "$1: not one line: $(cat "$T/err")"
    grep -q -- "$2" "$T/err" || fail "$1: $2 is not in: $(cat "$T/err")"
}
mount_refuses() # PATTERN OPTION
{
    timeout 30 "$FOLIO_BIN/foliofs" -o "$2" "$V" "$M" >"$T/out" 2>"$T/err" </dev/null &&
        fail "$2 was taken"
    one_line "$2" "$1"
}
set_refuses() # PATTERN SETTING [FILE]
{
    pattern=$1
    shift
    timeout 30 "$FOLIO_BIN/foliofsctl" "$M" set "$@" >"$T/out" 2>"$T/err" && fail "set $* was taken"
    one_line "set $*" "$pattern"
}
refuse_each() # REFUSES
{
    "$1" 'linux, none, fixed, stride, leap' readahead=psychic
    "$1" 'large_folios' readahead=linux:9
    "$1" 'no arguments' readahead=leap:1
    "$1" 'from 1 to 256' readahead=fixed:0
    "$1" 'No such file\|cannot open' "readahead=$T/none.so"
    "$1" 'no symbol folio_ra_policy' "readahead=$T/empty.so"
    "$1" 'compile it again' "readahead=$T/old.so"
    "$1" 'first window, not "much"' "readahead=$T/example.so:much"
    "$1" 'no arguments' "readahead=$T/twice.so:1"
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
dd if=/dev/zero of="$M/file" bs=4096 count=2000 2>/dev/null
cp "$M/file" "$M/other"
unmount_volume
refuse_each mount_refuses
mount_volume -o "cache=direct,readahead=$T/twice.so"
reads_ahead 2
unmount_volume
mount_volume -o "cache=direct,readahead=$T/example.so:7"
reads_ahead 7
unmount_volume

# --- another policy while files are open ----------------------------------------------------------

mount_volume -o cache=direct,readahead=none
wait_for_control
refuse_each set_refuses
set_refuses '4 to 1048576' read_ahead_kb=3
set_refuses '4 to 1048576' read_ahead_kb=many "$M/file"
set_refuses "not a file's" cache_size=8M "$M/file"
set_refuses 'such readahead policy' readahead=psychic "$M/file"
set_refuses 'such readahead policy' readahead=default
set_refuses 'not a regular file' readahead=none "$M"
set_refuses 'not on the mount' readahead=none /proc/self/stat
set_refuses 'No such file' readahead=none "$M/missing"
python3 - "$M" "$FOLIO_BIN/foliofsctl" "$T" <<'END' || fail 'the policy of open files'
import json, os, subprocess, sys
mnt, ctl, tmp = map(os.path.abspath, sys.argv[1:])
def set_(*args):
    subprocess.run([ctl, mnt, "set", *args], check=True, stdout=subprocess.DEVNULL, cwd=tmp)
def pages(path):
    out = subprocess.run([ctl, "--json", mnt, "pages", path], check=True, capture_output=True)
    return json.loads(out.stdout)
class Open:
    at = 1990
    def __init__(self, name):
        self.path = mnt + "/" + name
        self.fd = os.open(self.path, os.O_RDONLY)
    def expect(self, want, index, name):
        before = pages(self.path)["cached"]
        os.pread(self.fd, 4096, index * 4096)
        now = pages(self.path)
        got = now["cached"] - before
        assert (got, now["readahead"]) == (want, name), (self.path, index, got, now["readahead"], want, name)
file, other = Open("file"), Open("other")
file.expect(1, 10, "none")
set_("readahead=fixed:5")                   # all that are open follow
file.expect(5, 50, "fixed")
other.expect(5, 50, "fixed")
set_("readahead=fixed:3", file.path)        # a file's own choice,
file.expect(3, 100, "fixed")
other.expect(5, 100, "fixed")
Open("file").expect(3, 150, "fixed")        # also for who opens it now;
set_("readahead=none")                      # the volume's does not change it
file.expect(3, 200, "fixed")
other.expect(1, 200, "none")
set_("readahead=./example.so:4", other.path)  # from our directory, not from the daemon's
other.expect(4, 250, "example")
other.expect(8, 252, "example")             # at the mark it goes on, twice as far
set_("readahead=default", file.path)
file.expect(1, 300, "none")
set_("readahead=fixed")                     # as large as may be
set_("read_ahead_kb=32")
set_("readahead=default", other.path)
file.expect(8, 400, "fixed")
set_("read_ahead_kb=64", file.path)
file.expect(16, 500, "fixed")
other.expect(8, 500, "fixed")
assert pages(file.path)["read_ahead_kb"] == 64 and pages(other.path)["read_ahead_kb"] == 32
set_("read_ahead_kb=default", file.path)
file.expect(8, 600, "fixed")
set_("readahead=linux:large_folios")
file.expect(1, 900, "linux")
END
unmount_volume

# --- the kernel's decisions --------------------------------------------------------------------

is_root || skip 'comparing with the kernel: only root can mount ext4 (the rest passed)'
need mkfs.ext4 losetup mountpoint
ext4=$T/ext4
truncate -s 64M "$T/image"
mkfs.ext4 -q -F "$T/image" >"$T/out" 2>&1 || skip "mkfs.ext4: $(cat "$T/out") (the rest passed)"
mkdir "$ext4"

# shellcheck disable=SC2046 # flags are words
"${CC:-cc}" -std=gnu17 -O1 -g -D_GNU_SOURCE -D_FILE_OFFSET_BITS=64 -I "$source_dir" -o "$T/compare" \
    "$source_dir"/tests/ra_compare.c "$source_dir"/cache/*.c \
    $(printf "$source_dir/store/%s.c " bio device dev_memory plug) \
    $(pkg-config --cflags --libs liburcu-memb) -pthread || fail 'ra_compare.c does not compile'

start_random
with_ext4() # OPTIONS
{
    mount -o "loop,noatime,$1" "$T/image" "$ext4" 2>"$T/out" ||
        skip "cannot mount ext4 on a loop device: $(cat "$T/out") (the rest passed)"
    bdi=/sys/class/bdi/$(mountpoint -d "$ext4")
    loop=$(losetup -n -O NAME -j "$T/image" | head -n 1)
    # The largest request decides how far a read that is larger than the window is read at once.
    echo 1024 2>"$T/out" >"/sys/block/${loop#/dev/}/queue/max_sectors_kb" ||
        skip "cannot set max_sectors_kb of $loop (the rest passed)"
}
compare() # POLICY KB STEPS
{
    echo "$2" 2>"$T/out" >"$bdi/read_ahead_kb" || skip "cannot set read_ahead_kb (the rest passed)"
    timeout 600 "$T/compare" "$ext4" "$1" "$2" "$seed" "$3" >"$T/compared" 2>&1
    status=$?
    say "$1, read_ahead_kb=$2, Linux $(uname -r): $(tail -n 1 "$T/compared")"
    [ "$status" -ne 2 ] || skip "$(cat "$T/compared") (the rest passed)"
    [ "$status" -eq 0 ] || fail "$1, read_ahead_kb=$2, seed $seed: $(cat "$T/compared")"
}
# With data=journal ext4 has no large folios.
with_ext4 data=journal
compare linux 128 "$FOLIO_STEPS"
compare linux 60 $((FOLIO_STEPS / 2))
umount "$ext4"

# Does the running kernel give ext4 large folios otherwise? Then windows end where linux alone would
# not have them end.
with_ext4 data=ordered
echo 128 >"$bdi/read_ahead_kb"
if timeout 60 "$T/compare" "$ext4" linux 128 1024 'r0,1*40+1' >"$T/compared" 2>&1; then
    say 'no large folios on ext4 here: linux:large_folios is not compared'
else
    compare linux:large_folios 128 "$FOLIO_STEPS"
    compare linux:large_folios 60 $((FOLIO_STEPS / 2))
    compare linux:large_folios 512 $((FOLIO_STEPS / 2))
fi
umount "$ext4"
say passed
