/* Errors that several are told of: each of them once. */
#include <criterion/criterion.h>
#include <errno.h>
#include <pthread.h>
#include <sched.h>

#include "cache/clock.h"
#include "cache/errseq.h"

Test(errseq, an_error_is_told_once_to_each_who_looks)
{
    _Atomic uint32_t errors = 0;
    _Atomic uint32_t one = errseq_sample(&errors), two = one;
    cr_assert_eq(errseq_check_and_advance(&errors, &one), 0);
    errseq_set(&errors, -EIO);
    cr_assert_eq(errseq_check_and_advance(&errors, &one), -EIO);
    cr_assert_eq(errseq_check_and_advance(&errors, &one), 0);
    cr_assert_eq(errseq_check_and_advance(&errors, &two), -EIO);
    errseq_set(&errors, -EIO);
    cr_assert_eq(errseq_check_and_advance(&errors, &two), -EIO);
    cr_assert_eq(errseq_check_and_advance(&errors, &one), -EIO);
    cr_assert_eq(errseq_check_and_advance(&errors, &two), 0);
}

Test(errseq, one_that_nobody_was_told_of_is_told_to_who_comes_later)
{
    _Atomic uint32_t errors = 0;
    errseq_set(&errors, -EIO);
    _Atomic uint32_t later = errseq_sample(&errors);
    cr_assert_eq(errseq_check_and_advance(&errors, &later), -EIO);
    _Atomic uint32_t last = errseq_sample(&errors);
    cr_assert_eq(errseq_check_and_advance(&errors, &last), 0);
}

Test(errseq, of_several_that_nobody_was_told_of_the_worst_is_told)
{
    static const int worse[] = { 0, -EAGAIN, -EBUSY, -ENOMEM, -EIO };
    for (unsigned i = 1; i < 5; i++) {
        for (unsigned j = 1; j < 5; j++) {
            _Atomic uint32_t errors = 0, since = 0;
            int want = worse[i > j ? i : j];
            cr_assert_eq(worse_error(worse[i], worse[j]), want);
            errseq_set(&errors, worse[i]);
            errseq_set(&errors, worse[j]);
            cr_assert_eq(errseq_check_and_advance(&errors, &since), want);
            cr_assert_eq(errseq_check_and_advance(&errors, &since), 0);
        }
    }
    cr_assert_eq(worse_error(-ENOSPC, -EIO), -ENOSPC, "the first of two that stay");
}

#define LOOKERS 3
#define LOOK_NS 2000000000u

static _Atomic uint32_t word, shared;
static _Atomic unsigned told;
static _Atomic bool stop;

static void *look(void *arg)
{
    (void)arg;
    while (!atomic_load(&stop))
        if (errseq_check_and_advance(&word, &shared) != 0)
            atomic_fetch_add(&told, 1);
    return NULL;
}

/* Threads in fsync on one open file. */
Test(errseq, who_looks_several_times_at_once_is_told_once, .timeout = 60)
{
    pthread_t threads[LOOKERS];
    for (unsigned i = 0; i < LOOKERS; i++)
        cr_assert_eq(pthread_create(&threads[i], NULL, look, NULL), 0);
    unsigned n = 0;
    uint64_t end = clock_now(&clock_monotonic) + LOOK_NS;
    for (; atomic_load(&told) == n && clock_now(&clock_monotonic) < end; n++) {
        errseq_set(&word, -EIO);
        while (atomic_load(&told) == n)
            sched_yield();
    }
    atomic_store(&stop, true);
    for (unsigned i = 0; i < LOOKERS; i++)
        pthread_join(threads[i], NULL);
    cr_assert_eq(atomic_load(&told), n, "%u errors, told %u times", n, atomic_load(&told));
}
