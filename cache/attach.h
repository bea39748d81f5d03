/* attach.h: the daemon's half of attached mappings (attach_proto.h says what is spoken).
 *
 * Threads, all of them worker.h's:
 *
 *     accept     takes connections, frees what is left of clients that are gone, and tells of those that
 *                keep us waiting. It waits for no client itself (but for a new one, where there
 *                are as many as there can be, that has sent what is slow to close)
 *     requests   one per client: reads packets, answers; may sleep. When the client has hung up it waits
 *                for its address space to go, ends its ranges, and closes what is left of it. Closing what a
 *                client has sent may take as long as the client likes: it waits for that, and nobody for it
 *     events     one per client: reads the userfaultfd. It never waits for a page, a commit or
 *                throttling: until it has read a client's events, whoever write-protects in that client
 *                gets -EAGAIN and tries again, perhaps with that page locked
 *     faults     a pool: what the events' threads could not resolve at once
 *
 *      a fault:   event --> handle_mm_fault(NOWAIT) -- 0: mapped, and the client runs
 *                              |                       1: likewise, and the pool reads ahead
 *                              | -EAGAIN
 *                              v
 *                 pool  --> handle_mm_fault         -- 0
 *                              | error                 beyond end of file: the memfd is cut: SIGBUS
 *                              v                       no memory: later
 *                           the page is poisoned       else SIGBUS; healed soon, so that it is tried again
 *
 * A client is nothing that is trusted. What it sends is checked; its addresses are used only in ioctls
 * on its own userfaultfd; the pages it maps are those of files whose descriptors it showed us.
 *
 * A connection that hangs up does not mean that no store comes any more: the ranges stay, and their
 * faults are answered, until the client's address space is gone.
 *
 * A client that keeps its address space locked holds the threads that were about to change it: at most
 * FAULT_WORKERS_CLIENT of the pool, its own, and one that write-protects (uffd.h). Others go on.
 *
 * Address space. A range has room for its pages in this process before it is tracked (memfd_reserve), or MAP fails with
 * ENOMEM: no fault needs any. A client has a quarter of it at most, and half of the mappings and descriptors; so have
 * all clients of one user together, unless he is root or our own. What nobody has attached any more is given back when
 * others are: memfd.h.
 *
 * Locks: client->work (held over a request, and so outside page locks), client->lock (its ranges; innermost),
 * attach->lock (clients, the pool's queue; innermost).
 */
#ifndef FOLIO_CACHE_ATTACH_H
#define FOLIO_CACHE_ATTACH_H

#include "cache/filemap.h"

struct attach_request;

struct attach_file {               /* one OPEN */
    struct address_space *mapping; /* mapping_use_memfd() has been called, until release */
    struct file_ra_state *ra;
    void *owner;     /* for release */
    uint64_t number; /* for stuck */
    bool writable;   /* a shared mapping may be stored to */
};

struct attach_ops {
    /* May the client map that way what fd (a descriptor it sent) stands for?
     * Returns 0 or what mmap(2) would fail with. */
    int (*open)(void *arg, int fd, const struct attach_request *rq, struct attach_file *out);
    void (*release)(void *arg, void *owner);
    /* A client has had its address space locked for so long that what the daemon wants to change in it
     * waits, and whoever wants that page, or the file, waits too. Once until it ends. pid: the client's
     * process, 0 if it is not one of ours to see; number: one file that is concerned, 0 if none is. */
    void (*stuck)(void *arg, pid_t pid, uint64_t number, unsigned seconds);
    /* Likewise some client, whoever it is, has kept files' memory locked, and so many threads with it (memfd.h). */
    void (*kept)(void *arg, unsigned nr, unsigned seconds);
    /* So many clients have kept threads waiting for more than a second; said again while it lasts. Of the
     * threads that write-protect pages for everybody each may hold one: have that many more. */
    void (*waiting)(void *arg, unsigned nr);
};

#define ATTACH_STUCK_S 5u /* so long */

struct attach_stats {
    uint64_t clients, ranges, pages; /* now */
    uint64_t stuck;                  /* clients now, as in attach_ops */
    uint64_t refused;                /* connections and OPENs */
    uint64_t queued, poisoned;       /* faults that had to wait; that ended in SIGBUS */
};

struct attach;

/* Serve a listening SOCK_SEQPACKET socket, which is closed in the end. */
int attach_start(struct attach **out, int listener, const struct attach_ops *ops, void *arg);
/* Write-protect every range, hang up on everybody, stop. What was stored is dirty in the cache. A thread that is held
 * by what its client has sent is left where it is, for the process to end. NULL is allowed.
 * Blocks: while a client that has ranges has its address space locked. */
void attach_stop(struct attach *a);
void attach_stats(struct attach *a, struct attach_stats *out);

#endif
