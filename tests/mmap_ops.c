/* mmap_ops: what a program may expect of files that it maps.
 *
 *     mmap_ops all DIRECTORY             one line per property: ok or FAIL and why; 1 when any failed
 *     mmap_ops races DIRECTORY SECONDS [NAME]   stores beside truncation, holes, writes, copies,
 *                                        eviction: likewise; only NAME, or with -NAME all but that
 *     mmap_ops big DIRECTORY MIB         many pages stored to by several processes, and read again
 *     mmap_ops readonly FILE             on a file of a read-only mount
 *     mmap_ops make FILE                 a file for the next two, durable
 *     mmap_ops store FILE HOW NUMBER     store NUMBER all over it, and have HOW make it durable:
 *                                        msync, fsync, fdatasync, other (munmap, and another process
 *                                        calls fsync), range (sync_file_range), none
 *     mmap_ops verify FILE NUMBER        it is there
 *     mmap_ops hold FILE NUMBER          as store none; then wait for the end of standard input and
 *                                        store NUMBER + 1
 *     mmap_ops keep FILE NUMBER          as hold, without the second store
 *     mmap_ops async FILE NUMBER         as keep, with msync(MS_ASYNC)
 *     mmap_ops replace DIRECTORY FILE NUMBER   keep with a new file that is renamed to FILE, in DIRECTORY; then
 *                                        fsync another file
 *
 * DIRECTORY is empty, and stays that way. Nothing here knows which file system it is on: it passes on
 * ext4 as well. A store or load that raises SIGBUS is a result here, not an end.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/aio_abi.h>
#include <linux/falloc.h>
#include <pthread.h>
#include <sched.h>
#include <setjmp.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define PAGE 4096
#define RW   (PROT_READ | PROT_WRITE)

/* ---- saying -----------------------------------------------------------------------------------
 *
 * A property is a function; the first thing in it that is not as it should be is what is said. */

static char why[300];

static void note(int line, const char *what)
{
    if (why[0] == 0)
        snprintf(why, sizeof why, "line %d: not so: %s (errno %s)", line, what,
                 strerrorname_np(errno));
}
#define EXPECT(x) ((x) ? (void)0 : note(__LINE__, #x))

static _Noreturn void die(const char *what)
{
    perror(what);
    exit(2);
}

/* ---- accesses that may raise a signal ---------------------------------------------------------- */

static sigjmp_buf fault;

static void on_fault(int sig)
{
    siglongjmp(fault, sig);
}

static void catch_faults(void)
{
    struct sigaction sa = { .sa_handler = on_fault, .sa_flags = SA_NODEFER };
    sigaction(SIGBUS, &sa, NULL);
    sigaction(SIGSEGV, &sa, NULL);
}

/* 0, or the signal that it raised. */
static int store(volatile char *at, char c)
{
    int sig = sigsetjmp(fault, 1);
    if (sig == 0)
        *at = c;
    return sig;
}
static int store_number(volatile uint64_t *at, uint64_t n)
{
    int sig = sigsetjmp(fault, 1);
    if (sig == 0)
        *at = n;
    return sig;
}
static int load_number(const volatile uint64_t *at, uint64_t *n)
{
    int sig = sigsetjmp(fault, 1);
    if (sig == 0)
        *n = *at;
    return sig;
}
/* The byte, or minus the signal. */
static int load(const volatile char *at)
{
    int sig = sigsetjmp(fault, 1);
    return sig == 0 ? (unsigned char)*at : -sig;
}

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

/* ---- files ------------------------------------------------------------------------------------- */

/* A new file of n bytes, all c. */
static int make(const char *name, char c, size_t n)
{
    static char buf[16 * PAGE];
    int fd = open(name, O_RDWR | O_CREAT | O_TRUNC, 0644);
    memset(buf, c, sizeof buf);
    if (fd < 0 || n > sizeof buf || write(fd, buf, n) != (ssize_t)n)
        die(name);
    return fd;
}
static char *map(int fd, int pages)
{
    char *p = mmap(NULL, (size_t)pages * PAGE, RW, MAP_SHARED, fd, 0);
    if (p == MAP_FAILED)
        die("mmap");
    return p;
}
static void done(const char *name, int fd, char *p, int pages)
{
    munmap(p, (size_t)pages * PAGE);
    close(fd);
    unlink(name);
}
/* The byte there; -1: beyond the end. */
static int byte_at(int fd, off_t at)
{
    unsigned char c;
    return pread(fd, &c, 1, at) == 1 ? c : -1;
}
/* Are the bytes of the file from a to b all c? */
static bool all(int fd, off_t a, off_t b, char c)
{
    for (; a < b; a++)
        if (byte_at(fd, a) != (unsigned char)c)
            return false;
    return true;
}
static off_t size_of(int fd)
{
    struct stat st;
    return fstat(fd, &st) == 0 ? st.st_size : -1;
}
static void forget(int fd) /* have the kernel drop what it has cached of it */
{
    fsync(fd);
    posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
}

/* ---- one view of a file ------------------------------------------------------------------------ */

