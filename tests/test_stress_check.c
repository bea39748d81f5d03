/* folio-stress's checker, given made-up cells: what is wrong has the name that check.h says, and what is
 * right has none. The file holds what the checker finds when it looks again, through every door. */
#include <criterion/criterion.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "tests/stress/check.h"
#include "tests/stress/view.h"
#include "tests/stress/worker.h"

#define CELL     3u
#define ID       1u
#define OTHER_ID 2u
#define HUNG_S   20u

static char dir[] = "/tmp/folio-test_stress_check.XXXXXX";
static struct options options = { .dir = dir, .procs = 1, .threads = 1, .files = 2, .pages = 4 };
static struct doors doors;
static struct shared *sh;
static struct worker w;

static void set_up(void)
{
    cr_assert_not_null(mkdtemp(dir));
    doors_open(&doors, &options);
    sh = shared_create(&options);
    cr_assert_not_null(sh);
    atomic_store(&sh->files[0].id, ID);
    atomic_store(&sh->files[1].id, OTHER_ID);
    cr_assert_eq(worker_init(&w, &options, sh, &doors, 0, 0), 0);
    int fd = openat(w.dir, "f0", O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    cr_assert_geq(fd, 0);
    cr_assert_eq(ftruncate(fd, (off_t)sh->nr_pages * PAGE_BYTES), 0);
    close(fd);
}

static void tear_down(void)
{
    unlinkat(w.dir, "f0", 0);
    worker_free(&w);
    rmdir(dir);
}

TestSuite(stress_check, .init = set_up, .fini = tear_down);

/* ---- cells ----------------------------------------------------------------------------------- */

/* The next version of the cell, as far as the oracle knows. */
static struct version store(enum outcome outcome)
{
    struct cell *c = cell_at(sh, 0, CELL);
    struct version v = version_new(&w, OP_STORE, 0, CELL, atomic_load(&c->ver) + 1);
    cell_begin(c, &v);
    cell_end(c, outcome);
    return v;
}

static void cut_away(void)
{
    struct cell *c = cell_at(sh, 0, CELL);
    struct version zeros = { 0 };
    cell_begin(c, &zeros);
    cell_end(c, DONE);
}

static void file_holds(const struct version *v)
{
    uint64_t words[CELL_WORDS];
    version_words(v, words);
    cr_assert_eq(write_all(view_fd(&w, 0), (const char *)words, CELL_BYTES, CELL * CELL_BYTES), 0);
}

/* ---- names ----------------------------------------------------------------------------------- */

static char said[1 << 16];

static void read_said(int from)
{
    size_t len = 0;
    for (ssize_t n; (n = read(from, said + len, sizeof said - 1 - len)) > 0;)
        len += (size_t)n;
    said[len] = '\0';
}

/* Of all names the one in the first line; "": nothing was said. */
static const char *name_said(void)
{
    static const char *const names[] = { "LOST",      "STALE",       "TORN",
                                         "MISPLACED", "RESURRECTED", "FAILED" };
    const char *found = "";
    said[strcspn(said, "\n")] = '\0';
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        const char *at = strstr(said, names[i]);
        if (at == NULL || at[strlen(names[i])] != ':')
            continue;
        cr_assert_str_empty(found, "two names: %s", said);
        found = names[i];
    }
    cr_assert(said[0] == '\0' || found[0] != '\0', "no name: %s", said);
    return found;
}

/* The checker ends the process that it tells something: so a child checks.   Returns the name. */
static const char *name_by(void (*check)(const void *arg), const void *arg)
{
    int ends[2], status;
    cr_assert_eq(pipe(ends), 0);
    atomic_store(&sh->failed, 0); /* or it is not the first, which alone is told */
    pid_t child = fork();
    if (child == 0) {
        dup2(ends[1], STDERR_FILENO);
        alarm(HUNG_S);
        check(arg);
        _exit(0);
    }
    close(ends[1]);
    read_said(ends[0]);
    close(ends[0]);
    cr_assert_eq(waitpid(child, &status, 0), child);
    cr_assert(WIFEXITED(status), "status %#x: %s", (unsigned)status, said);
    cr_assert_eq(WEXITSTATUS(status), said[0] != '\0');
    return name_said();
}

static void check_a_locked_one(const void *words)
{
    check_locked(&w, 0, CELL, "a door", words);
}

static const char *name_of_words(const uint64_t words[CELL_WORDS])
{
    return name_by(check_a_locked_one, words);
}

static const char *name_of(const struct version *v)
{
    uint64_t words[CELL_WORDS];
    version_words(v, words);
    return name_of_words(words);
}

