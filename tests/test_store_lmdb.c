/* What lmdb.h promises: records and blocks round trip; damage is -EIO where it is and nowhere else;
 * a fault or a failed assertion inside LMDB ends in -EIO, not in a crash. */
#include <sys/mount.h>
#undef BLOCK_SIZE /* the kernel's, for something else */

#include "store/lmdb.h"

#include <criterion/criterion.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <sched.h>
#include <unistd.h>

#define PAGE     4096u
#define CAPACITY ((uint64_t)64 << 20)

static char dir[] = "/tmp/test_store_lmdb.XXXXXX";
static char path[sizeof dir + 8];
static struct lmdb *db;
static struct store_error error;

/* ---- helpers --------------------------------------------------------------------------------- */

static void open_volume(void)
{
    int rc = lmdb_open(path, false, &db, &error);
    cr_assert_eq(rc, 0, "%d: %s", rc, error.text);
}

static void close_volume(void)
{
    lmdb_close(db);
    db = NULL;
}

static void reopen_volume(void)
{
    close_volume();
    open_volume();
}

static void setup(void)
{
    cr_assert_not_null(mkdtemp(dir));
    (void)snprintf(path, sizeof path, "%s/volume", dir);
    int rc = lmdb_create(path, CAPACITY, &db, &error);
    cr_assert_eq(rc, 0, "%d: %s", rc, error.text);
}

static void teardown(void)
{
    lmdb_close(db);
    (void)unlink(path);
    (void)rmdir(dir);
}

TestSuite(lmdb, .init = setup, .fini = teardown);

static void begin(void)
{
    cr_assert_eq(lmdb_begin(db), 0);
}

static void commit(void)
{
    cr_assert_eq(lmdb_commit(db), 0);
}

static void put(const struct key *key, const void *value, size_t len)
{
    cr_assert_eq(lmdb_put(db, key, value, len), 0);
}

/* A block whose bytes tell which one it is, tail included. */
static void fill_block(uint8_t *data, uint64_t object, uint32_t index, uint32_t version)
{
    for (uint32_t i = 0; i < BLOCK_SIZE; i += 16) {
        uint32_t words[4] = { (uint32_t)object, index, version, i ^ 0x5a5a5a5au };
        memcpy(data + i, words, sizeof words);
    }
}

static void put_block(uint64_t object, uint32_t index, uint32_t version)
{
    uint8_t data[BLOCK_SIZE];
    fill_block(data, object, index, version);
    cr_assert_eq(lmdb_put_block(db, object, index, data, block_crc(object, index, data)), 0);
}

static uint8_t buffers[BIO_MAX_VECS][BLOCK_SIZE];
static struct bio_vec vecs[BIO_MAX_VECS];

static void read_blocks(uint64_t object, uint32_t from, uint32_t nr)
{
    memset(vecs, 0, sizeof vecs);
    for (uint32_t i = 0; i < nr; i++) {
        vecs[i].data = buffers[i];
        vecs[i].index = from + i;
        memset(buffers[i], 0xee, BLOCK_SIZE);
    }
    lmdb_read_blocks(db, object, vecs, NULL, nr);
}

static void expect_block(const struct bio_vec *vec, uint64_t object, uint32_t version)
{
    uint8_t data[BLOCK_SIZE];
    fill_block(data, object, vec->index, version);
    cr_assert_eq(vec->error, 0, "block %u: %d", vec->index, vec->error);
    cr_assert_eq(vec->flags & BV_HOLE, 0, "block %u is a hole", vec->index);
    cr_assert_eq(memcmp(vec->data, data, BLOCK_SIZE), 0, "block %u differs", vec->index);
}

static void expect_hole(const struct bio_vec *vec)
{
    static const uint8_t zeros[BLOCK_SIZE];
    cr_assert_eq(vec->error, 0, "block %u: %d", vec->index, vec->error);
    cr_assert(vec->flags & BV_HOLE, "block %u is not a hole", vec->index);
    cr_assert_eq(memcmp(vec->data, zeros, BLOCK_SIZE), 0);
}

static uint8_t *map_file(size_t *len)
{
    struct stat st;
    int fd = open(path, O_RDWR | O_CLOEXEC);
    cr_assert_geq(fd, 0);
    cr_assert_eq(fstat(fd, &st), 0);
    *len = (size_t)st.st_size;
    uint8_t *p = mmap(NULL, *len, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    cr_assert_neq(p, MAP_FAILED);
    close(fd);
    return p;
}

/* Flip one bit of the byte at `at` in every place of the file where the bytes occur.
 * Returns in how many. */
static unsigned damage(const void *bytes, size_t len, size_t at)
{
    size_t file_len;
    unsigned nr = 0;
    uint8_t *file = map_file(&file_len), *p = file;
    while ((p = memmem(p, file_len - (size_t)(p - file), bytes, len)) != NULL) {
        p[at] ^= 0x10;
        nr++;
        p += len;
    }
    munmap(file, file_len);
    return nr;
}

/* ---- records --------------------------------------------------------------------------------- */

Test(lmdb, records_of_every_size_come_back)
{
    static const size_t sizes[] = { 0,    1,    2,    109,  1000, 2000,  2030,  2040,
                                    2041, 4075, 4076, 4091, 8200, 65520, 65535, VALUE_MAX };
    static uint8_t value[VALUE_MAX], got[VALUE_MAX];
    struct key k;
    for (int pass = 0; pass < 2; pass++) {
        begin();
        for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
            key_inode(&k, i);
            memset(value, (int)(i + 1) * (pass + 1), sizes[i]);
            put(&k, value, sizes[i]);
        }
        commit();
        for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
            key_inode(&k, i);
            memset(value, (int)(i + 1) * (pass + 1), sizes[i]);
            cr_assert_eq(lmdb_get(db, &k, got, sizeof got), (ssize_t)sizes[i], "size %zu",
                         sizes[i]);
            cr_assert_eq(memcmp(got, value, sizes[i]), 0);
        }
        reopen_volume();
    }
}

