/* libfolio_attach.c: attaching, detaching, and what happens when the daemon hangs up.
 *
 * Everything runs in the keeper, called by keeper_run, but for attach_hang_up, the watcher's. */
#include "cache/libfolio.h"

#include <fcntl.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/sysmacros.h>

#ifndef MAP_FIXED_NOREPLACE
#define MAP_FIXED_NOREPLACE 0x100000
#endif

#define POISON_TRIES 10u /* a fault that the daemon answers meanwhile spoils one */

#define PLACEMENT (MAP_FIXED | MAP_FIXED_NOREPLACE | MAP_32BIT)
#define LOW_MOST \
    65536 /* a higher limit leaves room enough, and descriptors behind it cost memory */
#define LATER (MAP_POPULATE | MAP_LOCKED | MAP_NONBLOCK) /* not to be checked */

/* Open a thread's process or, where the kernel can, the thread itself: a main thread that has left by
 * pthread_exit has no descriptors any more. */
static int open_thread(pid_t thread)
{
    int fd = (int)syscall(SYS_pidfd_open, thread, O_EXCL /* PIDFD_THREAD, Linux 6.9 */);

    if (fd < 0 && errno == EINVAL)
        fd = (int)syscall(SYS_pidfd_open, getpid(), 0);
    return fd;
}

int attach_copy_descriptor(pid_t thread, int fd)
{
    int process = open_thread(thread);

    if (process < 0)
        return -errno;
    int copy = (int)syscall(SYS_pidfd_getfd, process, fd, 0);
    if (copy < 0)
        copy = -errno;
    close(process);
    return copy;
}

/* ---- descriptors ---------------------------------------------------------------------------------- */

bool attach_limit_raise(struct rlimit *before)
{
    if (getrlimit(RLIMIT_NOFILE, before) != 0 || before->rlim_cur >= before->rlim_max)
        return false;
    struct rlimit raised = { .rlim_cur = before->rlim_max, .rlim_max = before->rlim_max };
    return setrlimit(RLIMIT_NOFILE, &raised) == 0;
}

void attach_limit_restore(const struct rlimit *before)
{
    struct rlimit now;

    /* Unless the program has set it meanwhile. */
    if (getrlimit(RLIMIT_NOFILE, &now) == 0 && now.rlim_cur == before->rlim_max &&
        now.rlim_max == before->rlim_max)
        (void)setrlimit(RLIMIT_NOFILE, before);
}

/* Beyond the program's limit, which is the keeper's, too: a program that maps files and closes them does not
 * reach it. (A descriptor that is open stays when the limit is lower.) Only where room gets short: the limit is raised
 * for a moment, and whatever the program starts then inherits that. */
int attach_move_up(int fd)
{
    struct rlimit limit;

    if (getrlimit(RLIMIT_NOFILE, &limit) != 0 || limit.rlim_cur > LOW_MOST ||
        (rlim_t)fd < limit.rlim_cur / 2 || !attach_limit_raise(&limit))
        return fd;
    int up = fcntl(fd, F_DUPFD_CLOEXEC, (int)limit.rlim_cur);
    attach_limit_restore(&limit);
    if (up < 0)
        return fd;
    close(fd);
    return up;
}

/* ---- proofs --------------------------------------------------------------------------------------- */

/* Are both of one open? It holds flock(2)s, and mappings hold it. (Where the kernel does not tell, as good as.) */
static bool same_open(int a, int b)
{
    pid_t self = (pid_t)syscall(SYS_gettid);
    return syscall(SYS_kcmp, self, self, 0 /* KCMP_FILE */, a, b) <= 0;
}

