/* fuse_turns.c: requests that take long, a step each in turn, so that a short one waits for no long one.
 *
 * A thread of the session would be missing for everybody else's requests meanwhile, and sixteen such requests would take
 * all of them. One thread takes all the steps: they are as fast as the disk, however many take them. It may be held by a
 * client that keeps a page of the file (DOORS.md); then there are more. */
#include <errno.h>
#include <stdlib.h>

#include "fs/fuse_ops.h"

#define TURNS_IDLE_MS 60000u /* it is woken for work; this only bounds a sleep */

struct turns { /* (l) lock  (c) constant */
    pthread_mutex_t lock;
    struct turn_job *first; /* whose turn it is                                        (l) */
    struct turn_job **end;  /* where the next one goes                                 (l) */
    struct crew crew;       /* (c) */
};

static struct turn_job *take_turn(struct turns *t)
{
    pthread_mutex_lock(&t->lock);
    struct turn_job *job = t->first;
    if (job != NULL) {
        t->first = job->next;
        if (t->first == NULL)
            t->end = &t->first;
    }
    pthread_mutex_unlock(&t->lock);
    return job;
}

static void put_turn(struct turns *t, struct turn_job *job)
{
    job->next = NULL;
    pthread_mutex_lock(&t->lock);
    *t->end = job;
    t->end = &job->next;
    pthread_mutex_unlock(&t->lock);
}

static unsigned turns_step(void *arg)
{
    struct front *front = arg;
    struct turn_job *job = take_turn(front->turns);
    if (job == NULL)
        return TURNS_IDLE_MS;
    if (job->step(job))
        put_turn(front->turns, job);
    return 0;
}

int turns_start(struct front *front)
{
    struct turns *t = calloc(1, sizeof *t);
    if (t == NULL)
        return -ENOMEM;
    pthread_mutex_init(&t->lock, NULL);
    t->end = &t->first;
    front->turns = t;
    int err = crew_start(&t->crew, "folio-turns", turns_step, front);
    if (err != 0) {
        front->turns = NULL;
        pthread_mutex_destroy(&t->lock);
        free(t);
    }
    return err;
}

void turns_stop(struct front *front)
{
    struct turns *t = front->turns;
    if (t == NULL)
        return;
    crew_stop(&t->crew);
    while (turns_step(front) == 0)
        ;
    front->turns = NULL;
    pthread_mutex_destroy(&t->lock);
    free(t);
}

void turns_add(struct front *front, struct turn_job *job)
{
    put_turn(front->turns, job);
    crew_wake(&front->turns->crew);
}

void turns_grow(struct front *front, unsigned nr)
{
    if (front->turns == NULL)
        return;
    crew_grow(&front->turns->crew, nr);
    crew_wake(&front->turns->crew);
}
