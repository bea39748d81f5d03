/* attach_ops: mappings attached by libfolio, on a mount of ours, which is the working directory.
 *
 *     attach_ops [NAME...]     these tests, or all of the first table; exit 1 when one fails
 *     attach_ops exec          succeeds if it inherited nothing
 *
 * Each failure is a line of its own.
 */
#define _GNU_SOURCE
#include "attach_ops.h"

#include <linux/capability.h>
#include <pthread.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>

#include "cache/folio.h"

static const char *self; /* this program's path */

/* ---- bytes ----------------------------------------------------------------------------------------- */

enum { HANDLES = 5 };

static void all_read(const int *fds, off_t at, char byte)
{
    for (int i = 0; i < HANDLES; i++)
        CHECK_EQ(byte_at(fds[i], at), (unsigned char)byte);
}

static void test_coherent(void)
{
    int before = make_file("coherent", 8), cached = open("coherent", O_RDONLY);
    for (int i = 0; i < 8; i++) /* the kernel may cache that, for who cannot write */
        CHECK_EQ(byte_at(cached, i * (off_t)PAGE), i + 1);
    int fd = open("coherent", O_RDWR);
    char *p = attach(fd, 8);
    int after = open("coherent", O_RDWR), reader = open("coherent", O_RDONLY);
    int fds[HANDLES] = { before, fd, after, cached, reader };
    /* No write before these stores: it would have the kernel drop what it has. */
    for (int i = 0; i < 8; i++) {
        CHECK_EQ(store(p + i * PAGE, (char)~i), 0);
        all_read(fds, i * (off_t)PAGE, (char)~i);
    }
    for (int round = 0; round < 50; round++) {
        for (int i = 0; i < 3; i++) {
            char byte = (char)(round * 3 + i);
            off_t at = (off_t)(round * 617 % (8 * (int)PAGE));
            CHECK_EQ(pwrite(fds[i], &byte, 1, at), 1);
            CHECK_EQ(load(p + at), (unsigned char)byte);
            all_read(fds, at, byte);
            CHECK_EQ(store(p + at, (char)~byte), 0);
            all_read(fds, at, (char)~byte);
        }
        if (round % 10 == 9)
            CHECK_EQ(fsync(before), 0);
    }
    folio_munmap(p, 8 * PAGE);
    CHECK_EQ(byte_at(before, 0), byte_at(after, 0));
    CHECK_EQ(byte_at(before, 0), byte_at(cached, 0));
    for (int i = 0; i < HANDLES; i++)
        close(fds[i]);
}

/* Two processes take turns, each adding one to each page's word. */
static void turns(int in, int out)
{
    int fd = open("two", O_RDWR);
    char *p = attach(fd, 16);
    say(out);
    for (uint64_t round = 1; round <= 40 && hear(in); round++) {
        for (size_t i = 0; i < 16; i++) {
            uint64_t *word = (uint64_t *)(p + i * PAGE);
            CHECK_EQ(*word, 2 * round - 1);
            *word = 2 * round;
        }
        say(out);
    }
}
static void test_two(void)
{
    int fd = make_file("two", 16);
    char *p = attach(fd, 16);
    memset(p, 0, 16 * PAGE);
    struct child c = start_child(turns);
    CHECK(hear(c.from));
    for (uint64_t round = 1; round <= 40; round++) {
        for (size_t i = 0; i < 16; i++) {
            uint64_t *word = (uint64_t *)(p + i * PAGE);
            CHECK_EQ(*word, 2 * round - 2);
            *word = 2 * round - 1;
        }
        say(c.to);
        if (!hear(c.from))
            break;
        if (round % 8 == 0)
            CHECK_EQ(fsync(fd), 0);
    }
    end_child(&c);
    folio_munmap(p, 16 * PAGE);
    close(fd);
}

/* ---- faults, counted ------------------------------------------------------------------------------- */

static struct {
    long long minor, major, mkwrite, read;
} counted;

static void count_start(void)
{
    counted.minor = stat_of("faults", "attached_minor");
    counted.major = stat_of("faults", "attached_major");
    counted.mkwrite = stat_of("faults", "attached_mkwrite");
    counted.read = stat_of("cache", "read_pages");
}
static void count_end(const char *when, long long minor, long long major, long long mkwrite)
{
    long long got[] = { stat_of("faults", "attached_minor") - counted.minor,
                        stat_of("faults", "attached_major") - counted.major,
                        stat_of("faults", "attached_mkwrite") - counted.mkwrite,
                        stat_of("cache", "read_pages") - counted.read };
    if (got[0] != minor || got[1] != major || got[2] != mkwrite || got[3] != major)
        complain("%s: %lld minor, %lld major, %lld mkwrites, %lld pages read; "
                 "not %lld, %lld, %lld, %lld",
                 when, got[0], got[1], got[2], got[3], minor, major, mkwrite, major);
}

enum {
    N = 96,
    STORED = 24,
    THEN_STORED = 30
}; /* touched; by stores at once, by stores after a load */

/* A store to a page that was loaded before is a second fault, as the kernel counts too. */
static void touch_all(char *p)
{
    for (size_t i = 0; i < N; i++)
        if (i % 4 == 3)
            store(p + i * PAGE, 'a');
        else
            load(p + i * PAGE);
    for (size_t i = 0, n = 0; n < THEN_STORED; i++)
        if (i % 4 != 3) {
            store(p + i * PAGE + 1, 'b');
            n++;
        }
}
static void store_again(char *p)
{
    for (size_t i = 0, n = 0; i < N; i++) {
        bool loaded = i % 4 != 3;
        if (!loaded || n++ < THEN_STORED)
            store(p + i * PAGE + 2, 'c');
    }
}

static void test_counts(void)
{
    int fd = make_file("counts", N);
    control("set fault_around=1");
    control("set readahead=none");
    control("drop");
    char *p = attach(fd, N);
    for (int round = 0; round < 2; round++) {
        count_start();
        touch_all(p);
        count_end(round ? "after an eviction" : "at first", THEN_STORED, N, STORED + THEN_STORED);
        count_start();
        touch_all(p);
        count_end("what is mapped", 0, 0, 0);
        CHECK_EQ(fsync(fd), 0);
        count_start();
        store_again(p);
        count_end("after a writeback", STORED + THEN_STORED, 0, STORED + THEN_STORED);
        CHECK_EQ(folio_msync(p, N * PAGE, MS_SYNC), 0);
        control("drop");
    }
    folio_munmap(p, N * PAGE);
    control("set fault_around=16");
    p = attach(fd, N);
    count_start();
    touch_all(p);
    count_end("around, not cached", THEN_STORED, N, STORED + THEN_STORED);
    CHECK_EQ(fsync(fd), 0);
    folio_munmap(p, N * PAGE);
    p = attach(fd, N);
    count_start();
    touch_all(p);
    count_end("around, cached", STORED + THEN_STORED, 0, STORED + THEN_STORED);
    folio_munmap(p, N * PAGE);
    control("set readahead=linux");
    close(fd);
}

/* Minor faults, all pages being cached and none mapped. */
static long long minor_faults(char *p, size_t pages)
{
    CHECK_EQ(folio_madvise(p, pages * PAGE, MADV_DONTNEED), 0);
    count_start();
    for (size_t i = 0; i < pages; i++)
        CHECK_EQ(load(p + i * PAGE), i + 1);
    CHECK_EQ(stat_of("faults", "attached_major") - counted.major, 0);
    return stat_of("faults", "attached_minor") - counted.minor;
}

/* The pages around one that is touched are mapped with it. */
static void test_around(void)
{
    enum { PAGES = 64 };
    int fd = make_file("around", PAGES);
    control("set readahead=none"); /* pages with its marks fault by themselves */
    char *p = attach(fd, PAGES);
    for (size_t i = 0; i < PAGES; i++)
        CHECK_EQ(load(p + i * PAGE), i + 1);
    CHECK(minor_faults(p, PAGES) <= PAGES / 8);
    control("set fault_around=1");
    CHECK_EQ(minor_faults(p, PAGES), PAGES);
    control("set fault_around=16");
    control("set readahead=linux");
    folio_munmap(p, PAGES * PAGE);
    close(fd);
}

/* What was brought in when it was mapped costs no fault when it is touched. */
static void test_populate(void)
{
    const int with[] = { MAP_POPULATE, MAP_LOCKED };
    int fd = make_file("populate", N);
    for (unsigned i = 0; i < sizeof with / sizeof *with; i++) {
        control("drop");
        char *p = folio_mmap(NULL, N * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | with[i], fd, 0);
        if (p == MAP_FAILED && errno == EAGAIN && with[i] == MAP_LOCKED) {
            printf("populate: not locked: RLIMIT_MEMLOCK is less\n");
            continue;
        }
        if (p == MAP_FAILED)
            give_up("folio_mmap with 0x%x", (unsigned)with[i]);
        CHECK(folio_attached(p, N * PAGE));
        count_start();
        for (size_t j = 0; j < N; j++)
            CHECK_EQ(load(p + j * PAGE), j + 1);
        count_end(with[i] == MAP_LOCKED ? "locked" : "populated", 0, 0, 0);
        CHECK_EQ(store(p, 1), 0);
        count_end("and stored to", 1, 0, 1);
        CHECK_EQ(folio_munmap(p, N * PAGE), 0);
    }
    close(fd);
}

