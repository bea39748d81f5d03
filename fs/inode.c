#include "fs/inode.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>

#include "cache/list.h"
#include "cache/memfd.h"
#include "cache/wait.h"
#include "fs/data.h"
#include "fs/names.h"

/* The table of inodes in memory.
 *
 *                    record read                          last reference, nlink > 0
 *   inode_get:  LOADING --------+                       +---------------------------> on the list of
 *                               +--> READY, refs > 0 ---+  <---- inode_get ----------  unused, refs 0
 *   inode_new:  NEW ------------+        ^  |           |                                  |
 *                    inode_publish       +--+           | last reference, nlink 0          | shrink
 *                                     ref, put          v                                  v
 *                                                   DELETING -- update applied ------> taken apart
 *
 * Whoever asks for an inode that is LOADING, NEW or DELETING sleeps until it is something else, and
 * looks again: two loads become one, and a number that is being deleted does not come back. Each of
 * the three states belongs to one thread, which needs nothing from those that sleep.
 *
 * A reference count of 0 means that nobody runs an operation, no file is open, the kernel remembers
 * nothing and no page is dirty (the cache's list of dirty mappings holds a reference). So what is
 * unused is clean, and its pages can be dropped at any time; only its size and mtime may be ahead of
 * the record after an error, which is tried again before it goes.
 *
 * The table's lock is never held over a sleep, and nothing but memory is touched under it. The cache
 * may call inode_ref() with its own locks held. */

#define BUCKETS_MIN 1024u
#define REAP_PAGES  256u /* an inode with more pages than that is left to the worker */

enum entry_state { ENTRY_NEW, ENTRY_LOADING, ENTRY_READY, ENTRY_DELETING };

struct entry {
    struct inode inode;     /* first: an inode is its entry */
    enum entry_state state; /* (h) */
};

struct inode_table { /* (c) constant  (h) lock  (a) atomic */
    pthread_mutex_t lock;
    struct inode **buckets;   /* chained by hash_next (h) */
    uint64_t nr_buckets;      /* a power of two (h) */
    uint64_t nr_inodes;       /* (h) */
    uint64_t nr_unused;       /* (h) */
    uint64_t max_unused;      /* (c) */
    struct list_head unused;  /* least recently used first (h) */
    struct inode *graveyard;  /* in no bucket any more, for inode_reap(); by hash_next (h) */
    unsigned waiters;         /* who sleep on changed (h) */
    _Atomic uint32_t changed; /* counts inodes that left LOADING, NEW or DELETING (a) */
    _Atomic bool defer;       /* (a) */
    struct rwsem records;     /* see inode_lock_records() (c) */
};

static struct entry *entry_of(struct inode *inode)
{
    return (struct entry *)inode;
}

/* ---- buckets and the list of unused ones (table lock held) ------------------------------------ */

static uint64_t bucket_of(const struct inode_table *t, uint64_t ino)
{
    return (ino * 0x9E3779B97F4A7C15u >> 20) & (t->nr_buckets - 1);
}

static struct inode **find_link(struct inode_table *t, uint64_t ino)
{
    struct inode **link = &t->buckets[bucket_of(t, ino)];
    while (*link != NULL && (*link)->ino != ino)
        link = &(*link)->hash_next;
    return link;
}

/* Twice the buckets once there is an inode for each; without memory for it, chains get longer. */
static void grow(struct inode_table *t)
{
    uint64_t nr_old = t->nr_buckets;
    struct inode **old = t->buckets;
    struct inode **buckets = calloc(2 * nr_old, sizeof(struct inode *));
    if (buckets == NULL)
        return;
    t->buckets = buckets;
    t->nr_buckets = 2 * nr_old;
    for (uint64_t i = 0; i < nr_old; i++) {
        for (struct inode *inode = old[i], *next; inode != NULL; inode = next) {
            struct inode **link = &buckets[bucket_of(t, inode->ino)];
            next = inode->hash_next;
            inode->hash_next = *link;
            *link = inode;
        }
    }
    free(old);
}

static void hash_insert(struct inode_table *t, struct inode *inode)
{
    if (t->nr_inodes >= t->nr_buckets)
        grow(t);
    struct inode **link = &t->buckets[bucket_of(t, inode->ino)];
    inode->hash_next = *link;
    *link = inode;
    t->nr_inodes++;
}

static void hash_remove(struct inode_table *t, struct inode *inode)
{
    struct inode **link = find_link(t, inode->ino);
    assert(*link == inode);
    *link = inode->hash_next;
    inode->hash_next = NULL;
    t->nr_inodes--;
}

