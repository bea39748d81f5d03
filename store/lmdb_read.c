/* lmdb_read.c: reading records. */
#include "store/lmdb_impl.h"

#include <assert.h>
#include <errno.h>
#include <string.h>

#include "store/bytes.h"

struct read_args {
    struct key *key; /* written by next only */
    size_t prefix;
    void *buf;
    size_t size;
};

/* Copy first and check the copy: the map is the disk. */
static int copy_value(const struct lmdb *l, const struct lmdb_item *it, void *buf, size_t size)
{
    if (!lmdb_item_bounded(l, it) || it->value_len < ENVELOPE_BYTES || it->key[0] == KEY_BLOCK ||
        it->key[0] == KEY_LOG)
        return -EIO;
    size_t len = it->value_len - ENVELOPE_BYTES;
    const uint8_t *payload = it->value + ENVELOPE_BYTES;
    if (buf != NULL && len > 0 && len <= size)
        payload = memcpy(buf, payload, len);
    if (!lmdb_envelope_good(it, payload))
        return -EIO;
    return buf == NULL || len <= size ? (int)len : -ERANGE;
}

static int get_work(struct lmdb *l, MDB_cursor *cursor, void *arg)
{
    const struct read_args *a = arg;
    const struct key *key = a->key;
    struct lmdb_item it;
    int found = lmdb_seek(l, cursor, key->bytes, key->len, &it);
    if (found != 0 && found != -ENOENT)
        return found;
    if (found == 0 && bytes_compare(it.key, it.key_len, key->bytes, key->len) == 0)
        return copy_value(l, &it, a->buf, a->size);
    if (found == 0 && !lmdb_item_good(l, &it))
        return -EIO;
    int rc = lmdb_check_before(l, cursor, found, key->bytes, key->len);
    return rc != 0 ? rc : -ENOENT;
}

ssize_t lmdb_get(struct lmdb *l, const struct key *key, void *buf, size_t size)
{
    struct key copy = *key;
    struct read_args args = { .key = &copy, .buf = buf, .size = size };
    assert(key->len >= 1 && key->len <= KEY_MAX && key->bytes[0] != KEY_BLOCK);
    return lmdb_guard_snapshot(l, get_work, &args);
}

/* The item behind the key, with everything up to it proved good.   Returns 0, -ENOENT, -EIO. */
static int find_after(struct lmdb *l, MDB_cursor *cursor, const struct key *key,
                      struct lmdb_item *it)
{
    int found = lmdb_seek(l, cursor, key->bytes, key->len, it), rc;
    if (found != 0 && found != -ENOENT)
        return found;
    if (found == 0 && bytes_compare(it->key, it->key_len, key->bytes, key->len) == 0) {
        if (!lmdb_item_good(l, it))
            return -EIO;
        found = lmdb_step(l, cursor, MDB_NEXT, it);
    } else if ((rc = lmdb_check_before(l, cursor, found, key->bytes, key->len)) != 0) {
        return rc;
    }
    if (found != 0)
        return found;
    if (!lmdb_item_good(l, it) || bytes_compare(it->key, it->key_len, key->bytes, key->len) <= 0)
        return -EIO;
    return 0;
}

static int next_work(struct lmdb *l, MDB_cursor *cursor, void *arg)
{
    const struct read_args *a = arg;
    struct lmdb_item it;
    int rc = find_after(l, cursor, a->key, &it);
    if (rc != 0)
        return rc;
    if (it.key_len < a->prefix || memcmp(it.key, a->key->bytes, a->prefix) != 0)
        return -ENOENT;
    rc = copy_value(l, &it, a->buf, a->size);
    if (rc < 0 && rc != -ERANGE)
        return rc;
    memcpy(a->key->bytes, it.key, it.key_len);
    a->key->len = (uint16_t)it.key_len;
    return rc;
}

ssize_t lmdb_next(struct lmdb *l, struct key *key, size_t prefix, void *buf, size_t size)
{
    struct read_args args = { .key = key, .prefix = prefix, .buf = buf, .size = size };
    assert(prefix >= 1 && prefix <= key->len && key->len <= KEY_MAX);
    assert(key->bytes[0] != KEY_BLOCK);
    return lmdb_guard_snapshot(l, next_work, &args);
}
