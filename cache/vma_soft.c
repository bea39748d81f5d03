#include "cache/vma_soft.h"

#include <errno.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>

#include "cache/page_cache.h"

/* A page table entry: the page's address, and two bits. */
#define PTE_WRITABLE ((uintptr_t)1)
#define PTE_BUSY     ((uintptr_t)2) /* a load or store is under way: hardware's atomicity */
#define PTE_BITS     (PTE_WRITABLE | PTE_BUSY)

struct vma_soft {
    struct vm_area vma; /* first */
    _Atomic uintptr_t ptes[];
};

static _Atomic uintptr_t *pte_of(struct vm_area *vma, uint32_t index)
{
    return &((struct vma_soft *)vma)->ptes[index - vma->first];
}

/* Change an entry between accesses: keep the bits of keep, or write value when it is not 0. */
static void pte_change(_Atomic uintptr_t *pte, uintptr_t keep, uintptr_t value)
{
    for (;;) {
        uintptr_t old = atomic_load(pte);
        if (old & PTE_BUSY)
            sched_yield(); /* a copy of at most a page */
        else if (atomic_compare_exchange_weak(pte, &old, value != 0 ? value : old & keep))
            return;
    }
}

static int soft_map(struct vm_area *vma, uint32_t index, struct page **pages, unsigned n,
                    unsigned flags)
{
    for (unsigned i = 0; i < n; i++) {
        _Atomic uintptr_t *pte = pte_of(vma, index + i);
        if (flags & VMA_MAP_WRITE)
            pte_change(pte, 0, (uintptr_t)pages[i] | PTE_WRITABLE);
        else if (atomic_load(pte) == 0) /* and stays so while the page is locked */
            pte_change(pte, 0, (uintptr_t)pages[i]);
    }
    return 0;
}

static int soft_write_protect(struct vm_area *vma, uint32_t first, uint32_t last)
{
    for (uint64_t i = first; i <= last; i++)
        pte_change(pte_of(vma, (uint32_t)i), ~PTE_BITS, 0);
    return 0;
}

static int soft_zap(struct vm_area *vma, uint32_t first, uint32_t last)
{
    for (uint64_t i = first; i <= last; i++)
        pte_change(pte_of(vma, (uint32_t)i), 0, 0);
    return 0;
}

static const struct vma_ops soft_ops = { .map = soft_map,
                                         .write_protect = soft_write_protect,
                                         .zap = soft_zap };

int vma_soft_create(struct address_space *m, uint32_t first, uint32_t count,
                    struct file_ra_state *ra, struct vm_area **out)
{
    if (count == 0 || count - 1 > UINT32_MAX - first)
        return -EINVAL;
    struct vma_soft *s = calloc(1, sizeof *s + (size_t)count * sizeof s->ptes[0]);
    if (s == NULL)
        return -ENOMEM;
    s->vma = (struct vm_area){
        .mapping = m, .ops = &soft_ops, .first = first, .count = count, .ra = ra
    };
    if (m->a_ops->get != NULL)
        m->a_ops->get(m);
    vma_insert(&s->vma);
    *out = &s->vma;
    return 0;
}

void vma_soft_destroy(struct vm_area *vma)
{
    struct address_space *m = vma->mapping;
    vma_remove(vma);
    free(vma);
    if (m->a_ops->put != NULL)
        m->a_ops->put(m);
}

/* Hold the entry for one access.   Returns the page, or NULL: it must fault. */
static struct page *pte_access(_Atomic uintptr_t *pte, bool write)
{
    for (;;) {
        uintptr_t old = atomic_load(pte);
        if (old == 0 || (write && !(old & PTE_WRITABLE)))
            return NULL;
        if (old & PTE_BUSY)
            sched_yield();
        else if (atomic_compare_exchange_weak(pte, &old, old | PTE_BUSY))
            return (struct page *)(old & ~PTE_BITS);
    }
}

static int access_page(struct vm_area *vma, uint64_t offset, void *buf, size_t len, bool write)
{
    uint32_t index = vma->first + (uint32_t)(offset >> PAGE_SHIFT);
    _Atomic uintptr_t *pte = pte_of(vma, index);
    struct page *page;
    while ((page = pte_access(pte, write)) == NULL) {
        int err = handle_mm_fault(vma, index, write);
        if (err != 0)
            return err;
    }
    char *at = (char *)page_address(page) + (offset & (PAGE_SIZE - 1));
    if (write)
        memcpy(at, buf, len);
    else
        memcpy(buf, at, len);
    mark_page_accessed(page);
    atomic_fetch_and(pte, ~PTE_BUSY);
    return 0;
}

static int access_range(struct vm_area *vma, uint64_t offset, char *buf, size_t len, bool write)
{
    uint64_t size = (uint64_t)vma->count << PAGE_SHIFT;
    if (offset > size || len > size - offset)
        return -EFAULT;
    while (len > 0) {
        size_t n = PAGE_SIZE - (offset & (PAGE_SIZE - 1));
        n = n < len ? n : len;
        int err = access_page(vma, offset, buf, n, write);
        if (err != 0)
            return err;
        offset += n;
        buf += n;
        len -= n;
    }
    return 0;
}

int vma_load(struct vm_area *vma, uint64_t offset, void *buf, size_t len)
{
    return access_range(vma, offset, buf, len, false);
}

int vma_store(struct vm_area *vma, uint64_t offset, const void *buf, size_t len)
{
    return access_range(vma, offset, (char *)(uintptr_t)buf, len, true);
}
