/* The redo log: what store_sync() promised is there after a crash, LMDB's commit or not; in the state of that
 * moment, neither more nor less; and a log that is damaged is not believed. Power cuts: test_store_powercut.c. */
#include <criterion/criterion.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#include "store/bytes.h"
#include "store/crc32c.h"
#include "store/dev_fault.h"
#include "store/txn.h"

#define OBJECT 7u

static char home[64], volume[80], copy[80];
static struct store *s;
static bool fail_log; /* writes to the log fail */

/* Stands in for libc's: the store writes nothing but its log by it. */
ssize_t pwritev2(int fd, const struct iovec *iov, int n, off_t offset, int flags)
{
    typedef ssize_t real_pwritev2(int, const struct iovec *, int, off_t, int);
    real_pwritev2 *real = *(real_pwritev2 **)&(void *){ dlsym(RTLD_NEXT, "pwritev2") };
    if (fail_log) {
        errno = EIO;
        return -1;
    }
    return real(fd, iov, n, offset, flags);
}

static struct store *open_with(const char *path, struct store_options o)
{
    struct store *out;
    struct store_error error = { "" };
    cr_assert_eq(store_open(path, &o, &out, &error), 0, "%s", error.text);
    return out;
}

static void set_up_with(uint64_t capacity)
{
    struct store_error error = { "" };
    struct store_format f = { .capacity = capacity };
    strcpy(home, "/tmp/folio-log.XXXXXX");
    cr_assert_not_null(mkdtemp(home));
    snprintf(volume, sizeof volume, "%s/v", home);
    snprintf(copy, sizeof copy, "%s/copy", home);
    cr_assert_eq(store_format(volume, &f, &error), 0, "%s", error.text);
    s = open_with(volume, (struct store_options){ .inject = true });
}

static void set_up(void)
{
    set_up_with(64 << 20);
}

static void tear_down(void)
{
    cr_assert_eq(store_close(s), 0);
    unlink(volume);
    unlink(copy);
    cr_assert_eq(rmdir(home), 0);
}

TestSuite(store_log, .init = set_up, .fini = tear_down);

static void end(struct bio *bio)
{
    *(int *)bio->private = bio->error;
}

static uint32_t transfer(struct store *of, enum bio_op op, uint32_t index, void *data,
                         uint16_t flags)
{
    int error = 1;
    struct bio *bio = bio_alloc(op, OBJECT, 1);
    bio_add(bio, index, data, NULL)->flags = flags;
    bio->end_io = end;
    bio->private = &error;
    submit_bio(store_device(of), bio);
    cr_assert_eq(error, 0);
    uint32_t after = bio->vecs[0].flags;
    bio_free(bio);
    return after;
}

static void write_data(uint32_t index, void *data)
{
    bool new = store_block_exists(s, OBJECT, index) == 0;
    cr_assert_eq(store_reserve(s, 1, new), 0);
    transfer(s, BIO_WRITE, index, data, new ? BV_NEW : 0);
}

static void write_block(uint32_t index, uint8_t byte)
{
    uint8_t buf[BLOCK_SIZE];
    memset(buf, byte, sizeof buf);
    write_data(index, buf);
}

static uint8_t read_block(struct store *of, uint32_t index)
{
    uint8_t buf[BLOCK_SIZE];
    return transfer(of, BIO_READ, index, buf, 0) & BV_HOLE ? 0 : buf[BLOCK_SIZE - 1];
}

static void put_name(unsigned i, int value)
{
    struct update u;
    struct key k;
    char name[16];
    key_dirent(&k, 77, name, (size_t)snprintf(name, sizeof name, "n%u", i));
    update_init(&u, s);
    if (value < 0)
        update_del(&u, &k);
    else
        update_put(&u, &k, &value, sizeof value);
    cr_assert_eq(update_apply(&u, 0, NULL), 0);
}

static int get_name(struct store *of, unsigned i)
{
    struct key k;
    char name[16];
    int value;
    key_dirent(&k, 77, name, (size_t)snprintf(name, sizeof name, "n%u", i));
    return store_get(of, &k, &value, sizeof value) == sizeof value ? value : -1;
}

