/* frames.c: the arena, and making and ending a cache.
 *
 * All of the cache's page memory is one mapping, set aside for the largest size the cache may be
 * given and filled as it is used. A frame and its struct page have the same number, so neither needs
 * a pointer to the other.
 */
#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "cache/memfd.h"
#include "cache/memory.h"
#include "cache/rcu.h"
#include "cache/reclaim.h"
#include "store/plug.h"

/* Frames given memory at a time, which saves each its page fault; and a huge page's worth, which are one. */
#define FILL_FRAMES   64u
#define HUGE_FRAMES   512u
#define HUGE_BYTES    (HUGE_FRAMES << PAGE_SHIFT)
#define ALLOC_WAIT_MS 100u /* how long page_alloc sleeps at a time */
#define ALLOC_TRIES   50u  /* sleeps in which nothing at all moved, before it gives up */

static void *own_frame(const struct page_cache *cache, const struct page *page)
{
    return cache->arena + ((uint64_t)(page - cache->pages) << PAGE_SHIFT);
}

bool page_in_memfd(const struct page_cache *cache, const struct page *page)
{
    return page->data != own_frame(cache, page);
}

void page_to_memfd(struct page_cache *cache, struct page *page, void *frame)
{
    if (page->touched) { /* the budget counts it once */
        madvise(own_frame(cache, page), PAGE_SIZE, MADV_DONTNEED);
        page->touched = false;
    }
    page->data = frame;
}

int page_from_memfd(struct page_cache *cache, struct page *page, const struct memfd *f)
{
    int err = 0;
    if (page_test(page, PG_uptodate))
        err = memfd_read(f, atomic_load(&page->index), own_frame(cache, page), 1);
    page->touched = true;
    if (err == 0)
        page->data = own_frame(cache, page);
    return err;
}

int page_settle(struct address_space *m, struct page *page, uint32_t index)
{
    struct memfd *f = atomic_load(&m->memfd);
    void *frame = NULL;
    int err = f != NULL ? memfd_frame(f, index, &frame) : 0;
    if (err == 0 && frame != NULL)
        page_to_memfd(m->cache, page, frame);
    else
        page->touched = true;
    return err;
}

void put_page(struct page_cache *cache, struct page *page)
{
    cache_yield();
    int32_t n = atomic_fetch_sub_explicit(&page->refcount, 1, memory_order_acq_rel);
    assert(n > 0);
    if (n == 1)
        page_free(cache, page);
}

/* How many frames that were never used to take at once: fewer as fewer are left, so that others find
 * some while these are filled; and so that they end at a multiple. Context: lru_lock. */
static uint64_t fill_count(const struct page_cache *cache)
{
    uint64_t limit = atomic_load_explicit(&cache->limit, memory_order_relaxed);
    uint64_t end = limit < cache->max_frames ? limit : cache->max_frames;
    uint64_t n = end > cache->fresh ? (end - cache->fresh) / 16 : 0;
    uint64_t most = n >= HUGE_FRAMES && cache->fresh % HUGE_FRAMES == 0
                        ? HUGE_FRAMES
                        : FILL_FRAMES - cache->fresh % FILL_FRAMES;
    return n > most ? most : n > 0 ? n : 1;
}

/* Memory for n frames at once, then all but the first are free. They count as used meanwhile. A
 * kernel that cannot do it (before Linux 5.14) gives memory at the first touch, as ever; and small pages
 * where it has no huge ones. */
static void fill_frames(struct page_cache *cache, struct page *first, uint64_t n)
{
    if (n == HUGE_FRAMES)
        (void)madvise(own_frame(cache, first), HUGE_BYTES, MADV_HUGEPAGE);
    (void)madvise(own_frame(cache, first), n << PAGE_SHIFT, MADV_POPULATE_WRITE);
    if (n == HUGE_FRAMES) /* or the kernel would fill up what is given back later */
        (void)madvise(own_frame(cache, first), HUGE_BYTES, MADV_NOHUGEPAGE);
    pthread_mutex_lock(&cache->lru_lock);
    for (uint64_t i = n - 1; i > 0; i--)
        list_add(&first[i].lru, &cache->free);
    for (uint64_t i = 0; i < n; i++)
        first[i].touched = true;
    cache->used -= n - 1;
    pthread_mutex_unlock(&cache->lru_lock);
}

