/* store.c: opening and closing a volume. */
#include "store/store.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "store/dev_fault.h"
#include "store/error.h"
#include "store/txn.h"
#include "store/volume_lock.h"

#define DEFAULT_TXN_BYTES ((uint64_t)64 << 20)
#define MIN_TXN_BYTES     ((uint64_t)1 << 20)
#define MAX_TXN_BYTES \
    ((uint64_t)128 << 20) /* 32,768 blocks: far below LMDB's 131,071 dirty pages */

static int no_memory(const char *path, struct store_error *error)
{
    return store_fail(error, -ENOMEM, "%s: not enough memory to open it", path);
}

static int read_super(struct store *s, const char *path, struct store_error *error)
{
    uint8_t buf[512];
    struct key key;
    key_super(&key);
    ssize_t n = lmdb_get(s->lmdb, &key, buf, sizeof buf);
    int err = n < 0 ? (int)n : super_decode(buf, (size_t)n, &s->super);
    if (err == -ENOMEM)
        return no_memory(path, error);
    if (err == -ENOENT)
        return store_fail(error, -EINVAL,
                          "%s: not a FolioFS volume (no superblock); make one with mkfs.foliofs",
                          path);
    if (err == -EPROTONOSUPPORT)
        return store_fail(
            error, err,
            "%s: format version %u, features %#llx: this program knows version %u; use a newer "
            "foliofs",
            path, s->super.format_version, (unsigned long long)s->super.features, FORMAT_VERSION);
    if (err != 0)
        return store_fail(error, err,
                          "%s: the superblock is damaged; run fsck.foliofs %s, restore a backup",
                          path, path);
    return 0;
}

/* Where its records begin; LOG_NONE: not known. */
static int read_tail(struct store *s, uint64_t *tail)
{
    uint8_t buf[NUMBER_BYTES];
    struct key key;
    key_log_tail(&key);
    ssize_t n = lmdb_get(s->lmdb, &key, buf, sizeof buf);
    if (n == -ENOMEM)
        return -ENOMEM;
    if (n < 0 || number_decode(buf, (size_t)n, tail) != 0)
        *tail = LOG_NONE;
    return 0;
}

static int find_log(struct store *s, struct log_place *place)
{
    int err = lmdb_find_log(s->lmdb, place);
    if (err == -ENOENT || (err == 0 && place->bytes != log_bytes_for(s->super.capacity)))
        return -EIO;
    return err;
}

/* Read the log, as changes of running. Of one that is damaged, what can be read, if that is enough. */
static int read_log(struct store *s, const char *path, const struct store_options *o,
                    struct store_error *error)
{
    struct log_place place;
    struct log_found found = { .head = 0 };
    uint64_t tail;
    int err = find_log(s, &place);
    if (err == -EIO && o->read_only) {
        s->stats.log_cut = true;
        return 0;
    }
    if (err == 0)
        err = read_tail(s, &tail);
    if (err == 0 && (s->log = log_new(&place, tail)) == NULL)
        err = -ENOMEM;
    if (err == 0)
        err = log_read(&place, tail, s->running, &found);
    if (err != 0)
        return err;
    s->stats.log_cut = found.damaged;
    if (found.damaged && !o->cut_log && !o->read_only)
        return store_fail(
            error, -EIO,
            "%s: its log is damaged, in which changes wait that were reported durable; "
            "fsck.foliofs takes those that can be read, -o ro shows them",
            path);
    s->log->head = found.head;
    s->log->last = found.damaged ? LOG_NONE : found.last;
    return 0;
}

static int read_counter(struct store *s)
{
    uint8_t buf[NUMBER_BYTES];
    struct key key;
    key_counter(&key);
    ssize_t n = store_get(s, &key, buf, sizeof buf);
    uint64_t next;
    int err = n < 0 ? (int)n : number_decode(buf, (size_t)n, &next);
    if (err == 0)
        s->next_number = s->end_number = next;
    return err == -ENOENT ? -EIO : err;
}

/* Put what came from the log into LMDB. */
static int commit_log(struct store *s, const char *path, struct store_error *error)
{
    if (s->log->head == s->log->tail)
        return 0;
    s->running->nr_new = s->running->nr_data; /* at most */
    int err = commit_loaded(s);
    return err == 0 ? 0
                    : store_fail(
                          error, err,
                          "%s: the changes that wait in its log cannot be put into place: %s; see "
                          "the room and the health of its disk, or mount it with -o ro",
                          path, strerror(-err));
}

