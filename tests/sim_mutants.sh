#!/bin/sh
# sim_mutants.sh: break each rule that cache/page.h stands on, and see the simulation notice.
#
#   sh tests/sim_mutants.sh                    all of them; some minutes
#   sh tests/sim_mutants.sh --quick            two of each rule, which many seeds notice; a minute
#   sh tests/sim_mutants.sh PART-OF-A-NAME
#
# A mutant is one or a few lines of the cache changed by sed, in a copy. Some seed of a fixed set must
# fail on it. A mutant whose lines are not there any more is a failure too, and a rule without one.
# CC and FOLIO_SEEDS may be set.
set -u
cd "$(dirname -- "$0")/.." || exit 1
if [ "${1-}" = --quick ]; then
    quick=1 only='' seeds=${FOLIO_SEEDS:-1-100}
else
    quick='' only=${1-} seeds=${FOLIO_SEEDS:-1-1000}
fi
T=$(mktemp -d "${TMPDIR:-/tmp}/folio-mutants.XXXXXX") || exit 1
trap 'rm -rf "$T"' EXIT
trap 'exit 130' HUP INT TERM

if ! pkg-config --exists liburcu-memb; then
    echo 'SKIP: liburcu is not installed'
    exit 77
fi
rcu_flags=$(pkg-config --cflags liburcu-memb)
rcu_libs=$(pkg-config --libs liburcu-memb)
link='-Wl,--wrap=pthread_mutex_lock -Wl,--wrap=pthread_mutex_trylock
-Wl,--wrap=pthread_mutex_unlock'
store='store/bio.c store/device.c store/dev_memory.c store/dev_fault.c store/dev_latency.c
store/dev_trace.c store/plug.c'

compile() # ROOT SOURCE OBJECT
{
    # shellcheck disable=SC2086 # flags are words
    ${CC:-cc} -std=gnu17 -O1 -g -w -UNDEBUG -D_GNU_SOURCE -D_FILE_OFFSET_BITS=64 -DFOLIO_SIM \
        -I"$1" $rcu_flags -c "$1/$2" -o "$3"
}
link_sim() # PROGRAM OBJECTS...
{
    program=$1
    shift
    # shellcheck disable=SC2086
    ${CC:-cc} "$@" -o "$program" $link $rcu_libs -pthread
}
object_of() # SOURCE
{
    echo "$1" | tr / _ | sed 's/c$/o/'
}

# --- the cache as it is ------------------------------------------------------------------------

