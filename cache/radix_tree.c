#include "cache/radix_tree.h"

#include <errno.h>
#include <stdlib.h>

#include "cache/rcu.h"

/* The order in which a writer changes a node is what lets readers go without a lock:
 *
 *   appear     node built, slot set, then its bit in `present`
 *   disappear  tags cleared, then the bit, then the slot; the node freed after a grace period
 *   grow       the new root complete with the old one in slot 0, then the root pointer
 *   shrink     the root pointer; the old root keeps its slot 0, so a reader in it still goes on
 *
 * A reader that meets a bit without an item takes it for none. A reader in a node already removed
 * finds it as it was when it became unreachable, which was during its bracket. Readers never look
 * at `parent` and `offset`, which is how a writer finds its way up. */

/* Tests build the file again with a small fan-out, which makes deep trees of few items, and with an
 * allocator that fails. RADIX_ALLOC returns zeroed memory. */
#ifndef RADIX_SHIFT
#define RADIX_SHIFT 6
#endif
#ifndef RADIX_ALLOC
#define RADIX_ALLOC(size) calloc(1, (size))
#define RADIX_FREE(node)  free(node)
#endif

#define RADIX_SLOTS (1U << RADIX_SHIFT)
#define RADIX_MASK  (RADIX_SLOTS - 1)
#define RADIX_BITS  64 /* in an index, and in a map */

#define RADIX_HEIGHT_MAX ((RADIX_BITS + RADIX_SHIFT - 1) / RADIX_SHIFT)
#define RADIX_SHIFT_MAX  ((RADIX_HEIGHT_MAX - 1) * RADIX_SHIFT)

/* A tree of one leaf gets an index with the highest bit set: a new root for each level but the
 * lowest, and from the last of them a path of its own. */
#define RADIX_PRELOAD_NODES (2U * (RADIX_HEIGHT_MAX - 1))

_Static_assert(RADIX_SHIFT >= 1 && RADIX_SLOTS <= RADIX_BITS, "a map has a bit for every slot");

/* A node's maps: one for each tag, by its number, and one for the slots that are not NULL. */
enum { RADIX_MAP_PRESENT = RADIX_TAGS, RADIX_MAPS };

/* (c) constant once reachable  (t) tree lock  (r) tree lock to write, RCU to read */
struct radix_node {
    uint8_t shift;  /* of the index, to get the slot; 0 in a leaf (c) */
    uint8_t offset; /* which slot of the parent this is (t) */
    union {
        struct radix_node *parent; /* NULL in the root (t); the next one while in a preload */
        struct rcu_head rcu;       /* once unreachable from the root */
    };
    _Atomic(uint64_t) maps[RADIX_MAPS]; /* (r) */
    _Atomic(void *) slots[RADIX_SLOTS]; /* nodes of shift - RADIX_SHIFT; in a leaf items (r) */
};

/* A look through a range of indexes, one leaf at a time. */
struct radix_walk {
    uint64_t index; /* where to go on */
    uint64_t last;  /* index <= last unless done */
    unsigned map;   /* what to look for */
    bool done;
};

/* ---- slots and maps -------------------------------------------------------------------------- */

static inline unsigned slot_of(uint64_t index, unsigned shift)
{
    return (unsigned)(index >> shift) & RADIX_MASK;
}

static inline uint64_t bit_of(unsigned bit)
{
    return UINT64_C(1) << bit;
}

static inline void *slot_load(const struct radix_node *node, unsigned slot)
{
    return atomic_load_explicit(&node->slots[slot], memory_order_acquire);
}

static inline void slot_store(struct radix_node *node, unsigned slot, void *entry)
{
    atomic_store_explicit(&node->slots[slot], entry, memory_order_release);
}

static inline uint64_t map_load(const struct radix_node *node, unsigned map)
{
    return atomic_load_explicit(&node->maps[map], memory_order_acquire);
}

static inline void map_store(struct radix_node *node, unsigned map, uint64_t bits)
{
    atomic_store_explicit(&node->maps[map], bits, memory_order_release);
}

