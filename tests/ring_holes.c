/* ring_holes.c: many holes at once, from one processor, in files whose mappings are dirty.
 *
 *   ring_holes FILE THREADS
 *
 * Each thread stores to a mapping of its own file (FILE.0, FILE.1, …), as the kernel makes one hole of a
 * file at a time, and punches a hole where it stored, over and over; then it renames another file over that
 * one, which is dirty, too. Ends with 0 when all holes read as zeros. */
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

static const char *base;

static _Noreturn void die(const char *what)
{
    fprintf(stderr, "ring_holes: %s: %s\n", what, strerror(errno));
    exit(1);
}

static void punch(int fd, char *map, int round)
{
    memset(map, round + 1, PART);
    if (fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, PART) != 0)
        die("fallocate");
    for (int byte = 0; byte < PART; byte += PAGE)
        if (map[byte] != 0) {
            fprintf(stderr, "ring_holes: not a hole at %d\n", byte);
            exit(1);
        }
}

static void *work(void *arg)
{
    char name[512], other[520];
    snprintf(name, sizeof name, "%s.%zu", base, (size_t)arg);
    snprintf(other, sizeof other, "%s.new", name);
    for (int i = 0; i < ROUNDS; i++) {
        int fd = open(i % 2 ? other : name, O_RDWR | O_CREAT, 0644);
        if (fd < 0 || ftruncate(fd, PART) != 0)
            die("open");
        char *map = mmap(NULL, PART, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
        if (map == MAP_FAILED)
            die("mmap");
        punch(fd, map, i);
        memset(map, 'x', PART);
        if (i % 2 != 0 && rename(other, name) != 0)
            die("rename");
        munmap(map, PART);
        close(fd);
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
    base = argv[1];
    CPU_ZERO(&one);
    CPU_SET(0, &one);
    (void)sched_setaffinity(0, sizeof one, &one); /* else they spread, which tests less */
    for (long i = 0; i < nr; i++)
        if (pthread_create(&threads[i], NULL, work, (void *)i) != 0)
            die("pthread_create");
    for (long i = 0; i < nr; i++)
        pthread_join(threads[i], NULL);
    return 0;
}
