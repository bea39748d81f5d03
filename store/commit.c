/* commit.c: from running to durable: by a commit of LMDB's, or by a record of the log. */
#include <assert.h>
#include <errno.h>
#include <string.h>

#include "store/dev_fault.h"
#include "store/txn.h"

#define RETRY_FIRST_MS 100u /* back-off after a failed commit: doubles */
#define RETRY_MOST_MS  10000u
#define GATHER_SHARE   2u      /* a sync waits for others at most a half of the last one's time, */
#define GATHER_MOST_NS 500000u /* and at most so long */
#define ROOM_TRIMS     64u     /* steps of trims that who is refused room does first */
#define COMMIT_TRIES   12u     /* failures in a row (a minute) after which the store is read-only */

void txn_started(struct store *s)
{
    if (s->running->born_ns == 0)
        s->running->born_ns = store_now_ns();
}

/* With t in LMDB the log is needed from behind t's last record only. */
static int put_tail(struct store *s, const struct txn *t)
{
    uint8_t value[NUMBER_BYTES];
    struct key key;
    if (s->log == NULL || t->log_end == s->log->tail)
        return 0;
    key_log_tail(&key);
    return lmdb_put(s->lmdb, &key, value, number_encode(t->log_end, value));
}

/* LMDB commits nothing where nothing was put: put something that is there. */
static int put_no_change(struct store *s)
{
    uint8_t value[SUPER_BYTES];
    struct key key;
    key_super(&key);
    return lmdb_put(s->lmdb, &key, value, super_encode(&s->super, value));
}

/* Put every entry of the frozen map into one LMDB transaction and sync it. No lock is held. */
static int write_txn(struct store *s, struct txn *t)
{
    int err = lmdb_begin(s->lmdb);
    if (err != 0)
        return err;
    for (struct txn_block *b = txn_min_block(t); b != NULL && err == 0; b = txn_after_block(b))
        err = b->deleted ? lmdb_del_block(s->lmdb, b->object, b->index)
                         : lmdb_put_block(s->lmdb, b->object, b->index, b->data, b->crc);
    for (struct txn_record *r = txn_min_record(t); r != NULL && err == 0; r = txn_after_record(r)) {
        struct key key = { .len = r->key_len };
        memcpy(key.bytes, r->bytes, r->key_len);
        err = r->deleted ? lmdb_del(s->lmdb, &key)
                         : lmdb_put(s->lmdb, &key, r->bytes + r->key_len, r->value_len);
    }
    if (err == 0)
        err = put_tail(s, t);
    if (err == 0 && txn_empty(t))
        err = put_no_change(s);
    if (err == 0 && s->faults != NULL)
        err = dev_fault_commit(s->faults);
    if (err == 0)
        return lmdb_commit(s->lmdb);
    lmdb_abort(s->lmdb);
    return err;
}

/* Has the log all of it? */
static bool is_logged(const struct txn *t)
{
    return !t->log_failed && t->unlogged_bytes == 0;
}

/* Those who wait for running are being served from here on. Context: lock. */
static void sync_begins(struct store *s)
{
    s->frozen_waiting = s->waiting;
    s->waiting = 0;
    s->gather_until_ns = 0;
}

static void sync_ended(struct store *s, uint64_t ns)
{
    s->expected =
        s->frozen_waiting + s->waiting; /* the ones may come again, the others are there */
    s->last_sync_ns = ns;
}

/* Running becomes committing. Context: lock; none is committing, nor logging.   Returns false: no memory. */
static bool freeze(struct store *s)
{
    assert(s->committing == NULL && !s->logging);
    struct txn *next = txn_new(s->running->tid + 1);
    if (next == NULL)
        return false;
    s->committing = s->running;
    s->running = next;
    s->committing->log_end = s->log != NULL ? s->log->head : 0;
    if (!is_logged(s->committing)) /* else nobody waits for it */
        sync_begins(s);
    return true;
}

