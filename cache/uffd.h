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
 * A uffd_vma never changes but that it goes: when a part of a range is unmapped or moved, new ones take its
 * place. A client that asks us to unmap is answered when no fault of the old ones is being resolved; one that moves
 * a mapping by mremap(2) asks nobody: it is said in an event, and until that was read the ioctls answer EAGAIN.
 * So a uffd_vma is at its address unless an event is being read and dealt with (or two threads' events came in the
 * wrong order: fs/DOORS.md):
 *
 *     who maps            tries moves for reading; nothing if gone     (uffd_map, uffd_poison)
 *     who reads events    moves for writing, until what moved is gone and its new ones are in i_mmap
 *                         (uffd_read_begin, uffd_read_end)
 *     who is asked        waits until what was read is noted           (uffd_read_wait)
 *     who protects        beside that, with i_mmap_lock, which the new ones wait for: if events are being
 *                         read still when it is done, it may have been the wrong address: again
 *     who ends a client   likewise, for each that is listed still; first nothing is mapped any more (uffd_close)
 *
 * Lock order: moves, then a client's lock, i_mmap_lock, the pool's. With a page locked it is only tried.
 */
#ifndef FOLIO_CACHE_UFFD_H
#define FOLIO_CACHE_UFFD_H

#include "cache/memory.h"
#include "cache/wait.h"

#define UFFD_PATIENCE_NS 1000000000u
#define UFFD_CALLS       8u /* of one client at a time that are recorded; those beyond wait like these */

/* One client's address space: what is being done to it. Zero-initialised is nothing, but for taken_fd. */
struct uffd_space {     /* (c) constant  (a) atomic */
    int taken_fd;       /* an eventfd, written when taken becomes true                    (c) */
    _Atomic bool taken; /* pages are not writable, or gone: its events' reader clears it  (a) */
    _Atomic bool protecting;       /* by one at a time, so that one at most is held (a) */
    struct uffd_call {             /* ioctls under way */
        _Atomic uint64_t since_ns; /* clock_monotonic; 0: free                              (a) */
        _Atomic uint64_t file;     /* written by who took it                                (a) */
    } call[UFFD_CALLS];
    struct rwsem moves;
    _Atomic uint32_t reads; /* odd while events are being read and what moved is noted    (a) */
    _Atomic bool closed;    /* nothing is mapped any more                                 (a) */
};

struct uffd_vma {
    struct vm_area vma;       /* first */
    int uffd;                 /* (c) */
    uint64_t addr;            /* (c) of vma.first, in the client */
    uint64_t file;            /* (c) its number, for who reads calls */
    struct uffd_space *space; /* (c) its client's; NULL: not recorded, and nothing moves */
    bool writable;            /* (c) shared, and stores are allowed: write-protection counts */
    _Atomic bool gone;        /* it is not at its address any more                         (a) */
};

extern const struct vma_ops uffd_vma_ops;

/* A store to [first, last] faults from now on; taken is not set.   Returns 0; -EAGAIN: its events must be read first.
 * Blocks: while its address space is locked. */
int uffd_protect(struct uffd_vma *u, uint32_t first, uint32_t last);
/* Wake who waits for a fault of that page. Any thread, no lock. */
void uffd_wake(struct uffd_vma *u, uint32_t index);
/* Every touch of the page is a SIGBUS from now on, until it is mapped. gone: nobody can map it now
 * (page_call_while_gone), so what may be left there is the mark of its write-protection.
 * Returns 0, or -errno: -EEXIST: it is mapped or poisoned, or has that mark; -EAGAIN: to be tried again. Whoever waits goes on,
 * but with -EAGAIN. */
int uffd_poison(struct uffd_vma *u, uint32_t index, bool gone);
/* Is the address space gone?   Blocks: while it is locked. */
bool uffd_dead(int uffd);
/* Close it; it was the last that keeps it, perhaps: that waits like an ioctl, and is recorded like one, of no file
 * (0). Context: nothing else is done in that address space any more.   Blocks: while it is locked. */
void uffd_drop(int uffd, struct uffd_space *space);
/* The call that has been under way longest: since when (clock_monotonic, nanoseconds), and about which
 * file.   Returns false: there is none. Any thread, no lock. */
bool uffd_longest(struct uffd_space *space, uint64_t *since_ns, uint64_t *file);
/* Around reading events and noting what they say has moved, with no fault resolved in between. One thread of
 * a client.   Blocks: until those that are mapping have done so. Locks: begin takes moves, end lets go. */
void uffd_read_begin(struct uffd_space *space);
void uffd_read_end(struct uffd_space *space);
/* Wait until what was read before is noted. Locks: none held. */
void uffd_read_wait(struct uffd_space *space);
/* Nothing is mapped there any more from now on. Any thread.   Blocks: as uffd_read_begin, and while events are
 * dealt with. Locks: none held. */
void uffd_close(struct uffd_space *space);

#endif
