#include "cache/memfd_impl.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/userfaultfd.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "cache/worker.h"

#ifndef MFD_NOEXEC_SEAL /* Linux 6.3 */
#define MFD_NOEXEC_SEAL 0x0008U
#endif
#ifndef UFFD_USER_MODE_ONLY /* Linux 5.11 */
#define UFFD_USER_MODE_ONLY 1
#endif

/* ---- calls that a client can keep from returning -------------------------------------------- */

#define PATIENCE_NS 1000000000u
#define CALLS       32u /* those beyond are not recorded */

static _Atomic uint64_t calls[CALLS]; /* since when (clock_monotonic); 0: free */
static _Atomic uint64_t reclaiming;   /* likewise */

unsigned memfd_kept(uint64_t ns)
{
    uint64_t now = clock_now(&clock_monotonic);
    unsigned n = 0;
    for (unsigned i = 0; i < CALLS; i++) {
        uint64_t since = atomic_load_explicit(&calls[i], memory_order_relaxed);
        n += since != 0 && now > since + ns;
    }
    return n;
}

bool memfd_reclaim_begin(void)
{
    for (;;) {
        uint64_t now = clock_now(&clock_monotonic), since = 0;
        if (atomic_compare_exchange_strong(&reclaiming, &since, now))
            return true;
        if (now > since + PATIENCE_NS)
            return false;
        sched_yield();
    }
}

void memfd_reclaim_end(void)
{
    atomic_store(&reclaiming, 0);
}

/* Also in a signal's handler. NULL: it is not recorded. */
static _Atomic uint64_t *call_begin(void)
{
    uint64_t now = clock_now(&clock_monotonic);
    for (unsigned i = 0; i < CALLS; i++) {
        uint64_t none = 0;
        if (atomic_compare_exchange_strong(&calls[i], &none, now))
            return &calls[i];
    }
    return NULL;
}

static int call_end(_Atomic uint64_t *call, int result)
{
    int err = result == 0 ? 0 : -errno;
    if (call != NULL)
        atomic_store(call, 0);
    return err;
}

/* fallocate(2).   Returns 0 or -errno. */
static int allocate(int fd, int mode, off_t offset, off_t bytes)
{
    _Atomic uint64_t *call = call_begin();
    return call_end(call, fallocate(fd, mode, offset, bytes));
}

/* ftruncate(2).   Likewise. */
static int cut(int fd, off_t bytes)
{
    _Atomic uint64_t *call = call_begin();
    return call_end(call, ftruncate(fd, bytes));
}

/* ---- pages that vanish under us -------------------------------------------------------------- */

static struct sigaction previous;
static _Atomic unsigned nr_mapped;  /* segments: they are only looked for where there are any */
static _Atomic unsigned nr_patched; /* segments */

/* Segments that exist, for the handler: addresses only ever added, lengths cleared when unmapped. */
#define KNOWN_MAX 65536u
static struct {
    _Atomic uintptr_t start;
    _Atomic uint64_t bytes;
    _Atomic uint64_t offset; /* in the memfd, of what lies at start */
    _Atomic int fd;
    _Atomic bool patched; /* a page of it is no page of the memfd any more */
} known[KNOWN_MAX];
static _Atomic unsigned nr_known;

static void mark_patched(unsigned i)
{
    if (!atomic_exchange(&known[i].patched, true))
        atomic_fetch_add(&nr_patched, 1);
}

/* Something must stand in for a page of that segment.   Returns false: it cannot. */
static bool patch(unsigned i, uintptr_t at)
{
    mark_patched(i); /* before anybody may see it */
    bool patched =
        mmap((void *)at, PAGE_SIZE, PROT_READ | PROT_WRITE, // NOLINT(performance-no-int-to-ptr)
             MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) != MAP_FAILED;
    mark_patched(i); /* and if the segment was healed in between, and the mark taken away */
    return patched;
}

