/* wait.h: sleeping on a word of memory, and the read-write lock built on it.
 *
 * Everything in cache/ that can sleep, sleeps here: on page flags, on locks, for memory, for the
 * flusher. Normally that is futex(2). A single-threaded simulation installs wait_hooks for its
 * thread and gets every sleep as a call it can schedule.
 */
#ifndef FOLIO_CACHE_WAIT_H
#define FOLIO_CACHE_WAIT_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

struct wait_hooks {
    void (*wait)(void *arg, _Atomic uint32_t *word, uint32_t seen);
    void (*wake)(void *arg, _Atomic uint32_t *word);
    void (*yield)(void *arg); /* only with FOLIO_SIM, see cache_yield() */
    void *arg;
};

/* Install hooks for the calling thread; NULL: back to futex(2). */
void wait_set_hooks(const struct wait_hooks *hooks);

/* Here another thread may come in between. Nothing, except in a build for the simulation, which takes
 * threads over at these places, where a test with real ones would have to be lucky. */
#ifdef FOLIO_SIM
void cache_yield(void);
#else
static inline void cache_yield(void) {}
#endif

/* Sleep while *word == seen; may return early for no reason.
 * timeout_ms: 0 waits without limit.   Returns false when the time is over. */
bool wait_on_word(_Atomic uint32_t *word, uint32_t seen, unsigned timeout_ms);
void wake_word(_Atomic uint32_t *word); /* everybody */

/* A sleeping read-write lock. Any thread may release what another took (a completion does), which
 * pthread_rwlock_t forbids. Writers are not starved: a waiting writer stops new readers.
 * Zero-initialised is unlocked. Not recursive. */
struct rwsem {
    _Atomic uint32_t state; /* RWSEM_* in wait.c: writer, sleepers, waiting writers, readers */
};

void down_read(struct rwsem *sem);
bool down_read_trylock(struct rwsem *sem); /* false also while a writer waits */
void up_read(struct rwsem *sem);
void down_write(struct rwsem *sem);
bool down_write_trylock(struct rwsem *sem);
void up_write(struct rwsem *sem);

#endif
