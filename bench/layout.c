/* How should file bytes lie in LMDB?
 *
 * The filesystem's block is 4,096 bytes and so is LMDB's page, but a big value starts 16 bytes into
 * its first page: 4,096 bytes take two pages, 4,080 take one.  Every layout here therefore has to
 * find a place for 16 bytes and a CRC32C.  This program stores the same data in each layout, gives
 * each the same overwrites and the same reads in turn (one batch or one slice each, the starting
 * layout rotating), and prints one table for the fresh file and the overwritten one.
 *
 *     layout DIR [MIB [PASSES [BATCH [LAYOUT...]]]]        512 MiB, 10 passes, 1000 puts, all layouts
 *
 * Keys are a 13-byte prefix: kind (1), data id (8, big-endian), block index (4, big-endian).
 * The "note" goes with a value: version (1), CRC32C of each block (4 each), the extent's first 16
 * bytes (unless the value holds them), and a check (4) over prefix and note.
 *
 *     small-4096         B prefix -> 4,096 bytes on two pages     C prefix -> note
 *     small-4080+record  B prefix -> 4,080 bytes on one page      C prefix -> note
 *     small-4080+key     B prefix + note -> 4,080 bytes on one page
 *     extent-16K         B prefix + note -> 16,368 bytes on four pages
 *     extent-64K         B prefix + note -> 65,520 bytes on sixteen pages
 *     hybrid             E prefix + note -> 65,520 bytes, overlaid by blocks as in small-4080+key
 *
 * It is the *first* 16 bytes of an extent that move to the note: byte n of a block then lies at byte
 * n of a page, in every layout but the first, and reading one block never touches two pages.
 *
 * The benchmark cannot lie quietly: each read verifies the CRC of the copied bytes and that the
 * block is the one last put there, whole passes compare every byte, the pages of the file are
 * accounted for to the last one, and a cold read starts only after mincore says the file is cold. */

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <isa-l.h>
#include <lmdb.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <time.h>
#include <unistd.h>

#include "bench/output.h"

enum {
    BLOCK = 4096,
    HEAD = 16, /* LMDB's page header: what a value lacks to be a whole page */
    PREFIX = 13,
    EXTENT_MAX = 16, /* blocks in the largest extent */
    NOTE_MAX = 1 + 4 * EXTENT_MAX + HEAD + 4,
    KEY_MAX = PREFIX + NOTE_MAX,
    WINDOW = 32, /* blocks found, hinted and copied together, as readahead does */
    OVERLAY_MAX = EXTENT_MAX / 2,
    BATCH_MAX = 4096, /* 16 pages a put, well under LMDB's 131,071 dirty pages */
    LAYOUTS = 6,
    TURNS = 16, /* slices into which a read phase is divided */
    READS_WARM = 64000,
    READS_COLD = 8000,
    SINGLES = 400,
    PLAIN_BLOCKS = 16384,
    FORMAT = 1,
};

static const uint64_t DATA_ID = 1;
static const size_t MAP_BYTES = (size_t)1 << 38;

struct view;

/* Where one block lies: head bytes in the note, the rest in the value. */
struct piece {
    const uint8_t *head;
    size_t head_len;
    const uint8_t *body;
    size_t body_len;
    uint32_t crc;
};

struct layout {
    const char *name;
    unsigned blocks; /* an extent's size, and what fill() takes at a time */
    size_t head_len; /* bytes of the extent kept in the note */
    /* Locate count blocks from first; pointers live as long as the view's transaction. */
    bool (*find)(struct view *v, uint32_t first, unsigned count, struct piece *pieces);
    void (*put)(struct view *v, uint32_t index, const uint8_t *block);
    void (*fill)(struct view *v, uint32_t first, const uint8_t *blocks);
};

/* A cursor that walks upwards over the keys of one kind. */
struct walk {
    MDB_cursor *cursor;
    MDB_val key, value;
    bool placed;
};

/* One transaction and its cursors. */
struct view {
    const struct layout *layout;
    MDB_txn *txn;
    struct walk blocks; /* kind B */
    struct walk others; /* kind C or E, where the layout has one */
    uint8_t *scratch;   /* one extent */
};

/* What a phase cost. */
struct meter {
    double seconds, worst;
    uint64_t ops, bytes;
    uint64_t device_bytes; /* written to the block device, by anyone */
};

enum phase { FILL, PUT, SEQ_WARM, RAND_WARM, SEQ_COLD, SEQ_HINT, RAND_COLD, PHASES };
enum age { FRESH, AGED, AGES };

struct pages {
    size_t file, tree, free;
};

struct store {
    const struct layout *layout;
    char *path;
    MDB_env *env;
    MDB_dbi dbi;
    struct view reader, writer;
    struct meter meters[AGES][PHASES];
    struct pages pages[AGES];
    double single[AGES][SINGLES];
};

struct bench {
    char *dir;
    uint32_t blocks; /* size of the data */
    unsigned passes, batch;
    struct store stores[LAYOUTS];
    unsigned count;       /* stores in use */
    unsigned turn;        /* rotates who begins */
    uint32_t *generation; /* the truth: how often each block was put, the same for every store */
    uint32_t *indexes;    /* the batch */
    uint8_t *payload;
    uint64_t random;
    char counter_path[64]; /* where device bytes are read; empty: /proc/self/io */
    char *plain_path;      /* the file beside which a single put is measured */
    int plain;
    double plain_single[AGES][SINGLES];
    uint64_t background_bytes; /* written to the device while nothing here wrote */
    double background_seconds;
};

/* ---- errors: a benchmark stops at the first, and leaves its files to be looked at ---- */

