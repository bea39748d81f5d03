/* What does a hit cost, and a read, a write, a miss?
 *
 * Every figure of the cache stands beside others that do the same work: a hash table under a
 * pthread_rwlock and liburcu's lock-free hash table holding the same pages, LMDB's mdb_get of the
 * same 4 KiB, pread and pwrite of the same bytes cached by the filesystem of DIR, and memcpy.
 *
 *     micro DIR [MIB [ROUNDS [CASE]]]              1,024 MiB of pages, 15 rounds, all cases
 *     micro.sh DIR ...                             builds it, waits for a quiet machine, says which
 *
 * A case is measured in rounds; in a round every contestant has one short turn, and who begins
 * rotates. Ratios are taken within a round, so what slows the whole machine cancels.
 *
 * Time is the processor time of the measuring threads (CLOCK_THREAD_CPUTIME_ID), so that others
 * who take the processor away do not count; what they leave in the caches does. A turn against
 * whose processor time the wall clock ran on by more than DISTURBED is taken again, TRIES times at
 * most; "quiet 15/15" behind a case says that in 15 of 15 rounds every turn was undisturbed.
 *
 * The benchmark cannot lie quietly: every page and block bears its number, and every access checks
 * that it got the right one. */

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <lmdb.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <time.h>
#include <unistd.h>

#include "bench/output.h"
#include "cache/page_cache.h"
#include "cache/rcu.h"

#include <urcu/rculfhash.h> /* after cache/rcu.h, which chooses the flavour */

enum {
    HIT_PAGES = 65536, /* 256 MiB: what hits, reads of 4 KiB and the tables are about */
    HOT_PAGES = 16,    /* 64 KiB: in the processor's own cache, with the copies */
    MISS_PAGES = 4096, /* 16 MiB: one block in each bucket of the memory device */
    BIG_CHUNK = 131072,
    THREADS_MOST = 2,
    CONTESTANTS_MOST = 11,
    ROUNDS_MOST = 100,
    TRIES = 10, /* turns taken to get a quiet one, at most */
};

static const double DISTURBED = 1.05;   /* wall clock over processor time of one turn */
static const double LOAD_INVALID = 0.5; /* load average before we add to it */

/* ---- errors: a benchmark stops at the first -------------------------------------------------- */

static _Noreturn void die(const char *what, const char *why)
{
    fprintf(stderr, "micro: %s: %s\n", what, why);
    exit(1);
}

static void check_lmdb(int rc, const char *what)
{
    if (rc != MDB_SUCCESS)
        die(what, mdb_strerror(rc));
}

static void check_sys(bool ok, const char *what)
{
    if (!ok)
        die(what, strerror(errno));
}

static void *allocate(size_t count, size_t size)
{
    void *p = calloc(count, size);
    check_sys(p != NULL, "calloc");
    return p;
}

/* ---- what is measured ------------------------------------------------------------------------ */

/* The rival that most would write first: chained buckets, one lock. */
struct hash_entry {
    struct hash_entry *next;
    struct page *page;
    uint32_t index;
};

struct hash_table { /* (r) rwlock */
    pthread_rwlock_t lock;
    struct hash_entry *buckets[HIT_PAGES]; /* (r) */
};

struct lf_entry {
    struct cds_lfht_node node;
    struct page *page;
    uint32_t index;
};

struct tables {
    struct hash_table *hash;
    struct hash_entry *hash_entries;
    struct cds_lfht *lfht;
    struct lf_entry *lf_entries;
};

struct bench {
    const char *dir;
    char fs_name[32];
    uint32_t pages; /* of the large file: in the cache, on the filesystem, and flat */
    unsigned rounds;
    const char *only; /* the one case to run; NULL: all */

    struct page_cache *cache;
    struct device *dev;
    struct address_space file; /* pages, all cached */
    struct address_space cold; /* MISS_PAGES, on the device */
    struct address_space work; /* HIT_PAGES, dirty */
    char *flat;                /* the same bytes, plain memory */
    int fd;                    /* and in a file of the filesystem */

    struct tables full;  /* of the first HIT_PAGES of file */
    struct tables empty; /* to insert into, with a tree of our own kind beside them */
    struct radix_tree radix;
    pthread_mutex_t radix_lock;
    MDB_env *env;
    MDB_dbi dbi;
};

/* Which page is next: in order, or at random. */
struct walk {
    uint32_t first, mask, at;
    uint32_t step; /* odd; 0: random */
};

static inline uint32_t walk_next(struct walk *w)
{
    if (w->step != 0) {
        w->at += w->step;
        return w->first + (w->at & w->mask);
    }
    w->at = w->at * 1664525u + 1013904223u; /* only the high bits are random enough */
    return w->first + ((w->at >> 8) & w->mask);
}

/* One thread's part of one turn; on cache lines of its own. */
struct job {
    _Alignas(128) struct bench *b;
    struct walk walk; /* in chunks */
    size_t chunk;     /* bytes */
    uint64_t ops;
    char *buf; /* BIG_CHUNK bytes, this thread's own */
    MDB_txn *txn;
    struct file_ra_state ra;
    uint64_t wrong; /* accesses that got something else */
    void (*run)(struct job *j);
    pthread_barrier_t *start;
    double wall_ns, cpu_ns;
    bool warm; /* go over all pages once before it counts */
};

enum team { ONE, TWO_APART, TWO_SHARING }; /* threads, and whether each has pages of its own */

/* One who takes part in a case. */
struct contestant {
    const char *name; /* "FS ...": of the filesystem, whose name takes the place of FS */
    void (*run)(struct job *j);
    enum team team;
    unsigned slower;                 /* makes 1/slower of the case's accesses; 0: all */
    void (*before)(struct bench *b); /* not measured; NULL: nothing to prepare */
};

