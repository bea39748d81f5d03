/* lmdb_cursor.c: snapshots, moving in them, and telling damage from absence.
 *
 * LMDB finds a key by comparing; a damaged key or separator sends it past what it was looking for.
 * So "not there" is believed only between two neighbours that are themselves good (a record's
 * envelope, a block's key check) and that enclose the key:
 *
 *       good  <  wanted  <  good          absent
 *       good  <  wanted  <  damaged       -EIO, and likewise on the left, or out of order
 *
 * A leaf that lost its last keys to a damaged header has good neighbours too; so their pages are
 * checked as well: nodes fill a page without a gap. What this cannot see is a branch that leads to
 * another sound leaf; fsck.foliofs does.
 *
 * A pointer into the map is good until the snapshot ends. It is looked at under the guard only, and
 * only after its bounds were checked: a damaged size may reach beyond the map.
 */
#include "store/lmdb_impl.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "store/bytes.h"
#include "store/crc32c.h"

/* ---- snapshots ------------------------------------------------------------------------------- */

static struct snapshot *snapshot_take(struct lmdb *l)
{
    (void)pthread_mutex_lock(&l->lock);
    struct snapshot *s = l->free;
    if (s != NULL) {
        l->free = s->next_free;
    } else if ((s = calloc(1, sizeof *s)) != NULL) {
        s->next_all = l->all;
        l->all = s;
    }
    (void)pthread_mutex_unlock(&l->lock);
    return s;
}

static void snapshot_give(struct lmdb *l, struct snapshot *s)
{
    (void)pthread_mutex_lock(&l->lock);
    s->next_free = l->free;
    l->free = s;
    (void)pthread_mutex_unlock(&l->lock);
}

static int snapshot_start(struct lmdb *l, struct snapshot *s)
{
    int rc =
        s->txn == NULL ? mdb_txn_begin(l->env, NULL, MDB_RDONLY, &s->txn) : mdb_txn_renew(s->txn);
    if (rc != 0)
        return rc;
    rc = s->cursor == NULL ? mdb_cursor_open(s->txn, l->dbi, &s->cursor)
                           : mdb_cursor_renew(s->txn, s->cursor);
    if (rc != 0)
        mdb_txn_reset(s->txn);
    return rc;
}

int lmdb_snapshot_begin(struct lmdb *l, struct snapshot **out)
{
    struct snapshot *s = snapshot_take(l);
    if (s == NULL)
        return -ENOMEM;
    int rc = snapshot_start(l, s);
    if (rc != 0) {
        snapshot_give(l, s);
        return lmdb_errno(l, rc);
    }
    *out = s;
    return 0;
}

void lmdb_snapshot_end(struct lmdb *l, struct snapshot *s)
{
    mdb_txn_reset(s->txn);
    snapshot_give(l, s);
}

struct snapshot_args {
    int (*work)(struct lmdb *l, MDB_cursor *cursor, void *arg);
    void *arg;
};

static int snapshot_work(struct lmdb *l, void *arg)
{
    const struct snapshot_args *a = arg;
    struct snapshot *s = NULL;
    int rc = lmdb_snapshot_begin(l, &s);
    if (s != NULL) {
        rc = a->work(l, s->cursor, a->arg);
        lmdb_snapshot_end(l, s);
    }
    return rc;
}

int lmdb_guard_snapshot(struct lmdb *l, int (*work)(struct lmdb *l, MDB_cursor *cursor, void *arg),
                        void *arg)
{
    struct snapshot_args args = { .work = work, .arg = arg };
    return lmdb_guard(l, snapshot_work, &args);
}

/* ---- good and damaged ------------------------------------------------------------------------ */

void lmdb_block_prefix(uint8_t *key, uint64_t object, uint32_t index)
{
    key[0] = KEY_BLOCK;
    put_be64(key + 1, object);
    put_be32(key + 9, index);
}

uint32_t block_crc(uint64_t object, uint32_t index, const void *data)
{
    uint8_t prefix[BLOCK_PREFIX_BYTES];
    lmdb_block_prefix(prefix, object, index);
    return crc32c(crc32c(0, prefix, sizeof prefix), data, BLOCK_SIZE);
}

