/* lmdb_impl.h: what the LMDB files share.
 *
 *     lmdb_env.c     create, open, close, usage
 *     lmdb_open.c    getting LMDB to open the file;  its place in memory;  is it whole?
 *     lmdb_guard.c   calls that survive a fault on the map, and an LMDB assertion
 *     lmdb_cursor.c  snapshots, moving in them;  what is good and what is damaged
 *     lmdb_read.c    records        lmdb_blocks.c  blocks
 *     lmdb_write.c   the write transaction
 *     lmdb_log.c     the pages of the redo log
 *     lmdb_sound.c   what it may change is sound
 *
 * A public function gathers its arguments in a struct and runs its work under lmdb_guard(). The work
 * may be left in the middle, so it owns nothing that somebody else needs: no lock, no memory. What
 * it has begun inside LMDB is given up with the environment.
 */
#ifndef FOLIO_STORE_LMDB_IMPL_H
#define FOLIO_STORE_LMDB_IMPL_H

#include "store/lmdb.h"

#include <lmdb.h>
#include <pthread.h>
#include <stdatomic.h>

#include "store/lmdb_format.h"

#define FREE_DBI 0u /* LMDB's tree of free pages */

/* A read transaction and its cursor, kept for the next reader; reset in between, so that it holds
 * back no pages. */
struct snapshot {
    MDB_txn *txn;       /* NULL: not begun yet */
    MDB_cursor *cursor; /* NULL: not opened yet */
    struct snapshot *next_free, *next_all;
};

struct lmdb_key {
    const uint8_t *bytes;
    size_t len; /* 0: none */
};

struct lmdb_tree {
    uint64_t root, overflow; /* overflow: pages in runs */
    unsigned depth;          /* levels; 0: empty */
    bool is_free;            /* the tree of free pages: its keys are numbers */
};

/* What lmdb_sound.c knows. The last commit's trees, in the map; the main tree's leaf looked at last. */
struct lmdb_sound {
    uint64_t *pages; /* a bit for each page of the map: it was good once, and has been ours since */
    struct lmdb_tree main, free;
    uint64_t last_page, txnid;
    bool leaf_known;                 /* in this transaction, and all around it is sound */
    struct lmdb_key low, high;       /* its keys are from low to before high, or without bound */
    uint64_t *free_pages, free_runs; /* while the volume is opened: seen to be free; in runs */
};

struct lmdb { /* (c) constant after opening  (l) lock  (w) the thread with the write transaction */
    MDB_env *env;       /* (c) */
    MDB_dbi dbi;        /* (c) */
    int fd;             /* (c) */
    bool read_only;     /* (c) */
    const uint8_t *map; /* (c) where LMDB mapped the file */
    size_t map_size;    /* (c) bytes */
    atomic_bool dead;   /* set once */
    pthread_mutex_t lock;
    struct snapshot *free;   /* (l) */
    struct snapshot *all;    /* (l) */
    struct lmdb_usage usage; /* (l) */
    MDB_txn *txn;            /* (w) NULL: none */
    MDB_cursor *cursor;      /* (w) */
    struct lmdb_sound sound; /* (w) */
    struct lmdb *next_dead;  /* once closed dead */
};

/* Run work(l, arg).   Returns what it returns; -EIO when l is dead or dies of it. */
int lmdb_guard(struct lmdb *l, int (*work)(struct lmdb *l, void *arg), void *arg);
/* Likewise on a snapshot of the last commit, with its cursor. */
int lmdb_guard_snapshot(struct lmdb *l, int (*work)(struct lmdb *l, MDB_cursor *cursor, void *arg),
                        void *arg);

/* Make LMDB's failed assertions on l end the call too. */
void lmdb_guard_asserts(struct lmdb *l);

/* The -errno for an LMDB return code. MDB_PANIC makes l dead. */
int lmdb_errno(struct lmdb *l, int rc);

/* Take l->usage from the last commit. Under the guard. */
int lmdb_usage_refresh(struct lmdb *l);

/* ---- lmdb_open.c --------------------------------------------------------------------------- */

/* Have LMDB open the volume that fd is, and learn where its map is.
 * Returns 0, or -errno with error filled in. */
