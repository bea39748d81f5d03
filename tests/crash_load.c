/* crash_load: a mixed load that can tell, after the daemon was killed, what must still be there.
 *
 *     crash_load run DIRECTORY LOG SEED WORKERS [SECONDS]    works so long (else until the mount dies); exit 0 then
 *     crash_load verify DIRECTORY LOG WORKERS [WORD...]      exit 1 and one line per violation
 *     crash_load acks LOG WORKERS                            when something had become durable (ns), a line each
 *     crash_load sum DIRECTORY                               a checksum of the whole tree
 *     crash_load grow DIRECTORY                              makes files longer; exit 1 if they do not go on with zeros
 *
 * Words: until=NS   what was logged later (CLOCK_MONOTONIC) did not happen
 *        age=NS     names that are so old are durable
 *        in-order   what was written did not wait in the kernel, which may hand over what comes later in a file first:
 *                   where a file ends beyond what was written to it, that is there
 *
 * Every worker is a process that does one operation after the other, on names that no other worker
 * uses (in directories of its own and in one that all share). Before each operation it logs what
 * it is about to do, and after it that it was done, outside the mount. From such a log follows what
 * may be there, and nothing else may:
 *
 *   names   The tree of a worker's names, with links, modes and inode numbers, is the one after some
 *           prefix of its operations. The prefix contains what fsync made sure of: of a file, all
 *           that happened to its names and mode; of a directory, all that happened in it.
 *   sizes   between the smallest and the largest since the file's last sync.
 *   cells   A file is a row of cells of 512 bytes, each with the file's number, its own place, a
 *           generation and a checksum. A cell holds the generation it had at the last sync, or a
 *           later one, or zeros where that is what the last sync left or a hole or truncation made.
 *           A cell that was stored through a mapping may mix these, word by word. What was written with
 *           O_SYNC or O_DSYNC counts as synced, those cells alone.
 *   rename  A file that was renamed over another counts as synced at that moment, if the names say
 *           that the rename happened: the new content is complete, or the old one is.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <linux/falloc.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define CELL        512u
#define MAX_CELLS   512u /* 256 KiB in the largest file */
#define MAX_FILES   4096u
#define NR_NAMES    24u
#define NR_DIRS     3u
#define MAX_WORKERS 16u
#define PATH_LEN    40u

enum op {
    OP_CREATE,
    OP_MKDIR,
    OP_RMDIR,
    OP_UNLINK,
    OP_RENAME,
    OP_LINK,
    OP_CHMOD, /* change names */
    OP_WRITE,
    OP_MAP,
    OP_TRUNCATE,
    OP_PUNCH, /* change content */
    OP_FSYNC,
    OP_FSYNCDIR,
    OP_SYNC_CELLS, /* these are durable, and the size that they need */
};

struct event {
    uint32_t op;
    uint32_t done;        /* 0: about to; 1: done */
    uint32_t file;        /* number of the file (unique per worker) */
    uint32_t from, count; /* cells; OP_TRUNCATE: from is the new size */
    uint32_t mode;
    bool data_only; /* OP_FSYNC: fdatasync; OP_SYNC_CELLS */
    bool replaces;  /* OP_RENAME: there was a file of that name; found out by the verifier */
    uint64_t generation;
    uint64_t ino; /* done creations */
    uint64_t at;  /* before it was begun; once done, after that */
    char path[PATH_LEN], path2[PATH_LEN];
};

/* ---- cells ----------------------------------------------------------------------------------- */

struct cell {
    uint64_t file; /* worker << 32 | file + 1 */
    uint64_t place;
    uint64_t generation;
    uint64_t words[CELL / 8 - 4];
    uint64_t check;
};
_Static_assert(sizeof(struct cell) == CELL, "");

static uint64_t mix(uint64_t x)
{
    x ^= x >> 30;
    x *= 0xbf58476d1ce4e5b9u;
    x ^= x >> 27;
    x *= 0x94d049bb133111ebu;
    return x ^ x >> 31;
}

static void fill_cell(struct cell *c, uint64_t file, uint64_t place, uint64_t generation)
{
    c->file = file;
    c->place = place;
    c->generation = generation;
    uint64_t sum = mix(file ^ mix(place ^ mix(generation)));
    for (size_t i = 0; i < sizeof c->words / 8; i++)
        sum = c->words[i] = mix(sum + i);
    c->check = mix(sum);
}

static bool is_zero(const struct cell *c)
{
    static const struct cell zero;
    return memcmp(c, &zero, sizeof zero) == 0;
}

/* ---- the load -------------------------------------------------------------------------------- */

struct worker {
    unsigned number;
    uint64_t random;
    int log;
    const char *dir;
    uint64_t end; /* ns; UINT64_MAX: the mount's */
    uint64_t generation;
    uint32_t files; /* made so far */
    struct {
        bool used;
        uint32_t file;
    } names[NR_NAMES];
    uint32_t cells[MAX_FILES]; /* sizes */
    int fds[MAX_FILES];        /* -1: not open */
    bool sub_exists;
};

static uint64_t draw(struct worker *w, uint64_t below)
{
    w->random = w->random * 6364136223846793005u + 1442695040888963407u;
    return (w->random >> 33) % below;
}

/* Where name n of a worker lives; the second directory comes and goes. */
static void path_of(const struct worker *w, unsigned n, char out[PATH_LEN])
{
    static const char *const places[] = { "own%u/n%u", "shared/w%u-n%u", "own%u/sub/n%u" };
    snprintf(out, PATH_LEN, places[n % NR_DIRS], w->number, n);
}
static void dir_of(const struct worker *w, unsigned n, char out[PATH_LEN])
{
    static const char *const places[] = { "own%u", "shared", "own%u/sub" };
    snprintf(out, PATH_LEN, places[n % NR_DIRS], w->number);
}

