/* What files hold and say of themselves: block counts, the largest size, what a crash leaves of a size
 * that grows while its file is being written back; who may attach a file, and when; who is told of errors. */
#include <criterion/criterion.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "cache/memfd.h"
#include "cache/page_cache.h"
#include "fs/data.h"
#include "fs/dir.h"
#include "fs/names.h"
#include "store/check.h"
#include "store/dev_fault.h"

static char home[64], volume[80], copy[80];
static struct fs *fs;
static struct inode *root;
static const struct cred cred = { .uid = 1000, .gid = 100 };
static enum writeback_error on_error;

static void mount_path(const char *path)
{
    struct store_error error = { .text = "" };
    struct fs_options options = { .cache = { .cache_bytes = 4 << 20, .on_error = on_error },
                                  .inject = true };
    cr_assert_eq(fs_mount(path, &options, &fs, &error), 0, "%s", error.text);
    cr_assert_eq(inode_get(fs, ROOT_INO, &root), 0);
}

static void unmount(void)
{
    inode_put(root, 1);
    cr_assert_eq(fs_unmount(fs), 0);
}

static void set_up(void)
{
    struct store_format f = { .capacity = 0 };
    struct store_error error = { .text = "" };
    strcpy(home, "/tmp/folio-durable.XXXXXX");
    cr_assert_not_null(mkdtemp(home));
    snprintf(volume, sizeof volume, "%s/volume", home);
    snprintf(copy, sizeof copy, "%s/copy", home);
    cr_assert_eq(store_format(volume, &f, &error), 0, "%s", error.text);
    mount_path(volume);
}

static void report(void *ctx, enum check_kind kind, bool fixable, const char *line)
{
    (void)ctx, (void)kind, (void)fixable;
    fprintf(stderr, "check: %s\n", line);
}

static void check_and_remove(void)
{
    struct check *c;
    int fd = open(volume, O_RDONLY);
    cr_assert_eq(check_volume(fd, report, NULL, &c), 0);
    cr_expect_eq(check_summary(c)->found, 0);
    check_free(c);
    close(fd);
    unlink(volume);
    unlink(copy);
    cr_assert_eq(rmdir(home), 0);
}

static void tear_down(void)
{
    unmount();
    check_and_remove();
}

static struct open_file *make(const char *name)
{
    struct inode *inode;
    struct open_file *file;
    cr_assert_eq(dir_mknod(root, name, S_IFREG | 0644, 0, &cred, &inode), 0);
    cr_assert_eq(file_open(inode, O_RDWR, &file), 0);
    inode_put(inode, 1);
    return file;
}

static void write_at(struct open_file *file, uint64_t offset, size_t len, int byte)
{
    static char buf[65536];
    memset(buf, byte, len);
    cr_assert_eq(file_write(file, offset, buf, len, 0), (ssize_t)len);
}

static int byte_at(struct open_file *file, uint64_t offset)
{
    unsigned char c;
    ssize_t n = file_read(file, offset, &c, 1);
    return n == 1 ? c : -1;
}

static uint64_t blocks_of(struct open_file *file)
{
    uint64_t blocks;
    cr_assert_eq(store_count_blocks(fs->store, file->inode->data_id, &blocks), 0);
    return blocks;
}

/* ---- a crash ---------------------------------------------------------------------------------- */

static struct fs *live;
static struct inode *live_root;

static void copy_volume(void)
{
    char command[256];
    snprintf(command, sizeof command, "cp --sparse=always %s %s", volume, copy);
    cr_assert_eq(system(command), 0);
}

/* The file in the copy, which is mounted until leave_copy(). */
static struct open_file *open_in_copy(void)
{
    struct inode *inode;
    struct open_file *file;
    live = fs;
    live_root = root;
    mount_path(copy);
    cr_assert_eq(dir_lookup(root, "f", &inode), 0);
    cr_assert_eq(file_open(inode, O_RDWR, &file), 0);
    inode_put(inode, 1);
    return file;
}

static void leave_copy(struct open_file *file)
{
    file_release(file);
    unmount();
    fs = live;
    root = live_root;
}

/* ---- blocks and sizes ------------------------------------------------------------------------- */

