/* A power cut at any write: what LMDB and the log send to the disk is recorded, and images are made of what a
 * disk may hold after a cut: everything up to the last completed sync, and of what came after it any
 * subset, each write torn at any sector. Every image must open and hold exactly the state of the
 * last sync that was acknowledged, or of the one under way. One of them is gone on with, and cut again. */
#include <criterion/criterion.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#include "store/store.h"

/* ---- recording: these stand in for libc's, for the volume's descriptors ---------------------- */

enum op_kind { OP_WRITE, OP_SYNC, OP_SIZE, OP_CUT };

struct op {
    enum op_kind kind;
    bool through; /* O_DSYNC: durable on return */
    off_t offset;
    size_t len;
    uint8_t *data;
};

static struct op *ops;
static size_t nr_ops, max_ops;
static bool recording;
static ino_t volume_ino;

static bool is_volume(int fd)
{
    struct stat st;
    return recording && fstat(fd, &st) == 0 && st.st_ino == volume_ino;
}

static struct op *record(enum op_kind kind, off_t offset, size_t len)
{
    if (nr_ops == max_ops) {
        max_ops = max_ops * 2 + 1024;
        ops = realloc(ops, max_ops * sizeof *ops);
    }
    ops[nr_ops] = (struct op){ .kind = kind, .offset = offset, .len = len };
    return &ops[nr_ops++];
}

static void record_write(bool through, off_t offset, const struct iovec *iov, int n)
{
    size_t len = 0, at = 0;
    for (int i = 0; i < n; i++)
        len += iov[i].iov_len;
    if (len == 0)
        return;
    struct op *o = record(OP_WRITE, offset, len);
    o->through = through;
    o->data = malloc(len);
    for (int i = 0; i < n; at += iov[i++].iov_len)
        memcpy(o->data + at, iov[i].iov_base, iov[i].iov_len);
}

static bool is_through(int fd)
{
    return fcntl(fd, F_GETFL) & O_DSYNC;
}

/* libc's own function of that name. */
#define REAL(type, name, ...) (*(type(**)(__VA_ARGS__))(void *)&(void *){ dlsym(RTLD_NEXT, #name) })

/* The headers call it pwrite64 when offsets are made 64 bits wide; LMDB calls the plain name. */
ssize_t recorded_pwrite(int fd, const void *buf, size_t len, off_t offset) __asm__("pwrite");

ssize_t recorded_pwrite(int fd, const void *buf, size_t len, off_t offset)
{
    if (is_volume(fd)) {
        struct iovec iov = { .iov_base = (void *)(uintptr_t)buf, .iov_len = len };
        record_write(is_through(fd), offset, &iov, 1);
    }
    return REAL(ssize_t, pwrite, int, const void *, size_t, off_t)(fd, buf, len, offset);
}

ssize_t writev(int fd, const struct iovec *iov, int n)
{
    if (is_volume(fd))
        record_write(is_through(fd), lseek(fd, 0, SEEK_CUR), iov, n);
    return REAL(ssize_t, writev, int, const struct iovec *, int)(fd, iov, n);
}

ssize_t pwritev2(int fd, const struct iovec *iov, int n, off_t offset, int flags)
{
    if (is_volume(fd))
        record_write(flags & RWF_DSYNC, offset, iov, n);
    return REAL(ssize_t, pwritev2, int, const struct iovec *, int, off_t, int)(fd, iov, n, offset,
                                                                               flags);
}

int fdatasync(int fd)
{
    int r = REAL(int, fdatasync, int)(fd);
    if (is_volume(fd))
        record(OP_SYNC, 0, 0);
    return r;
}

int fsync(int fd)
{
    int r = REAL(int, fsync, int)(fd);
    if (is_volume(fd))
        record(OP_SYNC, 0, 0);
    return r;
}

int fallocate(int fd, int mode, off_t offset, off_t len)
{
    if (is_volume(fd))
        record(OP_SIZE, offset + len, 0);
    return REAL(int, fallocate, int, int, off_t, off_t)(fd, mode, offset, len);
}

int ftruncate(int fd, off_t len)
{
    if (is_volume(fd))
        record(OP_CUT, len, 0);
    return REAL(int, ftruncate, int, off_t)(fd, len);
}

/* ---- the load, and what is true after each sync -------------------------------------------- */

#define NAMES  40u
#define BLOCKS 120u
#define SYNCS  160u /* at most, of a session */

struct state {
    int names[NAMES];             /* -1: absent */
    int blocks[BLOCKS];           /* -1: hole */
    size_t started, acknowledged; /* positions in ops */
};

static struct state states[SYNCS + 1]; /* [0]: at the start of the session */
static unsigned nr_syncs;
static char dir[64], path[96], before[96], image[96], opened[96];
static unsigned seed;

static uint32_t pick(uint32_t below)
{
    return (uint32_t)rand_r(&seed) % below;
}

static void name_key(struct key *k, unsigned i)
{
    char name[16];
    key_dirent(k, 77, name, (size_t)snprintf(name, sizeof name, "n%u", i));
}

