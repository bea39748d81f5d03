/* lmdb_pages.c: the walk over LMDB's pages; see lmdb_pages.h for what it proves. */
#include "store/lmdb_pages.h"

#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "store/bytes.h"
#include "store/lmdb_format.h"
#include "store/record.h"

#define META_MAGIC    0xBEEFC0DEu
#define META_VERSION  1u
#define NO_PAGE       UINT64_MAX
#define MAP_BYTES_MAX (UINT64_C(1) << 47) /* what a process can address */

enum tree_name { TREE_FREE, TREE_MAIN };

struct tree {
    enum tree_name name;
    uint16_t flags, depth;
    uint64_t branch, leaf, overflow, entries, root; /* as recorded, or as counted */
};

struct meta {
    uint64_t map_bytes, last_page, txnid;
    struct tree trees[2];
};

struct bound {
    const uint8_t *key; /* NULL: none */
    size_t len;
};

struct level {
    uint8_t *page; /* LMDB_PAGE_SIZE */
    uint64_t pgno;
    unsigned nr, next;      /* nodes, and the next one to visit */
    struct bound low, high; /* low <= every key < high */
};

struct node {
    unsigned offset, key_len;
    uint16_t flags;
    uint64_t number; /* child page or value size */
    const uint8_t *key;
};

struct walk {
    int fd;
    bool quiet; /* a scan: report nothing, no free tree */
    uint8_t from, to;
    const struct pages_ops *ops;
    void *ctx;
    struct pages_info *info;
    struct meta meta;
    uint64_t nr_pages; /* pages that may be used: last page + 1, within the file */
    uint64_t
        missing; /* pages behind the file's end; LMDB writes no page that it gave back at once */
    uint64_t
        missing_free;  /* of these, how many are on the free list: all, or the file is cut off */
    uint8_t *seen;     /* a bit per page */
    struct tree count; /* of the tree being walked */
    uint8_t *value;    /* PAGES_VALUE_MAX + PAGE_HEADER */
    struct level levels[LMDB_DEPTH_MAX];
};

/* Report damage; always false, so that a check can return it. */
__attribute__((format(printf, 2, 3))) static bool damage(struct walk *w, const char *format, ...)
{
    char line[256];
    va_list ap;

    w->info->damage++;
    if (w->quiet || w->ops->report == NULL)
        return false;
    va_start(ap, format);
    vsnprintf(line, sizeof line, format, ap);
    va_end(ap);
    w->ops->report(w->ctx, PAGES_DAMAGE, line);
    return false;
}

static void note_leaks(struct walk *w)
{
    char line[128];

    if (w->info->leaked_pages == 0 || w->ops->report == NULL)
        return;
    snprintf(line, sizeof line, "%" PRIu64 " pages belong to nobody (space lost, harmless)",
             w->info->leaked_pages);
    w->ops->report(w->ctx, PAGES_NOTE, line);
}

/* ---- pages ----------------------------------------------------------------------------------- */

static bool read_bytes(struct walk *w, uint64_t offset, uint8_t *buf, size_t len)
{
    size_t done = 0;

    while (done < len) {
        ssize_t n = pread(w->fd, buf + done, len - done, (off_t)(offset + done));
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return damage(w, "page %" PRIu64 ": cannot be read: %s", offset / LMDB_PAGE_SIZE,
                          n < 0 ? strerror(errno) : "end of file");
        done += (size_t)n;
    }
    return true;
}

/* Take page number for one owner; false when it is out of range or has another. */
static bool claim(struct walk *w, uint64_t number, const char *owner, uint64_t by)
{
    if (number < NR_METAS || number >= w->nr_pages)
        return damage(w, "page %" PRIu64 ": named by %s %" PRIu64 ", but outside 2..%" PRIu64,
                      number, owner, by, w->nr_pages - 1);
    if (w->seen[number / 8] >> (number % 8) & 1)
        return damage(w, "page %" PRIu64 ": named a second time, by %s %" PRIu64, number, owner,
                      by);
    w->seen[number / 8] |= (uint8_t)(1u << (number % 8));
    return true;
}

static struct node node_at(const struct level *l, unsigned i, bool leaf)
{
    const uint8_t *p = l->page + load16(l->page + PAGE_HEADER + 2 * i);
    struct node n = {
        .offset = (unsigned)(p - l->page),
        .key_len = load16(p + 6),
        .flags = load16(p + 4),
        .number = (uint64_t)load16(p) | (uint64_t)load16(p + 2) << 16,
        .key = p + NODE_HEADER,
    };
    if (!leaf)
        n.number |= (uint64_t)n.flags << 32;
    return n;
}

