/* Readahead: what each policy reads at each access of a sequence, and loading policies. */
#include <criterion/criterion.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "cache/page_cache.h"

#define FILE_PAGES 1000u

/* A memory device whose reads of one page fail. */
struct spoilt {
    struct device dev;
    struct device *below;
    uint32_t bad; /* UINT32_MAX: none */
};

static void spoilt_submit(struct device *dev, struct bio *bio)
{
    struct spoilt *s = (struct spoilt *)dev;
    for (uint32_t i = 0; i < bio->nr_vecs; i++)
        if (bio->vecs[i].index == s->bad) {
            bio_fail(bio, -EIO);
            bio_endio(bio);
            return;
        }
    submit_bio(s->below, bio);
}

static const struct device_ops spoilt_ops = { .submit = spoilt_submit };

struct world {
    struct page_cache *cache;
    struct spoilt dev;
    struct address_space m;
    struct file_ra_state ra;
    bool seen[FILE_PAGES];
};

static const struct ra_policy *policy_of(const char *spec)
{
    char error[RA_ERROR_BYTES] = "";
    const struct ra_policy *policy = NULL;
    cr_assert_eq(ra_policy_open(spec, &policy, error, sizeof error), 0, "%s", error);
    return policy;
}

static void world_open(struct world *w, const char *spec)
{
    struct cache_options o = { .cache_bytes = (uint64_t)4096 << PAGE_SHIFT };
    memset(w, 0, sizeof *w);
    w->dev = (struct spoilt){ .dev = { .ops = &spoilt_ops, .nr_blocks = (uint64_t)1 << 32 },
                              .below = dev_memory_create(),
                              .bad = UINT32_MAX };
    cr_assert_eq(page_cache_create(&w->cache, &o), 0);
    mapping_init(&w->m, w->cache, &w->dev.dev, 1, NULL, (uint64_t)FILE_PAGES << PAGE_SHIFT);
    file_ra_state_init(&w->ra, policy_of(spec), RA_DEFAULT_PAGES);
}

static void world_close(struct world *w)
{
    mapping_destroy(&w->m);
    page_cache_destroy(w->cache);
    device_destroy(w->dev.below);
}

/* The pages that came since it was last asked, as "4-11 20". */
static const char *fresh_pages(struct world *w, unsigned *count)
{
    static char text[4000];
    size_t used = 0;
    uint32_t first = 0, run = 0;
    *count = 0;
    text[0] = '\0';
    for (uint32_t i = 0; i <= FILE_PAGES; i++) {
        struct page *page = i < FILE_PAGES ? find_get_page(&w->m, i) : NULL;
        bool fresh = page != NULL && !w->seen[i];
        if (page != NULL)
            put_page(w->cache, page);
        if (fresh) {
            w->seen[i] = true;
            first = run++ == 0 ? i : first;
            ++*count;
        } else if (run > 0) {
            used +=
                (size_t)snprintf(text + used, sizeof text - used, used > 0 ? " %u" : "%u", first);
            if (run > 1)
                used += (size_t)snprintf(text + used, sizeof text - used, "-%u", first + run - 1);
            run = 0;
        }
    }
    return text;
}

static void read_pages(struct world *w, uint32_t index, uint32_t nr)
{
    static char buf[300 << PAGE_SHIFT];
    ssize_t n =
        filemap_read(&w->m, &w->ra, (uint64_t)index << PAGE_SHIFT, buf, (size_t)nr << PAGE_SHIFT);
    cr_assert_eq(n, (ssize_t)nr << PAGE_SHIFT);
}

static int fault(struct world *w, uint32_t index, enum ra_how how)
{
    struct page *page;
    bool major;
    int err = filemap_fault_page(&w->m, &w->ra, index, how, &page, &major);
    if (err == 0)
        put_page(w->cache, page);
    return err;
}

/* ---- windows --------------------------------------------------------------------------------- */

struct step {
    uint32_t index, nr; /* nr 0: a page fault */
    const char *fresh;
};

