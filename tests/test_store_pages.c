/* The walker over LMDB's pages: sound files, and every kind of damage. */
#include "store/lmdb_pages.h"

#include <criterion/criterion.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "store/lmdb.h"

#define PAGE      4096u
#define LINES_MAX 64

struct file {
    char path[64];
    int fd;
    uint64_t entries, bytes; /* seen by the walk */
    unsigned nr_lines, nr_notes;
    char lines[LINES_MAX][256];
};

static void see_entry(void *ctx, const struct pages_entry *e)
{
    struct file *f = ctx;
    volatile uint8_t sum = 0; /* read every byte: a sanitizer watches */

    f->entries++;
    for (size_t i = 0; i < e->key_len; i++)
        sum = (uint8_t)(sum + e->key[i]);
    for (size_t i = 0; i < e->value_len; i++)
        sum = (uint8_t)(sum + e->value[i]);
    f->bytes += e->value_len;
}

static void see_line(void *ctx, enum pages_finding kind, const char *line)
{
    struct file *f = ctx;

    f->nr_notes += kind == PAGES_NOTE;
    if (kind == PAGES_DAMAGE && f->nr_lines < LINES_MAX)
        snprintf(f->lines[f->nr_lines++], sizeof f->lines[0], "%s", line);
}

static struct pages_info walk(struct file *f)
{
    struct pages_ops ops = { see_entry, see_line };
    struct pages_info info;

    f->entries = f->bytes = 0;
    f->nr_lines = f->nr_notes = 0;
    cr_assert_eq(pages_check(f->fd, &ops, f, &info), 0);
    return info;
}

static void file_new(struct file *f)
{
    strcpy(f->path, "/tmp/test_store_pages.XXXXXX");
    f->fd = mkstemp(f->path);
    cr_assert(f->fd >= 0);
}

static void file_remove(struct file *f)
{
    close(f->fd);
    unlink(f->path);
}

/* Several levels, overflow values of several sizes, blocks, and a free list with pages in it. */
static void volume_new(struct file *f)
{
    static uint8_t value[VALUE_MAX];
    struct store_error error;
    struct lmdb *l;
    struct key key;

    file_new(f);
    cr_assert_eq(lmdb_create(f->path, MIN_CAPACITY, &l, &error), 0, "%s", error.text);
    for (unsigned round = 0; round < 4; round++) {
        cr_assert_eq(lmdb_begin(l), 0);
        for (uint64_t i = 1; i < 1500; i++) {
            key_inode(&key, i * (round + 1));
            cr_assert_eq(lmdb_put(l, &key, value, 133), 0);
        }
        for (uint64_t i = 1; i < 6; i++) {
            key_xattr(&key, i, "user.large", 10);
            cr_assert_eq(lmdb_put(l, &key, value, (size_t)(i * 9000) >> (round & 1)), 0);
        }
        for (uint32_t i = 0; i < 200; i++)
            cr_assert_eq(lmdb_put_block(l, 7, i * (round + 1), value, block_crc(7, i, value)), 0);
        cr_assert_eq(lmdb_commit(l), 0);
    }
    lmdb_close(l);
}

static uint64_t get64(struct file *f, uint64_t at)
{
    uint64_t v;

    cr_assert_eq(pread(f->fd, &v, sizeof v, (off_t)at), (ssize_t)sizeof v);
    return v;
}

static uint16_t get16(struct file *f, uint64_t at)
{
    uint16_t v;

    cr_assert_eq(pread(f->fd, &v, sizeof v, (off_t)at), (ssize_t)sizeof v);
    return v;
}

static void put_bytes(struct file *f, uint64_t at, const void *bytes, size_t len)
{
    cr_assert_eq(pwrite(f->fd, bytes, len, (off_t)at), (ssize_t)len);
}

static void put64(struct file *f, uint64_t at, uint64_t v)
{
    put_bytes(f, at, &v, sizeof v);
}

static void put16(struct file *f, uint64_t at, uint16_t v)
{
    put_bytes(f, at, &v, sizeof v);
}

