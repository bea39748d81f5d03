/* check.h: is the volume what the file system believes it to be?
 *
 *     fd = the volume, locked by the caller
 *     check_volume(fd, report, ctx, &c)        walks the pages, then the records; reports findings
 *     check_repair(c, lmdb)                    does what the fixable findings ask for, but for the log's: opening
 *                                              the store does that (cut_log), and has to come first
 *     check_free(c)
 *
 * Repairs are bounded (CHECK_REPAIRS_MAX) and some only become possible after others, so the caller
 * checks again until nothing is left to do. A repair never throws away what could be a file: blocks
 * are deleted only when every inode is readable and none owns them, a name only when its inode is
 * certainly not there, and what lost its name gets one in /lost+found.
 *
 * What a crash leaves behind is part of the design and clean: orphans, pending trims, inodes marked
 * INODE_EXTENDING and what lies behind their ends.
 */
#ifndef FOLIO_STORE_CHECK_H
#define FOLIO_STORE_CHECK_H

#include "store/lmdb.h"
#include "store/lmdb_pages.h"

enum check_kind {
    CHECK_NOTE,        /* not a fault */
    CHECK_PAGES,       /* LMDB's own pages */
    CHECK_SUPER,       /* superblock */
    CHECK_RECORD,      /* a record that does not verify, or is none of ours */
    CHECK_BLOCK,       /* damaged data */
    CHECK_BLOCK_COUNT, /* KEY_BLOCKS */
    CHECK_LOST_BLOCKS, /* blocks of nobody */
    CHECK_INODE,       /* fields of an inode */
    CHECK_OWNER,       /* data owned by two inodes */
    CHECK_NLINK,
    CHECK_DIRENT,
    CHECK_COOKIE,
    CHECK_PARENT,
    CHECK_UNREACHABLE,
    CHECK_ORPHAN,
    CHECK_SYMLINK,
    CHECK_XATTR,
    CHECK_COUNTER,
    CHECK_TRIM,
    CHECK_LOG,
    CHECK_NR_KINDS,
};

#define CHECK_REPAIRS_MAX 100000u /* records that one check_repair() changes, about */

/* One line, without newline. fixable: check_repair() will see to it. */
typedef void check_report(void *ctx, enum check_kind kind, bool fixable, const char *line);

struct check_summary {
    uint64_t files, directories, symlinks, others;
    uint64_t blocks;
    uint64_t orphans, trims, extending;
    uint64_t found, fixable; /* findings other than notes */
    uint64_t log_changes;    /* wait in the log: all else is said of the volume without them */
    bool log_damaged;
    struct pages_info pages;
};

struct check;

/* Errors: -ENOMEM, -errno of fstat(2): nothing was decided, *out is not set. */
int check_volume(int fd, check_report *report, void *ctx, struct check **out);
const struct check_summary *check_summary(const struct check *c);

/* Apply repairs to the same volume, opened for writing.   Returns 0 or the error of the store; then
 * some repairs may have been made.   Blocks: on the disk. */
int check_repair(struct check *c, struct lmdb *l);

void check_free(struct check *c);

#endif
