/* attach_fault.c: a client's faults: what its userfaultfd says, and the pool for those that wait. */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/uio.h>
#include <unistd.h>

#include "cache/attach_impl.h"
#include "cache/memfd.h"

#define EVENT_BATCH     16u
#define READAHEADS_MOST 4u       /* of a range, in the queue: a client could ask for any number */
#define SPIN_NS         50000u   /* an awake thread answers 10 times faster than one to be woken */
#define EOF_NS          1000000u /* how long a fault beyond the end of file waits for it to settle */
#define EOF_TRIES       30000u   /* so often: half a minute; then pages stay that were set aside */
#define MEMORY_NS       10000000u /* how long a fault waits that found no memory */
#define HEAL_FIRST_NS   20000000u /* when a poisoned page is looked at again: doubles */
#define HEAL_MOST_NS    2000000000u
#define IDLE_MS         60000u

/* ---- the pool -------------------------------------------------------------------------------- */

static unsigned pool_step(void *arg);

/* Wake somebody who has nothing to do.   Returns false: everybody has. Context: lock. */
static bool pool_wake_idle(struct attach *a)
{
    for (unsigned i = 0; i < a->nr_workers; i++) {
        if (!a->workers[i].idle)
            continue;
        a->workers[i].idle = false;
        worker_wake(a->workers[i].worker);
        return true;
    }
    return false;
}

/* The same; or one worker more. */
static void pool_wake_locked(struct attach *a)
{
    if (pool_wake_idle(a) || a->nr_workers == FAULT_WORKERS_MOST)
        return;
    struct fault_worker *w = &a->workers[a->nr_workers];
    w->attach = a;
    w->idle = false;
    if (worker_start(&w->worker, "folio-fault", pool_step, w) == 0)
        a->nr_workers++;
}

/* Context: lock. */
static void pool_add_locked(struct attach *a, struct attach_job *job)
{
    struct attach_job **at = &a->jobs;
    while (*at != NULL && (*at)->due_ns <= job->due_ns)
        at = &(*at)->next;
    job->next = *at;
    *at = job;
    pool_wake_locked(a);
}

void pool_add(struct attach *a, struct attach_job *job)
{
    pthread_mutex_lock(&a->lock);
    pool_add_locked(a, job);
    pthread_mutex_unlock(&a->lock);
}

/* What was left of a job whose range is forgotten. */
static void job_drop(struct attach_job *job)
{
    if (job->kind == JOB_FAULT) /* its client finds another range there, or none */
        uffd_wake(&job->range->u, job->index);
    range_put(job->range);
    free(job);
}

/* Poison stays where a range is cut, and nobody says when it is touched: it is to be healed in the part where it
 * is now.   Returns false: there is no such job, or no such part. */
static bool job_move(struct attach_job *job)
{
    struct attach_range *part = job->kind == JOB_HEAL ? range_part(job->range, job->index) : NULL;
    if (part == NULL)
        return false;
    range_put(job->range);
    job->range = part;
    return true;
}

/* Into the queue, as far as there is still something to be done. */
static void pool_add_again(struct attach *a, struct attach_job *job)
{
    bool added = false;
    do {
        pthread_mutex_lock(&a->lock);
        if (!job->range->forgotten) { /* else pool_forget() has not seen this one */
            pool_add_locked(a, job);
            added = true;
        }
        pthread_mutex_unlock(&a->lock);
    } while (!added && job_move(job));
    if (!added)
        job_drop(job);
}

void pool_forget(struct attach *a, struct attach_range *r)
{
    struct attach_job *out = NULL;
    pthread_mutex_lock(&a->lock);
    r->forgotten = true;
    for (struct attach_job **at = &a->jobs; *at != NULL;) {
        struct attach_job *job = *at;
        if (job->range != r || job->kind == JOB_RELEASE || job->due_ns == 0) {
            at = &job->next;
            continue;
        }
        *at = job->next;
        job->next = out;
        out = job;
    }
    pthread_mutex_unlock(&a->lock);
    while (out != NULL) {
        struct attach_job *job = out;
        out = job->next;
        pool_add_again(a, job);
    }
}

int pool_start(struct attach *a)
{
    a->workers[0].attach = a;
    a->workers[0].idle = true;
    int err = worker_start(&a->workers[0].worker, "folio-fault", pool_step, &a->workers[0]);
    a->nr_workers = err == 0;
    return err;
}

void pool_stop(struct attach *a)
{
    for (unsigned i = 0; i < a->nr_workers; i++)
        worker_stop(a->workers[i].worker);
}

/* ---- a fault that may wait ------------------------------------------------------------------- */