static void check_steps(const char *spec, const struct step *steps, size_t n)
{
    struct world w;
    unsigned count;
    world_open(&w, spec);
    for (size_t i = 0; i < n; i++) {
        if (steps[i].nr > 0)
            read_pages(&w, steps[i].index, steps[i].nr);
        else
            cr_assert_eq(fault(&w, steps[i].index, RA_FAULT), 0);
        const char *fresh = fresh_pages(&w, &count);
        cr_expect_str_eq(fresh, steps[i].fresh, "%s, step %zu (%u,%u): \"%s\", not \"%s\"", spec, i,
                         steps[i].index, steps[i].nr, fresh, steps[i].fresh);
    }
    world_close(&w);
}
#define CHECK_STEPS(spec, ...)                              \
    check_steps(spec, (const struct step[]){ __VA_ARGS__ }, \
                sizeof((const struct step[]){ __VA_ARGS__ }) / sizeof(struct step))

Test(readahead, none_reads_what_is_asked_for)
{
    CHECK_STEPS("none", { 0, 1, "0" }, { 1, 1, "1" }, { 50, 3, "50-52" }, { 52, 2, "53" },
                { 9, 0, "9" });
}

Test(readahead, fixed_reads_the_same_window_on_and_on)
{
    CHECK_STEPS("fixed:8", { 10, 1, "10-17" }, { 11, 1, "" }, { 14, 1, "18-25" },
                { 22, 1, "26-33" }, { 100, 20, "100-127" }, { 500, 0, "500-507" },
                { 998, 1, "998-999" });
    CHECK_STEPS("fixed", { 10, 1, "10-41" });
}

Test(readahead, linux_ramps_up)
{
    CHECK_STEPS("linux", { 0, 1, "0-3" }, { 1, 1, "4-11" }, { 2, 1, "" }, { 4, 1, "12-27" },
                { 12, 1, "28-59" }, { 28, 1, "60-91" }, { 60, 1, "92-123" });
}

/* As Linux 6.18 does on ext4 (tests/ra_compare.c). */
Test(readahead, linux_ends_windows_at_large_folios)
{
    CHECK_STEPS("linux:large_folios", { 0, 1, "0-3" }, { 1, 1, "4-11" }, { 4, 1, "12-15" },
                { 12, 1, "16-23" }, { 16, 1, "24-31" }, { 24, 1, "32-47" }, { 40, 1, "48-63" });
}

/* Beside another stream, the end of this one is counted from the inside of a folio. */
Test(readahead, linux_skips_a_page_where_a_stream_of_large_folios_ends)
{
    CHECK_STEPS("linux:large_folios", { 0, 1, "0-3" }, { 1, 1, "4-11" }, { 500, 4, "500-503" },
                { 504, 4, "504-511" }, { 4, 1, "13-31" }, { 12, 1, "12" }, { 16, 1, "" });
}

Test(readahead, linux_reads_random_pages_alone)
{
    CHECK_STEPS("linux", { 700, 1, "700" }, { 300, 2, "300-301" }, { 900, 1, "900" });
}

Test(readahead, linux_takes_the_next_page_for_a_stream)
{
    CHECK_STEPS("linux", { 700, 1, "700" }, { 701, 1, "701-704" }, { 702, 1, "705-711" });
}

Test(readahead, linux_finds_interleaved_streams_by_their_history)
{
    CHECK_STEPS("linux", { 0, 1, "0-3" }, { 500, 1, "500" }, { 1, 1, "4-11" }, { 501, 1, "501" },
                { 4, 1, "12-27" }, { 502, 1, "502-504" }, { 12, 1, "28-59" });
}

Test(readahead, linux_widens_the_window_for_a_large_request)
{
    CHECK_STEPS("linux", { 100, 64, "100-163" }, { 0, 64, "0-99" }, { 400, 300, "400-999" });
}

Test(readahead, linux_reads_around_a_page_fault)
{
    CHECK_STEPS("linux", { 500, 0, "484-515" }, { 501, 0, "" }, { 508, 0, "516-547" },
                { 3, 0, "0-31" }, { 990, 0, "974-999" });
}

Test(readahead, stride_follows_a_stride)
{
    CHECK_STEPS("stride", { 0, 1, "0" }, { 10, 1, "10" }, { 20, 1, "20" },
                { 30, 1, "30 40 50 60 70 80 90" }, { 40, 1, "" },
                { 50, 1, "100 110 120 130 140 150" });
    CHECK_STEPS("stride", { 900, 2, "900-901" }, { 880, 2, "880-881" }, { 860, 2, "860-861" },
                { 840, 2, "720-721 740-741 760-761 780-781 800-801 820-821 840-841" });
}

