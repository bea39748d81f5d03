/* hitratio.c: how often each reclaim policy finds what is wanted, on recorded and made-up traces.
 *
 *     bench_hitratio [-n PAGES] [-c FILE.csv] [-t TRACE]
 *
 * lru2q and s3fifo are the cache library itself, without threads and readahead, on a device in memory;
 * lru, sieve, arc and Belady's optimum (which knows the future) are computed here. bench/trace.h
 * says what a trace is; - is standard input. See HITRATIO.md. */
#include <assert.h>
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "bench/output.h"
#include "bench/trace.h"
#include "cache/filemap.h"

#define NONE UINT32_MAX

struct trace {
    uint64_t *keys; /* file << 32 | page */
    uint32_t *ids;  /* the same, numbered from 0 as they first occur */
    uint32_t count, room, distinct;
};

static _Noreturn void die(const char *what, const char *why)
{
    fprintf(stderr, "hitratio: %s: %s\n", what, why);
    exit(1);
}

static void *allocate(size_t n, size_t size)
{
    void *p = calloc(n != 0 ? n : 1, size);
    if (p == NULL)
        die("memory", strerror(errno));
    return p;
}

/* ---- traces ---------------------------------------------------------------------------------- */

static void access_page(struct trace *t, uint32_t file, uint32_t page)
{
    if (t->count == t->room) {
        t->room = t->room != 0 ? t->room * 2 : 1u << 16;
        t->keys = realloc(t->keys, t->room * sizeof *t->keys);
        if (t->keys == NULL)
            die("memory", strerror(errno));
    }
    t->keys[t->count++] = (uint64_t)file << 32 | page;
}