static void job_again(struct attach *a, struct attach_job *job, enum job_kind kind, uint64_t ns)
{
    job->kind = kind;
    job->due_ns = clock_now(&clock_monotonic) + ns;
    pool_add_again(a, job);
}

static void job_done(struct attach_job *job)
{
    range_put(job->range);
    free(job);
}

static int poison_page(void *arg)
{
    struct attach_job *job = arg;
    return uffd_poison(&job->range->u, job->index, true);
}

/* SIGBUS, and after a while another chance. */
static void fault_poison(struct attach *a, struct attach_job *job)
{
    int err = page_call_while_gone(job->range->u.vma.mapping, job->index, poison_page, job);
    if (err == 0) {
        atomic_fetch_add(&a->poisoned, 1);
        job->tries = 0;
        job_again(a, job, JOB_HEAL, HEAL_FIRST_NS);
    } else if (err == -EEXIST) { /* of another thread's fault, which heals it */
        job_done(job);
    } else { /* somebody uses it, or has dirtied it meanwhile */
        job_again(a, job, JOB_FAULT, MEMORY_NS);
    }
}

/* The page is not in the file. The kernel says so itself where the memfd ends with the file. */
static void fault_beyond_eof(struct attach *a, struct attach_job *job)
{
    struct attach_range *r = job->range;
    if (memfd_trim(r->u.vma.mapping, job->index)) {
        uffd_wake(&r->u, job->index);
        job_done(job);
    } else if (job->tries++ < EOF_TRIES) {
        /* Pages beyond the end are about to go, or to be in the file. */
        job_again(a, job, JOB_FAULT, EOF_NS);
    } else {
        fault_poison(a, job);
    }
}

/* A writer may hold the page that will be the file's last. */
static int fault_again_at_eof(struct attach_job *job)
{
    struct address_space *m = job->range->u.vma.mapping;
    struct page *page = find_lock_page(m, job->index);
    if (page == NULL)
        return -EFAULT;
    unlock_page(page);
    put_page(m->cache, page);
    return handle_mm_fault(&job->range->u.vma, job->index, job->flags);
}

static void run_fault(struct attach *a, struct attach_job *job)
{
    int err = handle_mm_fault(&job->range->u.vma, job->index, job->flags);
    if (err == -EFAULT)
        err = fault_again_at_eof(job);
    switch (err) {
    case 0:
        job_done(job);
        break;
    case -EFAULT:
        fault_beyond_eof(a, job);
        break;
    case -ENOMEM:
        job_again(a, job, JOB_FAULT, MEMORY_NS);
        break;
    default:
        fault_poison(a, job);
        break;
    }
}

static void run_readahead(struct attach_job *job)
{
    vma_readahead(&job->range->u.vma, job->index);
    atomic_fetch_sub(&job->range->readaheads, 1);
    job_done(job);
}

/* Replace the poison by the page. Where the range has been cut meanwhile nothing was mapped: again, in its part. */
static void run_heal(struct attach *a, struct attach_job *job)
{
    if (handle_mm_fault(&job->range->u.vma, job->index, 0) == 0 &&
        !atomic_load(&job->range->u.gone)) {
        job_done(job);
        return;
    }
    uint64_t ns = (uint64_t)HEAL_FIRST_NS << (job->tries < 8 ? ++job->tries : job->tries);
    job_again(a, job, JOB_HEAL, ns < HEAL_MOST_NS ? ns : HEAL_MOST_NS);
}

static void run_release(struct attach *a, struct attach_range *r)
{
    struct attach_client *c = r->client;
    memfd_release(r->segment, &c->account->space);
    open_put(a, r->open);
    free(r);
    if (atomic_fetch_sub(&c->dying, 1) == 1)
        wake_word(&c->dying); /* the client may be gone: that needs its address only */
}

static bool is_store(const struct attach_job *job)
{
    return job->kind == JOB_FAULT && (job->flags & FAULT_WRITE);
}

/* Does it take a worker of its client's share? A release waits for nobody. */
static bool is_shared_out(const struct attach_job *job)
{
    return job->kind != JOB_RELEASE;
}

/* Else whoever has the last worker of that share takes it. Context: lock. */
static bool may_begin(const struct attach *a, const struct attach_job *job)
{
    const struct attach_client *c = job->range->client;
    if (is_store(job) &&
        (a->nr_storing == FAULT_STORING_MOST || c->storing == FAULT_STORING_CLIENT))
        return false;
    return !is_shared_out(job) || c->workers < FAULT_WORKERS_CLIENT;
}

/* Where the first job is that is due and may be done now; NULL: none, *wait_ms until the next is due.
 * Context: lock. */
