/* What page faults cost, by who resolves them, side by side in one run.
 *
 *   bench_faults EXT4DIR FOLIODIR FOLIOFSCTL DAEMON [MIB [ROUNDS]]
 *
 * EXT4DIR: a directory on the filesystem to compare with; FOLIODIR: on a FolioFS mount, cache=direct;
 * FOLIOFSCTL: the program, to empty the cache; DAEMON: the mount's process. Doors:
 *
 *   ext4        mmap of a file there
 *   mount       the kernel's mmap of a file on the FolioFS mount
 *   attached    libfolio's mapping of the same file
 *   store_around  the same with store_around=64
 *   in-process  vma_soft over a memory device: no kernel in it at all
 *   handler     a userfaultfd and a thread that sleeps, wakes, resolves one page: what most user-space
 *               fault handlers do. Pages come from memory at no cost, and are written nowhere.
 *   apart       the same handler in a process of its own, over memory that its clients share: what a fault
 *               costs that way before anything is cached or tracked, and so the bound of "attached"
 *   umap        LLNL's UMap, if FOLIO_UMAP names its libumap.so: its handlers and its buffer are in the client's
 *               process, behind it is a file on ext4. "read cached" is a page that only the kernel has cached.
 *
 * The figures, as CSV: microseconds per page, the mean over all pages, and the median of single touches
 * (which includes some 0.03 for reading the clock); the share of time in which the processors idled; and how
 * often the threads of who resolves the faults went to sleep, per page (nan: nobody does): 0 if they were
 * awake, 1 if they were woken for each page. A handler that sleeps costs most when its core sleeps too.
 * Each measurement is a process of its own; doors take turns; the least of the rounds counts, for what
 * disturbs makes it only more. */
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <math.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "bench/output.h"
#include "cache/attach_proto.h"
#include "cache/folio.h"
#include "cache/page_cache.h"
#include "cache/vma_soft.h"

#define CLIENTS_MAX 2
#define THREADS_MAX 128

enum door_kind { EXT4, MOUNT, ATTACHED, AHEAD, INPROCESS, HANDLER, APART, UMAP, DOORS };
static const char *const door_names[] = { "ext4",       "mount",   "attached", "store_around",
                                          "in-process", "handler", "apart",    "umap" };
static unsigned nr_doors = UMAP;

enum test_kind { HIT, FIRST_STORE, STORE_AGAIN, MISS, TESTS };
static const char *const test_names[] = { "read cached", "first store", "store after writeback",
                                          "read not cached" };

static const char *paths[DOORS];
static const char *folio_dir, *ctl;
static pid_t daemon_pid;
static uint32_t nr_pages;

struct result {
    double mean_us, median_us, idle, sleeps;
};

struct mapping { /* one client's */
    enum door_kind door;
    char *at; /* NULL: in-process */
    struct vm_area *vma;
    int fd;
};

static struct page_cache *cache; /* in-process */
static struct device *device;
static struct address_space space;

static void die(const char *what)
{
    fprintf(stderr, "faults: %s: %s\n", what, strerror(errno));
    exit(1);
}

static double now_us(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec * 1e6 + (double)t.tv_nsec / 1e3;
}

/* Share of all processors' time that was idle, since the last call. */
static double idle_share(void)
{
    static double idle_before, all_before;
    double v[8] = { 0 };
    FILE *f = fopen("/proc/stat", "re");
    if (f == NULL || fscanf(f, "cpu %lf %lf %lf %lf %lf %lf %lf %lf", &v[0], &v[1], &v[2], &v[3],
                            &v[4], &v[5], &v[6], &v[7]) != 8)
        die("/proc/stat");
    fclose(f);
    double idle = v[3] + v[4], all = 0;
    for (int i = 0; i < 8; i++)
        all += v[i];
    double share = all > all_before ? (idle - idle_before) / (all - all_before) : 0;
    idle_before = idle;
    all_before = all;
    return share;
}

struct sleepers { /* how often each thread of a process went to sleep so far */
    unsigned n;
    struct {
        pid_t tid;
        double times;
    } of[THREADS_MAX];
};

