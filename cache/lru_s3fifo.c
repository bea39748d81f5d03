/* lru_s3fifo.c: s3fifo, three queues (Yang, Zhang, Qiu, Yue, Rashmi: "FIFO queues are all you need
 * for cache eviction", SOSP 2023).
 *
 *      new --> small (a tenth) --> used twice --> main <--+ used since: once more round,
 *                  |                                |  \--+ one use less
 *                  | not                            | not
 *                  v                                v
 *                ghost: as many as main           gone
 *                  |
 *                  +-- wanted again --> main
 *
 * What is used once passes through the tenth and never sees main; what comes back after that goes to
 * main at once. Nothing is moved on a hit. The ghosts are shadows, and cache->age counts them.
 */
#include "cache/reclaim.h"

#define SMALL_PART  10u /* of the cache */
#define SMALL_LEAST 64u /* pages: two windows of readahead must not push each other out unused */
#define SMALL_USES  2u  /* within small, for main */

static uint64_t small_size(const struct page_cache *cache)
{
    uint64_t limit = atomic_load_explicit(&cache->limit, memory_order_relaxed);
    uint64_t part = limit / SMALL_PART;
    uint64_t least = limit / 2 < SMALL_LEAST ? limit / 2 : SMALL_LEAST;
    return part > least ? part : least;
}

static void s3fifo_add(struct page_cache *cache, struct page *page)
{
    lru_insert(cache, page, page_test(page, PG_workingset));
}

static struct page *small_candidate(struct page_cache *cache)
{
    struct page *page = lru_last(&cache->inactive);
    if (page_uses(page) >= SMALL_USES) {
        lru_activate(cache, page);
        return NULL;
    }
    list_move(&page->lru, &cache->inactive);
    return page;
}

static struct page *main_candidate(struct page_cache *cache)
{
    struct page *page = lru_last(&cache->active);
    unsigned uses = page_uses(page);
    list_move(&page->lru, &cache->active);
    if (uses == 0)
        return page;
    page_set_uses(page, uses - 1);
    return NULL;
}

static struct page *s3fifo_candidate(struct page_cache *cache, uint64_t stuck)
{
    bool small = cache->nr_inactive > small_size(cache) && stuck < cache->nr_inactive;
    return small || cache->nr_active == 0 ? small_candidate(cache) : main_candidate(cache);
}

static bool s3fifo_evicted(struct page_cache *cache, const struct page *page)
{
    if (page_test(page, PG_active))
        return false;
    cache->age++;
    return true;
}

static bool s3fifo_refault(struct page_cache *cache, uint32_t distance)
{
    return distance <=
           atomic_load_explicit(&cache->limit, memory_order_relaxed) - small_size(cache);
}

const struct reclaim_policy reclaim_s3fifo = { .name = "s3fifo",
                                               .add = s3fifo_add,
                                               .candidate = s3fifo_candidate,
                                               .evicted = s3fifo_evicted,
                                               .refault = s3fifo_refault };
