/* resize.c: the shape of a file: its size, holes, and blocks set aside. */
#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <unistd.h>

#include "fs/data.h"
#include "fs/names.h"
#include "store/dev_fault.h"

/* When the size changed. Who stamps files himself may not tell us: he has a coarse clock, and within one tick of it a
 * file has its times already, which then stay. */
static struct timespec resize_time(struct inode *inode)
{
    struct timespec now = fs_now(), tick, mtime;
    if (!inode->fs->options.front_stamps)
        return now;
    clock_gettime(CLOCK_REALTIME_COARSE, &tick);
    pthread_mutex_lock(&inode->i_lock);
    mtime = inode->mtime;
    pthread_mutex_unlock(&inode->i_lock);
    return is_before(mtime, tick) || is_before(now, mtime) ? now : mtime;
}

/* ---- truncate -------------------------------------------------------------------------------- */

/* The records of a shorter file. */
struct shrink {
    struct inode *inode;
    struct inode_record record;
    struct update update;
    uint8_t *place;   /* of the record, in update */
    struct page *cut; /* by the new end; or NULL */
    uint64_t size;
    uint64_t data_id; /* it will have */
};

/* A file cut to nothing starts with a new data id, so that its old blocks can go at leisure; one that
 * is cut short has the rest of its blocks trimmed. */
static int shrink_prepare(struct shrink *s)
{
    struct inode *inode = s->inode;
    s->data_id = inode->data_id;
    if (s->size == 0) {
        int err = store_new_number(inode->fs->store, &s->data_id);
        if (err != 0)
            return err;
    }
    if (pages_for(s->size) < OBJECT_BLOCKS)
        update_trim(&s->update, inode->data_id, pages_for(s->size), OBJECT_BLOCKS);
    struct key key;
    key_inode(&key, inode->ino);
    s->place = update_reserve(&s->update, &key, INODE_BYTES);
    return s->update.error;
}

/* Context: records locked. */
static void shrink_record(struct shrink *s)
{
    struct inode_record *r = &s->record;
    inode_record(s->inode, r);
    r->data_id = s->data_id;
    /* A pass under way may still rely on the flag: only its end takes it away. */
    if (s->size % PAGE_SIZE != 0)
        r->flags |= INODE_EXTENDING; /* the last block's tail is zeroed in memory only */
    if (r->size > s->size)
        r->size = s->size;
    r->ctime = resize_time(s->inode);
    if (s->size == 0)
        r->mtime = r->ctime;
    (void)inode_encode(r, s->place);
}

static void shrink_finish(struct shrink *s)
{
    struct inode *inode = s->inode;
    struct device *faults = store_faults(inode->fs->store);
    pthread_mutex_lock(&inode->i_lock);
    if (faults != NULL)
        dev_fault_follow(faults, inode->data_id, s->record.data_id);
    inode->data_id = s->record.data_id;
    inode->disk_size = s->record.size;
    inode->flags = s->record.flags;
    inode->mtime = inode->ctime = s->record.ctime;
    inode->disk_mtime = s->record.mtime;
    inode->truncations++;
    pthread_mutex_unlock(&inode->i_lock);
    atomic_store(&inode->mapping.object, s->record.data_id);
}

static void set_shrinking(struct inode *inode, bool shrinking)
{
    pthread_mutex_lock(&inode->i_lock);
    inode->shrinking = shrinking;
    pthread_mutex_unlock(&inode->i_lock);
}

/* The pages, the blocks and the record. The page that the new end cuts stays locked until the record
 * says the new size, or a crash could show its zeros inside the old one.
 * Context: invalidate_lock. */