static void read_sleepers(pid_t process, struct sleepers *out)
{
    char path[64], line[128];
    snprintf(path, sizeof path, "/proc/%d/task", (int)process);
    DIR *tasks = opendir(path);
    if (tasks == NULL)
        die(path);
    out->n = 0;
    for (struct dirent *e; (e = readdir(tasks)) != NULL && out->n < THREADS_MAX;) {
        pid_t tid = (pid_t)atoi(e->d_name);
        snprintf(path, sizeof path, "/proc/%d/task/%d/status", (int)process, (int)tid);
        FILE *f = tid != 0 ? fopen(path, "re") : NULL;
        if (f == NULL)
            continue; /* "." and "..", or a thread that has ended */
        double times = 0;
        while (fgets(line, sizeof line, f) != NULL &&
               sscanf(line, "voluntary_ctxt_switches: %lf", &times) != 1)
            ;
        fclose(f);
        out->of[out->n].tid = tid;
        out->of[out->n++].times = times;
    }
    closedir(tasks);
}

/* Sleeps since then, of all threads (0), of one, or of all but one (negative). A thread that ended meanwhile does
 * not count. */
static double sleeps_since(pid_t process, pid_t thread, const struct sleepers *before)
{
    struct sleepers now;
    double sum = 0;
    read_sleepers(process, &now);
    for (unsigned i = 0; i < now.n; i++) {
        if ((thread > 0 && now.of[i].tid != thread) || now.of[i].tid == -thread)
            continue;
        sum += now.of[i].times;
        for (unsigned j = 0; j < before->n; j++)
            if (before->of[j].tid == now.of[i].tid)
                sum -= before->of[j].times;
    }
    return sum;
}

/* ---- the sleeping handler, in its client's process or apart ----------------------------------- */

static char blank[PAGE_SIZE];
static int handled_fd = -1; /* the userfaultfd */
static int apart_fd = -1;   /* the memory that clients of a handler apart share */
static pid_t handler_process;
static _Atomic pid_t handler_thread;

static void resolve(int uffd, const struct uffd_msg *msg)
{
    struct uffdio_range page = { msg->arg.pagefault.address & PAGE_MASK, PAGE_SIZE };
    if (msg->arg.pagefault.flags & UFFD_PAGEFAULT_FLAG_WP) {
        struct uffdio_writeprotect w = { .range = page };
        ioctl(uffd, UFFDIO_WRITEPROTECT, &w);
    } else if (msg->arg.pagefault.flags & UFFD_PAGEFAULT_FLAG_MINOR) {
        struct uffdio_continue c = { .range = page, .mode = UFFDIO_CONTINUE_MODE_WP };
        ioctl(uffd, UFFDIO_CONTINUE, &c);
    } else {
        struct uffdio_copy c = { .dst = page.start,
                                 .src = (uint64_t)(uintptr_t)blank,
                                 .len = PAGE_SIZE,
                                 .mode = UFFDIO_COPY_MODE_WP };
        ioctl(uffd, UFFDIO_COPY, &c);
    }
}

static void *handler(void *arg)
{
    int uffd = *(int *)arg;
    atomic_store(&handler_thread, gettid());
    struct pollfd p = { .fd = uffd, .events = POLLIN };
    struct uffd_msg msg;
    for (;;)
        if (poll(&p, 1, -1) >= 0 && read(uffd, &msg, sizeof msg) == sizeof msg)
            resolve(uffd, &msg);
    return NULL;
}

static void start_handler(enum door_kind door)
{
    static pthread_t thread;
    pid_t client = getpid();
    handler_process = door == HANDLER ? client : fork();
    if (handler_process == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        if (getppid() == client)
            (void)handler(&handled_fd);
        _exit(1);
    }
    if (handler_process < 0 ||
        (door == HANDLER && pthread_create(&thread, NULL, handler, &handled_fd) != 0))
        die("a handler");
    while (door == HANDLER && atomic_load(&handler_thread) == 0)
        sched_yield();
}

static void end_handler(enum door_kind door)
{
    if (door == APART &&
        (kill(handler_process, SIGKILL) != 0 || waitpid(handler_process, NULL, 0) < 0))
        die("the handler apart");
}

