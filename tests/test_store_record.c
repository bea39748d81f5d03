/* Keys sort as the store needs them to; payloads come back as they were, and nothing else decodes. */
#include "store/record.h"

#include <criterion/criterion.h>
#include <dirent.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "store/bio.h"
#include "store/crc32c.h"

#define COUNT(array) (sizeof(array) / sizeof(*(array)))

Test(crc32c, is_the_standard_one)
{
    cr_assert_eq(crc32c(0, "123456789", 9), 0xe3069283u);
    cr_assert_eq(crc32c(crc32c(0, "1234", 4), "56789", 5), 0xe3069283u);
    cr_assert_eq(crc32c(0, "", 0), 0);
    uint8_t zeros[32] = { 0 };
    cr_assert_eq(crc32c(0, zeros, sizeof zeros), 0x8a9136aau); /* RFC 3720, B.4 */
}

/* ---- keys ------------------------------------------------------------------------------------ */

static void expect_key(const struct key *k, const char *bytes, size_t len)
{
    cr_assert_eq(k->len, len);
    cr_assert_eq(memcmp(k->bytes, bytes, len), 0);
}

Test(key, bytes_are_type_then_big_endian_numbers_then_name)
{
    struct key k;
    key_super(&k);
    expect_key(&k, "S", 1);
    key_counter(&k);
    expect_key(&k, "I", 1);
    key_inode(&k, 0x0102030405060708);
    expect_key(&k, "i\1\2\3\4\5\6\7\10", 9);
    key_orphan(&k, 1);
    expect_key(&k, "O\0\0\0\0\0\0\0\1", 9);
    key_link(&k, 1);
    expect_key(&k, "L\0\0\0\0\0\0\0\1", 9);
    key_blocks(&k, 1);
    expect_key(&k, "N\0\0\0\0\0\0\0\1", 9);
    key_trim(&k, 1, 2, 3);
    expect_key(&k, "T\0\0\0\0\0\0\0\1\0\0\0\0\0\0\0\2\0\0\0\0\0\0\0\3", 25);
    cr_assert_eq(key_u64(&k, 0), 1);
    cr_assert_eq(key_u64(&k, 1), 2);
    cr_assert_eq(key_u64(&k, 2), 3);
    key_cookie(&k, 1, UINT64_MAX);
    expect_key(&k, "C\0\0\0\0\0\0\0\1\377\377\377\377\377\377\377\377", 17);
    key_dirent(&k, 1, "name", 4);
    expect_key(&k, "D\0\0\0\0\0\0\0\1name", 13);
    key_dirent(&k, 1, NULL, 0);
    expect_key(&k, "D\0\0\0\0\0\0\0\1", 9);
    key_xattr(&k, 1, "user.a", 6);
    expect_key(&k, "X\0\0\0\0\0\0\0\1user.a", 15);
}

Test(key, holds_the_longest_name)
{
    char name[NAME_MAX_BYTES];
    struct key k;
    memset(name, 'x', sizeof name);
    key_dirent(&k, UINT64_MAX, name, sizeof name);
    cr_assert_eq(k.len, 9 + NAME_MAX_BYTES);
    cr_assert_leq(k.len, KEY_MAX);
}

Test(key, compares_by_bytes_then_by_length)
{
    struct key a, b;
    key_inode(&a, 255);
    key_inode(&b, 256);
    cr_assert_lt(key_compare(&a, &b), 0);
    cr_assert_gt(key_compare(&b, &a), 0);
    cr_assert_eq(key_compare(&a, &a), 0);
    key_dirent(&a, 1, "ab", 2);
    key_dirent(&b, 1, "abc", 3);
    cr_assert_lt(key_compare(&a, &b), 0);
    cr_assert_gt(key_compare(&b, &a), 0);
    key_dirent(&b, 1, "\377", 1); /* bytes are unsigned */
    cr_assert_lt(key_compare(&a, &b), 0);
}

/* ---- inodes ---------------------------------------------------------------------------------- */

static struct inode_record an_inode(void)
{
    struct inode_record r;
    memset(&r, 0, sizeof r);
    r.mode = S_IFREG | 04755;
    r.uid = 1000;
    r.gid = UINT32_MAX;
    r.nlink = 3;
    r.size = (uint64_t)1 << 44;
    r.data_id = 0x1122334455667788;
    r.rdev = 0x801;
    r.parent = 12;
    r.cookie = 99;
    r.flags = INODE_EXTENDING;
    r.atime = (struct timespec){ .tv_sec = 1700000000, .tv_nsec = 999999999 };
    r.mtime = (struct timespec){ .tv_sec = -1, .tv_nsec = 0 };
    r.ctime = (struct timespec){ .tv_sec = INT64_MAX, .tv_nsec = 1 };
    r.btime = (struct timespec){ .tv_sec = INT64_MIN, .tv_nsec = 2 };
    return r;
}