static bool is_later(struct timespec a, struct timespec b)
{
    return b.tv_sec > a.tv_sec || (b.tv_sec == a.tv_sec && b.tv_nsec > a.tv_nsec);
}

/* The first store to a clean page sets them, a load does not. */
static void test_times(void)
{
    struct stat before, after;
    int fd = make_file("times", 2);
    char *p = attach(fd, 2);
    CHECK_EQ(load(p), 1);
    for (int i = 0; i < 3; i++) {
        CHECK_EQ(fstat(fd, &before), 0);
        pause_ms(20);
        CHECK_EQ(store(p + i, 't'), 0);
        CHECK_EQ(fstat(fd, &after), 0);
        CHECK(is_later(before.st_mtim, after.st_mtim));
        CHECK(is_later(before.st_ctim, after.st_ctim));
        CHECK_EQ(folio_msync(p, PAGE, MS_SYNC), 0);
    }
    CHECK_EQ(fstat(fd, &before), 0);
    pause_ms(20);
    CHECK_EQ(load(p + PAGE), 2);
    CHECK_EQ(fstat(fd, &after), 0);
    CHECK(!is_later(before.st_mtim, after.st_mtim));
    folio_munmap(p, 2 * PAGE);
    close(fd);
}

/* Pages that are made writable ahead of the stores that are expected: few faults, every store counted once, and
 * what was not stored to is not written. */
static void test_store_around(void)
{
    enum { PAGES = 256, FIRST = 100, SECOND = 30 };
    int fd = make_file("ahead", PAGES);
    /* Its marks are taken away in the background, and what has one is not made writable ahead. */
    control("set readahead=none");
    control("sync");
    control("set store_around=64");
    char *p = attach(fd, PAGES);
    for (size_t i = 0; i < PAGES; i++)
        CHECK_EQ(load(p + i * PAGE + 7), (unsigned char)(i + 1));
    long long written = stat_of("cache", "written_pages");
    count_start();
    for (size_t i = 0; i < FIRST; i++)
        CHECK_EQ(store(p + i * PAGE + 7, (char)~(i + 1)), 0);
    count_end("stores in order", 5, 0, FIRST); /* 1, 4, 16, 64 and 64 pages */
    CHECK_EQ(pwrite(fd, "w", 1, (off_t)(FIRST + 5) * PAGE + 9), 1);
    CHECK_EQ(fsync(fd), 0);
    CHECK_EQ(stat_of("cache", "written_pages") - written, FIRST + 1);
    CHECK_EQ(stat_of("cache", "dirty"), 0);
    CHECK_EQ(stat_of("faults", "attached_mkwrite") - counted.mkwrite, FIRST);
    count_start();
    for (size_t i = FIRST; i < FIRST + SECOND; i++) /* some were writable, and are not any more */
        CHECK_EQ(store(p + i * PAGE + 7, (char)~(i + 1)), 0);
    CHECK_EQ(stat_of("faults", "attached_mkwrite") - counted.mkwrite, SECOND);
    CHECK_EQ(ftruncate(fd, (off_t)(FIRST + SECOND + 2) * PAGE + 100), 0);
    CHECK_EQ(store(p + (FIRST + SECOND) * PAGE + 7, (char)~(FIRST + SECOND + 1)), 0);
    CHECK_EQ(load(p + (FIRST + SECOND + 3) * PAGE), -1);
    folio_munmap(p, PAGES * PAGE);
    control("sync");
    control("drop");
    for (size_t i = 0; i < FIRST + SECOND + 2; i++)
        CHECK_EQ(byte_at(fd, (off_t)(i * PAGE + 7)),
                 (unsigned char)(i <= FIRST + SECOND ? ~(i + 1) : i + 1));
    CHECK_EQ(byte_at(fd, (off_t)(FIRST + 5) * PAGE + 9), 'w');
    control("set store_around=1");
    control("set readahead=linux");
    close(fd);
}

/* ---- msync ------------------------------------------------------------------------------------------- */

static void test_msync(void)
{
    int fd = make_file("msync", 64);
    char *p = attach(fd, 64);
    control("sync");
    long long before = stat_of("cache", "written_pages");
    memset(p, 'm', 64 * PAGE);
    CHECK_EQ(stat_of("cache", "written_pages"), before);
    CHECK_EQ(folio_msync(p, 64 * PAGE, MS_ASYNC), 0);
    CHECK(WITHIN(10, stat_of("cache", "written_pages") >= before + 64));
    CHECK(WITHIN(10, stat_of("cache", "dirty") == 0));
    errno = 0;
    CHECK(folio_msync(p + 1, PAGE, MS_SYNC) == -1 && errno == EINVAL);
    CHECK(folio_msync(p, PAGE, MS_SYNC | MS_ASYNC) == -1 && errno == EINVAL);
    CHECK(folio_msync(p, (size_t)-PAGE, MS_SYNC) == -1 &&
          errno == ENOMEM); /* around the end of all addresses */
    CHECK(folio_madvise(p, (size_t)-PAGE, MADV_WILLNEED) == -1 && errno == EINVAL);
    CHECK_EQ(folio_munmap(p + 8 * PAGE, PAGE), 0); /* a hole: what is there is written */
    p[0] = p[63 * PAGE] = 'h';
    CHECK(folio_msync(p, 64 * PAGE, MS_SYNC) == -1 && errno == ENOMEM);
    CHECK_EQ(stat_of("cache", "dirty"), 0);
    folio_munmap(p, 64 * PAGE);
    CHECK(folio_msync(p, PAGE, MS_SYNC) == -1 && errno == ENOMEM);
    close(fd);
}

/* ---- sizes -------------------------------------------------------------------------------------------- */

static void test_size(void)
{
    int fd = make_file("size", 2);
    char *p = attach(fd, 8);
    CHECK_EQ(load(p + PAGE), 2);
    CHECK_EQ(load(p + 2 * PAGE), -1);
    CHECK_EQ(store(p + 5 * PAGE, 'x'), -1);
    CHECK_EQ(ftruncate(fd, 3 * PAGE), 0);
    CHECK_EQ(load(p + 2 * PAGE), 0);
    CHECK_EQ(store(p + 2 * PAGE, 'x'), 0);
    CHECK_EQ(byte_at(fd, 2 * PAGE), 'x');
    CHECK_EQ(load(p + 3 * PAGE), -1);
    CHECK_EQ(ftruncate(fd, 2 * PAGE), 0);
    CHECK_EQ(load(p + 2 * PAGE), -1);
    CHECK_EQ(store(p + 2 * PAGE, 'y'), -1);
    CHECK_EQ(load(p + PAGE), 2);
    CHECK_EQ(pwrite(fd, "w", 1, 6 * PAGE), 1);
    CHECK_EQ(load(p + 6 * PAGE), 'w');
    CHECK_EQ(load(p + 2 * PAGE), 0);
    CHECK_EQ(load(p + 7 * PAGE), -1);
    CHECK_EQ(fallocate(fd, FALLOC_FL_KEEP_SIZE, 7 * PAGE, PAGE), 0);
    CHECK_EQ(load(p + 7 * PAGE), -1);
    CHECK_EQ(ftruncate(fd, 0), 0);
    CHECK_EQ(load(p), -1);
    CHECK_EQ(ftruncate(fd, 8 * PAGE), 0);
    for (size_t i = 0; i < 8; i++)
        CHECK(
            WITHIN(5, load(p + i * PAGE) == 0)); /* one was poisoned while it lay beyond the end */
    folio_munmap(p, 8 * PAGE);
    close(fd);
}

/* What lies behind the end of file in its last page never reaches the file. */
static void test_tail(void)
{
    int fd = make_file("tail", 2);
    char *p = attach(fd, 3);
    CHECK_EQ(ftruncate(fd, PAGE + 100), 0);
    CHECK_EQ(load(p + PAGE + 99), 2);
    CHECK_EQ(load(p + PAGE + 100), 0);
    CHECK_EQ(store(p + PAGE + 200, 't'), 0);
    CHECK_EQ(fsync(fd), 0);
    CHECK_EQ(ftruncate(fd, 2 * PAGE + 1), 0);
    CHECK_EQ(byte_at(fd, PAGE + 200), 0);
    CHECK_EQ(load(p + PAGE + 200), 0);
    CHECK_EQ(store(p + 2 * PAGE + 50, 't'), 0);
    CHECK_EQ(pwrite(fd, "w", 1, 2 * PAGE + 100), 1);
    CHECK_EQ(byte_at(fd, 2 * PAGE + 50), 0);
    CHECK_EQ(load(p + 2 * PAGE + 50), 0);
    folio_munmap(p, 3 * PAGE);
    close(fd);
}

/* ---- races ---------------------------------------------------------------------------------------------- */

static struct {
    int fd;
    char *p;
    size_t pages;
    _Atomic bool stop;
    _Atomic uint64_t round, done;
    _Atomic long long bus;
} race;

/* Flush and evict beside whatever else goes on. */
static void *race_flusher(void *arg)
{
    (void)arg;
    for (unsigned i = 0; !race.stop; i++) {
        if (fsync(race.fd) != 0)
            complain("fsync: %s", strerrorname_np(errno));
        if (i % 4 == 0)
            (void)folio_madvise(race.p, race.pages * PAGE, 21 /* MADV_PAGEOUT */);
    }
    return NULL;
}

