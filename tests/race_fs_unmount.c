/* Unmounting while the flusher and the readahead worker are at work, for ASan and TSan. */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "fs/data.h"
#include "fs/dir.h"
#include "fs/fs.h"

#define FILES 20

static void require(bool ok, const char *what)
{
    if (!ok) {
        fprintf(stderr, "%s\n", what);
        abort();
    }
}

static void round_trip(const char *volume, unsigned round)
{
    static char buf[64 << 10];
    static const struct cred cred = { .uid = 1, .gid = 1 };
    struct fs_options o = {
        .threads = true,
        .cache = { .cache_bytes = 1 << 20, .dirty_writeback_ms = 1, .dirty_expire_ms = 1 }
    };
    struct store_error error;
    struct fs *fs;
    struct inode *root, *inode;
    char name[32];
    require(fs_mount(volume, &o, &fs, &error) == 0, "mount");
    require(inode_get(fs, ROOT_INO, &root) == 0, "root");
    for (unsigned i = 0; i < FILES; i++) {
        struct open_file *file = NULL;
        snprintf(name, sizeof name, "f%u", i);
        int err = round == 0 ? dir_mknod(root, name, S_IFREG | 0644, 0, &cred, &inode)
                             : dir_lookup(root, name, &inode);
        require(err == 0 && file_open(inode, O_RDWR, &file) == 0, "open");
        memset(buf, (int)round, sizeof buf);
        require(file_read(file, 0, buf, 1) >= 0, "read");
        require(file_write(file, 0, buf, sizeof buf, 0) == sizeof buf, "write");
        file_release(file);
        inode_put(inode, 1);
    }
    inode_put(root, 1);
    require(fs_unmount(fs) == 0, "unmount");
}

int main(void)
{
    const char *seconds = getenv("FOLIO_SECONDS");
    char home[] = "/tmp/folio-unmount.XXXXXX", volume[64];
    struct store_format f = { .capacity = 0 };
    struct store_error error;
    require(mkdtemp(home) != NULL, "mkdtemp");
    snprintf(volume, sizeof volume, "%s/v", home);
    require(store_format(volume, &f, &error) == 0, "format");
    time_t end = time(NULL) + (seconds != NULL ? atoi(seconds) : 5);
    unsigned round = 0;
    while (time(NULL) < end)
        round_trip(volume, round++);
    unlink(volume);
    rmdir(home);
    printf("%u rounds\n", round);
    return 0;
}
