/* control_inject.h: the control socket's "inject": errors of the store, on purpose. */
#ifndef FOLIO_FS_CONTROL_INJECT_H
#define FOLIO_FS_CONTROL_INJECT_H

#include <jansson.h>

#include "fs/inode.h"
#include "store/dev_fault.h"

#define INJECT_NEEDS_OPTION "no errors can be injected here: mount with -o inject"

/* Do what args say (fs/control.h), for inode alone or, with NULL, for the whole volume.
 * Returns NULL, or what is wrong with them. Any thread. */
const char *inject_apply(struct device *faults, const json_t *args, struct inode *inode);
/* The rules as they are, for "rules".   A new reference, or NULL: no memory. */
json_t *inject_rules(struct device *faults);

#endif