static void trim(uint64_t from, uint64_t to)
{
    struct update u;
    update_init(&u, s);
    update_trim(&u, OBJECT, from, to);
    cr_assert_eq(update_apply(&u, UPDATE_FREES, NULL), 0);
}

static void sync_all(void)
{
    cr_assert_eq(store_sync(s, store_tid(s)), 0);
}

static struct store_stats stats(struct store *of)
{
    struct store_stats st;
    store_stats(of, &st);
    return st;
}

/* The volume as a crash right now would leave it. */
static void crash(void)
{
    char command[256];
    snprintf(command, sizeof command, "cp --sparse=always %s %s", volume, copy);
    cr_assert_eq(system(command), 0);
}

static struct store *crashed(void)
{
    crash();
    return open_with(copy, (struct store_options){ .read_only = false });
}

Test(store_log, a_sync_is_durable_without_a_commit)
{
    put_name(1, 11);
    write_block(3, 'a');
    sync_all();
    put_name(2, 22); /* not synced */
    cr_assert_eq(stats(s).commits, 0);
    cr_assert_eq(stats(s).log_records, 1);
    struct store *c = crashed();
    cr_assert_eq(get_name(c, 1), 11);
    cr_assert_eq(get_name(c, 2), -1);
    cr_assert_eq(read_block(c, 3), 'a');
    cr_assert_eq(stats(c).commits, 1, "what was in the log is committed by opening");
    cr_assert_eq(store_close(c), 0);
    c = open_with(copy, (struct store_options){ .read_only = false });
    cr_assert_eq(stats(c).commits, 0, "and is not any more in the log");
    cr_assert_eq(get_name(c, 1), 11);
    cr_assert_eq(store_close(c), 0);
}

Test(store_log, records_hold_what_is_new_only)
{
    write_block(3, 'a');
    put_name(1, 11);
    sync_all();
    uint64_t bytes = stats(s).log_bytes;
    sync_all();
    cr_assert_eq(stats(s).log_records, 1, "nothing has changed");
    put_name(1, 12);
    sync_all();
    cr_assert_eq(stats(s).log_records, 2);
    cr_assert_eq(stats(s).log_bytes - bytes, LOG_BLOCK_BYTES);
    struct store *c = crashed();
    cr_assert_eq(get_name(c, 1), 12);
    cr_assert_eq(read_block(c, 3), 'a');
    cr_assert_eq(store_close(c), 0);
}

Test(store_log, deletions_are_logged)
{
    put_name(1, 11);
    put_name(2, 22);
    cr_assert_eq(store_commit(s, store_tid(s)), 0);
    put_name(1, -1);
    sync_all();
    put_name(2, -1);
    sync_all();
    struct store *c = crashed();
    cr_assert_eq(get_name(c, 1), -1);
    cr_assert_eq(get_name(c, 2), -1);
    cr_assert_eq(store_close(c), 0);
}

/* A block that is in running only is forgotten when it is deleted, unless the log knows it. */
Test(store_log, blocks_of_the_log_do_not_come_back)
{
    uint64_t count;
    for (uint32_t i = 0; i < 6; i++)
        write_block(i, 'a');
    sync_all();
    write_block(1, 'b'); /* logged, and replaced by one that is not */
    write_block(9, 'c'); /* never logged */
    trim(0, 4);
    trim(9, 10);
    while (store_step(s, 1000000) == 0)
        ;
    sync_all();
    struct store *c = crashed();
    for (uint32_t i = 0; i < 10; i++)
        cr_expect_eq(read_block(c, i), i == 4 || i == 5 ? 'a' : 0, "block %u", i);
    cr_assert_eq(store_count_blocks(c, OBJECT, &count), 0);
    cr_assert_eq(count, 2);
    cr_assert_eq(store_block_exists(c, OBJECT, 1), 0);
    cr_assert_eq(store_close(c), 0);
}

