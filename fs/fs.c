#include "fs/fs.h"

#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>

#include "cache/clock.h"
#include "cache/errseq.h"
#include "fs/data.h"
#include "fs/names.h"
#include "store/error.h"

#define DEFAULT_COMMIT_MS   5000u
#define DEFAULT_MAX_INODES  16384u
#define DEFAULT_CACHE_BYTES ((uint64_t)64 << 20)

/* What others need not see of a mounted volume. */
struct mounted {
    struct fs fs;          /* first: what others have is this */
    _Atomic bool stopping; /* the committer is to come to an end */
    const char *volume;    /* fs_mount()'s */
    /* The committer's: */
    uint32_t error_seq; /* of the store, when it was last looked at */
    uint64_t commits;   /* that had succeeded when a failure was told */
    bool told, over;    /* a failure was told; the last one */
};

/* ---- the committer ---------------------------------------------------------------------------- */

static void tell_failure(struct mounted *m)
{
    uint32_t seq = store_error_seq(m->fs.store);
    if (seq == m->error_seq || m->over || m->fs.options.commit_failed == NULL)
        return;
    struct store_stats now;
    store_stats(m->fs.store, &now);
    m->error_seq = seq;
    m->over = now.read_only;
    if (m->over || !m->told || m->commits != now.commits)
        m->fs.options.commit_failed(m->volume, now.last_error, m->over);
    m->told = true;
    m->commits = now.commits;
}

/* The store wakes its own sleepers when a transaction is full or there is something to delete, so
 * the waiting is done here. */
static unsigned committer_step(void *arg)
{
    struct mounted *m = arg;
    /* "set commit" changes it at any time. */
    unsigned age = __atomic_load_n(&m->fs.options.commit_ms, __ATOMIC_RELAXED);
    unsigned ms = store_step(m->fs.store, age);
    inode_reap(&m->fs);
    tell_failure(m);
    if (ms > 0 && !atomic_load(&m->stopping))
        store_wait(m->fs.store, ms);
    return 0;
}

static int start_committer(struct mounted *m)
{
    if (!m->fs.options.threads)
        return 0;
    int err = worker_start(&m->fs.committer, "folio-commit", committer_step, m);
    inode_table_defer(&m->fs, err == 0);
    return err;
}

static void stop_committer(struct mounted *m)
{
    if (m->fs.committer == NULL)
        return;
    inode_table_defer(&m->fs, false);
    atomic_store(&m->stopping, true);
    store_wake(m->fs.store);
    worker_stop(m->fs.committer);
    m->fs.committer = NULL;
}

/* ---- mounting --------------------------------------------------------------------------------- */

static void set_options(struct fs *fs, const struct fs_options *o)
{
    fs->options = *o;
    if (fs->options.commit_ms == 0)
        fs->options.commit_ms = DEFAULT_COMMIT_MS;
    if (fs->options.max_inodes == 0)
        fs->options.max_inodes = DEFAULT_MAX_INODES;
    if (fs->options.readahead.policy == NULL)
        fs->options.readahead.policy = &ra_linux;
    if (fs->options.readahead.pages == 0)
        fs->options.readahead.pages = RA_DEFAULT_PAGES;
    if (fs->options.cache.cache_bytes == 0)
        fs->options.cache.cache_bytes = DEFAULT_CACHE_BYTES;
    fs->options.cache.threads = o->threads;
}

/* A volume whose root cannot be read is of no use, so it is no mount. */
static int check_root(struct fs *fs)
{
    struct inode *root;
    int err = inode_get(fs, ROOT_INO, &root);
    if (err != 0)
        return err == -ENOENT ? -EIO : err;
    err = inode_is_dir(root) ? 0 : -EIO;
    inode_put(root, 1);
    return err;
}

/* Everything above the store. */
static int set_up(struct mounted *m, const char *volume, struct store_error *error)
{
    struct fs *fs = &m->fs;
    int err = page_cache_create(&fs->cache, &fs->options.cache);
    if (err != 0)
        return store_fail(error, err, "a page cache of %llu bytes cannot be made: %s",
                          (unsigned long long)fs->options.cache.cache_bytes, strerror(-err));
    fs->dev = store_device(fs->store);
    err = inode_table_create(fs, fs->options.max_inodes);
    if (err != 0) {
        page_cache_destroy(fs->cache);
        return store_fail(error, err, "not enough memory");
    }
    err = check_root(fs);
    if (err == -ENOMEM)
        store_fail(error, err, "not enough memory");
    else if (err != 0)
        store_fail(error, err, "%s: the root directory cannot be read (%s); run fsck.foliofs %s",
                   volume, strerror(-err), volume);
    else if ((err = start_committer(m)) != 0)
        store_fail(error, err, "no thread could be started: %s", strerror(-err));
    if (err != 0) {
        page_cache_stop(fs->cache);
        inode_table_destroy(fs);
        page_cache_destroy(fs->cache);
    }
    return err;
}

int fs_mount(const char *volume, const struct fs_options *o, struct fs **out,
             struct store_error *error)
{
    struct mounted *m = calloc(1, sizeof(*m));
    if (m == NULL)
        return store_fail(error, -ENOMEM, "not enough memory");
    set_options(&m->fs, o);
    m->volume = volume;
    const struct store_options so = { .read_only = o->read_only,
                                      .txn_bytes = o->txn_bytes,
                                      .inject = o->inject };
    int err = store_open(volume, &so, &m->fs.store, error);
    if (err == 0 && (err = set_up(m, volume, error)) != 0)
        store_close(m->fs.store);
    if (err != 0) {
        free(m);
        return err;
    }
    /* One that cannot be deleted stays an orphan, in nobody's way: fsck tells about it. */
    inode_delete_orphans(&m->fs);
    *out = &m->fs;
    return 0;
}

