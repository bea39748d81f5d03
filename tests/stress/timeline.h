/* timeline.h: what happened to a page lately. Every operation on few pages goes into the rings of
 * these pages when it ends, every other one into the ring of its file. */
#ifndef FOLIO_STRESS_TIMELINE_H
#define FOLIO_STRESS_TIMELINE_H

#include <stdio.h>

#include "tests/stress/stress.h"

/* What a worker is doing from now on; it ends with timeline_end, which records it. */
void timeline_begin(struct worker *w, enum op op, uint32_t slot, uint32_t first, uint32_t last);
/* arg, detail: as the operation likes; detail is a constant, or NULL. */
void timeline_end(struct worker *w, int result, uint64_t arg, const char *detail);

/* The events of the pages under a cell, of its file, and what is going on, oldest first. */
void timeline_print(FILE *to, struct shared *sh, uint32_t slot, uint32_t cell);
/* What every worker is doing. */
void timeline_print_now(FILE *to, struct shared *sh);

#endif
