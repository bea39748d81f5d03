/* check_records.c: the first pass. Records come in key order, so blocks first, inodes last; what a
 * record says about others is put into the tables and judged when all have been seen. */
#include "store/check_internal.h"

#include <errno.h>
#include <sys/stat.h>

#include "store/bytes.h"
#include "store/crc32c.h"

static struct inode_entry *inode_add(struct check *c, uint64_t ino)
{
    struct inode_entry *i = table_add(&c->inodes, ino);

    if (i == NULL)
        c->error = -ENOMEM;
    return i;
}

static struct data_entry *data_add(struct check *c, uint64_t id, bool good)
{
    struct data_entry *d = table_add(&c->data, id);

    if (d == NULL)
        c->error = -ENOMEM;
    else if (good && id > c->highest)
        c->highest = id;
    return d;
}

/* ---- blocks ---------------------------------------------------------------------------------- */

/* The data's CRC, over its two parts. The key check is known to be good. */
static bool block_good(const struct pages_entry *e)
{
    uint32_t crc = crc32c(0, e->key, BLOCK_PREFIX_BYTES);

    if (e->key[BLOCK_PREFIX_BYTES] != BLOCK_KEY_VERSION || e->value_len != BLOCK_VALUE_BYTES)
        return false;
    crc = crc32c(crc, e->key + BLOCK_HEAD_AT, BLOCK_HEAD_BYTES);
    crc = crc32c(crc, e->value, BLOCK_VALUE_BYTES);
    return crc == get_le32(e->key + BLOCK_CRC_AT);
}

/* The offset behind the last byte that is not zero, in a block that is good. */
static size_t block_end(const struct pages_entry *e)
{
    size_t end = BLOCK_VALUE_BYTES;

    while (end > 0 && e->value[end - 1] == 0)
        end--;
    if (end > 0)
        return BLOCK_HEAD_BYTES + end;
    for (end = BLOCK_HEAD_BYTES; end > 0 && e->key[BLOCK_HEAD_AT + end - 1] == 0;)
        end--;
    return end;
}

static void see_block(struct check *c, const struct pages_entry *e, const struct key *key)
{
    uint64_t id = key_u64(key, 0), index = get_be32(e->key + 9);

    if (crc32c(0, e->key, BLOCK_CHECK_AT) != get_le32(e->key + BLOCK_CHECK_AT) || id == 0) {
        check_find(c, CHECK_BLOCK, false,
                   "block %" PRIu64 " of data %" PRIu64 ": its key is damaged", index, id);
        c->unsure = c->blocks_unsure = true;
        return;
    }
    c->summary.blocks++;
    struct data_entry *d = data_add(c, id, true);
    if (d == NULL)
        return;
    if (id == c->last_id && index == c->last_index) {
        check_find(c, CHECK_BLOCK, false, "block %" PRIu64 " of data %" PRIu64 ": there are two",
                   index, id);
        c->blocks_unsure = true;
    }
    if (d->blocks++ == 0)
        d->covered = index;
    c->last_id = id;
    c->last_index = d->last = index;
    if (!block_good(e)) {
        check_find(c, CHECK_BLOCK, false,
                   "block %" PRIu64 " of data %" PRIu64 ": its content is damaged", index, id);
        d->damaged++;
        return;
    }
    size_t end = block_end(e);
    if (end > 0)
        d->end = index * BLOCK_SIZE + end;
}

static void see_block_count(struct check *c, const struct key *key, const uint8_t *payload,
                            size_t len, bool good)
{
    struct data_entry *d = data_add(c, key_u64(key, 0), good);

    if (d == NULL)
        return;
    d->flags |= D_COUNT;
    if (!good || number_decode(payload, len, &d->recorded) != 0)
        d->recorded = UINT64_MAX; /* never right, so it is written anew */
}

static void see_trim(struct check *c, const struct key *key, bool good)
{
    struct data_entry *d = data_add(c, key_u64(key, 0), good);
    uint64_t from = key_u64(key, 1), to = key_u64(key, 2);

    if (!good) { /* gone, so that the volume can be mounted; if nobody owns the data, made anew */
        check_find(c, CHECK_RECORD, true,
                   "trim of data %" PRIu64 ": damaged (deleted blocks may read again)",
                   key_u64(key, 0));
        check_del(c, key);
        return;
    }
    c->summary.trims++;
    if (from >= to || to > OBJECT_BLOCKS) {
        check_find(c, CHECK_TRIM, true,
                   "trim of data %" PRIu64 " from block %" PRIu64 " to %" PRIu64 " makes no sense",
                   key_u64(key, 0), from, to);
        check_del(c, key);
        return;
    }
    if (d == NULL)
        return;
    d->trims++;
    if (d->blocks > 0 && from <= d->covered && to > d->covered)
        d->covered = to;
}

/* ---- inodes ---------------------------------------------------------------------------------- */

static void count_inode(struct check *c, const struct inode_entry *i)
{
    switch (i->type) {
    case DT_DIR:
        c->summary.directories++;
        break;
    case DT_REG:
        c->summary.files++;
        break;
    case DT_LNK:
        c->summary.symlinks++;
        break;
    default: /* not an enum */
        c->summary.others++;
        break;
    }
}

