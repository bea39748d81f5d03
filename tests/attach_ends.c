/* attach_ends.c: what ends or runs out under attached mappings, step by step with mount_attach.sh. Run on a mount of
 * ours, which is the working directory: attach_ends NAME.
 *
 *     full      the volume has no room; "filler" is to be deleted
 *     damaged   a page of "damaged" cannot be read; then it can
 *     lose      map "lose", store, say "ready", and await the daemon's end
 *     durable   store to "durable", MS_SYNC, say "ready", wait;    verify: it is there
 *     busy, cut_off   a mapping keeps the mount, or the daemon, busy
 *     racing    store to "racing" until the daemon ends; FOLIO_NOTES, FOLIO_LEAVES;    raced: it is all there
 *     starved   FOLIO_FAIL_ALLOC: the daemon's memory runs out
 *     held      FOLIO_OTHER, FOLIO_OTHER_DAEMON: another FUSE mount, and its process
 *
 * Each failure is a line of its own.
 */
#define _GNU_SOURCE
#include "attach_ops.h"

#include <dirent.h>
#include <poll.h>
#include <stdatomic.h>
#include <sys/stat.h>

/* ---- a volume that is full, a page that is damaged ------------------------------------------------- */

/* No room: the store is a SIGBUS, before it has happened. The volume is full, and the file named. */
static void test_full(void)
{
    int fd = open("holes", O_RDWR);
    char *p = attach(fd, 512);
    size_t refused = 0;
    for (size_t i = 0; i < 512 && refused < 3; i++)
        if (store(p + i * PAGE, 'f') != 0) {
            refused++;
            CHECK(WITHIN(10, load(p + i * PAGE) == 0));
            CHECK_EQ(byte_at(fd, (off_t)(i * PAGE)), 0);
        }
    CHECK_EQ(refused, 3);
    CHECK_EQ(fsync(fd), 0);
    CHECK_EQ(unlink("filler"), 0);
    for (size_t i = 0; i < 512; i++)
        if (!WITHIN(20, store(p + i * PAGE, 'g') == 0)) {
            complain("page %zu: no room though there is", i);
            break;
        }
    CHECK_EQ(fsync(fd), 0);
    folio_munmap(p, 512 * PAGE);
    close(fd);
}

static void *touch_damaged(void *arg)
{
    CHECK_EQ(load(arg), -1);
    return NULL;
}

/* A page that cannot be read is a SIGBUS, for several threads at once too; when it can, it is not, though its mapping
 * has been cut meanwhile. Speaks with the script. */
static void test_damaged(void)
{
    pthread_t others[4];
    int fd = open("damaged", O_RDWR);
    char *p = attach(fd, 4);
    for (unsigned i = 0; i < 4; i++)
        CHECK_EQ(pthread_create(&others[i], NULL, touch_damaged, p + 2 * PAGE), 0);
    for (unsigned i = 0; i < 4; i++)
        (void)pthread_join(others[i], NULL);
    CHECK_EQ(store(p + 2 * PAGE, 'x'), -1);
    long long before = stat_of("cache", "read_errors");
    pause_ms(1000);
    CHECK(stat_of("cache", "read_errors") - before < 20); /* tried again, but ever more seldom */
    CHECK_EQ(folio_munmap(p + 3 * PAGE, PAGE), 0);
    CHECK(load(p) >= 0);
    CHECK_EQ(store(p + PAGE, 'x'), 0);
    printf("ready\n");
    (void)fflush(stdout);
    (void)hear(STDIN_FILENO);
    CHECK(WITHIN(20, load(p + 2 * PAGE) == 'D'));
    CHECK(WITHIN(20, store(p + 2 * PAGE + 1, 'x') == 0));
    CHECK_EQ(byte_at(fd, 2 * PAGE + 1), 'x');
    folio_munmap(p, 3 * PAGE);
    close(fd);
}

/* ---- the daemon ends ------------------------------------------------------------------------------- */

