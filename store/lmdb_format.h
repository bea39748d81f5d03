/* lmdb_format.h: LMDB's files as bytes (LMDB 0.9 on a 64-bit machine, numbers in the machine's order).
 *
 *     page   0  number (8)   pad (2)   flags (2)   lower (2) upper (2) | pages of the run (4)
 *           16  offset of node 0 (2), of node 1 ...  up to lower;  nodes from upper to the end
 *     node   0  lo (2)  hi (2)  flags (2)  key size (2)  key  value, padded to 2 bytes
 *               leaf: lo, hi are the value's size; with F_BIGDATA the value is the 8-byte number of
 *               the overflow run that holds it.   branch: lo, hi, flags are the child's number.
 *     meta  16  magic (4) version (4) address (8) map size (8) free tree (48) main tree (48)
 *               last page (8) transaction (8)
 *     tree   0  page size (4, free tree only)  flags (2) depth (2) branch (8) leaf (8)
 *               overflow (8) entries (8) root (8)
 *
 * The free tree maps a transaction number to the pages it freed: a count, then page numbers falling.
 */
#ifndef FOLIO_STORE_LMDB_FORMAT_H
#define FOLIO_STORE_LMDB_FORMAT_H

#include <stdint.h>
#include <string.h>

#define LMDB_PAGE_SIZE 4096u
#define LMDB_DEPTH_MAX 32u /* of a tree: LMDB's CURSOR_STACK */
#define PAGE_HEADER    16u
#define NODE_HEADER    8u
#define KEY_BYTES_MAX  511u
#define NR_METAS       2u
#define INTEGER_KEY    0x08u /* of a tree's flags: the free tree's */

enum page_flags { P_BRANCH = 1, P_LEAF = 2, P_OVERFLOW = 4, P_META = 8, P_DIRTY = 16 };
enum node_flags { F_BIGDATA = 1 };

static inline uint16_t load16(const uint8_t *p)
{
    uint16_t n;
    memcpy(&n, p, sizeof n);
    return n;
}

static inline uint32_t load32(const uint8_t *p)
{
    uint32_t n;
    memcpy(&n, p, sizeof n);
    return n;
}

static inline uint64_t load64(const uint8_t *p)
{
    uint64_t n;
    memcpy(&n, p, sizeof n);
    return n;
}

/* Pages of the run that holds a value of so many bytes. */
static inline uint64_t run_pages(uint64_t len)
{
    return (PAGE_HEADER - 1 + len) / LMDB_PAGE_SIZE + 1;
}

#endif