bool lmdb_inside_map(const struct lmdb *l, const uint8_t *p, size_t len)
{
    uintptr_t base = (uintptr_t)l->map, at = (uintptr_t)p;
    return at >= base && len <= l->map_size && at - base <= l->map_size - len;
}

bool lmdb_block_key_good(const uint8_t *key, size_t len)
{
    return len == KEY_BLOCK_BYTES && key[BLOCK_PREFIX_BYTES] == BLOCK_KEY_VERSION &&
           get_le32(key + BLOCK_CHECK_AT) == crc32c(0, key, BLOCK_CHECK_AT);
}

bool lmdb_envelope_good(const struct lmdb_item *it, const uint8_t *payload)
{
    uint32_t crc = crc32c(0, it->key, it->key_len);
    return it->value[0] == ENVELOPE_VERSION &&
           get_le32(it->value + 1) == crc32c(crc, payload, it->value_len - ENVELOPE_BYTES);
}

bool lmdb_item_bounded(const struct lmdb *l, const struct lmdb_item *it)
{
    return it->key_len >= 1 && it->key_len <= KEY_MAX && lmdb_inside_map(l, it->key, it->key_len) &&
           (it->value_len <= ENVELOPE_BYTES + VALUE_MAX ||
            lmdb_is_log(it->key, it->key_len, it->value_len)) &&
           lmdb_inside_map(l, it->value, it->value_len);
}

/* Does the leaf around p hold what its header says? */
static bool leaf_good(const struct lmdb *l, const uint8_t *p)
{
    size_t number = (size_t)(p - l->map) / LMDB_PAGE_SIZE;
    return lmdb_page_good(l->map + number * LMDB_PAGE_SIZE, number, P_LEAF);
}

bool lmdb_item_good(const struct lmdb *l, const struct lmdb_item *it)
{
    if (!lmdb_item_bounded(l, it) || !leaf_good(l, it->key))
        return false;
    if (it->key[0] == KEY_BLOCK)
        return lmdb_block_key_good(it->key, it->key_len);
    if (it->key[0] == KEY_LOG)
        return lmdb_is_log(it->key, it->key_len, it->value_len);
    return it->value_len >= ENVELOPE_BYTES && lmdb_envelope_good(it, it->value + ENVELOPE_BYTES);
}

/* ---- moving a cursor ------------------------------------------------------------------------- */

static int move(struct lmdb *l, MDB_cursor *cursor, MDB_val *key, MDB_cursor_op op,
                struct lmdb_item *it)
{
    MDB_val value;
    int rc = mdb_cursor_get(cursor, key, &value, op);
    if (rc != 0)
        return lmdb_errno(l, rc);
    it->key = key->mv_data;
    it->key_len = key->mv_size;
    it->value = value.mv_data;
    it->value_len = value.mv_size;
    return 0;
}

int lmdb_seek(struct lmdb *l, MDB_cursor *cursor, const uint8_t *key, size_t len,
              struct lmdb_item *it)
{
    MDB_val wanted = { .mv_size = len, .mv_data = (void *)(uintptr_t)key };
    int rc = move(l, cursor, &wanted, MDB_SET_RANGE, it);
    if (rc == 0 && (!lmdb_item_bounded(l, it) || bytes_compare(it->key, it->key_len, key, len) < 0))
        return -EIO;
    return rc;
}

int lmdb_step(struct lmdb *l, MDB_cursor *cursor, MDB_cursor_op op, struct lmdb_item *it)
{
    MDB_val key = { 0 };
    return move(l, cursor, &key, op, it);
}

int lmdb_check_before(struct lmdb *l, MDB_cursor *cursor, int found, const uint8_t *key, size_t len)
{
    struct lmdb_item before = { 0 };
    int rc = lmdb_step(l, cursor, found == 0 ? MDB_PREV : MDB_LAST, &before);
    if (rc == -ENOENT)
        return 0;
    if (rc != 0)
        return rc;
    if (!lmdb_item_good(l, &before) || bytes_compare(before.key, before.key_len, key, len) >= 0)
        return -EIO;
    return 0;
}
