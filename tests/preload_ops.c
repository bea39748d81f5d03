/* preload_ops: what a program that knows nothing of libfolio may do, with the preload library; each line that is
 * printed is something that is not as it should be.
 *
 *     preload_ops calls FILE      system calls that would change a mapping behind libfolio's back
 *     preload_ops reads FILE      what read(2) and its like bring into a mapping is written, whoever cleans it meanwhile
 *     preload_ops handler FILE    fork in a signal handler, beside mmap, mincore and munmap
 *     preload_ops never FILE      as a user who may not use userfaultfd: the kernel reads into a mapping
 *     preload_ops nobody FILE     likewise in the child of one who has become such a user, and had no /dev/userfaultfd
 *     preload_ops heir FILE       likewise, but he had: the child is allowed what he was
 *     preload_ops forbidden FILE  who may not attach any more, by seccomp(2), with something attached and without
 *
 * FILE has 16 pages.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define PAGE      4096
#define PAGES     16
#define EXPECT(x) ((x) ? (void)0 : complain(__LINE__, #x))

static int failures;

static void complain(int line, const char *what)
{
    printf("line %d: not so: %s (errno %s)\n", line, what, strerrorname_np(errno));
    failures = 1;
}

static char *map(int fd)
{
    return mmap(NULL, PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
}

static void calls(int fd, const char *path)
{
    char *p = map(fd), byte;
    int reader = open(path, O_RDONLY);
    char *q = mmap(NULL, PAGE, PROT_READ, MAP_SHARED, reader, 0);
    EXPECT(q != MAP_FAILED && mprotect(q, PAGE, PROT_READ | PROT_WRITE) == -1 && errno == EACCES);
    EXPECT(pkey_mprotect(q, PAGE, PROT_READ | PROT_WRITE, -1) == -1 && errno == EACCES);
    EXPECT(pkey_mprotect(q, PAGE, PROT_NONE, -1) == 0 && munmap(q, PAGE) == 0);
    close(reader);
    EXPECT(p != MAP_FAILED);
    EXPECT(remap_file_pages(p, PAGE, 0, 5, 0) == -1 && errno == EINVAL);
    EXPECT(mremap(p, 0, PAGE, MREMAP_MAYMOVE) == MAP_FAILED && errno == EINVAL);
    EXPECT(mremap(p + PAGE, 0, PAGE, MREMAP_MAYMOVE) == MAP_FAILED && errno == EINVAL);
    p[0] = 'c';
    EXPECT(pread(fd, &byte, 1, 0) == 1 && byte == 'c');
    EXPECT(munmap(p, PAGES * PAGE) == 0);
}

/* ---- reads ------------------------------------------------------------------------------------ */

#define LONG (3 * (1 << 20) + 2 * PAGE) /* more than the library takes at a time, twice */

ssize_t __read_chk(int fd, void *to, size_t bytes, size_t room);
ssize_t __pread_chk(int fd, void *to, size_t bytes, off_t offset, size_t room);
size_t __fread_chk(void *to, size_t room, size_t size, size_t count, FILE *stream);

static int syncing;
static atomic_bool stop;

static void *sync_on(void *unused)
{
    while (!atomic_load(&stop))
        (void)fsync(syncing);
    return unused;
}

/* LONG bytes from the start of the file, by one of many calls. */
#define WAYS 10
static ssize_t read_by(unsigned way, int fd, char *to)
{
    struct iovec iov[3] = { { to, PAGE + 5 },
                            { to + PAGE + 5, 0 },
                            { to + PAGE + 5, LONG - PAGE - 5 } };
    ssize_t got = -1;
    FILE *stream;
    lseek(fd, 0, SEEK_SET);
    switch (way) {
    case 0:
        return read(fd, to, LONG);
    case 1:
        return pread(fd, to, LONG, 0);
    case 2:
        return readv(fd, iov, 3);
    case 3:
        return preadv(fd, iov, 3, 0);
    case 4:
        return preadv2(fd, iov, 3, -1, 0);
    case 5:
        return preadv2(fd, iov, 3, 0, RWF_HIPRI);
    case 6:
        return __read_chk(fd, to, LONG, LONG);
    case 7:
        return __pread_chk(fd, to, LONG, 0, LONG);
    default:
        stream = fdopen(dup(fd), "r");
        if (way == 8)
            got = (ssize_t)fread(to, 1, LONG, stream);
        else
            got = (ssize_t)__fread_chk(to, LONG, LONG, 1, stream) * LONG;
        fclose(stream);
        return got;
    }
}

