# shellcheck shell=sh
# work.sh: what the rows do. For run.sh.
#
# prepare_ROW DIR brings DIR to where the row begins, unmeasured, whatever ran before.
# row_ROW DIR does the work and sets $value, $unit (s: less is better; else more is), $p50 and $p99 in
# µs or "-". A failure ends in 1, with its reason in $T/work.out.

wrap= # what stands before the command
run() # COMMAND...: can be interrupted, and is ended with us
{
    # shellcheck disable=SC2086 # words
    timeout -k 5 "$LIMIT" $wrap "$@" >"$T/run.out" 2>"$T/work.out" </dev/null &
    child=$!
    note_process "$child"
    wait "$child"
    child_status=$?
    rm -f "$T/pids/$child"
    [ "$child_status" -eq 0 ] || echo "\"$*\" ended with status $child_status" >>"$T/work.out"
    return "$child_status"
}

seconds_of() # COMMAND...
{
    begin=$(date +%s%N)
    run "$@" || return 1
    end=$(date +%s%N)
    value=$(awk "BEGIN { print ($end - $begin) / 1e9 }") unit=s p50=- p99=-
}

# --- data --------------------------------------------------------------------------------------

fio_job() # JOB DIR
{
    export DIR="$2" SIZE QUARTER EIGHTH SYNC_SIZE SECONDS_EACH
    run env SECONDS="$SECONDS_EACH" fio --output-format=json --output="$T/fio.json" \
        "$bench/fio/$1.fio"
}
fio_row() # JOB DIR
{
    fio_job "$1" "$2" || return 1
    python3 "$bench/fio_result.py" "$T/fio.json" >"$T/result" || return 1
    read -r value unit p50 p99 <"$T/result"
}

have_data()
{
    [ "$(stat -c %s "$1/data" 2>/dev/null)" = "$SIZE" ] || fio_job layout "$1"
}
have_warm_data()
{
    have_data "$1" && run cat "$1/data"
}
have_sync_files()
{
    [ "$(stat -c %s "$1/sync.3" 2>/dev/null)" = "$SYNC_SIZE" ] || fio_job sync_layout "$1"
}

prepare_seq_write() { rm -f "$1/data"; }
prepare_seq_read_cold() { have_data "$1"; }
prepare_seq_read_warm() { have_warm_data "$1"; }
prepare_rand_read_warm() { have_warm_data "$1"; }
prepare_rand_write() { have_warm_data "$1"; }
prepare_rand_write_fsync1() { have_sync_files "$1"; }
prepare_rand_write_fsync4() { have_sync_files "$1"; }
prepare_mmap_read_warm() { have_warm_data "$1"; }
prepare_mmap_write_msync() { have_warm_data "$1"; }

for job in seq_write seq_read_cold seq_read_warm rand_read_warm rand_write rand_write_fsync1 \
    rand_write_fsync4 mmap_read_warm mmap_write_msync; do
    eval "row_$job() { fio_row $job \"\$1\"; }"
done

# --- names -------------------------------------------------------------------------------------

# "names" is a directory, but on the bare server, which has none: there it is DIR itself.
names_of()
{
    names=$1
    [ ! -d "$1/names" ] || names=$1/names
}
meta_row() # OPERATION DIR
{
    names_of "$2"
    run "$programs/bench_meta" "$1" "$names" "$FILES" || return 1
    read -r value p50 p99 <"$T/run.out"
    unit=/s
}
no_names()
{
    names_of "$1"
    [ ! -e "$names/f0" ] || run "$programs/bench_meta" unlink "$names" "$FILES"
}
have_names()
{
    names_of "$1"
    [ -e "$names/f0" ] || run "$programs/bench_meta" create "$names" "$FILES"
}
have_warm_names()
{
    have_names "$1" && run "$programs/bench_meta" stat "$names" "$FILES"
}

prepare_create() { no_names "$1"; }
prepare_stat_warm() { have_warm_names "$1"; }
prepare_stat_cold() { have_names "$1"; }
prepare_readdir() { have_names "$1"; }
prepare_unlink() { have_warm_names "$1"; }
row_create() { meta_row create "$1"; }
row_stat_warm() { meta_row stat "$1"; }
row_stat_cold() { meta_row stat "$1"; }
row_readdir() { meta_row readdir "$1"; }
row_unlink() { meta_row unlink "$1"; }

