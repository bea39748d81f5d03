/* filemap.c: finding pages, inserting them, and reading through them. */
#include "cache/filemap.h"

#include <assert.h>
#include <errno.h>
#include <poll.h>
#include <string.h>

#include "cache/memfd_impl.h"
#include "cache/page_cache.h"
#include "cache/rcu.h"
#include "cache/reclaim.h"

#define LOOKUP_TRIES \
    16u /* times a reader meets its page evicted before it holds on to one itself */
#define FROZEN_TRIES 1000u

/* ---- mappings -------------------------------------------------------------------------------- */

void mapping_init(struct address_space *m, struct page_cache *cache, struct device *dev,
                  uint64_t object, const struct address_space_operations *a_ops, uint64_t size)
{
    static const struct address_space_operations none;
    memset(m, 0, sizeof *m);
    m->cache = cache;
    m->number = atomic_fetch_add(&cache->mappings, 1);
    m->dev = dev;
    m->a_ops = a_ops != NULL ? a_ops : &none;
    atomic_store(&m->object, object);
    atomic_store(&m->i_size, size);
    radix_tree_init(&m->pages);
    m->pages.node_bytes = &cache->node_bytes;
    pthread_mutex_init(&m->tree_lock, NULL);
    pthread_rwlock_init(&m->i_mmap_lock, NULL);
    list_init(&m->i_mmap);
    list_init(&m->dirty);
}

void mapping_destroy(struct address_space *m)
{
    assert(atomic_load(&m->nr_vmas) == 0);
    struct memfd *memfd = mapping_take_memfd(m);
    truncate_inode_pages_range(m, 0, UINT32_MAX);
    assert(!m->on_dirty);
    /* Reclaim may still be leaving the lock under which it removed our last page. */
    pthread_mutex_lock(&m->tree_lock);
    radix_tree_destroy(&m->pages);
    pthread_mutex_unlock(&m->tree_lock);
    memfd_bury(memfd);
    pthread_mutex_destroy(&m->tree_lock);
    pthread_rwlock_destroy(&m->i_mmap_lock);
}

void i_size_write(struct address_space *m, uint64_t size)
{
    atomic_store(&m->i_size, size);
}

void i_size_reach(struct address_space *m, uint64_t size)
{
    struct memfd *f = atomic_load(&m->memfd);
    if (f != NULL)
        memfd_grow(f, pages_for(size));
}

/* ---- finding --------------------------------------------------------------------------------- */

/* The page at index, referenced.   NULL: none; or *frozen: it is being unmapped, which may last (memfd.h):
 * wait_while_frozen(), and again. Context: RCU. */
static struct page *slot_get_page(struct address_space *m, uint32_t index, bool *frozen)
{
    const _Atomic(void *) *slot;
    unsigned tries = 0;
    while ((slot = radix_tree_slot(&m->pages, index)) != NULL) {
        struct page *page = atomic_load_explicit(slot, memory_order_acquire);
        if (page == NULL || radix_is_value(page))
            return NULL;
        if (!get_page_unless_zero(page)) {
            if (++tries == FROZEN_TRIES) {
                *frozen = true;
                return NULL;
            }
            cache_yield(); /* it leaves the slot or comes back */
            sched_yield();
            continue;
        }
        if (atomic_load_explicit(slot, memory_order_acquire) == page)
            return page;
        put_page(m->cache, page);
    }
    return NULL;
}

/* Not by its lock: a page that was found may be another's when it is looked at. Context: no RCU. */
static void wait_while_frozen(void)
{
    (void)poll(NULL, 0, 1);
}

/* *frozen: likewise. */
static struct page *find_page(struct address_space *m, uint32_t index, bool *frozen)
{
    *frozen = false;
    cache_rcu_read_lock();
    struct page *page = slot_get_page(m, index, frozen);
    cache_rcu_read_unlock();
    return page;
}