mkdir -p "$T/as_is" "$T/objects"
cp -R cache store "$T/as_is/"
mkdir "$T/as_is/tests"
cp tests/sim_*.[ch] "$T/as_is/tests/"
# shellcheck disable=SC2086 # words
sources=$(cd "$T/as_is" && echo cache/*.c tests/sim_*.c $store)
for source in $sources; do
    compile "$T/as_is" "$source" "$T/objects/$(object_of "$source")" || exit 1
done
link_sim "$T/sim" "$T"/objects/*.o || exit 1
if ! timeout 1800 "$T/sim" "$seeds" 20000 1 >"$T/log" 2>&1; then
    tail -60 "$T/log"
    echo 'FAIL: the simulation does not even hold without a mutant'
    exit 1
fi

# Not here, because the rest of the cache makes them harmless:
#   a pass that does not look at page->mapping    a page leaves its tree clean, so PG_dirty says it
#   truncation that does not, either              it holds a reference, and two truncations of a file
#                                                 exclude each other by invalidate_lock
#   a fault that does not look at i_size again    the page is still in its tree, so the truncation
#   under the page's lock                         under way has yet to come and unmap it
#   a failed page's mapping that is not put on    nobody takes it off while a pass lasts
#   the list of dirty ones again
#   a write that leaves what was stored in its    a unit is half a page, so there is no gap without
#   gap, within one page                          another page: see tests/test_cache_truncate.c
#   a flusher that is not woken                   costs time only: sleeps for it have an end
#   reclaim that does not look at PG_writeback    the write holds a reference, so the count is not 2
#   only one of the two limits on shadows         either alone keeps the ring from running over

# --- mutants -------------------------------------------------------------------------------------

# For --quick: two of each rule, and of the seeds one in ten or so notices each.
chosen='
find_mapping_recheck    insert_unlocked
uptodate_before_read    write_without_read
write_unstable          truncate_unstable
cleaned_after_copy      protect_late
mkwrite_unstable        mkwrite_writable_late
dirty_tag_not_set       writeback_tag_kept
size_changed_last       truncate_keeps_mapped
reclaim_without_freeze  reclaim_keeps_mapped
redirtied_late          error_not_told
'
rule='no rule' # the one that the mutants below break
caught=0
survived=
rules_caught=

rule() # NUMBER TEXT
{
    rule="rule $1"
    [ "$1" != - ] || rule=other
    [ -n "$only" ] || echo "$rule: $2"
}

is_wanted() # NAME
{
    if [ -n "$quick" ]; then
        case $chosen in *[[:space:]]"$1"[[:space:]]*) ;; *) return 1 ;; esac
    fi
    case $1 in *"$only"*) ;; *) return 1 ;; esac
}

mutant() # NAME FILE SED-COMMAND...
{
    name=$1
    file=$2
    shift 2
    is_wanted "$name" || return
    rm -rf "$T/mutant" "$T/mutant_objects"
    cp -R "$T/as_is" "$T/mutant"
    cp -R "$T/objects" "$T/mutant_objects"
    for command in "$@"; do
        cp "$T/mutant/$file" "$T/before"
        sed -i "$command" "$T/mutant/$file"
        if cmp -s "$T/before" "$T/mutant/$file"; then
            echo "MISSING   $name: this changes nothing: $command"
            survived="$survived $name"
            return
        fi
    done
    if ! compile "$T/mutant" "$file" "$T/mutant_objects/$(object_of "$file")" 2>"$T/log" ||
        ! link_sim "$T/sim_mutant" "$T"/mutant_objects/*.o 2>>"$T/log"; then
        cat "$T/log"
        echo "BROKEN    $name: does not compile"
        survived="$survived $name"
        return
    fi
    timeout 900 "$T/sim_mutant" "$seeds" 20000 1 >"$T/log" 2>&1
    status=$?
    if [ $status -eq 0 ] || [ $status -eq 124 ]; then
        echo "SURVIVED  $rule: $name"
        survived="$survived $name"
    else
        caught=$((caught + 1))
        rules_caught="$rules_caught $rule,"
        echo "caught    $rule: $name: $(grep -m 1 '^sim: seed' "$T/log" | cut -c -150)"
    fi
}

rule 1 'find: look at the slot again after taking a reference, at the mapping after locking'
mutant find_slot_recheck cache/filemap.c \
    '/^static struct page \*slot_get_page/,/^}/ s/if (atomic_load_explicit(slot.*/if (1)/'
mutant find_takes_free_pages cache/page.c \
    '/^bool get_page_unless_zero/,/^}/ s/if (n == 0)/if (0)/'
mutant gang_slot_recheck cache/filemap.c \
    '/^static unsigned pages_get/,/^}/ s/radix_is_value(pages\[i\]) ? NULL : slot_get_page(.*/radix_is_value(pages[i]) || !get_page_unless_zero(pages[i]) ? NULL : pages[i];/'
mutant find_mapping_recheck cache/filemap.c \
    '/^struct page \*find_lock_page/,/^}/ { s/if (atomic_load(&page->mapping) == m)/if (1)/; /assert/d }'
mutant reader_mapping_recheck cache/filemap.c \
    '/^static int page_make_uptodate/,/^}/ s/atomic_load(&page->mapping) != m/0/'
mutant insert_unlocked cache/filemap.c \
    '/^int add_to_page_cache_lru/,/^}/ s/    lru_add(m->cache, page);/&\n    page_clear_and_wake(page, PG_locked);/'
mutant invalidate_unlocked cache/truncate.c \
    '/^static bool invalidate_page/,/^}/ { s/if (!trylock_page(page))/if (0)/; s/unlock_page(page);// }'

rule 2 'uptodate: only after a read without error, or by a write of the whole page'
mutant uptodate_after_error cache/filemap.c \
    '/^static void page_read_done/,/^}/ s/page_set(page, PG_error)/page_set(page, PG_error | PG_uptodate)/'
mutant uptodate_before_read cache/readahead.c \
    's/page_set(page, (mark ? PG_readahead : 0)/page_set(page, PG_uptodate | (mark ? PG_readahead : 0)/'
mutant write_without_read cache/write.c 's/err = read_page_locked(m, page);/err = 0;/'
mutant write_without_zeroing cache/write.c \
    '/^static int write_begin/,/^}/ s/memset(/if (0) memset(/'
mutant allocate_without_zeroing cache/write.c \
    '/^static int allocate_page/,/^}/ s/memset(/if (0) memset(/'
mutant reader_does_not_wait cache/filemap.c \
    '/^static int page_use/,/^}/ s/page_test(page, PG_uptodate) ? 0 : page_make_uptodate(m, page)/0/'
mutant error_not_retried cache/filemap.c \
    '/^static int page_make_uptodate/,/^}/ s/err = read_page_locked(m, page);/err = -EIO;/'
mutant around_not_uptodate cache/memory.c \
    '/^static struct page \*trylock_resident/,/^}/ { s/ \&\& page_test(page, PG_uptodate) / /; s/ \&\& page_test(page, PG_uptodate))/)/ }'
mutant unlocked_before_uptodate cache/filemap.c \
    '/^void read_end_io/,/^}/ s/^        page_read_done/        unlock_page(page); cache_yield(); lock_page(page);\n&/'

rule 3 'stable: locked while it is read; while it is written, a writer and truncation wait'
mutant write_unstable cache/write.c '/^static int write_begin/,/^}/ s/wait_for_stable_page(m, page);//'
mutant read_unlocked cache/filemap.c \
    '/^int read_page_locked/,/^}/ { s/^    while (/    unlock_page(page);\n&/; s/^    return page_test/    lock_page(page);\n&/ }'
mutant truncate_unstable cache/truncate.c \
    '/^static bool truncate_page/,/^}/ s/wait_for_stable_page(m, page);//'
mutant partial_truncate_unstable cache/truncate.c \
    '/^int truncate_partial_page/,/^}/ s/wait_for_stable_page(m, page);//'
mutant tail_not_zeroed cache/writeback.c \
    '/^static.* clear_page_dirty_for_io/,/^}/ s/zero_beyond_eof(m, page, UINT64_MAX);//'
mutant cut_page_not_zeroed cache/truncate.c \
    '/^static void zero_in_page/,/^}/ s/memset(/if (0) memset(/'
mutant cut_page_not_dirtied cache/truncate.c \
    '/^static void zero_in_page/,/^}/ s/set_page_dirty(m, page);//'

rule 4 'cleaning: write-protect, then clear dirty and set writeback at once, all under the lock'
mutant cleaned_unlocked cache/writeback.c \
    's/^        err = clear_page_dirty_for_io(m, page);/        {unlock_page(page);\n&\n        lock_page(page);}/' \
    's/int err = page_mkclean(m, page);/int err = 0;/'
mutant writeback_set_late cache/writeback.c \
    '/^static.* clear_page_dirty_for_io/,/^}/ s/    page_set(page, PG_writeback);//' \
    '/^static.* clear_page_dirty_for_io/,/^}/ s/atomic_fetch_add/unlock_page(page); cache_yield(); lock_page(page); page_set(page, PG_writeback);\n    &/'
mutant cleaned_after_copy cache/writeback.c \
    '/^static.* clear_page_dirty_for_io/,/^}/ s/    clear_dirty_tagged(m, page);//' \
    '/^static void end_page_writeback/,/^}/ s/^    if (keep)/    clear_dirty_tagged(m, page);\n&/'
mutant dirty_after_unlock cache/write.c \
    '/^static int write_locked/,/^}/ s/    set_page_dirty(m, page);/    unlock_page(page); lock_page(page); if (atomic_load(\&page->mapping) == m) set_page_dirty(m, page);/'
mutant pass_does_not_wait cache/writeback.c \
    '/^static void write_cache_pages/,/^}/ s/while ((left = atomic_load(&p->inflight)) != 0)/while ((left = atomic_load(\&p->inflight)) > 1)/'
mutant passes_overlap cache/writeback.c \
    's/down_write(&m->writeback_sem);//; s/down_write_trylock(&m->writeback_sem)/true/; s/up_write(&m->writeback_sem);//'
mutant sync_all_skips cache/writeback.c \
    '/^static bool pass_lock_page/,/^}/ s/^        lock_page(page);/        if (!trylock_page(page)) return false;/'

mutant protect_missing cache/writeback.c 's/int err = page_mkclean(m, page);/int err = 0;/'
mutant protect_late cache/writeback.c 's/int err = page_mkclean(m, page);/int err = 0;/' \
    '/^static.* clear_page_dirty_for_io/,/^}/ s/^    atomic_fetch_add/    page_mkclean(m, page);\n&/'
mutant protect_uncertain_ignored cache/writeback.c 's/int err = page_mkclean(m, page);/page_mkclean(m, page);\n    int err = 0;/'
mutant protect_not_known_missing cache/memory.c \
    '/^static int page_mkwrite/,/^}/ s/page_set(page, PG_mkwrite);/;/'
mutant protect_uncertain_forgotten cache/memory.c '/^int page_mkclean/,/^}/ s/if (err == 0)/if (1)/'
mutant protect_busy_is_done cache/memory.c '/^static int for_each_vma/,/^}/ s/== -EAGAIN)/== 1)/' \
    '/^static int for_each_vma/,/^}/ s/return err;/return err == -EAGAIN ? 0 : err;/'
mutant left_out_is_success cache/writeback.c 's/worse_error(atomic_load(&p.error), p.left_out);/atomic_load(\&p.error);/'
mutant sync_misses_second_pass cache/writeback.c \
    '/^static int pass_and_release/,/^}/ s/^    up_write(&m->writeback_sem);//' \
    '/^static int pass_and_release/,/^}/ s/^    bool removed/    up_write(\&m->writeback_sem);\n&/'
# (Caught as it is, but that takes more seeds: so the gap is made wider.)
mutant sync_misses_pass_in_truncation cache/truncate.c \
    '/^unsigned truncate_pages_begin/,/^}/ s/^        up_write(&m->writeback_sem);//' \
    '/^unsigned truncate_pages_begin/,/^}/ s/^        bool removed/        up_write(\&m->writeback_sem);\n        for (int i = 0; i < 9; i++) cache_yield();\n&/'

rule 5 'first store: wait for writeback, reserve, dirty, writable, all before unlocking'
mutant mkwrite_not_dirty cache/memory.c '/^static int page_mkwrite/,/^}/ s/set_page_dirty(m, page);/;/'
mutant mkwrite_unstable cache/memory.c '/^static int page_mkwrite/,/^}/ s/wait_for_stable_page(m, page);/;/'
mutant mkwrite_without_promise cache/memory.c \
    '/^static int page_mkwrite/,/^}/ s/err = dirty_page_reserve(m, page);/err = 0;/'
mutant nowait_waits cache/memory.c \
    '/^static int fault_once/,/^}/ s/ \&\& mkwrite_may_sleep(page))/ \&\& 0)/'
mutant nowait_throttles cache/memory.c \
    '/^int handle_mm_fault/,/^}/ s/if (flags \& FAULT_NOWAIT)$/if (0)/'
mutant mkwrite_writable_late cache/memory.c \
    '/^static int page_mkwrite/,/^}/ s/    return map_store_around(/    unlock_page(page); cache_yield(); lock_page(page);\n&/'
mutant ahead_judged_writable cache/mkwrite_ahead.c \
    '/^int page_end_ahead/,/^}/ s/int err = page_mkclean(m, page);/int err = 0;/'
mutant ahead_uncertain_ignored cache/mkwrite_ahead.c \
    '/^int page_end_ahead/,/^}/ s/err == 0 \&\&//'
mutant ahead_of_dirty_page cache/mkwrite_ahead.c 's/page_test(page, PG_dirty) ||/0 ||/' \
    '/^static bool begin_ahead/,/^}/ s/if (dirty_page_reserve(m, page) != 0)/if (0)/'
mutant ahead_without_promise cache/mkwrite_ahead.c \
    's/if (dirty_page_reserve(m, page) != 0)/if (0)/'
mutant ahead_copied_late cache/mkwrite_ahead.c \
    '/^static bool begin_ahead/,/^}/ s/^    memcpy(/    copy_in(m->cache, slot)[0] = 0; if (0) &/' \
    '/^bool page_look_ahead/,/^}/ s/^    if (memcmp/    if (copy_in(m->cache, slot)[0] == 0) memcpy(copy_in(m->cache, slot), page->data, PAGE_SIZE);\n&/'
mutant ahead_never_found cache/mkwrite_ahead.c '/^bool page_look_ahead/,/^}/ s/ == 0)/ != 9999)/'
mutant fault_mapping_recheck cache/memory.c \
    '/^static bool still_there/,/^}/ s/atomic_load(&page->mapping) == m \&\&//'

rule 6 'tags follow the dirty and the writeback bit; and so do promises'
mutant dirty_tag_kept cache/writeback.c \
    '/^static void clear_dirty_tagged/,/^}/ s/^.*RADIX_TAG_DIRTY);//'
mutant dirty_tag_not_set cache/writeback.c \
    '/^static void set_dirty_tagged/,/^}/ s/^.*RADIX_TAG_DIRTY);//'
mutant towrite_tag_kept cache/writeback.c \
    '/^static void clear_dirty_tagged/,/^}/ s/^.*RADIX_TAG_TOWRITE);//'
mutant writeback_tag_kept cache/writeback.c \
    '/^static void end_page_writeback/,/^}/ s/^.*RADIX_TAG_WRITEBACK);//'
mutant writeback_tag_not_set cache/writeback.c \
    '/^static.* clear_page_dirty_for_io/,/^}/ s/^.*RADIX_TAG_WRITEBACK);//'
mutant promise_kept cache/writeback.c \
    '/^void cancel_dirty_page/,/^}/ s/m->a_ops->unreserve(m, 1, .*/(void)0;/'
mutant promise_made_twice cache/writeback.c \
    '/^int dirty_page_reserve/,/^}/ s/page_test(page, PG_dirty) || //'
mutant block_not_remembered cache/writeback.c \
    '/^static void end_page_writeback/,/^}/ s/page_set(page, PG_mappedtodisk);/;/'
mutant block_not_looked_up cache/filemap.c '/^int page_map_block/,/^}/ s/^    if (r > 0)/    if (0)/'

# (The owner's part is in tests/sim_ops.c.)
rule 7 'truncation: size first, then unmap, then remove; invalidate_lock against insertion'
mutant size_changed_last tests/sim_ops.c \
    '/^static void shrink/,/^}/ s/^    unsigned stayed = truncate_setsize(.*/    uint64_t old = atomic_load(\&f->m.i_size);\n&\n    atomic_store(\&f->m.i_size, old);/' \
    '/^static void shrink/,/^}/ s/^    up_write(.*/    atomic_store(\&f->m.i_size, size);/' \
    '/^static void shrink/,/^}/ s/^    down_write(.*//'
mutant truncate_without_invalidate_lock tests/sim_ops.c \
    '/^static void shrink/,/^}/ { s/down_write(.*;//; s/up_write(.*;// }'
mutant punch_without_invalidate_lock tests/sim_ops.c \
    '/^static int punch/,/^}/ { s/down_write(.*;//; s/up_write(.*;// }'
mutant readahead_without_invalidate_lock cache/readahead.c \
    's/down_read(.*invalidate_lock);//' 's/up_read(.*invalidate_lock);//'
mutant object_taken_early cache/readahead.c \
    's/^    down_read(.*invalidate_lock);/    uint64_t taken = atomic_load(\&r->m->object);\n    cache_yield();\n&/' \
    's/r->later->object = atomic_load(&r->m->object);/r->later->object = taken;/'
# (A read that does not look at the size again before it copies is no mutant: all that it can return is what
# was there at some moment of it, or what was stored behind the end meanwhile, and both are right, as on Linux.)
mutant size_raised_early cache/write.c \
    '/^static int write_locked/,/^}/ s/^    int err = write_begin/    if (pos + n > atomic_load(\&m->i_size)) atomic_store(\&m->i_size, pos + n);\n&/'
mutant truncate_keeps_locked_pages cache/truncate.c \
    '/^static bool truncate_page/,/^}/ s/^    lock_page(page);/    if (!trylock_page(page)) { put_page(m->cache, page); return true; }/'
mutant truncate_keeps_mapped cache/truncate.c '/^static bool truncate_page/,/^}/ s/page_unmap(m, page)/true/'
mutant unmapped_after_removal cache/truncate.c \
    '/^static bool truncate_page/,/^}/ { s/page_unmap(m, page)/true/; s/^            remove_from_page_cache.*/&\n            page_unmap(m, page);/ }'
mutant invalidate_keeps_mapped cache/truncate.c \
    '/^static bool invalidate_page/,/^}/ s/page_unmap(m, page)/true/'
mutant cut_page_zeroed_early cache/truncate.c \
    '/^unsigned truncate_setsize/,/^}/ s/^        zero_in_page(m, cut.*/        (void)cut;/' \
    '/^int truncate_get_page/,/^}/ s/^        unlock_page(.*/        { zero_in_page(m, *cut, size % PAGE_SIZE, PAGE_SIZE); unlock_page(*cut); }/'
mutant grown_over_scribbles cache/truncate.c \
    '/^int lock_eof_page/,/^}/ s/^    forget_beyond_eof(m, page, UINT64_MAX);//'
mutant written_behind_scribbles cache/write.c 's/^    err = lock_eof_page(m, eof);/    err = 0;/'

mutant gone_although_dirty cache/memory.c \
    '/^static int call_while_gone/,/^}/ s/page_test(page, PG_dirty | PG_writeback) || //'
mutant gone_although_used cache/memory.c \
    '/^static int call_while_gone/,/^}/ s/!page_ref_freeze(page, 2)/(atomic_store(\&page->refcount, 0), 0)/'
mutant gone_and_mapped cache/memory.c \
    '/^static int call_while_gone/,/^}/ s/bool unmapped = page_unmap(m, page);/bool unmapped = true;/'

rule 8 'reclaim: freeze the count, and only of what is clean and unmapped'
mutant reclaim_without_freeze cache/reclaim.c \
    's/page_ref_freeze(page, 2)/(atomic_store(\&page->refcount, 0), 1)/'
mutant invalidate_without_freeze cache/truncate.c \
    's/page_ref_freeze(page, 2)/(atomic_store(\&page->refcount, 0), 1)/'
mutant reclaim_dirty cache/reclaim.c \
    '/^static bool remove_mapping/,/^}/ s/page_test(page, PG_dirty | PG_writeback) || //'
mutant reclaim_keeps_mapped cache/reclaim.c 's/if (!page_unmap(m, page))/if (0)/'
mutant remove_unlocked cache/reclaim.c \
    's/!page_test(page, PG_writeback) \&\& trylock_page(page)/!page_test(page, PG_writeback)/' \
    '/^static bool reclaim_page/,/^}/ s/unlock_page(page);//'

rule 9 'errors: dirty again before the end of writeback, and told once'
mutant not_redirtied cache/writeback.c \
    '/^static void end_page_writeback/,/^}/ s/^        set_dirty_tagged(m, page);/        (void)0;/'
mutant redirtied_late cache/writeback.c \
    '/^static void end_page_writeback/,/^}/ s/^        set_dirty_tagged(m, page);/        (void)0;/' \
    '/^static void end_page_writeback/,/^}/ s/^    atomic_fetch_sub/    if (error != 0) { cache_yield(); pthread_mutex_lock(\&m->tree_lock); if (atomic_load(\&page->mapping) == m) set_dirty_tagged(m, page); pthread_mutex_unlock(\&m->tree_lock); }\n&/'
mutant error_not_told cache/writeback.c \
    '/^static int pass_and_release/,/^}/ s/errseq_set(&m->wb_err, err);/;/'
mutant error_told_twice cache/errseq.c \
    's/if (atomic_compare_exchange_strong(since, &seen, told))/if (1)/'
mutant error_swallowed cache/writeback.c \
    '/^static void write_end_io/,/^}/ s/^        pass_note(p, bio->vecs\[i\].error);//'

rule - 'shadows: in the ring if and only if in the tree; never taken for a page'
mutant shadow_found_as_page cache/filemap.c \
    '/^static struct page \*slot_get_page/,/^}/ s/ || radix_is_value(page)//'
mutant shadow_dropped_by_half cache/workingset.c \
    '/^static bool drop(/,/^}/ s/void \*old = .*/void *old = radix_make_value(number);/'
mutant shadow_not_forgotten cache/workingset.c '/^static uint32_t forget/,/^}/ s/^    s->m = NULL;//'
mutant shadow_survives_truncation cache/workingset.c '/^void workingset_truncate/,/^}/ s/while (.*/while (0)/'
mutant shadows_without_limit cache/workingset.c \
    's/if (cache->shadow_head - cache->shadow_tail < shadow_limit(cache))/if (1)/' \
    '/^void workingset_make_room/,/^}/ s/too_many(cache)/false/'

rule - 'a pass: the size is read before the pages are chosen'
mutant size_read_late cache/writeback.c \
    '/^static void run_pass/,/^}/ s/^    err = atomic_load(&p->error);/    wp.size = atomic_load(\&m->i_size);\n&/'

rule - 'waiting: nobody is forgotten'
mutant lost_wakeup_page cache/page.c '/^void page_clear_and_wake/,/^}/ s/wake_word(&page->flags);/;/'
mutant lost_wakeup_waiters cache/page.c \
    '/^void page_clear_and_wake/,/^}/ s/if (page_clear(page, bits | PG_waiters) \& PG_waiters)/bool w = page_test(page, PG_waiters);\n    page_clear(page, bits | PG_waiters);\n    if (w)/'
mutant lost_wakeup_rwsem cache/wait.c '/^void up_read/,/^}/ s/wake_word(&sem->state);/;/'
mutant lost_wakeup_pass cache/writeback.c '/^static void write_end_io/,/^}/ s/wake_word(&p->inflight);/;/'

status=0
[ -z "$survived" ] || status=1
if [ -z "$only" ]; then
    for n in 1 2 3 4 5 6 7 8 9; do
        case $rules_caught in
        *"rule $n,"*) ;;
        *)
            echo "FAIL: no test notices that rule $n is broken"
            status=1
            ;;
        esac
    done
fi
echo "$caught caught; survived:${survived:- none}"
exit $status
