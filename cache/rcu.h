/* Read-copy-update, the little of it the cache uses.
 *
 * A reader brackets its look with cache_rcu_read_lock() and cache_rcu_read_unlock() and takes no
 * lock. What it found inside stays allocated until the bracket closes: whoever removes something
 * from a shared structure hands it to cache_rcu_call(), which frees it after every bracket open at
 * that moment has closed. That is a promise about memory only; whether the thing still is what was
 * looked for, the reader must check.
 *
 * This is the only file that includes liburcu ("bulletproof" flavour: a thread registers itself at
 * its first bracket). The deferred calls run on a thread that liburcu starts at the first
 * cache_rcu_call(), so a program that forks into the background does so before it.
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

/* Inlined brackets cost 2 ns, called ones 14. Sanitizers get the called ones: instrumented, the
 * inlined ones are reported for what is the library's own affair (a reader's record that the next
 * thread inherits: TSan; its alignment: UBSan, which gcc does not let us detect, but which comes
 * with ASan in our build; that it is registered: clang's analyzer). */
#if !CACHE_RCU_TSAN && !defined(__SANITIZE_ADDRESS__) && !CACHE_RCU_FEATURE(address_sanitizer) && \
    !CACHE_RCU_FEATURE(undefined_behavior_sanitizer) && !defined(__clang_analyzer__) &&           \
    !defined(_LGPL_SOURCE)
#define _LGPL_SOURCE 1
#endif

#include <urcu/urcu-bp.h>

#if CACHE_RCU_TSAN
void __tsan_acquire(void *addr);
void __tsan_release(void *addr);
void __tsan_ignore_thread_begin(void);
void __tsan_ignore_thread_end(void);
extern struct urcu_bp_gp urcu_bp_gp; /* only its address, as the one word every file agrees on */
#endif

/* Tell TSan that all before this happens before the deferred calls that run after it. */
static inline void cache_rcu_release(void)
{
#if CACHE_RCU_TSAN
    __tsan_release(&urcu_bp_gp);
#endif
}

/* The first statement of every function given to cache_rcu_call(); see above. */
static inline void cache_rcu_acquire(void)
{
#if CACHE_RCU_TSAN
    __tsan_acquire(&urcu_bp_gp);
#endif
}

/* Open a bracket; brackets nest.   Blocks: never. */
static inline void cache_rcu_read_lock(void)
{
    urcu_bp_read_lock();
}

/* Close it: nothing found inside may be used any more unless a reference was taken. */
static inline void cache_rcu_read_unlock(void)
{
    cache_rcu_release();
    urcu_bp_read_unlock();
}

/* Call func(head), on liburcu's thread, when every bracket open now has closed.
 * head: inside the thing to be freed, untouched by readers.   Blocks: never.   Locks: any. */
static inline void cache_rcu_call(struct rcu_head *head, void (*func)(struct rcu_head *head))
{
    cache_rcu_release();
    urcu_bp_call_rcu(head, func);
}

/* Wait until every bracket open now has closed.   Locks: none that a reader may wait for. */
static inline void cache_rcu_synchronize(void)
{
    urcu_bp_synchronize_rcu();
    cache_rcu_acquire();
}

/* Wait until every deferred call queued before has run. For shutdown and tests.   Locks: none.
 * Its bookkeeping is allocated here and freed on liburcu's thread, which TSan must not see. */
static inline void cache_rcu_barrier(void)
{
#if CACHE_RCU_TSAN
    __tsan_ignore_thread_begin();
    urcu_bp_barrier();
    __tsan_ignore_thread_end();
#else
    urcu_bp_barrier();
#endif
    cache_rcu_acquire();
}

#endif