Test(store_log, a_trim_under_way_goes_on_after_a_crash)
{
    for (uint32_t i = 0; i < 40; i++)
        write_block(i, 'a');
    cr_assert_eq(store_commit(s, store_tid(s)), 0);
    trim(10, 2000000); /* one step of it is made at once */
    sync_all();
    struct store *c = crashed();
    while (store_step(c, 1000000) == 0)
        ;
    for (uint32_t i = 0; i < 40; i++)
        cr_expect_eq(read_block(c, i), i >= 10 ? 0 : 'a', "block %u", i);
    uint64_t count;
    cr_assert_eq(store_count_blocks(c, OBJECT, &count), 0);
    cr_assert_eq(count, 10);
    cr_assert_eq(store_close(c), 0);
}

Test(store_log, read_only_shows_what_waits)
{
    char command[300];
    put_name(1, 11);
    for (uint32_t i = 0; i < 4; i++)
        write_block(i, 'a');
    trim(0, 2);
    sync_all();
    crash();
    snprintf(command, sizeof command, "cp %s %s.2", copy, copy);
    cr_assert_eq(system(command), 0);
    struct store *c = open_with(copy, (struct store_options){ .read_only = true });
    cr_assert_eq(get_name(c, 1), 11);
    cr_assert_eq(read_block(c, 0), 0);
    cr_assert_eq(read_block(c, 3), 'a');
    cr_assert_eq(store_close(c), 0);
    snprintf(command, sizeof command, "cmp %s %s.2 && rm %s.2", copy, copy, copy);
    cr_assert_eq(system(command), 0, "opening it read-only has changed it");
}

/* Many times round the ring, with the commits that make room in the background. */
Test(store_log, the_ring_goes_round)
{
    unsigned rounds = (unsigned)(s->log->place.bytes / LOG_BLOCK_BYTES) * 3;
    for (unsigned i = 0; i < rounds; i++) {
        put_name(i % 50, (int)i);
        if (i % 3 == 0)
            write_block(i % 20, (uint8_t)(i % 250 + 1));
        sync_all();
        if (i % 7 == 0)
            store_step(s, 1000000);
        if (i % 97 != 0)
            continue;
        struct store *c = crashed();
        for (unsigned n = 0; n < 50 && n <= i; n++)
            cr_assert_eq(get_name(c, n), (int)(i - (i - n) % 50), "name %u after %u", n, i);
        cr_assert_eq(store_close(c), 0);
    }
    cr_assert_gt(s->log->head, 2 * s->log->place.bytes);
    cr_assert_gt(stats(s).commits, 2);
    cr_assert_gt(stats(s).log_records, rounds * 9 / 10);
}

Test(store_log, nobody_makes_room_then_a_commit_is_waited_for)
{
    unsigned rounds = (unsigned)(s->log->place.bytes / LOG_BLOCK_BYTES) * 2;
    for (unsigned i = 0; i < rounds; i++) {
        put_name(i % 50, (int)i);
        sync_all();
    }
    cr_assert_gt(stats(s).commits, 0);
    struct store *c = crashed();
    for (unsigned n = 0; n < 50; n++)
        cr_assert_eq(get_name(c, n), (int)(rounds - 1 - (rounds - 1 - n) % 50), "name %u", n);
    cr_assert_eq(store_close(c), 0);
}

Test(store_log, much_is_committed)
{
    for (uint32_t i = 0; i < 200; i++)
        write_block(i, 'a');
    sync_all();
    cr_assert_eq(stats(s).commits, 1);
    cr_assert_eq(stats(s).log_records, 0);
    put_name(1, 11);
    sync_all();
    cr_assert_eq(stats(s).log_records, 1);
}

/* As before a commit, which nobody makes. */
static void freeze_running(void)
{
    pthread_mutex_lock(&s->lock);
    s->committing = s->running;
    s->committing->log_end = s->log->head;
    s->running = txn_new(s->committing->tid + 1);
    pthread_mutex_unlock(&s->lock);
}

/* A crash while a transaction that is all in the log is being committed: the next one's records follow
 * its own. */
