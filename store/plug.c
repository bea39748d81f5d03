#include "store/plug.h"

#include <assert.h>
#include <stdbool.h>
#include <string.h>

static uint32_t first_index(const struct bio *bio)
{
    return bio->vecs[0].index;
}

static uint32_t last_index(const struct bio *bio)
{
    return bio->vecs[bio->nr_vecs - 1].index;
}

static bool goes_before(const struct bio *a, const struct bio *b)
{
    if (a->op != b->op)
        return a->op < b->op;
    if (a->object != b->object)
        return a->object < b->object;
    return first_index(a) < first_index(b);
}

void submit_bio_plugged(struct blk_plug *plug, struct device *dev, struct bio *bio)
{
    assert(bio->nr_vecs > 0);
    if (plug->dev != dev || plug->nr == BLK_PLUG_MAX)
        blk_flush_plug(plug);
    plug->dev = dev;
    struct bio **at = &plug->first;
    while (*at != NULL && !goes_before(bio, *at))
        at = &(*at)->next;
    bio->next = *at;
    *at = bio;
    plug->nr++;
}

/* ---- sending --------------------------------------------------------------------------------- */

/* May b go behind a, in one bio of nr_vecs blocks so far? A block beyond the end of the device would
 * fail all of it. */
static bool joins(const struct device *dev, const struct bio *a, const struct bio *b,
                  uint32_t nr_vecs)
{
    return a->op == b->op && a->object == b->object &&
           (uint64_t)last_index(a) + 1 == first_index(b) && nr_vecs + b->nr_vecs <= BIO_MAX_VECS &&
           last_index(b) < dev->nr_blocks;
}

/* Take the first held bio and those that join it off the plug, as a list.
 * Returns the number of their blocks. */
static uint32_t take_run(struct blk_plug *plug, struct bio **run)
{
    struct bio *last = plug->first;
    uint32_t nr_vecs = last->nr_vecs;
    *run = last;
    plug->nr--;
    while (last->next != NULL && joins(plug->dev, last, last->next, nr_vecs)) {
        last = last->next;
        nr_vecs += last->nr_vecs;
        plug->nr--;
    }
    plug->first = last->next;
    last->next = NULL;
    return nr_vecs;
}

/* Every part gets back what became of its blocks. */
static void joined_end_io(struct bio *joined)
{
    const struct bio_vec *v = joined->vecs;
    struct bio *next;
    for (struct bio *bio = joined->private; bio != NULL; bio = next) {
        next = bio->next;
        for (uint32_t i = 0; i < bio->nr_vecs; i++, v++) {
            bio->vecs[i].flags = v->flags;
            bio->vecs[i].error = v->error;
        }
        bio_endio(bio);
    }
    bio_free(joined);
}

/* One bio for a list of them.   NULL: no memory. */
static struct bio *join(struct bio *run, uint32_t nr_vecs)
{
    struct bio *joined = bio_alloc(run->op, run->object, nr_vecs);
    if (joined == NULL)
        return NULL;
    joined->flags = run->flags;
    for (const struct bio *bio = run; bio != NULL; bio = bio->next) {
        memcpy(joined->vecs + joined->nr_vecs, bio->vecs, bio->nr_vecs * sizeof bio->vecs[0]);
        joined->nr_vecs += bio->nr_vecs;
        joined->flags &= bio->flags; /* BIO_RAHEAD: nobody waits for any of it */
    }
    joined->end_io = joined_end_io;
    joined->private = run;
    return joined;
}

static void submit_run(struct device *dev, struct bio *run, uint32_t nr_vecs)
{
    struct bio *joined = run->next != NULL ? join(run, nr_vecs) : NULL;
    if (joined != NULL) {
        submit_bio(dev, joined);
        return;
    }
    while (run != NULL) {
        struct bio *bio = run;
        run = bio->next;
        submit_bio(dev, bio);
    }
}

void blk_flush_plug(struct blk_plug *plug)
{
    while (plug->first != NULL) {
        struct bio *run;
        uint32_t nr_vecs = take_run(plug, &run);
        submit_run(plug->dev, run, nr_vecs);
    }
}
