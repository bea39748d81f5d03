/* A volume damaged in its tree's structure, then written to: each write succeeds or fails; nothing
 * crashes, hangs, or writes behind an end (the sanitizers look), and what reads, reads right.
 *
 *   FOLIO_SEED    repeats a run
 *   FOLIO_TRIALS  how many damages */
#include "store/lmdb.h"

#include <criterion/criterion.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define PAGE        4096u
#define CAPACITY    ((uint64_t)64 << 20)
#define RECORDS     900u
#define OBJECTS     8u
#define BLOCKS      96u
#define BYTES_MAX   9000u /* of a value */
#define OPS         150u
#define TRIALS      60
#define TRIAL_LIMIT 20u /* seconds */

static char dir[] = "/tmp/folio-damage.XXXXXX", path[64], bad[64];
static uint8_t *image;
static size_t nr_pages;
static uint64_t seed;
static struct store_error error;
static unsigned versions[RECORDS]; /* 0: not there */
static unsigned block_versions[OBJECTS][BLOCKS];

static uint64_t draw(uint64_t *state)
{
    uint64_t z = *state += UINT64_C(0x9e3779b97f4a7c15);
    z = (z ^ z >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ z >> 27) * UINT64_C(0x94d049bb133111eb);
    return z ^ z >> 31;
}

static unsigned below(uint64_t *state, unsigned n)
{
    return (unsigned)(draw(state) % n);
}

/* ---- contents -------------------------------------------------------------------------------- */

/* Long keys, so that the tree has three levels. */
static struct key record_key(unsigned i)
{
    struct key key = { .len = 0 };
    key.bytes[0] = i % 3 == 0 ? 'A' : 'x'; /* before and behind the blocks */
    memset(key.bytes + 1, 'k', 200);
    int n = snprintf((char *)key.bytes + 120, 64, "%06u", i * 7919 % RECORDS);
    key.bytes[120 + n] = 'k';
    key.len = (uint16_t)(180 + i % 60);
    return key;
}

static size_t record_value(unsigned i, unsigned version, uint8_t *value)
{
    uint64_t state = (uint64_t)i << 32 | version;
    size_t len = i % 40 == 7 ? 2000 + below(&state, BYTES_MAX - 2000) : below(&state, 120);
    for (size_t at = 0; at < len; at++)
        value[at] = (uint8_t)draw(&state);
    return len;
}

static void block_data(unsigned object, unsigned index, unsigned version, uint8_t *data)
{
    uint64_t state = (uint64_t)object << 48 | (uint64_t)index << 16 | version;
    for (size_t at = 0; at < BLOCK_SIZE; at += 8) {
        uint64_t n = draw(&state);
        memcpy(data + at, &n, sizeof n);
    }
}

static int put_record(struct lmdb *db, unsigned i, unsigned version)
{
    uint8_t value[BYTES_MAX];
    struct key key = record_key(i);
    return lmdb_put(db, &key, value, record_value(i, version, value));
}

static int put_block(struct lmdb *db, unsigned object, unsigned index, unsigned version)
{
    uint8_t data[BLOCK_SIZE];
    block_data(object, index, version, data);
    return lmdb_put_block(db, object, index, data, block_crc(object, index, data));
}

/* ---- the good volume ------------------------------------------------------------------------- */

static void fill(struct lmdb *db, unsigned round)
{
    cr_assert_eq(lmdb_begin(db), 0);
    for (unsigned i = round; i < RECORDS; i += round == 0 ? 1 : 5) {
        versions[i] = round + 1;
        cr_assert_eq(put_record(db, i, versions[i]), 0);
    }
    for (unsigned object = 0; object < OBJECTS; object++)
        for (unsigned index = round; index < BLOCKS; index += round == 0 ? 1 : 7) {
            block_versions[object][index] = round + 1;
            cr_assert_eq(put_block(db, object, index, round + 1), 0);
        }
    cr_assert_eq(lmdb_commit(db), 0);
}

