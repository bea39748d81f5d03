/* main.c: the processes: starting workers, watching them, ending them. */
#include <errno.h>
#include <fcntl.h>
#include <linux/magic.h>
#include <mntent.h>
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "tests/stress/check.h"
#include "tests/stress/crash.h"
#include "tests/stress/timeline.h"
#include "tests/stress/view.h"
#include "tests/stress/worker.h"

#define LOOK_NS              20000000 /* how often the workers are looked at */
#define ROUND_LEAST          300u     /* ms that the load runs before a crash */
#define ROUND_DRAWN          2500u
#define SPELL_LEAST          20u /* ms that errors come, or that they do not */
#define SPELL_DRAWN          400u
#define EXIT_FAILED          1
#define EXIT_ABSENT          77
#define NS_PER_SECOND        1000000000u
#define DESCRIPTORS          16u /* of a process, beside a worker's directory and files */
#define DESCRIPTORS_ATTACHED 64u /* libfolio's, with some to spare */

struct program {
    struct options o;
    struct shared *sh;
    struct doors doors;
    struct worker self; /* ours, for making and verifying files */
    char dir[4096];
    pid_t group;
    unsigned running;
    unsigned crashes;
    volatile sig_atomic_t injecting; /* the last "off" of --inject has yet to come */
};

/* Its directory is there: the end concerns it, whatever brings it. */
static struct program *at_work;

/* What could not be removed, or may not be, is said to be left. (By a signal's handler, too.) */
static void remove_files(const struct program *p)
{
    char name[NAME_BYTES], other[NAME_BYTES + 4];
    for (uint32_t i = 0; i < p->sh->nr_files && !p->o.keep; i++) {
        slot_name(name, i);
        snprintf(other, sizeof other, "%s.new", name);
        unlinkat(p->self.dir, name, 0);
        unlinkat(p->self.dir, other, 0);
    }
    if (!p->o.keep)
        unlinkat(p->self.dir, PROBE_NAME, 0);
    if (p->o.keep || rmdir(p->dir) != 0)
        dprintf(STDERR_FILENO, "folio-stress: the files are left in %s\n", p->dir);
}

/* (By a signal's handler, too.) */
static void end_injection(struct program *p)
{
    if (p == NULL || !p->injecting)
        return;
    p->injecting = 0;
    run_command(&p->o, p->o.inject, "off");
}

/* A failure's files are kept. */
static _Noreturn void leave(int status)
{
    struct program *p = at_work;
    at_work = NULL;
    end_injection(p);
    if (p != NULL && status == EXIT_ABSENT)
        remove_files(p);
    else if (p != NULL)
        fprintf(stderr, "folio-stress: the files are left in %s\n", p->dir);
    exit(status);
}

static _Noreturn void die(int status, const char *what, const char *why)
{
    fprintf(stderr, "folio-stress: %s: %s\n", what, why);
    leave(status);
}

static void on_end(int signal)
{
    struct program *p = at_work;
    if (p != NULL && p->running > 0) {
        kill(-p->group, SIGKILL);
        while (waitpid(-p->group, NULL, 0) > 0)
            ;
    }
    end_injection(p);
    if (p != NULL)
        remove_files(p);
    raise(signal); /* which is the default's again, as is a second one while this takes long */
}

/* Ctrl-C and its like, unless whoever started us has them ignored. */
static void catch_ends(void)
{
    static const int ends[] = { SIGHUP, SIGINT, SIGTERM };
    struct sigaction action = { .sa_handler = on_end,
                                .sa_flags = (int)(SA_RESETHAND | SA_NODEFER) },
                     was;
    sigemptyset(&action.sa_mask);
    for (size_t i = 0; i < sizeof ends / sizeof ends[0]; i++)
        if (sigaction(ends[i], NULL, &was) == 0 && was.sa_handler != SIG_IGN)
            sigaction(ends[i], &action, NULL);
}

/* ---- one process of workers ------------------------------------------------------------------ */

static void *thread_main(void *arg)
{
    worker_run(arg);
    return NULL;
}

