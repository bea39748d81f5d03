/* crash.h: killing the daemon while the load runs, and what must be there afterwards. */
#ifndef FOLIO_STRESS_CRASH_H
#define FOLIO_STRESS_CRASH_H

#include "tests/stress/stress.h"

#define PROBE_NAME "alive" /* a file that may be left by a crash */

/* "COMMAND WHAT" by sh.   False: it has failed, or hangs, which was said. */
bool run_command(const struct options *o, const char *command, const char *what);
/* What became of a process, by waitpid(2)'s status: "ended with ...".   Valid until the next call. */
const char *status_text(int status);
/* The filesystem of dir was to be killed. Is it, or will it be in a moment? held: a descriptor of dir, from before. */
bool crash_happened(const char *dir, int held);
/* Nobody is at work and the directory is back: every cell must hold what was durable or something
 * later, every size likewise. The oracle goes on from what was found. w: fresh. */
void crash_verify(struct worker *w);
/* Nobody is at work: everything must be as the oracle has it, by read and through every door. */
void verify_all(struct worker *w);

#endif
