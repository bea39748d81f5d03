/* record.c: keys and payloads as bytes.
 *
 * Payloads, all numbers little-endian, one byte before the first of them for the version:
 *
 *     super    version(1)  magic(8)  format_version(4)  block_size(4)  features(8)  capacity(8)
 *              uuid(16)  label(64, padded with NUL)  created(12)
 *     inode    version(1)  mode(4)  uid(4)  gid(4)  nlink(4)  size(8)  data_id(8)  rdev(8)
 *              parent(8)  cookie(8)  flags(4)  atime(12)  mtime(12)  ctime(12)  btime(12)
 *     dirent   version(1)  ino(8)  cookie(8)  type(1)  name_len(1)  name(name_len)
 *     number   version(1)  n(8)
 *
 * A time is seconds (8, signed) and nanoseconds (4). Decoding is strict: one length, known flags,
 * fields in range. What was written by a correct program decodes; anything else is damage that the
 * envelope's CRC did not catch, or a newer program's, and is refused rather than guessed at.
 */
#include "store/record.h"

#include <assert.h>
#include <dirent.h>
#include <errno.h>
#include <string.h>
#include <sys/stat.h>

#include "store/bio.h"
#include "store/bytes.h"

enum {
    SUPER_VERSION = 1,
    INODE_VERSION = 1,
    DIRENT_VERSION = 1,
    NUMBER_VERSION = 1,
};

#define MAGIC_BYTES        8u
#define DIRENT_FIXED_BYTES 19u
#define SUPER_STABLE_BYTES 13u /* version, magic, format_version: where they are in every version */
#define FILE_SIZE_MAX      ((uint64_t)1 << 44)
#define NSEC_PER_SEC       1000000000u

/* ---- keys ------------------------------------------------------------------------------------ */

static void key_start(struct key *k, enum key_type type)
{
    k->bytes[0] = (uint8_t)type;
    k->len = 1;
}

static void key_add_u64(struct key *k, uint64_t n)
{
    put_be64(k->bytes + k->len, n);
    k->len = (uint16_t)(k->len + 8);
}

static void key_add_name(struct key *k, const char *name, size_t len)
{
    assert(len <= NAME_MAX_BYTES);
    if (len > 0)
        memcpy(k->bytes + k->len, name, len);
    k->len = (uint16_t)(k->len + len);
}

static void key_of_number(struct key *k, enum key_type type, uint64_t n)
{
    key_start(k, type);
    key_add_u64(k, n);
}

void key_super(struct key *k)
{
    key_start(k, KEY_SUPER);
}

void key_log_tail(struct key *k)
{
    key_start(k, KEY_LOG_TAIL);
}

void key_counter(struct key *k)
{
    key_start(k, KEY_COUNTER);
}

void key_inode(struct key *k, uint64_t ino)
{
    key_of_number(k, KEY_INODE, ino);
}

void key_orphan(struct key *k, uint64_t ino)
{
    key_of_number(k, KEY_ORPHAN, ino);
}

void key_link(struct key *k, uint64_t ino)
{
    key_of_number(k, KEY_LINK, ino);
}

void key_blocks(struct key *k, uint64_t data_id)
{
    key_of_number(k, KEY_BLOCKS, data_id);
}

void key_trim(struct key *k, uint64_t data_id, uint64_t from, uint64_t to)
{
    key_of_number(k, KEY_TRIM, data_id);
    key_add_u64(k, from);
    key_add_u64(k, to);
}

void key_cookie(struct key *k, uint64_t dir, uint64_t cookie)
{
    key_of_number(k, KEY_COOKIE, dir);
    key_add_u64(k, cookie);
}

void key_dirent(struct key *k, uint64_t dir, const char *name, size_t len)
{
    key_of_number(k, KEY_DIRENT, dir);
    key_add_name(k, name, len);
}

void key_xattr(struct key *k, uint64_t ino, const char *name, size_t len)
{
    key_of_number(k, KEY_XATTR, ino);
    key_add_name(k, name, len);
}

uint64_t key_u64(const struct key *k, unsigned n)
{
    assert(n <= 2 && k->len >= 1 + 8 * (n + 1));
    return get_be64(k->bytes + 1 + 8 * n);
}

bool key_is_sane(const struct key *k)
{
    switch ((enum key_type)k->bytes[0]) {
    case KEY_SUPER:
    case KEY_COUNTER:
    case KEY_LOG:
    case KEY_LOG_TAIL:
        return k->len == 1;
    case KEY_BLOCK:
        return k->len == KEY_BLOCK_BYTES;
    case KEY_INODE:
    case KEY_LINK:
    case KEY_BLOCKS:
    case KEY_ORPHAN:
        return k->len == KEY_PREFIX_BYTES && key_u64(k, 0) != 0;
    case KEY_COOKIE:
        return k->len == KEY_PREFIX_BYTES + 8 && key_u64(k, 0) != 0;
    case KEY_TRIM:
        return k->len == KEY_PREFIX_BYTES + 16 && key_u64(k, 0) != 0;
    case KEY_DIRENT:
    case KEY_XATTR:
        return k->len > KEY_PREFIX_BYTES && k->len <= KEY_PREFIX_BYTES + NAME_MAX_BYTES &&
               key_u64(k, 0) != 0;
    }
    return false;
}

