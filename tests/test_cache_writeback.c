/* Writeback beside errors, and slowing down who writes. */
#include <criterion/criterion.h>
#include <errno.h>
#include <string.h>

#include "cache/errseq.h"
#include "cache/page_cache.h"
#include "cache/vma_soft.h"
#include "store/dev_fault.h"

static struct page_cache *cache;
static struct device *memory, *faulty;
static struct address_space m;
static unsigned shutdowns;
static int64_t promised;
static bool full, full_by_estimate; /* make_room ends the second */
static unsigned rooms_made;

static int reserve(struct address_space *map, uint32_t pages, uint32_t fresh)
{
    (void)map;
    (void)fresh;
    if (full || full_by_estimate)
        return -ENOSPC;
    promised += pages;
    return 0;
}

static void unreserve(struct address_space *map, uint32_t pages, uint32_t fresh)
{
    (void)map;
    (void)fresh;
    promised -= pages;
}

static void make_room(struct address_space *map)
{
    (void)map;
    rooms_made++;
    full_by_estimate = false;
}

static void shut_down(struct address_space *map)
{
    (void)map;
    shutdowns++;
}

static const struct address_space_operations ops = {
    .reserve = reserve, .unreserve = unreserve, .make_room = make_room, .shutdown = shut_down
};

static void start(unsigned pages, enum writeback_error on_error, const struct clock *clock)
{
    struct cache_options o = { .cache_bytes = (uint64_t)pages << PAGE_SHIFT,
                               .on_error = on_error,
                               .clock = clock,
                               .dirty_ratio = 40 };
    shutdowns = rooms_made = 0;
    full = full_by_estimate = false;
    promised = 0;
    memory = dev_memory_create();
    faulty = dev_fault_create(memory, 1);
    cr_assert_eq(page_cache_create(&cache, &o), 0);
    mapping_init(&m, cache, faulty, 1, &ops, 0);
}

static void finish(void)
{
    mapping_destroy(&m);
    page_cache_destroy(cache);
    device_destroy(faulty);
    device_destroy(memory);
}

static void fail_writes(uint32_t index)
{
    struct fault_rule r = { .kind = FAULT_EIO, .writes = true, .first = index, .last = index };
    cr_assert_eq(dev_fault_add(faulty, &r), 0);
}

static void fill(unsigned pages)
{
    static char buf[PAGE_SIZE];
    for (unsigned i = 0; i < pages; i++) {
        memset(buf, 'a' + (int)i, sizeof buf);
        cr_assert_eq(filemap_write(&m, (uint64_t)i << PAGE_SHIFT, buf, sizeof buf), PAGE_SIZE);
    }
}

static char first_byte(uint32_t index)
{
    char c = 0;
    cr_assert_eq(filemap_read(&m, NULL, (uint64_t)index << PAGE_SHIFT, &c, 1), 1);
    return c;
}

Test(writeback, a_store_through_a_mapping_fails_for_want_of_room_only_where_there_is_none)
{
    struct vm_area *vma;
    start(64, WB_ERROR_RETRY, NULL);
    fill(2);
    cr_assert_eq(filemap_fdatawrite(&m, WB_SYNC_ALL), 0);
    cr_assert_eq(vma_soft_create(&m, 0, 2, NULL, &vma), 0);
    int64_t before = promised;
    full_by_estimate = true;
    cr_assert_eq(vma_store(vma, 0, "x", 1), 0);
    cr_assert_eq(rooms_made, 1);
    full = true;
    cr_assert_eq(vma_store(vma, PAGE_SIZE, "y", 1), -ENOSPC);
    cr_assert_eq(rooms_made, 2);
    cr_assert_eq(promised, before + 1);
    full = false;
    cr_assert_eq(vma_store(vma, PAGE_SIZE, "y", 1), 0);
    cr_assert_eq(rooms_made, 2);
    vma_soft_destroy(vma);
    cr_assert_eq(first_byte(0), 'x');
    cr_assert_eq(first_byte(1), 'y');
    finish();
}

