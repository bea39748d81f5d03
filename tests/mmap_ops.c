/* mmap_ops: what a program may expect of files that it maps.
 *
 *     mmap_ops all DIRECTORY             one line per property: ok or FAIL and why; 1 when any failed
 *     mmap_ops big DIRECTORY MIB         many pages stored to by several processes, and read again
 *     mmap_ops readonly FILE             on a file of a read-only mount
 *
 * DIRECTORY is empty, and stays that way. Nothing here knows which file system it is on: it passes on
 * ext4 as well.
 */
#define _GNU_SOURCE
#include <linux/falloc.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <sys/sendfile.h>
#include <sys/wait.h>

#include "tests/mmap_util.h"

/* ---- one view of a file ------------------------------------------------------------------------ */

static void stores_are_read(void)
{
    int fd = make("f", 'f', 3 * PAGE), other = open("f", O_RDONLY);
    char *p = map(fd, 3);
    p[10] = 'a';
    p[2 * PAGE] = 'b';
    EXPECT(byte_at(fd, 10) == 'a' && byte_at(other, 10) == 'a');
    EXPECT(byte_at(other, 2 * PAGE) == 'b' && byte_at(other, PAGE) == 'f');
    forget(fd);
    EXPECT(byte_at(other, 10) == 'a' && byte_at(other, 11) == 'f');
    close(other);
    done("f", fd, p, 3);
}

static void writes_are_loaded(void)
{
    int fd = make("f", 'f', 2 * PAGE);
    char *p = map(fd, 2);
    EXPECT(p[5] == 'f');
    EXPECT(pwrite(fd, "x", 1, 5) == 1 && p[5] == 'x');
    p[6] = 'y';
    EXPECT(pwrite(fd, "zz", 2, PAGE - 1) == 2 && p[PAGE - 1] == 'z' && p[PAGE] == 'z');
    EXPECT(p[6] == 'y');
    done("f", fd, p, 2);
}

static void mappings_share(void)
{
    int fd = make("f", 'f', PAGE), other = open("f", O_RDWR);
    char *p = map(fd, 1), *q = map(other, 1);
    p[1] = 'p';
    q[2] = 'q';
    EXPECT(q[1] == 'p' && p[2] == 'q');
    munmap(q, PAGE);
    close(other);
    done("f", fd, p, 1);
}

static void private_stores_stay_private(void)
{
    int fd = make("f", 'f', 2 * PAGE);
    char *p = map(fd, 2), *q = mmap(NULL, 2 * PAGE, RW, MAP_PRIVATE, fd, 0);
    q[0] = 'q';
    EXPECT(p[0] == 'f' && byte_at(fd, 0) == 'f');
    p[0] = 'p';
    p[PAGE] = 'p';
    EXPECT(q[0] == 'q'); /* copied: no longer the file's */
    EXPECT(byte_at(fd, 0) == 'p' && byte_at(fd, PAGE) == 'p');
    EXPECT(msync(q, 2 * PAGE, MS_SYNC) == 0 && byte_at(fd, 0) == 'p');
    munmap(q, 2 * PAGE);
    done("f", fd, p, 2);
}

static void private_of_readonly_file(void)
{
    close(make("f", 'f', PAGE));
    int fd = open("f", O_RDONLY);
    char *q = mmap(NULL, PAGE, RW, MAP_PRIVATE, fd, 0);
    EXPECT(q != MAP_FAILED && store(q, 'q') == 0 && q[0] == 'q' && byte_at(fd, 0) == 'f');
    EXPECT(mmap(NULL, PAGE, RW, MAP_SHARED, fd, 0) == MAP_FAILED && errno == EACCES);
    done("f", fd, q, 1);
    fd = open("f", O_WRONLY | O_CREAT, 0644);
    EXPECT(mmap(NULL, PAGE, PROT_WRITE, MAP_SHARED, fd, 0) == MAP_FAILED && errno == EACCES);
    close(fd);
    unlink("f");
}

static void evicted_pages_keep_stores(void)
{
    int fd = make("f", 'f', 16 * PAGE);
    char *p = map(fd, 16);
    for (int round = 0; round < 20; round++) {
        for (int i = 0; i < 16; i++)
            p[i * PAGE + round] = (char)(i + round);
        madvise(p, 16 * PAGE, MADV_DONTNEED);
        if (round % 3 == 0)
            forget(fd);
        for (int i = 0; i < 16; i++)
            EXPECT(p[i * PAGE + round] == (char)(i + round));
    }
    done("f", fd, p, 16);
}

