/* readahead.c: the mechanism: turn a policy's window into pages and bios. */
#include "cache/readahead.h"

#include <errno.h>
#include <string.h>

#include "cache/page_cache.h"
#include "cache/rcu.h"
#include "store/plug.h"

#define MOST_ORDER 8u
_Static_assert(RA_MOST_PAGES <= BIO_MAX_VECS, "a window fits into one bio");
_Static_assert(RA_MOST_PAGES == 1u << MOST_ORDER, "a folio is a whole window at most");

/* ---- an open file's state -------------------------------------------------------------------- */

void file_ra_state_init(struct file_ra_state *ra, const struct ra_policy *policy, uint32_t ra_pages)
{
    memset(ra, 0, sizeof *ra);
    pthread_mutex_init(&ra->lock, NULL); /* (owns nothing that would have to be given back) */
    atomic_store(&ra->policy, policy);
    ra->base_pages = ra_pages;
    atomic_store(&ra->ra_pages, ra_pages);
    atomic_store(&ra->prev_pos, UINT64_MAX);
}

void file_ra_set(struct file_ra_state *ra, const struct ra_policy *policy, uint32_t ra_pages)
{
    pthread_mutex_lock(&ra->lock);
    if (policy != atomic_load(&ra->policy)) {
        atomic_store(&ra->policy, policy);
        memset(ra->state, 0, sizeof ra->state);
    }
    if (ra_pages != ra->base_pages) {
        bool doubled = atomic_load(&ra->ra_pages) > ra->base_pages;
        ra->base_pages = ra_pages;
        atomic_store(&ra->ra_pages, doubled ? ra_pages * 2 : ra_pages);
    }
    pthread_mutex_unlock(&ra->lock);
}

/* As generic_fadvise() does it: a window that errors have shrunk grows again by advice only. */
void file_ra_advise(struct file_ra_state *ra, enum ra_advice advice)
{
    pthread_mutex_lock(&ra->lock);
    switch (advice) {
    case RA_ADVICE_NORMAL:
        atomic_store(&ra->ra_pages, ra->base_pages);
        break;
    case RA_ADVICE_SEQUENTIAL:
        atomic_store(&ra->ra_pages, ra->base_pages * 2);
        break;
    case RA_ADVICE_RANDOM:
        break;
    }
    atomic_store(&ra->random, advice == RA_ADVICE_RANDOM);
    pthread_mutex_unlock(&ra->lock);
}

void file_ra_shrink(struct file_ra_state *ra)
{
    atomic_store(&ra->ra_pages, atomic_load(&ra->ra_pages) / 4);
}

/* ---- asking the policy ----------------------------------------------------------------------- */

/* Without a reference: nothing but the answer is wanted, and a policy's lock is held. */
static bool page_is_cached(struct address_space *m, uint32_t index)
{
    cache_rcu_read_lock();
    void *item = radix_tree_lookup(&m->pages, index);
    bool cached = item != NULL && !radix_is_value(item);
    cache_rcu_read_unlock();
    return cached;
}

static uint32_t count_history(struct address_space *m, uint32_t index, uint32_t max)
{
    uint32_t n = 0;
    while (n < max && n < index && page_is_cached(m, index - 1 - n))
        n++;
    return n;
}

static uint32_t next_miss(struct address_space *m, uint32_t index, uint32_t max)
{
    uint32_t n = 0;
    while (n < max && page_is_cached(m, index + n))
        n++;
    return index + n;
}

static uint32_t find_folio(struct address_space *m, uint32_t index, uint32_t *nr)
{
    uint8_t order = 0;
    cache_rcu_read_lock();
    void *item = radix_tree_lookup(&m->pages, index);
    if (item != NULL && !radix_is_value(item))
        order = atomic_load_explicit(&((struct page *)item)->order, memory_order_relaxed);
    cache_rcu_read_unlock();
    *nr = 1u << order;
    return index >> order << order;
}

static uint64_t pages_in_file(struct address_space *m)
{
    return pages_for(atomic_load(&m->i_size));
}

static struct ra_access describe(struct address_space *m, struct file_ra_state *ra,
                                 const struct ra_request *rq, enum ra_event event)
{
    uint64_t prev = atomic_load_explicit(&ra->prev_pos, memory_order_relaxed);
    return (struct ra_access){
        .event = event,
        .how = rq->how,
        .index = rq->index,
        .nr = rq->nr,
        .most = atomic_load_explicit(&ra->ra_pages, memory_order_relaxed),
        .random = atomic_load_explicit(&ra->random, memory_order_relaxed),
        .prev_index = prev == UINT64_MAX ? prev : prev >> PAGE_SHIFT,
        .file_pages = pages_in_file(m),
        .history = count_history,
        .next_miss = next_miss,
        .folio = find_folio,
        .mapping = m,
    };
}

