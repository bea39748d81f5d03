/* What is written around copies that somebody holds, and what comes back from those copies, beside a model that
 * knows of each byte by which changes it is stale. FOLIO_SEED=n runs one seed again. */
#include <criterion/criterion.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "fs/data.h"
#include "fs/dir.h"
#include "fs/names.h"

#define SIZE    (4 * PAGE_SIZE)
#define CHANGES 4u
#define SEEDS   40u
#define STEPS   400u

static char home[64], volume[80];
static struct fs *fs;
static struct open_file *file;

static struct open_file *open_file(const char *name)
{
    const struct cred cred = { .uid = 1000, .gid = 100 };
    struct inode *root, *inode;
    struct open_file *opened;
    cr_assert_eq(inode_get(fs, ROOT_INO, &root), 0);
    if (dir_lookup(root, name, &inode) != 0)
        cr_assert_eq(dir_mknod(root, name, S_IFREG | 0644, 0, &cred, &inode), 0);
    cr_assert_eq(file_open(inode, O_RDWR, &opened), 0);
    inode_put(inode, 1);
    inode_put(root, 1);
    return opened;
}

static void begin(void)
{
    struct store_format f = { .capacity = 0 };
    struct store_error error = { .text = "" };
    struct fs_options options = { .cache = { .cache_bytes = 4 << 20 } };
    strcpy(home, "/tmp/folio-stale.XXXXXX");
    cr_assert_not_null(mkdtemp(home));
    snprintf(volume, sizeof volume, "%s/volume", home);
    cr_assert_eq(store_format(volume, &f, &error), 0, "%s", error.text);
    cr_assert_eq(fs_mount(volume, &options, &fs, &error), 0, "%s", error.text);
    file = open_file("f");
}

static void end(void)
{
    file_release(file);
    cr_assert_eq(fs_unmount(fs), 0);
    unlink(volume);
    rmdir(home);
}

TestSuite(fs_stale, .init = begin, .fini = end, .timeout = 60);

static void give(uint64_t offset, size_t len)
{
    cr_assert_eq(stale_give(file->inode, offset, len), 0);
    stale_gave(file->inode);
}

Test(fs_stale, only_copies_given_since_the_file_was_opened_matter)
{
    cr_assert_eq(file_write_around(file, 0, "abc", 3, WRITE_AROUND, NULL), 3);
    give(0, PAGE_SIZE);
    cr_expect(stale_is_possible(file, 0));
    cr_expect_eq(file_write_around(file, 0, "def", 3, WRITE_AROUND, NULL), -EAGAIN);
    struct open_file *later = open_file("f");
    cr_expect_eq(file_write_around(later, 0, "ghi", 3, WRITE_AROUND, NULL), 3);
    give(0, PAGE_SIZE);
    cr_expect_eq(file_write_around(later, 0, "jkl", 3, WRITE_AROUND, NULL), -EAGAIN);
    cr_expect_eq(file_write_around(file, 0, "jkl", 3, WRITE_AROUND, NULL), -EAGAIN);
    file_release(later);
}

Test(fs_stale, the_end_that_is_left_behind_matters_whenever_it_was_given)
{
    char page[PAGE_SIZE] = { 0 };
    struct open_file *early = open_file("f");
    cr_assert_eq(file_write_around(early, 0, "abc", 3, WRITE_AROUND, NULL), 3);
    cr_expect_eq(file_write_around(early, 9, "d", 1, WRITE_AROUND, NULL), 1, "nobody has one");
    give(0, PAGE_SIZE);
    struct open_file *later = open_file("f");
    cr_expect_eq(file_write_around(later, 10, "e", 1, WRITE_AROUND, NULL), 1, "at the end");
    cr_expect_eq(file_write_around(later, 100, "f", 1, WRITE_AROUND, NULL), -EAGAIN);
    struct stale stale = { .whole = { 0 } };
    cr_assert_eq(file_write_around(later, 100, "f", 1, WRITE_AROUND, &stale), 1);
    cr_expect_eq(stale_from(&stale, 100), 11);
    cr_expect_eq(stale_size(file->inode, 101), 11, "nobody has been told");
    stale_end(file->inode, &stale);
    cr_assert_eq(file_write_around(later, 0, page, PAGE_SIZE, WRITE_AROUND, NULL), PAGE_SIZE);
    cr_expect_eq(file_write_around(later, 2 * PAGE_SIZE, "g", 1, WRITE_AROUND, NULL), 1,
                 "no page is cut by the end");
    file_release(later);
    file_release(early);
}

