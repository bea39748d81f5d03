#include "store/bio.h"

#include <assert.h>
#include <stdlib.h>

struct bio *bio_alloc(enum bio_op op, uint64_t object, uint32_t max_vecs)
{
    assert(max_vecs > 0 && max_vecs <= BIO_MAX_VECS);
    struct bio *bio = malloc(sizeof *bio + max_vecs * sizeof bio->vecs[0]);
    if (bio != NULL)
        *bio = (struct bio){ .op = op, .object = object, .max_vecs = max_vecs };
    return bio;
}

void bio_free(struct bio *bio)
{
    free(bio);
}

struct bio_vec *bio_add(struct bio *bio, uint32_t index, void *data, void *owner)
{
    assert(bio->nr_vecs < bio->max_vecs);
    assert(bio->nr_vecs == 0 || bio->vecs[bio->nr_vecs - 1].index < index);
    struct bio_vec *v = &bio->vecs[bio->nr_vecs++];
    *v = (struct bio_vec){ .data = data, .owner = owner, .index = index };
    return v;
}

void bio_fail(struct bio *bio, int error)
{
    for (uint32_t i = 0; i < bio->nr_vecs; i++)
        bio->vecs[i].error = (int16_t)error;
}

void bio_endio(struct bio *bio)
{
    bio->error = 0;
    for (uint32_t i = 0; i < bio->nr_vecs && bio->error == 0; i++)
        bio->error = bio->vecs[i].error;
    bio->end_io(bio);
}
