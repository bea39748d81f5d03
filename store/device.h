/* device.h: where blocks live, as a struct of functions; devices stack.
 *
 *     cache  ->  [trace]  ->  [fault]  ->  [latency]  ->  LMDB volume | memory
 *                              ^ a mount that asks for it has this one
 *
 * submit_bio() does not recurse however many devices are stacked: a submit() that calls
 * submit_bio() on the device below only puts the bio on the calling thread's list, and the
 * outermost call works the list off (the idea of Linux's submit_bio_noacct and current->bio_list).
 * A device that can answer at once completes the bio inside submit(); one that cannot keeps it and
 * completes it later from another thread.
 */
#ifndef FOLIO_STORE_DEVICE_H
#define FOLIO_STORE_DEVICE_H

#include "store/bio.h"

struct device;

struct device_ops {
    void (*submit)(struct device *dev, struct bio *bio);
    void (*destroy)(
        struct device *dev); /* frees dev itself; no bio may be under way. NULL: nobody does */
    /* A write of a block that exists has been swallowed in front of dev: it will not come. NULL: of
     * no interest. No lock that a bio's submitter holds may be needed. */
    void (*swallowed)(struct device *dev);
};

struct device {
    const struct device_ops *ops;
    uint64_t nr_blocks; /* blocks an object may have; a bio beyond fails with -EFBIG */
};

/* Send a bio to dev. Blocks: as long as the device does, when it answers at once.
 * Locks: the caller may hold PG_locked and PG_writeback of the bio's own pages, and nothing else
 * that a completion could need. */
void submit_bio(struct device *dev, struct bio *bio);

void device_destroy(struct device *dev);

/* A device that keeps its blocks in memory: tests, simulation, embedders.   NULL: no memory. */
struct device *dev_memory_create(void);
/* Forget the blocks [first, last] of one object (what update_trim is to a volume). */
void dev_memory_discard(struct device *dev, uint64_t object, uint32_t first, uint32_t last);

#endif
