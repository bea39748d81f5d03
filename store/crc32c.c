#include "store/crc32c.h"

#include <assert.h>
#include <isa-l/crc.h>
#include <limits.h>

uint32_t crc32c(uint32_t crc, const void *data, size_t len)
{
    assert(len <= INT_MAX);
    /* ISA-L leaves both inversions to its caller; it takes a plain pointer but only reads. */
    return ~crc32_iscsi((unsigned char *)(uintptr_t)data, (int)len, ~crc);
}
