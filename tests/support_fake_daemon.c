#include "tests/support_fake_daemon.h"

#include "cache/attach_proto.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#define PAGE    ((uint64_t)4096)
#define CLIENTS 16
#define RANGES  8192
#define FILES   64
#define IDS     16

struct file {
    ino_t ino;
    int fd, memfd, read_only;
};

struct range {
    uint64_t start, end, offset;
    const struct file *file;
    bool private_copy;
};

struct id {
    bool used, private_copy;
    const struct file *file;
};

struct client {
    int socket, uffd, bell;
    unsigned count;
    struct range ranges[RANGES];
    struct id ids[IDS];
};

static struct client clients[CLIENTS];
static struct file files[FILES];
static struct fake_counts *counts;

static void socket_path(dev_t dev, struct sockaddr_un *address)
{
    *address = (struct sockaddr_un){ .sun_family = AF_UNIX };
    snprintf(address->sun_path, sizeof(address->sun_path), "/tmp/foliofs-%u/%u:%u%s",
             (unsigned)geteuid(), major(dev), minor(dev), ATTACH_SOCKET_SUFFIX);
}

/* ---- files ----------------------------------------------------------------------------------------- */

static struct file *file_of(int fd)
{
    struct stat stat;
    char path[64];

    if (fstat(fd, &stat))
        return NULL;
    struct file *file = files;
    while (file < files + FILES && file->ino && file->ino != stat.st_ino)
        file++;
    if (file == files + FILES)
        return NULL;
    if (!file->ino) {
        file->ino = stat.st_ino;
        file->fd = dup(fd);
        file->memfd = memfd_create("pages", MFD_CLOEXEC);
        snprintf(path, sizeof(path), "/proc/self/fd/%d", file->memfd);
        file->read_only = open(path, O_RDONLY | O_CLOEXEC);
        if (file->fd < 0 || file->memfd < 0 || file->read_only < 0)
            return NULL;
    }
    return ftruncate(file->memfd, stat.st_size) ? NULL : file;
}

static void fill(const struct file *file, uint64_t offset)
{
    char bytes[4096] = { 0 };

    if (pread(file->fd, bytes, sizeof(bytes), (off_t)offset) < 0 ||
        pwrite(file->memfd, bytes, sizeof(bytes), (off_t)offset) < 0)
        atomic_store(&counts->broken, 1);
}

/* ---- ranges ---------------------------------------------------------------------------------------- */

static void forget_range(struct client *client, uint64_t start, uint64_t end)
{
    for (unsigned i = 0; i < client->count;) {
        struct range *range = &client->ranges[i], old = *range;
        if (old.end <= start || old.start >= end) {
            i++;
            continue;
        }
        *range = client->ranges[--client->count];
        atomic_fetch_sub(&counts->ranges, 1);
        if (old.start < start) {
            client->ranges[client->count] = old;
            client->ranges[client->count++].end = start;
            atomic_fetch_add(&counts->ranges, 1);
        }
        if (old.end > end) {
            struct range *rest = &client->ranges[client->count++];
            *rest = old;
            rest->offset += end - old.start;
            rest->start = end;
            atomic_fetch_add(&counts->ranges, 1);
        }
    }
}

static const struct range *range_at(const struct client *client, uint64_t addr)
{
    for (unsigned i = 0; i < client->count; i++)
        if (client->ranges[i].start <= addr && addr < client->ranges[i].end)
            return &client->ranges[i];
    return NULL;
}

/* ---- faults ---------------------------------------------------------------------------------------- */

static void answer_fault(const struct client *client, const struct uffd_msg *message)
{
    uint64_t addr = message->arg.pagefault.address & ~(PAGE - 1);
    uint64_t flags = message->arg.pagefault.flags;
    const struct range *range = range_at(client, addr);
    struct uffdio_writeprotect allow = { .range = { addr, PAGE } };

    if (atomic_load(&counts->deaf) || !range) {
        atomic_fetch_add(&counts->unheard, 1);
        return;
    }
    if (flags & UFFD_PAGEFAULT_FLAG_WP) {
        atomic_fetch_add(&counts->mkwrite, 1);
        ioctl(client->uffd, UFFDIO_WRITEPROTECT, &allow);
        return;
    }
    atomic_fetch_add(flags & UFFD_PAGEFAULT_FLAG_MINOR ? &counts->minor : &counts->missing, 1);
    if (!(flags & UFFD_PAGEFAULT_FLAG_MINOR))
        fill(range->file, range->offset + (addr - range->start));
    struct uffdio_continue let = { .range = { addr, PAGE },
                                   .mode = range->private_copy ? 0 : UFFDIO_CONTINUE_MODE_WP };
    if (ioctl(client->uffd, UFFDIO_CONTINUE, &let) && errno == EEXIST)
        ioctl(client->uffd, UFFDIO_WAKE, &let.range);
}

