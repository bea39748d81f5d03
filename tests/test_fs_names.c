/* Names, attributes and inodes, on a real volume in a private directory, without a mount.
 *
 * The model test makes random changes of names here and in a small tree in memory, and compares errors
 * and trees. FOLIO_SEED replays a run. */
#include <criterion/criterion.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/xattr.h>
#include <unistd.h>

#include "fs/data.h"
#include "fs/dir.h"
#include "fs/names.h"
#include "fs/xattr.h"
#include "store/check.h"

static char home[64], volume[80];
static struct fs *fs;
static struct inode *root;
static const struct cred cred = { .uid = 1000, .gid = 100 };
static struct fs_options options;

/* ---- helpers ----------------------------------------------------------------------------------- */

static void mount_path(const char *path)
{
    struct store_error error = { .text = "" };
    int err = fs_mount(path, &options, &fs, &error);
    cr_assert_eq(err, 0, "fs_mount: %s", error.text);
    cr_assert_eq(inode_get(fs, ROOT_INO, &root), 0);
}

static void unmount(void)
{
    inode_put(root, 1);
    cr_assert_eq(fs_unmount(fs), 0);
    fs = NULL;
}

static void remount(void)
{
    unmount();
    mount_path(volume);
}

static void report_finding(void *ctx, enum check_kind kind, bool fixable, const char *line)
{
    (void)ctx, (void)kind, (void)fixable;
    fprintf(stderr, "check: %s\n", line);
}

/* The volume is not mounted. */
static struct check_summary verify_volume(const char *path)
{
    struct check *c;
    int fd = open(path, O_RDONLY);
    cr_assert_geq(fd, 0);
    cr_assert_eq(check_volume(fd, report_finding, NULL, &c), 0);
    struct check_summary summary = *check_summary(c);
    check_free(c);
    close(fd);
    cr_assert_eq(summary.found, 0U, "%lu findings", (unsigned long)summary.found);
    return summary;
}

static void format_volume(uint64_t capacity)
{
    struct store_format f = { .capacity = capacity };
    struct store_error error = { .text = "" };
    snprintf(home, sizeof home, "/tmp/folio_names.XXXXXX");
    cr_assert_not_null(mkdtemp(home));
    snprintf(volume, sizeof volume, "%s/volume", home);
    cr_assert_eq(store_format(volume, &f, &error), 0, "%s", error.text);
    options = (struct fs_options){ .cache = { .cache_bytes = 4 << 20 } };
}

static void setup(void)
{
    format_volume(64 << 20);
    mount_path(volume);
}

static void setup_threads(void)
{
    format_volume(64 << 20);
    options.threads = true;
    options.max_inodes = 8;
    options.commit_ms = 20;
    mount_path(volume);
}

static void teardown(void)
{
    char command[128];
    if (fs != NULL)
        unmount();
    verify_volume(volume);
    snprintf(command, sizeof command, "rm -rf %s", home);
    cr_assert_eq(system(command), 0);
}

static struct inode *make(struct inode *dir, const char *name, uint32_t mode)
{
    struct inode *inode = NULL;
    int err = dir_mknod(dir, name, mode, 0, &cred, &inode);
    cr_assert_eq(err, 0, "making %s: %s", name, strerror(-err));
    return inode;
}

static void touch(struct inode *dir, const char *name)
{
    inode_put(make(dir, name, S_IFREG | 0644), 1);
}

static struct inode *lookup(struct inode *dir, const char *name)
{
    struct inode *inode = NULL;
    int err = dir_lookup(dir, name, &inode);
    cr_assert_eq(err, 0, "looking up %s: %s", name, strerror(-err));
    return inode;
}

static int exists(struct inode *dir, const char *name)
{
    struct inode *inode;
    int err = dir_lookup(dir, name, &inode);
    if (err == 0)
        inode_put(inode, 1);
    return err;
}

static struct stat stat_of(struct inode *inode)
{
    struct stat st;
    cr_assert_eq(inode_getattr(inode, &st), 0);
    return st;
}

static struct stat stat_name(struct inode *dir, const char *name)
{
    struct inode *inode = lookup(dir, name);
    struct stat st = stat_of(inode);
    inode_put(inode, 1);
    return st;
}

static void write_file(struct inode *inode, const char *text)
{
    struct open_file *file;
    size_t len = strlen(text);
    cr_assert_eq(file_open(inode, O_RDWR, &file), 0);
    cr_assert_eq(file_write(file, 0, text, len, 0), (ssize_t)len);
    file_release(file);
}

static void verify_content(struct inode *inode, const char *text)
{
    struct open_file *file;
    char buf[64] = "";
    cr_assert_eq(file_open(inode, O_RDONLY, &file), 0);
    cr_assert_eq(file_read(file, 0, buf, sizeof buf - 1), (ssize_t)strlen(text));
    cr_assert_str_eq(buf, text);
    file_release(file);
}

static bool later(struct timespec a, struct timespec b)
{
    return a.tv_sec != b.tv_sec ? a.tv_sec > b.tv_sec : a.tv_nsec > b.tv_nsec;
}

/* The volume as a crash would leave it now: what is committed, in a file of its own. */
static void copy_volume(char *path, size_t size)
{
    char command[256];
    snprintf(path, size, "%s/crashed", home);
    snprintf(command, sizeof command, "cp %s %s", volume, path);
    cr_assert_eq(system(command), 0);
}

static void commit(void)
{
    cr_assert_eq(store_commit(fs->store, store_tid(fs->store)), 0);
}

/* From here on the copy is the volume. */
static void crash(void)
{
    char path[100];
    copy_volume(path, sizeof path);
    unmount();
    cr_assert_eq(rename(path, volume), 0);
    mount_path(volume);
}

TestSuite(names, .init = setup, .fini = teardown, .timeout = 120);
TestSuite(names_threads, .init = setup_threads, .fini = teardown, .timeout = 120);

/* ---- making and finding ------------------------------------------------------------------------- */

Test(names, a_made_file_is_found_and_has_its_makers_owner)
{
    struct inode *file = make(root, "file", S_IFREG | 0640);
    struct stat st = stat_name(root, "file");
    cr_assert_eq(st.st_ino, file->ino);
    cr_assert_eq(st.st_mode, S_IFREG | 0640);
    cr_assert_eq(st.st_uid, cred.uid);
    cr_assert_eq(st.st_gid, cred.gid);
    cr_assert_eq(st.st_nlink, 1U);
    cr_assert_eq(st.st_size, 0);
    cr_assert_eq(st.st_blksize, 4096);
    inode_put(file, 1);
}

Test(names, making_checks_names)
{
    char name[NAME_MAX_BYTES + 2];
    struct inode *inode;
    memset(name, 'x', sizeof name - 1);
    name[NAME_MAX_BYTES + 1] = '\0';
    cr_assert_eq(dir_mknod(root, name, S_IFREG, 0, &cred, &inode), -ENAMETOOLONG);
    cr_assert_eq(dir_lookup(root, name, &inode), -ENAMETOOLONG);
    cr_assert_eq(dir_unlink(root, name), -ENAMETOOLONG);
    name[NAME_MAX_BYTES] = '\0';
    touch(root, name);
    cr_assert_eq(exists(root, name), 0);
    cr_assert_eq(dir_mknod(root, "", S_IFREG, 0, &cred, &inode), -EINVAL);
    cr_assert_eq(dir_lookup(root, "", &inode), -ENOENT);
    cr_assert_eq(dir_mknod(root, "link", S_IFLNK, 0, &cred, &inode), -EINVAL);
}

Test(names, a_name_is_made_once_and_only_in_directories)
{
    struct inode *inode, *file = make(root, "file", S_IFREG | 0644);
    cr_assert_eq(dir_mknod(root, "file", S_IFDIR | 0755, 0, &cred, &inode), -EEXIST);
    cr_assert_eq(dir_symlink(root, "file", "x", &cred, &inode), -EEXIST);
    cr_assert_eq(dir_mknod(file, "below", S_IFREG | 0644, 0, &cred, &inode), -ENOTDIR);
    cr_assert_eq(dir_lookup(file, "below", &inode), -ENOTDIR);
    cr_assert_eq(dir_unlink(file, "below"), -ENOTDIR);
    cr_assert_eq(dir_lookup(root, "nothing", &inode), -ENOENT);
    inode_put(file, 1);
}

Test(names, a_directory_counts_its_subdirectories)
{
    struct inode *dir = make(root, "dir", S_IFDIR | 0755);
    cr_assert_eq(stat_of(root).st_nlink, 3U);
    inode_put(make(dir, "sub", S_IFDIR | 0755), 1);
    touch(dir, "file");
    cr_assert_eq(stat_of(dir).st_nlink, 3U);
    cr_assert_eq(dir_rmdir(dir, "sub"), 0);
    cr_assert_eq(stat_of(dir).st_nlink, 2U);
    inode_put(dir, 1);
}

Test(names, dot_and_dot_dot_are_found)
{
    struct inode *dir = make(root, "dir", S_IFDIR | 0755);
    struct inode *self = lookup(dir, "."), *up = lookup(dir, ".."), *top = lookup(root, "..");
    cr_assert_eq(self, dir);
    cr_assert_eq(up, root);
    cr_assert_eq(top, root);
    struct inode *file = make(dir, "file", S_IFREG | 0644), *itself = lookup(file, "."), *none;
    cr_assert_eq(itself, file);
    cr_assert_eq(dir_lookup(file, "..", &none), -ENOTDIR);
    inode_put(itself, 1), inode_put(file, 1);
    inode_put(self, 1), inode_put(up, 1), inode_put(top, 1), inode_put(dir, 1);
}

