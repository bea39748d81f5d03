#include "cache/page.h"

#include <assert.h>

#include "cache/wait.h"

bool get_page_unless_zero(struct page *page)
{
    cache_yield();
    int32_t n = atomic_load_explicit(&page->refcount, memory_order_relaxed);
    do {
        if (n == 0)
            return false;
    } while (!atomic_compare_exchange_weak_explicit(&page->refcount, &n, n + 1,
                                                    memory_order_acquire, memory_order_relaxed));
    cache_yield();
    return true;
}

bool page_ref_freeze(struct page *page, int count)
{
    int32_t n = count;
    return atomic_compare_exchange_strong_explicit(&page->refcount, &n, 0, memory_order_acq_rel,
                                                   memory_order_relaxed);
}

void page_ref_unfreeze(struct page *page, int count)
{
    assert(atomic_load(&page->refcount) == 0);
    atomic_store_explicit(&page->refcount, count, memory_order_release);
}

bool trylock_page(struct page *page)
{
    return (page_set(page, PG_locked) & PG_locked) == 0;
}

void lock_page(struct page *page)
{
    while (!trylock_page(page))
        wait_on_page_bit(page, PG_locked);
}

void unlock_page(struct page *page)
{
    assert(page_test(page, PG_locked));
    page_clear_and_wake(page, PG_locked);
}

void wait_on_page_bit(struct page *page, uint32_t bit)
{
    uint32_t f = atomic_load_explicit(&page->flags, memory_order_acquire);
    while (f & bit) {
        if ((f & PG_waiters) || atomic_compare_exchange_weak(&page->flags, &f, f | PG_waiters))
            wait_on_word(&page->flags, f | PG_waiters, 0);
        f = atomic_load_explicit(&page->flags, memory_order_acquire);
    }
}

void page_clear_and_wake(struct page *page, uint32_t bits)
{
    if (page_clear(page, bits | PG_waiters) & PG_waiters)
        wake_word(&page->flags);
}
