/* bounce.c: what a device reads into a memfd, and writes from one, by way of memory that is in use already.
 *
 *     READ    device --> buffer --pwrite--> memfd,  then the bio's own end_io
 *     WRITE   memfd --pread--> buffer --> device
 *
 * The pages of an attached file are its clients'; this process seldom touches them. To have a device do so costs
 * a zeroed page and an entry in a page table for each, and the machine below a virtual one its own: several
 * times what copying does (bench/NOTES.md). A bio that finds no buffer free goes to the memfd itself.
 *
 * After Linux's block/bounce.c, which did it for memory that a device could not reach.
 */
#include <errno.h>
#include <unistd.h>

#include "cache/memfd.h"
#include "cache/page_cache.h"

/* The first that is free, for it is the most likely to be in the processor's cache. */
static struct bounce *bounce_take(struct page_cache *cache)
{
    for (unsigned i = 0; i < cache->nr_bounces; i++)
        if (!atomic_load(&cache->bounces[i].taken) &&
            !atomic_exchange(&cache->bounces[i].taken, true))
            return &cache->bounces[i];
    return NULL;
}

static void *bounce_page(const struct bounce *b, uint32_t i)
{
    return b->data + ((size_t)i << PAGE_SHIFT);
}

/* How many of a bio's blocks from i on lie one behind the other, and are good. */
static uint32_t run_length(const struct bio *bio, uint32_t i)
{
    uint32_t n = 0;
    while (i + n < bio->nr_vecs && bio->vecs[i + n].index == bio->vecs[i].index + n &&
           bio->vecs[i + n].error == 0)
        n++;
    return n;
}

/* Copy between n pages of the memfd and a buffer.   Returns 0 or -errno. */
static int copy_run(int fd, enum bio_op op, char *buffer, uint32_t index, uint32_t n)
{
    size_t done = 0, bytes = (size_t)n << PAGE_SHIFT;
    while (done < bytes) {
        off_t at = (off_t)(((uint64_t)index << PAGE_SHIFT) + done);
        ssize_t r = op == BIO_READ ? pwrite(fd, buffer + done, bytes - done, at)
                                   : pread(fd, buffer + done, bytes - done, at);
        if (r <= 0)
            return r < 0 ? -errno : -EIO; /* 0: a client made the memfd shorter */
        done += (size_t)r;
    }
    return 0;
}

static void bounce_end_io(struct bio *bio)
{
    struct bounce *b = bio->private;
    int fd = atomic_load(&b->m->memfd)->fd;
    for (uint32_t i = 0, n; bio->op == BIO_READ && i<bio->nr_vecs; i += n> 0 ? n : 1) {
        n = run_length(bio, i);
        int err = n > 0 ? copy_run(fd, BIO_READ, bounce_page(b, i), bio->vecs[i].index, n) : 0;
        for (uint32_t k = i; err != 0 && k < i + n; k++)
            bio->vecs[k].error = (int16_t)err;
    }
    bio->end_io = b->end_io;
    bio->private = b->private;
    atomic_store_explicit(&b->taken, false, memory_order_release);
    bio_endio(bio);
}

/* Returns false: not all of it could be read. */
static bool fill_buffer(int fd, struct bounce *b, const struct bio *bio)
{
    bool all = true;
    for (uint32_t i = 0, n; all && i < bio->nr_vecs; i += n) {
        n = run_length(bio, i);
        all = copy_run(fd, BIO_WRITE, bounce_page(b, i), bio->vecs[i].index, n) == 0;
    }
    return all;
}

void bounce_bio(struct address_space *m, struct bio *bio)
{
    const struct memfd *f = atomic_load(&m->memfd);
    struct bounce *b = f != NULL ? bounce_take(m->cache) : NULL;
    if (b == NULL)
        return;
    if (bio->op == BIO_WRITE && !fill_buffer(f->fd, b, bio)) {
        atomic_store(&b->taken, false);
        return;
    }
    b->m = m;
    b->end_io = bio->end_io;
    b->private = bio->private;
    for (uint32_t i = 0; i < bio->nr_vecs; i++)
        bio->vecs[i].data = bounce_page(b, i);
    bio->end_io = bounce_end_io;
    bio->private = b;
}
