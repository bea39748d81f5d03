/* fuse_throttle.c: writers wait for their replies while too much is dirty, and no thread waits with them.
 *
 * A thread of the session that slept in balance_dirty_pages would be missing for everybody else's
 * requests, and sixteen writers would take all of them. So what was written is queued, and one thread
 * sleeps for each in turn, then answers: together they get the speed of the disk, as they should. */
#include <errno.h>
#include <stdlib.h>

#include "fs/fuse_ops.h"

#define THROTTLE_IDLE_MS 60000u /* it is woken for work; this only bounds a sleep */

struct throttled {
    struct throttled *next;
    fuse_req_t req;
    size_t written;
};

struct throttle { /* (l) lock  (c) constant */
    pthread_mutex_t lock;
    struct throttled *first; /* oldest                                                 (l) */
    struct throttled **end;  /* where the next one goes                                (l) */
    struct worker *worker;   /* (c) */
};

static uint32_t pages_of(size_t bytes)
{
    return (uint32_t)(bytes >> PAGE_SHIFT) + 1;
}

static struct throttled *take_oldest(struct throttle *t)
{
    pthread_mutex_lock(&t->lock);
    struct throttled *oldest = t->first;
    if (oldest != NULL) {
        t->first = oldest->next;
        if (t->first == NULL)
            t->end = &t->first;
    }
    pthread_mutex_unlock(&t->lock);
    return oldest;
}

static unsigned throttle_step(void *arg)
{
    struct front *front = arg;
    struct throttled *w = take_oldest(front->throttle);
    if (w == NULL)
        return THROTTLE_IDLE_MS;
    balance_dirty_pages_ratelimited(front->fs->cache, pages_of(w->written));
    fuse_reply_write(w->req, w->written);
    free(w);
    return 0;
}

int throttle_start(struct front *front)
{
    struct throttle *t = calloc(1, sizeof *t);
    if (t == NULL)
        return -ENOMEM;
    pthread_mutex_init(&t->lock, NULL);
    t->end = &t->first;
    front->throttle = t;
    int err = worker_start(&t->worker, "folio-throttle", throttle_step, front);
    if (err != 0) {
        front->throttle = NULL;
        pthread_mutex_destroy(&t->lock);
        free(t);
    }
    return err;
}

void throttle_stop(struct front *front)
{
    struct throttle *t = front->throttle;
    struct throttled *w;
    if (t == NULL)
        return;
    worker_stop(t->worker);
    while ((w = take_oldest(t)) != NULL) {
        fuse_reply_write(w->req, w->written);
        free(w);
    }
    front->throttle = NULL;
    pthread_mutex_destroy(&t->lock);
    free(t);
}

void reply_written(fuse_req_t req, size_t written)
{
    struct front *front = front_of(req);
    struct throttled *w = NULL;
    if (dirty_throttle_due(front->fs->cache))
        w = malloc(sizeof *w);
    if (w == NULL) {
        fuse_reply_write(req, written);
        return;
    }
    *w = (struct throttled){ .req = req, .written = written };
    struct throttle *t = front->throttle;
    pthread_mutex_lock(&t->lock);
    *t->end = w;
    t->end = &w->next;
    pthread_mutex_unlock(&t->lock);
    worker_wake(t->worker);
}
