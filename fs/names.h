/* names.h: what the files that change inodes and names share, beside inode.h. */
#ifndef FOLIO_FS_NAMES_H
#define FOLIO_FS_NAMES_H

#include "fs/inode.h"

#define NLINK_MAX   65000u    /* names of one inode */
#define SUBDIRS_MAX INT32_MAX /* of one directory, and two */

/* ---- inode.c --------------------------------------------------------------------------------- */

/* The inode of inode_new() is in the store's records now: look-ups by number, which waited, get it. */
void inode_publish(struct inode *inode);
/* i_size or mtime are ahead of the record: inode_write_back() has something to do. Takes i_lock. */
bool inode_lags(struct inode *inode);
/* Every inode somebody uses, with one more reference each: put them, free() the array.
 * Returns how many, or -ENOMEM. */
ssize_t inode_list_used(struct fs *fs, struct inode ***out);
/* From now on inodes with many pages are taken apart by inode_reap(), called by a worker. */
void inode_table_defer(struct fs *fs, bool defer);
void inode_reap(struct fs *fs);

/* From reading what records say to changing memory after their update: one at a time, or one of two
 * changes of an inode would put back what the other changed. Held over update_apply(), so nothing
 * that the store waits for may need it. Below every other lock but i_lock. */
void inode_lock_records(struct fs *fs);
void inode_unlock_records(struct fs *fs);

/* ---- attr.c ---------------------------------------------------------------------------------- */

static inline bool is_before(struct timespec a, struct timespec b)
{
    return a.tv_sec != b.tv_sec ? a.tv_sec < b.tv_sec : a.tv_nsec < b.tv_nsec;
}
static inline bool same_time(struct timespec a, struct timespec b)
{
    return a.tv_sec == b.tv_sec && a.tv_nsec == b.tv_nsec;
}
/* 0, -ENOENT, -EIO, -ENOMEM. */
int inode_read_record(struct fs *fs, uint64_t ino, struct inode_record *out);
/* Fill a zeroed inode from its record, and give it a mapping. */
void inode_init(struct inode *inode, const struct inode_record *r);
uint32_t inode_mode(struct inode *inode); /* takes i_lock */
static inline bool inode_is_dir(struct inode *inode)
{
    return S_ISDIR(inode_mode(inode));
}
/* tid touched the inode's record, or a directory's entries: fsync waits for it. */
void inode_raise_tid(struct inode *inode, uint64_t tid);

/* ---- orphan.c -------------------------------------------------------------------------------- */

/* Delete all records of an inode but those of its blocks.   Returns 0 or -EIO, -ENOMEM. */
int inode_del_records(struct update *u, uint64_t ino, uint32_t mode);

/* ---- dir.c ----------------------------------------------------------------------------------- */

/* A change of names under way: its update, and the records it wants its inodes to have.
 * Context: fs->rename_lock held exclusively, and every inode in hand already.
 *     name_change_begin(&c, fs);
 *     name_change_record(&c, inode)->nlink++;  dirent_put(&c.update, ...);
 *     err = name_change_apply(&c, 0);          memory follows the records, if there is no error */
#define NAME_CHANGE_INODES 5u /* rename: two directories, what moves, what it meets, a whiteout */
struct name_change {
    struct fs *fs;
    struct update update;
    struct timespec now;
    unsigned nr;
    struct {
        struct inode *inode;
        struct inode_record record;
    } inodes[NAME_CHANGE_INODES];
};
void name_change_begin(struct name_change *c, struct fs *fs);
/* The record the inode will have, with ctime now; the same one for every call with that inode. And that of a directory
 * in which names change: with mtime too. */
struct inode_record *name_change_record(struct name_change *c, struct inode *inode);
struct inode_record *name_change_dir(struct name_change *c, struct inode *dir);
/* One name less; the last one makes it an orphan. */
void name_change_drop(struct name_change *c, struct inode *inode);
/* flags: UPDATE_*. */
int name_change_apply(struct name_change *c, unsigned flags);

/* 0, -EINVAL (empty, "." or ".."), -ENAMETOOLONG. */
int name_check(const char *name);
/* 0, -ENOENT, -EIO, -ENOMEM. */
int dirent_get(struct inode *dir, const char *name, struct dirent_record *out);
void dirent_put(struct update *u, struct inode *dir, const char *name, struct inode *target,
                uint64_t cookie);
void dirent_del(struct update *u, struct inode *dir, const char *name, uint64_t cookie);
int dir_check_empty(struct inode *dir); /* 0, -ENOTEMPTY, -EIO */

#endif
