/* update.c: look-ups of records, and applying the records of one operation. */
#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "store/txn.h"

#define NUMBER_CHUNK 1024u /* numbers taken from the counter at a time */

/* ---- look-ups -------------------------------------------------------------------------------- */

static ssize_t copy_value(const struct txn_record *r, void *buf, size_t size)
{
    if (r->deleted)
        return -ENOENT;
    if (buf != NULL && r->value_len > size)
        return -ERANGE;
    if (buf != NULL)
        memcpy(buf, r->bytes + r->key_len, r->value_len);
    return (ssize_t)r->value_len;
}

ssize_t store_get(struct store *s, const struct key *key, void *buf, size_t size)
{
    pthread_mutex_lock(&s->lock);
    struct txn_record *r = store_pending_record(s, key);
    ssize_t n = r != NULL ? copy_value(r, buf, size) : 0;
    pthread_mutex_unlock(&s->lock);
    return r != NULL ? n : lmdb_get(s->lmdb, key, buf, size);
}

static bool has_prefix(const uint8_t *bytes, size_t len, const struct key *key, size_t prefix)
{
    return len >= prefix && memcmp(bytes, key->bytes, prefix) == 0;
}

/* The first pending key after *key, deletions included, of one transaction; min keeps the least. */
static void next_pending(struct txn *t, const struct key *key, size_t prefix, struct key *min,
                         bool *found)
{
    struct txn_record *r = t != NULL ? txn_next_record(t, key) : NULL;
    if (r == NULL || !has_prefix(r->bytes, r->key_len, key, prefix))
        return;
    struct key k = { .len = r->key_len };
    memcpy(k.bytes, r->bytes, r->key_len);
    if (!*found || key_compare(&k, min) < 0)
        *min = k;
    *found = true;
}

ssize_t store_next(struct store *s, struct key *key, size_t prefix, void *buf, size_t size)
{
    for (;;) {
        struct key pending, stored = *key;
        bool found = false;
        pthread_mutex_lock(&s->lock);
        next_pending(s->running, key, prefix, &pending, &found);
        next_pending(s->committing, key, prefix, &pending, &found);
        pthread_mutex_unlock(&s->lock);
        ssize_t n = lmdb_next(s->lmdb, &stored, prefix, buf, size);
        if (n < 0 && n != -ENOENT && n != -ERANGE)
            return n;
        if (!found || (n != -ENOENT && key_compare(&stored, &pending) < 0)) {
            *key = stored; /* unchanged when there is none */
            return n;
        }
        *key = pending;
        n = store_get(s, key, buf, size);
        if (n != -ENOENT)
            return n;
        /* Deleted, perhaps just now: go on behind it. */
    }
}

/* ---- updates --------------------------------------------------------------------------------- */

void update_init(struct update *u, struct store *s)
{
    *u = (struct update){ .store = s };
}

static void update_add(struct update *u, struct txn_record *r)
{
    if (r == NULL) {
        u->error = -ENOMEM;
        return;
    }
    r->next = u->records;
    u->records = r;
    u->nr_records++;
    u->bytes += (uint64_t)r->key_len + r->value_len;
}

void update_put(struct update *u, const struct key *key, const void *value, size_t len)
{
    update_add(u, record_new(key, value, len, false));
}

void *update_reserve(struct update *u, const struct key *key, size_t len)
{
    struct txn_record *r = record_new(key, NULL, len, false);
    update_add(u, r);
    return r != NULL ? r->bytes + r->key_len : NULL;
}

void update_del(struct update *u, const struct key *key)
{
    update_add(u, record_new(key, NULL, 0, true));
}

void update_trim(struct update *u, uint64_t data_id, uint64_t from, uint64_t to)
{
    assert(from < to && to <= OBJECT_BLOCKS);
    struct trim *t = malloc(sizeof *t);
    if (t == NULL) {
        u->error = -ENOMEM;
        return;
    }
    *t = (struct trim){ .next = u->trims, .object = data_id, .from = from, .to = to };
    u->trims = t;
    struct key key;
    key_trim(&key, data_id, from, to);
    update_put(u, &key, NULL, 0);
}

void update_abort(struct update *u)
{
    while (u->records != NULL) {
        struct txn_record *r = u->records;
        u->records = r->next;
        free(r);
    }
    while (u->trims != NULL) {
        struct trim *t = u->trims;
        u->trims = t->next;
        free(t);
    }
    u->nr_records = 0;
}

/* Oldest first, so that of two records with one key the later one stays. */
static void reverse_records(struct update *u)
{
    struct txn_record *first = NULL;
    while (u->records != NULL) {
        struct txn_record *r = u->records;
        u->records = r->next;
        r->next = first;
        first = r;
    }
    u->records = first;
}

static void apply_locked(struct store *s, struct update *u)
{
    txn_started(s);
    reverse_records(u);
    while (u->records != NULL) {
        struct txn_record *r = u->records;
        u->records = r->next;
        txn_insert_record(s->running, r);
    }
    while (u->trims != NULL) {
        struct trim *t = u->trims;
        u->trims = t->next;
        trim_register(s, t);
    }
}

/* Room in running. A commit that fails is no reason to refuse what deletes or keeps the books: it
 * goes over the limit by its few records. */
static int wait_room(struct store *s, bool frees)
{
    int err = txn_wait_room(s, ROOM_RECORDS);
    return frees ? store_refuses(s) : err;
}

int update_apply(struct update *u, unsigned flags, uint64_t *tid)
{
    struct store *s = u->store;
    bool retried = false, frees = flags & UPDATE_FREES;
    int err = u->error;
    bool trims = u->trims != NULL;
    uint64_t object = trims ? u->trims->object : 0;
    if (err == 0) {
        pthread_mutex_lock(&s->lock);
        while ((err = wait_room(s, frees)) == 0 &&
               (err = space_check_update(s, u->nr_records, u->bytes, frees)) == -ENOSPC &&
               !retried) {
            /* A commit turns estimates into facts, and frees what was deleted. */
            pthread_mutex_unlock(&s->lock);
            store_make_room(s);
            pthread_mutex_lock(&s->lock);
            retried = true;
        }
        if (err == -ENOSPC && frees)
            err = 0; /* alone in its transaction, or nearly: the spare has room for that */
        if (err == 0) {
            apply_locked(s, u);
            if (tid != NULL)
                *tid = s->running->tid;
        }
        pthread_mutex_unlock(&s->lock);
    }
    update_abort(u);
    if (err == 0 && trims)
        trim_step(s, object); /* a small range is gone at once */
    return err;
}

/* ---- numbers --------------------------------------------------------------------------------- */

static int take_chunk(struct store *s, uint64_t end)
{
    uint8_t value[NUMBER_BYTES];
    struct key key;
    struct update u;
    key_counter(&key);
    update_init(&u, s);
    size_t len = number_encode(end, value);
    update_put(&u, &key, value, len);
    return update_apply(&u, UPDATE_FREES, NULL); /* truncating takes numbers too */
}

/* One at a time: of two that take a chunk the slower would put the counter back. */
int store_new_number(struct store *s, uint64_t *out)
{
    int err = 0;
    pthread_mutex_lock(&s->number_lock);
    if (s->next_number >= s->end_number) {
        uint64_t end = s->end_number + NUMBER_CHUNK;
        err = take_chunk(s, end);
        if (err == 0)
            s->end_number = end;
    }
    if (err == 0)
        *out = s->next_number++;
    pthread_mutex_unlock(&s->number_lock);
    return err;
}
