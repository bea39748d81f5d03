/* mmap_races: stores to a mapped file beside truncation, holes, writes, copies, eviction.
 *
 *     mmap_races DIRECTORY SECONDS [NAME]   one line per race, SECONDS each: ok or FAIL and why; 1 when any failed;
 *                                           only NAME, or with -NAME all but that
 *
 * DIRECTORY is empty, and stays that way. Nothing here knows which file system it is on: it passes on ext4 as well, but
 * for two_pages (see mount_mmap.sh).
 *
 * STORERS processes store ever greater numbers, each into its own eight bytes of every page, and look
 * with pread at once. Beside them one process changes the file. A store that raised no signal is
 * there; it may be gone again if that process took bytes away meanwhile, but then zeros or nothing
 * are in its place: an older number means that the store was lost. */
#define _GNU_SOURCE
#include <linux/aio_abi.h>
#include <linux/falloc.h>
#include <pthread.h>
#include <stdatomic.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include "tests/mmap_util.h"

#define STORERS    3
#define RACE_PAGES 8
#define SLOT(who)  ((who)*8)
#define FREE_BYTES 2048 /* from here on a page belongs to the changer */

struct race {
    const char *name;
    void (*change)(int fd, unsigned random); /* once */
    enum { LEAVES, REMOVES, NUMBERS } kind;  /* NUMBERS: to be stored over by who has read them */
};

struct shared {                                 /* by all processes */
    _Atomic uint32_t changes;                   /* odd while one is under way */
    _Atomic uint64_t last[STORERS][RACE_PAGES]; /* what is there at the end; 0: not known */
    _Atomic uint64_t stores, faults;
    _Atomic bool stop;
    char why[300];
};
static struct shared *shared;

