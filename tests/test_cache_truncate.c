/* The end of a file beside mappings: what is stored behind it does not get into the file when that
 * grows, by any way of growing, nor to the disk; shrinking beside stores; pages that nobody can be sure
 * to have unmapped; reading beside all this. */
#include <criterion/criterion.h>
#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "cache/page_cache.h"
#include "cache/vma_soft.h"

#define OBJECT 1u
#define PAGES  4u /* of the vm_area */

static struct page_cache *cache;
static struct device *memory;
static struct address_space m;
static struct vm_area *vma;
static const struct vma_ops *soft_ops;
static _Atomic unsigned protected; /* times that page 0 was write-protected */
static _Atomic bool
    busy; /* the client has its address space locked: write-protecting waits for it */
static _Atomic bool unsure; /* zapping and write-protecting are not certain, and do nothing */

static int maybe_protect(struct vm_area *v, uint32_t first, uint32_t last)
{
    protected += first == 0;
    while (busy)
        sched_yield();
    return unsure ? -EIO : soft_ops->write_protect(v, first, last);
}

static int maybe_zap(struct vm_area *v, uint32_t first, uint32_t last)
{
    return unsure ? -EIO : soft_ops->zap(v, first, last);
}

static int map(struct vm_area *v, uint32_t index, struct page **pages, unsigned n, unsigned flags)
{
    return soft_ops->map(v, index, pages, n, flags);
}

static const struct vma_ops unsure_ops = { .map = map,
                                           .write_protect = maybe_protect,
                                           .zap = maybe_zap };

static void start(void)
{
    struct cache_options o = { .cache_bytes = 64 * PAGE_SIZE };
    memory = dev_memory_create();
    cr_assert_eq(page_cache_create(&cache, &o), 0);
    mapping_init(&m, cache, memory, OBJECT, NULL, 0);
    cr_assert_eq(vma_soft_create(&m, 0, PAGES, NULL, &vma), 0);
    soft_ops = vma->ops;
    vma->ops = &unsure_ops;
    busy = unsure = false;
}

static void finish(void)
{
    vma_soft_destroy(vma);
    cr_expect_eq(mapping_check(&m), 0);
    mapping_destroy(&m);
    page_cache_destroy(cache);
    device_destroy(memory);
}

TestSuite(truncate, .init = start, .fini = finish, .timeout = 60);

static void write_at(uint64_t offset, char c, size_t n)
{
    char buf[PAGES * PAGE_SIZE];
    cr_assert_leq(n, sizeof buf);
    memset(buf, c, n);
    cr_assert_eq(filemap_write(&m, offset, buf, n), (ssize_t)n);
}

static void store(uint64_t offset, char c, size_t n)
{
    char buf[PAGE_SIZE];
    memset(buf, c, n);
    cr_assert_eq(vma_store(vma, offset, buf, n), 0);
}

/* The bytes [from, to) of the file are all c: read, loaded, and, once written back and dropped, as they
 * are on disk. */
static bool all(uint64_t from, uint64_t to, char c)
{
    static char buf[PAGES * PAGE_SIZE];
    for (int round = 0; round < 2; round++) {
        ssize_t n = filemap_read(&m, NULL, from, buf, to - from);
        cr_assert_eq(n, (ssize_t)(to - from));
        for (ssize_t i = 0; i < n; i++)
            if (buf[i] != c)
                return false;
        cr_assert_eq(vma_load(vma, from, buf, to - from), 0);
        for (ssize_t i = 0; i < n; i++)
            if (buf[i] != c)
                return false;
        if (unsure)
            break;
        cr_assert_eq(filemap_fdatawrite(&m, WB_SYNC_ALL), 0);
        page_cache_drop(cache);
    }
    return true;
}

static void grow_to(uint64_t size)
{
    struct page *eof;
    cr_assert_eq(lock_eof_page(&m, &eof), 0);
    atomic_store(&m.i_size, size);
    page_unlock_put(&m, eof);
}

