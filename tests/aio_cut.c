/* aio_cut DIRECTORY FILES: asynchronous writes inside each file, which is cut while they are under way. They come before
 * the truncation or after it; what follows from that is for all to see who look at the file: prints each file's size. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <linux/aio_abi.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#define WRITES 8u
#define LEN    (512u * 1024)

static void die(const char *what)
{
    perror(what);
    exit(1);
}

int main(int argc, char **argv)
{
    aio_context_t context = 0;
    char name[32], *buf = aligned_alloc(4096, LEN);
    unsigned files = argc == 3 ? (unsigned)atoi(argv[2]) : 0;
    if (files == 0 || buf == NULL || chdir(argv[1]) != 0 ||
        syscall(SYS_io_setup, WRITES, &context) != 0)
        die("aio_cut DIRECTORY FILES");
    memset(buf, 'z', LEN);
    for (unsigned i = 0; i < files; i++) {
        struct iocb cb[WRITES] = { 0 }, *list[WRITES];
        struct io_event events[WRITES];
        struct stat st;
        snprintf(name, sizeof name, "cut%u", i);
        int fd = open(name, O_RDWR | O_CREAT | O_DIRECT, 0644);
        if (fd < 0 || ftruncate(fd, WRITES * LEN) != 0)
            die(name);
        for (unsigned k = 0; k < WRITES; k++) {
            cb[k].aio_fildes = (unsigned)fd;
            cb[k].aio_lio_opcode = IOCB_CMD_PWRITE;
            cb[k].aio_buf = (unsigned long)buf;
            cb[k].aio_nbytes = LEN;
            cb[k].aio_offset = k * LEN;
            list[k] = &cb[k];
        }
        if (syscall(SYS_io_submit, context, WRITES, list) != WRITES || ftruncate(fd, 4096) != 0 ||
            syscall(SYS_io_getevents, context, WRITES, WRITES, events, NULL) != WRITES)
            die(name);
        for (unsigned k = 0; k < WRITES; k++)
            if (events[k].res != LEN)
                die("a write is short");
        /* What is written after it counts. */
        if (pwrite(fd, buf, 4096, (i % 2) * 4096) != 4096 || fstat(fd, &st) != 0)
            die(name);
        printf("%s %lld\n", name, (long long)st.st_size);
        close(fd);
    }
    return 0;
}
