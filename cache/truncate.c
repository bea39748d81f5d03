/* truncate.c: pages that go, because their file got shorter, a hole was punched, or nobody needs
 * them. */
#include <assert.h>
#include <errno.h>
#include <string.h>

#include "cache/memfd.h"
#include "cache/memory.h"
#include "cache/reclaim.h"

static void truncate_page(struct address_space *m, struct page *page)
{
    lock_page(page);
    if (atomic_load(&page->mapping) == m) {
        wait_on_page_writeback(page);
        page_unmap(m, page);
        cancel_dirty_page(m, page);
        remove_from_page_cache(page, m);
    }
    unlock_page(page);
    put_page(m->cache, page);
}

void truncate_inode_pages_range(struct address_space *m, uint32_t first, uint32_t last)
{
    struct page *pages[PAGEVEC];
    uint64_t next = first;
    while (next <= last && atomic_load(&m->nrpages) > 0) {
        unsigned n = find_get_pages(m, &next, last, pages, PAGEVEC);
        for (unsigned i = 0; i < n; i++)
            truncate_page(m, pages[i]);
    }
    workingset_truncate(m, first, last);
    if (last == UINT32_MAX && atomic_load(&m->memfd) != NULL)
        (void)memfd_trim(m, first);
    /* During a pass no dirty page does not mean that everything is written: its end sees to it. */
    if (down_write_trylock(&m->writeback_sem)) {
        bool removed = dirty_list_del_if_clean(m);
        up_write(&m->writeback_sem);
        if (removed)
            dirty_list_put(m);
    }
}

/* The page at index, uptodate and locked, if there is anything in it: in the cache or on disk.
 * *out is NULL where there is a hole. */
static int lock_existing_page(struct address_space *m, uint32_t index, struct page **out)
{
    int err = 0;
    struct page *page = find_or_create_page(m, index, &err);
    *out = NULL;
    if (page == NULL)
        return err;
    if (!page_test(page, PG_uptodate))
        err = read_page_locked(m, page);
    if (err == 0) {
        *out = page;
        return 0;
    }
    unlock_page(page);
    put_page(m->cache, page);
    return err;
}

int truncate_partial_page(struct address_space *m, uint64_t from, uint64_t to)
{
    assert(from < to && (from >> PAGE_SHIFT) == ((to - 1) >> PAGE_SHIFT));
    struct page *page;
    int err = lock_existing_page(m, (uint32_t)(from >> PAGE_SHIFT), &page);
    if (err != 0)
        return err;
    wait_on_page_writeback(page);
    memset((char *)page_address(m->cache, page) + (from & (PAGE_SIZE - 1)), 0, (size_t)(to - from));
    if (page_test(page, PG_mappedtodisk) && !page_test(page, PG_dirty)) {
        if (m->a_ops != NULL && m->a_ops->reserve_always != NULL)
            m->a_ops->reserve_always(m);
        set_page_dirty(m, page);
    }
    unlock_page(page);
    put_page(m->cache, page);
    return 0;
}

static bool invalidate_page(struct address_space *m, struct page *page)
{
    bool gone = false;
    if (!trylock_page(page))
        return false;
    if (atomic_load(&page->mapping) == m && !page_test(page, PG_dirty | PG_writeback) &&
        page_ref_freeze(page, 2)) {
        gone = page_unmap(m, page);
        if (gone) {
            pthread_mutex_lock(&m->tree_lock);
            page_delete_locked(m, page);
            pthread_mutex_unlock(&m->tree_lock);
            lru_remove(m->cache, page);
        } else {
            page_ref_unfreeze(page, 2);
        }
    }
    unlock_page(page);
    return gone;
}

unsigned invalidate_inode_pages2_range(struct address_space *m, uint32_t first, uint32_t last)
{
    struct page *pages[PAGEVEC];
    unsigned stayed = 0;
    uint64_t next = first;
    while (next <= last) {
        unsigned n = find_get_pages(m, &next, last, pages, PAGEVEC);
        for (unsigned i = 0; i < n; i++) {
            if (invalidate_page(m, pages[i])) {
                page_free(m->cache, pages[i]);
            } else {
                put_page(m->cache, pages[i]);
                stayed++;
            }
        }
    }
    workingset_truncate(m, first, last);
    return stayed;
}
