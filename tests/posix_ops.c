/* posix_ops: do many things to files and say what came of each.
 *
 *     posix_ops compare DIRECTORY     the same lines on every good file system: run it on the host's
 *                                     and on ours, and compare
 *     posix_ops own DIRECTORY         what only FolioFS promises (limits); exit 1 when it does not
 *     posix_ops handle FILE           its file handle, for
 *     posix_ops by-handle DIRECTORY   on its input: open what is meant on that mount, and say its path
 *
 * DIRECTORY is empty and stays that way if all goes well. Lines name no times, inodes or paths.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/falloc.h>
#include <poll.h>
#include <setjmp.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/sysmacros.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <sys/xattr.h>
#include <time.h>
#include <unistd.h>

#ifndef RENAME_NOREPLACE
#define RENAME_NOREPLACE 1
#define RENAME_EXCHANGE  2
#endif
#ifndef RENAME_WHITEOUT
#define RENAME_WHITEOUT 4
#endif
#define PAGE 4096

static const char *section = "";

/* One line: what was done, and its result: ok, a number, or the error's name. */
static void show(const char *what, long long result)
{
    if (result < 0)
        printf("%s: %s: %s\n", section, what, strerrorname_np(errno));
    else if (result == 0)
        printf("%s: %s: ok\n", section, what);
    else
        printf("%s: %s: %lld\n", section, what, result);
}
static void value(const char *what, long long n)
{
    printf("%s: %s = %lld\n", section, what, n);
}
static void truth(const char *what, bool is)
{
    printf("%s: %s: %s\n", section, what, is ? "yes" : "no");
}

static void begin(const char *name)
{
    section = name;
    if (mkdir(name, 0755) != 0 || chdir(name) != 0) {
        perror(name);
        exit(2);
    }
}
static void end(void)
{
    if (chdir("..") != 0) {
        perror("chdir");
        exit(2);
    }
    if (rmdir(section) != 0)
        printf("%s: the section's directory cannot be removed: %s\n", section,
               strerrorname_np(errno));
}

static int make(const char *name, const void *data, size_t len)
{
    int fd = open(name, O_RDWR | O_CREAT | O_TRUNC, 0644);
    if (fd < 0 || write(fd, data, len) != (ssize_t)len)
        printf("%s: cannot make %s: %s\n", section, name, strerrorname_np(errno));
    return fd;
}
static void touch(const char *name)
{
    close(make(name, name, strlen(name)));
}
static long long size_of(const char *name)
{
    struct stat st;
    return lstat(name, &st) == 0 ? (long long)st.st_size : -1;
}
static long long nlink_of(const char *name)
{
    struct stat st;
    return lstat(name, &st) == 0 ? (long long)st.st_nlink : -1;
}
static unsigned mode_of(const char *name)
{
    struct stat st;
    return lstat(name, &st) == 0 ? st.st_mode : 0;
}
static int type_in_directory(const char *name) /* DT_*, or -1 */
{
    DIR *dir = opendir(".");
    int type = -1;
    for (struct dirent *e = readdir(dir); e != NULL; e = readdir(dir))
        if (strcmp(e->d_name, name) == 0)
            type = e->d_type;
    closedir(dir);
    return type;
}
/* The content as text, for small files. */
static void content(const char *name)
{
    char text[200] = "";
    int fd = open(name, O_RDONLY);
    ssize_t n = fd >= 0 ? read(fd, text, sizeof text - 1) : -1;
    printf("%s: %s holds \"%s\" (%zd)\n", section, name, n < 0 ? "" : text, n);
    close(fd);
}
static long long later(struct timespec a, struct timespec b) /* is b after a? */
{
    return b.tv_sec > a.tv_sec || (b.tv_sec == a.tv_sec && b.tv_nsec > a.tv_nsec);
}
/* Let the kernel's coarse clock move on. */
static void tick(void)
{
    struct timespec t = { 0, 12 * 1000 * 1000 };
    nanosleep(&t, NULL);
}

/* ---- names ----------------------------------------------------------------------------------- */

static void names(void)
{
    begin("names");
    char name[300];
    memset(name, 'n', sizeof name);
    name[255] = '\0';
    show("create 255 bytes", close(open(name, O_CREAT | O_WRONLY, 0644)));
    show("mkdir over it", mkdir(name, 0755));
    show("unlink 255 bytes", unlink(name));
    name[255] = 'n';
    name[256] = '\0';
    show("create 256 bytes", open(name, O_CREAT | O_WRONLY, 0644));
    show("stat 256 bytes", access(name, F_OK));
    show("mkdir 256 bytes", mkdir(name, 0755));
    show("symlink 256 bytes", symlink("x", name));
    touch("file");
    show("rename to 256 bytes", rename("file", name));
    show("link to 256 bytes", link("file", name));
    show("open missing", open("missing", O_RDONLY));
    show("open below a file", open("file/x", O_RDONLY));
    show("create below a file", open("file/x", O_CREAT | O_WRONLY, 0644));
    show("create below missing", open("missing/x", O_CREAT | O_WRONLY, 0644));
    show("O_EXCL on existing", open("file", O_CREAT | O_EXCL | O_RDWR, 0644));
    show("O_DIRECTORY on a file", open("file", O_RDONLY | O_DIRECTORY));
    show("open a directory for writing", open(".", O_RDWR));
    show("O_CREAT on a directory", open(".", O_CREAT | O_RDWR, 0644));
    show("mkdir .", mkdir(".", 0755));
    show("mkdir ..", mkdir("..", 0755));
    show("rmdir .", rmdir("."));
    show("rmdir ..", rmdir(".."));
    show("unlink .", unlink("."));
    show("rmdir a file", rmdir("file"));
    show("mkdir over a file", mkdir("file", 0755));
    show("mkdir with a slash", mkdir("dir/", 0700));
    value("mode of it", mode_of("dir"));
    show("unlink a directory", unlink("dir"));
    show("unlink missing", unlink("missing"));
    show("rmdir missing", rmdir("missing"));
    touch("dir/inside");
    show("rmdir not empty", rmdir("dir"));
    show("file with a slash", access("file/", F_OK));
    value("links of a directory, before", nlink_of("."));
    mkdir("dir/sub", 0755);
    value("links of a directory with one inside", nlink_of("dir"));
    rmdir("dir/sub");
    value("links of it without", nlink_of("dir"));
    unlink("dir/inside");
    rmdir("dir");
    unlink("file");
    int fd = open("gone", O_CREAT | O_RDWR, 0600);
    unlink("gone");
    struct stat st;
    show("fstat of an unlinked file", fstat(fd, &st));
    value("its links", st.st_nlink);
    show("write to it", pwrite(fd, "text", 4, 10000));
    char text[5] = "";
    show("read from it", pread(fd, text, 4, 10000));
    truth("what was written", memcmp(text, "text", 4) == 0);
    show("truncate it", ftruncate(fd, 3));
    show("chmod it", fchmod(fd, 0640));
    show("fsync it", fsync(fd));
    show("set an attribute of it", fsetxattr(fd, "user.x", "y", 1, 0));
    close(fd);
    int dir = (mkdir("removed", 0755), open("removed", O_RDONLY | O_DIRECTORY));
    rmdir("removed");
    show("create in a removed directory", openat(dir, "x", O_CREAT | O_WRONLY, 0644));
    show("mkdir in a removed directory", mkdirat(dir, "x", 0755));
    show("fstat of a removed directory", fstat(dir, &st));
    value("its links", st.st_nlink);
    DIR *d = fdopendir(dir);
    int entries = 0;
    while (readdir(d) != NULL)
        entries++;
    truth("a removed directory is empty", entries <= 2);
    closedir(d);
    end();
}