/* Give the page that was touched back to the memfd, or patch it. (fallocate never shortens; whatever makes the memfd
 * too long by it, memfd_trim() sees to it.)   Returns false: not ours, or it cannot be done. */
static bool restore_page(uintptr_t at)
{
    unsigned n = atomic_load(&nr_known);
    for (unsigned i = 0; i < n; i++) {
        uint64_t bytes = atomic_load(&known[i].bytes);
        uintptr_t start = atomic_load(&known[i].start);
        if (bytes == 0 || at < start || at - start >= bytes)
            continue;
        off_t offset = (off_t)(atomic_load(&known[i].offset) + (at - start));
        int err = allocate(atomic_load(&known[i].fd), 0, offset, PAGE_SIZE);
        return err == 0 || (err != -EIO && patch(i, at)); /* EIO: it has bytes (in swap) */
    }
    return false;
}

/* The memfd got shorter, by truncation or by a client's hand, while we read one of its pages: zeros for
 * us, where its bytes were. Others' faults are others'. */
static void on_sigbus(int sig, siginfo_t *info, void *context)
{
    uintptr_t at = (uintptr_t)info->si_addr & ~(uintptr_t)(PAGE_SIZE - 1);
    int error = errno;
    if (info->si_code == BUS_ADRERR && atomic_load(&nr_mapped) > 0 && restore_page(at)) {
        errno = error;
        return;
    }
    if ((previous.sa_flags & SA_SIGINFO) != 0) {
        previous.sa_sigaction(sig, info, context);
    } else if (previous.sa_handler != SIG_DFL && previous.sa_handler != SIG_IGN) {
        previous.sa_handler(sig);
    } else {
        (void)signal(sig, SIG_DFL);
        if (info->si_code <= 0)
            (void)raise(sig);
    }
}

static void install_handler(void)
{
    struct sigaction action;
    memset(&action, 0, sizeof action);
    action.sa_sigaction = on_sigbus;
    action.sa_flags = SA_SIGINFO | SA_NODEFER | SA_ONSTACK;
    (void)sigemptyset(&action.sa_mask);
    (void)sigaction(SIGBUS, &action, &previous);
}

static pthread_mutex_t known_lock = PTHREAD_MUTEX_INITIALIZER;

static int know(void *start, uint64_t bytes, int fd, uint64_t offset)
{
    unsigned i = 0;
    pthread_mutex_lock(&known_lock);
    while (i < atomic_load(&nr_known) && atomic_load(&known[i].bytes) != 0)
        i++;
    bool room = i < KNOWN_MAX;
    if (room) {
        atomic_store(&known[i].start, (uintptr_t)start);
        atomic_store(&known[i].fd, fd);
        atomic_store(&known[i].offset, offset);
        atomic_store(&known[i].patched, false);
        atomic_store(&known[i].bytes, bytes);
        if (i == atomic_load(&nr_known))
            atomic_store(&nr_known, i + 1);
    }
    pthread_mutex_unlock(&known_lock);
    return room ? 0 : -ENOMEM;
}

/* The segment that starts there.   Returns its number. Context: known_lock. */
static unsigned find_known(const void *start)
{
    unsigned i = 0;
    while (atomic_load(&known[i].bytes) == 0 || atomic_load(&known[i].start) != (uintptr_t)start)
        i++;
    return i;
}

/* Was a page of the segment patched since it was last asked? Context: known_lock. */
static bool clear_patched_locked(unsigned i)
{
    bool was = atomic_exchange(&known[i].patched, false);
    if (was)
        atomic_fetch_sub(&nr_patched, 1);
    return was;
}

static bool test_clear_patched(const void *start)
{
    pthread_mutex_lock(&known_lock);
    bool was = clear_patched_locked(find_known(start));
    pthread_mutex_unlock(&known_lock);
    return was;
}

static void forget(const void *start)
{
    pthread_mutex_lock(&known_lock);
    unsigned i = find_known(start);
    (void)clear_patched_locked(i);
    atomic_store(&known[i].bytes, 0);
    pthread_mutex_unlock(&known_lock);
}

