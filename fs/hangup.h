/* hangup.h: hanging up after a daemon that was killed.
 *
 * FUSE ends a connection when the last descriptor of it is closed. But a thread of ours may be inside the kernel that
 * moment, waiting in a way that no signal ends: for a WRITE that its own notification has made the kernel send, or for
 * a client's address space while that client waits for this mount. Nobody is left to answer, the thread
 * keeps the descriptor open, and whoever uses the mount hangs for good.
 *
 * So a small process waits for the daemon's end, and then has the kernel abort that connection, which also
 * lets the thread go:
 *
 *     hangup_start()    fork             READY --- dev ---> ARMED --- the main thread is gone ---> abort, exit
 *     hangup_for(dev)   mounted                               |  (or is about to: a crash)
 *     hangup_now()      nobody answers any more               +---- a word --------------------> abort, exit
 *     hangup_stop()     nothing was mounted                   +---- the socket is closed --------> exit
 *
 * The file it writes to stays open from the beginning: the number of the connection may be another mount's by then.
 */
#ifndef FOLIO_FS_HANGUP_H
#define FOLIO_FS_HANGUP_H

#include <stdbool.h>
#include <sys/types.h>

struct hangup {
    pid_t pid; /* 0: there is none */
    int sock;
};

/* By the main thread, before any other exists, and before others catch signals of crashes. Does nothing where no
 * process can be had. */
void hangup_start(struct hangup *h);
/* The device number of the mount is known.   Returns false: the kernel's fusectl filesystem is not mounted, and may
 * not be by us (or there is no process); then what is said above may happen. */
bool hangup_for(struct hangup *h, dev_t dev);
/* The connection is at its end: where a thread of ours is still inside the kernel as said above, it is let go. Nothing
 * happens the second time, or if it was not started. Waits. */
void hangup_now(struct hangup *h);
/* The same where there is no connection. */
void hangup_stop(struct hangup *h);

#endif