static bool same_time(const struct timespec *a, const struct timespec *b)
{
    return a->tv_sec == b->tv_sec && a->tv_nsec == b->tv_nsec;
}

static bool same_inode(const struct inode_record *a, const struct inode_record *b)
{
    return a->mode == b->mode && a->uid == b->uid && a->gid == b->gid && a->nlink == b->nlink &&
           a->size == b->size && a->data_id == b->data_id && a->rdev == b->rdev &&
           a->parent == b->parent && a->cookie == b->cookie && a->flags == b->flags &&
           same_time(&a->atime, &b->atime) && same_time(&a->mtime, &b->mtime) &&
           same_time(&a->ctime, &b->ctime) && same_time(&a->btime, &b->btime);
}

Test(inode, comes_back)
{
    struct inode_record in = an_inode(), out;
    uint8_t buf[INODE_BYTES];
    memset(&out, 0xee, sizeof out);
    cr_assert_eq(inode_encode(&in, buf), INODE_BYTES);
    cr_assert_eq(buf[0], 1);
    cr_assert_eq(inode_decode(buf, INODE_BYTES, &out), 0);
    cr_assert(same_inode(&in, &out));
}

Test(inode, of_any_other_length_or_version_does_not_decode)
{
    struct inode_record in = an_inode(), out, before;
    uint8_t buf[INODE_BYTES + 1] = { 0 };
    memset(&out, 0xee, sizeof out);
    before = out;
    inode_encode(&in, buf);
    for (size_t len = 0; len <= INODE_BYTES + 1; len++)
        if (len != INODE_BYTES)
            cr_assert_eq(inode_decode(buf, len, &out), -EIO, "%zu bytes", len);
    for (int version = 0; version < 256; version++) {
        buf[0] = (uint8_t)version;
        if (version != 1)
            cr_assert_eq(inode_decode(buf, INODE_BYTES, &out), -EIO, "version %d", version);
    }
    cr_assert(same_inode(&out, &before), "written on failure");
}

static int decode_inode(const struct inode_record *r)
{
    struct inode_record out;
    uint8_t buf[INODE_BYTES];
    inode_encode(r, buf);
    return inode_decode(buf, sizeof buf, &out);
}

Test(inode, with_a_field_out_of_range_does_not_decode)
{
    static const uint32_t modes[] = {
        S_IFREG, S_IFDIR, S_IFLNK, S_IFCHR, S_IFBLK, S_IFIFO, S_IFSOCK
    };
    static const uint32_t bad_modes[] = { 0, 0644, S_IFMT, 0x10000 | S_IFREG, 0x2000 | 0x1000 };
    struct inode_record r;
    for (size_t i = 0; i < COUNT(modes); i++) {
        r = an_inode();
        r.mode = modes[i] | 07777;
        cr_assert_eq(decode_inode(&r), 0);
    }
    for (size_t i = 0; i < COUNT(bad_modes); i++) {
        r = an_inode();
        r.mode = bad_modes[i];
        cr_assert_eq(decode_inode(&r), -EIO, "mode %o", bad_modes[i]);
    }
    for (int i = 0; i < 4; i++) {
        r = an_inode();
        struct timespec *t = i == 0 ? &r.atime : i == 1 ? &r.mtime : i == 2 ? &r.ctime : &r.btime;
        t->tv_nsec = 1000000000;
        cr_assert_eq(decode_inode(&r), -EIO);
    }
    r = an_inode();
    r.size = ((uint64_t)1 << 44) + 1;
    cr_assert_eq(decode_inode(&r), -EIO);
    r = an_inode();
    r.flags = 2;
    cr_assert_eq(decode_inode(&r), -EIO);
}

/* ---- directory entries ----------------------------------------------------------------------- */

static struct dirent_record a_dirent(const char *name)
{
    struct dirent_record r;
    memset(&r, 0, sizeof r);
    r.ino = 77;
    r.cookie = 3;
    r.type = DT_REG;
    r.name_len = (uint8_t)strlen(name);
    memcpy(r.name, name, strlen(name));
    return r;
}

static int decode_dirent(const struct dirent_record *r, struct dirent_record *out)
{
    uint8_t buf[DIRENT_BYTES];
    size_t len = dirent_encode(r, buf);
    cr_assert_eq(len, 19u + r->name_len);
    return dirent_decode(buf, len, out);
}

static bool same_dirent(const struct dirent_record *a, const struct dirent_record *b)
{
    return a->ino == b->ino && a->cookie == b->cookie && a->type == b->type &&
           a->name_len == b->name_len && strcmp(a->name, b->name) == 0;
}

