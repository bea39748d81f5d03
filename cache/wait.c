#include "cache/wait.h"

#include <linux/futex.h>
#include <limits.h>
#include <stddef.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define RWSEM_WRITER       0x80000000u
#define RWSEM_SLEEPERS     0x40000000u /* somebody sleeps: wake on release */
#define RWSEM_WAITING      0x00010000u /* one writer waiting; 14 bits of them */
#define RWSEM_WAITING_MASK 0x3fff0000u
#define RWSEM_READERS      0x0000ffffu

static _Thread_local const struct wait_hooks *hooks;

void wait_set_hooks(const struct wait_hooks *h)
{
    hooks = h;
}

#ifdef FOLIO_SIM
void cache_yield(void)
{
    if (hooks != NULL && hooks->yield != NULL)
        hooks->yield(hooks->arg);
}
#endif

bool wait_on_word(_Atomic uint32_t *word, uint32_t seen, unsigned timeout_ms)
{
    if (hooks != NULL) {
        hooks->wait(hooks->arg, word, seen);
        return true;
    }
    struct timespec ts = { .tv_sec = timeout_ms / 1000,
                           .tv_nsec = (long)(timeout_ms % 1000) * 1000000 };
    long r =
        syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, seen, timeout_ms != 0 ? &ts : NULL, NULL, 0);
    return r == 0 || atomic_load_explicit(word, memory_order_acquire) != seen;
}

void wake_word(_Atomic uint32_t *word)
{
    if (hooks != NULL)
        hooks->wake(hooks->arg, word);
    else
        syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, INT_MAX, NULL, NULL, 0);
}

/* Sleep until the state changes from s, with the bit set that makes the releaser wake us. */
static void rwsem_sleep(struct rwsem *sem, uint32_t s)
{
    if (!(s & RWSEM_SLEEPERS) &&
        !atomic_compare_exchange_strong(&sem->state, &s, s | RWSEM_SLEEPERS))
        return;
    wait_on_word(&sem->state, s | RWSEM_SLEEPERS, 0);
}

void down_read(struct rwsem *sem)
{
    cache_yield();
    uint32_t s = atomic_load(&sem->state);
    for (;;) {
        if (s & (RWSEM_WRITER | RWSEM_WAITING_MASK)) {
            rwsem_sleep(sem, s);
            s = atomic_load(&sem->state);
        } else if (atomic_compare_exchange_weak(&sem->state, &s, s + 1)) {
            return;
        }
    }
}

bool down_read_trylock(struct rwsem *sem)
{
    uint32_t s = atomic_load(&sem->state);
    while (!(s & (RWSEM_WRITER | RWSEM_WAITING_MASK)))
        if (atomic_compare_exchange_weak(&sem->state, &s, s + 1))
            return true;
    return false;
}

void up_read(struct rwsem *sem)
{
    cache_yield();
    uint32_t s = atomic_fetch_sub(&sem->state, 1);
    if ((s & RWSEM_READERS) == 1 && (s & RWSEM_SLEEPERS)) {
        atomic_fetch_and(&sem->state, ~RWSEM_SLEEPERS);
        wake_word(&sem->state);
    }
}

bool down_write_trylock(struct rwsem *sem)
{
    uint32_t s = 0;
    return atomic_compare_exchange_strong(&sem->state, &s, RWSEM_WRITER);
}

void down_write(struct rwsem *sem)
{
    cache_yield();
    if (down_write_trylock(sem))
        return;
    uint32_t s = atomic_fetch_add(&sem->state, RWSEM_WAITING) + RWSEM_WAITING;
    for (;;) {
        if (s & (RWSEM_WRITER | RWSEM_READERS)) {
            rwsem_sleep(sem, s);
            s = atomic_load(&sem->state);
        } else if (atomic_compare_exchange_weak(&sem->state, &s,
                                                (s - RWSEM_WAITING) | RWSEM_WRITER)) {
            return;
        }
    }
}

void up_write(struct rwsem *sem)
{
    cache_yield();
    uint32_t s = atomic_fetch_and(&sem->state, ~(RWSEM_WRITER | RWSEM_SLEEPERS));
    if (s & RWSEM_SLEEPERS)
        wake_word(&sem->state);
}
