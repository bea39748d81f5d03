/* sim_fiber.h: a call stack of one's own, to be left in the middle and gone on with later. */
#ifndef FOLIO_TESTS_SIM_FIBER_H
#define FOLIO_TESTS_SIM_FIBER_H

#include <stddef.h>
#include <ucontext.h>

#if defined(__has_feature)
#define SIM_FEATURE(feature) __has_feature(feature)
#else
#define SIM_FEATURE(feature) 0
#endif
#if defined(__SANITIZE_ADDRESS__) || SIM_FEATURE(address_sanitizer)
#define SIM_ASAN 1
#else
#define SIM_ASAN 0
#endif

struct fiber {
    ucontext_t context;
    void *stack; /* NULL: the thread's own */
    size_t stack_bytes;
    void (*run)(void *arg);
    void *arg;
    struct fiber *back; /* who runs when run() has returned */
    void *asan_stack;   /* AddressSanitizer's, while we are switched away */
    const void *asan_bottom;
    size_t asan_bytes;
};

/* run(arg) starts at the first switch; when it returns, back goes on.   Returns 0 or -ENOMEM. */
int fiber_create(struct fiber *f, void (*run)(void *arg), void *arg, struct fiber *back);
void fiber_destroy(struct fiber *f);
/* Leave from, which is running, and go on with to. */
void fiber_switch(struct fiber *from, struct fiber *to);

#endif
