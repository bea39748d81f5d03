/* data.c: opening, reading and writing files. */
#include "fs/data.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdlib.h>

#include "cache/clock.h"
#include "cache/errseq.h"
#include "cache/memfd.h"
#include "fs/names.h"

#define MEMORY_QUIET_NS 1000000000u /* a shortage is over when nobody has noticed it for so long */

/* ---- readahead -------------------------------------------------------------------------------- */

static void merge_readahead(struct readahead *to, const struct readahead *ra)
{
    if (ra->policy != NULL)
        __atomic_store_n(&to->policy, ra->policy, __ATOMIC_RELAXED);
    if (ra->pages != 0)
        __atomic_store_n(&to->pages, ra->pages, __ATOMIC_RELAXED);
}

/* Context: i_lock. */
static struct readahead choose_readahead(struct inode *inode)
{
    const struct readahead *volume = &inode->fs->options.readahead;
    struct readahead ra = { .policy = __atomic_load_n(&volume->policy, __ATOMIC_RELAXED),
                            .pages = __atomic_load_n(&volume->pages, __ATOMIC_RELAXED) };
    merge_readahead(&ra, &inode->readahead);
    return ra;
}

/* Context: i_lock. */
static void tell_open_files(struct inode *inode)
{
    struct readahead ra = choose_readahead(inode);
    for (struct list_head *l = inode->open_files.next; l != &inode->open_files; l = l->next)
        file_ra_set(&list_entry(l, struct open_file, open_files)->ra, ra.policy, ra.pages);
}

void inode_set_ra_policy(struct inode *inode, const struct ra_policy *policy)
{
    pthread_mutex_lock(&inode->i_lock);
    inode->readahead.policy = policy;
    tell_open_files(inode);
    pthread_mutex_unlock(&inode->i_lock);
}

void inode_set_ra_pages(struct inode *inode, uint32_t pages)
{
    pthread_mutex_lock(&inode->i_lock);
    inode->readahead.pages = pages;
    tell_open_files(inode);
    pthread_mutex_unlock(&inode->i_lock);
}

struct readahead inode_readahead(struct inode *inode)
{
    pthread_mutex_lock(&inode->i_lock);
    struct readahead ra = choose_readahead(inode);
    pthread_mutex_unlock(&inode->i_lock);
    return ra;
}

/* A file that is being opened either has its inode in the list, or has seen the volume's new choice:
 * its reference was taken under the table's lock, before the list was made or after. */
int fs_set_readahead(struct fs *fs, const struct readahead *ra)
{
    struct inode **inodes;
    merge_readahead(&fs->options.readahead, ra);
    ssize_t nr = inode_list_used(fs, &inodes);
    if (nr < 0)
        return (int)nr;
    for (ssize_t i = 0; i < nr; i++) {
        pthread_mutex_lock(&inodes[i]->i_lock);
        tell_open_files(inodes[i]);
        pthread_mutex_unlock(&inodes[i]->i_lock);
        inode_put(inodes[i], 1);
    }
    free(inodes);
    return 0;
}

/* ---- opening ---------------------------------------------------------------------------------- */

struct open_file *file_alloc(void)
{
    return calloc(1, sizeof(struct open_file));
}

int file_open(struct inode *inode, int flags, struct open_file **out)
{
    if (((flags & O_ACCMODE) != O_RDONLY || (flags & O_TRUNC)) && inode->fs->options.read_only)
        return -EROFS;
    struct open_file *file = file_alloc();
    if (file == NULL)
        return -ENOMEM;
    int err = (flags & O_TRUNC) ? inode_truncate(inode, 0) : 0;
    if (err != 0) {
        free(file);
        return err;
    }
    file_start(file, inode, flags);
    *out = file;
    return 0;
}

void file_start(struct open_file *file, struct inode *inode, int flags)
{
    bool writes = (flags & O_ACCMODE) != O_RDONLY;
    inode_ref(inode, 1);
    file->inode = inode;
    file->flags = flags;
    atomic_store(&file->wb_err, errseq_sample(&inode->mapping.wb_err));
    atomic_store(&file->store_err, store_error_seq(inode->fs->store));
    pthread_mutex_lock(&inode->i_lock);
    struct readahead ra = choose_readahead(inode);
    file_ra_state_init(&file->ra, ra.policy, ra.pages);
    list_add_tail(&file->open_files, &inode->open_files);
    inode->open_writers += writes;
    stale_opened(file);
    pthread_mutex_unlock(&inode->i_lock);
}

bool inode_has_writers(struct inode *inode)
{
    pthread_mutex_lock(&inode->i_lock);
    bool writers = inode->open_writers > 0;
    pthread_mutex_unlock(&inode->i_lock);
    return writers;
}

