/* kill_load: what has a daemon tell the kernel to give up pages that are dirty, for as long as it answers.
 *
 *     kill_load hole|rename|write FILE
 *
 * One thread stores to a mapping of FILE again and again. The other punches holes into it, writes to it, or
 * renames files that have just been stored to over another. Ends when that fails.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define PAGE  4096
#define PAGES 64

static volatile char *map;

static void die(const char *what)
{
    perror(what);
    _exit(1);
}

static char *map_file(int fd, int pages)
{
    char *p = mmap(NULL, (size_t)pages * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (p == MAP_FAILED)
        die("mmap");
    return p;
}

static void *store(void *arg)
{
    for (;; map[17]++)
        for (int i = 0; i < PAGES; i++)
            map[i * PAGE + 17]++;
    return arg;
}

static void rename_over(const char *name, char c)
{
    char from[4096], over[4096];
    (void)snprintf(from, sizeof from, "%s.from", name);
    (void)snprintf(over, sizeof over, "%s.over", name);
    int fd = open(from, O_RDWR | O_CREAT, 0644);
    if (fd < 0 || ftruncate(fd, 8 * PAGE) != 0)
        die("a new file");
    char *p = map_file(fd, 8);
    for (int i = 0; i < 8; i++)
        p[i * PAGE] = c;
    if (rename(from, over) != 0)
        die("rename");
    munmap(p, 8 * PAGE);
    close(fd);
}

int main(int argc, char **argv)
{
    static char page[PAGE];
    pthread_t thread;
    if (argc != 3)
        return 2;
    int fd = open(argv[2], O_RDWR | O_CREAT, 0644);
    if (fd < 0 || ftruncate(fd, PAGES * PAGE) != 0)
        die(argv[2]);
    map = map_file(fd, PAGES);
    if (pthread_create(&thread, NULL, store, NULL) != 0)
        die("pthread_create");
    for (unsigned n = 0;; n++) {
        off_t at = n % PAGES * PAGE;
        if (strcmp(argv[1], "rename") == 0)
            rename_over(argv[2], (char)n);
        else if (strcmp(argv[1], "write") == 0 && pwrite(fd, page, PAGE, at) != PAGE)
            die("pwrite");
        else if (strcmp(argv[1], "hole") == 0 &&
                 fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, at, 2 * PAGE) != 0)
            die("fallocate");
    }
}
