/* readahead.c: what each readahead policy saves, and what it costs, on made-up patterns and a trace.
 *
 *     bench_readahead [-d hdd|ssd|nvme] [-n PAGES] [-t TRACE] [POLICY...]
 *
 * The policies run in the cache library itself; PAGES is its size (4096). Time is computed, so a run on a
 * busy machine gives the same figures: the device fills pages at once and notes when a real one would
 * have been done (store/dev_latency.h has the models), and a reader that comes earlier has stalled. Between two
 * pages a reader computes for THINK_NS. bench/trace.h says what a trace is; - is
 * standard input. The result is CSV, all in per cent but for stall_us and amplification:
 *
 *   hit            pages that were there
 *   late           pages read ahead, but not early enough: the reader waited for the rest
 *   miss           pages nobody had read ahead
 *   stall_us       waiting, microseconds for each page wanted
 *   accuracy       of the pages read ahead, those that were used
 *   coverage       of the pages that were wanted and not cached before, those that were read ahead
 *   amplification  pages read from the device, for each different page wanted */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "bench/output.h"
#include "bench/trace.h"
#include "cache/filemap.h"
#include "store/dev_latency.h"

#define FILES    TRACE_FILES
#define PER_FILE (1u << 16) /* pages */
#define THINK_NS 5000u
#define WANTED   40000u /* pages, in a pattern */

struct want {
    uint8_t file, handle; /* handle: which of the open files, each with a readahead state */
    uint32_t page;
};

static struct want *wants;
static uint32_t nr_wants, room;

static _Noreturn void die(const char *what, const char *why)
{
    fprintf(stderr, "readahead: %s: %s\n", what, why);
    exit(1);
}

static void want(unsigned file, unsigned handle, uint32_t page)
{
    if (nr_wants == room) {
        room = room != 0 ? room * 2 : 1u << 16;
        wants = realloc(wants, room * sizeof *wants);
        if (wants == NULL)
            die("memory", strerror(errno));
    }
    wants[nr_wants++] = (struct want){ (uint8_t)file, (uint8_t)handle, page % PER_FILE };
}

static uint32_t draw(void)
{
    static uint64_t state = 1;
    state = state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(state >> 33);
}

/* ---- patterns -------------------------------------------------------------------------------- */

static void in_order(void)
{
    for (uint32_t i = 0; i < WANTED; i++)
        want(0, 0, i);
}

static void backward(void)
{
    for (uint32_t i = 0; i < WANTED; i++)
        want(0, 0, WANTED - i);
}

static void strided(void)
{
    for (uint32_t i = 0; i < PER_FILE / 7; i++)
        want(0, 0, i * 7);
}

static void two_handles(void)
{
    for (uint32_t i = 0; i < WANTED / 2; i++) {
        want(0, 0, i);
        want(0, 1, i + PER_FILE / 2);
    }
}

static void one_handle(void)
{
    for (uint32_t i = 0; i < WANTED / 2; i++) {
        want(0, 0, i);
        want(0, 0, i + PER_FILE / 2);
    }
}

static void runs(void)
{
    while (nr_wants < WANTED)
        for (uint32_t at = draw(), n = 16; n > 0; n--)
            want(0, 0, at++);
}

static void at_random(void)
{
    for (uint32_t i = 0; i < WANTED; i++)
        want(0, 0, draw());
}

static void access_traced(void *unused, uint32_t file, uint32_t page)
{
    (void)unused;
    want(file, file, page);
}

static const struct {
    const char *name;
    void (*make)(void);
} patterns[] = {
    { "in order", in_order },
    { "backward", backward },
    { "every 7th", strided },
    { "two streams; two handles", two_handles },
    { "two streams; one handle", one_handle },
    { "runs of 16", runs },
    { "random", at_random },
};

/* ---- a device whose time is computed --------------------------------------------------------- */

struct timed {
    struct device dev; /* first */
    const struct latency_model *model;
    uint64_t now, lane_free[LATENCY_LANES_MAX], head_object, head_index;
    uint64_t ready[FILES][PER_FILE]; /* when the page was, or will be, there */
};

/* As in store/dev_latency.c. */
static uint64_t served(struct timed *t, const struct bio *bio)
{
    unsigned lane = 0;
    for (unsigned i = 1; i < t->model->lanes; i++)
        if (t->lane_free[i] < t->lane_free[lane])
            lane = i;
    uint64_t start = t->lane_free[lane] > t->now ? t->lane_free[lane] : t->now;
    bool seeks = bio->object != t->head_object || bio->vecs[0].index != t->head_index;
    t->head_object = bio->object;
    t->head_index = (uint64_t)bio->vecs[bio->nr_vecs - 1].index + 1;
    t->lane_free[lane] = start + (seeks ? t->model->seek_ns : 0) + t->model->access_ns +
                         bio->nr_vecs * t->model->block_ns;
    return t->lane_free[lane];
}

static void timed_submit(struct device *dev, struct bio *bio)
{
    struct timed *t = (struct timed *)dev;
    uint64_t ready = served(t, bio);
    for (uint32_t i = 0; i < bio->nr_vecs; i++) {
        memset(bio->vecs[i].data, 0, BLOCK_SIZE);
        t->ready[bio->object - 1][bio->vecs[i].index] = ready;
    }
    bio_endio(bio);
}

static const struct device_ops timed_ops = { .submit = timed_submit };

