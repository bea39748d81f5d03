#include "fs/attach_door.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include "cache/attach_proto.h"
#include "cache/memfd.h"
#include "fs/control_path.h"
#include "fs/daemon.h"
#include "fs/data.h"
#include "store/error.h"

#define BACKLOG 128

struct attach_door { /* constant while it is open */
    struct fs *fs;
    struct attach *attach;
    dev_t dev;
    char path[CONTROL_PATH_BYTES + sizeof ATTACH_SOCKET_SUFFIX];
    struct socket_file file;
};

/* ---- which file ------------------------------------------------------------------------------ */

/* The inode number behind a client's descriptor. Asking must not ask us: what the kernel knows is
 * enough. */
static int identify(const struct attach_door *door, int fd, uint64_t *ino)
{
    struct statx st;
    if (statx(fd, "", AT_EMPTY_PATH | AT_STATX_DONT_SYNC, STATX_TYPE | STATX_INO, &st) != 0)
        return -errno;
    if (makedev(st.stx_dev_major, st.stx_dev_minor) != door->dev)
        return -EOPNOTSUPP;
    *ino = st.stx_ino;
    return S_ISREG(st.stx_mode) ? 0 : -ENODEV;
}

static int check_request(const struct attach_request *rq, int flags)
{
    bool shared = (rq->flags & MAP_TYPE) != MAP_PRIVATE;
    if (flags & O_PATH)
        return -EBADF;
    if ((flags & O_ACCMODE) == O_WRONLY)
        return -EACCES;
    if (shared && (rq->prot & PROT_WRITE) && (flags & O_ACCMODE) != O_RDWR)
        return -EACCES;
    if (rq->offset > MAX_FILE_SIZE || rq->length > MAX_FILE_SIZE - rq->offset)
        return -EOVERFLOW;
    return 0;
}

static int door_open(void *arg, int fd, const struct attach_request *rq, struct attach_file *out)
{
    struct attach_door *door = arg;
    struct inode *inode;
    struct open_file *file;
    uint64_t ino = 0;
    int flags = fcntl(fd, F_GETFL);
    int err = flags < 0 ? -errno : check_request(rq, flags);
    if (err == 0)
        err = identify(door, fd, &ino);
    if (err != 0)
        return err;
    err = inode_get(door->fs, ino, &inode);
    if (err != 0)
        return err;
    err = inode_share_pages(inode);
    bool shared = err == 0;
    if (err == 0)
        err = file_open(inode, flags & O_ACCMODE, &file);
    if (err != 0 && shared)
        mapping_unuse_memfd(&inode->mapping);
    inode_put(inode, 1);
    if (err != 0)
        return err;
    *out = (struct attach_file){ .mapping = &file->inode->mapping,
                                 .ra = &file->ra,
                                 .owner = file,
                                 .number = ino,
                                 .writable = (rq->flags & MAP_TYPE) != MAP_PRIVATE &&
                                             (flags & O_ACCMODE) == O_RDWR };
    return 0;
}

static void door_release(void *arg, void *owner)
{
    struct open_file *file = owner;
    (void)arg;
    mapping_unuse_memfd(&file->inode->mapping);
    file_release(file);
}

static void door_stuck(void *arg, pid_t pid, uint64_t number, unsigned seconds)
{
    const struct attach_door *door = arg;
    char whom[60] = "a thread of this daemon";
    if (number != 0)
        (void)snprintf(whom, sizeof whom, "who uses inode %llu", (unsigned long long)number);
    daemon_say("process %d has kept its memory locked for %u s, and %s waits for it: end what "
               "it waits for (see /proc/%d/task/*/stack); if that is this mount: echo 1 "
               ">/sys/fs/fuse/connections/%u/abort",
               (int)pid, seconds, whom, (int)pid, minor(door->dev));
}

static void door_kept(void *arg, unsigned nr, unsigned seconds)
{
    (void)arg;
    daemon_say(
        "a process that has attached a file has been writing into its memory for %u s without "
        "end: %u requests wait for it, and pages of attached files stay in the cache; end it "
        "(a thread of it sleeps in write(2) or the like: /proc/PID/task/*/syscall)",
        seconds, nr);
}

static void door_waiting(void *arg, unsigned nr)
{
    const struct attach_door *door = arg;
    const struct fs *fs = door->fs;
    page_cache_more_flushers(fs->cache, nr + 1);
    if (fs->options.more_threads != NULL)
        fs->options.more_threads(fs->options.front, nr + 1);
}

/* ---- the socket ------------------------------------------------------------------------------ */

/* Root's sockets are for everybody: what a client may do, its descriptor says. */
static int socket_path(struct attach_door *door)
{
    struct stat st;
    if (geteuid() != 0) {
        char path[CONTROL_PATH_BYTES];
        for (unsigned n = 0; n < CONTROL_DIRECTORIES; n++) {
            control_socket(n, geteuid(), door->dev, path);
            if (access(path, F_OK) != 0)
                continue; /* the control socket is in the directory that will do */
            (void)snprintf(door->path, sizeof door->path, "%s" ATTACH_SOCKET_SUFFIX, path);
            return 0;
        }
        return -EACCES;
    }
    if (mkdir(ATTACH_ROOT_DIRECTORY, 0755) != 0 && errno != EEXIST)
        return -errno;
    if (lstat(ATTACH_ROOT_DIRECTORY, &st) != 0 || !S_ISDIR(st.st_mode) || st.st_uid != 0 ||
        (st.st_mode & 0022) != 0 || chmod(ATTACH_ROOT_DIRECTORY, 0755) != 0)
        return -EACCES;
    (void)snprintf(door->path, sizeof door->path, ATTACH_ROOT_DIRECTORY "/%u:%u", major(door->dev),
                   minor(door->dev));
    return 0;
}

static int bind_socket(struct attach_door *door, int sock)
{
    int err = socket_path(door);
    return err != 0
               ? err
               : socket_bind(sock, door->path, geteuid() == 0 ? 0666 : 0600, BACKLOG, &door->file);
}

int attach_door_open(struct fs *fs, const char *mountpoint_abs, struct attach_door **out,
                     struct store_error *error)
{
    static const struct attach_ops ops = { .open = door_open,
                                           .release = door_release,
                                           .stuck = door_stuck,
                                           .kept = door_kept,
                                           .waiting = door_waiting };
    struct mount_entry *mount = malloc(sizeof *mount);
    struct attach_door *door = calloc(1, sizeof *door);
    int sock = -1, err = mount == NULL || door == NULL ? -ENOMEM : 0;
    if (err == 0)
        err = mount_find_path(mountpoint_abs, mount);
    if (err == 0) {
        door->fs = fs;
        door->dev = mount->dev;
        sock = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
        err = sock < 0 ? -errno : bind_socket(door, sock);
    }
    if (err == 0)
        err = attach_start(&door->attach, sock, &ops, door);
    free(mount);
    if (err == 0) {
        *out = door;
        return 0;
    }
    if (sock >= 0)
        close(sock);
    if (door != NULL && door->path[0] != '\0')
        socket_unlink(door->path, &door->file);
    free(door);
    return store_fail(error, err, "%s: no socket for attached mappings: %s", mountpoint_abs,
                      strerror(-err));
}

void attach_door_close(struct attach_door *door)
{
    if (door == NULL)
        return;
    socket_unlink(door->path, &door->file);
    attach_stop(door->attach);
    free(door);
}

void attach_door_stats(struct attach_door *door, struct attach_stats *out)
{
    if (door != NULL)
        attach_stats(door->attach, out);
    else
        *out = (struct attach_stats){ 0 };
}
