/* memfd_idle.c: giving back what nobody has attached any more.
 *
 * It is left for a while, as whoever attached a file may do so again: memfds that have something idle are in a list, as
 * many as idle_most. Whoever makes one more, or wants for descriptors, mappings or address space, gives back
 * that of the one which has been idle longest, in its own thread. Nothing is waited for here but what punching is
 * (memfd_reclaim_begin), and that by one thread at a time: what is in use is left to the next.
 */
#include <assert.h>
#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <sys/resource.h>

#include "cache/memfd_impl.h"
#include "cache/memory.h"

#define IDLE_MOST    256u
#define ROOM_BATCH   64u
#define ROOM_TRIES   200u
#define DESTROY_MS   1
#define FROZEN_TRIES 10u /* of a millisecond */

static pthread_mutex_t idle_lock = PTHREAD_MUTEX_INITIALIZER; /* innermost */
static struct list_head idle_list = { &idle_list, &idle_list };
static unsigned nr_idle;

/* Two descriptors each: of a few there are, an eighth. */
static unsigned idle_most(void)
{
    struct rlimit limit;
    if (getrlimit(RLIMIT_NOFILE, &limit) == 0 && limit.rlim_cur / 16 < IDLE_MOST)
        return (unsigned)(limit.rlim_cur / 16);
    return IDLE_MOST;
}

/* ---- pages that go home ---------------------------------------------------------------------- */

/* Where the bytes of a page are to be whose segment goes: NULL: in its own frame. */
static void *other_frame(struct memfd *f, uint32_t index)
{
    pthread_mutex_lock(&f->table);
    const struct memfd_segment *s = segment_over(f, index, 1);
    void *frame = s != NULL ? segment_frame(s, index) : NULL;
    pthread_mutex_unlock(&f->table);
    return frame;
}

/* What is left in the memfd means nothing, but takes memory. */
static void punch_if_free(struct memfd *f, uint32_t index)
{
    if (!memfd_reclaim_begin())
        return;
    (void)memfd_punch(f, index, index);
    memfd_reclaim_end();
}

/* Context: locked, not under writeback.   Returns false: it stays, for now. */
static bool move_out_locked(struct memfd *f, struct page *page)
{
    struct address_space *m = f->mapping;
    uint32_t index = atomic_load(&page->index);
    void *frame = other_frame(f, index);
    if (!page_ref_freeze(page, 2))
        return false;
    bool moved = page_zap(m, page);
    if (moved && frame != NULL)
        page_to_memfd(m->cache, page, frame);
    else if (moved)
        moved = page_from_memfd(m->cache, page, f) == 0;
    page_ref_unfreeze(page, 2);
    if (moved && frame == NULL)
        punch_if_free(f, index);
    return moved;
}

static bool lies_in(const struct memfd_segment *s, const struct page *page)
{
    return page->data == segment_frame(s, atomic_load(&page->index));
}

/* Returns false: it lies in the segment, and stays. */
static bool move_out(struct memfd_segment *s, struct page *page)
{
    bool out = false;
    if (!trylock_page(page))
        return false;
    if (atomic_load(&page->mapping) != s->f->mapping || !lies_in(s, page))
        out = true;
    else if (!page_test(page, PG_writeback))
        out = move_out_locked(s->f, page);
    unlock_page(page);
    return out;
}

/* Returns how many stayed. One that is being taken out is not waited for, nor is what lies behind it: a client may keep
 * who does that. */
static unsigned move_all_out(struct memfd_segment *s)
{
    struct address_space *m = s->f->mapping;
    struct page *pages[PAGEVEC];
    unsigned stayed = 0;
    unsigned tries = FROZEN_TRIES;
    uint64_t end = s->first + s->count;
    for (uint64_t next = s->first, at = next; next < end; at = next) {
        unsigned n = find_get_pages(m, &next, (uint32_t)(end - 1), pages, PAGEVEC);
        if (next == at && --tries == 0)
            return stayed + 1;
        for (unsigned i = 0; i < n; i++) {
            stayed += !move_out(s, pages[i]);
            put_page(m->cache, pages[i]);
        }
    }
    return stayed;
}