static char *map_handled(enum door_kind door, size_t bytes)
{
    bool apart = door == APART;
    handled_fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);
    struct uffdio_api api = {
        .api = UFFD_API,
        .features = UFFD_FEATURE_PAGEFAULT_FLAG_WP |
                    (apart ? UFFD_FEATURE_MINOR_SHMEM | UFFD_FEATURE_WP_HUGETLBFS_SHMEM : 0)
    };
    char *at = mmap(NULL, bytes, PROT_READ | PROT_WRITE,
                    apart ? MAP_SHARED : MAP_PRIVATE | MAP_ANONYMOUS, apart ? apart_fd : -1, 0);
    struct uffdio_register r = { .range = { (uint64_t)(uintptr_t)at, bytes },
                                 .mode = UFFDIO_REGISTER_MODE_MISSING | UFFDIO_REGISTER_MODE_WP |
                                         (apart ? UFFDIO_REGISTER_MODE_MINOR : 0) };
    if (handled_fd < 0 || at == MAP_FAILED || ioctl(handled_fd, UFFDIO_API, &api) != 0 ||
        madvise(at, bytes, MADV_NOHUGEPAGE) != 0)
        die("userfaultfd");
    start_handler(door);
    if (ioctl(handled_fd, UFFDIO_REGISTER, &r) != 0)
        die("userfaultfd");
    return at;
}

/* ---- UMap ------------------------------------------------------------------------------------ */

static void *umap_library;

static char *map_umap(int fd, size_t bytes)
{
    void *(*umap)(void *, uint64_t, int, int, int, off_t);
    /* POSIX's way to have a function from dlsym(3) */
    *(void **)&umap = dlsym(umap_library, "umap");
    if (umap == NULL)
        die("libumap.so has no umap()");
    return umap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0);
}

static void flush_umap(void)
{
    int (*flush)(void);
    *(void **)&flush = dlsym(umap_library, "umap_flush");
    if (flush == NULL || flush() != 0)
        die("umap_flush");
}

/* ---- doors ----------------------------------------------------------------------------------- */

static bool is_handled(enum door_kind door)
{
    return door == HANDLER || door == APART;
}

static bool is_attached(enum door_kind door)
{
    return door == ATTACHED || door == AHEAD;
}

static bool has_file(enum door_kind door)
{
    return door <= AHEAD || door == UMAP;
}

/* Both are the same door, but that with AHEAD stores in order have the pages behind them made writable. */
static void set_store_around(enum door_kind door)
{
    char command[1024];
    snprintf(command, sizeof command, "%s %s set store_around=%u >/dev/null", ctl, folio_dir,
             door == AHEAD ? 64u : 1u);
    if (is_attached(door) && system(command) != 0) // NOLINT(cert-env33-c)
        die(command);
}

static struct mapping map_door(enum door_kind door)
{
    struct mapping m = { .door = door, .fd = -1 };
    size_t bytes = (size_t)nr_pages * PAGE_SIZE;
    int prot = PROT_READ | PROT_WRITE;
    if (door == INPROCESS) {
        if (vma_soft_create(&space, 0, nr_pages, NULL, &m.vma) != 0)
            die("vma_soft_create");
        return m;
    }
    if (is_handled(door)) {
        m.at = map_handled(door, bytes);
        return m;
    }
    m.fd = open(paths[door], O_RDWR | O_CLOEXEC);
    m.at = is_attached(door) ? folio_mmap(NULL, bytes, prot, MAP_SHARED, m.fd, 0)
           : door == UMAP    ? map_umap(m.fd, bytes)
                             : mmap(NULL, bytes, prot, MAP_SHARED, m.fd, 0);
    if (m.fd < 0 || m.at == MAP_FAILED)
        die(paths[door]);
    return m;
}

static void load(const struct mapping *m, uint32_t page)
{
    char c;
    if (m->at != NULL)
        (void)*(volatile char *)(m->at + (size_t)page * PAGE_SIZE);
    else if (vma_load(m->vma, (uint64_t)page * PAGE_SIZE, &c, 1) != 0)
        die("vma_load");
}

static void store(const struct mapping *m, uint32_t page, char c)
{
    if (m->at != NULL)
        *(volatile char *)(m->at + (size_t)page * PAGE_SIZE) = c;
    else if (vma_store(m->vma, (uint64_t)page * PAGE_SIZE, &c, 1) != 0)
        die("vma_store");
}

