#include "fs/xattr.h"

#include <errno.h>
#include <linux/limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/xattr.h>

#include "fs/names.h"

#define USER_PREFIX     "user."
#define TRUSTED_PREFIX  "trusted."
#define SECURITY_PREFIX "security."

static bool has_namespace(const char *name, const char *space)
{
    return strncmp(name, space, strlen(space)) == 0;
}

/* Linux keeps user. to files and directories: permissions of the others mean something else. Who
 * only asks finds nothing there. */
static int check_name(struct inode *inode, const char *name, int user_error)
{
    uint32_t mode = inode_mode(inode);
    bool user = has_namespace(name, USER_PREFIX);
    if (!user && !has_namespace(name, TRUSTED_PREFIX) && !has_namespace(name, SECURITY_PREFIX))
        return -EOPNOTSUPP;
    if (*(strchr(name, '.') + 1) == '\0')
        return -EINVAL;
    if (strnlen(name, NAME_MAX_BYTES + 1) > NAME_MAX_BYTES)
        return -ERANGE;
    return user && !S_ISREG(mode) && !S_ISDIR(mode) ? user_error : 0;
}

/* ---- asking ----------------------------------------------------------------------------------- */

ssize_t xattr_get(struct inode *inode, const char *name, void *value, size_t size)
{
    struct key key;
    int err = check_name(inode, name, -ENODATA);
    if (err != 0)
        return err;
    key_xattr(&key, inode->ino, name, strlen(name));
    ssize_t len = store_get(inode->fs->store, &key, size == 0 ? NULL : value, size);
    return len == -ENOENT ? -ENODATA : len;
}

/* The name after the one in key, of the same inode.   1: key holds it; 0: none is left; -EIO, -ENOMEM. */
static int next_name(struct store *s, struct key *key)
{
    ssize_t len = store_next(s, key, KEY_PREFIX_BYTES, NULL, 0);
    if (len < 0)
        return len == -ENOENT ? 0 : (int)len;
    return 1;
}

/* list NULL: the length only. */
static ssize_t list_names(struct inode *inode, char *list, size_t size, bool all)
{
    struct key key;
    size_t used = 0;
    int more;
    key_xattr(&key, inode->ino, "", 0);
    while ((more = next_name(inode->fs->store, &key)) == 1) {
        size_t len = key.len - KEY_PREFIX_BYTES;
        const char *name = (const char *)key.bytes + KEY_PREFIX_BYTES;
        if (!all && strncmp(name, TRUSTED_PREFIX, strlen(TRUSTED_PREFIX)) == 0)
            continue;
        if (list != NULL && len + 1 > size - used) {
            more = -ERANGE;
            break;
        }
        if (list != NULL) {
            memcpy(list + used, name, len);
            list[used + len] = '\0';
        }
        used += len + 1;
    }
    return more < 0 ? more : (ssize_t)used;
}

ssize_t xattr_list(struct inode *inode, char *list, size_t size, bool all)
{
    return list_names(inode, size == 0 ? NULL : list, size, all);
}

/* ---- changing --------------------------------------------------------------------------------- */

/* Apply the update with the inode's new ctime. Context: records locked. */
static int apply_with_ctime(struct inode *inode, struct update *u, unsigned flags)
{
    struct inode_record r;
    uint64_t tid;
    inode_record(inode, &r);
    r.ctime = fs_now();
    inode_put_record(u, inode->ino, &r);
    int err = update_apply(u, flags, &tid);
    if (err != 0)
        return err;
    pthread_mutex_lock(&inode->i_lock);
    inode->ctime = r.ctime;
    pthread_mutex_unlock(&inode->i_lock);
    inode_raise_tid(inode, tid);
    return 0;
}

static int xattr_exists(struct inode *inode, const char *name) /* 1, 0, -EIO, -ENOMEM */
{
    struct key key;
    key_xattr(&key, inode->ino, name, strlen(name));
    ssize_t len = store_get(inode->fs->store, &key, NULL, 0);
    if (len >= 0)
        return 1;
    return len == -ENOENT ? 0 : (int)len;
}

/* What listxattr(2) can return is limited, so a name that could not be listed is refused. */
static int check_room(struct inode *inode, const char *name)
{
    ssize_t used = list_names(inode, NULL, 0, true);
    if (used < 0)
        return (int)used;
    return (size_t)used + strlen(name) + 1 > XATTR_LIST_MAX ? -ENOSPC : 0;
}

static int check_set(struct inode *inode, const char *name, int flags)
{
    int exists = xattr_exists(inode, name);
    if (exists < 0)
        return exists;
    if (exists && (flags & XATTR_CREATE))
        return -EEXIST;
    if (!exists && (flags & XATTR_REPLACE))
        return -ENODATA;
    return exists ? 0 : check_room(inode, name);
}

int xattr_set(struct inode *inode, const char *name, const void *value, size_t size, int flags)
{
    struct update u;
    struct key key;
    int err = check_name(inode, name, -EPERM);
    if (err == 0 && (flags & ~(XATTR_CREATE | XATTR_REPLACE)))
        err = -EINVAL;
    if (err == 0 && size > XATTR_VALUE_MAX)
        err = -E2BIG;
    if (err == 0 && inode->fs->options.read_only)
        err = -EROFS;
    if (err != 0)
        return err;
    inode_lock_records(inode->fs);
    err = check_set(inode, name, flags);
    if (err == 0) {
        key_xattr(&key, inode->ino, name, strlen(name));
        update_init(&u, inode->fs->store);
        update_put(&u, &key, value, size);
        err = apply_with_ctime(inode, &u, 0);
        atomic_store(&inode->no_capability, false);
    }
    inode_unlock_records(inode->fs);
    return err;
}

int xattr_remove(struct inode *inode, const char *name)
{
    struct update u;
    struct key key;
    int err = check_name(inode, name, -EPERM);
    if (err == 0 && inode->fs->options.read_only)
        err = -EROFS;
    if (err != 0)
        return err;
    inode_lock_records(inode->fs);
    int exists = xattr_exists(inode, name);
    if (exists == 1) {
        key_xattr(&key, inode->ino, name, strlen(name));
        update_init(&u, inode->fs->store);
        update_del(&u, &key);
        err = apply_with_ctime(inode, &u, UPDATE_FREES);
    } else {
        err = exists == 0 ? -ENODATA : exists;
    }
    inode_unlock_records(inode->fs);
    return err;
}

int xattr_del_all(struct update *u, uint64_t ino)
{
    struct key key;
    int more;
    key_xattr(&key, ino, "", 0);
    while ((more = next_name(u->store, &key)) == 1)
        update_del(u, &key);
    return more;
}