static uint64_t meta_at(struct file *f)
{
    return (get64(f, 16 + 128) < get64(f, PAGE + 16 + 128) ? PAGE : 0) + 16;
}

static uint64_t root_at(struct file *f)
{
    return get64(f, meta_at(f) + 72 + 40) * PAGE;
}

/* The i-th child of the branch page at. */
static uint64_t child_at(struct file *f, uint64_t at, unsigned i)
{
    uint64_t node = at + get16(f, at + 16 + 2 * i);

    return ((uint64_t)get16(f, node) | (uint64_t)get16(f, node + 2) << 16 |
            (uint64_t)get16(f, node + 4) << 32) *
           PAGE;
}

static uint64_t leaf_at(struct file *f, unsigned i)
{
    uint64_t at = child_at(f, root_at(f), i);

    while (get16(f, at + 10) == 1)
        at = child_at(f, at, 0);
    cr_assert_eq(get16(f, at + 10), 2);
    return at;
}

static void expect_line(struct file *f, const char *part)
{
    struct pages_info info = walk(f);

    cr_assert_gt(info.damage, 0u);
    for (unsigned i = 0; i < f->nr_lines; i++)
        if (strstr(f->lines[i], part) != NULL)
            return;
    cr_assert_fail("no line with \"%s\", but \"%s\"", part, f->lines[0]);
}

/* ---- sound ----------------------------------------------------------------------------------- */

Test(pages, sound_volume_has_all_entries_and_no_damage)
{
    struct file f;
    volume_new(&f);
    struct pages_info info = walk(&f);

    cr_assert_eq(info.damage, 0u, "%s", f.lines[0]);
    cr_assert_eq(f.nr_lines, 0u);
    cr_assert_eq(info.leaked_pages, 0u);
    cr_assert_gt(info.free_pages, 0u);
    cr_assert_eq(info.entries, f.entries);
    cr_assert_gt(f.entries, 3000u);
    file_remove(&f);
}

Test(pages, volume_without_records_is_sound)
{
    struct store_error error;
    struct lmdb *l;
    struct file f;

    file_new(&f);
    cr_assert_eq(lmdb_create(f.path, MIN_CAPACITY, &l, &error), 0);
    lmdb_close(l);
    struct pages_info info = walk(&f);
    cr_assert_eq(info.damage, 0u, "%s", f.lines[0]);
    cr_assert_eq(f.entries, 0u);
    file_remove(&f);
}

static void count_type(void *ctx, const struct pages_entry *e)
{
    uint64_t *counts = ctx;

    counts[e->key[0]]++;
}

Test(pages, scan_gives_the_wanted_types_only)
{
    struct pages_ops ops = { .entry = count_type };
    uint64_t all[256] = { 0 }, some[256] = { 0 };
    struct pages_info info;
    struct file f;

    volume_new(&f);
    cr_assert_eq(pages_check(f.fd, &ops, all, &info), 0);
    cr_assert_eq(pages_scan(f.fd, 'C', 'X', &ops, some), 0);
    cr_assert_eq(some['X'], all['X']);
    cr_assert_eq(some['B'] + some['i'], 0u);
    cr_assert_eq(pages_scan(f.fd, 'i', 'i', &ops, some), 0);
    cr_assert_eq(some['i'], all['i']);
    file_remove(&f);
}

/* ---- no volume at all ------------------------------------------------------------------------ */

Test(pages, empty_file_is_reported)
{
    struct file f;
    file_new(&f);
    expect_line(&f, "end of file");
    file_remove(&f);
}

Test(pages, file_of_one_page_is_reported)
{
    struct file f;
    volume_new(&f);
    cr_assert_eq(ftruncate(f.fd, PAGE), 0);
    expect_line(&f, "page 1: cannot be read");
    file_remove(&f);
}

