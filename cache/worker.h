/* worker.h: the only place that creates threads.
 *
 * Every background job is a step function; a worker calls it in a loop and sleeps in between. A
 * simulation calls the same steps itself.
 */
#ifndef FOLIO_CACHE_WORKER_H
#define FOLIO_CACHE_WORKER_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

/* One step of work.   Returns milliseconds until the next is due (0: at once). */
typedef unsigned (*worker_step)(void *arg);

struct worker;

/* name: at most 15 bytes, shown by ps and top.   Returns 0 or -errno. */
int worker_start(struct worker **out, const char *name, worker_step step, void *arg);
/* Make it take a step now; any thread; cheap when it is awake. */
void worker_wake(struct worker *w);
/* Let it finish its step, and join it. NULL is allowed. */
void worker_stop(struct worker *w);

#endif
