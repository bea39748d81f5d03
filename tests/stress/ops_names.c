/* Another file under a slot's name: renamed over it, or made after it was unlinked. Who has the old one
 * mapped keeps it as it was. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "tests/stress/check.h"
#include "tests/stress/timeline.h"
#include "tests/stress/view.h"
#include "tests/stress/worker.h"

#define KEPT 4u /* cells of the old file that are looked at afterwards */

struct kept {
    unsigned nr;
    uint32_t cells[KEPT];
    char *at[KEPT];
    struct version versions[KEPT];
};

/* Remember some cells of the file that is about to go, and where they are mapped. */
static void keep(struct worker *w, const struct draw *d, struct kept *k)
{
    uint32_t cells = file_cells(w, d->slot);
    const struct view *v = &w->views[d->slot];
    k->nr = 0;
    if (cells == 0 || view_cell(w, d->slot, (uint32_t)(d->r[0] % cells), d->r[1], false) == NULL)
        return;
    for (unsigned i = 0; i < KEPT; i++) {
        uint32_t cell = (uint32_t)(mix64(d->r[2] + i) % cells);
        uint64_t at = (uint64_t)cell * CELL_BYTES, start = (uint64_t)v->first * PAGE_BYTES;
        const struct cell *c = cell_at(w->sh, d->slot, cell);
        if (at < start || at + CELL_BYTES > start + (uint64_t)v->count * PAGE_BYTES ||
            atomic_load(&c->lo) != atomic_load(&c->ver))
            continue;
        k->cells[k->nr] = cell;
        k->at[k->nr] = v->addr + (at - start);
        k->versions[k->nr++] = *cell_now(c);
    }
}

static void check_kept(struct worker *w, uint32_t slot, const struct kept *k)
{
    for (unsigned i = 0; i < k->nr; i++) {
        uint64_t words[CELL_WORDS], want[CELL_WORDS];
        int err = memory_load(k->at[i], words, CELL_WORDS);
        if (check_outcome(w, OP_LOAD, "a load from a file without a name", err) != DONE)
            continue;
        version_words(&k->versions[i], want);
        if (memcmp(words, want, sizeof want) != 0)
            check_fail(w, slot, k->cells[i],
                       "LOST: the mapping of the file before, which lost its name, does not show "
                       "what was in it");
        atomic_fetch_add(&w->state->checks, 1);
    }
}

/* A new file with nr cells in it, which the oracle has as begun.   A descriptor, or -errno. */
static int make(struct worker *w, enum op op, uint32_t slot, const char *name, uint32_t nr)
{
    /* One that is to be renamed may have been left behind, by an error on the way. */
    int how = op == OP_RENAME && w->o->errors ? O_TRUNC : O_EXCL;
    int fd = openat(w->dir, name, O_RDWR | O_CREAT | how | O_CLOEXEC, 0666);
    if (fd < 0)
        return -errno;
    cells_begin_store(w, op, slot, 0, nr);
    int err = write_all(fd, w->buffer, (size_t)nr * CELL_BYTES, 0);
    if (err == 0 && w->o->crash != NULL && fsync(fd) != 0)
        err = -errno;
    if (err != 0)
        close(fd);
    return err != 0 ? err : fd;
}

static int over(struct worker *w, uint32_t slot, uint32_t nr)
{
    char name[NAME_BYTES], other[NAME_BYTES + 4];
    slot_name(name, slot);
    snprintf(other, sizeof other, "%s.new", name);
    int fd = make(w, OP_RENAME, slot, other, nr);
    if (fd >= 0 && renameat(w->dir, other, w->dir, name) != 0) {
        int err = -errno;
        close(fd);
        fd = err;
    }
    if (fd < 0)
        unlinkat(w->dir, other, 0);
    return fd;
}

