/* attach_door.h: attached mappings of a mount: its socket, and which descriptor may map which file.
 *
 * A client shows a descriptor of the file; its open mode decides, as mmap(2) has it:
 *
 *     not a file of this mount        EOPNOTSUPP      no pages (a directory, a device)   ENODEV
 *     O_PATH                          EBADF           not open for reading               EACCES
 *     shared, writable, not O_RDWR    EACCES          beyond 16 TiB                      EOVERFLOW
 *
 * A shared mapping of a descriptor open for reading and writing may be stored to, whatever it asked for
 * (mprotect(2) may follow); any other is given pages it can only read.
 */
#ifndef FOLIO_FS_ATTACH_DOOR_H
#define FOLIO_FS_ATTACH_DOOR_H

#include "cache/attach.h"

struct fs;
struct store_error;
struct attach_door;

/* Open the socket of the mount at mountpoint_abs, and serve it. Call when it is mounted.
 * Errors as control_start(); error says it in words. */
int attach_door_open(struct fs *fs, const char *mountpoint_abs, struct attach_door **out,
                     struct store_error *error);
/* Hang up on everybody; what they stored is dirty in the cache. NULL is allowed. */
void attach_door_close(struct attach_door *door);
/* NULL: zeros. */
void attach_door_stats(struct attach_door *door, struct attach_stats *out);

#endif