static _Noreturn void die(const char *what, const char *why)
{
    fprintf(stderr, "layout: %s: %s (files left in place)\n", what, why);
    exit(1);
}

static void check(int rc, const char *what)
{
    if (rc != MDB_SUCCESS)
        die(what, mdb_strerror(rc));
}

static void check_sys(bool ok, const char *what)
{
    if (!ok)
        die(what, strerror(errno));
}

static void *allocate(size_t count, size_t size)
{
    void *p = calloc(count, size);
    check_sys(p != NULL, "calloc");
    return p;
}

/* ---- bytes ---- */

static void put_be(uint8_t *out, uint64_t value, unsigned bytes)
{
    for (unsigned i = 0; i < bytes; i++)
        out[i] = (uint8_t)(value >> (8 * (bytes - 1 - i)));
}

static void put_le32(uint8_t *out, uint32_t value)
{
    for (unsigned i = 0; i < 4; i++)
        out[i] = (uint8_t)(value >> (8 * i));
}

static uint32_t get_le32(const uint8_t *in)
{
    return (uint32_t)in[0] | (uint32_t)in[1] << 8 | (uint32_t)in[2] << 16 | (uint32_t)in[3] << 24;
}

static uint32_t get_be32(const uint8_t *in)
{
    return (uint32_t)in[3] | (uint32_t)in[2] << 8 | (uint32_t)in[1] << 16 | (uint32_t)in[0] << 24;
}

/* ISA-L neither inverts the seed nor the result. */
static uint32_t crc_more(uint32_t crc, const uint8_t *data, size_t len)
{
    return ~crc32_iscsi((unsigned char *)(uintptr_t)data, (int)len, ~crc);
}

static uint32_t crc_of(const uint8_t *data, size_t len)
{
    return crc_more(0, data, len);
}

static void check_crc_function(void)
{
    const uint8_t *digits = (const uint8_t *)"123456789";
    if (crc_of(digits, 9) != 0xE3069283u ||
        crc_more(crc_of(digits, 4), digits + 4, 5) != 0xE3069283u)
        die("crc32_iscsi", "not CRC32C");
}

static void prefix_encode(uint8_t *out, uint8_t kind, uint32_t index)
{
    out[0] = kind;
    put_be(out + 1, DATA_ID, 8);
    put_be(out + 9, index, 4);
}

static size_t note_len(unsigned blocks, size_t head_len)
{
    return 1 + 4 * (size_t)blocks + head_len + 4;
}

static uint32_t note_check(const uint8_t *prefix, const uint8_t *note, size_t len)
{
    return crc_more(crc_of(prefix, PREFIX), note, len - 4);
}

static size_t note_encode(uint8_t *note, const uint8_t *prefix, const uint32_t *crcs,
                          unsigned blocks, const uint8_t *head, size_t head_len)
{
    size_t len = note_len(blocks, head_len);
    note[0] = FORMAT;
    for (unsigned i = 0; i < blocks; i++)
        put_le32(note + 1 + 4 * i, crcs[i]);
    memcpy(note + 1 + 4 * (size_t)blocks, head, head_len);
    put_le32(note + len - 4, note_check(prefix, note, len));
    return len;
}

static bool note_ok(const uint8_t *prefix, const uint8_t *note, size_t len, size_t expected)
{
    return len == expected && note[0] == FORMAT &&
           get_le32(note + len - 4) == note_check(prefix, note, len);
}

/* ---- the data: any block can be made again from its index and generation ---- */

static uint64_t mix(uint64_t x)
{
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9u;
    x = (x ^ (x >> 27)) * 0x94D049BB133111EBu;
    return x ^ (x >> 31);
}

static uint64_t draw(uint64_t *state)
{
    *state += 0x9E3779B97F4A7C15u;
    return mix(*state);
}

static uint64_t block_word(uint64_t seed, uint64_t i)
{
    uint64_t x = (seed + i) * 0x9E3779B97F4A7C15u;
    return x ^ (x >> 29);
}

static uint64_t block_seed(uint32_t index, uint32_t generation)
{
    return mix((uint64_t)index << 32 | generation);
}

static void block_make(uint8_t *out, uint32_t index, uint32_t generation)
{
    uint64_t seed = block_seed(index, generation);
    for (size_t i = 0; i < BLOCK / 8; i++) {
        uint64_t word = block_word(seed, i);
        memcpy(out + 8 * i, &word, 8);
    }
}

/* First word (kept in the note) and last word (kept in the value) are the expected ones. */
static bool block_stamped(const uint8_t *block, uint32_t index, uint32_t generation)
{
    uint64_t seed = block_seed(index, generation), first, last;
    memcpy(&first, block, 8);
    memcpy(&last, block + BLOCK - 8, 8);
    return first == block_word(seed, 0) && last == block_word(seed, BLOCK / 8 - 1);
}

/* ---- cursors ---- */

static bool seek(struct walk *w, uint8_t kind, uint32_t index)
{
    uint8_t want[PREFIX];
    prefix_encode(want, kind, index);
    w->key = (MDB_val){ PREFIX, want };
    int rc = mdb_cursor_get(w->cursor, &w->key, &w->value, MDB_SET_RANGE);
    w->placed = rc == MDB_SUCCESS;
    if (rc == MDB_NOTFOUND)
        return false;
    check(rc, "seek");
    return w->key.mv_size >= PREFIX && memcmp(w->key.mv_data, want, PREFIX) == 0;
}

