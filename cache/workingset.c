/* workingset.c: shadows, what is remembered of evicted pages.
 *
 * Shadows are numbered, and the number is what the tree keeps. What is known of number n lies in the
 * ring at n modulo max_frames; so the oldest is at the tail, and there are never more than the ring
 * has room for, or limit says:
 *
 *          tail                                head
 *     | –  | 17 | 18 |  – | 20 | 21 | ...     |   –   |        –: dropped, its page came back,
 *                                                                 or its file was truncated
 *
 * Invariant: ring[n] names (m, index) if and only if m's tree has the value n at index. Both change
 * under m->tree_lock and shadow_lock, taken in this order. Who drops the oldest comes from the ring
 * and has to take the tree's lock against the order: it tries, and while it has shadow_lock no mapping
 * that the ring names can be destroyed, for that takes its shadows out of the ring first.
 */
#include <assert.h>

#include "cache/reclaim.h"

/* A smaller cache keeps none: its lists turn over before a distance says anything. */
#define SHADOW_LEAST_FRAMES 64u
/* An eviction drops so many shadows at most: more than it makes, so that a lowered limit is reached. */
#define SHADOW_STEP 8u
/* Shadows keep tree nodes alive. When all nodes take more than this for each page of the cache,
 * shadows go. */
#define SHADOW_NODE_BYTES 128u

static struct shadow *shadow_of(struct page_cache *cache, uint64_t number)
{
    return &cache->shadows[number % cache->max_frames];
}

static uint64_t shadow_limit(const struct page_cache *cache)
{
    return atomic_load_explicit(&cache->limit, memory_order_relaxed);
}

static bool too_many(struct page_cache *cache)
{
    uint64_t limit = shadow_limit(cache), n = cache->shadow_head - cache->shadow_tail;
    return n >= limit || (n > 0 && atomic_load_explicit(&cache->node_bytes, memory_order_relaxed) >
                                       limit * SHADOW_NODE_BYTES);
}

/* Context: shadow_lock.   Returns false: somebody is busy in its tree. */
static bool drop(struct page_cache *cache, uint64_t number)
{
    struct shadow *s = shadow_of(cache, number);
    struct address_space *m = s->m;
    if (m == NULL)
        return true;
    if (pthread_mutex_trylock(&m->tree_lock) != 0)
        return false;
    void *old = radix_tree_delete(&m->pages, s->index);
    assert(old == radix_make_value(number));
    m->nrshadows--;
    s->m = NULL;
    cache->nr_shadows--;
    pthread_mutex_unlock(&m->tree_lock);
    return true;
}

void workingset_make_room(struct page_cache *cache)
{
    pthread_mutex_lock(&cache->shadow_lock);
    for (unsigned n = 0; n < SHADOW_STEP && too_many(cache) && drop(cache, cache->shadow_tail); n++)
        cache->shadow_tail++;
    pthread_mutex_unlock(&cache->shadow_lock);
}

void workingset_forget_all(struct page_cache *cache)
{
    pthread_mutex_lock(&cache->shadow_lock);
    bool all = true;
    for (uint64_t n = cache->shadow_tail; n < cache->shadow_head; n++) {
        all = drop(cache, n) && all;
        cache->shadow_tail += all;
    }
    pthread_mutex_unlock(&cache->shadow_lock);
}

void *workingset_eviction(struct address_space *m, const struct page *page)
{
    struct page_cache *cache = m->cache;
    void *item = NULL;
    pthread_mutex_lock(&cache->lru_lock);
    bool wanted = cache->policy->evicted(cache, page);
    uint32_t age = cache->age;
    pthread_mutex_unlock(&cache->lru_lock);
    if (!wanted || cache->max_frames < SHADOW_LEAST_FRAMES)
        return NULL;
    pthread_mutex_lock(&cache->shadow_lock);
    if (cache->shadow_head - cache->shadow_tail < shadow_limit(cache)) {
        *shadow_of(cache, cache->shadow_head) =
            (struct shadow){ .m = m, .index = atomic_load(&page->index), .age = age };
        item = radix_make_value(cache->shadow_head++);
        cache->nr_shadows++;
        m->nrshadows++;
    }
    pthread_mutex_unlock(&cache->shadow_lock);
    return item;
}

/* Take a shadow that is no longer in the tree out of the ring.   Returns its age. */
static uint32_t forget(struct address_space *m, uint32_t index, const void *shadow)
{
    struct page_cache *cache = m->cache;
    pthread_mutex_lock(&cache->shadow_lock);
    struct shadow *s = shadow_of(cache, radix_value(shadow));
    assert(s->m == m && s->index == index);
    uint32_t age = s->age;
    s->m = NULL;
    cache->nr_shadows--;
    m->nrshadows--;
    pthread_mutex_unlock(&cache->shadow_lock);
    return age;
}

bool workingset_refault(struct address_space *m, uint32_t index, const void *shadow)
{
    struct page_cache *cache = m->cache;
    uint32_t age = forget(m, index, shadow);
    pthread_mutex_lock(&cache->lru_lock);
    bool again = cache->policy->refault(cache, cache->age - age);
    pthread_mutex_unlock(&cache->lru_lock);
    count_add(&cache->count.refaults, 1);
    count_add(&cache->count.activations, again);
    return again;
}

/* A batch of them.   Returns false when there are no more; *next: where to go on. */
static bool truncate_batch(struct address_space *m, uint64_t *next, uint32_t last)
{
    void *items[PAGEVEC];
    uint64_t indices[PAGEVEC];
    pthread_mutex_lock(&m->tree_lock);
    unsigned n = m->nrshadows > 0
                     ? radix_tree_gang_lookup(&m->pages, items, indices, *next, last, PAGEVEC)
                     : 0;
    for (unsigned i = 0; i < n; i++)
        if (radix_is_value(items[i])) {
            radix_tree_delete(&m->pages, indices[i]);
            forget(m, (uint32_t)indices[i], items[i]);
        }
    pthread_mutex_unlock(&m->tree_lock);
    if (n > 0)
        *next = indices[n - 1] + 1;
    return n == PAGEVEC;
}

void workingset_truncate(struct address_space *m, uint32_t first, uint32_t last)
{
    uint64_t next = first;
    while (next <= last && truncate_batch(m, &next, last))
        ;
}

bool workingset_knows(struct address_space *m, uint32_t index, const void *shadow)
{
    struct page_cache *cache = m->cache;
    uint64_t number = radix_value(shadow);
    pthread_mutex_lock(&cache->shadow_lock);
    const struct shadow *s = shadow_of(cache, number);
    bool known = number >= cache->shadow_tail && number < cache->shadow_head && s->m == m &&
                 s->index == index;
    pthread_mutex_unlock(&cache->shadow_lock);
    return known;
}
