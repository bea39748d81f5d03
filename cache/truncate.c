/* truncate.c: pages that go, because their file got shorter, a hole was punched, or nobody needs
 * them; and what lies behind the end of file, when the file gets longer. */
#include <assert.h>
#include <errno.h>
#include <string.h>

#include "cache/memory.h"
#include "cache/reclaim.h"

static void reserve_always(struct address_space *m, uint32_t nr_pages, uint32_t nr_new)
{
    if (m->a_ops->reserve_always != NULL)
        m->a_ops->reserve_always(m, nr_pages, nr_new);
}

/* The page stays, but nothing of what is in it: it reads as the hole it is going to be. A dirty page
 * stays dirty: whoever may still store to it must not do so unseen (M1). */
static void empty_page(struct page *page)
{
    memset(page_address(page), 0, PAGE_SIZE);
    page_clear(page, PG_error);
    page_set(page, PG_uptodate);
}

/* Returns true: it is gone. A page that may still be mapped somewhere cannot leave its tree (M2): it
 * is emptied, and stays locked and referenced: a pass must not write it to a block that is about to go. */
static bool truncate_page(struct address_space *m, struct page *page)
{
    lock_page(page);
    if (atomic_load(&page->mapping) == m) {
        wait_for_stable_page(m, page);
        if (page_unmap(m, page)) {
            cancel_dirty_page(m, page);
            remove_from_page_cache(page, m);
        } else {
            empty_page(page);
            return false;
        }
    }
    unlock_page(page);
    put_page(m->cache, page);
    return true;
}

unsigned truncate_pages_begin(struct address_space *m, uint32_t first, uint32_t last)
{
    struct page *pages[PAGEVEC];
    unsigned stayed = 0;
    uint64_t next = first;
    while (next <= last && atomic_load(&m->nrpages) > 0) {
        unsigned n = find_get_pages(m, &next, last, pages, PAGEVEC);
        for (unsigned i = 0; i < n; i++)
            stayed += !truncate_page(m, pages[i]);
    }
    workingset_truncate(m, first, last);
    /* During a pass no dirty page does not mean that everything is written: its end sees to it. */
    if (down_write_trylock(&m->writeback_sem)) {
        bool removed = dirty_list_del_if_clean(m);
        up_write(&m->writeback_sem);
        if (removed)
            dirty_list_put(m);
    }
    return stayed;
}

/* It has no block any more; if it is dirty it is promised a new one. */
static void forget_block(struct address_space *m, struct page *page)
{
    if (page_test(page, PG_dirty) && page_test(page, PG_mappedtodisk))
        reserve_always(m, 0, 1);
    page_clear(page, PG_mappedtodisk);
}

/* What is in the tree there is ours: nothing has come in. */
void truncate_pages_end(struct address_space *m, uint32_t first, uint32_t last, unsigned stayed)
{
    struct page *page;
    for (uint64_t next = first; stayed > 0; stayed--) {
        while (find_get_pages(m, &next, last, &page, 1) == 0)
            assert(next <= last); /* a shadow */
        assert(page_test(page, PG_locked));
        forget_block(m, page);
        put_page(m->cache, page); /* truncate_page()'s reference */
        page_unlock_put(m, page);
    }
}

unsigned truncate_inode_pages_range(struct address_space *m, uint32_t first, uint32_t last)
{
    unsigned stayed = truncate_pages_begin(m, first, last);
    truncate_pages_end(m, first, last, stayed);
    return stayed;
}

/* ---- parts of a page ------------------------------------------------------------------------- */

