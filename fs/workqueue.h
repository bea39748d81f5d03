/* workqueue.h: requests in the order they came, for threads that answer no others (after Linux's workqueues).
 *
 * What takes long, or waits for a client or for the kernel, is missing from the threads of the session, and sixteen such
 * requests would be all of them. So it is queued:
 *
 *     queued --> being done --> WORK_DONE
 *       ^            |
 *       |            +--> WORK_AGAIN: a step of many is done; behind the others
 *       +------------+--> WORK_LATER: somebody is in the way; when there are no others, 10 ms later
 *
 * Locks: the queue's own is taken last, and never held while work is done.
 * Invariant: a work is in one queue, in one place of it, or with the thread that does it.
 */
#ifndef FOLIO_FS_WORKQUEUE_H
#define FOLIO_FS_WORKQUEUE_H

#include <pthread.h>

#include "cache/worker.h"

enum work_end { WORK_DONE, WORK_AGAIN, WORK_LATER };

struct work {
    struct work *next;
    /* Context: no lock held. Once it returns WORK_DONE the work may be gone. */
    enum work_end (*func)(struct work *);
};

struct workqueue { /* zeros: not started   (l) lock  (c) constant */
    pthread_mutex_t lock;
    struct work *first; /* oldest                                                      (l) */
    struct work **end;  /* where the next one goes                                     (l) */
    struct work *later; /* tried, and to be tried again                                (l) */
    unsigned nr;        /* all of them, and those being done                           (l) */
    unsigned together;  /* (c) */
    struct crew crew;   /* (l) to grow it */
};

/* name: of its threads, 15 bytes at most. One thread, and up to together of them as works come together.
 * Returns 0 or -errno. */
int workqueue_start(struct workqueue *q, const char *name, unsigned together);
/* Do here what is queued. Nobody queues or grows any more, but for the works themselves. Nothing for one not started. */
void workqueue_stop(struct workqueue *q);
/* Any thread. */
void queue_work(struct workqueue *q, struct work *work);
/* A client may keep a thread waiting, and as many as there are works about its files: have one for each, and at least
 * nr; see crew_grow(). They look what is to be done, which those who are kept may have put back. Nothing for one not
 * started. */
void workqueue_grow(struct workqueue *q, unsigned nr);

#endif