static uint64_t now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static void note(struct worker *w, struct event *e, uint32_t done)
{
    e->done = done;
    e->at = now();
    if (write(w->log, e, sizeof *e) != (ssize_t)sizeof *e) {
        perror("crash_load: the log");
        _exit(2);
    }
}

/* The mount is gone, which ends the work; anything else is the file system's mistake. */
static void check(struct worker *w, const char *what, long long result)
{
    if (result >= 0)
        return;
    if (w->end == UINT64_MAX &&
        (errno == ENOTCONN || errno == ECONNABORTED || errno == EIO || errno == ENODEV ||
         errno == ECANCELED)) /* a request that io_uring was just handing to it */
        _exit(0);
    fprintf(stderr, "crash_load: worker %u: %s: %s\n", w->number, what, strerror(errno));
    _exit(1);
}

static void on_sigbus(int signal)
{
    (void)signal;
    _exit(0); /* the mapping's file system is gone */
}

static int fd_of(struct worker *w, unsigned n)
{
    uint32_t file = w->names[n].file;
    if (w->fds[file] < 0) {
        char path[PATH_LEN];
        path_of(w, n, path);
        w->fds[file] = open(path, O_RDWR);
        check(w, path, w->fds[file]);
    }
    return w->fds[file];
}
static void close_file(struct worker *w, uint32_t file)
{
    if (w->fds[file] >= 0)
        check(w, "close", close(w->fds[file]));
    w->fds[file] = -1;
}

/* A name in use (or free) whose directory exists; NR_NAMES: none found. */
static unsigned pick(struct worker *w, bool used)
{
    for (unsigned tries = 0; tries < 50; tries++) {
        unsigned n = (unsigned)draw(w, NR_NAMES);
        if (w->names[n].used == used && (n % NR_DIRS != 2 || w->sub_exists))
            return n;
    }
    return NR_NAMES;
}
static bool sub_is_empty(const struct worker *w)
{
    for (unsigned n = 2; n < NR_NAMES; n += NR_DIRS)
        if (w->names[n].used)
            return false;
    return true;
}
static bool has_other_name(const struct worker *w, unsigned n)
{
    for (unsigned i = 0; i < NR_NAMES; i++)
        if (i != n && w->names[i].used && w->names[i].file == w->names[n].file)
            return true;
    return false;
}

/* through: RWF_DSYNC, RWF_SYNC or 0. */
static void write_cells_by(struct worker *w, unsigned n, uint32_t from, uint32_t count, int fd,
                           int through)
{
    static struct cell cells[MAX_CELLS];
    uint32_t file = w->names[n].file;
    struct event e = {
        .op = OP_WRITE, .file = file, .from = from, .count = count, .generation = ++w->generation
    };
    for (uint32_t i = 0; i < count; i++)
        fill_cell(&cells[i], (uint64_t)w->number << 32 | (file + 1), from + i, e.generation);
    note(w, &e, 0);
    struct iovec iov = { .iov_base = cells, .iov_len = (size_t)count * CELL };
    ssize_t done = pwritev2(fd, &iov, 1, (off_t)from * CELL, through);
    check(w, "write", done);
    if (done != (ssize_t)count * (ssize_t)CELL)
        check(w, "a short write", (errno = ENOTCONN, -1));
    if (from + count > w->cells[file])
        w->cells[file] = from + count;
    note(w, &e, 1);
}

static void write_cells(struct worker *w, unsigned n, uint32_t from, uint32_t count)
{
    write_cells_by(w, n, from, count, fd_of(w, n), 0);
}

static void note_synced_cells(struct worker *w, unsigned n, uint32_t from, uint32_t count)
{
    struct event e = { .op = OP_SYNC_CELLS,
                       .file = w->names[n].file,
                       .from = from,
                       .count = count,
                       .data_only = true };
    note(w, &e, 0);
    note(w, &e, 1);
}

/* A new file of that name, open.   Returns its number. */
static uint32_t make_file(struct worker *w, unsigned n, uint32_t mode)
{
    struct event e = { .op = OP_CREATE, .file = w->files, .mode = mode };
    path_of(w, n, e.path);
    note(w, &e, 0);
    int fd = open(e.path, O_RDWR | O_CREAT | O_EXCL, e.mode);
    check(w, e.path, fd);
    struct stat st;
    check(w, "fstat", fstat(fd, &st));
    e.ino = st.st_ino;
    w->names[n].used = true;
    w->names[n].file = w->files++;
    w->fds[e.file] = fd;
    note(w, &e, 1);
    return e.file;
}

static void create(struct worker *w)
{
    unsigned n = pick(w, false);
    if (n == NR_NAMES || w->files == MAX_FILES)
        return;
    (void)make_file(w, n, 0600 | (uint32_t)draw(w, 0200));
    if (draw(w, 4) != 0)
        write_cells(w, n, 0, 1 + (uint32_t)draw(w, 40));
}

static void overwrite(struct worker *w)
{
    unsigned n = pick(w, true);
    if (n == NR_NAMES)
        return;
    uint32_t size = w->cells[w->names[n].file], from = 0;
    uint32_t kind = (uint32_t)draw(w, 4);
    if (kind == 0) /* append */
        from = size;
    else if (kind == 1) /* leave a hole, maybe */
        from = (uint32_t)draw(w, MAX_CELLS - 64);
    else if (size > 0)
        from = (uint32_t)draw(w, size);
    if (from > MAX_CELLS - 64)
        from = 0;
    write_cells(w, n, from, 1 + (uint32_t)draw(w, draw(w, 3) == 0 ? 64 : 8));
}

