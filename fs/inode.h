/* inode.h: inodes in memory, and their attributes.
 *
 * An inode is found by number in the table and counted: the kernel's look-ups, open files, the
 * cache's list of dirty files and running operations each hold references. At zero it stays in a
 * list of unused inodes (its pages stay cached) until the table is over its limit; an inode without
 * names (nlink 0) is deleted at zero instead.
 *
 * Attributes in memory are the truth for everybody who asks; the record in the store follows:
 *
 *   names, mode, owner, nlink    the record changes in the same update as the operation
 *   size, mtime                  the record never promises data that is not there: disk_size and
 *                                disk_mtime are what records carry; they catch up with i_size and
 *                                mtime when a writeback pass has put the data into the running
 *                                transaction (fs/data.c). INODE_EXTENDING in a record says that
 *                                blocks beyond its size may exist, to be trimmed after a crash.
 *
 * An operation builds the record it wants, applies it with all the others in one update, and
 * changes memory only when that succeeded; so a failed operation has changed nothing.
 */
#ifndef FOLIO_FS_INODE_H
#define FOLIO_FS_INODE_H

#include <sys/stat.h>

#include "cache/list.h"
#include "fs/fs.h"

struct inode {            /* (c) constant  (i) i_lock  (n) fs->rename_lock  (w) i_rwsem exclusive
                               (h) table's lock  (a) atomic */
    struct fs *fs;        /* (c) */
    uint64_t ino;         /* (c) */
    struct rwsem i_rwsem; /* regular files: write, truncate, fallocate exclusive */
    pthread_mutex_t i_lock;
    struct address_space mapping;               /* i_size is the size in mapping.i_size */
    uint32_t mode, uid, gid;                    /* (i) */
    uint32_t nlink;                             /* (n+i) */
    uint64_t data_id;                           /* (w+i); 0: none yet */
    uint64_t disk_size;                         /* (i) */
    uint64_t rdev;                              /* (c) */
    uint64_t parent;                            /* (n) directories */
    uint64_t cookie;                            /* (n) directories: the next entry's */
    struct timespec atime, mtime, ctime, btime; /* (i) */
    struct timespec disk_mtime;                 /* (i) */
    _Atomic uint64_t alloc_end; /* fresh: no block at or beyond this index was ever written (a) */
    uint64_t cut_order;         /* (w) request_order() when it was last cut */
    uint32_t truncations;       /* (i) counts them, for the writeback pass that one overtakes */
    uint32_t pass_truncations;  /* (i) as the pass under way began; likewise */
    struct timespec pass_mtime; /* (i) */
    _Atomic uint64_t tid;       /* the last transaction that touched its record or blocks (a) */
    struct rwsem copies_sem;    /* see stale.h, also for these: */
    _Atomic uint64_t copies, copies_seen; /* given, and when the file was opened last   (a) */
    uint64_t copied, copied_end;          /* (i) there is none outside, bytes; 0, 0: none at all */
    struct stale_range *stale;            /* (i) */
    uint32_t flags;                       /* (i) INODE_* as the record has it */
    uint32_t open_writers;       /* (i) open files that can write: see inode_has_writers() */
    struct list_head open_files; /* (i) struct open_file */
    struct readahead readahead;  /* (i) what was chosen for this file; forgotten with the inode */
    bool fresh;                  /* (c) made by inode_new since the mount */
    bool shrinking;              /* (i) i_size has been cut, the record and the blocks not yet */
    _Atomic bool no_capability; /* it has no security.capability that a write would take away (a) */
    _Atomic bool attributes_shown; /* the kernel may hold attributes since the last forget (a) */
    /* Of a file that the kernel caches writes of: were they to last, as nobody had it open for writing; and, below,
     * st_blocks as it was shown last (fuse_attr.c). */
    _Atomic bool attributes_last; /* (a) */
    _Atomic bool shared;          /* inode_share_pages() has done all of it (a) */
    _Atomic bool
        mixed;         /* it was said that the kernel's mappings and attached ones both store (a) */
    _Atomic bool lost; /* it was said that writes of the kernel's have failed (a) */
    _Atomic uint64_t blocks_shown; /* (a) */
    uint64_t refs;                 /* (h) */
    struct inode *hash_next;       /* (h) */
    struct list_head unused;       /* (h) */
};

