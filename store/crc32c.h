/* crc32c.h: CRC32C (Castagnoli, as in iSCSI and ext4), a piece at a time.
 *
 *     crc = crc32c(0, a, a_len);  crc = crc32c(crc, b, b_len);     the CRC of a followed by b
 */
#ifndef FOLIO_STORE_CRC32C_H
#define FOLIO_STORE_CRC32C_H

#include <stddef.h>
#include <stdint.h>

/* Continue crc, the CRC32C of what came before (0: nothing), over len bytes (at most INT_MAX). */
uint32_t crc32c(uint32_t crc, const void *data, size_t len);

#endif