static void links(void)
{
    begin("links");
    touch("a");
    show("link", link("a", "b"));
    value("links", nlink_of("a"));
    show("link over existing", link("a", "b"));
    show("link onto itself", link("a", "a"));
    show("link missing", link("missing", "c"));
    show("link to a name below a file", link("a", "b/c"));
    mkdir("dir", 0755);
    show("link a directory", link("dir", "dir2"));
    show("symlink", symlink("a", "s"));
    show("link a symlink", linkat(AT_FDCWD, "s", AT_FDCWD, "s2", 0));
    truth("which stays a symlink", S_ISLNK(mode_of("s2")));
    show("link through a symlink", linkat(AT_FDCWD, "s", AT_FDCWD, "s3", AT_SYMLINK_FOLLOW));
    truth("which is the file", S_ISREG(mode_of("s3")));
    value("links", nlink_of("a"));
    show("symlink over existing", symlink("a", "b"));
    show("symlink to nothing", symlink("", "empty"));
    char target[PATH_MAX + 8];
    memset(target, 't', sizeof target);
    target[PATH_MAX - 1] = '\0';
    show("symlink of 4095 bytes", symlink(target, "long"));
    char back[PATH_MAX + 8];
    value("read back", readlink("long", back, sizeof back));
    value("its size", size_of("long"));
    truth("the same", memcmp(target, back, PATH_MAX - 1) == 0);
    value("read back in part", readlink("long", back, 10));
    target[PATH_MAX - 1] = 't';
    target[PATH_MAX] = '\0';
    show("symlink of 4096 bytes", symlink(target, "longer"));
    show("readlink of a file", readlink("a", back, sizeof back));
    show("readlink of a directory", readlink(".", back, sizeof back));
    symlink("loop2", "loop1");
    symlink("loop1", "loop2");
    show("open a loop", open("loop1", O_RDONLY));
    show("O_NOFOLLOW on a symlink", open("s", O_RDONLY | O_NOFOLLOW));
    show("O_EXCL on a dangling symlink",
         (symlink("nowhere", "dangling"), open("dangling", O_CREAT | O_EXCL | O_RDWR, 0644)));
    const char *all[] = { "a", "b", "s", "s2", "s3", "long", "loop1", "loop2", "dangling" };
    for (size_t i = 0; i < sizeof all / sizeof all[0]; i++)
        show("unlink", unlink(all[i]));
    rmdir("dir");
    end();
}

static int rename2(const char *from, const char *to, unsigned flags)
{
    return renameat2(AT_FDCWD, from, AT_FDCWD, to, flags);
}

static void renames(void)
{
    begin("rename");
    touch("a");
    touch("b");
    show("onto another file", rename("a", "b"));
    content("b");
    show("of a missing one", rename("a", "c"));
    show("onto itself", rename("b", "b"));
    link("b", "b2");
    show("onto a link of itself", rename("b", "b2"));
    truth("then both stay", access("b", F_OK) == 0 && access("b2", F_OK) == 0);
    mkdir("d", 0755);
    mkdir("e", 0755);
    touch("e/inside");
    show("a file onto a directory", rename("b", "d"));
    show("a directory onto a file", rename("d", "b"));
    show("a directory onto a full one", rename("d", "e"));
    show("a directory onto an empty one", rename("e", "d"));
    content("d/inside");
    mkdir("d/x", 0755);
    mkdir("d/x/y", 0755);
    show("a directory into itself", rename("d", "d/x/y/z"));
    show("a directory onto its own inside", rename("d", "d/x"));
    show("a directory over its parent", rename("d/x/y", "d"));
    show("..", rename("..", "f"));
    show(".", rename(".", "f"));
    value("links of d", nlink_of("d"));
    show("a directory upwards", rename("d/x/y", "y"));
    value("links of d/x after", nlink_of("d/x"));
    value("links of the place it went to", nlink_of("."));
    show("NOREPLACE onto existing", rename2("b", "b2", RENAME_NOREPLACE));
    show("NOREPLACE onto itself", rename2("b", "b", RENAME_NOREPLACE));
    show("NOREPLACE", rename2("b", "n", RENAME_NOREPLACE));
    touch("p");
    touch("q");
    show("EXCHANGE", rename2("p", "q", RENAME_EXCHANGE));
    content("p");
    show("EXCHANGE with missing", rename2("p", "missing", RENAME_EXCHANGE));
    show("EXCHANGE of file and directory", rename2("p", "y", RENAME_EXCHANGE));
    truth("p is the directory now", S_ISDIR(mode_of("p")));
    show("EXCHANGE over directories", rename2("d/x", "y", RENAME_EXCHANGE));
    truth("y is the directory now", S_ISDIR(mode_of("y")));
    value("links of d", nlink_of("d"));
    show("EXCHANGE with own inside", rename2("d", "d/inside", RENAME_EXCHANGE));
    show("EXCHANGE and NOREPLACE", rename2("p", "q", RENAME_EXCHANGE | RENAME_NOREPLACE));
    show("unknown flag", rename2("p", "q", 1u << 20));
    /* ".." follows a moved directory. */
    mkdir("m", 0755);
    mkdir("m/k", 0755);
    mkdir("o", 0755);
    int k = open("m/k", O_RDONLY | O_DIRECTORY);
    rename("m/k", "o/k");
    struct stat up, o;
    fstatat(k, "..", &up, 0);
    stat("o", &o);
    truth(".. follows", up.st_ino == o.st_ino);
    close(k);
    rmdir("o/k");
    rmdir("o");
    rmdir("m");
    unlink("d/inside");
    unlink("d/x");
    rmdir("d");
    rmdir("y");
    rmdir("p");
    unlink("q");
    unlink("n");
    unlink("b2");
    end();
}

/* What stands for the name now; right behind a rename the kernel may still remember what was there. */
static void kind(const char *name)
{
    struct stat st;
    if (lstat(name, &st) != 0)
        show(name, -1);
    else
        printf("%s: %s: mode %o, device %x, size %lld, links %u, owner %u:%u, %s\n", section, name,
               st.st_mode, (unsigned)st.st_rdev, S_ISDIR(st.st_mode) ? 0 : (long long)st.st_size,
               (unsigned)st.st_nlink, st.st_uid, st.st_gid,
               type_in_directory(name) == (int)IFTODT(st.st_mode) ? "listed so" : "not listed so");
}

static void whiteouts(void)
{
    begin("whiteout");
    touch("a");
    kind("a");
    show("to a free name", rename2("a", "b", RENAME_WHITEOUT));
    kind("a");
    content("b");
    show("open", open("a", O_RDONLY));
    show("create over it", open("a", O_CREAT | O_EXCL | O_WRONLY, 0644));
    show("mkdir over it", mkdir("a", 0755));
    show("rmdir", rmdir("a"));
    show("unlink", unlink("a"));
    kind("a");
    touch("a");
    show("over a file", rename2("a", "b", RENAME_WHITEOUT));
    kind("a");
    content("b");
    show("onto the whiteout, leaving one", rename2("b", "a", RENAME_WHITEOUT));
    kind("b");
    content("a");
    show("a file over a whiteout", rename("a", "b"));
    kind("a");
    content("b");
    show("exchange with it", rename2("b", "a", RENAME_EXCHANGE | RENAME_WHITEOUT));
    show("of a missing one", rename2("a", "b", RENAME_WHITEOUT));
    show("onto itself", rename2("b", "b", RENAME_WHITEOUT));
    kind("b");
    link("b", "c");
    show("onto a link of itself", rename2("b", "c", RENAME_WHITEOUT));
    kind("b");
    kind("c");
    const unsigned both = RENAME_WHITEOUT | RENAME_NOREPLACE;
    show("NOREPLACE onto existing", rename2("b", "c", both));
    show("NOREPLACE", rename2("b", "n", both));
    kind("b");
    kind("n");
    show("a whiteout, leaving one", rename2("b", "w", RENAME_WHITEOUT));
    kind("b");
    kind("w");
    unlink("b");
    unlink("w");
    unlink("n");
    show("EXCHANGE", (touch("a"), rename2("a", "c", RENAME_EXCHANGE | RENAME_WHITEOUT)));
    show("with all three", rename2("a", "c", both | RENAME_EXCHANGE));
    unlink("a");

    mkdir("d", 0755);
    mkdir("e", 0755);
    mkdir("e/empty", 0755);
    mkdir("d/sub", 0755);
    touch("d/sub/file");
    show("a directory into itself", rename2("d", "d/sub/x", RENAME_WHITEOUT));
    show("a directory onto a file", rename2("d", "c", RENAME_WHITEOUT));
    show("a file onto a directory", rename2("c", "e", RENAME_WHITEOUT));
    show("a directory onto a full one", rename2("d/sub", "e", RENAME_WHITEOUT));
    show("a directory beside", rename2("d/sub", "d/beside", RENAME_WHITEOUT));
    value("links of its parent", nlink_of("d"));
    show("a directory onto an empty one", rename2("d/beside", "e/empty", RENAME_WHITEOUT));
    value("links of where it was", nlink_of("d"));
    value("links of where it is", nlink_of("e"));
    content("e/empty/file");
    show("back to a new name", rename2("e/empty", "d/again", RENAME_WHITEOUT));
    value("links of where it was", nlink_of("e"));
    value("links of where it is", nlink_of("d"));
    show("rmdir of what has whiteouts", rmdir("e"));
    chdir("d");
    kind("sub");
    kind("beside");
    kind("again");
    chdir("../e");
    kind("empty");
    chdir("..");
    unlink("e/empty");
    rmdir("e");

    struct stat dir, before, after, whiteout;
    stat("d", &dir);
    stat("c", &before);
    tick();
    rename2("c", "d/c", RENAME_WHITEOUT);
    lstat("c", &whiteout);
    stat("d/c", &after);
    truth("same file", after.st_ino == before.st_ino && whiteout.st_ino != before.st_ino);
    truth("its ctime moves", later(before.st_ctim, after.st_ctim));
    truth("its mtime stays", !later(before.st_mtim, after.st_mtim));
    truth("the whiteout's times are now", later(before.st_ctim, whiteout.st_mtim) &&
                                              later(before.st_ctim, whiteout.st_ctim) &&
                                              later(before.st_ctim, whiteout.st_atim));
    stat("d", &after);
    truth("the directory's times move",
          later(dir.st_mtim, after.st_mtim) && later(dir.st_ctim, after.st_ctim));
    unlink("c");
    unlink("d/c");
    unlink("d/sub");
    unlink("d/beside");
    unlink("d/again/file");
    rmdir("d/again");
    rmdir("d");
    end();
}

