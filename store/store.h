/* store.h: the disk, as fs and cache may use it: records, transactions, block devices, space.
 *
 * A volume is one LMDB file. What the file system knows is a set of records (store/record.h), what
 * files contain are blocks. Neither is written to LMDB by the operation that changes it:
 *
 *       update_apply, BIO_WRITE                       commit
 *              |                                        |
 *              v            full, fsync, timer          v
 *          [running] ------------------------------> [committing] ------> LMDB, synced
 *          a map in memory                           frozen, same map      (durable)
 *
 * The *running* transaction takes every change at memory speed. Freezing makes it the *committing*
 * one, at most one at a time, and puts an empty running one in its place; the commit writes the
 * frozen map in one LMDB transaction. Look-ups ask running, then committing, then LMDB. Every
 * transaction has a number (tid); they become durable in that order. This is jbd2's arrangement
 * (Linux fs/jbd2), with LMDB for the journal and the final place in one.
 *
 * A commit is many pages, scattered. So an fsync has the running transaction's changes appended to a log
 * instead (store/log.h), from where the next mount takes them; the commit follows later.
 *
 * A crash therefore leaves exactly the state after some commit, or some record of the log. Because both are taken between
 * updates, and one update applies as a whole, that state is a consistent prefix of the operations.
 *
 * A commit that fails keeps its transaction: nothing acknowledged is dropped. It is tried again with
 * back-off; whoever waits for it gets the error, and so does every later fsync that has not seen it
 * (store_error_seq). After COMMIT_TRIES the store turns read-only, unless memory or room is wanting, which may come back.
 */
#ifndef FOLIO_STORE_STORE_H
#define FOLIO_STORE_STORE_H

#include <sys/types.h>

#include "store/device.h"
#include "store/record.h"

struct store;

/* One line for a person: what was refused, why, and the way out. */
struct store_error {
    char text[512];
};

struct store_format {
    const char *label; /* at most 64 bytes; NULL: none */
    uint64_t capacity; /* bytes; 0: DEFAULT_CAPACITY */
    bool force;        /* overwrite what is there */
    uint32_t root_uid, root_gid;
};
#define DEFAULT_CAPACITY ((uint64_t)1 << 40)
#define MIN_CAPACITY     ((uint64_t)4 << 20)

/* Make a volume with a superblock and an empty root directory, durable on return.
 * Errors: -EEXIST (not forced), -EBUSY (in use), -EINVAL, -ENOSPC, -EIO; error says it in words. */
int store_format(const char *path, const struct store_format *f, struct store_error *error);

struct store_options {
    bool read_only;
    /* Memory for running and committing together; 0: 64 MiB. Of blocks, each takes 8 MiB at most. */
    uint64_t txn_bytes;
    bool inject; /* have store_faults() */
    bool locked; /* the caller has the volume's lock */
    /* For fsck: commit the log, of a damaged one what can be read; nothing else is looked at, and the store is to be
     * closed again. (Read-only, too, what cannot be read of it is left out: store_stats.log_cut.) */
    bool cut_log;
};

/* Open a volume: takes the exclusive lock, checks length, superblock and format.
 * Call after the process has daemonised (the lock and LMDB's environment belong to the process).
 * What the log holds is committed first; read-only, it stays in memory.
 * Errors: -EBUSY (error names the holder), -ENOENT, -EIO (damaged), -EPROTONOSUPPORT (version),
 * -EROFS, -ENOMEM, -ENOSPC. */
int store_open(const char *path, const struct store_options *o, struct store **out,
               struct store_error *error);

/* Commit what is left and close.   Returns 0, or the error of the last commit (the changes since
 * the last good one are then lost, but for what was synced and waits in the log; the caller must say so aloud). */
int store_close(struct store *s);

const struct super_record *store_super(const struct store *s);

/* The device whose objects are data ids; belongs to the store. */
struct device *store_device(struct store *s);
/* A dev_fault (store/dev_fault.h) in front of it, without a rule at first, which commits ask too. NULL: it
 * was not asked for. It belongs to the store. */
struct device *store_faults(struct store *s);

/* ---- records -------------------------------------------------------------------------------- */

/* Copy the record of key into buf (size bytes; NULL: only the length is wanted).   Returns its length;
 * -ENOENT; -ERANGE: larger than size; -EIO: damaged, or the store is gone; -ENOMEM.   Locks: none needed. */
ssize_t store_get(struct store *s, const struct key *key, void *buf, size_t size);

/* The first record whose key is greater than *key and shares its first prefix bytes: *key becomes
 * its key, the value goes to buf.
 * Returns as store_get; -ENOENT: none left; -ERANGE: *key is its key all the same,
 * so the next call goes on behind it, and store_get() with more room reads it. */
ssize_t store_next(struct store *s, struct key *key, size_t prefix, void *buf, size_t size);

/* An update: the records of one operation, collected first, applied as a whole or not at all.
 *     update_init(&u, s); update_put(&u, ...); update_del(&u, ...);
 *     err = update_apply(&u, 0, &tid);            frees u in either case
 * A failed put or del is remembered and makes apply fail; update_abort() drops everything. */
struct update {
    struct store *store;
    struct txn_record *records; /* last first */
    struct trim *trims;
    uint32_t nr_records;
    uint64_t bytes;
    int error;
};

