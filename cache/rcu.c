#include "cache/rcu.h"

#include <assert.h>
#include <pthread.h>
#include <semaphore.h>
#include <stddef.h>

_Thread_local bool cache_rcu_registered;

static pthread_key_t registered_key;

static void unregister(void *arg)
{
    (void)arg;
    cache_rcu_registered = false;
    urcu_memb_unregister_thread();
}

/* Among the first keys of the program: the C library allocates nothing for their values. */
__attribute__((constructor)) static void make_key(void)
{
    int err = pthread_key_create(&registered_key, unregister);
    assert(err == 0);
    (void)err;
}

void cache_rcu_register(void)
{
    urcu_memb_register_thread();
    cache_rcu_registered = true;
    int err = pthread_setspecific(registered_key, &registered_key);
    assert(err == 0); /* else liburcu would look at this thread after its end */
    (void)err;
}

struct barrier {
    struct rcu_head rcu;
    sem_t reached;
};

static void barrier_reached(struct rcu_head *head)
{
    cache_rcu_acquire();
    sem_post(&((struct barrier *)(void *)((char *)head - offsetof(struct barrier, rcu)))->reached);
}

/* The deferred calls run in the order in which they were queued: there is one thread for them. */
void cache_rcu_barrier(void)
{
    struct barrier b;
    sem_init(&b.reached, 0, 0);
    cache_rcu_call(&b.rcu, barrier_reached);
    while (sem_wait(&b.reached) != 0)
        ;
    sem_destroy(&b.reached);
    cache_rcu_acquire();
}
