/* libfolio_conn.c: finding a mount's daemon, and talking to it. All but conn_offered run in the keeper. */
#include "cache/libfolio.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/sysmacros.h>
#include <sys/un.h>

static struct client_conn conns[CLIENT_CONNS];
static char reason[200];

struct client_conn *conn_at(unsigned i)
{
    return &conns[i];
}

unsigned conn_index(const struct client_conn *conn)
{
    return (unsigned)(conn - conns);
}

void conn_forget(void)
{
    for (unsigned i = 0; i < CLIENT_CONNS; i++)
        atomic_store(&conns[i].dev, 0);
}

/* Kept until somebody with a standard error reports it. */
static void note_reason(const char *text, int error)
{
    if (error)
        snprintf(reason, sizeof(reason), "libfolio: %s: %s\n", text, strerrordesc_np(error));
    else
        snprintf(reason, sizeof(reason), "libfolio: %s\n", text);
}

bool conn_verbose(void)
{
    const char *verbose = getenv("FOLIO_VERBOSE"); // NOLINT(concurrency-mt-unsafe)

    return verbose && strcmp(verbose, "1") == 0;
}

void conn_report(void)
{
    if (reason[0] && conn_verbose())
        (void)!write(STDERR_FILENO, reason, strlen(reason));
    reason[0] = '\0'; /* the next failure has another */
}

void conn_say(const char *text, int error)
{
    if (!reason[0]) /* else somebody knows better */
        note_reason(text, error);
    conn_report();
}

/* ---- where the socket is ------------------------------------------------------------------------ */

/* The i-th place to look; false: there is no further one. */
static bool place(unsigned i, dev_t dev, struct sockaddr_un *address)
{
    unsigned uid = (unsigned)geteuid(), major = major(dev), minor = minor(dev);

    *address = (struct sockaddr_un){ .sun_family = AF_UNIX };
    switch (i) {
    case 0:
        snprintf(address->sun_path, sizeof(address->sun_path), "%s/%u:%u", ATTACH_ROOT_DIRECTORY,
                 major, minor);
        return true;
    case 1:
        snprintf(address->sun_path, sizeof(address->sun_path), "/run/user/%u/foliofs/%u:%u%s", uid,
                 major, minor, ATTACH_SOCKET_SUFFIX);
        return true;
    case 2:
        snprintf(address->sun_path, sizeof(address->sun_path), "/tmp/foliofs-%u/%u:%u%s", uid,
                 major, minor, ATTACH_SOCKET_SUFFIX);
        return true;
    default:
        return false;
    }
}

struct client_conn *conn_find(dev_t dev)
{
    for (unsigned i = 0; i < CLIENT_CONNS; i++)
        if (atomic_load(&conns[i].dev) == dev && !atomic_load(&conns[i].hung_up))
            return &conns[i];
    return NULL;
}

bool conn_offered(dev_t dev)
{
    struct sockaddr_un address;

    if (conn_find(dev))
        return true;
    for (unsigned i = 0; place(i, dev, &address); i++)
        if (access(address.sun_path, F_OK) == 0)
            return true;
    return false;
}

/* A socket whose other end is root or this user.   Returns it or -errno. */
static int connect_to(const struct sockaddr_un *address)
{
    struct ucred peer;
    socklen_t bytes = sizeof(peer);
    int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);

    if (fd < 0)
        return -errno;
    int error = 0;
    if (connect(fd, (const struct sockaddr *)address, sizeof(*address)) ||
        getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &bytes))
        error = -errno;
    else if (peer.uid != 0 && peer.uid != geteuid())
        error = -EPERM;
    if (!error)
        return fd;
    close(fd);
    return error;
}

/* Another time it may be otherwise. */
static bool passes(int error)
{
    return error == EMFILE || error == ENFILE || error == ENOMEM || error == ENOBUFS;
}

static int connect_daemon(dev_t dev)
{
    struct sockaddr_un address;

    for (unsigned i = 0; place(i, dev, &address); i++) {
        int fd = connect_to(&address);
        if (fd >= 0 || passes(-fd))
            return fd;
        if (fd != -ENOENT)
            note_reason(address.sun_path, -fd);
    }
    return -EOPNOTSUPP;
}

