/* record.h: what the volume's records look like, in memory and as bytes.
 *
 * Keys start with a type byte and continue big-endian, so that LMDB's byte order is our order.
 * Payloads are little-endian and begin with a version byte of their type. Around every payload the
 * store puts an envelope with a CRC32C over key and payload (store/lmdb.h), so that a record that
 * decodes is a record that was written. FORMAT.md describes all of it for other implementers.
 */
#ifndef FOLIO_STORE_RECORD_H
#define FOLIO_STORE_RECORD_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <time.h>

#define KEY_MAX           272u   /* bytes: type, inode number, a name of 255, and some room */
#define NAME_MAX_BYTES    255u   /* bytes in one name */
#define SYMLINK_MAX_BYTES 4095u  /* bytes in a symbolic link's target */
#define XATTR_VALUE_MAX   65536u /* bytes in an extended attribute's value */
#define VALUE_MAX         XATTR_VALUE_MAX
#define LABEL_MAX_BYTES   64u /* bytes in a volume's label */
#define KEY_BLOCK_BYTES \
    38u /* of a block's key inside LMDB: find 13, version 1, head 16, crc 4, check 4 */
#define KEY_PREFIX_BYTES 9u /* of a key: its type, and the directory or inode it is about */
#define ROOT_INO         1u
#define FIRST_COOKIE     3u /* of an entry: "." has 1 and ".." 2 */

struct key {
    uint16_t len;
    uint8_t bytes[KEY_MAX];
};

enum key_type {
    KEY_BLOCK = 'B',  /* data id, index (+ suffix inside LMDB)  -> its last 4,080 bytes      */
    KEY_COOKIE = 'C', /* directory, cookie                      -> struct dirent_record with name */
    KEY_DIRENT = 'D', /* directory, name                        -> struct dirent_record */
    KEY_COUNTER = 'I', /* -                                      -> next unused number */
    KEY_LINK = 'L',    /* inode                                  -> target of a symbolic link */
    KEY_BLOCKS = 'N',  /* data id                                -> blocks it has */
    KEY_ORPHAN = 'O',  /* inode                                  -> (empty) to be deleted */
    KEY_LOG_TAIL =
        'P', /* -                                     -> position: what is needed of the log */
    KEY_LOG = 'R', /* -                                      -> the ring: see log.h, no envelope */
    KEY_SUPER = 'S', /* -                                      -> struct super_record */
    KEY_TRIM = 'T',  /* data id, from, to                      -> (empty) blocks to be deleted */
    KEY_XATTR = 'X', /* inode, name                            -> value */
    KEY_INODE = 'i', /* inode                                  -> struct inode_record */
};

void key_super(struct key *k);
void key_log_tail(struct key *k);
void key_counter(struct key *k);
void key_inode(struct key *k, uint64_t ino);
void key_orphan(struct key *k, uint64_t ino);
void key_link(struct key *k, uint64_t ino);
void key_blocks(struct key *k, uint64_t data_id);
void key_trim(struct key *k, uint64_t data_id, uint64_t from, uint64_t to);
void key_cookie(struct key *k, uint64_t dir, uint64_t cookie);
/* name: len bytes, 0..NAME_MAX_BYTES; with len 0 the key is the prefix of all of them. */
void key_dirent(struct key *k, uint64_t dir, const char *name, size_t len);
void key_xattr(struct key *k, uint64_t ino, const char *name, size_t len);

/* The numbers in a key after its type byte: the n-th (0..2) 64-bit one. The caller knows the type
 * and has checked the length. */
uint64_t key_u64(const struct key *k, unsigned n);
int key_compare(const struct key *a, const struct key *b);
/* Is it one of ours: as long as its type wants it, and are its numbers used? (Of a block: with its note.) */
bool key_is_sane(const struct key *k);

struct super_record {
    uint32_t format_version; /* FORMAT_VERSION */
    uint32_t block_size;     /* bytes: BLOCK_SIZE */
    uint64_t features;       /* FEATURE_* ; an unknown bit refuses the mount */
    uint64_t capacity;       /* bytes: the cap */
    uint8_t uuid[16];
    char label[LABEL_MAX_BYTES + 1]; /* NUL-terminated */
    struct timespec created;
};
#define FORMAT_VERSION 1u
#define FORMAT_MAGIC   "FolioFS\n" /* 8 bytes, behind the version byte of the superblock's payload */
#define FEATURE_LOG    UINT64_C(1) /* KEY_LOG and KEY_LOG_TAIL are there, and to be honoured */
#define FEATURES_KNOWN FEATURE_LOG

enum inode_flags {
    INODE_EXTENDING = 1, /* blocks beyond size may exist: trim them when the inode is next loaded */
};

struct inode_record {
    uint32_t mode; /* as st_mode */
    uint32_t uid;
    uint32_t gid;
    uint32_t nlink;
    uint64_t size;    /* bytes */
    uint64_t data_id; /* KEY_BLOCK's object; 0: never had data */
    uint64_t rdev;    /* as st_rdev */
    uint64_t parent;  /* directories: the parent's inode; others 0 */
    uint64_t cookie;  /* directories: next entry's cookie */
    uint32_t flags;   /* INODE_* */
    struct timespec atime, mtime, ctime, btime;
};

struct dirent_record {
    uint64_t ino;
    uint64_t cookie;               /* FIRST_COOKIE and up */
    uint8_t type;                  /* DT_* */
    uint8_t name_len;              /* KEY_COOKIE records only; else 0 */
    char name[NAME_MAX_BYTES + 1]; /* likewise; NUL-terminated */
};

#define INODE_BYTES  109u
#define SUPER_BYTES  125u
#define DIRENT_BYTES (19u + NAME_MAX_BYTES)
#define NUMBER_BYTES 9u

/* Can an entry have this name, or (len 0, as in KEY_DIRENT's records) none? */
bool name_good(const char *name, size_t len);

/* Encode into buf, which has at least the type's *_BYTES; returns the length. */
size_t inode_encode(const struct inode_record *r, uint8_t *buf);
size_t dirent_encode(const struct dirent_record *r, uint8_t *buf);
size_t super_encode(const struct super_record *r, uint8_t *buf);
size_t number_encode(uint64_t n, uint8_t *buf); /* KEY_COUNTER, KEY_BLOCKS */

/* Decode; out is written only on success.   Returns 0; -EIO: not such a record (length, version,
 * a field out of range). super_decode also: -EPROTONOSUPPORT for an unknown version or feature,
 * with what can be read in out. */
int inode_decode(const uint8_t *buf, size_t len, struct inode_record *out);
int dirent_decode(const uint8_t *buf, size_t len, struct dirent_record *out);
int super_decode(const uint8_t *buf, size_t len, struct super_record *out);
int number_decode(const uint8_t *buf, size_t len, uint64_t *out);

#endif
