/* bounce.c: what a device reads into a memfd, and writes from one, by way of memory that is in use already.
 *
 *     READ    device --> buffer --memfd_fill--> memfd,  then the bio's own end_io
 *     WRITE   memfd --pread--> buffer --> device
 *
 * The pages of an attached file are its clients'; this process seldom touches them. To have a device do so costs
 * for each that it is zeroed first, and what a first touch takes, on a virtual machine the host's work as well:
 * several times what copying does (bench/NOTES.md, 21.). A bio that finds no buffer free goes to the memfd itself. A
 * page that is read alone and waited for has a buffer of its own (read_page_locked).
 *
 * After Linux's block/bounce.c, which did it for memory that a device could not reach.
 */
#include <assert.h>
#include <errno.h>

#include "cache/memfd.h"
#include "cache/page_cache.h"

/* The first that is free, for it is the most likely to be in the processor's cache. Who writes may keep one for
 * as long as a commit takes, so some are for reading alone. */
static struct bounce *bounce_take(struct page_cache *cache, enum bio_op op)
{
    unsigned most = op == BIO_WRITE ? (cache->nr_bounces + 1) / 2 : cache->nr_bounces;
    for (unsigned i = 0; i < most; i++)
        if (!atomic_load(&cache->bounces[i].taken) &&
            !atomic_exchange(&cache->bounces[i].taken, true))
            return &cache->bounces[i];
    return NULL;
}

static void bounce_give(struct bounce *b)
{
    atomic_store(&b->taken, false);
}

static char *bounce_page(const struct bounce *b, uint32_t i)
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

/* Where a page of the memfd is there already it is overwritten. What a client has cut off fails: to touch it might take as
 * long as that client likes (memfd.h), and whoever wants the page reads it once more. */
static void empty_buffer(const struct bounce *b, struct bio *bio)
{
    uint32_t i = 0;
    while (i < bio->nr_vecs) {
        struct bio_vec *v = &bio->vecs[i];
        uint32_t n = run_length(bio, i);
        int done = n > 0 ? memfd_fill(b->f, page_address(v->owner), bounce_page(b, i), n) : 0;
        if (done == -EEXIST || done == -ENODEV)
            memcpy(page_address(v->owner), v->data, PAGE_SIZE);
        else if (done < 0)
            v->error = done == -ENOMEM ? -ENOMEM : -EIO;
        i += done > 0 ? (uint32_t)done : 1;
    }
}

/* Returns 0; -ENOMEM; another -errno: nothing of the bio is written, for there are bytes, and others may not stand in
 * for them. */
static int fill_buffer(const struct bounce *b, struct bio *bio)
{
    int err = 0;
    for (uint32_t i = 0, n; i < bio->nr_vecs && err == 0; i += n) {
        n = run_length(bio, i);
        assert(n > 0);
        err = memfd_read(b->f, bio->vecs[i].index, bounce_page(b, i), n);
    }
    if (err == 0 || err == -ENOMEM)
        return err;
    for (uint32_t i = 0; i < bio->nr_vecs; i++)
        bio->vecs[i].error = -EIO;
    bio->error = -EIO;
    return err;
}

void bounce_page_in(struct address_space *m, struct page *page, const char *from)
{
    void *frame = page_address(page);
    if (!memfd_whole() || memfd_fill(atomic_load(&m->memfd), frame, from, 1) != 1)
        memcpy(frame, from, PAGE_SIZE);
}

static void bounce_end_io(struct bio *bio)
{
    struct bounce *b = bio->private;
    if (bio->op == BIO_READ)
        empty_buffer(b, bio);
    bio->end_io = b->end_io;
    bio->private = b->private;
    bounce_give(b);
    bio_endio(bio); /* bio->error may have changed */
}

/* Where some do not, it is being given back. */
static bool all_in_memfd(const struct page_cache *cache, const struct bio *bio)
{
    uint32_t i = 0;
    while (i < bio->nr_vecs && page_in_memfd(cache, bio->vecs[i].owner))
        i++;
    return i == bio->nr_vecs;
}

bool bounce_bio(struct address_space *m, struct bio *bio)
{
    struct memfd *f = atomic_load(&m->memfd);
    if (f == NULL || m->cache->nr_bounces == 0 || !memfd_whole() || !all_in_memfd(m->cache, bio))
        return true;
    struct bounce *b = bounce_take(m->cache, bio->op);
    if (b == NULL)
        return false;
    b->f = f;
    if (bio->op == BIO_WRITE && fill_buffer(b, bio) == -ENOMEM) {
        bounce_give(b);
        return true; /* who touches it waits for memory */
    }
    b->end_io = bio->end_io;
    b->private = bio->private;
    for (uint32_t i = 0; i < bio->nr_vecs; i++)
        bio->vecs[i].data = bounce_page(b, i);
    bio->end_io = bounce_end_io;
    bio->private = b;
    return true;
}