/* own: the page's bytes will be in its frame, not in a memfd. The free list begins with frames that have
 * memory, and ends with those that have none. */
static struct page *frame_take(struct page_cache *cache, bool own)
{
    struct page *page = NULL;
    uint64_t n = 1;
    pthread_mutex_lock(&cache->lru_lock);
    if (cache->used < atomic_load_explicit(&cache->limit, memory_order_relaxed)) {
        if (!list_empty(&cache->free)) {
            page = list_entry(own ? cache->free.next : cache->free.prev, struct page, lru);
            list_del(&page->lru);
        } else if (cache->fresh < cache->max_frames) {
            n = own ? fill_count(cache) : 1;
            page = &cache->pages[cache->fresh];
            for (uint64_t i = 0; i < n; i++) {
                list_init(&page[i].lru);
                page[i].data = own_frame(cache, &page[i]);
            }
            cache->fresh += n;
        }
        if (page != NULL)
            cache->used += n;
    }
    pthread_mutex_unlock(&cache->lru_lock);
    if (page != NULL && n > 1)
        fill_frames(cache, page, n);
    if (page != NULL) {
        assert(atomic_load(&page->refcount) == 0);
        atomic_store_explicit(&page->flags, 0, memory_order_relaxed);
        page_set_uses(page, 0);
        page->data = own_frame(cache, page);
        atomic_store_explicit(&page->order, 0, memory_order_relaxed);
        atomic_store_explicit(&page->refcount, 1, memory_order_release);
    }
    return page;
}

/* Is there nobody else to clean pages? */
static bool flushes_inline(const struct page_cache *cache)
{
    return atomic_load_explicit(&cache->flushers.nr, memory_order_relaxed) == 0 && !cache->stepped;
}

struct page *page_alloc(struct address_space *m, bool wait)
{
    struct page_cache *cache = m->cache;
    bool own = !memfd_has_pages(m);
    struct page *page = frame_take(cache, own);
    for (unsigned idle = 0; page == NULL && idle < ALLOC_TRIES;) {
        uint32_t seen = atomic_load(&cache->progress);
        count_add(&cache->count.direct_reclaims, 1);
        if (shrink_lru(cache, LRU_BATCH) == 0) {
            wakeup_flusher(cache);
            if (!wait)
                break;
            count_add(&cache->count.alloc_waits, 1);
            cache_wait_progress(cache, seen, ALLOC_WAIT_MS);
            /* Others may have been faster to what came free: only standstill counts. */
            idle += atomic_load(&cache->progress) == seen || flushes_inline(cache);
        }
        page = frame_take(cache, own);
    }
    return page;
}

void page_free(struct page_cache *cache, struct page *page)
{
    assert(atomic_load(&page->mapping) == NULL);
    assert(!page_test(page, PG_dirty | PG_writeback | PG_lru));
    pthread_mutex_lock(&cache->lru_lock);
    list_add(&page->lru, page->touched ? &cache->free : cache->free.prev);
    cache->used--;
    pthread_mutex_unlock(&cache->lru_lock);
    cache_made_progress(cache);
}

void cache_made_progress(struct page_cache *cache)
{
    atomic_fetch_add(&cache->progress, 1);
    if (atomic_load(&cache->progress_waiters) > 0)
        wake_word(&cache->progress);
}

void cache_wait_progress(struct page_cache *cache, uint32_t seen, unsigned ms)
{
    if (flushes_inline(cache)) {
        flusher_step(cache);
        return;
    }
    atomic_fetch_add(&cache->progress_waiters, 1);
    if (atomic_load(&cache->progress) == seen)
        wait_on_word(&cache->progress, seen, ms);
    atomic_fetch_sub(&cache->progress_waiters, 1);
}

static unsigned flusher_worker(void *arg)
{
    return flusher_step(arg);
}

