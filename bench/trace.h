/* trace.h: recorded accesses, for bench_hitratio and bench_readahead: lines of "FILE PAGE COUNT", which are COUNT
 * pages of a file from PAGE on. What is not like this ends the program, with the line's number. */
#ifndef FOLIO_BENCH_TRACE_H
#define FOLIO_BENCH_TRACE_H

#include <errno.h>
#include <inttypes.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define TRACE_FILES 8u         /* FILE is below */
#define TRACE_MOST  (1u << 26) /* pages, in all */
#define PAGES_LEAST 16u        /* of a cache */
#define PAGES_MOST  (1u << 20)

static inline bool trace_field(char **at, uint64_t *out)
{
    char *from = *at + strspn(*at, " \t");
    errno = 0;
    *out = strtoull(from, at, 10);
    return *from >= '0' && *from <= '9' && errno == 0;
}

/* Hand each page of the trace to access. path: -: standard input. file_pages: of a file, at most. */
static inline void trace_read(const char *path, uint64_t file_pages,
                              void (*access)(void *ctx, uint32_t file, uint32_t page), void *ctx)
{
    FILE *in = strcmp(path, "-") == 0 ? stdin : fopen(path, "re");
    char line[128];
    uint64_t file, page, count, lines = 0, all = 0;
    if (in == NULL) {
        fprintf(stderr, "trace %s: %s\n", path, strerror(errno));
        exit(1);
    }
    while (fgets(line, sizeof line, in) != NULL) {
        char *at = line;
        lines++;
        if (!trace_field(&at, &file) || !trace_field(&at, &page) || !trace_field(&at, &count) ||
            at[strspn(at, " \t\r\n")] != '\0' || file >= TRACE_FILES || page >= file_pages ||
            count < 1 || count > file_pages - page || count > TRACE_MOST - all) {
            fprintf(stderr,
                    "trace %s: line %" PRIu64
                    ": not \"FILE PAGE COUNT\", or out of range: FILE below %u, COUNT from 1, PAGE "
                    "and COUNT %" PRIu64 " together, and %u pages in all, at most\n",
                    path, lines, TRACE_FILES, file_pages, TRACE_MOST);
            exit(1);
        }
        all += count;
        for (; count > 0; count--)
            access(ctx, (uint32_t)file, (uint32_t)page++);
    }
    if (ferror(in) || all == 0) {
        fprintf(stderr, "trace %s: %s\n", path, ferror(in) ? "cannot be read" : "an empty trace");
        exit(1);
    }
    if (in != stdin)
        (void)fclose(in);
}

/* The size of the cache, as given to -n; what will not do ends the program. */
static inline uint32_t trace_cache_pages(const char *text)
{
    char *end;
    errno = 0;
    unsigned long n = strtoul(text, &end, 10);
    if (text[0] < '0' || text[0] > '9' || *end != '\0' || errno != 0 || n < PAGES_LEAST ||
        n > PAGES_MOST) {
        fprintf(stderr, "-n %s: not a number of pages from %u to %u\n", text, PAGES_LEAST,
                PAGES_MOST);
        exit(2);
    }
    return (uint32_t)n;
}

#endif
