#include "fs/fuse_wire.h"

#include <assert.h>
#include <errno.h>
#include <fuse_lowlevel.h>
#include <linux/fuse.h>
#include <stddef.h>
#include <string.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#include "fs/data.h"
#include "fs/fuse_ring.h"

#define WANTED (WIRE_PARALLEL_DIROPS | WIRE_KILLPRIV_V2 | WIRE_DIRECT_IO_ALLOW_MMAP)

/* Of struct fuse_init_in and _out since protocol 7.36; the headers we build with may be older. */
#define INIT_IN_FLAGS2  16u
#define INIT_OUT_FLAGS2 32u

static void see_init(struct wire *wire, const struct fuse_in_header *in, const void *arg,
                     size_t len)
{
    const struct fuse_init_in *init = arg;
    const uint32_t *flags2 = (const uint32_t *)arg + INIT_IN_FLAGS2 / sizeof(uint32_t);
    if (len < INIT_IN_FLAGS2)
        return;
    wire->offered = init->flags;
    if ((init->flags & FUSE_INIT_EXT) != 0 && len >= INIT_IN_FLAGS2 + sizeof *flags2)
        wire->offered |= (uint64_t)*flags2 << 32;
    atomic_store(&wire->init_unique, in->unique);
}

void wire_amend_request(void *userdata, char *buf, size_t len)
{
    struct wire *wire = userdata;
    const struct fuse_in_header *in = (const void *)buf;
    char *arg = buf + sizeof *in;
    len -= sizeof *in;
    if (in->opcode == FUSE_WRITE && len >= sizeof(struct fuse_write_in)) {
        struct fuse_write_in *write = (void *)arg;
        if ((write->write_flags & FUSE_WRITE_KILL_SUIDGID) != 0)
            write->flags |= WIRE_KILL_PRIV;
    } else if (in->opcode == FUSE_OPEN && len >= sizeof(struct fuse_open_in)) {
        struct fuse_open_in *open = (void *)arg;
        if ((open->open_flags & FUSE_OPEN_KILL_SUIDGID) != 0)
            open->flags |= WIRE_KILL_PRIV;
    } else if (in->opcode == FUSE_CREATE && len >= sizeof(struct fuse_create_in)) {
        struct fuse_create_in *create = (void *)arg;
        if ((create->open_flags & FUSE_OPEN_KILL_SUIDGID) != 0)
            create->flags |= WIRE_KILL_PRIV;
    } else if (in->opcode == FUSE_INIT) {
        see_init(wire, in, arg, len);
    }
}

#define OFF_CORE_NS \
    20000u             /* a look takes a fraction of a microsecond, unless others ran meanwhile */
#define SKIP_SHIFT 10u /* at most 2^10 times */

static __attribute__((noinline)) uint64_t now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

/* Nothing came of it. */
static void spun_in_vain(struct wire *wire)
{
    uint32_t n = atomic_load(&wire->in_vain);
    if (n < SKIP_SHIFT)
        atomic_store(&wire->in_vain, n + 1);
    atomic_store(&wire->skip, 1u << n);
}

static __attribute__((noinline)) bool request_waits(struct pollfd *pollfd)
{
    return poll(pollfd, 1, 0) != 0;
}

static void spin(struct wire *wire, int fd)
{
    uint64_t now = now_ns(), last = now, until = now + wire->spin_ns;
    wire->pollfd = (struct pollfd){ .fd = fd, .events = POLLIN };
    while (!request_waits(&wire->pollfd)) {
        now = now_ns();
        if (now > until || now - last > OFF_CORE_NS) {
            spun_in_vain(wire);
            return;
        }
        last = now;
    }
    atomic_store(&wire->in_vain, 0);
}

static void spin_if_worthwhile(struct wire *wire, int fd)
{
    if (wire->spin_ns == 0 || atomic_exchange(&wire->spinning, true))
        return;
    uint32_t skip = atomic_load(&wire->skip);
    if (skip > 0)
        atomic_store(&wire->skip, skip - 1);
    else
        spin(wire, fd);
    atomic_store(&wire->spinning, false);
}

