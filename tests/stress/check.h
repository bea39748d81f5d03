/* check.h: comparing what was found with what must be, and giving what is wrong a name:
 *
 *     lost         an older version, or zeros, wherever one looks
 *     stale        the same, but another door shows the right one
 *     torn         words of several versions, or of none
 *     misplaced    a good cell of another place or file
 *     resurrected  something where a truncation or a hole left zeros
 *
 * and, beside these, an operation that failed, or a file of the wrong size.
 */
#ifndef FOLIO_STRESS_CHECK_H
#define FOLIO_STRESS_CHECK_H

#include "tests/stress/oracle.h"

/* Words of one cell as found, through a door with this name, must be of a version in [lo, hi], or,
 * unless whole, a mix of these. Does not return if they are not. */
void check_words(struct worker *w, uint32_t slot, uint32_t cell, const char *via, uint64_t lo,
                 uint64_t hi, bool whole, const uint64_t words[CELL_WORDS]);
/* The same, of a cell that is locked. */
void check_locked(struct worker *w, uint32_t slot, uint32_t cell, const char *via,
                  const uint64_t words[CELL_WORDS]);
/* During a race: zeros, or something that was stored here. */
void check_place(struct worker *w, uint32_t slot, uint32_t cell, const char *via,
                 const uint64_t words[CELL_WORDS]);
/* Bytes from somewhere in the file, at multiples of 8, must be zeros. */
void check_zeros(struct worker *w, uint32_t slot, const char *why, uint64_t at, const char *bytes,
                 size_t len);
/* What the descriptor says is the file's size. */
void check_size(struct worker *w, uint32_t slot, int fd);

/* A system call gave err (-errno). Returns if that may be, or does not return. */
enum outcome check_outcome(struct worker *w, enum op op, const char *what, int err);
/* It is known to be wrong. */
_Noreturn void check_fail(struct worker *w, uint32_t slot, uint32_t cell, const char *format, ...)
    __attribute__((format(printf, 4, 5)));
/* The daemon is being killed: nothing that is seen now means anything. Wait for the end. */
_Noreturn void worker_park(void);

#endif
