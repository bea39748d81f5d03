/* sim_ops.c: what the tasks do to a file, as fs/ does it: i_rwsem around everything that changes it,
 * readers without. */
#include <errno.h>
#include <string.h>

#include "cache/errseq.h"
#include "tests/sim_world.h"

#define ALLOC_TRIES 50u /* sleeps of page_alloc(), at least, before it gives up */
#define LAST_INDEX  UINT32_MAX
#define SCRIBBLE    0x73 /* each byte that is stored behind the end of a file */

static struct sched *sched_of(struct sim_worker *k)
{
    return &k->world->sched;
}

static uint64_t alloc_waits(struct world *w)
{
    return atomic_load(&w->cache->count.alloc_waits);
}

/* Might this operation have given up on memory? */
static bool starved(struct sim_worker *k)
{
    return alloc_waits(k->world) - k->waits >= ALLOC_TRIES;
}

static void begin(struct sim_worker *k, const char *op, uint64_t a, uint64_t b, uint64_t c)
{
    k->began = sched_of(k)->step;
    k->waits = alloc_waits(k->world);
    sched_op(k->task, op, a, b, c);
}

/* The outcome of an operation: an error must have a cause. */
static void end(struct sim_worker *k, const char *op, int64_t result, bool may_be_full)
{
    struct world *w = k->world;
    sched_event(&w->sched, op, (uint64_t)result, 0, 0);
    w->ops++;
    if (result >= 0)
        return;
    w->failed++;
    w->short_of_memory += result == -ENOMEM;
    bool excused = world_may_fail(w, k->began);
    if (result == -ENOMEM)
        excused = starved(k);
    if (result == -ENOSPC && may_be_full && w->o.reserve_fails > 0)
        excused = true;
    if (!excused)
        sched_fail(&w->sched, "%s: error %d without a cause", op, (int)result);
}

/* A range of units: as long as at most pages, somewhere in the file's reach. */
struct range {
    uint32_t first, end;
    uint64_t offset, len;
};

static struct range pick_range(struct sim_worker *k, uint32_t pages, bool whole)
{
    struct world *w = k->world;
    uint32_t units = w->o.file_pages * UNITS_PER_PAGE, most = pages * UNITS_PER_PAGE;
    uint32_t first = sched_random(&w->sched, units), len = 1 + sched_random(&w->sched, most);
    if (whole) {
        first -= first % UNITS_PER_PAGE;
        len += len % UNITS_PER_PAGE;
    }
    if (len > units - first)
        len = units - first;
    return (struct range){ .first = first,
                           .end = first + len,
                           .offset = (uint64_t)first * UNIT_BYTES,
                           .len = (uint64_t)len * UNIT_BYTES };
}

/* ---- reading ----------------------------------------------------------------------------------- */

static void judge(struct sim_worker *k, struct sim_file *f, const struct model_view *v,
                  const void *bytes, uint64_t n, bool partial)
{
    uint32_t unit, version = 0;
    const char *wrong = model_judge_read(&f->model, v, bytes, n, partial, &unit);
    if (wrong == NULL)
        return;
    const uint8_t *at = (const uint8_t *)bytes + (uint64_t)(unit - v->first) * UNIT_BYTES;
    if ((uint64_t)(unit - v->first) * UNIT_BYTES < n)
        memcpy(&version, at, sizeof version);
    const struct unit *u = &f->model.units[unit];
    sched_fail(sched_of(k),
               "a reader of file %u, %llu bytes from unit %u, got %s in unit %u: version %u, "
               "allowed %u to %u (zeros %u, on disk %u)",
               f->model.id, (unsigned long long)n, v->first, wrong, unit, version,
               v->floor[unit - v->first], u->started, u->zero, u->on_disk);
}

static void look(struct sim_worker *k, struct sim_file *f, struct model_view *v, struct range r)
{
    *v = (struct model_view){ .first = r.first, .count = r.end - r.first, .floor = k->floor };
    model_look(&f->model, v, atomic_load(&f->m.i_size));
}

static struct file_ra_state *ra_of(struct sim_worker *k, struct sim_file *f)
{
    return sched_chance(sched_of(k), 1, 4) ? NULL : &k->ra[f->model.id - 1];
}

