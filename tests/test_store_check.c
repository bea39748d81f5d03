/* The check of a volume's records: each inconsistency alone is found with its line, repaired where
 * that is safe, and gone afterwards; random damage is survived and never overlooked.
 *
 * The volume under test (inode numbers):
 *
 *     /            1   directory
 *     /d           2   directory
 *     /f           3   file, data 10, 3 blocks, an attribute
 *     /d/g, /h     4   one file with two names
 *     /s           5   symbolic link
 *     (orphan)     6   file, data 11, 2 blocks
 *     (trim)           data 12, 1 block
 */
#include "store/check.h"

#include <criterion/criterion.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "store/bytes.h"
#include "store/crc32c.h"

#define LINES_MAX  32
#define ROUNDS_MAX 8
#define COUNTER    100u

struct volume {
    char path[64];
    struct lmdb *l;
    unsigned nr_lines;
    char lines[LINES_MAX][512]; /* findings other than notes, of the last check */
    enum check_kind kinds[LINES_MAX];
    struct check_summary summary;
};

/* ---- making one ------------------------------------------------------------------------------ */

static void put(struct volume *v, const struct key *key, const void *value, size_t len)
{
    cr_assert_eq(lmdb_put(v->l, key, value, len), 0);
}

static void del(struct volume *v, const struct key *key)
{
    cr_assert_eq(lmdb_del(v->l, key), 0);
}

static struct inode_record make(uint32_t mode, uint32_t nlink)
{
    return (struct inode_record){ .mode = mode, .nlink = nlink };
}

static void put_inode(struct volume *v, uint64_t ino, struct inode_record r)
{
    uint8_t buf[INODE_BYTES];
    struct key key;

    key_inode(&key, ino);
    put(v, &key, buf, inode_encode(&r, buf));
}

static void put_directory(struct volume *v, uint64_t ino, uint32_t nlink, uint64_t parent,
                          uint64_t cookie)
{
    struct inode_record r = make(S_IFDIR | 0755, nlink);

    r.parent = parent;
    r.cookie = cookie;
    put_inode(v, ino, r);
}

static void put_file(struct volume *v, uint64_t ino, uint32_t nlink, uint64_t data_id,
                     uint64_t blocks)
{
    struct inode_record r = make(S_IFREG | 0644, nlink);

    r.size = blocks * BLOCK_SIZE;
    r.data_id = data_id;
    put_inode(v, ino, r);
}

static void put_dirent(struct volume *v, uint64_t dir, const char *name, uint64_t ino,
                       uint64_t cookie, uint8_t type)
{
    struct dirent_record r = { .ino = ino, .cookie = cookie, .type = type };
    uint8_t buf[DIRENT_BYTES];
    struct key key;

    key_dirent(&key, dir, name, strlen(name));
    put(v, &key, buf, dirent_encode(&r, buf));
}

static void put_cookie(struct volume *v, uint64_t dir, const char *name, uint64_t ino,
                       uint64_t cookie, uint8_t type)
{
    struct dirent_record r = { .ino = ino, .cookie = cookie, .type = type };
    uint8_t buf[DIRENT_BYTES];
    struct key key;

    r.name_len = (uint8_t)strlen(name);
    strcpy(r.name, name);
    key_cookie(&key, dir, cookie);
    put(v, &key, buf, dirent_encode(&r, buf));
}

static void put_name(struct volume *v, uint64_t dir, const char *name, uint64_t ino,
                     uint64_t cookie, uint8_t type)
{
    put_dirent(v, dir, name, ino, cookie, type);
    put_cookie(v, dir, name, ino, cookie, type);
}

static void del_dirent(struct volume *v, uint64_t dir, const char *name)
{
    struct key key;

    key_dirent(&key, dir, name, strlen(name));
    del(v, &key);
}

static void del_cookie(struct volume *v, uint64_t dir, uint64_t cookie)
{
    struct key key;

    key_cookie(&key, dir, cookie);
    del(v, &key);
}

static void put_number(struct volume *v, const struct key *key, uint64_t n)
{
    uint8_t buf[NUMBER_BYTES];

    put(v, key, buf, number_encode(n, buf));
}

static void put_data(struct volume *v, uint64_t id, uint32_t blocks)
{
    uint8_t data[BLOCK_SIZE];
    struct key key;

    for (uint32_t i = 0; i < blocks; i++) {
        memset(data, (int)(id + i), sizeof data);
        put_le64(data + 100, id * 1000 + i); /* to be found again */
        cr_assert_eq(lmdb_put_block(v->l, id, i, data, block_crc(id, i, data)), 0);
    }
    key_blocks(&key, id);
    put_number(v, &key, blocks);
}

static void put_super(struct volume *v)
{
    struct super_record r = { .format_version = FORMAT_VERSION,
                              .block_size = BLOCK_SIZE,
                              .capacity = MIN_CAPACITY };
    uint8_t buf[SUPER_BYTES];
    struct key key;

    key_super(&key);
    put(v, &key, buf, super_encode(&r, buf));
    key_counter(&key);
    put_number(v, &key, COUNTER);
}