/* Clean every page, as msync does; nothing leaves the mapping. */
static void clean(const struct mapping *m)
{
    size_t bytes = (size_t)nr_pages * PAGE_SIZE;
    if (m->door == INPROCESS) {
        if (filemap_fdatawrite(&space, WB_SYNC_ALL) != 0)
            die("filemap_fdatawrite");
    } else if (is_handled(m->door)) {
        struct uffdio_writeprotect w = { .range = { (uint64_t)(uintptr_t)m->at, bytes },
                                         .mode = UFFDIO_WRITEPROTECT_MODE_WP };
        ioctl(handled_fd, UFFDIO_WRITEPROTECT, &w);
    } else if (m->door == UMAP) {
        flush_umap();
    } else if ((is_attached(m->door) ? folio_msync : msync)(m->at, bytes, MS_SYNC) != 0) {
        die("msync");
    }
}

/* Empty the caches that stand before the disk. */
static void drop(enum door_kind door)
{
    if (door == INPROCESS) {
        if (filemap_fdatawrite(&space, WB_SYNC_ALL) != 0)
            die("filemap_fdatawrite");
        page_cache_drop(cache);
    } else if (door == APART) {
        if (ftruncate(apart_fd, 0) != 0 ||
            ftruncate(apart_fd, (off_t)((uint64_t)nr_pages * PAGE_SIZE)) != 0)
            die("memory");
    } else if (has_file(door)) {
        int fd = open(paths[door], O_RDWR | O_CLOEXEC);
        if (fd < 0 || fsync(fd) != 0 || posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED) != 0)
            die("dropping the cache");
        close(fd);
        char command[1024];
        snprintf(command, sizeof command, "%s %s drop >/dev/null", ctl, folio_dir);
        if (door != EXT4 && door != UMAP && system(command) != 0) // NOLINT(cert-env33-c)
            die(command);
    }
}

/* Have every page in the caches. */
static void warm(enum door_kind door)
{
    static char buf[1 << 20];
    if (door == INPROCESS) {
        for (uint64_t at = 0; at < (uint64_t)nr_pages * PAGE_SIZE; at += sizeof buf)
            if (filemap_read(&space, NULL, at, buf, sizeof buf) < 0)
                die("filemap_read");
    } else if (door == APART) {
        if (fallocate(apart_fd, 0, 0, (off_t)((uint64_t)nr_pages * PAGE_SIZE)) != 0)
            die("memory");
    } else if (has_file(door)) {
        int fd = open(paths[door], O_RDONLY | O_CLOEXEC);
        if (fd < 0)
            die(paths[door]);
        while (read(fd, buf, sizeof buf) > 0)
            ;
        close(fd);
        if (door == MOUNT) { /* its mappings have a cache of their own */
            struct mapping m = map_door(door);
            for (uint32_t i = 0; i < nr_pages; i++)
                load(&m, i);
        }
    }
}

/* ---- measuring ------------------------------------------------------------------------------- */

static int compare(const void *a, const void *b)
{
    float x = *(const float *)a, y = *(const float *)b;
    return (x > y) - (x < y);
}

/* The i-th page of a permutation that no readahead follows. */
static uint32_t shuffled(uint32_t i)
{
    return (uint32_t)(((uint64_t)i * 2654435761u) % nr_pages);
}

struct shared {
    _Atomic unsigned ready, go;
    struct result results[CLIENTS_MAX];
};

struct client {
    struct shared *shared;
    enum door_kind door;
    enum test_kind test;
    bool shuffle;
    unsigned number, clients;
    char value; /* what it stores: another than the last one did, as it must change the page */
};

static void touch_all(const struct mapping *m, const struct client *c, float *each,
                      struct result *out)
{
    uint32_t n = nr_pages / c->clients, first = n * c->number;
    bool write = c->test == FIRST_STORE || c->test == STORE_AGAIN;
    double begin = now_us(), last = begin;
    for (uint32_t i = 0; i < n; i++) {
        uint32_t page = c->shuffle ? shuffled(first + i) : first + i;
        if (write)
            store(m, page, c->value);
        else
            load(m, page);
        double now = now_us();
        each[i] = (float)(now - last);
        last = now;
    }
    out->mean_us = (last - begin) / n;
    qsort(each, n, sizeof *each, compare);
    out->median_us = each[n / 2];
}

