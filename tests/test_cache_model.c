/* The cache beside flat bytes: random reads, writes, truncations, holes, writeback, drops and store
 * errors on a cache of a few pages, the same result demanded after each, the invariants checked. A
 * million operations; FOLIO_SEED is the first seed, and replays one that failed. */
#include <criterion/criterion.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cache/page_cache.h"
#include "cache/vma_soft.h"

#define OBJECT 7u
#define MOST   (200u * 1024u) /* bytes of the model's file */

/* A device that fails some writes and reads, on top of the memory one. */
struct faulty {
    struct device dev;
    struct device *below;
    unsigned fail_reads, fail_writes; /* per mille */
    unsigned seed;
};

static void faulty_submit(struct device *dev, struct bio *bio)
{
    struct faulty *f = (struct faulty *)dev;
    unsigned rate = bio->op == BIO_READ ? f->fail_reads : f->fail_writes;
    if ((unsigned)rand_r(&f->seed) % 1000 < rate) {
        bio_fail(bio, bio->op == BIO_READ ? -EIO : -ENOSPC);
        bio_endio(bio);
        return;
    }
    submit_bio(f->below, bio);
}

static void faulty_destroy(struct device *dev)
{
    device_destroy(((struct faulty *)dev)->below);
    free(dev);
}

static const struct device_ops faulty_ops = { .submit = faulty_submit, .destroy = faulty_destroy };

static struct faulty *faulty_create(void)
{
    struct faulty *f = calloc(1, sizeof *f);
    f->dev.ops = &faulty_ops;
    f->dev.nr_blocks = (uint64_t)1 << 32;
    f->below = dev_memory_create();
    return f;
}

/* The owner of a mapping: counts promises, and knows nothing else. */
struct owner {
    int64_t promised, promised_new;
    struct device *memory;
};

static int owner_reserve(struct address_space *m, uint32_t pages, uint32_t new)
{
    struct owner *o = m->owner;
    o->promised += pages;
    o->promised_new += new;
    return 0;
}

static void owner_reserve_always(struct address_space *m, uint32_t pages, uint32_t new)
{
    owner_reserve(m, pages, new);
}

static void owner_unreserve(struct address_space *m, uint32_t pages, uint32_t new)
{
    struct owner *o = m->owner;
    o->promised -= pages;
    o->promised_new -= new;
}

static void note_hole(struct bio *bio)
{
    *(bool *)bio->vecs[0].owner = (bio->vecs[0].flags & BV_HOLE) != 0;
    bio_free(bio);
}

static int owner_exists(struct address_space *m, uint32_t index)
{
    /* Ask the memory device by reading. */
    struct owner *o = m->owner;
    char buf[BLOCK_SIZE];
    struct bio *bio = bio_alloc(BIO_READ, OBJECT, 1);
    bool hole = false;
    bio_add(bio, index, buf, &hole);
    bio->end_io = note_hole;
    submit_bio(o->memory, bio);
    return !hole;
}

static const struct address_space_operations owner_ops = { .reserve = owner_reserve,
                                                           .reserve_always = owner_reserve_always,
                                                           .unreserve = owner_unreserve,
                                                           .block_exists = owner_exists };

/* What fails, per mille, and who chooses the pages to evict. */
struct weather {
    unsigned fail_reads, fail_writes;
    const char *reclaim;
};

struct world {
    struct page_cache *cache;
    struct faulty *dev;
    struct owner owner;
    struct address_space m;
    struct file_ra_state ra;
    struct vm_area *vma; /* of the whole file, and as far as it may grow */
    uint8_t *flat;
    uint64_t size;
    unsigned seed;
};

static void world_open(struct world *w, unsigned pages, unsigned seed, const char *reclaim)
{
    struct cache_options o = { .cache_bytes = (uint64_t)pages << PAGE_SHIFT,
                               .max_bytes = 80u << PAGE_SHIFT, /* enough for shadows */
                               .dirty_ratio = 40,
                               .reclaim = reclaim };
    memset(w, 0, sizeof *w);
    w->seed = seed;
    w->flat = calloc(1, MOST);
    w->dev = faulty_create();
    w->dev->seed = seed;
    w->owner.memory = w->dev->below;
    cr_assert_eq(page_cache_create(&w->cache, &o), 0);
    mapping_init(&w->m, w->cache, &w->dev->dev, OBJECT, &owner_ops, 0);
    w->m.owner = &w->owner;
    file_ra_state_init(&w->ra, &ra_linux, RA_DEFAULT_PAGES);
    cr_assert_eq(vma_soft_create(&w->m, 0, MOST / PAGE_SIZE, &w->ra, &w->vma), 0);
}

