/* lmdb_write.c: the write transaction.
 *
 * Blocks go through one cursor: in ascending order each is found on the leaf where the last one was
 * put, without a descent. A new block behind all others on its leaf splits it at the end (LMDB does
 * that by itself), so ascending writes leave full leaves; MDB_APPEND would never apply, since every
 * record sorts behind the blocks.
 */
#include "store/lmdb_impl.h"

#include <assert.h>
#include <errno.h>
#include <string.h>
#include <sys/statvfs.h>

#include "store/bytes.h"
#include "store/crc32c.h"

#define DISK_FULL_BYTES ((uint64_t)1 << 20)
#define INLINE_BYTES    1024u /* a value of at most so many is on its leaf, whatever its key */

struct put_args {
    const struct key *key;
    const void *value;
    size_t len;
};

struct put_block_args {
    uint64_t object;
    uint32_t index, crc;
    const uint8_t *data;
};

static int begin_work(struct lmdb *l, void *arg)
{
    (void)arg;
    int rc = mdb_txn_begin(l->env, NULL, 0, &l->txn);
    if (rc != 0)
        return lmdb_errno(l, rc);
    rc = lmdb_errno(l, mdb_cursor_open(l->txn, l->dbi, &l->cursor));
    if (rc == 0)
        rc = lmdb_sound_begin(l);
    if (rc != 0) {
        mdb_txn_abort(l->txn);
        l->txn = NULL;
    }
    return rc;
}

int lmdb_begin(struct lmdb *l)
{
    if (l->read_only)
        return -EROFS;
    if (atomic_load(&l->dead))
        return -EIO;
    assert(l->txn == NULL);
    return lmdb_guard(l, begin_work, NULL);
}

/* ---- records --------------------------------------------------------------------------------- */

/* Damage that only LMDB has met. */
static int change_errno(struct lmdb *l, int rc)
{
    switch (rc) {
    case MDB_PAGE_NOTFOUND:
    case MDB_CORRUPTED:
    case MDB_PAGE_FULL:
    case MDB_CURSOR_FULL:
        return -EUCLEAN;
    default: /* codes, not an enum */
        return lmdb_errno(l, rc);
    }
}

/* Lead the cursor to the key, over sound pages only: from where it is, LMDB takes short cuts. What is
 * there may be replaced, or deleted. *len: the bytes of its value.
 * Returns 0, -ENOENT, -EUCLEAN, -errno. */
static int find(struct lmdb *l, const struct key *wanted, size_t *len)
{
    MDB_val key = { .mv_size = wanted->len, .mv_data = (void *)(uintptr_t)wanted->bytes }, value;
    int rc = lmdb_sound_key(l, wanted->bytes, wanted->len);
    if (rc == 0)
        rc = change_errno(l, mdb_cursor_get(l->cursor, &key, &value, MDB_SET_KEY));
    if (rc == 0)
        rc = lmdb_sound_value(l, key.mv_data, value.mv_data, value.mv_size);
    if (rc == 0)
        *len = value.mv_size;
    return rc;
}

static int del_work(struct lmdb *l, void *arg)
{
    size_t len;
    int rc = find(l, arg, &len);
    if (rc == 0)
        rc = change_errno(l, mdb_cursor_del(l->cursor, 0));
    return rc == -ENOENT ? 0 : rc;
}

static int put_work(struct lmdb *l, void *arg)
{
    const struct put_args *a = arg;
    MDB_val key = { .mv_size = a->key->len, .mv_data = (void *)(uintptr_t)a->key->bytes };
    MDB_val value = { .mv_size = ENVELOPE_BYTES + a->len };
    unsigned current = 0;
    size_t old_len = 0;
    int rc = find(l, a->key, &old_len);
    if (old_len > INLINE_BYTES) /* LMDB would use a run again that is longer than it need be */
        rc = del_work(l, (void *)(uintptr_t)a->key);
    else if (rc == 0)
        current = MDB_CURRENT;
    if (rc != 0 && rc != -ENOENT)
        return rc;
    rc = change_errno(l, mdb_cursor_put(l->cursor, &key, &value, MDB_RESERVE | current));
    if (rc != 0)
        return rc;
    uint8_t *p = value.mv_data;
    uint32_t crc = crc32c(0, a->key->bytes, a->key->len);
    p[0] = ENVELOPE_VERSION;
    put_le32(p + 1, crc32c(crc, a->value, a->len));
    if (a->len > 0)
        memcpy(p + ENVELOPE_BYTES, a->value, a->len);
    return 0;
}

int lmdb_put(struct lmdb *l, const struct key *key, const void *value, size_t len)
{
    struct put_args args = { .key = key, .value = value, .len = len };
    assert(key->len >= 1 && key->len <= KEY_MAX && key->bytes[0] != KEY_BLOCK);
    assert(len <= VALUE_MAX);
    return lmdb_guard(l, put_work, &args);
}

int lmdb_del(struct lmdb *l, const struct key *key)
{
    assert(key->len >= 1 && key->len <= KEY_MAX && key->bytes[0] != KEY_BLOCK);
    return lmdb_guard(l, del_work, (void *)(uintptr_t)key);
}

/* ---- blocks ---------------------------------------------------------------------------------- */

