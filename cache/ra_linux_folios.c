/* ra_linux_folios.c: the layout of folios in a window, and how Linux 6.18 counts cached pages.
 *
 * page_cache_prev_miss() and page_cache_next_miss() count an index and move through the tree (an
 * XArray) at the same time. When they begin inside a folio, the tree puts them at the folio's first
 * slot while the index stays what it was; from then on they look at one page and count another:
 *
 *        folio              hole
 *     |8  9 10 11|12 13 14  15          next_miss(10): looks at 8, counts 10; ...
 *      ^     ^counted                   finds the hole at 15, and answers 17
 *      looked at
 *
 * Only where a node ends, every 64 slots, the index says where to go on: forward that puts things
 * right, backward it may jump back by a node. Folios of 64 pages and more are slots of the next
 * higher node, where moving goes by nodes of pages. The windows that follow from such an answer are
 * part of what Linux does, so they are ours as well.
 * (Across 4,096 pages, where the next higher node ends, Linux goes astray further than we do.) */
#include "cache/ra_linux_folios.h"

#define NODE_PAGES 64u /* XA_CHUNK_SIZE */

/* ---- layout ---------------------------------------------------------------------------------- */

static bool is_cached(const struct ra_access *a, uint32_t index)
{
    return a->next_miss(a->mapping, index, 1) != index;
}

static bool any_cached(const struct ra_access *a, uint64_t index, uint32_t nr)
{
    for (uint32_t i = 0; i < nr; i++)
        if (is_cached(a, (uint32_t)index + i))
            return true;
    return false;
}

void ra_linux_set_folios(const struct ra_access *a, uint32_t order, struct ra_window *w)
{
    uint64_t end = (uint64_t)w->start + w->size, mark = end - w->async_size;
    uint64_t index = w->start, at = UINT64_MAX;
    if (end > a->file_pages)
        end = a->file_pages;
    while (index < end) {
        uint32_t folio = ra_folio_order(index, order, end), nr = 1u << folio;
        if (any_cached(a, index, nr))
            break; /* single pages from here */
        if (mark >> folio == index >> folio)
            at = index;
        index += nr;
    }
    if (index < end && at == UINT64_MAX && w->async_size <= end - index)
        at = end - w->async_size;
    w->in_folios = (uint32_t)(index - w->start);
    w->order = order;
    w->size = end > w->start ? (uint32_t)(end - w->start) : 0;
    w->async_size = at < end ? (uint32_t)(end - at) : 0;
}

/* ---- counting -------------------------------------------------------------------------------- */

struct walk {
    const struct ra_access *a;
    uint64_t counted; /* the index as Linux has it; UINT64_MAX: before the first page */
    uint32_t at;      /* the page that is looked at */
    bool high;        /* at is in a folio that is a slot of the next higher node */
    bool outside;     /* before the first node */
};

/* In another node the counted index leads, within it. */
static void enter_node(struct walk *w, uint32_t node)
{
    uint32_t nr;
    w->at = node * NODE_PAGES + (uint32_t)(w->counted % NODE_PAGES);
    w->a->folio(w->a->mapping, w->at, &nr);
    w->high = nr >= NODE_PAGES;
}

static struct walk walk_from(const struct ra_access *a, uint32_t index)
{
    struct walk w = { .a = a, .counted = index };
    uint32_t nr, first = a->folio(a->mapping, index, &nr);
    w.at = first;
    if (nr >= NODE_PAGES)
        enter_node(&w, first / NODE_PAGES);
    return w;
}

static void walk_forward(struct walk *w)
{
    uint32_t node = w->at / NODE_PAGES;
    w->counted++;
    if (w->high)
        enter_node(w, w->counted / NODE_PAGES != node ? node + 1 : node);
    else if (w->at % NODE_PAGES != NODE_PAGES - 1)
        w->at++;
    else
        enter_node(w, node + 1);
}

static void walk_backward(struct walk *w)
{
    uint32_t node = w->at / NODE_PAGES;
    w->counted--;
    if (!w->high && w->at % NODE_PAGES != 0) {
        w->at--;
        return;
    }
    bool stays = w->high ? w->counted / NODE_PAGES == node : w->counted % NODE_PAGES == 0;
    if (stays && !w->high)
        return;
    if (!stays && node == 0)
        w->outside = true;
    else
        enter_node(w, stays ? node : node - 1);
}

uint32_t ra_linux_history(const struct ra_access *a, uint32_t max)
{
    struct walk w = walk_from(a, a->index - 1);
    for (uint32_t i = 1; i < max && !w.outside && is_cached(a, w.at); i++)
        walk_backward(&w);
    return a->index - 1 - (uint32_t)w.counted;
}

uint32_t ra_linux_next_miss(const struct ra_access *a, uint32_t index, uint32_t max)
{
    struct walk w = walk_from(a, index);
    uint32_t i = 0;
    while (i < max && is_cached(a, w.at)) {
        walk_forward(&w);
        i++;
    }
    return index + i;
}
