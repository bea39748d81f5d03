/* Reclaim: what each policy must keep, and what the mechanism must never do. */
#include <criterion/criterion.h>
#include <errno.h>
#include <string.h>

#include "cache/memory.h"
#include "cache/reclaim.h"

#define PAGES 512u /* of the cache */

static const char *const all_policies[] = { "lru2q", "s3fifo" };

struct world {
    struct page_cache *cache;
    struct device *dev;
    struct address_space m;
    const char *policy;
};

static void world_open(struct world *w, const char *policy)
{
    struct cache_options o = { .cache_bytes = PAGES << PAGE_SHIFT,
                               .dirty_ratio = 90,
                               .reclaim = policy };
    w->policy = policy;
    w->dev = dev_memory_create();
    cr_assert_eq(page_cache_create(&w->cache, &o), 0);
    mapping_init(&w->m, w->cache, w->dev, 1, NULL, (uint64_t)1 << 40);
}

static void world_close(struct world *w)
{
    cr_expect_eq(mapping_check(&w->m), 0, "%s", w->policy);
    mapping_destroy(&w->m);
    page_cache_destroy(w->cache);
    device_destroy(w->dev);
}

/* Run a test once for each policy. */
static void for_each_policy(void (*test)(struct world *w))
{
    for (size_t i = 0; i < sizeof all_policies / sizeof all_policies[0]; i++) {
        struct world w;
        world_open(&w, all_policies[i]);
        test(&w);
        world_close(&w);
    }
}

static struct cache_stats stats(struct world *w)
{
    struct cache_stats s;
    page_cache_stats(w->cache, &s);
    return s;
}

static void use(struct world *w, struct address_space *m, uint32_t index)
{
    struct page *page;
    cr_assert_eq(filemap_get_page(m, NULL, index, 1, &page), 0);
    put_page(w->cache, page);
}

static void use_range(struct world *w, uint32_t first, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++)
        use(w, &w->m, first + i);
}

static bool is_active(struct world *w, uint32_t index)
{
    struct page *page = find_get_page(&w->m, index);
    cr_assert_not_null(page);
    bool active = page_test(page, PG_active);
    put_page(w->cache, page);
    return active;
}

static uint32_t cached(struct world *w, uint32_t first, uint32_t count)
{
    uint32_t n = 0;
    for (uint32_t i = 0; i < count; i++) {
        struct page *page = find_get_page(&w->m, first + i);
        if (page == NULL)
            continue;
        put_page(w->cache, page);
        n++;
    }
    return n;
}

static void write_range(struct world *w, uint32_t first, uint32_t count)
{
    static char buf[PAGE_SIZE];
    for (uint32_t i = 0; i < count; i++) {
        memset(buf, (int)(first + i), sizeof buf);
        cr_assert_eq(filemap_write(&w->m, (uint64_t)(first + i) << PAGE_SHIFT, buf, sizeof buf),
                     (ssize_t)sizeof buf);
    }
}

/* ---- what a policy keeps --------------------------------------------------------------------- */

static void scan_beside_hot(struct world *w)
{
    for (unsigned i = 0; i < 4; i++)
        use_range(w, 0, PAGES / 4);
    use_range(w, 10000, 8 * PAGES);
    cr_expect_eq(cached(w, 0, PAGES / 4), PAGES / 4, "%s: %u are left", w->policy,
                 cached(w, 0, PAGES / 4));
}

Test(cache_reclaim, a_scan_does_not_evict_what_was_used_again)
{
    for_each_policy(scan_beside_hot);
}

/* What its user calls cold goes before what was used as often. */
static void cold_range(struct world *w)
{
    for (unsigned i = 0; i < 4; i++)
        use_range(w, 0, PAGES / 2);
    lru_deactivate_range(&w->m, 0, PAGES / 4 - 1);
    use_range(w, 10000, PAGES / 2 + PAGES / 8);
    cr_expect_leq(cached(w, 0, PAGES / 4), PAGES / 8, "%s: %u are left", w->policy,
                  cached(w, 0, PAGES / 4));
    cr_expect_eq(cached(w, PAGES / 4, PAGES / 4), PAGES / 4, "%s: %u are left", w->policy,
                 cached(w, PAGES / 4, PAGES / 4));
}

