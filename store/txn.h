/* txn.h: the store's inside: transactions in memory, for the files of store/ only.
 *
 *     txn.c      the maps of one transaction         update.c   applying an operation's records
 *     commit.c   freezing and committing             blocks.c   the device: block reads and writes
 *     trim.c     deleting blocks in steps            space.c    promises, ENOSPC
 *     log.c      the redo log: durable before committed (log.h)
 *
 *   states of a transaction
 *
 *       running --(freeze: full, age, or somebody waits for it)--> committing --> durable, freed
 *                                                                   |      ^
 *                                                                   +------+  commit failed: kept,
 *                                                                             tried again later
 *
 *   T1  There is always a running transaction, and at most one committing.
 *   T2  Only the running one changes, under store->lock. The committing one is constant.
 *   T3  Look-ups ask running, then committing, under one hold of the lock, then LMDB, without it.
 *       Committing is taken down only after LMDB's commit, so what was in neither map is in every
 *       LMDB snapshot begun later.
 *   T4  One thread at a time commits (store->busy). It holds no lock meanwhile.
 *   T5  A block map entry or record is replaced, never changed in place: a reader that holds a
 *       reference on a block copies it without a lock.
 *
 *   locks: number_lock, trim_lock, store->lock; LMDB is never called under store->lock.
 */
#ifndef FOLIO_STORE_TXN_H
#define FOLIO_STORE_TXN_H

#include <bsd/sys/queue.h>
#include <bsd/sys/tree.h>
#include <pthread.h>
#include <stdatomic.h>

#include "store/lmdb.h"
#include "store/log.h"
#include "store/store.h"

struct txn_record {
    RB_ENTRY(txn_record) node;
    TAILQ_ENTRY(txn_record) unlogged;
    struct txn_record *next; /* in an update, before it is applied */
    uint32_t value_len;
    uint16_t key_len;
    bool deleted;
    bool logged;
    uint8_t bytes[]; /* key, value */
};

struct txn_block {
    RB_ENTRY(txn_block) node;
    TAILQ_ENTRY(txn_block) unlogged;
    struct txn_block *next; /* before it is inserted */
    uint64_t object;
    uint32_t index;
    uint32_t crc;
    _Atomic uint32_t refs;
    bool deleted;
    bool logged;
    bool in_log;   /* it, or one that it replaced in its transaction, is logged */
    uint8_t *data; /* BLOCK_SIZE bytes; NULL when deleted */
};

RB_HEAD(record_map, txn_record);
RB_HEAD(block_map, txn_block);

struct txn {
    uint64_t tid;
    struct record_map records;
    struct block_map blocks;
    uint64_t nr_records, nr_blocks; /* entries, deletions included */
    uint64_t nr_data;               /* of the blocks, those with data */
    uint64_t nr_new;                /* of these, blocks that did not exist before */
    uint64_t record_bytes;
    uint64_t bytes;   /* memory */
    uint64_t born_ns; /* first entry; 0: empty */
    /* What the log does not have yet, and its bytes there. */
    TAILQ_HEAD(unlogged_records, txn_record) unlogged_records;
    TAILQ_HEAD(unlogged_blocks, txn_block) unlogged_blocks;
    uint64_t unlogged_bytes;
    bool log_failed;  /* some of it never will */
    uint64_t log_end; /* position behind its last record, once it is frozen */
};

struct trim { /* blocks [from, to) of object are to be deleted */
    struct trim *next;
    uint64_t object, from, to; /* as its record says */
    bool unreadable;           /* its last step met damage (m) */
};

struct store {                 /* (c) constant  (s) lock  (m) trim_lock  (a) atomic */
    struct lmdb *lmdb;         /* (c) */
    int lock_fd;               /* -1: the caller has the lock (c) */
    bool view;                 /* opened read-only: running has what waits in the log (c) */
    struct super_record super; /* (c) */
    struct device dev;         /* (c) */
    struct device *faults;     /* in front of it; NULL: not asked for (c) */
    pthread_mutex_t lock;
    pthread_cond_t changed;           /* a commit ended, or there is work */
    struct txn *running, *committing; /* (s) */
    struct log *log;                  /* NULL: the volume has none (c), see log.h */
    bool logging;                     /* a record of running is being written to it (s) */
    bool busy;                        /* somebody commits (s) */
    bool wake;                        /* (s) */
    uint64_t durable;                 /* tid (s) */
    unsigned waiting;                 /* calls of store_commit for running (s) */
    unsigned frozen_waiting;          /* those there were for committing (s) */
    unsigned expected;                /* so many may come for running (s) */
    uint64_t gather_until_ns;         /* they are waited for so long; 0: not decided yet (s) */
    uint64_t last_sync_ns;            /* how long the last commit or record took (s) */
    unsigned failures;                /* in a row (s) */
    int last_error;                   /* -errno of the last failure (s) */
    bool damaged;                     /* a commit met damage: no more are tried (s) */
    uint64_t retry_ns;                /* not before (s) */
    _Atomic uint32_t error_seq;
    _Atomic bool read_only;
    uint64_t txn_limit;        /* bytes one transaction may take (c) */
    pthread_mutex_t trim_lock; /* one trim step at a time */
    struct trim *trims;        /* (s) to change or read */
    _Atomic uint32_t nr_trims;
    pthread_mutex_t number_lock;      /* held over taking the next chunk */
    uint64_t next_number, end_number; /* (number_lock) */
    /* space.c (s) */
    uint64_t promised;        /* pages dirty in the cache */
    uint64_t promised_new;    /* of those, without a block */
    struct lmdb_usage usage;  /* of the last commit */
    uint64_t allocated;       /* pages the file has on disk; UINT64_MAX: the disk cannot promise */
    uint64_t recent[2];       /* pages the last two commits freed: not reusable yet */
    struct store_stats stats; /* (s) counters only */
};