Test(lmdb, get_of_a_larger_value_is_erange_and_of_none_enoent)
{
    struct key k;
    char buf[8];
    key_inode(&k, 5);
    cr_assert_eq(lmdb_get(db, &k, buf, sizeof buf), -ENOENT);
    begin();
    put(&k, "123456789", 9);
    commit();
    cr_assert_eq(lmdb_get(db, &k, buf, sizeof buf), -ERANGE);
    for (uint64_t ino = 4; ino <= 6; ino += 2) {
        key_inode(&k, ino);
        cr_assert_eq(lmdb_get(db, &k, buf, sizeof buf), -ENOENT);
    }
}

Test(lmdb, del_removes_and_of_none_is_no_error)
{
    struct key k;
    char buf[8];
    key_inode(&k, 5);
    begin();
    put(&k, "abc", 3);
    commit();
    begin();
    cr_assert_eq(lmdb_del(db, &k), 0);
    cr_assert_eq(lmdb_del(db, &k), 0);
    commit();
    cr_assert_eq(lmdb_get(db, &k, buf, sizeof buf), -ENOENT);
}

Test(lmdb, what_is_not_committed_is_not_seen)
{
    struct key k;
    char buf[8];
    key_inode(&k, 5);
    begin();
    put(&k, "abc", 3);
    cr_assert_eq(lmdb_get(db, &k, buf, sizeof buf), -ENOENT);
    lmdb_abort(db);
    lmdb_abort(db);
    cr_assert_eq(lmdb_get(db, &k, buf, sizeof buf), -ENOENT);
    begin();
    put(&k, "abc", 3);
    lmdb_close(db);
    open_volume();
    cr_assert_eq(lmdb_get(db, &k, buf, sizeof buf), -ENOENT);
}

Test(lmdb, next_walks_one_prefix_in_order)
{
    struct key k;
    char name[16], buf[16];
    begin();
    for (uint64_t d = 1; d <= 3; d++) {
        for (unsigned i = 0; i < 500; i += 5) {
            (void)snprintf(name, sizeof name, "%04u", i);
            key_dirent(&k, d, name, 4);
            put(&k, name, 5);
        }
    }
    put_block(2, 7, 1);
    commit();
    key_dirent(&k, 2, "", 0);
    size_t prefix = k.len;
    for (unsigned i = 0; i < 500; i += 5) {
        (void)snprintf(name, sizeof name, "%04u", i);
        cr_assert_eq(lmdb_next(db, &k, prefix, buf, sizeof buf), 5);
        cr_assert_str_eq(buf, name);
        cr_assert_eq(k.len, prefix + 4);
        cr_assert_eq(memcmp(k.bytes + prefix, name, 4), 0);
    }
    struct key last = k;
    cr_assert_eq(lmdb_next(db, &k, prefix, buf, sizeof buf), -ENOENT);
    cr_assert_eq(key_compare(&last, &k), 0);
    key_dirent(&k, 2, "0123", 4); /* is not there */
    cr_assert_eq(lmdb_next(db, &k, prefix, buf, sizeof buf), 5);
    cr_assert_str_eq(buf, "0125");
    key_dirent(&k, 9, "", 0);
    cr_assert_eq(lmdb_next(db, &k, 9, buf, sizeof buf), -ENOENT);
    key_dirent(&k, 0, "", 0);
    cr_assert_eq(lmdb_next(db, &k, 9, buf, sizeof buf), -ENOENT);
    cr_assert_eq(lmdb_next(db, &k, 1, buf, 2), -ERANGE);
    cr_assert_eq(key_u64(&k, 0), 1, "a scan gets past what does not fit");
    cr_assert_eq(memcmp(k.bytes + prefix, "0000", 4), 0);
    cr_assert_eq(lmdb_next(db, &k, 1, NULL, 0), 5);
    cr_assert_eq(memcmp(k.bytes + prefix, "0005", 4), 0);
}

/* ---- blocks ---------------------------------------------------------------------------------- */

Test(lmdb, blocks_and_holes_come_back)
{
    begin();
    for (uint32_t i = 0; i < 600; i++)
        if (i % 7 != 3)
            put_block(5, i, 1);
    put_block(4, 100, 1);
    put_block(6, 0, 1);
    commit();
    for (int pass = 0; pass < 2; pass++) {
        for (uint32_t from = 0; from < 700; from += 256) {
            read_blocks(5, from, BIO_MAX_VECS);
            for (uint32_t i = 0; i < BIO_MAX_VECS; i++) {
                if (vecs[i].index < 600 && vecs[i].index % 7 != 3)
                    expect_block(&vecs[i], 5, 1);
                else
                    expect_hole(&vecs[i]);
            }
        }
        reopen_volume();
    }
    read_blocks(4, 99, 3);
    expect_hole(&vecs[0]);
    expect_block(&vecs[1], 4, 1);
    expect_hole(&vecs[2]);
    read_blocks(6, UINT32_MAX, 1);
    expect_hole(&vecs[0]);
    read_blocks(UINT64_MAX, 0, 3);
    expect_hole(&vecs[2]);
}

Test(lmdb, an_empty_volume_is_all_holes)
{
    uint32_t index;
    read_blocks(1, 0, 10);
    for (int i = 0; i < 10; i++)
        expect_hole(&vecs[i]);
    cr_assert_eq(lmdb_list_blocks(db, 1, 0, 1000, &index, 1), 0);
}

