/* blocks.c: the volume as a block device: reads from transactions and LMDB, writes into the running
 * transaction. Both answer inside submit(). */
#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "store/txn.h"

/* ---- reading --------------------------------------------------------------------------------- */

/* What the transactions know about the bio's blocks. */
struct found {
    bool skip[BIO_MAX_VECS];               /* answered: LMDB is not asked */
    struct txn_block *block[BIO_MAX_VECS]; /* referenced, to be copied */
};

/* The vec with that index, from the i-th on. */
static uint32_t vec_at(const struct bio *bio, uint32_t i, uint32_t index)
{
    while (i < bio->nr_vecs && bio->vecs[i].index < index)
        i++;
    return i;
}

static void look_in_txn(struct txn *t, const struct bio *bio, struct found *f)
{
    uint32_t last = bio->vecs[bio->nr_vecs - 1].index, i = 0;
    struct txn_block *b = t != NULL ? txn_first_block(t, bio->object, bio->vecs[0].index) : NULL;
    for (; b != NULL && b->index <= last; b = txn_next_block(b, bio->object)) {
        i = vec_at(bio, i, b->index);
        if (bio->vecs[i].index != b->index || f->skip[i])
            continue;
        f->skip[i] = true;
        if (!b->deleted) {
            atomic_fetch_add(&b->refs, 1);
            f->block[i] = b;
        }
    }
}

static void look_in_trims(const struct store *s, const struct bio *bio, struct found *f)
{
    uint32_t first = bio->vecs[0].index, last = bio->vecs[bio->nr_vecs - 1].index;
    const struct trim *t = s->trims;
    for (; (t = trim_touching(t, bio->object, first, last)) != NULL; t = t->next)
        for (uint32_t i = 0; i < bio->nr_vecs; i++)
            if (bio->vecs[i].index >= t->from && bio->vecs[i].index < t->to)
                f->skip[i] = true;
}

static void read_bio(struct store *s, struct bio *bio)
{
    struct found f;
    memset(f.skip, 0, bio->nr_vecs * sizeof f.skip[0]);
    /* NOLINTNEXTLINE(bugprone-sizeof-expression): they are pointers */
    memset(f.block, 0, bio->nr_vecs * sizeof f.block[0]);
    pthread_mutex_lock(&s->lock);
    look_in_trims(s, bio, &f);
    look_in_txn(s->running, bio, &f);
    look_in_txn(s->committing, bio, &f);
    s->stats.block_reads += bio->nr_vecs;
    pthread_mutex_unlock(&s->lock);
    for (uint32_t i = 0; i < bio->nr_vecs; i++) {
        if (f.block[i] != NULL) {
            memcpy(bio->vecs[i].data, f.block[i]->data, BLOCK_SIZE);
            block_put(f.block[i]);
        } else if (f.skip[i]) {
            memset(bio->vecs[i].data, 0, BLOCK_SIZE);
            bio->vecs[i].flags |= BV_HOLE;
        }
    }
    lmdb_read_blocks(s->lmdb, bio->object, bio->vecs, f.skip, bio->nr_vecs);
}

/* ---- writing --------------------------------------------------------------------------------- */

/* Copies of the bio's blocks, checksums computed over the copies.   NULL: no memory. */
static struct txn_block *copy_blocks(const struct bio *bio)
{
    struct txn_block *first = NULL;
    for (uint32_t i = bio->nr_vecs; i-- > 0;) {
        struct txn_block *b = block_new(bio->object, bio->vecs[i].index, bio->vecs[i].data);
        if (b == NULL) {
            while (first != NULL) {
                b = first->next;
                block_put(first);
                first = b;
            }
            return NULL;
        }
        b->next = first;
        first = b;
    }
    return first;
}

static uint64_t count_new(const struct bio *bio)
{
    uint64_t n = 0;
    for (uint32_t i = 0; i < bio->nr_vecs; i++)
        n += (bio->vecs[i].flags & BV_NEW) != 0;
    return n;
}

/* Context: lock held, room made. Takes the blocks over. */
static void insert_blocks(struct store *s, const struct bio *bio, struct txn_block *b,
                          uint64_t nr_new)
{
    txn_started(s);
    while (b != NULL) {
        struct txn_block *next = b->next;
        txn_insert_block(s->running, b);
        b = next;
    }
    s->running->nr_new += nr_new;
    space_unpromise(s, bio->nr_vecs, nr_new);
}

/* Put KEY_BLOCKS of the object, whose record is r, into the running transaction. Context: lock. */
static void set_count(struct store *s, struct txn_record *r, uint64_t count)
{
    uint8_t value[NUMBER_BYTES];
    size_t n = number_encode(count, value);
    assert(n == r->value_len);
    memcpy(r->bytes + r->key_len, value, n);
    txn_insert_record(s->running, r);
}

static int write_locked(struct store *s, const struct bio *bio, struct txn_block *blocks,
                        struct txn_record **count_record)
{
    uint64_t nr_new = count_new(bio), count = 0;
    int err = nr_new > 0 ? store_blocks_locked(s, bio->object, &count) : 0;
    if (err != 0)
        return err;
    insert_blocks(s, bio, blocks, nr_new);
    if (nr_new > 0) {
        set_count(s, *count_record, count + nr_new);
        *count_record = NULL;
    }
    return 0;
}