/* ---- reading and writing --------------------------------------------------------------------- */

#define NOAPPEND 0x20 /* RWF_NOAPPEND, of Linux 6.9 */

static void data(void)
{
    begin("data");
    int fd = make("f", "0123456789", 10);
    char buf[100] = "";
    show("read at end", pread(fd, buf, 10, 10));
    show("read beyond", pread(fd, buf, 10, 1 << 20));
    show("read over the end", pread(fd, buf, 100, 5));
    show("pread at -1", pread(fd, buf, 1, -1));
    show("pwrite at -1", pwrite(fd, buf, 1, -1));
    show("write nothing far away", pwrite(fd, buf, 0, 1 << 20));
    value("size", size_of("f"));
    show("write beyond the end", pwrite(fd, "X", 1, 20));
    value("size", size_of("f"));
    show("read the gap", pread(fd, buf, 21, 0));
    truth("the gap is zeros", memcmp(buf, "0123456789\0\0\0\0\0\0\0\0\0\0X", 21) == 0);
    show("truncate", ftruncate(fd, 4));
    show("extend", ftruncate(fd, 12));
    memset(buf, 'z', sizeof buf);
    show("read", pread(fd, buf, 100, 0));
    truth("what was cut is zeros", memcmp(buf, "0123\0\0\0\0\0\0\0\0", 12) == 0);
    show("truncate to -1", ftruncate(fd, -1));
    show("truncate a directory", truncate(".", 0));
    show("truncate missing", truncate("missing", 0));
    close(fd);

    fd = open("f", O_WRONLY | O_APPEND);
    show("append", pwrite(fd, "END", 3, 0)); /* Linux: O_APPEND wins over the offset */
    value("size", size_of("f"));
    show("read of O_WRONLY", read(fd, buf, 1));
    int second = open("f", O_WRONLY | O_APPEND);
    (void)!write(fd, "1", 1);
    (void)!write(second, "2", 1);
    (void)!write(fd, "3", 1);
    close(second);
    show("RWF_NOAPPEND", pwritev2(fd, &(struct iovec){ "no", 2 }, 1, 12, NOAPPEND));
    close(fd);
    fd = open("f", O_RDONLY);
    pread(fd, buf, 100, 12);
    buf[6] = '\0';
    printf("%s: appended \"%s\"\n", section, buf);
    show("write of O_RDONLY", write(fd, buf, 1));
    show("ftruncate of O_RDONLY", ftruncate(fd, 0));
    close(fd);
    fd = open("f", O_RDWR | O_TRUNC);
    value("size after O_TRUNC", size_of("f"));
    (void)!write(fd, "abc", 3);
    close(open("f", O_RDONLY | O_TRUNC));
    value("size after O_RDONLY|O_TRUNC", size_of("f"));
    close(fd);

    /* vectors, large and odd pieces over page borders */
    fd = open("f", O_RDWR);
    struct iovec v[3] = { { "one ", 4 }, { "", 0 }, { "two", 3 } };
    show("writev", pwritev(fd, v, 3, PAGE - 3));
    pread(fd, buf, 7, PAGE - 3);
    truth("readable", memcmp(buf, "one two", 7) == 0);
    static char large[3 * 1024 * 1024 + 17];
    for (size_t i = 0; i < sizeof large; i++)
        large[i] = (char)(i * 31 >> 3);
    show("a large write", pwrite(fd, large, sizeof large, 5));
    static char again[sizeof large];
    show("a large read", pread(fd, again, sizeof again, 5));
    truth("equal", memcmp(large, again, sizeof large) == 0);
    show("fsync", fsync(fd));
    show("fdatasync", fdatasync(fd));
    show("sync_file_range", sync_file_range(fd, 0, 0, 7));
    show("fadvise DONTNEED", posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED));
    show("a large read again", pread(fd, again, sizeof again, 5));
    truth("equal", memcmp(large, again, sizeof large) == 0);
    close(fd);
    int dir = open(".", O_RDONLY | O_DIRECTORY);
    show("read a directory", read(dir, buf, 1));
    show("fsync a directory", fsync(dir));
    show("ftruncate a directory", ftruncate(dir, 0));
    close(dir);
    unlink("f");
    end();
}

