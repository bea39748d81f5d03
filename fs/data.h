/* data.h: what is in a file: reading, writing, sizes, holes, durability. */
#ifndef FOLIO_FS_DATA_H
#define FOLIO_FS_DATA_H

#include "fs/inode.h"
#include "fs/stale.h"

extern const struct address_space_operations inode_a_ops;

/* One open file description. */
struct open_file {
    struct inode *inode;         /* one reference */
    int flags;                   /* O_* */
    struct list_head open_files; /* of the inode's (i) */
    struct file_ra_state ra;
    _Atomic uint32_t wb_err; /* errors seen, of the file and of the store's commits */
    _Atomic uint32_t store_err;
    bool only_writes;     /* to whoever opened it; flags are what we need */
    _Atomic bool noatime; /* who reads has O_NOATIME, which may be set and taken away at any time */
    uint64_t copies_seen; /* when it was opened: see stale.h */
};

/* Opens a regular file; O_TRUNC truncates in one step with the open. Takes a reference.
 * -ENOMEM, -EROFS, -EIO, -ENOSPC. */
int file_open(struct inode *inode, int flags, struct open_file **out);
/* The same in two steps, for who must not fail once the file is there: a zeroed one to start or to free(), or NULL; then
 * it is open, of an inode that may be opened so. flags: without O_TRUNC. */
struct open_file *file_alloc(void);
void file_start(struct open_file *file, struct inode *inode, int flags);
/* What applies to the file: its own choice, else the volume's. */
struct readahead inode_readahead(struct inode *inode);
/* The file's own choice, for those who have it open and those who will, as long as the inode is in
 * memory. NULL, 0: the volume's again. */
void inode_set_ra_policy(struct inode *inode, const struct ra_policy *policy);
void inode_set_ra_pages(struct inode *inode, uint32_t pages);
/* The volume's choice, likewise; what is NULL or 0 in ra stays as it is. -ENOMEM: only files opened
 * from now on follow it. One caller at a time. */
int fs_set_readahead(struct fs *fs, const struct readahead *ra);

/* fsyncs nothing; drops the reference, and deletes the file if it was its last. */
void file_release(struct open_file *file);
/* Release what was never closed, as the connection to the kernel ended. Nobody uses a file any more. */
void file_release_all(struct fs *fs);

/* Is it open for writing? Then who is in front may hold writes, or in every mode of caching stores of mappings, that
 * have not reached us: the kernel hands them over before the last writer is released. */
bool inode_has_writers(struct inode *inode);

/* Where the request that this thread works on comes among all that who is in front has sent; 0: nobody knows.
 *
 * A write may be handled after a truncation that was asked for later. Who is in front may have made sure that the write
 * is inside the file, and will not learn of a longer one (Linux: asynchronous writes that go around its cache, for which
 * FUSE's truncation does not wait). So it is answered as if it had come first: what lies behind the end is gone. */
void request_order_set(uint64_t order);
uint64_t request_order(void);

ssize_t file_read(struct open_file *file, uint64_t offset, void *buf, size_t len);
/* kill_priv: clear suid and sgid first. cached: the kernel writes back what it cached: all or an error. keep_times:
 * they are the kernel's business.
 * -EFBIG, -ENOSPC, -EIO, -ENOMEM, -EROFS; bytes written, short when an error came after some. */
enum write_flags {
    WRITE_KILL_PRIV = 1,
    WRITE_CACHED = 2,
    WRITE_KEEP_TIMES = 4,
    WRITE_AROUND = 8, /* see file_write_around() */
    WRITE_SYNC = 16,  /* the caller's: file_fsync() is due before it is answered */
};
ssize_t file_write(struct open_file *file, uint64_t offset, const void *buf, size_t len,
                   unsigned flags);
/* Around copies that somebody has: what was written, up to the end of a page perhaps, is stale there until
 * stale_end(), which is due whatever this returned. stale NULL, with WRITE_AROUND: there are none, as far as one knew.
 * Errors: -EAGAIN: there may be; all else as above. */
ssize_t file_write_around(struct open_file *file, uint64_t offset, const void *buf, size_t len,
                          unsigned flags, struct stale *stale);

/* Promises are estimates on the safe side: put everything dirty into a commit, and what is really free shows.
 * Blocks: on the store. No lock held. */
void fs_make_room(struct fs *fs);

/* Pages for a reply without a copy: up to max referenced pages covering [offset, offset+*len),
 * *len cut at end of file. Release each with put_page.   Returns how many; -EIO, -ENOMEM. */
ssize_t file_get_pages(struct open_file *file, uint64_t offset, size_t *len, struct page **pages,
                       size_t max);

/* Set the size. Times are set unless the caller does. -EFBIG, -EROFS, -ENOSPC, -EIO, -ENOMEM. */
int inode_truncate(struct inode *inode, uint64_t size);
/* After a crash: blocks beyond the size go, the tail of the last block is zeroed. */
int inode_trim_tail(struct inode *inode);
/* Put the file's dirty pages and size into the running transaction (no sync). */
int inode_write_back(struct inode *inode);
/* It has a memfd, and who is in front has no copies from before: the first step of attaching; mapping_unuse_memfd() is
 * due. As mapping_use_memfd(); any number of callers at once. No lock held, no operation waiting. */
int inode_share_pages(struct inode *inode);
/* Drop all data: a deleted inode's last step; adds the trim to u. */
void inode_delete_data(struct inode *inode, struct update *u);

/* One fallocate, in steps; nothing is locked between them, and others may use the file meanwhile. It has its new size,
 * and the new times, with the last step, or never. */
struct fallocation {
    struct open_file *file;
    int mode; /* FALLOC_FL_KEEP_SIZE, PUNCH_HOLE, ZERO_RANGE as fallocate(2); others -EOPNOTSUPP */
    uint64_t offset, len;
    struct stale *
        stale; /* NULL, or where is noted what is stale until stale_end(), which is due at the end */
    uint64_t next; /* page to be set aside next; zero at first                     (private) */
    bool begun;    /* (private) */
};
#define FALLOCATE_STEP 256u /* pages that a step sets aside, at most */

/* Returns 1: another one is due, and balance_dirty_pages_ratelimited(); 0: it is done; or -errno, and no more steps: also
 * -EROFS, -EFBIG, -EINVAL, -ENOSPC, -EIO, -ENOMEM. What has been set aside stays then, and a hole. */
int file_fallocate_step(struct fallocation *f);
/* All of them. */
int file_fallocate(struct open_file *file, int mode, uint64_t offset, uint64_t len,
                   struct stale *stale);
/* whence: SEEK_DATA, SEEK_HOLE. -ENXIO. */
int file_lseek(struct open_file *file, uint64_t offset, int whence, uint64_t *out);
/* Durable on return; reports an error this open file has not seen. */
int file_fsync(struct open_file *file);
int inode_fsync(struct inode *inode); /* directories */

#endif