/* Overwrite or append, and have it be durable with that: by the descriptor or by the call. */
static void write_through(struct worker *w)
{
    static const int flags[] = { O_SYNC, O_DSYNC, O_SYNC | O_DIRECT };
    unsigned n = pick(w, true);
    if (n == NR_NAMES)
        return;
    uint32_t size = w->cells[w->names[n].file], kind = (uint32_t)draw(w, 5);
    uint32_t from = (uint32_t)draw(w, draw(w, 2) == 0 ? 1 + size : 8);
    uint32_t count = 1 + (uint32_t)draw(w, 12);
    if (draw(w, 2) == 0 && size < MAX_CELLS - 64)
        from = size;
    if (from > MAX_CELLS - 64)
        from = 0;
    if (kind >= 3) {
        write_cells_by(w, n, from, count, fd_of(w, n), kind == 3 ? RWF_DSYNC : RWF_SYNC);
    } else {
        char path[PATH_LEN];
        path_of(w, n, path);
        int fd = open(path, O_RDWR | flags[kind]);
        check(w, path, fd);
        write_cells_by(w, n, from, count, fd, 0);
        check(w, "close", close(fd));
    }
    note_synced_cells(w, n, from, count);
}

/* As a database's log grows. */
static void append_durably(struct worker *w)
{
    unsigned n = pick(w, true);
    if (n == NR_NAMES)
        return;
    struct event s = { .op = OP_FSYNC, .file = w->names[n].file, .data_only = true };
    for (uint64_t i = 1 + draw(w, 4); i > 0 && w->cells[s.file] < MAX_CELLS - 64; i--) {
        write_cells(w, n, w->cells[s.file], 1 + (uint32_t)draw(w, 12));
        note(w, &s, 0);
        check(w, "fdatasync", fdatasync(fd_of(w, n)));
        note(w, &s, 1);
    }
}

static void store_cells(struct worker *w)
{
    unsigned n = pick(w, true);
    if (n == NR_NAMES || w->cells[w->names[n].file] == 0)
        return;
    uint32_t file = w->names[n].file, size = w->cells[file];
    uint32_t from = (uint32_t)draw(w, size);
    uint32_t count = 1 + (uint32_t)draw(w, size - from < 16 ? size - from : 16);
    struct event e = {
        .op = OP_MAP, .file = file, .from = from, .count = count, .generation = ++w->generation
    };
    size_t len = (size_t)size * CELL;
    struct cell *map = mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_SHARED, fd_of(w, n), 0);
    check(w, "mmap", map == MAP_FAILED ? -1 : 0);
    note(w, &e, 0);
    for (uint32_t i = 0; i < count; i++)
        fill_cell(&map[from + i], (uint64_t)w->number << 32 | (file + 1), from + i, e.generation);
    note(w, &e, 1);
    if (draw(w, 3) == 0) {
        struct event s = { .op = OP_FSYNC, .file = file, .data_only = true };
        note(w, &s, 0);
        check(w, "msync", msync(map, len, MS_SYNC)); /* of the whole file */
        note(w, &s, 1);
    }
    munmap(map, len);
}

static void resize(struct worker *w)
{
    unsigned n = pick(w, true);
    if (n == NR_NAMES)
        return;
    uint32_t file = w->names[n].file;
    struct event e = { .op = OP_TRUNCATE, .file = file, .from = (uint32_t)draw(w, MAX_CELLS / 4) };
    int fd = fd_of(w, n);
    note(w, &e, 0);
    check(w, "ftruncate", ftruncate(fd, (off_t)e.from * CELL));
    w->cells[file] = e.from;
    note(w, &e, 1);
}

static void punch(struct worker *w)
{
    unsigned n = pick(w, true);
    if (n == NR_NAMES)
        return;
    uint32_t file = w->names[n].file;
    struct event e = { .op = OP_PUNCH,
                       .file = file,
                       .from = (uint32_t)draw(w, MAX_CELLS / 2),
                       .count = 1 + (uint32_t)draw(w, 60) };
    int fd = fd_of(w, n);
    note(w, &e, 0);
    check(w, "punch",
          fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)e.from * CELL,
                    (off_t)e.count * CELL));
    note(w, &e, 1);
}

static void sync_file(struct worker *w)
{
    unsigned n = pick(w, true);
    if (n == NR_NAMES)
        return;
    struct event e = { .op = OP_FSYNC, .file = w->names[n].file, .data_only = draw(w, 2) == 0 };
    int fd = fd_of(w, n);
    note(w, &e, 0);
    check(w, "fsync", e.data_only ? fdatasync(fd) : fsync(fd));
    note(w, &e, 1);
}

static void sync_dir(struct worker *w, unsigned n)
{
    struct event e = { .op = OP_FSYNCDIR };
    dir_of(w, n, e.path);
    if (n % NR_DIRS == 2 && !w->sub_exists)
        return;
    int fd = open(e.path, O_RDONLY | O_DIRECTORY);
    check(w, e.path, fd);
    note(w, &e, 0);
    check(w, "fsync of a directory", fsync(fd));
    note(w, &e, 1);
    check(w, "close", close(fd));
}

static void move(struct worker *w)
{
    unsigned n = pick(w, true), to = pick(w, draw(w, 2) == 0);
    if (n == NR_NAMES || to == NR_NAMES || n == to)
        return;
    /* rename(2) of two names of one file does nothing: not interesting here */
    if (w->names[to].used && w->names[to].file == w->names[n].file)
        return;
    struct event e = { .op = OP_RENAME, .file = w->names[n].file };
    path_of(w, n, e.path);
    path_of(w, to, e.path2);
    close_file(w, e.file); /* as everybody does who replaces a file */
    bool last = w->names[to].used && !has_other_name(w, to);
    uint32_t replaced = w->names[to].file;
    note(w, &e, 0);
    check(w, "rename", rename(e.path, e.path2));
    w->names[n].used = false;
    w->names[to].used = true;
    w->names[to].file = e.file;
    note(w, &e, 1);
    if (last)
        close_file(w, replaced);
    if (draw(w, 3) == 0)
        sync_dir(w, to);
}

