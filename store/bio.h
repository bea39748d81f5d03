/* bio.h: one request to a device, over one or several blocks of one object.
 *
 * A bio goes down a stack of devices (store/device.h) and comes back exactly once, through end_io,
 * on whichever thread completed it. The submitter owns the memory; the device owns the bio from
 * submit_bio() until it calls bio_endio().
 *
 *     bio = bio_alloc(BIO_READ, object, n)
 *     bio_add(bio, index, data, owner)  ...
 *     bio->end_io = ...; bio->private = ...
 *     submit_bio(dev, bio)            ->  end_io(bio), which frees it with bio_free()
 *
 * Who has several to submit holds them in a plug (store/plug.h): neighbours then go as one.
 *
 * An object is what the store calls a data id: the bytes of one file. A block is BLOCK_SIZE bytes
 * of it, named by its index. The outcome is kept per block: one damaged block fails its own vec and
 * leaves its neighbours' data good.
 */
#ifndef FOLIO_STORE_BIO_H
#define FOLIO_STORE_BIO_H

#include <stdint.h>

#define BLOCK_SHIFT   12
#define BLOCK_SIZE    (1u << BLOCK_SHIFT) /* bytes */
#define BIO_MAX_VECS  256u                /* 1 MiB: the largest FUSE request */
#define OBJECT_BLOCKS ((uint64_t)1 << 32) /* of one object, at most: an index has 32 bits */

struct device;

enum bio_op { BIO_READ, BIO_WRITE };

enum bio_vec_flags {
    BV_HOLE = 1, /* read, set by the device: no block there, data was zeroed */
    BV_NEW = 2,  /* write, set by the submitter: no block there yet; it holds one store_reserve() */
};

struct bio_vec {
    void *data;     /* BLOCK_SIZE bytes */
    void *owner;    /* the submitter's own; devices do not touch it */
    uint32_t index; /* block number in the object */
    uint16_t flags; /* BV_* */
    int16_t error;  /* 0 or -errno, set by the device */
};

enum bio_flags { BIO_RAHEAD = 1 /* nobody waits for it: a device may answer later */ };

struct bio {
    enum bio_op op;
    uint32_t flags; /* BIO_* */
    uint64_t object;
    uint32_t nr_vecs;
    uint32_t max_vecs;
    int error; /* the first vec's error; 0 when every vec is good */
    void (*end_io)(struct bio *bio);
    void *private;
    struct device *dev;    /* where it was last sent */
    struct bio *next;      /* owner: whoever holds the bio (submit_bio's list, a queue, a plug) */
    struct bio_vec vecs[]; /* in ascending index order */
};

/* Allocate a bio with room for max_vecs (1..BIO_MAX_VECS) blocks.   Returns NULL: no memory. */
struct bio *bio_alloc(enum bio_op op, uint64_t object, uint32_t max_vecs);
void bio_free(struct bio *bio);

/* Append one block; the caller keeps indices ascending and stays within max_vecs. */
struct bio_vec *bio_add(struct bio *bio, uint32_t index, void *data, void *owner);

/* Fail every vec with error (-errno); used by devices that refuse a bio as a whole. */
void bio_fail(struct bio *bio, int error);

/* Complete the bio: sets bio->error from its vecs and calls end_io. Call exactly once; an end_io that put itself
 * before another calls it for that one. */
void bio_endio(struct bio *bio);

#endif
