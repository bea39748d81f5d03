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

int main(void)
{
    alarm(120); /* a work that is never done */
    works_are_done(1);
    works_are_done(4);
    kept_threads_are_made_up_for();
    workqueue_stop(&queue); /* one that was stopped: nothing */
    return 0;
}
