/* memfd.h: the frames of one file in a memfd, where offset = page index, so that other processes can
 * map them.
 *
 * The pages of a mapping lie in the cache's arena, but where it is attached: there a segment of its memfd is mapped
 * in this process, and their frames are at their place in it. Whether a page exists is still
 * the tree's to say: what else lies in the memfd (a hole that somebody touched, what a page that has
 * gone left behind) means nothing.
 *
 *      a memfd      none -- mapping_use_memfd --> with files <--------------------------------> without
 *                                                           mapping_use_memfd / nobody has it
 *                                                           open, no segments: memfd_shrink
 *
 *      a segment         memfd_reserve                pull_pages: each page that is there
 *                (none) ----------------> live ------------------------------------------> live, whole
 *                   ^    a mapping of it    ^ |  nobody's: memfd_shrink                         |
 *                   |                       | v                                                 |
 *                   |  no page is left   retired: its pages go to their own frames, or to <-----+
 *                   +------------------- another segment; those in use later      nobody's: memfd_shrink
 *
 *      a page's frame    its own -- page_settle as it enters the tree, where a live segment has it; pull_pages -->
 *                                <-- memfd_shrink, from a segment that is retired ------------------- the memfd's
 *
 * Invariants (mapping_check() verifies them):
 *   F1  A page that is in the tree lies in its own frame, or at its place in a segment that is mapped.
 *   F2  Where a segment that is whole has users (ranges that are attached), all pages that are in the tree lie in the
 *       memfd. So who has mapped it sees what everybody sees, and no fault needs address space.
 *   F3  page->data changes under PG_locked with the count frozen: whoever has a reference finds the bytes where he
 *       looked, and a bio's pages stay where they are. Being dirty is no matter.
 *   F4  A segment is retired, and the files taken, with memfd->lock and table held: a page enters the tree in one
 *       hold of memfd->lock with the choice of its frame, so that none comes to lie in a segment after that.
 *   F5  A memfd that has something nobody uses is in the list of idle ones, or in the hands of who gives it back.
 *
 * What is idle is kept for who comes again, of few (memfd_idle.c); its owner may go meanwhile, and waits a moment
 * if somebody has it in hand. All segments together, and those that one account uses, are bounded (memfd_segment.c):
 * -ENOMEM when a range is to be attached, before anything is stored.
 *
 * The memfd reaches at least to the end of the file. A touch beyond it is the kernel's SIGBUS where the
 * memfd ends; it may be longer after a truncation (those who read the pages that went may still do so),
 * while a writer holds a locked page beyond the end of file, or where pages were set aside (fallocate).
 * Then who maps it and faults there learns from handle_mm_fault(), and memfd_trim() cuts it.
 *
 * The other processes may hold a descriptor that can punch and truncate. They change what they could
 * change by storing. Should a page vanish under us, we read zeros: a SIGBUS in our mapping gives it
 * back to the memfd, or, where that fails, puts an anonymous page there until the memfd grows again; but bytes that
 * are there and cannot be had (swap that cannot be read) are our end, as of any process.
 * A read through the mount at that moment may be EIO: the kernel, copying it, raises no signal. (What the store fails
 * to read so is read once more into memory of our own: read_page_locked.)
 * And they can keep the memfd's inode locked, by a write(2) of bytes that never come: whoever punches or cuts it sleeps
 * until that ends, and no signal helps. Who does so for the sake of that file waits. Who needs memory does not:
 * one thread at a time reclaims pages of memfds, and while it has been kept for a second no other does. And a memfd
 * that is closed is cut, for a client may keep it, by a thread that does nothing else; while that is kept another
 * closes them, and cuts none.
 *
 * Lock order: PG_locked, then memfd->lock, then mapping->tree_lock; and memfd->table (with accounts and the list of
 * idle ones in it), which is never held over a sleep. Who gives back only tries PG_locked and memfd->lock.
 */
#ifndef FOLIO_CACHE_MEMFD_H
#define FOLIO_CACHE_MEMFD_H

#include "cache/filemap.h"

struct memfd;
struct memfd_segment;
struct memfd_account { /* of somebody who attaches; zeros at first */
    uint64_t bytes;    /* of address space here */
    unsigned segments;
};

