/* sim_draw.c: the seed draws all options. */
#include <inttypes.h>
#include <stdio.h>

#include "tests/sim_world.h"

static uint32_t one_of(struct sched *s, const uint32_t *choices, uint32_t n)
{
    return choices[sched_random(s, n)];
}
#define ONE_OF(s, ...) \
    one_of(s, (const uint32_t[]){ __VA_ARGS__ }, sizeof((uint32_t[]){ __VA_ARGS__ }) / 4)

#define SHADOW_FRAMES 128u /* the cache remembers what it evicted, and the ring has room to spare */

static void draw_cache(struct sched *s, struct sim_options *o)
{
    static const struct ra_policy *const policies[] = { &ra_linux, &ra_linux,  &ra_none,
                                                        &ra_fixed, &ra_stride, &ra_leap };
    o->pages = CACHE_MIN_PAGES + ONE_OF(s, 0, 0, 0, 1, 1, 4, 16, 48);
    o->max_pages = o->pages + sched_random(s, 16);
    o->cache = (struct cache_options){
        .cache_bytes = (uint64_t)o->pages << PAGE_SHIFT,
        /* Few frames: no shadows. From 64 on, they can fill the ring. */
        .max_bytes = (uint64_t)(sched_chance(s, 1, 3) ? o->max_pages : SHADOW_FRAMES) << PAGE_SHIFT,
        .reclaim = sched_chance(s, 1, 2) ? "lru2q" : "s3fifo",
        .dirty_ratio = ONE_OF(s, 1, 5, 20, 50, 95),
        .dirty_expire_ms = ONE_OF(s, 1, 50, 3000, 30000),
        .dirty_writeback_ms = ONE_OF(s, 5, 100, 5000),
        .fault_around = ONE_OF(s, 0, 1, 2, FAULT_AROUND_MOST),
        .stepped = true,
    };
    o->cache.dirty_background_ratio = 1 + sched_random(s, o->cache.dirty_ratio);
    o->ra_pages = ONE_OF(s, 0, 2, 4, 8, 32);
    o->ra_policy = policies[sched_random(s, sizeof policies / sizeof policies[0])];
}

static void draw_store(struct sched *s, struct sim_options *o)
{
    static const struct latency_model random_model = { .name = "drawn" };
    const struct latency_model *const models[] = { &latency_hdd, &latency_ssd, &latency_nvme,
                                                   &random_model };
    o->latency = *models[sched_random(s, 4)];
    if (o->latency.lanes == 0) {
        o->latency.seek_ns = sched_random(s, 1000000);
        o->latency.access_ns = sched_random(s, 100000);
        o->latency.block_ns = sched_random(s, 100000);
        o->latency.lanes = 1 + sched_random(s, 4);
    }
    o->inline_device = sched_chance(s, 1, 5);
    o->fault_per_million = ONE_OF(s, 0, 0, 10000, 100000, 300000);
    o->fault_every = ONE_OF(s, 300, 1000, 5000);
    o->reserve_fails = ONE_OF(s, 0, 0, 0, 20);
    o->protect_fails = ONE_OF(s, 0, 50);
    o->vma_busy = ONE_OF(s, 0, 20, 300);
    o->late_discard = sched_chance(s, 1, 2);
}

static void draw_load(struct sched *s, struct sim_options *o)
{
    static const uint8_t usual[OPS] = {
        [OP_READ] = 12,     [OP_GET_PAGES] = 4,  [OP_WRITE] = 12,   [OP_TRUNCATE] = 2,
        [OP_GROW] = 1,      [OP_PUNCH] = 2,      [OP_ALLOCATE] = 1, [OP_SYNC_ALL] = 2,
        [OP_SYNC_NONE] = 2, [OP_SYNC_CACHE] = 1, [OP_DROP] = 1,     [OP_INVALIDATE] = 2,
        [OP_RESIZE] = 1,    [OP_HOLD] = 2,       [OP_SCRIBBLE] = 2, [OP_LOAD] = 6,
        [OP_STORE] = 6,     [OP_POISON] = 1
    };
    o->files = 1 + sched_random(s, FILES_MAX);
    o->file_pages = ONE_OF(s, 2, 4, 8, 24, FILE_PAGES_MAX);
    o->workers = 2 + sched_random(s, WORKERS_MAX - 1);
    bool few = sched_chance(s, 1, 2); /* kinds of operations, and those often */
    for (unsigned i = 0; i < OPS; i++)
        o->weights[i] = usual[i] * (few ? ONE_OF(s, 0, 0, 0, 0, 8, 16) : ONE_OF(s, 0, 1, 1, 2, 8));
    o->weights[OP_READ]++;
    o->weights[OP_WRITE]++;
    o->whole_pages = sched_chance(s, 1, 4);
    o->write_pages = 1 + sched_random(s, READ_PAGES_MAX);
    o->flusher_alone = sched_chance(s, 1, 2);
}

static void draw_sched(struct sched *s, struct sched_options *o)
{
    o->yield_every = ONE_OF(s, 1, 2, 5, 20, 100, 0);
    o->spurious = ONE_OF(s, 0, 0, 20, 200);
    o->stall = ONE_OF(s, 0, 5, 50, 200);
    o->stall_steps = ONE_OF(s, 50, 500, 3000);
    o->step_ns = ONE_OF(s, 100, 10000, 1000000);
}

void sim_draw(struct sched *s, struct sim_options *o)
{
    *o = (struct sim_options){ 0 };
    draw_cache(s, o);
    draw_store(s, o);
    draw_load(s, o);
    draw_sched(s, &o->sched);
    o->cache.store_around = ONE_OF(s, 0, 0, 2, STORE_AROUND_MOST);
}

void sim_print_options(const struct sim_options *o)
{
    fprintf(
        stderr,
        "options: %u to %u pages of cache, %u files of %u pages, %u workers, writes of %u "
        "pages%s, readahead %s %u, reclaim %s, dirty %u/%u %% %u/%u ms, "
        "fault-around %u, store-around %u\n"
        "  device %s %" PRIu64 "+%" PRIu64 "+%" PRIu64 " ns, %u lanes; faults %u per million "
        "every %u steps, reserve %u, protect %u, busy %u per 1000%s%s\n"
        "  switch every %u places, spurious %u per 10000, stall %u per 1000 for %u, step %" PRIu64
        " ns\n  weights",
        o->pages, o->max_pages, o->files, o->file_pages, o->workers, o->write_pages,
        o->whole_pages ? " (whole)" : "", o->ra_policy->name, o->ra_pages, o->cache.reclaim,
        o->cache.dirty_background_ratio, o->cache.dirty_ratio, o->cache.dirty_expire_ms,
        o->cache.dirty_writeback_ms, o->cache.fault_around, o->cache.store_around,
        o->inline_device ? "inline" : o->latency.name, o->latency.seek_ns, o->latency.access_ns,
        o->latency.block_ns, o->latency.lanes, o->fault_per_million, o->fault_every,
        o->reserve_fails, o->protect_fails, o->vma_busy, o->late_discard ? ", late discard" : "",
        o->flusher_alone ? ", flusher alone" : "", o->sched.yield_every, o->sched.spurious,
        o->sched.stall, o->sched.stall_steps, o->sched.step_ns);
    for (unsigned i = 0; i < OPS; i++)
        fprintf(stderr, " %u", o->weights[i]);
    fprintf(stderr, "\n");
}
