#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include "cache/memory.h"
#include "fs/daemon.h"
#include "fs/data.h"
#include "fs/fuse_ops.h"

#define READ_MAX_PAGES (FRONT_MAX_IO / PAGE_SIZE + 1) /* one more when the offset is odd */

static struct open_file *open_file_of(const struct fuse_file_info *fi)
{
    return (struct open_file *)(uintptr_t)fi->fh;
}

/* ---- opening --------------------------------------------------------------------------------- */

/* When the kernel caches writes it reads around them, through descriptors opened for writing only,
 * and it has put an appending write at the end of file before we see it. */
static int open_flags(const struct front *front, int flags)
{
    flags &= ~WIRE_KILL_PRIV;
    if (!front->kernel_cache)
        return flags;
    if ((flags & O_ACCMODE) == O_WRONLY)
        flags = (flags & ~O_ACCMODE) | O_RDWR;
    return flags & ~O_APPEND;
}

/* Where no write may wait in the kernel it is sent around the kernel's cache. Through it (and then to us) will not do:
 * the kernel knows the new size only when we have answered, and what it writes back of a mapping meanwhile it first
 * makes zeros behind the old one, in its copy (Linux 6.16: iomap_writeback_handle_eof). */
static bool goes_around(const struct front *front, const struct open_file *file, int flags)
{
    if (!front->options.kernel_cache || atomic_load(&file->inode->mapping.memfd) != NULL)
        return true;
    return !front->kernel_cache && (flags & O_ACCMODE) != O_RDONLY &&
           wire_agreed(&front->wire, WIRE_DIRECT_IO_ALLOW_MMAP);
}

/* What the reply says: data never changes behind the kernel's back, so what it has cached stays good. */
static void fill_open(const struct front *front, struct open_file *file, struct fuse_file_info *fi)
{
    file->only_writes = (fi->flags & O_ACCMODE) == O_WRONLY;
    fi->fh = (uint64_t)(uintptr_t)file;
    fi->keep_cache = 1;
    fi->direct_io = goes_around(front, file, fi->flags);
    fi->noflush = (fi->flags & O_ACCMODE) == O_RDONLY;
}

/* Whoever hands over what writers have stored, at the end, may not see this one. */
static bool comes_too_late(const struct front *front, const struct fuse_file_info *fi)
{
    return (fi->flags & O_ACCMODE) != O_RDONLY && atomic_load(&front->closing);
}

/* Open for fi->flags, and fill them. */
static int open_inode(fuse_req_t req, struct inode *inode, struct fuse_file_info *fi)
{
    struct front *front = front_of(req);
    struct open_file *file;
    if (comes_too_late(front, fi)) /* before anything is cut */
        return -EIO;
    if ((fi->flags & O_TRUNC) != 0 && write_kills_privilege(req, fi)) {
        int err = drop_privilege(req, inode);
        if (err != 0)
            return err;
    }
    if ((fi->flags & O_TRUNC) != 0 && atomic_load(&inode->mapping.i_size) > 0)
        room_note_free(front);
    int err = file_open(inode, open_flags(front, fi->flags), &file);
    if (err != 0)
        return err;
    if (comes_too_late(front, fi)) {
        file_release(file);
        return -EIO;
    }
    fill_open(front, file, fi);
    if ((fi->flags & O_ACCMODE) != O_RDONLY)
        attributes_end(front, inode);
    if (file->only_writes && room_is_short(front))
        forget_attributes(req, inode); /* so that its first write asks */
    return 0;
}

void op_open(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
    struct inode *inode;
    int err = inode_get(front_of(req)->fs, ino, &inode);
    if (err == 0) {
        err = open_inode(req, inode, fi);
        inode_put(inode, 1);
    }
    if (err != 0)
        reply_status(req, err);
    else if (fuse_reply_open(req, fi) != 0)
        file_release(open_file_of(fi));
}

