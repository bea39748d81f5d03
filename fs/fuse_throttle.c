/* fuse_throttle.c: writers wait for their replies while too much is dirty, and no thread waits with them.
 *
 * A thread of the session that slept in balance_dirty_pages would be missing for everybody else's
 * requests, and sixteen writers would take all of them. So what was written is queued, and one thread
 * sleeps for each in turn, then answers: together they get the speed of the disk, as they should. */
#include <stdlib.h>

#include "fs/fuse_ops.h"

struct throttled {
    struct work work; /* first */
    fuse_req_t req;
    size_t written;
};

static uint32_t pages_of(size_t bytes)
{
    return (uint32_t)(bytes >> PAGE_SHIFT) + 1;
}

static enum work_end throttle(struct work *work)
{
    struct throttled *w = (struct throttled *)work;
    struct front *front = front_of(w->req);
    if (!atomic_load(&front->left)) /* nobody waits for the answer any more */
        balance_dirty_pages_ratelimited(front->fs->cache, pages_of(w->written));
    fuse_reply_write(w->req, w->written);
    free(w);
    return WORK_DONE;
}

void reply_written(fuse_req_t req, size_t written)
{
    struct front *front = front_of(req);
    struct throttled *w = NULL;
    if (dirty_throttle_due(front->fs->cache))
        w = malloc(sizeof *w);
    if (w == NULL) {
        fuse_reply_write(req, written);
        return;
    }
    *w = (struct throttled){ .work.func = throttle, .req = req, .written = written };
    queue_work(&front->throttle, &w->work);
}