static inline struct radix_node *root_load(const struct radix_tree *tree)
{
    return atomic_load_explicit(&tree->root, memory_order_acquire);
}

static inline void root_store(struct radix_tree *tree, struct radix_node *node)
{
    atomic_store_explicit(&tree->root, node, memory_order_release);
}

/* Is index beyond what a tree with this root can hold? Two shifts, because their sum may be all 64
 * bits. */
static inline bool beyond(uint64_t index, unsigned root_shift)
{
    return index >> root_shift >> RADIX_SHIFT != 0;
}

static void slot_link(struct radix_node *node, unsigned slot, void *entry)
{
    slot_store(node, slot, entry);
    map_store(node, RADIX_MAP_PRESENT, map_load(node, RADIX_MAP_PRESENT) | bit_of(slot));
}

static void slot_unlink(struct radix_node *node, unsigned slot)
{
    map_store(node, RADIX_MAP_PRESENT, map_load(node, RADIX_MAP_PRESENT) & ~bit_of(slot));
    slot_store(node, slot, NULL);
}

/* ---- nodes ----------------------------------------------------------------------------------- */

static void account(const struct radix_tree *tree, bool more)
{
    if (tree->node_bytes == NULL)
        return;
    if (more)
        atomic_fetch_add_explicit(tree->node_bytes, sizeof(struct radix_node),
                                  memory_order_relaxed);
    else
        atomic_fetch_sub_explicit(tree->node_bytes, sizeof(struct radix_node),
                                  memory_order_relaxed);
}

static struct radix_node *preload_take(struct radix_preload *preload)
{
    assert(preload != NULL && preload->count > 0);
    struct radix_node *node = preload->nodes;
    preload->nodes = node->parent;
    preload->count--;
    return node;
}

static struct radix_node *node_new(const struct radix_tree *tree, struct radix_preload *preload,
                                   unsigned shift)
{
    struct radix_node *node = preload_take(preload);
    node->parent = NULL;
    node->shift = (uint8_t)shift;
    account(tree, true);
    return node;
}

static void node_free_rcu(struct rcu_head *head)
{
    cache_rcu_acquire();
    RADIX_FREE((struct radix_node *)(void *)((char *)head - offsetof(struct radix_node, rcu)));
}

/* Free a node that the root no longer leads to. It is counted out now and not when it is freed: a
 * budget that looked at it would otherwise depend on when other threads leave their brackets. */
static void node_retire(const struct radix_tree *tree, struct radix_node *node)
{
    account(tree, false);
    cache_rcu_call(&node->rcu, node_free_rcu);
}

int radix_tree_preload(struct radix_preload *preload)
{
    while (preload->count < RADIX_PRELOAD_NODES) {
        struct radix_node *node = RADIX_ALLOC(sizeof(*node));
        if (node == NULL)
            return -ENOMEM;
        node->parent = preload->nodes;
        preload->nodes = node;
        preload->count++;
    }
    return 0;
}

void radix_tree_preload_end(struct radix_preload *preload)
{
    while (preload->count > 0)
        RADIX_FREE(preload_take(preload));
}

/* ---- finding --------------------------------------------------------------------------------- */

/* The leaf that has the slot of index, NULL if there is none.   Locks: RCU. */
static inline struct radix_node *leaf_find(const struct radix_tree *tree, uint64_t index)
{
    struct radix_node *node = root_load(tree);
    if (node == NULL)
        return NULL;

    unsigned shift = node->shift;
    if (beyond(index, shift))
        return NULL;
    for (; node != NULL && shift > 0; shift -= RADIX_SHIFT)
        node = slot_load(node, slot_of(index, shift));
    return node;
}

/* Only a leaf has items, it is for the same indexes all its life, and its slots are NULL before it
 * leaves the tree. So a slot says the same as another way down from the root would, or NULL. */
