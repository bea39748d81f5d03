/* Transactions beside a table that always tells the truth: records, blocks, trims, commits, reopening,
 * and what a crash leaves. */
#include <criterion/criterion.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "store/store.h"

#define NAMES   60u
#define OBJECTS 3u
#define BLOCKS  1500u

struct world {
    char dir[64], path[96], copy[96];
    struct store *s;
    unsigned seed;
    int values[NAMES];           /* -1: absent */
    int blocks[OBJECTS][BLOCKS]; /* -1: hole */
};

static uint32_t pick(struct world *w, uint32_t below)
{
    return (uint32_t)rand_r(&w->seed) % below;
}

static unsigned start_seed(void)
{
    const char *s = getenv("FOLIO_SEED");
    return s != NULL ? (unsigned)strtoul(s, NULL, 0) : 4711u;
}

static void open_at(struct world *w, const char *path)
{
    struct store_error error = { "" };
    struct store_options o = { .txn_bytes = 2 << 20 };
    cr_assert_eq(store_open(path, &o, &w->s, &error), 0, "%s", error.text);
}

static void world_open(struct world *w, uint64_t capacity, unsigned seed)
{
    struct store_error error = { "" };
    struct store_format f = { .capacity = capacity };
    memset(w, 0, sizeof *w);
    w->seed = seed;
    memset(w->values, 0xff, sizeof w->values);
    memset(w->blocks, 0xff, sizeof w->blocks);
    strcpy(w->dir, "/tmp/folio-txn.XXXXXX");
    cr_assert_not_null(mkdtemp(w->dir));
    snprintf(w->path, sizeof w->path, "%s/v", w->dir);
    snprintf(w->copy, sizeof w->copy, "%s/copy", w->dir);
    cr_assert_eq(store_format(w->path, &f, &error), 0, "%s", error.text);
    open_at(w, w->path);
}

static void world_close(struct world *w)
{
    cr_assert_eq(store_close(w->s), 0);
    unlink(w->path);
    unlink(w->copy);
    cr_assert_eq(rmdir(w->dir), 0);
}

static void name_key(struct key *k, unsigned i)
{
    char name[16];
    int n = snprintf(name, sizeof name, "name%02u", i);
    key_dirent(k, 1000, name, (size_t)n);
}

/* ---- verbs ----------------------------------------------------------------------------------- */

static void put_names(struct world *w)
{
    struct update u;
    struct key k;
    update_init(&u, w->s);
    for (unsigned n = 1 + pick(w, 4); n > 0; n--) {
        unsigned i = pick(w, NAMES);
        int value = (int)pick(w, 1000000);
        name_key(&k, i);
        if (pick(w, 3) == 0) {
            update_del(&u, &k);
            w->values[i] = -1;
        } else {
            update_put(&u, &k, &value, sizeof value);
            w->values[i] = value;
        }
    }
    cr_assert_eq(update_apply(&u, 0, NULL), 0);
}

static void end(struct bio *bio)
{
    *(int *)bio->private = bio->error;
}

static int do_bio(struct world *w, struct bio *bio)
{
    int error = 1;
    bio->end_io = end;
    bio->private = &error;
    submit_bio(store_device(w->s), bio);
    return error;
}

/* What a block of that value looks like. */
static void fill(uint8_t *buf, unsigned object, unsigned index, int value)
{
    for (size_t i = 0; i < BLOCK_SIZE / sizeof(int); i++)
        ((int *)(void *)buf)[i] = value ^ (int)(object * 1000003u + index * 257u + i);
}

