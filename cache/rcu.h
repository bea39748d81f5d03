/* Read-copy-update, the little of it the cache uses.
 *
 * A reader brackets its look with cache_rcu_read_lock() and cache_rcu_read_unlock() and takes no
 * lock. What it found inside stays allocated until the bracket closes: whoever removes something
 * from a shared structure hands it to cache_rcu_call(), which frees it after every bracket open at
 * that moment has closed. That is a promise about memory only; whether the thing still is what was
 * looked for, the reader must check.
 *
 * This is the only file that includes liburcu, of which it takes the "memb" flavour; a thread registers itself at its
 * first bracket and is gone from liburcu's list when it ends. (The "bp" flavour does that, too, but allocates for it, and
 * aborts the program where it cannot.) The deferred calls run on a thread that liburcu starts at the first one; it aborts
 * where it cannot, so page_cache_create() has it started. A program that forks into the background does so before it.
 *
 * ThreadSanitizer does not see the grace period: the library is not instrumented. We tell it, on
 * one address: closing a bracket and queueing a call release, starting a deferred call acquires. */
#ifndef FOLIO_CACHE_RCU_H
#define FOLIO_CACHE_RCU_H

#if defined(__has_feature)
#define CACHE_RCU_FEATURE(feature) __has_feature(feature)
#else
#define CACHE_RCU_FEATURE(feature) 0
#endif

#if defined(__SANITIZE_THREAD__) || CACHE_RCU_FEATURE(thread_sanitizer)
#define CACHE_RCU_TSAN 1
#else
#define CACHE_RCU_TSAN 0
#endif

/* Inlined brackets cost 2 ns, called ones 14. ThreadSanitizer gets the called ones: inlined, their wake-up of who waits
 * for a grace period is reported, which is the library's own affair. */
#if !CACHE_RCU_TSAN && !defined(_LGPL_SOURCE)
#define _LGPL_SOURCE 1
#endif

#include <stdbool.h>
#include <urcu/urcu-memb.h>

#if CACHE_RCU_TSAN
void __tsan_acquire(void *addr);
void __tsan_release(void *addr);
extern struct urcu_gp urcu_memb_gp; /* only its address, as the one word every file agrees on */
#endif

/* Tell TSan that all before this happens before the deferred calls that run after it. */
static inline void cache_rcu_release(void)
{
#if CACHE_RCU_TSAN
    __tsan_release(&urcu_memb_gp);
#endif
}

/* The first statement of every function given to cache_rcu_call(); see above. */
static inline void cache_rcu_acquire(void)
{
#if CACHE_RCU_TSAN
    __tsan_acquire(&urcu_memb_gp);
#endif
}

extern _Thread_local bool cache_rcu_registered;
void cache_rcu_register(void);

/* Open a bracket; brackets nest.   Blocks: a thread's first one, shortly. */
static inline void cache_rcu_read_lock(void)
{
    if (!cache_rcu_registered)
        cache_rcu_register();
    urcu_memb_read_lock();
}

/* Close it: nothing found inside may be used any more unless a reference was taken. */
static inline void cache_rcu_read_unlock(void)
{
    cache_rcu_release();
    urcu_memb_read_unlock();
}

/* Call func(head), on liburcu's thread, when every bracket open now has closed.
 * head: inside the thing to be freed, untouched by readers.   Blocks: never.   Locks: any. */
static inline void cache_rcu_call(struct rcu_head *head, void (*func)(struct rcu_head *head))
{
    cache_rcu_release();
    if (!cache_rcu_registered)
        cache_rcu_register();
    urcu_memb_call_rcu(head, func);
}

/* Wait until every bracket open now has closed.   Locks: none that a reader may wait for. */
static inline void cache_rcu_synchronize(void)
{
    urcu_memb_synchronize_rcu();
    cache_rcu_acquire();
}

/* Wait until every deferred call queued before has run. For start, shutdown and tests. Allocates nothing.   Locks: none. */
void cache_rcu_barrier(void);

#endif
