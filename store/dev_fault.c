#include "store/dev_fault.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

struct active_rule {
    struct fault_rule rule;
    uint64_t seen, hit;
};

struct dev_fault {
    struct device dev;
    struct device *below;
    pthread_mutex_t lock;
    uint64_t random;
    uint64_t hits;
    unsigned nr;
    struct active_rule rules[FAULT_RULES_MAX];
};

/* What goes below in the place of a bio some of whose blocks fail, and what it stands for. */
struct split {
    struct bio *original;
    uint8_t *torn;              /* copies of torn blocks */
    uint32_t vec[BIO_MAX_VECS]; /* of the original, for each vec below */
};

/* xorshift64* (Vigna 2016) */
static uint64_t next_random(struct dev_fault *d)
{
    d->random ^= d->random >> 12;
    d->random ^= d->random << 25;
    d->random ^= d->random >> 27;
    return d->random * 0x2545f4914f6cdd1du;
}

static bool applies(struct dev_fault *d, struct active_rule *a, const struct bio *bio,
                    uint32_t index)
{
    const struct fault_rule *r = &a->rule;
    bool op = bio->op == BIO_READ ? r->reads : r->writes;
    if (!op || (r->object != 0 && r->object != bio->object) || index < r->first || index > r->last)
        return false;
    if (r->count != 0 && a->hit >= r->count)
        return false;
    if (a->seen++ < r->after)
        return false;
    if (r->per_million != 0 && next_random(d) % 1000000u >= r->per_million)
        return false;
    a->hit++;
    d->hits++;
    return true;
}

/* The rule for one block, or NULL. Context: lock. */
static const struct fault_rule *decide(struct dev_fault *d, const struct bio *bio, uint32_t index)
{
    for (unsigned i = 0; i < d->nr; i++)
        if (applies(d, &d->rules[i], bio, index))
            return &d->rules[i].rule;
    return NULL;
}

static void split_end_io(struct bio *below)
{
    struct split *s = below->private;
    struct bio *bio = s->original;
    for (uint32_t i = 0; i < below->nr_vecs; i++) {
        bio->vecs[s->vec[i]].error = below->vecs[i].error;
        bio->vecs[s->vec[i]].flags = below->vecs[i].flags;
    }
    free(s->torn);
    free(s);
    bio_free(below);
    bio_endio(bio);
}

/* Apply one rule to vec i.   Returns the data to send below, or NULL: nothing is sent. */
static void *apply_rule(const struct fault_rule *r, struct split *s, struct bio_vec *v, uint32_t i)
{
    if (r == NULL)
        return v->data;
    switch (r->kind) {
    case FAULT_EIO:
        v->error = -EIO;
        return NULL;
    case FAULT_ENOSPC:
        v->error = -ENOSPC;
        return NULL;
    case FAULT_ENOMEM:
        v->error = -ENOMEM;
        return NULL;
    case FAULT_LOST:
        return NULL;
    case FAULT_TORN:
        break;
    }
    uint8_t *copy = s->torn + (size_t)i * BLOCK_SIZE;
    memcpy(copy, v->data, BLOCK_SIZE / 2);
    memset(copy + BLOCK_SIZE / 2, 0, BLOCK_SIZE / 2);
    return copy;
}

static void fault_submit(struct device *dev, struct bio *bio)
{
    struct dev_fault *d = (struct dev_fault *)dev;
    struct bio *below = bio_alloc(bio->op, bio->object, bio->nr_vecs);
    struct split *s = malloc(sizeof *s);
    uint8_t *torn = malloc((size_t)bio->nr_vecs * BLOCK_SIZE);
    if (below == NULL || s == NULL || torn == NULL) {
        bio_free(below);
        free(s);
        free(torn);
        bio_fail(bio, -ENOMEM);
        bio_endio(bio);
        return;
    }
    s->original = bio;
    s->torn = torn;
    pthread_mutex_lock(&d->lock);
    for (uint32_t i = 0; i < bio->nr_vecs; i++) {
        struct bio_vec *v = &bio->vecs[i];
        void *data = apply_rule(decide(d, bio, v->index), s, v, i);
        if (data == NULL)
            continue;
        s->vec[below->nr_vecs] = i;
        bio_add(below, v->index, data, v->owner)->flags = v->flags;
    }
    pthread_mutex_unlock(&d->lock);
    below->flags = bio->flags;
    below->end_io = split_end_io;
    below->private = s;
    if (below->nr_vecs > 0)
        submit_bio(d->below, below);
    else
        bio_endio(below);
}

static void fault_destroy(struct device *dev)
{
    struct dev_fault *d = (struct dev_fault *)dev;
    pthread_mutex_destroy(&d->lock);
    free(d);
}

static const struct device_ops fault_ops = { .name = "fault",
                                             .submit = fault_submit,
                                             .destroy = fault_destroy };

struct device *dev_fault_create(struct device *below, uint64_t seed)
{
    struct dev_fault *d = calloc(1, sizeof *d);
    if (d == NULL)
        return NULL;
    d->dev.ops = &fault_ops;
    d->dev.nr_blocks = below->nr_blocks;
    d->below = below;
    d->random = seed != 0 ? seed : 1;
    pthread_mutex_init(&d->lock, NULL);
    return &d->dev;
}

int dev_fault_add(struct device *dev, const struct fault_rule *rule)
{
    struct dev_fault *d = (struct dev_fault *)dev;
    int err = -ENOSPC;
    pthread_mutex_lock(&d->lock);
    if (d->nr < FAULT_RULES_MAX) {
        d->rules[d->nr++] = (struct active_rule){ .rule = *rule };
        err = 0;
    }
    pthread_mutex_unlock(&d->lock);
    return err;
}

void dev_fault_clear(struct device *dev)
{
    struct dev_fault *d = (struct dev_fault *)dev;
    pthread_mutex_lock(&d->lock);
    d->nr = 0;
    pthread_mutex_unlock(&d->lock);
}

uint64_t dev_fault_hits(struct device *dev)
{
    struct dev_fault *d = (struct dev_fault *)dev;
    pthread_mutex_lock(&d->lock);
    uint64_t hits = d->hits;
    pthread_mutex_unlock(&d->lock);
    return hits;
}
