/* uffd.h: a vm_area in another process, which handed us its userfaultfd.
 *
 * The client mapped the file's memfd (memfd.h) and registered the range for missing, minor and
 * write-protect faults. Its page table is filled by UFFDIO_CONTINUE, write-protected from the first
 * moment, and emptied by punching the memfd. What the ioctls answer:
 *
 *     ESRCH   its address space is gone: nothing is mapped any more
 *     ENOENT  nothing of ours is registered there any more: unmapped, or mapped over; likewise
 *     EAGAIN  it is changing, and stays so until the change's event was read: again, with no lock
 *     EEXIST  the page is mapped already
 *
 * An ioctl waits while the client's address space is locked, which the client can make last: munmap(2) of
 * a file that some FUSE server does not answer for is enough. Nothing here bounds that; it is recorded, so
 * that it can be told (uffd_longest), and so that nobody else begins to wait for such a client only to
 * write-protect a page of it: -EBUSY.
 *
 * A uffd_vma never changes. When a part of a range is unmapped or moved, new ones take its place, and
 * an address is not given to another one while a fault of the old is being resolved (attach.c), but by a client
 * that moves its mappings without libfolio.
 */
#ifndef FOLIO_CACHE_UFFD_H
#define FOLIO_CACHE_UFFD_H

#include "cache/memory.h"

#define UFFD_PATIENCE_NS 1000000000u
#define UFFD_CALLS       8u /* of one client at a time that are recorded; those beyond wait like these */

/* The ioctls on one client that are under way. */
struct uffd_calls { /* (a) atomic */
    _Atomic bool
        protecting; /* somebody write-protects: one at a time, so that one at most is held (a) */
    struct uffd_call {
        _Atomic uint64_t since_ns; /* clock_monotonic; 0: free                              (a) */
        _Atomic uint64_t file;     /* written by who took it                                (a) */
    } call[UFFD_CALLS];
};

struct uffd_vma {
    struct vm_area vma;       /* first */
    int uffd;                 /* (c) */
    uint64_t addr;            /* (c) of vma.first, in the client */
    uint64_t file;            /* (c) its number, for who reads calls */
    struct uffd_calls *calls; /* (c) of its client; NULL: not recorded */
    /* Events are being read and dealt with: what is not at its address may have moved. NULL: none are. */
    const _Atomic bool *moving;
    bool writable; /* (c) shared, and stores are allowed: write-protection counts */
};

extern const struct vma_ops uffd_vma_ops;

/* A store to [first, last] faults from now on.   Returns 0; -EAGAIN: its events must be read first.
 * Blocks: while its address space is locked. */
int uffd_protect(struct uffd_vma *u, uint32_t first, uint32_t last);
/* Wake who waits for a fault of that page. Any thread, no lock. */
void uffd_wake(struct uffd_vma *u, uint32_t index);
/* Every touch of the page is a SIGBUS from now on, until it is mapped. gone: nobody can map it now
 * (page_call_while_gone), so what may be left there is the mark of its write-protection.
 * Returns 0, or -errno: -EEXIST: it is mapped, or has that mark. Whoever waits goes on in any case. */
int uffd_poison(struct uffd_vma *u, uint32_t index, bool gone);
/* Is the address space gone?   Blocks: while it is locked. */
bool uffd_dead(int uffd);
/* The call that has been under way longest: since when (clock_monotonic, nanoseconds), and about which
 * file.   Returns false: there is none. Any thread, no lock. */
bool uffd_longest(struct uffd_calls *calls, uint64_t *since_ns, uint64_t *file);

#endif