enum order { IN_ORDER, RANDOM, EACH_ONCE /* in no order that readahead would see */ };

struct bench_case {
    const char *name, *title;
    uint32_t pages; /* a power of two; 0: all there are */
    enum order order;
    size_t chunk; /* bytes in one access */
    uint64_t ops; /* accesses in one turn of one thread; 0: each chunk once */
    const struct contestant *who;
    unsigned count;
    bool warm; /* small enough for the processor's caches, which others in the round have filled */
};

/* ---- hits: find, reference, mark, release ---------------------------------------------------- */

static void hit_folio(struct job *j)
{
    struct walk w = j->walk;
    for (uint64_t n = 0; n < j->ops; n++) {
        uint32_t index = walk_next(&w);
        struct page *page = find_get_page(&j->b->file, index);
        mark_page_accessed(page);
        j->wrong += page->index != index;
        put_page(j->b->cache, page);
    }
}

static uint32_t hash_index(uint32_t index)
{
    return (index * 0x9E3779B1u) >> 16;
}

_Static_assert(HIT_PAGES == 1 << 16, "hash_index() gives 16 bits");

static struct page *hash_find_get(struct hash_table *t, uint32_t index)
{
    struct page *page = NULL;
    pthread_rwlock_rdlock(&t->lock);
    for (struct hash_entry *e = t->buckets[hash_index(index)]; e != NULL; e = e->next) {
        if (e->index == index) {
            page = e->page;
            get_page(page); /* in the table, under its lock: somebody holds it */
            break;
        }
    }
    pthread_rwlock_unlock(&t->lock);
    return page;
}

static void hit_rwlock(struct job *j)
{
    struct walk w = j->walk;
    for (uint64_t n = 0; n < j->ops; n++) {
        uint32_t index = walk_next(&w);
        struct page *page = hash_find_get(j->b->full.hash, index);
        mark_page_accessed(page);
        j->wrong += page->index != index;
        put_page(j->b->cache, page);
    }
}

static int lf_match(struct cds_lfht_node *node, const void *key)
{
    return caa_container_of(node, struct lf_entry, node)->index == *(const uint32_t *)key;
}

static struct lf_entry *lf_find(struct cds_lfht *ht, uint32_t index, struct cds_lfht_iter *iter)
{
    cds_lfht_lookup(ht, hash_index(index), lf_match, &index, iter);
    struct cds_lfht_node *node = cds_lfht_iter_get_node(iter);
    return node != NULL ? caa_container_of(node, struct lf_entry, node) : NULL;
}

/* The same protocol as find_get_page: a reference, then a second look. */
static void hit_lfht(struct job *j)
{
    struct walk w = j->walk;
    for (uint64_t n = 0; n < j->ops; n++) {
        uint32_t index = walk_next(&w);
        struct cds_lfht_iter iter;
        struct page *page = NULL;
        cache_rcu_read_lock();
        struct lf_entry *e = lf_find(j->b->full.lfht, index, &iter);
        if (e != NULL && get_page_unless_zero(e->page) && !cds_lfht_is_node_deleted(&e->node))
            page = e->page;
        cache_rcu_read_unlock();
        if (page == NULL)
            die("rculfhash", "lost a page");
        mark_page_accessed(page);
        j->wrong += page->index != index;
        put_page(j->b->cache, page);
    }
}

static const char *lmdb_get(struct job *j, uint32_t index)
{
    MDB_val key = { sizeof index, &index }, value;
    if (mdb_get(j->txn, j->b->dbi, &key, &value) != 0 || value.mv_size != PAGE_SIZE)
        die("mdb_get", "lost a page");
    return value.mv_data;
}

/* What keeps a value of LMDB valid is the transaction: here one for all. */
static void hit_lmdb(struct job *j)
{
    struct walk w = j->walk;
    check_lmdb(mdb_txn_renew(j->txn), "renew");
    for (uint64_t n = 0; n < j->ops; n++) {
        uint32_t index = walk_next(&w), stamp;
        memcpy(&stamp, lmdb_get(j, index), sizeof stamp);
        j->wrong += stamp != index;
    }
    mdb_txn_reset(j->txn);
}

/* And here one for each access, as a page has a reference of its own. */
static void hit_lmdb_renew(struct job *j)
{
    struct walk w = j->walk;
    for (uint64_t n = 0; n < j->ops; n++) {
        uint32_t index = walk_next(&w), stamp;
        check_lmdb(mdb_txn_renew(j->txn), "renew");
        memcpy(&stamp, lmdb_get(j, index), sizeof stamp);
        mdb_txn_reset(j->txn);
        j->wrong += stamp != index;
    }
}

/* Two atomic operations of one's own: what two busy threads cost each other without sharing a thing.
 * Processors that are hyperthreads of one core, perhaps unknown to a virtual machine, do. */
static void nothing_shared(struct job *j)
{
    _Atomic uint64_t own = 0;
    for (uint64_t n = 0; n < j->ops; n++) {
        atomic_fetch_add_explicit(&own, 1, memory_order_relaxed);
        atomic_fetch_sub_explicit(&own, 1, memory_order_acq_rel);
    }
    j->wrong += own != 0;
}

/* ---- reads: into a buffer -------------------------------------------------------------------- */

/* The buffer begins with the number of the page that stands at the chunk's start. */
static void check_stamp(struct job *j, uint32_t chunk_index)
{
    uint32_t stamp;
    memcpy(&stamp, j->buf, sizeof stamp);
    j->wrong += stamp != (uint32_t)((uint64_t)chunk_index * j->chunk >> PAGE_SHIFT);
}

static void read_folio(struct job *j)
{
    struct walk w = j->walk;
    for (uint64_t n = 0; n < j->ops; n++) {
        uint32_t i = walk_next(&w);
        ssize_t got = filemap_read(&j->b->file, &j->ra, (uint64_t)i * j->chunk, j->buf, j->chunk);
        j->wrong += got != (ssize_t)j->chunk;
        check_stamp(j, i);
    }
}

