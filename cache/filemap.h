/* filemap.h: files in the cache: an address_space per inode, and reading and writing through it.
 *
 * usage:
 *     page_cache_create(&cache, &options)
 *     mapping_init(&mapping, cache, device, object, &a_ops, size)
 *         filemap_read / filemap_get_page / filemap_write ...
 *         filemap_fdatawrite, truncate_setsize ...
 *     mapping_destroy(&mapping)       after its last user; drops what is left in it
 *
 * Reading, after Linux's filemap_get_pages and filemap_fault:
 *
 *     look up -- hit, uptodate ------------------------------------------> use
 *        |  \--- hit, PG_readahead: start the next window, nobody waits --> use
 *        |   \-- hit, locked: wait; not uptodate then: lock, read once more, EIO
 *        miss: readahead from here (invalidate_lock shared: insert locked pages, submit the read),
 *              then look up again
 *
 * i_size is checked before and again after the page is in hand; a page that left the tree in
 * between is looked up again.
 */
#ifndef FOLIO_CACHE_FILEMAP_H
#define FOLIO_CACHE_FILEMAP_H

#include <pthread.h>
#include <sys/types.h>

#include "cache/page.h"
#include "cache/radix_tree.h"
#include "cache/readahead.h"
#include "cache/wait.h"
#include "store/device.h"

struct writeback_pass {
    uint64_t size; /* i_size before the dirty pages are chosen */
    bool writes;   /* there were some; otherwise none is written, whatever becomes dirty */
    void *private; /* the owner's */
};

/* What a mapping asks of its owner (fs/ or a test). Every member may be NULL. */
struct address_space_operations {
    /* Promise room before pages are dirtied: nr_pages of them, nr_new without a block.
     * Returns 0, -ENOSPC, -EDQUOT, -EROFS.   Blocks: no. */
    int (*reserve)(struct address_space *m, uint32_t nr_pages, uint32_t nr_new);
    /* Likewise for a page that truncation zeroes, or whose block it takes away: cannot fail. */
    void (*reserve_always)(struct address_space *m, uint32_t nr_pages, uint32_t nr_new);
    void (*unreserve)(struct address_space *m, uint32_t nr_pages, uint32_t nr_new);
    /* reserve said -ENOSPC, but may have estimated: find out what is really free, and it is asked again.
     * Sleeps for a commit. No page is locked. */
    void (*make_room)(struct address_space *m);
    /* Does a block exist?   1, 0, -EIO, -ENOMEM. */
    int (*block_exists)(struct address_space *m, uint32_t index);
    /* Around one writeback pass; begin may refuse (-errno) and then nothing is written. end gets
     * the worst error of the pass. No page is locked by the caller. */
    int (*writeback_begin)(struct address_space *m, struct writeback_pass *pass);
    int (*writeback_end)(struct address_space *m, struct writeback_pass *pass, int error);
    /* Writing has failed for good: refuse changes from now on. */
    void (*shutdown)(struct address_space *m);
    /* Take back the copies of a page that who is in front may hold (page_hold_copy). Sleeps until it is
     * done, perhaps for reads of the page to be answered. No page is locked. */
    void (*forget_copy)(struct address_space *m, uint32_t index);
    /* A page becomes writable in somebody's memory: times are due. No page is locked.
     * Returns false: it would have to sleep, and nowait says not to. */
    bool (*page_mkwrite)(struct address_space *m, bool nowait);
    /* The mapping enters or leaves the list of dirty mappings, or is mapped by vma_soft.h: keep its owner alive. */
    void (*get)(struct address_space *m);
    void (*put)(struct address_space *m);
};

