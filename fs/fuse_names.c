#include <errno.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>

#include "fs/data.h"
#include "fs/fuse_ops.h"

/* ---- finding and forgetting ------------------------------------------------------------------ */

/* An absent name is an entry without an inode: so the kernel remembers that it is absent. For "." of anything, and for
 * ".." of directories, it asks when somebody opens a file handle (open_by_handle_at(2)). */
void op_lookup(fuse_req_t req, fuse_ino_t parent, const char *name)
{
    struct fs *fs = front_of(req)->fs;
    struct inode *dir, *inode;
    fs_count(fs, FS_LOOKUPS);
    int err = inode_get(fs, parent, &dir);
    if (err != 0) {
        reply_status(req, err);
        return;
    }
    err = dir_lookup(dir, name, &inode);
    inode_put(dir, 1);
    if (err == 0) {
        reply_entry(req, inode);
    } else if (err == -ENOENT) {
        struct fuse_entry_param absent = { .entry_timeout = CACHE_SECONDS };
        fuse_reply_entry(req, &absent);
    } else {
        reply_status(req, err);
    }
}

void op_forget(fuse_req_t req, fuse_ino_t ino, uint64_t nlookup)
{
    inode_forget(front_of(req)->fs, ino, nlookup);
    fuse_reply_none(req);
}

void op_forget_multi(fuse_req_t req, size_t count, struct fuse_forget_data *forgets)
{
    for (size_t i = 0; i < count; i++)
        inode_forget(front_of(req)->fs, forgets[i].ino, forgets[i].nlookup);
    fuse_reply_none(req);
}

/* ---- making ---------------------------------------------------------------------------------- */

void op_mknod(fuse_req_t req, fuse_ino_t parent, const char *name, mode_t mode, dev_t rdev)
{
    struct cred cred = request_cred(req);
    struct inode *dir, *inode;
    int err = inode_get(front_of(req)->fs, parent, &dir);
    if (err == 0) {
        err = dir_mknod(dir, name, mode, rdev, &cred, &inode);
        inode_put(dir, 1);
    }
    if (err == 0)
        reply_new_entry(req, inode);
    else
        reply_status(req, err);
}

void op_mkdir(fuse_req_t req, fuse_ino_t parent, const char *name, mode_t mode)
{
    op_mknod(req, parent, name, S_IFDIR | (mode & ~(mode_t)S_IFMT), 0);
}

void op_symlink(fuse_req_t req, const char *target, fuse_ino_t parent, const char *name)
{
    struct cred cred = request_cred(req);
    struct inode *dir, *inode;
    int err = inode_get(front_of(req)->fs, parent, &dir);
    if (err == 0) {
        err = dir_symlink(dir, name, target, &cred, &inode);
        inode_put(dir, 1);
    }
    if (err == 0)
        reply_new_entry(req, inode);
    else
        reply_status(req, err);
}

void op_link(fuse_req_t req, fuse_ino_t ino, fuse_ino_t newparent, const char *newname)
{
    struct fs *fs = front_of(req)->fs;
    struct inode *inode, *dir;
    int err = inode_get(fs, ino, &inode);
    if (err != 0) {
        reply_status(req, err);
        return;
    }
    err = inode_get(fs, newparent, &dir);
    if (err == 0) {
        err = dir_link(inode, dir, newname);
        inode_put(dir, 1);
    }
    if (err == 0) {
        reply_new_entry(req, inode);
    } else {
        inode_put(inode, 1);
        reply_status(req, err);
    }
}

void op_readlink(fuse_req_t req, fuse_ino_t ino)
{
    char target[SYMLINK_MAX_BYTES + 1];
    struct inode *inode;
    int err = inode_get(front_of(req)->fs, ino, &inode);
    if (err == 0) {
        inode_touch_atime(inode);
        err = dir_readlink(inode, target, sizeof target);
        inode_put(inode, 1);
    }
    if (err == 0)
        fuse_reply_readlink(req, target);
    else
        reply_status(req, err);
}

/* ---- removing -------------------------------------------------------------------------------- */

