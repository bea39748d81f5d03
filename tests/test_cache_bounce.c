/* What a device reads into a memfd and writes from one: by a buffer where one is free, itself where none is. */
#include <criterion/criterion.h>
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <unistd.h>

#include "cache/memfd.h"
#include "cache/page_cache.h"
#include "cache/vma_soft.h"

#define FILE_PAGES  1024u
#define CACHE_BYTES ((uint64_t)16 * BOUNCES_MOST * BIO_MAX_VECS << PAGE_SHIFT) /* all buffers */
#define HELD_MOST   16u
#define HOLE        7u
#define DAMAGED     5u

/* Answers at once, or holds what it is sent until it is told to answer. */
struct shelf {
    struct device dev;
    bool hold, damaged;
    struct bio *held[HELD_MOST];
    unsigned nr_held, nr_bounced, nr_direct;
    char written[FILE_PAGES];
};

static char letter(uint32_t index)
{
    return (char)('a' + index % 26);
}

static void fill(char *page, uint32_t index)
{
    memset(page, letter(index), PAGE_SIZE);
    memcpy(page, &index, sizeof index);
}

static void answer(struct shelf *s, struct bio *bio)
{
    for (uint32_t i = 0; i < bio->nr_vecs; i++) {
        struct bio_vec *v = &bio->vecs[i];
        if (bio->op == BIO_WRITE) {
            s->written[v->index] = ((char *)v->data)[PAGE_SIZE - 1];
        } else if (v->index == HOLE) {
            memset(v->data, 0, PAGE_SIZE);
            v->flags |= BV_HOLE;
        } else {
            fill(v->data, v->index);
            v->error = v->index == DAMAGED && s->damaged ? -EIO : 0;
        }
    }
    bio_endio(bio);
}

static void shelf_submit(struct device *dev, struct bio *bio)
{
    struct shelf *s = (struct shelf *)dev;
    const struct page *page = bio->vecs[0].owner;
    if (page->data == bio->vecs[0].data)
        s->nr_direct++;
    else
        s->nr_bounced++;
    if (!s->hold)
        answer(s, bio);
    else if (s->nr_held < HELD_MOST)
        s->held[s->nr_held++] = bio;
}

static const struct device_ops shelf_ops = { .submit = shelf_submit };

struct world {
    struct shelf shelf;
    struct page_cache *cache;
    struct address_space m;
    struct memfd_account account;
    struct memfd_segment *segment;
};

static void world_open(struct world *w, uint64_t cache_bytes)
{
    struct cache_options o = { .cache_bytes = cache_bytes };
    memset(w, 0, sizeof *w);
    w->shelf.dev = (struct device){ .ops = &shelf_ops, .nr_blocks = (uint64_t)1 << 32 };
    cr_assert_eq(page_cache_create(&w->cache, &o), 0);
    mapping_init(&w->m, w->cache, &w->shelf.dev, 1, NULL, FILE_PAGES << PAGE_SHIFT);
    cr_assert_eq(mapping_use_memfd(&w->m), 0);
    cr_assert_eq(memfd_reserve(&w->m, 0, FILE_PAGES, &w->account, &w->segment), 0);
    if (!memfd_whole())
        cr_skip_test("no userfaultfd(2) here: memfds cannot be filled");
}

static void world_close(struct world *w)
{
    memfd_release(w->segment, &w->account);
    mapping_unuse_memfd(&w->m);
    cr_expect_eq(mapping_check(&w->m), 0);
    mapping_destroy(&w->m);
    page_cache_destroy(w->cache);
}

static void read_window(struct world *w, uint32_t index, uint32_t nr)
{
    struct ra_request rq = { .index = index, .nr = nr };
    cr_assert_eq(page_cache_sync_ra(&w->m, NULL, &rq), 0);
}