/* ---- userfaultfd ---------------------------------------------------------------------------------- */

/* In the keeper's table, from the first connection on, needed or not; -1: it may not be opened. Who gives up his rights
 * later keeps his mappings; his children have them by a userfaultfd of their own, for which this is needed then. */
static int device = -1;

int conn_device(void)
{
    return device;
}

void conn_set_device(int fd)
{
    device = fd;
}

static void keep_device(void)
{
    int before = errno;

    if (device < 0 && (device = open("/dev/userfaultfd", O_RDWR | O_CLOEXEC)) >= 0)
        device = attach_move_up(device);
    errno = before;
}

static _Atomic bool whole; /* not only the program's own faults */

FOLIO_EXPORT void folio_whole_tracking(void)
{
    const char *own = getenv("FOLIO_OWN_FAULTS"); // NOLINT(concurrency-mt-unsafe)
    atomic_store(&whole, !own || strcmp(own, "1") != 0);
}

bool conn_set_whole(bool now)
{
    return atomic_exchange(&whole, now);
}

/* Faults inside system calls too, if that is allowed at all; else those of the program only.
 * Returns the descriptor or -errno. */
static int new_userfaultfd(bool *own_only)
{
    int fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);

    keep_device();
    if (fd < 0 && errno == EPERM && device >= 0)
        fd = ioctl(device, USERFAULTFD_IOC_NEW, O_CLOEXEC | O_NONBLOCK);
    *own_only = fd < 0;
    if (fd < 0 && !atomic_load(&whole))
        fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK | UFFD_USER_MODE_ONLY);
    if (fd >= 0)
        return fd;
    int error = errno;
    note_reason("userfaultfd (allow it by /dev/userfaultfd or "
                "sysctl vm.unprivileged_userfaultfd=1)",
                error);
    return passes(error) ? -error : -EPERM;
}

static int open_userfaultfd(bool *own_only)
{
    struct uffdio_api api = { .api = UFFD_API, .features = ATTACH_UFFD_FEATURES };
    int fd = new_userfaultfd(own_only);

    if (fd < 0 || ioctl(fd, UFFDIO_API, &api) == 0)
        return fd;
    note_reason("this kernel's userfaultfd lacks what attaching needs; Linux 6.6 has it", 0);
    close(fd);
    return -EOPNOTSUPP;
}

/* ---- a connection ----------------------------------------------------------------------------------- */

static int send_request(int socket, const struct attach_request *request, int fd)
{
    union {
        struct cmsghdr header;
        char bytes[CMSG_SPACE(sizeof(int))];
    } control = { 0 };
    struct iovec data = { (void *)(uintptr_t)request, sizeof(*request) };
    struct msghdr message = { .msg_iov = &data, .msg_iovlen = 1 };

    if (fd >= 0) {
        message.msg_control = control.bytes;
        message.msg_controllen = sizeof(control.bytes);
        control.header = (struct cmsghdr){ .cmsg_len = CMSG_LEN(sizeof(int)),
                                           .cmsg_level = SOL_SOCKET,
                                           .cmsg_type = SCM_RIGHTS };
        memcpy(CMSG_DATA(&control.header), &fd, sizeof(fd));
    }
    return sendmsg(socket, &message, MSG_NOSIGNAL) < 0 ? -errno : 0;
}

/* Returns 0, or -EPROTO. *fd: -1 if none came. */
static int receive_reply(int socket, struct attach_reply *reply, int *fd, void *bytes, size_t count)
{
    union {
        struct cmsghdr header;
        char bytes[CMSG_SPACE(sizeof(int))];
    } control;
    struct iovec data[2] = { { reply, sizeof(*reply) }, { bytes, count } };
    struct msghdr message = { .msg_iov = data,
                              .msg_iovlen = 2,
                              .msg_control = control.bytes,
                              .msg_controllen = sizeof(control.bytes) };

    *fd = -1;
    ssize_t got = recvmsg(socket, &message, MSG_CMSG_CLOEXEC);
    const struct cmsghdr *header = got > 0 ? CMSG_FIRSTHDR(&message) : NULL;
    if (header && header->cmsg_level == SOL_SOCKET && header->cmsg_type == SCM_RIGHTS &&
        header->cmsg_len == CMSG_LEN(sizeof(int)))
        memcpy(fd, CMSG_DATA(header), sizeof(*fd));
    if (got < (ssize_t)sizeof(*reply) || reply->error > 0)
        return -EPROTO;
    if (reply->error == 0 && (size_t)got != sizeof(*reply) + count)
        return -EPROTO;
    return 0;
}

