/* libfolio_keeper.c: the keeper and the watcher: threads with a table of descriptors of their own. (The listener,
 * libfolio_robust.c, has it too.)
 *
 *     keeper    waits for keeper_run, calls, answers
 *     watcher   waits for a socket to hang up
 *
 * Two, since only a descriptor can wake who waits for sockets, and the program's threads share none
 * with them. */
#include "cache/libfolio.h"

#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <semaphore.h>
#include <signal.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/prctl.h>

#define STACK_BYTES     (256u << 10)
#define CLOSE_OF_OWN    2u /* CLOSE_RANGE_UNSHARE: the other threads keep theirs */
#define LAST_DESCRIPTOR (~0u)

static pthread_mutex_t door = PTHREAD_MUTEX_INITIALIZER;
static int door_cancel_state; /* of who holds it */
static sigset_t door_signals; /* likewise */

static struct {
    bool runs; /* door */
    sem_t asked, answered;
    long (*call)(void *arg);
    void *arg;
    long result;
    int empty, inherited, epoll;
} keeper;

/* No handler runs in between: it may fork, or map. Those of its own faults do; and what ends the program. */
static void handlers(sigset_t *set)
{
    static const int faults[] = { SIGSEGV, SIGBUS, SIGILL, SIGFPE, SIGTRAP, SIGSYS, SIGABRT };
    static const int ends[] = { SIGINT, SIGTERM, SIGHUP, SIGQUIT };
    struct sigaction action;

    sigfillset(set);
    for (unsigned i = 0; i < sizeof(faults) / sizeof(faults[0]); i++)
        sigdelset(set, faults[i]);
    for (unsigned i = 0; i < sizeof(ends) / sizeof(ends[0]); i++)
        if (!sigaction(ends[i], NULL, &action) && action.sa_handler == SIG_DFL)
            sigdelset(set, ends[i]);
}

void door_enter(void)
{
    sigset_t others, before;
    int state;

    handlers(&others);
    pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, &state);
    pthread_sigmask(SIG_BLOCK, &others, &before);
    pthread_mutex_lock(&door);
    door_cancel_state = state;
    door_signals = before;
}

void door_leave(void)
{
    int state = door_cancel_state;
    sigset_t before = door_signals;

    pthread_mutex_unlock(&door);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    pthread_setcancelstate(state, NULL);
}

void door_forget(void)
{
    static const pthread_mutex_t unlocked = PTHREAD_MUTEX_INITIALIZER;

    memcpy(&door, &unlocked, sizeof(door));
}

void keeper_forget(void)
{
    keeper.runs = false;
    robust_forget();
}

bool keeper_runs(void)
{
    return keeper.runs;
}

static void wait_for(sem_t *semaphore)
{
    while (sem_wait(semaphore) && errno == EINTR)
        ;
}

int keeper_start_thread(void *(*f)(void *arg), void *arg)
{
    pthread_attr_t attr;
    pthread_t thread;
    sigset_t all, before;

    sigfillset(&all);
    if (pthread_attr_init(&attr))
        return -ENOMEM;
    pthread_attr_setdetachstate(&attr, PTHREAD_CREATE_DETACHED);
    pthread_attr_setstacksize(&attr, STACK_BYTES);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int error = pthread_create(&thread, &attr, f, arg);
    if (error == EINVAL) { /* the program's thread-local variables alone need more */
        pthread_attr_destroy(&attr);
        pthread_attr_init(&attr);
        pthread_attr_setdetachstate(&attr, PTHREAD_CREATE_DETACHED);
        error = pthread_create(&thread, &attr, f, arg);
    }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    pthread_attr_destroy(&attr);
    return -error;
}

static int close_range_of_own(unsigned from, unsigned to)
{
#ifdef __SANITIZE_THREAD__ /* it takes the same number in two tables for one descriptor */
    return 0;
#endif
    return syscall(SYS_close_range, from, to, CLOSE_OF_OWN) ? -errno : 0;
}

/* A table of our own, with an empty file for standard input, output and error: what a sanitizer or
 * the C library may write must not reach a daemon. */