Test(store_log, one_transaction_after_the_other)
{
    put_name(1, 11);
    sync_all();
    freeze_running();
    put_name(1, 12);
    put_name(2, 22);
    sync_all();
    cr_assert_eq(stats(s).commits, 0);
    cr_assert_eq(stats(s).log_records, 2);
    struct store *c = crashed();
    cr_assert_eq(get_name(c, 1), 12);
    cr_assert_eq(get_name(c, 2), 22);
    cr_assert_eq(store_close(c), 0);
    store_step(s, 1000000); /* the first is committed, the second is still in the log only */
    cr_assert_eq(stats(s).commits, 1);
    c = crashed();
    cr_assert_eq(get_name(c, 1), 12);
    cr_assert_eq(get_name(c, 2), 22);
    cr_assert_eq(store_close(c), 0);
}

/* L1: what is frozen and not in the log has to be committed first. */
Test(store_log, nothing_is_logged_behind_what_is_not)
{
    put_name(1, 11);
    freeze_running();
    put_name(2, 22);
    sync_all();
    cr_assert_eq(stats(s).commits, 1);
    cr_assert_eq(stats(s).log_records, 1);
    struct store *c = crashed();
    cr_assert_eq(get_name(c, 1), 11);
    cr_assert_eq(get_name(c, 2), 22);
    cr_assert_eq(store_close(c), 0);
}

/* ---- what fails ------------------------------------------------------------------------------ */

Test(store_log, a_record_that_cannot_be_written_is_committed)
{
    put_name(1, 11);
    sync_all();
    put_name(2, 22);
    fail_log = true;
    sync_all();
    fail_log = false;
    cr_assert_eq(stats(s).commits, 1);
    cr_assert_eq(stats(s).commit_errors, 0);
    put_name(3, 33);
    sync_all();
    cr_assert_eq(stats(s).commits, 2, "a log that has failed is not used again");
    struct store *c = crashed();
    for (int i = 1; i <= 3; i++)
        cr_assert_eq(get_name(c, (unsigned)i), 11 * i);
    cr_assert_eq(store_close(c), 0);
}

Test(store_log, rules_for_commits_hold_for_it)
{
    struct fault_rule rule = { .kind = FAULT_EIO, .commits = true, .count = 1 };
    put_name(1, 11);
    cr_assert_eq(dev_fault_add(store_faults(s), &rule), 0);
    cr_assert_eq(store_sync(s, store_tid(s)), -EIO);
    cr_assert_eq(stats(s).commit_errors, 1);
    sync_all(); /* by a commit: the log has a gap */
    cr_assert_eq(stats(s).commits, 1);
    put_name(2, 22);
    sync_all();
    cr_assert_eq(stats(s).commits, 1);
    cr_assert_eq(stats(s).log_records, 1);
    struct store *c = crashed();
    cr_assert_eq(get_name(c, 1), 11);
    cr_assert_eq(get_name(c, 2), 22);
    cr_assert_eq(store_close(c), 0);
}

/* What was acknowledged stays in the log while there is no room to put it into place. */
Test(store_log, a_disk_without_room)
{
    struct stat st;
    struct rlimit before, small;
    struct store *c;
    struct store_error error = { "" };
    struct store_options o = { .read_only = false };
    for (uint32_t i = 0; i < 60; i++)
        write_block(i, (uint8_t)(i + 1));
    sync_all();
    cr_assert_eq(stats(s).commits, 0);
    crash();
    cr_assert_eq(truncate(copy, (off_t)stats(s).file_bytes),
                 0); /* without what was allocated ahead */
    cr_assert_eq(stat(copy, &st), 0);
    cr_assert_eq(getrlimit(RLIMIT_FSIZE, &before), 0);
    small = (struct rlimit){ .rlim_cur = (rlim_t)st.st_size, .rlim_max = before.rlim_max };
    cr_assert_neq(signal(SIGXFSZ, SIG_IGN), SIG_ERR);
    cr_assert_eq(setrlimit(RLIMIT_FSIZE, &small), 0);
    cr_assert_lt(store_open(copy, &o, &c, &error), 0);
    cr_assert_eq(setrlimit(RLIMIT_FSIZE, &before), 0);
    cr_assert_not_null(strstr(error.text, "in its log cannot be put into place"), "%s", error.text);
    o.read_only = true;
    c = open_with(copy, o);
    cr_assert_eq(read_block(c, 59), 60);
    cr_assert_eq(store_close(c), 0);
    o.read_only = false;
    c = open_with(copy, o);
    for (uint32_t i = 0; i < 60; i++)
        cr_expect_eq(read_block(c, i), i + 1);
    cr_assert_eq(store_close(c), 0);
}

