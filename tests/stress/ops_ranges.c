/* Operations that change a file's shape: its size, holes, ranges of zeros, copies, the bytes beyond its
 * end. */
#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "tests/stress/check.h"
#include "tests/stress/timeline.h"
#include "tests/stress/view.h"
#include "tests/stress/worker.h"

#define ASK_MS    10
#define ASK_TRIES 3000u
#define GAP_CELLS 64u                  /* at most, between the end and a write beyond it */
#define WORD(x)   ((x) & ~(uint64_t)7) /* all that we cut is cut between words */

static uint64_t page_up(uint64_t at)
{
    return (at + PAGE_BYTES - 1) / PAGE_BYTES * PAGE_BYTES;
}

/* What the file says. Where errors are part of the test this may be one of them: it is asked for until it is told. */
static bool ask_size(struct worker *w, int fd, uint64_t *size)
{
    struct stat st;
    unsigned tries = w->o->errors ? ASK_TRIES : 1;
    int err;
    while ((err = fstat(fd, &st) != 0 ? -errno : 0) != 0 && --tries > 0)
        (void)poll(NULL, 0, ASK_MS);
    if (check_outcome(w, OP_READ, "fstat", err) != DONE)
        return false;
    *size = (uint64_t)st.st_size;
    return true;
}

/* After an operation that should have made the size so.   It is what the file says; of one that failed half-way, any
 * size on the way. */
static void size_settle(struct worker *w, uint32_t slot, int fd, uint64_t size,
                        enum outcome outcome)
{
    struct file *f = &w->sh->files[slot];
    uint64_t old = atomic_load(&f->size), now = size;
    if (outcome == NOT_DONE)
        size = old;
    else if (outcome == UNCERTAIN && fd >= 0 && ask_size(w, fd, &now) &&
             ((old <= now && now <= size) || (size <= now && now <= old)))
        size = now;
    size_end(f, size);
}

static void check_range_zero(struct worker *w, uint32_t slot, int fd, const char *why,
                             uint64_t from, uint64_t to)
{
    while (from < to) {
        size_t most = (size_t)MAX_RANGE * CELL_BYTES;
        size_t n = to - from < most ? (size_t)(to - from) : most;
        if (check_outcome(w, OP_READ, "pread", read_all(fd, w->buffer, n, from)) != DONE)
            return;
        check_zeros(w, slot, why, from, w->buffer, n);
        from += n;
    }
}

static void check_cell_by_read(struct worker *w, uint32_t slot, int fd, uint32_t cell)
{
    uint64_t words[CELL_WORDS];
    int err = read_all(fd, (char *)words, CELL_BYTES, (uint64_t)cell * CELL_BYTES);
    if (check_outcome(w, OP_READ, "pread", err) == DONE)
        check_locked(w, slot, cell, "pread", words);
}

/* ---- longer ---------------------------------------------------------------------------------- */

/* By a write at the end, over the cell that the end cuts, or some way behind it. */
static void extend_by_write(struct worker *w, const struct draw *d, int fd)
{
    struct file *f = &w->sh->files[d->slot];
    uint64_t size = atomic_load(&f->size);
    uint32_t first = (uint32_t)(size / CELL_BYTES), gap = 0, all = w->sh->nr_cells;
    if (d->r[1] % 3 == 0)
        gap = (uint32_t)(d->r[1] >> 8) % GAP_CELLS;
    uint32_t nr = 1 + (uint32_t)(d->r[2] % (d->r[2] % 5 == 0 ? MAX_RANGE : 48));
    if (first + gap >= all)
        return;
    uint32_t start = first + gap;
    nr = nr < all - start ? nr : all - start;
    nr = nr < MAX_RANGE - gap ? nr : MAX_RANGE - gap;
    if (!cells_lock(w, d->slot, first, gap + nr))
        return;
    uint64_t end = ((uint64_t)start + nr) * CELL_BYTES;
    timeline_begin(w, OP_EXTEND, d->slot, start, start + nr - 1);
    cells_begin_store(w, OP_EXTEND, d->slot, start, nr);
    size_begin(f, end);
    int err = write_all(fd, w->buffer, (size_t)nr * CELL_BYTES, (uint64_t)start * CELL_BYTES);
    enum outcome outcome = check_outcome(w, OP_EXTEND, "pwrite", err);
    cells_end(w, d->slot, start, nr, outcome);
    size_settle(w, d->slot, fd, end, outcome);
    timeline_end(w, err, end, "write");
    if (outcome == DONE) {
        check_cell_by_read(w, d->slot, fd, first);
        check_cell_by_read(w, d->slot, fd, start);
    }
    cells_unlock(w, d->slot, first, gap + nr);
}