Test(fs_stale, what_is_behind_the_end_is_stale_from_there)
{
    struct stale stale = { .whole = { 0 } };
    char got[8] = "";
    cr_assert_eq(file_write(file, 0, "abc", 3, 0), 3);
    give(0, PAGE_SIZE);
    cr_assert_eq(file_write_around(file, 3, "def", 3, WRITE_AROUND, &stale), 3);
    cr_expect_eq(stale.whole.start, 3);
    cr_assert_eq(file_write(file, 0, "ABCDEFGH", 8, WRITE_CACHED), 8);
    cr_assert_eq(file_read(file, 0, got, 8), 8);
    cr_expect_arr_eq(got, "ABCdefGH", 8);
    stale_end(file->inode, &stale);
    cr_expect_not(stale_covers(file->inode, 0, SIZE));
}

Test(fs_stale, what_was_given_since_need_not_be_forgotten)
{
    struct stale stale = { .whole = { 0 } };
    cr_assert_eq(file_write(file, 0, "abc", 3, 0), 3);
    give(0, PAGE_SIZE);
    cr_assert_eq(file_write_around(file, 1, "d", 1, WRITE_AROUND, &stale), 1);
    cr_expect_eq(stale_until(file->inode, &stale), 2);
    give(0, PAGE_SIZE);
    cr_expect_eq(stale_until(file->inode, &stale), 1);
    stale_end(file->inode, &stale);
}

Test(fs_stale, pages_of_which_there_is_no_copy_are_written_at_once)
{
    static uint8_t buf[SIZE];
    struct stale stale = { .whole = { 0 } };
    cr_assert_eq(file_write(file, 0, buf, SIZE, 0), (ssize_t)SIZE);
    give(2 * PAGE_SIZE, PAGE_SIZE);
    cr_expect_eq(file_write_around(file, 9, buf, SIZE - 9, WRITE_AROUND, &stale),
                 2 * PAGE_SIZE - 9);
    cr_expect_not(stale_covers(file->inode, 0, SIZE));
    cr_expect_eq(file_write_around(file, 2 * PAGE_SIZE, buf, 2 * PAGE_SIZE, WRITE_AROUND, &stale),
                 PAGE_SIZE);
    cr_expect(stale_covers(file->inode, 2 * PAGE_SIZE, 1));
    cr_expect_eq(file_write_around(file, 3 * PAGE_SIZE, buf, PAGE_SIZE, WRITE_AROUND, &stale),
                 PAGE_SIZE);
    cr_expect_not(stale_covers(file->inode, 0, SIZE));
    stale_end(file->inode, &stale);
}

Test(fs_stale, a_hole_that_failed_is_not)
{
    struct stale stale = { .whole = { 0 } };
    int punch = FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE;
    cr_expect_eq(file_fallocate(file, FALLOC_FL_PUNCH_HOLE, 0, PAGE_SIZE, &stale), -EOPNOTSUPP);
    stale_end(file->inode, &stale);
    cr_expect_not(stale_covers(file->inode, 0, SIZE));
    cr_assert_eq(file_fallocate(file, punch, 0, PAGE_SIZE, &stale), 0);
    cr_expect(stale_covers(file->inode, 0, 1));
    stale_end(file->inode, &stale);
    cr_expect_not(stale_covers(file->inode, 0, SIZE));
}

/* ---- overtaken by a truncation --------------------------------------------------------------- */