static void world_close(struct world *w)
{
    vma_soft_destroy(w->vma);
    mapping_destroy(&w->m);
    page_cache_destroy(w->cache);
    device_destroy(&w->dev->dev);
    free(w->flat);
}

static uint32_t pick(struct world *w, uint32_t below)
{
    return below == 0 ? 0 : (uint32_t)rand_r(&w->seed) % below;
}

static const char *do_write(struct world *w)
{
    uint8_t buf[20000];
    uint32_t offset = pick(w, MOST - 1), len = 1 + pick(w, pick(w, 2) ? 20000 : 3000);
    if (len > MOST - offset)
        len = MOST - offset;
    memset(buf, (int)pick(w, 256), len);
    ssize_t n = filemap_write(&w->m, offset, buf, len);
    if (n < 0 && w->dev->fail_reads + w->dev->fail_writes == 0)
        return "write failed without a fault";
    if (n > 0) {
        memcpy(w->flat + offset, buf, (size_t)n);
        if (offset + (size_t)n > w->size)
            w->size = offset + (size_t)n;
    }
    if (pick(w, 4) == 0)
        balance_dirty_pages(w->cache);
    return NULL;
}

static const char *do_read(struct world *w)
{
    static uint8_t buf[40000];
    uint32_t offset = pick(w, MOST), len = 1 + pick(w, 40000);
    ssize_t n = filemap_read(&w->m, pick(w, 8) ? &w->ra : NULL, offset, buf, len);
    uint64_t expect = offset >= w->size ? 0 : len < w->size - offset ? len : w->size - offset;
    if (n < 0 || (uint64_t)n != expect) {
        if (w->dev->fail_reads == 0)
            return "read returned the wrong length";
        if (n < 0)
            return NULL;
    }
    return memcmp(buf, w->flat + offset, (size_t)n) == 0 ? NULL : "read returned the wrong bytes";
}

/* A stretch inside the file, for loads and stores. */
static uint32_t pick_mapped(struct world *w, uint32_t *len)
{
    uint32_t offset = pick(w, (uint32_t)w->size);
    uint32_t most = (uint32_t)w->size - offset;
    *len = 1 + pick(w, most < 9000 ? most : 9000);
    *len = *len < most ? *len : most;
    return offset;
}

static const char *do_store(struct world *w)
{
    uint8_t buf[9000];
    uint32_t len;
    if (w->size == 0)
        return NULL;
    uint32_t offset = pick_mapped(w, &len);
    memset(buf, (int)pick(w, 256), len);
    /* Page by page, so that what an error left undone is known. */
    for (uint32_t at = 0; at < len;) {
        uint32_t n = PAGE_SIZE - (offset + at) % PAGE_SIZE;
        n = n < len - at ? n : len - at;
        int err = vma_store(w->vma, offset + at, buf + at, n);
        if (err != 0)
            return w->dev->fail_reads > 0 ? NULL : "a store failed without a fault";
        memcpy(w->flat + offset + at, buf + at, n);
        at += n;
    }
    return NULL;
}

/* Behind the end, in the page that the end cuts: to be forgotten. */
static const char *do_store_behind(struct world *w)
{
    uint8_t buf[PAGE_SIZE];
    uint32_t in = w->size % PAGE_SIZE;
    if (in == 0)
        return NULL;
    memset(buf, 1 + (int)pick(w, 255), sizeof buf);
    int err = vma_store(w->vma, w->size, buf, PAGE_SIZE - in);
    return err == 0 || w->dev->fail_reads > 0 ? NULL : "a store failed without a fault";
}

static const char *do_load(struct world *w)
{
    uint8_t buf[9000];
    uint32_t len;
    if (w->size == 0)
        return vma_load(w->vma, pick(w, MOST - 1), buf, 1) == -EFAULT ? NULL : "no SIGBUS";
    uint32_t offset = pick_mapped(w, &len);
    int err = vma_load(w->vma, offset, buf, len);
    if (err != 0)
        return w->dev->fail_reads > 0 ? NULL : "a load failed without a fault";
    return memcmp(buf, w->flat + offset, len) == 0 ? NULL : "a load saw the wrong bytes";
}