/* A reader that has looked at the size copies what is in the page, as in Linux: where the file ended for a
 * while meanwhile, that may be what was scribbled behind its end then.   Returns the bytes before such a
 * unit. */
static uint64_t before_scribbles(const struct sim_file *f, const struct model_view *v,
                                 const uint8_t *bytes, uint64_t n)
{
    uint64_t least = v->size, start = (uint64_t)v->first * UNIT_BYTES;
    for (uint32_t i = v->sizes_from; i < f->model.nr_sizes; i++)
        least = f->model.sizes[i] < least ? f->model.sizes[i] : least;
    for (uint64_t at = 0; f->scribbled && at < n; at += UNIT_BYTES)
        if (start + at >= least && bytes[at] == SCRIBBLE &&
            memcmp(bytes + at, bytes + at + 1, UNIT_BYTES - 1) == 0)
            return at;
    return n;
}

static void do_read(struct sim_worker *k, struct sim_file *f)
{
    struct range r = pick_range(k, READ_PAGES_MAX, false);
    struct model_view v;
    begin(k, "read", f->model.id, r.first, r.end);
    look(k, f, &v, r);
    ssize_t n = filemap_read(&f->m, ra_of(k, f), r.offset, k->buf, r.len);
    /* An error after some bytes shows as a short read. */
    if (n >= 0) {
        uint64_t certain = before_scribbles(f, &v, k->buf, (uint64_t)n);
        judge(k, f, &v, k->buf, certain,
              certain < (uint64_t)n || world_may_fail(k->world, k->began) || starved(k));
    }
    end(k, "read", n, false);
}

/* Pages in hand while everything goes on around them (as a FUSE reply is sent from them). */
static void do_get_pages(struct sim_worker *k, struct sim_file *f)
{
    struct range r = pick_range(k, 3, true);
    struct page *pages[4];
    struct model_view v;
    uint32_t sizes = f->model.nr_sizes - f->model.resizing;
    uint32_t n = 0, nr = (r.end - r.first + 1) / UNITS_PER_PAGE;
    int err = 0;
    begin(k, "get_pages", f->model.id, r.first, r.end);
    look(k, f, &v, r);
    while (n < nr && (err = filemap_get_page(&f->m, ra_of(k, f), r.first / UNITS_PER_PAGE + n,
                                             nr - n, &pages[n])) == 0)
        n++;
    for (uint32_t i = sched_random(sched_of(k), 4); i > 0; i--)
        sched_yield_now(k->task);
    for (uint32_t i = 0; i < n; i++) {
        v.first = r.first + i * UNITS_PER_PAGE;
        v.count = UNITS_PER_PAGE;
        v.floor = k->floor + i * UNITS_PER_PAGE;
        v.size = MAX_FILE_SIZE; /* a page's bytes end with the page, or where the file does */
        uint64_t size = atomic_load(&f->m.i_size), at = (uint64_t)v.first * UNIT_BYTES;
        uint64_t left = at < size ? size - at : 0;
        /* One that has been cut, scribbled on behind the end, and removed keeps that, for us alone. */
        if (!f->scribbled || f->model.nr_sizes == sizes)
            judge(k, f, &v, page_address(pages[i]), left < PAGE_SIZE ? left : PAGE_SIZE, true);
    }
    for (uint32_t i = 0; i < n; i++)
        put_page(k->world->cache, pages[i]);
    end(k, "get_pages", err < 0 ? err : (int64_t)n, false);
}

/* ---- writing ----------------------------------------------------------------------------------- */

static void do_write(struct sim_worker *k, struct sim_file *f)
{
    struct world *w = k->world;
    struct range r = pick_range(k, w->o.write_pages, w->o.whole_pages);
    begin(k, "write", f->model.id, r.first, r.end);
    down_write(&f->i_rwsem);
    struct model *m = &f->model;
    uint64_t size = m->size, reach = r.offset + r.len;
    model_write_begin(m, r.first, r.end, k->buf);
    model_size_begin(m, reach > size ? reach : size);
    ssize_t n = filemap_write(&f->m, r.offset, k->buf, r.len);
    reach = r.offset + (n > 0 ? (uint64_t)n : 0);
    if (n > 0)
        model_done(m, r.first, (uint32_t)(reach / UNIT_BYTES));
    model_size_end(m, n > 0 && reach > size ? reach : size);
    up_write(&f->i_rwsem);
    end(k, "write", n, true);
    if (sched_chance(&w->sched, 1, 2)) {
        begin(k, "balance", 0, 0, 0);
        balance_dirty_pages(w->cache);
    }
}

