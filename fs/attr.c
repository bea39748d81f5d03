/* attr.c: an inode's attributes, in memory and in its record. */
#include <errno.h>

#include "fs/data.h"
#include "fs/names.h"

#define RELATIME_SECONDS (24 * 60 * 60) /* atime is at most that much too old */
#define CAPABILITY       "security.capability"

struct timespec fs_now(void)
{
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    return now;
}

uint32_t inode_mode(struct inode *inode)
{
    pthread_mutex_lock(&inode->i_lock);
    uint32_t mode = inode->mode;
    pthread_mutex_unlock(&inode->i_lock);
    return mode;
}

void inode_raise_tid(struct inode *inode, uint64_t tid)
{
    uint64_t old = atomic_load(&inode->tid);
    while (old < tid && !atomic_compare_exchange_weak(&inode->tid, &old, tid))
        continue;
}

/* ---- the record ------------------------------------------------------------------------------- */

int inode_read_record(struct fs *fs, uint64_t ino, struct inode_record *out)
{
    uint8_t buf[INODE_BYTES];
    struct key key;
    key_inode(&key, ino);
    ssize_t len = store_get(fs->store, &key, buf, sizeof(buf));
    if (len == -ERANGE)
        return -EIO;
    return len < 0 ? (int)len : inode_decode(buf, (size_t)len, out);
}

void inode_init(struct inode *inode, const struct inode_record *r)
{
    struct fs *fs = inode->fs;
    inode->mode = r->mode;
    inode->uid = r->uid;
    inode->gid = r->gid;
    inode->nlink = r->nlink;
    inode->data_id = r->data_id;
    inode->disk_size = r->size;
    inode->flags = r->flags;
    inode->rdev = r->rdev;
    inode->parent = r->parent;
    inode->cookie = r->cookie;
    inode->atime = r->atime;
    inode->mtime = inode->disk_mtime = r->mtime;
    inode->ctime = r->ctime;
    inode->btime = r->btime;
    mapping_init(&inode->mapping, fs->cache, fs->dev, r->data_id, &inode_a_ops, r->size);
    inode->mapping.owner = inode;
    list_init(&inode->open_files);
    /* What an earlier life of this inode in memory did may not be durable yet; which transaction it
     * was is forgotten, and the running one is none earlier. */
    atomic_store(&inode->tid, store_tid(fs->store));
}

void inode_record(struct inode *inode, struct inode_record *out)
{
    pthread_mutex_lock(&inode->i_lock);
    *out = (struct inode_record){
        .mode = inode->mode,
        .uid = inode->uid,
        .gid = inode->gid,
        .nlink = inode->nlink,
        .size = inode->disk_size,
        .data_id = inode->data_id,
        .rdev = inode->rdev,
        .parent = inode->parent,
        .cookie = inode->cookie,
        .flags = inode->flags,
        .atime = inode->atime,
        .mtime = inode->disk_mtime,
        .ctime = inode->ctime,
        .btime = inode->btime,
    };
    pthread_mutex_unlock(&inode->i_lock);
}

void inode_put_record(struct update *u, uint64_t ino, const struct inode_record *r)
{
    uint8_t buf[INODE_BYTES];
    struct key key;
    key_inode(&key, ino);
    update_put(u, &key, buf, inode_encode(r, buf));
}

/* ---- asking ----------------------------------------------------------------------------------- */

/* Dirty pages get their blocks when they are written. Which of them have one already is not known
 * here: they count as new, as far as the file's size has room for them. */
static uint64_t count_blocks(struct inode *inode, uint64_t stored)
{
    uint64_t dirty = atomic_load(&inode->mapping.nrdirty);
    uint64_t pages = pages_for(atomic_load(&inode->mapping.i_size));
    if (stored >= pages)
        return stored;
    return stored + dirty < pages ? stored + dirty : pages;
}

int inode_getattr(struct inode *inode, struct stat *st)
{
    uint64_t blocks = 0;
    *st = (struct stat){ .st_ino = inode->ino, .st_blksize = PAGE_SIZE };
    if (atomic_load(&inode->mapping.memfd) != NULL)
        atomic_store(&inode->attributes_shown, true); /* before what is shown is read */
    pthread_mutex_lock(&inode->i_lock);
    uint64_t data_id = inode->data_id;
    st->st_mode = inode->mode;
    st->st_uid = inode->uid;
    st->st_gid = inode->gid;
    st->st_nlink = inode->nlink;
    st->st_rdev = inode->rdev;
    st->st_atim = inode->atime;
    st->st_mtim = inode->mtime;
    st->st_ctim = inode->ctime;
    pthread_mutex_unlock(&inode->i_lock);
    st->st_size = (off_t)stale_size(inode, atomic_load(&inode->mapping.i_size));
    int err = data_id != 0 ? store_count_blocks(inode->fs->store, data_id, &blocks) : 0;
    if (S_ISREG(st->st_mode))
        blocks = count_blocks(inode, blocks);
    st->st_blocks = (blkcnt_t)(blocks * (PAGE_SIZE / 512));
    return err;
}