static void put_contents(struct volume *v)
{
    struct key key;

    put_super(v);
    put_directory(v, ROOT_INO, 3, ROOT_INO, 7);
    put_directory(v, 2, 2, ROOT_INO, 4);
    put_file(v, 3, 1, 10, 3);
    put_file(v, 4, 2, 0, 0);
    put_inode(v, 5, make(S_IFLNK | 0777, 1));
    put_file(v, 6, 0, 11, 2);
    put_name(v, ROOT_INO, "d", 2, 3, DT_DIR);
    put_name(v, ROOT_INO, "f", 3, 4, DT_REG);
    put_name(v, ROOT_INO, "h", 4, 5, DT_REG);
    put_name(v, ROOT_INO, "s", 5, 6, DT_LNK);
    put_name(v, 2, "g", 4, 3, DT_REG);
    put_data(v, 10, 3);
    put_data(v, 11, 2);
    put_data(v, 12, 1);
    key_link(&key, 5);
    put(v, &key, "target", 6);
    key_xattr(&key, 3, "user.x", 6);
    put(v, &key, "value", 5);
    key_orphan(&key, 6);
    put(v, &key, NULL, 0);
    key_trim(&key, 12, 0, 7);
    put(v, &key, NULL, 0);
}

static void volume_begin(struct volume *v)
{
    struct store_error error;

    cr_assert_eq(lmdb_open(v->path, false, &v->l, &error), 0, "%s", error.text);
    cr_assert_eq(lmdb_begin(v->l), 0);
}

static void volume_commit(struct volume *v)
{
    cr_assert_eq(lmdb_commit(v->l), 0);
    lmdb_close(v->l);
    v->l = NULL;
}

/* Make the sound volume. */
static struct volume *volume_new(void)
{
    struct volume *v = calloc(1, sizeof *v);
    struct store_error error;

    strcpy(v->path, "/tmp/test_store_check.XXXXXX");
    close(mkstemp(v->path));
    cr_assert_eq(lmdb_create(v->path, MIN_CAPACITY, &v->l, &error), 0, "%s", error.text);
    cr_assert_eq(lmdb_begin(v->l), 0);
    put_contents(v);
    volume_commit(v);
    return v;
}

static void volume_remove(struct volume *v)
{
    unlink(v->path);
    free(v);
}

/* ---- checking it ----------------------------------------------------------------------------- */

static void see_line(void *ctx, enum check_kind kind, bool fixable, const char *line)
{
    struct volume *v = ctx;

    if (kind == CHECK_NOTE || v->nr_lines == LINES_MAX)
        return;
    v->kinds[v->nr_lines] = kind;
    snprintf(v->lines[v->nr_lines++], sizeof v->lines[0], "%s%s", line, fixable ? "" : " !");
}

/* Check, and repair what can be when repair is set.   Returns what was fixable. */
static uint64_t check(struct volume *v, bool repair)
{
    struct store_error error;
    struct check *c;
    int fd = open(v->path, O_RDONLY | O_CLOEXEC);

    cr_assert(fd >= 0);
    v->nr_lines = 0;
    cr_assert_eq(check_volume(fd, see_line, v, &c), 0);
    v->summary = *check_summary(c);
    if (repair && v->summary.fixable > 0) {
        cr_assert_eq(lmdb_open(v->path, false, &v->l, &error), 0, "%s", error.text);
        cr_assert_eq(check_repair(c, v->l), 0);
        lmdb_close(v->l);
    }
    check_free(c);
    close(fd);
    return v->summary.fixable;
}

/* Exactly these lines, in any order; one that ends in " !" is not fixable. */
static void expect_lines(struct volume *v, const char *const *lines, unsigned n)
{
    for (unsigned i = 0; i < n; i++) {
        bool found = false;
        for (unsigned j = 0; j < v->nr_lines; j++)
            found = found || strcmp(v->lines[j], lines[i]) == 0;
        cr_expect(found, "missing: %s", lines[i]);
    }
    for (unsigned j = 0; j < v->nr_lines; j++) {
        bool wanted = false;
        for (unsigned i = 0; i < n; i++)
            wanted = wanted || strcmp(v->lines[j], lines[i]) == 0;
        cr_expect(wanted, "not expected: %s", v->lines[j]);
    }
}

/* Commit what was broken: exactly the lines are found; then repair until there is nothing to do. */
static void expect_repaired(struct volume *v, const char *const *lines, unsigned n)
{
    unsigned round = 0;

    volume_commit(v);
    check(v, false);
    expect_lines(v, lines, n);
    while (check(v, true) > 0)
        cr_assert_lt(++round, ROUNDS_MAX, "goes on: %s", v->lines[0]);
    for (unsigned i = 0; i < v->nr_lines; i++) {
        size_t len = strlen(v->lines[i]);
        cr_expect(len > 2 && strcmp(v->lines[i] + len - 2, " !") == 0, "stays: %s", v->lines[i]);
    }
}

#define EXPECT_REPAIRED(v, ...)                                       \
    do {                                                              \
        static const char *const lines_[] = { __VA_ARGS__ };          \
        expect_repaired(v, lines_, sizeof lines_ / sizeof lines_[0]); \
    } while (0)

static void expect_clean(struct volume *v)
{
    check(v, false);
    cr_expect_eq(v->nr_lines, 0u, "left: %s", v->lines[0]);
}

static struct volume *broken; /* a Criterion test runs in a process of its own */

static void setup(void)
{
    broken = volume_new();
    volume_begin(broken);
}

static void teardown(void)
{
    volume_remove(broken);
}

/* The record after a repair. */
static struct inode_record get_inode(struct volume *v, uint64_t ino)
{
    struct store_error error;
    struct inode_record r;
    uint8_t buf[INODE_BYTES];
    struct key key;

    cr_assert_eq(lmdb_open(v->path, true, &v->l, &error), 0, "%s", error.text);
    key_inode(&key, ino);
    cr_assert_eq(lmdb_get(v->l, &key, buf, sizeof buf), (ssize_t)INODE_BYTES);
    cr_assert_eq(inode_decode(buf, INODE_BYTES, &r), 0);
    lmdb_close(v->l);
    return r;
}