Test(fs_durable, a_block_that_began_as_a_hole_is_counted_once, .timeout = 60)
{
    set_up();
    struct open_file *file = make("f");
    cr_assert_eq(inode_truncate(file->inode, 1 << 20), 0);
    write_at(file, 40 * PAGE_SIZE + 5, 10, 'a'); /* reads the hole first */
    cr_assert_eq(file_fsync(file), 0);
    cr_expect_eq(blocks_of(file), 1);
    page_cache_drop(fs->cache);
    write_at(file, 40 * PAGE_SIZE, PAGE_SIZE, 'b'); /* covers the page: no read */
    cr_assert_eq(file_fsync(file), 0);
    cr_expect_eq(blocks_of(file), 1, "%u blocks counted", (unsigned)blocks_of(file));
    file_release(file);
    tear_down();
}

Test(fs_durable, truncating_to_the_largest_size_twice_keeps_the_data, .timeout = 60)
{
    set_up();
    struct open_file *file = make("f");
    cr_assert_eq(inode_truncate(file->inode, MAX_FILE_SIZE), 0);
    write_at(file, 0, 100, 'x');
    cr_assert_eq(inode_truncate(file->inode, MAX_FILE_SIZE), 0);
    cr_expect_eq(byte_at(file, 50), 'x');
    file_release(file);
    tear_down();
}

/* ---- a file that grows between the beginning of a pass and its choice of pages --------------- */

static struct open_file *growing;
static struct address_space_operations ops;
static bool done;

static void extend(void)
{
    write_at(growing, 0, 3 * PAGE_SIZE, 'n');
}

static void truncate_and_extend(void)
{
    cr_assert_eq(inode_truncate(growing->inode, 0), 0);
    extend();
}

static void (*meanwhile)(void);

static int begin_then_grow(struct address_space *m, struct writeback_pass *pass)
{
    int err = inode_a_ops.writeback_begin(m, pass);
    if (!done)
        meanwhile();
    return err;
}

/* The blocks are in the running transaction, the size is not: commit, and crash. */
static int crash_then_end(struct address_space *m, struct writeback_pass *pass, int error)
{
    if (!done) {
        cr_assert_eq(store_commit(fs->store, store_tid(fs->store)), 0);
        copy_volume();
    }
    done = true;
    return inode_a_ops.writeback_end(m, pass, error);
}

static void check_growth(void (*what)(void))
{
    set_up();
    growing = make("f");
    write_at(growing, 0, 100, 'o');
    cr_assert_eq(file_fsync(growing), 0);
    ops = inode_a_ops;
    ops.writeback_begin = begin_then_grow;
    ops.writeback_end = crash_then_end;
    growing->inode->mapping.a_ops = &ops;
    write_at(growing, 10, 10, 'o'); /* something to write */
    done = false;
    meanwhile = what;
    cr_assert_eq(filemap_fdatawrite(&growing->inode->mapping, WB_SYNC_ALL), 0);
    growing->inode->mapping.a_ops = &inode_a_ops;
    file_release(growing);
    struct open_file *file = open_in_copy();
    uint64_t size = atomic_load(&file->inode->mapping.i_size);
    cr_assert_leq(size, 100);
    cr_assert_eq(inode_truncate(file->inode, 4 * PAGE_SIZE), 0);
    cr_expect_eq(byte_at(file, 200), 0, "a byte beyond the end came back: %d", byte_at(file, 200));
    cr_expect_eq(byte_at(file, 2 * PAGE_SIZE), 0, "a block beyond the end came back");
    leave_copy(file);
    tear_down();
}

Test(fs_durable, what_a_file_grows_by_during_a_pass_does_not_come_back_after_a_crash, .timeout = 60)
{
    check_growth(extend);
}

Test(fs_durable, nor_what_is_written_after_a_truncation_during_a_pass, .timeout = 60)
{
    check_growth(truncate_and_extend);
}

/* ---- an fsync beside a pass ------------------------------------------------------------------- */

#define SYNC_WAIT_MS 300

static pthread_t syncer;
static _Atomic bool synced;
static bool too_early;

