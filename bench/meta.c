/* meta.c: what an operation on a name costs, one by one. POSIX alone.
 *
 *   bench_meta create|stat|readdir|unlink DIR FILES
 *
 * create makes the files DIR/f0, f1, … and stat, readdir and unlink find them. Prints one line: the
 * operations per second (readdir: entries per second), the median and the 99th percentile of one
 * operation in µs (readdir: of one entry, over the passes). Opening and closing belong to create.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define READDIR_PASSES 10

static _Noreturn void die(const char *what, const char *name)
{
    fprintf(stderr, "bench_meta: %s %s: %s\n", what, name, strerror(errno));
    exit(1);
}

static double now_us(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec * 1e6 + (double)t.tv_nsec / 1e3;
}

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static void report(double *each, size_t count, double total_us, double things)
{
    qsort(each, count, sizeof *each, by_value);
    printf("%.1f %.3f %.3f\n", things / total_us * 1e6, each[count / 2], each[count * 99 / 100]);
}

static void create_one(int dir, const char *name)
{
    int fd = openat(dir, name, O_CREAT | O_EXCL | O_WRONLY, 0644);
    if (fd < 0)
        die("create", name);
    close(fd);
}

static void stat_one(int dir, const char *name)
{
    struct stat st;
    if (fstatat(dir, name, &st, 0) != 0)
        die("stat", name);
}

static void unlink_one(int dir, const char *name)
{
    if (unlinkat(dir, name, 0) != 0)
        die("unlink", name);
}

/* The clock is read once per operation: 20 to 40 ns are part of each. */
static void each_name(int dir, size_t files, void (*operation)(int dir, const char *name))
{
    double *each = malloc(files * sizeof *each);
    char name[32];
    if (each == NULL)
        die("malloc", "");
    double start = now_us(), last = start;
    for (size_t i = 0; i < files; i++) {
        snprintf(name, sizeof name, "f%zu", i);
        operation(dir, name);
        double now = now_us();
        each[i] = now - last;
        last = now;
    }
    report(each, files, last - start, (double)files);
    free(each);
}

static size_t count_entries(const char *path)
{
    size_t count = 0;
    DIR *dir = opendir(path);
    if (dir == NULL)
        die("opendir", path);
    errno = 0;
    while (readdir(dir) != NULL)
        count++;
    if (errno != 0)
        die("readdir", path);
    closedir(dir);
    return count;
}

/* A first pass warms what can be warmed. */
static void list(const char *path, size_t files)
{
    double each[READDIR_PASSES];
    size_t count = count_entries(path);
    if (count < files) {
        fprintf(stderr, "bench_meta: %s has %zu entries\n", path, count);
        exit(1);
    }
    double start = now_us(), last = start;
    for (int i = 0; i < READDIR_PASSES; i++) {
        count_entries(path);
        double now = now_us();
        each[i] = (now - last) / (double)count;
        last = now;
    }
    report(each, READDIR_PASSES, last - start, (double)count * READDIR_PASSES);
}

int main(int argc, char **argv)
{
    size_t files = argc == 4 ? strtoul(argv[3], NULL, 10) : 0;
    if (files == 0) {
        fputs("usage: bench_meta create|stat|readdir|unlink DIR FILES\n", stderr);
        return 2;
    }
    int dir = open(argv[2], O_RDONLY | O_DIRECTORY);
    if (dir < 0)
        die("open", argv[2]);
    if (strcmp(argv[1], "create") == 0)
        each_name(dir, files, create_one);
    else if (strcmp(argv[1], "stat") == 0)
        each_name(dir, files, stat_one);
    else if (strcmp(argv[1], "unlink") == 0)
        each_name(dir, files, unlink_one);
    else if (strcmp(argv[1], "readdir") == 0)
        list(argv[2], files);
    else
        return 2;
    close(dir);
    return 0;
}
