/* volume_lock.h: a volume is opened by one process at a time.
 *
 * The lock is flock(2) on the volume file itself, held by a descriptor of its own: it goes with the
 * process, however it ends. The holder is found in /proc/locks, so that the second one is told who.
 */
#ifndef FOLIO_STORE_VOLUME_LOCK_H
#define FOLIO_STORE_VOLUME_LOCK_H

#include "store/store.h"

/* Lock the file at path.   Returns a descriptor to be closed by the caller; -EBUSY with the
 * holder's process id and command in error; -errno of open(2).
 * create: make it, empty, when absent. */
int volume_lock(const char *path, bool create, struct store_error *error);

#endif
