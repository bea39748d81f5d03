/* What a file that is attached takes of this process, and that it is given back. */
#include <criterion/criterion.h>
#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include "cache/memfd.h"
#include "cache/page_cache.h"
#include "cache/vma_soft.h"

#define PAGES     32u
#define FILES     64
#define LAST_PAGE UINT32_MAX /* of a 16 TiB file */
#define TIB       ((uint64_t)1 << 40)

struct world {
    struct device *dev;
    struct page_cache *cache;
    struct address_space m[FILES];
    struct memfd_account account;
    struct memfd_segment *segment;
};

static void world_open(struct world *w)
{
    struct cache_options o = { .cache_bytes = 1024u << PAGE_SHIFT };
    memset(w, 0, sizeof *w);
    w->dev = dev_memory_create();
    cr_assert_eq(page_cache_create(&w->cache, &o), 0);
    for (unsigned i = 0; i < FILES; i++)
        mapping_init(&w->m[i], w->cache, w->dev, i + 1, NULL, 0);
}

static void world_close(struct world *w)
{
    for (unsigned i = 0; i < FILES; i++) {
        cr_expect_eq(mapping_check(&w->m[i]), 0, "file %u", i);
        mapping_destroy(&w->m[i]);
    }
    page_cache_destroy(w->cache);
    device_destroy(w->dev);
}

static void fill(char *page, uint32_t index)
{
    memset(page, 'a' + (int)(index % 26), PAGE_SIZE);
}

static void write_pages(struct address_space *m, uint32_t from, uint32_t to)
{
    char page[PAGE_SIZE];
    for (uint32_t i = from; i < to; i++) {
        fill(page, i);
        cr_assert_eq(filemap_write(m, (uint64_t)i << PAGE_SHIFT, page, PAGE_SIZE), PAGE_SIZE);
    }
}

static void expect_pages(struct address_space *m, uint32_t n)
{
    char want[PAGE_SIZE], got[PAGE_SIZE];
    for (uint32_t i = 0; i < n; i++) {
        fill(want, i);
        cr_assert_eq(filemap_read(m, NULL, (uint64_t)i << PAGE_SHIFT, got, PAGE_SIZE), PAGE_SIZE);
        cr_expect_arr_eq(got, want, PAGE_SIZE, "page %u", i);
    }
}

static void expect_in_memfd(struct address_space *m, uint32_t n)
{
    char want[PAGE_SIZE], got[PAGE_SIZE];
    for (uint32_t i = 0; i < n; i++) {
        fill(want, i);
        cr_assert_eq(pread(memfd_descriptor(m, false), got, PAGE_SIZE, (off_t)i << PAGE_SHIFT),
                     PAGE_SIZE);
        cr_expect_arr_eq(got, want, PAGE_SIZE, "page %u", i);
    }
}

static void attach(struct world *w, struct address_space *m, uint32_t first, uint32_t count)
{
    cr_assert_eq(mapping_use_memfd(m), 0);
    cr_assert_eq(memfd_reserve(m, first, count, &w->account, &w->segment), 0);
}

static void detach(struct world *w, struct address_space *m)
{
    memfd_release(w->segment, &w->account);
    mapping_unuse_memfd(m);
}

static unsigned nr_descriptors(void)
{
    unsigned n = 0;
    DIR *d = opendir("/proc/self/fd");
    while (readdir(d) != NULL)
        n++;
    closedir(d);
    return n;
}

static bool descriptors_fall_to(unsigned most)
{
    for (unsigned ms = 0; ms < 5000 && nr_descriptors() > most; ms++)
        usleep(1000); /* others close them */
    return nr_descriptors() <= most;
}

static uint64_t address_space(void)
{
    unsigned long long pages = 0;
    FILE *f = fopen("/proc/self/statm", "re");
    cr_assert(f != NULL && fscanf(f, "%llu", &pages) == 1);
    (void)fclose(f);
    return pages << PAGE_SHIFT;
}

