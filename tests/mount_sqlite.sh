#!/bin/sh
# SQLite keeps its promises on a mount: WAL and DELETE, with mmap_size, by sqlite3 and by Python.
. "$(dirname -- "$0")/lib.sh"
need sqlite3 python3

sql() # DATABASE, statements on standard input
{
    sqlite3 -bail "$1" 2>"$T/sql.err" || fail "$cache: sqlite3: $(cat "$T/sql.err")"
}

fill() # DATABASE JOURNAL_MODE
{
    sql "$1" >"$T/sql.out" <<END
PRAGMA mmap_size=268435456;
PRAGMA journal_mode=$2;
PRAGMA synchronous=FULL;
CREATE TABLE t(id INTEGER PRIMARY KEY, name TEXT, payload BLOB);
CREATE INDEX t_name ON t(name);
BEGIN;
WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i < 20000)
    INSERT INTO t SELECT i, 'name' || (i * 7919 % 20011), randomblob(100 + i % 700) FROM n;
COMMIT;
UPDATE t SET payload = randomblob(900) WHERE id % 7 = 0;
DELETE FROM t WHERE id % 11 = 0;
BEGIN; DELETE FROM t; ROLLBACK;
VACUUM;
SELECT count(*) FROM t;
END
    [ "$(tail -n 1 "$T/sql.out")" = 18182 ] || fail "$cache $2: $(cat "$T/sql.out")"
}

verify() # DATABASE WHEN
{
    printf 'PRAGMA mmap_size=268435456;\nPRAGMA integrity_check;\n' | sql "$1" >"$T/sql.out"
    [ "$(tail -n 1 "$T/sql.out")" = ok ] || fail "$cache $2: $(tail -n 5 "$T/sql.out")"
}

# Writers and readers at once, each in a process of its own, through Python's library.
python_users() # DATABASE
{
    python3 - "$1" <<'END' || fail "$cache: Python's writers and readers"
import multiprocessing, sqlite3, sys

def connect():
    db = sqlite3.connect(sys.argv[1], timeout=60, isolation_level=None)
    db.execute("PRAGMA mmap_size=67108864")
    return db

def writer(me):
    db = connect()
    for i in range(30):
        db.execute("BEGIN IMMEDIATE")
        db.execute("UPDATE account SET amount = amount - 1 WHERE id = ?", (i % 10,))
        db.execute("UPDATE account SET amount = amount + 1 WHERE id = ?", ((i + me) % 10,))
        db.execute("INSERT INTO log VALUES (?, ?)", (me, i))
        db.execute("COMMIT")

def reader():
    db = connect()
    for _ in range(100):
        (total,) = db.execute("SELECT sum(amount) FROM account").fetchone()
        assert total == 1000, total

db = connect()
db.execute("CREATE TABLE account(id INTEGER PRIMARY KEY, amount INTEGER)")
db.execute("CREATE TABLE log(who INTEGER, what INTEGER)")
db.executemany("INSERT INTO account VALUES (?, 100)", [(i,) for i in range(10)])
db.close()
people = [multiprocessing.Process(target=writer, args=(i,)) for i in range(3)]
people += [multiprocessing.Process(target=reader) for _ in range(2)]
for p in people:
    p.start()
for p in people:
    p.join()
assert all(p.exitcode == 0 for p in people)
db = connect()
assert db.execute("SELECT count(*) FROM log").fetchone() == (90,)
assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
END
}

for cache in kernel direct; do
    make_volume
    mount_volume -o cache=$cache
    for mode in WAL DELETE; do
        fill "$M/$mode.db" $mode
        verify "$M/$mode.db" "$mode after filling"
        python_users "$M/$mode.db"
        verify "$M/$mode.db" "$mode after Python"
        printf 'SELECT id, name, payload FROM t ORDER BY id;\n' | sql "$M/$mode.db" |
            cksum >"$T/$mode.sum"
    done
    unmount_volume
    check_volume "$cache"
    mount_volume -o cache=$cache
    for mode in WAL DELETE; do
        verify "$M/$mode.db" "$mode after a remount"
        printf 'SELECT id, name, payload FROM t ORDER BY id;\n' | sql "$M/$mode.db" | cksum |
            cmp -s - "$T/$mode.sum" || fail "$cache $mode: other rows after a remount"
    done
    unmount_volume
done
say passed
