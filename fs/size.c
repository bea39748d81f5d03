#include "fs/size.h"

#include <ctype.h>
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>

static const char units[] = "KMGT";

int parse_size(const char *text, uint64_t *out)
{
    uint64_t n = 0;
    const char *p = text;
    if (!isdigit((unsigned char)*p))
        return -EINVAL;
    for (; isdigit((unsigned char)*p); p++) {
        if (__builtin_mul_overflow(n, 10u, &n) ||
            __builtin_add_overflow(n, (uint64_t)(*p - '0'), &n))
            return -ERANGE;
    }
    if (*p != '\0') {
        const char *unit = strchr(units, toupper((unsigned char)*p));
        if (unit == NULL || (p[1] != '\0' && strcasecmp(p + 1, "iB") != 0))
            return -EINVAL;
        if (__builtin_mul_overflow(n, (uint64_t)1 << (10 * (unit - units + 1)), &n))
            return -ERANGE;
    }
    *out = n;
    return 0;
}

const char *format_size(uint64_t bytes, char buf[SIZE_TEXT_BYTES])
{
    unsigned power = 0;
    while (bytes > 0 && power < sizeof units - 1 && bytes % 1024 == 0) {
        bytes /= 1024;
        power++;
    }
    if (power == 0)
        (void)snprintf(buf, SIZE_TEXT_BYTES, "%" PRIu64 " bytes", bytes);
    else
        (void)snprintf(buf, SIZE_TEXT_BYTES, "%" PRIu64 " %ciB", bytes, units[power - 1]);
    return buf;
}