/* Takes over the file, and a reference of the inode. */
static void reply_create(fuse_req_t req, struct inode *inode, struct open_file *file,
                         struct fuse_file_info *fi)
{
    struct front *front = front_of(req);
    struct fuse_entry_param e;
    file_start(file, inode, open_flags(front, fi->flags) & ~O_TRUNC);
    (void)room_is_short(front); /* so that its first write asks */
    fill_new_entry(inode, &e);
    fill_open(front, file, fi);
    if (fuse_reply_create(req, &e, fi) == 0)
        return;
    file_release(file);
    inode_put(inode, 1);
}

/* Once the name is there nothing may fail any more: the kernel would go on believing that there is none. */
void op_create(fuse_req_t req, fuse_ino_t parent, const char *name, mode_t mode,
               struct fuse_file_info *fi)
{
    struct fs *fs = front_of(req)->fs;
    struct cred cred = request_cred(req);
    struct inode *dir, *inode;
    struct open_file *file = file_alloc();
    int err = file != NULL ? inode_get(fs, parent, &dir) : -ENOMEM;
    if (err == 0) {
        err = dir_mknod(dir, name, S_IFREG | (mode & ~(mode_t)S_IFMT), 0, &cred, &inode);
        inode_put(dir, 1);
    }
    if (err == 0) {
        reply_create(req, inode, file, fi);
    } else {
        free(file);
        reply_status(req, err);
    }
}

/* close(2) has nothing to wait for: by now the kernel has sent what it cached of the file, and errors
 * of writing are fsync's to report, as on a local file system. ENOSYS says so once, and saves a
 * round trip for every later close. */
void op_flush(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
    (void)ino;
    (void)fi;
    reply_status(req, -ENOSYS);
}

/* The last descriptor and mapping are gone. */
void op_release(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
    (void)ino;
    file_release(open_file_of(fi));
    reply_status(req, 0);
}

void op_fsync(fuse_req_t req, fuse_ino_t ino, int datasync, struct fuse_file_info *fi)
{
    (void)datasync; /* one record carries size and times: there is nothing to leave out */
    (void)ino;
    int err = file_fsync(open_file_of(fi));
    attributes_synced(front_of(req), open_file_of(fi)->inode);
    reply_status(req, err);
}

/* ---- reading and writing --------------------------------------------------------------------- */

/* The pages as they lie in the cache, as the reply's vector. */
static void reply_pages(fuse_req_t req, struct page **pages, size_t nr, uint64_t offset, size_t len)
{
    struct iovec iov[READ_MAX_PAGES];
    size_t skip = offset % PAGE_SIZE;
    for (size_t i = 0; i < nr; i++) {
        size_t n = PAGE_SIZE - skip < len ? PAGE_SIZE - skip : len;
        iov[i].iov_base = (char *)page_address(pages[i]) + skip;
        iov[i].iov_len = n;
        len -= n;
        skip = 0;
    }
    fuse_reply_iov(req, iov, (int)nr);
}

/* Reads and writes that bypass the kernel's cache name an owner; what it keeps a copy of does not. */
static bool kernel_keeps(const struct fuse_file_info *fi)
{
    return fi->lock_owner == 0;
}

/* Reads and writes around its cache must mind what copies it has: not where files are attached, which is
 * minded otherwise, nor with O_DIRECT where writes may wait in the kernel, as open(2) says. */
static bool is_around(const struct front *front, const struct fuse_file_info *fi)
{
    return !front->kernel_cache && !kernel_keeps(fi) && !fi->writepage &&
           atomic_load(&open_file_of(fi)->inode->mapping.memfd) == NULL;
}

static void let_go(struct front *front, size_t size)
{
    atomic_fetch_sub(&front->held_bytes, size);
    atomic_fetch_sub(&front->held, 1);
}

/* May a read or write of so many bytes wait, until it is let go? Where not, nothing is made sure of: it is answered as
 * if there were no copies. */
static bool may_hold(struct front *front, size_t size)
{
    unsigned nr = atomic_fetch_add(&front->held, 1);
    uint64_t bytes = atomic_fetch_add(&front->held_bytes, size);
    if (nr < front->held_most && bytes + size <= front->options.held_bytes)
        return true;
    let_go(front, size);
    return false;
}

