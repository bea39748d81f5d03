/* libfolio_maps.c: what protection the ranges have, from /proc: mprotect(2) does not tell us, and a
 * child's mappings, and a moved one, are to be as accessible as they were. */
#include "cache/libfolio.h"

#include <fcntl.h>
#include <stdio.h>

#define LINE_BYTES 48 /* of a line, what comes before the offset: "start-end perms" */

static void learn_line(const char *line)
{
    unsigned long start, end;
    char perms[5];

    if (sscanf(line, "%lx-%lx %4s", &start, &end, perms) != 3)
        return;
    int prot = (perms[0] == 'r' ? PROT_READ : 0) | (perms[1] == 'w' ? PROT_WRITE : 0) |
               (perms[2] == 'x' ? PROT_EXEC : 0);
    table_lock();
    table_protect(start, end, prot);
    table_unlock();
}

long maps_learn(void *unused)
{
    char buffer[4096], line[LINE_BYTES + 1];
    size_t length = 0;
    ssize_t got;

    (void)unused;
    /* Not self: a main thread that has left has no maps. */
    int fd = open("/proc/thread-self/maps", O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return -errno;
    while ((got = read(fd, buffer, sizeof(buffer))) > 0) {
        for (ssize_t i = 0; i < got; i++) {
            if (buffer[i] == '\n') {
                line[length] = '\0';
                learn_line(line);
                length = 0;
            } else if (length < LINE_BYTES) {
                line[length++] = buffer[i];
            }
        }
    }
    long error = got < 0 ? -errno : 0;
    close(fd);
    return error;
}
