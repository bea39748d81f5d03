#include "tests/sim_fiber.h"

#include <errno.h>
#include <stdbool.h>
#include <stdlib.h>

#define STACK_BYTES (256u * 1024u)

#if SIM_ASAN /* has to know which stack it is on */
#include <sanitizer/common_interface_defs.h>
#endif

/* Who is left and who begins, for the first moments on the other stack. */
static _Thread_local struct fiber *leaving, *entering;

static void switch_begin(struct fiber *from, struct fiber *to, bool ends)
{
    leaving = from;
    entering = to;
#if SIM_ASAN
    __sanitizer_start_switch_fiber(ends ? NULL : &from->asan_stack, to->asan_bottom,
                                   to->asan_bytes);
#else
    (void)ends;
#endif
}

/* On the new stack. What we learn about the one we left matters for the thread's own only. */
static void switch_end(struct fiber *self)
{
#if SIM_ASAN
    __sanitizer_finish_switch_fiber(self->asan_stack, &leaving->asan_bottom, &leaving->asan_bytes);
#else
    (void)self;
#endif
}

static void fiber_main(void)
{
    struct fiber *self = entering;
    switch_end(self);
    self->run(self->arg);
    switch_begin(self, self->back, true);
    setcontext(&self->back->context);
    abort();
}

int fiber_create(struct fiber *f, void (*run)(void *arg), void *arg, struct fiber *back)
{
    *f = (struct fiber){ .run = run, .arg = arg, .back = back, .stack_bytes = STACK_BYTES };
    f->stack = malloc(STACK_BYTES);
    if (f->stack == NULL)
        return -ENOMEM;
    f->asan_bottom = f->stack;
    f->asan_bytes = STACK_BYTES;
    getcontext(&f->context);
    f->context.uc_stack.ss_sp = f->stack;
    f->context.uc_stack.ss_size = STACK_BYTES;
    f->context.uc_link = NULL;
    makecontext(&f->context, fiber_main, 0);
    return 0;
}

void fiber_destroy(struct fiber *f)
{
    free(f->stack);
    f->stack = NULL;
}

void fiber_switch(struct fiber *from, struct fiber *to)
{
    switch_begin(from, to, false);
    swapcontext(&from->context, &to->context);
    switch_end(from);
}
