#include "cache/memory.h"

#include <assert.h>
#include <errno.h>
#include <poll.h>
#include <sched.h>

#include "cache/memfd.h"
#include "cache/page_cache.h"

#define CHANGING_NS 1000000000u /* how long an address space may be changing */
#define YIELDS      1000u

void vma_insert(struct vm_area *vma)
{
    struct address_space *m = vma->mapping;
    pthread_rwlock_wrlock(&m->i_mmap_lock);
    list_add(&vma->node, &m->i_mmap);
    atomic_fetch_add(&m->nr_vmas, 1);
    pthread_rwlock_unlock(&m->i_mmap_lock);
}

void vma_remove(struct vm_area *vma)
{
    struct address_space *m = vma->mapping;
    pthread_rwlock_wrlock(&m->i_mmap_lock);
    vma->ops->zap(vma, vma->first, vma->first + vma->count - 1);
    list_del(&vma->node);
    atomic_fetch_sub(&m->nr_vmas, 1);
    pthread_rwlock_unlock(&m->i_mmap_lock);
}

/* Call one of the vma_ops for a page in every vm_area that covers it.   -EAGAIN: begin again. */
static int try_each_vma(struct address_space *m, uint32_t index, bool zap)
{
    int err = 0;
    cache_yield();
    pthread_rwlock_rdlock(&m->i_mmap_lock);
    for (struct list_head *n = m->i_mmap.next; n != &m->i_mmap && err != -EAGAIN; n = n->next) {
        struct vm_area *vma = list_entry(n, struct vm_area, node);
        if (index < vma->first || index - vma->first >= vma->count)
            continue;
        int r = zap ? vma->ops->zap(vma, index, index) : vma->ops->write_protect(vma, index, index);
        if (r != 0)
            err = r;
    }
    pthread_rwlock_unlock(&m->i_mmap_lock);
    return err;
}

static int for_each_vma(struct address_space *m, struct page *page, bool zap)
{
    int err;
    assert(page_test(page, PG_locked));
    if (atomic_load(&m->nr_vmas) == 0)
        return 0;
    uint64_t until = 0;
    while ((err = try_each_vma(m, atomic_load(&page->index), zap)) == -EAGAIN) {
        uint64_t now = clock_now(&clock_monotonic);
        until = until != 0 ? until : now + CHANGING_NS;
        if (now > until && !zap)
            return -EBUSY;
        sched_yield();
    }
    return err;
}

int page_mkclean(struct address_space *m, struct page *page)
{
    if (!page_test(page, PG_mkwrite))
        return 0;
    int err = for_each_vma(m, page, false);
    if (err == 0)
        page_clear(page, PG_mkwrite);
    return err;
}

int page_hold_copy(struct address_space *m, struct page *page)
{
    atomic_store(&m->copies, true); /* before the page can leave the cache and come back */
    page_set(page, PG_copied);
    return page_mkclean(m, page);
}

bool page_zap(struct address_space *m, struct page *page)
{
    return for_each_vma(m, page, true) == 0;
}

bool page_unmap(struct address_space *m, struct page *page)
{
    struct memfd *f = atomic_load(&m->memfd);
    uint32_t index = atomic_load(&page->index);
    bool certain = page_zap(m, page);
    if (certain && f != NULL && page_in_memfd(m->cache, page))
        certain = memfd_punch(f, index, index) == 0;
    if (certain)
        page_clear(page, PG_mkwrite);
    return certain;
}

/* ---- finding the page ------------------------------------------------------------------------ */

static bool still_there(struct address_space *m, struct page *page, uint32_t index)
{
    return atomic_load(&page->mapping) == m &&
           (uint64_t)index << PAGE_SHIFT < atomic_load(&m->i_size);
}

