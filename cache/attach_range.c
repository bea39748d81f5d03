/* attach_range.c: which addresses of a client are which pages.
 *
 * A range never changes while somebody may use it: cutting makes new ones and takes the old one out. Its
 * memory goes when the last fault that is being resolved lets go of it, on a thread that may sleep.
 */
#include <errno.h>
#include <poll.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>

#include "cache/attach_impl.h"

static uint64_t range_end(const struct attach_range *r)
{
    return r->u.addr + ((uint64_t)r->u.vma.count << PAGE_SHIFT);
}

/* The number of the first range that ends behind addr. Context: lock. */
static size_t first_behind(const struct attach_client *c, uint64_t addr)
{
    size_t low = 0, high = c->nr_ranges;
    while (low < high) {
        size_t mid = (low + high) / 2;
        if (range_end(c->ranges[mid]) > addr)
            high = mid;
        else
            low = mid + 1;
    }
    return low;
}

struct attach_range *range_first(struct attach_client *c, uint64_t addr, uint64_t length)
{
    struct attach_range *found = NULL;
    pthread_mutex_lock(&c->lock);
    size_t i = first_behind(c, addr);
    if (i < c->nr_ranges && c->ranges[i]->u.addr < addr + length) {
        found = c->ranges[i];
        atomic_fetch_add(&found->refs, 1);
    }
    pthread_mutex_unlock(&c->lock);
    return found;
}

struct attach_range *range_find(struct attach_client *c, uint64_t addr)
{
    return range_first(c, addr, 1);
}

/* All parts of a mapping, and nothing else, have its attach_open. */
struct attach_range *range_part(struct attach_range *cut, uint32_t index)
{
    struct attach_client *c = cut->client;
    struct attach_range *found = NULL;
    pthread_mutex_lock(&c->lock);
    for (size_t i = 0; i < c->nr_ranges && found == NULL; i++)
        if (c->ranges[i]->open == cut->open && index >= c->ranges[i]->u.vma.first &&
            index - c->ranges[i]->u.vma.first < c->ranges[i]->u.vma.count)
            found = c->ranges[i];
    if (found != NULL)
        atomic_fetch_add(&found->refs, 1);
    pthread_mutex_unlock(&c->lock);
    return found;
}

void range_put(struct attach_range *r)
{
    if (atomic_fetch_sub(&r->refs, 1) != 1)
        return;
    r->release = (struct attach_job){ .range = r, .kind = JOB_RELEASE };
    pool_add(r->client->attach, &r->release);
}

void open_put(struct attach *a, struct attach_open *open)
{
    if (atomic_fetch_sub(&open->refs, 1) != 1)
        return;
    a->ops->release(a->arg, open->file.owner);
    free(open);
}

static struct attach_range *range_new(struct attach_client *c, struct attach_open *open,
                                      struct memfd_segment *segment, const struct span *at)
{
    struct attach_range *r = calloc(1, sizeof *r);
    if (r == NULL)
        return NULL;
    r->u = (struct uffd_vma){ .uffd = c->uffd,
                              .addr = at->addr,
                              .file = open->file.number,
                              .space = &c->space,
                              .writable = open->file.writable };
    r->u.vma = (struct vm_area){ .mapping = open->file.mapping,
                                 .ops = &uffd_vma_ops,
                                 .door = FAULT_ATTACHED,
                                 .first = at->first,
                                 .count = at->count,
                                 .ra = open->file.ra };
    r->client = c;
    r->open = open;
    r->segment = segment;
    atomic_store(&r->refs, 1);
    return r;
}

/* Room for n more. Context: lock. */
static int make_room(struct attach_client *c, size_t n, bool limited)
{
    if (limited && c->nr_ranges + n > ATTACH_RANGES_MOST)
        return -ENOMEM;
    if (c->nr_ranges + n <= c->room)
        return 0;
    size_t room = (c->nr_ranges + n) * 2;
    struct attach_range **ranges = realloc(c->ranges, room * sizeof(struct attach_range *));
    if (ranges == NULL)
        return -ENOMEM;
    c->ranges = ranges;
    c->room = room;
    return 0;
}

/* Context: lock; there is room, and nothing where it lies. */
static void list_range(struct attach_client *c, struct attach_range *r)
{
    size_t i = first_behind(c, r->u.addr);
    memmove(&c->ranges[i + 1], &c->ranges[i], (c->nr_ranges - i) * sizeof(struct attach_range *));
    c->ranges[i] = r;
    c->nr_ranges++;
}

/* Let a new range's faults count from now on: writeback first, then the client. */
static void range_begin(struct attach_range *r)
{
    struct attach *a = r->client->attach;
    memfd_share(r->segment, &r->client->account->space);
    atomic_fetch_add(&r->open->refs, 1);
    atomic_fetch_add(&a->nr_ranges, 1);
    atomic_fetch_add(&a->nr_pages, r->u.vma.count);
    vma_insert(&r->u.vma);
}

/* The opposite, for one that is out of the list, or never was in it. */
static void range_discard(struct attach_range *r)
{
    struct attach *a = r->client->attach;
    atomic_fetch_add(&r->client->dying, 1);
    vma_remove(&r->u.vma);
    atomic_fetch_sub(&a->nr_ranges, 1);
    atomic_fetch_sub(&a->nr_pages, r->u.vma.count);
    pool_forget(a, r);
    range_put(r);
}

