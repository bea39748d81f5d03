/* lmdb_open.c: getting LMDB to open a volume, and looking at it before it is trusted.
 *
 * LMDB puts a lock file beside its data file. It holds the table of readers, which we need, and the
 * lock against other processes, which we do not (store/volume_lock.c). A file there would have to be
 * writable where the volume may not be, could be left behind, and is written through a map, so that
 * on a full disk opening a volume would be a SIGBUS. So LMDB is given a door to the volume in a
 * private directory in memory, and the door is taken away once it is open:
 *
 *     /dev/shm/foliofs.XXXXXX/volume       ->  /proc/self/fd/N, the volume as we opened it
 *     /dev/shm/foliofs.XXXXXX/volume-lock      allocated, so that writing to it cannot fail
 *
 * Flags: never NOSYNC or NOMETASYNC, which lose what was reported durable; never WRITEMAP, which
 * opens the map to stray pointers and the disk's ENOSPC; NOTLS, because a snapshot may move between
 * threads; NORDAHEAD, because what is read through the map is the tree, from anywhere.
 */
#include "store/lmdb_impl.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "store/error.h"

#define ENV_FLAGS       (MDB_NOSUBDIR | MDB_NOTLS | MDB_NORDAHEAD)
#define LOCK_FILE_BYTES (128 << 10) /* 64 bytes for each reader: 2,000 at once */
#define DOOR_PATH_BYTES 64u
#define FREE_PAGES_MAX  ((uint64_t)1 << 32) /* in one record of the free tree */

/* ---- the map --------------------------------------------------------------------------------- */

struct mapping {
    uintptr_t from, to;
    unsigned long offset, inode;
    char perms[5];
};

/* LMDB does not tell where its map is (me_mapaddr is for MDB_FIXEDMAP only). It is the one read-only
 * shared mapping of its size; the inode decides between two such, where it is the one stat(2) has
 * (overlay file systems differ). */
static int find_map(struct lmdb *l, uint64_t inode)
{
    char line[512];
    struct mapping m;
    uintptr_t by_size = 0, by_inode = 0;
    unsigned nr_by_size = 0;
    FILE *maps = fopen("/proc/self/maps", "re");
    if (maps == NULL)
        return -errno;
    while (fgets(line, sizeof line, maps) != NULL) {
        if (sscanf(line, "%" SCNxPTR "-%" SCNxPTR " %4s %lx %*s %lu", &m.from, &m.to, m.perms,
                   &m.offset, &m.inode) != 5)
            continue;
        if (m.to - m.from != l->map_size || m.offset != 0 || strcmp(m.perms, "r--s") != 0)
            continue;
        by_size = m.from;
        nr_by_size++;
        if (m.inode == inode)
            by_inode = m.from;
    }
    (void)fclose(maps);
    l->map = (const uint8_t *)(by_inode != 0 ? by_inode : nr_by_size == 1 ? by_size : 0); // NOLINT
    return l->map != NULL ? 0 : -ENOENT;
}

/* ---- the door -------------------------------------------------------------------------------- */

struct door {
    char dir[DOOR_PATH_BYTES];
    char volume[DOOR_PATH_BYTES + 8];
    char lock[DOOR_PATH_BYTES + 16];
};

static void door_close(const struct door *d)
{
    (void)unlink(d->lock);
    (void)unlink(d->volume);
    (void)rmdir(d->dir);
}

/* Returns 0 or an errno. */
static int make_lock_file(const char *path)
{
    int fd = open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    if (fd < 0)
        return errno;
    int rc = posix_fallocate(fd, 0, LOCK_FILE_BYTES);
    (void)close(fd);
    return rc;
}

static int door_open_in(struct door *d, const char *parent, int fd)
{
    char target[32];
    (void)snprintf(d->dir, sizeof d->dir, "%s/foliofs.XXXXXX", parent);
    if (mkdtemp(d->dir) == NULL)
        return -errno;
    (void)snprintf(d->volume, sizeof d->volume, "%s/volume", d->dir);
    (void)snprintf(d->lock, sizeof d->lock, "%s/volume-lock", d->dir);
    (void)snprintf(target, sizeof target, "/proc/self/fd/%d", fd);
    int rc = symlink(target, d->volume) != 0 ? errno : make_lock_file(d->lock);
    if (rc != 0)
        door_close(d);
    return -rc;
}

