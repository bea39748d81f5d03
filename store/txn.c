/* txn.c: the two ordered maps of one transaction. */
#include "store/txn.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "store/bytes.h"

#define NODE_OVERHEAD 16u /* malloc's own, per allocation */

static int record_compare(const struct txn_record *a, const struct txn_record *b)
{
    return bytes_compare(a->bytes, a->key_len, b->bytes, b->key_len);
}

static int block_compare(const struct txn_block *a, const struct txn_block *b)
{
    if (a->object != b->object)
        return a->object < b->object ? -1 : 1;
    if (a->index != b->index)
        return a->index < b->index ? -1 : 1;
    return 0;
}

#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wunused-function"
RB_GENERATE_INTERNAL(record_map, txn_record, node, record_compare, static)
RB_GENERATE_INTERNAL(block_map, txn_block, node, block_compare, static)
#pragma GCC diagnostic pop

uint64_t store_now_ns(void)
{
    struct timespec ts;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

struct txn *txn_new(uint64_t tid)
{
    struct txn *t = calloc(1, sizeof *t);
    if (t == NULL)
        return NULL;
    t->tid = tid;
    TAILQ_INIT(&t->unlogged_records);
    TAILQ_INIT(&t->unlogged_blocks);
    return t;
}

bool txn_empty(const struct txn *t)
{
    return t->nr_records == 0 && t->nr_blocks == 0;
}

void txn_free(struct txn *t)
{
    if (t == NULL)
        return;
    for (struct txn_record *r = RB_MIN(record_map, &t->records), *next; r != NULL; r = next) {
        next = RB_NEXT(record_map, &t->records, r);
        RB_REMOVE(record_map, &t->records, r);
        free(r);
    }
    for (struct txn_block *b = RB_MIN(block_map, &t->blocks), *next; b != NULL; b = next) {
        next = RB_NEXT(block_map, &t->blocks, b);
        RB_REMOVE(block_map, &t->blocks, b);
        block_put(b);
    }
    free(t);
}

struct txn_record *record_new(const struct key *key, const void *value, size_t len, bool deleted)
{
    assert(len <= VALUE_MAX);
    struct txn_record *r = malloc(sizeof *r + key->len + len);
    if (r == NULL)
        return NULL;
    *r = (struct txn_record){ .value_len = (uint32_t)len, .key_len = key->len, .deleted = deleted };
    memcpy(r->bytes, key->bytes, key->len);
    if (value != NULL)
        memcpy(r->bytes + key->len, value, len);
    return r;
}

struct txn_block *block_new(uint64_t object, uint32_t index, const void *data)
{
    struct txn_block *b = malloc(sizeof *b);
    if (b == NULL)
        return NULL;
    *b = (struct txn_block){ .object = object, .index = index, .deleted = data == NULL };
    atomic_store(&b->refs, 1);
    if (data == NULL)
        return b;
    b->data = malloc(BLOCK_SIZE);
    if (b->data == NULL) {
        free(b);
        return NULL;
    }
    memcpy(b->data, data, BLOCK_SIZE);
    b->crc = block_crc(object, index, b->data); /* of the copy: the page may change meanwhile */
    return b;
}

void block_put(struct txn_block *b)
{
    if (atomic_fetch_sub(&b->refs, 1) == 1) {
        free(b->data);
        free(b);
    }
}

static uint64_t record_bytes(const struct txn_record *r)
{
    return sizeof *r + NODE_OVERHEAD + r->key_len + r->value_len;
}

static uint64_t block_bytes(const struct txn_block *b)
{
    return sizeof *b + NODE_OVERHEAD + (b->data != NULL ? BLOCK_SIZE + NODE_OVERHEAD : 0);
}

void txn_logged_record(struct txn *t, struct txn_record *r)
{
    if (r->logged)
        return;
    r->logged = true;
    TAILQ_REMOVE(&t->unlogged_records, r, unlogged);
    t->unlogged_bytes -= log_record_bytes(r);
}

static void leave_unlogged_block(struct txn *t, struct txn_block *b)
{
    if (b->logged)
        return;
    TAILQ_REMOVE(&t->unlogged_blocks, b, unlogged);
    t->unlogged_bytes -= log_block_bytes(b);
}

void txn_logged_block(struct txn *t, struct txn_block *b)
{
    leave_unlogged_block(t, b);
    b->logged = b->in_log = true;
}

void txn_insert_record(struct txn *t, struct txn_record *r)
{
    struct txn_record *old = RB_INSERT(record_map, &t->records, r);
    if (old != NULL) {
        txn_logged_record(t, old); /* by the one that takes its place */
        RB_REMOVE(record_map, &t->records, old);
        RB_INSERT(record_map, &t->records, r);
        t->bytes -= record_bytes(old);
        t->record_bytes -= (uint64_t)old->key_len + old->value_len;
        t->nr_records--;
        free(old);
    }
    t->bytes += record_bytes(r);
    t->record_bytes += (uint64_t)r->key_len + r->value_len;
    t->nr_records++;
    TAILQ_INSERT_TAIL(&t->unlogged_records, r, unlogged);
    t->unlogged_bytes += log_record_bytes(r);
}

/* A block that has left the map. */
static void drop_block(struct txn *t, struct txn_block *b)
{
    leave_unlogged_block(t, b);
    t->bytes -= block_bytes(b);
    t->nr_blocks--;
    t->nr_data -= b->data != NULL;
    block_put(b);
}

void txn_remove_block(struct txn *t, struct txn_block *b)
{
    RB_REMOVE(block_map, &t->blocks, b);
    drop_block(t, b);
}

void txn_insert_block(struct txn *t, struct txn_block *b)
{
    struct txn_block *old = RB_INSERT(block_map, &t->blocks, b);
    if (old != NULL) {
        RB_REMOVE(block_map, &t->blocks, old);
        RB_INSERT(block_map, &t->blocks, b);
        b->in_log = old->in_log;
        drop_block(t, old);
    }
    t->bytes += block_bytes(b);
    t->nr_blocks++;
    t->nr_data += b->data != NULL;
    TAILQ_INSERT_TAIL(&t->unlogged_blocks, b, unlogged);
    t->unlogged_bytes += log_block_bytes(b);
}

/* Room for a record to compare with, made of a key. */
struct probe {
    _Alignas(struct txn_record) uint8_t room[sizeof(struct txn_record) + KEY_MAX];
};

static struct txn_record *probe_set(struct probe *p, const struct key *key)
{
    struct txn_record *r = (struct txn_record *)(void *)p->room;
    r->key_len = key->len;
    memcpy(r->bytes, key->bytes, key->len);
    return r;
}

static struct txn_record *find_record(struct txn *t, const struct key *key)
{
    struct probe p;
    return RB_FIND(record_map, &t->records, probe_set(&p, key));
}

struct txn_record *txn_next_record(struct txn *t, const struct key *key)
{
    struct probe p;
    struct txn_record *least = probe_set(&p, key);
    struct txn_record *r = RB_NFIND(record_map, &t->records, least);
    if (r != NULL && record_compare(r, least) == 0)
        r = RB_NEXT(record_map, &t->records, r);
    return r;
}

struct txn_block *txn_first_block(struct txn *t, uint64_t object, uint64_t index)
{
    if (index > UINT32_MAX)
        return NULL;
    struct txn_block probe = { .object = object, .index = (uint32_t)index };
    struct txn_block *b = RB_NFIND(block_map, &t->blocks, &probe);
    return b != NULL && b->object == object ? b : NULL;
}

struct txn_block *txn_next_block(struct txn_block *b, uint64_t object)
{
    b = RB_NEXT(block_map, NULL, b);
    return b != NULL && b->object == object ? b : NULL;
}

struct txn_record *txn_min_record(struct txn *t)
{
    return RB_MIN(record_map, &t->records);
}

struct txn_record *txn_after_record(struct txn_record *r)
{
    return RB_NEXT(record_map, NULL, r);
}

struct txn_block *txn_min_block(struct txn *t)
{
    return RB_MIN(block_map, &t->blocks);
}

struct txn_block *txn_after_block(struct txn_block *b)
{
    return RB_NEXT(block_map, NULL, b);
}

struct txn_record *store_pending_record(struct store *s, const struct key *key)
{
    struct txn_record *r = find_record(s->running, key);
    if (r == NULL && s->committing != NULL)
        r = find_record(s->committing, key);
    return r;
}

struct txn_block *store_pending_block(struct store *s, uint64_t object, uint32_t index)
{
    struct txn_block *b = txn_first_block(s->running, object, index);
    if (b != NULL && b->index == index)
        return b;
    b = s->committing != NULL ? txn_first_block(s->committing, object, index) : NULL;
    return b != NULL && b->index == index ? b : NULL;
}