struct read_job {
    struct notify_job job; /* first */
    size_t len;
    char buf[];
};

static void read_run(struct notify_job *job)
{
    struct read_job *r = (struct read_job *)job;
    let_go(front_of(job->req), r->len);
    if (job->kept)
        fuse_reply_none(job->req);
    else
        fuse_reply_buf(job->req, r->buf, r->len);
    free(r);
}

/* Not before the kernel's copies are gone.   Returns 0; -EBUSY: it may not wait; -ENOMEM. Context: front_may_wait(). */
static int reply_pages_later(fuse_req_t req, const struct inode *inode, struct page **pages,
                             uint64_t offset, size_t len)
{
    struct front *front = front_of(req);
    if (!may_hold(front, len))
        return -EBUSY;
    struct read_job *r = malloc(sizeof *r + len);
    if (r == NULL) {
        let_go(front, len);
        return -ENOMEM;
    }
    *r = (struct read_job){ .len = len };
    r->job = (struct notify_job){
        .req = req, .flush = inode->ino, .offset = offset, .len = len, .run = read_run
    };
    size_t skip = offset % PAGE_SIZE;
    for (size_t done = 0, n; done < len; done += n, skip = 0, pages++) {
        n = PAGE_SIZE - skip < len - done ? PAGE_SIZE - skip : len - done;
        memcpy(r->buf + done, (char *)page_address(*pages) + skip, n);
    }
    notifier_add(front, &r->job);
    return 0;
}

enum reply { REPLY_NOW, REPLY_LATER, REPLY_LENT };

static void read_and_reply(fuse_req_t req, struct open_file *file, uint64_t off, size_t len,
                           enum reply reply)
{
    struct front *front = front_of(req);
    struct inode *inode = file->inode;
    struct page *pages[READ_MAX_PAGES];
    ssize_t nr = file_get_pages(file, off, &len, pages, READ_MAX_PAGES);
    int err = nr < 0 ? (int)nr : 0;
    if (reply == REPLY_LENT && err == 0)
        err = lend_pages(front, inode, pages, (size_t)nr);
    if (reply == REPLY_LATER && err == 0) {
        err = reply_pages_later(req, inode, pages, off, len);
        if (err == -EBUSY) {
            reply = REPLY_NOW;
            err = 0;
        }
    }
    if (err != 0)
        reply_status(req, err);
    else if (reply != REPLY_LATER)
        reply_pages(req, pages, (size_t)nr, off, len);
    for (ssize_t i = 0; i < nr; i++)
        put_page(front->fs->cache, pages[i]);
}

/* Returns false: what it reads is stale, and it may not wait. */
static bool read_around(fuse_req_t req, struct open_file *file, uint64_t off, size_t len,
                        bool may_wait)
{
    struct inode *inode = file->inode;
    inode_ref(inode, 1); /* whoever has the reply may close the file */
    down_read(&inode->copies_sem);
    uint64_t size = stale_size(inode, UINT64_MAX);
    len = off >= size ? 0 : len < size - off ? len : (size_t)(size - off);
    bool stale = stale_covers(inode, off, len);
    if (!stale || may_wait)
        read_and_reply(req, file, off, len, stale ? REPLY_LATER : REPLY_NOW);
    up_read(&inode->copies_sem);
    inode_put(inode, 1);
    return !stale || may_wait;
}

/* Into the kernel's cache. */
static void read_copy(fuse_req_t req, struct open_file *file, uint64_t off, size_t len)
{
    struct inode *inode = file->inode;
    inode_ref(inode, 1); /* whoever has the reply may close the file */
    int err = stale_give(inode, off, len);
    if (err != 0) {
        reply_status(req, err);
    } else if (atomic_load(&inode->mapping.memfd) != NULL) {
        stale_gave(inode);
        read_and_reply(req, file, off, len, REPLY_LENT);
    } else {
        read_and_reply(req, file, off, len, REPLY_NOW);
        stale_gave(inode);
    }
    inode_put(inode, 1);
}