static void race_truncate(int fd, unsigned random)
{
    ftruncate(fd, random % (RACE_PAGES * PAGE) & ~7u); /* no number is cut in two */
    ftruncate(fd, RACE_PAGES * PAGE);
}
static void race_punch(int fd, unsigned random)
{
    off_t at = random % (RACE_PAGES * PAGE) & ~7u, len = 8 + ((random >> 16) % (3 * PAGE) & ~7u);
    fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, at, len);
}
/* Parts of pages, one of them at a page's end, and the beginning of none. */
static void race_write(int fd, unsigned random)
{
    char buf[PAGE];
    int page = random % RACE_PAGES, from = FREE_BYTES + (random >> 8) % (PAGE - FREE_BYTES);
    memset(buf, (int)(random >> 20), sizeof buf);
    if (pwrite(fd, buf, (size_t)(PAGE - from), (off_t)page * PAGE + from) != PAGE - from)
        die("pwrite beside stores");
}
/* What was written is there, whatever is stored to other bytes of the page. */
static void race_write_and_look(int fd, unsigned random)
{
    char buf[FREE_BYTES], got[FREE_BYTES];
    off_t at = (off_t)(random % RACE_PAGES) * PAGE + PAGE - FREE_BYTES;
    memset(buf, (int)(random >> 20), sizeof buf);
    if (pwrite(fd, buf, sizeof buf, at) != sizeof buf ||
        pread(fd, got, sizeof got, at) != sizeof got)
        die("pwrite and pread beside stores");
    if (memcmp(buf, got, sizeof buf) != 0)
        snprintf(shared->why, sizeof shared->why, "page %u: written %d, found %d",
                 random % RACE_PAGES, buf[0], got[0]);
}
/* Ever greater even numbers; see store_over(). */
static void race_write_numbers(int fd, unsigned random)
{
    static uint64_t n;
    n += 2;
    if (pwrite(fd, &n, sizeof n, (off_t)(random % RACE_PAGES) * PAGE + FREE_BYTES) != sizeof n)
        die("pwrite of numbers beside stores");
}
/* Likewise parts of pages, from another page. */
static void race_copy(int fd, unsigned random)
{
    unsigned to = random % RACE_PAGES,
             from = (to + 1 + (random >> 8) % (RACE_PAGES - 1)) % RACE_PAGES;
    off_t at = FREE_BYTES + (random >> 16) % (PAGE - FREE_BYTES), in = from * PAGE + at,
          out = to * PAGE + at;
    if (copy_file_range(fd, &in, fd, &out, (size_t)(PAGE - at), 0) != PAGE - at)
        die("copy_file_range beside stores");
}
/* Whole pages, while what the stores dirtied is written back again and again: what was copied is there. */
static void *write_back_always(void *fd)
{
    while (!shared->stop)
        sync_file_range(*(int *)fd, 0, 0,
                        SYNC_FILE_RANGE_WAIT_BEFORE | SYNC_FILE_RANGE_WRITE |
                            SYNC_FILE_RANGE_WAIT_AFTER);
    return NULL;
}
static void race_copy_pages(int fd, unsigned random)
{
    enum { COPIED = 4 };
    static int from = -1;
    static int written_back;
    char page[PAGE] = { 0 }, got = 0;
    unsigned to = random % (RACE_PAGES - COPIED + 1);
    if (from < 0) {
        pthread_t thread;
        from = make("from", 0, COPIED * PAGE);
        unlink("from");
        written_back = dup(fd);
        if (pthread_create(&thread, NULL, write_back_always, &written_back) != 0)
            die("pthread_create");
        pthread_detach(thread);
    }
    memset(page + FREE_BYTES, (int)(random >> 20), sizeof page - FREE_BYTES);
    for (off_t i = 0; i < COPIED; i++)
        if (pwrite(from, page, sizeof page, i * PAGE) != (ssize_t)sizeof page)
            die("pwrite");
    off_t in = 0, out = to * PAGE;
    if (copy_file_range(from, &in, fd, &out, COPIED * PAGE, 0) != COPIED * PAGE)
        die("copy_file_range of pages beside stores");
    for (unsigned i = 0; i < COPIED; i++)
        if (pread(fd, &got, 1, (off_t)(to + i) * PAGE + FREE_BYTES) != 1 || got != page[FREE_BYTES])
            snprintf(shared->why, sizeof shared->why, "page %u: copied %d, found %d", to + i,
                     page[FREE_BYTES], got);
}
static void race_evict(int fd, unsigned random)
{
    off_t at = (off_t)(random % RACE_PAGES) * PAGE;
    sync_file_range(fd, at, 2 * PAGE,
                    SYNC_FILE_RANGE_WAIT_BEFORE | SYNC_FILE_RANGE_WRITE |
                        SYNC_FILE_RANGE_WAIT_AFTER);
    posix_fadvise(fd, random % 4 == 0 ? 0 : at, random % 4 == 0 ? 0 : 2 * PAGE,
                  POSIX_FADV_DONTNEED);
}
static void race_fsync(int fd, unsigned random)
{
    if ((random % 2 == 0 ? fsync(fd) : fdatasync(fd)) != 0)
        die("fsync beside stores");
}
static void race_append(int fd, unsigned random)
{
    ftruncate(fd, RACE_PAGES * PAGE);
    if (pwrite(fd, "a", 1, RACE_PAGES * PAGE + random % PAGE) != 1)
        die("pwrite behind the end");
}
static void race_direct(int fd, unsigned random)
{
    static char *buf;
    int direct = open("r", O_RDWR | O_DIRECT);
    (void)fd;
    if (buf == NULL)
        buf = aligned_alloc(PAGE, PAGE);
    if (direct < 0 || pread(direct, buf, PAGE, (off_t)(random % RACE_PAGES) * PAGE) != PAGE)
        die("direct read beside stores");
    close(direct);
}

/* Many at once, of the bytes that are the changer's: they must not wait for each other for ever. */
static void race_async(int fd, unsigned random)
{
    enum { DEPTH = 128 };
    static aio_context_t context;
    static struct iocb writes[DEPTH], *list[DEPTH];
    static struct io_event events[DEPTH];
    static char *buf;
    static int direct;
    (void)fd;
    if (buf == NULL) {
        buf = aligned_alloc(PAGE, PAGE);
        direct = open("r", O_RDWR | O_DIRECT);
        if (direct < 0 || syscall(SYS_io_setup, DEPTH, &context) != 0)
            die("io_setup");
    }
    for (unsigned i = 0; i < DEPTH; i++) {
        writes[i] = (struct iocb){ .aio_lio_opcode = IOCB_CMD_PWRITE,
                                   .aio_fildes = (uint32_t)direct,
                                   .aio_buf = (uintptr_t)buf,
                                   .aio_nbytes = PAGE - FREE_BYTES,
                                   .aio_offset = (random + i) % RACE_PAGES * PAGE + FREE_BYTES };
        list[i] = &writes[i];
    }
    for (long n = 0, k; n < DEPTH; n += k)
        if ((k = syscall(SYS_io_submit, context, DEPTH - n, list + n)) <= 0)
            die("io_submit");
    struct timespec patience = { .tv_sec = 60 };
    if (syscall(SYS_io_getevents, context, DEPTH, DEPTH, events, &patience) != DEPTH)
        snprintf(shared->why, sizeof shared->why, "not all have been written");
    for (unsigned i = 0; i < DEPTH; i++)
        if (events[i].res != PAGE - FREE_BYTES)
            snprintf(shared->why, sizeof shared->why, "one write: %lld", (long long)events[i].res);
}

