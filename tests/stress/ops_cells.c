/* Operations on cells that are there: the file stays as it is, others are at work in the same pages. */
#include <errno.h>
#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "tests/stress/check.h"
#include "tests/stress/timeline.h"
#include "tests/stress/view.h"
#include "tests/stress/worker.h"

/* Cells that one store or load operation touches, one by one: next to each other, or in pages that are. */
#define BURST 8u
#define APART (PAGE_BYTES / CELL_BYTES + 1)

/* How many cells at once: few mostly, over several pages sometimes. */
static uint32_t draw_count(uint64_t r, uint32_t most)
{
    uint32_t n = r % 8 == 0 ? 1 + (uint32_t)(r >> 8) % MAX_RANGE : 1 + (uint32_t)(r >> 8) % 6;
    return n < most ? n : most;
}

/* ---- mappings -------------------------------------------------------------------------------- */

static char *map_cell(struct worker *w, uint32_t slot, uint32_t cell, uint64_t r, bool store)
{
    char *at = view_cell(w, slot, cell, r, store);
    if (at == NULL)
        check_outcome(w, OP_REMAP, "mmap", -errno);
    return at;
}

/* Returns false when a forked child does not have the mapping. */
static bool store_cell(struct worker *w, uint32_t slot, uint32_t cell, char *at, enum op op,
                       bool may_lack)
{
    if (!cells_lock(w, slot, cell, 1))
        return true;
    timeline_begin(w, op, slot, cell, cell);
    cells_begin_store(w, op, slot, cell, 1);
    uint64_t words[CELL_WORDS];
    memcpy(words, w->buffer, sizeof words);
    int err = memory_store(at, words, CELL_WORDS);
    bool lacks = err != 0 && may_lack;
    /* Where errors are expected it may be one of these, in the second of the cell's two pages. */
    enum outcome outcome = lacks && !w->o->errors ? NOT_DONE : check_outcome(w, op, "a store", err);
    cells_end(w, slot, cell, 1, outcome);
    timeline_end(w, err, words[2], w->views[slot].door->name);
    cells_unlock(w, slot, cell, 1);
    return !lacks;
}

static bool load_cell(struct worker *w, uint32_t slot, uint32_t cell, const char *at, bool peek,
                      bool may_lack)
{
    struct cell *c = cell_at(w->sh, slot, cell);
    uint64_t words[CELL_WORDS];
    if (!peek)
        cell_lock(c);
    uint64_t lo = atomic_load(&c->lo);
    int err = memory_load(at, words, CELL_WORDS);
    uint64_t hi = atomic_load(&c->pending);
    hi += atomic_load(&c->ver);
    bool lacks = err != 0 && may_lack;
    if (err == 0)
        check_words(w, slot, cell, w->views[slot].door->name, lo, hi, false, words);
    else if (!lacks)
        check_outcome(w, OP_LOAD, "a load", err);
    if (!peek)
        cell_unlock(c);
    else
        atomic_fetch_add(&w->state->peeks, 1);
    return !lacks;
}

static void burst(struct worker *w, const struct draw *d, bool store)
{
    file_lock_shared(w, d->slot, d->r[4]);
    uint32_t cells = file_cells(w, d->slot);
    if (cells > 0) {
        uint32_t first = (uint32_t)(d->r[0] % cells), nr = 1 + (uint32_t)(d->r[1] % BURST);
        uint32_t step = (d->r[1] >> 8) % 4 == 0 ? APART : 1, end = first + nr * step;
        if (!store)
            timeline_begin(w, OP_LOAD, d->slot, first, end - step);
        for (uint32_t cell = first; cell < end && cell < cells; cell += step) {
            char *at = map_cell(w, d->slot, cell, d->r[2], store);
            if (at == NULL)
                break;
            if (store)
                store_cell(w, d->slot, cell, at, OP_STORE, false);
            else
                load_cell(w, d->slot, cell, at, d->r[3] % 3 == 0, false);
        }
        if (!store)
            timeline_end(w, 0, 0, NULL);
    }
    file_unlock(w, d->slot);
}

void op_store(struct worker *w, const struct draw *d)
{
    burst(w, d, true);
}

void op_load(struct worker *w, const struct draw *d)
{
    burst(w, d, false);
}

/* ---- system calls ---------------------------------------------------------------------------- */

void op_write(struct worker *w, const struct draw *d)
{
    file_lock_shared(w, d->slot, d->r[4]);
    uint32_t cells = file_cells(w, d->slot);
    uint32_t first = cells > 0 ? (uint32_t)(d->r[0] % cells) : 0;
    uint32_t nr = draw_count(d->r[1], cells - first);
    if (nr > 0 && cells_lock(w, d->slot, first, nr)) {
        timeline_begin(w, OP_WRITE, d->slot, first, first + nr - 1);
        cells_begin_store(w, OP_WRITE, d->slot, first, nr);
        int fd = view_fd(w, d->slot);
        int err = fd < 0 ? fd
                         : write_all(fd, w->buffer, (size_t)nr * CELL_BYTES,
                                     (uint64_t)first * CELL_BYTES);
        cells_end(w, d->slot, first, nr, check_outcome(w, OP_WRITE, "pwrite", err));
        timeline_end(w, err, 0, NULL);
        cells_unlock(w, d->slot, first, nr);
    }
    file_unlock(w, d->slot);
}

