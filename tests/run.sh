#!/bin/sh
# Check everything: install what is missing, lint (and build with clang), test under the sanitizers, test on a
# mount. From any directory, as root or with sudo (only to install).
#
#   sh tests/run.sh [--long]
#
# --long adds clang-tidy and the tests labelled long.
# The last line is "N passed, N failed, N skipped"; what was skipped, and why, is listed above it.
set -u

long=
for argument in "$@"; do
    case $argument in
    --long) long=1 ;;
    *)
        echo 'usage: sh tests/run.sh [--long]' >&2
        exit 2
        ;;
    esac
done

cd "$(dirname -- "$0")/.." || exit 1
root=$(pwd -P)
jobs=$(nproc)
tmp=$(mktemp -d "${TMPDIR:-/tmp}/folio-run.XXXXXX") || exit 1
tmp=$(cd "$tmp" && pwd -P)
mkdir "$tmp/tests" # where the tests' own mktemp puts things
: >"$tmp/results"  # a line for each test: outcome, tab, stage: name, tab, reason
: >"$tmp/times"
export TMPDIR="$tmp/tests" LC_ALL=C
child=

# --- cleaning up -------------------------------------------------------------------------------

# The mount points of ours that are still there, the innermost first.
mounted()
{
    awk -v under="$tmp/" '$3 ~ /^fuse(\.foliofs)?$/ && index($2, under) == 1 { print $2 }' \
        /proc/self/mounts | sort -r
}

unmount_leftovers()
{
    mounted | while read -r where; do # (read undoes no \040: no test of ours has spaces there)
        echo "run.sh: unmounting $where, left behind by a test"
        umount -l "$where" 2>/dev/null || fusermount3 -uz "$where"
    done
}

clean_up()
{
    trap '' INT TERM HUP
    if [ -n "$child" ]; then
        kill -s TERM -- "-$child" 2>/dev/null # (dash knows no "kill -TERM --")
        for _ in 1 2 3 4 5; do
            kill -s 0 -- "-$child" 2>/dev/null || break
            sleep 1
        done
        kill -s KILL -- "-$child" 2>/dev/null
    fi
    unmount_leftovers
    rm -rf --one-file-system "$tmp"
}
trap clean_up EXIT
trap 'exit 129' HUP
trap 'exit 130' INT
trap 'exit 143' TERM

# Run a command in a process group of its own, so that clean_up can end all of it. A shell without
# job control starts background commands with SIGINT ignored, which the tests must not inherit.
run()
{
    setsid env --default-signal=INT,QUIT "$@" </dev/null &
    child=$!
    wait "$child"
    set -- $?
    child=
    return "$1"
}

# --- counting ----------------------------------------------------------------------------------

# result OUTCOME NAME [REASON]
result()
{
    printf '%s\t%s\t%s\n' "$1" "$2" "${3-}" >>"$tmp/results"
}

# Turn the JUnit file that ctest wrote into results.
read_results() # STAGE FILE
{
    awk -v stage="$1" '
        function attribute(name,   at, text) {
            at = index($0, " " name "=\"")
            if (!at) return ""
            text = substr($0, at + length(name) + 3)
            return plain(substr(text, 1, index(text, "\"") - 1))
        }
        function plain(text) {
            gsub(/&lt;/, "<", text); gsub(/&gt;/, ">", text); gsub(/&quot;/, "\"", text)
            gsub(/&apos;/, "\047", text); gsub(/&amp;/, "\\&", text); gsub(/\t/, " ", text)
            return text
        }
        function say(outcome, why) { printf "%s\t%s: %s\t%s\n", outcome, stage, name, why }
        function output_line(line) {
            line = plain(line)
            if (line ~ /^SKIP/) said = line
            if (line ~ /\[SKIP\]/) say("note", line)    # one Criterion test among others
            if (line ~ /[^[:space:]]/) last = line
        }
        /<testcase / {
            name = attribute("name"); status = attribute("status"); message = said = last = ""
        }
        /<skipped / { message = attribute("message") }
        /<system-out>/ { inside = 1; sub(/.*<system-out>/, "") }
        inside {
            line = $0
            ends = sub(/<\/system-out>.*/, "", line)
            output_line(line)
            if (ends) inside = 0
        }
        /<\/testcase>/ {
            if (status == "run") say("pass", "")
            else if (status == "fail") say("fail", "")
            else if (status == "disabled") say("skip", "disabled")
            else if (message ~ /^SKIP_/) say("skip", said ? said : last ? last : "no reason given")
            else say("fail", "did not run: " message)
        }' "$2" >>"$tmp/results"
}