void op_read(fuse_req_t req, fuse_ino_t ino, size_t size, off_t off, struct fuse_file_info *fi)
{
    (void)ino;
    struct front *front = front_of(req);
    struct open_file *file = open_file_of(fi);
    size_t len = size < FRONT_MAX_IO ? size : FRONT_MAX_IO;
    atomic_store(&file->noatime, (fi->flags & O_NOATIME) != 0);
    if (kernel_keeps(fi) && atomic_load(&front->closing))
        reply_status(req, -EIO);
    else if (kernel_keeps(fi))
        read_copy(req, file, (uint64_t)off, len);
    else if (!is_around(front, fi))
        read_and_reply(req, file, (uint64_t)off, len, REPLY_NOW);
    else if (!read_around(req, file, (uint64_t)off, len, false)) {
        if (front_may_wait(front))
            (void)read_around(req, file, (uint64_t)off, len, true);
        else
            reply_status(req, -ENOMEM);
    }
}

/* The kernel syncs by itself what goes through its cache. A write around that it leaves to us, and says so: by the
 * descriptor's flags, and by those of the one write (RWF_DSYNC) or of the mount (-o sync). */
static bool is_synchronous(const struct fuse_file_info *fi)
{
    return (fi->flags & O_DSYNC) != 0 && !fi->writepage && !kernel_keeps(fi);
}

/* fi is that of the writer's own descriptor, except for what the kernel writes back: that comes
 * through any descriptor open for writing. Where an append goes the kernel knows: one comes at a time, and with
 * RWF_NOAPPEND it goes elsewhere. */
static unsigned decode_write(const struct front *front, const struct fuse_file_info *fi)
{
    if (fi->writepage) /* a direct mount's mappings: their times are ours */
        return front->kernel_cache ? WRITE_CACHED | WRITE_KEEP_TIMES : WRITE_CACHED;
    return (is_around(front, fi) ? WRITE_AROUND : 0) | (is_synchronous(fi) ? WRITE_SYNC : 0);
}

static int drop_before_write(fuse_req_t req, struct inode *inode, const struct fuse_file_info *fi)
{
    if (fi->writepage)
        return 0;
    int err = drop_capability(req, inode);
    return err == 0 && write_kills_privilege(req, fi) ? drop_privilege(req, inode) : err;
}

/* The kernel writes back what its mappings (or its cached writes) dirtied. Where others have attached the
 * file it may just have overwritten their stores: nobody can know, so it is said. */
static void note_kernel_write(struct front *front, struct inode *inode, size_t size)
{
    page_cache_count_mkwrite(front->fs->cache, pages_for(size));
    if (atomic_load(&inode->mapping.memfd) == NULL || atomic_load(&inode->mapping.nr_vmas) == 0)
        return;
    fs_count(front->fs, FS_MIXED_WRITES);
    if (!atomic_exchange(&inode->mixed, true))
        daemon_say(
            "inode %llu: stored to through a kernel mapping and an attached one: stores to the "
            "same page may overwrite each other",
            (unsigned long long)inode->ino);
}

/* The kernel drops what it could not hand over; its fsync, if somebody asks for one, fails. */
static void note_lost_write(struct front *front, struct inode *inode, int err)
{
    fs_count(front->fs, FS_LOST_WRITES);
    if (!atomic_exchange(&inode->lost, true))
        daemon_say("inode %llu: what the kernel had of it was not written, and is lost: %s",
                   (unsigned long long)inode->ino, strerror(-err));
}

struct unsynced_job {
    struct notify_job job;  /* first */
    struct open_file *file; /* stays open while its request is unanswered */
    uint64_t end;
    int err;
};

/* It has been done, but is not durable. Of an error the kernel thinks that nothing was done: it is told of the longer
 * file. Context: front_tell_size(). */
static void tell_size(struct front *front, const struct inode *inode, uint64_t size)
{
    if (size > 0 && atomic_load(&inode->mapping.i_size) >= size)
        front_tell_size(front, inode->ino, size);
}