/* ---- segments and files that go -------------------------------------------------------------- */

/* One that nobody uses, not live any more.   NULL: none, or not now. */
static struct memfd_segment *retire_segment(struct memfd *f, struct memfd_segment *after)
{
    if (pthread_mutex_trylock(&f->lock) != 0)
        return NULL;
    pthread_mutex_lock(&f->table);
    struct memfd_segment *s = after != NULL ? after->next : f->segments;
    while (s != NULL && s->users != NULL)
        s = s->next;
    if (s != NULL) {
        s->live = false;
        atomic_store(&s->whole, false);
    }
    pthread_mutex_unlock(&f->table);
    pthread_mutex_unlock(&f->lock);
    return s;
}

/* Out of the table with an empty one.   Returns false: not now. */
static bool unlink_segment(struct memfd_segment *s)
{
    struct memfd *f = s->f;
    if (pthread_mutex_trylock(&f->lock) != 0)
        return false;
    pthread_mutex_lock(&f->table);
    struct memfd_segment **at = &f->segments;
    while (*at != s)
        at = &(*at)->next;
    *at = s->next;
    atomic_fetch_sub(&f->nr_segments, 1);
    pthread_mutex_unlock(&f->table);
    pthread_mutex_unlock(&f->lock);
    return true;
}

/* Its files, if nobody has a use for them, to be closed by somebody who may wait.   Returns false: not now. */
static bool take_files(struct memfd *f)
{
    struct memfd *dead;
    if (memfd_create_for(f->mapping, &dead) != 0)
        return false;
    bool now = pthread_mutex_trylock(&f->lock) == 0;
    if (now) {
        pthread_mutex_lock(&f->table);
        if (f->opens == 0 && f->segments == NULL) {
            dead->fd = f->fd;
            dead->read_fd = f->read_fd;
            f->fd = f->read_fd = -1;
        }
        pthread_mutex_unlock(&f->table);
        pthread_mutex_unlock(&f->lock);
    }
    if (dead->fd >= 0)
        memfd_bury(dead);
    else
        memfd_free(dead);
    return now;
}

/* Returns false: something is idle still. */
static bool give_back(struct memfd *f)
{
    bool all = true;
    struct memfd_segment *after = NULL, *s;
    while ((s = retire_segment(f, after)) != NULL) {
        if (move_all_out(s) == 0 && unlink_segment(s)) {
            segment_unmap(s);
            segment_free(s);
        } else {
            all = false;
            after = s; /* which nobody else takes out of the table: f is busy */
        }
    }
    return take_files(f) && all;
}

/* ---- the list -------------------------------------------------------------------------------- */

/* Context: idle_lock. */
static void list_idle(struct memfd *f)
{
    if (f->listed)
        return;
    f->listed = true;
    list_add_tail(&f->idle, &idle_list);
    nr_idle++;
}

static void unlist_idle(struct memfd *f)
{
    if (!f->listed)
        return;
    f->listed = false;
    list_del(&f->idle);
    nr_idle--;
}

void memfd_note_idle(struct memfd *f)
{
    pthread_mutex_lock(&idle_lock);
    list_idle(f);
    bool many = nr_idle > idle_most();
    pthread_mutex_unlock(&idle_lock);
    if (many) /* a client that had many ends, say, and nobody comes */
        memfd_limit_idle_soon();
}

/* That which has been idle longest, if there are more than so many.
 * Returns false: there are not, or something of it stays. */