Test(writeback, a_failed_page_stays_dirty_and_is_written_when_the_store_heals)
{
    start(64, WB_ERROR_RETRY, NULL);
    fill(4);
    fail_writes(2);
    cr_assert_eq(filemap_fdatawrite(&m, WB_SYNC_ALL), -EIO);
    cr_assert_eq(atomic_load(&m.nrdirty), 1);
    page_cache_drop(cache);
    cr_assert_eq(first_byte(2), 'c', "a dirty page is never dropped");
    dev_fault_clear(faulty);
    cr_assert_eq(filemap_fdatawrite(&m, WB_SYNC_ALL), 0);
    page_cache_drop(cache);
    cr_assert_eq(first_byte(2), 'c');
    cr_assert_eq(mapping_check(&m), 0);
    finish();
}

Test(writeback, on_error_clean_gives_the_page_and_its_promise_up)
{
    start(64, WB_ERROR_CLEAN, NULL);
    fill(4);
    cr_assert_eq(promised, 4);
    fail_writes(2);
    cr_assert_eq(filemap_fdatawrite(&m, WB_SYNC_ALL), -EIO);
    cr_assert_eq(atomic_load(&m.nrdirty), 0);
    cr_assert_eq(promised, 3, "the others' promises are the store's to use");
    page_cache_drop(cache);
    cr_assert_eq(first_byte(2), 0, "what was in it is lost, as asked");
    finish();
}

Test(writeback, on_error_ro_tells_the_owner_at_once_and_retry_after_many_tries)
{
    start(64, WB_ERROR_RO, NULL);
    fill(1);
    fail_writes(0);
    wakeup_flusher(cache);
    flusher_step(cache);
    cr_assert_eq(shutdowns, 1);
    dev_fault_clear(faulty);
    cr_assert_eq(filemap_fdatawrite(&m, WB_SYNC_ALL), 0, "and nothing was dropped");
    fill(1);
    fail_writes(0);
    cr_assert_eq(filemap_fdatawrite(&m, WB_SYNC_ALL), -EIO);
    cr_assert_eq(shutdowns, 2, "by whomever it is written");
    finish();
}

static uint64_t now;

static uint64_t test_now(void *arg)
{
    (void)arg;
    return now;
}

Test(writeback, retrying_backs_off_and_ends_in_telling_the_owner)
{
    struct clock clock = { .now_ns = test_now };
    now = 1;
    start(64, WB_ERROR_RETRY, &clock);
    fill(1);
    fail_writes(0);
    unsigned steps = 0;
    for (; shutdowns == 0 && steps < 2000; steps++) {
        wakeup_flusher(cache);
        flusher_step(cache);
        now += 100 * 1000000u;
    }
    cr_assert(steps > 200 && steps < 2000, "%u steps of 100 ms", steps);
    finish();
}

Test(writeback, the_flusher_alone_ends_in_telling_the_owner_within_minutes)
{
    struct clock clock = { .now_ns = test_now };
    now = 1;
    start(64, WB_ERROR_RETRY, &clock);
    fill(1);
    fail_writes(0);
    while (m.wb_failures == 0)
        now += (uint64_t)flusher_step(cache) * 1000000u;
    uint64_t first = now;
    while (shutdowns == 0 && now < first + 600000000000u)
        now += (uint64_t)flusher_step(cache) * 1000000u;
    uint64_t seconds = (now - first) / 1000000000u;
    cr_assert(seconds > 30 && seconds < 120, "%u s", (unsigned)seconds);
    finish();
}

