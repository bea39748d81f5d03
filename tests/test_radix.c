/* The radix tree: what each function promises, and random operations beside a table that tells the
 * truth.
 *
 * The tree's source is built in, on an allocator that counts and that fails when told to.
 * FOLIO_SEED replays a random run. */
#include <criterion/criterion.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

static atomic_long live_nodes;        /* nodes allocated and not freed */
static long nodes_until_failure = -1; /* -1: the allocator does not fail */

static void *test_alloc(size_t size)
{
    if (nodes_until_failure == 0)
        return NULL;
    if (nodes_until_failure > 0)
        nodes_until_failure--;
    void *node = calloc(1, size);
    if (node != NULL)
        atomic_fetch_add(&live_nodes, 1);
    return node;
}

static void test_free(void *node)
{
    free(node);
    atomic_fetch_sub(&live_nodes, 1);
}

#define RADIX_ALLOC(size) test_alloc(size)
#define RADIX_FREE(node)  test_free(node)
#include "cache/radix_tree.c"

#define LAST_IN_ONE_LEAF ((uint64_t)RADIX_SLOTS - 1)
#define COUNT(array)     (sizeof(array) / sizeof(*(array)))

static char items[1024][2]; /* their addresses are items, even ones */

static struct radix_tree tree;
static atomic_size_t node_bytes;
static struct radix_preload preload;

static void setup(void)
{
    radix_tree_init(&tree);
    tree.node_bytes = &node_bytes;
}

static size_t count_nodes(const struct radix_node *node)
{
    size_t count = node != NULL;
    for (unsigned slot = 0; node != NULL && node->shift > 0 && slot < RADIX_SLOTS; slot++)
        count += count_nodes(slot_load(node, slot));
    return count;
}

static unsigned height(void)
{
    const struct radix_node *root = root_load(&tree);
    return root == NULL ? 0 : root->shift / RADIX_SHIFT + 1U;
}

static void verify_tree(void)
{
    int line = radix_tree_check(&tree);
    cr_assert_eq(line, 0, "radix_tree_check: radix_tree.c:%d", line);
    cr_assert_eq(atomic_load(&node_bytes),
                 count_nodes(root_load(&tree)) * sizeof(struct radix_node));
}

static void verify_no_node_lost(void)
{
    radix_tree_destroy(&tree);
    radix_tree_preload_end(&preload);
    cache_rcu_barrier();
    cr_assert_eq(atomic_load(&node_bytes), 0U);
    cr_assert_eq(atomic_load(&live_nodes), 0, "%ld nodes were never freed",
                 atomic_load(&live_nodes));
}

static void put(uint64_t index, void *item)
{
    cr_assert_eq(radix_tree_preload(&preload), 0);
    cr_assert_eq(radix_tree_insert(&tree, index, item, &preload, NULL), 0);
    verify_tree();
}

static void *take(uint64_t index)
{
    void *item = radix_tree_delete(&tree, index);
    verify_tree();
    return item;
}

TestSuite(radix, .init = setup, .fini = verify_no_node_lost);

/* Indexes at which a level, or everything, ends. */
static const uint64_t edges[] = {
    0,
    1,
    3,
    4,
    15,
    16,
    63,
    64,
    4095,
    4096,
    (1ULL << 18) - 1,
    1ULL << 18,
    UINT32_MAX,
    1ULL << 32,
    (1ULL << 60) - 1,
    1ULL << 60,
    (1ULL << 62) - 1,
    1ULL << 63,
    UINT64_MAX - 1,
    UINT64_MAX,
};

/* ---- items ----------------------------------------------------------------------------------- */

Test(radix, empty_tree_finds_nothing)
{
    void *results[1];
    for (size_t i = 0; i < COUNT(edges); i++) {
        cr_assert_null(radix_tree_lookup(&tree, edges[i]));
        cr_assert_null(take(edges[i]));
        cr_assert_not(radix_tree_tag_get(&tree, edges[i], RADIX_TAG_DIRTY));
        radix_tree_tag_clear(&tree, edges[i], RADIX_TAG_DIRTY);
    }
    cr_assert_eq(radix_tree_gang_lookup(&tree, results, NULL, 0, UINT64_MAX, 1), 0U);
    cr_assert_not(radix_tree_tagged(&tree, RADIX_TAG_DIRTY));
}

