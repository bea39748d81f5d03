/* ra_leap.c: the trend of the majority, after Maruf and Chowdhury, "Effectively Prefetching Remote
 * Memory with Leap", USENIX ATC 2020.
 *
 * The differences between the last pages used are kept. The trend is the difference that most of the
 * last few have, or, if none has the majority there, of the last twice as many, and so on: a few
 * stray accesses do not hide it. How far to go along it is what proved right the last time: one page
 * more than were used of those read ahead, rounded up to a power of two; but never less than half of
 * the time before, and nothing when nothing was used and the trend is not followed either.
 *
 * Unlike the paper's, it does not wait for a miss: the page read ahead farthest bears a mark, so the
 * next pages are on their way before they are missed.
 */
#include <stdlib.h>

#include "cache/readahead.h"

#define HISTORY 32u /* differences kept (the paper's H_size) */
#define FIRST   8u  /* of them looked at first (its H_size / N_split) */

struct leap_state {
    int32_t deltas[HISTORY]; /* a ring */
    uint32_t count;          /* differences so far */
    uint32_t last;           /* the page used last */
    bool begun;              /* there is one */
    int32_t trend;           /* the last that was found; 0: none yet */
    uint32_t window;         /* pages read ahead the last time */
    uint32_t hits;           /* of them used since */
};
_Static_assert(sizeof(struct leap_state) <= RA_STATE_BYTES, "fits");

/* The i-th difference, 0 the latest. */
static int32_t delta(const struct leap_state *s, uint32_t i)
{
    return s->deltas[(s->count - 1 - i) % HISTORY];
}

static void remember(struct leap_state *s, uint32_t index)
{
    int64_t d = (int64_t)index - s->last;
    if (s->begun && d != 0 && llabs(d) <= INT32_MAX)
        s->deltas[s->count++ % HISTORY] = (int32_t)d;
    s->last = index;
    s->begun = true;
}

/* What more than half of the last n differences are (Boyer and Moore).   0: nothing. */
static int32_t majority(const struct leap_state *s, uint32_t n)
{
    int32_t candidate = 0;
    uint32_t votes = 0, count = 0;
    for (uint32_t i = 0; i < n; i++) {
        if (votes == 0)
            candidate = delta(s, i);
        votes = delta(s, i) == candidate ? votes + 1 : votes - 1;
    }
    for (uint32_t i = 0; i < n; i++)
        count += delta(s, i) == candidate;
    return count > n / 2 ? candidate : 0;
}

/* The paper's FindTrend. */
static int32_t find_trend(const struct leap_state *s)
{
    int32_t trend = 0;
    uint32_t known = s->count < HISTORY ? s->count : HISTORY;
    for (uint32_t n = FIRST; trend == 0; n *= 2) {
        trend = majority(s, n < known ? n : known);
        if (n >= known)
            break;
    }
    return trend;
}

/* The paper's GetPrefetchWindowSize. */
static uint32_t window_size(const struct leap_state *s, uint32_t most)
{
    uint32_t size = s->count > 0 && s->trend != 0 && delta(s, 0) == s->trend;
    if (s->hits > 0)
        while (size < s->hits + 1)
            size = size > 0 ? size * 2 : 1;
    if (size < s->window / 2)
        size = s->window / 2;
    return size < most ? size : most;
}

/* n pages along the trend, the farthest marked. */
static void read_along(const struct ra_access *a, int32_t trend, uint32_t n, struct ra_window *out)
{
    int64_t from = a->index, stride = llabs(trend);
    if (trend == 1)
        from += a->nr - 1; /* up to there it is asked for anyway */
    if (trend < 0 && from / stride < n)
        n = (uint32_t)(from / stride);
    *out = (struct ra_window){
        .start = (uint32_t)(trend > 0 ? from + stride : from - stride * n),
        .size = n,
        .async_size = trend > 0 ? 1 : n,
        .stride = (uint32_t)stride,
        .block = 1,
    };
}

static void leap_access(void *state, const struct ra_access *a, struct ra_window *out)
{
    struct leap_state *s = state;
    s->hits += a->prefetched;
    remember(s, a->index);
    if (a->event == RA_HIT || a->random || a->how == RA_FAULT_RANDOM)
        return;
    int32_t trend = find_trend(s);
    if (trend != 0)
        s->trend = trend;
    s->window = window_size(s, a->most);
    s->hits = 0;
    if (s->window > 0 && s->trend != 0)
        read_along(a, s->trend, s->window, out);
}

const struct ra_policy ra_leap = {
    .abi = RA_ABI, .name = "leap", .access = leap_access, .every_access = true
};
