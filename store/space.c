/* space.c: promises of room, so that ENOSPC comes at the write and never after.
 *
 * Two limits. The cap: pages of LMDB's tree, plus blocks that will be new, stay below the volume's
 * capacity, less a spare that only deleting may use. The disk: the file is allocated ahead of the
 * most that the transactions under way and the pages dirty in the cache can make it grow. LMDB
 * copies on write, so an overwrite needs a new page too before the old one is free, two commits
 * later: that is why promises count overwritten blocks for the disk, and not for the cap. What was
 * allocated and is no longer needed is given back when nothing is left to commit.
 *
 * An estimate may be too high by what a commit would free; the caller then commits and asks again.
 */
#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "store/txn.h"

#define PAGE_BYTES       4096u
#define SPARE_PAGES      256u  /* of the cap: for deleting and the books, on a full volume */
#define AHEAD_PAGES      1024u /* allocate at least so many at a time, while the disk has them */
#define TREE_PAGES       64u   /* branch pages and the free list of one commit */
#define KEEP_PAGES       4096u /* so many allocated in vain are kept for the next writes */
#define BLOCK_NODE_BYTES 64u   /* a block's key and what LMDB puts around it */

/* What LMDB is to write. */
struct load {
    uint64_t blocks;  /* entries, deletions included */
    uint64_t data;    /* of these, blocks with data */
    uint64_t fresh;   /* of these, blocks that did not exist */
    uint64_t records; /* entries, deletions included */
    uint64_t bytes;   /* of records */
};

static struct load load_of_txn(const struct txn *t)
{
    return t == NULL ? (struct load){ 0 }
                     : (struct load){ .blocks = t->nr_blocks,
                                      .data = t->nr_data,
                                      .fresh = t->nr_new,
                                      .records = t->nr_records,
                                      .bytes = t->record_bytes };
}

/* The most leaves and branches that a load adds to a tree of so many. Each may be full and split at
 * its first new entry; to split once more, it must take in a quarter of a page. */
static uint64_t new_nodes(uint64_t nodes, const struct load *w)
{
    uint64_t entries = w->fresh + w->records;
    return (entries < nodes ? entries : nodes) + (w->fresh * BLOCK_NODE_BYTES + w->bytes) / 1024;
}

/* The most pages that LMDB writes for a load in one transaction, while its tree has at most so many
 * leaves and branches: each of them once. */
static uint64_t pages_for(uint64_t nodes, const struct load *w)
{
    uint64_t entries = w->blocks + w->records, touched = w->blocks * 3 / 2 + w->records * 2;
    return w->data + (touched < nodes ? touched : nodes) + w->bytes / 2048 + entries / 256 +
           TREE_PAGES;
}

static uint64_t pages_of_txn(uint64_t nodes, const struct txn *t)
{
    struct load w = load_of_txn(t);
    return t == NULL ? 0 : pages_for(nodes, &w);
}

/* The most leaves and branches that the tree will have when everything in memory is written. */
static uint64_t nodes_to_come(const struct store *s, const struct load *more)
{
    struct load a = load_of_txn(s->running), b = load_of_txn(s->committing);
    struct load all = { .fresh = a.fresh + b.fresh + s->promised_new,
                        .records = a.records + b.records + more->records,
                        .bytes = a.bytes + b.bytes + more->bytes };
    return s->usage.nodes + new_nodes(s->usage.nodes, &all);
}

/* The most pages for what is promised. It is written in transactions of bounded size, and what one
 * of them frees the third after it takes again. So beside what new blocks keep, three are enough,
 * however many follow. */
static uint64_t pages_promised(const struct store *s, uint64_t nodes)
{
    struct load all = { .blocks = s->promised, .data = s->promised, .fresh = s->promised_new };
    struct load one = { .blocks = TXN_DATA_BLOCKS + BIO_MAX_VECS,
                        .data = TXN_DATA_BLOCKS + BIO_MAX_VECS };
    uint64_t at_once = pages_for(nodes, &all);
    uint64_t in_turn =
        s->promised_new + new_nodes(s->usage.nodes, &all) + 3 * pages_for(nodes, &one);
    return at_once < in_turn ? at_once : in_turn;
}

static uint64_t cap_pages(const struct store *s)
{
    return s->super.capacity / PAGE_BYTES;
}

/* Pages in use for the cap: what is there, and what is new in memory. */
static uint64_t cap_used(const struct store *s)
{
    uint64_t n = s->usage.used + s->running->nr_new + s->running->record_bytes / 2048 +
                 s->promised_new + s->promised_new / 64;
    if (s->committing != NULL)
        n += s->committing->nr_new + s->committing->record_bytes / 2048;
    return n;
}

bool space_is_held(const struct store *s)
{
    return s->recent[0] + s->recent[1] > TREE_PAGES && /* a commit always frees some */
           cap_used(s) + SPARE_PAGES < cap_pages(s);
}

/* Pages inside the file that the next transaction can reuse. */
static uint64_t reusable(const struct store *s)
{
    uint64_t file = s->usage.last_page + 1;
    uint64_t held = s->usage.used + s->recent[0] + s->recent[1];
    return file > held ? file - held : 0;
}

/* Have the file reach to page end.   Returns 0 or -ENOSPC. */
static int allocate_to(struct store *s, uint64_t end)
{
    if (end <= s->allocated)
        return 0;
    uint64_t most = s->usage.map_pages, ahead = end + AHEAD_PAGES;
    if (ahead > most)
        ahead = most > end ? most : end;
    int fd = lmdb_fd(s->lmdb);
    uint64_t tries[2] = { ahead, end };
    for (int i = 0; i < 2; i++) {
        off_t from = (off_t)(s->allocated * PAGE_BYTES);
        if (fallocate(fd, 0, from, (off_t)((tries[i] - s->allocated) * PAGE_BYTES)) == 0) {
            s->allocated = tries[i];
            return 0;
        }
        if (errno == EOPNOTSUPP || errno == ENOSYS) {
            s->allocated = UINT64_MAX; /* this disk makes no promises; commits report its ENOSPC */
            return 0;
        }
    }
    return -ENOSPC;
}