/* One round of the readahead worker: send what is queued; windows that follow each other go as one. */
static unsigned reader_worker(void *arg)
{
    struct page_cache *cache = arg;
    struct blk_plug plug;
    pthread_mutex_lock(&cache->ra_lock);
    struct bio *bio = cache->ra_queue;
    cache->ra_queue = NULL;
    cache->ra_tail = &cache->ra_queue;
    pthread_mutex_unlock(&cache->ra_lock);
    if (bio == NULL)
        return 1000;
    blk_start_plug(&plug);
    while (bio != NULL) {
        struct bio *next = bio->next;
        ra_send(&plug, bio);
        bio = next;
    }
    blk_finish_plug(&plug);
    return 0;
}

static int cache_start_threads(struct page_cache *cache)
{
    int err = worker_start(&cache->reader, "folio-read", reader_worker, cache);
    if (err == 0)
        err = crew_start(&cache->flushers, "folio-flush", flusher_worker, cache);
    return err;
}

static uint64_t frames_for(const struct cache_options *o)
{
    uint64_t bytes = o->max_bytes > o->cache_bytes ? o->max_bytes : o->cache_bytes;
    return bytes >> PAGE_SHIFT;
}

static void *reserve_memory(uint64_t bytes)
{
    void *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE,
                   -1, 0);
    return p == MAP_FAILED ? NULL : p;
}

/* Memory is given at the first touch. Returns false: there is none. */
static bool reserve_bounces(struct page_cache *cache)
{
    uint64_t most = cache->max_frames / (16 * BIO_MAX_VECS);
    cache->nr_bounces = most < BOUNCES_MOST ? (unsigned)most : BOUNCES_MOST;
    for (unsigned i = 0; i < cache->nr_bounces; i++) {
        cache->bounces[i].data = reserve_memory(BIO_MAX_VECS << PAGE_SHIFT);
        if (cache->bounces[i].data == NULL)
            return false;
    }
    return true;
}

/* At a multiple of a huge page's size: what is too much before and behind goes back. */
static char *reserve_arena(uint64_t bytes)
{
    char *p = reserve_memory(bytes + HUGE_BYTES);
    if (p == NULL)
        return NULL;
    size_t before = -(uintptr_t)p % HUGE_BYTES;
    if (before != 0)
        munmap(p, before);
    munmap(p + before + bytes, HUGE_BYTES - before);
    return p + before;
}

int page_cache_create(struct page_cache **out, const struct cache_options *o)
{
    const struct reclaim_policy *policy = reclaim_policy_find(o->reclaim);
    if (o->cache_bytes >> PAGE_SHIFT < CACHE_MIN_PAGES || policy == NULL ||
        o->store_around > STORE_AROUND_MOST || o->fault_around > FAULT_AROUND_MOST)
        return -EINVAL;
    struct page_cache *cache = calloc(1, sizeof *cache);
    if (cache == NULL)
        return -ENOMEM;
    cache->clock = o->clock != NULL ? o->clock : &clock_monotonic;
    cache->stepped = o->stepped;
    cache->policy = policy;
    cache->on_error = o->on_error;
    atomic_store(&cache->fault_around,
                 o->fault_around != 0 ? o->fault_around : FAULT_AROUND_DEFAULT);
    atomic_store(&cache->store_around, o->store_around != 0 ? o->store_around : 1);
    cache->max_frames = frames_for(o);
    atomic_store(&cache->limit, o->cache_bytes >> PAGE_SHIFT);
    cache->arena = reserve_arena(cache->max_frames << PAGE_SHIFT);
    cache->pages = reserve_memory(cache->max_frames * sizeof(struct page));
    cache->shadows = reserve_memory(cache->max_frames * sizeof(struct shadow));
    cache->ahead_copies = reserve_memory(AHEAD_MOST << PAGE_SHIFT);
    pthread_mutex_init(&cache->lru_lock, NULL);
    pthread_mutex_init(&cache->shadow_lock, NULL);
    pthread_mutex_init(&cache->dirty_lock, NULL);
    pthread_mutex_init(&cache->ra_lock, NULL);
    list_init(&cache->free);
    list_init(&cache->active);
    list_init(&cache->inactive);
    list_init(&cache->dirty_mappings);
    cache->ra_tail = &cache->ra_queue;
    page_cache_set_dirty(cache, o);
    cache_rcu_barrier(); /* its thread is there from now on */
    int err = cache->arena == NULL || cache->pages == NULL || cache->shadows == NULL ||
                      cache->ahead_copies == NULL || !reserve_bounces(cache)
                  ? -ENOMEM
                  : 0;
    if (err == 0 && o->threads)
        err = cache_start_threads(cache);
    if (err != 0) {
        page_cache_destroy(cache);
        return err;
    }
    *out = cache;
    return 0;
}