static bool has_record(struct volume *v, const struct key *key)
{
    struct store_error error;
    uint8_t buf[512];

    cr_assert_eq(lmdb_open(v->path, true, &v->l, &error), 0, "%s", error.text);
    ssize_t n = lmdb_get(v->l, key, buf, sizeof buf);
    lmdb_close(v->l);
    return n >= 0;
}

static bool has_name(struct volume *v, uint64_t dir, const char *name)
{
    struct key key;

    key_dirent(&key, dir, name, strlen(name));
    return has_record(v, &key);
}

/* Change bytes of the file that follow the given ones, wherever they are (old copies too). */
static void patch(struct volume *v, const void *bytes, size_t len, size_t at, const void *to,
                  size_t to_len)
{
    struct stat st;
    int fd = open(v->path, O_RDWR | O_CLOEXEC);
    unsigned found = 0;

    cr_assert_eq(fstat(fd, &st), 0);
    uint8_t *file = malloc((size_t)st.st_size);
    cr_assert_eq(pread(fd, file, (size_t)st.st_size, 0), (ssize_t)st.st_size);
    for (size_t i = 0; i + len <= (size_t)st.st_size && i + at + to_len <= (size_t)st.st_size; i++)
        if (memcmp(file + i, bytes, len) == 0) {
            cr_assert_eq(pwrite(fd, to, to_len, (off_t)(i + at)), (ssize_t)to_len);
            found++;
        }
    cr_assert_gt(found, 0u);
    free(file);
    close(fd);
}

/* ---- sound ----------------------------------------------------------------------------------- */

TestSuite(check, .init = setup, .fini = teardown);

Test(check, sound_volume_is_clean_and_counted)
{
    struct volume *v = broken;
    volume_commit(v);
    expect_clean(v);
    cr_expect_eq(v->summary.files, 3u);
    cr_expect_eq(v->summary.directories, 2u);
    cr_expect_eq(v->summary.symlinks, 1u);
    cr_expect_eq(v->summary.blocks, 6u);
    cr_expect_eq(v->summary.orphans, 1u);
    cr_expect_eq(v->summary.trims, 1u);
}

Test(check, what_a_crash_leaves_is_clean)
{
    struct volume *v = broken;
    struct inode_record r = make(S_IFREG | 0644, 1);
    struct key key;

    r.size = BLOCK_SIZE; /* two blocks lie beyond */
    r.data_id = 10;
    r.flags = INODE_EXTENDING;
    put_inode(v, 3, r);
    put_directory(v, 20, 0, 2, 3); /* a removed directory that was still open */
    key_orphan(&key, 20);
    put(v, &key, NULL, 0);
    put_data(v, 13, 3); /* two pending trims cover it together */
    key_trim(&key, 13, 0, 2);
    put(v, &key, NULL, 0);
    key_trim(&key, 13, 2, 3);
    put(v, &key, NULL, 0);
    volume_commit(v);
    expect_clean(v);
    cr_expect_eq(v->summary.extending, 1u);
}

/* ---- links and names ------------------------------------------------------------------------- */

Test(check, wrong_link_count_of_file)
{
    put_file(broken, 4, 3, 0, 0);
    EXPECT_REPAIRED(broken, "inode 4: has 2 links, recorded are 3");
    cr_expect_eq(get_inode(broken, 4).nlink, 2u);
}

Test(check, link_count_zero_of_named_file)
{
    put_file(broken, 4, 0, 0, 0);
    EXPECT_REPAIRED(broken, "inode 4: has 2 links, recorded are 0");
    expect_clean(broken);
}

Test(check, wrong_link_count_of_directory)
{
    put_directory(broken, 2, 5, ROOT_INO, 4);
    EXPECT_REPAIRED(broken, "inode 2: has 2 links, recorded are 5");
    expect_clean(broken);
}

Test(check, entry_of_missing_inode_goes)
{
    put_name(broken, 2, "x", 50, 4, DT_REG);
    put_directory(broken, 2, 2, ROOT_INO, 5);
    EXPECT_REPAIRED(broken, "\"x\" in directory 2: there is no inode 50");
    cr_expect(!has_name(broken, 2, "x"));
    expect_clean(broken);
}

Test(check, entry_in_missing_directory_goes)
{
    put_name(broken, 50, "x", 4, 3, DT_REG);
    EXPECT_REPAIRED(broken, "\"x\" in directory 50: there is no such directory");
    expect_clean(broken);
}

Test(check, entry_in_a_file_goes)
{
    put_name(broken, 3, "x", 4, 3, DT_REG);
    EXPECT_REPAIRED(broken, "\"x\" in directory 3: that is not a directory");
    expect_clean(broken);
}

Test(check, entry_of_the_root_goes)
{
    put_name(broken, 2, "x", ROOT_INO, 4, DT_DIR);
    put_directory(broken, 2, 2, ROOT_INO, 5);
    EXPECT_REPAIRED(broken, "\"x\" in directory 2: is the root directory");
    expect_clean(broken);
}

Test(check, entry_with_an_impossible_name_goes)
{
    put_dirent(broken, 2, "a/b", 4, 4, DT_REG);
    put_directory(broken, 2, 2, ROOT_INO, 5);
    EXPECT_REPAIRED(broken, "\"a/b\" in directory 2: not a name");
    expect_clean(broken);
}

