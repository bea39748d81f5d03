/* plug.h: bios held back for a moment, so that neighbours reach the device as one.
 *
 *     struct blk_plug plug;
 *     blk_start_plug(&plug);
 *     submit_bio_plugged(&plug, dev, bio);  ...     nothing reaches the device yet
 *     blk_finish_plug(&plug);                       now it does, in order of object and index
 *
 * Held bios of the same operation and object, of which one begins with the block after the other's
 * last, are sent as one bio of at most BIO_MAX_VECS blocks. Each still ends by its own end_io, with
 * its own blocks' flags and errors. Only what a device refuses as a whole (no memory, no room) fails
 * all that were sent together.
 *
 * A plug lies on its owner's stack and is used by that thread alone (Linux: struct blk_plug, which
 * the task points to; here it is passed, so whose bios it holds is seen in the code). A callee that is
 * to add to its caller's plug gets it as an argument; one that starts its own leaves the caller's
 * alone.
 *
 * Nothing flushes a plug behind its owner's back: before he sleeps for what a held bio's end_io gives
 * (a page it keeps locked, memory), he calls blk_flush_plug().
 */
#ifndef FOLIO_STORE_PLUG_H
#define FOLIO_STORE_PLUG_H

#include "store/device.h"

#define BLK_PLUG_MAX 32u /* bios held; one more sends those before it */

struct blk_plug {
    struct device *dev; /* of all that are held */
    struct bio
        *first;  /* by operation, object and first index; as submitted where these are equal */
    uint32_t nr; /* held */
};

static inline void blk_start_plug(struct blk_plug *plug)
{
    *plug = (struct blk_plug){ .nr = 0 };
}

/* As submit_bio(), later. The bio has at least one block. It is not ordered against others that are
 * held or under way, as bios never are. Another dev than before, or BLK_PLUG_MAX held: sends them. */
void submit_bio_plugged(struct blk_plug *plug, struct device *dev, struct bio *bio);

/* Send what is held; the plug may be used on. Where no memory is left to join bios, they are sent one
 * by one.   Blocks, locks: as submit_bio(). */
void blk_flush_plug(struct blk_plug *plug);

/* The same, for the last time. */
static inline void blk_finish_plug(struct blk_plug *plug)
{
    blk_flush_plug(plug);
}

#endif