struct page *find_get_page(struct address_space *m, uint32_t index)
{
    bool frozen;
    struct page *page;
    while ((page = find_page(m, index, &frozen)) == NULL && frozen)
        wait_while_frozen();
    return page;
}

struct page *find_get_page_nowait(struct address_space *m, uint32_t index)
{
    bool frozen;
    return find_page(m, index, &frozen);
}

struct page *find_lock_page(struct address_space *m, uint32_t index)
{
    for (;;) {
        struct page *page = find_get_page(m, index);
        if (page == NULL)
            return NULL;
        lock_page(page);
        if (atomic_load(&page->mapping) == m) {
            assert(atomic_load(&page->index) == index);
            return page;
        }
        unlock_page(page); /* truncated or evicted while we waited */
        put_page(m->cache, page);
    }
}

/* Keep of found items those that are still pages, referenced, up to one that is *frozen.
 * Returns how many; *next: behind the last that was looked at. Context: RCU. */
static unsigned pages_get(struct address_space *m, struct page **pages, const uint64_t *indices,
                          unsigned found, uint64_t *next, bool *frozen)
{
    unsigned n = 0;
    for (unsigned i = 0; i < found; i++) {
        struct page *page =
            radix_is_value(pages[i]) ? NULL : slot_get_page(m, (uint32_t)indices[i], frozen);
        if (*frozen)
            break;
        if (page != NULL)
            pages[n++] = page;
        *next = indices[i] + 1;
    }
    return n;
}

#define ANY_TAG (-1)

static unsigned find_pages(struct address_space *m, uint64_t *next, uint32_t last,
                           struct page **pages, unsigned max, int tag)
{
    uint64_t indices[PAGEVEC];
    void **items = (void **)pages;
    bool frozen = false;
    assert(max <= PAGEVEC);
    cache_rcu_read_lock();
    unsigned found = tag == ANY_TAG
                         ? radix_tree_gang_lookup(&m->pages, items, indices, *next, last, max)
                         : radix_tree_gang_lookup_tag(&m->pages, items, indices, *next, last, max,
                                                      (enum radix_tag)tag);
    *next = found > 0 ? *next : (uint64_t)last + 1;
    unsigned n = pages_get(m, pages, indices, found, next, &frozen);
    cache_rcu_read_unlock();
    if (frozen)
        wait_while_frozen();
    return n;
}

unsigned find_get_pages(struct address_space *m, uint64_t *next, uint32_t last, struct page **pages,
                        unsigned max)
{
    return find_pages(m, next, last, pages, max, ANY_TAG);
}

unsigned find_get_pages_tag(struct address_space *m, uint64_t *next, uint32_t last,
                            struct page **pages, unsigned max, enum radix_tag tag)
{
    return find_pages(m, next, last, pages, max, (int)tag);
}

/* ---- inserting ------------------------------------------------------------------------------- */

static pthread_key_t preload_key;
static pthread_once_t preload_once = PTHREAD_ONCE_INIT;
static _Thread_local struct radix_preload preload;

static void preload_free(void *arg)
{
    radix_tree_preload_end(arg);
}

static void preload_init(void)
{
    pthread_key_create(&preload_key, preload_free);
}

/* The thread's own nodes for the next insert, freed with the thread.   NULL: no memory. */
static struct radix_preload *preload_get(void)
{
    pthread_once(&preload_once, preload_init);
    if (pthread_getspecific(preload_key) == NULL)
        pthread_setspecific(preload_key, &preload);
    return radix_tree_preload(&preload) == 0 ? &preload : NULL;
}

static int page_insert(struct address_space *m, struct page *page, uint32_t index,
                       struct radix_preload *nodes)
{
    void *shadow = NULL;
    pthread_mutex_lock(&m->tree_lock);
    int err = radix_tree_insert(&m->pages, index, page, nodes, &shadow);
    if (err == 0) {
        atomic_store(&page->index, index);
        atomic_store(&page->mapping, m);
        atomic_fetch_add_explicit(&m->nrpages, 1, memory_order_relaxed);
        if (shadow != NULL && workingset_refault(m, index, shadow))
            page_set(page, PG_workingset);
    }
    pthread_mutex_unlock(&m->tree_lock);
    return err;
}

