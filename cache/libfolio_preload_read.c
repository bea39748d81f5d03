/* libfolio_preload_read.c: read(2), fread(3) and their like into attached memory.
 *
 * Of a file that is read around the kernel's cache (O_DIRECT; direct I/O on FUSE and other network file systems) the
 * kernel pins the pages that the bytes are for, and stores through the pins when they come. For the pin a page is made
 * writable, and so dirty; but what comes after it has been written back nobody notices. So such bytes are read into
 * memory of our own, and copied from there by stores that fault.
 *
 *     program's buffer not attached    the call as it is
 *     of a file or a block device      by way of a piece of memory, whatever it may be pinned for
 *     of anything else                 the call as it is: pipes, sockets and terminals copy
 *
 * A read of up to PIECE_MOST bytes is one read(2). Of a longer one the pieces may lie apart, if others read by
 * the same offset meanwhile.
 *
 * What is called here is async-signal-safe, but for fread. */
#undef _FILE_OFFSET_BITS /* or pread below would be called pread64; off_t has 64 bits anyway */
#undef _FORTIFY_SOURCE   /* or read and others would have been defined by headers */
#include "cache/libfolio.h"

#include <dlfcn.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>

#undef fread_unlocked /* a macro, for few bytes */

#define PIECE_MOST ((size_t)1 << 20)
#define SMALL      ((size_t)4096)       /* what is on the stack */
#define READ_MOST  ((size_t)0x7ffff000) /* what Linux reads in one call */
#define IOV_MOST   1024

/* What these names meant without us; NULL: the system call. */
static struct {
    ssize_t (*read)(int fd, void *to, size_t bytes);
    ssize_t (*pread)(int fd, void *to, size_t bytes, off_t offset);
    ssize_t (*readv)(int fd, const struct iovec *iov, int count);
    ssize_t (*preadv)(int fd, const struct iovec *iov, int count, off_t offset);
    ssize_t (*preadv2)(int fd, const struct iovec *iov, int count, off_t offset, int flags);
    size_t (*fread)(void *to, size_t size, size_t count, FILE *stream);
    size_t (*fread_unlocked)(void *to, size_t size, size_t count, FILE *stream);
} next;

__attribute__((constructor)) static void find_next(void)
{
    *(void **)&next.read = dlsym(RTLD_NEXT, "read");
    *(void **)&next.pread = dlsym(RTLD_NEXT, "pread");
    *(void **)&next.readv = dlsym(RTLD_NEXT, "readv");
    *(void **)&next.preadv = dlsym(RTLD_NEXT, "preadv");
    *(void **)&next.preadv2 = dlsym(RTLD_NEXT, "preadv2");
    *(void **)&next.fread_unlocked = dlsym(RTLD_NEXT, "fread_unlocked");
    *(void **)&next.fread = dlsym(RTLD_NEXT, "fread");
}

static ssize_t read_next(int fd, void *to, size_t bytes)
{
    return next.read ? next.read(fd, to, bytes) : syscall(SYS_read, fd, to, bytes);
}

static ssize_t pread_next(int fd, void *to, size_t bytes, off_t offset)
{
    return next.pread ? next.pread(fd, to, bytes, offset)
                      : syscall(SYS_pread64, fd, to, bytes, offset);
}

/* The offset is two arguments; where a long has 64 bits the second is of no meaning. */
static ssize_t preadv2_next(int fd, const struct iovec *iov, int count, off_t offset, int flags)
{
    return next.preadv2 ? next.preadv2(fd, iov, count, offset, flags)
                        : syscall(SYS_preadv2, fd, iov, (long)count, offset, 0L, (long)flags);
}

/* ---- by way of memory of our own ---------------------------------------------------------------------- */

/* The call that reads: what was asked for tells, as a filter of system calls may know no other. */
enum call { CALL_READ, CALL_PREAD, CALL_PREADV2 };

struct reading {
    enum call call;
    int fd;
    const struct iovec *iov;
    int count;
    size_t length; /* of all of iov */
    off_t offset;  /* PREAD, PREADV2; -1: the descriptor's own */
    int flags;     /* PREADV2 */
};

struct piece {
    char *bytes;
    size_t size;
    bool mapped;
};

/* One of PIECE_MOST that nobody uses, or NULL: to have new pages costs several times what reading into them does. */
static char *_Atomic spare;

static void give_piece(void *arg)
{
    const struct piece *piece = arg;
    int before = errno;

    char *other = piece->mapped ? atomic_exchange(&spare, piece->bytes) : NULL;
    if (other)
        sys_munmap(other, PIECE_MOST);
    errno = before;
}