/* Bytes that a node takes on its page. The node's header is known to be inside. */
static uint64_t node_bytes(const struct node *n, bool leaf)
{
    uint64_t bytes = NODE_HEADER + n->key_len;

    if (leaf)
        bytes += n->flags & F_BIGDATA ? sizeof(uint64_t) : n->number;
    return (bytes + 1) & ~UINT64_C(1);
}

static bool header_sane(struct walk *w, const struct level *l, uint16_t want)
{
    const uint8_t *p = l->page;
    unsigned flags = load16(p + 10), lower = load16(p + 12), upper = load16(p + 14);

    if (load64(p) != l->pgno)
        return damage(w, "page %" PRIu64 ": its header says %" PRIu64, l->pgno, load64(p));
    if (flags != want)
        return damage(w, "page %" PRIu64 ": flags are %#x, expected %#x (%s)", l->pgno, flags, want,
                      want == P_LEAF ? "leaf" : "branch");
    if (lower < PAGE_HEADER || lower % 2 != 0 || upper < lower || upper > LMDB_PAGE_SIZE)
        return damage(w, "page %" PRIu64 ": bounds %u and %u make no sense", l->pgno, lower, upper);
    return true;
}

static bool node_sane(struct walk *w, const struct level *l, unsigned i, bool leaf)
{
    struct node n = node_at(l, i, leaf);

    if (leaf && (n.flags & ~(unsigned)F_BIGDATA) != 0)
        return damage(w, "page %" PRIu64 ": node %u has flags %#x", l->pgno, i, n.flags);
    if (node_bytes(&n, leaf) > LMDB_PAGE_SIZE - n.offset)
        return damage(w, "page %" PRIu64 ": node %u does not fit the page", l->pgno, i);
    if (!leaf && i == 0)
        return true; /* its key is never looked at */
    if (n.key_len == 0 || n.key_len > KEY_BYTES_MAX)
        return damage(w, "page %" PRIu64 ": node %u has a key of %u bytes", l->pgno, i, n.key_len);
    if (w->count.name == TREE_FREE && n.key_len != sizeof(uint64_t))
        return damage(w, "page %" PRIu64 ": node %u of the free tree has a key of %u bytes",
                      l->pgno, i, n.key_len);
    return true;
}

/* The nodes lie between upper and the page's end, without gap or overlap. */
static bool nodes_sane(struct walk *w, const struct level *l, bool leaf)
{
    uint8_t used[LMDB_PAGE_SIZE / 2] = { 0 }; /* per 2 bytes */
    unsigned upper = load16(l->page + 14);
    uint64_t total = 0;

    for (unsigned i = 0; i < l->nr; i++) {
        unsigned offset = load16(l->page + PAGE_HEADER + 2 * i);
        if (offset < upper || offset % 2 != 0 || offset > LMDB_PAGE_SIZE - NODE_HEADER)
            return damage(w, "page %" PRIu64 ": node %u at %u is off limits", l->pgno, i, offset);
        if (!node_sane(w, l, i, leaf))
            return false;
        struct node n = node_at(l, i, leaf);
        uint64_t bytes = node_bytes(&n, leaf);
        for (uint64_t at = offset / 2; at < (offset + bytes) / 2; at++)
            if (used[at]++)
                return damage(w, "page %" PRIu64 ": node %u overlaps another", l->pgno, i);
        total += bytes;
    }
    if (total != LMDB_PAGE_SIZE - upper)
        return damage(w, "page %" PRIu64 ": %" PRIu64 " bytes of nodes in a space of %u", l->pgno,
                      total, LMDB_PAGE_SIZE - upper);
    return true;
}

static int compare_keys(enum tree_name tree, struct bound a, struct bound b)
{
    if (tree == TREE_FREE) {
        uint64_t x = load64(a.key), y = load64(b.key);
        return (x > y) - (x < y);
    }
    return bytes_compare(a.key, a.len, b.key, b.len);
}

