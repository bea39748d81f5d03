#!/bin/sh
# stress_mutants.sh: break FolioFS on purpose, and see folio-stress notice within a minute.
#
#   FOLIO_BIN=build/release/bin sh tests/stress_mutants.sh [PART-OF-A-NAME]
#
# A mutant is one or a few lines changed by sed in a copy of the sources; foliofs is built from it,
# mounted and stressed. One whose lines are not there any more is a failure too. FOLIO_SECONDS may be
# set (60). Those that need mappings through libfolio are left out, and said so, where it is not
# built.
. "$(dirname -- "$0")/lib.sh"
need cmake cc
only=${1-}
seconds=${FOLIO_SECONDS:-60}
as_is=$FOLIO_BIN
caught=0 survived='' left_out=''

library()
{
    for file in "${FOLIO_LIB-}" "$as_is/../lib/libfolio.so.0" "$as_is/../libfolio.so.0"; do
        [ ! -f "$file" ] || { echo "$file"; return; }
    done
}
FOLIO_LIB=$(library)
[ -z "$FOLIO_LIB" ] || export FOLIO_LIB

say 'building the copy'
mkdir "$T/source"
(cd "$source_dir" && tar -c --exclude=./build --exclude=./.git -f - .) | tar -x -C "$T/source" -f - ||
    fail 'cannot copy the sources'
build() # what is in the copy
{
    make -C "$T/build" foliofs >"$T/build.out" 2>&1
}
cmake -S "$T/source" -B "$T/build" -G 'Unix Makefiles' -DBUILD_TESTING=OFF \
    -DCMAKE_BUILD_TYPE=RelWithDebInfo >"$T/build.out" 2>&1 && build ||
    fail "the sources as they are do not build: $(tail "$T/build.out")"
mkdir "$T/bin"
for program in mkfs.foliofs fsck.foliofs foliofsctl; do
    ln -s "$(cd "$as_is" && pwd -P)/$program" "$T/bin/$program"
done
ln -s "$T/build/bin/foliofs" "$T/bin/foliofs"
FOLIO_BIN=$T/bin

# --- how a mutant is stressed ------------------------------------------------------------------