static struct ra_window ask(struct file_ra_state *ra, struct ra_access *a)
{
    struct ra_window w = { 0 };
    pthread_mutex_lock(&ra->lock);
    const struct ra_policy *policy = atomic_load_explicit(&ra->policy, memory_order_relaxed);
    if (policy != NULL) {
        a->config = policy->config;
        policy->access(ra->state, a, &w);
    }
    pthread_mutex_unlock(&ra->lock);
    if (w.stride != 0 && (w.block == 0 || w.block > w.stride))
        w.block = w.block == 0 ? 1 : w.stride;
    if (w.stride != 0)
        w.in_folios = 0;
    if (w.order > MOST_ORDER)
        w.order = MOST_ORDER;
    return w;
}

/* Cut a window to what a bio, the cache and the file can hold. The mark stays where it was from the
 * end, as in do_page_cache_ra(): a window cut by the end of the file may lose it. */
static void cut_window(struct address_space *m, struct ra_window *w, uint64_t file_pages)
{
    uint64_t most = atomic_load(&m->cache->limit) / 4 + 1;
    if (most > RA_MOST_PAGES)
        most = RA_MOST_PAGES;
    if (w->size > most)
        w->size = (uint32_t)most;
    while (w->size > 0 && ra_window_page(w, w->size - 1) >= file_pages)
        w->size--;
}

static bool window_contains(const struct ra_window *w, uint32_t index)
{
    if (w->size == 0 || index < w->start)
        return false;
    uint64_t at = index - w->start;
    if (w->stride != 0) {
        if (at % w->stride >= w->block)
            return false;
        at = at / w->stride * w->block + at % w->stride;
    }
    return at < w->size;
}

/* ---- reading --------------------------------------------------------------------------------- */

static void ra_queue_bio(struct page_cache *cache, struct bio *bio)
{
    pthread_mutex_lock(&cache->ra_lock);
    bio->next = NULL;
    *cache->ra_tail = bio;
    cache->ra_tail = &bio->next;
    pthread_mutex_unlock(&cache->ra_lock);
    worker_wake(cache->reader);
}

void ra_send(struct blk_plug *plug, struct bio *bio)
{
    struct address_space *m = bio->private;
    if (!bounce_bio(m, bio)) { /* those in the plug may have them all */
        blk_flush_plug(plug);
        (void)bounce_bio(m, bio);
    }
    submit_bio_plugged(plug, m->dev, bio);
}

static void ra_submit(struct blk_plug *plug, struct address_space *m, struct bio *bio, bool later)
{
    if (bio->nr_vecs == 0) {
        bio_free(bio);
        return;
    }
    bio->private = m;
    bio->end_io = read_end_io;
    if (later)
        bio->flags |= BIO_RAHEAD;
    if (later && m->cache->reader != NULL)
        ra_queue_bio(m->cache, bio);
    else
        ra_send(plug, bio);
}

/* The bios of one access: what the caller needs now, and what nobody waits for. */
struct ra_reading {
    struct address_space *m;
    const struct ra_request *rq; /* its pages go with now; NULL: everything with later */
    struct bio *now, *later;
    struct page *first; /* for the page at rq->index, allocated before anything was locked */
};

static bool reading_alloc(struct ra_reading *r)
{
    r->now = bio_alloc(BIO_READ, 0, BIO_MAX_VECS);
    r->later = bio_alloc(BIO_READ, 0, BIO_MAX_VECS);
    if (r->now != NULL && r->later != NULL &&
        (r->rq == NULL || (r->first = page_alloc(r->m, true)) != NULL))
        return true;
    bio_free(r->now);
    bio_free(r->later);
    return false;
}

static void reading_begin(struct ra_reading *r)
{
    down_read(&r->m->invalidate_lock);
    /* Only now: truncation changes the object, and the pages go into the tree of the new one. */
    r->now->object = r->later->object = atomic_load(&r->m->object);
}

/* Submit both, the queued one first: the worker starts while we read ours. Without a worker both are
 * ours, and go as one where they meet. */
static void reading_end(struct ra_reading *r)
{
    struct blk_plug plug;
    blk_start_plug(&plug);
    ra_submit(&plug, r->m, r->later, true);
    ra_submit(&plug, r->m, r->now, false);
    blk_finish_plug(&plug);
    up_read(&r->m->invalidate_lock);
    if (r->first != NULL)
        put_page(r->m->cache, r->first);
}

static struct page *reading_page(struct ra_reading *r, uint32_t index)
{
    struct page *page = r->first;
    if (page == NULL || index != r->rq->index)
        return page_alloc(r->m, false);
    r->first = NULL;
    return page;
}

/* A bio is ascending. A page that was cached when its turn came and has gone since waits for its own
 * miss. */
static bool bio_takes(const struct bio *bio, uint32_t index)
{
    return bio->nr_vecs < bio->max_vecs &&
           (bio->nr_vecs == 0 || bio->vecs[bio->nr_vecs - 1].index < index);
}