static int door_open(struct door *d, int fd, struct store_error *error)
{
    int rc = door_open_in(d, "/dev/shm", fd);
    if (rc != 0)
        rc = door_open_in(d, "/tmp", fd);
    if (rc != 0)
        return store_fail(error, rc,
                          "cannot make a directory of %d KiB in /dev/shm or /tmp: %s; "
                          "make room in one of them",
                          LOCK_FILE_BYTES >> 10, strerror(-rc));
    return 0;
}

/* ---- opening --------------------------------------------------------------------------------- */

int lmdb_open_error(int rc, const char *path, struct store_error *error)
{
    switch (rc) {
    case MDB_INVALID:
        return store_fail(error, -EIO,
                          "%s: is not a FolioFS volume, or its first pages are damaged; check the "
                          "name, or run fsck.foliofs",
                          path);
    case MDB_VERSION_MISMATCH:
        return store_fail(error, -EPROTONOSUPPORT,
                          "%s: was made by another version of LMDB; copy its files with the "
                          "foliofs that made it",
                          path);
    case ENOMEM:
        return store_fail(error, -ENOMEM,
                          "%s: no memory, or no address space for its map; raise the limit (ulimit "
                          "-v unlimited), or make the volume with a smaller capacity",
                          path);
    case EACCES:
    case EPERM:
        return store_fail(error, -EACCES,
                          "%s: %s; become its owner, or change its mode to 0600 for yourself", path,
                          strerror(rc));
    case ENOSPC:
    case EDQUOT:
        return store_fail(error, -rc, "%s: %s; make room on its disk", path, strerror(rc));
    default: /* codes, not an enum */
        return store_fail(error, rc > 0 ? -rc : -EIO, "%s: cannot be opened: %s; run fsck.foliofs",
                          path, mdb_strerror(rc));
    }
}

/* Learn where things are; nothing of the tree is looked at. Under the guard, except that the map's
 * place is only known afterwards: the two meta pages were just read. */
static int env_learn(struct lmdb *l, const char *path, struct store_error *error)
{
    struct stat st;
    MDB_envinfo info;
    MDB_stat tree;
    (void)mdb_env_info(l->env, &info);
    (void)mdb_env_stat(l->env, &tree);
    (void)mdb_env_get_fd(l->env, &l->fd);
    (void)fcntl(l->fd, F_SETFD, FD_CLOEXEC);
    if (fstat(l->fd, &st) != 0)
        return lmdb_open_error(errno, path, error);
    if (tree.ms_psize != LMDB_PAGE_SIZE)
        return store_fail(error, -EPROTONOSUPPORT,
                          "%s: has pages of %u bytes, this foliofs knows %u; use it on the machine "
                          "that made it",
                          path, tree.ms_psize, LMDB_PAGE_SIZE);
    l->map_size = (info.me_mapsize + LMDB_PAGE_SIZE - 1) & ~(size_t)(LMDB_PAGE_SIZE - 1);
    int rc = find_map(l, st.st_ino);
    if (rc == -ENOMEM)
        return lmdb_open_error(ENOMEM, path, error);
    if (rc != 0)
        return store_fail(error, rc, "%s: its map is not in /proc/self/maps (%s); mount /proc",
                          path, strerror(-rc));
    return 0;
}

int lmdb_env_open(struct lmdb *l, const char *path, int fd, struct store_error *error)
{
    struct door door;
    int rc = door_open(&door, fd, error);
    if (rc != 0)
        return rc;
    rc = mdb_env_open(l->env, door.volume, ENV_FLAGS | (l->read_only ? MDB_RDONLY : 0), 0600);
    door_close(&door);
    if (rc != 0)
        return lmdb_open_error(rc, path, error);
    lmdb_guard_asserts(l);
    return env_learn(l, path, error);
}