/* fd becomes part of a proof, or is closed since there is one like it, or on error. */
static int get_proof(int fd, struct client_proof **out)
{
    struct statx stat = { 0 };
    int error = statx(fd, "", AT_EMPTY_PATH | AT_STATX_DONT_SYNC, STATX_INO | STATX_TYPE, &stat)
                    ? -errno
                    : 0;
    int flags = fcntl(fd, F_GETFL), mode = flags & (O_ACCMODE | O_APPEND);
    dev_t dev = makedev(stat.stx_dev_major, stat.stx_dev_minor);
    struct client_proof *proof = NULL;

    if (!error && (flags & O_PATH))
        error = -EBADF;
    for (unsigned i = 0; !error && (proof = table_proof(i)) != NULL; i++) {
        if (!proof->files || proof->ino != stat.stx_ino || proof->dev != dev ||
            proof->mode != mode || !same_open(fd, proof->fd))
            continue;
        close(fd);
        proof->files++;
        *out = proof;
        return 0;
    }
    if (!error && !(proof = table_new_proof()))
        error = -ENOMEM;
    if (error) {
        close(fd);
        return error;
    }
    *proof = (struct client_proof){ .files = 1,
                                    .fd = attach_move_up(fd),
                                    .dev = dev,
                                    .ino = stat.stx_ino,
                                    .mode = mode,
                                    .has_pages = S_ISREG(stat.stx_mode) };
    *out = proof;
    return 0;
}

static void put_proof(struct client_proof *proof)
{
    if (--proof->files == 0)
        close(proof->fd);
}

/* ---- one range -------------------------------------------------------------------------------------- */

static int ask_about(struct client_conn *conn, unsigned op, uint64_t id, uintptr_t addr,
                     size_t length)
{
    struct attach_request request = {
        .op = op, .version = ATTACH_VERSION, .id = id, .addr = addr, .length = length
    };

    return conn_ask(conn, &request, -1, NULL, NULL, NULL, 0);
}

/* What an OPEN gave. */
struct opened {
    uint64_t id;
    int memfd;
};

/* Show the daemon the descriptor, get the pages.   Returns 0 or -errno. */
static int open_pages(struct client_file *file, off_t offset, size_t length, struct opened *out)
{
    struct attach_request request = { .op = ATTACH_OPEN,
                                      .version = ATTACH_VERSION,
                                      .offset = (uint64_t)offset,
                                      .length = length,
                                      .prot = file->prot,
                                      .flags = file->type };
    struct attach_reply reply = { 0 };

    int error = conn_ask(file->conn, &request, file->proof->fd, &reply, &out->memfd, NULL, 0);
    if (error == -EMFILE && reply.error == 0)
        ask_about(file->conn, ATTACH_DROP, reply.id, 0, 0);
    if (error)
        return error;
    out->id = reply.id;
    file->read_only = reply.flags & ATTACH_PRIVATE;
    return 0;
}

/* Let faults of the range go to the daemon, and tell it. Nothing is accessible yet. */
static int track(struct client_file *file, void *addr, size_t length, off_t offset, uint64_t id,
                 bool populate)
{
    uint64_t mode = UFFDIO_REGISTER_MODE_MISSING | UFFDIO_REGISTER_MODE_MINOR;
    struct uffdio_register area = { .range = { (uintptr_t)addr, length },
                                    .mode =
                                        file->read_only ? mode : mode | UFFDIO_REGISTER_MODE_WP };
    struct attach_request map = { .op = ATTACH_MAP,
                                  .version = ATTACH_VERSION,
                                  .id = id,
                                  .addr = (uintptr_t)addr,
                                  .length = length,
                                  .offset = (uint64_t)offset,
                                  .flags = populate ? (int32_t)ATTACH_POPULATE : 0 };

    /* A child that fork()'s handlers do not see must find nothing here. Nor a core dump, which has no files' shared
     * mappings unless asked for them, and would take a memfd for memory. */
    if (sys_madvise(addr, length, MADV_DONTFORK) || sys_madvise(addr, length, MADV_DONTDUMP))
        return -errno;
    if (ioctl(file->conn->uffd, UFFDIO_REGISTER, &area)) {
        if (errno == ENOTTY) /* no userfaultfd any more: the daemon has hung up */
            return -ECONNRESET;
        return errno == ENOMEM ? -ENOMEM : -EOPNOTSUPP;
    }
    return conn_ask(file->conn, &map, -1, NULL, NULL, NULL, 0);
}

