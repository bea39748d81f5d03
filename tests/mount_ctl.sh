#!/bin/sh
# foliofsctl tells what the daemon does, changes what can be changed, and lets only the owner in.
. "$(dirname -- "$0")/lib.sh"
need python3
ctl=$FOLIO_BIN/foliofsctl

# value FILE EXPRESSION: of a reply j
value()
{
    python3 -c 'import json, sys
j = json.load(open(sys.argv[1]))
print(eval(sys.argv[2]))' "$1" "$2" || fail "no $2 in $(head -c 2000 "$1")"
}
ask() # COMMAND...: reply in $T/reply
{
    timeout 30 "$ctl" --json "$M" "$@" >"$T/reply" 2>"$T/error" ||
        fail "foliofsctl $*: $(cat "$T/error")"
    [ "$(value "$T/reply" 'j["ok"]')" = True ] || fail "foliofsctl $*: $(cat "$T/reply")"
}
shows() # TEXT COMMAND...
{
    text=$1
    shift
    timeout 30 "$ctl" "$M" "$@" >"$T/table" 2>&1 || fail "foliofsctl $*: $(cat "$T/table")"
    grep -qE -- "$text" "$T/table" || fail "foliofsctl $*: $text is not in $(cat "$T/table")"
}
refuses() # STATUS PATTERN COMMAND...
{
    want=$1 pattern=$2
    shift 2
    timeout 30 "$@" >"$T/out" 2>&1
    got=$?
    [ "$got" -eq "$want" ] || fail "$*: exit status $got, not $want: $(cat "$T/out")"
    [ "$(wc -l <"$T/out")" -eq 1 ] || fail "$*: not one line: $(cat "$T/out")"
    grep -qE -- "$pattern" "$T/out" || fail "$*: $pattern is not in: $(cat "$T/out")"
}

make_volume -L 'a label' -s 1G
others=
is_root && others=,allow_other
mount_volume -o "cache=direct,commit=3600,dirty_writeback=3600,dirty_expire=3600$others"
wait_for_control

# --- version, help -----------------------------------------------------------------------------

shows 'label "a label", capacity 1.0 GiB' version
ask version
[ "$(value "$T/reply" 'j["pid"]')" -eq "$daemon" ] || fail "version: another pid than $daemon"
"$ctl" --help | grep -q 'usage: foliofsctl' || fail '--help'
"$ctl" --version | grep -q '^foliofsctl [0-9]' || fail '--version'

# --- stats, pages: writing ---------------------------------------------------------------------

dd if=/dev/urandom of="$M/file" bs=4096 count=100 2>/dev/null
ask stats
value "$T/reply" '"numbers only" if all(type(n) is int for p in j["stats"].values() for n in p.values()) else "?"' |
    grep -q 'numbers only' || fail 'stats: not all are numbers'
[ "$(value "$T/reply" 'j["stats"]["cache"]["dirty"]')" -ge 100 ] || fail 'stats: 100 dirty pages'
[ "$(value "$T/reply" 'j["stats"]["memory"]["pages_bytes"]')" -ge 409600 ] || fail 'stats: memory'
value "$T/reply" '"%(per_page_struct_bytes)d, and %(per_page_tree_bytes)d of tree nodes" % j["stats"]["memory"]' >"$T/per_page"
echo "bytes per page beside its data: $(cat "$T/per_page")"
value "$T/reply" '0 < j["stats"]["memory"]["per_page_struct_bytes"] <= 64' | grep -q True ||
    fail "stats: per page $(cat "$T/per_page")"
# Some 100 pages fill two leaves of 64.
value "$T/reply" '0 < j["stats"]["memory"]["per_page_tree_bytes"] <= 64' | grep -q True ||
    fail "stats: per page $(cat "$T/per_page")"
