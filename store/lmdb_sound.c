/* lmdb_sound.c: LMDB may change what is sound, and nothing else.
 *
 * Reading a damaged page costs LMDB a fault or a wrong turn, which the guard and the checks in
 * lmdb_cursor.c catch. Changing one costs more: LMDB copies as many bytes into its heap as the page's
 * header says, and gives back as many pages as an overflow run's header says, whoever owns them. So
 * before a key is put or deleted, every page is checked that LMDB may change with it:
 *
 *     from the root to the leaf where the key belongs: structure, order, and the separators above;
 *     what the leaf may be merged with, and where a seek may end: its neighbours, and those behind a neighbour
 *     that is sparse (mdb_rebalance() merges pages that are); beside the branches above the first
 *     and the last of these, the branches that may be merged with them; and each branch's lowest leaf,
 *     whose first key becomes a separator when the branch is;
 *     the overflow run of a value that goes away;
 *     and once, when the volume is opened: the tree of free pages, with its lists.
 *
 * We look at the tree of the last commit, which is in the map and stays as it is until the next
 * one. What the transaction itself has changed is made of pages that were checked before. That the
 * neighbours of the committed leaf are enough: a merged page keeps all that its second half brought
 * unless keys of that half were deleted, and those look at their own neighbours; so it is sparse only
 * if that half was. And a branch that has lost all other leaves to one such merge takes a key from
 * a neighbour, or all of them, once: then it has two leaves that stay.
 *
 * A page is checked once, a bit remembers it: what replaces a checked page was written by us.
 *
 * Not seen here, as no single page shows it: a leaf that names another sound run of the right length,
 * a free list that names a page of the main tree. What is lost then is an error by its own checksum, later;
 * fsck.foliofs sees it before.
 */
#include "store/lmdb_impl.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "store/bytes.h"
#include "store/error.h"

#define META_FREE_TREE 40u /* offsets in the page */
#define META_MAIN_TREE 88u
#define META_LAST_PAGE 136u
#define META_TXN       144u
#define TREE_FLAGS     4u /* offsets in a tree's record */
#define TREE_DEPTH     6u
#define TREE_OVERFLOW  24u
#define TREE_ROOT      40u
#define KEY_FLAGS      0x7eu /* of a tree's flags, those that change how it is laid out */
#define SPARSE_BYTES   1024u /* FILL_THRESHOLD: a leaf with a quarter of its space used */
#define SPARSE_KEYS    2u    /* of a branch */
#define BITS           64u

/* ---- one page -------------------------------------------------------------------------------- */

/* The bytes that the node at the offset takes; 0: not a node. */
static size_t node_bytes(const uint8_t *page, size_t at, enum page_flags kind)
{
    if (at > LMDB_PAGE_SIZE - NODE_HEADER)
        return 0;
    size_t bytes = NODE_HEADER + load16(page + at + 6);
    unsigned flags = load16(page + at + 4);
    if (kind == P_LEAF && flags > F_BIGDATA)
        return 0;
    if (kind == P_LEAF)
        bytes += flags == F_BIGDATA ? sizeof(uint64_t) : load32(page + at);
    bytes += bytes % 2;
    return bytes <= LMDB_PAGE_SIZE - at ? bytes : 0;
}

bool lmdb_page_good(const uint8_t *page, uint64_t number, enum page_flags kind)
{
    uint64_t starts[LMDB_PAGE_SIZE / 2 / BITS] = { 0 }; /* a node begins here; per 2 bytes */
    size_t lower = load16(page + 12), upper = load16(page + 14), nodes = 0, bytes;
    if (load64(page) != number || load16(page + 10) != kind || lower <= PAGE_HEADER ||
        lower % 2 != 0 || upper % 2 != 0 || lower > upper || upper > LMDB_PAGE_SIZE)
        return false;
    for (size_t at = upper; at < LMDB_PAGE_SIZE; at += bytes, nodes++) {
        if ((bytes = node_bytes(page, at, kind)) == 0)
            return false;
        starts[at / 2 / BITS] |= UINT64_C(1) << at / 2 % BITS;
    }
    if (nodes != (lower - PAGE_HEADER) / 2)
        return false;
    for (size_t i = PAGE_HEADER; i < lower; i += 2) {
        size_t at = load16(page + i);
        uint64_t bit = UINT64_C(1) << at / 2 % BITS;
        if (at % 2 != 0 || at >= LMDB_PAGE_SIZE || (starts[at / 2 / BITS] & bit) == 0)
            return false;
        starts[at / 2 / BITS] &= ~bit;
    }
    return true;
}