/* The page at index if it is there, uptodate, and nobody holds it.   NULL: sleeping might help. */
static struct page *trylock_resident(struct address_space *m, uint32_t index, uint32_t unless)
{
    struct page *page = find_get_page_nowait(m, index);
    if (page == NULL)
        return NULL;
    if (!page_test(page, unless) && page_test(page, PG_uptodate) && trylock_page(page)) {
        if (still_there(m, page, index) && page_test(page, PG_uptodate))
            return page;
        unlock_page(page);
    }
    put_page(m->cache, page);
    return NULL;
}

/* The page at index, uptodate, locked, and still in the file (Linux: filemap_fault's second half).
 * Returns 0; -EFAULT beyond end of file; -EIO, -ENOMEM. */
static int fault_get_page(struct vm_area *vma, uint32_t index, enum ra_how how, struct page **out,
                          bool *major)
{
    struct address_space *m = vma->mapping;
    for (;;) {
        struct page *page;
        bool missed;
        int err = filemap_fault_page(m, vma->ra, index, how, &page, &missed);
        if (err != 0)
            return err > 0 ? -EFAULT : err;
        *major = *major || missed;
        lock_page(page);
        if (still_there(m, page, index)) {
            *out = page;
            return 0;
        }
        page_unlock_put(m, page); /* truncated or evicted while we waited: look again */
    }
}

/* Likewise without sleeping: -EAGAIN. Whatever might start a read is left to who may sleep: at once for a
 * store, afterwards for a load. */
static int fault_try_page(struct vm_area *vma, uint32_t index, bool write, struct page **out)
{
    struct address_space *m = vma->mapping;
    if (vma->ra != NULL && file_ra_every_access(vma->ra))
        return -EAGAIN;
    struct page *page = trylock_resident(m, index, write ? PG_readahead : 0);
    if (page == NULL)
        return -EAGAIN;
    count_hits(m->cache, 1);
    page_used(m->cache, page, false);
    *out = page;
    return 0;
}

/* ---- loads: the pages around ----------------------------------------------------------------- */

/* Lock the pages behind the one in hand that can be mapped with it. One that starts the next window
 * of readahead is left out, or nobody would touch it. ahead: to be made writable; else readable.
 * Returns how many there are with the first. */
static unsigned lock_behind(struct vm_area *vma, uint32_t index, struct page **pages, unsigned max,
                            bool ahead)
{
    uint32_t last = vma->first + (vma->count - 1);
    unsigned n = 1;
    while (n < max && index + (n - 1) < last) {
        struct page *page = trylock_resident(vma->mapping, index + n, PG_readahead);
        if (page == NULL)
            break;
        if (ahead && !page_mkwrite_ahead(vma->mapping, page, vma->door)) {
            page_unlock_put(vma->mapping, page);
            break;
        }
        page_used(vma->mapping->cache, page, true);
        pages[n++] = page;
    }
    return n;
}

/* How many to map here: more while faults come where the last one ended. */
static unsigned around_window(struct vm_area *vma, uint32_t index)
{
    unsigned usual = atomic_load_explicit(&vma->mapping->cache->fault_around, memory_order_relaxed);
    unsigned last = atomic_load_explicit(&vma->around, memory_order_relaxed);
    uint32_t next = atomic_load_explicit(&vma->around_next, memory_order_relaxed);
    if (usual <= 1 || index != next || last == 0)
        return usual;
    return last * 2 < FAULT_AROUND_MOST ? last * 2 : FAULT_AROUND_MOST;
}

static int map_around(struct vm_area *vma, uint32_t index, struct page *page)
{
    struct page *pages[FAULT_AROUND_MOST];
    pages[0] = page;
    unsigned window = around_window(vma, index);
    unsigned n = lock_behind(vma, index, pages, window, false);
    int err = vma->ops->map(vma, index, pages, n, 0);
    for (unsigned i = 1; i < n; i++)
        page_unlock_put(vma->mapping, pages[i]);
    atomic_store_explicit(&vma->around, window, memory_order_relaxed);
    atomic_store_explicit(&vma->around_next, index + n, memory_order_relaxed);
    return err;
}

