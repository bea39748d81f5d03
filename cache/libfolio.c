/* libfolio.c: folio.h's functions: each walks over the attached and the other parts of what it was
 * given, and does with the other parts what the system call of its name does. */
#include "cache/folio.h"
#include "cache/libfolio.h"

#include <fcntl.h>
#include <linux/magic.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/vfs.h>

#ifndef MADV_COLD
#define MADV_COLD    20
#define MADV_PAGEOUT 21
#endif
#define MADV_GUARDS 102 /* MADV_GUARD_INSTALL, Linux 6.13 */

/* One piece of an address range: attached, with a reference of its file; or, file NULL, not. */
struct piece {
    char *addr;
    size_t length;
    struct client_range range;
};

static char *as_pointer(uintptr_t address)
{
    return (char *)address; // NOLINT(performance-no-int-to-ptr): the tables hold numbers
}

static bool aligned(const void *addr)
{
    return (uintptr_t)addr % CLIENT_PAGE == 0;
}

/* Whole pages, and some. Of what is none the kernel says what is wrong. */
static bool is_range(const void *addr, size_t length)
{
    return aligned(addr) && (uintptr_t)addr + page_up(length) > (uintptr_t)addr;
}

/* errno, and -1. */
static int fail(int error)
{
    errno = error;
    return -1;
}

static int result(long error)
{
    return error < 0 ? fail((int)-error) : 0;
}

/* The piece at addr, in what is left before end. */
static void next_piece(const char *addr, const char *end, struct piece *piece)
{
    uintptr_t from = (uintptr_t)addr, to = (uintptr_t)end;

    *piece = (struct piece){ .addr = as_pointer(from), .length = to - from };
    table_lock();
    if (table_next(from, to, &piece->range)) {
        if (piece->range.start > from) {  /* first comes what is not attached */
            table_put(piece->range.file); /* not the last: the range has one */
            piece->range.file = NULL;
            piece->length = piece->range.start - from;
        } else {
            piece->length = piece->range.end - from;
        }
    }
    table_unlock();
}

static void put_piece(const struct piece *piece)
{
    if (!piece->range.file)
        return;
    table_lock();
    bool last = table_put(piece->range.file);
    table_unlock();
    if (!last)
        return;
    door_enter();
    keeper_run(attach_release, piece->range.file);
    door_leave();
}

/* Call f for each piece, to the first error.   Returns 0, or -1 with errno. -ENOMEM from f: parts are
 * not mapped; the rest is done first, as the kernel does. */
static int for_pieces(void *addr, size_t length, int (*f)(const struct piece *piece, void *arg),
                      void *arg)
{
    const char *at = addr, *end = at + page_up(length);
    bool unmapped = false;

    while (at < end) {
        struct piece piece;
        next_piece(at, end, &piece);
        int error = f(&piece, arg);
        put_piece(&piece);
        if (error == -ENOMEM)
            unmapped = true;
        else if (error)
            return fail(-error);
        at += piece.length;
    }
    return unmapped ? fail(ENOMEM) : 0;
}

/* ---- mmap and munmap ------------------------------------------------------------------------------ */

/* The mount of a descriptor.   Returns 0 or -errno. */
static int mount_of(int fd, dev_t *dev)
{
    struct statx stat;

    if (statx(fd, "", AT_EMPTY_PATH | AT_STATX_DONT_SYNC, STATX_TYPE, &stat))
        return -errno;
    *dev = makedev(stat.stx_dev_major, stat.stx_dev_minor);
    return 0;
}

/* A line for FOLIO_VERBOSE; of other file systems nobody expects it. */
static void say_not_offered(int fd)
{
    static const char text[] = "libfolio: this mount does not offer attaching; FolioFS with -o "
                               "attach does, and with cache=direct\n";
    struct statfs fs;

    if (conn_verbose() && fstatfs(fd, &fs) == 0 && fs.f_type == FUSE_SUPER_MAGIC)
        (void)!write(STDERR_FILENO, text, sizeof(text) - 1);
}

static long attach(struct attach_args *args)
{
    door_enter();
    long got = table_open();
    if (got == 0)
        got = fork_watch();
    if (got == 0)
        got = keeper_start(-1);
    if (got == 0)
        got = keeper_run(attach_map, args);
    if (got < 0 && got > -(long)CLIENT_PAGE)
        conn_say("a mapping is not attached", (int)-got);
    door_leave();
    return got;
}