static void read_image(void)
{
    struct stat st;
    int fd = open(path, O_RDONLY);
    cr_assert(fd >= 0 && fstat(fd, &st) == 0);
    nr_pages = (size_t)st.st_size / PAGE;
    image = malloc(nr_pages * PAGE);
    cr_assert_eq(pread(fd, image, nr_pages * PAGE, 0), (ssize_t)(nr_pages * PAGE));
    close(fd);
}

static void start(void)
{
    struct lmdb *db;
    const char *given = getenv("FOLIO_SEED");
    seed = given != NULL ? strtoull(given, NULL, 10) : (uint64_t)time(NULL) % 1000000000;
    fprintf(stderr, "FOLIO_SEED=%llu repeats this run\n", (unsigned long long)seed);
    cr_assert_not_null(mkdtemp(dir));
    snprintf(path, sizeof path, "%s/good", dir);
    snprintf(bad, sizeof bad, "%s/bad", dir);
    cr_assert_eq(lmdb_create(path, CAPACITY, &db, &error), 0, "%s", error.text);
    for (unsigned round = 0; round < 4; round++)
        fill(db, round);
    lmdb_close(db);
    read_image();
}

static void finish(void)
{
    free(image);
    unlink(path);
    unlink(bad);
    rmdir(dir);
}

/* ---- damage ---------------------------------------------------------------------------------- */

static uint16_t get16(const uint8_t *p)
{
    uint16_t n;
    memcpy(&n, p, sizeof n);
    return n;
}

enum { P_BRANCH = 1, P_LEAF = 2, P_OVERFLOW = 4, FREE_TREE = 99 };

/* The root of the newer meta page's tree of free pages. */
static size_t free_root(void)
{
    uint64_t txn[2], root;
    memcpy(&txn[0], image + 144, sizeof txn[0]);
    memcpy(&txn[1], image + PAGE + 144, sizeof txn[1]);
    memcpy(&root, image + (txn[1] > txn[0] ? PAGE : 0) + 80, sizeof root);
    return root;
}

/* A page of a kind: what its header says, if it is one at all. */
static size_t draw_page(uint64_t *state, unsigned flags)
{
    for (;;) {
        size_t number = below(state, (unsigned)nr_pages);
        uint64_t said;
        memcpy(&said, image + number * PAGE, sizeof said);
        if (number >= 2 && said == number && get16(image + number * PAGE + 10) == flags)
            return number;
    }
}

/* Where in a tree page a change is felt: the header, an offset, a node's header. */
static size_t draw_place(uint64_t *state, const uint8_t *page)
{
    unsigned nodes = (get16(page + 12) - 16u) / 2;
    unsigned i = below(state, nodes > 0 ? nodes : 1);
    switch (below(state, 4)) {
    case 0:
        return below(state, 16);
    case 1:
        return 16 + 2 * (size_t)i + below(state, 2);
    case 2:
        return get16(page + 16 + 2 * (size_t)i) % (PAGE - 8) + below(state, 8);
    default: /* the key, or the value's page number behind it */
        return get16(page + 16 + 2 * (size_t)i) % (PAGE - 300) + 8 + below(state, 250);
    }
}

/* A page of a free list that lies on the root of its tree; 0: there is none. */
static uint64_t draw_free(uint64_t *state)
{
    const uint8_t *page = image + free_root() * PAGE;
    if (get16(page + 10) != P_LEAF)
        return 0;
    const uint8_t *node =
        page + get16(page + 16 + 2 * (size_t)below(state, (get16(page + 12) - 16u) / 2));
    uint64_t n = 0, number = 0;
    if (get16(node + 4) == 0)
        memcpy(&n, node + 16, sizeof n);
    if (n > 0)
        memcpy(&number, node + 24 + 8 * (size_t)below(state, (unsigned)n), sizeof number);
    return number;
}