/* Where a range is to be: as in mmap; flags: PLACEMENT and ATTACH_POPULATE apart. */
struct spot {
    void *addr;
    size_t length;
    off_t offset;
    int placement, prot;
    bool populate;
};

/* The pages, mapped without access. What MAP_FIXED replaced is in *cut. */
static int map_pages(const struct client_file *file, const struct spot *spot, int memfd,
                     struct attach_cut *cut, void **addr)
{
    int type = file->read_only ? MAP_PRIVATE : MAP_SHARED, error = 0;

    table_lock();
    if (table_full())
        error = -ENOMEM;
    else if ((*addr = sys_mmap(spot->addr, spot->length, PROT_NONE,
                               type | MAP_NORESERVE | spot->placement, memfd, spot->offset)) ==
             MAP_FAILED)
        error = -errno;
    else if (spot->placement & MAP_FIXED)
        cut->conns = table_cut((uintptr_t)*addr, (uintptr_t)*addr + spot->length, &cut->unused);
    table_unlock();
    if (error)
        return error;
    /* A kernel that does not know MAP_FIXED_NOREPLACE takes the address as a hint. */
    if ((spot->placement & MAP_FIXED_NOREPLACE) && *addr != spot->addr) {
        sys_munmap(*addr, spot->length);
        return -EEXIST;
    }
    cut->start = (uintptr_t)*addr;
    cut->end = cut->start + spot->length;
    attach_tell_cut(cut);
    return 0;
}

/* Enter the range, which takes a reference of the file. A hang-up that the watcher has seen since is
 * an error; one that it sees later, it finds the range. */
static int enter(struct client_file *file, const struct spot *spot, void *addr)
{
    struct client_range range = { .start = (uintptr_t)addr,
                                  .end = (uintptr_t)addr + spot->length,
                                  .offset = spot->offset,
                                  .file = file,
                                  .prot = spot->prot };

    table_lock();
    int error = atomic_load(&file->conn->hung_up) ? -ECONNRESET : table_insert(&range);
    if (!error)
        file->references++;
    table_unlock();
    return error;
}

static int attach_at(struct client_file *file, const struct spot *spot, void **addr)
{
    struct attach_cut cut = { 0 };
    struct opened opened;
    bool tracked = false;

    int error = open_pages(file, spot->offset, spot->length, &opened);
    if (error)
        return error;
    error = map_pages(file, spot, opened.memfd, &cut, addr);
    close(opened.memfd);
    if (error) {
        ask_about(file->conn, ATTACH_DROP, opened.id, 0, 0);
        return error;
    }
    error = track(file, *addr, spot->length, spot->offset, opened.id, spot->populate);
    if (error) {
        ask_about(file->conn, ATTACH_DROP, opened.id, 0, 0);
    } else {
        tracked = true;
        error = enter(file, spot, *addr);
    }
    if (!error && sys_mprotect(*addr, spot->length, spot->prot))
        error = -errno;
    if (!error)
        return 0;

    /* What was entered goes too; the file's last reference is the caller's. */
    table_lock();
    cut.unused = NULL;
    cut.start = (uintptr_t)*addr;
    cut.end = cut.start + spot->length;
    sys_munmap(*addr, spot->length);
    table_cut(cut.start, cut.end, &cut.unused);
    table_unlock();
    if (tracked)
        ask_about(file->conn, ATTACH_UNMAP, 0, cut.start, spot->length);
    return error;
}

/* ---- a mapping --------------------------------------------------------------------------------------- */

long attach_noexec(void *arg)
{
    const struct client_proof *proof = arg;
    struct statvfs mount;

    return fstatvfs(proof->fd, &mount) == 0 && (mount.f_flag & ST_NOEXEC);
}

