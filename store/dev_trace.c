#include "store/dev_trace.h"

#include <errno.h>
#include <stdlib.h>

struct dev_trace {
    struct device dev;
    struct device *below;
    trace_fn trace;
    void *arg;
};

/* What the submitter wants back, kept while we stand in for it. */
struct stand_in {
    struct dev_trace *dev;
    void (*end_io)(struct bio *bio);
    void *private;
};

static void trace_end_io(struct bio *bio)
{
    struct stand_in *s = bio->private;
    s->dev->trace(s->dev->arg, bio, true);
    bio->end_io = s->end_io;
    bio->private = s->private;
    free(s);
    bio->end_io(bio);
}

static void trace_submit(struct device *dev, struct bio *bio)
{
    struct dev_trace *d = (struct dev_trace *)dev;
    struct stand_in *s = malloc(sizeof *s);
    if (s == NULL) {
        bio_fail(bio, -ENOMEM);
        bio_endio(bio);
        return;
    }
    *s = (struct stand_in){ .dev = d, .end_io = bio->end_io, .private = bio->private };
    d->trace(d->arg, bio, false);
    bio->end_io = trace_end_io;
    bio->private = s;
    submit_bio(d->below, bio);
}

static void trace_destroy(struct device *dev)
{
    free(dev);
}

static const struct device_ops trace_ops = { .submit = trace_submit, .destroy = trace_destroy };

struct device *dev_trace_create(struct device *below, trace_fn trace, void *arg)
{
    struct dev_trace *d = calloc(1, sizeof *d);
    if (d == NULL)
        return NULL;
    d->dev.ops = &trace_ops;
    d->dev.nr_blocks = below->nr_blocks;
    d->below = below;
    d->trace = trace;
    d->arg = arg;
    return &d->dev;
}