struct address_space {        /* (c) constant  (t) tree_lock  (i) invalidate_lock exclusive
                                 (d) cache->dirty_lock  (a) atomic */
    struct page_cache *cache; /* (c) */
    struct device *dev;       /* (c) */
    _Atomic uint64_t object;  /* the store's data id              (i, a) */
    const struct address_space_operations *a_ops; /* (c) */
    void *owner;                                  /* (c) the inode */
    struct radix_tree pages;                      /* (t) to change, RCU to read */
    pthread_mutex_t tree_lock;
    struct rwsem invalidate_lock;
    struct rwsem writeback_sem;
    _Atomic(struct memfd *) memfd; /* NULL: it never was attached                 (i) */
    pthread_rwlock_t i_mmap_lock;  /* readers come first: memory.h says why */
    struct list_head i_mmap;       /* the vm_areas that map it                      (i_mmap_lock) */
    _Atomic uint32_t nr_vmas; /*                                     (i_mmap_lock to change, a) */
    _Atomic bool copies; /* page_hold_copy() was called: pages may come back with PG_copied (a) */
    bool on_dirty;       /* (d) */
    _Atomic uint64_t i_size;  /* bytes; changed under the owner's i_rwsem             (a) */
    _Atomic uint32_t nrpages; /* (t to change, a) */
    _Atomic uint32_t nrdirty; /* (t to change, a) */
    uint32_t nrshadows;       /* values in the tree: see workingset.c              (t) */
    _Atomic uint32_t wb_err;  /* an errseq: passes that failed                        (a) */
    uint32_t number;          /* (c) of this one, among all that the cache has had */
    unsigned wb_failures;     /* see WB_TRIES; changed with writeback_sem, too        (d) */
    struct list_head dirty;   /* cache->dirty_mappings: dirty, or its last pass failed (d) */
    uint64_t dirtied_ns;      /* when it entered that list                            (d) */
    uint64_t synced;          /* the last page_cache_sync that took it                (d) */
    uint64_t wb_retry_ns;     /* not before                                           (d) */
};

/* What becomes of a page whose write failed. Its error is reported in every case. */
enum writeback_error {
    WB_ERROR_RETRY, /* it stays dirty, and is tried again; after WB_TRIES in a row: as RO */
    WB_ERROR_CLEAN, /* it counts as written, as on most file systems: what was in it may be lost, and bytes
                     * that a truncation cut off may be back when the file grows, if it was their zeros */
    WB_ERROR_RO, /* it stays dirty, and the owner is told to refuse changes from now on */
};
/* Times in a row that passes over one mapping failed, but for want of memory or room; with back-off in between, and all
 * that fail meanwhile are none: about a minute. */
#define WB_TRIES 12u

struct cache_options {
    uint64_t cache_bytes; /* page memory; at least CACHE_MIN_PAGES pages */
    uint64_t max_bytes;   /* address space set aside: cache_bytes may grow to it; 0: same */
    unsigned dirty_ratio; /* per cent of the cache: writers wait above it; 0: 20 */
    unsigned dirty_background_ratio; /* per cent: the flusher starts; 0: 10 */
    unsigned dirty_expire_ms;        /* age at which a dirty file is written; 0: 30,000 */
    unsigned dirty_writeback_ms;     /* how often the flusher looks; 0: 5,000 */
    const struct clock *clock;       /* NULL: clock_monotonic */
    const char *reclaim;             /* the policy's name; NULL: lru2q */
    enum writeback_error on_error;
    unsigned
        fault_around; /* pages a load's fault maps together; 0: FAULT_AROUND_DEFAULT; 1: none */
    unsigned store_around; /* pages that the fault of a store in order makes writable; 0: 1 */
    bool threads;          /* start the flusher and the readahead worker */
    bool stepped;          /* no threads, but somebody else calls flusher_step(): who needs
                                     it waits, instead of doing it */
};
#define CACHE_MIN_PAGES 16u

/* Who maps pages. */
enum fault_door {
    FAULT_SOFT,     /* this process (vma_soft.h) */
    FAULT_ATTACHED, /* others, by libfolio */
    FAULT_KERNEL, /* the kernel in front: of its faults we see the pages that its mappings dirtied */
    FAULT_DOORS,
};
struct fault_stats {
    uint64_t minor, major; /* pages asked for: were in the cache; were not */
    uint64_t mkwrite;      /* first stores to clean pages */
};