void page_cache_stop(struct page_cache *cache)
{
    crew_stop(&cache->flushers);
    worker_stop(cache->reader);
    cache->reader = NULL;
    while (reader_worker(cache) == 0) /* pages are locked until what is queued is read */
        ;
}

void page_cache_destroy(struct page_cache *cache)
{
    page_cache_stop(cache);
    assert(cache->used == 0 && cache->nr_shadows == 0);
    cache_rcu_barrier();
    if (cache->arena != NULL)
        munmap(cache->arena, cache->max_frames << PAGE_SHIFT);
    if (cache->pages != NULL)
        munmap(cache->pages, cache->max_frames * sizeof(struct page));
    if (cache->ahead_copies != NULL)
        munmap(cache->ahead_copies, AHEAD_MOST << PAGE_SHIFT);
    for (unsigned i = 0; i < cache->nr_bounces; i++)
        if (cache->bounces[i].data != NULL)
            munmap(cache->bounces[i].data, BIO_MAX_VECS << PAGE_SHIFT);
    if (cache->shadows != NULL)
        munmap(cache->shadows, cache->max_frames * sizeof(struct shadow));
    pthread_mutex_destroy(&cache->lru_lock);
    pthread_mutex_destroy(&cache->shadow_lock);
    pthread_mutex_destroy(&cache->dirty_lock);
    pthread_mutex_destroy(&cache->ra_lock);
    free(cache);
}

void page_cache_set_dirty(struct page_cache *cache, const struct cache_options *o)
{
    atomic_store(&cache->dirty_ratio, o->dirty_ratio != 0 ? o->dirty_ratio : 20);
    atomic_store(&cache->dirty_background_ratio,
                 o->dirty_background_ratio != 0 ? o->dirty_background_ratio : 10);
    atomic_store(&cache->dirty_expire_ms, o->dirty_expire_ms != 0 ? o->dirty_expire_ms : 30000);
    atomic_store(&cache->dirty_writeback_ms,
                 o->dirty_writeback_ms != 0 ? o->dirty_writeback_ms : 5000);
}

void page_cache_count_mkwrite(struct page_cache *cache, uint64_t pages)
{
    count_add(&cache->count.faults[FAULT_KERNEL].mkwrite, pages);
}

int page_cache_set_fault_around(struct page_cache *cache, unsigned pages)
{
    if (pages < 1 || pages > FAULT_AROUND_MOST)
        return -EINVAL;
    atomic_store(&cache->fault_around, pages);
    return 0;
}

int page_cache_set_store_around(struct page_cache *cache, unsigned pages)
{
    if (pages < 1 || pages > STORE_AROUND_MOST)
        return -EINVAL;
    atomic_store(&cache->store_around, pages);
    return 0;
}

/* Give the memory of empty frames back to the system. */
static void release_free_frames(struct page_cache *cache)
{
    pthread_mutex_lock(&cache->lru_lock);
    if (cache->used == 0) { /* all of it, and begin anew */
        madvise(cache->arena, cache->fresh << PAGE_SHIFT, MADV_DONTNEED);
        for (uint64_t i = 0; i < cache->fresh; i++)
            cache->pages[i].touched = false;
        list_init(&cache->free);
        cache->fresh = 0;
    }
    for (struct list_head *n = cache->free.next; n != &cache->free; n = n->next) {
        struct page *page = list_entry(n, struct page, lru);
        if (page->touched)
            madvise(own_frame(cache, page), PAGE_SIZE, MADV_DONTNEED);
        page->touched = false;
    }
    pthread_mutex_unlock(&cache->lru_lock);
}