Test(pages, zeros_and_garbage_are_reported)
{
    unsigned seed = 1; /* any will do */
    uint8_t page[PAGE];
    struct file f;

    file_new(&f);
    cr_assert_eq(ftruncate(f.fd, 1 << 20), 0);
    expect_line(&f, "is not LMDB");
    srand(seed);
    for (unsigned at = 0; at < 64; at++) {
        for (unsigned i = 0; i < PAGE; i++)
            page[i] = (uint8_t)rand();
        put_bytes(&f, at * PAGE, page, PAGE);
    }
    expect_line(&f, "is not LMDB");
    file_remove(&f);
}

Test(pages, cut_off_file_is_reported)
{
    struct stat st;
    struct file f;

    volume_new(&f);
    cr_assert_eq(fstat(f.fd, &st), 0);
    cr_assert_eq(ftruncate(f.fd, st.st_size / 2), 0);
    expect_line(&f, "cut off");
    file_remove(&f);
}

/* ---- one wrong thing ------------------------------------------------------------------------- */

enum place { AT_META, AT_ROOT, AT_LEAF };

static const struct damage {
    const char *name;
    enum place place;
    unsigned offset, bytes;
    uint64_t value;
    const char *line;
} damages[] = {
    { "magic", AT_META, 0, 4, 0xBEEFC0DF, "magic" },
    { "version", AT_META, 4, 4, 2, "version 2" },
    { "map size", AT_META, 16, 8, 8192, "a map of 8192 bytes" },
    { "page size", AT_META, 24, 4, 8192, "pages of 8192 bytes" },
    { "tree flags", AT_META, 72 + 4, 2, 4, "tree flags" },
    { "depth", AT_META, 72 + 6, 2, 33, "depth 33" },
    { "less depth", AT_META, 72 + 6, 2, 1, "expected 0x2 (leaf)" },
    { "branch pages", AT_META, 72 + 8, 8, 999, "counts 999 branch pages" },
    { "leaf pages", AT_META, 72 + 16, 8, 999, "counts 999 leaf pages" },
    { "overflow pages", AT_META, 72 + 24, 8, 9999, "counts 9999 overflow pages" },
    { "entries", AT_META, 72 + 32, 8, 12, "main tree: the meta page counts 12 entries" },
    { "root is a meta", AT_META, 72 + 40, 8, 1, "page 1: named by meta 0" },
    { "root beyond the end", AT_META, 72 + 40, 8, 1u << 30, "but outside" },
    { "free entries", AT_META, 24 + 32, 8, 99, "free tree: the meta page counts 99 entries" },
    { "last page", AT_META, 120, 8, UINT64_MAX, "the last page cannot be" },
    { "huge last page", AT_META, 120, 8, UINT64_C(1) << 33, "cut off" },
    { "transaction", AT_META, 128, 8, 1000, "not neighbours" },
    { "transaction's slot", AT_META, 128, 8, 1001, "belongs to the other one" },
    { "page number", AT_LEAF, 0, 8, 5, "its header says 5" },
    { "page flags", AT_LEAF, 10, 2, 4, "flags are 0x4, expected 0x2" },
    { "dirty", AT_LEAF, 10, 2, 0x12, "flags are 0x12" },
    { "lower bound", AT_LEAF, 12, 2, 17, "bounds 17" },
    { "lower bound is none", AT_LEAF, 12, 2, 0, "bounds 0" },
    { "no keys", AT_LEAF, 12, 2, 16, "has 0 keys" },
    { "upper bound", AT_LEAF, 14, 2, 4098, "make no sense" },
    { "a little upper", AT_LEAF, 14, 2, 4000, "off limits" },
    { "node offset", AT_LEAF, 16, 2, 4094, "off limits" },
    { "odd node offset", AT_LEAF, 16, 2, 3001, "off limits" },
    { "one branch key", AT_ROOT, 12, 2, 18, "has 1 keys" },
};

