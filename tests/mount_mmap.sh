#!/bin/sh
# Any program maps files of a mount, as on ext4: what tests/mmap_ops.c and mmap_races.c expect holds on ext4 first,
# then on ours, with both caches, with a cache of 1 MiB whose pages are dropped meanwhile, and for what must
# survive the daemon's death.
#
#   FOLIO_SECONDS  how long each race lasts where pages are dropped meanwhile (1); half of it elsewhere
. "$(dirname -- "$0")/lib.sh"
build_helper mmap_ops
build_helper mmap_races
build_helper mmap_durable
longer=${FOLIO_SECONDS:-1}
shorter=$(awk -v whole="$longer" 'BEGIN { print whole / 2 }')

# What FUSE does not let a file system do: the kernel neither asks nor says anything, before it is done, when ftruncate
# (and, where it caches writes, write) lets a file grow whose last page has been stored to behind its end, and
# sends those bytes as data of the longer file. (To store zeros in its copy before ftruncate is answered may wait for
# ever: another store to that page holds it until it has been written back, and nothing is before that answer.)
direct_cannot=tail_is_zeros_after_ftruncate
kernel_cannot='tail_is_zeros_after_(ftruncate|a_write_in_the_page|a_write_behind_it)'

properties() # DIRECTORY SECONDS [PATTERN of what cannot hold [RACE that may be lost]]
{
    mkdir "$1"
    timeout 300 "$T/mmap_ops" all "$1" >"$T/out" 2>&1
    grep -q '^ok' "$T/out" || fail "$what: mmap_ops ended early: $(cat "$T/out")"
    grep -v '^ok' "$T/out" | grep -Ev "^FAIL (${3-none}):" >"$T/bad"
    [ ! -s "$T/bad" ] || fail "$what: $(cat "$T/bad")"
    say "$what: $(grep -c '^ok' "$T/out") properties hold, $(grep -c '^FAIL' "$T/out") cannot"
    timeout 300 "$T/mmap_races" "$1" "$2" "-${4-none}" >"$T/out" 2>&1 || fail "$what: $(cat "$T/out")"
    timeout 300 "$T/mmap_ops" big "$1" 16 >>"$T/out" 2>&1 || fail "$what: $(tail -n 1 "$T/out")"
    rmdir "$1" || fail "$what: files were left behind: $(ls "$1")"
}

# --- the oracle --------------------------------------------------------------------------------

what=ext4
oracle_mount()
{
    is_root && command -v mkfs.ext4 >/dev/null && truncate -s 256M "$T/ext4" &&
        mkfs.ext4 -q -b 4096 "$T/ext4" && mkdir "$T/oracle" && mount -o loop "$T/ext4" "$T/oracle"
}
if oracle_mount 2>"$T/out"; then
    # It copies what is written to a large folio in one go, and a processor may show the end of that first.
    properties "$T/oracle/d" "$shorter" none two_pages
    umount "$T/oracle" || fail 'cannot unmount the ext4'
else
    say "not compared with ext4, which cannot be mounted here: $(tail -n 1 "$T/out")"
fi
rm -f "$T/ext4"

# --- durability --------------------------------------------------------------------------------

crash()
{
    kill_daemon
    detach "$M"
}
number=0
store() # HOW; which of them hand over all 16 pages, each once
{
    number=$((number + 1))
    handed_over=$(stat_of faults.kernel_mkwrite)
    "$T/mmap_durable" store "$M/file" "$1" "$number" || fail "$what: store and $1"
    handed_over=$(($(stat_of faults.kernel_mkwrite) - handed_over))
    [ $handed_over -eq 16 ] || [ "$1" = none ] || fail "$what: $1 handed over $handed_over pages of 16"
}
verify() # WHAT WAS DONE
{
    "$T/mmap_durable" verify "$M/file" "$number" >"$T/out" || fail "$what: after $1: $(cat "$T/out")"
}