#define READERS_LEAST 2u
#define READERS_MOST  1024u
#define MISS_COSTS    3 /* to wake a parked thread, in requests that needed none */
#define MISSED_MOST   64

/* Returns true: it is one more of those that read. */
static __attribute__((noinline)) bool join_readers(struct wire *wire)
{
    uint32_t n = atomic_load(&wire->readers), most = atomic_load(&wire->readers_most);
    while (n < most)
        if (atomic_compare_exchange_weak(&wire->readers, &n, n + 1))
            return true;
    return false;
}

/* Whoever leaves last looks for one that is parked, and who parks looks once more whether one is left: one of
 * them sees the other.   Returns false: interrupted. */
static bool begin_reading(struct wire *wire)
{
    bool woken = true;
    while (!join_readers(wire)) {
        atomic_fetch_add(&wire->parked, 1);
        bool parks = atomic_load(&wire->readers) > 0;
        if (parks)
            woken = sem_wait(&wire->more) == 0;
        atomic_fetch_sub(&wire->parked, 1);
        if (!woken)
            return false;
        if (parks) { /* however many there are now */
            atomic_fetch_add(&wire->readers, 1);
            return true;
        }
    }
    return true;
}

/* One more than there were was needed, or not. Where that is often so more may read, where it is seldom less. Others
 * may count at the same time: it need not be exact. */
static void set_readers_most(struct wire *wire, bool more)
{
    uint32_t most = atomic_load(&wire->readers_most);
    int missed = atomic_load(&wire->missed) + (more ? MISS_COSTS : -1);
    if (missed > MISSED_MOST && most < READERS_MOST)
        atomic_store(&wire->readers_most, most + 1);
    else if (missed < -MISSED_MOST && most > READERS_LEAST)
        atomic_store(&wire->readers_most, most - 1);
    atomic_store(&wire->missed, missed > MISSED_MOST || missed < -MISSED_MOST ? 0 : missed);
}

static void end_reading(struct wire *wire)
{
    bool more = atomic_fetch_sub(&wire->readers, 1) == 1 && atomic_load(&wire->parked) > 0;
    if (more)
        (void)sem_post(&wire->more);
    set_readers_most(wire, more);
}

/* To libfuse the end of the connection is ENODEV only; of other errors it tells stderr, where a thread that is cancelled
 * keeps the lock. The connection may also end between a thread's choosing a request and its copying it out
 * (fuse_dev_do_read). */
static void note_error(struct wire *wire)
{
    if (errno == EINTR || errno == EAGAIN || errno == ENOENT || errno == ENODEV)
        return;
    if (errno != ECONNABORTED)
        atomic_store(&wire->error, errno);
    errno = ENODEV;
}

static _Thread_local uint64_t last_unique;

/* FORGET gets its number when it is read, INTERRUPT and a reply have that of another. */
static __attribute__((noinline)) void note_order(struct wire *wire, const struct fuse_in_header *in)
{
    if (in->opcode == FUSE_FORGET || in->opcode == FUSE_BATCH_FORGET ||
        in->opcode == FUSE_INTERRUPT || in->opcode == FUSE_NOTIFY_REPLY)
        return;
    if (in->unique < last_unique)
        atomic_store(&wire->unordered, true);
    last_unique = in->unique;
    request_order_set(atomic_load_explicit(&wire->unordered, memory_order_relaxed) ? 0
                                                                                   : in->unique);
}

/* A cancellation point, as libfuse needs it to end its threads. Nothing here, inlined or not, has a
 * local variable in memory: a cancelled frame is not left in order, and AddressSanitizer would take
 * its variables for live ones later. */