static void flip(uint64_t position, uint64_t at)
{
    uint8_t byte;
    int fd = open(copy, O_RDWR);
    off_t offset = (off_t)(s->log->place.offset + position % s->log->place.bytes + at);
    cr_assert_eq(pread(fd, &byte, 1, offset), 1);
    byte ^= 0x40;
    cr_assert_eq(pwrite(fd, &byte, 1, offset), 1);
    close(fd);
}

/* The last record may be what the power cut off; one before it may not. */
Test(store_log, a_damaged_record)
{
    uint64_t position[4];
    struct store *c;
    struct store_error error;
    for (unsigned i = 0; i < 4; i++) {
        position[i] = s->log->head;
        put_name(i, (int)i);
        sync_all();
    }
    static const uint64_t where[] = { 3, 17, 33, 70 }; /* magic, position, length, payload */
    for (unsigned n = 0; n < 4; n++) {
        crash();
        flip(position[3], where[n]);
        c = open_with(copy, (struct store_options){ .read_only = false });
        cr_assert_eq(get_name(c, 2), 2);
        cr_assert_eq(get_name(c, 3), -1);
        cr_assert_eq(store_close(c), 0);

        crash();
        flip(position[2], where[n]);
        struct store_options o = { .read_only = false };
        cr_assert_eq(store_open(copy, &o, &c, &error), -EIO);
        cr_assert_not_null(strstr(error.text, "log is damaged"), "%s", error.text);
        o.read_only = true;
        c = open_with(copy, o);
        cr_assert_eq(get_name(c, 1), 1);
        cr_assert_eq(get_name(c, 2), -1);
        cr_assert_eq(store_close(c), 0);
        c = open_with(copy, (struct store_options){ .cut_log = true });
        cr_assert_eq(get_name(c, 1), 1);
        cr_assert_eq(get_name(c, 3), -1);
        cr_assert_eq(store_close(c), 0);
        c = open_with(copy, (struct store_options){ .read_only = false });
        cr_assert_eq(get_name(c, 1), 1);
        cr_assert_eq(get_name(c, 3), -1);
        cr_assert_eq(store_close(c), 0);
    }
    crash();
    flip(position[0],
         70); /* nothing is left: there is nothing to commit but where the log begins */
    c = open_with(copy, (struct store_options){ .cut_log = true });
    cr_assert_eq(get_name(c, 0), -1);
    cr_assert_eq(store_close(c), 0);
    c = open_with(copy, (struct store_options){ .read_only = false });
    cr_assert_eq(store_close(c), 0);
}

/* ---- records as they might be found ---------------------------------------------------------- */

/* Put a record with the given changes at a position of the copy, as if it had been written there. */
static void forge(uint64_t position, uint64_t last, const void *changes, size_t len, uint32_t nr,
                  uint64_t escaped)
{
    static uint8_t record[256 << 10];
    static const char magic[8] = { 'F', 'o', 'l', 'i', 'o', 'L', 'g', '1' };
    memset(record, 0, sizeof record);
    memcpy(record, magic, sizeof magic);
    put_le32(record + 12, crc32c(0, changes, len));
    put_le64(record + 16, position);
    put_le64(record + 24, last);
    put_le32(record + 32, (uint32_t)len);
    put_le32(record + 36, nr);
    put_le64(record + 40, escaped);
    put_le32(record + 8, crc32c(0, record + 12, 52));
    memcpy(record + 64, changes, len);
    int fd = open(copy, O_RDWR);
    size_t all = (64 + len + LOG_BLOCK_BYTES - 1) / LOG_BLOCK_BYTES * LOG_BLOCK_BYTES;
    off_t at = (off_t)(s->log->place.offset + position % s->log->place.bytes);
    cr_assert_eq(pwrite(fd, record, all, at), (ssize_t)all);
    close(fd);
}

