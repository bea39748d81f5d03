/* dir.c: names, but for rename (rename.c).
 *
 * An entry is two records: KEY_DIRENT finds it by name, KEY_COOKIE by its place in the directory.
 * Looking up takes no lock: a record is either the old or the new one. */
#include "fs/dir.h"

#include <assert.h>
#include <dirent.h>
#include <errno.h>
#include <string.h>

#include "fs/names.h"

int name_check(const char *name)
{
    size_t len = strnlen(name, NAME_MAX_BYTES + 1);
    if (len > NAME_MAX_BYTES)
        return -ENAMETOOLONG;
    return len == 0 || strcmp(name, ".") == 0 || strcmp(name, "..") == 0 ? -EINVAL : 0;
}

/* ---- entries ---------------------------------------------------------------------------------- */

int dirent_get(struct inode *dir, const char *name, struct dirent_record *out)
{
    uint8_t buf[DIRENT_BYTES];
    struct key key;
    key_dirent(&key, dir->ino, name, strlen(name));
    ssize_t len = store_get(dir->fs->store, &key, buf, sizeof(buf));
    if (len == -ERANGE)
        return -EIO;
    return len < 0 ? (int)len : dirent_decode(buf, (size_t)len, out);
}

void dirent_put(struct update *u, struct inode *dir, const char *name, struct inode *target,
                uint64_t cookie)
{
    uint8_t buf[DIRENT_BYTES];
    size_t len = strlen(name);
    struct key key;
    struct dirent_record r = { .ino = target->ino, .cookie = cookie };
    r.type = (uint8_t)IFTODT(inode_mode(target));
    key_dirent(&key, dir->ino, name, len);
    update_put(u, &key, buf, dirent_encode(&r, buf));
    r.name_len = (uint8_t)len;
    memcpy(r.name, name, len);
    key_cookie(&key, dir->ino, cookie);
    update_put(u, &key, buf, dirent_encode(&r, buf));
}

void dirent_del(struct update *u, struct inode *dir, const char *name, uint64_t cookie)
{
    struct key key;
    key_dirent(&key, dir->ino, name, strlen(name));
    update_del(u, &key);
    key_cookie(&key, dir->ino, cookie);
    update_del(u, &key);
}

/* The first entry whose cookie is greater. */
static int dirent_next(struct inode *dir, uint64_t cookie, struct dirent_record *out)
{
    uint8_t buf[DIRENT_BYTES];
    struct key key;
    key_cookie(&key, dir->ino, cookie);
    ssize_t len = store_next(dir->fs->store, &key, KEY_PREFIX_BYTES, buf, sizeof(buf));
    if (len == -ERANGE)
        return -EIO;
    int err = len < 0 ? (int)len : dirent_decode(buf, (size_t)len, out);
    if (err == 0 && (out->name_len == 0 || out->cookie != key_u64(&key, 1)))
        return -EIO;
    return err;
}

int dir_check_empty(struct inode *dir)
{
    struct dirent_record r;
    int err = dirent_next(dir, 0, &r);
    if (err == 0)
        return -ENOTEMPTY;
    return err == -ENOENT ? 0 : err;
}

/* ---- a change of names ------------------------------------------------------------------------ */

void name_change_begin(struct name_change *c, struct fs *fs)
{
    c->fs = fs;
    c->now = fs_now();
    c->nr = 0;
    update_init(&c->update, fs->store);
    inode_lock_records(fs);
}

struct inode_record *name_change_record(struct name_change *c, struct inode *inode)
{
    for (unsigned i = 0; i < c->nr; i++)
        if (c->inodes[i].inode == inode)
            return &c->inodes[i].record;
    assert(c->nr < NAME_CHANGE_INODES);
    struct inode_record *r = &c->inodes[c->nr].record;
    c->inodes[c->nr++].inode = inode;
    inode_record(inode, r);
    r->ctime = c->now;
    return r;
}

