#include "store/dev_latency.h"

#include <pthread.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

const struct latency_model latency_hdd = {
    .name = "hdd", .seek_ns = 8000000, .access_ns = 100000, .block_ns = 25000, .lanes = 1
};
const struct latency_model latency_ssd = {
    .name = "ssd", .seek_ns = 0, .access_ns = 80000, .block_ns = 8000, .lanes = 8
};
const struct latency_model latency_nvme = {
    .name = "nvme", .seek_ns = 0, .access_ns = 12000, .block_ns = 1300, .lanes = 32
};

struct waiting {
    struct waiting *next;
    struct bio *bio;
    uint64_t due;
};

struct dev_latency {
    struct device dev;
    struct device *below;
    struct latency_model model;
    uint64_t (*now_ns)(void *arg);
    void *arg;
    pthread_mutex_t lock;
    uint64_t lane_free[LATENCY_LANES_MAX]; /* when each is (lock) */
    uint64_t head_object, head_index;      /* where the last bio ended (lock) */
    struct waiting *first;                 /* by due time (lock) */
};

const struct latency_model *latency_find(const char *name)
{
    static const struct latency_model *const all[] = { &latency_hdd, &latency_ssd, &latency_nvme };
    for (size_t i = 0; i < sizeof all / sizeof all[0]; i++)
        if (strcmp(all[i]->name, name) == 0)
            return all[i];
    return NULL;
}

/* When a bio that arrives now will have been served. Context: lock. */
static uint64_t due_time(struct dev_latency *d, const struct bio *bio, uint64_t now)
{
    unsigned lane = 0;
    for (unsigned i = 1; i < d->model.lanes; i++)
        if (d->lane_free[i] < d->lane_free[lane])
            lane = i;
    uint64_t start = d->lane_free[lane] > now ? d->lane_free[lane] : now;
    uint64_t first = bio->nr_vecs > 0 ? bio->vecs[0].index : 0;
    bool seeks = bio->object != d->head_object || first != d->head_index;
    d->head_object = bio->object;
    d->head_index = bio->nr_vecs > 0 ? (uint64_t)bio->vecs[bio->nr_vecs - 1].index + 1 : 0;
    d->lane_free[lane] = start + (seeks ? d->model.seek_ns : 0) + d->model.access_ns +
                         bio->nr_vecs * d->model.block_ns;
    return d->lane_free[lane];
}

static void latency_submit(struct device *dev, struct bio *bio)
{
    struct dev_latency *d = (struct dev_latency *)dev;
    struct waiting *w = malloc(sizeof *w);
    if (w == NULL) { /* no memory to wait with: answer at once */
        submit_bio(d->below, bio);
        return;
    }
    w->bio = bio;
    pthread_mutex_lock(&d->lock);
    w->due = due_time(d, bio, d->now_ns(d->arg));
    struct waiting **at = &d->first;
    while (*at != NULL && (*at)->due <= w->due)
        at = &(*at)->next;
    w->next = *at;
    *at = w;
    pthread_mutex_unlock(&d->lock);
}

uint64_t dev_latency_step(struct device *dev, uint64_t now)
{
    struct dev_latency *d = (struct dev_latency *)dev;
    for (;;) {
        pthread_mutex_lock(&d->lock);
        struct waiting *w = d->first;
        bool due = w != NULL && w->due <= now;
        uint64_t next = w != NULL ? w->due : UINT64_MAX;
        if (due)
            d->first = w->next;
        pthread_mutex_unlock(&d->lock);
        if (!due)
            return next;
        submit_bio(d->below, w->bio);
        free(w);
    }
}

static void latency_destroy(struct device *dev)
{
    struct dev_latency *d = (struct dev_latency *)dev;
    pthread_mutex_destroy(&d->lock);
    free(d);
}

static const struct device_ops latency_ops = { .submit = latency_submit,
                                               .destroy = latency_destroy };

struct device *dev_latency_create(struct device *below, const struct latency_model *model,
                                  uint64_t (*now_ns)(void *arg), void *arg)
{
    struct dev_latency *d = calloc(1, sizeof *d);
    if (d == NULL)
        return NULL;
    d->dev.ops = &latency_ops;
    d->dev.nr_blocks = below->nr_blocks;
    d->below = below;
    d->model = *model;
    if (d->model.lanes == 0 || d->model.lanes > LATENCY_LANES_MAX)
        d->model.lanes = d->model.lanes == 0 ? 1 : LATENCY_LANES_MAX;
    d->now_ns = now_ns;
    d->arg = arg;
    pthread_mutex_init(&d->lock, NULL);
    return &d->dev;
}
