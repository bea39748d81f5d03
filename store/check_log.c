/* check_log.c: is the redo log there, and can it be read? What waits in it is no fault: a crash left it. */
#include <errno.h>

#include "store/check_internal.h"

void check_log(struct check *c)
{
    struct log_found found;

    if ((c->features & FEATURE_LOG) == 0)
        return;
    if (c->log.bytes == 0 || !c->have_log_tail) {
        check_find(c, CHECK_LOG, false, "the log: %s",
                   c->log.bytes == 0 ? "missing" : "where it begins is not recorded");
        return;
    }
    c->log.fd = c->fd;
    int err = log_read(&c->log, c->log_tail, NULL, &found);
    if (err == -ENOMEM)
        c->error = err;
    else if (err != 0)
        check_find(c, CHECK_LOG, false, "the log: cannot be read");
    if (err != 0)
        return;
    c->summary.log_changes = found.changes;
    c->summary.log_damaged = found.damaged;
    if (found.changes > 0)
        check_find(c, CHECK_NOTE, false,
                   "%" PRIu64
                   " changes wait in the log: mounting, or a repair, puts them into place",
                   found.changes);
    if (found.damaged)
        check_find(c, CHECK_LOG, true,
                   "the log: damaged at position %" PRIu64 "; what fsync reported after it is lost",
                   found.head);
}