static struct attach_job **pool_find(struct attach *a, unsigned *wait_ms)
{
    uint64_t now = clock_now(&clock_monotonic);
    *wait_ms = IDLE_MS;
    for (struct attach_job **at = &a->jobs; *at != NULL; at = &(*at)->next) {
        const struct attach_job *job = *at;
        if (job->due_ns > now) {
            uint64_t ms = (job->due_ns - now) / 1000000 + 1;
            *wait_ms = ms < IDLE_MS ? (unsigned)ms : IDLE_MS;
            break;
        }
        if (may_begin(a, job))
            return at;
    }
    return NULL;
}

/* Out of the queue with it, and somebody else looks at what is left. Context: lock. */
static struct attach_job *pool_take(struct attach *a, unsigned *wait_ms)
{
    struct attach_job **at = pool_find(a, wait_ms);
    if (at == NULL)
        return NULL;
    struct attach_job *job = *at;
    struct attach_client *c = job->range->client;
    *at = job->next;
    a->nr_storing += is_store(job);
    c->storing += is_store(job);
    if (is_shared_out(job)) {
        c->workers++;
        atomic_fetch_add(&job->range->refs, 1); /* which keeps the client */
    }
    if (pool_find(a, wait_ms) != NULL)
        pool_wake_locked(a);
    else if (*wait_ms < IDLE_MS)
        (void)pool_wake_idle(a);
    return job;
}

/* Context: nothing of the job is used any more but what pool_take() keeps. */
static void pool_give_back(struct attach *a, struct attach_range *r, bool store)
{
    pthread_mutex_lock(&a->lock);
    a->nr_storing -= store;
    r->client->storing -= store;
    r->client->workers--;
    pthread_mutex_unlock(&a->lock);
    range_put(r);
}

static unsigned pool_step(void *arg)
{
    struct fault_worker *w = arg;
    struct attach *a = w->attach;
    unsigned wait_ms;
    pthread_mutex_lock(&a->lock);
    struct attach_job *job = pool_take(a, &wait_ms);
    w->idle = job == NULL;
    pthread_mutex_unlock(&a->lock);
    if (job == NULL)
        return wait_ms;
    struct attach_range *shared = is_shared_out(job) ? job->range : NULL;
    bool store = is_store(job);
    switch (job->kind) {
    case JOB_FAULT:
        run_fault(a, job);
        break;
    case JOB_READAHEAD:
        run_readahead(job);
        break;
    case JOB_HEAL:
        run_heal(a, job);
        break;
    case JOB_RELEASE:
        run_release(a, job->range);
        break;
    }
    if (shared != NULL)
        pool_give_back(a, shared, store);
    return 0;
}

/* ---- events ---------------------------------------------------------------------------------- */

/* Takes over the reference. */
static void queue_job(struct attach_range *r, enum job_kind kind, uint32_t index, unsigned flags)
{
    struct attach *a = r->client->attach;
    struct attach_job *job;
    if (kind == JOB_READAHEAD && atomic_fetch_add(&r->readaheads, 1) >= READAHEADS_MOST) {
        atomic_fetch_sub(&r->readaheads, 1);
        range_put(r); /* the mark stays, for others */
        return;
    }
    while ((job = calloc(1, sizeof *job)) == NULL)
        (void)poll(NULL, 0, 10); /* the client waits, and so do we: it must not be forgotten */
    *job = (struct attach_job){ .range = r, .kind = kind, .index = index, .flags = flags };
    if (kind == JOB_FAULT)
        atomic_fetch_add_explicit(&a->queued, 1, memory_order_relaxed);
    pool_add(a, job);
}

/* A fault where nothing is tracked. A move's event is read after the faults that follow the move, so
 * wait for it once; else it registered what it never told us of, or unmaps it right now. */
static void on_stray(struct attach_client *c, uint64_t addr)
{
    struct uffd_vma stray = { .uffd = c->uffd, .addr = addr };
    struct pollfd event = { .fd = c->uffd, .events = POLLIN };
    if (c->stray != addr && poll(&event, 1, 0) > 0) {
        c->stray = addr;
        uffd_wake(&stray, 0); /* and it faults again */
    } else {
        (void)uffd_poison(&stray, 0, false);
    }
}

