/* lmdb_env.c: creating, opening and closing the environment. */
#include "store/lmdb_impl.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "store/error.h"

#define MAP_EXTRA_BYTES ((uint64_t)2 << 30)

/* Environments that died and were closed. They stay as they are: threads may have left them with
 * LMDB's locks held and its lists half changed, so nothing in them can be freed but the map. */
static struct lmdb *dead_environments;
static pthread_mutex_t dead_lock = PTHREAD_MUTEX_INITIALIZER;

int lmdb_errno(struct lmdb *l, int rc)
{
    switch (rc) {
    case 0:
        return 0;
    case MDB_NOTFOUND:
        return -ENOENT;
    case MDB_MAP_FULL:
    case ENOSPC:
    case EDQUOT:
    case EFBIG:
        return -ENOSPC;
    case ENOMEM:
    case MDB_READERS_FULL:
        return -ENOMEM;
    case MDB_PANIC:
        atomic_store(&l->dead, true);
        return -EIO;
    default: /* codes, not an enum: all others are damage or our misuse */
        return -EIO;
    }
}

/* ---- closing ------------------------------------------------------------------------------- */

static void env_close(struct lmdb *l)
{
    struct snapshot *next;
    for (struct snapshot *s = l->all; s != NULL; s = next) {
        next = s->next_all;
        if (s->cursor != NULL)
            mdb_cursor_close(s->cursor);
        if (s->txn != NULL)
            mdb_txn_abort(s->txn);
        free(s);
    }
    mdb_env_close(l->env);
    (void)pthread_mutex_destroy(&l->lock);
    free(l->sound.pages);
    free(l);
}

static void bury(struct lmdb *l)
{
    if (l->map != NULL)
        (void)munmap((void *)(uintptr_t)l->map, l->map_size);
    l->map = NULL;
    free(l->sound.pages);
    l->sound.pages = NULL;
    (void)pthread_mutex_lock(&dead_lock);
    l->next_dead = dead_environments;
    dead_environments = l;
    (void)pthread_mutex_unlock(&dead_lock);
}

static struct lmdb *lmdb_new(void)
{
    struct lmdb *l = calloc(1, sizeof *l);
    if (l == NULL)
        return NULL;
    if (mdb_env_create(&l->env) != 0) {
        free(l);
        return NULL;
    }
    (void)pthread_mutex_init(&l->lock, NULL);
    return l;
}

/* ---- opening ------------------------------------------------------------------------------- */

static int file_error(int err, const char *path, struct store_error *error)
{
    switch (err) {
    case ENOENT:
        return store_fail(error, -ENOENT, "%s: does not exist; make it with mkfs.foliofs", path);
    case EROFS:
        return store_fail(error, -EROFS, "%s: lies on a read-only file system; mount it with -o ro",
                          path);
    default: /* errno, not an enum */
        return lmdb_open_error(err, path, error);
    }
}

static int open_file(const char *path, int flags, struct stat *st, struct store_error *error)
{
    int fd = open(path, flags | O_CLOEXEC | O_NONBLOCK | O_NOCTTY, 0600);
    if (fd < 0)
        return file_error(errno, path, error);
    int rc = fstat(fd, st) != 0 ? file_error(errno, path, error) : 0;
    if (rc == 0 && !S_ISREG(st->st_mode))
        rc = store_fail(error, -EINVAL, "%s: is not a regular file; a volume is one", path);
    if (rc != 0) {
        (void)close(fd);
        return rc;
    }
    return fd;
}

/* Takes l and fd over. */
static int finish_open(struct lmdb *l, const char *path, int fd, struct lmdb **out,
                       struct store_error *error)
{
    int rc = lmdb_env_open(l, path, fd, error);
    if (rc == 0)
        rc = lmdb_first_look(l, path, fd, error);
    if (rc == 0 && !l->read_only)
        rc = lmdb_sound_open(l, path, error);
    (void)close(fd);
    if (rc != 0) {
        lmdb_close(l);
        return rc;
    }
    *out = l;
    return 0;
}