static unsigned shrink_to(uint64_t size)
{
    struct page *cut;
    uint32_t first = (uint32_t)pages_for(size);
    cr_assert_eq(truncate_get_page(&m, size, &cut), 0);
    down_write(&m.invalidate_lock);
    unsigned stayed = truncate_setsize(&m, size, cut);
    dev_memory_discard(memory, OBJECT, first, UINT32_MAX);
    truncate_pages_end(&m, first, UINT32_MAX, stayed);
    page_unlock_put(&m, cut);
    up_write(&m.invalidate_lock);
    return stayed;
}

/* A file of 100 bytes, with stores behind its end. */
static void file_with_stores_behind(void)
{
    write_at(0, 'f', 100);
    store(100, 's', PAGE_SIZE - 100);
}

static void no_end(struct bio *bio)
{
    (void)bio;
}

static void read_block(uint32_t index, char *buf)
{
    struct bio *bio = bio_alloc(BIO_READ, OBJECT, 1);
    bio_add(bio, index, buf, NULL);
    bio->end_io = no_end;
    submit_bio(memory, bio);
    bio_free(bio);
}

/* ---- growing --------------------------------------------------------------------------------- */

Test(truncate, growing_shows_no_store_behind_the_end)
{
    file_with_stores_behind();
    grow_to(2 * PAGE_SIZE);
    cr_expect(all(0, 100, 'f'));
    cr_expect(all(100, 2 * PAGE_SIZE, 0));
}

Test(truncate, growing_inside_the_page_shows_none)
{
    file_with_stores_behind();
    grow_to(1000);
    store(1000, 's', 100);
    grow_to(PAGE_SIZE);
    cr_expect(all(0, 100, 'f'));
    cr_expect(all(100, PAGE_SIZE, 0));
}

Test(truncate, write_in_the_same_page_leaves_zeros_in_its_gap)
{
    file_with_stores_behind();
    write_at(200, 'w', 50);
    cr_expect(all(0, 100, 'f'));
    cr_expect(all(100, 200, 0));
    cr_expect(all(200, 250, 'w'));
    grow_to(PAGE_SIZE);
    cr_expect(all(250, PAGE_SIZE, 0));
}

Test(truncate, write_in_a_later_page_leaves_zeros_in_its_gap)
{
    file_with_stores_behind();
    write_at(2 * PAGE_SIZE + 10, 'w', PAGE_SIZE);
    cr_expect(all(0, 100, 'f'));
    cr_expect(all(100, 2 * PAGE_SIZE + 10, 0));
    cr_expect(all(2 * PAGE_SIZE + 10, 3 * PAGE_SIZE + 10, 'w'));
}

Test(truncate, appending_over_the_page_keeps_what_it_wrote)
{
    file_with_stores_behind();
    write_at(100, 'w', PAGE_SIZE);
    cr_expect(all(0, 100, 'f'));
    cr_expect(all(100, PAGE_SIZE + 100, 'w'));
}

Test(truncate, allocating_behind_the_end_shows_none)
{
    file_with_stores_behind();
    cr_assert_eq(filemap_allocate(&m, 0, 2), 0);
    grow_to(3 * PAGE_SIZE);
    cr_expect(all(0, 100, 'f'));
    cr_expect(all(100, 3 * PAGE_SIZE, 0));
}

Test(truncate, stores_behind_the_end_do_not_reach_the_disk)
{
    char block[PAGE_SIZE];
    file_with_stores_behind();
    cr_assert_eq(filemap_fdatawrite(&m, WB_SYNC_ALL), 0);
    read_block(0, block);
    cr_expect_eq(block[99], 'f');
    for (size_t i = 100; i < PAGE_SIZE; i++)
        cr_assert_eq(block[i], 0, "byte %zu", i);
}

Test(truncate, growing_a_file_that_is_not_in_memory_reads_nothing)
{
    struct cache_stats before, after;
    write_at(0, 'f', 100);
    cr_assert_eq(filemap_fdatawrite(&m, WB_SYNC_ALL), 0);
    page_cache_drop(cache);
    page_cache_stats(cache, &before);
    grow_to(PAGE_SIZE);
    page_cache_stats(cache, &after);
    cr_expect_eq(after.read_pages, before.read_pages);
    cr_expect(all(0, 100, 'f'));
    cr_expect(all(100, PAGE_SIZE, 0));
}

