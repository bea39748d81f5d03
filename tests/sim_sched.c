#include "tests/sim_sched.h"

#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static _Thread_local struct sched *here; /* for the wrapped mutexes and for signals */

struct sched *sched_here(void)
{
    return here;
}

/* ---- chance, history, failure ---------------------------------------------------------------- */

/* splitmix64 (Steele, Lea, Flood 2014) */
uint64_t sched_random64(struct sched *s)
{
    uint64_t z = (s->random += 0x9e3779b97f4a7c15u);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

uint32_t sched_random(struct sched *s, uint32_t below)
{
    return below == 0 ? 0 : (uint32_t)((sched_random64(s) >> 32) * below >> 32);
}

bool sched_chance(struct sched *s, uint32_t n, uint32_t of)
{
    return sched_random(s, of) < n;
}

static void hash_add(struct sched *s, uint64_t value)
{
    s->hash = (s->hash ^ value) * 0x9fb21c651e98df25u;
    s->hash ^= s->hash >> 28;
}

static const char *current_name(const struct sched *s)
{
    return s->current != NULL ? s->current->name : "-";
}

void sched_event(struct sched *s, const char *what, uint64_t a, uint64_t b, uint64_t c)
{
    struct event *e = &s->events[s->nr_events++ % EVENTS];
    *e = (struct event){
        .step = s->step, .task = current_name(s), .what = what, .args = { a, b, c }
    };
    for (const char *p = what; *p != '\0'; p++)
        hash_add(s, (uint8_t)*p);
    hash_add(s, s->step);
    hash_add(s, a);
    hash_add(s, b);
    hash_add(s, c);
}

static const char *const state_names[] = { [TASK_READY] = "ready",
                                           [TASK_WAITING] = "waiting",
                                           [TASK_SLEEPING] = "sleeping",
                                           [TASK_IDLE] = "idle",
                                           [TASK_DONE] = "done" };

static void print_task(struct sched *s, struct task *t)
{
    char word[80] = "";
    if (t->state == TASK_WAITING && s->describe_word != NULL)
        s->describe_word(s->arg, t->word, word, sizeof word);
    fprintf(stderr, "  %c %-8s %-8s %s(%" PRIu64 ", %" PRIu64 ", %" PRIu64 ") since step %" PRIu64,
            t == s->current ? '*' : ' ', t->name, state_names[t->state],
            t->op != NULL ? t->op : "-", t->op_args[0], t->op_args[1], t->op_args[2], t->op_step);
    if (t->state == TASK_WAITING)
        fprintf(stderr, "; since step %" PRIu64 " on %s, saw %#x, now %#x%s", t->since_step, word,
                t->seen, atomic_load(t->word), t->woken ? ", woken" : "");
    if (t->state == TASK_READY && t->stalled_until > s->step)
        fprintf(stderr, "; stalled");
    fprintf(stderr, "\n");
}

static void print_events(const struct sched *s)
{
    uint64_t first = s->nr_events > EVENTS ? s->nr_events - EVENTS : 0;
    for (uint64_t i = first; i < s->nr_events; i++) {
        const struct event *e = &s->events[i % EVENTS];
        fprintf(stderr, "  %8" PRIu64 "  %-8s %-20s %" PRIu64 " %" PRIu64 " %" PRIu64 "\n", e->step,
                e->task, e->what, e->args[0], e->args[1], e->args[2]);
    }
}

void sched_fail(struct sched *s, const char *format, ...)
{
    va_list ap;
    here = NULL; /* what we call now is not simulated */
    fprintf(stderr, "sim: seed %" PRIu64 ", step %" PRIu64 ", %s: ", s->seed, s->step,
            current_name(s));
    va_start(ap, format);
    vfprintf(stderr, format, ap); /* NOLINT(clang-analyzer-valist.Uninitialized): clang 14 errs */
    va_end(ap);
    fprintf(stderr, "\nagain: sim %" PRIu64 " %" PRIu64 "\n", s->seed, s->steps);
    fprintf(stderr, "last events (step, task, what, ...):\n");
    print_events(s);
    fprintf(stderr, "tasks:\n");
    for (unsigned i = 0; i < s->nr_tasks; i++)
        print_task(s, &s->tasks[i]);
    if (s->describe != NULL)
        s->describe(s->arg);
    fflush(NULL);
    _exit(1);
}

/* ---- leaving a task --------------------------------------------------------------------------- */

static void leave(struct task *t, enum task_state state)
{
    struct sched *s = t->sched;
    if (s->mutexes != 0)
        sched_fail(s, "a task sleeps with %u mutexes held", s->mutexes);
    t->state = state;
    t->since_ns = s->now_ns;
    t->since_step = s->step;
    fiber_switch(&t->fiber, &s->fiber);
}

static void draw_places(struct sched *s)
{
    s->places_left = 1 + sched_random(s, 2 * s->options.yield_every);
}

void sched_yield_now(struct task *t)
{
    struct sched *s = t->sched;
    if (sched_chance(s, s->options.stall, 1000))
        t->stalled_until = s->step + sched_random(s, s->options.stall_steps);
    leave(t, TASK_READY);
}

/* A place where another may come in between. */
static void place(struct sched *s)
{
    if (s->current == NULL || s->mutexes > 0 || s->undivided > 0 || s->options.yield_every == 0 ||
        --s->places_left > 0)
        return;
    draw_places(s);
    sched_yield_now(s->current);
}

void sched_sleep(struct task *t, uint64_t (*due)(void *arg), void *arg)
{
    t->due = due;
    t->due_arg = arg;
    leave(t, TASK_SLEEPING);
}

void sched_idle(struct task *t)
{
    leave(t, TASK_IDLE);
}

void sched_op(struct task *t, const char *op, uint64_t a, uint64_t b, uint64_t c)
{
    t->op = op;
    t->op_args[0] = a;
    t->op_args[1] = b;
    t->op_args[2] = c;
    t->op_step = t->sched->step;
    sched_event(t->sched, op, a, b, c);
}

static void hook_wait(void *arg, _Atomic uint32_t *word, uint32_t seen)
{
    struct sched *s = arg;
    struct task *t = s->current;
    if (t == NULL)
        sched_fail(s, "a sleep outside of any task");
    if (atomic_load(word) != seen) {
        place(s);
        return;
    }
    if (t->nowait)
        sched_fail(s, "a sleep in what was asked not to");
    t->word = word;
    t->seen = seen;
    t->woken = t->timed_out = false;
    leave(t, TASK_WAITING);
    t->word = NULL;
}

static void hook_wake(void *arg, _Atomic uint32_t *word)
{
    struct sched *s = arg;
    for (unsigned i = 0; i < s->nr_tasks; i++)
        if (s->tasks[i].state == TASK_WAITING && s->tasks[i].word == word)
            s->tasks[i].woken = true;
}

static void hook_yield(void *arg)
{
    place(arg);
}

int __real_pthread_mutex_lock(pthread_mutex_t *mutex);
int __real_pthread_mutex_trylock(pthread_mutex_t *mutex);
int __real_pthread_mutex_unlock(pthread_mutex_t *mutex);
int __wrap_pthread_mutex_lock(pthread_mutex_t *mutex);
int __wrap_pthread_mutex_trylock(pthread_mutex_t *mutex);
int __wrap_pthread_mutex_unlock(pthread_mutex_t *mutex);

int __wrap_pthread_mutex_lock(pthread_mutex_t *mutex)
{
    if (here != NULL) {
        place(here);
        here->mutexes++;
    }
    return __real_pthread_mutex_lock(mutex);
}

/* Somebody else may hold it: with threads, that is. */
int __wrap_pthread_mutex_trylock(pthread_mutex_t *mutex)
{
    if (here == NULL)
        return __real_pthread_mutex_trylock(mutex);
    place(here);
    if (here->current != NULL && sched_chance(here, 1, 8))
        return EBUSY;
    here->mutexes++;
    return __real_pthread_mutex_trylock(mutex);
}

int __wrap_pthread_mutex_unlock(pthread_mutex_t *mutex)
{
    int r = __real_pthread_mutex_unlock(mutex);
    if (here != NULL) {
        here->mutexes--;
        place(here);
    }
    return r;
}

/* ---- choosing ---------------------------------------------------------------------------------- */

static uint64_t due_of(const struct sched *s, const struct task *t)
{
    switch (t->state) {
    case TASK_READY:
        return 0;
    case TASK_WAITING:
        return t->woken ? 0 : t->word == s->timed_word ? t->since_ns + TIMED_WORD_NS : NEVER;
    case TASK_SLEEPING:
        return t->due(t->due_arg);
    case TASK_IDLE:
    case TASK_DONE:
        break;
    }
    return NEVER;
}

static struct task *pick(struct sched *s)
{
    struct task *able[TASKS_MAX];
    unsigned n = 0;
    for (unsigned i = 0; i < s->nr_tasks; i++) {
        struct task *t = &s->tasks[i];
        if (due_of(s, t) <= s->now_ns && (t->state != TASK_READY || t->stalled_until <= s->step))
            able[n++] = t;
    }
    return n == 0 ? NULL : able[sched_random(s, n)];
}

static bool end_stalls(struct sched *s)
{
    bool any = false;
    for (unsigned i = 0; i < s->nr_tasks; i++) {
        struct task *t = &s->tasks[i];
        any |= t->state == TASK_READY && t->stalled_until > s->step;
        t->stalled_until = 0;
    }
    return any;
}

static bool anybody_waits(const struct sched *s)
{
    for (unsigned i = 0; i < s->nr_tasks; i++)
        if (s->tasks[i].state == TASK_WAITING)
            return true;
    return false;
}

/* On to the next time at which something is due. */
static void jump(struct sched *s)
{
    uint64_t next = NEVER;
    for (unsigned i = 0; i < s->nr_tasks; i++) {
        uint64_t due = due_of(s, &s->tasks[i]);
        next = due < next ? due : next;
    }
    if (next == NEVER)
        sched_fail(s, "deadlock: nobody can ever run again");
    if (next > s->now_ns)
        s->now_ns = next;
}

static struct task *pick_or_jump(struct sched *s)
{
    struct task *t;
    while ((t = pick(s)) == NULL) {
        if (end_stalls(s))
            continue;
        jump(s);
        if (anybody_waits(s) && ++s->idle_jumps > IDLE_LIMIT)
            sched_fail(s, "deadlock: time passes and nobody gets anywhere");
    }
    return t;
}

/* A wake-up without a reason, which the contract of wait_on_word() allows. */
static void wake_somebody(struct sched *s)
{
    struct task *t = &s->tasks[sched_random(s, s->nr_tasks)];
    if (t->state == TASK_WAITING)
        t->woken = true;
}

static void run_task(struct sched *s, struct task *t)
{
    t->timed_out = t->state == TASK_WAITING && !t->woken;
    if (t->kind == TASK_WORK && !t->timed_out)
        s->idle_jumps = 0;
    t->state = TASK_READY;
    t->stalled_until = 0;
    s->current = t;
    s->switches++;
    hash_add(s, (uint64_t)(t - s->tasks));
    fiber_switch(&s->fiber, &t->fiber);
    s->current = NULL;
}

void sched_step(struct sched *s)
{
    s->step++;
    s->now_ns += 1 + sched_random64(s) % (2 * s->options.step_ns);
    if (sched_chance(s, s->options.spurious, 10000))
        wake_somebody(s);
    run_task(s, pick_or_jump(s));
}

/* ---- tasks --------------------------------------------------------------------------------------- */

bool sched_all_idle(const struct sched *s)
{
    for (unsigned i = 0; i < s->nr_tasks; i++) {
        const struct task *t = &s->tasks[i];
        bool rests = t->state == TASK_IDLE || t->state == TASK_DONE ||
                     (t->kind == TASK_BACKGROUND && t->state == TASK_SLEEPING);
        if (!rests)
            return false;
    }
    return true;
}

void sched_resume(struct sched *s)
{
    s->pause = false;
    for (unsigned i = 0; i < s->nr_tasks; i++)
        if (s->tasks[i].state == TASK_IDLE)
            s->tasks[i].state = TASK_READY;
}

static void task_main(void *arg)
{
    struct task *t = arg;
    t->run(t, t->arg);
    t->state = TASK_DONE;
}

void sched_spawn(struct sched *s, const char *name, enum task_kind kind,
                 void (*run)(struct task *task, void *arg), void *arg)
{
    if (s->nr_tasks == TASKS_MAX)
        sched_fail(s, "too many tasks");
    struct task *t = &s->tasks[s->nr_tasks++];
    *t = (struct task){ .sched = s, .kind = kind, .run = run, .arg = arg };
    snprintf(t->name, sizeof t->name, "%s", name);
    if (fiber_create(&t->fiber, task_main, t, &s->fiber) != 0)
        sched_fail(s, "no memory for a stack");
}

void sched_init(struct sched *s, uint64_t seed)
{
    memset(s, 0, sizeof *s);
    s->seed = seed;
    s->random = seed * 0xd1342543de82ef95u + 1;
    s->now_ns = 1000000000u;
    s->options = (struct sched_options){ .yield_every = 4, .step_ns = 1000 };
    s->places_left = 1;
    s->hooks =
        (struct wait_hooks){ .wait = hook_wait, .wake = hook_wake, .yield = hook_yield, .arg = s };
    here = s;
    wait_set_hooks(&s->hooks);
}

void sched_destroy(struct sched *s)
{
    for (unsigned i = 0; i < s->nr_tasks; i++)
        fiber_destroy(&s->tasks[i].fiber);
    wait_set_hooks(NULL);
    here = NULL;
}
