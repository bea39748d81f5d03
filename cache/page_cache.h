/* page_cache.h: the cache itself, for the files of cache/ only.
 *
 *     frames.c      arena and free frames          reclaim.c    lists, what to evict
 *     filemap.c     find, insert, read             writeback.c  dirty pages to the store
 *     write.c       writing into pages             truncate.c   removing them
 *     lru_*.c       reclaim policies               workingset.c what is known of evicted pages
 *     bounce.c      devices and memfds             mkwrite_ahead.c  pages made writable ahead
 *     errseq.c      errors, told once
 */
#ifndef FOLIO_CACHE_PAGE_CACHE_H
#define FOLIO_CACHE_PAGE_CACHE_H

#include <sched.h>
#include <string.h>

#include "cache/clock.h"
#include "cache/filemap.h"
#include "cache/worker.h"

struct blk_plug;
struct memfd;

struct fault_counters {
    _Atomic uint64_t minor, major, mkwrite;
};

struct cache_counters { /* all atomic, relaxed: for people, never for decisions */
    _Atomic uint64_t misses, waits;
    _Atomic uint64_t ra_sync, ra_async, ra_pages, ra_used, ra_wasted;
    _Atomic uint64_t read_pages, written_pages, read_errors, write_errors;
    _Atomic uint64_t reclaimed, scanned, activated, direct_reclaims, alloc_waits;
    _Atomic uint64_t refaults, activations;
    _Atomic uint64_t throttled, throttled_ns, passes;
    struct fault_counters faults[FAULT_DOORS];
};

#define AHEAD_MOST   512u /* pages: see mkwrite_ahead.c */
#define BOUNCES_MOST 4u
#define LRU_BATCH    32u /* pages a reclaim step isolates at a time */
#define HIT_STRIPES  16u

struct page_cache { /* (c) constant  (r) lru_lock  (s) shadow_lock  (d) dirty_lock  (a) atomic */
    const struct clock *clock; /* (c) */
    char *arena;               /* (c) max_frames frames, side by side */
    struct page *pages;        /* (c) their structs */
    uint64_t max_frames;       /* (c) */

    pthread_mutex_t lru_lock;
    _Atomic uint64_t limit; /* frames that may be in use                     (r to change, a) */
    uint64_t fresh;         /* frames from here on were never used                     (r) */
    uint64_t used;          /* frames with a page in them                              (r) */
    struct list_head free;  /* used once, empty now                                    (r) */
    const struct reclaim_policy *policy; /*            (r) */
    struct list_head active, inactive;   /* most recent at the front; see reclaim.h        (r) */
    uint64_t nr_active, nr_inactive;     /*                                                (r) */
    uint32_t age; /* the policy's clock, for refault distances                           (r) */

    pthread_mutex_t shadow_lock;
    struct shadow *shadows;            /* (c) a ring of max_frames: see workingset.c     (s) */
    uint64_t shadow_head, shadow_tail; /* numbers of the next and the oldest             (s) */
    uint64_t nr_shadows;               /* those of them that are known                   (s) */

    pthread_mutex_t dirty_lock;
    struct list_head dirty_mappings; /* oldest at the back                                (d) */
    struct rwsem sync_sem;           /* one page_cache_sync at a time */
    uint64_t nr_syncs;               /* (sync_sem) */
    _Atomic uint64_t nr_dirty, nr_writeback; /* pages                                     (a) */
    _Atomic unsigned dirty_ratio, dirty_background_ratio; /* per cent of limit   (a) */
    _Atomic unsigned dirty_expire_ms, dirty_writeback_ms; /*                     (a) */
    _Atomic uint64_t nr_short;  /* times that a pass met want of memory                (a) */
    _Atomic uint64_t bandwidth; /* pages per second the store took lately; 0: unknown   (a) */
    _Atomic unsigned fault_around, store_around; /* pages                              (a) */
    enum writeback_error on_error;               /* (c) */
    _Atomic bool want_writeback;    /* reclaim met dirty pages, or somebody asked            (a) */
    _Atomic bool writeback_failing; /* writing got nowhere lately: note_progress()        (a) */

    /* Counts frames freed and pages written: who waits for memory or for fewer dirty pages sleeps
     * on it. */
    _Atomic uint32_t progress;
    _Atomic uint32_t progress_waiters;

    pthread_mutex_t ra_lock;
    struct bio *ra_queue, **ra_tail; /* reads nobody waits for                        (ra_lock) */

