/* options.h: the command line of foliofs, and how its memory budget is shared out. */
#ifndef FOLIO_FS_OPTIONS_H
#define FOLIO_FS_OPTIONS_H

#include <stdio.h>

#include "cache/filemap.h"
#include "cache/readahead.h"
#include "store/store.h"

enum cache_mode {
    CACHE_KERNEL, /* the kernel caches file data in front of us, writes included */
    CACHE_DIRECT, /* every read and write reaches our cache */
};

struct options {
    char *volume, *mountpoint; /* as given */
    bool foreground, debug, help, version;
    enum cache_mode cache;
    bool attach;                         /* given, or implied by CACHE_DIRECT */
    uint32_t fault_around, store_around; /* pages */
    bool read_only;
    bool noatime, strictatime, nodiratime;
    bool inject;
    uint32_t commit_s;
    uint64_t memory, cache_size; /* bytes; cache_size 0: half of memory */
    bool memory_given;
    const struct ra_policy *readahead;
    const char *reclaim; /* a constant; NULL: the default */
    uint32_t read_ahead_kb;
    uint32_t dirty_ratio, dirty_background_ratio; /* per cent */
    uint32_t dirty_expire_s, dirty_writeback_s;
    enum writeback_error on_error;
    uint32_t threads;
    bool io_uring;
    uint32_t spin_us; /* see fuse_wire.h */
    bool fsname_given, subtype_given;
    char *fuse_options; /* what libfuse gets, comma-separated and escaped; NULL: nothing yet */
};

/* Read the command line; anything wrong is said in error and nothing was changed.
 * Returns 0, -EINVAL, -ENOMEM. Free with options_free in either case. */
int options_parse(int argc, char **argv, struct options *o, struct store_error *error);
void options_free(struct options *o);
/* Add "name" or "name=value" to what libfuse gets.   Returns 0 or -ENOMEM. */
int options_add_fuse(struct options *o, const char *name, const char *value);
void options_print_help(FILE *to);

/* Where memory= goes, bytes. The sum of the parts is the whole. */
struct budget {
    uint64_t memory;
    uint64_t pages;        /* file data: cache_size */
    uint64_t page_structs; /* what describes the pages, and their trees */
    uint64_t transactions; /* records and blocks not yet durable */
    uint64_t requests;     /* FUSE buffers, one per thread */
    uint64_t inodes;       /* the rest */
    uint64_t max_inodes;   /* how many fit there */
    uint32_t max_read;     /* the largest READ request, bytes */
    uint64_t held;         /* requests that wait for the kernel: beside memory, at most */
};

/* Errors: -EINVAL, with the smallest memory= that would do in error. */
int budget_split(const struct options *o, struct budget *out, struct store_error *error);
void budget_print(const struct budget *b, FILE *to);

#endif