void vma_map_resident(struct vm_area *vma, uint32_t first, uint32_t count)
{
    struct address_space *m = vma->mapping;
    struct page *pages[FAULT_AROUND_MOST];
    uint64_t end = (uint64_t)first + count, next = first;
    while (next < end) {
        unsigned n = find_get_pages(m, &next, (uint32_t)(end - 1), pages, 1);
        if (n == 0)
            continue;
        uint32_t index = (uint32_t)next - 1;
        put_page(m->cache, pages[0]);
        pages[0] = trylock_resident(m, index, PG_readahead);
        if (pages[0] == NULL)
            continue;
        n = lock_behind(vma, index, pages, FAULT_AROUND_MOST, false);
        (void)vma->ops->map(vma, index, pages, n, 0); /* what is not mapped faults */
        for (unsigned i = 0; i < n; i++)
            page_unlock_put(m, pages[i]);
        next = (uint64_t)index + n;
    }
}

/* ---- stores ---------------------------------------------------------------------------------- */

/* Would page_mkwrite sleep: for writeback, a copy, or to look for a block? */
static bool mkwrite_may_sleep(struct page *page)
{
    return page_test(page, PG_writeback | PG_copied | PG_invalidating) ||
           !page_test(page, PG_dirty | PG_mappedtodisk);
}

/* Have the copies of a locked page taken back. The page is unlocked meanwhile, for that may wait until
 * somebody else has read it; who reads it then gets a copy, and is asked again. Other stores wait, or
 * they would be seen by those who share our pages and not by those with a copy.
 * Returns 0: none are left and nothing was unlocked; -EAGAIN: it was: look at the page again. */
static int take_back_copies(struct address_space *m, struct page *page, uint32_t index)
{
    if (page_test(page, PG_invalidating)) {
        unlock_page(page);
        wait_on_page_bit(page, PG_invalidating);
        lock_page(page);
        return -EAGAIN;
    }
    if (!page_test(page, PG_copied))
        return 0;
    page_clear(page, PG_copied);
    if (m->a_ops->forget_copy == NULL)
        return 0;
    page_set(page, PG_invalidating);
    unlock_page(page);
    m->a_ops->forget_copy(m, index);
    lock_page(page);
    page_clear_and_wake(page, PG_invalidating);
    return -EAGAIN;
}

/* How many to make writable here: more than one where the last window ended, or in it, for not all of it need
 * have become writable. */
static unsigned store_window(struct vm_area *vma, uint32_t index)
{
    struct page_cache *cache = vma->mapping->cache;
    unsigned most = atomic_load_explicit(&cache->store_around, memory_order_relaxed);
    unsigned last = atomic_load_explicit(&vma->store_around, memory_order_relaxed);
    uint32_t next = atomic_load_explicit(&vma->store_next, memory_order_relaxed);
    if (most <= 1 || next - index >= last) /* also where index is greater; at first last is 0 */
        return 1;
    unsigned window = last * 4 < most ? last * 4 : most, room = dirty_room(cache);
    return window < room ? window : room > 0 ? room : 1;
}

/* Those of the last window that were stored to need not wait until they are written to be known as such. */
static void look_back(struct vm_area *vma, uint32_t index)
{
    unsigned last = atomic_load_explicit(&vma->store_around, memory_order_relaxed);
    for (unsigned i = 1; i < last && i <= index; i++) {
        struct page *page = trylock_resident(vma->mapping, index - i, 0);
        if (page == NULL)
            continue;
        (void)page_look_ahead(vma->mapping, page);
        page_unlock_put(vma->mapping, page);
    }
}

