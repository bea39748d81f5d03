#!/bin/sh
# What is installed, under a prefix that is only given then: a program that is built by pkg-config attaches,
# and so does one with the preload library; the manual and what policies are built with are there.
. "$(dirname -- "$0")/lib.sh"
need cmake pkg-config python3
build=$(cd "$FOLIO_BIN/.." && pwd -P)
[ -f "$build/cmake_install.cmake" ] || skip "$build is no build directory"
grep -q '__[at]san_init' "$FOLIO_BIN/foliofs" && skip 'libraries with a sanitizer are not for others'
prefix=$T/prefix
cmake --install "$build" --prefix "$prefix" >"$T/out" 2>&1 || fail "cmake --install: $(tail -n 3 "$T/out")"

pc=$(find "$prefix" -name folio.pc)
PKG_CONFIG_PATH=$(dirname "$pc")
export PKG_CONFIG_PATH
libs=$(cd "$(dirname "$pc")/.." && pwd -P)
cat >"$T/program.c" <<'END'
#include <fcntl.h>
#include <folio.h>
#include <sys/mman.h>
int main(int argc, char **argv)
{
    int fd = open(argv[argc - 1], O_RDWR);
    char *p = folio_mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (p == MAP_FAILED || !folio_attached(p, 4096))
        return 1;
    p[0] = 'i';
    return folio_munmap(p, 4096);
}
END
# shellcheck disable=SC2046 # several words
"${CC:-cc}" -o "$T/program" "$T/program.c" $(pkg-config --cflags --libs folio) "-Wl,-rpath,$libs" \
    >"$T/out" 2>&1 || fail "by pkg-config: $(cat "$T/out")"
"${CC:-cc}" -shared -fPIC -I "$prefix/include/foliofs" -o "$T/policy.so" "$source_dir/tests/ra_example.c" \
    >"$T/out" 2>&1 || fail "a readahead policy: $(cat "$T/out")"
for page in folio_mmap folio_attached; do
    find "$prefix" -name "$page.3" | grep -q . || fail "there is no manual page $page.3"
done

FOLIO_BIN=$prefix/bin
make_volume -s 64M
mount_volume -o "cache=direct,readahead=$T/policy.so:4"
wait_for_control
head -c 4096 /dev/zero >"$M/file"
FOLIO_VERBOSE=1 "$T/program" "$M/file" >"$T/out" 2>&1
status=$?
grep -qi userfaultfd "$T/out" && skip "$(head -n 1 "$T/out")"
[ $status -eq 0 ] || fail "the program: status $status: $(cat "$T/out")"
[ "$(head -c 1 "$M/file")" = i ] || fail 'what it stored is not there'
before=$(stat_of faults.attached_mkwrite)
LD_PRELOAD=$libs/libfolio-preload.so python3 - "$M/file" <<'END' || fail 'python3 with the preload library'
import mmap, sys
with open(sys.argv[1], "r+b") as f:
    mmap.mmap(f.fileno(), 4096)[1:2] = b"p"
END
[ "$(head -c 2 "$M/file")" = ip ] || fail 'what python3 stored is not there'
[ "$(stat_of faults.attached_mkwrite)" -gt "$before" ] || fail 'python3 attached nothing'
unmount_volume
check_volume installed
say passed