static bool keys_ascend(struct walk *w, const struct level *l, bool leaf)
{
    struct bound previous = l->low;
    bool strictly = false; /* the first key may equal the separator above */

    for (unsigned i = leaf ? 0 : 1; i < l->nr; i++) {
        struct node n = node_at(l, i, leaf);
        struct bound key = { n.key, n.key_len };
        int c = previous.key == NULL ? -1 : compare_keys(w->count.name, previous, key);
        if (strictly ? c >= 0 : c > 0)
            return damage(w, "page %" PRIu64 ": key %u is not above the one before it", l->pgno, i);
        if (l->high.key != NULL && compare_keys(w->count.name, key, l->high) >= 0)
            return damage(w, "page %" PRIu64 ": key %u belongs to the next page", l->pgno, i);
        previous = key;
        strictly = true;
    }
    return true;
}

/* Read and check a tree page into l, whose pgno, low and high are set. */
static bool level_load(struct walk *w, struct level *l, bool leaf)
{
    unsigned least = !leaf && w->count.name == TREE_MAIN ? 2 : 1;

    if (!read_bytes(w, l->pgno * LMDB_PAGE_SIZE, l->page, LMDB_PAGE_SIZE))
        return false;
    if (!header_sane(w, l, leaf ? P_LEAF : P_BRANCH))
        return false;
    l->nr = (load16(l->page + 12) - PAGE_HEADER) / 2;
    l->next = 0;
    if (l->nr < least)
        return damage(w, "page %" PRIu64 ": has %u keys", l->pgno, l->nr);
    return nodes_sane(w, l, leaf) && keys_ascend(w, l, leaf);
}

/* ---- values ---------------------------------------------------------------------------------- */

/* Claim the overflow run of a value; first is its first page's header. */
static bool claim_run(struct walk *w, uint64_t pgno, uint64_t size, const uint8_t *first)
{
    uint64_t pages = load32(first + 12);

    if (load64(first) != pgno)
        return damage(w, "page %" PRIu64 ": its header says %" PRIu64, pgno, load64(first));
    if (load16(first + 10) != P_OVERFLOW)
        return damage(w, "page %" PRIu64 ": flags are %#x, expected %#x (overflow)", pgno,
                      load16(first + 10), P_OVERFLOW);
    if (pages < run_pages(size) || pages > w->nr_pages - pgno)
        return damage(
            w, "page %" PRIu64 ": a run of %" PRIu64 " pages for a value of %" PRIu64 " bytes",
            pgno, pages, size);
    for (uint64_t i = 1; i < pages; i++)
        if (!claim(w, pgno + i, "overflow run", pgno))
            return false;
    w->count.overflow += pages;
    return true;
}

/* Find a value's bytes: in the leaf itself (*run is 0), or in the overflow run that begins at page
 * *run: then they are in w->value, behind the page header, as far as they fit. */
static bool value_open(struct walk *w, const struct level *l, const struct node *n, uint64_t *run)
{
    const uint8_t *data = n->key + n->key_len;
    size_t len;

    *run = 0;
    if (!(n->flags & F_BIGDATA))
        return true;
    uint64_t pgno = load64(data);
    if (!claim(w, pgno, "leaf", l->pgno))
        return false;
    if (n->number > w->nr_pages * LMDB_PAGE_SIZE)
        return damage(w, "page %" PRIu64 ": a value of %" PRIu64 " bytes, more than the file",
                      l->pgno, n->number);
    len = n->number > PAGES_VALUE_MAX ? PAGES_VALUE_MAX : (size_t)n->number;
    if (pgno * LMDB_PAGE_SIZE + PAGE_HEADER + len > w->nr_pages * LMDB_PAGE_SIZE)
        return damage(w, "page %" PRIu64 ": its value ends behind the last page", pgno);
    if (!read_bytes(w, pgno * LMDB_PAGE_SIZE, w->value, PAGE_HEADER + len))
        return false;
    *run = pgno;
    return claim_run(w, pgno, n->number, w->value);
}

static void visit_record(struct walk *w, const struct level *l, const struct node *n)
{
    struct pages_entry e = { .key = n->key, .key_len = n->key_len, .value_len = n->number };
    uint64_t run;

    if (w->quiet && (n->key[0] < w->from || n->key[0] > w->to))
        return;
    if (!value_open(w, l, n, &run))
        return;
    w->count.entries++;
    e.offset = run != 0 ? run * LMDB_PAGE_SIZE + PAGE_HEADER : 0;
    if (n->number > PAGES_VALUE_MAX && !(n->key_len == 1 && n->key[0] == KEY_LOG)) {
        damage(w, "page %" PRIu64 ": a value of %" PRIu64 " bytes, longer than any record", l->pgno,
               n->number);
        return;
    }
    e.value = run != 0 ? w->value + PAGE_HEADER : n->key + n->key_len;
    if (w->ops->entry != NULL)
        w->ops->entry(w->ctx, &e);
}

