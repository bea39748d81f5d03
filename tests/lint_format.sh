#!/bin/sh
# Every source file is as clang-format leaves it. "lint_format.sh --fix" makes it so.
set -u
cd "$(dirname -- "$0")/.." || exit 1

if ! command -v clang-format >/dev/null; then
    echo 'SKIP: clang-format is not installed'
    exit 77
fi
case ${1-} in
'') set -- --dry-run -Werror ;;
--fix) set -- -i ;;
*)
    echo 'usage: lint_format.sh [--fix]' >&2
    exit 2
    ;;
esac
find cache store fs tests bench -name '*.[ch]' -print0 2>/dev/null |
    xargs -0 -r clang-format --style=file "$@" || {
    echo 'to mend it: sh tests/lint_format.sh --fix'
    exit 1
}