static void race_begin(const char *name, size_t pages)
{
    race.fd = make_file(name, pages);
    race.p = attach(race.fd, pages);
    race.pages = pages;
    race.stop = false;
    race.round = race.done = 0;
    race.bus = 0;
}
static void race_end(void)
{
    folio_munmap(race.p, race.pages * PAGE);
    close(race.fd);
}
static uint64_t *word_of(size_t page, size_t at)
{
    return (uint64_t *)(race.p + page * PAGE + at);
}
static uint64_t file_word(size_t page, size_t at)
{
    uint64_t word = 0;
    if (pread(race.fd, &word, sizeof word, (off_t)(page * PAGE + at)) != sizeof word)
        complain("page %zu cannot be read", page);
    return word;
}

static void *race_writer(void *arg)
{
    (void)arg;
    for (uint64_t n = 1; n <= 400; n++) {
        size_t page = n * 7 % race.pages;
        if (pwrite(race.fd, &n, sizeof n, (off_t)(page * PAGE + 2048)) != sizeof n)
            complain("write: %s", strerrorname_np(errno));
        if (*(volatile uint64_t *)word_of(page, 2048) != n)
            complain("a write to page %zu is not seen", page);
    }
    return NULL;
}

/* Stores, and writes to other bytes of the same pages, with writeback and eviction. */
static void test_race_write(void)
{
    race_begin("race_write", 8);
    pthread_t flusher = start(race_flusher, NULL), writer = start(race_writer, NULL);
    uint64_t last[8] = { 0 };
    for (uint64_t n = 1; n <= 1500; n++) {
        size_t page = n * 5 % race.pages;
        *(volatile uint64_t *)word_of(page, 64) = n;
        last[page] = n;
        if (file_word(page, 64) != n)
            complain("store %llu to page %zu is lost", (unsigned long long)n, page);
    }
    pthread_join(writer, NULL);
    race.stop = true;
    pthread_join(flusher, NULL);
    for (uint64_t i = 0; i < race.pages; i++)
        CHECK_EQ(file_word(i, 64), last[i]);
    for (uint64_t n = 400; n > 400 - race.pages; n--)
        CHECK_EQ(file_word(n * 7 % race.pages, 2048), n);
    race_end();
}

/* Pages of the second half are taken away, by hole or truncation, while all are stored to. */
static void *race_puncher(void *arg)
{
    bool cut = arg != NULL;
    off_t half = (off_t)(race.pages / 2 * PAGE), all = (off_t)(race.pages * PAGE);
    for (uint64_t n = 1; !race.stop; n++) {
        while (race.round < n && !race.stop)
            ;
        int err = cut ? ftruncate(race.fd, half) || ftruncate(race.fd, all)
                      : fallocate(race.fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, half, half);
        if (err != 0)
            complain("%s: %s", cut ? "truncate" : "punch", strerrorname_np(errno));
        race.done = n;
    }
    return NULL;
}

static void race_rounds(bool cut)
{
    pthread_t flusher = start(race_flusher, NULL),
              puncher = start(race_puncher, cut ? &race : NULL);
    for (uint64_t n = 1; n <= 120; n++) {
        bool bus[64] = { false };
        race.round = n;
        for (size_t i = 0; i < race.pages; i++)
            bus[i] = store_word(word_of(i, 8 * (n % 100)), n) != 0;
        while (race.done < n)
            ;
        for (size_t i = 0; i < race.pages; i++) {
            bool may_go = i >= race.pages / 2;
            uint64_t seen = file_word(i, 8 * (n % 100)), here = *word_of(i, 8 * (n % 100));
            if (bus[i] && !(cut && may_go))
                complain("page %zu: SIGBUS inside the file", i);
            if (seen != here || (seen != n && !may_go) || (seen != n && seen != 0))
                complain("page %zu, round %llu: read %llu, mapped %llu", i, (unsigned long long)n,
                         (unsigned long long)seen, (unsigned long long)here);
        }
        if (cut) /* what was stored for good */
            for (size_t i = 0; i < race.pages; i++) {
                CHECK_EQ(store_word(word_of(i, 4000), n), 0);
                CHECK_EQ(file_word(i, 4000), n);
            }
    }
    race.stop = true;
    pthread_join(puncher, NULL);
    pthread_join(flusher, NULL);
}
static void test_race_punch(void)
{
    race_begin("race_punch", 16);
    race_rounds(false);
    race_end();
}
static void test_race_truncate(void)
{
    race_begin("race_truncate", 16);
    race_rounds(true);
    race_end();
}

/* More pages than the cache holds, each stored to twice by two threads: none is lost. */
static void *pressure_part(void *arg)
{
    size_t part = (size_t)(uintptr_t)arg;
    for (uint64_t n = 1; n <= 2; n++)
        for (size_t i = 0; i < race.pages; i++)
            *(volatile uint64_t *)word_of(i, 8 * part) = n << 32 | i;
    return NULL;
}
static void test_pressure(void)
{
    race_begin("pressure", 1024);
    pthread_t other = start(pressure_part, (void *)1);
    pressure_part(NULL);
    pthread_join(other, NULL);
    for (size_t i = 0; i < race.pages; i++)
        for (size_t part = 0; part < 2; part++) {
            CHECK_EQ(*word_of(i, 8 * part), 2ull << 32 | i);
            CHECK_EQ(file_word(i, 8 * part), 2ull << 32 | i);
        }
    race_end();
}

/* Who stores faster than the store takes pages waits before a page is writable, not behind it: there is never more dirty
 * than the limit, and the page by which it is passed. */
static void *store_to_all(void *arg)
{
    (void)arg;
    for (uint64_t round = 1; round <= 2; round++)
        for (size_t i = 0; i < race.pages; i++)
            *(volatile uint64_t *)word_of(i, 128) = round << 32 | i;
    race.stop = true;
    return NULL;
}
static void test_throttled(void)
{
    enum { CACHE = 1024, LIMIT = CACHE / 100 }; /* pages */
    long long before = stat_of("writeback", "throttled"),
              slept = stat_of("writeback", "throttled_ns"), most = 0;
    race_begin("throttled", 2 * CACHE);
    CHECK_EQ(fsync(race.fd), 0);
    control("set cache_size=4M");
    control("set dirty_background_ratio=1");
    control("set dirty_ratio=1");
    control("sync");
    pthread_t other = start(store_to_all, NULL);
    while (!race.stop) {
        long long dirty = stat_of("cache", "dirty");
        most = dirty > most ? dirty : most;
    }
    pthread_join(other, NULL);
    if (most > LIMIT + 1)
        complain("throttled: %lld pages were dirty", most);
    CHECK(stat_of("writeback", "throttled") > before);
    CHECK(stat_of("writeback", "throttled_ns") > slept);
    for (size_t i = 0; i < race.pages; i++)
        CHECK_EQ(file_word(i, 128), 2ull << 32 | i);
    control("set cache_size=256M");
    control("set dirty_ratio=20");
    control("set dirty_background_ratio=10");
    race_end();
}

/* ---- errors ------------------------------------------------------------------------------------------------ */

static void refuses(int line, int want, size_t length, int prot, int flags, int fd, off_t offset)
{
    errno = 0;
    void *p = folio_mmap(NULL, length, prot, flags, fd, offset);
    if (p != MAP_FAILED)
        complain("line %d: mapped, not %s", line, strerrorname_np(want));
    else if (errno != want)
        complain("line %d: %s, not %s", line, strerrorname_np(errno), strerrorname_np(want));
    if (p != MAP_FAILED)
        folio_munmap(p, length);
}
#define REFUSES(want, ...) refuses(__LINE__, want, __VA_ARGS__)

