/* check_names.c: the passes over names. KEY_COOKIE records come before KEY_DIRENT ones, so a name's
 * first half is in the table of twins when its second half arrives; what is left in the table after
 * the pass has no second half. */
#include "store/check_internal.h"

#include <errno.h>
#include <string.h>

#include "store/crc32c.h"

/* One name on its way through the checks. */
struct name {
    struct key key; /* KEY_DIRENT */
    uint64_t dir;
    const char *bytes; /* in key */
    size_t len;
    struct dirent_record r; /* as in KEY_COOKIE: with the name */
    char quoted[QUOTED_BYTES];
};

static void name_init(struct name *n, uint64_t dir, const char *bytes, size_t len)
{
    n->dir = dir;
    key_dirent(&n->key, dir, bytes, len);
    n->bytes = (const char *)n->key.bytes + KEY_PREFIX_BYTES;
    n->len = len;
    check_quote(n->quoted, n->bytes, len);
}

static uint32_t name_hash(const char *name, size_t len)
{
    return crc32c(0, name, len);
}

static struct twin_entry *twin_get(const struct check *c, uint64_t dir, uint64_t cookie)
{
    return table_get(&c->twins, check_hash(dir, cookie));
}

static void twin_matched(struct check *c, struct twin_entry *t)
{
    c->nr_matched += !t->matched;
    t->matched = true;
}

/* The twin under the name's cookie, if it is this name's and nobody else took it. */
static struct twin_entry *name_twin(const struct check *c, const struct name *n)
{
    struct twin_entry *t = twin_get(c, n->dir, n->r.cookie);
    bool ours = t != NULL && !t->matched && t->name_hash == name_hash(n->bytes, n->len);

    return ours ? t : NULL;
}

/* ---- repairs --------------------------------------------------------------------------------- */

static void put_cookie(struct check *c, struct name *n)
{
    uint8_t buf[DIRENT_BYTES];
    struct key key;

    n->r.name_len = (uint8_t)n->len;
    memcpy(n->r.name, n->bytes, n->len);
    n->r.name[n->len] = '\0';
    key_cookie(&key, n->dir, n->r.cookie);
    check_put(c, &key, buf, dirent_encode(&n->r, buf));
}

static void put_dirent(struct check *c, const struct name *n)
{
    struct dirent_record r = n->r;
    uint8_t buf[DIRENT_BYTES];

    r.name_len = 0;
    check_put(c, &n->key, buf, dirent_encode(&r, buf));
}

/* Remove the name, both halves; whether the second half's record was found or not. */
static void drop_name(struct check *c, const struct name *n)
{
    struct twin_entry *t = name_twin(c, n);
    struct key key;

    check_del(c, &n->key);
    if (t == NULL)
        return;
    twin_matched(c, t);
    key_cookie(&key, n->dir, n->r.cookie);
    check_del(c, &key);
}

/* ---- the first half -------------------------------------------------------------------------- */

static bool cookie_decode(const struct pages_entry *e, const struct key *key,
                          struct dirent_record *r)
{
    const uint8_t *payload;
    size_t len;

    return check_envelope(e, &payload, &len) && dirent_decode(payload, len, r) == 0 &&
           r->cookie == key_u64(key, 1) && r->name_len > 0;
}

static void see_cookie(struct check *c, const struct pages_entry *e, const struct key *key)
{
    uint64_t dir = key_u64(key, 0), cookie = key_u64(key, 1);
    struct inode_entry *d = check_inode(c, dir);
    struct dirent_record r;

    if (!cookie_decode(e, key, &r)) {
        check_find(c, CHECK_RECORD, !c->partial,
                   "cookie %" PRIu64 " of directory %" PRIu64 ": its record is damaged", cookie,
                   dir);
        check_del(c, key);
        return;
    }
    if (d != NULL && cookie > d->max_cookie)
        d->max_cookie = cookie;
    struct twin_entry *t = table_add(&c->twins, check_hash(dir, cookie));
    if (t == NULL) {
        c->error = -ENOMEM;
        return;
    }
    t->ino = r.ino;
    t->type = r.type;
    t->name_hash = name_hash(r.name, r.name_len);
}

/* ---- the second half ------------------------------------------------------------------------- */

/* The name's cookie belongs to another name: give it the directory's next one. */
static void renumber(struct check *c, struct name *n, struct inode_entry *dir)
{
    bool fixable = !(dir->flags & I_DAMAGED);

    check_find(c, CHECK_COOKIE, fixable,
               "%s in directory %" PRIu64 ": its cookie %" PRIu64 " is another name's", n->quoted,
               n->dir, n->r.cookie);
    if (!fixable)
        return;
    n->r.cookie = dir->cookie > dir->max_cookie ? dir->cookie : dir->max_cookie + 1;
    dir->max_cookie = n->r.cookie;
    dir->cookie = n->r.cookie + 1;
    dir->flags |= I_FIX_COOKIE;
    put_dirent(c, n);
    put_cookie(c, n);
}