int add_to_page_cache_lru(struct address_space *m, struct page *page, uint32_t index)
{
    struct radix_preload *nodes = preload_get();
    if (nodes == NULL)
        return -ENOMEM;
    struct memfd *memfd = atomic_load(&m->memfd);
    page_set(page, PG_locked | (atomic_load(&m->copies) ? PG_copied : 0));
    get_page(page); /* the tree's */
    if (memfd != NULL)
        pthread_mutex_lock(&memfd->lock);
    int err = page_settle(m, page, index);
    if (err == 0)
        err = page_insert(m, page, index, nodes);
    if (memfd != NULL)
        pthread_mutex_unlock(&memfd->lock);
    if (err != 0) {
        page_clear(page, PG_locked);
        put_page(m->cache, page);
        return err;
    }
    lru_add(m->cache, page);
    return 0;
}

struct page *find_or_create_page(struct address_space *m, uint32_t index, int *error)
{
    for (;;) {
        struct page *page = find_lock_page(m, index);
        if (page != NULL)
            return page;
        page = page_alloc(m, true);
        int err = page != NULL ? add_to_page_cache_lru(m, page, index) : -ENOMEM;
        if (err == 0)
            return page;
        if (page != NULL)
            put_page(m->cache, page);
        if (err != -EEXIST) {
            *error = err;
            return NULL;
        }
    }
}

void page_replace_locked(struct address_space *m, struct page *page, void *shadow)
{
    assert(!page_test(page, PG_dirty | PG_writeback));
    void *old = radix_tree_replace(&m->pages, atomic_load(&page->index), shadow);
    assert(old == page);
    atomic_store(&page->mapping, NULL);
    atomic_fetch_sub_explicit(&m->nrpages, 1, memory_order_relaxed);
}

void page_delete(struct address_space *m, struct page *page)
{
    pthread_mutex_lock(&m->tree_lock);
    page_replace_locked(m, page, NULL);
    pthread_mutex_unlock(&m->tree_lock);
    lru_remove(m->cache, page);
}

void remove_from_page_cache(struct page *page, struct address_space *m)
{
    assert(page_test(page, PG_locked) && atomic_load(&page->mapping) == m);
    page_delete(m, page);
    put_page(m->cache, page); /* the tree's */
}

/* ---- reading --------------------------------------------------------------------------------- */

/* The outcome of one page's read, before anybody may look at it. */
static void page_read_done(struct page_cache *cache, struct page *page, const struct bio_vec *v)
{
    if (v->error != 0) {
        page_set(page, PG_error);
        count_add(&cache->count.read_errors, 1);
        return;
    }
    page_set(page, PG_uptodate | ((v->flags & BV_HOLE) ? 0 : PG_mappedtodisk));
}

void read_end_io(struct bio *bio)
{
    struct address_space *m = bio->private;
    struct page_cache *cache = m->cache; /* the mapping may go with its last locked page */
    count_add(&cache->count.read_pages,
              bio->nr_vecs); /* first: whoever sees the pages sees them counted */
    for (uint32_t i = 0; i < bio->nr_vecs; i++) {
        struct page *page = bio->vecs[i].owner;
        page_read_done(cache, page, &bio->vecs[i]);
        unlock_page(page);
        put_page(cache, page);
    }
    bio_free(bio);
}

struct read_wait {
    _Atomic uint32_t done;
    struct bio_vec vec; /* what came of it */
};

static void read_one_end_io(struct bio *bio)
{
    struct read_wait *w = bio->private;
    w->vec = bio->vecs[0];
    bio_free(bio);
    /* The waiter may be gone before the wake: that only needs the address, not what is there. */
    atomic_store_explicit(&w->done, 1, memory_order_release);
    wake_word(&w->done);
}

