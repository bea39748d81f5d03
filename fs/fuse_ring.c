#include "fs/fuse_ring.h"

#include <errno.h>
#include <fcntl.h>
#include <fuse_lowlevel.h>
#include <liburing.h>
#include <linux/fuse.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/sysinfo.h>
#include <time.h>
#include <unistd.h>

#include "cache/page.h"
#include "cache/wait.h"
#include "cache/worker.h"
#include "fs/daemon.h"

/* ---- the kernel's interface (include/uapi/linux/fuse.h since protocol 7.42) -------------------- */

#define RING_REGISTER         1u
#define RING_COMMIT_AND_FETCH 2u

struct ring_entry_header {
    char in_out[128]; /* struct fuse_in_header, then struct fuse_out_header */
    char op_in[128];  /* the operation's own struct */
    uint64_t flags;
    uint64_t commit_id;
    uint32_t payload_size;
    uint32_t padding;
    uint64_t reserved;
};

struct ring_command { /* in the SQE */
    uint64_t flags;
    uint64_t commit_id;
    uint16_t qid;
    uint8_t padding[6];
};

/* ---- threads ---------------------------------------------------------------------------------- */

#define SQ_ENTRIES  4u   /* the entry's command and the watch for the end */
#define LEAST       4u   /* threads for each processor */
#define MANY_CPUS   4u   /* from so many on there are fewer for each */
#define RING_MOST   512u /* threads of a queue that wait for others to reply */
#define TAG_STOP    1u
#define TAG_ENTRY   2u
#define STAGE_BYTES PAGE_SIZE /* before the payload; see ring_thread */
#define SURE_TRIES  16u
#define SURE_MS     10u
#define KICK        ((uint64_t)1 << 62) /* in unique: none of the kernel's own */
#define BUSY_NS     1000000L
#define ENDED_MS    60000u /* there is no next step; this only bounds a sleep */

enum ring_state { RING_WAITING, RING_BEGUN, RING_ENDED };
enum reply_state { REPLY_NONE, REPLY_MADE, REPLY_NOT_WAITED_FOR };

struct ring_queue {            /* (c) constant once started  (g) growing  (a) atomic */
    unsigned qid;              /* (c) */
    cpu_set_t *set;            /* its processor                                      (c) */
    unsigned base;             /* threads to begin with                              (c) */
    unsigned nr;               /* threads that were made                             (g) */
    struct ring_thread *spare; /* of these, one that came to nothing                 (g) */
    _Atomic uint32_t settled;  /* threads that have their entry, or never will       (a) */
    _Atomic unsigned entries;  /* threads that have                                  (a) */
    _Atomic unsigned held;     /* of which so many wait for others to reply          (a) */
    /* The same of those that are sure to take what the kernel has queued: the first, and whoever has handed over
     * a reply. */
    _Atomic uint32_t sure;
    _Atomic unsigned sure_held;
};

enum thread_state { THREAD_NEW, THREAD_READY, THREAD_SERVING, THREAD_ENDED };

/* (t) the thread's own  (r) whoever replies; see the header  (c) constant */
struct ring_thread {
    struct fuse_ring *ring;   /* (c) */
    struct ring_queue *queue; /* (c) */
    struct worker *worker;    /* (c) */
    struct io_uring uring;    /* (t) */
    uint64_t commit_id;       /* (t) */
    bool bound;               /* to the queue's processor                            (t) */
    bool extra;               /* made while others waited                            (c) */
    bool sure, held;          /* counted in the queue's                              (t) */
    /* One mapping: a page that starts with the header and ends with a copy of the request's two headers,
     * then the payload: so libfuse gets the request in one piece and nothing large is copied. */
    struct ring_entry_header *header; /* (r) */
    char *payload;                    /* (r) */
    size_t room; /* for a payload that another thread replies with; see give_back() (r) */
    _Atomic uint64_t unique;  /* the request it works on; 0: none */
    _Atomic uint32_t replied; /* enum reply_state */
    _Atomic uint32_t state;   /* enum thread_state */
};