shows 'per page struct +[0-9]+ ' stats
shows 'per page tree +[0-9]+ ' stats
[ "$(value "$T/reply" 'j["stats"]["operations"]["writes"]')" -ge 100 ] || fail 'stats: writes'
shows 'capacity +[0-9,]+ +1.0 GiB' stats
ask pages "$M/file"
[ "$(value "$T/reply" 'sum(r["count"] for r in j["ranges"] if "dirty" in r["flags"])')" -eq 100 ] ||
    fail "pages: 100 dirty: $(cat "$T/reply")"
[ "$(value "$T/reply" 'j["ranges"][0]["index"]')" -eq 0 ] || fail 'pages: index 0'
value "$T/reply" 'all("uptodate" in r["flags"] for r in j["ranges"])' | grep -q True ||
    fail 'pages: a dirty page that is not uptodate'
shows 'uptodate dirty' pages "$M/file"

# --- sync: durable, and clean ------------------------------------------------------------------

commits=$(stat_of store.commits)
ask sync
[ "$(stat_of cache.dirty)" -eq 0 ] || fail 'sync: still dirty'
[ "$(stat_of store.commits)" -gt "$commits" ] || fail 'sync: no commit'
fsyncs=$(stat_of operations.fsyncs)
sync "$(find "$M" -type f | head -n 1)" "$M"
[ $(($(stat_of operations.fsyncs) - fsyncs)) -eq 2 ] || fail 'fsyncs: a file and a directory are not 2'
ask pages "$M/file"
[ "$(value "$T/reply" 'sum(r["count"] for r in j["ranges"] if "dirty" in r["flags"])')" -eq 0 ] ||
    fail 'pages: dirty after sync'
sum=$(cksum <"$M/file")
kill_daemon
detach "$M"
check_volume 'a kill after sync'
mount_volume -o "cache=direct$others"
wait_for_control
[ "$(cksum <"$M/file")" = "$sum" ] || fail 'sync: lost after a kill'

# --- drop: pages go, and come back from the store ----------------------------------------------

cat "$M/file" >/dev/null
ask pages "$M/file"
[ "$(value "$T/reply" 'j["cached"]')" -eq 100 ] || fail "pages: not 100 cached: $(cat "$T/reply")"
ask drop
[ "$(value "$T/reply" 'j["pages"]')" -ge 100 ] || fail "drop: $(cat "$T/reply")"
ask pages "$M/file"
[ "$(value "$T/reply" 'j["cached"]')" -eq 0 ] || fail 'drop: pages are still there'
reads=$(stat_of cache.read_pages)
[ "$(cksum <"$M/file")" = "$sum" ] || fail 'drop: other content'
[ $(($(stat_of cache.read_pages) - reads)) -eq 100 ] || fail 'drop: not 100 pages read'
hits=$(stat_of cache.hits)
cat "$M/file" >/dev/null
[ "$(stat_of cache.hits)" -gt "$hits" ] || fail 'a second reading hits nothing'
shows 'dropped [0-9,]+ pages \([0-9.]+ [KMGi]*B\) and [0-9,]+ inodes' drop

# A large file comes in several replies: every second page, so many ranges.
python3 - "$M/striped" <<'END'
import os, sys
f = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)
for i in range(3000):
    os.pwrite(f, b"x", i * 8192)
END
ask pages "$M/striped"
[ "$(value "$T/reply" 'sum(r["count"] for r in j["ranges"])')" -eq 3000 ] || fail 'pages: not 3000'
value "$T/reply" '[r["index"] for r in j["ranges"]] == list(range(0, 6000, 2))' | grep -q True ||
    fail 'pages: not every second'
[ "$("$ctl" "$M" pages "$M/striped" | wc -l)" -eq 3001 ] || fail 'pages: a table of 3000 lines'

# --- readahead: the window doubles -------------------------------------------------------------

dd if=/dev/urandom of="$M/sequential" bs=1M count=4 2>/dev/null
ask sync
unmount_volume
mount_volume -o "cache=direct,readahead=linux$others"
wait_for_control
python3 - "$M" "$ctl" <<'END' || fail 'the readahead window does not grow'
import json, os, subprocess, sys
mnt, ctl = sys.argv[1:]
f = os.open(mnt + "/sequential", os.O_RDONLY)

