/* attach_ops.h: what attach_ops.c, attach_ends.c and attach_hostile.c share: failures in words, SIGBUS caught,
 * a file of their own for each test, and the daemon's counters.
 *
 * Environment: FOLIO_CTL is foliofsctl, FOLIO_DAEMON the daemon's process.
 */
#ifndef FOLIO_TESTS_ATTACH_OPS_H
#define FOLIO_TESTS_ATTACH_OPS_H

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "cache/folio.h"

#define PAGE ((size_t)4096)

static const char *test_now = "";
static _Atomic int failures;

__attribute__((format(printf, 1, 2))) static void complain(const char *text, ...)
{
    va_list args;
    char line[400];
    va_start(args, text);
    (void)vsnprintf(line, sizeof line, text, args);
    va_end(args);
    printf("%s: %s\n", test_now, line);
    (void)fflush(stdout);
    failures++;
}

/* The test cannot go on. */
__attribute__((format(printf, 1, 2), noreturn)) static inline void give_up(const char *text, ...)
{
    va_list args;
    char line[400];
    int error = errno;
    va_start(args, text);
    (void)vsnprintf(line, sizeof line, text, args);
    va_end(args);
    printf("%s: %s: %s\n", test_now, line, strerrorname_np(error));
    (void)fflush(stdout);
    _exit(1);
}

