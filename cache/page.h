/* page.h: one page of the cache, its states, and the lock order of the whole program.
 * Read this first.
 *
 * A page is one 4 KiB frame of the cache's arena and the struct that describes it (what other
 * processes map has its frames in a memfd instead: memfd.h). The structs are an array beside the
 * arena (Linux's mem_map), never freed while the cache lives; so a stale pointer
 * may meet a page that is somebody else's by now, but never memory that is no page. The protocol
 * below makes that harmless.
 *
 *   States of a page that is in a tree (L = PG_locked, U = uptodate, D = dirty, W = writeback):
 *
 *      add_to_page_cache        end_io ok            set_page_dirty
 *   free ----------> [L] ------------------> [U] <----------------> [U D]
 *     ^               |                     ^ | ^   write, mkwrite    |
 *     |       end_io  | error               | | |                     | clear_page_dirty_for_io
 *     |               v                     | | |                     v      (locked)
 *     |           [ERROR] -- retried once --+ | +--- end_page ---- [U W]
 *     |                      by a reader      |      writeback ok     |
 *     +---------------------------------------+                       | error
 *        reclaim (clean, unreferenced), truncate            [U D] <---+   dirty set again first
 *
 *   transition                    done by                          holding
 *   free -> in tree               add_to_page_cache_lru            PG_locked, tree_lock
 *   not uptodate -> uptodate      end_io of the read; a write      PG_locked
 *                                 that covers the whole page
 *   clean -> dirty                set_page_dirty                   PG_locked (reservation made before)
 *   dirty -> clean + writeback    clear_page_dirty_for_io          PG_locked, tree_lock
 *   dirty -> clean                cancel_dirty_page: truncation,   PG_locked, tree_lock
 *                                 or it was never stored to
 *   writeback -> done             end_page_writeback               tree_lock; any thread
 *   in tree -> removed            page_replace_locked              PG_locked, tree_lock
 *   removed -> free               put_page, at count 0             nothing
 *
 * Invariants (mapping_check() verifies them, but I6, for which its owner has to count):
 *   I1  A page is in its mapping's tree at its index if and only if page->mapping is that mapping.
 *       mapping changes only under PG_locked and the tree_lock.
 *   I2  PG_dirty implies PG_uptodate.
 *   I3  The tree's dirty tag is set if and only if PG_dirty is; likewise writeback.
 *   I4  PG_writeback is never set by anybody but the one who cleared PG_dirty, and one write of a
 *       page is under way at a time.
 *   I5  The tree holds one reference. A count of 0 means free, or, with PG_locked, frozen: who takes
 *       the page out of the tree unmaps it first, and a look-up waits.
 *   I6  PG_dirty without PG_mappedtodisk holds a promise for a new block; every PG_dirty holds a
 *       promise for one page of the next transaction (a_ops->reserve).
 *
 * Finding a page (the rule everything stands on): look it up without a lock under RCU; take a
 * reference unless the count is 0; look at the slot again: if it changed, drop and retry; lock the
 * page; check page->mapping again: if it changed, unlock, drop and retry. find_get_page and
 * find_lock_page do this.
 *
 * While PG_writeback is set the bytes are being copied into the store's transaction: a writer waits
 * (stable pages). When it ends, the bytes belong to the store, which keeps them until they are
 * durable, through failed commits too; so a written page is an ordinary clean page and may be
 * reclaimed. Bytes beyond end of file, which only a mapping stores, are zeroed in the page under its
 * lock: before it is written, and before i_size grows, with the page write-protected in between
 * (lock_eof_page). So the tail of a clean page is zeros, and so is what a growing file shows.
 *
 * Lock order of the whole program, outermost first. Against the order only try-lock.
 *
 *   cache->sync_sem                          one page_cache_sync at a time
 *   fs->rename_lock                          one for the volume: changes of the tree of names
 *     inode->copies_sem                      file: what the kernel has copies of (fs/stale.h)
 *     inode->i_rwsem                         file: write, truncate, fallocate (lower ino first)
 *       mapping->writeback_sem               one writeback pass at a time     (filemap_fdatawrite)
 *       mapping->invalidate_lock             shared: insert pages and start their read
 *                                            exclusive: remove pages and their blocks
 *         PG_locked                          ascending index within one mapping; held over the
 *                                            store's read
 *           (wait for PG_writeback)
 *           memfd->lock                      the size of a mapping's memfd, and where its pages lie, against
 *                                            pages entering
 *         inode_lock_records()               one for the volume: from building an inode's record to
 *                                            applying it; no PG_locked is taken inside
 *             inode->i_lock                  attributes; never held over a sleep
 *               file_ra_state.lock           one open file's readahead; takes nothing
 *             cache->dirty_lock              the list of dirty mappings; over a_ops->get, which takes
 *                                            the inode table's lock; never held over a sleep
 *             cache->ra_lock                 reads nobody waits for; takes nothing
 *             mapping->tree_lock             never held over a sleep
 *               cache->lru_lock              lists, free frames; never held over a sleep, but while
 *                                            the memory of free frames is given back (madvise)
 *               cache->shadow_lock           beside lru_lock, never with it; never over a sleep
 *             mapping->i_mmap_lock           the mapping's vm_areas: shared to go through them,
 *                                            exclusive to change them
 *             store's own lock               inside store/ only
 *
 * A thread that waits for memory or for dirty throttling holds no PG_locked and no writeback_sem.
 */