    struct crew flushers;      /* none without threads */
    struct worker *reader;     /* (c) NULL without threads */
    bool stepped;              /* (c) the flusher's steps are somebody else's */
    _Atomic size_t node_bytes; /* memory of all tree nodes */
    struct ahead_slot {
        _Atomic(struct page *)
            page;             /* NULL: free; else PG_ahead, by whose lock the slot is held (a) */
        enum fault_door door; /* whose store it would be                     (PG_locked) */
    } ahead[AHEAD_MOST];
    _Atomic uint32_t mappings; /* that there have been                                  (a) */
    char *ahead_copies;  /* (c) a page for each slot: what its page was             (PG_locked) */
    unsigned nr_bounces; /* (c) as many as fit into a sixteenth of max_frames */
    struct bounce {      /* see bounce.c */
        char *data;      /* (c) BIO_MAX_VECS pages */
        _Atomic bool taken; /* by a bio, to whose end the rest belongs                    (a) */
        struct memfd *f;
        void (*end_io)(struct bio *bio);
        void *private;
    } bounces[BOUNCES_MOST];
    struct cache_counters count;
    struct { /* see count_hits() */
        _Atomic uint64_t n;
        char apart[120]; /* no two on one cache line, nor on a pair of them */
    } hits[HIT_STRIPES];
};

static inline void count_add(_Atomic uint64_t *counter, uint64_t n)
{
    atomic_fetch_add_explicit(counter, n, memory_order_relaxed);
}

/* Each processor counts its own hits: on one word, readers would pass its cache line to and fro for
 * longer than a hit takes. */
static inline void count_hits(struct page_cache *cache, uint64_t n)
{
    count_add(&cache->hits[(unsigned)sched_getcpu() % HIT_STRIPES].n, n);
}

/* memcpy between a page and a buffer, for n that is not constant. gcc must not know that it is at
 * most a page, or it copies with "rep movs", which takes half as long again as the library. */
static inline void copy_bytes(void *to, const void *from, size_t n)
{
    __asm__("" : "+r"(n));
    memcpy(to, from, n);
}

/* ---- frames.c -------------------------------------------------------------------------------- */

/* A page for that mapping, with one reference and no flag, its bytes undefined. wait: reclaim and sleep until there is
 * one (no PG_locked may be held); otherwise reclaim only.   NULL: none. */
struct page *page_alloc(struct address_space *m, bool wait);
/* The reference count is 0 and nobody can find it. */
void page_free(struct page_cache *cache, struct page *page);
void cache_made_progress(struct page_cache *cache);
/* Sleep until progress, at most ms; with nobody to make it: one step of the flusher instead. */
void cache_wait_progress(struct page_cache *cache, uint32_t seen, unsigned ms);

/* Say where the bytes of a page that is about to enter the tree are to be. With a memfd its lock is held
 * until the page is in the tree.   0 or -ENOMEM. */
int page_settle(struct address_space *m, struct page *page, uint32_t index);
/* Are they in the mapping's memfd (memfd.h)?   Context: locked, or a reference. */
bool page_in_memfd(const struct page_cache *cache, const struct page *page);
/* From now on they are in that frame of it, where they have been put; or in the page's own, where they are put.
 * Context: locked and frozen.   Returns 0, or -errno: as it was. */
void page_to_memfd(struct page_cache *cache, struct page *page, void *frame);
int page_from_memfd(struct page_cache *cache, struct page *page, const struct memfd *f);

/* ---- bounce.c -------------------------------------------------------------------------------- */

/* A bio about to be submitted, each vec's page its owner, end_io and private set: where the mapping's pages lie in
 * a memfd, let the device have other memory.   Returns false: there is none free; the bio is as it was.
 * With bio->error, -EIO, its bytes cannot be had: it is for bio_endio(), not for the device.
 * Context: the pages stay in the tree, and unchanged or not uptodate, until end_io. */
bool bounce_bio(struct address_space *m, struct bio *bio);
/* The bytes of a locked page of such a mapping, which is not uptodate.   Blocks: as long as a client likes (memfd.h). */
void bounce_page_in(struct address_space *m, struct page *page, const char *from);

/* ---- mkwrite_ahead.c -------------------------------------------------------------------------- */

/* A page that somebody is likely to store to: have it dirty, if it is clean and that neither sleeps nor is
 * refused, and let the caller map it writable.   Returns false: as it was. Context: PG_locked, uptodate. */