static void stores_are_read(void)
{
    int fd = make("f", 'f', 3 * PAGE), other = open("f", O_RDONLY);
    char *p = map(fd, 3);
    p[10] = 'a';
    p[2 * PAGE] = 'b';
    EXPECT(byte_at(fd, 10) == 'a' && byte_at(other, 10) == 'a');
    EXPECT(byte_at(other, 2 * PAGE) == 'b' && byte_at(other, PAGE) == 'f');
    forget(fd);
    EXPECT(byte_at(other, 10) == 'a' && byte_at(other, 11) == 'f');
    close(other);
    done("f", fd, p, 3);
}

static void writes_are_loaded(void)
{
    int fd = make("f", 'f', 2 * PAGE);
    char *p = map(fd, 2);
    EXPECT(p[5] == 'f');
    EXPECT(pwrite(fd, "x", 1, 5) == 1 && p[5] == 'x');
    p[6] = 'y';
    EXPECT(pwrite(fd, "zz", 2, PAGE - 1) == 2 && p[PAGE - 1] == 'z' && p[PAGE] == 'z');
    EXPECT(p[6] == 'y');
    done("f", fd, p, 2);
}

static void mappings_share(void)
{
    int fd = make("f", 'f', PAGE), other = open("f", O_RDWR);
    char *p = map(fd, 1), *q = map(other, 1);
    p[1] = 'p';
    q[2] = 'q';
    EXPECT(q[1] == 'p' && p[2] == 'q');
    munmap(q, PAGE);
    close(other);
    done("f", fd, p, 1);
}

static void private_stores_stay_private(void)
{
    int fd = make("f", 'f', 2 * PAGE);
    char *p = map(fd, 2), *q = mmap(NULL, 2 * PAGE, RW, MAP_PRIVATE, fd, 0);
    q[0] = 'q';
    EXPECT(p[0] == 'f' && byte_at(fd, 0) == 'f');
    p[0] = 'p';
    p[PAGE] = 'p';
    EXPECT(q[0] == 'q'); /* copied: no longer the file's */
    EXPECT(byte_at(fd, 0) == 'p' && byte_at(fd, PAGE) == 'p');
    EXPECT(msync(q, 2 * PAGE, MS_SYNC) == 0 && byte_at(fd, 0) == 'p');
    munmap(q, 2 * PAGE);
    done("f", fd, p, 2);
}

static void private_of_readonly_file(void)
{
    close(make("f", 'f', PAGE));
    int fd = open("f", O_RDONLY);
    char *q = mmap(NULL, PAGE, RW, MAP_PRIVATE, fd, 0);
    EXPECT(q != MAP_FAILED && store(q, 'q') == 0 && q[0] == 'q' && byte_at(fd, 0) == 'f');
    EXPECT(mmap(NULL, PAGE, RW, MAP_SHARED, fd, 0) == MAP_FAILED && errno == EACCES);
    done("f", fd, q, 1);
    fd = open("f", O_WRONLY | O_CREAT, 0644);
    EXPECT(mmap(NULL, PAGE, PROT_WRITE, MAP_SHARED, fd, 0) == MAP_FAILED && errno == EACCES);
    close(fd);
    unlink("f");
}

static void evicted_pages_keep_stores(void)
{
    int fd = make("f", 'f', 16 * PAGE);
    char *p = map(fd, 16);
    for (int round = 0; round < 20; round++) {
        for (int i = 0; i < 16; i++)
            p[i * PAGE + round] = (char)(i + round);
        madvise(p, 16 * PAGE, MADV_DONTNEED);
        if (round % 3 == 0)
            forget(fd);
        for (int i = 0; i < 16; i++)
            EXPECT(p[i * PAGE + round] == (char)(i + round));
    }
    done("f", fd, p, 16);
}

/* ---- the end of file --------------------------------------------------------------------------- */

static void beyond_the_end_is_sigbus(void)
{
    int fd = make("f", 'f', PAGE + 10);
    char *p = map(fd, 4);
    EXPECT(load(p + 2 * PAGE) == -SIGBUS && load(p + 3 * PAGE) == -SIGBUS);
    EXPECT(store(p + 2 * PAGE, 'x') == SIGBUS);
    EXPECT(load(p + PAGE + 9) == 'f' && load(p + PAGE + 10) == 0 && load(p + 2 * PAGE - 1) == 0);
    EXPECT(size_of(fd) == PAGE + 10);
    done("f", fd, p, 4);
}

/* A file of 100 bytes with 's' stored in the rest of its page. */
static char *stored_behind(int *fd)
{
    *fd = make("f", 'f', 100);
    char *p = map(*fd, 4);
    EXPECT(load(p + 100) == 0);
    memset(p + 100, 's', PAGE - 100);
    return p;
}

static void tail_stores_do_not_reach_the_file(void)
{
    int fd;
    char *p = stored_behind(&fd);
    EXPECT(msync(p, PAGE, MS_SYNC) == 0);
    EXPECT(size_of(fd) == 100 && byte_at(fd, 100) == -1 && byte_at(fd, 99) == 'f');
    munmap(p, 4 * PAGE);
    forget(fd);
    p = map(fd, 4);
    EXPECT(load(p + 100) == 0 && load(p + PAGE - 1) == 0 && load(p) == 'f');
    done("f", fd, p, 4);
}

