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
 *
 * A vm_area holds no references on its pages: M2 stands for them.
 *
 * Lock order: PG_locked, then mapping->i_mmap_lock, then whatever the vma_ops need, which never sleep.
 */
#ifndef FOLIO_CACHE_MEMORY_H
#define FOLIO_CACHE_MEMORY_H

#include "cache/filemap.h"

struct vm_area;

struct vma_ops { /* called with the page locked (map), or with i_mmap_lock held */
    /* Let the page be seen at index, writable or not.   Returns 0 or -errno. */
    int (*map)(struct vm_area *vma, uint32_t index, struct page *page, bool writable);
    /* From now on a store to [first, last] faults.   Returns 0 only if that is certain. */
    int (*write_protect)(struct vm_area *vma, uint32_t first, uint32_t last);
    /* From now on any touch of [first, last] faults.   Likewise. */
    int (*zap)(struct vm_area *vma, uint32_t first, uint32_t last);
};

struct vm_area {                   /* (c) constant  (m) mapping->i_mmap_lock */
    struct address_space *mapping; /* (c) */
    const struct vma_ops *ops;     /* (c) */
    uint32_t first, count;         /* (c) pages of the file */
    struct file_ra_state *ra;      /* (c) readahead, or NULL */
    struct list_head node;         /* (m) mapping->i_mmap */
};

/* Join and leave the mapping's list; leaving unmaps everything first. Context: nothing locked. */
void vma_insert(struct vm_area *vma);
void vma_remove(struct vm_area *vma);

/* Resolve a fault at index (of the file), by a load or a store: when it returns 0 the page was mapped
 * (and may be gone again when the client looks: it then faults again).
 * Errors: -EFAULT (outside the vma or beyond end of file: SIGBUS), -EIO, -ENOSPC (of the store, before
 * it happens), -ENOMEM.   Blocks: on the store, and while too much is dirty.   Locks: none held. */
int handle_mm_fault(struct vm_area *vma, uint32_t index, bool write);

/* Write-protect one locked page wherever it is mapped.   Returns false: not certain everywhere. */
bool page_mkclean(struct address_space *m, struct page *page);
/* Unmap one locked page everywhere.   Returns false: not certain; the page must stay. */
bool page_unmap(struct address_space *m, struct page *page);

#endif
