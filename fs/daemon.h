/* daemon.h: running in the background: fork, report, signals, the log.
 *
 *     daemon_start(&d, foreground)   the parent stays inside, until the child is ready or dead
 *         ...                        the child goes on; what it prints is seen by the caller
 *     daemon_ready(&d)               the parent exits with 0; from here on, the system log
 *
 * The fork comes before anything is opened: locks and LMDB's environment belong to one process.
 */
#ifndef FOLIO_FS_DAEMON_H
#define FOLIO_FS_DAEMON_H

#include <stdarg.h>
#include <stdbool.h>
#include <sys/types.h>

#include "cache/worker.h"

struct daemon_state {
    bool foreground;
    int ready_fd; /* the pipe to the waiting parent; -1: nobody waits */
    int signals;  /* signalfd */
    int stop;     /* eventfd: ends the wait for signals */
    struct worker *worker;
    void (*on_signal)(void *arg, int sig);
    void *arg;
};

/* Block the signals that end us, become IO_FLUSHER where that is allowed, and fork unless
 * foreground. Call before any thread exists.   Returns only in the process that shall work:
 * 0 or -errno. */
int daemon_start(struct daemon_state *d, bool foreground);

/* Let the parent exit with success and leave the terminal. Any thread. */
void daemon_ready(struct daemon_state *d);

/* From now on SIGTERM, SIGINT and SIGHUP call on_signal on a thread of its own. */
int daemon_watch(struct daemon_state *d, void (*on_signal)(void *arg, int sig), void *arg);
void daemon_unwatch(struct daemon_state *d);

/* The device number of what is mounted there on top of all else: what unmounting would be about. Where the kernel does
 * not say (before 5.8) it may be that of the filesystem around. Asks nobody but the kernel.
 * Returns 0; -EINVAL: nothing is mounted there; -errno of walking there. */
int daemon_find_mount(const char *mountpoint, dev_t *out);
/* Unmount what is there, in order, that is, with all that the kernel has cached handed to us.
 * Returns 0; -EBUSY: in use; -EINVAL: nothing mounted there.   Blocks: until the requests that this
 * makes are answered. */
int daemon_unmount(const char *mountpoint);

/* One line to the system log and to the standard error, while that is still somebody's. */
void daemon_say(const char *format, ...) __attribute__((format(printf, 1, 2)));
void daemon_vsay(const char *format, va_list ap) __attribute__((format(printf, 1, 0)));

#endif
