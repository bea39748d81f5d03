#include "tests/stress/crash.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "tests/stress/check.h"
#include "tests/stress/view.h"

#define NS_PER_SECOND UINT64_C(1000000000)
#define LOOK_NS       5000000 /* how often a child is looked at */
#define PROBE_NS      NS_PER_SECOND
#define DYING_S       10 /* who was sent a signal takes a moment to end */

/* ---- commands -------------------------------------------------------------------------------- */

const char *status_text(int status)
{
    static char text[64];
    if (WIFSIGNALED(status))
        snprintf(text, sizeof text, "was killed by signal %d (%s)", WTERMSIG(status),
                 strsignal(WTERMSIG(status)));
    else
        snprintf(text, sizeof text, "ended with exit status %d", WEXITSTATUS(status));
    return text;
}

/* Wait for a child.   False: it is still there, and was sent SIGKILL. */
static bool wait_for_child(pid_t child, uint64_t until_ns, int *status)
{
    pid_t ended;
    while ((ended = waitpid(child, status, WNOHANG)) == 0 && now_ns() < until_ns)
        nanosleep(&(struct timespec){ .tv_nsec = LOOK_NS }, NULL);
    if (ended == 0)
        kill(child, SIGKILL);
    return ended == child;
}

bool run_command(const struct options *o, const char *command, const char *what)
{
    int status = 0;
    pid_t child = fork();
    if (child == 0) {
        execl("/bin/sh", "sh", "-c", "eval \"$1 $2\"", "sh", command, what, (char *)NULL);
        _exit(127);
    }
    if (child < 0)
        dprintf(STDERR_FILENO, "folio-stress: \"%s %s\": fork: %s\n", command, what,
                strerror(errno));
    else if (!wait_for_child(child, now_ns() + o->hang_s * NS_PER_SECOND, &status))
        dprintf(STDERR_FILENO, "folio-stress: HANG: \"%s %s\" has not ended for %u s\n", command,
                what, o->hang_s);
    else if (status != 0)
        dprintf(STDERR_FILENO, "folio-stress: \"%s %s\" %s\n", command, what, status_text(status));
    else
        return true;
    return false;
}

/* ---- was anything killed? -------------------------------------------------------------------- */

/* Is DIR still where the held descriptor is, and does it take a file there? (What is only looked at may come from the
 * kernel.) */
static bool takes_a_file(const char *dir, int held)
{
    struct statx named, here;
    if (statx(AT_FDCWD, dir, 0, STATX_MNT_ID, &named) != 0 ||
        statx(held, "", AT_EMPTY_PATH, STATX_MNT_ID, &here) != 0 ||
        named.stx_mnt_id != here.stx_mnt_id || named.stx_dev_minor != here.stx_dev_minor)
        return false;
    int fd = openat(held, PROBE_NAME, O_WRONLY | O_CREAT | O_CLOEXEC, 0666);
    if (fd < 0)
        return errno == ENOSPC || errno == EDQUOT;
    unlinkat(held, PROBE_NAME, 0);
    return true;
}

/* By a process of its own: the answer of who was killed may never come. */
static bool answers(const char *dir, int held)
{
    int status = 0;
    pid_t child = fork();
    if (child == 0)
        _exit(takes_a_file(dir, held));
    return child > 0 && wait_for_child(child, now_ns() + PROBE_NS, &status) && status != 0 &&
           WIFEXITED(status);
}

bool crash_happened(const char *dir, int held)
{
    uint64_t until = now_ns() + DYING_S * NS_PER_SECOND;
    bool alive;
    while ((alive = answers(dir, held)) && now_ns() < until)
        nanosleep(&(struct timespec){ .tv_nsec = LOOK_NS }, NULL);
    return !alive;
}

/* ---- after a crash --------------------------------------------------------------------------- */

/* Must what one page took from one write(2) be whole? The bytes may still end at a size that did not
 * make it. */
static bool must_be_whole(const struct worker *w, const struct cell *c, uint32_t cell,
                          uint64_t size)
{
    uint64_t at = (uint64_t)cell * CELL_BYTES;
    bool one_page = at / PAGE_BYTES == (at + CELL_BYTES - 1) / PAGE_BYTES;
    uint64_t hi = atomic_load(&c->ver) + atomic_load(&c->pending);
    if (!w->o->stable || !one_page || (size > at && size < at + CELL_BYTES))
        return false;
    for (uint64_t v = atomic_load(&c->synced); v <= hi; v++) {
        const struct version *x = &c->history[v % HISTORY];
        if (!version_is_zero(x) && x->how != OP_WRITE && x->how != OP_EXTEND)
            return false;
    }
    return true;
}

static void adopt(struct cell *c, uint64_t hi, const struct version *v)
{
    c->history[hi % HISTORY] = *v;
    atomic_store(&c->ver, hi);
    atomic_store(&c->lo, hi);
    atomic_store(&c->pending, 0);
}

