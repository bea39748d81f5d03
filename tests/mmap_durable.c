/* mmap_durable: stores to a mapped file that are to survive what happens next.
 *
 *     mmap_durable make FILE                 a file for the others, durable
 *     mmap_durable store FILE HOW NUMBER     store NUMBER all over it, and have HOW make it durable:
 *                                            msync, fsync, fdatasync, other (munmap, and another process
 *                                            calls fsync), range (sync_file_range), none
 *     mmap_durable verify FILE NUMBER        it is there
 *     mmap_durable hold FILE NUMBER          as store none; then wait for the end of standard input and
 *                                            store NUMBER + 1
 *     mmap_durable keep FILE NUMBER          as hold, without the second store
 *     mmap_durable async FILE NUMBER         as keep, with msync(MS_ASYNC)
 *     mmap_durable race FILE NOTES           several threads store to it until they get SIGBUS; NOTES will say what
 *     mmap_durable raced FILE NOTES          all that is there
 *     mmap_durable replace DIRECTORY FILE NUMBER   keep with a new file that is renamed to FILE, in DIRECTORY; then
 *                                            fsync another file
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <sys/wait.h>

#include "tests/mmap_util.h"

#define DURABLE_PAGES 16

static int make_durable(const char *name)
{
    int fd = make(name, 0, DURABLE_PAGES * PAGE);
    return fsync(fd) == 0 && close(fd) == 0 ? 0 : 1;
}

static void fsync_from_another_process(const char *name)
{
    int status;
    pid_t child = fork();
    if (child == 0) {
        int fd = open(name, O_RDONLY);
        _exit(fd >= 0 && fsync(fd) == 0 ? 0 : 1);
    }
    EXPECT(waitpid(child, &status, 0) == child && status == 0);
}

static void make_stores_durable(const char *name, const char *how, int fd, char *p)
{
    size_t len = DURABLE_PAGES * PAGE;
    if (strcmp(how, "msync") == 0)
        EXPECT(msync(p, len, MS_SYNC) == 0);
    else if (strcmp(how, "fsync") == 0)
        EXPECT(fsync(fd) == 0);
    else if (strcmp(how, "fdatasync") == 0)
        EXPECT(fdatasync(fd) == 0);
    else if (strcmp(how, "range") == 0)
        EXPECT(sync_file_range(fd, 0, 0,
                               SYNC_FILE_RANGE_WAIT_BEFORE | SYNC_FILE_RANGE_WRITE |
                                   SYNC_FILE_RANGE_WAIT_AFTER) == 0);
    else if (strcmp(how, "other") == 0) {
        munmap(p, len);
        close(fd);
        fsync_from_another_process(name);
    } else if (strcmp(how, "none") != 0)
        die(how);
}

static char *store_all(const char *name, uint64_t n, int *fd)
{
    *fd = open(name, O_RDWR);
    if (*fd < 0)
        die(name);
    char *p = map(*fd, DURABLE_PAGES);
    for (int i = 0; i < DURABLE_PAGES; i++)
        *(uint64_t *)(p + i * PAGE + i * 8) = n;
    return p;
}

static int store_durably(const char *name, const char *how, uint64_t n)
{
    int fd;
    char *p = store_all(name, n, &fd);
    make_stores_durable(name, how, fd, p);
    return why[0] != 0 ? say(how) : 0;
}

static int verify(const char *name, uint64_t n)
{
    int fd = open(name, O_RDONLY);
    for (int i = 0; i < DURABLE_PAGES; i++) {
        uint64_t got = 0;
        if (pread(fd, &got, sizeof got, i * PAGE + i * 8) != sizeof got || got != n) {
            printf("FAIL page %d holds %llu, not %llu\n", i, (unsigned long long)got,
                   (unsigned long long)n);
            return 1;
        }
    }
    return 0;
}

/* Until standard input ends. */
static void stay(void)
{
    char c;
    puts("stored");
    fflush(stdout);
    while (read(0, &c, 1) > 0)
        ;
}

static int keep(const char *name, uint64_t n, bool async)
{
    int fd;
    char *p = store_all(name, n, &fd);
    EXPECT(!async || msync(p, DURABLE_PAGES * PAGE, MS_ASYNC) == 0);
    stay();
    return why[0] != 0 ? say("keep") : 0;
}

/* A file of which only a mapping knows the content takes name's place; then all that the file system was told is
 * made durable, by way of another file. */
