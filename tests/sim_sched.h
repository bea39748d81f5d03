/* sim_sched.h: the scheduler of the simulation: one thread, many tasks, and a seed that decides.
 *
 * A task is a fiber that runs until it sleeps (every sleep of cache/ comes here, through
 * wait_set_hooks()) or reaches a place where another thread could come in between: cache_yield(), and
 * the taking and releasing of a mutex (the linker's --wrap brings those here). Then the scheduler
 * draws who goes on. A task is never left while it holds a mutex, so mutexes never wait.
 *
 *   READY      may run; a stalled one only when nobody else can, or after so many steps
 *   WAITING    sleeps on a word like on a futex: until it is woken, or, rarely, for no reason; on
 *              the timed word also until TIMED_WORD_NS have passed
 *   SLEEPING   until a time, which is asked for anew before each step
 *   IDLE       between two operations, until sched_resume()
 *
 * Time is virtual: it creeps with every step, and jumps when nobody can run. If that does not help
 * either, it is a deadlock. Everything drawn and everything that happened goes into a hash.
 */
#ifndef FOLIO_TESTS_SIM_SCHED_H
#define FOLIO_TESTS_SIM_SCHED_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "cache/wait.h"
#include "tests/sim_fiber.h"

#define TASKS_MAX     24u
#define EVENTS        50u
#define TIMED_WORD_NS 100000000u
#define IDLE_LIMIT    20000u /* jumps of the clock in a row without anybody's progress */
#define NEVER         UINT64_MAX

enum task_state { TASK_READY, TASK_WAITING, TASK_SLEEPING, TASK_IDLE, TASK_DONE };
enum task_kind { TASK_WORK, TASK_BACKGROUND };

struct sched;

struct task {
    struct fiber fiber;
    struct sched *sched;
    char name[24];
    enum task_kind kind;
    enum task_state state;
    void (*run)(struct task *task, void *arg);
    void *arg;
    _Atomic uint32_t *word; /* WAITING on it, while it is seen */
    uint32_t seen;
    bool woken, timed_out;
    bool nowait; /* it does something that must not sleep */
    uint64_t since_ns, since_step;
    uint64_t (*due)(void *arg); /* SLEEPING: when it may run */
    void *due_arg;
    uint64_t stalled_until; /* step */
    const char *op;         /* what it is doing, for people */
    uint64_t op_args[3];
    uint64_t op_step;
};

struct event {
    uint64_t step;
    const char *task, *what;
    uint64_t args[3];
};

struct sched_options {
    unsigned
        yield_every;   /* places passed between two switches, on average; 0: never switch there */
    unsigned spurious; /* per 10,000 steps: wake-ups without a reason */
    unsigned stall;    /* per 1,000 switches: the task stays away long */
    unsigned stall_steps; /* at most */
    uint64_t step_ns;     /* time a step takes, on average */
};

struct sched {
    struct sched_options options;
    uint64_t seed, random, hash;
    uint64_t step, now_ns, switches;
    uint64_t steps; /* the run was asked for, for people */
    uint64_t places_left;
    struct fiber fiber; /* the scheduler's own */
    struct task tasks[TASKS_MAX];
    unsigned nr_tasks;
    struct task *current; /* NULL: the scheduler itself runs */
    unsigned mutexes;     /* held by the current task */
    unsigned undivided;   /* it does something of the test's own: nobody comes in between */
    unsigned idle_jumps;
    bool stop;  /* tasks end when they can */
    bool pause; /* work tasks become idle when they can */
    _Atomic uint32_t *timed_word;
    struct wait_hooks hooks;
    struct event events[EVENTS];
    uint64_t nr_events;
    void *arg; /* for these two */
    void (*describe_word)(void *arg, const _Atomic uint32_t *word, char *text, unsigned size);
    void (*describe)(void *arg);
};

void sched_init(struct sched *s, uint64_t seed);
/* Every task is done. */
void sched_destroy(struct sched *s);
void sched_spawn(struct sched *s, const char *name, enum task_kind kind,
                 void (*run)(struct task *task, void *arg), void *arg);
/* Let one task run, up to the next place where another may. */
void sched_step(struct sched *s);
/* No task of this kind is neither idle nor done? */
bool sched_all_idle(const struct sched *s);
void sched_resume(struct sched *s);

/* ---- for tasks -------------------------------------------------------------------------------- */

void sched_yield_now(struct task *t);
void sched_sleep(struct task *t, uint64_t (*due)(void *arg), void *arg);
void sched_idle(struct task *t);
void sched_op(struct task *t, const char *op, uint64_t a, uint64_t b, uint64_t c);

/* ---- for everybody ---------------------------------------------------------------------------- */

uint64_t sched_random64(struct sched *s);
uint32_t sched_random(struct sched *s, uint32_t below); /* 0 when below is 0 */
bool sched_chance(struct sched *s, uint32_t n, uint32_t of);
void sched_event(struct sched *s, const char *what, uint64_t a, uint64_t b, uint64_t c);
/* Print everything known, and end the program with status 1. */
_Noreturn void sched_fail(struct sched *s, const char *format, ...)
    __attribute__((format(printf, 2, 3)));
/* The scheduler of this thread; for what cannot be handed one.   NULL: none. */
struct sched *sched_here(void);

#endif
