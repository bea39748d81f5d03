#include "fs/daemon.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>
#include <syslog.h>
#include <unistd.h>

#ifndef PR_SET_IO_FLUSHER
#define PR_SET_IO_FLUSHER 57
#endif

#ifndef STATX_ATTR_MOUNT_ROOT
#define STATX_ATTR_MOUNT_ROOT 0x2000
#endif

#define SAY_BYTES 1024

static void ending_signals(sigset_t *set)
{
    sigemptyset(set);
    sigaddset(set, SIGTERM);
    sigaddset(set, SIGINT);
    sigaddset(set, SIGHUP);
}

/* ---- the two processes ----------------------------------------------------------------------- */

/* The child's word is one byte; without it the pipe just ends. */
static void wait_for_child(pid_t child, int fd)
{
    char word;
    ssize_t n;
    int status = 0;
    do
        n = read(fd, &word, 1);
    while (n < 0 && errno == EINTR);
    if (n == 1)
        _exit(0);
    while (waitpid(child, &status, 0) < 0 && errno == EINTR)
        ;
    if (WIFSIGNALED(status))
        fprintf(stderr, "foliofs: ended by signal %d (%s) before it was ready\n", WTERMSIG(status),
                strsignal(WTERMSIG(status)));
    _exit(WIFEXITED(status) && WEXITSTATUS(status) != 0 ? WEXITSTATUS(status) : 1);
}

static int fork_child(struct daemon_state *d)
{
    int fds[2];
    fflush(NULL);
    close_range(3, ~0u, 0); /* a pipe that somebody waits on must not stay open with us */
    if (pipe2(fds, O_CLOEXEC) != 0)
        return -errno;
    pid_t pid = fork();
    if (pid < 0) {
        int err = -errno;
        close(fds[0]);
        close(fds[1]);
        return err;
    }
    if (pid > 0) {
        close(fds[1]);
        wait_for_child(pid, fds[0]);
    }
    close(fds[0]);
    d->ready_fd = fds[1];
    setsid();
    return chdir("/") == 0 ? 0 : -errno;
}

/* Each attached file takes two descriptors, each client three, each ring one. */
static void raise_descriptor_limit(void)
{
    struct rlimit limit, most = { 0 };
    unsigned long nr_open = 0;
    FILE *f = fopen("/proc/sys/fs/nr_open", "re");
    if (f != NULL && fscanf(f, "%lu", &nr_open) == 1)
        most.rlim_cur = most.rlim_max = nr_open;
    if (f != NULL)
        (void)fclose(f);
    if (getrlimit(RLIMIT_NOFILE, &limit) != 0)
        return;
    if (most.rlim_max > limit.rlim_max && setrlimit(RLIMIT_NOFILE, &most) == 0)
        return; /* root may */
    limit.rlim_cur = limit.rlim_max;
    (void)setrlimit(RLIMIT_NOFILE, &limit);
}

int daemon_start(struct daemon_state *d, bool foreground)
{
    sigset_t set;
    *d = (struct daemon_state){
        .foreground = foreground, .ready_fd = -1, .signals = -1, .stop = -1
    };
    int err = foreground ? 0 : fork_child(d);
    if (err != 0)
        return err;
    raise_descriptor_limit();
    ending_signals(&set);
    sigprocmask(SIG_BLOCK, &set, NULL);
    signal(SIGPIPE, SIG_IGN);
    openlog("foliofs", LOG_PERROR, LOG_DAEMON);
    /* Memory that we allocate while writing back must not wait for our own writing back. Refused
     * without CAP_SYS_RESOURCE, and only helpful: no error. */
    prctl(PR_SET_IO_FLUSHER, 1, 0, 0, 0);
    return 0;
}

