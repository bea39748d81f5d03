#include "tests/sim_world.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "store/dev_fault.h"
#include "store/dev_trace.h"

struct sim_file *file_of(struct address_space *m)
{
    return m->owner;
}

static uint64_t world_now(void *arg)
{
    return ((struct world *)arg)->sched.now_ns;
}

/* ---- the disk ---------------------------------------------------------------------------------- */

static void peek_end_io(struct bio *bio)
{
    *(bool *)bio->private = (bio->vecs[0].flags & BV_HOLE) == 0;
    bio_free(bio);
}

bool world_peek(struct world *w, uint64_t object, uint32_t index, void *block)
{
    bool found = false;
    struct bio *bio = bio_alloc(BIO_READ, object, 1);
    if (bio == NULL)
        sched_fail(&w->sched, "no memory");
    bio_add(bio, index, block, NULL);
    bio->end_io = peek_end_io;
    bio->private = &found;
    w->sched.undivided++;
    /* Not through submit_bio(): a task may have been left in the middle of one. */
    w->memory->ops->submit(w->memory, bio);
    w->sched.undivided--;
    return found;
}

/* ---- the owner of a mapping: promises, references, and what a pass means ----------------------- */

static int owner_reserve(struct address_space *m, uint32_t pages, uint32_t new)
{
    struct sim_file *f = file_of(m);
    struct world *w = f->world;
    cache_yield();
    if (sched_chance(&w->sched, w->healed ? 0 : w->o.reserve_fails, 1000))
        return -ENOSPC;
    f->promised += pages;
    f->promised_new += new;
    return 0;
}

static void owner_reserve_always(struct address_space *m, uint32_t pages, uint32_t new)
{
    file_of(m)->promised += pages;
    file_of(m)->promised_new += new;
}

static void owner_unreserve(struct address_space *m, uint32_t pages, uint32_t new)
{
    file_of(m)->promised -= pages;
    file_of(m)->promised_new -= new;
}

static int owner_block_exists(struct address_space *m, uint32_t index)
{
    struct world *w = file_of(m)->world;
    char block[BLOCK_SIZE];
    cache_yield();
    if (w->faults && sched_chance(&w->sched, 1, 20))
        return -EIO;
    return world_peek(w, atomic_load(&m->object), index, block);
}

/* Between the pass's look at its mapping and this nobody comes in, so what is done now it has seen. */
static int owner_writeback_begin(struct address_space *m, struct writeback_pass *pass)
{
    struct sim_file *f = file_of(m);
    (void)pass;
    model_all_done(&f->model, f->pass_done);
    f->pass_truncations = f->truncations;
    cache_yield();
    return f->world->faults && sched_chance(&f->world->sched, 1, 20) ? -EIO : 0;
}

/* What the pass saw below the size it began with reached so far by writes: they are on the disk, or
 * a size in the inode's record would uncover blocks that are not there. */
static void pass_covers(struct sim_file *f, uint64_t size)
{
    struct model *m = &f->model;
    for (uint32_t u = 0; u < m->nr_units && (uint64_t)u * UNIT_BYTES < size; u++)
        if (m->units[u].extended > m->units[u].on_disk && m->units[u].extended > m->units[u].zero)
            m->units[u].on_disk = m->units[u].extended;
}

static int owner_writeback_end(struct address_space *m, struct writeback_pass *pass, int error)
{
    struct sim_file *f = file_of(m);
    if (error != 0)
        return error == -EAGAIN ? 0 : error;
    model_synced(&f->model, f->pass_done);
    if (f->truncations == f->pass_truncations)
        pass_covers(f, pass->size);
    check_disk(f->world, f);
    return 0;
}

static void owner_get(struct address_space *m)
{
    file_of(m)->refs++;
}

static void owner_put(struct address_space *m)
{
    file_of(m)->refs--;
}

static const struct address_space_operations owner_ops = {
    .reserve = owner_reserve,
    .reserve_always = owner_reserve_always,
    .unreserve = owner_unreserve,
    .block_exists = owner_block_exists,
    .writeback_begin = owner_writeback_begin,
    .writeback_end = owner_writeback_end,
    .get = owner_get,
    .put = owner_put,
};

/* ---- background tasks -------------------------------------------------------------------------- */

static uint64_t flusher_due(void *arg)
{
    struct world *w = arg;
    return w->sched.stop || atomic_load(&w->cache->want_writeback) ? 0 : w->flusher_next;
}