static const struct race races[] = {
    { "stores_beside_truncation", race_truncate, REMOVES },
    { "stores_beside_holes", race_punch, REMOVES },
    { "stores_beside_partial_writes", race_write, LEAVES },
    { "writes_beside_stores", race_write_and_look, LEAVES },
    { "writes_stored_over", race_write_numbers, NUMBERS },
    { "stores_beside_copies", race_copy, LEAVES },
    { "copied_writes_beside_stores", race_copy_pages, REMOVES },
    { "stores_beside_eviction", race_evict, LEAVES },
    { "stores_beside_fsync", race_fsync, LEAVES },
    { "stores_beside_growth", race_append, LEAVES },
    { "stores_beside_direct_reads", race_direct, LEAVES },
    { "stores_beside_asynchronous_writes", race_async, LEAVES },
};

static void race_fail(const char *what, unsigned who, unsigned page, uint64_t stored, uint64_t got)
{
    snprintf(shared->why, sizeof shared->why, "process %u, page %u: %s: stored %llu, found %llu",
             who, page, what, (unsigned long long)stored, (unsigned long long)got);
    shared->stop = true;
}

static void store_and_look(const struct race *r, int fd, char *p, unsigned who, uint64_t n)
{
    unsigned page = (unsigned)(n * 7 + who) % RACE_PAGES;
    off_t at = (off_t)page * PAGE + SLOT(who);
    uint32_t before = shared->changes;
    uint64_t got = 0;
    shared->last[who][page] = 0;
    if (store_number((volatile uint64_t *)(p + at), n) != 0) {
        shared->faults++;
        if (r->kind != REMOVES)
            race_fail("SIGBUS", who, page, n, 0);
        return;
    }
    shared->stores++;
    shared->last[who][page] = n;
    ssize_t len = pread(fd, &got, sizeof got, at);
    bool quiet = before % 2 == 0 && shared->changes == before;
    if (len < 0)
        race_fail("pread failed", who, page, n, (uint64_t)errno);
    else if (len > 0 && got != n && got != 0)
        race_fail("a lost store", who, page, n, got);
    else if (got != n && (quiet || r->kind != REMOVES))
        race_fail("it is gone", who, page, n, got);
}

/* Whoever has read a number that was written, by pread or in his mapping, finds nothing older in the other way; and
 * what he stores over it (an odd number) is there, until another is written. Each page is one storer's. */
static void store_over(int fd, char *p, unsigned who, uint64_t n)
{
    unsigned page = (unsigned)(n % (RACE_PAGES / STORERS)) * STORERS + who;
    off_t at = (off_t)page * PAGE + FREE_BYTES;
    volatile uint64_t *there = (volatile uint64_t *)(p + at);
    uint64_t number = 0, got = 0;
    bool read_first = n / 8 % 2 != 0;
    if (read_first && pread(fd, &number, sizeof number, at) != sizeof number)
        die("pread of a number");
    if (load_number(there, &got) != 0 || got < number)
        race_fail("a mapping shows less than was read", who, page, number, got);
    if (!read_first)
        number = got;
    bool stored = number % 2 == 0;
    if (stored && store_number(there, number + 1) != 0)
        race_fail("a number cannot be stored", who, page, number + 1, 0);
    if (pread(fd, &got, sizeof got, at) != sizeof got || got < number)
        race_fail("less is read than a mapping showed", who, page, number, got);
    else if (stored && got == number)
        race_fail("a store over what was there is lost", who, page, number + 1, got);
}

static void storer(const struct race *r, unsigned who)
{
    int fd = open("r", O_RDWR);
    char *p = map(fd, RACE_PAGES);
    for (uint64_t n = 1; !shared->stop; n++) {
        store_and_look(r, fd, p, who, n);
        if (r->kind == NUMBERS)
            store_over(fd, p, who, n);
        if (n % 512 == who) { /* now and then a mapping of its own, with nothing in it yet */
            munmap(p, RACE_PAGES * PAGE);
            p = map(fd, RACE_PAGES);
        }
    }
    _exit(0);
}

static void changer(const struct race *r, int fd, double seconds)
{
    unsigned random = 12345;
    double end = now() + seconds;
    do {
        shared->changes++;
        random = random * 1103515245u + 12345u;
        r->change(fd, random >> 4);
        shared->changes++;
    } while (!shared->stop && now() < end);
}

