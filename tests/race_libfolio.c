/* race_libfolio.c: libfolio beside a daemon that is not one (support_fake_daemon.h): what is attached
 * where, hang-up, fork, descriptors, threads. Each scenario is a process with a daemon of its own. */
#include "tests/support_fake_daemon.h"
#include "cache/attach_proto.h"
#include "cache/folio.h"

#include <errno.h>
#include <fcntl.h>
#include <mntent.h>
#include <pthread.h>
#include <sched.h>
#include <setjmp.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define PAGE  ((size_t)4096)
#define PAGES 64u
#define RW    (PROT_READ | PROT_WRITE)

#define SYS_MSEAL 462 /* Linux 6.10 */

#define CHECK(truth)                                                                      \
    do {                                                                                  \
        if (!(truth)) {                                                                   \
            fprintf(stderr, "%s:%d: %s (errno %d)\n", __FILE__, __LINE__, #truth, errno); \
            _exit(1);                                                                     \
        }                                                                                 \
    } while (0)

static struct fake_counts *counts;
static pid_t daemon_pid;
static dev_t dev;
static char directory[] = "/tmp/race_libfolio-XXXXXX";

/* ---- helpers ------------------------------------------------------------------------------------------ */

/* Byte 0 of page i of a new file is i, and byte 1 is 'f'. */
static int new_file(const char *name, unsigned pages)
{
    char path[64], bytes[4096] = { 0 };

    snprintf(path, sizeof(path), "%s/%s", directory, name);
    int fd = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    CHECK(fd >= 0);
    for (unsigned i = 0; i < pages; i++) {
        bytes[0] = (char)i;
        bytes[1] = 'f';
        CHECK(write(fd, bytes, sizeof(bytes)) == (ssize_t)sizeof(bytes));
    }
    return fd;
}

static _Thread_local sigjmp_buf back;

static void jump(int signal)
{
    siglongjmp(back, signal);
}

/* The signal that touching it raises, or 0. */
static int load(const volatile char *at)
{
    int signal = sigsetjmp(back, 1);

    if (!signal)
        (void)*at;
    return signal;
}

static int store(volatile char *at, char value)
{
    int signal = sigsetjmp(back, 1);

    if (!signal)
        *at = value;
    return signal;
}

static void wait_until(const _Atomic int *value)
{
    struct timespec moment = { .tv_nsec = 1000000 };

    while (!atomic_load(value))
        nanosleep(&moment, NULL);
}

static void wait_for_ranges(unsigned wanted)
{
    struct timespec moment = { .tv_nsec = 1000000 };

    while (atomic_load(&counts->ranges) != wanted)
        nanosleep(&moment, NULL);
}

static char *map(int fd, unsigned pages, unsigned first)
{
    char *at = folio_mmap(NULL, pages * PAGE, RW, MAP_SHARED, fd, (off_t)(first * PAGE));

    CHECK(at != MAP_FAILED);
    return at;
}

/* ---- scenarios ---------------------------------------------------------------------------------------- */

static void faults(void)
{
    int fd = new_file("a", PAGES);
    char *one = map(fd, PAGES, 0), *two = map(fd, 4, 8);

    for (unsigned i = 0; i < PAGES; i++)
        CHECK(one[i * PAGE] == (char)i && one[i * PAGE + 1] == 'f');
    CHECK(counts->missing == PAGES && counts->minor == 0 && counts->mkwrite == 0);
    CHECK(two[0] == 8);
    CHECK(counts->minor == 1);
    two[2] = 'x';
    two[3] = 'y';
    CHECK(counts->mkwrite == 1 && one[8 * PAGE + 2] == 'x' && one[8 * PAGE + 3] == 'y');
    CHECK(folio_attached(two, 1) && !folio_attached(counts, 1));
    CHECK(counts->hello == 1 && counts->map == 2);
    CHECK(fcntl(fd, F_GETFD) >= 0 && close(fd) == 0);
    CHECK(folio_munmap(one, PAGES * PAGE) == 0 && folio_munmap(two, 4 * PAGE) == 0);
    CHECK(counts->ranges == 0 && load(one) == SIGSEGV);
}

/* What mmap(2) says, folio_mmap says. */
static void refusals(void)
{
    int fd = new_file("a", 4), plain = open("/proc/self/exe", O_RDONLY | O_CLOEXEC);
    int reader = open("/proc/self/fd/0", O_RDONLY), append = -1;
    char path[64];
    struct {
        int fd, prot, flags;
        size_t length;
        off_t offset;
    } cases[] = {
        { 0, RW, MAP_SHARED, 0, 0 },
        { 0, RW, MAP_SHARED, PAGE, 100 },
        { 0, RW, 0, PAGE, 0 },
        { 0, RW, MAP_SHARED, SIZE_MAX - 100, 0 },
        { 0, RW, MAP_SHARED, (size_t)1 << 60, 0 },
        { 0, RW, MAP_SHARED, PAGE, -(off_t)PAGE },
        { 0, RW, MAP_SHARED_VALIDATE | MAP_SYNC, PAGE, 0 },
        { 1, RW, MAP_SHARED, PAGE, 0 },
        { 1, PROT_READ, MAP_SHARED, PAGE, 0 },
        { 2, RW, MAP_SHARED, PAGE, 0 },
        { 2, PROT_READ, MAP_SHARED, PAGE, 0 },
        { 3, PROT_READ, MAP_SHARED, PAGE, 0 },
        { 4, PROT_READ, MAP_SHARED, PAGE, 0 },
        { 5, RW, MAP_SHARED, PAGE, 0 },
    };

    if (reader >= 0)
        close(reader);
    snprintf(path, sizeof(path), "%s/a", directory);
    reader = open(path, O_RDONLY | O_CLOEXEC);
    append = open(path, O_WRONLY | O_CLOEXEC);
    int fds[] = { fd,
                  reader,
                  append,
                  999,
                  open(directory, O_RDONLY | O_CLOEXEC),
                  open(path, O_RDWR | O_APPEND | O_CLOEXEC) };
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        int with = fds[cases[i].fd];
        void *theirs =
            mmap(NULL, cases[i].length, cases[i].prot, cases[i].flags, with, cases[i].offset);
        int error = theirs == MAP_FAILED ? errno : 0;
        void *ours =
            folio_mmap(NULL, cases[i].length, cases[i].prot, cases[i].flags, with, cases[i].offset);
        int our_error = ours == MAP_FAILED ? errno : 0;
        if (error != our_error)
            fprintf(stderr, "case %zu: mmap %d, folio_mmap %d\n", i, error, our_error);
        CHECK(error == our_error);
        if (!error)
            CHECK(munmap(theirs, cases[i].length) == 0 && folio_munmap(ours, cases[i].length) == 0);
    }
    CHECK(folio_mmap(NULL, PAGE, PROT_READ, MAP_SHARED, plain, 0) == MAP_FAILED);
    CHECK(errno == EOPNOTSUPP);
    char *copy = folio_mmap(NULL, PAGE, RW, MAP_PRIVATE, fd, 0);
    CHECK(copy != MAP_FAILED && !folio_attached(copy, PAGE) && folio_munmap(copy, PAGE) == 0);

    char *at = map(fd, 1, 0);
    CHECK(folio_mmap(at, PAGE, RW, MAP_SHARED | MAP_FIXED_NOREPLACE, fd, 0) == MAP_FAILED);
    CHECK(errno == EEXIST && at[1] == 'f' && counts->ranges == 1);
    CHECK(folio_mmap(at + 1, PAGE, RW, MAP_SHARED | MAP_FIXED, fd, 0) == MAP_FAILED &&
          errno == EINVAL);
    CHECK(counts->drop > 0);

    struct rlimit little = { PAGE, PAGE };
    CHECK(setrlimit(RLIMIT_MEMLOCK, &little) == 0);
    if (geteuid() != 0) { /* root may lock what it likes */
        CHECK(folio_mmap(NULL, 2 * PAGE, RW, MAP_SHARED | MAP_LOCKED, fd, 0) == MAP_FAILED &&
              errno == EAGAIN);
    }
    CHECK(folio_munmap(at, PAGE) == 0 && counts->ranges == 0);
}