/* The page at index, uptodate and locked. */
static int lock_uptodate_page(struct address_space *m, uint32_t index, struct page **out)
{
    int err = 0;
    struct page *page = find_or_create_page(m, index, &err);
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

/* Zero bytes of a locked page, from in to its end or to end; on disk too, if there is a block. */
static void zero_in_page(struct address_space *m, struct page *page, size_t in, size_t end)
{
    memset((char *)page_address(page) + in, 0, end - in);
    if (page_test(page, PG_mappedtodisk) && !page_test(page, PG_dirty)) {
        reserve_always(m, 1, 0);
        set_page_dirty(m, page);
    }
}

int truncate_partial_page(struct address_space *m, uint64_t from, uint64_t to)
{
    assert(from < to && (from >> PAGE_SHIFT) == ((to - 1) >> PAGE_SHIFT));
    struct page *page = NULL;
    int err = lock_uptodate_page(m, (uint32_t)(from >> PAGE_SHIFT), &page);
    if (err != 0)
        return err;
    assert(page != NULL);
    wait_for_stable_page(m, page);
    zero_in_page(m, page, from & (PAGE_SIZE - 1), (size_t)(to - (from & PAGE_MASK)));
    unlock_page(page);
    put_page(m->cache, page);
    return 0;
}

/* ---- shorter --------------------------------------------------------------------------------- */

int truncate_get_page(struct address_space *m, uint64_t size, struct page **cut)
{
    *cut = NULL;
    if (size % PAGE_SIZE == 0 || size >= atomic_load(&m->i_size))
        return 0;
    int err = lock_uptodate_page(m, (uint32_t)(size >> PAGE_SHIFT), cut);
    if (err == 0)
        unlock_page(*cut);
    return err;
}

/* The bytes are zeroed when i_size has changed: until then stores to them count, and after it a page
 * that is written is zeroed behind its end. */
unsigned truncate_setsize(struct address_space *m, uint64_t size, struct page *cut)
{
    uint64_t first = pages_for(size);
    if (cut != NULL) {
        lock_page(cut);
        assert(atomic_load(&cut->mapping) == m && page_test(cut, PG_uptodate));
        wait_for_stable_page(m, cut);
    }
    atomic_store(&m->i_size, size);
    if (cut != NULL)
        zero_in_page(m, cut, size & (PAGE_SIZE - 1), PAGE_SIZE);
    return first <= UINT32_MAX ? truncate_pages_begin(m, (uint32_t)first, UINT32_MAX) : 0;
}

void page_unlock_put(struct address_space *m, struct page *page)
{
    if (page == NULL)
        return;
    unlock_page(page);
    put_page(m->cache, page);
}

/* ---- longer ---------------------------------------------------------------------------------- */

void zero_beyond_eof(struct address_space *m, struct page *page, uint64_t to)
{
    uint64_t start = (uint64_t)atomic_load(&page->index) << PAGE_SHIFT, end = start + PAGE_SIZE;
    uint64_t size = atomic_load(&m->i_size), from = size > start ? size : start;
    to = to < end ? to : end;
    if (from < to)
        memset((char *)page_address(page) + (from - start), 0, (size_t)(to - from));
}

/* Only a dirty page can have been stored to since it was written, with zeros there (M1). Where it is
 * not certain that nobody can store to it a store may slip in behind the zeros: it counts as one that
 * came after the growth. */
void forget_beyond_eof(struct address_space *m, struct page *page, uint64_t to)
{
    uint64_t end = ((uint64_t)atomic_load(&page->index) + 1) << PAGE_SHIFT;
    if (!page_test(page, PG_dirty) || atomic_load(&m->i_size) >= end)
        return;
    (void)page_mkclean(m, page);
    zero_beyond_eof(m, page, to);
}

/* Pages wholly behind the end that somebody may have stored to are those that could not be unmapped
 * when the file got shorter. */
static void forget_pages_beyond_eof(struct address_space *m, uint64_t first)
{
    struct page *pages[PAGEVEC];
    while (first <= UINT32_MAX) {
        unsigned n = find_get_pages_tag(m, &first, UINT32_MAX, pages, PAGEVEC, RADIX_TAG_DIRTY);
        for (unsigned i = 0; i < n; i++) {
            lock_page(pages[i]);
            assert(atomic_load(&pages[i]->mapping) == m); /* i_rwsem, and our reference */
            wait_for_stable_page(m, pages[i]);
            forget_beyond_eof(m, pages[i], UINT64_MAX);
            page_unlock_put(m, pages[i]);
        }
    }
}

int lock_eof_page(struct address_space *m, struct page **eof)
{
    uint64_t size = atomic_load(&m->i_size);
    int err = 0;
    *eof = NULL;
    forget_pages_beyond_eof(m, pages_for(size));
    if (size % PAGE_SIZE == 0)
        return 0;
    struct page *page = find_or_create_page(m, (uint32_t)(size >> PAGE_SHIFT), &err);
    if (page == NULL)
        return err;
    wait_for_stable_page(m, page);
    forget_beyond_eof(m, page, UINT64_MAX);
    *eof = page; /* not read, if it was not there: while it is locked nobody can map it */
    return 0;
}

/* ---- out of memory --------------------------------------------------------------------------- */

static bool invalidate_page(struct address_space *m, struct page *page)
{
    bool gone = false;
    if (!trylock_page(page))
        return false;
    if (atomic_load(&page->mapping) == m && !page_test(page, PG_dirty | PG_writeback) &&
        page_ref_freeze(page, 2)) {
        gone = page_unmap(m, page);
        if (gone) {
            page_delete(m, page);
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