struct fuse_ring {             /* (c) constant once started  (g) growing */
    struct fuse_session *se;   /* (c) */
    ring_amend amend;          /* (c) */
    void *arg;                 /* (c) */
    size_t max_io;             /* (c) */
    int stop;                  /* an eventfd: readable when the threads shall end (c) */
    _Atomic uint32_t state;    /* enum ring_state; ENDED is set under growing */
    _Atomic int err;           /* of a thread that could not start */
    _Atomic bool said;         /* why a thread ended */
    _Atomic bool broken;       /* see ring_is_broken() */
    _Atomic uint64_t file;     /* a regular one that the kernel knew a moment ago: its node */
    _Atomic uint64_t kicks;    /* so many, times two */
    cpu_set_t *anywhere;       /* (c) */
    size_t set_size;           /* bytes of a set of processors                     (c) */
    unsigned nr_queues;        /* (c) */
    struct ring_queue *queues; /* (c) */
    pthread_mutex_t growing;
    _Atomic unsigned nr;          /* threads that were made                        (g) */
    struct ring_thread **threads; /* (g); those below nr are there */
};

static _Thread_local struct ring_thread *self;

/* To the queue's processor or to where the process may run; where it cannot be had, it stays as it is. */
static void bind_thread(struct ring_thread *t, bool bound)
{
    t->bound = bound;
    (void)pthread_setaffinity_np(pthread_self(), t->ring->set_size,
                                 bound ? t->queue->set : t->ring->anywhere);
}

static int create_thread(struct fuse_ring *ring, struct ring_queue *queue, bool extra,
                         struct ring_thread **out);

/* Returns 0 when the new thread has its entry; or -errno. */
static int add_thread(struct fuse_ring *ring, struct ring_queue *queue)
{
    struct ring_thread *t = NULL;
    int err = -EAGAIN;
    pthread_mutex_lock(&ring->growing);
    if (queue->spare != NULL || queue->nr < queue->base + RING_MOST)
        if (atomic_load(&ring->state) == RING_BEGUN)
            err = create_thread(ring, queue, true, &t);
    if (err == 0) {
        for (uint32_t now; (now = atomic_load(&t->state)) < THREAD_SERVING;)
            (void)wait_on_word(&t->state, now, 0);
        err = atomic_load(&t->state) == THREAD_SERVING ? 0 : -EAGAIN;
    }
    if (err != 0 && t != NULL)
        queue->spare = t;
    pthread_mutex_unlock(&ring->growing);
    return err;
}

/* Have the kernel send a request to this processor's queue: an answer to a question about nothing (it comes as
 * NOTIFY_REPLY). Whoever hands over the reply is given what has been queued meanwhile. */
static void kick(struct fuse_ring *ring)
{
    struct {
        struct fuse_out_header out;
        struct fuse_notify_retrieve_out retrieve;
    } ask = { .out = { .len = sizeof ask, .error = FUSE_NOTIFY_RETRIEVE } };
    ask.retrieve.nodeid = atomic_load(&ring->file);
    ask.retrieve.notify_unique = KICK | atomic_fetch_add(&ring->kicks, 2);
    (void)!write(fuse_session_fd(ring->se), &ask, sizeof ask); /* there is another try */
}

/* Wait until a thread that is sure is left.   Returns false: there will be none. */
static bool make_sure(struct ring_thread *t)
{
    struct ring_queue *queue = t->queue;
    for (unsigned tries = 0;; tries++) {
        uint32_t sure = atomic_load(&queue->sure);
        if (sure > atomic_load(&queue->sure_held))
            return true;
        if (tries == SURE_TRIES || add_thread(t->ring, queue) != 0)
            return false;
        kick(t->ring);
        (void)wait_on_word(&queue->sure, sure, SURE_MS);
    }
}

static void end_waiting(struct ring_thread *t)
{
    if (t->held && t->sure)
        atomic_fetch_sub(&t->queue->sure_held, 1);
    if (t->held)
        atomic_fetch_sub(&t->queue->held, 1);
    t->held = false;
}