static int shrink_apply(struct shrink *s)
{
    struct inode *inode = s->inode;
    struct address_space *m = &inode->mapping;
    uint64_t old = atomic_load(&m->i_size), tid;
    set_shrinking(inode, true);
    unsigned stayed = truncate_setsize(m, s->size, s->cut);
    inode_lock_records(inode->fs);
    shrink_record(s);
    int err = update_apply(&s->update, UPDATE_FREES, &tid);
    if (err == 0) {
        shrink_finish(s);
        inode_raise_tid(inode, tid);
    } else {
        i_size_write(m, old); /* the store is gone or read-only, since we asked: so is the data */
    }
    set_shrinking(inode, false);
    inode_unlock_records(inode->fs);
    truncate_pages_end(m, (uint32_t)pages_for(s->size), UINT32_MAX, stayed);
    page_unlock_put(m, s->cut);
    return err;
}

/* i_size first, then the pages, then the blocks, with nobody reading pages in meanwhile. What
 * may fail for want of memory or of the disk comes before. */
static int shrink(struct inode *inode, uint64_t size)
{
    struct address_space *m = &inode->mapping;
    struct shrink s = { .inode = inode, .size = size };
    update_init(&s.update, inode->fs->store);
    int err = truncate_get_page(m, size, &s.cut);
    if (err == 0)
        err = shrink_prepare(&s);
    if (err != 0) {
        update_abort(&s.update);
        if (s.cut != NULL)
            put_page(m->cache, s.cut);
        return err;
    }
    down_write(&m->invalidate_lock);
    err = shrink_apply(&s);
    up_write(&m->invalidate_lock);
    return err;
}

/* Longer: the record follows at once when everything below is in the store already; otherwise with the end of a
 * writeback pass. While blocks may be behind the record's size, or the rest of its last one is not zeros
 * (INODE_EXTENDING), it is not: a pass may be under way.
 * Context: lock_eof_page(), records locked. */
static int grow_record(struct inode *inode, uint64_t size)
{
    struct address_space *m = &inode->mapping;
    struct inode_record r;
    struct update u;
    uint64_t tid;
    struct timespec now = resize_time(inode);
    inode_record(inode, &r);
    bool settled = atomic_load(&m->nrdirty) == 0 && !(r.flags & INODE_EXTENDING) &&
                   r.size == atomic_load(&m->i_size);
    if (settled) {
        r.size = size;
        r.mtime = now;
    }
    r.ctime = now;
    update_init(&u, inode->fs->store);
    inode_put_record(&u, inode->ino, &r);
    int err = update_apply(&u, 0, &tid);
    if (err != 0)
        return err;
    pthread_mutex_lock(&inode->i_lock);
    inode->mtime = inode->ctime = now;
    inode->disk_mtime = r.mtime;
    inode->disk_size = r.size;
    pthread_mutex_unlock(&inode->i_lock);
    i_size_write(m, size);
    inode_raise_tid(inode, tid);
    return 0;
}

static int grow(struct inode *inode, uint64_t size)
{
    struct address_space *m = &inode->mapping;
    struct page *eof;
    i_size_reach(m, size); /* a store behind the end waits for the new size, and gets no SIGBUS */
    int err = lock_eof_page(m, &eof);
    if (err != 0)
        return err;
    inode_lock_records(inode->fs);
    err = grow_record(inode, size);
    inode_unlock_records(inode->fs);
    page_unlock_put(m, eof);
    i_size_reach(m, atomic_load(&m->i_size)); /* a fault there may have cut the memfd again */
    return err;
}

/* Is there nothing at all in it, on disk or in memory? */
static bool is_empty(struct inode *inode)
{
    uint64_t blocks;
    return atomic_load(&inode->mapping.i_size) == 0 && atomic_load(&inode->mapping.nrpages) == 0 &&
           store_count_blocks(inode->fs->store, inode->data_id, &blocks) == 0 && blocks == 0;
}

static int resize_locked(struct inode *inode, uint64_t size)
{
    uint64_t old = atomic_load(&inode->mapping.i_size);
    if (size > old || (size == 0 && is_empty(inode)))
        return grow(inode, size);
    /* Equal, too: blocks set aside beyond the end go, as on ext4. */
    return shrink(inode, size);
}