/* ---- the free tree --------------------------------------------------------------------------- */

struct free_list {
    uint64_t txnid, size; /* size: bytes of the value */
    uint64_t count, done; /* page numbers */
    uint64_t previous;
};

/* Some of the list's bytes, from its beginning or where the last call ended. */
static bool free_list_pages(struct walk *w, struct free_list *f, const uint8_t *bytes, size_t len)
{
    for (size_t at = 0; at + 8 <= len && f->done < f->count; at += 8) {
        uint64_t number = load64(bytes + at);
        if (number >= f->previous)
            return damage(w, "free list %" PRIu64 ": page %" PRIu64 " is out of order", f->txnid,
                          number);
        if (number >= w->nr_pages && number <= w->meta.last_page)
            w->missing_free++;
        else if (!claim(w, number, "free list", f->txnid))
            return false;
        f->previous = number;
        f->done++;
    }
    return true;
}

static void free_list_rest(struct walk *w, struct free_list *f, uint64_t run)
{
    uint64_t offset = PAGES_VALUE_MAX; /* bytes of the value; a multiple of 8 */

    while (f->done < f->count) {
        uint64_t left = (f->count + 1) * 8 - offset;
        size_t len = left > PAGES_VALUE_MAX ? PAGES_VALUE_MAX : (size_t)left;
        if (!read_bytes(w, run * LMDB_PAGE_SIZE + PAGE_HEADER + offset, w->value, len) ||
            !free_list_pages(w, f, w->value, len))
            return;
        offset += len;
    }
}

static void visit_free_list(struct walk *w, const struct level *l, const struct node *n)
{
    struct free_list f = { .txnid = load64(n->key), .size = n->number, .previous = NO_PAGE };
    const uint8_t *bytes;
    uint64_t run;

    if (!value_open(w, l, n, &run))
        return;
    w->count.entries++;
    bytes = run != 0 ? w->value + PAGE_HEADER : n->key + n->key_len;
    if (f.txnid == 0 || f.txnid > w->meta.txnid)
        damage(w, "free list %" PRIu64 ": no such transaction yet", f.txnid);
    if (f.size < 8 || f.size % 8 != 0 || load64(bytes) > f.size / 8 - 1) {
        damage(w, "free list %" PRIu64 ": its count does not fit its %" PRIu64 " bytes", f.txnid,
               f.size);
        return;
    }
    f.count = load64(bytes);
    size_t len = f.size > PAGES_VALUE_MAX ? PAGES_VALUE_MAX : (size_t)f.size;
    if (free_list_pages(w, &f, bytes + 8, len - 8))
        free_list_rest(w, &f, run);
    w->info->free_pages += f.done;
}

/* ---- trees ----------------------------------------------------------------------------------- */

/* Put page pgno on the stack at depth (0: the root); false when it cannot be walked. */
static bool push(struct walk *w, const struct tree *t, unsigned depth, uint64_t pgno)
{
    struct level *l = &w->levels[depth], *up = depth > 0 ? l - 1 : NULL;
    bool leaf = depth + 1 == t->depth;

    if (!claim(w, pgno, up != NULL ? "branch" : "meta", up != NULL ? up->pgno : 0))
        return false;
    l->pgno = pgno;
    l->low = l->high = (struct bound){ NULL, 0 };
    if (up != NULL) {
        struct node n = node_at(up, up->next - 1, false);
        l->low = up->next > 1 ? (struct bound){ n.key, n.key_len } : up->low;
        l->high = up->high;
        if (up->next < up->nr) {
            n = node_at(up, up->next, false);
            l->high = (struct bound){ n.key, n.key_len };
        }
    }
    *(leaf ? &w->count.leaf : &w->count.branch) += 1;
    return level_load(w, l, leaf);
}

/* A scan goes down only where a key of its range can be. */
static bool child_wanted(const struct walk *w, const struct level *l)
{
    if (!w->quiet)
        return true;
    struct node n = node_at(l, l->next, false);
    if (l->next > 0 && n.key[0] > w->to)
        return false;
    if (l->next + 1 == l->nr)
        return true;
    n = node_at(l, l->next + 1, false);
    return n.key[0] >= w->from;
}