/* What is there, where that is enough or there is no memory. */
static void take_piece(struct piece *piece, size_t wanted)
{
    if (wanted <= piece->size)
        return;
    void *memory = atomic_exchange(&spare, NULL);
    if (!memory)
        memory =
            sys_mmap(NULL, PIECE_MOST, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory != MAP_FAILED)
        *piece = (struct piece){ memory, PIECE_MOST, true };
}

static bool by_own_offset(const struct reading *reading)
{
    return reading->call == CALL_READ || (reading->call == CALL_PREADV2 && reading->offset == -1);
}

/* How many bytes are wanted of the next piece. */
static size_t part_of(const struct reading *reading, const struct piece *piece, size_t done)
{
    size_t left = reading->length - done;

    return left < piece->size ? left : piece->size;
}

static ssize_t read_piece(const struct reading *reading, const struct piece *piece, size_t done)
{
    struct iovec part = { piece->bytes, part_of(reading, piece, done) };
    off_t offset = by_own_offset(reading) ? -1 : reading->offset + (off_t)done;

    switch (reading->call) {
    case CALL_READ:
        return read_next(reading->fd, part.iov_base, part.iov_len);
    case CALL_PREAD:
        return pread_next(reading->fd, part.iov_base, part.iov_len, offset);
    case CALL_PREADV2:
        return preadv2_next(reading->fd, &part, 1, offset, reading->flags);
    }
    return -1;
}

/* Here a thread may be cancelled, as in the call of the program's; not once something was read. */
static ssize_t read_first(const struct reading *reading, struct piece *piece)
{
    ssize_t got;

    pthread_cleanup_push(give_piece, piece);
    got = read_piece(reading, piece, 0);
    pthread_cleanup_pop(0);
    return got;
}

/* By the kernel, which stores as the program would, and where that is not possible stops instead of raising a signal.
 * Returns how much was stored. */
static size_t store(void *to, const void *from, size_t bytes)
{
    struct iovec there = { to, bytes }, here = { (void *)(uintptr_t)from, bytes };
    size_t done = 0;

    while (done < bytes) {
        ssize_t stored = process_vm_readv((pid_t)syscall(SYS_gettid), &there, 1, &here, 1, 0);
        if (stored < 0 && errno == EFAULT)
            break;
        if (stored <= 0) { /* it is not allowed, say */
            memcpy(there.iov_base, here.iov_base, there.iov_len);
            return bytes;
        }
        done += (size_t)stored;
        there = (struct iovec){ (char *)to + done, bytes - done };
        here = (struct iovec){ (char *)(uintptr_t)from + done, bytes - done };
    }
    return done;
}

/* count bytes, of which done have been read before, to where the program wants them.   Returns how many came there. */
static size_t deliver(const struct reading *reading, const char *bytes, size_t count, size_t done)
{
    size_t delivered = 0, skip = done;

    for (int i = 0; i < reading->count && delivered < count; i++) {
        const struct iovec *to = &reading->iov[i];
        if (skip >= to->iov_len) {
            skip -= to->iov_len;
            continue;
        }
        size_t part = to->iov_len - skip;
        if (part > count - delivered)
            part = count - delivered;
        size_t stored = store((char *)to->iov_base + skip, bytes + delivered, part);
        delivered += stored;
        skip = 0;
        if (stored < part)
            break;
    }
    return delivered;
}

/* The rest, from the second piece on.   Returns what was read and delivered, or -1 if that is nothing. */
static ssize_t go_on(const struct reading *reading, const struct piece *piece, ssize_t got)
{
    size_t done = 0;

    while (got > 0) {
        size_t wanted = part_of(reading, piece, done);
        size_t delivered = deliver(reading, piece->bytes, (size_t)got, done);
        done += delivered;
        if (delivered < (size_t)got) {
            if (by_own_offset(reading))
                (void)lseek(reading->fd, (off_t)delivered - got, SEEK_CUR);
            errno = EFAULT;
            got = -1;
        } else if ((size_t)got < wanted || done == reading->length) {
            break;
        } else {
            got = read_piece(reading, piece, done);
        }
    }
    return done > 0 ? (ssize_t)done : got;
}