static void test_errors(void)
{
    int fd = make_file("errors", 4), rw = PROT_READ | PROT_WRITE;
    int ro = open("errors", O_RDONLY), wo = open("errors", O_WRONLY), path = open("errors", O_PATH);
    int append = open("errors", O_RDWR | O_APPEND), dir = open(".", O_RDONLY | O_DIRECTORY);
    int foreign = memfd_create("foreign", MFD_CLOEXEC), null = open("/dev/null", O_RDWR);
    (void)mkfifo("fifo", 0600);
    int fifo = open("fifo", O_RDWR | O_NONBLOCK);
    REFUSES(EACCES, PAGE, rw, MAP_SHARED, ro, 0);
    REFUSES(EACCES, PAGE, PROT_READ, MAP_SHARED, wo, 0);
    REFUSES(EACCES, PAGE, rw, MAP_SHARED, wo, 0);
    /* An O_APPEND descriptor is no obstacle: only an append-only file is. */
    char *p = folio_mmap(NULL, PAGE, rw, MAP_SHARED, append, 0);
    CHECK(p != MAP_FAILED);
    folio_munmap(p, PAGE);
    p = folio_mmap(NULL, PAGE, rw | 0x10, MAP_SHARED, fd, 0); /* a bit without a meaning */
    CHECK(p != MAP_FAILED);
    folio_munmap(p, PAGE);
    REFUSES(EBADF, PAGE, PROT_READ, MAP_SHARED, path, 0);
    REFUSES(EBADF, PAGE, rw, MAP_SHARED, path, 0);
    REFUSES(EBADF, PAGE, PROT_READ, MAP_SHARED, -1, 0);
    REFUSES(EINVAL, 0, rw, MAP_SHARED, fd, 0);
    REFUSES(EINVAL, PAGE, rw, MAP_SHARED, fd, 1);
    REFUSES(EINVAL, PAGE, rw, 0, fd, 0);
    REFUSES(EOVERFLOW, PAGE, rw, MAP_SHARED, fd, (off_t)((uint64_t)INT64_MAX & ~(PAGE - 1)));
    REFUSES(ENOMEM, SIZE_MAX - PAGE, rw, MAP_SHARED, fd, 0);
    REFUSES(ENODEV, PAGE, PROT_READ, MAP_SHARED, dir, 0);
    REFUSES(EOPNOTSUPP, PAGE, rw, MAP_SHARED, foreign, 0);
    REFUSES(EOPNOTSUPP, PAGE, rw, MAP_SHARED, null, 0);
    REFUSES(ENODEV, PAGE, PROT_READ, MAP_SHARED, fifo, 0);
    REFUSES(EOPNOTSUPP, PAGE, rw, MAP_PRIVATE, foreign, 0);
    REFUSES(EACCES, PAGE, rw, MAP_PRIVATE, wo, 0);
    REFUSES(EINVAL, PAGE, rw, MAP_PRIVATE, fd, 1);
    int all[] = { fd, ro, wo, path, append, dir, foreign, null, fifo };
    for (unsigned i = 0; i < sizeof all / sizeof *all; i++)
        close(all[i]);
}

/* More than may be locked, for who is not above that limit. */
static void lock_too_much(int in, int out)
{
    struct __user_cap_header_struct header = { .version = _LINUX_CAPABILITY_VERSION_3 };
    struct __user_cap_data_struct data[2];
    struct rlimit most = { .rlim_cur = 8 * PAGE, .rlim_max = 8 * PAGE };
    (void)in;
    (void)out;
    int fd = open("locked", O_RDWR);
    CHECK_EQ(syscall(SYS_capget, &header, data), 0);
    data[0].effective &= ~(1u << CAP_IPC_LOCK);
    CHECK_EQ(syscall(SYS_capset, &header, data), 0);
    CHECK_EQ(setrlimit(RLIMIT_MEMLOCK, &most), 0);
    REFUSES(EAGAIN, 16 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_LOCKED, fd, 0);
    char *p = folio_mmap(NULL, 4 * PAGE, PROT_READ, MAP_SHARED | MAP_LOCKED, fd, 0);
    CHECK(p != MAP_FAILED && load(p) == 1);
}

static void test_locked(void)
{
    close(make_file("locked", 16));
    struct child c = start_child(lock_too_much);
    end_child(&c);
}

/* More than the address space may grow by. What is refused takes none of it. */
static void map_too_much(int in, int out)
{
    const size_t mib = 1u << 20;
    size_t mapped = 0;
    FILE *f = fopen("/proc/self/statm", "re");
    (void)in;
    (void)out;
    if (f == NULL || fscanf(f, "%zu", &mapped) != 1)
        give_up("/proc/self/statm");
    (void)fclose(f);
    struct rlimit most = { .rlim_cur = mapped * PAGE + 64 * mib, .rlim_max = RLIM_INFINITY };
    int fd = open("limited", O_RDWR);
    CHECK_EQ(setrlimit(RLIMIT_AS, &most), 0);
    for (int i = 0; i < 8; i++)
        REFUSES(ENOMEM, 96 * mib, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    char *p = attach(fd, 32 * mib / PAGE);
    CHECK_EQ(load(p + PAGE), 2);
    CHECK_EQ(store(p, 's'), 0);
    CHECK_EQ(byte_at(fd, 0), 's');
    CHECK_EQ(folio_munmap(p, 32 * mib), 0);
}

static void test_limited(void)
{
    close(make_file("limited", 2));
    struct child c = start_child(map_too_much);
    end_child(&c);
}

/* Pages from a descriptor that is not for writing: whatever is done to the mapping, the file stays. */
static void test_read_only(void)
{
    close(make_file("read_only", 2));
    int fd = open("read_only", O_RDONLY);
    char *p = folio_mmap(NULL, 2 * PAGE, PROT_READ, MAP_SHARED, fd, 0);
    if (p == MAP_FAILED)
        give_up("folio_mmap");
    CHECK_EQ(load(p), 1);
    CHECK(folio_mprotect(p, PAGE, PROT_READ | PROT_WRITE) == -1 && errno == EACCES);
    if (mprotect(p, 2 * PAGE, PROT_READ | PROT_WRITE) == 0) {
        (void)store(p, 'x');
        (void)store(p + PAGE, 'x');
    }
    CHECK_EQ(byte_at(fd, 0), 1);
    CHECK_EQ(byte_at(fd, PAGE), 2);
    folio_munmap(p, 2 * PAGE);
    close(fd);
}

static void child_of_noexec(int in, int out)
{
    static char here[4096];
    const unsigned long rest = MS_NOSUID | MS_NODEV;
    (void)in;
    (void)out;
    if (getcwd(here, sizeof here) == NULL || unshare(CLONE_NEWNS) != 0 ||
        mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) != 0 ||
        mount(here, here, NULL, MS_BIND, NULL) != 0 ||
        mount(NULL, here, NULL, MS_REMOUNT | MS_BIND | MS_NOEXEC | rest, NULL) != 0 ||
        chdir(here) != 0)
        give_up("a mount that is noexec");
    int fd = open("noexec", O_RDWR);
    char *p = attach(fd, 1);
    CHECK(folio_mprotect(p, PAGE, PROT_READ | PROT_EXEC) == -1 && errno == EACCES);
    REFUSES(EPERM, PAGE, PROT_READ | PROT_EXEC, MAP_SHARED, fd, 0);
    CHECK_EQ(folio_mprotect(p, PAGE, PROT_READ), 0);
}

/* Nothing becomes executable that may not be. */
static void test_noexec(void)
{
    int fd = make_file("noexec", 1);
    char *p = attach(fd, 1);
    CHECK_EQ(folio_mprotect(p, PAGE, PROT_READ | PROT_EXEC), 0);
    folio_munmap(p, PAGE);
    if (geteuid() == 0) {
        struct child c = start_child(child_of_noexec);
        end_child(&c);
    }
    close(fd);
}

static char *private;

static void child_has_private(int in, int out)
{
    (void)in;
    (void)out;
    CHECK_EQ(load(private), 'p');
    CHECK(WITHIN(20, load(private + PAGE) == 'b'));
    CHECK_EQ(store(private + PAGE, 'c'), 0);
}

/* Copy on write: what is stored is our own, what is not is the file's, as others store it: that may be seen
 * a little later (DOORS.md). */
static void test_private(void)
{
    int fd = make_file("private", 8), ro = open("private", O_RDONLY), rw = PROT_READ | PROT_WRITE;
    char *shared = attach(fd, 8); /* and fd has O_DIRECT now */
    char *p = folio_mmap(NULL, 4 * PAGE, rw, MAP_PRIVATE, fd, 0);
    if (p == MAP_FAILED)
        give_up("folio_mmap");
    CHECK_EQ(folio_attached(p, 4 * PAGE), 0);
    for (int i = 0; i < 20; i++) {
        CHECK_EQ(store(shared + PAGE, (char)('0' + i)), 0);
        CHECK(WITHIN(20, load(p + PAGE) == '0' + i));
    }
    CHECK_EQ(store(p, 'p'), 0);
    CHECK_EQ(load(shared), 1);
    CHECK_EQ(byte_at(fd, 0), 1);
    CHECK_EQ(store(shared, 'a'), 0);
    CHECK_EQ(store(shared + PAGE, 'b'), 0);
    private = p;
    struct child c = start_child(child_has_private);
    end_child(&c);
    CHECK_EQ(load(p), 'p');
    CHECK(WITHIN(20, load(p + PAGE) == 'b'));
    unsigned char in[4];
    CHECK_EQ(folio_mincore(p, 4 * PAGE, in), 0);
    CHECK_EQ(folio_msync(p, 4 * PAGE, MS_SYNC), 0);
    CHECK_EQ(byte_at(fd, 0), 'a');
    CHECK_EQ(folio_mprotect(p, 4 * PAGE, PROT_READ), 0);
    CHECK_EQ(folio_mprotect(p, 4 * PAGE, rw), 0);
    CHECK_EQ(folio_madvise(p, PAGE, MADV_WILLNEED), 0);
    CHECK_EQ(folio_madvise(p, PAGE, MADV_DONTNEED), 0);
    CHECK(WITHIN(20, load(p) == 'a')); /* the copy is gone */
    p = folio_mremap(p, 4 * PAGE, 6 * PAGE, MREMAP_MAYMOVE, NULL);
    CHECK(p != MAP_FAILED && load(p + 5 * PAGE) == 6);
    /* Over what is attached, of a descriptor that cannot write, and back. */
    CHECK(folio_mmap(shared + PAGE, PAGE, rw, MAP_PRIVATE | MAP_FIXED, ro, 2 * PAGE) ==
          shared + PAGE);
    CHECK_EQ(folio_attached(shared + PAGE, PAGE), 0);
    CHECK(folio_attached(shared, PAGE) && folio_attached(shared + 2 * PAGE, PAGE));
    CHECK_EQ(store(shared + PAGE, 'q'), 0);
    CHECK_EQ(load(shared + PAGE + 1), 3);
    CHECK_EQ(byte_at(fd, PAGE), 'b');
    CHECK_EQ(byte_at(fd, 2 * PAGE), 3);
    CHECK(folio_mmap(shared + PAGE, PAGE, rw, MAP_SHARED | MAP_FIXED, fd, PAGE) == shared + PAGE);
    CHECK_EQ(load(shared + PAGE), 'b');
    CHECK_EQ(store(shared + PAGE, 'r'), 0);
    CHECK_EQ(byte_at(fd, PAGE), 'r');
    CHECK_EQ(folio_munmap(p, 6 * PAGE), 0);
    CHECK_EQ(folio_munmap(shared, 8 * PAGE), 0);
    close(fd);
    close(ro);
}

