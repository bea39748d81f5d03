#include "tests/stress/check.h"

#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "tests/stress/timeline.h"
#include "tests/stress/view.h"

_Noreturn void worker_park(void)
{
    for (;;)
        pause();
}

/* ---- words ----------------------------------------------------------------------------------- */

static bool all_zero(const uint64_t *words, unsigned nr)
{
    for (unsigned i = 0; i < nr; i++)
        if (words[i] != 0)
            return false;
    return true;
}

/* The version that whole, valid words tell of themselves.   False: they are not. */
static bool read_version(const uint64_t words[CELL_WORDS], struct version *v)
{
    uint64_t want[CELL_WORDS];
    *v = (struct version){ .seq = words[2],
                           .ns = words[3],
                           .file = (uint32_t)(words[1] >> 32),
                           .cell = (uint32_t)words[1],
                           .writer = (uint16_t)(words[0] >> 32),
                           .how = (uint8_t)(words[0] >> 48),
                           .to = CELL_BYTES };
    if (v->seq == 0 || v->how >= NR_OPS)
        return false;
    version_words(v, want);
    return memcmp(want, words, sizeof want) == 0;
}

/* ---- telling --------------------------------------------------------------------------------- */

static void print_version(FILE *to, const struct version *v, uint64_t now)
{
    if (version_is_zero(v)) {
        fputs("zeros", to);
        return;
    }
    fprintf(to, "%s by worker %u, %.6f ms ago, sequence %llu, file id %u, cell %u",
            op_names[v->how], v->writer, (double)(now - v->ns) / 1e6, (unsigned long long)v->seq,
            v->file, v->cell);
    if (v->from > 0 || v->to < CELL_BYTES)
        fprintf(to, ", bytes %u to %u of it", v->from, v->to);
}

/* The latest version in the cell's history with these words.   0: none. */
static uint64_t find_version(const struct cell *c, const uint64_t words[CELL_WORDS], uint64_t *out)
{
    uint64_t hi = atomic_load(&c->ver) + atomic_load(&c->pending), want[CELL_WORDS];
    for (uint64_t i = 0; i < HISTORY && i <= hi; i++) {
        version_words(&c->history[(hi - i) % HISTORY], want);
        if (memcmp(want, words, sizeof want) == 0) {
            *out = hi - i;
            return 1;
        }
    }
    return 0;
}

static void print_words(FILE *to, const struct cell *c, const uint64_t words[CELL_WORDS],
                        uint64_t now)
{
    struct version v;
    uint64_t number;
    if (find_version(c, words, &number)) {
        fprintf(to, "version %llu: ", (unsigned long long)number);
        print_version(to, &c->history[number % HISTORY], now);
    } else if (read_version(words, &v)) {
        print_version(to, &v, now);
    } else {
        for (unsigned i = 0; i < CELL_WORDS; i++)
            fprintf(to, "%s%016llx", i % 6 == 0 ? "\n        " : " ", (unsigned long long)words[i]);
    }
    fputc('\n', to);
}

/* What each door shows now.   Returns true if one of them is right. */
static bool look_again(FILE *to, struct worker *w, uint32_t slot, uint32_t cell, uint64_t lo,
                       uint64_t hi)
{
    struct cell *c = cell_at(w->sh, slot, cell);
    uint64_t at = (uint64_t)cell * CELL_BYTES, words[CELL_WORDS], now = now_ns();
    bool right = false;
    int fd = view_fd(w, slot);
    if (fd >= 0 && read_all(fd, (char *)words, CELL_BYTES, at) == 0) {
        fputs("  pread now: ", to);
        print_words(to, c, words, now);
        right = cell_allows(c, lo, hi, false, words) == 1;
    }
    for (unsigned i = 0; i < w->doors->nr && fd >= 0; i++) {
        const struct door *door = &w->doors->door[i];
        size_t skip = at % PAGE_BYTES,
               len = (skip + CELL_BYTES + PAGE_BYTES - 1) / PAGE_BYTES * PAGE_BYTES;
        char *p = door->map(NULL, len, PROT_READ, MAP_SHARED, fd, (off_t)(at - skip));
        if (p == MAP_FAILED)
            continue;
        if (memory_load(p + skip, words, CELL_WORDS) == 0) {
            fprintf(to, "  %s now: ", door->name);
            print_words(to, c, words, now);
            right = right || cell_allows(c, lo, hi, false, words) == 1;
        }
        door->unmap(p, len);
    }
    return right;
}