void file_release(struct open_file *file)
{
    struct inode *inode = file->inode;
    pthread_mutex_lock(&inode->i_lock);
    list_del(&file->open_files);
    inode->open_writers -= (file->flags & O_ACCMODE) != O_RDONLY;
    pthread_mutex_unlock(&inode->i_lock);
    free(file);
    inode_put(inode, 1);
}

void file_release_all(struct fs *fs)
{
    struct inode **inodes;
    ssize_t nr = inode_list_used(fs, &inodes);
    for (ssize_t i = 0; i < nr; i++) {
        struct list_head *files = &inodes[i]->open_files;
        for (struct list_head *l = files->next, *next; l != files; l = next) {
            next = l->next;
            file_release(list_entry(l, struct open_file, open_files));
        }
        inode_put(inodes[i], 1);
    }
    if (nr >= 0)
        free(inodes);
}

/* ---- attaching -------------------------------------------------------------------------------- */

/* What the kernel cached of it before is not to hide what is stored from now on: so another caller's
 * memfd is not enough, before the kernel has forgotten. Each asks it, rather than wait for the other. */
int inode_share_pages(struct inode *inode)
{
    const struct fs_options *o = &inode->fs->options;
    if (atomic_load(&inode->shared))
        return mapping_use_memfd(&inode->mapping);
    down_write(&inode->i_rwsem);
    int err = mapping_use_memfd(&inode->mapping);
    up_write(&inode->i_rwsem);
    if (err == 0 && o->forget_front != NULL) {
        err = o->forget_front(o->front, inode->ino);
        if (err != 0)
            mapping_unuse_memfd(&inode->mapping);
    }
    if (err == 0)
        atomic_store(&inode->shared, true);
    return err;
}

/* ---- reading ---------------------------------------------------------------------------------- */

static void touch_atime(struct open_file *file)
{
    if (!atomic_load(&file->noatime))
        inode_touch_atime(file->inode);
}

ssize_t file_read(struct open_file *file, uint64_t offset, void *buf, size_t len)
{
    fs_count(file->inode->fs, FS_READS);
    touch_atime(file);
    return filemap_read(&file->inode->mapping, &file->ra, offset, buf, len);
}

ssize_t file_get_pages(struct open_file *file, uint64_t offset, size_t *len, struct page **pages,
                       size_t max)
{
    struct address_space *m = &file->inode->mapping;
    uint64_t size = atomic_load(&m->i_size);
    size_t want = offset >= size ? 0 : *len < size - offset ? *len : (size_t)(size - offset);
    uint32_t first = (uint32_t)(offset >> PAGE_SHIFT);
    size_t nr = want == 0 ? 0 : (size_t)((offset + want - 1) >> PAGE_SHIFT) - first + 1, n = 0;
    int err = 0;
    fs_count(file->inode->fs, FS_READS);
    touch_atime(file);
    nr = nr < max ? nr : max;
    while (n < nr && (err = filemap_get_page(m, &file->ra, first + (uint32_t)n, (uint32_t)(nr - n),
                                             &pages[n])) == 0)
        n++;
    if (err < 0) {
        /* Not the good pages before it: the kernel takes a short answer for the end of file and,
         * where it caches, reads zeros from there on. */
        while (n > 0)
            put_page(m->cache, pages[--n]);
        return err;
    }
    uint64_t end = ((uint64_t)first + n) << PAGE_SHIFT;
    if (n == 0)
        want = 0;
    else if (offset + want > end)
        want = (size_t)(end - offset);
    *len = want;
    return (ssize_t)n;
}

/* ---- writing --------------------------------------------------------------------------------- */

static void set_times(struct inode *inode)
{
    struct timespec now = fs_now();
    pthread_mutex_lock(&inode->i_lock);
    inode->mtime = inode->ctime = now;
    pthread_mutex_unlock(&inode->i_lock);
}

struct write {
    struct open_file *file;
    unsigned flags;
    struct stale *stale; /* around copies that somebody may have; or NULL */
};

static _Thread_local uint64_t current_order;

void request_order_set(uint64_t order)
{
    current_order = order;
}

uint64_t request_order(void)
{
    return current_order;
}

/* How much of it is not gone, as the file was cut since it was sent? Context: i_rwsem. */
static size_t not_cut(const struct write *w, uint64_t offset, size_t len)
{
    const struct inode *inode = w->file->inode;
    uint64_t order = request_order(), eof = atomic_load(&inode->mapping.i_size);
    if (order == 0 || order >= inode->cut_order || (w->flags & WRITE_CACHED) || offset + len <= eof)
        return len;
    return offset < eof ? (size_t)(eof - offset) : 0;
}