Test(radix, every_edge_is_found_alone)
{
    for (size_t i = 0; i < COUNT(edges); i++) {
        put(edges[i], items[i]);
        for (size_t j = 0; j < COUNT(edges); j++)
            cr_assert_eq(radix_tree_lookup(&tree, edges[j]), j == i ? items[i] : NULL);
        cr_assert_eq(take(edges[i]), items[i]);
        cr_assert_eq(height(), 0U);
    }
}

Test(radix, every_edge_is_found_among_the_others)
{
    for (size_t i = 0; i < COUNT(edges); i++)
        put(edges[i], items[i]);
    for (size_t i = 0; i < COUNT(edges); i++)
        cr_assert_eq(radix_tree_lookup(&tree, edges[i]), items[i]);
    for (size_t i = COUNT(edges); i-- > 0;) {
        cr_assert_eq(take(edges[i]), items[i]);
        cr_assert_null(radix_tree_lookup(&tree, edges[i]));
    }
}

Test(radix, insert_over_a_pointer_is_eexist_and_changes_nothing)
{
    void *old = items[9];
    put(7, items[0]);
    radix_tree_tag_set(&tree, 7, RADIX_TAG_DIRTY);
    cr_assert_eq(radix_tree_preload(&preload), 0);
    cr_assert_eq(radix_tree_insert(&tree, 7, items[1], &preload, &old), -EEXIST);
    cr_assert_eq(radix_tree_lookup(&tree, 7), items[0]);
    cr_assert(radix_tree_tag_get(&tree, 7, RADIX_TAG_DIRTY));
    cr_assert_eq(old, items[9], "an out-parameter was written on failure");
    cr_assert_eq(preload.count, RADIX_PRELOAD_NODES);
}

Test(radix, insert_over_a_value_replaces_and_returns_it)
{
    void *old = NULL;
    put(7, radix_make_value(4711));
    cr_assert_eq(radix_tree_insert(&tree, 7, items[1], &preload, &old), 0);
    cr_assert(radix_is_value(old));
    cr_assert_eq(radix_value(old), 4711U);
    cr_assert_eq(radix_tree_lookup(&tree, 7), items[1]);
}

/* find_get_page() stands on it: what a reader found is looked at again in the slot alone. */
Test(radix, a_slot_says_what_is_at_its_index_while_the_tree_grows_and_shrinks_and_loses_its_leaf)
{
    cr_assert_null(radix_tree_slot(&tree, 3));
    put(3, items[0]);
    cache_rcu_read_lock();
    const _Atomic(void *) *slot = radix_tree_slot(&tree, 3);
    cr_assert_eq(atomic_load(slot), items[0]);
    cr_assert_null(atomic_load(radix_tree_slot(&tree, 2)));
    put(UINT32_MAX, items[1]);
    cr_assert_eq(radix_tree_slot(&tree, 3), slot);
    radix_tree_delete(&tree, UINT32_MAX);
    cr_assert_eq(radix_tree_slot(&tree, 3), slot);
    radix_tree_replace(&tree, 3, radix_make_value(1));
    cr_assert_eq(atomic_load(slot), radix_make_value(1));
    radix_tree_delete(&tree, 3);
    put(3, items[0]); /* in a leaf of its own */
    cr_assert_null(atomic_load(slot), "a leaf that has left the tree is empty");
    cache_rcu_read_unlock();
}

Test(radix, insert_into_a_free_slot_returns_no_old_item)
{
    void *old = items[9];
    cr_assert_eq(radix_tree_preload(&preload), 0);
    cr_assert_eq(radix_tree_insert(&tree, 7, items[1], &preload, &old), 0);
    cr_assert_null(old);
}

Test(radix, insert_over_a_tagged_value_is_untagged)
{
    put(7, radix_make_value(1));
    radix_tree_tag_set(&tree, 7, RADIX_TAG_TOWRITE);
    put(7, items[0]);
    cr_assert_not(radix_tree_tagged(&tree, RADIX_TAG_TOWRITE));
}