Test(names, a_removed_directory_takes_no_names)
{
    struct inode *inode, *file = make(root, "file", S_IFREG | 0644);
    struct inode *dir = make(root, "dir", S_IFDIR | 0755);
    cr_assert_eq(dir_rmdir(root, "dir"), 0);
    cr_assert_eq(dir_mknod(dir, "x", S_IFDIR | 0755, 0, &cred, &inode), -ENOENT);
    cr_assert_eq(dir_link(file, dir, "x"), -ENOENT);
    cr_assert_eq(dir_rename(root, "file", dir, "x", 0, NULL), -ENOENT);
    cr_assert_eq(stat_of(dir).st_nlink, 0U);
    inode_put(dir, 1), inode_put(file, 1);
}

Test(names, a_setgid_directory_hands_down_its_group)
{
    struct stat attr = { .st_mode = S_ISGID | 0775, .st_gid = 4242 };
    struct inode *dir = make(root, "dir", S_IFDIR | 0755);
    cr_assert_eq(inode_setattr(dir, &attr, SETATTR_MODE | SETATTR_GID), 0);
    struct inode *file = make(dir, "file", S_IFREG | 0644), *sub = make(dir, "sub", S_IFDIR | 0755);
    cr_assert_eq(stat_of(file).st_gid, 4242U);
    cr_assert_eq(stat_of(file).st_mode, S_IFREG | 0644);
    cr_assert_eq(stat_of(sub).st_gid, 4242U);
    cr_assert_eq(stat_of(sub).st_mode, S_IFDIR | S_ISGID | 0755);
    inode_put(file, 1), inode_put(sub, 1), inode_put(dir, 1);
}

Test(names, devices_keep_their_number)
{
    struct inode *inode;
    cr_assert_eq(dir_mknod(root, "null", S_IFCHR | 0666, 0x103, &cred, &inode), 0);
    inode_put(inode, 1);
    inode_put(make(root, "fifo", S_IFIFO | 0600), 1);
    inode_put(make(root, "socket", S_IFSOCK | 0600), 1);
    remount();
    cr_assert_eq(stat_name(root, "null").st_rdev, 0x103U);
    cr_assert_eq(stat_name(root, "fifo").st_mode, S_IFIFO | 0600U);
    cr_assert_eq(stat_name(root, "socket").st_mode, S_IFSOCK | 0600U);
}

Test(names, a_change_below_a_directory_sets_its_times)
{
    struct inode *dir = make(root, "dir", S_IFDIR | 0755);
    struct stat before = stat_of(dir);
    usleep(2000);
    touch(dir, "file");
    struct stat after = stat_of(dir);
    cr_assert(later(after.st_mtim, before.st_mtim) && later(after.st_ctim, before.st_ctim));
    inode_put(dir, 1);
    remount();
    struct stat again = stat_name(root, "dir");
    cr_assert_eq(again.st_mtim.tv_nsec, after.st_mtim.tv_nsec);
}

/* ---- symbolic and hard links -------------------------------------------------------------------- */

Test(names, a_symbolic_link_keeps_its_target)
{
    char target[SYMLINK_MAX_BYTES + 2], buf[SYMLINK_MAX_BYTES + 1];
    struct inode *link, *file = make(root, "file", S_IFREG | 0644);
    memset(target, 't', sizeof target - 1);
    target[SYMLINK_MAX_BYTES + 1] = '\0';
    cr_assert_eq(dir_symlink(root, "link", target, &cred, &link), -ENAMETOOLONG);
    cr_assert_eq(dir_symlink(root, "link", "", &cred, &link), -ENOENT);
    target[SYMLINK_MAX_BYTES] = '\0';
    cr_assert_eq(dir_symlink(root, "link", target, &cred, &link), 0);
    cr_assert_eq(stat_of(link).st_size, SYMLINK_MAX_BYTES);
    cr_assert_eq(stat_of(link).st_mode, S_IFLNK | 0777);
    inode_put(link, 1);
    cr_assert_eq(dir_readlink(file, buf, sizeof buf), -EINVAL);
    inode_put(file, 1);
    remount();
    link = lookup(root, "link");
    cr_assert_eq(stat_of(link).st_size, SYMLINK_MAX_BYTES);
    cr_assert_eq(dir_readlink(link, buf, sizeof buf), 0);
    cr_assert_str_eq(buf, target);
    cr_assert_eq(dir_readlink(link, buf, 8), -ERANGE);
    inode_put(link, 1);
}

Test(names, a_hard_link_is_another_name_of_the_same_inode)
{
    struct inode *file = make(root, "file", S_IFREG | 0644);
    cr_assert_eq(dir_link(file, root, "other"), 0);
    cr_assert_eq(dir_link(file, root, "other"), -EEXIST);
    cr_assert_eq(stat_of(file).st_nlink, 2U);
    cr_assert_eq(stat_name(root, "other").st_ino, file->ino);
    cr_assert_eq(dir_unlink(root, "file"), 0);
    cr_assert_eq(stat_of(file).st_nlink, 1U);
    cr_assert_eq(exists(root, "other"), 0);
    cr_assert_eq(dir_unlink(root, "other"), 0);
    cr_assert_eq(dir_link(file, root, "back"), -ENOENT);
    inode_put(file, 1);
}

Test(names, directories_have_no_hard_links)
{
    struct inode *dir = make(root, "dir", S_IFDIR | 0755);
    cr_assert_eq(dir_link(dir, root, "other"), -EPERM);
    inode_put(dir, 1);
}

Test(names, an_inode_has_at_most_65000_names)
{
    struct inode *file = make(root, "file", S_IFREG | 0644);
    char name[16];
    int err = 0, nr = 1;
    while (err == 0 && nr < 70000) {
        snprintf(name, sizeof name, "%d", nr);
        err = dir_link(file, root, name);
        nr += err == 0;
    }
    cr_assert_eq(err, -EMLINK);
    cr_assert_eq(nr, 65000);
    inode_put(file, 1);
}

Test(names, a_directory_has_more_subdirectories_than_a_file_has_names)
{
    struct inode *dir = make(root, "dir", S_IFDIR | 0755);
    dir->nlink = 65000; /* as if */
    struct inode *below = make(dir, "below", S_IFDIR | 0755);
    cr_assert_eq(dir->nlink, 65001);
    dir->nlink = 3;
    inode_put(below, 1);
    cr_assert_eq(dir_rmdir(dir, "below"), 0);
    inode_put(dir, 1);
}

/* ---- removing ----------------------------------------------------------------------------------- */

Test(names, unlink_and_rmdir_know_what_they_remove)
{
    struct inode *dir = make(root, "dir", S_IFDIR | 0755);
    touch(root, "file");
    touch(dir, "below");
    cr_assert_eq(dir_unlink(root, "dir"), -EISDIR);
    cr_assert_eq(dir_rmdir(root, "file"), -ENOTDIR);
    cr_assert_eq(dir_rmdir(root, "dir"), -ENOTEMPTY);
    cr_assert_eq(dir_unlink(root, "nothing"), -ENOENT);
    cr_assert_eq(dir_rmdir(root, "nothing"), -ENOENT);
    cr_assert_eq(dir_unlink(dir, "below"), 0);
    cr_assert_eq(dir_rmdir(root, "dir"), 0);
    cr_assert_eq(dir_unlink(root, "file"), 0);
    cr_assert_eq(exists(root, "dir"), -ENOENT);
    cr_assert_eq(exists(root, "file"), -ENOENT);
    inode_put(dir, 1);
}

Test(names, a_deleted_number_does_not_come_back)
{
    struct inode *inode, *file = make(root, "file", S_IFREG | 0644);
    uint64_t ino = file->ino;
    cr_assert_eq(dir_unlink(root, "file"), 0);
    inode_put(file, 1);
    cr_assert_eq(inode_get(fs, ino, &inode), -ENOENT);
    file = make(root, "file", S_IFREG | 0644);
    cr_assert_neq(file->ino, ino);
    inode_put(file, 1);
}

Test(names, an_unlinked_file_lives_until_it_is_put)
{
    struct inode *file = make(root, "file", S_IFREG | 0644);
    write_file(file, "still here");
    cr_assert_eq(dir_unlink(root, "file"), 0);
    verify_content(file, "still here");
    write_file(file, "and to be changed");
    cr_assert_eq(inode_write_back(file), 0);
    commit();
    verify_content(file, "and to be changed");
    inode_put(file, 1);
    unmount();
    struct check_summary s = verify_volume(volume);
    cr_assert_eq(s.files, 0U);
    cr_assert_eq(s.orphans, 0U);
}

Test(names, dirty_pages_of_a_deleted_file_are_dropped)
{
    struct inode *file = make(root, "file", S_IFREG | 0644);
    struct cache_stats stats;
    write_file(file, "nobody will read this");
    uint64_t ino = file->ino;
    cr_assert_eq(dir_unlink(root, "file"), 0);
    inode_put(file, 1);
    page_cache_stats(fs->cache, &stats);
    cr_assert_eq(stats.dirty, 0U);
    cr_assert_eq(stats.written_pages, 0U);
    cr_assert_eq(inode_get(fs, ino, &file), -ENOENT);
}

