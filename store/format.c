/* format.c: making a volume.
 *
 * Nothing of what was there changes until the new volume is complete and on the disk:
 *
 *     1. lock PATH (made empty when absent): nobody has it open, and nobody opens it meanwhile
 *     2. build the volume under a temporary name in the same directory; fsync it
 *     3. rename it to PATH; fsync the directory
 *
 * Whoever waits for the lock finds, once it has it, that PATH names another file (volume_lock).
 */
#include "store/store.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <libgen.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

#include "store/error.h"
#include "store/lmdb.h"
#include "store/volume_lock.h"

#define MAX_CAPACITY ((uint64_t)64 << 40)
#define ROOT_MODE    040755u

struct target {
    char path[PATH_MAX]; /* without symbolic links */
    char temporary[PATH_MAX + 32];
    int lock;
    bool made; /* PATH was not there before: we made it, to lock it */
    struct stat st;
};

/* ---- what it contains ------------------------------------------------------------------------ */

/* A random UUID (RFC 4122, version 4).   Returns 0 or -errno. */
static int make_uuid(uint8_t *uuid)
{
    ssize_t n;
    do
        n = getrandom(uuid, 16, 0);
    while (n < 0 && errno == EINTR);
    if (n != 16)
        return n < 0 ? -errno : -EIO;
    uuid[6] = (uint8_t)((uuid[6] & 0x0f) | 0x40);
    uuid[8] = (uint8_t)((uuid[8] & 0x3f) | 0x80);
    return 0;
}

static int make_super(const struct store_format *f, const struct timespec *now,
                      struct super_record *r)
{
    memset(r, 0, sizeof *r);
    r->format_version = FORMAT_VERSION;
    r->block_size = BLOCK_SIZE;
    r->capacity = f->capacity;
    r->features = log_bytes_for(f->capacity) > 0 ? FEATURE_LOG : 0;
    r->created = *now;
    if (f->label != NULL)
        (void)snprintf(r->label, sizeof r->label, "%s", f->label);
    return make_uuid(r->uuid);
}

static void make_root(const struct store_format *f, const struct timespec *now,
                      struct inode_record *r)
{
    memset(r, 0, sizeof *r);
    r->mode = ROOT_MODE;
    r->uid = f->root_uid;
    r->gid = f->root_gid;
    r->nlink = 2;
    r->parent = ROOT_INO;
    r->cookie = FIRST_COOKIE;
    r->atime = r->mtime = r->ctime = r->btime = *now;
}

static int put_log(struct lmdb *l, uint64_t bytes)
{
    uint8_t buf[NUMBER_BYTES];
    struct key key;
    key_log_tail(&key);
    int rc = lmdb_put(l, &key, buf, number_encode(0, buf));
    return rc != 0 ? rc : lmdb_put_log(l, bytes);
}

static int put_records(struct lmdb *l, const struct store_format *f)
{
    uint8_t buf[SUPER_BYTES > INODE_BYTES ? SUPER_BYTES : INODE_BYTES];
    struct super_record super;
    struct inode_record root;
    struct timespec now;
    struct key key;
    (void)clock_gettime(CLOCK_REALTIME, &now);
    int rc = make_super(f, &now, &super);
    if (rc != 0)
        return rc;
    key_super(&key);
    if ((rc = lmdb_put(l, &key, buf, super_encode(&super, buf))) != 0)
        return rc;
    key_counter(&key);
    if ((rc = lmdb_put(l, &key, buf, number_encode(ROOT_INO + 1, buf))) != 0)
        return rc;
    make_root(f, &now, &root);
    key_inode(&key, ROOT_INO);
    if ((rc = lmdb_put(l, &key, buf, inode_encode(&root, buf))) != 0)
        return rc;
    return (super.features & FEATURE_LOG) != 0 ? put_log(l, log_bytes_for(f->capacity)) : 0;
}

/* Put all into the open environment, and onto the disk. */
static int fill(struct lmdb *l, const struct store_format *f)
{
    int rc = lmdb_begin(l);
    if (rc != 0)
        return rc;
    if ((rc = put_records(l, f)) != 0) {
        lmdb_abort(l);
        return rc;
    }
    if ((rc = lmdb_commit(l)) != 0)
        return rc;
    return fsync(lmdb_fd(l)) != 0 ? -errno : 0;
}

/* ---- where it goes --------------------------------------------------------------------------- */