/* The checks of mmap(2): prot, flags, length and limits made by itself, on a file that is not the
 * daemon's; then the open mode. (The daemon believes neither.) */
static int check_arguments(struct client_proof *proof, const struct attach_args *args)
{
    int type = args->flags & MAP_TYPE;
    int flags =
        (args->flags & ~(MAP_TYPE | PLACEMENT | LATER)) | (type == MAP_PRIVATE ? MAP_SHARED : type);

    void *at = sys_mmap(NULL, args->length, args->prot, flags, keeper_empty(), args->offset);
    if (at == MAP_FAILED)
        return -errno;
    sys_munmap(at, page_up(args->length));
    int mode = proof->mode & O_ACCMODE;
    if (mode == O_WRONLY || (mode == O_RDONLY && type != MAP_PRIVATE && (args->prot & PROT_WRITE)))
        return -EACCES;
    if ((args->prot & PROT_EXEC) && attach_noexec(proof))
        return -EPERM;
    return proof->has_pages ? 0 : -ENODEV;
}

long attach_release(void *arg)
{
    struct client_file *file = arg;

    if (file->proof)
        put_proof(file->proof);
    if (file->conn)
        file->conn->files--;
    table_lock();
    table_free_file(file);
    table_unlock();
    return 0;
}

/* Connect, attach; a connection that turns out to have hung up, unnoticed since it was last used, is
 * made anew. */
static int attach_file(struct client_file *file, const struct spot *spot, void **addr)
{
    for (;;) {
        struct client_conn *conn;
        int error = conn_get(file->proof->dev, &conn);
        if (error < 0)
            return error;
        bool fresh = error > 0;
        file->conn = conn;
        conn->files++;
        error = attach_at(file, spot, addr);
        if (!error)
            return 0;
        conn->files--;
        file->conn = NULL;
        if (error != -ECONNRESET)
            return error;
        if (fresh)
            return -EIO;
    }
}

long attach_map(void *arg)
{
    const struct attach_args *args = arg;
    const struct client_file *same = args->same_as;
    void *addr = NULL;

    int fd = same ? fcntl(same->proof->fd, F_DUPFD_CLOEXEC, 0)
                  : attach_copy_descriptor(args->thread, args->fd);
    if (fd < 0)
        return same ? -errno : fd;
    struct client_file *file = table_new_file();
    if (!file) {
        close(fd);
        return -ENOMEM;
    }
    file->references = 1; /* ours, until it is attached */
    file->prot = args->prot;
    file->type = (args->flags & MAP_TYPE) == MAP_PRIVATE ? MAP_PRIVATE : MAP_SHARED;
    int error = get_proof(fd, &file->proof);
    if (!error)
        error = check_arguments(file->proof, args);
    if (!error) {
        struct spot spot = { args->addr,   page_up(args->length),
                             args->offset, args->flags & PLACEMENT,
                             args->prot,   args->flags & MAP_POPULATE };
        error = attach_file(file, &spot, &addr);
    }
    table_lock();
    bool last = table_put(file);
    table_unlock();
    if (last)
        attach_release(file);
    return error ? error : (long)(intptr_t)addr;
}

long attach_again(void *arg)
{
    struct client_range *range = arg;
    struct client_file *file = range->file;
    struct spot spot = {
        .addr = (void *)range->start, // NOLINT(performance-no-int-to-ptr): it is where it was
        .length = range->end - range->start,
        .offset = range->offset,
        .placement = MAP_FIXED, /* over what keeps the place */
        .prot = range->prot,
    };
    void *addr;

    if (file->proof->fd < 0)
        return -EMFILE;
    if (!file->conn) {
        struct client_conn *conn;
        int error = conn_get(file->proof->dev, &conn);
        if (error < 0)
            return error;
        conn->files++;
        table_lock(); /* other ranges of it may be there */
        file->conn = conn;
        table_unlock();
    }
    return attach_at(file, &spot, &addr);
}