static void link_name(struct worker *w)
{
    unsigned n = pick(w, true), to = pick(w, false);
    if (n == NR_NAMES || to == NR_NAMES)
        return;
    struct event e = { .op = OP_LINK, .file = w->names[n].file };
    path_of(w, n, e.path);
    path_of(w, to, e.path2);
    note(w, &e, 0);
    check(w, "link", link(e.path, e.path2));
    w->names[to] = w->names[n];
    note(w, &e, 1);
}

static void unlink_name(struct worker *w)
{
    unsigned n = pick(w, true);
    if (n == NR_NAMES)
        return;
    struct event e = { .op = OP_UNLINK, .file = w->names[n].file };
    path_of(w, n, e.path);
    bool last = !has_other_name(w, n);
    note(w, &e, 0);
    check(w, "unlink", unlink(e.path));
    w->names[n].used = false;
    note(w, &e, 1);
    if (last && draw(w, 2) == 0)
        close_file(w, e.file); /* else: an orphan when the daemon dies */
}

static void change_mode(struct worker *w)
{
    unsigned n = pick(w, true);
    if (n == NR_NAMES)
        return;
    struct event e = { .op = OP_CHMOD,
                       .file = w->names[n].file,
                       .mode = 0600 | (uint32_t)draw(w, 0200) };
    path_of(w, n, e.path);
    note(w, &e, 0);
    check(w, "chmod", chmod(e.path, e.mode));
    note(w, &e, 1);
}

static void make_or_remove_sub(struct worker *w)
{
    struct event e = { .op = w->sub_exists ? OP_RMDIR : OP_MKDIR, .mode = 0755 };
    dir_of(w, 2, e.path);
    if (w->sub_exists && !sub_is_empty(w))
        return;
    note(w, &e, 0);
    if (w->sub_exists) {
        check(w, "rmdir", rmdir(e.path));
    } else {
        check(w, "mkdir", mkdir(e.path, e.mode));
        struct stat st;
        check(w, "stat", stat(e.path, &st));
        e.ino = st.st_ino;
    }
    w->sub_exists = !w->sub_exists;
    note(w, &e, 1);
}

/* The way careful programs replace a file: write a new one, fsync it, rename it over the old. */
static void replace_carefully(struct worker *w)
{
    unsigned to = pick(w, true), n = pick(w, false);
    if (to == NR_NAMES || n == NR_NAMES || w->files == MAX_FILES)
        return;
    uint32_t file = make_file(w, n, 0644);
    write_cells(w, n, 0, 1 + (uint32_t)draw(w, 60));
    if (draw(w, 2) == 0) {
        struct event s = { .op = OP_FSYNC, .file = file };
        note(w, &s, 0);
        check(w, "fsync", fsync(w->fds[file]));
        note(w, &s, 1);
    }
    close_file(w, file);
    if (w->names[to].file == file)
        return;
    struct event r = { .op = OP_RENAME, .file = file };
    path_of(w, n, r.path);
    path_of(w, to, r.path2);
    bool last = !has_other_name(w, to);
    uint32_t replaced = w->names[to].file;
    note(w, &r, 0);
    check(w, "rename", rename(r.path, r.path2));
    w->names[n].used = false;
    w->names[to].file = file;
    note(w, &r, 1);
    if (last)
        close_file(w, replaced);
    if (draw(w, 2) == 0)
        sync_dir(w, to);
}

static void work(struct worker *w)
{
    struct rlimit files;
    getrlimit(RLIMIT_NOFILE, &files);
    files.rlim_cur = files.rlim_max; /* many stay open */
    setrlimit(RLIMIT_NOFILE, &files);
    if (w->end == UINT64_MAX)
        signal(SIGBUS, on_sigbus);
    umask(0);
    for (size_t i = 0; i < MAX_FILES; i++)
        w->fds[i] = -1;
    while (now() < w->end) {
        switch (draw(w, 22)) {
        case 0:
        case 1:
        case 2:
            create(w);
            break;
        case 3:
        case 4:
        case 5:
        case 6:
            overwrite(w);
            break;
        case 7:
        case 8:
            store_cells(w);
            break;
        case 9:
            resize(w);
            break;
        case 10:
            punch(w);
            break;
        case 11:
        case 12:
            sync_file(w);
            break;
        case 13:
            sync_dir(w, (unsigned)draw(w, NR_DIRS));
            break;
        case 14:
            move(w);
            break;
        case 15:
            link_name(w);
            break;
        case 16:
            unlink_name(w);
            break;
        case 17:
            change_mode(w);
            break;
        case 18:
            make_or_remove_sub(w);
            break;
        case 19:
            write_through(w);
            break;
        case 20:
            append_durably(w);
            break;
        default:
            replace_carefully(w);
            break;
        }
    }
}

static void log_name(char *out, size_t size, const char *log, unsigned number)
{
    snprintf(out, size, "%s.%u", log, number);
}

static int run(const char *dir, const char *log, uint64_t seed, unsigned workers, uint64_t seconds)
{
    static struct worker w;
    char name[4096];
    for (unsigned i = 0; i < workers; i++) {
        if (fork() != 0)
            continue;
        w.number = i;
        w.random = mix(seed * MAX_WORKERS + i);
        w.dir = dir;
        w.end = seconds > 0 ? now() + seconds * 1000000000u : UINT64_MAX;
        log_name(name, sizeof name, log, i);
        w.log = open(name, O_WRONLY | O_CREAT | O_TRUNC | O_APPEND, 0644);
        if (w.log < 0) {
            perror(name);
            _exit(2);
        }
        if (chdir(dir) != 0)
            check(&w, dir, -1);
        work(&w);
        _exit(0);
    }
    int status, bad = 0;
    while (wait(&status) > 0)
        if (!WIFEXITED(status) || WEXITSTATUS(status) != 0)
            bad = 1;
    return bad;
}

/* ---- verifying ------------------------------------------------------------------------------- */