bool memfd_any(void)
{
    return atomic_load(&nr_mapped) > 0;
}

/* ---- filling --------------------------------------------------------------------------------- */

static int filler = -1; /* a userfaultfd nobody reads: its windows are never touched */

static void open_filler(void)
{
    struct uffdio_api api = { .api = UFFD_API };
    filler = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK | UFFD_USER_MODE_ONLY);
    if (filler < 0)
        filler = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);
    if (filler >= 0 && ioctl(filler, UFFDIO_API, &api) != 0) {
        close(filler);
        filler = -1;
    }
}

/* NULL: there are none here. */
static char *map_window(int fd, uint64_t bytes, uint64_t offset)
{
    if (filler < 0)
        return NULL;
    char *at = mmap(NULL, bytes, PROT_READ, MAP_SHARED | MAP_NORESERVE, fd, (off_t)offset);
    if (at == MAP_FAILED)
        return NULL;
    struct uffdio_register r = { .range = { .start = (uintptr_t)at, .len = bytes },
                                 .mode = UFFDIO_REGISTER_MODE_MISSING };
    if (ioctl(filler, UFFDIO_REGISTER, &r) == 0)
        return at;
    munmap(at, bytes);
    return NULL;
}

/* ---- segments -------------------------------------------------------------------------------- */

int segment_map(struct memfd_segment *s)
{
    uint64_t bytes = s->count << PAGE_SHIFT, offset = (uint64_t)s->first << PAGE_SHIFT;
    char *at = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, s->f->fd,
                    (off_t)offset);
    if (at == MAP_FAILED)
        return -ENOMEM;
    if (know(at, bytes, s->f->fd, offset) != 0) {
        munmap(at, bytes);
        return -ENOMEM;
    }
    s->frames = at;
    s->window = segment_has_window(s) ? map_window(s->f->fd, bytes, offset) : NULL;
    atomic_fetch_add(&nr_mapped, 1);
    return 0;
}

void segment_unmap(struct memfd_segment *s)
{
    forget(s->frames);
    munmap(s->frames, s->count << PAGE_SHIFT);
    if (s->window != NULL)
        munmap(s->window, s->count << PAGE_SHIFT);
    atomic_fetch_sub(&nr_mapped, 1);
}

/* Put the memfd's own pages back where zeros had to stand in for them. Context: lock held. */
static void heal_segments(struct memfd *f)
{
    for (struct memfd_segment *s = f->segments; s != NULL; s = s->next)
        if (test_clear_patched(s->frames))
            (void)mmap(s->frames, s->count << PAGE_SHIFT, PROT_READ | PROT_WRITE,
                       MAP_SHARED | MAP_NORESERVE | MAP_FIXED, f->fd,
                       (off_t)((uint64_t)s->first << PAGE_SHIFT));
}

/* Context: lock held, and it has its files. */
static int resize_locked(struct memfd *f, uint64_t pages)
{
    int err = cut(f->fd, (off_t)(pages << PAGE_SHIFT));
    if (err != 0)
        return err;
    if (pages > f->pages)
        heal_segments(f);
    f->pages = pages;
    return 0;
}

int memfd_frame(struct memfd *f, uint32_t index, void **out)
{
    const struct memfd_segment *s = segment_over(f, index, 1);
    int err = 0;
    if (s != NULL && index >= f->pages)
        err = resize_locked(f, (uint64_t)index + 1) == 0 ? 0 : -ENOMEM;
    if (err == 0)
        *out = s != NULL ? segment_frame(s, index) : NULL;
    return err;
}

bool memfd_whole(void)
{
    return filler >= 0 && atomic_load(&nr_patched) == 0;
}