/* By a call that leaves zeros. */
static void extend_by_call(struct worker *w, const struct draw *d, int fd, bool allocate)
{
    struct file *f = &w->sh->files[d->slot];
    uint64_t size = atomic_load(&f->size), most = (uint64_t)w->sh->nr_cells * CELL_BYTES;
    uint64_t end = size + WORD(d->r[1] % ((most - size) / 2 + 8));
    uint32_t first = (uint32_t)(size / CELL_BYTES);
    if (end <= size || end > most)
        return;
    if (!cells_lock(w, d->slot, first, 1))
        return;
    timeline_begin(w, OP_EXTEND, d->slot, first, (uint32_t)((end - 1) / CELL_BYTES));
    size_begin(f, end);
    int err = 0;
    if (allocate)
        err = fallocate(fd, 0, (off_t)size, (off_t)(end - size)) != 0 ? -errno : 0;
    else if (ftruncate(fd, (off_t)end) != 0)
        err = -errno;
    enum outcome outcome =
        allocate && err == -EOPNOTSUPP
            ? NOT_DONE
            : check_outcome(w, OP_EXTEND, allocate ? "fallocate" : "ftruncate", err);
    size_settle(w, d->slot, fd, end, outcome);
    timeline_end(w, err, end, allocate ? "fallocate" : "ftruncate");
    if (outcome == DONE)
        check_cell_by_read(w, d->slot, fd, first);
    cells_unlock(w, d->slot, first, 1);
}

void op_extend(struct worker *w, const struct draw *d)
{
    struct file *f = &w->sh->files[d->slot];
    file_lock_shared(w, d->slot, d->r[4]);
    int fd = view_fd(w, d->slot);
    if (check_outcome(w, OP_EXTEND, "open", fd < 0 ? fd : 0) == DONE) {
        pthread_mutex_lock(&f->grow);
        if (d->r[0] % 8 < 6)
            extend_by_write(w, d, fd);
        else
            extend_by_call(w, d, fd, d->r[0] % 8 == 6);
        pthread_mutex_unlock(&f->grow);
    }
    file_unlock(w, d->slot);
}

/* ---- shorter --------------------------------------------------------------------------------- */

static uint64_t draw_size(uint64_t size, const struct draw *d)
{
    switch (d->r[0] % 4) {
    case 0:
        return WORD(size - d->r[1] % (size < 3 * PAGE_BYTES ? size + 1 : 3 * PAGE_BYTES));
    case 1:
        return d->r[1] % 4 == 0 ? 0 : size;
    default:
        return WORD(size / 4 + d->r[1] % (size - size / 4 + 1));
    }
}

/* Cut it, with others storing to what goes. Growing it back in between gives their stores pages to
 * go to, which the last cut takes away. */
static int cut_in_race(struct worker *w, const struct draw *d, int fd, uint64_t size, uint64_t old)
{
    uint64_t first = page_up(size) / PAGE_BYTES, end = old / PAGE_BYTES;
    bool race = d->r[2] % 3 == 0 && first < end && race_allowed(w);
    int err = 0;
    if (race) {
        race_begin(w, d->slot, (uint32_t)first, (uint32_t)end - 1);
        for (uint64_t i = 0; i < 1 + d->r[3] % 4 && err == 0; i++)
            if (ftruncate(fd, (off_t)size) != 0 || ftruncate(fd, (off_t)old) != 0)
                err = -errno;
    }
    if (err == 0 && ftruncate(fd, (off_t)size) != 0)
        err = -errno;
    if (race) {
        race_end(w, d->slot);
        atomic_fetch_add(&w->state->races, 1);
    }
    return err;
}