int read_page_locked(struct address_space *m, struct page *page)
{
    char aside[PAGE_SIZE];
    bool shared = page_in_memfd(m->cache, page);
    struct bio *bio = bio_alloc(BIO_READ, atomic_load(&m->object), 1);
    if (bio == NULL)
        return -ENOMEM;
    struct read_wait w = { 0 };
    page_clear(page, PG_error);
    bio_add(bio, atomic_load(&page->index), shared ? aside : page_address(page), page);
    bio->end_io = read_one_end_io;
    bio->private = &w;
    submit_bio(m->dev, bio);
    while (atomic_load_explicit(&w.done, memory_order_acquire) == 0)
        wait_on_word(&w.done, 0, 0);
    if (shared && w.vec.error == 0)
        bounce_page_in(m, page, aside);
    page_read_done(m->cache, page, &w.vec);
    count_add(&m->cache->count.read_pages, 1);
    if (w.vec.error == -ENOMEM)
        return -ENOMEM; /* no fault of the disk's: worth trying again */
    return w.vec.error != 0 ? -EIO : 0;
}

int page_map_block(struct address_space *m, struct page *page)
{
    if (page_test(page, PG_mappedtodisk) || m->a_ops->block_exists == NULL)
        return 0;
    int r = m->a_ops->block_exists(m, atomic_load(&page->index));
    if (r > 0)
        page_set(page, PG_mappedtodisk);
    return r < 0 ? r : 0;
}

static bool beyond_eof(struct address_space *m, uint32_t index)
{
    return (uint64_t)index << PAGE_SHIFT >= atomic_load(&m->i_size);
}

/* Wait for a page somebody else reads; read it once more ourselves if that failed.
 * Returns 0; -EAGAIN: it left the tree, look again; -EIO, -ENOMEM. */
static int page_make_uptodate(struct address_space *m, struct page *page)
{
    count_add(&m->cache->count.waits, 1);
    lock_page(page);
    int err = 0;
    if (atomic_load(&page->mapping) != m)
        err = -EAGAIN;
    else if (!page_test(page, PG_uptodate))
        err = read_page_locked(m, page);
    unlock_page(page);
    return err;
}

/* Is the policy to hear that a page was found? fresh: it was missing just now, and the policy knows;
 * then only a read looks for a mark, as in Linux, where a fault is tried again differently. */
static bool tell_policy(struct file_ra_state *ra, struct page *page, enum ra_how how, bool fresh)
{
    if (fresh)
        return how == RA_READ && page_test(page, PG_readahead);
    return how != RA_READ || page_test(page, PG_readahead) || file_ra_every_access(ra);
}

/* A read that goes on in the page where the last one ended is the same use of it, or every file that
 * is read in small pieces would look much used (Linux: filemap_read). */
static bool continues_page(struct file_ra_state *ra, const struct ra_request *rq)
{
    uint64_t pos =
        ra != NULL ? atomic_load_explicit(&ra->prev_pos, memory_order_relaxed) : UINT64_MAX;
    return rq->how == RA_READ && pos != UINT64_MAX && pos > 0 &&
           (pos - 1) >> PAGE_SHIFT == rq->index;
}

void page_used(struct page_cache *cache, struct page *page, bool again)
{
    if (page_test(page, PG_prefetched) && (page_clear(page, PG_prefetched) & PG_prefetched))
        count_add(&cache->count.ra_used, 1);
    if (!again)
        mark_page_accessed(page);
}

/* A page that is in the tree, on behalf of a reader; consumes the reference on failure. */
static int page_use(struct address_space *m, struct file_ra_state *ra, struct page *page,
                    const struct ra_request *rq, bool fresh)
{
    if (ra != NULL && tell_policy(ra, page, rq->how, fresh))
        page_cache_async_ra(m, ra, page, rq);
    int err = page_test(page, PG_uptodate) ? 0 : page_make_uptodate(m, page);
    if (err != 0) {
        put_page(m->cache, page);
        return err;
    }
    page_used(m->cache, page, continues_page(ra, rq));
    return 0;
}

