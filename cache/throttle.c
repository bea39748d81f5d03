/* throttle.c: slowing down who dirties pages (Linux: balance_dirty_pages in mm/page-writeback.c).
 *
 *   dirty pages   0 ........ background ........ free-run ........ setpoint ........ limit
 *                             flusher starts      writers are free   paced at the     wait
 *                                                 up to here         disk's speed
 *
 * Between the free-run ceiling, half-way from background to limit, and the limit, a writer sleeps
 * after each write for as long as the disk needs for what it dirtied, divided by a ratio that falls
 * smoothly from 2 at the free-run ceiling over 1 at the setpoint to 0 at the limit. So several
 * writers share the disk without knowing of each other, and none of them stands still for long.
 */
#include "cache/page_cache.h"

#define PAUSE_MIN_NS    (10u * 1000000u)  /* shorter sleeps are saved up */
#define PAUSE_MAX_NS    (200u * 1000000u) /* in one go */
#define SLEEP_MS        100u
#define RATIO_ONE       1024 /* fixed point */
#define BANDWIDTH_LEAST 256u /* pages per second: before anything was measured, or very slow */

/* Sleep this thread still owes. Pauses of a few microseconds cannot be slept one by one. */
static _Thread_local uint64_t owed_ns;

void note_bandwidth(struct page_cache *cache, uint64_t pages, uint64_t ns)
{
    if (pages < 64 || ns == 0)
        return; /* too little to tell */
    uint64_t now = pages * 1000000000u / ns;
    uint64_t old = atomic_load_explicit(&cache->bandwidth, memory_order_relaxed);
    atomic_store_explicit(&cache->bandwidth, old == 0 ? now : (old * 3 + now) / 4,
                          memory_order_relaxed);
}

struct dirty_state {
    int64_t dirty, background, freerun, limit;
};

static struct dirty_state dirty_state(struct page_cache *cache)
{
    int64_t background = (int64_t)dirty_limit(cache, atomic_load(&cache->dirty_background_ratio));
    struct dirty_state s = {
        .dirty = (int64_t)atomic_load_explicit(&cache->nr_dirty, memory_order_relaxed),
        .background = background,
        .limit = (int64_t)dirty_limit(cache, atomic_load(&cache->dirty_ratio)),
    };
    s.freerun = background < s.limit ? (background + s.limit) / 2 : s.limit;
    return s;
}

/* 1 + ((setpoint - dirty) / (limit - setpoint))^3, between 0 and 2, in RATIO_ONEs (Linux:
 * pos_ratio_polynom). */
static int64_t position_ratio(const struct dirty_state *s)
{
    int64_t setpoint = (s->freerun + s->limit) / 2, span = s->limit - setpoint;
    if (s->dirty >= s->limit || span <= 0)
        return 0;
    int64_t x = (setpoint - s->dirty) * RATIO_ONE / span;
    int64_t ratio = RATIO_ONE + x * x / RATIO_ONE * x / RATIO_ONE;
    return ratio < 0 ? 0 : ratio > 2 * RATIO_ONE ? 2 * RATIO_ONE : ratio;
}

/* How long the disk needs for nr pages at the rate this position allows. */
static uint64_t pause_for(struct page_cache *cache, const struct dirty_state *s, uint32_t nr)
{
    uint64_t bandwidth = atomic_load_explicit(&cache->bandwidth, memory_order_relaxed);
    uint64_t ratio = (uint64_t)position_ratio(s);
    if (bandwidth < BANDWIDTH_LEAST)
        bandwidth = BANDWIDTH_LEAST;
    uint64_t rate = bandwidth * ratio / RATIO_ONE;
    uint64_t ns = rate > 0 ? (uint64_t)nr * 1000000000u / rate : PAUSE_MAX_NS;
    return ns < PAUSE_MAX_NS ? ns : PAUSE_MAX_NS;
}

/* Sleep until the time is over or there is nothing to sleep for any more. */
static void sleep_until(struct page_cache *cache, uint64_t until)
{
    uint64_t now;
    while ((now = clock_now(cache->clock)) < until) {
        uint32_t seen = atomic_load(&cache->progress);
        struct dirty_state s = dirty_state(cache);
        if (s.dirty <= s.freerun || atomic_load(&cache->writeback_failing))
            break;
        uint64_t ms = (until - now) / 1000000u + 1;
        cache_wait_progress(cache, seen, ms < SLEEP_MS ? (unsigned)ms : SLEEP_MS);
    }
}

/* Nobody goes on above the limit, however little it dirtied. */
static void wait_below_limit(struct page_cache *cache)
{
    for (;;) {
        uint32_t seen = atomic_load(&cache->progress);
        struct dirty_state s = dirty_state(cache);
        if (s.dirty <= s.limit || atomic_load(&cache->writeback_failing))
            break;
        wakeup_flusher(cache);
        cache_wait_progress(cache, seen, SLEEP_MS);
    }
}

/* Above the background limit the flusher works.   Returns: are we? */
static bool start_background(struct page_cache *cache, const struct dirty_state *s)
{
    bool above = s->dirty > s->background;
    if (above && !atomic_load_explicit(&cache->want_writeback, memory_order_relaxed))
        wakeup_flusher(cache);
    return above;
}

void balance_dirty_pages_ratelimited(struct page_cache *cache, uint32_t nr_dirtied)
{
    struct dirty_state s = dirty_state(cache);
    if (!start_background(cache, &s)) {
        owed_ns = 0;
        return;
    }
    if (s.dirty <= s.freerun)
        return;
    owed_ns += pause_for(cache, &s, nr_dirtied);
    if (owed_ns < PAUSE_MIN_NS && s.dirty <= s.limit)
        return;
    uint64_t start = clock_now(cache->clock);
    count_add(&cache->count.throttled, 1);
    sleep_until(cache, start + owed_ns);
    wait_below_limit(cache);
    owed_ns = 0;
    count_add(&cache->count.throttled_ns, clock_now(cache->clock) - start);
}

bool dirty_throttle_due(struct page_cache *cache)
{
    struct dirty_state s = dirty_state(cache);
    (void)start_background(cache, &s);
    return s.dirty >= s.freerun;
}

unsigned dirty_room(struct page_cache *cache)
{
    struct dirty_state s = dirty_state(cache);
    int64_t room = s.freerun - s.dirty, few = s.background / 4;
    return room <= 0 ? 0 : (unsigned)(room < few ? room : few);
}

void balance_dirty_pages(struct page_cache *cache)
{
    balance_dirty_pages_ratelimited(cache, 1);
}
