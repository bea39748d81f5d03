#include "cache/memory.h"

#include <assert.h>
#include <errno.h>

#include "cache/page_cache.h"

void vma_insert(struct vm_area *vma)
{
    struct address_space *m = vma->mapping;
    pthread_mutex_lock(&m->i_mmap_lock);
    list_add(&vma->node, &m->i_mmap);
    atomic_fetch_add(&m->nr_vmas, 1);
    pthread_mutex_unlock(&m->i_mmap_lock);
}

void vma_remove(struct vm_area *vma)
{
    struct address_space *m = vma->mapping;
    pthread_mutex_lock(&m->i_mmap_lock);
    vma->ops->zap(vma, vma->first, vma->first + vma->count - 1);
    list_del(&vma->node);
    atomic_fetch_sub(&m->nr_vmas, 1);
    pthread_mutex_unlock(&m->i_mmap_lock);
}

/* Call one of the vma_ops for a page in every vm_area that covers it. */
static bool for_each_vma(struct address_space *m, struct page *page, bool zap)
{
    uint32_t index = atomic_load(&page->index);
    bool certain = true;
    assert(page_test(page, PG_locked));
    if (atomic_load(&m->nr_vmas) == 0)
        return true;
    pthread_mutex_lock(&m->i_mmap_lock);
    for (struct list_head *n = m->i_mmap.next; n != &m->i_mmap; n = n->next) {
        struct vm_area *vma = list_entry(n, struct vm_area, node);
        if (index < vma->first || index - vma->first >= vma->count)
            continue;
        int err =
            zap ? vma->ops->zap(vma, index, index) : vma->ops->write_protect(vma, index, index);
        certain = certain && err == 0;
    }
    pthread_mutex_unlock(&m->i_mmap_lock);
    return certain;
}

bool page_mkclean(struct address_space *m, struct page *page)
{
    return for_each_vma(m, page, false);
}

bool page_unmap(struct address_space *m, struct page *page)
{
    return for_each_vma(m, page, true);
}

/* The page at index, uptodate, locked, and still in the file (Linux: filemap_fault's second half).
 * Returns 0; -EFAULT beyond end of file; -EIO, -ENOMEM. */
static int fault_get_page(struct vm_area *vma, uint32_t index, bool write, struct page **out)
{
    struct address_space *m = vma->mapping;
    for (;;) {
        struct page *page;
        int err = filemap_fault_page(m, vma->ra, index, write ? RA_FAULT_WRITE : RA_FAULT, &page);
        if (err != 0)
            return err > 0 ? -EFAULT : err;
        lock_page(page);
        bool here = atomic_load(&page->mapping) == m;
        bool inside = (uint64_t)index << PAGE_SHIFT < atomic_load(&m->i_size);
        if (here && inside) {
            *out = page;
            return 0;
        }
        unlock_page(page); /* truncated or evicted while we waited: look again */
        put_page(m->cache, page);
        if (!inside)
            return -EFAULT;
    }
}

/* Rule 5, up to and including the moment when the page is writable: all under one hold of its lock, or
 * the flusher would clean it in between and the store that follows would be lost. */
static int page_mkwrite(struct vm_area *vma, uint32_t index, struct page *page)
{
    struct address_space *m = vma->mapping;
    wait_on_page_writeback(page);
    int err = page_map_block(m, page);
    if (err == 0)
        err = dirty_page_reserve(m, page);
    if (err != 0)
        return err;
    set_page_dirty(m, page);
    return vma->ops->map(vma, index, page, true);
}

int handle_mm_fault(struct vm_area *vma, uint32_t index, bool write)
{
    struct address_space *m = vma->mapping;
    struct page *page;
    if (index < vma->first || index - vma->first >= vma->count)
        return -EFAULT;
    int err = fault_get_page(vma, index, write, &page);
    if (err != 0)
        return err;
    err = write ? page_mkwrite(vma, index, page) : vma->ops->map(vma, index, page, false);
    unlock_page(page);
    put_page(m->cache, page);
    if (err == 0 && write) {
        if (m->a_ops != NULL && m->a_ops->page_mkwrite != NULL)
            m->a_ops->page_mkwrite(m);
        balance_dirty_pages(m->cache);
    }
    return err;
}
