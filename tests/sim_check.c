#include <string.h>

#include "cache/reclaim.h"
#include "tests/sim_world.h"

#define FREE_BYTE 0xa5 /* what is in a frame without a page */

/* Without the places for a switch that page_test() has. */
static bool flag(const struct page *page, uint32_t flags)
{
    return (atomic_load(&page->flags) & flags) != 0;
}

#define CHECK(condition, ...)                                        \
    do {                                                             \
        if (!(condition))                                            \
            sched_fail(s, "not true: " #condition ". " __VA_ARGS__); \
    } while (0)

/* ---- any time ---------------------------------------------------------------------------------- */

static void check_bytes(struct world *w, struct sim_file *f, const struct page *page,
                        uint32_t index)
{
    const uint8_t *bytes = page_address(page);
    uint32_t seen;
    for (uint32_t i = 0; i < UNITS_PER_PAGE; i++) {
        uint32_t unit = index * UNITS_PER_PAGE + i;
        if (unit >= f->model.nr_units ||
            (f->scribbled && (uint64_t)unit * UNIT_BYTES >= f->model.size))
            continue;
        const struct unit *u = &f->model.units[unit];
        const char *wrong = model_judge(&f->model, unit, bytes + i * UNIT_BYTES, u->floor, &seen);
        if (wrong != NULL)
            sched_fail(&w->sched,
                       "unit %u of file %u in memory has %s: version %u, allowed %u to %u", unit,
                       f->model.id, wrong, seen, u->floor, u->started);
    }
}

/* The invariants of cache/page.h that hold whenever nobody is inside the tree's lock. */
static void check_page(struct world *w, struct sim_file *f, const struct page *page, uint32_t index)
{
    struct sched *s = &w->sched;
    const struct radix_tree *tree = &f->m.pages;
    CHECK(atomic_load(&page->mapping) == &f->m, "file %u page %u", f->model.id, index);
    CHECK(atomic_load(&page->index) == index, "file %u page %u", f->model.id, index);
    /* 0: frozen by who takes it out, with its lock. */
    CHECK(atomic_load(&page->refcount) >= 1 || flag(page, PG_locked), "file %u page %u",
          f->model.id, index);
    CHECK(!flag(page, PG_dirty) || flag(page, PG_uptodate), "file %u page %u", f->model.id, index);
    CHECK(!(flag(page, PG_dirty) && flag(page, PG_writeback)), "file %u page %u", f->model.id,
          index);
    CHECK(radix_tree_tag_get(tree, index, RADIX_TAG_DIRTY) == flag(page, PG_dirty),
          "file %u page %u", f->model.id, index);
    CHECK(radix_tree_tag_get(tree, index, RADIX_TAG_WRITEBACK) == flag(page, PG_writeback),
          "file %u page %u", f->model.id, index);
    CHECK(!radix_tree_tag_get(tree, index, RADIX_TAG_TOWRITE) || flag(page, PG_dirty),
          "file %u page %u", f->model.id, index);
    if (flag(page, PG_uptodate))
        check_bytes(w, f, page, index);
}

/* M1, M2 of cache/memory.h. */
static void check_pte(struct world *w, struct sim_file *f, uint32_t index)
{
    struct sched *s = &w->sched;
    const struct sim_pte *pte = &f->ptes[index];
    if (pte->page == NULL)
        return;
    CHECK(!pte->writable || flag(pte->page, PG_dirty), "file %u page %u", f->model.id, index);
    CHECK(atomic_load(&pte->page->mapping) == &f->m, "file %u page %u", f->model.id, index);
    CHECK(atomic_load(&pte->page->index) == index, "file %u page %u", f->model.id, index);
    CHECK(flag(pte->page, PG_uptodate), "file %u page %u", f->model.id, index);
    /* While nobody cuts the file. */
    CHECK((f->truncations & 1) != 0 || (uint64_t)index << PAGE_SHIFT < atomic_load(&f->m.i_size),
          "file %u page %u", f->model.id, index);
}

static void check_file(struct world *w, struct sim_file *f, uint64_t *pages)
{
    struct sched *s = &w->sched;
    void *items[FILE_PAGES_MAX + 1];
    uint64_t indices[FILE_PAGES_MAX + 1];
    uint32_t nr = 0, dirty = 0;
    unsigned n =
        radix_tree_gang_lookup(&f->m.pages, items, indices, 0, UINT32_MAX, FILE_PAGES_MAX + 1);
    for (unsigned i = 0; i < n; i++) {
        if (radix_is_value(items[i]))
            continue; /* a shadow */
        check_page(w, f, items[i], (uint32_t)indices[i]);
        dirty += flag(items[i], PG_dirty);
        nr++;
    }
    CHECK(nr == atomic_load(&f->m.nrpages), "file %u", f->model.id);
    CHECK(n - nr == f->m.nrshadows, "file %u: %u shadows", f->model.id, n - nr);
    CHECK(dirty == atomic_load(&f->m.nrdirty), "file %u", f->model.id);
    for (uint32_t i = 0; i < w->o.file_pages; i++)
        check_pte(w, f, i);
    *pages += nr;
}

/* A shadow is in the ring if and only if it is in its tree: each of the ring is in a tree, and there
 * are as many in the trees (cache/workingset.c). */
static void check_shadows(struct world *w)
{
    struct sched *s = &w->sched;
    const struct page_cache *c = w->cache;
    uint64_t known = 0, in_trees = 0;
    CHECK(c->shadow_head - c->shadow_tail <= w->o.max_pages, "");
    for (uint64_t n = c->shadow_tail; n < c->shadow_head; n++) {
        const struct shadow *shadow = &c->shadows[n % c->max_frames];
        if (shadow->m == NULL)
            continue;
        known++;
        CHECK(radix_tree_lookup(&shadow->m->pages, shadow->index) == radix_make_value(n),
              "shadow %llu: file %u page %u", (unsigned long long)n, file_of(shadow->m)->model.id,
              shadow->index);
    }
    for (unsigned i = 0; i < w->o.files; i++)
        in_trees += w->files[i].m.nrshadows;
    CHECK(known == c->nr_shadows && known == in_trees, "%llu known, %llu in trees",
          (unsigned long long)known, (unsigned long long)in_trees);
}

/* Nobody may still look at a frame that is free: make it look bad. */
static void poison_free(struct world *w)
{
    struct list_head *head = &w->cache->free;
    for (struct list_head *n = head->next; n != head; n = n->next) {
        struct page *page = list_entry(n, struct page, lru);
        memset(page_address(page), FREE_BYTE, PAGE_SIZE);
    }
}

void check_any_time(struct world *w)
{
    uint64_t pages = 0;
    for (unsigned i = 0; i < w->o.files; i++)
        check_file(w, &w->files[i], &pages);
    if (pages > w->cache->used)
        sched_fail(&w->sched, "%llu pages in the trees, %llu in use", (unsigned long long)pages,
                   (unsigned long long)w->cache->used);
    check_shadows(w);
    if (sched_chance(&w->sched, 1, 8))
        poison_free(w);
}

/* ---- the disk ---------------------------------------------------------------------------------- */

static void check_block(struct world *w, struct sim_file *f, uint32_t index, bool last)
{
    _Alignas(8) uint8_t block[BLOCK_SIZE];
    uint32_t seen;
    world_peek(w, atomic_load(&f->m.object), index, block);
    for (uint32_t i = 0; i < UNITS_PER_PAGE; i++) {
        uint32_t unit = index * UNITS_PER_PAGE + i;
        const struct unit *u = &f->model.units[unit];
        uint32_t oldest = last ? u->floor : u->on_disk;
        const char *wrong = model_judge(&f->model, unit, block + i * UNIT_BYTES, oldest, &seen);
        if (wrong != NULL)
            sched_fail(&w->sched,
                       "unit %u of file %u on disk has %s: version %u, allowed %u to %u (zeros %u)",
                       unit, f->model.id, wrong, seen, oldest, u->started, u->zero);
    }
}

void check_disk(struct world *w, struct sim_file *f)
{
    for (uint32_t i = 0; i < w->o.file_pages; i++)
        check_block(w, f, i, false);
}

/* ---- bios -------------------------------------------------------------------------------------- */

static uint64_t sum_of(const void *block)
{
    const uint64_t *words = block;
    uint64_t sum = 0;
    for (unsigned i = 0; i < BLOCK_SIZE / sizeof *words; i++)
        sum = sum * 3 + words[i];
    return sum;
}

static void check_write_vec(struct sim_file *f, const struct bio_vec *v, bool done)
{
    struct sched *s = &f->world->sched;
    const struct page *page = v->owner;
    uint64_t *sum = &f->world->sums[page - f->world->cache->pages];
    CHECK(flag(page, PG_writeback) && !flag(page, PG_dirty), "file %u page %u", f->model.id,
          v->index);
    if (!done) {
        *sum = sum_of(v->data);
        return;
    }
    CHECK(*sum == sum_of(v->data), "file %u page %u changed while it was written", f->model.id,
          v->index);
    if (v->error == 0) {
        f->promised--;
        f->promised_new -= (v->flags & BV_NEW) != 0;
    }
}

static void check_vec(struct sim_file *f, const struct bio *bio, const struct bio_vec *v, bool done)
{
    struct sched *s = &f->world->sched;
    const struct page *page = v->owner;
    CHECK(atomic_load(&page->mapping) == &f->m && atomic_load(&page->index) == v->index,
          "file %u page %u", f->model.id, v->index);
    CHECK(bio->object == atomic_load(&f->m.object), "file %u page %u", f->model.id, v->index);
    switch (bio->op) {
    case BIO_READ:
        CHECK(flag(page, PG_locked) && !flag(page, PG_uptodate | PG_dirty | PG_writeback),
              "file %u page %u", f->model.id, v->index);
        break;
    case BIO_WRITE:
        check_write_vec(f, v, done);
        break;
    }
}

void check_bio(void *file, const struct bio *bio, bool done)
{
    struct sim_file *f = file;
    for (uint32_t i = 0; i < bio->nr_vecs; i++)
        check_vec(f, bio, &bio->vecs[i], done);
    sched_event(&f->world->sched,
                bio->op == BIO_READ ? done ? "read done" : "read bio"
                : done              ? "write done"
                                    : "write bio",
                f->model.id, bio->vecs[0].index, done ? (uint64_t)-bio->error : bio->nr_vecs);
    f->bios += done ? (uint64_t)-1 : 1;
}

/* ---- quiet ------------------------------------------------------------------------------------- */

static void check_quiet_page(struct world *w, struct sim_file *f, uint32_t index, int64_t *new)
{
    struct sched *s = &w->sched;
    struct page *page = find_get_page(&f->m, index);
    if (page == NULL)
        return;
    CHECK(atomic_load(&page->refcount) == 2, "file %u page %u", f->model.id, index);
    CHECK(!flag(page, PG_locked | PG_writeback), "file %u page %u", f->model.id, index);
    *new += flag(page, PG_dirty) && !flag(page, PG_mappedtodisk);
    put_page(w->cache, page);
}

static void check_quiet_file(struct world *w, struct sim_file *f)
{
    struct sched *s = &w->sched;
    int64_t new = 0;
    int line = mapping_check(&f->m);
    CHECK(line == 0, "file %u, line %d", f->model.id, line);
    for (uint32_t i = 0; i <= w->o.file_pages; i++)
        check_quiet_page(w, f, i, &new);
    CHECK(f->promised == (int64_t)atomic_load(&f->m.nrdirty), "file %u: %lld promised", f->model.id,
          (long long)f->promised);
    CHECK(f->promised_new == new, "file %u: %lld promised, %lld new", f->model.id,
          (long long)f->promised_new, (long long)new);
    CHECK(f->refs == f->m.on_dirty, "file %u: %lld", f->model.id, (long long)f->refs);
    CHECK(atomic_load(&f->m.i_size) == f->model.size, "file %u", f->model.id);
    CHECK(atomic_load(&f->m.invalidate_lock.state) == 0, "file %u", f->model.id);
    CHECK(atomic_load(&f->m.writeback_sem.state) == 0, "file %u", f->model.id);
    CHECK(atomic_load(&f->i_rwsem.state) == 0, "file %u", f->model.id);
    check_disk(w, f);
}

void check_quiet(struct world *w)
{
    struct sched *s = &w->sched;
    const struct page_cache *c = w->cache;
    uint64_t pages = 0, dirty = 0;
    check_any_time(w);
    for (unsigned i = 0; i < w->o.files; i++) {
        check_quiet_file(w, &w->files[i]);
        pages += atomic_load(&w->files[i].m.nrpages);
        dirty += atomic_load(&w->files[i].m.nrdirty);
    }
    CHECK(c->used == pages, "%llu and %llu", (unsigned long long)c->used,
          (unsigned long long)pages);
    CHECK(c->nr_active + c->nr_inactive == pages, "");
    CHECK(atomic_load(&c->nr_dirty) == dirty, "");
    CHECK(atomic_load(&c->nr_writeback) == 0, "");
    CHECK(atomic_load(&c->progress_waiters) == 0, "");
    sched_event(s, "quiet", pages, dirty, 0);
}

/* ---- the end ----------------------------------------------------------------------------------- */

static void check_end_file(struct world *w, struct sim_file *f)
{
    struct sched *s = &w->sched;
    static uint8_t buf[FILE_PAGES_MAX << PAGE_SHIFT], block[BLOCK_SIZE];
    for (uint32_t i = 0; i < w->o.file_pages; i++)
        check_block(w, f, i, true);
    ssize_t n = filemap_read(&f->m, NULL, 0, buf, sizeof buf);
    CHECK(n >= 0 && (uint64_t)n == f->model.size, "file %u: %zd", f->model.id, n);
    for (uint64_t at = 0; at < (uint64_t)n; at += BLOCK_SIZE) {
        uint64_t left = (uint64_t)n - at;
        world_peek(w, atomic_load(&f->m.object), (uint32_t)(at / BLOCK_SIZE), block);
        CHECK(memcmp(block, buf + at, left < BLOCK_SIZE ? left : BLOCK_SIZE) == 0,
              "file %u: the disk is not what a reader sees at %llu", f->model.id,
              (unsigned long long)at);
    }
}

void check_end(struct world *w)
{
    struct sched *s = &w->sched;
    CHECK(atomic_load(&w->cache->nr_dirty) == 0, "");
    for (unsigned i = 0; i < w->o.files; i++)
        check_end_file(w, &w->files[i]);
}