static void read_faults(const struct client *client)
{
    struct uffd_msg message;

    while (read(client->uffd, &message, sizeof(message)) == (ssize_t)sizeof(message))
        if (message.event == UFFD_EVENT_PAGEFAULT)
            answer_fault(client, &message);
}

/* ---- requests -------------------------------------------------------------------------------------- */

static bool hang_bell(struct client *client, int *reply_fd)
{
    int ends[2];

    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends))
        return false;
    client->bell = ends[0];
    *reply_fd = ends[1];
    return true;
}

static int open_file(struct client *client, const struct attach_request *request, int fd,
                     struct attach_reply *reply, int *reply_fd)
{
    struct file *file = file_of(fd);
    unsigned i = 0;

    while (i < IDS && client->ids[i].used)
        i++;
    if (!file || i == IDS)
        return -ENOMEM;
    bool writable = (fcntl(fd, F_GETFL) & O_ACCMODE) == O_RDWR && request->flags == MAP_SHARED;
    client->ids[i] = (struct id){ true, !writable, file };
    reply->id = i;
    reply->flags = writable ? 0 : ATTACH_PRIVATE;
    *reply_fd = writable ? file->memfd : file->read_only;
    return 0;
}

static int map_file(struct client *client, const struct attach_request *request)
{
    struct id *id = &client->ids[request->id % IDS];

    if (!id->used || client->count > RANGES - 2)
        return -EINVAL;
    forget_range(client, request->addr, request->addr + request->length);
    client->ranges[client->count++] = (struct range){
        .start = request->addr,
        .end = request->addr + request->length,
        .offset = request->offset,
        .file = id->file,
        .private_copy = id->private_copy,
    };
    id->used = false;
    atomic_fetch_add(&counts->ranges, 1);
    return 0;
}

/* What the memfd has of each page.   Returns the bytes behind the reply. */
static size_t mincore_file(const struct client *client, const struct attach_request *request,
                           unsigned char *bytes)
{
    for (uint64_t i = 0; i < request->length / PAGE; i++) {
        const struct range *range = range_at(client, request->addr + i * PAGE);
        off_t at = range ? (off_t)(range->offset + (request->addr + i * PAGE - range->start)) : -1;
        bytes[i] = range && lseek(range->file->memfd, at, SEEK_DATA) == at;
    }
    return request->length / PAGE;
}

static int serve(struct client *client, const struct attach_request *request, int fd,
                 struct attach_reply *reply, int *reply_fd, size_t *extra, unsigned char *bytes)
{
    if (request->version != ATTACH_VERSION || request->reserved)
        return -EPROTO;
    switch (request->op) {
    case ATTACH_HELLO:
        atomic_fetch_add(&counts->hello, 1);
        client->uffd = dup(fd);
        return client->uffd < 0 || !hang_bell(client, reply_fd) ? -EPROTO : 0;
    case ATTACH_OPEN:
        atomic_fetch_add(&counts->open, 1);
        return open_file(client, request, fd, reply, reply_fd);
    case ATTACH_MAP:
        atomic_fetch_add(&counts->map, 1);
        return map_file(client, request);
    case ATTACH_UNMAP:
        atomic_fetch_add(&counts->unmap, 1);
        forget_range(client, request->addr, request->addr + request->length);
        return 0;
    case ATTACH_ADVISE:
        atomic_fetch_add(&counts->advise, 1);
        atomic_store(&counts->last_advice, request->advice);
        return 0;
    case ATTACH_MINCORE:
        *extra = mincore_file(client, request, bytes);
        return 0;
    case ATTACH_WRITE:
        atomic_fetch_add(&counts->write, 1);
        return 0;
    case ATTACH_DROP:
        atomic_fetch_add(&counts->drop, 1);
        client->ids[request->id % IDS].used = false;
        return 0;
    default:
        return -EPROTO;
    }
}

static void send_reply(int socket, const struct attach_reply *reply, int fd, unsigned char *bytes,
                       size_t extra)
{
    union {
        struct cmsghdr header;
        char bytes[CMSG_SPACE(sizeof(int))];
    } control = { 0 };
    struct iovec data[2] = { { (void *)(uintptr_t)reply, sizeof(*reply) }, { bytes, extra } };
    struct msghdr message = { .msg_iov = data, .msg_iovlen = 2 };

    if (fd >= 0) {
        message.msg_control = control.bytes;
        message.msg_controllen = sizeof(control.bytes);
        control.header = (struct cmsghdr){ .cmsg_len = CMSG_LEN(sizeof(int)),
                                           .cmsg_level = SOL_SOCKET,
                                           .cmsg_type = SCM_RIGHTS };
        memcpy(CMSG_DATA(&control.header), &fd, sizeof(fd));
    }
    if (sendmsg(socket, &message, MSG_NOSIGNAL) < 0)
        atomic_store(&counts->broken, 1);
}

