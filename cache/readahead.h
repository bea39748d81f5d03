/* readahead.h: what to read before it is asked for; a policy is a small struct of functions.
 *
 * This is all an experimenter needs. One C file, made into a shared object, is a policy:
 *
 *     #include "cache/readahead.h"
 *
 *     static void twice(void *state, const struct ra_access *a, struct ra_window *out)
 *     {
 *         if (a->event == RA_MISS)
 *             *out = (struct ra_window){ .start = a->index, .size = 2 * a->nr };
 *     }
 *     const struct ra_policy folio_ra_policy = { .abi = RA_ABI, .name = "twice", .access = twice };
 *
 *     cc -shared -fPIC -I FOLIOFS -o twice.so twice.c
 *     foliofs -o readahead=./twice.so VOLUME MOUNTPOINT       (./twice.so:ARGS hands ARGS to init)
 *
 * The policy is asked on every miss and on every hit on a page that bears a mark; it answers with a
 * window, or leaves it empty, and then a miss reads what was asked for and no more:
 *
 *        start                      start + size
 *          |----------------|############|        size pages are read, those that are not cached;
 *                           ^ mark                the page async_size before the end gets
 *                                                 PG_readahead: using it asks the policy again, and
 *                                                 the next window is read while this one is in use
 *
 * A window may also be scattered: blocks of so many pages, stride pages from one to the next:
 *
 *          |--|      |--|      |##|      |##|     size 8, block 2, stride 5, async_size 4
 *
 * What the policy wants to remember of an open file lies in state, RA_STATE_BYTES that begin as
 * zeros. A file's calls come one at a time, from any thread; calls for different files come together,
 * so a policy has no variables of its own. It must not block or call back into FolioFS, but for
 * the functions in ra_access.
 */
#ifndef FOLIO_CACHE_READAHEAD_H
#define FOLIO_CACHE_READAHEAD_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* ---- for policies ---------------------------------------------------------------------------- */

#define RA_ABI          2u   /* changes whenever something from here to struct ra_policy does */
#define RA_STATE_BYTES  256u /* a policy's memory for one open file */
#define RA_CONFIG_BYTES 64u  /* what it made of its arguments */
#define RA_MOST_PAGES   256u /* a larger window is cut: one bio, 1 MiB */

struct address_space;

enum ra_event {
    RA_MISS, /* the page is not cached: somebody waits for it */
    RA_MARK, /* it is cached and bore a mark, which is gone now */
    RA_HIT,  /* it is cached: page faults, and policies with every_access, only */
};

enum ra_how {
    RA_READ,             /* read(2) and the like */
    RA_FAULT,            /* a page fault in a mapping, for reading */
    RA_FAULT_WRITE,      /* likewise, for writing */
    RA_FAULT_SEQUENTIAL, /* for reading, after MADV_SEQUENTIAL */
    RA_FAULT_RANDOM,     /* for reading, after MADV_RANDOM; marks stay, and are not told */
};

struct ra_access {
    enum ra_event event;
    enum ra_how how;
    uint32_t index;  /* the page */
    uint32_t nr;     /* pages wanted from there, 1 or more, perhaps beyond the end of the file; a
                            request is shown page by page, so index + nr stays the same within it */
    uint32_t most;   /* the largest window for this file now, pages; 0: none wanted */
    bool random;     /* POSIX_FADV_RANDOM */
    bool prefetched; /* read ahead earlier, and used for the first time (RA_MARK, RA_HIT) */
    uint64_t
        prev_index; /* the page in which the byte after the last read lies; UINT64_MAX: none yet */
    uint64_t file_pages;
    const void *config; /* RA_CONFIG_BYTES, 8-aligned: what init() left, or zeros */
    /* How many pages just before index are cached without a gap, at most max. */
    uint32_t (*history)(struct address_space *m, uint32_t index, uint32_t max);
    /* The first page at or after index that is not cached; index + max: none of the max pages. */
    uint32_t (*next_miss)(struct address_space *m, uint32_t index, uint32_t max);
    /* The folio of a cached page: its first page, and *nr pages. A page that is not cached is single.
     * Pages of a folio are evicted one by one. */
    uint32_t (*folio)(struct address_space *m, uint32_t index, uint32_t *nr);
    struct address_space *mapping; /* for these three */
};

struct ra_window {
    uint32_t start;      /* page index */
    uint32_t size;       /* pages, in all blocks; 0: no window */
    uint32_t async_size; /* pages before the end at which the mark goes; 0: no mark */
    uint32_t stride;     /* from the start of a block to that of the next; 0: one block */
    uint32_t block;      /* pages in a block, at most stride; unused without stride */
    /* The first in_folios pages from start belong together in folios, see ra_folio_order(). The mark
     * is on the whole folio it falls into, and using any page of that takes it off all of them. */
    uint32_t in_folios; /* 0: pages are single, as they always are with stride */
    uint32_t order;     /* a folio has at most 1 << order pages, 8 at most */
};