/* ---- one level of a path --------------------------------------------------------------------- */

struct level {
    const uint8_t *page;
    unsigned at, nr; /* the node that leads on, of how many */
};

struct path {
    const struct lmdb_tree *tree;
    struct level levels[LMDB_DEPTH_MAX];
};

static const uint8_t *node(const struct level *v, unsigned i)
{
    return v->page + load16(v->page + PAGE_HEADER + 2 * (size_t)i);
}

static struct lmdb_key node_key(const struct level *v, unsigned i)
{
    const uint8_t *n = node(v, i);
    return (struct lmdb_key){ .bytes = n + NODE_HEADER, .len = load16(n + 6) };
}

static uint64_t node_child(const struct level *v, unsigned i)
{
    const uint8_t *n = node(v, i);
    return load32(n) | (uint64_t)load16(n + 4) << 32;
}

static int compare(const struct lmdb_tree *t, struct lmdb_key a, struct lmdb_key b)
{
    if (!t->is_free)
        return bytes_compare(a.bytes, a.len, b.bytes, b.len);
    uint64_t x = load64(a.bytes), y = load64(b.bytes);
    return (x > y) - (x < y);
}

/* (Of a branch the first key is never looked at: everything before the second goes there.) */
static bool keys_good(const struct lmdb_tree *t, const struct level *v, enum page_flags kind)
{
    struct lmdb_key before = { 0 };
    for (unsigned i = kind == P_LEAF ? 0 : 1; i < v->nr; i++) {
        struct lmdb_key key = node_key(v, i);
        if (key.len < 1 || key.len > KEY_BYTES_MAX || (t->is_free && key.len != sizeof(uint64_t)) ||
            (before.len > 0 && compare(t, before, key) >= 0))
            return false;
        before = key;
    }
    return true;
}

/* The separators around what lies below the level's node, or no key. */
static struct lmdb_key low_of(const struct path *p, unsigned depth)
{
    while (depth-- > 0)
        if (p->levels[depth].at > 0)
            return node_key(&p->levels[depth], p->levels[depth].at);
    return (struct lmdb_key){ 0 };
}

static struct lmdb_key high_of(const struct path *p, unsigned depth)
{
    while (depth-- > 0)
        if (p->levels[depth].at + 1 < p->levels[depth].nr)
            return node_key(&p->levels[depth], p->levels[depth].at + 1);
    return (struct lmdb_key){ 0 };
}

/* Do the level's keys lie between the separators above it? */
static bool between(const struct path *p, unsigned depth, enum page_flags kind)
{
    const struct level *v = &p->levels[depth];
    struct lmdb_key low = low_of(p, depth), high = high_of(p, depth);
    unsigned first = kind == P_LEAF ? 0 : 1;
    return first >= v->nr ||
           ((low.len == 0 || compare(p->tree, low, node_key(v, first)) <= 0) &&
            (high.len == 0 || compare(p->tree, node_key(v, v->nr - 1), high) < 0));
}

/* ---- runs ------------------------------------------------------------------------------------ */

uint64_t lmdb_run_at(const struct lmdb *l, uint64_t number, uint64_t len, uint64_t last_page)
{
    if (number < NR_METAS || number > last_page)
        return 0;
    const uint8_t *page = l->map + number * LMDB_PAGE_SIZE;
    uint64_t pages = load32(page + 12);
    return load64(page) == number && load16(page + 10) == P_OVERFLOW && pages >= run_pages(len) &&
                   pages <= last_page + 1 - number
               ? pages
               : 0;
}

