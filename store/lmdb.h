/* lmdb.h: the only caller of LMDB, for the rest of store/.
 *
 * Records carry an envelope {u8 ENVELOPE_VERSION, u32 CRC32C over key and payload} which is put on
 * and checked here. A block's value is its last 4,080 bytes: with LMDB's 16-byte header that is
 * exactly one page, in which byte n of the block lies at n. The first 16 are in its key, behind the
 * 13 bytes that find it:
 *
 *     'B'  data id (8, BE)  index (4, BE)  | version (1)  head (16)  crc (4, LE)  key check (4, LE)
 *
 * crc is the CRC32C of the 13 bytes and the 4,096 bytes; key check is the CRC32C of the key before
 * it. On a miss both neighbours' checks and their leaves are verified and must enclose what was
 * looked for, so that a damaged key, leaf or separator is -EIO and not a hole or ENOENT. (A branch
 * whose page number leads to another sound page cannot be told here; fsck.foliofs finds it.)
 *
 * LMDB trusts its own pages. What a write may change is checked before (store/lmdb_sound.c): -EUCLEAN
 * is a page that is damaged, and a transaction that must be given up. Every call runs under a guard:
 * a SIGSEGV or SIGBUS on its map, or a failed LMDB assertion, ends the call with -EIO and makes the
 * environment dead until it is opened again (lmdb_dead).
 */
#ifndef FOLIO_STORE_LMDB_H
#define FOLIO_STORE_LMDB_H

#include "store/log.h"
#include "store/store.h"

#define ENVELOPE_VERSION   1u
#define ENVELOPE_BYTES     5u /* version (1)  crc (4) */
#define BLOCK_KEY_VERSION  1u
#define BLOCK_PREFIX_BYTES 13u /* 'B'  data id (8)  index (4) */
#define BLOCK_HEAD_BYTES   16u
#define BLOCK_VALUE_BYTES  (BLOCK_SIZE - BLOCK_HEAD_BYTES)
#define BLOCK_HEAD_AT      14u /* offsets in the key */
#define BLOCK_CRC_AT       30u
#define BLOCK_CHECK_AT     34u

struct lmdb;

/* Create the file (which must not exist, or be empty) with a map for capacity; open it.
 * lmdb_open checks that the file is as long as its last page needs, and to write, the free list.
 * The caller holds the volume's lock (store/volume_lock.c). */
int lmdb_create(const char *path, uint64_t capacity, struct lmdb **out, struct store_error *error);
int lmdb_open(const char *path, bool read_only, struct lmdb **out, struct store_error *error);
void lmdb_close(struct lmdb *l);
bool lmdb_dead(const struct lmdb *l);

/* Reading: each call uses its own snapshot of the last commit; any thread, no lock needed. */
ssize_t lmdb_get(struct lmdb *l, const struct key *key, void *buf, size_t size);
/* As store_next: first record with key greater than *key within the prefix. Not for blocks. */
ssize_t lmdb_next(struct lmdb *l, struct key *key, size_t prefix, void *buf, size_t size);

/* Read nr blocks of one object, one snapshot for all: vecs[i] asks for indices in ascending order;
 * data is filled and CRC checked; BV_HOLE and zeros where there is none; vec->error = -EIO where
 * damaged. Vecs with skip[i] set are left alone (skip may be NULL). */
void lmdb_read_blocks(struct lmdb *l, uint64_t object, struct bio_vec *vecs, const bool *skip,
                      uint32_t nr);

/* Indices of existing blocks in [from, to), ascending, at most max.   Returns how many, -EIO, -ENOMEM. */
ssize_t lmdb_list_blocks(struct lmdb *l, uint64_t object, uint64_t from, uint64_t to,
                         uint32_t *indices, size_t max);

/* Writing: one write transaction, begun and ended on one thread. After any error: lmdb_abort.
 * Errors: -EUCLEAN (damaged), -EIO, -ENOSPC, -ENOMEM. */
int lmdb_begin(struct lmdb *l);
int lmdb_put(struct lmdb *l, const struct key *key, const void *value, size_t len);
int lmdb_del(struct lmdb *l, const struct key *key); /* absent: 0 */
/* data: BLOCK_SIZE bytes; crc: block_crc() of it. Best called in ascending (object, index) order. */
int lmdb_put_block(struct lmdb *l, uint64_t object, uint32_t index, const void *data, uint32_t crc);
int lmdb_del_block(struct lmdb *l, uint64_t object, uint32_t index); /* absent: 0 */
/* Commit and sync.   Returns 0, -ENOSPC, -EIO, -ENOMEM. Ends the transaction in every case. */
int lmdb_commit(struct lmdb *l);
void lmdb_abort(struct lmdb *l);

/* CRC32C of the 13 key bytes and the data. */
uint32_t block_crc(uint64_t object, uint32_t index, const void *data);

struct lmdb_usage {
    uint64_t last_page; /* highest page number in use */
    uint64_t used;      /* pages: tree, blocks, free list, metas */
    uint64_t nodes;     /* of these, the tree's leaves and branches */
    uint64_t freed;     /* pages that the last commit freed: the next one cannot take them */
    uint64_t map_pages; /* the map's size */
};
/* Usage as of the last commit (kept in memory; cheap). */
void lmdb_usage(struct lmdb *l, struct lmdb_usage *out);

int lmdb_fd(struct lmdb *l); /* the data file, for fallocate */

/* Put the log's ring into the write transaction: a value that nothing ever changes, so that LMDB leaves its pages where
 * they are. bytes: whole blocks.   Errors as lmdb_put. */
int lmdb_put_log(struct lmdb *l, uint64_t bytes);
/* Where it is in the file.   Returns 0, -ENOENT, -EIO, -ENOMEM. */
int lmdb_find_log(struct lmdb *l, struct log_place *out);

#endif
