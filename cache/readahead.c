/* readahead.c: the mechanism: turn a policy's window into pages and bios. */
#include "cache/readahead.h"

#include <errno.h>
#include <string.h>

#include "cache/page_cache.h"

const struct ra_policy *ra_policy_find(const char *name)
{
    static const struct ra_policy *const all[] = { &ra_none, &ra_linux };
    for (size_t i = 0; i < sizeof all / sizeof all[0]; i++)
        if (strcmp(all[i]->name, name) == 0)
            return all[i];
    return NULL;
}

void file_ra_state_init(struct file_ra_state *ra, const struct ra_policy *policy, uint32_t ra_pages)
{
    memset(ra, 0, sizeof *ra);
    ra->policy = policy;
    atomic_store(&ra->ra_pages, ra_pages);
    atomic_store(&ra->prev_index, UINT64_MAX);
}

static void none_access(struct file_ra_state *ra, const struct ra_access *a, struct ra_window *out)
{
    (void)ra;
    (void)a;
    out->size = 0;
}

const struct ra_policy ra_none = { .name = "none", .access = none_access };

static bool page_is_cached(struct address_space *m, uint32_t index)
{
    struct page *page = find_get_page(m, index);
    if (page == NULL)
        return false;
    put_page(m->cache, page);
    return true;
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

static uint64_t pages_in_file(struct address_space *m)
{
    return (atomic_load(&m->i_size) + PAGE_SIZE - 1) >> PAGE_SHIFT;
}

/* What to read, with the pages asked for inside and the file's end and the cache's size respected. */
static struct ra_window choose_window(struct address_space *m, struct file_ra_state *ra,
                                      uint32_t index, uint32_t nr, bool marker)
{
    struct ra_access a = { .index = index,
                           .nr = nr,
                           .marker = marker,
                           .mapping = m,
                           .file_pages = pages_in_file(m),
                           .history = count_history,
                           .next_miss = next_miss };
    struct ra_window w = { .start = index };
    uint64_t end = a.file_pages, most = atomic_load(&m->cache->limit) / 4 + 1;
    if (ra != NULL && ra->policy != NULL)
        ra->policy->access(ra, &a, &w);
    if (w.size == 0 && !marker)
        w = (struct ra_window){ .start = index, .size = nr };
    if (w.size > most)
        w.size = (uint32_t)most;
    if (w.size > BIO_MAX_VECS)
        w.size = BIO_MAX_VECS;
    if (w.start >= end)
        w.size = 0;
    else if (w.size > end - w.start)
        w.size = (uint32_t)(end - w.start);
    return w;
}

/* The bios of one window: what the caller needs now, and what nobody waits for. */
struct ra_bios {
    struct bio *now, *later;
};

static bool ra_bios_alloc(struct ra_bios *b)
{
    b->now = bio_alloc(BIO_READ, 0, BIO_MAX_VECS);
    b->later = bio_alloc(BIO_READ, 0, BIO_MAX_VECS);
    if (b->now != NULL && b->later != NULL)
        return true;
    bio_free(b->now);
    bio_free(b->later);
    return false;
}

static void ra_queue_bio(struct page_cache *cache, struct bio *bio)
{
    pthread_mutex_lock(&cache->ra_lock);
    bio->next = NULL;
    *cache->ra_tail = bio;
    cache->ra_tail = &bio->next;
    pthread_mutex_unlock(&cache->ra_lock);
    worker_wake(cache->reader);
}

static void ra_submit(struct address_space *m, struct bio *bio, bool later)
{
    if (bio->nr_vecs == 0) {
        bio_free(bio);
        return;
    }
    bio->private = m;
    bio->end_io = read_end_io;
    if (!later) {
        submit_bio(m->dev, bio);
        return;
    }
    bio->flags |= BIO_RAHEAD;
    if (m->cache->reader != NULL)
        ra_queue_bio(m->cache, bio);
    else
        submit_bio(m->dev, bio);
}

/* Insert one page of the window, locked, and add it to a bio.   Returns false: no memory. */
static bool ra_add_page(struct address_space *m, struct bio *bio, struct page *page, uint32_t index,
                        uint32_t flags)
{
    if (page == NULL)
        return false;
    int err = add_to_page_cache_lru(m, page, index);
    if (err != 0) {
        put_page(m->cache, page); /* -EEXIST: somebody else brought it */
        return err == -EEXIST;
    }
    page_set(page, flags);
    bio_add(bio, index, page_address(m->cache, page), page); /* end_io drops our reference */
    return true;
}

/* Read the window's missing pages. [index, index+nr) goes with the first bio, the rest with the
 * second. The page at index may sleep for memory, and does so before anything is locked; the others
 * are read only while memory lasts. */
static int ra_read_window(struct address_space *m, const struct ra_window *w, uint32_t index,
                          uint32_t nr, bool must)
{
    struct ra_bios bios;
    struct page *first = NULL;
    if (!ra_bios_alloc(&bios))
        return -ENOMEM;
    if (must && (first = page_alloc(m->cache, true)) == NULL) {
        bio_free(bios.now);
        bio_free(bios.later);
        return -ENOMEM;
    }
    down_read(&m->invalidate_lock);
    /* Only now: truncation changes the object, and the pages go into the tree of the new one. */
    bios.now->object = bios.later->object = atomic_load(&m->object);
    uint64_t end = (uint64_t)w->start + w->size;
    uint64_t mark = w->async_size > 0 ? end - w->async_size : UINT64_MAX;
    for (uint64_t i = w->start; i < end; i++) {
        bool wanted = nr > 0 && i >= index && i < (uint64_t)index + nr;
        struct page *page = i == index && first != NULL ? first : NULL;
        if (page == NULL && page_is_cached(m, (uint32_t)i))
            continue;
        if (page == NULL)
            page = page_alloc(m->cache, false);
        else
            first = NULL;
        uint32_t flags = (i == mark ? PG_readahead : 0) | (wanted ? 0 : PG_prefetched);
        if (!ra_add_page(m, wanted ? bios.now : bios.later, page, (uint32_t)i, flags))
            break;
        if (!wanted)
            count_add(&m->cache->count.ra_pages, 1);
    }
    /* The queued bio first: the worker starts while we read ours. */
    ra_submit(m, bios.later, true);
    ra_submit(m, bios.now, false);
    up_read(&m->invalidate_lock);
    if (first != NULL)
        put_page(m->cache, first);
    return 0;
}

int page_cache_sync_ra(struct address_space *m, struct file_ra_state *ra, uint32_t index,
                       uint32_t nr)
{
    struct ra_window w = choose_window(m, ra, index, nr, false);
    if (w.size == 0)
        return 0;
    count_add(&m->cache->count.ra_sync, 1);
    return ra_read_window(m, &w, index, nr, true);
}

void page_cache_async_ra(struct address_space *m, struct file_ra_state *ra, struct page *page,
                         uint32_t index, uint32_t nr)
{
    if (!(page_clear(page, PG_readahead) & PG_readahead))
        return; /* another reader took the mark */
    struct ra_window w = choose_window(m, ra, index, nr, true);
    if (w.size == 0)
        return;
    count_add(&m->cache->count.ra_async, 1);
    ra_read_window(m, &w, index, 0, false);
}