Test(readahead, stride_follows_interleaved_strides)
{
    CHECK_STEPS("stride", { 0, 1, "0" }, { 500, 1, "500" }, { 7, 1, "7" }, { 511, 1, "511" },
                { 14, 1, "14" }, { 522, 1, "522" }, { 21, 1, "21 28 35 42 49 56 63" },
                { 533, 1, "533 544 555 566 577 588 599" });
}

Test(readahead, stride_takes_random_requests_for_random)
{
    CHECK_STEPS("stride", { 3, 1, "3" }, { 700, 1, "700" }, { 31, 1, "31" }, { 512, 1, "512" },
                { 90, 1, "90" }, { 777, 1, "777" });
}

Test(readahead, leap_follows_the_majority)
{
    CHECK_STEPS("leap", { 0, 1, "0" }, { 5, 1, "5 10" }, { 10, 1, "15 20" }, { 15, 1, "" },
                { 20, 1, "25 30 35 40" }, { 999, 1, "999" }, { 25, 1, "" }, { 30, 1, "" },
                { 35, 1, "" }, { 40, 1, "45 50 55 60 65 70 75 80" });
}

Test(readahead, leap_grows_with_its_hits)
{
    struct world w;
    unsigned most = 0, count;
    world_open(&w, "leap");
    for (uint32_t i = 0; i < 300; i++) {
        read_pages(&w, i, 1);
        (void)fresh_pages(&w, &count);
        most = count > most ? count : most;
    }
    cr_expect_eq(most, RA_DEFAULT_PAGES);
    world_close(&w);
}

/* A sequential read, a page at a time: each window at least twice the one before, until the most. */
static void check_doubling(const char *spec, uint32_t start, enum ra_advice advice, unsigned most)
{
    struct world w;
    unsigned count, before = 0;
    world_open(&w, spec);
    file_ra_advise(&w.ra, advice);
    read_pages(&w, start, 1);
    for (uint32_t i = start + 1; i < start + 400; i++) {
        read_pages(&w, i, 1);
        (void)fresh_pages(&w, &count);
        if (count == 0)
            continue;
        cr_expect(count >= 2 * before || count == most, "%s: %u pages after %u", spec, count,
                  before);
        cr_expect_leq(count, most);
        before = before == 0 ? 1 : count; /* (the first is that of a page or two) */
    }
    cr_expect_eq(before, most);
    world_close(&w);
}

Test(readahead, a_sequential_read_doubles_its_window_until_the_most)
{
    check_doubling("linux", 0, RA_ADVICE_NORMAL, RA_DEFAULT_PAGES);
    check_doubling("linux", 0, RA_ADVICE_SEQUENTIAL, 2 * RA_DEFAULT_PAGES);
    check_doubling("leap", 0, RA_ADVICE_NORMAL, RA_DEFAULT_PAGES);
}

/* ---- one file's state ------------------------------------------------------------------------ */

Test(readahead, random_advice_ends_it_and_normal_advice_restores_it)
{
    struct world w;
    unsigned count;
    world_open(&w, "linux");
    file_ra_advise(&w.ra, RA_ADVICE_RANDOM);
    read_pages(&w, 0, 1);
    cr_expect_str_eq(fresh_pages(&w, &count), "0");
    file_ra_advise(&w.ra, RA_ADVICE_NORMAL);
    read_pages(&w, 1, 1);
    cr_expect_str_eq(fresh_pages(&w, &count), "1-4");
    world_close(&w);
}

Test(readahead, an_error_shrinks_the_window_to_a_quarter)
{
    struct world w;
    unsigned count;
    world_open(&w, "linux");
    w.dev.bad = 500;
    cr_expect_eq(fault(&w, 500, RA_FAULT), -EIO);
    cr_expect_eq(atomic_load(&w.ra.ra_pages), RA_DEFAULT_PAGES / 4);
    (void)fresh_pages(&w, &count);
    cr_expect_eq(fault(&w, 100, RA_FAULT), 0);
    cr_expect_str_eq(fresh_pages(&w, &count), "96-103");
    file_ra_advise(&w.ra, RA_ADVICE_NORMAL);
    cr_expect_eq(atomic_load(&w.ra.ra_pages), RA_DEFAULT_PAGES);
    world_close(&w);
}

