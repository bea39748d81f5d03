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
#define HANGUP_MS   2000 /* somebody may stop it again and again */

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

enum word { ENDS, HANG_UP, MOUNTED };

static enum word hear(int sock, dev_t *dev)
{
    ssize_t n = recv(sock, dev, sizeof *dev, 0);
    return n == (ssize_t)sizeof *dev ? MOUNTED : n == 1 ? HANG_UP : ENDS;
}

/* signals: SIGUSR1, from the kernel when the thread that made us is gone; and from whoever else sends it. */
static bool is_gone(int signals, pid_t daemon)
{
    struct signalfd_siginfo info;
    return read(signals, &info, sizeof info) == (ssize_t)sizeof info &&
           (pid_t)info.ssi_pid == daemon;
}

static void wait_for_end(int sock, int signals, pid_t daemon)
{
    struct pollfd fds[2] = { { .fd = signals, .events = POLLIN },
                             { .fd = sock, .events = POLLIN } };
    enum word word = MOUNTED;
    int abort_fd = -1;
    dev_t dev;
    while (word == MOUNTED) {
        if (poll(fds, 2, -1) < 0)
            continue;
        if (fds[0].revents != 0 && is_gone(signals, daemon))
            word = HANG_UP;
        else if (fds[1].revents != 0 && (word = hear(sock, &dev)) == MOUNTED) {
            abort_fd = open_abort(dev);
            char there = abort_fd >= 0;
            (void)send(sock, &there, 1, MSG_NOSIGNAL);
        }
    }
    if (word == HANG_UP && abort_fd >= 0)
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
        wait_for_end(0, signals, daemon);
    _exit(0);
}

/* ---- the daemon ---------------------------------------------------------------------------------- */

static int crash_sock = -1;

/* The kernel waits for all threads before it ends a process that crashes, and so for the one that nobody answers any
 * more: it is said before. */
static void on_crash(int sig)
{
    (void)send(crash_sock, "", 1, MSG_NOSIGNAL | MSG_DONTWAIT);
    (void)raise(sig); /* as if we had not been here */
}

/* A sanitizer has its own. */
static void catch_crashes(void)
{
    static const int crashes[] = { SIGSEGV, SIGBUS,  SIGABRT, SIGFPE,
                                   SIGILL,  SIGQUIT, SIGTRAP, SIGSYS };
    struct sigaction catch = { .sa_handler = on_crash }, now;
    catch.sa_flags = SA_ONSTACK | (int)SA_RESETHAND;
    for (size_t i = 0; i < sizeof crashes / sizeof crashes[0]; i++)
        if (sigaction(crashes[i], NULL, &now) == 0 && now.sa_handler == SIG_DFL)
            (void)sigaction(crashes[i], &catch, NULL);
}

void hangup_start(struct hangup *h)
{
    int fds[2];
    pid_t daemon = getpid();
    *h = (struct hangup){ 0 };
    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, fds) != 0)
        return;
    fflush(NULL);
    pid_t pid = fork();
    if (pid == 0)
        be_the_other(fds[1], daemon);
    close(fds[1]);
    if (pid < 0) {
        close(fds[0]);
        return;
    }
    *h = (struct hangup){ .pid = pid, .sock = fds[0] };
    crash_sock = h->sock;
    catch_crashes();
}

bool hangup_for(struct hangup *h, dev_t dev)
{
    char there = 0;
    return h->pid != 0 && send(h->sock, &dev, sizeof dev, MSG_NOSIGNAL) == (ssize_t)sizeof dev &&
           recv(h->sock, &there, 1, 0) == 1 && there;
}

void hangup_now(struct hangup *h)
{
    struct pollfd ended = { .fd = h->sock, .events = POLLIN };
    if (h->pid != 0 && kill(h->pid, SIGCONT) == 0 && send(h->sock, "", 1, MSG_NOSIGNAL) == 1)
        (void)poll(&ended, 1, HANGUP_MS);
    hangup_stop(h);
}

void hangup_stop(struct hangup *h)
{
    if (h->pid == 0)
        return;
    crash_sock = -1;
    close(h->sock);
    kill(h->pid, SIGKILL); /* also one that somebody has stopped */
    while (waitpid(h->pid, NULL, 0) < 0 && errno == EINTR)
        ;
    h->pid = 0;
}
