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
 * A uffd_vma never changes. When a part of a range is unmapped or moved, new ones take its place, and
 * an address is not given to another one while a fault of the old is being resolved (attach.c).
 */
#ifndef FOLIO_CACHE_UFFD_H
#define FOLIO_CACHE_UFFD_H

#include "cache/memory.h"

struct uffd_vma {
    struct vm_area vma; /* first */
    int uffd;           /* (c) */
    uint64_t addr;      /* (c) of vma.first, in the client */
    /* Events are being read and dealt with: what is not at its address may have moved. NULL: none are. */
    const _Atomic bool *moving;
    bool writable; /* (c) shared, and stores are allowed: write-protection counts */
};

extern const struct vma_ops uffd_vma_ops;

/* A store to any page of it faults from now on.   Returns 0; -EAGAIN: its events must be read first. */
int uffd_protect(struct uffd_vma *u);
/* Wake who waits for a fault of that page. Any thread, no lock. */
void uffd_wake(struct uffd_vma *u, uint32_t index);
/* Every touch of the page is a SIGBUS from now on, until it is mapped. gone: nobody can map it now
 * (page_call_while_gone), so what may be left there is the mark of its write-protection.
 * Returns 0, or -errno: -EEXIST: it is mapped, or has that mark. Whoever waits goes on in any case. */
int uffd_poison(struct uffd_vma *u, uint32_t index, bool gone);
/* Is the address space gone? */
bool uffd_dead(int uffd);

#endif