static void truncate_locked(struct worker *w, const struct draw *d, int fd)
{
    struct file *f = &w->sh->files[d->slot];
    uint64_t old = atomic_load(&f->size), size = draw_size(old, d);
    uint64_t all =
        (uint64_t)w->sh->nr_cells * CELL_BYTES; /* beyond the old size all is zero anyway */
    if (!file_has_room(w, d->slot))
        return;
    timeline_begin(w, OP_TRUNCATE, d->slot, 0, w->sh->nr_cells - 1);
    cells_begin_zeros(w, d->slot, size, all);
    size_begin(f, size);
    int err = cut_in_race(w, d, fd, size, old);
    enum outcome outcome = check_outcome(w, OP_TRUNCATE, "ftruncate", err);
    cells_end_zeros(w, d->slot, size, all, outcome);
    size_settle(w, d->slot, fd, size, outcome);
    timeline_end(w, err, size, "new size");
    check_size(w, d->slot, fd);
    if (outcome != DONE || old == size || d->r[2] % 3 == 1)
        return;
    /* Back to the old size at once: what was cut must not be there again. */
    timeline_begin(w, OP_EXTEND, d->slot, 0, w->sh->nr_cells - 1);
    size_begin(f, old);
    err = ftruncate(fd, (off_t)old) != 0 ? -errno : 0;
    outcome = check_outcome(w, OP_EXTEND, "ftruncate", err);
    size_settle(w, d->slot, fd, old, outcome);
    timeline_end(w, err, old, "back to the old size");
    if (outcome == DONE)
        check_range_zero(w, d->slot, fd, "where the file was cut and made longer again", size, old);
}

void op_truncate(struct worker *w, const struct draw *d)
{
    file_lock_exclusive(w, d->slot);
    int fd = view_fd(w, d->slot);
    if (check_outcome(w, OP_TRUNCATE, "open", fd < 0 ? fd : 0) == DONE)
        truncate_locked(w, d, fd);
    file_unlock(w, d->slot);
}

/* ---- holes and zeros ------------------------------------------------------------------------- */

static int hole(int fd, enum op op, uint64_t from, uint64_t to)
{
    int mode = op == OP_PUNCH ? FALLOC_FL_PUNCH_HOLE : FALLOC_FL_ZERO_RANGE;
    return fallocate(fd, mode | FALLOC_FL_KEEP_SIZE, (off_t)from, (off_t)(to - from)) != 0 ? -errno
                                                                                           : 0;
}

static const char *hole_name(enum op op)
{
    return op == OP_PUNCH ? "FALLOC_FL_PUNCH_HOLE" : "FALLOC_FL_ZERO_RANGE";
}

/* Over a few cells, those at its ends cut in two; others are at work in the pages at its ends. */
static void punch_cells(struct worker *w, const struct draw *d)
{
    file_lock_shared(w, d->slot, d->r[4]);
    uint32_t cells = file_cells(w, d->slot);
    uint32_t first = cells > 0 ? (uint32_t)(d->r[0] % cells) : 0;
    uint32_t nr = 2 + (uint32_t)(d->r[1] % 300);
    nr = nr < cells - first ? nr : cells - first;
    int fd = view_fd(w, d->slot);
    if (nr >= 2 && check_outcome(w, d->op, "open", fd < 0 ? fd : 0) == DONE &&
        cells_lock(w, d->slot, first, nr)) {
        uint64_t from = (uint64_t)first * CELL_BYTES + WORD(d->r[2] % CELL_BYTES);
        uint64_t to = ((uint64_t)first + nr) * CELL_BYTES - WORD(d->r[3] % CELL_BYTES);
        timeline_begin(w, d->op, d->slot, first, first + nr - 1);
        cells_begin_zeros(w, d->slot, from, to);
        int err = hole(fd, d->op, from, to);
        cells_end_zeros(w, d->slot, from, to, check_outcome(w, d->op, hole_name(d->op), err));
        timeline_end(w, err, from, NULL);
        if (err == 0) {
            check_cell_by_read(w, d->slot, fd, first);
            check_cell_by_read(w, d->slot, fd, first + nr - 1);
        }
        cells_unlock(w, d->slot, first, nr);
    }
    file_unlock(w, d->slot);
}