static void *lose_toucher(void *arg)
{
    char *p = arg;
    uint64_t n = 0;
    for (size_t i = 0;; i = (i + 1) % 1024) {
        int got = i % 2 ? store(p + i * PAGE, (char)(n + 1)) : load(p + i * PAGE);
        if (got < 0)
            return NULL;
        if (i % 2 == 0 && got == 0)
            complain("page %zu reads zero", i);
        n++;
    }
}

/* The daemon ends while four threads touch pages. Each ends with SIGBUS, and so does each later touch. */
static void test_lose(void)
{
    int fd = open("lose", O_RDWR);
    char *p = attach(fd, 1024);
    pthread_t threads[4];
    for (int i = 0; i < 4; i++)
        threads[i] = start(lose_toucher, p);
    printf("ready\n");
    (void)fflush(stdout);
    for (int i = 0; i < 4; i++)
        pthread_join(threads[i], NULL);
    for (size_t i = 0; i < 1024; i++) {
        CHECK_EQ(load(p + i * PAGE), -1);
        CHECK_EQ(store(p + i * PAGE, 'z'), -1);
    }
    CHECK_EQ(folio_munmap(p, 1024 * PAGE), 0);
    CHECK(folio_msync(p, PAGE, MS_SYNC) == -1 && errno == ENOMEM);
    close(fd);
}

static void test_durable(void)
{
    int fd = open("durable", O_RDWR);
    char *p = attach(fd, 256);
    for (size_t i = 0; i < 256; i++)
        memset(p + i * PAGE, (int)(i % 251) + 1, PAGE);
    CHECK_EQ(folio_msync(p, 256 * PAGE, MS_SYNC), 0);
    for (size_t i = 0; i < 256; i += 3) /* again, after the pages have been clean */
        p[i * PAGE + 7] = 'D';
    CHECK_EQ(folio_msync(p, 256 * PAGE, MS_SYNC), 0);
    printf("ready\n");
    (void)fflush(stdout);
    (void)hear(STDIN_FILENO);
}
static void test_verify(void)
{
    int fd = open("durable", O_RDONLY);
    for (size_t i = 0; i < 256; i++) {
        CHECK_EQ(byte_at(fd, (off_t)(i * PAGE)), i % 251 + 1);
        CHECK_EQ(byte_at(fd, (off_t)(i * PAGE + 7)), i % 3 == 0 ? 'D' : (int)(i % 251) + 1);
    }
    close(fd);
}

/* A mapping without a descriptor: it keeps the mount busy, and the daemon of one that is detached. */
static void test_busy(void)
{
    int fd = open("busy", O_RDWR);
    char *p = attach(fd, 2);
    close(fd);
    if (chdir("/") != 0)
        give_up("chdir");
    printf("ready\n");
    (void)fflush(stdout);
    (void)hear(STDIN_FILENO);
    CHECK_EQ(store(p, 'b'), 0);
    printf("stored\n");
    (void)fflush(stdout);
    (void)hear(STDIN_FILENO);
    CHECK_EQ(load(p), 'b');
    CHECK_EQ(store(p + PAGE, 'b'), 0);
    CHECK_EQ(folio_munmap(p, 2 * PAGE), 0);
}

/* Likewise, and the daemon is told to end. */
static void test_cut_off(void)
{
    int fd = open("busy", O_RDWR);
    char *p = attach(fd, 2);
    close(fd);
    CHECK_EQ(store(p, 'c'), 0);
    printf("ready\n");
    (void)fflush(stdout);
    (void)hear(STDIN_FILENO);
    CHECK(WITHIN(30, load(p) == -1));
    CHECK_EQ(folio_munmap(p, 2 * PAGE), 0);
}

/* ---- a client whose address space is locked ---------------------------------------------------------------- */

static struct {
    const char *directory; /* of another FUSE mount */
    pid_t daemon;          /* its daemon */
} other;

static void child_stores_elsewhere(int in, int out)
{
    (void)in;
    int fd = open("unheld", O_RDWR);
    char *p = attach(fd, 4);
    CHECK_EQ(store(p + PAGE, 'v'), 0);
    folio_munmap(p, 4 * PAGE);
    say(out);
}

