/* Real threads that attach parts of files and let go of them again, while others give back what is idle, read, write,
 * cut, and reclaim: whoever has a part attached finds in the memfd what everybody reads. As race_cache, for TSan and
 * ASan. */
#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "cache/memfd.h"
#include "cache/page_cache.h"

#define FILES         3
#define STRETCHES     6
#define STRETCH_PAGES 8u
#define STRETCH_BYTES (STRETCH_PAGES * PAGE_SIZE)
#define FILE_PAGES    (STRETCHES * STRETCH_PAGES)
#define THREADS       5
#define SPAN          16384u /* pages of the least segment */

struct file {
    struct address_space m;
    pthread_mutex_t i_rwsem;
    pthread_rwlock_t locks[STRETCHES];
    uint8_t stamp[STRETCHES]; /* what every byte of the stretch is (its lock) */
    _Atomic int refs;
};

static struct file files[FILES];
static struct page_cache *cache;
static _Atomic bool stop;
static _Atomic uint64_t attached;

static void die(const char *what, long got)
{
    fprintf(stderr, "%s: %ld\n", what, got);
    abort();
}

static void file_get(struct address_space *m)
{
    atomic_fetch_add(&((struct file *)m->owner)->refs, 1);
}

static void file_put(struct address_space *m)
{
    atomic_fetch_sub(&((struct file *)m->owner)->refs, 1);
}

static const struct address_space_operations ops = { .get = file_get, .put = file_put };

static void write_stretch(struct file *f, unsigned s, uint8_t stamp)
{
    static _Thread_local uint8_t buf[STRETCH_BYTES];
    pthread_mutex_lock(&f->i_rwsem);
    pthread_rwlock_wrlock(&f->locks[s]);
    memset(buf, stamp, sizeof buf);
    ssize_t n = filemap_write(&f->m, (uint64_t)s * sizeof buf, buf, sizeof buf);
    if (n != (ssize_t)sizeof buf)
        die("write", n);
    f->stamp[s] = stamp;
    pthread_rwlock_unlock(&f->locks[s]);
    pthread_mutex_unlock(&f->i_rwsem);
    balance_dirty_pages(cache);
}

static void check_bytes(const struct file *f, unsigned s, const uint8_t *buf, size_t n,
                        const char *where)
{
    for (size_t i = 0; i < n; i++)
        if (buf[i] != f->stamp[s])
            die(where, buf[i]);
}

static void read_stretch(struct file *f, unsigned s)
{
    static _Thread_local uint8_t buf[STRETCH_BYTES];
    pthread_rwlock_rdlock(&f->locks[s]);
    ssize_t n = filemap_read(&f->m, NULL, (uint64_t)s * sizeof buf, buf, sizeof buf);
    if (n < 0)
        die("read", n);
    check_bytes(f, s, buf, (size_t)n, "what is read");
    pthread_rwlock_unlock(&f->locks[s]);
}

static void cut_file(struct file *f)
{
    pthread_mutex_lock(&f->i_rwsem);
    for (unsigned s = STRETCHES / 2; s < STRETCHES; s++)
        pthread_rwlock_wrlock(&f->locks[s]);
    uint32_t first = STRETCHES / 2 * STRETCH_PAGES;
    down_write(&f->m.invalidate_lock);
    i_size_write(&f->m, (uint64_t)first << PAGE_SHIFT);
    truncate_inode_pages_range(&f->m, first, UINT32_MAX);
    dev_memory_discard(f->m.dev, atomic_load(&f->m.object), first, UINT32_MAX);
    up_write(&f->m.invalidate_lock);
    i_size_reach(&f->m, FILE_PAGES << PAGE_SHIFT);
    i_size_write(&f->m, FILE_PAGES << PAGE_SHIFT);
    for (unsigned s = STRETCHES / 2; s < STRETCHES; s++) {
        f->stamp[s] = 0;
        pthread_rwlock_unlock(&f->locks[s]);
    }
    pthread_mutex_unlock(&f->i_rwsem);
}

