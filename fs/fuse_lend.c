/* fuse_lend.c: giving the kernel copies of pages that somebody has attached (DOORS.md).
 *
 * Before the kernel gets a copy, the page is write-protected in every attached mapping. That needs the
 * clients' address spaces, and a client may hold its own locked while it waits for the very reply we are
 * about to give (mmap(2) of a file waits for reads of its pages). So what may have to wait for a client is
 * done by a thread of its own, and waited for a bounded time. Normally it is done by then. If not, the
 * kernel gets its copy now, and is told to forget it when the page is protected at last. */
#include <errno.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>

#include "cache/clock.h"
#include "cache/memory.h"
#include "fs/fuse_ops.h"

#define LEND_WAIT_MS 50u
#define LEND_TRIES   200u /* a page's lock is held for a moment, or for as long as a client likes */

enum lend_state { LEND_PENDING, LEND_DONE, LEND_ABANDONED };

struct lend {
    struct work work; /* first */
    struct front *front;
    struct inode *inode; /* a reference */
    _Atomic uint32_t state;
    bool certain;
    size_t nr, done;
    struct page *pages[]; /* references */
};

/* Mark a page as lent if that needs nobody's address space.   Returns false: it does, or may. */
static bool lend_quickly(struct address_space *m, struct page *page)
{
    if (!trylock_page(page))
        return false;
    bool quick = atomic_load(&page->mapping) != m || !page_test(page, PG_mkwrite);
    if (quick && atomic_load(&page->mapping) == m)
        quick = page_hold_copy(m, page) == 0;
    unlock_page(page);
    return quick;
}

/* ---- the thread ------------------------------------------------------------------------------ */

static void lend_free(struct lend *l)
{
    struct page_cache *cache = l->inode->fs->cache;
    for (size_t i = 0; i < l->nr; i++)
        put_page(cache, l->pages[i]);
    inode_put(l->inode, 1);
    free(l);
}

/* Returns 0; -EBUSY: somebody has it locked, or a client keeps us waiting. */
static int lend_one(struct address_space *m, struct page *page)
{
    for (unsigned tries = 0; !trylock_page(page); tries++) {
        if (tries == LEND_TRIES)
            return -EBUSY;
        sched_yield();
    }
    int err = atomic_load(&page->mapping) == m ? page_hold_copy(m, page) : 0;
    unlock_page(page);
    return err;
}

/* Returns false: not all of them yet. */
static bool lend_all(struct lend *l)
{
    for (; l->done < l->nr; l->done++) {
        int err = lend_one(&l->inode->mapping, l->pages[l->done]);
        if (err == -EBUSY)
            return false;
        l->certain = err == 0 && l->certain;
    }
    return true;
}

static void take_back_all(const struct lend *l)
{
    for (size_t i = 0; i < l->nr; i++)
        front_forget_range(l->front, l->inode->ino,
                           (uint64_t)atomic_load(&l->pages[i]->index) << PAGE_SHIFT, PAGE_SIZE);
}

static enum work_end lend(struct work *work)
{
    struct lend *l = (struct lend *)work;
    if (!lend_all(l))
        return WORK_LATER;
    if (atomic_exchange(&l->state, LEND_DONE) == LEND_ABANDONED) {
        take_back_all(l);
        lend_free(l);
    } else {
        wake_word(&l->state); /* its owner may have freed it: that needs the address only */
    }
    return WORK_DONE;
}

/* ---- who answers a request ------------------------------------------------------------------- */

/* Wait for it, but not for ever.   Returns 0 or -EIO; l is freed, or the thread's. */
static int lend_wait(struct lend *l)
{
    uint32_t pending = LEND_PENDING;
    for (unsigned ms = 0; ms < LEND_WAIT_MS && atomic_load(&l->state) == LEND_PENDING; ms += 10)
        (void)wait_on_word(&l->state, LEND_PENDING, 10);
    if (atomic_compare_exchange_strong(&l->state, &pending, LEND_ABANDONED))
        return 0;
    int err = l->certain ? 0 : -EIO;
    lend_free(l);
    return err;
}

int lend_pages(struct front *front, struct inode *inode, struct page **pages, size_t nr)
{
    struct lend *l = NULL;
    for (size_t i = 0; i < nr; i++) {
        if (lend_quickly(&inode->mapping, pages[i]))
            continue;
        if (l == NULL)
            l = calloc(1, sizeof *l + nr * sizeof(struct page *));
        if (l == NULL)
            return -ENOMEM;
        get_page(pages[i]);
        l->pages[l->nr++] = pages[i];
    }
    if (l == NULL)
        return 0;
    inode_ref(inode, 1);
    l->work.func = lend;
    l->front = front;
    l->inode = inode;
    l->certain = true;
    queue_work(&front->lender, &l->work);
    return lend_wait(l);
}
