/* stress.h: folio-stress, a tool for anyone's filesystem. Read this first.
 *
 * Processes and threads work on a few shared files through every door there is: stores through
 * mappings, write(2), copy_file_range, truncation, holes, renames. A store that is lost, torn, stale,
 * misplaced or resurrected is found, and named.
 *
 * Cells. A file is a row of cells of 96 bytes. A page holds 42 2/3 of them: its cells are stored to by
 * different workers, through different doors, at the same time (which finds what loses a page's
 * worth of stores), and every page boundary that is not a multiple of three has a cell across it
 * (which finds what is torn). A cell's twelve words say who stored them, when, in which file, at
 * which place and the how-manieth time, with a checksum:
 *
 *     magic, how, who | file, cell | sequence | nanoseconds | 7 words drawn from these | checksum
 *
 * Oracle. Memory that all processes share holds, for every cell, the versions that it went through
 * (the latest HISTORY of them) and which of these it may hold now:
 *
 *     synced ... lo ... ver [ver + 1]
 *       |        |      |       `- begun and not ended (pending)
 *       |        `------'--------- it holds one of these; normally lo == ver, and then exactly that
 *       `------------------------- a crash may bring it back to this, but not further
 *
 * lo < ver is the outcome of an operation that failed, or of a crash in its middle; then every word
 * must come from one of these versions. A version may be all zeros, may be cut at either side (by a
 * truncation or a hole), and may have been copied from elsewhere.
 *
 * Locks, outermost first; what they protect is only the oracle's knowledge of what was done:
 *
 *     file.lock        shared: operations on cells. Exclusive: truncation, holes of many pages, rename
 *                      over, unlink, the bytes beyond the end   (several files: lower slot first)
 *       file.grow      who makes a file longer, beside those who work below its end
 *         cell.lock    ascending: a store and its record are one thing to everybody else
 *
 * fsync, msync, madvise, mremap take none of these while they run: they race with everything. (Mappings
 * are a worker's own; what mremap could harm are stores to the same pages through others.) So do readers
 * that peek: they note lo before and ver after, and every word must come from a version between.
 * Truncations and holes race, every third time, with stores and loads that take no lock at all; such
 * a store may raise SIGBUS, may be in the file for a moment, and must be gone when both have ended.
 *
 * A seed gives each worker its sequence of drawn operations. Their interleaving is the machine's, so
 * only --procs 1 --threads 1 replays exactly; with more workers a seed repeats the load, not the race.
 *
 * Files: options.c, view.c (descriptors, mappings and doors), oracle.c, check.c (comparing and naming),
 * timeline.c (what happened), worker.c (drawing), ops_*.c (doing), crash.c, main.c (the processes).
 */
#ifndef FOLIO_STRESS_H
#define FOLIO_STRESS_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#define PAGE_BYTES 4096u
#define CELL_WORDS 12u
#define CELL_BYTES (CELL_WORDS * 8u)
#define HISTORY    8u   /* versions remembered of a cell */
#define PAGE_RING  24u  /* events remembered of a page */
#define FILE_RING  64u  /* of a file: what concerns all of it */
#define MAX_RANGE  704u /* cells that one operation locks: 66 KiB */

/* ---- options --------------------------------------------------------------------------------- */

enum attach { ATTACH_NONE, ATTACH_ALL, ATTACH_MIXED };
enum coherence { COHERENCE_FULL, COHERENCE_FUSE };

enum op {
    OP_STORE,
    OP_LOAD,
    OP_WRITE,
    OP_READ,
    OP_EXTEND,
    OP_TRUNCATE,
    OP_PUNCH,
    OP_ZERO,
    OP_COPY,
    OP_FSYNC,
    OP_MSYNC,
    OP_MADVISE,
    OP_REMAP,
    OP_FORK,
    OP_RENAME,
    OP_UNLINK,
    OP_TAIL, /* bytes stored beyond the end of file must not come into it */
    OP_RACE, /* not drawn: a store or load that races with a truncation or a hole */
    NR_OPS,
};
extern const char *const op_names[NR_OPS];

struct options {
    const char *dir;
    const char *crash;  /* command, or NULL */
    const char *inject; /* likewise */
    uint64_t seed;
    unsigned seconds, procs, threads, files, pages, hang_s;
    uint64_t ops;      /* per worker; 0: until the time is over */
    uint32_t disabled; /* bit per op */
    enum attach attach;
    enum coherence coherence;
    bool errors; /* EIO, ENOSPC, ENOMEM and SIGBUS may come from the filesystem */
    bool stable; /* after a crash, what write(2) stored in one page is whole */
    bool keep;   /* the directory */
    bool beyond; /* not given: on FUSE, more is asked for than its kernel side promises */
};

