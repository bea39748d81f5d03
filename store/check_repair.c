/* check_repair.c: applies what the passes asked for, in transactions of REPAIR_BATCH changes.
 *
 * The order is records, then lost+found, then the inodes' own fields. A crash in between leaves a
 * volume on which the next check finds the rest. */
#include "store/check_internal.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>

#define REPAIR_BATCH    256u
#define LOST_NAME_TRIES 100u

struct batch {
    struct lmdb *l;
    unsigned changes; /* in the transaction; 0: none is open */
};

static int batch_begin(struct batch *b)
{
    int err = b->changes == 0 ? lmdb_begin(b->l) : 0;

    if (err == 0)
        b->changes++;
    return err;
}

static int batch_commit(struct batch *b)
{
    bool open = b->changes > 0;

    b->changes = 0;
    return open ? lmdb_commit(b->l) : 0;
}

/* Called between changes that belong together, never within. */
static int batch_bound(struct batch *b)
{
    return b->changes >= REPAIR_BATCH ? batch_commit(b) : 0;
}

static void batch_abort(struct batch *b)
{
    if (b->changes > 0)
        lmdb_abort(b->l);
    b->changes = 0;
}

static int batch_put(struct batch *b, const struct key *key, const uint8_t *value, size_t len)
{
    int err = batch_begin(b);

    return err != 0 ? err : lmdb_put(b->l, key, value, len);
}

static int batch_del(struct batch *b, const struct key *key)
{
    int err = batch_begin(b);

    return err != 0 ? err : lmdb_del(b->l, key);
}

/* Is there a record that can be read?   Looks at what is committed. */
static int exists(struct batch *b, const struct key *key)
{
    ssize_t n = lmdb_get(b->l, key, NULL, 0);

    return n >= 0 ? 1 : n == -ENOENT ? 0 : (int)n;
}

static int restore_name(struct batch *b, const struct repair *r)
{
    struct dirent_record dirent;
    uint8_t buf[DIRENT_BYTES];
    struct key key;
    int err = dirent_decode(r->value, r->len, &dirent);

    if (err == 0)
        err = batch_commit(b);
    if (err != 0)
        return err;
    key_dirent(&key, key_u64(&r->key, 0), dirent.name, dirent.name_len);
    err = exists(b, &key);
    if (err != 0)
        return err < 0 ? err : batch_del(b, &r->key);
    dirent.name_len = 0;
    return batch_put(b, &key, buf, dirent_encode(&dirent, buf));
}

static int apply_records(struct check *c, struct batch *b)
{
    int err = 0;

    for (const struct repair *r = c->repairs; r != NULL && err == 0; r = r->next) {
        switch (r->kind) {
        case REPAIR_PUT:
            err = batch_put(b, &r->key, r->value, r->len);
            break;
        case REPAIR_DEL:
            err = batch_del(b, &r->key);
            break;
        case REPAIR_RESTORE:
            err = restore_name(b, r);
            break;
        }
        if (err == 0)
            err = batch_bound(b);
    }
    return err != 0 ? err : batch_commit(b);
}

/* ---- lost+found ------------------------------------------------------------------------------ */

/* Put both halves of a name. */
static int put_name(struct batch *b, struct inode_entry *dir, const char *name, uint64_t ino,
                    uint8_t type)
{
    struct dirent_record r = { .ino = ino, .cookie = dir->cookie++, .type = type };
    uint8_t buf[DIRENT_BYTES];
    size_t len = strlen(name);
    struct key key;
    int err;

    key_dirent(&key, dir->ino, name, len);
    err = batch_put(b, &key, buf, dirent_encode(&r, buf));
    if (err != 0)
        return err;
    r.name_len = (uint8_t)len;
    memcpy(r.name, name, len + 1);
    key_cookie(&key, dir->ino, r.cookie);
    dir->flags |= I_FIX_COOKIE;
    return batch_put(b, &key, buf, dirent_encode(&r, buf));
}

static int make_lost_found(struct check *c, struct batch *b, uint64_t ino)
{
    struct inode_record r = {
        .mode = S_IFDIR | 0700, .nlink = 2, .parent = ROOT_INO, .cookie = FIRST_COOKIE
    };
    struct inode_entry *root = check_inode(c, ROOT_INO);
    uint8_t buf[INODE_BYTES];
    struct key key;
    int err;

    clock_gettime(CLOCK_REALTIME, &r.btime);
    r.atime = r.mtime = r.ctime = r.btime;
    key_counter(&key);
    err = batch_put(b, &key, buf, number_encode(ino + 1, buf));
    if (err != 0)
        return err;
    key_inode(&key, ino);
    err = batch_put(b, &key, buf, inode_encode(&r, buf));
    if (err == 0)
        err = put_name(b, root, LOST_FOUND, ino, DT_DIR);
    root->nlink++;
    root->flags |= I_FIX_NLINK;
    return err;
}

