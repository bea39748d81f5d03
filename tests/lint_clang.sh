#!/bin/sh
# clang has nothing to say of any file (-Wthread-safety, which gcc does not have). Nothing is built.
set -u
cd "$(dirname -- "$0")/.." || exit 1

for tool in clang python3; do
    if ! command -v "$tool" >/dev/null; then
        echo "SKIP: $tool is not installed"
        exit 77
    fi
done
log=$(mktemp) || exit 1
trap 'rm -f "$log"' EXIT
cmake --preset clang >"$log" 2>&1 || { cat "$log"; exit 1; }
cd build/clang || exit 1
python3 -c 'import json
for file in json.load(open("compile_commands.json")):
    print(file["command"] + " -fsyntax-only")' | xargs -d '\n' -n 1 -P "$(nproc)" sh -c
