#!/bin/sh
# The layering: fs -> cache -> store, and who alone may name LMDB, FUSE, threads and clocks. libfolio,
# which programs load, knows none of the rest.
set -u
cd "$(dirname -- "$0")/.." || exit 1

bad=0
work=$(mktemp -d) || exit 1
trap 'rm -rf "$work"' EXIT
trap 'exit 1' INT TERM

# Print a C file without its comments, the line numbers kept.
without_comments()
{
    awk '{
        line = $0; out = ""
        while (line != "") {
            if (inside) {
                end = index(line, "*/")
                if (!end) break
                line = substr(line, end + 2); inside = 0
            } else {
                block = index(line, "/*"); rest = index(line, "//")
                if (rest && (!block || rest < block)) { out = out substr(line, 1, rest - 1); break }
                if (!block) { out = out line; break }
                out = out substr(line, 1, block - 1) " "
                line = substr(line, block + 2); inside = 1
            }
        }
        print out
    }' "$1"
}

# forbid REGEX WHY FILE...: no line of the files matches.
forbid()
{
    regex=$1 why=$2
    shift 2
    [ $# -gt 0 ] || return 0 # grep would read its standard input
    for file in "$@"; do
        [ ! -f "$file" ] || [ -f "$work/$file" ] && continue
        mkdir -p "$work/${file%/*}"
        without_comments "$file" >"$work/$file"
    done
    found=$(cd "$work" && grep -HnsE "$regex" "$@") || return 0
    printf '%s\n' "$found" | sed 's|^\([^:]*:[0-9]*\):[[:space:]]*|\1: |'
    echo "    $why"
    bad=1
}

# Names of the files, given as patterns, that match none of the patterns after "except".
files()
{
    for file in $1; do
        [ -f "$file" ] || continue
        for allowed in $2; do
            case $file in $allowed) continue 2 ;; esac
        done
        echo "$file"
    done
}

inc='^[[:space:]]*#[[:space:]]*include[[:space:]]*'
set -f # patterns stay patterns until files() expands them
expand() { set +f; files "$1" "$2"; set -f; }

forbid "$inc[<\"](\.\./|fs/)" 'store and cache do not know fs' \
    $(expand 'store/*.[ch] cache/*.[ch]' '')
forbid "$inc[<\"](\.\./|cache/)" 'store does not know cache' $(expand 'store/*.[ch]' '')
forbid "$inc[<\"](\.\./|tests/|bench/)" 'the programs do not know their tests' \
    $(expand 'store/*.[ch] cache/*.[ch] fs/*.[ch]' '')
forbid "$inc<lmdb\.h>" 'only store/lmdb* talks to LMDB' \
    $(expand 'store/*.[ch] cache/*.[ch] fs/*.[ch]' 'store/lmdb*.[ch]')
forbid "$inc<(fuse3/)?fuse[a-z_]*\.h>" 'only fs/fuse_*, fs/main.c and the bare server talk to libfuse' \
    $(expand 'store/*.[ch] cache/*.[ch] fs/*.[ch] tests/*.[ch] bench/*.[ch]' \
        'fs/fuse_*.[ch] fs/main.c bench/null_fuse.c')
forbid '(^|[^[:alnum:]_])(pthread_create|thrd_create)[[:space:]]*\(' \
    'only worker.c and libfolio start threads' \
    $(expand 'store/*.[ch] cache/*.[ch] fs/*.[ch]' '*/worker.c */libfolio_keeper.c')
client=$(expand 'cache/libfolio*.[ch] cache/attach_proto.h cache/folio.h' '')
forbid "$inc<(fuse|lmdb|urcu|jansson|isa-l|bsd)" 'libfolio needs nothing but the C library' $client
own='"cache/(attach_proto|folio|libfolio)\.h"'
for file in $client; do
    found=$(without_comments "$file" | grep -nE "$inc\"" | grep -vE "$own") || continue
    printf '%s: %s\n' "$file" "$found" '    libfolio knows neither cache nor store'
    bad=1
done
forbid '(^|[^[:alnum:]_.>])(clock_gettime|gettimeofday|timespec_get|time)[[:space:]]*\(' \
    'cache is told the time; only cache/clock.c and libfolio read it' \
    $(expand 'cache/*.[ch]' 'cache/clock.c cache/libfolio_robust.c')

exit $bad
