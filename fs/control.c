#include "fs/control.h"

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "cache/clock.h"
#include "fs/control_json.h"
#include "fs/control_path.h"
#include "store/error.h"

#define CONTROL_WORKERS   2u /* so that stats answers while a sync runs */
#define CONTROL_BACKLOG   16
#define CONTROL_POLL_MS   10000 /* how long a step waits for a client */
#define CONTROL_CLIENT_MS 5000  /* a client has so long to send its line, and to take the reply */

struct control { /* constant while it runs */
    struct control_commands commands;
    int listener;
    int stop; /* eventfd: readable when the workers shall end */
    char path[CONTROL_PATH_BYTES];
    struct socket_file file;
    struct worker *workers[CONTROL_WORKERS];
};

/* ---- one client ------------------------------------------------------------------------------ */

/* Wait until fd is ready for events. False when the time is over or control_stop() was called. */
static bool wait_ready(const struct control *control, int fd, short events, uint64_t deadline_ns)
{
    uint64_t now = clock_now(&clock_monotonic);
    if (now >= deadline_ns)
        return false;
    struct pollfd fds[2] = { { .fd = fd, .events = events },
                             { .fd = control->stop, .events = POLLIN } };
    int ready = poll(fds, 2, (int)((deadline_ns - now) / 1000000) + 1);
    return ready > 0 && fds[1].revents == 0;
}

static uint64_t deadline(int ms)
{
    return clock_now(&clock_monotonic) + (uint64_t)ms * 1000000;
}

/* Returns the length of the line without its end; -1: none came in time. */
static ssize_t receive_line(const struct control *control, int fd, char line[CONTROL_REQUEST_BYTES])
{
    uint64_t until = deadline(CONTROL_CLIENT_MS);
    size_t len = 0;
    while (len < CONTROL_REQUEST_BYTES && wait_ready(control, fd, POLLIN, until)) {
        ssize_t got = recv(fd, line + len, CONTROL_REQUEST_BYTES - len, MSG_DONTWAIT);
        if (got == 0 || (got < 0 && errno != EAGAIN && errno != EINTR))
            return -1;
        if (got < 0)
            continue;
        char *end = memchr(line + len, '\n', (size_t)got);
        if (end != NULL)
            return end - line;
        len += (size_t)got;
    }
    return -1;
}

static void send_all(const struct control *control, int fd, const char *text, size_t len)
{
    uint64_t until = deadline(CONTROL_CLIENT_MS);
    while (len > 0 && wait_ready(control, fd, POLLOUT, until)) {
        ssize_t sent = send(fd, text, len, MSG_DONTWAIT | MSG_NOSIGNAL);
        if (sent < 0 && errno != EAGAIN && errno != EINTR)
            return;
        if (sent > 0) {
            text += sent;
            len -= (size_t)sent;
        }
    }
}

/* The socket's mode keeps others out already; this holds where modes of sockets do not count. */
static bool permitted(int fd)
{
    struct ucred peer;
    socklen_t len = sizeof peer;
    return getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &len) == 0 &&
           (peer.uid == 0 || peer.uid == geteuid());
}

static void serve(struct control *control, int fd)
{
    char line[CONTROL_REQUEST_BYTES];
    ssize_t len = permitted(fd) ? receive_line(control, fd, line) : -1;
    if (len < 0)
        return;
    json_t *reply = control_answer(&control->commands, line, (size_t)len);
    char *text = reply != NULL ? json_dumps(reply, JSON_COMPACT) : NULL;
    json_decref(reply);
    if (text == NULL)
        return;
    send_all(control, fd, text, strlen(text));
    send_all(control, fd, "\n", 1);
    free(text);
}

/* Wait a bounded time for a client and serve it. */
static unsigned control_step(void *arg)
{
    struct control *control = arg;
    if (!wait_ready(control, control->listener, POLLIN, deadline(CONTROL_POLL_MS)))
        return 0;
    int fd = accept4(control->listener, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
    if (fd < 0) /* the other worker was faster, the client has gone, or no descriptor is left */
        return errno == EMFILE || errno == ENFILE ? 100 : 0;
    serve(control, fd);
    (void)close(fd);
    return 0;
}

/* ---- the socket ------------------------------------------------------------------------------ */

/* Make the directory, or accept it when it is ours alone: in /tmp anybody could have made it. */
static bool make_directory(const char *path)
{
    struct stat st;
    if (mkdir(path, 0700) != 0 && errno != EEXIST)
        return false;
    return lstat(path, &st) == 0 && S_ISDIR(st.st_mode) && st.st_uid == geteuid() &&
           (st.st_mode & 0077) == 0;
}

/* Bind in the first directory that will do. */
static int bind_socket(struct control *control, dev_t dev, struct store_error *error)
{
    for (unsigned n = 0; n < CONTROL_DIRECTORIES; n++) {
        control_directory(n, geteuid(), control->path);
        if (!make_directory(control->path))
            continue;
        control_socket(n, geteuid(), dev, control->path);
        int err =
            socket_bind(control->listener, control->path, 0600, CONTROL_BACKLOG, &control->file);
        return err == 0 ? 0
                        : store_fail(error, err, "%s: cannot make the control socket: %s",
                                     control->path, strerror(-err));
    }
    return store_fail(error, -EACCES,
                      "no place for the control socket: %s cannot be made, or is not ours alone "
                      "(mode 0700)",
                      control->path);
}

int control_start(struct fs *fs, const char *mountpoint_abs, struct control **out,
                  struct store_error *error)
{
    struct mount_entry *mount = malloc(sizeof *mount);
    struct control *control = calloc(1, sizeof *control);
    int err = -ENOMEM;
    if (mount == NULL || control == NULL) {
        (void)store_fail(error, err, "no memory for the control socket");
        goto out_free;
    }
    err = mount_find_path(mountpoint_abs, mount);
    if (err == -ENOMEM) {
        (void)store_fail(error, err, "no memory for the control socket");
        goto out_free;
    }
    if (err != 0) {
        (void)store_fail(error, err, "%s: not in /proc/self/mountinfo, so no control socket",
                         mountpoint_abs);
        goto out_free;
    }
    control->commands.fs = fs;
    pthread_mutex_init(&control->commands.set_lock, NULL);
    control->stop = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    control->listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (control->stop < 0 || control->listener < 0) {
        err = -errno;
        (void)store_fail(error, err, "cannot make the control socket: %s", strerror(-err));
        goto out_close;
    }
    err = bind_socket(control, mount->dev, error);
    if (err != 0)
        goto out_close;
    free(mount);
    for (unsigned i = 0; i < CONTROL_WORKERS; i++) {
        err = worker_start(&control->workers[i], "folio-control", control_step, control);
        if (err != 0) {
            control_stop(control);
            return store_fail(error, err, "cannot start the control thread: %s", strerror(-err));
        }
    }
    *out = control;
    return 0;

out_close:
    if (control->listener >= 0)
        (void)close(control->listener);
    if (control->stop >= 0)
        (void)close(control->stop);
out_free:
    free(control);
    free(mount);
    return err;
}

void control_stop(struct control *control)
{
    if (control == NULL)
        return;
    (void)eventfd_write(control->stop, 1);
    for (unsigned i = 0; i < CONTROL_WORKERS; i++)
        worker_stop(control->workers[i]);
    socket_unlink(control->path, &control->file);
    (void)close(control->listener);
    (void)close(control->stop);
    free(control);
}
