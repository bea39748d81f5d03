/* ra_linux.c: on-demand readahead as Linux 6.18 decides it (mm/readahead.c: page_cache_sync_ra and
 * page_cache_async_ra; mm/filemap.c: do_sync_mmap_readahead and do_async_mmap_readahead).
 *
 *   miss    POSIX_FADV_RANDOM                        only what was asked for
 *           start of file, oversized request, or
 *           the page where the last read ended,      a fresh window, its size from the request
 *           or the one after
 *           longer history before it than asked for  context readahead: the history, which a stream
 *                                                    among others left, says how long it is
 *           anything else                            random: only what was asked for, state kept
 *   mark    of the known window                      the next window: 4 x while small, then 2 x
 *           of another                               one of several streams: its end is where the
 *                                                    cached pages end; the next window from there
 *   fault   miss                                     read-around, unless faults have missed too often
 *           mark                                     as above, the request being a whole window
 *
 * The windows that marks start end at multiples of 4 pages, as on files without large folios. Windows
 * of more than RA_MOST_PAGES are cut, which Linux does not do: with read_ahead_kb up to 512 there are
 * none.
 *
 * linux:large_folios decides as Linux does for a file that may have large folios of any size
 * (page_cache_ra_order), although the pages here stay single. Folios grow with every window that a
 * mark starts, by 2 orders: 4, 16, 64 ... pages, at most the window; other windows have single pages.
 *
 *   - Windows that marks start end at multiples of their folios, as far as the largest window does.
 *   - The mark is on a whole folio. Using any page of it counts as using its first, but a fault counts
 *     as what it is, so only the folio's first page goes on with the known window.
 *   - The end of the file does not move the mark.
 *   - Where a folio meets cached pages, single pages go on from there; for a mark that is not set by
 *     then, the end of the file matters again.
 *   - Counting cached pages goes wrong in folios as it does in Linux, see ra_linux_folios.c.
 */
#include "cache/ra_linux_folios.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#define FAULTS_MISSED      100u /* more misses than hits than this: no read-around (MMAP_LOTSAMISS) */
#define FAULTS_MISSED_MOST (10 * FAULTS_MISSED)
#define ORDER_STEP         2u

struct linux_config {
    bool large_folios;
};

struct linux_state {
    uint32_t start, size, async_size; /* the current window */
    uint32_t order;                   /* its folios have at most 1 << order pages */
    uint32_t mmap_miss;               /* faults that missed, less those that hit */
};
_Static_assert(sizeof(struct linux_state) <= RA_STATE_BYTES, "fits");

static uint32_t min_u32(uint32_t a, uint32_t b)
{
    return a < b ? a : b;
}

static uint32_t max_u32(uint32_t a, uint32_t b)
{
    return a > b ? a : b;
}

static uint32_t roundup_pow2(uint32_t n)
{
    uint32_t p = 1;
    while (p < n)
        p <<= 1;
    return p;
}

/* The first window (Linux: get_init_ra_size); request is at most RA_MOST_PAGES or most. */
static uint32_t init_window(uint32_t request, uint32_t most)
{
    uint32_t size = request > most ? most : roundup_pow2(request);
    if (size <= most / 32)
        return size * 4;
    if (size <= most / 4)
        return size * 2;
    return most;
}

/* The one after a window of size pages (Linux: get_next_ra_size). */
static uint32_t next_window(uint32_t size, uint32_t most)
{
    if (size < most / 16)
        return size * 4;
    if (size <= most / 2)
        return size * 2;
    return most;
}

/* A request larger than the window widens it for once, up to what the device takes at a time
 * (Linux: ractl_max_pages and the bdi's io_pages). */
static uint32_t largest_window(const struct ra_access *a, uint32_t request)
{
    if (request > a->most && RA_MOST_PAGES > a->most)
        return min_u32(request, RA_MOST_PAGES);
    return a->most;
}

/* The next window: what is read of it, and what is remembered. */
static void set_window(struct linux_state *s, const struct ra_access *a, struct ra_window *out)
{
    const struct linux_config *c = a->config;
    *out = (struct ra_window){ .start = s->start, .size = s->size, .async_size = s->async_size };
    if (!c->large_folios) {
        s->order = 0;
        return;
    }
    while (s->order > 0 && 1u << s->order > s->size)
        s->order--;
    ra_linux_set_folios(a, s->order, out);
}

/* A window of single pages that has nothing to do with the one before. */
static void begin_window(struct linux_state *s, const struct ra_access *a, struct ra_window *out,
                         uint32_t start, uint32_t size, uint32_t async_size)
{
    s->start = start;
    s->size = size;
    s->async_size = async_size;
    s->order = 0;
    set_window(s, a, out);
}

/* ---- reads ----------------------------------------------------------------------------------- */

static void fresh_window(struct linux_state *s, const struct ra_access *a, uint32_t request,
                         uint32_t most, struct ra_window *out)
{
    uint32_t size = init_window(request, most);
    begin_window(s, a, out, a->index, size, size > request ? size - request : size / 2);
}

/* Pages cached just before the miss: the tail of a stream. As page_cache_prev_miss() has it, a
 * history of most pages counts one less, and only a shorter one can reach the start of the file. */