static _Noreturn void process_main(const struct program *p, unsigned number, uint64_t round)
{
    unsigned threads = p->o.threads;
    struct worker *workers = calloc(threads, sizeof *workers);
    pthread_t *ids = calloc(threads, sizeof *ids);
    at_work = NULL; /* that is the business of who started us */
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (workers == NULL || ids == NULL)
        _exit(EXIT_FAILED);
    for (unsigned i = 0; i < threads; i++) {
        int err = worker_init(&workers[i], &p->o, p->sh, &p->doors, number * threads + i, round);
        if (err == 0 && i > 0)
            err = -pthread_create(&ids[i], NULL, thread_main, &workers[i]);
        if (err != 0) {
            fprintf(stderr, "folio-stress: worker: %s\n", strerror(-err));
            _exit(err == -EAGAIN ? EXIT_ABSENT : EXIT_FAILED);
        }
    }
    worker_run(&workers[0]);
    for (unsigned i = 1; i < threads; i++)
        pthread_join(ids[i], NULL);
    for (unsigned i = 0; i < threads; i++)
        worker_free(&workers[i]);
    free(workers);
    free(ids);
    _exit(0);
}

static void kill_processes(struct program *p)
{
    kill(-p->group, SIGKILL);
    while (p->running > 0 && waitpid(-p->group, NULL, 0) > 0)
        p->running--;
    p->running = 0;
}

static void start_processes(struct program *p, uint64_t round)
{
    p->group = 0;
    p->running = 0;
    for (unsigned i = 0; i < p->o.procs; i++) {
        pid_t child = fork();
        if (child == 0) {
            setpgid(0, p->group);
            process_main(p, i, round);
        }
        if (child < 0) {
            int err = errno;
            kill_processes(p);
            die(EXIT_ABSENT, "fork", strerror(err));
        }
        if (p->group == 0)
            p->group = child;
        setpgid(child, p->group);
        p->running++;
    }
}

/* ---- watching -------------------------------------------------------------------------------- */

static uint64_t operations(const struct shared *sh)
{
    uint64_t sum = 0;
    for (uint32_t i = 0; i < sh->nr_workers; i++)
        for (unsigned op = 0; op < NR_OPS; op++)
            sum += atomic_load(&sh->workers[i].done[op]);
    return sum;
}

/* One has ended before its time: it has found something, or it died. */
static _Noreturn void ended_badly(struct program *p, pid_t child, int status)
{
    kill_processes(p);
    if (WIFEXITED(status) && WEXITSTATUS(status) == EXIT_ABSENT)
        leave(EXIT_ABSENT);
    if (!WIFEXITED(status) || WEXITSTATUS(status) != EXIT_FAILED) {
        fprintf(stderr, "folio-stress: process %d %s\n", (int)child, status_text(status));
        timeline_print_now(stderr, p->sh);
    }
    leave(EXIT_FAILED);
}

static void look(struct program *p)
{
    int status;
    pid_t child;
    while (p->running > 0 && (child = waitpid(-p->group, &status, WNOHANG)) > 0) {
        p->running--;
        if (status != 0)
            ended_badly(p, child, status);
    }
}

/* Until then, or until all have ended. */
static void watch(struct program *p, uint64_t until_ns)
{
    uint64_t seen = operations(p->sh), seen_ns = now_ns();
    while (p->running > 0 && now_ns() < until_ns) {
        nanosleep(&(struct timespec){ .tv_nsec = LOOK_NS }, NULL);
        look(p);
        uint64_t now = operations(p->sh);
        if (now != seen) {
            seen = now;
            seen_ns = now_ns();
        } else if (p->running > 0 && now_ns() - seen_ns > (uint64_t)p->o.hang_s * NS_PER_SECOND) {
            fprintf(stderr, "folio-stress: HANG: no operation has ended for %u s (--seed %llu)\n",
                    p->o.hang_s, (unsigned long long)p->o.seed);
            timeline_print_now(stderr, p->sh);
            kill(-p->group, SIGKILL);
            leave(EXIT_FAILED);
        }
    }
}

/* ---- rounds ---------------------------------------------------------------------------------- */