Test(cache_memfd, what_nobody_has_attached_is_given_back_and_its_pages_stay)
{
    static struct world w;
    world_open(&w);
    struct address_space *m = &w.m[0];
    write_pages(m, 0, PAGES / 2);
    cr_assert_eq(filemap_fdatawrite(m, WB_SYNC_ALL), 0);
    write_pages(m, PAGES / 2, PAGES); /* dirty */
    attach(&w, m, 0, PAGES);
    unsigned fds = nr_descriptors();
    uint64_t space = address_space();
    cr_expect_eq(atomic_load(&m->nrdirty), PAGES / 2);
    expect_in_memfd(m, PAGES);
    cr_expect_eq(mapping_check(m), 0);
    cr_expect_eq(memfd_shrink(100), 0, "it is attached");
    detach(&w, m);
    cr_expect_eq(w.account.bytes, 0);
    cr_expect_eq(memfd_shrink(100), 1);
    cr_expect(descriptors_fall_to(fds - 2));
    cr_expect_leq(address_space() + (64u << 20), space);
    cr_expect_eq(mapping_check(m), 0);
    cr_expect_eq(atomic_load(&m->nrpages), PAGES);
    cr_expect_eq(atomic_load(&m->nrdirty), PAGES / 2);
    struct cache_stats before, after;
    page_cache_stats(w.cache, &before);
    expect_pages(m, PAGES);
    page_cache_stats(w.cache, &after);
    cr_expect_eq(before.misses, after.misses);
    cr_assert_eq(filemap_fdatawrite(m, WB_SYNC_ALL), 0);
    page_cache_drop(w.cache);
    expect_pages(m, PAGES);
    attach(&w, m, 0, PAGES); /* and again */
    expect_in_memfd(m, PAGES);
    detach(&w, m);
    world_close(&w);
}

Test(cache_memfd, a_page_that_is_in_use_stays_where_it_is_until_it_is_not)
{
    static struct world w;
    world_open(&w);
    struct address_space *m = &w.m[0];
    write_pages(m, 0, 2);
    attach(&w, m, 0, 2);
    struct page *page = find_get_page(m, 0), *locked = find_lock_page(m, 1);
    const void *at = page->data;
    detach(&w, m);
    cr_expect_eq(memfd_shrink(100), 0);
    cr_expect_eq(page->data, at);
    put_page(w.cache, page);
    cr_expect_eq(memfd_shrink(100), 0);
    page_unlock_put(m, locked);
    expect_pages(m, 2);
    cr_expect_eq(memfd_shrink(100), 1);
    expect_pages(m, 2);
    world_close(&w);
}

/* Whoever takes it out of the memfd may be kept there by a client for as long as that likes. */
Test(cache_memfd, a_page_that_is_being_taken_out_is_not_waited_for, .timeout = 10)
{
    static struct world w;
    world_open(&w);
    struct address_space *m = &w.m[0];
    write_pages(m, 0, 3);
    attach(&w, m, 0, 3);
    struct page *page = find_lock_page(m, 1);
    cr_assert(page_ref_freeze(page, 2));
    detach(&w, m);
    cr_expect_eq(memfd_shrink(100), 0);
    page_ref_unfreeze(page, 2);
    page_unlock_put(m, page);
    cr_expect_eq(memfd_shrink(100), 1);
    expect_pages(m, 3);
    world_close(&w);
}

/* As when a client that had many ends. */
Test(cache_memfd, of_many_that_are_idle_at_once_few_are_kept, .timeout = 20)
{
    static struct world w;
    static struct memfd_segment *s[FILES];
    struct rlimit few = { .rlim_cur = 256, .rlim_max = 256 }; /* 16 files */
    world_open(&w);
    unsigned before = nr_descriptors();
    cr_assert_eq(setrlimit(RLIMIT_NOFILE, &few), 0);
    for (unsigned i = 0; i < FILES; i++) {
        write_pages(&w.m[i], 0, 1);
        attach(&w, &w.m[i], 0, 1);
        s[i] = w.segment;
    }
    for (unsigned i = 0; i < FILES; i++) {
        w.segment = s[i];
        detach(&w, &w.m[i]);
    }
    cr_expect(descriptors_fall_to(before + 2 * 16 + 4), "%u of %u", nr_descriptors(), before);
    world_close(&w);
}

Test(cache_memfd, what_is_attached_twice_stays_for_the_second)
{
    static struct world w;
    world_open(&w);
    struct address_space *m = &w.m[0];
    struct memfd_segment *small, *wide;
    write_pages(m, 0, PAGES);
    cr_assert_eq(mapping_use_memfd(m), 0);
    cr_assert_eq(memfd_reserve(m, 0, 16 * 16384, &w.account, &wide), 0);
    cr_assert_eq(memfd_reserve(m, 0, PAGES, &w.account, &small), 0);
    cr_assert_neq(small, wide, "that would keep what is much too long");
    cr_expect_eq(w.account.segments, 2);
    memfd_release(wide, &w.account);
    cr_expect_eq(memfd_shrink(100), 1);
    expect_in_memfd(m, PAGES);
    expect_pages(m, PAGES);
    cr_expect_eq(mapping_check(m), 0);
    cr_expect_eq(w.account.segments, 1);
    memfd_release(small, &w.account);
    mapping_unuse_memfd(m);
    world_close(&w);
}