Test(check, wrong_type_in_both_halves)
{
    put_name(broken, ROOT_INO, "f", 3, 4, DT_LNK);
    EXPECT_REPAIRED(broken, "\"f\" in directory 1: type 10, but inode 3 has type 8");
    expect_clean(broken);
}

Test(check, missing_cookie_is_made)
{
    struct key key;
    del_cookie(broken, ROOT_INO, 4);
    EXPECT_REPAIRED(broken, "\"f\" in directory 1: has no cookie record 4");
    key_cookie(&key, ROOT_INO, 4);
    cr_expect(has_record(broken, &key));
    expect_clean(broken);
}

Test(check, differing_cookie_is_rewritten)
{
    put_cookie(broken, ROOT_INO, "f", 4, 4, DT_REG);
    EXPECT_REPAIRED(broken, "\"f\" in directory 1: differs from its cookie record 4");
    expect_clean(broken);
}

Test(check, two_names_with_one_cookie_are_separated)
{
    put_dirent(broken, ROOT_INO, "h", 4, 4, DT_REG); /* f has 4, and h's record is at 5 */
    EXPECT_REPAIRED(broken, "\"h\" in directory 1: its cookie 4 is another name's",
                    "cookie 5 of directory 1: there is no entry \"h\"");
    cr_expect_eq(get_inode(broken, ROOT_INO).cookie, 8u);
    expect_clean(broken);
}

Test(check, extra_cookie_goes)
{
    put_cookie(broken, ROOT_INO, "f2", 3, 6 + 1, DT_REG);
    put_directory(broken, ROOT_INO, 3, ROOT_INO, 8);
    EXPECT_REPAIRED(broken, "cookie 7 of directory 1: there is no entry \"f2\"");
    cr_expect(!has_name(broken, ROOT_INO, "f2"));
    expect_clean(broken);
}

Test(check, entry_that_only_its_cookie_remembers_comes_back)
{
    del_dirent(broken, ROOT_INO, "f");
    EXPECT_REPAIRED(broken, "cookie 4 of directory 1: there is no entry \"f\"");
    cr_expect(has_name(broken, ROOT_INO, "f"));
    expect_clean(broken);
}

Test(check, directory_that_only_its_cookie_remembers_comes_back)
{
    del_dirent(broken, ROOT_INO, "d");
    EXPECT_REPAIRED(broken, "cookie 3 of directory 1: there is no entry \"d\"");
    cr_expect(has_name(broken, ROOT_INO, "d"));
    expect_clean(broken);
}

Test(check, damaged_entry_is_restored_from_its_cookie)
{
    struct key key;
    key_dirent(&key, ROOT_INO, "f", 1);
    put(broken, &key, "junk", 4);
    EXPECT_REPAIRED(broken, "\"f\" in directory 1: its record is damaged",
                    "cookie 4 of directory 1: there is no entry \"f\"");
    cr_expect(has_name(broken, ROOT_INO, "f"));
    expect_clean(broken);
}

Test(check, damaged_cookie_is_restored_from_its_entry)
{
    struct key key;
    key_cookie(&key, ROOT_INO, 4);
    put(broken, &key, "junk", 4);
    EXPECT_REPAIRED(broken, "cookie 4 of directory 1: its record is damaged",
                    "\"f\" in directory 1: has no cookie record 4");
    expect_clean(broken);
}

Test(check, next_cookie_too_small)
{
    put_directory(broken, ROOT_INO, 3, ROOT_INO, 6);
    EXPECT_REPAIRED(broken, "directory 1: its next cookie is 6, but 6 is used");
    cr_expect_eq(get_inode(broken, ROOT_INO).cookie, 7u);
    expect_clean(broken);
}

Test(check, wrong_parent)
{
    put_directory(broken, 2, 2, 3, 4);
    EXPECT_REPAIRED(broken, "directory 2: its parent is 1, recorded is 3");
    cr_expect_eq(get_inode(broken, 2).parent, ROOT_INO);
    expect_clean(broken);
}

Test(check, directory_with_two_names_keeps_the_one_at_its_parent)
{
    put_directory(broken, 20, 2, 2, 3);
    put_name(broken, 2, "sub", 20, 4, DT_DIR);
    put_directory(broken, 2, 3, ROOT_INO, 5);
    put_name(broken, ROOT_INO, "also", 20, 7, DT_DIR);
    put_directory(broken, ROOT_INO, 3, ROOT_INO, 8);
    EXPECT_REPAIRED(broken,
                    "\"sub\" in directory 2: directory 20 has another name, in directory 1");
    cr_expect(has_name(broken, 2, "sub"));
    cr_expect(!has_name(broken, ROOT_INO, "also"));
    expect_clean(broken);
}

/* ---- lost and found -------------------------------------------------------------------------- */

Test(check, file_without_name_goes_to_lost_and_found)
{
    struct key key;
    put_file(broken, 20, 1, 0, 0);
    EXPECT_REPAIRED(broken, "inode 20: has no name");
    cr_expect(has_name(broken, ROOT_INO, "lost+found"));
    cr_expect(has_name(broken, COUNTER, "#20"));
    key_inode(&key, COUNTER);
    cr_expect(has_record(broken, &key));
    expect_clean(broken);
    cr_expect_eq(broken->summary.directories, 3u);
}

Test(check, lost_and_found_that_exists_is_used_and_names_in_it_respected)
{
    put_directory(broken, 30, 2, ROOT_INO, 4);
    put_name(broken, ROOT_INO, "lost+found", 30, 7, DT_DIR);
    put_directory(broken, ROOT_INO, 4, ROOT_INO, 8);
    put_file(broken, 31, 1, 0, 0);
    put_name(broken, 30, "#20", 31, 3, DT_REG);
    put_file(broken, 20, 2, 0, 0);
    EXPECT_REPAIRED(broken, "inode 20: has no name");
    cr_expect(has_name(broken, 30, "#20.1"));
    expect_clean(broken);
}

