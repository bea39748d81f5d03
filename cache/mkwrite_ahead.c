/* mkwrite_ahead.c: pages that are dirty and writable ahead of a store that may never come (memory.h, M3).
 *
 *            page_mkwrite_ahead             differs: stored to, counted (page_look_ahead)
 *   clean ----------------------> PG_ahead ---------------------------------------------> dirty as any other
 *     ^                               |    about to be changed by others (wait_for_stable_page)
 *     |   the same, and nobody can store to it any more: page_end_ahead
 *     +-------------------------------+
 *
 * A copy of what the page was tells. No checksum would do: programs keep checksums in their pages, and a
 * linear one may well be the same for two pages that are each right by their own.
 */
#include "cache/memory.h"
#include "cache/page_cache.h"

#define LOCK_TRIES 1000u /* of who looks at all pages, and must not wait for long */

/* The page's place among the copies; its own while it is PG_ahead. Pages side by side do not share one, nor do
 * those a power of two apart, where several may store to parts of a file. */
static struct ahead_slot *slot_of(const struct address_space *m, const struct page *page)
{
    uint32_t index = atomic_load(&page->index);
    return &m->cache->ahead[(index + index / AHEAD_MOST * 67 + m->number * 97) % AHEAD_MOST];
}

static char *copy_in(const struct page_cache *cache, const struct ahead_slot *slot)
{
    return cache->ahead_copies + ((size_t)(slot - cache->ahead) << PAGE_SHIFT);
}

void page_forget_ahead(struct address_space *m, struct page *page)
{
    if (page_clear(page, PG_ahead) & PG_ahead)
        atomic_store(&slot_of(m, page)->page, NULL);
}

bool page_holds_slot(const struct address_space *m, const struct page *page)
{
    return atomic_load(&slot_of(m, page)->page) == page;
}

/* From clean to PG_ahead. */
static bool begin_ahead(struct address_space *m, struct page *page, enum fault_door door)
{
    struct ahead_slot *slot = slot_of(m, page);
    struct page *none = NULL;
    if (!atomic_compare_exchange_strong(&slot->page, &none, page))
        return false;
    if (dirty_page_reserve(m, page) != 0) {
        atomic_store(&slot->page, NULL);
        return false;
    }
    slot->door = door;
    memcpy(copy_in(m->cache, slot), page->data, PAGE_SIZE); /* nobody can store to it (M1) */
    set_page_dirty(m, page);
    page_set(page, PG_ahead);
    return true;
}

bool page_mkwrite_ahead(struct address_space *m, struct page *page, enum fault_door door)
{
    /* It sleeps, or starts the next window; a fault does that. */
    if (page_test(page, PG_writeback | PG_copied | PG_invalidating | PG_readahead))
        return false;
    if (!page_test(page, PG_ahead) &&
        (page_test(page, PG_dirty) || !page_test(page, PG_mappedtodisk) ||
         !begin_ahead(m, page, door)))
        return false;
    page_set(page, PG_mkwrite);
    return true;
}

bool page_look_ahead(struct address_space *m, struct page *page)
{
    if (!page_test(page, PG_ahead))
        return false;
    const struct ahead_slot *slot = slot_of(m, page);
    if (memcmp(page->data, copy_in(m->cache, slot), PAGE_SIZE) == 0)
        return false;
    count_add(&m->cache->count.faults[slot->door].mkwrite, 1);
    page_forget_ahead(m, page);
    return true;
}

void wait_for_stable_page(struct address_space *m, struct page *page)
{
    wait_on_page_writeback(page);
    (void)page_look_ahead(m, page);
    page_forget_ahead(m, page);
}

int page_end_ahead(struct address_space *m, struct page *page)
{
    if (!page_test(page, PG_ahead))
        return 0;
    int err = page_mkclean(m, page);
    if (err == 0 && !page_look_ahead(m, page))
        cancel_dirty_page(m, page);
    return err;
}

/* Who stores may go on just before the pages behind are unlocked. */
static bool trylock_for_a_while(struct page *page, unsigned *tries)
{
    while (!trylock_page(page)) {
        if (*tries == 0)
            return false;
        --*tries;
        sched_yield();
    }
    return true;
}

/* What is still in its slot once we have a reference cannot leave it and be another's before we let go. */
static void look_at_slot(struct page_cache *cache, struct ahead_slot *slot, unsigned *tries)
{
    struct page *page = atomic_load(&slot->page);
    if (page == NULL || !get_page_unless_zero(page))
        return;
    if (atomic_load(&slot->page) == page && trylock_for_a_while(page, tries)) {
        struct address_space *m = atomic_load(&page->mapping);
        if (m != NULL)
            (void)page_look_ahead(m, page);
        unlock_page(page);
    }
    put_page(cache, page);
}

void page_cache_look_ahead(struct page_cache *cache)
{
    unsigned tries = LOCK_TRIES;
    for (size_t i = 0; i < AHEAD_MOST; i++)
        look_at_slot(cache, &cache->ahead[i], &tries);
}