Test(names, what_is_open_and_unlinked_at_a_crash_is_gone_after_it)
{
    struct inode *file = make(root, "file", S_IFREG | 0644),
                 *dir = make(root, "dir", S_IFDIR | 0755);
    write_file(file, "some data");
    cr_assert_eq(xattr_set(file, "user.x", "y", 1, 0), 0);
    cr_assert_eq(inode_write_back(file), 0);
    cr_assert_eq(dir_unlink(root, "file"), 0);
    cr_assert_eq(dir_rmdir(root, "dir"), 0);
    commit();
    char crashed[100];
    copy_volume(crashed, sizeof crashed);
    cr_assert_eq(verify_volume(crashed).orphans, 2U);
    inode_put(file, 1), inode_put(dir, 1);
    unmount();
    cr_assert_eq(rename(crashed, volume), 0);
    mount_path(volume);
    unmount();
    struct check_summary s = verify_volume(volume);
    cr_assert_eq(s.orphans, 0U);
    cr_assert_eq(s.files, 0U);
    cr_assert_eq(s.directories, 1U);
}

Test(names, what_is_in_use_and_unlinked_at_unmount_is_gone_after_it)
{
    struct inode *file = make(root, "file", S_IFREG | 0644);
    write_file(file, "some data");
    cr_assert_eq(dir_unlink(root, "file"), 0);
    unmount(); /* the reference is the kernel's, which never gives it back */
    struct check_summary s = verify_volume(volume);
    cr_assert_eq(s.orphans, 0U);
    cr_assert_eq(s.files, 0U);
}

Test(names, uncommitted_changes_are_gone_after_a_crash_and_committed_ones_are_not)
{
    touch(root, "before");
    commit();
    touch(root, "after");
    cr_assert_eq(dir_rename(root, "before", root, "renamed", 0, NULL), 0);
    crash();
    cr_assert_eq(exists(root, "before"), 0);
    cr_assert_eq(exists(root, "after"), -ENOENT);
    cr_assert_eq(exists(root, "renamed"), -ENOENT);
}

/* ---- rename ------------------------------------------------------------------------------------- */

Test(names, rename_moves_between_directories)
{
    struct inode *a = make(root, "a", S_IFDIR | 0755), *b = make(root, "b", S_IFDIR | 0755);
    struct inode *sub = make(a, "sub", S_IFDIR | 0755);
    touch(sub, "file");
    cr_assert_eq(dir_rename(a, "sub", b, "moved", 0, NULL), 0);
    cr_assert_eq(exists(a, "sub"), -ENOENT);
    cr_assert_eq(stat_name(b, "moved").st_ino, sub->ino);
    cr_assert_eq(stat_of(a).st_nlink, 2U);
    cr_assert_eq(stat_of(b).st_nlink, 3U);
    cr_assert_eq(stat_name(sub, "..").st_ino, b->ino);
    cr_assert_eq(exists(sub, "file"), 0);
    inode_put(a, 1), inode_put(b, 1), inode_put(sub, 1);
}

Test(names, rename_checks_what_it_is_given)
{
    struct inode *dir = make(root, "dir", S_IFDIR | 0755), *sub = make(dir, "sub", S_IFDIR | 0755);
    touch(root, "file");
    touch(sub, "below");
    unsigned both = RENAME_EXCHANGE | RENAME_NOREPLACE;
    cr_assert_eq(dir_rename(root, "file", root, "x", both, NULL), -EINVAL);
    both = RENAME_EXCHANGE | RENAME_WHITEOUT;
    cr_assert_eq(dir_rename(root, "file", root, "dir", both, &cred), -EINVAL);
    cr_assert_eq(dir_rename(root, "nothing", root, "x", RENAME_WHITEOUT, &cred), -ENOENT);
    cr_assert_eq(dir_rename(root, "file", root, "file", RENAME_WHITEOUT, &cred), 0);
    both = RENAME_NOREPLACE | RENAME_WHITEOUT;
    cr_assert_eq(dir_rename(root, "file", root, "dir", both, &cred), -EEXIST);
    cr_assert_eq(dir_rename(root, "dir", sub, "x", both, &cred), -EINVAL);
    cr_assert_eq(dir_rename(root, "nothing", root, "x", 0, NULL), -ENOENT);
    cr_assert_eq(dir_rename(root, "file", root, "nothing", RENAME_EXCHANGE, NULL), -ENOENT);
    cr_assert_eq(dir_rename(root, "file", root, "dir", RENAME_NOREPLACE, NULL), -EEXIST);
    cr_assert_eq(dir_rename(root, "file", root, "dir", 0, NULL), -EISDIR);
    cr_assert_eq(dir_rename(root, "dir", root, "file", 0, NULL), -ENOTDIR);
    cr_assert_eq(dir_rename(root, "dir", sub, "x", 0, NULL), -EINVAL);
    cr_assert_eq(dir_rename(root, "dir", dir, "x", 0, NULL), -EINVAL);
    cr_assert_eq(dir_rename(sub, "below", root, "dir", RENAME_EXCHANGE, NULL), -EINVAL);
    cr_assert_eq(dir_rename(root, "dir", sub, "below", RENAME_EXCHANGE, NULL), -EINVAL);
    inode_put(make(root, "empty", S_IFDIR | 0755), 1);
    cr_assert_eq(dir_rename(root, "empty", dir, "sub", 0, NULL), -ENOTEMPTY);
    cr_assert_eq(dir_rename(root, "file", root, "", 0, NULL), -EINVAL);
    cr_assert_eq(exists(root, "file"), 0);
    inode_put(dir, 1), inode_put(sub, 1);
}

static void expect_whiteout(struct inode *dir, const char *name)
{
    struct stat st = stat_name(dir, name);
    cr_assert_eq(st.st_mode, S_IFCHR);
    cr_assert_eq(st.st_rdev, 0U);
    cr_assert_eq(st.st_nlink, 1U);
    cr_assert_eq(st.st_uid, cred.uid);
    cr_assert_eq(st.st_gid, cred.gid);
}

Test(names, rename_leaves_a_whiteout)
{
    struct inode *dir = make(root, "dir", S_IFDIR | 0755), *file = make(root, "a", S_IFREG | 0644);
    touch(root, "b");
    cr_assert_eq(dir_rename(root, "a", root, "b", RENAME_WHITEOUT, &cred), 0);
    expect_whiteout(root, "a");
    cr_assert_eq(stat_name(root, "b").st_ino, file->ino);
    uint64_t ino = stat_name(root, "a").st_ino;
    cr_assert_eq(dir_rename(root, "b", root, "a", RENAME_WHITEOUT, &cred), 0);
    expect_whiteout(root, "b");
    struct inode *gone;
    cr_assert_eq(inode_get(fs, ino, &gone), -ENOENT, "the first whiteout is deleted");
    cr_assert_eq(dir_rename(root, "dir", root, "moved", RENAME_WHITEOUT | RENAME_NOREPLACE, &cred),
                 0);
    expect_whiteout(root, "dir");
    cr_assert_eq(stat_of(root).st_nlink, 3U);
    inode_put(dir, 1), inode_put(file, 1);
    remount();
    expect_whiteout(root, "b");
    expect_whiteout(root, "dir");
    cr_assert_eq(dir_unlink(root, "dir"), 0);
    cr_assert_eq(exists(root, "dir"), -ENOENT);
}

/* One update: a crash leaves the file at its old name, or a whiteout there. */
Test(names, a_crash_leaves_a_whiteout_and_what_was_renamed_or_neither)
{
    struct inode *file = make(root, "a", S_IFREG | 0644);
    uint64_t ino = file->ino;
    inode_put(file, 1);
    commit();
    cr_assert_eq(dir_rename(root, "a", root, "b", RENAME_WHITEOUT, &cred), 0);
    crash();
    cr_assert_eq(stat_name(root, "a").st_ino, ino);
    cr_assert_eq(exists(root, "b"), -ENOENT);
    cr_assert_eq(dir_rename(root, "a", root, "b", RENAME_WHITEOUT, &cred), 0);
    commit();
    crash();
    expect_whiteout(root, "a");
    cr_assert_eq(stat_name(root, "b").st_ino, ino);
}

Test(names, rename_over_a_file_deletes_it)
{
    struct inode *old = make(root, "old", S_IFREG | 0644), *new = make(root, "new", S_IFREG | 0644);
    cr_assert_eq(dir_rename(root, "new", root, "old", 0, NULL), 0);
    cr_assert_eq(stat_of(old).st_nlink, 0U);
    cr_assert_eq(stat_name(root, "old").st_ino, new->ino);
    cr_assert_eq(exists(root, "new"), -ENOENT);
    uint64_t ino = old->ino;
    inode_put(old, 1), inode_put(new, 1);
    cr_assert_eq(inode_get(fs, ino, &old), -ENOENT);
}

Test(names, rename_over_an_empty_directory_removes_it)
{
    struct inode *a = make(root, "a", S_IFDIR | 0755), *b = make(root, "b", S_IFDIR | 0755);
    touch(a, "file");
    cr_assert_eq(dir_rename(root, "a", root, "b", 0, NULL), 0);
    cr_assert_eq(stat_of(root).st_nlink, 3U);
    cr_assert_eq(stat_of(b).st_nlink, 0U);
    cr_assert_eq(stat_name(root, "b").st_ino, a->ino);
    inode_put(a, 1), inode_put(b, 1);
}