__attribute__((noinline)) static ssize_t read_into(const struct reading *reading)
{
    _Alignas(SMALL) char small[SMALL]; /* as a disk may want it */
    struct piece piece = { small, sizeof(small), false };
    int state;

    take_piece(&piece, reading->length);
    ssize_t got = read_first(reading, &piece);
    if (got > 0) {
        pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, &state);
        got = go_on(reading, &piece, got);
        pthread_setcancelstate(state, NULL);
    }
    give_piece(&piece);
    return got;
}

static bool attached(const void *to, size_t bytes)
{
    return __builtin_expect(folio_attached_at((uintptr_t)to, bytes), 0);
}

/* Does it have an offset, to which a call comes back, and no packets? No request to anybody. */
static bool is_file(int fd)
{
    struct statx stat;
    struct stat old;
    int before = errno;
    mode_t mode = 0;

    if (statx(fd, "", AT_EMPTY_PATH | AT_STATX_DONT_SYNC, STATX_TYPE, &stat) == 0)
        mode = stat.stx_mode;
    else if (fstat(fd, &old) == 0) /* perhaps it is not allowed */
        mode = old.st_mode;
    errno = before;
    return S_ISREG(mode) || S_ISBLK(mode);
}

/* Is any of it attached? And all of it not nonsense: that the kernel says.   *length: of all. */
static bool any_attached(const struct iovec *iov, int count, size_t *length)
{
    bool any = false;

    *length = 0;
    if (count <= 0 || count > IOV_MOST || !attached(NULL, SIZE_MAX))
        return false;
    for (int i = 0; i < count; i++) {
        if (iov[i].iov_len > (size_t)SSIZE_MAX - *length)
            return false;
        *length += iov[i].iov_len;
        any = any || attached(iov[i].iov_base, iov[i].iov_len);
    }
    if (*length > READ_MOST)
        *length = READ_MOST;
    return any;
}

/* ---- the calls ----------------------------------------------------------------------------------------- */

FOLIO_EXPORT ssize_t read(int fd, void *to, size_t bytes)
{
    if (attached(to, bytes) && is_file(fd)) {
        struct iovec iov = { to, bytes < READ_MOST ? bytes : READ_MOST };
        struct reading reading = {
            .call = CALL_READ, .fd = fd, .iov = &iov, .count = 1, .length = iov.iov_len
        };
        return read_into(&reading);
    }
    return read_next(fd, to, bytes);
}

FOLIO_EXPORT ssize_t pread(int fd, void *to, size_t bytes, off_t offset)
{
    if (attached(to, bytes) && offset >= 0 && is_file(fd)) {
        struct iovec iov = { to, bytes < READ_MOST ? bytes : READ_MOST };
        struct reading reading = { .call = CALL_PREAD,
                                   .fd = fd,
                                   .iov = &iov,
                                   .count = 1,
                                   .length = iov.iov_len,
                                   .offset = offset };
        return read_into(&reading);
    }
    return pread_next(fd, to, bytes, offset);
}

FOLIO_EXPORT ssize_t readv(int fd, const struct iovec *iov, int count)
{
    struct reading reading = { .call = CALL_READ, .fd = fd, .iov = iov, .count = count };

    if (any_attached(iov, count, &reading.length) && is_file(fd))
        return read_into(&reading);
    return next.readv ? next.readv(fd, iov, count) : syscall(SYS_readv, fd, iov, (long)count);
}

FOLIO_EXPORT ssize_t preadv(int fd, const struct iovec *iov, int count, off_t offset)
{
    struct reading reading = {
        .call = CALL_PREAD, .fd = fd, .iov = iov, .count = count, .offset = offset
    };

    if (any_attached(iov, count, &reading.length) && offset >= 0 && is_file(fd))
        return read_into(&reading);
    return next.preadv ? next.preadv(fd, iov, count, offset)
                       : syscall(SYS_preadv, fd, iov, (long)count, offset, 0L);
}

FOLIO_EXPORT ssize_t preadv2(int fd, const struct iovec *iov, int count, off_t offset, int flags)
{
    struct reading reading = {
        .call = CALL_PREADV2, .fd = fd, .iov = iov, .count = count, .offset = offset, .flags = flags
    };

    if (any_attached(iov, count, &reading.length) && offset >= -1 && is_file(fd))
        return read_into(&reading);
    return preadv2_next(fd, iov, count, offset, flags);
}

FOLIO_EXPORT ssize_t pread64(int fd, void *to, size_t bytes, off_t offset)
    __attribute__((alias("pread")));
FOLIO_EXPORT ssize_t preadv64(int fd, const struct iovec *iov, int count, off_t offset)
    __attribute__((alias("preadv")));
