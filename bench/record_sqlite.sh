#!/bin/sh
# Record the page accesses of sqlite3 as a trace for hitratio, on standard output.
#
#   sh bench/record_sqlite.sh > TRACE
#
# A table of 120,000 rows with two indexes (about 40 MiB), and 30 rounds of: point queries of which few
# rows get many, ranges by an index, updates, and in every tenth round a pass over the whole table.
# sqlite keeps 16 pages itself, so nearly all it touches is asked of the system. Needs sqlite3, strace.
set -eu
T=$(mktemp -d)
trap 'rm -rf "$T"' EXIT
command -v sqlite3 >/dev/null && command -v strace >/dev/null || {
    echo 'record_sqlite.sh: needs sqlite3 and strace' >&2
    exit 77
}

sqlite3 "$T/db" >/dev/null <<'SQL'
pragma page_size = 4096; pragma journal_mode = off; pragma synchronous = off;
create table o (id integer primary key, customer int, at int, note text);
with recursive n(i) as (select 1 union all select i + 1 from n where i < 120000)
insert into o select i, (i * 7919) % 5003, (i * 104729) % 1000003, printf('%.*c', 180 + i % 200, 'x')
from n;
create index o_customer on o (customer);
create index o_at on o (at);
SQL

awk 'BEGIN {
    srand(1)
    print "pragma cache_size = 16; pragma mmap_size = 0; pragma synchronous = off;"
    print "pragma journal_mode = truncate; pragma locking_mode = exclusive;"
    for (round = 1; round <= 30; round++) {
        for (i = 0; i < 300; i++) {
            id = int(120000 ^ rand())
            print "select length(note) from o where id = " (id * 7919) % 120000 + 1 ";"
        }
        for (i = 0; i < 12; i++)
            print "select sum(length(note)) from o where customer = " int(5003 ^ rand()) ";"
        print "begin;"
        for (i = 0; i < 20; i++)
            print "update o set at = at + 1 where id = " int(120000 ^ rand()) ";"
        print "commit;"
        if (round % 10 == 0)
            print "select sum(length(note)) from o;"
    }
}' >"$T/sql"

strace -o "$T/strace" -y -s 0 -e trace=pread64,pwrite64 sqlite3 "$T/db" <"$T/sql" >/dev/null

# Lines such as: pread64(3</tmp/db>, ""..., 4096, 8192) = 4096. Neighbours become one line.
sed -n 's/^p[a-z]*64([0-9]*<\([^>]*\)>, .*, \([0-9]*\), \([0-9]*\)) *= [0-9]*$/\1 \2 \3/p' \
    "$T/strace" | awk '
    function flush() { if (count) print file, first, count }
    {
        f = $1 ~ /journal$/ ? 1 : 0
        for (page = int($3 / 4096); page * 4096 < $3 + $2; page++)
            if (count && f == file && page == first + count) count++
            else { flush(); file = f; first = page; count = 1 }
    }
    END { flush() }'