Test(names, rename_between_names_of_one_inode_changes_nothing)
{
    struct inode *file = make(root, "a", S_IFREG | 0644);
    cr_assert_eq(dir_link(file, root, "b"), 0);
    cr_assert_eq(dir_rename(root, "a", root, "b", 0, NULL), 0);
    cr_assert_eq(dir_rename(root, "a", root, "a", 0, NULL), 0);
    cr_assert_eq(exists(root, "a"), 0);
    cr_assert_eq(exists(root, "b"), 0);
    cr_assert_eq(stat_of(file).st_nlink, 2U);
    inode_put(file, 1);
}

Test(names, exchange_swaps_a_directory_and_a_file_of_two_directories)
{
    struct inode *a = make(root, "a", S_IFDIR | 0755), *b = make(root, "b", S_IFDIR | 0755);
    struct inode *sub = make(a, "x", S_IFDIR | 0755), *file = make(b, "y", S_IFREG | 0644);
    cr_assert_eq(dir_rename(a, "x", b, "y", RENAME_EXCHANGE, NULL), 0);
    cr_assert_eq(stat_name(a, "x").st_ino, file->ino);
    cr_assert_eq(stat_name(b, "y").st_ino, sub->ino);
    cr_assert_eq(stat_of(a).st_nlink, 2U);
    cr_assert_eq(stat_of(b).st_nlink, 3U);
    cr_assert_eq(stat_name(sub, "..").st_ino, b->ino);
    inode_put(a, 1), inode_put(b, 1), inode_put(sub, 1), inode_put(file, 1);
}

Test(names, a_file_renamed_over_another_brings_its_content_through_a_crash)
{
    struct inode *old = make(root, "config", S_IFREG | 0644);
    write_file(old, "old");
    cr_assert_eq(fs_sync(fs), 0);
    struct inode *new = make(root, "config.new", S_IFREG | 0644);
    write_file(new, "the new content");
    cr_assert_eq(dir_rename(root, "config.new", root, "config", 0, NULL), 0);
    commit(); /* names only: no data is asked to be written */
    inode_put(old, 1), inode_put(new, 1);
    crash();
    new = lookup(root, "config");
    verify_content(new, "the new content");
    inode_put(new, 1);
}

/* ---- reading directories ------------------------------------------------------------------------ */

static unsigned count_entries(struct inode *dir)
{
    struct dir_entry e = { 0 };
    unsigned nr = 0;
    int err;
    for (uint64_t cookie = 0; (err = dir_next(dir, cookie, &e)) == 0; cookie = e.cookie) {
        cr_assert_gt(e.cookie, cookie);
        nr++;
    }
    cr_assert_eq(err, -ENOENT);
    return nr;
}

Test(names, an_empty_directory_has_two_entries)
{
    struct inode *dir = make(root, "dir", S_IFDIR | 0755);
    struct dir_entry e;
    cr_assert_eq(dir_next(dir, 0, &e), 0);
    cr_assert_str_eq(e.name, ".");
    cr_assert_eq(e.ino, dir->ino);
    cr_assert_eq(e.cookie, 1U);
    cr_assert_eq(dir_next(dir, 1, &e), 0);
    cr_assert_str_eq(e.name, "..");
    cr_assert_eq(e.ino, (uint64_t)ROOT_INO);
    cr_assert_eq(e.cookie, 2U);
    cr_assert_eq(e.type, DT_DIR);
    cr_assert_eq(dir_next(dir, 2, &e), -ENOENT);
    struct inode *file = make(root, "file", S_IFREG | 0644);
    cr_assert_eq(dir_next(file, 0, &e), -ENOTDIR);
    inode_put(file, 1), inode_put(dir, 1);
}

Test(names, reading_on_is_not_disturbed_by_names_that_come_and_go)
{
    struct dir_entry e;
    char name[16];
    unsigned stayed = 0, nr = 0;
    for (int i = 0; i < 40; i++) {
        snprintf(name, sizeof name, "stay%d", i);
        touch(root, name);
        snprintf(name, sizeof name, "go%d", i);
        touch(root, name);
    }
    for (uint64_t cookie = 0; nr < 200 && dir_next(root, cookie, &e) == 0;
         cookie = e.cookie, nr++) {
        stayed += strncmp(e.name, "stay", 4) == 0;
        snprintf(name, sizeof name, "go%u", nr);
        (void)dir_unlink(root, name);
        snprintf(name, sizeof name, "new%u", nr);
        if (nr < 30)
            touch(root, name);
        if (nr % 7 == 0)
            remount();
    }
    cr_assert_eq(stayed, 40U);
    cr_assert_lt(nr, 150U);
}

Test(names, renaming_while_reading_comes_to_an_end)
{
    struct dir_entry e;
    char name[32];
    unsigned nr = 0;
    for (int i = 0; i < 10; i++) {
        snprintf(name, sizeof name, "%d", i);
        touch(root, name);
    }
    for (uint64_t cookie = 2; nr < 100 && dir_next(root, cookie, &e) == 0;
         cookie = e.cookie, nr++) {
        snprintf(name, sizeof name, "renamed%u", nr);
        cr_assert_eq(dir_rename(root, e.name, root, name, 0, NULL), 0);
    }
    cr_assert_eq(nr, 10U);
}

/* A replaced name, a renamed entry, exchanged ones and a whiteout are where they were. */
Test(names, a_name_that_is_always_there_is_read_once)
{
    struct dir_entry e;
    touch(root, "a"), touch(root, "b"), touch(root, "c");
    cr_assert_eq(dir_next(root, 2, &e), 0);
    uint64_t a = e.cookie;
    cr_assert_str_eq(e.name, "a");
    cr_assert_eq(dir_rename(root, "c", root, "a", 0, NULL), 0);
    cr_assert_eq(dir_next(root, 2, &e), 0);
    cr_assert_str_eq(e.name, "a");
    cr_assert_eq(e.cookie, a);
    cr_assert_eq(dir_rename(root, "a", root, "b", RENAME_EXCHANGE, NULL), 0);
    cr_assert_eq(dir_next(root, a, &e), 0);
    cr_assert_str_eq(e.name, "b");
    cr_assert_eq(dir_rename(root, "a", root, "new", RENAME_WHITEOUT, &cred), 0);
    cr_assert_eq(dir_next(root, 2, &e), 0);
    cr_assert_str_eq(e.name, "a");
    cr_assert_eq(e.cookie, a);
    cr_assert_eq(count_entries(root), 5U);
}

/* ---- attributes --------------------------------------------------------------------------------- */

Test(names, chmod_changes_permissions_and_never_the_type)
{
    struct inode *file = make(root, "file", S_IFREG | 0644);
    struct stat attr = { .st_mode = S_IFDIR | S_ISUID | 0711 };
    cr_assert_eq(inode_setattr(file, &attr, SETATTR_MODE), 0);
    cr_assert_eq(stat_of(file).st_mode, S_IFREG | S_ISUID | 0711);
    inode_put(file, 1);
    remount();
    cr_assert_eq(stat_name(root, "file").st_mode, S_IFREG | S_ISUID | 0711);
}

Test(names, chown_takes_setuid_and_setgid_away)
{
    struct stat attr = { .st_mode = S_ISUID | S_ISGID | 0755, .st_uid = 7, .st_gid = 8 };
    struct inode *file = make(root, "file", S_IFREG | 0644),
                 *dir = make(root, "dir", S_IFDIR | 0755);
    cr_assert_eq(xattr_set(file, "security.capability", "caps", 4, 0), 0);
    cr_assert_eq(inode_setattr(file, &attr, SETATTR_MODE), 0);
    cr_assert_eq(inode_setattr(dir, &attr, SETATTR_MODE), 0);
    cr_assert_eq(inode_setattr(file, &attr, SETATTR_UID), 0);
    cr_assert_eq(inode_setattr(dir, &attr, SETATTR_UID | SETATTR_GID), 0);
    cr_assert_eq(stat_of(file).st_mode, S_IFREG | 0755);
    cr_assert_eq(stat_of(file).st_uid, 7U);
    cr_assert_eq(stat_of(file).st_gid, cred.gid);
    cr_assert_eq(xattr_get(file, "security.capability", NULL, 0), -ENODATA);
    cr_assert_eq(stat_of(dir).st_mode, S_IFDIR | S_ISUID | S_ISGID | 0755);
    attr.st_mode = S_ISGID | 0644; /* without group execution setgid stays */
    cr_assert_eq(inode_setattr(file, &attr, SETATTR_MODE), 0);
    cr_assert_eq(inode_setattr(file, &attr, SETATTR_GID), 0);
    cr_assert_eq(stat_of(file).st_mode, S_IFREG | S_ISGID | 0644);
    inode_put(file, 1), inode_put(dir, 1);
}

Test(names, killing_privileges_is_what_a_write_asks_for)
{
    struct stat attr = { .st_mode = S_ISUID | S_ISGID | 0755 };
    struct inode *file = make(root, "file", S_IFREG | 0644);
    struct timespec ctime = stat_of(file).st_ctim;
    cr_assert_eq(inode_setattr(file, NULL, SETATTR_KILL_PRIV), 0);
    cr_assert_not(later(stat_of(file).st_ctim, ctime), "nothing to kill, nothing changed");
    cr_assert_eq(inode_setattr(file, &attr, SETATTR_MODE), 0);
    cr_assert_eq(inode_setattr(file, NULL, SETATTR_KILL_PRIV), 0);
    cr_assert_eq(stat_of(file).st_mode, S_IFREG | 0755);
    attr.st_mode = S_ISUID | S_ISGID | 0644;
    cr_assert_eq(inode_setattr(file, &attr, SETATTR_MODE), 0);
    cr_assert_eq(inode_setattr(file, NULL, SETATTR_KILL_PRIV), 0);
    cr_assert_eq(stat_of(file).st_mode, S_IFREG | S_ISGID | 0644);
    cr_assert_eq(inode_setattr(file, NULL, SETATTR_KILL_PRIV | SETATTR_KILL_SGID), 0);
    cr_assert_eq(stat_of(file).st_mode, S_IFREG | 0644);
    inode_put(file, 1);
}