const _Atomic(void *) *radix_tree_slot(const struct radix_tree *tree, uint64_t index)
{
    const struct radix_node *leaf = leaf_find(tree, index);
    return leaf != NULL ? &leaf->slots[slot_of(index, 0)] : NULL;
}

void *radix_tree_lookup(const struct radix_tree *tree, uint64_t index)
{
    const struct radix_node *leaf = leaf_find(tree, index);
    return leaf != NULL ? slot_load(leaf, slot_of(index, 0)) : NULL;
}

/* ---- tags ------------------------------------------------------------------------------------ */

/* Set bits (not 0) in the leaf's map, and the bit of each node in its parent if it was not set. */
static void tag_set_bits(struct radix_node *node, unsigned tag, uint64_t bits)
{
    for (;;) {
        uint64_t was = map_load(node, tag);
        map_store(node, tag, was | bits);
        if (was != 0 || node->parent == NULL)
            return;
        bits = bit_of(node->offset);
        node = node->parent;
    }
}

/* Clear them, and the bit of each node in its parent that was left without. */
static void tag_clear_bits(struct radix_node *node, unsigned tag, uint64_t bits)
{
    for (;;) {
        uint64_t was = map_load(node, tag);
        uint64_t is = was & ~bits;
        if (is == was)
            return;
        map_store(node, tag, is);
        if (is != 0 || node->parent == NULL)
            return;
        bits = bit_of(node->offset);
        node = node->parent;
    }
}

static void tags_clear(struct radix_node *leaf, unsigned slot)
{
    for (unsigned tag = 0; tag < RADIX_TAGS; tag++)
        tag_clear_bits(leaf, tag, bit_of(slot));
}

void radix_tree_tag_set(struct radix_tree *tree, uint64_t index, enum radix_tag tag)
{
    struct radix_node *leaf = leaf_find(tree, index);
    assert(tag < RADIX_TAGS);
    assert(leaf != NULL && slot_load(leaf, slot_of(index, 0)) != NULL);
    tag_set_bits(leaf, tag, bit_of(slot_of(index, 0)));
}

void radix_tree_tag_clear(struct radix_tree *tree, uint64_t index, enum radix_tag tag)
{
    struct radix_node *leaf = leaf_find(tree, index);
    assert(tag < RADIX_TAGS);
    if (leaf != NULL)
        tag_clear_bits(leaf, tag, bit_of(slot_of(index, 0)));
}

bool radix_tree_tag_get(const struct radix_tree *tree, uint64_t index, enum radix_tag tag)
{
    const struct radix_node *leaf = leaf_find(tree, index);
    assert(tag < RADIX_TAGS);
    return leaf != NULL && (map_load(leaf, tag) & bit_of(slot_of(index, 0))) != 0;
}

bool radix_tree_tagged(const struct radix_tree *tree, enum radix_tag tag)
{
    const struct radix_node *root = root_load(tree);
    assert(tag < RADIX_TAGS);
    return root != NULL && map_load(root, tag) != 0;
}

/* ---- growing, shrinking ---------------------------------------------------------------------- */

/* A root for an empty tree that holds index. */
static void root_plant(struct radix_tree *tree, uint64_t index, struct radix_preload *preload)
{
    unsigned shift = 0;
    while (beyond(index, shift))
        shift += RADIX_SHIFT;
    root_store(tree, node_new(tree, preload, shift));
}

/* One level more: the old root becomes slot 0 of the new one. */
static void root_raise(struct radix_tree *tree, struct radix_preload *preload)
{
    struct radix_node *old = root_load(tree);
    struct radix_node *root = node_new(tree, preload, old->shift + RADIX_SHIFT);
    slot_link(root, 0, old);
    for (unsigned tag = 0; tag < RADIX_TAGS; tag++)
        map_store(root, tag, map_load(old, tag) != 0);
    old->parent = root;
    old->offset = 0;
    root_store(tree, root);
}

static struct radix_node *child_add(const struct radix_tree *tree, struct radix_node *node,
                                    unsigned slot, struct radix_preload *preload)
{
    struct radix_node *child = node_new(tree, preload, node->shift - RADIX_SHIFT);
    child->parent = node;
    child->offset = (uint8_t)slot;
    slot_link(node, slot, child);
    return child;
}