static void expect_pages(struct world *w, uint32_t from, uint32_t to)
{
    char cached[PAGE_SIZE], shared[PAGE_SIZE], want[PAGE_SIZE];
    for (uint32_t i = from; i < to; i++) {
        fill(want, i);
        if (i == HOLE)
            memset(want, 0, PAGE_SIZE);
        uint64_t at = (uint64_t)i << PAGE_SHIFT;
        cr_expect_eq(filemap_read(&w->m, NULL, at, cached, PAGE_SIZE), PAGE_SIZE);
        cr_expect_eq(pread(memfd_descriptor(&w->m, true), shared, PAGE_SIZE, (off_t)at), PAGE_SIZE);
        cr_expect_arr_eq(cached, want, PAGE_SIZE, "page %u", i);
        cr_expect_arr_eq(shared, want, PAGE_SIZE, "page %u", i);
    }
}

Test(cache_bounce, what_is_read_lies_in_the_memfd_and_a_damaged_block_spoils_no_other)
{
    static struct world w;
    char byte;
    world_open(&w, CACHE_BYTES);
    w.shelf.damaged = true;
    read_window(&w, 0, 12);
    cr_expect_eq(w.shelf.nr_bounced, 1);
    expect_pages(&w, 0, DAMAGED);
    expect_pages(&w, DAMAGED + 1, 12);
    cr_expect_eq(filemap_read(&w.m, NULL, (uint64_t)DAMAGED << PAGE_SHIFT, &byte, 1), -EIO);
    w.shelf.damaged = false;
    expect_pages(&w, DAMAGED, DAMAGED + 1);
    world_close(&w);
}

Test(cache_bounce, pages_that_are_cached_in_between_are_left_as_they_are)
{
    static struct world w;
    world_open(&w, CACHE_BYTES);
    read_window(&w, 20, 2);
    read_window(&w, 30, 1);
    cr_assert_eq(filemap_write(&w.m, (uint64_t)25 << PAGE_SHIFT, "mine", 4), 4);
    read_window(&w, 16, 20);
    expect_pages(&w, 16, 25);
    expect_pages(&w, 26, 36);
    char bytes[5] = "";
    cr_expect_eq(filemap_read(&w.m, NULL, (uint64_t)25 << PAGE_SHIFT, bytes, 4), 4);
    cr_expect_str_eq(bytes, "mine");
    world_close(&w);
}

Test(cache_bounce, bios_that_find_no_buffer_go_to_the_memfd_itself_and_buffers_come_back)
{
    static struct world w;
    world_open(&w, CACHE_BYTES);
    w.shelf.hold = true;
    for (uint32_t i = 0; i < BOUNCES_MOST + 2; i++)
        read_window(&w, i * 100, 8);
    cr_expect_eq(w.shelf.nr_bounced, BOUNCES_MOST);
    cr_expect_eq(w.shelf.nr_direct, 2);
    for (unsigned i = w.shelf.nr_held; i-- > 0;)
        answer(&w.shelf, w.shelf.held[i]);
    w.shelf.hold = false;
    read_window(&w, 900, 8);
    cr_expect_eq(w.shelf.nr_bounced, BOUNCES_MOST + 1);
    for (uint32_t i = 0; i < BOUNCES_MOST + 2; i++)
        expect_pages(&w, i * 100, i * 100 + 8);
    world_close(&w);
}

Test(cache_bounce, a_small_cache_has_no_buffers)
{
    static struct world w;
    world_open(&w, CACHE_BYTES / BOUNCES_MOST - PAGE_SIZE);
    read_window(&w, 0, 4);
    cr_expect_eq(w.shelf.nr_bounced, 0);
    expect_pages(&w, 0, 4);
    world_close(&w);
}

