#!/bin/sh
# cppcheck finds nothing in the code, the race tests and the benches. (Criterion's macros are not C
# to it, so the unit tests are left to the compilers.)
set -u
cd "$(dirname -- "$0")/.." || exit 1

if ! command -v cppcheck >/dev/null; then
    echo 'SKIP: cppcheck is not installed'
    exit 77
fi
files=$(find cache store fs tests bench -name '*.c' ! -name 'test_*.c' 2>/dev/null | sort)
[ -n "$files" ] || exit 0

# Of the system's headers cppcheck needs, and gets, only the one whose macros define functions.
include=$(mktemp -d) || exit 1
trap 'rm -rf "$include"' EXIT
mkdir -p "$include/bsd/sys"
ln -s /usr/include/bsd/sys/tree.h "$include/bsd/sys/tree.h"

# shellcheck disable=SC2086
cppcheck --quiet --std=c11 --language=c --enable=warning,performance,portability \
    --inline-suppr --suppress='*:*/bsd/sys/tree.h' --suppress=missingIncludeSystem \
    -D__linux__=1 -D__GNUC__=12 -D__x86_64__=1 -D_GNU_SOURCE '-DFOLIO_VERSION="0"' -DFUSE_USE_VERSION=314 \
    '-Djson_object_foreach(o,k,v)=for(k=0,v=0;;)' '-Djson_array_foreach(a,i,v)=for(i=0,v=0;;)' \
    -I . -I "$include" -j "$(nproc)" --error-exitcode=1 \
    --template='{file}:{line}: {severity}: {message} [{id}]' $files
