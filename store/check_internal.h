/* check_internal.h: what the files of the check share.
 *
 *     check_records.c   first pass, all records in key order: fills the tables, verifies each record
 *     check_names.c     later passes over names (and attributes), when all inodes are known
 *     check_log.c       the redo log: what waits in it
 *     check_tree.c      conclusions: owners, counts, the tree, orphans
 *     check_repair.c    applies repairs
 *     check_table.c     hash tables
 *     check.c           the order of all this; findings
 *
 * Memory is per inode, per data id and per name, a few dozen bytes each; names themselves and blocks
 * are never kept.
 */
#ifndef FOLIO_STORE_CHECK_INTERNAL_H
#define FOLIO_STORE_CHECK_INTERNAL_H

#include <dirent.h>
#include <inttypes.h>

#include "store/check.h"

/* A hash table of entries of one size that begin with a 64-bit key, not 0. A pointer to an entry is
 * good until the next table_add(). */
struct table {
    uint8_t *slots;
    size_t entry_size, capacity, count; /* capacity: a power of two, or 0 */
};

void *table_get(const struct table *t, uint64_t key); /* NULL: absent */
void *table_add(struct table *t, uint64_t key);       /* existing or zeroed; NULL: no memory */
void *table_next(const struct table *t, size_t *at);  /* each entry in turn, from *at = 0 */
void table_free(struct table *t);
uint64_t check_hash(uint64_t a, uint64_t b); /* never 0 */

enum inode_state {
    I_RECORD = 1,       /* has an inode record */
    I_DAMAGED = 2,      /* which cannot be decoded: nothing but the number is known */
    I_ORPHAN = 4,       /* has an orphan record */
    I_LINK = 8,         /* has a symbolic link's target */
    I_XATTR = 16,       /* has extended attributes */
    I_EXTRA_NAMES = 32, /* a directory: names outside linked_from are to be removed */
    I_LOST = 64,        /* goes to lost+found */
    I_BAD_BLOCKS = 128, /* owns damaged blocks: print its name */
    I_FIX_NLINK = 256,
    I_FIX_PARENT = 512,
    I_FIX_COOKIE = 1024,
    I_FIX_EXTENDING = 2048, /* gets INODE_EXTENDING, so that the next mount trims it */
    I_EXTENDING = 4096,     /* has it */
    I_FIX = I_FIX_NLINK | I_FIX_PARENT | I_FIX_COOKIE | I_FIX_EXTENDING,
};

struct inode_entry {
    uint64_t ino;
    uint64_t data_id;
    uint64_t size;           /* bytes, as recorded */
    uint64_t parent, cookie; /* directories: as recorded, or as they are to be */
    uint64_t linked_from;    /* directories: the directory with their name; 0: none */
    uint64_t max_cookie;     /* directories: of their entries */
    uint32_t nlink;          /* as recorded, or as it is to be */
    uint32_t names;          /* entries that name it */
    uint32_t subdirs;        /* directories: entries that name a directory */
    uint32_t entries;        /* directories: entries */
    uint32_t visit;          /* the walk up the tree that passed here last */
    uint16_t flags;          /* I_* */
    uint8_t type;            /* DT_* */
};

#define LOST_FOUND      "lost+found"
#define FROM_LOST_FOUND UINT64_MAX /* linked_from: its names go, lost+found will have one */

enum data_state { D_COUNT = 1 /* has a KEY_BLOCKS record */ };

struct data_entry {
    uint64_t id;
    uint64_t owner; /* inode; 0: none */
    uint64_t blocks, recorded, damaged;
    uint64_t end;           /* offset behind its last byte that is not zero */
    uint64_t covered, last; /* trims reach from its first block to covered (exclusive) */
    uint32_t trims;
    uint32_t flags; /* D_* */
};

/* The KEY_COOKIE half of a name, by a hash of directory and cookie. Two different ones would have to
 * collide in 64 bits to be taken for one. */
struct twin_entry {
    uint64_t hash;
    uint64_t ino;
    uint32_t name_hash;
    uint8_t type;
    bool matched;
};

enum repair_kind {
    REPAIR_PUT,
    REPAIR_DEL,
    REPAIR_RESTORE, /* key, value: a KEY_COOKIE record; make the entry, or if there is one, delete */
};

struct repair {
    struct key key;
    enum repair_kind kind;
    uint32_t len;
    uint8_t value[DIRENT_BYTES];
    struct repair *next;
};

struct check {
    int fd;
    check_report *report;
    void *ctx;
    int error; /* -ENOMEM: stop */
    struct check_summary summary;

    struct table inodes, data, twins;
    uint64_t counter; /* as recorded; 0: it is not */
    uint64_t highest; /* number in use */
    bool have_super, have_counter;
    uint64_t features;    /* the superblock's */
    uint64_t capacity;    /* likewise */
    struct log_place log; /* the log's ring; bytes 0: none */
    uint64_t log_tail;
    bool have_log_tail;
    uint64_t last_id; /* the block before */
    uint64_t last_index;

    bool partial;       /* pages are damaged: records are missing, conclusions are off */
    bool unsure;        /* a key or an inode is damaged: what seems to be nobody's may not be */
    bool blocks_unsure; /* a block's key is damaged: counts are off */
    bool want_names;    /* the second pass over names has something to do */
    bool want_xattrs;
    uint64_t nr_matched; /* twins */
    uint64_t lost_found; /* its inode; 0: none */
    struct repair *repairs, **repairs_end;
    uint32_t nr_repairs;
};

/* ---- check.c ---- */
__attribute__((format(printf, 4, 5))) void check_find(struct check *c, enum check_kind kind,
                                                      bool fixable, const char *format, ...);
/* Ask for a change. Beyond CHECK_REPAIRS_MAX it is left for the next round. */
void check_put(struct check *c, const struct key *key, const uint8_t *value, size_t len);
void check_del(struct check *c, const struct key *key);
void check_restore(struct check *c, const struct key *key, const uint8_t *value, size_t len);
/* A name for a message: quoted, unprintable bytes as \xNN. */
#define QUOTED_BYTES (4 * NAME_MAX_BYTES + 3)
const char *check_quote(char buf[QUOTED_BYTES], const void *name, size_t len);
/* Strip and verify the envelope.   Returns false: damaged. */
bool check_envelope(const struct pages_entry *e, const uint8_t **payload, size_t *len);
bool check_key(const struct pages_entry *e, struct key *out);         /* false: none of ours */
struct inode_entry *check_inode(const struct check *c, uint64_t ino); /* with a record, or NULL */
static inline bool check_is_dir(const struct inode_entry *i)          /* or could be one */
{
    return i != NULL && (i->flags & I_DAMAGED || i->type == DT_DIR);
}

/* ---- passes ---- */
/* When all records have been seen. */
void check_log(struct check *c);
void check_record(void *ctx, const struct pages_entry *e); /* pages_ops.entry of the first pass */
void check_name(void *ctx, const struct pages_entry *e); /* of the second, KEY_COOKIE..KEY_DIRENT */
void check_name_again(void *ctx, const struct pages_entry *e); /* of the third, likewise */
void check_xattr(void *ctx, const struct pages_entry *e);      /* over KEY_XATTR */

void check_owners(struct check *c);
void check_data(struct check *c);
void check_cycles(struct check *c);
void check_links(struct check *c);
void check_numbers(struct check *c);

#endif
