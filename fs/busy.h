/* busy.h: a volume whose mount has just been taken down is busy for a moment more.
 *
 * umount(8) returns before a FUSE daemon has written everything back: nothing lets it wait. So a
 * program that finds a volume in use waits a while, unless the volume is still mounted.
 */
#ifndef FOLIO_FS_BUSY_H
#define FOLIO_FS_BUSY_H

#include <stdbool.h>

/* One turn of waiting; tries starts at 0.   Returns false: it is mounted, or has taken too long. */
bool busy_wait(const char *volume, unsigned *tries);

#endif