/* Delete every key with the block's prefix: one, or none; a damaged tree may have more.
 * Returns 0 or -errno. */
static int del_prefix(struct lmdb *l, const uint8_t *prefix)
{
    for (;;) {
        MDB_val key = { .mv_size = BLOCK_PREFIX_BYTES, .mv_data = (void *)(uintptr_t)prefix };
        MDB_val value;
        int rc = lmdb_sound_key(l, prefix, BLOCK_PREFIX_BYTES);
        if (rc == 0)
            rc = change_errno(l, mdb_cursor_get(l->cursor, &key, &value, MDB_SET_RANGE));
        if (rc != 0)
            return rc == -ENOENT ? 0 : rc;
        if (key.mv_size < BLOCK_PREFIX_BYTES ||
            memcmp(key.mv_data, prefix, BLOCK_PREFIX_BYTES) != 0)
            return 0;
        rc = lmdb_sound_key(l, key.mv_data, key.mv_size);
        if (rc == 0)
            rc = lmdb_sound_value(l, key.mv_data, value.mv_data, value.mv_size);
        if (rc == 0)
            rc = change_errno(l, mdb_cursor_del(l->cursor, 0));
        if (rc != 0)
            return rc;
    }
}

static void block_key(uint8_t *key, const struct put_block_args *a)
{
    lmdb_block_prefix(key, a->object, a->index);
    key[BLOCK_PREFIX_BYTES] = BLOCK_KEY_VERSION;
    memcpy(key + BLOCK_HEAD_AT, a->data, BLOCK_HEAD_BYTES);
    put_le32(key + BLOCK_CRC_AT, a->crc);
    put_le32(key + BLOCK_CHECK_AT, crc32c(0, key, BLOCK_CHECK_AT));
}

static int put_block_work(struct lmdb *l, void *arg)
{
    const struct put_block_args *a = arg;
    uint8_t bytes[KEY_BLOCK_BYTES];
    block_key(bytes, a);
    int rc = del_prefix(l, bytes);
    if (rc == 0)
        rc = lmdb_sound_key(l, bytes, sizeof bytes);
    if (rc == 0) {
        MDB_val key = { .mv_size = sizeof bytes, .mv_data = bytes };
        MDB_val value = { .mv_size = BLOCK_VALUE_BYTES };
        rc = change_errno(l, mdb_cursor_put(l->cursor, &key, &value, MDB_RESERVE));
        if (rc == 0)
            memcpy(value.mv_data, a->data + BLOCK_HEAD_BYTES, BLOCK_VALUE_BYTES);
    }
    return rc;
}

int lmdb_put_block(struct lmdb *l, uint64_t object, uint32_t index, const void *data, uint32_t crc)
{
    struct put_block_args args = { .object = object, .index = index, .crc = crc, .data = data };
    return lmdb_guard(l, put_block_work, &args);
}

static int del_block_work(struct lmdb *l, void *arg)
{
    return del_prefix(l, arg);
}

int lmdb_del_block(struct lmdb *l, uint64_t object, uint32_t index)
{
    uint8_t prefix[BLOCK_PREFIX_BYTES];
    lmdb_block_prefix(prefix, object, index);
    return lmdb_guard(l, del_block_work, prefix);
}

/* ---- the end --------------------------------------------------------------------------------- */

/* LMDB reports a write that stopped half-way as EIO. On a disk without room it was ENOSPC. (A disk
 * that fails and is full is called full; the next try fails again and tells.) */
static int commit_errno(struct lmdb *l, int rc)
{
    struct statvfs disk;
    if (rc == EIO && fstatvfs(l->fd, &disk) == 0 &&
        (uint64_t)disk.f_bavail * disk.f_frsize < DISK_FULL_BYTES)
        return -ENOSPC;
    return lmdb_errno(l, rc);
}

static int commit_work(struct lmdb *l, void *arg)
{
    (void)arg;
    MDB_txn *txn = l->txn;
    l->txn = NULL; /* ends below in every case, and its cursor with it */
    l->cursor = NULL;
    int rc = mdb_txn_commit(txn);
    if (rc == 0) {
        (void)lmdb_usage_refresh(l); /* it reads the map: what it fails of, the next reader meets */
        return 0;
    }
    rc = commit_errno(l, rc);
    /* After a failed meta page LMDB refuses every transaction: begin one to see. */
    struct snapshot *s;
    if (lmdb_snapshot_begin(l, &s) == 0)
        lmdb_snapshot_end(l, s);
    return atomic_load(&l->dead) ? -EIO : rc;
}

int lmdb_commit(struct lmdb *l)
{
    if (atomic_load(&l->dead))
        return -EIO;
    assert(l->txn != NULL);
    return lmdb_guard(l, commit_work, NULL);
}

static int abort_work(struct lmdb *l, void *arg)
{
    (void)arg;
    MDB_txn *txn = l->txn;
    l->txn = NULL;
    l->cursor = NULL;
    mdb_txn_abort(txn);
    return 0;
}

void lmdb_abort(struct lmdb *l)
{
    if (!atomic_load(&l->dead) && l->txn != NULL)
        (void)lmdb_guard(l, abort_work, NULL);
}
