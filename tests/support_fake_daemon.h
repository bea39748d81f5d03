/* support_fake_daemon.h: a process that speaks attach_proto.h and nothing else: no cache, no volume.
 *
 * The pages of a file are its bytes, copied into a memfd when a fault asks for them; they are never
 * written back, nor freed. Its bell rings with every answer. What it was asked is counted, in memory that the test
 * shares. */
#ifndef FOLIO_TESTS_SUPPORT_FAKE_DAEMON_H
#define FOLIO_TESTS_SUPPORT_FAKE_DAEMON_H

#include <stdatomic.h>
#include <sys/types.h>

struct fake_counts {
    _Atomic unsigned hello, open, map, unmap, advise, write, drop, missing, minor, mkwrite;
    _Atomic unsigned ranges;      /* tracked now */
    _Atomic unsigned connections; /* now */
    _Atomic int last_advice;
    _Atomic int deaf;    /* set by the test: leave faults unanswered */
    _Atomic int unheard; /* faults that were left */
    _Atomic int broken;  /* a request that the protocol does not allow */
};

/* Serve the mount dev at a user's address of attach_proto.h.   Returns the process, or -1 with errno. */
pid_t fake_daemon_start(dev_t dev, struct fake_counts *counts);
/* Kill it, and remove its socket. */
void fake_daemon_kill(pid_t daemon, dev_t dev);

#endif
