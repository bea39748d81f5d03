/* In one process, without a mount: a volume is opened, a file of it is mapped in software, loaded from and stored to
 * beside read and write; every fault is counted once; what was stored is in the volume when it is opened again. */
#include <criterion/criterion.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "cache/page_cache.h"
#include "cache/readahead.h"
#include "cache/vma_soft.h"
#include "fs/data.h"
#include "fs/dir.h"
#include "fs/names.h"

#define PAGES  40u
#define STORED 7u /* of them */

static char home[64], volume[80];
static struct fs *fs;
static struct inode *root;
static const struct cred cred = { .uid = 1000, .gid = 100 };

static void mount_volume(void)
{
    struct store_error error = { .text = "" };
    /* Nothing is mapped or read beside what is touched, so that all can be counted. */
    struct fs_options options = { .cache = { .cache_bytes = 4 << 20, .fault_around = 1 },
                                  .readahead = { .policy = &ra_none } };
    cr_assert_eq(fs_mount(volume, &options, &fs, &error), 0, "%s", error.text);
    cr_assert_eq(inode_get(fs, ROOT_INO, &root), 0);
}

static void unmount(void)
{
    inode_put(root, 1);
    cr_assert_eq(fs_unmount(fs), 0);
}

static struct open_file *open_file(const char *name, bool make)
{
    struct inode *inode;
    struct open_file *file;
    if (make)
        cr_assert_eq(dir_mknod(root, name, S_IFREG | 0644, 0, &cred, &inode), 0);
    else
        cr_assert_eq(dir_lookup(root, name, &inode), 0);
    cr_assert_eq(file_open(inode, O_RDWR, &file), 0);
    inode_put(inode, 1);
    return file;
}

struct counts {
    uint64_t minor, major, mkwrite;
};

static struct counts counts(void)
{
    const struct fault_counters *c = &fs->cache->count.faults[FAULT_SOFT];
    return (struct counts){ atomic_load(&c->minor), atomic_load(&c->major),
                            atomic_load(&c->mkwrite) };
}

static void expect(const char *what, struct counts before, uint64_t minor, uint64_t major,
                   uint64_t mkwrite)
{
    struct counts now = counts();
    cr_expect_eq(now.minor - before.minor, minor, "%s: %lu minor faults", what,
                 (unsigned long)(now.minor - before.minor));
    cr_expect_eq(now.major - before.major, major, "%s: %lu major faults", what,
                 (unsigned long)(now.major - before.major));
    cr_expect_eq(now.mkwrite - before.mkwrite, mkwrite, "%s: %lu mkwrites", what,
                 (unsigned long)(now.mkwrite - before.mkwrite));
}

static void load_all(struct vm_area *vma, uint32_t stored, uint8_t with)
{
    for (uint32_t i = 0; i < PAGES; i++) {
        uint8_t byte;
        cr_assert_eq(vma_load(vma, i * PAGE_SIZE + 9, &byte, 1), 0);
        cr_assert_eq(byte, i < stored ? with : (uint8_t)(i + 1), "page %u", i);
    }
}

static void store_some(struct vm_area *vma, uint8_t byte)
{
    for (uint32_t i = 0; i < STORED; i++)
        cr_assert_eq(vma_store(vma, i * PAGE_SIZE + 9, &byte, 1), 0);
}

static void write_file(struct open_file *file)
{
    static uint8_t page[PAGE_SIZE];
    for (uint32_t i = 0; i < PAGES; i++) {
        memset(page, (int)i + 1, sizeof page);
        cr_assert_eq(file_write(file, (uint64_t)i * PAGE_SIZE, page, PAGE_SIZE, 0), PAGE_SIZE);
    }
    cr_assert_eq(file_fsync(file), 0);
}

static void make_volume(void)
{
    struct store_format f = { .capacity = 0 };
    struct store_error error = { .text = "" };
    strcpy(home, "/tmp/folio-mapped.XXXXXX");
    cr_assert_not_null(mkdtemp(home));
    snprintf(volume, sizeof volume, "%s/volume", home);
    cr_assert_eq(store_format(volume, &f, &error), 0, "%s", error.text);
    mount_volume();
}

static void remove_volume(void)
{
    unmount();
    unlink(volume);
    cr_assert_eq(rmdir(home), 0);
}

TestSuite(fs_mapped, .init = make_volume, .fini = remove_volume, .timeout = 60);