static int sync_or_tell_size(struct front *front, struct open_file *file, uint64_t size)
{
    int err = file_fsync(file);
    if (err != 0)
        tell_size(front, file->inode, size);
    return err;
}

static void unsynced_run(struct notify_job *job)
{
    struct unsynced_job *u = (struct unsynced_job *)job;
    tell_size(front_of(job->req), u->file->inode, u->end);
    reply_status(job->req, u->err);
    free(u);
}

/* On this thread, as fsync; without memory the kernel is not told. */
static void sync_and_reply(fuse_req_t req, struct open_file *file, uint64_t offset, size_t written)
{
    struct front *front = front_of(req);
    int err = file_fsync(file);
    struct unsynced_job *u = err != 0 && front_may_wait(front) ? malloc(sizeof *u) : NULL;
    if (err == 0) {
        fuse_reply_write(req, written);
    } else if (u == NULL) {
        reply_status(req, err);
    } else {
        *u = (struct unsynced_job){ .file = file, .end = offset + written, .err = err };
        u->job = (struct notify_job){ .req = req, .run = unsynced_run };
        notifier_add(front, &u->job);
    }
}

struct write_job {
    struct notify_job job;  /* first */
    struct open_file *file; /* stays open while its request is unanswered */
    unsigned flags;
    uint64_t offset;
    uint64_t order; /* request_order() */
    struct stale stale;
    size_t size;
    char buf[];
};

/* As much as can be at once.   Returns bytes written, or -errno. */
static ssize_t write_piece(struct front *front, struct write_job *w, size_t done)
{
    ssize_t written =
        file_write_around(w->file, w->offset, w->buf + done, w->size - done, w->flags, &w->stale);
    if (written <= 0)
        return written;
    uint64_t from = done == 0 ? stale_from(&w->stale, w->offset) : w->offset;
    w->offset += (uint64_t)written;
    uint64_t until = stale_until(w->file->inode, &w->stale); /* READs go on */
    if (from < until)
        front_forget_range(front, w->file->inode->ino, from, until - from);
    return written;
}

/* By the answer the kernel learns of a longer file, but not by GETATTR's if that was asked for before it gave up its
 * copies: who asked is told, and the kernel goes on believing what it did. So it is told at once. */
static void write_done(struct front *front, struct write_job *w, size_t done)
{
    bool longer = w->stale.eof != UINT64_MAX;
    stale_end(w->file->inode, &w->stale);
    if (longer && done > 0)
        front_tell_size(front, w->file->inode->ino, w->offset);
}

static void write_run(struct notify_job *job)
{
    struct write_job *w = (struct write_job *)job;
    struct front *front = front_of(job->req);
    ssize_t n = 0;
    size_t done = 0;
    request_order_set(w->order);
    while (done < w->size && (n = write_piece(front, w, done)) > 0)
        done += (size_t)n;
    request_order_set(0);
    write_done(front, w, done);
    let_go(front, w->size);
    if (done > 0)
        n = w->flags & WRITE_SYNC ? sync_or_tell_size(front, w->file, w->offset) : 0;
    if (n < 0)
        reply_status(job->req, (int)n);
    else if (!atomic_load(&front->leaving))
        reply_written(job->req, done);
    else
        fuse_reply_none(job->req); /* there may be copies, which would come back after the answer */
    free(w);
}

/* Returns 0: it will be answered; -ENOMEM. */
static int write_later(fuse_req_t req, struct open_file *file, const char *buf, size_t size,
                       off_t off, unsigned flags)
{
    struct front *front = front_of(req);
    struct write_job *w = front_may_wait(front) ? malloc(sizeof *w + size) : NULL;
    if (w == NULL)
        return -ENOMEM;
    *w = (struct write_job){ .job = { .req = req, .run = write_run },
                             .file = file,
                             .flags = flags,
                             .offset = (uint64_t)off,
                             .order = request_order(),
                             .size = size };
    memcpy(w->buf, buf, size);
    notifier_add(front, &w->job);
    return 0;
}

/* Where there may be copies, it is for a thread that may wait for them.
 * Returns false: it will be answered; true: *n is bytes written, or -errno. */