static void check_buffer(struct worker *w, uint32_t slot, uint32_t first, uint32_t nr, bool peek)
{
    for (uint32_t i = 0; i < nr; i++) {
        struct cell *c = cell_at(w->sh, slot, first + i);
        uint64_t words[CELL_WORDS];
        memcpy(words, w->buffer + (size_t)i * CELL_BYTES, sizeof words);
        uint64_t lo = peek ? w->snapshot[i] : atomic_load(&c->lo), hi = atomic_load(&c->pending);
        check_words(w, slot, first + i, "pread", lo, hi + atomic_load(&c->ver), false, words);
    }
}

static void read_cells(struct worker *w, uint32_t slot, uint32_t first, uint32_t nr, bool peek)
{
    for (uint32_t i = 0; i < nr; i++) {
        struct cell *c = cell_at(w->sh, slot, first + i);
        if (!peek)
            cell_lock(c);
        w->snapshot[i] = atomic_load(&c->lo);
    }
    timeline_begin(w, OP_READ, slot, first, first + nr - 1);
    int fd = view_fd(w, slot);
    int err = fd < 0
                  ? fd
                  : read_all(fd, w->buffer, (size_t)nr * CELL_BYTES, (uint64_t)first * CELL_BYTES);
    if (check_outcome(w, OP_READ, "pread", err) == DONE)
        check_buffer(w, slot, first, nr, peek);
    timeline_end(w, err, 0, peek ? "peeking" : NULL);
    if (!peek)
        cells_unlock(w, slot, first, nr);
    else
        atomic_fetch_add(&w->state->peeks, nr);
}

void op_read(struct worker *w, const struct draw *d)
{
    file_lock_shared(w, d->slot, d->r[4]);
    uint32_t cells = file_cells(w, d->slot);
    uint32_t first = cells > 0 ? (uint32_t)(d->r[0] % cells) : 0;
    uint32_t nr = draw_count(d->r[1], cells - first);
    if (nr > 0)
        read_cells(w, d->slot, first, nr, d->r[2] % 3 == 0);
    file_unlock(w, d->slot);
}

/* ---- fork ------------------------------------------------------------------------------------ */

/* In the child: loads and stores through the mapping that it has inherited. Of libfolio's it may have
 * none; touching that must then raise a signal, not show or take anything. */
static bool child_works(struct worker *w, const struct draw *d, uint32_t cells)
{
    const struct view *v = &w->views[d->slot];
    bool may_lack = v->door->map != mmap;
    uint64_t first = ((uint64_t)v->first * PAGE_BYTES + CELL_BYTES - 1) / CELL_BYTES;
    uint64_t end = ((uint64_t)v->first + v->count) * PAGE_BYTES / CELL_BYTES;
    if (end > cells)
        end = cells;
    for (unsigned i = 0; i < 2 * BURST && first < end; i++) {
        uint64_t r = mix64(d->r[3] + i);
        uint32_t cell = (uint32_t)(first + (r >> 8) % (end - first));
        char *at = v->addr + ((uint64_t)cell * CELL_BYTES - (uint64_t)v->first * PAGE_BYTES);
        bool has = r % 2 == 0 ? store_cell(w, d->slot, cell, at, OP_FORK, may_lack)
                              : load_cell(w, d->slot, cell, at, false, may_lack);
        if (!has)
            return false;
    }
    return true;
}

void op_fork(struct worker *w, const struct draw *d)
{
    int status = 0;
    file_lock_shared(w, d->slot, d->r[4]);
    uint32_t cells = file_cells(w, d->slot);
    uint32_t cell = cells > 0 ? (uint32_t)(d->r[0] % cells) : 0;
    if (cells > 0 && map_cell(w, d->slot, cell, d->r[2], true) != NULL) {
        pid_t child = fork();
        if (child == 0) {
            prctl(PR_SET_PDEATHSIG, SIGKILL);
            _exit(child_works(w, d, cells) ? 0 : 2);
        }
        int err = child < 0 || waitpid(child, &status, 0) < 0 ? -errno : 0;
        timeline_begin(w, OP_FORK, d->slot, cell, cell); /* until now it was the child's to tell */
        if (err == 0 && WIFEXITED(status) && WEXITSTATUS(status) == 1)
            _exit(1); /* it has told why */
        if (err == 0 && WIFEXITED(status) && WEXITSTATUS(status) == 2)
            atomic_fetch_add(&w->state->not_inherited, 1);
        else if (err == 0 && status != 0)
            check_fail(w, d->slot, cell, "FAILED: a forked child died, status %#x",
                       (unsigned)status);
        check_outcome(w, OP_FORK, "fork", err);
        timeline_end(w, err, 0, NULL);
    }
    file_unlock(w, d->slot);
}
