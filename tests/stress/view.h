/* view.h: a worker's descriptors and mappings, through whichever door, and touching memory that may
 * raise SIGBUS. */
#ifndef FOLIO_STRESS_VIEW_H
#define FOLIO_STRESS_VIEW_H

#include "tests/stress/stress.h"

/* The doors that the options ask for.   Exits with 77 when libfolio is absent. */
void doors_open(struct doors *d, const struct options *o);
/* Once per process. */
void view_catch_signals(void);

#define NAME_BYTES 32
void slot_name(char name[NAME_BYTES], uint32_t slot);

/* The descriptor of the file that has the slot's name now.   -errno.
 * Context: the file stays (its lock, or a race that holds it up). */
int view_fd(struct worker *w, uint32_t slot);
/* Where a cell is mapped; r draws the door and the window of a new mapping. store: it will be stored
 * to, which with both doors may leave only libfolio's.   NULL: errno. */
char *view_cell(struct worker *w, uint32_t slot, uint32_t cell, uint64_t r, bool store);
void view_unmap(struct worker *w, uint32_t slot);
/* mremap(2) of the slot's mapping, which there is, through its door: count pages from its first on, at
 * a new place, or, unless fixed, where it is if they fit.   0, or -errno and it stays as it was. */
int view_remap(struct worker *w, uint32_t slot, uint32_t count, bool fixed);
void view_close(struct worker *w, uint32_t slot);
void view_close_all(struct worker *w);

/* Word by word, each in one go.   0, or -EFAULT: SIGBUS (or SIGSEGV) was raised at some word. */
int memory_store(char *to, const uint64_t *words, unsigned nr);
int memory_load(const char *from, uint64_t *words, unsigned nr);

/* All bytes, or -errno; reading stops at the end of file and fills up with zeros. */
int write_all(int fd, const char *from, size_t len, uint64_t at);
int read_all(int fd, char *to, size_t len, uint64_t at);

#endif