static void read_only(void)
{
    int fd = new_file("a", 4);
    char path[64];

    snprintf(path, sizeof(path), "%s/a", directory);
    int reader = open(path, O_RDONLY | O_CLOEXEC);
    char *writer = map(fd, 4, 0);
    char *at = folio_mmap(NULL, 4 * PAGE, PROT_READ, MAP_SHARED, reader, 0);
    CHECK(at != MAP_FAILED && at[PAGE + 1] == 'f');
    writer[PAGE + 5] = 'w';
    CHECK(at[PAGE + 5] == 'w' && store(at, 1) == SIGSEGV);
    CHECK(folio_mprotect(at, PAGE, RW) == -1 && errno == EACCES);
    CHECK(folio_mprotect(at, PAGE, PROT_NONE) == 0 && load(at) == SIGSEGV);
    CHECK(folio_mprotect(writer, PAGE, PROT_READ) == 0 && store(writer, 1) == SIGSEGV);
    CHECK(folio_mprotect(writer, PAGE, RW) == 0 && store(writer, 1) == 0);
}

static void pieces(void)
{
    int fd = new_file("a", PAGES);
    char *at = map(fd, PAGES, 0);

    CHECK(folio_munmap(at + 8 * PAGE, 8 * PAGE) == 0); /* [0,8) [16,64) */
    CHECK(counts->ranges == 2 && load(at + 8 * PAGE) == SIGSEGV);
    CHECK(at[7 * PAGE] == 7 && at[16 * PAGE] == 16 && at[63 * PAGE] == 63);
    CHECK(folio_msync(at, 20 * PAGE, MS_SYNC) == -1 && errno == ENOMEM);
    CHECK(folio_msync(at + 16 * PAGE, 20 * PAGE, MS_SYNC) == 0);
    CHECK(folio_msync(at + 16 * PAGE, PAGE, MS_ASYNC) == 0 && counts->write == 1);
    CHECK(folio_msync(at, PAGE, MS_ASYNC | MS_SYNC) == -1 && errno == EINVAL);

    /* Another part of the file over the middle of one, and the kernel's own mapping over a part. */
    CHECK(folio_mmap(at + 20 * PAGE, 2 * PAGE, RW, MAP_SHARED | MAP_FIXED, fd, 0) ==
          at + 20 * PAGE);
    CHECK(at[20 * PAGE] == 0 && at[19 * PAGE] == 19 && at[22 * PAGE] == 22);
    CHECK(counts->ranges == 4 && folio_attached(at + 20 * PAGE, 1));

    unsigned char vec[PAGES];
    CHECK(folio_mincore(at, PAGES * PAGE, vec) == -1 && errno == ENOMEM);
    CHECK(folio_mincore(at + 16 * PAGE, 8 * PAGE, vec) == 0);
    CHECK(vec[0] && !vec[1] && !vec[2] && vec[3] && vec[4] && !vec[5] && vec[6] && !vec[7]);

    CHECK(folio_madvise(at + 16 * PAGE, 4 * PAGE, MADV_RANDOM) == 0 && counts->advise == 1);
    CHECK(counts->last_advice == MADV_RANDOM);
    unsigned minor = counts->minor;
    CHECK(folio_madvise(at + 16 * PAGE, PAGE, MADV_DONTNEED) == 0 && at[16 * PAGE] == 16);
    CHECK(counts->minor == minor + 1);
    CHECK(folio_madvise(at, PAGE, MADV_HUGEPAGE) == -1 && errno == EINVAL);
    CHECK(folio_madvise(at + 30 * PAGE, PAGE, MADV_REMOVE) == 0);
    char byte = 1;
    CHECK(pread(fd, &byte, 1, (off_t)(30 * PAGE)) == 1 && byte == 0);
    CHECK(folio_munmap(at, PAGES * PAGE) == 0 && counts->ranges == 0);
}