/* ---- the end of file --------------------------------------------------------------------------- */

static void beyond_the_end_is_sigbus(void)
{
    int fd = make("f", 'f', PAGE + 10);
    char *p = map(fd, 4);
    EXPECT(load(p + 2 * PAGE) == -SIGBUS && load(p + 3 * PAGE) == -SIGBUS);
    EXPECT(store(p + 2 * PAGE, 'x') == SIGBUS);
    EXPECT(load(p + PAGE + 9) == 'f' && load(p + PAGE + 10) == 0 && load(p + 2 * PAGE - 1) == 0);
    EXPECT(size_of(fd) == PAGE + 10);
    done("f", fd, p, 4);
}

/* A file of 100 bytes with 's' stored in the rest of its page. */
static char *stored_behind(int *fd)
{
    *fd = make("f", 'f', 100);
    char *p = map(*fd, 4);
    EXPECT(load(p + 100) == 0);
    memset(p + 100, 's', PAGE - 100);
    return p;
}

static void tail_stores_do_not_reach_the_file(void)
{
    int fd;
    char *p = stored_behind(&fd);
    EXPECT(msync(p, PAGE, MS_SYNC) == 0);
    EXPECT(size_of(fd) == 100 && byte_at(fd, 100) == -1 && byte_at(fd, 99) == 'f');
    munmap(p, 4 * PAGE);
    forget(fd);
    p = map(fd, 4);
    EXPECT(load(p + 100) == 0 && load(p + PAGE - 1) == 0 && load(p) == 'f');
    done("f", fd, p, 4);
}

static void tail_is_zeros(int fd, char *p, off_t to)
{
    EXPECT(load(p + 99) == 'f' && load(p + 100) == 0);
    EXPECT(all(fd, 0, 100, 'f') && all(fd, 100, to, 0));
    forget(fd);
    EXPECT(all(fd, 0, 100, 'f') && all(fd, 100, to, 0));
}

static void tail_is_zeros_after_ftruncate(void)
{
    int fd;
    char *p = stored_behind(&fd);
    EXPECT(ftruncate(fd, 2 * PAGE) == 0);
    tail_is_zeros(fd, p, 2 * PAGE);
    done("f", fd, p, 4);
}

static void tail_is_zeros_after_a_write_in_the_page(void)
{
    int fd;
    char *p = stored_behind(&fd);
    EXPECT(pwrite(fd, "w", 1, 3000) == 1);
    tail_is_zeros(fd, p, 3000);
    EXPECT(byte_at(fd, 3000) == 'w' && size_of(fd) == 3001);
    done("f", fd, p, 4);
}

static void tail_is_zeros_after_a_write_behind_it(void)
{
    int fd;
    char *p = stored_behind(&fd);
    EXPECT(pwrite(fd, "w", 1, 2 * PAGE + 5) == 1);
    tail_is_zeros(fd, p, 2 * PAGE + 5);
    EXPECT(byte_at(fd, 2 * PAGE + 5) == 'w');
    done("f", fd, p, 4);
}

static void tail_is_zeros_after_fallocate(void)
{
    int fd;
    char *p = stored_behind(&fd);
    EXPECT(fallocate(fd, 0, 0, 2 * PAGE) == 0 && size_of(fd) == 2 * PAGE);
    tail_is_zeros(fd, p, 2 * PAGE);
    done("f", fd, p, 4);
}

static void tail_is_zeros_after_msync_and_growth(void)
{
    int fd;
    char *p = stored_behind(&fd);
    EXPECT(msync(p, PAGE, MS_SYNC) == 0 && ftruncate(fd, PAGE) == 0);
    tail_is_zeros(fd, p, PAGE);
    done("f", fd, p, 4);
}

static void growth_shows(void)
{
    int fd = make("f", 'f', PAGE);
    char *p = map(fd, 4);
    EXPECT(load(p + 2 * PAGE) == -SIGBUS);
    EXPECT(ftruncate(fd, 4 * PAGE) == 0);
    EXPECT(load(p + 2 * PAGE) == 0 && store(p + 3 * PAGE + 1, 'g') == 0);
    EXPECT(byte_at(fd, 3 * PAGE + 1) == 'g');
    done("f", fd, p, 4);
}