/* When all is quiet: the last store of each, unless something was taken away after it. */
static void look_at_the_end(const struct race *r, int fd, const char *when)
{
    for (unsigned who = 0; who < STORERS; who++)
        for (unsigned page = 0; page < RACE_PAGES; page++) {
            uint64_t got = 0, n = shared->last[who][page];
            ssize_t len = pread(fd, &got, sizeof got, (off_t)page * PAGE + SLOT(who));
            if (n != 0 && got != n && !(r->kind == REMOVES && (len == 0 || got == 0)))
                race_fail(when, who, page, n, got);
        }
}

static int run_race(const struct race *r, double seconds)
{
    pid_t child[STORERS];
    int fd = make("r", 0, RACE_PAGES * PAGE);
    memset(shared, 0, sizeof *shared);
    for (unsigned i = 0; i < STORERS; i++)
        if ((child[i] = fork()) == 0)
            storer(r, i);
    changer(r, fd, seconds);
    shared->stop = true;
    for (unsigned i = 0; i < STORERS; i++) {
        int status;
        if (waitpid(child[i], &status, 0) != child[i] || status != 0)
            snprintf(shared->why, sizeof shared->why, "process %u ended with status %#x", i,
                     status);
    }
    look_at_the_end(r, fd, "at the end");
    forget(fd);
    if (shared->why[0] == 0)
        look_at_the_end(r, fd, "at the end, from the disk");
    memcpy(why, shared->why, sizeof why);
    char name[100];
    snprintf(name, sizeof name, "%s (%llu stores, %llu SIGBUS, %u changes)", r->name,
             (unsigned long long)shared->stores, (unsigned long long)shared->faults,
             shared->changes / 2);
    close(fd);
    unlink("r");
    return say(name);
}

/* ---- two who see each other's work --------------------------------------------------------------
 *
 * One process writes, number by number; the other sees a number before the write has returned, if he can, and stores
 * the next one over it. That is there when the write has returned. */

struct pair {
    _Atomic uint64_t written, stored; /* the last number */
    _Atomic bool stop;
    uint64_t rounds, early; /* of these so many were seen before the write had returned */
    char why[300];
};
static struct pair *pair;

struct duet {
    const char *name;
    void (*write)(int fd, uint64_t n);
    off_t (*see)(int fd, volatile uint64_t *map, uint64_t n); /* Returns where to store. */
};

/* One number into two pages at once; seen in the second, in one way or another, stored to in the first. */
static void write_two_pages(int fd, uint64_t n)
{
    static uint64_t buf[2 * PAGE / 8];
    buf[0] = buf[PAGE / 8] = n;
    if (pwrite(fd, buf, sizeof buf, 0) != sizeof buf)
        die("pwrite of two pages");
}
static off_t see_by_mapping(int fd, volatile uint64_t *map, uint64_t n)
{
    (void)fd;
    while ((void)map[0], map[PAGE / 8] < n)
        madvise((void *)(map + PAGE / 8), PAGE, MADV_DONTNEED);
    return 0;
}
static off_t see_by_read(int fd, volatile uint64_t *map, uint64_t n)
{
    uint64_t got = 0;
    while ((void)map[0], got < n)
        if (pread(fd, &got, sizeof got, PAGE) != sizeof got)
            die("pread of the second page");
    return 0;
}

/* Appended; seen by the size. */
static void append_number(int fd, uint64_t n)
{
    if (lseek(fd, 0, SEEK_END) < 0 || write(fd, &n, sizeof n) != sizeof n)
        die("append");
}
static off_t see_by_size(int fd, volatile uint64_t *map, uint64_t n)
{
    struct stat st;
    do {
        (void)map[n / 2 - 1];
        if (fstat(fd, &st) != 0)
            die("fstat");
    } while ((uint64_t)st.st_size < (n / 2 + 1) * 8);
    return (off_t)n / 2 * 8;
}

static const struct duet duets[] = {
    { "two_pages_written_and_seen_by_a_mapping", write_two_pages, see_by_mapping },
    { "two_pages_written_and_seen_by_pread", write_two_pages, see_by_read },
    { "appends_seen_by_the_size", append_number, see_by_size },
};

static _Noreturn void write_numbers(const struct duet *d)
{
    int fd = open("duet", O_RDWR);
    for (uint64_t n = 2; !pair->stop; n += 2) {
        d->write(fd, n);
        pair->written = n;
        while (pair->stored < n && !pair->stop)
            ;
    }
    _exit(0);
}