/* This thread waits, or may, until somebody else replies. others: who replies needs threads of this queue.
 * Returns false: there would be none left, and it must not wait. */
static bool begin_waiting(struct ring_thread *t, bool others)
{
    struct ring_queue *queue = t->queue;
    t->held = true;
    unsigned held = atomic_fetch_add(&queue->held, 1) + 1;
    if (t->sure)
        atomic_fetch_add(&queue->sure_held, 1);
    if (atomic_load(&queue->entries) < queue->base + held)
        (void)add_thread(t->ring, queue); /* or there is one less for the others */
    if (!others || !t->sure || make_sure(t))
        return true;
    end_waiting(t);
    return false;
}

bool ring_may_wait(void)
{
    return self == NULL || self->held || begin_waiting(self, true);
}

/* ---- a request --------------------------------------------------------------------------------- */

static struct io_uring_sqe *next_sqe(struct ring_thread *t, unsigned command)
{
    struct io_uring_sqe *sqe = io_uring_get_sqe(&t->uring); /* one is free: two are ever in use */
    struct ring_command c = { .commit_id = t->commit_id, .qid = (uint16_t)t->queue->qid };
    io_uring_prep_rw(IORING_OP_URING_CMD, sqe, fuse_session_fd(t->ring->se), NULL, 0, 0);
    sqe->cmd_op = command;
    memcpy(sqe->cmd, &c, sizeof c);
    io_uring_sqe_set_data64(sqe, TAG_ENTRY);
    return sqe;
}

/* Returns the request in one piece, *len its length; NULL: it makes no sense. */
static char *put_together(struct ring_thread *t, size_t *len)
{
    struct fuse_in_header in;
    memcpy(&in, t->header->in_out, sizeof in);
    size_t payload = t->header->payload_size;
    if (in.len < sizeof in + payload || payload > t->ring->max_io ||
        in.len - sizeof in - payload > sizeof t->header->op_in)
        return NULL;
    size_t op = in.len - sizeof in - payload;
    char *request = t->payload - op - sizeof in;
    memcpy(request + sizeof in, t->header->op_in, op);
    memcpy(request, &in, sizeof in);
    *len = in.len;
    return request;
}

/* Who waits for the disk is woken several times by interrupts that come to any processor: there it should
 * run, and not wake its own each time. */
static bool waits_for_disk(uint32_t opcode)
{
    return opcode == FUSE_FSYNC || opcode == FUSE_FSYNCDIR;
}

/* Of a regular file that is open, or is just being opened. */
static bool is_of_file(uint32_t opcode)
{
    return opcode == FUSE_WRITE || opcode == FUSE_READ || opcode == FUSE_OPEN ||
           opcode == FUSE_FALLOCATE || opcode == FUSE_LSEEK;
}

static void reply_only(struct ring_thread *t, uint64_t unique, int err)
{
    struct fuse_out_header out = { .len = sizeof out, .error = err, .unique = unique };
    struct iovec iov = { .iov_base = &out, .iov_len = sizeof out };
    (void)ring_reply(t->ring, &iov, 1);
}

/* The budget knows nothing of an extra thread: after a large request it holds on to one page only. */
static void give_back(struct ring_thread *t)
{
    (void)madvise(t->payload + PAGE_SIZE, t->ring->max_io - PAGE_SIZE, MADV_DONTNEED);
}

/* Returns false: it was told to end before there was one. */
static bool wait_for_reply(struct ring_thread *t)
{
    bool there = atomic_load(&t->replied) != REPLY_NONE;
    if (!there && !t->held)
        (void)begin_waiting(t, false);
    if (t->room == PAGE_SIZE && (!there || t->header->payload_size <= PAGE_SIZE))
        give_back(t);
    while (atomic_load(&t->replied) == REPLY_NONE && atomic_load(&t->ring->state) == RING_BEGUN)
        (void)wait_on_word(&t->replied, REPLY_NONE, 0);
    end_waiting(t);
    if (atomic_load(&t->replied) != REPLY_MADE)
        return false;
    atomic_store(&t->unique, 0);
    return true;
}