def cached():
    out = subprocess.run([ctl, "--json", mnt, "pages", mnt + "/sequential"], check=True, capture_output=True)
    return json.loads(out.stdout)["cached"]

# Read 4 KiB at a time, and see by how much the cache grows each time it does. What is read ahead is
# inserted before the read returns, so no waiting here.
steps, before = [], 0
for i in range(100):
    os.pread(f, 4096, i * 4096)
    now = cached()
    if now > before:
        steps.append(now - before)
        before = now
print("pages by which the cache grew:", steps)
growing = steps[:4]
if not all(b >= 2 * a for a, b in zip(growing, growing[1:]) if a < 16) or max(steps) < 32:
    sys.exit(1)
END
[ "$(stat_of readahead.pages)" -gt 90 ] || fail 'stats: nothing was read ahead'
[ "$(stat_of readahead.async_windows)" -ge 1 ] || fail 'stats: no window was asynchronous'

# --- set ---------------------------------------------------------------------------------------

for setting in cache_size=32M dirty_ratio=30 dirty_background_ratio=5 dirty_expire=10 \
    dirty_writeback=1 commit=1 readahead=none; do
    ask set $setting
    [ "$(value "$T/reply" 'j["name"] + "=" + j["value"]')" = $setting ] || fail "set $setting"
done
shows '^commit=2$' set commit=2
refuses 1 'cache_size, dirty_ratio, .*commit, fault_around, store_around, readahead, read_ahead_kb, reclaim' "$ctl" "$M" set nosuch=1
for setting in cache_size=much cache_size=1 cache_size=900T dirty_ratio=0 dirty_ratio=101 \
    dirty_background_ratio=90 dirty_expire=-1 commit=0 commit=nan commit=3601 commit=0.5 readahead=psychic; do
    refuses 1 "${setting%%=*}" "$ctl" "$M" set $setting
done
refuses 1 'from 64 KiB to' "$ctl" "$M" set cache_size=900T
refuses 2 'NAME=VALUE' "$ctl" "$M" set commit
# they work: a limit is kept
ask drop
ask set cache_size=1M
cat "$M/sequential" >/dev/null
pages=$(stat_of cache.pages)
[ "$pages" -le 256 ] || fail "set cache_size=1M: $pages pages"
# a commit comes by itself
ask set commit=1
commits=$(stat_of store.commits)
touch "$M/touched"
committed()
{
    [ "$(stat_of store.commits)" -gt "$commits" ]
}
until_true 10 committed || fail 'set commit=1: no commit within 10 s'
# no readahead for what is opened now
ask set cache_size=32M
ask drop
python3 -c 'import os, sys
f = os.open(sys.argv[1], os.O_RDONLY)
for i in range(20):
    os.pread(f, 4096, i * 4096)' "$M/sequential"
ask pages "$M/sequential"
[ "$(value "$T/reply" 'j["cached"]')" -eq 20 ] || fail "set readahead=none: $(cat "$T/reply")"

# --- what it is not for ------------------------------------------------------------------------

refuses 1 'not on the mount' "$ctl" "$M" pages /etc/passwd
refuses 1 'No such file' "$ctl" "$M" pages "$M/missing"
mkdir "$M/dir"
refuses 1 'not a regular file' "$ctl" "$M" pages "$M/dir"
refuses 1 'not on a FolioFS mount' "$ctl" "$T" stats
timeout 30 "$ctl" "$M/dir" version >/dev/null || fail 'a path inside the mount'

# --- strangers, and clients that misbehave -----------------------------------------------------