void op_unlink(fuse_req_t req, fuse_ino_t parent, const char *name)
{
    struct inode *dir;
    int err = inode_get(front_of(req)->fs, parent, &dir);
    room_note_free(front_of(req));
    if (err == 0) {
        err = dir_unlink(dir, name);
        inode_put(dir, 1);
    }
    reply_status(req, err);
}

void op_rmdir(fuse_req_t req, fuse_ino_t parent, const char *name)
{
    struct inode *dir;
    int err = inode_get(front_of(req)->fs, parent, &dir);
    if (err == 0) {
        err = dir_rmdir(dir, name);
        inode_put(dir, 1);
    }
    reply_status(req, err);
}

/* ---- renaming -------------------------------------------------------------------------------- */

struct rename_job {
    struct notify_job job;         /* first */
    struct inode *olddir, *newdir; /* one reference each */
    unsigned flags;
    char oldname[NAME_MAX + 1], newname[NAME_MAX + 1];
};

static void rename_run(struct notify_job *job)
{
    struct rename_job *r = (struct rename_job *)job;
    struct cred cred = request_cred(job->req);
    int err = dir_rename(r->olddir, r->oldname, r->newdir, r->newname, r->flags, &cred);
    inode_put(r->olddir, 1);
    inode_put(r->newdir, 1);
    reply_status(job->req, err);
    free(r);
}

/* Why a name was not found, other than that it could not be looked for. */
static bool is_absent(int err)
{
    return err == -ENOENT || err == -ENOTDIR || err == -ENAMETOOLONG;
}

/* The file whose cached writes must reach us before the rename, because its content takes an
 * existing file's place (after a crash the name must not stand for less than either): its number,
 * or 0. Renaming to a new name promises nothing about content.
 * Returns 0, or an error of looking that up; what is not there the rename itself will find. */
static int rename_needs(struct inode *olddir, const char *oldname, struct inode *newdir,
                        const char *newname, uint64_t *ino)
{
    struct inode *from, *over;
    *ino = 0;
    int err = dir_lookup(olddir, oldname, &from);
    if (err != 0)
        return is_absent(err) ? 0 : err;
    err = inode_has_writers(from) ? dir_lookup(newdir, newname, &over) : -ENOENT;
    if (err == 0) {
        *ino = from->ino;
        inode_put(over, 1);
    }
    inode_put(from, 1);
    return is_absent(err) ? 0 : err;
}

/* Hand the request to the notifier, references to both directories included. The names are there.   0 or -ENOMEM. */
static int rename_hand_over(fuse_req_t req, const struct rename_job *what, const char *oldname,
                            const char *newname)
{
    struct front *front = front_of(req);
    struct rename_job *r = front_may_wait(front) ? malloc(sizeof *r) : NULL;
    if (r == NULL)
        return -ENOMEM;
    *r = *what;
    strcpy(r->oldname, oldname);
    strcpy(r->newname, newname);
    notifier_add(front, &r->job);
    return 0;
}

void op_rename(fuse_req_t req, fuse_ino_t parent, const char *name, fuse_ino_t newparent,
               const char *newname, unsigned flags)
{
    struct front *front = front_of(req);
    struct inode *olddir, *newdir;
    room_note_free(front);
    int err = inode_get(front->fs, parent, &olddir);
    if (err != 0) {
        reply_status(req, err);
        return;
    }
    err = inode_get(front->fs, newparent, &newdir);
    if (err != 0) {
        inode_put(olddir, 1);
        reply_status(req, err);
        return;
    }
    struct rename_job what = { .olddir = olddir, .newdir = newdir, .flags = flags };
    what.job = (struct notify_job){ .req = req, .run = rename_run };
    err = rename_needs(olddir, name, newdir, newname, &what.job.flush);
    if (err == 0 && what.job.flush != 0) {
        err = rename_hand_over(req, &what, name, newname);
        if (err == 0)
            return;
    } else if (err == 0) {
        struct cred cred = request_cred(req);
        err = dir_rename(olddir, name, newdir, newname, flags, &cred);
    }
    inode_put(olddir, 1);
    inode_put(newdir, 1);
    reply_status(req, err);
}