static void moved(void)
{
    int fd = new_file("a", PAGES);
    char *room = mmap(NULL, 2 * PAGES * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(room != MAP_FAILED);
    CHECK(folio_mmap(room, 8 * PAGE, RW, MAP_SHARED | MAP_FIXED, fd, 0) == room);
    CHECK(close(fd) == 0 && store(room, 42) == 0);

    CHECK(folio_mremap(room, 8 * PAGE, 16 * PAGE, 0, NULL) == MAP_FAILED && errno == ENOMEM);
    CHECK(munmap(room + 8 * PAGE, 8 * PAGE) == 0);
    CHECK(folio_mremap(room, 8 * PAGE, 16 * PAGE, 0, NULL) == room);
    CHECK(room[0] == 42 && room[15 * PAGE] == 15);
    CHECK(folio_mremap(room, 16 * PAGE, 4 * PAGE, 0, NULL) == room);
    CHECK(load(room + 4 * PAGE) == SIGSEGV && room[3 * PAGE] == 3);

    char *wall = mmap(room + 4 * PAGE, PAGE, PROT_NONE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
    CHECK(wall == room + 4 * PAGE);
    CHECK(mprotect(room, 4 * PAGE, PROT_READ) == 0); /* the library learns it by itself */
    char *far = folio_mremap(room, 4 * PAGE, 32 * PAGE, MREMAP_MAYMOVE, NULL);
    CHECK(far != MAP_FAILED && far != room && far[0] == 42 && far[31 * PAGE] == 31);
    CHECK(load(room) == SIGSEGV && store(far, 1) == SIGSEGV && counts->ranges == 1);
    char *fixed = room + PAGES * PAGE;
    CHECK(folio_mremap(far, 32 * PAGE, 32 * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, fixed) == fixed);
    CHECK(fixed[0] == 42 && load(far) == SIGSEGV && counts->ranges == 1);
    CHECK(folio_mremap(fixed, 64 * PAGE, PAGE, 0, NULL) == MAP_FAILED && errno == EFAULT);
}

static void *load_in_thread(void *at)
{
    return (void *)(intptr_t)load(at);
}

static void hang_up(void)
{
    int fd = new_file("a", PAGES);
    char *at = map(fd, PAGES, 0), *other = map(fd, PAGES, 0);
    pthread_t waiter;
    void *signal;

    CHECK(store(at, 1) == 0 && load(at + PAGE) == 0);
    CHECK(folio_munmap(other + 4 * PAGE, PAGE) == 0);
    CHECK(mmap(other + 4 * PAGE, PAGE, RW, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) ==
          other + 4 * PAGE);
    other[4 * PAGE] = 'm';
    atomic_store(&counts->deaf, 1);
    CHECK(pthread_create(&waiter, NULL, load_in_thread, at + 9 * PAGE) == 0);
    wait_until(&counts->unheard);
    CHECK(kill(daemon_pid, SIGKILL) == 0);
    CHECK(pthread_join(waiter, &signal) == 0 && (intptr_t)signal == SIGBUS);
    for (unsigned i = 0; i < PAGES; i++) {
        CHECK(load(at + i * PAGE) == SIGBUS && store(at + i * PAGE, 1) == SIGBUS);
        CHECK(load(other + i * PAGE) == (i == 4 ? 0 : SIGBUS));
    }
    CHECK(other[4 * PAGE] == 'm');
    CHECK(folio_madvise(at, PAGE, MADV_WILLNEED) == -1 && errno == EIO);
    CHECK(folio_munmap(at, PAGES * PAGE) == 0 && load(at) == SIGSEGV);
}

/* Likewise where nothing can be mapped over it: what is sealed stays, and who is above his limit gets no more. */
static void hang_up_in_need(void)
{
    int fd = new_file("a", PAGES);
    char *at[] = { map(fd, PAGES, 0), map(fd, PAGES, 0) };
    struct rlimit none = { PAGE, PAGE };
    struct timespec moment = { .tv_nsec = 1000000 };

    for (unsigned i = 0; i < 2; i++)
        CHECK(store(at[i], 1) == 0 && load(at[i] + PAGE) == 0 && mlock(at[i], 4 * PAGE) == 0);
    CHECK(syscall(SYS_MSEAL, at[0], PAGES * PAGE, 0) == 0 || errno == ENOSYS);
#ifdef __SANITIZE_ADDRESS__ /* it needs more all the time */
    none = (struct rlimit){ RLIM_INFINITY, RLIM_INFINITY };
#endif
    CHECK(setrlimit(RLIMIT_AS, &none) == 0 && kill(daemon_pid, SIGKILL) == 0);
    for (unsigned i = 0; i < 5000 && load(at[1]) == 0; i++)
        nanosleep(&moment, NULL);
    for (unsigned i = 0; i < 2; i++) {
        CHECK(folio_madvise(at[i], PAGES * PAGE, MADV_DONTNEED) == -1 && errno == EIO);
        for (unsigned j = 0; j < PAGES; j++) {
            CHECK(load(at[i] + j * PAGE) == SIGBUS && store(at[i] + j * PAGE, 1) == SIGBUS);
        }
    }
    CHECK(folio_munmap(at[1], PAGES * PAGE) == 0 && load(at[1]) == SIGSEGV);
}

/* One that accepts, and hangs up. */
static pid_t busy_daemon_start(void)
{
    struct sockaddr_un address = { .sun_family = AF_UNIX };
    int listener = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);

    snprintf(address.sun_path, sizeof(address.sun_path), "/tmp/foliofs-%u/%u:%u%s",
             (unsigned)geteuid(), major(dev), minor(dev), ATTACH_SOCKET_SUFFIX);
    unlink(address.sun_path);
    CHECK(listener >= 0 && bind(listener, (struct sockaddr *)&address, sizeof(address)) == 0 &&
          listen(listener, 1) == 0);
    pid_t child = fork();
    if (child == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        for (;;)
            close(accept(listener, NULL, NULL));
    }
    close(listener);
    return child;
}

static void returned(void)
{
    int fd = new_file("a", PAGES);
    char *old = map(fd, PAGES, 0);

    CHECK(kill(daemon_pid, SIGKILL) == 0);
    while (load(old) != SIGBUS)
        sched_yield();
    /* Nobody accepts any more, once the socket has been closed, too: its file is there, its daemon is not. */
    do
        CHECK(folio_mmap(NULL, PAGE, RW, MAP_SHARED, fd, 0) == MAP_FAILED);
    while (errno == EAGAIN && sched_yield() == 0);
    CHECK(errno == EOPNOTSUPP);
    pid_t busy = busy_daemon_start();
    CHECK(busy > 0);
    CHECK(folio_mmap(NULL, PAGE, RW, MAP_SHARED, fd, 0) == MAP_FAILED && errno == EAGAIN);
    fake_daemon_kill(busy, dev);
    pid_t second = fake_daemon_start(dev, counts);
    CHECK(second > 0);
    char *again = map(fd, PAGES, 0);
    CHECK(again[PAGE] == 1 && load(old) == SIGBUS);
    fake_daemon_kill(second, dev);
}

/* A child that ends well: 0. */
static int status_of(pid_t child)
{
    int status;

    CHECK(child > 0 && waitpid(child, &status, 0) == child);
    return WIFEXITED(status) ? WEXITSTATUS(status) : 256 + WTERMSIG(status);
}

static void forked(void)
{
    int fd = new_file("a", PAGES);
    char path[64];
    snprintf(path, sizeof(path), "%s/a", directory);
    int reader = open(path, O_RDONLY | O_CLOEXEC);
    char *at = map(fd, PAGES, 0);
    char *view = folio_mmap(NULL, PAGES * PAGE, PROT_READ, MAP_SHARED, reader, 0);
    CHECK(view != MAP_FAILED && close(fd) == 0 && close(reader) == 0);
    CHECK(folio_munmap(at + 4 * PAGE, PAGE) == 0);
    CHECK(mprotect(at + 8 * PAGE, PAGE, PROT_READ) == 0);
    CHECK(folio_madvise(at + 12 * PAGE, PAGE, MADV_DONTFORK) == 0);
    CHECK(store(at, 'p') == 0);

    pid_t child = fork();
    if (child == 0) {
        CHECK(at[0] == 'p' && at[PAGE] == 1 && view[2 * PAGE] == 2);
        unsigned before = counts->mkwrite;
        CHECK(store(at + PAGE, 'c') == 0 && counts->mkwrite == before + 1);
        CHECK(load(at + 4 * PAGE) == SIGSEGV && load(at + 12 * PAGE) == SIGSEGV);
        CHECK(load(at + 8 * PAGE) == 0 && store(at + 8 * PAGE, 1) == SIGSEGV);
        CHECK(store(view, 1) == SIGSEGV);
        pid_t grandchild = fork();
        if (grandchild == 0) {
            CHECK(at[PAGE] == 'c' && store(at + 2 * PAGE, 'g') == 0 && at[2 * PAGE] == 'g');
            CHECK(folio_munmap(at, PAGES * PAGE) == 0);
            CHECK(folio_munmap(view, PAGES * PAGE) == 0);
            _exit(0);
        }
        CHECK(status_of(grandchild) == 0 && at[2 * PAGE] == 'g');
        _exit(0);
    }
    CHECK(status_of(child) == 0);
    CHECK(at[PAGE] == 'c' && at[2 * PAGE] == 'g');
    CHECK(counts->hello == 3);
    wait_for_ranges(3);

    /* Behind the handlers' back: absent, and the library knows. */
    child = (pid_t)syscall(SYS_clone, SIGCHLD, NULL, NULL, NULL, NULL);
    if (child == 0) {
        CHECK(load(at) == SIGSEGV && load(view) == SIGSEGV && !folio_attached(at, PAGE));
        CHECK(folio_munmap(at, PAGES * PAGE) == 0);
        _exit(0);
    }
    CHECK(status_of(child) == 0 && at[0] == 'p');

    /* A daemon that dies while there is a child is gone for both. */
    _Atomic int *ready = mmap(NULL, PAGE, RW, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    CHECK(ready != MAP_FAILED);
    child = fork();
    if (child == 0) {
        CHECK(load(at + 20 * PAGE) == 0);
        atomic_store(ready, 1);
        while (load(at + 20 * PAGE) != SIGBUS)
            sched_yield();
        _exit(load(view + 3 * PAGE) == SIGBUS ? 0 : 1);
    }
    wait_until(ready);
    CHECK(kill(daemon_pid, SIGKILL) == 0 && status_of(child) == 0);
    while (load(at + 20 * PAGE) != SIGBUS)
        sched_yield();
    /* What has gone is inherited like anything else. */
    child = fork();
    if (child == 0)
        _exit(load(at) == SIGBUS && folio_munmap(at, PAGES * PAGE) == 0 && load(at) == SIGSEGV ? 0
                                                                                               : 1);
    CHECK(status_of(child) == 0);
}

/* The program's descriptors are its own: the library's survive closefrom, and its locks survive us. */
static void descriptors(void)
{
    int fd = new_file("a", PAGES);
    struct flock whole = { .l_type = F_WRLCK };

    CHECK(fcntl(fd, F_SETLK, &whole) == 0);
    int before = dup(0);
    close(before);
    char *at = map(fd, PAGES, 0);
    int after = dup(0);
    close(after);
    CHECK(before == after);
    CHECK(folio_munmap(at, PAGES * PAGE) == 0);
    pid_t child = fork();
    if (child == 0) {
        struct flock probe = { .l_type = F_WRLCK };
        CHECK(fcntl(fd, F_GETLK, &probe) == 0);
        _exit(probe.l_type == F_WRLCK ? 0 : 1); /* still the parent's */
    }
    CHECK(status_of(child) == 0);

    at = map(fd, PAGES, 0);
    CHECK(syscall(SYS_close_range, 3, ~0u, 0) == 0);
    CHECK(load(at) == 0 && store(at + PAGE, 1) == 0 && counts->ranges == 1);
    child = fork();
    if (child == 0)
        _exit(at[PAGE] == 1 ? 0 : 1);
    CHECK(status_of(child) == 0);
    CHECK(folio_munmap(at, PAGES * PAGE) == 0);
    wait_for_ranges(0); /* the child is gone for the daemon a moment later */
}

static void thousands(void)
{
    enum { MANY = 5000 };
    static char *at[MANY];
    int fd = new_file("a", PAGES);
    struct rlimit few = { 64, 64 };

    CHECK(setrlimit(RLIMIT_NOFILE, &few) == 0); /* one descriptor serves them all */
    for (unsigned i = 0; i < MANY; i++)
        at[i] = map(fd, 2, i % (PAGES - 1));
    CHECK(counts->ranges == MANY);
    for (unsigned i = 0; i < MANY; i += 7)
        CHECK(at[i][0] == (char)(i % (PAGES - 1)));
    for (unsigned i = 0; i < MANY; i += 2)
        CHECK(folio_munmap(at[i], 2 * PAGE) == 0);
    CHECK(counts->ranges == MANY / 2 && at[1][PAGE] == 2);
    for (unsigned i = 1; i < MANY; i += 2)
        CHECK(folio_munmap(at[i] + PAGE, PAGE) == 0);
    CHECK(counts->ranges == MANY / 2 && load(at[1] + PAGE) == SIGSEGV && at[1][0] == 1);
}

/* A robust mutex in what is attached, locked and unlocked; the fake daemon rings all the while. */
static void lock_and_unlock(char *at)
{
    pthread_mutex_t *mutex = (pthread_mutex_t *)(void *)at;
    pthread_mutexattr_t robust;

    CHECK(pthread_mutexattr_init(&robust) == 0 &&
          pthread_mutexattr_setpshared(&robust, PTHREAD_PROCESS_SHARED) == 0 &&
          pthread_mutexattr_setrobust(&robust, PTHREAD_MUTEX_ROBUST) == 0);
    CHECK(pthread_mutex_init(mutex, &robust) == 0);
    for (unsigned i = 0; i < 20; i++)
        CHECK(pthread_mutex_lock(mutex) == 0 && pthread_mutex_unlock(mutex) == 0);
    CHECK(pthread_mutex_destroy(mutex) == 0 && pthread_mutexattr_destroy(&robust) == 0);
}

/* Threads that map, touch, lock, cut and unmap at once: each sees its own bytes, whoever's addresses it got. */
static void *churn(void *argument)
{
    unsigned random = 1 + *(const unsigned *)argument;
    char name[16];
    snprintf(name, sizeof(name), "t%u", random);
    int fd = new_file(name, PAGES);

    for (unsigned i = 0; i < 300; i++) {
        random = random * 1103515245u + 12345u;
        unsigned first = random >> 16 & 31, count = 1 + (random >> 24 & 15);
        char *at = map(fd, count, first);
        unsigned page = random % count;
        CHECK(at[page * PAGE] == (char)(first + page) && at[page * PAGE + 1] == 'f');
        at[page * PAGE + 2] = (char)i;
        if (page)
            CHECK(folio_munmap(at, page * PAGE) == 0);
        CHECK(at[page * PAGE + 2] == (char)i);
        unsigned char there;
        CHECK(folio_mincore(at + page * PAGE, PAGE, &there) == 0 && there);
        lock_and_unlock(at + page * PAGE + 64);
        CHECK(folio_msync(at + page * PAGE, PAGE, i % 2 ? MS_SYNC : MS_ASYNC) == 0);
        CHECK(folio_munmap(at + page * PAGE, (count - page) * PAGE) == 0);
    }
    close(fd);
    return NULL;
}

/* Two attached pages, and one between them that is not: so they stay. */
static atomic_bool looked_enough;
static void *look(void *kept)
{
    const char *at = kept;

    while (!atomic_load(&looked_enough))
        CHECK(folio_attached(at, 1) && !folio_attached(at + PAGE, PAGE) &&
              folio_attached(at + PAGE, PAGE + 1));
    return NULL;
}

static void threads(void)
{
    pthread_t thread[4], looker;
    unsigned number[4];
    int fd = new_file("kept", 3);
    char *kept = map(fd, 3, 0);

    CHECK(folio_munmap(kept + PAGE, PAGE) == 0);
    CHECK(mmap(kept + PAGE, PAGE, RW, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) ==
          kept + PAGE);
    CHECK(pthread_create(&looker, NULL, look, kept) == 0);
    for (unsigned i = 0; i < 4; i++) {
        number[i] = i;
        CHECK(pthread_create(&thread[i], NULL, churn, &number[i]) == 0);
    }
    for (unsigned i = 0; i < 4; i++)
        CHECK(pthread_join(thread[i], NULL) == 0);
    atomic_store(&looked_enough, true);
    CHECK(pthread_join(looker, NULL) == 0);
    CHECK(folio_munmap(kept, 3 * PAGE) == 0);
    CHECK(counts->ranges == 0 && counts->hello == 1);
}

/* Unmodified programs. This program again, by its plain names; it says what it saw by its status. */
static void preloaded(void)
{
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
    fprintf(stderr, "preloaded: not with sanitizers, which want to be first\n");
#else
    close(new_file("a", PAGES));
    pid_t child = fork();
    if (child == 0) {
        setenv("LD_PRELOAD", FOLIO_PRELOAD, 1);
        execl("/proc/self/exe", "race_libfolio", "plain", directory, (char *)NULL);
        _exit(99);
    }
    CHECK(status_of(child) == 0 && counts->hello == 2 && counts->mkwrite == 2);
    wait_for_ranges(0);
#endif
}

static int plain(const char *where)
{
    char path[64];

    snprintf(path, sizeof(path), "%s/a", where);
    int fd = open(path, O_RDWR);
    char *at = mmap(NULL, 8 * PAGE, RW, MAP_SHARED, fd, 0);
    char *copy = mmap(NULL, PAGE, RW, MAP_PRIVATE, fd, 0);
    char *own = mmap(NULL, PAGE, RW, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    CHECK(at != MAP_FAILED && copy != MAP_FAILED && own != MAP_FAILED);
    CHECK(folio_attached(at, 8 * PAGE) && !folio_attached(copy, PAGE) &&
          !folio_attached(own, PAGE));
    at[0] = 'x';
    copy[0] = own[0] = 'y';
    CHECK(at[0] == 'x' && at[PAGE] == 1);
    CHECK(msync(at, 8 * PAGE, MS_SYNC) == 0 && madvise(at, PAGE, MADV_RANDOM) == 0);
    CHECK(posix_madvise(at, PAGE, POSIX_MADV_SEQUENTIAL) == 0);
    CHECK(posix_madvise(at + 1, PAGE, POSIX_MADV_SEQUENTIAL) == EINVAL);
    unsigned char vec[8];
    CHECK(mincore(at, 8 * PAGE, vec) == 0 && vec[0] && !vec[7]);
    at = mremap(at, 8 * PAGE, 16 * PAGE, MREMAP_MAYMOVE);
    CHECK(at != MAP_FAILED && folio_attached(at, 16 * PAGE) && at[15 * PAGE] == 15);
    CHECK(mmap(at + 4 * PAGE, PAGE, RW, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) ==
          at + 4 * PAGE);
    CHECK(!folio_attached(at + 4 * PAGE, PAGE) && at[4 * PAGE] == 0 && at[5 * PAGE] == 5);
    CHECK(mprotect(at, PAGE, PROT_READ) == 0);
    pid_t child = fork();
    if (child == 0) {
        at[5 * PAGE] = 'c';
        _exit(0);
    }
    CHECK(status_of(child) == 0 && at[5 * PAGE] == 'c');
    CHECK(munmap(at, 16 * PAGE) == 0 && !folio_attached(at, 16 * PAGE));
    return 0;
}

/* ---- running them ----------------------------------------------------------------------------------- */

static bool run(const char *name, void (*scenario)(void))
{
    memset(counts, 0, sizeof(*counts));
    daemon_pid = fake_daemon_start(dev, counts);
    CHECK(daemon_pid > 0);
    pid_t child = fork();
    if (child == 0) {
        struct sigaction action = { .sa_handler = jump };
        setpgid(0, 0);
        sigaction(SIGBUS, &action, NULL);
        sigaction(SIGSEGV, &action, NULL);
        alarm(120);
        scenario();
        CHECK(atomic_load(&counts->broken) == 0 || scenario == refusals);
        exit(0);
    }
    int status = status_of(child);
    kill(-child, SIGKILL); /* what a failed scenario left */
    fake_daemon_kill(daemon_pid, dev);
    printf("%-12s %s\n", name, status ? "FAILED" : "ok");
    if (status)
        fprintf(stderr, "%s: status %d (256 + a signal's number)\n", name, status);
    return status == 0;
}

/* What other tests have mounted is not kept in our namespace, or it would outlive their unmounting. */
static void leave_others_mounts(void)
{
    FILE *mounts = setmntent("/proc/self/mounts", "r");

    CHECK(mounts);
    for (struct mntent *m; (m = getmntent(mounts)) != NULL;)
        if (strcmp(m->mnt_type, "fuse.foliofs") == 0)
            umount2(m->mnt_dir, MNT_DETACH);
    endmntent(mounts);
}

int main(int argc, char **argv)
{
    static const struct {
        const char *name;
        void (*scenario)(void);
        bool forks; /* ThreadSanitizer knows no threads in the child of a threaded process */
    } all[] = {
        { "faults", faults, false },
        { "refusals", refusals, false },
        { "read_only", read_only, false },
        { "pieces", pieces, false },
        { "moved", moved, false },
        { "hang_up", hang_up, false },
        { "in_need", hang_up_in_need, false },
        { "returned", returned, true },
        { "forked", forked, true },
        { "descriptors", descriptors, true },
        { "thousands", thousands, false },
        { "threads", threads, false },
        { "preloaded", preloaded, true },
    };
    bool good = true;

    setvbuf(stdout, NULL, _IONBF, 0);
    if (argc == 3 && strcmp(argv[1], "plain") == 0)
        return plain(argv[2]);
    /* A device number of our own, so that no other test's daemon is taken for ours. */
    if (unshare(CLONE_NEWNS) || mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) ||
        !mkdtemp(directory) || mount("none", directory, "tmpfs", 0, "size=64m")) {
        printf("SKIP: may not mount (%s)\n", strerror(errno));
        return 77;
    }
    leave_others_mounts();
    struct stat stat;
    CHECK(lstat(directory, &stat) == 0);
    dev = stat.st_dev;
    counts = mmap(NULL, sizeof(*counts), RW, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    CHECK(counts != MAP_FAILED);
    for (size_t i = 0; i < sizeof(all) / sizeof(all[0]); i++) {
#ifdef __SANITIZE_THREAD__
        if (all[i].forks)
            continue;
#endif
        if (argc == 1 || strcmp(argv[1], all[i].name) == 0)
            good = run(all[i].name, all[i].scenario) && good;
    }
    umount(directory);
    rmdir(directory);
    return good ? 0 : 1;
}
