/* write.c: writing into pages. */
#include <assert.h>
#include <errno.h>
#include <string.h>

#include "cache/page_cache.h"

/* Bring a locked page to the state in which n bytes of it may be overwritten. The owner hears of every
 * page that is about to become dirty and has no block that we know of, those read as holes
 * too (a_ops->block_exists). */
static int write_begin(struct address_space *m, struct page *page, size_t n)
{
    uint64_t pos = (uint64_t)atomic_load(&page->index) << PAGE_SHIFT;
    int err = 0;
    wait_for_stable_page(m, page);
    if (page_test(page, PG_dirty))
        return 0;
    if (!page_test(page, PG_uptodate) && n < PAGE_SIZE) {
        if (pos < atomic_load(&m->i_size))
            err = read_page_locked(m, page);
        else /* nothing was ever written there: zeros, without asking the store for them */
            memset(page_address(page), 0, PAGE_SIZE);
    }
    return err == 0 ? page_map_block(m, page) : err;
}

/* The page's bytes [pos, pos + n). The size follows the bytes, under the page's lock. */
static int write_locked(struct address_space *m, struct page *page, uint64_t pos, const char *from,
                        size_t n)
{
    int err = write_begin(m, page, n);
    if (err == 0)
        err = dirty_page_reserve(m, page);
    if (err != 0)
        return err;
    bool extends = pos + n > atomic_load(&m->i_size);
    if (extends)
        forget_beyond_eof(m, page, pos);
    copy_bytes((char *)page_address(page) + (pos & (PAGE_SIZE - 1)), from, n);
    page_set(page, PG_uptodate);
    set_page_dirty(m, page);
    if (extends)
        atomic_store(&m->i_size, pos + n);
    return 0;
}

/* The page at pos, locked, and before it the one that the end of file cuts, if it is another that will
 * be inside the file from now on. Memory is waited for with nothing locked; what we have a reference
 * on stays in its tree, as no truncation can come (i_rwsem). */
static int lock_pages(struct address_space *m, uint64_t pos, struct page **page, struct page **eof)
{
    uint64_t size = atomic_load(&m->i_size);
    int err = 0;
    *eof = NULL;
    *page = find_or_create_page(m, (uint32_t)(pos >> PAGE_SHIFT), &err);
    if (*page == NULL || pos >> PAGE_SHIFT <= size >> PAGE_SHIFT)
        return err;
    unlock_page(*page);
    err = lock_eof_page(m, eof);
    if (err != 0) {
        put_page(m->cache, *page);
        return err;
    }
    lock_page(*page);
    assert(atomic_load(&(*page)->mapping) == m);
    return 0;
}

/* One page's part of a write.   Returns bytes or -errno. */
static ssize_t write_page(struct address_space *m, uint64_t pos, const char *from, size_t len)
{
    uint32_t in = (uint32_t)(pos & (PAGE_SIZE - 1));
    size_t n = len < PAGE_SIZE - in ? len : PAGE_SIZE - in;
    struct page *page, *eof;
    int err = lock_pages(m, pos, &page, &eof);
    if (err != 0)
        return err;
    err = write_locked(m, page, pos, from, n);
    unlock_page(page);
    page_unlock_put(m, eof);
    mark_page_accessed(page);
    put_page(m->cache, page);
    return err != 0 ? err : (ssize_t)n;
}

ssize_t filemap_write(struct address_space *m, uint64_t offset, const void *buf, size_t len)
{
    const char *from = buf;
    size_t done = 0;
    if (offset >= MAX_FILE_SIZE && len > 0)
        return -EFBIG;
    if (len > MAX_FILE_SIZE - offset)
        len = (size_t)(MAX_FILE_SIZE - offset);
    while (done < len) {
        ssize_t n = write_page(m, offset + done, from + done, len - done);
        if (n < 0)
            return done > 0 ? (ssize_t)done : n;
        done += (size_t)n;
    }
    return (ssize_t)done;
}

static int allocate_page(struct address_space *m, uint32_t index)
{
    int err = 0;
    struct page *page = find_or_create_page(m, index, &err);
    if (page == NULL)
        return err;
    wait_on_page_writeback(page);
    err = page_map_block(m, page);
    if (err == 0 && !page_test(page, PG_mappedtodisk | PG_dirty)) {
        err = dirty_page_reserve(m, page);
        if (err == 0) {
            if (!page_test(page, PG_uptodate))
                memset(page_address(page), 0, PAGE_SIZE);
            page_set(page, PG_uptodate);
            set_page_dirty(m, page);
        }
    }
    unlock_page(page);
    put_page(m->cache, page);
    return err;
}

int filemap_allocate(struct address_space *m, uint32_t first, uint32_t last)
{
    for (uint64_t i = first; i <= last; i++) {
        int err = allocate_page(m, (uint32_t)i);
        if (err != 0)
            return err;
    }
    return 0;
}
