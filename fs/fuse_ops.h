/* fuse_ops.h: what the fuse_*.c files share: the session's state and how requests are answered.
 *
 * Rules for every operation: exactly one reply; no logic beyond translation; a reply that names an
 * inode (lookup, mknod, mkdir, symlink, link, create, readdirplus) hands one reference to the
 * kernel, which FORGET gives back, and takes it back itself when the reply was not delivered.
 *
 * A node id is the inode number (the root's is 1 in both worlds) and the generation is the
 * volume's: numbers are never given twice in it. So the kernel's file handles, made of both, hold for ever.
 * One process owns the volume and every change comes through this mount, so the kernel may keep names
 * (absent ones too) and attributes as long as it likes; it drops them itself when one of its own
 * requests changes them.
 */
#ifndef FOLIO_FS_FUSE_OPS_H
#define FOLIO_FS_FUSE_OPS_H

#include <fuse_lowlevel.h>
#include <pthread.h>

#include "fs/dir.h"
#include "fs/fuse_front.h"
#include "fs/fuse_wire.h"
#include "fs/workqueue.h"

#define CACHE_SECONDS   86400.0 /* how long the kernel may keep a name or attributes */
#define WRITERS_SECONDS 1.0     /* and the attributes of a file that it caches writes of */

struct open_file;

struct front {                    /* (c) constant while the loop runs  (a) atomic */
    struct wire wire;             /* first: the hooks get the session's userdata             */
    struct front_options options; /* (c) */
    struct fs *fs;                /* (c) */
    struct fuse_session *se;      /* (c) */
    struct workqueue notifier;    /* of notify_job */
    struct workqueue
        throttle; /* of writers that wait: one after the other they have the speed of the disk */
    struct workqueue
        turns; /* of requests that take long, a step each in turn: a short one waits for no long one */
    struct workqueue lender;     /* of copies for the kernel */
    char *mountpoint;            /* (c) */
    _Atomic dev_t dev;           /* the mount's; 0: not, or not any more, mounted by us     (a) */
    _Atomic bool kernel_cache;   /* write(2) may wait in the kernel: options', if it agreed (a) */
    unsigned held_most;          /* see go_around()                                         (c) */
    _Atomic unsigned held;       /* reads and writes that wait for copies to go             (a) */
    _Atomic uint64_t held_bytes; /* of theirs                                               (a) */
    bool hooked;                 /* the wire's hooks are in place                           (c) */
    pthread_t loop;              /* the thread in front_loop()                              (c) */
    void (*ready)(void *arg);    /* (c) */
    void *ready_arg;
    _Atomic bool left;       /* front_loop() has returned                               (a) */
    _Atomic bool leaving;    /* it is about to: nobody may begin to wait for requests   (a) */
    _Atomic bool closing;    /* the kernel gets no more pages to keep                   (a) */
    bool lost;               /* see front_has_lost(); the thread's that called front_quit() */
    pthread_rwlock_t asking; /* held by who has the kernel hand over, or give up, what it caches */
    pthread_mutex_t room_lock;     /* of who finds out whether there is room */
    _Atomic bool room_short;       /* what room_is_short() said last                    (a) */
    _Atomic uint64_t room_written; /* bytes, for room_note_write()                      (a) */
    _Atomic uint64_t room_freed_ns, room_vain_ns; /* clock_monotonic: see make_room()   (a) */
};

static inline struct front *front_of(fuse_req_t req)
{
    return fuse_req_userdata(req);
}

/* ---- answering (fuse_attr.c) ----------------------------------------------------------------- */

/* err: 0 or -errno. */
void reply_status(fuse_req_t req, int err);
/* Takes over one reference: it becomes the kernel's, or is dropped. */
void reply_entry(fuse_req_t req, struct inode *inode);
/* The same without the reply.   Returns 0 or -EIO, -ENOMEM. */
int fill_entry(struct inode *inode, struct fuse_entry_param *e);
/* Likewise, after a change: that has been done, and must not look as if it had failed because the blocks cannot be
 * counted. The kernel asks again then. */
void reply_new_entry(fuse_req_t req, struct inode *inode);
void fill_new_entry(struct inode *inode, struct fuse_entry_param *e);
/* It is open for writing: what the kernel was told to keep of its attributes meanwhile is not to last. And it has been
 * synced: the kernel does not ask for the blocks of what it wrote, and if they are others now it shall. */
void attributes_end(struct front *front, struct inode *inode);
void attributes_synced(struct front *front, struct inode *inode);

static inline struct cred request_cred(fuse_req_t req)
{
    const struct fuse_ctx *ctx = fuse_req_ctx(req);
    return (struct cred){ .uid = ctx->uid, .gid = ctx->gid };
}

/* ---- room (fuse_room.c) ------------------------------------------------------------------------ */

/* Bytes that are kept for what the kernel has taken: not available to others. */
uint64_t room_kept(const struct front *front, const struct store_space *space);
/* Is less than that left? Then what it knows of files is forgotten. Any operation's thread. */
bool room_is_short(struct front *front);
/* The kernel has written back so many bytes: look whether it is, now and then. */
void room_note_write(struct front *front, size_t size);
/* Something may have been deleted. */
void room_note_free(struct front *front);
/* Is who asks for the attributes of this descriptor about to write without room? */
bool room_refuses(struct front *front, const struct open_file *file);

/* ---- suid and sgid (fuse_attr.c) ------------------------------------------------------------- */

/* Clear suid and sgid as Linux does when somebody without CAP_FSETID writes: sgid without the group's
 * x bit only if the caller is not in the group.   Returns 0 or -errno. */