static bool write_around(fuse_req_t req, struct open_file *file, const char *buf, size_t size,
                         off_t off, unsigned flags, ssize_t *n)
{
    struct front *front = front_of(req);
    if (!stale_is_possible(file, (uint64_t)off)) {
        *n = file_write_around(file, (uint64_t)off, buf, size, flags, NULL);
        if (*n != -EAGAIN)
            return true;
    }
    if (!may_hold(front, size)) {
        *n = file_write(file, (uint64_t)off, buf, size, flags & ~(unsigned)WRITE_AROUND);
        return true;
    }
    *n = write_later(req, file, buf, size, off, flags);
    if (*n != 0)
        let_go(front, size);
    return *n != 0;
}

static ssize_t write_back(struct front *front, struct open_file *file, const char *buf, size_t size,
                          off_t off, unsigned flags)
{
    ssize_t n = file_write(file, (uint64_t)off, buf, size, flags);
    if (n < 0)
        note_lost_write(front, file->inode, (int)n);
    note_kernel_write(front, file->inode, size);
    room_note_write(front, size);
    return n;
}

void op_write(fuse_req_t req, fuse_ino_t ino, const char *buf, size_t size, off_t off,
              struct fuse_file_info *fi)
{
    (void)ino;
    struct front *front = front_of(req);
    struct open_file *file = open_file_of(fi);
    unsigned flags = decode_write(front, fi);
    ssize_t n = drop_before_write(req, file->inode, fi);
    if (n == 0 && (flags & WRITE_CACHED))
        n = write_back(front, file, buf, size, off, flags);
    else if (n == 0 && (flags & WRITE_AROUND)) {
        if (!write_around(req, file, buf, size, off, flags, &n))
            return;
    } else if (n == 0)
        n = file_write(file, (uint64_t)off, buf, size, flags);
    if (n > 0 && (flags & WRITE_SYNC))
        sync_and_reply(req, file, (uint64_t)off, (size_t)n);
    else if (n >= 0)
        reply_written(req, (size_t)n);
    else
        reply_status(req, (int)n);
}

/* ---- ranges ---------------------------------------------------------------------------------- */

struct hole_job {
    struct notify_job job; /* first */
    struct work turn;
    struct fallocation f; /* its file stays open while the request is unanswered */
    struct stale stale;
    uint64_t grown; /* it is so long now, bytes; or 0 */
    int err;
};

static void hole_run(struct notify_job *job)
{
    struct hole_job *h = (struct hole_job *)job;
    struct open_file *file = h->f.file;
    stale_end(file->inode, &h->stale);
    if (h->err == 0 && (file->flags & O_DSYNC))
        h->err = sync_or_tell_size(front_of(job->req), file, h->grown);
    if (job->kept)
        fuse_reply_none(job->req);
    else
        reply_status(job->req, h->err);
    free(h);
}

/* What the kernel gives up before it is told: where bytes were made zeros, and the page that was the last.
 * Returns false: nothing. */
static bool copies_go(struct hole_job *h)
{
    uint64_t end = h->f.offset + h->f.len;
    bool zeros = (h->f.mode & ~FALLOC_FL_KEEP_SIZE) != 0;
    bool grown = h->err == 0 && h->stale.eof != UINT64_MAX;
    h->grown = grown ? end : 0;
    if (!zeros && !grown)
        return false;
    h->job.offset = !zeros  ? h->stale.eof
                    : grown ? stale_from(&h->stale, h->f.offset)
                            : h->f.offset;
    h->job.len = end - h->job.offset;
    return true;
}

/* Returns true: more are due. */
static bool take_step(struct hole_job *h)
{
    struct front *front = front_of(h->job.req);
    int err = h->err != 0 ? h->err : file_fallocate_step(&h->f);
    if (err > 0)
        return true;
    h->err = err;
    if (copies_go(h))
        notifier_add(front, &h->job);
    else
        hole_run(&h->job);
    return false;
}