int conn_ask(struct client_conn *conn, const struct attach_request *request, int send_fd,
             struct attach_reply *reply, int *receive_fd, void *bytes, size_t count)
{
    int fd;
    struct attach_reply discarded;

    if (!reply)
        reply = &discarded;
    if (atomic_load(&conn->hung_up))
        return -ECONNRESET;
    int error = send_request(conn->socket, request, send_fd);
    if (error == -ETOOMANYREFS)
        return error; /* nothing was sent */
    if (!error)
        error = receive_reply(conn->socket, reply, &fd, bytes, count);
    if (error) { /* it is gone, or speaks nonsense: no further word, and the watcher sees it */
        atomic_store(&conn->hung_up, true);
        shutdown(conn->socket, SHUT_RDWR);
        return -ECONNRESET;
    }
    if (reply->error == 0 && receive_fd) {
        *receive_fd = fd;
        if (fd < 0)
            return -EMFILE; /* it was sent, but the kernel had no room for it here */
    } else if (fd >= 0) {
        close(fd);
    }
    return reply->error;
}

/* The listener's from now on, if pages can be touched by a system call, which is how it is answered. */
static void hang_bell(const struct client_conn *conn, int bell)
{
    if (bell >= 0 && (conn->own_only || robust_listen(bell)))
        close(bell);
}

static int greet(struct client_conn *conn, dev_t dev)
{
    struct attach_request hello = { .op = ATTACH_HELLO, .version = ATTACH_VERSION };
    struct attach_reply reply = { 0 };

    int fd = connect_daemon(dev);
    if (fd < 0)
        return fd;
    conn->socket = fd;
    conn->files = 0;
    atomic_store(&conn->hung_up, false);
    atomic_store(&conn->gone, false);
    int bell = -1, error = conn->uffd = open_userfaultfd(&conn->own_only);
    if (error >= 0) {
        error = conn_ask(conn, &hello, conn->uffd, &reply, &bell, NULL, 0);
        if (error == -EMFILE && reply.error == 0)
            error = 0; /* without a bell */
        if (error)
            note_reason("the daemon refuses", -error);
        else if ((error = keeper_watch(conn)) == 0) {
            hang_bell(conn, bell);
            return 0;
        }
        if (bell >= 0)
            close(bell);
        close(conn->uffd);
    }
    close(conn->socket);
    /* Who accepts us and hangs up has as many clients as he can have. */
    if (error == -ECONNRESET || error == -ETOOMANYREFS)
        error = -EAGAIN;
    return passes(-error) || error == -EPERM || error == -EAGAIN ? error : -EOPNOTSUPP;
}

int conn_get(dev_t dev, struct client_conn **out)
{
    struct client_conn *unused = NULL;
    bool attached = false;

    for (unsigned i = 0; i < CLIENT_CONNS; i++) {
        struct client_conn *conn = &conns[i];
        if (conn->dev == dev && !atomic_load(&conn->hung_up)) {
            if (!conn->own_only || !atomic_load(&whole)) {
                *out = conn;
                return 0;
            }
            attached = attached || conn->files > 0;
        }
        if (conn->dev && atomic_load(&conn->gone) && conn->files == 0) {
            close(conn->socket);
            close(conn->uffd);
            atomic_store(&conn->dev, 0);
        }
        if (!conn->dev && !unused)
            unused = conn;
    }
    if (!unused)
        return -EMFILE;
    int error = greet(unused, dev);
    if (error)
        return attached && (error == -EPERM || error == -EOPNOTSUPP) ? -EAGAIN : error;
    reason[0] = '\0'; /* of another place that was looked at */
    atomic_store(&unused->dev, dev);
    *out = unused;
    return 1;
}
