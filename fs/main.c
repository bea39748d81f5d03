/* main.c: foliofs, the program that mounts a volume: store, cache, tree, FUSE; and back in reverse. */
#include <errno.h>
#include <limits.h>
#include <malloc.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "fs/attach_door.h"
#include "fs/busy.h"
#include "fs/control.h"
#include "fs/daemon.h"
#include "fs/fs.h"
#include "fs/fuse_front.h"
#include "fs/hangup.h"
#include "fs/options.h"
#include "fs/process.h"
#include "store/error.h"

#define MOST_KEPT   (128 << 20) /* bytes of a heap that are kept for the next transaction */
#define LARGE_BLOCK (1 << 20)   /* bytes that malloc does not take from the heap */

struct program {
    struct options options;
    struct budget budget;
    char *volume, *mountpoint; /* absolute, without symbolic links */
    struct daemon_state daemon;
    struct fs *fs;
    struct front *front;
    struct control *control;
    struct hangup hangup;
    bool hangs_up; /* it will, should we be killed */
};

/* ---- checks before anything is changed ------------------------------------------------------- */

static int find_volume(struct program *p, struct store_error *error)
{
    struct stat st;
    if (p->options.volume[0] == '\0' || p->options.mountpoint[0] == '\0')
        return store_fail(error, -EINVAL, "the name of the volume or of the mount point is empty");
    p->volume = realpath(p->options.volume, NULL);
    if (p->volume == NULL)
        return store_fail(error, -errno, "%s: %s; a volume is made by mkfs.foliofs",
                          p->options.volume, strerror(errno));
    if (stat(p->volume, &st) != 0)
        return store_fail(error, -errno, "%s: %s", p->volume, strerror(errno));
    if (S_ISDIR(st.st_mode))
        return store_fail(error, -EISDIR,
                          "%s is a directory; a volume is a file made by mkfs.foliofs", p->volume);
    return 0;
}

static int find_mountpoint(struct program *p, struct store_error *error)
{
    struct stat st;
    const char *given = p->options.mountpoint;
    if (stat(given, &st) != 0 && errno == ENOTCONN)
        return store_fail(error, -ENOTCONN,
                          "%s is a mount whose process is gone; unmount it first: umount %s", given,
                          given);
    p->mountpoint = realpath(given, NULL);
    if (p->mountpoint == NULL)
        return store_fail(error, -errno, "%s: %s; the mount point must exist", given,
                          strerror(errno));
    if (stat(p->mountpoint, &st) != 0)
        return store_fail(error, -errno, "%s: %s", given, strerror(errno));
    if (!S_ISDIR(st.st_mode))
        return store_fail(error, -ENOTDIR, "%s is not a directory; a mount point is one", given);
    size_t len = strlen(p->mountpoint);
    bool root = strcmp(p->mountpoint, "/") == 0;
    if (root || (strncmp(p->volume, p->mountpoint, len) == 0 && p->volume[len] == '/'))
        return store_fail(error, -EINVAL,
                          "the volume %s lies inside the mount point %s, which would hide it; move "
                          "one of them",
                          p->volume, p->mountpoint);
    return 0;
}

/* By default each thread that answers requests would have a heap of its own, and each of these would grow to the
 * blocks of a transaction and shrink after it: memory touched for the first time costs more than waiting
 * for a lock. So they share two, and keep as much as the budget gives transactions anyway. */
static void tune_malloc(const struct budget *b)
{
#ifdef M_ARENA_MAX
    size_t keep = b->transactions / 2 < MOST_KEPT ? (size_t)b->transactions / 2 : MOST_KEPT;
    if (getenv("MALLOC_ARENA_MAX") == NULL)
        (void)mallopt(M_ARENA_MAX, 2);
    if (getenv("MALLOC_TRIM_THRESHOLD_") == NULL)
        (void)mallopt(M_TRIM_THRESHOLD, (int)keep);
    if (getenv("MALLOC_MMAP_THRESHOLD_") == NULL) /* the line above ends its growing with use */
        (void)mallopt(M_MMAP_THRESHOLD, LARGE_BLOCK);
#endif
}