Test(cache_memfd, address_space_is_used_for_what_is_attached)
{
    enum { NR = 16 };
    static struct world w;
    struct memfd_segment *had[NR];
    world_open(&w);
    uint64_t before = address_space();
    for (unsigned i = 0; i < NR; i++) {
        i_size_write(&w.m[i], MAX_FILE_SIZE);
        attach(&w, &w.m[i], LAST_PAGE, 1);
        had[i] = w.segment;
        cr_assert_eq(filemap_write(&w.m[i], MAX_FILE_SIZE - 1, "x", 1), 1);
    }
    cr_expect_lt(address_space() - before, 10 * TIB);
    for (unsigned i = 0; i < NR; i++) {
        memfd_release(had[i], &w.account);
        mapping_unuse_memfd(&w.m[i]);
    }
    cr_expect_eq(memfd_shrink(NR), NR);
    cr_expect_lt(address_space() - before, TIB);
    world_close(&w);
}

Test(cache_memfd, who_wants_too_much_is_told_before_anything_is_stored_and_others_go_on)
{
    static struct world w;
    static struct memfd_segment *had[FILES];
    world_open(&w);
    struct memfd_account other = { 0 };
    struct memfd_segment *segment;
    unsigned n = 0;
    int err = 0;
    for (; err == 0 && n < FILES - 1; n += err == 0) {
        i_size_write(&w.m[n], MAX_FILE_SIZE);
        cr_assert_eq(mapping_use_memfd(&w.m[n]), 0);
        err = memfd_reserve(&w.m[n], LAST_PAGE, 1, &w.account, &had[n]);
    }
    cr_expect_eq(err, -ENOMEM);
    cr_expect_geq(n, 16);
    write_pages(&w.m[FILES - 1], 0, 1);
    cr_assert_eq(mapping_use_memfd(&w.m[FILES - 1]), 0);
    cr_assert_eq(memfd_reserve(&w.m[FILES - 1], 0, 1, &other, &segment), 0);
    memfd_release(segment, &other);
    for (unsigned i = 0; i < n; i++)
        memfd_release(had[i], &w.account);
    /* The whole of one file can be had, beside what is idle. */
    cr_expect_eq(memfd_reserve(&w.m[0], 0, UINT32_MAX, &w.account, &segment), 0);
    memfd_release(segment, &w.account);
    cr_expect_eq(w.account.bytes, 0);
    world_close(&w);
}

Test(cache_memfd, descriptors_of_what_is_idle_are_given_back_when_there_are_no_others)
{
    static struct world w;
    world_open(&w);
    struct rlimit limit;
    attach(&w, &w.m[0], 0, 1); /* threads, and what else is there for good */
    detach(&w, &w.m[0]);
    cr_assert_eq(getrlimit(RLIMIT_NOFILE, &limit), 0);
    limit.rlim_cur = nr_descriptors() + 20;
    cr_assert_eq(setrlimit(RLIMIT_NOFILE, &limit), 0);
    for (unsigned i = 1; i < FILES; i++) {
        attach(&w, &w.m[i], 0, 1);
        detach(&w, &w.m[i]);
    }
    world_close(&w);
}

Test(cache_memfd, what_is_read_of_a_device_goes_where_its_page_lies)
{
    static struct world w;
    world_open(&w);
    struct address_space *m = &w.m[0];
    write_pages(m, 0, PAGES);
    cr_assert_eq(filemap_fdatawrite(m, WB_SYNC_ALL), 0);
    attach(&w, m, 0, PAGES);
    page_cache_drop(w.cache);
    expect_pages(m, PAGES / 2);
    expect_in_memfd(m, PAGES / 2);
    detach(&w, m);
    cr_expect_eq(memfd_shrink(100), 1);
    expect_pages(m, PAGES);
    write_pages(m, 3, 5);
    cr_assert_eq(filemap_fdatawrite(m, WB_SYNC_ALL), 0);
    page_cache_drop(w.cache);
    expect_pages(m, PAGES);
    world_close(&w);
}