static void *client_main(void *arg)
{
    const struct client *c = arg;
    bool stores = c->test == FIRST_STORE || c->test == STORE_AGAIN;
    float *each = calloc(nr_pages, sizeof *each);
    struct mapping m = map_door(c->door);
    if (each == NULL)
        die("memory");
    for (uint32_t i = 0; stores && i < nr_pages; i++)
        load(&m, i);
    if (c->test == STORE_AGAIN) {
        for (uint32_t i = c->number; i < nr_pages; i += c->clients)
            store(&m, i, (char)(c->value + 1));
        clean(&m);
    }
    atomic_fetch_add(&c->shared->ready, 1);
    while (atomic_load(&c->shared->go) == 0)
        sched_yield();
    struct result *r = &c->shared->results[c->number];
    struct sleepers before;
    pid_t resolver = is_handled(c->door) ? handler_process
                     : c->door == UMAP   ? getpid()
                                         : daemon_pid;
    pid_t thread = c->door == UMAP ? -getpid() : atomic_load(&handler_thread);
    bool by_thread = c->door != EXT4 && c->door != INPROCESS;
    read_sleepers(resolver, &before);
    touch_all(&m, c, each, r);
    /* The daemon resolves all clients' faults, a handler its own client's. */
    double touched = is_handled(c->door) || c->door == UMAP ? nr_pages / c->clients : nr_pages;
    r->sleeps = by_thread ? sleeps_since(resolver, thread, &before) / touched : NAN;
    free(each);
    end_handler(c->door);
    if (m.vma != NULL)
        vma_soft_destroy(m.vma);
    return NULL;
}

/* A client of the in-process door is a thread, any other a process.   Returns the process. */
static pid_t start_client(struct client *c, pthread_t *thread)
{
    if (c->door == INPROCESS) {
        if (pthread_create(thread, NULL, client_main, c) != 0)
            die("pthread_create");
        return 0;
    }
    pid_t pid = fork();
    if (pid < 0)
        die("fork");
    if (pid == 0) {
        (void)client_main(c);
        _exit(0); /* what stdio holds is the parent's */
    }
    return pid;
}

static void end_client(pid_t pid, pthread_t thread)
{
    int status = 0;
    if (pid == 0)
        (void)pthread_join(thread, NULL);
    else if (waitpid(pid, &status, 0) != pid || status != 0) {
        errno = ECHILD;
        die("a client failed");
    }
}