durability() # CACHE
{
    mount_volume -o "cache=$1"
    wait_for_control
    "$T/mmap_durable" make "$M/file" || fail "$what: make"
    for how in msync fsync fdatasync other; do
        store "$how"
        crash
        check_volume "$what, $how"
        mount_volume -o "cache=$1"
        wait_for_control
        verify "$how and a kill"
    done
    # sync_file_range hands the pages to the file system and no more: then they become durable as all
    # data that was written does, in time. (The kernel itself would keep them for 30 seconds.)
    unmount_volume
    mount_volume -o "cache=$1,commit=1,dirty_expire=1,dirty_writeback=1"
    wait_for_control
    store range
    sleep 4
    crash
    mount_volume -o "cache=$1"
    verify 'sync_file_range, some seconds and a kill'
    store none
    unmount_volume
    mount_volume -o "cache=$1"
    verify unmounting
}

# Start "mmap_durable WHAT ... NUMBER", which ends when descriptor 9 is closed.
start_holder() # WHAT ARGUMENT...
{
    number=$((number + 1))
    mkfifo "$T/go"
    "$T/mmap_durable" "$@" "$number" <"$T/go" >"$T/out" 2>&1 &
    holder=$!
    note_process "$holder"
    exec 9>"$T/go"
    until_true 10 grep -q stored "$T/out" || fail "$what: $1: $(cat "$T/out")"
}
end_holder()
{
    exec 9>&-
    wait "$holder"
    holder_status=$?
    rm -f "$T/pids/$holder" "$T/go"
}

# What only mappings know of, with nobody's msync: a sync of the whole mount, a rename over a file, and the daemon's
# orderly end have the kernel hand it over.
stores_nobody_synced() # OPTIONS
{
    mount_volume -o "$1"
    "$T/mmap_durable" make "$M/file" || fail "$what: make"
    wait_for_control
    start_holder keep "$M/file"
    "$FOLIO_BIN/foliofsctl" "$M" sync || fail "$what: foliofsctl sync"
    crash
    end_holder
    mount_volume -o "$1"
    verify 'foliofsctl sync and a kill'
    start_holder replace "$M" file
    crash
    end_holder
    [ $holder_status -eq 0 ] || fail "$what: replace: $(cat "$T/out")"
    mount_volume -o "$1"
    verify 'a rename over the file, and a kill'
    start_holder keep "$M/file"
    kill -s TERM "$daemon"
    until_true 60 has_ended "$daemon" || fail "$what: SIGTERM does not end the daemon"
    reap_daemon
    end_holder
    detach "$M" 2>/dev/null
    mount_volume -o "$1"
    verify SIGTERM
    unmount_volume
}

# A mapping keeps the mount busy; one that is detached goes on until it is gone.
unmounting() # CACHE
{
    start_holder hold "$M/file"
    unmount_now 2>/dev/null && fail "$what: unmounted under a mapping"
    detach "$M"
    number=$((number + 1))
    end_holder
    [ $holder_status -eq 0 ] || fail "$what: a store to a detached mount failed"
    until_true 60 has_ended "$daemon" || fail "$what: the daemon outlives the last mapping"
    reap_daemon
    mount_volume -o "cache=$1"
    verify 'stores to a detached mount'
    unmount_volume
    mount_volume -o "cache=$1,ro"
    verify 'another unmount'
    "$T/mmap_durable" make "$M/other" 2>/dev/null && fail "$what: a file made on a read-only mount"
    "$T/mmap_ops" readonly "$M/zeros" >"$T/out" || fail "$what: $(cat "$T/out")"
    unmount_volume
}