static void commit_succeeded(struct store *s, uint64_t ns)
{
    struct txn *t = s->committing;
    s->durable = t->tid;
    s->committing = NULL;
    s->failures = 0;
    s->retry_ns = 0;
    s->stats.commits++;
    if (!is_logged(t))
        sync_ended(s, ns);
    if (s->log != NULL)
        s->log->tail = t->log_end;
    s->stats.commit_ns += ns;
    s->stats.records_written += t->nr_records;
    s->stats.blocks_written += t->nr_blocks;
    space_after_commit(s);
}

/* Is it for others to end it: memory, or room where the volume lies? Then it is tried until it does. */
static bool may_pass(int err)
{
    return err == -ENOMEM || err == -ENOSPC || err == -EDQUOT;
}

/* Returns what the waiters are told. */
static int commit_failed(struct store *s, int err)
{
    uint64_t now = store_now_ns(), ms = RETRY_MOST_MS;
    if (s->failures < COMMIT_TRIES)
        ms = (uint64_t)RETRY_FIRST_MS << s->failures;
    s->last_error = err == -EUCLEAN ? -EIO : err;
    if (now >= s->retry_ns) { /* those who could not wait for the next try do not count */
        if (!may_pass(err) || s->failures + 1 < COMMIT_TRIES)
            s->failures++;
        s->retry_ns = now + (ms < RETRY_MOST_MS ? ms : RETRY_MOST_MS) * 1000000u;
    }
    s->stats.commit_errors++;
    atomic_fetch_add(&s->error_seq, 1);
    if (err == -EUCLEAN)
        s->damaged = true;
    if (s->failures >= COMMIT_TRIES || s->damaged || lmdb_dead(s->lmdb))
        atomic_store(&s->read_only, true);
    s->wake = true; /* for who does the background work to tell it, or to try again in time */
    pthread_cond_broadcast(&s->changed);
    return s->last_error;
}

/* Commit the frozen transaction. Context: lock, dropped meanwhile; nobody else does. */
static int commit_frozen(struct store *s)
{
    struct txn *t = s->committing;
    assert(t != NULL && !s->busy);
    if (s->damaged)
        return s->last_error;
    s->busy = true;
    pthread_mutex_unlock(&s->lock);
    uint64_t start = store_now_ns();
    int err = write_txn(s, t);
    uint64_t ns = store_now_ns() - start;
    pthread_mutex_lock(&s->lock);
    s->busy = false;
    if (err == 0)
        commit_succeeded(s, ns);
    else
        err = commit_failed(s, err);
    pthread_cond_broadcast(&s->changed);
    if (err == 0) {
        pthread_mutex_unlock(&s->lock);
        txn_free(t); /* thousands of frees: not under the lock */
        pthread_mutex_lock(&s->lock);
    }
    return err;
}

static bool is_committed(const struct store *s, uint64_t tid)
{
    return tid <= s->durable ||
           (tid == s->running->tid && txn_empty(s->running) && s->committing == NULL);
}

/* In LMDB, or in the log. */
static bool is_durable(const struct store *s, uint64_t tid)
{
    return is_committed(s, tid) ||
           ((s->committing == NULL || is_logged(s->committing)) &&
            (tid < s->running->tid || (is_logged(s->running) && !s->logging)));
}

/* Returns 0 or ETIMEDOUT. */
static int wait_until(struct store *s, uint64_t ns)
{
    struct timespec until = { .tv_sec = (time_t)(ns / 1000000000u),
                              .tv_nsec = (long)(ns % 1000000000u) };
    return pthread_cond_timedwait(&s->changed, &s->lock, &until);
}

/* Give those who synced beside us the last time a moment to come again: one commit for all of them costs
 * little more than for one. The last to come does not wait, and commits. (jbd2_journal_stop waits, too: about as
 * long as a commit takes, when another one synced last.)
 * Context: lock, dropped meanwhile.   Returns true: something may have changed. */
static bool gather(struct store *s)
{
    uint64_t now = store_now_ns(), most = s->last_sync_ns / GATHER_SHARE;
    if (s->waiting >= s->expected)
        return false;
    if (s->gather_until_ns == 0)
        s->gather_until_ns = now + (most < GATHER_MOST_NS ? most : GATHER_MOST_NS);
    if (now >= s->gather_until_ns)
        return false;
    (void)wait_until(s, s->gather_until_ns);
    return true;
}