static void fill(uint8_t *buf, unsigned index, int value)
{
    for (size_t i = 0; i < BLOCK_SIZE / sizeof(int); i++)
        ((int *)(void *)buf)[i] = value + (int)(index * 131u + i);
}

static void no_end(struct bio *bio)
{
    (void)bio;
}

static void put_block(struct store *s, struct state *st, unsigned index, int value)
{
    uint8_t buf[BLOCK_SIZE];
    bool fresh = st->blocks[index] < 0;
    struct bio *bio = bio_alloc(BIO_WRITE, 5, 1);
    fill(buf, index, value);
    cr_assert_eq(store_reserve(s, 1, fresh), 0);
    bio_add(bio, index, buf, NULL)->flags = fresh ? BV_NEW : 0;
    bio->end_io = no_end;
    submit_bio(store_device(s), bio);
    cr_assert_eq(bio->error, 0);
    bio_free(bio);
    st->blocks[index] = value;
}

static void change(struct store *s, struct state *st)
{
    struct update u;
    struct key k;
    update_init(&u, s);
    for (unsigned n = 1 + pick(5); n > 0; n--) {
        unsigned i = pick(NAMES);
        name_key(&k, i);
        st->names[i] = pick(3) == 0 ? -1 : (int)pick(100000);
        if (st->names[i] < 0)
            update_del(&u, &k);
        else
            update_put(&u, &k, &st->names[i], sizeof st->names[i]);
    }
    if (pick(6) == 0) {
        unsigned from = pick(BLOCKS), to = from + 1 + pick(BLOCKS - from);
        update_trim(&u, 5, from, to);
        for (unsigned i = from; i < to; i++)
            st->blocks[i] = -1;
    }
    cr_assert_eq(update_apply(&u, 0, NULL), 0);
    for (unsigned n = pick(12); n > 0; n--)
        put_block(s, st, pick(BLOCKS), (int)pick(100000));
}

static struct store *open_at(const char *where)
{
    struct store *s = NULL;
    struct store_error error = { "" };
    struct store_options o = { 0 };
    cr_assert_eq(store_open(where, &o, &s, &error), 0, "seed %u: %s", seed, error.text);
    return s;
}

static void forget_ops(void)
{
    for (size_t i = 0; i < nr_ops; i++)
        free(ops[i].data);
    nr_ops = 0;
}

/* Open the volume, which holds states[0], change and sync it; what becomes of the file is recorded. Its end is
 * not: it is cut off. */
static struct store_stats run_session(unsigned syncs)
{
    struct store_stats counts;
    struct stat st;
    cr_assert_eq(stat(path, &st), 0);
    volume_ino = st.st_ino;
    forget_ops();
    states[0].started = states[0].acknowledged = 0;
    nr_syncs = syncs;
    recording = true;
    struct store *s = open_at(path); /* may have to write what was in the log */
    for (unsigned i = 1; i <= syncs; i++) {
        states[i] = states[i - 1];
        change(s, &states[i]);
        states[i].started = nr_ops;
        uint64_t tid = store_tid(s);
        cr_assert_eq(pick(5) == 0 ? store_commit(s, tid) : store_sync(s, tid), 0);
        states[i].acknowledged = nr_ops;
        if (pick(4) == 0) { /* room promised in vain, and given back */
            cr_assert_eq(store_reserve(s, 10000, 0), 0);
            store_unreserve(s, 10000, 0);
            store_step(s, 1000000);
        }
    }
    recording = false;
    store_stats(s, &counts);
    cr_assert_eq(store_close(s), 0);
    return counts;
}

/* ---- images ---------------------------------------------------------------------------------- */

static void copy_file(const char *from, const char *to)
{
    char command[256];
    snprintf(command, sizeof command, "cp --sparse=always %s %s", from, to);
    cr_assert_eq(system(command), 0);
}

static void put_sectors(int fd, const struct op *o, bool all)
{
    for (size_t at = 0; at < o->len; at += 512) {
        size_t n = o->len - at < 512 ? o->len - at : 512;
        if (all || pick(2))
            cr_assert_eq(pwrite(fd, o->data + at, n, o->offset + (off_t)at), (ssize_t)n);
    }
}

/* What the disk may hold when the power goes while operation cut is under way. */
static void make_image(size_t cut)
{
    size_t synced = 0;
    copy_file(before, image);
    int fd = open(image, O_RDWR);
    cr_assert_geq(fd, 0);
    for (size_t i = 0; i < cut; i++)
        if (ops[i].kind == OP_SYNC)
            synced = i;
    for (size_t i = 0; i < nr_ops && i <= cut; i++) {
        bool certain = i < synced || (ops[i].through && i < cut);
        struct stat st;
        if (ops[i].kind == OP_SYNC)
            continue;
        if (ops[i].kind == OP_WRITE && (certain || pick(3) != 0))
            put_sectors(fd, &ops[i], certain || pick(3) == 0);
        if (ops[i].kind == OP_SIZE && (certain || pick(2)) && fstat(fd, &st) == 0 &&
            st.st_size < ops[i].offset)
            cr_assert_eq(ftruncate(fd, ops[i].offset), 0);
        if (ops[i].kind == OP_CUT && (certain || pick(2)) && fstat(fd, &st) == 0 &&
            st.st_size > ops[i].offset)
            cr_assert_eq(ftruncate(fd, ops[i].offset), 0);
    }
    close(fd);
}