/* The last resort when memory is so short that what is read ahead is evicted before it is used.
 * As filemap_get_page. */
static int filemap_create_page(struct address_space *m, uint32_t index, struct page **out)
{
    int err = 1;
    struct page *page = NULL;
    down_read(&m->invalidate_lock);
    if (!beyond_eof(m, index)) /* or it would stay behind the end: truncation has been there */
        page = find_or_create_page(m, index, &err);
    if (page != NULL) {
        err = page_test(page, PG_uptodate) ? 0 : read_page_locked(m, page);
        unlock_page(page);
        if (err != 0)
            put_page(m->cache, page);
    }
    up_read(&m->invalidate_lock);
    if (err == 0)
        *out = page;
    return err;
}

/* Find or read the page at rq->index: referenced, unlocked.   As filemap_get_page. */
static int filemap_find_page(struct address_space *m, struct file_ra_state *ra,
                             const struct ra_request *rq, struct page **out, bool *missed)
{
    struct page *page;
    *missed = false;
    for (unsigned tries = 0;; tries++) {
        if (beyond_eof(m, rq->index))
            return 1;
        page = find_get_page(m, rq->index);
        if (page != NULL) {
            int err = page_use(m, ra, page, rq, *missed);
            if (err == 0)
                break;
            if (err != -EAGAIN)
                return err;
        } else {
            *missed = true;
            int err = tries < LOOKUP_TRIES ? page_cache_sync_ra(m, ra, rq)
                                           : filemap_create_page(m, rq->index, &page);
            if (err != 0)
                return err;
            if (page != NULL)
                break;
        }
    }
    *out = page;
    return 0;
}

static int filemap_request_page(struct address_space *m, struct file_ra_state *ra,
                                const struct ra_request *rq, struct page **out, bool *missed)
{
    struct page_cache *cache = m->cache;
    struct page *page = NULL;
    int err = filemap_find_page(m, ra, rq, &page, missed);
    if (err == -EIO && ra != NULL)
        file_ra_shrink(ra);
    if (err != 0)
        return err;
    if (*missed)
        count_add(&cache->count.misses, 1);
    else
        count_hits(cache, 1);
    if (beyond_eof(m, rq->index)) { /* truncated meanwhile */
        put_page(cache, page);
        return 1;
    }
    *out = page;
    return 0;
}

int filemap_get_page(struct address_space *m, struct file_ra_state *ra, uint32_t index, uint32_t nr,
                     struct page **out)
{
    bool missed;
    int err =
        filemap_request_page(m, ra, &(struct ra_request){ .index = index, .nr = nr }, out, &missed);
    if (err == 0 && ra != NULL && nr <= 1)
        file_ra_read_done(ra, ((uint64_t)index + 1) << PAGE_SHIFT);
    return err;
}

int filemap_fault_page(struct address_space *m, struct file_ra_state *ra, uint32_t index,
                       enum ra_how how, struct page **out, bool *major)
{
    return filemap_request_page(m, ra, &(struct ra_request){ .index = index, .nr = 1, .how = how },
                                out, major);
}

/* Bytes of [offset, offset+len) that are in the file. */
static size_t clamp_to_size(struct address_space *m, uint64_t offset, size_t len)
{
    uint64_t size = atomic_load(&m->i_size);
    if (offset >= size)
        return 0;
    return len < size - offset ? len : (size_t)(size - offset);
}

/* What a read of [offset, offset+len), which begins in the file, wants from its pages on; beyond the end of the file
 * too, for Linux takes the size of a request as it is; but not beyond the largest file's. */
