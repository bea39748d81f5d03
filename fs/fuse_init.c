#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/sysmacros.h>
#include <time.h>
#include <unistd.h>

#include "cache/clock.h"
#include "fs/control_path.h"
#include "fs/daemon.h"
#include "fs/fuse_ring.h"
#include "fs/fuse_ops.h"
#include "fs/names.h"
#include "store/error.h"

/* Requests the kernel may have under way in the background (readahead, writeback), and how many of
 * them make it stop queueing more. */
#define MAX_BACKGROUND  64u
#define MOST_BACKGROUND 65535u /* as many as the kernel can count */

#define KERNEL_READ_AHEAD_KB 512u

#define NOTIFIERS \
    4u /* requests that come together: one may wait for a page to be read, or for room */

#define LEAVE_WAIT_MS 20   /* how often the loop is reminded to end */
#define HANG_UP_MS    1000 /* how long an unmount by others may take to reach us */

/* ---- agreeing with the kernel ---------------------------------------------------------------- */

/* Where a READ or WRITE may be answered only after the kernel has written back its copies (stale.h). Asynchronous ones
 * are background requests, as is what is written back; were as many of them waiting as may be under way, it would never
 * come to us. So that is many, and half of them wait (may_hold). (The kernel allows less to whoever has no CAP_SYS_ADMIN
 * outside of all user namespaces, which cannot be seen from within.) And a file that is cut by open(2) is cut in a request
 * of its own, which the kernel keeps apart from writes: those take several steps. */
static void go_around(struct front *front, struct fuse_conn_info *conn)
{
    unsigned most = MOST_BACKGROUND, allowed;
    FILE *f = fopen("/sys/module/fuse/parameters/max_user_bgreq", "re");
    if (f != NULL && fscanf(f, "%u", &allowed) == 1 && allowed < most)
        most = allowed;
    if (f != NULL)
        (void)fclose(f);
    conn->want &= ~(unsigned)FUSE_CAP_ATOMIC_O_TRUNC;
    conn->max_background = most;
    front->held_most = most / 2;
}

/* Not wanted: splice (requests are copied once, into our cache), locks (one machine, one mount: the
 * kernel does them), AUTO_INVAL_DATA (nobody else changes files), HANDLE_KILLPRIV, which clears
 * suid even for those who may keep it (the wire asks for V2). */
static void init_session(void *userdata, struct fuse_conn_info *conn)
{
    struct front *front = userdata;
    unsigned want = FUSE_CAP_ASYNC_READ | FUSE_CAP_ASYNC_DIO | FUSE_CAP_ATOMIC_O_TRUNC |
                    FUSE_CAP_PARALLEL_DIROPS | FUSE_CAP_READDIRPLUS | FUSE_CAP_READDIRPLUS_AUTO |
                    FUSE_CAP_CACHE_SYMLINKS | FUSE_CAP_EXPORT_SUPPORT;
    if (front->options.kernel_cache && !front->options.attach && !front->options.read_only)
        want |= FUSE_CAP_WRITEBACK_CACHE;
    conn->want = want & conn->capable;
    front->kernel_cache = (conn->want & FUSE_CAP_WRITEBACK_CACHE) != 0;
    conn->max_background = MAX_BACKGROUND;
    if (!front->kernel_cache)
        go_around(front, conn);
    conn->congestion_threshold = conn->max_background / 4 * 3;
    /* libfuse has made it less for a kernel without MAX_PAGES (before 4.20). */
    if (conn->max_write > FRONT_MAX_IO)
        conn->max_write = FRONT_MAX_IO;
    conn->max_read = front->options.max_read; /* the mount option says so too */
    conn->time_gran = 1;
    if (front->ready != NULL)
        front->ready(front->ready_arg);
}

void front_print_missing(const struct front *front, FILE *to)
{
    static const struct {
        uint64_t ability;
        const char *means;
    } abilities[] = {
        { WIRE_KILLPRIV_V2, "HANDLE_KILLPRIV_V2: small writes are slower" },
        { WIRE_PARALLEL_DIROPS, "PARALLEL_DIROPS: one look-up at a time per directory" },
        { WIRE_DIRECT_IO_ALLOW_MMAP,
          "DIRECT_IO_ALLOW_MMAP: no mmap(MAP_SHARED) with cache=direct" },
    };
    for (size_t i = 0; i < sizeof abilities / sizeof abilities[0]; i++) {
        uint64_t a = abilities[i].ability;
        if (!front->hooked || (front->wire.offered & a) == 0)
            fprintf(to, "without %s (%s)\n", abilities[i].means,
                    front->hooked ? "the kernel does not offer it" : "libfuse has no hooks");
    }
    if (front->options.io_uring && (front->wire.offered & WIRE_OVER_IO_URING) == 0)
        fprintf(to, "without FUSE over io_uring (the kernel does not offer it any more)\n");
    if (front->options.kernel_cache && !front->options.attach && !front->options.read_only &&
        !front->kernel_cache)
        fprintf(to, "without WRITEBACK_CACHE: every write is a request\n");
}

