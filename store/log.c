/* log.c: records of the redo log, written and read. The bytes are described in FORMAT.md. */
#include "store/log.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>
#include <unistd.h>

#include "store/bytes.h"
#include "store/crc32c.h"
#include "store/txn.h"

#define RING_MOST      ((uint64_t)8 << 20)
#define RING_SHARE     64u /* of the capacity */
#define RING_LEAST     ((uint64_t)256 << 10)
#define RECORD_MOST    ((size_t)256 << 10) /* more than that is better committed */
#define RECORD_SHARE   4u                  /* of the ring, at most */
#define HEADER_BYTES   64u
#define MAGIC_BYTES    8u
#define CRC_AT         8u /* of the header behind it */
#define PAYLOAD_CRC_AT 12u
#define POSITION_AT    16u
#define LAST_AT        24u
#define LEN_AT         32u /* bytes of payload */
#define NR_AT          36u /* changes in it */
#define ESCAPED_AT     40u /* a bit for each block of the record, 64 at most */

static const uint8_t magic[MAGIC_BYTES] = { 'F', 'o', 'l', 'i', 'o', 'L', 'g', '1' };

enum change_type { PUT_RECORD = 1, DEL_RECORD = 2, PUT_BLOCK = 3, DEL_BLOCK = 4 };

static uint64_t round_up(uint64_t n, uint64_t to)
{
    return (n + to - 1) / to * to;
}

uint64_t log_bytes_for(uint64_t capacity)
{
    uint64_t bytes = capacity / RING_SHARE / LOG_BLOCK_BYTES * LOG_BLOCK_BYTES;
    if (bytes < RING_LEAST)
        return 0;
    return bytes < RING_MOST ? bytes : RING_MOST;
}

/* Whole blocks: a record is padded to them. */
static size_t record_most(uint64_t ring)
{
    uint64_t most = ring / RECORD_SHARE / LOG_BLOCK_BYTES * LOG_BLOCK_BYTES;
    return most < RECORD_MOST ? (size_t)most : RECORD_MOST;
}

struct log *log_new(const struct log_place *place, uint64_t tail)
{
    struct log *log = calloc(1, sizeof *log);
    if (log == NULL)
        return NULL;
    *log = (struct log){ .place = *place, .tail = tail, .head = tail, .last = LOG_NONE };
    log->record = malloc(record_most(place->bytes));
    if (log->record != NULL)
        return log;
    free(log);
    return NULL;
}

void log_free(struct log *log)
{
    if (log != NULL)
        free(log->record);
    free(log);
}

/* ---- writing --------------------------------------------------------------------------------- */

/* Where a record goes whose position would be head. */
static uint64_t place_record(uint64_t head, size_t len, uint64_t ring)
{
    return head % ring + len > ring ? round_up(head, ring) : head;
}

static size_t record_len(const struct txn *t)
{
    return (size_t)round_up(HEADER_BYTES + t->unlogged_bytes, LOG_BLOCK_BYTES);
}

bool log_has_room(const struct log *log, const struct txn *t)
{
    uint64_t ring = log->place.bytes;
    if (log->off || HEADER_BYTES + t->unlogged_bytes > record_most(ring))
        return false;
    size_t len = record_len(t);
    return place_record(log->head, len, ring) + len - log->tail <= ring;
}

bool log_half_full(const struct log *log)
{
    return log->head - log->tail > log->place.bytes / 2;
}

/* Those that updates write. */
static bool is_loggable(const uint8_t *p, uint16_t key_len)
{
    struct key key = { .len = key_len };
    if (key_len == 0 || key_len > KEY_MAX)
        return false;
    memcpy(key.bytes, p, key_len);
    return key_is_sane(&key) && key.bytes[0] != KEY_BLOCK && key.bytes[0] != KEY_SUPER &&
           key.bytes[0] != KEY_LOG && key.bytes[0] != KEY_LOG_TAIL;
}