static void tail_is_zeros(int fd, char *p, off_t to)
{
    EXPECT(load(p + 99) == 'f' && load(p + 100) == 0);
    EXPECT(all(fd, 0, 100, 'f') && all(fd, 100, to, 0));
    forget(fd);
    EXPECT(all(fd, 0, 100, 'f') && all(fd, 100, to, 0));
}

static void tail_is_zeros_after_ftruncate(void)
{
    int fd;
    char *p = stored_behind(&fd);
    EXPECT(ftruncate(fd, 2 * PAGE) == 0);
    tail_is_zeros(fd, p, 2 * PAGE);
    done("f", fd, p, 4);
}

static void tail_is_zeros_after_a_write_in_the_page(void)
{
    int fd;
    char *p = stored_behind(&fd);
    EXPECT(pwrite(fd, "w", 1, 3000) == 1);
    tail_is_zeros(fd, p, 3000);
    EXPECT(byte_at(fd, 3000) == 'w' && size_of(fd) == 3001);
    done("f", fd, p, 4);
}

static void tail_is_zeros_after_a_write_behind_it(void)
{
    int fd;
    char *p = stored_behind(&fd);
    EXPECT(pwrite(fd, "w", 1, 2 * PAGE + 5) == 1);
    tail_is_zeros(fd, p, 2 * PAGE + 5);
    EXPECT(byte_at(fd, 2 * PAGE + 5) == 'w');
    done("f", fd, p, 4);
}

static void tail_is_zeros_after_fallocate(void)
{
    int fd;
    char *p = stored_behind(&fd);
    EXPECT(fallocate(fd, 0, 0, 2 * PAGE) == 0 && size_of(fd) == 2 * PAGE);
    tail_is_zeros(fd, p, 2 * PAGE);
    done("f", fd, p, 4);
}

static void tail_is_zeros_after_msync_and_growth(void)
{
    int fd;
    char *p = stored_behind(&fd);
    EXPECT(msync(p, PAGE, MS_SYNC) == 0 && ftruncate(fd, PAGE) == 0);
    tail_is_zeros(fd, p, PAGE);
    done("f", fd, p, 4);
}

static void growth_shows(void)
{
    int fd = make("f", 'f', PAGE);
    char *p = map(fd, 4);
    EXPECT(load(p + 2 * PAGE) == -SIGBUS);
    EXPECT(ftruncate(fd, 4 * PAGE) == 0);
    EXPECT(load(p + 2 * PAGE) == 0 && store(p + 3 * PAGE + 1, 'g') == 0);
    EXPECT(byte_at(fd, 3 * PAGE + 1) == 'g');
    done("f", fd, p, 4);
}

static void growth_by_append_shows(void)
{
    int fd = make("f", 'f', PAGE), more = open("f", O_WRONLY | O_APPEND);
    char *p = map(fd, 2);
    EXPECT(load(p + PAGE) == -SIGBUS);
    EXPECT(write(more, "abc", 3) == 3 && load(p + PAGE + 2) == 'c');
    EXPECT(store(p + PAGE, 'A') == 0 && write(more, "d", 1) == 1);
    EXPECT(load(p + PAGE + 3) == 'd' && byte_at(fd, PAGE) == 'A');
    close(more);
    done("f", fd, p, 2);
}

static void shrinking_shows(void)
{
    int fd = make("f", 'f', 3 * PAGE);
    char *p = map(fd, 3);
    p[PAGE + 100] = 's';
    p[2 * PAGE] = 's';
    EXPECT(ftruncate(fd, PAGE + 50) == 0);
    EXPECT(load(p + 2 * PAGE) == -SIGBUS && load(p + PAGE + 49) == 'f');
    EXPECT(load(p + PAGE + 100) == 0);
    EXPECT(ftruncate(fd, 3 * PAGE) == 0);
    EXPECT(load(p + PAGE + 49) == 'f' && load(p + PAGE + 50) == 0 && load(p + 2 * PAGE) == 0);
    EXPECT(all(fd, PAGE + 50, 3 * PAGE, 0));
    done("f", fd, p, 3);
}

static void truncating_open_shows(void)
{
    int fd = make("f", 'f', 2 * PAGE);
    char *p = map(fd, 2);
    p[0] = 's';
    close(open("f", O_WRONLY | O_TRUNC));
    EXPECT(load(p) == -SIGBUS && size_of(fd) == 0);
    EXPECT(ftruncate(fd, PAGE) == 0 && load(p) == 0);
    done("f", fd, p, 2);
}

/* ---- holes ------------------------------------------------------------------------------------- */