static void *sync_and_crash(void *file)
{
    cr_expect_eq(file_fsync(file), 0);
    atomic_store(&synced, true);
    copy_volume();
    return NULL;
}

/* The blocks come into another transaction than the record. */
static int begin_then_commit(struct address_space *m, struct writeback_pass *pass)
{
    int err = inode_a_ops.writeback_begin(m, pass);
    cr_assert_eq(store_commit(fs->store, store_tid(fs->store)), 0);
    return err;
}

/* The blocks are in the running transaction, their pages gone: the fsync has to wait for what is to come. */
static int sync_then_end(struct address_space *m, struct writeback_pass *pass, int error)
{
    if (!done) {
        done = true;
        page_cache_drop(fs->cache);
        cr_assert_eq(atomic_load(&m->nrpages), 0);
        cr_assert_eq(pthread_create(&syncer, NULL, sync_and_crash, growing), 0);
        for (int i = 0; i < SYNC_WAIT_MS && !atomic_load(&synced); i++)
            usleep(1000);
        too_early = atomic_load(&synced);
        if (too_early)
            pthread_join(syncer, NULL); /* the crash is now */
    }
    return inode_a_ops.writeback_end(m, pass, error);
}

Test(fs_durable, an_fsync_waits_for_the_pass_that_has_its_blocks, .timeout = 60)
{
    struct stat st;
    set_up();
    growing = make("f");
    write_at(growing, 0, PAGE_SIZE, 'o');
    cr_assert_eq(file_fsync(growing), 0);
    cr_assert_eq(inode_getattr(growing->inode, &st), 0);
    ops = inode_a_ops;
    ops.writeback_begin = begin_then_commit;
    ops.writeback_end = sync_then_end;
    growing->inode->mapping.a_ops = &ops;
    write_at(growing, 0, PAGE_SIZE, 'n');
    cr_assert_eq(inode_setattr(growing->inode, &st, SETATTR_MTIME), 0); /* as the record has it */
    done = false;
    synced = false;
    cr_assert_eq(filemap_fdatawrite(&growing->inode->mapping, WB_SYNC_ALL), 0);
    if (!too_early)
        pthread_join(syncer, NULL);
    growing->inode->mapping.a_ops = &inode_a_ops;
    file_release(growing);
    struct open_file *file = open_in_copy();
    cr_expect_eq(byte_at(file, 0), 'n', "lost after an fsync");
    leave_copy(file);
    tear_down();
}

/* ---- a file that is ahead of its record, with nothing dirty ----------------------------------- */

static void shrink_and_grow(struct open_file *file)
{
    cr_assert_eq(inode_truncate(file->inode, 5001), 0); /* cuts a hole */
    cr_assert_eq(inode_truncate(file->inode, 1 << 20), 0);
}

static void resize_and_set_times(struct open_file *file)
{
    struct stat attr = { .st_mtim = { .tv_sec = 77 } };
    shrink_and_grow(file);
    cr_assert_eq(inode_setattr(file->inode, &attr, SETATTR_MTIME), 0);
}

static void cut_at_a_page(struct open_file *file)
{
    write_at(file, 0, 3 * PAGE_SIZE, 'a');
    cr_assert_eq(file_fsync(file), 0);
    cr_assert_eq(inode_truncate(file->inode, PAGE_SIZE), 0);
}

static void write_and_cut_it_off(struct open_file *file)
{
    write_at(file, 100000 + PAGE_SIZE, PAGE_SIZE, 'a');
    cr_assert_eq(inode_truncate(file->inode, 100000), 0);
}

/* The file stays open and is not synced: size and mtime are the next commit's all the same. */
static void check_ahead(void (*change)(struct open_file *file))
{
    struct stat want, st;
    set_up();
    struct open_file *file = make("f");
    cr_assert_eq(inode_truncate(file->inode, 100000), 0);
    cr_assert_eq(file_fsync(file), 0);
    change(file);
    cr_assert_eq(atomic_load(&file->inode->mapping.nrdirty), 0);
    cr_assert_eq(inode_getattr(file->inode, &want), 0);
    cr_assert_eq(store_commit(fs->store, store_tid(fs->store)), 0);
    copy_volume();
    struct open_file *after = open_in_copy();
    cr_assert_eq(inode_getattr(after->inode, &st), 0);
    cr_expect_eq(st.st_size, want.st_size, "%ld bytes, not %ld", st.st_size, want.st_size);
    cr_expect_eq(st.st_mtim.tv_sec, want.st_mtim.tv_sec);
    cr_expect_eq(st.st_mtim.tv_nsec, want.st_mtim.tv_nsec);
    leave_copy(after);
    file_release(file);
    tear_down();
}

