/* stale.h: copies that who is in front (the kernel) holds of a file from before a change it did not make in them.
 *
 * The kernel drops its copies of a range before it asks for a write around its cache, and drops or zeroes them again
 * after the answer. In between a mapping may have it read a page once more, before the change is there, and store to
 * it: then what is written back of that page carries old bytes in the changed range. On a local file system one folio
 * lock keeps all that apart; here there are two caches. So the bytes of a change are stale until the kernel has given
 * up its copies of them (fuse_notify.c), and only then is the change answered:
 *
 *     event                            does to a stale byte
 *     WRITE of what the kernel kept    leaves it as the change made it: what came is from before
 *     READ of which a copy is kept     makes it fresh: what is written back of that copy counts
 *     READ around the kernel's cache   is answered when the copies are gone: who has seen the change must not store
 *                                      to a copy without it
 *     end of the change                makes it fresh
 *
 * A copy of one page shows the change to who may then store to the old copy of another. So where there may be copies a
 * write is made page by page, each when the copies of the one before are gone: whoever sees it in one page finds it in
 * all before that one. (A hole is made at once. Who stores to a page of it because another has shown zeros to him,
 * before fallocate(2) has returned, may lose that store.)
 *
 * The kernel learns of a longer file by the answer. Until just before that the file is shown as long as it was, or
 * somebody would store where the kernel knows no file: it makes zeros of that.
 *
 * A write need not do all that if no copy was given since its file was opened: the kernel's first look at its own
 * copies, before it sent this write, came later than that, and waited for pages that were being read.
 *
 * copies_sem is exclusive for a change that makes bytes stale, so that each READ comes before it as a whole or after it
 * as a whole, reply included. It is taken outside i_rwsem. Where others have attached the file (a memfd), copies are
 * lent and taken back instead, and READs do without (DOORS.md).
 */
#ifndef FOLIO_FS_STALE_H
#define FOLIO_FS_STALE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct inode;
struct open_file;
struct stale;

struct stale_range {
    struct stale_range *next; /* the inode's                                          (i) */
    const struct stale *of;
    uint64_t start, end; /* bytes                                                     (i) */
};

/* One change. Zeroed; it stays where it is until stale_end(). */
struct stale {
    struct stale_range whole; /* what is left of it, or the first piece                (i) */
    bool begun;               /* (i) */
    uint64_t eof; /* it made the file longer: where that ended before, bytes; or UINT64_MAX (i) */
};

/* A copy of the page that the file ended in may bear stores behind the end. Where the file grows over it they show if
 * it comes back as part of the longer file: so that copy is to go, too, while who holds it still knows the shorter one.
 * Returns from where on, bytes. */
static inline uint64_t stale_from(const struct stale *stale, uint64_t offset)
{
    return stale->eof < offset ? stale->eof : offset;
}

/* A copy of these bytes is about to be made, for who keeps it.
 * Returns 0: until stale_gave(), no change comes in between; -ENOMEM: it may not be given. */
int stale_give(struct inode *inode, uint64_t offset, size_t len);
void stale_gave(struct inode *inode);

/* May somebody have a copy that a write at offset makes stale: given since this file was opened; or at any time, of
 * the end that it leaves behind? Context: copies_sem and i_rwsem, or it is a guess. */
bool stale_is_possible(struct open_file *file, uint64_t offset);
/* A file was opened. Context: i_lock. */
void stale_opened(struct open_file *file);

/* Bytes were changed. Once more: others, as the copies of the ones before are gone. eof: UINT64_MAX; or, before it
 * happens (len 0): the file is going to be longer, and ends there now. Context: copies_sem and i_rwsem exclusively. */
void stale_begin(struct inode *inode, struct stale *stale, uint64_t offset, uint64_t len,
                 uint64_t eof);
/* The file is going to be longer, and ends at eof now; what is stale already stays so. offset, context: as above. */
void stale_grows(struct inode *inode, struct stale *stale, uint64_t offset, uint64_t eof);
/* The copies are gone. Nothing happens if it has not begun. */
void stale_end(struct inode *inode, struct stale *stale);
/* Where what is left of it ends, bytes: what a READ has made fresh at its end is left out.
 * Context: i_lock not held. */
uint64_t stale_until(struct inode *inode, const struct stale *stale);
/* How long may a file of size bytes be shown to be? */
uint64_t stale_size(struct inode *inode, uint64_t size);

/* May there be copies of some of these bytes? If so *len ends with a page, at the latest; if not, with the first page
 * of which there may be. Context: copies_sem exclusively. */
bool stale_is_copied(struct inode *inode, uint64_t offset, size_t *len);
/* Is one of these bytes stale? Context: copies_sem. */
bool stale_covers(struct inode *inode, uint64_t offset, size_t len);
/* How many bytes, len at most, are all stale or all fresh?   Context: i_rwsem. */
size_t stale_piece(struct inode *inode, uint64_t offset, size_t len, bool *is_stale);

#endif