/* As seek, cheap when the wanted key is where the cursor stands or the one after it. */
static bool walk_to(struct walk *w, uint8_t kind, uint32_t index)
{
    uint8_t want[PREFIX];
    if (!w->placed)
        return seek(w, kind, index);
    prefix_encode(want, kind, index);
    if (memcmp(w->key.mv_data, want, PREFIX) >= 0)
        return memcmp(w->key.mv_data, want, PREFIX) == 0;
    int rc = mdb_cursor_get(w->cursor, &w->key, &w->value, MDB_NEXT);
    w->placed = rc == MDB_SUCCESS;
    if (rc == MDB_NOTFOUND)
        return false;
    check(rc, "next");
    int order = memcmp(w->key.mv_data, want, PREFIX);
    return order < 0 ? seek(w, kind, index) : order == 0;
}

static void store_value(struct walk *w, const uint8_t *key, size_t key_len, const uint8_t *value,
                        size_t value_len)
{
    MDB_val k = { key_len, (void *)(uintptr_t)key }, d = { value_len, (void *)(uintptr_t)value };
    check(mdb_cursor_put(w->cursor, &k, &d, 0), "put");
}

/* ---- layouts with the note in a record of its own ---- */

static bool record_find(struct view *v, uint32_t first, unsigned count, struct piece *pieces)
{
    size_t head_len = v->layout->head_len;
    for (unsigned i = 0; i < count; i++) {
        if (!walk_to(&v->blocks, 'B', first + i) || !walk_to(&v->others, 'C', first + i))
            return false;
        const uint8_t *note = v->others.value.mv_data;
        if (!note_ok(v->others.key.mv_data, note, v->others.value.mv_size, note_len(1, head_len)))
            return false;
        pieces[i] = (struct piece){ note + 5, head_len, v->blocks.value.mv_data,
                                    v->blocks.value.mv_size, get_le32(note + 1) };
    }
    return true;
}

static void record_put(struct view *v, uint32_t index, const uint8_t *block)
{
    size_t head_len = v->layout->head_len;
    uint32_t crc = crc_of(block, BLOCK);
    uint8_t key[PREFIX], note[NOTE_MAX];
    prefix_encode(key, 'B', index);
    store_value(&v->blocks, key, PREFIX, block + head_len, BLOCK - head_len);
    prefix_encode(key, 'C', index);
    size_t len = note_encode(note, key, &crc, 1, block, head_len);
    store_value(&v->others, key, PREFIX, note, len);
}

/* ---- layouts with the note in the key ---- */

/* Where the walk stands, cut into its blocks; skip of them are not wanted. */
static bool extent_cut(const struct walk *w, unsigned blocks, unsigned skip, unsigned count,
                       struct piece *pieces)
{
    const uint8_t *key = w->key.mv_data, *note = key + PREFIX, *value = w->value.mv_data;
    if (w->value.mv_size != (size_t)blocks * BLOCK - HEAD ||
        !note_ok(key, note, w->key.mv_size - PREFIX, note_len(blocks, HEAD)))
        return false;
    for (unsigned i = 0; i < count; i++) {
        unsigned k = skip + i;
        size_t head_len = k == 0 ? HEAD : 0;
        pieces[i] = (struct piece){ note + 1 + 4 * (size_t)blocks, head_len,
                                    value + (size_t)k * BLOCK - HEAD + head_len, BLOCK - head_len,
                                    get_le32(note + 1 + 4 * (size_t)k) };
    }
    return true;
}

static bool extent_find(struct view *v, uint32_t first, unsigned count, struct piece *pieces)
{
    unsigned n = v->layout->blocks;
    for (unsigned done = 0; done < count;) {
        unsigned skip = (first + done) % n;
        unsigned some = n - skip < count - done ? n - skip : count - done;
        if (!walk_to(&v->blocks, 'B', first + done - skip) ||
            !extent_cut(&v->blocks, n, skip, some, pieces + done))
            return false;
        done += some;
    }
    return true;
}

static void extent_store(struct walk *w, uint8_t kind, uint32_t first, unsigned blocks,
                         const uint8_t *data, const uint32_t *crcs)
{
    uint8_t key[KEY_MAX];
    prefix_encode(key, kind, first);
    size_t len = PREFIX + note_encode(key + PREFIX, key, crcs, blocks, data, HEAD);
    store_value(w, key, len, data + HEAD, (size_t)blocks * BLOCK - HEAD);
}

/* Delete where the walk stands. */
static void extent_delete(struct walk *w)
{
    check(mdb_cursor_del(w->cursor, 0), "delete");
    w->placed = false;
}

/* Copy the extent where the walk stands: deleting it may free the pages it is read from. */
static void extent_load(const struct walk *w, unsigned blocks, uint8_t *data, uint32_t *crcs)
{
    struct piece pieces[EXTENT_MAX];
    assert(blocks > 0);
    if (!extent_cut(w, blocks, 0, blocks, pieces))
        die("extent", "damaged");
    for (unsigned i = 0; i < blocks; i++)
        crcs[i] = pieces[i].crc;
    memcpy(data, pieces[0].head, HEAD);
    memcpy(data + HEAD, pieces[0].body, (size_t)blocks * BLOCK - HEAD);
}

static void small_put(struct view *v, uint32_t index, const uint8_t *block)
{
    uint32_t crc = crc_of(block, BLOCK);
    if (seek(&v->blocks, 'B', index))
        extent_delete(&v->blocks);
    extent_store(&v->blocks, 'B', index, 1, block, &crc);
}

static void extent_put(struct view *v, uint32_t index, const uint8_t *block)
{
    unsigned n = v->layout->blocks, k = index % n;
    uint32_t crcs[EXTENT_MAX];
    if (!seek(&v->blocks, 'B', index - k))
        die("extent", "lost");
    extent_load(&v->blocks, n, v->scratch, crcs);
    memcpy(v->scratch + (size_t)k * BLOCK, block, BLOCK);
    crcs[k] = crc_of(block, BLOCK);
    extent_delete(&v->blocks);
    extent_store(&v->blocks, 'B', index - k, n, v->scratch, crcs);
}