/* PUT_RECORD of a key and a value. */
static size_t change(uint8_t *to, const void *key, size_t key_len, const void *value, size_t len)
{
    to[0] = 1;
    to[1] = (uint8_t)key_len;
    to[2] = 0;
    put_le32(to + 3, (uint32_t)len);
    memcpy(to + 7, key, key_len);
    memcpy(to + 7 + key_len, value, len);
    return 7 + key_len + len;
}

static int open_copy(struct store **out, bool cut)
{
    struct store_error error = { "" };
    struct store_options o = { .cut_log = cut };
    return store_open(copy, &o, out, &error);
}

/* The power goes while a record is written at the ring's beginning, for which there was no room at its end; the next one
 * finds room there, and then the power goes again. What is left of the first is no damage. */
Test(store_log, two_crashes_at_the_end_of_the_ring)
{
    struct store *c;
    uint64_t ring = s->log->place.bytes;
    while (s->log->head % ring != ring - 2 * LOG_BLOCK_BYTES) {
        put_name(1, (int)(s->log->head / LOG_BLOCK_BYTES));
        sync_all();
        store_step(s, 0);
    }
    uint64_t head = s->log->head, last = s->log->last, round = (head / ring + 1) * ring;
    crash();
    forge(round, last, "not what its checksum says", 20, 1, 0);
    flip(round, 70);
    cr_assert_eq(open_copy(&c, false), 0);
    cr_assert_eq(c->log->head, head);
    cr_assert_eq(store_close(c), 0);

    put_name(2, 22); /* in two blocks at most */
    sync_all();
    cr_assert_eq(s->log->head, head + LOG_BLOCK_BYTES);
    crash();
    forge(round, last, "not what its checksum says", 20, 1, 0);
    flip(round, 70);
    cr_assert_eq(open_copy(&c, false), 0);
    cr_assert_eq(get_name(c, 2), 22);
    cr_assert_eq(store_close(c), 0);
}

/* Records with good checksums that no store writes: never anything but a damaged log, of which nothing is taken. Each
 * begins with a change that could be: another counter. */
Test(store_log, hostile_records)
{
    static const struct {
        const char *what;
        const char *key; /* of a second change */
        size_t too_long;
        uint32_t nr;
        uint64_t escaped;
    } cases[] = {
        { "an escaped block behind it", NULL, 0, 1, (uint64_t)1 << 63 },
        { "a byte behind its changes", NULL, 1, 1, 0 },
        { "more changes than it holds", NULL, 0, 2, 0 },
        { "the superblock", "S", 0, 2, 0 },
        { "the ring", "R", 0, 2, 0 },
        { "the tail", "P", 0, 2, 0 },
        { "a block's key", "B234567890123", 0, 2, 0 },
        { "a key of no type", "?", 0, 2, 0 },
    };
    uint64_t head = s->log->head;
    struct store *c;
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        uint8_t changes[200] = { 0 };
        size_t len = change(changes, "I", 1, "123456789", 9);
        if (cases[i].key != NULL)
            len += change(changes + len, cases[i].key, strlen(cases[i].key), "x", 1);
        crash();
        forge(head, LOG_NONE, changes, len + cases[i].too_long, cases[i].nr, cases[i].escaped);
        int err = open_copy(&c, false); /* a header that cannot be is none: nothing is under way */
        cr_assert_eq(err, cases[i].escaped != 0 ? 0 : -EIO, "%s: %d", cases[i].what, err);
        if (err == 0)
            cr_assert_eq(store_close(c), 0);
        cr_assert_eq(open_copy(&c, true), 0, "%s", cases[i].what);
        cr_assert_eq(store_close(c), 0);
        cr_assert_eq(open_copy(&c, false), 0, "%s", cases[i].what);
        cr_assert_lt(c->next_number, 1 << 20, "%s: a part of it came in", cases[i].what);
        cr_assert_eq(store_close(c), 0);
    }
}