FOLIO_EXPORT ssize_t preadv64v2(int fd, const struct iovec *iov, int count, off_t offset, int flags)
    __attribute__((alias("preadv2")));

/* ---- the C library's own names for them: what _FORTIFY_SOURCE makes of the calls, and older aliases ------ */

/* Room for less than is read is the end of the program. */
_Noreturn void __chk_fail(void);

FOLIO_EXPORT ssize_t __read(int fd, void *to, size_t bytes) __attribute__((alias("read")));
FOLIO_EXPORT ssize_t __pread64(int fd, void *to, size_t bytes, off_t offset)
    __attribute__((alias("pread")));
FOLIO_EXPORT ssize_t __read_chk(int fd, void *to, size_t bytes, size_t room);
FOLIO_EXPORT ssize_t __pread_chk(int fd, void *to, size_t bytes, off_t offset, size_t room);
FOLIO_EXPORT ssize_t __pread64_chk(int fd, void *to, size_t bytes, off_t offset, size_t room)
    __attribute__((alias("__pread_chk")));
FOLIO_EXPORT size_t __fread_chk(void *to, size_t room, size_t size, size_t count, FILE *stream);
FOLIO_EXPORT size_t __fread_unlocked_chk(void *to, size_t room, size_t size, size_t count,
                                         FILE *stream);

ssize_t __read_chk(int fd, void *to, size_t bytes, size_t room)
{
    if (bytes > room)
        __chk_fail();
    return read(fd, to, bytes);
}

ssize_t __pread_chk(int fd, void *to, size_t bytes, off_t offset, size_t room)
{
    if (bytes > room)
        __chk_fail();
    return pread(fd, to, bytes, offset);
}

/* ---- fread ------------------------------------------------------------------------------------------------ */

/* A stream reads large parts to where they are wanted, by calls that nobody can come between. */
static size_t fread_by(const struct piece *piece, char *to, size_t bytes, FILE *stream)
{
    size_t done = 0, wanted, got;

    do {
        wanted = bytes - done < piece->size ? bytes - done : piece->size;
        got = next.fread_unlocked(piece->bytes, 1, wanted, stream);
        memcpy(to + done, piece->bytes, got);
        done += got;
    } while (got == wanted && done < bytes);
    return done;
}

static size_t fread_pieces(void *to, size_t bytes, FILE *stream)
{
    char small[SMALL];
    struct piece piece = { small, sizeof(small), false };
    size_t done;

    take_piece(&piece, bytes);
    pthread_cleanup_push(give_piece, &piece);
    done = fread_by(&piece, to, bytes, stream);
    pthread_cleanup_pop(1);
    return done;
}

static void unlock_stream(void *stream)
{
    funlockfile(stream);
}

static size_t fread_locked(void *to, size_t bytes, FILE *stream)
{
    size_t done;

    flockfile(stream);
    pthread_cleanup_push(unlock_stream, stream);
    done = fread_pieces(to, bytes, stream);
    pthread_cleanup_pop(1);
    return done;
}

/* Of how much, if any of it is attached; else 0. */
static size_t attached_bytes(const void *to, size_t size, size_t count)
{
    size_t bytes;

    if (!next.fread || !next.fread_unlocked)
        find_next(); /* another library's constructor reads */
    if (__builtin_mul_overflow(size, count, &bytes) || !attached(to, bytes))
        return 0;
    return bytes;
}

FOLIO_EXPORT size_t fread(void *to, size_t size, size_t count, FILE *stream)
{
    size_t bytes = attached_bytes(to, size, count);

    return bytes ? fread_locked(to, bytes, stream) / size : next.fread(to, size, count, stream);
}

FOLIO_EXPORT size_t fread_unlocked(void *to, size_t size, size_t count, FILE *stream)
{
    size_t bytes = attached_bytes(to, size, count);

    return bytes ? fread_pieces(to, bytes, stream) / size
                 : next.fread_unlocked(to, size, count, stream);
}

static void check_room(size_t room, size_t size, size_t count)
{
    size_t bytes;

    if (__builtin_mul_overflow(size, count, &bytes) || bytes > room)
        __chk_fail();
}

size_t __fread_chk(void *to, size_t room, size_t size, size_t count, FILE *stream)
{
    check_room(room, size, count);
    return fread(to, size, count, stream);
}

size_t __fread_unlocked_chk(void *to, size_t room, size_t size, size_t count, FILE *stream)
{
    check_room(room, size, count);
    return fread_unlocked(to, size, count, stream);
}