static int violations;
__attribute__((format(printf, 1, 2))) static void violation(const char *format, ...)
{
    va_list args;
    va_start(args, format);
    if (violations++ < 20) {
        vprintf(format, args);
        putchar('\n');
    }
    va_end(args);
}

struct words {
    uint64_t until, age;
    bool in_order;
};

struct history {
    unsigned worker;
    struct event
        *events; /* intents only; done, ino and at are filled in from the acknowledgements */
    size_t count;
    struct words words;
};

/* Read a log: each intent is followed by its acknowledgement, but the last maybe. */
static void read_history(struct history *h, const char *log, unsigned number)
{
    char name[4096];
    log_name(name, sizeof name, log, number);
    FILE *f = fopen(name, "r");
    struct event e;
    h->worker = number;
    while (f != NULL && fread(&e, sizeof e, 1, f) == 1 && e.at <= h->words.until) {
        if (e.done) {
            if (h->count == 0) {
                fprintf(stderr, "%s: begins with an acknowledgement\n", name);
                exit(2);
            }
            h->events[h->count - 1].done = 1;
            h->events[h->count - 1].ino = e.ino;
            h->events[h->count - 1].at = e.at;
            continue;
        }
        h->events = realloc(h->events, (h->count + 1) * sizeof e);
        h->events[h->count++] = e;
    }
    if (f != NULL)
        fclose(f);
}

/* A worker's names after some of its operations, or as found. */
struct tree {
    size_t count;
    struct node {
        char path[PATH_LEN];
        bool dir;
        uint32_t file;
        uint64_t ino; /* 0: not known */
        uint32_t mode, links;
    } nodes[NR_NAMES + 2];
};

static struct node *find_node(struct tree *t, const char *path)
{
    for (size_t i = 0; i < t->count; i++)
        if (strcmp(t->nodes[i].path, path) == 0)
            return &t->nodes[i];
    return NULL;
}
static void add_node(struct tree *t, const char *path, struct node like)
{
    struct node *n = find_node(t, path);
    if (n == NULL)
        n = &t->nodes[t->count++];
    *n = like;
    snprintf(n->path, PATH_LEN, "%s", path);
}
static void remove_node(struct tree *t, const char *path)
{
    struct node *n = find_node(t, path);
    if (n != NULL)
        *n = t->nodes[--t->count];
}
static void count_links(struct tree *t)
{
    for (size_t i = 0; i < t->count; i++) {
        t->nodes[i].links = 0;
        for (size_t k = 0; k < t->count; k++)
            t->nodes[i].links +=
                !t->nodes[i].dir && !t->nodes[k].dir && t->nodes[k].file == t->nodes[i].file;
    }
}

/* Apply one operation on names.   Returns false: it is none. */
static bool apply(struct tree *t, const struct event *e)
{
    struct node *n = find_node(t, e->path);
    switch ((enum op)e->op) {
    case OP_CREATE:
        add_node(t, e->path, (struct node){ .file = e->file, .ino = e->ino, .mode = e->mode });
        return true;
    case OP_MKDIR:
        add_node(t, e->path, (struct node){ .dir = true, .ino = e->ino, .mode = e->mode });
        return true;
    case OP_UNLINK:
    case OP_RMDIR:
        remove_node(t, e->path);
        return true;
    case OP_RENAME:
    case OP_LINK: {
        struct node moved = *n;
        if (e->op == OP_RENAME)
            remove_node(t, e->path);
        add_node(t, e->path2, moved);
        return true;
    }
    case OP_CHMOD:
        for (size_t i = 0; i < t->count; i++)
            if (!t->nodes[i].dir && t->nodes[i].file == e->file)
                t->nodes[i].mode = e->mode;
        return true;
    case OP_WRITE:
    case OP_MAP:
    case OP_TRUNCATE:
    case OP_PUNCH:
    case OP_FSYNC:
    case OP_FSYNCDIR:
    case OP_SYNC_CELLS:
        break;
    }
    return false;
}

static bool same_node(const struct node *a, const struct node *found)
{
    return a->dir == found->dir && a->mode == found->mode && (a->dir || a->links == found->links) &&
           (a->ino == 0 || a->ino == found->ino);
}
static bool same_tree(struct tree *a, struct tree *found)
{
    if (a->count != found->count)
        return false;
    count_links(a);
    for (size_t i = 0; i < a->count; i++) {
        struct node *n = find_node(found, a->nodes[i].path);
        if (n == NULL || !same_node(&a->nodes[i], n))
            return false;
    }
    return true;
}

static void mark_replacements(struct history *h)
{
    struct tree t = { 0 };
    for (size_t i = 0; i < h->count; i++) {
        struct event *e = &h->events[i];
        e->replaces = e->op == OP_RENAME && find_node(&t, e->path2) != NULL;
        apply(&t, e);
    }
}

static void found_in(struct tree *t, const char *dir, const char *prefix)
{
    DIR *d = opendir(dir);
    struct dirent *e;
    while (d != NULL && (errno = 0, e = readdir(d)) != NULL) {
        if (e->d_name[0] == '.' || strncmp(e->d_name, prefix, strlen(prefix)) != 0)
            continue;
        char path[300];
        struct stat st;
        snprintf(path, sizeof path, "%s/%s", dir, e->d_name);
        if (lstat(path, &st) != 0) {
            violation("%s: listed, but: %s", path, strerror(errno));
            continue;
        }
        if (t->count == NR_NAMES + 2 || strlen(path) >= PATH_LEN) {
            violation("%s: too many names, or a strange one", path);
            continue;
        }
        add_node(t, path,
                 (struct node){ .dir = S_ISDIR(st.st_mode),
                                .ino = st.st_ino,
                                .mode = st.st_mode & 07777,
                                .links = (uint32_t)st.st_nlink });
        if (S_ISDIR(st.st_mode))
            found_in(t, path, "");
    }
    if (errno != 0 && (d != NULL || errno != ENOENT)) /* where it is not, nothing may be expected */
        violation("%s: %s", dir, strerror(errno));
    if (d != NULL)
        closedir(d);
}