struct cache_stats {
    uint64_t pages, active, inactive, free, dirty, writeback; /* pages now */
    uint64_t limit, arena_bytes, struct_bytes, tree_bytes;
    uint64_t frame_bytes;         /* of one page beside its data and the tree: at most 64 */
    uint64_t hits, misses, waits; /* page look-ups by readers: found, read, waited for */
    uint64_t ra_sync, ra_async, ra_pages, ra_used, ra_wasted; /* windows, pages */
    uint64_t read_pages, written_pages, read_errors, write_errors;
    uint64_t reclaimed, scanned, activated, direct_reclaims, alloc_waits;
    uint64_t refaults, activations; /* pages that came back; of them, soon */
    uint64_t shadows;               /* evicted pages remembered now */
    uint64_t throttled, throttled_ns, passes;
    struct fault_stats faults[FAULT_DOORS];
};

/* Errors: -ENOMEM, -EINVAL (too small; no such reclaim policy; fault_around or store_around too large). */
int page_cache_create(struct page_cache **out, const struct cache_options *o);
/* Stop the threads; from then on the callers do their work. Nobody else uses the cache any more. */
void page_cache_stop(struct page_cache *cache);
/* Every mapping has been destroyed. Stops the threads. */
void page_cache_destroy(struct page_cache *cache);
/* Waits for nobody who holds a page for long. */
void page_cache_stats(struct page_cache *cache, struct cache_stats *out);
/* Change the limit at run time; shrinking reclaims. bytes: up to max_bytes.   -EINVAL. */
int page_cache_resize(struct page_cache *cache, uint64_t bytes);
void page_cache_set_dirty(struct page_cache *cache, const struct cache_options *o);
/* Pages that a load's fault maps together, from now on: 1 to FAULT_AROUND_MOST.   -EINVAL. */
int page_cache_set_fault_around(struct page_cache *cache, unsigned pages);
/* Pages that the fault of a store makes writable, where stores come in order: 1 to STORE_AROUND_MOST; see
 * memory.h for what it costs.   -EINVAL. */
int page_cache_set_store_around(struct page_cache *cache, unsigned pages);
/* The name of the reclaim policy that is called so, as a constant; NULL: there is none. */
const char *page_cache_reclaim_name(const char *name);
#define RECLAIM_NAMES "lru2q|s3fifo" /* all of them, for people */
/* Pages that who is in front had dirtied in its mappings have been written to us. */
void page_cache_count_mkwrite(struct page_cache *cache, uint64_t pages);
/* Another reclaim policy, from now on; the pages stay.   -EINVAL: none of that name. */
int page_cache_set_reclaim(struct page_cache *cache, const char *name);
/* Drop every clean, unused page.   Returns how many. */
uint64_t page_cache_drop(struct page_cache *cache);

/* ---- mappings -------------------------------------------------------------------------------- */

/* a_ops: NULL: nobody owns it. */
void mapping_init(struct address_space *m, struct page_cache *cache, struct device *dev,
                  uint64_t object, const struct address_space_operations *a_ops, uint64_t size);
/* Nobody uses it any more, nor has it mapped; its pages are dropped, dirty ones too (the caller has written what was
 * wanted, or the file is deleted). */
void mapping_destroy(struct address_space *m);
/* I1 to I5 (page.h), and of M1 and M3 (memory.h) what shows in a page, over every page. Quiet mapping.
 * Returns 0, or the line of the check that failed. */
int mapping_check(struct address_space *m);

void i_size_write(struct address_space *m, uint64_t size); /* Context: i_rwsem */
/* Have the memfd, if there is one, reach to that size: before or after i_size says so, for it may have to wait (memfd.h):
 * no page and no lock that others need is held. Context: i_rwsem. */
void i_size_reach(struct address_space *m, uint64_t size);

/* ---- pages (pages come back referenced: put_page) ------------------------------------------- */