Test(names, killing_privileges_leaves_the_rest_of_a_mode_that_was_set_since)
{
    struct stat attr = { .st_mode = 0600 };
    struct inode *file = make(root, "file", S_IFREG | S_ISGID | 0666);
    cr_assert_eq(inode_setattr(file, &attr, SETATTR_MODE), 0);
    cr_assert_eq(inode_setattr(file, NULL, SETATTR_KILL_PRIV | SETATTR_KILL_SGID), 0);
    cr_assert_eq(stat_of(file).st_mode, S_IFREG | 0600);
    inode_put(file, 1);
}

Test(names, changing_nothing_changes_ctime)
{
    struct stat attr = { 0 };
    struct inode *file = make(root, "file", S_IFREG | 0644);
    struct stat before = stat_of(file);
    usleep(2000);
    cr_assert_eq(inode_setattr(file, &attr, 0), 0);
    struct stat after = stat_of(file);
    cr_assert(later(after.st_ctim, before.st_ctim));
    cr_assert_not(later(after.st_mtim, before.st_mtim));
    cr_assert_eq(after.st_mode, before.st_mode);
    cr_assert_eq(after.st_uid, before.st_uid);
    inode_put(file, 1);
}

Test(names, times_are_set_as_given_or_to_now)
{
    struct stat attr = { .st_atim = { 100, 1 }, .st_mtim = { 200, 2 }, .st_ctim = { 300, 3 } };
    struct inode *file = make(root, "file", S_IFREG | 0644);
    cr_assert_eq(inode_setattr(file, &attr, SETATTR_ATIME | SETATTR_MTIME | SETATTR_CTIME), 0);
    inode_put(file, 1);
    remount();
    file = lookup(root, "file");
    struct stat st = stat_of(file);
    cr_assert(st.st_atim.tv_sec == 100 && st.st_atim.tv_nsec == 1);
    cr_assert(st.st_mtim.tv_sec == 200 && st.st_mtim.tv_nsec == 2);
    cr_assert(st.st_ctim.tv_sec == 300 && st.st_ctim.tv_nsec == 3);
    cr_assert_eq(inode_setattr(file, &attr, SETATTR_ATIME_NOW | SETATTR_MTIME_NOW), 0);
    st = stat_of(file);
    cr_assert(st.st_atim.tv_sec > 1000 && st.st_mtim.tv_sec > 1000 && st.st_ctim.tv_sec > 1000);
    attr.st_mtim.tv_nsec = 1000000000;
    cr_assert_eq(inode_setattr(file, &attr, SETATTR_MTIME), -EINVAL);
    inode_put(file, 1);
}

Test(names, an_mtime_set_on_dirty_data_survives)
{
    struct stat attr = { .st_mtim = { 1234567, 89 } };
    struct inode *file = make(root, "file", S_IFREG | 0644);
    write_file(file, "dirty");
    cr_assert_eq(inode_setattr(file, &attr, SETATTR_MTIME), 0);
    cr_assert_eq(stat_of(file).st_mtim.tv_sec, 1234567);
    inode_put(file, 1);
    remount();
    cr_assert_eq(stat_name(root, "file").st_mtim.tv_sec, 1234567);
    cr_assert_eq(stat_name(root, "file").st_mtim.tv_nsec, 89);
    cr_assert_eq(stat_name(root, "file").st_size, 5);
}

Test(names, only_files_have_a_size_to_set)
{
    struct stat attr = { .st_size = 10000 };
    struct inode *dir = make(root, "dir", S_IFDIR | 0755),
                 *fifo = make(root, "fifo", S_IFIFO | 0600);
    struct inode *file = make(root, "file", S_IFREG | 0644);
    cr_assert_eq(inode_setattr(dir, &attr, SETATTR_SIZE), -EISDIR);
    cr_assert_eq(inode_setattr(fifo, &attr, SETATTR_SIZE), -EINVAL);
    cr_assert_eq(inode_setattr(file, &attr, SETATTR_SIZE), 0);
    cr_assert_eq(stat_of(file).st_size, 10000);
    cr_assert_eq(stat_of(file).st_blocks, 0);
    attr.st_size = -1;
    cr_assert_eq(inode_setattr(file, &attr, SETATTR_SIZE), -EINVAL);
    inode_put(dir, 1), inode_put(fifo, 1), inode_put(file, 1);
}

Test(names, blocks_are_counted_before_and_after_they_are_written)
{
    struct inode *file = make(root, "file", S_IFREG | 0644);
    write_file(file, "dirty");
    cr_assert_eq(stat_of(file).st_blocks, 8);
    cr_assert_eq(inode_write_back(file), 0);
    cr_assert_eq(stat_of(file).st_blocks, 8);
    write_file(file, "again");
    cr_assert_eq(stat_of(file).st_blocks, 8);
    inode_put(file, 1);
}

Test(names, atime_moves_once_after_a_change)
{
    struct stat attr = { .st_atim = { 100, 0 } };
    struct inode *file = make(root, "file", S_IFREG | 0644);
    cr_assert_eq(inode_setattr(file, &attr, SETATTR_ATIME), 0);
    inode_touch_atime(file);
    struct timespec first = stat_of(file).st_atim;
    cr_assert_gt(first.tv_sec, 100);
    usleep(2000);
    inode_touch_atime(file);
    cr_assert_not(later(stat_of(file).st_atim, first));
    inode_put(file, 1);
    remount();
    cr_assert_eq(stat_name(root, "file").st_atim.tv_nsec, first.tv_nsec);
}

/* ---- extended attributes ------------------------------------------------------------------------ */

Test(names, an_extended_attribute_is_set_replaced_and_removed)
{
    char buf[16], list[32];
    struct inode *file = make(root, "file", S_IFREG | 0644);
    cr_assert_eq(xattr_set(file, "user.a", "one", 3, XATTR_REPLACE), -ENODATA);
    cr_assert_eq(xattr_set(file, "user.a", "one", 3, XATTR_CREATE), 0);
    cr_assert_eq(xattr_set(file, "user.a", "one", 3, XATTR_CREATE), -EEXIST);
    cr_assert_eq(xattr_set(file, "user.a", "three", 5, XATTR_REPLACE), 0);
    cr_assert_eq(xattr_set(file, "trusted.b", NULL, 0, 0), 0);
    inode_put(file, 1);
    remount();
    file = lookup(root, "file");
    cr_assert_eq(xattr_get(file, "user.a", NULL, 0), 5);
    cr_assert_eq(xattr_get(file, "user.a", buf, sizeof buf), 5);
    cr_assert_eq(memcmp(buf, "three", 5), 0);
    cr_assert_eq(xattr_get(file, "user.a", buf, 4), -ERANGE);
    cr_assert_eq(xattr_get(file, "trusted.b", buf, sizeof buf), 0);
    cr_assert_eq(xattr_get(file, "user.none", buf, sizeof buf), -ENODATA);
    cr_assert_eq(xattr_list(file, NULL, 0, true), 17);
    cr_assert_eq(xattr_list(file, list, 16, true), -ERANGE);
    cr_assert_eq(xattr_list(file, list, sizeof list, true), 17);
    cr_assert_eq(memcmp(list, "trusted.b\0user.a", 17), 0);
    cr_assert_eq(xattr_remove(file, "user.a"), 0);
    cr_assert_eq(xattr_remove(file, "user.a"), -ENODATA);
    cr_assert_eq(xattr_list(file, NULL, 0, true), 10);
    inode_put(file, 1);
}

Test(names, extended_attributes_have_limits)
{
    static char value[XATTR_VALUE_MAX + 1];
    char name[NAME_MAX_BYTES + 2] = "user.";
    struct inode *file = make(root, "file", S_IFREG | 0644),
                 *fifo = make(root, "f", S_IFIFO | 0600);
    cr_assert_eq(xattr_set(file, "system.posix_acl_access", "", 0, 0), -EOPNOTSUPP);
    cr_assert_eq(xattr_get(file, "nonsense", NULL, 0), -EOPNOTSUPP);
    cr_assert_eq(xattr_set(file, "user.", "", 0, 0), -EINVAL);
    cr_assert_eq(xattr_set(file, "user.big", value, sizeof value, 0), -E2BIG);
    cr_assert_eq(xattr_set(file, "user.big", value, sizeof value - 1, 0), 0);
    cr_assert_eq(xattr_get(file, "user.big", NULL, 0), XATTR_VALUE_MAX);
    memset(name + 5, 'n', sizeof name - 6);
    cr_assert_eq(xattr_set(file, name, "", 0, 0), -ERANGE);
    cr_assert_eq(xattr_set(fifo, "user.a", "", 0, 0), -EPERM);
    cr_assert_eq(xattr_remove(fifo, "user.a"), -EPERM);
    cr_assert_eq(xattr_get(fifo, "user.a", NULL, 0), -ENODATA);
    cr_assert_eq(xattr_set(fifo, "trusted.a", "", 0, 0), 0);
    inode_put(file, 1), inode_put(fifo, 1);
}