/* As a client that has it mapped sees it. */
static void look_at(struct file *f, unsigned s)
{
    static _Thread_local uint8_t buf[PAGE_SIZE];
    pthread_rwlock_rdlock(&f->locks[s]);
    for (uint32_t i = s * STRETCH_PAGES; i < (s + 1) * STRETCH_PAGES; i++) {
        struct page *page;
        if (filemap_get_page(&f->m, NULL, i, 1, &page) != 0)
            continue;
        lock_page(page);
        if (atomic_load(&page->mapping) == &f->m) {
            if (!page_in_memfd(cache, page))
                die("it is attached, and not in the memfd", i);
            ssize_t n =
                pread(memfd_descriptor(&f->m, false), buf, PAGE_SIZE, (off_t)i << PAGE_SHIFT);
            if (n != PAGE_SIZE)
                die("pread", n);
            check_bytes(f, s, buf, PAGE_SIZE, "what is attached");
        }
        page_unlock_put(&f->m, page);
    }
    pthread_rwlock_unlock(&f->locks[s]);
}

static void attach(struct file *f, unsigned s, unsigned spans, struct memfd_account *a)
{
    struct memfd_segment *segment;
    pthread_mutex_lock(&f->i_rwsem);
    int err = mapping_use_memfd(&f->m);
    pthread_mutex_unlock(&f->i_rwsem);
    if (err == -EOPNOTSUPP)
        return;
    if (err != 0)
        die("mapping_use_memfd", err);
    /* Those of many spans are too long to be shared by the others: they overlap. */
    err = memfd_reserve(&f->m, s * STRETCH_PAGES, spans > 1 ? spans * SPAN : STRETCH_PAGES, a,
                        &segment);
    if (err != 0)
        die("memfd_reserve", err);
    look_at(f, s);
    look_at(f, s);
    memfd_release(segment, a);
    mapping_unuse_memfd(&f->m);
    atomic_fetch_add(&attached, 1);
}

static void *worker(void *arg)
{
    unsigned id = (unsigned)(uintptr_t)arg, seed = id * 7919u + 1;
    struct memfd_account account = { 0 };
    while (!atomic_load(&stop)) {
        struct file *f = &files[(unsigned)rand_r(&seed) % FILES];
        unsigned s = (unsigned)rand_r(&seed) % STRETCHES, what = (unsigned)rand_r(&seed) % 100;
        if (what < 25)
            write_stretch(f, s, (uint8_t)(what + id * 25));
        else if (what < 50)
            read_stretch(f, s);
        else if (what < 70)
            attach(f, s, what % 9, &account);
        else if (what < 90)
            memfd_shrink(2);
        else if (what < 93)
            cut_file(f);
        else if (what < 96)
            filemap_fdatawrite(&f->m, what & 1 ? WB_SYNC_ALL : WB_SYNC_NONE);
        else if (what < 98)
            invalidate_inode_pages2_range(&f->m, 0, UINT32_MAX);
        else
            page_cache_drop(cache);
    }
    if (account.bytes != 0 || account.segments != 0)
        die("it has used nothing any more, and has", (long)account.bytes);
    return NULL;
}

int main(void)
{
    const char *seconds = getenv("FOLIO_SECONDS");
    struct cache_options o = { .cache_bytes = 96u << PAGE_SHIFT,
                               .threads = true,
                               .dirty_expire_ms = 50,
                               .dirty_writeback_ms = 20 };
    struct device *dev = dev_memory_create();
    pthread_t threads[THREADS];
    if (dev == NULL || page_cache_create(&cache, &o) != 0)
        return 1;
    for (unsigned i = 0; i < FILES; i++) {
        mapping_init(&files[i].m, cache, dev, i + 1, &ops, FILE_PAGES << PAGE_SHIFT);
        files[i].m.owner = &files[i];
        pthread_mutex_init(&files[i].i_rwsem, NULL);
        for (unsigned s = 0; s < STRETCHES; s++)
            pthread_rwlock_init(&files[i].locks[s], NULL);
    }
    for (uintptr_t i = 0; i < THREADS; i++)
        pthread_create(&threads[i], NULL, worker, (void *)i);
    struct timespec ts = { .tv_sec = seconds != NULL ? atoi(seconds) : 5 };
    nanosleep(&ts, NULL);
    atomic_store(&stop, true);
    for (unsigned i = 0; i < THREADS; i++)
        pthread_join(threads[i], NULL);
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
    printf("attached %llu times, check %d\n", (unsigned long long)atomic_load(&attached), line);
    return line != 0;
}
