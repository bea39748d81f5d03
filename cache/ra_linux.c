/* ra_linux.c: on-demand readahead as Linux decides it (mm/readahead.c: ondemand_readahead, later
 * page_cache_sync_ra and page_cache_async_ra).
 *
 *   start of file, oversized request     a fresh window, its size from the request
 *   page after the window or its mark    the next window: 4 x while small, then 2 x, up to the most
 *   mark hit without a known window      a stream among others: find its end in the cache
 *   page after the previous one          a fresh window
 *   no window, but history before it     context readahead: history says how long the stream is
 *   anything else                        random: only what was asked for
 */
#include "cache/readahead.h"

#include <stdatomic.h>

static uint32_t min_u32(uint32_t a, uint32_t b)
{
    return a < b ? a : b;
}

static uint32_t roundup_pow2(uint32_t n)
{
    uint32_t p = 1;
    while (p < n)
        p <<= 1;
    return p;
}

/* The first window (Linux: get_init_ra_size). */
static uint32_t init_window(uint32_t request, uint32_t most)
{
    uint32_t size = roundup_pow2(request);
    if (size <= most / 32)
        return size * 4;
    if (size <= most / 4)
        return size * 2;
    return most;
}

/* The one after (Linux: get_next_ra_size). */
static uint32_t next_window(uint32_t size, uint32_t most)
{
    if (size < most / 16)
        return size * 4;
    if (size <= most / 2)
        return size * 2;
    return most;
}

static void set_window(struct file_ra_state *ra, uint32_t start, uint32_t size, uint32_t async_size)
{
    atomic_store_explicit(&ra->start, start, memory_order_relaxed);
    atomic_store_explicit(&ra->size, size, memory_order_relaxed);
    atomic_store_explicit(&ra->async_size, async_size, memory_order_relaxed);
}

static void fresh_window(struct file_ra_state *ra, uint32_t start, uint32_t request, uint32_t most)
{
    uint32_t size = init_window(request, most);
    set_window(ra, start, size, size > request ? size - request : size);
}

/* Where readahead stands, read once. */
struct position {
    uint32_t start, size, async_size, most;
    uint64_t prev;
};

static struct position position_of(const struct file_ra_state *ra, const struct ra_access *a)
{
    struct position p = {
        .start = atomic_load_explicit(&ra->start, memory_order_relaxed),
        .size = atomic_load_explicit(&ra->size, memory_order_relaxed),
        .async_size = atomic_load_explicit(&ra->async_size, memory_order_relaxed),
        .most = atomic_load_explicit(&ra->ra_pages, memory_order_relaxed),
        .prev = atomic_load_explicit(&ra->prev_index, memory_order_relaxed),
    };
    if (a->nr > p.most) /* a request larger than the window widens it for once */
        p.most = min_u32(a->nr, 256);
    return p;
}

static void ramp_up(struct file_ra_state *ra, const struct position *p)
{
    uint32_t size = next_window(p->size, p->most);
    set_window(ra, p->start + p->size, size, size);
}

/* A mark of a window that this open file no longer remembers: interleaved streams share it. */
static bool stream_of_mark(struct file_ra_state *ra, const struct ra_access *a,
                           const struct position *p)
{
    uint32_t start = a->next_miss(a->mapping, a->index + 1, p->most);
    if (start - a->index > p->most)
        return false;
    uint32_t size = next_window(start - a->index + a->nr, p->most);
    set_window(ra, start, size, size);
    return true;
}

/* Pages cached just before the miss: the tail of a stream (Linux: try_context_readahead). */
static bool context(struct file_ra_state *ra, const struct ra_access *a, const struct position *p)
{
    uint32_t size = a->history(a->mapping, a->index, p->most);
    if (size <= a->nr)
        return false;
    if (size >= a->index) /* cached from the start of the file: a long stream */
        size *= 2;
    size = min_u32(size + a->nr, p->most);
    set_window(ra, a->index, size, 1);
    return true;
}

static bool choose(struct file_ra_state *ra, const struct ra_access *a, const struct position *p)
{
    if (a->marker) {
        if (p->size > 0 && (uint64_t)a->index == (uint64_t)p->start + p->size - p->async_size) {
            ramp_up(ra, p);
            return true;
        }
        return stream_of_mark(ra, a, p);
    }
    if (a->index == 0 || a->nr > p->most) {
        fresh_window(ra, a->index, a->nr, p->most);
        return true;
    }
    if (p->size > 0 && (uint64_t)a->index == (uint64_t)p->start + p->size) {
        ramp_up(ra, p);
        return true;
    }
    if (p->prev != UINT64_MAX && a->index - p->prev <= 1) {
        fresh_window(ra, a->index, a->nr, p->most);
        return true;
    }
    return context(ra, a, p);
}

static void linux_access(struct file_ra_state *ra, const struct ra_access *a, struct ra_window *out)
{
    struct position p = position_of(ra, a);
    if (p.most == 0 || !choose(ra, a, &p)) {
        out->size = 0;
        return;
    }
    uint32_t size = atomic_load_explicit(&ra->size, memory_order_relaxed);
    uint32_t async_size = atomic_load_explicit(&ra->async_size, memory_order_relaxed);
    /* A fresh window that ends where the mark would be read at once: take the next one with it. */
    if (a->index == atomic_load_explicit(&ra->start, memory_order_relaxed) && size == async_size) {
        uint32_t more = next_window(size, p.most);
        async_size = more;
        size = min_u32(size + more, p.most);
        if (async_size >= size)
            async_size = size > 1 ? size - 1 : 1;
        set_window(ra, a->index, size, async_size);
    }
    *out = (struct ra_window){ .start = atomic_load_explicit(&ra->start, memory_order_relaxed),
                               .size = size,
                               .async_size = async_size };
}

const struct ra_policy ra_linux = { .name = "linux", .access = linux_access };
