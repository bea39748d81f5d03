#!/bin/sh
# There is no room for the store's commits for longer than it tries again after other errors: nothing is given up, and all
# is durable once there is.
. "$(dirname -- "$0")/lib.sh"
ctl=$FOLIO_BIN/foliofsctl

make_volume
mount_volume -o inject,commit=1
wait_for_control
"$ctl" "$M" inject --enospc --commits || fail inject
head -c 300000 /dev/urandom >"$M/file"
cksum <"$M/file" >"$T/sum"
mkdir "$M/dir"
until_true 100 "$ctl" "$M" sync >"$T/out" 2>&1 && fail 'a commit succeeded'
grep -q 'takes no changes' "$T/daemon.out" && fail 'it was given up'
echo more >"$M/more" || fail 'it takes no changes'
"$ctl" "$M" inject --clear || fail inject
until_true 30 "$ctl" "$M" sync >"$T/out" 2>&1 || fail "there is room again: $(cat "$T/out")"
kill_daemon
detach "$M"
check_volume
mount_volume
cksum <"$M/file" | cmp -s - "$T/sum" || fail 'the content is lost'
[ -d "$M/dir" ] || fail 'a directory is lost'
[ "$(cat "$M/more")" = more ] || fail 'a late change is lost'
unmount_volume
