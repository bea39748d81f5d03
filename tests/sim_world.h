/* sim_world.h: what is simulated: a cache of a few pages, a few files on devices that are late and
 * fail, their owner, and what must hold between any two steps and at quiet moments. Everything that
 * can be chosen is drawn from the seed.
 *
 *     sim_draw.c    the options                     sim_world.c   building, faults, the owner
 *     sim_ops.c     what the tasks do               sim_check.c   what must hold
 *     sim_vma.c     mapped files
 */
#ifndef FOLIO_TESTS_SIM_WORLD_H
#define FOLIO_TESTS_SIM_WORLD_H

#include "cache/memory.h"
#include "cache/page_cache.h"
#include "store/dev_latency.h"
#include "tests/sim_model.h"
#include "tests/sim_sched.h"

#define FILES_MAX      3u
#define FILE_PAGES_MAX 48u
#define UNITS_PER_PAGE (PAGE_SIZE / UNIT_BYTES)
#define WORKERS_MAX    9u /* they share one thread's preload of tree nodes, which must suffice */
#define READ_PAGES_MAX 12u

enum sim_op {
    OP_READ,
    OP_GET_PAGES,
    OP_WRITE,
    OP_TRUNCATE,
    OP_GROW,
    OP_PUNCH,
    OP_ALLOCATE,
    OP_SYNC_ALL,
    OP_SYNC_NONE,
    OP_SYNC_CACHE,
    OP_DROP,
    OP_INVALIDATE,
    OP_RESIZE,
    OP_HOLD,
    OP_SCRIBBLE,
    OP_LOAD,
    OP_STORE,
    OP_POISON,
    OPS
};

struct sim_options {
    uint32_t pages, max_pages; /* of the cache */
    uint32_t files, file_pages, workers;
    uint32_t weights[OPS]; /* how often each operation is drawn */
    bool whole_pages;      /* writes are page-aligned */
    uint32_t write_pages;  /* at most, in one write */
    uint32_t ra_pages;     /* 0: no readahead */
    const struct ra_policy *ra_policy;
    struct latency_model latency;
    bool inline_device;         /* no latency: submit_bio() completes */
    uint32_t fault_per_million; /* 0: the store never fails */
    uint32_t fault_every;       /* steps between two changes of the weather */
    uint32_t reserve_fails;     /* per 1,000 */
    uint32_t protect_fails;     /* per 1,000 */
    uint32_t vma_busy;          /* per 1,000: an address space that is changing, -EAGAIN */
    bool late_discard;          /* the blocks of a replaced object stay for a while */
    bool flusher_alone;         /* at the end, only the flusher writes */
    struct cache_options cache;
    struct sched_options sched;
};

struct world;

struct sim_pte {
    struct page *page; /* NULL: a touch faults */
    bool writable;     /* else: a store faults */
};

struct sim_file {
    struct world *world;
    struct address_space m;
    struct rwsem i_rwsem;
    struct model model;
    struct device *trace, *fault, *latency; /* latency: NULL when inline */
    uint64_t objects;                       /* it has had */
    uint64_t old_object;                    /* replaced, its blocks still there; 0: none */
    int64_t promised, promised_new;         /* a_ops->reserve */
    int64_t refs;                           /* a_ops->get */
    bool scribbled;                         /* bytes beyond its end may not be zero in memory */
    struct vm_area vma;                     /* the whole file, mapped */
    struct sim_pte ptes[FILE_PAGES_MAX];
    uint32_t pass_done[FILE_PAGES_MAX * UNITS_PER_PAGE]; /* when the pass began */
    uint32_t truncations, pass_truncations;              /* begun and ended; when the pass began */
    uint64_t bios;                                       /* under way */
};

struct sim_worker {
    struct world *world;
    struct task *task;
    uint8_t *buf;                                              /* READ_PAGES_MAX pages */
    uint32_t floor[FILE_PAGES_MAX * UNITS_PER_PAGE];           /* of a read, when it began */
    uint32_t done[FILES_MAX][FILE_PAGES_MAX * UNITS_PER_PAGE]; /* of a sync */
    struct file_ra_state ra[FILES_MAX];
    uint64_t began; /* step of the operation */
    uint64_t waits; /* for memory, of everybody, until then */
    uint64_t size;  /* of the file then */
};

struct world {
    struct sched sched;
    struct sim_options o;
    struct clock clock;
    struct page_cache *cache;
    struct device *memory;
    struct sim_file files[FILES_MAX];
    struct sim_worker workers[WORKERS_MAX];
    uint64_t *sums;                        /* of each page under writeback */
    uint64_t flusher_next;                 /* ns */
    bool faults;                           /* rules are in force */
    uint64_t faults_until;                 /* the step in which they last were */
    bool healed;                           /* no more of them */
    uint64_t ops, short_of_memory, failed; /* counted for the summary */
};

/* ---- sim_draw.c ------------------------------------------------------------------------------- */

void sim_draw(struct sched *s, struct sim_options *o);
void sim_print_options(const struct sim_options *o);

/* ---- sim_world.c ------------------------------------------------------------------------------ */

void world_open(struct world *w, uint64_t seed);
void world_close(struct world *w);
/* Between two steps: the weather, and what is late. */
void world_tick(struct world *w);
void world_heal(struct world *w);
/* Might the store have failed since that step? */
bool world_may_fail(const struct world *w, uint64_t since);
/* One block as it is on the disk now: no device in front.   Returns false: a hole, zeros. */
bool world_peek(struct world *w, uint64_t object, uint32_t index, void *block);
bool world_is_quiet(struct world *w);
struct sim_file *file_of(struct address_space *m);

/* ---- sim_ops.c -------------------------------------------------------------------------------- */

void worker_run(struct task *t, void *arg);
/* Discard what an object had. Nobody can come in between. */
void file_discard(struct sim_file *f, uint64_t object, uint32_t first, uint32_t last);

/* ---- sim_vma.c -------------------------------------------------------------------------------- */

void file_map(struct sim_file *f);
void file_unmap(struct sim_file *f);
/* Load a unit of a mapped file into buf, or store it from there.   0, or handle_mm_fault()'s error. */
int file_access(struct sim_file *f, uint32_t unit, void *buf, bool write);

/* ---- sim_check.c: they do not return if it does not hold -------------------------------------- */

void check_any_time(struct world *w);
/* What is on the disk, were it to be opened after a crash now. */
void check_disk(struct world *w, struct sim_file *f);
/* No task is inside an operation, no bio under way. */
void check_quiet(struct world *w);
/* Everything was written: the disk is what a reader sees, and both are the last version. */
void check_end(struct world *w);
void check_bio(void *file, const struct bio *bio, bool done); /* a trace_fn */

#endif
