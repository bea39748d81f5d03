/* control_path.h: from a mount to the place of its control socket: what daemon and tool agree on. */
#ifndef FOLIO_FS_CONTROL_PATH_H
#define FOLIO_FS_CONTROL_PATH_H

#include <limits.h>
#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>

#define CONTROL_PATH_BYTES  108u /* sizeof sun_path */
#define CONTROL_DIRECTORIES 2u   /* places to look, the best first */

/* The n-th directory (0 .. CONTROL_DIRECTORIES-1) for a daemon of uid. */
void control_directory(unsigned n, uid_t uid, char path[CONTROL_PATH_BYTES]);
/* The socket in that directory for the mount with device number dev. */
void control_socket(unsigned n, uid_t uid, dev_t dev, char path[CONTROL_PATH_BYTES]);

/* The file of a socket, to tell it from another one at its path. */
struct socket_file {
    dev_t dev;
    ino_t ino;
};

/* Bind a socket to path (shorter than sun_path), in place of a dead daemon's: the kernel gives a device number to
 * one mount at a time. Then listen.   Returns 0 or -errno; nothing is left there then. */
int socket_bind(int sock, const char *path, mode_t mode, int backlog, struct socket_file *out);
/* Remove it, unless another daemon has put its own there: the kernel has given our mount's number away as soon as
 * that was unmounted. */
void socket_unlink(const char *path, const struct socket_file *ours);

/* One line of /proc/self/mountinfo, as far as we care. */
struct mount_entry {
    dev_t dev;
    uid_t uid; /* who mounted it (FUSE's user_id=); 0 for others */
    char type[64];
    char mountpoint[PATH_MAX];
};

/* The mount with that device number / the topmost at that path.   Returns 0; -ENOENT; -errno of
 * reading.   Blocks: never on a mount: no path is walked. */
int mount_find_dev(dev_t dev, struct mount_entry *out);
int mount_find_path(const char *mountpoint, struct mount_entry *out);

/* Is it a FUSE mount? */
bool mount_is_fuse(const struct mount_entry *m);

#endif