/* MAP_LOCKED: the limit is an error, that pages could not be read is none.   Returns 0 or -errno. */
static int lock_pages(void *addr, size_t length)
{
    if (syscall(SYS_mlock2, addr, length, 1 /* MLOCK_ONFAULT */))
        return errno == ENOMEM ? -EAGAIN : -errno;
    sys_madvise(addr, length, MADV_POPULATE_READ);
    return 0;
}

FOLIO_EXPORT void *folio_mmap(void *addr, size_t length, int prot, int flags, int fd, off_t offset)
{
    struct attach_args args = {
        .thread = (pid_t)syscall(SYS_gettid),
        .fd = fd,
        .addr = addr,
        .length = length,
        .prot = prot & (PROT_READ | PROT_WRITE | PROT_EXEC), /* mmap(2) minds no others */
        .flags = flags,
        .offset = offset,
    };

    fork_check();
    if (flags & MAP_ANONYMOUS) {
        fail(EINVAL);
        return MAP_FAILED;
    }
    int error = mount_of(fd, &args.dev);
    if (!error && !conn_offered(args.dev)) {
        say_not_offered(fd);
        error = -EOPNOTSUPP;
    }
    if (error) {
        fail(-error);
        return MAP_FAILED;
    }
    /* What is stored there is nobody else's: the kernel copies pages, and gives the copies to a child. */
    if ((flags & MAP_TYPE) == MAP_PRIVATE && (prot & PROT_WRITE))
        return flags & MAP_FIXED ? folio_mmap_over(addr, length, prot, flags, fd, offset)
                                 : sys_mmap(addr, length, prot, flags, fd, offset);
    long got = attach(&args);
    if (got < 0 && got > -(long)CLIENT_PAGE) {
        fail((int)-got);
        return MAP_FAILED;
    }
    char *mapped = as_pointer((uintptr_t)got);
    if ((flags & MAP_LOCKED) && (error = lock_pages(mapped, page_up(length)))) {
        folio_munmap(mapped, length);
        fail(-error);
        return MAP_FAILED;
    }
    /* From here on read and write are the daemon's, not the kernel's cache's. */
    int status = fcntl(fd, F_GETFL);
    if (status >= 0 && !(status & O_DIRECT))
        fcntl(fd, F_SETFL, status | O_DIRECT); /* some file systems cannot; then they need not */
    return mapped;
}

FOLIO_EXPORT int folio_munmap(void *addr, size_t length)
{
    struct attach_cut cut = { .start = (uintptr_t)addr, .end = (uintptr_t)addr + page_up(length) };

    fork_check();
    if (!is_range(addr, length) || !table_touches(addr, page_up(length)))
        return sys_munmap(addr, length);
    door_enter();
    long error = keeper_run(attach_unmap, &cut);
    door_leave();
    return result(error);
}

FOLIO_EXPORT void *folio_mmap_over(void *addr, size_t length, int prot, int flags, int fd,
                                   off_t offset)
{
    struct attach_cut cut = { .start = (uintptr_t)addr, .end = (uintptr_t)addr + page_up(length) };

    fork_check();
    if (!table_touches(addr, page_up(length)))
        return sys_mmap(addr, length, prot, flags, fd, offset);
    door_enter();
    table_lock();
    void *mapped = MAP_FAILED;
    int error = ENOMEM;
    if (!table_full()) {
        mapped = sys_mmap(addr, length, prot, flags, fd, offset);
        error = errno;
    }
    if (mapped != MAP_FAILED)
        cut.conns = table_cut(cut.start, cut.end, &cut.unused);
    table_unlock();
    if (mapped != MAP_FAILED)
        keeper_run(attach_tell_cut, &cut);
    else
        errno = error;
    door_leave();
    return mapped;
}

FOLIO_EXPORT int folio_attached(const void *addr, size_t length)
{
    fork_check();
    return table_touches(addr, length);
}

FOLIO_EXPORT bool folio_attached_at(uintptr_t addr, size_t length)
{
    fork_check();
    return table_touches(as_pointer(addr), length);
}

FOLIO_EXPORT bool folio_mount_attached(int fd)
{
    int before = errno;
    bool attached = false;
    dev_t dev = 0;

    fork_check();
    if (!mount_of(fd, &dev) && conn_find(dev)) {
        door_enter();
        const struct client_conn *conn = conn_find(dev);
        attached = conn && conn->files > 0;
        door_leave();
    }
    errno = before;
    return attached;
}

/* ---- msync ------------------------------------------------------------------------------------------- */

