#include "cache/worker.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>

#include "cache/wait.h"

struct worker {
    pthread_t thread;
    char name[16];
    worker_step step;
    void *arg;
    _Atomic uint32_t events; /* counts wake-ups; the thread sleeps on it */
    _Atomic bool stop;
};

static void *worker_main(void *arg)
{
    struct worker *w = arg;
    pthread_setname_np(pthread_self(), w->name);
    while (!atomic_load(&w->stop)) {
        uint32_t seen = atomic_load(&w->events);
        unsigned ms = w->step(w->arg);
        if (ms > 0 && !atomic_load(&w->stop))
            wait_on_word(&w->events, seen, ms);
    }
    return NULL;
}

int worker_start(struct worker **out, const char *name, worker_step step, void *arg)
{
    struct worker *w = calloc(1, sizeof *w);
    if (w == NULL)
        return -ENOMEM;
    strncpy(w->name, name, sizeof w->name - 1);
    w->step = step;
    w->arg = arg;
    /* Signals are the main thread's business, but faults belong to the thread that makes them. */
    sigset_t all, old;
    sigfillset(&all);
    sigdelset(&all, SIGSEGV);
    sigdelset(&all, SIGBUS);
    sigdelset(&all, SIGABRT);
    sigdelset(&all, SIGFPE);
    sigdelset(&all, SIGILL);
    pthread_sigmask(SIG_SETMASK, &all, &old);
    int err = pthread_create(&w->thread, NULL, worker_main, w);
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    if (err != 0) {
        free(w);
        return -err;
    }
    *out = w;
    return 0;
}

void worker_wake(struct worker *w)
{
    atomic_fetch_add(&w->events, 1);
    wake_word(&w->events);
}

static void worker_join(struct worker *w)
{
    atomic_store(&w->stop, true);
    worker_wake(w);
    pthread_join(w->thread, NULL);
}

void worker_stop(struct worker *w)
{
    if (w == NULL)
        return;
    worker_join(w);
    free(w);
}

int crew_start(struct crew *c, const char *name, worker_step step, void *arg)
{
    c->name = name;
    c->step = step;
    c->arg = arg;
    int err = worker_start(&c->workers[0], name, step, arg);
    atomic_store(&c->nr, err == 0 ? 1 : 0);
    return err;
}

void crew_grow(struct crew *c, unsigned nr)
{
    unsigned have = atomic_load(&c->nr);
    for (; have > 0 && have < nr && have < CREW_MOST; have++) {
        if (worker_start(&c->workers[have], c->name, c->step, c->arg) != 0)
            return;
        atomic_store(&c->nr, have + 1);
    }
}

void crew_wake(struct crew *c)
{
    for (unsigned i = 0, nr = atomic_load(&c->nr); i < nr; i++)
        worker_wake(c->workers[i]);
}

void crew_stop(struct crew *c)
{
    /* Those that are not done yet may wake any of them, and add to them. */
    for (unsigned i = 0; i < atomic_load(&c->nr); i++)
        worker_join(c->workers[i]);
    for (unsigned i = 0; i < atomic_load(&c->nr); i++)
        free(c->workers[i]);
    atomic_store(&c->nr, 0);
}