/* Files, each in a directory of its own: in one the kernel renames one at a time. */
#define HELD_MORE 3

/* Map something over a file of the other mount that was stored to: that waits for its daemon. */
static void child_is_held(int in, int out)
{
    char name[4096], *more[HELD_MORE];
    (void)snprintf(name, sizeof name, "%s/held", other.directory);
    int fd = open("held", O_RDWR), far = open(name, O_RDWR | O_CREAT, 0644);
    char *p = attach(fd, 4);
    for (int i = 0; i < HELD_MORE; i++) {
        (void)snprintf(name, sizeof name, "held%d/held", i);
        more[i] = attach(open(name, O_RDWR), 1);
        CHECK_EQ(store(more[i], 'm'), 0);
    }
    if (far < 0 || ftruncate(far, PAGE) != 0)
        give_up("%s", name);
    char *k = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, far, 0);
    if (k == MAP_FAILED)
        give_up("mmap");
    *(volatile char *)k = 'k';
    CHECK_EQ(store(p, 'h'), 0);
    say(out);
    (void)hear(in);
    void *over = mmap(k, PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
    CHECK(over == k);
    CHECK_EQ(store(p + PAGE, 'i'), 0);
    say(out);
    for (int i = 0; i < HELD_MORE; i++)
        folio_munmap(more[i], PAGE);
    folio_munmap(p, 4 * PAGE);
}

static int which_is_renamed;

/* Its data has to be written first. That may take longer than anybody waits. */
static void child_renames(int in, int out)
{
    char from[40], to[40];
    (void)snprintf(from, sizeof from, "held%d/held", which_is_renamed);
    (void)snprintf(to, sizeof to, "held%d/over", which_is_renamed);
    CHECK(rename(from, to) == 0 || errno == EBUSY);
    say(out);
    (void)hear(in);
}
static void child_punches(int in, int out)
{
    int fd = open("unheld", O_RDWR);
    CHECK_EQ(fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 3 * PAGE, PAGE), 0);
    say(out);
    (void)hear(in);
}
static bool heard_within(int from, int seconds)
{
    struct pollfd fds = { .fd = from, .events = POLLIN };
    return poll(&fds, 1, seconds * 1000) == 1 && hear(from);
}

/* Renames that wait for the held client, and a hole that does not. */
static void others_go_on(void)
{
    struct child renames[HELD_MORE], punches;
    for (int i = 0; i < HELD_MORE; i++) {
        which_is_renamed = i;
        renames[i] = start_child(child_renames);
    }
    pause_ms(500); /* they have begun, or they do not keep anybody */
    punches = start_child(child_punches);
    CHECK(heard_within(punches.from, 10));
    (void)kill(other.daemon, SIGCONT);
    for (int i = 0; i < HELD_MORE; i++) {
        CHECK(heard_within(renames[i].from, 60));
        end_child(&renames[i]);
    }
    end_child(&punches);
}

static void child_syncs(int in, int out)
{
    int fd = open("held", O_RDWR);
    (void)hear(in);
    CHECK_EQ(fsync(fd), 0);
    say(out);
}

/* SIGSTOP is no more than asked for when kill(2) returns. */
static bool has_stopped(pid_t pid)
{
    char path[280], stat[512];
    snprintf(path, sizeof path, "/proc/%d/task", (int)pid);
    DIR *tasks = opendir(path);
    bool all = tasks != NULL;
    struct dirent *e;
    while (all && (e = readdir(tasks)) != NULL) {
        if (e->d_name[0] == '.')
            continue;
        snprintf(path, sizeof path, "/proc/%d/task/%s/stat", (int)pid, e->d_name);
        FILE *f = fopen(path, "re");
        size_t n = f != NULL ? fread(stat, 1, sizeof stat - 1, f) : 0;
        stat[n] = '\0';
        const char *name_end = strrchr(stat, ')');
        all = name_end != NULL && strncmp(name_end, ") T", 3) == 0;
        if (f != NULL)
            (void)fclose(f);
    }
    if (tasks != NULL)
        closedir(tasks);
    return all;
}

