/* process.h: what each of our programs does before anything else. */
#ifndef FOLIO_FS_PROCESS_H
#define FOLIO_FS_PROCESS_H

#include <stdbool.h>

/* Have standard input, output and error open, on /dev/null where they are not: else the volume would get such a
 * number, and be what messages are written into. And have a limit on the length of files be an error of the write
 * that meets it (which is ENOSPC to us), not the end of the process; the soft limit is raised to the hard one.
 * Returns false: /dev/null cannot be opened; there is nowhere to say so. */
bool process_start(void);
/* What getopt_long(3) has just returned '?' for, as it was written. letters: as given to it. */
const char *process_bad_option(char **argv, const char *letters);
/* The last use of standard output.   Returns false, having said so, if not all that was printed was written. */
bool process_close_output(const char *program);

#endif
