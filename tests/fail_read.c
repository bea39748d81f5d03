/* fail_read.c: a library for LD_PRELOAD with which a program's large reads, as those of requests from /dev/fuse, fail with
 * EIO as soon as the file that FOLIO_FAIL_READ names exists. */
#define _GNU_SOURCE
#include <errno.h>
#include <stdlib.h>
#include <unistd.h>

#define LARGE (1u << 20)

/* read(2), and a point of cancellation as it is */
ssize_t __read_chk(int fd, void *buf, size_t size, size_t room);

ssize_t read(int fd, void *buf, size_t size)
{
    const char *failing = getenv("FOLIO_FAIL_READ");
    if (size >= LARGE && failing != NULL && access(failing, F_OK) == 0) {
        errno = EIO;
        return -1;
    }
    return __read_chk(fd, buf, size, size);
}