/* Returns as wait_for_reply does. */
static bool answer(struct ring_thread *t)
{
    struct fuse_in_header in;
    size_t len = 0;
    memcpy(&in, t->header->in_out, sizeof in);
    char *request = put_together(t, &len);
    bool bound = !waits_for_disk(in.opcode);
    if (bound != t->bound)
        bind_thread(t, bound);
    t->commit_id = t->header->commit_id;
    t->room = t->extra && len > PAGE_SIZE ? PAGE_SIZE : t->ring->max_io;
    atomic_store(&t->replied, REPLY_NONE);
    atomic_store(&t->unique, in.unique);
    if (is_of_file(in.opcode))
        atomic_store_explicit(&t->ring->file, in.nodeid, memory_order_relaxed);
    if (request == NULL || (in.unique & KICK) != 0) {
        reply_only(t, in.unique, request == NULL ? -EIO : 0);
    } else {
        struct fuse_buf buf = { .mem = request, .size = len };
        t->ring->amend(t->ring->arg, request, len);
        fuse_session_process_buf(t->ring->se, &buf);
    }
    return wait_for_reply(t);
}

/* ---- a reply ----------------------------------------------------------------------------------- */

static struct ring_thread *find_thread(struct fuse_ring *ring, uint64_t unique)
{
    if (self != NULL && atomic_load_explicit(&self->unique, memory_order_relaxed) == unique)
        return self;
    unsigned nr = atomic_load(&ring->nr);
    for (unsigned i = 0; i < nr; i++)
        if (atomic_load(&ring->threads[i]->unique) == unique)
            return ring->threads[i];
    return NULL;
}

/* Returns bytes of payload, or -1: more than there is room for. */
static ssize_t copy_payload(struct ring_thread *t, const struct iovec *iov, int count)
{
    size_t n = 0, room = t == self ? t->ring->max_io : t->room;
    for (int i = 0; i < count; n += iov[i].iov_len, i++) {
        if (iov[i].iov_len > room - n)
            return -1;
        memcpy(t->payload + n, iov[i].iov_base, iov[i].iov_len);
    }
    return (ssize_t)n;
}

ssize_t ring_reply(struct fuse_ring *ring, const struct iovec *iov, int count)
{
    struct fuse_out_header out;
    memcpy(&out, iov[0].iov_base, sizeof out);
    struct ring_thread *t = out.unique != 0 ? find_thread(ring, out.unique) : NULL;
    if (t == NULL)
        return -1;
    ssize_t n = copy_payload(t, iov + 1, count - 1);
    if (n < 0) {
        out.error = -EIO;
        n = 0;
    }
    memcpy(t->header->in_out, &out, sizeof out);
    t->header->payload_size = (uint32_t)n;
    atomic_store(&t->replied, REPLY_MADE);
    if (t != self)
        wake_word(&t->replied);
    return (ssize_t)out.len;
}

/* ---- the loop ---------------------------------------------------------------------------------- */

/* Hand over what was prepared, and wait for so many completions.   Returns 0 or -errno. */
static int enter(struct ring_thread *t, unsigned completions)
{
    struct timespec pause = { .tv_nsec = BUSY_NS };
    for (;;) {
        int err = io_uring_submit_and_wait(&t->uring, completions);
        if (err != -EAGAIN && err != -ENOMEM && err != -EBUSY && err != -EINTR)
            return err < 0 ? err : 0;
        nanosleep(&pause, NULL); /* the kernel lacks memory: what was prepared still is */
    }
}

/* Returns 0: a request is here; or -errno: the end. */
static int next_request(struct ring_thread *t)
{
    struct io_uring_cqe *cqe;
    int err;
    do
        err = enter(t, 1);
    while (err == 0 && io_uring_peek_cqe(&t->uring, &cqe) != 0);
    if (err != 0)
        return err;
    int res = cqe->user_data == TAG_STOP ? -ENOTCONN : cqe->res;
    io_uring_cqe_seen(&t->uring, cqe);
    return res;
}