Test(radix, value_is_told_from_pointer)
{
    static const uintptr_t values[] = { 0, 1, 2, UINT32_MAX, UINTPTR_MAX >> 1 };
    for (size_t i = 0; i < COUNT(values); i++) {
        cr_assert(radix_is_value(radix_make_value(values[i])));
        cr_assert_eq(radix_value(radix_make_value(values[i])), values[i]);
    }
    cr_assert_not(radix_is_value(NULL));
    cr_assert_not(radix_is_value(items[0]));
}

Test(radix, replace_keeps_tags_and_returns_what_was_there)
{
    put(70, items[0]);
    radix_tree_tag_set(&tree, 70, RADIX_TAG_WRITEBACK);
    cr_assert_eq(radix_tree_replace(&tree, 70, radix_make_value(5)), items[0]);
    verify_tree();
    cr_assert_eq(radix_tree_lookup(&tree, 70), radix_make_value(5));
    cr_assert(radix_tree_tag_get(&tree, 70, RADIX_TAG_WRITEBACK));
}

Test(radix, replace_by_null_deletes)
{
    put(70, items[0]);
    cr_assert_eq(radix_tree_replace(&tree, 70, NULL), items[0]);
    verify_tree();
    cr_assert_eq(height(), 0U);
    cr_assert_null(radix_tree_replace(&tree, 70, NULL));
}

/* ---- height and nodes ------------------------------------------------------------------------ */

Test(radix, one_leaf_holds_its_slots)
{
    put(0, items[0]);
    put(LAST_IN_ONE_LEAF, items[1]);
    cr_assert_eq(height(), 1U);
    put(LAST_IN_ONE_LEAF + 1, items[2]);
    cr_assert_eq(height(), 2U);
}

Test(radix, erase_last_child_shrinks_height)
{
    put(1, items[0]);
    put(UINT64_MAX, items[1]);
    cr_assert_eq(height(), (unsigned)RADIX_HEIGHT_MAX);
    take(UINT64_MAX);
    cr_assert_eq(height(), 1U);
    cr_assert_eq(radix_tree_lookup(&tree, 1), items[0]);
}

Test(radix, erase_first_child_keeps_height)
{
    put(0, items[0]);
    put(UINT32_MAX, items[1]);
    unsigned before = height();
    take(0);
    cr_assert_eq(height(), before);
    cr_assert_eq(radix_tree_lookup(&tree, UINT32_MAX), items[1]);
}

Test(radix, growing_and_shrinking_keep_tags)
{
    put(1, items[0]);
    radix_tree_tag_set(&tree, 1, RADIX_TAG_DIRTY);
    put(UINT32_MAX, items[1]);
    cr_assert(radix_tree_tagged(&tree, RADIX_TAG_DIRTY));
    cr_assert_not(radix_tree_tagged(&tree, RADIX_TAG_WRITEBACK));
    take(UINT32_MAX);
    cr_assert(radix_tree_tagged(&tree, RADIX_TAG_DIRTY));
    cr_assert(radix_tree_tag_get(&tree, 1, RADIX_TAG_DIRTY));
}

Test(radix, node_bytes_follow_the_nodes)
{
    put(0, items[0]);
    cr_assert_eq(atomic_load(&node_bytes), sizeof(struct radix_node));
    put(LAST_IN_ONE_LEAF + 1, items[1]);
    cr_assert_eq(atomic_load(&node_bytes), 3 * sizeof(struct radix_node));
    take(0);
    cr_assert_eq(atomic_load(&node_bytes), 2 * sizeof(struct radix_node));
    take(LAST_IN_ONE_LEAF + 1);
    cr_assert_eq(atomic_load(&node_bytes), 0U);
}

Test(radix, destroyed_tree_is_empty_and_usable)
{
    for (size_t i = 0; i < COUNT(edges); i++)
        put(edges[i], items[i]);
    radix_tree_destroy(&tree);
    verify_tree();
    cr_assert_eq(atomic_load(&node_bytes), 0U);
    put(5, items[0]);
    cr_assert_eq(radix_tree_lookup(&tree, 5), items[0]);
}