/* Whole pages, with others storing to them: all but the last hole are a race. */
static void punch_pages(struct worker *w, const struct draw *d, int fd)
{
    uint32_t pages = (uint32_t)(atomic_load(&w->sh->files[d->slot].size) / PAGE_BYTES);
    if (pages == 0 || !file_has_room(w, d->slot))
        return;
    uint32_t first = (uint32_t)(d->r[0] % pages), nr = 1 + (uint32_t)(d->r[1] % 64);
    nr = nr < pages - first ? nr : pages - first;
    uint64_t from = (uint64_t)first * PAGE_BYTES, to = from + (uint64_t)nr * PAGE_BYTES;
    int err = 0;
    timeline_begin(w, d->op, d->slot, 0, w->sh->nr_cells - 1);
    cells_begin_zeros(w, d->slot, from, to);
    if (race_allowed(w)) {
        race_begin(w, d->slot, first, first + nr - 1);
        for (uint64_t i = 0; i < 1 + d->r[3] % 4 && err == 0; i++)
            err = hole(fd, d->op, from, to);
        race_end(w, d->slot);
        atomic_fetch_add(&w->state->races, 1);
    }
    if (err == 0)
        err = hole(fd, d->op, from, to);
    enum outcome outcome = check_outcome(w, d->op, hole_name(d->op), err);
    cells_end_zeros(w, d->slot, from, to, outcome);
    timeline_end(w, err, from, "with races");
    if (outcome == DONE)
        check_range_zero(w, d->slot, fd, "where there is a hole", from, to);
}

void op_punch(struct worker *w, const struct draw *d)
{
    if (d->r[4] % 2 == 0) {
        punch_cells(w, d);
        return;
    }
    file_lock_exclusive(w, d->slot);
    int fd = view_fd(w, d->slot);
    if (check_outcome(w, d->op, "open", fd < 0 ? fd : 0) == DONE)
        punch_pages(w, d, fd);
    file_unlock(w, d->slot);
}

/* ---- beyond the end -------------------------------------------------------------------------- */

/* Grow the file in one of several ways.   Returns -errno; *end: its new size. */
static int grow(struct worker *w, const struct draw *d, int fd, uint64_t end)
{
    if (d->r[1] % 2 == 0)
        return ftruncate(fd, (off_t)end) != 0 ? -errno : 0;
    uint32_t cell = (uint32_t)(end / CELL_BYTES) - 1;
    cells_begin_store(w, OP_TAIL, d->slot, cell, 1);
    int err = write_all(fd, w->buffer, CELL_BYTES, (uint64_t)cell * CELL_BYTES);
    return err;
}

static void tail_locked(struct worker *w, const struct draw *d, int fd)
{
    struct file *f = &w->sh->files[d->slot];
    uint64_t size = atomic_load(&f->size), edge = page_up(size), words[PAGE_BYTES / 8];
    uint32_t cell = (uint32_t)(size / CELL_BYTES);
    uint64_t end = (edge / CELL_BYTES + 2 + d->r[0] % 64) * CELL_BYTES;
    if (size == edge || end > (uint64_t)w->sh->nr_cells * CELL_BYTES || !file_has_room(w, d->slot))
        return;
    char *at = view_cell(w, d->slot, cell, d->r[2], true);
    if (at == NULL) {
        check_outcome(w, OP_REMAP, "mmap", -errno);
        return;
    }
    unsigned nr = (unsigned)((edge - size) / 8);
    for (unsigned i = 0; i < nr; i++)
        words[i] = mix64(d->r[3] + i);
    timeline_begin(w, OP_TAIL, d->slot, cell, (uint32_t)(end / CELL_BYTES) - 1);
    int err = memory_store(at + (size - (uint64_t)cell * CELL_BYTES), words, nr);
    if (err == 0 && d->r[1] / 2 % 2 == 0)
        err = fsync(fd) != 0 ? -errno : 0;
    size_begin(f, end);
    if (err == 0)
        err = grow(w, d, fd, end);
    enum outcome outcome = check_outcome(w, OP_TAIL, "a store beyond the end, or growing", err);
    cells_end(w, d->slot, (uint32_t)(end / CELL_BYTES) - 1, 1, outcome);
    size_settle(w, d->slot, fd, end, outcome);
    timeline_end(w, err, size, d->r[1] % 2 == 0 ? "ftruncate" : "write");
    if (outcome == DONE)
        check_range_zero(w, d->slot, fd, "which was beyond the end of file and stored to there",
                         size, edge);
    if (outcome == DONE && memory_load(at + (size - (uint64_t)cell * CELL_BYTES), words, nr) == 0)
        check_zeros(w, d->slot, "through the mapping", size, (const char *)words, (size_t)nr * 8);
}

void op_tail(struct worker *w, const struct draw *d)
{
    file_lock_exclusive(w, d->slot);
    int fd = view_fd(w, d->slot);
    if (check_outcome(w, OP_TAIL, "open", fd < 0 ? fd : 0) == DONE)
        tail_locked(w, d, fd);
    file_unlock(w, d->slot);
}

