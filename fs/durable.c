/* durable.c: how data, size and mtime reach the store: the owner's half of a writeback pass.
 *
 *   writeback_begin   blocks beyond disk_size may be about to exist: the record says so first
 *                     (INODE_EXTENDING), so that a crash in between leaves them to be trimmed; also
 *                     when it does not look so, as a file may grow before its pages are chosen
 *   (blocks)          go into the running transaction
 *   writeback_end     every byte that was there when the pass began is in it: the record may carry
 *                     that size and that mtime now
 *
 * A truncation in the middle of a pass makes its size worthless: the bytes it stood for are gone, and
 * new ones below it may be dirty. Such a pass raises nothing; the next one does.
 */
#include <errno.h>

#include "cache/errseq.h"
#include "fs/data.h"
#include "fs/names.h"

static struct inode *inode_of(struct address_space *m)
{
    return m->owner;
}

/* ---- promises of room ------------------------------------------------------------------------ */

static int data_reserve(struct address_space *m, uint32_t nr_pages, uint32_t nr_new)
{
    return store_reserve(inode_of(m)->fs->store, nr_pages, nr_new);
}

static void data_reserve_always(struct address_space *m, uint32_t nr_pages, uint32_t nr_new)
{
    store_reserve_always(inode_of(m)->fs->store, nr_pages, nr_new);
}

static void data_unreserve(struct address_space *m, uint32_t nr_pages, uint32_t nr_new)
{
    store_unreserve(inode_of(m)->fs->store, nr_pages, nr_new);
}

/* What was deleted is free then, and what is to be committed needs what it really needs. The dirty pages stay
 * promised: to have them written could take as long as some client likes. */
static void data_make_room(struct address_space *m)
{
    store_make_room(inode_of(m)->fs->store);
}

/* Called before a page is dirtied: from then on a block may exist there. */
static int data_block_exists(struct address_space *m, uint32_t index)
{
    struct inode *inode = inode_of(m);
    if (inode->fresh) {
        uint64_t end = atomic_load(&inode->alloc_end);
        while (end <= index &&
               !atomic_compare_exchange_weak(&inode->alloc_end, &end, (uint64_t)index + 1))
            ;
        if (end <= index)
            return 0;
    }
    return store_block_exists(inode->fs->store, atomic_load(&m->object), index);
}

/* ---- a pass ---------------------------------------------------------------------------------- */

static int put_record(struct inode *inode, const struct inode_record *r)
{
    struct update u;
    uint64_t tid;
    update_init(&u, inode->fs->store);
    inode_put_record(&u, inode->ino, r);
    int err = update_apply(&u, UPDATE_FREES, &tid);
    if (err == 0)
        inode_raise_tid(inode, tid);
    return err;
}

/* Blocks beyond the record's size may be about to exist: say so in the record, before they do. */
static int announce_blocks(struct inode *inode)
{
    struct inode_record r;
    int err = 0;
    inode_lock_records(inode->fs);
    inode_record(inode, &r);
    if (!(r.flags & INODE_EXTENDING)) {
        r.flags |= INODE_EXTENDING;
        err = put_record(inode, &r);
        if (err == 0) {
            pthread_mutex_lock(&inode->i_lock);
            inode->flags |= INODE_EXTENDING;
            pthread_mutex_unlock(&inode->i_lock);
        }
    }
    inode_unlock_records(inode->fs);
    return err;
}

static int data_writeback_begin(struct address_space *m, struct writeback_pass *pass)
{
    struct inode *inode = inode_of(m);
    pthread_mutex_lock(&inode->i_lock);
    inode->pass_mtime = inode->mtime;
    inode->pass_truncations = inode->truncations;
    bool gone = inode->nlink == 0;
    pthread_mutex_unlock(&inode->i_lock);
    if (gone) /* an orphan: a crash deletes it as a whole */
        return 0;
    return pass->writes ? announce_blocks(inode) : 0;
}

/* What the record may say after a pass. Context: i_lock. */
static void catch_up(struct inode *inode, uint64_t pass_size, struct inode_record *r)
{
    uint64_t now = atomic_load(&inode->mapping.i_size);
    struct timespec now_mtime = inode->mtime;
    /* After i_size: a page is dirtied first. While i_size is cut, the blocks behind it are still there. */
    bool clean = atomic_load(&inode->mapping.nrdirty) == 0 && !inode->shrinking;
    if (clean) {
        r->size = now;
        r->mtime = now_mtime;
        r->flags &= ~(uint32_t)INODE_EXTENDING;
    } else if (inode->truncations == inode->pass_truncations) {
        uint64_t size = pass_size < now ? pass_size : now;
        r->size = size > r->size ? size : r->size; /* it may have been made longer meanwhile */
        r->mtime = inode->pass_mtime;
    }
}

