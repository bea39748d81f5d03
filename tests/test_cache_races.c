/* Interleavings that random threads hardly ever meet, forced. */
#include <criterion/criterion.h>
#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "cache/page_cache.h"

/* ---- a miss that waits while truncation changes the object ----------------------------------- */

struct reader {
    struct address_space *m;
    pthread_t thread;
    char byte;
};

static void *read_page_two(void *arg)
{
    struct reader *r = arg;
    cr_assert_eq(filemap_read(r->m, NULL, 2 * PAGE_SIZE, &r->byte, 1), 1);
    return NULL;
}

Test(cache_races, a_miss_reads_from_the_object_that_is_there_when_it_holds_the_lock, .timeout = 30)
{
    struct cache_options o = { .cache_bytes = 64 << PAGE_SHIFT };
    struct page_cache *cache;
    struct device *dev = dev_memory_create();
    struct address_space old, m;
    static char buf[4 * PAGE_SIZE];
    cr_assert_eq(page_cache_create(&cache, &o), 0);
    mapping_init(&old, cache, dev, 2, NULL, 0); /* what will be the new object's content */
    memset(buf, 'n', sizeof buf);
    cr_assert_eq(filemap_write(&old, 0, buf, sizeof buf), (ssize_t)sizeof buf);
    cr_assert_eq(filemap_fdatawrite(&old, WB_SYNC_ALL), 0);
    mapping_init(&m, cache, dev, 1, NULL, sizeof buf); /* nothing but holes */
    struct reader r = { .m = &m };
    down_write(&m.invalidate_lock);
    pthread_create(&r.thread, NULL, read_page_two, &r);
    nanosleep(&(struct timespec){ .tv_nsec = 100000000 }, NULL);
    atomic_store(&m.object, 2); /* truncated, written and written back meanwhile */
    up_write(&m.invalidate_lock);
    pthread_join(r.thread, NULL);
    cr_expect_eq(r.byte, 'n', "read %d of the object that is gone", r.byte);
    mapping_destroy(&m);
    mapping_destroy(&old);
    page_cache_destroy(cache);
    device_destroy(dev);
}

/* ---- sync beside the flusher ------------------------------------------------------------------ */

struct picky { /* fails the writes of one object */
    struct device dev;
    struct device *below;
    uint64_t fails;
};

static void picky_submit(struct device *dev, struct bio *bio)
{
    struct picky *p = (struct picky *)dev;
    if (bio->op == BIO_WRITE && bio->object == p->fails) {
        bio_fail(bio, -EIO);
        bio_endio(bio);
    } else {
        submit_bio(p->below, bio);
    }
}

static const struct device_ops picky_ops = { .submit = picky_submit };

static struct page_cache *synced;

/* While sync writes the first file the flusher comes round and takes the second in hand. */
static int begin(struct address_space *m, struct writeback_pass *pass)
{
    (void)pass;
    if (atomic_load(&m->object) == 1) {
        wakeup_flusher(synced);
        flusher_step(synced);
    }
    return 0;
}

static uint64_t fake_now;

static uint64_t fake_clock(void *arg)
{
    (void)arg;
    return fake_now += 1000;
}

Test(cache_races, sync_does_not_pass_over_a_file_that_the_flusher_took_and_could_not_write,
     .timeout = 30)
{
    static const struct address_space_operations ops = { .writeback_begin = begin };
    const struct clock clock = { .now_ns = fake_clock };
    struct cache_options o = { .cache_bytes = 64 << PAGE_SHIFT, .clock = &clock };
    struct picky p = { .dev = { .ops = &picky_ops, .nr_blocks = (uint64_t)1 << 32 },
                       .below = dev_memory_create(),
                       .fails = 2 };
    struct address_space m[2];
    cr_assert_eq(page_cache_create(&synced, &o), 0);
    for (unsigned i = 0; i < 2; i++) {
        mapping_init(&m[i], synced, &p.dev, i + 1, i == 0 ? &ops : NULL, 0);
        cr_assert_eq(filemap_write(&m[i], 0, "x", 1), 1);
    }
    int err = page_cache_sync(synced);
    cr_expect(err == -EIO || atomic_load(&m[1].nrdirty) == 0,
              "sync says %d, and a page that was dirty before is dirty still", err);
    p.fails = 0;
    cr_expect_eq(page_cache_sync(synced), 0);
    for (unsigned i = 0; i < 2; i++) {
        cr_expect_eq(atomic_load(&m[i].nrdirty), 0);
        mapping_destroy(&m[i]);
    }
    page_cache_destroy(synced);
    device_destroy(p.below);
}