static void flusher_run(struct task *t, void *arg)
{
    struct world *w = arg;
    while (!w->sched.stop) {
        sched_op(t, "flusher_step", 0, 0, 0);
        w->flusher_next = w->sched.now_ns + (uint64_t)flusher_step(w->cache) * 1000000u;
        sched_sleep(t, flusher_due, w);
    }
}

static uint64_t device_due(void *arg)
{
    struct sim_file *f = arg;
    return f->world->sched.stop ? 0 : dev_latency_step(f->latency, 0);
}

static void device_run(struct task *t, void *arg)
{
    struct sim_file *f = arg;
    while (!f->world->sched.stop) {
        sched_sleep(t, device_due, f);
        sched_op(t, "complete", f->model.id, 0, 0);
        dev_latency_step(f->latency, f->world->sched.now_ns);
    }
}

/* ---- weather ----------------------------------------------------------------------------------- */

static void faults_add(struct world *w)
{
    struct sched *s = &w->sched;
    struct sim_file *f = &w->files[sched_random(s, w->o.files)];
    struct fault_rule r = { .kind = sched_chance(s, 1, 4) ? FAULT_ENOSPC : FAULT_EIO,
                            .last = UINT32_MAX,
                            .per_million = w->o.fault_per_million };
    uint32_t what = sched_random(s, 3);
    r.reads = what != 0;
    r.writes = what != 1;
    if (sched_chance(s, 1, 8)) { /* a bad spot */
        r.first = r.last = sched_random(s, w->o.file_pages);
        r.per_million = 0;
        r.count = 1 + sched_random(s, 20);
    }
    if (dev_fault_add(f->fault, &r) == 0)
        w->faults = true;
    sched_event(s, "faults begin", f->model.id, r.reads, r.writes);
}

static void faults_end(struct world *w)
{
    for (unsigned i = 0; i < w->o.files; i++)
        dev_fault_clear(w->files[i].fault);
    if (w->faults) {
        w->faults_until = w->sched.step;
        sched_event(&w->sched, "faults end", 0, 0, 0);
    }
    w->faults = false;
}

bool world_may_fail(const struct world *w, uint64_t since)
{
    return w->faults || (w->faults_until != 0 && w->faults_until >= since);
}

void world_heal(struct world *w)
{
    w->healed = true;
    faults_end(w);
}

void world_tick(struct world *w)
{
    struct sched *s = &w->sched;
    if (w->o.fault_per_million > 0 && !w->healed && sched_chance(s, 1, w->o.fault_every)) {
        if (w->faults && sched_chance(s, 2, 3))
            faults_end(w);
        else
            faults_add(w);
    }
    for (unsigned i = 0; i < w->o.files; i++) {
        struct sim_file *f = &w->files[i];
        if (f->old_object != 0 && sched_chance(s, 1, 500))
            file_discard(f, f->old_object, 0, UINT32_MAX);
    }
    if (sched_chance(s, 1, 40))
        check_any_time(w);
    if (sched_chance(s, 1, 400))
        check_disk(w, &w->files[sched_random(s, w->o.files)]);
}

bool world_is_quiet(struct world *w)
{
    for (unsigned i = 0; i < w->o.files; i++)
        if (w->files[i].bios > 0)
            return false;
    return sched_all_idle(&w->sched);
}

/* ---- for people -------------------------------------------------------------------------------- */

static bool describe_file_word(const struct sim_file *f, const _Atomic uint32_t *word, char *text,
                               unsigned size)
{
    const char *name = word == &f->m.invalidate_lock.state ? "invalidate_lock"
                       : word == &f->m.writeback_sem.state ? "writeback_sem"
                       : word == &f->i_rwsem.state         ? "i_rwsem"
                                                           : NULL;
    if (name != NULL)
        snprintf(text, size, "%s of file %u", name, f->model.id);
    return name != NULL;
}

static void describe_page_word(const struct world *w, uint64_t n, char *text, unsigned size)
{
    const struct page *page = &w->cache->pages[n];
    const struct address_space *m = atomic_load(&page->mapping);
    const struct sim_file *f = m != NULL ? m->owner : NULL;
    snprintf(text, size, "page %u of file %u (frame %u, count %d)", atomic_load(&page->index),
             f != NULL ? f->model.id : 0, (unsigned)n, atomic_load(&page->refcount));
}

