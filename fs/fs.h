/* fs.h: one mounted volume: a POSIX tree by inode number, with no FUSE type in it.
 *
 * fs_mount() puts store, cache and the inode table together; the fuse_*.c files and tests call the
 * functions of inode.h, dir.h, xattr.h and data.h; fs_unmount() writes everything back.
 */
#ifndef FOLIO_FS_FS_H
#define FOLIO_FS_FS_H

#include "cache/filemap.h"
#include "cache/worker.h"
#include "store/store.h"

struct inode;
struct inode_table;

#define READ_AHEAD_KB_MIN 4u
#define READ_AHEAD_KB_MAX (1u << 20)

/* How to read ahead. */
struct readahead {
    const struct ra_policy *policy; /* NULL: not chosen here; for a volume: ra_linux */
    uint32_t pages;                 /* the largest window; 0: not chosen; RA_DEFAULT_PAGES */
};

#define MEMORY_WAIT_MS 10 /* until what found no memory, and must be done, is tried again */
#define MEMORY_MOST_NS 10000000000u /* and for how long, where it cannot be for ever */

struct fs_options {
    bool read_only;
    /* Who is in front gives files that are written their times, by the kernel's coarse clock. */
    bool front_stamps;
    bool noatime;        /* reading changes no atime */
    bool strictatime;    /* always; by default, as relatime */
    bool nodiratime;     /* no directory's */
    unsigned commit_ms;  /* age at which the running transaction is committed; 0: 5,000 */
    uint64_t txn_bytes;  /* 0: the store's default */
    uint64_t max_inodes; /* inodes kept in memory that nobody uses; 0: 16,384 */
    struct cache_options cache;
    struct readahead readahead; /* for files without a choice of their own */
    bool threads;               /* background work on worker threads */
    bool inject;                /* have a store that can be told to fail: store_faults() */
    /* Have the kernel write back and forget what it caches of an inode; NULL when nothing is in
     * front of us. Called with no lock held, never from a thread that serves requests. */
    int (*flush_front)(void *arg, uint64_t ino);
    /* Have who is in front drop what it cached of a file's data. No lock held, no operation waiting. */
    int (*forget_front)(void *arg, uint64_t ino);
    /* The same for [offset, offset + len), and for attributes, which never waits. */
    void (*forget_range)(void *arg, uint64_t ino, uint64_t offset, uint64_t len);
    /* Threads of the front may be held by clients: have at least nr of each kind. */
    void (*more_threads)(void *arg, unsigned nr);
    void (*forget_attributes)(void *arg, uint64_t ino);
    /* A commit has failed, the first since one succeeded; or (over) the store takes no changes any more. Once each,
     * on the committer's thread. volume: fs_mount()'s, which has to stay. */
    void (*commit_failed)(const char *volume, int err, bool over);
    void *front;
};

struct fs {
    struct store *store;
    struct page_cache *cache;
    struct device *dev; /* top of the device stack */
    struct fs_options options;
    struct rwsem rename_lock; /* every change of the tree of names takes it exclusively */
    struct inode_table *inodes;
    struct worker *committer;         /* store_step */
    struct attach_door *_Atomic door; /* NULL: attached mappings are not offered (yet) */
    _Atomic uint64_t ops[8];          /* counters shown by stats; see enum fs_counter */
    _Atomic uint64_t short_since_ns, short_last_ns; /* of memory, when the kernel wrote back */
};

enum fs_counter {
    FS_LOOKUPS,
    FS_CREATES,
    FS_UNLINKS,
    FS_READS,
    FS_WRITES,
    FS_FSYNCS,
    FS_MIXED_WRITES,
    FS_LOST_WRITES /* of what the kernel wrote back: it has forgotten them */
};

/* Who asks: new objects belong to it. */
struct cred {
    uint32_t uid, gid;
};

/* Open the volume and start working. Finishes what a crash left (orphans).
 * Errors: as store_open, error says it in words. */
int fs_mount(const char *volume, const struct fs_options *o, struct fs **out,
             struct store_error *error);
/* Write everything back and close.   Returns 0 or the first error: then something acknowledged but
 * not fsynced is lost, which the caller says aloud. */
int fs_unmount(struct fs *fs);
/* Everything written, and stored through mappings, so far: durable on return. As fs_collect_writes(). */
int fs_sync(struct fs *fs);
/* Have who is in front hand over what it holds of files that are open for writing. -ENOMEM, -errno of flush_front. No
 * lock held, not on a thread that serves requests. */
int fs_collect_writes(struct fs *fs);

static inline void fs_count(struct fs *fs, enum fs_counter c)
{
    atomic_fetch_add_explicit(&fs->ops[c], 1, memory_order_relaxed);
}

#endif