/* Exits: 0 after --help (1 if nobody could be told), 2 for what it does not understand. */
void options_parse(struct options *o, int argc, char **argv);
/* The last use of standard output.   Returns false, having said so, if not all that was printed was written. */
bool close_output(void);

/* ---- shared memory --------------------------------------------------------------------------- */

struct version {      /* what a cell holds */
    uint64_t seq;     /* the cell's version number when it was stored; 0: zeros */
    uint64_t ns;      /* when, CLOCK_MONOTONIC */
    uint32_t file;    /* id of the file in which it was stored */
    uint32_t cell;    /* and where */
    uint16_t writer;  /* worker */
    uint8_t how;      /* enum op */
    uint8_t from, to; /* bytes outside are zeros */
};

struct cell { /* (l) lock  (a) atomic: may be read by who peeks */
    _Atomic uint32_t lock;
    _Atomic uint32_t pending;        /* 1: version ver + 1 has been begun           (l, a) */
    _Atomic uint64_t synced;         /* durable                                     (a) */
    _Atomic uint64_t lo, ver;        /*                                             (l, a) */
    struct version history[HISTORY]; /* of version v at v % HISTORY               (l, a) */
};

struct event { /* an operation that has ended */
    uint64_t begin_ns, end_ns;
    uint64_t arg;         /* size, version: as the operation likes */
    uint32_t first, last; /* cells */
    int32_t result;
    uint16_t worker;
    uint8_t op, slot;
    const char *detail; /* a constant */
};
struct ring {
    _Atomic uint32_t next;
};

struct
    file { /* one slot: a name, under which other files come (x) lock exclusively  (g) and grow */
    pthread_rwlock_t lock;
    pthread_mutex_t grow;
    _Atomic uint32_t id;   /* of the file that has the name now                   (x) */
    _Atomic uint64_t size; /*                                                     (x or shared+g) */
    _Atomic uint64_t size_min, size_max; /* since the last sync                   (as size) */
    _Atomic uint64_t size_changes;
    _Atomic uint32_t replacing; /* a crash may leave no file                      (x) */
    _Atomic uint32_t race, racers;
    _Atomic uint32_t race_first, race_last; /* pages in which racing stores go    (x) */
    struct ring ring;
};

struct worker_state { /* what a worker is doing, for timelines and for hangs */
    _Atomic uint64_t begin_ns;
    _Atomic uint32_t op, slot, first, last;
    _Atomic uint64_t done[NR_OPS], failed[NR_OPS];
    _Atomic uint64_t checks, peeks, overtaken, races, sigbus, syncs, not_inherited;
};

struct shared {
    _Atomic uint32_t stop, failed, crashing;
    _Atomic uint32_t unsupported; /* bit per op: the filesystem does not have it */
    _Atomic uint32_t next_id;
    uint32_t nr_cells; /* of a file */
    uint32_t nr_pages, nr_files, nr_workers;
    uint64_t start_ns;
    struct file *files;
    struct cell *cells;           /* nr_files * nr_cells */
    struct ring *rings;           /* nr_files * nr_pages */
    struct event *events;         /* PAGE_RING for each of these, then FILE_RING for each file */
    struct worker_state *workers; /* nr_workers, and one of the process that started them */
};

/* ---- a worker -------------------------------------------------------------------------------- */

struct door { /* whose mappings: the kernel's or libfolio's */
    const char *name;
    void *(*map)(void *, size_t, int, int, int, off_t);
    int (*unmap)(void *, size_t);
    int (*sync)(void *, size_t, int);
    int (*advise)(void *, size_t, int);
    int (*resident)(void *, size_t, unsigned char *);
    void *(*remap)(void *, size_t, size_t, int, void *);
};
struct doors {
    struct door door[2];
    unsigned nr;
};

struct view {              /* one worker's descriptor and mapping of one slot */
    int fd;                /* -1: closed */
    uint32_t id;           /* the file that it is */
    char *addr;            /* NULL: not mapped */
    uint32_t first, count; /* pages */
    const struct door *door;
};

struct worker {
    const struct options *o;
    struct shared *sh;
    const struct doors *doors;
    struct worker_state *state;
    unsigned id;
    uint64_t random;
    int dir; /* descriptor of the directory */
    struct view *views;
    uint64_t *snapshot; /* a version for each cell of a file */
    char *buffer;       /* MAX_RANGE cells */
    uint64_t round;
};

/* Everything that an operation decides, drawn before it looks at the state of things. */
struct draw {
    enum op op;
    uint32_t slot;
    uint64_t r[5];
};

uint64_t now_ns(void);
uint64_t mix64(uint64_t x);

#endif