Test(check, directory_without_name_goes_to_lost_and_found_with_its_contents)
{
    put_directory(broken, 20, 3, 2, 5);
    put_directory(broken, 21, 2, 20, 3);
    put_file(broken, 22, 1, 0, 0);
    put_name(broken, 20, "sub", 21, 3, DT_DIR);
    put_name(broken, 20, "file", 22, 4, DT_REG);
    EXPECT_REPAIRED(broken, "directory 20: has no name");
    cr_expect(has_name(broken, COUNTER, "#20"));
    cr_expect_eq(get_inode(broken, 20).parent, COUNTER);
    cr_expect_eq(get_inode(broken, COUNTER).nlink, 3u);
    expect_clean(broken);
}

Test(check, many_lost_files_are_all_found)
{
    for (uint64_t ino = 200; ino < 1200; ino++)
        put_file(broken, ino, 1, 0, 0);
    volume_commit(broken);
    unsigned round = 0;
    while (check(broken, true) > 0)
        cr_assert_lt(++round, ROUNDS_MAX);
    expect_clean(broken);
    cr_expect_eq(get_inode(broken, 1200).cookie, 1003u);
}

Test(check, cycle_of_directories_is_cut)
{
    put_directory(broken, 20, 3, 21, 4);
    put_directory(broken, 21, 3, 20, 4);
    put_name(broken, 20, "b", 21, 3, DT_DIR);
    put_name(broken, 21, "a", 20, 3, DT_DIR);
    volume_commit(broken);
    check(broken, true);
    cr_expect_eq(broken->nr_lines, 2u, "%s", broken->lines[0]);
    cr_expect(strstr(broken->lines[0], "is its own ancestor") != NULL, "%s", broken->lines[0]);
    while (check(broken, true) > 0)
        continue;
    expect_clean(broken);
}

Test(check, directory_in_itself_is_cut)
{
    put_directory(broken, 20, 3, 20, 4);
    put_name(broken, 20, "me", 20, 3, DT_DIR);
    EXPECT_REPAIRED(broken, "directory 20: is its own ancestor");
    cr_expect_eq(get_inode(broken, 20).nlink, 2u);
    expect_clean(broken);
}

/* ---- orphans and strays ---------------------------------------------------------------------- */

Test(check, deleted_inode_without_orphan_record_gets_one)
{
    struct key key;
    key_orphan(&key, 6);
    del(broken, &key);
    EXPECT_REPAIRED(broken, "inode 6: is deleted, but has no orphan record to finish that");
    cr_expect(has_record(broken, &key));
    expect_clean(broken);
}

Test(check, orphan_record_of_file_in_use_goes)
{
    struct key key;
    key_orphan(&key, 3);
    put(broken, &key, NULL, 0);
    EXPECT_REPAIRED(broken, "inode 3: has an orphan record, but is in use");
    cr_expect(!has_record(broken, &key));
    expect_clean(broken);
}

Test(check, orphan_record_of_nobody_goes)
{
    struct key key;
    key_orphan(&key, 50);
    put(broken, &key, NULL, 0);
    EXPECT_REPAIRED(broken, "orphan record: there is no inode 50");
    expect_clean(broken);
}

Test(check, attributes_and_target_of_nobody_go)
{
    struct key key;
    key_xattr(&key, 50, "user.a", 6);
    put(broken, &key, "1", 1);
    key_xattr(&key, 50, "user.b", 6);
    put(broken, &key, "2", 1);
    key_link(&key, 50);
    put(broken, &key, "t", 1);
    EXPECT_REPAIRED(broken, "extended attributes: there is no inode 50",
                    "symbolic link's target: there is no inode 50");
    expect_clean(broken);
}

Test(check, target_of_a_file_goes)
{
    struct key key;
    key_link(&key, 3);
    put(broken, &key, "t", 1);
    EXPECT_REPAIRED(broken, "inode 3: has a symbolic link's target, but is none");
    expect_clean(broken);
}

Test(check, symbolic_link_without_target_is_told_and_stays)
{
    struct key key;
    key_link(&key, 5);
    del(broken, &key);
    EXPECT_REPAIRED(broken, "inode 5: a symbolic link without target !");
    cr_expect(has_name(broken, ROOT_INO, "s"));
}

/* ---- data ------------------------------------------------------------------------------------ */

Test(check, wrong_block_count)
{
    struct key key;
    key_blocks(&key, 10);
    put_number(broken, &key, 7);
    EXPECT_REPAIRED(broken, "data 10: has 3 blocks, recorded are 7");
    expect_clean(broken);
}

Test(check, missing_and_damaged_block_counts)
{
    struct key key;
    key_blocks(&key, 10);
    del(broken, &key);
    key_blocks(&key, 11);
    put(broken, &key, "junk", 4);
    EXPECT_REPAIRED(broken, "data 10: has 3 blocks, recorded are 0",
                    "data 11: its block count is damaged");
    expect_clean(broken);
}

Test(check, lost_blocks_are_trimmed)
{
    struct key key;
    put_data(broken, 14, 5);
    EXPECT_REPAIRED(broken, "data 14: has 5 blocks but no inode owns it");
    key_trim(&key, 14, 0, UINT64_C(1) << 32);
    cr_expect(has_record(broken, &key));
    expect_clean(broken);
}

