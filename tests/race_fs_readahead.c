/* Other readahead policies while files are opened, read and closed, for ASan and TSan: who has a file
 * open when everything is over reads ahead as was set last. */
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "fs/data.h"
#include "fs/dir.h"

#define FILES      8u
#define READERS    2u
#define FILE_PAGES 64u

static const struct ra_policy *const policies[] = { &ra_linux, &ra_none, &ra_fixed, &ra_stride,
                                                    &ra_leap };
#define POLICIES (sizeof policies / sizeof policies[0])

struct world {
    struct fs *fs;
    struct inode *inodes[FILES];
    struct open_file *files[READERS][FILES]; /* each reader's own */
    _Atomic bool over;
};

struct reader {
    struct world *w;
    unsigned number;
};

static void require(bool ok, const char *what)
{
    if (!ok) {
        fprintf(stderr, "%s\n", what);
        abort();
    }
}

static void make_files(struct world *w)
{
    static char buf[FILE_PAGES << PAGE_SHIFT];
    static const struct cred cred = { .uid = 1, .gid = 1 };
    struct inode *root;
    char name[32];
    require(inode_get(w->fs, ROOT_INO, &root) == 0, "root");
    for (unsigned i = 0; i < FILES; i++) {
        struct open_file *file;
        snprintf(name, sizeof name, "f%u", i);
        require(dir_mknod(root, name, S_IFREG | 0644, 0, &cred, &w->inodes[i]) == 0, "mknod");
        require(file_open(w->inodes[i], O_RDWR, &file) == 0, "open");
        require(file_write(file, 0, buf, sizeof buf, 0) == sizeof buf, "write");
        file_release(file);
    }
    inode_put(root, 1);
}

/* Close and open one file after the other, and read some of it; all are open at the end. */
static void *read_files(void *arg)
{
    struct reader *r = arg;
    struct world *w = r->w;
    unsigned seed = r->number + 1;
    char buf[3 << PAGE_SHIFT];
    for (unsigned i = 0; !w->over || i % FILES != 0; i++) {
        struct open_file **file = &w->files[r->number][i % FILES];
        if (*file != NULL)
            file_release(*file);
        require(file_open(w->inodes[i % FILES], O_RDONLY, file) == 0, "open");
        for (unsigned n = 0; n < 4; n++) {
            uint64_t index = (unsigned)rand_r(&seed) % FILE_PAGES;
            require(file_read(*file, index << PAGE_SHIFT, buf, sizeof buf) > 0, "read");
        }
        if (i % FILES == 0)
            page_cache_drop(w->fs->cache);
    }
    return NULL;
}

static void change(struct world *w, unsigned *seed)
{
    const struct ra_policy *policy = policies[(unsigned)rand_r(seed) % POLICIES];
    struct inode *inode = w->inodes[(unsigned)rand_r(seed) % FILES];
    uint32_t pages = 1 + (unsigned)rand_r(seed) % 64;
    switch ((unsigned)rand_r(seed) % 4) {
    case 0:
        inode_set_ra_policy(inode, rand_r(seed) % 2 ? policy : NULL);
        break;
    case 1:
        inode_set_ra_pages(inode, rand_r(seed) % 2 ? pages : 0);
        break;
    default:
        require(fs_set_readahead(w->fs, &(struct readahead){ policy, pages }) == 0, "set");
    }
}

static void check_and_close(struct world *w)
{
    for (unsigned r = 0; r < READERS; r++)
        for (unsigned i = 0; i < FILES; i++) {
            struct open_file *file = w->files[r][i];
            struct readahead ra = inode_readahead(w->inodes[i]);
            if (file == NULL)
                continue;
            require(atomic_load(&file->ra.policy) == ra.policy, "not the policy that was set");
            require(atomic_load(&file->ra.ra_pages) == ra.pages, "not the window that was set");
            file_release(file);
        }
}

static void round_trip(struct world *w, unsigned *seed)
{
    pthread_t threads[READERS];
    struct reader readers[READERS];
    memset(w->files, 0, sizeof w->files);
    w->over = false;
    for (unsigned r = 0; r < READERS; r++) {
        readers[r] = (struct reader){ w, r };
        require(pthread_create(&threads[r], NULL, read_files, &readers[r]) == 0, "thread");
    }
    for (unsigned i = 0; i < 500; i++)
        change(w, seed);
    w->over = true;
    for (unsigned r = 0; r < READERS; r++)
        pthread_join(threads[r], NULL);
    check_and_close(w);
}

int main(void)
{
    const char *seconds = getenv("FOLIO_SECONDS");
    char home[] = "/tmp/folio-readahead.XXXXXX", volume[64];
    struct store_format f = { .capacity = 0 };
    struct fs_options o = { .threads = true, .cache = { .cache_bytes = 1 << 20 } };
    struct store_error error;
    static struct world w;
    require(mkdtemp(home) != NULL, "mkdtemp");
    snprintf(volume, sizeof volume, "%s/v", home);
    require(store_format(volume, &f, &error) == 0, "format");
    require(fs_mount(volume, &o, &w.fs, &error) == 0, "mount");
    make_files(&w);
    time_t end = time(NULL) + (seconds != NULL ? atoi(seconds) : 5);
    unsigned rounds = 0, seed = 1;
    for (; time(NULL) < end; rounds++)
        round_trip(&w, &seed);
    for (unsigned i = 0; i < FILES; i++)
        inode_put(w.inodes[i], 1);
    require(fs_unmount(w.fs) == 0, "unmount");
    unlink(volume);
    rmdir(home);
    printf("%u rounds\n", rounds);
    return 0;
}
