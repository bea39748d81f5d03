/* What makes durable, and what changes nothing but the cache: all of it races with everything. */
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "tests/stress/check.h"
#include "tests/stress/timeline.h"
#include "tests/stress/view.h"
#include "tests/stress/worker.h"

/* ---- durable --------------------------------------------------------------------------------- */

struct promise {          /* what will be durable when the call that follows succeeds */
    uint32_t first, last; /* cells */
    uint64_t size, changes;
};

/* Context: the file cannot be replaced now (its lock, shared at least). */
static struct promise promise_take(struct worker *w, uint32_t slot, uint32_t first, uint32_t last)
{
    struct file *f = &w->sh->files[slot];
    struct promise p = { .first = first, .last = last };
    p.changes = atomic_load(&f->size_changes);
    p.size = atomic_load(&f->size);
    for (uint32_t i = first; i <= last && w->o->crash != NULL; i++)
        w->snapshot[i] = atomic_load(&cell_at(w->sh, slot, i)->lo);
    return p;
}

static void promise_kept(struct worker *w, uint32_t slot, const struct promise *p)
{
    struct file *f = &w->sh->files[slot];
    for (uint32_t i = p->first; i <= p->last && w->o->crash != NULL; i++) {
        struct cell *c = cell_at(w->sh, slot, i);
        uint64_t was = atomic_load(&c->synced);
        while (was < w->snapshot[i] &&
               !atomic_compare_exchange_weak(&c->synced, &was, w->snapshot[i]))
            ;
    }
    /* An even count, and the same: nobody has begun to change the size. */
    if (p->changes % 2 == 0 && atomic_load(&f->size_changes) == p->changes) {
        atomic_store(&f->size_min, p->size);
        atomic_store(&f->size_max, p->size);
    }
    atomic_fetch_add(&w->state->syncs, 1);
}

enum outcome sync_file(struct worker *w, uint32_t slot, bool data_only)
{
    int fd = view_fd(w, slot);
    struct promise p = promise_take(w, slot, 0, w->sh->nr_cells - 1);
    int err = fd < 0 ? fd : (data_only ? fdatasync(fd) : fsync(fd)) != 0 ? -errno : 0;
    enum outcome outcome = check_outcome(w, OP_FSYNC, "fsync", err);
    if (outcome == DONE)
        promise_kept(w, slot, &p);
    return outcome;
}

void op_fsync(struct worker *w, const struct draw *d)
{
    file_lock_shared(w, d->slot, d->r[4]);
    int fd = view_fd(w, d->slot);
    struct promise p = promise_take(w, d->slot, 0, w->sh->nr_cells - 1);
    file_unlock(w, d->slot);
    timeline_begin(w, OP_FSYNC, d->slot, 0, w->sh->nr_cells - 1);
    int err = fd < 0 ? fd : (d->r[0] % 2 == 0 ? fdatasync(fd) : fsync(fd)) != 0 ? -errno : 0;
    if (check_outcome(w, OP_FSYNC, d->r[0] % 2 == 0 ? "fdatasync" : "fsync", err) == DONE)
        promise_kept(w, d->slot, &p);
    timeline_end(w, err, 0, NULL);
}

/* Pages [first, first + nr) of a mapping. */
struct pages {
    uint32_t first, nr;
    char *addr;
};

/* Some pages of the view's mapping around a cell; no pages: there is no mapping.
 * Context: the file's lock, shared at least. */
static struct pages draw_pages(struct worker *w, const struct draw *d)
{
    struct pages p = { 0 };
    uint32_t cells = file_cells(w, d->slot);
    uint32_t cell = cells > 0 ? (uint32_t)(d->r[0] % cells) : 0;
    const struct view *v = &w->views[d->slot];
    if (cells == 0)
        return p;
    if (view_cell(w, d->slot, cell, d->r[2], false) == NULL) {
        check_outcome(w, OP_REMAP, "mmap", -errno);
        return p;
    }
    p.first = cell * CELL_BYTES / PAGE_BYTES;
    p.nr = 1 + (uint32_t)(d->r[3] % 32);
    if (p.nr > v->first + v->count - p.first)
        p.nr = v->first + v->count - p.first;
    p.addr = v->addr + (size_t)(p.first - v->first) * PAGE_BYTES;
    return p;
}

void op_msync(struct worker *w, const struct draw *d)
{
    file_lock_shared(w, d->slot, d->r[4]);
    struct pages pages = draw_pages(w, d);
    bool wait = d->r[1] % 4 != 0;
    if (pages.nr == 0) {
        file_unlock(w, d->slot);
        return;
    }
    /* The whole cells in these pages. The last one may reach beyond the file's last cell. */
    uint32_t first = (pages.first * PAGE_BYTES + CELL_BYTES - 1) / CELL_BYTES;
    uint32_t end = (uint32_t)(((uint64_t)pages.first + pages.nr) * PAGE_BYTES / CELL_BYTES);
    struct promise p = promise_take(w, d->slot, first, end - 1);
    const struct door *door = w->views[d->slot].door;
    p.changes |= 1; /* of sizes msync says nothing */
    file_unlock(w, d->slot);
    timeline_begin(w, OP_MSYNC, d->slot, first, end - 1);
    int err = door->sync(pages.addr, (size_t)pages.nr * PAGE_BYTES, wait ? MS_SYNC : MS_ASYNC) != 0
                  ? -errno
                  : 0;
    if (check_outcome(w, OP_MSYNC, "msync", err) == DONE && wait)
        promise_kept(w, d->slot, &p);
    timeline_end(w, err, 0, wait ? "MS_SYNC" : "MS_ASYNC");
}

