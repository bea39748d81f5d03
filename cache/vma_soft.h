/* vma_soft.h: a vm_area whose page table is in software: mmap for clients in the same process, and for
 * the simulation. What hardware does for a load or a store, vma_load() and vma_store() do. */
#ifndef FOLIO_CACHE_VMA_SOFT_H
#define FOLIO_CACHE_VMA_SOFT_H

#include "cache/memory.h"

/* Map pages [first, first + count) of the mapping. As with mmap(2), the file may be closed then: its owner is kept
 * alive (a_ops->get). ra, unless NULL, stays the caller's.   Returns 0 or -ENOMEM, -EINVAL. */
int vma_soft_create(struct address_space *m, uint32_t first, uint32_t count,
                    struct file_ra_state *ra, struct vm_area **out);
/* Unmap. Nobody is inside vma_load or vma_store; no page is locked. The mapping may be gone then. */
void vma_soft_destroy(struct vm_area *vma);

/* Bytes of the vm_area, counted from its start; each page's part is copied at once.
 * Returns 0, or handle_mm_fault's error: what came before it has happened. */
int vma_load(struct vm_area *vma, uint64_t offset, void *buf, size_t len);
int vma_store(struct vm_area *vma, uint64_t offset, const void *buf, size_t len);

#endif
