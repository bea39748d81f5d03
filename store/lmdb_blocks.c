/* lmdb_blocks.c: reading blocks.
 *
 * A bio is read in three passes: find the blocks, in key order, with one cursor; tell the kernel
 * which parts of the file will be read, if they are several; read the pages into the bio's own memory,
 * neighbours at once, and check them there. (Copying them out of the map would cost a page fault for
 * each, and hide from the kernel that the file is read in order.) The snapshot keeps the pages from
 * being written meanwhile.
 */
#include "store/lmdb_impl.h"

#include <assert.h>
#include <errno.h>
#include <limits.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/uio.h>

#include "store/bytes.h"

#define WILLNEED_GAP_BYTES ((uintptr_t)16 << 10) /* read rather than seek over */

struct found_block {
    const uint8_t *value; /* BLOCK_VALUE_BYTES in the map; NULL: none to read */
    uint8_t head[BLOCK_HEAD_BYTES];
    uint32_t crc;
};

struct blocks_args {
    uint64_t object;
    struct bio_vec *vecs;
    const bool *skip;
    uint32_t nr;
    struct found_block found[BIO_MAX_VECS];
};

/* Where a walk over ascending indices stands. */
struct blocks_walk {
    MDB_cursor *cursor;
    bool on_block; /* the cursor is on the good key of this block */
    uint32_t index;
    struct lmdb_item block;
    bool gap_known; /* nothing lies between the last index asked for and gap_end */
    bool gap_open;  /* it has no end */
    uint8_t gap_end[BLOCK_PREFIX_BYTES];
};

static bool is_block(const struct lmdb_item *it, const uint8_t *prefix)
{
    return it->key_len >= BLOCK_PREFIX_BYTES && memcmp(it->key, prefix, BLOCK_PREFIX_BYTES) == 0;
}

/* Go to the block or to what lies behind its place. *chained: w->block is what lies before.
 * Returns 0, -ENOENT, -EIO. */
static int approach(struct lmdb *l, struct blocks_walk *w, const uint8_t *prefix, uint32_t index,
                    struct lmdb_item *it, bool *chained)
{
    if (w->on_block && index == w->index + 1) {
        int rc = lmdb_step(l, w->cursor, MDB_NEXT, it);
        *chained = true;
        if (rc != 0)
            return rc;
        if (lmdb_item_bounded(l, it) &&
            bytes_compare(it->key, it->key_len, prefix, BLOCK_PREFIX_BYTES) >= 0)
            return 0;
    }
    *chained = false;
    return lmdb_seek(l, w->cursor, prefix, BLOCK_PREFIX_BYTES, it);
}

/* There is a gap at prefix, up to it (found == 0) or without an end. Remember it if both its sides
 * are good.   Returns -ENOENT or -EIO. */
static int note_gap(struct lmdb *l, struct blocks_walk *w, int found, const struct lmdb_item *it,
                    const uint8_t *prefix, bool chained)
{
    if (found == 0 && !lmdb_item_good(l, it))
        return -EIO;
    int rc = 0;
    if (!chained)
        rc = lmdb_check_before(l, w->cursor, found, prefix, BLOCK_PREFIX_BYTES);
    else if (!lmdb_item_good(l, &w->block))
        rc = -EIO;
    if (rc != 0)
        return rc;
    w->gap_known = true;
    w->gap_open = found != 0;
    memset(w->gap_end, 0, sizeof w->gap_end);
    if (found == 0)
        memcpy(w->gap_end, it->key,
               it->key_len < sizeof w->gap_end ? it->key_len : sizeof w->gap_end);
    return -ENOENT;
}

static int take_block(struct blocks_walk *w, const struct lmdb_item *it, uint32_t index,
                      struct found_block *block)
{
    if (!lmdb_block_key_good(it->key, it->key_len))
        return -EIO;
    w->on_block = true;
    w->index = index;
    w->block = *it;
    if (it->value_len != BLOCK_VALUE_BYTES)
        return -EIO;
    block->value = it->value;
    memcpy(block->head, it->key + BLOCK_HEAD_AT, BLOCK_HEAD_BYTES);
    block->crc = get_le32(it->key + BLOCK_CRC_AT);
    return 0;
}

