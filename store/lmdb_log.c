/* lmdb_log.c: the place of the redo log.
 *
 *     page n    LMDB's header (16)   the value begins: 4,080 bytes, unused
 *     page n+1  the ring ...
 *
 * The ring is the value of one record: a run of pages that stays where it is while nobody changes that
 * record. What is written to the pages is no business of LMDB's.
 */
#include "store/lmdb_impl.h"

#include <errno.h>
#include <string.h>

#define UNUSED_BYTES (LMDB_PAGE_SIZE - PAGE_HEADER)

static const uint8_t log_key[] = { KEY_LOG };

bool lmdb_is_log(const uint8_t *key, size_t key_len, size_t value_len)
{
    return key_len == sizeof log_key && key[0] == KEY_LOG && value_len > UNUSED_BYTES &&
           (value_len - UNUSED_BYTES) % LMDB_PAGE_SIZE == 0;
}

static int put_log_work(struct lmdb *l, void *arg)
{
    uint64_t bytes = *(uint64_t *)arg;
    MDB_val key = { .mv_size = sizeof log_key, .mv_data = (void *)(uintptr_t)log_key };
    MDB_val value = { .mv_size = UNUSED_BYTES + bytes };
    int rc = mdb_cursor_put(l->cursor, &key, &value, MDB_RESERVE | MDB_NOOVERWRITE);
    if (rc == 0)
        memset(value.mv_data, 0, value.mv_size);
    return lmdb_errno(l, rc);
}

int lmdb_put_log(struct lmdb *l, uint64_t bytes)
{
    return lmdb_guard(l, put_log_work, &bytes);
}

static int find_log(struct lmdb *l, MDB_cursor *cursor, void *arg)
{
    struct log_place *out = arg;
    struct lmdb_item it;
    int rc = lmdb_seek(l, cursor, log_key, sizeof log_key, &it);
    if (rc != 0)
        return rc;
    if (!lmdb_is_log(it.key, it.key_len, it.value_len))
        return -ENOENT;
    size_t at = (size_t)(it.value - l->map);
    if (at % LMDB_PAGE_SIZE != PAGE_HEADER ||
        lmdb_run_at(l, at / LMDB_PAGE_SIZE, it.value_len, l->usage.last_page) !=
            run_pages(it.value_len))
        return -EIO;
    *out = (struct log_place){ .fd = l->fd,
                               .offset = at + UNUSED_BYTES,
                               .bytes = it.value_len - UNUSED_BYTES };
    return 0;
}

int lmdb_find_log(struct lmdb *l, struct log_place *out)
{
    return lmdb_guard_snapshot(l, find_log, out);
}