static void unused_add(struct inode_table *t, struct inode *inode)
{
    list_add_tail(&inode->unused, &t->unused);
    t->nr_unused++;
}

static void unused_remove(struct inode_table *t, struct inode *inode)
{
    list_del(&inode->unused);
    t->nr_unused--;
}

/* The table lock is released, who waits for an inode's state is woken. */
static void unlock_and_wake(struct inode_table *t)
{
    atomic_fetch_add(&t->changed, 1);
    bool waiters = t->waiters > 0;
    pthread_mutex_unlock(&t->lock);
    if (waiters)
        wake_word(&t->changed);
}

static void wait_for_change(struct inode_table *t)
{
    uint32_t seen = atomic_load(&t->changed);
    t->waiters++;
    pthread_mutex_unlock(&t->lock);
    wait_on_word(&t->changed, seen, 0);
    pthread_mutex_lock(&t->lock);
    t->waiters--;
}

/* The inode if it is READY; NULL when there is none. Sleeps while it is neither. */
static struct inode *find_ready(struct inode_table *t, uint64_t ino)
{
    for (;;) {
        struct inode *inode = *find_link(t, ino);
        if (inode == NULL || entry_of(inode)->state == ENTRY_READY)
            return inode;
        wait_for_change(t);
    }
}

static void take_reference(struct inode_table *t, struct inode *inode)
{
    if (inode->refs++ == 0)
        unused_remove(t, inode);
}

/* ---- making and taking apart ------------------------------------------------------------------ */

static struct inode *alloc_inode(struct fs *fs, uint64_t ino, enum entry_state state)
{
    struct entry *e = calloc(1, sizeof(*e));
    if (e == NULL)
        return NULL;
    if (pthread_mutex_init(&e->inode.i_lock, NULL) != 0) {
        free(e);
        return NULL;
    }
    e->inode.fs = fs;
    e->inode.ino = ino;
    e->inode.refs = 1;
    e->state = state;
    return &e->inode;
}

/* Not in the table, and without a mapping (any more). */
static void free_entry(struct inode *inode)
{
    pthread_mutex_destroy(&inode->i_lock);
    free(entry_of(inode));
}

static void take_apart(struct inode *inode)
{
    mapping_destroy(&inode->mapping);
    free_entry(inode);
}

/* The inode is in no bucket any more. Many pages take long to drop: not in a request's time. */
static void bury(struct inode_table *t, struct inode *inode)
{
    if (!atomic_load(&t->defer) || atomic_load(&inode->mapping.nrpages) <= REAP_PAGES) {
        take_apart(inode);
        return;
    }
    struct store *store = inode->fs->store;
    pthread_mutex_lock(&t->lock);
    inode->hash_next = t->graveyard;
    t->graveyard = inode;
    pthread_mutex_unlock(&t->lock);
    store_wake(store);
}

void inode_reap(struct fs *fs)
{
    struct inode_table *t = fs->inodes;
    pthread_mutex_lock(&t->lock);
    struct inode *inode = t->graveyard;
    t->graveyard = NULL;
    pthread_mutex_unlock(&t->lock);
    for (struct inode *next; inode != NULL; inode = next) {
        next = inode->hash_next;
        take_apart(inode);
    }
}

void inode_table_defer(struct fs *fs, bool defer)
{
    atomic_store(&fs->inodes->defer, defer);
}

/* A crash left blocks beyond the size. They need not be gone for the file to be read, so where
 * nothing can be written or they cannot be read, the file is of use all the same. */
static int finish_crashed(struct inode *inode)
{
    if (!(inode->flags & INODE_EXTENDING) || !S_ISREG(inode->mode) || inode->fs->options.read_only)
        return 0;
    int err = inode_trim_tail(inode);
    return err == -EIO || err == -EROFS ? 0 : err;
}

/* ---- the table --------------------------------------------------------------------------------- */

int inode_table_create(struct fs *fs, uint64_t max_unused)
{
    struct inode_table *t = calloc(1, sizeof(*t));
    if (t == NULL)
        return -ENOMEM;
    t->nr_buckets = BUCKETS_MIN;
    t->buckets = calloc(t->nr_buckets, sizeof(struct inode *));
    if (t->buckets == NULL || pthread_mutex_init(&t->lock, NULL) != 0) {
        free(t->buckets);
        free(t);
        return -ENOMEM;
    }
    t->max_unused = max_unused;
    list_init(&t->unused);
    fs->inodes = t;
    return 0;
}

