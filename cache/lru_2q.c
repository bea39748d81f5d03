/* lru_2q.c: lru2q, the two lists of Linux before MGLRU, with its refault distance.
 *
 * A page starts at the front of the inactive list and needs a second use there to get to the active
 * one; so pages that are read once pass through the inactive list and leave the active one alone.
 * The active list's back feeds the inactive one when that is the shorter.
 *
 * A page that is used again only after it was evicted shows that the inactive list is too short for
 * it. The refault distance says by how much: the evictions and activations meanwhile are how many
 * places more the list would have needed. If the active list has so many, the page is worth more
 * than the least of the active ones, and is activated at once (Linux: mm/workingset.c).
 */
#include "cache/reclaim.h"

static void lru2q_add(struct page_cache *cache, struct page *page)
{
    lru_insert(cache, page, page_test(page, PG_workingset));
}

static struct page *lru2q_candidate(struct page_cache *cache, uint64_t stuck)
{
    bool all_stuck = stuck >= cache->nr_inactive;
    if (cache->nr_active > 0 && (all_stuck || cache->nr_inactive < cache->nr_active)) {
        struct page *old = lru_last(&cache->active);
        lru_deactivate(cache, old);
        return all_stuck ? old : NULL;
    }
    struct page *page = lru_last(&cache->inactive);
    if (page_uses(page) > 0) {
        lru_activate(cache, page);
        cache->age++;
        return NULL;
    }
    list_move(&page->lru, &cache->inactive);
    return page;
}

static bool lru2q_evicted(struct page_cache *cache, const struct page *page)
{
    (void)page;
    cache->age++;
    return true;
}

static bool lru2q_refault(struct page_cache *cache, uint32_t distance)
{
    if (distance > cache->nr_active)
        return false;
    cache->age++;
    return true;
}

const struct reclaim_policy reclaim_lru2q = { .name = "lru2q",
                                              .add = lru2q_add,
                                              .candidate = lru2q_candidate,
                                              .evicted = lru2q_evicted,
                                              .refault = lru2q_refault };
