/* control_json.h: what the control socket's commands do, as JSON in and JSON out. */
#ifndef FOLIO_FS_CONTROL_JSON_H
#define FOLIO_FS_CONTROL_JSON_H

#include <jansson.h>

#include "fs/fs.h"

struct control_commands {
    struct fs *fs;            /* constant */
    pthread_mutex_t set_lock; /* one "set" at a time; outermost of all locks */
};

/* Do what the line (len bytes, one request) asks for.   Returns the reply, a new reference, also
 * for requests that make no sense; NULL: no memory.   Any thread.   Blocks: as the command does. */
json_t *control_answer(struct control_commands *c, const char *line, size_t len);

#endif