/* ---- memory ---------------------------------------------------------------------------------- */

Test(radix, worst_insert_takes_the_whole_preload)
{
    put(0, items[0]);
    cr_assert_eq(radix_tree_preload(&preload), 0);
    cr_assert_eq(radix_tree_insert(&tree, UINT64_MAX, items[1], &preload, NULL), 0);
    verify_tree();
    cr_assert_eq(preload.count, 0U);
}

Test(radix, full_preload_allocates_nothing)
{
    cr_assert_eq(radix_tree_preload(&preload), 0);
    nodes_until_failure = 0;
    cr_assert_eq(radix_tree_preload(&preload), 0);
    nodes_until_failure = -1;
}

Test(radix, insert_beside_another_needs_no_preload)
{
    put(0, items[0]);
    cr_assert_eq(radix_tree_insert(&tree, 1, items[1], NULL, NULL), 0);
    verify_tree();
}

Test(radix, preload_that_failed_anywhere_can_be_filled_again)
{
    for (long fail_at = 0; fail_at < (long)RADIX_PRELOAD_NODES; fail_at++) {
        radix_tree_preload_end(&preload);
        nodes_until_failure = fail_at;
        cr_assert_eq(radix_tree_preload(&preload), -ENOMEM);
        cr_assert_eq(preload.count, (unsigned)fail_at);
        nodes_until_failure = -1;
        put(UINT64_MAX >> fail_at, items[fail_at]);
    }
}

/* ---- tags ------------------------------------------------------------------------------------ */

Test(radix, root_is_tagged_until_the_last_tag_goes)
{
    for (size_t i = 0; i < COUNT(edges); i++) {
        put(edges[i], items[i]);
        radix_tree_tag_set(&tree, edges[i], RADIX_TAG_DIRTY);
        verify_tree();
    }
    for (size_t i = 0; i < COUNT(edges); i++) {
        cr_assert(radix_tree_tagged(&tree, RADIX_TAG_DIRTY));
        radix_tree_tag_clear(&tree, edges[i], RADIX_TAG_DIRTY);
        radix_tree_tag_clear(&tree, edges[i], RADIX_TAG_DIRTY);
        verify_tree();
    }
    cr_assert_not(radix_tree_tagged(&tree, RADIX_TAG_DIRTY));
}

Test(radix, tags_do_not_touch_each_other)
{
    put(100, items[0]);
    radix_tree_tag_set(&tree, 100, RADIX_TAG_DIRTY);
    radix_tree_tag_set(&tree, 100, RADIX_TAG_TOWRITE);
    radix_tree_tag_clear(&tree, 100, RADIX_TAG_DIRTY);
    cr_assert_not(radix_tree_tag_get(&tree, 100, RADIX_TAG_DIRTY));
    cr_assert_not(radix_tree_tag_get(&tree, 100, RADIX_TAG_WRITEBACK));
    cr_assert(radix_tree_tag_get(&tree, 100, RADIX_TAG_TOWRITE));
}

Test(radix, delete_takes_the_tags_along)
{
    put(100, items[0]);
    put(200, items[1]);
    radix_tree_tag_set(&tree, 100, RADIX_TAG_DIRTY);
    take(100);
    cr_assert_not(radix_tree_tagged(&tree, RADIX_TAG_DIRTY));
    put(100, items[0]);
    cr_assert_not(radix_tree_tag_get(&tree, 100, RADIX_TAG_DIRTY));
}

Test(radix, check_notices_a_lost_tag)
{
    put(0, items[0]);
    put(UINT32_MAX, items[1]);
    radix_tree_tag_set(&tree, UINT32_MAX, RADIX_TAG_DIRTY);
    struct radix_node *root = root_load(&tree);
    uint64_t was = map_load(root, RADIX_TAG_DIRTY);
    map_store(root, RADIX_TAG_DIRTY, 0);
    cr_assert_neq(radix_tree_check(&tree), 0);
    map_store(root, RADIX_TAG_DIRTY, was | 1);
    cr_assert_neq(radix_tree_check(&tree), 0);
    map_store(root, RADIX_TAG_DIRTY, was);
    verify_tree();
}

