#!/bin/sh
# What folio-stress does where it cannot do its work, and what it leaves behind.
# shellcheck disable=SC2016 # expanded by another shell
. "$(dirname -- "$0")/lib.sh"
stress=$FOLIO_BIN/folio-stress
[ -x "$stress" ] || fail "FOLIO_BIN=$FOLIO_BIN has no folio-stress"

# says STATUS PATTERN COMMAND...
says()
{
    want=$1 pattern=$2
    shift 2
    timeout 120 "$@" >"$T/out" 2>&1 </dev/null
    got=$?
    [ "$got" -eq "$want" ] || fail "$*: exit status $got, not $want: $(tail -n 5 "$T/out")"
    grep -qE -- "$pattern" "$T/out" || fail "$*: $pattern is not in: $(tail -n 5 "$T/out")"
}
leaves_nothing() # DIR
{
    set -- "$1"/folio-stress.*
    [ ! -e "$1" ] || fail "left: $1"
}

says 2 '--seconds abc: not a number from 1 to 1000000' "$stress" -t abc "$T"
says 0 '^folio-stress [0-9]' "$stress" --version

# --- what FUSE does not hold is left out --------------------------------------------------------

make_volume
mount_volume
says 0 'not supported here: tail' "$stress" --seconds 2 "$M"
says 77 'tail' "$stress" --only tail "$M"
leaves_nothing "$M"
unmount_volume

# --- limits of its own --------------------------------------------------------------------------

mkdir "$T/dir"
says 77 'descriptors.*ulimit -n' sh -c 'ulimit -n 20; exec "$@"' sh "$stress" --seconds 1 "$T/dir"
says 77 'bytes of a file.*ulimit -f' sh -c 'ulimit -f 100; exec "$@"' sh "$stress" --seconds 1 "$T/dir"
# shellcheck disable=SC3045 # dash has -S, and so have the others
says 0 passed sh -c 'ulimit -S -n 20; exec "$@"' sh "$stress" --seconds 1 "$T/dir"
leaves_nothing "$T/dir"

# --- it is ended ------------------------------------------------------------------------------

has_begun()
{
    set -- "$T"/dir/folio-stress.*/f7
    [ -f "$1" ]
}
for signal in INT TERM; do
    env --default-signal=INT "$stress" "$T/dir" >"$T/out" 2>&1 &
    load=$!
    note_process "$load"
    until_true 20 has_begun || fail "does not begin: $(cat "$T/out")"
    sleep 0.5
    kill -s $signal "$load"
    wait "$load" 2>/dev/null
    status=$?
    rm -f "$T/pids/$load"
    [ "$status" -gt 128 ] || fail "SIG$signal: exit status $status: $(cat "$T/out")"
    leaves_nothing "$T/dir"
done

# --- what it had injected, it ends --------------------------------------------------------------

printf '%s\n' 'echo "$1" >>"$(dirname -- "$0")/injected"' >"$T/injector"
is_injecting()
{
    tail -n 1 "$T/injected" 2>/dev/null | grep -q on
}
env --default-signal=INT "$stress" --inject "sh $T/injector" "$T/dir" >"$T/out" 2>&1 &
load=$!
note_process "$load"
until_true 20 is_injecting || fail "does not inject: $(cat "$T/out")"
kill -s INT "$load"
wait "$load" 2>/dev/null
rm -f "$T/pids/$load"
! is_injecting || fail 'folio-stress was ended, and what it had injected was not'
leaves_nothing "$T/dir"

# --- a CMD that does not do what it is for ------------------------------------------------------

# After CMD kill, mount_to_crash's crasher goes on.
crasher_but() # TEXT: what is done first, or instead
{
    printf '%s\n' "$1" 'exec sh "$(dirname -- "$0")/crasher" "$1"' >"$T/crasher_but"
}
mount_to_crash cache=kernel
crasher_but '[ "$1" = kill ] && exit 0'
says 1 'killed nothing' "$stress" --without tail --seconds 2 --crash "sh $T/crasher_but" "$M"
rm -rf "$M"/folio-stress.*
crasher_but '[ "$1" != kill ] || exec sleep 100'
says 1 'HANG: .*kill.* 1 s$' "$stress" --without tail --seconds 2 --hang 1 --crash "sh $T/crasher_but" "$M"
crasher_but '[ "$1" != kill ] || exit 3'
says 1 'kill" ended with exit status 3' "$stress" --without tail --seconds 2 --crash "sh $T/crasher_but" "$M"
rm -rf "$M"/folio-stress.*
crasher_but "[ \$1 != mount ] || $FOLIO_BIN/mkfs.foliofs --force $V"
says 1 'LOST: the directory itself' "$stress" --without tail --seconds 2 --crash "sh $T/crasher_but" "$M"
unmount_to_crash
say passed