/* Where the file may end at most once all that is under way, and more, is written. */
static uint64_t end_to_come(const struct store *s, const struct load *more)
{
    uint64_t nodes = nodes_to_come(s, more), free = reusable(s);
    uint64_t growth = pages_of_txn(nodes, s->running) + pages_of_txn(nodes, s->committing) +
                      pages_promised(s, nodes) + pages_for(nodes, more);
    return s->usage.last_page + 1 + (growth > free ? growth - free : 0);
}

/* Is there room on the disk for what is under way, so much more, and some pages? */
static int disk_check(struct store *s, const struct load *more, uint64_t pages)
{
    return allocate_to(s, end_to_come(s, more) + pages);
}

void space_give_back(struct store *s)
{
    static const struct load none;
    if (s->busy || store_refuses(s) != 0)
        return; /* a commit may be writing there */
    uint64_t end = end_to_come(s, &none) + AHEAD_PAGES;
    if (s->allocated == UINT64_MAX || s->allocated < end + KEEP_PAGES)
        return;
    if (ftruncate(lmdb_fd(s->lmdb), (off_t)(end * PAGE_BYTES)) == 0)
        s->allocated = end;
}

int store_reserve(struct store *s, uint64_t nr_pages, uint64_t nr_new)
{
    static const struct load none;
    pthread_mutex_lock(&s->lock);
    int err = store_refuses(s);
    bool over = nr_new > 0 && cap_used(s) + nr_new + SPARE_PAGES > cap_pages(s);
    s->promised += nr_pages;
    s->promised_new += nr_new;
    if (err == 0)
        err = over ? -ENOSPC : disk_check(s, &none, SPARE_PAGES);
    if (err != 0) {
        s->promised -= nr_pages;
        s->promised_new -= nr_new;
    }
    pthread_mutex_unlock(&s->lock);
    return err;
}

void store_reserve_always(struct store *s, uint64_t nr_pages, uint64_t nr_new)
{
    pthread_mutex_lock(&s->lock);
    s->promised += nr_pages;
    s->promised_new += nr_new;
    pthread_mutex_unlock(&s->lock);
}

/* To give back more than was promised is a bug, and but for the bounds ENOSPC from then on. */
void space_unpromise(struct store *s, uint64_t nr_pages, uint64_t nr_new)
{
#ifdef FOLIO_DEBUG
    assert(nr_pages <= s->promised && nr_new <= s->promised_new);
#endif
    s->promised -= nr_pages < s->promised ? nr_pages : s->promised;
    s->promised_new -= nr_new < s->promised_new ? nr_new : s->promised_new;
}

void store_unreserve(struct store *s, uint64_t nr_pages, uint64_t nr_new)
{
    pthread_mutex_lock(&s->lock);
    space_unpromise(s, nr_pages, nr_new);
    pthread_mutex_unlock(&s->lock);
}

int space_check_update(struct store *s, uint32_t records, uint64_t bytes, bool frees)
{
    struct load w = { .records = records, .bytes = bytes };
    if (frees) /* the spare is for it; yet a commit that outgrows the disk could never succeed */
        return disk_check(s, &w, 0);
    if (cap_used(s) + bytes / 2048 + 1 + SPARE_PAGES / 2 > cap_pages(s))
        return -ENOSPC;
    return disk_check(s, &w, SPARE_PAGES / 2);
}

void space_after_commit(struct store *s)
{
    lmdb_usage(s->lmdb, &s->usage);
    s->recent[1] = s->recent[0];
    s->recent[0] = s->usage.freed;
    if (s->allocated < s->usage.last_page + 1)
        s->allocated = s->usage.last_page + 1;
}

void space_open(struct store *s)
{
    struct stat st;
    lmdb_usage(s->lmdb, &s->usage);
    s->allocated = s->usage.last_page + 1;
    if (fstat(lmdb_fd(s->lmdb), &st) == 0 && (uint64_t)st.st_size / PAGE_BYTES > s->allocated)
        s->allocated = (uint64_t)st.st_size / PAGE_BYTES; /* allocated ahead, before a crash */
}

void space_close(struct store *s)
{
    lmdb_usage(s->lmdb, &s->usage);
    /* Best effort: what is longer than needed is still a good volume. */
    if (s->allocated != UINT64_MAX && s->allocated > s->usage.last_page + 1 &&
        ftruncate(lmdb_fd(s->lmdb), (off_t)((s->usage.last_page + 1) * PAGE_BYTES)) != 0)
        return;
}

void store_space(struct store *s, struct store_space *out)
{
    pthread_mutex_lock(&s->lock);
    uint64_t cap = cap_pages(s), used = cap_used(s), spare = SPARE_PAGES;
    uint64_t free = cap > used + spare ? cap - used - spare : 0;
    uint64_t end = s->usage.last_page + 1;
    uint64_t inside = (s->allocated != UINT64_MAX ? s->allocated : end) - s->usage.used;
    pthread_mutex_unlock(&s->lock);
    struct statvfs v;
    uint64_t disk = free;
    if (fstatvfs(lmdb_fd(s->lmdb), &v) == 0)
        disk = (uint64_t)v.f_bavail * v.f_frsize / PAGE_BYTES + inside;
    *out = (struct store_space){ .capacity = cap * PAGE_BYTES,
                                 .used = used * PAGE_BYTES,
                                 .available = (disk < free ? disk : free) * PAGE_BYTES };
}
