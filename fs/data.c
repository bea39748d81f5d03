/* data.c: opening, reading and writing files. */
#include "fs/data.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>

#include "fs/names.h"

#define COPY_BUFFER (256u << 10) /* bytes copied at a time by file_copy_range */

int file_open(struct inode *inode, int flags, struct open_file **out)
{
    bool writes = (flags & O_ACCMODE) != O_RDONLY;
    if ((writes || (flags & O_TRUNC)) && inode->fs->options.read_only)
        return -EROFS;
    struct open_file *file = calloc(1, sizeof *file);
    if (file == NULL)
        return -ENOMEM;
    int err = (flags & O_TRUNC) ? inode_truncate(inode, 0) : 0;
    if (err != 0) {
        free(file);
        return err;
    }
    inode_ref(inode, 1);
    file->inode = inode;
    file->flags = flags;
    file_ra_state_init(&file->ra, __atomic_load_n(&inode->fs->options.readahead, __ATOMIC_RELAXED),
                       inode->fs->options.ra_pages != 0 ? inode->fs->options.ra_pages
                                                        : RA_DEFAULT_PAGES);
    atomic_store(&file->wb_err, atomic_load(&inode->mapping.wb_err));
    atomic_store(&file->store_err, store_error_seq(inode->fs->store));
    pthread_mutex_lock(&inode->i_lock);
    inode->open_writers += writes;
    pthread_mutex_unlock(&inode->i_lock);
    *out = file;
    return 0;
}

void file_release(struct open_file *file)
{
    struct inode *inode = file->inode;
    pthread_mutex_lock(&inode->i_lock);
    inode->open_writers -= (file->flags & O_ACCMODE) != O_RDONLY;
    pthread_mutex_unlock(&inode->i_lock);
    free(file);
    inode_put(inode, 1);
}

ssize_t file_read(struct open_file *file, uint64_t offset, void *buf, size_t len)
{
    fs_count(file->inode->fs, FS_READS);
    inode_touch_atime(file->inode);
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
    inode_touch_atime(file->inode);
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

static ssize_t write_locked(struct inode *inode, uint64_t offset, const void *buf, size_t len,
                            unsigned flags)
{
    down_write(&inode->i_rwsem);
    if (flags & WRITE_APPEND)
        offset = atomic_load(&inode->mapping.i_size);
    ssize_t n = filemap_write(&inode->mapping, offset, buf, len);
    if (n > 0 && !(flags & WRITE_KEEP_TIMES))
        set_times(inode);
    up_write(&inode->i_rwsem);
    return n;
}

/* Promises are estimates on the safe side: put everything dirty into a commit, and what is really
 * free shows. */
static void make_room(struct fs *fs)
{
    page_cache_sync(fs->cache);
    store_commit(fs->store, store_tid(fs->store));
}

static ssize_t write_or_make_room(struct inode *inode, uint64_t offset, const void *buf, size_t len,
                                  unsigned flags)
{
    ssize_t n = write_locked(inode, offset, buf, len, flags);
    if (n == -ENOSPC) {
        make_room(inode->fs);
        n = write_locked(inode, offset, buf, len, flags);
    }
    return n;
}

ssize_t file_write(struct open_file *file, uint64_t offset, const void *buf, size_t len,
                   unsigned flags)
{
    struct inode *inode = file->inode;
    fs_count(inode->fs, FS_WRITES);
    if (flags & WRITE_KILL_PRIV) {
        int err = inode_setattr(inode, NULL, SETATTR_KILL_PRIV);
        if (err != 0)
            return err;
    }
    ssize_t n = write_or_make_room(inode, offset, buf, len, flags);
    if (!(flags & WRITE_CACHED) || n < 0)
        return n;
    /* The kernel takes a short answer to what it writes back for a whole one: go on, to the end or
     * to the error. */
    for (size_t done = (size_t)n; done < len; done += (size_t)n) {
        n = write_or_make_room(inode, offset + done, (const char *)buf + done, len - done, flags);
        if (n <= 0)
            return n < 0 ? n : -EIO;
    }
    return (ssize_t)len;
}

ssize_t file_copy_range(struct open_file *in, uint64_t in_off, struct open_file *out,
                        uint64_t out_off, size_t len)
{
    char *buf = malloc(COPY_BUFFER);
    size_t done = 0;
    ssize_t n = 0;
    if (buf == NULL)
        return -ENOMEM;
    while (done < len) {
        size_t want = len - done < COPY_BUFFER ? len - done : COPY_BUFFER;
        n = file_read(in, in_off + done, buf, want);
        if (n > 0)
            n = file_write(out, out_off + done, buf, (size_t)n, 0);
        if (n <= 0)
            break;
        done += (size_t)n;
        balance_dirty_pages(out->inode->fs->cache);
    }
    free(buf);
    return done > 0 || n >= 0 ? (ssize_t)done : n;
}