static struct ra_request read_request(uint64_t offset, uint64_t len)
{
    uint64_t most = MAX_FILE_SIZE - offset;
    len = len < most ? len : most;
    uint64_t first = offset >> PAGE_SHIFT, last = (offset + len - 1) >> PAGE_SHIFT;
    uint64_t nr = last - first + 1;
    return (struct ra_request){ .index = (uint32_t)first,
                                .nr = nr < UINT32_MAX ? (uint32_t)nr : UINT32_MAX };
}

/* The pages of a request that are there, one after the other, and of which no policy has to hear;
 * few enough that readers cannot hold most of a small cache. References are taken together and
 * dropped together, because each is an atomic operation and that waits for every store before it,
 * here those of the copy (Linux: filemap_get_read_batch).   Returns how many, referenced. */
static unsigned filemap_get_read_batch(struct address_space *m, struct file_ra_state *ra,
                                       const struct ra_request *rq, struct page **pages)
{
    uint64_t most = atomic_load_explicit(&m->cache->limit, memory_order_relaxed) / 8;
    unsigned n = 0;
    if (most > PAGEVEC)
        most = PAGEVEC;
    if (most > rq->nr)
        most = rq->nr;
    if (most < 2 || (ra != NULL && file_ra_every_access(ra)))
        return 0;
    while (n < most) {
        struct page *page = find_get_page(m, rq->index + n);
        if (page == NULL)
            break;
        if (!page_test(page, PG_uptodate) || page_test(page, PG_readahead)) {
            put_page(m->cache, page);
            break;
        }
        page_used(m->cache, page, n == 0 && continues_page(ra, rq));
        pages[n++] = page;
    }
    if (n > 0)
        count_hits(m->cache, n);
    return n;
}

/* How many of nr pages, which follow each other in the file, do so in memory too: nearly all when the file
 * was read or written in order. One copy of many pages is faster than many of one. */
static unsigned pages_in_a_row(struct page *const *pages, unsigned nr)
{
    const char *first = page_address(pages[0]);
    unsigned n = 1;
    while (n < nr && page_address(pages[n]) == first + ((size_t)n << PAGE_SHIFT))
        n++;
    return n;
}

/* Copy what [pos, pos + len) has of nr pages, which follow each other in the file.   Returns bytes. */
static size_t copy_from_pages(struct page *const *pages, unsigned nr, uint64_t pos, char *to,
                              size_t len)
{
    size_t done = 0;
    for (unsigned i = 0, run; i < nr && done < len; i += run) {
        uint32_t in = (uint32_t)((pos + done) & (PAGE_SIZE - 1));
        run = pages_in_a_row(pages + i, nr - i);
        size_t n = ((size_t)run << PAGE_SHIFT) - in;
        n = n < len - done ? n : len - done;
        copy_bytes(to + done, (char *)page_address(pages[i]) + in, n);
        done += n;
    }
    return done;
}

ssize_t filemap_read(struct address_space *m, struct file_ra_state *ra, uint64_t offset, void *buf,
                     size_t asked)
{
    char *to = buf;
    size_t done = 0, len = clamp_to_size(m, offset, asked);
    int err = 0;
    while (done < len) {
        struct page *pages[PAGEVEC];
        struct ra_request rq = read_request(offset + done, asked - done);
        struct ra_request here = read_request(offset + done, len - done);
        unsigned nr = filemap_get_read_batch(m, ra, &here, pages);
        if (nr == 0) {
            bool missed;
            err = filemap_request_page(m, ra, &rq, &pages[nr++], &missed);
            if (err != 0)
                break;
        }
        cache_yield();
        /* Truncated meanwhile? One look for all that is in hand, or it might be cut and grow again between two. */
        len = done + clamp_to_size(m, offset + done, len - done);
        done += copy_from_pages(pages, nr, offset + done, to + done, len - done);
        for (unsigned i = 0; i < nr; i++)
            put_page(m->cache, pages[i]);
    }
    if (done > 0 && ra != NULL)
        file_ra_read_done(ra, offset + done);
    return done > 0 || err > 0 ? (ssize_t)done : err;
}
