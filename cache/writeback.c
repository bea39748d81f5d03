/* writeback.c: from dirty to written.
 *
 * A pass over a mapping writes what was dirty when it began, in index order: i_size is read, then
 * every dirty page gets the to-write tag, then the tagged pages go out in bios. Pages dirtied later
 * are the next pass's business, so a pass ends however fast others write (Linux:
 * tag_pages_for_writeback). When it ended without error, every byte below that i_size which was
 * there when it began is in the store's transaction: that is what lets the owner raise the size in
 * the inode's record (a_ops->writeback_end).
 */
#include <assert.h>
#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>

#include "cache/errseq.h"
#include "cache/memory.h"
#include "cache/page_cache.h"

#define TAG_BATCH      4096u /* pages tagged under one hold of the tree lock */
#define RETRY_FIRST_MS 100u  /* back-off after a failed pass: doubles */
#define RETRY_MOST_MS  10000u
#define HELD_NS        30000000000u /* how long a sync tries again when a client keeps it waiting */

/* ---- dirtying -------------------------------------------------------------------------------- */

int dirty_page_reserve(struct address_space *m, struct page *page)
{
    assert(page_test(page, PG_locked));
    if (page_test(page, PG_dirty) || m->a_ops->reserve == NULL)
        return 0;
    return m->a_ops->reserve(m, 1, page_test(page, PG_mappedtodisk) ? 0 : 1);
}

/* The owner's reference is taken under the lock: whoever takes the mapping off the list again gives
 * back one that was taken. */
static void dirty_list_add(struct address_space *m)
{
    struct page_cache *cache = m->cache;
    pthread_mutex_lock(&cache->dirty_lock);
    if (!m->on_dirty) {
        if (m->a_ops->get != NULL)
            m->a_ops->get(m);
        m->on_dirty = true;
        m->dirtied_ns = clock_now(cache->clock);
        list_add(&m->dirty, &cache->dirty_mappings);
    }
    pthread_mutex_unlock(&cache->dirty_lock);
}

bool dirty_list_del_if_clean(struct address_space *m)
{
    struct page_cache *cache = m->cache;
    bool removed = false;
    pthread_mutex_lock(&cache->dirty_lock);
    if (m->on_dirty && atomic_load(&m->nrdirty) == 0) {
        m->on_dirty = false;
        removed = true;
        list_del(&m->dirty);
    }
    pthread_mutex_unlock(&cache->dirty_lock);
    return removed;
}

void dirty_list_put(struct address_space *m)
{
    if (m->a_ops->put != NULL)
        m->a_ops->put(m);
}

/* Context: tree_lock held, or no other way to the page (writeback). */
static void set_dirty_tagged(struct address_space *m, struct page *page)
{
    if (page_set(page, PG_dirty) & PG_dirty)
        return;
    radix_tree_tag_set(&m->pages, atomic_load(&page->index), RADIX_TAG_DIRTY);
    atomic_fetch_add(&m->nrdirty, 1);
    atomic_fetch_add(&m->cache->nr_dirty, 1);
}

static void clear_dirty_tagged(struct address_space *m, struct page *page)
{
    page_forget_ahead(m, page);
    page_clear(page, PG_dirty);
    radix_tree_tag_clear(&m->pages, atomic_load(&page->index), RADIX_TAG_DIRTY);
    radix_tree_tag_clear(&m->pages, atomic_load(&page->index), RADIX_TAG_TOWRITE);
    atomic_fetch_sub(&m->nrdirty, 1);
    atomic_fetch_sub(&m->cache->nr_dirty, 1);
}

void set_page_dirty(struct address_space *m, struct page *page)
{
    assert(page_test(page, PG_locked) && page_test(page, PG_uptodate));
    if (page_test(page, PG_dirty))
        return;
    pthread_mutex_lock(&m->tree_lock);
    set_dirty_tagged(m, page);
    pthread_mutex_unlock(&m->tree_lock);
    dirty_list_add(m);
}