int memfd_fill(struct memfd *f, const void *frame, const char *from, uint32_t n)
{
    uint64_t in, rest;
    const char *window = segment_window(f, frame, &in, &rest);
    if (window == NULL)
        return -ENODEV;
    struct uffdio_copy copy = { .dst = (uintptr_t)window + (in << PAGE_SHIFT),
                                .src = (uintptr_t)from,
                                .len = (n < rest ? n : rest) << PAGE_SHIFT,
                                .mode = UFFDIO_COPY_MODE_DONTWAKE };
    int err = ioctl(filler, UFFDIO_COPY, &copy) == 0 ? 0 : -errno;
    return copy.copy > 0 ? (int)((uint64_t)copy.copy >> PAGE_SHIFT) : err;
}

int memfd_read(const struct memfd *f, uint32_t index, char *to, uint32_t n)
{
    size_t done = 0, bytes = (size_t)n << PAGE_SHIFT;
    off_t offset = (off_t)index << PAGE_SHIFT;
    ssize_t got;
    while (done < bytes &&
           (got = pread(f->fd, to + done, bytes - done, offset + (off_t)done)) != 0) {
        if (got < 0)
            return -errno;
        done += (size_t)got;
    }
    memset(to + done, 0, bytes - done);
    return 0;
}

int memfd_punch(struct memfd *f, uint32_t first, uint32_t last)
{
    return allocate(f->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)first << PAGE_SHIFT,
                    ((off_t)(last - first) + 1) << PAGE_SHIFT);
}

void memfd_grow(struct memfd *f, uint64_t pages)
{
    pthread_mutex_lock(&f->lock);
    if (pages > f->pages && f->fd < 0)
        f->pages = pages; /* when it has files again */
    else if (pages > f->pages)
        (void)resize_locked(f, pages); /* memfd_frame() tries again */
    pthread_mutex_unlock(&f->lock);
}

bool memfd_trim(struct address_space *m, uint32_t index)
{
    struct memfd *f = atomic_load(&m->memfd);
    pthread_mutex_lock(&f->lock);
    uint64_t pages = pages_for(atomic_load(&m->i_size));
    /* A page beyond the end enters the tree under this lock, in which memfd_frame() made room. */
    uint64_t next = pages;
    struct page *page;
    unsigned n = 0;
    while (n == 0 && next <= UINT32_MAX)
        n = find_get_pages(m, &next, UINT32_MAX, &page, 1); /* 0: a shadow, too */
    if (n > 0)
        put_page(m->cache, page);
    else
        (void)resize_locked(f, pages);
    bool beyond = index >= f->pages;
    pthread_mutex_unlock(&f->lock);
    return beyond;
}

/* ---- making and ending ----------------------------------------------------------------------- */

