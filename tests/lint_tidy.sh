#!/bin/sh
# clang-tidy finds nothing in any compiled file. Slow, so it is one of the long tests.
#
#   lint_tidy.sh [FILE...]    FOLIO_BUILD: a configured build directory
set -u
cd "$(dirname -- "$0")/.." || exit 1

if ! command -v clang-tidy >/dev/null; then
    echo 'SKIP: clang-tidy is not installed'
    exit 77
fi
for build in ${FOLIO_BUILD:+"$FOLIO_BUILD"} build/clang build/debug build/release build/asan; do
    [ -f "$build/compile_commands.json" ] && break
done
if ! [ -f "$build/compile_commands.json" ]; then
    echo 'lint_tidy.sh: no compile_commands.json; first: cmake --preset debug' >&2
    exit 1
fi
if [ $# -eq 0 ]; then
    set -- $(sed -n 's|^ *"file": "\(.*\)".*|\1|p' "$build/compile_commands.json" | sort -u)
fi
[ $# -gt 0 ] || exit 0
printf '%s\0' "$@" | xargs -0 -n 1 -P "$(nproc)" clang-tidy --quiet -p "$build"