/* For keeper_run: one request about a piece. */
struct request {
    const struct piece *piece;
    unsigned op;
    int advice;
    unsigned char *bytes; /* MINCORE */
    size_t count;
};

static long ask(void *arg)
{
    const struct request *request = arg;
    struct attach_request message = { .op = request->op,
                                      .version = ATTACH_VERSION,
                                      .addr = (uintptr_t)request->piece->addr,
                                      .length = request->piece->length,
                                      .advice = request->advice };

    return conn_ask(request->piece->range.file->conn, &message, -1, NULL, NULL, request->bytes,
                    request->count);
}

static int ask_daemon(struct request *request)
{
    door_enter();
    long error = keeper_run(ask, request);
    door_leave();
    return (int)error;
}

/* Of the file that a piece belongs to, and not on the keeper: other threads need not wait for it. */
static int keep_file(const struct piece *piece, long (*call)(void *arg))
{
    long error = keeper_run_apart(call, (void *)(uintptr_t)piece);

    return error == -ENOTCONN || error == -ECONNABORTED ? -EIO : (int)error;
}

static long sync_file(void *arg)
{
    const struct piece *piece = arg;

    return fsync(piece->range.file->proof->fd) ? -errno : 0;
}

static long remove_pages(void *arg)
{
    const struct piece *piece = arg;

    return fallocate(piece->range.file->proof->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
                     piece->range.offset, (off_t)piece->length)
               ? -errno
               : 0;
}

/* Where one is locked in memory, mlock(2) or MAP_LOCKED. */
static bool has_locked(const struct piece *piece)
{
    return sys_msync(piece->addr, piece->length, MS_INVALIDATE) && errno == EBUSY;
}

struct syncing {
    int flags;
    const struct client_proof *done; /* all of this file is */
};

static int msync_piece(const struct piece *piece, void *arg)
{
    struct syncing *syncing = arg;
    struct request write = { .piece = piece, .op = ATTACH_WRITE };
    int error = 0;

    if (!piece->range.file)
        return sys_msync(piece->addr, piece->length, syncing->flags) ? -errno : 0;
    if ((syncing->flags & MS_INVALIDATE) && has_locked(piece))
        return -EBUSY;
    if (piece->range.file->read_only)
        return 0;
    if (syncing->flags & MS_ASYNC)
        error = ask_daemon(&write);
    else if ((syncing->flags & MS_SYNC) && syncing->done != piece->range.file->proof)
        error = keep_file(piece, sync_file);
    syncing->done = piece->range.file->proof;
    return error == -ECONNRESET ? -EIO : error;
}

FOLIO_EXPORT int folio_msync(void *addr, size_t length, int flags)
{
    fork_check();
    if (!is_range(addr, length) || (flags & ~(MS_SYNC | MS_ASYNC | MS_INVALIDATE)) ||
        (flags & (MS_SYNC | MS_ASYNC)) == (MS_SYNC | MS_ASYNC) ||
        !table_touches(addr, page_up(length)))
        return sys_msync(addr, length, flags);
    struct syncing syncing = { .flags = flags };
    return for_pieces(addr, length, msync_piece, &syncing);
}

/* ---- madvise ------------------------------------------------------------------------------------------ */

static int inherit_piece(const struct piece *piece, bool inherit)
{
    door_enter();
    table_lock();
    if (!table_full())
        table_inherit(piece->range.start, piece->range.end, inherit);
    table_unlock();
    door_leave();
    return 0;
}

static int unmap_pages(const struct piece *piece, int advice)
{
    struct request advise = { .piece = piece, .op = ATTACH_ADVISE, .advice = MADV_DONTNEED };

    /* Not once the daemon has hung up: it would undo what attach_hang_up may have done. */
    table_lock();
    int error = 0;
    if (atomic_load(&piece->range.file->conn->hung_up))
        error = -ECONNRESET;
    else if (sys_madvise(piece->addr, piece->length, advice))
        error = -errno;
    table_unlock();
    return error ? error : ask_daemon(&advise);
}