static void judge_twin(struct check *c, struct name *n, struct inode_entry *dir)
{
    struct twin_entry *any = twin_get(c, n->dir, n->r.cookie), *t = name_twin(c, n);

    if (n->r.cookie > dir->max_cookie)
        dir->max_cookie = n->r.cookie;
    if (any != NULL && t == NULL) {
        renumber(c, n, dir);
        return;
    }
    if (t == NULL) {
        check_find(c, CHECK_COOKIE, true,
                   "%s in directory %" PRIu64 ": has no cookie record %" PRIu64, n->quoted, n->dir,
                   n->r.cookie);
        put_cookie(c, n);
        return;
    }
    twin_matched(c, t);
    if (t->ino == n->r.ino && t->type == n->r.type)
        return;
    check_find(c, CHECK_COOKIE, true,
               "%s in directory %" PRIu64 ": differs from its cookie record %" PRIu64, n->quoted,
               n->dir, n->r.cookie);
    put_cookie(c, n);
}

/* A directory has one name. Of two, the one where it says its parent is stays. */
static bool link_directory(struct check *c, const struct name *n, struct inode_entry *target)
{
    if (target->linked_from == 0) {
        target->linked_from = n->dir;
        return true;
    }
    check_find(c, CHECK_DIRENT, true,
               "%s in directory %" PRIu64 ": directory %" PRIu64
               " has another name, in directory %" PRIu64,
               n->quoted, n->dir, target->ino, target->linked_from);
    if (n->dir != target->parent || target->linked_from == n->dir)
        return false;
    struct inode_entry *before = check_inode(c, target->linked_from);
    if (before != NULL)
        before->subdirs--;
    target->linked_from = n->dir;
    target->flags |= I_EXTRA_NAMES;
    c->want_names = true;
    return true;
}

/* Is this a name that can be, of an inode in a directory?   Otherwise it has been reported. */
static bool judge_name(struct check *c, const struct name *n, const struct inode_entry *dir,
                       const struct inode_entry *target, bool *fixable)
{
    *fixable = true;
    if (!name_good(n->bytes, n->len)) {
        check_find(c, CHECK_DIRENT, true, "%s in directory %" PRIu64 ": not a name", n->quoted,
                   n->dir);
        return false;
    }
    if (!check_is_dir(dir)) {
        *fixable = dir != NULL || !c->unsure;
        check_find(c, CHECK_DIRENT, *fixable, "%s in directory %" PRIu64 ": %s", n->quoted, n->dir,
                   dir != NULL ? "that is not a directory" : "there is no such directory");
        return false;
    }
    if (target == NULL) {
        *fixable = !c->unsure;
        check_find(c, CHECK_DIRENT, *fixable,
                   "%s in directory %" PRIu64 ": there is no inode %" PRIu64, n->quoted, n->dir,
                   n->r.ino);
        return false;
    }
    if (target->ino == ROOT_INO)
        check_find(c, CHECK_DIRENT, true, "%s in directory %" PRIu64 ": is the root directory",
                   n->quoted, n->dir);
    return target->ino != ROOT_INO;
}

/* A name that stays: its type, its twin, and what it adds to both inodes. */
static void count_name(struct check *c, struct name *n, struct inode_entry *dir,
                       struct inode_entry *target)
{
    bool retype = !(target->flags & I_DAMAGED) && target->type != n->r.type;

    if (retype) {
        check_find(c, CHECK_DIRENT, true,
                   "%s in directory %" PRIu64 ": type %u, but inode %" PRIu64 " has type %u",
                   n->quoted, n->dir, n->r.type, target->ino, target->type);
        struct twin_entry *t = name_twin(c, n);
        n->r.type = target->type;
        put_dirent(c, n);
        if (t != NULL && t->type != n->r.type) {
            t->type = n->r.type;
            put_cookie(c, n);
        }
    }
    judge_twin(c, n, dir);
    target->names++;
    dir->entries++;
    dir->subdirs += n->r.type == DT_DIR;
    if (n->dir == ROOT_INO && n->r.type == DT_DIR && n->len == strlen(LOST_FOUND) &&
        memcmp(n->bytes, LOST_FOUND, n->len) == 0)
        c->lost_found = target->ino;
}

static bool dirent_read(const struct pages_entry *e, struct dirent_record *r)
{
    const uint8_t *payload;
    size_t len;

    return check_envelope(e, &payload, &len) && dirent_decode(payload, len, r) == 0 &&
           r->name_len == 0;
}

