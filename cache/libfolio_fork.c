/* libfolio_fork.c: what a child has.
 *
 * Attached ranges are MADV_DONTFORK: whatever makes a child, it finds nothing there, and never memory
 * that nobody tracks. After fork() it attaches each range again at the same address, before anyone
 * but other handlers of pthread_atfork runs.
 *
 *     parent                                       child
 *     learn the protections; the keeper sends its proofs,
 *     and /dev/userfaultfd, into a socket pair
 *     fork  -------------------------------------> a keeper of its own takes the proofs out, connects,
 *     close the pair                               attaches; what fails stays absent
 *
 * The proofs travel inside the socket, so they are never among the program's descriptors. */
#include "cache/libfolio.h"

#include <fcntl.h>
#include <pthread.h>
#include <string.h>
#include <sys/socket.h>

#define BATCH 250 /* descriptors in a message; the kernel allows 253 */

#ifndef MADV_WIPEONFORK
#define MADV_WIPEONFORK 18
#endif

static int pair[2] = { -1, -1 };  /* door, from before fork to after it */
static _Atomic int *_Atomic ours; /* 1; in a copy of the process 0, but not after vfork */

/* ---- proofs through a socket ------------------------------------------------------------------- */

static int send_batch(int socket, const int *fds, unsigned count)
{
    union {
        struct cmsghdr header;
        char bytes[CMSG_SPACE(sizeof(int[BATCH]))];
    } control;
    char byte = 0;
    struct iovec data = { &byte, 1 };
    struct msghdr message = { .msg_iov = &data,
                              .msg_iovlen = 1,
                              .msg_control = control.bytes,
                              .msg_controllen = CMSG_SPACE(count * sizeof(int)) };

    control.header = (struct cmsghdr){ .cmsg_len = CMSG_LEN(count * sizeof(int)),
                                       .cmsg_level = SOL_SOCKET,
                                       .cmsg_type = SCM_RIGHTS };
    memcpy(CMSG_DATA(&control.header), fds, count * sizeof(int));
    return sendmsg(socket, &message, MSG_NOSIGNAL | MSG_DONTWAIT) < 0 ? -errno : 0;
}

/* A user may have no more under way than one process may have open, unless privileged. */
static int send_more(int socket, const int *fds, unsigned count, bool *raised, struct rlimit *limit)
{
    int error = send_batch(socket, fds, count);

    if (error != -ETOOMANYREFS || *raised || !attach_limit_raise(limit))
        return error;
    *raised = true;
    return send_batch(socket, fds, count);
}

/* Returns how many came. */
static unsigned receive_batch(int socket, int *fds)
{
    union {
        struct cmsghdr header;
        char bytes[CMSG_SPACE(sizeof(int[BATCH]))];
    } control;
    char byte;
    struct iovec data = { &byte, 1 };
    struct msghdr message = { .msg_iov = &data,
                              .msg_iovlen = 1,
                              .msg_control = control.bytes,
                              .msg_controllen = sizeof(control.bytes) };

    ssize_t got = recvmsg(socket, &message, MSG_CMSG_CLOEXEC | MSG_DONTWAIT);
    const struct cmsghdr *header = got > 0 ? CMSG_FIRSTHDR(&message) : NULL;
    if (!header || header->cmsg_type != SCM_RIGHTS)
        return 0;
    size_t bytes = header->cmsg_len - CMSG_LEN(0);
    memcpy(fds, CMSG_DATA(header), bytes);
    return (unsigned)(bytes / sizeof(int));
}

struct passing {
    pid_t thread; /* whose descriptor it is */
    int socket;
};

/* In the keeper: the device, and all proofs in the order of their slots. Where that ends early, so does what the
 * child will have. */
static long send_proofs(void *arg)
{
    const struct passing *passing = arg;
    struct client_proof *proof;
    int fds[BATCH], error = 0;
    unsigned count = 0;
    struct rlimit limit;
    bool raised = false;

    int socket = attach_copy_descriptor(passing->thread, passing->socket);
    if (socket < 0)
        return socket;
    if (conn_device() >= 0) {
        fds[0] = conn_device();
        error = send_more(socket, fds, 1, &raised, &limit);
    }
    for (unsigned i = 0; !error && (proof = table_proof(i)) != NULL; i++) {
        if (!proof->files)
            continue;
        fds[count++] = proof->fd;
        if (count == BATCH) {
            error = send_more(socket, fds, count, &raised, &limit);
            count = 0;
        }
    }
    if (!error && count)
        error = send_more(socket, fds, count, &raised, &limit);
    if (raised)
        attach_limit_restore(&limit);
    close(socket);
    return error;
}

/* In the child's keeper. A proof that did not come: -1. */
static long receive_proofs(void *unused)
{
    struct client_proof *proof;
    int fds[BATCH];
    unsigned left = 0, batch = 0, came = 0, next = 0;
    struct rlimit limit;
    bool raised = attach_limit_raise(&limit); /* a batch may be larger; nobody else runs here yet */

    (void)unused;
    if (conn_device() >= 0)
        conn_set_device(receive_batch(keeper_inherited(), fds) == 1 ? fds[0] : -1);
    for (unsigned i = 0; (proof = table_proof(i)) != NULL; i++)
        left += proof->files > 0;
    for (unsigned i = 0; (proof = table_proof(i)) != NULL; i++) {
        if (!proof->files)
            continue;
        if (next == batch) { /* as it was sent, however much of it came */
            batch = left < BATCH ? left : BATCH;
            left -= batch;
            came = receive_batch(keeper_inherited(), fds);
            next = 0;
        }
        proof->fd = next < came ? fds[next] : -1;
        next++;
    }
    if (raised)
        attach_limit_restore(&limit);
    for (unsigned i = 0; (proof = table_proof(i)) != NULL; i++)
        if (proof->files && proof->fd >= 0)
            proof->fd = attach_move_up(proof->fd);
    if (conn_device() >= 0)
        conn_set_device(attach_move_up(conn_device()));
    close(keeper_inherited());
    return 0;
}