/* ---- the session ----------------------------------------------------------------------------- */

/* No copy_file_range: the kernel drops its pages of the range after our answer, but what its mappings have dirtied of
 * them may have reached us before it, and behind our copying. So it copies by itself, with READ and WRITE. */
static const struct fuse_lowlevel_ops operations = {
    .init = init_session,
    .lookup = op_lookup,
    .forget = op_forget,
    .forget_multi = op_forget_multi,
    .mknod = op_mknod,
    .mkdir = op_mkdir,
    .symlink = op_symlink,
    .link = op_link,
    .unlink = op_unlink,
    .rmdir = op_rmdir,
    .rename = op_rename,
    .readlink = op_readlink,
    .opendir = op_opendir,
    .readdir = op_readdir,
    .readdirplus = op_readdirplus,
    .releasedir = op_releasedir,
    .fsyncdir = op_fsyncdir,
    .create = op_create,
    .open = op_open,
    .read = op_read,
    .write = op_write,
    .flush = op_flush,
    .release = op_release,
    .fsync = op_fsync,
    .fallocate = op_fallocate,
    .lseek = op_lseek,
    .getattr = op_getattr,
    .setattr = op_setattr,
    .statfs = op_statfs,
    .setxattr = op_setxattr,
    .getxattr = op_getxattr,
    .listxattr = op_listxattr,
    .removexattr = op_removexattr,
};

/* libfuse's own words: what it says of a failure is the reason we give. */
static void session_log(enum fuse_log_level level, const char *format, va_list ap)
{
    if (level == FUSE_LOG_DEBUG)
        vfprintf(stderr, format, ap);
    else
        daemon_vsay(format, ap);
}

int front_create(struct front **out, const struct front_options *o)
{
    struct front *front = calloc(1, sizeof *front);
    if (front == NULL)
        return -ENOMEM;
    front->options = *o;
    pthread_rwlock_init(&front->asking, NULL);
    pthread_mutex_init(&front->room_lock, NULL);
    *out = front;
    return 0;
}

static struct fuse_session *new_session(struct front *front)
{
    struct fuse_args args = FUSE_ARGS_INIT(0, NULL);
    struct fuse_session *se = NULL;
    bool debug = front->options.debug;
    if (fuse_opt_add_arg(&args, "foliofs") == 0 && fuse_opt_add_arg(&args, "-o") == 0 &&
        fuse_opt_add_arg(&args, front->options.fuse_options) == 0 &&
        (!debug || fuse_opt_add_arg(&args, "-d") == 0))
        se = fuse_session_new(&args, &operations, sizeof operations, front);
    fuse_opt_free_args(&args);
    return se;
}

static void wake_only(int sig)
{
    (void)sig;
}

/* SIGUSR1 only interrupts the loop's sleep, see leave_loop(). */
static void prepare_loop(struct front *front)
{
    struct sigaction wake = { .sa_handler = wake_only };
    sigaction(SIGUSR1, &wake, NULL);
    front->loop = pthread_self();
    fuse_set_log_func(session_log);
}

/* Right after mounting nothing can lie on top of it. */
static dev_t find_dev(const char *mountpoint)
{
    struct mount_entry *mount = malloc(sizeof *mount);
    dev_t dev = mount != NULL && mount_find_path(mountpoint, mount) == 0 ? mount->dev : 0;
    free(mount);
    return dev;
}

dev_t front_dev(const struct front *front)
{
    return atomic_load(&front->dev);
}

/* The kernel's own readahead on a FUSE mount stops at 128 KiB, whatever is asked of it in INIT; where we
 * may (root), its window is set as it is for disks. Requests no longer than that find it useless. */
static void widen_readahead(struct wire *wire)
{
    struct front *front = (struct front *)wire;
    char path[80], text[16];
    if (front->options.kernel_cache && front->options.max_read >= KERNEL_READ_AHEAD_KB / 4 * 1024) {
        snprintf(path, sizeof path, "/sys/class/bdi/%u:%u/read_ahead_kb", major(front_dev(front)),
                 minor(front_dev(front)));
        int fd = open(path, O_WRONLY | O_CLOEXEC);
        int len = snprintf(text, sizeof text, "%u\n", KERNEL_READ_AHEAD_KB);
        if (fd >= 0) {
            (void)!write(fd, text, (size_t)len); /* as good as it was */
            close(fd);
        }
    }
}

