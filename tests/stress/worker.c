#include "tests/stress/worker.h"

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "tests/stress/check.h"
#include "tests/stress/timeline.h"
#include "tests/stress/view.h"

#define RACE_TIMES 64u /* touches, at most, in one truncation or hole */

static const struct {
    unsigned weight;
    void (*run)(struct worker *w, const struct draw *d);
} ops[NR_OPS] = {
    [OP_STORE] = { 30, op_store },   [OP_LOAD] = { 20, op_load },
    [OP_WRITE] = { 20, op_write },   [OP_READ] = { 15, op_read },
    [OP_EXTEND] = { 8, op_extend },  [OP_TRUNCATE] = { 3, op_truncate },
    [OP_PUNCH] = { 3, op_punch },    [OP_ZERO] = { 2, op_punch },
    [OP_COPY] = { 3, op_copy },      [OP_FSYNC] = { 3, op_fsync },
    [OP_MSYNC] = { 3, op_msync },    [OP_MADVISE] = { 4, op_madvise },
    [OP_REMAP] = { 3, op_remap },    [OP_FORK] = { 1, op_fork },
    [OP_RENAME] = { 1, op_replace }, [OP_UNLINK] = { 1, op_replace },
    [OP_TAIL] = { 2, op_tail },
};

/* ---- a worker -------------------------------------------------------------------------------- */