static void holes_read_zeros_and_take_stores(void)
{
    int fd = make("f", 'f', PAGE);
    EXPECT(ftruncate(fd, 16 * PAGE) == 0);
    char *p = map(fd, 16);
    EXPECT(load(p + 5 * PAGE) == 0 && load(p + 15 * PAGE + PAGE - 1) == 0);
    EXPECT(store(p + 9 * PAGE, 'h') == 0 && byte_at(fd, 9 * PAGE) == 'h');
    EXPECT(msync(p, 16 * PAGE, MS_SYNC) == 0);
    EXPECT(lseek(fd, PAGE, SEEK_DATA) == 9 * PAGE && byte_at(fd, 9 * PAGE + 1) == 0);
    done("f", fd, p, 16);
}

/* What a mapping dirtied is data, written back or not: who copies a file asks where there is some. */
static void seeking_sees_stores(void)
{
    int fd = make("f", 0, 0);
    EXPECT(ftruncate(fd, 16 * PAGE) == 0);
    char *p = map(fd, 16);
    EXPECT(store(p + 9 * PAGE, 'h') == 0);
    EXPECT(lseek(fd, 0, SEEK_DATA) == 9 * PAGE && lseek(fd, 9 * PAGE, SEEK_HOLE) == 10 * PAGE);
    done("f", fd, p, 16);
}

static void punched_holes_show(void)
{
    int fd = make("f", 'f', 4 * PAGE), how = FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE;
    char *p = map(fd, 4);
    memset(p, 's', 4 * PAGE);
    EXPECT(fallocate(fd, how, 100, 2 * PAGE) == 0);
    EXPECT(load(p + 99) == 's' && load(p + 100) == 0 && load(p + PAGE) == 0);
    EXPECT(load(p + 2 * PAGE + 99) == 0 && load(p + 2 * PAGE + 100) == 's');
    EXPECT(store(p + PAGE + 1, 'n') == 0 && byte_at(fd, PAGE + 1) == 'n');
    EXPECT(all(fd, 100, PAGE, 0) && byte_at(fd, PAGE) == 0 && byte_at(fd, 4 * PAGE - 1) == 's');
    done("f", fd, p, 4);
}

static void zeroed_ranges_show(void)
{
    int fd = make("f", 'f', 3 * PAGE);
    char *p = map(fd, 3);
    memset(p, 's', 3 * PAGE);
    EXPECT(fallocate(fd, FALLOC_FL_ZERO_RANGE, 10, 2 * PAGE) == 0);
    EXPECT(load(p + 9) == 's' && load(p + 10) == 0 && load(p + PAGE) == 0);
    EXPECT(load(p + 2 * PAGE + 9) == 0 && load(p + 2 * PAGE + 10) == 's');
    done("f", fd, p, 3);
}

/* While a hole is made, another process stores to bytes in front of it, in it and behind it, and unmaps,
 * which has a FUSE kernel write the pages back: with what was in the hole before, if it goes wrong. */
#define HOLE_ROUNDS 100
#define HOLE_AT     100
#define HOLE_END    (3 * PAGE - 100)

static void store_and_unmap(int fd, int round, _Atomic int *begun, _Atomic int *ended)
{
    while (atomic_load(begun) != round)
        sched_yield();
    for (volatile int spin = 0; spin < round * 2000; spin++)
        ;
    char *p = map(fd, 3);
    p[0] = p[PAGE] = p[3 * PAGE - 1] = 's';
    munmap(p, 3 * PAGE);
    atomic_store(ended, round);
}

static void hole_is_zeros(int fd)
{
    static const char zeros[PAGE];
    char buf[3 * PAGE];
    EXPECT(pread(fd, buf, sizeof buf, 0) == sizeof buf);
    EXPECT(memcmp(buf + HOLE_AT, zeros, PAGE - HOLE_AT) == 0);
    EXPECT(memcmp(buf + PAGE + 1, zeros, PAGE - 1) == 0);
    EXPECT(memcmp(buf + 2 * PAGE, zeros, HOLE_END - 2 * PAGE) == 0);
    EXPECT(buf[0] == 's' && buf[1] == 'f' && buf[HOLE_END] == 'f' && buf[3 * PAGE - 1] == 's');
}

static void make_a_hole(int fd, int round, _Atomic int *begun, _Atomic int *ended)
{
    static char f[3 * PAGE];
    memset(f, 'f', sizeof f);
    EXPECT(pwrite(fd, f, sizeof f, 0) == sizeof f);
    atomic_store(begun, round);
    int how = round % 2 == 0 ? FALLOC_FL_PUNCH_HOLE : FALLOC_FL_ZERO_RANGE;
    EXPECT(fallocate(fd, how | FALLOC_FL_KEEP_SIZE, HOLE_AT, HOLE_END - HOLE_AT) == 0);
    while (atomic_load(ended) != round)
        sched_yield();
    forget(fd);
    hole_is_zeros(fd);
}