void cancel_dirty_page(struct address_space *m, struct page *page)
{
    assert(page_test(page, PG_locked));
    pthread_mutex_lock(&m->tree_lock);
    bool was = page_test(page, PG_dirty);
    if (was)
        clear_dirty_tagged(m, page);
    pthread_mutex_unlock(&m->tree_lock);
    if (was && m->a_ops->unreserve != NULL)
        m->a_ops->unreserve(m, 1, page_test(page, PG_mappedtodisk) ? 0 : 1);
    if (was)
        cache_made_progress(m->cache);
}

/* ---- one pass -------------------------------------------------------------------------------- */

struct pass {
    struct address_space *m;
    struct bio *bio;           /* being filled */
    _Atomic uint32_t inflight; /* bios submitted and not ended */
    _Atomic int error;         /* the worst: worse_error() */
    uint64_t written;          /* pages in bios */
    int left_out;              /* why pages were, the worst: -EAGAIN, or page_mkclean's error */
};

/* Pages were left out because others hold them, which is nobody's error. */
static bool left_out(int err)
{
    return err == -EAGAIN || err == -EBUSY;
}

/* Want of memory is counted apart, as something worse may hide it. */
static void note_short(struct address_space *m, int err)
{
    if (err == -ENOMEM)
        count_add(&m->cache->nr_short, 1);
}

/* err: what went wrong, if anything did. */
static void pass_note(struct pass *p, int err)
{
    int worst = atomic_load(&p->error);
    while (!atomic_compare_exchange_weak(&p->error, &worst, worse_error(worst, err)))
        ;
    note_short(p->m, err);
}

static void pass_leave_out(struct pass *p, int err)
{
    p->left_out = worse_error(p->left_out, err);
    note_short(p->m, err);
}

/* The write's outcome. Dirty again comes before the end of writeback: in between the page would look
 * clean with its bytes nowhere. */
static void end_page_writeback(struct address_space *m, struct page *page, int error)
{
    bool keep = error == -ENOMEM || (error != 0 && m->cache->on_error != WB_ERROR_CLEAN);
    if (error != 0 && !keep && m->a_ops->unreserve != NULL)
        m->a_ops->unreserve(m, 1, page_test(page, PG_mappedtodisk) ? 0 : 1);
    pthread_mutex_lock(&m->tree_lock);
    if (keep)
        set_dirty_tagged(m, page);
    else if (error == 0)
        page_set(page, PG_mappedtodisk);
    radix_tree_tag_clear(&m->pages, atomic_load(&page->index), RADIX_TAG_WRITEBACK);
    page_clear_and_wake(page, PG_writeback);
    pthread_mutex_unlock(&m->tree_lock);
    atomic_fetch_sub(&m->cache->nr_writeback, 1);
}

static void write_end_io(struct bio *bio)
{
    struct pass *p = bio->private;
    struct page_cache *cache = p->m->cache;
    for (uint32_t i = 0; i < bio->nr_vecs; i++) {
        pass_note(p, bio->vecs[i].error);
        end_page_writeback(p->m, bio->vecs[i].owner, bio->vecs[i].error);
        put_page(cache, bio->vecs[i].owner);
    }
    count_add(&cache->count.written_pages, bio->nr_vecs);
    if (bio->error != 0)
        count_add(&cache->count.write_errors, 1);
    bio_free(bio);
    cache_made_progress(cache);
    if (atomic_fetch_sub(&p->inflight, 1) == 1)
        wake_word(&p->inflight);
}

static void pass_submit(struct pass *p)
{
    struct bio *bio = p->bio;
    p->bio = NULL;
    if (bio == NULL)
        return;
    atomic_fetch_add(&p->inflight, 1);
    bio->private = p;
    bio->end_io = write_end_io;
    (void)bounce_bio(p->m, bio);
    if (bio->error != 0)
        bio_endio(bio); /* its bytes cannot be had */
    else
        submit_bio(p->m->dev, bio);
}