Test(pages, each_wrong_field_is_named)
{
    for (size_t i = 0; i < sizeof damages / sizeof damages[0]; i++) {
        const struct damage *d = &damages[i];
        struct file f;
        volume_new(&f);
        uint64_t at = d->place == AT_META   ? meta_at(&f)
                      : d->place == AT_ROOT ? root_at(&f)
                                            : leaf_at(&f, 1);
        put_bytes(&f, at + d->offset, &d->value, d->bytes);
        struct pages_info info = walk(&f);
        bool found = false;
        for (unsigned n = 0; n < f.nr_lines; n++)
            found = found || strstr(f.lines[n], d->line) != NULL;
        cr_expect(info.damage > 0 && found, "%s: %s", d->name, f.lines[0]);
        file_remove(&f);
    }
}

Test(pages, two_nodes_at_one_place_overlap)
{
    struct file f;
    volume_new(&f);
    uint64_t leaf = leaf_at(&f, 1);
    put16(&f, leaf + 18, get16(&f, leaf + 16));
    expect_line(&f, "overlaps");
    file_remove(&f);
}

Test(pages, swapped_nodes_are_out_of_order)
{
    struct file f;
    volume_new(&f);
    uint64_t leaf = leaf_at(&f, 1);
    uint16_t a = get16(&f, leaf + 16), b = get16(&f, leaf + 18);
    put16(&f, leaf + 16, b);
    put16(&f, leaf + 18, a);
    expect_line(&f, "not above");
    file_remove(&f);
}

Test(pages, loop_from_leaf_level_to_root_is_found)
{
    struct file f;
    volume_new(&f);
    uint64_t root = root_at(&f), node = root + get16(&f, root + 16);
    put16(&f, node, (uint16_t)(root / PAGE)); /* child 0 is the root itself */
    expect_line(&f, "named a second time");
    file_remove(&f);
}

Test(pages, child_named_twice_is_found)
{
    struct file f;
    volume_new(&f);
    uint64_t root = root_at(&f), a = root + get16(&f, root + 16), b = root + get16(&f, root + 18);
    put16(&f, a, get16(&f, b));
    put16(&f, a + 2, get16(&f, b + 2));
    expect_line(&f, "named a second time");
    file_remove(&f);
}

Test(pages, children_swapped_break_the_separators)
{
    struct file f;
    volume_new(&f);
    uint64_t root = root_at(&f), a = root + get16(&f, root + 16), b = root + get16(&f, root + 18);
    uint16_t child = get16(&f, a);
    put16(&f, a, get16(&f, b));
    put16(&f, b, child);
    expect_line(&f, "belongs to the next page");
    file_remove(&f);
}

Test(pages, used_page_on_the_free_list_is_found)
{
    struct file f;
    volume_new(&f);
    uint64_t at = get64(&f, meta_at(&f) + 24 + 40) * PAGE; /* root of the free tree, a leaf */
    cr_assert_eq(get16(&f, at + 10), 2);
    uint64_t node = at + get16(&f, at + 16);
    cr_assert_gt(get64(&f, node + 16), 0u);
    uint64_t number = get64(&f, node + 24); /* behind header 8, key 8, count 8 */
    put64(&f, node + 24, root_at(&f) / PAGE);
    struct pages_info info = walk(&f);
    cr_assert_gt(info.damage, 0u);
    put64(&f, node + 24, number);
    put64(&f, node + 16, 1u << 20);
    expect_line(&f, "its count does not fit");
    file_remove(&f);
}

Test(pages, any_page_overwritten_is_survived)
{
    struct stat st;
    struct file f;

    volume_new(&f);
    cr_assert_eq(fstat(f.fd, &st), 0);
    for (uint64_t at = 0; at < (uint64_t)st.st_size; at += PAGE) {
        uint8_t before[PAGE], ones[PAGE];
        memset(ones, 0xFF, sizeof ones);
        cr_assert_eq(pread(f.fd, before, PAGE, (off_t)at), (ssize_t)PAGE);
        put_bytes(&f, at, ones, PAGE);
        (void)walk(&f);
        put_bytes(&f, at, before, PAGE);
    }
    cr_assert_eq(walk(&f).damage, 0u);
    file_remove(&f);
}