/* ---- txn.c ----------------------------------------------------------------------------------- */

struct txn *txn_new(uint64_t tid);
void txn_free(struct txn *t);
bool txn_empty(const struct txn *t);
struct txn_record *record_new(const struct key *key, const void *value, size_t len, bool deleted);
struct txn_block *block_new(uint64_t object, uint32_t index,
                            const void *data); /* NULL data: deleted */
void block_put(struct txn_block *b);
/* Insert, replacing. Ownership passes. Context: store->lock. */
void txn_insert_record(struct txn *t, struct txn_record *r);
void txn_insert_block(struct txn *t, struct txn_block *b);
void txn_remove_block(struct txn *t, struct txn_block *b);
/* The log has it now. */
void txn_logged_record(struct txn *t, struct txn_record *r);
void txn_logged_block(struct txn *t, struct txn_block *b);
struct txn_record *txn_next_record(struct txn *t, const struct key *key); /* the first greater */
/* The first block of object at or after index; iterate with RB_NEXT through txn_next_block. */
struct txn_block *txn_first_block(struct txn *t, uint64_t object, uint64_t index);
struct txn_block *txn_next_block(struct txn_block *b, uint64_t object);
struct txn_record *txn_min_record(struct txn *t);
struct txn_record *txn_after_record(struct txn_record *r);
struct txn_block *txn_min_block(struct txn *t);
struct txn_block *txn_after_block(struct txn_block *b);

uint64_t store_now_ns(void);
/* A record as of now in running or committing: the entry, or NULL. Context: lock. */
struct txn_record *store_pending_record(struct store *s, const struct key *key);
/* A block likewise. Context: lock. */
struct txn_block *store_pending_block(struct store *s, uint64_t object, uint32_t index);
/* The value of KEY_BLOCKS: pending under the lock, else LMDB. Takes and leaves the lock held,
 * dropping it in between.   Returns 0, -EIO, -ENOMEM. */
int store_blocks_locked(struct store *s, uint64_t object, uint64_t *out);

/* ---- log.c ----------------------------------------------------------------------------------- */

/* What an entry takes in the log, bytes. */
size_t log_record_bytes(const struct txn_record *r);
size_t log_block_bytes(const struct txn_block *b);

/* ---- blocks.c -------------------------------------------------------------------------------- */

extern const struct device_ops volume_device_ops;

/* ---- commit.c -------------------------------------------------------------------------------- */

/* The most blocks with data in one transaction (a bio may go over it). LMDB takes new pages for all
 * of them before the old ones come back, two commits later: its file grows by as much, whatever the
 * size of the volume. 8 MiB. */
#define TXN_DATA_BLOCKS 2048u

/* What is to be put into running. Records do not wait because there is much data in it. */
enum txn_room { ROOM_RECORDS, ROOM_DATA };
bool txn_full(const struct store *s, enum txn_room room); /* context: lock */
/* Sleep until running has room; freezes and commits as needed. Context: lock, dropped meanwhile.
 * Returns 0, -EROFS, or why the commit failed. */
int txn_wait_room(struct store *s, enum txn_room room);
/* Commit running, as it was loaded from the log, empty or not: before anybody else has the store. */
int commit_loaded(struct store *s);
/* The age of running starts with its first entry. Context: lock. */
void txn_started(struct store *s);

/* ---- space.c --------------------------------------------------------------------------------- */

/* Do pages that were freed wait for a commit, on a disk that is full before the volume is? Context: lock. */
bool space_is_held(const struct store *s);
/* What was promised is written, or not going to be. Context: lock. */
void space_unpromise(struct store *s, uint64_t nr_pages, uint64_t nr_new);
/* Room for records of one update. Context: lock.   0 or -ENOSPC: commit, and ask again; what frees
 * may then go on all the same. */
int space_check_update(struct store *s, uint32_t records, uint64_t bytes, bool frees);
/* A commit ended well. Context: lock. */
void space_after_commit(struct store *s);
/* Give back what was allocated ahead and nothing under way can need. Context: lock. */
void space_give_back(struct store *s);
void space_open(struct store *s);
void space_close(struct store *s); /* give back what was allocated ahead */

/* ---- trim.c ---------------------------------------------------------------------------------- */

/* The first from t on (NULL: none) that deletes a block of [first, last], or NULL. Look for the whole
 * range first: nearly always there is none, however many trims are pending. Context: lock. */
const struct trim *trim_touching(const struct trim *t, uint64_t object, uint64_t first,
                                 uint64_t last);
/* Do one bounded step, of object or (0) of any whose last one did not meet damage.
 * Returns 1: more to do, 0: none, -errno. */
int trim_step(struct store *s, uint64_t object);
void trim_register(struct store *s, struct trim *t); /* context: lock */
int trim_load(struct store *s);
/* Existing blocks of [from, to), ascending: running over committing over LMDB, trims applied or
 * (raw) not.   Returns how many; *next: where to go on, to when done; -EIO, -ENOMEM. */
#define LIST_BATCH 512u
ssize_t blocks_list(struct store *s, uint64_t object, uint64_t from, uint64_t to,
                    uint32_t indices[LIST_BATCH], uint64_t *next);

#endif
