/* ring_holes.c: many holes at once, from one processor, in a file whose mapping is dirty.
 *
 *   ring_holes FILE THREADS
 *
 * Each thread stores to its part of the mapping and punches a hole where it stored, over and over. Ends with
 * 0 when all holes read as zeros. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define PAGE   4096
#define PART   (16 * PAGE)
#define ROUNDS 50
#define MOST   64

static int fd;
static char *map;

static void *punch(void *arg)
{
    off_t at = (off_t)((size_t)arg * PART);
    for (int i = 0; i < ROUNDS; i++) {
        memset(map + at, i + 1, PART);
        if (fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, at, PART) != 0) {
            fprintf(stderr, "ring_holes: fallocate: %s\n", strerror(errno));
            exit(1);
        }
        for (int byte = 0; byte < PART; byte += PAGE)
            if (map[at + byte] != 0) {
                fprintf(stderr, "ring_holes: not a hole at %lld\n", (long long)at + byte);
                exit(1);
            }
    }
    return NULL;
}

int main(int argc, char **argv)
{
    pthread_t threads[MOST];
    cpu_set_t one;
    long nr = argc == 3 ? strtol(argv[2], NULL, 10) : 0;
    if (nr < 1 || nr > MOST)
        return 2;
    CPU_ZERO(&one);
    CPU_SET(0, &one);
    (void)sched_setaffinity(0, sizeof one, &one); /* else they spread, which tests less */
    fd = open(argv[1], O_RDWR | O_CREAT, 0644);
    if (fd < 0 || ftruncate(fd, nr * PART) != 0)
        return 1;
    map = mmap(NULL, (size_t)nr * PART, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (map == MAP_FAILED)
        return 1;
    for (long i = 0; i < nr; i++)
        if (pthread_create(&threads[i], NULL, punch, (void *)i) != 0)
            return 1;
    for (long i = 0; i < nr; i++)
        pthread_join(threads[i], NULL);
    return 0;
}