static uint64_t draw(uint64_t *state)
{
    uint64_t z = *state += 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

struct zipf {
    double *cdf;
    uint32_t *page; /* of each rank, shuffled */
    uint32_t n;
    uint64_t state;
};

static void zipf_shuffle(struct zipf *z)
{
    for (uint32_t left = z->n; left > 1; left--) {
        uint32_t j = (uint32_t)(draw(&z->state) % left), page = z->page[left - 1];
        z->page[left - 1] = z->page[j];
        z->page[j] = page;
    }
}

static struct zipf zipf_make(uint32_t n, double alpha)
{
    struct zipf z = {
        .cdf = allocate(n, sizeof *z.cdf), .page = allocate(n, sizeof *z.page), .n = n, .state = 1
    };
    double sum = 0;
    for (uint32_t i = 0; i < n; i++) {
        sum += pow(i + 1, -alpha);
        z.cdf[i] = sum;
        z.page[i] = i;
    }
    for (uint32_t i = 0; i < n; i++)
        z.cdf[i] /= sum;
    zipf_shuffle(&z);
    return z;
}

static uint32_t zipf_draw(struct zipf *z)
{
    double u = (double)(draw(&z->state) >> 11) * 0x1p-53;
    uint32_t low = 0, high = z->n - 1;
    while (low < high) {
        uint32_t middle = low + (high - low) / 2;
        if (z->cdf[middle] < u)
            low = middle + 1;
        else
            high = middle;
    }
    return z->page[low];
}

static void zipf_free(struct zipf *z)
{
    free(z->cdf);
    free(z->page);
}

/* Pages of a file from its beginning to its end, again and again. */
static void make_loop(struct trace *t, uint32_t pages, uint32_t rounds)
{
    for (uint32_t i = 0; i < rounds; i++)
        for (uint32_t page = 0; page < pages; page++)
            access_page(t, 0, page);
}

static void make_scan(struct trace *t, uint32_t c)
{
    make_loop(t, 4 * c, 10);
}

static void make_small_loop(struct trace *t, uint32_t c)
{
    make_loop(t, c + c / 10, 40);
}

static void make_zipf(struct trace *t, uint32_t c, double alpha)
{
    struct zipf z = zipf_make(16 * c, alpha);
    for (uint32_t i = 0; i < 100 * c; i++)
        access_page(t, 0, zipf_draw(&z));
    zipf_free(&z);
}

static void make_zipf_flat(struct trace *t, uint32_t c)
{
    make_zipf(t, c, 0.8);
}

static void make_zipf_steep(struct trace *t, uint32_t c)
{
    make_zipf(t, c, 1.0);
}

/* Random reads of one file while another is read through, page by page in turn. */
static void make_scan_zipf(struct trace *t, uint32_t c)
{
    struct zipf z = zipf_make(8 * c, 0.9);
    for (uint32_t i = 0; i < 50 * c; i++) {
        access_page(t, 0, zipf_draw(&z));
        access_page(t, 1, i);
    }
    zipf_free(&z);
}

/* Two readers of one file, the second so many pages behind the first. */
static void make_streams(struct trace *t, uint32_t c, uint32_t behind)
{
    for (uint32_t i = 0; i < 40 * c; i++) {
        access_page(t, 0, i);
        if (i >= behind)
            access_page(t, 0, i - behind);
    }
}

static void make_near_streams(struct trace *t, uint32_t c)
{
    make_streams(t, c, c / 8);
}

static void make_far_streams(struct trace *t, uint32_t c)
{
    make_streams(t, c, c / 2 + c / 10);
}

/* The near ones, with random reads of another file in between: what a small queue is bad at. */
static void make_streams_zipf(struct trace *t, uint32_t c)
{
    struct zipf z = zipf_make(8 * c, 0.9);
    for (uint32_t i = 0; i < 40 * c; i++) {
        access_page(t, 0, i);
        if (i >= c / 8)
            access_page(t, 0, i - c / 8);
        access_page(t, 1, zipf_draw(&z));
    }
    zipf_free(&z);
}

/* What is popular changes five times. */
static void make_shift(struct trace *t, uint32_t c)
{
    struct zipf z = zipf_make(8 * c, 0.9);
    for (uint32_t i = 0; i < 100 * c; i++) {
        if (i != 0 && i % (20 * c) == 0)
            zipf_shuffle(&z);
        access_page(t, 0, zipf_draw(&z));
    }
    zipf_free(&z);
}

static void access_traced(void *trace, uint32_t file, uint32_t page)
{
    access_page(trace, file, page);
}

/* Number the pages, by a hash table with open addressing. */
static void trace_number(struct trace *t)
{
    uint32_t size = 1;
    while (size < 2 * t->count)
        size *= 2;
    uint64_t *keys = allocate(size, sizeof *keys);
    uint32_t *ids = allocate(size, sizeof *ids);
    t->ids = allocate(t->count, sizeof *t->ids);
    for (uint32_t i = 0; i < t->count; i++) {
        uint64_t state = t->keys[i];
        uint32_t at = (uint32_t)draw(&state) & (size - 1);
        while (keys[at] != 0 && keys[at] != t->keys[i] + 1)
            at = (at + 1) & (size - 1);
        if (keys[at] == 0) {
            keys[at] = t->keys[i] + 1;
            ids[at] = t->distinct++;
        }
        t->ids[i] = ids[at];
    }
    free(keys);
    free(ids);
}

static void trace_free(struct trace *t)
{
    free(t->keys);
    free(t->ids);
}

/* ---- the cache itself ------------------------------------------------------------------------ */

static uint32_t run_cache(const struct trace *t, uint32_t pages, const char *policy)
{
    struct cache_options o = { .cache_bytes = (uint64_t)pages << PAGE_SHIFT, .reclaim = policy };
    struct address_space files[TRACE_FILES];
    struct page_cache *cache;
    struct cache_stats stats;
    struct device *dev = dev_memory_create();
    if (dev == NULL || page_cache_create(&cache, &o) != 0)
        die(policy, "no cache");
    for (uint32_t f = 0; f < TRACE_FILES; f++)
        mapping_init(&files[f], cache, dev, f + 1, NULL, MAX_FILE_SIZE);
    for (uint32_t i = 0; i < t->count; i++) {
        struct page *page;
        if (filemap_get_page(&files[t->keys[i] >> 32], NULL, (uint32_t)t->keys[i], 1, &page) != 0)
            die(policy, "a page cannot be read");
        put_page(cache, page);
    }
    page_cache_stats(cache, &stats);
    for (uint32_t f = 0; f < TRACE_FILES; f++)
        mapping_destroy(&files[f]);
    page_cache_destroy(cache);
    device_destroy(dev);
    return (uint32_t)stats.hits;
}

static uint32_t run_lru2q(const struct trace *t, uint32_t pages)
{
    return run_cache(t, pages, "lru2q");
}

static uint32_t run_s3fifo(const struct trace *t, uint32_t pages)
{
    return run_cache(t, pages, "s3fifo");
}

/* ---- policies computed here ------------------------------------------------------------------ */

enum { LISTS = 4 };

/* Pages by number on doubly linked lists; list k's head is the node distinct + k. */
struct sim {
    uint32_t *prev, *next, distinct;
    uint8_t *on;   /* 1 + the list it is on; 0: none */
    uint8_t *used; /* (sieve) */
    uint32_t length[LISTS];
};

static struct sim sim_make(uint32_t distinct)
{
    struct sim s = { .prev = allocate(distinct + LISTS, sizeof *s.prev),
                     .next = allocate(distinct + LISTS, sizeof *s.next),
                     .distinct = distinct,
                     .on = allocate(distinct, 1),
                     .used = allocate(distinct, 1) };
    for (uint32_t k = distinct; k < distinct + LISTS; k++)
        s.prev[k] = s.next[k] = k;
    return s;
}

static void sim_free(struct sim *s)
{
    free(s->prev);
    free(s->next);
    free(s->on);
    free(s->used);
}

static void sim_remove(struct sim *s, uint32_t id)
{
    s->next[s->prev[id]] = s->next[id];
    s->prev[s->next[id]] = s->prev[id];
    s->length[s->on[id] - 1]--;
    s->on[id] = 0;
}

static void sim_add(struct sim *s, uint32_t id, unsigned list)
{
    uint32_t head = s->distinct + list;
    s->next[id] = s->next[head];
    s->prev[id] = head;
    s->prev[s->next[head]] = id;
    s->next[head] = id;
    s->on[id] = (uint8_t)(list + 1);
    s->length[list]++;
}

static void sim_move(struct sim *s, uint32_t id, unsigned list)
{
    sim_remove(s, id);
    sim_add(s, id, list);
}

static uint32_t sim_last(const struct sim *s, unsigned list)
{
    return s->prev[s->distinct + list];
}

static uint32_t run_lru(const struct trace *t, uint32_t pages)
{
    struct sim s = sim_make(t->distinct);
    uint32_t hits = 0;
    for (uint32_t i = 0; i < t->count; i++) {
        uint32_t id = t->ids[i];
        if (s.on[id] != 0) {
            hits++;
            sim_remove(&s, id);
        } else if (s.length[0] == pages) {
            sim_remove(&s, sim_last(&s, 0));
        }
        sim_add(&s, id, 0);
    }
    sim_free(&s);
    return hits;
}

/* Where sieve's hand stops: the first page from there towards the front that was not used. */
static uint32_t sieve_hand(struct sim *s, uint32_t hand)
{
    if (hand == NONE || hand >= s->distinct)
        hand = sim_last(s, 0);
    while (s->used[hand] != 0) {
        s->used[hand] = 0;
        hand = s->prev[hand];
        if (hand >= s->distinct)
            hand = sim_last(s, 0);
    }
    return hand;
}

/* Zhang et al., NSDI 2024. */
static uint32_t run_sieve(const struct trace *t, uint32_t pages)
{
    struct sim s = sim_make(t->distinct);
    uint32_t hits = 0, hand = NONE;
    for (uint32_t i = 0; i < t->count; i++) {
        uint32_t id = t->ids[i];
        if (s.on[id] != 0) {
            hits++;
            s.used[id] = 1;
            continue;
        }
        if (s.length[0] == pages) {
            uint32_t victim = sieve_hand(&s, hand);
            hand = s.prev[victim];
            sim_remove(&s, victim);
        }
        s.used[id] = 0;
        sim_add(&s, id, 0);
    }
    sim_free(&s);
    return hits;
}

enum { T1, T2, B1, B2 };

/* REPLACE of the paper. */
static void arc_replace(struct sim *s, uint32_t target, bool in_b2)
{
    bool first =
        s->length[T1] > 0 && (s->length[T1] > target || (in_b2 && s->length[T1] == target));
    if (first || s->length[T2] == 0)
        sim_move(s, sim_last(s, T1), B1);
    else
        sim_move(s, sim_last(s, T2), B2);
}

static uint32_t arc_ghost_hit(struct sim *s, uint32_t id, uint32_t target, uint32_t pages)
{
    bool in_b2 = s->on[id] == B2 + 1;
    uint32_t mine = s->length[in_b2 ? B2 : B1], other = s->length[in_b2 ? B1 : B2];
    assert(mine > 0); /* id is there */
    uint32_t by = other > mine ? other / mine : 1;
    if (in_b2)
        target = target > by ? target - by : 0;
    else
        target = target + by < pages ? target + by : pages;
    arc_replace(s, target, in_b2);
    sim_move(s, id, T2);
    return target;
}

static void arc_miss(struct sim *s, uint32_t id, uint32_t target, uint32_t pages)
{
    uint32_t first = s->length[T1] + s->length[B1];
    uint32_t all = first + s->length[T2] + s->length[B2];
    if (first == pages && s->length[T1] < pages) {
        sim_remove(s, sim_last(s, B1));
        arc_replace(s, target, false);
    } else if (first == pages) {
        sim_remove(s, sim_last(s, T1));
    } else if (all >= pages) {
        if (all == 2 * pages)
            sim_remove(s, sim_last(s, B2));
        arc_replace(s, target, false);
    }
    sim_add(s, id, T1);
}

/* Megiddo and Modha, FAST 2003. */
static uint32_t run_arc(const struct trace *t, uint32_t pages)
{
    struct sim s = sim_make(t->distinct);
    uint32_t hits = 0, target = 0;
    for (uint32_t i = 0; i < t->count; i++) {
        uint32_t id = t->ids[i];
        if (s.on[id] == T1 + 1 || s.on[id] == T2 + 1) {
            hits++;
            sim_move(&s, id, T2);
        } else if (s.on[id] != 0) {
            target = arc_ghost_hit(&s, id, target, pages);
        } else {
            arc_miss(&s, id, target, pages);
        }
    }
    sim_free(&s);
    return hits;
}

/* ---- Belady ---------------------------------------------------------------------------------- */

struct when {
    uint32_t next, id; /* the next access to the page; NONE: never again */
};

struct heap { /* the latest first; holds outdated entries too */
    struct when *at;
    uint32_t count;
};

static void heap_push(struct heap *h, struct when w)
{
    uint32_t i = h->count++;
    for (; i > 0 && h->at[(i - 1) / 2].next < w.next; i = (i - 1) / 2)
        h->at[i] = h->at[(i - 1) / 2];
    h->at[i] = w;
}

static struct when heap_pop(struct heap *h)
{
    struct when top = h->at[0], last = h->at[--h->count];
    uint32_t i = 0, child;
    while ((child = 2 * i + 1) < h->count) {
        if (child + 1 < h->count && h->at[child + 1].next > h->at[child].next)
            child++;
        if (h->at[child].next <= last.next)
            break;
        h->at[i] = h->at[child];
        i = child;
    }
    h->at[i] = last;
    return top;
}

/* For each access, the next to the same page. */
static uint32_t *next_accesses(const struct trace *t)
{
    uint32_t *next = allocate(t->count, sizeof *next), *seen = allocate(t->distinct, sizeof *seen);
    memset(seen, 0xff, t->distinct * sizeof *seen);
    for (uint32_t i = t->count; i-- > 0;) {
        next[i] = seen[t->ids[i]];
        seen[t->ids[i]] = i;
    }
    free(seen);
    return next;
}

static void evict_latest(struct heap *h, uint32_t *due, bool *cached)
{
    struct when w;
    do
        w = heap_pop(h);
    while (!cached[w.id] || due[w.id] != w.next);
    cached[w.id] = false;
}

static uint32_t run_belady(const struct trace *t, uint32_t pages)
{
    uint32_t *next = next_accesses(t), *due = allocate(t->distinct, sizeof *due);
    bool *cached = allocate(t->distinct, sizeof *cached);
    struct heap h = { .at = allocate(t->count, sizeof *h.at) };
    uint32_t hits = 0, used = 0;
    for (uint32_t i = 0; i < t->count; i++) {
        uint32_t id = t->ids[i];
        if (cached[id])
            hits++;
        else if (used == pages)
            evict_latest(&h, due, cached);
        else
            used++;
        cached[id] = true;
        due[id] = next[i];
        heap_push(&h, (struct when){ next[i], id });
    }
    free(next);
    free(due);
    free(cached);
    free(h.at);
    return hits;
}

/* ---- the table ------------------------------------------------------------------------------- */

static const struct {
    const char *name;
    uint32_t (*run)(const struct trace *t, uint32_t pages);
} policies[] = { { "lru", run_lru },     { "lru2q", run_lru2q }, { "s3fifo", run_s3fifo },
                 { "sieve", run_sieve }, { "arc", run_arc },     { "belady", run_belady } };
#define POLICIES (sizeof policies / sizeof policies[0])

static const struct {
    const char *name;
    void (*make)(struct trace *t, uint32_t c);
} patterns[] = { { "scan", make_scan },
                 { "loop", make_small_loop },
                 { "zipf-0.8", make_zipf_flat },
                 { "zipf-1.0", make_zipf_steep },
                 { "scan+zipf", make_scan_zipf },
                 { "streams-near", make_near_streams },
                 { "streams-far", make_far_streams },
                 { "streams+zipf", make_streams_zipf },
                 { "shifting-zipf", make_shift } };
#define PATTERNS (sizeof patterns / sizeof patterns[0])

static void print_head(FILE *csv)
{
    printf("| pattern | accesses | pages |");
    fprintf(csv, "pattern,accesses,pages");
    for (size_t p = 0; p < POLICIES; p++) {
        printf(" %s |", policies[p].name);
        fprintf(csv, ",%s", policies[p].name);
    }
    printf("\n|---|--:|--:|");
    for (size_t p = 0; p < POLICIES; p++)
        printf("--:|");
    printf("\n");
    fprintf(csv, "\n");
}

static void measure(FILE *csv, const char *name, struct trace *t, uint32_t pages)
{
    trace_number(t);
    printf("| %s | %u | %u |", name, t->count, t->distinct);
    fprintf(csv, "%s,%u,%u", name, t->count, t->distinct);
    for (size_t p = 0; p < POLICIES; p++) {
        double ratio = 100.0 * policies[p].run(t, pages) / t->count;
        printf(" %.1f |", ratio);
        fprintf(csv, ",%.3f", ratio);
        fflush(stdout);
    }
    printf("\n");
    fprintf(csv, "\n");
    trace_free(t);
}

int main(int argc, char **argv)
{
    const char *csv_path = "/dev/null", *trace_path = NULL;
    uint32_t pages = 4096;
    for (int c; (c = getopt(argc, argv, "n:c:t:")) != -1;) {
        if (c == 'n')
            pages = trace_cache_pages(optarg);
        else if (c == 'c')
            csv_path = optarg;
        else if (c == 't')
            trace_path = optarg;
        else
            return 2;
    }
    struct trace traced = { 0 };
    if (trace_path != NULL)
        trace_read(trace_path, MAX_FILE_SIZE >> PAGE_SHIFT, access_traced, &traced);
    FILE *csv = fopen(csv_path, "w");
    if (csv == NULL)
        die(csv_path, strerror(errno));
    print_head(csv);
    for (size_t i = 0; i < PATTERNS; i++) {
        struct trace t = { 0 };
        patterns[i].make(&t, pages);
        measure(csv, patterns[i].name, &t, pages);
    }
    if (trace_path != NULL)
        measure(csv, "sqlite", &traced, pages);
    if (fclose(csv) != 0)
        die(csv_path, strerror(errno));
    return close_output("hitratio");
}
