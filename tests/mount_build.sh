#!/bin/sh
# FolioFS builds on a mounted FolioFS, and one of its unit tests runs from there.
. "$(dirname -- "$0")/lib.sh"
need cmake ninja "${CC:-cc}" pkg-config

make_volume
mount_volume
mkdir "$M/source"
for part in CMakeLists.txt CMakePresets.json store cache fs tests bench; do
    [ ! -e "$source_dir/$part" ] || cp -a "$source_dir/$part" "$M/source/" || fail "cp $part"
done

cd "$M/source" || fail cd
# Every program, and one small test, is enough to have compiled, archived and linked everything.
cmake -S . -B "$M/build" -G Ninja -DCMAKE_BUILD_TYPE=Debug -DFOLIO_BENCH=OFF \
    >"$T/build.out" 2>&1 || fail "cmake: $(tail -n 20 "$T/build.out")"
cmake --build "$M/build" -j 2 --target foliofs mkfs.foliofs fsck.foliofs foliofsctl test_radix \
    >>"$T/build.out" 2>&1 || fail "build: $(tail -n 20 "$T/build.out")"
cd /
"$M/build/bin/foliofs" --version >/dev/null || fail 'the foliofs built there does not run'
test_radix=$(find "$M/build" -name test_radix -type f | head -n 1)
[ -n "$test_radix" ] || fail 'test_radix was not built'
timeout 120 "$test_radix" >"$T/test.out" 2>&1 || fail "test_radix: $(tail -n 20 "$T/test.out")"
"$M/build/bin/mkfs.foliofs" "$M/nested" >"$T/mkfs.out" 2>&1 ||
    fail "mkfs of a volume on the mount: $(cat "$T/mkfs.out")"
"$M/build/bin/fsck.foliofs" -n "$M/nested" >"$T/fsck.out" 2>&1 ||
    fail "fsck of a volume on the mount: $(cat "$T/fsck.out")"

(cd "$M" && find . -type f -exec cksum {} +) | sort >"$T/sums"
unmount_volume
check_volume
mount_volume
(cd "$M" && find . -type f -exec cksum {} +) | sort | diff "$T/sums" - ||
    fail 'files differ after a remount'
cmake --build "$M/build" --target foliofs >"$T/build.out" 2>&1 || fail "build again"
grep -q 'no work to do' "$T/build.out" ||
    fail "after a remount things are out of date: $(tail -n 3 "$T/build.out")"
unmount_volume
say passed