/* Did the transaction fail that has to be durable before tid, or with it? */
static bool commit_has_failed(const struct store *s, uint64_t tid)
{
    return s->committing != NULL && !s->busy && s->committing->tid <= tid && s->failures > 0;
}

/* May running's changes go to the log? (L1) Once the store is read-only something is wrong with it. */
static bool can_log(const struct store *s)
{
    return s->log != NULL && !s->running->log_failed && !atomic_load(&s->read_only) &&
           (s->committing == NULL || is_logged(s->committing)) && log_has_room(s->log, s->running);
}

/* Half of the ring is to be free again before the other half is full. A transaction that is all in the log keeps
 * nobody from logging more while it is committed. Context: lock. */
static void commit_when_half_full(struct store *s)
{
    if (!log_half_full(s->log) || s->committing != NULL || !is_logged(s->running) || !freeze(s))
        return;
    s->wake = true;
}

/* Write what the log does not have of running. A write that failed is not told: what cannot be logged
 * is committed. Context: lock, dropped meanwhile; nobody else does.   Returns 0, or what a rule for commits says. */
static int log_running(struct store *s)
{
    s->logging = true;
    sync_begins(s);
    log_take(s->log, s->running);
    size_t bytes = s->log->len;
    pthread_mutex_unlock(&s->lock);
    uint64_t start = store_now_ns();
    int told = s->faults != NULL ? dev_fault_commit(s->faults) : 0;
    int err = told == 0 ? log_write(s->log) : told;
    uint64_t ns = store_now_ns() - start;
    pthread_mutex_lock(&s->lock);
    s->logging = false;
    sync_ended(s, ns);
    if (err == 0) {
        s->stats.log_records++;
        s->stats.log_bytes += bytes;
        commit_when_half_full(s);
    } else {
        log_fail(s->log, s->running, told == 0);
        told = told != 0 ? commit_failed(s, told) : 0;
    }
    pthread_cond_broadcast(&s->changed);
    return told;
}

static int commit_next(struct store *s)
{
    if (s->committing == NULL && !freeze(s))
        return -ENOMEM;
    return commit_frozen(s);
}

/* Until tid is durable, or (not by_log) committed. */
static int sync_locked(struct store *s, uint64_t tid, bool by_log)
{
    while (by_log ? !is_durable(s, tid) : !is_committed(s, tid)) {
        bool log = by_log && can_log(s), waited = s->logging || (s->busy && !log);
        if (waited)
            pthread_cond_wait(&s->changed, &s->lock);
        else if (log || s->committing == NULL)
            waited = gather(s);
        if (waited) {
            if (!log && commit_has_failed(s, tid))
                return s->last_error; /* while we waited */
            continue;
        }
        int err = log ? log_running(s) : commit_next(s);
        if (err != 0)
            return err;
    }
    return 0;
}

int commit_loaded(struct store *s)
{
    pthread_mutex_lock(&s->lock);
    int err = commit_next(s);
    pthread_mutex_unlock(&s->lock);
    return err;
}

static int store_sync_to(struct store *s, uint64_t tid, bool by_log)
{
    pthread_mutex_lock(&s->lock);
    if (tid > s->running->tid)
        tid = s->running->tid;
    if (tid == s->running->tid && !(by_log ? is_durable(s, tid) : is_committed(s, tid)))
        s->waiting++;
    int err = sync_locked(s, tid, by_log);
    pthread_mutex_unlock(&s->lock);
    return err;
}

int store_commit(struct store *s, uint64_t tid)
{
    return store_sync_to(s, tid, false);
}

int store_sync(struct store *s, uint64_t tid)
{
    return store_sync_to(s, tid, true);
}

bool txn_full(const struct store *s, enum txn_room room)
{
    return s->running->bytes >= s->txn_limit ||
           (room == ROOM_DATA && s->running->nr_data >= TXN_DATA_BLOCKS);
}

