#include "fs/hangup.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>
#include <unistd.h>

#define CONNECTIONS "/sys/fs/fuse/connections"

/* ---- the other process ------------------------------------------------------------------------- */

/* Where it is mounted; else a mount of our own, which nobody sees.   Returns a descriptor, or -1. */
static int open_abort(dev_t dev)
{
    char name[40];
    (void)snprintf(name, sizeof name, "%u/abort", minor(dev));
    int connections = open(CONNECTIONS, O_PATH | O_DIRECTORY | O_CLOEXEC);
    int fd = connections >= 0 ? openat(connections, name, O_WRONLY | O_CLOEXEC) : -1;
    if (connections >= 0)
        close(connections);
    if (fd >= 0)
        return fd;
    int fs = fsopen("fusectl", FSOPEN_CLOEXEC);
    if (fs < 0)
        return -1;
    if (fsconfig(fs, FSCONFIG_CMD_CREATE, NULL, NULL, 0) == 0) {
        int mount = fsmount(fs, FSMOUNT_CLOEXEC, 0);
        fd = mount >= 0 ? openat(mount, name, O_WRONLY | O_CLOEXEC) : -1;
        if (mount >= 0)
            close(mount);
    }
    close(fs);
    return fd;
}

/* Returns false: the socket is closed. */
static bool take_device(int sock, int *abort_fd)
{
    dev_t dev;
    if (recv(sock, &dev, sizeof dev, 0) != (ssize_t)sizeof dev)
        return false;
    *abort_fd = open_abort(dev);
    char there = *abort_fd >= 0;
    return send(sock, &there, 1, MSG_NOSIGNAL) == 1;
}

/* signals: SIGUSR1, when the thread that made us is gone. */
static void wait_for_end(int sock, int signals)
{
    struct pollfd fds[2] = { { .fd = signals, .events = POLLIN },
                             { .fd = sock, .events = POLLIN } };
    int abort_fd = -1;
    for (;;) {
        if (poll(fds, 2, -1) < 0)
            continue;
        if (fds[0].revents != 0)
            break;
        if (fds[1].revents != 0 && !take_device(sock, &abort_fd))
            return;
    }
    if (abort_fd >= 0)
        (void)!write(abort_fd, "1", 1);
}

/* It keeps nothing open that somebody may wait for the end of, and ends by itself. */
static _Noreturn void be_the_other(int sock, pid_t daemon)
{
    sigset_t all, death;
    sigfillset(&all);
    sigprocmask(SIG_SETMASK, &all, NULL);
    sigemptyset(&death);
    sigaddset(&death, SIGUSR1);
    (void)prctl(PR_SET_NAME, "folio-hangup", 0, 0, 0);
    (void)prctl(PR_SET_PDEATHSIG, SIGUSR1, 0, 0, 0);
    if (sock != 0)
        (void)dup2(sock, 0);
    close_range(1, ~0U, 0);
    int signals = signalfd(-1, &death, SFD_CLOEXEC);
    if (signals >= 0 && getppid() == daemon)
        wait_for_end(0, signals);
    _exit(0);
}

/* ---- the daemon ---------------------------------------------------------------------------------- */

int hangup_start(struct hangup *h)
{
    int fds[2];
    pid_t daemon = getpid();
    *h = (struct hangup){ 0 };
    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, fds) != 0)
        return -errno;
    fflush(NULL);
    pid_t pid = fork();
    if (pid == 0)
        be_the_other(fds[1], daemon);
    int err = -errno;
    close(fds[1]);
    if (pid < 0) {
        close(fds[0]);
        return err;
    }
    *h = (struct hangup){ .pid = pid, .sock = fds[0] };
    return 0;
}

bool hangup_for(struct hangup *h, dev_t dev)
{
    char there = 0;
    return h->pid != 0 && send(h->sock, &dev, sizeof dev, MSG_NOSIGNAL) == (ssize_t)sizeof dev &&
           recv(h->sock, &there, 1, 0) == 1 && there;
}

void hangup_stop(struct hangup *h)
{
    if (h->pid == 0)
        return;
    close(h->sock);
    while (waitpid(h->pid, NULL, 0) < 0 && errno == EINTR)
        ;
    h->pid = 0;
}