static void fill_kind(struct view *v, uint8_t kind, uint32_t first, const uint8_t *blocks)
{
    uint32_t crcs[EXTENT_MAX];
    for (unsigned i = 0; i < v->layout->blocks; i++)
        crcs[i] = crc_of(blocks + (size_t)i * BLOCK, BLOCK);
    extent_store(&v->blocks, kind, first, v->layout->blocks, blocks, crcs);
}

static void extent_fill(struct view *v, uint32_t first, const uint8_t *blocks)
{
    fill_kind(v, 'B', first, blocks);
}

/* ---- hybrid: extents overlaid by small blocks ---- */

static void hybrid_fill(struct view *v, uint32_t first, const uint8_t *blocks)
{
    fill_kind(v, 'E', first, blocks);
}

static bool hybrid_find(struct view *v, uint32_t first, unsigned count, struct piece *pieces)
{
    unsigned n = v->layout->blocks;
    for (unsigned i = 0; i < count; i++) {
        unsigned k = (first + i) % n;
        bool found = walk_to(&v->blocks, 'B', first + i)
                         ? extent_cut(&v->blocks, 1, 0, 1, pieces + i)
                         : walk_to(&v->others, 'E', first + i - k) &&
                               extent_cut(&v->others, n, k, 1, pieces + i);
        if (!found)
            return false;
    }
    return true;
}

/* Which blocks of the extent have a small block over them: bit k for block k. */
static unsigned overlay_mask(struct view *v, uint32_t first)
{
    uint8_t end[PREFIX];
    unsigned mask = 0;
    prefix_encode(end, 'B', first + v->layout->blocks);
    seek(&v->blocks, 'B', first);
    while (v->blocks.placed && memcmp(v->blocks.key.mv_data, end, PREFIX) < 0) {
        mask |= 1u << (get_be32((const uint8_t *)v->blocks.key.mv_data + 9) - first);
        int rc = mdb_cursor_get(v->blocks.cursor, &v->blocks.key, &v->blocks.value, MDB_NEXT);
        v->blocks.placed = rc == MDB_SUCCESS;
        if (rc != MDB_NOTFOUND)
            check(rc, "overlay");
    }
    return mask;
}

/* The extent where the walk stands becomes small blocks: what was overwritten at random once will be
 * again, and single pages never need a run of free ones. */
static void hybrid_split(struct view *v, uint32_t first, unsigned overlaid)
{
    uint32_t crcs[EXTENT_MAX];
    extent_load(&v->others, v->layout->blocks, v->scratch, crcs);
    extent_delete(&v->others);
    for (unsigned k = 0; k < v->layout->blocks; k++)
        if (!(overlaid & 1u << k))
            extent_store(&v->blocks, 'B', first + k, 1, v->scratch + (size_t)k * BLOCK, &crcs[k]);
}

static void hybrid_put(struct view *v, uint32_t index, const uint8_t *block)
{
    uint32_t first = index - index % v->layout->blocks;
    small_put(v, index, block);
    if (!seek(&v->others, 'E', first))
        return;
    unsigned overlaid = overlay_mask(v, first);
    if (__builtin_popcount(overlaid) > OVERLAY_MAX)
        hybrid_split(v, first, overlaid);
}

static const struct layout LAYOUT_TABLE[LAYOUTS] = {
    { "small-4096", 1, 0, record_find, record_put, record_put },
    { "small-4080+record", 1, HEAD, record_find, record_put, record_put },
    { "small-4080+key", 1, HEAD, extent_find, small_put, extent_fill },
    { "extent-16K", 4, HEAD, extent_find, extent_put, extent_fill },
    { "extent-64K", EXTENT_MAX, HEAD, extent_find, extent_put, extent_fill },
    { "hybrid", EXTENT_MAX, HEAD, hybrid_find, hybrid_put, hybrid_fill },
};

/* ---- stores ---- */

static void store_open(struct store *s)
{
    MDB_txn *txn;
    check(mdb_env_create(&s->env), "env_create");
    check(mdb_env_set_mapsize(s->env, MAP_BYTES), "set_mapsize");
    check(mdb_env_open(s->env, s->path, MDB_NOSUBDIR | MDB_NORDAHEAD | MDB_NOTLS, 0600), s->path);
    check(mdb_txn_begin(s->env, NULL, 0, &txn), "begin");
    check(mdb_dbi_open(txn, NULL, 0, &s->dbi), "dbi_open");
    check(mdb_txn_commit(txn), "commit");
    check(mdb_txn_begin(s->env, NULL, MDB_RDONLY, &s->reader.txn), "begin");
    check(mdb_cursor_open(s->reader.txn, s->dbi, &s->reader.blocks.cursor), "cursor_open");
    check(mdb_cursor_open(s->reader.txn, s->dbi, &s->reader.others.cursor), "cursor_open");
    mdb_txn_reset(s->reader.txn);
}

static void store_close(struct store *s)
{
    mdb_cursor_close(s->reader.blocks.cursor);
    mdb_cursor_close(s->reader.others.cursor);
    mdb_txn_abort(s->reader.txn);
    mdb_env_close(s->env);
}

static struct view *read_begin(struct store *s)
{
    struct view *v = &s->reader;
    check(mdb_txn_renew(v->txn), "renew");
    check(mdb_cursor_renew(v->txn, v->blocks.cursor), "cursor_renew");
    check(mdb_cursor_renew(v->txn, v->others.cursor), "cursor_renew");
    v->blocks.placed = v->others.placed = false;
    return v;
}