# Run the tests of a build directory that have one of the labels.
run_tests() # PRESET LABEL...
{
    preset=$1
    shift
    for label in "$@"; do
        if ! ctest --test-dir "build/$preset" -N -L "^$label\$" | grep -q 'Total Tests: [1-9]'; then
            result skip "$preset: label $label" 'there is no such test'
        fi
    done
    labels="^($(echo "$*" | tr ' ' '|'))\$"
    if [ -n "$long" ]; then
        set --
    else
        set -- -LE '^long$'
    fi
    junit="$tmp/$preset.xml"
    rm -f "$junit"
    run ctest --test-dir "build/$preset" -L "$labels" "$@" -j "$jobs" --output-on-failure \
        --test-output-size-passed 1000000 --test-output-size-failed 1000000 \
        --output-junit "$junit"
    status=$?
    failed=$(count fail)
    [ -f "$junit" ] && read_results "$preset" "$junit"
    if [ "$status" -ne 0 ] && [ "$(count fail)" -eq "$failed" ]; then
        result fail "$preset: ctest" "exit status $status"
    fi
    unmount_leftovers
}

count() # OUTCOME
{
    awk -F '\t' -v outcome="$1" '$1 == outcome { n++ } END { print n + 0 }' "$tmp/results"
}

list() # OUTCOME HEADING
{
    [ "$(count "$1")" -eq 0 ] && return
    echo
    echo "$2"
    awk -F '\t' -v outcome="$1" \
        '$1 == outcome { print "    " $2 ($3 == "" ? "" : "  (" $3 ")") }' "$tmp/results"
}

# --- stages ------------------------------------------------------------------------------------

# stage NAME FUNCTION [ARGUMENT...]
stage()
{
    stage_name=$1
    shift
    printf '\n=== %s\n' "$stage_name"
    begin=$(date +%s)
    "$@"
    took=$(($(date +%s) - begin))
    printf '=== %s: %d s\n' "$stage_name" "$took"
    printf '    %5d s  %s\n' "$took" "$stage_name" >>"$tmp/times"
}

install_missing()
{
    for set in build test check; do
        run sh tests/install.sh "$set" || result fail "install: $set" 'see above'
    done
}

configure() # PRESET
{
    run cmake --preset "$1" >"$tmp/log" 2>&1 && return
    cat "$tmp/log"
    result fail "$1: configure"
    return 1
}

build() # PRESET: $targets
{
    configure "$1" || return
    # shellcheck disable=SC2086 # several words
    run cmake --build --preset "$1" -j "$jobs" --target $targets && return
    result fail "$1: build"
    return 1
}

lint()
{
    configure release && run_tests release lint
}

build_and_test() # PRESET LABEL...
{
    build "$1" && run_tests "$@"
}

targets=all
stage install install_missing
stage lint lint
stage 'asan: unit, race, sim' build_and_test asan unit race sim
stage 'tsan: race' build_and_test tsan race
# (Units and races have run, with more checks on.)
if [ -n "$long" ]; then
    stage 'release: unit, race, sim, mount' build_and_test release unit race sim mount
else
    targets='programs sim'
    stage 'release: sim, mount' build_and_test release sim mount
fi

list fail 'Failed:'
list skip 'Skipped:'
list note 'Skipped inside a test that passed or failed:'
[ -n "$long" ] || printf '\nNot asked for: clang-tidy and the tests labelled long (--long).\n'
echo
echo "Times, of $root:"
cat "$tmp/times"
echo
echo "$(count pass) passed, $(count fail) failed, $(count skip) skipped"
[ "$(count fail)" -eq 0 ]