/* ---- advice ---------------------------------------------------------------------------------- */

/* To madvise; then there are the two of fadvise, and mincore. */
static const int advice[] = { MADV_DONTNEED, MADV_DONTNEED, MADV_WILLNEED, MADV_SEQUENTIAL,
                              MADV_RANDOM,   MADV_NORMAL,   MADV_COLD,     MADV_PAGEOUT };
#define NR_ADVICE (sizeof advice / sizeof advice[0])
#define NR_DRAWN  (NR_ADVICE + 3)

/* A kernel before 5.4 does not know what is cold. */
static bool may_be_unknown(int which)
{
    return which == MADV_COLD || which == MADV_PAGEOUT;
}

/* Where that would cut the kernel's mapping in pieces, of which mremap takes one only: all of it. (It
 * puts pieces together again that have the same advice, but not those of FUSE: they have a close.) */
static int advise_uncut(const struct view *v, const struct pages *p, int which)
{
    bool cuts = which == MADV_SEQUENTIAL || which == MADV_RANDOM || which == MADV_NORMAL;
    if (cuts && v->door->map == mmap)
        return v->door->advise(v->addr, (size_t)v->count * PAGE_BYTES, which);
    return v->door->advise(p->addr, (size_t)p->nr * PAGE_BYTES, which);
}

static int advise(struct worker *w, const struct draw *d, const struct pages *p)
{
    unsigned char resident[32];
    const struct door *door = w->views[d->slot].door;
    size_t len = (size_t)p->nr * PAGE_BYTES;
    uint64_t which = d->r[1] % NR_DRAWN;
    if (which == NR_ADVICE + 2)
        return door->resident(p->addr, len, resident) != 0 ? -errno : 0;
    if (which >= NR_ADVICE) /* drop what is clean from the cache itself */
        return -posix_fadvise(w->views[d->slot].fd, (off_t)p->first * PAGE_BYTES, (off_t)len,
                              which == NR_ADVICE ? POSIX_FADV_DONTNEED : POSIX_FADV_WILLNEED);
    if (advise_uncut(&w->views[d->slot], p, advice[which]) == 0)
        return 0;
    return errno == EINVAL && may_be_unknown(advice[which]) ? 0 : -errno;
}

void op_madvise(struct worker *w, const struct draw *d)
{
    file_lock_shared(w, d->slot, d->r[4]);
    struct pages p = draw_pages(w, d);
    file_unlock(w, d->slot);
    if (p.nr == 0)
        return;
    uint32_t first = p.first * PAGE_BYTES / CELL_BYTES;
    timeline_begin(w, OP_MADVISE, d->slot, first, first + p.nr * (PAGE_BYTES / CELL_BYTES));
    int err = advise(w, d, &p);
    check_outcome(w, OP_MADVISE, "madvise, fadvise or mincore", err);
    timeline_end(w, err, d->r[1] % NR_DRAWN, NULL);
}

/* ---- other mappings -------------------------------------------------------------------------- */

/* The mapping is the worker's own, so nobody has its old address; the pages in it are everybody's. */
static void move_mapping(struct worker *w, const struct draw *d, bool resize)
{
    file_lock_shared(w, d->slot, d->r[4]);
    struct pages p = draw_pages(w, d);
    file_unlock(w, d->slot);
    if (p.nr == 0)
        return;
    const struct view *v = &w->views[d->slot];
    uint32_t most = w->sh->nr_pages - v->first;
    uint32_t count = resize ? 1 + (uint32_t)(d->r[1] >> 8) % most : v->count;
    uint32_t first = v->first * PAGE_BYTES / CELL_BYTES;
    uint32_t end = (v->first + v->count) * PAGE_BYTES / CELL_BYTES;
    bool fixed = !resize || (d->r[1] >> 4) % 2 == 0;
    timeline_begin(w, OP_REMAP, d->slot, first, end - 1);
    int err = view_remap(w, d->slot, count, fixed);
    /* Neither a SIGBUS nor what a filesystem may lack: our mapping is one, and mremap is not its. */
    if (err == -EFAULT || err == -EOPNOTSUPP || err == -ENOSYS)
        check_fail(w, d->slot, first, "FAILED: mremap: %s", strerror(-err));
    check_outcome(w, OP_REMAP, "mremap", err);
    timeline_end(w, err, count, fixed ? "mremap to a new place" : "mremap to another length");
}

static void drop_mapping(struct worker *w, const struct draw *d, bool descriptor)
{
    timeline_begin(w, OP_REMAP, d->slot, 0, 0);
    if (descriptor)
        view_close(w, d->slot);
    else
        view_unmap(w, d->slot);
    timeline_end(w, 0, 0, NULL);
}

void op_remap(struct worker *w, const struct draw *d)
{
    uint64_t which = d->r[1] % 4;
    if (which < 2)
        drop_mapping(w, d, which == 0);
    else
        move_mapping(w, d, which == 3);
}