/* A client touched a hole, set O_APPEND, or left something behind where a page will be. */
Test(cache_bounce, what_lies_in_the_memfd_already_is_overwritten)
{
    static struct world w;
    world_open(&w, CACHE_BYTES);
    int fd = memfd_descriptor(&w.m, true);
    for (off_t i = 1; i < 12; i += i < 6 ? 1 : 3)
        cr_assert_eq(pwrite(fd, "left behind", 11, i << PAGE_SHIFT), 11);
    cr_assert_eq(fcntl(fd, F_SETFL, O_APPEND), 0);
    read_window(&w, 0, 12);
    cr_expect_eq(w.shelf.nr_bounced, 1);
    expect_pages(&w, 0, 12);
    world_close(&w);
}

static int fill_from(struct world *w, uint32_t index, uint32_t n)
{
    static char bytes[4 << PAGE_SHIFT];
    struct memfd *f = atomic_load(&w->m.memfd);
    struct page *page = find_get_page(&w->m, 0);
    char *first = page_address(page);
    put_page(w->cache, page);
    memset(bytes, 'x', sizeof bytes);
    return memfd_fill(f, first + ((size_t)index << PAGE_SHIFT), bytes, n);
}

Test(cache_bounce, a_memfd_is_filled_up_to_what_is_there_already)
{
    static struct world w;
    static char bytes[PAGE_SIZE], shared[PAGE_SIZE];
    world_open(&w, CACHE_BYTES);
    memset(bytes, 'x', sizeof bytes);
    read_window(&w, 0, 1);
    cr_expect_eq(fill_from(&w, 600, 3), 3);
    cr_expect_eq(fill_from(&w, 600, 3), -EEXIST);
    cr_expect_eq(fill_from(&w, 598, 4), 2);
    cr_expect_eq(fill_from(&w, FILE_PAGES - 1, 2), 1, "it is no longer than that");
    cr_expect_eq(fill_from(&w, FILE_PAGES, 1), -EFAULT);
    cr_expect_eq(pread(memfd_descriptor(&w.m, true), shared, PAGE_SIZE, 602 << PAGE_SHIFT),
                 PAGE_SIZE);
    cr_expect_arr_eq(shared, bytes, PAGE_SIZE);
    world_close(&w);
}

Test(cache_bounce, a_window_may_lie_across_the_border_of_two_segments)
{
    static struct world w;
    uint32_t border = 1u << 14; /* that of the segment that world_open() has made */
    struct memfd_segment *second;
    world_open(&w, CACHE_BYTES);
    i_size_write(&w.m, (uint64_t)(border + 10) << PAGE_SHIFT);
    cr_assert_eq(memfd_reserve(&w.m, border + 2, 1, &w.account, &second), 0);
    cr_assert_neq(second, w.segment);
    read_window(&w, border - 5, 10);
    cr_expect_eq(w.shelf.nr_bounced, 1);
    expect_pages(&w, border - 5, border + 5);
    memfd_release(second, &w.account);
    world_close(&w);
}

static void write_letters(struct world *w, uint32_t from, uint32_t to)
{
    char page[PAGE_SIZE];
    for (uint32_t i = from; i < to; i++) {
        fill(page, i);
        cr_assert_eq(filemap_write(&w->m, (uint64_t)i << PAGE_SHIFT, page, PAGE_SIZE), PAGE_SIZE);
    }
}

Test(cache_bounce, what_is_written_is_what_lies_in_the_memfd)
{
    static struct world w;
    world_open(&w, CACHE_BYTES);
    write_letters(&w, 3, 40);
    write_letters(&w, 50, 52);
    cr_assert_eq(pwrite(memfd_descriptor(&w.m, true), "!", 1, (off_t)(51 << PAGE_SHIFT) - 1), 1);
    cr_assert_eq(filemap_fdatawrite(&w.m, WB_SYNC_ALL), 0);
    cr_expect_eq(w.shelf.nr_bounced, 1);
    for (uint32_t i = 0; i < 60; i++) {
        bool written = (i >= 3 && i < 40) || i == 50 || i == 51;
        char want = i == 50 ? '!' : letter(i);
        cr_expect_eq(w.shelf.written[i], written ? want : 0, "page %u", i);
    }
    world_close(&w);
}