int drop_privilege(fuse_req_t req, struct inode *inode);
/* Shall this WRITE, or this OPEN with O_TRUNC, clear them? */
bool write_kills_privilege(fuse_req_t req, const struct fuse_file_info *fi);
/* Shall fallocate, where FUSE has no flag to say so? */
bool caller_is_unprivileged(fuse_req_t req);
/* A write takes away file capabilities, whoever makes it. Where writes may wait in the kernel it sees to that, but not
 * before writes that bypass its cache.   Returns 0 or -errno. */
int drop_capability(fuse_req_t req, struct inode *inode);
/* The mode changed in a reply that does not carry it. Attributes only: this takes no page and no
 * lock in the kernel that the request itself could hold, so an operation may call it. */
void forget_attributes(fuse_req_t req, struct inode *inode);

/* ---- the notifier (fuse_notify.c) ------------------------------------------------------------ */

/* A request that needs the kernel's cached writes of one file first. Asking for them from the
 * operation's own thread could wait for WRITE requests that nobody is left to answer; so the
 * request is handed to a thread that answers no others. Not more jobs than unanswered requests. */
struct notify_job {
    struct work work; /* first */
    fuse_req_t req;
    uint64_t flush;                   /* the inode whose data the kernel gives up before, or 0: */
    uint64_t offset, len;             /* these bytes; 0, 0: all */
    bool kept;                        /* it did not: we are about to leave; nothing is answered */
    void (*run)(struct notify_job *); /* does what was asked, replies, frees the job */
};

void notifier_add(struct front *front, struct notify_job *job);
/* Before an operation begins what may end in notifier_add().   Returns false: it must not, for want of threads. */
bool front_may_wait(struct front *front);
/* Before the loop is left, while it still serves: what has the kernel hand over is finished, and nothing more begins. */
void front_stop_asking(struct front *front);

/* ---- writers that wait (fuse_throttle.c) ------------------------------------------------------ */

/* The reply to a WRITE: at once, or when too much is no longer dirty. */
void reply_written(fuse_req_t req, size_t written);

/* ---- copies for the kernel (fuse_lend.c) ------------------------------------------------------ */

/* The kernel is about to get copies of pages that somebody may have attached (referenced by the caller). Waits for
 * clients, but a bounded time.
 * Returns 0, -EIO (then it must get none), -ENOMEM. */
int lend_pages(struct front *front, struct inode *inode, struct page **pages, size_t nr);

/* ---- operations ------------------------------------------------------------------------------ */

void op_lookup(fuse_req_t req, fuse_ino_t parent, const char *name);
void op_forget(fuse_req_t req, fuse_ino_t ino, uint64_t nlookup);
void op_forget_multi(fuse_req_t req, size_t count, struct fuse_forget_data *forgets);
void op_mknod(fuse_req_t req, fuse_ino_t parent, const char *name, mode_t mode, dev_t rdev);
void op_mkdir(fuse_req_t req, fuse_ino_t parent, const char *name, mode_t mode);
void op_symlink(fuse_req_t req, const char *target, fuse_ino_t parent, const char *name);
void op_link(fuse_req_t req, fuse_ino_t ino, fuse_ino_t newparent, const char *newname);
void op_unlink(fuse_req_t req, fuse_ino_t parent, const char *name);
void op_rmdir(fuse_req_t req, fuse_ino_t parent, const char *name);
void op_rename(fuse_req_t req, fuse_ino_t parent, const char *name, fuse_ino_t newparent,
               const char *newname, unsigned flags);
void op_readlink(fuse_req_t req, fuse_ino_t ino);

void op_opendir(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi);
void op_readdir(fuse_req_t req, fuse_ino_t ino, size_t size, off_t off, struct fuse_file_info *fi);
void op_readdirplus(fuse_req_t req, fuse_ino_t ino, size_t size, off_t off,
                    struct fuse_file_info *fi);
void op_releasedir(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi);
void op_fsyncdir(fuse_req_t req, fuse_ino_t ino, int datasync, struct fuse_file_info *fi);

void op_create(fuse_req_t req, fuse_ino_t parent, const char *name, mode_t mode,
               struct fuse_file_info *fi);
void op_open(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi);
void op_read(fuse_req_t req, fuse_ino_t ino, size_t size, off_t off, struct fuse_file_info *fi);
void op_write(fuse_req_t req, fuse_ino_t ino, const char *buf, size_t size, off_t off,
              struct fuse_file_info *fi);
void op_flush(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi);
void op_release(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi);
void op_fsync(fuse_req_t req, fuse_ino_t ino, int datasync, struct fuse_file_info *fi);
void op_fallocate(fuse_req_t req, fuse_ino_t ino, int mode, off_t offset, off_t length,
                  struct fuse_file_info *fi);
void op_lseek(fuse_req_t req, fuse_ino_t ino, off_t off, int whence, struct fuse_file_info *fi);

void op_getattr(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi);
void op_setattr(fuse_req_t req, fuse_ino_t ino, struct stat *attr, int to_set,
                struct fuse_file_info *fi);
void op_statfs(fuse_req_t req, fuse_ino_t ino);

void op_setxattr(fuse_req_t req, fuse_ino_t ino, const char *name, const char *value, size_t size,
                 int flags);
void op_getxattr(fuse_req_t req, fuse_ino_t ino, const char *name, size_t size);
void op_listxattr(fuse_req_t req, fuse_ino_t ino, size_t size);
void op_removexattr(fuse_req_t req, fuse_ino_t ino, const char *name);

#endif