Test(check, trim_that_covers_a_part_leaves_lost_blocks)
{
    struct key key;
    put_data(broken, 14, 5);
    key_trim(&key, 14, 1, 5);
    put(broken, &key, NULL, 0);
    EXPECT_REPAIRED(broken, "data 14: has 5 blocks but no inode owns it");
    expect_clean(broken);
}

/* Inode 3, so long; its data has three blocks. */
static void cut_file(uint64_t size, uint32_t flags)
{
    struct inode_record r = make(S_IFREG | 0644, 1);

    r.size = size;
    r.data_id = 10;
    r.flags = flags;
    put_inode(broken, 3, r);
}

static void put_zeros_but(uint64_t id, uint32_t index, unsigned at)
{
    uint8_t data[BLOCK_SIZE] = { 0 };

    data[at] = at < BLOCK_SIZE - 1;
    cr_assert_eq(lmdb_put_block(broken->l, id, index, data, block_crc(id, index, data)), 0);
}

Test(check, data_behind_the_end_is_marked_for_the_next_mount)
{
    cut_file(2 * BLOCK_SIZE, 0);
    EXPECT_REPAIRED(broken, "inode 3: has data behind its end, up to byte 12288 of 8192");
    cr_expect_eq(get_inode(broken, 3).flags, (uint32_t)INODE_EXTENDING);
    expect_clean(broken);
}

Test(check, data_behind_the_end_is_seen_in_the_last_block_to_the_byte)
{
    cut_file(2 * BLOCK_SIZE + 5, 0);
    put_zeros_but(10, 2, 5);
    EXPECT_REPAIRED(broken, "inode 3: has data behind its end, up to byte 8198 of 8197");
    volume_begin(broken);
    cut_file(2 * BLOCK_SIZE + 6, 0);
    volume_commit(broken);
    expect_clean(broken);
    volume_begin(broken);
    cut_file(2 * BLOCK_SIZE + 17, 0);
    put_zeros_but(10, 2, 17);
    EXPECT_REPAIRED(broken, "inode 3: has data behind its end, up to byte 8210 of 8209");
}

Test(check, zeros_behind_the_end_are_clean)
{
    cut_file(2 * BLOCK_SIZE, 0);
    put_zeros_but(10, 2, BLOCK_SIZE - 1);
    volume_commit(broken);
    expect_clean(broken);
}

Test(check, data_behind_the_end_that_is_about_to_go_is_clean)
{
    struct key key;

    cut_file(2 * BLOCK_SIZE, 0);
    key_trim(&key, 10, 2, UINT64_C(1) << 32);
    put(broken, &key, NULL, 0);
    volume_commit(broken);
    expect_clean(broken);
}

Test(check, senseless_trim_goes)
{
    struct key key;
    key_trim(&key, 10, 5, 5);
    put(broken, &key, NULL, 0);
    EXPECT_REPAIRED(broken, "trim of data 10 from block 5 to 5 makes no sense");
    expect_clean(broken);
}

Test(check, damaged_trim_goes_and_what_it_covered_is_trimmed_anew)
{
    struct key key;
    uint8_t wrong = 2;
    key_trim(&key, 12, 0, 7);
    volume_commit(broken);
    patch(broken, key.bytes, key.len, key.len, &wrong, 1); /* the envelope's version */
    volume_begin(broken);
    EXPECT_REPAIRED(broken, "trim of data 12: damaged (deleted blocks may read again)",
                    "data 12: has 1 blocks but no inode owns it");
    cr_expect(!has_record(broken, &key));
    expect_clean(broken);
    cr_expect_eq(broken->summary.trims, 1u);
}

Test(check, data_with_two_owners_is_told)
{
    put_file(broken, 4, 2, 10, 3);
    volume_commit(broken);
    check(broken, true);
    cr_expect_eq(broken->nr_lines, 1u);
    cr_expect_eq(broken->kinds[0], CHECK_OWNER, "%s", broken->lines[0]);
    cr_expect_eq(broken->summary.fixable, 0u);
}

Test(check, data_of_a_directory_is_told)
{
    struct inode_record r = make(S_IFDIR | 0755, 2);
    r.parent = ROOT_INO;
    r.cookie = 4;
    r.data_id = 33;
    put_inode(broken, 2, r);
    EXPECT_REPAIRED(broken, "inode 2: has data, but is no regular file !");
}

Test(check, damaged_block_is_told_and_stays)
{
    uint8_t mark[8], wrong = 0xEE;
    put_le64(mark, 10 * 1000 + 1);
    volume_commit(broken);
    patch(broken, mark, sizeof mark, 9, &wrong, 1);
    volume_begin(broken);
    EXPECT_REPAIRED(broken, "block 1 of data 10: its content is damaged !");
    cr_expect_eq(broken->summary.blocks, 6u);
}

Test(check, block_with_damaged_key_is_told_and_nothing_is_deleted)
{
    uint8_t key[13] = { 'B' }, wrong = 0xEE;
    put_be64(key + 1, 10);
    put_be32(key + 9, 1);
    put_data(broken, 14, 1); /* lost, but who knows */
    volume_commit(broken);
    patch(broken, key, sizeof key, 20, &wrong, 1);
    volume_begin(broken);
    EXPECT_REPAIRED(broken, "block 1 of data 10: its key is damaged !",
                    "data 10: has 2 blocks, recorded are 3 !",
                    "data 14: has 1 blocks but no inode owns it !");
}