int page_cache_resize(struct page_cache *cache, uint64_t bytes)
{
    uint64_t frames = bytes >> PAGE_SHIFT;
    if (frames < CACHE_MIN_PAGES || frames > cache->max_frames)
        return -EINVAL;
    uint64_t before = atomic_exchange(&cache->limit, frames);
    if (frames >= before)
        return 0;
    for (;;) {
        pthread_mutex_lock(&cache->lru_lock);
        uint64_t over = cache->used > frames ? cache->used - frames : 0;
        pthread_mutex_unlock(&cache->lru_lock);
        if (over == 0 || shrink_lru(cache, over) == 0)
            break;
    }
    wakeup_flusher(cache); /* what is dirty now leaves as allocation asks for it */
    release_free_frames(cache);
    return 0;
}

uint64_t page_cache_drop(struct page_cache *cache)
{
    uint64_t freed = reclaim_all(cache);
    workingset_forget_all(cache); /* who drops the cache wants it as it was at first */
    release_free_frames(cache);
    return freed;
}

static uint64_t get(const _Atomic uint64_t *counter)
{
    return atomic_load_explicit(counter, memory_order_relaxed);
}

void page_cache_stats(struct page_cache *cache, struct cache_stats *out)
{
    const struct cache_counters *n = &cache->count;
    page_cache_look_ahead(cache);
    *out = (struct cache_stats){
        .dirty = get(&cache->nr_dirty),
        .writeback = get(&cache->nr_writeback),
        .limit = get(&cache->limit),
        .tree_bytes = atomic_load(&cache->node_bytes),
        .frame_bytes = sizeof(struct page) + sizeof(struct shadow),
        .misses = get(&n->misses),
        .waits = get(&n->waits),
        .ra_sync = get(&n->ra_sync),
        .ra_async = get(&n->ra_async),
        .ra_pages = get(&n->ra_pages),
        .ra_used = get(&n->ra_used),
        .ra_wasted = get(&n->ra_wasted),
        .read_pages = get(&n->read_pages),
        .written_pages = get(&n->written_pages),
        .read_errors = get(&n->read_errors),
        .write_errors = get(&n->write_errors),
        .reclaimed = get(&n->reclaimed),
        .scanned = get(&n->scanned),
        .activated = get(&n->activated),
        .refaults = get(&n->refaults),
        .activations = get(&n->activations),
        .direct_reclaims = get(&n->direct_reclaims),
        .alloc_waits = get(&n->alloc_waits),
        .throttled = get(&n->throttled),
        .throttled_ns = get(&n->throttled_ns),
        .passes = get(&n->passes),
    };
    for (unsigned i = 0; i < FAULT_DOORS; i++)
        out->faults[i] = (struct fault_stats){ .minor = get(&n->faults[i].minor),
                                               .major = get(&n->faults[i].major),
                                               .mkwrite = get(&n->faults[i].mkwrite) };
    for (unsigned i = 0; i < HIT_STRIPES; i++)
        out->hits += get(&cache->hits[i].n);
    pthread_mutex_lock(&cache->lru_lock);
    out->pages = cache->used;
    out->active = cache->nr_active;
    out->inactive = cache->nr_inactive;
    out->free = out->limit > cache->used ? out->limit - cache->used : 0;
    out->arena_bytes = cache->fresh << PAGE_SHIFT;
    out->struct_bytes = cache->fresh * sizeof(struct page);
    pthread_mutex_unlock(&cache->lru_lock);
    pthread_mutex_lock(&cache->shadow_lock);
    uint64_t slots =
        cache->shadow_head < cache->max_frames ? cache->shadow_head : cache->max_frames;
    out->shadows = cache->nr_shadows;
    out->struct_bytes += slots * sizeof(struct shadow);
    pthread_mutex_unlock(&cache->shadow_lock);
}