/* The kernel does not take back its references when it unmounts, so they are not asked for. */
void inode_table_destroy(struct fs *fs)
{
    struct inode_table *t = fs->inodes;
    inode_reap(fs);
    for (uint64_t i = 0; i < t->nr_buckets; i++) {
        while (t->buckets[i] != NULL) {
            struct inode *inode = t->buckets[i];
            t->buckets[i] = inode->hash_next;
            /* Pages that could not be written are still dirty, and their reference goes with them. */
            entry_of(inode)->state = ENTRY_DELETING;
            take_apart(inode);
        }
    }
    pthread_mutex_destroy(&t->lock);
    free(t->buckets);
    free(t);
    fs->inodes = NULL;
}

void inode_table_stats(struct fs *fs, struct inode_table_stats *out)
{
    struct inode_table *t = fs->inodes;
    pthread_mutex_lock(&t->lock);
    out->inodes = t->nr_inodes;
    out->unused = t->nr_unused;
    out->bytes = t->nr_inodes * sizeof(struct entry) + t->nr_buckets * sizeof(struct inode *);
    pthread_mutex_unlock(&t->lock);
}

/* An array for every used inode, with the table locked; NULL: no memory, not locked. It is taken
 * before the lock, so again if the number of inodes has grown meanwhile. */
static struct inode **lock_with_array(struct inode_table *t)
{
    struct inode **list = NULL;
    uint64_t max = 0, used;
    pthread_mutex_lock(&t->lock);
    while ((used = t->nr_inodes - t->nr_unused) >= max) {
        pthread_mutex_unlock(&t->lock);
        free(list);
        max = used + used / 8 + 1;
        list = calloc(max, sizeof(struct inode *));
        if (list == NULL)
            return NULL;
        pthread_mutex_lock(&t->lock);
    }
    return list;
}

ssize_t inode_list_used(struct fs *fs, struct inode ***out)
{
    struct inode_table *t = fs->inodes;
    struct inode **list = lock_with_array(t);
    size_t nr = 0;
    if (list == NULL)
        return -ENOMEM;
    for (uint64_t i = 0; i < t->nr_buckets; i++) {
        for (struct inode *inode = t->buckets[i]; inode != NULL; inode = inode->hash_next) {
            if (entry_of(inode)->state == ENTRY_READY && inode->refs > 0) {
                inode->refs++;
                list[nr++] = inode;
            }
        }
    }
    pthread_mutex_unlock(&t->lock);
    *out = list;
    return (ssize_t)nr;
}

void inode_lock_records(struct fs *fs)
{
    down_write(&fs->inodes->records);
}

void inode_unlock_records(struct fs *fs)
{
    up_write(&fs->inodes->records);
}

/* ---- getting ----------------------------------------------------------------------------------- */

/* The load failed: out of the table again, unless the cache has got hold of it meanwhile (zeroed
 * tails are dirty pages), when it stays as an inode that nobody asked for. */
static void give_up_loading(struct inode_table *t, struct inode *inode, bool has_mapping)
{
    pthread_mutex_lock(&t->lock);
    bool gone = inode->refs == 1;
    if (gone)
        hash_remove(t, inode);
    else
        entry_of(inode)->state = ENTRY_READY;
    unlock_and_wake(t);
    if (!gone)
        inode_put(inode, 1);
    else if (has_mapping)
        take_apart(inode);
    else
        free_entry(inode);
}

/* A number without names is gone, to anybody who does not hold it already. */
static int load(struct inode_table *t, struct inode *inode)
{
    struct inode_record record;
    int err = inode_read_record(inode->fs, inode->ino, &record);
    if (err == 0 && record.nlink == 0)
        err = -ENOENT;
    if (err != 0) {
        give_up_loading(t, inode, false);
        return err;
    }
    inode_init(inode, &record);
    err = finish_crashed(inode);
    if (err != 0) {
        give_up_loading(t, inode, true);
        return err;
    }
    inode_publish(inode);
    return 0;
}

int inode_get(struct fs *fs, uint64_t ino, struct inode **out)
{
    struct inode_table *t = fs->inodes;
    pthread_mutex_lock(&t->lock);
    struct inode *inode = find_ready(t, ino);
    bool found = inode != NULL;
    if (found) {
        take_reference(t, inode);
    } else {
        inode = alloc_inode(fs, ino, ENTRY_LOADING);
        if (inode != NULL)
            hash_insert(t, inode);
    }
    pthread_mutex_unlock(&t->lock);
    if (inode == NULL)
        return -ENOMEM;
    int err = found ? 0 : load(t, inode);
    if (err == 0)
        *out = inode;
    return err;
}