static void describe_word(void *arg, const _Atomic uint32_t *word, char *text, unsigned size)
{
    const struct world *w = arg;
    uintptr_t at = (uintptr_t)word, pages = (uintptr_t)w->cache->pages;
    snprintf(text, size, "a word of its own");
    if (word == &w->cache->progress)
        snprintf(text, size, "progress");
    else if (at >= pages && at < pages + w->cache->max_frames * sizeof(struct page))
        describe_page_word(w, (at - pages) / sizeof(struct page), text, size);
    for (unsigned i = 0; i < w->o.files; i++)
        if (describe_file_word(&w->files[i], word, text, size))
            return;
}

static void describe_world(void *arg)
{
    struct world *w = arg;
    for (unsigned i = 0; i < w->o.files; i++) {
        struct sim_file *f = &w->files[i];
        fprintf(stderr, "file %u: size %llu, %u pages, %u dirty, %llu bios under way\n",
                f->model.id, (unsigned long long)atomic_load(&f->m.i_size),
                atomic_load(&f->m.nrpages), atomic_load(&f->m.nrdirty),
                (unsigned long long)f->bios);
    }
    sim_print_options(&w->o);
}

/* ---- building ---------------------------------------------------------------------------------- */

static void file_open(struct world *w, unsigned i)
{
    struct sim_file *f = &w->files[i];
    struct device *below = w->memory;
    f->world = w;
    bool ok = model_init(&f->model, i + 1, w->o.file_pages * UNITS_PER_PAGE);
    if (!w->o.inline_device)
        below = f->latency = dev_latency_create(below, &w->o.latency, world_now, w);
    f->fault = below != NULL ? dev_fault_create(below, sched_random64(&w->sched)) : NULL;
    f->trace = f->fault != NULL ? dev_trace_create(f->fault, check_bio, f) : NULL;
    if (!ok || f->trace == NULL)
        sched_fail(&w->sched, "no memory");
    mapping_init(&f->m, w->cache, f->trace, i + 1, &owner_ops, 0);
    f->m.owner = f;
    file_map(f);
    if (f->latency != NULL)
        sched_spawn(&w->sched, "device", TASK_BACKGROUND, device_run, f);
}

static void worker_open(struct world *w, unsigned i)
{
    struct sim_worker *k = &w->workers[i];
    char name[24];
    k->world = w;
    k->buf = malloc((size_t)READ_PAGES_MAX << PAGE_SHIFT);
    if (k->buf == NULL)
        sched_fail(&w->sched, "no memory");
    for (unsigned j = 0; j < w->o.files; j++)
        file_ra_state_init(&k->ra[j], w->o.ra_policy, w->o.ra_pages);
    snprintf(name, sizeof name, "worker%u", i);
    sched_spawn(&w->sched, name, TASK_WORK, worker_run, k);
}

void world_open(struct world *w, uint64_t seed)
{
    memset(w, 0, sizeof *w);
    sched_init(&w->sched, seed);
    sim_draw(&w->sched, &w->o);
    w->sched.options = w->o.sched;
    w->sched.arg = w;
    w->clock = (struct clock){ .now_ns = world_now, .arg = w };
    w->o.cache.clock = &w->clock;
    w->memory = dev_memory_create();
    w->sums = calloc(w->o.cache.max_bytes >> PAGE_SHIFT, sizeof w->sums[0]);
    if (w->memory == NULL || w->sums == NULL || page_cache_create(&w->cache, &w->o.cache) != 0)
        sched_fail(&w->sched, "no memory");
    balance_dirty_pages(w->cache); /* nothing is: this thread owes no sleep from a run before */
    w->sched.timed_word = &w->cache->progress;
    w->sched.describe_word = describe_word;
    w->sched.describe = describe_world;
    for (unsigned i = 0; i < w->o.files; i++)
        file_open(w, i);
    sched_spawn(&w->sched, "flusher", TASK_BACKGROUND, flusher_run, w);
    for (unsigned i = 0; i < w->o.workers; i++)
        worker_open(w, i);
}

static void file_close(struct sim_file *f)
{
    file_unmap(f);
    mapping_destroy(&f->m);
    model_destroy(&f->model);
    device_destroy(f->trace);
    device_destroy(f->fault);
    device_destroy(f->latency);
}

void world_close(struct world *w)
{
    for (unsigned i = 0; i < w->o.files; i++)
        file_close(&w->files[i]);
    page_cache_destroy(w->cache);
    device_destroy(w->memory);
    for (unsigned i = 0; i < w->o.workers; i++)
        free(w->workers[i].buf);
    free(w->sums);
    sched_destroy(&w->sched);
}
