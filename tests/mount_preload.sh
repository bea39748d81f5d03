#!/bin/sh
# Programs that know nothing of us, with libfolio-preload: SQLite with mmap_size, LMDB with MDB_WRITEMAP,
# stress-ng's mappings of files. What they have stored is right, now and after a remount.
. "$(dirname -- "$0")/lib.sh"
need sqlite3 python3
preload=$(cd "$FOLIO_BIN/../lib" && pwd -P)/libfolio-preload.so
[ -f "$preload" ] || fail "there is no $preload"
build_helper lmdb_ops -llmdb
build_helper preload_ops -pthread

preloaded() # PROGRAM...
{
    LD_PRELOAD="$preload" timeout -s KILL 200 "$@"
}
attached() # how many pages have been faulted in or stored to so far
{
    echo $(($(stat_of faults.attached_minor) + $(stat_of faults.attached_major) +
        $(stat_of faults.attached_mkwrite)))
}
# was_attached WHAT BEFORE: the program did not go by the kernel's mmap
was_attached()
{
    [ "$(attached)" -gt "$2" ] || fail "$what: $1 attached nothing"
}

# SQLite maps its database for reading, and in WAL mode the -shm file for writing.
with_sqlite() # JOURNAL_MODE
{
    before=$(attached)
    preloaded sqlite3 -bail "$M/$1.db" >"$T/sql.out" 2>&1 <<END || fail "$what: sqlite3: $(cat "$T/sql.out")"
PRAGMA mmap_size=268435456;
PRAGMA journal_mode=$1;
PRAGMA synchronous=FULL;
CREATE TABLE t(id INTEGER PRIMARY KEY, name TEXT, payload BLOB);
CREATE INDEX t_name ON t(name);
BEGIN;
WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i < 8000)
    INSERT INTO t SELECT i, 'name' || (i * 7919 % 8009), randomblob(100 + i % 700) FROM n;
COMMIT;
UPDATE t SET payload = randomblob(900) WHERE id % 7 = 0;
DELETE FROM t WHERE id % 11 = 0;
VACUUM;
SELECT sum(length(payload)) > 0, count(*) FROM t;
PRAGMA integrity_check;
END
    [ "$(tail -n 2 "$T/sql.out" | tr '\n' ' ')" = '1|7273 ok ' ] ||
        fail "$what: sqlite3 $1: $(tail -n 5 "$T/sql.out")"
    was_attached "sqlite3 $1" "$before"
}
check_sqlite() # JOURNAL_MODE
{
    [ "$(sqlite3 "$M/$1.db" 'SELECT count(*) FROM t; PRAGMA integrity_check;' 2>&1 |
        tr '\n' ' ')" = '7273 ok ' ] || fail "$what: $1 after a remount"
}

with_lmdb()
{
    before=$(attached)
    preloaded "$T/lmdb_ops" fill "$M/lmdb" >"$T/lmdb.out" 2>&1 ||
        fail "$what: lmdb: $(cat "$T/lmdb.out")"
    preloaded "$T/lmdb_ops" verify "$M/lmdb" >"$T/lmdb.out" 2>&1 ||
        fail "$what: lmdb: $(cat "$T/lmdb.out")"
    was_attached lmdb "$before"
}

with_stress_ng()
{
    mkdir "$M/stress"
    for stressor in '--mmap 2 --mmap-file --mmap-bytes 4M' '--mmap 1 --mmap-file --mmap-async --mmap-bytes 1M' \
        '--mmap 1 --mmap-file --mmap-mprotect --mmap-bytes 2M' '--mmap 1 --mmap-file --mmap-osync --mmap-bytes 1M' \
        '--msync 2 --msync-bytes 1M' '--msyncmany 1' '--rmap 2' '--fault 1'; do
        before=$(attached)
        # shellcheck disable=SC2086 # words
        (cd "$M/stress" && preloaded stress-ng $stressor --verify -t 2) >"$T/stress.out" 2>&1 ||
            fail "$what: stress-ng $stressor: $(tail -n 12 "$T/stress.out")"
        was_attached "stress-ng $stressor" "$before"
    done
    rm -rf "$M/stress"
}

# userfaultfd(2) is left, for who may call it.
without_device() # PROGRAM...
{
    # shellcheck disable=SC2016 # expanded in there
    (exec_in_namespace sh -c '[ ! -e /dev/userfaultfd ] || mount --bind /dev/null /dev/userfaultfd; exec "$@"' sh "$@")
}

ops() # TEST [WRAPPER]
{
    head -c 65536 /dev/zero >"$M/ops"
    chmod 666 "$M/ops"
    ${2-} env LD_PRELOAD="$preload" timeout -s KILL 200 "$T/preload_ops" "$1" "$M/ops" >"$T/ops.out" 2>&1 ||
        fail "$what: preload_ops $1: status $?: $(cat "$T/ops.out")"
}

for options in cache=direct cache=kernel,attach; do
    what=$options
    make_volume -s 256M
    all=
    is_root && all=,allow_other
    mount_volume -o "$options$all"
    wait_for_control
    FOLIO_VERBOSE=1 preloaded "$T/lmdb_ops" fill "$M/first" >"$T/first" 2>&1
    ! grep -qi userfaultfd "$T/first" || skip "$(head -n 1 "$T/first")"
    rm -f "$M/first" "$M/first-lock"
    with_sqlite WAL
    with_sqlite DELETE
    with_lmdb
    before=$(attached)
    ops calls
    ops reads
    ops forbidden
    ops handler
    was_attached preload_ops "$before"
    [ -z "$all" ] || ops never
    [ -z "$all" ] || ops nobody without_device
    [ -z "$all" ] || [ ! -e /dev/userfaultfd ] || ops heir
    if command -v stress-ng >/dev/null; then
        with_stress_ng
    else
        say '[SKIP] stress-ng: it is not installed'
    fi
    unmount_volume
    check_volume "$what"
    mount_volume -o "$options"
    check_sqlite WAL
    check_sqlite DELETE
    "$T/lmdb_ops" verify "$M/lmdb" >"$T/lmdb.out" 2>&1 ||
        fail "$what: lmdb after a remount: $(cat "$T/lmdb.out")"
    unmount_volume
done
say passed