Test(names, no_more_attributes_than_can_be_listed)
{
    struct inode *file = make(root, "file", S_IFREG | 0644);
    char name[NAME_MAX_BYTES + 1];
    int err = 0, nr = 0;
    while (err == 0 && nr < 1000) {
        snprintf(name, sizeof name, "user.%0250d", nr);
        err = xattr_set(file, name, "", 0, 0);
        nr += err == 0;
    }
    cr_assert_eq(err, -ENOSPC);
    cr_assert_eq(nr, 65536 / 256);
    cr_assert_eq(xattr_list(file, NULL, 0, true), 65536);
    snprintf(name, sizeof name, "user.%0250d", 0);
    cr_assert_eq(xattr_set(file, name, "new", 3, 0), 0, "an old name has its place");
    cr_assert_eq(dir_unlink(root, "file"), 0);
    inode_put(file, 1); /* the check at the end finds no attribute left */
}

Test(names, attributes_change_ctime)
{
    struct inode *file = make(root, "file", S_IFREG | 0644);
    struct timespec before = stat_of(file).st_ctim;
    usleep(2000);
    cr_assert_eq(xattr_set(file, "user.a", "", 0, 0), 0);
    cr_assert(later(stat_of(file).st_ctim, before));
    inode_put(file, 1);
}

/* ---- changes that are refused ------------------------------------------------------------------- */

Test(names, a_read_only_volume_refuses_every_change_and_keeps_everything)
{
    struct inode *inode, *file = make(root, "file", S_IFREG | 0644);
    struct stat attr = { .st_mode = 0600, .st_size = 5 };
    cr_assert_eq(xattr_set(file, "user.a", "", 0, 0), 0);
    inode_put(file, 1);
    inode_put(make(root, "dir", S_IFDIR | 0755), 1);
    options.read_only = true;
    remount();
    file = lookup(root, "file");
    struct stat before = stat_of(file), root_before = stat_of(root);
    cr_assert_eq(dir_mknod(root, "x", S_IFREG | 0644, 0, &cred, &inode), -EROFS);
    cr_assert_eq(dir_symlink(root, "x", "y", &cred, &inode), -EROFS);
    cr_assert_eq(dir_link(file, root, "x"), -EROFS);
    cr_assert_eq(dir_unlink(root, "file"), -EROFS);
    cr_assert_eq(dir_rmdir(root, "dir"), -EROFS);
    cr_assert_eq(dir_rename(root, "file", root, "x", 0, NULL), -EROFS);
    cr_assert_eq(inode_setattr(file, &attr, SETATTR_MODE), -EROFS);
    cr_assert_eq(inode_setattr(file, &attr, SETATTR_SIZE), -EROFS);
    cr_assert_eq(xattr_set(file, "user.b", "", 0, 0), -EROFS);
    cr_assert_eq(xattr_remove(file, "user.a"), -EROFS);
    inode_touch_atime(file);
    cr_assert_eq(fs_sync(fs), 0);
    struct stat after = stat_of(file), root_after = stat_of(root);
    cr_assert_eq(memcmp(&before, &after, sizeof before), 0);
    cr_assert_eq(memcmp(&root_before, &root_after, sizeof root_before), 0);
    cr_assert_eq(count_entries(root), 4U);
    inode_put(file, 1);
}

Test(names,
     a_volume_that_takes_nothing_more_shows_what_was_there_before_a_change_of_shape_was_refused)
{
    static const int modes[] = { FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, FALLOC_FL_ZERO_RANGE,
                                 0 };
    static char want[3 * PAGE_SIZE], have[3 * PAGE_SIZE];
    struct inode *inode = make(root, "file", S_IFREG | 0644);
    struct open_file *file;
    cr_assert_eq(file_open(inode, O_RDWR, &file), 0);
    memset(want, 'd', sizeof want);
    cr_assert_eq(file_write(file, 0, want, sizeof want, 0), (ssize_t)sizeof want);
    cr_assert_eq(file_fsync(file), 0);
    memset(want + 2 * PAGE_SIZE, 'n', PAGE_SIZE); /* not written yet */
    cr_assert_eq(file_write(file, 2 * PAGE_SIZE, want + 2 * PAGE_SIZE, PAGE_SIZE, 0), PAGE_SIZE);
    store_shutdown(fs->store);
    cr_expect_eq(inode_truncate(inode, 100), -EROFS);
    cr_expect_eq(inode_truncate(inode, 0), -EROFS);
    for (size_t i = 0; i < sizeof modes / sizeof modes[0]; i++) {
        cr_expect_eq(file_fallocate(file, modes[i], 10, 50, NULL), -EROFS);
        cr_expect_eq(file_fallocate(file, modes[i], 10, 3 * PAGE_SIZE, NULL), -EROFS);
    }
    cr_expect_eq(file_read(file, 0, have, sizeof have), (ssize_t)sizeof have);
    cr_expect_arr_eq(have, want, sizeof have);
    file_release(file);
    inode_put(inode, 1);
    inode_put(root, 1);
    cr_expect_neq(fs_unmount(fs), 0, "what was not written is lost");
    fs = NULL;
}

Test(names_full, on_a_full_volume_creating_fails_cleanly_and_deleting_works, .timeout = 120)
{
    static char value[XATTR_VALUE_MAX];
    char name[16];
    int err = 0, nr = 0;
    format_volume(MIN_CAPACITY);
    mount_path(volume);
    while (err == 0 && nr < 1000) {
        struct inode *file = NULL;
        snprintf(name, sizeof name, "%d", nr);
        err = dir_mknod(root, name, S_IFREG | 0644, 0, &cred, &file);
        if (err == 0) {
            nr++;
            err = xattr_set(file, "user.big", value, sizeof value, 0);
            inode_put(file, 1);
        }
    }
    cr_assert_eq(err, -ENOSPC);
    for (err = 0; err == 0 && nr < 100000; nr += err == 0) {
        struct inode *file = NULL;
        snprintf(name, sizeof name, "%d", nr);
        err = dir_mknod(root, name, S_IFREG | 0644, 0, &cred, &file);
        if (err == 0)
            inode_put(file, 1);
    }
    cr_assert_eq(err, -ENOSPC);
    cr_assert_eq(exists(root, name), -ENOENT);
    cr_assert_eq(dir_rename(root, "0", root, "renamed", RENAME_WHITEOUT, &cred), -ENOSPC);
    cr_assert_eq(stat_name(root, "0").st_mode, S_IFREG | 0644U);
    cr_assert_eq(exists(root, "renamed"), -ENOENT);
    cr_assert_eq(count_entries(root), (unsigned)nr + 2);
    for (int i = 0; i < nr; i++) {
        snprintf(name, sizeof name, "%d", i);
        err = dir_unlink(root, name);
        cr_assert_eq(err, 0, "unlinking %s of %d: %s", name, nr, strerror(-err));
    }
    commit();
    touch(root, "there is room again");
    teardown();
}

/* ---- the table of inodes ------------------------------------------------------------------------ */

Test(names, unused_inodes_are_kept_up_to_the_limit)
{
    struct inode_table_stats stats;
    char name[16];
    unmount();
    options.max_inodes = 10;
    mount_path(volume);
    for (int i = 0; i < 100; i++) {
        snprintf(name, sizeof name, "%d", i);
        touch(root, name);
    }
    inode_table_stats(fs, &stats);
    cr_assert_eq(stats.unused, 10U);
    cr_assert_eq(stats.inodes, 11U);
    inode_shrink(fs, 0);
    inode_table_stats(fs, &stats);
    cr_assert_eq(stats.unused, 0U);
    for (int i = 0; i < 100; i++) {
        snprintf(name, sizeof name, "%d", i);
        cr_assert_eq(exists(root, name), 0);
    }
}

Test(names, an_evicted_file_keeps_its_size_and_data)
{
    struct inode *file = make(root, "file", S_IFREG | 0644);
    write_file(file, "0123456789");
    inode_put(file, 1);
    cr_assert_eq(inode_write_back(file), 0); /* the list of dirty files holds it */
    inode_shrink(fs, 0);
    file = lookup(root, "file");
    verify_content(file, "0123456789");
    inode_put(file, 1);
}

Test(names, forget_takes_the_kernels_references)
{
    struct inode_table_stats stats;
    struct inode *file = make(root, "file", S_IFREG | 0644);
    uint64_t ino = file->ino;
    inode_ref(file, 4);
    inode_forget(fs, ino, 3);
    inode_table_stats(fs, &stats);
    cr_assert_eq(stats.unused, 0U);
    inode_forget(fs, ino, 2);
    inode_table_stats(fs, &stats);
    cr_assert_eq(stats.unused, 1U);
    inode_forget(fs, 123456789, 1);
}

Test(names, the_root_is_there_and_other_numbers_are_not)
{
    struct inode *inode;
    cr_assert_eq(inode_get(fs, 987654321, &inode), -ENOENT);
    cr_assert_eq(stat_of(root).st_nlink, 2U);
    cr_assert(S_ISDIR(stat_of(root).st_mode));
}

Test(names, after_sync_everything_survives_a_crash)
{
    struct inode *file = make(root, "file", S_IFREG | 0644);
    write_file(file, "durable");
    cr_assert_eq(fs_sync(fs), 0);
    inode_put(file, 1);
    crash();
    file = lookup(root, "file");
    verify_content(file, "durable");
    inode_put(file, 1);
}

