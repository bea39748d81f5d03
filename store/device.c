#include "store/device.h"

#include <errno.h>
#include <stdbool.h>
#include <stddef.h>

/* What the outermost submit_bio() of this thread still has to send (Linux: current->bio_list). */
static _Thread_local struct {
    bool active;
    struct bio *first, **tail;
} queue;

static void submit_one(struct bio *bio)
{
    struct device *dev = bio->dev;
    if (bio->nr_vecs > 0 && bio->vecs[bio->nr_vecs - 1].index >= dev->nr_blocks) {
        bio_fail(bio, -EFBIG);
        bio_endio(bio);
        return;
    }
    dev->ops->submit(dev, bio);
}

void submit_bio(struct device *dev, struct bio *bio)
{
    bio->dev = dev;
    bio->next = NULL;
    if (queue.active) {
        *queue.tail = bio;
        queue.tail = &bio->next;
        return;
    }
    queue.active = true;
    queue.first = bio;
    queue.tail = &bio->next;
    while ((bio = queue.first) != NULL) {
        queue.first = bio->next;
        if (queue.first == NULL)
            queue.tail = &queue.first;
        bio->next = NULL;
        submit_one(bio);
    }
    queue.active = false;
}

void device_destroy(struct device *dev)
{
    if (dev != NULL)
        dev->ops->destroy(dev);
}