/* The leaf that has the slot of index; made, with the way to it, if there is none. */
static struct radix_node *leaf_make(struct radix_tree *tree, uint64_t index,
                                    struct radix_preload *preload)
{
    if (root_load(tree) == NULL)
        root_plant(tree, index, preload);
    while (beyond(index, root_load(tree)->shift))
        root_raise(tree, preload);

    struct radix_node *node = root_load(tree);
    while (node->shift > 0) {
        unsigned slot = slot_of(index, node->shift);
        struct radix_node *child = slot_load(node, slot);
        node = child != NULL ? child : child_add(tree, node, slot, preload);
    }
    return node;
}

/* Remove node if it is empty, and then its parent if that is. */
static void prune(struct radix_tree *tree, struct radix_node *node)
{
    while (node != NULL && map_load(node, RADIX_MAP_PRESENT) == 0) {
        struct radix_node *parent = node->parent;
        if (parent != NULL)
            slot_unlink(parent, node->offset);
        else
            root_store(tree, NULL);
        node_retire(tree, node);
        node = parent;
    }
}

/* Lower the root while it has nothing but slot 0. */
static void shrink(struct radix_tree *tree)
{
    struct radix_node *root;
    while ((root = root_load(tree)) != NULL && root->shift > 0 &&
           map_load(root, RADIX_MAP_PRESENT) == 1) {
        struct radix_node *child = slot_load(root, 0);
        child->parent = NULL;
        root_store(tree, child);
        node_retire(tree, root);
    }
}

/* ---- changing -------------------------------------------------------------------------------- */

void radix_tree_init(struct radix_tree *tree)
{
    atomic_init(&tree->root, NULL);
    tree->node_bytes = NULL;
}

int radix_tree_insert(struct radix_tree *tree, uint64_t index, void *item,
                      struct radix_preload *preload, void **old)
{
    assert(item != NULL);
    struct radix_node *leaf = leaf_make(tree, index, preload);
    unsigned slot = slot_of(index, 0);
    void *was = slot_load(leaf, slot);
    if (was != NULL && !radix_is_value(was))
        return -EEXIST;

    if (was != NULL)
        tags_clear(leaf, slot);
    slot_link(leaf, slot, item);
    if (old != NULL)
        *old = was;
    return 0;
}

void *radix_tree_delete(struct radix_tree *tree, uint64_t index)
{
    struct radix_node *leaf = leaf_find(tree, index);
    unsigned slot = slot_of(index, 0);
    void *was = leaf != NULL ? slot_load(leaf, slot) : NULL;
    if (was == NULL)
        return NULL;

    tags_clear(leaf, slot);
    slot_unlink(leaf, slot);
    prune(tree, leaf);
    shrink(tree);
    return was;
}

void *radix_tree_replace(struct radix_tree *tree, uint64_t index, void *item)
{
    if (item == NULL)
        return radix_tree_delete(tree, index);

    struct radix_node *leaf = leaf_find(tree, index);
    assert(leaf != NULL);
    void *was = slot_load(leaf, slot_of(index, 0));
    assert(was != NULL);
    slot_store(leaf, slot_of(index, 0), item);
    return was;
}

/* Depth first; goes at most RADIX_HEIGHT_MAX deep. */
static void node_destroy(const struct radix_tree *tree, struct radix_node *node)
{
    for (unsigned slot = 0; node->shift > 0 && slot < RADIX_SLOTS; slot++) {
        struct radix_node *child = slot_load(node, slot);
        if (child != NULL)
            node_destroy(tree, child);
    }
    account(tree, false);
    RADIX_FREE(node);
}

void radix_tree_destroy(struct radix_tree *tree)
{
    struct radix_node *root = root_load(tree);
    root_store(tree, NULL);
    if (root != NULL)
        node_destroy(tree, root);
}