/* Returns false: the client has gone. */
static bool read_request(struct client *client)
{
    static unsigned char bytes[ATTACH_MINCORE_PAGES];
    union {
        struct cmsghdr header;
        char bytes[CMSG_SPACE(sizeof(int))];
    } control;
    struct attach_request request;
    struct attach_reply reply = { 0 };
    struct iovec data = { &request, sizeof(request) };
    struct msghdr message = { .msg_iov = &data,
                              .msg_iovlen = 1,
                              .msg_control = control.bytes,
                              .msg_controllen = sizeof(control.bytes) };
    int fd = -1, reply_fd = -1;
    size_t extra = 0;

    if (recvmsg(client->socket, &message, 0) != (ssize_t)sizeof(request))
        return false;
    if (CMSG_FIRSTHDR(&message))
        memcpy(&fd, CMSG_DATA(CMSG_FIRSTHDR(&message)), sizeof(fd));
    reply.error = serve(client, &request, fd, &reply, &reply_fd, &extra, bytes);
    if (reply.error)
        atomic_store(&counts->broken, 1);
    if (fd >= 0)
        close(fd);
    send_reply(client->socket, &reply, reply_fd, bytes, extra);
    if (request.op == ATTACH_HELLO)
        close(reply_fd);
    send(client->bell, "", 1, MSG_DONTWAIT | MSG_NOSIGNAL);
    return true;
}

static void leave(struct client *client)
{
    atomic_fetch_sub(&counts->ranges, client->count);
    atomic_fetch_sub(&counts->connections, 1);
    close(client->socket);
    if (client->uffd >= 0)
        close(client->uffd);
    if (client->bell >= 0)
        close(client->bell);
    memset(client, 0, sizeof(*client));
    client->socket = client->uffd = client->bell = -1;
}

static void welcome(int listener)
{
    for (unsigned i = 0; i < CLIENTS; i++) {
        if (clients[i].socket >= 0)
            continue;
        clients[i].socket = accept(listener, NULL, NULL);
        atomic_fetch_add(&counts->connections, 1);
        return;
    }
}

_Noreturn static void serve_all(int listener)
{
    for (unsigned i = 0; i < CLIENTS; i++)
        clients[i].socket = clients[i].uffd = clients[i].bell = -1;
    for (;;) {
        struct pollfd wait[1 + 2 * CLIENTS] = { { .fd = listener, .events = POLLIN } };
        for (unsigned i = 0; i < CLIENTS; i++) {
            wait[1 + 2 * i] = (struct pollfd){ .fd = clients[i].socket, .events = POLLIN };
            wait[2 + 2 * i] = (struct pollfd){ .fd = clients[i].uffd, .events = POLLIN };
        }
        poll(wait, 1 + 2 * CLIENTS, -1);
        for (unsigned i = 0; i < CLIENTS; i++) {
            if (wait[2 + 2 * i].revents & POLLIN)
                read_faults(&clients[i]);
            if (wait[1 + 2 * i].revents && !read_request(&clients[i]))
                leave(&clients[i]);
        }
        if (wait[0].revents)
            welcome(listener);
    }
}

pid_t fake_daemon_start(dev_t dev, struct fake_counts *shared)
{
    struct sockaddr_un address;
    char directory[64];

    snprintf(directory, sizeof(directory), "/tmp/foliofs-%u", (unsigned)geteuid());
    if (mkdir(directory, 0700) && errno != EEXIST)
        return -1;
    socket_path(dev, &address);
    unlink(address.sun_path);
    int listener = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
    if (listener < 0)
        return -1;
    if (bind(listener, (const struct sockaddr *)&address, sizeof(address)) ||
        listen(listener, CLIENTS)) {
        close(listener);
        return -1;
    }
    counts = shared;
    pid_t daemon = fork();
    if (daemon == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        serve_all(listener);
    }
    close(listener);
    return daemon;
}

void fake_daemon_kill(pid_t daemon, dev_t dev)
{
    struct sockaddr_un address;
    char directory[64];

    kill(daemon, SIGKILL);
    waitpid(daemon, NULL, 0);
    socket_path(dev, &address);
    unlink(address.sun_path);
    snprintf(directory, sizeof(directory), "/tmp/foliofs-%u", (unsigned)geteuid());
    rmdir(directory); /* others may use it */
}