/* A record that is behind follows with the next pass, if anything is dirty. Otherwise none is due: this one, which
 * then finds nothing to write. Context: i_rwsem. */
static void record_follows(struct inode *inode)
{
    if (atomic_load(&inode->mapping.nrdirty) == 0 && inode_lags(inode))
        (void)filemap_fdatawrite(&inode->mapping, WB_SYNC_NONE); /* an error is the next fsync's */
}

int inode_truncate(struct inode *inode, uint64_t size)
{
    if (size > MAX_FILE_SIZE)
        return -EFBIG;
    down_write(&inode->i_rwsem);
    uint64_t old = atomic_load(&inode->mapping.i_size);
    int err = store_refuses(inode->fs->store); /* before a page is touched, which is read still */
    if (err == 0)
        err = resize_locked(inode, size);
    if (err == 0 && size < old && request_order() > inode->cut_order)
        inode->cut_order = request_order();
    if (err == 0)
        record_follows(inode);
    up_write(&inode->i_rwsem);
    return err;
}

int inode_trim_tail(struct inode *inode)
{
    struct address_space *m = &inode->mapping;
    struct update u;
    uint64_t size = atomic_load(&m->i_size);
    if (store_refuses(inode->fs->store) != 0)
        return 0; /* nothing beyond the size can be seen */
    if (pages_for(size) < OBJECT_BLOCKS) {
        update_init(&u, inode->fs->store);
        update_trim(&u, inode->data_id, pages_for(size), OBJECT_BLOCKS);
        int err = update_apply(&u, UPDATE_FREES, NULL);
        if (err != 0)
            return err;
    }
    if (size % PAGE_SIZE != 0) {
        int err = truncate_partial_page(m, size, pages_for(size) << PAGE_SHIFT);
        if (err == -EIO)
            return 0; /* a damaged block is its reader's business; the flag stays */
        if (err != 0)
            return err;
    }
    return filemap_fdatawrite(m, WB_SYNC_ALL); /* and the flag goes with its end */
}

void inode_delete_data(struct inode *inode, struct update *u)
{
    uint64_t blocks = 1;
    if (store_count_blocks(inode->fs->store, inode->data_id, &blocks) == 0 && blocks == 0)
        return; /* never written to: the common case of small files that did not live long */
    update_trim(u, inode->data_id, 0, OBJECT_BLOCKS);
}

/* ---- fallocate ------------------------------------------------------------------------------- */

static int zero_partial(struct address_space *m, uint64_t from, uint64_t to)
{
    return from < to ? truncate_partial_page(m, from, to) : 0;
}

/* Remove the whole pages [first, end) and their blocks: u trims them. Context: i_rwsem. */
static int punch_pages(struct inode *inode, uint64_t first, uint64_t end, struct update *u)
{
    struct address_space *m = &inode->mapping;
    uint64_t tid;
    down_write(&m->invalidate_lock);
    unsigned stayed = truncate_pages_begin(m, (uint32_t)first, (uint32_t)(end - 1));
    int err = update_apply(u, UPDATE_FREES, &tid);
    truncate_pages_end(m, (uint32_t)first, (uint32_t)(end - 1), stayed);
    up_write(&m->invalidate_lock);
    if (err == 0)
        inode_raise_tid(inode, tid);
    return err;
}

/* Zero [offset, offset+len): holes where whole pages are covered, zeros at the edges. Once pages go nothing but the
 * end of the store is in the way. */
static int punch(struct inode *inode, uint64_t offset, uint64_t len)
{
    struct address_space *m = &inode->mapping;
    struct update u;
    uint64_t end = offset + len, first = pages_for(offset), last = end >> PAGE_SHIFT;
    if (first > last) /* within one page */
        return zero_partial(m, offset, end);
    update_init(&u, inode->fs->store);
    if (first < last)
        update_trim(&u, inode->data_id, first, last);
    int err = u.error;
    if (err == 0)
        err = zero_partial(m, offset, first << PAGE_SHIFT);
    if (err == 0)
        err = zero_partial(m, last << PAGE_SHIFT, end);
    if (err == 0 && first < last)
        return punch_pages(inode, first, last, &u);
    update_abort(&u);
    return err;
}