/* Clean a locked page for its write. It is write-protected in every mapping first, or a store through one of them would
 * be lost.   Returns 0, or page_mkclean's error: the page stays dirty. */
static int clear_page_dirty_for_io(struct address_space *m, struct page *page)
{
    int err = page_mkclean(m, page);
    if (err != 0)
        return err;
    zero_beyond_eof(m, page, UINT64_MAX); /* that is how it reaches the disk */
    pthread_mutex_lock(&m->tree_lock);
    clear_dirty_tagged(m, page);
    page_set(page, PG_writeback);
    radix_tree_tag_set(&m->pages, atomic_load(&page->index), RADIX_TAG_WRITEBACK);
    pthread_mutex_unlock(&m->tree_lock);
    atomic_fetch_add(&m->cache->nr_writeback, 1);
    return 0;
}

static void clear_towrite(struct address_space *m, struct page *page)
{
    pthread_mutex_lock(&m->tree_lock);
    radix_tree_tag_clear(&m->pages, atomic_load(&page->index), RADIX_TAG_TOWRITE);
    pthread_mutex_unlock(&m->tree_lock);
}

/* Put a locked page into the pass's bio if it is still ours to write. */
static bool pass_take_page(struct pass *p, struct page *page)
{
    struct address_space *m = p->m;
    if (atomic_load(&page->mapping) != m)
        return false;
    wait_on_page_writeback(page);
    int err = page_end_ahead(m, page);
    if (!page_test(page, PG_dirty)) {
        clear_towrite(m, page);
        return false;
    }
    if (err == 0)
        err = clear_page_dirty_for_io(m, page);
    if (err != 0) { /* the next pass tries again */
        pass_leave_out(p, err);
        return false;
    }
    uint32_t index = atomic_load(&page->index);
    struct bio_vec *v = bio_add(p->bio, index, page_address(page), page);
    v->flags = page_test(page, PG_mappedtodisk) ? 0 : BV_NEW;
    p->written++;
    return true;
}

/* Lock a page for the pass.   Returns false: left out, somebody else holds it. */
static bool pass_lock_page(struct pass *p, struct page *page, enum writeback_sync sync)
{
    if (sync == WB_SYNC_ALL) {
        lock_page(page);
        return true;
    }
    if (trylock_page(page))
        return true;
    pass_leave_out(p, -EAGAIN);
    return false;
}

/* Write one page; consumes the reference.   Returns 0 or -ENOMEM. */
static int pass_add_page(struct pass *p, struct page *page, enum writeback_sync sync)
{
    struct address_space *m = p->m;
    if (p->bio == NULL)
        p->bio = bio_alloc(BIO_WRITE, atomic_load(&m->object), BIO_MAX_VECS);
    bool taken = false;
    if (p->bio != NULL && pass_lock_page(p, page, sync)) {
        taken = pass_take_page(p, page);
        unlock_page(page);
    }
    if (!taken)
        put_page(m->cache, page); /* else end_io drops it */
    else if (p->bio->nr_vecs == BIO_MAX_VECS)
        pass_submit(p);
    return p->bio == NULL && !taken ? -ENOMEM : 0;
}

static void tag_pages_for_writeback(struct address_space *m)
{
    uint64_t next = 0;
    do {
        pthread_mutex_lock(&m->tree_lock);
        radix_tree_range_tag_if_tagged(&m->pages, next, UINT32_MAX, TAG_BATCH, RADIX_TAG_DIRTY,
                                       RADIX_TAG_TOWRITE, &next);
        pthread_mutex_unlock(&m->tree_lock);
    } while (next != 0 && next <= UINT32_MAX);
}

