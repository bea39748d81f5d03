/* libfolio_table.c: which addresses are attached, to what.
 *
 * The ranges are a sorted array; the array, the files and the proofs lie in memory that is reserved
 * once and never moves, and of which only what is used costs anything. */
#include "cache/libfolio.h"

#include <pthread.h>
#include <signal.h>
#include <string.h>

struct tables {
    struct client_range ranges[CLIENT_SLOTS];
    struct client_file files[CLIENT_SLOTS];
    struct client_proof proofs[CLIENT_SLOTS];
};

static struct tables *tables;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static sigset_t signals;       /* of who holds it */
static unsigned count;         /* of ranges */
static unsigned proofs;        /* slots ever used */
static unsigned files;         /* likewise */
static unsigned free_file;     /* no free slot of a file is below */
static _Atomic uintptr_t low;  /* no range begins below */
static _Atomic uintptr_t high; /* nor ends above; 0: there is none */
static atomic_uint changes;    /* odd while ranges are changed */

int table_open(void)
{
    if (tables)
        return 0;
    void *memory = sys_mmap(NULL, sizeof(struct tables), PROT_READ | PROT_WRITE,
                            MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED)
        return -ENOMEM;
    tables = memory;
    return 0;
}

void table_lock(void)
{
    sigset_t all, before;

    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    pthread_mutex_lock(&lock);
    signals = before;
}

void table_unlock(void)
{
    sigset_t before = signals;

    pthread_mutex_unlock(&lock);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
}

/* Around whatever changes ranges, for who looks without the lock. */
static void begin_change(void)
{
    atomic_fetch_add_explicit(&changes, 1, memory_order_relaxed);
    atomic_thread_fence(memory_order_release);
}

static void end_change(void)
{
    atomic_fetch_add_explicit(&changes, 1, memory_order_release);
}

/* What the unlocked check of table_touches reads first. */
static void note_bounds(void)
{
    atomic_store(&low, count ? tables->ranges[0].start : 0);
    atomic_store(&high, count ? tables->ranges[count - 1].end : 0);
}

void table_forget_lock(void)
{
    static const pthread_mutex_t unlocked = PTHREAD_MUTEX_INITIALIZER;

    memcpy(&lock, &unlocked, sizeof(lock));
}

void table_forget(void)
{
    table_forget_lock();
    for (unsigned i = 0; i < files; i++)
        tables->files[i].used = false;
    for (unsigned i = 0; i < proofs; i++)
        tables->proofs[i].files = 0;
    count = files = proofs = free_file = 0;
    atomic_store(&changes, 0); /* a child may have come amid one */
    note_bounds();
}

void table_recount(struct client_file **unused)
{
    for (unsigned i = 0; i < files; i++) {
        tables->files[i].references = 0;
        tables->files[i].conn = NULL;
    }
    for (unsigned i = 0; i < count; i++)
        tables->ranges[i].file->references++;
    *unused = NULL;
    for (unsigned i = 0; i < files; i++) {
        struct client_file *file = &tables->files[i];
        if (!file->used || file->references)
            continue;
        file->next = *unused;
        *unused = file;
    }
}

/* The first range that ends above addr: its place, or count. */
static unsigned place_of(uintptr_t addr)
{
    unsigned begin = 0, end = count;

    while (begin < end) {
        unsigned middle = begin + (end - begin) / 2;
        if (tables->ranges[middle].end > addr)
            end = middle;
        else
            begin = middle + 1;
    }
    return begin;
}

/* The last address of a length that may be nonsense. */
static uintptr_t end_of(uintptr_t start, size_t length)
{
    return length > UINTPTR_MAX - start ? UINTPTR_MAX : start + length;
}

/* Does a range meet [start, end)? Without the lock: true and false only if nothing changed meanwhile.
 * Returns 1, 0, or -1: it is not known. */
__attribute__((no_sanitize("thread"))) static int meets(uintptr_t start, uintptr_t end)
{
    unsigned before = atomic_load_explicit(&changes, memory_order_acquire);
    unsigned ranges = __atomic_load_n(&count, __ATOMIC_RELAXED), from = 0, to = ranges;

    if (before % 2 || ranges > CLIENT_SLOTS)
        return -1;
    while (from < to) {
        unsigned middle = from + (to - from) / 2;
        if (__atomic_load_n(&tables->ranges[middle].end, __ATOMIC_RELAXED) > start)
            to = middle;
        else
            from = middle + 1;
    }
    bool found =
        from < ranges && __atomic_load_n(&tables->ranges[from].start, __ATOMIC_RELAXED) < end;
    atomic_thread_fence(memory_order_acquire);
    return atomic_load_explicit(&changes, memory_order_relaxed) == before ? found : -1;
}

bool table_touches(const void *addr, size_t length)
{
    uintptr_t start = (uintptr_t)addr, end = end_of(start, length);

    if (end <= atomic_load_explicit(&low, memory_order_relaxed) ||
        start >= atomic_load_explicit(&high, memory_order_relaxed))
        return false;
    int known = meets(start, end);
    if (known >= 0)
        return known;
    table_lock();
    unsigned i = place_of(start);
    bool found = i < count && tables->ranges[i].start < end;
    table_unlock();
    return found;
}

bool table_next(uintptr_t from, uintptr_t to, struct client_range *out)
{
    unsigned i = count ? place_of(from) : 0;

    if (i == count || tables->ranges[i].start >= to)
        return false;
    *out = tables->ranges[i];
    if (out->start < from) {
        out->offset += (off_t)(from - out->start);
        out->start = from;
    }
    if (out->end > to)
        out->end = to;
    out->file->references++;
    return true;
}