int inode_table_create(struct fs *fs, uint64_t max_unused);
void inode_table_destroy(struct fs *fs); /* every inode is unreferenced and written */
struct inode_table_stats {
    uint64_t inodes, unused, bytes;
};
void inode_table_stats(struct fs *fs, struct inode_table_stats *out);

/* The inode with that number, loaded if need be, with one more reference.
 * Two callers get the same one. An inode whose record has INODE_EXTENDING gets its tail trimmed
 * first (inode_trim_tail in data.h).   Errors: -ENOENT, -EIO, -ENOMEM. */
int inode_get(struct fs *fs, uint64_t ino, struct inode **out);
/* One already referenced inode, n more references. */
void inode_ref(struct inode *inode, uint64_t n);
/* Drop n references; the last one keeps, evicts or deletes the inode. Not with rename_lock held. */
void inode_put(struct inode *inode, uint64_t n);
/* Drop n of the kernel's references by number (FORGET); unknown numbers are ignored. */
void inode_forget(struct fs *fs, uint64_t ino, uint64_t n);
/* Free unused inodes (and their clean pages) until at most keep are left. */
void inode_shrink(struct fs *fs, uint64_t keep);

/* A new inode in memory that is in no record yet: number taken, owner and mode set as POSIX wants
 * them below dir (setgid directories hand down their group, and setgid to directories). One
 * reference.   Errors: -ENOSPC, -EIO, -EROFS, -ENOMEM. */
int inode_new(struct inode *dir, uint32_t mode, uint64_t rdev, const struct cred *cred,
              struct inode **out);

/* What the record should say now; the caller changes fields of it before encoding. Takes i_lock. */
void inode_record(struct inode *inode, struct inode_record *out);
/* Add the record to an update. */
void inode_put_record(struct update *u, uint64_t ino, const struct inode_record *r);

/* Attributes as stat(2) wants them; st_blocks counts promised blocks too.
 * Returns 0; -EIO, -ENOMEM: it is not known how many blocks there are, all else is filled in. */
int inode_getattr(struct inode *inode, struct stat *st);

enum setattr_valid {
    SETATTR_MODE = 1,
    SETATTR_UID = 2,
    SETATTR_GID = 4,
    SETATTR_SIZE = 8,
    SETATTR_ATIME = 16,
    SETATTR_MTIME = 32,
    SETATTR_CTIME = 64,
    SETATTR_ATIME_NOW = 128,
    SETATTR_MTIME_NOW = 256,
    SETATTR_KILL_PRIV = 512, /* clear suid, and sgid if group-executable, as a write does */
    /* With that, UID or GID: sgid in any case, as for who is not in the file's group. */
    SETATTR_KILL_SGID = 1024,
};
/* Size changes go through inode_truncate (data.h); all that is asked changes in one update where
 * no size is involved. Clears suid/sgid on chown as Linux does.
 * Errors: -EPERM, -EINVAL, -EFBIG, -ENOSPC, -EIO, -EROFS. */
int inode_setattr(struct inode *inode, const struct stat *attr, unsigned valid);

/* relatime, unless the options say otherwise: set atime if it is not after mtime or ctime, or older than a day. Best
 * effort. */
void inode_touch_atime(struct inode *inode);

/* Delete every orphan, as far as that can be: at the mount what a crash left, at the unmount the others.
 * Returns 0 or the first error. */
int inode_delete_orphans(struct fs *fs);

struct timespec fs_now(void); /* CLOCK_REALTIME */

#endif