struct inode_record *name_change_dir(struct name_change *c, struct inode *dir)
{
    struct inode_record *r = name_change_record(c, dir);
    r->mtime = c->now;
    return r;
}

void name_change_drop(struct name_change *c, struct inode *inode)
{
    struct inode_record *r = name_change_record(c, inode);
    struct key key;
    r->nlink = S_ISDIR(r->mode) || r->nlink == 0 ? 0 : r->nlink - 1;
    if (r->nlink > 0)
        return;
    key_orphan(&key, inode->ino);
    update_put(&c->update, &key, NULL, 0);
}

static void adopt(struct inode *inode, const struct inode_record *r, uint64_t tid)
{
    pthread_mutex_lock(&inode->i_lock);
    inode->nlink = r->nlink;
    inode->ctime = r->ctime;
    if (S_ISDIR(r->mode)) {
        inode->mtime = inode->disk_mtime = r->mtime;
        inode->parent = r->parent;
        inode->cookie = r->cookie;
    }
    pthread_mutex_unlock(&inode->i_lock);
    inode_raise_tid(inode, tid);
}

int name_change_apply(struct name_change *c, unsigned flags)
{
    uint64_t tid;
    for (unsigned i = 0; i < c->nr; i++)
        inode_put_record(&c->update, c->inodes[i].inode->ino, &c->inodes[i].record);
    int err = update_apply(&c->update, flags, &tid);
    for (unsigned i = 0; err == 0 && i < c->nr; i++)
        adopt(c->inodes[i].inode, &c->inodes[i].record, tid);
    inode_unlock_records(c->fs);
    return err;
}

/* ---- looking up and reading ------------------------------------------------------------------- */

static uint64_t parent_of(struct inode *dir)
{
    pthread_mutex_lock(&dir->i_lock);
    uint64_t parent = dir->parent;
    pthread_mutex_unlock(&dir->i_lock);
    return dir->ino == ROOT_INO ? ROOT_INO : parent;
}

/* The inode, unless its last name is gone. */
static int get_named(struct fs *fs, uint64_t ino, struct inode **out)
{
    int err = inode_get(fs, ino, out);
    if (err != 0)
        return err;
    pthread_mutex_lock(&(*out)->i_lock);
    bool named = (*out)->nlink > 0;
    pthread_mutex_unlock(&(*out)->i_lock);
    if (named)
        return 0;
    inode_put(*out, 1);
    return -ENOENT;
}

/* The name may have been given to another inode since its entry was read, and the first one deleted:
 * look again. An entry that leads nowhere twice is a damaged one, as numbers do not come back. */
static int lookup_entry(struct inode *dir, const char *name, struct inode **out)
{
    uint64_t tried = 0;
    for (;;) {
        struct dirent_record entry;
        int err = dirent_get(dir, name, &entry);
        if (err != 0)
            return err;
        if (entry.ino == tried)
            return -EIO;
        tried = entry.ino;
        err = get_named(dir->fs, entry.ino, out);
        if (err != -ENOENT)
            return err;
    }
}

int dir_lookup(struct inode *dir, const char *name, struct inode **out)
{
    if (strcmp(name, ".") == 0) {
        inode_ref(dir, 1);
        *out = dir;
        return 0;
    }
    if (!inode_is_dir(dir))
        return -ENOTDIR;
    if (strcmp(name, "..") == 0)
        return inode_get(dir->fs, parent_of(dir), out);
    int err = name_check(name);
    if (err != 0)
        return err == -EINVAL ? -ENOENT : err; /* the empty name is nobody's */
    return lookup_entry(dir, name, out);
}