static int prepare(struct program *p, struct store_error *error)
{
    int err = budget_split(&p->options, &p->budget, error);
    if (err == 0)
        tune_malloc(&p->budget);
    if (err == 0)
        err = find_volume(p, error);
    if (err == 0)
        err = find_mountpoint(p, error);
    if (err != 0)
        return err;
    char max_read[32];
    snprintf(max_read, sizeof max_read, "%u", p->budget.max_read);
    if (options_add_fuse(&p->options, "default_permissions", NULL) != 0 ||
        options_add_fuse(&p->options, "max_read", max_read) != 0 ||
        (p->options.read_only && options_add_fuse(&p->options, "ro", NULL) != 0) ||
        (!p->options.subtype_given && options_add_fuse(&p->options, "subtype", "foliofs") != 0) ||
        (!p->options.fsname_given && options_add_fuse(&p->options, "fsname", p->volume) != 0))
        return store_fail(error, -ENOMEM, "not enough memory");
    return 0;
}

/* ---- start ----------------------------------------------------------------------------------- */

static void say_commit_failed(const char *volume, int err, bool over)
{
    if (over)
        daemon_say("%s takes no changes any more, as they cannot be written (%s): see to the "
                   "cause, unmount it, run "
                   "fsck.foliofs, and mount it again",
                   volume, strerror(-err));
    else
        daemon_say("%s: changes cannot be written (%s); they are kept and tried again", volume,
                   strerror(-err));
}

static struct fs_options make_fs_options(const struct program *p)
{
    const struct options *o = &p->options;
    return (struct fs_options){
        .read_only = o->read_only,
        .front_stamps = o->cache == CACHE_KERNEL && !o->attach && !o->read_only,
        .noatime = o->noatime,
        .strictatime = o->strictatime,
        .nodiratime = o->nodiratime,
        .commit_ms = o->commit_s * 1000,
        .txn_bytes = p->budget.transactions,
        .max_inodes = p->budget.max_inodes,
        .cache = {
            .cache_bytes = p->budget.pages,
            .dirty_ratio = o->dirty_ratio,
            .dirty_background_ratio = o->dirty_background_ratio,
            .dirty_expire_ms = o->dirty_expire_s * 1000,
            .dirty_writeback_ms = o->dirty_writeback_s * 1000,
            .on_error = o->on_error,
            .reclaim = o->reclaim,
            .fault_around = o->fault_around,
            .store_around = o->store_around,
        },
        .readahead = { .policy = o->readahead, .pages = o->read_ahead_kb / (PAGE_SIZE >> 10) },
        .threads = true,
        .inject = o->inject,
        .flush_front = o->read_only ? NULL : front_flush,
        .forget_front = front_flush,
        .forget_range = front_forget_range,
        .more_threads = front_more_threads,
        .forget_attributes = front_forget_attributes,
        .commit_failed = say_commit_failed,
        .front = p->front,
    };
}

/* Only a read-only mount goes on without it. */
static void warn_of_log(const struct program *p)
{
    struct store_stats st;
    store_stats(p->fs->store, &st);
    if (st.log_cut)
        fprintf(
            stderr,
            "foliofs: %s: its log is damaged: changes that were reported durable are missing here; "
            "fsck.foliofs -n says more\n",
            p->volume);
}

static int open_volume(struct program *p, struct store_error *error)
{
    struct fs_options o = make_fs_options(p);
    unsigned tries = 0;
    int err;
    do
        err = fs_mount(p->volume, &o, &p->fs, error);
    while (err == -EBUSY && busy_wait(p->volume, &tries));
    if (err == 0)
        warn_of_log(p);
    return err;
}

static void print_start(const struct program *p)
{
    fprintf(stderr, "foliofs: %s on %s\nmemory:\n", p->volume, p->mountpoint);
    budget_print(&p->budget, stderr);
}

/* On the thread that answers the kernel's first request. */
static void on_ready(void *arg)
{
    struct program *p = arg;
    if (p->options.foreground)
        front_print_missing(p->front, stderr);
    if (p->options.foreground && !p->hangs_up)
        fprintf(stderr, "without fusectl (it is not mounted on /sys/fs/fuse/connections, or no "
                        "process could be started): if this process is "
                        "killed, programs that use the mount may hang\n");
    daemon_ready(&p->daemon);
}

static void on_signal(void *arg, int sig)
{
    (void)sig;
    front_quit(arg);
}

static void prepare_to_hang_up(struct program *p)
{
    p->hangs_up = hangup_for(&p->hangup, front_dev(p->front));
}

/* ---- run and tear down in reverse ------------------------------------------------------------ */

