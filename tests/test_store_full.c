/* A disk that is full, or fails for a while, under the volume: played by the limit of a file's size. */
#include <criterion/criterion.h>
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include "store/store.h"

static char home[64], volume[80];
static struct store *s;

static void set_up(uint64_t txn_bytes)
{
    struct store_error error = { "" };
    struct store_format f = { .capacity = (uint64_t)1 << 30 };
    struct store_options o = { .txn_bytes = txn_bytes };
    signal(SIGXFSZ, SIG_IGN);
    strcpy(home,
           access("/dev/shm", W_OK) == 0 ? "/dev/shm/folio-full.XXXXXX" : "/tmp/folio-full.XXXXXX");
    cr_assert_not_null(mkdtemp(home));
    snprintf(volume, sizeof volume, "%s/v", home);
    cr_assert_eq(store_format(volume, &f, &error), 0, "%s", error.text);
    cr_assert_eq(store_open(volume, &o, &s, &error), 0, "%s", error.text);
}

static void tear_down(void)
{
    cr_expect_eq(store_close(s), 0);
    unlink(volume);
    rmdir(home);
}

static void limit_disk(rlim_t bytes)
{
    struct rlimit limit;
    getrlimit(RLIMIT_FSIZE, &limit);
    limit.rlim_cur = bytes;
    cr_assert_eq(setrlimit(RLIMIT_FSIZE, &limit), 0);
}

/* Names far apart from each other: every one on another leaf. */
static void name_key(struct key *k, uint32_t i)
{
    char name[40];
    int n = snprintf(name, sizeof name, "%08x%08x", i * 2654435761u, i);
    key_dirent(k, 1000, name, (size_t)n);
}

static int put(uint32_t i)
{
    static uint8_t value[200];
    struct update u;
    struct key k;
    update_init(&u, s);
    name_key(&k, i);
    update_put(&u, &k, value, sizeof value);
    return update_apply(&u, 0, NULL);
}

static int del(uint32_t i)
{
    struct update u;
    struct key k;
    update_init(&u, s);
    name_key(&k, i);
    update_del(&u, &k);
    return update_apply(&u, UPDATE_FREES, NULL);
}

static bool is_read_only(void)
{
    struct store_stats stats;
    store_stats(s, &stats);
    return stats.read_only;
}

Test(store_full, deleting_much_on_a_full_disk_can_be_committed, .timeout = 120)
{
    uint32_t n = 0;
    int err;
    set_up(0);
    limit_disk(16 << 20); /* the log takes a half of it */
    while ((err = put(n)) == 0)
        n++;
    cr_assert_eq(err, -ENOSPC);
    cr_assert_eq(store_commit(s, store_tid(s)), 0);
    for (uint32_t i = 1; i < n; i++) /* all but the first, which makes the leaves merge */
        cr_assert_eq(del(i), 0);
    err = store_commit(s, store_tid(s));
    cr_expect_eq(err, 0, "the commit says %d", err);
    /* What one commit frees the third after it takes again; that is not ours to know. */
    cr_expect_eq(del(0), 0);
    cr_expect_eq(put(0), 0, "there is no room again");
    limit_disk(RLIM_INFINITY);
    tear_down();
}

Test(store_full, many_impatient_commits_in_a_moment_of_failure_do_not_end_writing, .timeout = 120)
{
    set_up(0);
    cr_assert_eq(put(1), 0);
    limit_disk(0);
    for (unsigned i = 0; i < 40; i++)
        cr_expect_neq(store_commit(s, store_tid(s)), 0);
    cr_expect_not(is_read_only());
    limit_disk(RLIM_INFINITY);
    cr_expect_eq(store_commit(s, store_tid(s)), 0);
    cr_expect_eq(put(2), 0);
    tear_down();
}