/* ---- is the file whole? ---------------------------------------------------------------------- */

struct first_look {
    uint64_t file_pages;
    uint64_t last_page;
    uint64_t missing_free; /* free pages that lie behind the file's end */
    bool foreign;
};

/* Count the free pages from first on. LMDB does not write a page that it took and gave back within
 * one transaction, so a sound file may end before its last page; what is missing then is free.
 * A record of the free tree is a count, then page numbers. */
static int count_free(struct lmdb *l, uint64_t first, uint64_t *count)
{
    struct snapshot *s;
    MDB_cursor *cursor;
    MDB_val key, value;
    uint64_t n;
    int rc = lmdb_snapshot_begin(l, &s);
    if (rc != 0)
        return rc;
    *count = 0;
    if ((rc = mdb_cursor_open(s->txn, FREE_DBI, &cursor)) != 0)
        goto out;
    while ((rc = mdb_cursor_get(cursor, &key, &value, MDB_NEXT)) == 0) {
        const uint8_t *p = value.mv_data;
        rc = MDB_CORRUPTED;
        if (value.mv_size < sizeof n || !lmdb_inside_map(l, p, value.mv_size))
            break;
        memcpy(&n, p, sizeof n);
        if (n > FREE_PAGES_MAX || (n + 1) * sizeof n > value.mv_size)
            break;
        for (uint64_t i = 1, page; i <= n; i++) {
            memcpy(&page, p + i * sizeof page, sizeof page);
            *count += page >= first;
        }
    }
    mdb_cursor_close(cursor);
out:
    lmdb_snapshot_end(l, s);
    return rc == MDB_NOTFOUND ? 0 : lmdb_errno(l, rc);
}

static int first_look_work(struct lmdb *l, void *arg)
{
    struct first_look *look = arg;
    MDB_envinfo info;
    MDB_txn *txn;
    unsigned flags = 0;
    (void)mdb_env_info(l->env, &info);
    look->last_page = info.me_last_pgno;
    int rc = mdb_txn_begin(l->env, NULL, MDB_RDONLY, &txn);
    if (rc != 0)
        return lmdb_errno(l, rc);
    rc = mdb_dbi_open(txn, NULL, 0, &l->dbi);
    if (rc == 0)
        rc = mdb_dbi_flags(txn, l->dbi, &flags);
    mdb_txn_abort(txn);
    look->foreign = flags != 0;
    if (rc != 0 || look->foreign)
        return lmdb_errno(l, rc);
    if (look->last_page >= look->file_pages) {
        rc = count_free(l, look->file_pages, &look->missing_free);
        if (rc != 0)
            return rc;
        if (look->missing_free != look->last_page + 1 - look->file_pages)
            return 0;
    }
    return lmdb_usage_refresh(l);
}

int lmdb_first_look(struct lmdb *l, const char *path, int fd, struct store_error *error)
{
    struct stat st;
    if (fstat(fd, &st) != 0)
        return lmdb_open_error(errno, path, error);
    uint64_t file_bytes = (uint64_t)st.st_size;
    struct first_look look = { .file_pages = file_bytes / LMDB_PAGE_SIZE };
    int rc = lmdb_guard(l, first_look_work, &look);
    if (look.foreign)
        return lmdb_open_error(MDB_INVALID, path, error);
    if (rc == -ENOMEM)
        return lmdb_open_error(ENOMEM, path, error);
    if (look.last_page >= look.file_pages &&
        (rc != 0 || look.missing_free != look.last_page + 1 - look.file_pages))
        return store_fail(error, -EIO,
                          "%s: truncated: %" PRIu64 " bytes missing; restore a backup "
                          "(fsck.foliofs -n says what else is damaged)",
                          path, (look.last_page + 1) * LMDB_PAGE_SIZE - file_bytes);
    if (rc != 0)
        return store_fail(error, rc, "%s: cannot be read (%s); run fsck.foliofs", path,
                          strerror(-rc));
    return 0;
}