Test(lmdb, skipped_vecs_are_left_alone)
{
    bool skip[8] = { false, true, true, false, false, true, false, true };
    begin();
    for (uint32_t i = 0; i < 6; i++)
        put_block(5, i, 1);
    commit();
    memset(vecs, 0, sizeof vecs);
    for (uint32_t i = 0; i < 8; i++) {
        vecs[i] = (struct bio_vec){ .data = buffers[i], .index = i, .error = -77, .flags = BV_NEW };
        memset(buffers[i], 0xee, BLOCK_SIZE);
    }
    lmdb_read_blocks(db, 5, vecs, skip, 8);
    for (uint32_t i = 0; i < 8; i++) {
        if (skip[i]) {
            cr_assert_eq(vecs[i].error, -77);
            cr_assert_eq(vecs[i].flags, BV_NEW);
            cr_assert_eq(buffers[i][5], 0xee);
        } else if (i < 6) {
            expect_block(&vecs[i], 5, 1);
        } else {
            expect_hole(&vecs[i]);
        }
    }
}

Test(lmdb, overwriting_a_block_leaves_one)
{
    uint32_t indices[64];
    for (uint32_t version = 1; version <= 4; version++) {
        begin();
        for (uint32_t i = 40; i-- > 0;)
            put_block(5, i, version);
        if (version == 3)
            for (uint32_t i = 0; i < 40; i++)
                put_block(5, i, 3);
        commit();
        read_blocks(5, 0, 40);
        for (uint32_t i = 0; i < 40; i++)
            expect_block(&vecs[i], 5, version);
        cr_assert_eq(lmdb_list_blocks(db, 5, 0, 100, indices, 64), 40);
    }
}

Test(lmdb, deleted_blocks_are_holes)
{
    begin();
    for (uint32_t i = 0; i < 100; i++)
        put_block(5, i, 1);
    commit();
    begin();
    for (uint32_t i = 0; i < 100; i += 2)
        cr_assert_eq(lmdb_del_block(db, 5, i), 0);
    cr_assert_eq(lmdb_del_block(db, 5, 0), 0);
    cr_assert_eq(lmdb_del_block(db, 9, 0), 0);
    commit();
    read_blocks(5, 0, 100);
    for (uint32_t i = 0; i < 100; i++) {
        if (i % 2 == 0)
            expect_hole(&vecs[i]);
        else
            expect_block(&vecs[i], 5, 1);
    }
}

Test(lmdb, list_blocks_gives_the_range)
{
    uint32_t indices[300];
    begin();
    for (uint32_t i = 0; i < 200; i++)
        put_block(5, i * 3, 1);
    put_block(5, UINT32_MAX, 1);
    put_block(6, 1, 1);
    commit();
    cr_assert_eq(lmdb_list_blocks(db, 5, 0, UINT64_MAX, indices, 300), 201);
    cr_assert_eq(indices[199], 199 * 3);
    cr_assert_eq(indices[200], UINT32_MAX);
    cr_assert_eq(lmdb_list_blocks(db, 5, 1, 10, indices, 300), 3);
    cr_assert_eq(indices[0], 3);
    cr_assert_eq(indices[2], 9);
    cr_assert_eq(lmdb_list_blocks(db, 5, 1, 10, indices, 2), 2);
    cr_assert_eq(lmdb_list_blocks(db, 5, 600, UINT32_MAX, indices, 2), 0);
    cr_assert_eq(lmdb_list_blocks(db, 5, 10, 10, indices, 2), 0);
    cr_assert_eq(lmdb_list_blocks(db, 5, (uint64_t)1 << 32, (uint64_t)1 << 33, indices, 2), 0);
    cr_assert_eq(lmdb_list_blocks(db, 5, UINT32_MAX, (uint64_t)1 << 32, indices, 2), 1);
}

/* SEED in the environment replays a random run. */
static unsigned seed_random(void)
{
    const char *text = getenv("SEED");
    unsigned seed = text != NULL ? (unsigned)strtoul(text, NULL, 10) : 1;
    srand(seed);
    return seed;
}

/* Random blocks and records beside plain arrays. */
Test(lmdb, random_operations_agree_with_a_table)
{
    enum { OBJECTS = 3, BLOCKS = 120, INODES = 60, ROUNDS = 150 };
    static uint32_t versions[OBJECTS][BLOCKS];
    static int sizes[INODES]; /* -1: none */
    static uint8_t value[9000], got[9000];
    unsigned seed = seed_random();
    struct key k;
    for (int i = 0; i < INODES; i++)
        sizes[i] = -1;
    for (uint32_t round = 1; round <= ROUNDS; round++) {
        begin();
        for (int op = rand() % 60; op > 0; op--) {
            int o = rand() % OBJECTS, b = rand() % BLOCKS, ino = rand() % INODES;
            switch (rand() % 4) {
            case 0:
            case 1:
                put_block((uint64_t)o + 10, (uint32_t)b, round);
                versions[o][b] = round;
                break;
            case 2:
                cr_assert_eq(lmdb_del_block(db, (uint64_t)o + 10, (uint32_t)b), 0);
                versions[o][b] = 0;
                break;
            default:
                key_inode(&k, (uint64_t)ino);
                sizes[ino] = rand() % 3 == 0 ? -1 : rand() % (rand() % 2 ? 200 : 9000);
                memset(value, ino, sizeof value);
                cr_assert_eq(sizes[ino] < 0 ? lmdb_del(db, &k)
                                            : lmdb_put(db, &k, value, (size_t)sizes[ino]),
                             0);
            }
        }
        commit();
        if (round % 20 == 0)
            reopen_volume();
        for (int o = 0; o < OBJECTS; o++) {
            read_blocks((uint64_t)o + 10, 0, BLOCKS);
            for (uint32_t b = 0; b < BLOCKS; b++) {
                if (versions[o][b] != 0)
                    expect_block(&vecs[b], (uint64_t)o + 10, versions[o][b]);
                else
                    expect_hole(&vecs[b]);
            }
        }
        for (int i = 0; i < INODES; i++) {
            key_inode(&k, (uint64_t)i);
            cr_assert_eq(lmdb_get(db, &k, got, sizeof got), sizes[i] < 0 ? -ENOENT : sizes[i],
                         "seed %u round %u inode %d", seed, round, i);
        }
    }
}

