/* Making a volume: what is in a new one; what is refused, with nothing changed. */
#include <sys/mount.h>
#undef BLOCK_SIZE /* the kernel's, for something else */

#include "store/store.h"

#include <criterion/criterion.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "store/lmdb.h"
#include "store/volume_lock.h"

static char dir[] = "/tmp/test_store_format.XXXXXX";
static char path[sizeof dir + 8], link_path[sizeof dir + 8];
static struct store_error error;

static void setup(void)
{
    cr_assert_not_null(mkdtemp(dir));
    (void)snprintf(path, sizeof path, "%s/volume", dir);
    (void)snprintf(link_path, sizeof link_path, "%s/link", dir);
}

static void teardown(void)
{
    (void)unlink(path);
    (void)unlink(link_path);
    cr_assert_eq(rmdir(dir), 0, "something was left behind");
}

TestSuite(format, .init = setup, .fini = teardown);

static void read_volume(struct super_record *super, struct inode_record *root, uint64_t *next)
{
    struct lmdb *l;
    struct key k;
    uint8_t buf[256];
    ssize_t len;
    cr_assert_eq(lmdb_open(path, true, &l, &error), 0, "%s", error.text);
    key_super(&k);
    len = lmdb_get(l, &k, buf, sizeof buf);
    cr_assert_geq(len, 0);
    cr_assert_eq(super_decode(buf, (size_t)len, super), 0);
    key_inode(&k, ROOT_INO);
    len = lmdb_get(l, &k, buf, sizeof buf);
    cr_assert_geq(len, 0);
    cr_assert_eq(inode_decode(buf, (size_t)len, root), 0);
    key_counter(&k);
    len = lmdb_get(l, &k, buf, sizeof buf);
    cr_assert_geq(len, 0);
    cr_assert_eq(number_decode(buf, (size_t)len, next), 0);
    lmdb_close(l);
}

static unsigned entries(void)
{
    unsigned nr = 0;
    DIR *d = opendir(dir);
    while (readdir(d) != NULL)
        nr++;
    closedir(d);
    return nr - 2;
}

Test(format, makes_a_superblock_a_counter_and_a_root)
{
    struct store_format f = {
        .label = "backup", .capacity = (uint64_t)100 << 20, .root_uid = 7, .root_gid = 8
    };
    struct super_record super;
    struct inode_record root;
    uint64_t next;
    struct stat st;
    cr_assert_eq(store_format(path, &f, &error), 0, "%s", error.text);
    read_volume(&super, &root, &next);
    cr_assert_eq(super.capacity, f.capacity);
    cr_assert_str_eq(super.label, "backup");
    cr_assert_eq(super.uuid[6] >> 4, 4);
    cr_assert_eq(super.uuid[8] >> 6, 2);
    cr_assert_gt(super.created.tv_sec, 1700000000);
    cr_assert_eq(root.mode, 040755);
    cr_assert_eq(root.nlink, 2);
    cr_assert_eq(root.uid, 7);
    cr_assert_eq(root.gid, 8);
    cr_assert_eq(root.parent, 1);
    cr_assert_eq(root.cookie, 3);
    cr_assert_eq(root.mtime.tv_sec, super.created.tv_sec);
    cr_assert_eq(next, 2);
    cr_assert_eq(stat(path, &st), 0);
    cr_assert_eq(st.st_mode & 07777, 0600);
    cr_assert_eq(entries(), 1);
}

Test(format, takes_defaults_and_gives_each_volume_its_uuid)
{
    struct store_format f = { 0 };
    struct super_record a, b;
    struct inode_record root;
    uint64_t next;
    cr_assert_eq(store_format(path, &f, &error), 0, "%s", error.text);
    read_volume(&a, &root, &next);
    cr_assert_eq(a.capacity, DEFAULT_CAPACITY);
    cr_assert_str_empty(a.label);
    f.force = true;
    cr_assert_eq(store_format(path, &f, &error), 0, "%s", error.text);
    read_volume(&b, &root, &next);
    cr_assert_neq(memcmp(a.uuid, b.uuid, sizeof a.uuid), 0);
}