/* What is older than expire seconds is written, and that is looked for every period seconds. */
static void set_flusher(unsigned expire, unsigned period)
{
    char command[200];
    (void)snprintf(command, sizeof command,
                   "\"$FOLIO_CTL\" . set dirty_expire=%u >/dev/null && "
                   "\"$FOLIO_CTL\" . set dirty_writeback=%u >/dev/null",
                   expire, period);
    if (system(command) != 0) // NOLINT(cert-env33-c)
        give_up("%s", command);
}

/* What the daemon wants of it waits; that is told, while it lasts, and others are served: their dirty pages
 * are written as ever. synced: somebody's fsync waits for it; else the flusher does. */
static void hold(bool synced)
{
    other.directory = getenv("FOLIO_OTHER");
    const char *pid = getenv("FOLIO_OTHER_DAEMON");
    if (other.directory == NULL || pid == NULL)
        give_up("FOLIO_OTHER");
    other.daemon = (pid_t)strtol(pid, NULL, 10);
    int fd = make_file("held", 4), unheld = make_file("unheld", 4);
    for (int i = 0; i < HELD_MORE; i++) {
        char name[40];
        (void)snprintf(name, sizeof name, "held%d", i);
        (void)mkdir(name, 0755);
        (void)snprintf(name, sizeof name, "held%d/over", i);
        close(make_file(name, 1));
        (void)snprintf(name, sizeof name, "held%d/held", i);
        close(make_file(name, 1));
    }
    struct child c = start_child(child_is_held), s = { 0 };
    if (synced)
        s = start_child(child_syncs);
    char *p = attach(unheld, 4); /* they must not inherit it */
    CHECK(hear(c.from));
    CHECK_EQ(stat_of("attach", "stuck"), 0);
    (void)kill(other.daemon, SIGSTOP);
    CHECK(WITHIN(60, has_stopped(other.daemon)));
    say(c.to);
    pause_ms(500); /* it is in mmap(2), or will be: then it is held a little later */
    if (synced)
        say(s.to);
    else
        set_flusher(1, 1);
    bool told = WITHIN(60, stat_of("attach", "stuck") == 1);
    if (told) {
        CHECK_EQ(store(p, 'u'), 0);
        CHECK_EQ(fsync(unheld), 0);
        CHECK_EQ(byte_at(unheld, 0), 'u');
        struct child late = start_child(child_stores_elsewhere);
        CHECK(hear(late.from));
        end_child(&late);
        set_flusher(30, 5);
        CHECK_EQ(fsync(unheld), 0);
        long long held = stat_of("cache", "dirty");
        CHECK_EQ(pwrite(unheld, "unheld", 6, PAGE), 6);
        CHECK_EQ(store(p + 2 * PAGE, 'v'), 0);
        CHECK_EQ(stat_of("cache", "dirty"), held + 2);
        set_flusher(1, 1);
        CHECK(WITHIN(60, stat_of("cache", "dirty") <= held));
        others_go_on();
    }
    (void)kill(other.daemon, SIGCONT);
    CHECK(told);
    CHECK(hear(c.from));
    if (synced)
        CHECK(hear(s.from));
    CHECK(WITHIN(60, stat_of("attach", "stuck") == 0));
    end_child(&c);
    if (synced)
        end_child(&s);
    set_flusher(30, 5);
    CHECK_EQ(byte_at(fd, 0), 'h');
    CHECK_EQ(byte_at(fd, PAGE), 'i');
    folio_munmap(p, 4 * PAGE);
    close(fd);
    close(unheld);
}

static void test_held(void)
{
    hold(true);
    hold(false);
}

/* ---- memory that runs out -------------------------------------------------------------------------- */