static void test_parts(void)
{
    int fd = make_file("parts", 8);
    char *p = attach(fd, 8);
    CHECK_EQ(folio_munmap(p + 3 * PAGE, 2 * PAGE), 0);
    CHECK_EQ(folio_attached(p + 3 * PAGE, 2 * PAGE), 0);
    CHECK_EQ(store(p + 2 * PAGE, 'a'), 0);
    CHECK_EQ(store(p + 5 * PAGE, 'b'), 0);
    char *q =
        folio_mmap(p + 3 * PAGE, 2 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, fd, 0);
    CHECK(q == p + 3 * PAGE);
    CHECK_EQ(load(q), 1);
    CHECK_EQ(store(q, 'c'), 0);
    CHECK_EQ(load(p), 'c');
    CHECK_EQ(mprotect(p, PAGE, PROT_READ), 0);
    CHECK_EQ(load(p), 'c');
    CHECK_EQ(mprotect(p, PAGE, PROT_READ | PROT_WRITE), 0);
    CHECK_EQ(store(p + 1, 'd'), 0);
    CHECK_EQ(byte_at(fd, 1), 'd');
    CHECK_EQ(byte_at(fd, 2 * PAGE), 'a');
    CHECK_EQ(byte_at(fd, 5 * PAGE), 'b');
    q = folio_mremap(p, PAGE, 4 * PAGE, MREMAP_MAYMOVE, NULL);
    CHECK(q != MAP_FAILED);
    CHECK_EQ(load(q), 'c');
    CHECK_EQ(store(q + 3 * PAGE, 'e'), 0);
    CHECK_EQ(byte_at(fd, 3 * PAGE), 'e');
    CHECK_EQ(folio_munmap(q, 4 * PAGE), 0);
    CHECK_EQ(folio_munmap(p, 8 * PAGE), 0);
    close(fd);
}

/* The whole of the largest file: more pages than 32 bits count. */
static void test_largest(void)
{
    int fd = make_file("largest", 2), rw = PROT_READ | PROT_WRITE;
    size_t all = (size_t)1 << 44, middle = all / 2;
    CHECK_EQ(ftruncate(fd, (off_t)all), 0);
    char *p = folio_mmap(NULL, all, rw, MAP_SHARED | MAP_NORESERVE, fd, 0);
    if (p == MAP_FAILED)
        give_up("the largest file: %s", strerror(errno));
    CHECK_EQ(load(p), 1);
    for (unsigned i = 0; i < 4; i++) {
        size_t at = (size_t[]){ PAGE, middle - 1, middle, all - 1 }[i];
        CHECK_EQ(load(p + at), i == 0 ? 2 : 0);
        CHECK_EQ(store(p + at, (char)('a' + i)), 0);
        CHECK_EQ(byte_at(fd, (off_t)at), 'a' + (int)i);
    }
    CHECK_EQ(folio_msync(p, all, MS_SYNC), 0);
    CHECK_EQ(folio_madvise(p, all, MADV_RANDOM), 0);
    CHECK_EQ(folio_madvise(p, all, MADV_PAGEOUT), 0);
    CHECK_EQ(load(p + middle), 'c');
    CHECK_EQ(folio_munmap(p + middle - PAGE, 2 * PAGE), 0);
    CHECK_EQ(folio_mmap(p + middle - PAGE, 2 * PAGE, rw, MAP_SHARED | MAP_FIXED, fd, 0) ==
                 p + middle - PAGE,
             1);
    CHECK_EQ(load(p + middle), 'a');
    CHECK_EQ(load(p + middle - 2 * PAGE), 0);
    CHECK_EQ(load(p + all - 1), 'd');
    CHECK_EQ(folio_munmap(p, all), 0);
    CHECK_EQ(folio_mmap(NULL, all, rw, MAP_SHARED, fd, PAGE) == MAP_FAILED && errno == EOVERFLOW,
             1);
    close(fd);
    CHECK_EQ(unlink("largest"), 0);
}

/* What is read ahead is read by another thread, which may come to it later. */
static void misses(const char *what, char *p, size_t from, long long least, long long most)
{
    control("drop");
    long long before = stat_of("cache", "read_pages");
    for (size_t i = 0; i < 4; i++)
        CHECK_EQ(load(p + (from + i * 97) * PAGE), (unsigned char)(from + i * 97 + 1));
    (void)WITHIN(10, stat_of("cache", "read_pages") >= before + least);
    long long read = stat_of("cache", "read_pages") - before;
    if (read < least || read > most)
        fprintf(stderr, "%s: %lld pages read\n", what, read);
    CHECK(read >= least && read <= most);
}

/* A lock goes with the last descriptor and mapping of its open, not with another open's mapping. */
static void test_flock(void)
{
    int a = make_file("locked", 1), b = open("locked", O_RDWR);
    CHECK_EQ(flock(a, LOCK_EX), 0);
    char *p = attach(a, 1), *q = attach(b, 1);
    CHECK_EQ(folio_munmap(p, PAGE), 0);
    CHECK(flock(b, LOCK_EX | LOCK_NB) == -1 && errno == EWOULDBLOCK);
    close(a);
    CHECK(WITHIN(10, flock(b, LOCK_EX | LOCK_NB) == 0));
    CHECK_EQ(store(q, 'l'), 0);
    CHECK_EQ(folio_munmap(q, PAGE), 0);
    close(b);
}

#define FILES 300

static char *of_file[FILES];

static void child_of_files(int in, int out)
{
    (void)in;
    (void)out;
    for (size_t i = 0; i < FILES; i++)
        CHECK_EQ(store(of_file[i] + 1, 'c'), 0);
}

/* A program that maps files and closes them has no more descriptors for it, and a low limit is none of files. */
static void test_files(void)
{
    struct rlimit before, low;
    char name[16];
    CHECK_EQ(getrlimit(RLIMIT_NOFILE, &before), 0);
    low = before;
    low.rlim_cur = 100;
    CHECK_EQ(setrlimit(RLIMIT_NOFILE, &low), 0);
    for (int i = 0; i < FILES; i++) {
        snprintf(name, sizeof name, "many%d", i);
        int fd = make_file(name, 1);
        of_file[i] = attach(fd, 1);
        CHECK_EQ(store(of_file[i], 'f'), 0);
        close(fd);
    }
    CHECK_EQ(getrlimit(RLIMIT_NOFILE, &low), 0);
    CHECK_EQ(low.rlim_cur, 100);
    struct child c = start_child(child_of_files);
    end_child(&c);
    for (int i = 0; i < FILES; i++) {
        CHECK_EQ(load(of_file[i] + 1), 'c');
        CHECK_EQ(folio_munmap(of_file[i], PAGE), 0);
        snprintf(name, sizeof name, "many%d", i);
        unlink(name);
    }
    CHECK_EQ(setrlimit(RLIMIT_NOFILE, &before), 0);
}

/* Likewise for who is not root, who may also have few descriptors under way in sockets. */
static void files_of_nobody(int in, int out)
{
    (void)in, (void)out;
    if (chdir("nobody") != 0 || setgid(65534) != 0 || setuid(65534) != 0)
        give_up("to become nobody");
    test_files();
}
static void test_files_of_nobody(void)
{
    if (mkdir("nobody", 0700) != 0 || chown("nobody", 65534, 65534) != 0)
        give_up("a directory");
    struct child c = start_child(files_of_nobody);
    end_child(&c);
    CHECK_EQ(rmdir("nobody"), 0);
}

/* What is read beside the pages that are touched. */
static void test_random(void)
{
    enum { PAGES = 2000 };
    int fd = make_file("random", PAGES);
    char *p = attach(fd, PAGES);
    control("set fault_around=1");
    misses("without advice", p, 600, 40, 4 * 64);
    CHECK_EQ(folio_madvise(p, 1000 * PAGE, MADV_RANDOM), 0);
    misses("random", p, 600, 4, 4);
    misses("behind the advised part", p, 1200, 40, 4 * 64);
    CHECK_EQ(folio_madvise(p + 1000 * PAGE, 1000 * PAGE, MADV_RANDOM), 0);
    misses("random, both parts", p, 600, 4, 4);
    misses("random, both parts", p, 1200, 4, 4);
    CHECK_EQ(folio_munmap(p, PAGE), 0); /* the rest keeps it */
    misses("random, cut", p, 600, 4, 4);
    CHECK_EQ(folio_madvise(p + PAGE, (PAGES - 1) * PAGE, MADV_NORMAL), 0);
    misses("normal again", p, 600, 40, 4 * 64);
    control("set fault_around=16");
    CHECK_EQ(folio_munmap(p + PAGE, (PAGES - 1) * PAGE), 0);
    close(fd);
}

