/* trim.c: deleting blocks in bounded steps.
 *
 * A trim is a promise made with an update: from then on the range reads as holes. Its blocks are
 * deleted a few hundred at a time, each step an ordinary change of the running transaction. A step
 * also moves the beginning of the KEY_TRIM record behind what it deleted: what is written there from
 * then on is new, and the next mount, which goes on where the record says, must leave it alone.
 * Who writes into a range that is still being trimmed does the steps himself first.
 */
#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "store/txn.h"

const struct trim *trim_touching(const struct trim *t, uint64_t object, uint64_t first,
                                 uint64_t last)
{
    while (t != NULL && (t->object != object || t->from > last || t->to <= first))
        t = t->next;
    return t;
}

void trim_register(struct store *s, struct trim *t)
{
    t->next = s->trims;
    s->trims = t;
    atomic_fetch_add(&s->nr_trims, 1);
    s->wake = true;
    pthread_cond_broadcast(&s->changed);
}

/* ---- which blocks there are ------------------------------------------------------------------ */

struct listing {
    uint32_t stored[LIST_BATCH]; /* LMDB's */
    uint32_t pending[2 * LIST_BATCH];
    bool dead[2 * LIST_BATCH]; /* a pending deletion */
    bool running_only[2 * LIST_BATCH];
    size_t nr_stored, nr_pending;
};

/* The transactions' entries of [from, to), merged: running over committing. Context: lock.
 * Returns the index up to which the list is complete. */
static uint64_t list_pending(struct store *s, uint64_t object, uint64_t from, uint64_t to,
                             struct listing *l)
{
    struct txn_block *r = txn_first_block(s->running, object, from);
    struct txn_block *c =
        s->committing != NULL ? txn_first_block(s->committing, object, from) : NULL;
    l->nr_pending = 0;
    while ((r != NULL && r->index < to) || (c != NULL && c->index < to)) {
        bool use_r = r != NULL && r->index < to && (c == NULL || r->index <= c->index);
        bool both = use_r && c != NULL && c->index == r->index;
        struct txn_block *b = use_r ? r : c;
        if (l->nr_pending == LIST_BATCH)
            return b->index;
        l->pending[l->nr_pending] = b->index;
        l->dead[l->nr_pending] = b->deleted;
        l->running_only[l->nr_pending++] = use_r && !both && !b->in_log;
        if (use_r)
            r = txn_next_block(r, object);
        if (!use_r || both)
            c = txn_next_block(c, object);
    }
    return to;
}

static int list_all(struct store *s, uint64_t object, uint64_t from, uint64_t to, struct listing *l,
                    uint64_t *complete)
{
    pthread_mutex_lock(&s->lock);
    *complete = list_pending(s, object, from, to, l);
    pthread_mutex_unlock(&s->lock);
    ssize_t n = lmdb_list_blocks(s->lmdb, object, from, *complete, l->stored, LIST_BATCH);
    if (n < 0)
        return (int)n;
    l->nr_stored = (size_t)n;
    if (n == LIST_BATCH)
        *complete = (uint64_t)l->stored[n - 1] + 1;
    return 0;
}

/* Merge both lists below complete into indices. */
static size_t merge(const struct listing *l, uint64_t complete, uint32_t *indices,
                    bool *only_running)
{
    size_t n = 0, p = 0, q = 0;
    while (n < LIST_BATCH) {
        bool has_p = p < l->nr_pending && l->pending[p] < complete;
        bool has_q = q < l->nr_stored && l->stored[q] < complete;
        if (!has_p && !has_q)
            break;
        bool take_p = has_p && (!has_q || l->pending[p] <= l->stored[q]);
        bool both = take_p && has_q && l->stored[q] == l->pending[p];
        if (take_p && !l->dead[p]) {
            indices[n] = l->pending[p];
            if (only_running != NULL)
                only_running[n] = l->running_only[p] && !both;
            n++;
        } else if (!take_p) {
            indices[n] = l->stored[q];
            if (only_running != NULL)
                only_running[n] = false;
            n++;
        }
        p += take_p;
        q += !take_p || both;
    }
    return n;
}