static void change_in_lmdb(const struct key *key, const void *value, size_t len)
{
    struct lmdb *l;
    struct store_error error = { "" };
    cr_assert_eq(lmdb_open(copy, false, &l, &error), 0, "%s", error.text);
    cr_assert_eq(lmdb_begin(l), 0);
    cr_assert_eq(value != NULL ? lmdb_put(l, key, value, len) : lmdb_del(l, key), 0);
    cr_assert_eq(lmdb_commit(l), 0);
    lmdb_close(l);
}

/* Nobody knows where it begins: a read-only mount is without it, and cutting it is all that can be done. */
Test(store_log, without_its_tail)
{
    uint8_t odd[NUMBER_BYTES];
    struct key tail;
    struct store *c;
    key_log_tail(&tail);
    put_name(1, 11);
    cr_assert_eq(store_commit(s, store_tid(s)), 0);
    put_name(1, 12);
    sync_all();
    for (int i = 0; i < 3; i++) {
        crash();
        if (i == 0)
            change_in_lmdb(&tail, NULL, 0);
        else
            change_in_lmdb(&tail, odd, number_encode(i == 1 ? 17 : UINT64_MAX - 4095, odd));
        cr_assert_eq(open_copy(&c, false), -EIO);
        c = open_with(copy, (struct store_options){ .read_only = true });
        cr_assert_eq(get_name(c, 1), 11);
        cr_assert(stats(c).log_cut);
        cr_assert_eq(store_close(c), 0);
        cr_assert_eq(open_copy(&c, true), 0);
        cr_assert_eq(store_close(c), 0);
        cr_assert_eq(open_copy(&c, false), 0);
        cr_assert_eq(get_name(c, 1), 11);
        cr_assert_not(stats(c).log_cut);
        cr_assert_eq(store_close(c), 0);
    }
}

/* Who is refused room has commits made beside others' records of the log: what those are for must not come into one. */
static _Atomic bool enough;

static void *make_room_again_and_again(void *unused)
{
    (void)unused;
    for (uint8_t byte = 0; !enough; byte++) {
        for (uint32_t index = 0; index < 100; index++)
            write_block(index, byte);
        cr_expect_eq(store_make_room(s), 0);
    }
    return NULL;
}

Test(store_log, commits_for_room_leave_nothing_in_the_log_that_cannot_be_replayed, .timeout = 60)
{
    pthread_t other;
    enough = false;
    cr_assert_eq(pthread_create(&other, NULL, make_room_again_and_again, NULL), 0);
    for (unsigned i = 0; i < 300; i++) {
        put_name(i, (int)i);
        cr_expect_eq(store_sync(s, store_tid(s)), 0);
    }
    enough = true;
    pthread_join(other, NULL);
    struct store *c = crashed();
    for (unsigned i = 0; i < 300; i++)
        cr_expect_eq(get_name(c, i), (int)i);
    cr_assert_eq(store_close(c), 0);
}

/* What fsck repairs otherwise is not in the way of putting the log into place. */
Test(store_log, cutting_looks_at_nothing_else)
{
    struct key counter;
    struct store *c;
    key_counter(&counter);
    put_name(1, 11);
    sync_all();
    crash();
    change_in_lmdb(&counter, "no number", 9);
    cr_assert_lt(open_copy(&c, false), 0);
    cr_assert_eq(open_copy(&c, true), 0);
    cr_assert_eq(store_close(c), 0);
    c = open_with(copy, (struct store_options){ .cut_log = true });
    cr_assert_eq(get_name(c, 1), 11);
    cr_assert_eq(c->log->head, c->log->tail);
    cr_assert_eq(store_close(c), 0);
}