Test(lmdb, usage_counts_pages)
{
    struct lmdb_usage before, after;
    lmdb_usage(db, &before);
    cr_assert_eq(before.used, 2);
    cr_assert_eq(before.last_page, 1);
    cr_assert_eq(before.map_pages, (CAPACITY + CAPACITY / 4 + ((uint64_t)2 << 30)) / PAGE);
    begin();
    for (uint32_t i = 0; i < 1000; i++)
        put_block(5, i, 1);
    commit();
    lmdb_usage(db, &after);
    cr_assert_geq(after.used, 1002);
    cr_assert_leq(after.used, 1040);
    cr_assert_geq(after.last_page + 1, after.used);
    reopen_volume();
    lmdb_usage(db, &before);
    cr_assert_eq(memcmp(&before, &after, sizeof before), 0);
    struct stat st;
    cr_assert_eq(fstat(lmdb_fd(db), &st), 0);
    cr_assert_geq((uint64_t)st.st_size, (after.last_page + 1) * PAGE);
}

Test(lmdb, a_volume_is_one_file)
{
    char lock[sizeof path + 8];
    (void)snprintf(lock, sizeof lock, "%s-lock", path);
    cr_assert_neq(access(lock, F_OK), 0);
    struct stat st;
    cr_assert_eq(stat(path, &st), 0);
    cr_assert_eq(st.st_mode & 07777, 0600);
}

struct race {
    atomic_bool stop;
    atomic_uint committed;
};

/* Every snapshot has all blocks of one commit, or later ones. */
static void *race_reader(void *arg)
{
    struct race *r = arg;
    uint8_t(*data)[BLOCK_SIZE] = malloc(32 * sizeof *data);
    cr_assert_not_null(data);
    struct bio_vec v[32];
    while (!atomic_load(&r->stop)) {
        unsigned floor = atomic_load(&r->committed);
        for (uint32_t i = 0; i < 32; i++)
            v[i] = (struct bio_vec){ .data = data[i], .index = i };
        lmdb_read_blocks(db, 5, v, NULL, 32);
        uint32_t version;
        memcpy(&version, data[0] + 8, sizeof version);
        cr_assert_geq(version, floor);
        for (uint32_t i = 0; i < 32; i++)
            expect_block(&v[i], 5, version);
    }
    free(data);
    return NULL;
}

Test(lmdb, readers_see_whole_commits)
{
    enum { READERS = 4, COMMITS = 100 };
    struct race r = { .committed = 1 };
    pthread_t threads[READERS];
    for (uint32_t version = 1; version <= COMMITS; version++) {
        begin();
        for (uint32_t i = 0; i < 32; i++)
            put_block(5, i, version);
        commit();
        atomic_store(&r.committed, version);
        for (int i = 0; version == 1 && i < READERS; i++)
            pthread_create(&threads[i], NULL, race_reader, &r);
    }
    atomic_store(&r.stop, true);
    for (int i = 0; i < READERS; i++)
        pthread_join(threads[i], NULL);
}

/* ---- damage ---------------------------------------------------------------------------------- */

static void make_blocks(uint32_t nr)
{
    begin();
    for (uint32_t i = 0; i < nr; i++)
        put_block(5, i, 1);
    commit();
    close_volume();
}

Test(lmdb, damaged_data_is_eio_for_that_block_only)
{
    uint8_t data[BLOCK_SIZE];
    make_blocks(200);
    fill_block(data, 5, 77, 1);
    cr_assert_eq(damage(data + 16, BLOCK_SIZE - 16, 1234), 1);
    open_volume();
    read_blocks(5, 0, 200);
    for (uint32_t i = 0; i < 200; i++) {
        if (i == 77)
            cr_assert_eq(vecs[i].error, -EIO);
        else
            expect_block(&vecs[i], 5, 1);
    }
    cr_assert_not(lmdb_dead(db));
    begin(); /* writing it again heals it */
    put_block(5, 77, 2);
    commit();
    read_blocks(5, 77, 1);
    expect_block(&vecs[0], 5, 2);
}

static const void *unreadable; /* what would be read to here cannot be read; NULL: nothing */

/* In front of the C library's, for the code under test. */
ssize_t preadv(int fd, const struct iovec *iov, int count, off_t offset)
{
    int good = 0;
    while (good < count && (unreadable == NULL || iov[good].iov_base != unreadable))
        good++;
    if (good > 0)
        return preadv2(fd, iov, good, offset, 0);
    errno = EIO;
    return -1;
}

Test(lmdb, what_cannot_be_read_is_eio_for_that_block_only)
{
    static const uint32_t places[] = { 0, 1, 77, 199 };
    make_blocks(200);
    open_volume();
    for (size_t p = 0; p < sizeof places / sizeof places[0]; p++) {
        unreadable = buffers[places[p]];
        read_blocks(5, 0, 200);
        for (uint32_t i = 0; i < 200; i++) {
            if (i == places[p])
                cr_assert_eq(vecs[i].error, -EIO);
            else
                expect_block(&vecs[i], 5, 1);
        }
    }
    unreadable = NULL;
    cr_assert_not(lmdb_dead(db));
}