/* The daemon's allocations fail as often as the file says that FOLIO_FAIL_ALLOC names: see fail_alloc.c. */
static _Atomic uint32_t *fail_alloc(void)
{
    const char *path = getenv("FOLIO_FAIL_ALLOC");
    int fd = path != NULL ? open(path, O_RDWR | O_CLOEXEC) : -1;
    void *at = fd >= 0 ? mmap(NULL, 8, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0) : MAP_FAILED;
    if (at == MAP_FAILED)
        give_up("FOLIO_FAIL_ALLOC");
    close(fd);
    return at;
}

enum {
    STARVERS = 4,
    STARVED = 512,
    STARVED_FAR = 1000
}; /* pages; far: no readahead for those reaches it */

static struct {
    char *p;
    _Atomic bool stop, loaded;
    uint64_t stored[STARVED];
} starved;

static uint64_t *starved_word(size_t page)
{
    return (uint64_t *)(starved.p + page * PAGE + 8 * (page % 100));
}

/* Its own pages, each with what it stored last. */
static void *starver(void *arg)
{
    uint64_t x = (uintptr_t)arg + 1;
    while (!starved.stop) {
        x = x * 6364136223846793005u + 1442695040888963407u;
        size_t page = (x >> 33) % (STARVED / STARVERS) * STARVERS + (uintptr_t)arg;
        uint64_t got = *(volatile uint64_t *)starved_word(page);
        if (got != starved.stored[page])
            complain("page %zu: %llu, not %llu", page, (unsigned long long)got,
                     (unsigned long long)starved.stored[page]);
        *(volatile uint64_t *)starved_word(page) = ++starved.stored[page];
    }
    return NULL;
}

static void *far_loader(void *arg)
{
    (void)arg;
    CHECK_EQ(*(volatile uint64_t *)starved_word(STARVED_FAR), 0);
    starved.loaded = true;
    return NULL;
}

/* The daemon is short of memory, then has none: a client waits, and gets what is right; it is not the one to be told.
 * (Its cache is smaller than the file, so that there are always pages to be brought in.) */
static void test_starved(void)
{
    _Atomic uint32_t *per_million = fail_alloc(), *failed = per_million + 1;
    pthread_t threads[STARVERS];
    int fd = open("starved", O_RDWR | O_CREAT | O_TRUNC, 0644);
    CHECK_EQ(ftruncate(fd, (STARVED_FAR + 1) * (off_t)PAGE), 0);
    starved.p = attach(fd, STARVED_FAR + 1);
    for (uintptr_t i = 0; i < STARVERS; i++)
        threads[i] = start(starver, (void *)i);
    pause_ms(100);
    atomic_store(per_million, 200000);
    CHECK(WITHIN(20, atomic_load(failed) > 100));
    pause_ms(1000);
    control("drop");
    atomic_store(per_million, 1000000);
    pthread_t loader = start(far_loader, NULL);
    pause_ms(300);
    CHECK(!starved.loaded);
    uint64_t word;
    CHECK(pread(fd, &word, 8, STARVED_FAR * (off_t)PAGE) < 0 && errno == ENOMEM);
    atomic_store(per_million, 0);
    CHECK(WITHIN(20, starved.loaded));
    starved.stop = true;
    for (unsigned i = 0; i < STARVERS; i++)
        pthread_join(threads[i], NULL);
    pthread_join(loader, NULL);
    (void)!fsync(fd); /* which may tell of passes that failed */
    CHECK_EQ(fsync(fd), 0);
    control("drop");
    for (size_t i = 0; i < STARVED; i++) {
        off_t at = (char *)starved_word(i) - starved.p;
        CHECK(pread(fd, &word, 8, at) == 8 && word == starved.stored[i]);
    }
    folio_munmap(starved.p, (STARVED_FAR + 1) * PAGE);
    close(fd);
}

/* ---- unmounting while stores go on ------------------------------------------------------------------- */

enum { RACERS = 4, RACER_PAGES = 16 };

static struct {
    char *p;
    _Atomic bool stop;
    uint64_t stored[RACERS][RACER_PAGES]; /* the last that was not a SIGBUS */
} racing;