static void watch_for_stop(struct ring_thread *t)
{
    struct io_uring_sqe *sqe = io_uring_get_sqe(&t->uring);
    io_uring_prep_poll_add(sqe, t->ring->stop, POLLIN);
    io_uring_sqe_set_data64(sqe, TAG_STOP);
}

static void set_thread_state(struct ring_thread *t, enum thread_state state)
{
    atomic_store(&t->state, state);
    wake_word(&t->state);
}

/* The connection is at its end in one way or another; or what came is worth a word. */
static bool is_end(int err)
{
    return err == 0 || err == -ENOTCONN || err == -ECONNABORTED || err == -ECANCELED ||
           err == -ENOENT;
}

/* Without its threads a queue's requests would wait for ever; before the first, the kernel goes back to
 * /dev/fuse. */
static void note_end(struct ring_thread *t, int err, bool served)
{
    struct fuse_ring *ring = t->ring;
    if (is_end(err))
        return;
    if (!atomic_exchange(&ring->said, true))
        daemon_say("io_uring: the kernel says: %s", strerror(-err));
    if (served && !atomic_exchange(&ring->broken, true))
        kill(getpid(), SIGTERM);
}

bool ring_is_broken(struct fuse_ring *ring)
{
    return ring != NULL && atomic_load(&ring->broken);
}

/* From now on it takes what the kernel has queued. */
static void note_sure(struct ring_thread *t)
{
    if (t->sure)
        return;
    t->sure = true;
    atomic_fetch_add(&t->queue->sure, 1);
    wake_word(&t->queue->sure);
}

static void note_entry(struct ring_thread *t)
{
    atomic_fetch_add(&t->queue->entries, 1);
    if (!t->extra)
        note_sure(t);
    set_thread_state(t, THREAD_SERVING);
}

/* The first threads begin together: no entry may be new to the kernel when somebody waits. */
static void settle(struct ring_queue *queue)
{
    atomic_fetch_add(&queue->settled, 1);
    wake_word(&queue->settled);
    for (uint32_t n; (n = atomic_load(&queue->settled)) < queue->base;)
        (void)wait_on_word(&queue->settled, n, 0);
}

static void serve_queue(struct ring_thread *t)
{
    struct iovec iov[2] = { { .iov_base = t->header, .iov_len = sizeof *t->header },
                            { .iov_base = t->payload, .iov_len = t->ring->max_io } };
    struct io_uring_sqe *sqe = next_sqe(t, RING_REGISTER);
    bool served = false;
    sqe->addr = (uintptr_t)iov;
    sqe->len = 2;
    watch_for_stop(t);
    int err = enter(t, 0);
    if (err == 0 && io_uring_cq_ready(&t->uring) == 0) /* taken, or there would be an error */
        note_entry(t);
    settle(t->queue);
    while (err == 0 && (err = next_request(t)) == 0 && answer(t)) {
        served = true;
        next_sqe(t, RING_COMMIT_AND_FETCH);
        note_sure(t);
    }
    note_end(t, err, served);
}

static int prepare_thread(struct ring_thread *t)
{
    struct io_uring_params p = { .flags = IORING_SETUP_SQE128 | IORING_SETUP_SINGLE_ISSUER |
                                          IORING_SETUP_DEFER_TASKRUN };
    bind_thread(t, true);
    return io_uring_queue_init_params(SQ_ENTRIES, &t->uring, &p);
}

static void run_thread(struct ring_thread *t)
{
    struct fuse_ring *ring = t->ring;
    int err = prepare_thread(t);
    if (err != 0) {
        atomic_store(&ring->err, err);
        return;
    }
    self = t;
    set_thread_state(t, THREAD_READY);
    while (atomic_load(&ring->state) == RING_WAITING)
        (void)wait_on_word(&ring->state, RING_WAITING, 0);
    if (atomic_load(&ring->state) == RING_BEGUN)
        serve_queue(t);
    io_uring_queue_exit(&t->uring);
}

