/* Blocks written where a trim has passed already, and a crash before the trim is done; a trim that meets damage. */
#include <criterion/criterion.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "store/store.h"

#define OBJECT 7u
#define BLOCKS 2000u /* several steps of a trim */

static char home[64], volume[80], copy[80];
static struct store *s;

static void open_at(const char *path)
{
    struct store_error error = { "" };
    struct store_options o = { .txn_bytes = 0 };
    cr_assert_eq(store_open(path, &o, &s, &error), 0, "%s", error.text);
}

static void set_up(void)
{
    struct store_error error = { "" };
    struct store_format f = { .capacity = 0 };
    strcpy(home, "/tmp/folio-trim.XXXXXX");
    cr_assert_not_null(mkdtemp(home));
    snprintf(volume, sizeof volume, "%s/v", home);
    snprintf(copy, sizeof copy, "%s/copy", home);
    cr_assert_eq(store_format(volume, &f, &error), 0, "%s", error.text);
    open_at(volume);
}

static void tear_down(void)
{
    cr_assert_eq(store_close(s), 0);
    unlink(volume);
    unlink(copy);
    cr_assert_eq(rmdir(home), 0);
}

static void end(struct bio *bio)
{
    *(int *)bio->private = bio->error;
}

static int transfer_of(uint64_t object, enum bio_op op, uint32_t index, void *data, uint16_t *flags)
{
    int error = 1;
    struct bio *bio = bio_alloc(op, object, 1);
    bio_add(bio, index, data, NULL)->flags = *flags;
    bio->end_io = end;
    bio->private = &error;
    submit_bio(store_device(s), bio);
    *flags = bio->vecs[0].flags;
    bio_free(bio);
    return error;
}

static uint32_t transfer(enum bio_op op, uint32_t index, void *data, uint16_t flags)
{
    cr_assert_eq(transfer_of(OBJECT, op, index, data, &flags), 0);
    return flags;
}

static int write_block_of(uint64_t object, uint32_t index, uint8_t byte)
{
    static uint8_t buf[BLOCK_SIZE];
    memset(buf, byte, sizeof buf);
    bool new = store_block_exists(s, object, index) == 0;
    uint16_t flags = new ? BV_NEW : 0;
    cr_assert_eq(store_reserve(s, 1, new), 0);
    return transfer_of(object, BIO_WRITE, index, buf, &flags);
}

static void write_block(uint32_t index, uint8_t byte)
{
    cr_assert_eq(write_block_of(OBJECT, index, byte), 0);
}

static uint8_t read_block(uint32_t index)
{
    static uint8_t buf[BLOCK_SIZE];
    return transfer(BIO_READ, index, buf, 0) & BV_HOLE ? 0 : buf[0];
}

/* The volume as a crash right now would leave it, opened and its trims carried out. */
static struct store *crash(void)
{
    char command[256];
    struct store *live = s;
    snprintf(command, sizeof command, "cp --sparse=always %s %s", volume, copy);
    cr_assert_eq(system(command), 0);
    open_at(copy);
    while (store_step(s, 1000000) == 0)
        ;
    return live;
}

static void trim_of(uint64_t object, uint64_t from, uint64_t to)
{
    struct update u;
    update_init(&u, s);
    update_trim(&u, object, from, to);
    cr_assert_eq(update_apply(&u, UPDATE_FREES, NULL), 0);
}

static void trim_from(uint64_t from)
{
    trim_of(OBJECT, from, (uint64_t)1 << 32);
}

Test(store_trim, what_is_written_behind_an_unfinished_trim_survives_a_crash, .timeout = 60)
{
    set_up();
    for (uint32_t i = 0; i < BLOCKS; i++)
        write_block(i, 1);
    cr_assert_eq(store_commit(s, store_tid(s)), 0);
    trim_from(1); /* does its first step */
    write_block(1, 2);
    write_block(300, 3);
    cr_assert_eq(store_commit(s, store_tid(s)), 0);
    struct store *live = crash();
    cr_expect_eq(read_block(0), 1);
    cr_expect_eq(read_block(1), 2, "block 1 was committed, and reads as %u", read_block(1));
    cr_expect_eq(read_block(300), 3, "block 300 was committed, and reads as %u", read_block(300));
    cr_expect_eq(read_block(2), 0);
    cr_expect_eq(read_block(BLOCKS - 1), 0);
    uint64_t blocks;
    cr_assert_eq(store_count_blocks(s, OBJECT, &blocks), 0);
    cr_expect_eq(blocks, 3, "%u blocks", (unsigned)blocks);
    cr_assert_eq(store_close(s), 0);
    s = live;
    tear_down();
}

Test(store_trim, two_trims_of_one_range_leave_nothing_and_no_record, .timeout = 60)
{
    set_up();
    for (uint32_t i = 0; i < BLOCKS; i++)
        write_block(i, 1);
    trim_from(10);
    trim_from(10);
    trim_from(700);
    write_block(11, 4);
    cr_assert_eq(store_commit(s, store_tid(s)), 0);
    struct store *live = crash();
    cr_expect_eq(read_block(11), 4);
    uint64_t blocks;
    cr_assert_eq(store_count_blocks(s, OBJECT, &blocks), 0);
    cr_expect_eq(blocks, 11, "%u blocks", (unsigned)blocks);
    struct key key = { .len = 1, .bytes = { KEY_TRIM } };
    uint8_t nothing[1];
    cr_expect_lt(store_next(s, &key, 1, nothing, sizeof nothing), 0);
    cr_assert_eq(store_close(s), 0);
    s = live;
    tear_down();
}

