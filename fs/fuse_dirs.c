#include <dirent.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "fs/data.h"
#include "fs/fuse_ops.h"

/* One reply's worth of names. The kernel asks for up to 1 MiB; every entry of readdirplus loads an
 * inode, and the reader waits for the whole reply. */
#define READDIR_MAX_BYTES 65536u
#define DIRENT_MIN_BYTES  32u /* a bound from below on an entry's size in the reply */

struct listing {
    fuse_req_t req;
    struct inode *dir;
    char *buf;
    size_t size, used;
    struct inode **given; /* readdirplus: references handed to the kernel with this reply */
    size_t nr_given;
};

/* Without an open directory there is nothing to keep: offsets are cookies, and an inode that the
 * kernel knows stays. Told so once, the kernel opens directories without asking, and keeps what
 * readdir said until one of its own requests changes the directory. */
void op_opendir(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
    (void)ino, (void)fi;
    reply_status(req, -ENOSYS);
}

void op_releasedir(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
    (void)ino, (void)fi;
    reply_status(req, 0);
}

/* Add an entry.   Returns false when it does not fit. */
static bool add_name(struct listing *l, const struct dir_entry *d)
{
    struct stat st = { .st_ino = d->ino, .st_mode = (mode_t)DTTOIF(d->type) };
    size_t left = l->size - l->used;
    size_t n = fuse_add_direntry(l->req, l->buf + l->used, left, d->name, &st, (off_t)d->cookie);
    if (n > left)
        return false;
    l->used += n;
    return true;
}

static bool is_dots(const char *name)
{
    return strcmp(name, ".") == 0 || strcmp(name, "..") == 0;
}

/* Add an entry with attributes and one reference for the kernel, which it does not take for "." and
 * "..". An inode that cannot be read is listed by name alone; looking it up will tell why. */
static bool add_name_plus(struct listing *l, const struct dir_entry *d)
{
    struct fuse_entry_param e = { .attr = { .st_ino = d->ino,
                                            .st_mode = (mode_t)DTTOIF(d->type) } };
    struct inode *inode = NULL;
    if (!is_dots(d->name) && inode_get(l->dir->fs, d->ino, &inode) == 0 &&
        fill_entry(inode, &e) != 0) {
        e.ino = 0;
        inode_put(inode, 1);
        inode = NULL;
    }
    size_t left = l->size - l->used;
    size_t n =
        fuse_add_direntry_plus(l->req, l->buf + l->used, left, d->name, &e, (off_t)d->cookie);
    if (n > left) {
        if (inode != NULL)
            inode_put(inode, 1);
        return false;
    }
    l->used += n;
    if (inode != NULL)
        l->given[l->nr_given++] = inode;
    return true;
}

static int fill_listing(struct listing *l, off_t off,
                        bool (*add)(struct listing *, const struct dir_entry *))
{
    struct dir_entry d = { .cookie = (uint64_t)off };
    int err;
    do
        err = dir_next(l->dir, d.cookie, &d);
    while (err == 0 && add(l, &d));
    return err == -ENOENT || l->used > 0 ? 0 : err;
}

static void reply_listing(struct listing *l)
{
    if (fuse_reply_buf(l->req, l->buf, l->used) == 0)
        return;
    for (size_t i = 0; i < l->nr_given; i++)
        inode_put(l->given[i], 1);
}

static int list_dir(struct listing *l, off_t off, bool plus)
{
    l->buf = malloc(l->size + 1);
    l->given = calloc(l->size / DIRENT_MIN_BYTES + 1, sizeof(struct inode *));
    int err = -ENOMEM;
    if (l->buf != NULL && l->given != NULL)
        err = fill_listing(l, off, plus ? add_name_plus : add_name);
    if (err == 0)
        reply_listing(l);
    free(l->given);
    free(l->buf);
    return err;
}

static void list(fuse_req_t req, fuse_ino_t ino, size_t size, off_t off, bool plus)
{
    struct listing l = { .req = req };
    l.size = size < READDIR_MAX_BYTES ? size : READDIR_MAX_BYTES;
    int err = inode_get(front_of(req)->fs, ino, &l.dir);
    if (err == 0) {
        if (off == 0)
            inode_touch_atime(l.dir);
        err = list_dir(&l, off, plus);
        inode_put(l.dir, 1);
    }
    if (err != 0)
        reply_status(req, err);
}

void op_readdir(fuse_req_t req, fuse_ino_t ino, size_t size, off_t off, struct fuse_file_info *fi)
{
    (void)fi;
    list(req, ino, size, off, false);
}

void op_readdirplus(fuse_req_t req, fuse_ino_t ino, size_t size, off_t off,
                    struct fuse_file_info *fi)
{
    (void)fi;
    list(req, ino, size, off, true);
}

void op_fsyncdir(fuse_req_t req, fuse_ino_t ino, int datasync, struct fuse_file_info *fi)
{
    (void)datasync, (void)fi;
    struct inode *dir;
    int err = inode_get(front_of(req)->fs, ino, &dir);
    if (err == 0) {
        err = inode_fsync(dir);
        inode_put(dir, 1);
    }
    reply_status(req, err);
}