int range_add(struct attach_client *c, struct attach_open *open, struct memfd_segment *segment,
              const struct span *at)
{
    struct attach_range *r = range_new(c, open, segment, at);
    if (r == NULL)
        return -ENOMEM;
    range_begin(r);
    pthread_mutex_lock(&c->lock);
    int err = make_room(c, 1, true);
    size_t i = first_behind(c, at->addr);
    if (err == 0 && i < c->nr_ranges && c->ranges[i]->u.addr < range_end(r))
        err = -EEXIST;
    if (err == 0)
        list_range(c, r);
    pthread_mutex_unlock(&c->lock);
    if (err != 0)
        range_discard(r);
    return err;
}

/* What becomes of one range: up to three new ones. */
struct cut {
    struct attach_range *old, *parts[3];
    unsigned nr;
};

/* A part of the old range, from page from to page to of it, at addr. */
static int cut_part(struct cut *cut, uint32_t from, uint32_t to, uint64_t addr)
{
    struct attach_range *old = cut->old;
    if (from >= to)
        return 0;
    struct span at = { .addr = addr, .first = old->u.vma.first + from, .count = to - from };
    struct attach_range *r = range_new(old->client, old->open, old->segment, &at);
    if (r == NULL)
        return -ENOMEM;
    atomic_store(&r->u.vma.advised, atomic_load(&old->u.vma.advised));
    atomic_store(&r->u.vma.advice, atomic_load(&old->u.vma.advice));
    cut->parts[cut->nr++] = r;
    return 0;
}

static int cut_prepare(struct cut *cut, uint64_t addr, uint64_t length, enum cut_why why,
                       uint64_t to)
{
    struct attach_range *old = cut->old;
    uint64_t base = old->u.addr, end = range_end(old);
    uint64_t from = addr > base ? addr : base, until = addr + length < end ? addr + length : end;
    uint32_t a = (uint32_t)((from - base) >> PAGE_SHIFT),
             b = (uint32_t)((until - base) >> PAGE_SHIFT);
    int err = cut_part(cut, 0, a, base);
    if (err == 0 && why == CUT_MOVED)
        err = cut_part(cut, a, b, to + (from - addr));
    if (err == 0)
        err = cut_part(cut, b, old->u.vma.count, until);
    for (unsigned i = 0; err != 0 && i < cut->nr; i++)
        free(cut->parts[i]);
    return err;
}

/* Context: lock.   Returns false: another thread was faster. */
static bool unlist_range(struct attach_client *c, struct attach_range *r)
{
    size_t i = first_behind(c, r->u.addr);
    if (i == c->nr_ranges || c->ranges[i] != r)
        return false;
    c->nr_ranges--;
    memmove(&c->ranges[i], &c->ranges[i + 1], (c->nr_ranges - i) * sizeof(struct attach_range *));
    atomic_store(&r->u.gone, true);
    return true;
}

/* Put the parts in the place of the old one. *done is false: it is not there any more.   -ENOMEM. */
static int cut_swap(struct attach_client *c, struct cut *cut, enum cut_why why, bool *done)
{
    pthread_mutex_lock(&c->lock);
    int err = make_room(c, cut->nr, why == CUT_ASKED && cut->nr > 1);
    *done = err == 0 && unlist_range(c, cut->old);
    for (unsigned i = 0; *done && i < cut->nr; i++)
        list_range(c, cut->parts[i]);
    pthread_mutex_unlock(&c->lock);
    return err;
}

/* Cut one range.   Returns 1: go on; 0: there is none left; -ENOMEM. */
static int cut_one(struct attach_client *c, uint64_t addr, uint64_t length, enum cut_why why,
                   uint64_t to)
{
    struct cut cut = { .old = range_first(c, addr, length) };
    bool done = false;
    if (cut.old == NULL)
        return 0;
    int err = cut_prepare(&cut, addr, length, why, to);
    if (err == 0) {
        for (unsigned i = 0; i < cut.nr; i++)
            range_begin(cut.parts[i]);
        err = cut_swap(c, &cut, why, &done);
        if (done)
            range_discard(cut.old);
        for (unsigned i = 0; !done && i < cut.nr; i++)
            range_discard(cut.parts[i]);
    }
    range_put(cut.old); /* our own */
    return err == 0 ? 1 : err;
}

int ranges_cut(struct attach_client *c, uint64_t addr, uint64_t length, enum cut_why why,
               uint64_t to)
{
    int r;
    /* What was moved into the area itself is not met again: a move's places do not overlap. */
    while ((r = cut_one(c, addr, length, why, to)) > 0)
        ;
    return r;
}

void ranges_settle(struct attach_client *c)
{
    uint32_t seen;
    while ((seen = atomic_load(&c->dying)) != 0)
        wait_on_word(&c->dying, seen, 0);
}

/* Never an untracked store: whatever it takes. */
static void protect_all(struct attach_range *r)
{
    uint32_t last = r->u.vma.first + (r->u.vma.count - 1);
    int err;
    while ((err = uffd_protect(&r->u, r->u.vma.first, last)) == -EAGAIN || err == -ENOMEM) {
        if (err == -EAGAIN)
            sched_yield(); /* the events' thread still reads */
        else
            (void)poll(NULL, 0, 10);
    }
}

void ranges_end(struct attach_client *c)
{
    struct attach_range *r;
    uffd_close(&c->space);
    while ((r = range_first(c, 0, UINT64_MAX)) != NULL) {
        protect_all(r);
        pthread_mutex_lock(&c->lock);
        bool out = unlist_range(c, r); /* else it has moved meanwhile, and is met again */
        pthread_mutex_unlock(&c->lock);
        if (out)
            range_discard(r);
        range_put(r);
    }
    ranges_settle(c);
}
