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
    wait_on_page_writeback(page);
    if (page_test(page, PG_dirty))
        return 0;
    if (!page_test(page, PG_uptodate) && n < PAGE_SIZE) {
        if (pos < atomic_load(&m->i_size))
            err = read_page_locked(m, page);
        else /* nothing was ever written there: zeros, without asking the store for them */
            memset(page_address(m->cache, page), 0, PAGE_SIZE);
    }
    return err == 0 ? page_map_block(m, page) : err;
}

/* One page's part of a write.   Returns bytes or -errno. */
static ssize_t write_page(struct address_space *m, uint64_t pos, const char *from, size_t len)
{
    uint32_t in = (uint32_t)(pos & (PAGE_SIZE - 1));
    size_t n = len < PAGE_SIZE - in ? len : PAGE_SIZE - in;
    int err = 0;
    struct page *page = find_or_create_page(m, (uint32_t)(pos >> PAGE_SHIFT), &err);
    if (page == NULL)
        return err;
    err = write_begin(m, page, n);
    if (err == 0)
        err = dirty_page_reserve(m, page);
    if (err == 0) {
        copy_bytes((char *)page_address(m->cache, page) + in, from, n);
        page_set(page, PG_uptodate);
        set_page_dirty(m, page);
        if (pos + n > atomic_load(&m->i_size))
            atomic_store(&m->i_size, pos + n); /* after the bytes are there, under the page lock */
    }
    unlock_page(page);
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
                memset(page_address(m->cache, page), 0, PAGE_SIZE);
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
        if (i % 256 == 255)
            balance_dirty_pages(m->cache);
    }
    return 0;
}