int lmdb_sound_value(struct lmdb *l, const uint8_t *key, const uint8_t *value, size_t len)
{
    if ((load16(key - NODE_HEADER + 4) & F_BIGDATA) == 0)
        return 0;
    const uint8_t *page = value - PAGE_HEADER;
    if (lmdb_inside_map(l, page, LMDB_PAGE_SIZE)) {
        size_t at = (size_t)(page - l->map);
        return at % LMDB_PAGE_SIZE == 0 && lmdb_run_at(l, at / LMDB_PAGE_SIZE, len,
                                                       l->sound.last_page) == run_pages(len)
                   ? 0
                   : -EUCLEAN;
    }
    /* This transaction's page by that number; was it made for this? */
    return load16(page + 10) == (P_OVERFLOW | P_DIRTY) && load32(page + 12) == run_pages(len)
               ? 0
               : -EUCLEAN;
}

/* ---- free pages ------------------------------------------------------------------------------ */

/* Note a page that is free, or the free tree's.   Returns false: it was noted before. */
static bool note_free(struct lmdb_sound *s, uint64_t number)
{
    uint64_t bit = UINT64_C(1) << number % BITS;
    if ((s->free_pages[number / BITS] & bit) != 0)
        return false;
    s->free_pages[number / BITS] |= bit;
    return true;
}

/* A list of free pages: how many, then their numbers, falling. */
static bool list_good(struct lmdb *l, const uint8_t *list, uint64_t len)
{
    if (len < sizeof(uint64_t) || len % sizeof(uint64_t) != 0 ||
        load64(list) > len / sizeof(uint64_t) - 1)
        return false;
    uint64_t before = l->sound.last_page + 1;
    for (uint64_t i = 1; i <= load64(list); i++) {
        uint64_t number = load64(list + i * sizeof number);
        if (number >= before || number < NR_METAS || !note_free(&l->sound, number))
            return false;
        before = number;
    }
    return true;
}

static bool lists_good(struct lmdb *l, const struct level *v)
{
    for (unsigned i = 0; i < v->nr; i++) {
        const uint8_t *n = node(v, i);
        struct lmdb_key key = node_key(v, i);
        const uint8_t *list = key.bytes + key.len;
        uint64_t len = load32(n), txnid = load64(key.bytes);
        if ((load16(n + 4) & F_BIGDATA) != 0) {
            uint64_t number = load64(list);
            uint64_t pages = lmdb_run_at(l, number, len, l->sound.last_page);
            if (pages == 0)
                return false;
            const uint8_t *page = l->map + number * LMDB_PAGE_SIZE;
            l->sound.free_runs += pages;
            list = page + PAGE_HEADER;
            (void)madvise((void *)(uintptr_t)page, run_pages(len) * LMDB_PAGE_SIZE, MADV_WILLNEED);
        }
        if (txnid == 0 || txnid > l->sound.txnid || !list_good(l, list, len))
            return false;
    }
    return true;
}

/* ---- paths ----------------------------------------------------------------------------------- */

static bool checked(const struct lmdb *l, uint64_t number)
{
    return (l->sound.pages[number / BITS] >> number % BITS & 1) != 0;
}

static bool page_check(struct lmdb *l, const struct path *p, unsigned depth, uint64_t number)
{
    const struct level *v = &p->levels[depth];
    enum page_flags kind = depth + 1 == p->tree->depth ? P_LEAF : P_BRANCH;
    if (p->tree->is_free ? !note_free(&l->sound, number) : checked(l, number))
        return !p->tree->is_free;
    if (!lmdb_page_good(v->page, number, kind) || !keys_good(p->tree, v, kind))
        return false;
    if (kind == P_BRANCH && !p->tree->is_free && v->nr < 2)
        return false;
    if (kind == P_LEAF && p->tree->is_free && !lists_good(l, v))
        return false;
    l->sound.pages[number / BITS] |= UINT64_C(1) << number % BITS;
    return true;
}

/* Go down to the level: to the root, or where the level above it leads.   Returns 1 or -EUCLEAN. */
static int enter(struct lmdb *l, struct path *p, unsigned depth)
{
    struct level *v = &p->levels[depth], *up = depth > 0 ? v - 1 : NULL;
    uint64_t number = up != NULL ? node_child(up, up->at) : p->tree->root;
    if (number < NR_METAS || number > l->sound.last_page)
        return -EUCLEAN;
    v->page = l->map + number * LMDB_PAGE_SIZE;
    unsigned lower = load16(v->page + 12);
    if (lower <= PAGE_HEADER || lower > LMDB_PAGE_SIZE)
        return -EUCLEAN;
    v->nr = (lower - PAGE_HEADER) / 2u;
    v->at = 0;
    enum page_flags kind = depth + 1 == p->tree->depth ? P_LEAF : P_BRANCH;
    if (load64(v->page) != number || load16(v->page + 10) != kind ||
        !page_check(l, p, depth, number))
        return -EUCLEAN;
    return between(p, depth, kind) ? 1 : -EUCLEAN;
}

