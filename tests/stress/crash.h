/* crash.h: killing the daemon while the load runs, and what must be there afterwards. */
#ifndef FOLIO_STRESS_CRASH_H
#define FOLIO_STRESS_CRASH_H

#include "tests/stress/stress.h"

/* "COMMAND WHAT" by sh.   Exits with 1 when it fails. */
void run_command(const char *command, const char *what);
/* Nobody is at work and the directory is back: every cell must hold what was durable or something
 * later, every size likewise. The oracle goes on from what was found. w: fresh. */
void crash_verify(struct worker *w);
/* Nobody is at work: everything must be as the oracle has it, by read and through every door. */
void verify_all(struct worker *w);

#endif