static void renew_self(struct program *p)
{
    worker_free(&p->self);
    int err = worker_init(&p->self, &p->o, p->sh, &p->doors, p->sh->nr_workers, p->crashes);
    if (err == -ENOENT && p->crashes > 0)
        die(EXIT_FAILED, p->dir, "LOST: the directory itself, which was synced before the crash");
    if (err != 0)
        die(EXIT_FAILED, p->dir, strerror(-err));
}

static void command(const struct program *p, const char *command, const char *what)
{
    if (!run_command(&p->o, command, what))
        leave(EXIT_FAILED);
}

static void crash(struct program *p)
{
    view_close_all(&p->self);
    atomic_store(&p->sh->crashing, 1);
    command(p, p->o.crash, "kill");
    kill_processes(p);
    if (!crash_happened(p->dir, p->self.dir))
        die(EXIT_FAILED, p->o.crash, "its \"kill\" has killed nothing: DIR still works");
    close(p->self.dir);
    p->self.dir = -1;
    command(p, p->o.crash, "mount");
    atomic_store(&p->sh->crashing, 0);
    shared_reset_locks(p->sh);
    p->crashes++;
    renew_self(p);
    crash_verify(&p->self);
}

static void watch_spell(struct program *p, uint64_t end_ns)
{
    uint64_t ms = SPELL_LEAST + worker_draw(&p->self) % SPELL_DRAWN,
             until = now_ns() + ms * 1000000u;
    watch(p, until < end_ns ? until : end_ns);
}

/* Errors now and then, until the end or until all have ended. */
static void watch_errors(struct program *p, uint64_t end_ns)
{
    while (p->running > 0 && now_ns() < end_ns) {
        p->injecting = 1;
        command(p, p->o.inject, "on");
        watch_spell(p, end_ns);
        command(p, p->o.inject, "off");
        p->injecting = 0;
        watch_spell(p, end_ns);
    }
}

static void run(struct program *p)
{
    uint64_t end = now_ns() + (uint64_t)p->o.seconds * NS_PER_SECOND;
    for (uint64_t round = 0; round == 0 || (p->o.crash != NULL && now_ns() < end); round++) {
        uint64_t until = end;
        start_processes(p, round);
        if (p->o.crash != NULL) {
            uint64_t ms = ROUND_LEAST + worker_draw(&p->self) % ROUND_DRAWN;
            until = now_ns() + ms * 1000000u;
        }
        if (p->o.inject != NULL)
            watch_errors(p, until);
        else
            watch(p, until);
        if (p->o.crash != NULL)
            crash(p);
    }
    atomic_store(&p->sh->stop, 1);
    watch(p, UINT64_MAX);
    p->o.errors = p->o.errors && p->o.inject == NULL; /* it is off, and stays so */
    verify_all(&p->self);
}

/* ---- the beginning and the end --------------------------------------------------------------- */