static void growth_by_append_shows(void)
{
    int fd = make("f", 'f', PAGE), more = open("f", O_WRONLY | O_APPEND);
    char *p = map(fd, 2);
    EXPECT(load(p + PAGE) == -SIGBUS);
    EXPECT(write(more, "abc", 3) == 3 && load(p + PAGE + 2) == 'c');
    EXPECT(store(p + PAGE, 'A') == 0 && write(more, "d", 1) == 1);
    EXPECT(load(p + PAGE + 3) == 'd' && byte_at(fd, PAGE) == 'A');
    close(more);
    done("f", fd, p, 2);
}

static void shrinking_shows(void)
{
    int fd = make("f", 'f', 3 * PAGE);
    char *p = map(fd, 3);
    p[PAGE + 100] = 's';
    p[2 * PAGE] = 's';
    EXPECT(ftruncate(fd, PAGE + 50) == 0);
    EXPECT(load(p + 2 * PAGE) == -SIGBUS && load(p + PAGE + 49) == 'f');
    EXPECT(load(p + PAGE + 100) == 0);
    EXPECT(ftruncate(fd, 3 * PAGE) == 0);
    EXPECT(load(p + PAGE + 49) == 'f' && load(p + PAGE + 50) == 0 && load(p + 2 * PAGE) == 0);
    EXPECT(all(fd, PAGE + 50, 3 * PAGE, 0));
    done("f", fd, p, 3);
}

static void truncating_open_shows(void)
{
    int fd = make("f", 'f', 2 * PAGE);
    char *p = map(fd, 2);
    p[0] = 's';
    close(open("f", O_WRONLY | O_TRUNC));
    EXPECT(load(p) == -SIGBUS && size_of(fd) == 0);
    EXPECT(ftruncate(fd, PAGE) == 0 && load(p) == 0);
    done("f", fd, p, 2);
}

/* ---- holes ------------------------------------------------------------------------------------- */

static void holes_read_zeros_and_take_stores(void)
{
    int fd = make("f", 'f', PAGE);
    EXPECT(ftruncate(fd, 16 * PAGE) == 0);
    char *p = map(fd, 16);
    EXPECT(load(p + 5 * PAGE) == 0 && load(p + 15 * PAGE + PAGE - 1) == 0);
    EXPECT(store(p + 9 * PAGE, 'h') == 0 && byte_at(fd, 9 * PAGE) == 'h');
    EXPECT(msync(p, 16 * PAGE, MS_SYNC) == 0);
    EXPECT(lseek(fd, PAGE, SEEK_DATA) == 9 * PAGE && byte_at(fd, 9 * PAGE + 1) == 0);
    done("f", fd, p, 16);
}

/* What a mapping dirtied is data, written back or not: who copies a file asks where there is some. */
static void seeking_sees_stores(void)
{
    int fd = make("f", 0, 0);
    EXPECT(ftruncate(fd, 16 * PAGE) == 0);
    char *p = map(fd, 16);
    EXPECT(store(p + 9 * PAGE, 'h') == 0);
    EXPECT(lseek(fd, 0, SEEK_DATA) == 9 * PAGE && lseek(fd, 9 * PAGE, SEEK_HOLE) == 10 * PAGE);
    done("f", fd, p, 16);
}

static void punched_holes_show(void)
{
    int fd = make("f", 'f', 4 * PAGE), how = FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE;
    char *p = map(fd, 4);
    memset(p, 's', 4 * PAGE);
    EXPECT(fallocate(fd, how, 100, 2 * PAGE) == 0);
    EXPECT(load(p + 99) == 's' && load(p + 100) == 0 && load(p + PAGE) == 0);
    EXPECT(load(p + 2 * PAGE + 99) == 0 && load(p + 2 * PAGE + 100) == 's');
    EXPECT(store(p + PAGE + 1, 'n') == 0 && byte_at(fd, PAGE + 1) == 'n');
    EXPECT(all(fd, 100, PAGE, 0) && byte_at(fd, PAGE) == 0 && byte_at(fd, 4 * PAGE - 1) == 's');
    done("f", fd, p, 4);
}

static void zeroed_ranges_show(void)
{
    int fd = make("f", 'f', 3 * PAGE);
    char *p = map(fd, 3);
    memset(p, 's', 3 * PAGE);
    EXPECT(fallocate(fd, FALLOC_FL_ZERO_RANGE, 10, 2 * PAGE) == 0);
    EXPECT(load(p + 9) == 's' && load(p + 10) == 0 && load(p + PAGE) == 0);
    EXPECT(load(p + 2 * PAGE + 9) == 0 && load(p + 2 * PAGE + 10) == 's');
    done("f", fd, p, 3);
}

