/* clock.h: time as a parameter: the cache asks its clock, never the system. */
#ifndef FOLIO_CACHE_CLOCK_H
#define FOLIO_CACHE_CLOCK_H

#include <stdint.h>

struct clock {
    uint64_t (*now_ns)(void *arg); /* monotonic nanoseconds */
    void *arg;
};

extern const struct clock clock_monotonic; /* CLOCK_MONOTONIC */

static inline uint64_t clock_now(const struct clock *c)
{
    return c->now_ns(c->arg);
}

#endif