static void *racer(void *arg)
{
    uintptr_t me = (uintptr_t)arg;
    for (uint64_t n = 1; !racing.stop; n++) {
        size_t page = n % RACER_PAGES;
        if (store_word((uint64_t *)(racing.p + (me * RACER_PAGES + page) * PAGE), n) != 0)
            break;
        racing.stored[me][page] = n;
    }
    return NULL;
}

static void *race_syncer(void *arg)
{
    (void)arg;
    while (!racing.stop && folio_msync(racing.p, (size_t)RACERS * RACER_PAGES * PAGE, MS_SYNC) == 0)
        ;
    return NULL;
}

static int open_notes(int flags)
{
    const char *path = getenv("FOLIO_NOTES");
    int fd = path != NULL ? open(path, flags | O_CLOEXEC, 0600) : -1;
    if (fd < 0)
        give_up("FOLIO_NOTES");
    return fd;
}

/* Stores go on until the daemon ends, or for so long if FOLIO_LEAVES is set, by a mapping without a descriptor. What
 * was stored is noted: "raced" looks for it on the next mount. */
static void test_racing(void)
{
    int fd = open("racing", O_RDWR | O_CREAT | O_TRUNC, 0644),
        notes = open_notes(O_CREAT | O_TRUNC | O_WRONLY);
    const char *leaves = getenv("FOLIO_LEAVES");
    pthread_t threads[RACERS], syncer;
    CHECK_EQ(ftruncate(fd, (off_t)RACERS * RACER_PAGES * (off_t)PAGE), 0);
    racing.p = attach(fd, (size_t)RACERS * RACER_PAGES);
    close(fd);
    if (chdir("/") != 0)
        give_up("chdir");
    for (uintptr_t i = 0; i < RACERS; i++)
        threads[i] = start(racer, (void *)i);
    syncer = start(race_syncer, NULL);
    printf("ready\n");
    (void)fflush(stdout);
    if (leaves != NULL) {
        pause_ms((unsigned)strtoul(leaves, NULL, 10));
        racing.stop = true;
    }
    for (unsigned i = 0; i < RACERS; i++)
        pthread_join(threads[i], NULL);
    pthread_join(syncer, NULL);
    CHECK_EQ(folio_munmap(racing.p, (size_t)RACERS * RACER_PAGES * PAGE), 0);
    if (write(notes, racing.stored, sizeof racing.stored) != sizeof racing.stored)
        give_up("FOLIO_NOTES");
    close(notes);
}

static void test_raced(void)
{
    int fd = open("racing", O_RDONLY), notes = open_notes(O_RDONLY);
    uint64_t word;
    CHECK(read(notes, racing.stored, sizeof racing.stored) == sizeof racing.stored);
    for (size_t i = 0; i < (size_t)RACERS * RACER_PAGES; i++) {
        uint64_t want = racing.stored[i / RACER_PAGES][i % RACER_PAGES];
        if (pread(fd, &word, 8, (off_t)(i * PAGE)) != 8 || word != want)
            complain("page %zu: %llu, not %llu, the last store", i, (unsigned long long)word,
                     (unsigned long long)want);
    }
    close(notes);
    close(fd);
}

/* ---- all ------------------------------------------------------------------------------------------- */

static const struct test {
    const char *name;
    void (*run)(void);
} tests[] = {
    { "full", test_full },       { "damaged", test_damaged }, { "lose", test_lose },
    { "durable", test_durable }, { "verify", test_verify },   { "busy", test_busy },
    { "cut_off", test_cut_off }, { "racing", test_racing },   { "raced", test_raced },
    { "starved", test_starved }, { "held", test_held },
};

int main(int argc, char **argv)
{
    (void)signal(SIGPIPE, SIG_IGN);
    catch_bus();
    for (unsigned i = 0; argc == 2 && i < sizeof tests / sizeof *tests; i++)
        if (strcmp(argv[1], tests[i].name) == 0) {
            test_now = tests[i].name;
            tests[i].run();
            return failures > 0;
        }
    fprintf(stderr, "usage: attach_ends NAME\n");
    return 2;
}