static uint8_t *put_record(uint8_t *p, const struct txn_record *r)
{
    assert(is_loggable(r->bytes, r->key_len)); /* or the log would count as damaged */
    *p++ = r->deleted ? DEL_RECORD : PUT_RECORD;
    p[0] = (uint8_t)r->key_len;
    p[1] = (uint8_t)(r->key_len >> 8);
    put_le32(p + 2, r->value_len);
    memcpy(p + 6, r->bytes, (size_t)r->key_len + r->value_len);
    return p + 6 + r->key_len + r->value_len;
}

static uint8_t *put_block(uint8_t *p, const struct txn_block *b)
{
    *p++ = b->deleted ? DEL_BLOCK : PUT_BLOCK;
    put_le64(p, b->object);
    put_le32(p + 8, b->index);
    p += 12;
    if (b->deleted)
        return p;
    memcpy(p, b->data, BLOCK_SIZE);
    return p + BLOCK_SIZE;
}

size_t log_record_bytes(const struct txn_record *r)
{
    return 7 + (size_t)r->key_len + r->value_len;
}

size_t log_block_bytes(const struct txn_block *b)
{
    return 13 + (b->deleted ? 0 : BLOCK_SIZE);
}

/* What files contain must not pass for a header: a block of a record that begins as one has zeros there instead.
 * (jbd2 does it: JBD2_FLAG_ESCAPE.)   Returns which do. */
static uint64_t escape(uint8_t *record, size_t len)
{
    uint64_t escaped = 0;
    for (size_t at = LOG_BLOCK_BYTES; at < len; at += LOG_BLOCK_BYTES) {
        if (memcmp(record + at, magic, sizeof magic) != 0)
            continue;
        memset(record + at, 0, MAGIC_BYTES);
        escaped |= (uint64_t)1 << at / LOG_BLOCK_BYTES;
    }
    return escaped;
}

static void unescape(uint8_t *record, uint64_t escaped)
{
    for (unsigned i = 1; i < 64; i++)
        if (escaped >> i & 1)
            memcpy(record + (size_t)i * LOG_BLOCK_BYTES, magic, sizeof magic);
}

void log_take(struct log *log, struct txn *t)
{
    size_t len = record_len(t);
    uint8_t *start = log->record + HEADER_BYTES, *p = start;
    uint32_t nr = 0;
    struct txn_block *b;
    struct txn_record *r;
    while ((b = TAILQ_FIRST(&t->unlogged_blocks)) != NULL) {
        p = put_block(p, b);
        txn_logged_block(t, b);
        nr++;
    }
    while ((r = TAILQ_FIRST(&t->unlogged_records)) != NULL) {
        p = put_record(p, r);
        txn_logged_record(t, r);
        nr++;
    }
    log->position = place_record(log->head, len, log->place.bytes);
    log->len = len;
    memset(log->record, 0, HEADER_BYTES);
    memset(p, 0, (size_t)(log->record + len - p));
    memcpy(log->record, magic, sizeof magic);
    put_le64(log->record + POSITION_AT, log->position);
    put_le64(log->record + LAST_AT, log->last);
    put_le32(log->record + LEN_AT, (uint32_t)(p - start));
    put_le32(log->record + NR_AT, nr);
    log->last = log->position;
    log->head = log->position + len;
}

int log_write(struct log *log)
{
    uint8_t *header = log->record;
    put_le64(header + ESCAPED_AT, escape(header, log->len));
    put_le32(header + PAYLOAD_CRC_AT, crc32c(0, header + HEADER_BYTES, get_le32(header + LEN_AT)));
    put_le32(header + CRC_AT, crc32c(0, header + PAYLOAD_CRC_AT, HEADER_BYTES - PAYLOAD_CRC_AT));
    struct iovec iov = { .iov_base = log->record, .iov_len = log->len };
    off_t at = (off_t)(log->place.offset + log->position % log->place.bytes);
    ssize_t n;
    do
        n = pwritev2(log->place.fd, &iov, 1, at, RWF_DSYNC);
    while (n < 0 && errno == EINTR);
    if (n == (ssize_t)log->len)
        return 0;
    return n < 0 ? -errno : -EIO;
}

void log_fail(struct log *log, struct txn *t, bool for_good)
{
    log->off |= for_good;
    t->log_failed = true;
}

