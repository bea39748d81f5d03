/* The radix tree: page index -> pointer, with tags.
 *
 * One per file. It finds the item of an index in as many steps as the largest index in it has 6-bit
 * digits (three up to 1 GiB of 4 KiB pages), finds the next item in a range without touching what
 * lies between, and finds the next item *with a tag* (dirty, under writeback) the same way.
 *
 *   root ──► ┌───────────────────────── shift 6 ─┐      An item's place is written in its index:
 *            │ present 0…0101   dirty 0…0100     │          index 130 = 2·64 + 2
 *            │ [0] ●      [1] –      [2] ●   …   │      slot 2 of the root, slot 2 of the leaf.
 *            └─────┼────────────────────┼────────┘
 *                  ▼                    ▼               All leaves are at one depth, and a node
 *        ┌─────── shift 0 ─┐  ┌─────── shift 0 ─┐       holds its shift; so the root pointer alone
 *        │ present 0…0011  │  │ present 0…0100  │       says how high the tree is, and swapping it
 *        │ dirty   0…0000  │  │ dirty   0…0100  │       is all it takes to grow or to shrink.
 *        │ [0] A   [1] B   │  │ [2] C           │
 *        └─────────────────┘  └─────────────────┘
 *
 * A bit of a *tag* is set in a leaf if the item in that slot has the tag, and in an inner node if
 * the child in that slot has the tag set anywhere. `present` is a map of the same kind: the slots
 * that are not NULL.
 *
 * No node is empty, and the root is no higher than the largest index needs. radix_tree_check()
 * verifies these and everything else that is said here.
 *
 * Items. Any pointer that is not NULL. With bit 0 set it is a *value*, a number that takes the
 * place of a pointer, such as the shadow that an evicted page leaves behind. To the tree they
 * differ in one thing: an insert takes a value's place, and is refused a pointer's.
 *
 * Locks. The tree takes none and knows none. Functions marked "Locks: tree" write, and the caller's
 * tree lock keeps them apart. Functions marked "Locks: RCU" read, inside an RCU bracket or under
 * the tree lock. Nodes are freed after a grace period, so a bracket keeps the nodes a reader is in;
 * keeping the items allocated is the caller's business.
 *
 * What a reader sees beside a writer: an item that is in the tree during the whole call is found.
 * One that is inserted, replaced or removed meanwhile is found or not, as the item before or after.
 * What is found is or was, during the call, at that index; a gang look-up is not a snapshot of one
 * moment, and a tagged one may return an item whose tag is just gone.
 *
 * Memory. Only an insert needs nodes, and it cannot fail for want of them: the caller fetches the
 * most that one insert can need before it takes the lock, as in
 *
 *     struct radix_preload preload = RADIX_PRELOAD_INIT;
 *     do {
 *         if (radix_tree_preload(&preload) != 0) goto out_of_memory;
 *         lock; radix_tree_insert(…, &preload, …); unlock;
 *     } while (more);
 *     radix_tree_preload_end(&preload);
 *
 * Refilling costs only what the last insert took. A preload from empty is 20 nodes: keep one over a
 * batch. */
#ifndef FOLIO_CACHE_RADIX_TREE_H
#define FOLIO_CACHE_RADIX_TREE_H

#include <assert.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum radix_tag {
    RADIX_TAG_DIRTY,
    RADIX_TAG_WRITEBACK,
    RADIX_TAG_TOWRITE, /* dirty when a sync began; pages dirtied later are not its business */
    RADIX_TAGS
};

struct radix_node;

struct radix_tree {                    /* (t) tree lock to write, RCU to read  (c) constant */
    _Atomic(struct radix_node *) root; /* NULL: empty (t) */
    _Atomic(size_t) *node_bytes;       /* counts the nodes' memory, or NULL; set while empty (c) */
};

struct radix_preload {        /* belongs to one thread, or to whoever holds what it is in */
    struct radix_node *nodes; /* a list, zeroed and ready */
    unsigned count;
};

/* clang-format off */
#define RADIX_PRELOAD_INIT { NULL, 0 }
/* clang-format on */

/* A number in the place of a pointer.   value: below 2^63. */
static inline void *radix_make_value(uintptr_t value)
{
    assert(value <= UINTPTR_MAX >> 1);
    return (void *)(value << 1 | 1);
}