int dir_next(struct inode *dir, uint64_t cookie, struct dir_entry *out)
{
    struct dirent_record r;
    if (!inode_is_dir(dir))
        return -ENOTDIR;
    if (cookie < FIRST_COOKIE - 1) {
        *out = (struct dir_entry){ .cookie = cookie + 1, .type = DT_DIR };
        out->ino = cookie == 0 ? dir->ino : parent_of(dir);
        strcpy(out->name, cookie == 0 ? "." : "..");
        return 0;
    }
    int err = dirent_next(dir, cookie, &r);
    if (err != 0)
        return err;
    out->ino = r.ino;
    out->cookie = r.cookie;
    out->type = r.type;
    memcpy(out->name, r.name, sizeof(out->name));
    return 0;
}

/* ---- making ----------------------------------------------------------------------------------- */

/* Can a name be added? rename_lock held. */
static int check_new_name(struct inode *dir, const char *name)
{
    struct dirent_record entry;
    if (!inode_is_dir(dir))
        return -ENOTDIR;
    if (dir->nlink == 0)
        return -ENOENT;
    int err = dirent_get(dir, name, &entry);
    if (err == 0)
        return -EEXIST;
    return err == -ENOENT ? 0 : err;
}

static void add_name(struct name_change *c, struct inode *dir, const char *name,
                     struct inode *target)
{
    struct inode_record *r = name_change_dir(c, dir);
    dirent_put(&c->update, dir, name, target, r->cookie++);
    if (inode_is_dir(target))
        r->nlink++;
}

struct new_object {
    uint32_t mode;
    uint64_t rdev;
    const char *target; /* of a symbolic link, or NULL */
};

/* The update that brings a new inode and its name into the records. */
static int add_object(struct inode *dir, const char *name, const struct new_object *o,
                      struct inode *inode)
{
    struct name_change c;
    struct key key;
    name_change_begin(&c, dir->fs);
    add_name(&c, dir, name, inode);
    struct inode_record *r = name_change_record(&c, inode);
    if (o->target != NULL) {
        r->size = strlen(o->target);
        key_link(&key, inode->ino);
        update_put(&c.update, &key, o->target, r->size);
    }
    uint64_t size = r->size;
    int err = name_change_apply(&c, 0);
    if (err == 0 && o->target != NULL) {
        inode->disk_size = size; /* nobody has found the inode yet */
        atomic_store(&inode->mapping.i_size, size);
    }
    return err;
}

/* Context: rename_lock. *out may be set when it failed too: for the caller to put without it. */
static int create_locked(struct inode *dir, const char *name, const struct new_object *o,
                         const struct cred *cred, struct inode **out)
{
    int err = check_new_name(dir, name);
    if (err != 0)
        return err;
    if (S_ISDIR(o->mode) && dir->nlink >= SUBDIRS_MAX)
        return -EMLINK;
    err = inode_new(dir, o->mode, o->rdev, cred, out);
    if (err != 0)
        return err;
    err = add_object(dir, name, o, *out);
    if (err == 0)
        inode_publish(*out);
    return err;
}

static int create(struct inode *dir, const char *name, const struct new_object *o,
                  const struct cred *cred, struct inode **out)
{
    struct fs *fs = dir->fs;
    struct inode *inode = NULL;
    int err = name_check(name);
    if (err == 0 && fs->options.read_only)
        err = -EROFS;
    if (err != 0)
        return err;
    down_write(&fs->rename_lock);
    err = create_locked(dir, name, o, cred, &inode);
    up_write(&fs->rename_lock);
    if (err == 0) {
        fs_count(fs, FS_CREATES);
        *out = inode;
    } else if (inode != NULL) {
        inode_put(inode, 1);
    }
    return err;
}

int dir_mknod(struct inode *dir, const char *name, uint32_t mode, uint64_t rdev,
              const struct cred *cred, struct inode **out)
{
    const struct new_object o = { .mode = mode & (S_IFMT | 07777), .rdev = rdev };
    if (!S_ISREG(mode) && !S_ISDIR(mode) && !S_ISCHR(mode) && !S_ISBLK(mode) && !S_ISFIFO(mode) &&
        !S_ISSOCK(mode))
        return -EINVAL;
    return create(dir, name, &o, cred, out);
}