Test(fs_stale, a_write_that_a_truncation_overtook_counts_as_before_it)
{
    static uint8_t buf[SIZE];
    struct stale stale = { .whole = { 0 } };
    _Atomic uint64_t *size = &file->inode->mapping.i_size;
    cr_assert_eq(file_write(file, 0, buf, SIZE, 0), (ssize_t)SIZE);
    request_order_set(20);
    cr_assert_eq(inode_truncate(file->inode, 100), 0);
    request_order_set(18);
    cr_expect_eq(file_write(file, 0, buf, SIZE, 0), (ssize_t)SIZE);
    cr_expect_eq(file_write(file, PAGE_SIZE, buf, PAGE_SIZE, 0), PAGE_SIZE);
    give(0, SIZE);
    cr_expect_eq(file_write_around(file, PAGE_SIZE, buf, PAGE_SIZE, WRITE_AROUND, &stale),
                 PAGE_SIZE);
    cr_expect_eq(stale.eof, UINT64_MAX);
    stale_end(file->inode, &stale);
    cr_expect_eq(atomic_load(size), 100);
    cr_expect_eq(file_write(file, 0, buf, 200, WRITE_CACHED),
                 200); /* the kernel's own wait for it */
    cr_expect_eq(atomic_load(size), 200);
    request_order_set(0);
    cr_expect_eq(file_write(file, 200, buf, 100, 0), 100);
    request_order_set(22);
    cr_expect_eq(file_write(file, 300, buf, 100, 0), 100);
    cr_expect_eq(atomic_load(size), 400);
    cr_assert_eq(inode_truncate(file->inode, SIZE), 0); /* no cut */
    request_order_set(20);
    cr_expect_eq(file_write(file, SIZE, buf, 100, 0), 100);
    cr_expect_eq(atomic_load(size), SIZE + 100);
    request_order_set(0);
}

/* ---- fallocate in steps ---------------------------------------------------------------------- */

static void take_steps(struct fallocation *f, unsigned nr)
{
    while (nr-- > 0)
        cr_assert_eq(file_fallocate_step(f), 1);
}

Test(fs_stale, a_long_fallocate_locks_nobody_out_and_grows_the_file_at_its_end)
{
    struct stale stale = { .whole = { 0 } };
    uint64_t end = (2 * FALLOCATE_STEP + 1) * PAGE_SIZE;
    struct fallocation f = { .file = file, .len = end, .stale = &stale };
    cr_assert_eq(file_write(file, 0, "abc", 3, 0), 3);
    for (unsigned steps = 0; steps < 4; steps++) {
        take_steps(&f, 1);
        give(0, PAGE_SIZE);
        cr_assert_eq(file_write(file, 0, "def", 3, 0), 3);
        cr_expect_eq(atomic_load(&file->inode->mapping.i_size), 3);
        cr_assert_eq(inode_write_back(file->inode), 0);
    }
    cr_assert_eq(file_fallocate_step(&f), 0);
    cr_expect_eq(atomic_load(&file->inode->mapping.i_size), end);
    cr_expect_eq(stale_size(file->inode, end), 3);
    stale_end(file->inode, &stale);
    cr_expect_eq(stale_size(file->inode, end), end);
    cr_assert_eq(file_fsync(file), 0);
    uint64_t blocks;
    cr_assert_eq(store_count_blocks(fs->store, file->inode->data_id, &blocks), 0);
    cr_expect_eq(blocks, 2 * FALLOCATE_STEP + 1);
}

/* The hole is there, its blocks are not. */
Test(fs_stale, a_fallocate_that_fails_leaves_the_size_and_nothing_stale)
{
    struct stale stale = { .whole = { 0 } };
    char c = 'x';
    cr_assert_eq(file_write(file, 0, "abc", 3, 0), 3);
    cr_expect_eq(file_fallocate(file, FALLOC_FL_ZERO_RANGE, 0, (uint64_t)8 << 40, &stale), -ENOSPC);
    cr_expect_not(stale_covers(file->inode, 0, 1));
    cr_expect_eq(atomic_load(&file->inode->mapping.i_size), 3);
    cr_expect_eq(file_read(file, 0, &c, 1), 1);
    cr_expect_eq(c, 0);
    stale_end(file->inode, &stale);
}

Test(fs_stale, what_is_read_of_zeros_while_their_blocks_are_set_aside_stays_fresh)
{
    struct stale stale = { .whole = { 0 } };
    struct fallocation f = {
        .file = file, .mode = FALLOC_FL_ZERO_RANGE, .len = 4 * PAGE_SIZE, .stale = &stale
    };
    cr_assert_eq(file_write(file, 0, "abc", 3, 0), 3);
    take_steps(&f, 1);
    give(PAGE_SIZE, PAGE_SIZE);
    take_steps(&f, 1);
    cr_assert_eq(file_fallocate_step(&f), 0);
    cr_expect(stale_covers(file->inode, 0, PAGE_SIZE));
    cr_expect_not(stale_covers(file->inode, PAGE_SIZE, PAGE_SIZE));
    cr_expect_eq(stale_size(file->inode, SIZE), 3);
    stale_end(file->inode, &stale);
    cr_expect_eq(stale_size(file->inode, SIZE), SIZE);
}