Test(radix, check_notices_a_root_too_high_and_an_empty_node)
{
    put(0, items[0]);
    root_raise(&tree, &preload);
    cr_assert_neq(radix_tree_check(&tree), 0);
    shrink(&tree);
    verify_tree();
    struct radix_node *leaf = root_load(&tree);
    slot_unlink(leaf, 0);
    cr_assert_neq(radix_tree_check(&tree), 0);
    slot_link(leaf, 0, items[0]);
    verify_tree();
}

/* ---- ranges ---------------------------------------------------------------------------------- */

Test(radix, gang_lookup_returns_the_range_and_no_more)
{
    static const struct {
        uint64_t first, last;
        unsigned max, found;
        uint64_t begins;
    } cases[] = {
        { 0, UINT64_MAX, 100, 7, 2 },
        { 0, 1, 100, 0, 0 },
        { 2, 2, 100, 1, 2 },
        { 3, 2, 100, 0, 0 },
        { 3, 5000, 100, 3, 64 },
        { 3, 4999, 100, 2, 64 },
        { 0, UINT64_MAX, 3, 3, 2 },
        { 65, UINT64_MAX, 2, 2, 65 },
        { UINT32_MAX, UINT64_MAX, 100, 2, UINT32_MAX },
        { UINT64_MAX, UINT64_MAX, 100, 1, UINT64_MAX },
        { 0, UINT64_MAX, 0, 0, 0 },
    };
    static const uint64_t at[] = { 2, 64, 65, 5000, 70000, UINT32_MAX, UINT64_MAX };
    void *results[100];
    uint64_t indices[100];

    for (size_t i = 0; i < COUNT(at); i++)
        put(at[i], items[i]);
    for (size_t c = 0; c < COUNT(cases); c++) {
        unsigned found = radix_tree_gang_lookup(&tree, results, indices, cases[c].first,
                                                cases[c].last, cases[c].max);
        cr_assert_eq(found, cases[c].found, "case %zu: found %u", c, found);
        cr_assert(found == 0 || indices[0] == cases[c].begins, "case %zu", c);
        for (unsigned i = 0; i < found; i++)
            cr_assert_eq(results[i], radix_tree_lookup(&tree, indices[i]));
    }
}

Test(radix, gang_lookup_does_without_indices)
{
    void *results[2];
    put(3, items[0]);
    put(300, items[1]);
    cr_assert_eq(radix_tree_gang_lookup(&tree, results, NULL, 0, UINT64_MAX, 2), 2U);
    cr_assert_eq(results[0], items[0]);
    cr_assert_eq(results[1], items[1]);
}

Test(radix, gang_lookup_of_a_tag_skips_the_untagged)
{
    void *results[64];
    uint64_t indices[64];
    for (uint64_t i = 0; i < 400; i++)
        put(i * 3, items[i]);
    for (uint64_t i = 0; i < 400; i += 40)
        radix_tree_tag_set(&tree, i * 3, RADIX_TAG_DIRTY);
    unsigned found =
        radix_tree_gang_lookup_tag(&tree, results, indices, 1, 1080, 64, RADIX_TAG_DIRTY);
    cr_assert_eq(found, 9U);
    for (unsigned i = 0; i < found; i++)
        cr_assert_eq(indices[i], (i + 1) * 120);
    cr_assert_eq(
        radix_tree_gang_lookup_tag(&tree, results, indices, 0, 1080, 64, RADIX_TAG_WRITEBACK), 0U);
}

Test(radix, range_tag_goes_on_where_it_stopped)
{
    uint64_t next = 0;
    unsigned long tagged = 0;
    for (uint64_t i = 0; i < 300; i++) {
        put(i, items[i]);
        if (i % 2 == 0)
            radix_tree_tag_set(&tree, i, RADIX_TAG_DIRTY);
    }
    do {
        unsigned long now = radix_tree_range_tag_if_tagged(&tree, next, 249, 7, RADIX_TAG_DIRTY,
                                                           RADIX_TAG_TOWRITE, &next);
        cr_assert_leq(now, 7U);
        tagged += now;
        verify_tree();
    } while (next != 0);
    cr_assert_eq(tagged, 125U);
    for (uint64_t i = 0; i < 300; i++)
        cr_assert_eq(radix_tree_tag_get(&tree, i, RADIX_TAG_TOWRITE), i % 2 == 0 && i < 250);
}

