#include "store/volume_lock.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include "store/error.h"

#define REPLACED_TRIES 8 /* mkfs may replace the file between our open and our lock */

/* ---- who holds it ---------------------------------------------------------------------------- */

/* The process that locked the file, from lines like
 *     1: FLOCK  ADVISORY  WRITE 1234 fe:00:5678 0 EOF
 * A line with "->" waits for the one above. The device in stat(2) and here differ on some file
 * systems (btrfs, overlay): then the inode number alone decides.   Returns 0: not found. */
static long find_holder(const struct stat *st)
{
    char line[256], kind[16];
    unsigned dev_major, dev_minor;
    unsigned long inode;
    long pid, by_inode = 0, exact = 0;
    FILE *locks = fopen("/proc/locks", "re");
    if (locks == NULL)
        return 0;
    while (exact == 0 && fgets(line, sizeof line, locks) != NULL) {
        if (sscanf(line, "%*s %15s %*s %*s %ld %x:%x:%lu", kind, &pid, &dev_major, &dev_minor,
                   &inode) != 5)
            continue;
        if (strcmp(kind, "FLOCK") != 0 || inode != st->st_ino || pid <= 0)
            continue;
        by_inode = pid;
        if (dev_major == major(st->st_dev) && dev_minor == minor(st->st_dev))
            exact = pid;
    }
    (void)fclose(locks);
    return exact != 0 ? exact : by_inode;
}

/* Read /proc/PID/name as one line: NULs and control characters become spaces. */
static void read_proc(long pid, const char *name, char *out, size_t size)
{
    char path[64];
    size_t len = 0;
    (void)snprintf(path, sizeof path, "/proc/%ld/%s", pid, name);
    FILE *f = fopen(path, "re");
    if (f != NULL) {
        len = fread(out, 1, size - 1, f);
        (void)fclose(f);
    }
    for (size_t i = 0; i < len; i++)
        if ((unsigned char)out[i] < ' ')
            out[i] = ' ';
    while (len > 0 && out[len - 1] == ' ')
        len--;
    out[len] = '\0';
}

static int in_use(const char *path, const struct stat *st, struct store_error *error)
{
    char comm[32], command[160];
    long pid = find_holder(st);
    if (pid == 0)
        return store_fail(error, -EBUSY,
                          "%s: is in use by another process; unmount it first "
                          "(fusermount3 -u MOUNTPOINT)",
                          path);
    read_proc(pid, "comm", comm, sizeof comm);
    if (comm[0] == '\0')
        return store_fail(error, -EBUSY,
                          "%s: is in use by a child of process %ld, which has ended; find it with "
                          "fuser %s",
                          path, pid, path);
    read_proc(pid, "cmdline", command, sizeof command);
    return store_fail(error, -EBUSY,
                      "%s: is in use by process %ld (%s: %s); unmount it first "
                      "(fusermount3 -u MOUNTPOINT), or wait until it ends",
                      path, pid, comm, command);
}

/* ---- the lock -------------------------------------------------------------------------------- */

static int refuse_kind(const char *path, mode_t mode, struct store_error *error)
{
    if (S_ISDIR(mode))
        return store_fail(error, -EISDIR, "%s: is a directory; name the volume file", path);
    return store_fail(error, -EINVAL, "%s: is not a regular file; a volume is one", path);
}

static int open_error(const char *path, bool create, int err, struct store_error *error)
{
    if (path[0] == '\0')
        return store_fail(error, -ENOENT, "the volume's name is empty; give that of a file");
    if (err == ENOENT && create)
        return store_fail(error, -ENOENT,
                          "%s: its directory does not exist; make it first, or check the name",
                          path);
    if (err == ENOENT)
        return store_fail(error, -ENOENT,
                          "%s: does not exist; check the name, or make it with mkfs.foliofs", path);
    if (err == EACCES || err == EPERM)
        return store_fail(error, -err, "%s: %s; become its owner, or change its mode", path,
                          strerror(err));
    return store_fail(error, -err, "%s: cannot be opened: %s", path, strerror(err));
}

/* Open for writing, since locks need that on NFS; for reading where writing is not allowed. */
static int open_volume(const char *path, bool create)
{
    int flags = O_CLOEXEC | O_NONBLOCK | O_NOCTTY | (create ? O_CREAT : 0);
    int fd = open(path, O_RDWR | flags, 0600);
    if (fd >= 0)
        return fd;
    int err = errno;
    if (err == EACCES || err == EROFS || err == EPERM)
        fd = open(path, O_RDONLY | (flags & ~O_CREAT));
    return fd >= 0 ? fd : -err;
}

/* Returns the descriptor; -ESTALE: the path names another file by now. */
static int lock_once(const char *path, bool create, struct store_error *error)
{
    struct stat st, named;
    /* Before opening: opening a device or a fifo can have effects. */
    if (stat(path, &st) == 0 && !S_ISREG(st.st_mode))
        return refuse_kind(path, st.st_mode, error);
    int fd = open_volume(path, create);
    if (fd < 0)
        return open_error(path, create, -fd, error);
    int rc = fstat(fd, &st) != 0 ? open_error(path, create, errno, error) : 0;
    if (rc == 0 && !S_ISREG(st.st_mode))
        rc = refuse_kind(path, st.st_mode, error);
    if (rc == 0 && flock(fd, LOCK_EX | LOCK_NB) != 0) {
        rc = errno == EWOULDBLOCK ? in_use(path, &st, error)
                                  : store_fail(error, -errno,
                                               "%s: cannot be locked: %s; use a file system with "
                                               "flock(2)",
                                               path, strerror(errno));
    }
    if (rc == 0 &&
        (stat(path, &named) != 0 || named.st_ino != st.st_ino || named.st_dev != st.st_dev))
        rc = store_fail(error, -ESTALE, "%s: is being replaced; try again", path);
    if (rc == 0)
        return fd;
    (void)close(fd);
    return rc;
}

int volume_lock(const char *path, bool create, struct store_error *error)
{
    int rc = -ESTALE;
    for (int i = 0; rc == -ESTALE && i < REPLACED_TRIES; i++)
        rc = lock_once(path, create, error);
    return rc;
}
