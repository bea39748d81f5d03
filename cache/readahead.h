/* readahead.h: what to read before it is asked for; a policy is a small struct of functions.
 *
 * An experimenter writes one policy: a name and what to do on an access. It gets the access and the
 * open file's state, and answers with a window:
 *
 *        start                      start + size
 *          |----------------|############|        size pages are read;
 *                           ^ async mark          the page size - async_size gets PG_readahead:
 *                                                 touching it asks the policy again, and the next
 *                                                 window is read while this one is still being used
 */
#ifndef FOLIO_CACHE_READAHEAD_H
#define FOLIO_CACHE_READAHEAD_H

#include <stdbool.h>
#include <stdint.h>

struct address_space;
struct page;

struct ra_window {
    uint32_t start;      /* page index */
    uint32_t size;       /* pages; 0: read only what was asked for */
    uint32_t async_size; /* pages before the end at which the mark goes; 0: no mark */
};

/* One open file's memory (Linux: struct file_ra_state). Changed without a lock: two readers of one
 * descriptor may confuse the window, never the data. */
struct file_ra_state {
    const struct ra_policy *policy;
    _Atomic uint32_t start, size, async_size; /* the current window */
    _Atomic uint32_t ra_pages;                /* the largest window, pages */
    _Atomic uint64_t prev_index;              /* the last page read; UINT64_MAX: none yet */
};

struct ra_access {
    uint32_t index; /* the page asked for */
    uint32_t nr;    /* pages the request wants from there */
    bool marker;    /* it was a hit on PG_readahead (else: a miss) */
    uint64_t file_pages;
    /* pages cached, without a gap, just before index; looked up when called (Linux: count_history_pages) */
    uint32_t (*history)(struct address_space *m, uint32_t index, uint32_t max);
    /* the first page at or after index that is not cached, within max pages; index + max if none */
    uint32_t (*next_miss)(struct address_space *m, uint32_t index, uint32_t max);
    struct address_space *mapping;
};

struct ra_policy {
    const char *name;
    void (*access)(struct file_ra_state *ra, const struct ra_access *a, struct ra_window *out);
};

extern const struct ra_policy ra_none, ra_linux;
const struct ra_policy *ra_policy_find(const char *name); /* NULL: unknown */

#define RA_DEFAULT_PAGES 32u /* 128 KiB, Linux's default read_ahead_kb */

void file_ra_state_init(struct file_ra_state *ra, const struct ra_policy *policy,
                        uint32_t ra_pages);

/* The mechanism: ask the policy, insert the window's missing pages, read them. The pages asked for
 * are read by the caller's own bio, the rest by the readahead worker.
 * Returns 0 or -ENOMEM (not even the first page). Context: no page locked. */
int page_cache_sync_ra(struct address_space *m, struct file_ra_state *ra, uint32_t index,
                       uint32_t nr);
void page_cache_async_ra(struct address_space *m, struct file_ra_state *ra, struct page *page,
                         uint32_t index, uint32_t nr);

#endif