int key_compare(const struct key *a, const struct key *b)
{
    return bytes_compare(a->bytes, a->len, b->bytes, b->len);
}

/* ---- a cursor over a payload ------------------------------------------------------------------ */

static void add_u8(uint8_t **p, uint8_t n)
{
    *(*p)++ = n;
}

static void add_u32(uint8_t **p, uint32_t n)
{
    put_le32(*p, n);
    *p += 4;
}

static void add_u64(uint8_t **p, uint64_t n)
{
    put_le64(*p, n);
    *p += 8;
}

static void add_time(uint8_t **p, const struct timespec *t)
{
    add_u64(p, (uint64_t)t->tv_sec);
    add_u32(p, (uint32_t)t->tv_nsec);
}

static void add_bytes(uint8_t **p, const void *bytes, size_t len)
{
    if (len > 0)
        memcpy(*p, bytes, len);
    *p += len;
}

static uint8_t take_u8(const uint8_t **p)
{
    return *(*p)++;
}

static uint32_t take_u32(const uint8_t **p)
{
    uint32_t n = get_le32(*p);
    *p += 4;
    return n;
}

static uint64_t take_u64(const uint8_t **p)
{
    uint64_t n = get_le64(*p);
    *p += 8;
    return n;
}

static void take_time(const uint8_t **p, struct timespec *t)
{
    t->tv_sec = (time_t)(int64_t)take_u64(p);
    t->tv_nsec = (long)take_u32(p);
}

static void take_bytes(const uint8_t **p, void *bytes, size_t len)
{
    memcpy(bytes, *p, len);
    *p += len;
}

static bool time_good(const struct timespec *t)
{
    return t->tv_nsec >= 0 && t->tv_nsec < (long)NSEC_PER_SEC;
}

/* ---- inode ----------------------------------------------------------------------------------- */

size_t inode_encode(const struct inode_record *r, uint8_t *buf)
{
    uint8_t *p = buf;
    add_u8(&p, INODE_VERSION);
    add_u32(&p, r->mode);
    add_u32(&p, r->uid);
    add_u32(&p, r->gid);
    add_u32(&p, r->nlink);
    add_u64(&p, r->size);
    add_u64(&p, r->data_id);
    add_u64(&p, r->rdev);
    add_u64(&p, r->parent);
    add_u64(&p, r->cookie);
    add_u32(&p, r->flags);
    add_time(&p, &r->atime);
    add_time(&p, &r->mtime);
    add_time(&p, &r->ctime);
    add_time(&p, &r->btime);
    assert(p == buf + INODE_BYTES);
    return INODE_BYTES;
}

static bool mode_good(uint32_t mode)
{
    if ((mode & ~(uint32_t)(S_IFMT | 07777)) != 0)
        return false;
    switch (mode & S_IFMT) {
    case S_IFREG:
    case S_IFDIR:
    case S_IFLNK:
    case S_IFCHR:
    case S_IFBLK:
    case S_IFIFO:
    case S_IFSOCK:
        return true;
    default: /* not an enum */
        return false;
    }
}

static bool inode_good(const struct inode_record *r)
{
    return mode_good(r->mode) && r->size <= FILE_SIZE_MAX &&
           (r->flags & ~(uint32_t)INODE_EXTENDING) == 0 && time_good(&r->atime) &&
           time_good(&r->mtime) && time_good(&r->ctime) && time_good(&r->btime);
}

int inode_decode(const uint8_t *buf, size_t len, struct inode_record *out)
{
    const uint8_t *p = buf;
    struct inode_record r;
    if (len != INODE_BYTES || take_u8(&p) != INODE_VERSION)
        return -EIO;
    memset(&r, 0, sizeof r);
    r.mode = take_u32(&p);
    r.uid = take_u32(&p);
    r.gid = take_u32(&p);
    r.nlink = take_u32(&p);
    r.size = take_u64(&p);
    r.data_id = take_u64(&p);
    r.rdev = take_u64(&p);
    r.parent = take_u64(&p);
    r.cookie = take_u64(&p);
    r.flags = take_u32(&p);
    take_time(&p, &r.atime);
    take_time(&p, &r.mtime);
    take_time(&p, &r.ctime);
    take_time(&p, &r.btime);
    if (!inode_good(&r))
        return -EIO;
    *out = r;
    return 0;
}

/* ---- directory entry ------------------------------------------------------------------------- */

