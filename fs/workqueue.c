#include "fs/workqueue.h"

#define LATER_MS 10u
#define IDLE_MS  60000u /* it is woken for work; this only bounds a sleep */

/* Context: lock. */
static void put_work(struct workqueue *q, struct work *work)
{
    work->next = NULL;
    *q->end = work;
    q->end = &work->next;
}

/* Context: lock. */
static struct work *take_first(struct workqueue *q)
{
    struct work *work = q->first;
    if (work != NULL) {
        q->first = work->next;
        if (q->first == NULL)
            q->end = &q->first;
    }
    return work;
}

/* The oldest. Those to be tried later have their turn after a pause, when there is no other; *ms: so long, if there is
 * none now. */
static struct work *take_work(struct workqueue *q, unsigned *ms)
{
    pthread_mutex_lock(&q->lock);
    struct work *work = take_first(q);
    *ms = q->later != NULL ? LATER_MS : IDLE_MS;
    while (work == NULL && q->later != NULL) {
        struct work *next = q->later->next;
        put_work(q, q->later);
        q->later = next;
    }
    pthread_mutex_unlock(&q->lock);
    return work;
}

static unsigned workqueue_step(void *arg)
{
    struct workqueue *q = arg;
    unsigned ms;
    struct work *work = take_work(q, &ms);
    if (work == NULL)
        return ms;
    enum work_end end = work->func(work);
    pthread_mutex_lock(&q->lock);
    switch (end) {
    case WORK_DONE:
        q->nr--;
        break;
    case WORK_AGAIN:
        put_work(q, work);
        break;
    case WORK_LATER:
        work->next = q->later;
        q->later = work;
        break;
    }
    pthread_mutex_unlock(&q->lock);
    return 0;
}

int workqueue_start(struct workqueue *q, const char *name, unsigned together)
{
    pthread_mutex_init(&q->lock, NULL);
    q->end = &q->first;
    q->together = together;
    int err = crew_start(&q->crew, name, workqueue_step, q);
    if (err != 0)
        pthread_mutex_destroy(&q->lock);
    return err;
}

void workqueue_stop(struct workqueue *q)
{
    if (atomic_load(&q->crew.nr) == 0)
        return;
    crew_stop(&q->crew);
    while (workqueue_step(q) != IDLE_MS)
        ;
    pthread_mutex_destroy(&q->lock);
}

void queue_work(struct workqueue *q, struct work *work)
{
    pthread_mutex_lock(&q->lock);
    put_work(q, work);
    if (++q->nr <= q->together)
        crew_grow(&q->crew, q->nr);
    pthread_mutex_unlock(&q->lock);
    crew_wake(&q->crew);
}

void workqueue_grow(struct workqueue *q, unsigned nr)
{
    if (atomic_load(&q->crew.nr) == 0)
        return;
    pthread_mutex_lock(&q->lock);
    crew_grow(&q->crew, q->nr > nr ? q->nr : nr);
    pthread_mutex_unlock(&q->lock);
    crew_wake(&q->crew);
}