static bool in_directory(const char *path, const char *dir)
{
    size_t n = strlen(dir);
    return strncmp(path, dir, n) == 0 && path[n] == '/' && strchr(path + n + 1, '/') == NULL;
}

/* (A link leaves the directory of the name it starts from alone.) */
static bool changes_directory(const struct event *e, const char *dir)
{
    if (e->op > OP_LINK)
        return false;
    return (e->op != OP_LINK && in_directory(e->path, dir)) ||
           (e->path2[0] != '\0' && in_directory(e->path2, dir));
}

/* Does an fsync of the file make the change durable? (fdatasync need not care for more than that
 * the data can be found.) */
static bool changes_inode(const struct event *e, const struct event *sync)
{
    if (e->file != sync->file)
        return false;
    if (sync->data_only)
        return e->op == OP_CREATE;
    return e->op == OP_CREATE || e->op == OP_RENAME || e->op == OP_LINK || e->op == OP_UNLINK ||
           e->op == OP_CHMOD;
}

static bool is_sync(const struct event *e)
{
    return e->done && (e->op == OP_FSYNC || e->op == OP_FSYNCDIR || e->op == OP_SYNC_CELLS);
}

/* One more than the last operation on names that acknowledged syncs, or time, made durable. */
static size_t durable_names(const struct history *h)
{
    size_t least = 0;
    for (size_t i = 0; i < h->count; i++) {
        const struct event *s = &h->events[i];
        if (s->done && s->op <= OP_CHMOD && h->words.until - s->at >= h->words.age)
            least = i + 1;
        if (!is_sync(s))
            continue;
        for (size_t k = i; k-- > least;) {
            const struct event *e = &h->events[k];
            bool covered =
                s->op == OP_FSYNCDIR ? changes_directory(e, s->path) : changes_inode(e, s);
            if (covered) {
                least = k + 1;
                break;
            }
        }
    }
    return least;
}

/* Find the shortest prefix whose names are those found.   Returns events in it; SIZE_MAX: none. */
static size_t find_prefix(const struct history *h, struct tree *found, struct tree *out)
{
    size_t least = durable_names(h);
    struct tree t = { 0 };
    if (least == 0 && same_tree(&t, found)) {
        *out = t;
        return 0;
    }
    for (size_t i = 0; i < h->count; i++) {
        if (apply(&t, &h->events[i]) && i + 1 >= least && same_tree(&t, found)) {
            *out = t;
            return i + 1;
        }
        if (i + 1 == least && same_tree(&t, found)) {
            *out = t;
            return i + 1;
        }
    }
    return SIZE_MAX;
}

/* What may be found of one file. */
struct expected {
    size_t synced; /* events before it are durable for this file's content */
    uint32_t min_cells, max_cells;
};

static bool extends_beyond(const struct event *e, uint32_t cell)
{
    if (e->op == OP_TRUNCATE)
        return e->from > cell;
    return e->op == OP_WRITE && e->from + e->count > cell;
}

static uint32_t extended_to(const struct event *e, uint32_t size)
{
    return e->from + e->count > size ? e->from + e->count : size;
}
static uint32_t size_after(const struct event *e, uint32_t size)
{
    if (e->op == OP_TRUNCATE)
        return e->from;
    return e->op == OP_WRITE ? extended_to(e, size) : size;
}

static struct expected expect(const struct history *h, uint32_t file, size_t names)
{
    struct expected x = { 0 };
    for (size_t i = 0; i < h->count; i++) {
        const struct event *e = &h->events[i];
        if (e->file == file && e->op == OP_FSYNC && e->done)
            x.synced = i;
        if (e->file == file && e->op == OP_RENAME && e->replaces && i < names)
            x.synced = i;
    }
    uint32_t size = 0, reached = 0; /* reached: by cells that are durable */
    for (size_t i = 0; i < h->count; i++) {
        if (i == x.synced)
            x.min_cells = x.max_cells = size;
        if (h->events[i].file != file)
            continue;
        size = size_after(&h->events[i], size);
        if (h->events[i].op == OP_SYNC_CELLS && h->events[i].done)
            reached = extended_to(&h->events[i], reached);
        reached = size < reached ? size : reached;
        if (i >= x.synced) {
            x.min_cells = size < x.min_cells ? size : x.min_cells;
            x.max_cells = size > x.max_cells ? size : x.max_cells;
        }
    }
    x.min_cells = x.min_cells < reached ? reached : x.min_cells;
    return x;
}

static bool covers(const struct event *e, uint32_t place)
{
    return place >= e->from && place < e->from + e->count;
}

/* Was there a zero in the file at place, at the event or later? */
static bool was_zero(const struct history *h, uint32_t file, uint32_t place, size_t from)
{
    uint32_t size = 0;
    bool zero = true;
    for (size_t i = 0; i < h->count; i++) {
        const struct event *e = &h->events[i];
        if (e->file != file)
            continue;
        if (i >= from && zero && size > place)
            return true;
        size = size_after(e, size);
        if ((e->op == OP_PUNCH && covers(e, place)) || (e->op == OP_TRUNCATE && e->from <= place))
            zero = true;
        else if ((e->op == OP_WRITE || e->op == OP_MAP) && covers(e, place))
            zero = false;
    }
    return zero && size > place;
}

/* May cell (as read) be what is at place in the file? */
struct candidates {
    uint64_t generations[512];
    size_t count;
    bool zero, mapped;
};