static void read_pread(struct job *j)
{
    struct walk w = j->walk;
    for (uint64_t n = 0; n < j->ops; n++) {
        uint32_t i = walk_next(&w);
        ssize_t got = pread(j->b->fd, j->buf, j->chunk, (off_t)((uint64_t)i * j->chunk));
        j->wrong += got != (ssize_t)j->chunk;
        check_stamp(j, i);
    }
}

static void read_memcpy(struct job *j)
{
    struct walk w = j->walk;
    for (uint64_t n = 0; n < j->ops; n++) {
        uint32_t i = walk_next(&w);
        memcpy(j->buf, j->b->flat + (uint64_t)i * j->chunk, j->chunk);
        check_stamp(j, i);
    }
}

static void read_lmdb(struct job *j)
{
    struct walk w = j->walk;
    for (uint64_t n = 0; n < j->ops; n++) {
        uint32_t i = walk_next(&w);
        check_lmdb(mdb_txn_renew(j->txn), "renew");
        memcpy(j->buf, lmdb_get(j, i), PAGE_SIZE);
        mdb_txn_reset(j->txn);
        check_stamp(j, i);
    }
}

/* A system call that does nothing: the least a pread can cost. */
static void call_nothing(struct job *j)
{
    for (uint64_t n = 0; n < j->ops; n++)
        j->wrong += getppid() == 0;
}

/* ---- overwrites of dirty pages: each leaves the stamp that was there ------------------------- */

static void write_folio(struct job *j)
{
    struct walk w = j->walk;
    for (uint64_t n = 0; n < j->ops; n++) {
        uint32_t i = walk_next(&w);
        memcpy(j->buf, &i, sizeof i);
        ssize_t put = filemap_write(&j->b->work, (uint64_t)i << PAGE_SHIFT, j->buf, PAGE_SIZE);
        j->wrong += put != PAGE_SIZE;
    }
}

static void write_pwrite(struct job *j)
{
    struct walk w = j->walk;
    for (uint64_t n = 0; n < j->ops; n++) {
        uint32_t i = walk_next(&w);
        memcpy(j->buf, &i, sizeof i);
        ssize_t put = pwrite(j->b->fd, j->buf, PAGE_SIZE, (off_t)i << PAGE_SHIFT);
        j->wrong += put != PAGE_SIZE;
    }
}

static void write_memcpy(struct job *j)
{
    struct walk w = j->walk;
    for (uint64_t n = 0; n < j->ops; n++) {
        uint32_t i = walk_next(&w);
        memcpy(j->buf, &i, sizeof i);
        memcpy(j->b->flat + ((uint64_t)i << PAGE_SHIFT), j->buf, PAGE_SIZE);
    }
}

/* ---- misses ---------------------------------------------------------------------------------- */

static void cold_drop(struct bench *b)
{
    if (invalidate_inode_pages2_range(&b->cold, 0, UINT32_MAX) != 0)
        die("miss", "a page stayed");
}

static void miss_read(struct job *j, struct file_ra_state *ra)
{
    struct walk w = j->walk;
    for (uint64_t n = 0; n < j->ops; n++) {
        uint32_t i = walk_next(&w);
        ssize_t got = filemap_read(&j->b->cold, ra, (uint64_t)i << PAGE_SHIFT, j->buf, PAGE_SIZE);
        j->wrong += got != PAGE_SIZE;
        check_stamp(j, i);
    }
}

static void miss_folio(struct job *j)
{
    miss_read(j, NULL);
}

static void miss_folio_ahead(struct job *j)
{
    miss_read(j, &j->ra);
}

/* The two copies that a miss cannot do without: device to page, page to buffer. */
static void miss_memcpy(struct job *j)
{
    struct walk w = j->walk;
    char *page = j->buf + PAGE_SIZE;
    for (uint64_t n = 0; n < j->ops; n++) {
        uint32_t i = walk_next(&w);
        memcpy(page, j->b->flat + ((uint64_t)i << PAGE_SHIFT), PAGE_SIZE);
        memcpy(j->buf, page, PAGE_SIZE);
        check_stamp(j, i);
    }
}

/* ---- inserting and deleting, each under its lock --------------------------------------------- */

static void grace(struct bench *b)
{
    (void)b;
    cache_rcu_synchronize(); /* what was deleted may be inserted again */
}

static void churn_radix(struct job *j)
{
    struct bench *b = j->b;
    struct radix_preload preload = RADIX_PRELOAD_INIT;
    struct walk in = j->walk, out = j->walk;
    for (uint64_t n = 0; n < j->ops; n++) {
        uint32_t i = walk_next(&in);
        if (radix_tree_preload(&preload) != 0)
            die("preload", "no memory");
        pthread_mutex_lock(&b->radix_lock);
        j->wrong += radix_tree_insert(&b->radix, i, &b->empty.lf_entries[i], &preload, NULL) != 0;
        pthread_mutex_unlock(&b->radix_lock);
    }
    for (uint64_t n = 0; n < j->ops; n++) {
        uint32_t i = walk_next(&out);
        pthread_mutex_lock(&b->radix_lock);
        j->wrong += radix_tree_delete(&b->radix, i) != &b->empty.lf_entries[i];
        pthread_mutex_unlock(&b->radix_lock);
    }
    radix_tree_preload_end(&preload);
}

static void hash_insert(struct tables *t, uint32_t i)
{
    struct hash_entry *e = &t->hash_entries[i], **bucket = &t->hash->buckets[hash_index(i)];
    pthread_rwlock_wrlock(&t->hash->lock);
    e->next = *bucket;
    *bucket = e;
    pthread_rwlock_unlock(&t->hash->lock);
}