/* Rings that are no multiple of four blocks. */
Test(store_log_sizes, records_as_long_as_they_may_be, .init = NULL)
{
    static const uint64_t capacities[] = { 30000000, 22000000, 16 << 20, 17000001 };
    for (size_t n = 0; n < sizeof capacities / sizeof capacities[0]; n++) {
        set_up_with(capacities[n]);
        for (uint32_t blocks = 1; blocks < 40; blocks++) {
            for (uint32_t i = 0; i < blocks; i++)
                write_block(i, (uint8_t)(blocks + i));
            sync_all();
        }
        cr_assert_gt(stats(s).log_records, 10);
        struct store *c = crashed();
        for (uint32_t i = 0; i < 39; i++)
            cr_assert_eq(read_block(c, i), (uint8_t)(39 + i));
        cr_assert_eq(store_close(c), 0);
        tear_down();
    }
}

/* A bit of its length: nothing is written to pages that are not its own. */
Test(store_log, a_ring_that_seems_longer)
{
    struct stat st;
    struct store *c;
    struct store_error error = { "" };
    struct store_options o = { .read_only = false };
    uint32_t len = (uint32_t)(s->log->place.bytes + LOG_BLOCK_BYTES - 16), longer = len ^ 1u << 22;
    cr_assert_eq(stat(volume, &st), 0);
    uint8_t *file = malloc((size_t)st.st_size);
    crash();
    int fd = open(copy, O_RDWR);
    cr_assert_eq(pread(fd, file, (size_t)st.st_size, 0), st.st_size);
    unsigned found =
        0; /* LMDB's node: the length's halves, flags (big data), the key's length, the key */
    for (off_t i = 0; i + 9 < st.st_size; i++)
        if (memcmp(file + i, &len, 4) == 0 && file[i + 4] == 1 && file[i + 6] == 1 &&
            file[i + 8] == KEY_LOG) {
            cr_assert_eq(pwrite(fd, &longer, 4, i), 4);
            found++;
        }
    close(fd);
    free(file);
    cr_assert_gt(found, 0);
    cr_assert_eq(store_open(copy, &o, &c, &error), -EIO);
    o.read_only = true;
    c = open_with(copy, o);
    cr_assert(stats(c).log_cut);
    cr_assert_eq(store_close(c), 0);
}

/* Files may contain what looks like records, at the very place of the next one. */
Test(store_log, what_files_contain_is_no_record)
{
    static uint8_t image[64][LOG_BLOCK_BYTES];
    uint64_t start = s->log->head;
    unsigned nr = 0;
    put_name(1, 11);
    sync_all();
    put_name(1, -1);
    sync_all();
    crash();
    int fd = open(copy, O_RDONLY);
    for (; nr < 2; nr++)
        cr_assert_eq(pread(fd, image[nr], LOG_BLOCK_BYTES,
                           (off_t)(s->log->place.offset + start + nr * LOG_BLOCK_BYTES)),
                     LOG_BLOCK_BYTES);
    close(fd);
    /* The same bytes at every offset that a block can have in a record. */
    for (unsigned shift = 0; shift < 200; shift++) {
        uint8_t buf[2 * LOG_BLOCK_BYTES];
        memcpy(buf, image[0], LOG_BLOCK_BYTES);
        memcpy(buf + LOG_BLOCK_BYTES, image[0], LOG_BLOCK_BYTES);
        write_data(shift % 8, buf + shift);
        write_data(8 + shift % 8, buf + LOG_BLOCK_BYTES - shift);
        sync_all();
    }
    uint8_t expect[BLOCK_SIZE], got[BLOCK_SIZE];
    struct store *c = crashed();
    cr_assert_eq(get_name(c, 1), -1);
    transfer(s, BIO_READ, 7, expect, 0);
    transfer(c, BIO_READ, 7, got, 0);
    cr_assert_arr_eq(got, expect, BLOCK_SIZE);
    cr_assert_eq(store_close(c), 0);
}

Test(store_log_none, small_volumes_have_none, .init = NULL)
{
    set_up_with(MIN_CAPACITY);
    cr_assert_null(s->log);
    put_name(1, 11);
    sync_all();
    cr_assert_eq(stats(s).commits, 1);
    struct store *c = crashed();
    cr_assert_eq(get_name(c, 1), 11);
    cr_assert_eq(store_close(c), 0);
    tear_down();
}