/* ---- writing back ----------------------------------------------------------------------------- */

/* What came of several things that were tried. */
struct outcome {
    int error;      /* the worst: worse_error() */
    bool no_memory; /* memory was short: trying again may do better, whatever else there was */
};

static void note(struct outcome *o, int err)
{
    o->error = worse_error(o->error, err);
    o->no_memory = o->no_memory || err == -ENOMEM;
}

/* Sizes and times that are ahead of their records although no page is dirty. (An inode that nobody
 * uses was written when its last user left.) */
static void write_lagging(struct fs *fs, struct outcome *o)
{
    struct inode **inodes;
    ssize_t nr = inode_list_used(fs, &inodes);
    if (nr < 0) {
        note(o, (int)nr);
        return;
    }
    for (ssize_t i = 0; i < nr; i++) {
        note(o, inode_lags(inodes[i]) ? inode_write_back(inodes[i]) : 0);
        inode_put(inodes[i], 1);
    }
    free(inodes);
}

int fs_collect_writes(struct fs *fs)
{
    const struct fs_options *o = &fs->options;
    struct inode **inodes;
    struct outcome all = { .error = 0 };
    if (o->flush_front == NULL)
        return 0;
    ssize_t nr = inode_list_used(fs, &inodes);
    if (nr < 0)
        return (int)nr;
    for (ssize_t i = 0; i < nr; i++) {
        note(&all, inode_has_writers(inodes[i]) ? o->flush_front(o->front, inodes[i]->ino) : 0);
        inode_put(inodes[i], 1);
    }
    free(inodes);
    return all.no_memory ? -ENOMEM : all.error;
}

/* Put everything into the running transaction, and commit it. */
static void write_and_commit(struct fs *fs, struct outcome *o)
{
    if (fs->options.read_only)
        return;
    uint64_t nr_short = page_cache_nr_short(fs->cache);
    note(o, page_cache_sync(fs->cache));
    write_lagging(fs, o);
    o->no_memory = o->no_memory || page_cache_nr_short(fs->cache) != nr_short;
    note(o, store_commit(fs->store, store_tid(fs->store)));
}

int fs_sync(struct fs *fs)
{
    fs_count(fs, FS_FSYNCS);
    uint64_t lost = atomic_load(&fs->ops[FS_LOST_WRITES]);
    struct outcome o = { .error = fs_collect_writes(fs) }; /* says nothing of writes that failed */
    note(&o, atomic_load(&fs->ops[FS_LOST_WRITES]) != lost ? -EIO : 0);
    write_and_commit(fs, &o);
    return o.error;
}

/* ---- unmounting ------------------------------------------------------------------------------- */

/* What is deleted but was still in use needs no writing. */
static void discard_deleted(struct fs *fs)
{
    struct inode **inodes;
    ssize_t nr = inode_list_used(fs, &inodes);
    for (ssize_t i = 0; i < nr; i++) {
        struct inode *inode = inodes[i];
        if (inode->nlink == 0 && atomic_load(&inode->mapping.nrdirty) > 0) {
            down_write(&inode->mapping.invalidate_lock);
            truncate_inode_pages_range(&inode->mapping, 0, UINT32_MAX);
            up_write(&inode->mapping.invalidate_lock);
        }
        inode_put(inode, 1);
    }
    if (nr >= 0)
        free(inodes);
}

/* What is not written now is lost: if it is for want of memory, try again for a while. */
static bool try_again(const struct outcome *o, uint64_t until)
{
    if (!o->no_memory || clock_now(&clock_monotonic) > until)
        return false;
    (void)poll(NULL, 0, MEMORY_WAIT_MS);
    return true;
}

/* Those that cannot be deleted for want of memory the next mount deletes. */
static int delete_orphans(struct fs *fs, uint64_t until)
{
    struct outcome o;
    do {
        o = (struct outcome){ .error = 0 };
        note(&o, inode_delete_orphans(fs));
        if (!fs->options.read_only)
            note(&o, store_commit(fs->store, store_tid(fs->store)));
    } while (try_again(&o, until));
    return o.error == -ENOMEM ? 0 : o.error;
}

/* Everything, until memory suffices. What failed for another reason may be lost (on_error=clean), and the next try
 * knows nothing of it. */
static int write_everything(struct fs *fs, uint64_t until)
{
    struct outcome o;
    int lasting = 0;
    do {
        o = (struct outcome){ .error = 0 };
        write_and_commit(fs, &o);
        if (worse_error(-ENOMEM, o.error) != -ENOMEM)
            lasting = worse_error(lasting, o.error);
    } while (try_again(&o, until));
    return worse_error(lasting, o.error);
}

/* The order: our threads first, as each may have an inode in hand when the table is taken apart;
 * pages before inodes, as they belong to them; and what the kernel still knew of deleted files is
 * gone with it, so the orphans are deleted by their records. */
int fs_unmount(struct fs *fs)
{
    struct mounted *m = (struct mounted *)fs;
    stop_committer(m);
    page_cache_stop(fs->cache);
    file_release_all(fs);
    discard_deleted(fs);
    uint64_t until = clock_now(&clock_monotonic) + MEMORY_MOST_NS;
    int err = write_everything(fs, until);
    inode_table_destroy(fs);
    page_cache_destroy(fs->cache);
    int orphans = delete_orphans(fs, until);
    int closed = store_close(fs->store);
    free(m);
    if (err != 0)
        return err;
    return closed != 0 ? closed : orphans;
}