/* Is the item a value? NULL is not. */
static inline bool radix_is_value(const void *item)
{
    return ((uintptr_t)item & 1) != 0;
}

/* The number that radix_make_value() was given. */
static inline uintptr_t radix_value(const void *item)
{
    assert(radix_is_value(item));
    return (uintptr_t)item >> 1;
}

/* An empty tree that counts its nodes nowhere: set node_bytes after, or leave it. */
void radix_tree_init(struct radix_tree *tree);

/* Free every node at once; the items stay the caller's. The tree is empty and usable after.
 * Locks: tree, and no reader is left. */
void radix_tree_destroy(struct radix_tree *tree);

/* Fill up to what the worst insert takes. Does nothing when full.
 * Errors: -ENOMEM; not full then, so no insert, but to be filled again or ended.   Locks: none. */
int radix_tree_preload(struct radix_preload *preload);

/* Free what is left. It can be filled again.   Locks: any. */
void radix_tree_preload_end(struct radix_preload *preload);

/* Put item at index, without tags. A value that was there is replaced and comes back in *old.
 * preload: filled since the last insert.
 * old: NULL if not wanted; else set to the value, or to NULL.
 * Errors: -EEXIST (a pointer is there; nothing changed).   Locks: tree. */
int radix_tree_insert(struct radix_tree *tree, uint64_t index, void *item,
                      struct radix_preload *preload, void **old);

/* Where the item at index is, or would be; NULL: there is no place for it. To be loaded (acquire)
 * within the bracket, again too: while what was found there is at index, it is there, and not when it
 * is not (Linux: radix_tree_lookup_slot).   Locks: RCU. */
const _Atomic(void *) *radix_tree_slot(const struct radix_tree *tree, uint64_t index);

/* The item at index, or NULL.   Locks: RCU. */
void *radix_tree_lookup(const struct radix_tree *tree, uint64_t index);

/* Remove the item and its tags, and the nodes that held nothing else.
 * Returns the item, NULL if there was none.   Locks: tree. */
void *radix_tree_delete(struct radix_tree *tree, uint64_t index);

/* Put item in the place of the one that is at index; tags stay. item NULL: the same as delete.
 * Returns the item that was there.   Locks: tree. */
void *radix_tree_replace(struct radix_tree *tree, uint64_t index, void *item);

/* Tag the item at index, which must be there.   Locks: tree. */
void radix_tree_tag_set(struct radix_tree *tree, uint64_t index, enum radix_tag tag);

/* Clear the tag if there is one.   Locks: tree. */
void radix_tree_tag_clear(struct radix_tree *tree, uint64_t index, enum radix_tag tag);

/* Has the item at index the tag? False if there is no item.   Locks: RCU. */
bool radix_tree_tag_get(const struct radix_tree *tree, uint64_t index, enum radix_tag tag);

/* Has any item the tag?   Locks: RCU. */
bool radix_tree_tagged(const struct radix_tree *tree, enum radix_tag tag);

/* The first max items of [first, last], values included, in ascending order.
 * indices: their indexes, NULL if not wanted.
 * Returns how many; fewer than max: there are no more.   Locks: RCU. */
unsigned radix_tree_gang_lookup(const struct radix_tree *tree, void **results, uint64_t *indices,
                                uint64_t first, uint64_t last, unsigned max);

/* The same, of those that have the tag.   Locks: RCU. */
unsigned radix_tree_gang_lookup_tag(const struct radix_tree *tree, void **results,
                                    uint64_t *indices, uint64_t first, uint64_t last, unsigned max,
                                    enum radix_tag tag);

/* Tag with `to` the first max items of [first, last] that have the tag `from`. A sync marks so what
 * is dirty when it begins, in pieces, between which the caller may drop the lock; then it writes
 * what is marked, and can't be kept busy for ever by those who go on writing.
 * max: at least 1.   *next: where to go on, 0 when the range is done.
 * Returns how many.   Locks: tree. */
unsigned long radix_tree_range_tag_if_tagged(struct radix_tree *tree, uint64_t first, uint64_t last,
                                             unsigned long max, enum radix_tag from,
                                             enum radix_tag to, uint64_t *next);

/* Verify every node against all that is said above. Visits the whole tree: for tests and debugging.
 * Returns 0, or the line of radix_tree.c whose condition does not hold.   Locks: tree. */
int radix_tree_check(const struct radix_tree *tree);

#endif
