/* dev_trace.h: a device that shows every bio on its way in and out, in front of another. */
#ifndef FOLIO_STORE_DEV_TRACE_H
#define FOLIO_STORE_DEV_TRACE_H

#include <stdbool.h>

#include "store/device.h"

/* done: the bio comes back (its errors are set); else it goes in. Called on the bio's thread, with
 * whatever locks its submitter holds: be quick, and submit nothing. */
typedef void (*trace_fn)(void *arg, const struct bio *bio, bool done);

/* below: not owned.   NULL: no memory. */
struct device *dev_trace_create(struct device *below, trace_fn trace, void *arg);

#endif