/* Each byte of a block's key in turn: that block is never a hole and never wrong data. */
Test(lmdb, a_damaged_block_key_is_eio)
{
    uint8_t prefix[13] = { 'B', [8] = 5, [12] = 40 };
    for (size_t at = 0; at < 38; at++) {
        make_blocks(60);
        cr_assert_geq(damage(prefix, sizeof prefix, at), 1);
        open_volume();
        read_blocks(5, 0, 60);
        cr_assert_eq(vecs[40].error, -EIO, "byte %zu: %d", at, vecs[40].error);
        for (uint32_t i = 0; i < 60; i++)
            if (vecs[i].error == 0)
                expect_block(&vecs[i], 5, 1);
        close_volume();
        cr_assert_eq(unlink(path), 0);
        cr_assert_eq(lmdb_create(path, CAPACITY, &db, &error), 0);
    }
}

static void make_inodes(unsigned nr)
{
    uint8_t value[100];
    struct key k;
    begin();
    for (unsigned i = 0; i < nr; i++) {
        key_inode(&k, i);
        memset(value, 0xc0, sizeof value);
        memcpy(value, &i, sizeof i);
        put(&k, value, sizeof value);
    }
    commit();
    close_volume();
}

/* Each byte of a record, key and envelope included. */
Test(lmdb, a_damaged_record_is_eio)
{
    struct key k;
    uint8_t buf[100];
    char head[sizeof k.bytes];
    for (size_t at = 0; at < 9 + 5 + 100; at++) {
        make_inodes(30);
        key_inode(&k, 13);
        memcpy(head, k.bytes, k.len);
        cr_assert_geq(damage(head, k.len, at), 1);
        open_volume();
        cr_assert_eq(lmdb_get(db, &k, buf, sizeof buf), -EIO, "byte %zu", at);
        key_inode(&k, 12);
        ssize_t next = lmdb_next(db, &k, 1, buf, sizeof buf);
        cr_assert(next == -EIO, "byte %zu: %zd", at, next);
        key_inode(&k, 3);
        cr_assert_eq(lmdb_get(db, &k, buf, sizeof buf), 100);
        cr_assert_not(lmdb_dead(db));
        close_volume();
        cr_assert_eq(unlink(path), 0);
        cr_assert_eq(lmdb_create(path, CAPACITY, &db, &error), 0);
    }
}

Test(lmdb, absence_beside_a_damaged_record_is_eio)
{
    struct key k;
    uint8_t buf[100];
    begin();
    for (uint64_t i = 10; i < 100; i += 10) {
        key_inode(&k, i);
        memset(buf, (int)i, sizeof buf);
        put(&k, buf, sizeof buf);
    }
    commit();
    close_volume();
    memset(buf, 50, sizeof buf);
    cr_assert_eq(damage(buf, sizeof buf, 9), 1);
    open_volume();
    static const struct {
        uint64_t ino;
        ssize_t rc;
    } cases[] = { { 1, -ENOENT }, { 35, -ENOENT }, { 45, -EIO },    { 49, -EIO },
                  { 51, -EIO },   { 55, -EIO },    { 61, -ENOENT }, { 99, -ENOENT } };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        key_inode(&k, cases[i].ino);
        cr_assert_eq(lmdb_get(db, &k, buf, sizeof buf), cases[i].rc, "inode %lu",
                     (unsigned long)cases[i].ino);
    }
}

/* Pages of the file with this flag in their header, changed by a function. */
static unsigned change_pages(uint16_t flag, void (*change)(uint8_t *page))
{
    size_t len;
    unsigned nr = 0;
    uint8_t *file = map_file(&len);
    for (size_t at = 2 * (size_t)PAGE; at + PAGE <= len; at += PAGE) {
        uint64_t number;
        uint16_t flags;
        memcpy(&number, file + at, sizeof number);
        memcpy(&flags, file + at + 10, sizeof flags);
        if (number == at / PAGE && flags == flag) {
            change(file + at);
            nr++;
        }
    }
    munmap(file, len);
    return nr;
}

enum { P_BRANCH = 1, P_LEAF = 2 };

static void leave_one_key(uint8_t *page)
{
    page[12] = 18; /* lower: one node */
    page[13] = 0;
}

static void expect_dead(void)
{
    struct key k;
    char buf[8];
    uint32_t index;
    key_inode(&k, 1);
    cr_assert(lmdb_dead(db));
    cr_assert_eq(lmdb_get(db, &k, buf, sizeof buf), -EIO);
    cr_assert_eq(lmdb_next(db, &k, 1, buf, sizeof buf), -EIO);
    cr_assert_eq(lmdb_list_blocks(db, 5, 0, 10, &index, 1), -EIO);
    cr_assert_eq(lmdb_begin(db), -EIO);
    cr_assert_eq(lmdb_put(db, &k, "a", 1), -EIO);
    cr_assert_eq(lmdb_del(db, &k), -EIO);
    cr_assert_eq(lmdb_del_block(db, 5, 1), -EIO);
    cr_assert_eq(lmdb_commit(db), -EIO);
    lmdb_abort(db);
    read_blocks(5, 0, 3);
    for (int i = 0; i < 3; i++)
        cr_assert_eq(vecs[i].error, -EIO);
}

Test(lmdb, an_assertion_of_lmdb_is_eio_and_the_end)
{
    make_blocks(2000);
    cr_assert_geq(change_pages(P_BRANCH, leave_one_key), 1);
    open_volume();
    read_blocks(5, 0, 10);
    for (int i = 0; i < 10; i++)
        cr_assert_eq(vecs[i].error, -EIO);
    expect_dead();
}