static void do_allocate(struct sim_worker *k, struct sim_file *f)
{
    struct range r = pick_range(k, 4, true);
    begin(k, "allocate", f->model.id, r.first, r.end);
    down_write(&f->i_rwsem);
    int err = filemap_allocate(&f->m, r.first / UNITS_PER_PAGE, (r.end - 1) / UNITS_PER_PAGE);
    up_write(&f->i_rwsem);
    end(k, "allocate", err, true);
}

static void do_grow(struct sim_worker *k, struct sim_file *f)
{
    struct range r = pick_range(k, 1, false);
    begin(k, "grow", f->model.id, r.offset, 0);
    down_write(&f->i_rwsem);
    struct page *eof = NULL;
    int err = 0;
    if (r.offset > f->model.size && (err = lock_eof_page(&f->m, &eof)) == 0) {
        model_size_begin(&f->model, r.offset);
        cache_yield();
        atomic_store(&f->m.i_size, r.offset);
        page_unlock_put(&f->m, eof);
        model_size_end(&f->model, r.offset);
    }
    up_write(&f->i_rwsem);
    end(k, "grow", err, false);
}

/* ---- removing: i_size, pages, blocks, as fs/resize.c does ------------------------------------- */

void file_discard(struct sim_file *f, uint64_t object, uint32_t first, uint32_t last)
{
    f->world->sched.undivided++;
    dev_memory_discard(f->world->memory, object, first, last);
    f->world->sched.undivided--;
    if (object == f->old_object)
        f->old_object = 0;
}

/* What was there has no blocks from now on. Context: invalidate_lock. */
static void remove_blocks(struct sim_file *f, uint32_t first, uint32_t last)
{
    uint64_t object = atomic_load(&f->m.object);
    if (first == 0 && last == LAST_INDEX && f->world->o.late_discard) {
        if (f->old_object != 0)
            file_discard(f, f->old_object, 0, LAST_INDEX);
        f->old_object = object;
        atomic_store(&f->m.object, f->model.id + 16 * ++f->objects);
    } else {
        file_discard(f, object, first, last);
    }
    uint32_t end = last == LAST_INDEX ? f->model.nr_units : (last + 1) * UNITS_PER_PAGE;
    model_discarded(&f->model, first * UNITS_PER_PAGE, end);
}

static void shrink(struct sim_file *f, uint64_t size, struct page *cut)
{
    uint32_t first = (uint32_t)pages_for(size);
    down_write(&f->m.invalidate_lock);
    unsigned stayed = truncate_setsize(&f->m, size, cut);
    cache_yield();
    remove_blocks(f, first, LAST_INDEX);
    truncate_pages_end(&f->m, first, LAST_INDEX, stayed);
    page_unlock_put(&f->m, cut);
    up_write(&f->m.invalidate_lock);
}

static void do_truncate(struct sim_worker *k, struct sim_file *f)
{
    struct range r = pick_range(k, 1, false);
    uint64_t size = sched_chance(sched_of(k), 1, 4) ? 0 : r.offset;
    struct page *cut = NULL;
    struct model *m = &f->model;
    int err = 0;
    begin(k, "truncate", m->id, size, 0);
    down_write(&f->i_rwsem);
    if (size <= m->size) {
        model_zero_begin(m, (uint32_t)(size / UNIT_BYTES), m->nr_units);
        err = truncate_get_page(&f->m, size, &cut);
        if (err == 0) {
            model_size_begin(m, size);
            f->truncations++;
            shrink(f, size, cut);
            f->truncations++;
            model_size_end(m, size);
            model_done(m, (uint32_t)(size / UNIT_BYTES), m->nr_units);
        }
    }
    up_write(&f->i_rwsem);
    end(k, "truncate", err, false);
}

