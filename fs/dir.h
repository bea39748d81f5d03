/* dir.h: names. Every change applies as one update: all of its records or none.
 *
 * name: len bytes without '/', NUL; longer than 255: -ENAMETOOLONG. "." and ".." never arrive for
 * changes. Directories are locked by fs->rename_lock, inside these functions. Inodes come back with
 * one reference for the caller. Errors beyond those named: -EIO, -ENOSPC, -EROFS, -ENOMEM.
 */
#ifndef FOLIO_FS_DIR_H
#define FOLIO_FS_DIR_H

#include "fs/inode.h"

/* -ENOENT, -ENOTDIR. Handles "." and ".."; "." of a file, too: that is itself. */
int dir_lookup(struct inode *dir, const char *name, struct inode **out);
/* Regular files, fifos, sockets, devices, directories (S_IFMT of mode). -EEXIST, -ENOENT (dir was
 * removed), -EMLINK. */
int dir_mknod(struct inode *dir, const char *name, uint32_t mode, uint64_t rdev,
              const struct cred *cred, struct inode **out);
int dir_symlink(struct inode *dir, const char *name, const char *target, const struct cred *cred,
                struct inode **out); /* -ENAMETOOLONG for the target too */
int dir_readlink(struct inode *inode, char *buf, size_t size); /* NUL-terminated; -EINVAL */
int dir_link(struct inode *inode, struct inode *dir,
             const char *name);                      /* -EPERM, -EMLINK, -EEXIST */
int dir_unlink(struct inode *dir, const char *name); /* -EISDIR, -ENOENT */
int dir_rmdir(struct inode *dir, const char *name);  /* -ENOTEMPTY, -ENOTDIR, -EBUSY */
/* flags: RENAME_NOREPLACE and RENAME_WHITEOUT, or RENAME_EXCHANGE; all else -EINVAL. The data of a regular
 * file that replaces another is put into the running transaction before the rename.
 * RENAME_WHITEOUT: the old name then stands for a character device 0:0 without permissions, made as
 * by dir_mknod with cred, which nothing else needs (NULL).
 * -EEXIST, -ENOENT, -ENOTDIR, -EISDIR, -ENOTEMPTY, -EINVAL (into its own subtree). */
int dir_rename(struct inode *olddir, const char *oldname, struct inode *newdir, const char *newname,
               unsigned flags, const struct cred *cred);

struct dir_entry {
    uint64_t ino;
    uint64_t cookie; /* this entry's own: reading goes on after it */
    uint8_t type;    /* DT_* */
    char name[NAME_MAX_BYTES + 1];
};
/* The first entry after cookie (0: from the start; "." has 1 and ".." 2).
 * Returns 0; -ENOENT: no more; -EIO. Stable: an entry keeps its cookie as long as it exists. */
int dir_next(struct inode *dir, uint64_t cookie, struct dir_entry *out);

#endif