Test(cache_reclaim, what_is_called_cold_goes_first)
{
    for_each_policy(cold_range);
}

/* Some hot pages, so that there is a working set to compare with; then fill the cache. */
static void evict_page_5000(struct world *w)
{
    for (unsigned i = 0; i < 4; i++)
        use_range(w, 0, PAGES / 4);
    use_range(w, 1000, 2 * PAGES);
    use(w, &w->m, 5000);
    use_range(w, 20000, PAGES);
    cr_assert_eq(cached(w, 5000, 1), 0);
}

static void refault_soon(struct world *w)
{
    evict_page_5000(w);
    struct cache_stats before = stats(w);
    uint32_t last = 20000 + PAGES - 1; /* the page that was evicted last */
    while (cached(w, last, 1) == 1)
        last--;
    use(w, &w->m, last);
    cr_expect(is_active(w, last), "%s", w->policy);
    cr_expect_eq(stats(w).activations, before.activations + 1);
    cr_expect_eq(stats(w).refaults, before.refaults + 1);
}

Test(cache_reclaim, a_page_that_comes_back_soon_is_activated)
{
    for_each_policy(refault_soon);
}

static void refault_late(struct world *w)
{
    evict_page_5000(w);
    use_range(w, 40000, 3 * PAGES);
    use(w, &w->m, 5000);
    cr_expect_not(is_active(w, 5000), "%s", w->policy);
    cr_expect_eq(stats(w).activations, 0);
}

Test(cache_reclaim, a_page_that_comes_back_late_begins_anew)
{
    for_each_policy(refault_late);
}

static void small_reads(struct world *w)
{
    static char buf[64];
    struct file_ra_state ra;
    file_ra_state_init(&ra, NULL, 0);
    for (uint64_t at = 0; at < 4 * PAGE_SIZE; at += sizeof buf)
        cr_assert_eq(filemap_read(&w->m, &ra, at, buf, sizeof buf), (ssize_t)sizeof buf);
    for (uint32_t i = 0; i < 4; i++) {
        struct page *page = find_get_page(&w->m, i);
        cr_expect_eq(page_uses(page), 0, "%u", page_uses(page));
        put_page(w->cache, page);
    }
}

Test(cache_reclaim, reading_on_within_a_page_is_one_use_of_it)
{
    for_each_policy(small_reads);
}

/* ---- shadows --------------------------------------------------------------------------------- */

static void bounded(struct world *w)
{
    for (uint32_t i = 0; i < 20 * PAGES; i++) {
        use(w, &w->m, i);
        cr_assert_leq(stats(w).shadows, PAGES, "%s", w->policy);
    }
    cr_expect_gt(stats(w).shadows, PAGES / 2, "%s", w->policy);
    cr_expect_eq(stats(w).shadows, w->m.nrshadows);
    cr_expect_leq(atomic_load(&w->m.nrpages), PAGES);
    cr_assert_eq(page_cache_resize(w->cache, (PAGES / 4) << PAGE_SHIFT), 0);
    use_range(w, 90000, 2 * PAGES);
    cr_expect_leq(stats(w).shadows, PAGES / 4, "%s", w->policy);
}

Test(cache_reclaim, there_are_no_more_shadows_than_the_cache_has_pages)
{
    for_each_policy(bounded);
}

static void truncated(struct world *w)
{
    use_range(w, 0, 3 * PAGES);
    uint64_t before = stats(w).shadows;
    truncate_inode_pages_range(&w->m, 1000, 1099);
    cr_expect_lt(stats(w).shadows, before, "%s", w->policy);
    cr_expect_eq(mapping_check(&w->m), 0);
    for (uint64_t i = 1000; i < 1100; i++)
        cr_expect_null(radix_tree_lookup(&w->m.pages, i));
    truncate_inode_pages_range(&w->m, 0, UINT32_MAX);
    cr_expect_eq(stats(w).shadows, 0);
    cr_expect_eq(stats(w).tree_bytes, 0, "nodes are left");
}