static void write_cache_pages(struct pass *p, enum writeback_sync sync)
{
    struct page *pages[PAGEVEC];
    uint64_t next = 0;
    int err = 0;
    tag_pages_for_writeback(p->m);
    while (err == 0 && next <= UINT32_MAX) {
        unsigned n = find_get_pages_tag(p->m, &next, UINT32_MAX, pages, PAGEVEC, RADIX_TAG_TOWRITE);
        for (unsigned i = 0; i < n; i++) {
            if (err == 0)
                err = pass_add_page(p, pages[i], sync);
            else
                put_page(p->m->cache, pages[i]);
        }
    }
    if (p->bio != NULL && p->bio->nr_vecs == 0) {
        bio_free(p->bio);
        p->bio = NULL;
    }
    pass_submit(p);
    uint32_t left;
    while ((left = atomic_load(&p->inflight)) != 0)
        wait_on_word(&p->inflight, left, 0);
    pass_note(p, err);
}

/* Begin, write, end. */
static void run_pass(struct pass *p, enum writeback_sync sync)
{
    struct address_space *m = p->m;
    const struct address_space_operations *ops = m->a_ops;
    struct writeback_pass wp = { 0 };
    uint64_t start = clock_now(m->cache->clock);
    wp.size = atomic_load(&m->i_size); /* before the tags: see above */
    wp.writes = atomic_load(&m->nrdirty) > 0;
    int err = ops->writeback_begin != NULL ? ops->writeback_begin(m, &wp) : 0;
    pass_note(p, err);
    if (err != 0)
        return;
    if (wp.writes)
        write_cache_pages(p, sync);
    err = atomic_load(&p->error);
    if (ops->writeback_end != NULL)
        pass_note(p, ops->writeback_end(m, &wp, err == 0 && p->left_out != 0 ? -EAGAIN : err));
    if (wp.writes && atomic_load(&p->error) == 0 && p->left_out == 0)
        note_bandwidth(m->cache, p->written, clock_now(m->cache->clock) - start);
}

static bool above_background(struct page_cache *cache, uint64_t pages)
{
    return pages > dirty_limit(cache, atomic_load(&cache->dirty_background_ratio));
}

/* Try again later, and the longer it has failed the later. Context: dirty_lock. */
static void back_off(struct address_space *m, uint64_t now)
{
    uint64_t ms = (uint64_t)RETRY_FIRST_MS << (m->wb_failures < 10 ? m->wb_failures : 10);
    m->wb_retry_ns = now + (ms < RETRY_MOST_MS ? ms : RETRY_MOST_MS) * 1000000u;
}

/* Is it for others to end it? Then it is tried until it does. */
static bool lacks_room(int err)
{
    return err == -ENOSPC || err == -EDQUOT;
}

/* Count failures in a row, and put off the next try. One before the mapping was to be tried again is no new one:
 * fsyncs, and writers that a full volume has sync everything, may come as fast as they like.   Returns: is err news?
 * Context: writeback_sem. */
static bool count_failure(struct address_space *m, int err, bool failed)
{
    uint64_t now = err != 0 ? clock_now(m->cache->clock) : 0;
    pthread_mutex_lock(&m->cache->dirty_lock);
    bool news = err == 0 || now >= m->wb_retry_ns;
    if (err == 0) {
        m->wb_failures = 0;
        m->wb_retry_ns = 0;
    } else if (news && err != -EAGAIN) {
        back_off(m, now);
        m->wb_failures += failed && (!lacks_room(err) || m->wb_failures + 1 < WB_TRIES);
        if (err != -EBUSY)
            m->dirtied_ns = 0; /* it is as old as it was */
    }
    pthread_mutex_unlock(&m->cache->dirty_lock);
    return news;
}

/* Who dirties pages waits for them to be written only while that gets somewhere. What others hold says nothing about
 * the store; but nobody can wait for so much of it to be written. */