# --- real work ---------------------------------------------------------------------------------

# The tree as an archive, made once, in memory: reading it costs every peer the same.
make_archive()
{
    python3 "$bench/tree.py" "$T/tree" "$TREE_FILES" "$UNITS" &&
        tar -C "$T" -cf "$T/memory/tree.tar" tree && rm -rf "$T/tree"
}
have_tree()
{
    [ -d "$1/tree" ] || run tar -C "$1" -xf "$T/memory/tree.tar"
}
git_in() # DIR ARGUMENTS...
{
    tree=$1/tree
    shift
    run env HOME="$T" GIT_CONFIG_NOSYSTEM=1 git -C "$tree" -c gc.auto=0 -c user.name=b \
        -c user.email=b "$@"
}

prepare_untar() { run rm -rf "$1/tree"; }
row_untar() { seconds_of tar -C "$1" -xf "$T/memory/tree.tar"; }

prepare_find_warm() { have_tree "$1" && run find "$1/tree" -printf %s; }
prepare_find_cold() { have_tree "$1"; }
row_find_warm() { seconds_of find "$1/tree" -printf %s; }
row_find_cold() { seconds_of find "$1/tree" -printf %s; }

prepare_grep_cold() { have_tree "$1"; }
row_grep_cold() { seconds_of grep -rc 'mapping dirty' "$1/tree/"; }

prepare_compile() { have_tree "$1" && run make -s -C "$1/tree/prog" clean; }
row_compile() { seconds_of make -s -j2 -C "$1/tree/prog" CC="${CC:-cc}"; }

prepare_git_status()
{
    have_tree "$1" || return 1
    [ -d "$1/tree/.git" ] || {
        git_in "$1" init -q && git_in "$1" add -A && git_in "$1" commit -q -m all || return 1
    }
    git_in "$1" status --porcelain
}
row_git_status()
{
    begin=$(date +%s%N)
    git_in "$1" status --porcelain || return 1
    end=$(date +%s%N)
    value=$(awk "BEGIN { print ($end - $begin) / 1e9 }") unit=s p50=- p99=-
}

write_sql()
{
    awk 'BEGIN {
        print "create table if not exists t (id integer primary key, a int, b text);"
        for (i = 0; i < 100; i++)
            printf "insert into t (a, b) values (%d, printf(\"%%.*c\", 100, \"x\"));\n", i
    }' >"$T/memory/commit.sql"
    cat >"$T/memory/bulk.sql" <<'SQL'
begin;
create table t (id integer primary key, a int, b text);
with recursive n(i) as (select 1 union all select i + 1 from n where i < 50000)
insert into t select i, (i * 7919) % 50021, printf('%.*c', 100 + i % 100, 'x') from n;
create index t_a on t (a);
commit;
select count(*), sum(a) from t where a between 1000 and 9000;
update t set b = 'y' where a % 10 = 0;
SQL
}
prepare_sqlite_commit() { rm -f "$1/commit.db"*; }
row_sqlite_commit() { seconds_of sqlite3 "$1/commit.db" ".read $T/memory/commit.sql"; }
prepare_sqlite_bulk() { rm -f "$1/bulk.db"*; }
row_sqlite_bulk() { seconds_of sqlite3 "$1/bulk.db" ".read $T/memory/bulk.sql"; }

# Without what compiling and git left there.
prepare_rm_tree() { run rm -rf "$1/tree" && have_tree "$1"; }
row_rm_tree() { seconds_of rm -rf "$1/tree"; }

# --- one request -------------------------------------------------------------------------------

prepare_pread() # DIR
{
    [ -e "$1/data" ] || fio_job layout "$1"
}
prepare_pread_1() { prepare_pread "$1"; }
prepare_pread_2() { prepare_pread "$1"; }
pread_row() # THREADS DIR
{
    run "$programs/bench_pread" "$2/data" "$1" "$SECONDS_EACH" || return 1
    read -r value p50 p99 <"$T/run.out"
    unit=/s
}
row_pread_1() { pread_row 1 "$1"; }
row_pread_2() { pread_row 2 "$1"; }