static void context(struct linux_state *s, const struct ra_access *a, uint32_t request,
                    uint32_t most, struct ra_window *out)
{
    const struct linux_config *c = a->config;
    uint32_t n =
        c->large_folios ? ra_linux_history(a, most) : a->history(a->mapping, a->index, most - 1);
    if (n <= request)
        return;
    if (n == a->index) /* cached from the start of the file: a long stream */
        n *= 2;
    begin_window(s, a, out, a->index, min_u32(n + request, most), 1);
}

/* A miss (Linux: page_cache_sync_ra). */
static void sync_window(struct linux_state *s, const struct ra_access *a, uint32_t request,
                        struct ra_window *out)
{
    uint32_t most = largest_window(a, request);
    *out = (struct ra_window){ .start = a->index, .size = a->most == 0 ? 1 : request };
    if (a->most == 0 || a->random)
        return;
    if (a->index == 0 || request > most || a->index - a->prev_index <= 1)
        fresh_window(s, a, request, most, out);
    else
        context(s, a, request, most, out);
}

/* A mark that this file's window does not explain: the stream goes on where its pages end. */
static bool find_stream(struct linux_state *s, const struct ra_access *a, uint32_t index,
                        uint32_t request, uint32_t most)
{
    const struct linux_config *c = a->config;
    uint32_t start = c->large_folios ? ra_linux_next_miss(a, index + 1, most)
                                     : a->next_miss(a->mapping, index + 1, most);
    if (start - index > most)
        return false;
    s->start = start;
    s->size = next_window(start - index + request, most);
    return true;
}

/* A mark (Linux: page_cache_async_ra). A read's index is that of the folio. */
static void async_window(struct linux_state *s, const struct ra_access *a, struct ra_window *out)
{
    if (a->most == 0)
        return;
    uint32_t nr, index = a->folio(a->mapping, a->index, &nr);
    if (a->how != RA_READ)
        index = a->index;
    uint32_t request = a->how == RA_READ ? a->nr + (a->index - index) : a->most;
    uint32_t most = largest_window(a, request);
    uint32_t expected = s->start + s->size - s->async_size;
    if (index == expected - expected % nr) {
        s->start += s->size;
        s->size = max_u32(s->size, next_window(s->size, most));
    } else if (!find_stream(s, a, index, request, most)) {
        return;
    }
    s->order += ORDER_STEP;
    uint32_t align = min_u32(1u << s->order, most & -most);
    uint32_t end = s->start + s->size, aligned = end - end % align;
    if (aligned > s->start)
        s->size -= end - aligned;
    s->async_size = s->size;
    set_window(s, a, out);
}

/* ---- page faults ----------------------------------------------------------------------------- */

static void fault_missed(struct linux_state *s, const struct ra_access *a, struct ra_window *out)
{
    if (a->how == RA_FAULT_RANDOM || a->most == 0)
        return;
    if (a->how == RA_FAULT_SEQUENTIAL) {
        sync_window(s, a, a->most, out);
        return;
    }
    if (s->mmap_miss < FAULTS_MISSED_MOST)
        s->mmap_miss++;
    if (s->mmap_miss > FAULTS_MISSED)
        return;
    uint32_t before = min_u32(a->index, a->most / 2);
    begin_window(s, a, out, a->index - before, a->most, a->most / 4);
}

/* Is the page of a miss the one that the window marks? The end of the file moves marks. */
static bool marks_itself(const struct ra_access *a, const struct ra_window *w)
{
    uint64_t end = (uint64_t)w->start + w->size;
    if (end > a->file_pages)
        end = a->file_pages;
    return w->async_size > 0 && a->index + (uint64_t)w->async_size == end;
}

/* Linux counts a hit when filemap_fault() finds the page, and when filemap_map_pages() maps it, which
 * it does not do with marked pages. The latter is what ends a read fault, also one that missed, for
 * that is retried; so the misses of reads cancel out, and those of writes add up. Meeting a mark means
 * a retry too: two hits. */
static void count_hits(struct linux_state *s, const struct ra_access *a, const struct ra_window *w)
{
    uint32_t hits = 1;
    if (a->event == RA_MARK)
        hits = 2;
    else if (a->event == RA_MISS && (a->how == RA_FAULT_WRITE || marks_itself(a, w)))
        hits = 0;
    s->mmap_miss -= min_u32(s->mmap_miss, hits);
}

static void linux_access(void *state, const struct ra_access *a, struct ra_window *out)
{
    struct linux_state *s = state;
    switch (a->event) {
    case RA_MISS:
        if (a->how == RA_READ)
            sync_window(s, a, a->nr, out);
        else
            fault_missed(s, a, out);
        break;
    case RA_MARK:
        async_window(s, a, out);
        break;
    case RA_HIT:
        break;
    }
    if (a->how != RA_READ)
        count_hits(s, a, out);
}

static int linux_init(void *config, const char *args, char *error, size_t n)
{
    struct linux_config *c = config;
    if (strcmp(args, "large_folios") != 0) {
        snprintf(error, n, "linux:%.64s: its only argument is large_folios", args);
        return -EINVAL;
    }
    c->large_folios = true;
    return 0;
}

const struct ra_policy ra_linux = {
    .abi = RA_ABI, .name = "linux", .access = linux_access, .init = linux_init
};
