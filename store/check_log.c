/* check_log.c: is the redo log there, and can it be read? What waits in it is no fault: a crash left it. */
#include <errno.h>

#include "store/check_internal.h"

void check_log(struct check *c)
{
    struct log_found found;

    if ((c->features & FEATURE_LOG) == 0)
        return;
    if (c->log.bytes == 0 || c->log.bytes != log_bytes_for(c->capacity)) {
        check_find(c, CHECK_LOG, false, "the log: %s",
                   c->log.bytes == 0 ? "missing" : "not as long as it was made");
        return;
    }
    c->log.fd = c->fd;
    c->error = log_read(&c->log, c->have_log_tail ? c->log_tail : LOG_NONE, NULL, &found);
    if (c->error != 0)
        return;
    c->summary.log_changes = found.changes;
    c->summary.log_damaged = found.damaged;
    if (found.changes > 0)
        check_find(c, CHECK_NOTE, false,
                   "%" PRIu64
                   " changes wait in the log: mounting, or a repair, puts them into place",
                   found.changes);
    if (!c->have_log_tail)
        check_find(c, CHECK_LOG, true,
                   "the log: where it begins is not recorded; what waits in it is lost");
    else if (found.damaged)
        check_find(c, CHECK_LOG, true,
                   "the log: damaged behind %" PRIu64
                   " records; what fsync reported after them is lost",
                   found.records);
}
