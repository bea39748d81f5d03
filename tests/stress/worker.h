/* worker.h: drawing operations and doing them. */
#ifndef FOLIO_STRESS_WORKER_H
#define FOLIO_STRESS_WORKER_H

#include "tests/stress/oracle.h"

/* Make ready, and release.   0 or -errno. */
int worker_init(struct worker *w, const struct options *o, struct shared *sh,
                const struct doors *doors, unsigned id, uint64_t round);
void worker_free(struct worker *w);
/* Until the shared stop, or the number of operations. */
void worker_run(struct worker *w);
/* The next number of the worker's sequence. */
uint64_t worker_draw(struct worker *w);

/* ---- for operations -------------------------------------------------------------------------- */

void file_lock_shared(struct worker *w, uint32_t slot, uint64_t r);
void file_lock_exclusive(struct worker *w, uint32_t slot);
void file_unlock(struct worker *w, uint32_t slot);
uint32_t file_cells(const struct worker *w, uint32_t slot); /* whole ones below its end */

/* Lock [first, first + nr), with room for a version more.   False: there is none, nothing locked. */
bool cells_lock(struct worker *w, uint32_t slot, uint32_t first, uint32_t nr);
void cells_unlock(struct worker *w, uint32_t slot, uint32_t first, uint32_t nr);
/* Begin a fresh store of each, and put its bytes into w->buffer. */
void cells_begin_store(struct worker *w, enum op op, uint32_t slot, uint32_t first, uint32_t nr);
/* Zeros are coming to the bytes [from, to) of the file. */
void cells_begin_zeros(struct worker *w, uint32_t slot, uint64_t from, uint64_t to);
/* They were overwritten as a whole, or not. */
void cells_end(struct worker *w, uint32_t slot, uint32_t first, uint32_t nr, enum outcome outcome);
/* The same for the cells that [from, to) touches. */
void cells_end_zeros(struct worker *w, uint32_t slot, uint64_t from, uint64_t to,
                     enum outcome outcome);
/* Context: the file exclusively. False: no room (an error that does not go away). */
bool file_has_room(struct worker *w, uint32_t slot);
struct version version_new(struct worker *w, enum op op, uint32_t slot, uint32_t cell,
                           uint64_t seq);

/* Unless it was left out, or the filesystem does not do what races check. */
bool race_allowed(const struct worker *w);
/* Let others race in the pages [first, last] until race_end, which waits for them. */
void race_begin(struct worker *w, uint32_t slot, uint32_t first, uint32_t last);
void race_end(struct worker *w, uint32_t slot);

/* fsync (or its kin) of the slot's file, and note what is durable by it. */
enum outcome sync_file(struct worker *w, uint32_t slot, bool data_only);

/* ---- operations: see the enum ---------------------------------------------------------------- */

void op_store(struct worker *w, const struct draw *d);
void op_load(struct worker *w, const struct draw *d);
void op_write(struct worker *w, const struct draw *d);
void op_read(struct worker *w, const struct draw *d);
void op_fork(struct worker *w, const struct draw *d);
void op_extend(struct worker *w, const struct draw *d);
void op_truncate(struct worker *w, const struct draw *d);
void op_punch(struct worker *w, const struct draw *d); /* and OP_ZERO */
void op_tail(struct worker *w, const struct draw *d);
void op_copy(struct worker *w, const struct draw *d);
void op_replace(struct worker *w, const struct draw *d); /* OP_RENAME, OP_UNLINK */
void op_fsync(struct worker *w, const struct draw *d);
void op_msync(struct worker *w, const struct draw *d);
void op_madvise(struct worker *w, const struct draw *d);
void op_remap(struct worker *w, const struct draw *d);

/* Make the slot's first file. Nobody else is at work.   0 or -errno. */
int file_create(struct worker *w, uint32_t slot);

#endif
