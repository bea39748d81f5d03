/* fuse_wire.h: the bytes between the kernel and libfuse, where libfuse lags behind the kernel.
 *
 * libfuse 3.14 neither asks for some abilities the kernel offers nor hands on some flags of
 * requests. Every request and reply passes through two hooks (fuse_session_custom_io), which amend
 *
 *   the INIT reply   with FUSE_HANDLE_KILLPRIV_V2, FUSE_PARALLEL_DIROPS and, by FUSE_INIT_EXT,
 *                    FUSE_DIRECT_IO_ALLOW_MMAP, and, if there is a ring (fuse_ring.h),
 *                    FUSE_OVER_IO_URING: each only if the kernel's INIT offered it
 *   WRITE, OPEN and CREATE requests   with WIRE_KILL_PRIV in the open flags when the kernel asks to
 *                    clear suid and sgid: it decides by the caller's CAP_FSETID, which we cannot see
 *
 * And each request's place among all goes to request_order() (fs/data.h): its number, for Linux (to 6.18) numbers
 * requests as it queues them. Should some other kernel not do so, it shows: a thread that reads a lower number than
 * before. Not by the ring, which has a queue for each processor; nor are requests in order that had to wait for others in
 * the background (more than max_background): a truncation then overtakes writes unseen.
 *
 * Newer libfuse sets some of these bits itself; setting them twice is harmless, so there is one way
 * for all versions. With a custom read there is no splice, which we do not want anyway: requests
 * are copied once, into our cache.
 */
#ifndef FOLIO_FS_FUSE_WIRE_H
#define FOLIO_FS_FUSE_WIRE_H

#include <poll.h>
#include <pthread.h>
#include <semaphore.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct fuse_session;

/* In fi->flags: a bit that no O_ flag uses. */
#define WIRE_KILL_PRIV (1 << 30)

struct wire {
    _Atomic uint64_t init_unique;  /* the INIT request being answered; 0: none */
    uint64_t offered;              /* INIT flags of the kernel, flags2 in the upper half */
    uint64_t agreed;               /* INIT flags of the reply; 0: the hook was never reached */
    uint64_t spin_ns;              /* see wire_attach(); 0: sleep at once */
    _Atomic bool spinning;         /* a thread does */
    _Atomic uint32_t in_vain;      /* times in a row that no request came */
    _Atomic uint32_t skip;         /* so often sleep at once */
    struct pollfd pollfd;          /* the spinning thread's */
    _Atomic uint32_t readers;      /* threads that wait for a request */
    _Atomic uint32_t parked;       /* those that wait until no other does */
    sem_t more;                    /* for them */
    _Atomic uint32_t readers_most; /* others park */
    _Atomic int missed;            /* readers, lately */
    _Atomic bool unordered;        /* the numbers of requests tell nothing */
    _Atomic int error;             /* errno, if no request could be read; the session ends */
    pthread_rwlock_t replying;     /* held by who replies */
    bool ended;                    /* by wire_end(); (replying) */
    struct fuse_ring *ring; /* requests come by io_uring too (fuse_ring.h), if agreed; or NULL */
    void (*agreed_upon)(struct wire *wire); /* called when the kernel has that reply; or NULL */
};

/* Abilities to ask for; FUSE's own numbers. */
#define WIRE_PARALLEL_DIROPS      ((uint64_t)1 << 18)
#define WIRE_KILLPRIV_V2          ((uint64_t)1 << 28)
#define WIRE_DIRECT_IO_ALLOW_MMAP ((uint64_t)1 << 36) /* Linux 6.6 */
#define WIRE_OVER_IO_URING        ((uint64_t)1 << 41) /* Linux 6.14, where switched on */

/* Put the hooks into a mounted session, of which wire is the userdata's first member.
 *
 * Linux hands a request to the thread that has waited longest in read(2); where many wait, one client's
 * requests go round all of them, and none is ever the one that ran just now. So two wait there, and the others
 * until those are all at work; the more often that happens, the more may wait.
 *
 * With spin_ns one thread at a time looks for the next request so long before it sleeps: to wake a thread
 * on a core that has gone to sleep takes several times longer than to answer. It stops as soon as it
 * notices that somebody else needs the core, and looks ever more seldom while nothing comes of it.
 * Returns 0 or -errno: the session works on without them. */
int wire_attach(struct fuse_session *se, struct wire *wire);
/* The session's descriptor is about to be closed, and its number to be another's: no reply is under way when this
 * returns, and later ones come to nothing. Does not wait for notifications. */
void wire_end(struct wire *wire);

/* Amend a request, as the hooks do with those from /dev/fuse; userdata is the struct wire. */
void wire_amend_request(void *userdata, char *buf, size_t len);

static inline bool wire_agreed(const struct wire *wire, uint64_t ability)
{
    return (wire->agreed & ability) != 0;
}

#endif
