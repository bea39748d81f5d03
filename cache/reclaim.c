/* reclaim.c: the mechanism of reclaim: lists, counting uses, evicting. Policies: reclaim.h.
 *
 * A hit takes no lock. Dirty pages are never waited for: the scan wakes the flusher and goes on.
 */
#include "cache/reclaim.h"

#include <assert.h>
#include <errno.h>
#include <string.h>

#include "cache/memfd.h"
#include "cache/memory.h"

#define LRU_LOOKS 256u /* pages looked at under one hold of lru_lock */

/* ---- policies -------------------------------------------------------------------------------- */

static const struct reclaim_policy *const policies[] = { &reclaim_lru2q, &reclaim_s3fifo };

const struct reclaim_policy *reclaim_policy_find(const char *name)
{
    for (size_t i = 0; i < sizeof policies / sizeof policies[0]; i++)
        if (name == NULL || strcmp(policies[i]->name, name) == 0)
            return policies[i];
    return NULL;
}

const char *page_cache_reclaim_name(const char *name)
{
    const struct reclaim_policy *policy = reclaim_policy_find(name);
    return policy != NULL ? policy->name : NULL;
}

int page_cache_set_reclaim(struct page_cache *cache, const char *name)
{
    const struct reclaim_policy *policy = reclaim_policy_find(name);
    if (policy == NULL)
        return -EINVAL;
    pthread_mutex_lock(&cache->lru_lock);
    cache->policy = policy;
    pthread_mutex_unlock(&cache->lru_lock);
    workingset_forget_all(cache); /* ages of one mean nothing to the other */
    return 0;
}

/* ---- lists ----------------------------------------------------------------------------------- */

void lru_insert(struct page_cache *cache, struct page *page, bool active)
{
    list_add(&page->lru, active ? &cache->active : &cache->inactive);
    if (active)
        cache->nr_active++;
    else
        cache->nr_inactive++;
    page_set(page, PG_lru | (active ? PG_active : 0));
}

void lru_activate(struct page_cache *cache, struct page *page)
{
    list_move(&page->lru, &cache->active);
    page_set(page, PG_active);
    page_set_uses(page, 0);
    cache->nr_inactive--;
    cache->nr_active++;
    count_add(&cache->count.activated, 1);
}

void lru_deactivate(struct page_cache *cache, struct page *page)
{
    list_move(&page->lru, &cache->inactive);
    page_clear(page, PG_active);
    page_set_uses(page, 0);
    cache->nr_active--;
    cache->nr_inactive++;
}

void lru_deactivate_range(struct address_space *m, uint32_t first, uint32_t last)
{
    struct page *pages[PAGEVEC];
    for (uint64_t next = first; next <= last;) {
        unsigned n = find_get_pages(m, &next, last, pages, PAGEVEC);
        for (unsigned i = 0; i < n; i++) {
            pthread_mutex_lock(&m->cache->lru_lock);
            page_clear(pages[i], PG_referenced);
            page_set_uses(pages[i], 0); /* or it would be activated when it is looked at */
            if (page_test(pages[i], PG_lru) && page_test(pages[i], PG_active))
                lru_deactivate(m->cache, pages[i]);
            pthread_mutex_unlock(&m->cache->lru_lock);
            put_page(m->cache, pages[i]);
        }
    }
}

void lru_add(struct page_cache *cache, struct page *page)
{
    pthread_mutex_lock(&cache->lru_lock);
    cache->policy->add(cache, page);
    pthread_mutex_unlock(&cache->lru_lock);
}

static void lru_del_locked(struct page_cache *cache, struct page *page)
{
    if (!page_test(page, PG_lru))
        return;
    list_del(&page->lru);
    if (page_clear(page, PG_lru | PG_active) & PG_active)
        cache->nr_active--;
    else
        cache->nr_inactive--;
}

void lru_remove(struct page_cache *cache, struct page *page)
{
    pthread_mutex_lock(&cache->lru_lock);
    lru_del_locked(cache, page);
    pthread_mutex_unlock(&cache->lru_lock);
    if (page_clear(page, PG_prefetched) & PG_prefetched)
        count_add(&cache->count.ra_wasted, 1);
}

/* The first use is the one for which the page was brought. Two threads may count one use together:
 * it is an estimate. */
void mark_page_accessed(struct page *page)
{
    if (!page_test(page, PG_referenced)) {
        page_set(page, PG_referenced);
        return;
    }
    unsigned uses = page_uses(page);
    if (uses < USES_MAX)
        page_set_uses(page, uses + 1);
}

/* ---- evicting -------------------------------------------------------------------------------- */

struct scan {
    uint64_t looks, names; /* left: every page may be looked at so often, and is named once */
    uint64_t stuck;        /* were named and could not go */
};