static bool same_names(struct store *s, const struct state *st)
{
    for (unsigned i = 0; i < NAMES; i++) {
        struct key k;
        int value;
        name_key(&k, i);
        ssize_t n = store_get(s, &k, &value, sizeof value);
        if (st->names[i] < 0 ? n != -ENOENT : n != sizeof value || value != st->names[i])
            return false;
    }
    return true;
}

static bool same_blocks(struct store *s, const struct state *st)
{
    for (unsigned i = 0; i < BLOCKS; i++) {
        uint8_t buf[BLOCK_SIZE], expect[BLOCK_SIZE] = { 0 };
        struct bio *bio = bio_alloc(BIO_READ, 5, 1);
        bio_add(bio, i, buf, NULL);
        bio->end_io = no_end;
        submit_bio(store_device(s), bio);
        int error = bio->error;
        bio_free(bio);
        if (st->blocks[i] >= 0)
            fill(expect, i, st->blocks[i]);
        if (error != 0 || memcmp(buf, expect, BLOCK_SIZE) != 0)
            return false;
    }
    return true;
}

/* Returns the number of the state that it holds. */
static unsigned check_image(size_t cut)
{
    unsigned last = 0;
    while (last < nr_syncs && states[last + 1].acknowledged <= cut)
        last++;
    make_image(cut);
    copy_file(image, opened); /* it may be gone on with as it is */
    struct store *s = open_at(opened);
    bool ok = same_names(s, &states[last]) && same_blocks(s, &states[last]);
    if (!ok && last < nr_syncs && states[last + 1].started <= cut) {
        last++;
        ok = same_names(s, &states[last]) && same_blocks(s, &states[last]);
    }
    cr_assert(ok, "cut at %zu of %zu, after sync %u: neither that state nor the next", cut, nr_ops,
              last);
    cr_assert_eq(store_close(s), 0);
    return last;
}

static void start(void)
{
    const char *given = getenv("FOLIO_SEED");
    struct store_error error = { "" };
    struct store_format f = { .capacity = 32 << 20 }; /* a small log, to go round it */
    seed = given != NULL ? (unsigned)strtoul(given, NULL, 0) : 99u;
    fprintf(stderr, "seed %u\n", seed);
    strcpy(dir, "/tmp/folio-cut.XXXXXX");
    cr_assert_not_null(mkdtemp(dir));
    snprintf(path, sizeof path, "%s/v", dir);
    snprintf(before, sizeof before, "%s/before", dir);
    snprintf(image, sizeof image, "%s/image", dir);
    snprintf(opened, sizeof opened, "%s/opened", dir);
    cr_assert_eq(store_format(path, &f, &error), 0, "%s", error.text);
    copy_file(path, before);
    memset(&states[0], 0xff, sizeof states[0]);
}

static void finish(void)
{
    forget_ops();
    unlink(path);
    unlink(before);
    unlink(image);
    unlink(opened);
    rmdir(dir);
}

TestSuite(store_powercut, .init = start, .fini = finish);

Test(store_powercut, every_image_is_the_last_acknowledged_state_or_the_one_under_way)
{
    struct store_stats counts = run_session(SYNCS);
    fprintf(stderr, "%llu commits, %llu records of the log, %llu bytes\n",
            (unsigned long long)counts.commits, (unsigned long long)counts.log_records,
            (unsigned long long)counts.log_bytes);
    cr_assert_gt(counts.log_records, SYNCS / 2);
    cr_assert_gt(nr_ops, SYNCS * 2, "only %zu operations were recorded", nr_ops);
    size_t cuts = 0;
    for (size_t i = 0; i < nr_ops; i++)
        cuts += ops[i].kind == OP_CUT;
    cr_assert_gt(cuts, 0, "no room was given back");
    for (unsigned i = 0; i < 250; i++)
        (void)check_image(pick((uint32_t)nr_ops));
}

/* Anywhere; or where the log goes back to the beginning of its ring, for what is torn there lies ahead of what the
 * next session writes. */
static size_t pick_cut(void)
{
    off_t last = 0;
    for (size_t i = 0; i < nr_ops; i++) {
        if (!ops[i].through)
            continue;
        if (ops[i].offset < last && pick(2))
            return i;
        last = ops[i].offset;
    }
    return pick((uint32_t)nr_ops + 1);
}

/* Sessions that each begin with what the cut before has left, and end in a cut: in the middle of reading the log
 * again, before anything was written, or somewhere later. */
Test(store_powercut, sessions_that_follow_each_other_and_are_all_cut)
{
    for (unsigned session = 0; session < 40; session++) {
        (void)run_session(pick(3) == 0 ? 0 : 1 + pick(12));
        unsigned now = 0;
        for (unsigned i = 0; i < 4; i++) /* the last of them is gone on with */
            now = check_image(pick_cut());
        states[0] = states[now];
        copy_file(image, path);
        copy_file(image, before);
    }
}