static void holes(void)
{
    begin("holes");
    int fd = open("f", O_RDWR | O_CREAT, 0644);
    show("SEEK_DATA of nothing", lseek(fd, 0, SEEK_DATA));
    show("SEEK_HOLE of nothing", lseek(fd, 0, SEEK_HOLE));
    static char block[64 * 1024];
    memset(block, 'b', sizeof block);
    const long long MB = 1 << 20;
    pwrite(fd, block, sizeof block, MB);
    pwrite(fd, block, sizeof block, 3 * MB);
    ftruncate(fd, 5 * MB);
    fsync(fd);
    value("SEEK_DATA from 0", lseek(fd, 0, SEEK_DATA));
    value("SEEK_HOLE from 0", lseek(fd, 0, SEEK_HOLE));
    value("SEEK_HOLE from 1M", lseek(fd, MB, SEEK_HOLE));
    value("SEEK_HOLE from 1M+5", lseek(fd, MB + 5, SEEK_HOLE));
    value("SEEK_DATA from 1M+5", lseek(fd, MB + 5, SEEK_DATA));
    value("SEEK_DATA from 2M", lseek(fd, 2 * MB, SEEK_DATA));
    value("SEEK_HOLE from 3M", lseek(fd, 3 * MB, SEEK_HOLE));
    show("SEEK_DATA behind the last", lseek(fd, 4 * MB, SEEK_DATA));
    value("SEEK_HOLE behind the last", lseek(fd, 4 * MB, SEEK_HOLE));
    show("SEEK_DATA at the end", lseek(fd, 5 * MB, SEEK_DATA));
    show("SEEK_HOLE at the end", lseek(fd, 5 * MB, SEEK_HOLE));
    show("SEEK_DATA beyond", lseek(fd, 6 * MB, SEEK_DATA));
    show("SEEK_DATA at -1", lseek(fd, -1, SEEK_DATA));
    struct stat st;
    fstat(fd, &st);
    truth("sparse", st.st_blocks * 512 < MB);
    pwrite(fd, "not yet written back", 20, 2 * MB);
    value("SEEK_DATA sees what is dirty", lseek(fd, MB + (long long)sizeof block, SEEK_DATA));

    show("PUNCH_HOLE", fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 3 * MB, 32768));
    value("SEEK_DATA", lseek(fd, 3 * MB, SEEK_DATA));
    char c = 'x';
    pread(fd, &c, 1, 3 * MB + 100);
    value("it reads", c);
    show("PUNCH_HOLE inside a page",
         fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, MB + 10, 20));
    char text[40];
    pread(fd, text, sizeof text, MB);
    int zeros = 0;
    for (int i = 0; i < 40; i++)
        zeros += text[i] == 0;
    value("zeros", zeros);
    show("PUNCH_HOLE over the end",
         fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 4 * MB, 100 * MB));
    value("size stays", size_of("f"));
    show("PUNCH_HOLE without KEEP_SIZE", fallocate(fd, FALLOC_FL_PUNCH_HOLE, 0, PAGE));
    show("ZERO_RANGE", fallocate(fd, FALLOC_FL_ZERO_RANGE, MB + 1000, 5000));
    pread(fd, text, sizeof text, MB + 980);
    zeros = 0;
    for (int i = 0; i < 40; i++)
        zeros += text[i] == 0;
    value("zeros", zeros);
    show("ZERO_RANGE beyond the end", fallocate(fd, FALLOC_FL_ZERO_RANGE, 6 * MB, PAGE));
    value("size grew", size_of("f"));
    show("ZERO_RANGE KEEP_SIZE",
         fallocate(fd, FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE, 7 * MB, PAGE));
    value("size stays", size_of("f"));
    show("fallocate", fallocate(fd, 0, 8 * MB, 10000));
    value("size grew", size_of("f"));
    show("fallocate KEEP_SIZE", fallocate(fd, FALLOC_FL_KEEP_SIZE, 9 * MB, 10000));
    value("size stays", size_of("f"));
    show("fallocate of nothing", fallocate(fd, 0, 0, 0));
    show("fallocate at -1", fallocate(fd, 0, -1, 10));
    show("fallocate unknown mode", fallocate(fd, 0x8000, 0, 10));
    int reader = open("f", O_RDONLY);
    show("fallocate of O_RDONLY", fallocate(reader, 0, 0, 10));
    close(reader);
    int dir = open(".", O_RDONLY | O_DIRECTORY);
    show("fallocate of a directory", fallocate(dir, 0, 0, 10));
    close(dir);

    /* copy_file_range */
    int to = open("g", O_RDWR | O_CREAT, 0644);
    off_t from_at = 3 * MB + 32768 - 10, to_at = 100;
    show("copy_file_range", copy_file_range(fd, &from_at, to, &to_at, 30, 0));
    value("source offset", from_at);
    value("target size", size_of("g"));
    pread(to, text, 30, 100);
    truth("its bytes", text[0] == 0 && text[9] == 0 && text[10] == 'b' && text[29] == 'b');
    from_at = 100 * MB;
    show("copy_file_range beyond the end", copy_file_range(fd, &from_at, to, &to_at, 30, 0));
    from_at = 0;
    to_at = 10;
    show("copy_file_range overlapping", copy_file_range(fd, &from_at, fd, &to_at, 30, 0));
    show("copy_file_range with a flag", copy_file_range(fd, &from_at, to, &to_at, 30, 1));
    close(to);
    close(fd);
    unlink("f");
    unlink("g");
    end();
}

/* ---- mappings -------------------------------------------------------------------------------- */

static sigjmp_buf fault;
static void on_fault(int signal)
{
    siglongjmp(fault, signal);
}
static void touch_at(const char *what, volatile char *p, bool store)
{
    struct sigaction act = { .sa_handler = on_fault }, old_bus, old_segv;
    sigaction(SIGBUS, &act, &old_bus);
    sigaction(SIGSEGV, &act, &old_segv);
    int got = sigsetjmp(fault, 1);
    if (got == 0) {
        if (store)
            *p = 's';
        else
            (void)*p;
        printf("%s: %s: no fault\n", section, what);
    } else {
        printf("%s: %s: SIG%s\n", section, what, sigabbrev_np(got));
    }
    sigaction(SIGBUS, &old_bus, NULL);
    sigaction(SIGSEGV, &old_segv, NULL);
}

static void mappings(void)
{
    begin("mmap");
    int fd = make("f", "", 0);
    ftruncate(fd, 3 * PAGE + 100);
    char *shared = mmap(NULL, 8 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    char *private = mmap(NULL, 4 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0);
    truth("shared mapping", shared != MAP_FAILED);
    truth("private mapping", private != MAP_FAILED);
    if (shared == MAP_FAILED || private == MAP_FAILED)
        exit(2);
    pwrite(fd, "by write", 8, 10);
    truth("a mapping sees a write", memcmp(shared + 10, "by write", 8) == 0);
    memcpy(shared + PAGE, "by store", 8);
    char buf[8];
    pread(fd, buf, 8, PAGE);
    truth("read sees a store", memcmp(buf, "by store", 8) == 0);
    int other = open("f", O_RDONLY);
    pread(other, buf, 8, PAGE);
    truth("another descriptor sees it", memcmp(buf, "by store", 8) == 0);
    truth("a private mapping sees it", memcmp(private + PAGE, "by store", 8) == 0);
    memcpy(private + 2 * PAGE, "mine", 4);
    pread(fd, buf, 4, 2 * PAGE);
    truth("a private store stays private", memcmp(buf, "\0\0\0\0", 4) == 0);
    pid_t child = fork();
    if (child == 0) {
        memcpy(shared + 2 * PAGE, "by child", 8);
        _exit(0);
    }
    waitpid(child, NULL, 0);
    truth("a child's store is seen", memcmp(shared + 2 * PAGE, "by child", 8) == 0);
    show("msync", msync(shared, 3 * PAGE, MS_SYNC));
    touch_at("read in the last page behind the end", shared + 3 * PAGE + 200, false);
    touch_at("read beyond the last page", shared + 4 * PAGE, false);
    touch_at("store beyond the last page", shared + 5 * PAGE, true);
    ftruncate(fd, PAGE + 50);
    touch_at("read what truncate took", shared + 2 * PAGE, false);
    truth("truncate zeroed the rest of the page", shared[PAGE + 60] == 0);
    shared[PAGE + 70] = 'g'; /* behind the end, in the page */
    msync(shared, 2 * PAGE, MS_SYNC);
    ftruncate(fd, 3 * PAGE);
    char c = 'x';
    pread(fd, &c, 1, PAGE + 70);
    value("a store behind the end is not in the file", c);
    touch_at("read what came back", shared + 2 * PAGE, false);
    value("it is", shared[2 * PAGE]);
    value("private copy stays", private[2 * PAGE]);
    pwrite(fd, "hole", 4, 2 * PAGE);
    truth("visible", shared[2 * PAGE] == 'h');
    fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 2 * PAGE, PAGE);
    value("punched under the mapping", shared[2 * PAGE]);
    shared[2 * PAGE] = 'n';
    pread(fd, &c, 1, 2 * PAGE);
    value("and stored again", c);
    munmap(private, 4 * PAGE);

    int reader = open("f", O_RDONLY);
    truth("writable shared mapping of O_RDONLY",
          mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, reader, 0) != MAP_FAILED);
    char *ro = mmap(NULL, PAGE, PROT_READ, MAP_SHARED, reader, 0);
    touch_at("store to a read-only mapping", ro, true);
    munmap(ro, PAGE);
    close(reader);

    static const void *volatile unmapped = (void *)1;
    /* write(2) from a mapping of the same file, read(2) into it */
    memcpy(shared, "self", 4);
    show("write from its own mapping", pwrite(fd, shared, 4, PAGE));
    truth("copied", memcmp(shared + PAGE, "self", 4) == 0);
    show("read into its own mapping", pread(fd, shared + 100, 4, PAGE));
    truth("copied", memcmp(shared + 100, "self", 4) == 0);
    show("write from an unmapped address", pwrite(fd, unmapped, 4, 0));

    unlink("f");
    close(fd);
    close(other);
    memcpy(shared, "still", 5);
    truth("a mapping outlives the name", memcmp(shared, "still", 5) == 0);
    munmap(shared, 8 * PAGE);
    fd = make("g", "persist", 7);
    shared = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    close(fd);
    memcpy(shared, "PERSIST", 7);
    munmap(shared, PAGE);
    content("g");
    unlink("g");
    end();
}

/* ---- attributes ------------------------------------------------------------------------------ */

