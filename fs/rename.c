/* rename.c: rename, in its three kinds: to a free name, over something, and exchange. The first two can leave a
 * whiteout at the old name: what overlayfs takes for "deleted", when the file below has that name still.
 *
 * Cookies: readdir goes by them, and promises that a name which is there all the time is seen once.
 * So a name that changes its inode keeps its cookie (over something, exchange, whiteout), and an entry that
 * changes its name within a directory, and leaves none there, keeps its own. (A new one would put it behind the reader
 * again: a program that renames what it reads would never come to the end.) */
#include <errno.h>
#include <stdio.h>

#include "fs/data.h"
#include "fs/dir.h"
#include "fs/names.h"

#define TREE_DEPTH_MAX (1u << 20) /* a damaged tree may be a ring */
#define WHITEOUT_MODE  S_IFCHR    /* as Linux's: no permissions, and device 0:0 */
#define WHITEOUT_DEV   0
#define WRITE_FIRST    1 /* the source's data must be in the transaction before */

struct rename {
    struct fs *fs;
    struct inode *olddir, *newdir;
    const char *oldname, *newname;
    unsigned flags;
    const struct cred *cred;
    struct dirent_record old, new;
    struct inode *source, *target; /* referenced; target: NULL if the new name is free */
    struct inode *whiteout;        /* referenced, or NULL */
};

/* ---- may it be -------------------------------------------------------------------------------- */

static int find_both(struct rename *r)
{
    if (r->newdir->nlink == 0)
        return -ENOENT;
    int err = dirent_get(r->olddir, r->oldname, &r->old);
    if (err != 0)
        return err;
    err = dirent_get(r->newdir, r->newname, &r->new);
    if (err == 0 && (r->flags & RENAME_NOREPLACE))
        return -EEXIST;
    if (err == -ENOENT && !(r->flags & RENAME_EXCHANGE))
        return inode_get(r->fs, r->old.ino, &r->source);
    if (err == 0)
        err = inode_get(r->fs, r->old.ino, &r->source);
    if (err == 0)
        err = inode_get(r->fs, r->new.ino, &r->target);
    return err;
}

/* Is the directory ino, or one above it, ancestor?   1, 0 or -EIO. */
static int is_below(struct fs *fs, uint64_t ino, uint64_t ancestor)
{
    for (unsigned depth = 0; depth < TREE_DEPTH_MAX; depth++) {
        struct inode_record record;
        if (ino == ancestor)
            return 1;
        if (ino == ROOT_INO)
            return 0;
        int err = inode_read_record(fs, ino, &record);
        if (err != 0)
            return err == -ENOENT ? -EIO : err;
        ino = record.parent;
    }
    return -EIO;
}

/* A directory cannot come to lie in itself. */
static int check_subtree(struct rename *r, struct inode *moved, struct inode *to)
{
    if (moved == NULL || r->olddir == r->newdir || !inode_is_dir(moved))
        return 0;
    int below = is_below(r->fs, to->ino, moved->ino);
    return below == 1 ? -EINVAL : below;
}

static int check_replaced(struct rename *r)
{
    bool source_dir = inode_is_dir(r->source), target_dir = inode_is_dir(r->target);
    if (source_dir != target_dir)
        return source_dir ? -ENOTDIR : -EISDIR;
    return target_dir ? dir_check_empty(r->target) : 0;
}

/* Does a directory get one more subdirectory than it may have? lost: the one it gives in exchange. */
static bool too_many(struct rename *r, struct inode *dir, struct inode *moved, struct inode *lost)
{
    return r->olddir != r->newdir && inode_is_dir(moved) && !(lost != NULL && inode_is_dir(lost)) &&
           dir->nlink >= SUBDIRS_MAX;
}

static int check_rename(struct rename *r)
{
    bool exchange = r->flags & RENAME_EXCHANGE;
    int err = check_subtree(r, r->source, r->newdir);
    if (err == 0 && exchange)
        err = check_subtree(r, r->target, r->olddir);
    if (err == 0 && !exchange && r->target != NULL)
        err = check_replaced(r);
    if (err != 0)
        return err;
    if (too_many(r, r->newdir, r->source, r->target) ||
        (exchange && too_many(r, r->olddir, r->target, r->source)))
        return -EMLINK;
    return 0;
}

/* ---- doing it --------------------------------------------------------------------------------- */

/* A directory's ".." and what both parents count. */
static void move_parent(struct name_change *c, struct inode *moved, struct inode *from,
                        struct inode *to)
{
    struct inode_record *record = name_change_record(c, moved);
    if (from == to || !S_ISDIR(record->mode))
        return;
    record->parent = to->ino;
    name_change_dir(c, from)->nlink--;
    name_change_dir(c, to)->nlink++;
}