/* Live blocks of [from, to), trims not considered. */
static ssize_t list_raw(struct store *s, uint64_t object, uint64_t from, uint64_t to,
                        uint32_t *indices, bool *only_running, uint64_t *next)
{
    struct listing *l = malloc(sizeof *l);
    if (l == NULL)
        return -ENOMEM;
    uint64_t complete;
    int err = list_all(s, object, from, to, l, &complete);
    ssize_t n = err;
    if (err == 0) {
        n = (ssize_t)merge(l, complete, indices, only_running);
        *next = n == LIST_BATCH ? (uint64_t)indices[n - 1] + 1 : complete;
    }
    free(l);
    return n;
}

/* Drop the indices that t covers.   Returns how many are left. */
static ssize_t leave_out(const struct trim *t, uint32_t *indices, ssize_t n)
{
    ssize_t kept = 0;
    for (ssize_t i = 0; i < n; i++)
        if (indices[i] < t->from || indices[i] >= t->to)
            indices[kept++] = indices[i];
    return kept;
}

ssize_t blocks_list(struct store *s, uint64_t object, uint64_t from, uint64_t to,
                    uint32_t indices[LIST_BATCH], uint64_t *next)
{
    ssize_t n = list_raw(s, object, from, to, indices, NULL, next);
    if (n <= 0 || atomic_load(&s->nr_trims) == 0)
        return n;
    pthread_mutex_lock(&s->lock);
    const struct trim *t = s->trims;
    for (; n > 0 && (t = trim_touching(t, object, from, to - 1)) != NULL; t = t->next)
        n = leave_out(t, indices, n);
    pthread_mutex_unlock(&s->lock);
    return n;
}

/* ---- one step -------------------------------------------------------------------------------- */

struct step {
    uint64_t object, from, to;
    uint32_t indices[LIST_BATCH];
    bool only_running[LIST_BATCH];
    struct txn_block *tombs[LIST_BATCH];
    size_t n;
    uint64_t next;
    struct txn_record *count;       /* KEY_BLOCKS's new value */
    struct txn_record *done, *rest; /* KEY_TRIM's deletion; the one of what is left */
};

/* Choose a trim: of object, or any. What could not be read comes last, and only for its object's sake: others
 * must not wait for it. The next mount tries it again. Context: lock, trim_lock. */
static struct trim *choose(struct store *s, uint64_t object)
{
    struct trim *unreadable = NULL;
    for (struct trim *t = s->trims; t != NULL; t = t->next) {
        if (object != 0 && t->object != object)
            continue;
        if (!t->unreadable)
            return t;
        unreadable = t;
    }
    return object != 0 ? unreadable : NULL;
}

static bool step_alloc(struct step *st)
{
    struct key key;
    uint8_t value[NUMBER_BYTES];
    for (size_t i = 0; i < st->n; i++) {
        st->tombs[i] = st->only_running[i] ? NULL : block_new(st->object, st->indices[i], NULL);
        if (!st->only_running[i] && st->tombs[i] == NULL) {
            st->n = i;
            return false;
        }
    }
    key_blocks(&key, st->object);
    size_t len = number_encode(0, value);
    st->count = record_new(&key, value, len, false);
    key_trim(&key, st->object, st->from, st->to);
    st->done = record_new(&key, NULL, 0, true);
    key_trim(&key, st->object, st->next, st->to);
    st->rest = record_new(&key, NULL, 0, false);
    return st->count != NULL && st->done != NULL && st->rest != NULL;
}

static void step_free(struct step *st)
{
    for (size_t i = 0; i < st->n; i++)
        if (st->tombs[i] != NULL)
            block_put(st->tombs[i]);
    free(st->count);
    free(st->done);
    free(st->rest);
}

/* A block that only running knows is simply forgotten; freezing may have made it committing's. (One that the log
 * knows as well counts as new until the commit.) */
static void delete_block(struct store *s, struct step *st, size_t i)
{
    if (st->tombs[i] != NULL) {
        txn_insert_block(s->running, st->tombs[i]);
        st->tombs[i] = NULL;
        return;
    }
    struct txn_block *b = txn_first_block(s->running, st->object, st->indices[i]);
    if (b->data != NULL && s->running->nr_new > 0)
        s->running->nr_new--;
    txn_remove_block(s->running, b);
}