int lmdb_create(const char *path, uint64_t capacity, struct lmdb **out, struct store_error *error)
{
    struct stat st = { 0 };
    long page_size = sysconf(_SC_PAGESIZE);
    if (page_size != (long)LMDB_PAGE_SIZE)
        return store_fail(error, -EPROTONOSUPPORT,
                          "%s: cannot be made here: this kernel's pages are %ld bytes, a volume "
                          "needs %u; use a kernel with those",
                          path, page_size, LMDB_PAGE_SIZE);
    int fd = open_file(path, O_RDWR | O_CREAT, &st, error);
    if (fd < 0)
        return fd;
    if (st.st_size != 0) {
        (void)close(fd);
        return store_fail(error, -EEXIST, "%s: exists and is not empty; give another name", path);
    }
    struct lmdb *l = lmdb_new();
    if (l == NULL) {
        (void)close(fd);
        return store_fail(error, -ENOMEM, "%s: no memory", path);
    }
    uint64_t map = capacity + capacity / 4 + MAP_EXTRA_BYTES;
    (void)mdb_env_set_mapsize(l->env, map & ~(uint64_t)(LMDB_PAGE_SIZE - 1));
    return finish_open(l, path, fd, out, error);
}

int lmdb_open(const char *path, bool read_only, struct lmdb **out, struct store_error *error)
{
    struct stat st = { 0 };
    int fd = open_file(path, read_only ? O_RDONLY : O_RDWR, &st, error);
    if (fd < 0)
        return fd;
    if (st.st_size == 0) {
        (void)close(fd);
        return store_fail(error, -EIO, "%s: is empty; make a volume of it with mkfs.foliofs", path);
    }
    struct lmdb *l = lmdb_new();
    if (l == NULL) {
        (void)close(fd);
        return store_fail(error, -ENOMEM, "%s: no memory", path);
    }
    l->read_only = read_only;
    return finish_open(l, path, fd, out, error);
}

void lmdb_close(struct lmdb *l)
{
    if (l == NULL)
        return;
    lmdb_abort(l);
    if (atomic_load(&l->dead))
        bury(l);
    else
        env_close(l);
}

bool lmdb_dead(const struct lmdb *l)
{
    return atomic_load(&l->dead);
}

int lmdb_fd(struct lmdb *l)
{
    return l->fd;
}

/* ---- usage ----------------------------------------------------------------------------------- */

/* All pages of a tree; *nodes: those that are not values. */
static uint64_t tree_pages(MDB_txn *txn, MDB_dbi dbi, uint64_t *nodes)
{
    MDB_stat stat = { 0 };
    (void)mdb_stat(txn, dbi, &stat);
    *nodes = (uint64_t)stat.ms_branch_pages + stat.ms_leaf_pages;
    return *nodes + stat.ms_overflow_pages;
}

/* What the snapshot's commit freed: LMDB keeps a list of page numbers for each commit, the length
 * first, under the commit's number.   Returns 0 or LMDB's code. */
static int pages_freed(MDB_txn *txn, uint64_t *out)
{
    MDB_cursor *cursor;
    MDB_val key, list;
    size_t id, n;
    *out = 0;
    int rc = mdb_cursor_open(txn, FREE_DBI, &cursor);
    if (rc != 0)
        return rc;
    rc = mdb_cursor_get(cursor, &key, &list, MDB_LAST);
    if (rc == 0 && key.mv_size == sizeof id && list.mv_size >= sizeof n) {
        memcpy(&id, key.mv_data, sizeof id);
        memcpy(&n, list.mv_data, sizeof n);
        if (id == mdb_txn_id(txn))
            *out = n;
    }
    mdb_cursor_close(cursor);
    return rc == MDB_NOTFOUND ? 0 : rc;
}

int lmdb_usage_refresh(struct lmdb *l)
{
    MDB_envinfo info;
    struct snapshot *s;
    uint64_t nodes, free_nodes, freed;
    (void)mdb_env_info(l->env, &info);
    (void)pthread_mutex_lock(&l->lock);
    l->usage.last_page = info.me_last_pgno; /* first: what lies behind it may be cut off */
    l->usage.map_pages = l->map_size / LMDB_PAGE_SIZE;
    (void)pthread_mutex_unlock(&l->lock);
    int rc = lmdb_snapshot_begin(l, &s);
    if (rc != 0)
        return rc;
    uint64_t used = tree_pages(s->txn, l->dbi, &nodes) + NR_METAS;
    used += tree_pages(s->txn, FREE_DBI, &free_nodes);
    rc = pages_freed(s->txn, &freed);
    lmdb_snapshot_end(l, s);
    if (rc != 0)
        return lmdb_errno(l, rc);
    (void)pthread_mutex_lock(&l->lock);
    l->usage.used = used;
    l->usage.nodes = nodes;
    l->usage.freed = freed;
    (void)pthread_mutex_unlock(&l->lock);
    return 0;
}

void lmdb_usage(struct lmdb *l, struct lmdb_usage *out)
{
    (void)pthread_mutex_lock(&l->lock);
    *out = l->usage;
    (void)pthread_mutex_unlock(&l->lock);
}