struct page *find_get_page(struct address_space *m, uint32_t index); /* NULL: not there */
/* The same; NULL too where one has been on its way out for a while. Does not sleep. */
struct page *find_get_page_nowait(struct address_space *m, uint32_t index);
struct page *find_lock_page(struct address_space *m, uint32_t index); /* locked, re-checked */
/* Locked; made when absent (not uptodate then).   Sleeps for memory.  NULL: -ENOMEM in *error. */
struct page *find_or_create_page(struct address_space *m, uint32_t index, int *error);
/* Insert a fresh page, locked.   0; -EEXIST: somebody was faster; -ENOMEM. */
int add_to_page_cache_lru(struct address_space *m, struct page *page, uint32_t index);
void remove_from_page_cache(struct page *page, struct address_space *m); /* locked, clean */
void mark_page_accessed(struct page *page);
/* Up to max (at most PAGEVEC) pages of [*next, last] that are in the tree, referenced; *next moves
 * behind what was looked at, and beyond last when nothing is left.   Returns how many, 0 too before
 * the end. */
#define PAGEVEC 32u
unsigned find_get_pages(struct address_space *m, uint64_t *next, uint32_t last, struct page **pages,
                        unsigned max);

/* The page uptodate, read if need be: referenced, unlocked.
 * ra: the open file's readahead state, or NULL for none. nr: pages the caller wants from here; it
 * gets them one by one, and with the last (nr 1) its read is over.
 * Errors: -EIO, -ENOMEM; 1: beyond end of file.   Blocks: on the store. */
int filemap_get_page(struct address_space *m, struct file_ra_state *ra, uint32_t index, uint32_t nr,
                     struct page **out);
/* Likewise for a page fault (Linux: filemap_fault); how: RA_FAULT or one of its kin. *major: it was
 * not in the cache. */
int filemap_fault_page(struct address_space *m, struct file_ra_state *ra, uint32_t index,
                       enum ra_how how, struct page **out, bool *major);

/* ---- files ----------------------------------------------------------------------------------- */

/* Copy [offset, offset+len) into buf; holes read as zeros.
 * Returns bytes, short only at end of file; -EIO, -ENOMEM when nothing was copied. */
ssize_t filemap_read(struct address_space *m, struct file_ra_state *ra, uint64_t offset, void *buf,
                     size_t len);

/* Copy len bytes into the cache at offset, dirtying pages and growing i_size; a gap behind the old end
 * reads as zeros, whatever was stored there.
 * Context: the owner's i_rwsem held for writing.
 * Returns bytes written, short when an error came after some; -ENOSPC, -EIO, -ENOMEM, -EFBIG.
 * Does not throttle: call balance_dirty_pages() after dropping the locks. */
ssize_t filemap_write(struct address_space *m, uint64_t offset, const void *buf, size_t len);

/* Give every page of [first, last] a block: zero pages, dirty, where there is none (fallocate).
 * Context: i_rwsem.   Errors: -ENOSPC, -EIO, -ENOMEM.   Does not throttle, either. */
int filemap_allocate(struct address_space *m, uint32_t first, uint32_t last);

enum writeback_sync { WB_SYNC_NONE, WB_SYNC_ALL };

/* One pass over the pages dirty now. ALL: waits until each has been copied into the store's
 * transaction. NONE: skips a page that somebody holds locked, or whose client keeps its address space locked.
 * Returns 0 or the worst error (worse_error()), also of write-protecting a page: it was left out. ALL also -EBUSY: a
 * client has kept its address space locked for half a minute (uffd.h), and pages that it may store to were left out.
 * What failed or was left out stays dirty.   Context: no page locked. */
int filemap_fdatawrite(struct address_space *m, enum writeback_sync sync);

/* An error newer than *since (an open file's, at first errseq_sample(&m->wb_err)): it, once; else 0. */
int filemap_check_errors(struct address_space *m, _Atomic uint32_t *since);

/* Slow the caller while too much is dirty. Context: no page locked, no i_rwsem of other files. */
void balance_dirty_pages_ratelimited(struct page_cache *cache, uint32_t nr_dirtied);
void balance_dirty_pages(struct page_cache *cache); /* one page */
/* Would balance_dirty_pages() slow the caller down? Wakes the flusher as that does, so who must not
 * sleep can ask and go on. */