static void verify_cell(struct worker *w, uint32_t slot, uint32_t cell, uint64_t size,
                        bool may_lack, const uint64_t words[CELL_WORDS])
{
    static const uint64_t zeros[CELL_WORDS];
    static const struct version none;
    struct cell *c = cell_at(w->sh, slot, cell);
    uint64_t lo = atomic_load(&c->synced);
    uint64_t hi = atomic_load(&c->ver) + atomic_load(&c->pending);
    if (may_lack && memcmp(words, zeros, sizeof zeros) == 0) {
        adopt(c, hi, &none);
    } else {
        check_words(w, slot, cell, "pread after the crash", lo, hi, must_be_whole(w, c, cell, size),
                    words);
        cell_settle(c, lo, hi, words);
    }
    if (atomic_load(&c->lo) == atomic_load(&c->ver))
        atomic_store(&c->synced, atomic_load(&c->ver));
}

/* The slot's file. One that was being replaced may be missing. */
static int open_after(struct worker *w, uint32_t slot)
{
    char name[NAME_BYTES], other[NAME_BYTES + 4];
    bool may_lack = atomic_load(&w->sh->files[slot].replacing) != 0;
    slot_name(name, slot);
    snprintf(other, sizeof other, "%s.new", name);
    if (unlinkat(w->dir, other, 0) != 0 && errno != ENOENT)
        check_fail(w, slot, 0, "FAILED: unlink %s: %s", other, strerror(errno));
    int fd = openat(w->dir, name, O_RDWR | O_CLOEXEC | (may_lack ? O_CREAT : 0), 0666);
    if (fd < 0)
        check_fail(w, slot, 0, "LOST: the file itself: %s", strerror(errno));
    return fd;
}

static uint64_t size_after(struct worker *w, uint32_t slot, int fd)
{
    struct file *f = &w->sh->files[slot];
    struct stat st;
    if (fstat(fd, &st) != 0)
        check_fail(w, slot, 0, "FAILED: fstat: %s", strerror(errno));
    uint64_t size = (uint64_t)st.st_size, least = atomic_load(&f->size_min);
    uint64_t most = atomic_load(&f->size_max);
    if (size < least || size > most)
        check_fail(w, slot, 0,
                   "LOST: the size after the crash is %llu; it was from %llu to %llu "
                   "since the last sync",
                   (unsigned long long)size, (unsigned long long)least, (unsigned long long)most);
    return size;
}

static void verify_file(struct worker *w, uint32_t slot)
{
    struct file *f = &w->sh->files[slot];
    bool may_lack = atomic_load(&f->replacing) != 0;
    int fd = open_after(w, slot);
    uint64_t size = size_after(w, slot, fd);
    for (uint32_t first = 0; first < w->sh->nr_cells; first += MAX_RANGE) {
        uint32_t left = w->sh->nr_cells - first, nr = left < MAX_RANGE ? left : MAX_RANGE;
        int err = read_all(fd, w->buffer, (size_t)nr * CELL_BYTES, (uint64_t)first * CELL_BYTES);
        if (err != 0)
            check_fail(w, slot, first, "FAILED: pread after the crash: %s", strerror(-err));
        for (uint32_t i = 0; i < nr; i++) {
            uint64_t words[CELL_WORDS];
            memcpy(words, w->buffer + (size_t)i * CELL_BYTES, sizeof words);
            verify_cell(w, slot, first + i, size, may_lack, words);
        }
    }
    close(fd);
    atomic_store(&f->size, size);
    atomic_store(&f->size_min, size);
    atomic_store(&f->size_max, size);
    atomic_store(&f->size_changes, 0);
    atomic_store(&f->replacing, 0);
}

void crash_verify(struct worker *w)
{
    for (uint32_t i = 0; i < w->sh->nr_files; i++)
        verify_file(w, i);
}

/* ---- at the end ------------------------------------------------------------------------------ */

static void verify_by_read(struct worker *w, uint32_t slot, int fd)
{
    for (uint32_t i = 0; i < w->sh->nr_cells; i++) {
        uint64_t words[CELL_WORDS];
        int err = read_all(fd, (char *)words, CELL_BYTES, (uint64_t)i * CELL_BYTES);
        if (check_outcome(w, OP_READ, "pread", err) == DONE)
            check_locked(w, slot, i, "pread at the end", words);
    }
}

static void verify_by_map(struct worker *w, uint32_t slot, int fd, const struct door *door)
{
    size_t len = (size_t)w->sh->nr_pages * PAGE_BYTES;
    uint64_t cells = atomic_load(&w->sh->files[slot].size) / CELL_BYTES;
    char *p = door->map(NULL, len, PROT_READ, MAP_SHARED, fd, 0);
    if (p == MAP_FAILED) {
        check_outcome(w, OP_REMAP, "mmap", -errno);
        return;
    }
    for (uint32_t i = 0; i < cells; i++) {
        uint64_t words[CELL_WORDS];
        int err = memory_load(p + (size_t)i * CELL_BYTES, words, CELL_WORDS);
        if (check_outcome(w, OP_LOAD, "a load", err) == DONE)
            check_locked(w, slot, i, door->name, words);
    }
    door->unmap(p, len);
}

void verify_all(struct worker *w)
{
    for (uint32_t i = 0; i < w->sh->nr_files; i++) {
        int fd = view_fd(w, i);
        if (fd < 0)
            check_fail(w, i, 0, "FAILED: open at the end: %s", strerror(-fd));
        check_size(w, i, fd);
        verify_by_read(w, i, fd);
        for (unsigned j = 0; j < w->doors->nr; j++)
            verify_by_map(w, i, fd, &w->doors->door[j]);
    }
}