/* Context: i_rwsem; copies_sem with WRITE_AROUND, exclusively if w->stale is there. */
static ssize_t write_page_cache(const struct write *w, uint64_t offset, const void *buf, size_t len)
{
    struct inode *inode = w->file->inode;
    uint64_t eof = atomic_load(&inode->mapping.i_size);
    bool is_stale = false, copied = false;
    if ((w->flags & WRITE_AROUND) && w->stale == NULL && stale_is_possible(w->file, offset))
        return -EAGAIN;
    if (w->flags & WRITE_CACHED)
        len = stale_piece(inode, offset, len, &is_stale);
    if (w->stale != NULL) {
        copied = stale_is_copied(inode, offset, &len);
        stale_begin(inode, w->stale, offset, 0, len > 0 && offset + len > eof ? eof : UINT64_MAX);
    }
    ssize_t n =
        is_stale || len == 0 ? (ssize_t)len : filemap_write(&inode->mapping, offset, buf, len);
    if (n > 0 && !(w->flags & WRITE_KEEP_TIMES))
        set_times(inode);
    if (n > 0 && copied)
        stale_begin(inode, w->stale, offset, (uint64_t)n, UINT64_MAX);
    return n;
}

/* May be short with WRITE_CACHED, and around copies. */
static ssize_t write_locked(const struct write *w, uint64_t offset, const void *buf, size_t len)
{
    struct inode *inode = w->file->inode;
    bool around = w->flags & WRITE_AROUND;
    if (w->stale != NULL)
        down_write(&inode->copies_sem);
    else if (around)
        down_read(&inode->copies_sem);
    down_write(&inode->i_rwsem);
    size_t rest = not_cut(w, offset, len);
    ssize_t n = write_page_cache(w, offset, buf, rest);
    if (n == (ssize_t)rest)
        n = (ssize_t)len;
    up_write(&inode->i_rwsem);
    if (w->stale != NULL)
        up_write(&inode->copies_sem);
    else if (around)
        up_read(&inode->copies_sem);
    return n;
}

void fs_make_room(struct fs *fs)
{
    page_cache_sync(fs->cache);
    store_make_room(fs->store);
}

static ssize_t write_or_make_room(const struct write *w, uint64_t offset, const void *buf,
                                  size_t len)
{
    ssize_t n = write_locked(w, offset, buf, len);
    if (n == -ENOSPC) {
        fs_make_room(w->file->inode->fs);
        n = write_locked(w, offset, buf, len);
    }
    return n;
}

/* What came short may have met the end of the room, of which more can be made; what comes of the rest tells. */
static ssize_t write_on(const struct write *w, uint64_t offset, const char *buf, size_t len)
{
    size_t done = 0;
    ssize_t n = 0;
    while (done < len && (n = write_or_make_room(w, offset + done, buf + done, len - done)) > 0)
        done += (size_t)n;
    return done > 0 ? (ssize_t)done : n;
}

/* Wait for memory a moment, MEMORY_MOST_NS of a shortage in all: also of those who come later, for they keep threads
 * from what may free some.   Returns false: it has lasted longer. */
static bool wait_for_memory(struct fs *fs)
{
    uint64_t now = clock_now(&clock_monotonic);
    if (now > atomic_exchange(&fs->short_last_ns, now) + MEMORY_QUIET_NS)
        atomic_store(&fs->short_since_ns, now);
    if (now > atomic_load(&fs->short_since_ns) + MEMORY_MOST_NS)
        return false;
    (void)poll(NULL, 0, MEMORY_WAIT_MS);
    return true;
}

/* What the kernel writes back. It takes a short answer for a whole one, and what it cannot write it drops: go on, to
 * the end or to the error; where memory is short, after a while. */
static ssize_t write_all(const struct write *w, uint64_t offset, const char *buf, size_t len)
{
    for (size_t done = 0; done < len;) {
        ssize_t n = write_or_make_room(w, offset + done, buf + done, len - done);
        if (n > 0)
            done += (size_t)n;
        else if (n != -ENOMEM || !wait_for_memory(w->file->inode->fs))
            return n < 0 ? n : -EIO;
    }
    return (ssize_t)len;
}

ssize_t file_write_around(struct open_file *file, uint64_t offset, const void *buf, size_t len,
                          unsigned flags, struct stale *stale)
{
    struct write w = { .file = file, .flags = flags, .stale = stale };
    if (flags & WRITE_KILL_PRIV) {
        int err = inode_setattr(file->inode, NULL, SETATTR_KILL_PRIV);
        if (err != 0)
            return err;
    }
    ssize_t n = flags & WRITE_CACHED ? write_all(&w, offset, buf, len)
                : stale != NULL      ? write_or_make_room(&w, offset, buf, len)
                                     : write_on(&w, offset, buf, len);
    if (n != -EAGAIN)
        fs_count(file->inode->fs, FS_WRITES);
    return n;
}

ssize_t file_write(struct open_file *file, uint64_t offset, const void *buf, size_t len,
                   unsigned flags)
{
    return file_write_around(file, offset, buf, len, flags, NULL);
}
