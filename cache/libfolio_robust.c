/* libfolio_robust.c: robust mutexes, whose owners may end, and the thread that sees to their pages: the listener.
 *
 * When a thread ends that has locked one, the kernel stores in it that its owner is dead, and wakes who waits. That
 * store must not fault, for of a thread that is ending nobody is asked: it fails, silently, and the mutex stays locked.
 * A page that was locked in is writable; what can take that away is the daemon, and then it rings (attach_proto.h).
 * So the listener looks through what the kernel would, and asks for those pages as a store does.
 *
 * Asking takes as long as a fault may. So it is not the keeper, for whom others wait, nor the watcher, who ends the
 * waiting when the daemon is gone.
 *
 * Threads lock, unlock and end meanwhile. So it reads by process_vm_readv(2), which fails where a load would be SIGSEGV; and
 * when an entry leads astray, having been taken out, it begins again a little later. Whatever is locked after the ring
 * is stored to after it, and needs nothing. */
#include "cache/libfolio.h"

#include <dirent.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <poll.h>
#include <semaphore.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <time.h>

#ifndef MADV_POPULATE_WRITE /* Linux 5.14 */
#define MADV_POPULATE_WRITE 23
#endif

#define ENTRIES_MOST 2048u /* of a list, as the kernel's ROBUST_LIST_LIMIT */
#define BELLS        8     /* heard at a time */
#define PAUSE_MS     10    /* what rings meanwhile is seen to together */
#define PAUSE_SHARE  20    /* and the pause is at least so many times what looking cost */
#define AGAIN_MOST_MS \
    2000 /* what could not be had is tried again: after PAUSE_MS, doubled up to this */

static struct {
    bool runs;        /* door */
    int epoll, tasks; /* in the keeper's table; tasks: /proc/self/task */
    sem_t begun;
} listener;

/* Returns false: nothing is there. */
static bool peek(const void *from, void *to, size_t bytes)
{
    struct iovec here = { to, bytes }, there = { (void *)(uintptr_t)from, bytes };
    pid_t self = (pid_t)syscall(SYS_gettid); /* a main thread that has left has no memory */

    return process_vm_readv(self, &here, 1, &there, 1, 0) == (ssize_t)bytes;
}

/* Have the pages of [from, from + bytes), where they are attached, writable.   Returns false: not now. */
static bool touch(uintptr_t from, size_t bytes)
{
    bool all = true;

    for (uintptr_t page = from & ~(CLIENT_PAGE - 1); page < from + bytes; page += CLIENT_PAGE) {
        if (!table_serves(page))
            continue;
        void *at = (void *)page; // NOLINT(performance-no-int-to-ptr): what the table holds
        if (sys_madvise(at, CLIENT_PAGE, MADV_POPULATE_WRITE) && errno != EINVAL)
            all = false; /* EINVAL: no store is allowed there */
    }
    return all;
}

/* The pages of a lock: with the entry, which the kernel reads, and the word that it stores to. */
static bool touch_lock(const struct robust_list *entry, long word_offset)
{
    bool both = touch((uintptr_t)entry, sizeof(*entry));

    return touch((uintptr_t)entry + (uintptr_t)word_offset, sizeof(uint32_t)) && both;
}

/* The lowest bit says what kind of a mutex it is. */
static struct robust_list *entry_of(struct robust_list *link)
{
    return (struct robust_list *)((char *)link - ((uintptr_t)link & 1));
}

/* Touch what a thread has locked.   Returns false: perhaps not everything. */
static bool see_to_thread(pid_t thread)
{
    struct robust_list_head *list, head;
    size_t size;

    if (syscall(SYS_get_robust_list, thread, &list, &size) || !list ||
        !peek(list, &head, sizeof(head)))
        return true; /* it has ended, or has no list */
    struct robust_list link = head.list, *entry = entry_of(head.list_op_pending);
    bool all = !entry || touch_lock(entry, head.futex_offset);
    for (unsigned n = 0; (entry = entry_of(link.next)) != &list->list; n++) {
        if (n == ENTRIES_MOST)
            return all; /* nor does the kernel look further */
        if (!entry)
            return false;
        all = touch_lock(entry, head.futex_offset) && all;
        if (!peek(entry, &link, sizeof(link)))
            return false;
    }
    return all;
}

static bool see_to_all(void)
{
    _Alignas(struct dirent64) char buffer[32768];
    bool all = true;
    long got;

    lseek(listener.tasks, 0, SEEK_SET);
    while ((got = syscall(SYS_getdents64, listener.tasks, buffer, sizeof(buffer))) > 0)
        for (long at = 0; at < got;) {
            const struct dirent64 *task = (const struct dirent64 *)(const void *)(buffer + at);
            long thread = strtol(task->d_name, NULL, 10);
            if (thread > 0)
                all = see_to_thread((pid_t)thread) && all;
            at += task->d_reclen;
        }
    return all;
}

/* Until one rings, or for so long. */
static void hear(int timeout_ms)
{
    struct epoll_event events[BELLS];
    char bytes[256];

    int count = epoll_wait(listener.epoll, events, BELLS, timeout_ms);
    for (int i = 0; i < count; i++) {
        ssize_t got = recv(events[i].data.fd, bytes, sizeof(bytes), MSG_DONTWAIT);
        if (got == 0 || (got < 0 && errno != EAGAIN))
            close(events[i].data.fd); /* its daemon is gone; the bell is nobody else's */
    }
}

static double processor_ms(void)
{
    struct timespec used;

    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &used);
    return (double)used.tv_sec * 1e3 + (double)used.tv_nsec / 1e6;
}

static void *listen_to_bells(void *unused)
{
    int again_ms = -1;

    (void)unused;
    prctl(PR_SET_NAME, "folio-listen");
    sem_post(&listener.begun); /* as the keeper's: no fork amid a thread's start */
    for (;;) {
        hear(again_ms);
        double before = processor_ms();
        if (see_to_all())
            again_ms = -1;
        else if (again_ms < AGAIN_MOST_MS)
            again_ms = again_ms < 0 ? PAUSE_MS : 2 * again_ms;
        double pause = PAUSE_SHARE * (processor_ms() - before);
        poll(NULL, 0, pause > PAUSE_MS ? (int)pause : PAUSE_MS);
    }
    return NULL;
}

static int start(void)
{
    int error = 0;

    listener.tasks = open("/proc/self/task", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    listener.epoll = epoll_create1(EPOLL_CLOEXEC);
    if (listener.tasks < 0 || listener.epoll < 0)
        error = -errno;
    sem_init(&listener.begun, 0, 0);
    if (!error)
        error = keeper_start_thread(listen_to_bells, NULL);
    if (error) {
        if (listener.tasks >= 0)
            close(listener.tasks);
        if (listener.epoll >= 0)
            close(listener.epoll);
        return error;
    }
    while (sem_wait(&listener.begun) && errno == EINTR)
        ;
    listener.runs = true;
    return 0;
}

int robust_listen(int bell)
{
    struct epoll_event event = { .events = EPOLLIN, .data.fd = bell };
    int error = listener.runs ? 0 : start();

    if (!error && epoll_ctl(listener.epoll, EPOLL_CTL_ADD, bell, &event))
        error = -errno;
    return error;
}

void robust_forget(void)
{
    listener.runs = false;
}
