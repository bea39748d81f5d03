#include "tests/stress/timeline.h"

#include <stdlib.h>
#include <string.h>

#define FEW_PAGES   4u /* an operation on more pages is the file's business */
#define MOST_EVENTS (3 * PAGE_RING + FILE_RING)

static struct event *page_events(struct shared *sh, uint32_t slot, uint32_t page)
{
    return sh->events + ((size_t)slot * sh->nr_pages + page) * PAGE_RING;
}

static struct event *file_events(struct shared *sh, uint32_t slot)
{
    return sh->events + (size_t)sh->nr_files * sh->nr_pages * PAGE_RING + (size_t)slot * FILE_RING;
}

static struct ring *page_ring(struct shared *sh, uint32_t slot, uint32_t page)
{
    return &sh->rings[(size_t)slot * sh->nr_pages + page];
}

static uint32_t page_of(uint64_t cell, uint32_t byte)
{
    return (uint32_t)((cell * CELL_BYTES + byte) / PAGE_BYTES);
}

void timeline_begin(struct worker *w, enum op op, uint32_t slot, uint32_t first, uint32_t last)
{
    struct worker_state *s = w->state;
    atomic_store(&s->begin_ns, now_ns());
    atomic_store(&s->slot, slot);
    atomic_store(&s->first, first);
    atomic_store(&s->last, last);
    atomic_store(&s->op, op + 1);
}

void timeline_end(struct worker *w, int result, uint64_t arg, const char *detail)
{
    struct worker_state *s = w->state;
    struct shared *sh = w->sh;
    struct event e = { .begin_ns = atomic_load(&s->begin_ns),
                       .end_ns = now_ns(),
                       .arg = arg,
                       .first = atomic_load(&s->first),
                       .last = atomic_load(&s->last),
                       .result = result,
                       .worker = (uint16_t)w->id,
                       .op = (uint8_t)(atomic_load(&s->op) - 1),
                       .slot = (uint8_t)atomic_load(&s->slot),
                       .detail = detail };
    uint32_t first = page_of(e.first, 0), last = page_of(e.last, CELL_BYTES - 1);
    if (last - first < FEW_PAGES) {
        for (uint32_t p = first; p <= last && p < sh->nr_pages; p++) {
            uint32_t at = atomic_fetch_add(&page_ring(sh, e.slot, p)->next, 1) % PAGE_RING;
            page_events(sh, e.slot, p)[at] = e;
        }
    } else {
        uint32_t at = atomic_fetch_add(&sh->files[e.slot].ring.next, 1) % FILE_RING;
        file_events(sh, e.slot)[at] = e;
    }
    atomic_store(&s->op, 0);
    atomic_fetch_add(&s->done[e.op], 1);
    if (result != 0)
        atomic_fetch_add(&s->failed[e.op], 1);
}

/* ---- printing -------------------------------------------------------------------------------- */

static int by_begin(const void *a, const void *b)
{
    const struct event *x = a, *y = b;
    return x->begin_ns < y->begin_ns ? -1 : x->begin_ns > y->begin_ns;
}

static void print_event(FILE *to, const struct event *e, uint64_t now)
{
    fprintf(to, "  %12.6f ms  %9.6f ms  worker %-3u %-8s cells %u-%u",
            -(double)(int64_t)(now - e->begin_ns) / 1e6, (double)(e->end_ns - e->begin_ns) / 1e6,
            e->worker, op_names[e->op], e->first, e->last);
    if (e->arg != 0)
        fprintf(to, "  %llu", (unsigned long long)e->arg);
    if (e->detail != NULL)
        fprintf(to, "  %s", e->detail);
    if (e->result != 0)
        fprintf(to, "  failed: %s", strerror(-e->result));
    fputc('\n', to);
}

static unsigned collect(struct event *out, unsigned n, const struct event *ring, unsigned size)
{
    for (unsigned i = 0; i < size; i++) {
        bool there = ring[i].begin_ns == 0;
        for (unsigned j = 0; j < n && !there; j++)
            there = memcmp(&out[j], &ring[i], sizeof out[j]) == 0;
        if (!there)
            out[n++] = ring[i];
    }
    return n;
}

void timeline_print(FILE *to, struct shared *sh, uint32_t slot, uint32_t cell)
{
    static struct event events[MOST_EVENTS];
    uint64_t now = now_ns();
    unsigned n = 0;
    uint32_t first = page_of(cell, 0), last = page_of(cell, CELL_BYTES - 1);
    for (uint32_t p = first; p <= last && p < sh->nr_pages; p++)
        n = collect(events, n, page_events(sh, slot, p), PAGE_RING);
    n = collect(events, n, file_events(sh, slot), FILE_RING);
    qsort(events, n, sizeof events[0], by_begin);
    fprintf(to, "timeline of file %u, page %u%s (began, took, who, what):\n", slot, first,
            last > first ? " and the next" : "");
    for (unsigned i = 0; i < n; i++)
        print_event(to, &events[i], now);
    timeline_print_now(to, sh);
}

void timeline_print_now(FILE *to, struct shared *sh)
{
    uint64_t now = now_ns();
    fputs("under way:\n", to);
    for (uint32_t i = 0; i < sh->nr_workers; i++) {
        struct worker_state *s = &sh->workers[i];
        uint32_t op = atomic_load(&s->op);
        if (op != 0)
            fprintf(to, "  %12.6f ms  worker %-3u %-8s file %u cells %u-%u\n",
                    -(double)(int64_t)(now - atomic_load(&s->begin_ns)) / 1e6, i, op_names[op - 1],
                    atomic_load(&s->slot), atomic_load(&s->first), atomic_load(&s->last));
    }
}