int lmdb_env_open(struct lmdb *l, const char *path, int fd, struct store_error *error);

/* Is the file ours, and as long as its last page needs? Then take the usage from it. Before this
 * nothing but the two meta pages may be touched. */
int lmdb_first_look(struct lmdb *l, const char *path, int fd, struct store_error *error);

/* Put LMDB's reason (or an errno) for not opening path into words.   Returns the -errno. */
int lmdb_open_error(int rc, const char *path, struct store_error *error);

/* ---- lmdb_sound.c: all but opening under the guard ------------------------------------------- */

/* Does the tree page hold what its header says, and nothing else? kind: P_BRANCH or P_LEAF. */
bool lmdb_page_good(const uint8_t *page, uint64_t number, enum page_flags kind);

/* The pages of the run that begins at page number, in the map; 0: it is none, or too short for the value. */
uint64_t lmdb_run_at(const struct lmdb *l, uint64_t number, uint64_t len, uint64_t last_page);

/* Before the first write: check the tree of free pages. After lmdb_first_look().
 * Returns 0, -EIO or -ENOMEM, with error filled in. */
int lmdb_sound_open(struct lmdb *l, const char *path, struct store_error *error);

/* A write transaction begins: look at the last commit.   Returns 0 or -EUCLEAN. */
int lmdb_sound_begin(struct lmdb *l);
/* May LMDB put, or delete, this key?   Returns 0 or -EUCLEAN. */
int lmdb_sound_key(struct lmdb *l, const uint8_t *bytes, size_t len);
/* May this value be replaced or deleted? key and value as LMDB's cursor gives them, on a leaf that
 * lmdb_sound_key() has seen.   Returns 0 or -EUCLEAN. */
int lmdb_sound_value(struct lmdb *l, const uint8_t *key, const uint8_t *value, size_t len);

/* ---- lmdb_log.c ---------------------------------------------------------------------------- */

/* Is this the log's ring? It has no envelope, and no bound. */
bool lmdb_is_log(const uint8_t *key, size_t key_len, size_t value_len);

/* ---- lmdb_cursor.c: all of it under the guard ---------------------------------------------- */

/* Begin a snapshot of the last commit, and end it. */
int lmdb_snapshot_begin(struct lmdb *l, struct snapshot **out);
void lmdb_snapshot_end(struct lmdb *l, struct snapshot *s);

/* The first BLOCK_PREFIX_BYTES of a block's key. */
void lmdb_block_prefix(uint8_t *key, uint64_t object, uint32_t index);

/* What a cursor is on: pointers into the map. */
struct lmdb_item {
    const uint8_t *key, *value;
    size_t key_len, value_len;
};

/* The first item that is not before the key.   Returns 0, -ENOENT, -EIO. */
int lmdb_seek(struct lmdb *l, MDB_cursor *cursor, const uint8_t *key, size_t len,
              struct lmdb_item *it);
/* MDB_NEXT, MDB_PREV, MDB_LAST.   Returns 0, -ENOENT, -EIO. */
int lmdb_step(struct lmdb *l, MDB_cursor *cursor, MDB_cursor_op op, struct lmdb_item *it);
/* After lmdb_seek(key) returned found (0 or -ENOENT): is what lies before the key good, and before
 * it? Moves the cursor.   Returns 0 or -EIO. */
int lmdb_check_before(struct lmdb *l, MDB_cursor *cursor, int found, const uint8_t *key,
                      size_t len);

bool lmdb_inside_map(const struct lmdb *l, const uint8_t *p, size_t len);
/* May the item's bytes be looked at? */
bool lmdb_item_bounded(const struct lmdb *l, const struct lmdb_item *it);
/* Is this a key that was put here, and on a sound leaf? (Of a block, the data is not looked at.) */
bool lmdb_item_good(const struct lmdb *l, const struct lmdb_item *it);
bool lmdb_block_key_good(const uint8_t *key, size_t len);
/* payload: the value's bytes behind the envelope, or a copy of them. */
bool lmdb_envelope_good(const struct lmdb_item *it, const uint8_t *payload);

#endif