static void note_progress(const struct pass *p, int err)
{
    struct page_cache *cache = p->m->cache;
    bool stuck =
        err != 0 &&
        (!left_out(err) || (err == -EBUSY && above_background(cache, atomic_load(&p->m->nrdirty))));
    if (stuck || err == 0 || (err == -EAGAIN && p->written > 0))
        atomic_store_explicit(&cache->writeback_failing, stuck, memory_order_relaxed);
}

/* A pass has ended with err. Context: writeback_sem. */
static void note_outcome(const struct pass *p, int err)
{
    struct address_space *m = p->m;
    int store_err = atomic_load(&p->error);
    bool failed = store_err != 0 && store_err != -ENOMEM;
    if (count_failure(m, err, failed))
        note_progress(p, err);
    bool give_up = failed && (m->cache->on_error == WB_ERROR_RO || m->wb_failures >= WB_TRIES);
    if (give_up && m->a_ops->shutdown != NULL)
        m->a_ops->shutdown(m);
}

/* Returns 0; -EAGAIN, -EBUSY: pages were skipped, or a client keeps them; errors: the worst.
 * Context: writeback_sem, which is released. */
static int pass_and_release(struct address_space *m, enum writeback_sync sync)
{
    struct pass p = { .m = m };
    run_pass(&p, sync);
    int err = worse_error(atomic_load(&p.error), p.left_out);
    count_add(&m->cache->count.passes, 1);
    if (err != 0 && !left_out(err))
        errseq_set(&m->wb_err, err);
    /* Where anything went wrong the owner may have a size and times to record, though no page is dirty. */
    if (err != 0)
        dirty_list_add(m);
    note_outcome(&p, err);
    /* While no pass can begin: what one has in hand is not dirty, but not written either, and a
     * sync must find it on the list. */
    bool removed = err == 0 && dirty_list_del_if_clean(m);
    up_write(&m->writeback_sem);
    if (removed)
        dirty_list_put(m);
    return err;
}

/* WB_SYNC_ALL, until it was not held, or the time is over (clock_monotonic, as only real clients hold). */
static int write_all(struct address_space *m, uint64_t until)
{
    for (;;) {
        down_write(&m->writeback_sem);
        int err = pass_and_release(m, WB_SYNC_ALL);
        if (err != -EBUSY || clock_now(&clock_monotonic) >= until)
            return err;
        (void)poll(NULL, 0, RETRY_FIRST_MS);
    }
}

int filemap_fdatawrite(struct address_space *m, enum writeback_sync sync)
{
    if (sync == WB_SYNC_ALL)
        return write_all(m, clock_now(&clock_monotonic) + HELD_NS);
    down_write(&m->writeback_sem);
    int err = pass_and_release(m, sync);
    return left_out(err) ? 0 : err;
}

int filemap_check_errors(struct address_space *m, _Atomic uint32_t *since)
{
    return errseq_check_and_advance(&m->wb_err, since);
}

/* ---- the flusher ----------------------------------------------------------------------------- */

void wakeup_flusher(struct page_cache *cache)
{
    atomic_store_explicit(&cache->want_writeback, true, memory_order_relaxed);
    crew_wake(&cache->flushers);
}

void page_cache_more_flushers(struct page_cache *cache, unsigned nr)
{
    crew_grow(&cache->flushers, nr);
}

/* Have a mapping of the list written next: to the front with it, and a reference on its owner.
 * Context: dirty_lock. */
static struct address_space *take_dirty(struct page_cache *cache, struct address_space *m)
{
    list_move(&m->dirty, &cache->dirty_mappings);
    if (m->a_ops->get != NULL)
        m->a_ops->get(m);
    return m;
}

/* The oldest dirty mapping that may be tried now, with a reference on its owner; it moves to the
 * front, so that the next call gives another.   NULL: none (that is old enough). */
