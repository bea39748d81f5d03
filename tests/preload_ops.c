/* preload_ops: what a program that knows nothing of libfolio may do, with the preload library; each line that is
 * printed is something that is not as it should be.
 *
 *     preload_ops calls FILE      system calls that would change a mapping behind libfolio's back
 *     preload_ops handler FILE    fork in a signal handler, beside mmap, mincore and munmap
 *     preload_ops never FILE      as a user who may not use userfaultfd: the kernel reads into a mapping
 *     preload_ops nobody FILE     likewise in the child of one who has become such a user
 *
 * FILE has 16 pages.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/time.h>
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
        EXPECT(before[PAGE] == 'b');
        EXPECT(map(fd) == MAP_FAILED && errno == EAGAIN);
        EXPECT(munmap(before, PAGES * PAGE) == 0);
        kernel_reads(fd);
        _exit(failures);
    }
    EXPECT(waitpid(child, &status, 0) == child && status == 0);
    EXPECT(munmap(before, PAGES * PAGE) == 0);
}

int main(int argc, char **argv)
{
    int fd = argc == 3 ? open(argv[2], O_RDWR) : -1;
    if (fd < 0)
        return 2;
    if (strcmp(argv[1], "calls") == 0)
        calls(fd, argv[2]);
    else if (strcmp(argv[1], "handler") == 0)
        handler(fd);
    else if (strcmp(argv[1], "nobody") == 0)
        nobody(fd);
    else if (strcmp(argv[1], "never") == 0 && setgid(65534) == 0 && setuid(65534) == 0)
        kernel_reads(fd);
    else
        return 2;
    return failures;
}