size_t dirent_encode(const struct dirent_record *r, uint8_t *buf)
{
    uint8_t *p = buf;
    add_u8(&p, DIRENT_VERSION);
    add_u64(&p, r->ino);
    add_u64(&p, r->cookie);
    add_u8(&p, r->type);
    add_u8(&p, r->name_len);
    add_bytes(&p, r->name, r->name_len);
    return (size_t)(p - buf);
}

static bool dirent_type_good(uint8_t type)
{
    return type == DT_REG || type == DT_DIR || type == DT_LNK || type == DT_CHR || type == DT_BLK ||
           type == DT_FIFO || type == DT_SOCK;
}

bool name_good(const char *name, size_t len)
{
    bool dots = (len == 1 && name[0] == '.') || (len == 2 && name[0] == '.' && name[1] == '.');
    return !dots && memchr(name, '/', len) == NULL && memchr(name, '\0', len) == NULL;
}

int dirent_decode(const uint8_t *buf, size_t len, struct dirent_record *out)
{
    const uint8_t *p = buf;
    struct dirent_record r;
    if (len < DIRENT_FIXED_BYTES || take_u8(&p) != DIRENT_VERSION)
        return -EIO;
    memset(&r, 0, sizeof r);
    r.ino = take_u64(&p);
    r.cookie = take_u64(&p);
    r.type = take_u8(&p);
    r.name_len = take_u8(&p);
    if (len != DIRENT_FIXED_BYTES + r.name_len)
        return -EIO;
    take_bytes(&p, r.name, r.name_len);
    if (r.ino == 0 || r.cookie < FIRST_COOKIE || !dirent_type_good(r.type) ||
        !name_good(r.name, r.name_len))
        return -EIO;
    *out = r;
    return 0;
}

/* ---- superblock ------------------------------------------------------------------------------ */

size_t super_encode(const struct super_record *r, uint8_t *buf)
{
    char label[LABEL_MAX_BYTES];
    uint8_t *p = buf;
    size_t len = strnlen(r->label, sizeof label);
    memset(label, 0, sizeof label);
    memcpy(label, r->label, len);
    add_u8(&p, SUPER_VERSION);
    add_bytes(&p, FORMAT_MAGIC, MAGIC_BYTES);
    add_u32(&p, r->format_version);
    add_u32(&p, r->block_size);
    add_u64(&p, r->features);
    add_u64(&p, r->capacity);
    add_bytes(&p, r->uuid, sizeof r->uuid);
    add_bytes(&p, label, sizeof label);
    add_time(&p, &r->created);
    assert(p == buf + SUPER_BYTES);
    return SUPER_BYTES;
}

/* The label ends at its first NUL and everything behind it is NUL too. */
static bool label_good(const char *label)
{
    for (size_t i = strnlen(label, LABEL_MAX_BYTES); i < LABEL_MAX_BYTES; i++)
        if (label[i] != '\0')
            return false;
    return true;
}

static bool super_good(const struct super_record *r)
{
    return r->block_size == BLOCK_SIZE && r->capacity > 0 && label_good(r->label) &&
           time_good(&r->created);
}

int super_decode(const uint8_t *buf, size_t len, struct super_record *out)
{
    const uint8_t *p = buf;
    struct super_record r;
    if (len < SUPER_STABLE_BYTES || memcmp(buf + 1, FORMAT_MAGIC, MAGIC_BYTES) != 0)
        return -EIO;
    uint8_t version = take_u8(&p);
    p += MAGIC_BYTES;
    memset(&r, 0, sizeof r);
    r.format_version = take_u32(&p);
    if (version != SUPER_VERSION) {
        *out = r;
        return -EPROTONOSUPPORT;
    }
    if (len != SUPER_BYTES)
        return -EIO;
    r.block_size = take_u32(&p);
    r.features = take_u64(&p);
    r.capacity = take_u64(&p);
    take_bytes(&p, r.uuid, sizeof r.uuid);
    take_bytes(&p, r.label, LABEL_MAX_BYTES);
    take_time(&p, &r.created);
    if (!super_good(&r))
        return -EIO;
    *out = r;
    bool known = r.format_version == FORMAT_VERSION && (r.features & ~FEATURES_KNOWN) == 0;
    return known ? 0 : -EPROTONOSUPPORT;
}

/* ---- number ---------------------------------------------------------------------------------- */

size_t number_encode(uint64_t n, uint8_t *buf)
{
    uint8_t *p = buf;
    add_u8(&p, NUMBER_VERSION);
    add_u64(&p, n);
    return NUMBER_BYTES;
}

int number_decode(const uint8_t *buf, size_t len, uint64_t *out)
{
    const uint8_t *p = buf;
    if (len != NUMBER_BYTES || take_u8(&p) != NUMBER_VERSION)
        return -EIO;
    *out = take_u64(&p);
    return 0;
}