/* While a hole is made, another process stores to bytes in front of it, in it and behind it, and unmaps,
 * which has a FUSE kernel write the pages back: with what was in the hole before, if it goes wrong. */
#define HOLE_ROUNDS 100
#define HOLE_AT     100
#define HOLE_END    (3 * PAGE - 100)

static void store_and_unmap(int fd, int round, _Atomic int *begun, _Atomic int *ended)
{
    while (atomic_load(begun) != round)
        sched_yield();
    for (volatile int spin = 0; spin < round * 2000; spin++)
        ;
    char *p = map(fd, 3);
    p[0] = p[PAGE] = p[3 * PAGE - 1] = 's';
    munmap(p, 3 * PAGE);
    atomic_store(ended, round);
}

static void hole_is_zeros(int fd)
{
    static const char zeros[PAGE];
    char buf[3 * PAGE];
    EXPECT(pread(fd, buf, sizeof buf, 0) == sizeof buf);
    EXPECT(memcmp(buf + HOLE_AT, zeros, PAGE - HOLE_AT) == 0);
    EXPECT(memcmp(buf + PAGE + 1, zeros, PAGE - 1) == 0);
    EXPECT(memcmp(buf + 2 * PAGE, zeros, HOLE_END - 2 * PAGE) == 0);
    EXPECT(buf[0] == 's' && buf[1] == 'f' && buf[HOLE_END] == 'f' && buf[3 * PAGE - 1] == 's');
}

static void make_a_hole(int fd, int round, _Atomic int *begun, _Atomic int *ended)
{
    static char f[3 * PAGE];
    memset(f, 'f', sizeof f);
    EXPECT(pwrite(fd, f, sizeof f, 0) == sizeof f);
    atomic_store(begun, round);
    int how = round % 2 == 0 ? FALLOC_FL_PUNCH_HOLE : FALLOC_FL_ZERO_RANGE;
    EXPECT(fallocate(fd, how | FALLOC_FL_KEEP_SIZE, HOLE_AT, HOLE_END - HOLE_AT) == 0);
    while (atomic_load(ended) != round)
        sched_yield();
    forget(fd);
    hole_is_zeros(fd);
}

