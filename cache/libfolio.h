/* libfolio.h: the parts of libfolio, its threads and its locks.
 *
 *     the program's threads    libfolio.c, libfolio_fork.c     check, look up, ask the keeper
 *     the keeper               libfolio_attach.c, _conn.c      maps, registers, talks to the daemon
 *     the watcher              libfolio_keeper.c               sees the daemon hang up, raises SIGBUS
 *     the listener             libfolio_robust.c               hears the daemon's bell, touches pages with locks
 *     all                      libfolio_table.c                what is attached where
 *
 * The keeper, the watcher and the listener have a table of descriptors of their own (close_range(2) with
 * CLOSE_RANGE_UNSHARE). Sockets, userfaultfds and copies of the program's descriptors live only there:
 * a program may close all descriptors it does not know, and that must not end the tracking; and a
 * close() in the program's table would drop every fcntl() lock it holds on the file.
 *
 * What keeps the file: the proof, a copy of the descriptor in the keeper's table. It holds the open file
 * description, so that the mount is busy; msync and MADV_REMOVE are fsync and fallocate of it. (A second
 * mapping through the mount would do the same by itself, but mmap(2) of a file with direct I/O has the
 * kernel write back what other mappings dirtied, with our address space locked; the daemon, asked for
 * that write, could be waiting for just that lock, to write-protect a page of ours.)
 *
 * Locks, in this order:
 *
 *     door     one request at a time; held from before an address is given up until the daemon knows.
 *              Never wanted by the watcher or the listener. No memory of the program's is touched while it is held.
 *         table    the ranges; held briefly, over no message and no page fault, so that the watcher
 *                  gets it whatever the other threads wait for.
 *
 * No function here calls malloc, nor mmap and the like by name: an allocator, or libfolio-preload, may
 * be the one who calls.
 */
#ifndef FOLIO_CACHE_LIBFOLIO_H
#define FOLIO_CACHE_LIBFOLIO_H

#include <sys/resource.h>
#include <errno.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <unistd.h>

#include "cache/attach_proto.h"

#ifndef MADV_DONTNEED_LOCKED /* Linux 5.18 */
#define MADV_DONTNEED_LOCKED 24
#endif

#define FOLIO_EXPORT __attribute__((visibility("default")))

#define CLIENT_PAGE  ((size_t)4096) /* the daemon's, too */
#define CLIENT_CONNS 64u            /* mounts in use at a time; a bit each in a mask */
#define CLIENT_SLOTS (1u << 17) /* ranges, and files: twice what vm.max_map_count usually allows */

/* A daemon.  (d) door, or the keeper on its behalf  (a) atomic */
struct client_conn {
    _Atomic dev_t dev;    /* of the mount; 0: this is none (a; d to change) */
    int socket, uffd;     /* in the keeper's table (d); the watcher puts an empty file for uffd */
    unsigned files;       /* that use it (d) */
    bool own_only;        /* of faults, those inside system calls fail (d) */
    _Atomic bool hung_up; /* it is of no more use (a) */
    _Atomic bool gone;    /* and the watcher is done with it (a) */
};

/* A copy of a descriptor, to show again at fork and mremap. One for all mappings of an open. */
struct client_proof {
    unsigned files; /* that use it; 0: free (d) */
    int fd;         /* in the keeper's table (d) */
    dev_t dev;
    uint64_t ino;
    int mode; /* O_ACCMODE, O_APPEND */
    bool has_pages;
};

/* What one folio_mmap made; its ranges share it.  (t) table */
struct client_file {
    unsigned references; /* ranges, and callers that look at it (t) */
    struct client_conn *conn;
    struct client_proof *proof;
    bool read_only;           /* the daemon gave a memfd that cannot be written */
    int prot, type;           /* as asked for; MAP_SHARED or MAP_PRIVATE */
    bool used;                /* the slot */
    struct client_file *next; /* of a list of those without references */
};

struct client_range { /* (t), changed only with door held as well */
    uintptr_t start, end;
    off_t offset; /* of start in the file */
    struct client_file *file;
    int prot;           /* as far as we know: see table_protect */
    bool not_inherited; /* MADV_DONTFORK */
};

/* ---- libfolio_table.c: what is attached where ------------------------------------------------- */

/* Reserve the memory. Idempotent; door held.   Returns 0 or -ENOMEM. */
int table_open(void);
/* In a child: no lock is held; nothing is attached either. */
void table_forget_lock(void);
void table_forget(void);
/* In a child: no file has a connection, nor references but those of ranges; those left without. */
void table_recount(struct client_file **unused);
/* No signal handler runs in between: it may fork, or look here. */
void table_lock(void);
void table_unlock(void);
/* Is any byte of it attached? Without the lock, unless it is being changed; a few ns. */
bool table_touches(const void *addr, size_t length);
/* The first range that meets [from, to), cut to it; takes a reference of its file.   Locks: table. */
bool table_next(uintptr_t from, uintptr_t to, struct client_range *out);
/* Is it attached, and its daemon there? Any thread. */
bool table_serves(uintptr_t addr);
/* Drop a reference.   Returns true: it was the last, and attach_release is due.   Locks: table. */
bool table_put(struct client_file *file);