Test(readahead, the_policy_changes_under_an_open_file)
{
    struct world w;
    unsigned count;
    world_open(&w, "linux");
    read_pages(&w, 0, 1);
    cr_expect_str_eq(fresh_pages(&w, &count), "0-3");
    file_ra_set(&w.ra, policy_of("fixed:5"), RA_DEFAULT_PAGES);
    read_pages(&w, 100, 1);
    cr_expect_str_eq(fresh_pages(&w, &count), "100-104");
    file_ra_set(&w.ra, NULL, RA_DEFAULT_PAGES);
    read_pages(&w, 200, 2);
    cr_expect_str_eq(fresh_pages(&w, &count), "200-201");
    world_close(&w);
}

Test(readahead, the_largest_window_changes_under_an_open_file)
{
    struct world w;
    unsigned count;
    const struct ra_policy *fixed = policy_of("fixed");
    world_open(&w, "fixed");
    file_ra_set(&w.ra, fixed, 8);
    read_pages(&w, 100, 1);
    cr_expect_str_eq(fresh_pages(&w, &count), "100-107");
    file_ra_advise(&w.ra, RA_ADVICE_SEQUENTIAL);
    file_ra_set(&w.ra, fixed, 4); /* the advice still doubles it */
    read_pages(&w, 200, 1);
    cr_expect_str_eq(fresh_pages(&w, &count), "200-207");
    file_ra_advise(&w.ra, RA_ADVICE_NORMAL);
    read_pages(&w, 300, 1);
    cr_expect_str_eq(fresh_pages(&w, &count), "300-303");
    world_close(&w);
}

Test(readahead, the_same_policy_set_again_goes_on)
{
    struct world w;
    unsigned count;
    world_open(&w, "linux");
    read_pages(&w, 0, 1);
    file_ra_set(&w.ra, policy_of("linux"), RA_DEFAULT_PAGES);
    fresh_pages(&w, &count);
    read_pages(&w, 1, 1);
    cr_expect_str_eq(fresh_pages(&w, &count), "4-11");
    world_close(&w);
}

static void scatter(void *state, const struct ra_access *a, struct ra_window *out)
{
    (void)state;
    if (a->event == RA_MISS)
        *out = (struct ra_window){
            .start = a->index + 10, .size = 8, .async_size = 4, .stride = 5, .block = 2
        };
    else if (a->event == RA_MARK)
        *out = (struct ra_window){ .start = 900, .size = 200 };
}

Test(readahead, a_window_may_be_scattered)
{
    static const struct ra_policy policy = { .abi = RA_ABI, .name = "scatter", .access = scatter };
    struct world w;
    unsigned count;
    world_open(&w, "none");
    file_ra_set(&w.ra, &policy, RA_DEFAULT_PAGES);
    read_pages(&w, 100, 3);
    cr_expect_str_eq(fresh_pages(&w, &count), "100-102 110-111 115-116 120-121 125-126");
    read_pages(&w, 110, 2);
    cr_expect_str_eq(fresh_pages(&w, &count), "");
    read_pages(&w, 120, 1);
    cr_expect_str_eq(fresh_pages(&w, &count), "900-999");
    world_close(&w);
}

/* ---- names and shared objects ---------------------------------------------------------------- */

static void expect_refusal(const char *spec, const char *part)
{
    char error[RA_ERROR_BYTES] = "";
    const struct ra_policy *policy = NULL;
    cr_expect_eq(ra_policy_open(spec, &policy, error, sizeof error), -EINVAL, "%s", spec);
    cr_expect_null(policy);
    cr_expect(strstr(error, part) != NULL, "%s: \"%s\" is not in \"%s\"", spec, part, error);
    cr_expect_null(strchr(error, '\n'));
}

Test(readahead, names_are_found_and_unknown_ones_refused)
{
    cr_expect_eq(policy_of("linux"), &ra_linux);
    cr_expect_eq(policy_of("none"), &ra_none);
    cr_expect_eq(policy_of("stride"), &ra_stride);
    cr_expect_eq(policy_of("fixed:9"), policy_of("fixed:9"));
    cr_expect_neq(policy_of("fixed:9"), policy_of("fixed:10"));
    expect_refusal("psychic", "linux, none, fixed, stride, leap");
    expect_refusal("", "linux, none");
    expect_refusal("fixed:", "fixed");
    expect_refusal("fixed:0", "from 1 to 256");
    expect_refusal("fixed:9x", "from 1 to 256");
    cr_expect_neq(policy_of("linux:large_folios"), &ra_linux);
    expect_refusal("linux:9", "large_folios");
    expect_refusal("leap:9", "no arguments");
    expect_refusal("./nowhere.so", "nowhere.so");
    expect_refusal("./nowhere.so:8", "nowhere.so");
}

