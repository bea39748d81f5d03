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
