/* lmdb_guard.c: getting out of LMDB alive.
 *
 * LMDB reads the volume through a map and believes what it finds. A page that cannot be read is a
 * SIGBUS, a damaged page number can be a SIGSEGV, an impossible state is an assertion. Each ends the
 * guarded call with a jump. Whatever LMDB held at that moment (its writer lock, half a page split)
 * stays as it is, so the environment is dead from then on: nobody enters it again.
 *
 * Only faults on the map of the call's own environment, and at null, are ours. Everything else goes
 * to whoever handled the signal before us: a sanitizer, the embedding program, the default.
 */
#include "store/lmdb_impl.h"

#include <assert.h>
#include <errno.h>
#include <setjmp.h>
#include <signal.h>
#include <string.h>

/* A page's own offsets are 16-bit: nodes of the last page in the map may seem to lie this far
 * behind it. */
#define MAP_SLACK_BYTES ((uintptr_t)256 << 10)

/* Nothing is mapped here. LMDB follows a null pointer when a damaged node claims to have duplicates,
 * which it keeps no cursor for; our own code under the guard has none to follow. */
#define NULL_BYTES ((uintptr_t)64 << 10)

struct guard {
    sigjmp_buf out;
    struct lmdb *l;
};

static _Thread_local struct guard *current; /* this thread's guarded call, if any */

static struct sigaction previous_segv, previous_bus;

_Noreturn static void give_up(struct guard *g)
{
    atomic_store(&g->l->dead, true);
    current = NULL;
    siglongjmp(g->out, 1);
}

static bool is_ours(const struct lmdb *l, const siginfo_t *info)
{
    uintptr_t base = (uintptr_t)l->map, at = (uintptr_t)info->si_addr;
    if (at < NULL_BYTES)
        return info->si_code == SEGV_MAPERR; /* an address no machine has is given as null, too */
    return l->map != NULL && at >= base && at - base < l->map_size + MAP_SLACK_BYTES;
}

/* Hand the signal to its previous owner. The default action is restored: a fault happens again when
 * we return, a signal that somebody sent is sent again. */
static void chain(int sig, siginfo_t *info, void *context)
{
    const struct sigaction *previous = sig == SIGBUS ? &previous_bus : &previous_segv;
    if ((previous->sa_flags & SA_SIGINFO) != 0) {
        previous->sa_sigaction(sig, info, context);
    } else if (previous->sa_handler != SIG_DFL && previous->sa_handler != SIG_IGN) {
        previous->sa_handler(sig);
    } else if (info->si_code > 0 || previous->sa_handler == SIG_DFL) {
        (void)signal(sig, SIG_DFL);
        if (info->si_code <= 0)
            (void)raise(sig);
    }
}

static void on_fault(int sig, siginfo_t *info, void *context)
{
    struct guard *g = current;
    if (g != NULL && info->si_code > 0 && is_ours(g->l, info))
        give_up(g);
    chain(sig, info, context);
}

static void install(void)
{
    struct sigaction action;
    memset(&action, 0, sizeof action);
    action.sa_sigaction = on_fault;
    /* NODEFER: we leave by a jump that does not restore the signal mask. */
    action.sa_flags = SA_SIGINFO | SA_NODEFER | SA_ONSTACK;
    (void)sigemptyset(&action.sa_mask);
    (void)sigaction(SIGSEGV, &action, &previous_segv);
    (void)sigaction(SIGBUS, &action, &previous_bus);
}

int lmdb_guard(struct lmdb *l, int (*work)(struct lmdb *l, void *arg), void *arg)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    struct guard g;
    (void)pthread_once(&once, install);
    if (atomic_load(&l->dead))
        return -EIO;
    assert(current == NULL);
    g.l = l;
    if (sigsetjmp(g.out, 0) != 0)
        return -EIO;
    current = &g;
    atomic_signal_fence(memory_order_seq_cst);
    int rc = work(l, arg);
    atomic_signal_fence(memory_order_seq_cst);
    current = NULL;
    return rc;
}

static void on_assert(MDB_env *env, const char *text)
{
    (void)env;
    (void)text;
    if (current != NULL)
        give_up(current);
}

void lmdb_guard_asserts(struct lmdb *l)
{
    (void)mdb_env_set_assert(l->env, on_assert);
}
