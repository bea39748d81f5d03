/* What the cache sends to its device, and what it makes of the answer. */
#include <criterion/criterion.h>
#include <errno.h>
#include <pthread.h>
#include <semaphore.h>
#include <stdio.h>
#include <string.h>

#include "cache/page_cache.h"
#include "store/dev_fault.h"

#define FILE_PAGES 64u

/* Holds the readahead worker's reads back until the gate opens, and notes each. */
struct gated {
    struct device dev;
    struct device *below;
    pthread_t reader;
    sem_t arrived, gate;
    /* "4+28": 28 blocks from block 4. Each thread notes its own; which of the two comes first at the
     * device is nobody's promise. */
    char readers[100], workers[100];
};

static void gated_submit(struct device *dev, struct bio *bio)
{
    struct gated *g = (struct gated *)dev;
    bool worker = !pthread_equal(pthread_self(), g->reader);
    char *calls = worker ? g->workers : g->readers;
    size_t at = strlen(calls);
    snprintf(calls + at, sizeof g->readers - at, "%u+%u ", bio->vecs[0].index, bio->nr_vecs);
    if (worker) {
        sem_post(&g->arrived);
        sem_wait(&g->gate);
    }
    submit_bio(g->below, bio);
}

static const struct device_ops gated_ops = { .submit = gated_submit };

struct world {
    struct gated dev;
    struct page_cache *cache;
    struct address_space m[2];
    struct file_ra_state ra[2];
};

static void world_open(struct world *w, bool threads)
{
    struct cache_options o = { .cache_bytes = 1024 << PAGE_SHIFT, .threads = threads };
    w->dev = (struct gated){ .dev = { .ops = &gated_ops, .nr_blocks = (uint64_t)1 << 32 },
                             .below = dev_memory_create(),
                             .reader = pthread_self() };
    sem_init(&w->dev.arrived, 0, 0);
    sem_init(&w->dev.gate, 0, 0);
    cr_assert_eq(page_cache_create(&w->cache, &o), 0);
    for (unsigned i = 0; i < 2; i++) {
        mapping_init(&w->m[i], w->cache, &w->dev.dev, i + 1, NULL, FILE_PAGES << PAGE_SHIFT);
        file_ra_state_init(&w->ra[i], &ra_linux, RA_DEFAULT_PAGES);
    }
}

static void world_close(struct world *w)
{
    for (unsigned i = 0; i < 2; i++)
        mapping_destroy(&w->m[i]);
    page_cache_destroy(w->cache);
    device_destroy(w->dev.below);
    sem_destroy(&w->dev.arrived);
    sem_destroy(&w->dev.gate);
}

static void read_first_page(struct world *w, unsigned file)
{
    char byte;
    cr_assert_eq(filemap_read(&w->m[file], &w->ra[file], 0, &byte, 1), 1);
}

Test(cache_bios, without_a_worker_what_is_wanted_and_what_is_read_ahead_go_as_one)
{
    static struct world w;
    world_open(&w, false);
    read_first_page(&w, 0);
    cr_expect_str_eq(w.dev.readers, "0+4 ");
    world_close(&w);
}

Test(cache_bios, windows_that_wait_for_the_worker_and_follow_each_other_go_as_one, .timeout = 30)
{
    static struct world w;
    struct ra_request rq = { .index = 1, .nr = 1 };
    world_open(&w, true);
    read_first_page(&w, 0);
    sem_wait(&w.dev.arrived); /* the worker is busy with the first file */
    read_first_page(&w, 1);
    struct page *marked = find_get_page(&w.m[1], 1);
    cr_assert_not_null(marked);
    page_cache_async_ra(&w.m[1], &w.ra[1], marked, &rq);
    put_page(w.cache, marked);
    sem_post(&w.dev.gate);
    sem_wait(&w.dev.arrived);
    cr_expect_str_eq(w.dev.readers, "0+1 0+1 ", "%s", w.dev.readers);
    cr_expect_str_eq(w.dev.workers, "1+3 1+11 ", "%s", w.dev.workers);
    sem_post(&w.dev.gate);
    world_close(&w);
}

Test(cache_bios, a_read_that_fails_for_want_of_memory_says_so_and_may_be_tried_again)
{
    struct cache_options o = { .cache_bytes = 64 << PAGE_SHIFT };
    struct fault_rule memory = { .kind = FAULT_ENOMEM, .reads = true, .last = 9, .count = 2 };
    struct fault_rule room = { .kind = FAULT_ENOSPC, .reads = true, .last = 9 };
    struct device *below = dev_memory_create(), *dev = dev_fault_create(below, 1);
    struct page_cache *cache;
    struct address_space m;
    char byte = 1;
    cr_assert_eq(page_cache_create(&cache, &o), 0);
    mapping_init(&m, cache, dev, 1, NULL, FILE_PAGES << PAGE_SHIFT);
    dev_fault_add(dev, &memory);
    cr_expect_eq(filemap_read(&m, NULL, 0, &byte, 1), -ENOMEM);
    cr_expect_eq(filemap_read(&m, NULL, 0, &byte, 1), 1);
    cr_expect_eq(byte, 0);
    dev_fault_add(dev, &room);
    cr_expect_eq(filemap_read(&m, NULL, PAGE_SIZE, &byte, 1), -EIO);
    mapping_destroy(&m);
    page_cache_destroy(cache);
    device_destroy(dev);
    device_destroy(below);
}