static unsigned cached_pages(char *p, size_t from, size_t pages)
{
    unsigned char vec[128]; /* nobody asks for more at once */
    unsigned in = 0;
    CHECK_EQ(folio_mincore(p + from * PAGE, pages * PAGE, vec), 0);
    for (size_t i = 0; i < pages; i++)
        in += vec[i] & 1;
    return in;
}

/* Who touches pages in order waits for the first only. The rest is read behind his back: so he lets it come, and
 * when he has done that no page is missed, however slow that was. */
static void test_read_ahead(void)
{
    enum { PAGES = 250 };
    int fd = make_file("read_ahead", PAGES);
    char *p = attach(fd, PAGES);
    bool comes = true;
    control("drop");
    count_start();
    for (size_t i = 0; i < PAGES && comes; i++) {
        comes = i == 0 || WITHIN(10, cached_pages(p, i, 1) == 1);
        if (comes)
            CHECK_EQ(load(p + i * PAGE), i + 1);
        else
            complain("page %zu is not read ahead", i);
    }
    CHECK_EQ(stat_of("faults", "attached_major") - counted.major, 1);
    CHECK_EQ(stat_of("cache", "read_pages") - counted.read, PAGES);
    folio_munmap(p, PAGES * PAGE);
    close(fd);
}

/* Pages around one that is touched are read, or those behind it alone. */
static void test_sequential(void)
{
    enum { AT = 100, SOME = 8 };
    int fd = make_file("sequential", 2 * AT);
    char *p = attach(fd, 2 * AT);
    const int advice[] = { MADV_NORMAL, MADV_SEQUENTIAL, MADV_NORMAL };
    for (unsigned i = 0; i < sizeof advice / sizeof *advice; i++) {
        control("drop");
        CHECK_EQ(folio_madvise(p, 2 * AT * PAGE, advice[i]), 0);
        CHECK_EQ(load(p + AT * PAGE), AT + 1);
        CHECK(WITHIN(10, cached_pages(p, AT, SOME) == SOME));
        if (advice[i] == MADV_SEQUENTIAL)
            CHECK_EQ(cached_pages(p, 0, AT), 0);
        else
            CHECK(WITHIN(10, cached_pages(p, AT - SOME, SOME) == SOME));
    }
    folio_munmap(p, 2 * AT * PAGE);
    close(fd);
}

/* Pages that are used often stay while others, read once, pass through the cache; those said to be cold do not. */
static void test_cold(void)
{
    enum { CACHE = 1024, PAGES = 64, COLD = PAGES / 2 };
    int fd = make_file("cold", PAGES), other = make_file("not_cold", 3 * CACHE);
    char *p = attach(fd, PAGES);
    control("drop");
    control("set cache_size=4M");
    control("set fault_around=1"); /* a page that is mapped with another has not been used */
    for (int round = 0; round < 4; round++) {
        for (size_t i = 0; i < PAGES; i++)
            CHECK_EQ(load(p + i * PAGE), i + 1);
        CHECK_EQ(folio_madvise(p, PAGES * PAGE, MADV_DONTNEED), 0);
    }
    CHECK_EQ(folio_madvise(p, COLD * PAGE, MADV_COLD), 0);
    CHECK_EQ(cached_pages(p, 0, PAGES), PAGES);
    for (size_t i = 0; i < 3 * CACHE; i++)
        CHECK_EQ(byte_at(other, (off_t)(i * PAGE)), (unsigned char)(i + 1));
    CHECK_EQ(cached_pages(p, 0, COLD), 0);
    CHECK_EQ(cached_pages(p, COLD, PAGES - COLD), PAGES - COLD);
    control("set fault_around=16");
    control("set cache_size=256M");
    folio_munmap(p, PAGES * PAGE);
    close(fd);
    close(other);
}

static void test_advice(void)
{
    int fd = make_file("advice", 64);
    unsigned char vec[64];
    char *p = attach(fd, 64);
    control("drop");
    CHECK(folio_mincore(p, 64 * PAGE, (unsigned char *)8) == -1 && errno == EFAULT);
    CHECK_EQ(folio_mincore(p, 64 * PAGE, vec), 0);
    unsigned in = 0;
    for (unsigned i = 0; i < 64; i++)
        in += vec[i] & 1;
    CHECK_EQ(in, 0);
    CHECK_EQ(folio_madvise(p, 64 * PAGE, MADV_WILLNEED), 0);
    CHECK(WITHIN(10, folio_mincore(p, 64 * PAGE, vec) == 0 && memchr(vec, 0, 64) == NULL));
    CHECK_EQ(store(p + 5 * PAGE, 'x'), 0);
    CHECK_EQ(folio_madvise(p, 64 * PAGE, MADV_DONTNEED), 0);
    CHECK_EQ(load(p + 5 * PAGE), 'x');
    CHECK_EQ(folio_madvise(p, 64 * PAGE, MADV_SEQUENTIAL), 0);
    CHECK_EQ(folio_madvise(p, 64 * PAGE, MADV_RANDOM), 0);
    CHECK_EQ(folio_madvise(p, 64 * PAGE, MADV_COLD), 0);
    CHECK(WITHIN(10, folio_madvise(p, 64 * PAGE, MADV_PAGEOUT) == 0 &&
                         folio_mincore(p, 64 * PAGE, vec) == 0 && memchr(vec, 1, 64) == NULL));
    CHECK_EQ(load(p + 5 * PAGE), 'x');
    CHECK(folio_madvise(p, 64 * PAGE, 12345) == -1 && errno == EINVAL);
    const int not_locked[] = { MADV_DONTNEED, MADV_REMOVE, MADV_COLD, MADV_PAGEOUT };
    CHECK_EQ(mlock(p + PAGE, PAGE), 0);
    for (unsigned i = 0; i < sizeof not_locked / sizeof *not_locked; i++)
        CHECK(folio_madvise(p, 4 * PAGE, not_locked[i]) == -1 && errno == EINVAL);
    CHECK(folio_msync(p, 4 * PAGE, MS_SYNC | MS_INVALIDATE) == -1 && errno == EBUSY);
    CHECK_EQ(folio_msync(p, 4 * PAGE, MS_SYNC), 0);
    CHECK_EQ(munlock(p, 4 * PAGE), 0);
    CHECK_EQ(folio_msync(p, 4 * PAGE, MS_SYNC | MS_INVALIDATE), 0);
    for (unsigned i = 0; i < 4; i++)
        CHECK_EQ(load(p + i * PAGE), i + 1);
    CHECK_EQ(folio_munmap(p, 64 * PAGE), 0);
    close(fd);
}

/* ---- other processes -------------------------------------------------------------------------------------- */

static char *inherited;

static void child_stores(int in, int out)
{
    CHECK(folio_attached(inherited, 4 * PAGE));
    CHECK_EQ(load(inherited), 'p');
    for (size_t i = 0; i < 4; i++)
        CHECK_EQ(store(inherited + i * PAGE, 'c'), 0);
    say(out);
    (void)hear(in);
    for (size_t i = 0; i < 4; i++) /* after a writeback: its stores are tracked anew */
        CHECK_EQ(store(inherited + i * PAGE + 1, 'd'), 0);
    say(out);
    (void)hear(in);
}

static void test_fork(void)
{
    int fd = make_file("fork", 4);
    inherited = attach(fd, 4);
    CHECK_EQ(store(inherited, 'p'), 0);
    struct child c = start_child(child_stores);
    CHECK(hear(c.from));
    for (size_t i = 0; i < 4; i++) {
        CHECK_EQ(load(inherited + i * PAGE), 'c');
        CHECK_EQ(byte_at(fd, (off_t)(i * PAGE)), 'c');
    }
    CHECK_EQ(fsync(fd), 0);
    long long before = stat_of("faults", "attached_mkwrite");
    say(c.to);
    CHECK(hear(c.from));
    CHECK_EQ(stat_of("faults", "attached_mkwrite") - before, 4);
    for (size_t i = 0; i < 4; i++)
        CHECK_EQ(byte_at(fd, (off_t)(i * PAGE + 1)), 'd');
    end_child(&c);
    CHECK_EQ(store(inherited, 'p'), 0);
    CHECK_EQ(byte_at(fd, 0), 'p');
    folio_munmap(inherited, 4 * PAGE);
    close(fd);
}

static void child_execs(int in, int out)
{
    (void)in;
    (void)out;
    (void)execl(self, self, "exec", (char *)NULL);
    give_up("exec");
}
static void test_exec(void)
{
    int fd = make_file("exec", 4);
    inherited = attach(fd, 4);
    struct child c = start_child(child_execs);
    end_child(&c);
    CHECK_EQ(store(inherited + PAGE, 'e'), 0);
    CHECK_EQ(byte_at(fd, PAGE), 'e');
    folio_munmap(inherited, 4 * PAGE);
    close(fd);
}