Test(cache_reclaim, truncation_takes_the_shadows_with_it)
{
    for_each_policy(truncated);
}

static void other_file(struct world *w)
{
    struct address_space other;
    for (unsigned round = 0; round < 20; round++) {
        mapping_init(&other, w->cache, w->dev, 2, NULL, (uint64_t)1 << 40);
        for (uint32_t i = 0; i < PAGES; i++) {
            use(w, &other, i);
            use(w, &w->m, i + round * PAGES / 2);
        }
        cr_expect_gt(other.nrshadows, 0, "%s", w->policy);
        mapping_destroy(&other);
        cr_expect_eq(stats(w).shadows, w->m.nrshadows, "%s", w->policy);
    }
}

Test(cache_reclaim, a_file_that_goes_takes_its_shadows_with_it)
{
    for_each_policy(other_file);
}

static void one_is_busy(struct world *w)
{
    struct address_space other;
    mapping_init(&other, w->cache, w->dev, 2, NULL, (uint64_t)1 << 40);
    for (uint32_t i = 0; i < PAGES; i++) {
        use(w, &w->m, i);
        use(w, &other, i);
    }
    uint32_t left = w->m.nrshadows;
    cr_assert(left > 0 && other.nrshadows > 0, "%s", w->policy);
    pthread_mutex_lock(&w->m.tree_lock);
    workingset_forget_all(w->cache);
    pthread_mutex_unlock(&w->m.tree_lock);
    cr_expect_eq(other.nrshadows, 0, "%s", w->policy);
    cr_expect_eq(w->m.nrshadows, left, "%s", w->policy);
    workingset_forget_all(w->cache);
    cr_expect_eq(stats(w).shadows, 0, "%s", w->policy);
    mapping_destroy(&other);
}

Test(cache_reclaim, shadows_are_forgotten_but_those_of_a_file_that_is_busy)
{
    for_each_policy(one_is_busy);
}

/* ---- the mechanism --------------------------------------------------------------------------- */

/* Nobody writes anything back here, so every clean page must be found, wherever the dirty ones are. */
static void dirty_stay(struct world *w)
{
    static char buf[PAGE_SIZE];
    write_range(w, 0, PAGES / 3);
    use_range(w, 1000, 4 * PAGES);
    write_range(w, 400, PAGES / 3);
    use_range(w, 5000, 4 * PAGES);
    cr_expect_eq(stats(w).passes, 0, "%s waited for dirty pages though there were clean ones",
                 w->policy);
    cr_expect_eq(stats(w).dirty, 2 * (PAGES / 3), "%s", w->policy);
    cr_expect_eq(cached(w, 0, PAGES / 3) + cached(w, 400, PAGES / 3), 2 * (PAGES / 3));
    for (uint32_t i = 0; i < PAGES / 3; i++) {
        filemap_read(&w->m, NULL, (uint64_t)(400 + i) << PAGE_SHIFT, buf, sizeof buf);
        cr_assert_eq((unsigned char)buf[7], (unsigned char)(400 + i));
    }
}

Test(cache_reclaim, dirty_pages_are_never_dropped)
{
    for_each_policy(dirty_stay);
}

/* All of the inactive list is dirty, and all that could go is on the active one. */
static void dirty_in_front(struct world *w)
{
    for (unsigned i = 0; i < 4; i++)
        use_range(w, 0, PAGES / 4);
    use_range(w, 1000, 2 * PAGES);
    cr_assert_eq(stats(w).active, PAGES / 4, "%s", w->policy);
    write_range(w, 5000, PAGES - PAGES / 4);
    use_range(w, 9000, 20);
    cr_expect_eq(stats(w).passes, 0, "%s waited for dirty pages", w->policy);
    cr_expect_eq(stats(w).dirty, PAGES - PAGES / 4);
}

Test(cache_reclaim, clean_pages_are_found_behind_dirty_ones)
{
    for_each_policy(dirty_in_front);
}

