#include "fs/data.h"
#include "fs/fuse_ops.h"
#include "fs/names.h"
#include "fs/xattr.h"
#include "store/bytes.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/statvfs.h>

#define MAX_GROUPS       256 /* of a caller that are looked at */
#define CAPABILITY_BYTES 64  /* Linux's are 24 at most; a longer one is none the less one */

/* ---- answering ------------------------------------------------------------------------------- */

void reply_status(fuse_req_t req, int err)
{
    fuse_reply_err(req, -err);
}

/* What a file takes the kernel knows from us alone, size and times of one that it writes to from itself. So while it
 * holds writes that we have not seen, blocks are good for a second; and they are not said to be none: who makes an
 * archive then looks no further (tar -S), where else SEEK_DATA would tell.
 * *last: for how many seconds the kernel may keep the attributes; see fuse_room.c, too.
 * Returns inode_getattr()'s. */
static int attributes(struct inode *inode, struct stat *st, double *last)
{
    const struct front *front = inode->fs->options.front;
    bool writers =
        inode_has_writers(inode); /* first: the last of them leaves when all is written */
    if (!writers) { /* either we see who opens it now, or he sees what we say: attributes_end() */
        atomic_store(&inode->attributes_last, true);
        writers = inode_has_writers(inode);
    }
    int err = inode_getattr(inode, st);
    *last = CACHE_SECONDS;
    if (S_ISREG(st->st_mode) && writers) {
        if (st->st_blocks == 0 && (st->st_size > 0 || front->kernel_cache))
            st->st_blocks = PAGE_SIZE / 512;
        if (front->kernel_cache)
            *last = atomic_load(&front->room_short) ? 0 : WRITERS_SECONDS;
    }
    atomic_store(&inode->blocks_shown, (uint64_t)st->st_blocks);
    return err;
}

void attributes_end(struct front *front, struct inode *inode)
{
    if (front->kernel_cache && atomic_exchange(&inode->attributes_last, false))
        front_forget_attributes(front, inode->ino);
}

void attributes_synced(struct front *front, struct inode *inode)
{
    struct stat st;
    if (front->kernel_cache && (inode_getattr(inode, &st) != 0 ||
                                (uint64_t)st.st_blocks != atomic_load(&inode->blocks_shown)))
        front_forget_attributes(front, inode->ino);
}

/* Attributes, or the error of getting them. */
static void reply_attr(fuse_req_t req, struct inode *inode)
{
    struct stat st;
    double last;
    int err = attributes(inode, &st, &last);
    if (err != 0)
        reply_status(req, err);
    else
        fuse_reply_attr(req, &st, last);
}

/* After a change: as reply_new_entry(). */
static void reply_changed_attr(fuse_req_t req, struct inode *inode)
{
    struct stat st;
    double last;
    int err = attributes(inode, &st, &last);
    fuse_reply_attr(req, &st, err == 0 ? last : 0);
}

/* The volume's: file handles from another one, which has the same numbers, lead nowhere here. To Linux the root's is 0. */
static uint32_t generation(const struct inode *inode)
{
    return inode->ino == ROOT_INO ? 0 : get_le32(store_super(inode->fs->store)->uuid);
}

int fill_entry(struct inode *inode, struct fuse_entry_param *e)
{
    memset(e, 0, sizeof *e);
    e->ino = inode->ino;
    e->generation = generation(inode);
    e->entry_timeout = CACHE_SECONDS;
    return attributes(inode, &e->attr, &e->attr_timeout);
}

void fill_new_entry(struct inode *inode, struct fuse_entry_param *e)
{
    if (fill_entry(inode, e) != 0)
        e->attr_timeout = 0;
}

void reply_new_entry(fuse_req_t req, struct inode *inode)
{
    struct fuse_entry_param e;
    fill_new_entry(inode, &e);
    if (fuse_reply_entry(req, &e) != 0)
        inode_put(inode, 1);
}

void reply_entry(fuse_req_t req, struct inode *inode)
{
    struct fuse_entry_param e;
    int err = fill_entry(inode, &e);
    if (err != 0)
        reply_status(req, err);
    else
        err = fuse_reply_entry(req, &e);
    if (err != 0)
        inode_put(inode, 1);
}

/* ---- suid and sgid --------------------------------------------------------------------------- */

void forget_attributes(fuse_req_t req, struct inode *inode)
{
    front_forget_attributes(front_of(req), inode->ino);
}

/* Without the kernel's word, every user but root counts as one without CAP_FSETID and CAP_FOWNER. */
bool caller_is_unprivileged(fuse_req_t req)
{
    return fuse_req_ctx(req)->uid != 0;
}

