/* log.h: the redo log, by which an fsync is durable before LMDB has it.
 *
 * A commit of LMDB's writes a handful of pages all over the file, and its meta page behind them. The log is a ring
 * inside the volume to which the same changes are appended in one piece, written through. The commit follows in the
 * background, and says in its own transaction from where the log is still needed (the tail). jbd2 does the same.
 *
 *      tail                                    head                     positions count bytes since
 *       |                                       |                       mkfs; position p lies at
 *   ....[ record ][ record ]      [ record ]....v                       p % bytes of the ring
 *                           ^ skipped: a record does not go round the end
 *
 * A record holds every change of the running transaction that no record before it holds. So what
 * LMDB has and the records behind the tail, in their order, are a prefix of what was done, which
 * is what makes them a state of the volume:
 *
 *   L1  A transaction's changes go to the log only while those of the one before it are in LMDB, or in
 *       the log as a whole.
 *   L2  One record is written at a time, and running is not frozen meanwhile.
 *   L3  Nothing between tail and head is written over. The tail moves when LMDB's commit is durable.
 *   L4  A record that could not be written is followed by none before its transaction is committed, and the
 *       tail behind it.
 *
 * Each record begins on a block of its own, so that no write touches one that is durable; and names the
 * position of the one before it. After a crash they are read from the tail on. The first that does not verify is
 * where the power went, unless there is a later one: then the log is damaged.
 *
 * Locks: a log belongs to its store; all of it under store->lock, but log_write().
 */
#ifndef FOLIO_STORE_LOG_H
#define FOLIO_STORE_LOG_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct txn;

#define LOG_BLOCK_BYTES   4096u
#define LOG_NONE          UINT64_MAX /* no position */
#define LOG_POSITION_MOST ((uint64_t)1 << 62)

/* Where the ring is: bytes of the file, whole blocks. */
struct log_place {
    int fd;
    uint64_t offset, bytes;
};

struct log {
    struct log_place place;
    uint64_t tail, head;
    uint64_t last;     /* position of the record before head; LOG_NONE: not known */
    bool off;          /* a write has failed: not used again before the next mount */
    uint8_t *record;   /* the one that is written */
    uint64_t position; /* its */
    size_t len;
};

/* The ring of a volume of that capacity, bytes; 0: too small to have one. */
uint64_t log_bytes_for(uint64_t capacity);

/* An empty log.   NULL: no memory. */
struct log *log_new(const struct log_place *place, uint64_t tail);
void log_free(struct log *log);

/* Can what t has to have logged be one record, now? */
bool log_has_room(const struct log *log, const struct txn *t);
/* More than half of the ring is in use: time to commit. */
bool log_half_full(const struct log *log);
/* Make it one: t has nothing left to be logged. It is durable once log_write() has returned 0; an error
 * is to be noted by log_fail(). */
void log_take(struct log *log, struct txn *t);
int log_write(struct log *log);
/* for_good: the log is not used any more. */
void log_fail(struct log *log, struct txn *t, bool for_good);

/* What reading a log found. */
struct log_found {
    uint64_t head, last; /* as of struct log; of a damaged one, behind all that is in the ring */
    uint64_t records, changes;
    bool damaged; /* there are records that cannot be reached */
};

/* Read the records behind the tail (LOG_NONE: it is not known, and nothing is read). Their changes go into t, which others
 * do not know yet, as changes that are logged (NULL: they are only counted). What the disk does not give counts as
 * no record.
 * Returns 0 or -ENOMEM.   Blocks: on the disk. */
int log_read(const struct log_place *place, uint64_t tail, struct txn *t, struct log_found *found);

#endif