/* ---- walking a range ------------------------------------------------------------------------- */

/* Go on at index, which is greater than the last one, or 0 after the highest there is. */
static void walk_to(struct radix_walk *walk, uint64_t index)
{
    walk->done = index == 0 || index > walk->last;
    walk->index = index;
}

/* Go on after the node of this shift that has the present index. */
static void walk_past(struct radix_walk *walk, unsigned shift)
{
    uint64_t within = shift == RADIX_SHIFT_MAX ? UINT64_MAX : bit_of(shift + RADIX_SHIFT) - 1;
    walk_to(walk, (walk->index | within) + 1);
}

/* Step to the first slot of node, at or after the present index, whose bit is set.
 * Returns false if there is none in the range; the index is then behind the node. */
static bool walk_slot(struct radix_walk *walk, const struct radix_node *node, unsigned shift)
{
    uint64_t bits = map_load(node, walk->map) >> slot_of(walk->index, shift);
    if (bits == 0) {
        walk_past(walk, shift);
        return false;
    }
    unsigned skip = (unsigned)__builtin_ctzll(bits);
    if (skip > 0)
        walk_to(walk, ((walk->index >> shift) + skip) << shift);
    return !walk->done;
}

/* The next leaf in which a bit is set, NULL at the end. The index is then the first such in the
 * leaf. Where the way down ends early it starts again from the root behind that place, so it comes
 * to an end whatever writers do meanwhile. */
static struct radix_node *walk_leaf(const struct radix_tree *tree, struct radix_walk *walk)
{
    while (!walk->done) {
        struct radix_node *node = root_load(tree);
        if (node == NULL || beyond(walk->index, node->shift))
            break;
        unsigned shift = node->shift;
        while (walk_slot(walk, node, shift)) {
            if (shift == 0)
                return node;
            struct radix_node *child = slot_load(node, slot_of(walk->index, shift));
            shift -= RADIX_SHIFT;
            if (child == NULL) {
                walk_past(walk, shift);
                break;
            }
            node = child;
        }
    }
    walk->done = true;
    return NULL;
}

/* The bits of the leaf that are set, from the present index to the last one. */
static uint64_t walk_bits(const struct radix_walk *walk, const struct radix_node *leaf)
{
    uint64_t bits = map_load(leaf, walk->map) & UINT64_MAX << slot_of(walk->index, 0);
    uint64_t below_last = walk->last - (walk->index & ~(uint64_t)RADIX_MASK);
    if (below_last < RADIX_MASK)
        bits &= UINT64_MAX >> (RADIX_BITS - 1 - below_last);
    return bits;
}

/* The items of one leaf.   Returns how many; if fewer than max, the walk is past the leaf. */
static unsigned leaf_collect(const struct radix_node *leaf, struct radix_walk *walk, void **results,
                             uint64_t *indices, unsigned max)
{
    uint64_t base = walk->index & ~(uint64_t)RADIX_MASK;
    unsigned found = 0;

    for (uint64_t bits = walk_bits(walk, leaf); bits != 0 && found < max; bits &= bits - 1) {
        unsigned slot = (unsigned)__builtin_ctzll(bits);
        void *item = slot_load(leaf, slot);
        if (item == NULL)
            continue;
        results[found] = item;
        if (indices != NULL)
            indices[found] = base + slot;
        found++;
    }
    walk_past(walk, 0);
    return found;
}

static unsigned walk_collect(const struct radix_tree *tree, struct radix_walk *walk, void **results,
                             uint64_t *indices, unsigned max)
{
    unsigned found = 0;
    const struct radix_node *leaf;
    while (found < max && (leaf = walk_leaf(tree, walk)) != NULL)
        found += leaf_collect(leaf, walk, results + found, indices != NULL ? indices + found : NULL,
                              max - found);
    return found;
}

unsigned radix_tree_gang_lookup(const struct radix_tree *tree, void **results, uint64_t *indices,
                                uint64_t first, uint64_t last, unsigned max)
{
    struct radix_walk walk = { first, last, RADIX_MAP_PRESENT, first > last };
    return walk_collect(tree, &walk, results, indices, max);
}