/* The first words of one, then those of another. */
static void mix(uint64_t words[CELL_WORDS], const struct version *a, const struct version *b)
{
    uint64_t other[CELL_WORDS];
    version_words(a, words);
    version_words(b, other);
    memcpy(words + CELL_WORDS / 2, other + CELL_WORDS / 2, CELL_BYTES / 2);
}

/* ---- what is right --------------------------------------------------------------------------- */

Test(stress_check, a_right_cell_has_no_name)
{
    struct version zeros = { 0 };
    cr_assert_str_empty(name_of(&zeros), "nothing was stored yet");
    store(DONE);
    struct version v = store(DONE);
    cr_assert_str_empty(name_of(&v));
    cut_away();
    cr_assert_str_empty(name_of(&zeros));
}

Test(stress_check, of_a_store_that_failed_every_word_may_be_there_or_not)
{
    struct version before = store(DONE), failed = store(UNCERTAIN);
    uint64_t words[CELL_WORDS];
    mix(words, &failed, &before);
    cr_assert_str_empty(name_of(&before));
    cr_assert_str_empty(name_of(&failed));
    cr_assert_str_empty(name_of_words(words));
}

/* ---- what is wrong --------------------------------------------------------------------------- */

Test(stress_check, an_older_version_or_zeros_are_lost)
{
    struct version zeros = { 0 }, old = store(DONE);
    store(DONE);
    file_holds(&old);
    cr_assert_str_eq(name_of(&old), "LOST");
    file_holds(&zeros);
    cr_assert_str_eq(name_of(&zeros), "LOST");
}

Test(stress_check, the_same_is_stale_if_another_door_is_right)
{
    struct version zeros = { 0 }, old = store(DONE), now = store(DONE);
    file_holds(&now);
    cr_assert_str_eq(name_of(&old), "STALE");
    cr_assert_str_eq(name_of(&zeros), "STALE");
}

Test(stress_check, words_of_several_versions_or_of_none_are_torn)
{
    struct version old = store(DONE), now = store(DONE);
    uint64_t words[CELL_WORDS];
    file_holds(&now); /* it is torn all the same */
    mix(words, &now, &old);
    cr_assert_str_eq(name_of_words(words), "TORN");
    version_words(&now, words);
    words[CELL_WORDS - 3] ^= 1;
    cr_assert_str_eq(name_of_words(words), "TORN", "one bit of it");
}

Test(stress_check, a_good_cell_of_another_place_or_file_is_misplaced)
{
    struct version now = store(DONE), other = now;
    file_holds(&now);
    other.cell = CELL + 1;
    cr_assert_str_eq(name_of(&other), "MISPLACED", "another place");
    other = now;
    other.file = OTHER_ID;
    cr_assert_str_eq(name_of(&other), "MISPLACED", "another file");
}

Test(stress_check, what_was_cut_is_resurrected)
{
    struct version old = store(DONE), raced = old;
    cut_away();
    cr_assert_str_eq(name_of(&old), "RESURRECTED");
    raced.how = OP_RACE;
    raced.seq = 77;
    cr_assert_str_eq(name_of(&raced), "RESURRECTED", "a store that raced");
}

static void check_bytes(const void *bytes)
{
    check_zeros(&w, 0, "where there is a hole", CELL_BYTES, bytes, CELL_BYTES);
}

Test(stress_check, a_byte_in_a_hole_is_resurrected)
{
    char bytes[CELL_BYTES] = { 0 };
    cr_assert_str_empty(name_by(check_bytes, bytes));
    bytes[CELL_BYTES - 1] = 1;
    cr_assert_str_eq(name_by(check_bytes, bytes), "RESURRECTED");
}

static void check_in_race(const void *words)
{
    check_place(&w, 0, CELL, "a door", words);
}

Test(stress_check, during_a_race_only_the_place_is_looked_at)
{
    struct version old = store(DONE), other = old;
    uint64_t words[CELL_WORDS];
    store(DONE);
    version_words(&old, words);
    cr_assert_str_empty(name_by(check_in_race, words));
    other.cell = CELL + 1;
    version_words(&other, words);
    cr_assert_str_eq(name_by(check_in_race, words), "MISPLACED");
}

static void check_the_size(const void *unused)
{
    (void)unused;
    check_size(&w, 0, view_fd(&w, 0));
}

Test(stress_check, another_size_is_lost)
{
    atomic_store(&sh->files[0].size, (uint64_t)sh->nr_pages * PAGE_BYTES);
    cr_assert_str_empty(name_by(check_the_size, NULL));
    atomic_store(&sh->files[0].size, (uint64_t)sh->nr_pages * PAGE_BYTES - CELL_BYTES);
    cr_assert_str_eq(name_by(check_the_size, NULL), "LOST");
}
