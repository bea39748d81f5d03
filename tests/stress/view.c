#include "tests/stress/view.h"

#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <setjmp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define EXIT_ABSENT 77
#define LIBRARY     "libfolio.so.0"

/* ---- doors ----------------------------------------------------------------------------------- */

/* (The C library's takes the place as one of any number of arguments.) */
static void *kernel_remap(void *addr, size_t old_len, size_t new_len, int flags, void *place)
{
    return mremap(addr, old_len, new_len, flags, place);
}

static const struct door kernel_door = {
    "the kernel's mapping", mmap, munmap, msync, madvise, mincore, kernel_remap
};

static void *open_library(void)
{
    char path[PATH_MAX];
    const char *named = getenv("FOLIO_LIB");
    if (named != NULL)
        return dlopen(named, RTLD_NOW);
    ssize_t n = readlink("/proc/self/exe", path, sizeof path - sizeof "/../lib/" LIBRARY);
    char *slash = n > 0 ? memrchr(path, '/', (size_t)n) : NULL;
    void *library = NULL;
    if (slash != NULL) {
        strcpy(slash, "/../lib/" LIBRARY);
        library = dlopen(path, RTLD_NOW);
    }
    return library != NULL ? library : dlopen(LIBRARY, RTLD_NOW);
}

/* (A pointer to an object becomes one to a function as POSIX has it.) */
static void symbol(void *library, const char *name, void *function)
{
    void *found = library != NULL ? dlsym(library, name) : NULL;
    if (found == NULL) {
        fprintf(stderr, "folio-stress: --attach: no libfolio: %s\n", dlerror());
        exit(EXIT_ABSENT);
    }
    memcpy(function, &found, sizeof found);
}

void doors_open(struct doors *d, const struct options *o)
{
    *d = (struct doors){ .nr = 1 };
    d->door[0] = kernel_door;
    if (o->attach == ATTACH_NONE)
        return;
    void *library = open_library();
    struct door folio = { .name = "libfolio's mapping" };
    symbol(library, "folio_mmap", &folio.map);
    symbol(library, "folio_munmap", &folio.unmap);
    symbol(library, "folio_msync", &folio.sync);
    symbol(library, "folio_madvise", &folio.advise);
    symbol(library, "folio_mincore", &folio.resident);
    symbol(library, "folio_mremap", &folio.remap);
    if (o->attach == ATTACH_MIXED)
        d->nr = 2;
    d->door[d->nr - 1] = folio;
}

/* ---- memory that may not be there ------------------------------------------------------------ */

static _Thread_local sigjmp_buf landing;
static _Thread_local volatile sig_atomic_t expected;

static void on_fault(int signal)
{
    if (expected) {
        expected = 0;
        siglongjmp(landing, 1);
    }
    struct sigaction action = { .sa_handler = SIG_DFL };
    sigaction(signal, &action, NULL); /* and come back here, to die of it */
}

void view_catch_signals(void)
{
    struct sigaction action = { .sa_handler = on_fault, .sa_flags = SA_NODEFER };
    sigemptyset(&action.sa_mask);
    sigaction(SIGBUS, &action, NULL);
    sigaction(SIGSEGV, &action, NULL);
}

int memory_store(char *to, const uint64_t *words, unsigned nr)
{
    volatile uint64_t *at = (volatile uint64_t *)(void *)to;
    if (sigsetjmp(landing, 0) != 0)
        return -EFAULT;
    expected = 1;
    for (unsigned i = 0; i < nr; i++)
        at[i] = words[i];
    expected = 0;
    return 0;
}

int memory_load(const char *from, uint64_t *words, unsigned nr)
{
    const volatile uint64_t *at = (const volatile uint64_t *)(const void *)from;
    if (sigsetjmp(landing, 0) != 0)
        return -EFAULT;
    expected = 1;
    for (unsigned i = 0; i < nr; i++)
        words[i] = at[i];
    expected = 0;
    return 0;
}

/* ---- views ----------------------------------------------------------------------------------- */

void slot_name(char name[NAME_BYTES], uint32_t slot)
{
    snprintf(name, NAME_BYTES, "f%u", slot);
}

void view_unmap(struct worker *w, uint32_t slot)
{
    struct view *v = &w->views[slot];
    if (v->addr != NULL)
        v->door->unmap(v->addr, (size_t)v->count * PAGE_BYTES);
    v->addr = NULL;
}

void view_close(struct worker *w, uint32_t slot)
{
    struct view *v = &w->views[slot];
    view_unmap(w, slot);
    if (v->fd >= 0)
        close(v->fd);
    v->fd = -1;
}

void view_close_all(struct worker *w)
{
    for (uint32_t i = 0; i < w->sh->nr_files; i++)
        view_close(w, i);
}

