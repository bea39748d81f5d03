/* sim SEED[-LAST] [STEPS [TIMES]]: the cache under a scheduler that a seed drives.
 *
 * No thread, no clock, no device that is not drawn: readers, writers, truncation, passes, the flusher,
 * reclaim, completions, errors and (looks at the disk that stand for) crashes in every order the seed
 * comes up with, and everything is checked against sim_model.h. Then the store heals: everybody must
 * get done, and everything to the disk. Each seed runs twice (TIMES), and must take the same course. */
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "tests/sim_world.h"

#define STEPS          20000u
#define QUIETS         6u       /* quiet moments in a run, about */
#define LIVENESS_STEPS 1000000u /* in which everybody must finish what he is doing */
#define SECONDS_MAX    30u      /* for one run, of real time: somebody runs in a circle */

/* Time goes faster and faster, so that what is tried again after a back-off is, though others are
 * never out of work: a store that is throttled may find its page cleaned, and dirties it anew. */
static void run_until(struct world *w, bool (*reached)(struct world *w), const char *what)
{
    uint64_t first = w->sched.step;
    while (!reached(w)) {
        uint64_t steps = w->sched.step - first;
        if (steps > LIVENESS_STEPS)
            sched_fail(&w->sched, "%s took more than %u steps", what, LIVENESS_STEPS);
        w->sched.now_ns += steps;
        sched_step(&w->sched);
        world_tick(w);
    }
}

static void quiet_moment(struct world *w)
{
    w->sched.pause = true;
    run_until(w, world_is_quiet, "finishing what is under way");
    check_quiet(w);
}

static void run_load(struct world *w, uint64_t steps)
{
    while (w->sched.step < steps) {
        sched_step(&w->sched);
        world_tick(w);
        if (sched_chance(&w->sched, 1, (uint32_t)(steps / QUIETS) + 1)) {
            quiet_moment(w);
            sched_resume(&w->sched);
        }
    }
}

static bool all_written(struct world *w)
{
    return atomic_load(&w->cache->nr_dirty) == 0 && world_is_quiet(w);
}

static void end_run(struct task *t, void *arg)
{
    struct world *w = arg;
    sched_op(t, "end", 0, 0, 0);
    int err = page_cache_sync(w->cache);
    if (err != 0)
        sched_fail(&w->sched, "the store is healthy, and syncing failed: %d", err);
    check_end(w);
}

static bool all_done(struct world *w)
{
    for (unsigned i = 0; i < w->sched.nr_tasks; i++)
        if (w->sched.tasks[i].state != TASK_DONE)
            return false;
    return true;
}

static void run_end(struct world *w)
{
    world_heal(w);
    quiet_moment(w);
    if (w->o.flusher_alone)
        run_until(w, all_written, "writing everything, by the flusher alone");
    sched_spawn(&w->sched, "end", TASK_WORK, end_run, w);
    run_until(w, world_is_quiet, "syncing and reading everything");
    check_quiet(w);
    w->sched.stop = true;
    sched_resume(&w->sched);
    run_until(w, all_done, "stopping");
}

struct outcome {
    uint64_t hash, steps, switches, ops, failed, short_of_memory, evicted, refaults, now_ns;
};

static struct outcome run(uint64_t seed, uint64_t steps)
{
    static struct world w;
    alarm(SECONDS_MAX);
    world_open(&w, seed);
    w.sched.steps = steps;
    run_load(&w, steps);
    run_end(&w);
    struct cache_stats stats;
    page_cache_stats(w.cache, &stats);
    struct outcome o = { .hash = w.sched.hash,
                         .steps = w.sched.step,
                         .switches = w.sched.switches,
                         .ops = w.ops,
                         .failed = w.failed,
                         .short_of_memory = w.short_of_memory,
                         .evicted = stats.reclaimed,
                         .refaults = stats.refaults,
                         .now_ns = w.sched.now_ns };
    world_close(&w);
    alarm(0);
    return o;
}

static void run_again(uint64_t seed, uint64_t steps, const struct outcome *a)
{
    struct outcome b = run(seed, steps);
    if (memcmp(a, &b, sizeof b) == 0)
        return;
    printf("seed %" PRIu64 " took another course the second time: trace %016" PRIx64 "\n", seed,
           b.hash);
    exit(1);
}

static void run_seed(uint64_t seed, uint64_t steps, uint64_t times)
{
    struct outcome a = run(seed, steps);
    printf("seed %" PRIu64 ": %" PRIu64 " steps, %" PRIu64 " operations, %" PRIu64
           " failed (%" PRIu64 " for want of memory), %" PRIu64 " pages evicted (%" PRIu64
           " were wanted again), %.3f s, trace %016" PRIx64 "\n",
           seed, a.steps, a.ops, a.failed, a.short_of_memory, a.evicted, a.refaults,
           (double)a.now_ns / 1e9, a.hash);
    for (uint64_t i = 1; i < times; i++)
        run_again(seed, steps, &a);
}

/* An assertion failed, or a run does not end. One thread, which caused the signal itself or runs in a
 * circle; and afterwards it ends. NOLINTBEGIN(bugprone-signal-handler,cert-sig30-c) */
static void on_signal(int number)
{
    struct sched *s = sched_here();
    if (s != NULL)
        sched_fail(s,
                   number == SIGALRM   ? "no end in %u s"
                   : number == SIGABRT ? "an assertion failed (see above), within %u s"
                                       : "a wild pointer, within %u s",
                   SECONDS_MAX);
    _exit(1);
}

/* NOLINTEND(bugprone-signal-handler,cert-sig30-c) */
int main(int argc, char **argv)
{
    if (argc < 2 || argc > 4) {
        fprintf(stderr, "usage: %s SEED[-LAST] [STEPS [TIMES]]\n", argv[0]);
        return 2;
    }
    char *rest;
    uint64_t first = strtoull(argv[1], &rest, 0);
    uint64_t last = *rest == '-' ? strtoull(rest + 1, NULL, 0) : first;
    uint64_t steps = argc > 2 ? strtoull(argv[2], NULL, 0) : STEPS;
    uint64_t times = argc > 3 ? strtoull(argv[3], NULL, 0) : 2;
    setvbuf(stdout, NULL, _IOLBF, 0); /* in order with stderr */
    signal(SIGABRT, on_signal);
#if !SIM_ASAN
    signal(SIGSEGV, on_signal);
#endif
    signal(SIGALRM, on_signal);
    for (uint64_t seed = first; seed <= last; seed++)
        run_seed(seed, steps, times);
    return 0;
}