static void print_history(FILE *to, const struct cell *c, uint64_t lo, uint64_t hi)
{
    uint64_t ver = atomic_load(&c->ver) + atomic_load(&c->pending), now = now_ns();
    fprintf(to, "  history (it must be version %llu", (unsigned long long)lo);
    if (hi != lo)
        fprintf(to, " to %llu", (unsigned long long)hi);
    fprintf(to, "; version %llu is synced):\n", (unsigned long long)atomic_load(&c->synced));
    for (uint64_t i = ver >= HISTORY ? ver - HISTORY + 1 : 0; i <= ver; i++) {
        fprintf(to, "    version %llu: ", (unsigned long long)i);
        print_version(to, &c->history[i % HISTORY], now);
        fputc('\n', to);
    }
}

/* Only the first failure is told. */
static void claim(struct worker *w)
{
    if (atomic_load(&w->sh->crashing) != 0 || atomic_exchange(&w->sh->failed, 1) != 0)
        worker_park();
}

static _Noreturn void finish(struct worker *w, uint32_t slot, uint32_t cell)
{
    timeline_print(stderr, w->sh, slot, cell);
    fprintf(stderr, "folio-stress: FAILED; --seed %llu draws the same operations%s\n",
            (unsigned long long)w->o->seed,
            w->sh->nr_workers == 1 ? ", in the same order" : " (their interleaving differs)");
    if (w->o->beyond)
        fputs("folio-stress: this is FUSE: --coherence=fuse leaves out what its kernel side does "
              "not hold for any server\n",
              stderr);
    if (w->id == w->sh->nr_workers) /* who watches the others says it of theirs */
        fprintf(stderr, "folio-stress: the files are left in %s\n", w->o->dir);
    fflush(stderr);
    _exit(1);
}

_Noreturn void check_fail(struct worker *w, uint32_t slot, uint32_t cell, const char *format, ...)
{
    va_list ap;
    claim(w);
    fprintf(stderr, "folio-stress: file f%u (id %u), cell %u, byte %llu, worker %u: ", slot,
            atomic_load(&w->sh->files[slot].id), cell, (unsigned long long)cell * CELL_BYTES,
            w->id);
    va_start(ap, format);
    vfprintf(stderr, format, ap);
    va_end(ap);
    fputc('\n', stderr);
    finish(w, slot, cell);
}

static const char *name_it(const struct cell *c, uint32_t id, uint32_t cell, uint64_t hi,
                           const uint64_t words[CELL_WORDS], bool elsewhere_right)
{
    struct version v;
    uint64_t number;
    bool valid = read_version(words, &v);
    bool zeros_due = version_is_zero(&c->history[hi % HISTORY]);
    if (valid && v.how == OP_RACE)
        return "RESURRECTED: a store that raced with its truncation or hole";
    if (find_version(c, words, &number) || (valid && v.cell == cell && v.file == id) ||
        all_zero(words, CELL_WORDS)) {
        if (zeros_due)
            return "RESURRECTED";
        return elsewhere_right ? "STALE" : "LOST";
    }
    if (valid)
        return "MISPLACED";
    return "TORN";
}

static _Noreturn void fail_words(struct worker *w, uint32_t slot, uint32_t cell, const char *via,
                                 uint64_t lo, uint64_t hi, const uint64_t words[CELL_WORDS])
{
    struct cell *c = cell_at(w->sh, slot, cell);
    uint32_t id = atomic_load(&w->sh->files[slot].id);
    char *text = NULL;
    size_t len = 0;
    claim(w);
    FILE *memory = open_memstream(&text, &len);
    bool right = look_again(memory != NULL ? memory : stderr, w, slot, cell, lo, hi);
    if (memory != NULL)
        fclose(memory);
    fprintf(stderr,
            "folio-stress: %s: file f%u (id %u), cell %u, byte %llu, page %llu: worker %u, %s\n"
            "  expected: ",
            name_it(c, id, cell, hi, words, right), slot, id, cell,
            (unsigned long long)cell * CELL_BYTES,
            (unsigned long long)cell * CELL_BYTES / PAGE_BYTES, w->id, via);
    print_version(stderr, &c->history[hi % HISTORY], now_ns());
    fputs("\n  found: ", stderr);
    print_words(stderr, c, words, now_ns());
    fputs(text != NULL ? text : "", stderr);
    print_history(stderr, c, lo, hi);
    finish(w, slot, cell);
}