Test(writeback, failures_are_counted_with_back_off_whoever_writes)
{
    struct clock clock = { .now_ns = test_now };
    now = 1;
    start(64, WB_ERROR_RETRY, &clock);
    fill(1);
    fail_writes(0);
    for (unsigned i = 0; i < 3 * WB_TRIES; i++) {
        cr_assert_eq(page_cache_sync(cache), -EIO);
        cr_assert_eq(filemap_fdatawrite(&m, WB_SYNC_ALL), -EIO);
        now += 1000000u;
    }
    cr_assert_eq(shutdowns, 0, "%u failures within %u ms", m.wb_failures, 3 * WB_TRIES);
    for (unsigned i = 0; shutdowns == 0 && i < WB_TRIES; i++) {
        now += 10000000000u;
        cr_assert_eq(filemap_fdatawrite(&m, WB_SYNC_ALL), -EIO);
    }
    cr_assert_eq(shutdowns, 1);
    finish();
}

Test(writeback, a_pass_without_a_failure_ends_the_row_whoever_writes)
{
    struct clock clock = { .now_ns = test_now };
    now = 1;
    start(64, WB_ERROR_RETRY, &clock);
    for (unsigned i = 0; i < 2; i++) {
        fill(1);
        fail_writes(0);
        for (unsigned n = 0; n < WB_TRIES - 1; n++) {
            now += 60000000000u;
            wakeup_flusher(cache);
            flusher_step(cache);
        }
        cr_assert_eq(m.wb_failures, WB_TRIES - 1);
        dev_fault_clear(faulty);
        cr_assert_eq(filemap_fdatawrite(&m, WB_SYNC_ALL), 0);
    }
    cr_assert_eq(shutdowns, 0);
    finish();
}

Test(writeback, want_of_memory_is_no_failure_of_the_store)
{
    const enum writeback_error all[] = { WB_ERROR_RETRY, WB_ERROR_CLEAN, WB_ERROR_RO };
    for (unsigned i = 0; i < 3; i++) {
        start(64, all[i], NULL);
        fill(3);
        struct fault_rule r = { .kind = FAULT_ENOMEM, .writes = true, .last = UINT32_MAX };
        cr_assert_geq(dev_fault_add(faulty, &r), 0);
        for (unsigned n = 0; n < 3 * WB_TRIES; n++)
            cr_assert_eq(page_cache_sync(cache), -ENOMEM);
        cr_assert_eq(shutdowns, 0);
        cr_assert_eq(atomic_load(&m.nrdirty), 3);
        dev_fault_clear(faulty);
        cr_assert_eq(page_cache_sync(cache), 0);
        page_cache_drop(cache);
        cr_assert_eq(first_byte(2), 'c');
        finish();
    }
}

Test(writeback, want_of_room_is_not_given_up)
{
    struct clock clock = { .now_ns = test_now };
    struct fault_rule r = { .kind = FAULT_ENOSPC, .writes = true, .last = UINT32_MAX };
    now = 1;
    start(64, WB_ERROR_RETRY, &clock);
    fill(3);
    cr_assert_geq(dev_fault_add(faulty, &r), 0);
    for (unsigned n = 0; n < 3 * WB_TRIES; n++) {
        now += 60000000000u;
        cr_assert_eq(page_cache_sync(cache), -ENOSPC);
    }
    cr_assert_eq(shutdowns, 0);
    cr_assert_eq(m.wb_failures, WB_TRIES - 1);
    cr_assert_eq(atomic_load(&m.nrdirty), 3);
    dev_fault_clear(faulty);
    fail_writes(0);
    now += 60000000000u;
    cr_assert_eq(page_cache_sync(cache), -EIO);
    cr_assert_eq(shutdowns, 1, "another error in the same row");
    dev_fault_clear(faulty);
    cr_assert_eq(page_cache_sync(cache), 0);
    finish();
}

