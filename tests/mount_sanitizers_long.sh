#!/bin/sh
# A daemon that is watched, on mounts: other tests here, and folio-stress, with foliofs (and mkfs.foliofs and
# fsck.foliofs) built with AddressSanitizer and UndefinedBehaviorSanitizer, leaks at its end included, and with
# ThreadSanitizer. What talks to it is FOLIO_BIN's, which has no sanitizer.
#
#   FOLIO_SECONDS     of folio-stress (20)
#   FOLIO_SANITIZERS  which of them ("address,undefined thread")
. "$(dirname -- "$0")/lib.sh"
need cmake ninja "${CC:-cc}" pkg-config
! grep -q '__[at]san_init' "$FOLIO_BIN/foliofs" || skip 'FOLIO_BIN has a sanitizer itself'
as_is=$FOLIO_BIN
mkdir "$T/tests"

# The others find what they need beside the programs.
build() # SANITIZER
{
    build=$T/$1
    cmake -S "$source_dir" -B "$build" -G Ninja -DCMAKE_BUILD_TYPE=Debug -DFOLIO_DEBUG=ON \
        '-DCMAKE_C_FLAGS_DEBUG=-O1 -g' "-DFOLIO_SANITIZE=$1" >"$T/build.out" 2>&1 ||
        fail "$1: cmake: $(tail -n 20 "$T/build.out")"
    cmake --build "$build" -j "$(nproc)" --target foliofs mkfs.foliofs fsck.foliofs \
        >>"$T/build.out" 2>&1 || fail "$1: build: $(tail -n 20 "$T/build.out")"
    cp "$as_is/foliofsctl" "$as_is/folio-stress" "$build/bin/" || fail 'cp'
    rm -rf "${build:?}/lib"
    ln -s "$(cd "$as_is/../lib" && pwd -P)" "$build/lib"
}

# Daemons that went to the background, or whose status nobody asks for, are heard of too.
watched() # SANITIZER LAUNCHER TEST...: one that passes with the programs as they are
{
    sanitizer=$1 launcher=$2
    shift 2
    mkdir "$T/reports"
    for test in "$@"; do
        begin=$(date +%s)
        # shellcheck disable=SC2086 # words, or none
        TMPDIR=$T/tests FOLIO_BIN=$T/$sanitizer/bin FOLIO_PARTS=$parts FOLIO_SECONDS=${FOLIO_SECONDS:-20} \
            FOLIO_MOUNT_OPTIONS='' timeout 600 $launcher sh "$source_dir/tests/mount_$test.sh" \
            >"$T/test.out" 2>&1 &
        running=$!
        note_process $running
        wait $running
        status=$?
        rm -f "$T/pids/$running"
        for report in "$T/reports"/*; do
            [ ! -f "$report" ] || fail "$sanitizer: mount_$test: $(head -n 60 "$report")"
        done
        [ $status -eq 0 ] || [ $status -eq 77 ] ||
            fail "$sanitizer: mount_$test: status $status: $(tail -n 20 "$T/test.out")"
        grep -F '[SKIP]' "$T/test.out"
        say "$sanitizer: mount_$test: status $status, $(($(date +%s) - begin)) s"
    done
    rmdir "$T/reports"
}

with_address()
{
    build address,undefined
    ASAN_OPTIONS="log_path=$T/reports/address"
    UBSAN_OPTIONS="log_path=$T/reports/undefined:print_stacktrace=1"
    export ASAN_OPTIONS UBSAN_OPTIONS
    parts='kernel attached mixed errors_attached crash_attached'
    watched address,undefined '' ctl errors inject log overlay posix tar user stress
}

# A read is answered from the pages themselves, and a write does not wait for that: as anywhere, who reads what is
# being written gets some of the old and some of the new.
with_thread()
{
    build thread
    echo race:wire_writev >"$T/not_races"
    TSAN_OPTIONS="log_path=$T/reports/thread suppressions=$T/not_races history_size=7"
    export TSAN_OPTIONS
    launcher=
    ! setarch -R true 2>/dev/null || launcher='setarch -R' # see CMakeLists.txt
    parts='kernel direct_1M attached mixed errors_mixed'
    watched thread "$launcher" ctl inject log posix user stress
}

for sanitizer in ${FOLIO_SANITIZERS:-address,undefined thread}; do
    case $sanitizer in
    address,undefined) with_address ;;
    thread) with_thread ;;
    *) fail "no sanitizer is called $sanitizer" ;;
    esac
done
say passed