static void within_limit(struct world *w)
{
    unsigned seed = 1;
    for (unsigned i = 0; i < 20000; i++) {
        uint32_t index = (uint32_t)rand_r(&seed) % (4 * PAGES);
        if (i % 5 == 0)
            write_range(w, index, 1);
        else
            use(w, &w->m, index);
        struct cache_stats s = stats(w);
        cr_assert_leq(s.pages, PAGES);
        cr_assert_leq(s.struct_bytes, PAGES * 64, "%llu", (unsigned long long)s.struct_bytes);
        cr_assert_leq(s.arena_bytes, PAGES << PAGE_SHIFT);
        cr_assert_eq(s.pages, s.active + s.inactive);
    }
    cr_log_info("%s: %zu bytes of struct page and %zu of shadow beside a page\n", w->policy,
                sizeof(struct page), sizeof(struct shadow));
}

Test(cache_reclaim, memory_stays_within_the_limit)
{
    for_each_policy(within_limit);
}

static void all_dropped(struct world *w)
{
    for (unsigned i = 0; i < 6; i++)
        use_range(w, 0, PAGES - 10);
    page_cache_drop(w->cache);
    cr_expect_eq(stats(w).pages, 0, "%s", w->policy);
    cr_expect_eq(stats(w).shadows, 0, "%s", w->policy);
}

Test(cache_reclaim, a_drop_takes_pages_however_much_they_were_used)
{
    for_each_policy(all_dropped);
}

static void taken_over(struct world *w)
{
    for (unsigned i = 0; i < 4; i++)
        use_range(w, 0, PAGES / 4);
    use_range(w, 1000, 2 * PAGES);
    cr_expect_eq(page_cache_set_reclaim(w->cache, "no such thing"), -EINVAL);
    for (unsigned i = 0; i < 6; i++) {
        cr_assert_eq(page_cache_set_reclaim(w->cache, all_policies[i % 2]), 0);
        cr_expect_eq(stats(w).shadows, 0);
        use_range(w, 5000 + i * PAGES, PAGES);
        cr_expect_eq(mapping_check(&w->m), 0);
    }
    cr_expect_eq(cached(w, 0, PAGES / 4), PAGES / 4, "what was hot stays so");
}

Test(cache_reclaim, one_policy_takes_over_from_another)
{
    for_each_policy(taken_over);
}

Test(cache_reclaim, an_unknown_policy_is_refused)
{
    struct cache_options o = { .cache_bytes = PAGES << PAGE_SHIFT, .reclaim = "lru3q" };
    struct page_cache *cache;
    cr_expect_eq(page_cache_create(&cache, &o), -EINVAL);
}

Test(cache_reclaim, more_pages_around_a_fault_than_are_ever_mapped_together_are_refused)
{
    struct cache_options loads = { .cache_bytes = PAGES << PAGE_SHIFT,
                                   .fault_around = FAULT_AROUND_MOST + 1 };
    struct cache_options stores = { .cache_bytes = PAGES << PAGE_SHIFT,
                                    .store_around = STORE_AROUND_MOST + 1 };
    struct page_cache *cache;
    cr_expect_eq(page_cache_create(&cache, &loads), -EINVAL);
    cr_expect_eq(page_cache_create(&cache, &stores), -EINVAL);
}

/* ---- dropping all ---------------------------------------------------------------------------- */

/* Every clean page goes, however much it was used and whatever stands before it in a list; no dirty one. */
static void drop_beside_dirty(struct world *w)
{
    write_range(w, 20000, PAGES * 5 / 8);
    for (unsigned i = 0; i < 5; i++) {
        use_range(w, 20000, PAGES * 5 / 8);
        use_range(w, 0, PAGES / 8);
    }
    cr_expect_eq(page_cache_drop(w->cache), PAGES / 8, "%s", w->policy);
    cr_expect_eq(cached(w, 0, PAGES / 8), 0, "%s", w->policy);
    cr_expect_eq(cached(w, 20000, PAGES * 5 / 8), PAGES * 5 / 8, "%s", w->policy);
}

Test(cache_reclaim, drop_takes_all_that_is_clean)
{
    for_each_policy(drop_beside_dirty);
}