static int zero_edge(struct sim_file *f, uint64_t from, uint64_t to)
{
    return from < to ? truncate_partial_page(&f->m, from, to) : 0;
}

static int punch(struct sim_file *f, uint64_t from, uint64_t to)
{
    uint64_t first = pages_for(from), last = to >> PAGE_SHIFT;
    if (first > last)
        return zero_edge(f, from, to);
    int err = zero_edge(f, from, first << PAGE_SHIFT);
    if (err == 0)
        err = zero_edge(f, last << PAGE_SHIFT, to);
    if (err != 0 || first == last)
        return err;
    down_write(&f->m.invalidate_lock);
    unsigned stayed = truncate_pages_begin(&f->m, (uint32_t)first, (uint32_t)last - 1);
    cache_yield();
    remove_blocks(f, (uint32_t)first, (uint32_t)last - 1);
    truncate_pages_end(&f->m, (uint32_t)first, (uint32_t)last - 1, stayed);
    up_write(&f->m.invalidate_lock);
    return 0;
}

static void do_punch(struct sim_worker *k, struct sim_file *f)
{
    struct range r = pick_range(k, 6, false);
    begin(k, "punch", f->model.id, r.first, r.end);
    down_write(&f->i_rwsem);
    model_zero_begin(&f->model, r.first, r.end);
    int err = punch(f, r.offset, r.offset + r.len);
    if (err == 0)
        model_done(&f->model, r.first, r.end);
    up_write(&f->i_rwsem);
    end(k, "punch", err, false);
}

/* ---- writeback --------------------------------------------------------------------------------- */

/* An error is told once to every open file description. */
static void check_told(struct sim_worker *k, struct sim_file *f, _Atomic uint32_t *since)
{
    if (filemap_check_errors(&f->m, since) == 0)
        sched_fail(sched_of(k), "a pass failed and the file's owner is not told");
    if (filemap_check_errors(&f->m, since) != 0)
        sched_fail(sched_of(k), "an error is told twice");
}

static void do_sync(struct sim_worker *k, struct sim_file *f, enum writeback_sync sync)
{
    _Atomic uint32_t since = errseq_sample(&f->m.wb_err);
    begin(k, sync == WB_SYNC_ALL ? "sync" : "sync_none", f->model.id, 0, 0);
    model_all_done(&f->model, k->done[0]);
    int err = filemap_fdatawrite(&f->m, sync);
    if (err == 0 && sync == WB_SYNC_ALL) {
        model_synced(&f->model, k->done[0]);
        check_disk(k->world, f);
    }
    if (err != 0 && err != -EBUSY)
        check_told(k, f, &since);
    end(k, "sync", err, false);
}

static void do_sync_cache(struct sim_worker *k)
{
    struct world *w = k->world;
    begin(k, "sync_cache", 0, 0, 0);
    for (unsigned i = 0; i < w->o.files; i++)
        model_all_done(&w->files[i].model, k->done[i]);
    int err = page_cache_sync(w->cache);
    for (unsigned i = 0; i < w->o.files && err == 0; i++) {
        model_synced(&w->files[i].model, k->done[i]);
        check_disk(w, &w->files[i]);
    }
    end(k, "sync_cache", err, false);
}

/* ---- reclaim ----------------------------------------------------------------------------------- */

static void do_drop(struct sim_worker *k)
{
    begin(k, "drop", 0, 0, 0);
    end(k, "drop", (int64_t)page_cache_drop(k->world->cache), false);
}

static void do_invalidate(struct sim_worker *k, struct sim_file *f)
{
    struct range r = pick_range(k, k->world->o.file_pages, true);
    begin(k, "invalidate", f->model.id, r.first, r.end);
    end(k, "invalidate",
        invalidate_inode_pages2_range(&f->m, r.first / UNITS_PER_PAGE, r.end / UNITS_PER_PAGE),
        false);
}

static void do_resize(struct sim_worker *k)
{
    struct world *w = k->world;
    uint32_t pages =
        CACHE_MIN_PAGES + sched_random(&w->sched, w->o.max_pages - CACHE_MIN_PAGES + 1);
    begin(k, "resize", pages, 0, 0);
    if (sched_chance(&w->sched, 1, 4))
        page_cache_set_reclaim(w->cache, sched_chance(&w->sched, 1, 2) ? "lru2q" : "s3fifo");
    end(k, "resize", page_cache_resize(w->cache, (uint64_t)pages << PAGE_SHIFT), false);
}