Test(fs_durable, a_size_follows_where_only_a_hole_was_cut, .timeout = 60)
{
    check_ahead(shrink_and_grow);
}

Test(fs_durable, so_does_a_time_that_was_set_then, .timeout = 60)
{
    check_ahead(resize_and_set_times);
}

Test(fs_durable, a_truncation_that_leaves_nothing_dirty_has_its_time_recorded, .timeout = 60)
{
    check_ahead(cut_at_a_page);
}

Test(fs_durable, nor_is_it_lost_where_what_was_dirty_is_cut_off, .timeout = 60)
{
    check_ahead(write_and_cut_it_off);
}

/* ---- attaching ------------------------------------------------------------------------------- */

static struct {
    unsigned begun, ended;
} forgetting;

/* While the kernel forgets the file's data for the first one, another attaches it. */
static int forget(void *arg, uint64_t ino)
{
    struct inode *inode = arg;
    cr_expect_eq(ino, inode->ino);
    if (++forgetting.begun == 1) {
        cr_expect_eq(inode_share_pages(inode), 0);
        cr_expect_geq(forgetting.ended, 1u, "attached beside what the kernel has cached");
    }
    forgetting.ended++;
    return 0;
}

Test(fs_durable, nobody_attaches_before_the_kernel_has_forgotten, .init = set_up, .fini = tear_down,
     .timeout = 60)
{
    struct open_file *file = make("f");
    struct inode *inode = file->inode;
    forgetting.begun = forgetting.ended = 0;
    fs->options.forget_front = forget;
    fs->options.front = inode;
    cr_expect_eq(inode_share_pages(inode), 0);
    unsigned asked = forgetting.begun;
    cr_expect_eq(inode_share_pages(inode), 0);
    cr_expect_eq(forgetting.begun, asked, "once is enough");
    file_release(file);
}

/* What is dirty of a deleted file is not written, nor does it keep the file. */
Test(fs_durable, a_deleted_file_that_was_attached_goes_at_once, .init = set_up, .fini = tear_down)
{
    struct open_file *file = make("f");
    struct cache_stats stats;
    cr_assert_eq(file_write(file, 0, "x", 1, 0), 1);
    cr_assert_eq(inode_share_pages(file->inode), 0);
    mapping_unuse_memfd(&file->inode->mapping);
    cr_assert_eq(dir_unlink(root, "f"), 0);
    page_cache_stats(fs->cache, &stats);
    cr_assert_eq(stats.dirty, 1);
    file_release(file);
    page_cache_stats(fs->cache, &stats);
    cr_expect_eq(stats.dirty, 0);
}

/* ---- what is handed over ---------------------------------------------------------------------- */

static bool loses;

/* Who is in front hands over what it holds, and that cannot be written. */
static int hand_over(void *arg, uint64_t ino)
{
    (void)arg;
    (void)ino;
    if (loses)
        fs_count(fs, FS_LOST_WRITES);
    return 0;
}

Test(fs_durable, a_sync_says_so_when_what_is_handed_over_is_lost, .init = set_up, .fini = tear_down,
     .timeout = 60)
{
    struct open_file *file = make("f");
    fs->options.flush_front = hand_over;
    loses = true;
    cr_expect_eq(fs_sync(fs), -EIO);
    loses = false;
    cr_expect_eq(fs_sync(fs), 0, "lost before this one began");
    file_release(file);
    loses = true;
    cr_expect_eq(fs_sync(fs), 0, "nobody can have stored anything");
}

/* ---- errors of writing ------------------------------------------------------------------------ */

static void fail_writes(enum fault_kind kind, uint32_t index, uint64_t count)
{
    struct fault_rule r = {
        .kind = kind, .writes = true, .first = index, .last = index, .count = count
    };
    cr_assert_eq(dev_fault_add(store_faults(fs->store), &r), 0);
}