/* Find one block.   Returns 0; -ENOENT: a hole; -EIO. */
static int find_block(struct lmdb *l, struct blocks_walk *w, uint64_t object, uint32_t index,
                      struct found_block *block)
{
    uint8_t prefix[BLOCK_PREFIX_BYTES];
    struct lmdb_item it;
    bool chained;
    lmdb_block_prefix(prefix, object, index);
    if (w->gap_known && (w->gap_open || memcmp(prefix, w->gap_end, BLOCK_PREFIX_BYTES) < 0))
        return -ENOENT;
    int rc = approach(l, w, prefix, index, &it, &chained);
    w->on_block = false;
    w->gap_known = false;
    if (rc != 0 && rc != -ENOENT)
        return rc;
    if (rc == 0 && is_block(&it, prefix))
        return take_block(w, &it, index, block);
    return note_gap(l, w, rc, &it, prefix, chained);
}

static void set_hole(struct bio_vec *vec)
{
    memset(vec->data, 0, BLOCK_SIZE);
    vec->flags |= BV_HOLE;
    vec->error = 0;
}

static void find_blocks(struct lmdb *l, MDB_cursor *cursor, struct blocks_args *a)
{
    struct blocks_walk walk = { .cursor = cursor };
    for (uint32_t i = 0; i < a->nr; i++) {
        a->found[i].value = NULL;
        if (a->skip != NULL && a->skip[i])
            continue;
        int rc = find_block(l, &walk, a->object, a->vecs[i].index, &a->found[i]);
        if (rc == -ENOENT)
            set_hole(&a->vecs[i]);
        else if (rc != 0)
            a->vecs[i].error = (int16_t)rc;
    }
}

/* Start reading the span [from, to) from the disk, if its first page is not in memory. A hint: its
 * failure does not matter, and where the rest of a span is missing, it is read page by page. */
static void willneed(uintptr_t from, uintptr_t to)
{
    unsigned char resident = 0;
    from &= ~(uintptr_t)(LMDB_PAGE_SIZE - 1);
    if (mincore((void *)from, 1, &resident) == 0 && (resident & 1) != 0) // NOLINT
        return;
    (void)madvise((void *)from, to - from, MADV_WILLNEED); // NOLINT
}

/* Blocks that lie together are left to the kernel: it sees them read in file order and reads ahead of
 * us, as far as the disk's own read_ahead_kb says. That ends where pages are brought without it, so
 * only a bio that jumps in the file is asked for first; then the disk works on all its places at once. */
static void read_ahead(const struct blocks_args *a)
{
    uintptr_t from = 0, to = 0;
    bool jumped = false;
    for (uint32_t i = 0; i < a->nr; i++) {
        uintptr_t at = (uintptr_t)a->found[i].value;
        if (at == 0)
            continue;
        if (from != 0 && (at < to || at - to > WILLNEED_GAP_BYTES)) {
            willneed(from, to);
            jumped = true;
            from = 0;
        }
        if (from == 0)
            from = at;
        to = at + BLOCK_VALUE_BYTES;
    }
    if (jumped)
        willneed(from, to);
}

/* Only good bytes clear the vec's error: what could not be read stays at -EIO. */
static void finish_block(uint64_t object, const struct found_block *block, struct bio_vec *vec)
{
    memcpy(vec->data, block->head, BLOCK_HEAD_BYTES);
    if (block_crc(object, vec->index, vec->data) == block->crc)
        vec->error = 0;
}

/* Where the page begins that holds the value; a value fills its page behind LMDB's header, which is as
 * long as the head that is kept elsewhere.   Returns -1: there is no such page. */
static off_t value_page(const struct lmdb *l, const struct found_block *block)
{
    if (block->value == NULL || !lmdb_inside_map(l, block->value, BLOCK_VALUE_BYTES))
        return -1;
    off_t page = block->value - l->map - BLOCK_HEAD_BYTES;
    return page >= 0 && page % LMDB_PAGE_SIZE == 0 ? page : -1;
}

/* Read the block at i and those after it whose pages lie behind its own in the file, as far as they can be
 * read.   Returns the index behind them; behind i when that cannot be. */