static void make_file(const char *text)
{
    FILE *file = fopen(path, "we");
    fputs(text, file);
    fclose(file);
}

static void expect_file(const char *text)
{
    char buf[64] = { 0 };
    FILE *file = fopen(path, "re");
    (void)!fread(buf, 1, sizeof buf - 1, file);
    fclose(file);
    cr_assert_str_eq(buf, text);
}

static void expect_refused(const struct store_format *f, int rc, const char *text)
{
    memset(&error, 0, sizeof error);
    int got = store_format(path, f, &error);
    cr_assert_eq(got, rc, "%d: %s", got, error.text);
    cr_assert_not_null(strstr(error.text, text), "%s", error.text);
    cr_assert_not_null(strstr(error.text, path), "%s", error.text);
}

Test(format, keeps_what_is_there_unless_forced)
{
    struct store_format f = { 0 };
    struct super_record super;
    struct inode_record root;
    uint64_t next;
    make_file("precious");
    cr_assert_eq(chmod(path, 0640), 0);
    expect_refused(&f, -EEXIST, "--force");
    expect_file("precious");
    f.force = true;
    cr_assert_eq(store_format(path, &f, &error), 0, "%s", error.text);
    read_volume(&super, &root, &next);
    struct stat st;
    cr_assert_eq(stat(path, &st), 0);
    cr_assert_eq(st.st_mode & 07777, 0640);
    cr_assert_eq(entries(), 1);
}

Test(format, uses_an_empty_file)
{
    struct store_format f = { 0 };
    make_file("");
    cr_assert_eq(store_format(path, &f, &error), 0, "%s", error.text);
    cr_assert_eq(entries(), 1);
}

Test(format, goes_through_a_symbolic_link)
{
    struct store_format f = { .force = true };
    struct stat st;
    make_file("old");
    cr_assert_eq(symlink("volume", link_path), 0);
    cr_assert_eq(store_format(link_path, &f, &error), 0, "%s", error.text);
    cr_assert_eq(lstat(link_path, &st), 0);
    cr_assert(S_ISLNK(st.st_mode));
    cr_assert_eq(lstat(path, &st), 0);
    cr_assert_gt(st.st_size, 4096);
}

Test(format, refuses_a_volume_in_use)
{
    struct store_format f = { .force = true };
    make_file("in use");
    int fd = volume_lock(path, false, &error);
    expect_refused(&f, -EBUSY, "in use by process");
    expect_file("in use");
    close(fd);
}

Test(format, refuses_what_makes_no_sense)
{
    struct store_format f = { .capacity = MIN_CAPACITY - 1 };
    char label[66] = { 0 };
    expect_refused(&f, -EINVAL, "at least 4 MiB");
    f.capacity = ((uint64_t)64 << 40) + 1;
    expect_refused(&f, -EINVAL, "at most 64 TiB");
    f.capacity = MIN_CAPACITY;
    memset(label, 'l', 65);
    f.label = label;
    expect_refused(&f, -EINVAL, "at most 64");
    cr_assert_eq(entries(), 0);
    label[64] = '\0';
    cr_assert_eq(store_format(path, &f, &error), 0, "%s", error.text);
    f.capacity = (uint64_t)8 << 40; /* Criterion and sanitizers leave no room for a larger map */
    f.force = true;
    cr_assert_eq(store_format(path, &f, &error), 0, "%s", error.text);
}

Test(format, on_a_disk_without_room_leaves_nothing)
{
    struct store_format f = { 0 };
    if (unshare(CLONE_NEWNS) != 0 || mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) != 0 ||
        mount("tmpfs", dir, "tmpfs", 0, "size=8k") != 0)
        cr_skip_test("mounting is not allowed here");
    expect_refused(&f, -ENOSPC, "cannot be written");
    cr_assert_eq(entries(), 0);
    make_file("old");
    f.force = true;
    expect_refused(&f, -ENOSPC, "");
    expect_file("old");
    cr_assert_eq(entries(), 1);
    cr_assert_eq(umount2(dir, MNT_DETACH), 0);
}