static void walk_pages(struct walk *w, const struct tree *t)
{
    unsigned depth = 0; /* of the top of the stack */

    if (!push(w, t, 0, t->root))
        return;
    for (;;) {
        struct level *l = &w->levels[depth];
        bool leaf = depth + 1 == t->depth;
        if (l->next == l->nr) {
            if (depth-- == 0)
                return;
        } else if (leaf) {
            struct node n = node_at(l, l->next++, true);
            (t->name == TREE_FREE ? visit_free_list : visit_record)(w, l, &n);
        } else {
            bool wanted = child_wanted(w, l);
            struct node n = node_at(l, l->next++, false);
            if (wanted && push(w, t, depth + 1, n.number))
                depth++;
        }
    }
}

static void check_counters(struct walk *w, const struct tree *t)
{
    const struct tree *c = &w->count;
    const char *name = t->name == TREE_FREE ? "free tree" : "main tree";
    struct {
        const char *what;
        uint64_t recorded, counted;
    } table[] = {
        { "branch pages", t->branch, c->branch },
        { "leaf pages", t->leaf, c->leaf },
        { "overflow pages", t->overflow, c->overflow },
        { "entries", t->entries, c->entries },
    };

    for (size_t i = 0; i < sizeof table / sizeof table[0]; i++)
        if (table[i].recorded != table[i].counted)
            damage(w, "%s: the meta page counts %" PRIu64 " %s, found %" PRIu64, name,
                   table[i].recorded, table[i].what, table[i].counted);
}

static void walk_tree(struct walk *w, const struct tree *t)
{
    uint64_t before = w->info->damage;
    const char *name = t->name == TREE_FREE ? "free tree" : "main tree";

    w->count = (struct tree){ .name = t->name };
    if ((t->root == NO_PAGE) != (t->depth == 0) || t->depth > LMDB_DEPTH_MAX) {
        damage(w, "%s: depth %u with root page %" PRIu64, name, t->depth, t->root);
        return;
    }
    if (t->depth > 0)
        walk_pages(w, t);
    if (!w->quiet && w->info->damage == before)
        check_counters(w, t);
    if (t->name == TREE_MAIN)
        w->info->entries = w->count.entries;
}

/* ---- metas ----------------------------------------------------------------------------------- */

static struct tree tree_decode(const uint8_t *p, enum tree_name name)
{
    return (struct tree){
        .name = name,
        .flags = load16(p + 4),
        .depth = load16(p + 6),
        .branch = load64(p + 8),
        .leaf = load64(p + 16),
        .overflow = load64(p + 24),
        .entries = load64(p + 32),
        .root = load64(p + 40),
    };
}

static bool meta_load(struct walk *w, unsigned slot, struct meta *out)
{
    uint8_t page[LMDB_PAGE_SIZE];
    const uint8_t *m = page + PAGE_HEADER;

    if (!read_bytes(w, (uint64_t)slot * LMDB_PAGE_SIZE, page, sizeof page))
        return false;
    if (load32(m) != META_MAGIC || load32(m + 4) != META_VERSION)
        return damage(w, "meta page %u: magic %#x version %u is not LMDB 0.9's", slot, load32(m),
                      load32(m + 4));
    if (load64(page) != slot || load16(page + 10) != P_META)
        return damage(w, "meta page %u: its header says page %" PRIu64 ", flags %#x", slot,
                      load64(page), load16(page + 10));
    if (load32(m + 24) != LMDB_PAGE_SIZE)
        return damage(w, "meta page %u: pages of %u bytes", slot, load32(m + 24));
    out->map_bytes = load64(m + 16);
    out->trees[TREE_FREE] = tree_decode(m + 24, TREE_FREE);
    out->trees[TREE_MAIN] = tree_decode(m + 72, TREE_MAIN);
    out->last_page = load64(m + 120);
    out->txnid = load64(m + 128);
    if ((out->txnid & 1) != slot && out->txnid != 0)
        return damage(w, "meta page %u: transaction %" PRIu64 " belongs to the other one", slot,
                      out->txnid);
    return true;
}