static void modes(void)
{
    begin("modes");
    touch("f");
    show("chmod", chmod("f", 07777));
    value("mode", mode_of("f"));
    show("chmod of more bits", chmod("f", 0177777));
    value("mode", mode_of("f"));
    show("chmod missing", chmod("missing", 0644));
    show("chown -1 -1", chown("f", (uid_t)-1, (gid_t)-1));
    value("mode", mode_of("f"));
    umask(027);
    close(open("u", O_CREAT | O_WRONLY, 0666));
    mkdir("ud", 0777);
    umask(022);
    value("umask on files", mode_of("u"));
    value("umask on directories", mode_of("ud"));
    show("mkfifo", mkfifo("fifo", 0640));
    value("mode", mode_of("fifo"));
    show("open a fifo without a writer", close(open("fifo", O_RDONLY | O_NONBLOCK)));
    show("and for writing", open("fifo", O_WRONLY | O_NONBLOCK));
    int s = socket(AF_UNIX, SOCK_STREAM, 0);
    struct sockaddr_un a = { AF_UNIX, "socket" };
    show("bind a socket", bind(s, (struct sockaddr *)&a, sizeof a));
    truth("it is one", S_ISSOCK(mode_of("socket")));
    show("open it", open("socket", O_RDONLY));
    close(s);
    struct statvfs v;
    show("statvfs", statvfs(".", &v));
    value("longest name", (long long)v.f_namemax);
    show("access", access("f", R_OK | W_OK));
    unlink("f");
    unlink("u");
    rmdir("ud");
    unlink("fifo");
    unlink("socket");
    end();
}

static void times(void)
{
    begin("times");
    touch("f");
    char buf[16];
    struct timespec set[2] = { { 1000000001, 123456789 }, { -5, 999999999 } };
    struct stat st, before;
    show("utimensat", utimensat(AT_FDCWD, "f", set, 0));
    stat("f", &st);
    value("atime ns", st.st_atim.tv_nsec);
    value("mtime s", st.st_mtim.tv_sec);
    value("mtime ns", st.st_mtim.tv_nsec);
    set[0].tv_nsec = UTIME_OMIT;
    set[1] = (struct timespec){ 7, 8 };
    show("UTIME_OMIT", utimensat(AT_FDCWD, "f", set, 0));
    stat("f", &st);
    value("atime stays", st.st_atim.tv_sec);
    value("mtime", st.st_mtim.tv_sec);
    set[0].tv_nsec = set[1].tv_nsec = UTIME_NOW;
    show("UTIME_NOW", utimensat(AT_FDCWD, "f", set, 0));
    stat("f", &st);
    truth("is now", st.st_mtim.tv_sec > 1700000000 && st.st_atim.tv_sec > 1700000000);
    set[0].tv_nsec = 1000000000;
    show("a bad number", utimensat(AT_FDCWD, "f", set, 0));
    symlink("f", "s");
    set[0] = set[1] = (struct timespec){ 42, 43 };
    show("of a symlink", utimensat(AT_FDCWD, "s", set, AT_SYMLINK_NOFOLLOW));
    lstat("s", &st);
    value("its mtime", st.st_mtim.tv_sec);
    show("of 2106 and after",
         utimensat(AT_FDCWD, "f", (struct timespec[2]){ { 5000000000, 1 }, { 5000000000, 2 } }, 0));
    stat("f", &st);
    value("mtime", st.st_mtim.tv_sec);

#define CHANGES(what, path, action)                                    \
    do {                                                               \
        stat(path, &before);                                           \
        tick();                                                        \
        (void)(action);                                                \
        stat(path, &st);                                               \
        printf("%s: %s: mtime %s, ctime %s\n", section, what,          \
               later(before.st_mtim, st.st_mtim) ? "moves" : "stays",  \
               later(before.st_ctim, st.st_ctim) ? "moves" : "stays"); \
    } while (0)
    utimensat(AT_FDCWD, "f", NULL, 0);
    int fd = open("f", O_RDWR);
    CHANGES("chmod", "f", fchmod(fd, 0600));
    CHANGES("chown", "f", fchown(fd, (uid_t)-1, getgid()));
    CHANGES("write", "f", write(fd, "x", 1));
    CHANGES("write nothing", "f", write(fd, "x", 0));
    CHANGES("ftruncate", "f", ftruncate(fd, 100));
    CHANGES("ftruncate to the same", "f", ftruncate(fd, 100));
    CHANGES("fallocate", "f", fallocate(fd, 0, 0, 9000));
    CHANGES("setxattr", "f", fsetxattr(fd, "user.x", "1", 1, 0));
    CHANGES("link", "f", link("f", "l"));
    CHANGES("unlink of a link", "f", unlink("l"));
    CHANGES("rename", "f", (rename("f", "r"), rename("r", "f")));
    CHANGES("read", "f", pread(fd, &st, 1, 0));
    (void)!pwrite(fd, "x", 1, 0);
    set[0] = (struct timespec){ 1, 0 };
    set[1] = (struct timespec){ 0, UTIME_OMIT };
    utimensat(AT_FDCWD, "f", set, 0);
    int quiet = open("f", O_RDONLY | O_NOATIME);
    show("read with O_NOATIME", pread(quiet, buf, sizeof buf, 0));
    stat("f", &st);
    value("atime", st.st_atim.tv_sec);
    close(quiet);
    CHANGES("O_TRUNC", "f", close(open("f", O_WRONLY | O_TRUNC)));
    CHANGES("create inside, of the directory", ".", close(open("n", O_CREAT | O_WRONLY, 0644)));
    CHANGES("rename inside, of the directory", ".", rename("n", "m"));
    CHANGES("link inside, of the directory", ".", link("m", "n"));
    CHANGES("unlink inside, of the directory", ".", unlink("m"));
    CHANGES("mkdir inside, of the directory", ".", mkdir("d", 0755));
    CHANGES("rmdir inside, of the directory", ".", rmdir("d"));
    CHANGES("failed rmdir, of the directory", ".", rmdir("missing"));
    mkdir("d", 0755);
    mkdir("up", 0755);
    mkdir("up/e", 0755);
    CHANGES("rename, of a directory", "d", (rename("d", "r"), rename("r", "d")));
    CHANGES("rename to another one, of a directory", "d",
            (rename("d", "up/d"), rename("up/d", "d")));
    CHANGES("that, of the other one", "up", (rename("d", "up/d"), rename("up/d", "d")));
    CHANGES("EXCHANGE twice, of a directory", "d",
            (rename2("d", "up/e", RENAME_EXCHANGE), rename2("d", "up/e", RENAME_EXCHANGE)));
    rmdir("up/e");
    rmdir("up");
    rmdir("d");
    close(fd);
    fd = open("f", O_RDWR);
    ftruncate(fd, PAGE);
    char *p = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    CHANGES("store and msync", "f", (*p = 'x', msync(p, PAGE, MS_SYNC)));
    set[0].tv_nsec = UTIME_OMIT;
    set[1] = (struct timespec){ 77, 0 };
    *p = 'y';
    show("utimensat after a store", utimensat(AT_FDCWD, "f", set, 0));
    show("msync", msync(p, PAGE, MS_SYNC));
    stat("f", &st);
    value("mtime", st.st_mtim.tv_sec);
    *p = 'z';
    show("futimens after a store", futimens(fd, set));
    show("fsync", fsync(fd));
    stat("f", &st);
    value("mtime", st.st_mtim.tv_sec);
    munmap(p, PAGE);
    close(fd);
    unlink("f");
    unlink("s");
    unlink("n");
    end();
}