static void set_up_lossy(void)
{
    on_error = WB_ERROR_CLEAN;
    set_up();
}

/* As the flusher does. */
static void write_in_background(struct open_file *file)
{
    (void)filemap_fdatawrite(&file->inode->mapping, WB_SYNC_NONE);
}

Test(fs_durable, what_nobody_was_told_is_lost_is_told_to_who_opens_the_file, .init = set_up_lossy,
     .fini = tear_down, .timeout = 60)
{
    struct open_file *file = make("f"), *next;
    struct inode *inode = file->inode;
    inode_ref(inode, 1);
    write_at(file, 0, PAGE_SIZE, 'a');
    file_release(file);
    fail_writes(FAULT_EIO, 0, 1);
    (void)filemap_fdatawrite(&inode->mapping, WB_SYNC_NONE);
    cr_assert_eq(file_open(inode, O_RDONLY, &file), 0);
    cr_expect_eq(file_fsync(file), -EIO);
    cr_expect_eq(file_fsync(file), 0);
    cr_assert_eq(file_open(inode, O_RDONLY, &next), 0);
    cr_expect_eq(file_fsync(next), 0, "somebody was told");
    file_release(next);
    file_release(file);
    inode_put(inode, 1);
}

Test(fs_durable, an_fsync_that_is_short_of_memory_hides_no_loss, .init = set_up_lossy,
     .fini = tear_down, .timeout = 60)
{
    struct open_file *file = make("f");
    write_at(file, 0, PAGE_SIZE, 'a');
    fail_writes(FAULT_EIO, 0, 1);
    write_in_background(file);
    write_at(file, PAGE_SIZE, PAGE_SIZE, 'b');
    fail_writes(FAULT_ENOMEM, 1, 1);
    cr_expect_eq(file_fsync(file), -EIO);
    cr_expect_eq(file_fsync(file), 0);
    file_release(file);
}

Test(fs_durable, an_unmount_that_is_short_of_memory_hides_no_loss, .init = set_up_lossy,
     .timeout = 60)
{
    struct open_file *lost = make("lost"), *kept = make("f");
    write_at(lost, 0, PAGE_SIZE, 'a');
    write_at(kept, PAGE_SIZE, PAGE_SIZE, 'b');
    fail_writes(FAULT_EIO, 0, 1);
    fail_writes(FAULT_ENOMEM, 1, 1);
    file_release(lost);
    file_release(kept);
    inode_put(root, 1);
    cr_expect_eq(fs_unmount(fs), -EIO);
    mount_path(volume);
    struct inode *inode;
    cr_assert_eq(dir_lookup(root, "f", &inode), 0);
    cr_assert_eq(file_open(inode, O_RDONLY, &kept), 0);
    inode_put(inode, 1);
    cr_expect_eq(byte_at(kept, PAGE_SIZE), 'b', "not tried again");
    file_release(kept);
    unmount();
    check_and_remove();
}

Test(fs_durable, what_is_written_beside_a_page_that_is_lost_survives_a_crash, .init = set_up_lossy,
     .fini = tear_down, .timeout = 60)
{
    struct open_file *file = make("f");
    cr_assert_eq(file_fsync(file), 0); /* the name */
    write_at(file, 0, 3 * PAGE_SIZE, 'a');
    fail_writes(FAULT_EIO, 0, 1);
    write_in_background(file);
    cr_assert_eq(atomic_load(&file->inode->mapping.nrdirty), 0);
    usleep(200000); /* it is not tried again at once */
    wakeup_flusher(fs->cache);
    flusher_step(fs->cache);
    cr_assert_eq(store_commit(fs->store, store_tid(fs->store)), 0);
    copy_volume();
    struct open_file *after = open_in_copy();
    cr_expect_eq(atomic_load(&after->inode->mapping.i_size), 3 * PAGE_SIZE);
    cr_expect_eq(byte_at(after, 0), 0);
    cr_expect_eq(byte_at(after, 2 * PAGE_SIZE), 'a');
    leave_copy(after);
    file_release(file);
}