/* ---- growing and shrinking beside stores ------------------------------------------------------- */

#define SPOT 3000u /* in page 0, behind the end while the file is short */

static _Atomic uint32_t begun, ended; /* the number of the latest store */
static _Atomic bool stop;
static _Atomic uint32_t last_behind; /* the latest store after which the file was still short */

/* Store the numbers 1, 2, 3 ... at SPOT, and say which of them came before the file grew. */
static void *storer(void *arg)
{
    (void)arg;
    for (uint32_t n = 1; !stop; n++) {
        atomic_store(&begun, n);
        if (vma_store(vma, SPOT, &n, sizeof n) != 0)
            abort();
        if (atomic_load(&m.i_size) <= SPOT)
            atomic_store(&last_behind, n);
        atomic_store(&ended, n);
    }
    return NULL;
}

static uint32_t number_at_spot(void)
{
    uint32_t n = 0;
    cr_assert_eq(filemap_read(&m, NULL, SPOT, &n, sizeof n), (ssize_t)sizeof n);
    return n;
}

static void grow_by_truncation(void)
{
    grow_to(2 * PAGE_SIZE);
}
static void grow_by_writing_behind(void)
{
    write_at(PAGE_SIZE + 5, 'w', 5);
}
static void grow_by_writing_here(void)
{
    write_at(PAGE_SIZE - 5, 'w', 10);
}

static void grow_beside_stores(void (*grow)(void))
{
    pthread_t thread;
    begun = ended = last_behind = 0;
    stop = false;
    write_at(0, 'f', 100);
    cr_assert_eq(pthread_create(&thread, NULL, storer, NULL), 0);
    for (int i = 0; i < 400; i++) {
        uint32_t before = ended;
        while (ended < before + 2) /* or nothing is behind the end to be forgotten */
            sched_yield();
        grow();
        uint32_t n = number_at_spot(), behind = last_behind;
        cr_assert(n == 0 || n > behind, "store %u is in the file, %u came before it grew", n,
                  behind);
        if (i % 2 == 0)
            cr_assert_eq(filemap_fdatawrite(&m, WB_SYNC_ALL), 0);
        /* What is stored while the file is long is there, until it is cut. */
        before = ended;
        while (ended < before + 2)
            sched_yield();
        cr_assert_geq(number_at_spot(), before + 1);
        shrink_to(100);
    }
    stop = true;
    pthread_join(thread, NULL);
}

Test(truncate, growing_beside_stores)
{
    grow_beside_stores(grow_by_truncation);
}
Test(truncate, writing_behind_a_gap_beside_stores)
{
    grow_beside_stores(grow_by_writing_behind);
}
Test(truncate, writing_beyond_the_end_beside_stores)
{
    grow_beside_stores(grow_by_writing_here);
}

/* ---- shrinking ------------------------------------------------------------------------------- */

Test(truncate, cut_bytes_are_zeros_on_disk_too)
{
    write_at(0, 'f', PAGE_SIZE + 100);
    cr_assert_eq(filemap_fdatawrite(&m, WB_SYNC_ALL), 0);
    page_cache_drop(cache);
    cr_expect_eq(shrink_to(50), 0u);
    grow_to(2 * PAGE_SIZE);
    cr_expect(all(0, 50, 'f'));
    cr_expect(all(50, 2 * PAGE_SIZE, 0));
}