static void holes_stay_beside_unmapping(void)
{
    int fd = make("f", 'f', 3 * PAGE);
    _Atomic int *shared = mmap(NULL, PAGE, RW, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (shared == MAP_FAILED)
        die("mmap");
    pid_t child = fork();
    if (child < 0)
        die("fork");
    for (int round = 1; round <= HOLE_ROUNDS; round++)
        if (child == 0)
            store_and_unmap(fd, round, &shared[0], &shared[1]);
        else
            make_a_hole(fd, round, &shared[0], &shared[1]);
    if (child == 0)
        _exit(0);
    EXPECT(waitpid(child, NULL, 0) == child);
    done("f", fd, (char *)shared, 1);
}

static void far_offsets(void)
{
    off_t at = (off_t)5 << 30;
    int fd = make("f", 'f', 1);
    EXPECT(ftruncate(fd, at + PAGE) == 0);
    char *p = mmap(NULL, PAGE, RW, MAP_SHARED, fd, at);
    EXPECT(p != MAP_FAILED && store(p + 7, 'x') == 0 && byte_at(fd, at + 7) == 'x');
    EXPECT(msync(p, PAGE, MS_SYNC) == 0);
    done("f", fd, p, 1);
}

/* ---- address spaces ---------------------------------------------------------------------------- */

static void mprotect_is_obeyed(void)
{
    int fd = make("f", 'f', PAGE);
    char *p = map(fd, 1);
    p[0] = 'a';
    EXPECT(mprotect(p, PAGE, PROT_READ) == 0 && store(p, 'b') == SIGSEGV && load(p) == 'a');
    EXPECT(mprotect(p, PAGE, PROT_NONE) == 0 && load(p) == -SIGSEGV);
    EXPECT(mprotect(p, PAGE, RW) == 0 && store(p, 'c') == 0 && byte_at(fd, 0) == 'c');
    int ro = open("f", O_RDONLY);
    char *q = mmap(NULL, PAGE, PROT_READ, MAP_SHARED, ro, 0);
    EXPECT(q != MAP_FAILED && mprotect(q, PAGE, RW) != 0 && errno == EACCES);
    munmap(q, PAGE);
    close(ro);
    done("f", fd, p, 1);
}

static void moved_mappings_go_on(void)
{
    int fd = make("f", 'f', 4 * PAGE);
    char *p = map(fd, 2);
    p[0] = 'a';
    char *room = mmap(NULL, 8 * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    char *q = mremap(p, 2 * PAGE, 4 * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, room);
    EXPECT(q == room && q[0] == 'a' && q[3 * PAGE] == 'f');
    EXPECT(store(q + 1, 'b') == 0 && store(q + 3 * PAGE, 'c') == 0);
    EXPECT(byte_at(fd, 1) == 'b' && byte_at(fd, 3 * PAGE) == 'c' && load(p) == -SIGSEGV);
    EXPECT(mremap(q, 4 * PAGE, PAGE, 0) == q && load(q + PAGE) == -SIGSEGV);
    munmap(q, 8 * PAGE);
    close(fd);
    unlink("f");
}

static void children_share(void)
{
    int fd = make("f", 'f', 2 * PAGE), status;
    char *p = map(fd, 2), *q = mmap(NULL, PAGE, RW, MAP_PRIVATE, fd, 0);
    p[0] = 'p';
    pid_t child = fork();
    if (child == 0) {
        bool good = p[0] == 'p' && store(p + 1, 'c') == 0 && store(p + PAGE, 'c') == 0 &&
                    store(q, 'x') == 0;
        _exit(good ? 0 : 1);
    }
    EXPECT(waitpid(child, &status, 0) == child && status == 0);
    EXPECT(p[1] == 'c' && p[PAGE] == 'c' && byte_at(fd, 1) == 'c' && q[0] == 'p');
    munmap(q, PAGE);
    done("f", fd, p, 2);
}

static void populated_mappings(void)
{
    int fd = make("f", 'f', 8 * PAGE);
    char *p = mmap(NULL, 8 * PAGE, RW, MAP_SHARED | MAP_POPULATE, fd, 0);
    EXPECT(p != MAP_FAILED && load(p + 7 * PAGE) == 'f' && store(p + 7 * PAGE, 's') == 0);
    EXPECT(byte_at(fd, 7 * PAGE) == 's');
    done("f", fd, p, 8);
}

/* ---- files that go away ------------------------------------------------------------------------ */

static void mapping_outlives_its_descriptor(void)
{
    int fd = make("f", 'f', 2 * PAGE);
    char *p = map(fd, 2);
    close(fd);
    EXPECT(store(p + 1, 'a') == 0 && load(p + PAGE) == 'f' && store(p + PAGE, 'b') == 0);
    EXPECT(msync(p, 2 * PAGE, MS_SYNC) == 0 && store(p + 2, 'c') == 0);
    munmap(p, 2 * PAGE);
    fd = open("f", O_RDONLY);
    EXPECT(byte_at(fd, 1) == 'a' && byte_at(fd, PAGE) == 'b' && byte_at(fd, 2) == 'c');
    close(fd);
    unlink("f");
}

static void mapping_outlives_its_name(void)
{
    int fd = make("f", 'f', 2 * PAGE);
    char *p = map(fd, 2);
    EXPECT(unlink("f") == 0 && access("f", F_OK) != 0);
    EXPECT(store(p + PAGE, 's') == 0 && byte_at(fd, PAGE) == 's' && load(p) == 'f');
    EXPECT(ftruncate(fd, PAGE) == 0 && load(p + PAGE) == -SIGBUS);
    close(fd);
    EXPECT(store(p, 't') == 0 && load(p) == 't');
    munmap(p, 2 * PAGE);
}

static void renamed_over_it_stays_itself(void)
{
    int fd = make("f", 'f', PAGE);
    char *p = map(fd, 1);
    close(make("g", 'g', PAGE));
    EXPECT(rename("g", "f") == 0);
    EXPECT(load(p) == 'f' && store(p, 's') == 0 && byte_at(fd, 0) == 's');
    int now = open("f", O_RDONLY);
    EXPECT(all(now, 0, 10, 'g'));
    close(now);
    done("f", fd, p, 1);
}

/* ---- system calls on mapped memory ------------------------------------------------------------- */

/* The page that is written is the one that the write's own data is in, or is not in memory yet. */
static void writing_from_its_own_mapping(void)
{
    int fd = make("f", 'f', 4 * PAGE);
    char *p = map(fd, 4);
    p[0] = 'a';
    EXPECT(pwrite(fd, p, 100, 50) == 100 && p[50] == 'a' && p[51] == 'f');
    EXPECT(pwrite(fd, p, PAGE, 0) == PAGE && p[0] == 'a');
    p[2 * PAGE] = 'b';
    forget(fd);
    EXPECT(pwrite(fd, p + 2 * PAGE, PAGE, 3 * PAGE) == PAGE && byte_at(fd, 3 * PAGE) == 'b');
    forget(fd);
    EXPECT(pwrite(fd, p + 2 * PAGE, PAGE, 2 * PAGE + 10) == PAGE);
    EXPECT(p[2 * PAGE] == 'b' && p[2 * PAGE + 10] == 'b' && p[2 * PAGE + 11] == 'f');
    EXPECT(pwrite(fd, p + 3 * PAGE, PAGE, 4 * PAGE) == PAGE && size_of(fd) == 5 * PAGE);
    done("f", fd, p, 4);
}

static void reading_into_its_own_mapping(void)
{
    int fd = make("f", 'f', 4 * PAGE);
    char *p = map(fd, 4);
    p[0] = 'a';
    EXPECT(pread(fd, p + PAGE, PAGE, 0) == PAGE && byte_at(fd, PAGE) == 'a');
    forget(fd);
    EXPECT(pread(fd, p + 2 * PAGE, PAGE, PAGE) == PAGE && byte_at(fd, 2 * PAGE) == 'a');
    forget(fd);
    EXPECT(pread(fd, p + 3 * PAGE, PAGE, 3 * PAGE) == PAGE && byte_at(fd, 3 * PAGE) == 'f');
    done("f", fd, p, 4);
}

static void direct_io_beside_a_mapping(void)
{
    close(make("f", 'f', 4 * PAGE));
    int fd = open("f", O_RDWR | O_DIRECT);
    char *buf = aligned_alloc(PAGE, PAGE);
    EXPECT(fd >= 0);
    char *p = map(fd, 4);
    p[0] = 's';
    EXPECT(pread(fd, buf, PAGE, 0) == PAGE && buf[0] == 's' && buf[1] == 'f');
    memset(buf, 'd', PAGE);
    p[PAGE] = 's';
    EXPECT(pwrite(fd, buf, PAGE, PAGE) == PAGE && load(p + PAGE) == 'd');
    EXPECT(store(p + PAGE + 1, 't') == 0 && pread(fd, buf, PAGE, PAGE) == PAGE && buf[1] == 't');
    EXPECT(pread(fd, p + 2 * PAGE, PAGE, PAGE) == PAGE && p[2 * PAGE + 1] == 't');
    EXPECT(pwrite(fd, p + 2 * PAGE, PAGE, 3 * PAGE) == PAGE && load(p + 3 * PAGE + 1) == 't');
    free(buf);
    done("f", fd, p, 4);
}

static void copies_see_stores(void)
{
    int fd = make("f", 'f', 2 * PAGE), to = make("g", 'g', 1);
    char *p = map(fd, 2), *q = map(to, 2);
    off_t from = 0, at = 0;
    p[PAGE] = 's';
    EXPECT(copy_file_range(fd, &from, to, &at, 2 * PAGE, 0) == 2 * PAGE);
    EXPECT(byte_at(to, PAGE) == 's' && load(q + PAGE) == 's' && load(q) == 'f');
    p[0] = 't';
    from = 0;
    lseek(to, 0, SEEK_SET);
    EXPECT(sendfile(to, fd, &from, PAGE) == PAGE && load(q) == 't');
    munmap(q, 2 * PAGE);
    close(to);
    unlink("g");
    done("f", fd, p, 2);
}

/* ---- running programs -------------------------------------------------------------------------- */

static bool copy_program(const char *from, const char *to)
{
    char buf[PAGE];
    int in = open(from, O_RDONLY), out = open(to, O_WRONLY | O_CREAT | O_TRUNC, 0755);
    ssize_t n;
    while ((n = read(in, buf, sizeof buf)) > 0)
        if (write(out, buf, (size_t)n) != n)
            break;
    close(in);
    return close(out) == 0 && n == 0;
}

static void programs_run(void)
{
    int pipes[2], status;
    EXPECT(copy_program("/bin/cat", "run"));
    if (pipe2(pipes, O_CLOEXEC) != 0)
        die("pipe2");
    pid_t child = fork();
    if (child == 0) {
        dup2(pipes[0], 0);
        execl("./run", "run", (char *)NULL);
        _exit(126);
    }
    close(pipes[0]);
    /* It runs when its pipe end is the only one left: then its file is mapped. */
    char link[64], exe[300] = "";
    snprintf(link, sizeof link, "/proc/%d/exe", (int)child);
    for (int i = 0; i < 5000 && strstr(exe, "/run") == NULL; i++) {
        ssize_t n = readlink(link, exe, sizeof exe - 1);
        exe[n > 0 ? n : 0] = 0;
        usleep(1000);
    }
    EXPECT(strstr(exe, "/run") != NULL);
    EXPECT(open("run", O_WRONLY) == -1 && errno == ETXTBSY);
    EXPECT(truncate("run", 0) == -1 && errno == ETXTBSY);
    close(pipes[1]);
    EXPECT(waitpid(child, &status, 0) == child && status == 0);
    int fd = open("run", O_WRONLY);
    EXPECT(fd >= 0);
    EXPECT(execl("./run", "run", (char *)NULL) == -1 && errno == ETXTBSY);
    close(fd);
    unlink("run");
}

/* ---- times ------------------------------------------------------------------------------------- */

static bool later(struct timespec a, struct timespec b) /* is b after a? */
{
    return b.tv_sec > a.tv_sec || (b.tv_sec == a.tv_sec && b.tv_nsec > a.tv_nsec);
}
static void tick(void) /* let the kernel's coarse clock move on */
{
    nanosleep(&(struct timespec){ .tv_nsec = 12000000 }, NULL);
}

static void stores_change_times(void)
{
    struct stat before = { 0 }, after = { 0 };
    int fd = make("f", 'f', 2 * PAGE);
    char *p = map(fd, 2);
    EXPECT(load(p) == 'f' && fsync(fd) == 0);
    for (int i = 0; i < 3; i++) {
        fstat(fd, &before);
        tick();
        p[i] = 's';
        EXPECT(msync(p, PAGE, MS_SYNC) == 0 && fstat(fd, &after) == 0);
        EXPECT(later(before.st_mtim, after.st_mtim));
        EXPECT(later(before.st_ctim, after.st_ctim));
    }
    before = after;
    tick();
    EXPECT(load(p + PAGE) == 'f' && fstat(fd, &after) == 0);
    EXPECT(!later(before.st_mtim, after.st_mtim)); /* loads change nothing */
    done("f", fd, p, 2);
}

static void times_are_kept(void)
{
    struct stat before = { 0 }, after = { 0 };
    int fd = make("f", 'f', PAGE);
    char *p = map(fd, 1);
    p[0] = 's';
    EXPECT(msync(p, PAGE, MS_SYNC) == 0 && fstat(fd, &before) == 0);
    munmap(p, PAGE);
    close(fd);
    tick();
    fd = open("f", O_RDONLY);
    forget(fd);
    EXPECT(fstat(fd, &after) == 0 && !later(before.st_mtim, after.st_mtim));
    EXPECT(!later(after.st_mtim, before.st_mtim));
    close(fd);
    unlink("f");
}

static void msync_refuses_nonsense(void)
{
    int fd = make("f", 'f', PAGE);
    char *p = map(fd, 1);
    EXPECT(msync(p, PAGE, MS_SYNC | MS_ASYNC) == -1 && errno == EINVAL);
    EXPECT(msync(p + 1, PAGE, MS_SYNC) == -1 && errno == EINVAL);
    EXPECT(msync(p, PAGE, MS_ASYNC) == 0 && msync(p, PAGE, MS_SYNC | MS_INVALIDATE) == 0);
    munmap(p, PAGE);
    EXPECT(msync(p, PAGE, MS_SYNC) == -1 && errno == ENOMEM);
    close(fd);
    unlink("f");
}

#define PROPERTY(f) \
    {               \
#f, f       \
    }
static const struct property {
    const char *name;
    void (*holds)(void);
} properties[] = {
    PROPERTY(stores_are_read),
    PROPERTY(writes_are_loaded),
    PROPERTY(mappings_share),
    PROPERTY(private_stores_stay_private),
    PROPERTY(private_of_readonly_file),
    PROPERTY(evicted_pages_keep_stores),
    PROPERTY(beyond_the_end_is_sigbus),
    PROPERTY(tail_stores_do_not_reach_the_file),
    PROPERTY(tail_is_zeros_after_ftruncate),
    PROPERTY(tail_is_zeros_after_a_write_in_the_page),
    PROPERTY(tail_is_zeros_after_a_write_behind_it),
    PROPERTY(tail_is_zeros_after_fallocate),
    PROPERTY(tail_is_zeros_after_msync_and_growth),
    PROPERTY(growth_shows),
    PROPERTY(growth_by_append_shows),
    PROPERTY(shrinking_shows),
    PROPERTY(truncating_open_shows),
    PROPERTY(holes_read_zeros_and_take_stores),
    PROPERTY(seeking_sees_stores),
    PROPERTY(punched_holes_show),
    PROPERTY(zeroed_ranges_show),
    PROPERTY(holes_stay_beside_unmapping),
    PROPERTY(far_offsets),
    PROPERTY(mprotect_is_obeyed),
    PROPERTY(moved_mappings_go_on),
    PROPERTY(children_share),
    PROPERTY(populated_mappings),
    PROPERTY(mapping_outlives_its_descriptor),
    PROPERTY(mapping_outlives_its_name),
    PROPERTY(renamed_over_it_stays_itself),
    PROPERTY(writing_from_its_own_mapping),
    PROPERTY(reading_into_its_own_mapping),
    PROPERTY(direct_io_beside_a_mapping),
    PROPERTY(copies_see_stores),
    PROPERTY(programs_run),
    PROPERTY(stores_change_times),
    PROPERTY(times_are_kept),
    PROPERTY(msync_refuses_nonsense),
};

static int check_all(void)
{
    int bad = 0;
    for (size_t i = 0; i < sizeof properties / sizeof properties[0]; i++) {
        properties[i].holds();
        bad |= say(properties[i].name);
    }
    return bad;
}

/* ---- more pages than fit ----------------------------------------------------------------------- */

static void store_every_third(char *p, size_t pages, size_t from, uint64_t n)
{
    for (size_t i = from; i < pages; i += 3)
        for (size_t at = 0; at < PAGE; at += 1024)
            *(uint64_t *)(p + i * PAGE + at) = n + i;
}

static int big(size_t mib)
{
    size_t pages = mib * 256;
    int fd = make("big", 0, 0), status;
    EXPECT(ftruncate(fd, (off_t)(pages * PAGE)) == 0);
    for (uint64_t round = 1; round <= 3; round++) {
        for (size_t k = 0; k < 3; k++)
            if (fork() == 0) {
                store_every_third(map(fd, (int)pages), pages, k, round << 32);
                _exit(0);
            }
        while (wait(&status) > 0)
            EXPECT(status == 0);
        if (round == 2)
            forget(fd);
        char *p = map(fd, (int)pages);
        for (size_t i = 0; i < pages; i++)
            for (size_t at = 0; at < PAGE; at += 1024)
                EXPECT(*(uint64_t *)(p + i * PAGE + at) == (round << 32) + i);
        munmap(p, pages * PAGE);
    }
    close(fd);
    unlink("big");
    return say("more_pages_than_fit");
}

/* ---- read-only mounts -------------------------------------------------------------------------- */

static int readonly(const char *name)
{
    int fd = open(name, O_RDONLY);
    EXPECT(open(name, O_RDWR) == -1 && errno == EROFS);
    char *p = mmap(NULL, PAGE, PROT_READ, MAP_SHARED, fd, 0);
    char *q = mmap(NULL, PAGE, RW, MAP_PRIVATE, fd, 0);
    EXPECT(p != MAP_FAILED && load(p) == 0 && store(p, 'x') == SIGSEGV);
    EXPECT(q != MAP_FAILED && store(q, 'x') == 0 && load(p) == 0 && byte_at(fd, 0) == 0);
    EXPECT(mmap(NULL, PAGE, RW, MAP_SHARED, fd, 0) == MAP_FAILED && errno == EACCES);
    EXPECT(mprotect(p, PAGE, RW) == -1 && errno == EACCES);
    EXPECT(msync(p, PAGE, MS_SYNC) == 0 && fsync(fd) == 0);
    return say("readonly");
}

int main(int argc, char **argv)
{
    const char *what = argc >= 3 ? argv[1] : "";
    catch_faults();
    if (strcmp(what, "readonly") == 0)
        return readonly(argv[2]);
    if (argc >= 3 && chdir(argv[2]) != 0)
        die(argv[2]);
    if (strcmp(what, "all") == 0)
        return check_all();
    if (strcmp(what, "big") == 0 && argc == 4)
        return big(strtoull(argv[3], NULL, 10));
    fprintf(stderr, "usage: see the head of tests/mmap_ops.c\n");
    return 2;
}
