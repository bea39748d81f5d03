#include "tests/stress/oracle.h"

#include <assert.h>
#include <linux/futex.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define MAGIC 0xf0110ce1u

uint64_t now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

uint64_t mix64(uint64_t x) /* the finalizer of splitmix64 */
{
    x += 0x9e3779b97f4a7c15u;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
    return x ^ (x >> 31);
}

/* ---- memory ---------------------------------------------------------------------------------- */

static void lock_init(struct file *f)
{
    pthread_rwlockattr_t rw;
    pthread_mutexattr_t mutex;
    pthread_rwlockattr_init(&rw);
    pthread_rwlockattr_setpshared(&rw, PTHREAD_PROCESS_SHARED);
    pthread_rwlockattr_setkind_np(&rw, PTHREAD_RWLOCK_PREFER_WRITER_NONRECURSIVE_NP);
    pthread_rwlock_init(&f->lock, &rw);
    pthread_rwlockattr_destroy(&rw);
    pthread_mutexattr_init(&mutex);
    pthread_mutexattr_setpshared(&mutex, PTHREAD_PROCESS_SHARED);
    pthread_mutex_init(&f->grow, &mutex);
    pthread_mutexattr_destroy(&mutex);
}

void shared_reset_locks(struct shared *sh)
{
    for (uint32_t i = 0; i < sh->nr_files; i++) {
        memset(&sh->files[i].lock, 0, sizeof sh->files[i].lock);
        memset(&sh->files[i].grow, 0, sizeof sh->files[i].grow);
        lock_init(&sh->files[i]);
        atomic_store(&sh->files[i].race, 0);
        atomic_store(&sh->files[i].racers, 0);
    }
    for (uint64_t i = 0; i < (uint64_t)sh->nr_files * sh->nr_cells; i++)
        if (atomic_load(&sh->cells[i].lock) != 0)
            atomic_store(&sh->cells[i].lock, 0);
}

static void *take(char **p, size_t bytes)
{
    void *here = *p;
    *p += (bytes + 63) / 64 * 64;
    return here;
}

struct shared *shared_create(const struct options *o)
{
    struct shared sh = {
        .nr_files = o->files,
        .nr_pages = o->pages,
        .nr_cells = (uint32_t)((uint64_t)o->pages * PAGE_BYTES / CELL_BYTES),
        .nr_workers = o->procs * o->threads,
    };
    size_t pages = (size_t)sh.nr_files * sh.nr_pages;
    size_t events = pages * PAGE_RING + (size_t)sh.nr_files * FILE_RING;
    size_t cells = (size_t)sh.nr_files * sh.nr_cells;
    size_t bytes = sizeof sh + sh.nr_files * sizeof *sh.files + cells * sizeof *sh.cells +
                   pages * sizeof *sh.rings + events * sizeof *sh.events +
                   (sh.nr_workers + 1) * sizeof *sh.workers + (size_t)64 * 6;
    char *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED)
        return NULL;
    struct shared *out = take(&p, sizeof sh);
    *out = sh;
    out->files = take(&p, sh.nr_files * sizeof *sh.files);
    out->cells = take(&p, cells * sizeof *sh.cells);
    out->rings = take(&p, pages * sizeof *sh.rings);
    out->events = take(&p, events * sizeof *sh.events);
    out->workers = take(&p, (sh.nr_workers + 1) * sizeof *sh.workers);
    shared_reset_locks(out);
    out->start_ns = now_ns();
    return out;
}

/* ---- cells ----------------------------------------------------------------------------------- */

struct cell *cell_at(struct shared *sh, uint32_t slot, uint32_t cell)
{
    assert(slot < sh->nr_files && cell < sh->nr_cells);
    return &sh->cells[(size_t)slot * sh->nr_cells + cell];
}

/* 0 free, 1 held, 2 held and waited for. */
void cell_lock(struct cell *c)
{
    uint32_t none = 0;
    if (atomic_compare_exchange_strong(&c->lock, &none, 1))
        return;
    while (atomic_exchange(&c->lock, 2) != 0)
        syscall(SYS_futex, &c->lock, FUTEX_WAIT, 2, NULL, NULL, 0);
}

void cell_unlock(struct cell *c)
{
    if (atomic_exchange(&c->lock, 0) == 2)
        syscall(SYS_futex, &c->lock, FUTEX_WAKE, 1, NULL, NULL, 0);
}

bool version_is_zero(const struct version *v)
{
    return v->seq == 0;
}