/* ---- the model ------------------------------------------------------------------------------- */

static struct {
    uint8_t bytes[SIZE];
    uint8_t by[SIZE]; /* a bit for each change */
    struct stale changes[CHANGES];
    unsigned under_way; /* likewise */
} model;

static void change(unsigned which, size_t at, size_t len, uint8_t c)
{
    static uint8_t buf[SIZE];
    struct stale *stale = &model.changes[which];
    memset(buf, c, len);
    if (c % 4 == 0) {
        memset(buf, 0, len);
        cr_assert_eq(
            file_fallocate(file, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, at, len, stale), 0);
    } else { /* no further than to the end of a page, for all has been given */
        size_t page = PAGE_SIZE - at % PAGE_SIZE, most = len < page ? len : page;
        cr_assert_eq(file_write_around(file, at, buf, len, WRITE_AROUND, stale), (ssize_t)most);
        len = most;
    }
    memcpy(model.bytes + at, buf, len);
    for (size_t i = at; i < at + len; i++)
        model.by[i] |= (uint8_t)(1u << which);
    model.under_way |= 1u << which;
}

static void change_is_over(unsigned which)
{
    stale_end(file->inode, &model.changes[which]);
    for (size_t i = 0; i < SIZE; i++)
        model.by[i] &= (uint8_t) ~(1u << which);
    model.under_way &= ~(1u << which);
}

static void comes_back(size_t at, size_t len, uint8_t c)
{
    static uint8_t buf[SIZE];
    memset(buf, c, len);
    cr_assert_eq(file_write(file, at, buf, len, WRITE_CACHED), (ssize_t)len);
    for (size_t i = at; i < at + len; i++)
        if (model.by[i] == 0)
            model.bytes[i] = c;
}

static void check(size_t at, size_t len, unsigned seed)
{
    static uint8_t got[SIZE];
    bool covers = false;
    for (size_t i = at; i < at + len; i++)
        covers = covers || model.by[i] != 0;
    cr_assert_eq(stale_covers(file->inode, at, len), covers, "seed %u", seed);
    cr_assert_eq(file_read(file, 0, got, SIZE), (ssize_t)SIZE);
    for (size_t i = 0; i < SIZE; i++)
        cr_assert_eq(got[i], model.bytes[i], "seed %u, byte %zu: %u, not %u", seed, i, got[i],
                     model.bytes[i]);
}

static void step(unsigned *random, unsigned seed)
{
    unsigned r = *random = *random * 1103515245u + 12345u, which = (r >> 8) % CHANGES;
    size_t at = (r >> 12) % SIZE, len = 1 + (r >> 5) % (SIZE - at);
    bool under_way = model.under_way & (1u << which);
    if (r >> 30 == 0 && !under_way)
        change(which, at, len, (uint8_t)(r >> 16));
    else if (r >> 30 == 0)
        change_is_over(which);
    else if (r >> 30 == 1) {
        give(at, len);
        memset(model.by + at, 0, len);
    } else
        comes_back(at, len, (uint8_t)(r >> 16));
    check(at, len, seed);
}

Test(fs_stale, beside_a_model)
{
    const char *only = getenv("FOLIO_SEED");
    for (unsigned seed = only != NULL ? (unsigned)atoi(only) : 1, i = 0;
         i < (only != NULL ? 1 : SEEDS); i++, seed++) {
        unsigned random = seed * 2654435761u;
        comes_back(0, SIZE, (uint8_t)seed);
        give(0, SIZE);
        for (unsigned n = 0; n < STEPS; n++)
            step(&random, seed);
        for (unsigned which = 0; which < CHANGES; which++)
            if (model.under_way & (1u << which))
                change_is_over(which);
        cr_expect_null(file->inode->stale);
    }
}
