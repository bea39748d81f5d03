/* mkwrite_ahead.c: pages that are dirty and writable ahead of a store that may never come (memory.h, M3).
 *
 *            page_mkwrite_ahead             differs: stored to, counted (page_look_ahead)
 *   clean ----------------------> PG_ahead ---------------------------------------------> dirty as any other
 *     ^                               |    about to be changed by others (wait_for_stable_page)
 *     |   the same, and nobody can store to it any more: page_end_ahead
 *     +-------------------------------+
 *
 * A checksum of 64 bits: a store is missed, and lost, when it changes the page to another with the same
 * one, one page in 2^64; CRC-64 misses none that changes up to 64 bits side by side.
 */
#include <isa-l/crc64.h>

#include "cache/memory.h"
#include "cache/page_cache.h"

static uint64_t checksum(struct page *page)
{
    return crc64_ecma_refl(0, page->data, PAGE_SIZE);
}

/* The page's place among the cache's checksums; its own while it is PG_ahead. */
static struct ahead_page *slot_of(struct page_cache *cache, const struct page *page)
{
    return &cache->ahead[(size_t)(page - cache->pages) % AHEAD_MOST];
}

void page_forget_ahead(struct page_cache *cache, struct page *page)
{
    if (page_clear(page, PG_ahead) & PG_ahead)
        atomic_store(&slot_of(cache, page)->page, NULL);
}

bool page_mkwrite_ahead(struct address_space *m, struct page *page, enum fault_door door)
{
    const uint32_t unless = PG_dirty | PG_writeback | PG_copied | PG_invalidating | PG_readahead;
    struct ahead_page *slot = slot_of(m->cache, page);
    struct page *none = NULL;
    if (page_test(page, unless) || !page_test(page, PG_mappedtodisk) ||
        !atomic_compare_exchange_strong(&slot->page, &none, page))
        return false;
    if (dirty_page_reserve(m, page) != 0) {
        atomic_store(&slot->page, NULL);
        return false;
    }
    slot->door = door;
    slot->before = checksum(page); /* nobody can store to a clean page (M1) */
    set_page_dirty(m, page);
    page_set(page, PG_mkwrite | PG_ahead);
    return true;
}

bool page_look_ahead(struct address_space *m, struct page *page)
{
    if (!page_test(page, PG_ahead))
        return false;
    const struct ahead_page *slot = slot_of(m->cache, page);
    if (checksum(page) == slot->before)
        return false;
    count_add(&m->cache->count.faults[slot->door].mkwrite, 1);
    page_forget_ahead(m->cache, page);
    return true;
}

void wait_for_stable_page(struct address_space *m, struct page *page)
{
    wait_on_page_writeback(page);
    (void)page_look_ahead(m, page);
    page_forget_ahead(m->cache, page);
}

int page_end_ahead(struct address_space *m, struct page *page)
{
    int err = page_test(page, PG_ahead) ? page_mkclean(m, page) : 0;
    if (err == 0 && page_test(page, PG_ahead) && !page_look_ahead(m, page))
        cancel_dirty_page(m, page);
    return err;
}

/* A slot's page may be another's by the time it is locked; then it says so itself. */
static void look_at_slot(struct page_cache *cache, struct ahead_page *slot)
{
    struct page *page = atomic_load(&slot->page);
    if (page == NULL || !get_page_unless_zero(page))
        return;
    if (trylock_page(page)) {
        struct address_space *m = atomic_load(&page->mapping);
        if (m != NULL)
            (void)page_look_ahead(m, page);
        unlock_page(page);
    }
    put_page(cache, page);
}

void page_cache_look_ahead(struct page_cache *cache)
{
    for (size_t i = 0; i < AHEAD_MOST; i++)
        look_at_slot(cache, &cache->ahead[i]);
}