/* The following need door and table. */

/* No room to cut a hole into a range. */
bool table_full(void);
/* Add a range; it takes over a reference.   Returns 0, -ENOMEM (table full). */
int table_insert(const struct client_range *range);
/* Take [start, end) out. Files without references are put on *unused.
 * Returns a mask of the connections concerned. */
uint64_t table_cut(uintptr_t start, uintptr_t end, struct client_file **unused);
/* Note that [start, end) has this protection, splitting ranges at its ends. */
void table_protect(uintptr_t start, uintptr_t end, int prot);
void table_inherit(uintptr_t start, uintptr_t end, bool inherit);
unsigned table_count(void);
struct client_range *table_range(unsigned i);

/* Slots, door held. NULL: none is free. */
struct client_file *table_new_file(void);
void table_free_file(struct client_file *file);
struct client_proof *table_new_proof(void);
/* The i-th slot, used or free; NULL after the last. */
struct client_proof *table_proof(unsigned i);

/* ---- libfolio_keeper.c: threads with descriptors of their own ----------------------------------- */

/* Lock and unlock door; cancellation is off between. */
void door_enter(void);
void door_leave(void);
/* In a child: unlocked, whoever held it; no threads run. */
void door_forget(void);
void keeper_forget(void);
/* Start the threads, unless they run. inherit: a descriptor they take along, or -1.
 * Returns 0 or -errno.   Locks: door. */
int keeper_start(int inherit);
bool keeper_runs(void);
/* Have the keeper call f, and wait.   Returns its result.   Locks: door. */
long keeper_run(long (*f)(void *arg), void *arg);

/* Have a thread of its own, with the keeper's descriptors, call f, and wait: for what takes its time.
 * Returns its result.   Locks: none held. */
long keeper_run_apart(long (*f)(void *arg), void *arg);

/* In the keeper: */

/* The descriptor of an empty file; of the thread's number in keeper_start. */
int keeper_empty(void);
int keeper_inherited(void);
/* Have the watcher watch.   Returns 0 or -errno. */
int keeper_watch(struct client_conn *conn);
/* Start another thread with the keeper's descriptors.   Returns 0 or -errno. */
int keeper_start_thread(void *(*f)(void *arg), void *arg);

/* ---- libfolio_robust.c: robust mutexes ----------------------------------------------------------- */

/* In the keeper. Have the listener, which is started if need be, listen to a bell.   Returns 0 or -errno. */
int robust_listen(int bell);
/* In a child: it does not run. */
void robust_forget(void);

/* ---- libfolio_conn.c: one daemon --------------------------------------------------------------- */

/* Is this process connected to this mount's daemon, or does its socket exist? Any thread. */
bool conn_offered(dev_t dev);
/* The connection to it that has not hung up, or NULL. Any thread; door, for what is attached by it. */
struct client_conn *conn_find(dev_t dev);
/* In the keeper. Find or make the connection.
 * Returns 0: there was one; 1: it is new; or -errno: -EOPNOTSUPP, -EPERM; for the moment -EMFILE, -ENOMEM and the like,
 * or -EAGAIN: the daemon hung up at once, or something is attached by a connection that will not do now. */
int conn_get(dev_t dev, struct client_conn **out);
/* One request. send_fd, receive_fd: -1 and NULL if there is none; bytes, count: what follows the reply.
 * Returns 0 or -errno: the daemon's, or -ECONNRESET once it has hung up. */
int conn_ask(struct client_conn *conn, const struct attach_request *request, int send_fd,
             struct attach_reply *reply, int *receive_fd, void *bytes, size_t count);
struct client_conn *conn_at(unsigned i);
unsigned conn_index(const struct client_conn *conn);
/* In a child: there are none. */
void conn_forget(void);
/* What userfaultfds can be had of, or -1. In the keeper; in a child it is the parent's number until it is set. */
int conn_device(void);
void conn_set_device(int fd);
/* From now on userfaultfd has to see the faults inside system calls, too, or nothing is attached: EPERM. */
FOLIO_EXPORT void folio_whole_tracking(void);
bool conn_set_whole(bool now); /* returns what it was */
/* Is FOLIO_VERBOSE=1? */
bool conn_verbose(void);
/* With FOLIO_VERBOSE=1, say what is wrong, on standard error; from the keeper: once conn_report is
 * called by a thread that has one. error: an errno or 0. */