static bool hash_delete(struct tables *t, uint32_t i)
{
    struct hash_entry **e = &t->hash->buckets[hash_index(i)];
    pthread_rwlock_wrlock(&t->hash->lock);
    while (*e != NULL && (*e)->index != i)
        e = &(*e)->next;
    bool found = *e != NULL;
    if (found)
        *e = (*e)->next;
    pthread_rwlock_unlock(&t->hash->lock);
    return found;
}

static void churn_rwlock(struct job *j)
{
    struct walk in = j->walk, out = j->walk;
    for (uint64_t n = 0; n < j->ops; n++)
        hash_insert(&j->b->empty, walk_next(&in));
    for (uint64_t n = 0; n < j->ops; n++)
        j->wrong += !hash_delete(&j->b->empty, walk_next(&out));
}

static bool lf_insert(struct tables *t, uint32_t i)
{
    struct lf_entry *e = &t->lf_entries[i];
    cds_lfht_node_init(&e->node);
    cache_rcu_read_lock();
    struct cds_lfht_node *in = cds_lfht_add_unique(t->lfht, hash_index(i), lf_match, &i, &e->node);
    cache_rcu_read_unlock();
    return in == &e->node;
}

static bool lf_delete(struct tables *t, uint32_t i)
{
    struct cds_lfht_iter iter;
    cache_rcu_read_lock();
    struct lf_entry *e = lf_find(t->lfht, i, &iter);
    bool found = e != NULL && cds_lfht_del(t->lfht, &e->node) == 0;
    cache_rcu_read_unlock();
    return found;
}

static void churn_lfht(struct job *j)
{
    struct walk in = j->walk, out = j->walk;
    for (uint64_t n = 0; n < j->ops; n++)
        j->wrong += !lf_insert(&j->b->empty, walk_next(&in));
    for (uint64_t n = 0; n < j->ops; n++)
        j->wrong += !lf_delete(&j->b->empty, walk_next(&out));
}

/* ---- clocks ---------------------------------------------------------------------------------- */

static double clock_ns(clockid_t id)
{
    struct timespec ts;
    clock_gettime(id, &ts);
    return 1e9 * (double)ts.tv_sec + (double)ts.tv_nsec;
}

/* Processor seconds that all have used, and that we have. */
static void used_seconds(double *all, double *ours)
{
    unsigned long v[8] = { 0 };
    FILE *f = fopen("/proc/stat", "re");
    check_sys(f != NULL, "/proc/stat");
    if (fscanf(f, "cpu %lu %lu %lu %lu %lu %lu %lu %lu", &v[0], &v[1], &v[2], &v[3], &v[4], &v[5],
               &v[6], &v[7]) != 8)
        die("/proc/stat", "not understood");
    fclose(f);
    struct rusage r;
    getrusage(RUSAGE_SELF, &r);
    *all = (double)(v[0] + v[1] + v[2] + v[5] + v[6] + v[7]) / (double)sysconf(_SC_CLK_TCK);
    *ours = (double)(r.ru_utime.tv_sec + r.ru_stime.tv_sec) +
            1e-6 * (double)(r.ru_utime.tv_usec + r.ru_stime.tv_usec);
}

static double load_now(void)
{
    double load = -1;
    return getloadavg(&load, 1) == 1 ? load : -1;
}

/* ---- turns and rounds ------------------------------------------------------------------------ */

static void job_warm(struct job *j)
{
    struct job once = *j;
    once.walk.step = 1;
    once.ops = (uint64_t)j->walk.mask + 1;
    once.run(&once);
}

static void *job_thread(void *arg)
{
    struct job *j = arg;
    if (j->warm)
        job_warm(j);
    cache_rcu_read_lock(); /* the first bracket registers the thread: not part of a hit */
    cache_rcu_read_unlock();
    pthread_barrier_wait(
        j->start); /* until both are there; and until both are where they belong: */
    pthread_barrier_wait(j->start);
    double wall = clock_ns(CLOCK_MONOTONIC), cpu = clock_ns(CLOCK_THREAD_CPUTIME_ID);
    j->run(j);
    j->cpu_ns = clock_ns(CLOCK_THREAD_CPUTIME_ID) - cpu;
    j->wall_ns = clock_ns(CLOCK_MONOTONIC) - wall;
    return NULL;
}

static unsigned threads_of(const struct contestant *who)
{
    return who->team == ONE ? 1 : 2;
}

static void job_init(struct job *j, const struct bench_case *c, const struct contestant *who,
                     unsigned thread, unsigned turn)
{
    uint32_t pages = c->pages != 0 ? c->pages : j->b->pages;
    uint32_t chunks = (uint32_t)(((uint64_t)pages << PAGE_SHIFT) / c->chunk);
    uint32_t span = who->team == TWO_APART ? chunks / 2 : chunks;
    static const uint32_t steps[] = { [IN_ORDER] = 1, [RANDOM] = 0, [EACH_ONCE] = 0x9E3779B1u };
    j->warm = c->warm;
    j->run = who->run;
    j->chunk = c->chunk;
    j->ops = c->ops != 0 ? c->ops / (who->slower != 0 ? who->slower : 1) : span;
    j->wrong = 0;
    j->walk = (struct walk){ .first = who->team == TWO_APART ? thread * span : 0,
                             .mask = span - 1,
                             .at = turn * 7919u + thread * (span / 2),
                             .step = steps[c->order] };
    if (c->ops == 0 && c->order == IN_ORDER)
        j->walk.at = UINT32_MAX; /* from the beginning */
}

struct result {
    double ns; /* per access, the mean of the threads */
    bool quiet;
};