static bool caller_in_group_or_capable(fuse_req_t req, gid_t gid)
{
    gid_t groups[MAX_GROUPS];
    if (fuse_req_ctx(req)->gid == gid || !caller_is_unprivileged(req))
        return true;
    int n = fuse_req_getgroups(req, MAX_GROUPS, groups);
    for (int i = 0; i < n && i < MAX_GROUPS; i++)
        if (groups[i] == gid)
            return true;
    return false;
}

/* Where setgid goes, does it go without the group's x bit too? As Linux's setattr_should_drop_sgid(). What of the mode
 * is taken away is seen when it is: it may have been changed by then.   Returns SETATTR_KILL_SGID or 0. */
static unsigned kill_sgid(fuse_req_t req, struct inode *inode)
{
    pthread_mutex_lock(&inode->i_lock);
    uint32_t mode = inode->mode;
    gid_t gid = inode->gid;
    pthread_mutex_unlock(&inode->i_lock);
    bool without_x = (mode & (S_ISGID | S_IXGRP)) == S_ISGID;
    return without_x && !caller_in_group_or_capable(req, gid) ? SETATTR_KILL_SGID : 0;
}

int drop_privilege(fuse_req_t req, struct inode *inode)
{
    uint32_t mode = inode_mode(inode);
    if (!S_ISREG(mode) || (mode & (S_ISUID | S_ISGID)) == 0)
        return 0;
    int err = inode_setattr(inode, NULL, SETATTR_KILL_PRIV | kill_sgid(req, inode));
    if (err == 0)
        forget_attributes(req, inode);
    return err;
}

int drop_capability(fuse_req_t req, struct inode *inode)
{
    static const char name[] = "security.capability";
    char value[CAPABILITY_BYTES];
    if (front_of(req)->kernel_cache)
        return 0;
    /* Said before it is looked up, and unsaid by whoever sets one after it is there (xattr_set): so it
     * is never believed wrongly. */
    if (atomic_exchange(&inode->no_capability, true))
        return 0;
    ssize_t n = xattr_get(inode, name, value, sizeof value);
    int err = n >= 0 || n == -ERANGE ? xattr_remove(inode, name) : (int)n;
    if (err == -ENODATA)
        return 0;
    if (err != 0)
        atomic_store(&inode->no_capability, false);
    return err;
}

bool write_kills_privilege(fuse_req_t req, const struct fuse_file_info *fi)
{
    if (fi->writepage)
        return false;
    if (wire_agreed(&front_of(req)->wire, WIRE_KILLPRIV_V2))
        return (fi->flags & WIRE_KILL_PRIV) != 0;
    return caller_is_unprivileged(req);
}

/* ---- operations ------------------------------------------------------------------------------ */

void op_getattr(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
    struct front *front = front_of(req);
    struct inode *inode;
    int err = inode_get(front->fs, ino, &inode);
    if (err != 0) {
        reply_status(req, err);
        return;
    }
    if (fi != NULL && !inode_is_dir(inode) &&
        room_refuses(front, (struct open_file *)(uintptr_t)fi->fh))
        reply_status(req, -ENOSPC);
    else
        reply_attr(req, inode);
    inode_put(inode, 1);
}

static unsigned decode_valid(int to_set)
{
    static const struct {
        int fuse;
        unsigned ours;
    } map[] = {
        { FUSE_SET_ATTR_MODE, SETATTR_MODE },
        { FUSE_SET_ATTR_UID, SETATTR_UID },
        { FUSE_SET_ATTR_GID, SETATTR_GID },
        { FUSE_SET_ATTR_SIZE, SETATTR_SIZE },
        { FUSE_SET_ATTR_ATIME, SETATTR_ATIME },
        { FUSE_SET_ATTR_MTIME, SETATTR_MTIME },
        { FUSE_SET_ATTR_CTIME, SETATTR_CTIME },
        { FUSE_SET_ATTR_ATIME_NOW, SETATTR_ATIME_NOW },
        { FUSE_SET_ATTR_MTIME_NOW, SETATTR_MTIME_NOW },
        { FUSE_SET_ATTR_KILL_SUID, SETATTR_KILL_PRIV }, /* the kernel's FATTR_KILL_SUIDGID */
    };
    unsigned valid = 0;
    for (size_t i = 0; i < sizeof map / sizeof map[0]; i++)
        valid |= (to_set & map[i].fuse) != 0 ? map[i].ours : 0;
    return valid;
}

/* chown(2) with -1 and -1 clears suid and sgid too. Where that is ours to do, the kernel sends it
 * with nothing to set, or only the ctime, as it does for who is about to change a file that is open for writing. */
static bool is_empty_chown(fuse_req_t req, int to_set)
{
    return (to_set & ~FUSE_SET_ATTR_CTIME) == 0 &&
           wire_agreed(&front_of(req)->wire, WIRE_KILLPRIV_V2);
}

/* Nobody asked the kernel whose file it is: there was nothing to set. (While somebody has it open for writing it may be
 * for his write, and is done whoever asks.) Returns -EPERM: it is somebody else's. */