Test(names, fsync_of_a_reloaded_directory_makes_its_names_durable)
{
    struct inode *dir = make(root, "dir", S_IFDIR | 0755);
    touch(dir, "file");
    inode_put(dir, 1);
    inode_shrink(fs, 0);
    dir = lookup(root, "dir");
    cr_assert_eq(inode_fsync(dir), 0);
    inode_put(dir, 1);
    crash();
    dir = lookup(root, "dir");
    cr_assert_eq(exists(dir, "file"), 0);
    inode_put(dir, 1);
}

/* ---- threads ------------------------------------------------------------------------------------ */

#define ROUNDS   2000
#define WATCHERS 3

static atomic_bool done; /* the thread that changes things tells the others */

static void *watch_name(void *arg)
{
    (void)arg;
    while (!atomic_load(&done)) {
        int err = exists(root, "name");
        cr_assert_eq(err, 0, "%s", strerror(-err));
    }
    return NULL;
}

Test(names_threads, a_name_that_is_replaced_is_there_all_the_time)
{
    pthread_t threads[WATCHERS];
    touch(root, "name");
    for (int i = 0; i < WATCHERS; i++)
        cr_assert_eq(pthread_create(&threads[i], NULL, watch_name, NULL), 0);
    for (int i = 0; i < 10 * ROUNDS; i++) {
        touch(root, "new");
        cr_assert_eq(dir_rename(root, "new", root, "name", 0, NULL), 0);
    }
    atomic_store(&done, true);
    for (int i = 0; i < WATCHERS; i++)
        pthread_join(threads[i], NULL);
}

static void *load_again_and_again(void *arg)
{
    uint64_t ino = *(const uint64_t *)arg;
    while (!atomic_load(&done)) {
        struct inode *one, *two;
        cr_assert_eq(inode_get(fs, ino, &one), 0);
        cr_assert_eq(inode_get(fs, ino, &two), 0);
        cr_assert_eq(one, two);
        cr_assert_eq(inode_mode(one), S_IFREG | 0644U);
        inode_put(one, 1);
        inode_put(two, 1);
    }
    return NULL;
}

Test(names_threads, an_inode_is_loaded_once_and_never_seen_half_loaded)
{
    pthread_t threads[WATCHERS];
    struct inode *file = make(root, "file", S_IFREG | 0644);
    uint64_t ino = file->ino;
    inode_put(file, 1);
    for (int i = 0; i < WATCHERS; i++)
        cr_assert_eq(pthread_create(&threads[i], NULL, load_again_and_again, &ino), 0);
    for (int i = 0; i < 10 * ROUNDS; i++)
        inode_shrink(fs, 0);
    atomic_store(&done, true);
    for (int i = 0; i < WATCHERS; i++)
        pthread_join(threads[i], NULL);
}

static void *change_names(void *arg)
{
    unsigned seed = (unsigned)(uintptr_t)arg;
    char a[8], b[8];
    for (int i = 0; i < ROUNDS; i++) {
        struct inode *inode, *dir = root;
        bool below = dir_lookup(root, "dir", &dir) == 0;
        snprintf(a, sizeof a, "%d", rand_r(&seed) % 6);
        snprintf(b, sizeof b, "%d", rand_r(&seed) % 6);
        switch (rand_r(&seed) % 7) {
        case 0:
            if (dir_mknod(dir, a, S_IFREG | 0644, 0, &cred, &inode) == 0) {
                write_file(inode, "data");
                inode_put(inode, 1);
            }
            break;
        case 1:
            (void)dir_unlink(dir, a);
            break;
        case 2:
            (void)dir_rename(dir, a, root, b, 0, NULL);
            break;
        case 3:
            (void)dir_rename(root, a, dir, b, RENAME_EXCHANGE, NULL);
            break;
        case 4:
            if (dir_lookup(dir, a, &inode) == 0) {
                struct stat attr = { .st_mode = (mode_t)rand_r(&seed) & 0777 };
                (void)dir_link(inode, root, b);
                (void)inode_setattr(inode, &attr, SETATTR_MODE);
                inode_put(inode, 1);
            }
            break;
        case 5:
            inode_shrink(fs, 0);
            break;
        default:
            if (dir_mknod(root, a, S_IFDIR | 0755, 0, &cred, &inode) == 0)
                inode_put(inode, 1);
            (void)dir_rmdir(dir, b);
            break;
        }
        if (below)
            inode_put(dir, 1);
    }
    return NULL;
}

Test(names_threads, many_threads_leave_a_consistent_volume)
{
    pthread_t threads[4];
    inode_put(make(root, "dir", S_IFDIR | 0755), 1);
    for (uintptr_t i = 0; i < 4; i++)
        cr_assert_eq(pthread_create(&threads[i], NULL, change_names, (void *)(i + 1)), 0);
    for (int i = 0; i < 4; i++)
        pthread_join(threads[i], NULL);
}

static void *write_again_and_again(void *arg)
{
    struct open_file *file;
    cr_assert_eq(file_open(arg, O_RDWR, &file), 0);
    for (int i = 0; i < ROUNDS; i++) {
        cr_assert_eq(file_write(file, (uint64_t)i * 100, "more data", 9, 0), 9);
        cr_assert_eq(inode_write_back(arg), 0);
    }
    file_release(file);
    return NULL;
}

/* A record is written by whoever changes one of its fields: nobody may put back an old other one. */
Test(names_threads, names_attributes_and_writeback_keep_each_others_changes)
{
    struct inode *file = make(root, "file", S_IFREG | 0644);
    uint64_t ino = file->ino;
    struct stat attr = { 0 };
    pthread_t thread;
    cr_assert_eq(pthread_create(&thread, NULL, write_again_and_again, file), 0);
    for (unsigned i = 0; i < ROUNDS; i++) {
        struct inode_record r;
        attr.st_mode = i & 0777;
        cr_assert_eq(inode_setattr(file, &attr, SETATTR_MODE), 0);
        if (i % 2 == 0)
            cr_assert_eq(dir_link(file, root, "other"), 0);
        else
            cr_assert_eq(dir_unlink(root, "other"), 0);
        cr_assert_eq(inode_read_record(fs, ino, &r), 0);
        cr_assert_eq(r.nlink, i % 2 == 0 ? 2U : 1U, "round %u", i);
        cr_assert_eq(r.mode & 07777, i & 0777, "round %u", i);
    }
    pthread_join(thread, NULL);
    inode_put(file, 1);
    remount();
    struct stat st = stat_name(root, "file");
    cr_assert_eq(st.st_size, (ROUNDS - 1) * 100 + 9);
}

Test(names_threads, many_pages_of_a_deleted_file_are_left_to_the_worker)
{
    static char data[1 << 20];
    struct inode *file = make(root, "big", S_IFREG | 0644);
    struct cache_stats stats;
    struct open_file *open;
    cr_assert_eq(file_open(file, O_RDWR, &open), 0);
    cr_assert_eq(file_write(open, 0, data, sizeof data, 0), (ssize_t)sizeof data);
    cr_assert_eq(file_write(open, sizeof data, data, sizeof data, 0), (ssize_t)sizeof data);
    file_release(open);
    cr_assert_eq(inode_write_back(file), 0);
    cr_assert_eq(dir_unlink(root, "big"), 0);
    inode_put(file, 1);
    for (int i = 0; i < 1000; i++) {
        page_cache_stats(fs->cache, &stats);
        if (stats.pages == 0)
            return;
        usleep(10000);
    }
    cr_assert_fail("%lu pages are left", (unsigned long)stats.pages);
}

/* ---- the model ---------------------------------------------------------------------------------- */

#define MODEL_NAMES   6 /* "a" to "f" */
#define MODEL_NODES   400
#define MODEL_STEPS   6000
#define REMOUNT_EVERY 500

struct node {
    bool used;
    uint32_t type; /* S_IFMT */
    unsigned names;
    uint64_t ino;
    struct node *parent; /* directories */
    struct node *child[MODEL_NAMES];
};

static struct node nodes[MODEL_NODES]; /* the first is the root */
static uint64_t rng;
static unsigned step;

static unsigned pick(unsigned limit)
{
    rng ^= rng << 13;
    rng ^= rng >> 7;
    rng ^= rng << 17;
    return (unsigned)(rng >> 33) % limit;
}

static const char *name_of(unsigned n)
{
    static const char *const names[MODEL_NAMES] = { "a", "b", "c", "d", "e", "f" };
    return names[n];
}

static bool node_is_dir(const struct node *n)
{
    return n->type == S_IFDIR;
}

static bool model_is_full(void)
{
    for (unsigned i = 1; i < MODEL_NODES; i++)
        if (!nodes[i].used)
            return false;
    return true;
}

static struct node *node_new(uint32_t type)
{
    for (unsigned i = 1; i < MODEL_NODES; i++) {
        if (!nodes[i].used) {
            nodes[i] = (struct node){ .used = true, .type = type };
            return &nodes[i];
        }
    }
    return NULL;
}

static unsigned subdirs(const struct node *dir)
{
    unsigned nr = 0;
    for (unsigned i = 0; i < MODEL_NAMES; i++)
        nr += dir->child[i] != NULL && node_is_dir(dir->child[i]);
    return nr;
}

static bool node_is_empty(const struct node *dir)
{
    for (unsigned i = 0; i < MODEL_NAMES; i++)
        if (dir->child[i] != NULL)
            return false;
    return true;
}