static void see_name(struct check *c, const struct pages_entry *e, const struct key *key)
{
    struct inode_entry *dir, *target;
    struct name n;
    bool fixable;

    name_init(&n, key_u64(key, 0), (const char *)key->bytes + KEY_PREFIX_BYTES,
              key->len - KEY_PREFIX_BYTES);
    if (!dirent_read(e, &n.r)) {
        check_find(c, CHECK_RECORD, !c->partial,
                   "%s in directory %" PRIu64 ": its record is damaged", n.quoted, n.dir);
        check_del(c, key);
        return;
    }
    if (c->partial)
        return;
    dir = check_inode(c, n.dir);
    target = check_inode(c, n.r.ino);
    if (!judge_name(c, &n, dir, target, &fixable)) {
        struct twin_entry *t = name_twin(c, &n);
        if (fixable)
            drop_name(c, &n);
        else if (t != NULL)
            twin_matched(c, t);
        return;
    }
    bool is_dir = target->flags & I_DAMAGED ? n.r.type == DT_DIR : target->type == DT_DIR;
    if (is_dir && !link_directory(c, &n, target))
        drop_name(c, &n);
    else
        count_name(c, &n, dir, target);
}

void check_name(void *ctx, const struct pages_entry *e)
{
    struct check *c = ctx;
    struct key key;

    if (c->error != 0 || !check_key(e, &key))
        return;
    if (key.bytes[0] == KEY_COOKIE)
        see_cookie(c, e, &key);
    else
        see_name(c, e, &key);
}

/* ---- looking again --------------------------------------------------------------------------- */

/* Half a name: it is restored when its inode misses one, else removed. */
static void judge_half(struct check *c, const struct key *key, const struct dirent_record *r)
{
    struct inode_entry *dir = check_inode(c, key_u64(key, 0)), *target = check_inode(c, r->ino);
    bool is_dir = target != NULL && target->type == DT_DIR && r->type == DT_DIR;
    bool wanted = check_is_dir(dir) && target != NULL && r->ino != ROOT_INO &&
                  (is_dir ? target->linked_from == 0
                          : target->flags & I_DAMAGED || target->names < target->nlink);
    bool fixable = wanted || (dir != NULL && target != NULL) || !c->unsure;
    uint8_t buf[DIRENT_BYTES];
    char quoted[QUOTED_BYTES];

    check_find(c, CHECK_COOKIE, fixable,
               "cookie %" PRIu64 " of directory %" PRIu64 ": there is no entry %s", r->cookie,
               key_u64(key, 0), check_quote(quoted, r->name, r->name_len));
    if (!wanted) {
        if (fixable)
            check_del(c, key);
        return;
    }
    check_restore(c, key, buf, dirent_encode(r, buf));
    target->names++;
    if (is_dir)
        target->linked_from = dir->ino;
    dir->subdirs += r->type == DT_DIR;
    dir->entries++;
}

static void look_at_name(struct check *c, const struct pages_entry *e, const struct key *key)
{
    struct inode_entry *target;
    struct name n;

    name_init(&n, key_u64(key, 0), (const char *)key->bytes + KEY_PREFIX_BYTES,
              key->len - KEY_PREFIX_BYTES);
    if (!dirent_read(e, &n.r))
        return;
    target = check_inode(c, n.r.ino);
    if (target == NULL)
        return;
    if (target->flags & I_EXTRA_NAMES && target->linked_from != n.dir) {
        struct twin_entry *t = twin_get(c, n.dir, n.r.cookie);
        if (t != NULL && t->ino == n.r.ino)
            t->matched = false; /* so that it goes as well */
        drop_name(c, &n);
    }
    if (target->flags & I_BAD_BLOCKS) {
        const struct data_entry *d = table_get(&c->data, target->data_id);
        check_find(c, CHECK_NOTE, false,
                   "%s in directory %" PRIu64 " (inode %" PRIu64 ", data %" PRIu64
                   "): damaged blocks, which read as I/O errors: %" PRIu64,
                   n.quoted, n.dir, target->ino, target->data_id, d != NULL ? d->damaged : 0);
    }
}

void check_name_again(void *ctx, const struct pages_entry *e)
{
    struct check *c = ctx;
    struct dirent_record r;
    struct key key;

    if (c->error != 0 || !check_key(e, &key))
        return;
    if (key.bytes[0] == KEY_DIRENT) {
        look_at_name(c, e, &key);
        return;
    }
    const struct twin_entry *t = twin_get(c, key_u64(&key, 0), key_u64(&key, 1));
    if (t != NULL && !t->matched && cookie_decode(e, &key, &r))
        judge_half(c, &key, &r);
}

/* Attributes of an inode that is not there: reported by check_owners(), removed here. */
void check_xattr(void *ctx, const struct pages_entry *e)
{
    struct check *c = ctx;
    struct key key;

    if (c->error == 0 && !c->unsure && check_key(e, &key) &&
        check_inode(c, key_u64(&key, 0)) == NULL)
        check_del(c, &key);
}