void conn_say(const char *text, int error);
void conn_report(void);

/* ---- libfolio_attach.c: what the keeper does ---------------------------------------------------- */

/* A copy, in the keeper's table, of what one of the program's threads has.   Returns it or -errno. */
int attach_copy_descriptor(pid_t thread, int fd);

/* Raise the soft limit of descriptors to the hard one for a moment.   Returns false: nothing is to be restored. */
bool attach_limit_raise(struct rlimit *before);
void attach_limit_restore(const struct rlimit *before);
/* For the keeper: have a descriptor that is kept at a number that is not in the program's way.   Returns it. */
int attach_move_up(int fd);

struct attach_args {
    /* The program's descriptor: its thread, number and mount; or, thread 0, the one of a file. */
    pid_t thread;
    int fd;
    dev_t dev;
    struct client_file *same_as;
    /* as in mmap */
    void *addr;
    size_t length;
    int prot, flags;
    off_t offset;
};
/* For keeper_run: map and attach.   Returns the address, or -errno. */
long attach_map(void *args);

/* For keeper_run: is a proof's file on a mount that is noexec?   1, 0. */
long attach_noexec(void *proof);

struct attach_cut {
    uintptr_t start, end;
    uint64_t conns;             /* to be told: UNMAP */
    struct client_file *unused; /* to be released */
};
/* For keeper_run: munmap it, forget it, tell.   Returns 0 or -errno. */
long attach_unmap(void *cut);
/* For keeper_run: tell the daemons, release the files. Returns 0. */
long attach_tell_cut(void *cut);
/* For keeper_run: release a file without references. Returns 0. */
long attach_release(void *file);
/* For keeper_run: one range of a child, mapped again at the same address. Returns 0 or -errno. */
long attach_again(void *range);
/* In the watcher: the daemon has hung up. Every access to what it served is SIGBUS from now on. */
void attach_hang_up(struct client_conn *conn);

/* ---- libfolio_maps.c ----------------------------------------------------------------------------- */

/* For keeper_run: learn the protection of all ranges from /proc: mprotect(2) does not tell us.
 * Returns 0 or -errno. */
long maps_learn(void *unused);

/* ---- libfolio_fork.c ------------------------------------------------------------------------------ */

/* Install the handlers; once.   Locks: door.   Returns 0 or -errno. */
int fork_watch(void);
/* At the start of every function: a child that fork()'s handlers did not see (_Fork, clone) has
 * nothing attached; let the tables say so. */
void fork_check(void);

/* ---- libfolio.c, for libfolio-preload only --------------------------------------------------------- */

/* mmap(2) with MAP_FIXED, over ranges that may be attached. */
void *folio_mmap_over(void *addr, size_t length, int prot, int flags, int fd, off_t offset);

/* Has this process something of a descriptor's mount attached? errno stays. */
bool folio_mount_attached(int fd);

/* folio_attached, of memory that may have no content yet. Takes no lock, as a rule; async-signal-safe. */
bool folio_attached_at(uintptr_t addr, size_t length);

/* What folio_mprotect checks before mprotect(2) is asked.   Returns 0, or -1 with errno. */
int folio_may_protect(void *addr, size_t length, int prot);

/* ---- system calls, whoever else calls himself mmap --------------------------------------------------- */

static inline void *sys_mmap(void *addr, size_t length, int prot, int flags, int fd, off_t offset)
{
    return (void *)syscall(SYS_mmap, addr, length, prot, flags, fd, offset);
}
static inline int sys_munmap(void *addr, size_t length)
{
    return (int)syscall(SYS_munmap, addr, length);
}
static inline int sys_mprotect(void *addr, size_t length, int prot)
{
    return (int)syscall(SYS_mprotect, addr, length, prot);
}
static inline int sys_madvise(void *addr, size_t length, int advice)
{
    return (int)syscall(SYS_madvise, addr, length, advice);
}
static inline int sys_msync(void *addr, size_t length, int flags)
{
    return (int)syscall(SYS_msync, addr, length, flags);
}
static inline int sys_mincore(void *addr, size_t length, unsigned char *vec)
{
    return (int)syscall(SYS_mincore, addr, length, vec);
}
static inline void *sys_mremap(void *addr, size_t old_length, size_t new_length, int flags,
                               void *new_addr)
{
    return (void *)syscall(SYS_mremap, addr, old_length, new_length, flags, new_addr);
}

/* Wraps around to 0 for the last page's worth of lengths. */
static inline size_t page_up(size_t bytes)
{
    return (bytes + CLIENT_PAGE - 1) & ~(CLIENT_PAGE - 1);
}

#endif