static uint32_t read_run(const struct lmdb *l, const struct blocks_args *a, uint32_t i)
{
    struct iovec iov[BIO_MAX_VECS];
    uint32_t end = i;
    off_t from = value_page(l, &a->found[i]);
    if (from < 0)
        return i + 1;
    do {
        iov[end - i] = (struct iovec){ .iov_base = a->vecs[end].data, .iov_len = BLOCK_SIZE };
        end++;
    } while (end < a->nr &&
             value_page(l, &a->found[end]) == from + (off_t)(end - i) * LMDB_PAGE_SIZE);
    ssize_t n = preadv(l->fd, iov, (int)(end - i), from);
    if (n < (ssize_t)BLOCK_SIZE)
        return i + 1;
    for (; n >= (ssize_t)BLOCK_SIZE; n -= BLOCK_SIZE, i++)
        finish_block(a->object, &a->found[i], &a->vecs[i]);
    return i;
}

static int read_blocks_work(struct lmdb *l, MDB_cursor *cursor, void *arg)
{
    struct blocks_args *a = arg;
    find_blocks(l, cursor, a);
    read_ahead(a);
    for (uint32_t i = 0; i < a->nr;)
        i = read_run(l, a, i);
    return 0;
}

void lmdb_read_blocks(struct lmdb *l, uint64_t object, struct bio_vec *vecs, const bool *skip,
                      uint32_t nr)
{
    struct blocks_args args; /* found[] is written before it is read */
    assert(nr <= BIO_MAX_VECS);
    args.object = object;
    args.vecs = vecs;
    args.skip = skip;
    args.nr = nr;
    for (uint32_t i = 0; i < nr; i++) {
        if (skip != NULL && skip[i])
            continue;
        vecs[i].flags &= (uint16_t)~BV_HOLE;
        vecs[i].error = -EIO; /* until it is known to be good */
    }
    int rc = lmdb_guard_snapshot(l, read_blocks_work, &args);
    for (uint32_t i = 0; rc == -ENOMEM && i < nr; i++)
        if (skip == NULL || !skip[i])
            vecs[i].error = -ENOMEM;
}

/* ---- which blocks exist ---------------------------------------------------------------------- */

struct list_args {
    uint64_t object;
    uint32_t from;
    uint64_t to;
    uint32_t *indices;
    size_t max;
};

/* The block's index, or a->to for an item behind the range. */
static uint64_t list_index(const struct list_args *a, const struct lmdb_item *it)
{
    if (it->key[0] != KEY_BLOCK || get_be64(it->key + 1) != a->object)
        return a->to;
    uint64_t index = get_be32(it->key + 9);
    return index < a->to ? index : a->to;
}

static int list_work(struct lmdb *l, MDB_cursor *cursor, void *arg)
{
    const struct list_args *a = arg;
    uint8_t prefix[BLOCK_PREFIX_BYTES];
    struct lmdb_item it;
    size_t nr = 0;
    uint64_t least = a->from;
    lmdb_block_prefix(prefix, a->object, a->from);
    int found = lmdb_seek(l, cursor, prefix, sizeof prefix, &it);
    if (found != 0 && found != -ENOENT)
        return found;
    int rc = lmdb_check_before(l, cursor, found, prefix, sizeof prefix);
    if (rc != 0)
        return rc;
    if (found == 0)
        found = lmdb_seek(l, cursor, prefix, sizeof prefix, &it);
    while (found == 0 && nr < a->max) {
        if (!lmdb_item_good(l, &it))
            return -EIO;
        uint64_t index = list_index(a, &it);
        if (index >= a->to)
            break;
        if (index < least)
            return -EIO;
        a->indices[nr++] = (uint32_t)index;
        least = index + 1;
        found = lmdb_step(l, cursor, MDB_NEXT, &it);
    }
    return found == 0 || found == -ENOENT ? (int)nr : found;
}

ssize_t lmdb_list_blocks(struct lmdb *l, uint64_t object, uint64_t from, uint64_t to,
                         uint32_t *indices, size_t max)
{
    struct list_args args = { .object = object, .to = to, .indices = indices };
    if (from > UINT32_MAX || from >= to || max == 0)
        return 0;
    args.from = (uint32_t)from;
    args.max = max < INT_MAX ? max : INT_MAX;
    return lmdb_guard_snapshot(l, list_work, &args);
}