bool dirty_throttle_due(struct page_cache *cache);
/* Pages that can be dirtied at once before it would, and that are few beside those that wake the flusher. */
unsigned dirty_room(struct page_cache *cache);
/* Start the flusher now. */
void wakeup_flusher(struct page_cache *cache);
/* Somebody who may be waited for without end keeps flushers: have at least nr. One thread at a time. */
void page_cache_more_flushers(struct page_cache *cache, unsigned nr);
/* Write every dirty mapping (WB_SYNC_ALL).   Returns 0 or the worst error (worse_error()). */
int page_cache_sync(struct page_cache *cache);
/* How often writing has met want of memory so far, whatever else went wrong: trying again may help. */
uint64_t page_cache_nr_short(const struct page_cache *cache);
/* One step of the flusher's work.   Returns milliseconds until the next. */
unsigned flusher_step(struct page_cache *cache);

/* ---- shorter, longer -------------------------------------------------------------------------
 *
 *     truncate_get_page(m, size, &cut)        may fail: nothing has changed
 *     down_write(&m->invalidate_lock)
 *     stayed = truncate_setsize(m, size, cut) nobody sees the bytes any more
 *         ... the owner removes the blocks, and records the size
 *     truncate_pages_end(m, behind it, UINT32_MAX, stayed)
 *     page_unlock_put(m, cut)
 *     up_write(&m->invalidate_lock)
 *
 *     lock_eof_page(m, &eof)                  nobody can store behind the end
 *         ... the owner records the size; i_size = size
 *     page_unlock_put(m, eof)
 */

/* Remove the pages [first, last], waiting for their writeback. Dirty ones are dropped.
 * Returns how many stayed, emptied, because page_unmap() was not certain. They are locked, and cannot be written, until
 * their blocks have gone, and _end is due, with that number.
 * Context: i_rwsem, and invalidate_lock exclusively, held until then. */
unsigned truncate_pages_begin(struct address_space *m, uint32_t first, uint32_t last);
void truncate_pages_end(struct address_space *m, uint32_t first, uint32_t last, unsigned stayed);
/* Both, for who removes no blocks (Linux: truncate_inode_pages_range). Context: likewise, or no other user. */
unsigned truncate_inode_pages_range(struct address_space *m, uint32_t first, uint32_t last);
/* Zero the bytes [from, to) of one page, on disk too by dirtying it when it has a block.
 * Context: i_rwsem.   Errors: -EIO, -ENOMEM. */
int truncate_partial_page(struct address_space *m, uint64_t from, uint64_t to);

/* The page that a file cut to size bytes ends in, uptodate, referenced; NULL: none is cut.
 * Context: i_rwsem, held until page_unlock_put(); no page locked.   Errors: -EIO, -ENOMEM. */
int truncate_get_page(struct address_space *m, uint64_t size, struct page **cut);
/* Cut it: i_size, then the rest of its last page, then the pages behind. cut stays locked, so that the
 * zeros in it cannot reach the disk before the owner has recorded the size.
 * Returns as truncate_pages_begin() of those behind.   Context: i_rwsem, invalidate_lock exclusively. */
unsigned truncate_setsize(struct address_space *m, uint64_t size, struct page *cut);
/* Make ready to raise i_size: what was stored behind the end through mappings is zeros, and nothing
 * more can be stored there while the page that the end cuts is locked: *eof, NULL when there is none;
 * maybe not uptodate (Linux: pagecache_isize_extended).
 * Context: i_rwsem; no page locked.   Errors: -ENOMEM. */
int lock_eof_page(struct address_space *m, struct page **eof);
void page_unlock_put(struct address_space *m, struct page *page); /* NULL: nothing */

/* Drop the clean, unused pages of [first, last].   Returns how many stayed. */
unsigned invalidate_inode_pages2_range(struct address_space *m, uint32_t first, uint32_t last);

#endif