/* Returns the event from which on the cell's content is not certain. */
static size_t list_candidates(const struct history *h, uint32_t file, uint32_t place, size_t synced,
                              struct candidates *c)
{
    bool extended = false; /* a later operation made the file reach beyond place */
    for (size_t i = h->count; i-- > 0;) {
        const struct event *e = &h->events[i];
        if (e->file != file)
            continue;
        if (e->op == OP_SYNC_CELLS && e->done && i > synced && covers(e, place))
            synced = i;
        bool changes =
            (e->op == OP_WRITE || e->op == OP_MAP || e->op == OP_PUNCH) && covers(e, place);
        if (e->op == OP_TRUNCATE && e->from <= place) {
            /* Cut off here; that the file reaches beyond means it did not happen, or that it was
             * extended again. */
            if (extended || i < synced)
                c->zero = true;
            changes = true;
        } else if (changes && e->op == OP_PUNCH) {
            c->zero = true;
        } else if (changes && c->count < 512) {
            c->generations[c->count++] = e->generation;
            c->mapped |= e->op == OP_MAP;
        }
        if (changes && i < synced)
            return synced;
        extended |= extends_beyond(e, place);
    }
    c->zero = true; /* nothing was there at the last sync */
    return synced;
}

static void find_candidates(const struct history *h, uint32_t file, uint32_t place,
                            const struct expected *x, struct candidates *c)
{
    *c = (struct candidates){ 0 };
    size_t synced = list_candidates(h, file, place, x->synced, c);
    if (h->words.in_order)
        c->zero = was_zero(h, file, place, synced);
}

static bool fits(const struct cell *cell, uint64_t id, uint32_t place, const struct candidates *c)
{
    struct cell good[513];
    size_t n = 0;
    if (c->zero) {
        if (is_zero(cell))
            return true;
        memset(&good[n++], 0, CELL);
    }
    for (size_t i = 0; i < c->count; i++) {
        fill_cell(&good[n], id, place, c->generations[i]);
        if (memcmp(cell, &good[n++], CELL) == 0)
            return true;
    }
    if (!c->mapped)
        return false;
    const uint64_t *words = (const uint64_t *)(const void *)cell;
    for (size_t k = 0; k < CELL / 8; k++) {
        bool known = false;
        for (size_t i = 0; i < n && !known; i++)
            known = words[k] == ((const uint64_t *)(const void *)&good[i])[k];
        if (!known)
            return false;
    }
    return true;
}

static void check_content(const struct history *h, const struct node *node, size_t names)
{
    static struct cell cells[MAX_CELLS + 1];
    static struct candidates c;
    struct expected x = expect(h, node->file, names);
    int fd = open(node->path, O_RDONLY);
    ssize_t len = fd >= 0 ? pread(fd, cells, sizeof cells, 0) : -1;
    if (fd >= 0)
        close(fd);
    if (len < 0) {
        violation("%s: cannot be read: %s", node->path, strerror(errno));
        return;
    }
    uint32_t nr = (uint32_t)len / CELL;
    if (len % CELL != 0 || nr < x.min_cells || nr > x.max_cells) {
        violation("%s: file %u has %zd bytes; it should be %u to %u cells of %u bytes (event %zu)",
                  node->path, node->file, len, x.min_cells, x.max_cells, CELL, x.synced);
        nr = nr < MAX_CELLS ? nr : MAX_CELLS;
    }
    for (uint32_t i = 0; i < nr; i++) {
        find_candidates(h, node->file, i, &x, &c);
        uint64_t id = (uint64_t)h->worker << 32 | (node->file + 1);
        if (fits(&cells[i], id, i, &c))
            continue;
        violation("%s: file %u, cell %u of %u is %s: it says file %llx, place %llu, generation "
                  "%llu; %zu generations from %llu to %llu%s would do (synced at event %zu)",
                  node->path, node->file, i, nr,
                  is_zero(&cells[i])    ? "zeros"
                  : cells[i].file != id ? "FOREIGN"
                                        : "wrong",
                  (unsigned long long)cells[i].file, (unsigned long long)cells[i].place,
                  (unsigned long long)cells[i].generation, c.count,
                  (unsigned long long)(c.count ? c.generations[c.count - 1] : 0),
                  (unsigned long long)(c.count ? c.generations[0] : 0), c.zero ? " or zeros" : "",
                  x.synced);
        return;
    }
}

static void print_tree(const char *what, struct tree *t)
{
    count_links(t);
    printf("  %s:\n", what);
    for (size_t i = 0; i < t->count; i++)
        printf("    %s file %u ino %llu mode %o links %u\n", t->nodes[i].path, t->nodes[i].file,
               (unsigned long long)t->nodes[i].ino, t->nodes[i].mode, t->nodes[i].links);
}

static void explain(const struct history *h, struct tree *found)
{
    struct tree last = { 0 };
    printf("  found:\n");
    for (size_t i = 0; i < found->count; i++)
        printf("    %s ino %llu mode %o links %u\n", found->nodes[i].path,
               (unsigned long long)found->nodes[i].ino, found->nodes[i].mode,
               found->nodes[i].links);
    for (size_t i = 0; i < h->count; i++)
        apply(&last, &h->events[i]);
    print_tree("after everything", &last);
    printf("  the last operations on names (durable up to %zu):\n", durable_names(h));
    static const char *const names[] = { "create", "mkdir", "rmdir", "unlink",
                                         "rename", "link",  "chmod" };
    for (size_t i = h->count > 60 ? h->count - 60 : 0; i < h->count; i++)
        if (h->events[i].op <= OP_CHMOD)
            printf("    %zu %s file %u %s %s %o%s\n", i, names[h->events[i].op], h->events[i].file,
                   h->events[i].path, h->events[i].path2, h->events[i].mode,
                   h->events[i].done ? "" : " (not acknowledged)");
}

