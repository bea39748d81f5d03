/* ra_linux_folios.h: what large folios change in Linux's readahead, for ra_linux.c. */
#ifndef FOLIO_CACHE_RA_LINUX_FOLIOS_H
#define FOLIO_CACHE_RA_LINUX_FOLIOS_H

#include "cache/readahead.h"

/* Cut the window at the end of the file, fill it with folios of up to 1 << order pages, and put its
 * mark where it comes then (Linux: page_cache_ra_order). */
void ra_linux_set_folios(const struct ra_access *a, uint32_t order, struct ra_window *w);

/* How many pages just before a->index count as cached, below max; a->index: all of them. */
uint32_t ra_linux_history(const struct ra_access *a, uint32_t max);
/* The first page from index on, which is cached or not, that counts as not cached; index + max: none
 * of the max pages. */
uint32_t ra_linux_next_miss(const struct ra_access *a, uint32_t index, uint32_t max);

#endif