/* ---- holding, as faults of a mapping do -------------------------------------------------------- */

/* A page that is locked stays where it is. */
static void do_hold(struct sim_worker *k, struct sim_file *f)
{
    struct range r = pick_range(k, 1, false);
    uint32_t index = r.first / UNITS_PER_PAGE;
    begin(k, "hold", f->model.id, index, 0);
    struct page *page = find_lock_page(&f->m, index);
    if (page != NULL) {
        for (uint32_t i = sched_random(sched_of(k), 6); i > 0; i--)
            sched_yield_now(k->task);
        if (atomic_load(&page->mapping) != &f->m || atomic_load(&page->index) != index)
            sched_fail(sched_of(k), "a page left its tree while it was locked");
        unlock_page(page);
        put_page(k->world->cache, page);
    }
    end(k, "hold", page != NULL, false);
}

/* Store something behind the end of the file, in the page that the end cuts. */
static void scribble_page(struct sim_file *f)
{
    uint64_t size = f->model.size;
    struct page *page = find_lock_page(&f->m, (uint32_t)(size >> PAGE_SHIFT));
    if (page == NULL)
        return;
    wait_on_page_writeback(page);
    if (page_test(page, PG_uptodate) && dirty_page_reserve(&f->m, page) == 0) {
        char *at = page_address(page);
        f->scribbled = true;
        memset(at + size % PAGE_SIZE, SCRIBBLE, PAGE_SIZE - (size_t)(size % PAGE_SIZE));
        set_page_dirty(&f->m, page);
    }
    unlock_page(page);
    put_page(f->world->cache, page);
}

/* A mapping can store behind the end of the file: it must not get to the disk, nor into the file when
 * that grows. */
static void do_scribble(struct sim_worker *k, struct sim_file *f)
{
    begin(k, "scribble", f->model.id, 0, 0);
    down_write(&f->i_rwsem);
    if (f->model.size % PAGE_SIZE != 0)
        scribble_page(f);
    up_write(&f->i_rwsem);
    end(k, "scribble", 0, false);
}

/* ---- mapped files ------------------------------------------------------------------------------ */

/* Units of one page, or of two. */
static struct range pick_mapped(struct sim_worker *k, struct sim_file *f)
{
    struct range r = pick_range(k, 1, false);
    uint32_t end = (uint32_t)(f->model.size / UNIT_BYTES);
    if (r.end > end)
        r.end = r.first > end ? r.first : end;
    r.len = (uint64_t)(r.end - r.first) * UNIT_BYTES;
    return r;
}

static void judge_cut(struct sim_worker *k, struct sim_file *f, const struct model_view *v,
                      uint32_t first)
{
    struct model_view at = *v;
    at.first = first;
    at.count = 1;
    at.size = k->size;
    judge(k, f, &at, k->buf, 0, false);
}

/* Loads: whoever changes the file, and without a lock. What lies behind its end may have been
 * scribbled on meanwhile. */
static void do_load(struct sim_worker *k, struct sim_file *f)
{
    uint32_t sizes = f->model.nr_sizes - f->model.resizing, n = 0;
    struct range r = pick_mapped(k, f);
    struct model_view v;
    int err = 0;
    begin(k, "load", f->model.id, r.first, r.end);
    look(k, f, &v, r);
    k->size = v.size;
    if (sched_chance(sched_of(k), 1, 8))
        vma_map_resident(&f->vma, 0, k->world->o.file_pages);
    while (n < v.count && (err = file_access(f, r.first + n, k->buf + n * UNIT_BYTES, false)) == 0)
        n++;
    v.size = MAX_FILE_SIZE;                          /* the last page is there to its end */
    if (!f->scribbled || f->model.nr_sizes == sizes) /* else they may be behind the end by now */
        judge(k, f, &v, k->buf, (uint64_t)n * UNIT_BYTES, true);
    bool cut = err == -EFAULT; /* then the page that failed was outside the file once */
    if (cut)
        judge_cut(k, f, &v, (r.first + n) / UNITS_PER_PAGE * UNITS_PER_PAGE);
    end(k, "load", cut ? 0 : err, false);
}

