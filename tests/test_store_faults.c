/* A store that fails when it is told to (store_faults). */
#include <criterion/criterion.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "store/dev_fault.h"
#include "store/store.h"

#define OBJECT 77u

static char dir[] = "/tmp/folio-faults.XXXXXX", path[64];
static struct store *s;
static uint8_t data[BLOCK_SIZE];

static void open_store(void)
{
    struct store_error error = { "" };
    struct store_options o = { .inject = true };
    cr_assert_eq(store_open(path, &o, &s, &error), 0, "%s", error.text);
    cr_assert_not_null(store_faults(s));
    cr_assert_eq(store_device(s), store_faults(s));
}

static void start(void)
{
    struct store_error error = { "" };
    struct store_format f = { .capacity = 64 << 20 };
    cr_assert_not_null(mkdtemp(dir));
    snprintf(path, sizeof path, "%s/v", dir);
    cr_assert_eq(store_format(path, &f, &error), 0, "%s", error.text);
    open_store();
}

static void finish(void)
{
    cr_assert_eq(store_close(s), 0);
    unlink(path);
    rmdir(dir);
}

static void end(struct bio *bio)
{
    *(int *)bio->private = bio->error;
}

static int do_block(enum bio_op op, uint32_t index, uint16_t flags)
{
    int error = 1;
    struct bio *bio = bio_alloc(op, OBJECT, 1);
    bio_add(bio, index, data, NULL)->flags = flags;
    bio->end_io = end;
    bio->private = &error;
    submit_bio(store_device(s), bio);
    bio_free(bio);
    return error;
}

/* As the cache does it: room is promised first. */
static int write_block(uint32_t index, int byte, bool fresh)
{
    memset(data, byte, sizeof data);
    cr_assert_eq(store_reserve(s, 1, fresh), 0);
    return do_block(BIO_WRITE, index, fresh ? BV_NEW : 0);
}

static int read_block(uint32_t index)
{
    int err = do_block(BIO_READ, index, 0);
    return err != 0 ? err : data[0];
}

static uint64_t used(void)
{
    struct store_space space;
    store_space(s, &space);
    return space.used;
}

static void inject(struct fault_rule r)
{
    r.last = UINT32_MAX;
    cr_assert_eq(dev_fault_add(store_faults(s), &r), 0);
}

Test(store_faults, a_commit_that_fails_keeps_its_transaction, .init = start, .fini = finish)
{
    cr_assert_eq(write_block(3, 5, true), 0);
    inject((struct fault_rule){ .kind = FAULT_EIO, .commits = true, .count = 2 });
    cr_assert_eq(store_commit(s, store_tid(s)), -EIO);
    cr_assert_eq(store_error_seq(s), 1);
    cr_assert_eq(read_block(3), 5);
    cr_assert_eq(write_block(3, 6, false), 0);
    cr_assert_eq(store_commit(s, store_tid(s)), -EIO);
    cr_assert_eq(dev_fault_hits(store_faults(s)), 2);
    cr_assert_eq(store_commit(s, store_tid(s)), 0);
    cr_assert_eq(store_close(s), 0);
    open_store();
    cr_assert_eq(read_block(3), 6);
}

Test(store_faults, a_lost_write_leaves_the_block_and_the_books_as_they_were, .init = start,
     .fini = finish)
{
    cr_assert_eq(write_block(0, 1, true), 0);
    cr_assert_eq(store_commit(s, store_tid(s)), 0);
    uint64_t before = used(), blocks;
    inject((struct fault_rule){ .kind = FAULT_LOST, .writes = true });
    for (int i = 0; i < 1000; i++)
        cr_assert_eq(write_block(0, 2, false), 0);
    cr_assert_eq(used(), before, "%llu, not %llu: promises are left", (unsigned long long)used(),
                 (unsigned long long)before);
    cr_assert_eq(read_block(0), 1);
    cr_assert_eq(write_block(1, 2, true), 0); /* a new block: it is there, without its bytes */
    cr_assert_eq(read_block(1), 0);
    cr_assert_eq(store_block_exists(s, OBJECT, 1), 1);
    cr_assert(store_count_blocks(s, OBJECT, &blocks) == 0 && blocks == 2);
    dev_fault_clear(store_faults(s));
    cr_assert_eq(write_block(0, 3, false), 0);
    cr_assert_eq(read_block(0), 3);
}

Test(store_faults, a_rule_follows_its_object_and_counts, .init = start, .fini = finish)
{
    struct fault_state states[FAULT_RULES_MAX];
    inject((struct fault_rule){
        .kind = FAULT_ENOSPC, .writes = true, .object = OBJECT + 1, .label = 9, .after = 1 });
    cr_assert_eq(write_block(0, 1, true), 0);
    dev_fault_follow(store_faults(s), OBJECT + 1, OBJECT);
    cr_assert_eq(write_block(0, 2, false), 0);
    cr_assert_eq(write_block(0, 3, false), -ENOSPC);
    store_unreserve(s, 1, 0);
    cr_assert_eq(dev_fault_list(store_faults(s), states), 1);
    cr_assert(states[0].seen == 2 && states[0].hit == 1 && states[0].rule.label == 9);
    dev_fault_clear(store_faults(s));
    cr_assert_eq(dev_fault_list(store_faults(s), states), 0);
    cr_assert_eq(read_block(0), 2);
}