# Stores that go on until the daemon ends: each is in the file, or was SIGBUS.
storing_until_the_end() # OPTIONS
{
    for round in 1 2 3; do
        mount_volume -o "$1"
        "$T/mmap_durable" race "$M/raced" "$T/notes" >"$T/out" 2>&1 &
        racers=$!
        note_process "$racers"
        until_true 10 grep -q stored "$T/out" || fail "$what: race: $(cat "$T/out")"
        sleep "0.$round"
        [ $round -gt 1 ] || detach "$M"
        kill -s TERM "$daemon"
        until_true 60 has_ended "$daemon" || fail "$what: SIGTERM beside stores does not end the daemon"
        reap_daemon
        until_true 30 has_ended "$racers" || fail "$what: stores go on after the daemon's end"
        wait "$racers" || fail "$what: race: $(cat "$T/out")"
        rm -f "$T/pids/$racers"
        ! is_mounted "$M" || fail "$what: SIGTERM leaves a mount behind"
        mount_volume -o "$1"
        "$T/mmap_durable" raced "$M/raced" "$T/notes" >"$T/out" ||
            fail "$what: stores until the daemon ended (round $round): $(cat "$T/out")"
        unmount_volume
    done
}

# --- ours --------------------------------------------------------------------------------------

drop_again_and_again()
{
    while [ ! -f "$T/enough" ]; do
        "$FOLIO_BIN/foliofsctl" "$M" drop >/dev/null 2>&1
        sleep 0.05
    done
}

for cache in kernel direct; do
    what=cache=$cache
    options=
    is_root && options=,suid,dev
    make_volume
    mount_volume -o "cache=$cache$options"
    if [ $cache = direct ] && grep -q 'without DIRECT_IO_ALLOW_MMAP' "$T/daemon.out"; then
        say "$what: the kernel does not let such files be mapped; the mount says so"
        unmount_volume
        continue
    fi
    cannot=$kernel_cannot
    [ $cache = kernel ] || cannot=$direct_cannot
    properties "$M/d" "$shorter" "$cannot"
    "$T/mmap_durable" make "$M/zeros" || fail "$what: make"
    unmount_volume
    check_volume "$what"

    what="cache=$cache, 1 MiB"
    mount_volume -o "cache=$cache,cache_size=1M$options"
    wait_for_control
    drop_again_and_again &
    dropper=$!
    note_process "$dropper"
    properties "$M/d" "$longer" "$cannot"
    : >"$T/enough"
    wait "$dropper"
    rm -f "$T/pids/$dropper" "$T/enough"
    unmount_volume
    check_volume "$what"

    what=cache=$cache
    durability "$cache"
    unmounting "$cache"
    stores_nobody_synced "cache=$cache"
    storing_until_the_end "cache=$cache"
    storing_until_the_end "cache=$cache,cache_size=1M"
    check_volume "$what"
done

what=cache=kernel,attach
make_volume
mount_volume -o cache=kernel,attach
properties "$M/d" "$shorter" "$direct_cannot"
unmount_volume
stores_nobody_synced cache=kernel,attach
storing_until_the_end cache=kernel,attach
check_volume "$what"

# The daemon is to end while a sync has the kernel hand over what somebody goes on storing.
what='SIGTERM beside a sync'
sync_again_and_again()
{
    while "$FOLIO_BIN/foliofsctl" "$M" sync >/dev/null 2>&1; do
        :
    done
}
for round in 1 2 3; do
    mount_volume -o cache=direct
    wait_for_control
    mkdir -p "$M/d"
    (cd "$M/d" && exec timeout 60 "$T/mmap_races" . 20 fsync) >"$T/out" 2>&1 &
    storer=$!
    note_process "$storer"
    sync_again_and_again &
    syncer=$!
    note_process "$syncer"
    sleep "0.$((round * 3))"
    kill -s TERM "$daemon"
    until_true 60 has_ended "$daemon" || fail "$what: it does not end (round $round)"
    reap_daemon
    kill "$storer" 2>/dev/null
    wait "$storer" "$syncer" 2>/dev/null
    rm -f "$T/pids/$storer" "$T/pids/$syncer"
    detach "$M" 2>/dev/null
    check_volume "$what"
done
say passed