static void write_blocks(struct world *w)
{
    static uint8_t buf[64][BLOCK_SIZE];
    unsigned object = pick(w, OBJECTS), index = pick(w, BLOCKS), n = 1 + pick(w, 60);
    struct bio *bio = bio_alloc(BIO_WRITE, object + 1, 64);
    for (unsigned i = 0; i < n && index < BLOCKS; i++, index += 1 + pick(w, 2)) {
        int value = (int)pick(w, 1000000);
        fill(buf[i], object, index, value);
        bool new = w->blocks[object][index] < 0;
        cr_assert_eq(store_block_exists(w->s, object + 1, index), !new);
        cr_assert_eq(store_reserve(w->s, 1, new), 0);
        bio_add(bio, index, buf[i], NULL)->flags = new ? BV_NEW : 0;
        w->blocks[object][index] = value;
    }
    cr_assert_eq(do_bio(w, bio), 0);
    bio_free(bio);
}

static void trim(struct world *w)
{
    struct update u;
    unsigned object = pick(w, OBJECTS), from = pick(w, BLOCKS), to = from + 1 + pick(w, BLOCKS);
    update_init(&u, w->s);
    update_trim(&u, object + 1, from, to);
    cr_assert_eq(update_apply(&u, UPDATE_FREES, NULL), 0);
    for (unsigned i = from; i < to && i < BLOCKS; i++)
        w->blocks[object][i] = -1;
}

static void check_names(struct world *w)
{
    struct key k;
    int value;
    for (unsigned i = 0; i < NAMES; i++) {
        name_key(&k, i);
        ssize_t n = store_get(w->s, &k, &value, sizeof value);
        if (w->values[i] < 0)
            cr_assert_eq(n, -ENOENT, "name %u: %zd", i, n);
        else
            cr_assert(n == sizeof value && value == w->values[i], "name %u", i);
    }
    key_dirent(&k, 1000, "", 0);
    size_t prefix = k.len;
    for (unsigned i = 0; i < NAMES; i++) {
        struct key expect;
        if (w->values[i] < 0)
            continue;
        name_key(&expect, i);
        cr_assert_eq(store_next(w->s, &k, prefix, &value, sizeof value), (ssize_t)sizeof value);
        cr_assert(key_compare(&k, &expect) == 0 && value == w->values[i], "scan at name %u", i);
    }
    cr_assert_eq(store_next(w->s, &k, prefix, &value, sizeof value), -ENOENT);
}

static void check_blocks(struct world *w, unsigned object)
{
    static uint8_t buf[BIO_MAX_VECS][BLOCK_SIZE], expect[BLOCK_SIZE];
    uint64_t count = 0, found;
    for (unsigned first = 0; first < BLOCKS; first += BIO_MAX_VECS) {
        struct bio *bio = bio_alloc(BIO_READ, object + 1, BIO_MAX_VECS);
        for (unsigned i = 0; i < BIO_MAX_VECS && first + i < BLOCKS; i++)
            bio_add(bio, first + i, buf[i], NULL);
        cr_assert_eq(do_bio(w, bio), 0);
        for (unsigned i = 0; i < bio->nr_vecs; i++) {
            int value = w->blocks[object][first + i];
            memset(expect, 0, sizeof expect);
            if (value >= 0)
                fill(expect, object, first + i, value);
            cr_assert_eq(memcmp(buf[i], expect, BLOCK_SIZE), 0, "block %u of %u", first + i,
                         object);
            cr_assert_eq((bio->vecs[i].flags & BV_HOLE) != 0, value < 0);
            count += value >= 0;
        }
        bio_free(bio);
    }
    unsigned from = pick(w, BLOCKS), i;
    bool data = pick(w, 2);
    for (i = from; i < BLOCKS && (w->blocks[object][i] >= 0) != data; i++)
        ;
    cr_assert_eq(store_seek_block(w->s, object + 1, from, BLOCKS, data, &found), 0);
    cr_assert_eq(found, i, "seek %s from %u: %u, not %u", data ? "data" : "hole", from,
                 (unsigned)found, i);
    while (store_step(w->s, 1000000) == 0) /* trims */
        ;
    uint64_t counted;
    cr_assert_eq(store_count_blocks(w->s, object + 1, &counted), 0);
    cr_assert_eq(counted, count, "object %u: counted %u, not %u", object, (unsigned)counted,
                 (unsigned)count);
}

