/* check.c: the invariants of page.h, and what shows in a page of memory.h's, verified page by page. For a quiet
 * mapping. */
#include "cache/memfd.h"
#include "cache/reclaim.h"

#define CHECK(condition)     \
    do {                     \
        if (!(condition))    \
            return __LINE__; \
    } while (0)

static int page_check(struct address_space *m, struct page *page, uint32_t index)
{
    CHECK(atomic_load(&page->mapping) == m);                           /* I1 */
    CHECK(atomic_load(&page->index) == index);                         /* I1 */
    CHECK(!page_test(page, PG_dirty) || page_test(page, PG_uptodate)); /* I2 */
    CHECK(!page_test(page, PG_mkwrite) || page_test(page, PG_dirty));  /* M1 */
    CHECK(!page_test(page, PG_ahead) || page_test(page, PG_dirty));    /* M3 */
    CHECK(!page_test(page, PG_ahead) || page_holds_slot(m, page));     /* M3 */
    CHECK(radix_tree_tag_get(&m->pages, index, RADIX_TAG_DIRTY) ==
          page_test(page, PG_dirty)); /* I3 */
    CHECK(radix_tree_tag_get(&m->pages, index, RADIX_TAG_WRITEBACK) ==
          page_test(page, PG_writeback));                                 /* I3 */
    CHECK(!(page_test(page, PG_writeback) && page_test(page, PG_dirty))); /* I4 */
    CHECK(atomic_load(&page->refcount) >= 1);                             /* I5 */
    CHECK(page_test(page, PG_lru));
    CHECK(memfd_check(m, page)); /* F1, F2 */
    return 0;
}

int mapping_check(struct address_space *m)
{
    void *items[64];
    uint64_t indices[64];
    uint64_t next = 0;
    uint32_t pages = 0, dirty = 0, shadows = 0;
    int line = radix_tree_check(&m->pages);
    if (line != 0)
        return line;
    while (next <= UINT32_MAX) {
        unsigned n = radix_tree_gang_lookup(&m->pages, items, indices, next, UINT32_MAX, 64);
        if (n == 0)
            break;
        for (unsigned i = 0; i < n; i++) {
            if (radix_is_value(items[i])) {
                CHECK(workingset_knows(m, (uint32_t)indices[i], items[i]));
                shadows++;
                continue;
            }
            line = page_check(m, items[i], (uint32_t)indices[i]);
            if (line != 0)
                return line;
            pages++;
            dirty += page_test(items[i], PG_dirty);
        }
        next = indices[n - 1] + 1;
    }
    CHECK(pages == atomic_load(&m->nrpages));
    CHECK(shadows == m->nrshadows);
    CHECK(dirty == atomic_load(&m->nrdirty));
    CHECK(dirty == 0 || m->on_dirty);
    return 0;
}