static void read_end(struct view *v)
{
    mdb_txn_reset(v->txn);
}

static struct view *write_begin(struct store *s)
{
    struct view *v = &s->writer;
    check(mdb_txn_begin(s->env, NULL, 0, &v->txn), "begin");
    check(mdb_cursor_open(v->txn, s->dbi, &v->blocks.cursor), "cursor_open");
    check(mdb_cursor_open(v->txn, s->dbi, &v->others.cursor), "cursor_open");
    return v;
}

static void write_commit(struct view *v)
{
    mdb_cursor_close(v->blocks.cursor);
    mdb_cursor_close(v->others.cursor);
    check(mdb_txn_commit(v->txn), "commit");
}

static void count_free(MDB_txn *txn, size_t *free_pages)
{
    MDB_cursor *cursor;
    MDB_val key, value;
    int rc;
    check(mdb_cursor_open(txn, 0, &cursor), "cursor_open");
    while ((rc = mdb_cursor_get(cursor, &key, &value, MDB_NEXT)) == MDB_SUCCESS)
        *free_pages += *(const size_t *)value.mv_data;
    if (rc != MDB_NOTFOUND)
        check(rc, "free list");
    mdb_cursor_close(cursor);
}

/* Every page of the file is a meta page, in the tree, in the free list's tree, or free. */
static struct pages store_pages(struct store *s)
{
    MDB_envinfo info;
    MDB_stat tree, list;
    struct pages p = { 0, 0, 0 };
    struct view *v = read_begin(s);
    check(mdb_env_info(s->env, &info), "env_info");
    check(mdb_stat(v->txn, s->dbi, &tree), "stat");
    check(mdb_stat(v->txn, 0, &list), "stat");
    count_free(v->txn, &p.free);
    read_end(v);
    p.file = info.me_last_pgno + 1;
    p.tree = tree.ms_branch_pages + tree.ms_leaf_pages + tree.ms_overflow_pages;
    size_t rest = list.ms_branch_pages + list.ms_leaf_pages + list.ms_overflow_pages + 2;
    if (p.tree + p.free + rest != p.file)
        die(s->layout->name, "pages unaccounted for");
    return p;
}

static size_t resident_pages(int fd, size_t bytes)
{
    size_t pages = (bytes + BLOCK - 1) / BLOCK, resident = 0;
    unsigned char *vec = allocate(pages, 1);
    void *map = mmap(NULL, bytes, PROT_READ, MAP_SHARED, fd, 0);
    check_sys(map != MAP_FAILED, "mmap");
    check_sys(mincore(map, bytes, vec) == 0, "mincore");
    for (size_t i = 0; i < pages; i++)
        resident += vec[i] & 1;
    munmap(map, bytes);
    free(vec);
    return resident;
}

/* The mapping has to go first: a mapped page is not dropped. */
static void store_chill(struct store *s)
{
    struct stat st = { 0 };
    store_close(s);
    int fd = open(s->path, O_RDONLY | O_CLOEXEC);
    check_sys(fd >= 0, s->path);
    check_sys(fsync(fd) == 0 && fstat(fd, &st) == 0, s->path);
    check_sys(posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED) == 0, "fadvise");
    size_t pages = resident_pages(fd, (size_t)st.st_size);
    if (pages > 256)
        die(s->layout->name, "file does not leave the page cache");
    close(fd);
    store_open(s);
}

/* ---- meters ---- */

struct mark {
    double seconds;
    uint64_t device_bytes;
};

static double now(void)
{
    struct timespec ts;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (double)ts.tv_sec + 1e-9 * (double)ts.tv_nsec;
}

/* Sectors written are the seventh number of a block device's stat. */
static uint64_t device_bytes(const struct bench *b)
{
    uint64_t value = 0;
    char line[256];
    FILE *f = fopen(b->counter_path[0] ? b->counter_path : "/proc/self/io", "re");
    check_sys(f != NULL, "write counter");
    while (fgets(line, sizeof line, f)) {
        if (b->counter_path[0]) {
            if (sscanf(line, "%*u %*u %*u %*u %*u %*u %" SCNu64, &value) == 1)
                value *= 512;
        } else if (sscanf(line, "write_bytes: %" SCNu64, &value) == 1) {
            break;
        }
    }
    fclose(f);
    return value;
}

static struct mark mark_start(const struct bench *b)
{
    struct mark m = { .device_bytes = device_bytes(b) };
    m.seconds = now();
    return m;
}

static void meter_add(const struct bench *b, struct meter *m, struct mark start, uint64_t blocks)
{
    double seconds = now() - start.seconds;
    m->seconds += seconds;
    if (seconds > m->worst)
        m->worst = seconds;
    m->device_bytes += device_bytes(b) - start.device_bytes;
    m->ops += blocks;
    m->bytes += blocks * BLOCK;
}

static double mb_per_second(const struct meter *m)
{
    return m->seconds > 0 ? (double)m->bytes / m->seconds / 1e6 : 0;
}

static double ops_per_second(const struct meter *m)
{
    return m->seconds > 0 ? (double)m->ops / m->seconds : 0;
}

static double amplification(const struct meter *m)
{
    return m->bytes > 0 ? (double)m->device_bytes / (double)m->bytes : 0;
}