Test(writeback, want_of_memory_hides_no_error_in_a_pass_nor_in_a_sync)
{
    static const char buf[PAGE_SIZE];
    struct fault_rule r = { .kind = FAULT_ENOMEM, .writes = true };
    struct address_space second;
    start(64, WB_ERROR_RETRY, NULL);
    mapping_init(&second, cache, faulty, 2, &ops, 0);
    cr_assert_eq(filemap_write(&second, 0, buf, sizeof buf), PAGE_SIZE);
    fill(2);
    cr_assert_eq(dev_fault_add(faulty, &r), 0); /* the first page, of both */
    fail_writes(1);
    cr_assert_eq(filemap_fdatawrite(&m, WB_SYNC_ALL), -EIO);
    cr_assert_eq(page_cache_nr_short(cache), 1);
    for (unsigned i = 0; i < 2; i++) /* in both orders */
        cr_assert_eq(page_cache_sync(cache), -EIO);
    cr_assert_eq(page_cache_nr_short(cache), 5);
    dev_fault_clear(faulty);
    cr_assert_eq(page_cache_sync(cache), 0);
    mapping_destroy(&second);
    finish();
}

/* ---- an owner that cannot follow --------------------------------------------------------------- */

static unsigned ends, ends_to_fail;
static uint64_t recorded;

static int end_pass(struct address_space *map, struct writeback_pass *pass, int error)
{
    (void)map;
    ends++;
    if (error != 0)
        return error == -EAGAIN ? 0 : error;
    if (ends_to_fail > 0) {
        ends_to_fail--;
        return -ENOMEM;
    }
    recorded = pass->size;
    return 0;
}

static void start_with_owner(enum writeback_error on_error, const struct clock *clock)
{
    static struct address_space_operations with_end;
    start(64, on_error, clock);
    with_end = ops;
    with_end.writeback_end = end_pass;
    m.a_ops = &with_end;
    ends = ends_to_fail = 0;
    recorded = 0;
    now = 1;
}

/* With nothing to do but what is overdue. */
static void flush_for(unsigned seconds)
{
    for (uint64_t until = now + (uint64_t)seconds * 1000000000u; now < until;)
        now += (uint64_t)flusher_step(cache) * 1000000u;
}

Test(writeback, an_owner_that_could_not_follow_is_asked_again_with_nothing_dirty)
{
    struct clock clock = { .now_ns = test_now };
    start_with_owner(WB_ERROR_RETRY, &clock);
    fill(3);
    ends_to_fail = 2;
    cr_assert_eq(filemap_fdatawrite(&m, WB_SYNC_ALL), -ENOMEM);
    cr_assert_eq(atomic_load(&m.nrdirty), 0);
    flush_for(30);
    cr_assert_eq(ends, 3);
    cr_assert_eq(recorded, 3 * PAGE_SIZE);
    flush_for(300);
    cr_assert_eq(ends, 3, "it has nothing to follow any more");
    finish();
}

Test(writeback, the_size_follows_where_a_page_was_given_up)
{
    struct clock clock = { .now_ns = test_now };
    start_with_owner(WB_ERROR_CLEAN, &clock);
    fill(3);
    fail_writes(1);
    cr_assert_eq(filemap_fdatawrite(&m, WB_SYNC_ALL), -EIO);
    cr_assert_eq(recorded, 0);
    flush_for(30);
    cr_assert_eq(recorded, 3 * PAGE_SIZE);
    finish();
}

Test(writeback, an_owner_that_never_follows_keeps_nobody, .timeout = 60)
{
    struct clock clock = { .now_ns = test_now };
    start_with_owner(WB_ERROR_RETRY, &clock);
    fill(3);
    ends_to_fail = UINT32_MAX;
    flush_for(600);
    cr_assert(ends > 20 && ends < 200, "%u passes in ten minutes", ends);
    cr_assert_eq(page_cache_sync(cache), -ENOMEM);
    finish();
}

/* ---- a page that cannot be write-protected ----------------------------------------------------- */

static struct vma_ops protect_ops;
static const struct vma_ops *soft;
static int protect_error;

static int write_protect(struct vm_area *vma, uint32_t first, uint32_t last)
{
    return protect_error != 0 ? protect_error : soft->write_protect(vma, first, last);
}