/* ---- fork ---------------------------------------------------------------------------------------- */

/* From the handler before it to the one after it. (In a library that is loaded late, other models allocate memory.) */
static _Thread_local bool forking __attribute__((tls_model("initial-exec")));

static void before_fork(void)
{
    fork_check();
    door_enter();
    forking = true;
    pair[0] = pair[1] = -1;
    if (!keeper_runs() || table_count() == 0)
        return;
    struct passing passing = { .thread = (pid_t)syscall(SYS_gettid) };
    int error = (int)keeper_run(maps_learn, NULL);
    if (error)
        conn_say("fork: /proc/thread-self/maps", -error);
    else if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair))
        conn_say("fork: socketpair", error = errno);
    if (error)
        return;
    passing.socket = pair[0];
    error = (int)keeper_run(send_proofs, &passing);
    if (error)
        conn_say("fork: descriptors", -error);
}

static void close_pair(void)
{
    for (unsigned i = 0; i < 2; i++)
        if (pair[i] >= 0)
            close(pair[i]);
    pair[0] = pair[1] = -1;
}

static void parent_after_fork(void)
{
    forking = false;
    close_pair();
    door_leave();
}

/* Take out what a child is not to have; what is left is tracked by nobody as yet. Ranges whose daemon
 * has gone are ordinary mappings now, and were inherited. */
static struct client_file *leave_out(void)
{
    struct client_file *unused = NULL;

    for (unsigned i = 0; i < table_count();) {
        const struct client_range *range = table_range(i);
        if (range->not_inherited || atomic_load(&range->file->conn->hung_up))
            table_cut(range->start, range->end, &unused);
        else
            i++;
    }
    return unused;
}

/* Keep the addresses, without access: the threads' stacks, for one, would fit into the holes. */
static void reserve(struct client_file **unused)
{
    for (unsigned i = 0; i < table_count();) {
        const struct client_range *range = table_range(i);
        void *wanted = (void *)range->start; // NOLINT(performance-no-int-to-ptr)
        size_t length = range->end - range->start;
        void *kept =
            sys_mmap(wanted, length, PROT_NONE,
                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED_NOREPLACE, -1, 0);
        if (kept == wanted) {
            i++;
            continue;
        }
        conn_say("fork: a mapping is absent from the child: its place is taken", 0);
        if (kept != MAP_FAILED)
            sys_munmap(kept, length);
        table_cut(range->start, range->end, unused);
    }
}

/* Attach each range: it is taken out and, if that succeeds, is back in its old place. */
static void attach_all_again(void)
{
    bool whole = conn_set_whole(false); /* the child may be allowed less, and has these mappings */

    for (unsigned i = 0; i < table_count();) {
        struct client_range range = *table_range(i);
        struct client_file *unused = NULL;

        table_lock();
        range.file->references++;
        table_cut(range.start, range.end, &unused);
        table_unlock();
        int error = (int)keeper_run(attach_again, &range);
        if (error)
            conn_say("fork: a mapping is absent from the child", -error);
        else
            i++;
        table_lock();
        bool last = table_put(range.file);
        table_unlock();
        if (last)
            keeper_run(attach_release, range.file);
    }
    conn_set_whole(whole);
}

static void forget_everything(void)
{
    keeper_forget();
    conn_forget();
    conn_set_device(-1);
    table_forget();
}

/* Once: another's handler, which came first, may have needed it already. */
static void child_after_fork(void)
{
    if (!forking)
        return;
    forking = false;
    if (keeper_runs()) {
        atomic_store(ours, 1);
        keeper_forget();
        table_forget_lock();
        struct client_file *unused = leave_out();
        reserve(&unused);
        conn_forget();
        table_recount(&unused);
        int error = pair[1] < 0 ? -EBADF : keeper_start(pair[1]);
        if (error) {
            if (table_count())
                conn_say("fork: no mapping is attached in the child", -error);
            forget_everything();
        } else {
            keeper_run(receive_proofs, NULL);
            struct attach_cut cut = { .unused = unused };
            keeper_run(attach_tell_cut, &cut);
            attach_all_again();
        }
    }
    close_pair();
    door_leave();
}

int fork_watch(void)
{
    if (ours)
        return 0;
    void *page =
        sys_mmap(NULL, CLIENT_PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (page == MAP_FAILED)
        return -ENOMEM;
    if (sys_madvise(page, CLIENT_PAGE, MADV_WIPEONFORK) ||
        pthread_atfork(before_fork, parent_after_fork, child_after_fork)) {
        sys_munmap(page, CLIENT_PAGE);
        return -ENOMEM;
    }
    atomic_store((_Atomic int *)page, 1);
    ours = page;
    return 0;
}

void fork_check(void)
{
    _Atomic int *page = atomic_load(&ours);
    if (!page || atomic_load(page))
        return;
    if (forking) {
        child_after_fork();
        return;
    }
    atomic_store(page, 1);
    door_forget();
    forget_everything();
}