/* Two threads are held apart, or a scheduler with little time to look has them take turns. */
static void pin(pthread_t thread, unsigned to)
{
    cpu_set_t allowed, one;
    check_sys(sched_getaffinity(0, sizeof allowed, &allowed) == 0, "sched_getaffinity");
    for (size_t cpu = 0; cpu < CPU_SETSIZE; cpu++) {
        if (!CPU_ISSET(cpu, &allowed) || to-- != 0)
            continue;
        CPU_ZERO(&one);
        CPU_SET(cpu, &one);
        pthread_setaffinity_np(thread, sizeof one, &one);
    }
}

static struct result take_turn(struct bench *b, struct job *jobs, const struct bench_case *c,
                               const struct contestant *who, unsigned turn)
{
    struct result r = { 0, true };
    unsigned count = threads_of(who);
    pthread_t threads[THREADS_MOST];
    pthread_barrier_t start;
    if (who->before != NULL)
        who->before(b);
    pthread_barrier_init(&start, NULL, count);
    for (unsigned t = 0; t < count; t++) {
        job_init(&jobs[t], c, who, t, turn);
        jobs[t].start = &start;
        check_sys(pthread_create(&threads[t], NULL, job_thread, &jobs[t]) == 0, "pthread_create");
        if (count > 1)
            pin(threads[t], t);
    }
    for (unsigned t = 0; t < count; t++) {
        pthread_join(threads[t], NULL);
        if (jobs[t].wrong != 0)
            die(who->name, "got something else than was asked for");
        r.ns += jobs[t].cpu_ns / (double)jobs[t].ops / count;
        r.quiet &= jobs[t].wall_ns < jobs[t].cpu_ns * DISTURBED;
    }
    pthread_barrier_destroy(&start);
    return r;
}

