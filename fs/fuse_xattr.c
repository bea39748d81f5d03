#include "fs/xattr.h"

#include <errno.h>
#include <stdlib.h>

#include "fs/fuse_ops.h"

void op_setxattr(fuse_req_t req, fuse_ino_t ino, const char *name, const char *value, size_t size,
                 int flags)
{
    struct inode *inode;
    int err = inode_get(front_of(req)->fs, ino, &inode);
    if (err == 0) {
        err = xattr_set(inode, name, value, size, flags);
        inode_put(inode, 1);
    }
    reply_status(req, err);
}

/* n: bytes in buf, or the length there would be when the request's size was 0, or -errno. */
static void reply_bytes(fuse_req_t req, ssize_t n, const char *buf, size_t size)
{
    if (n < 0)
        reply_status(req, (int)n);
    else if (size == 0)
        fuse_reply_xattr(req, (size_t)n);
    else
        fuse_reply_buf(req, buf, (size_t)n);
}

void op_getxattr(fuse_req_t req, fuse_ino_t ino, const char *name, size_t size)
{
    struct inode *inode;
    int err = inode_get(front_of(req)->fs, ino, &inode);
    if (err != 0) {
        reply_status(req, err);
        return;
    }
    char *buf = malloc(size + 1);
    ssize_t n = buf != NULL ? xattr_get(inode, name, buf, size) : -ENOMEM;
    reply_bytes(req, n, buf, size);
    free(buf);
    inode_put(inode, 1);
}

void op_listxattr(fuse_req_t req, fuse_ino_t ino, size_t size)
{
    struct inode *inode;
    int err = inode_get(front_of(req)->fs, ino, &inode);
    if (err != 0) {
        reply_status(req, err);
        return;
    }
    char *buf = malloc(size + 1);
    ssize_t n = buf != NULL ? xattr_list(inode, buf, size, !caller_is_unprivileged(req)) : -ENOMEM;
    reply_bytes(req, n, buf, size);
    free(buf);
    inode_put(inode, 1);
}

void op_removexattr(fuse_req_t req, fuse_ino_t ino, const char *name)
{
    struct inode *inode;
    int err = inode_get(front_of(req)->fs, ino, &inode);
    if (err == 0) {
        err = xattr_remove(inode, name);
        inode_put(inode, 1);
    }
    reply_status(req, err);
}