/* Have a memfd, with files: for whoever attaches something, until mapping_unuse_memfd(). Pages come to lie there with
 * memfd_reserve().
 * Context: i_rwsem held for writing, unless it had one before; no page locked.
 * Errors: -EMFILE, -ENOMEM, -EOPNOTSUPP (the system would put huge pages into it). */
int mapping_use_memfd(struct address_space *m);
void mapping_unuse_memfd(struct address_space *m);
/* Its descriptor; else the one for reading only. Context: in use. */
int memfd_descriptor(struct address_space *m, bool writable);
/* Have the pages [first, first + count) in the memfd, those that are in the cache and those that come: for one range of
 * that account's, until memfd_release(). What is mapped (by vma_soft.h) is unmapped, and its next touch finds it there.
 * Context: in use; no page locked.   Blocks: while others use the pages.
 * Errors: -ENOMEM (of memory; of address space or mappings, the account's own or all), -EBUSY (a page stays in use). */
int memfd_reserve(struct address_space *m, uint32_t first, uint64_t count, struct memfd_account *a,
                  struct memfd_segment **out);
/* For one range more of an account that has it already. */
void memfd_share(struct memfd_segment *s, struct memfd_account *a);
void memfd_release(struct memfd_segment *s, struct memfd_account *a);
/* Give back what nobody uses of up to so many memfds, the longest idle first.   Returns of how many. */
unsigned memfd_shrink(unsigned most);
/* Likewise all, in another thread. */
void memfd_shrink_soon(void);
/* Somebody keeps those who free memfds: have at least so many. One thread at a time. */
void memfd_more_undertakers(unsigned nr);
/* Leave no more of them idle than may be: for whoever makes one more. Context: no lock that others need. */
void memfd_limit_idle(void);
/* F1 and F2 for a page of the tree. Quiet mapping. */
bool memfd_check(struct address_space *m, const struct page *page);
/* Does any part of it lie there? A guess. */
bool memfd_has_pages(struct address_space *m);

/* Let the mapping, which nobody has mapped, be without: what becomes of its pages need not be punched.
 * Returns what it had, or NULL; memfd_bury() it when no page is left. */
struct memfd *mapping_take_memfd(struct address_space *m);
/* Give its memory back, whoever else has it, and free it, soon. NULL is allowed. */
void memfd_bury(struct memfd *f);

/* The address of a page's frame, the memfd grown to reach it; NULL: it is not to lie there. Context: f->lock held until
 * the page is in the tree, or the segment used, and the page locked.   Errors: -ENOMEM. */
int memfd_frame(struct memfd *f, uint32_t index, void **out);
/* Give the frames [first, last] back to the system and take them out of every mapping, here and in other
 * processes. Context: their pages are locked, or cannot be there.   Returns 0, or -errno: not certain. */
int memfd_punch(struct memfd *f, uint32_t first, uint32_t last);
/* How many threads have been kept for so long in punching or cutting a memfd?   Any thread, no lock. */
unsigned memfd_kept(uint64_t ns);
/* Around reclaiming a page of some memfd.   begin returns false: not now; nothing is to be ended. */
bool memfd_reclaim_begin(void);
void memfd_reclaim_end(void);
/* Are there any? */
bool memfd_any(void);

/* Put n pages of bytes into the memfd from that frame on, where it has none, without touching them. (Not by
 * pwrite(2): that needs the inode's lock, and where it goes is up to a client that sets O_APPEND.) Any thread; the
 * pages are locked.
 * Returns how many were, at least one; -EEXIST: the first is there; -ENODEV: it cannot be done here; -EFAULT: it is
 * not so long any more; -ENOMEM and the like. */
int memfd_fill(struct memfd *f, const void *frame, const char *from, uint32_t n);
/* What n pages have, without touching them. What a client has cut off is zeros: to touch it might take as long as that
 * client likes. That is only where nothing can be read any more; a read that ends before may have met an error (of
 * swap, say), which the next tells.   Returns 0 or -errno. Context: they lie there, locked or under writeback. */
int memfd_read(const struct memfd *f, uint32_t index, char *to, uint32_t n);
/* Can they be filled, and is each page in our mappings the memfd's own? */
bool memfd_whole(void);
/* Make it reach so far, in pages. */
void memfd_grow(struct memfd *f, uint64_t pages);
/* Shorten it to i_size, unless a page of the tree lies beyond.   Returns true: index is not in it. */
bool memfd_trim(struct address_space *m, uint32_t index);

#endif
