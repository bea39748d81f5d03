/* check_tree.c: what follows from all records together: who owns which data, whether the directories
 * form a tree, who has how many names, and who has none. */
#include "store/check_internal.h"

#include <errno.h>

/* ---- data ------------------------------------------------------------------------------------ */

static void own_data(struct check *c, struct inode_entry *i)
{
    struct data_entry *d;

    if (i->data_id == 0)
        return;
    if (i->data_id > c->highest)
        c->highest = i->data_id;
    if (i->type != DT_REG) {
        check_find(c, CHECK_INODE, false, "inode %" PRIu64 ": has data, but is no regular file",
                   i->ino);
        return;
    }
    d = table_add(&c->data, i->data_id);
    if (d == NULL) {
        c->error = -ENOMEM;
        return;
    }
    if (d->owner != 0) {
        check_find(c, CHECK_OWNER, false,
                   "inode %" PRIu64 ": its data %" PRIu64 " is also that of inode %" PRIu64, i->ino,
                   d->id, d->owner);
        return;
    }
    d->owner = i->ino;
    if (d->damaged > 0) {
        i->flags |= I_BAD_BLOCKS;
        c->want_names = true;
    }
}

/* Records about an inode that has no record itself. */
static void judge_strays(struct check *c, const struct inode_entry *i)
{
    struct key key;

    if (i->flags & I_ORPHAN) {
        check_find(c, CHECK_ORPHAN, !c->unsure, "orphan record: there is no inode %" PRIu64,
                   i->ino);
        key_orphan(&key, i->ino);
        if (!c->unsure)
            check_del(c, &key);
    }
    if (i->flags & I_LINK) {
        check_find(c, CHECK_SYMLINK, !c->unsure,
                   "symbolic link's target: there is no inode %" PRIu64, i->ino);
        key_link(&key, i->ino);
        if (!c->unsure)
            check_del(c, &key);
    }
    if (i->flags & I_XATTR) {
        check_find(c, CHECK_XATTR, !c->unsure, "extended attributes: there is no inode %" PRIu64,
                   i->ino);
        c->want_xattrs = true;
    }
}

static void judge_root(struct check *c)
{
    const struct inode_entry *root = check_inode(c, ROOT_INO);

    if (root == NULL)
        check_find(c, CHECK_INODE, false, "the root directory (inode 1) is missing");
    else if (!check_is_dir(root))
        check_find(c, CHECK_INODE, false, "the root (inode 1) is not a directory");
}

void check_owners(struct check *c)
{
    struct inode_entry *i;

    judge_root(c);
    for (size_t at = 0; (i = table_next(&c->inodes, &at)) != NULL;) {
        if (!(i->flags & I_RECORD))
            judge_strays(c, i);
        else if (!(i->flags & I_DAMAGED))
            own_data(c, i);
    }
}

static void judge_count(struct check *c, const struct data_entry *d)
{
    uint64_t recorded = d->flags & D_COUNT ? d->recorded : 0;
    uint8_t buf[NUMBER_BYTES];
    struct key key;

    if (recorded == d->blocks)
        return;
    if (recorded == UINT64_MAX)
        check_find(c, CHECK_BLOCK_COUNT, !c->blocks_unsure,
                   "data %" PRIu64 ": its block count is damaged", d->id);
    else
        check_find(c, CHECK_BLOCK_COUNT, !c->blocks_unsure,
                   "data %" PRIu64 ": has %" PRIu64 " blocks, recorded are %" PRIu64, d->id,
                   d->blocks, recorded);
    if (c->blocks_unsure)
        return;
    key_blocks(&key, d->id);
    if (d->blocks > 0)
        check_put(c, &key, buf, number_encode(d->blocks, buf));
    else
        check_del(c, &key);
}

/* What lies behind the end of a file would be in it once it is longer. It may lie there while the inode is marked, or
 * will be deleted as a whole; which part of it pending trims will delete is not known here. Zeros are no harm. */
static void judge_end(struct check *c, const struct data_entry *d)
{
    struct inode_entry *i = check_inode(c, d->owner);

    if (i == NULL || d->end <= i->size || d->trims > 0 || i->flags & (I_EXTENDING | I_ORPHAN))
        return;
    check_find(c, CHECK_INODE, true,
               "inode %" PRIu64 ": has data behind its end, up to byte %" PRIu64 " of %" PRIu64,
               i->ino, d->end, i->size);
    i->flags |= I_FIX_EXTENDING;
}

void check_data(struct check *c)
{
    const struct data_entry *d;
    struct key key;

    for (size_t at = 0; (d = table_next(&c->data, &at)) != NULL;) {
        judge_count(c, d);
        judge_end(c, d);
        if (d->owner != 0 || d->blocks == 0 || d->covered > d->last)
            continue;
        check_find(c, CHECK_LOST_BLOCKS, !c->unsure,
                   "data %" PRIu64 ": has %" PRIu64 " blocks but no inode owns it", d->id,
                   d->blocks);
        key_trim(&key, d->id, 0, OBJECT_BLOCKS);
        if (!c->unsure)
            check_put(c, &key, NULL, 0); /* the next mount deletes them */
    }
}

/* ---- the tree -------------------------------------------------------------------------------- */

/* Is there a root to hang lost+found into? */
static bool can_rescue(const struct check *c)
{
    const struct inode_entry *root = check_inode(c, ROOT_INO);

    return root != NULL && root->type == DT_DIR && !(root->flags & I_DAMAGED);
}

