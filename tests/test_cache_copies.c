/* Pages of which who is in front holds a copy (fs/DOORS.md: lent, and being taken back): what each event does to
 * them. Who is in front is the test; it lets a copy go when it is told to. */
#include <criterion/criterion.h>
#include <errno.h>
#include <pthread.h>
#include <semaphore.h>
#include <string.h>
#include <time.h>

#include "cache/page_cache.h"
#include "cache/vma_soft.h"

#define OBJECT 1u
#define PAGES  4u
#define TOLD   2u /* the page that is lent */

static struct page_cache *cache;
static struct device *memory;
static struct address_space m;
static struct vm_area *vma;
static sem_t asked, let_go; /* for the copy of a page; that it has gone */
static _Atomic unsigned times_asked;

static void forget_copy(struct address_space *of, uint32_t index)
{
    cr_expect_eq(of, &m);
    cr_expect_eq(index, TOLD);
    times_asked++;
    sem_post(&asked);
    sem_wait(&let_go);
}

static const struct address_space_operations ops = { .forget_copy = forget_copy };

static void write_page(char c)
{
    char buf[PAGE_SIZE];
    memset(buf, c, sizeof buf);
    cr_assert_eq(filemap_write(&m, TOLD * PAGE_SIZE, buf, sizeof buf), (ssize_t)sizeof buf);
}

static void write_back(void)
{
    cr_assert_eq(filemap_fdatawrite(&m, WB_SYNC_ALL), 0);
}

static void start(void)
{
    struct cache_options o = { .cache_bytes = 64 * PAGE_SIZE, .fault_around = 1 };
    static const char zeros[PAGES * PAGE_SIZE];
    memory = dev_memory_create();
    cr_assert_eq(page_cache_create(&cache, &o), 0);
    mapping_init(&m, cache, memory, OBJECT, &ops, 0);
    cr_assert_eq(vma_soft_create(&m, 0, PAGES, NULL, &vma), 0);
    cr_assert_eq(filemap_write(&m, 0, zeros, sizeof zeros), (ssize_t)sizeof zeros);
    write_page('w');
    write_back();
    sem_init(&asked, 0, 0);
    sem_init(&let_go, 0, 0);
    times_asked = 0;
}

static void finish(void)
{
    vma_soft_destroy(vma);
    cr_expect_eq(mapping_check(&m), 0);
    mapping_destroy(&m);
    page_cache_destroy(cache);
    device_destroy(memory);
}

TestSuite(copies, .init = start, .fini = finish, .timeout = 60);

/* ---- what can be done to the page ---------------------------------------------------------------- */

static struct page *look_up(void)
{
    return find_get_page(&m, TOLD);
}

static uint32_t flags(uint32_t which)
{
    struct page *page = look_up();
    uint32_t set = page != NULL ? atomic_load(&page->flags) & which : 0;
    if (page != NULL)
        put_page(cache, page);
    return set;
}

/* A READ of which the kernel keeps what it gets. */
static void lend(void)
{
    char byte;
    cr_assert_eq(filemap_read(&m, NULL, TOLD * PAGE_SIZE, &byte, 1), 1);
    struct page *page = find_lock_page(&m, TOLD);
    cr_assert_not_null(page);
    cr_expect_eq(page_hold_copy(&m, page), 0);
    page_unlock_put(&m, page);
}

static char load(unsigned at)
{
    char byte = 0;
    cr_assert_eq(vma_load(vma, TOLD * PAGE_SIZE + at, &byte, 1), 0);
    return byte;
}

static char read_byte(unsigned at)
{
    char byte = 0;
    cr_assert_eq(filemap_read(&m, NULL, TOLD * PAGE_SIZE + at, &byte, 1), 1);
    return byte;
}

static uint64_t mkwrites(void)
{
    return atomic_load(&cache->count.faults[FAULT_SOFT].mkwrite);
}

struct storing {
    pthread_t thread;
    unsigned at;
    _Atomic bool done;
    int err;
};

static void *store(void *arg)
{
    struct storing *s = arg;
    s->err = vma_store(vma, TOLD * PAGE_SIZE + s->at, "s", 1);
    s->done = true;
    return NULL;
}

static void store_begin(struct storing *s)
{
    s->done = false;
    cr_assert_eq(pthread_create(&s->thread, NULL, store, s), 0);
}

static void store_end(struct storing *s, int err)
{
    pthread_join(s->thread, NULL);
    cr_expect_eq(s->err, err, "a store: %d", s->err);
}

/* Nobody tells that somebody sleeps; whoever does not has had the time to be done. */
static void waits_still(struct storing *s)
{
    nanosleep(&(struct timespec){ .tv_nsec = 50000000 }, NULL);
    cr_expect(!s->done, "the store at byte %u did not wait", s->at);
}

/* ---- private, writable ------------------------------------------------------------------------- */

Test(copies, lending_a_clean_page_lets_loads_go_on)
{
    cr_expect_eq(load(0), 'w');
    lend();
    cr_expect_eq(flags(PG_copied), PG_copied);
    cr_expect_eq(load(1), 'w');
    cr_expect_eq(times_asked, 0u);
}