Test(radix, range_tag_ends_at_the_last_index)
{
    uint64_t next = 1;
    put(UINT64_MAX, items[0]);
    radix_tree_tag_set(&tree, UINT64_MAX, RADIX_TAG_DIRTY);
    cr_assert_eq(radix_tree_range_tag_if_tagged(&tree, 0, UINT64_MAX, 1, RADIX_TAG_DIRTY,
                                                RADIX_TAG_TOWRITE, &next),
                 1U);
    cr_assert_eq(next, 0U);
    cr_assert(radix_tree_tagged(&tree, RADIX_TAG_TOWRITE));
}

Test(radix, range_tag_of_nothing_is_done_at_once)
{
    uint64_t next = 1;
    put(5, items[0]);
    cr_assert_eq(
        radix_tree_range_tag_if_tagged(&tree, 0, 100, 1, RADIX_TAG_DIRTY, RADIX_TAG_TOWRITE, &next),
        0U);
    cr_assert_eq(next, 0U);
}

/* ---- random operations ----------------------------------------------------------------------- */

enum { MODEL_OPS = 1000000, MODEL_ROUND = 800, MODEL_KEYS = 48, MODEL_LOG = 12 };

struct entry { /* the truth about one index */
    uint64_t index;
    void *item;
    bool tags[RADIX_TAGS];
};

struct model {
    uint64_t seed, state;
    long op;
    unsigned keys;
    struct entry table[MODEL_KEYS]; /* ascending */
    char log[MODEL_LOG][96];
};

static uint64_t draw(struct model *m)
{
    m->state += UINT64_C(0x9e3779b97f4a7c15);
    uint64_t z = m->state;
    z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
    return z ^ (z >> 31);
}

static unsigned draw_below(struct model *m, unsigned limit)
{
    return (unsigned)(draw(m) % limit);
}

static void model_fail(const struct model *m, const char *what)
{
    fprintf(stderr, "FOLIO_SEED=%llu, operation %ld: %s\n", (unsigned long long)m->seed, m->op,
            what);
    for (long i = m->op < MODEL_LOG ? 0 : m->op - MODEL_LOG + 1; i <= m->op; i++)
        fprintf(stderr, "  %ld: %s\n", i, m->log[i % MODEL_LOG]);
    cr_assert_fail("%s", what);
}