Test(fs_mapped, a_file_of_a_volume)
{
    struct vm_area *vma;
    uint8_t byte;
    struct open_file *file = open_file("f", true);
    write_file(file);
    page_cache_drop(fs->cache);
    cr_assert_eq(vma_soft_create(&file->inode->mapping, 0, PAGES, &file->ra, &vma), 0);

    struct counts c = counts();
    load_all(vma, 0, 0);
    expect("loads of what is not cached", c, 0, PAGES, 0);
    c = counts();
    load_all(vma, 0, 0);
    expect("loads of what is mapped", c, 0, 0, 0);
    store_some(vma, 's');
    expect("stores to clean pages", c, STORED, 0, STORED);
    store_some(vma, 't');
    expect("and once more", c, STORED, 0, STORED);
    cr_assert_eq(file_read(file, 9, &byte, 1), 1);
    cr_expect_eq(byte, 't');
    cr_assert_eq(file_fsync(file), 0);
    c = counts();
    load_all(vma, STORED, 't');
    expect("loads after a writeback", c, 0, 0, 0);
    store_some(vma, 'u');
    expect("stores after a writeback", c, STORED, 0, STORED);
    byte = 'w';
    cr_assert_eq(file_write(file, 9, &byte, 1, 0), 1);
    cr_assert_eq(vma_load(vma, 9, &byte, 1), 0);
    cr_expect_eq(byte, 'w');
    cr_assert_eq(file_fsync(file), 0);
    page_cache_drop(fs->cache);
    c = counts();
    store_some(vma, 'v');
    expect("stores after an eviction", c, 0, STORED, STORED);
    cr_expect_eq(vma_load(vma, PAGES * PAGE_SIZE - 1, &byte, 1), 0);
    cr_assert_eq(inode_truncate(file->inode, PAGE_SIZE), 0);
    cr_expect_eq(vma_load(vma, PAGE_SIZE + 9, &byte, 1), -EFAULT, "behind the end");
    vma_soft_destroy(vma);
    file_release(file);
    unmount();

    mount_volume();
    file = open_file("f", false);
    cr_assert_eq(file_read(file, 9, &byte, 1), 1);
    cr_expect_eq(byte, 'v', "what was stored is in the volume");
    cr_expect_eq(file_read(file, PAGE_SIZE, &byte, 1), 0);
    file_release(file);
}

Test(fs_mapped, a_mapping_outlives_the_open_file)
{
    struct vm_area *vma;
    uint8_t byte = 0;
    struct open_file *file = open_file("f", true);
    write_file(file);
    cr_assert_eq(vma_soft_create(&file->inode->mapping, 0, PAGES, NULL, &vma), 0);
    file_release(file);
    inode_shrink(fs, 0); /* inodes that nobody uses go */
    cr_assert_eq(vma_load(vma, PAGE_SIZE, &byte, 1), 0);
    cr_expect_eq(byte, 2);
    cr_assert_eq(vma_store(vma, PAGE_SIZE, "s", 1), 0);
    vma_soft_destroy(vma);
    inode_shrink(fs, 0);
    file = open_file("f", false);
    cr_assert_eq(file_read(file, PAGE_SIZE, &byte, 1), 1);
    cr_expect_eq(byte, 's');
    file_release(file);
}

Test(fs_mapped, a_time_that_is_set_after_a_store_stays)
{
    struct vm_area *vma;
    struct stat st, set = { .st_mtim = { .tv_sec = 77 } };
    struct open_file *file = open_file("f", true);
    write_file(file);
    cr_assert_eq(vma_soft_create(&file->inode->mapping, 0, PAGES, NULL, &vma), 0);
    cr_assert_eq(vma_store(vma, 0, "s", 1), 0);
    cr_assert_eq(inode_setattr(file->inode, &set, SETATTR_MTIME), 0);
    cr_assert_eq(file_fsync(file), 0);
    cr_assert_eq(inode_getattr(file->inode, &st), 0);
    cr_expect_eq(st.st_mtim.tv_sec, 77);
    cr_expect_eq(file->inode->disk_mtime.tv_sec, 77);
    cr_assert_eq(vma_store(vma, 0, "t", 1), 0);
    cr_assert_eq(inode_getattr(file->inode, &st), 0);
    cr_expect_gt(st.st_mtim.tv_sec, 77);
    vma_soft_destroy(vma);
    file_release(file);
}