/* Make a dirty page writable, and those that are likely to be stored to next. */
static int map_store_around(struct vm_area *vma, uint32_t index, struct page *page, unsigned flags)
{
    struct page *pages[STORE_AROUND_MOST] = { page };
    unsigned window = store_window(vma, index), n = 1;
    if (window > 1) {
        look_back(vma, index);
        n = lock_behind(vma, index, pages, window, true);
    }
    /* Who stores goes on while we are still in here, and may fault again on another thread. */
    unsigned last = atomic_exchange(&vma->store_around, n > 1 ? window : 1);
    uint32_t next = atomic_exchange(&vma->store_next, index + n);
    int err = vma->ops->map(vma, index, pages, n, VMA_MAP_WRITE | flags);
    for (unsigned i = 1; i < n; i++)
        page_unlock_put(vma->mapping, pages[i]);
    if (err != 0) {
        atomic_store(&vma->store_around, last);
        atomic_store(&vma->store_next, next);
    }
    return err;
}

/* The first store: wait for writeback, promise room, dirty, writable; all under one hold of the page's lock, or
 * the flusher would clean it in between and the store that follows would be lost. */
static int page_mkwrite(struct vm_area *vma, uint32_t index, struct page *page, unsigned flags)
{
    struct address_space *m = vma->mapping;
    int err = take_back_copies(m, page, index);
    if (err != 0)
        return err;
    wait_for_stable_page(m, page);
    err = page_map_block(m, page);
    if (err == 0)
        err = dirty_page_reserve(m, page);
    if (err != 0)
        return err;
    set_page_dirty(m, page);
    page_set(page, PG_mkwrite);
    return map_store_around(vma, index, page, flags);
}

/* ---- pages that cannot be had ----------------------------------------------------------------- */

static int call_while_gone(struct address_space *m, struct page *page, int (*work)(void *arg),
                           void *arg)
{
    if (page_test(page, PG_dirty | PG_writeback) || !page_ref_freeze(page, 2))
        return -EAGAIN; /* whoever else has a reference, a writer say, relies on it staying in its tree */
    bool unmapped = page_unmap(m, page);
    int err = unmapped ? work(arg) : -EAGAIN;
    /* Its bytes went with page_unmap(), or it never had any: nobody may find it again. */
    bool goes = unmapped || !page_test(page, PG_uptodate);
    if (goes)
        page_delete(m, page);
    page_ref_unfreeze(page, goes ? 1 : 2);
    return err;
}

int page_call_while_gone(struct address_space *m, uint32_t index, int (*work)(void *arg), void *arg)
{
    int err = 0;
    down_read(&m->invalidate_lock);
    struct page *page = find_or_create_page(m, index, &err);
    if (page != NULL) {
        err = call_while_gone(m, page, work, arg);
        page_unlock_put(m, page);
    }
    up_read(&m->invalidate_lock);
    return err;
}

/* ---- advice ---------------------------------------------------------------------------------- */

#define ADVISED(first, last) ((uint64_t)(first) << 32 | (last))

/* Nothing but readahead goes by it, so that the part and its kind may be seen apart. */
void vma_advise(struct vm_area *vma, uint32_t first, uint32_t count, enum ra_advice advice)
{
    uint64_t old = atomic_load(&vma->advised);
    uint32_t last = first + (count - 1), old_first = (uint32_t)(old >> 32),
             old_last = (uint32_t)old;
    bool adjoin = first <= (uint64_t)old_last + 1 && old_first <= (uint64_t)last + 1;
    if (atomic_load(&vma->advice) == (int)advice && adjoin) {
        first = old_first < first ? old_first : first;
        last = old_last > last ? old_last : last;
    }
    atomic_store(&vma->advised, ADVISED(first, last));
    atomic_store(&vma->advice, (int)advice);
}

static enum ra_how how_touched(struct vm_area *vma, uint32_t index, bool write)
{
    int advice = atomic_load_explicit(&vma->advice, memory_order_relaxed);
    uint64_t part = atomic_load_explicit(&vma->advised, memory_order_relaxed);
    if (advice != RA_ADVICE_NORMAL && index >= part >> 32 && index <= (uint32_t)part)
        return advice == RA_ADVICE_RANDOM ? RA_FAULT_RANDOM : RA_FAULT_SEQUENTIAL;
    return write ? RA_FAULT_WRITE : RA_FAULT;
}

/* ---- faults ---------------------------------------------------------------------------------- */