/* Stores: nobody else changes the file, but all the others look on. */
static void do_store(struct sim_worker *k, struct sim_file *f)
{
    int err = 0;
    begin(k, "lock for store", f->model.id, 0, 0);
    down_write(&f->i_rwsem);
    struct range r = pick_mapped(k, f);
    sched_op(k->task, "store", f->model.id, r.first, r.end);
    model_write_begin(&f->model, r.first, r.end, k->buf);
    for (uint32_t u = r.first; u < r.end && err == 0; u++)
        err = file_access(f, u, k->buf + (u - r.first) * UNIT_BYTES, true);
    if (err == 0)
        model_done(&f->model, r.first, r.end);
    up_write(&f->i_rwsem);
    end(k, "store", err, true);
}

/* ---- poisoning, for who cannot be given a page ------------------------------------------------- */

struct poison {
    struct sim_file *f;
    uint32_t index;
};

static int must_be_unmapped(void *arg)
{
    const struct poison *p = arg;
    for (unsigned look = 0; look < 2; look++) {
        if (p->f->ptes[p->index].page != NULL)
            sched_fail(&p->f->world->sched, "page %u of file %u is mapped while it is gone",
                       p->index, p->f->model.id);
        cache_yield();
    }
    return 0;
}

static void do_poison(struct sim_worker *k, struct sim_file *f)
{
    struct poison p = { .f = f, .index = sched_random(sched_of(k), k->world->o.file_pages) };
    begin(k, "poison", f->model.id, p.index, 0);
    int err = page_call_while_gone(&f->m, p.index, must_be_unmapped, &p);
    end(k, "poison", err == -EAGAIN ? 0 : err, false);
}

/* ---- choosing ---------------------------------------------------------------------------------- */

static enum sim_op pick_op(struct world *w)
{
    uint32_t sum = 0;
    for (unsigned i = 0; i < OPS; i++)
        sum += w->o.weights[i];
    uint32_t at = sched_random(&w->sched, sum);
    unsigned op = 0;
    while (at >= w->o.weights[op])
        at -= w->o.weights[op++];
    return (enum sim_op)op;
}

static void do_one(struct sim_worker *k, struct sim_file *f, enum sim_op op)
{
    switch (op) {
    case OP_READ:
        do_read(k, f);
        break;
    case OP_GET_PAGES:
        do_get_pages(k, f);
        break;
    case OP_WRITE:
        do_write(k, f);
        break;
    case OP_TRUNCATE:
        do_truncate(k, f);
        break;
    case OP_GROW:
        do_grow(k, f);
        break;
    case OP_PUNCH:
        do_punch(k, f);
        break;
    case OP_ALLOCATE:
        do_allocate(k, f);
        break;
    case OP_SYNC_ALL:
        do_sync(k, f, WB_SYNC_ALL);
        break;
    case OP_SYNC_NONE:
        do_sync(k, f, WB_SYNC_NONE);
        break;
    case OP_SYNC_CACHE:
        do_sync_cache(k);
        break;
    case OP_DROP:
        do_drop(k);
        break;
    case OP_INVALIDATE:
        do_invalidate(k, f);
        break;
    case OP_RESIZE:
        do_resize(k);
        break;
    case OP_HOLD:
        do_hold(k, f);
        break;
    case OP_SCRIBBLE:
        do_scribble(k, f);
        break;
    case OP_LOAD:
        do_load(k, f);
        break;
    case OP_STORE:
        do_store(k, f);
        break;
    case OP_POISON:
        do_poison(k, f);
        break;
    case OPS:
        break;
    }
}

void worker_run(struct task *t, void *arg)
{
    struct sim_worker *k = arg;
    struct world *w = k->world;
    k->task = t;
    while (!w->sched.stop) {
        if (w->sched.pause) {
            sched_idle(t);
        } else {
            sched_yield_now(t); /* or who never has to sleep would be alone in the world */
            do_one(k, &w->files[sched_random(&w->sched, w->o.files)], pick_op(w));
        }
    }
}