static ssize_t wire_read(int fd, void *buf, size_t size, void *userdata)
{
    if (!begin_reading(userdata))
        return -1;
    spin_if_worthwhile(userdata, fd);
    ssize_t n = read(fd, buf, size);
    end_reading(userdata);
    if (n < 0)
        note_error(userdata);
    if (n >= (ssize_t)sizeof(struct fuse_in_header)) {
        note_order(userdata, buf);
        wire_amend_request(userdata, buf, (size_t)n);
    }
    return n;
}

/* Returns true: it is the reply to INIT. */
static bool amend_init(struct wire *wire, const struct iovec *iov, int count)
{
    const struct fuse_out_header *out = iov[0].iov_base;
    if (out->unique != atomic_load(&wire->init_unique))
        return false;
    atomic_store(&wire->init_unique, 0);
    if (out->error != 0 || count != 2 || iov[1].iov_len < INIT_OUT_FLAGS2 + sizeof(uint32_t))
        return out->error == 0;
    struct fuse_init_out *init = iov[1].iov_base;
    char *at2 = (char *)iov[1].iov_base + INIT_OUT_FLAGS2;
    uint64_t add = WANTED & wire->offered;
    if (wire->ring != NULL)
        add |= WIRE_OVER_IO_URING & wire->offered;
    uint32_t flags2 = 0;
    if ((init->flags & FUSE_INIT_EXT) != 0)
        memcpy(&flags2, at2, sizeof flags2);
    flags2 |= (uint32_t)(add >> 32);
    init->flags |= (uint32_t)add;
    if (flags2 != 0) {
        init->flags |= FUSE_INIT_EXT;
        memcpy(at2, &flags2, sizeof flags2);
    }
    wire->agreed = init->flags | (uint64_t)flags2 << 32;
    return true;
}

static ssize_t init_writev(struct wire *wire, int fd, struct iovec *iov, int count)
{
    bool last = amend_init(wire, iov, count);
    ssize_t n = writev(fd, iov, count);
    if (last && n > 0 && wire_agreed(wire, WIRE_OVER_IO_URING))
        ring_begin(wire->ring);
    if (last && n > 0 && wire->agreed_upon != NULL)
        wire->agreed_upon(wire);
    return n;
}

/* ENOENT: libfuse takes it for a request that was interrupted, and says nothing. */
static ssize_t write_reply(struct wire *wire, int fd, struct iovec *iov, int count)
{
    ssize_t n = -1;
    errno = ENOENT;
    pthread_rwlock_rdlock(&wire->replying);
    if (!wire->ended && wire->ring != NULL)
        n = ring_reply(wire->ring, iov, count);
    if (!wire->ended && n < 0)
        n = writev(fd, iov, count);
    pthread_rwlock_unlock(&wire->replying);
    return n;
}

void wire_end(struct wire *wire)
{
    pthread_rwlock_wrlock(&wire->replying);
    wire->ended = true;
    pthread_rwlock_unlock(&wire->replying);
}

static ssize_t wire_writev(int fd, struct iovec *iov, int count, void *userdata)
{
    struct wire *wire = userdata;
    const struct fuse_out_header *out = iov[0].iov_base;
    assert(count > 0); /* there is always a header */
    if (iov[0].iov_len < sizeof *out)
        return writev(fd, iov, count);
    if (atomic_load_explicit(&wire->init_unique, memory_order_relaxed) != 0)
        return init_writev(wire, fd, iov, count);
    if (out->unique != 0)
        return write_reply(wire, fd, iov, count);
    ssize_t n = writev(fd, iov, count);
    /* As front_tell_size() expects: no word of that. */
    if (n < 0 && errno == EFAULT && iov[count - 1].iov_base == NULL)
        n = (ssize_t)sizeof(struct fuse_out_header);
    return n;
}

int wire_attach(struct fuse_session *se, struct wire *wire)
{
    static const struct fuse_custom_io io = { .read = wire_read, .writev = wire_writev };
    (void)sem_init(&wire->more, 0, 0);
    (void)pthread_rwlock_init(&wire->replying, NULL);
    atomic_store(&wire->readers_most, READERS_LEAST);
    return fuse_session_custom_io(se, &io, fuse_session_fd(se));
}