Test(store_full, deleting_is_not_refused_while_a_commit_fails, .timeout = 120)
{
    uint32_t n = 0;
    set_up(2 << 20);
    cr_assert_eq(put(n++), 0);
    limit_disk(0);
    cr_expect_neq(store_commit(s, store_tid(s)), 0);
    struct update u;
    struct key k;
    for (;; n++) { /* until running is full */
        static uint8_t value[60000];
        update_init(&u, s);
        name_key(&k, n);
        update_put(&u, &k, value, sizeof value);
        if (update_apply(&u, UPDATE_FREES, NULL) != 0 || n > 40)
            break;
    }
    cr_expect_eq(del(0), 0);
    cr_expect_not(is_read_only());
    limit_disk(RLIM_INFINITY);
    tear_down();
}

/* ---- promises -------------------------------------------------------------------------------- */

#define OBJECT 7u
#define BLOCKS 16384u /* 64 MiB: several transactions */
#define STRIDE (BLOCKS / BIO_MAX_VECS)

static void no_end(struct bio *bio)
{
    (void)bio;
}

/* Write 256 blocks, step apart: with a step every leaf of the tree is touched. */
static int write_blocks(uint32_t from, uint32_t step, uint16_t flags)
{
    static uint8_t data[BLOCK_SIZE];
    struct bio *bio = bio_alloc(BIO_WRITE, OBJECT, BIO_MAX_VECS);
    for (uint32_t i = 0; i < BIO_MAX_VECS; i++)
        bio_add(bio, from + i * step, data, NULL)->flags = flags;
    bio->end_io = no_end;
    submit_bio(store_device(s), bio);
    int err = bio->error;
    bio_free(bio);
    return err;
}

static void fill_blocks(void)
{
    for (uint32_t i = 0; i < BLOCKS; i += BIO_MAX_VECS) {
        cr_assert_eq(store_reserve(s, BIO_MAX_VECS, BIO_MAX_VECS), 0);
        cr_assert_eq(write_blocks(i, 1, BV_NEW), 0);
    }
    cr_assert_eq(store_commit(s, store_tid(s)), 0);
}

static off_t volume_bytes(void)
{
    struct stat st;
    cr_assert_eq(stat(volume, &st), 0);
    return st.st_size;
}

Test(store_full, what_is_promised_is_written_though_the_disk_is_full, .timeout = 120)
{
    struct store_stats stats;
    set_up(0);
    fill_blocks();
    cr_assert_eq(store_reserve(s, BLOCKS + 8 * BIO_MAX_VECS, 8 * BIO_MAX_VECS), 0);
    store_step(s, 0); /* gives back nothing of it */
    limit_disk((rlim_t)volume_bytes());
    for (uint32_t i = 0; i < STRIDE; i++)
        cr_assert_eq(write_blocks(i, STRIDE, 0), 0, "overwriting, bio %u", i);
    for (uint32_t i = 0; i < 8; i++)
        cr_assert_eq(write_blocks((1u << 20) + i, 4096, BV_NEW), 0, "new blocks, bio %u", i);
    cr_assert_eq(store_commit(s, store_tid(s)), 0);
    store_stats(s, &stats);
    cr_expect_eq(stats.commit_errors, 0);
    limit_disk(RLIM_INFINITY);
    tear_down();
}

Test(store_full, what_was_promised_in_vain_is_given_back_when_nothing_is_left_to_do, .timeout = 120)
{
    set_up(0);
    fill_blocks();
    store_step(s, 0);
    off_t before = volume_bytes();
    cr_assert_eq(store_reserve(s, BLOCKS, BLOCKS), 0);
    cr_expect_geq(volume_bytes(), before + (off_t)(BLOCKS - 2048) * BLOCK_SIZE);
    store_unreserve(s, BLOCKS, BLOCKS);
    store_step(s, 0);
    struct store_stats stats;
    store_stats(s, &stats);
    cr_expect_leq(volume_bytes(), (off_t)stats.file_bytes + ((off_t)21 << 20));
    tear_down();
}