void version_words(const struct version *v, uint64_t words[CELL_WORDS])
{
    memset(words, 0, CELL_BYTES);
    if (version_is_zero(v))
        return;
    words[0] = MAGIC | (uint64_t)v->writer << 32 | (uint64_t)v->how << 48;
    words[1] = (uint64_t)v->file << 32 | v->cell;
    words[2] = v->seq;
    words[3] = v->ns;
    uint64_t sum = words[0];
    for (unsigned i = 4; i < CELL_WORDS - 1; i++)
        words[i] = mix64(words[1] ^ mix64(words[2] + mix64(words[3] + i)));
    for (unsigned i = 1; i < CELL_WORDS - 1; i++)
        sum = mix64(sum ^ words[i]);
    words[CELL_WORDS - 1] = sum;
    for (unsigned i = 0; i < CELL_WORDS; i++)
        if (i * 8 < v->from || i * 8 >= v->to)
            words[i] = 0;
}

struct version version_cut(struct version v, uint32_t from, uint32_t to)
{
    assert(from <= to && (from == 0 || to >= CELL_BYTES) && from % 8 == 0 && to % 8 == 0);
    if (from > 0 && from < v.to)
        v.to = (uint8_t)from;
    else if (from == 0 && to > v.from)
        v.from = (uint8_t)(to < CELL_BYTES ? to : CELL_BYTES);
    if (v.from >= v.to)
        return (struct version){ 0 };
    return v;
}

const struct version *cell_now(const struct cell *c)
{
    return &c->history[atomic_load(&c->ver) % HISTORY];
}

void cell_begin(struct cell *c, const struct version *v)
{
    c->history[(atomic_load(&c->ver) + 1) % HISTORY] = *v;
    atomic_store(&c->pending, 1);
}

void cell_end(struct cell *c, enum outcome outcome)
{
    if (outcome == NOT_DONE) {
        atomic_store(&c->pending, 0);
        return;
    }
    uint64_t ver = atomic_load(&c->ver) + 1;
    /* ver before pending: who peeks in between counts one version too many, not too few. */
    atomic_store(&c->ver, ver);
    atomic_store(&c->pending, 0);
    if (outcome == DONE)
        atomic_store(&c->lo, ver);
}

bool cell_has_room(const struct cell *c, bool crash)
{
    uint64_t oldest = crash ? atomic_load(&c->synced) : atomic_load(&c->lo);
    return atomic_load(&c->ver) + 2 - oldest < HISTORY;
}

static bool words_equal(const struct version *v, const uint64_t words[CELL_WORDS])
{
    uint64_t want[CELL_WORDS];
    version_words(v, want);
    return memcmp(want, words, sizeof want) == 0;
}

static bool mixed_of(const struct cell *c, uint64_t lo, uint64_t hi,
                     const uint64_t words[CELL_WORDS])
{
    uint32_t found = 0;
    for (uint64_t v = lo; v <= hi; v++) {
        uint64_t want[CELL_WORDS];
        version_words(&c->history[v % HISTORY], want);
        for (unsigned i = 0; i < CELL_WORDS; i++)
            if (want[i] == words[i])
                found |= 1u << i;
    }
    return found == (1u << CELL_WORDS) - 1;
}

int cell_allows(const struct cell *c, uint64_t lo, uint64_t hi, bool whole,
                const uint64_t words[CELL_WORDS])
{
    bool yes = false;
    if (hi - lo >= HISTORY - 1)
        return -1;
    for (uint64_t v = lo; v <= hi && !yes; v++)
        yes = words_equal(&c->history[v % HISTORY], words);
    if (!yes && !whole && lo < hi)
        yes = mixed_of(c, lo, hi, words);
    if (atomic_load(&c->ver) + 1 - lo >= HISTORY)
        return -1;
    return yes;
}

void cell_settle(struct cell *c, uint64_t lo, uint64_t hi, const uint64_t words[CELL_WORDS])
{
    for (uint64_t v = hi + 1; v-- > lo;) {
        if (!words_equal(&c->history[v % HISTORY], words))
            continue;
        struct version found = c->history[v % HISTORY];
        c->history[hi % HISTORY] = found;
        lo = hi;
        break;
    }
    atomic_store(&c->ver, hi);
    atomic_store(&c->lo, lo);
    atomic_store(&c->pending, 0);
}

/* ---- sizes ----------------------------------------------------------------------------------- */

void size_begin(struct file *f, uint64_t size)
{
    atomic_fetch_add(&f->size_changes, 1);
    if (size < atomic_load(&f->size_min))
        atomic_store(&f->size_min, size);
    if (size > atomic_load(&f->size_max))
        atomic_store(&f->size_max, size);
}

void size_end(struct file *f, uint64_t size)
{
    atomic_store(&f->size, size);
    atomic_fetch_add(&f->size_changes, 1);
}