int view_fd(struct worker *w, uint32_t slot)
{
    struct view *v = &w->views[slot];
    uint32_t id = atomic_load(&w->sh->files[slot].id);
    char name[NAME_BYTES];
    if (v->fd >= 0 && v->id == id)
        return v->fd;
    view_close(w, slot);
    slot_name(name, slot);
    v->fd = openat(w->dir, name, O_RDWR | O_CLOEXEC);
    if (v->fd < 0)
        return -errno;
    v->id = id;
    return v->fd;
}

/* All of the file, or a few pages around the cell: mappings of many shapes. */
static void draw_window(struct view *v, const struct shared *sh, uint32_t cell, uint64_t r)
{
    uint32_t first = cell * CELL_BYTES / PAGE_BYTES;
    uint32_t last = (cell * CELL_BYTES + CELL_BYTES - 1) / PAGE_BYTES;
    v->first = 0;
    v->count = sh->nr_pages;
    if (r % 4 != 0)
        return;
    uint32_t before = (uint32_t)(r >> 8) % 16, after = (uint32_t)(r >> 16) % 16;
    v->first = first > before ? first - before : 0;
    last = last + after < sh->nr_pages ? last + after : sh->nr_pages - 1;
    v->count = last - v->first + 1;
}

/* Of two doors, may this one be stored through? */
static bool may_store(const struct worker *w, const struct door *door)
{
    return w->doors->nr == 1 || w->o->coherence == COHERENCE_FULL ||
           door == &w->doors->door[w->doors->nr - 1];
}

static const struct door *draw_door(const struct worker *w, uint64_t r, bool store)
{
    const struct door *drawn = &w->doors->door[w->doors->nr == 2 ? r % 2 : 0];
    return store && !may_store(w, drawn) ? &w->doors->door[1] : drawn;
}

char *view_cell(struct worker *w, uint32_t slot, uint32_t cell, uint64_t r, bool store)
{
    struct view *v = &w->views[slot];
    uint64_t at = (uint64_t)cell * CELL_BYTES;
    int fd = view_fd(w, slot);
    if (fd < 0) {
        errno = -fd;
        return NULL;
    }
    if (v->addr != NULL && (at < (uint64_t)v->first * PAGE_BYTES ||
                            at + CELL_BYTES > ((uint64_t)v->first + v->count) * PAGE_BYTES))
        view_unmap(w, slot);
    if (v->addr != NULL && store && !may_store(w, v->door))
        view_unmap(w, slot);
    if (v->addr == NULL) {
        draw_window(v, w->sh, cell, r >> 4);
        v->door = draw_door(w, r, store);
        int prot = may_store(w, v->door) ? PROT_READ | PROT_WRITE : PROT_READ;
        void *addr = v->door->map(NULL, (size_t)v->count * PAGE_BYTES, prot, MAP_SHARED, fd,
                                  (off_t)v->first * PAGE_BYTES);
        if (addr == MAP_FAILED)
            return NULL;
        v->addr = addr;
    }
    return v->addr + (at - (uint64_t)v->first * PAGE_BYTES);
}

int view_remap(struct worker *w, uint32_t slot, uint32_t count, bool fixed)
{
    struct view *v = &w->views[slot];
    size_t old_len = (size_t)v->count * PAGE_BYTES, new_len = (size_t)count * PAGE_BYTES;
    void *place = NULL;
    if (fixed) {
        /* Ours, or what another thread maps meanwhile would be replaced. */
        place = mmap(NULL, new_len, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (place == MAP_FAILED)
            return -errno;
    }
    void *moved = v->door->remap(v->addr, old_len, new_len,
                                 MREMAP_MAYMOVE | (fixed ? MREMAP_FIXED : 0), place);
    /* A place that was not taken stays reserved: it may be free already, and another thread's. */
    if (moved == MAP_FAILED)
        return -errno;
    if (fixed && moved != place)
        return -ENOTRECOVERABLE;
    v->addr = moved;
    v->count = count;
    return 0;
}

/* ---- system calls that go on ----------------------------------------------------------------- */

int write_all(int fd, const char *from, size_t len, uint64_t at)
{
    while (len > 0) {
        ssize_t n = pwrite(fd, from, len, (off_t)at);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return n < 0 ? -errno : -EIO;
        from += n;
        at += (uint64_t)n;
        len -= (size_t)n;
    }
    return 0;
}

int read_all(int fd, char *to, size_t len, uint64_t at)
{
    while (len > 0) {
        ssize_t n = pread(fd, to, len, (off_t)at);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return -errno;
        if (n == 0) {
            memset(to, 0, len);
            return 0;
        }
        to += n;
        at += (uint64_t)n;
        len -= (size_t)n;
    }
    return 0;
}