int worker_init(struct worker *w, const struct options *o, struct shared *sh,
                const struct doors *doors, unsigned id, uint64_t round)
{
    *w = (struct worker){ .o = o,
                          .sh = sh,
                          .doors = doors,
                          .state = &sh->workers[id],
                          .id = id,
                          .round = round,
                          .random = mix64(mix64(o->seed) + mix64(round * 1000 + id)) };
    w->dir = open(o->dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (w->dir < 0)
        return -errno;
    w->views = calloc(sh->nr_files, sizeof *w->views);
    w->snapshot = calloc(sh->nr_cells, sizeof *w->snapshot);
    w->buffer = malloc((size_t)MAX_RANGE * CELL_BYTES + PAGE_BYTES);
    if (w->views == NULL || w->snapshot == NULL || w->buffer == NULL) {
        worker_free(w);
        return -ENOMEM;
    }
    for (uint32_t i = 0; i < sh->nr_files; i++)
        w->views[i].fd = -1;
    atomic_store(&w->state->op, 0);
    return 0;
}

void worker_free(struct worker *w)
{
    if (w->views != NULL)
        view_close_all(w);
    free(w->views);
    free(w->snapshot);
    free(w->buffer);
    if (w->dir >= 0)
        close(w->dir);
}

uint64_t worker_draw(struct worker *w)
{
    w->random += 0x9e3779b97f4a7c15u;
    return mix64(w->random);
}

static enum op draw_op(struct worker *w)
{
    unsigned all = 0;
    for (unsigned i = 0; i < NR_OPS; i++)
        all += w->o->disabled >> i & 1 ? 0 : ops[i].weight;
    uint64_t r = worker_draw(w) % all;
    for (unsigned i = 0;; i++) {
        unsigned weight = w->o->disabled >> i & 1 ? 0 : ops[i].weight;
        if (r < weight)
            return (enum op)i;
        r -= weight;
    }
}

void worker_run(struct worker *w)
{
    for (uint64_t i = 0; atomic_load(&w->sh->stop) == 0 && (w->o->ops == 0 || i < w->o->ops); i++) {
        struct draw d = { .op = draw_op(w) };
        d.slot = (uint32_t)(worker_draw(w) % w->sh->nr_files);
        for (unsigned j = 0; j < sizeof d.r / sizeof d.r[0]; j++)
            d.r[j] = worker_draw(w);
        if ((atomic_load(&w->sh->unsupported) >> d.op & 1) == 0)
            ops[d.op].run(w, &d);
    }
}

/* ---- races ----------------------------------------------------------------------------------- */

bool race_allowed(const struct worker *w)
{
    uint32_t out = w->o->disabled | atomic_load(&w->sh->unsupported);
    return w->o->crash == NULL && (out >> OP_RACE & 1) == 0;
}

void race_begin(struct worker *w, uint32_t slot, uint32_t first, uint32_t last)
{
    struct file *f = &w->sh->files[slot];
    atomic_store(&f->race_first, first);
    atomic_store(&f->race_last, last);
    atomic_store(&f->race, 1);
}

void race_end(struct worker *w, uint32_t slot)
{
    struct file *f = &w->sh->files[slot];
    atomic_store(&f->race, 0);
    while (atomic_load(&f->racers) > 0)
        sched_yield();
}

/* Store to, or load from, what somebody removes meanwhile. */
static void race_once(struct worker *w, uint32_t slot, uint64_t r)
{
    struct file *f = &w->sh->files[slot];
    uint32_t first = atomic_load(&f->race_first), last = atomic_load(&f->race_last);
    uint32_t from = (first * PAGE_BYTES + CELL_BYTES - 1) / CELL_BYTES;
    uint32_t to = (uint32_t)(((uint64_t)last + 1) * PAGE_BYTES / CELL_BYTES);
    uint32_t cell = from + (uint32_t)(r >> 8) % (to - from);
    struct version v = version_new(w, OP_RACE, slot, cell, r | 1);
    uint64_t words[CELL_WORDS];
    char *at = view_cell(w, slot, cell, r >> 40, r % 4 != 0);
    if (at == NULL) {
        check_outcome(w, OP_RACE, "mmap", -errno);
        return;
    }
    timeline_begin(w, OP_RACE, slot, cell, cell);
    int err;
    if (r % 4 == 0) {
        err = memory_load(at, words, CELL_WORDS);
        if (err == 0)
            check_place(w, slot, cell, w->views[slot].door->name, words);
    } else {
        version_words(&v, words);
        err = memory_store(at, words, CELL_WORDS);
    }
    if (err != 0)
        atomic_fetch_add(&w->state->sigbus, 1);
    timeline_end(w, 0, 0, err != 0 ? "SIGBUS" : r % 4 == 0 ? "load" : "store");
}

static void race_join(struct worker *w, uint32_t slot, uint64_t r)
{
    struct file *f = &w->sh->files[slot];
    atomic_fetch_add(&f->racers, 1);
    for (unsigned i = 0; i < RACE_TIMES && atomic_load(&f->race) != 0; i++)
        race_once(w, slot, mix64(r + i));
    atomic_fetch_sub(&f->racers, 1);
}

/* ---- files ----------------------------------------------------------------------------------- */

void file_lock_shared(struct worker *w, uint32_t slot, uint64_t r)
{
    struct file *f = &w->sh->files[slot];
    if (pthread_rwlock_tryrdlock(&f->lock) == 0)
        return;
    if (atomic_load(&f->race) != 0)
        race_join(w, slot, r);
    pthread_rwlock_rdlock(&f->lock);
}

void file_lock_exclusive(struct worker *w, uint32_t slot)
{
    pthread_rwlock_wrlock(&w->sh->files[slot].lock);
}

void file_unlock(struct worker *w, uint32_t slot)
{
    pthread_rwlock_unlock(&w->sh->files[slot].lock);
}

uint32_t file_cells(const struct worker *w, uint32_t slot)
{
    return (uint32_t)(atomic_load(&w->sh->files[slot].size) / CELL_BYTES);
}

/* ---- cells ----------------------------------------------------------------------------------- */

void cells_unlock(struct worker *w, uint32_t slot, uint32_t first, uint32_t nr)
{
    for (uint32_t i = 0; i < nr; i++)
        cell_unlock(cell_at(w->sh, slot, first + i));
}

static bool cells_have_room(struct worker *w, uint32_t slot, uint32_t first, uint32_t nr)
{
    for (uint32_t i = 0; i < nr; i++)
        if (!cell_has_room(cell_at(w->sh, slot, first + i), w->o->crash != NULL))
            return false;
    return true;
}

/* See what operations that failed have left in the cells that have no room, and go on from there.
 * Context: their locks, or the file exclusively.   Returns: have all of them room now? */
static bool cells_settle(struct worker *w, uint32_t slot, uint32_t first, uint32_t nr)
{
    int fd = w->o->errors ? view_fd(w, slot) : -1;
    for (uint32_t i = 0; i < nr && fd >= 0; i++) {
        struct cell *c = cell_at(w->sh, slot, first + i);
        uint64_t words[CELL_WORDS], lo = atomic_load(&c->lo), ver = atomic_load(&c->ver);
        if (cell_has_room(c, false) ||
            read_all(fd, (char *)words, CELL_BYTES, (uint64_t)(first + i) * CELL_BYTES) != 0)
            continue;
        check_words(w, slot, first + i, "pread", lo, ver, false, words);
        cell_settle(c, lo, ver, words);
    }
    return cells_have_room(w, slot, first, nr);
}

bool cells_lock(struct worker *w, uint32_t slot, uint32_t first, uint32_t nr)
{
    for (;;) {
        for (uint32_t i = 0; i < nr; i++)
            cell_lock(cell_at(w->sh, slot, first + i));
        if (cells_have_room(w, slot, first, nr) || cells_settle(w, slot, first, nr))
            return true;
        cells_unlock(w, slot, first, nr);
        if (w->o->crash == NULL || sync_file(w, slot, false) != DONE)
            return false;
    }
}

bool file_has_room(struct worker *w, uint32_t slot)
{
    if (cells_have_room(w, slot, 0, w->sh->nr_cells) || cells_settle(w, slot, 0, w->sh->nr_cells))
        return true;
    return w->o->crash != NULL && sync_file(w, slot, false) == DONE &&
           cells_have_room(w, slot, 0, w->sh->nr_cells);
}

struct version version_new(struct worker *w, enum op op, uint32_t slot, uint32_t cell, uint64_t seq)
{
    return (struct version){ .seq = seq,
                             .ns = now_ns(),
                             .file = atomic_load(&w->sh->files[slot].id),
                             .cell = cell,
                             .writer = (uint16_t)w->id,
                             .how = (uint8_t)op,
                             .to = CELL_BYTES };
}

void cells_begin_store(struct worker *w, enum op op, uint32_t slot, uint32_t first, uint32_t nr)
{
    for (uint32_t i = 0; i < nr; i++) {
        struct cell *c = cell_at(w->sh, slot, first + i);
        struct version v = version_new(w, op, slot, first + i, atomic_load(&c->ver) + 1);
        version_words(&v, (uint64_t *)(void *)(w->buffer + (size_t)i * CELL_BYTES));
        cell_begin(c, &v);
    }
}

void cells_begin_zeros(struct worker *w, uint32_t slot, uint64_t from, uint64_t to)
{
    for (uint64_t i = from / CELL_BYTES; i * CELL_BYTES < to && i < w->sh->nr_cells; i++) {
        struct cell *c = cell_at(w->sh, slot, (uint32_t)i);
        uint64_t at = i * CELL_BYTES;
        uint32_t first = from > at ? (uint32_t)(from - at) : 0;
        uint32_t end = to - at < CELL_BYTES ? (uint32_t)(to - at) : CELL_BYTES;
        if (version_is_zero(cell_now(c)) && atomic_load(&c->lo) == atomic_load(&c->ver))
            continue;
        struct version v = version_cut(*cell_now(c), first, end);
        cell_begin(c, &v);
    }
}

/* What is left of a cell that was uncertain is uncertain itself. */
static void end_one(struct cell *c, enum outcome outcome, bool whole)
{
    if (atomic_load(&c->pending) == 0)
        return;
    if (outcome == DONE && atomic_load(&c->lo) != atomic_load(&c->ver) && !whole)
        outcome = UNCERTAIN;
    cell_end(c, outcome);
}

void cells_end(struct worker *w, uint32_t slot, uint32_t first, uint32_t nr, enum outcome outcome)
{
    for (uint32_t i = 0; i < nr; i++)
        end_one(cell_at(w->sh, slot, first + i), outcome, true);
}

void cells_end_zeros(struct worker *w, uint32_t slot, uint64_t from, uint64_t to,
                     enum outcome outcome)
{
    for (uint64_t i = from / CELL_BYTES; i * CELL_BYTES < to && i < w->sh->nr_cells; i++)
        end_one(cell_at(w->sh, slot, (uint32_t)i), outcome,
                from <= i * CELL_BYTES && to >= (i + 1) * CELL_BYTES);
}
