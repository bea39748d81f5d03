#include "cache/errseq.h"

#include <errno.h>

#define ERRNO_MASK 0xfffu
#define SEEN       0x1000u /* somebody has been told: the next error is another one */
#define COUNT_ONE  0x2000u

static unsigned gravity(int err)
{
    switch (err) {
    case 0:
        return 0;
    case -EAGAIN:
        return 1;
    case -EBUSY:
        return 2;
    case -ENOMEM:
        return 3;
    default:
        return 4;
    }
}

int worse_error(int first, int second)
{
    return gravity(second) > gravity(first) ? second : first;
}

static int error_of(uint32_t eseq)
{
    return -(int)(eseq & ERRNO_MASK);
}

void errseq_set(_Atomic uint32_t *eseq, int err)
{
    uint32_t old = atomic_load(eseq), new;
    do {
        uint32_t count = old & ~(ERRNO_MASK | SEEN);
        if (old & SEEN)
            new = (count + COUNT_ONE) | (uint32_t)-err;
        else
            new = count | (uint32_t)-worse_error(error_of(old), err);
    } while (!atomic_compare_exchange_weak(eseq, &old, new));
}

uint32_t errseq_sample(const _Atomic uint32_t *eseq)
{
    uint32_t now = atomic_load(eseq);
    return now & SEEN ? now : 0;
}

/* *since is read before *eseq, so it is never the newer one. */
int errseq_check_and_advance(_Atomic uint32_t *eseq, _Atomic uint32_t *since)
{
    uint32_t seen = atomic_load(since), now = atomic_load(eseq);
    while (now != seen) {
        uint32_t told = now | SEEN;
        if (!atomic_compare_exchange_weak(eseq, &now, told))
            continue;
        if (atomic_compare_exchange_strong(since, &seen, told))
            return error_of(told);
        now = atomic_load(eseq); /* somebody else was told */
    }
    return 0;
}