/* One step does it all. */
static unsigned ring_step(void *arg)
{
    struct ring_thread *t = arg;
    if (atomic_load(&t->state) != THREAD_ENDED) {
        run_thread(t);
        set_thread_state(t, THREAD_ENDED);
    }
    return ENDED_MS;
}

/* ---- starting and ending ----------------------------------------------------------------------- */

static void free_thread(struct ring_thread *t)
{
    munmap(t->header, STAGE_BYTES + t->ring->max_io);
    free(t);
}

static struct ring_thread *new_thread(struct fuse_ring *ring, struct ring_queue *queue, bool extra)
{
    struct ring_thread *t = calloc(1, sizeof *t);
    if (t == NULL)
        return NULL;
    *t = (struct ring_thread){ .ring = ring, .queue = queue, .extra = extra };
    char *map = mmap(NULL, STAGE_BYTES + ring->max_io, PROT_READ | PROT_WRITE,
                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (map == MAP_FAILED) {
        free(t);
        return NULL;
    }
    t->header = (void *)map;
    t->payload = map + STAGE_BYTES;
    queue->nr++;
    ring->threads[atomic_load(&ring->nr)] = t;
    atomic_fetch_add(&ring->nr, 1);
    return t;
}

/* Those who reply find it before it runs; so it stays when it comes to nothing, and is tried again.
 * Context: growing, or nobody else knows the ring. *out: NULL, or the thread; also when it failed. */
static int create_thread(struct fuse_ring *ring, struct ring_queue *queue, bool extra,
                         struct ring_thread **out)
{
    struct ring_thread *t = queue->spare;
    if (t == NULL)
        t = new_thread(ring, queue, extra);
    *out = t;
    if (t == NULL)
        return -ENOMEM;
    queue->spare = NULL;
    worker_stop(t->worker);
    t->worker = NULL;
    atomic_store(&t->state, THREAD_NEW);
    return worker_start(&t->worker, "folio-ring", ring_step, t);
}

static bool is_online(unsigned cpu)
{
    char path[64], word = '1';
    snprintf(path, sizeof path, "/sys/devices/system/cpu/cpu%u", cpu);
    if (access(path, F_OK) != 0)
        return false;
    strcat(path, "/online");
    int fd = open(path, O_RDONLY | O_CLOEXEC); /* not there: it cannot be switched off */
    if (fd >= 0) {
        (void)!read(fd, &word, 1);
        close(fd);
    }
    return word == '1';
}

/* The queue of a processor that is not there needs an entry, too. */
static unsigned threads_of(unsigned qid, unsigned threads)
{
    unsigned cpus = (unsigned)get_nprocs();
    unsigned each = cpus > MANY_CPUS ? threads * MANY_CPUS / cpus : threads;
    unsigned least = threads < LEAST ? threads : LEAST;
    if (!is_online(qid))
        return 1;
    return each > least ? each : least;
}

unsigned ring_threads(unsigned threads)
{
    unsigned queues = (unsigned)get_nprocs_conf(), nr = 0;
    for (unsigned q = 0; q < queues; q++)
        nr += threads_of(q, threads);
    return nr;
}

static int create_queue(struct fuse_ring *ring, unsigned qid, unsigned threads)
{
    struct ring_queue *queue = &ring->queues[qid];
    *queue = (struct ring_queue){ .qid = qid, .base = threads_of(qid, threads) };
    queue->set = CPU_ALLOC(ring->nr_queues);
    if (queue->set == NULL)
        return -ENOMEM;
    CPU_ZERO_S(ring->set_size, queue->set);
    CPU_SET_S(qid, ring->set_size, queue->set);
    struct ring_thread *t;
    int err = 0;
    while (queue->nr < queue->base && err == 0)
        err = create_thread(ring, queue, false, &t);
    return err;
}

static int create_queues(struct fuse_ring *ring, unsigned threads)
{
    unsigned nr = ring->nr_queues;
    ring->queues = calloc(nr, sizeof *ring->queues);
    ring->threads = calloc((size_t)nr * (threads + RING_MOST), sizeof(struct ring_thread *));
    ring->anywhere = CPU_ALLOC(nr);
    if (ring->queues == NULL || ring->threads == NULL || ring->anywhere == NULL)
        return -ENOMEM;
    int err = sched_getaffinity(0, ring->set_size, ring->anywhere) == 0 ? 0 : -errno;
    for (unsigned q = 0; q < nr && err == 0; q++)
        err = create_queue(ring, q, threads);
    for (unsigned i = 0; i < atomic_load(&ring->nr) && err == 0; i++)
        while (atomic_load(&ring->threads[i]->state) == THREAD_NEW)
            (void)wait_on_word(&ring->threads[i]->state, THREAD_NEW, 0);
    return err != 0 ? err : atomic_load(&ring->err);
}

int ring_start(struct fuse_ring **out, struct fuse_session *se, unsigned threads, size_t max_io,
               ring_amend amend, void *arg)
{
    struct fuse_ring *ring = calloc(1, sizeof *ring);
    unsigned queues = (unsigned)get_nprocs_conf();
    if (ring == NULL)
        return -ENOMEM;
    *ring = (struct fuse_ring){
        .se = se, .amend = amend, .arg = arg, .max_io = max_io, .nr_queues = queues
    };
    ring->set_size = CPU_ALLOC_SIZE(queues);
    pthread_mutex_init(&ring->growing, NULL);
    ring->stop = eventfd(0, EFD_CLOEXEC);
    int err = ring->stop < 0 ? -errno : create_queues(ring, threads);
    if (err == 0) {
        *out = ring;
        return 0;
    }
    ring_stop(ring);
    ring_free(ring);
    return err;
}

/* Returns what it was. */
static enum ring_state set_state(struct fuse_ring *ring, enum ring_state state)
{
    pthread_mutex_lock(&ring->growing);
    enum ring_state was = (enum ring_state)atomic_exchange(&ring->state, state);
    pthread_mutex_unlock(&ring->growing);
    wake_word(&ring->state);
    return was;
}

void ring_begin(struct fuse_ring *ring)
{
    (void)set_state(ring, RING_BEGUN);
}

void ring_stop(struct fuse_ring *ring)
{
    uint64_t one = 1;
    if (ring == NULL || set_state(ring, RING_ENDED) == RING_ENDED)
        return;
    if (ring->stop >= 0 && write(ring->stop, &one, sizeof one) != (ssize_t)sizeof one)
        daemon_say("the threads of io_uring could not be told to end: %s", strerror(errno));
    for (unsigned q = 0; ring->queues != NULL && q < ring->nr_queues; q++) {
        atomic_fetch_add(&ring->queues[q].settled, ring->queues[q].base); /* see settle() */
        wake_word(&ring->queues[q].settled);
    }
    for (unsigned i = 0; i < atomic_load(&ring->nr); i++) {
        uint32_t none = REPLY_NONE;
        atomic_compare_exchange_strong(&ring->threads[i]->replied, &none, REPLY_NOT_WAITED_FOR);
        wake_word(&ring->threads[i]->replied);
    }
    for (unsigned i = 0; i < atomic_load(&ring->nr); i++)
        worker_stop(ring->threads[i]->worker);
}

void ring_free(struct fuse_ring *ring)
{
    if (ring == NULL)
        return;
    for (unsigned i = 0; i < atomic_load(&ring->nr); i++)
        free_thread(ring->threads[i]);
    for (unsigned q = 0; ring->queues != NULL && q < ring->nr_queues; q++)
        CPU_FREE(ring->queues[q].set);
    CPU_FREE(ring->anywhere);
    free(ring->queues);
    free(ring->threads);
    if (ring->stop >= 0)
        close(ring->stop);
    pthread_mutex_destroy(&ring->growing);
    free(ring);
}