static void lose_last_key(uint8_t *page)
{
    page[12] = (uint8_t)(page[12] - 2); /* lower; no borrow: see the test */
}

/* A header that says one node less: the last block of each leaf must not become a hole. */
Test(lmdb, a_leaf_that_lost_a_key_is_eio)
{
    unsigned failed = 0;
    make_blocks(400);
    cr_assert_geq(change_pages(P_LEAF, lose_last_key), 4);
    open_volume();
    for (uint32_t from = 0; from < 400; from += 100) {
        read_blocks(5, from, 100);
        for (uint32_t i = 0; i < 100; i++) {
            if (vecs[i].error == 0)
                expect_block(&vecs[i], 5, 1);
            else
                failed++;
        }
    }
    cr_assert_geq(failed, 4);
    uint32_t indices[400];
    cr_assert_eq(lmdb_list_blocks(db, 5, 0, 400, indices, 400), -EIO);
}

/* Random bits anywhere but in meta, branch and free-list pages: data is right or the error is EIO. */
Test(lmdb, random_damage_never_shows_wrong_data)
{
    static uint8_t sound[4 << 20];
    size_t len;
    struct key k;
    uint8_t buf[100];
    make_inodes(200);
    open_volume();
    make_blocks(200);
    uint8_t *file = map_file(&len);
    cr_assert_leq(len, sizeof sound);
    memcpy(sound, file, len);
    unsigned seed = seed_random();
    for (int round = 0; round < 1500; round++) {
        memcpy(file, sound, len);
        for (int flips = 0; flips < 1 + round % 4;) {
            size_t at = (size_t)rand() % len;
            if (at < 2 * (size_t)PAGE || (file[at / PAGE * PAGE + 10] & P_BRANCH) != 0)
                continue;
            if (round % 2 == 0 && file[at / PAGE * PAGE + 10] != P_LEAF)
                continue; /* every other round: leaves only */
            file[at] ^= (uint8_t)(1 << (rand() % 8));
            flips++;
        }
        if (lmdb_open(path, true, &db, &error) != 0)
            continue;
        read_blocks(5, 0, 200);
        for (uint32_t i = 0; i < 200; i++) {
            if (vecs[i].error == 0)
                expect_block(&vecs[i], 5, 1);
            else
                cr_assert_eq(vecs[i].error, -EIO);
        }
        for (unsigned i = 0; i < 200; i++) {
            key_inode(&k, i);
            ssize_t n = lmdb_get(db, &k, buf, sizeof buf);
            cr_assert(n == 100 || n == -EIO, "seed %u round %d inode %u: %zd", seed, round, i, n);
            cr_assert(n < 0 || memcmp(buf, &i, sizeof i) == 0);
        }
        close_volume();
    }
    munmap(file, len);
}

static void point_anywhere(uint8_t *page)
{
    uint16_t at = 60000;
    for (size_t i = 16; i < 200; i += 2)
        memcpy(page + i, &at, sizeof at);
}

static void all_ones(uint8_t *page)
{
    memset(page + 12, 0xff, PAGE - 12);
}

/* Rubbish instead of nodes: any answer but a crash, good data or a hole. */
Test(lmdb, rubbish_in_leaves_is_eio)
{
    void (*const changes[])(uint8_t *) = { point_anywhere, all_ones };
    for (size_t c = 0; c < sizeof changes / sizeof *changes; c++) {
        make_blocks(300);
        cr_assert_geq(change_pages(P_LEAF, changes[c]), 1);
        if (lmdb_open(path, false, &db, &error) == 0) {
            read_blocks(5, 0, 256);
            for (int i = 0; i < 256; i++)
                cr_assert_eq(vecs[i].error, -EIO, "change %zu: block %d", c, i);
            close_volume();
        }
        cr_assert_eq(unlink(path), 0);
        cr_assert_eq(lmdb_create(path, CAPACITY, &db, &error), 0);
    }
}

Test(lmdb, a_fault_on_the_map_is_eio_and_the_end)
{
    make_blocks(500);
    open_volume();
    read_blocks(5, 0, 1);
    expect_block(&vecs[0], 5, 1);
    cr_assert_eq(truncate(path, 2 * PAGE), 0);
    read_blocks(5, 0, 256);
    for (int i = 0; i < 256; i++)
        cr_assert_eq(vecs[i].error, -EIO);
    expect_dead();
}

Test(lmdb, a_fault_while_writing_is_eio_and_the_end)
{
    uint8_t data[BLOCK_SIZE];
    struct key k;
    int rc = 0;
    make_blocks(2000);
    open_volume();
    begin();
    put_block(5, 0, 2);
    cr_assert_eq(truncate(path, 2 * PAGE), 0);
    fill_block(data, 5, 0, 2);
    for (uint32_t i = 0; i < 2000 && rc == 0; i++)
        rc = lmdb_put_block(db, 5, i, data, block_crc(5, i, data));
    key_inode(&k, 1);
    cr_assert_eq(rc, -EIO);
    lmdb_abort(db);
    expect_dead();
}

Test(lmdb, a_fault_in_one_thread_spares_another)
{
    make_blocks(500);
    open_volume();
    cr_assert_eq(truncate(path, 2 * PAGE), 0);
    struct race r = { .stop = true };
    pthread_t t;
    read_blocks(5, 0, 1);
    cr_assert(lmdb_dead(db));
    cr_assert_eq(pthread_create(&t, NULL, race_reader, &r), 0);
    pthread_join(t, NULL);
    close_volume();
    unlink(path);
    cr_assert_eq(lmdb_create(path, CAPACITY, &db, &error), 0); /* a new one works beside the dead */
    make_blocks(3);
    open_volume();
    read_blocks(5, 0, 3);
    expect_block(&vecs[2], 5, 1);
}

