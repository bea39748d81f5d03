/* ra_fixed.c: policies that look at nothing: none at all, and always the same window. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

#include "cache/readahead.h"

static void none_access(void *state, const struct ra_access *a, struct ra_window *out)
{
    (void)state;
    (void)a;
    (void)out;
}

const struct ra_policy ra_none = { .abi = RA_ABI, .name = "none", .access = none_access };

/* fixed[:PAGES]: windows of PAGES pages, or as large as the file's may be. The mark is in the middle,
 * so a sequential reader finds the next window read when it gets there. */
struct fixed_config {
    uint32_t pages; /* 0: as large as may be */
};

static int fixed_init(void *config, const char *args, char *error, size_t n)
{
    struct fixed_config *c = config;
    char *end;
    unsigned long pages = strtoul(args, &end, 10);
    if (args[0] < '0' || args[0] > '9' || *end != '\0' || pages < 1 || pages > RA_MOST_PAGES) {
        snprintf(error, n, "fixed:%.64s: not a number of pages from 1 to %u", args, RA_MOST_PAGES);
        return -EINVAL;
    }
    c->pages = (uint32_t)pages;
    return 0;
}

static void fixed_access(void *state, const struct ra_access *a, struct ra_window *out)
{
    const struct fixed_config *c = a->config;
    uint32_t pages = c->pages != 0 ? c->pages : a->most;
    (void)state;
    if (pages == 0 || a->random || a->how == RA_FAULT_RANDOM)
        return;
    out->start = a->index;
    out->size = pages;
    out->async_size = (pages + 1) / 2;
    if (a->event == RA_MARK)
        out->start += out->async_size; /* where the marked window ends */
    else if (a->nr > pages && a->nr <= RA_MOST_PAGES)
        out->size = a->nr; /* one read for what is asked for */
}

const struct ra_policy ra_fixed = {
    .abi = RA_ABI, .name = "fixed", .access = fixed_access, .init = fixed_init
};