/* Most trims are of other objects; of the bio's own, each hides its part and nothing else. */
Test(store_trim, a_read_over_several_pending_trims_has_holes_where_they_are, .timeout = 60)
{
    static uint8_t data[40][BLOCK_SIZE];
    struct update u;
    int error = 1;
    set_up();
    for (uint32_t i = 0; i < 40; i++)
        write_block(i, 1);
    update_init(&u, s);
    for (uint64_t object = 100; object < 1100; object++)
        update_trim(&u, object, 0, 40);
    update_trim(&u, OBJECT, 0, 3);
    update_trim(&u, OBJECT, 10, 20);
    update_trim(&u, OBJECT, 15, 22);
    update_trim(&u, OBJECT, 39, (uint64_t)1 << 32);
    cr_assert_eq(update_apply(&u, UPDATE_FREES, NULL), 0);
    struct store_stats stats;
    store_stats(s, &stats);
    cr_assert_gt(stats.pending_trims, 900, "%u", (unsigned)stats.pending_trims);
    struct bio *bio = bio_alloc(BIO_READ, OBJECT, 40);
    for (uint32_t i = 0; i < 40; i++)
        bio_add(bio, i, data[i], NULL);
    bio->end_io = end;
    bio->private = &error;
    submit_bio(store_device(s), bio);
    cr_assert_eq(error, 0);
    for (uint32_t i = 0; i < 40; i++) {
        bool hole = i < 3 || (i >= 10 && i < 22) || i == 39;
        cr_expect_eq((bio->vecs[i].flags & BV_HOLE) != 0, hole, "block %u", i);
        cr_expect_eq(data[i][BLOCK_SIZE - 1], hole ? 0 : 1, "block %u", i);
        cr_expect_eq(store_block_exists(s, OBJECT, i), !hole, "block %u", i);
    }
    bio_free(bio);
    uint64_t at;
    cr_expect(store_seek_block(s, OBJECT, 0, 40, true, &at) == 0 && at == 3);
    cr_expect(store_seek_block(s, OBJECT, 3, 40, false, &at) == 0 && at == 10);
    cr_expect(store_seek_block(s, OBJECT, 10, 40, true, &at) == 0 && at == 22);
    cr_expect(store_seek_block(s, OBJECT, 39, 40, true, &at) == 0 && at == 40);
    tear_down();
}

/* ---- damage ---------------------------------------------------------------------------------- */

/* Turn a bit in the check of every key of the block that the volume has, stale pages' too; it is closed. */
static void damage_key(uint64_t object, uint32_t index)
{
    uint8_t prefix[13] = { KEY_BLOCK };
    for (int i = 0; i < 8; i++)
        prefix[1 + i] = (uint8_t)(object >> (56 - 8 * i));
    for (int i = 0; i < 4; i++)
        prefix[9 + i] = (uint8_t)(index >> (24 - 8 * i));
    int fd = open(volume, O_RDWR);
    off_t size = lseek(fd, 0, SEEK_END);
    uint8_t *image = malloc((size_t)size);
    unsigned nr = 0;
    cr_assert(size > 0 && pread(fd, image, (size_t)size, 0) == size);
    for (off_t at = 0; at + 38 <= size; at++) {
        if (memcmp(image + at, prefix, sizeof prefix) != 0)
            continue;
        image[at + 37] ^= 1;
        cr_assert_eq(pwrite(fd, image + at + 37, 1, at + 37), 1);
        nr++;
    }
    cr_assert_gt(nr, 0u);
    free(image);
    close(fd);
}

static uint64_t blocks_of(uint64_t object)
{
    uint64_t blocks;
    cr_assert_eq(store_count_blocks(s, object, &blocks), 0);
    return blocks;
}

static void trim_all(void)
{
    unsigned steps = 0;
    while (store_step(s, 1000000) == 0)
        cr_assert_lt(++steps, 100u, "it is tried for ever");
}

static void reopen(void)
{
    cr_assert_eq(store_close(s), 0);
    open_at(volume);
}

/* Three objects to be deleted, one of them damaged, whichever comes first: that one alone stays. And who writes
 * into what it still covers is told, but beside it goes on. */
Test(store_trim, a_damaged_key_stops_no_other_trim, .timeout = 60)
{
    set_up();
    for (uint64_t object = OBJECT; object < OBJECT + 3; object++)
        for (uint32_t i = 0; i < BLOCKS; i++)
            cr_assert_eq(write_block_of(object, i, 1), 0);
    cr_assert_eq(store_close(s), 0);
    damage_key(OBJECT + 1, 100);
    open_at(volume);
    for (uint64_t object = OBJECT; object < OBJECT + 3; object++)
        trim_of(object, 0, BLOCKS);
    trim_of(OBJECT + 1, BLOCKS - 3, BLOCKS);
    reopen();
    trim_all();
    cr_expect_eq(blocks_of(OBJECT), 0, "%u blocks are left", (unsigned)blocks_of(OBJECT));
    cr_expect_eq(blocks_of(OBJECT + 1), BLOCKS - 3);
    cr_expect_eq(blocks_of(OBJECT + 2), 0, "%u blocks are left", (unsigned)blocks_of(OBJECT + 2));
    cr_expect_eq(write_block_of(OBJECT + 1, 100, 2), -EIO);
    cr_expect_eq(write_block_of(OBJECT + 1, BLOCKS, 2), 0);
    struct store_stats stats;
    store_stats(s, &stats);
    cr_expect_eq(stats.pending_trims, 1);
    trim_of(OBJECT, 0, BLOCKS);
    trim_all();
    store_stats(s, &stats);
    cr_expect_eq(stats.pending_trims, 1, "a new one waits behind it");
    tear_down();
}