Test(cache_bounce, a_memfd_that_a_client_made_shorter_is_written_as_zeros_where_its_bytes_were)
{
    static struct world w;
    world_open(&w, CACHE_BYTES);
    write_letters(&w, 0, 8);
    cr_assert_eq(ftruncate(memfd_descriptor(&w.m, true), 4 << PAGE_SHIFT), 0);
    cr_assert_eq(filemap_fdatawrite(&w.m, WB_SYNC_ALL), 0);
    cr_expect_eq(w.shelf.nr_bounced, 1);
    for (uint32_t i = 0; i < 8; i++)
        cr_expect_eq(w.shelf.written[i], i < 4 ? letter(i) : 0, "page %u", i);
    world_close(&w);
}

/* As where they were swapped out, and the swap cannot be read. */
Test(cache_bounce, bytes_that_cannot_be_had_are_not_written_and_that_is_an_error)
{
    static struct world w;
    world_open(&w, CACHE_BYTES);
    write_letters(&w, 0, 8);
    int fd = memfd_descriptor(&w.m, true), saved = dup(fd),
        unreadable = open("/dev/null", O_WRONLY);
    cr_assert(saved >= 0 && dup2(unreadable, fd) == fd);
    cr_expect_eq(filemap_fdatawrite(&w.m, WB_SYNC_ALL), -EIO);
    cr_expect_eq(w.shelf.nr_bounced + w.shelf.nr_direct, 0);
    cr_expect_eq(atomic_load(&w.m.nrdirty), 8);
    cr_assert_eq(dup2(saved, fd), fd);
    close(saved);
    close(unreadable);
    cr_expect_eq(filemap_fdatawrite(&w.m, WB_SYNC_ALL), 0);
    for (uint32_t i = 0; i < 8; i++)
        cr_expect_eq(w.shelf.written[i], letter(i), "page %u", i);
    world_close(&w);
}

/* ---- beginning to use one ------------------------------------------------------------------------ */

Test(cache_bounce, what_was_mapped_before_is_seen_in_the_memfd_afterwards, .timeout = 60)
{
    struct cache_options o = { .cache_bytes = CACHE_MIN_PAGES << PAGE_SHIFT };
    struct page_cache *cache;
    struct device *dev = dev_memory_create();
    struct address_space m, other;
    struct vm_area *vma;
    struct memfd_account account = { 0 };
    struct memfd_segment *segment;
    static char buf[CACHE_MIN_PAGES / 2 * PAGE_SIZE];
    char c;
    cr_assert_eq(page_cache_create(&cache, &o), 0);
    mapping_init(&m, cache, dev, 1, NULL, 0);
    mapping_init(&other, cache, dev, 2, NULL, 0);
    cr_assert_eq(filemap_write(&m, 0, "a", 1), 1);
    cr_assert_eq(vma_soft_create(&m, 0, 1, NULL, &vma), 0);
    cr_assert_eq(vma_store(vma, 0, "b", 1), 0);
    cr_assert_eq(mapping_use_memfd(&m), 0);
    cr_assert_eq(memfd_reserve(&m, 0, 1, &account, &segment), 0);
    memset(buf, 'x', sizeof buf); /* the frame is another file's by now */
    cr_assert_eq(filemap_write(&other, 0, buf, sizeof buf), (ssize_t)sizeof buf);
    cr_assert_eq(vma_load(vma, 0, &c, 1), 0);
    cr_expect_eq(c, 'b', "'%c'", c);
    cr_assert_eq(filemap_write(&m, 0, "c", 1), 1);
    cr_assert_eq(vma_load(vma, 0, &c, 1), 0);
    cr_expect_eq(c, 'c', "'%c'", c);
    vma_soft_destroy(vma);
    cr_expect_eq(mapping_check(&m), 0);
    memfd_release(segment, &account);
    mapping_unuse_memfd(&m);
    mapping_destroy(&other);
    mapping_destroy(&m);
    page_cache_destroy(cache);
    device_destroy(dev);
}
