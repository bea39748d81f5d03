/* xattr.h: extended attributes: user., trusted., security. (others -EOPNOTSUPP). */
#ifndef FOLIO_FS_XATTR_H
#define FOLIO_FS_XATTR_H

#include "fs/inode.h"

/* flags: XATTR_CREATE, XATTR_REPLACE. -EEXIST, -ENODATA, -ERANGE (name over 255 bytes), -E2BIG
 * (value over 64 KiB), -EOPNOTSUPP, -EPERM (user. on what is no file or directory). */
int xattr_set(struct inode *inode, const char *name, const void *value, size_t size, int flags);
/* size 0: returns the length only. -ENODATA, -ERANGE. */
ssize_t xattr_get(struct inode *inode, const char *name, void *value, size_t size);
/* NUL-terminated names one after the other; size 0: the length only.  all: trusted. too, which only root may read.
 * -ERANGE. */
ssize_t xattr_list(struct inode *inode, char *list, size_t size, bool all);
int xattr_remove(struct inode *inode, const char *name); /* -ENODATA */
/* Add the deletion of all of them to an update. */
int xattr_del_all(struct update *u, uint64_t ino);

#endif
