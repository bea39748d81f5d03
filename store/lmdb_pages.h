/* lmdb_pages.h: reads an LMDB 0.9 file as bytes, without LMDB and without a map.
 *
 * LMDB trusts its pages: one flipped bit can send it into a loop or out of its map. Whoever wants to
 * know whether a volume is sound must therefore look at the pages first, and with pread(2), where
 * the worst that a wrong number can do is a short read. What is proved here is what LMDB takes for
 * granted:
 *
 *   metas     magic, version, page size; the transaction numbers are neighbours, each in its slot
 *   pages     the number in the header is the position; flags, bounds and nodes fit the page exactly
 *   order     keys ascend strictly, within a page and against the separators above it
 *   trees     every leaf at the recorded depth; the counters in the meta page are right
 *   space     each page belongs to one owner only: a meta, a tree, an overflow run, the free list
 *
 * Any bytes are survived: depth is bounded by LMDB's own cursor stack, each page is visited once (a
 * bitmap, as long as the file), a page with a fault is reported and skipped with all below it.
 */
#ifndef FOLIO_STORE_LMDB_PAGES_H
#define FOLIO_STORE_LMDB_PAGES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define PAGES_VALUE_MAX \
    (1u << 17) /* bytes: longer values, but for the log's, are reported, not read */

enum pages_finding {
    PAGES_DAMAGE, /* LMDB may fail or crash on this */
    PAGES_NOTE,   /* harmless: pages that nobody uses */
};

struct pages_entry {
    const uint8_t *key; /* key and value are valid during the call only */
    size_t key_len;
    const uint8_t *value; /* the first PAGES_VALUE_MAX bytes of it */
    size_t value_len;
    uint64_t offset; /* where it lies in the file; 0: on a leaf */
};

struct pages_ops {
    /* Records of the main tree, in key order. */
    void (*entry)(void *ctx, const struct pages_entry *e);
    /* One line, without newline. */
    void (*report)(void *ctx, enum pages_finding kind, const char *line);
};

struct pages_info {
    uint64_t file_bytes;
    uint64_t last_page;
    uint64_t txnid;
    uint64_t entries; /* records seen in the main tree */
    uint64_t free_pages;
    uint64_t leaked_pages; /* belong to nobody; known only when nothing is damaged */
    uint64_t damage;       /* PAGES_DAMAGE reported */
};

/* Walk both trees of the file.   Returns 0 (out->damage says whether it is sound); -ENOMEM; -errno
 * of fstat(2). A read error is damage of that page.   Blocks: on the disk.   ops->entry may be NULL. */
int pages_check(int fd, const struct pages_ops *ops, void *ctx, struct pages_info *out);

/* Only the records whose key begins with a byte in from..to; reports nothing, skips what is damaged.
 * For a second look at a few records after pages_check(). */
int pages_scan(int fd, uint8_t from, uint8_t to, const struct pages_ops *ops, void *ctx);

#endif