static int check_format(const char *path, const struct store_format *f, struct store_error *error)
{
    if (f->label != NULL && strlen(f->label) > LABEL_MAX_BYTES)
        return store_fail(error, -EINVAL,
                          "%s: a label of %zu bytes is too long; give one of at most %u", path,
                          strlen(f->label), LABEL_MAX_BYTES);
    if (f->capacity < MIN_CAPACITY)
        return store_fail(error, -EINVAL,
                          "%s: a capacity of %" PRIu64 " bytes is too small; give at least %" PRIu64
                          " MiB",
                          path, f->capacity, MIN_CAPACITY >> 20);
    if (f->capacity > MAX_CAPACITY)
        return store_fail(error, -EINVAL,
                          "%s: a capacity of %" PRIu64 " bytes is too large; give at most %" PRIu64
                          " TiB",
                          path, f->capacity, MAX_CAPACITY >> 40);
    return 0;
}

/* Lock PATH and find its real name, so that a symbolic link to a volume stays one. */
static int target_open(struct target *t, const char *path, bool force, struct store_error *error)
{
    char dir[PATH_MAX];
    bool absent = access(path, F_OK) != 0 && errno == ENOENT;
    t->lock = volume_lock(path, true, error);
    if (t->lock < 0)
        return t->lock;
    if (fstat(t->lock, &t->st) != 0 || realpath(path, t->path) == NULL)
        return store_fail(error, -errno, "%s: %s", path, strerror(errno));
    t->made = absent && t->st.st_size == 0;
    if (t->st.st_size > 0 && !force)
        return store_fail(error, -EEXIST,
                          "%s: exists and is not empty; give another name, or --force to replace "
                          "what is there",
                          path);
    (void)snprintf(dir, sizeof dir, "%s", t->path);
    (void)snprintf(t->temporary, sizeof t->temporary, "%s/.foliofs-XXXXXX", dirname(dir));
    int fd = mkostemp(t->temporary, O_CLOEXEC);
    if (fd < 0) {
        int err = errno;
        t->temporary[0] = '\0';
        return store_fail(error, -err,
                          "%s: no file can be made beside it: %s; choose a directory "
                          "you may write to",
                          path, strerror(err));
    }
    /* Who could read the old file can read the new one. (Not its owner? Then it is ours now.) */
    if (!t->made && fchown(fd, t->st.st_uid, t->st.st_gid) == 0)
        (void)fchmod(fd, t->st.st_mode & 0777);
    (void)close(fd);
    return 0;
}

static void target_close(struct target *t, bool good)
{
    if (!good && t->temporary[0] != '\0')
        (void)unlink(t->temporary);
    if (!good && t->made)
        (void)unlink(t->path);
    if (t->lock >= 0)
        (void)close(t->lock);
}

static int sync_directory(const char *path)
{
    char dir[PATH_MAX];
    (void)snprintf(dir, sizeof dir, "%s", path);
    int fd = open(dirname(dir), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0)
        return -errno;
    int rc = fsync(fd) != 0 ? -errno : 0;
    (void)close(fd);
    return rc;
}

static int publish(const struct target *t)
{
    if (rename(t->temporary, t->path) != 0)
        return -errno;
    return sync_directory(t->path);
}

/* An error about the temporary file is one about PATH, for the person who reads it. */
static void name_target(const struct target *t, const char *path, struct store_error *error)
{
    struct store_error theirs = *error;
    size_t len = strlen(t->temporary);
    if (strncmp(theirs.text, t->temporary, len) == 0)
        (void)store_fail(error, 0, "%s%s", path, theirs.text + len);
}

static int build(struct target *t, const char *path, const struct store_format *f,
                 struct store_error *error)
{
    struct lmdb *l;
    int rc = lmdb_create(t->temporary, f->capacity, &l, error);
    if (rc != 0) {
        name_target(t, path, error);
        return rc;
    }
    rc = fill(l, f);
    lmdb_close(l);
    if (rc == 0)
        rc = publish(t);
    if (rc != 0)
        return store_fail(error, rc,
                          "%s: cannot be written: %s; see the room and the health of "
                          "its disk",
                          path, strerror(-rc));
    return 0;
}

int store_format(const char *path, const struct store_format *f, struct store_error *error)
{
    struct store_format format = *f;
    struct target t = { .lock = -1 };
    struct store_error unread;
    if (error == NULL)
        error = &unread;
    if (format.capacity == 0)
        format.capacity = DEFAULT_CAPACITY;
    int rc = check_format(path, &format, error);
    if (rc != 0)
        return rc;
    rc = target_open(&t, path, format.force, error);
    if (rc == 0)
        rc = build(&t, path, &format, error);
    target_close(&t, rc == 0);
    return rc;
}