/* ---- copies ---------------------------------------------------------------------------------- */

struct copy {
    uint32_t from, to;      /* slots */
    uint32_t first, at, nr; /* cells */
};

static int copy_bytes(int from, int to, const struct copy *c)
{
    off_t in = (off_t)c->first * CELL_BYTES, out = (off_t)c->at * CELL_BYTES;
    size_t left = (size_t)c->nr * CELL_BYTES;
    while (left > 0) {
        ssize_t n = copy_file_range(from, &in, to, &out, left, 0);
        if (n <= 0)
            return n < 0 ? -errno : -EIO;
        left -= (size_t)n;
    }
    return 0;
}

static void copy_locked(struct worker *w, const struct draw *d, const struct copy *c)
{
    int from = view_fd(w, c->from), to = view_fd(w, c->to);
    bool certain = true;
    for (uint32_t i = 0; i < c->nr; i++) {
        struct cell *cell = cell_at(w->sh, c->from, c->first + i);
        certain = certain && atomic_load(&cell->lo) == atomic_load(&cell->ver);
    }
    if (!certain)
        return;
    timeline_begin(w, OP_COPY, c->to, c->at, c->at + c->nr - 1);
    for (uint32_t i = 0; i < c->nr; i++) {
        struct version v = *cell_now(cell_at(w->sh, c->from, c->first + i));
        cell_begin(cell_at(w->sh, c->to, c->at + i), &v);
    }
    int err = from < 0 ? from : to < 0 ? to : copy_bytes(from, to, c);
    cells_end(w, c->to, c->at, c->nr, check_outcome(w, d->op, "copy_file_range", err));
    timeline_end(w, err, c->first, c->from == c->to ? "from the same file" : "from another file");
}

static void copy_cells(struct worker *w, const struct draw *d, const struct copy *c)
{
    bool from_is_lower = c->from < c->to || (c->from == c->to && c->first < c->at);
    uint32_t slots[2] = { from_is_lower ? c->from : c->to, from_is_lower ? c->to : c->from };
    uint32_t firsts[2] = { from_is_lower ? c->first : c->at, from_is_lower ? c->at : c->first };
    if (!cells_lock(w, slots[0], firsts[0], c->nr))
        return;
    /* While the first are held, a sync to make room would be safe too, but not needed often. */
    if (cells_lock(w, slots[1], firsts[1], c->nr)) {
        copy_locked(w, d, c);
        cells_unlock(w, slots[1], firsts[1], c->nr);
    }
    cells_unlock(w, slots[0], firsts[0], c->nr);
}

static bool draw_copy(struct worker *w, const struct draw *d, struct copy *c)
{
    uint32_t in = file_cells(w, c->from), out = file_cells(w, c->to);
    if (in < 2 || out < 2)
        return false;
    c->first = (uint32_t)(d->r[1] % in);
    c->at = (uint32_t)(d->r[2] % out);
    c->nr = 1 + (uint32_t)(d->r[3] % 200);
    c->nr = c->nr < in - c->first ? c->nr : in - c->first;
    c->nr = c->nr < out - c->at ? c->nr : out - c->at;
    uint32_t apart = c->first < c->at ? c->at - c->first : c->first - c->at;
    if (c->from == c->to && c->nr > apart)
        c->nr = apart;
    return c->nr > 0;
}

static void copy_lock(struct worker *w, uint32_t slot, bool target, uint64_t r)
{
    if (target && w->o->coherence != COHERENCE_FULL)
        file_lock_exclusive(w, slot);
    else
        file_lock_shared(w, slot, r);
}

void op_copy(struct worker *w, const struct draw *d)
{
    struct copy c = { .from = d->slot, .to = (uint32_t)(d->r[0] % w->sh->nr_files) };
    uint32_t lower = c.from < c.to ? c.from : c.to, upper = c.from < c.to ? c.to : c.from;
    copy_lock(w, lower, lower == c.to, d->r[4]);
    if (upper != lower)
        copy_lock(w, upper, upper == c.to, mix64(d->r[4]));
    if (draw_copy(w, d, &c))
        copy_cells(w, d, &c);
    if (upper != lower)
        file_unlock(w, upper);
    file_unlock(w, lower);
}
