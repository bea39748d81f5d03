/* output.h: results that could not be written are none. */
#ifndef FOLIO_BENCH_OUTPUT_H
#define FOLIO_BENCH_OUTPUT_H

#include <errno.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>

/* The last use of standard output.   Returns the exit status: 0, or 1, having said so, if not all was written. */
static inline int close_output(const char *program)
{
    bool failed = ferror(stdout) != 0;
    errno = 0;
    if (fclose(stdout) == 0 && !failed)
        return 0;
    fprintf(stderr, "%s: standard output: %s\n", program,
            errno != 0 ? strerror(errno) : "not all of it could be written");
    return 1;
}

#endif
