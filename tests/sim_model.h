/* sim_model.h: what a file must look like, whoever looks and whenever.
 *
 * A file is units of half a page. A write, truncation or punch gives each of its units the next
 * version when it begins, and marks it done when it returns without error; its bytes say which unit
 * of which file they are and which version:
 *
 *      version    0     1     2     3     4     5
 *                 |-----|-----|-----|-----|-----|
 *                    on_disk    done  floor     started
 *
 *   floor     nobody who looks from now on may see an older one: it is done, or somebody saw it
 *   on_disk   nor may a crash: a writeback pass that began when it was done has succeeded
 *   started   nobody may see a newer one
 *
 * Zeros are the version that the last truncation or punch made, or version 0. What an operation
 * that failed has started may be seen or not; once seen, it stays.
 */
#ifndef FOLIO_TESTS_SIM_MODEL_H
#define FOLIO_TESTS_SIM_MODEL_H

#include <stdbool.h>
#include <stdint.h>

#define UNIT_BYTES 2048u

struct unit {
    uint32_t started, done, floor, on_disk;
    uint32_t zero; /* the last version that is zeros */
    uint32_t
        extended; /* the version that made the file reach so far; 0: none, or it was cut since */
};

struct model {
    uint32_t id; /* of the file, in every unit's bytes */
    uint32_t nr_units;
    struct unit *units;
    uint64_t size;   /* bytes, when nothing is under way */
    uint64_t *sizes; /* every size that an operation set out to reach */
    uint32_t nr_sizes, max_sizes;
    bool resizing; /* the last of them is under way */
};

/* What a reader knows when it begins. */
struct model_view {
    uint32_t first, count; /* units */
    uint32_t *floor;       /* of each, when it began */
    uint64_t size;
    uint32_t sizes_from;
};

bool model_init(struct model *m, uint32_t id, uint32_t nr_units);
void model_destroy(struct model *m);

/* One operation at a time: units [first, end). */
void model_write_begin(struct model *m, uint32_t first, uint32_t end, void *buf);
void model_zero_begin(struct model *m, uint32_t first, uint32_t end);
void model_done(struct model *m, uint32_t first, uint32_t end);
/* The blocks of these units are gone from the disk. */
void model_discarded(struct model *m, uint32_t first, uint32_t end);
/* What was done of every unit when a pass began; and it is on the disk now, unless it is being cut
 * off meanwhile. */
void model_all_done(const struct model *m, uint32_t *done);
void model_synced(struct model *m, const uint32_t *done);
void model_size_begin(struct model *m, uint64_t size);
void model_size_end(struct model *m, uint64_t size);

/* floor: room for count. */
void model_look(const struct model *m, struct model_view *v, uint64_t size);
/* One unit's bytes: 0 or what is wrong with them. seen: their version; zeros: 0. */
const char *model_judge(const struct model *m, uint32_t unit, const void *bytes, uint32_t oldest,
                        uint32_t *seen);
/* n bytes were read, in whole units. partial: there may be fewer without a reason. */
const char *model_judge_read(struct model *m, const struct model_view *v, const uint8_t *bytes,
                             uint64_t n, bool partial, uint32_t *unit);

#endif