/* Insert one page, locked, and add it to a bio.   Returns false: no memory, or the file ends before it:
 * truncation may have come between asking the policy and the lock, and would not come again. */
static bool reading_add(struct ra_reading *r, uint32_t index, bool mark, uint8_t order)
{
    bool wanted = r->rq != NULL && index >= r->rq->index && index - r->rq->index < r->rq->nr;
    struct bio *bio = wanted ? r->now : r->later;
    if (index >= pages_in_file(r->m))
        return false;
    if (page_is_cached(r->m, index) || !bio_takes(bio, index))
        return true;
    struct page *page = reading_page(r, index);
    if (page == NULL)
        return false;
    atomic_store_explicit(&page->order, order, memory_order_relaxed);
    int err = add_to_page_cache_lru(r->m, page, index);
    if (err != 0) {
        put_page(r->m->cache, page); /* -EEXIST: somebody else brought it */
        return err == -EEXIST;
    }
    page_set(page, (mark ? PG_readahead : 0) | (wanted ? 0 : PG_prefetched));
    bio_add(bio, index, page_address(page), page); /* end_io drops our reference */
    if (!wanted)
        count_add(&r->m->cache->count.ra_pages, 1);
    return true;
}

/* The window's missing pages, while memory lasts. */
static void reading_add_window(struct ra_reading *r, const struct ra_window *w)
{
    uint64_t mark = UINT64_MAX, folio_end = 0, folios_end = (uint64_t)w->start + w->in_folios;
    uint32_t order = 0;
    if (w->async_size > 0 && w->async_size <= w->size)
        mark = ra_window_page(w, w->size - w->async_size);
    for (uint32_t i = 0; i < w->size; i++) {
        uint64_t index = ra_window_page(w, i);
        if (index >= folio_end) {
            order = index < folios_end ? ra_folio_order(index, w->order, folios_end) : 0;
            folio_end = index + (1u << order);
        }
        if (!reading_add(r, (uint32_t)index, mark >> order == index >> order, (uint8_t)order))
            break;
    }
}

int page_cache_sync_ra(struct address_space *m, struct file_ra_state *ra,
                       const struct ra_request *rq)
{
    struct ra_reading r = { .m = m, .rq = rq };
    struct ra_window asked = { .start = rq->index, .size = rq->nr }, w = { 0 };
    uint64_t file_pages = pages_in_file(m);
    if (ra != NULL) {
        struct ra_access a = describe(m, ra, rq, RA_MISS);
        file_pages = a.file_pages;
        w = ask(ra, &a);
        cut_window(m, &w, file_pages);
    }
    cut_window(m, &asked, file_pages);
    if (asked.size == 0)
        return 0; /* truncated meanwhile */
    count_add(&m->cache->count.ra_sync, 1);
    if (!reading_alloc(&r))
        return -ENOMEM;
    reading_begin(&r);
    if (!window_contains(&w, rq->index))
        reading_add_window(&r, &asked);
    reading_add_window(&r, &w);
    if (r.first != NULL) /* memory ended before the window came there */
        reading_add(&r, rq->index, false, 0);
    reading_end(&r);
    return 0;
}

static void clear_marks(struct address_space *m, uint32_t index, uint32_t nr)
{
    for (uint32_t i = 0; i < nr; i++) {
        struct page *page = find_get_page(m, index + i);
        if (page == NULL)
            continue;
        page_clear(page, PG_readahead);
        put_page(m->cache, page);
    }
}

/* Of several readers of a marked page, one takes the mark. (Readers of different pages of a folio
 * may come at once and each take it; then each asks the policy.) */
static bool take_mark(struct address_space *m, struct page *page, uint32_t index)
{
    if (!page_test(page, PG_readahead) || !(page_clear(page, PG_readahead) & PG_readahead))
        return false;
    uint8_t order = atomic_load_explicit(&page->order, memory_order_relaxed);
    if (order > 0)
        clear_marks(m, index >> order << order, 1u << order);
    return true;
}

void page_cache_async_ra(struct address_space *m, struct file_ra_state *ra, struct page *page,
                         const struct ra_request *rq)
{
    struct ra_reading r = { .m = m };
    if (rq->how == RA_FAULT_RANDOM && page_test(page, PG_readahead))
        return; /* the mark stays, for others */
    struct ra_access a = describe(m, ra, rq, take_mark(m, page, rq->index) ? RA_MARK : RA_HIT);
    if (a.event == RA_HIT && a.how == RA_READ && !file_ra_every_access(ra))
        return;
    a.prefetched = page_test(page, PG_prefetched);
    struct ra_window w = ask(ra, &a);
    cut_window(m, &w, a.file_pages);
    if (w.size == 0 || !reading_alloc(&r))
        return;
    count_add(&m->cache->count.ra_async, 1);
    reading_begin(&r);
    reading_add_window(&r, &w);
    reading_end(&r);
}