static enum work_end fallocate_turn(struct work *turn)
{
    struct hole_job *h = (struct hole_job *)((char *)turn - offsetof(struct hole_job, turn));
    struct front *front = front_of(h->job.req);
    if (atomic_load(&front->left)) /* nobody waits for it */
        h->err = -EINTR;
    else
        balance_dirty_pages_ratelimited(front->fs->cache, FALLOCATE_STEP);
    return take_step(h) ? WORK_AGAIN : WORK_DONE;
}

/* Has it so many pages that it is not for a thread of the session? */
static bool takes_turns(const struct front *front, const struct fallocation *f)
{
    if (f->mode & FALLOC_FL_PUNCH_HOLE)
        return false;
    return f->len > (uint64_t)FALLOCATE_STEP << PAGE_SHIFT || dirty_throttle_due(front->fs->cache);
}

/* The kernel writes its copy of the range back before it asks us, and zeroes it after our answer. If a
 * mapping's store dirties a page of it in between, and that is written back before it is zeroed, the
 * bytes from before the hole are in the file again, and the zeroed copy counts as clean. (Linux 6.18
 * locks that out for DAX only.) So the answer waits until the kernel has given up its copy, and what it writes
 * back of the hole until then is stale. A hole that failed may be there in part, of which the kernel's
 * copy must not say otherwise; but then what it writes back counts.
 *
 * That it is interrupted is not looked at: it could be any signal, and who tries again after each would never end. */
void op_fallocate(fuse_req_t req, fuse_ino_t ino, int mode, off_t offset, off_t length,
                  struct fuse_file_info *fi)
{
    struct front *front = front_of(req);
    struct open_file *file = open_file_of(fi);
    struct hole_job *h = front_may_wait(front) ? calloc(1, sizeof *h) : NULL;
    if (h == NULL) {
        reply_status(req, -ENOMEM);
        return;
    }
    if ((mode & ~FALLOC_FL_KEEP_SIZE) != 0)
        room_note_free(front);
    h->f = (struct fallocation){ .file = file,
                                 .mode = mode,
                                 .offset = (uint64_t)offset,
                                 .len = (uint64_t)length,
                                 .stale = &h->stale };
    h->job = (struct notify_job){ .req = req, .flush = ino, .run = hole_run };
    h->turn.func = fallocate_turn;
    /* First, for what has been done must not look as if it had failed. */
    h->err = caller_is_unprivileged(req) ? drop_privilege(req, file->inode) : 0;
    if (takes_turns(front, &h->f))
        queue_work(&front->turns, &h->turn);
    else
        while (take_step(h))
            ;
}

struct lseek_job {
    struct notify_job job;  /* first */
    struct open_file *file; /* stays open while its request is unanswered */
    uint64_t offset;
    int whence;
};

static void reply_lseek(fuse_req_t req, struct open_file *file, uint64_t offset, int whence)
{
    uint64_t found;
    int err = file_lseek(file, offset, whence, &found);
    if (err != 0)
        reply_status(req, err);
    else
        fuse_reply_lseek(req, (off_t)found);
}

static void lseek_run(struct notify_job *job)
{
    struct lseek_job *l = (struct lseek_job *)job;
    reply_lseek(job->req, l->file, l->offset, l->whence);
    free(l);
}

/* SEEK_DATA and SEEK_HOLE only; the kernel knows the rest. What it has not written back yet would
 * look like a hole. */
void op_lseek(fuse_req_t req, fuse_ino_t ino, off_t off, int whence, struct fuse_file_info *fi)
{
    struct front *front = front_of(req);
    struct open_file *file = open_file_of(fi);
    if (!inode_has_writers(file->inode)) {
        reply_lseek(req, file, (uint64_t)off, whence);
        return;
    }
    struct lseek_job *l = front_may_wait(front) ? malloc(sizeof *l) : NULL;
    if (l == NULL) {
        reply_status(req, -ENOMEM);
        return;
    }
    *l = (struct lseek_job){ .file = file, .offset = (uint64_t)off, .whence = whence };
    l->job = (struct notify_job){ .req = req, .flush = ino, .run = lseek_run };
    notifier_add(front, &l->job);
}