static void node_attach(struct node *dir, unsigned name, struct node *n)
{
    dir->child[name] = n;
    n->names++;
    if (node_is_dir(n))
        n->parent = dir;
}

static struct node *node_detach(struct node *dir, unsigned name)
{
    struct node *n = dir->child[name];
    dir->child[name] = NULL;
    n->names--;
    return n;
}

static void node_drop(struct node *n)
{
    if (n->names == 0)
        n->used = false;
}

static bool node_is_below(const struct node *n, const struct node *ancestor)
{
    while (n != ancestor && n->parent != NULL)
        n = n->parent;
    return n == ancestor;
}

/* A directory somewhere in the tree. */
static struct node *pick_dir(void)
{
    struct node *dir = &nodes[0];
    for (unsigned depth = pick(5); depth > 0; depth--) {
        struct node *next = dir->child[pick(MODEL_NAMES)];
        if (next != NULL && node_is_dir(next))
            dir = next;
    }
    return dir;
}

static struct inode *inode_of(const struct node *n)
{
    struct inode *inode;
    int err = inode_get(fs, n->ino, &inode);
    cr_assert_eq(err, 0, "step %u: inode %lu: %s", step, (unsigned long)n->ino, strerror(-err));
    return inode;
}

static int model_make(struct node *dir, unsigned name, uint32_t type, struct node **out)
{
    if (dir->child[name] != NULL)
        return -EEXIST;
    *out = node_new(type);
    cr_assert_not_null(*out, "the model is full");
    node_attach(dir, name, *out);
    return 0;
}

static int model_remove(struct node *dir, unsigned name, bool want_dir)
{
    struct node *n = dir->child[name];
    if (n == NULL)
        return -ENOENT;
    if (node_is_dir(n) != want_dir)
        return want_dir ? -ENOTDIR : -EISDIR;
    if (want_dir && !node_is_empty(n))
        return -ENOTEMPTY;
    node_drop(node_detach(dir, name));
    return 0;
}

static int model_may_rename(struct node *olddir, struct node *source, struct node *newdir,
                            struct node *target, unsigned flags)
{
    if (source == NULL)
        return -ENOENT;
    if (target != NULL && (flags & RENAME_NOREPLACE))
        return -EEXIST;
    if (target == NULL && (flags & RENAME_EXCHANGE))
        return -ENOENT;
    if (source == target)
        return 1;
    if (node_is_dir(source) && node_is_below(newdir, source))
        return -EINVAL;
    if (target == NULL)
        return 0;
    if (flags & RENAME_EXCHANGE)
        return node_is_dir(target) && node_is_below(olddir, target) ? -EINVAL : 0;
    if (node_is_dir(source) != node_is_dir(target))
        return node_is_dir(source) ? -ENOTDIR : -EISDIR;
    return node_is_dir(target) && !node_is_empty(target) ? -ENOTEMPTY : 0;
}

static int model_rename(struct node *olddir, unsigned oldname, struct node *newdir,
                        unsigned newname, unsigned flags, struct node **whiteout)
{
    struct node *source = olddir->child[oldname], *target = newdir->child[newname];
    int may = model_may_rename(olddir, source, newdir, target, flags);
    if (may != 0)
        return may < 0 ? may : 0;
    node_detach(olddir, oldname);
    if (target != NULL)
        node_detach(newdir, newname);
    node_attach(newdir, newname, source);
    if (flags & RENAME_EXCHANGE)
        node_attach(olddir, oldname, target);
    else if (target != NULL)
        node_drop(target);
    if (flags & RENAME_WHITEOUT) {
        *whiteout = node_new(S_IFCHR);
        cr_assert_not_null(*whiteout, "the model is full");
        node_attach(olddir, oldname, *whiteout);
    }
    return 0;
}

/* One random change, here and there.   Returns whether both say the same. */
static void model_step(void)
{
    static const uint32_t types[] = { S_IFREG, S_IFDIR, S_IFDIR, S_IFLNK, S_IFIFO };
    static const unsigned flags[] = { 0,
                                      0,
                                      0,
                                      RENAME_NOREPLACE,
                                      RENAME_EXCHANGE,
                                      RENAME_WHITEOUT,
                                      RENAME_WHITEOUT | RENAME_NOREPLACE };
    struct node *dir = pick_dir(), *other = pick_dir(), *made = NULL;
    unsigned name = pick(MODEL_NAMES), to = pick(MODEL_NAMES), what = pick(10),
             flag = flags[pick(7)];
    uint32_t type = types[pick(5)];
    struct inode *d = inode_of(dir), *o = inode_of(other), *inode = NULL;
    int expected = 0, err = 0;
    if (what < 3 && model_is_full())
        what = 4 + pick(2);
    if (model_is_full())
        flag &= ~(unsigned)RENAME_WHITEOUT;
    if (what < 3) {
        expected = model_make(dir, name, type, &made);
        err = type == S_IFLNK ? dir_symlink(d, name_of(name), "target", &cred, &inode)
                              : dir_mknod(d, name_of(name), type | 0700, 0, &cred, &inode);
        if (err == 0 && made != NULL)
            made->ino = inode->ino;
    } else if (what == 3 && dir->child[name] != NULL && !node_is_dir(dir->child[name])) {
        inode = inode_of(dir->child[name]);
        expected = other->child[to] != NULL ? -EEXIST : 0;
        if (expected == 0)
            node_attach(other, to, dir->child[name]);
        err = dir_link(inode, o, name_of(to));
    } else if (what == 4 || what == 5) {
        expected = model_remove(dir, name, what == 4);
        err = what == 4 ? dir_rmdir(d, name_of(name)) : dir_unlink(d, name_of(name));
    } else if (what > 5) {
        expected = model_rename(dir, name, other, to, flag, &made);
        err = dir_rename(d, name_of(name), o, name_of(to), flag, &cred);
        if (err == 0 && made != NULL)
            made->ino = stat_name(d, name_of(name)).st_ino;
    }
    if (inode != NULL)
        inode_put(inode, 1);
    inode_put(d, 1), inode_put(o, 1);
    cr_assert_eq(err, expected, "step %u, action %u: %d instead of %d", step, what, err, expected);
}

static void compare_node(struct inode *inode, const struct node *n, const struct node *parent);

static void compare_entries(struct inode *dir, const struct node *n)
{
    struct dir_entry e;
    unsigned seen = 0;
    for (uint64_t cookie = 2; dir_next(dir, cookie, &e) == 0; cookie = e.cookie) {
        unsigned i = (unsigned)(e.name[0] - 'a');
        cr_assert(i < MODEL_NAMES && e.name[1] == '\0' && n->child[i] != NULL, "step %u: %s", step,
                  e.name);
        cr_assert_eq(e.ino, n->child[i]->ino);
        cr_assert_eq(e.type, IFTODT(n->child[i]->type));
        cr_assert_eq(seen & 1U << i, 0U, "%s twice", e.name);
        seen |= 1U << i;
    }
    for (unsigned i = 0; i < MODEL_NAMES; i++) {
        if (n->child[i] == NULL) {
            cr_assert_eq(exists(dir, name_of(i)), -ENOENT);
            continue;
        }
        cr_assert(seen & 1U << i, "step %u: %s is not read", step, name_of(i));
        struct inode *child = lookup(dir, name_of(i));
        compare_node(child, n->child[i], n);
        inode_put(child, 1);
    }
}

static void compare_node(struct inode *inode, const struct node *n, const struct node *parent)
{
    struct stat st = stat_of(inode);
    unsigned nlink = node_is_dir(n) ? 2 + subdirs(n) : n->names;
    char target[16];
    cr_assert_eq(st.st_ino, n->ino);
    cr_assert_eq(st.st_mode & S_IFMT, n->type);
    cr_assert_eq(st.st_nlink, nlink, "step %u: %lu links, not %u", step, (unsigned long)st.st_nlink,
                 nlink);
    if (n->type == S_IFLNK) {
        cr_assert_eq(dir_readlink(inode, target, sizeof target), 0);
        cr_assert_str_eq(target, "target");
    }
    if (n->type == S_IFCHR)
        cr_assert(st.st_mode == S_IFCHR && st.st_rdev == 0);
    if (!node_is_dir(n))
        return;
    struct inode *up = lookup(inode, "..");
    cr_assert_eq(up->ino, parent->ino);
    inode_put(up, 1);
    compare_entries(inode, n);
}

static uint64_t choose_seed(void)
{
    const char *given = getenv("FOLIO_SEED");
    uint64_t seed = given != NULL ? strtoull(given, NULL, 0) : (uint64_t)fs_now().tv_nsec;
    fprintf(stderr, "FOLIO_SEED=%llu\n", (unsigned long long)seed);
    return seed;
}

Test(names, random_changes_give_the_tree_that_the_model_has)
{
    rng = choose_seed() * 2 + 1;
    memset(nodes, 0, sizeof nodes);
    nodes[0] = (struct node){ .used = true, .type = S_IFDIR, .ino = ROOT_INO };
    options.max_inodes = 1 + pick(20);
    remount();
    for (step = 1; step <= MODEL_STEPS; step++) {
        model_step();
        if (pick(100) == 0)
            commit();
        if (step % REMOUNT_EVERY != 0)
            continue;
        compare_node(root, &nodes[0], &nodes[0]);
        unmount();
        cr_assert_eq(verify_volume(volume).orphans, 0U);
        mount_path(volume);
        compare_node(root, &nodes[0], &nodes[0]);
    }
}
