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

/* Workers that take the same steps. One, until somebody finds that it may be stuck in one for longer than
 * others can wait; then there are more, to the end. */
#define CREW_MOST 32u

struct crew { /* zeros: not started */
    struct worker *workers[CREW_MOST];
    _Atomic unsigned nr;
    const char *name;
    worker_step step;
    void *arg;
};

int crew_start(struct crew *c, const char *name, worker_step step, void *arg); /* 0 or -errno */
/* Have at least nr, CREW_MOST at most; fewer when no thread can be had. One thread at a time; any number that
 * wake. Nothing for a crew that was not started. */
void crew_grow(struct crew *c, unsigned nr);
void crew_wake(struct crew *c);
void crew_stop(struct crew *c); /* nobody but its own threads grows or wakes it any more */

#endif