/* Beside what cleans the pages, which then leave the cache: they are to come back as they were read. */
static void reads_are_written(int fd, int other, char *bytes)
{
    EXPECT(ftruncate(fd, LONG) == 0);
    char *p = mmap(NULL, LONG, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    EXPECT(p != MAP_FAILED);
    syncing = fd;
    for (unsigned round = 0; round < 3 * WAYS; round++) {
        pthread_t syncer;
        memset(bytes, 'a' + (int)round, LONG);
        memcpy(bytes + LONG / 2, &round, sizeof(round));
        EXPECT(pwrite(other, bytes, LONG, 0) == LONG);
        atomic_store(&stop, false);
        pthread_create(&syncer, NULL, sync_on, NULL);
        EXPECT(read_by(round % WAYS, other, p) == LONG);
        atomic_store(&stop, true);
        pthread_join(syncer, NULL);
        EXPECT(memcmp(p, bytes, LONG) == 0);
        EXPECT(fsync(fd) == 0 && madvise(p, LONG, MADV_PAGEOUT) == 0);
        if (memcmp(p, bytes, LONG) != 0) {
            printf("way %u: ", round % WAYS);
            complain(__LINE__, "what was read has been written");
        }
    }
    EXPECT(munmap(p, LONG) == 0);
}

static void *cancelled(void *fd)
{
    char *p = map(*(int *)fd);
    pthread_cancel(pthread_self());
    (void)read(*(int *)fd, p, PAGE);
    return NULL;
}

/* Results, errors and offsets are those of the system calls. fd: of two pages, other: LONG. */
static void reads_mean_the_same(int fd, int other)
{
    char *p = map(fd), *constant = mmap(NULL, PAGE, PROT_READ, MAP_SHARED, fd, 0), own[10];
    struct iovec iov[2] = { { own, sizeof(own) }, { p, 2 * PAGE } };
    int ends[2], status;
    volatile int none = -1; /* or the compiler would know */
    pthread_t thread;
    void *result;
    EXPECT(p != MAP_FAILED && constant != MAP_FAILED);

    EXPECT(lseek(other, LONG - 10, SEEK_SET) == LONG - 10);
    EXPECT(read(other, p, PAGE) == 10 && read(other, p, PAGE) == 0); /* the end */
    EXPECT(pread(other, p, PAGE, LONG - 10) == 10 && pread(other, p, PAGE, LONG) == 0);
    EXPECT(readv(other, iov, 2) == 0 && lseek(other, 0, SEEK_CUR) == LONG);

    EXPECT(lseek(other, 0, SEEK_SET) == 0);
    EXPECT(read(other, p + PAGE, 4 * PAGE) == PAGE &&
           lseek(other, 0, SEEK_CUR) == PAGE); /* no more room */
    EXPECT(read(other, p + 2 * PAGE, 2 * PAGE) == -1 && errno == EFAULT &&
           lseek(other, 0, SEEK_CUR) == PAGE);
    EXPECT(pread(other, p + PAGE, 4 * PAGE, 0) == PAGE);
    EXPECT(pread(other, p + 2 * PAGE, PAGE, 0) == -1 && errno == EFAULT);
    EXPECT(read(other, constant, 10) == -1 && errno == EFAULT && lseek(other, 0, SEEK_CUR) == PAGE);
    iov[1].iov_base = p + PAGE;
    EXPECT(readv(other, iov, 2) == PAGE + 10 && lseek(other, 0, SEEK_CUR) == 2 * PAGE + 10);
    EXPECT(preadv2(other, iov, 2, -1, 0) == PAGE + 10 &&
           lseek(other, 0, SEEK_CUR) == 3 * PAGE + 20);
    iov[1].iov_base = p;

    EXPECT(read(-1, p, PAGE) == -1 && errno == EBADF);
    EXPECT(pread(other, p, PAGE, -1) == -1 && errno == EINVAL);
    EXPECT(preadv(other, iov, 2, -1) == -1 && errno == EINVAL);
    EXPECT(preadv2(other, iov, 2, 0, 1 << 30) == -1 && errno == EOPNOTSUPP);
    EXPECT(readv(other, iov, none) == -1 && errno == EINVAL && readv(other, iov, 0) == 0);
    EXPECT(pipe(ends) == 0 && write(ends[1], "pipe", 4) == 4); /* does not wait for more */
    EXPECT(read(ends[0], p, 2 * PAGE) == 4 && memcmp(p, "pipe", 4) == 0);
    EXPECT(pread(ends[0], p, 1, 0) == -1 && errno == ESPIPE);

    EXPECT(lseek(fd, 0, SEEK_SET) == 0 && pthread_create(&thread, NULL, cancelled, &fd) == 0);
    EXPECT(pthread_join(thread, &result) == 0 && result == PTHREAD_CANCELED &&
           lseek(fd, 0, SEEK_CUR) == 0);
    pid_t child = vfork();
    if (child == 0)
        _exit(pread(other, p, 2 * PAGE, LONG - 2 * PAGE) != 2 * PAGE);
    EXPECT(waitpid(child, &status, 0) == child && status == 0);
    EXPECT(pread(other, own, 1, LONG - PAGE) == 1 && p[PAGE] == own[0]);
    EXPECT(munmap(p, PAGES * PAGE) == 0 && munmap(constant, PAGE) == 0);
}

static void reads(int fd, const char *path)
{
    char name[4096], *bytes = malloc(LONG);
    snprintf(name, sizeof(name), "%s.read", path);
    int other = open(name, O_RDWR | O_CREAT | O_TRUNC, 0644);
    EXPECT(bytes != NULL && other >= 0);
    reads_are_written(fd, other, bytes);
    EXPECT(ftruncate(fd, 2L * PAGE) == 0);
    reads_mean_the_same(fd, other);
    EXPECT(ftruncate(fd, (long)PAGES * PAGE) == 0 && unlink(name) == 0 && close(other) == 0);
    free(bytes);
}

/* ---- fork in a handler ------------------------------------------------------------------------- */

static char *volatile mapped;

static void fork_now(int sig)
{
    static unsigned times;
    unsigned char there;
    int before = errno, status;
    (void)sig;
    if (mapped != NULL && ++times % 16 != 0) {
        (void)mincore(mapped, PAGE, &there);
        errno = before;
        return;
    }
    pid_t child = fork();
    if (child == 0)
        _exit(0);
    while (waitpid(child, &status, 0) < 0 && errno == EINTR)
        ;
    errno = before;
}

static void handler(int fd)
{
    struct sigaction action = { .sa_handler = fork_now, .sa_flags = SA_RESTART };
    time_t end = time(NULL) + 3;
    unsigned char there;
    sigaction(SIGALRM, &action, NULL);
    while (time(NULL) < end) {
        struct itimerval once = { { 0, 0 }, { 0, 1000 } };
        setitimer(ITIMER_REAL, &once, NULL); /* anew in each round: a fork may take longer */
        char *p = map(fd);
        EXPECT(p != MAP_FAILED);
        p[PAGE] = 'h';
        mapped = p;
        for (unsigned i = 0; i < 2000; i++) {
            once.it_value.tv_usec = 20 + i * 37 % 100;
            if (i % 64 == 0)
                setitimer(ITIMER_REAL, &once, NULL);
            EXPECT(mincore(p, PAGE, &there) == 0);
        }
        mapped = NULL;
        EXPECT(munmap(p, PAGES * PAGE) == 0);
    }
}

static void kernel_reads(int fd)
{
    char *p = map(fd);
    int zero = open("/dev/zero", O_RDONLY);
    EXPECT(p != MAP_FAILED);
    EXPECT(read(zero, p + 2 * PAGE, 2 * PAGE) == 2 * PAGE); /* pages that nobody has touched */
    EXPECT(p[2 * PAGE] == 0);
    EXPECT(munmap(p, PAGES * PAGE) == 0);
    close(zero);
}

/* A child of the child, too. And where the kernel reads the program's own descriptor still works. */
static void heir(int fd)
{
    char *before = map(fd);
    int zero = open("/dev/zero", O_RDONLY), ends[2], status = -1;
    EXPECT(before != MAP_FAILED && (before[PAGE] = 'b') == 'b');
    EXPECT(fsync(fd) == 0 &&
           madvise(before, PAGES * PAGE, MADV_PAGEOUT) == 0); /* nothing is mapped ahead */
    EXPECT(pipe(ends) == 0 && setgid(65534) == 0 && setuid(65534) == 0);
    pid_t child = fork();
    if (child == 0) {
        EXPECT(read(zero, before + 2 * PAGE, PAGE) == PAGE);
        EXPECT(write(ends[1], before + 3 * PAGE, 10) == 10);
        pid_t next = fork();
        if (next == 0) {
            EXPECT(read(zero, before + 4 * PAGE, PAGE) == PAGE && before[PAGE] == 'b');
            kernel_reads(fd);
            _exit(failures);
        }
        EXPECT(waitpid(next, &status, 0) == next && status == 0);
        _exit(failures);
    }
    EXPECT(waitpid(child, &status, 0) == child && status == 0);
    EXPECT(munmap(before, PAGES * PAGE) == 0);
}

/* Also who has given up his rights with something attached: a child's mappings from before are its own still. Beside
 * them it gets none of the kernel's: then it does. */
static void nobody(int fd)
{
    char *before = map(fd);
    int status = -1;
    EXPECT(before != MAP_FAILED && (before[PAGE] = 'b') == 'b');
    EXPECT(setgid(65534) == 0 && setuid(65534) == 0);
    pid_t child = fork();
    if (child == 0) {
        EXPECT(pread(fd, before + 2 * PAGE, PAGE, 0) == -1 &&
               errno == EFAULT); /* an error, and no untracked store */
        EXPECT(before[PAGE] == 'b' && before[2 * PAGE] == 0);
        EXPECT(pread(fd, before + 2 * PAGE, PAGE, 0) == -1 &&
               errno == EFAULT); /* touched, but not writable */
        before[2 * PAGE] = 't';
        EXPECT(pread(fd, before + 2 * PAGE, PAGE, PAGE) == PAGE && before[2 * PAGE] == 'b');
        EXPECT(map(fd) == MAP_FAILED && errno == EAGAIN);
        EXPECT(munmap(before, PAGES * PAGE) == 0);
        kernel_reads(fd);
        _exit(failures);
    }
    EXPECT(waitpid(child, &status, 0) == child && status == 0);
    EXPECT(munmap(before, PAGES * PAGE) == 0);
}

static void forbid(long call)
{
    struct sock_filter filter[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (unsigned)call, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog program = { sizeof(filter) / sizeof(filter[0]), filter };
    EXPECT(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0);
    EXPECT(syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_TSYNC, &program) == 0);
}

/* Attached mappings and the kernel's of one mount are not for one process. */
static void forbidden(int fd)
{
    char *before = map(fd);
    EXPECT(before != MAP_FAILED && (before[PAGE] = 'b') == 'b');
    forbid(SYS_pidfd_getfd);
    EXPECT(map(fd) == MAP_FAILED && errno == EPERM);
    int other = memfd_create("other", 0);
    EXPECT(ftruncate(other, PAGE) == 0);
    EXPECT(mmap(NULL, PAGE, PROT_READ, MAP_SHARED, other, 0) != MAP_FAILED);
    EXPECT(munmap(before, PAGES * PAGE) == 0);
    char *after = map(fd);
    EXPECT(after != MAP_FAILED && after[PAGE] == 'b' && munmap(after, PAGES * PAGE) == 0);
}

int main(int argc, char **argv)
{
    int fd = argc == 3 ? open(argv[2], O_RDWR) : -1;
    if (fd < 0)
        return 2;
    if (strcmp(argv[1], "calls") == 0)
        calls(fd, argv[2]);
    else if (strcmp(argv[1], "reads") == 0)
        reads(fd, argv[2]);
    else if (strcmp(argv[1], "handler") == 0)
        handler(fd);
    else if (strcmp(argv[1], "forbidden") == 0)
        forbidden(fd);
    else if (strcmp(argv[1], "nobody") == 0)
        nobody(fd);
    else if (strcmp(argv[1], "heir") == 0)
        heir(fd);
    else if (strcmp(argv[1], "never") == 0 && setgid(65534) == 0 && setuid(65534) == 0)
        kernel_reads(fd);
    else
        return 2;
    return failures;
}