static void store_over_numbers(const struct duet *d, int fd, double seconds)
{
    double end = now() + seconds;
    volatile uint64_t *map = mmap(NULL, 16 << 20, RW, MAP_SHARED, fd, 0);
    if (map == MAP_FAILED)
        die("mmap");
    uint64_t n = 2;
    do {
        uint64_t got = 0;
        off_t at = d->see(fd, map, n);
        pair->early += pair->written < n;
        if (store_number(map + at / 8, n + 1) != 0)
            snprintf(pair->why, sizeof pair->why, "SIGBUS at %lld", (long long)at);
        while (pair->written < n)
            ;
        if (pread(fd, &got, sizeof got, at) != sizeof got || got != n + 1)
            snprintf(pair->why, sizeof pair->why, "%llu was stored after %llu was seen, found %llu",
                     (unsigned long long)n + 1, (unsigned long long)n, (unsigned long long)got);
        pair->rounds++;
        pair->stored = n;
        n += 2;
    } while (pair->why[0] == 0 && n < 1 << 21 && now() < end);
    munmap((void *)map, 16 << 20);
}

static int run_duet(const struct duet *d, double seconds)
{
    char name[100];
    int fd = make("duet", 0, d->write == append_number ? 8 : 2 * PAGE), status;
    memset(pair, 0, sizeof *pair);
    pid_t child = fork();
    if (child == 0)
        write_numbers(d);
    store_over_numbers(d, fd, seconds);
    pair->stop = true;
    if (waitpid(child, &status, 0) != child || status != 0)
        snprintf(pair->why, sizeof pair->why, "who writes ended with status %#x", status);
    memcpy(why, pair->why, sizeof why);
    snprintf(name, sizeof name, "%s (%llu rounds, %llu early)", d->name,
             (unsigned long long)pair->rounds, (unsigned long long)pair->early);
    close(fd);
    unlink("duet");
    return say(name);
}

/* A write of many pages beside who opens the file with O_TRUNC: it is there as a whole, or gone. */
static int writes_beside_cutting_opens(double seconds)
{
    enum { LENGTH = 64 * PAGE };
    static char buf[LENGTH], got[LENGTH];
    double end = now() + seconds;
    unsigned rounds = 0;
    int fd = make("cut", 0, PAGE), status;
    memset(pair, 0, sizeof *pair);
    memset(buf, 'w', sizeof buf);
    pid_t child = fork();
    while (child == 0 && !pair->stop)
        close(open("cut", O_RDWR | O_TRUNC));
    if (child == 0)
        _exit(0);
    do {
        char *p = map(fd, 64);
        for (int i = 0; i < 64; i++)
            (void)load(p + (size_t)i * PAGE);
        if (pwrite(fd, buf, sizeof buf, 0) != sizeof buf)
            die("pwrite beside O_TRUNC");
        ssize_t n = pread(fd, got, sizeof got, 0);
        for (ssize_t i = 0; i < n && why[0] == 0; i++)
            if (got[i] != 'w')
                snprintf(why, sizeof why, "byte %zd of %zd is %d", i, n, got[i]);
        munmap(p, 64 * PAGE);
        rounds++;
    } while (why[0] == 0 && now() < end);
    pair->stop = true;
    waitpid(child, &status, 0);
    close(fd);
    unlink("cut");
    char name[100];
    snprintf(name, sizeof name, "writes_beside_cutting_opens (%u rounds)", rounds);
    return say(name);
}

/* only: part of a name; -part: all but those. */
static int run_races(double seconds, const char *only)
{
    int bad = 0;
    bool but = only[0] == '-';
    shared = mmap(NULL, sizeof *shared, RW, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    pair = mmap(NULL, sizeof *pair, RW, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (shared == MAP_FAILED || pair == MAP_FAILED)
        die("mmap");
    for (size_t i = 0; i < sizeof races / sizeof races[0]; i++)
        if ((strstr(races[i].name, only + but) != NULL) != but)
            bad |= run_race(&races[i], seconds);
    for (size_t i = 0; i < sizeof duets / sizeof duets[0]; i++)
        if ((strstr(duets[i].name, only + but) != NULL) != but)
            bad |= run_duet(&duets[i], seconds);
    if ((strstr("writes_beside_cutting_opens", only + but) != NULL) != but)
        bad |= writes_beside_cutting_opens(seconds);
    return bad;
}

int main(int argc, char **argv)
{
    catch_faults();
    if (argc < 3) {
        fprintf(stderr, "usage: see the head of tests/mmap_races.c\n");
        return 2;
    }
    if (chdir(argv[1]) != 0)
        die(argv[1]);
    return run_races(atof(argv[2]), argc > 3 ? argv[3] : "");
}