static int again(struct worker *w, uint32_t slot, uint32_t nr)
{
    char name[NAME_BYTES];
    slot_name(name, slot);
    atomic_store(&w->sh->files[slot].replacing, 1);
    if (unlinkat(w->dir, name, 0) != 0 && errno != ENOENT)
        return -errno;
    return make(w, OP_UNLINK, slot, name, nr);
}

/* All of the new file is there, and durable if that matters. */
static void replaced(struct worker *w, uint32_t slot, int fd, uint32_t nr)
{
    struct file *f = &w->sh->files[slot];
    struct view *v = &w->views[slot];
    uint64_t size = (uint64_t)nr * CELL_BYTES;
    view_close(w, slot);
    v->fd = fd;
    v->id = atomic_load(&f->id);
    if (w->o->crash != NULL)
        check_outcome(w, OP_FSYNC, "fsync of the directory", fsync(w->dir) != 0 ? -errno : 0);
    cells_end(w, slot, 0, w->sh->nr_cells, DONE);
    size_end(f, size);
    atomic_store(&f->replacing, 0);
    if (w->o->crash == NULL)
        return;
    for (uint32_t i = 0; i < w->sh->nr_cells; i++) {
        struct cell *c = cell_at(w->sh, slot, i);
        atomic_store(&c->synced, atomic_load(&c->lo));
    }
    atomic_store(&f->size_min, size);
    atomic_store(&f->size_max, size);
}

static void replace_locked(struct worker *w, const struct draw *d)
{
    struct file *f = &w->sh->files[d->slot];
    uint32_t nr = 1 + (uint32_t)(d->r[3] % 300), id = atomic_load(&f->id);
    nr = nr < w->sh->nr_cells ? nr : w->sh->nr_cells;
    struct kept kept;
    if (!file_has_room(w, d->slot))
        return;
    keep(w, d, &kept);
    timeline_begin(w, d->op, d->slot, 0, w->sh->nr_cells - 1);
    atomic_store(&f->id, atomic_fetch_add(&w->sh->next_id, 1) + 1);
    cells_begin_zeros(w, d->slot, (uint64_t)nr * CELL_BYTES,
                      (uint64_t)w->sh->nr_cells * CELL_BYTES);
    size_begin(f, d->op == OP_UNLINK ? 0 : (uint64_t)nr * CELL_BYTES);
    size_begin(f, (uint64_t)nr * CELL_BYTES);
    atomic_fetch_add(&f->size_changes, 1); /* one change, begun in two steps */
    int fd = d->op == OP_RENAME ? over(w, d->slot, nr) : again(w, d->slot, nr);
    if (fd < 0) { /* the old file is still there (and with --errors nothing is unlinked) */
        check_outcome(w, d->op, op_names[d->op], fd);
        atomic_store(&f->id, id);
        cells_end(w, d->slot, 0, w->sh->nr_cells, NOT_DONE);
        size_end(f, atomic_load(&f->size));
        timeline_end(w, fd, 0, NULL);
        return;
    }
    timeline_end(w, 0, id, "replaced the file with this id");
    check_kept(w, d->slot, &kept);
    replaced(w, d->slot, fd, nr);
    check_size(w, d->slot, fd);
}

void op_replace(struct worker *w, const struct draw *d)
{
    file_lock_exclusive(w, d->slot);
    replace_locked(w, d);
    file_unlock(w, d->slot);
}

int file_create(struct worker *w, uint32_t slot)
{
    char name[NAME_BYTES];
    struct file *f = &w->sh->files[slot];
    uint32_t nr = 1 + (uint32_t)(worker_draw(w) % MAX_RANGE);
    nr = nr < w->sh->nr_cells ? nr : w->sh->nr_cells;
    slot_name(name, slot);
    atomic_store(&f->id, atomic_fetch_add(&w->sh->next_id, 1) + 1);
    size_begin(f, (uint64_t)nr * CELL_BYTES);
    int fd = make(w, OP_WRITE, slot, name, nr);
    if (fd < 0)
        return fd;
    replaced(w, slot, fd, nr);
    return 0;
}