static int madvise_attached(const struct piece *piece, int advice)
{
    struct request advise = { .piece = piece, .op = ATTACH_ADVISE, .advice = advice };

    switch (advice) {
    case MADV_DONTNEED:
    case MADV_DONTNEED_LOCKED:
        return unmap_pages(piece, advice);
    case MADV_NORMAL:
    case MADV_RANDOM:
    case MADV_SEQUENTIAL:
    case MADV_WILLNEED:
        return ask_daemon(&advise);
    case MADV_COLD:
    case MADV_PAGEOUT:
        return has_locked(piece) ? -EINVAL : ask_daemon(&advise);
    case MADV_REMOVE:
        if (has_locked(piece))
            return -EINVAL;
        return piece->range.file->read_only ? -EACCES : keep_file(piece, remove_pages);
    case MADV_DONTFORK:
        return inherit_piece(piece, false);
    case MADV_DOFORK:
        return inherit_piece(piece, true);
    case MADV_NOHUGEPAGE:
        return 0; /* there are none */
    case MADV_HUGEPAGE:
    case MADV_GUARDS:
    case MADV_GUARDS + 1:
        return -EINVAL;
    default:
        return sys_madvise(piece->addr, piece->length, advice) ? -errno : 0;
    }
}

static int madvise_piece(const struct piece *piece, void *arg)
{
    int advice = *(const int *)arg;

    if (!piece->range.file)
        return sys_madvise(piece->addr, piece->length, advice) ? -errno : 0;
    int error = madvise_attached(piece, advice);
    return error == -ECONNRESET ? -EIO : error;
}

FOLIO_EXPORT int folio_madvise(void *addr, size_t length, int advice)
{
    fork_check();
    if (!is_range(addr, length) || !table_touches(addr, page_up(length)))
        return sys_madvise(addr, length, advice);
    return for_pieces(addr, length, madvise_piece, &advice);
}

/* ---- mincore ------------------------------------------------------------------------------------------- */

#define MINCORE_PAGES 4096u /* at a time: they are on the stack */
_Static_assert(MINCORE_PAGES <= ATTACH_MINCORE_PAGES, "more than a daemon answers");

static int mincore_piece(const struct piece *piece, void *arg)
{
    unsigned char **vec = arg, bytes[MINCORE_PAGES];
    struct piece part = *piece;

    for (size_t done = 0; done < piece->length; done += part.length) {
        part.addr = piece->addr + done;
        part.length = piece->length - done;
        if (part.length > MINCORE_PAGES * CLIENT_PAGE)
            part.length = MINCORE_PAGES * CLIENT_PAGE;
        size_t pages = part.length / CLIENT_PAGE;
        struct request request = {
            .piece = &part, .op = ATTACH_MINCORE, .bytes = bytes, .count = pages
        };
        /* The kernel says whether vec is good, and what is there of what is not attached, or is no more. */
        if (sys_mincore(part.addr, part.length, *vec))
            return errno == ENOMEM ? -ENXIO : -errno;
        int error = piece->range.file ? ask_daemon(&request) : -ECONNRESET;
        if (error && error != -ECONNRESET)
            return error;
        if (!error)
            memcpy(*vec, bytes, pages); /* no lock is held: it may be attached itself */
        *vec += pages;
    }
    return 0;
}

FOLIO_EXPORT int folio_mincore(void *addr, size_t length, unsigned char *vec)
{
    fork_check();
    if (!is_range(addr, length) || !table_touches(addr, page_up(length)))
        return sys_mincore(addr, length, vec);
    int error = for_pieces(addr, length, mincore_piece, &vec);
    /* An unmapped part ends it at once, unlike in the others. */
    return error && errno == ENXIO ? fail(ENOMEM) : error;
}

/* ---- mprotect ------------------------------------------------------------------------------------------ */

static bool is_noexec(const struct client_file *file)
{
    door_enter();
    long noexec = keeper_run(attach_noexec, file->proof);
    door_leave();
    return noexec;
}

static int may_protect(const struct piece *piece, void *arg)
{
    const struct client_file *file = piece->range.file;
    int prot = *(const int *)arg;

    if (!file)
        return 0;
    if ((prot & PROT_WRITE) && (file->read_only || file->type == MAP_PRIVATE))
        return -EACCES;
    return (prot & PROT_EXEC) && is_noexec(file) ? -EACCES : 0;
}

FOLIO_EXPORT int folio_may_protect(void *addr, size_t length, int prot)
{
    fork_check();
    if (!is_range(addr, length) || !table_touches(addr, page_up(length)))
        return 0;
    return for_pieces(addr, length, may_protect, &prot);
}

FOLIO_EXPORT int folio_mprotect(void *addr, size_t length, int prot)
{
    return folio_may_protect(addr, length, prot) ? -1 : sys_mprotect(addr, length, prot);
}

/* ---- mremap --------------------------------------------------------------------------------------------- */