/* Move the level to its neighbour, and the levels above as needed; by is 1 or -1.
 * Returns 1; 0: there is none; -EUCLEAN. */
static int step(struct lmdb *l, struct path *p, unsigned depth, int by)
{
    if (depth == 0)
        return 0;
    struct level *up = &p->levels[depth - 1];
    if (by < 0 ? up->at > 0 : up->at + 1 < up->nr) {
        up->at = by < 0 ? up->at - 1 : up->at + 1;
    } else {
        int moved = step(l, p, depth - 1, by);
        if (moved <= 0)
            return moved;
        up->at = by < 0 ? up->nr - 1 : 0;
    }
    return enter(l, p, depth);
}

static bool sparse(const struct path *p, unsigned depth)
{
    const struct level *v = &p->levels[depth];
    if (depth + 1 < p->tree->depth)
        return v->nr <= SPARSE_KEYS;
    return v->nr == 1 || LMDB_PAGE_SIZE - load16(v->page + 14) + 2 * (size_t)v->nr <= SPARSE_BYTES;
}

/* The lowest leaf below the level.   Returns 1 or -EUCLEAN. */
static int lowest_check(struct lmdb *l, struct path *p, unsigned depth)
{
    int rc = 1;
    for (; rc > 0 && depth + 1 < p->tree->depth; depth++) {
        p->levels[depth].at = 0;
        rc = enter(l, p, depth + 1);
    }
    return rc;
}

/* On this side of the level: its neighbour, those behind while they are sparse, and the lowest leaf
 * of each. *p is led to the last of them.   Returns 1 or -EUCLEAN. */
static int side_check(struct lmdb *l, struct path *p, unsigned depth, int by)
{
    int moved = 1;
    while (moved > 0) {
        struct path before = *p;
        if ((moved = step(l, p, depth, by)) == 0)
            *p = before;
        struct path low = *p;
        if (moved > 0 && (moved = lowest_check(l, &low, depth)) > 0 && !sparse(p, depth))
            break;
    }
    return moved < 0 ? moved : 1;
}

/* What may be merged when the leaf at the path's end, and then its neighbours, lose keys. */
static int around_check(struct lmdb *l, const struct path *p)
{
    unsigned leaf = p->tree->depth - 1;
    for (int by = -1; by <= 1; by += 2) {
        struct path last = *p;
        int rc = side_check(l, &last, leaf, by);
        for (unsigned depth = 0; depth < leaf && rc > 0; depth++) {
            struct path mine = *p, side = last, low = last;
            if ((rc = lowest_check(l, &mine, depth)) > 0 && (rc = lowest_check(l, &low, depth)) > 0)
                rc = side_check(l, &side, depth, by);
        }
        if (rc < 0)
            return rc;
    }
    return 0;
}

/* The node of a branch that leads to the key. */
static unsigned lead(const struct lmdb_tree *t, const struct level *v, struct lmdb_key key)
{
    unsigned low = 0, high = v->nr; /* node low is not behind the key, node high is */
    while (high - low > 1) {
        unsigned middle = low + (high - low) / 2;
        if (compare(t, node_key(v, middle), key) <= 0)
            low = middle;
        else
            high = middle;
    }
    return low;
}

static bool tree_sane(const struct lmdb_tree *t)
{
    return t->depth <= LMDB_DEPTH_MAX && (t->root == UINT64_MAX) == (t->depth == 0);
}

/* ---- for the transaction --------------------------------------------------------------------- */

static struct lmdb_tree tree_at(const uint8_t *page, size_t at, bool is_free)
{
    return (struct lmdb_tree){ .root = load64(page + at + TREE_ROOT),
                               .overflow = load64(page + at + TREE_OVERFLOW),
                               .depth = load16(page + at + TREE_DEPTH),
                               .is_free = is_free };
}