void inode_ref(struct inode *inode, uint64_t n)
{
    struct inode_table *t = inode->fs->inodes;
    pthread_mutex_lock(&t->lock);
    assert(inode->refs > 0);
    inode->refs += n;
    pthread_mutex_unlock(&t->lock);
}

/* POSIX: a directory with setgid hands its group to what is made in it, and itself to directories. */
static void inherit(struct inode *dir, struct inode_record *r)
{
    pthread_mutex_lock(&dir->i_lock);
    if (dir->mode & S_ISGID) {
        r->gid = dir->gid;
        if (S_ISDIR(r->mode))
            r->mode |= S_ISGID;
    }
    pthread_mutex_unlock(&dir->i_lock);
}

int inode_new(struct inode *dir, uint32_t mode, uint64_t rdev, const struct cred *cred,
              struct inode **out)
{
    struct fs *fs = dir->fs;
    struct inode_table *t = fs->inodes;
    struct inode_record r = { .mode = mode, .uid = cred->uid, .gid = cred->gid, .nlink = 1 };
    uint64_t ino;
    int err = store_new_number(fs->store, &ino);
    if (err != 0)
        return err;
    struct inode *inode = alloc_inode(fs, ino, ENTRY_NEW);
    if (inode == NULL)
        return -ENOMEM;
    inherit(dir, &r);
    if (S_ISDIR(mode)) {
        r.nlink = 2;
        r.parent = dir->ino;
        r.cookie = FIRST_COOKIE;
    }
    r.rdev = S_ISCHR(mode) || S_ISBLK(mode) ? rdev : 0;
    r.data_id = S_ISREG(mode) ? ino : 0; /* one counter for both, so it is nobody else's */
    r.btime = r.atime = r.mtime = r.ctime = fs_now();
    inode_init(inode, &r);
    inode->fresh = true;
    pthread_mutex_lock(&t->lock);
    hash_insert(t, inode);
    pthread_mutex_unlock(&t->lock);
    *out = inode;
    return 0;
}

void inode_publish(struct inode *inode)
{
    struct inode_table *t = inode->fs->inodes;
    pthread_mutex_lock(&t->lock);
    entry_of(inode)->state = ENTRY_READY;
    unlock_and_wake(t);
}

/* ---- putting ----------------------------------------------------------------------------------- */

/* The state is DELETING. When the store does not take the update, record and orphan stay, and the
 * next mount deletes them: nobody can ask for the number before that. */
static void delete_inode(struct inode_table *t, struct inode *inode)
{
    struct update u;
    update_init(&u, inode->fs->store);
    if (S_ISREG(inode->mode))
        inode_delete_data(inode, &u);
    if (inode_del_records(&u, inode->ino, inode->mode) != 0)
        update_abort(&u);
    else
        update_apply(&u, UPDATE_FREES, NULL);
    pthread_mutex_lock(&t->lock);
    hash_remove(t, inode);
    unlock_and_wake(t);
    bury(t, inode);
}

/* Beside the caller's n references there is only that of the cache's list of dirty files. */
static bool only_dirty(struct inode_table *t, struct inode *inode, uint64_t n)
{
    pthread_mutex_lock(&t->lock);
    bool only = inode->refs == n + 1 && entry_of(inode)->state == ENTRY_READY;
    pthread_mutex_unlock(&t->lock);
    return only && atomic_load(&inode->mapping.nrdirty) > 0;
}

/* A deleted file's dirty pages need not be written when nobody is left to read them again: drop
 * them, and with them the reference of the list of dirty files.
 * Between a page's becoming dirty and its file's reference for that, the writer's own reference
 * could be taken for that one; a writer holds i_rwsem over both. Only try-locks: the caller may be
 * inside the cache. Where they fail the pages are written in vain, no more. */
static void discard_dirty(struct inode_table *t, struct inode *inode, uint64_t n)
{
    struct address_space *m = &inode->mapping;
    if (atomic_load(&m->nrdirty) == 0 || memfd_has_pages(m)) /* to punch may wait */
        return;
    pthread_mutex_lock(&inode->i_lock);
    bool deleted = inode->nlink == 0;
    pthread_mutex_unlock(&inode->i_lock);
    if (!deleted || !down_write_trylock(&inode->i_rwsem))
        return;
    if (down_write_trylock(&m->invalidate_lock)) {
        if (only_dirty(t, inode, n))
            truncate_inode_pages_range(m, 0, UINT32_MAX);
        up_write(&m->invalidate_lock);
    }
    up_write(&inode->i_rwsem);
}