/* Cut the cycle at i: its name goes, and it will have one in lost+found. */
static void cut_cycle(struct check *c, struct inode_entry *i)
{
    struct inode_entry *parent = check_inode(c, i->linked_from);

    check_find(c, CHECK_UNREACHABLE, can_rescue(c), "directory %" PRIu64 ": is its own ancestor",
               i->ino);
    if (!can_rescue(c))
        return;
    if (parent != NULL)
        parent->subdirs--;
    i->linked_from = FROM_LOST_FOUND;
    i->flags |= I_EXTRA_NAMES | I_LOST;
    c->want_names = true;
}

void check_cycles(struct check *c)
{
    struct inode_entry *i;
    uint32_t visit = 0;

    for (size_t at = 0; (i = table_next(&c->inodes, &at)) != NULL;) {
        visit++;
        while (i != NULL && i->linked_from != 0 && i->visit == 0) {
            i->visit = visit;
            i = check_inode(c, i->linked_from);
        }
        if (i != NULL && i->linked_from != 0 && i->visit == visit)
            cut_cycle(c, i);
    }
}

/* ---- links ----------------------------------------------------------------------------------- */

/* An inode without a name is an orphan, known as such, or lost.   Returns false: an orphan. */
static bool judge_nameless(struct check *c, struct inode_entry *i)
{
    struct key key;

    if (i->nlink != 0 || i->entries != 0) {
        check_find(c, CHECK_UNREACHABLE, can_rescue(c), "%s %" PRIu64 ": has no name",
                   i->type == DT_DIR ? "directory" : "inode", i->ino);
        if (can_rescue(c))
            i->flags |= I_LOST;
        return true;
    }
    if (i->flags & I_ORPHAN)
        return false;
    check_find(c, CHECK_ORPHAN, true,
               "inode %" PRIu64 ": is deleted, but has no orphan record to finish that", i->ino);
    key_orphan(&key, i->ino);
    check_put(c, &key, NULL, 0);
    return false;
}

static void judge_directory(struct check *c, struct inode_entry *i)
{
    uint64_t parent = i->ino == ROOT_INO ? ROOT_INO : i->linked_from;

    if (i->max_cookie >= i->cookie) {
        check_find(c, CHECK_COOKIE, true,
                   "directory %" PRIu64 ": its next cookie is %" PRIu64 ", but %" PRIu64 " is used",
                   i->ino, i->cookie, i->max_cookie);
        i->cookie = i->max_cookie + 1;
        i->flags |= I_FIX_COOKIE;
    }
    if (i->flags & I_LOST || i->parent == parent)
        return;
    check_find(c, CHECK_PARENT, true,
               "directory %" PRIu64 ": its parent is %" PRIu64 ", recorded is %" PRIu64, i->ino,
               parent, i->parent);
    i->parent = parent;
    i->flags |= I_FIX_PARENT;
}

static void judge_nlink(struct check *c, struct inode_entry *i)
{
    uint32_t nlink = i->type == DT_DIR ? 2 + i->subdirs : i->flags & I_LOST ? 1 : i->names;

    if (i->nlink == nlink)
        return;
    if (!(i->flags & I_LOST))
        check_find(c, CHECK_NLINK, true, "inode %" PRIu64 ": has %u links, recorded are %u", i->ino,
                   nlink, i->nlink);
    i->nlink = nlink;
    i->flags |= I_FIX_NLINK;
}

static void judge_target(struct check *c, const struct inode_entry *i)
{
    struct key key;

    if (i->type == DT_LNK && !(i->flags & I_LINK))
        check_find(c, CHECK_SYMLINK, false, "inode %" PRIu64 ": a symbolic link without target",
                   i->ino);
    if (i->type == DT_LNK || !(i->flags & I_LINK))
        return;
    check_find(c, CHECK_SYMLINK, true,
               "inode %" PRIu64 ": has a symbolic link's target, but is none", i->ino);
    key_link(&key, i->ino);
    check_del(c, &key);
}

static void judge_inode(struct check *c, struct inode_entry *i)
{
    bool named = i->ino == ROOT_INO || (i->type == DT_DIR ? i->linked_from != 0 : i->names > 0);
    struct key key;

    judge_target(c, i);
    if (!named && !judge_nameless(c, i))
        return;
    if (i->flags & I_ORPHAN) {
        check_find(c, CHECK_ORPHAN, true, "inode %" PRIu64 ": has an orphan record, but is in use",
                   i->ino);
        key_orphan(&key, i->ino);
        check_del(c, &key);
    }
    if (i->type == DT_DIR)
        judge_directory(c, i);
    judge_nlink(c, i);
}

void check_links(struct check *c)
{
    struct inode_entry *i;

    for (size_t at = 0; (i = table_next(&c->inodes, &at)) != NULL;)
        if (i->flags & I_RECORD && !(i->flags & I_DAMAGED))
            judge_inode(c, i);
}

void check_numbers(struct check *c)
{
    uint8_t buf[NUMBER_BYTES];
    struct key key;

    if (!c->have_super)
        check_find(c, CHECK_SUPER, false, "superblock: missing");
    if (c->have_counter && c->counter > c->highest)
        return;
    check_find(c, CHECK_COUNTER, true,
               "the next unused number is recorded as %" PRIu64 ", but %" PRIu64 " is used",
               c->counter, c->highest);
    c->counter = c->highest + 1;
    key_counter(&key);
    check_put(c, &key, buf, number_encode(c->counter, buf));
}