Test(dirent, comes_back_with_and_without_a_name)
{
    char longest[NAME_MAX_BYTES + 1] = { 0 };
    memset(longest, 'n', NAME_MAX_BYTES);
    const char *const names[] = { "", "a", "...", ".a", "a.", "\377\n\1", longest };
    for (size_t i = 0; i < COUNT(names); i++) {
        struct dirent_record in = a_dirent(names[i]), out;
        memset(&out, 0xee, sizeof out);
        cr_assert_eq(decode_dirent(&in, &out), 0, "name %zu", i);
        cr_assert(same_dirent(&in, &out));
    }
}

Test(dirent, of_any_other_length_or_version_does_not_decode)
{
    struct dirent_record in = a_dirent("some name"), out;
    uint8_t buf[DIRENT_BYTES + 1] = { 0 };
    size_t good = dirent_encode(&in, buf);
    for (size_t len = 0; len <= sizeof buf; len++)
        if (len != good)
            cr_assert_eq(dirent_decode(buf, len, &out), -EIO, "%zu bytes", len);
    for (int version = 0; version < 256; version++) {
        buf[0] = (uint8_t)version;
        if (version != 1)
            cr_assert_eq(dirent_decode(buf, good, &out), -EIO);
    }
}

Test(dirent, with_a_field_out_of_range_does_not_decode)
{
    static const char *const names[] = { ".", "..", "a/b", "/" };
    struct dirent_record r, out;
    for (size_t i = 0; i < COUNT(names); i++) {
        r = a_dirent(names[i]);
        cr_assert_eq(decode_dirent(&r, &out), -EIO, "%s", names[i]);
    }
    r = a_dirent("a\1b");
    r.name[1] = '\0';
    cr_assert_eq(decode_dirent(&r, &out), -EIO);
    r = a_dirent("a");
    r.ino = 0;
    cr_assert_eq(decode_dirent(&r, &out), -EIO);
    for (uint64_t cookie = 0; cookie < 3; cookie++) {
        r = a_dirent("a");
        r.cookie = cookie;
        cr_assert_eq(decode_dirent(&r, &out), -EIO);
    }
    r = a_dirent("a");
    r.type = DT_UNKNOWN;
    cr_assert_eq(decode_dirent(&r, &out), -EIO);
    r.type = DT_WHT;
    cr_assert_eq(decode_dirent(&r, &out), -EIO);
}

/* ---- superblock ------------------------------------------------------------------------------ */

static struct super_record a_super(void)
{
    struct super_record r;
    memset(&r, 0, sizeof r);
    r.format_version = FORMAT_VERSION;
    r.block_size = BLOCK_SIZE;
    r.capacity = (uint64_t)1 << 40;
    for (unsigned i = 0; i < sizeof r.uuid; i++)
        r.uuid[i] = (uint8_t)i;
    strcpy(r.label, "my volume");
    r.created = (struct timespec){ .tv_sec = 1700000000, .tv_nsec = 5 };
    return r;
}

static int decode_super(const struct super_record *r, struct super_record *out)
{
    uint8_t buf[SUPER_BYTES];
    cr_assert_eq(super_encode(r, buf), SUPER_BYTES);
    return super_decode(buf, sizeof buf, out);
}

static bool same_super(const struct super_record *a, const struct super_record *b)
{
    return a->format_version == b->format_version && a->block_size == b->block_size &&
           a->features == b->features && a->capacity == b->capacity &&
           memcmp(a->uuid, b->uuid, sizeof a->uuid) == 0 && strcmp(a->label, b->label) == 0 &&
           same_time(&a->created, &b->created);
}

Test(super, comes_back)
{
    struct super_record in = a_super(), out;
    memset(&out, 0xee, sizeof out);
    cr_assert_eq(decode_super(&in, &out), 0);
    cr_assert(same_super(&in, &out));
    memset(in.label, 'x', LABEL_MAX_BYTES);
    cr_assert_eq(decode_super(&in, &out), 0);
    cr_assert(same_super(&in, &out));
    memset(in.label, 0, sizeof in.label);
    cr_assert_eq(decode_super(&in, &out), 0);
    cr_assert(same_super(&in, &out));
}

Test(super, of_any_other_length_does_not_decode)
{
    struct super_record in = a_super(), out;
    uint8_t buf[SUPER_BYTES + 1] = { 0 };
    super_encode(&in, buf);
    for (size_t len = 0; len <= sizeof buf; len++)
        if (len != SUPER_BYTES)
            cr_assert_eq(super_decode(buf, len, &out), -EIO, "%zu bytes", len);
}