/* Context: records locked. */
static int end_pass(struct inode *inode, uint64_t pass_size)
{
    struct inode_record before, r;
    inode_record(inode, &before);
    r = before;
    pthread_mutex_lock(&inode->i_lock);
    catch_up(inode, pass_size, &r);
    bool gone = inode->nlink == 0;
    pthread_mutex_unlock(&inode->i_lock);
    if (gone ||
        (r.size == before.size && same_time(r.mtime, before.mtime) && r.flags == before.flags))
        return 0;
    int err = put_record(inode, &r);
    if (err != 0)
        return err;
    pthread_mutex_lock(&inode->i_lock);
    inode->disk_size = r.size;
    inode->disk_mtime = r.mtime;
    inode->flags = r.flags;
    pthread_mutex_unlock(&inode->i_lock);
    return 0;
}

static int data_writeback_end(struct address_space *m, struct writeback_pass *pass, int error)
{
    struct inode *inode = inode_of(m);
    inode_raise_tid(inode, store_tid(inode->fs->store)); /* the blocks are at most there */
    if (error != 0)
        return error == -EAGAIN ? 0 : error; /* pages were left out: nothing to promise */
    inode_lock_records(inode->fs);
    int err = end_pass(inode, pass->size);
    inode_unlock_records(inode->fs);
    return err;
}

static void data_get(struct address_space *m)
{
    inode_ref(inode_of(m), 1);
}

static void data_put(struct address_space *m)
{
    inode_put(inode_of(m), 1);
}

static void data_shutdown(struct address_space *m)
{
    store_shutdown(inode_of(m)->fs->store);
}

/* The kernel learns of new times when it asks again, once after each time it was told. Having it forget them
 * may wait for an inode that it is evicting. */
static bool data_page_mkwrite(struct address_space *m, bool nowait)
{
    struct inode *inode = inode_of(m);
    const struct fs_options *o = &inode->fs->options;
    struct timespec now = fs_now();
    pthread_mutex_lock(&inode->i_lock);
    inode->mtime = inode->ctime = now;
    pthread_mutex_unlock(&inode->i_lock);
    if (o->forget_attributes == NULL || !atomic_load(&inode->attributes_shown))
        return true; /* looked at after the times changed: who is shown them now is shown these */
    if (nowait)
        return false;
    if (atomic_exchange(&inode->attributes_shown, false))
        o->forget_attributes(o->front, inode->ino);
    return true;
}

static void data_forget_copy(struct address_space *m, uint32_t index)
{
    struct inode *inode = inode_of(m);
    const struct fs_options *o = &inode->fs->options;
    if (o->forget_range != NULL)
        o->forget_range(o->front, inode->ino, (uint64_t)index << PAGE_SHIFT, PAGE_SIZE);
}

const struct address_space_operations inode_a_ops = {
    .shutdown = data_shutdown,
    .page_mkwrite = data_page_mkwrite,
    .forget_copy = data_forget_copy,
    .reserve = data_reserve,
    .reserve_always = data_reserve_always,
    .unreserve = data_unreserve,
    .make_room = data_make_room,
    .block_exists = data_block_exists,
    .writeback_begin = data_writeback_begin,
    .writeback_end = data_writeback_end,
    .get = data_get,
    .put = data_put,
};

/* ---- writing back ---------------------------------------------------------------------------- */

/* Nothing is ahead of the store, nor in the hands of a pass: blocks may be in a transaction that only its end
 * makes known (inode_raise_tid), and their pages are gone by then. */
static bool is_written_back(struct inode *inode)
{
    struct address_space *m = &inode->mapping;
    if (atomic_load(&m->nrdirty) > 0 || atomic_load(&m->nrpages) > 0 || inode_lags(inode) ||
        !down_write_trylock(&m->writeback_sem))
        return false;
    up_write(&m->writeback_sem);
    return true;
}

int inode_write_back(struct inode *inode)
{
    return is_written_back(inode) ? 0 : filemap_fdatawrite(&inode->mapping, WB_SYNC_ALL);
}

int inode_fsync(struct inode *inode)
{
    fs_count(inode->fs, FS_FSYNCS);
    return store_sync(inode->fs->store, atomic_load(&inode->tid));
}

/* Has a commit failed that this open file was not told of? *since is read first, so it is never the newer one. */
static bool commit_has_failed(struct open_file *file)
{
    uint32_t since = atomic_load(&file->store_err), now;
    do
        now = store_error_seq(file->inode->fs->store);
    while (now != since && !atomic_compare_exchange_weak(&file->store_err, &since, now));
    return now != since;
}

/* The worst of what there is to tell: all of it is told with that. */
int file_fsync(struct open_file *file)
{
    struct inode *inode = file->inode;
    int err = inode_write_back(inode);
    if (err == 0)
        err = inode_fsync(inode);
    err = worse_error(err, filemap_check_errors(&inode->mapping, &file->wb_err));
    /* A commit may have failed for want of memory, which this then says. */
    bool failed = commit_has_failed(file);
    return err == 0 && failed ? -EIO : err;
}
