/* ra_stride.c: requests at a constant distance from one another, several such streams interleaved.
 *
 * The starts of the last requests are kept, whatever stream they are of. If a request at index has
 * predecessors at index - d, index - 2d and index - 3d among them, it is of a stream with stride d, and
 * the next will be at index + d. The longer the stream, the more of it is read ahead:
 *
 *      ... index-3d   index-2d   index-d   [index]   index+d   index+2d ...
 *          |--|       |--|       |--|      |--|      |##|      |##|
 *
 * Backwards (d < 0) and sequentially (d = the size of a request) are strides like any other. What it
 * gives up: a random reader of few pages now and then looks like a stream.
 */
#include <stdlib.h>

#include "cache/readahead.h"

#define HISTORY 32u /* requests remembered: so many streams times FEWEST */
#define FEWEST  3u  /* predecessors that make a stream */

struct stride_state {
    uint32_t starts[HISTORY]; /* a ring */
    uint32_t count;           /* requests so far */
    uint64_t request_end;     /* of the request under way, page index */
    uint32_t last;            /* the page of it seen last */
};
_Static_assert(sizeof(struct stride_state) <= RA_STATE_BYTES, "fits");

/* The next page of the request under way? */
static bool same_request(const struct stride_state *s, const struct ra_access *a)
{
    return s->count > 0 && s->request_end == (uint64_t)a->index + a->nr &&
           (a->index == s->last + 1 || a->index == s->last);
}

static uint32_t remembered(const struct stride_state *s)
{
    return s->count < HISTORY ? s->count : HISTORY;
}

static bool was_requested(const struct stride_state *s, int64_t index)
{
    for (uint32_t i = 0; i < remembered(s); i++)
        if (s->starts[i] == index)
            return true;
    return false;
}

/* How many predecessors index has at stride d. */
static uint32_t count_predecessors(const struct stride_state *s, uint32_t index, int64_t d)
{
    uint32_t n = 0;
    while (n < HISTORY && was_requested(s, (int64_t)index - (int64_t)(n + 1) * d))
        n++;
    return n;
}

/* The stride with most predecessors, the latest request's first.   0: none. */
static int64_t find_stride(const struct stride_state *s, uint32_t index, uint32_t *predecessors)
{
    int64_t best = 0;
    *predecessors = FEWEST - 1;
    for (uint32_t i = 1; i <= remembered(s); i++) {
        int64_t d = (int64_t)index - s->starts[(s->count - i) % HISTORY];
        uint32_t n = d != 0 ? count_predecessors(s, index, d) : 0;
        if (n > *predecessors) {
            *predecessors = n;
            best = d;
        }
    }
    return best;
}

static bool is_cached(const struct ra_access *a, uint32_t index)
{
    return a->next_miss(a->mapping, index, 1) != index;
}

/* Blocks of the stream after index that lie in the file, at most max; *cached: the first so many. */
static uint32_t blocks_ahead(const struct ra_access *a, int64_t d, uint32_t max, uint32_t *cached)
{
    uint32_t n = 0;
    *cached = 0;
    for (int64_t at = a->index + d; n < max && at >= 0 && (uint64_t)at < a->file_pages; at += d) {
        if (*cached == n && is_cached(a, (uint32_t)at))
            ++*cached;
        n++;
    }
    return n;
}

static void read_stream(const struct ra_access *a, int64_t d, uint32_t predecessors,
                        struct ra_window *out)
{
    uint32_t stride = (uint32_t)llabs(d), block = a->nr < stride ? a->nr : stride;
    uint32_t most = a->most / block > 0 ? a->most / block : 1, depth = 2 * predecessors, cached;
    uint32_t blocks = blocks_ahead(a, d, depth < most ? depth : most, &cached);
    if (cached > 0 && cached >= blocks / 2)
        return; /* enough for now: rather half as often twice as much */
    blocks -= cached;
    int64_t from = a->index + d * (d > 0 ? cached + 1 : cached + blocks);
    *out = (struct ra_window){
        .start = (uint32_t)from, .size = blocks * block, .stride = stride, .block = block
    };
}

static void stride_access(void *state, const struct ra_access *a, struct ra_window *out)
{
    struct stride_state *s = state;
    bool same = same_request(s, a);
    uint32_t predecessors;
    s->request_end = (uint64_t)a->index + a->nr;
    s->last = a->index;
    if (same || a->random || a->how == RA_FAULT_RANDOM || a->most == 0)
        return;
    int64_t d = find_stride(s, a->index, &predecessors);
    s->starts[s->count++ % HISTORY] = a->index;
    if (d != 0)
        read_stream(a, d, predecessors, out);
}

const struct ra_policy ra_stride = {
    .abi = RA_ABI, .name = "stride", .access = stride_access, .every_access = true
};
