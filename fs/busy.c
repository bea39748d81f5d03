#include "fs/busy.h"

#include <limits.h>
#include <mntent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define BUSY_WAIT_MS 50
#define BUSY_TRIES   200u /* ten seconds */

/* Does a mount with the default fsname show the volume? Then it is in use, not on its way out. */
static bool is_mounted(const char *volume)
{
    char path[PATH_MAX];
    FILE *mounts = setmntent("/proc/self/mounts", "r");
    struct mntent *m;
    bool found = false;
    if (realpath(volume, path) == NULL)
        path[0] = '\0';
    while (mounts != NULL && !found && (m = getmntent(mounts)) != NULL)
        found = strncmp(m->mnt_type, "fuse", 4) == 0 && strcmp(m->mnt_fsname, path) == 0;
    if (mounts != NULL)
        endmntent(mounts);
    return found;
}

bool busy_wait(const char *volume, unsigned *tries)
{
    struct timespec pause = { .tv_nsec = BUSY_WAIT_MS * 1000000L };
    if ((*tries)++ >= BUSY_TRIES || is_mounted(volume))
        return false;
    nanosleep(&pause, NULL);
    return true;
}