static int compare_doubles(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

struct spread {
    double least, median, most;
};

static struct spread spread_of(const double *values, unsigned n)
{
    double v[ROUNDS_MOST];
    memcpy(v, values, n * sizeof *v);
    qsort(v, n, sizeof *v, compare_doubles);
    return (struct spread){ v[0], v[n / 2], v[n - 1] };
}

struct tally {
    double ns[CONTESTANTS_MOST][ROUNDS_MOST];
    double ratio[CONTESTANTS_MOST][ROUNDS_MOST]; /* to the first contestant */
    unsigned rounds, quiet;
};

/* One round. A disturbed turn is repeated at once, a few times; then the round counts as disturbed. */
static void run_round(struct bench *b, struct job *jobs, const struct bench_case *c,
                      struct tally *t)
{
    double ns[CONTESTANTS_MOST];
    bool quiet = true;
    for (unsigned i = 0; i < c->count; i++) {
        unsigned k = (i + t->rounds) % c->count;
        struct result r = { 0, false };
        for (unsigned n = 0; n < TRIES && !r.quiet; n++)
            r = take_turn(b, jobs, c, &c->who[k], t->rounds);
        ns[k] = r.ns;
        quiet &= r.quiet;
    }
    t->quiet += quiet;
    for (unsigned k = 0; k < c->count; k++) {
        t->ns[k][t->rounds] = ns[k];
        t->ratio[k][t->rounds] = ns[k] / ns[0];
    }
    t->rounds++;
}

/* ---- report ---------------------------------------------------------------------------------- */

static const char *contestant_name(const struct bench *b, const struct contestant *who, char *out,
                                   size_t n)
{
    if (strncmp(who->name, "FS ", 3) != 0)
        return who->name;
    snprintf(out, n, "%s %s", b->fs_name, who->name + 3);
    return out;
}

static void report_case(const struct bench *b, const struct bench_case *c, const struct tally *t)
{
    char name[64];
    printf("\n%s [%s; quiet %u/%u]%s\n\n", c->title, c->name, t->quiet, t->rounds,
           2 * t->quiet < t->rounds ? " INVALID: disturbed" : "");
    printf("| | ns | least .. most | x FolioFS | least .. most | GB/s |\n"
           "|---|--:|--:|--:|--:|--:|\n");
    for (unsigned k = 0; k < c->count; k++) {
        struct spread ns = spread_of(t->ns[k], t->rounds);
        struct spread ratio = spread_of(t->ratio[k], t->rounds);
        printf("| %s | %.1f | %.1f .. %.1f | %.2f | %.2f .. %.2f | %.2f |\n",
               contestant_name(b, &c->who[k], name, sizeof name), ns.median, ns.least, ns.most,
               ratio.median, ratio.least, ratio.most, (double)c->chunk / ns.median);
    }
    fflush(stdout);
}

static void run_case(struct bench *b, struct job *jobs, const struct bench_case *c)
{
    if (b->only != NULL && strncmp(c->name, b->only, strlen(b->only)) != 0)
        return;
    struct tally *t = allocate(1, sizeof *t);
    for (unsigned k = 0; k < c->count; k++) /* memory touched, branches learnt */
        take_turn(b, jobs, c, &c->who[k], 0);
    while (t->rounds < b->rounds)
        run_round(b, jobs, c, t);
    report_case(b, c, t);
    free(t);
}

/* ---- set-up ---------------------------------------------------------------------------------- */

/* The type of the filesystem that holds fd, from the line of mountinfo with its device number. */
static void find_fs_name(struct bench *b, int fd)
{
    struct stat st;
    char line[1024], type[32];
    unsigned major_nr, minor_nr;
    check_sys(fstat(fd, &st) == 0, b->dir);
    snprintf(b->fs_name, sizeof b->fs_name, "unknown");
    FILE *f = fopen("/proc/self/mountinfo", "re");
    check_sys(f != NULL, "mountinfo");
    while (fgets(line, sizeof line, f) != NULL) {
        const char *dash = strstr(line, " - ");
        if (dash != NULL && sscanf(line, "%*d %*d %u:%u", &major_nr, &minor_nr) == 2 &&
            major_nr == major(st.st_dev) && minor_nr == minor(st.st_dev) &&
            sscanf(dash, " - %31s", type) == 1)
            snprintf(b->fs_name, sizeof b->fs_name, "%s", type);
    }
    fclose(f);
}

static void file_fill(struct bench *b)
{
    char *path;
    check_sys(asprintf(&path, "%s/micro.XXXXXX", b->dir) > 0, b->dir);
    b->fd = mkstemp(path);
    check_sys(b->fd >= 0 && unlink(path) == 0, path);
    free(path);
    find_fs_name(b, b->fd);
    for (uint32_t i = 0; i < b->pages; i += BIG_CHUNK >> PAGE_SHIFT) {
        off_t at = (off_t)i << PAGE_SHIFT;
        check_sys(pwrite(b->fd, b->flat + at, BIG_CHUNK, at) == BIG_CHUNK, "pwrite");
    }
    check_sys(fsync(b->fd) == 0, "fsync"); /* or the kernel writes it while we measure */
}

/* Plain memory of the same kind as the cache's arena, with a stamp in every page. */
static void flat_fill(struct bench *b)
{
    b->flat = mmap(NULL, (size_t)b->pages << PAGE_SHIFT, PROT_READ | PROT_WRITE,
                   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    check_sys(b->flat != MAP_FAILED, "mmap");
    for (uint32_t i = 0; i < b->pages; i++) {
        char *page = b->flat + ((uint64_t)i << PAGE_SHIFT);
        memset(page, (int)(i & 0xff), PAGE_SIZE);
        memcpy(page, &i, sizeof i);
    }
}

/* Read all of a file without blocks, which gives it zeroed, clean pages, and stamp them. */
static void mapping_fill(struct bench *b, struct job *j)
{
    uint64_t size = (uint64_t)b->pages << PAGE_SHIFT;
    mapping_init(&b->file, b->cache, b->dev, 1, NULL, size);
    for (uint64_t at = 0; at < size; at += BIG_CHUNK)
        if (filemap_read(&b->file, &j->ra, at, j->buf, BIG_CHUNK) != BIG_CHUNK)
            die("filemap_read", "short");
    for (uint32_t i = 0; i < b->pages; i++) {
        struct page *page = find_get_page(&b->file, i);
        if (page == NULL)
            die("filemap_read", "left a page out");
        memcpy(page_address(page), b->flat + ((uint64_t)i << PAGE_SHIFT), PAGE_SIZE);
        put_page(b->cache, page);
    }
}

/* What a page costs beside its data; the cache holds the large file only. */
static void report_memory(struct bench *b)
{
    struct cache_stats s;
    page_cache_stats(b->cache, &s);
    double nodes = (double)s.tree_bytes / (double)s.pages;
    double structs = (double)s.struct_bytes / (double)s.pages;
    printf(
        "memory beside the data, per page: %.1f bytes (struct page %zu), and %.1f of tree nodes, "
        "in a file of %" PRIu64 " pages; over the page a hash table takes %zu, rculfhash %zu\n",
        structs, sizeof(struct page), nodes, s.pages, sizeof(struct hash_entry) + sizeof(void *),
        sizeof(struct lf_entry) + sizeof(struct cds_lfht_node));
}

static void work_fill(struct bench *b, struct address_space *m, uint64_t object, uint32_t pages)
{
    mapping_init(m, b->cache, b->dev, object, NULL, 0);
    ssize_t size = (ssize_t)pages << PAGE_SHIFT;
    if (filemap_write(m, 0, b->flat, (size_t)size) != size)
        die("filemap_write", "short");
}

static void cache_fill(struct bench *b, struct job *j)
{
    uint64_t pages = (uint64_t)b->pages + HIT_PAGES + 2 * MISS_PAGES;
    struct cache_options o = { .cache_bytes = pages << PAGE_SHIFT };
    b->dev = dev_memory_create();
    if (b->dev == NULL || page_cache_create(&b->cache, &o) != 0)
        die("cache", "no memory");
    mapping_fill(b, j);
    report_memory(b);
    work_fill(b, &b->cold, 2, MISS_PAGES);
    if (filemap_fdatawrite(&b->cold, WB_SYNC_ALL) != 0)
        die("fdatawrite", "failed");
    work_fill(b, &b->work, 3, HIT_PAGES);
}

static void tables_init(struct bench *b, struct tables *t)
{
    t->hash = allocate(1, sizeof *t->hash);
    t->hash_entries = allocate(HIT_PAGES, sizeof *t->hash_entries);
    t->lf_entries = allocate(HIT_PAGES, sizeof *t->lf_entries);
    pthread_rwlock_init(&t->hash->lock, NULL);
    t->lfht = cds_lfht_new_flavor(HIT_PAGES, HIT_PAGES, HIT_PAGES, 0, &urcu_memb_flavor,
                                  NULL); /* never resized */
    if (t->lfht == NULL)
        die("rculfhash", "no memory");
    for (uint32_t i = 0; i < HIT_PAGES; i++) {
        struct page *page = find_get_page(&b->file, i); /* the tables keep the reference */
        t->hash_entries[i] = (struct hash_entry){ .page = page, .index = i };
        t->lf_entries[i].page = page;
        t->lf_entries[i].index = i;
    }
}

static void tables_fill(struct bench *b)
{
    tables_init(b, &b->full);
    tables_init(b, &b->empty);
    for (uint32_t i = 0; i < HIT_PAGES; i++) {
        hash_insert(&b->full, i);
        lf_insert(&b->full, i);
    }
    radix_tree_init(&b->radix);
    pthread_mutex_init(&b->radix_lock, NULL);
}

static void tables_end(struct bench *b, struct tables *t)
{
    for (uint32_t i = 0; i < HIT_PAGES; i++) {
        lf_delete(t, i);
        put_page(b->cache, t->hash_entries[i].page);
    }
    cache_rcu_barrier();
    cds_lfht_destroy(t->lfht, NULL);
    pthread_rwlock_destroy(&t->hash->lock);
    free(t->lf_entries);
    free(t->hash_entries);
    free(t->hash);
}

static void lmdb_fill(struct bench *b)
{
    char *path, *lock;
    MDB_txn *txn;
    check_sys(asprintf(&path, "%s/micro.%ld.mdb", b->dir, (long)getpid()) > 0, b->dir);
    check_sys(asprintf(&lock, "%s-lock", path) > 0, b->dir);
    check_lmdb(mdb_env_create(&b->env), "env_create");
    check_lmdb(mdb_env_set_mapsize(b->env, (size_t)1 << 33), "mapsize");
    check_lmdb(mdb_env_open(b->env, path, MDB_NOSUBDIR | MDB_NORDAHEAD | MDB_NOTLS, 0600), path);
    check_sys(unlink(path) == 0 && unlink(lock) == 0, path);
    free(path);
    free(lock);
    check_lmdb(mdb_txn_begin(b->env, NULL, 0, &txn), "begin");
    check_lmdb(mdb_dbi_open(txn, NULL, MDB_INTEGERKEY, &b->dbi), "dbi_open");
    for (uint32_t i = 0; i < HIT_PAGES; i++) {
        MDB_val key = { sizeof i, &i };
        MDB_val value = { PAGE_SIZE, b->flat + ((uint64_t)i << PAGE_SHIFT) };
        check_lmdb(mdb_put(txn, b->dbi, &key, &value, MDB_APPEND), "put");
    }
    check_lmdb(mdb_txn_commit(txn), "commit");
}

static void jobs_init(struct bench *b, struct job *jobs)
{
    for (unsigned t = 0; t < THREADS_MOST; t++) {
        jobs[t].b = b;
        jobs[t].buf = aligned_alloc(PAGE_SIZE, BIG_CHUNK);
        check_sys(jobs[t].buf != NULL, "aligned_alloc");
        memset(jobs[t].buf, 0, BIG_CHUNK);
        file_ra_state_init(&jobs[t].ra, &ra_linux, RA_DEFAULT_PAGES);
    }
}

static void jobs_begin_reading(struct bench *b, struct job *jobs)
{
    for (unsigned t = 0; t < THREADS_MOST; t++) {
        check_lmdb(mdb_txn_begin(b->env, NULL, MDB_RDONLY, &jobs[t].txn), "begin");
        mdb_txn_reset(jobs[t].txn);
    }
}

static void bench_close(struct bench *b, struct job *jobs)
{
    for (unsigned t = 0; t < THREADS_MOST; t++) {
        mdb_txn_abort(jobs[t].txn);
        free(jobs[t].buf);
    }
    mdb_env_close(b->env);
    tables_end(b, &b->full);
    tables_end(b, &b->empty);
    radix_tree_destroy(&b->radix);
    mapping_destroy(&b->file);
    mapping_destroy(&b->cold);
    mapping_destroy(&b->work);
    page_cache_destroy(b->cache);
    device_destroy(b->dev);
    munmap(b->flat, (size_t)b->pages << PAGE_SHIFT);
    close(b->fd);
}

/* ---- the cases ------------------------------------------------------------------------------- */

static const struct contestant hits[] = {
    { "FolioFS find_get_page", hit_folio, ONE, 0, NULL },
    { "FolioFS, 2 threads, pages of their own", hit_folio, TWO_APART, 0, NULL },
    { "FolioFS, 2 threads, the same pages", hit_folio, TWO_SHARING, 0, NULL },
    { "rwlock + hash table", hit_rwlock, ONE, 2, NULL },
    { "rwlock + hash table, 2 threads", hit_rwlock, TWO_APART, 8, NULL },
    { "liburcu rculfhash", hit_lfht, ONE, 0, NULL },
    { "liburcu rculfhash, 2 threads", hit_lfht, TWO_APART, 0, NULL },
    { "LMDB mdb_get, one transaction", hit_lmdb, ONE, 4, NULL },
    { "LMDB mdb_get, one transaction each", hit_lmdb_renew, ONE, 4, NULL },
    { "control: two atomics of one's own", nothing_shared, ONE, 0, NULL },
    { "control, 2 threads", nothing_shared, TWO_APART, 0, NULL },
};

static const struct contestant reads[] = {
    { "FolioFS filemap_read", read_folio, ONE, 0, NULL },
    { "FolioFS, 2 threads, pages of their own", read_folio, TWO_APART, 0, NULL },
    { "FolioFS, 2 threads, the same pages", read_folio, TWO_SHARING, 0, NULL },
    { "FS pread", read_pread, ONE, 8, NULL },
    { "FS pread, 2 threads, pages of their own", read_pread, TWO_APART, 8, NULL },
    { "memcpy", read_memcpy, ONE, 0, NULL },
    { "memcpy, 2 threads", read_memcpy, TWO_APART, 0, NULL },
    { "LMDB mdb_get + memcpy", read_lmdb, ONE, 4, NULL },
    { "getppid: a call that does nothing", call_nothing, ONE, 4, NULL },
};

static const struct contestant big_reads[] = {
    { "FolioFS filemap_read", read_folio, ONE, 0, NULL },
    { "memcpy", read_memcpy, ONE, 0, NULL },
    { "FS pread", read_pread, ONE, 0, NULL },
};

static const struct contestant writes[] = {
    { "FolioFS filemap_write", write_folio, ONE, 0, NULL },
    { "FS pwrite", write_pwrite, ONE, 8, NULL },
    { "memcpy", write_memcpy, ONE, 0, NULL },
};

static const struct contestant misses[] = {
    { "FolioFS, a page at a time", miss_folio, ONE, 0, cold_drop },
    { "memcpy, twice", miss_memcpy, ONE, 0, NULL },
};

static const struct contestant misses_ahead[] = {
    { "FolioFS, readahead linux", miss_folio_ahead, ONE, 0, cold_drop },
    { "FolioFS, a page at a time", miss_folio, ONE, 0, cold_drop },
    { "memcpy, twice", miss_memcpy, ONE, 0, NULL },
};

static const struct contestant churns[] = {
    { "FolioFS radix tree, with its preload", churn_radix, ONE, 0, NULL },
    { "rwlock + hash table", churn_rwlock, ONE, 0, NULL },
    { "liburcu rculfhash", churn_lfht, ONE, 0, grace },
};

#define WHO(list) .who = (list), .count = sizeof(list) / sizeof(list)[0]

static const struct bench_case cases[] = {
    { "hit-order", "Hits over 256 MiB, in order", HIT_PAGES, IN_ORDER, PAGE_SIZE, 200000, WHO(hits),
      .warm = true },
    { "hit-random", "Hits over 256 MiB, at random", HIT_PAGES, RANDOM, PAGE_SIZE, 200000, WHO(hits),
      .warm = true },
    { "read-hot", "Reads of 4 KiB, the same 64 KiB over and over", HOT_PAGES, IN_ORDER, PAGE_SIZE,
      40000, WHO(reads) },
    { "read-order", "Reads of 4 KiB over 256 MiB, in order", HIT_PAGES, IN_ORDER, PAGE_SIZE, 16384,
      WHO(reads) },
    { "read-random", "Reads of 4 KiB over 256 MiB, at random", HIT_PAGES, RANDOM, PAGE_SIZE, 16384,
      WHO(reads) },
    { "big", "The whole file, in order, 128 KiB at a time", 0, IN_ORDER, BIG_CHUNK, 0,
      WHO(big_reads) },
    { "write-hot", "Overwrites of 4 KiB of dirty pages, the same 64 KiB over and over", HOT_PAGES,
      IN_ORDER, PAGE_SIZE, 40000, WHO(writes) },
    { "write-random", "Overwrites of 4 KiB of dirty pages, at random over 256 MiB", HIT_PAGES,
      RANDOM, PAGE_SIZE, 16384, WHO(writes) },
    { "miss-random", "Misses: 4 KiB from the memory device, each page once, 16 MiB", MISS_PAGES,
      EACH_ONCE, PAGE_SIZE, 0, WHO(misses) },
    { "miss-order", "Misses: 4 KiB at a time from the memory device, in order, 16 MiB", MISS_PAGES,
      IN_ORDER, PAGE_SIZE, 0, WHO(misses_ahead) },
    { "churn-order", "Insert and delete an index, 65,536 of them, in order", HIT_PAGES, IN_ORDER,
      PAGE_SIZE, 0, WHO(churns) },
    { "churn-random", "Insert and delete an index, 65,536 of them, in no order", HIT_PAGES,
      EACH_ONCE, PAGE_SIZE, 0, WHO(churns) },
};

/* ---- all of it ------------------------------------------------------------------------------- */

static unsigned long number(const char *text, unsigned long least, unsigned long most)
{
    char *end;
    errno = 0;
    unsigned long value = strtoul(text, &end, 10);
    if (errno != 0 || *end != '\0' || end == text || value < least || value > most)
        die(text, "not a number in range");
    return value;
}

static void measure(struct bench *b, struct job *jobs)
{
    double all[2], ours[2], load = load_now(), start = clock_ns(CLOCK_MONOTONIC);
    used_seconds(&all[0], &ours[0]);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        run_case(b, jobs, &cases[i]);
    used_seconds(&all[1], &ours[1]);
    double seconds = (clock_ns(CLOCK_MONOTONIC) - start) / 1e9;
    double others = 100 * (all[1] - all[0] - (ours[1] - ours[0])) / seconds;
    printf(
        "\n%.0f s; load %.2f before, %.2f after (we are 1 or 2 of it); others used %.0f %% of one "
        "processor%s\n",
        seconds, load, load_now(), others,
        load > LOAD_INVALID || others > 5 ? ": INVALID as absolute figures, ratios stand only "
                                            "where the rounds were quiet"
                                          : "");
}

int main(int argc, char **argv)
{
    if (argc < 2 || argv[1][0] == '-') {
        fprintf(stderr, "usage: micro DIR [MIB [ROUNDS [CASE]]]\n");
        return 2;
    }
    struct bench *b = allocate(1, sizeof *b);
    struct job *jobs = aligned_alloc(_Alignof(struct job), THREADS_MOST * sizeof *jobs);
    check_sys(jobs != NULL, "aligned_alloc");
    memset(jobs, 0, THREADS_MOST * sizeof *jobs);
    unsigned long mib = argc > 2 ? number(argv[2], 256, 16384) : 1024;
    if ((mib & (mib - 1)) != 0)
        die(argv[2], "not a power of two");
    b->dir = argv[1];
    b->pages = (uint32_t)mib << (20 - PAGE_SHIFT);
    b->rounds = argc > 3 ? (unsigned)number(argv[3], 1, ROUNDS_MOST) : 15;
    b->only = argc > 4 ? argv[4] : NULL;
    jobs_init(b, jobs);
    flat_fill(b);
    file_fill(b);
    cache_fill(b, &jobs[0]);
    tables_fill(b);
    lmdb_fill(b);
    jobs_begin_reading(b, jobs);
    printf("%lu MiB in FolioFS, in a file on %s, in memory; %u rounds; %s\n", mib, b->fs_name,
           b->rounds, mdb_version(NULL, NULL, NULL));
    measure(b, jobs);
    bench_close(b, jobs);
    free(jobs);
    free(b);
    return close_output("micro");
}
