/* Readers without a lock beside writers with one: the tree under real threads, to be run under TSan
 * and ASan.
 *
 * Readers look up and verify that what they find is alive and is at its index; that gang look-ups
 * ascend within their range; and that the items that never leave the tree are found every time,
 * however the tree grows and shrinks around them. A plain program, since Criterion does not start
 * under TSan.
 *
 * FOLIO_SEED replays the draws (not the interleaving), FOLIO_SECONDS sets how long. */
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#ifndef RADIX_SHIFT
#define RADIX_SHIFT 2 /* deep trees, which grow and shrink often */
#endif
#include "cache/radix_tree.c"

enum {
    TREES = 2,
    READERS = 3,
    WRITERS = 2,
    GANG = 16,
    CHECK_EVERY = 64, /* writer operations between two radix_tree_check() */
    WIPE_EVERY = 700, /* and between two that empty the tree but for what is fixed */
    SECONDS_DEFAULT = 2,
};

static const uint32_t item_alive = 0x600dc0de;
static const uint32_t item_freed = 0xdeadbeef;

struct item {
    uint64_t index; /* constant */
    uint32_t magic; /* item_alive until freed */
    struct rcu_head rcu;
};

/* The fixed items keep the first tree from vanishing but let it shrink to one leaf; the second
 * keeps depth. */
struct shared {
    struct radix_tree tree;
    pthread_mutex_t lock;
    const uint64_t *fixed;
    unsigned fixed_count;
};

static const uint64_t fixed_low[] = { 0, 1 };
static const uint64_t fixed_wide[] = { 0, 1, 777, 5000, UINT32_MAX };

static struct shared shared[TREES] = {
    { .lock = PTHREAD_MUTEX_INITIALIZER, .fixed = fixed_low, .fixed_count = 2 },
    { .lock = PTHREAD_MUTEX_INITIALIZER, .fixed = fixed_wide, .fixed_count = 5 },
};
static atomic_bool stop;

struct worker {
    pthread_t thread;
    uint64_t state;
    unsigned long lookups, hits, gangs, changes;
};

