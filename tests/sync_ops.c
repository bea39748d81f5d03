/* sync_ops: writes that are durable when they return, without an fsync.
 *
 *     sync_ops prepare DIRECTORY     the files, and one end of what is durable by fsync
 *     sync_ops write DIRECTORY       one after the other, in each way there is
 *     sync_ops verify DIRECTORY      after the daemon was killed: exit 1 and a line for each that is not there
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/aio_abi.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#define OLD    (96u * 1024) /* bytes that are there before */
#define LEN    (64u * 1024)
#define SOURCE "source"

static const struct way {
    const char *name;
    int flags; /* of its descriptor */
    int (*act)(int fd, char *buf);
    off_t offset;
    off_t size; /* afterwards */
} ways[];

static int write_at_once(int fd, char *buf)
{
    return pwrite(fd, buf, LEN, OLD) == LEN ? 0 : -1;
}

static int write_bit_by_bit(int fd, char *buf)
{
    if (lseek(fd, OLD, SEEK_SET) < 0)
        return -1;
    for (size_t done = 0; done < LEN; done += 1024)
        if (write(fd, buf + done, 1024) != 1024)
            return -1;
    return 0;
}

static int write_dsync(int fd, char *buf)
{
    struct iovec iov = { .iov_base = buf, .iov_len = LEN };
    return pwritev2(fd, &iov, 1, OLD, RWF_DSYNC) == LEN ? 0 : -1;
}

static int write_sync(int fd, char *buf)
{
    struct iovec iov = { .iov_base = buf, .iov_len = LEN };
    return pwritev2(fd, &iov, 1, OLD, RWF_SYNC) == LEN ? 0 : -1;
}

/* Inside the file, or the kernel would not do it asynchronously; half by half. */
static int write_async(int fd, char *buf)
{
    aio_context_t context = 0;
    struct iocb cb[2] = { 0 }, *list[2] = { &cb[0], &cb[1] };
    struct io_event events[2];
    for (unsigned i = 0; i < 2; i++) {
        cb[i].aio_fildes = (unsigned)fd;
        cb[i].aio_lio_opcode = IOCB_CMD_PWRITE;
        cb[i].aio_buf = (unsigned long)buf + i * LEN / 2;
        cb[i].aio_nbytes = LEN / 2;
        cb[i].aio_offset = i * LEN / 2;
    }
    if (syscall(SYS_io_setup, 2, &context) != 0 || syscall(SYS_io_submit, context, 2, list) != 2 ||
        syscall(SYS_io_getevents, context, 2, 2, events, NULL) != 2)
        return -1;
    return events[0].res == LEN / 2 && events[1].res == LEN / 2 ? 0 : -1;
}

/* Beside a mapping, which has a copy of what is written over. */
static int write_mapped(int fd, char *buf)
{
    volatile char *map = mmap(NULL, OLD, PROT_READ, MAP_SHARED, fd, 0);
    if (map == MAP_FAILED)
        return errno == ENODEV ? write_at_once(fd, buf) : -1;
    for (size_t i = 0; i < OLD; i += 4096)
        (void)map[i];
    return pwrite(fd, buf, LEN, OLD - LEN / 2) == LEN ? 0 : -1;
}

static int copy(int fd, char *buf)
{
    int from = open(SOURCE, O_RDWR | O_CREAT, 0644);
    loff_t in = 0, out = OLD;
    if (from < 0 || pwrite(from, buf, LEN, 0) != LEN)
        return -1;
    for (size_t done = 0; done < LEN;) {
        ssize_t n = copy_file_range(from, &in, fd, &out, LEN - done, 0);
        if (n <= 0)
            return -1;
        done += (size_t)n;
    }
    return close(from);
}

static int allocate(int fd, char *buf)
{
    memset(buf, 0, LEN);
    return posix_fallocate(fd, OLD, LEN) == 0 ? 0 : -1;
}