/* n is 1, or -1 to take it back. */
static void count_fault(struct vm_area *vma, bool write, bool major, uint64_t n)
{
    struct fault_counters *c = &vma->mapping->cache->count.faults[vma->door];
    count_add(major ? &c->major : &c->minor, n);
    if (write)
        count_add(&c->mkwrite, n);
}

static int fault_once(struct vm_area *vma, uint32_t index, unsigned flags, bool *major)
{
    bool write = flags & FAULT_WRITE;
    struct page *page;
    int err = flags & FAULT_NOWAIT
                  ? fault_try_page(vma, index, write, &page)
                  : fault_get_page(vma, index, how_touched(vma, index, write), &page, major);
    if (err != 0)
        return err;
    if (write && (flags & FAULT_NOWAIT) && mkwrite_may_sleep(page)) {
        page_unlock_put(vma->mapping, page);
        return -EAGAIN;
    }
    bool marked = page_test(page, PG_readahead) != 0;
    count_fault(vma, write, *major, 1); /* before whoever faulted can go on, and ask */
    err = write ? page_mkwrite(vma, index, page, flags & FAULT_PRESENT ? VMA_MAP_PRESENT : 0)
                : map_around(vma, index, page);
    if (err != 0)
        count_fault(vma, write, *major, (uint64_t)-1);
    page_unlock_put(vma->mapping, page);
    return err == 0 && marked && (flags & FAULT_NOWAIT) ? 1 : err;
}

/* Before the page is locked, and before whoever faulted can go on, and ask.   Returns false: it would
 * sleep, and must not. */
static bool times_are_due(struct address_space *m, unsigned flags)
{
    if (m->a_ops->page_mkwrite == NULL)
        return true;
    return m->a_ops->page_mkwrite(m, flags & FAULT_NOWAIT);
}

/* Before it is tried again. A client can keep its address space changing. */
static void wait_a_moment(unsigned tries)
{
    if (tries < YIELDS)
        sched_yield();
    else
        (void)poll(NULL, 0, 1);
}

/* Until something comes of it, if it may sleep. */
static int fault_until(struct vm_area *vma, uint32_t index, unsigned flags, bool *major)
{
    int err;
    for (unsigned tries = 0;
         (err = fault_once(vma, index, flags, major)) == -EAGAIN && !(flags & FAULT_NOWAIT);
         tries++)
        wait_a_moment(tries);
    return err;
}

int handle_mm_fault(struct vm_area *vma, uint32_t index, unsigned flags)
{
    struct page_cache *cache = vma->mapping->cache;
    bool major = false;
    int err;
    if (index < vma->first || index - vma->first >= vma->count)
        return -EFAULT;
    if ((flags & FAULT_WRITE) && dirty_throttle_due(cache)) {
        if (flags & FAULT_NOWAIT)
            return -EAGAIN;
        /* Before the page is writable: afterwards the flusher could clean it while we wait, and the
         * store fault again, and again. */
        balance_dirty_pages(cache);
    }
    if ((flags & FAULT_WRITE) && !times_are_due(vma->mapping, flags))
        return -EAGAIN;
    err = fault_until(vma, index, flags, &major);
    const struct address_space_operations *a_ops = vma->mapping->a_ops;
    if (err == -ENOSPC && !(flags & FAULT_NOWAIT) && a_ops->make_room != NULL) {
        a_ops->make_room(vma->mapping);
        (void)times_are_due(vma->mapping, flags); /* later ones */
        err = fault_until(vma, index, flags, &major);
    }
    return err;
}

void vma_readahead(struct vm_area *vma, uint32_t index)
{
    struct address_space *m = vma->mapping;
    struct page *page = vma->ra != NULL ? find_get_page(m, index) : NULL;
    if (page == NULL)
        return;
    struct ra_request rq = { .index = index, .nr = 1, .how = how_touched(vma, index, false) };
    if (page_test(page, PG_readahead))
        page_cache_async_ra(m, vma->ra, page, &rq);
    put_page(m->cache, page);
}