/* The pages of a memfd are small unless the system puts huge ones into all shared memory. */
static bool huge_pages_possible(void)
{
    char text[128] = "";
    int fd = open("/sys/kernel/mm/transparent_hugepage/shmem_enabled", O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return false; /* the kernel has none */
    ssize_t n = read(fd, text, sizeof text - 1);
    close(fd);
    return n > 0 && strstr(text, "[never]") == NULL && strstr(text, "[deny]") == NULL &&
           strstr(text, "[advise]") == NULL;
}

/* Context: lock held, and there are none. */
static int open_locked(struct memfd *f, uint64_t pages)
{
    char path[64];
    f->fd = memfd_create("folio", MFD_CLOEXEC | MFD_NOEXEC_SEAL);
    if (f->fd < 0)
        f->fd = memfd_create("folio", MFD_CLOEXEC);
    if (f->fd < 0)
        return -errno;
    (void)snprintf(path, sizeof path, "/proc/self/fd/%d", f->fd);
    f->read_fd = open(path, O_RDONLY | O_CLOEXEC);
    if (f->read_fd < 0)
        return -errno;
    /* Who was given read_fd must not open it again for writing; and nobody shall seal what is ours to
     * shorten and to punch. (Without MFD_NOEXEC_SEAL it is sealed against seals: EPERM.) */
    if (fchmod(f->fd, 0) != 0 || (fcntl(f->fd, F_ADD_SEALS, F_SEAL_SEAL) != 0 && errno != EPERM))
        return -errno;
    int err = cut(f->fd, (off_t)(pages << PAGE_SHIFT));
    if (err == 0)
        f->pages = pages;
    return err;
}

static void close_files(struct memfd *f)
{
    if (f->read_fd >= 0)
        close(f->read_fd);
    if (f->fd >= 0)
        close(f->fd);
    f->fd = f->read_fd = -1;
}

int memfd_open_files(struct memfd *f, uint64_t pages)
{
    if (f->fd >= 0)
        return 0;
    if (huge_pages_possible())
        return -EOPNOTSUPP;
    int err = open_locked(f, pages > f->pages ? pages : f->pages);
    if (err != 0)
        close_files(f);
    return err;
}

void memfd_free(struct memfd *f)
{
    segments_free(f);
    close_files(f);
    pthread_mutex_destroy(&f->table);
    pthread_mutex_destroy(&f->lock);
    free(f);
}

static pthread_mutex_t dead_lock = PTHREAD_MUTEX_INITIALIZER;
static struct memfd *dead;
static _Atomic unsigned nr_dead; /* those that are being buried, too */
static struct crew undertakers;  /* to the end of the process */

/* A client that has it may keep whoever cuts it (memfd.h): one at a time. What is not cut goes when nobody has it. */
static void cut_if_free(int fd)
{
    static _Atomic bool cutting;
    if (atomic_exchange(&cutting, true))
        return;
    (void)cut(fd, 0);
    atomic_store(&cutting, false);
}

static _Atomic bool short_of_files, many_idle;

static unsigned undertaker_step(void *arg)
{
    (void)arg;
    if (atomic_exchange(&short_of_files, false))
        (void)memfd_shrink(UINT_MAX);
    if (atomic_exchange(&many_idle, false))
        memfd_limit_idle_now();
    pthread_mutex_lock(&dead_lock);
    struct memfd *f = dead;
    dead = f != NULL ? f->next : NULL;
    pthread_mutex_unlock(&dead_lock);
    if (f == NULL)
        return 60000;
    if (f->fd >= 0)
        cut_if_free(f->fd);
    memfd_free(f);
    atomic_fetch_sub(&nr_dead, 1);
    return 0;
}

void memfd_bury(struct memfd *f)
{
    if (f == NULL)
        return;
    atomic_fetch_add(&nr_dead, 1);
    pthread_mutex_lock(&dead_lock);
    f->next = dead;
    dead = f;
    pthread_mutex_unlock(&dead_lock);
    crew_wake(&undertakers);
}

void memfd_shrink_soon(void)
{
    atomic_store(&short_of_files, true);
    crew_wake(&undertakers);
}

void memfd_limit_idle_soon(void)
{
    if (!atomic_exchange(&many_idle, true))
        crew_wake(&undertakers);
}

void memfd_more_undertakers(unsigned nr)
{
    crew_grow(&undertakers, nr);
}

bool memfd_burying(void)
{
    return atomic_load(&nr_dead) > 0;
}

/* Returns 0, or -errno: there may be another time. */
static int begin(void)
{
    static bool installed;
    static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
    int err = 0;
    pthread_mutex_lock(&lock);
    if (!installed) {
        install_handler();
        open_filler();
        installed = true;
    }
    if (atomic_load(&undertakers.nr) == 0)
        err = crew_start(&undertakers, "folio-bury", undertaker_step, NULL);
    pthread_mutex_unlock(&lock);
    return err;
}

int memfd_create_for(struct address_space *m, struct memfd **out)
{
    int err = begin();
    struct memfd *f = err == 0 ? calloc(1, sizeof *f) : NULL;
    if (f == NULL)
        return err != 0 ? err : -ENOMEM;
    pthread_mutex_init(&f->lock, NULL);
    pthread_mutex_init(&f->table, NULL);
    list_init(&f->idle);
    f->mapping = m;
    f->fd = f->read_fd = -1;
    *out = f;
    return 0;
}