/* ---- reading --------------------------------------------------------------------------------- */

struct reader {
    uint8_t *ring;
    uint64_t bytes, tail;
    struct txn *t;
    struct log_found *found;
};

/* The blocks of a record of so many bytes that may be marked as escaped. */
static uint64_t escapable(uint64_t len)
{
    uint64_t blocks = round_up(len, LOG_BLOCK_BYTES) / LOG_BLOCK_BYTES;
    return blocks < 64 ? ((uint64_t)1 << blocks) - 1 : UINT64_MAX;
}

/* Of the record at the position, which is that of a block; NULL: there is none. */
static uint8_t *header_at(const struct reader *r, uint64_t position)
{
    uint8_t *p = r->ring + position % r->bytes;
    if (memcmp(p, magic, sizeof magic) != 0 || get_le64(p + POSITION_AT) != position ||
        get_le32(p + CRC_AT) != crc32c(0, p + PAYLOAD_CRC_AT, HEADER_BYTES - PAYLOAD_CRC_AT))
        return NULL;
    uint64_t len = HEADER_BYTES + (uint64_t)get_le32(p + LEN_AT);
    return len <= record_most(r->bytes) && position % r->bytes + len <= r->bytes &&
                   (get_le64(p + ESCAPED_AT) & ~escapable(len)) == 0
               ? p
               : NULL;
}

/* Does the record follow the one that was read last? */
static bool follows(const struct reader *r, const uint8_t *header)
{
    uint64_t last = get_le64(header + LAST_AT);
    return r->found->records > 0 ? last == r->found->last : last == LOG_NONE || last < r->tail;
}

static bool record_good(const struct reader *r, const uint8_t *header)
{
    return header != NULL && follows(r, header) &&
           get_le32(header + PAYLOAD_CRC_AT) ==
               crc32c(0, header + HEADER_BYTES, get_le32(header + LEN_AT));
}

static int add_block(struct txn *t, const uint8_t *p, bool deleted)
{
    struct txn_block *b = block_new(get_le64(p), get_le32(p + 8), deleted ? NULL : p + 12);
    if (b == NULL)
        return -ENOMEM;
    txn_insert_block(t, b);
    txn_logged_block(t, b);
    return 0;
}

static int add_record(struct txn *t, const uint8_t *p, uint16_t key_len, uint32_t value_len,
                      bool deleted)
{
    struct key key = { .len = key_len };
    memcpy(key.bytes, p, key_len);
    struct txn_record *r = record_new(&key, p + key_len, value_len, deleted);
    if (r == NULL)
        return -ENOMEM;
    txn_insert_record(t, r);
    txn_logged_record(t, r);
    return 0;
}

/* Take one change from p (t NULL: only look).   Returns its bytes; -EUCLEAN: none of ours; -ENOMEM. */
static ssize_t take_change(struct txn *t, const uint8_t *p, size_t left)
{
    int err = 0;
    size_t len;
    if (left < 7)
        return -EUCLEAN;
    if (p[0] == PUT_BLOCK || p[0] == DEL_BLOCK) {
        bool deleted = p[0] == DEL_BLOCK;
        len = 13 + (deleted ? 0 : BLOCK_SIZE);
        if (len > left)
            return -EUCLEAN;
        if (t != NULL)
            err = add_block(t, p + 1, deleted);
    } else if (p[0] == PUT_RECORD || p[0] == DEL_RECORD) {
        uint16_t key_len = (uint16_t)(p[1] | p[2] << 8);
        uint32_t value_len = get_le32(p + 3);
        len = 7 + (size_t)key_len + value_len;
        if (len > left || value_len > VALUE_MAX || !is_loggable(p + 7, key_len))
            return -EUCLEAN;
        if (t != NULL)
            err = add_record(t, p + 7, key_len, value_len, p[0] == DEL_RECORD);
    } else {
        return -EUCLEAN;
    }
    return err != 0 ? err : (ssize_t)len;
}