/* A pass must not write the zeros before the owner has recorded the size. */
Test(truncate, cut_page_stays_locked_until_the_owner_has_recorded_it)
{
    struct page *cut;
    char block[PAGE_SIZE];
    write_at(0, 'f', PAGE_SIZE);
    cr_assert_eq(filemap_fdatawrite(&m, WB_SYNC_ALL), 0);
    cr_assert_eq(truncate_get_page(&m, 50, &cut), 0);
    cr_expect_eq(atomic_load(&m.i_size), PAGE_SIZE);
    cr_assert_eq(filemap_fdatawrite(&m, WB_SYNC_ALL), 0);
    down_write(&m.invalidate_lock);
    truncate_setsize(&m, 50, cut);
    cr_assert_eq(filemap_fdatawrite(&m, WB_SYNC_NONE), 0); /* it leaves out what is locked */
    read_block(0, block);
    cr_expect_eq(block[PAGE_SIZE - 1], 'f');
    page_unlock_put(&m, cut);
    up_write(&m.invalidate_lock);
    cr_assert_eq(filemap_fdatawrite(&m, WB_SYNC_ALL), 0);
    read_block(0, block);
    cr_expect_eq(block[49], 'f');
    cr_expect_eq(block[50], 0);
    cr_expect_eq(block[PAGE_SIZE - 1], 0);
}

/* ---- pages that may still be mapped ------------------------------------------------------------ */

Test(truncate, page_that_may_be_mapped_stays_and_is_empty)
{
    write_at(0, 'f', 3 * PAGE_SIZE);
    store(PAGE_SIZE, 's', PAGE_SIZE);
    unsure = true;
    cr_expect_eq(shrink_to(100), 2u);
    for (uint32_t i = 1; i < 3; i++) {
        struct page *page = find_get_page(&m, i);
        cr_assert(page != NULL);
        char *at = page_address(page);
        cr_expect(at[0] == 0 && memcmp(at, at + 1, PAGE_SIZE - 1) == 0);
        cr_expect(i != 1 || page_test(page, PG_dirty)); /* it is still writable somewhere */
        put_page(cache, page);
    }
    /* Whoever has it goes on storing, behind the end. */
    store(PAGE_SIZE + 5, 's', 10);
    grow_to(3 * PAGE_SIZE);
    cr_expect(all(0, 100, 'f'));
    cr_expect(all(100, 3 * PAGE_SIZE, 0));
    unsure = false;
    cr_expect(all(100, 3 * PAGE_SIZE, 0));
    cr_expect_eq(shrink_to(0), 0u);
}

Test(truncate, hole_under_a_page_that_may_be_mapped_reads_zero_and_keeps_later_stores)
{
    write_at(0, 'f', 2 * PAGE_SIZE);
    store(0, 's', PAGE_SIZE);
    cr_assert_eq(vma_load(vma, PAGE_SIZE, &(char){ 0 }, 1), 0);
    cr_assert_eq(filemap_fdatawrite(&m, WB_SYNC_ALL), 0);
    store(0, 's', PAGE_SIZE);
    unsure = true;
    down_write(&m.invalidate_lock);
    cr_expect_eq(truncate_inode_pages_range(&m, 0, 1), 2u);
    dev_memory_discard(memory, OBJECT, 0, 1);
    up_write(&m.invalidate_lock);
    cr_expect(all(0, 2 * PAGE_SIZE, 0));
    store(10, 'n', 10);
    unsure = false;
    cr_expect(all(0, 10, 0));
    cr_expect(all(10, 20, 'n'));
    cr_expect(all(20, 2 * PAGE_SIZE, 0));
}

static int64_t promised_new;

static int reserve(struct address_space *mapping, uint32_t nr_pages, uint32_t nr_new)
{
    (void)mapping, (void)nr_pages;
    promised_new += nr_new;
    return 0;
}

static void reserve_always(struct address_space *mapping, uint32_t nr_pages, uint32_t nr_new)
{
    reserve(mapping, nr_pages, nr_new);
}

static void unreserve(struct address_space *mapping, uint32_t nr_pages, uint32_t nr_new)
{
    (void)mapping, (void)nr_pages;
    promised_new -= nr_new;
}

