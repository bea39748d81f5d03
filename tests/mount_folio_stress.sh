#!/bin/sh
# What folio-stress does where it cannot do its work, and what it leaves behind.
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

# --- what FUSE does not hold is left out --------------------------------------------------------

make_volume
mount_volume
says 0 'not supported here: tail' "$stress" --seconds 2 "$M"
says 77 'tail' "$stress" --only tail "$M"
leaves_nothing "$M"
unmount_volume
say passed