static void xattrs(void)
{
    begin("xattr");
    touch("f");
    char buf[5000];
    show("get missing", getxattr("f", "user.a", buf, sizeof buf));
    show("set", setxattr("f", "user.a", "value", 5, 0));
    show("CREATE existing", setxattr("f", "user.a", "v", 1, XATTR_CREATE));
    show("REPLACE missing", setxattr("f", "user.b", "v", 1, XATTR_REPLACE));
    show("CREATE", setxattr("f", "user.b", "bb", 2, XATTR_CREATE));
    show("REPLACE", setxattr("f", "user.a", "VALUE!", 6, XATTR_REPLACE));
    show("get", getxattr("f", "user.a", buf, sizeof buf));
    show("get its size", getxattr("f", "user.a", NULL, 0));
    show("get into too little", getxattr("f", "user.a", buf, 3));
    show("list's size", listxattr("f", NULL, 0));
    show("list into too little", listxattr("f", buf, 5));
    show("empty value", setxattr("f", "user.empty", "", 0, 0));
    show("get empty", getxattr("f", "user.empty", buf, sizeof buf));
    show("remove", removexattr("f", "user.b"));
    show("remove again", removexattr("f", "user.b"));
    show("no namespace", setxattr("f", "a", "v", 1, 0));
    show("unknown namespace", setxattr("f", "folio.a", "v", 1, 0));
    show("only a namespace", setxattr("f", "user.", "v", 1, 0));
    symlink("f", "s");
    show("user. on a symlink", lsetxattr("s", "user.a", "v", 1, 0));
    mkfifo("fifo", 0644);
    show("user. on a fifo", setxattr("fifo", "user.a", "v", 1, 0));
    mkdir("d", 0755);
    show("user. on a directory", setxattr("d", "user.a", "v", 1, 0));
    memset(buf, 'n', sizeof buf);
    memcpy(buf, "user.", 5);
    buf[255] = '\0';
    show("a name of 255", setxattr("f", buf, "v", 1, 0));
    show("get it", getxattr("f", buf, NULL, 0));
    show("remove it", removexattr("f", buf));
    buf[255] = 'n';
    buf[256] = '\0';
    show("a name of 256", setxattr("f", buf, "v", 1, 0));
    show("a value of 3000", setxattr("f", "user.large", buf, 3000, 0));
    show("get it", getxattr("f", "user.large", buf, sizeof buf));
    if (geteuid() == 0) {
        show("trusted.", setxattr("f", "trusted.t", "v", 1, 0));
        show("trusted. on a symlink", lsetxattr("s", "trusted.t", "v", 1, 0));
        show("get", lgetxattr("s", "trusted.t", buf, sizeof buf));
        show("security.", setxattr("f", "security.folio", "v", 1, 0));
        show("get", getxattr("f", "security.folio", buf, sizeof buf));
        /* struct vfs_cap_data: CAP_NET_RAW */
        static const char capability[20] = { 1, 0, 0, 2, 0, 32 };
        for (int flags = O_WRONLY; flags <= O_RDWR; flags++) {
            int fd = open("f", flags);
            show("a capability",
                 setxattr("f", "security.capability", capability, sizeof capability, 0));
            show("write", write(fd, "w", 1));
            show("then it", getxattr("f", "security.capability", buf, sizeof buf));
            close(fd);
        }
    }
    unlink("f");
    unlink("s");
    unlink("fifo");
    rmdir("d");
    end();
}

/* ---- other users (root only: it becomes them) ------------------------------------------------ */

#define SOMEBODY 12345
#define OTHER    23456

static void become(uid_t uid, gid_t gid)
{
    if (seteuid(0) != 0 || setegid(gid) != 0 || seteuid(uid) != 0) {
        perror("seteuid");
        exit(2);
    }
}

static void owners(void)
{
    begin("owners");
    mkdir("d", 0755);
    chown("d", SOMEBODY, SOMEBODY);
    become(SOMEBODY, SOMEBODY);
    int fd = open("d/f", O_RDWR | O_CREAT, 0666);
    struct stat st;
    fstat(fd, &st);
    value("owner of a new file", st.st_uid);
    value("group of a new file", st.st_gid);
    show("chown it away", fchown(fd, OTHER, (gid_t)-1));
    show("chown to itself", fchown(fd, SOMEBODY, SOMEBODY));
    show("chgrp to a foreign group", fchown(fd, (uid_t)-1, OTHER));
    show("create where it may not", open("x", O_CREAT | O_WRONLY, 0644));
    show("mkdir where it may not", mkdir("x", 0755));
    show("rename out", rename("d/f", "f"));
    show("unlink where it may not", rmdir("d"));
    show("mknod of a device", mknod("d/null", S_IFCHR | 0666, makedev(1, 3)));
    show("mknod of a file", mknod("d/reg", S_IFREG | 0644, 0));
    show("mknod of a fifo", mknod("d/fifo", S_IFIFO | 0644, 0));
    show("trusted. attribute", setxattr("d/f", "trusted.x", "v", 1, 0));
    show("rename that leaves a whiteout", rename2("d/reg", "d/moved", RENAME_WHITEOUT));
    lstat("d/reg", &st);
    value("the whiteout's owner", st.st_uid);
    value("its group", st.st_gid);
    unlink("d/moved");
    unlink("d/reg");
    unlink("d/fifo");
    close(fd);
    become(OTHER, OTHER);
    show("open for writing", open("d/f", O_RDWR));
    show("open for reading", close(open("d/f", O_RDONLY)));
    show("chmod", chmod("d/f", 0777));
    show("utimensat now", utimensat(AT_FDCWD, "d/f", NULL, 0));
    show("utimensat", utimensat(AT_FDCWD, "d/f", (struct timespec[2]){ { 1, 1 }, { 1, 1 } }, 0));
    show("truncate", truncate("d/f", 0));
    show("unlink", unlink("d/f"));
    show("setxattr", setxattr("d/f", "user.x", "v", 1, 0));
    show("chown -1 -1", chown("d/f", (uid_t)-1, (gid_t)-1));
    become(0, 0);
    setxattr("d/f", "trusted.y", "v", 1, 0);
    show("list's size, for root", listxattr("d/f", NULL, 0));
    chmod("d/f", 06755);
    become(OTHER, OTHER);
    show("list's size", listxattr("d/f", NULL, 0));
    show("list", listxattr("d/f", (char[100]){ 0 }, 100));
    show("chown -1 -1 of 6755", chown("d/f", (uid_t)-1, (gid_t)-1));
    value("its mode", mode_of("d/f"));
    fd = open("d/f", O_RDONLY);
    show("fchown -1 -1 of 6755", fchown(fd, (uid_t)-1, (gid_t)-1));
    value("its mode", mode_of("d/f"));
    close(fd);
    become(0, 0);
    chmod("d/f", 02767);
    show("root's chown -1 -1 of 2767", chown("d/f", (uid_t)-1, (gid_t)-1));
    value("its mode", mode_of("d/f"));
    chmod("d/f", 06777);
    become(OTHER, OTHER);
    fd = open("d/f", O_RDWR);
    show("another's fallocate of 6777", fallocate(fd, 0, 0, 100));
    value("its mode", mode_of("d/f"));
    close(fd);
    become(0, 0);
    removexattr("d/f", "trusted.y");
    chmod("d/f", 0600);
    become(OTHER, OTHER);
    show("open 0600 for reading", open("d/f", O_RDONLY));
    show("getxattr of 0600", getxattr("d/f", "user.x", NULL, 0));
    show("access of 0600", eaccess("d/f", R_OK));
    become(0, 0);
    chmod("d", 0700);
    become(OTHER, OTHER);
    show("look into 0700", access("d/f", F_OK));
    show("list 0700", open("d", O_RDONLY | O_DIRECTORY));
    become(0, 0);

    /* sticky: only owners take away */
    mkdir("sticky", 0777);
    chmod("sticky", 01777);
    become(SOMEBODY, SOMEBODY);
    touch("sticky/mine");
    chmod("sticky/mine", 0666);
    mkdir("sticky/dir", 0777);
    become(OTHER, OTHER);
    touch("sticky/theirs");
    show("sticky: unlink", unlink("sticky/mine"));
    show("sticky: rename", rename("sticky/mine", "sticky/gone"));
    show("sticky: rename over", rename("sticky/theirs", "sticky/mine"));
    show("sticky: rmdir", rmdir("sticky/dir"));
    show("sticky: exchange", rename2("sticky/theirs", "sticky/mine", RENAME_EXCHANGE));
    show("sticky: rename of one's own", rename("sticky/theirs", "sticky/own"));
    become(SOMEBODY, SOMEBODY);
    show("sticky: owner's unlink", unlink("sticky/mine"));
    show("sticky: owner's rmdir", rmdir("sticky/dir"));
    become(0, 0);
    unlink("sticky/own");
    rmdir("sticky");

    /* setgid directories hand their group down */
    mkdir("sg", 0777);
    chown("sg", 0, OTHER);
    chmod("sg", 02777);
    become(SOMEBODY, SOMEBODY);
    touch("sg/f");
    mkdir("sg/d", 0755);
    stat("sg/f", &st);
    value("setgid: group of a file", st.st_gid);
    stat("sg/d", &st);
    value("setgid: group of a directory", st.st_gid);
    value("setgid: mode of a directory", st.st_mode);
    close(open("sg/x", O_CREAT | O_WRONLY, 02755));
    value("setgid: mode of a file made with it", mode_of("sg/x"));
    show("setgid: chmod with a foreign group", chmod("sg/f", 02755));
    value("setgid: mode", mode_of("sg/f"));
    show("setgid: rename that leaves a whiteout", rename2("sg/x", "sg/f", RENAME_WHITEOUT));
    become(0, 0);
    lstat("sg/x", &st);
    value("setgid: the whiteout's owner", st.st_uid);
    value("setgid: its group", st.st_gid);
    value("setgid: its mode", st.st_mode);
    unlink("sg/f");
    unlink("sg/x");
    rmdir("sg/d");
    rmdir("sg");

    /* suid and sgid go when others write */
#define CLEARS(what, before, action)                                                    \
    do {                                                                                \
        chmod("d/f", before);                                                           \
        become(SOMEBODY, SOMEBODY);                                                     \
        fd = open("d/f", O_RDWR);                                                       \
        (void)(action);                                                                 \
        close(fd);                                                                      \
        become(0, 0);                                                                   \
        printf("%s: %o after %s: %o\n", section, before, what, mode_of("d/f") & 07777); \
    } while (0)
    chmod("d", 0755);
    close(open("d/f", O_WRONLY | O_TRUNC));
    CLEARS("write", 06777, write(fd, "x", 1));
    CLEARS("write of nothing", 06777, write(fd, "x", 0));
    CLEARS("write", 06767, write(fd, "x", 1));
    CLEARS("ftruncate", 06777, ftruncate(fd, 10));
    CLEARS("open O_TRUNC", 06777, close(open("d/f", O_WRONLY | O_TRUNC)));
    CLEARS("fallocate", 06777, fallocate(fd, 0, 0, 100));
    CLEARS("chown to itself", 06777, fchown(fd, SOMEBODY, SOMEBODY));
    CLEARS("chown to itself", 06767, fchown(fd, SOMEBODY, SOMEBODY));
    CLEARS("chown -1 -1", 06777, fchown(fd, (uid_t)-1, (gid_t)-1));
    CLEARS("chmod", 06777, fchmod(fd, 06711));
    chmod("d/f", 06777);
    (void)!(fd = open("d/f", O_RDWR));
    (void)!write(fd, "x", 1);
    printf("%s: 6777 after root's write: %o\n", section, mode_of("d/f") & 07777);
    chmod("d/f", 06777);
    fchown(fd, OTHER, OTHER);
    printf("%s: 6777 after root's chown: %o\n", section, mode_of("d/f") & 07777);
    chmod("d/f", 06666);
    fchown(fd, SOMEBODY, SOMEBODY);
    printf("%s: 6666 after root's chown: %o\n", section, mode_of("d/f") & 07777);
    close(fd);
    for (unsigned mode = 02644; mode <= 06654; mode += 04010) {
        chown("d/f", SOMEBODY, OTHER);
        CLEARS("chgrp from a foreign group", mode, fchown(fd, (uid_t)-1, SOMEBODY));
        CLEARS("chgrp from one's own group", mode, fchown(fd, (uid_t)-1, SOMEBODY));
        chown("d/f", SOMEBODY, OTHER);
        CLEARS("chown to oneself, in a foreign group", mode, fchown(fd, SOMEBODY, (gid_t)-1));
        CLEARS("chown to oneself", mode, fchown(fd, SOMEBODY, SOMEBODY));
    }
    unlink("d/f");
    rmdir("d");
    end();
}