/* A value's page number becomes another page's, one that is in use or free. */
static void misname(uint64_t *state, uint8_t *copy)
{
    uint8_t *page = copy + draw_page(state, P_LEAF) * PAGE;
    unsigned nodes = (get16(page + 12) - 16u) / 2;
    for (unsigned tries = 0; tries < 50; tries++) {
        size_t at = get16(page + 16 + 2 * (size_t)below(state, nodes)) % (PAGE - 300);
        if (get16(page + at + 4) != 1 /* F_BIGDATA */)
            continue;
        uint64_t number = draw_free(state);
        if (number == 0 || below(state, 2) == 0)
            number = below(state, (unsigned)nr_pages);
        memcpy(page + at + 8 + get16(page + at + 6) % 270, &number, sizeof number);
        return;
    }
}

static void damage_once(uint64_t *state, uint8_t *copy)
{
    if (below(state, 5) == 0) {
        misname(state, copy);
        return;
    }
    if (below(state, 20) == 0) { /* a meta page, behind its magic and version */
        copy[below(state, 2) * PAGE + 40 + below(state, 112)] ^= (uint8_t)(1u << below(state, 8));
        return;
    }
    static const unsigned kinds[] = { P_LEAF,   P_LEAF,   P_LEAF,     P_LEAF,     P_LEAF,   P_LEAF,
                                      P_BRANCH, P_BRANCH, P_OVERFLOW, P_OVERFLOW, FREE_TREE };
    unsigned kind = kinds[below(state, sizeof kinds / sizeof kinds[0])];
    size_t number = kind == FREE_TREE ? free_root() : draw_page(state, kind);
    uint8_t *page = copy + number * PAGE;
    size_t at = kind == P_OVERFLOW ? below(state, 24) : draw_place(state, image + number * PAGE);
    if (below(state, 2) == 0)
        page[at] ^= (uint8_t)(1u << below(state, 8));
    else
        page[at] = (uint8_t)draw(state);
}

static void damage(uint64_t *state, bool really)
{
    uint8_t *copy = malloc(nr_pages * PAGE);
    memcpy(copy, image, nr_pages * PAGE);
    static const unsigned counts[] = { 1, 3, 12 };
    for (unsigned n = really ? counts[below(state, 3)] : 0; n > 0; n--)
        damage_once(state, copy);
    int fd = open(bad, O_RDWR | O_CREAT | O_TRUNC, 0600);
    if (fd < 0 || pwrite(fd, copy, nr_pages * PAGE, 0) != (ssize_t)(nr_pages * PAGE))
        _exit(99);
    close(fd);
    free(copy);
}

/* ---- a trial: in a process of its own --------------------------------------------------------- */

/* Exit statuses, beside signals; a sanitizer's is 1. */
enum { REFUSED = 8, WRITTEN = 9, FAILED = 10, BOTH = 11, WRONG = 50 };

/* Contents that belong to another version than the right ones. */
static void read_all(struct lmdb *db)
{
    uint8_t got[BYTES_MAX], want[BYTES_MAX], data[BLOCK_SIZE], wanted[BLOCK_SIZE];
    for (unsigned i = 0; i < RECORDS; i++) {
        struct key key = record_key(i);
        ssize_t len = lmdb_get(db, &key, got, sizeof got);
        size_t right = record_value(i, versions[i], want);
        if (len >= 0 &&
            (versions[i] == 0 || (size_t)len != right || memcmp(got, want, right) != 0)) {
            fprintf(stderr, "record %u is wrong\n", i);
            _exit(WRONG);
        }
    }
    for (unsigned object = 0; object < OBJECTS; object++)
        for (unsigned index = 0; index < BLOCKS; index++) {
            struct bio_vec vec = { .index = index, .data = data };
            lmdb_read_blocks(db, object, &vec, NULL, 1);
            unsigned version = block_versions[object][index];
            block_data(object, index, version, wanted);
            if (vec.error == 0 && (vec.flags & BV_HOLE) == 0 &&
                (version == 0 || memcmp(data, wanted, BLOCK_SIZE) != 0)) {
                fprintf(stderr, "block %u of %u is wrong\n", index, object);
                _exit(WRONG);
            }
        }
}