#define AGREE(m, condition)              \
    do {                                 \
        if (!(condition))                \
            model_fail((m), #condition); \
    } while (0)

#define LOG(m, ...) \
    ((void)snprintf((m)->log[(m)->op % MODEL_LOG], sizeof((m)->log[0]), __VA_ARGS__))

static int compare_entries(const void *a, const void *b)
{
    uint64_t x = ((const struct entry *)a)->index;
    uint64_t y = ((const struct entry *)b)->index;
    return (x > y) - (x < y);
}

/* New keys: near each other, near edges, or anywhere below a random number of bits. */
static void model_begin_round(struct model *m)
{
    unsigned want = 1 + draw_below(m, MODEL_KEYS);
    unsigned bits = 1 + draw_below(m, 64);
    radix_tree_destroy(&tree);
    memset(m->table, 0, sizeof(m->table));
    for (unsigned k = 0; k < want; k++) {
        uint64_t mask = UINT64_MAX >> (64 - bits);
        m->table[k].index = draw_below(m, 4) == 0 ? (edges[draw_below(m, COUNT(edges))] & mask)
                                                  : (draw(m) & mask >> draw_below(m, bits));
    }
    qsort(m->table, want, sizeof(m->table[0]), compare_entries);
    m->keys = 0;
    for (unsigned k = 0; k < want; k++)
        if (m->keys == 0 || m->table[m->keys - 1].index != m->table[k].index)
            m->table[m->keys++] = m->table[k];
}

static void *draw_item(struct model *m)
{
    return draw_below(m, 4) == 0 ? radix_make_value(draw(m) >> 1)
                                 : items[draw_below(m, COUNT(items))];
}

static void op_insert(struct model *m, struct entry *e)
{
    void *item = draw_item(m);
    void *old = &old;
    bool refused = e->item != NULL && !radix_is_value(e->item);
    LOG(m, "insert %llx %p", (unsigned long long)e->index, item);

    if (draw_below(m, 8) == 0)
        radix_tree_preload_end(&preload);
    AGREE(m, radix_tree_preload(&preload) == 0);
    int result = radix_tree_insert(&tree, e->index, item, &preload, &old);
    AGREE(m, result == (refused ? -EEXIST : 0));
    AGREE(m, old == (refused ? &old : e->item));
    if (!refused)
        *e = (struct entry){ .index = e->index, .item = item };
}

static void op_insert_without_memory(struct model *m, struct entry *e)
{
    LOG(m, "preload fails for %llx", (unsigned long long)e->index);
    radix_tree_preload_end(&preload);
    nodes_until_failure = draw_below(m, RADIX_PRELOAD_NODES);
    AGREE(m, radix_tree_preload(&preload) == -ENOMEM);
    nodes_until_failure = -1;
}

static void op_delete(struct model *m, struct entry *e)
{
    LOG(m, "delete %llx", (unsigned long long)e->index);
    AGREE(m, radix_tree_delete(&tree, e->index) == e->item);
    *e = (struct entry){ .index = e->index };
}

static void op_replace(struct model *m, struct entry *e)
{
    void *item = e->item == NULL || draw_below(m, 4) == 0 ? NULL : draw_item(m);
    LOG(m, "replace %llx %p", (unsigned long long)e->index, item);
    AGREE(m, radix_tree_replace(&tree, e->index, item) == e->item);
    if (item == NULL)
        *e = (struct entry){ .index = e->index };
    e->item = item;
}

static void op_tag(struct model *m, struct entry *e)
{
    enum radix_tag tag = (enum radix_tag)draw_below(m, RADIX_TAGS);
    bool set = e->item != NULL && draw_below(m, 2) == 0;
    LOG(m, "tag %llx %d %s", (unsigned long long)e->index, (int)tag, set ? "set" : "clear");
    if (set)
        radix_tree_tag_set(&tree, e->index, tag);
    else
        radix_tree_tag_clear(&tree, e->index, tag);
    e->tags[tag] = set;
}

/* A range whose ends are keys, or one beside. */
static void draw_range(struct model *m, uint64_t *first, uint64_t *last)
{
    *first = m->table[draw_below(m, m->keys)].index + draw_below(m, 3) - 1;
    *last = m->table[draw_below(m, m->keys)].index + draw_below(m, 3) - 1;
}

static void op_gang(struct model *m, struct entry *unused)
{
    (void)unused;
    uint64_t first, last, indices[MODEL_KEYS] = { 0 };
    void *results[MODEL_KEYS] = { NULL };
    unsigned max = draw_below(m, MODEL_KEYS + 1);
    unsigned tag = draw_below(m, RADIX_TAGS + 1); /* RADIX_TAGS: any item */
    draw_range(m, &first, &last);
    LOG(m, "gang [%llx, %llx] max %u tag %u", (unsigned long long)first, (unsigned long long)last,
        max, tag);

    unsigned found = tag == RADIX_TAGS
                         ? radix_tree_gang_lookup(&tree, results, indices, first, last, max)
                         : radix_tree_gang_lookup_tag(&tree, results, indices, first, last, max,
                                                      (enum radix_tag)tag);
    unsigned expected = 0;
    for (unsigned k = 0; k < m->keys && expected < max; k++) {
        const struct entry *e = &m->table[k];
        if (e->item == NULL || e->index < first || e->index > last ||
            (tag < RADIX_TAGS && !e->tags[tag]))
            continue;
        AGREE(m, expected < found);
        AGREE(m, indices[expected] == e->index && results[expected] == e->item);
        expected++;
    }
    AGREE(m, found == expected);
}

static void op_range_tag(struct model *m, struct entry *unused)
{
    (void)unused;
    uint64_t first, last, next = 0;
    enum radix_tag from = (enum radix_tag)draw_below(m, RADIX_TAGS);
    enum radix_tag to = (enum radix_tag)draw_below(m, RADIX_TAGS);
    unsigned max = 1 + draw_below(m, 8);
    draw_range(m, &first, &last);
    LOG(m, "range tag [%llx, %llx] max %u %d->%d", (unsigned long long)first,
        (unsigned long long)last, max, (int)from, (int)to);

    unsigned long tagged = radix_tree_range_tag_if_tagged(&tree, first, last, max, from, to, &next);
    unsigned long expected = 0;
    unsigned k = 0;
    for (; k < m->keys && expected < max; k++) {
        struct entry *e = &m->table[k];
        if (e->index >= first && e->index <= last && e->tags[from]) {
            e->tags[to] = true;
            expected++;
        }
    }
    AGREE(m, tagged == expected);
    AGREE(m, next == 0 || (next > first && next <= last));
    for (; k < m->keys; k++) /* what is still to be done lies at or behind next */
        if (m->table[k].index <= last && m->table[k].index >= first && m->table[k].tags[from])
            AGREE(m, next != 0 && next <= m->table[k].index);
}

static void model_verify(const struct model *m, const struct entry *e)
{
    bool tagged[RADIX_TAGS] = { false };
    for (unsigned k = 0; k < m->keys; k++)
        for (unsigned tag = 0; tag < RADIX_TAGS; tag++)
            tagged[tag] |= m->table[k].tags[tag];

    AGREE(m, radix_tree_lookup(&tree, e->index) == e->item);
    for (unsigned tag = 0; tag < RADIX_TAGS; tag++) {
        AGREE(m, radix_tree_tag_get(&tree, e->index, (enum radix_tag)tag) == e->tags[tag]);
        AGREE(m, radix_tree_tagged(&tree, (enum radix_tag)tag) == tagged[tag]);
    }
    AGREE(m, radix_tree_check(&tree) == 0);
    AGREE(m, atomic_load(&node_bytes) == count_nodes(root_load(&tree)) * sizeof(struct radix_node));
}

/* Everything that can be asked, of every key. */
static void model_verify_all(const struct model *m)
{
    for (unsigned k = 0; k < m->keys; k++)
        model_verify(m, &m->table[k]);
}

static void model_step(struct model *m)
{
    static void (*const ops[])(struct model *, struct entry *) = {
        op_insert, op_insert, op_insert,  op_insert, op_insert_without_memory,
        op_delete, op_delete, op_replace, op_tag,    op_tag,
        op_tag,    op_tag,    op_gang,    op_gang,   op_range_tag,
    };
    /* Now and then a stretch of removals only, so that the tree comes back from its full height. */
    bool emptying = m->op % 200 >= 160;
    struct entry *e = &m->table[draw_below(m, m->keys)];
    if (emptying)
        op_delete(m, e);
    else
        ops[draw_below(m, COUNT(ops))](m, e);
    model_verify(m, e);
}

static uint64_t choose_seed(void)
{
    const char *given = getenv("FOLIO_SEED");
    return given != NULL ? strtoull(given, NULL, 0) : (uint64_t)time(NULL);
}

Test(radix, random_operations_agree_with_the_table, .timeout = 120)
{
    static struct model m;
    m.seed = m.state = choose_seed();
    printf("FOLIO_SEED=%llu: %d operations\n", (unsigned long long)m.seed, (int)MODEL_OPS);
    for (m.op = 0; m.op < MODEL_OPS; m.op++) {
        if (m.op % MODEL_ROUND == 0)
            model_begin_round(&m);
        if (m.op % (8 * MODEL_ROUND) == 0)
            cache_rcu_barrier(); /* lest the nodes to be freed pile up */
        model_step(&m);
        if (m.op % 100 == 99)
            model_verify_all(&m);
    }
}