static void see_inode(struct check *c, const struct key *key, const uint8_t *payload, size_t len,
                      bool good)
{
    struct inode_record r;
    struct inode_entry *i = inode_add(c, key_u64(key, 0));

    if (i == NULL)
        return;
    i->flags |= I_RECORD;
    if (!good || inode_decode(payload, len, &r) != 0) {
        check_find(c, CHECK_RECORD, false, "inode %" PRIu64 ": its record is damaged", i->ino);
        i->flags |= I_DAMAGED;
        c->unsure = true;
        return;
    }
    if (i->ino > c->highest)
        c->highest = i->ino;
    i->data_id = r.data_id;
    i->size = r.size;
    i->parent = r.parent;
    i->cookie = r.cookie;
    i->nlink = r.nlink;
    i->type = (uint8_t)IFTODT(r.mode);
    if (r.flags & INODE_EXTENDING) {
        i->flags |= I_EXTENDING;
        c->summary.extending++;
    }
    count_inode(c, i);
}

/* ---- the rest -------------------------------------------------------------------------------- */

static void see_super(struct check *c, const uint8_t *payload, size_t len, bool good)
{
    struct super_record r;
    int err = good ? super_decode(payload, len, &r) : -EIO;

    c->have_super = true;
    c->features = err == 0 ? r.features : 0;
    c->capacity = err == 0 ? r.capacity : 0;
    if (err == -EPROTONOSUPPORT)
        check_find(c, CHECK_SUPER, false,
                   "superblock: format %u with features %#" PRIx64 " needs a newer fsck.foliofs",
                   r.format_version, r.features);
    else if (err != 0)
        check_find(c, CHECK_SUPER, false, "superblock: damaged");
}

static void see_counter(struct check *c, const uint8_t *payload, size_t len, bool good)
{
    c->have_counter = good && number_decode(payload, len, &c->counter) == 0;
}

/* A record about an inode: remember it, for when the inode is known. */
static void see_attached(struct check *c, const struct key *key, uint16_t flag, const char *what,
                         size_t len, bool good)
{
    struct inode_entry *i = inode_add(c, key_u64(key, 0));

    if (i != NULL)
        i->flags |= flag;
    if (flag == I_ORPHAN)
        c->summary.orphans++;
    if (good && (flag != I_LINK || (len > 0 && len <= SYMLINK_MAX_BYTES)))
        return;
    check_find(c, CHECK_RECORD, flag != I_LINK, "%s of inode %" PRIu64 ": damaged", what,
               key_u64(key, 0));
    if (flag == I_XATTR)
        check_del(c, key);
    else if (flag == I_ORPHAN)
        check_put(c, key, NULL, 0); /* it says nothing but its key; removed later if wrong */
}

static void see_log(struct check *c, const struct pages_entry *e)
{
    if (e->offset % LOG_BLOCK_BYTES == 0 || e->value_len <= LOG_BLOCK_BYTES)
        return; /* no run: check_log() misses it */
    uint64_t end = e->offset + e->value_len;
    c->log.offset = (e->offset / LOG_BLOCK_BYTES + 1) * LOG_BLOCK_BYTES;
    c->log.bytes = (end - c->log.offset) / LOG_BLOCK_BYTES * LOG_BLOCK_BYTES;
}

static void see_log_tail(struct check *c, const uint8_t *payload, size_t len, bool good)
{
    c->have_log_tail = good && number_decode(payload, len, &c->log_tail) == 0;
}

static void see_record(struct check *c, const struct pages_entry *e, const struct key *key)
{
    enum key_type type = (enum key_type)key->bytes[0];
    bool bare = type == KEY_BLOCK || type == KEY_LOG; /* no envelope */
    const uint8_t *payload = NULL;
    size_t len = 0;
    bool good = !bare && check_envelope(e, &payload, &len);

    switch (type) {
    case KEY_BLOCK:
        see_block(c, e, key);
        break;
    case KEY_LOG:
        see_log(c, e);
        break;
    case KEY_SUPER:
        see_super(c, payload, len, good);
        break;
    case KEY_COUNTER:
        see_counter(c, payload, len, good);
        break;
    case KEY_BLOCKS:
        see_block_count(c, key, payload, len, good);
        break;
    case KEY_INODE:
        see_inode(c, key, payload, len, good);
        break;
    case KEY_ORPHAN:
        see_attached(c, key, I_ORPHAN, "orphan record", len, good);
        break;
    case KEY_LINK:
        see_attached(c, key, I_LINK, "symbolic link's target", len, good);
        break;
    case KEY_XATTR:
        see_attached(c, key, I_XATTR, "extended attribute", len, good);
        break;
    case KEY_TRIM:
        see_trim(c, key, good);
        break;
    case KEY_LOG_TAIL:
        see_log_tail(c, payload, len, good);
        break;
    case KEY_COOKIE:
    case KEY_DIRENT:
        break; /* the second pass */
    }
}

void check_record(void *ctx, const struct pages_entry *e)
{
    struct check *c = ctx;
    struct key key;

    if (c->error != 0)
        return;
    if (check_key(e, &key)) {
        see_record(c, e, &key);
        return;
    }
    check_find(c, CHECK_RECORD, false, "a key of type %#x and %zu bytes is none of ours", e->key[0],
               e->key_len);
    c->unsure = true;
}
