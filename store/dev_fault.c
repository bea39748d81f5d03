#include "store/dev_fault.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

struct dev_fault {
    struct device dev;
    struct device *below;
    pthread_mutex_t lock;
    uint64_t random;
    uint64_t hits;
    unsigned nr;
    struct fault_state rules[FAULT_RULES_MAX];
};

/* What goes below in the place of a bio some of whose blocks fail, and what it stands for. */
struct split {
    struct bio *original;
    uint8_t *copies;            /* what is written in the place of a block */
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

static bool matches(const struct fault_rule *r, const struct bio *bio, uint32_t index)
{
    return (bio->op == BIO_READ ? r->reads : r->writes) &&
           (r->object == 0 || r->object == bio->object) && index >= r->first && index <= r->last;
}

/* Does a rule that matches apply this time? Context: lock. */
static bool applies(struct dev_fault *d, struct fault_state *a)
{
    const struct fault_rule *r = &a->rule;
    if (a->seen++ < r->after || (r->count != 0 && a->hit >= r->count))
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
        if (matches(&d->rules[i].rule, bio, index) && applies(d, &d->rules[i]))
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
    free(s->copies);
    free(s);
    bio_free(below);
    bio_endio(bio);
}

/* The error that a kind stands for; 0: none, it lies. */
static int16_t error_of(enum fault_kind kind)
{
    switch (kind) {
    case FAULT_EIO:
        return -EIO;
    case FAULT_ENOSPC:
        return -ENOSPC;
    case FAULT_ENOMEM:
        return -ENOMEM;
    case FAULT_LOST:
    case FAULT_TORN:
        break;
    }
    return 0;
}

/* Apply one rule to vec i.   Returns the data to send below, or NULL: nothing is sent. */
static void *apply_rule(struct dev_fault *d, const struct fault_rule *r, struct split *s,
                        uint32_t i)
{
    struct bio_vec *v = &s->original->vecs[i];
    if (r == NULL)
        return v->data;
    v->error = error_of(r->kind);
    if (v->error != 0)
        return NULL;
    if (r->kind == FAULT_LOST && !(v->flags & BV_NEW)) {
        if (d->below->ops->swallowed != NULL)
            d->below->ops->swallowed(d->below);
        return NULL;
    }
    size_t kept = r->kind == FAULT_TORN ? BLOCK_SIZE / 2 : 0;
    uint8_t *copy = s->copies + (size_t)i * BLOCK_SIZE;
    memcpy(copy, v->data, kept);
    memset(copy + kept, 0, BLOCK_SIZE - kept);
    return copy;
}

static bool has_rules(struct dev_fault *d)
{
    pthread_mutex_lock(&d->lock);
    bool some = d->nr > 0;
    pthread_mutex_unlock(&d->lock);
    return some;
}

static void fault_submit(struct device *dev, struct bio *bio)
{
    struct dev_fault *d = (struct dev_fault *)dev;
    if (!has_rules(d)) {
        submit_bio(d->below, bio);
        return;
    }
    struct bio *below = bio_alloc(bio->op, bio->object, bio->nr_vecs);
    struct split *s = malloc(sizeof *s);
    uint8_t *copies = malloc((size_t)bio->nr_vecs * BLOCK_SIZE);
    if (below == NULL || s == NULL || copies == NULL) {
        bio_free(below);
        free(s);
        free(copies);
        bio_fail(bio, -ENOMEM);
        bio_endio(bio);
        return;
    }
    s->original = bio;
    s->copies = copies;
    pthread_mutex_lock(&d->lock);
    for (uint32_t i = 0; i < bio->nr_vecs; i++) {
        struct bio_vec *v = &bio->vecs[i];
        void *data = apply_rule(d, decide(d, bio, v->index), s, i);
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

static const struct device_ops fault_ops = { .submit = fault_submit, .destroy = fault_destroy };

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
        d->rules[d->nr++] = (struct fault_state){ .rule = *rule };
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

unsigned dev_fault_list(struct device *dev, struct fault_state out[FAULT_RULES_MAX])
{
    struct dev_fault *d = (struct dev_fault *)dev;
    pthread_mutex_lock(&d->lock);
    unsigned nr = d->nr;
    memcpy(out, d->rules, nr * sizeof *out);
    pthread_mutex_unlock(&d->lock);
    return nr;
}

void dev_fault_follow(struct device *dev, uint64_t from, uint64_t to)
{
    struct dev_fault *d = (struct dev_fault *)dev;
    pthread_mutex_lock(&d->lock);
    for (unsigned i = 0; i < d->nr; i++)
        if (d->rules[i].rule.object == from && from != 0)
            d->rules[i].rule.object = to;
    pthread_mutex_unlock(&d->lock);
}

int dev_fault_commit(struct device *dev)
{
    struct dev_fault *d = (struct dev_fault *)dev;
    int err = 0;
    pthread_mutex_lock(&d->lock);
    for (unsigned i = 0; i < d->nr && err == 0; i++)
        if (d->rules[i].rule.commits && applies(d, &d->rules[i]))
            err = error_of(d->rules[i].rule.kind);
    pthread_mutex_unlock(&d->lock);
    return err;
}