static struct result measure(enum door_kind door, enum test_kind test, bool shuffle,
                             unsigned clients)
{
    static char value;
    struct client each[CLIENTS_MAX];
    pthread_t threads[CLIENTS_MAX] = { 0 };
    pid_t pids[CLIENTS_MAX];
    struct shared *s =
        mmap(NULL, sizeof *s, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (s == MAP_FAILED)
        die("memory");
    drop(door);
    if (test != MISS)
        warm(door);
    set_store_around(door);
    value = (char)(value + 2);
    for (unsigned i = 0; i < clients; i++) {
        each[i] = (struct client){ s, door, test, shuffle, i, clients, value };
        pids[i] = start_client(&each[i], &threads[i]);
    }
    while (atomic_load(&s->ready) < clients)
        sched_yield();
    (void)idle_share();
    atomic_store(&s->go, 1);
    for (unsigned i = 0; i < clients; i++)
        end_client(pids[i], threads[i]);
    struct result r = { .idle = idle_share() };
    for (unsigned i = 0; i < clients; i++) {
        r.mean_us += s->results[i].mean_us / clients;
        r.median_us += s->results[i].median_us / clients;
        r.sleeps += s->results[i].sleeps / clients;
    }
    munmap(s, sizeof *s);
    return r;
}

/* ---- setting up ------------------------------------------------------------------------------ */

static void make_file(const char *path)
{
    static char buf[1 << 20];
    int fd = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
    if (fd < 0)
        die(path);
    memset(buf, 'f', sizeof buf);
    for (uint64_t at = 0; at < (uint64_t)nr_pages * PAGE_SIZE; at += sizeof buf)
        if (pwrite(fd, buf, sizeof buf, (off_t)at) != (ssize_t)sizeof buf)
            die(path);
    if (fsync(fd) != 0)
        die(path);
    close(fd);
}

static void make_cache(void)
{
    static char buf[1 << 20];
    struct cache_options o = { .cache_bytes = (uint64_t)nr_pages * PAGE_SIZE * 8,
                               .dirty_ratio = 90,
                               .dirty_background_ratio = 80 };
    device = dev_memory_create();
    if (device == NULL || page_cache_create(&cache, &o) != 0)
        die("the cache");
    mapping_init(&space, cache, device, 1, NULL, 0);
    for (uint64_t at = 0; at < (uint64_t)nr_pages * PAGE_SIZE; at += sizeof buf)
        if (filemap_write(&space, at, buf, sizeof buf) != (ssize_t)sizeof buf)
            die("filemap_write");
    if (filemap_fdatawrite(&space, WB_SYNC_ALL) != 0)
        die("filemap_fdatawrite");
}

static const char *join(const char *dir, const char *name)
{
    size_t n = strlen(dir) + strlen(name) + 2;
    char *path = malloc(n);
    if (path == NULL)
        die("memory");
    snprintf(path, n, "%s/%s", dir, name);
    return path;
}

static void run_row(enum test_kind test, bool shuffle, unsigned clients, unsigned rounds)
{
    struct result best[DOORS] = { 0 };
    for (unsigned round = 0; round < rounds; round++)
        for (unsigned d = 0; d < nr_doors; d++) {
            enum door_kind door = (enum door_kind)((d + round) % nr_doors);
            struct result r = measure(door, test, shuffle, clients);
            if (round == 0 || r.mean_us < best[door].mean_us)
                best[door] = r;
        }
    for (unsigned d = 0; d < nr_doors; d++)
        printf("%s,%s,%u,%s,%.3f,%.3f,%.2f,%.3f,%.3f,%.3f,%.3f\n", test_names[test],
               shuffle ? "random" : "in order", clients, door_names[d], best[d].mean_us,
               best[d].median_us, best[d].idle, best[d].sleeps,
               best[d].mean_us / best[EXT4].mean_us, best[d].mean_us / best[HANDLER].mean_us,
               nr_doors > UMAP ? best[d].mean_us / best[UMAP].mean_us : NAN);
    fflush(stdout);
}

int main(int argc, char **argv)
{
    if (argc < 5 || argc > 7) {
        fprintf(stderr, "usage: %s EXT4DIR FOLIODIR FOLIOFSCTL DAEMON [MIB [ROUNDS]]\n", argv[0]);
        return 2;
    }
    folio_dir = argv[2];
    ctl = argv[3];
    daemon_pid = (pid_t)atoi(argv[4]);
    nr_pages = (argc > 5 ? (uint32_t)atoi(argv[5]) : 32) * 256;
    unsigned rounds = argc > 6 ? (unsigned)atoi(argv[6]) : 3;
    paths[EXT4] = join(argv[1], "faults");
    paths[MOUNT] = join(folio_dir, "faults"); /* a file that was mapped both ways is slower */
    paths[ATTACHED] = join(folio_dir, "faults.attached");
    paths[AHEAD] = join(folio_dir, "faults.ahead");
    paths[UMAP] = join(argv[1], "faults.umap");
    const char *umap = getenv("FOLIO_UMAP");
    if (umap != NULL) {
        umap_library = dlopen(umap, RTLD_NOW);
        if (umap_library == NULL) {
            fprintf(stderr, "faults: %s\n", dlerror());
            return 1;
        }
        nr_doors = DOORS;
    }
    for (unsigned d = 0; d < nr_doors; d++)
        if (has_file(d))
            make_file(paths[d]);
    make_cache();
    apart_fd = memfd_create("faults", MFD_CLOEXEC);
    if (apart_fd < 0)
        die("memory");
    printf("test,order,clients,door,mean_us,median_us,idle,sleeps,to_ext4,to_handler,to_umap\n");
    for (unsigned test = 0; test < TESTS; test++)
        for (unsigned shuffle = 0; shuffle < 2; shuffle++)
            for (unsigned clients = 1; clients <= CLIENTS_MAX; clients++)
                run_row((enum test_kind)test, shuffle, clients, rounds);
    for (unsigned d = 0; d < nr_doors; d++)
        if (has_file(d))
            unlink(paths[d]);
    return close_output("faults");
}