/* The directory to which lost inodes go, made when there is none. */
static int lost_found(struct check *c, struct batch *b, struct inode_entry **out)
{
    struct inode_entry *dir = check_inode(c, c->lost_found);
    uint64_t ino = c->counter;
    int err;

    if (dir != NULL && (dir->flags & (I_DAMAGED | I_LOST)) != 0)
        return -EIO;
    if (dir == NULL) {
        err = make_lost_found(c, b, ino);
        dir = err == 0 ? table_add(&c->inodes, ino) : NULL;
        if (dir == NULL)
            return err != 0 ? err : -ENOMEM;
        dir->flags = I_RECORD;
        dir->type = DT_DIR;
        dir->nlink = 2;
        dir->parent = ROOT_INO;
        dir->cookie = FIRST_COOKIE;
        c->counter = ino + 1;
        c->lost_found = ino;
    }
    *out = dir;
    return 0;
}

/* #INO, or #INO.1 ... when somebody has taken that. */
static int free_name(struct batch *b, const struct inode_entry *dir, uint64_t ino, char *name,
                     size_t size)
{
    struct key key;
    int err = 1;

    for (unsigned i = 0; err == 1 && i < LOST_NAME_TRIES; i++) {
        int len = i == 0 ? snprintf(name, size, "#%" PRIu64, ino)
                         : snprintf(name, size, "#%" PRIu64 ".%u", ino, i);
        key_dirent(&key, dir->ino, name, (size_t)len);
        err = exists(b, &key);
    }
    return err == 1 ? -EEXIST : err;
}

static int rescue(struct check *c, struct batch *b, uint64_t ino)
{
    struct inode_entry *dir, *i;
    char name[40];
    int err = lost_found(c, b, &dir);

    if (err == 0)
        err = free_name(b, dir, ino, name, sizeof name);
    i = check_inode(c, ino);
    if (err != 0)
        return err;
    err = put_name(b, dir, name, ino, i->type);
    i->flags &= (uint16_t)~I_LOST;
    if (i->type != DT_DIR)
        return err;
    i->parent = dir->ino;
    i->flags |= I_FIX_PARENT;
    dir->nlink++;
    dir->flags |= I_FIX_NLINK;
    return err;
}

/* lost_found() may let the table grow, which moves entries; that happens once, so look again. */
static int apply_lost(struct check *c, struct batch *b)
{
    const struct inode_entry *i;
    int err = 0;

    for (size_t at = 0; err == 0 && (i = table_next(&c->inodes, &at)) != NULL;) {
        if (!(i->flags & I_LOST))
            continue;
        bool first = check_inode(c, c->lost_found) == NULL;
        err = rescue(c, b, i->ino);
        if (first)
            at = 0;
        if (err == 0)
            err = batch_bound(b);
    }
    return err != 0 ? err : batch_commit(b);
}

/* ---- inodes ---------------------------------------------------------------------------------- */

static int fix_inode(struct batch *b, const struct inode_entry *i)
{
    struct inode_record r;
    uint8_t buf[INODE_BYTES];
    struct key key;
    ssize_t n;

    key_inode(&key, i->ino);
    n = lmdb_get(b->l, &key, buf, sizeof buf);
    if (n < 0)
        return (int)n;
    if (inode_decode(buf, (size_t)n, &r) != 0)
        return -EIO;
    if (i->flags & I_FIX_NLINK)
        r.nlink = i->nlink;
    if (i->flags & I_FIX_PARENT)
        r.parent = i->parent;
    if (i->flags & I_FIX_COOKIE)
        r.cookie = i->cookie;
    if (i->flags & I_FIX_EXTENDING)
        r.flags |= INODE_EXTENDING;
    return batch_put(b, &key, buf, inode_encode(&r, buf));
}

/* Each inode is read as committed and written once, so no change hides another. */
static int apply_inodes(struct check *c, struct batch *b)
{
    const struct inode_entry *i;
    int err = 0;

    for (size_t at = 0; err == 0 && (i = table_next(&c->inodes, &at)) != NULL;) {
        if (i->flags & I_FIX)
            err = fix_inode(b, i);
        if (err == 0)
            err = batch_bound(b);
    }
    return err != 0 ? err : batch_commit(b);
}

int check_repair(struct check *c, struct lmdb *l)
{
    struct batch b = { .l = l };
    int err;

    if (c->partial)
        return 0;
    err = apply_records(c, &b);
    if (err == 0)
        err = apply_lost(c, &b);
    if (err == 0)
        err = apply_inodes(c, &b);
    batch_abort(&b);
    return err;
}
