/* bytes.h: numbers as bytes, at any alignment. */
#ifndef FOLIO_STORE_BYTES_H
#define FOLIO_STORE_BYTES_H

#include <endian.h>
#include <stdint.h>
#include <string.h>

static inline void put_be32(uint8_t *p, uint32_t n)
{
    n = htobe32(n);
    memcpy(p, &n, sizeof n);
}

static inline void put_be64(uint8_t *p, uint64_t n)
{
    n = htobe64(n);
    memcpy(p, &n, sizeof n);
}

static inline void put_le32(uint8_t *p, uint32_t n)
{
    n = htole32(n);
    memcpy(p, &n, sizeof n);
}

static inline void put_le64(uint8_t *p, uint64_t n)
{
    n = htole64(n);
    memcpy(p, &n, sizeof n);
}

static inline uint32_t get_be32(const uint8_t *p)
{
    uint32_t n;
    memcpy(&n, p, sizeof n);
    return be32toh(n);
}

static inline uint64_t get_be64(const uint8_t *p)
{
    uint64_t n;
    memcpy(&n, p, sizeof n);
    return be64toh(n);
}

static inline uint32_t get_le32(const uint8_t *p)
{
    uint32_t n;
    memcpy(&n, p, sizeof n);
    return le32toh(n);
}

static inline uint64_t get_le64(const uint8_t *p)
{
    uint64_t n;
    memcpy(&n, p, sizeof n);
    return le64toh(n);
}

#endif