enum update_flags {
    UPDATE_FREES = 1, /* it deletes or keeps the books: may use the room kept for deleting */
};

void update_init(struct update *u, struct store *s);
void update_put(struct update *u, const struct key *key, const void *value, size_t len);
void update_del(struct update *u, const struct key *key);
/* Like update_put, with a value that is not known yet, only its len bytes: it is to be written to where the
 * result points before apply, which then needs no memory any more.   NULL: the same as a failed put. */
void *update_reserve(struct update *u, const struct key *key, size_t len);

/* Delete the blocks [from, to) of data_id with this update: they read as holes from apply on, and
 * are really deleted in bounded steps later. The caller has no page of that range under writeback
 * and starts none before apply returns. */
void update_trim(struct update *u, uint64_t data_id, uint64_t from, uint64_t to);

/* Returns 0 and the transaction's number in *tid (may be NULL); -ENOSPC, -ENOMEM, -EROFS, -EIO:
 * nothing changed.   Blocks: while running is full and another transaction commits; where there is no room, for
 * store_make_room(). */
int update_apply(struct update *u, unsigned flags, uint64_t *tid);
void update_abort(struct update *u);

/* A number never given before on this volume (inode numbers, data ids).
 * Returns 0; errors as update_apply. */
int store_new_number(struct store *s, uint64_t *out);

/* ---- blocks and space ------------------------------------------------------------------------ */

/* Promise room for pages about to become dirty: nr_pages of them, nr_new without a block yet.
 * Called before the page is dirtied, so that ENOSPC comes at the write, never after.
 * Returns 0; -ENOSPC, -EROFS, -EIO: nothing promised.   Blocks: no. */
int store_reserve(struct store *s, uint64_t nr_pages, uint64_t nr_new);

/* The same, whatever is free: truncation must not fail. */
void store_reserve_always(struct store *s, uint64_t nr_pages, uint64_t nr_new);

/* Take back a promise that was not used (a write bio's vec uses the promise of its page). */
void store_unreserve(struct store *s, uint64_t nr_pages, uint64_t nr_new);

/* Does the block exist?   1, 0, -EIO, -ENOMEM. */
int store_block_exists(struct store *s, uint64_t data_id, uint32_t index);

/* The first index >= from with (data = true) or without (false) a block, below end; end if none.
 * Returns 0, -EIO, -ENOMEM. */
int store_seek_block(struct store *s, uint64_t data_id, uint64_t from, uint64_t end, bool data,
                     uint64_t *out);

/* Blocks the object has, in running state.   Returns 0, -EIO, -ENOMEM. */
int store_count_blocks(struct store *s, uint64_t data_id, uint64_t *out);

struct store_space {
    uint64_t capacity;  /* bytes: the cap */
    uint64_t used;      /* bytes, promises included */
    uint64_t available; /* bytes: the least of the cap's and the disk's, after store_make_room() */
};
void store_space(struct store *s, struct store_space *out);

/* ---- transactions ---------------------------------------------------------------------------- */

/* Wait until transaction tid is in LMDB, committing it here when nobody else does.
 * Returns 0; -EIO, -ENOSPC, -ENOMEM: the commit failed (and will be tried again).   Blocks: on the disk. */
int store_commit(struct store *s, uint64_t tid);
/* Wait until it is durable: in the log if that has room for it (store/log.h), else committed. Likewise. */
int store_sync(struct store *s, uint64_t tid);
/* For who was refused room: delete a part of what is to be deleted, commit, and where pages that have just been freed
 * wait for more commits (LMDB takes again what was free two commits ago), have some that change nothing. Likewise. */
int store_make_room(struct store *s);

/* The number of the running transaction: what store_commit() needs to make all so far durable. */
uint64_t store_tid(struct store *s);

/* Refuse every change from now on (-EROFS); what is in memory stays, and is still tried. */
void store_shutdown(struct store *s);
/* Would a change be refused, whatever it is?   0, or what it would be refused with: -EROFS, -EIO. It may be so any time
 * later; who changes something of his own first asks, rather than take it back. */
int store_refuses(const struct store *s);

/* Number of failed commits so far: an open file that remembers an older one reports an error once
 * (Linux's errseq). */
uint32_t store_error_seq(struct store *s);

/* One step of background work: commit a transaction that is full, or older than age_ms, then one
 * bounded piece of pending trims.   Returns milliseconds until it wants to be called again. A worker
 * calls it in a loop; store_wait() sleeps in between until there is work or store_wake() is called
 * (which the next store_wait() notices too, when none is sleeping). */
unsigned store_step(struct store *s, unsigned age_ms);
void store_wait(struct store *s, unsigned timeout_ms);
void store_wake(struct store *s);

struct store_stats {
    uint64_t commits, commit_errors, commit_ns, records_written, blocks_written, blocks_deleted;
    uint64_t log_records, log_bytes; /* written */
    bool
        log_cut; /* the log was damaged when it was opened: changes that were durable are missing */
    uint64_t block_reads;
    uint64_t running_bytes, committing_bytes, txn_limit_bytes; /* memory */
    uint64_t pending_trims;
    uint64_t file_bytes;
    int last_error; /* of a commit: -errno, 0 if none has failed */
    bool read_only;
};
void store_stats(struct store *s, struct store_stats *out);

#endif