#define CHECK(is)                                           \
    do {                                                    \
        if (!(is))                                          \
            complain("line %d: not so: %s", __LINE__, #is); \
    } while (0)
#define CHECK_EQ(got, want)                                                         \
    do {                                                                            \
        long long got_ = (long long)(got), want_ = (long long)(want);               \
        if (got_ != want_)                                                          \
            complain("line %d: %s is %lld, not %lld", __LINE__, #got, got_, want_); \
    } while (0)

static inline char *attach(int fd, size_t pages)
{
    char *p = folio_mmap(NULL, pages * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (p == MAP_FAILED)
        give_up("folio_mmap");
    return p;
}

static inline pthread_t start(void *(*f)(void *arg), void *arg)
{
    pthread_t t;
    if (pthread_create(&t, NULL, f, arg) != 0)
        give_up("pthread_create");
    return t;
}

/* ---- touching ---------------------------------------------------------------------------------- */

static _Thread_local sigjmp_buf bus_exit;
static _Thread_local volatile sig_atomic_t bus_awaited;

static inline void on_bus(int sig)
{
    if (bus_awaited)
        siglongjmp(bus_exit, 1);
    const char *what = ": SIGBUS where none may come\n"; /* complain() is not for signal handlers */
    (void)!write(STDOUT_FILENO, test_now, strlen(test_now));
    (void)!write(STDOUT_FILENO, what, strlen(what));
    (void)signal(sig, SIG_DFL);
}

static inline void catch_bus(void)
{
    struct sigaction action = { .sa_handler = on_bus, .sa_flags = SA_NODEFER };
    (void)sigaction(SIGBUS, &action, NULL);
}

/* The byte, or -1: SIGBUS. */
static inline int load(const char *at)
{
    int got = -1;
    if (sigsetjmp(bus_exit, 1) == 0) {
        bus_awaited = 1;
        got = *(const volatile unsigned char *)at;
    }
    bus_awaited = 0;
    return got;
}

/* Returns 0, or -1: SIGBUS. */
static inline int store(char *at, char byte)
{
    int got = -1;
    if (sigsetjmp(bus_exit, 1) == 0) {
        bus_awaited = 1;
        *(volatile char *)at = byte;
        got = 0;
    }
    bus_awaited = 0;
    return got;
}

static inline int store_word(uint64_t *at, uint64_t word)
{
    int got = -1;
    if (sigsetjmp(bus_exit, 1) == 0) {
        bus_awaited = 1;
        *(volatile uint64_t *)at = word;
        got = 0;
    }
    bus_awaited = 0;
    return got;
}

/* ---- time ---------------------------------------------------------------------------------------- */

static inline double seconds(void)
{
    struct timespec t;
    (void)clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static inline void pause_ms(unsigned ms)
{
    struct timespec t = { .tv_sec = ms / 1000, .tv_nsec = (long)(ms % 1000) * 1000000 };
    (void)nanosleep(&t, NULL);
}

/* Is it so within so many seconds? */
#define WITHIN(limit, is)                         \
    ({                                            \
        double end_ = seconds() + (limit);        \
        bool so_;                                 \
        while (!(so_ = (is)) && seconds() < end_) \
            pause_ms(5);                          \
        so_;                                      \
    })

/* ---- files ----------------------------------------------------------------------------------------- */

/* A new file of so many pages, each filled with its number + 1, durable. */
static inline int make_file(const char *name, size_t pages)
{
    static char page[4096];
    int fd = open(name, O_RDWR | O_CREAT | O_TRUNC, 0644);
    if (fd < 0)
        give_up("open %s", name);
    for (size_t i = 0; i < pages; i++) {
        memset(page, (int)(i + 1), PAGE);
        if (pwrite(fd, page, PAGE, (off_t)(i * PAGE)) != (ssize_t)PAGE)
            give_up("write %s", name);
    }
    if (fsync(fd) != 0)
        give_up("fsync %s", name);
    return fd;
}

static inline int byte_at(int fd, off_t at)
{
    unsigned char byte;
    return pread(fd, &byte, 1, at) == 1 ? byte : -1;
}

/* ---- the daemon --------------------------------------------------------------------------------------- */

static inline void control(const char *words)
{
    char line[600];
    (void)snprintf(line, sizeof line, "\"$FOLIO_CTL\" . %s >/dev/null", words);
    if (system(line) != 0)
        give_up("foliofsctl %s", words);
}

/* One number of foliofsctl stats. */
static inline long long stat_of(const char *part, const char *name)
{
    static char text[65536];
    char key[80];
    FILE *f = popen("\"$FOLIO_CTL\" --json . stats", "re");
    size_t n = f != NULL ? fread(text, 1, sizeof text - 1, f) : 0;
    text[n] = '\0';
    if (f == NULL || pclose(f) != 0)
        give_up("foliofsctl stats");
    (void)snprintf(key, sizeof key, "\"%s\": {", part);
    const char *at = strstr(text, key);
    (void)snprintf(key, sizeof key, "\"%s\": ", name);
    at = at != NULL ? strstr(at, key) : NULL;
    if (at == NULL)
        give_up("stats has no %s.%s", part, name);
    return strtoll(at + strlen(key), NULL, 10);
}

static inline pid_t daemon_pid(void)
{
    const char *text = getenv("FOLIO_DAEMON");
    return text != NULL ? (pid_t)strtol(text, NULL, 10) : 0;
}

/* Entries of a directory of /proc/DAEMON, fd or task. */
static inline unsigned daemon_has(const char *what)
{
    char line[200];
    unsigned n = 0;
    (void)snprintf(line, sizeof line, "ls /proc/%d/%s | wc -l", (int)daemon_pid(), what);
    FILE *f = popen(line, "re");
    if (f == NULL || fscanf(f, "%u", &n) != 1)
        give_up("ls");
    (void)pclose(f);
    return n;
}

/* ---- other processes --------------------------------------------------------------------------------- */

struct child {
    pid_t pid;
    int to, from;
};

/* A child that runs work with a pipe from and to us, and ends with the number of its failures. */
static inline struct child start_child(void (*work)(int in, int out))
{
    int there[2], back[2];
    if (pipe2(there, O_CLOEXEC) != 0 || pipe2(back, O_CLOEXEC) != 0)
        give_up("pipe");
    struct child c = { .pid = fork(), .to = there[1], .from = back[0] };
    if (c.pid < 0)
        give_up("fork");
    if (c.pid == 0) {
        close(there[1]);
        close(back[0]);
        failures = 0;
        work(there[0], back[1]);
        _exit(failures > 0);
    }
    close(there[0]);
    close(back[1]);
    return c;
}
static inline void say(int out)
{
    if (write(out, "", 1) != 1)
        _exit(3);
}
/* Returns false: the other is gone. */
static inline bool hear(int in)
{
    char c;
    return read(in, &c, 1) == 1;
}
static inline void end_child(struct child *c)
{
    int status;
    (void)!write(c->to, "", 1); /* a later child holds the pipe's end, too */
    close(c->to);
    close(c->from);
    if (waitpid(c->pid, &status, 0) != c->pid || status != 0)
        complain("a child ended with status 0x%x", (unsigned)status);
}
static inline void kill_child(struct child *c)
{
    (void)kill(c->pid, SIGKILL);
    close(c->to);
    close(c->from);
    (void)waitpid(c->pid, NULL, 0);
}

#endif