/* Do not fill the volume to find out. */
static int find_room(struct inode *inode, uint64_t len)
{
    struct store_space space;
    store_space(inode->fs->store, &space);
    uint64_t have = 0;
    int err = store_count_blocks(inode->fs->store, inode->data_id, &have);
    return err == 0 && len > space.available + have * BLOCK_SIZE ? -ENOSPC : err;
}

/* The pages are there, dirty: the record follows with their pass. */
static int grow_over_allocated(struct inode *inode, uint64_t size)
{
    struct page *eof;
    int err = lock_eof_page(&inode->mapping, &eof);
    if (err == 0) {
        i_size_write(&inode->mapping, size);
        page_unlock_put(&inode->mapping, eof);
        i_size_reach(&inode->mapping, size);
    }
    return err;
}

/* What was set aside behind the end of file has its blocks by now; its pages would be in the way of who
 * touches a mapping there: see memfd.h. */
static void drop_beyond_eof(struct inode *inode)
{
    down_write(&inode->i_rwsem);
    uint64_t first = pages_for(atomic_load(&inode->mapping.i_size));
    if (first <= UINT32_MAX)
        (void)invalidate_inode_pages2_range(&inode->mapping, (uint32_t)first, UINT32_MAX);
    up_write(&inode->i_rwsem);
}

static int check_mode(const struct fallocation *f)
{
    int base = f->mode & ~FALLOC_FL_KEEP_SIZE;
    if ((base != 0 && base != FALLOC_FL_PUNCH_HOLE && base != FALLOC_FL_ZERO_RANGE) ||
        (base == FALLOC_FL_PUNCH_HOLE && !(f->mode & FALLOC_FL_KEEP_SIZE)))
        return -EOPNOTSUPP;
    if (f->len == 0)
        return -EINVAL;
    return f->offset > MAX_FILE_SIZE || f->len > MAX_FILE_SIZE - f->offset ? -EFBIG : 0;
}

/* copies_sem is for what makes bytes stale: whoever reads waits for it. */
static void lock_copies(const struct fallocation *f)
{
    if (f->stale != NULL)
        down_write(&f->file->inode->copies_sem);
    down_write(&f->file->inode->i_rwsem);
}

static void unlock_copies(const struct fallocation *f)
{
    up_write(&f->file->inode->i_rwsem);
    if (f->stale != NULL)
        up_write(&f->file->inode->copies_sem);
}

static int make_hole(struct fallocation *f)
{
    struct inode *inode = f->file->inode;
    lock_copies(f);
    int err = store_refuses(inode->fs->store); /* as for inode_truncate() */
    if (err == 0)
        err = punch(inode, f->offset, f->len);
    if (err == 0 && f->stale != NULL)
        stale_begin(inode, f->stale, f->offset, f->len, UINT64_MAX);
    unlock_copies(f);
    return err;
}

/* Returns 1, or -errno. */
static int fallocate_begin(struct fallocation *f)
{
    int err = check_mode(f);
    if (f->stale != NULL)
        f->stale->eof = UINT64_MAX;
    if (err == 0 && (f->mode & ~FALLOC_FL_KEEP_SIZE) != 0)
        err = make_hole(f);
    f->begun = true;
    f->next = f->offset >> PAGE_SHIFT;
    if (f->mode & FALLOC_FL_PUNCH_HOLE)
        f->next = UINT64_MAX;
    else if (err == 0)
        err = find_room(f->file->inode, f->len);
    return err == 0 ? 1 : err;
}