/* Nobody else can change them: no reference is left. Otherwise: inode_lags(). */
static bool lags(const struct inode *inode)
{
    return S_ISREG(inode->mode) && inode->nlink > 0 &&
           (inode->disk_size != atomic_load(&inode->mapping.i_size) ||
            !same_time(inode->disk_mtime, inode->mtime));
}

bool inode_lags(struct inode *inode)
{
    pthread_mutex_lock(&inode->i_lock);
    bool ahead = lags(inode);
    pthread_mutex_unlock(&inode->i_lock);
    return ahead;
}

/* Bring the record up to date, with a reference for that time. The table's lock is held, and
 * released in between.   Returns whether the inode has no other references. */
static bool catch_up(struct inode_table *t, struct inode *inode)
{
    inode->refs++;
    pthread_mutex_unlock(&t->lock);
    inode_write_back(inode); /* an error: the list of dirty files has it then, and a reference */
    pthread_mutex_lock(&t->lock);
    return --inode->refs == 0;
}

/* Nobody has it any more. The table's lock is held, and released. */
static void unreferenced(struct inode_table *t, struct inode *inode)
{
    struct entry *e = entry_of(inode);
    struct fs *fs = inode->fs;
    if (e->state == ENTRY_NEW) { /* it came to nothing */
        hash_remove(t, inode);
        unlock_and_wake(t);
        take_apart(inode);
        return;
    }
    bool behind = lags(inode) && !fs->options.read_only;
    if (e->state != ENTRY_READY || (behind && !catch_up(t, inode))) {
        pthread_mutex_unlock(&t->lock);
        return;
    }
    if (inode->nlink == 0) {
        e->state = ENTRY_DELETING;
        pthread_mutex_unlock(&t->lock);
        delete_inode(t, inode);
        return;
    }
    unused_add(t, inode);
    bool over = t->nr_unused > t->max_unused;
    pthread_mutex_unlock(&t->lock);
    if (over) /* the inode itself may be gone by now */
        inode_shrink(fs, t->max_unused);
}

void inode_put(struct inode *inode, uint64_t n)
{
    struct inode_table *t = inode->fs->inodes;
    discard_dirty(t, inode, n);
    pthread_mutex_lock(&t->lock);
    assert(inode->refs >= n);
    inode->refs -= n;
    if (inode->refs == 0)
        unreferenced(t, inode);
    else
        pthread_mutex_unlock(&t->lock);
}

void inode_forget(struct fs *fs, uint64_t ino, uint64_t n)
{
    struct inode_table *t = fs->inodes;
    pthread_mutex_lock(&t->lock);
    struct inode *inode = *find_link(t, ino); /* the kernel's own references keep it there */
    pthread_mutex_unlock(&t->lock);
    if (inode != NULL && n > 0)
        inode_put(inode, n);
}

/* An unused inode that lags behind is no candidate before it has been written; and while it was in hand it
 * may have lost its last name. */
static void catch_up_unused(struct inode_table *t, struct inode *inode)
{
    if (!catch_up(t, inode))
        return;
    if (inode->nlink > 0) {
        unused_add(t, inode);
        return;
    }
    entry_of(inode)->state = ENTRY_DELETING;
    pthread_mutex_unlock(&t->lock);
    delete_inode(t, inode);
    pthread_mutex_lock(&t->lock);
}

/* The least recently used inode, out of the table; NULL if it was not to be had this time. */
static struct inode *evict_first(struct inode_table *t)
{
    if (list_empty(&t->unused))
        return NULL;
    struct inode *inode = list_entry(t->unused.next, struct inode, unused);
    unused_remove(t, inode);
    if (lags(inode) && !inode->fs->options.read_only) {
        catch_up_unused(t, inode);
        return NULL;
    }
    hash_remove(t, inode);
    return inode;
}

void inode_shrink(struct fs *fs, uint64_t keep)
{
    struct inode_table *t = fs->inodes;
    pthread_mutex_lock(&t->lock);
    for (uint64_t tries = 2 * t->nr_unused; tries > 0 && t->nr_unused > keep; tries--) {
        struct inode *inode = evict_first(t);
        if (inode == NULL)
            continue;
        pthread_mutex_unlock(&t->lock);
        bury(t, inode);
        pthread_mutex_lock(&t->lock);
    }
    pthread_mutex_unlock(&t->lock);
}
