/* fuse_ring.h: requests by io_uring (Linux 6.14), answered on the processor that asked.
 *
 * Reading /dev/fuse, whoever asks wakes a thread on a processor that has gone to sleep, and is woken on one
 * that has: that, not the work, is what a request costs. With FUSE over io_uring the kernel keeps a queue
 * for each processor, filled by who runs there. Here each queue has threads of its own, bound to that
 * processor, and each thread an io_uring with one entry: so one system call hands over a reply and waits
 * for the next request, and nobody else is woken.
 *
 *     thread:  START -> WAITING -> REGISTER -> wait -> answer -> wait ... -> ENOTCONN or told to stop
 *                       for INIT's             ^________________|
 *                       reply                  COMMIT_AND_FETCH
 *
 * Invariants:
 *  - A thread's entry is the kernel's to fill only while the thread waits for it. So a thread that is slow
 *    (fsync, a page to be read) holds up its own request and no other, as long as its queue has another
 *    thread.
 *  - A reply that is not there when the operation returns will be another thread's (fuse_notify.c,
 *    fuse_throttle.c): it keeps the entry until then, and its thread waits. One more thread is made for
 *    each that waits, up to RING_MOST, so that a queue has as many for other requests as it began with.
 *  - The notifier itself waits for WRITEs and READs, by the same queue perhaps. So an operation that may need
 *    it counts as waiting before it begins (ring_may_wait), and a thread must be left that is sure to take what
 *    the kernel queues: one of the first, or one that has handed over a reply. For the kernel gives a queued
 *    request to an entry that comes free, but not to a new one; a new thread is made sure by a request that
 *    means nothing. If even that fails, the operation is refused (ENOMEM).
 *  - A reply goes where its request came from: by the thread's entry if unique is the one it works on,
 *    else by /dev/fuse, where INIT, FORGET, INTERRUPT and notifications go.
 *  - The rings exist before INIT's reply says so, as the kernel holds requests back from then on until
 *    every queue has an entry.
 *
 * An entry belongs to its thread, but for the time between unique being set and replied being set, in which it
 * is that of whoever replies. The one lock (growing) is for making threads; nothing is taken under it.
 */
#ifndef FOLIO_FS_FUSE_RING_H
#define FOLIO_FS_FUSE_RING_H

#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>
#include <sys/uio.h>

struct fuse_session;
struct fuse_ring;

/* What comes before libfuse sees a request: amends it in place. */
typedef void (*ring_amend)(void *arg, char *request, size_t len);

/* How many threads there will be, while nobody waits. threads: for each processor, at most (fewer on large
 * machines). */
unsigned ring_threads(unsigned threads);
/* Start them and their rings; nothing is asked of the kernel's FUSE yet.
 * se: need not be mounted  threads: see above  max_io: the largest READ or WRITE, bytes.
 * Returns 0 or -errno: -ENOSYS, -EPERM when the machine does not permit io_uring. */
int ring_start(struct fuse_ring **out, struct fuse_session *se, unsigned threads, size_t max_io,
               ring_amend amend, void *arg);
/* INIT's reply has been given, and asked for this: begin. Once. */
void ring_begin(struct fuse_ring *ring);
/* The reply to a request of the ring's, as libfuse sends it.
 * Returns its length; -1: it is not the ring's. Any thread. */
ssize_t ring_reply(struct fuse_ring *ring, const struct iovec *iov, int count);
/* The operation that this thread works on may be replied to by somebody who needs other threads of the ring first.
 * Returns false: there would be none, and it must be refused. True on threads that are none of the ring's. */
bool ring_may_wait(void);
/* Answer no more: returns when every thread has finished the operation it works on. Replies that others owe
 * are not waited for; they may still come, and reach nobody. NULL is allowed; a second time nothing happens. */
void ring_stop(struct fuse_ring *ring);
/* The kernel refused what a thread handed over: requests wait that nobody will get, and SIGTERM was sent to this
 * process. NULL is allowed. */
bool ring_is_broken(struct fuse_ring *ring);
/* Nobody replies any more. NULL is allowed. */
void ring_free(struct fuse_ring *ring);

#endif