unsigned radix_tree_gang_lookup_tag(const struct radix_tree *tree, void **results,
                                    uint64_t *indices, uint64_t first, uint64_t last, unsigned max,
                                    enum radix_tag tag)
{
    assert(tag < RADIX_TAGS);
    struct radix_walk walk = { first, last, tag, first > last };
    return walk_collect(tree, &walk, results, indices, max);
}

/* The lowest max bits of those set. */
static uint64_t lowest_bits(uint64_t bits, unsigned long max)
{
    uint64_t rest = bits;
    while (rest != 0 && max-- > 0)
        rest &= rest - 1;
    return bits & ~rest;
}

unsigned long radix_tree_range_tag_if_tagged(struct radix_tree *tree, uint64_t first, uint64_t last,
                                             unsigned long max, enum radix_tag from,
                                             enum radix_tag to, uint64_t *next)
{
    assert(from < RADIX_TAGS && to < RADIX_TAGS && max > 0);
    struct radix_walk walk = { first, last, from, first > last };
    unsigned long tagged = 0;
    struct radix_node *leaf;

    while (tagged < max && (leaf = walk_leaf(tree, &walk)) != NULL) {
        uint64_t bits = lowest_bits(walk_bits(&walk, leaf), max - tagged);
        tag_set_bits(leaf, to, bits);
        tagged += (unsigned long)__builtin_popcountll(bits);
        walk_to(&walk, (walk.index & ~(uint64_t)RADIX_MASK) +
                           (RADIX_BITS - (unsigned)__builtin_clzll(bits)));
    }
    *next = walk.done ? 0 : walk.index;
    return tagged;
}

/* ---- verifying ------------------------------------------------------------------------------- */

#define CHECK(condition)     \
    do {                     \
        if (!(condition))    \
            return __LINE__; \
    } while (0)

/* The maps against the slots, and against each other. */
static int check_maps(const struct radix_node *node)
{
    uint64_t present = 0;
    for (unsigned slot = 0; slot < RADIX_SLOTS; slot++)
        if (slot_load(node, slot) != NULL)
            present |= bit_of(slot);

    CHECK(present != 0);
    CHECK(present == map_load(node, RADIX_MAP_PRESENT));
    if (node->shift == RADIX_SHIFT_MAX)
        CHECK(present >> (1U << (RADIX_BITS - RADIX_SHIFT_MAX)) == 0);
    for (unsigned tag = 0; tag < RADIX_TAGS; tag++)
        CHECK((map_load(node, tag) & ~present) == 0);
    return 0;
}

/* What the node says of its child in this slot against what the child says. */
static int check_child(const struct radix_node *node, const struct radix_node *child, unsigned slot)
{
    CHECK(child->parent == node);
    CHECK(child->offset == slot);
    CHECK(child->shift + RADIX_SHIFT == node->shift);
    for (unsigned tag = 0; tag < RADIX_TAGS; tag++)
        CHECK(((map_load(node, tag) & bit_of(slot)) != 0) == (map_load(child, tag) != 0));
    return 0;
}

static int check_node(const struct radix_node *node)
{
    int line = check_maps(node);
    for (unsigned slot = 0; line == 0 && node->shift > 0 && slot < RADIX_SLOTS; slot++) {
        const struct radix_node *child = slot_load(node, slot);
        if (child == NULL)
            continue;
        line = check_child(node, child, slot);
        if (line == 0)
            line = check_node(child);
    }
    return line;
}

int radix_tree_check(const struct radix_tree *tree)
{
    const struct radix_node *root = root_load(tree);
    if (root == NULL)
        return 0;
    CHECK(root->parent == NULL);
    CHECK(root->shift <= RADIX_SHIFT_MAX && root->shift % RADIX_SHIFT == 0);
    CHECK(root->shift == 0 || map_load(root, RADIX_MAP_PRESENT) != 1);
    return check_node(root);
}