/* ---- the end ------------------------------------------------------------------------------------------- */

long attach_tell_cut(void *arg)
{
    struct attach_cut *cut = arg;

    for (unsigned i = 0; i < CLIENT_CONNS; i++)
        if (cut->conns >> i & 1)
            ask_about(conn_at(i), ATTACH_UNMAP, 0, cut->start, cut->end - cut->start);
    while (cut->unused) {
        struct client_file *file = cut->unused;
        cut->unused = file->next;
        attach_release(file);
    }
    return 0;
}

long attach_unmap(void *arg)
{
    struct attach_cut *cut = arg;
    int error = 0;

    table_lock();
    if (table_full())
        error = -ENOMEM;
    // NOLINTNEXTLINE(performance-no-int-to-ptr): addresses are what the table holds
    else if (sys_munmap((void *)cut->start, cut->end - cut->start))
        error = -errno;
    else
        cut->conns = table_cut(cut->start, cut->end, &cut->unused);
    table_unlock();
    return error ? error : attach_tell_cut(cut);
}

/* Nothing is there: neither a page nor the mark of a protected one. Faults still wait for the daemon. */
static bool empty(const struct client_file *file, struct uffdio_range area, int uffd)
{
    struct uffdio_writeprotect end = { .range = area };
    void *addr = (void *)(uintptr_t)area.start; // NOLINT(performance-no-int-to-ptr)

    if (sys_madvise(addr, area.len, MADV_DONTNEED_LOCKED))
        return false;
    if (!file->read_only)
        ioctl(uffd, UFFDIO_WRITEPROTECT, &end);
    return true;
}

/* What needs no room for mappings, and is allowed where the range is sealed, too. Poison outlives the userfaultfd.
 * Returns false: something may be accessible. */
static bool poison(const struct client_range *range, int uffd)
{
    struct uffdio_poison part = { .range = { range->start, range->end - range->start } };
    unsigned tries = 0;

    if (!empty(range->file, part.range, uffd))
        return false;
    while (part.range.len > 0) {
        part.updated = 0;
        int error = ioctl(uffd, UFFDIO_POISON, &part) ? errno : 0;
        if (part.updated > 0) {
            part.range.start += (uint64_t)part.updated;
            part.range.len = range->end - part.range.start;
        } else if (error == ENOENT && part.range.len > CLIENT_PAGE) {
            part.range.len = page_up(part.range.len / 2); /* parts have been protected, or locked */
        } else if (tries++ == POISON_TRIES || !empty(range->file, part.range, uffd)) {
            return false;
        }
    }
    return true;
}

/* Beyond the end of an empty file: SIGBUS, for loads and stores.   Returns false: something may be accessible. */
static bool blot_out(const struct client_range *range, int uffd)
{
    size_t length = range->end - range->start;
    struct uffdio_range area = { range->start, length };
    void *addr = (void *)range->start; // NOLINT(performance-no-int-to-ptr)

    bool covered = sys_mmap(addr, length, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED,
                            keeper_empty(), 0) != MAP_FAILED;
    if (covered)
        (void)sys_madvise(addr, length, MADV_DONTDUMP);
    bool done = covered || poison(range, uffd) || sys_munmap(addr, length) == 0;
    /* Who waits in a fault there looks again. */
    ioctl(uffd, UFFDIO_WAKE, &area);
    return done;
}

void attach_hang_up(struct client_conn *conn)
{
    bool done = true;

    table_lock();
    atomic_store(&conn->hung_up, true);
    for (unsigned i = 0; i < table_count(); i++)
        if (table_range(i)->file->conn == conn)
            done = blot_out(table_range(i), conn->uffd) && done;
    table_unlock();
    /* Only now may the protection end. The number stays taken: the keeper may be about to use it. */
    if (done)
        dup3(keeper_empty(), conn->uffd, O_CLOEXEC);
    atomic_store(&conn->gone, true);
}