static bool meta_sane(struct walk *w, const struct meta *m)
{
    if (m->trees[TREE_MAIN].flags != 0 || !(m->trees[TREE_FREE].flags & INTEGER_KEY))
        return damage(w, "meta page: tree flags %#x and %#x are not this store's",
                      m->trees[TREE_FREE].flags, m->trees[TREE_MAIN].flags);
    if (m->last_page < NR_METAS - 1 || m->last_page >= UINT64_MAX / LMDB_PAGE_SIZE)
        return damage(w, "meta page: the last page cannot be %" PRIu64, m->last_page);
    if (m->map_bytes / LMDB_PAGE_SIZE <= m->last_page || m->map_bytes > MAP_BYTES_MAX)
        damage(w, "meta page: a map of %" PRIu64 " bytes cannot be, for %" PRIu64 " pages",
               m->map_bytes, m->last_page + 1);
    return true;
}

/* Choose as LMDB does, the newer one; damage of either is reported, LMDB refuses it. */
static bool metas_load(struct walk *w)
{
    struct meta m[NR_METAS] = { 0 };
    bool good[NR_METAS] = { meta_load(w, 0, &m[0]), meta_load(w, 1, &m[1]) };

    if (!good[0] && !good[1])
        return false;
    if (good[0] && good[1]) {
        uint64_t a = m[0].txnid, b = m[1].txnid;
        if ((a > b ? a - b : b - a) != 1 && a + b != 0)
            damage(w, "meta pages: transactions %" PRIu64 " and %" PRIu64 " are not neighbours", a,
                   b);
        w->meta = m[a < b];
    } else {
        w->meta = m[good[1]];
    }
    return meta_sane(w, &w->meta);
}

/* ---- the walk -------------------------------------------------------------------------------- */

static int walk_prepare(struct walk *w)
{
    uint64_t need, have = w->info->file_bytes / LMDB_PAGE_SIZE;

    if (!metas_load(w))
        return 0;
    need = w->meta.last_page + 1;
    w->info->last_page = w->meta.last_page;
    w->info->txnid = w->meta.txnid;
    w->nr_pages = need < have ? need : have;
    w->missing = need - w->nr_pages;
    w->seen = calloc(w->nr_pages / 8 + 1, 1);
    w->value = malloc(PAGES_VALUE_MAX + PAGE_HEADER);
    w->levels[0].page = malloc((size_t)LMDB_DEPTH_MAX * LMDB_PAGE_SIZE);
    if (w->seen == NULL || w->value == NULL || w->levels[0].page == NULL)
        return -ENOMEM;
    for (unsigned i = 1; i < LMDB_DEPTH_MAX; i++)
        w->levels[i].page = w->levels[0].page + (size_t)i * LMDB_PAGE_SIZE;
    return 0;
}

static void count_leaks(struct walk *w)
{
    if (w->quiet || w->info->damage != 0)
        return;
    for (uint64_t number = NR_METAS; number < w->nr_pages; number++)
        if (!(w->seen[number / 8] >> (number % 8) & 1))
            w->info->leaked_pages++;
    note_leaks(w);
}

static void check_length(struct walk *w)
{
    if (!w->quiet && w->missing != w->missing_free)
        damage(w, "the file is cut off: %" PRIu64 " bytes, its last page ends at %" PRIu64,
               w->info->file_bytes, (w->meta.last_page + 1) * LMDB_PAGE_SIZE);
}

static int walk_run(struct walk *w)
{
    struct stat st;
    int err;

    *w->info = (struct pages_info){ 0 };
    if (fstat(w->fd, &st) != 0)
        return -errno;
    w->info->file_bytes = (uint64_t)st.st_size;
    err = walk_prepare(w);
    if (err == 0 && w->seen != NULL) {
        walk_tree(w, &w->meta.trees[TREE_MAIN]);
        if (!w->quiet)
            walk_tree(w, &w->meta.trees[TREE_FREE]);
        check_length(w);
        count_leaks(w);
    }
    free(w->levels[0].page);
    free(w->value);
    free(w->seen);
    return err;
}

int pages_check(int fd, const struct pages_ops *ops, void *ctx, struct pages_info *out)
{
    struct walk w = { .fd = fd, .ops = ops, .ctx = ctx, .info = out };

    return walk_run(&w);
}

int pages_scan(int fd, uint8_t from, uint8_t to, const struct pages_ops *ops, void *ctx)
{
    struct pages_info info;
    struct walk w = {
        .fd = fd, .quiet = true, .from = from, .to = to, .ops = ops, .ctx = ctx, .info = &info
    };

    return walk_run(&w);
}