Test(copies, lending_a_writable_page_protects_it)
{
    cr_assert_eq(vma_store(vma, TOLD * PAGE_SIZE, "a", 1), 0);
    cr_expect_eq(flags(PG_mkwrite), PG_mkwrite);
    lend();
    cr_expect_eq(flags(PG_mkwrite | PG_copied | PG_dirty), PG_copied | PG_dirty);
    cr_expect_eq(load(0), 'a');
    struct storing s = { .at = 1 };
    uint64_t before = mkwrites();
    store_begin(&s);
    sem_wait(&asked);
    cr_expect_eq(read_byte(1), 'w', "stored before the copy has gone");
    sem_post(&let_go);
    store_end(&s, 0);
    cr_expect_eq(mkwrites() - before, 1u);
    cr_expect_eq(flags(PG_mkwrite | PG_copied), PG_mkwrite);
    cr_expect_eq(vma_store(vma, TOLD * PAGE_SIZE + 2, "b", 1), 0);
    cr_expect_eq(times_asked, 1u, "a page that is writable has no copies");
}

/* ---- lent -------------------------------------------------------------------------------------- */

Test(copies, a_lent_page_is_written_back_and_stays_lent)
{
    write_page('x');
    lend();
    write_back();
    cr_expect_eq(flags(PG_dirty | PG_copied), PG_copied);
    cr_expect_eq(times_asked, 0u);
}

Test(copies, a_lent_page_that_was_reclaimed_comes_back_lent)
{
    cr_expect_eq(load(0), 'w');
    lend();
    cr_expect_gt(page_cache_drop(cache), 0u);
    cr_assert_null(look_up());
    cr_expect_eq(load(0), 'w');
    struct storing s = { .at = 0 };
    store_begin(&s);
    sem_wait(&asked);
    sem_post(&let_go);
    store_end(&s, 0);
    cr_expect_eq(read_byte(0), 's');
}

Test(copies, a_lent_page_is_cut_and_its_mapping_ends_there)
{
    char byte;
    struct page *cut;
    lend();
    cr_assert_eq(truncate_get_page(&m, TOLD * PAGE_SIZE, &cut), 0);
    down_write(&m.invalidate_lock);
    cr_expect_eq(truncate_setsize(&m, TOLD * PAGE_SIZE, cut), 0u);
    page_unlock_put(&m, cut);
    up_write(&m.invalidate_lock);
    cr_expect_eq(vma_load(vma, TOLD * PAGE_SIZE, &byte, 1), -EFAULT);
    cr_expect_eq(vma_store(vma, TOLD * PAGE_SIZE, "s", 1), -EFAULT);
    cr_expect_eq(times_asked, 0u);
}

/* ---- being taken back -------------------------------------------------------------------------- */

Test(copies, while_a_page_is_taken_back_only_stores_wait)
{
    struct storing first = { .at = 0 }, second = { .at = 1 };
    uint64_t before = mkwrites();
    lend();
    store_begin(&first);
    sem_wait(&asked);
    cr_expect_eq(flags(PG_invalidating | PG_copied), PG_invalidating);
    store_begin(&second);
    waits_still(&second);

    cr_expect_eq(load(2), 'w');
    write_page('x');
    cr_expect_eq(read_byte(2), 'x');
    cr_expect_eq(load(2), 'x', "the same bytes");
    write_back();
    cr_expect_eq(flags(PG_dirty), 0u);
    (void)page_cache_drop(cache);
    cr_expect_eq(flags(PG_invalidating), PG_invalidating, "not reclaimed");

    lend(); /* so it must be asked for once more */
    sem_post(&let_go);
    sem_wait(&asked);
    cr_expect_eq(read_byte(0), 'x', "stored while there was a copy");
    waits_still(&first);
    waits_still(&second);
    sem_post(&let_go);
    store_end(&first, 0);
    store_end(&second, 0);
    cr_expect_eq(times_asked, 2u);
    cr_expect_eq(read_byte(0), 's');
    cr_expect_eq(read_byte(1), 's');
    cr_expect_eq(read_byte(2), 'x');
    cr_expect_geq(mkwrites() - before, 1u);
    write_back();
    (void)page_cache_drop(cache);
    cr_expect_eq(load(0), 's');
    cr_expect_eq(load(1), 's');
}

Test(copies, a_page_that_is_cut_while_it_is_taken_back_takes_no_store)
{
    struct storing s = { .at = 0 };
    struct page *cut;
    lend();
    store_begin(&s);
    sem_wait(&asked);
    cr_assert_eq(truncate_get_page(&m, TOLD * PAGE_SIZE, &cut), 0);
    down_write(&m.invalidate_lock);
    (void)truncate_setsize(&m, TOLD * PAGE_SIZE, cut);
    page_unlock_put(&m, cut);
    up_write(&m.invalidate_lock);
    sem_post(&let_go);
    store_end(&s, -EFAULT);
    cr_expect_eq(filemap_fdatawrite(&m, WB_SYNC_ALL), 0);
}

Test(copies, a_hole_made_while_a_page_is_taken_back_is_zeros_but_for_the_store)
{
    struct storing s = { .at = 0 };
    lend();
    store_begin(&s);
    sem_wait(&asked);
    down_write(&m.invalidate_lock);
    (void)truncate_inode_pages_range(&m, TOLD, TOLD);
    dev_memory_discard(memory, OBJECT, TOLD, TOLD);
    up_write(&m.invalidate_lock);
    /* It comes back lent, for whoever reads it meanwhile. */
    cr_expect_eq(read_byte(0), 0);
    sem_post(&let_go);
    sem_wait(&asked);
    sem_post(&let_go);
    store_end(&s, 0);
    cr_expect_eq(read_byte(0), 's');
    cr_expect_eq(read_byte(1), 0);
}