static struct vm_area *map(uint32_t pages)
{
    struct vm_area *vma;
    cr_assert_eq(vma_soft_create(&m, 0, pages, NULL, &vma), 0);
    soft = vma->ops;
    protect_ops = *soft;
    protect_ops.write_protect = write_protect;
    vma->ops = &protect_ops;
    return vma;
}

Test(writeback, what_cannot_be_protected_is_left_out_and_the_reason_is_told)
{
    const int all[] = { -ENOMEM, -EIO };
    for (unsigned i = 0; i < 2; i++) {
        start(64, WB_ERROR_RO, NULL);
        fill(2);
        struct vm_area *vma = map(2);
        _Atomic uint32_t since = errseq_sample(&m.wb_err);
        cr_assert_eq(vma_store(vma, PAGE_SIZE, "x", 1), 0);
        protect_error = all[i];
        cr_assert_eq(filemap_fdatawrite(&m, WB_SYNC_ALL), all[i]);
        cr_assert_eq(filemap_fdatawrite(&m, WB_SYNC_NONE), all[i]);
        cr_assert_eq(page_cache_sync(cache), all[i]);
        cr_assert_eq(page_cache_nr_short(cache), all[i] == -ENOMEM ? 3 : 0);
        cr_assert_eq(filemap_check_errors(&m, &since), all[i]);
        cr_assert_eq(atomic_load(&m.nrdirty), 1);
        cr_assert_eq(shutdowns, 0, "it is no failure of the store's");
        protect_error = 0;
        cr_assert_eq(filemap_fdatawrite(&m, WB_SYNC_ALL), 0);
        vma_soft_destroy(vma);
        page_cache_drop(cache);
        cr_assert_eq(first_byte(1), 'x');
        finish();
    }
}

Test(writeback, who_stores_does_not_wait_for_what_cannot_be_protected, .timeout = 60)
{
    start(64, WB_ERROR_RETRY, NULL);
    fill(40);
    cr_assert_eq(filemap_fdatawrite(&m, WB_SYNC_ALL), 0);
    struct vm_area *vma = map(40);
    protect_error = -ENOMEM;
    for (uint64_t i = 0; i < 40; i++)
        cr_assert_eq(vma_store(vma, i << PAGE_SHIFT, "x", 1), 0);
    protect_error = 0;
    vma_soft_destroy(vma);
    finish();
}

Test(writeback, an_error_is_seen_once_by_every_open_file)
{
    _Atomic uint32_t one, two, later, last;
    start(64, WB_ERROR_RETRY, NULL);
    fill(1);
    atomic_init(&one, errseq_sample(&m.wb_err));
    atomic_init(&two, errseq_sample(&m.wb_err));
    fail_writes(0);
    filemap_fdatawrite(&m, WB_SYNC_ALL);
    atomic_init(&later, errseq_sample(&m.wb_err));
    cr_assert_eq(filemap_check_errors(&m, &one), -EIO);
    cr_assert_eq(filemap_check_errors(&m, &one), 0);
    cr_assert_eq(filemap_check_errors(&m, &two), -EIO);
    cr_assert_eq(filemap_check_errors(&m, &later), -EIO, "opened before anybody was told");
    atomic_init(&last, errseq_sample(&m.wb_err));
    cr_assert_eq(filemap_check_errors(&m, &last), 0, "opened after that");
    finish();
}

Test(writeback, dirty_pages_stay_below_the_limit_whoever_writes)
{
    static char buf[PAGE_SIZE];
    start(100, WB_ERROR_RETRY, NULL);
    for (unsigned i = 0; i < 1000; i++) {
        cr_assert_eq(filemap_write(&m, (uint64_t)i << PAGE_SHIFT, buf, sizeof buf), PAGE_SIZE);
        balance_dirty_pages_ratelimited(cache, 1);
        cr_assert_leq(atomic_load(&cache->nr_dirty), 40);
    }
    finish();
}