#define RW O_RDWR
static const struct way ways[] = {
    { "O_SYNC", RW | O_SYNC, write_at_once, OLD, OLD + LEN },
    { "O_DSYNC", RW | O_DSYNC, write_bit_by_bit, OLD, OLD + LEN },
    { "O_WRONLY", O_WRONLY | O_DSYNC, write_bit_by_bit, OLD, OLD + LEN },
    { "O_APPEND", O_WRONLY | O_APPEND | O_SYNC, write_bit_by_bit, OLD, OLD + LEN },
    { "O_DIRECT", RW | O_DSYNC | O_DIRECT, write_at_once, OLD, OLD + LEN },
    { "RWF_DSYNC", RW, write_dsync, OLD, OLD + LEN },
    { "RWF_SYNC", RW, write_sync, OLD, OLD + LEN },
    { "aio", RW | O_DSYNC, write_async, 0, OLD },
    { "aio-O_DIRECT", RW | O_SYNC | O_DIRECT, write_async, 0, OLD },
    { "mapped", RW | O_SYNC, write_mapped, OLD - LEN / 2, 0 },
    { "copy_file_range", RW | O_SYNC, copy, OLD, OLD + LEN },
    { "fallocate", RW | O_SYNC, allocate, OLD, OLD + LEN },
};
#define WAYS (sizeof ways / sizeof ways[0])

static void die(const char *what, const char *name)
{
    fprintf(stderr, "%s: %s: %s\n", name, what, strerror(errno));
    exit(2);
}

static char *pattern(const char *name)
{
    char *buf = aligned_alloc(4096, OLD);
    if (buf == NULL)
        die("no memory", name);
    for (size_t i = 0; i < OLD; i++)
        buf[i] = (char)(i / 512 * 7 + i % 251 + (unsigned char)name[strlen(name) - 1]);
    return buf;
}

static void prepare(void)
{
    for (size_t i = 0; i < WAYS; i++) {
        char *buf = calloc(1, OLD);
        int fd = open(ways[i].name, O_RDWR | O_CREAT | O_TRUNC, 0644);
        if (fd < 0 || buf == NULL || pwrite(fd, memset(buf, 'o', OLD), OLD, 0) != OLD ||
            fsync(fd) != 0 || close(fd) != 0)
            die("prepare", ways[i].name);
        free(buf);
    }
    int dir = open(".", O_RDONLY);
    if (dir < 0 || fsync(dir) != 0 || close(dir) != 0)
        die("fsync", ".");
}

/* They stay open: closing may write as well. */
static void write_all(void)
{
    for (size_t i = 0; i < WAYS; i++) {
        char *buf = pattern(ways[i].name);
        int fd = open(ways[i].name, ways[i].flags);
        if (fd < 0 || ways[i].act(fd, buf) != 0)
            die("write", ways[i].name);
    }
    puts("written");
    fflush(stdout);
    pause();
}

static bool is_there(const struct way *way)
{
    char *want = pattern(way->name), *got = malloc(LEN);
    int fd = open(way->name, O_RDONLY);
    struct stat st;
    if (way->act == allocate)
        memset(want, 0, LEN);
    off_t offset = way->offset, size = way->size;
    if (fd < 0 || got == NULL || fstat(fd, &st) != 0)
        die("verify", way->name);
    if (way->act == write_mapped) { /* where it could be mapped */
        size = st.st_size;
        offset = size == OLD + LEN ? OLD : offset;
    }
    bool there =
        st.st_size == size && pread(fd, got, LEN, offset) == LEN && memcmp(got, want, LEN) == 0;
    if (!there)
        printf("%s: not there after the write, %lld bytes\n", way->name, (long long)st.st_size);
    close(fd);
    free(want);
    free(got);
    return there;
}

int main(int argc, char **argv)
{
    bool there = true;
    if (argc != 3 || chdir(argv[2]) != 0)
        die("usage: sync_ops prepare|write|verify DIRECTORY", argc == 3 ? argv[2] : "sync_ops");
    if (strcmp(argv[1], "prepare") == 0)
        prepare();
    else if (strcmp(argv[1], "write") == 0)
        write_all();
    else
        for (size_t i = 0; i < WAYS; i++)
            there &= is_there(&ways[i]);
    return there ? 0 : 1;
}