static void holes_stay_beside_unmapping(void)
{
    int fd = make("f", 'f', 3 * PAGE);
    _Atomic int *shared = mmap(NULL, PAGE, RW, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (shared == MAP_FAILED)
        die("mmap");
    pid_t child = fork();
    if (child < 0)
        die("fork");
    for (int round = 1; round <= HOLE_ROUNDS; round++)
        if (child == 0)
            store_and_unmap(fd, round, &shared[0], &shared[1]);
        else
            make_a_hole(fd, round, &shared[0], &shared[1]);
    if (child == 0)
        _exit(0);
    EXPECT(waitpid(child, NULL, 0) == child);
    done("f", fd, (char *)shared, 1);
}

static void far_offsets(void)
{
    off_t at = (off_t)5 << 30;
    int fd = make("f", 'f', 1);
    EXPECT(ftruncate(fd, at + PAGE) == 0);
    char *p = mmap(NULL, PAGE, RW, MAP_SHARED, fd, at);
    EXPECT(p != MAP_FAILED && store(p + 7, 'x') == 0 && byte_at(fd, at + 7) == 'x');
    EXPECT(msync(p, PAGE, MS_SYNC) == 0);
    done("f", fd, p, 1);
}

/* ---- address spaces ---------------------------------------------------------------------------- */

static void mprotect_is_obeyed(void)
{
    int fd = make("f", 'f', PAGE);
    char *p = map(fd, 1);
    p[0] = 'a';
    EXPECT(mprotect(p, PAGE, PROT_READ) == 0 && store(p, 'b') == SIGSEGV && load(p) == 'a');
    EXPECT(mprotect(p, PAGE, PROT_NONE) == 0 && load(p) == -SIGSEGV);
    EXPECT(mprotect(p, PAGE, RW) == 0 && store(p, 'c') == 0 && byte_at(fd, 0) == 'c');
    int ro = open("f", O_RDONLY);
    char *q = mmap(NULL, PAGE, PROT_READ, MAP_SHARED, ro, 0);
    EXPECT(q != MAP_FAILED && mprotect(q, PAGE, RW) != 0 && errno == EACCES);
    munmap(q, PAGE);
    close(ro);
    done("f", fd, p, 1);
}

static void moved_mappings_go_on(void)
{
    int fd = make("f", 'f', 4 * PAGE);
    char *p = map(fd, 2);
    p[0] = 'a';
    char *room = mmap(NULL, 8 * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    char *q = mremap(p, 2 * PAGE, 4 * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, room);
    EXPECT(q == room && q[0] == 'a' && q[3 * PAGE] == 'f');
    EXPECT(store(q + 1, 'b') == 0 && store(q + 3 * PAGE, 'c') == 0);
    EXPECT(byte_at(fd, 1) == 'b' && byte_at(fd, 3 * PAGE) == 'c' && load(p) == -SIGSEGV);
    EXPECT(mremap(q, 4 * PAGE, PAGE, 0) == q && load(q + PAGE) == -SIGSEGV);
    munmap(q, 8 * PAGE);
    close(fd);
    unlink("f");
}

static void children_share(void)
{
    int fd = make("f", 'f', 2 * PAGE), status;
    char *p = map(fd, 2), *q = mmap(NULL, PAGE, RW, MAP_PRIVATE, fd, 0);
    p[0] = 'p';
    pid_t child = fork();
    if (child == 0) {
        bool good = p[0] == 'p' && store(p + 1, 'c') == 0 && store(p + PAGE, 'c') == 0 &&
                    store(q, 'x') == 0;
        _exit(good ? 0 : 1);
    }
    EXPECT(waitpid(child, &status, 0) == child && status == 0);
    EXPECT(p[1] == 'c' && p[PAGE] == 'c' && byte_at(fd, 1) == 'c' && q[0] == 'p');
    munmap(q, PAGE);
    done("f", fd, p, 2);
}

static void populated_mappings(void)
{
    int fd = make("f", 'f', 8 * PAGE);
    char *p = mmap(NULL, 8 * PAGE, RW, MAP_SHARED | MAP_POPULATE, fd, 0);
    EXPECT(p != MAP_FAILED && load(p + 7 * PAGE) == 'f' && store(p + 7 * PAGE, 's') == 0);
    EXPECT(byte_at(fd, 7 * PAGE) == 's');
    done("f", fd, p, 8);
}

/* ---- files that go away ------------------------------------------------------------------------ */

static void mapping_outlives_its_descriptor(void)
{
    int fd = make("f", 'f', 2 * PAGE);
    char *p = map(fd, 2);
    close(fd);
    EXPECT(store(p + 1, 'a') == 0 && load(p + PAGE) == 'f' && store(p + PAGE, 'b') == 0);
    EXPECT(msync(p, 2 * PAGE, MS_SYNC) == 0 && store(p + 2, 'c') == 0);
    munmap(p, 2 * PAGE);
    fd = open("f", O_RDONLY);
    EXPECT(byte_at(fd, 1) == 'a' && byte_at(fd, PAGE) == 'b' && byte_at(fd, 2) == 'c');
    close(fd);
    unlink("f");
}

static void mapping_outlives_its_name(void)
{
    int fd = make("f", 'f', 2 * PAGE);
    char *p = map(fd, 2);
    EXPECT(unlink("f") == 0 && access("f", F_OK) != 0);
    EXPECT(store(p + PAGE, 's') == 0 && byte_at(fd, PAGE) == 's' && load(p) == 'f');
    EXPECT(ftruncate(fd, PAGE) == 0 && load(p + PAGE) == -SIGBUS);
    close(fd);
    EXPECT(store(p, 't') == 0 && load(p) == 't');
    munmap(p, 2 * PAGE);
}

static void renamed_over_it_stays_itself(void)
{
    int fd = make("f", 'f', PAGE);
    char *p = map(fd, 1);
    close(make("g", 'g', PAGE));
    EXPECT(rename("g", "f") == 0);
    EXPECT(load(p) == 'f' && store(p, 's') == 0 && byte_at(fd, 0) == 's');
    int now = open("f", O_RDONLY);
    EXPECT(all(now, 0, 10, 'g'));
    close(now);
    done("f", fd, p, 1);
}

/* ---- system calls on mapped memory ------------------------------------------------------------- */

/* The page that is written is the one that the write's own data is in, or is not in memory yet. */
static void writing_from_its_own_mapping(void)
{
    int fd = make("f", 'f', 4 * PAGE);
    char *p = map(fd, 4);
    p[0] = 'a';
    EXPECT(pwrite(fd, p, 100, 50) == 100 && p[50] == 'a' && p[51] == 'f');
    EXPECT(pwrite(fd, p, PAGE, 0) == PAGE && p[0] == 'a');
    p[2 * PAGE] = 'b';
    forget(fd);
    EXPECT(pwrite(fd, p + 2 * PAGE, PAGE, 3 * PAGE) == PAGE && byte_at(fd, 3 * PAGE) == 'b');
    forget(fd);
    EXPECT(pwrite(fd, p + 2 * PAGE, PAGE, 2 * PAGE + 10) == PAGE);
    EXPECT(p[2 * PAGE] == 'b' && p[2 * PAGE + 10] == 'b' && p[2 * PAGE + 11] == 'f');
    EXPECT(pwrite(fd, p + 3 * PAGE, PAGE, 4 * PAGE) == PAGE && size_of(fd) == 5 * PAGE);
    done("f", fd, p, 4);
}

static void reading_into_its_own_mapping(void)
{
    int fd = make("f", 'f', 4 * PAGE);
    char *p = map(fd, 4);
    p[0] = 'a';
    EXPECT(pread(fd, p + PAGE, PAGE, 0) == PAGE && byte_at(fd, PAGE) == 'a');
    forget(fd);
    EXPECT(pread(fd, p + 2 * PAGE, PAGE, PAGE) == PAGE && byte_at(fd, 2 * PAGE) == 'a');
    forget(fd);
    EXPECT(pread(fd, p + 3 * PAGE, PAGE, 3 * PAGE) == PAGE && byte_at(fd, 3 * PAGE) == 'f');
    done("f", fd, p, 4);
}

static void direct_io_beside_a_mapping(void)
{
    close(make("f", 'f', 4 * PAGE));
    int fd = open("f", O_RDWR | O_DIRECT);
    char *buf = aligned_alloc(PAGE, PAGE);
    EXPECT(fd >= 0);
    char *p = map(fd, 4);
    p[0] = 's';
    EXPECT(pread(fd, buf, PAGE, 0) == PAGE && buf[0] == 's' && buf[1] == 'f');
    memset(buf, 'd', PAGE);
    p[PAGE] = 's';
    EXPECT(pwrite(fd, buf, PAGE, PAGE) == PAGE && load(p + PAGE) == 'd');
    EXPECT(store(p + PAGE + 1, 't') == 0 && pread(fd, buf, PAGE, PAGE) == PAGE && buf[1] == 't');
    EXPECT(pread(fd, p + 2 * PAGE, PAGE, PAGE) == PAGE && p[2 * PAGE + 1] == 't');
    EXPECT(pwrite(fd, p + 2 * PAGE, PAGE, 3 * PAGE) == PAGE && load(p + 3 * PAGE + 1) == 't');
    free(buf);
    done("f", fd, p, 4);
}

static void copies_see_stores(void)
{
    int fd = make("f", 'f', 2 * PAGE), to = make("g", 'g', 1);
    char *p = map(fd, 2), *q = map(to, 2);
    off_t from = 0, at = 0;
    p[PAGE] = 's';
    EXPECT(copy_file_range(fd, &from, to, &at, 2 * PAGE, 0) == 2 * PAGE);
    EXPECT(byte_at(to, PAGE) == 's' && load(q + PAGE) == 's' && load(q) == 'f');
    p[0] = 't';
    from = 0;
    lseek(to, 0, SEEK_SET);
    EXPECT(sendfile(to, fd, &from, PAGE) == PAGE && load(q) == 't');
    munmap(q, 2 * PAGE);
    close(to);
    unlink("g");
    done("f", fd, p, 2);
}

/* ---- running programs -------------------------------------------------------------------------- */

static bool copy_program(const char *from, const char *to)
{
    char buf[PAGE];
    int in = open(from, O_RDONLY), out = open(to, O_WRONLY | O_CREAT | O_TRUNC, 0755);
    ssize_t n;
    while ((n = read(in, buf, sizeof buf)) > 0)
        if (write(out, buf, (size_t)n) != n)
            break;
    close(in);
    return close(out) == 0 && n == 0;
}

static void programs_run(void)
{
    int pipes[2], status;
    EXPECT(copy_program("/bin/cat", "run"));
    if (pipe2(pipes, O_CLOEXEC) != 0)
        die("pipe2");
    pid_t child = fork();
    if (child == 0) {
        dup2(pipes[0], 0);
        execl("./run", "run", (char *)NULL);
        _exit(126);
    }
    close(pipes[0]);
    /* It runs when its pipe end is the only one left: then its file is mapped. */
    char link[64], exe[300] = "";
    snprintf(link, sizeof link, "/proc/%d/exe", (int)child);
    for (int i = 0; i < 5000 && strstr(exe, "/run") == NULL; i++) {
        ssize_t n = readlink(link, exe, sizeof exe - 1);
        exe[n > 0 ? n : 0] = 0;
        usleep(1000);
    }
    EXPECT(strstr(exe, "/run") != NULL);
    EXPECT(open("run", O_WRONLY) == -1 && errno == ETXTBSY);
    EXPECT(truncate("run", 0) == -1 && errno == ETXTBSY);
    close(pipes[1]);
    EXPECT(waitpid(child, &status, 0) == child && status == 0);
    int fd = open("run", O_WRONLY);
    EXPECT(fd >= 0);
    EXPECT(execl("./run", "run", (char *)NULL) == -1 && errno == ETXTBSY);
    close(fd);
    unlink("run");
}

/* ---- times ------------------------------------------------------------------------------------- */

static bool later(struct timespec a, struct timespec b) /* is b after a? */
{
    return b.tv_sec > a.tv_sec || (b.tv_sec == a.tv_sec && b.tv_nsec > a.tv_nsec);
}
static void tick(void) /* let the kernel's coarse clock move on */
{
    nanosleep(&(struct timespec){ .tv_nsec = 12000000 }, NULL);
}

static void stores_change_times(void)
{
    struct stat before = { 0 }, after = { 0 };
    int fd = make("f", 'f', 2 * PAGE);
    char *p = map(fd, 2);
    EXPECT(load(p) == 'f' && fsync(fd) == 0);
    for (int i = 0; i < 3; i++) {
        fstat(fd, &before);
        tick();
        p[i] = 's';
        EXPECT(msync(p, PAGE, MS_SYNC) == 0 && fstat(fd, &after) == 0);
        EXPECT(later(before.st_mtim, after.st_mtim));
        EXPECT(later(before.st_ctim, after.st_ctim));
    }
    before = after;
    tick();
    EXPECT(load(p + PAGE) == 'f' && fstat(fd, &after) == 0);
    EXPECT(!later(before.st_mtim, after.st_mtim)); /* loads change nothing */
    done("f", fd, p, 2);
}

static void times_are_kept(void)
{
    struct stat before = { 0 }, after = { 0 };
    int fd = make("f", 'f', PAGE);
    char *p = map(fd, 1);
    p[0] = 's';
    EXPECT(msync(p, PAGE, MS_SYNC) == 0 && fstat(fd, &before) == 0);
    munmap(p, PAGE);
    close(fd);
    tick();
    fd = open("f", O_RDONLY);
    forget(fd);
    EXPECT(fstat(fd, &after) == 0 && !later(before.st_mtim, after.st_mtim));
    EXPECT(!later(after.st_mtim, before.st_mtim));
    close(fd);
    unlink("f");
}

static void msync_refuses_nonsense(void)
{
    int fd = make("f", 'f', PAGE);
    char *p = map(fd, 1);
    EXPECT(msync(p, PAGE, MS_SYNC | MS_ASYNC) == -1 && errno == EINVAL);
    EXPECT(msync(p + 1, PAGE, MS_SYNC) == -1 && errno == EINVAL);
    EXPECT(msync(p, PAGE, MS_ASYNC) == 0 && msync(p, PAGE, MS_SYNC | MS_INVALIDATE) == 0);
    munmap(p, PAGE);
    EXPECT(msync(p, PAGE, MS_SYNC) == -1 && errno == ENOMEM);
    close(fd);
    unlink("f");
}

#define PROPERTY(f) \
    {               \
#f, f       \
    }
static const struct property {
    const char *name;
    void (*holds)(void);
} properties[] = {
    PROPERTY(stores_are_read),
    PROPERTY(writes_are_loaded),
    PROPERTY(mappings_share),
    PROPERTY(private_stores_stay_private),
    PROPERTY(private_of_readonly_file),
    PROPERTY(evicted_pages_keep_stores),
    PROPERTY(beyond_the_end_is_sigbus),
    PROPERTY(tail_stores_do_not_reach_the_file),
    PROPERTY(tail_is_zeros_after_ftruncate),
    PROPERTY(tail_is_zeros_after_a_write_in_the_page),
    PROPERTY(tail_is_zeros_after_a_write_behind_it),
    PROPERTY(tail_is_zeros_after_fallocate),
    PROPERTY(tail_is_zeros_after_msync_and_growth),
    PROPERTY(growth_shows),
    PROPERTY(growth_by_append_shows),
    PROPERTY(shrinking_shows),
    PROPERTY(truncating_open_shows),
    PROPERTY(holes_read_zeros_and_take_stores),
    PROPERTY(seeking_sees_stores),
    PROPERTY(punched_holes_show),
    PROPERTY(zeroed_ranges_show),
    PROPERTY(holes_stay_beside_unmapping),
    PROPERTY(far_offsets),
    PROPERTY(mprotect_is_obeyed),
    PROPERTY(moved_mappings_go_on),
    PROPERTY(children_share),
    PROPERTY(populated_mappings),
    PROPERTY(mapping_outlives_its_descriptor),
    PROPERTY(mapping_outlives_its_name),
    PROPERTY(renamed_over_it_stays_itself),
    PROPERTY(writing_from_its_own_mapping),
    PROPERTY(reading_into_its_own_mapping),
    PROPERTY(direct_io_beside_a_mapping),
    PROPERTY(copies_see_stores),
    PROPERTY(programs_run),
    PROPERTY(stores_change_times),
    PROPERTY(times_are_kept),
    PROPERTY(msync_refuses_nonsense),
};

static int say(const char *name)
{
    if (why[0] == 0)
        printf("ok   %s\n", name);
    else
        printf("FAIL %s: %s\n", name, why);
    fflush(stdout);
    int bad = why[0] != 0;
    why[0] = 0;
    return bad;
}

static int check_all(void)
{
    int bad = 0;
    for (size_t i = 0; i < sizeof properties / sizeof properties[0]; i++) {
        properties[i].holds();
        bad |= say(properties[i].name);
    }
    return bad;
}

/* ---- races -------------------------------------------------------------------------------------
 *
 * STORERS processes store ever greater numbers, each into its own eight bytes of every page, and look
 * with pread at once. Beside them one process changes the file. A store that raised no signal is
 * there; it may be gone again if that process took bytes away meanwhile, but then zeros or nothing
 * are in its place: an older number means that the store was lost. */

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

/* ---- more pages than fit ----------------------------------------------------------------------- */

static void store_every_third(char *p, size_t pages, size_t from, uint64_t n)
{
    for (size_t i = from; i < pages; i += 3)
        for (size_t at = 0; at < PAGE; at += 1024)
            *(uint64_t *)(p + i * PAGE + at) = n + i;
}

static int big(size_t mib)
{
    size_t pages = mib * 256;
    int fd = make("big", 0, 0), status;
    EXPECT(ftruncate(fd, (off_t)(pages * PAGE)) == 0);
    for (uint64_t round = 1; round <= 3; round++) {
        for (size_t k = 0; k < 3; k++)
            if (fork() == 0) {
                store_every_third(map(fd, (int)pages), pages, k, round << 32);
                _exit(0);
            }
        while (wait(&status) > 0)
            EXPECT(status == 0);
        if (round == 2)
            forget(fd);
        char *p = map(fd, (int)pages);
        for (size_t i = 0; i < pages; i++)
            for (size_t at = 0; at < PAGE; at += 1024)
                EXPECT(*(uint64_t *)(p + i * PAGE + at) == (round << 32) + i);
        munmap(p, pages * PAGE);
    }
    close(fd);
    unlink("big");
    return say("more_pages_than_fit");
}

/* ---- durability -------------------------------------------------------------------------------- */

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

/* ---- read-only mounts -------------------------------------------------------------------------- */

static int readonly(const char *name)
{
    int fd = open(name, O_RDONLY);
    EXPECT(open(name, O_RDWR) == -1 && errno == EROFS);
    char *p = mmap(NULL, PAGE, PROT_READ, MAP_SHARED, fd, 0);
    char *q = mmap(NULL, PAGE, RW, MAP_PRIVATE, fd, 0);
    EXPECT(p != MAP_FAILED && load(p) == 0 && store(p, 'x') == SIGSEGV);
    EXPECT(q != MAP_FAILED && store(q, 'x') == 0 && load(p) == 0 && byte_at(fd, 0) == 0);
    EXPECT(mmap(NULL, PAGE, RW, MAP_SHARED, fd, 0) == MAP_FAILED && errno == EACCES);
    EXPECT(mprotect(p, PAGE, RW) == -1 && errno == EACCES);
    EXPECT(msync(p, PAGE, MS_SYNC) == 0 && fsync(fd) == 0);
    return say("readonly");
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
    if (strcmp(what, "readonly") == 0)
        return readonly(argv[2]);
    if (argc >= 3 && chdir(argv[2]) != 0)
        die(argv[2]);
    if (strcmp(what, "all") == 0)
        return check_all();
    if (strcmp(what, "replace") == 0 && argc == 5)
        return replace(argv[3], strtoull(argv[4], NULL, 10));
    if (strcmp(what, "races") == 0 && argc >= 4)
        return run_races(atof(argv[3]), argc > 4 ? argv[4] : "");
    if (strcmp(what, "big") == 0 && argc == 4)
        return big(strtoull(argv[3], NULL, 10));
    fprintf(stderr, "usage: see the head of tests/mmap_ops.c\n");
    return 2;
}
