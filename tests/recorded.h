/* recorded.h: what record_writes.c writes down of a volume's disk, for power_cut.c. */
#ifndef FOLIO_TESTS_RECORDED_H
#define FOLIO_TESTS_RECORDED_H

#include <stdint.h>

enum recorded_kind {
    RECORDED_WRITE,
    RECORDED_FLUSH, /* fdatasync or fsync */
    RECORDED_GROW,  /* the file reaches to offset at least */
    RECORDED_CUT,   /* it ends at offset */
    RECORDED_ALIEN, /* something whose outcome is not known here */
};

/* A write's bytes follow it. In the order in which they ended. */
struct recorded {
    uint64_t begin, end; /* CLOCK_MONOTONIC, ns: before it was asked for, and after it was done */
    uint64_t offset, len;
    uint32_t kind;
    uint32_t through; /* a write that is durable when it is done: O_DSYNC */
};

#endif