static void copy_file(const char *from, const char *to)
{
    char command[256];
    snprintf(command, sizeof command, "cp --sparse=always %s %s", from, to);
    cr_assert_eq(system(command), 0);
}

/* The volume as a crash right now would leave it, opened: what was committed is there. */
static void check_crash(struct world *w)
{
    struct store *live = w->s;
    cr_assert_eq(store_commit(live, store_tid(live)), 0);
    copy_file(w->path, w->copy);
    open_at(w, w->copy);
    check_names(w);
    check_blocks(w, pick(w, OBJECTS));
    cr_assert_eq(store_close(w->s), 0);
    w->s = live;
}

static void step(struct world *w)
{
    unsigned r = pick(w, 1000);
    if (r < 500)
        put_names(w);
    else if (r < 800)
        write_blocks(w);
    else if (r < 860)
        trim(w);
    else if (r < 900)
        check_names(w);
    else if (r < 940)
        check_blocks(w, pick(w, OBJECTS));
    else if (r < 980)
        cr_assert_eq(store_commit(w->s, store_tid(w->s)), 0);
    else if (r < 985)
        check_crash(w);
    else if (r < 990) {
        cr_assert_eq(store_close(w->s), 0);
        open_at(w, w->path);
    } else
        store_step(w->s, 0);
}

Test(store_txn, behaves_like_a_table_through_commits_trims_and_reopening, .timeout = 240)
{
    for (unsigned round = 0; round < 4; round++) {
        struct world w;
        unsigned seed = start_seed() + round;
        fprintf(stderr, "seed %u\n", seed);
        world_open(&w, 0, seed);
        for (unsigned i = 0; i < 1500; i++)
            step(&w);
        check_names(&w);
        for (unsigned o = 0; o < OBJECTS; o++)
            check_blocks(&w, o);
        world_close(&w);
    }
}

Test(store_txn, a_crash_forgets_what_was_not_committed_and_nothing_else)
{
    struct world w;
    struct key k;
    int value = 5;
    world_open(&w, 0, 1);
    put_names(&w);
    cr_assert_eq(store_commit(w.s, store_tid(w.s)), 0);
    struct update u;
    update_init(&u, w.s);
    key_dirent(&k, 2000, "late", 4);
    update_put(&u, &k, &value, sizeof value);
    cr_assert_eq(update_apply(&u, 0, NULL), 0);
    copy_file(w.path, w.copy); /* not committed: not in the file */
    struct store *live = w.s;
    open_at(&w, w.copy);
    check_names(&w);
    cr_assert_eq(store_get(w.s, &k, &value, sizeof value), -ENOENT);
    store_close(w.s);
    w.s = live;
    world_close(&w);
}

Test(store_txn, an_aborted_update_changes_nothing)
{
    struct world w;
    struct update u;
    struct key k;
    world_open(&w, 0, 1);
    uint64_t tid = store_tid(w.s);
    update_init(&u, w.s);
    name_key(&k, 1);
    update_put(&u, &k, "x", 1);
    update_abort(&u);
    check_names(&w);
    cr_assert_eq(store_tid(w.s), tid);
    world_close(&w);
}