/* Its block goes with the hole; what it is written to next is a new one. */
Test(truncate, dirty_page_that_may_be_mapped_is_promised_a_new_block)
{
    static const struct address_space_operations ops = { .reserve = reserve,
                                                         .reserve_always = reserve_always,
                                                         .unreserve = unreserve };
    m.a_ops = &ops;
    write_at(0, 'f', PAGE_SIZE);
    cr_assert_eq(filemap_fdatawrite(&m, WB_SYNC_ALL), 0);
    store(0, 's', PAGE_SIZE);
    promised_new = 0;
    unsure = true;
    for (int i = 0; i < 2; i++) { /* a page that is to have a new one needs no other */
        down_write(&m.invalidate_lock);
        cr_assert_eq(truncate_inode_pages_range(&m, 0, 0), 1u);
        up_write(&m.invalidate_lock);
        cr_expect_eq(promised_new, 1);
    }
    struct page *page = find_get_page(&m, 0);
    cr_expect(page_test(page, PG_dirty) && !page_test(page, PG_mappedtodisk));
    put_page(cache, page);
    unsure = false;
    cr_expect_eq(shrink_to(0), 0u);
    cr_expect_eq(promised_new, 0);
}

/* No pass may write it before its block has gone. */
Test(truncate, page_that_may_be_mapped_is_not_written_to_the_block_that_goes)
{
    static const struct address_space_operations ops = { .reserve = reserve,
                                                         .reserve_always = reserve_always,
                                                         .unreserve = unreserve };
    m.a_ops = &ops;
    write_at(0, 'f', PAGE_SIZE);
    cr_assert_eq(filemap_fdatawrite(&m, WB_SYNC_ALL), 0);
    store(0, 's', PAGE_SIZE);
    unsure = true;
    down_write(&m.invalidate_lock);
    unsigned stayed = truncate_pages_begin(&m, 0, 0);
    cr_assert_eq(stayed, 1u);
    unsure = false;
    promised_new = 0;
    cr_assert_eq(filemap_fdatawrite(&m, WB_SYNC_NONE), 0); /* it leaves out what is locked */
    dev_memory_discard(memory, OBJECT, 0, 0);
    truncate_pages_end(&m, 0, 0, stayed);
    up_write(&m.invalidate_lock);
    cr_expect_eq(promised_new, 1);
    store(0, 'n', 1);
    cr_expect(all(0, 1, 'n'));
    cr_expect(all(1, PAGE_SIZE, 0));
}

Test(truncate, growth_write_protects_only_what_may_be_stored_to)
{
    write_at(0, 'f', 100);
    cr_assert_eq(filemap_fdatawrite(&m, WB_SYNC_ALL), 0);
    protected = 0;
    grow_to(200);
    cr_expect_eq(protected, 0u);
    store(0, 's', 10);
    grow_to(300);
    cr_expect_eq(protected, 1u);
}

/* ---- beside others ------------------------------------------------------------------------------- */

static void cut_file(void *state, const struct ra_access *a, struct ra_window *out)
{
    (void)state;
    shrink_to(PAGE_SIZE);
    *out = (struct ra_window){ .start = a->index, .size = PAGES - a->index };
}

Test(truncate, what_was_to_be_read_ahead_does_not_come_in_behind_the_new_end)
{
    static const struct ra_policy policy = { .abi = RA_ABI, .name = "cut", .access = cut_file };
    struct file_ra_state ra;
    char buf[PAGE_SIZE];
    file_ra_state_init(&ra, &policy, RA_DEFAULT_PAGES);
    write_at(0, 'f', PAGES * PAGE_SIZE);
    cr_assert_eq(filemap_fdatawrite(&m, WB_SYNC_ALL), 0);
    cr_assert_eq(invalidate_inode_pages2_range(&m, 0, UINT32_MAX), 0u);
    cr_expect_eq(filemap_read(&m, &ra, PAGE_SIZE, buf, sizeof buf), 0);
    cr_expect_eq(atomic_load(&m.nrpages), 0u);
}

static void *append_behind_a_gap(void *arg)
{
    (void)arg;
    write_at(2 * PAGE_SIZE, 'w', 10);
    return NULL;
}

static int never(void *arg)
{
    (void)arg;
    cr_assert_fail("called beside somebody who has the page");
    return 0;
}