static int compare_doubles(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double percentile(double *values, unsigned percent)
{
    qsort(values, SINGLES, sizeof *values, compare_doubles);
    return values[(size_t)(SINGLES - 1) * percent / 100];
}

/* ---- writing ---- */

static struct store *in_turn(struct bench *b, unsigned i)
{
    return &b->stores[(b->turn + i) % b->count];
}

static void payload_make(struct bench *b, unsigned i, uint32_t index)
{
    b->indexes[i] = index;
    block_make(b->payload + (size_t)i * BLOCK, index, ++b->generation[index]);
}

static void fill_batch(struct bench *b, struct store *s, unsigned count)
{
    struct mark start = mark_start(b);
    struct view *v = write_begin(s);
    for (unsigned i = 0; i < count; i += s->layout->blocks)
        s->layout->fill(v, b->indexes[i], b->payload + (size_t)i * BLOCK);
    write_commit(v);
    meter_add(b, &s->meters[FRESH][FILL], start, count);
}

/* Whole extents: the batch is rounded up to the next multiple of the largest. */
static void fill_all(struct bench *b)
{
    unsigned batch = (b->batch + EXTENT_MAX - 1) / EXTENT_MAX * EXTENT_MAX;
    for (uint32_t first = 0; first < b->blocks; first += batch, b->turn++) {
        unsigned count = b->blocks - first < batch ? b->blocks - first : batch;
        for (unsigned i = 0; i < count; i++)
            payload_make(b, i, first + i);
        for (unsigned i = 0; i < b->count; i++)
            fill_batch(b, in_turn(b, i), count);
    }
}

static double put_batch(struct bench *b, struct store *s, struct meter *m, unsigned count)
{
    struct mark start = mark_start(b);
    struct view *v = write_begin(s);
    for (unsigned i = 0; i < count; i++)
        s->layout->put(v, b->indexes[i], b->payload + (size_t)i * BLOCK);
    write_commit(v);
    double seconds = now() - start.seconds;
    meter_add(b, m, start, count);
    return seconds;
}

static void random_batch(struct bench *b, unsigned count)
{
    for (unsigned i = 0; i < count; i++)
        payload_make(b, i, (uint32_t)(draw(&b->random) % b->blocks));
}

/* The first pass is the fresh file's figure, the last the aged one's; those between are not kept. */
static void overwrite_pass(struct bench *b, unsigned pass)
{
    for (uint32_t done = 0; done < b->blocks; done += b->batch, b->turn++) {
        unsigned count = b->blocks - done < b->batch ? b->blocks - done : b->batch;
        random_batch(b, count);
        for (unsigned i = 0; i < b->count; i++) {
            struct store *s = in_turn(b, i);
            struct meter between = { 0 };
            put_batch(b, s,
                      pass == 0               ? &s->meters[FRESH][PUT]
                      : pass == b->passes - 1 ? &s->meters[AGED][PUT]
                                              : &between,
                      count);
        }
    }
}

static double plain_put(struct bench *b)
{
    off_t offset = (off_t)(draw(&b->random) % PLAIN_BLOCKS) * BLOCK;
    double start = now();
    check_sys(pwrite(b->plain, b->payload, BLOCK, offset) == BLOCK, "pwrite");
    check_sys(fdatasync(b->plain) == 0, "fdatasync");
    return now() - start;
}

static void plain_open(struct bench *b)
{
    check_sys(asprintf(&b->plain_path, "%s/plain", b->dir) > 0, b->dir);
    b->plain = open(b->plain_path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    check_sys(b->plain >= 0, b->plain_path);
    for (unsigned i = 0; i < PLAIN_BLOCKS; i++)
        check_sys(pwrite(b->plain, b->payload, BLOCK, (off_t)i * BLOCK) == BLOCK, b->plain_path);
    check_sys(fsync(b->plain) == 0, b->plain_path);
}

/* One put per commit, beside the same on a plain file. */
static void measure_singles(struct bench *b, enum age age)
{
    for (unsigned n = 0; n < SINGLES; n++, b->turn++) {
        struct meter ignored = { 0 };
        random_batch(b, 1);
        for (unsigned i = 0; i < b->count; i++) {
            struct store *s = in_turn(b, i);
            s->single[age][n] = put_batch(b, s, &ignored, 1);
        }
        b->plain_single[age][n] = plain_put(b);
    }
}

/* ---- reading ---- */

static void copy_out(const struct bench *b, const struct store *s, const struct piece *p,
                     uint32_t index)
{
    uint8_t block[BLOCK];
    if (p->head_len + p->body_len != BLOCK)
        die(s->layout->name, "wrong length");
    memcpy(block, p->head, p->head_len);
    memcpy(block + p->head_len, p->body, p->body_len);
    if (crc_of(block, BLOCK) != p->crc)
        die(s->layout->name, "CRC mismatch");
    if (!block_stamped(block, index, b->generation[index]))
        die(s->layout->name, "not the block last put here");
}

/* Ask for the pages of a window, neighbours in one call. */
static void hint(const struct piece *pieces, unsigned count)
{
    uintptr_t begin = 0, end = 0;
    for (unsigned i = 0; i < count; i++) {
        uintptr_t from = (uintptr_t)pieces[i].body & ~(uintptr_t)(BLOCK - 1);
        uintptr_t to = (uintptr_t)pieces[i].body + pieces[i].body_len;
        if (from > end || from < begin) {
            if (end > begin)
                madvise((void *)begin, end - begin, MADV_WILLNEED);
            begin = from;
        }
        end = (to + BLOCK - 1) & ~(uintptr_t)(BLOCK - 1);
    }
    if (end > begin)
        madvise((void *)begin, end - begin, MADV_WILLNEED);
}

static void find_window(const struct store *s, struct view *v, uint32_t first, struct piece *pieces)
{
    if (!s->layout->find(v, first, WINDOW, pieces))
        die(s->layout->name, "block missing or its note damaged");
}

/* With hints the next window is found and asked for before this one is copied. */
static void read_slice(struct bench *b, struct store *s, uint32_t first, uint32_t end, bool hints)
{
    struct piece pieces[2][WINDOW];
    struct view *v = read_begin(s);
    unsigned side = 0;
    find_window(s, v, first, pieces[side]);
    for (; first < end; first += WINDOW, side ^= 1) {
        uint32_t next = first + WINDOW;
        if (next < end)
            find_window(s, v, next, pieces[side ^ 1]);
        if (next < end && hints)
            hint(pieces[side ^ 1], WINDOW);
        for (unsigned i = 0; i < WINDOW; i++)
            copy_out(b, s, &pieces[side][i], first + i);
    }
    read_end(v);
}

static void read_random(struct bench *b, struct store *s, unsigned count, uint64_t seed)
{
    struct piece piece;
    for (unsigned i = 0; i < count; i++) {
        uint32_t index = (uint32_t)(draw(&seed) % b->blocks);
        struct view *v = read_begin(s);
        if (!s->layout->find(v, index, 1, &piece))
            die(s->layout->name, "block missing or its note damaged");
        copy_out(b, s, &piece, index);
        read_end(v);
    }
}

static void measure_sequential(struct bench *b, enum age age, enum phase phase)
{
    uint32_t slice = b->blocks / TURNS;
    for (unsigned turn = 0; turn < TURNS; turn++, b->turn++)
        for (unsigned i = 0; i < b->count; i++) {
            struct store *s = in_turn(b, i);
            struct mark start = mark_start(b);
            read_slice(b, s, turn * slice, (turn + 1) * slice, phase == SEQ_HINT);
            meter_add(b, &s->meters[age][phase], start, slice);
        }
}

static void measure_random(struct bench *b, enum age age, enum phase phase, unsigned reads)
{
    for (unsigned turn = 0; turn < TURNS; turn++, b->turn++) {
        uint64_t seed = draw(&b->random);
        for (unsigned i = 0; i < b->count; i++) {
            struct store *s = in_turn(b, i);
            struct mark start = mark_start(b);
            read_random(b, s, reads / TURNS, seed);
            meter_add(b, &s->meters[age][phase], start, reads / TURNS);
        }
    }
}

/* Compare every byte of every block; leaves the file warm. */
static void verify_store(const struct bench *b, struct store *s)
{
    uint8_t expected[BLOCK];
    struct piece p;
    struct view *v = read_begin(s);
    for (uint32_t i = 0; i < b->blocks; i++) {
        if (!s->layout->find(v, i, 1, &p))
            die(s->layout->name, "block missing or its note damaged");
        copy_out(b, s, &p, i);
        block_make(expected, i, b->generation[i]);
        if (memcmp(expected, p.head, p.head_len) != 0 ||
            memcmp(expected + p.head_len, p.body, p.body_len) != 0)
            die(s->layout->name, "wrong bytes");
    }
    read_end(v);
}

static void verify_all(struct bench *b)
{
    for (unsigned i = 0; i < b->count; i++)
        verify_store(b, &b->stores[i]);
}

static void chill_all(struct bench *b)
{
    for (unsigned i = 0; i < b->count; i++)
        store_chill(&b->stores[i]);
}

static void measure_reads(struct bench *b, enum age age)
{
    verify_all(b);
    for (unsigned i = 0; i < b->count; i++)
        b->stores[i].pages[age] = store_pages(&b->stores[i]);
    uint64_t bytes = device_bytes(b);
    double start = now();
    measure_sequential(b, age, SEQ_WARM);
    measure_random(b, age, RAND_WARM, READS_WARM);
    chill_all(b);
    measure_sequential(b, age, SEQ_COLD);
    chill_all(b);
    measure_sequential(b, age, SEQ_HINT);
    chill_all(b);
    measure_random(b, age, RAND_COLD, READS_COLD);
    b->background_bytes += device_bytes(b) - bytes;
    b->background_seconds += now() - start;
    verify_all(b);
}

/* ---- report ---- */

static void report_writes(struct bench *b, enum age age)
{
    double live = b->blocks;
    for (unsigned i = 0; i < b->count; i++) {
        struct store *s = &b->stores[i];
        const struct meter *put = &s->meters[age][PUT], *fill = &s->meters[age][FILL];
        const struct pages *p = &s->pages[age];
        char filled[64] = "– | –";
        if (age == FRESH)
            snprintf(filled, sizeof filled, "%.0f | %.2f", mb_per_second(fill),
                     amplification(fill));
        printf("| %s | %s | %.3f | %.3f | %s | %.0f | %.2f | %.0f | %.0f / %.0f |\n",
               s->layout->name, age == FRESH ? "fresh" : "aged", (double)p->file / live,
               (double)p->tree / live, filled, ops_per_second(put), amplification(put),
               put->worst * 1e3, percentile(s->single[age], 50) * 1e6,
               percentile(s->single[age], 99) * 1e6);
    }
    printf("| pwrite + fdatasync | %s | | | | | | | | %.0f / %.0f |\n",
           age == FRESH ? "fresh" : "aged", percentile(b->plain_single[age], 50) * 1e6,
           percentile(b->plain_single[age], 99) * 1e6);
}

static void report_reads(const struct bench *b, enum age age)
{
    for (unsigned i = 0; i < b->count; i++) {
        const struct store *s = &b->stores[i];
        const struct meter *m = s->meters[age];
        printf("| %s | %s | %.0f | %.0f | %.0f | %.0f | %.0f |\n", s->layout->name,
               age == FRESH ? "fresh" : "aged", mb_per_second(&m[SEQ_WARM]),
               mb_per_second(&m[SEQ_COLD]), mb_per_second(&m[SEQ_HINT]),
               ops_per_second(&m[RAND_WARM]), ops_per_second(&m[RAND_COLD]));
    }
}

static void report(struct bench *b, double seconds)
{
    double load[3] = { 0, 0, 0 };
    if (getloadavg(load, 3) < 0)
        load[0] = load[1] = load[2] = -1;
    printf("%u MiB of data, %u passes, %u puts per transaction; %.0f s; load %.1f %.1f %.1f; %s\n",
           b->blocks / 256, b->passes, b->batch, seconds, load[0], load[1], load[2],
           mdb_version(NULL, NULL, NULL));
    printf("device bytes from %s; others wrote %.2f MB/s to it while only reads ran\n\n",
           b->counter_path[0] ? "the block device's stat" : "/proc/self/io (no block device found)",
           (double)b->background_bytes / b->background_seconds / 1e6);
    printf(
        "| layout | age | file / live | tree / live | fill MB/s | device / payload (fill) | puts/s "
        "| device / payload (puts) | worst batch ms | single put µs p50 / p99 |\n"
        "|---|---|--:|--:|--:|--:|--:|--:|--:|--:|\n");
    report_writes(b, FRESH);
    report_writes(b, AGED);
    printf("\n| layout | age | sequential warm MB/s | cold | cold, hinted | random warm ops/s | "
           "cold |\n"
           "|---|---|--:|--:|--:|--:|--:|\n");
    report_reads(b, FRESH);
    report_reads(b, AGED);
}

/* ---- set-up ---- */

static unsigned long number(const char *text, unsigned long least, unsigned long most)
{
    char *end;
    errno = 0;
    unsigned long value = strtoul(text, &end, 10);
    if (errno != 0 || *end != '\0' || end == text || value < least || value > most)
        die(text, "not a number in range");
    return value;
}

static void add_store(struct bench *b, const struct layout *layout)
{
    struct store *s = &b->stores[b->count++];
    s->layout = s->reader.layout = s->writer.layout = layout;
    s->writer.scratch = allocate(EXTENT_MAX, BLOCK);
    check_sys(asprintf(&s->path, "%s/%s", b->dir, layout->name) > 0, b->dir);
    store_open(s);
}

static void add_named(struct bench *b, const char *name)
{
    for (unsigned i = 0; i < LAYOUTS; i++)
        if (strcmp(LAYOUT_TABLE[i].name, name) == 0 && b->count < LAYOUTS) {
            add_store(b, &LAYOUT_TABLE[i]);
            return;
        }
    die(name, "no such layout");
}

static void find_counter(struct bench *b)
{
    struct stat st;
    check_sys(stat(b->dir, &st) == 0, b->dir);
    snprintf(b->counter_path, sizeof b->counter_path, "/sys/dev/block/%u:%u/stat", major(st.st_dev),
             minor(st.st_dev));
    if (access(b->counter_path, R_OK) != 0)
        b->counter_path[0] = '\0';
}

static void bench_open(struct bench *b, int argc, char **argv)
{
    unsigned long mib = argc > 2 ? number(argv[2], 4, 16384) : 512;
    b->blocks = (uint32_t)mib * 256;
    b->passes = argc > 3 ? (unsigned)number(argv[3], 2, 1000) : 10;
    b->batch = argc > 4 ? (unsigned)number(argv[4], 1, BATCH_MAX) : 1000;
    b->random = 1;
    check_sys(asprintf(&b->dir, "%s/layout.XXXXXX", argv[1]) > 0, argv[1]);
    check_sys(mkdtemp(b->dir) != NULL, b->dir);
    find_counter(b);
    b->generation = allocate(b->blocks, sizeof *b->generation);
    b->indexes = allocate(b->batch + EXTENT_MAX, sizeof *b->indexes);
    b->payload = allocate(b->batch + EXTENT_MAX, BLOCK);
    for (int i = 5; i < argc; i++)
        add_named(b, argv[i]);
    for (unsigned i = 0; i < LAYOUTS && argc <= 5; i++)
        add_store(b, &LAYOUT_TABLE[i]);
    plain_open(b);
}

static void remove_store(struct store *s)
{
    char *lock;
    store_close(s);
    check_sys(asprintf(&lock, "%s-lock", s->path) > 0, s->path);
    check_sys(unlink(s->path) == 0 && unlink(lock) == 0, s->path);
    free(lock);
    free(s->path);
    free(s->writer.scratch);
}

static void bench_close(struct bench *b)
{
    for (unsigned i = 0; i < b->count; i++)
        remove_store(&b->stores[i]);
    close(b->plain);
    check_sys(unlink(b->plain_path) == 0 && rmdir(b->dir) == 0, b->dir);
    free(b->plain_path);
    free(b->dir);
    free(b->generation);
    free(b->indexes);
    free(b->payload);
}

static void measure(struct bench *b)
{
    double start = now();
    fill_all(b);
    fprintf(stderr, "filled, %.0f s\n", now() - start);
    measure_reads(b, FRESH);
    measure_singles(b, FRESH);
    fprintf(stderr, "fresh file measured, %.0f s\n", now() - start);
    for (unsigned pass = 0; pass < b->passes; pass++) {
        overwrite_pass(b, pass);
        fprintf(stderr, "pass %u, %.0f s\n", pass + 1, now() - start);
    }
    measure_reads(b, AGED);
    measure_singles(b, AGED);
    verify_all(b);
    report(b, now() - start);
}

int main(int argc, char **argv)
{
    if (argc < 2 || argv[1][0] == '-') {
        fprintf(stderr, "usage: layout DIR [MIB [PASSES [BATCH [LAYOUT...]]]]\n");
        return 2;
    }
    check_crc_function();
    struct bench *b = allocate(1, sizeof *b);
    bench_open(b, argc, argv);
    measure(b);
    bench_close(b);
    free(b);
    return close_output("layout");
}