/* ---- one run --------------------------------------------------------------------------------- */

static uint32_t distinct(void)
{
    static bool seen[FILES][PER_FILE];
    uint32_t n = 0;
    memset(seen, 0, sizeof seen);
    for (uint32_t i = 0; i < nr_wants; i++) {
        n += !seen[wants[i].file][wants[i].page];
        seen[wants[i].file][wants[i].page] = true;
    }
    return n;
}

static double percent(uint64_t part, uint64_t of)
{
    return of != 0 ? 100.0 * (double)part / (double)of : 0;
}

static const struct ra_policy *find_policy(const char *spec)
{
    const struct ra_policy *policy;
    char error[RA_ERROR_BYTES];
    if (ra_policy_open(spec, &policy, error, sizeof error) != 0)
        die(spec, error);
    return policy;
}

static void run(const char *pattern, const char *spec, const struct latency_model *model,
                uint32_t pages)
{
    static struct timed t;
    struct cache_options o = { .cache_bytes = (uint64_t)pages << PAGE_SHIFT };
    struct address_space files[FILES];
    struct file_ra_state handles[FILES];
    struct page_cache *cache;
    struct cache_stats s;
    const struct ra_policy *policy = find_policy(spec);
    uint64_t hits = 0, late = 0, stalled = 0;
    memset(&t, 0, sizeof t);
    t.dev = (struct device){ .ops = &timed_ops, .nr_blocks = PER_FILE };
    t.model = model;
    int err = page_cache_create(&cache, &o);
    if (err != 0)
        die("the cache", strerror(-err));
    for (unsigned f = 0; f < FILES; f++) {
        mapping_init(&files[f], cache, &t.dev, f + 1, NULL, (uint64_t)PER_FILE << PAGE_SHIFT);
        file_ra_state_init(&handles[f], policy, RA_DEFAULT_PAGES);
    }
    for (uint32_t i = 0; i < nr_wants; i++) {
        const struct want *w = &wants[i];
        struct file_ra_state *ra = &handles[w->handle];
        struct page *page = find_get_page(&files[w->file], w->page);
        bool cached = page != NULL;
        if (cached)
            put_page(cache, page);
        if (filemap_get_page(&files[w->file], ra, w->page, 1, &page) != 0)
            die(spec, "a page cannot be read");
        put_page(cache, page);
        file_ra_read_done(ra, ((uint64_t)w->page + 1) << PAGE_SHIFT);
        uint64_t ready = t.ready[w->file][w->page], wait = ready > t.now ? ready - t.now : 0;
        hits += cached && wait == 0;
        late += cached && wait != 0;
        stalled += wait;
        t.now += wait + THINK_NS;
    }
    page_cache_stats(cache, &s);
    printf("%s,%s,%u,%.1f,%.1f,%.1f,%.2f,%.1f,%.1f,%.2f\n", pattern, spec, nr_wants,
           percent(hits, nr_wants), percent(late, nr_wants),
           percent(nr_wants - hits - late, nr_wants), (double)stalled / 1e3 / nr_wants,
           percent(s.ra_used, s.ra_pages), percent(s.ra_used, s.ra_used + s.misses),
           (double)s.read_pages / distinct());
    for (unsigned f = 0; f < FILES; f++)
        mapping_destroy(&files[f]);
    page_cache_destroy(cache);
}

static void run_all(const char *pattern, const struct latency_model *model, uint32_t pages,
                    const char *const *specs, size_t nr_specs)
{
    for (size_t i = 0; i < nr_specs; i++)
        run(pattern, specs[i], model, pages);
    nr_wants = 0;
}

int main(int argc, char **argv)
{
    static const char *const usual[] = { "none",     "linux",  "linux:large_folios",
                                         "fixed:32", "stride", "leap" };
    const struct latency_model *model = &latency_ssd;
    const char *trace = NULL;
    uint32_t pages = 4096;
    int option;
    while ((option = getopt(argc, argv, "d:n:t:")) != -1) {
        if (option == 't')
            trace = optarg;
        else if (option == 'n')
            pages = trace_cache_pages(optarg);
        else if (option != 'd' || (model = latency_find(optarg)) == NULL) {
            fprintf(stderr, "usage: %s [-d hdd|ssd|nvme] [-n PAGES] [-t TRACE] [POLICY...]\n",
                    argv[0]);
            return 2;
        }
    }
    const char *const *specs = argc > optind ? (const char *const *)argv + optind : usual;
    size_t nr_specs = argc > optind ? (size_t)(argc - optind) : sizeof usual / sizeof *usual;
    /* What is wrong comes before what takes long. */
    for (size_t i = 0; i < nr_specs; i++)
        (void)find_policy(specs[i]);
    if (trace != NULL)
        trace_read(trace, PER_FILE, access_traced, NULL);
    struct want *traced = wants;
    uint32_t nr_traced = nr_wants;
    wants = NULL;
    nr_wants = room = 0;
    printf("pattern,policy,pages,hit,late,miss,stall_us,accuracy,coverage,amplification\n");
    for (size_t p = 0; p < sizeof patterns / sizeof *patterns; p++) {
        patterns[p].make();
        run_all(patterns[p].name, model, pages, specs, nr_specs);
    }
    free(wants);
    wants = traced;
    nr_wants = nr_traced;
    if (trace != NULL)
        run_all("trace", model, pages, specs, nr_specs);
    free(wants);
    return close_output("readahead");
}