bool table_serves(uintptr_t addr)
{
    if (addr < atomic_load(&low) || addr >= atomic_load(&high))
        return false;
    table_lock();
    unsigned i = place_of(addr);
    const struct client_range *range = i < count ? &tables->ranges[i] : NULL;
    bool serves = range && range->start <= addr && range->file->conn &&
                  !range->file->conn->own_only && !atomic_load(&range->file->conn->hung_up);
    table_unlock();
    return serves;
}

bool table_put(struct client_file *file)
{
    return --file->references == 0;
}

static void make_room(unsigned i)
{
    memmove(&tables->ranges[i + 1], &tables->ranges[i], (count - i) * sizeof(tables->ranges[0]));
    count++;
}

bool table_full(void)
{
    return count > CLIENT_SLOTS - 3;
}

int table_insert(const struct client_range *range)
{
    if (table_full())
        return -ENOMEM;
    unsigned i = place_of(range->start);
    begin_change();
    make_room(i);
    tables->ranges[i] = *range;
    end_change();
    note_bounds();
    return 0;
}

/* Let a range begin at addr, if one contains it. */
static void split(uintptr_t addr)
{
    unsigned i = place_of(addr);

    if (i == count || tables->ranges[i].start >= addr)
        return;
    make_room(i);
    struct client_range *before = &tables->ranges[i], *after = before + 1;
    before->end = addr;
    after->start = addr;
    after->offset += (off_t)(addr - before->start);
    after->file->references++;
}

uint64_t table_cut(uintptr_t start, uintptr_t end, struct client_file **unused)
{
    uint64_t conns = 0;

    if (!count)
        return 0;
    begin_change();
    split(start);
    split(end);
    unsigned first = place_of(start), last = first;
    for (; last < count && tables->ranges[last].start < end; last++) {
        struct client_file *file = tables->ranges[last].file;
        if (file->conn)
            conns |= (uint64_t)1 << conn_index(file->conn);
        if (table_put(file)) {
            file->next = *unused;
            *unused = file;
        }
    }
    memmove(&tables->ranges[first], &tables->ranges[last],
            (count - last) * sizeof(tables->ranges[0]));
    count -= last - first;
    end_change();
    note_bounds();
    return conns;
}

/* The ranges between start and end, made to begin and end there: [first, *last). */
static unsigned isolate(uintptr_t start, uintptr_t end, unsigned *last)
{
    split(start);
    split(end);
    unsigned first = place_of(start);
    for (*last = first; *last < count && tables->ranges[*last].start < end;)
        ++*last;
    return first;
}

/* Are these one mapping, to who looks from outside? */
static bool continues(const struct client_range *a, const struct client_range *b)
{
    return a->end == b->start && a->file == b->file && a->prot == b->prot &&
           a->not_inherited == b->not_inherited &&
           b->offset - a->offset == (off_t)(b->start - a->start);
}

/* Join the ranges [first - 1, last] where they continue each other. */
static void join(unsigned first, unsigned last)
{
    unsigned to = first ? first - 1 : 0, from = to + 1;

    for (; from < count && from <= last; from++) {
        if (continues(&tables->ranges[to], &tables->ranges[from])) {
            tables->ranges[to].end = tables->ranges[from].end;
            table_put(tables->ranges[from].file); /* not the last: this one has it too */
        } else {
            tables->ranges[++to] = tables->ranges[from];
        }
    }
    memmove(&tables->ranges[to + 1], &tables->ranges[from],
            (count - from) * sizeof(tables->ranges[0]));
    count -= from - to - 1;
}

void table_protect(uintptr_t start, uintptr_t end, int prot)
{
    unsigned first = place_of(start), last;

    while (first < count && tables->ranges[first].start < end && tables->ranges[first].prot == prot)
        first++;
    if (first == count || tables->ranges[first].start >= end || table_full())
        return; /* nothing is new */
    begin_change();
    first = isolate(start, end, &last);
    for (unsigned i = first; i < last; i++)
        tables->ranges[i].prot = prot;
    join(first, last);
    end_change();
}

void table_inherit(uintptr_t start, uintptr_t end, bool inherit)
{
    unsigned last;

    begin_change();
    unsigned first = isolate(start, end, &last);
    for (unsigned i = first; i < last; i++)
        tables->ranges[i].not_inherited = !inherit;
    join(first, last);
    end_change();
}

unsigned table_count(void)
{
    return count;
}

struct client_range *table_range(unsigned i)
{
    return &tables->ranges[i];
}

struct client_file *table_new_file(void)
{
    while (free_file < files && tables->files[free_file].used)
        free_file++;
    if (free_file == CLIENT_SLOTS)
        return NULL;
    if (free_file == files)
        files++;
    struct client_file *file = &tables->files[free_file];
    *file = (struct client_file){ .used = true };
    return file;
}

void table_free_file(struct client_file *file)
{
    unsigned i = (unsigned)(file - tables->files);

    file->used = false;
    if (i < free_file)
        free_file = i;
}

struct client_proof *table_proof(unsigned i)
{
    return i < proofs ? &tables->proofs[i] : NULL;
}

struct client_proof *table_new_proof(void)
{
    unsigned i = 0;

    while (i < proofs && tables->proofs[i].files)
        i++;
    if (i == CLIENT_SLOTS)
        return NULL;
    if (i == proofs)
        proofs++;
    return &tables->proofs[i];
}