/* ---- checking -------------------------------------------------------------------------------- */

void check_words(struct worker *w, uint32_t slot, uint32_t cell, const char *via, uint64_t lo,
                 uint64_t hi, bool whole, const uint64_t words[CELL_WORDS])
{
    switch (cell_allows(cell_at(w->sh, slot, cell), lo, hi, whole, words)) {
    case 1:
        atomic_fetch_add(&w->state->checks, 1);
        break;
    case 0:
        fail_words(w, slot, cell, via, lo, hi, words);
    default:
        atomic_fetch_add(&w->state->overtaken, 1);
    }
}

void check_locked(struct worker *w, uint32_t slot, uint32_t cell, const char *via,
                  const uint64_t words[CELL_WORDS])
{
    struct cell *c = cell_at(w->sh, slot, cell);
    check_words(w, slot, cell, via, atomic_load(&c->lo), atomic_load(&c->ver), false, words);
}

/* The cell's words may be changing: only the one that says where it belongs means something. */
void check_place(struct worker *w, uint32_t slot, uint32_t cell, const char *via,
                 const uint64_t words[CELL_WORDS])
{
    const struct cell *c = cell_at(w->sh, slot, cell);
    uint32_t id = atomic_load(&w->sh->files[slot].id);
    uint64_t place = words[1];
    bool ok = place == 0 || place == ((uint64_t)id << 32 | cell);
    for (unsigned i = 0; i < HISTORY && !ok; i++) {
        uint64_t want[CELL_WORDS];
        version_words(&c->history[i], want);
        ok = want[1] == place;
    }
    if (!ok)
        check_fail(w, slot, cell,
                   "MISPLACED: during a truncation or hole, %s shows what belongs to file id %u, "
                   "cell %u",
                   via, (uint32_t)(place >> 32), (uint32_t)place);
    atomic_fetch_add(&w->state->checks, 1);
}

void check_zeros(struct worker *w, uint32_t slot, const char *why, uint64_t at, const char *bytes,
                 size_t len)
{
    for (size_t i = 0; i < len; i++) {
        if (bytes[i] == 0)
            continue;
        uint64_t where = at + i, words[CELL_WORDS];
        struct version v;
        size_t start = i - where % CELL_BYTES;
        const char *who = "";
        char text[80];
        if (i >= where % CELL_BYTES && start + CELL_BYTES <= len) {
            memcpy(words, bytes + start, CELL_BYTES);
            if (read_version(words, &v)) {
                snprintf(text, sizeof text, ": %s by worker %u, %.3f ms ago", op_names[v.how],
                         v.writer, (double)(now_ns() - v.ns) / 1e6);
                who = text;
            }
        }
        check_fail(w, slot, (uint32_t)(where / CELL_BYTES),
                   "RESURRECTED: byte %llu is %#x, not zero, %s%s", (unsigned long long)where,
                   (unsigned char)bytes[i], why, who);
    }
    atomic_fetch_add(&w->state->checks, len / CELL_BYTES + 1);
}

void check_size(struct worker *w, uint32_t slot, int fd)
{
    struct stat st;
    uint64_t size = atomic_load(&w->sh->files[slot].size);
    if (fstat(fd, &st) != 0) {
        check_outcome(w, OP_READ, "fstat", -errno);
        return;
    }
    if ((uint64_t)st.st_size != size)
        check_fail(w, slot, (uint32_t)(size / CELL_BYTES) % w->sh->nr_cells,
                   "LOST: the size is %lld, not %llu", (long long)st.st_size,
                   (unsigned long long)size);
}

enum outcome check_outcome(struct worker *w, enum op op, const char *what, int err)
{
    if (err == 0)
        return DONE;
    if (atomic_load(&w->sh->crashing) != 0)
        worker_park();
    if (err == -EOPNOTSUPP || err == -ENOSYS || err == -EXDEV) {
        atomic_fetch_or(&w->sh->unsupported, 1u << op);
        return NOT_DONE;
    }
    if (err == -EFAULT)
        atomic_fetch_add(&w->state->sigbus, 1);
    if (w->o->errors && (err == -EIO || err == -ENOSPC || err == -ENOMEM || err == -EFAULT))
        return UNCERTAIN;
    uint32_t cell = atomic_load(&w->state->first);
    check_fail(w, atomic_load(&w->state->slot), cell, "FAILED: %s: %s", what,
               err == -EFAULT ? "SIGBUS below the end of file" : strerror(-err));
}