/* Blocks of a range that is still being deleted: finish that first, or it would delete ours. Takes
 * and leaves the lock held. */
static int finish_trims(struct store *s, const struct bio *bio)
{
    uint32_t first = bio->vecs[0].index, last = bio->vecs[bio->nr_vecs - 1].index;
    while (trim_touching(s->trims, bio->object, first, last) != NULL) {
        pthread_mutex_unlock(&s->lock);
        int r = trim_step(s, bio->object);
        pthread_mutex_lock(&s->lock);
        if (r < 0)
            return r;
    }
    return 0;
}

static int write_bio(struct store *s, struct bio *bio)
{
    struct key key;
    uint8_t value[NUMBER_BYTES];
    key_blocks(&key, bio->object);
    size_t len = number_encode(0, value);
    struct txn_record *r = record_new(&key, value, len, false);
    struct txn_block *blocks = copy_blocks(bio);
    int err = r == NULL || blocks == NULL ? -ENOMEM : 0;
    if (err == 0) {
        pthread_mutex_lock(&s->lock);
        do {
            err = txn_wait_room(s, ROOM_DATA);
            if (err == 0)
                err = finish_trims(s, bio);
        } while (err == 0 && txn_full(s, ROOM_DATA));
        if (err == 0)
            err = write_locked(s, bio, blocks, &r);
        if (err == 0)
            blocks = NULL;
        pthread_mutex_unlock(&s->lock);
    }
    free(r);
    while (blocks != NULL) {
        struct txn_block *next = blocks->next;
        block_put(blocks);
        blocks = next;
    }
    return err;
}

static void volume_submit(struct device *dev, struct bio *bio)
{
    struct store *s = (struct store *)(void *)((char *)dev - offsetof(struct store, dev));
    int err = 0;
    switch (bio->op) {
    case BIO_READ:
        read_bio(s, bio);
        break;
    case BIO_WRITE:
        err = write_bio(s, bio);
        break;
    }
    if (err != 0)
        bio_fail(bio, err);
    bio_endio(bio);
}

/* The promise of room that its page had. */
static void volume_swallowed(struct device *dev)
{
    store_unreserve((struct store *)(void *)((char *)dev - offsetof(struct store, dev)), 1, 0);
}

const struct device_ops volume_device_ops = { .submit = volume_submit,
                                              .swallowed = volume_swallowed };

struct device *store_device(struct store *s)
{
    return s->faults != NULL ? s->faults : &s->dev;
}

struct device *store_faults(struct store *s)
{
    return s->faults;
}

/* ---- questions about blocks ------------------------------------------------------------------ */

int store_blocks_locked(struct store *s, uint64_t object, uint64_t *out)
{
    uint8_t value[NUMBER_BYTES];
    struct key key;
    key_blocks(&key, object);
    for (;;) {
        struct txn_record *r = store_pending_record(s, &key);
        if (r != NULL) {
            *out = 0;
            return r->deleted ? 0 : number_decode(r->bytes + r->key_len, r->value_len, out);
        }
        uint64_t durable = s->durable;
        pthread_mutex_unlock(&s->lock);
        ssize_t n = lmdb_get(s->lmdb, &key, value, sizeof value);
        pthread_mutex_lock(&s->lock);
        if (s->durable != durable || store_pending_record(s, &key) != NULL)
            continue; /* it may have changed while we looked */
        *out = 0;
        if (n == -ENOENT)
            return 0;
        return n < 0 ? (int)n : number_decode(value, (size_t)n, out);
    }
}

int store_count_blocks(struct store *s, uint64_t data_id, uint64_t *out)
{
    pthread_mutex_lock(&s->lock);
    int err = store_blocks_locked(s, data_id, out);
    pthread_mutex_unlock(&s->lock);
    return err;
}

int store_block_exists(struct store *s, uint64_t data_id, uint32_t index)
{
    uint32_t found;
    pthread_mutex_lock(&s->lock);
    bool trimmed = trim_touching(s->trims, data_id, index, index) != NULL;
    struct txn_block *b = store_pending_block(s, data_id, index);
    bool known = trimmed || b != NULL, exists = !trimmed && b != NULL && !b->deleted;
    pthread_mutex_unlock(&s->lock);
    if (known)
        return exists;
    ssize_t n = lmdb_list_blocks(s->lmdb, data_id, index, (uint64_t)index + 1, &found, 1);
    return n < 0 ? (int)n : n > 0;
}

int store_seek_block(struct store *s, uint64_t data_id, uint64_t from, uint64_t end, bool data,
                     uint64_t *out)
{
    uint32_t *indices = malloc(LIST_BATCH * sizeof *indices);
    if (indices == NULL)
        return -ENOMEM;
    uint64_t next = from, expected = from, answer = end;
    bool found = false;
    ssize_t n = 0;
    while (!found && next < end && (n = blocks_list(s, data_id, next, end, indices, &next)) >= 0) {
        if (data && n > 0) {
            answer = indices[0];
            found = true;
        }
        for (ssize_t i = 0; !data && !found && i < n; i++)
            found = indices[i] != expected++;
        if (!data && (found || next > expected)) {
            answer = found ? expected - 1 : expected;
            found = true;
        }
    }
    free(indices);
    if (n < 0)
        return (int)n;
    *out = answer < end ? answer : end;
    return 0;
}
