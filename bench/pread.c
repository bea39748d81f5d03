/* pread.c: what one pread() of 4 KiB costs, each thread reading a page of its own over and over.
 *
 *   bench_pread FILE THREADS SECONDS
 *
 * Prints one line: reads per second of all threads together, the median and the 99th percentile of
 * one read in µs. The first reads of each thread, which fill caches, do not count.
 */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "bench/output.h"

#define BLOCK       4096
#define WARM_UP     100
#define MAX_THREADS 64
#define MAX_US      100000 /* what takes longer counts as so much */
#define PER_US      100    /* classes in the histogram */

struct reader {
    pthread_t thread;
    int fd;
    off_t offset;
    double seconds, took_us;
    size_t reads;
    unsigned *histogram; /* MAX_US * PER_US classes */
};

static double now_us(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec * 1e6 + (double)t.tv_nsec / 1e3;
}

static void read_block(const struct reader *r)
{
    char block[BLOCK];
    if (pread(r->fd, block, sizeof block, r->offset) != sizeof block) {
        fprintf(stderr, "bench_pread: %s\n",
                errno != 0 ? strerror(errno) : "the file is too short");
        exit(1);
    }
}

static void *run_reader(void *arg)
{
    struct reader *r = arg;
    for (int i = 0; i < WARM_UP; i++)
        read_block(r);
    double start = now_us(), last = start, end = start + r->seconds * 1e6;
    while (last < end) {
        read_block(r);
        double now = now_us(), took = now - last;
        r->histogram[(size_t)(took < MAX_US ? took * PER_US : MAX_US * PER_US - 1)]++;
        r->reads++;
        last = now;
    }
    r->took_us = last - start;
    return NULL;
}

/* The lowest latency in µs that this part of all reads did not exceed. */
static double percentile(const struct reader *readers, int nr, size_t reads, double part)
{
    size_t below = 0;
    for (size_t i = 0; i < (size_t)MAX_US * PER_US; i++) {
        for (int r = 0; r < nr; r++)
            below += readers[r].histogram[i];
        if ((double)below >= part * (double)reads)
            return (double)i / PER_US;
    }
    return MAX_US;
}

int main(int argc, char **argv)
{
    static struct reader readers[MAX_THREADS];
    int nr = argc == 4 ? atoi(argv[2]) : 0;
    if (nr < 1 || nr > MAX_THREADS) {
        fputs("usage: bench_pread FILE THREADS SECONDS\n", stderr);
        return 2;
    }
    int fd = open(argv[1], O_RDONLY);
    if (fd < 0) {
        fprintf(stderr, "bench_pread: %s: %s\n", argv[1], strerror(errno));
        return 1;
    }
    for (int i = 0; i < nr; i++) {
        readers[i] =
            (struct reader){ .fd = fd, .offset = (off_t)i * BLOCK, .seconds = atof(argv[3]) };
        readers[i].histogram = calloc((size_t)MAX_US * PER_US, sizeof(unsigned));
        if (readers[i].histogram == NULL ||
            pthread_create(&readers[i].thread, NULL, run_reader, &readers[i]) != 0)
            return 1;
    }
    double rate = 0;
    size_t reads = 0;
    for (int i = 0; i < nr; i++) {
        pthread_join(readers[i].thread, NULL);
        rate += (double)readers[i].reads / readers[i].took_us * 1e6;
        reads += readers[i].reads;
    }
    printf("%.1f %.2f %.2f\n", rate, percentile(readers, nr, reads, 0.5),
           percentile(readers, nr, reads, 0.99));
    for (int i = 0; i < nr; i++)
        free(readers[i].histogram);
    close(fd);
    return close_output("bench_pread");
}