/* Attach length bytes of the same file from offset on, at addr. */
static void *attach_more(const struct client_range *range, void *addr, size_t length, off_t offset,
                         int placement)
{
    struct attach_args args = { .same_as = range->file,
                                .addr = addr,
                                .length = length,
                                .prot = range->prot,
                                .flags = range->file->type | placement,
                                .offset = offset };

    long got = attach(&args);
    if (got >= 0 || got <= -(long)CLIENT_PAGE)
        return as_pointer((uintptr_t)got);
    fail((int)-got);
    return MAP_FAILED;
}

static void *move(const struct piece *old, size_t new_length, int flags, void *new_addr)
{
    bool fixed = flags & MREMAP_FIXED;
    void *moved = attach_more(&old->range, fixed ? new_addr : NULL, new_length, old->range.offset,
                              fixed ? MAP_FIXED : 0);

    if (moved != MAP_FAILED)
        folio_munmap(old->addr, old->length);
    return moved;
}

static bool overlap(const char *a, size_t a_length, const char *b, size_t b_length)
{
    return (uintptr_t)a < (uintptr_t)b + b_length && (uintptr_t)b < (uintptr_t)a + a_length;
}

/* Pieces that were attached one by one, by grow, are one mapping to the program. */
static int follows(const struct piece *piece, void *arg)
{
    const struct client_range *whole = arg;
    const struct client_file *file = piece->range.file;

    if (!file || file->proof != whole->file->proof || file->type != whole->file->type ||
        piece->range.prot != whole->prot ||
        piece->range.offset - whole->offset != (off_t)(piece->range.start - whole->start))
        return -EFAULT;
    return 0;
}

/* Attach more behind it.   Returns false with errno; EEXIST: something else is there. */
static bool grow(const struct piece *old, size_t more)
{
    char *behind = old->addr + old->length;

    /* First the place, or another thread may take it. */
    void *kept = sys_mmap(behind, more, PROT_NONE,
                          MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED_NOREPLACE, -1, 0);
    if (kept == MAP_FAILED)
        return false;
    if (attach_more(&old->range, behind, more, old->range.offset + (off_t)old->length, MAP_FIXED) !=
        MAP_FAILED)
        return true;
    int error = errno;
    sys_munmap(behind, more);
    errno = error;
    return false;
}

/* old is one attached range, and a reference of its file is held. */
static void *remap(const struct piece *old, size_t new_length, int flags, void *new_addr)
{
    if (flags & MREMAP_FIXED)
        return move(old, new_length, flags, new_addr);
    if (new_length <= old->length) {
        size_t rest = old->length - new_length;
        return rest && folio_munmap(old->addr + new_length, rest) ? MAP_FAILED : old->addr;
    }
    if (grow(old, new_length - old->length))
        return old->addr;
    if (errno == EEXIST && (flags & MREMAP_MAYMOVE))
        return move(old, new_length, flags, NULL);
    if (errno == EEXIST)
        errno = ENOMEM;
    return MAP_FAILED;
}

FOLIO_EXPORT void *folio_mremap(void *addr, size_t old_length, size_t new_length, int flags,
                                void *new_addr)
{
    struct piece old;
    int error = 0;

    fork_check();
    bool attached = table_touches(addr, page_up(old_length > 0 ? old_length : 1));
    bool over = (flags & MREMAP_FIXED) && table_touches(new_addr, page_up(new_length));
    if (!attached && !over)
        return sys_mremap(addr, old_length, new_length, flags, new_addr);
    old_length = page_up(old_length);
    new_length = page_up(new_length);
    if ((flags & ~(MREMAP_MAYMOVE | MREMAP_FIXED)) || !aligned(addr) || !new_length ||
        !old_length ||
        ((flags & MREMAP_FIXED) && (!(flags & MREMAP_MAYMOVE) || !aligned(new_addr) ||
                                    overlap(addr, old_length, new_addr, new_length))))
        error = EINVAL;
    else if (!attached && folio_munmap(new_addr, new_length))
        error = errno;
    if (error) {
        fail(error);
        return MAP_FAILED;
    }
    if (!attached)
        return sys_mremap(addr, old_length, new_length, flags, new_addr);

    door_enter();
    keeper_run(maps_learn, NULL);
    door_leave();
    next_piece(addr, (char *)addr + old_length, &old);
    void *mapped = MAP_FAILED;
    struct client_range whole = old.range;
    if (old.range.file && !for_pieces(addr, old_length, follows, &whole)) {
        old.length = old_length;
        mapped = remap(&old, new_length, flags, new_addr);
    }
    if (!old.range.file)
        errno = EFAULT;
    error = errno;
    put_piece(&old);
    errno = error;
    return mapped;
}