static int leave_descriptors(void)
{
    int error = 0, inherited = keeper.inherited;

    if (inherited < 0)
        error = close_range_of_own(0, LAST_DESCRIPTOR);
    else if (inherited > 0)
        error = close_range_of_own(0, (unsigned)inherited - 1);
    if (!error && inherited >= 0)
        error = close_range_of_own((unsigned)inherited + 1, LAST_DESCRIPTOR);
    if (error)
        return error;
    if (inherited >= 0 && inherited <= STDERR_FILENO) {
        keeper.inherited = fcntl(inherited, F_DUPFD_CLOEXEC, STDERR_FILENO + 1);
        close(inherited);
        if (keeper.inherited < 0)
            return -errno;
    }
    keeper.empty = (int)syscall(SYS_memfd_create, "folio-gone", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (keeper.empty < 0 || fcntl(keeper.empty, F_ADD_SEALS, F_SEAL_GROW | F_SEAL_SEAL))
        return -errno;
    while (keeper.empty <= STDERR_FILENO)
        if ((keeper.empty = fcntl(keeper.empty, F_DUPFD_CLOEXEC, 0)) < 0)
            return -errno;
    return 0;
}

static void *watch(void *unused)
{
    (void)unused;
    prctl(PR_SET_NAME, "folio-watch");
    /* Both have begun now. A fork amid a thread's start would leave the child a lock of a sanitizer's. */
    sem_post(&keeper.answered);
    for (;;) {
        struct epoll_event event;
        if (epoll_wait(keeper.epoll, &event, 1, -1) == 1)
            attach_hang_up(conn_at(event.data.u32));
    }
    return NULL;
}

static void *keep(void *unused)
{
    (void)unused;
    prctl(PR_SET_NAME, "folio-keeper");
    int error = leave_descriptors();
    if (!error && (keeper.epoll = epoll_create1(EPOLL_CLOEXEC)) < 0)
        error = -errno;
    keeper.result = 0;
    if (!error)
        error = keeper_start_thread(watch, NULL); /* and it answers */
    if (error) {
        keeper.result = error;
        sem_post(&keeper.answered);
        return NULL; /* if nobody else has this table, it is closed */
    }
    for (;;) {
        wait_for(&keeper.asked);
        keeper.result = keeper.call(keeper.arg);
        sem_post(&keeper.answered);
    }
    return NULL;
}

int keeper_start(int inherit)
{
    if (keeper.runs)
        return 0;
    sem_init(&keeper.asked, 0, 0);
    sem_init(&keeper.answered, 0, 0);
    keeper.inherited = inherit;
    int error = keeper_start_thread(keep, NULL);
    if (error)
        return error;
    wait_for(&keeper.answered);
    keeper.runs = keeper.result == 0;
    return (int)keeper.result;
}

long keeper_run(long (*f)(void *arg), void *arg)
{
    keeper.call = f;
    keeper.arg = arg;
    sem_post(&keeper.asked);
    wait_for(&keeper.answered);
    return keeper.result;
}

struct apart {
    long (*f)(void *arg);
    void *arg;
    long result;
    sem_t done;
};

static void *call_apart(void *arg)
{
    struct apart *apart = arg;

    prctl(PR_SET_NAME, "folio-apart");
    apart->result = apart->f(apart->arg);
    sem_post(&apart->done);
    return NULL;
}

static long start_apart(void *apart)
{
    return keeper_start_thread(call_apart, apart);
}

long keeper_run_apart(long (*f)(void *arg), void *arg)
{
    struct apart apart = { .f = f, .arg = arg };
    int state;

    pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, &state);
    sem_init(&apart.done, 0, 0);
    door_enter();
    long error = keeper_run(start_apart, &apart);
    door_leave();
    if (error == 0)
        wait_for(&apart.done);
    pthread_setcancelstate(state, NULL);
    return error ? error : apart.result;
}

int keeper_empty(void)
{
    return keeper.empty;
}

int keeper_inherited(void)
{
    return keeper.inherited;
}

int keeper_watch(struct client_conn *conn)
{
    struct epoll_event event = { .events = EPOLLRDHUP | EPOLLONESHOT,
                                 .data.u32 = conn_index(conn) };

    return epoll_ctl(keeper.epoll, EPOLL_CTL_ADD, conn->socket, &event) ? -errno : 0;
}