/* ---- changing --------------------------------------------------------------------------------- */

/* The attributes an inode will have. mtime apart from the record's, which must not be ahead of the
 * data: it says that what is on disk has that age. */
struct new_attr {
    struct inode_record record;
    struct timespec mtime;
    bool mtime_follows; /* the record takes mtime at once; otherwise when the data is written */
};

static void set_mode(struct inode_record *r, const struct stat *attr, unsigned valid)
{
    if (valid & SETATTR_MODE)
        r->mode = (r->mode & S_IFMT) | (attr->st_mode & 07777);
    if (valid & SETATTR_UID)
        r->uid = attr->st_uid;
    if (valid & SETATTR_GID)
        r->gid = attr->st_gid;
    if (!(valid & (SETATTR_UID | SETATTR_GID | SETATTR_KILL_PRIV)) || S_ISDIR(r->mode))
        return;
    r->mode &= ~(uint32_t)S_ISUID;
    /* Without x, it once meant mandatory locking. */
    if ((r->mode & S_IXGRP) || (valid & SETATTR_KILL_SGID))
        r->mode &= ~(uint32_t)S_ISGID;
}

static void set_times(struct new_attr *n, const struct stat *attr, unsigned valid)
{
    struct timespec now = fs_now();
    n->record.ctime = valid & SETATTR_CTIME ? attr->st_ctim : now;
    if (valid & SETATTR_ATIME_NOW)
        n->record.atime = now;
    else if (valid & SETATTR_ATIME)
        n->record.atime = attr->st_atim;
    if (valid & SETATTR_MTIME_NOW)
        n->mtime = now;
    else if (valid & SETATTR_MTIME)
        n->mtime = attr->st_mtim;
    if (n->mtime_follows)
        n->record.mtime = n->mtime;
}

static void new_attr_init(struct new_attr *n, struct inode *inode, unsigned valid)
{
    inode_record(inode, &n->record);
    pthread_mutex_lock(&inode->i_lock);
    n->mtime = inode->mtime;
    n->mtime_follows =
        (valid & (SETATTR_MTIME | SETATTR_MTIME_NOW)) &&
        (!S_ISREG(inode->mode) || (atomic_load(&inode->mapping.nrdirty) == 0 &&
                                   inode->disk_size == atomic_load(&inode->mapping.i_size)));
    pthread_mutex_unlock(&inode->i_lock);
}

/* Only what was asked for: times of the rest may have gone on meanwhile. */
static void adopt(struct inode *inode, const struct new_attr *n, unsigned valid)
{
    pthread_mutex_lock(&inode->i_lock);
    inode->mode = n->record.mode;
    inode->uid = n->record.uid;
    inode->gid = n->record.gid;
    inode->ctime = n->record.ctime;
    if (valid & (SETATTR_ATIME | SETATTR_ATIME_NOW))
        inode->atime = n->record.atime;
    if (valid & (SETATTR_MTIME | SETATTR_MTIME_NOW))
        inode->mtime = n->mtime;
    if (n->mtime_follows)
        inode->disk_mtime = n->mtime;
    pthread_mutex_unlock(&inode->i_lock);
}

/* File capabilities are a kind of setuid: they go with it. */
static int has_capability(struct inode *inode, struct key *key) /* 1, 0, -EIO, -ENOMEM */
{
    key_xattr(key, inode->ino, CAPABILITY, sizeof(CAPABILITY) - 1);
    ssize_t len = store_get(inode->fs->store, key, NULL, 0);
    if (len >= 0)
        return 1;
    return len == -ENOENT ? 0 : (int)len;
}

static int drop_capability(struct update *u, struct inode *inode, unsigned valid)
{
    struct key key;
    if (!(valid & (SETATTR_UID | SETATTR_GID | SETATTR_KILL_PRIV)) || inode_is_dir(inode))
        return 0;
    int has = has_capability(inode, &key);
    if (has == 1)
        update_del(u, &key);
    return has < 0 ? has : 0;
}