static int apply_exchange(struct rename *r)
{
    struct name_change c;
    name_change_begin(&c, r->fs);
    dirent_put(&c.update, r->olddir, r->oldname, r->target, r->old.cookie);
    dirent_put(&c.update, r->newdir, r->newname, r->source, r->new.cookie);
    name_change_dir(&c, r->olddir);
    name_change_dir(&c, r->newdir);
    move_parent(&c, r->source, r->olddir, r->newdir);
    move_parent(&c, r->target, r->newdir, r->olddir);
    return name_change_apply(&c, 0);
}

static int apply_move(struct rename *r)
{
    struct name_change c;
    uint64_t cookie = r->old.cookie;
    name_change_begin(&c, r->fs);
    name_change_dir(&c, r->olddir);
    struct inode_record *newdir = name_change_dir(&c, r->newdir);
    if (r->target != NULL) {
        cookie = r->new.cookie;
        if (inode_is_dir(r->target))
            newdir->nlink--;
        name_change_drop(&c, r->target);
    } else if (r->olddir != r->newdir || r->whiteout != NULL) {
        cookie = newdir->cookie++;
    }
    /* The old entry first: of two records with one key the later one stays. */
    if (r->whiteout != NULL) {
        dirent_put(&c.update, r->olddir, r->oldname, r->whiteout, r->old.cookie);
        name_change_record(&c, r->whiteout);
    } else {
        dirent_del(&c.update, r->olddir, r->oldname, r->old.cookie);
    }
    dirent_put(&c.update, r->newdir, r->newname, r->source, cookie);
    move_parent(&c, r->source, r->olddir, r->newdir);
    return name_change_apply(&c, 0);
}

static int apply_whiteout(struct rename *r)
{
    int err = inode_new(r->olddir, WHITEOUT_MODE, WHITEOUT_DEV, r->cred, &r->whiteout);
    if (err == 0)
        err = apply_move(r);
    if (err == 0)
        inode_publish(r->whiteout);
    return err;
}

/* A file that replaces another brings its content along: programs write a file anew, rename it over
 * the old one, and count on finding either after a crash. */
static bool needs_data(struct rename *r)
{
    return !(r->flags & RENAME_EXCHANGE) && r->target != NULL && S_ISREG(inode_mode(r->source)) &&
           S_ISREG(inode_mode(r->target));
}

/* Context: rename_lock. written: the inode whose data is in the transaction already. */
static int rename_locked(struct rename *r, uint64_t written)
{
    int err = find_both(r);
    if (err != 0)
        return err;
    if (r->source == r->target)
        return 0; /* two names of one inode stay as they are, says POSIX */
    err = check_rename(r);
    if (err != 0)
        return err;
    if (needs_data(r) && written != r->source->ino)
        return WRITE_FIRST;
    if (r->flags & RENAME_EXCHANGE)
        return apply_exchange(r);
    return r->flags & RENAME_WHITEOUT ? apply_whiteout(r) : apply_move(r);
}

static void put_all(struct rename *r)
{
    if (r->whiteout != NULL)
        inode_put(r->whiteout, 1);
    if (r->source != NULL)
        inode_put(r->source, 1);
    if (r->target != NULL)
        inode_put(r->target, 1);
    r->source = r->target = r->whiteout = NULL;
}

static int check_arguments(const struct rename *r)
{
    const unsigned alone = RENAME_EXCHANGE, others = RENAME_NOREPLACE | RENAME_WHITEOUT;
    if ((r->flags & ~(alone | others)) || ((r->flags & alone) && (r->flags & others)))
        return -EINVAL;
    int err = name_check(r->oldname);
    if (err == 0)
        err = name_check(r->newname);
    if (err != 0)
        return err;
    if (!inode_is_dir(r->olddir) || !inode_is_dir(r->newdir))
        return -ENOTDIR;
    return r->fs->options.read_only ? -EROFS : 0;
}

/* Writing data must not keep everybody from their names, so it is done without the lock, and then all
 * is looked at again: only a name that meanwhile means another file makes it one more round. */
int dir_rename(struct inode *olddir, const char *oldname, struct inode *newdir, const char *newname,
               unsigned flags, const struct cred *cred)
{
    struct rename r = { .fs = olddir->fs,
                        .olddir = olddir,
                        .newdir = newdir,
                        .oldname = oldname,
                        .newname = newname,
                        .flags = flags,
                        .cred = cred };
    uint64_t written = 0;
    int err = check_arguments(&r);
    if (err != 0)
        return err;
    do {
        down_write(&r.fs->rename_lock);
        err = rename_locked(&r, written);
        up_write(&r.fs->rename_lock);
        if (err == WRITE_FIRST) {
            written = r.source->ino;
            int write_err = inode_write_back(r.source);
            if (write_err != 0)
                err = write_err;
        }
        put_all(&r);
    } while (err == WRITE_FIRST);
    return err;
}