/* Whether the kernel will offer it stands here; so nothing is mounted when it will not. */
#define URING_SWITCH "/sys/module/fuse/parameters/enable_uring"

static int prepare_ring(struct front *front, struct store_error *error)
{
    char on = 'N';
    int fd = open(URING_SWITCH, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return store_fail(
            error, -ENOTSUP,
            "io_uring: this kernel has no FUSE over io_uring (Linux 6.14 has); leave the "
            "option out");
    ssize_t n = read(fd, &on, 1);
    close(fd);
    if (n != 1 || on != 'Y')
        return store_fail(error, -ENOTSUP,
                          "io_uring: FUSE over io_uring is switched off; as root: echo Y > %s",
                          URING_SWITCH);
    int err = ring_start(&front->wire.ring, front->se, front->options.threads, FRONT_MAX_IO,
                         wire_amend_request, &front->wire);
    return err == 0 ? 0
                    : store_fail(error, err,
                                 "io_uring: no ring could be made (%s%s); leave the option out",
                                 strerror(-err),
                                 err == -EPERM ? ", see /proc/sys/kernel/io_uring_disabled" : "");
}

int front_mount(struct front *front, struct fs *fs, const char *mountpoint,
                struct store_error *error)
{
    front->fs = fs;
    prepare_loop(front);
    front->mountpoint = strdup(mountpoint);
    front->se = front->mountpoint != NULL ? new_session(front) : NULL;
    if (front->se == NULL)
        return store_fail(error, -EIO, "%s: no FUSE session could be made", mountpoint);
    int err = front->options.io_uring ? prepare_ring(front, error) : 0;
    if (err != 0)
        return err;
    if (fuse_session_mount(front->se, mountpoint) != 0)
        return store_fail(error, -EIO,
                          "%s: mounting failed (see above); it needs /dev/fuse and, unless you are "
                          "root, fusermount3",
                          mountpoint);
    atomic_store(&front->dev, find_dev(mountpoint));
    if (front_dev(front) == 0) {
        fuse_session_unmount(front->se);
        return store_fail(error, -EIO, "%s: it is not in /proc/self/mountinfo (is /proc mounted?)",
                          mountpoint);
    }
    front->wire.agreed_upon = widen_readahead;
    front->wire.spin_ns = (uint64_t)front->options.spin_us * 1000;
    front->hooked = wire_attach(front->se, &front->wire) == 0;
    err = workqueue_start(&front->notifier, "folio-notify", NOTIFIERS);
    if (err == 0)
        err = workqueue_start(&front->throttle, "folio-throttle", 1);
    if (err == 0)
        err = workqueue_start(&front->turns, "folio-turns", 1);
    if (err == 0)
        err = workqueue_start(&front->lender, "folio-lend", 1);
    return err == 0 ? 0 : store_fail(error, err, "%s: no thread could be started", mountpoint);
}

static int run_loop(struct front *front)
{
    struct fuse_loop_config *config = fuse_loop_cfg_create();
    if (config == NULL)
        return -ENOMEM;
    fuse_loop_cfg_set_max_threads(config, front->options.threads);
    fuse_loop_cfg_set_idle_threads(config, front->options.threads);
    /* A descriptor per thread works beside the wire's hooks, but on 2 cores 1, 2 and 4 readers
     * measured the same with it and without. */
    fuse_loop_cfg_set_clone_fd(config, 0);
    int err = fuse_session_loop_mt(front->se, config);
    fuse_loop_cfg_destroy(config);
    return err;
}

int front_loop(struct front *front, void (*ready)(void *arg), void *arg)
{
    front->ready = ready;
    front->ready_arg = arg;
    int err = run_loop(front);
    if (err == 0)
        err = -atomic_load(&front->wire.error);
    ring_stop(front->wire.ring);
    atomic_store(&front->left, true);
    return err < 0 ? err : 0;
}

const char *front_library_version(void)
{
    return fuse_pkgversion();
}

/* ---- ending ---------------------------------------------------------------------------------- */

/* The loop's thread sleeps in a way that a signal just before it would not end; so it is reminded. */
static void leave_loop(struct front *front)
{
    struct timespec pause = { .tv_nsec = LEAVE_WAIT_MS * 1000000L };
    fuse_session_exit(front->se);
    while (!atomic_load(&front->left)) {
        pthread_kill(front->loop, SIGUSR1);
        nanosleep(&pause, NULL);
    }
}

/* Have the kernel send what it has of files that stay open: in every mode, mapped pages are its own. syncfs() starts
 * it for all at once, but since Linux 6.18 does not wait for FUSE; asking for each file does. mounted: where
 * we can see it. */
static void collect_writes(struct front *front, bool mounted)
{
    uint64_t lost = atomic_load(&front->fs->ops[FS_LOST_WRITES]);
    int fd = mounted ? open(front->mountpoint, O_RDONLY | O_DIRECTORY | O_CLOEXEC) : -1;
    if (fd >= 0) {
        syncfs(fd);
        close(fd);
    }
    uint64_t until = clock_now(&clock_monotonic) + MEMORY_MOST_NS;
    int err;
    while ((err = fs_collect_writes(front->fs)) == -ENOMEM && clock_now(&clock_monotonic) < until)
        (void)poll(NULL, 0, MEMORY_WAIT_MS);
    front->lost |= err == -ENOMEM || atomic_load(&front->fs->ops[FS_LOST_WRITES]) != lost;
}

bool front_has_lost(const struct front *front)
{
    return front->lost;
}

/* It does when the last mount is gone, which ends the loop. The last may be going at this moment. */
static bool kernel_hangs_up(struct front *front, int wait_ms)
{
    struct pollfd kernel = { .fd = fuse_session_fd(front->se) };
    return poll(&kernel, 1, wait_ms) > 0;
}

/* Is ours what unmounting would be about? Somebody may have mounted something over it, or moved it away. The number is
 * ours as long as the kernel has not hung up. (Between this look and unmounting there is a moment; the kernel has no
 * way to do both at once.)   Returns 0; -EINVAL: nothing is mounted there; -EXDEV. */
static int find_ours(struct front *front)
{
    dev_t dev;
    int err = daemon_find_mount(front->mountpoint, &dev);
    if (err == 0 && dev == front_dev(front) && !kernel_hangs_up(front, 0))
        return 0;
    return err == -EINVAL ? err : -EXDEV;
}

static void say_why_it_stays(const struct front *front, int err)
{
    if (err == -EXDEV)
        daemon_say(
            "%s: something else is mounted there now, and left alone; what was ours is written "
            "back and ended",
            front->mountpoint);
    else if (err == 0 || err == -EINVAL)
        daemon_say("%s is unmounted, but still in use by open files or mounted elsewhere, maybe in "
                   "another mount namespace: it is written back and ended there, too",
                   front->mountpoint);
    else
        daemon_say("%s is in use: it is written back and detached", front->mountpoint);
}

void front_quit(struct front *front)
{
    if (ring_is_broken(
            front->wire.ring)) { /* unmounting, and writing back, would wait for answers */
        leave_loop(front);
        return;
    }
    int err = find_ours(front);
    if (err == 0)
        err = daemon_unmount(front->mountpoint);
    bool mounted = err != 0 && err != -EINVAL && err != -EXDEV;
    if (!mounted && kernel_hangs_up(front, HANG_UP_MS))
        return;
    say_why_it_stays(front, err);
    collect_writes(front, mounted);
    /* What is stored meanwhile: once more, and who comes to a page that has gone gets SIGBUS. */
    atomic_store(&front->closing, true);
    collect_writes(front, false);
    front_stop_asking(front);
    leave_loop(front);
}

/* libfuse unmounts whatever is there, unless the kernel has hung up. So its descriptor becomes one that looks like that
 * (nobody reads from the pipe); with the last to the kernel the connection ends.
 * Returns false: there are no descriptors. */
static bool end_connection(struct front *front)
{
    int fds[2];
    if (pipe2(fds, O_CLOEXEC) != 0)
        return false;
    close(fds[0]);
    bool done = dup3(fds[1], fuse_session_fd(front->se), O_CLOEXEC) >= 0;
    close(fds[1]);
    return done;
}

void front_more_threads(void *arg, unsigned nr)
{
    struct front *front = arg;
    workqueue_grow(&front->notifier, nr);
    workqueue_grow(&front->turns, nr);
    workqueue_grow(&front->lender, nr);
}

void front_unmount(struct front *front)
{
    ring_stop(front->wire.ring);
    if (front->se == NULL || front_dev(front) == 0)
        return;
    if (front->hooked)
        wire_end(&front->wire); /* who takes turns, or is throttled, may be about to reply */
    /* Nothing happens where it is not mounted any more. */
    if (kernel_hangs_up(front, 0) || find_ours(front) == 0 || end_connection(front))
        fuse_session_unmount(front->se);
    atomic_store(&front->dev, 0);
}

void front_destroy(struct front *front)
{
    front_unmount(front);
    if (front->se != NULL) {
        workqueue_stop(&front->turns); /* some end with the notifier */
        workqueue_stop(&front->lender);
        workqueue_stop(&front->notifier); /* who writes is throttled */
        workqueue_stop(&front->throttle);
        fuse_session_destroy(front->se);
    }
    ring_free(front->wire.ring);
    pthread_rwlock_destroy(&front->asking);
    pthread_mutex_destroy(&front->room_lock);
    free(front->mountpoint);
    free(front);
}