static sigjmp_buf elsewhere;
static volatile sig_atomic_t caught;

static void catch (int sig, siginfo_t *info, void *context)
{
    (void)info;
    (void)context;
    caught = sig;
    siglongjmp(elsewhere, 1);
}

/* The handler is there before the first call that is guarded. */
static void fault_elsewhere(int sig, int prot, off_t beyond)
{
    struct sigaction action = { .sa_sigaction = catch, .sa_flags = SA_SIGINFO };
    cr_assert_eq(sigaction(sig, &action, NULL), 0);
    setup();
    read_blocks(5, 0, 1);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    volatile char *p = mmap(NULL, PAGE, prot, MAP_SHARED, fd, beyond);
    cr_assert_neq(p, MAP_FAILED);
    if (sigsetjmp(elsewhere, 1) == 0)
        (void)*p;
    cr_assert_eq(caught, sig);
    cr_assert_not(lmdb_dead(db));
    close(fd);
    teardown();
}

Test(guard, a_segv_elsewhere_goes_to_who_was_there_first)
{
    fault_elsewhere(SIGSEGV, PROT_NONE, 0);
}

Test(guard, a_sigbus_elsewhere_goes_to_who_was_there_first)
{
    fault_elsewhere(SIGBUS, PROT_READ, (off_t)1 << 40);
}

Test(guard, a_sent_signal_still_kills)
{
    setup();
    pid_t pid = fork();
    if (pid == 0) {
        (void)signal(SIGSEGV, SIG_DFL); /* not a sanitizer's */
        lmdb_close(db);
        (void)kill(getpid(), SIGSEGV);
        _exit(1);
    }
    int status;
    cr_assert_eq(waitpid(pid, &status, 0), pid);
    cr_assert(WIFSIGNALED(status) && WTERMSIG(status) == SIGSEGV, "status %x", (unsigned)status);
    teardown();
}

/* ---- opening --------------------------------------------------------------------------------- */

static void refuse(int rc, const char *text)
{
    struct lmdb *l = NULL;
    memset(&error, 0, sizeof error);
    cr_assert_eq(lmdb_open(path, false, &l, &error), rc, "%s", error.text);
    cr_assert_null(l);
    cr_assert_not_null(strstr(error.text, text), "%s", error.text);
    cr_assert_not_null(strstr(error.text, path), "%s", error.text);
    cr_assert_null(strchr(error.text, '\n'));
}

Test(lmdb, a_truncated_file_is_refused)
{
    struct stat st;
    make_blocks(100);
    cr_assert_eq(stat(path, &st), 0);
    static const long less[] = { 1, PAGE, 10 * PAGE, 90 * PAGE };
    for (size_t i = 0; i < sizeof less / sizeof *less; i++) {
        cr_assert_eq(truncate(path, st.st_size - less[i]), 0);
        refuse(-EIO, "bytes missing; restore a backup");
    }
    cr_assert_eq(truncate(path, 2 * PAGE), 0);
    refuse(-EIO, "bytes missing; restore a backup");
    cr_assert_eq(truncate(path, PAGE), 0);
    refuse(-EIO, "fsck.foliofs");
    cr_assert_eq(truncate(path, 100), 0);
    refuse(-EIO, "not a FolioFS volume");
    cr_assert_eq(truncate(path, 0), 0);
    refuse(-EIO, "is empty");
    cr_assert_eq(unlink(path), 0);
    refuse(-ENOENT, "does not exist");
    cr_assert_eq(mkdir(path, 0700), 0);
    refuse(-EISDIR, path);
    cr_assert_eq(rmdir(path), 0);
    cr_assert_eq(mkfifo(path, 0600), 0);
    refuse(-EINVAL, "not a regular file");
}

Test(lmdb, what_is_no_volume_is_refused)
{
    close_volume();
    FILE *f = fopen(path, "we");
    for (int i = 0; i < 5000; i++)
        fputs("some text\n", f);
    fclose(f);
    refuse(-EIO, "not a FolioFS volume");
    struct lmdb *l;
    cr_assert_eq(lmdb_create(path, CAPACITY, &l, &error), -EEXIST);
}

/* A transaction that takes pages at the end of the file and gives them back does not write them. */
Test(lmdb, a_file_that_lacks_only_free_pages_is_whole)
{
    struct lmdb_usage usage;
    struct stat st;
    begin();
    for (uint32_t i = 0; i < 100; i++)
        put_block(5, i, 1);
    commit();
    for (uint32_t i = 0; i < 2; i++) {
        begin();
        cr_assert_eq(lmdb_del_block(db, 5, 50 + i), 0);
        commit();
    }
    begin();
    for (uint32_t i = 200; i < 300; i++)
        put_block(5, i, 1);
    for (uint32_t i = 210; i < 300; i++)
        cr_assert_eq(lmdb_del_block(db, 5, i), 0);
    commit();
    lmdb_usage(db, &usage);
    cr_assert_eq(stat(path, &st), 0);
    cr_assert_lt((uint64_t)st.st_size, (usage.last_page + 1) * PAGE, "no free pages to lack");
    reopen_volume();
    read_blocks(5, 0, 211);
    for (uint32_t i = 0; i < 211; i++) {
        if (i == 50 || i == 51 || (i >= 100 && i < 200) || i >= 210)
            expect_hole(&vecs[i]);
        else
            expect_block(&vecs[i], 5, 1);
    }
    close_volume();
    cr_assert_eq(truncate(path, st.st_size - PAGE), 0); /* one page that is used */
    refuse(-EIO, "bytes missing; restore a backup");
}