#ifndef FOLIO_CACHE_PAGE_H
#define FOLIO_CACHE_PAGE_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "cache/list.h"
#include "cache/wait.h"

#define PAGE_SHIFT    12
#define PAGE_SIZE     (1u << PAGE_SHIFT) /* bytes */
#define PAGE_MASK     (~(uint64_t)(PAGE_SIZE - 1))
#define MAX_FILE_SIZE ((uint64_t)1 << 44) /* bytes: 16 TiB, the reach of a 32-bit page index */

/* Pages that so many bytes take; the first one behind them. */
static inline uint64_t pages_for(uint64_t bytes)
{
    return (bytes + PAGE_SIZE - 1) >> PAGE_SHIFT;
}

enum page_flag {
    PG_locked = 1 << 0,
    PG_waiters = 1 << 1, /* somebody sleeps on a bit of this page: wake on clear */
    PG_uptodate = 1 << 2,
    PG_dirty = 1 << 3,
    PG_writeback = 1 << 4,
    PG_error = 1 << 5,         /* the last read failed; the next reader clears it and tries once */
    PG_referenced = 1 << 6,    /* used at least once; page->uses counts on */
    PG_active = 1 << 7,        /* on the active list */
    PG_lru = 1 << 8,           /* on a list                                (lru_lock) */
    PG_readahead = 1 << 9,     /* touching it starts the next window */
    PG_mappedtodisk = 1 << 10, /* a block exists for it, or is promised by an earlier write */
    PG_prefetched = 1 << 11,   /* read ahead and not used yet: for the counters */
    PG_workingset = 1 << 12,   /* came back soon after it was evicted */
    PG_mkwrite = 1 << 13,      /* a vm_area may have it writable                 (PG_locked) */
    PG_copied = 1 << 14, /* who is in front may hold a copy: see page_hold_copy() (PG_locked) */
    PG_invalidating = 1 << 15, /* that copy is being taken back; a store waits    (PG_locked) */
    PG_ahead = 1 << 16, /* dirty ahead of a store, which may never come: see memory.h (PG_locked) */
};

struct address_space;
struct page_cache;

struct page { /* (c) constant  (l) PG_locked  (t) tree_lock  (r) lru_lock  (a) atomic */
    _Atomic uint32_t flags;   /* PG_*                                                     (a) */
    _Atomic int32_t refcount; /* 0: free                                                  (a) */
    _Atomic(struct address_space *) mapping; /* NULL: not in a tree      (l+t to change, a) */
    _Atomic uint32_t index; /* page number in the file; constant while mapping is set   (a) */
    _Atomic uint8_t uses;   /* after the first, up to USES_MAX: see reclaim.h            (a) */
    bool touched;           /* its own frame in the arena may hold memory; see page_settle() */
    _Atomic uint8_t order;  /* of its folio: see ra_window                              (a) */
    struct list_head lru;   /* active, inactive or free list                            (r) */
    void *
        data; /* where its bytes are: its frame, or in the mapping's memfd; in a tree: see memfd.h */
};
_Static_assert(sizeof(struct page) <= 64, "a page's own memory beside its data: at most 64 bytes");

static inline bool page_test(const struct page *page, uint32_t flags)
{
    cache_yield();
    return (atomic_load_explicit(&page->flags, memory_order_acquire) & flags) != 0;
}

/* Set or clear flags.   Returns the flags before. */
static inline uint32_t page_set(struct page *page, uint32_t flags)
{
    cache_yield();
    return atomic_fetch_or_explicit(&page->flags, flags, memory_order_acq_rel);
}
static inline uint32_t page_clear(struct page *page, uint32_t flags)
{
    cache_yield();
    return atomic_fetch_and_explicit(&page->flags, ~flags, memory_order_acq_rel);
}

/* Its bytes. */
static inline void *page_address(const struct page *page)
{
    return page->data;
}

/* ---- references ------------------------------------------------------------------------------ */

static inline void get_page(struct page *page) /* the caller holds one already */
{
    atomic_fetch_add_explicit(&page->refcount, 1, memory_order_relaxed);
}
bool get_page_unless_zero(struct page *page);
/* Drop a reference; the last one frees the frame. */
void put_page(struct page_cache *cache, struct page *page);
/* From exactly count references to 0, so that nobody can take one any more.   Linux: page_ref_freeze. */
bool page_ref_freeze(struct page *page, int count);
void page_ref_unfreeze(struct page *page, int count);

/* ---- waiting --------------------------------------------------------------------------------- */

bool trylock_page(struct page *page);
void lock_page(struct page *page);   /* sleeps */
void unlock_page(struct page *page); /* any thread: a read's end_io does it */
/* Sleep until the bit (PG_locked or PG_writeback) is clear. Costs one load when it is. */
void wait_on_page_bit(struct page *page, uint32_t bit);
static inline void wait_on_page_writeback(struct page *page)
{
    wait_on_page_bit(page, PG_writeback);
}
/* Clear bits and wake who waits on any of them. */
void page_clear_and_wake(struct page *page, uint32_t bits);

#endif