Test(store_txn, a_full_volume_says_so_at_the_promise_and_deleting_frees_it)
{
    struct world w;
    static uint8_t buf[BLOCK_SIZE];
    world_open(&w, MIN_CAPACITY * 2, 1);
    uint32_t written = 0;
    for (unsigned round = 0; round < 3; round++) {
        for (written = 0;; written++) {
            int err = store_reserve(w.s, 1, 1);
            if (err == -ENOSPC && store_commit(w.s, store_tid(w.s)) == 0)
                err = store_reserve(w.s, 1, 1);
            if (err != 0) {
                cr_assert_eq(err, -ENOSPC);
                break;
            }
            struct bio *bio = bio_alloc(BIO_WRITE, 1, 1);
            bio_add(bio, written, buf, NULL)->flags = BV_NEW;
            cr_assert_eq(do_bio(&w, bio), 0);
            bio_free(bio);
        }
        cr_assert_gt(written, MIN_CAPACITY * 2 / BLOCK_SIZE / 2);
        cr_assert_eq(store_commit(w.s, store_tid(w.s)), 0);
        struct update u;
        update_init(&u, w.s);
        update_trim(&u, 1, 0, (uint64_t)1 << 32);
        cr_assert_eq(update_apply(&u, UPDATE_FREES, NULL), 0);
        while (store_step(w.s, 0) == 0)
            ;
        cr_assert_eq(store_commit(w.s, store_tid(w.s)), 0);
    }
    struct store_space space;
    store_space(w.s, &space);
    cr_assert_lt(space.used, space.capacity / 4);
    world_close(&w);
}

Test(store_txn, numbers_are_never_given_twice_not_even_after_a_crash)
{
    struct world w;
    uint64_t last = 0, n;
    world_open(&w, 0, 1);
    for (unsigned i = 0; i < 5000; i++) {
        cr_assert_eq(store_new_number(w.s, &n), 0);
        cr_assert_gt(n, last);
        last = n;
        if (i % 1700 == 0) {
            cr_assert_eq(store_commit(w.s, store_tid(w.s)), 0);
            copy_file(w.path, w.copy);
            store_close(w.s);
            rename(w.copy, w.path);
            open_at(&w, w.path);
        }
    }
    world_close(&w);
}

/* A record too large for the buffer does not stop a scan, wherever it lies: in LMDB, in the running
 * transaction, in LMDB with its deletion pending. */
Test(store_txn, a_scan_gets_past_a_record_that_does_not_fit)
{
    static uint8_t big[5000], buf[100];
    struct world w;
    struct update u;
    struct key k, at;
    world_open(&w, 0, 1);
    update_init(&u, w.s);
    for (unsigned i = 0; i < 6; i++) {
        name_key(&k, i);
        update_put(&u, &k, big, i % 2 == 0 ? sizeof big : 10);
    }
    cr_assert_eq(update_apply(&u, 0, NULL), 0);
    cr_assert_eq(store_commit(w.s, store_tid(w.s)), 0);
    update_init(&u, w.s);
    name_key(&k, 2);
    update_del(&u, &k);
    name_key(&k, 7);
    update_put(&u, &k, big, sizeof big);
    cr_assert_eq(update_apply(&u, 0, NULL), 0);
    static const struct {
        unsigned name;
        ssize_t len;
    } expect[] = { { 0, sizeof big }, { 1, 10 }, { 3, 10 },
                   { 4, sizeof big }, { 5, 10 }, { 7, sizeof big } };
    for (unsigned keys_only = 0; keys_only < 2; keys_only++) {
        key_dirent(&at, 1000, "", 0);
        size_t prefix = at.len;
        for (unsigned i = 0; i < sizeof expect / sizeof expect[0]; i++) {
            ssize_t n = store_next(w.s, &at, prefix, keys_only ? NULL : buf, sizeof buf);
            ssize_t len =
                !keys_only && expect[i].len > (ssize_t)sizeof buf ? -ERANGE : expect[i].len;
            name_key(&k, expect[i].name);
            cr_assert_eq(n, len, "record %u: %zd", expect[i].name, n);
            cr_assert_eq(key_compare(&at, &k), 0, "record %u", expect[i].name);
            cr_assert_eq(store_get(w.s, &at, NULL, 0), expect[i].len);
        }
        cr_assert_eq(store_next(w.s, &at, prefix, buf, sizeof buf), -ENOENT);
        cr_assert_eq(key_compare(&at, &k), 0, "the key stays at the end");
    }
    world_close(&w);
}