if is_root && command -v setpriv >/dev/null; then
    # From inside $T: nobody need not be able to walk there.
    cp "$ctl" "$T/foliofsctl"
    (
        cd "$T" || exit 1
        refuses 1 'not permitted' setpriv --reuid=65534 --regid=65534 --clear-groups \
            ./foliofsctl mnt stats
    ) || exit 1
    where=$(python3 -c 'import os, sys
d = os.stat(sys.argv[1]).st_dev
print("/run/foliofs/%d:%d" % (os.major(d), os.minor(d)))' "$M")
    [ -S "$where" ] || fail "$where is not a socket"
    [ "$(stat -c '%a %u' "$where" "${where%/*}" | tr '\n' ' ')" = '600 0 700 0 ' ] ||
        fail "modes of $where: $(stat -c '%a %u' "$where" "${where%/*}")"
    # straight to the socket: rubbish gets an answer, silence is put up with
    python3 - "$where" <<'END' || fail 'clients that misbehave'
import json, socket, sys, time
def connect():
    s = socket.socket(socket.AF_UNIX)
    s.settimeout(20)
    s.connect(sys.argv[1])
    return s
def ask(line):
    s = connect()
    s.sendall(line)
    reply = b""
    while True:
        piece = s.recv(65536)
        if not piece:
            return json.loads(reply) if reply else None
        reply += piece
for line in (b"\n", b"rubbish\n", b"[]\n", b"{}\n", b'{"cmd": 5}\n', b'{"cmd": "nosuch"}\n', b"\xff\xfe\n",
             b'{"cmd": "stats", "protocol": 99}\n', b'{"cmd": "pages"}\n', b'{"cmd": "pages", "args": {"ino": -1}}\n',
             b'{"cmd": "pages", "args": {"ino": 999999999}}\n', b'{"cmd": "set", "args": []}\n', b"[" * 4000 + b"\n"):
    reply = ask(line)
    assert reply["ok"] is False and reply["error"], (line, reply)
stuck = [connect() for _ in range(2)]  # as many as there are threads: they are waited for, not for ever
stuck[0].send(b'{"cmd"')
begin = time.time()
assert ask(b'{"cmd": "version"}\n')["ok"] is True
assert time.time() - begin < 15
gone = connect()
gone.send(b'{"cmd": "stats"}\n')
gone.close()
assert ask(b'{"cmd": "version", "protocol": 1, "args": {}}\n')["ok"] is True
END
fi

# --- a daemon that does not answer, and one that is gone ---------------------------------------

all_stopped() # kill(1) does not wait for its threads
{
    for thread in "/proc/$daemon/task"/*/stat; do
        case $(sed 's/.*) //' "$thread" 2>/dev/null) in
        '' | T*) ;;
        *) return 1 ;;
        esac
    done
}
kill -s STOP "$daemon"
until_true 10 all_stopped || fail 'the daemon does not stop'
refuses 1 'does not answer' "$ctl" "$M" version
kill -s CONT "$daemon"
ask version
kill_daemon
refuses 1 'gone; unmount' "$ctl" "$M" stats
detach "$M"

# --- asked while it ends -----------------------------------------------------------------------

ask_again_and_again()
{
    while "$ctl" --json "$M" stats >/dev/null 2>&1; do
        :
    done
}
for _ in 1 2 3 4 5 6; do
    mount_volume -o cache=direct
    wait_for_control
    ask_again_and_again &
    asker=$!
    note_process "$asker"
    ask version
    unmount_volume
    wait "$asker"
    rm -f "$T/pids/$asker"
done

# --- sockets -----------------------------------------------------------------------------------

# A mount's device number is another's as soon as it is unmounted: what that one put at the place of our
# sockets meanwhile stays there.
if is_root; then
    mount_volume -o cache=direct
    wait_for_control
    dev=$(mountpoint -d "$M")
    for socket in /run/foliofs/"$dev" /run/foliofs-attach/"$dev"; do
        [ -S "$socket" ] || fail "$socket: there is none"
        rm "$socket"
        echo "another's" >"$socket"
    done
    unmount_volume
    for socket in /run/foliofs/"$dev" /run/foliofs-attach/"$dev"; do
        [ -f "$socket" ] || fail "$socket: removed, though it was another's"
        rm "$socket"
    done
else
    say "[SKIP] another mount's sockets: not root"
fi
say passed
