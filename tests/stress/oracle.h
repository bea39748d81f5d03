/* oracle.h: what every cell must hold. See stress.h. */
#ifndef FOLIO_STRESS_ORACLE_H
#define FOLIO_STRESS_ORACLE_H

#include "tests/stress/stress.h"

/* Memory for all processes.   NULL: none. */
struct shared *shared_create(const struct options *o);
/* Nobody is at work: all locks are free again, whoever died with them. */
void shared_reset_locks(struct shared *sh);

struct cell *cell_at(struct shared *sh, uint32_t slot, uint32_t cell);
void cell_lock(struct cell *c);
void cell_unlock(struct cell *c);

/* The words of a version. */
void version_words(const struct version *v, uint64_t words[CELL_WORDS]);
bool version_is_zero(const struct version *v);
/* Without the bytes [from, to) of the cell, which reach one of its ends. */
struct version version_cut(struct version v, uint32_t from, uint32_t to);
/* The one it holds if that is certain (lo == ver). Context: the cell's lock. */
const struct version *cell_now(const struct cell *c);

/* The next version is about to come; then it is there, or may be, or nothing has been done.
 * Context: the cell's lock; room for it (cell_has_room). */
enum outcome { DONE, UNCERTAIN, NOT_DONE };
void cell_begin(struct cell *c, const struct version *v);
void cell_end(struct cell *c, enum outcome outcome);
/* May another version begin? With crashes, none that could come back is forgotten: sync first. */
bool cell_has_room(const struct cell *c, bool crash);

/* Could the cell have held these words while it went from version lo to hi?
 * whole: not a mix of several.   Returns 1 yes, 0 no, -1 overtaken: the history has gone by. */
int cell_allows(const struct cell *c, uint64_t lo, uint64_t hi, bool whole,
                const uint64_t words[CELL_WORDS]);
/* A quiet cell was seen to hold these words, allowed by [lo, hi]: that narrows what it may hold. */
void cell_settle(struct cell *c, uint64_t lo, uint64_t hi, const uint64_t words[CELL_WORDS]);

/* The size is about to become this / has become this. Context: see struct file. */
void size_begin(struct file *f, uint64_t size);
void size_end(struct file *f, uint64_t size);

#endif