/* Rename block 1 to a second block 0, with a good key check. */
Test(check, two_blocks_of_one_index_are_told)
{
    uint8_t data[BLOCK_SIZE], key[38] = { 'B' };
    memset(data, 11, sizeof data); /* as put_data() made it */
    put_le64(data + 100, 10 * 1000 + 1);
    put_be64(key + 1, 10);
    put_be32(key + 9, 1);
    key[13] = 1;
    memset(key + 14, 11, 16);
    put_le32(key + 30, block_crc(10, 1, data));
    put_le32(key + 34, crc32c(0, key, 34));
    uint8_t now[38];
    memcpy(now, key, sizeof now);
    put_be32(now + 9, 0);
    put_le32(now + 34, crc32c(0, now, 34));
    volume_commit(broken);
    patch(broken, key, sizeof key, 0, now, sizeof now);
    volume_begin(broken);
    EXPECT_REPAIRED(broken, "block 0 of data 10: there are two !",
                    "block 0 of data 10: its content is damaged !");
}

/* ---- records --------------------------------------------------------------------------------- */

Test(check, counter_too_small_missing_damaged)
{
    struct key key;
    key_counter(&key);
    put_number(broken, &key, 12);
    EXPECT_REPAIRED(broken, "the next unused number is recorded as 12, but 12 is used");
    volume_begin(broken);
    del(broken, &key);
    EXPECT_REPAIRED(broken, "the next unused number is recorded as 0, but 12 is used");
    volume_begin(broken);
    put(broken, &key, "junk", 4);
    EXPECT_REPAIRED(broken, "the next unused number is recorded as 0, but 12 is used");
    expect_clean(broken);
}

Test(check, damaged_inode_is_told_and_keeps_its_name_and_blocks)
{
    struct key key;
    key_inode(&key, 3);
    put(broken, &key, "junk", 4);
    put_name(broken, 2, "x", 50, 4, DT_REG); /* may be the one that was damaged: stays */
    put_directory(broken, 2, 2, ROOT_INO, 5);
    EXPECT_REPAIRED(broken, "inode 3: its record is damaged !",
                    "\"x\" in directory 2: there is no inode 50 !",
                    "data 10: has 3 blocks but no inode owns it !");
    cr_expect(has_name(broken, ROOT_INO, "f"));
}

Test(check, damaged_directory_keeps_its_contents)
{
    struct key key;
    key_inode(&key, 2);
    put(broken, &key, "junk", 4);
    EXPECT_REPAIRED(broken, "inode 2: its record is damaged !");
    cr_expect(has_name(broken, 2, "g"));
    cr_expect(has_name(broken, ROOT_INO, "d"));
}

Test(check, damaged_attribute_goes)
{
    uint8_t value[] = "value", wrong = 'V';
    struct key key;
    volume_commit(broken);
    patch(broken, value, 5, 0, &wrong, 1);
    volume_begin(broken);
    EXPECT_REPAIRED(broken, "extended attribute of inode 3: damaged");
    key_xattr(&key, 3, "user.x", 6);
    cr_expect(!has_record(broken, &key));
    expect_clean(broken);
}

Test(check, damaged_orphan_record_is_rewritten)
{
    struct key key;
    uint8_t wrong = 2;
    key_orphan(&key, 6);
    volume_commit(broken);
    patch(broken, key.bytes, key.len, key.len, &wrong, 1); /* the envelope's version */
    volume_begin(broken);
    EXPECT_REPAIRED(broken, "orphan record of inode 6: damaged");
    cr_expect(has_record(broken, &key));
    expect_clean(broken);
}

Test(check, damaged_target_is_told)
{
    uint8_t wrong = 'T';
    volume_commit(broken);
    patch(broken, "target", 6, 0, &wrong, 1);
    volume_begin(broken);
    EXPECT_REPAIRED(broken, "symbolic link's target of inode 5: damaged !");
}

Test(check, superblock_missing_damaged_newer)
{
    struct super_record r = { .format_version = 9, .block_size = BLOCK_SIZE, .capacity = 1 };
    uint8_t buf[SUPER_BYTES];
    struct key key;
    key_super(&key);
    put(broken, &key, buf, super_encode(&r, buf));
    EXPECT_REPAIRED(broken, "superblock: format 9 with features 0 needs a newer fsck.foliofs !");
    volume_begin(broken);
    put(broken, &key, "junk", 4);
    EXPECT_REPAIRED(broken, "superblock: damaged !");
    volume_begin(broken);
    del(broken, &key);
    EXPECT_REPAIRED(broken, "superblock: missing !");
}

Test(check, log_missing_or_without_a_tail)
{
    struct super_record r = { .format_version = FORMAT_VERSION,
                              .block_size = BLOCK_SIZE,
                              .capacity = 64 << 20,
                              .features = FEATURE_LOG };
    uint8_t buf[SUPER_BYTES];
    struct key key, tail;
    key_super(&key);
    key_log_tail(&tail);
    put(broken, &key, buf, super_encode(&r, buf));
    put_number(broken, &tail, 0);
    EXPECT_REPAIRED(broken, "the log: missing !");
    volume_begin(broken);
    cr_assert_eq(lmdb_put_log(broken->l, log_bytes_for(64 << 20)), 0);
    del(broken, &tail);
    volume_commit(broken);
    check(broken, false);
    cr_expect_eq(broken->nr_lines, 1u);
    cr_expect_str_eq(broken->lines[0],
                     "the log: where it begins is not recorded; what waits in it is lost");
    volume_begin(broken);
    put_number(broken, &tail, 4096);
    volume_commit(broken);
    check(broken, false);
    cr_expect_eq(broken->nr_lines, 0u, "a log with nothing in it");
}