static const char *do_truncate(struct world *w)
{
    uint64_t size = pick(w, MOST), old = w->size;
    struct page *page;
    if (size < old) {
        if (truncate_get_page(&w->m, size, &page) != 0)
            return w->dev->fail_reads > 0 ? NULL : "truncate_get_page failed";
        down_write(&w->m.invalidate_lock);
        unsigned stayed = truncate_setsize(&w->m, size, page);
        uint32_t first = (uint32_t)pages_for(size);
        dev_memory_discard(w->dev->below, OBJECT, first, UINT32_MAX);
        truncate_pages_end(&w->m, first, UINT32_MAX, stayed);
        page_unlock_put(&w->m, page);
        up_write(&w->m.invalidate_lock);
        memset(w->flat + size, 0, MOST - size);
    } else {
        if (lock_eof_page(&w->m, &page) != 0) /* when nothing can be written, and so evicted */
            return w->dev->fail_writes > 0 ? NULL : "lock_eof_page failed";
        atomic_store(&w->m.i_size, size);
        page_unlock_put(&w->m, page);
    }
    w->size = size;
    return NULL;
}

static const char *do_punch(struct world *w)
{
    uint32_t first = pick(w, MOST / PAGE_SIZE), n = 1 + pick(w, 8);
    down_write(&w->m.invalidate_lock);
    truncate_inode_pages_range(&w->m, first, first + n - 1);
    dev_memory_discard(w->dev->below, OBJECT, first, first + n - 1);
    up_write(&w->m.invalidate_lock);
    uint64_t from = (uint64_t)first << PAGE_SHIFT, to = from + ((uint64_t)n << PAGE_SHIFT);
    to = to < MOST ? to : MOST;
    memset(w->flat + from, 0, to - from);
    return NULL;
}

static const char *do_sync(struct world *w)
{
    int err = filemap_fdatawrite(&w->m, pick(w, 2) ? WB_SYNC_ALL : WB_SYNC_NONE);
    if (err != 0 && w->dev->fail_writes == 0)
        return "writeback failed without a fault";
    if (err == 0 && atomic_load(&w->m.nrdirty) != 0)
        return "dirty pages after a good pass";
    return NULL;
}

static const char *do_drop(struct world *w)
{
    if (pick(w, 2))
        page_cache_drop(w->cache);
    else
        invalidate_inode_pages2_range(&w->m, pick(w, 20), 20 + pick(w, 40));
    return NULL;
}

static const char *do_resize(struct world *w)
{
    uint64_t max = w->cache->max_frames;
    page_cache_resize(w->cache, (CACHE_MIN_PAGES + pick(w, (uint32_t)(max - CACHE_MIN_PAGES + 1)))
                                    << PAGE_SHIFT);
    return NULL;
}

static const char *step(struct world *w)
{
    uint32_t r = pick(w, 100);
    return r < 22   ? do_write(w)
           : r < 33 ? do_store(w)
           : r < 37 ? do_store_behind(w)
           : r < 60 ? do_read(w)
           : r < 75 ? do_load(w)
           : r < 81 ? do_truncate(w)
           : r < 86 ? do_punch(w)
           : r < 92 ? do_sync(w)
           : r < 98 ? do_drop(w)
                    : do_resize(w);
}

static unsigned start_seed(void)
{
    const char *s = getenv("FOLIO_SEED");
    return s != NULL ? (unsigned)strtoul(s, NULL, 0) : 20261u;
}

static void run(unsigned rounds, unsigned ops, struct weather weather)
{
    unsigned first = start_seed();
#ifdef __SANITIZE_ADDRESS__
    rounds /= 2; /* several times slower */
#endif
    printf("FOLIO_SEED=%u: %u seeds of %u operations, reclaim %s; of 1000 reads %u fail, of writes "
           "%u\n",
           first, rounds, ops, weather.reclaim, weather.fail_reads, weather.fail_writes);
    for (unsigned round = 0; round < rounds; round++) {
        struct world w;
        unsigned seed = first + round;
        world_open(&w, CACHE_MIN_PAGES + seed % 60, seed, weather.reclaim);
        for (unsigned i = 0; i < ops; i++) {
            w.dev->fail_reads = weather.fail_reads;
            w.dev->fail_writes = weather.fail_writes;
            const char *wrong = step(&w);
            int line = mapping_check(&w.m);
            cr_assert(wrong == NULL && line == 0, "seed %u, operation %u: %s, check line %d", seed,
                      i, wrong != NULL ? wrong : "-", line);
        }
        world_close(&w);
    }
}

Test(cache_model, behaves_like_flat_bytes)
{
    run(110, 3000, (struct weather){ .reclaim = "lru2q" });
}

Test(cache_model, behaves_like_flat_bytes_while_the_store_fails_now_and_then)
{
    run(60, 3000, (struct weather){ 20, 100, "lru2q" });
}

Test(cache_model, behaves_like_flat_bytes_with_s3fifo)
{
    run(110, 3000, (struct weather){ .reclaim = "s3fifo" });
}

Test(cache_model, behaves_like_flat_bytes_with_s3fifo_while_the_store_fails_now_and_then)
{
    run(60, 3000, (struct weather){ 20, 100, "s3fifo" });
}
