/* held_load: reads that can be answered only when the kernel has given up its copies of what they read.
 *
 *     held_load FILE SECONDS READERS
 *
 * One thread stores to a mapping of FILE, one writes to it, READERS read all of it, over and over. Prints how
 * many reads there were.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#define PAGE  4096
#define PAGES 256

static int fd;
static volatile char *map;
static time_t end;
static _Atomic unsigned long reads;

static void die(const char *what)
{
    perror(what);
    _exit(1);
}

static void *store(void *arg)
{
    while (time(NULL) < end)
        for (int i = 0; i < PAGES; i++)
            map[i * PAGE]++;
    return arg;
}

static void *write_bytes(void *arg)
{
    for (unsigned n = 0; time(NULL) < end; n++)
        if (pwrite(fd, "written", 7, (off_t)(n % PAGES * PAGE + 100)) != 7)
            die("pwrite");
    return arg;
}

static void *read_all(void *arg)
{
    char *buf = malloc(PAGES * PAGE);
    if (buf == NULL)
        die("malloc");
    for (; time(NULL) < end; reads++)
        if (pread(fd, buf, PAGES * PAGE, 0) != PAGES * PAGE)
            die("pread");
    free(buf);
    return arg;
}

int main(int argc, char **argv)
{
    if (argc != 4)
        return 2;
    int nr = atoi(argv[3]) + 2;
    pthread_t *threads = calloc((size_t)nr, sizeof *threads);
    fd = open(argv[1], O_RDWR | O_CREAT, 0644);
    if (threads == NULL || fd < 0 || ftruncate(fd, PAGES * PAGE) != 0)
        die(argv[1]);
    map = mmap(NULL, PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (map == MAP_FAILED)
        die("mmap");
    end = time(NULL) + atoi(argv[2]);
    for (int i = 0; i < nr; i++)
        if (pthread_create(&threads[i], NULL,
                           i == 0   ? store
                           : i == 1 ? write_bytes
                                    : read_all,
                           NULL) != 0)
            die("pthread_create");
    for (int i = 0; i < nr; i++)
        pthread_join(threads[i], NULL);
    printf("%lu reads\n", reads);
    return 0;
}