static struct address_space *oldest_dirty(struct page_cache *cache, uint64_t now,
                                          uint64_t older_than)
{
    struct address_space *m = NULL;
    pthread_mutex_lock(&cache->dirty_lock);
    for (struct list_head *n = cache->dirty_mappings.prev; n != &cache->dirty_mappings;
         n = n->prev) {
        struct address_space *c = list_entry(n, struct address_space, dirty);
        if (c->wb_retry_ns > now || c->dirtied_ns > older_than)
            continue;
        c->dirtied_ns = now;
        m = take_dirty(cache, c);
        break;
    }
    pthread_mutex_unlock(&cache->dirty_lock);
    return m;
}

/* What was left out, because somebody holds it, is as old as it was. */
static void retry_soon(struct address_space *m)
{
    struct page_cache *cache = m->cache;
    uint64_t now = clock_now(cache->clock);
    pthread_mutex_lock(&cache->dirty_lock);
    m->dirtied_ns = 0;
    back_off(m, now);
    pthread_mutex_unlock(&cache->dirty_lock);
}

/* The flusher waits for nobody who may hold a page or the mapping: all other files wait for it.
 * expired: what was left out is to be tried again soon.   Returns 0; -EAGAIN, -EBUSY: somebody does; errors. */
static int flush_mapping(struct address_space *m, bool expired)
{
    bool passed = down_write_trylock(&m->writeback_sem);
    int err = passed ? pass_and_release(m, WB_SYNC_NONE) : -EAGAIN;
    bool later = err == -EAGAIN && passed && !expired;
    /* With nothing dirty it is listed for the owner's sake. */
    if (err == -EAGAIN && (!later || atomic_load(&m->nrdirty) == 0))
        retry_soon(m);
    dirty_list_put(m);
    return later ? 0 : err;
}

unsigned flusher_step(struct page_cache *cache)
{
    uint64_t now = clock_now(cache->clock);
    uint64_t expire = (uint64_t)atomic_load(&cache->dirty_expire_ms) * 1000000u;
    bool wanted = atomic_exchange(&cache->want_writeback, false);
    struct address_space *m;
    int err = -EAGAIN;
    bool background = wanted || above_background(cache, atomic_load(&cache->nr_dirty));
    while (background && left_out(err) && (m = oldest_dirty(cache, now, UINT64_MAX)) != NULL)
        err = flush_mapping(m, false);
    while ((m = oldest_dirty(cache, now, now > expire ? now - expire : 0)) != NULL)
        flush_mapping(m, true);
    if (above_background(cache, atomic_load(&cache->nr_dirty)))
        return err == 0 ? 0 : RETRY_FIRST_MS;
    return atomic_load(&cache->dirty_writeback_ms);
}

/* A dirty mapping that this sync has not had in hand; NULL: none. */
static struct address_space *next_to_sync(struct page_cache *cache, uint64_t sync)
{
    struct address_space *m = NULL;
    pthread_mutex_lock(&cache->dirty_lock);
    for (struct list_head *n = cache->dirty_mappings.prev; n != &cache->dirty_mappings;
         n = n->prev) {
        struct address_space *c = list_entry(n, struct address_space, dirty);
        if (c->synced == sync)
            continue;
        c->synced = sync;
        m = take_dirty(cache, c);
        break;
    }
    pthread_mutex_unlock(&cache->dirty_lock);
    return m;
}

/* Also what the flusher has in hand: writing it waits for the pass under way. One sync at a time, or
 * the second would pass over what the first has not finished. */
int page_cache_sync(struct page_cache *cache)
{
    int worst = 0;
    struct address_space *m;
    uint64_t until = clock_now(&clock_monotonic) + HELD_NS;
    down_write(&cache->sync_sem);
    uint64_t sync = ++cache->nr_syncs;
    while ((m = next_to_sync(cache, sync)) != NULL) {
        worst = worse_error(worst, write_all(m, until));
        dirty_list_put(m);
    }
    up_write(&cache->sync_sem);
    return worst;
}

uint64_t page_cache_nr_short(const struct page_cache *cache)
{
    return atomic_load(&cache->nr_short);
}