/* Has the mapping around an address this flag in /proc's smaps? */
static bool has_flag(const char *at, const char *flag)
{
    char line[400], *end;
    bool inside = false, found = false;
    FILE *f = fopen("/proc/self/smaps", "re");
    if (f == NULL)
        give_up("smaps");
    while (fgets(line, sizeof line, f) != NULL) {
        unsigned long first = strtoul(line, &end, 16);
        if (*end == '-')
            inside = (uintptr_t)at >= first && (uintptr_t)at < strtoul(end + 1, NULL, 16);
        else if (inside && strncmp(line, "VmFlags:", 8) == 0)
            found = strstr(line, flag) != NULL;
    }
    (void)fclose(f);
    return found;
}

/* A core dump has none of it, as of any file that is mapped, unless that is asked for. */
static void test_dump(void)
{
    int fd = make_file("dump", 4);
    char *p = attach(fd, 4);
    CHECK(has_flag(p, " dd"));
    CHECK_EQ(folio_madvise(p + PAGE, PAGE, MADV_DODUMP), 0);
    CHECK(has_flag(p, " dd") && !has_flag(p + PAGE, " dd") && has_flag(p + 2 * PAGE, " dd"));
    folio_munmap(p, 4 * PAGE);
    close(fd);
}

/* ---- robust mutexes -------------------------------------------------------------------------------- */

enum { ROBUST = 3, ROBUST_PAGES = 2 * ROBUST };

/* Each lies in two pages: the word in one, what links it to the others in the next. */
static pthread_mutex_t *robust_at(char *p, int i)
{
    return (pthread_mutex_t *)(void *)(p + 2 * (size_t)i * PAGE + PAGE - 16);
}

static void init_robust(char *p)
{
    pthread_mutexattr_t attr;
    (void)pthread_mutexattr_init(&attr);
    (void)pthread_mutexattr_setpshared(&attr, PTHREAD_PROCESS_SHARED);
    (void)pthread_mutexattr_setrobust(&attr, PTHREAD_MUTEX_ROBUST);
    for (int i = 0; i < ROBUST; i++)
        CHECK_EQ(pthread_mutex_init(robust_at(p, i), &attr), 0);
    (void)pthread_mutexattr_destroy(&attr);
}

static void *lock_robust(void *pipes)
{
    const int *in_out = pipes;
    for (int i = 0; i < ROBUST; i++)
        CHECK_EQ(pthread_mutex_lock(robust_at(inherited, i)), 0);
    say(in_out[1]);
    (void)hear(in_out[0]);
    return NULL;
}

/* One of its threads locks, and ends when it is told to; or else the process does. */
static void child_locks_robust(int in, int out)
{
    int pipes[2] = { in, out };
    pthread_join(start(lock_robust, pipes), NULL);
    say(out);
    (void)hear(in);
}

/* Pages of a file that are dirty, as the daemon sees it. */
static unsigned dirty_pages(const char *name)
{
    char line[200];
    unsigned nr = 0, first, last, count;
    int state;
    (void)snprintf(line, sizeof line, "\"$FOLIO_CTL\" . pages %s", name);
    FILE *f = popen(line, "re");
    while (f != NULL && fgets(line, sizeof line, f) != NULL)
        if (sscanf(line, "%u %u %u %n", &first, &last, &count, &state) ==
                3 && // NOLINT(cert-err34-c)
            strstr(line + state, "dirty") != NULL)
            nr += count;
    if (f == NULL || pclose(f) != 0)
        give_up("foliofsctl pages");
    return nr;
}

static void robust_are_free(char *p)
{
    struct timespec until;
    (void)clock_gettime(CLOCK_REALTIME, &until);
    until.tv_sec += 20;
    for (int i = 0; i < ROBUST; i++) {
        CHECK_EQ(pthread_mutex_timedlock(robust_at(p, i), &until), EOWNERDEAD);
        CHECK_EQ(pthread_mutex_consistent(robust_at(p, i)), 0);
        CHECK_EQ(pthread_mutex_unlock(robust_at(p, i)), 0);
    }
}

/* The owner ends after the mutexes' pages were written back, and perhaps left the cache. */
static void test_robust(void)
{
    int fd = make_file("robust", ROBUST_PAGES);
    inherited = attach(fd, ROBUST_PAGES);
    for (int how = 0; how < 4; how++) {
        bool killed = how % 2 == 0, dropped = how >= 2;
        init_robust(inherited);
        struct child c = start_child(child_locks_robust);
        CHECK(hear(c.from));
        CHECK_EQ(fsync(fd), 0);
        if (dropped)
            control("drop");
        CHECK(WITHIN(20, dirty_pages("robust") == ROBUST_PAGES)); /* they are writable again */
        if (killed) {
            kill_child(&c);
        } else {
            say(c.to);
            CHECK(hear(c.from));
        }
        robust_are_free(inherited);
        if (!killed)
            end_child(&c);
    }
    folio_munmap(inherited, ROBUST_PAGES * PAGE);
    close(fd);
}

/* ---- limits ---------------------------------------------------------------------------------------- */

static void child_out_of_descriptors(int in, int out)
{
    (void)in;
    (void)out;
    int fd = open("descriptors", O_RDWR);
    struct rlimit limit = { 64, 64 };
    (void)setrlimit(RLIMIT_NOFILE, &limit);
    while (open("/dev/null", O_RDONLY) >= 0)
        ;
    char *p = folio_mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (p == MAP_FAILED) {
        CHECK(errno == EMFILE || errno == ENFILE);
    } else {
        CHECK_EQ(store(p, 'o'), 0);
        CHECK_EQ(byte_at(fd, 0), 'o');
    }
}
static void test_descriptors(void)
{
    int fd = make_file("descriptors", 1);
    struct child c = start_child(child_out_of_descriptors);
    end_child(&c);
    char *p = attach(fd, 1);
    CHECK_EQ(store(p, 'x'), 0);
    folio_munmap(p, PAGE);
    close(fd);
}

static void child_stores_for_ever(int in, int out)
{
    (void)in;
    int fd = open("victim", O_RDWR);
    char *p = attach(fd, 16);
    say(out);
    for (uint64_t n = 1;; n++)
        for (size_t i = 0; i < 16; i++)
            *(volatile uint64_t *)(p + i * PAGE) = n;
}

/* A client stopped, and one killed, in mid-store: the others go on, and so do fsync and eviction. */
static void test_stopped(void)
{
    int fd = make_file("victim", 16);
    char *p = attach(fd, 16);
    for (int round = 0; round < 12; round++) {
        struct child c = start_child(child_stores_for_ever);
        CHECK(hear(c.from));
        pause_ms(10);
        (void)kill(c.pid, SIGSTOP);
        double begun = seconds();
        for (int i = 0; i < 8; i++) {
            CHECK_EQ(store(p + (size_t)i * PAGE + 100, (char)i), 0);
            CHECK_EQ(pwrite(fd, "w", 1, i * (off_t)PAGE + 200), 1);
            CHECK_EQ(fsync(fd), 0);
            CHECK_EQ(byte_at(fd, i * (off_t)PAGE + 100), i);
        }
        control("drop");
        if (seconds() - begun > 20)
            complain("a stopped client makes the others slow: %.1f s", seconds() - begun);
        if (round == 0) {
            pause_ms(3000);
            CHECK_EQ(fsync(fd), 0);
        }
        if (round % 2 == 0) {
            (void)kill(c.pid, SIGCONT);
            pause_ms(5);
        }
        kill_child(&c);
        uint64_t first = *(uint64_t *)p, file;
        CHECK(pread(fd, &file, sizeof file, 0) == sizeof file && file == first && file > 0);
    }
    folio_munmap(p, 16 * PAGE);
    close(fd);
}

static void child_in_a_root_of_its_own(int in, int out)
{
    (void)in;
    (void)out;
    int fd = open("rooted", O_RDWR);
    char *p = attach(fd, 1);
    if (chroot(".") != 0)
        give_up("chroot");
    char *q = attach(fd, 1), *r = attach(open("/unrooted", O_RDWR), 1);
    CHECK_EQ(store(p, 'p'), 0);
    CHECK_EQ(load(q), 'p');
    CHECK_EQ(store(r, 'r'), 0);
}

/* Who cannot see the daemon's socket any more has his connection. */
static void test_chroot(void)
{
    if (geteuid() != 0) {
        printf("chroot: only root may\n");
        return;
    }
    int fd = make_file("rooted", 1), other = make_file("unrooted", 1);
    struct child c = start_child(child_in_a_root_of_its_own);
    end_child(&c);
    CHECK_EQ(byte_at(fd, 0), 'p');
    CHECK_EQ(byte_at(other, 0), 'r');
    close(fd);
    close(other);
}