static bool shrink_one(unsigned more_than)
{
    struct memfd *f = NULL;
    pthread_mutex_lock(&idle_lock);
    for (struct list_head *n = idle_list.next; n != &idle_list && f == NULL && nr_idle > more_than;
         n = n->next)
        if (!list_entry(n, struct memfd, idle)->busy)
            f = list_entry(n, struct memfd, idle);
    if (f != NULL) {
        unlist_idle(f);
        f->busy = true;
    }
    pthread_mutex_unlock(&idle_lock);
    if (f == NULL)
        return false;
    bool all = give_back(f);
    pthread_mutex_lock(&idle_lock);
    f->busy = false; /* and it may be gone when the lock is free */
    if (!all)
        list_idle(f);
    pthread_mutex_unlock(&idle_lock);
    return all;
}

unsigned memfd_shrink(unsigned most)
{
    unsigned done = 0;
    pthread_mutex_lock(&idle_lock);
    unsigned nr = nr_idle;
    pthread_mutex_unlock(&idle_lock);
    for (unsigned i = 0; i < nr && done < most; i++)
        done += shrink_one(0);
    return done;
}

void memfd_limit_idle_now(void)
{
    while (shrink_one(idle_most()))
        ;
}

void memfd_limit_idle(void)
{
    for (unsigned i = 0, most = idle_most(); i < 2; i++)
        (void)shrink_one(most);
}

bool memfd_make_room(unsigned tries)
{
    if (tries >= ROOM_TRIES)
        return false;
    if (memfd_shrink(ROOM_BATCH) > 0)
        return true;
    if (!memfd_burying())
        return false;
    (void)poll(NULL, 0, 5); /* others close what was given back */
    return true;
}

void memfd_forget_idle(struct memfd *f)
{
    bool busy;
    do {
        pthread_mutex_lock(&idle_lock);
        unlist_idle(f);
        busy = f->busy;
        pthread_mutex_unlock(&idle_lock);
        if (busy)
            (void)poll(NULL, 0, DESTROY_MS);
    } while (busy);
}

/* ---- who has it ------------------------------------------------------------------------------ */

/* The files, for one more. */
static int add_open(struct memfd *f)
{
    uint64_t pages = (atomic_load(&f->mapping->i_size) + PAGE_SIZE - 1) >> PAGE_SHIFT;
    pthread_mutex_lock(&f->lock);
    int err = memfd_open_files(f, pages);
    if (err == 0) {
        pthread_mutex_lock(&f->table);
        f->opens++;
        pthread_mutex_unlock(&f->table);
    }
    pthread_mutex_unlock(&f->lock);
    return err;
}

static bool is_want(int err)
{
    return err == -EMFILE || err == -ENFILE || err == -ENOMEM;
}

int mapping_use_memfd(struct address_space *m)
{
    struct memfd *f = atomic_load(&m->memfd);
    bool fresh = f == NULL;
    int err = fresh ? memfd_create_for(m, &f) : 0;
    if (err != 0)
        return err;
    unsigned tries = 0;
    while (is_want(err = add_open(f)) && memfd_make_room(tries++))
        ;
    if (fresh &&
        err == 0) { /* whoever inserts a page has seen it, or does so before anything is attached */
        down_write(&m->invalidate_lock);
        atomic_store(&m->memfd, f);
        up_write(&m->invalidate_lock);
    } else if (fresh) {
        memfd_free(f);
    }
    return err;
}

void mapping_unuse_memfd(struct address_space *m)
{
    struct memfd *f = atomic_load(&m->memfd);
    pthread_mutex_lock(&f->table);
    assert(f->opens > 0);
    if (--f->opens == 0)
        memfd_note_idle(f);
    pthread_mutex_unlock(&f->table);
}

int memfd_descriptor(struct address_space *m, bool writable)
{
    const struct memfd *f = atomic_load(&m->memfd);
    return writable ? f->fd : f->read_fd;
}

struct memfd *mapping_take_memfd(struct address_space *m)
{
    struct memfd *f = atomic_load(&m->memfd);
    if (f != NULL)
        memfd_forget_idle(f);
    atomic_store(&m->memfd, NULL);
    return f;
}
