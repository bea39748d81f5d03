#include <errno.h>
#include <stdlib.h>

#include "fs/fuse_ops.h"
#include "fs/fuse_ring.h"

#define NOTIFIERS        4u /* as jobs come together: one may wait for a page to be read, or for room */
#define NOTIFIER_IDLE_MS 60000u /* it is woken for work; this only bounds a sleep */

struct notifier { /* (l) lock  (c) constant */
    pthread_mutex_t lock;
    struct notify_job *first; /* oldest                                                (l) */
    struct notify_job **end;  /* where the next one goes                               (l) */
    unsigned nr;              /* queued, or being done                                 (l) */
    struct crew crew;         /* a job may be held by a client, as a lender may; (l) to grow it */
};

/* What it does waits for requests to be answered: so none is under way, nor begins, when the loop is left
 * (-ESHUTDOWN). */
static int invalidate(struct front *front, uint64_t ino, uint64_t offset, uint64_t len)
{
    int err = 0;
    pthread_rwlock_rdlock(&front->asking);
    if (atomic_load(&front->leaving))
        err = -ESHUTDOWN;
    else if (front->se != NULL)
        err = fuse_lowlevel_notify_inval_inode(front->se, ino, (off_t)offset, (off_t)len);
    pthread_rwlock_unlock(&front->asking);
    return err;
}

void front_stop_asking(struct front *front)
{
    atomic_store(&front->leaving, true);
    pthread_rwlock_wrlock(&front->asking);
    pthread_rwlock_unlock(&front->asking);
}

/* off 0, len 0: all pages. A file the kernel has forgotten has nothing to flush. */
int front_flush(void *arg, uint64_t ino)
{
    struct front *front = arg;
    int err = invalidate(front, ino, 0, 0);
    return err == -ENOENT ? 0 : err;
}

/* A kernel that does not answer (unmounted meanwhile) caches nothing. */
void front_forget_range(void *arg, uint64_t ino, uint64_t offset, uint64_t len)
{
    struct front *front = arg;
    (void)invalidate(front, ino, offset, len);
}

/* It takes no size without a byte, and that may have been stored over meanwhile. But first it takes the size; then it
 * finds that the byte cannot be read, and leaves its copy as it is (EFAULT). */
void front_tell_size(void *arg, uint64_t ino, uint64_t size)
{
    struct front *front = arg;
    struct fuse_bufvec byte = FUSE_BUFVEC_INIT(1); /* at NULL */
    pthread_rwlock_rdlock(&front->asking);
    if (!atomic_load(&front->leaving) && front->se != NULL)
        (void)fuse_lowlevel_notify_store(front->se, ino, (off_t)size - 1, &byte, 0);
    pthread_rwlock_unlock(&front->asking);
}

void front_forget_attributes(void *arg, uint64_t ino)
{
    struct front *front = arg;
    if (front->se != NULL)
        (void)fuse_lowlevel_notify_inval_inode(front->se, ino, -1, 0);
}

static struct notify_job *take_job(struct notifier *n)
{
    pthread_mutex_lock(&n->lock);
    struct notify_job *job = n->first;
    if (job != NULL) {
        n->first = job->next;
        if (n->first == NULL)
            n->end = &n->first;
    }
    pthread_mutex_unlock(&n->lock);
    return job;
}

/* The request is carried out even if the kernel cannot be asked any more (it is unmounting). */
static unsigned notifier_step(void *arg)
{
    struct front *front = arg;
    struct notify_job *job = take_job(front->notifier);
    if (job == NULL)
        return NOTIFIER_IDLE_MS;
    if (job->flush != 0)
        job->kept = invalidate(front, job->flush, job->offset, job->len) == -ESHUTDOWN;
    job->run(job);
    pthread_mutex_lock(&front->notifier->lock);
    front->notifier->nr--;
    pthread_mutex_unlock(&front->notifier->lock);
    return 0;
}

int notifier_start(struct front *front)
{
    struct notifier *n = calloc(1, sizeof *n);
    if (n == NULL)
        return -ENOMEM;
    pthread_mutex_init(&n->lock, NULL);
    n->end = &n->first;
    front->notifier = n;
    int err = crew_start(&n->crew, "folio-notify", notifier_step, front);
    if (err != 0) {
        front->notifier = NULL;
        pthread_mutex_destroy(&n->lock);
        free(n);
    }
    return err;
}

void notifier_stop(struct front *front)
{
    struct notifier *n = front->notifier;
    if (n == NULL)
        return;
    crew_stop(&n->crew);
    while (notifier_step(front) == 0)
        ;
    front->notifier = NULL;
    pthread_mutex_destroy(&n->lock);
    free(n);
}

bool front_may_wait(struct front *front)
{
    return front->wire.ring == NULL || ring_may_wait();
}

void notifier_add(struct front *front, struct notify_job *job)
{
    struct notifier *n = front->notifier;
    job->next = NULL;
    pthread_mutex_lock(&n->lock);
    *n->end = job;
    n->end = &job->next;
    if (++n->nr > atomic_load(&n->crew.nr) && n->nr <= NOTIFIERS)
        crew_grow(&n->crew, n->nr);
    pthread_mutex_unlock(&n->lock);
    crew_wake(&n->crew);
}

/* A client keeps as many threads as there are jobs about its files; those who wait behind them tell how many. */
void notifier_grow(struct front *front, unsigned nr)
{
    struct notifier *n = front->notifier;
    if (n == NULL)
        return;
    pthread_mutex_lock(&n->lock);
    crew_grow(&n->crew, n->nr > nr ? n->nr : nr);
    pthread_mutex_unlock(&n->lock);
    crew_wake(&n->crew);
}