# What its defect concerns, and not much else: so it meets it sooner.
stress()
{
    timeout $((seconds + 120)) "$as_is/folio-stress" --seconds "$seconds" --hang 20 "$@" "$M" \
        >"$T/stress.out" 2>&1
}
# The stressed mount may be in any state.
sweep()
{
    note_daemons
    end_processes KILL
    rm -f "$T"/pids/*
    detach "$M"
    wait
}
in_direct() # STRESS-OPTIONS...
{
    mount_volume -o cache=direct,cache_size=1M
    stress --without tail "$@"
}
in_crash() # MOUNT-OPTIONS STRESS-OPTIONS...
{
    mount_to_crash "cache=direct,cache_size=1M,$1"
    shift
    stress --crash "sh $T/crasher" "$@"
}
in_attached() # STRESS-OPTIONS...
{
    mount_volume -o "cache=direct,cache_size=1M,store_around=${around:-1}"
    stress --attach "$@"
}
how() # NAME: run the load that is for this one; returns folio-stress's status
{
    case $1 in
    size_raised_late) in_direct --files 2 --only write,extend,truncate,fsync,read ;;
    cut_not_zeroed | hole_keeps_pages) in_direct --files 2 ;;
    old_copy_counts) in_direct --files 2 --pages 16 --only store,load,write,read,madvise ;;
    nothing_synced) in_crash commit=5 --without tail ;;
    # The kernel lets nobody write while it waits for the fsync of the same file: it takes the
    # flusher to copy pages that are being written to.
    copy_slow | stable_wait_skipped)
        in_crash dirty_background_ratio=1 --stable --files 3 --pages 16 --only write,fsync,extend
        ;;
    protect_late) in_attached --files 3 --pages 16 --only tail,store,truncate,extend,fsync,msync ;;
    protect_* | recheck_skipped | freed_* | mkwrite_*) in_attached ;;
    ahead_*) around=64 in_attached ;;
    *) fail "no load is for $1" ;;
    esac
}
is_attached() # NAME
{
    case $1 in
    protect_* | recheck_skipped | freed_* | mkwrite_* | ahead_*) return 0 ;;
    esac
    return 1
}

restore()
{
    for file in $changed; do
        cp "$source_dir/$file" "$T/source/$file"
    done
}
# mutate FILE EXPRESSION...
mutate()
{
    file=$1
    shift
    changed="$changed $file"
    for expression in "$@"; do
        cp "$T/source/$file" "$T/before"
        sed -i "$expression" "$T/source/$file" || fail "$name: sed $expression"
        ! cmp -s "$T/before" "$T/source/$file" ||
            fail "$name: nothing in $file matches $expression"
    done
}
# Changed by the caller; run it.   Status as of folio-stress.
try()
{
    build || fail "$name does not build: $(tail "$T/build.out")"
    make_volume
    how "$name"
    status=$?
    sweep
    return $status
}
# The store is named, or what failed, with what had happened to its page and the seed.
is_named()
{
    grep -Eq '(LOST|TORN|STALE|MISPLACED|RESURRECTED|FAILED):' "$T/stress.out" &&
        grep -q 'FAILED; --seed [0-9]' "$T/stress.out" && grep -q 'timeline' "$T/stress.out"
}
must_be_caught()
{
    try
    if [ "$status" -eq 1 ] && is_named; then
        caught=$((caught + 1))
        say "$name: $(sed -n 2p "$T/stress.out" | cut -c 1-150)"
    else
        say "$name: SURVIVED, status $status: $(tail -n 1 "$T/stress.out")"
        survived="$survived $name"
    fi
    restore
}
# wanted NAME: is it asked for, and can it be done?
wanted()
{
    name=$1 changed=
    case $name in *"$only"*) ;; *) return 1 ;; esac
    if is_attached "$name" && [ -z "$FOLIO_LIB" ]; then
        left_out="$left_out $name"
        return 1
    fi
}
mutant() # NAME FILE EXPRESSION...
{
    wanted "$1" || return 0
    shift
    mutate "$@"
    must_be_caught
}

# --- the deliberate bugs -----------------------------------------------------------------------

# let the kernel write back what it had read before a write around its cache
mutant old_copy_counts fs/stale.c 's/^    \*is_stale = in_to > offset;/    *is_stale = false;/'

# skip page_mkclean
mutant protect_skipped cache/writeback.c 's/int err = page_mkclean(m, page);/int err = 0;/'

# clear dirty before write-protecting. A store in between is still in the copy that the store takes; but
# behind the end of file nobody zeroes it any more when the file grows. Some time passes, for one to
# come.
mutant protect_late cache/writeback.c 's/int err = page_mkclean(m, page);/int err = 0;/' \
    '/^static int clear_page_dirty_for_io/,/^}/ s/^    atomic_fetch_add/    extern int usleep(unsigned);\n    usleep(200);\n    page_mkclean(m, page);\n&/'

# skip the re-check after locking
mutant recheck_skipped cache/memory.c \
    '/^static int fault_get_page/,/^}/ s/if (still_there(m, page, index))/if (1)/'

# skip the stable-page wait. What it harms is only the copy that the store takes, and only until the
# page is written again: a crash in between shows it. Copying slowly gives stores time to meet it;
# that alone must be harmless.
slow_copy='s/^    memcpy(b->data, data, BLOCK_SIZE);/    extern int usleep(unsigned);\n    for (size_t at = 0; at < BLOCK_SIZE; at += 256) {\n        memcpy(b->data + at, (const char *)data + at, 256);\n        usleep(50);\n    }/'
if wanted copy_slow; then
    mutate store/txn.c "$slow_copy"
    try || fail "$name alone does harm: $(cat "$T/stress.out")"
    say "$name: harmless, as it must be"
    restore
fi
if wanted stable_wait_skipped; then
    mutate store/txn.c "$slow_copy"
    mutate cache/write.c '/^static int write_begin/,/^}/ s/wait_for_stable_page(m, page);/;/'
    must_be_caught
fi

# free before unmapping
mutant freed_while_mapped cache/reclaim.c \
    '/^static bool remove_mapping/,/^}/ s/if (!page_unmap(m, page))/if (0)/'
mutant freed_by_truncation_while_mapped cache/truncate.c \
    '/^static bool truncate_page/,/^}/ s/page_unmap(m, page)/true/'

# raise i_size late: after the pages were unlocked
mutant size_raised_late cache/write.c \
    's/^        atomic_store(&m->i_size, pos + n);/        (void)0;/' \
    '/^ssize_t filemap_write/,/^}/ s/^    return (ssize_t)done;/    if (offset + done > atomic_load(\&m->i_size))\n        atomic_store(\&m->i_size, offset + done);\n&/'

# --- others ------------------------------------------------------------------------------------

mutant mkwrite_not_dirty cache/memory.c \
    '/^static int page_mkwrite/,/^}/ s/set_page_dirty(m, page);/;/'
mutant ahead_not_found cache/mkwrite_ahead.c '/^bool page_look_ahead/,/^}/ s/ == 0)/ != 9999)/'
mutant cut_not_zeroed cache/truncate.c '/^int truncate_partial_page/,/^}/ s/^    zero_in_page(.*/    (void)0;/'
mutant hole_keeps_pages fs/resize.c \
    '/^static int punch_pages/,/^}/ s/truncate_pages_begin(.*/0;/'
mutant nothing_synced fs/durable.c '/^int file_fsync/,/^}/ s/^    int err = inode_write_back(inode);/    int err = 0;/' \
    '/^int file_fsync/,/^}/ s/err = inode_fsync(inode);/err = 0;/'

[ -z "$left_out" ] || say "[SKIP] they need libfolio, which is not built:$left_out"
say "$caught caught; survived:${survived:- none}"
[ -z "$survived" ]