static int replace(const char *name, uint64_t n)
{
    int fd, other = make("other", 'o', 1);
    if (make_durable("new") != 0)
        die("new");
    store_all("new", n, &fd);
    EXPECT(rename("new", name) == 0 && fsync(other) == 0);
    stay();
    return why[0] != 0 ? say("replace") : 0;
}

static int hold(const char *name, uint64_t n)
{
    int fd;
    char *p = store_all(name, n, &fd);
    close(fd);
    stay();
    for (int i = 0; i < DURABLE_PAGES; i++)
        if (store_number((uint64_t *)(p + i * PAGE + i * 8), n + 1) != 0)
            return 1;
    return 0;
}

/* ---- until the end ------------------------------------------------------------------------------- */

#define RACERS      4
#define RACER_PAGES 16

struct racer {
    pthread_t thread;
    char *p;
    uint64_t *stored; /* in each page */
};

static void *store_until_sigbus(void *arg)
{
    struct racer *r = arg;
    if (sigsetjmp(fault, 1) != 0)
        return NULL;
    for (uint64_t n = 1;; n++) {
        unsigned page = n % RACER_PAGES;
        *(volatile uint64_t *)(r->p + (size_t)page * PAGE) = n;
        *(volatile uint64_t *)&r->stored[page] = n;
    }
}

static int race(const char *name, const char *notes)
{
    static uint64_t stored[RACERS * RACER_PAGES];
    struct racer racers[RACERS];
    int fd = open(name, O_RDWR | O_CREAT | O_TRUNC, 0644),
        out = open(notes, O_WRONLY | O_CREAT | O_TRUNC, 0644);
    if (fd < 0 || out < 0 || ftruncate(fd, RACERS * RACER_PAGES * PAGE) != 0)
        die(name);
    char *p = map(fd, RACERS * RACER_PAGES);
    close(fd);
    for (int i = 0; i < RACERS; i++) {
        racers[i].p = p + (size_t)i * RACER_PAGES * PAGE;
        racers[i].stored = stored + i * RACER_PAGES;
        if (pthread_create(&racers[i].thread, NULL, store_until_sigbus, &racers[i]) != 0)
            die("pthread_create");
    }
    puts("stored");
    fflush(stdout);
    for (int i = 0; i < RACERS; i++)
        pthread_join(racers[i].thread, NULL);
    return write(out, stored, sizeof stored) == sizeof stored ? 0 : 1;
}

static int raced(const char *name, const char *notes)
{
    uint64_t stored[RACERS * RACER_PAGES], got = 0;
    int fd = open(name, O_RDONLY), in = open(notes, O_RDONLY), bad = 0;
    if (fd < 0 || in < 0 || read(in, stored, sizeof stored) != sizeof stored)
        die(name);
    for (int i = 0; i < RACERS * RACER_PAGES; i++)
        if (pread(fd, &got, sizeof got, (off_t)i * PAGE) != sizeof got || got != stored[i]) {
            printf("FAIL page %d holds %llu, not %llu, the last store\n", i,
                   (unsigned long long)got, (unsigned long long)stored[i]);
            bad = 1;
        }
    return bad;
}

int main(int argc, char **argv)
{
    const char *what = argc >= 3 ? argv[1] : "";
    catch_faults();
    if (strcmp(what, "make") == 0)
        return make_durable(argv[2]);
    if (strcmp(what, "store") == 0 && argc == 5)
        return store_durably(argv[2], argv[3], strtoull(argv[4], NULL, 10));
    if (strcmp(what, "verify") == 0 && argc == 4)
        return verify(argv[2], strtoull(argv[3], NULL, 10));
    if (strcmp(what, "hold") == 0 && argc == 4)
        return hold(argv[2], strtoull(argv[3], NULL, 10));
    if ((strcmp(what, "keep") == 0 || strcmp(what, "async") == 0) && argc == 4)
        return keep(argv[2], strtoull(argv[3], NULL, 10), what[0] == 'a');
    if (strcmp(what, "race") == 0 && argc == 4)
        return race(argv[2], argv[3]);
    if (strcmp(what, "raced") == 0 && argc == 4)
        return raced(argv[2], argv[3]);
    if (strcmp(what, "replace") == 0 && argc == 5 && chdir(argv[2]) == 0)
        return replace(argv[3], strtoull(argv[4], NULL, 10));
    fprintf(stderr, "usage: see the head of tests/mmap_durable.c\n");
    return 2;
}
