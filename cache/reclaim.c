/* reclaim.c: which page goes when memory is needed.
 *
 * Two lists, as in Linux before MGLRU: a page starts at the front of the inactive list; when the
 * scan at its back finds it used again it moves to the active list; the active list's back feeds
 * the inactive one when that becomes the shorter. A hit only sets PG_referenced: it takes no lock.
 * Dirty pages are never waited for: the scan wakes the flusher and goes on.
 */
#include <assert.h>

#include "cache/memory.h"
#include "cache/page_cache.h"

void lru_add(struct page_cache *cache, struct page *page)
{
    pthread_mutex_lock(&cache->lru_lock);
    list_add(&page->lru, &cache->inactive);
    cache->nr_inactive++;
    page_set(page, PG_lru);
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

void mark_page_accessed(struct page *page)
{
    if (!page_test(page, PG_referenced))
        page_set(page, PG_referenced);
}

static void activate_page(struct page_cache *cache, struct page *page)
{
    pthread_mutex_lock(&cache->lru_lock);
    if (page_test(page, PG_lru) && !page_test(page, PG_active)) {
        list_move(&page->lru, &cache->active);
        page_set(page, PG_active);
        cache->nr_inactive--;
        cache->nr_active++;
        count_add(&cache->count.activated, 1);
    }
    pthread_mutex_unlock(&cache->lru_lock);
}

/* Move pages from the back of the active list to the inactive one, while that is the shorter. */
static void refill_inactive_locked(struct page_cache *cache)
{
    for (unsigned n = 0; n < LRU_BATCH && cache->nr_inactive < cache->nr_active; n++) {
        struct page *page = list_entry(cache->active.prev, struct page, lru);
        page_clear(page, PG_active | PG_referenced);
        list_move(&page->lru, &cache->inactive);
        cache->nr_active--;
        cache->nr_inactive++;
    }
}

/* Take references on up to LRU_BATCH pages at the back, and move them to the front, so that the next
 * scan meets others. */
static unsigned isolate_pages(struct page_cache *cache, struct page **batch, uint64_t *budget)
{
    unsigned n = 0;
    pthread_mutex_lock(&cache->lru_lock);
    refill_inactive_locked(cache);
    while (n<LRU_BATCH && * budget> 0 && !list_empty(&cache->inactive)) {
        struct page *page = list_entry(cache->inactive.prev, struct page, lru);
        list_move(&page->lru, &cache->inactive);
        (*budget)--;
        if (get_page_unless_zero(page))
            batch[n++] = page;
    }
    pthread_mutex_unlock(&cache->lru_lock);
    return n;
}

/* Take a locked, clean page out of its tree if only the tree and we hold it (rule: freeze the count
 * first, so that a look-up that comes later finds nothing to hold). */
static bool remove_mapping(struct page *page)
{
    struct address_space *m = atomic_load(&page->mapping);
    if (m == NULL || !page_unmap(m, page)) /* unmapped everywhere before it is free */
        return false;
    pthread_mutex_lock(&m->tree_lock);
    bool ok = !page_test(page, PG_dirty | PG_writeback) && page_ref_freeze(page, 2);
    if (ok)
        page_delete_locked(m, page);
    pthread_mutex_unlock(&m->tree_lock);
    return ok;
}

/* One isolated page; consumes its reference.   Returns true when it was freed. */
static bool reclaim_page(struct page_cache *cache, struct page *page)
{
    if (page_clear(page, PG_referenced) & PG_referenced) {
        activate_page(cache, page);
    } else if (page_test(page, PG_dirty)) {
        atomic_store_explicit(&cache->want_writeback, true, memory_order_relaxed);
    } else if (!page_test(page, PG_writeback) && trylock_page(page)) {
        if (remove_mapping(page)) {
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
    pthread_mutex_lock(&cache->lru_lock);
    uint64_t budget = cache->nr_inactive + cache->nr_active;
    pthread_mutex_unlock(&cache->lru_lock);
    while (freed < want) {
        unsigned n = isolate_pages(cache, batch, &budget);
        if (n == 0)
            break;
        for (unsigned i = 0; i < n; i++)
            freed += reclaim_page(cache, batch[i]);
        count_add(&cache->count.scanned, n);
    }
    count_add(&cache->count.reclaimed, freed);
    if (atomic_load_explicit(&cache->want_writeback, memory_order_relaxed))
        wakeup_flusher(cache);
    return freed;
}
