/* size.h: sizes as people write them. */
#ifndef FOLIO_FS_SIZE_H
#define FOLIO_FS_SIZE_H

#include <stddef.h>
#include <stdint.h>

/* A number of bytes: digits, then nothing or one of K M G T (also KiB ... or k ...), powers of
 * 1,024.   Returns 0; -EINVAL: not such a thing; -ERANGE: more than 64 bits. */
int parse_size(const char *text, uint64_t *out);

#define SIZE_TEXT_BYTES 32u

/* Bytes as the largest unit that divides them: "1 TiB", "1536 MiB", "1000 bytes". */
const char *format_size(uint64_t bytes, char buf[SIZE_TEXT_BYTES]);

#endif