struct ra_policy {
    uint32_t abi; /* RA_ABI; stays the first member */
    const char *name;
    /* May answer with a window; out is all zeros. If a miss's window does not contain the page, the
     * pages asked for are read as well. */
    void (*access)(void *state, const struct ra_access *a, struct ra_window *out);
    /* Called once if there are arguments. config: RA_CONFIG_BYTES of zeros to fill.
     * Returns 0, or -errno with a message for people in error.   NULL: there are none. */
    int (*init)(void *config, const char *args, char *error, size_t n);
    bool every_access; /* wants RA_HIT of reads too: a lock and a call for each page read */
    uint64_t config[RA_CONFIG_BYTES / sizeof(uint64_t)]; /* filled by init() */
};

#define RA_POLICY_SYMBOL "folio_ra_policy" /* what a shared object exports */

/* Page i of a window, i below its size. */
static inline uint64_t ra_window_page(const struct ra_window *w, uint32_t i)
{
    if (w->stride == 0)
        return (uint64_t)w->start + i;
    return w->start + (uint64_t)(i / w->block) * w->stride + i % w->block;
}

/* The folio that begins at index and may not reach end: aligned, of 1 << the answer pages. Folios
 * follow each other so from a window's start (Linux: page_cache_ra_order). */
static inline uint32_t ra_folio_order(uint64_t index, uint32_t order, uint64_t end)
{
    while (order > 0 && (index % (1u << order) != 0 || index + (1u << order) > end))
        order--;
    return order;
}

/* ---- for the cache and its users ------------------------------------------------------------- */

struct page;

#define RA_DEFAULT_PAGES 32u /* 128 KiB, Linux's default read_ahead_kb */

extern const struct ra_policy ra_none, ra_linux, ra_fixed, ra_stride, ra_leap;

/* The policy called NAME or NAME:ARGS; or ./FILE.so or /DIR/FILE.so, again with or without :ARGS,
 * which is loaded. A policy stays valid until the process ends, for open files may use it; the same
 * spec gives the same policy.
 * Returns 0; -EINVAL, -ENOMEM with one line for people in error, n bytes. */
#define RA_ERROR_BYTES 240u
int ra_policy_open(const char *spec, const struct ra_policy **out, char *error, size_t n);

/* One open file's readahead (Linux: struct file_ra_state). Its lock is an innermost one: a policy's
 * looks into the tree take none. */
struct file_ra_state {                        /* (l) lock  (a) atomic  (c) constant */
    pthread_mutex_t lock;                     /* around the policy; never held over a sleep */
    _Atomic(const struct ra_policy *) policy; /*                              (l to change, a) */
    uint32_t base_pages;       /* the largest window without advice                     (l) */
    _Atomic uint32_t ra_pages; /* this file's: doubled by advice, shrunk by errors      (a) */
    _Atomic bool random;       /*                                                       (a) */
    _Atomic uint64_t prev_pos; /* the byte after the last read; UINT64_MAX: none yet    (a) */
    _Alignas(16) unsigned char state[RA_STATE_BYTES]; /* the policy's                     (l) */
};

/* policy: NULL reads nothing ahead. */
void file_ra_state_init(struct file_ra_state *ra, const struct ra_policy *policy,
                        uint32_t ra_pages);
/* From now on as file_ra_state_init() was told. Another policy begins anew, the same one goes on; the
 * advice given stays, and a window that errors have shrunk is whole again if its size changes. */
void file_ra_set(struct file_ra_state *ra, const struct ra_policy *policy, uint32_t ra_pages);
/* posix_fadvise(2): normal, twice the window, none. (FUSE does not forward it, nor madvise(2): a mount's
 * files have normal advice. This is for those who use the cache without a mount.) */
enum ra_advice { RA_ADVICE_NORMAL, RA_ADVICE_SEQUENTIAL, RA_ADVICE_RANDOM };
void file_ra_advise(struct file_ra_state *ra, enum ra_advice advice);
/* A page could not be read: read less ahead (Linux: shrink_readahead_size_eio). */
void file_ra_shrink(struct file_ra_state *ra);
/* A read ended before byte pos. */
static inline void file_ra_read_done(struct file_ra_state *ra, uint64_t pos)
{
    atomic_store_explicit(&ra->prev_pos, pos, memory_order_relaxed);
}
/* Does the policy want to hear of every hit? */
static inline bool file_ra_every_access(struct file_ra_state *ra)
{
    const struct ra_policy *policy = atomic_load_explicit(&ra->policy, memory_order_acquire);
    return policy != NULL && policy->every_access;
}

/* What a reader wants: nr pages from index. */
struct ra_request {
    uint32_t index, nr;
    enum ra_how how;
};

/* The mechanism: ask the policy, insert the window's missing pages, read them. The pages asked for
 * are read by the caller's own bio, the rest by the readahead worker. ra may be NULL for a miss.
 * Returns 0 or -ENOMEM (not even the first page). Context: no page locked. */
int page_cache_sync_ra(struct address_space *m, struct file_ra_state *ra,
                       const struct ra_request *rq);
/* The page at rq->index was found. If it is marked, the next window is read; otherwise the policy
 * hears of a hit (call it without a mark only for a fault, or if file_ra_every_access). */
void page_cache_async_ra(struct address_space *m, struct file_ra_state *ra, struct page *page,
                         const struct ra_request *rq);

#endif