void daemon_ready(struct daemon_state *d)
{
    if (d->ready_fd < 0)
        return;
    int null = open("/dev/null", O_RDWR | O_CLOEXEC);
    for (int fd = 0; null >= 0 && fd <= 2; fd++)
        dup2(null, fd);
    if (null > 2)
        close(null);
    ssize_t n = write(d->ready_fd, "r", 1);
    (void)n; /* a parent that is gone waits for nothing */
    close(d->ready_fd);
    d->ready_fd = -1;
}

/* ---- signals --------------------------------------------------------------------------------- */

static unsigned signal_step(void *arg)
{
    struct daemon_state *d = arg;
    struct pollfd fds[2] = { { .fd = d->signals, .events = POLLIN },
                             { .fd = d->stop, .events = POLLIN } };
    struct signalfd_siginfo info;
    if (poll(fds, 2, -1) < 0 || fds[1].revents != 0)
        return 0; /* stopping: there is no next step */
    if (read(d->signals, &info, sizeof info) == (ssize_t)sizeof info)
        d->on_signal(d->arg, (int)info.ssi_signo);
    return 0;
}

int daemon_watch(struct daemon_state *d, void (*on_signal)(void *arg, int sig), void *arg)
{
    sigset_t set;
    ending_signals(&set);
    d->on_signal = on_signal;
    d->arg = arg;
    d->signals = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
    d->stop = eventfd(0, EFD_CLOEXEC);
    if (d->signals < 0 || d->stop < 0)
        return -errno;
    return worker_start(&d->worker, "folio-signal", signal_step, d);
}

void daemon_unwatch(struct daemon_state *d)
{
    uint64_t one = 1;
    if (d->worker != NULL && write(d->stop, &one, sizeof one) == (ssize_t)sizeof one)
        worker_stop(d->worker);
    d->worker = NULL;
    if (d->signals >= 0)
        close(d->signals);
    if (d->stop >= 0)
        close(d->stop);
    d->signals = d->stop = -1;
}

/* ---- unmounting ------------------------------------------------------------------------------ */

/* The way for users who are not root. */
static int run_fusermount(const char *mountpoint)
{
    char program[] = "fusermount3", unmount[] = "-u", quiet[] = "-q", end[] = "--";
    char *path = strdup(mountpoint);
    char *argv[] = { program, unmount, quiet, end, path, NULL };
    pid_t pid;
    int status;
    if (path == NULL || posix_spawnp(&pid, program, NULL, NULL, argv, environ) != 0) {
        free(path);
        return -EPERM;
    }
    while (waitpid(pid, &status, 0) < 0 && errno == EINTR)
        ;
    free(path);
    return WIFEXITED(status) && WEXITSTATUS(status) == 0 ? 0 : -EBUSY;
}

int daemon_find_mount(const char *mountpoint, dev_t *out)
{
    const int flags = AT_STATX_DONT_SYNC | AT_NO_AUTOMOUNT | AT_SYMLINK_NOFOLLOW;
    struct statx st;
    if (statx(AT_FDCWD, mountpoint, flags, 0, &st) != 0)
        return -errno;
    if (st.stx_attributes_mask & ~st.stx_attributes & STATX_ATTR_MOUNT_ROOT)
        return -EINVAL;
    *out = makedev(st.stx_dev_major, st.stx_dev_minor);
    return 0;
}

int daemon_unmount(const char *mountpoint)
{
    if (umount2(mountpoint, UMOUNT_NOFOLLOW) == 0)
        return 0;
    return errno == EPERM ? run_fusermount(mountpoint) : -errno;
}

/* ---- the log --------------------------------------------------------------------------------- */

void daemon_vsay(const char *format, va_list ap)
{
    char line[SAY_BYTES];
    vsnprintf(line, sizeof line, format, ap);
    line[strcspn(line, "\n")] = '\0';
    syslog(LOG_NOTICE, "%s", line);
}

void daemon_say(const char *format, ...)
{
    va_list ap;
    va_start(ap, format);
    daemon_vsay(format, ap);
    va_end(ap);
}