int dir_symlink(struct inode *dir, const char *name, const char *target, const struct cred *cred,
                struct inode **out)
{
    const struct new_object o = { .mode = S_IFLNK | 0777, .target = target };
    size_t len = strnlen(target, SYMLINK_MAX_BYTES + 1);
    if (len == 0)
        return -ENOENT;
    if (len > SYMLINK_MAX_BYTES)
        return -ENAMETOOLONG;
    return create(dir, name, &o, cred, out);
}

int dir_readlink(struct inode *inode, char *buf, size_t size)
{
    struct key key;
    if (!S_ISLNK(inode_mode(inode)) || size == 0)
        return -EINVAL;
    key_link(&key, inode->ino);
    ssize_t len = store_get(inode->fs->store, &key, buf, size - 1);
    if (len < 0)
        return len == -ENOENT ? -EIO : (int)len;
    buf[len] = '\0';
    return 0;
}

static int link_locked(struct inode *inode, struct inode *dir, const char *name)
{
    struct name_change c;
    if (inode->nlink == 0)
        return -ENOENT;
    if (inode->nlink >= NLINK_MAX)
        return -EMLINK;
    int err = check_new_name(dir, name);
    if (err != 0)
        return err;
    name_change_begin(&c, dir->fs);
    add_name(&c, dir, name, inode);
    name_change_record(&c, inode)->nlink++;
    return name_change_apply(&c, 0);
}

int dir_link(struct inode *inode, struct inode *dir, const char *name)
{
    int err = name_check(name);
    if (err == 0 && inode_is_dir(inode))
        err = -EPERM;
    if (err == 0 && dir->fs->options.read_only)
        err = -EROFS;
    if (err != 0)
        return err;
    down_write(&dir->fs->rename_lock);
    err = link_locked(inode, dir, name);
    up_write(&dir->fs->rename_lock);
    return err;
}

/* ---- removing --------------------------------------------------------------------------------- */

static int remove_name(struct inode *dir, const char *name, struct inode *target, uint64_t cookie)
{
    struct name_change c;
    name_change_begin(&c, dir->fs);
    dirent_del(&c.update, dir, name, cookie);
    struct inode_record *r = name_change_dir(&c, dir);
    if (inode_is_dir(target))
        r->nlink--;
    name_change_drop(&c, target);
    return name_change_apply(&c, UPDATE_FREES);
}

/* Context: rename_lock. *target may be set when it failed too. */
static int remove_locked(struct inode *dir, const char *name, bool want_dir, struct inode **target)
{
    struct dirent_record entry;
    int err = dirent_get(dir, name, &entry);
    if (err == 0)
        err = inode_get(dir->fs, entry.ino, target);
    if (err != 0)
        return err;
    bool is_dir = inode_is_dir(*target);
    if (is_dir != want_dir)
        return is_dir ? -EISDIR : -ENOTDIR;
    err = is_dir ? dir_check_empty(*target) : 0;
    return err != 0 ? err : remove_name(dir, name, *target, entry.cookie);
}

static int remove_entry(struct inode *dir, const char *name, bool want_dir)
{
    struct fs *fs = dir->fs;
    struct inode *target = NULL;
    int err = name_check(name);
    if (err == 0 && !inode_is_dir(dir))
        err = -ENOTDIR;
    if (err == 0 && fs->options.read_only)
        err = -EROFS;
    if (err != 0)
        return err;
    down_write(&fs->rename_lock);
    err = remove_locked(dir, name, want_dir, &target);
    up_write(&fs->rename_lock);
    if (target != NULL)
        inode_put(target, 1);
    if (err == 0)
        fs_count(fs, FS_UNLINKS);
    return err;
}

int dir_unlink(struct inode *dir, const char *name)
{
    return remove_entry(dir, name, false);
}

int dir_rmdir(struct inode *dir, const char *name)
{
    return remove_entry(dir, name, true);
}