/* Nobody answers the kernel any more: nor is anybody, in here or of the clients, to wait for it. libfuse does not
 * unmount what has been hung up. */
static void hang_up(struct program *p)
{
    front_unmount(p->front);
    hangup_now(&p->hangup);
}

static int serve(struct program *p, struct store_error *error)
{
    int err = front_mount(p->front, p->fs, p->mountpoint, error);
    if (err != 0)
        return err;
    prepare_to_hang_up(p);
    err = control_start(p->fs, p->mountpoint, &p->control, error);
    struct attach_door *door = NULL;
    if (err == 0 && p->options.attach) /* its socket lies beside that one */
        err = attach_door_open(p->fs, p->mountpoint, &door, error);
    p->fs->door = door; /* whoever asks for stats may see it from now on */
    if (err != 0) {
        control_stop(p->control);
        return err;
    }
    err = daemon_watch(&p->daemon, on_signal, p->front);
    if (err != 0) {
        store_fail(error, err, "no thread could be started: %s", strerror(-err));
    } else {
        err = front_loop(p->front, on_ready, p);
        if (err != 0)
            store_fail(error, err, "%s: answering the kernel failed: %s", p->mountpoint,
                       strerror(-err));
    }
    if (err != 0)
        hang_up(p); /* front_quit() may be under way, and wait for answers */
    daemon_unwatch(&p->daemon);
    hang_up(p);
    if (err == 0 && front_has_lost(p->front))
        err = store_fail(error, -EIO,
                         "%s: some of what the kernel had could not be written: stores and writes "
                         "since the last fsync are lost (is the volume full?)",
                         p->volume);
    control_stop(p->control); /* it looks at the door */
    p->fs->door = NULL;
    attach_door_close(door);
    return err;
}

static int close_volume(struct program *p, struct store_error *error)
{
    int err = fs_unmount(p->fs);
    if (err != 0)
        store_fail(error, err,
                   "%s: writing back failed (%s): changes since the last fsync are lost", p->volume,
                   strerror(-err));
    return err;
}

static int run(struct program *p, struct store_error *error)
{
    const struct options *o = &p->options;
    struct front_options fo = {
        .kernel_cache = o->cache == CACHE_KERNEL,
        .attach = o->attach,
        .read_only = o->read_only,
        .debug = o->debug,
        .threads = o->threads,
        .io_uring = o->io_uring,
        .spin_us = o->spin_us,
        .max_read = p->budget.max_read,
        .held_bytes = p->budget.held,
        .fuse_options = o->fuse_options,
    };
    int err = front_create(&p->front, &fo);
    if (err != 0)
        return store_fail(error, err, "not enough memory");
    err = open_volume(p, error);
    if (err != 0) {
        front_destroy(p->front);
        return err;
    }
    if (o->foreground)
        print_start(p);
    err = serve(p, error);
    front_destroy(p->front);
    struct store_error closing;
    int close_err = close_volume(p, &closing);
    if (close_err != 0)
        *error = closing;
    return err != 0 ? err : close_err;
}

static void print_versions(void)
{
    printf("foliofs %s\nvolume format %u\nFUSE library %s\n", FOLIO_VERSION,
           (unsigned)FORMAT_VERSION, front_library_version());
}

int main(int argc, char **argv)
{
    struct program p = { 0 };
    struct store_error error = { .text = "unknown error" };
    if (!process_start())
        return EXIT_FAILURE;
    int err = options_parse(argc, argv, &p.options, &error);
    if (err == 0 && p.options.help)
        options_print_help(stdout);
    else if (err == 0 && p.options.version)
        print_versions();
    else if (err == 0)
        err = prepare(&p, &error);
    if (err != 0)
        fprintf(stderr, "foliofs: %s\n", error.text);
    else if ((p.options.help || p.options.version) && !process_close_output("foliofs"))
        err = -EIO;
    if (err == 0 && !p.options.help && !p.options.version) {
        err = daemon_start(&p.daemon, p.options.foreground);
        if (err == 0)
            hangup_start(&p.hangup);
        err = err != 0 ? store_fail(&error, err, "%s", strerror(-err)) : run(&p, &error);
        hangup_stop(&p.hangup);
        if (err != 0)
            daemon_say("%s", error.text);
    }
    free(p.volume);
    free(p.mountpoint);
    options_free(&p.options);
    return err != 0;
}