/* The pages from f->next to last. Returns 1, or -errno. */
static int set_aside(struct fallocation *f, uint64_t last)
{
    struct inode *inode = f->file->inode;
    uint64_t first = f->next;
    last = last - first < FALLOCATE_STEP ? last : first + FALLOCATE_STEP - 1;
    down_write(&inode->i_rwsem);
    int err = store_refuses(inode->fs->store);
    if (err == 0)
        err = filemap_allocate(&inode->mapping, (uint32_t)first, (uint32_t)last);
    up_write(&inode->i_rwsem);
    f->next = last + 1;
    return err == 0 ? 1 : err;
}

/* Context: i_rwsem; copies_sem if it grows, and f->stale is there. */
static int set_size(struct fallocation *f, bool grows)
{
    struct inode *inode = f->file->inode;
    uint64_t size = atomic_load(&inode->mapping.i_size), end = f->offset + f->len;
    int err = store_refuses(inode->fs->store);
    if (err == 0 && grows && end > size) {
        if (f->stale != NULL)
            stale_grows(inode, f->stale, f->offset, size);
        err = grow_over_allocated(inode, end);
    }
    if (err != 0)
        return err;
    struct timespec now = resize_time(inode);
    pthread_mutex_lock(&inode->i_lock);
    inode->ctime = inode->mtime = now;
    pthread_mutex_unlock(&inode->i_lock);
    return 0;
}

static int fallocate_end(struct fallocation *f)
{
    struct inode *inode = f->file->inode;
    bool grows = !(f->mode & FALLOC_FL_KEEP_SIZE) &&
                 f->offset + f->len > atomic_load(&inode->mapping.i_size);
    if (grows)
        lock_copies(f);
    else
        down_write(&inode->i_rwsem);
    int err = set_size(f, grows);
    if (grows)
        unlock_copies(f);
    else
        up_write(&inode->i_rwsem);
    if (err != 0)
        return err;
    /* Size and times follow. What cannot be written now stays dirty, which fsync will tell: it has
     * been done, and the kernel, which would keep its size after an error, must know. */
    (void)inode_write_back(inode);
    if (atomic_load(&inode->mapping.memfd) != NULL)
        drop_beyond_eof(inode);
    return 0;
}

/* What is written back where a hole was made counts, if all that comes of it is an error. */
static int fallocate_fail(struct fallocation *f, int err)
{
    if (f->stale != NULL)
        stale_end(f->file->inode, f->stale);
    return err;
}

int file_fallocate_step(struct fallocation *f)
{
    uint64_t last = (f->offset + f->len - 1) >> PAGE_SHIFT;
    int err;
    if (!f->begun)
        err = fallocate_begin(f);
    else
        err = f->next <= last ? set_aside(f, last) : fallocate_end(f);
    return err < 0 ? fallocate_fail(f, err) : err;
}

int file_fallocate(struct open_file *file, int mode, uint64_t offset, uint64_t len,
                   struct stale *stale)
{
    struct fallocation f = {
        .file = file, .mode = mode, .offset = offset, .len = len, .stale = stale
    };
    int err;
    while ((err = file_fallocate_step(&f)) > 0)
        balance_dirty_pages_ratelimited(file->inode->fs->cache, FALLOCATE_STEP);
    return err;
}

/* ---- holes ----------------------------------------------------------------------------------- */

int file_lseek(struct open_file *file, uint64_t offset, int whence, uint64_t *out)
{
    struct inode *inode = file->inode;
    uint64_t size = atomic_load(&inode->mapping.i_size), found;
    if (whence != SEEK_DATA && whence != SEEK_HOLE)
        return -EINVAL;
    if (offset >= size)
        return -ENXIO;
    /* What is dirty has no block yet: give it one. */
    int err = inode_write_back(inode);
    if (err == 0)
        err = store_seek_block(inode->fs->store, inode->data_id, offset >> PAGE_SHIFT,
                               pages_for(size), whence == SEEK_DATA, &found);
    if (err != 0)
        return err;
    uint64_t at = found << PAGE_SHIFT;
    if (whence == SEEK_DATA && found >= pages_for(size))
        return -ENXIO;
    at = at > offset ? at : offset;
    *out = at < size ? at : size;
    return 0;
}