static int empty_chown(fuse_req_t req, struct inode *inode, int to_set)
{
    bool is_chown = (to_set & FUSE_SET_ATTR_CTIME) != 0 || !inode_has_writers(inode);
    pthread_mutex_lock(&inode->i_lock);
    bool drops = S_ISREG(inode->mode) && (inode->mode & (S_ISUID | S_ISGID)) != 0;
    bool owns = inode->uid == fuse_req_ctx(req)->uid || !caller_is_unprivileged(req);
    pthread_mutex_unlock(&inode->i_lock);
    return is_chown && drops && !owns ? -EPERM : drop_privilege(req, inode);
}

static void setattr_and_reply(fuse_req_t req, struct inode *inode, const struct stat *attr,
                              int to_set)
{
    unsigned valid = decode_valid(to_set);
    int err = 0;
    if ((to_set & FUSE_SET_ATTR_SIZE) != 0)
        room_note_free(front_of(req));
    if ((to_set & FUSE_SET_ATTR_SIZE) != 0 && (to_set & FUSE_SET_ATTR_KILL_SUID) != 0)
        err = drop_privilege(req, inode);
    else if (is_empty_chown(req, to_set))
        err = empty_chown(req, inode, to_set);
    if (err == 0 && (valid & (SETATTR_UID | SETATTR_GID)) != 0)
        valid |= kill_sgid(req, inode);
    if (err == 0)
        err = inode_setattr(inode, attr, valid);
    if (err != 0)
        reply_status(req, err);
    else
        reply_changed_attr(req, inode);
}

struct setattr_job {
    struct notify_job job; /* first */
    struct inode *inode;
    struct stat attr;
    int to_set;
};

static void setattr_run(struct notify_job *job)
{
    struct setattr_job *s = (struct setattr_job *)job;
    if (job->kept)
        fuse_reply_none(job->req);
    else
        setattr_and_reply(job->req, s->inode, &s->attr, s->to_set);
    inode_put(s->inode, 1);
    free(s);
}

/* What the kernel's mappings have stored gets its time when it is handed over: where that is ours to give, it is handed
 * over before another is set, or that would be overwritten. Not where the file is cut too: then nothing can be handed
 * over until we have answered. */
static bool stores_come_first(const struct front *front, struct inode *inode, int to_set)
{
    return !front->kernel_cache &&
           (to_set & (FUSE_SET_ATTR_MTIME | FUSE_SET_ATTR_MTIME_NOW)) != 0 &&
           (to_set & FUSE_SET_ATTR_SIZE) == 0 && atomic_load(&inode->copies) != 0 &&
           inode_has_writers(inode);
}

/* Takes over one reference.   Returns 0: it will be answered; -ENOMEM. */
static int setattr_later(fuse_req_t req, struct inode *inode, const struct stat *attr, int to_set)
{
    struct front *front = front_of(req);
    struct setattr_job *s = front_may_wait(front) ? malloc(sizeof *s) : NULL;
    if (s == NULL) {
        inode_put(inode, 1);
        return -ENOMEM;
    }
    *s = (struct setattr_job){ .inode = inode, .attr = *attr, .to_set = to_set };
    s->job = (struct notify_job){ .req = req, .flush = inode->ino, .run = setattr_run };
    notifier_add(front, &s->job);
    return 0;
}

void op_setattr(fuse_req_t req, fuse_ino_t ino, struct stat *attr, int to_set,
                struct fuse_file_info *fi)
{
    (void)fi;
    struct front *front = front_of(req);
    struct inode *inode;
    int err = inode_get(front->fs, ino, &inode);
    if (err == 0 && stores_come_first(front, inode, to_set)) {
        err = setattr_later(req, inode, attr, to_set);
    } else if (err == 0) {
        setattr_and_reply(req, inode, attr, to_set);
        inode_put(inode, 1);
    }
    if (err != 0)
        reply_status(req, err);
}

/* No count of inodes: there is no table that could run out, as on Btrfs. */
void op_statfs(fuse_req_t req, fuse_ino_t ino)
{
    (void)ino;
    struct store_space space;
    store_space(front_of(req)->fs->store, &space);
    uint64_t used = space.used < space.capacity ? space.used : space.capacity;
    uint64_t kept = room_kept(front_of(req), &space);
    struct statvfs st = {
        .f_bsize = PAGE_SIZE,
        .f_frsize = PAGE_SIZE,
        .f_blocks = space.capacity / PAGE_SIZE,
        .f_bfree = (space.capacity - used) / PAGE_SIZE,
        .f_bavail = (space.available > kept ? space.available - kept : 0) / PAGE_SIZE,
        .f_namemax = NAME_MAX_BYTES,
    };
    fuse_reply_statfs(req, &st);
}