/* Compile text with the project's header. Returns false: there is no compiler. */
static bool compile(const char *dir, const char *name, const char *text)
{
    char path[300], command[2000], root[1000];
    snprintf(root, sizeof root, "%s", __FILE__);
    for (int i = 0; i < 2; i++) {
        char *slash = strrchr(root, '/');
        if (slash == NULL)
            return false;
        *slash = '\0';
    }
    snprintf(path, sizeof path, "%s/%s.c", dir, name);
    FILE *f = fopen(path, "w");
    cr_assert_not_null(f);
    fprintf(f, "#include \"cache/readahead.h\"\n%s\n", text);
    fclose(f);
    snprintf(command, sizeof command, "cc -shared -fPIC -I '%s' -o %s/%s.so %s", root, dir, name,
             path);
    return system("command -v cc >/dev/null") == 0 && system(command) == 0;
}

static const char twice[] =
    "static int init(void *config, const char *args, char *error, size_t n)\n"
    "{ (void)error; (void)n; *(char *)config = args[0]; return args[0] == 'x' ? -22 : 0; }\n"
    "static void access(void *state, const struct ra_access *a, struct ra_window *out)\n"
    "{ ++*(int *)state; out->start = a->index;\n"
    "  out->size = *(const char *)a->config == 't' ? 3 * a->nr : 2 * a->nr; }\n"
    "const struct ra_policy folio_ra_policy = { .abi = RA_ABI, .name = \"twice\",\n"
    "                                           .access = access, .init = init };";

static void check_loaded(const char *dir)
{
    char spec[100];
    struct world w;
    unsigned count;
    snprintf(spec, sizeof spec, "%s/twice.so", dir);
    world_open(&w, spec);
    read_pages(&w, 100, 4);
    cr_expect_str_eq(fresh_pages(&w, &count), "100-107");
    strcat(spec, ":thrice");
    file_ra_set(&w.ra, policy_of(spec), RA_DEFAULT_PAGES);
    read_pages(&w, 200, 4);
    cr_expect_str_eq(fresh_pages(&w, &count), "200-211");
    snprintf(spec, sizeof spec, "%s/twice.so:x", dir);
    expect_refusal(spec, "Invalid argument");
    world_close(&w);
}

Test(readahead, a_read_of_more_than_any_file_has_asks_for_what_is_behind_its_start)
{
    static char all[FILE_PAGES << PAGE_SHIFT];
    struct world w;
    world_open(&w, "stride");
    for (uint64_t i = 0; i < 5; i++) /* a stream */
        cr_assert_eq(filemap_read(&w.m, &w.ra, (i * 8 + 1) << PAGE_SHIFT, all, PAGE_SIZE),
                     PAGE_SIZE);
    uint64_t at = 41 << PAGE_SHIFT;
    cr_expect_eq(filemap_read(&w.m, &w.ra, at, all, SIZE_MAX), (ssize_t)(sizeof all - at));
    world_close(&w);
}

static void remove_all(const char *dir)
{
    static const char *const names[] = { "twice", "empty", "old" };
    char path[300];
    for (size_t i = 0; i < 6; i++) {
        snprintf(path, sizeof path, "%s/%s.%s", dir, names[i / 2], i % 2 ? "so" : "c");
        unlink(path);
    }
    rmdir(dir);
}

Test(readahead, a_policy_is_loaded_from_a_shared_object)
{
    char dir[] = "/tmp/folio-ra.XXXXXX", spec[100];
    cr_assert_not_null(mkdtemp(dir));
    bool able = compile(dir, "twice", twice) && compile(dir, "empty", "int nothing;") &&
                compile(dir, "old", "const struct ra_policy folio_ra_policy = { .abi = 4711 };");
    if (able) {
        check_loaded(dir);
        snprintf(spec, sizeof spec, "%s/empty.so", dir);
        expect_refusal(spec, "no symbol folio_ra_policy");
        snprintf(spec, sizeof spec, "%s/old.so", dir);
        expect_refusal(spec, "version 4711");
        snprintf(spec, sizeof spec, "%s/old.c", dir);
        expect_refusal(spec, "old.c");
    }
    remove_all(dir);
    if (!able)
        cr_skip("no C compiler (cc) or no path to the sources");
}
