/* record_writes.c: a library for LD_PRELOAD that writes down what a program does to one file: what it wrote, when, and
 * when it had that flushed. From this power_cut.c makes what a disk may hold after a power cut.
 *
 * FOLIO_RECORDED names the file, FOLIO_RECORD the record, to which is appended. A flush is written down after it
 * has returned and before the caller can tell anybody, a write with the time before it was begun: whoever stamps
 * what he was told afterwards, and what he asks for beforehand, by the same clock, knows what had to be on the disk.
 *
 * Only the calls that LMDB and the store use are here. That there were no others is known by comparing: the record
 * from its beginning to its end makes the file that there is. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#include "tests/recorded.h"

#define MAX_PIECES 1024

static struct {
    dev_t dev;
    ino_t ino;
    int fd;
    pthread_mutex_t lock; /* a record in one piece */
} record = { .fd = -1, .lock = PTHREAD_MUTEX_INITIALIZER };

/* libc's own function of that name. */
#define REAL(type, name, ...) (*(type(**)(__VA_ARGS__))(void *)&(void *){ dlsym(RTLD_NEXT, #name) })

__attribute__((constructor)) static void begin(void)
{
    const char *file = getenv("FOLIO_RECORDED"), *to = getenv("FOLIO_RECORD");
    struct stat st;
    if (file == NULL || to == NULL || stat(file, &st) != 0)
        return;
    record.dev = st.st_dev;
    record.ino = st.st_ino;
    record.fd = open(to, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
}

static bool is_recorded(int fd)
{
    struct stat st;
    return record.fd >= 0 && fstat(fd, &st) == 0 && st.st_ino == record.ino &&
           st.st_dev == record.dev;
}

static bool is_through(int fd)
{
    return fcntl(fd, F_GETFL) & O_DSYNC;
}

static uint64_t now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static void append(const struct iovec *iov, int n, size_t len)
{
    /* A record with a piece missing would find losses that are none. */
    if (REAL(ssize_t, writev, int, const struct iovec *, int)(record.fd, iov, n) != (ssize_t)len)
        abort();
}

/* iov: of a write, its bytes, of which r->len were written. */
static void note(struct recorded *r, const struct iovec *iov, int n)
{
    struct iovec out[MAX_PIECES + 1] = { { .iov_base = r, .iov_len = sizeof *r } };
    int error = errno, pieces = 1;
    size_t left = r->len;
    if (n > MAX_PIECES)
        abort();
    for (int i = 0; i < n && left > 0; i++, pieces++) {
        out[pieces] = iov[i];
        if (out[pieces].iov_len > left)
            out[pieces].iov_len = left;
        left -= out[pieces].iov_len;
    }
    pthread_mutex_lock(&record.lock);
    r->end = now();
    append(out, pieces, sizeof *r + r->len);
    pthread_mutex_unlock(&record.lock);
    errno = error;
}

static ssize_t note_write(ssize_t written, struct recorded *r, const struct iovec *iov, int n)
{
    if (written > 0) {
        r->len = (uint64_t)written;
        note(r, iov, n);
    }
    return written;
}

static int note_done(int failed, struct recorded *r)
{
    if (failed == 0)
        note(r, NULL, 0);
    return failed;
}

/* ---- libc's, under the names that both sizes of off_t have ------------------------------------- */

/* LMDB calls the plain names, foliofs, whose off_t is made 64 bits wide, the others. */
#define BOTH(name) __asm__(name) __attribute__((visibility("default")))

ssize_t recorded_pwrite(int fd, const void *buf, size_t len, off_t offset) BOTH("pwrite");
ssize_t recorded_pwrite64(int fd, const void *buf, size_t len, off_t offset) BOTH("pwrite64");
ssize_t recorded_pwritev2(int fd, const struct iovec *iov, int n, off_t offset, int flags)
    BOTH("pwritev64v2");
int recorded_fallocate(int fd, int mode, off_t offset, off_t len) BOTH("fallocate64");
int recorded_ftruncate(int fd, off_t len) BOTH("ftruncate");
int recorded_ftruncate64(int fd, off_t len) BOTH("ftruncate64");

ssize_t recorded_pwrite(int fd, const void *buf, size_t len, off_t offset)
{
    struct recorded r = { .begin = now(), .offset = (uint64_t)offset };
    struct iovec iov = { .iov_base = (void *)(uintptr_t)buf, .iov_len = len };
    ssize_t n = REAL(ssize_t, pwrite64, int, const void *, size_t, off_t)(fd, buf, len, offset);
    if (!is_recorded(fd))
        return n;
    r.through = is_through(fd);
    return note_write(n, &r, &iov, 1);
}

ssize_t recorded_pwrite64(int fd, const void *buf, size_t len, off_t offset)
{
    return recorded_pwrite(fd, buf, len, offset);
}

ssize_t recorded_pwritev2(int fd, const struct iovec *iov, int n, off_t offset, int flags)
{
    struct recorded r = { .begin = now(), .offset = (uint64_t)offset };
    ssize_t done = REAL(ssize_t, pwritev64v2, int, const struct iovec *, int, off_t,
                        int)(fd, iov, n, offset, flags);
    if (!is_recorded(fd))
        return done;
    r.through = is_through(fd) || (flags & (RWF_DSYNC | RWF_SYNC)) != 0;
    return note_write(done, &r, iov, n);
}

ssize_t writev(int fd, const struct iovec *iov, int n)
{
    if (!is_recorded(fd))
        return REAL(ssize_t, writev, int, const struct iovec *, int)(fd, iov, n);
    struct recorded r = { .begin = now(),
                          .offset = (uint64_t)lseek(fd, 0, SEEK_CUR),
                          .through = is_through(fd) };
    ssize_t done = REAL(ssize_t, writev, int, const struct iovec *, int)(fd, iov, n);
    return note_write(done, &r, iov, n);
}

ssize_t write(int fd, const void *buf, size_t len)
{
    if (!is_recorded(fd))
        return REAL(ssize_t, write, int, const void *, size_t)(fd, buf, len);
    struct iovec iov = { .iov_base = (void *)(uintptr_t)buf, .iov_len = len };
    return writev(fd, &iov, 1);
}

int fdatasync(int fd)
{
    struct recorded r = { .begin = now(), .kind = RECORDED_FLUSH };
    int failed = REAL(int, fdatasync, int)(fd);
    return is_recorded(fd) ? note_done(failed, &r) : failed;
}

int fsync(int fd)
{
    struct recorded r = { .begin = now(), .kind = RECORDED_FLUSH };
    int failed = REAL(int, fsync, int)(fd);
    return is_recorded(fd) ? note_done(failed, &r) : failed;
}

int recorded_fallocate(int fd, int mode, off_t offset, off_t len)
{
    struct recorded r = { .begin = now(),
                          .kind = mode == 0 ? RECORDED_GROW : RECORDED_ALIEN,
                          .offset = (uint64_t)(offset + len) };
    int failed = REAL(int, fallocate64, int, int, off_t, off_t)(fd, mode, offset, len);
    return is_recorded(fd) ? note_done(failed, &r) : failed;
}

int recorded_ftruncate(int fd, off_t len)
{
    struct recorded r = { .begin = now(), .kind = RECORDED_CUT, .offset = (uint64_t)len };
    int failed = REAL(int, ftruncate64, int, off_t)(fd, len);
    return is_recorded(fd) ? note_done(failed, &r) : failed;
}

int recorded_ftruncate64(int fd, off_t len)
{
    return recorded_ftruncate(fd, len);
}
