/* memfd_segment.c: which parts of a file lie in its memfd, and moving pages there. */
#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include "cache/memfd_impl.h"
#include "cache/memory.h"

#define SPAN_LEAST     16384u /* pages: 64 MiB */
#define SPAN_PARTS     64u    /* of a large file: so few segments reach, whatever is attached */
#define SHARE_MOST     4u     /* a segment so many times as long as need be will do */
#define SPACE_MOST     ((uint64_t)96 << 40) /* bytes of address space, of 128 TiB */
#define MAPPINGS_USUAL 65530u               /* vm.max_map_count */
#define PULL_YIELDS    1000u
#define PULL_TRIES     11000u /* of which those after the yields take a millisecond */

/* ---- what there is of it --------------------------------------------------------------------- */

static pthread_mutex_t space_lock = PTHREAD_MUTEX_INITIALIZER; /* accounts, too; innermost */
static uint64_t space_bytes;
static unsigned space_segments;

static unsigned most = MAPPINGS_USUAL / 4;
static pthread_once_t most_once = PTHREAD_ONCE_INIT;

static void read_most(void)
{
    char text[32] = "";
    int fd = open("/proc/sys/vm/max_map_count", O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return;
    long n = read(fd, text, sizeof text - 1) > 0 ? strtol(text, NULL, 10) : 0;
    close(fd);
    if (n > 0 && n < INT_MAX)
        most = (unsigned)n / 4;
}

/* Each is two mappings, of those that a process may have; half of them are for all else. */
static unsigned segments_most(void)
{
    pthread_once(&most_once, read_most);
    return most;
}

/* Half of these, and of the descriptors: two for each file. */
static unsigned account_most(void)
{
    unsigned half = segments_most() / 2;
    struct rlimit limit;
    if (getrlimit(RLIMIT_NOFILE, &limit) == 0 && limit.rlim_cur / 4 < half)
        half = (unsigned)(limit.rlim_cur / 4);
    return half;
}

static uint64_t bytes_of(const struct memfd_segment *s)
{
    return (segment_has_window(s) ? 2 : 1) * s->count << PAGE_SHIFT;
}

/* -ENOMEM: of all that there is. */
static int space_take(const struct memfd_segment *s)
{
    int err = -ENOMEM;
    pthread_mutex_lock(&space_lock);
    if (space_bytes + bytes_of(s) <= SPACE_MOST && space_segments < segments_most()) {
        space_bytes += bytes_of(s);
        space_segments++;
        err = 0;
    }
    pthread_mutex_unlock(&space_lock);
    return err;
}

static void space_give(const struct memfd_segment *s)
{
    pthread_mutex_lock(&space_lock);
    space_bytes -= bytes_of(s);
    space_segments--;
    pthread_mutex_unlock(&space_lock);
}

/* -EDQUOT: of what is one's own. */
static int account_take(struct memfd_account *a, const struct memfd_segment *s)
{
    int err = -EDQUOT;
    pthread_mutex_lock(&space_lock);
    if (a->bytes + bytes_of(s) <= SPACE_MOST / 4 && a->segments < account_most()) {
        a->bytes += bytes_of(s);
        a->segments++;
        err = 0;
    }
    pthread_mutex_unlock(&space_lock);
    return err;
}

static void account_give(struct memfd_account *a, const struct memfd_segment *s)
{
    pthread_mutex_lock(&space_lock);
    a->bytes -= bytes_of(s);
    a->segments--;
    pthread_mutex_unlock(&space_lock);
}

/* ---- the table ------------------------------------------------------------------------------- */

struct memfd_segment *segment_over(const struct memfd *f, uint32_t first, uint64_t count)
{
    struct memfd_segment *s = f->segments;
    while (s != NULL && (!s->live || first < s->first || first - s->first + count > s->count))
        s = s->next;
    return s;
}

const char *segment_window(struct memfd *f, const void *frame, uint64_t *in, uint64_t *rest)
{
    const char *window = NULL;
    uintptr_t at = (uintptr_t)frame;
    pthread_mutex_lock(&f->table);
    for (const struct memfd_segment *s = f->segments; s != NULL; s = s->next) {
        uintptr_t start = (uintptr_t)s->frames;
        if (at < start || (at - start) >> PAGE_SHIFT >= s->count)
            continue;
        window = s->window;
        *in = (at - start) >> PAGE_SHIFT;
        *rest = s->count - *in;
        break;
    }
    pthread_mutex_unlock(&f->table);
    return window;
}

void segment_free(struct memfd_segment *s)
{
    space_give(s);
    free(s);
}

void segments_free(struct memfd *f)
{
    for (struct memfd_segment *s = f->segments, *next; s != NULL; s = next) {
        next = s->next;
        assert(s->users == NULL);
        segment_unmap(s);
        segment_free(s);
    }
    f->segments = NULL;
}

/* ---- users ----------------------------------------------------------------------------------- */

static struct segment_user **find_user(struct memfd_segment *s, const struct memfd_account *a)
{
    struct segment_user **at = &s->users;
    while (*at != NULL && (*at)->account != a)
        at = &(*at)->next;
    return at;
}

/* One range more. spare: for an account that has none yet; NULL afterwards, if it was needed.
 * Returns 0 or -EDQUOT. Context: table; lock too, unless it has a user. */
static int add_user(struct memfd_segment *s, struct memfd_account *a, struct segment_user **spare)
{
    struct segment_user **at = find_user(s, a);
    if (*at == NULL) {
        int err = account_take(a, s);
        if (err != 0)
            return err;
        **spare = (struct segment_user){ .account = a };
        *at = *spare;
        *spare = NULL;
    }
    (*at)->ranges++;
    return 0;
}

void memfd_share(struct memfd_segment *s, struct memfd_account *a)
{
    pthread_mutex_lock(&s->f->table);
    struct segment_user *user = *find_user(s, a);
    assert(user != NULL);
    user->ranges++;
    pthread_mutex_unlock(&s->f->table);
}

void memfd_release(struct memfd_segment *s, struct memfd_account *a)
{
    struct memfd *f = s->f;
    struct segment_user *gone = NULL;
    pthread_mutex_lock(&f->table);
    struct segment_user **at = find_user(s, a);
    if (--(*at)->ranges == 0) {
        gone = *at;
        *at = gone->next;
        account_give(a, s);
    }
    if (s->users == NULL)
        memfd_note_idle(f);
    pthread_mutex_unlock(&f->table);
    free(gone);
}

/* ---- having one ------------------------------------------------------------------------------ */

static uint64_t round_up(uint64_t n, uint64_t to)
{
    return (n + to - 1) & ~(to - 1);
}

/* Longer ones than need be, so that what is attached in pieces has few. */
static void choose_span(struct address_space *m, struct memfd_segment *s, uint32_t first,
                        uint64_t count)
{
    uint64_t span = SPAN_LEAST, part = (atomic_load(&m->i_size) >> PAGE_SHIFT) / SPAN_PARTS;
    while (span < part)
        span *= 2;
    uint64_t end = round_up((uint64_t)first + count, span);
    s->first = (uint32_t)(first & ~(span - 1));
    end = end <= (uint64_t)UINT32_MAX + 1 ? end : (uint64_t)UINT32_MAX + 1;
    s->count = end - s->first;
}

/* Context: lock. */
static int map_new(struct memfd_segment *s)
{
    struct memfd *f = s->f;
    int err = space_take(s);
    if (err != 0)
        return err;
    err = segment_map(s);
    if (err != 0) {
        space_give(s);
        return err;
    }
    pthread_mutex_lock(&f->table);
    s->live = true;
    s->next = f->segments;
    f->segments = s;
    atomic_fetch_add(&f->nr_segments, 1);
    pthread_mutex_unlock(&f->table);
    return 0;
}

/* *fresh: what becomes the segment where none will do; NULL afterwards, if it did. */
static int get_segment(struct memfd *f, uint32_t first, uint64_t count, struct memfd_account *a,
                       struct memfd_segment **fresh, struct segment_user **spare,
                       struct memfd_segment **out)
{
    int err = 0;
    pthread_mutex_lock(&f->lock);
    struct memfd_segment *s = segment_over(f, first, count);
    if (s == NULL || s->count > SHARE_MOST * (*fresh)->count) {
        s = *fresh;
        err = map_new(s);
        *fresh = err == 0 ? NULL : s;
    }
    if (err == 0) {
        pthread_mutex_lock(&f->table);
        err = add_user(s, a, spare);
        if (err != 0 && s->users == NULL)
            memfd_note_idle(f);
        pthread_mutex_unlock(&f->table);
    }
    pthread_mutex_unlock(&f->lock);
    *out = s;
    return err;
}

/* ---- pages that come to lie there ------------------------------------------------------------ */

/* Context: frozen. */
static int copy_in(struct memfd *f, struct page *page, void *frame)
{
    int n = page_test(page, PG_uptodate) ? -ENODEV : 1;
    if (n != 1 && memfd_whole())
        n = memfd_fill(f, frame, page->data, 1);
    if (n == -ENOMEM)
        return n;
    if (n != 1)
        memcpy(frame, page->data, PAGE_SIZE);
    return 0;
}

/* A locked page whose bytes are in its own frame.   -EAGAIN: somebody else uses it; -ENOMEM. */
static int move_in(struct memfd *f, struct page *page)
{
    struct address_space *m = f->mapping;
    void *frame = NULL;
    pthread_mutex_lock(&f->lock);
    int err = memfd_frame(f, atomic_load(&page->index), &frame);
    pthread_mutex_unlock(&f->lock);
    if (err != 0 || frame == NULL) /* the segment has an end that the caller does not need */
        return err;
    if (!page_ref_freeze(page, 2))
        return -EAGAIN;
    err = page_unmap(m, page) ? copy_in(f, page, frame) : -EAGAIN;
    if (err == 0)
        page_to_memfd(m->cache, page, frame);
    page_ref_unfreeze(page, 2);
    return err;
}

static int pull_page(struct memfd *f, struct page *page)
{
    int err = 0;
    lock_page(page);
    wait_on_page_writeback(page);
    if (atomic_load(&page->mapping) == f->mapping && !page_in_memfd(f->mapping->cache, page))
        err = move_in(f, page);
    unlock_page(page);
    return err;
}

/* One at a time: whoever else pulls has no reference either when we want it for ourselves. */
static int pull_pages(struct memfd_segment *s)
{
    struct memfd *f = s->f;
    uint64_t next = s->first, end = s->first + s->count;
    unsigned tries = 0;
    while (next < end) {
        struct page *page;
        uint64_t at = next;
        int err = 0;
        if (find_get_pages(f->mapping, &next, (uint32_t)(end - 1), &page, 1) > 0) {
            at = next - 1;
            err = pull_page(f, page);
            put_page(f->mapping->cache, page);
        } else if (next == at) {
            err = -EAGAIN; /* its count is frozen */
        }
        if (err == -EAGAIN && ++tries < PULL_TRIES) {
            next = at;
            if (tries < PULL_YIELDS)
                sched_yield();
            else
                (void)poll(NULL, 0, 1);
        } else if (err != 0) {
            return err == -EAGAIN ? -EBUSY : err;
        } else {
            tries = 0;
        }
    }
    atomic_store(&s->whole,
                 true); /* before it is not live any more nobody changes that: we use it */
    return 0;
}

int memfd_reserve(struct address_space *m, uint32_t first, uint64_t count, struct memfd_account *a,
                  struct memfd_segment **out)
{
    struct memfd *f = atomic_load(&m->memfd);
    struct memfd_segment *fresh = calloc(1, sizeof *fresh), *s = NULL;
    struct segment_user *spare = malloc(sizeof *spare);
    int err = fresh == NULL || spare == NULL ? -ENOMEM : 0;
    if (err == 0) {
        fresh->f = f;
        choose_span(m, fresh, first, count);
        unsigned tries = 0;
        while ((err = get_segment(f, first, count, a, &fresh, &spare, &s)) == -ENOMEM &&
               memfd_make_room(tries++))
            ;
    }
    free(fresh);
    free(spare);
    if (err == 0 && !atomic_load(&s->whole)) {
        err = pull_pages(s);
        if (err != 0)
            memfd_release(s, a);
    }
    if (err == 0)
        *out = s;
    return err == -EDQUOT ? -ENOMEM : err;
}

bool memfd_has_pages(struct address_space *m)
{
    struct memfd *f = atomic_load(&m->memfd);
    return f != NULL && atomic_load_explicit(&f->nr_segments, memory_order_relaxed) > 0;
}

/* ---- checking -------------------------------------------------------------------------------- */

bool memfd_check(struct address_space *m, const struct page *page)
{
    struct memfd *f = atomic_load(&m->memfd);
    bool lies = page_in_memfd(m->cache, page), ok = !lies;
    uint32_t index = atomic_load(&page->index);
    if (f == NULL)
        return ok;
    pthread_mutex_lock(&f->table);
    for (const struct memfd_segment *s = f->segments; s != NULL; s = s->next) {
        if (index < s->first || index - s->first >= s->count)
            continue;
        if (lies && page->data == segment_frame(s, index))
            ok = true;
        else if (!lies && s->users != NULL && atomic_load(&s->whole))
            ok = false;
    }
    pthread_mutex_unlock(&f->table);
    return ok;
}