/* One commit more, whether there is anything to commit or not. Context: lock, dropped meanwhile. */
static int commit_once_more(struct store *s)
{
    while (s->busy || s->logging)
        pthread_cond_wait(&s->changed, &s->lock);
    return commit_next(s);
}

int store_make_room(struct store *s)
{
    for (unsigned i = 0; i < ROOM_TRIMS && atomic_load(&s->nr_trims) > 0 && trim_step(s, 0) > 0;
         i++)
        ;
    int err = store_commit(s, store_tid(s));
    pthread_mutex_lock(&s->lock);
    for (unsigned i = 0; i < 2 && err == 0 && space_is_held(s) && !atomic_load(&s->read_only); i++)
        err = commit_once_more(s);
    pthread_mutex_unlock(&s->lock);
    return err;
}

/* Until running has room: freeze it if none is committing; wait for, or do, the commit that is in
 * the way otherwise. This is the one place where an operation waits for the disk. */
int txn_wait_room(struct store *s, enum txn_room room)
{
    while (txn_full(s, room)) {
        if (atomic_load(&s->read_only))
            break;
        if (s->busy || (s->committing == NULL && s->logging)) {
            pthread_cond_wait(&s->changed, &s->lock);
        } else if (s->committing == NULL) {
            if (!freeze(s))
                return -ENOMEM;
            s->wake = true;
            pthread_cond_broadcast(&s->changed);
        } else {
            int err = commit_frozen(s);
            if (err != 0)
                return err;
        }
    }
    return store_refuses(s);
}

uint64_t store_tid(struct store *s)
{
    pthread_mutex_lock(&s->lock);
    uint64_t tid = s->running->tid;
    pthread_mutex_unlock(&s->lock);
    return tid;
}

void store_shutdown(struct store *s)
{
    atomic_store(&s->read_only, true);
}

int store_refuses(const struct store *s)
{
    if (lmdb_dead(s->lmdb))
        return -EIO;
    return atomic_load(&s->read_only) ? -EROFS : 0;
}

uint32_t store_error_seq(struct store *s)
{
    return atomic_load(&s->error_seq);
}

/* ---- background ------------------------------------------------------------------------------ */

/* Commit what is due.   Returns milliseconds until something will be. */
static unsigned commit_due(struct store *s, unsigned age_ms)
{
    uint64_t now = store_now_ns(), age = (uint64_t)age_ms * 1000000u;
    unsigned idle_ms = age_ms > 0 ? age_ms : 1;
    if (s->busy || atomic_load(&s->read_only))
        return idle_ms;
    if (s->committing != NULL) {
        if (s->retry_ns > now)
            return (unsigned)((s->retry_ns - now) / 1000000u) + 1;
        commit_frozen(s);
        return 0;
    }
    if (txn_empty(s->running)) {
        space_give_back(s);
        return idle_ms;
    }
    uint64_t due = s->running->born_ns + age;
    if (due > now)
        return (unsigned)((due - now) / 1000000u) + 1;
    if (s->logging)
        return 1;
    if (freeze(s))
        commit_frozen(s);
    return 0;
}

unsigned store_step(struct store *s, unsigned age_ms)
{
    pthread_mutex_lock(&s->lock);
    unsigned ms = commit_due(s, age_ms);
    pthread_mutex_unlock(&s->lock);
    if (atomic_load(&s->nr_trims) > 0 && trim_step(s, 0) > 0)
        ms = 0;
    return ms;
}

void store_wait(struct store *s, unsigned timeout_ms)
{
    uint64_t until = store_now_ns() + (uint64_t)timeout_ms * 1000000u;
    pthread_mutex_lock(&s->lock);
    while (!s->wake && wait_until(s, until) == 0)
        ;
    s->wake = false;
    pthread_mutex_unlock(&s->lock);
}

void store_wake(struct store *s)
{
    pthread_mutex_lock(&s->lock);
    s->wake = true;
    pthread_cond_broadcast(&s->changed);
    pthread_mutex_unlock(&s->lock);
}
