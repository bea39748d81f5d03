#!/bin/sh
# clang builds everything, with nothing to say of it (-Wthread-safety, which gcc does not have).
set -u
cd "$(dirname -- "$0")/.." || exit 1

if ! command -v clang >/dev/null; then
    echo 'SKIP: clang is not installed'
    exit 77
fi
log=$(mktemp) || exit 1
trap 'rm -f "$log"' EXIT
cmake --preset clang >"$log" 2>&1 && cmake --build --preset clang -j "$(nproc)" >>"$log" 2>&1 && exit
cat "$log"
exit 1
