/* null_fuse.c: a FUSE server that does nothing, with the loop and the hooks of foliofs.
 *
 *   bench_null_fuse [--stock | --ring] MOUNTPOINT
 *
 * What a request costs here is the price of the way to a server and back: the bound of every FUSE
 * filesystem that works as ours does. It runs in the foreground until it is unmounted.
 *
 * --stock: libfuse's loop as it comes, without our hooks and our number of threads.
 * --ring: FUSE over io_uring, as foliofs -o io_uring.
 *
 * "data" reads as a constant buffer, past every cache. Other files are named by a number after any
 * letters, are empty, and live as one bit each: enough for bench_meta. Nothing is listed.
 */
#include <errno.h>
#include <fcntl.h>
#include <fuse_lowlevel.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "fs/fuse_ring.h"
#include "fs/fuse_wire.h"

#define THREADS       16 /* the default of foliofs -o threads */
#define MAX_IO        (1u << 20)
#define DATA_SIZE     (1 << 30)
#define CACHE_SECONDS 86400.0
#define MAX_FILES     (1u << 24)

enum { ROOT_INO = FUSE_ROOT_ID, DATA_INO, FIRST_FILE_INO };

struct null_server {
    struct wire wire; /* first: what wire_attach() expects */
    char *data;       /* MAX_IO bytes */
    _Atomic uint8_t exists[MAX_FILES / 8];
};

static struct null_server *server_of(fuse_req_t req)
{
    return fuse_req_userdata(req);
}

/* The file's inode number; 0 when no such name can be. */
static fuse_ino_t ino_of_name(const char *name)
{
    if (strcmp(name, "data") == 0)
        return DATA_INO;
    size_t letters = strcspn(name, "0123456789");
    unsigned long number = strtoul(name + letters, NULL, 10);
    return name[letters] != '\0' && number < MAX_FILES ? FIRST_FILE_INO + number : 0;
}

static bool is_there(struct null_server *s, fuse_ino_t ino)
{
    if (ino == ROOT_INO || ino == DATA_INO)
        return true;
    fuse_ino_t number = ino - FIRST_FILE_INO;
    return ino != 0 && (s->exists[number / 8] & 1u << number % 8) != 0;
}

static struct stat attributes(fuse_ino_t ino)
{
    return (struct stat){
        .st_ino = ino,
        .st_mode = ino == ROOT_INO ? S_IFDIR | 0755 : S_IFREG | 0644,
        .st_nlink = 1,
        .st_size = ino == DATA_INO ? DATA_SIZE : 0,
        .st_blksize = 4096,
    };
}

static struct fuse_entry_param entry(fuse_ino_t ino)
{
    return (struct fuse_entry_param){
        .ino = ino,
        .attr = attributes(ino),
        .attr_timeout = CACHE_SECONDS,
        .entry_timeout = CACHE_SECONDS,
    };
}

static void null_init(void *userdata, struct fuse_conn_info *conn)
{
    (void)userdata;
    conn->want = conn->capable & (FUSE_CAP_ASYNC_READ | FUSE_CAP_ASYNC_DIO |
                                  FUSE_CAP_PARALLEL_DIROPS | FUSE_CAP_ATOMIC_O_TRUNC);
    conn->max_write = MAX_IO;
    conn->max_read = MAX_IO;
}

static void null_lookup(fuse_req_t req, fuse_ino_t parent, const char *name)
{
    (void)parent;
    fuse_ino_t ino = ino_of_name(name);
    struct fuse_entry_param e = entry(ino);
    if (is_there(server_of(req), ino))
        fuse_reply_entry(req, &e);
    else
        fuse_reply_err(req, ENOENT);
}

static void null_getattr(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
    (void)fi;
    struct stat st = attributes(ino);
    fuse_reply_attr(req, &st, CACHE_SECONDS);
}

static void null_create(fuse_req_t req, fuse_ino_t parent, const char *name, mode_t mode,
                        struct fuse_file_info *fi)
{
    (void)parent, (void)mode;
    fuse_ino_t ino = ino_of_name(name);
    if (ino < FIRST_FILE_INO) {
        fuse_reply_err(req, EINVAL);
        return;
    }
    fuse_ino_t number = ino - FIRST_FILE_INO;
    atomic_fetch_or(&server_of(req)->exists[number / 8], (uint8_t)(1u << number % 8));
    struct fuse_entry_param e = entry(ino);
    fuse_reply_create(req, &e, fi);
}

static void null_unlink(fuse_req_t req, fuse_ino_t parent, const char *name)
{
    (void)parent;
    fuse_ino_t ino = ino_of_name(name);
    if (ino < FIRST_FILE_INO) {
        fuse_reply_err(req, EPERM);
        return;
    }
    fuse_ino_t number = ino - FIRST_FILE_INO;
    atomic_fetch_and(&server_of(req)->exists[number / 8], (uint8_t) ~(1u << number % 8));
    fuse_reply_err(req, 0);
}