static void make_files(struct program *p)
{
    for (uint32_t i = 0; i < p->sh->nr_files; i++) {
        int err = file_create(&p->self, i);
        if (err != 0)
            die(EXIT_FAILED, "making the files", strerror(-err));
    }
    if (p->o.crash == NULL)
        return;
    int above = openat(p->self.dir, "..", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (above < 0 || fsync(above) != 0 || fsync(p->self.dir) != 0)
        die(EXIT_FAILED, "fsync of the directories", strerror(errno));
    close(above);
}

/* Who does not keep bytes that were stored beyond the end of file out of it (Linux 6.18): tmpfs never
 * does. ext4 with blocks smaller than a page zeroes the rest of the block at once, but what follows in
 * the page only if the page is still dirty when the size has changed: writeback that came in between
 * took the page for one without an end, and nobody zeroes it. (xfs zeroes before it changes the size.) Of FUSE's
 * mappings the kernel zeroes nothing, whatever the server does; those of libfolio are the server's own. */
static bool shows_tails(const struct program *p, const struct statfs *st)
{
    return (st->f_type == FUSE_SUPER_MAGIC && p->o.attach != ATTACH_ALL) ||
           st->f_type == TMPFS_MAGIC ||
           (st->f_type == EXT4_SUPER_MAGIC && st->f_bsize < PAGE_BYTES);
}

/* Might this be ext4 with large folios (Linux 6.16 and later; a journal for data keeps them out)? Truncation splits
 * a folio that the new end cuts. If somebody's fault holds the folio just then, it is not split: what is behind
 * the end is zeroed once and stays, and is unmapped only at last, so a store in between is in the file when
 * that grows again. (Two storing threads beside one that cuts and grows: 1,648 of 7,165 times on Linux 6.18;
 * never with data=journal, on xfs or on tmpfs.) */
static bool keeps_raced_stores(int dir)
{
    struct statfs fs;
    struct stat st, at;
    bool journal = false;
    if (fstatfs(dir, &fs) != 0 || fs.f_type != EXT4_SUPER_MAGIC || fstat(dir, &st) != 0)
        return false;
    FILE *mounts = setmntent("/proc/self/mounts", "r");
    for (struct mntent *m; mounts != NULL && (m = getmntent(mounts)) != NULL;)
        if (strcmp(m->mnt_type, "ext4") == 0 && stat(m->mnt_dir, &at) == 0 &&
            at.st_dev == st.st_dev)
            journal = strstr(m->mnt_opts, "data=journal") != NULL;
    if (mounts != NULL)
        endmntent(mounts);
    return !journal;
}

/* Before anybody stores beside them: of a hole that is not made the stores that raced with it stay. */
static void try_holes(struct program *p)
{
    static const struct {
        enum op op;
        int mode;
    } tries[] = { { OP_PUNCH, FALLOC_FL_PUNCH_HOLE }, { OP_ZERO, FALLOC_FL_ZERO_RANGE } };
    int fd = openat(p->self.dir, "hole", O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    if (fd < 0) /* then they are found out later */
        return;
    for (size_t i = 0; i < sizeof tries / sizeof tries[0]; i++)
        if (fallocate(fd, tries[i].mode | FALLOC_FL_KEEP_SIZE, 0, PAGE_BYTES) != 0 &&
            (errno == EOPNOTSUPP || errno == ENOSYS))
            atomic_fetch_or(&p->sh->unsupported, 1u << tries[i].op);
    close(fd);
    unlinkat(p->self.dir, "hole", 0);
}

static void learn_filesystem(struct program *p)
{
    struct statfs st;
    try_holes(p);
    if (fstatfs(p->self.dir, &st) != 0)
        return;
    p->o.beyond = st.f_type == FUSE_SUPER_MAGIC && p->o.coherence == COHERENCE_FULL &&
                  p->o.attach != ATTACH_ALL;
    if (keeps_raced_stores(p->self.dir))
        atomic_fetch_or(&p->sh->unsupported, 1u << OP_RACE);
    if (!shows_tails(p, &st))
        return;
    atomic_fetch_or(&p->sh->unsupported, 1u << OP_TAIL);
    if ((~p->o.disabled & ((1u << OP_TAIL) - 1)) == 0)
        die(EXIT_ABSENT, "tail", "this filesystem does not keep such bytes out of the file");
}

/* Is what --attach needs there? In a process of its own, as libfolio in ours would be forked. */
static void try_doors(struct program *p)
{
    int status = 0;
    if (p->o.attach == ATTACH_NONE)
        return;
    pid_t child = fork();
    if (child == 0) {
        char *at = view_cell(&p->self, 0, 0, p->doors.nr - 1, true);
        if (at == NULL)
            fprintf(stderr, "folio-stress: cannot map a file of %s through libfolio: %s\n",
                    p->o.dir, strerror(errno));
        _exit(at != NULL ? 0 : EXIT_ABSENT);
    }
    if (child < 0 || waitpid(child, &status, 0) < 0)
        die(EXIT_FAILED, "fork", strerror(errno));
    if (status != 0)
        leave(WIFEXITED(status) ? WEXITSTATUS(status) : EXIT_FAILED);
}

static uint64_t sum_of(const struct shared *sh, size_t member)
{
    uint64_t sum = 0;
    for (uint32_t i = 0; i <= sh->nr_workers; i++) {
        const char *at = (const char *)&sh->workers[i] + member;
        sum += atomic_load((const _Atomic uint64_t *)(const void *)at);
    }
    return sum;
}
#define SUM(sh, member) ((unsigned long long)sum_of(sh, offsetof(struct worker_state, member)))

static void summary(const struct program *p)
{
    const struct shared *sh = p->sh;
    printf("folio-stress: passed: seed %llu:", (unsigned long long)p->o.seed);
    for (unsigned i = 0; i < NR_OPS; i++)
        if (SUM(sh, done[i]) > 0)
            printf(" %llu %s", SUM(sh, done[i]), op_names[i]);
    uint64_t failed = 0;
    for (unsigned i = 0; i < NR_OPS; i++)
        failed += SUM(sh, failed[i]);
    printf("; %llu failed, %llu sigbus, %llu syncs, %llu races; %llu checks, %llu peeks (%llu "
           "overtaken)",
           (unsigned long long)failed, SUM(sh, sigbus), SUM(sh, syncs), SUM(sh, races),
           SUM(sh, checks), SUM(sh, peeks), SUM(sh, overtaken));
    if (p->o.crash != NULL)
        printf(", %u crashes", p->crashes);
    if (SUM(sh, not_inherited) > 0)
        printf(", %llu forks without the mapping", SUM(sh, not_inherited));
    for (unsigned i = 0; i < NR_OPS; i++)
        if (atomic_load(&sh->unsupported) >> i & 1)
            printf("; not supported here: %s", op_names[i]);
    putchar('\n');
}

/* As much as we may have, and what we need: a limit of ours must not look like an error of the filesystem. */
static void raise_limit(unsigned which, uint64_t need, const char *what, const char *ulimit)
{
    struct rlimit limit;
    if (getrlimit(which, &limit) != 0)
        return;
    limit.rlim_cur = limit.rlim_max;
    (void)setrlimit(which, &limit);
    if (limit.rlim_max >= need)
        return;
    fprintf(stderr, "folio-stress: %s: %llu are needed, and the limit is %llu (ulimit %s)\n", what,
            (unsigned long long)need, (unsigned long long)limit.rlim_max, ulimit);
    exit(EXIT_ABSENT);
}

static void raise_limits(const struct options *o)
{
    uint64_t others = o->attach == ATTACH_NONE ? DESCRIPTORS : DESCRIPTORS + DESCRIPTORS_ATTACHED;
    signal(SIGXFSZ, SIG_IGN);
    raise_limit(RLIMIT_FSIZE, (uint64_t)o->pages * PAGE_BYTES, "bytes of a file", "-f");
    raise_limit(RLIMIT_NOFILE, (uint64_t)o->threads * (o->files + 1) + others,
                "descriptors of a process", "-n");
}

int main(int argc, char **argv)
{
    static struct program p;
    options_parse(&p.o, argc, argv);
    raise_limits(&p.o);
    doors_open(&p.doors, &p.o);
    view_catch_signals();
    p.sh = shared_create(&p.o);
    if (p.sh == NULL)
        die(EXIT_ABSENT, "memory for the oracle", strerror(errno));
    char *dir = realpath(p.o.dir, NULL);
    if (dir == NULL)
        die(EXIT_ABSENT, p.o.dir, strerror(errno));
    snprintf(p.dir, sizeof p.dir, "%s/folio-stress.%d", dir, (int)getpid());
    free(dir);
    p.self.dir = -1;
    printf(
        "folio-stress: seed %llu, %u s, %u processes of %u threads, %u files of up to %u pages\n",
        (unsigned long long)p.o.seed, p.o.seconds, p.o.procs, p.o.threads, p.o.files, p.o.pages);
    if (fflush(stdout) != 0)
        die(EXIT_FAILED, "standard output", strerror(errno));
    if (mkdir(p.dir, 0777) != 0)
        die(EXIT_ABSENT, p.dir, strerror(errno));
    p.o.dir = p.dir;
    at_work = &p;
    catch_ends();
    renew_self(&p);
    learn_filesystem(&p);
    make_files(&p);
    try_doors(&p);
    run(&p);
    view_close_all(&p.self);
    remove_files(&p);
    at_work = NULL;
    summary(&p);
    return close_output() ? 0 : EXIT_FAILED;
}