#define VERIFY(condition)                                                               \
    do {                                                                                \
        if (!(condition)) {                                                             \
            fprintf(stderr, "race_radix: %s:%d: %s\n", __FILE__, __LINE__, #condition); \
            abort();                                                                    \
        }                                                                               \
    } while (0)

static uint64_t draw(struct worker *w)
{
    w->state += UINT64_C(0x9e3779b97f4a7c15);
    uint64_t z = w->state;
    z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
    return z ^ (z >> 31);
}

/* Mostly low, so that threads meet; sometimes high, so that the tree grows and shrinks. */
static uint64_t draw_index(struct worker *w)
{
    unsigned bits = (unsigned[]){ 3, 4, 6, 8, 13, 33 }[draw(w) % 6];
    return draw(w) & (bit_of(bits) - 1);
}

static bool is_fixed(const struct shared *s, uint64_t index)
{
    for (unsigned i = 0; i < s->fixed_count; i++)
        if (s->fixed[i] == index)
            return true;
    return false;
}

/* ---- items ----------------------------------------------------------------------------------- */

static struct item *item_new(uint64_t index)
{
    struct item *item = malloc(sizeof(*item));
    VERIFY(item != NULL);
    item->index = index;
    item->magic = item_alive;
    return item;
}

static void item_free_rcu(struct rcu_head *head)
{
    cache_rcu_acquire();
    struct item *item = (struct item *)(void *)((char *)head - offsetof(struct item, rcu));
    VERIFY(item->magic == item_alive);
    item->magic = item_freed;
    free(item);
}

static void entry_free(void *entry)
{
    if (entry != NULL && !radix_is_value(entry))
        cache_rcu_call(&((struct item *)entry)->rcu, item_free_rcu);
}

/* A shadow's number is its index, an item knows its own. */
static void verify_entry(const void *entry, uint64_t index)
{
    if (radix_is_value(entry)) {
        VERIFY(radix_value(entry) == index);
        return;
    }
    const struct item *item = entry;
    VERIFY(item->magic == item_alive);
    VERIFY(item->index == index);
}

/* ---- readers --------------------------------------------------------------------------------- */

static void read_one(struct worker *w, const struct shared *s)
{
    uint64_t index = draw_index(w);
    cache_rcu_read_lock();
    const void *entry = radix_tree_lookup(&s->tree, index);
    VERIFY(entry != NULL || !is_fixed(s, index));
    if (entry != NULL)
        verify_entry(entry, index);
    if (is_fixed(s, index))
        VERIFY(radix_tree_tag_get(&s->tree, index, RADIX_TAG_DIRTY));
    VERIFY(radix_tree_tagged(&s->tree, RADIX_TAG_DIRTY));
    cache_rcu_read_unlock();
    w->lookups++;
    w->hits += entry != NULL;
}

/* Every fixed index from first to last must be among those found, unless they stopped short of it
 * at max. */
static void verify_fixed_found(const struct shared *s, const uint64_t *indices, unsigned found,
                               uint64_t first, uint64_t last)
{
    uint64_t seen_to = found == GANG ? indices[found - 1] : last;
    for (unsigned i = 0; i < s->fixed_count; i++) {
        bool among = false;
        for (unsigned j = 0; j < found; j++)
            among |= indices[j] == s->fixed[i];
        VERIFY(among || s->fixed[i] < first || s->fixed[i] > seen_to);
    }
}

static void read_gang(struct worker *w, const struct shared *s)
{
    void *entries[GANG];
    uint64_t indices[GANG];
    uint64_t first = draw_index(w);
    uint64_t last = draw(w) % 4 == 0 ? UINT64_MAX : first + draw_index(w);
    bool dirty = draw(w) % 2 == 0;

    cache_rcu_read_lock();
    unsigned found = dirty ? radix_tree_gang_lookup_tag(&s->tree, entries, indices, first, last,
                                                        GANG, RADIX_TAG_DIRTY)
                           : radix_tree_gang_lookup(&s->tree, entries, indices, first, last, GANG);
    VERIFY(found <= GANG);
    for (unsigned i = 0; i < found; i++) {
        VERIFY(indices[i] >= first && indices[i] <= last);
        VERIFY(i == 0 || indices[i] > indices[i - 1]);
        verify_entry(entries[i], indices[i]);
    }
    cache_rcu_read_unlock();
    verify_fixed_found(s, indices, found, first, last);
    w->gangs++;
}

static void *reader(void *argument)
{
    struct worker *w = argument;
    while (!atomic_load_explicit(&stop, memory_order_relaxed)) {
        const struct shared *s = &shared[draw(w) % TREES];
        if (draw(w) % 4 == 0)
            read_gang(w, s);
        else
            read_one(w, s);
    }
    return NULL;
}

/* ---- writers --------------------------------------------------------------------------------- */

/* A fixed index may change its item, never be without. */
static void change_item(struct worker *w, struct shared *s, uint64_t index,
                        struct radix_preload *preload)
{
    void *entry = draw(w) % 4 == 0 ? radix_make_value((uintptr_t)index) : item_new(index);
    void *old = NULL;
    if (is_fixed(s, index))
        old = radix_tree_replace(&s->tree, index, entry);
    else if (draw(w) % 3 == 0 && radix_tree_lookup(&s->tree, index) != NULL)
        old = radix_tree_replace(&s->tree, index, entry);
    else if (radix_tree_insert(&s->tree, index, entry, preload, &old) != 0)
        old = entry;
    entry_free(old);
}

static void change_tag(struct worker *w, struct shared *s, uint64_t index)
{
    enum radix_tag tag = (enum radix_tag)(draw(w) % RADIX_TAGS);
    uint64_t next;
    if (draw(w) % 8 == 0)
        radix_tree_range_tag_if_tagged(&s->tree, index, index + 100, 20, RADIX_TAG_DIRTY,
                                       RADIX_TAG_TOWRITE, &next);
    else if (radix_tree_lookup(&s->tree, index) != NULL && draw(w) % 2 == 0)
        radix_tree_tag_set(&s->tree, index, tag);
    else if (!is_fixed(s, index))
        radix_tree_tag_clear(&s->tree, index, tag);
}

static void wipe(struct shared *s)
{
    void *entries[GANG];
    uint64_t indices[GANG];
    unsigned found;
    for (uint64_t first = 0;
         (found = radix_tree_gang_lookup(&s->tree, entries, indices, first, UINT64_MAX, GANG)) > 0;
         first = indices[found - 1] + 1)
        for (unsigned i = 0; i < found; i++)
            if (!is_fixed(s, indices[i]))
                entry_free(radix_tree_delete(&s->tree, indices[i]));
}

static void change(struct worker *w, struct shared *s, struct radix_preload *preload)
{
    uint64_t index = draw_index(w);
    uint64_t what = draw(w) % 8;
    if (what < 3)
        change_item(w, s, index, preload);
    else if (what < 6)
        change_tag(w, s, index);
    else if (!is_fixed(s, index))
        entry_free(radix_tree_delete(&s->tree, index));
    if (w->changes % WIPE_EVERY == 0)
        wipe(s);
    if (w->changes % CHECK_EVERY == 0)
        VERIFY(radix_tree_check(&s->tree) == 0);
    w->changes++;
}

static void *writer(void *argument)
{
    struct worker *w = argument;
    struct radix_preload preload = RADIX_PRELOAD_INIT;
    while (!atomic_load_explicit(&stop, memory_order_relaxed)) {
        struct shared *s = &shared[draw(w) % TREES];
        VERIFY(radix_tree_preload(&preload) == 0);
        pthread_mutex_lock(&s->lock);
        change(w, s, &preload);
        pthread_mutex_unlock(&s->lock);
    }
    radix_tree_preload_end(&preload);
    return NULL;
}

/* ---- the run --------------------------------------------------------------------------------- */

static void plant(struct shared *s, atomic_size_t *node_bytes)
{
    struct radix_preload preload = RADIX_PRELOAD_INIT;
    radix_tree_init(&s->tree);
    s->tree.node_bytes = node_bytes;
    for (unsigned i = 0; i < s->fixed_count; i++) {
        VERIFY(radix_tree_preload(&preload) == 0);
        VERIFY(radix_tree_insert(&s->tree, s->fixed[i], item_new(s->fixed[i]), &preload, NULL) ==
               0);
        radix_tree_tag_set(&s->tree, s->fixed[i], RADIX_TAG_DIRTY);
    }
    radix_tree_preload_end(&preload);
}

static void uproot(struct shared *s)
{
    wipe(s);
    for (unsigned i = 0; i < s->fixed_count; i++)
        entry_free(radix_tree_delete(&s->tree, s->fixed[i]));
    VERIFY(radix_tree_check(&s->tree) == 0);
    radix_tree_destroy(&s->tree);
}

static uint64_t environment(const char *name, uint64_t otherwise)
{
    const char *given = getenv(name);
    return given != NULL ? strtoull(given, NULL, 0) : otherwise;
}

static void worker_add(struct worker *sum, const struct worker *w)
{
    sum->lookups += w->lookups;
    sum->hits += w->hits;
    sum->gangs += w->gangs;
    sum->changes += w->changes;
}

/* Leaves the sum of what all did in the first. */
static void run(struct worker *workers, uint64_t seed, uint64_t seconds)
{
    for (unsigned i = 0; i < READERS + WRITERS; i++) {
        workers[i].state = seed * 1000 + i;
        VERIFY(pthread_create(&workers[i].thread, NULL, i < READERS ? reader : writer,
                              &workers[i]) == 0);
    }
    nanosleep(&(struct timespec){ .tv_sec = (time_t)seconds }, NULL);
    atomic_store(&stop, true);
    for (unsigned i = 0; i < READERS + WRITERS; i++) {
        pthread_join(workers[i].thread, NULL);
        if (i > 0)
            worker_add(&workers[0], &workers[i]);
    }
}

int main(void)
{
    static atomic_size_t node_bytes;
    static struct worker workers[READERS + WRITERS];
    uint64_t seed = environment("FOLIO_SEED", (uint64_t)time(NULL));
    printf("FOLIO_SEED=%llu\n", (unsigned long long)seed);

    for (unsigned i = 0; i < TREES; i++)
        plant(&shared[i], &node_bytes);
    run(workers, seed, environment("FOLIO_SECONDS", SECONDS_DEFAULT));
    for (unsigned i = 0; i < TREES; i++)
        uproot(&shared[i]);
    cache_rcu_barrier();

    VERIFY(atomic_load(&node_bytes) == 0);
    const struct worker *sum = &workers[0];
    VERIFY(sum->hits > 0 && sum->gangs > 0 && sum->changes > 0);
    printf("%lu lookups (%lu found something), %lu gang lookups, %lu changes\n", sum->lookups,
           sum->hits, sum->gangs, sum->changes);
    return 0;
}