/* Asked for with every write of some users, and hardly ever there. */
static bool has_no_privilege(struct inode *inode)
{
    struct key key;
    return !(inode_mode(inode) & (S_ISUID | S_ISGID)) && has_capability(inode, &key) == 0;
}

/* A change to come, with all that may fail for want of memory done: the size is changed in between. */
struct attr_change {
    struct update update;
    uint8_t *place; /* of the inode's record, in update */
};

static int change_prepare(struct attr_change *c, struct inode *inode, unsigned valid)
{
    struct key key;
    update_init(&c->update, inode->fs->store);
    key_inode(&key, inode->ino);
    c->place = update_reserve(&c->update, &key, INODE_BYTES);
    int err = drop_capability(&c->update, inode, valid);
    if (err == 0)
        err = c->update.error;
    if (err != 0)
        update_abort(&c->update);
    return err;
}

static int change_apply(struct attr_change *c, struct inode *inode, const struct stat *attr,
                        unsigned valid)
{
    struct new_attr n;
    uint64_t tid;
    inode_lock_records(inode->fs);
    new_attr_init(&n, inode, valid);
    set_mode(&n.record, attr, valid);
    set_times(&n, attr, valid);
    (void)inode_encode(&n.record, c->place);
    /* What comes with a new size, which is there already, must not fail for want of room. */
    int err = update_apply(&c->update, valid & SETATTR_SIZE ? UPDATE_FREES : 0, &tid);
    if (err == 0) {
        adopt(inode, &n, valid);
        inode_raise_tid(inode, tid);
    }
    inode_unlock_records(inode->fs);
    return err;
}

static bool time_is_sane(const struct timespec *t)
{
    return t->tv_nsec >= 0 && t->tv_nsec < 1000000000;
}

static int check_attr(struct inode *inode, const struct stat *attr, unsigned valid)
{
    uint32_t mode = inode_mode(inode);
    if (inode->fs->options.read_only)
        return -EROFS;
    if ((valid & SETATTR_SIZE) && !S_ISREG(mode))
        return S_ISDIR(mode) ? -EISDIR : -EINVAL;
    if ((valid & SETATTR_SIZE) && attr->st_size < 0)
        return -EINVAL;
    if (((valid & SETATTR_ATIME) && !time_is_sane(&attr->st_atim)) ||
        ((valid & SETATTR_MTIME) && !time_is_sane(&attr->st_mtim)) ||
        ((valid & SETATTR_CTIME) && !time_is_sane(&attr->st_ctim)))
        return -EINVAL;
    return 0;
}

int inode_setattr(struct inode *inode, const struct stat *attr, unsigned valid)
{
    struct attr_change c;
    int err = check_attr(inode, attr, valid);
    if (err != 0)
        return err;
    if (valid == SETATTR_SIZE)
        return inode_truncate(inode, (uint64_t)attr->st_size);
    if (valid == SETATTR_KILL_PRIV && has_no_privilege(inode))
        return 0;
    err = change_prepare(&c, inode, valid);
    if (err != 0)
        return err;
    if (valid & SETATTR_SIZE)
        err = inode_truncate(inode, (uint64_t)attr->st_size);
    if (err == 0)
        return change_apply(&c, inode, attr, valid);
    update_abort(&c.update);
    return err;
}

/* ---- atime ------------------------------------------------------------------------------------ */

static bool atime_is_due(struct inode *inode, struct timespec now)
{
    const struct fs_options *o = &inode->fs->options;
    if (o->read_only || o->noatime || (o->nodiratime && inode_is_dir(inode)))
        return false;
    if (o->strictatime)
        return true;
    pthread_mutex_lock(&inode->i_lock);
    bool due = !is_before(inode->mtime, inode->atime) || !is_before(inode->ctime, inode->atime) ||
               now.tv_sec - inode->atime.tv_sec >= RELATIME_SECONDS;
    pthread_mutex_unlock(&inode->i_lock);
    return due;
}

void inode_touch_atime(struct inode *inode)
{
    struct timespec now = fs_now();
    struct inode_record r;
    struct update u;
    uint64_t tid;
    if (!atime_is_due(inode, now))
        return;
    inode_lock_records(inode->fs);
    inode_record(inode, &r);
    r.atime = now;
    update_init(&u, inode->fs->store);
    inode_put_record(&u, inode->ino, &r);
    if (update_apply(&u, 0, &tid) == 0) {
        pthread_mutex_lock(&inode->i_lock);
        inode->atime = now;
        pthread_mutex_unlock(&inode->i_lock);
        inode_raise_tid(inode, tid);
    }
    inode_unlock_records(inode->fs);
}
