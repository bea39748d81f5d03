/* dev_latency.h: a device that answers as late as a real one would, in front of another.
 *
 * A bio waits for its turn (the device serves so many at a time), then for a seek when it does not go
 * on where the last one ended, then for its bytes. Time is the caller's: the device holds finished
 * bios until dev_latency_step() is called with a clock that has passed their time, by a worker in
 * real time or by a simulation in virtual time.
 */
#ifndef FOLIO_STORE_DEV_LATENCY_H
#define FOLIO_STORE_DEV_LATENCY_H

#include "store/device.h"

struct latency_model {
    const char *name;
    uint64_t seek_ns;   /* a bio that does not continue the last one */
    uint64_t access_ns; /* every bio */
    uint64_t block_ns;  /* every block */
    unsigned lanes;     /* bios served at the same time */
};

extern const struct latency_model latency_hdd, latency_ssd, latency_nvme;
const struct latency_model *latency_find(const char *name); /* NULL: unknown */

#define LATENCY_LANES_MAX 64u

/* below: not owned. now_ns: the clock bios are stamped with, any thread.   NULL: no memory. */
struct device *dev_latency_create(struct device *below, const struct latency_model *model,
                                  uint64_t (*now_ns)(void *arg), void *arg);
/* Send below what is due at now.   Returns the time of the next, UINT64_MAX: nothing waits. */
uint64_t dev_latency_step(struct device *dev, uint64_t now);

#endif
