/* memory.h: pages mapped somewhere: faults, the first store, write-protection, unmapping.
 *
 * A vm_area is a stretch of a mapping that somebody has mapped. How pages get into it and out is a
 * struct of functions: a page table in software (vma_soft.h: in-process clients, simulation), or
 * whatever else can map a page, protect it and take it away.
 *
 *      state of one page in one vm_area
 *
 *            first touch: filemap_fault            first store: page_mkwrite
 *      none ---------------------------> read-only --------------------------> writable
 *        ^                                  ^  |                                  |
 *        |  truncate, hole, reclaim         |  +----- truncate, hole, reclaim ----+--> none
 *        +----------------------------------+---------------- page_mkclean -------+
 *
 * Invariants, beside those of page.h:
 *   M1  A page is writable in a vm_area only while it is dirty: page_mkwrite sets PG_dirty first and
 *       makes it writable under the same hold of PG_locked; cleaning write-protects first.
 *   M2  A page in a vm_area is in its mapping's tree: it is unmapped, under PG_locked, before it
 *       leaves the tree.
 *   M3  A PG_ahead page is dirty, and the copy that is kept of it is what it was while clean. Whoever changes
 *       it otherwise than through a vm_area ends that first (wait_for_stable_page).
 *
 * A vm_area holds no references on its pages: M2 stands for them.
 *
 * Where a fault is a message (cache_options.store_around), a store that continues others in order can have the
 * pages behind it made writable too: each is promised room and dirty before any store, as by page_mkwrite.
 * Nothing tells of a store to a writable page; so those that were not stored to are known by a copy of what
 * they were, and are clean again when they are to be written, with their promise given back; the others count
 * as first stores when they are found (twice, if two threads of a client come to one together). The price: a
 * store that changes nothing is neither counted nor written, and times are those of the fault (mkwrite_ahead.c).
 *
 * Lock order: PG_locked, then mapping->i_mmap_lock, then whatever the vma_ops need. What cannot be done
 * while a client's address space changes is tried again (-EAGAIN) with i_mmap_lock free, so that whoever
 * reads the client's events can get at it. Write-protecting may wait for a client that has its address
 * space locked, in mmap(2) say, and that may wait for us to read a page: so whoever reclaims pages for
 * reads takes i_mmap_lock shared, beside it, and before those who wait to change the list; and zap waits
 * for nobody.
 */
#ifndef FOLIO_CACHE_MEMORY_H
#define FOLIO_CACHE_MEMORY_H

#include "cache/filemap.h"

struct vm_area;

enum vma_map {
    VMA_MAP_WRITE = 1, /* writable; of those behind the first as many as can be, at once with it */
    VMA_MAP_PRESENT = 2, /* the fault found the first page there, write-protected */
};

struct vma_ops { /* called with the pages locked (map), or with i_mmap_lock held */
    /* Let n pages side by side be seen from index on, and whoever waits at index go on; flags: enum
     * vma_map. Those that are seen already stay as they are, unless VMA_MAP_WRITE.
     * Returns 0, or -errno; -EAGAIN: it is changing; unlock, and try again. */
    int (*map)(struct vm_area *vma, uint32_t index, struct page **pages, unsigned n,
               unsigned flags);
    /* From now on a store to [first, last] faults; may wait for a client's address space.
     * Returns 0 only if that is certain; -EAGAIN as above; -EBUSY: a client has kept others waiting for too
     * long already. */
    int (*write_protect)(struct vm_area *vma, uint32_t first, uint32_t last);
    /* From now on any touch of [first, last] faults; waits for nobody.   Returns likewise. */
    int (*zap)(struct vm_area *vma, uint32_t first, uint32_t last);
};

