/* mmap_util.h: what programs that try mapped files have in common: a store or load that raises SIGBUS is a result to
 * them, not an end. Each is one source file, with _GNU_SOURCE. */
#ifndef FOLIO_TESTS_MMAP_UTIL_H
#define FOLIO_TESTS_MMAP_UTIL_H

#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define PAGE 4096
#define RW   (PROT_READ | PROT_WRITE)

/* ---- saying -----------------------------------------------------------------------------------
 *
 * Of what is tried under one name, the first thing that is not as it should be is what is said. */

static char why[300];

static inline void note(int line, const char *what)
{
    if (why[0] == 0)
        snprintf(why, sizeof why, "line %d: not so: %s (errno %s)", line, what,
                 strerrorname_np(errno));
}
#define EXPECT(x) ((x) ? (void)0 : note(__LINE__, #x))

static inline int say(const char *name)
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

static _Noreturn inline void die(const char *what)
{
    perror(what);
    exit(2);
}

/* ---- accesses that may raise a signal ---------------------------------------------------------- */

static _Thread_local sigjmp_buf fault;

static inline void on_fault(int sig)
{
    siglongjmp(fault, sig);
}

static inline void catch_faults(void)
{
    struct sigaction sa = { .sa_handler = on_fault, .sa_flags = SA_NODEFER };
    sigaction(SIGBUS, &sa, NULL);
    sigaction(SIGSEGV, &sa, NULL);
}

/* 0, or the signal that it raised. */
static inline int store(volatile char *at, char c)
{
    int sig = sigsetjmp(fault, 1);
    if (sig == 0)
        *at = c;
    return sig;
}
static inline int store_number(volatile uint64_t *at, uint64_t n)
{
    int sig = sigsetjmp(fault, 1);
    if (sig == 0)
        *at = n;
    return sig;
}
static inline int load_number(const volatile uint64_t *at, uint64_t *n)
{
    int sig = sigsetjmp(fault, 1);
    if (sig == 0)
        *n = *at;
    return sig;
}
/* The byte, or minus the signal. */
static inline int load(const volatile char *at)
{
    int sig = sigsetjmp(fault, 1);
    return sig == 0 ? (unsigned char)*at : -sig;
}

static inline double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

/* ---- files ------------------------------------------------------------------------------------- */

/* A new file of n bytes, all c. */
static inline int make(const char *name, char c, size_t n)
{
    static char buf[16 * PAGE];
    int fd = open(name, O_RDWR | O_CREAT | O_TRUNC, 0644);
    memset(buf, c, sizeof buf);
    if (fd < 0 || n > sizeof buf || write(fd, buf, n) != (ssize_t)n)
        die(name);
    return fd;
}
static inline char *map(int fd, int pages)
{
    char *p = mmap(NULL, (size_t)pages * PAGE, RW, MAP_SHARED, fd, 0);
    if (p == MAP_FAILED)
        die("mmap");
    return p;
}
static inline void done(const char *name, int fd, char *p, int pages)
{
    munmap(p, (size_t)pages * PAGE);
    close(fd);
    unlink(name);
}
/* The byte there; -1: beyond the end. */
static inline int byte_at(int fd, off_t at)
{
    unsigned char c;
    return pread(fd, &c, 1, at) == 1 ? c : -1;
}
/* Are the bytes of the file from a to b all c? */
static inline bool all(int fd, off_t a, off_t b, char c)
{
    for (; a < b; a++)
        if (byte_at(fd, a) != (unsigned char)c)
            return false;
    return true;
}
static inline off_t size_of(int fd)
{
    struct stat st;
    return fstat(fd, &st) == 0 ? st.st_size : -1;
}
static inline void forget(int fd) /* have the kernel drop what it has cached of it */
{
    fsync(fd);
    posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
}

#endif