bool page_mkwrite_ahead(struct address_space *m, struct page *page, enum fault_door door);
/* Has a PG_ahead page been stored to? Then it is dirty as any other from now on, and counted. Context: locked. */
bool page_look_ahead(struct address_space *m, struct page *page);
/* page_look_ahead() for all pages, so that what was stored to is counted; waits for nobody who holds one for
 * long. Context: nothing locked. */
void page_cache_look_ahead(struct page_cache *cache);
/* A page whose bytes are about to be changed: wait for its writeback; a PG_ahead page is dirty as any other from
 * now on. Context: locked. */
void wait_for_stable_page(struct address_space *m, struct page *page);
/* A page that is about to be written: if it is PG_ahead, write-protect it and find out whether it is dirty at all;
 * if not, it is clean.   Returns 0, or page_mkclean's error: as it was. Context: locked, no writeback. */
int page_end_ahead(struct address_space *m, struct page *page);
/* Is the slot for a PG_ahead page's copy its own? For mapping_check(). */
bool page_holds_slot(const struct address_space *m, const struct page *page);
/* It is dirty whatever is found, or not dirty any more. Context: locked. */
void page_forget_ahead(struct address_space *m, struct page *page);

/* ---- reclaim.c ------------------------------------------------------------------------------- */

void lru_add(struct page_cache *cache, struct page *page);
void lru_remove(struct page_cache *cache, struct page *page);
/* Try to free up to want pages.   Returns how many were. Context: any PG_locked may be held. */
uint64_t shrink_lru(struct page_cache *cache, uint64_t want);
/* Free every page that nobody uses, whatever the policy thinks of it.   Returns how many. Context: likewise. */
uint64_t reclaim_all(struct page_cache *cache);

/* ---- filemap.c ------------------------------------------------------------------------------- */

/* As find_get_pages, for pages with a tag only. */
unsigned find_get_pages_tag(struct address_space *m, uint64_t *next, uint32_t last,
                            struct page **pages, unsigned max, enum radix_tag tag);
/* Take the page out of the tree, and leave a shadow in its place, unless NULL. Context: locked; tree_lock
 * held; not dirty, not under writeback. */
void page_replace_locked(struct address_space *m, struct page *page, void *shadow);
/* Out of the tree and off its list; the tree's reference is left. Context: locked; not dirty, likewise. */
void page_delete(struct address_space *m, struct page *page);
/* Read one locked page; it stays locked.   Returns 0 or -EIO, -ENOMEM. */
int read_page_locked(struct address_space *m, struct page *page);
/* Look for a block on disk where PG_mappedtodisk is not known, and remember it. Page locked. */
int page_map_block(struct address_space *m, struct page *page);
void read_end_io(struct bio *bio);
/* Send a bio of a window, its mapping in private. */
void ra_send(struct blk_plug *plug, struct bio *bio);
/* A reader got the page; again: in a use that was counted. */
void page_used(struct page_cache *cache, struct page *page, bool again);

/* ---- truncate.c ------------------------------------------------------------------------------ */

/* Zero what a locked page has behind the end of file, up to the offset to (in the file). */
void zero_beyond_eof(struct address_space *m, struct page *page, uint64_t to);
/* Likewise, where somebody may have stored there; and nobody can, while it is locked. Not under
 * writeback. */
void forget_beyond_eof(struct address_space *m, struct page *page, uint64_t to);

/* ---- throttle.c ------------------------------------------------------------------------------ */

/* So many pages were written in that time. */
void note_bandwidth(struct page_cache *cache, uint64_t pages, uint64_t ns);

/* ---- writeback.c ----------------------------------------------------------------------------- */

/* Make a locked, uptodate page dirty; its promise was made (a_ops->reserve). */
void set_page_dirty(struct address_space *m, struct page *page);
/* Forget that it is dirty, and give its promise back. Context: locked. */
void cancel_dirty_page(struct address_space *m, struct page *page);
/* Promise room for a locked page about to become dirty, unless it is.   0 or the owner's error. */
int dirty_page_reserve(struct address_space *m, struct page *page);
/* Leave the list of dirty mappings if nothing is dirty any more.   Returns true: it did, and the
 * caller, with no lock held, calls dirty_list_put(), after which the mapping may be gone.
 * Context: writeback_sem held exclusively. */
bool dirty_list_del_if_clean(struct address_space *m);
void dirty_list_put(struct address_space *m);

static inline uint64_t dirty_limit(const struct page_cache *c, unsigned ratio)
{
    uint64_t pages = atomic_load_explicit(&c->limit, memory_order_relaxed) * ratio / 100;
    return pages > 0 ? pages : 1;
}

#endif
