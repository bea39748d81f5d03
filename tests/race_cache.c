/* Real threads on a cache of a few pages: readers, writers, truncation, reclaim, the flusher and the
 * readahead worker, for TSan and ASan. Bytes of one stretch of a file are protected by a lock of the
 * test's (as i_rwsem protects writers from each other); everything else is the cache's business. */
#include <assert.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "cache/page_cache.h"

#define FILES         3
#define STRETCHES     8
#define STRETCH_PAGES 8u
#define FILE_PAGES    (STRETCHES * STRETCH_PAGES)
#define FILE_BYTES    ((uint64_t)FILE_PAGES << PAGE_SHIFT)

struct file {
    struct address_space m;
    pthread_rwlock_t locks[STRETCHES];
    pthread_mutex_t i_rwsem;  /* writers and truncation, as fs/ does it */
    uint8_t stamp[STRETCHES]; /* what every byte of the stretch is (its lock) */
    _Atomic int refs;
};

static struct file files[FILES];
static struct page_cache *cache;
static _Atomic bool stop;
static _Atomic uint64_t operations;

static void file_get(struct address_space *m)
{
    atomic_fetch_add(&((struct file *)m->owner)->refs, 1);
}

static void file_put(struct address_space *m)
{
    atomic_fetch_sub(&((struct file *)m->owner)->refs, 1);
}

static const struct address_space_operations ops = { .get = file_get, .put = file_put };

static void write_stretch(struct file *f, unsigned s, unsigned *seed)
{
    static _Thread_local uint8_t buf[STRETCH_PAGES * PAGE_SIZE];
    pthread_mutex_lock(&f->i_rwsem);
    pthread_rwlock_wrlock(&f->locks[s]);
    uint8_t stamp = (uint8_t)rand_r(seed);
    memset(buf, stamp, sizeof buf);
    ssize_t n = filemap_write(&f->m, (uint64_t)s * sizeof buf, buf, sizeof buf);
    if (n != (ssize_t)sizeof buf) {
        fprintf(stderr, "write: %zd\n", n);
        abort();
    }
    f->stamp[s] = stamp;
    pthread_rwlock_unlock(&f->locks[s]);
    pthread_mutex_unlock(&f->i_rwsem);
    balance_dirty_pages(cache);
}

static void read_stretch(struct file *f, unsigned s, struct file_ra_state *ra)
{
    static _Thread_local uint8_t buf[STRETCH_PAGES * PAGE_SIZE];
    pthread_rwlock_rdlock(&f->locks[s]);
    ssize_t n = filemap_read(&f->m, ra, (uint64_t)s * sizeof buf, buf, sizeof buf);
    for (ssize_t i = 0; i < n; i++) {
        if (buf[i] != f->stamp[s]) {
            fprintf(stderr, "stretch %u byte %zd: %u instead of %u\n", s, i, buf[i], f->stamp[s]);
            abort();
        }
    }
    pthread_rwlock_unlock(&f->locks[s]);
}

/* Cut the last stretches off, and let the size grow again: they read as zeros then. */
static void truncate_file(struct file *f, unsigned from)
{
    pthread_mutex_lock(&f->i_rwsem);
    for (unsigned s = from; s < STRETCHES; s++)
        pthread_rwlock_wrlock(&f->locks[s]);
    uint32_t first = from * STRETCH_PAGES;
    down_write(&f->m.invalidate_lock);
    atomic_store(&f->m.i_size, (uint64_t)first << PAGE_SHIFT);
    truncate_inode_pages_range(&f->m, first, UINT32_MAX);
    dev_memory_discard(f->m.dev, atomic_load(&f->m.object), first, UINT32_MAX);
    up_write(&f->m.invalidate_lock);
    atomic_store(&f->m.i_size, FILE_BYTES);
    for (unsigned s = from; s < STRETCHES; s++) {
        f->stamp[s] = 0;
        pthread_rwlock_unlock(&f->locks[s]);
    }
    pthread_mutex_unlock(&f->i_rwsem);
}

static void *worker(void *arg)
{
    unsigned id = (unsigned)(uintptr_t)arg, seed = id * 7919u + 1;
    struct file_ra_state ra;
    file_ra_state_init(&ra, &ra_linux, 16);
    while (!atomic_load(&stop)) {
        struct file *f = &files[(unsigned)rand_r(&seed) % FILES];
        unsigned s = (unsigned)rand_r(&seed) % STRETCHES, what = (unsigned)rand_r(&seed) % 100;
        if (what < 35)
            write_stretch(f, s, &seed);
        else if (what < 90)
            read_stretch(f, s, &ra);
        else if (what < 93)
            truncate_file(f, STRETCHES / 2 + s / 2);
        else if (what < 96)
            filemap_fdatawrite(&f->m, what & 1 ? WB_SYNC_ALL : WB_SYNC_NONE);
        else if (what < 98)
            invalidate_inode_pages2_range(&f->m, 0, UINT32_MAX);
        else if (what < 99)
            page_cache_drop(cache);
        else
            page_cache_sync(cache);
        atomic_fetch_add(&operations, 1);
    }
    return NULL;
}

int main(void)
{
    const char *seconds = getenv("FOLIO_SECONDS");
    struct cache_options o = { .cache_bytes = 96u << PAGE_SHIFT,
                               .reclaim = getenv("FOLIO_RECLAIM"), /* NULL: the default */
                               .threads = true,
                               .dirty_expire_ms = 50,
                               .dirty_writeback_ms = 20 };
    struct device *dev = dev_memory_create();
    pthread_t threads[4];
    if (dev == NULL || page_cache_create(&cache, &o) != 0)
        return 1;
    for (unsigned i = 0; i < FILES; i++) {
        mapping_init(&files[i].m, cache, dev, i + 1, &ops, FILE_BYTES);
        files[i].m.owner = &files[i];
        pthread_mutex_init(&files[i].i_rwsem, NULL);
        for (unsigned s = 0; s < STRETCHES; s++)
            pthread_rwlock_init(&files[i].locks[s], NULL);
    }
    for (uintptr_t i = 0; i < 4; i++)
        pthread_create(&threads[i], NULL, worker, (void *)i);
    struct timespec ts = { .tv_sec = seconds != NULL ? atoi(seconds) : 5 };
    nanosleep(&ts, NULL);
    atomic_store(&stop, true);
    for (unsigned i = 0; i < 4; i++)
        pthread_join(threads[i], NULL);
    /* A flusher gives its references back after others find everything clean. */
    page_cache_stop(cache);
    int line = 0;
    for (unsigned i = 0; i < FILES; i++) {
        filemap_fdatawrite(&files[i].m, WB_SYNC_ALL);
        line |= mapping_check(&files[i].m);
    }
    for (unsigned i = 0; i < FILES; i++)
        mapping_destroy(&files[i].m);
    for (unsigned i = 0; i < FILES; i++)
        line |= atomic_load(&files[i].refs);
    page_cache_destroy(cache);
    device_destroy(dev);
    printf("%llu operations, check %d\n", (unsigned long long)atomic_load(&operations), line);
    return line != 0;
}