Test(super, of_another_format_says_which)
{
    struct super_record in = a_super(), out;
    uint8_t buf[SUPER_BYTES + 20] = { 0 };
    in.format_version = 7;
    cr_assert_eq(decode_super(&in, &out), -EPROTONOSUPPORT);
    cr_assert_eq(out.format_version, 7);
    cr_assert_str_eq(out.label, "my volume");
    in = a_super();
    in.features = 2;
    cr_assert_eq(decode_super(&in, &out), -EPROTONOSUPPORT);
    cr_assert_eq(out.features, 2);
    super_encode(&in, buf); /* another layout of the record, and longer */
    buf[0] = 2;
    buf[9] = 8;
    cr_assert_eq(super_decode(buf, sizeof buf, &out), -EPROTONOSUPPORT);
    cr_assert_eq(out.format_version, 8);
    cr_assert_eq(out.capacity, 0);
}

Test(super, with_a_field_out_of_range_does_not_decode)
{
    struct super_record r = a_super(), out;
    uint8_t buf[SUPER_BYTES];
    r.block_size = 8192;
    cr_assert_eq(decode_super(&r, &out), -EIO);
    r = a_super();
    r.capacity = 0;
    cr_assert_eq(decode_super(&r, &out), -EIO);
    r = a_super();
    r.created.tv_nsec = 1000000000;
    cr_assert_eq(decode_super(&r, &out), -EIO);
    r = a_super();
    super_encode(&r, buf);
    buf[SUPER_BYTES - 12 - 1] = 'x'; /* behind the label's NUL */
    cr_assert_eq(super_decode(buf, sizeof buf, &out), -EIO);
    for (size_t i = 1; i <= 8; i++) {
        super_encode(&r, buf);
        buf[i] ^= 1; /* the magic */
        cr_assert_eq(super_decode(buf, sizeof buf, &out), -EIO);
    }
}

/* ---- numbers --------------------------------------------------------------------------------- */

Test(number, comes_back_and_nothing_else_decodes)
{
    static const uint64_t numbers[] = { 0, 1, 255, 256, (uint64_t)1 << 40, UINT64_MAX };
    uint8_t buf[NUMBER_BYTES + 1] = { 0 };
    uint64_t out;
    for (size_t i = 0; i < COUNT(numbers); i++) {
        cr_assert_eq(number_encode(numbers[i], buf), NUMBER_BYTES);
        cr_assert_eq(number_decode(buf, NUMBER_BYTES, &out), 0);
        cr_assert_eq(out, numbers[i]);
    }
    for (size_t len = 0; len <= sizeof buf; len++)
        if (len != NUMBER_BYTES)
            cr_assert_eq(number_decode(buf, len, &out), -EIO);
    buf[0] = 2;
    cr_assert_eq(number_decode(buf, NUMBER_BYTES, &out), -EIO);
}

/* SEED in the environment replays a random run. */
static unsigned seed_random(void)
{
    const char *text = getenv("SEED");
    unsigned seed = text != NULL ? (unsigned)strtoul(text, NULL, 10) : 1;
    srand(seed);
    return seed;
}

/* Whatever the bytes, decoding reads inside them, and what it accepts encodes to the same bytes. */
Test(record, random_bytes_are_refused_or_canonical)
{
    uint8_t buf[DIRENT_BYTES], again[DIRENT_BYTES];
    struct inode_record inode = an_inode();
    struct dirent_record dirent = a_dirent("abcdefgh");
    struct super_record super = a_super();
    unsigned seed = seed_random();
    for (int i = 0; i < 200000; i++) {
        size_t len = i % 3 == 0   ? inode_encode(&inode, buf)
                     : i % 3 == 1 ? dirent_encode(&dirent, buf)
                                  : super_encode(&super, buf);
        for (int flips = 1 + rand() % 3; flips > 0; flips--)
            buf[(size_t)rand() % len] ^= (uint8_t)(1 << (rand() % 8));
        uint8_t *exact = malloc(len); /* so that a sanitizer sees a read beyond it */
        memcpy(exact, buf, len);
        struct inode_record r1;
        struct dirent_record r2;
        struct super_record r3;
        size_t n = 0;
        if (i % 3 == 0 && inode_decode(exact, len, &r1) == 0)
            n = inode_encode(&r1, again);
        else if (i % 3 == 1 && dirent_decode(exact, len, &r2) == 0)
            n = dirent_encode(&r2, again);
        else if (i % 3 == 2 && super_decode(exact, len, &r3) == 0)
            n = super_encode(&r3, again);
        if (n > 0)
            cr_assert(n == len && memcmp(again, exact, n) == 0, "seed %u step %d", seed, i);
        free(exact);
    }
}