/* One that is stopped for a minute: longer than anybody waits for a client. Nobody is slow for it, and it goes on. */
static void test_stopped_a_minute(void)
{
    int fd = make_file("victim", 16);
    char *p = attach(fd, 16);
    struct child c = start_child(child_stores_for_ever);
    CHECK(hear(c.from));
    (void)kill(c.pid, SIGSTOP);
    double begun = seconds(), slowest = 0;
    while (seconds() - begun < 65) {
        double round = seconds();
        for (int i = 0; i < 16; i++) {
            CHECK_EQ(store(p + (size_t)i * PAGE + 100, (char)i), 0);
            CHECK_EQ(byte_at(fd, i * (off_t)PAGE + 100), i);
        }
        CHECK_EQ(fsync(fd), 0);
        control("drop");
        slowest = seconds() - round > slowest ? seconds() - round : slowest;
        pause_ms(500);
    }
    if (slowest > 10)
        complain("a stopped client makes the others slow: %.1f s", slowest);
    CHECK_EQ(stat_of("attach", "stuck"), 0);
    uint64_t before = *(volatile uint64_t *)p;
    (void)kill(c.pid, SIGCONT);
    CHECK(WITHIN(20, *(volatile uint64_t *)p > before));
    CHECK_EQ(load(p + 100), 0);
    kill_child(&c);
    folio_munmap(p, 16 * PAGE);
    close(fd);
}

static void child_waits(int in, int out)
{
    int fd = open("crowd", O_RDWR);
    char *p = attach(fd, 4);
    CHECK_EQ(store(p + (size_t)getpid() % 4 * PAGE, 'h'), 0);
    say(out);
    (void)hear(in);
}

/* No client but, perhaps, ourselves, whose connection stays. */
static long long clients_before;
static bool nobody_left(void)
{
    long long clients = stat_of("attach", "clients");
    if (stat_of("attach", "ranges") != 0 || stat_of("attach", "pages") != 0 || clients > 1)
        return false;
    clients_before = clients;
    return true;
}

enum { CROWD = 300, MANY = 4096 };

static void test_crowd(void)
{
    static struct child crowd[CROWD];
    int fd = make_file("crowd", 4);
    CHECK(WITHIN(10, nobody_left()));
    struct child one = start_child(child_waits); /* what is made at first stays */
    CHECK(hear(one.from));
    end_child(&one);
    CHECK(WITHIN(10, nobody_left()));
    unsigned fds = daemon_has("fd");
    for (int i = 0; i < CROWD; i++)
        crowd[i] = start_child(child_waits);
    for (int i = 0; i < CROWD; i++)
        CHECK(hear(crowd[i].from));
    CHECK_EQ(stat_of("attach", "clients"), clients_before + CROWD);
    CHECK_EQ(stat_of("attach", "ranges"), CROWD);
    CHECK_EQ(fsync(fd), 0);
    for (int i = 0; i < CROWD; i++)
        if (i % 2)
            kill_child(&crowd[i]);
        else
            end_child(&crowd[i]);
    CHECK(WITHIN(20, nobody_left()));
    CHECK(WITHIN(10, daemon_has("fd") <= fds));
    CHECK(WITHIN(10, daemon_has("task") < CROWD));
    close(fd);
}

static void child_maps_many(int in, int out)
{
    static char *maps[MANY];
    int fd = open("many", O_RDWR);
    for (size_t i = 0; i < MANY; i++) {
        maps[i] =
            folio_mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, (off_t)(i % 64 * PAGE));
        if (maps[i] == MAP_FAILED)
            give_up("folio_mmap %zu", i);
        CHECK_EQ(store(maps[i], (char)i), 0);
    }
    say(out);
    (void)hear(in);
    for (size_t i = 0; i < MANY; i++)
        CHECK_EQ(load(maps[i]), (unsigned char)(MANY - 64 + i % 64));
    for (size_t i = 0; i < MANY; i += 2)
        CHECK_EQ(folio_munmap(maps[i], PAGE), 0);
    say(out);
    (void)hear(in);
}
static void test_many(void)
{
    int fd = make_file("many", 64);
    CHECK(WITHIN(10, nobody_left()));
    struct child c = start_child(child_maps_many);
    CHECK(hear(c.from));
    CHECK_EQ(stat_of("attach", "ranges"), MANY);
    CHECK_EQ(fsync(fd), 0);
    control("drop");
    say(c.to);
    CHECK(hear(c.from));
    CHECK_EQ(stat_of("attach", "ranges"), MANY / 2);
    end_child(&c);
    CHECK(WITHIN(20, nobody_left()));
    close(fd);
}

/* The one row of DOORS.md's table that nobody can keep: it is told. The kernel's mapping is another process's. */
static void store_by_kernel(int in, int out)
{
    int fd = open("both", O_RDWR);
    char *p = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (p == MAP_FAILED)
        give_up("mmap");
    CHECK_EQ(store(p, 'k'), 0);
    say(out);
    (void)hear(in);
    CHECK_EQ(msync(p, PAGE, MS_SYNC), 0);
    say(out);
    (void)hear(in);
    CHECK_EQ(load(p + 2), 's'); /* its page was a copy afterwards, too */
}

/* What the attached mapping does with the page that the kernel's has stored to. To store, it has the copy taken back:
 * so the kernel writes that first. In the other cases it is a copy still when it is written. */
enum beside { EVICTS, READS, STORES };

static void both_store(enum beside does)
{
    int fd = make_file("both", 1);
    char *p = attach(fd, 1);
    if (does == READS)
        CHECK_EQ(load(p + 1), 1);
    long long before = stat_of("operations", "mixed_writes");
    struct child c = start_child(store_by_kernel);
    (void)hear(c.from);
    if (does == EVICTS) /* nor has the cache it (foliofsctl drop would have the kernel write) */
        CHECK(WITHIN(10, folio_madvise(p, PAGE, MADV_PAGEOUT) == 0 && cached_pages(p, 0, 1) == 0));
    if (does == READS)
        CHECK_EQ(load(p + 1), 1);
    if (does == STORES)
        CHECK_EQ(store(p + 1, 'a'), 0);
    say(c.to);
    (void)hear(c.from);
    CHECK_EQ(stat_of("operations", "mixed_writes"), before + 1);
    CHECK_EQ(load(p), 'k');
    CHECK_EQ(load(p + 1), does == STORES ? 'a' : 1);
    CHECK_EQ(store(p + 2, 's'), 0);
    end_child(&c);
    CHECK_EQ(fsync(fd), 0);
    folio_munmap(p, PAGE);
    control("drop");
    CHECK_EQ(byte_at(fd, 0), 'k');
    CHECK_EQ(byte_at(fd, 2), 's');
    close(fd);
}

static void test_both(void)
{
    both_store(STORES);
    both_store(READS);
    both_store(EVICTS);
}

static void test_unoffered(void)
{
    int fd = make_file("unoffered", 2);
    REFUSES(EOPNOTSUPP, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    close(fd);
}

/* ---- all ------------------------------------------------------------------------------------------------------ */

static const struct test {
    const char *name;
    void (*run)(void);
    bool alone; /* only when it is named */
} tests[] = {
    { "coherent", test_coherent, false },
    { "two", test_two, false },
    { "counts", test_counts, false },
    { "around", test_around, false },
    { "populate", test_populate, false },
    { "times", test_times, false },
    { "ahead", test_store_around, false },
    { "msync", test_msync, false },
    { "size", test_size, false },
    { "tail", test_tail, false },
    { "race_write", test_race_write, false },
    { "race_punch", test_race_punch, false },
    { "race_truncate", test_race_truncate, false },
    { "pressure", test_pressure, false },
    { "throttled", test_throttled, false },
    { "errors", test_errors, false },
    { "locked", test_locked, false },
    { "limited", test_limited, false },
    { "read_only", test_read_only, false },
    { "noexec", test_noexec, false },
    { "private", test_private, false },
    { "parts", test_parts, false },
    { "largest", test_largest, false },
    { "files", test_files, false },
    { "flock", test_flock, false },
    { "random", test_random, false },
    { "read_ahead", test_read_ahead, false },
    { "sequential", test_sequential, false },
    { "cold", test_cold, false },
    { "advice", test_advice, false },
    { "fork", test_fork, false },
    { "exec", test_exec, false },
    { "dump", test_dump, false },
    { "robust", test_robust, false },
    { "descriptors", test_descriptors, false },
    { "chroot", test_chroot, false },
    { "stopped", test_stopped, false },
    { "stopped_a_minute", test_stopped_a_minute, true },
    { "crowd", test_crowd, false },
    { "many", test_many, false },
    { "both", test_both, false },
    { "files_of_nobody", test_files_of_nobody, true },
    { "unoffered", test_unoffered, true },
};

/* Somebody's handler in a forked child, which comes before libfolio's own. */
static char own_page[4096] __attribute__((aligned(4096)));
static void early_in_child(void)
{
    if (folio_msync(own_page, PAGE, MS_ASYNC) != 0)
        complain("early in a child: folio_msync: %s", strerrorname_np(errno));
}

int main(int argc, char **argv)
{
    static char path[4096];
    (void)pthread_atfork(NULL, NULL, early_in_child);
    if (argc == 2 && strcmp(argv[1], "exec") == 0)
        return folio_attached(path, sizeof path) ? 1 : 0;
    self = readlink("/proc/self/exe", path, sizeof path - 1) > 0 ? path : argv[0];
    (void)signal(SIGPIPE, SIG_IGN);
    catch_bus();
    for (unsigned i = 0; i < sizeof tests / sizeof *tests; i++) {
        bool named = false;
        for (int j = 1; j < argc; j++)
            named = named || strcmp(argv[j], tests[i].name) == 0;
        if (argc > 1 ? !named : tests[i].alone)
            continue;
        test_now = tests[i].name;
        tests[i].run();
    }
    return failures > 0;
}