/* Commits take turns at the two meta pages. */
static bool txnids_good(uint64_t newer, uint64_t older, unsigned slot)
{
    return newer == 0 || (newer % 2 == slot && newer - older == 1);
}

int lmdb_sound_begin(struct lmdb *l)
{
    uint64_t txnids[NR_METAS] = { load64(l->map + META_TXN),
                                  load64(l->map + LMDB_PAGE_SIZE + META_TXN) };
    unsigned slot = txnids[0] < txnids[1]; /* the newer one, as LMDB chooses */
    const uint8_t *meta = l->map + (size_t)slot * LMDB_PAGE_SIZE;
    l->sound.main = tree_at(meta, META_MAIN_TREE, false);
    l->sound.free = tree_at(meta, META_FREE_TREE, true);
    l->sound.last_page = load64(meta + META_LAST_PAGE);
    l->sound.txnid = txnids[slot];
    l->sound.leaf_known = false;
    return tree_sane(&l->sound.main) && tree_sane(&l->sound.free) &&
                   l->sound.last_page < l->map_size / LMDB_PAGE_SIZE &&
                   txnids_good(txnids[slot], txnids[1 - slot], slot) &&
                   (load16(meta + META_FREE_TREE + TREE_FLAGS) & KEY_FLAGS) == INTEGER_KEY
               ? 0
               : -EUCLEAN;
}

/* Keys of one leaf often follow each other. */
static bool in_known_leaf(const struct lmdb_sound *s, struct lmdb_key key)
{
    return (s->low.len == 0 || compare(&s->main, s->low, key) <= 0) &&
           (s->high.len == 0 || compare(&s->main, key, s->high) < 0);
}

int lmdb_sound_key(struct lmdb *l, const uint8_t *bytes, size_t len)
{
    struct lmdb_sound *s = &l->sound;
    struct lmdb_key key = { .bytes = bytes, .len = len };
    struct path p = { .tree = &s->main };
    if (s->main.depth == 0 || (s->leaf_known && in_known_leaf(s, key)))
        return 0;
    s->leaf_known = false;
    int rc = 0;
    for (unsigned depth = 0; depth < s->main.depth; depth++) {
        if ((rc = enter(l, &p, depth)) < 0)
            return rc;
        if (depth + 1 < s->main.depth)
            p.levels[depth].at = lead(&s->main, &p.levels[depth], key);
    }
    s->low = low_of(&p, s->main.depth - 1);
    s->high = high_of(&p, s->main.depth - 1);
    if ((rc = around_check(l, &p)) < 0)
        return rc;
    s->leaf_known = true;
    return 0;
}

/* ---- opening --------------------------------------------------------------------------------- */

static int open_work(struct lmdb *l, void *arg)
{
    (void)arg;
    struct lmdb_sound *s = &l->sound;
    struct path p = { .tree = &s->free };
    int rc = lmdb_sound_begin(l);
    if (rc != 0)
        return rc;
    for (unsigned depth = 0; depth < s->free.depth; depth++)
        if ((rc = enter(l, &p, depth)) < 0)
            return rc;
    while (s->free.depth > 0 && (rc = step(l, &p, s->free.depth - 1, 1)) > 0)
        ;
    return rc == 0 && s->free_runs != s->free.overflow ? -EUCLEAN : rc;
}

int lmdb_sound_open(struct lmdb *l, const char *path, struct store_error *error)
{
    size_t words = l->map_size / LMDB_PAGE_SIZE / BITS + 1;
    l->sound.pages = calloc(words, sizeof *l->sound.pages);
    l->sound.free_pages = calloc(words, sizeof *l->sound.free_pages);
    int rc = -ENOMEM;
    if (l->sound.pages != NULL && l->sound.free_pages != NULL)
        rc = lmdb_guard(l, open_work, NULL);
    free(l->sound.free_pages);
    l->sound.free_pages = NULL;
    if (rc == -ENOMEM)
        return store_fail(error, rc, "%s: no memory to note which pages are sound", path);
    if (rc < 0)
        return store_fail(error, -EIO,
                          "%s: its list of free pages is damaged; mount it with -o ro, or run "
                          "fsck.foliofs",
                          path);
    return 0;
}
