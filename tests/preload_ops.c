/* preload_ops: what a program that knows nothing of libfolio may do, with the preload library; each line that is
 * printed is something that is not as it should be.
 *
 *     preload_ops calls FILE      system calls that would change a mapping behind libfolio's back
 *     preload_ops handler FILE    fork in a signal handler, beside mmap and munmap
 *     preload_ops nobody FILE     as a user who may not use userfaultfd: the kernel reads into a mapping
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

static void calls(int fd)
{
    char *p = map(fd), byte;
    EXPECT(p != MAP_FAILED);
    EXPECT(remap_file_pages(p, PAGE, 0, 5, 0) == -1 && errno == EINVAL);
    EXPECT(mremap(p, 0, PAGE, MREMAP_MAYMOVE) == MAP_FAILED && errno == EINVAL);
    EXPECT(mremap(p + PAGE, 0, PAGE, MREMAP_MAYMOVE) == MAP_FAILED && errno == EINVAL);
    p[0] = 'c';
    EXPECT(pread(fd, &byte, 1, 0) == 1 && byte == 'c');
    EXPECT(munmap(p, PAGES * PAGE) == 0);
}

static void fork_now(int sig)
{
    int before = errno, status;
    pid_t child = fork();
    (void)sig;
    if (child == 0)
        _exit(0);
    while (waitpid(child, &status, 0) < 0 && errno == EINTR)
        ;
    errno = before;
}

static void handler(int fd)
{
    struct sigaction action = { .sa_handler = fork_now, .sa_flags = SA_RESTART };
    struct itimerval once = { { 0, 0 }, { 0, 1000 } };
    time_t end = time(NULL) + 3;
    sigaction(SIGALRM, &action, NULL);
    while (time(NULL) < end) {
        setitimer(ITIMER_REAL, &once, NULL); /* anew in each round: a fork may take longer */
        char *p = map(fd);
        EXPECT(p != MAP_FAILED);
        p[PAGE] = 'h';
        EXPECT(munmap(p, PAGES * PAGE) == 0);
    }
}

static void nobody(int fd)
{
    EXPECT(setgid(65534) == 0 && setuid(65534) == 0);
    char *p = map(fd);
    int zero = open("/dev/zero", O_RDONLY);
    EXPECT(p != MAP_FAILED);
    EXPECT(read(zero, p + 2 * PAGE, 2 * PAGE) == 2 * PAGE); /* pages that nobody has touched */
    EXPECT(p[2 * PAGE] == 0);
    EXPECT(munmap(p, PAGES * PAGE) == 0);
}

int main(int argc, char **argv)
{
    int fd = argc == 3 ? open(argv[2], O_RDWR) : -1;
    if (fd < 0)
        return 2;
    if (strcmp(argv[1], "calls") == 0)
        calls(fd);
    else if (strcmp(argv[1], "handler") == 0)
        handler(fd);
    else if (strcmp(argv[1], "nobody") == 0)
        nobody(fd);
    else
        return 2;
    return failures;
}