static struct scan scan_begin(struct page_cache *cache)
{
    pthread_mutex_lock(&cache->lru_lock);
    uint64_t pages = cache->nr_inactive + cache->nr_active;
    pthread_mutex_unlock(&cache->lru_lock);
    return (struct scan){ .looks = pages * RECLAIM_ROUNDS, .names = pages };
}

/* Take references on up to LRU_BATCH pages that the policy names. */
static unsigned isolate_pages(struct page_cache *cache, struct page **batch, struct scan *s)
{
    unsigned n = 0;
    pthread_mutex_lock(&cache->lru_lock);
    for (unsigned looks = 0; n < LRU_BATCH && looks < LRU_LOOKS && s->looks > 0 && s->names > 0;
         looks++, s->looks--) {
        if (list_empty(&cache->inactive) && list_empty(&cache->active)) {
            s->names = 0;
            break;
        }
        struct page *page = cache->policy->candidate(cache, s->stuck);
        if (page == NULL)
            continue;
        s->names--;
        if (get_page_unless_zero(page))
            batch[n++] = page;
    }
    pthread_mutex_unlock(&cache->lru_lock);
    return n;
}

/* Take a locked, clean page out of its tree if only the tree and we hold it. The count is frozen first:
 * a look-up from then on waits until it is out or back. Unmapped everywhere before it is free; with a
 * memfd its bytes go with that, so nobody else may hold it. */
static bool remove_mapping(struct address_space *m, struct page *page)
{
    if (page_test(page, PG_dirty | PG_writeback) || !page_ref_freeze(page, 2))
        return false;
    if (!page_unmap(m, page)) {
        page_ref_unfreeze(page, 2);
        return false;
    }
    workingset_make_room(m->cache);
    pthread_mutex_lock(&m->tree_lock);
    page_replace_locked(m, page, workingset_eviction(m, page));
    pthread_mutex_unlock(&m->tree_lock);
    return true;
}

static bool try_remove_mapping(struct page *page)
{
    struct address_space *m = atomic_load(&page->mapping);
    if (m == NULL)
        return false;
    bool shared = page_in_memfd(m->cache, page);
    if (shared && !memfd_reclaim_begin())
        return false;
    bool removed = remove_mapping(m, page);
    if (shared)
        memfd_reclaim_end();
    return removed;
}

/* One isolated page; consumes its reference.   Returns true when it was freed. */
static bool reclaim_page(struct page_cache *cache, struct page *page)
{
    if (page_test(page, PG_dirty)) {
        atomic_store_explicit(&cache->want_writeback, true, memory_order_relaxed);
    } else if (!page_test(page, PG_writeback) && trylock_page(page)) {
        if (try_remove_mapping(page)) {
            lru_remove(cache, page);
            unlock_page(page);
            page_free(cache, page);
            return true;
        }
        unlock_page(page);
    }
    put_page(cache, page);
    return false;
}

uint64_t shrink_lru(struct page_cache *cache, uint64_t want)
{
    struct page *batch[LRU_BATCH];
    uint64_t freed = 0;
    struct scan s = scan_begin(cache);
    while (freed < want && s.looks > 0 && s.names > 0) {
        unsigned n = isolate_pages(cache, batch, &s);
        unsigned gone = 0;
        for (unsigned i = 0; i < n; i++)
            gone += reclaim_page(cache, batch[i]);
        freed += gone;
        s.stuck += n - gone;
        count_add(&cache->count.scanned, n);
    }
    count_add(&cache->count.reclaimed, freed);
    if (atomic_load_explicit(&cache->want_writeback, memory_order_relaxed))
        wakeup_flusher(cache);
    return freed;
}

/* Take references on pages that are on a list, among the frames from *frame on.   Returns 0 at the end. */
static unsigned isolate_frames(struct page_cache *cache, struct page **batch, uint64_t *frame)
{
    unsigned n = 0;
    pthread_mutex_lock(&cache->lru_lock);
    for (; n < LRU_BATCH && *frame < cache->fresh; ++*frame) {
        struct page *page = &cache->pages[*frame];
        if (page_test(page, PG_lru) && get_page_unless_zero(page))
            batch[n++] = page;
    }
    pthread_mutex_unlock(&cache->lru_lock);
    return n;
}

uint64_t reclaim_all(struct page_cache *cache)
{
    struct page *batch[LRU_BATCH];
    uint64_t freed = 0, frame = 0;
    unsigned n;
    while ((n = isolate_frames(cache, batch, &frame)) > 0)
        for (unsigned i = 0; i < n; i++)
            freed += reclaim_page(cache, batch[i]);
    count_add(&cache->count.reclaimed, freed);
    if (atomic_load_explicit(&cache->want_writeback, memory_order_relaxed))
        wakeup_flusher(cache); /* some were dirty */
    return freed;
}