static int count(void *arg)
{
    ++*(int *)arg;
    return 0;
}

/* It has let the lock go, to wait for the page that the old end cuts. */
Test(truncate, new_page_of_a_writer_stays_while_somebody_wants_it_gone)
{
    pthread_t writer;
    file_with_stores_behind();
    protected = 0;
    busy = true;
    cr_assert_eq(pthread_create(&writer, NULL, append_behind_a_gap, NULL), 0);
    while (protected == 0)
        sched_yield();
    cr_expect_eq(page_call_while_gone(&m, 2, never, NULL), -EAGAIN);
    busy = false;
    pthread_join(writer, NULL);
    cr_expect(all(2 * PAGE_SIZE, 2 * PAGE_SIZE + 10, 'w'));
}

Test(truncate, nothing_is_left_of_a_hole_behind_the_end_that_somebody_wanted_gone)
{
    int calls = 0;
    write_at(0, 'f', 100);
    cr_expect_eq(page_call_while_gone(&m, 2, count, &calls), 0);
    unsure = true;
    cr_expect_eq(page_call_while_gone(&m, 2, never, NULL), -EAGAIN);
    cr_expect_eq(calls, 1);
    cr_expect(find_get_page(&m, 2) == NULL);
}

static void *write_back(void *arg)
{
    (void)arg;
    cr_expect_eq(filemap_fdatawrite(&m, WB_SYNC_ALL), 0);
    return NULL;
}

/* It may wait, in its mmap(2), for what is read here. */
Test(truncate, pages_are_read_and_evicted_while_a_client_cannot_be_write_protected)
{
    pthread_t writer;
    char c;
    grow_to((uint64_t)200 * PAGE_SIZE); /* more than the cache holds */
    store(0, 's', 1);
    protected = 0;
    busy = true;
    cr_assert_eq(pthread_create(&writer, NULL, write_back, NULL), 0);
    while (protected == 0)
        sched_yield();
    for (uint64_t i = 1; i < 200; i++)
        cr_assert_eq(filemap_read(&m, NULL, i * PAGE_SIZE, &c, 1), 1);
    busy = false;
    pthread_join(writer, NULL);
}

static char *reader_has; /* PAGES pages, whose first touch is seen */
static unsigned touched;

/* The file is cut while its first page is copied, and grows again while its second one is. */
static void on_touch(int sig, siginfo_t *info, void *context)
{
    (void)sig, (void)context;
    size_t at = (size_t)((char *)info->si_addr - reader_has) / PAGE_SIZE;
    if (at >= PAGES ||
        mprotect(reader_has + at * PAGE_SIZE, PAGE_SIZE, PROT_READ | PROT_WRITE) != 0)
        abort();
    touched++;
    if (at == 0)
        shrink_to(PAGE_SIZE + 1000);
    else if (at == 1)
        grow_to(3 * PAGE_SIZE);
}

Test(truncate, a_reader_that_meets_a_truncation_and_a_growth_gets_each_byte_from_its_place)
{
    struct sigaction action = { .sa_sigaction = on_touch, .sa_flags = SA_SIGINFO | SA_NODEFER };
    for (unsigned i = 3; i-- > 0;) /* so that they do not lie in a row */
        write_at(i * PAGE_SIZE, (char)('a' + i), PAGE_SIZE);
    reader_has = mmap(NULL, PAGES * PAGE_SIZE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    cr_assert(reader_has != MAP_FAILED);
    touched = 0;
    cr_assert_eq(sigaction(SIGSEGV, &action, NULL), 0);
    ssize_t n = filemap_read(&m, NULL, 0, reader_has, 3 * PAGE_SIZE);
    signal(SIGSEGV, SIG_DFL);
    cr_assert_gt(n, 0);
    cr_expect_geq(touched, 2u);
    for (ssize_t i = 0; i < n; i++) {
        char is = reader_has[i], was = (char)('a' + i / PAGE_SIZE);
        cr_assert(is == was || is == 0, "byte %zd is '%c'", i, is);
    }
    munmap(reader_has, PAGES * PAGE_SIZE);
}