static int take_changes(struct txn *t, const uint8_t *header)
{
    const uint8_t *p = header + HEADER_BYTES;
    size_t left = get_le32(header + LEN_AT);
    for (uint32_t n = get_le32(header + NR_AT); n > 0; n--) {
        ssize_t len = take_change(t, p, left);
        if (len < 0)
            return (int)len;
        p += len;
        left -= (size_t)len;
    }
    return left == 0 ? 0 : -EUCLEAN;
}

static int take_record(const struct reader *r, uint8_t *header)
{
    uint64_t position = get_le64(header + POSITION_AT);
    size_t len = (size_t)round_up(HEADER_BYTES + get_le32(header + LEN_AT), LOG_BLOCK_BYTES);
    unescape(header, get_le64(header + ESCAPED_AT));
    int err = take_changes(NULL, header); /* all of it, or nothing */
    if (err == 0 && r->t != NULL)
        err = take_changes(r->t, header);
    (void)escape(header, len); /* others look for headers */
    if (err != 0)
        return err;
    r->found->changes += get_le32(header + NR_AT);
    r->found->last = position;
    r->found->head = position + len;
    r->found->records++;
    return 0;
}

/* Is there a record that was written after one that should be here, or at the ring's next beginning, and is not? (A
 * record that was under way when the power went names one before.) */
static bool more_behind(const struct reader *r, uint64_t here)
{
    for (uint64_t at = 0; at < r->bytes; at += LOG_BLOCK_BYTES) {
        uint64_t position = get_le64(r->ring + at + POSITION_AT);
        if (position < here || position >= here + r->bytes || position % r->bytes != at)
            continue;
        const uint8_t *header = header_at(r, position);
        uint64_t last = header != NULL ? get_le64(header + LAST_AT) : LOG_NONE;
        if (last != LOG_NONE && last >= here)
            return true;
    }
    return false;
}

static int read_records(struct reader *r)
{
    for (;;) {
        uint64_t here = r->found->head, round = round_up(here, r->bytes);
        uint8_t *header = header_at(r, here);
        if (!record_good(r, header))
            header = header_at(r, round);
        if (!record_good(r, header)) {
            r->found->damaged = more_behind(r, here);
            return 0;
        }
        int err = take_record(r, header);
        if (err == -EUCLEAN) /* it verifies, and is none of ours */
            r->found->damaged = true;
        if (err != 0)
            return err == -EUCLEAN ? 0 : err;
    }
}

/* What cannot be read is zeros, and so no record: where one should be is seen then. */
static void read_ring(const struct log_place *place, uint8_t *ring)
{
    if (pread(place->fd, ring, place->bytes, (off_t)place->offset) == (ssize_t)place->bytes)
        return;
    for (uint64_t at = 0; at < place->bytes; at += LOG_BLOCK_BYTES)
        if (pread(place->fd, ring + at, LOG_BLOCK_BYTES, (off_t)(place->offset + at)) !=
            LOG_BLOCK_BYTES)
            memset(ring + at, 0, LOG_BLOCK_BYTES);
}

/* A position that nothing in the ring has, were the tail what it may. */
static uint64_t behind_all(const struct reader *r)
{
    uint64_t behind = 0;
    for (uint64_t at = 0; at < r->bytes; at += LOG_BLOCK_BYTES) {
        uint64_t position = get_le64(r->ring + at + POSITION_AT);
        if (position % r->bytes == at && position < LOG_POSITION_MOST && position >= behind &&
            header_at(r, position) != NULL)
            behind = position - at + 2 * r->bytes;
    }
    return behind;
}

int log_read(const struct log_place *place, uint64_t tail, struct txn *t, struct log_found *found)
{
    uint8_t *ring = malloc(place->bytes);
    if (ring == NULL)
        return -ENOMEM;
    *found = (struct log_found){ .head = tail, .last = LOG_NONE };
    struct reader r = { .ring = ring, .bytes = place->bytes, .tail = tail, .t = t, .found = found };
    int err = 0;
    read_ring(place, ring);
    if (tail % LOG_BLOCK_BYTES == 0 && tail < LOG_POSITION_MOST)
        err = read_records(&r);
    else
        found->damaged = true;
    if (found->damaged)
        found->head = behind_all(&r);
    free(ring);
    return err;
}