struct vm_area {                   /* (c) constant  (m) mapping->i_mmap_lock  (a) atomic */
    struct address_space *mapping; /* (c) */
    const struct vma_ops *ops;     /* (c) */
    enum fault_door door;          /* (c) whose counters */
    uint32_t first, count;         /* pages of the file                        (c; m to split) */
    struct file_ra_state *ra;      /* (c) readahead, or NULL */
    _Atomic uint64_t advised;      /* pages of the file: first << 32 | last  (a) see vma_advise() */
    _Atomic int advice;            /* for these, enum ra_advice              (a) */
    _Atomic uint32_t around_next;  /* where the next fault of a sequential reader would be (a) */
    _Atomic uint32_t around;       /* pages mapped by the last one                         (a) */
    _Atomic uint32_t store_next, store_around; /* likewise, for who stores in order  (a) */
    struct list_head node;                     /* (m) mapping->i_mmap */
};

#define FAULT_AROUND_DEFAULT \
    16u                        /* pages mapped together, as in Linux; doubled while faults go on */
#define FAULT_AROUND_MOST 512u /* where the last ones ended, up to this */
#define STORE_AROUND_MOST 64u  /* pages made writable together; reached in fours */

/* Join and leave the mapping's list; leaving unmaps everything first. Context: nothing locked. */
void vma_insert(struct vm_area *vma);
void vma_remove(struct vm_area *vma);

enum fault_flags {
    FAULT_WRITE = 1,
    FAULT_PRESENT = 2, /* by a store to a page that was there */
    FAULT_NOWAIT = 4,  /* -EAGAIN instead of sleeping, and nothing is mapped then */
};

/* Resolve a fault at index (of the file), flags: enum fault_flags. When it returns 0 the page was mapped
 * (and may be gone again when the client looks: it then faults again). A load maps the pages behind
 * it too that are there (fault-around). With FAULT_NOWAIT also 1: it was mapped, and vma_readahead() is due,
 * which may sleep: whoever faulted does not wait for it.
 * Errors: -EFAULT (outside the vma or beyond end of file: SIGBUS), -EIO, -ENOSPC (of the store, before
 * it happens), -ENOMEM.   Blocks: on the store, and while too much is dirty.   Locks: none held. */
int handle_mm_fault(struct vm_area *vma, uint32_t index, unsigned flags);
/* How pages [first, first + count) of the file are going to be touched (Linux: VM_SEQ_READ, VM_RAND_READ). One part of
 * a vma has advice, the one it was given for last, or that and what adjoins it with the same; the rest has none. */
void vma_advise(struct vm_area *vma, uint32_t first, uint32_t count, enum ra_advice advice);
/* Start the next window if the page at index bears its mark.   Blocks: on the store. Locks: none held. */
void vma_readahead(struct vm_area *vma, uint32_t index);
/* Take the clean page at index, or the hole there, out of every mapping and the cache, and call work while
 * nobody can map one. Locks: invalidate_lock shared and the page's are held around work.
 * Returns work's result; -EAGAIN: it is dirty, or somebody uses it; -ENOMEM. */
int page_call_while_gone(struct address_space *m, uint32_t index, int (*work)(void *arg),
                         void *arg);
/* Map what is in the cache of [first, first + count), as if it had been faulted around. */
void vma_map_resident(struct vm_area *vma, uint32_t first, uint32_t count);

/* Write-protect one locked page wherever it is mapped.
 * Returns 0; -EBUSY, or another -errno: not certain everywhere, for now. */
int page_mkclean(struct address_space *m, struct page *page);
/* Who is in front (a kernel with a cache of its own) is about to get a copy of a locked page that it may
 * keep: from now on a store through a vm_area faults, and page_mkwrite has the copy taken back first
 * (a_ops->forget_copy).   Returns as page_mkclean does; unless 0 it must not get one. */
int page_hold_copy(struct address_space *m, struct page *page);
/* Unmap one locked page everywhere; with a memfd its bytes are gone then.   Returns false: not certain;
 * the page must stay. */
bool page_unmap(struct address_space *m, struct page *page);
/* The same for who has it mapped by its struct page (vma_soft.h); whoever maps the memfd has it mapped still. */
bool page_zap(struct address_space *m, struct page *page);

#endif
