/* memfd.h: the frames of one file in a memfd, where offset = page index, so that other processes can
 * map them.
 *
 * A mapping starts with its pages in the cache's arena. mapping_use_memfd() empties it once; from then
 * on its pages' frames lie in the memfd, at their place in the file. Whether a page exists is still
 * the tree's to say: what else lies in the memfd (a hole that somebody touched, what a page that has
 * gone left behind) means nothing.
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
 * whose file has left the cache is cut, for a client may keep it, by a thread that does nothing else.
 *
 * Lock order: PG_locked, then memfd->lock, then mapping->tree_lock.
 */
#ifndef FOLIO_CACHE_MEMFD_H
#define FOLIO_CACHE_MEMFD_H

#include "cache/filemap.h"

/* The first segment is 1 GiB; each later one as long as all before it; 15 reach 16 TiB. */
#define MEMFD_SEGMENTS    15u
#define MEMFD_FIRST_SHIFT 18u /* log2 of its pages */

struct memfd {
    int fd;      /* (c) */
    int read_fd; /* (c) the same file, opened for reading only */
    pthread_mutex_t lock;
    uint64_t pages;                           /* the file's size now                    (lock) */
    _Atomic(char *) segments[MEMFD_SEGMENTS]; /* mapped when first needed    (lock to set, a) */
    /* The same once more, never touched, and set before: there pages are put into the memfd. NULL: they cannot. */
    _Atomic(char *) windows[MEMFD_SEGMENTS];
    struct memfd *next; /* of the dead                                             (dead_lock) */
};

/* Have the mapping's frames in a memfd from now on, if they are not. What is dirty is written first; what is mapped
 * (by vma_soft.h) is unmapped, and its next touch finds it there.
 * Context: i_rwsem held for writing, nothing else.
 * Errors: -EIO and the like (what is dirty could not be written, or was stored to meanwhile; what is mapped could not
 * be unmapped), -EMFILE, -ENOMEM, -EOPNOTSUPP (the system would put huge pages into it). */
int mapping_use_memfd(struct address_space *m);
/* Let the mapping, which nobody has mapped, be without: what becomes of its pages need not be punched.
 * Returns what it had, or NULL; memfd_bury() it when no page is left. */
struct memfd *mapping_take_memfd(struct address_space *m);
/* Give its memory back, whoever else has it, and free it, soon. NULL is allowed. */
void memfd_bury(struct memfd *f);

/* The address of a page's frame, the memfd grown to reach it. Context: f->lock held until the page is in
 * the tree.   Errors: -ENOMEM. */
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

/* Put n pages of bytes into the memfd where it has none, without touching them. (Not by pwrite(2): that needs the
 * inode's lock, and where it goes is up to a client that sets O_APPEND.) Any thread; the pages are locked.
 * Returns how many were, at least one; -EEXIST: the first is there; -ENODEV: it cannot be done here; -EFAULT: it is
 * not so long any more; -ENOMEM and the like. */
int memfd_fill(const struct memfd *f, uint32_t index, const char *from, uint32_t n);
/* Can they be filled, and is each page in our mappings the memfd's own? */
bool memfd_whole(void);
/* Make it reach so far, in pages. */
void memfd_grow(struct memfd *f, uint64_t pages);
/* Shorten it to i_size, unless a page of the tree lies beyond.   Returns true: index is not in it. */
bool memfd_trim(struct address_space *m, uint32_t index);

#endif