/* ---- directories ----------------------------------------------------------------------------- */

static int compare_names(const void *a, const void *b)
{
    return strcmp(*(char *const *)a, *(char *const *)b);
}

static void directories(void)
{
    enum { N = 2000 };
    begin("directories");
    char name[64];
    for (int i = 0; i < N; i++) {
        snprintf(name, sizeof name, "entry%04d-%.*s", i, i % 40,
                 "........................................");
        close(open(name, O_CREAT | O_WRONLY, 0644));
    }
    /* While it is read, entries come and go; those that stay are seen once. */
    DIR *d = opendir(".");
    static int seen[N];
    int extra = 0, dots = 0, strange = 0;
    struct dirent *e;
    for (int n = 0; (e = readdir(d)) != NULL; n++) {
        int i;
        if (strcmp(e->d_name, ".") == 0 || strcmp(e->d_name, "..") == 0)
            dots++;
        else if (sscanf(e->d_name, "entry%d", &i) == 1 && i < N)
            seen[i]++;
        else if (strncmp(e->d_name, "new", 3) == 0)
            extra++;
        else
            strange++;
        if (n % 10 == 0) {
            snprintf(name, sizeof name, "new%d", n);
            close(open(name, O_CREAT | O_WRONLY, 0644));
        }
        if (n % 7 == 0) { /* one of the multiples of 3 goes */
            int victim = n * 3 % N;
            victim -= victim % 3;
            snprintf(name, sizeof name, "entry%04d-%.*s", victim, victim % 40,
                     "........................................");
            unlink(name);
        }
    }
    int missed = 0, twice = 0;
    for (int i = 0; i < N; i++) {
        missed += i % 3 != 0 && seen[i] == 0;
        twice += seen[i] > 1;
    }
    value("dots", dots);
    value("missed", missed);
    value("twice", twice);
    value("strange", strange);
    (void)extra;

    /* Positions stay good. */
    rewinddir(d);
    long at = 0;
    char after[300] = "";
    for (int n = 0; (e = readdir(d)) != NULL; n++) {
        if (n == 500)
            at = telldir(d);
        if (n == 501)
            strcpy(after, e->d_name);
    }
    seekdir(d, at);
    e = readdir(d);
    truth("seekdir goes back", e != NULL && strcmp(e->d_name, after) == 0);
    for (int i = 1; i < N; i += 3) {
        snprintf(name, sizeof name, "entry%04d-%.*s", i, i % 40,
                 "........................................");
        if (strcmp(name, after) != 0)
            unlink(name);
    }
    seekdir(d, at);
    e = readdir(d);
    truth("also after entries went", e != NULL && strcmp(e->d_name, after) == 0);
    closedir(d);

    /* rm while reading, as rm -r does it, leaves nothing */
    d = opendir(".");
    while ((e = readdir(d)) != NULL)
        unlink(e->d_name);
    rewinddir(d);
    int left = 0;
    while (readdir(d) != NULL)
        left++;
    value("left after unlinking while reading", left - 2);
    closedir(d);

    /* types, and numbers equal to stat's */
    touch("file");
    mkdir("dir", 0755);
    symlink("x", "link");
    mkfifo("fifo", 0644);
    char *lines[8] = { 0 };
    int nr = 0;
    d = opendir(".");
    while ((e = readdir(d)) != NULL && nr < 8) {
        struct stat st;
        fstatat(dirfd(d), e->d_name, &st, AT_SYMLINK_NOFOLLOW);
        asprintf(&lines[nr++], "%s type %d, number as stat: %s", e->d_name, e->d_type,
                 st.st_ino == e->d_ino ? "yes" : "no");
    }
    closedir(d);
    qsort(lines, (size_t)nr, sizeof lines[0], compare_names);
    for (int i = 0; i < nr; i++) {
        printf("%s: %s\n", section, lines[i]);
        free(lines[i]);
    }
    unlink("file");
    rmdir("dir");
    unlink("link");
    unlink("fifo");
    end();
}

/* ---- locks ----------------------------------------------------------------------------------- */

static void locks(void)
{
    begin("locks");
    touch("f");
    int a = open("f", O_RDWR), b = open("f", O_RDWR);
    show("flock", flock(a, LOCK_EX | LOCK_NB));
    show("flock again", flock(b, LOCK_EX | LOCK_NB));
    show("unlock", flock(a, LOCK_UN));
    show("flock then", flock(b, LOCK_SH | LOCK_NB));
    struct flock l = { .l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = 10, .l_len = 10 };
    show("F_SETLK", fcntl(a, F_SETLK, &l));
    fflush(stdout);
    pid_t child = fork();
    if (child == 0) {
        l.l_start = 15;
        show("F_SETLK of a child", fcntl(b, F_SETLK, &l));
        l.l_start = 20;
        show("F_SETLK behind", fcntl(b, F_SETLK, &l));
        fflush(stdout);
        _exit(0);
    }
    waitpid(child, NULL, 0);
    l.l_type = F_WRLCK;
    show("F_OFD_SETLK",
         fcntl(b, F_OFD_SETLK, &(struct flock){ .l_type = F_WRLCK, .l_start = 100, .l_len = 1 }));
    close(a);
    close(b);
    unlink("f");
    end();
}

