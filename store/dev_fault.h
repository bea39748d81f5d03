/* dev_fault.h: a device that fails on purpose, in front of another.
 *
 * Rules are asked in order; the first that applies to a block decides what happens to it:
 *
 *     FAULT_EIO, FAULT_ENOSPC,  the block fails with that error; nothing reaches the device below
 *     FAULT_ENOMEM
 *     FAULT_LOST                a write succeeds and the block stays as it was; a new one is zeros
 *     FAULT_TORN                a write reaches the device with its second half zeroed
 *
 * The last two are a disk that lies; they are for writes. Who commits asks dev_fault_commit(), which
 * the rules for commits answer. The same seed and the same bios in the same order give the same faults.
 */
#ifndef FOLIO_STORE_DEV_FAULT_H
#define FOLIO_STORE_DEV_FAULT_H

#include <stdbool.h>

#include "store/device.h"

enum fault_kind { FAULT_EIO, FAULT_ENOSPC, FAULT_ENOMEM, FAULT_LOST, FAULT_TORN };

struct fault_rule {
    enum fault_kind kind;
    bool reads, writes;   /* of blocks */
    bool commits;         /* of transactions, each of which counts as one block */
    uint64_t object;      /* 0: any */
    uint64_t label;       /* the caller's own */
    uint32_t first, last; /* indices */
    uint64_t after;       /* blocks that match and pass before it begins */
    uint64_t count;       /* blocks it hits before it ends; 0: no end */
    uint32_t per_million; /* of the blocks that match; 0: all */
};
#define FAULT_RULES_MAX 16u

struct fault_state {
    struct fault_rule rule;
    uint64_t seen, hit; /* blocks that matched, and those that it decided */
};

/* below: not owned.   NULL: no memory. */
struct device *dev_fault_create(struct device *below, uint64_t seed);
/* Any thread, at any time.   Returns 0 or -ENOSPC: too many rules. */
int dev_fault_add(struct device *dev, const struct fault_rule *rule);
void dev_fault_clear(struct device *dev);
uint64_t dev_fault_hits(struct device *dev); /* blocks that met a rule so far */
/* The rules as they are now.   Returns how many. */
unsigned dev_fault_list(struct device *dev, struct fault_state out[FAULT_RULES_MAX]);
/* Rules for the object from are from now on for the object to. */
void dev_fault_follow(struct device *dev, uint64_t from, uint64_t to);
/* What a commit that begins now shall fail with: -errno; 0: nothing. */
int dev_fault_commit(struct device *dev);

#endif