static int change(struct lmdb *db, uint64_t *state, unsigned version)
{
    unsigned i = below(state, RECORDS), object = below(state, OBJECTS);
    unsigned index = below(state, BLOCKS), n, rc = 0;
    struct key key = record_key(i);
    switch (below(state, 5)) {
    case 0:
        versions[i] = version;
        return put_record(db, i, version);
    case 1:
        versions[i] = 0;
        return lmdb_del(db, &key);
    case 2:
        block_versions[object][index] = version;
        return put_block(db, object, index, version);
    case 3:
        block_versions[object][index] = 0;
        return lmdb_del_block(db, object, index);
    default: /* many in a row: pages become sparse and are merged */
        for (n = 2 + below(state, 60); n > 0 && index < BLOCKS && rc == 0; n--, index++) {
            block_versions[object][index] = 0;
            rc = (unsigned)lmdb_del_block(db, object, index);
        }
        return (int)rc;
    }
}

static int write_some(struct lmdb *db, uint64_t *state, unsigned version)
{
    unsigned saved[RECORDS], saved_blocks[OBJECTS][BLOCKS];
    memcpy(saved, versions, sizeof saved);
    memcpy(saved_blocks, block_versions, sizeof saved_blocks);
    int rc = lmdb_begin(db);
    for (unsigned n = rc == 0 ? 1 + below(state, OPS) : 0; n > 0 && rc == 0; n--)
        rc = change(db, state, version);
    if (rc == 0)
        rc = lmdb_commit(db);
    else
        lmdb_abort(db);
    if (rc != 0) { /* as before */
        memcpy(versions, saved, sizeof saved);
        memcpy(block_versions, saved_blocks, sizeof saved_blocks);
    }
    return rc;
}

static int trial(uint64_t state, bool really)
{
    struct lmdb *db;
    int status = REFUSED;
    alarm(TRIAL_LIMIT);
    damage(&state, really);
    if (lmdb_open(bad, false, &db, &error) != 0)
        return REFUSED;
    for (unsigned version = 100; version < (really ? 108 : 160); version++)
        status |= write_some(db, &state, version) == 0 ? WRITTEN : FAILED;
    read_all(db);
    lmdb_close(db);
    return status;
}

/* A trial in a process of its own.   Returns its exit status, which is good. */
static int run_trial(uint64_t n, bool really)
{
    int status;
    pid_t child = fork();
    cr_assert(child >= 0);
    if (child == 0)
        _exit(trial(n, really));
    cr_assert_eq(waitpid(child, &status, 0), child);
    cr_assert(WIFEXITED(status), "FOLIO_SEED=%llu: signal %d", (unsigned long long)n,
              WTERMSIG(status));
    cr_assert(WEXITSTATUS(status) >= REFUSED && WEXITSTATUS(status) <= BOTH,
              "FOLIO_SEED=%llu: status %d", (unsigned long long)n, WEXITSTATUS(status));
    return WEXITSTATUS(status);
}

TestSuite(store_damage, .init = start, .fini = finish);

Test(store_damage, written_to)
{
    const char *given = getenv("FOLIO_TRIALS");
    int trials = given != NULL ? atoi(given) : TRIALS, counts[BOTH + 1] = { 0 };
    for (int i = 0; i < trials; i++)
        counts[run_trial(seed + (uint64_t)i, true)]++;
    fprintf(stderr,
            "%d damages: %d refused at once, %d not met, %d stopped every transaction, %d some\n",
            trials, counts[REFUSED], counts[WRITTEN], counts[FAILED], counts[BOTH]);
}

Test(store_damage, not_imagined)
{
    for (uint64_t i = 0; i < 4; i++)
        cr_assert_eq(run_trial(seed + i, false), WRITTEN);
}
