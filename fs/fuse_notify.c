#include <errno.h>

#include "fs/fuse_ops.h"
#include "fs/fuse_ring.h"

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

/* The request is carried out even if the kernel cannot be asked any more (it is unmounting). */
static enum work_end notify(struct work *work)
{
    struct notify_job *job = (struct notify_job *)work;
    if (job->flush != 0)
        job->kept = invalidate(front_of(job->req), job->flush, job->offset, job->len) == -ESHUTDOWN;
    job->run(job);
    return WORK_DONE;
}

void notifier_add(struct front *front, struct notify_job *job)
{
    job->work.func = notify;
    queue_work(&front->notifier, &job->work);
}

bool front_may_wait(struct front *front)
{
    return front->wire.ring == NULL || ring_may_wait();
}