static void null_open(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
    (void)ino;
    fi->direct_io = 1;
    fuse_reply_open(req, fi);
}

static void null_read(fuse_req_t req, fuse_ino_t ino, size_t size, off_t off,
                      struct fuse_file_info *fi)
{
    (void)ino, (void)off, (void)fi;
    struct iovec iov = { .iov_base = server_of(req)->data,
                         .iov_len = size < MAX_IO ? size : MAX_IO };
    fuse_reply_iov(req, &iov, 1);
}

static void null_release(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
    (void)ino, (void)fi;
    fuse_reply_err(req, 0);
}

static void null_flush(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
    (void)ino, (void)fi;
    fuse_reply_err(req, ENOSYS);
}

static void null_opendir(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
    (void)ino, (void)fi;
    fuse_reply_err(req, ENOSYS);
}

static void null_readdir(fuse_req_t req, fuse_ino_t ino, size_t size, off_t off,
                         struct fuse_file_info *fi)
{
    (void)ino, (void)size, (void)off, (void)fi;
    fuse_reply_buf(req, NULL, 0);
}

static const struct fuse_lowlevel_ops operations = {
    .init = null_init,
    .lookup = null_lookup,
    .getattr = null_getattr,
    .create = null_create,
    .unlink = null_unlink,
    .open = null_open,
    .read = null_read,
    .release = null_release,
    .flush = null_flush,
    .opendir = null_opendir,
    .readdir = null_readdir,
};

/* As run_loop() in fs/fuse_init.c. */
static int loop_as_ours(struct fuse_session *se, struct wire *wire)
{
    struct fuse_loop_config *config = fuse_loop_cfg_create();
    if (config == NULL || wire_attach(se, wire) != 0)
        return 1;
    fuse_loop_cfg_set_max_threads(config, THREADS);
    fuse_loop_cfg_set_idle_threads(config, THREADS);
    fuse_loop_cfg_set_clone_fd(config, 0);
    int status = fuse_session_loop_mt(se, config);
    fuse_loop_cfg_destroy(config);
    return status;
}

static int loop_stock(struct fuse_session *se)
{
    struct fuse_loop_config *config = fuse_loop_cfg_create();
    if (config == NULL)
        return 1;
    int status = fuse_session_loop_mt(se, config);
    fuse_loop_cfg_destroy(config);
    return status;
}

enum mode { MODE_OURS, MODE_STOCK, MODE_RING };

static int loop(struct fuse_session *se, struct wire *wire, enum mode mode)
{
    int err = mode == MODE_RING
                  ? ring_start(&wire->ring, se, THREADS, MAX_IO, wire_amend_request, wire)
                  : 0;
    if (err != 0) {
        fprintf(stderr, "bench_null_fuse: io_uring: %s\n", strerror(-err));
        return 1;
    }
    int status = mode == MODE_STOCK ? loop_stock(se) : loop_as_ours(se, wire);
    ring_stop(wire->ring);
    ring_free(wire->ring);
    if (mode == MODE_RING && !wire_agreed(wire, WIRE_OVER_IO_URING)) {
        fputs("bench_null_fuse: FUSE over io_uring is switched off\n", stderr);
        return 1;
    }
    return status;
}

static int serve(struct fuse_session *se, struct wire *wire, const char *mountpoint, enum mode mode)
{
    if (fuse_set_signal_handlers(se) != 0)
        return 1;
    int status = 1;
    if (fuse_session_mount(se, mountpoint) == 0) {
        status = loop(se, wire, mode);
        fuse_session_unmount(se);
    }
    fuse_remove_signal_handlers(se);
    return status;
}

static enum mode mode_of(const char *arg)
{
    return strcmp(arg, "--stock") == 0  ? MODE_STOCK
           : strcmp(arg, "--ring") == 0 ? MODE_RING
                                        : MODE_OURS;
}

int main(int argc, char **argv)
{
    enum mode mode = argc > 1 ? mode_of(argv[1]) : MODE_OURS;
    if (argc != 2 + (mode != MODE_OURS)) {
        fputs("usage: bench_null_fuse [--stock | --ring] MOUNTPOINT\n", stderr);
        return 2;
    }
    struct null_server *server = calloc(1, sizeof *server);
    struct fuse_args args = FUSE_ARGS_INIT(0, NULL);
    int status = 1;
    if (server != NULL && (server->data = malloc(MAX_IO)) != NULL &&
        fuse_opt_add_arg(&args, "null_fuse") == 0 &&
        fuse_opt_add_arg(&args, "-odefault_permissions,max_read=1048576,fsname=null_fuse") == 0) {
        memset(server->data, 'x', MAX_IO);
        struct fuse_session *se = fuse_session_new(&args, &operations, sizeof operations, server);
        if (se != NULL) {
            status = serve(se, &server->wire, argv[argc - 1], mode);
            fuse_session_destroy(se);
        }
    }
    fuse_opt_free_args(&args);
    if (server != NULL)
        free(server->data);
    free(server);
    return status != 0;
}
