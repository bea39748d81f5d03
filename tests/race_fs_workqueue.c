/* Real threads that queue work which ends at once, takes steps, or finds somebody in the way, while others make the
 * queue grow: every work is done as often as it asked for, once at a time, and none is left by a stop. One work keeps
 * its thread; what was queued behind it is done all the same once the queue has grown. As race_cache, for TSan and
 * ASan. */
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "cache/wait.h"
#include "fs/workqueue.h"

#define PRODUCERS 4
#define WORKS     2000 /* of each */

struct item {
    struct work work; /* first */
    _Atomic bool busy;
    unsigned left; /* so often it is not done yet; nobody but who does it looks */
    enum work_end meanwhile;
};

static struct workqueue queue;
static struct item items[PRODUCERS][WORKS];
static _Atomic unsigned nr_done, nr_calls;
static _Atomic uint32_t gate; /* 1: who waits at it goes on */

static void die(const char *what)
{
    fprintf(stderr, "%s\n", what);
    abort();
}

static enum work_end item_func(struct work *work)
{
    struct item *item = (struct item *)work;
    if (atomic_exchange(&item->busy, true))
        die("one work is done twice at once");
    atomic_fetch_add(&nr_calls, 1);
    enum work_end end = item->left > 0 ? item->meanwhile : WORK_DONE;
    item->left -= item->left > 0;
    atomic_store(&item->busy, false);
    if (end == WORK_DONE)
        atomic_fetch_add(&nr_done, 1);
    return end;
}

static enum work_end wait_at_gate(struct work *work)
{
    (void)work;
    while (atomic_load(&gate) == 0)
        (void)wait_on_word(&gate, 0, 1000);
    return WORK_DONE;
}

static void *produce(void *arg)
{
    uintptr_t me = (uintptr_t)arg;
    for (unsigned i = 0; i < WORKS; i++) {
        struct item *item = &items[me][i];
        item->work.func = item_func;
        item->left = i % 64 == 0 ? 1 : i % 3;
        item->meanwhile = i % 64 == 0 ? WORK_LATER : WORK_AGAIN;
        queue_work(&queue, &item->work);
    }
    return NULL;
}

static unsigned calls_due(void)
{
    unsigned due = 0;
    for (unsigned i = 0; i < WORKS; i++)
        due += 1 + (i % 64 == 0 ? 1 : i % 3);
    return due * PRODUCERS;
}

static void start(unsigned together)
{
    if (workqueue_start(&queue, "queue", together) != 0)
        die("no thread");
}

/* A stop while works are queued does them all. */
static void works_are_done(unsigned together)
{
    pthread_t threads[PRODUCERS];
    atomic_store(&nr_done, 0);
    atomic_store(&nr_calls, 0);
    start(together);
    for (uintptr_t i = 0; i < PRODUCERS; i++)
        if (pthread_create(&threads[i], NULL, produce, (void *)i) != 0)
            die("no thread");
    workqueue_grow(&queue, together);
    for (unsigned i = 0; i < PRODUCERS; i++)
        pthread_join(threads[i], NULL);
    workqueue_stop(&queue);
    if (atomic_load(&nr_done) != PRODUCERS * WORKS || atomic_load(&nr_calls) != calls_due())
        die("not each work was done as often as it asked for");
    printf("%u works, %u calls\n", atomic_load(&nr_done), atomic_load(&nr_calls));
}

static void kept_threads_are_made_up_for(void)
{
    struct work kept[2] = { { .func = wait_at_gate }, { .func = wait_at_gate } };
    struct item item = { .work.func = item_func, .left = 1, .meanwhile = WORK_LATER };
    atomic_store(&nr_done, 0);
    start(1);
    queue_work(&queue, &kept[0]);
    queue_work(&queue, &kept[1]);
    queue_work(&queue, &item.work);
    workqueue_grow(&queue, 1); /* that there are three works is what tells how many */
    while (atomic_load(&nr_done) == 0)
        usleep(1000);
    atomic_store(&gate, 1);
    wake_word(&gate);
    workqueue_stop(&queue);
}

/* Long before a thread that nobody wakes would look by itself. */
static void await_done(unsigned nr)
{
    for (unsigned ms = 0; atomic_load(&nr_done) < nr; ms++) {
        if (ms == 20000)
            die("a work is not done");
        usleep(1000);
    }
}

static void sleepers_are_woken(void)
{
    struct item item = { .work.func = item_func };
    atomic_store(&nr_done, 0);
    start(1);
    for (unsigned i = 1; i <= 3; i++) {
        usleep(50000); /* until it sleeps */
        queue_work(&queue, &item.work);
        await_done(i);
    }
    pthread_mutex_lock(&queue.lock);
    unsigned nr = queue.nr;
    pthread_mutex_unlock(&queue.lock);
    workqueue_stop(&queue);
    if (nr > 1) /* the last may be counted still */
        die("works that are done are counted");
}

static enum work_end meet(struct work *work)
{
    (void)work;
    if (atomic_fetch_add(&gate, 1) == 3)
        wake_word(&gate);
    for (uint32_t seen; (seen = atomic_load(&gate)) < 4;)
        (void)wait_on_word(&gate, seen, 100);
    atomic_fetch_add(&nr_done, 1);
    return WORK_DONE;
}

/* Four that wait for each other. */
static void works_are_done_together(void)
{
    struct work works[4] = {
        { .func = meet }, { .func = meet }, { .func = meet }, { .func = meet }
    };
    atomic_store(&nr_done, 0);
    atomic_store(&gate, 0);
    start(4);
    for (unsigned i = 0; i < 4; i++)
        queue_work(&queue, &works[i]);
    await_done(4);
    workqueue_stop(&queue);
}

struct parent {
    struct work work; /* first */
    struct item child;
};

static enum work_end parent_func(struct work *work)
{
    struct parent *parent = (struct parent *)work;
    usleep(1000); /* the stop has begun */
    queue_work(&queue, &parent->child.work);
    return WORK_DONE;
}

/* Works that queue others, and such that are to be tried later, while it stops. */
static void a_stop_does_all(void)
{
    enum { PARENTS = 64 };
    static struct parent parents[PARENTS];
    atomic_store(&nr_done, 0);
    start(4);
    for (unsigned i = 0; i < PARENTS; i++) {
        parents[i] =
            (struct parent){ .work.func = parent_func,
                             .child = { .work.func = item_func,
                                        .left = i % 4,
                                        .meanwhile = i % 8 < 4 ? WORK_LATER : WORK_AGAIN } };
        queue_work(&queue, &parents[i].work);
    }
    workqueue_stop(&queue);
    if (atomic_load(&nr_done) != PARENTS)
        die("a work was left");
}

int main(void)
{
    alarm(120);                /* a work that is never done */
    workqueue_grow(&queue, 4); /* one that is not started: nothing */
    sleepers_are_woken();
    works_are_done_together();
    a_stop_does_all();
    atomic_store(&gate, 0);
    works_are_done(1);
    works_are_done(4);
    kept_threads_are_made_up_for();
    workqueue_stop(&queue); /* one that was stopped: nothing */
    return 0;
}