static void verify_worker(const char *log, unsigned number, const struct words *words)
{
    struct history h = { .words = *words };
    struct tree found = { 0 }, t = { 0 };
    char name[PATH_LEN];
    read_history(&h, log, number);
    mark_replacements(&h);
    snprintf(name, sizeof name, "own%u", number);
    found_in(&found, name, "");
    snprintf(name, sizeof name, "w%u-", number);
    found_in(&found, "shared", name);
    size_t prefix = find_prefix(&h, &found, &t);
    if (prefix == SIZE_MAX) {
        violation("worker %u: its names are after no prefix of its %zu operations, from %zu on",
                  number, h.count, durable_names(&h));
        explain(&h, &found);
    } else {
        for (size_t i = 0; i < t.count; i++)
            if (!t.nodes[i].dir)
                check_content(&h, &t.nodes[i], prefix);
    }
    free(h.events);
}

static int verify(const char *dir, const char *log, unsigned workers, const struct words *words)
{
    if (chdir(dir) != 0) {
        perror(dir);
        return 2;
    }
    for (unsigned i = 0; i < workers; i++)
        verify_worker(log, i, words);
    if (violations > 0)
        printf("%d violations\n", violations);
    return violations > 0;
}

static int print_acks(const char *log, unsigned workers)
{
    for (unsigned worker = 0; worker < workers; worker++) {
        struct history h = { .words.until = UINT64_MAX };
        read_history(&h, log, worker);
        for (size_t i = 0; i < h.count; i++)
            if (is_sync(&h.events[i]))
                printf("%llu\n", (unsigned long long)h.events[i].at);
        free(h.events);
    }
    return 0;
}

/* ---- sums ------------------------------------------------------------------------------------ */

static uint64_t sum_bytes(uint64_t sum, const void *data, size_t len)
{
    const unsigned char *p = data;
    while (len-- > 0)
        sum = (sum ^ *p++) * 0x100000001b3u;
    return sum;
}

/* The order of the entries does not count. */
static uint64_t sum_tree(const char *path)
{
    static unsigned char buf[MAX_CELLS * CELL];
    struct stat st;
    if (lstat(path, &st) != 0) {
        perror(path);
        exit(2);
    }
    uint64_t sum = sum_bytes(0xcbf29ce484222325u, path, strlen(path));
    sum = mix(mix(mix(sum ^ st.st_mode) ^ st.st_ino) ^ (uint64_t)st.st_mtim.tv_nsec);
    if (S_ISREG(st.st_mode)) {
        int fd = open(path, O_RDONLY);
        ssize_t n = read(fd, buf, sizeof buf);
        if (n < 0) {
            perror(path);
            exit(2);
        }
        close(fd);
        return sum_bytes(sum, buf, (size_t)n);
    }
    DIR *d = opendir(path);
    struct dirent *e;
    while (d != NULL && (e = readdir(d)) != NULL) {
        char below[4096];
        if (strcmp(e->d_name, ".") == 0 || strcmp(e->d_name, "..") == 0)
            continue;
        snprintf(below, sizeof below, "%s/%s", path, e->d_name);
        sum += mix(sum_tree(below));
    }
    if (d != NULL)
        closedir(d);
    return sum;
}

/* Returns false: one is not known. */
static bool read_words(char **argv, struct words *words)
{
    *words = (struct words){ .until = UINT64_MAX, .age = UINT64_MAX };
    for (; *argv != NULL; argv++)
        if (strncmp(*argv, "until=", 6) == 0)
            words->until = strtoull(*argv + 6, NULL, 10);
        else if (strncmp(*argv, "age=", 4) == 0)
            words->age = strtoull(*argv + 4, NULL, 10);
        else if (strcmp(*argv, "in-order") == 0)
            words->in_order = true;
        else
            return false;
    return true;
}

/* ---- growing --------------------------------------------------------------------------------- */

static int grow_file(const char *path, const struct stat *st, int type, struct FTW *where)
{
    static unsigned char buf[MAX_CELLS * CELL];
    (void)where;
    if (type != FTW_F)
        return 0;
    int fd = open(path, O_RDWR);
    if (fd < 0 || ftruncate(fd, st->st_size + (off_t)sizeof buf) != 0 ||
        pread(fd, buf, sizeof buf, st->st_size) != (ssize_t)sizeof buf) {
        perror(path);
        exit(2);
    }
    close(fd);
    size_t i = 0;
    while (i < sizeof buf && buf[i] == 0)
        i++;
    if (i < sizeof buf)
        violation("%s: when it grows beyond %lld bytes, byte %zu of that is not zero", path,
                  (long long)st->st_size, i);
    return 0;
}

/* What a crash has left of blocks behind the end of a file must not come into it. */
static int grow(const char *dir)
{
    if (nftw(dir, grow_file, 16, FTW_PHYS) != 0) {
        perror(dir);
        return 2;
    }
    return violations > 0;
}

int main(int argc, char **argv)
{
    struct words words;
    if ((argc == 6 || argc == 7) && strcmp(argv[1], "run") == 0)
        return run(argv[2], argv[3], strtoull(argv[4], NULL, 10), (unsigned)atoi(argv[5]),
                   argc == 7 ? strtoull(argv[6], NULL, 10) : 0);
    if (argc >= 5 && strcmp(argv[1], "verify") == 0 && read_words(argv + 5, &words))
        return verify(argv[2], argv[3], (unsigned)atoi(argv[4]), &words);
    if (argc == 4 && strcmp(argv[1], "acks") == 0)
        return print_acks(argv[2], (unsigned)atoi(argv[3]));
    if (argc == 3 && strcmp(argv[1], "grow") == 0)
        return grow(argv[2]);
    if (argc == 3 && strcmp(argv[1], "sum") == 0) {
        if (chdir(argv[2]) != 0) {
            perror(argv[2]);
            return 2;
        }
        printf("%016llx\n", (unsigned long long)sum_tree("."));
        return 0;
    }
    fprintf(stderr,
            "usage: crash_load run DIRECTORY LOG SEED WORKERS [SECONDS] | verify DIRECTORY LOG "
            "WORKERS [until=NS] [age=NS] [in-order] | acks LOG WORKERS | sum DIRECTORY | grow "
            "DIRECTORY\n");
    return 2;
}