/* ---- what only we promise -------------------------------------------------------------------- */

static int wrong;
static void want(const char *what, long long got, long long expected)
{
    if (got != expected) {
        printf("%s: %lld, and not %lld (%s)\n", what, got, expected,
               got < 0 ? strerrorname_np(errno) : "no error");
        wrong++;
    }
}
static void want_error(const char *what, long long got, int error)
{
    if (got >= 0 || errno != error) {
        printf("%s: %s, and not %s\n", what, got >= 0 ? "no error" : strerrorname_np(errno),
               strerrorname_np(error));
        wrong++;
    }
}

/* A write behind 16 TiB is refused at once, or, where the kernel takes it into its own cache first,
 * at the fsync after it. */
static void want_too_big(const char *what, int fd, long long got, long long size)
{
    if (got >= 0) {
        want_error(what, fsync(fd), EFBIG);
        want("going back to the largest size", ftruncate(fd, size), 0);
        want("fsync after that", fsync(fd), 0);
    } else {
        want_error(what, got, EFBIG);
    }
}

static void own(void)
{
    const long long TIB16 = 1LL << 44;
    struct stat st;
    signal(SIGXFSZ, SIG_IGN);
    int fd = open("limits", O_RDWR | O_CREAT, 0644);
    want("truncate to 16 TiB", ftruncate(fd, TIB16), 0);
    fstat(fd, &st);
    want("size", st.st_size, TIB16);
    want("write of the last byte", pwrite(fd, "e", 1, TIB16 - 1), 1);
    char c = 0;
    want("read of the last byte", pread(fd, &c, 1, TIB16 - 1), 1);
    want("which is", c, 'e');
    want_error("truncate beyond", ftruncate(fd, TIB16 + 1), EFBIG);
    want_too_big("write beyond", fd, pwrite(fd, "x", 1, TIB16), TIB16);
    long long over = pwrite(fd, "xyz", 3, TIB16 - 2);
    if (over != 2)
        want_too_big("write over the border", fd, over, TIB16);
    char two[2] = "";
    want("read before the border", pread(fd, two, 2, TIB16 - 2), 2);
    want("what fitted is there", memcmp(two, "xy", 2), 0);
    want_error("fallocate beyond", fallocate(fd, 0, TIB16 - 10, 11), EFBIG);
    want_error("fallocate far beyond", fallocate(fd, 0, TIB16 * 2, 10), EFBIG);
    want_error("fallocate KEEP_SIZE beyond", fallocate(fd, FALLOC_FL_KEEP_SIZE, TIB16, 10), EFBIG);
    want_error("zero range beyond", fallocate(fd, FALLOC_FL_ZERO_RANGE, TIB16, 10), EFBIG);
    fstat(fd, &st);
    want("size stays", st.st_size, TIB16);
    want("SEEK_DATA finds the end", lseek(fd, 0, SEEK_DATA), TIB16 - PAGE);
    want("SEEK_HOLE from there", lseek(fd, TIB16 - PAGE, SEEK_HOLE), TIB16);
    int append = open("limits", O_WRONLY | O_APPEND);
    want_too_big("append", append, write(append, "x", 1), TIB16);
    close(append);
    (void)fsync(fd); /* this description may hear of the same error, once */
    want("fsync", fsync(fd), 0);
    fstat(fd, &st);
    want("it takes little space", st.st_blocks <= 16, 1);
    want("punch everything", fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, TIB16),
         0);
    want_error("then there is no data", lseek(fd, 0, SEEK_DATA), ENXIO);
    want("truncate to 0", ftruncate(fd, 0), 0);
    want_error("collapse", fallocate(fd, FALLOC_FL_COLLAPSE_RANGE, 0, PAGE), EOPNOTSUPP);
    close(fd);

    static char value_64k[65537];
    memset(value_64k, 'v', sizeof value_64k);
    want("xattr of 64 KiB", setxattr("limits", "user.v", value_64k, 65536, 0), 0);
    want("its size", getxattr("limits", "user.v", NULL, 0), 65536);
    want_error("xattr above", setxattr("limits", "user.w", value_64k, 65537, 0), E2BIG);
    want("unlink", unlink("limits"), 0);

    /* A number is never given twice. */
    char name[32];
    ino_t last = 0;
    for (int i = 0; i < 20; i++) {
        fd = open("again", O_CREAT | O_EXCL | O_RDWR, 0644);
        want("create again", fd >= 0, 1);
        fstat(fd, &st);
        want("a new inode number", st.st_ino > last, 1);
        last = st.st_ino;
        close(fd);
        unlink("again");
    }
    /* Reading a directory or a symlink changes its atime, as reading a file does. */
    struct timespec old[2] = { { 1, 0 }, { 2, 0 } };
    mkdir("listed", 0755);
    symlink("target", "read");
    utimensat(AT_FDCWD, "listed", old, 0);
    utimensat(AT_FDCWD, "read", old, AT_SYMLINK_NOFOLLOW);
    DIR *dir = opendir("listed");
    while (readdir(dir) != NULL)
        ;
    closedir(dir);
    want("readlink", readlink("read", name, sizeof name), 6);
    stat("listed", &st);
    want("a directory's atime", st.st_atim.tv_sec > 1, 1);
    lstat("read", &st);
    want("a symlink's atime", st.st_atim.tv_sec > 1, 1);
    rmdir("listed");
    unlink("read");

    /* Many links. */
    close(open("links", O_CREAT | O_RDWR, 0644));
    for (int i = 0; i < 1000; i++) {
        snprintf(name, sizeof name, "link%d", i);
        want("link", link("links", name), 0);
    }
    stat("links", &st);
    want("links", (long long)st.st_nlink, 1001);
    for (int i = 0; i < 1000; i++) {
        snprintf(name, sizeof name, "link%d", i);
        unlink(name);
    }
    unlink("links");
}

/* ---- file handles ------------------------------------------------------------------------------ */

struct handle {
    struct file_handle h;
    unsigned char bytes[MAX_HANDLE_SZ];
};

static int print_handle(const char *path)
{
    struct handle handle = { .h.handle_bytes = MAX_HANDLE_SZ };
    int mount;
    if (name_to_handle_at(AT_FDCWD, path, &handle.h, &mount, 0) != 0) {
        perror(path);
        return 1;
    }
    return fwrite(&handle, sizeof handle, 1, stdout) != 1;
}

static int open_handle(const char *directory)
{
    struct handle handle;
    char path[PATH_MAX] = "", name[64];
    int mount = open(directory, O_RDONLY | O_DIRECTORY);
    if (mount < 0 || fread(&handle, sizeof handle, 1, stdin) != 1)
        return 1;
    int fd = open_by_handle_at(mount, &handle.h, O_RDONLY);
    if (fd < 0) {
        puts(strerrorname_np(errno));
        return 0;
    }
    snprintf(name, sizeof name, "/proc/self/fd/%d", fd);
    if (readlink(name, path, sizeof path - 1) < 0)
        return 1;
    puts(path);
    char text[200];
    ssize_t n = read(fd, text, sizeof text);
    return n > 0 && write(STDERR_FILENO, text, (size_t)n) != n;
}

int main(int argc, char **argv)
{
    if (argc == 3 && strcmp(argv[1], "handle") == 0)
        return print_handle(argv[2]);
    if (argc == 3 && strcmp(argv[1], "by-handle") == 0)
        return open_handle(argv[2]);
    if (argc != 3 || chdir(argv[2]) != 0) {
        fprintf(stderr, "usage: posix_ops compare|own DIRECTORY\n");
        return 2;
    }
    umask(022);
    if (strcmp(argv[1], "own") == 0) {
        own();
        return wrong != 0;
    }
    names();
    links();
    renames();
    whiteouts();
    data();
    holes();
    mappings();
    modes();
    times();
    xattrs();
    directories();
    locks();
    if (geteuid() == 0)
        owners();
    return 0;
}