Test(check, missing_root_is_told_and_nothing_is_thrown_away)
{
    struct key key;
    key_inode(&key, ROOT_INO);
    del(broken, &key);
    volume_commit(broken);
    check(broken, false);
    cr_expect_gt(broken->nr_lines, 0u);
    cr_expect_str_eq(broken->lines[0], "the root directory (inode 1) is missing !");
}

Test(check, foreign_key_is_told)
{
    struct key key = { .len = 3, .bytes = { 'Q', 1, 2 } };
    put(broken, &key, "x", 1);
    EXPECT_REPAIRED(broken, "a key of type 0x51 and 3 bytes is none of ours !");
}

Test(check, everything_at_once_is_repaired_in_rounds)
{
    struct key key;
    del_dirent(broken, ROOT_INO, "d");
    del_cookie(broken, ROOT_INO, 4);
    put_file(broken, 4, 9, 0, 0);
    put_file(broken, 20, 1, 0, 0);
    put_data(broken, 14, 2);
    put_name(broken, 2, "x", 50, 4, DT_REG);
    key_counter(&key);
    put_number(broken, &key, 2);
    volume_commit(broken);
    unsigned round = 0;
    while (check(broken, true) > 0)
        cr_assert_lt(++round, ROUNDS_MAX);
    expect_clean(broken);
    cr_expect(has_name(broken, ROOT_INO, "d"));
}

/* ---- random damage --------------------------------------------------------------------------- */

#define FLIPS 2000u

struct digest {
    uint64_t records;
    uint32_t crc;
};

static void add_record(void *ctx, const struct pages_entry *e)
{
    struct digest *d = ctx;

    d->records++;
    d->crc = crc32c(d->crc, e->key, e->key_len);
    d->crc = crc32c(d->crc, e->value, e->value_len);
}

/* Everything in the volume. */
static struct digest digest(int fd)
{
    struct pages_ops ops = { .entry = add_record };
    struct pages_info info;
    struct digest d = { 0 };

    cr_assert_eq(pages_check(fd, &ops, &d, &info), 0);
    return d;
}

static unsigned seed_or(unsigned seed)
{
    const char *given = getenv("FOLIO_SEED");

    return given != NULL ? (unsigned)strtoul(given, NULL, 0) : seed;
}

static size_t flip(uint8_t *file, size_t size, size_t *at)
{
    size_t len = 1 + (size_t)rand() % 8;

    *at = (size_t)rand() % (size - len);
    for (size_t i = 0; i < len; i++)
        file[*at + i] ^= (uint8_t)(1 + rand() % 255);
    return len;
}

/* Flip bytes: either the check speaks, or all content is still what it was. Then let it repair,
 * which must end. */
Test(check, random_damage_is_survived_and_never_overlooked)
{
    unsigned seed = seed_or((unsigned)getpid()), spoken = 0;
    struct volume *v = broken;
    struct stat st;

    for (uint64_t ino = 200; ino < 300; ino++)
        put_file(v, ino, 1, 0, 0);
    volume_commit(v);
    while (check(v, true) > 0)
        continue;
    int fd = open(v->path, O_RDWR | O_CLOEXEC);
    cr_assert_eq(fstat(fd, &st), 0);
    size_t size = (size_t)st.st_size, at;
    uint8_t *sound = malloc(size), *file = malloc(size);
    cr_assert_eq(pread(fd, sound, size, 0), (ssize_t)size);
    struct digest before = digest(fd);
    printf("FOLIO_SEED=%u\n", seed);
    srand(seed);
    for (unsigned i = 0; i < FLIPS; i++) {
        memcpy(file, sound, size);
        size_t len = flip(file, size, &at);
        cr_assert_eq(pwrite(fd, file + at, len, (off_t)at), (ssize_t)len);
        check(v, false);
        spoken += v->nr_lines > 0;
        struct digest after = digest(fd);
        cr_assert(v->nr_lines > 0 || (before.records == after.records && before.crc == after.crc),
                  "seed %u flip %u: %zu bytes at %zu were overlooked", seed, i, len, at);
        cr_assert_eq(pwrite(fd, sound + at, len, (off_t)at), (ssize_t)len);
    }
    cr_expect_gt(spoken, FLIPS / 20);
    free(file);
    free(sound);
    close(fd);
}

/* The same with repairs: they end, and what they leave is not fixable. */
Test(check, repairs_of_random_damage_end)
{
    unsigned seed = seed_or((unsigned)getpid()), rounds;
    struct volume *v = broken;
    struct stat st;
    size_t at;

    volume_commit(v);
    int fd = open(v->path, O_RDWR | O_CLOEXEC);
    cr_assert_eq(fstat(fd, &st), 0);
    size_t size = (size_t)st.st_size;
    uint8_t *sound = malloc(size), *file = malloc(size);
    cr_assert_eq(pread(fd, sound, size, 0), (ssize_t)size);
    printf("FOLIO_SEED=%u\n", seed);
    srand(seed);
    for (unsigned i = 0; i < FLIPS / 4; i++) {
        memcpy(file, sound, size);
        (void)flip(file, size, &at);
        cr_assert_eq(ftruncate(fd, 0), 0);
        cr_assert_eq(pwrite(fd, file, size, 0), (ssize_t)size);
        check(v, false);
        for (rounds = 0; v->summary.pages.damage == 0 && check(v, true) > 0; rounds++)
            cr_assert_lt(rounds, ROUNDS_MAX, "seed %u flip %u at %zu: %s", seed, i, at,
                         v->lines[0]);
    }
    free(file);
    free(sound);
    close(fd);
}