Test(lmdb, read_only_refuses_to_write)
{
    make_blocks(10);
    cr_assert_eq(chmod(path, 0400), 0);
    cr_assert_eq(lmdb_open(path, true, &db, &error), 0, "%s", error.text);
    read_blocks(5, 0, 11);
    expect_block(&vecs[9], 5, 1);
    expect_hole(&vecs[10]);
    cr_assert_eq(lmdb_begin(db), -EROFS);
}

Test(lmdb, opens_read_only_on_a_read_only_medium)
{
    make_blocks(10);
    if (unshare(CLONE_NEWNS) != 0 || mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) != 0 ||
        mount(dir, dir, NULL, MS_BIND, NULL) != 0)
        cr_skip_test("mounting is not allowed here");
    cr_assert_eq(mount(NULL, dir, NULL, MS_BIND | MS_REMOUNT | MS_RDONLY, NULL), 0);
    cr_assert_eq(lmdb_open(path, true, &db, &error), 0, "%s", error.text);
    read_blocks(5, 0, 11);
    expect_block(&vecs[9], 5, 1);
    expect_hole(&vecs[10]);
    close_volume();
    refuse(-EROFS, "read-only");
    cr_assert_eq(umount(dir), 0);
}

/* ---- commits that fail ----------------------------------------------------------------------- */

static void limit_file_size(rlim_t bytes)
{
    struct rlimit limit = { .rlim_cur = bytes, .rlim_max = RLIM_INFINITY };
    (void)signal(SIGXFSZ, SIG_IGN);
    cr_assert_eq(setrlimit(RLIMIT_FSIZE, &limit), 0);
}

static void expect_first_commit_only(uint32_t nr)
{
    read_blocks(5, 0, nr);
    for (uint32_t i = 0; i < nr; i++)
        expect_block(&vecs[i], 5, 1);
}

Test(lmdb, a_commit_without_room_fails_and_can_be_tried_again)
{
    struct stat st;
    begin();
    for (uint32_t i = 0; i < 100; i++)
        put_block(5, i, 1);
    commit();
    cr_assert_eq(stat(path, &st), 0);
    limit_file_size((rlim_t)st.st_size + 20 * PAGE);
    for (int try = 0; try < 3; try++) {
        begin();
        for (uint32_t i = 0; i < 100; i++)
            put_block(5, i, 2);
        cr_assert_lt(lmdb_commit(db), 0);
        cr_assert_not(lmdb_dead(db));
        expect_first_commit_only(100);
    }
    limit_file_size(RLIM_INFINITY);
    begin();
    for (uint32_t i = 0; i < 100; i++)
        put_block(5, i, 3);
    commit();
    reopen_volume();
    read_blocks(5, 0, 100);
    for (uint32_t i = 0; i < 100; i++)
        expect_block(&vecs[i], 5, 3);
}

Test(lmdb, a_full_disk_is_enospc_and_can_be_opened)
{
    make_blocks(1);
    cr_assert_eq(unlink(path), 0);
    if (unshare(CLONE_NEWNS) != 0 || mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) != 0 ||
        mount("tmpfs", dir, "tmpfs", 0, "size=1m") != 0)
        cr_skip_test("mounting is not allowed here");
    cr_assert_eq(lmdb_create(path, CAPACITY, &db, &error), 0, "%s", error.text);
    begin();
    for (uint32_t i = 0; i < 100; i++)
        put_block(5, i, 1);
    commit();
    for (int try = 0; try < 3; try++) {
        begin();
        for (uint32_t i = 0; i < 300; i++)
            put_block(5, i, 2);
        cr_assert_eq(lmdb_commit(db), -ENOSPC);
        expect_first_commit_only(100);
    }
    char filler[sizeof path + 8];
    (void)snprintf(filler, sizeof filler, "%s/filler", dir);
    int fd = open(filler, O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
    while (write(fd, buffers, PAGE) > 0)
        ;
    close(fd);
    reopen_volume();
    expect_first_commit_only(100);
    close_volume();
    cr_assert_eq(umount2(dir, MNT_DETACH), 0);
}

Test(lmdb, a_full_map_is_enospc)
{
    uint8_t data[BLOCK_SIZE] = { 0 };
    int rc = 0;
    close_volume();
    cr_assert_eq(unlink(path), 0);
    cr_assert_eq(lmdb_create(path, CAPACITY, &db, &error), 0);
    /* Four transactions, so that the memory of one stays small. */
    for (uint32_t i = 0; rc == 0 && i < 600000; i++) {
        if (i % 20000 == 0) {
            if (i > 0)
                commit();
            begin();
        }
        rc = lmdb_put_block(db, 5, i, data, block_crc(5, i, data));
    }
    cr_assert_eq(rc, -ENOSPC, "%d", rc);
    lmdb_abort(db);
    begin();
    cr_assert_eq(lmdb_del_block(db, 5, 0), 0);
    lmdb_abort(db);
}

/* LMDB writes its meta page through a descriptor of its own, the one with O_DSYNC. */
static int meta_fd(void)
{
    for (int fd = 3; fd < 256; fd++) {
        int flags = fcntl(fd, F_GETFL);
        if (flags != -1 && (flags & O_DSYNC) != 0)
            return fd;
    }
    return -1;
}

Test(lmdb, a_meta_page_that_cannot_be_written_is_the_end)
{
    begin();
    for (uint32_t i = 0; i < 100; i++)
        put_block(5, i, 1);
    commit();
    int full = open("/dev/full", O_WRONLY | O_CLOEXEC);
    cr_assert_geq(dup2(full, meta_fd()), 0);
    close(full);
    begin();
    put_block(5, 0, 2);
    cr_assert_eq(lmdb_commit(db), -EIO);
    expect_dead();
    close_volume();
    open_volume();
    expect_first_commit_only(100);
}