static int load(struct store *s, const char *path, const struct store_options *o,
                struct store_error *error)
{
    error->text[0] = '\0';
    int err = read_super(s, path, error);
    if (err != 0)
        return err;
    if ((s->super.features & FEATURE_LOG) != 0)
        err = read_log(s, path, o, error);
    if (err == 0 && !o->cut_log)
        err = read_counter(s);
    if (err == 0 && !o->cut_log)
        err = trim_load(s);
    if (err == -ENOMEM)
        return no_memory(path, error);
    if (err != 0 && error->text[0] == '\0')
        return store_fail(error, err, "%s: damaged records (%s); run fsck.foliofs %s", path,
                          strerror(-err), path);
    return err;
}

static void init_locks(struct store *s)
{
    pthread_condattr_t attr;
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(&s->changed, &attr);
    pthread_condattr_destroy(&attr);
    pthread_mutex_init(&s->lock, NULL);
    pthread_mutex_init(&s->trim_lock, NULL);
    pthread_mutex_init(&s->number_lock, NULL);
}

static void store_free(struct store *s)
{
    device_destroy(s->faults);
    txn_free(s->running);
    txn_free(s->committing);
    log_free(s->log);
    while (s->trims != NULL) {
        struct trim *t = s->trims;
        s->trims = t->next;
        free(t);
    }
    pthread_cond_destroy(&s->changed);
    pthread_mutex_destroy(&s->lock);
    pthread_mutex_destroy(&s->trim_lock);
    pthread_mutex_destroy(&s->number_lock);
    free(s);
}

static uint64_t txn_limit(uint64_t bytes)
{
    if (bytes == 0)
        bytes = DEFAULT_TXN_BYTES;
    bytes /= 2; /* one running, one committing */
    if (bytes < MIN_TXN_BYTES)
        return MIN_TXN_BYTES;
    return bytes < MAX_TXN_BYTES ? bytes : MAX_TXN_BYTES;
}

int store_open(const char *path, const struct store_options *o, struct store **out,
               struct store_error *error)
{
    struct store *s = calloc(1, sizeof *s);
    if (s == NULL)
        return no_memory(path, error);
    init_locks(s);
    s->dev.ops = &volume_device_ops;
    s->dev.nr_blocks = OBJECT_BLOCKS;
    s->txn_limit = txn_limit(o->txn_bytes);
    atomic_store(&s->read_only, o->read_only);
    s->view = o->read_only;
    s->running = txn_new(1);
    s->faults = o->inject ? dev_fault_create(&s->dev, 1) : NULL;
    int err = s->running != NULL && (s->faults != NULL || !o->inject) ? 0 : no_memory(path, error);
    s->lock_fd = err == 0 && !o->locked ? volume_lock(path, false, error) : -1;
    if (err == 0 && !o->locked && s->lock_fd < 0)
        err = s->lock_fd;
    if (err == 0)
        err = lmdb_open(path, o->read_only, &s->lmdb, error);
    if (err == 0) {
        err = load(s, path, o, error);
        if (err == 0)
            space_open(s);
        if (err == 0 && s->log != NULL && !o->read_only)
            err = commit_log(s, path, error);
        if (err != 0)
            lmdb_close(s->lmdb);
    }
    if (err != 0) {
        if (s->lock_fd >= 0)
            close(s->lock_fd);
        store_free(s);
        return err;
    }
    *out = s;
    return 0;
}

int store_close(struct store *s)
{
    int err = 0;
    pthread_mutex_lock(&s->lock);
    bool left = !s->view && (s->committing != NULL || !txn_empty(s->running));
    uint64_t tid = s->running->tid;
    pthread_mutex_unlock(&s->lock);
    if (left) {
        err = store_commit(s, tid);
        if (err != 0)
            err = store_commit(s, tid); /* the last chance for what is in memory */
    }
    if (err == 0 && !lmdb_dead(s->lmdb)) /* else the room is for what waits in the log */
        space_close(s);
    lmdb_close(s->lmdb);
    if (s->lock_fd >= 0)
        close(s->lock_fd);
    store_free(s);
    return err;
}

const struct super_record *store_super(const struct store *s)
{
    return &s->super;
}

void store_stats(struct store *s, struct store_stats *out)
{
    pthread_mutex_lock(&s->lock);
    *out = s->stats;
    out->running_bytes = s->running->bytes;
    out->committing_bytes = s->committing != NULL ? s->committing->bytes : 0;
    out->txn_limit_bytes = 2 * s->txn_limit;
    out->pending_trims = atomic_load(&s->nr_trims);
    out->file_bytes = (s->usage.last_page + 1) * 4096;
    out->last_error = s->last_error;
    out->read_only = atomic_load(&s->read_only);
    pthread_mutex_unlock(&s->lock);
}