static void on_fault(struct attach_client *c, const struct uffd_msg *msg)
{
    uint64_t addr = msg->arg.pagefault.address, how = msg->arg.pagefault.flags;
    struct attach_range *r = range_find(c, addr);
    if (r == NULL) {
        on_stray(c, addr & PAGE_MASK);
        return;
    }
    uint32_t index = r->u.vma.first + (uint32_t)((addr - r->u.addr) >> PAGE_SHIFT);
    bool store = how & (UFFD_PAGEFAULT_FLAG_WRITE | UFFD_PAGEFAULT_FLAG_WP);
    unsigned flags = (store && r->u.writable ? FAULT_WRITE : 0) |
                     (how & UFFD_PAGEFAULT_FLAG_WP ? FAULT_PRESENT : 0);
    int err = handle_mm_fault(&r->u.vma, index, flags | FAULT_NOWAIT);
    if (err == 0)
        range_put(r);
    else
        queue_job(r, err > 0 ? JOB_READAHEAD : JOB_FAULT, index, flags);
}

/* Its mapping has moved: from the moment we have read this, its faults come from there. */
static void on_remap(struct attach_client *c, const struct uffd_msg *msg)
{
    uint64_t from = msg->arg.remap.from, to = msg->arg.remap.to, len = msg->arg.remap.len;
    if (from == to)
        return;
    /* Never an untracked store: whatever it takes. First what was there before, unmapped by the move. */
    while (ranges_cut(c, to, len, CUT_COVERED, 0) != 0)
        (void)poll(NULL, 0, 10);
    while (ranges_cut(c, from, len, CUT_MOVED, to) != 0)
        (void)poll(NULL, 0, 10);
}

/* Returns how many there are. */
static unsigned read_some(int uffd, struct uffd_msg *msgs)
{
    struct iovec iov = { .iov_base = msgs, .iov_len = EVENT_BATCH * sizeof *msgs };
    /* O_NONBLOCK is the client's to clear. (Before Linux 6.10 that must do.) */
    ssize_t n = preadv2(uffd, &iov, 1, -1, RWF_NOWAIT);
    if (n < 0 && errno == EOPNOTSUPP) {
        (void)fcntl(uffd, F_SETFL, O_NONBLOCK);
        n = read(uffd, msgs, EVENT_BATCH * sizeof *msgs);
    }
    return n > 0 ? (unsigned)((size_t)n / sizeof *msgs) : 0;
}

/* First what has moved, for the faults are where it is now.   Returns how many there were. */
static unsigned deal_with_events(struct attach_client *c)
{
    struct uffd_msg msgs[EVENT_BATCH];
    uffd_read_begin(&c->space);
    unsigned nr = read_some(c->uffd, msgs);
    for (unsigned i = 0; i < nr; i++)
        if (msgs[i].event == UFFD_EVENT_REMAP)
            on_remap(c, &msgs[i]);
    uffd_read_end(&c->space);
    for (unsigned i = 0; i < nr; i++)
        if (msgs[i].event == UFFD_EVENT_PAGEFAULT)
            on_fault(c, &msgs[i]);
        else if (msgs[i].event == UFFD_EVENT_FORK)
            close((int)msgs[i].arg.fork.ufd); /* nobody asked for it */
    return nr;
}

/* When pages of it were taken. Does not sleep: who has not heard the bell yet has yet to hear it. */
static void ring(struct attach_client *c)
{
    if (atomic_load_explicit(&c->space.taken, memory_order_relaxed) &&
        atomic_exchange(&c->space.taken, false))
        (void)send(c->bell, "", 1, MSG_DONTWAIT | MSG_NOSIGNAL);
}

unsigned events_step(void *arg)
{
    struct attach_client *c = arg;
    eventfd_t count;
    struct pollfd fds[3] = { { .fd = c->uffd, .events = POLLIN },
                             { .fd = c->stop, .events = POLLIN },
                             { .fd = c->space.taken_fd, .events = POLLIN } };
    if (poll(fds, 3, -1) < 0)
        return 0;
    if (fds[1].revents != 0)
        return IDLE_MS; /* no more: worker_stop() is waiting */
    if (fds[2].revents != 0)
        (void)eventfd_read(c->space.taken_fd, &count);
    ring(c);
    if (fds[0].revents & (POLLERR | POLLHUP)) { /* it is blocking: poll(2) is of no use */
        (void)fcntl(c->uffd, F_SETFL, O_NONBLOCK);
        (void)deal_with_events(c);
        return 1;
    }
    uint64_t now = clock_now(&clock_monotonic), until = now + SPIN_NS;
    while (now < until && fds[0].revents == POLLIN && fds[1].revents == 0) {
        bool any = deal_with_events(c) > 0;
        ring(c);
        now = clock_now(&clock_monotonic);
        until = any ? now + SPIN_NS : until;
        while (poll(fds, 2, 0) == 0 && now < until)
            now = clock_now(&clock_monotonic);
    }
    return 0;
}
