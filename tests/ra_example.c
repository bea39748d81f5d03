/* ra_example.c: a readahead policy of one's own, complete: windows that double while somebody goes on
 * reading where the last one ended, and begin small again when he does not.
 *
 *     cc -shared -fPIC -I FOLIOFS -o example.so ra_example.c
 *     foliofs -o readahead=./example.so:4,cache=direct VOLUME MOUNTPOINT
 *     foliofsctl MOUNTPOINT set readahead=./example.so:8          (other arguments, while mounted)
 *     foliofsctl MOUNTPOINT set readahead=./example.so:8 FILE     (for one file)
 *
 * cache/readahead.h says what each member means. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

#include "cache/readahead.h"

struct config { /* what init() makes of the arguments; the same for all files */
    uint32_t first;
};
struct state { /* what is remembered of an open file; zeros at first */
    uint32_t next, size;
};
_Static_assert(sizeof(struct config) <= RA_CONFIG_BYTES, "fits");
_Static_assert(sizeof(struct state) <= RA_STATE_BYTES, "fits");

static int init(void *config, const char *args, char *error, size_t n)
{
    struct config *c = config;
    int first = atoi(args);
    if (first < 1 || first > (int)RA_MOST_PAGES) {
        snprintf(error, n, "example wants the pages of the first window, not \"%.64s\"", args);
        return -EINVAL;
    }
    c->first = (uint32_t)first;
    return 0;
}

static void on_access(void *state, const struct ra_access *a, struct ra_window *out)
{
    const struct config *c = a->config;
    struct state *s = state;
    if (a->event == RA_HIT || a->most == 0)
        return;
    bool goes_on = s->size > 0 && (a->event == RA_MARK || a->index == s->next);
    s->size = goes_on ? 2 * s->size : c->first > 0 ? c->first : 4;
    if (s->size > a->most)
        s->size = a->most;
    out->start = goes_on ? s->next : a->index;
    out->size = s->size;
    out->async_size = s->size / 2; /* using the page in the middle reads the next window */
    s->next = out->start + out->size;
}

const struct ra_policy folio_ra_policy = {
    .abi = RA_ABI, .name = "example", .access = on_access, .init = init
};
