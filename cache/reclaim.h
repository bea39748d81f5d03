/* reclaim.h: which page goes when memory is needed; a policy is a small struct of functions.
 *
 * The mechanism (reclaim.c) is the same for all: reference a page, try its lock, check it, freeze its
 * count, take it out of its tree, free it; a dirty page wakes the flusher and stays. A policy only
 * names the pages. It has two lists to keep them on, and what it knows of a page is
 *
 *     page->uses      how often it was used, after the use for which it was brought; up to USES_MAX.
 *                     mark_page_accessed() counts, without a lock, and may lose a use; the policy
 *                     may lower it
 *     PG_active       on which of the two lists it is
 *     PG_workingset   it came back soon after it was evicted, says the policy's refault()
 *
 *               add                                                        evicted
 *     insert ----------> inactive (lru2q: new ones; s3fifo: small) ----------------> shadow
 *        ^  \                |   ^                                                     |
 *        |   \ PG_workingset |   | lru2q                        evicted                |
 *        |    \              v   |                          ---------------> gone      |
 *        |     +-------> active (lru2q: used twice; s3fifo: main)                      |
 *        +-----------------------------------------------------------------------------+
 *                                       refault
 *
 * Shadows (workingset.c; Linux: mm/workingset.c). Where an evicted page was, the tree keeps a number.
 * When the page is wanted again, the policy hears how far cache->age has moved since: the refault
 * distance. There are at most as many shadows as the cache may have pages; the oldest go first.
 *
 * The policies share the lists and keep nothing else, so one can take over from another at any time.
 */
#ifndef FOLIO_CACHE_RECLAIM_H
#define FOLIO_CACHE_RECLAIM_H

#include "cache/page_cache.h"

#define USES_MAX 3u
/* A policy may pass over a page so often before it has to name it: a look per use, one to change the
 * list, one to name it. */
#define RECLAIM_ROUNDS (USES_MAX + 2u)

struct reclaim_policy { /* every function: lru_lock held, must not block */
    const char *name;
    /* A page was inserted: put it on a list, with lru_insert(). */
    void (*add)(struct page_cache *cache, struct page *page);
    /* Look at one page at the back of a list, of which one at least is not empty: name it, or NULL
     * when it is to stay for now. Either way it moves, so that the next look meets another.
     * stuck: pages named by this run that could not go. When all of the list in turn are stuck, look
     * at the other one. */
    struct page *(*candidate)(struct page_cache *cache, uint64_t stuck);
    /* A page is evicted; it is still on its list. Moves cache->age on.   Returns: leave a shadow? */
    bool (*evicted)(struct page_cache *cache, const struct page *page);
    /* A page comes back, and cache->age has moved by distance since it was evicted.
     * Returns: does it belong to the working set? */
    bool (*refault)(struct page_cache *cache, uint32_t distance);
};

extern const struct reclaim_policy reclaim_lru2q, reclaim_s3fifo;

/* By name; name NULL: lru2q.   NULL: there is none of that name. */
const struct reclaim_policy *reclaim_policy_find(const char *name);

/* ---- for policies: the two lists (lru_lock held) --------------------------------------------- */

static inline struct page *lru_last(struct list_head *list)
{
    return list_entry(list->prev, struct page, lru);
}

static inline unsigned page_uses(const struct page *page)
{
    return atomic_load_explicit(&page->uses, memory_order_relaxed);
}

static inline void page_set_uses(struct page *page, unsigned uses)
{
    atomic_store_explicit(&page->uses, (uint8_t)uses, memory_order_relaxed);
}

/* Put a page that is on no list to the front of one. */
void lru_insert(struct page_cache *cache, struct page *page, bool active);
/* To the front of the other list; its uses begin anew. */
void lru_activate(struct page_cache *cache, struct page *page);
void lru_deactivate(struct page_cache *cache, struct page *page);

/* Deactivate what is cached of [first, last] (MADV_COLD). Takes lru_lock. */
void lru_deactivate_range(struct address_space *m, uint32_t first, uint32_t last);

/* ---- workingset.c ---------------------------------------------------------------------------- */

struct shadow {              /* what is known of an evicted page; (s) shadow_lock */
    struct address_space *m; /* in whose tree its number is; NULL: forgotten   (s) */
    uint32_t index;          /* (s) */
    uint32_t age;            /* cache->age after the eviction                  (s) */
};
_Static_assert(sizeof(struct page) + sizeof(struct shadow) <= 64,
               "all that there is of a frame beside its data: at most 64 bytes, and tree nodes");

/* Drop the oldest shadows until there is room for one. Context: no tree_lock held. */
void workingset_make_room(struct page_cache *cache);
/* Drop all of them, but those in whose tree somebody is busy. */
void workingset_forget_all(struct page_cache *cache);
/* A page leaves its tree for want of memory.   Returns what takes its place; NULL: nothing.
 * Context: m->tree_lock held; page locked, on its list. */
void *workingset_eviction(struct address_space *m, const struct page *page);
/* A page came to where a shadow was.   Returns true if it belongs to the working set.
 * Context: m->tree_lock held; the shadow is out of the tree. */
bool workingset_refault(struct address_space *m, uint32_t index, const void *shadow);
/* Drop the shadows [first, last]: the file has no such pages any more. */
void workingset_truncate(struct address_space *m, uint32_t first, uint32_t last);
/* Is this item of the tree a shadow that is known? */
bool workingset_knows(struct address_space *m, uint32_t index, const void *shadow);

#endif