/* Are all blocks that are to be forgotten still in running only, and not in the log? Context: lock. */
static bool still_running(struct store *s, const struct step *st)
{
    for (size_t i = 0; i < st->n; i++) {
        if (!st->only_running[i])
            continue;
        struct txn_block *b = txn_first_block(s->running, st->object, st->indices[i]);
        if (b == NULL || b->index != st->indices[i] || b->in_log)
            return false;
    }
    return true;
}

/* The record follows the deletions, in the same transaction. Context: lock. */
static void advance(struct store *s, struct step *st, struct trim *t)
{
    struct trim **link = &s->trims;
    txn_insert_record(s->running, st->done);
    st->done = NULL;
    t->from = st->next;
    if (t->from < t->to) {
        txn_insert_record(s->running, st->rest);
        st->rest = NULL;
        return;
    }
    while (*link != t)
        link = &(*link)->next;
    *link = t->next;
    free(t);
    atomic_fetch_sub(&s->nr_trims, 1);
}

static int step_apply(struct store *s, struct step *st, struct trim *t)
{
    uint64_t count = 0;
    uint8_t value[NUMBER_BYTES];
    int err = txn_wait_room(s, ROOM_RECORDS);
    if (err == 0 && st->n > 0) {
        err = store_blocks_locked(s, st->object, &count);
        t->unreadable = err == -EIO;
    }
    if (err != 0 || !still_running(s, st))
        return err; /* frozen or logged meanwhile: the next step sees them there */
    txn_started(s);
    for (size_t i = 0; i < st->n; i++)
        delete_block(s, st, i);
    if (st->n > 0) {
        count = count > st->n ? count - st->n : 0;
        size_t len = number_encode(count, value);
        memcpy(st->count->bytes + st->count->key_len, value, len);
        st->count->deleted = count == 0;
        txn_insert_record(s->running, st->count);
        st->count = NULL;
    }
    s->stats.blocks_deleted += st->n;
    advance(s, st, t);
    return 0;
}

static int step_run(struct store *s, struct step *st, struct trim *t)
{
    ssize_t n = list_raw(s, st->object, st->from, st->to, st->indices, st->only_running, &st->next);
    t->unreadable = n == -EIO;
    if (n < 0)
        return (int)n;
    st->n = (size_t)n;
    int err = step_alloc(st) ? 0 : -ENOMEM;
    if (err == 0) {
        pthread_mutex_lock(&s->lock);
        err = step_apply(s, st, t);
        pthread_mutex_unlock(&s->lock);
    }
    step_free(st);
    return err;
}

int trim_step(struct store *s, uint64_t object)
{
    struct step *st = malloc(sizeof *st);
    if (st == NULL)
        return -ENOMEM;
    pthread_mutex_lock(&s->trim_lock);
    pthread_mutex_lock(&s->lock);
    struct trim *t = choose(s, object); /* stays: only holders of trim_lock remove it */
    if (t != NULL)
        *st = (struct step){ .object = t->object, .from = t->from, .to = t->to };
    pthread_mutex_unlock(&s->lock);
    int err = t != NULL ? step_run(s, st, t) : 0;
    if (err == -EIO && object == 0 && t->unreadable)
        err = 0; /* nobody waits for this one */
    pthread_mutex_lock(&s->lock);
    bool more = choose(s, object) != NULL;
    pthread_mutex_unlock(&s->lock);
    pthread_mutex_unlock(&s->trim_lock);
    free(st);
    return err != 0 ? err : more;
}

int trim_load(struct store *s)
{
    struct key key = { .len = 1, .bytes = { KEY_TRIM } };
    uint8_t nothing[1];
    ssize_t n;
    while ((n = store_next(s, &key, 1, nothing, sizeof nothing)) >= 0) {
        struct trim *t = malloc(sizeof *t);
        if (t == NULL)
            return -ENOMEM;
        *t = (struct trim){ .object = key_u64(&key, 0),
                            .from = key_u64(&key, 1),
                            .to = key_u64(&key, 2) };
        trim_register(s, t);
    }
    return n == -ENOENT ? 0 : (int)n;
}
