/* Threads that sync their own changes, beside one that commits in the background, in a process that is killed again and
 * again: what was acknowledged is there, in step with what else its thread had done; and nothing that was deleted.
 *
 *     FOLIO_ROUNDS   how many kills (40)
 */
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "store/store.h"

#define THREADS 4u
#define BLOCKS  8u /* of each thread's object, in turn */

/* What the process that is killed has seen. */
struct seen {
    _Atomic int acknowledged[THREADS];
    _Atomic uint64_t records, commits;
};

static struct seen *seen;
static struct store *s;
static char path[64];

static void die(const char *what)
{
    fprintf(stderr, "race_store: %s\n", what);
    _exit(1);
}

static void name_of(struct key *k, unsigned who)
{
    char name[16];
    key_dirent(k, 77, name, (size_t)snprintf(name, sizeof name, "thread%u", who));
}

static void end(struct bio *bio)
{
    *(int *)bio->private = bio->error;
}

static uint32_t transfer(enum bio_op op, unsigned who, uint32_t index, void *data, uint16_t flags)
{
    int error = 1;
    struct bio *bio = bio_alloc(op, who + 1, 1);
    bio_add(bio, index, data, NULL)->flags = flags;
    bio->end_io = end;
    bio->private = &error;
    submit_bio(store_device(s), bio);
    if (error != 0)
        die("a block");
    uint32_t after = bio->vecs[0].flags;
    bio_free(bio);
    return after;
}

static void write_block(unsigned who, uint32_t index, int value)
{
    int buf[BLOCK_SIZE / sizeof(int)];
    for (size_t i = 0; i < BLOCK_SIZE / sizeof(int); i++)
        buf[i] = value;
    bool new = store_block_exists(s, who + 1, index) == 0;
    if (store_reserve(s, 1, new) != 0)
        die("store_reserve");
    transfer(BIO_WRITE, who, index, buf, new ? BV_NEW : 0);
}

/* Step n: the name says n, block n % BLOCKS holds n, and the one before it is deleted, now and then. One update makes
 * the name and the deletion; the block comes before. */
static void step(unsigned who, int n)
{
    struct update u;
    struct key k;
    uint32_t index = (uint32_t)n % BLOCKS, before = (index + BLOCKS - 1) % BLOCKS;
    write_block(who, index, n);
    name_of(&k, who);
    update_init(&u, s);
    update_put(&u, &k, &n, sizeof n);
    if (n % 3 == 0)
        update_trim(&u, who + 1, before, before + 1);
    if (update_apply(&u, 0, NULL) != 0)
        die("update_apply");
    uint64_t tid = store_tid(s);
    if ((n % 17 == 0 ? store_commit(s, tid) : store_sync(s, tid)) != 0)
        die("a sync");
    atomic_store(&seen->acknowledged[who], n);
}

static void *worker(void *arg)
{
    unsigned who = (unsigned)(uintptr_t)arg;
    for (int n = atomic_load(&seen->acknowledged[who]) + 1;; n++)
        step(who, n);
    return NULL;
}

static void *committer(void *arg)
{
    (void)arg;
    for (;;) {
        struct store_stats st;
        store_wait(s, store_step(s, 20));
        store_stats(s, &st);
        atomic_store(&seen->records, st.log_records);
        atomic_store(&seen->commits, st.commits);
    }
    return NULL;
}

static void open_store(void)
{
    struct store_error error = { "" };
    struct store_options o = { .read_only = false };
    if (store_open(path, &o, &s, &error) != 0)
        die(error.text);
}

_Noreturn static void child(void)
{
    pthread_t thread;
    open_store();
    for (uintptr_t i = 0; i < THREADS; i++)
        if (pthread_create(&thread, NULL, worker, (void *)i) !=
            0) // NOLINT(performance-no-int-to-ptr)
            die("pthread_create");
    committer(NULL);
    _exit(1);
}

/* A deletion is under way, or done; or the block is that of step n. */
static void check_block(unsigned who, int n, uint32_t index, bool gone)
{
    int buf[BLOCK_SIZE / sizeof(int)];
    bool hole = transfer(BIO_READ, who, index, buf, 0) & BV_HOLE;
    if (hole && (gone || n <= 0))
        return;
    if (hole || gone || buf[0] != n || buf[BLOCK_SIZE / sizeof(int) - 1] != n) {
        fprintf(stderr, "thread %u: block %u: %d, not %d%s\n", who, index, hole ? -1 : buf[0], n,
                gone ? ", which was deleted" : "");
        exit(1);
    }
}

static void check(void)
{
    for (unsigned who = 0; who < THREADS; who++) {
        struct key k;
        int n, acknowledged = atomic_load(&seen->acknowledged[who]);
        name_of(&k, who);
        if (store_get(s, &k, &n, sizeof n) != sizeof n)
            n = 0;
        if (n < acknowledged || n > acknowledged + 1) {
            fprintf(stderr, "thread %u: %d is there, %d was acknowledged\n", who, n, acknowledged);
            exit(1);
        }
        /* Step n + 1 may have written its block. */
        for (int at = n; at > n - (int)BLOCKS + 1 && at > 0; at--)
            check_block(who, at, (uint32_t)at % BLOCKS, at < n && (at + 1) % 3 == 0);
        atomic_store(&seen->acknowledged[who], n);
    }
}

static void pause_ms(long ms)
{
    struct timespec t = { .tv_nsec = ms * 1000000 };
    nanosleep(&t, NULL);
}

/* Where all is slow none may have come to both in its time: the last is left until it has. */
static void await_both(void)
{
    for (unsigned ms = 0; ms < 60000; ms++) {
        if (atomic_load(&seen->records) > 0 && atomic_load(&seen->commits) > 0)
            return;
        pause_ms(1);
    }
}

int main(void)
{
    const char *text = getenv("FOLIO_ROUNDS");
    int rounds = text != NULL ? atoi(text) : 40, status;
    uint64_t records = 0, commits = 0;
    struct store_error error = { "" };
    struct store_format f = { .capacity = 32 << 20 }; /* a small log */
    char dir[] = "/tmp/folio-race.XXXXXX";
    seen = mmap(NULL, sizeof *seen, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (seen == MAP_FAILED || mkdtemp(dir) == NULL)
        die("set up");
    snprintf(path, sizeof path, "%s/v", dir);
    if (store_format(path, &f, &error) != 0)
        die(error.text);
    for (int i = 0; i < rounds; i++) {
        atomic_store(&seen->records, 0);
        atomic_store(&seen->commits, 0);
        pid_t pid = fork();
        if (pid == 0)
            child();
        pause_ms(20 + i * 37 % 200);
        if (i == rounds - 1)
            await_both();
        kill(pid, SIGKILL);
        if (waitpid(pid, &status, 0) != pid || !WIFSIGNALED(status))
            die("the process ended by itself");
        records += atomic_load(&seen->records);
        commits += atomic_load(&seen->commits);
        open_store();
        check();
        if (i % 4 == 3 && store_commit(s, store_tid(s)) != 0)
            die("a commit");
        if (store_close(s) != 0)
            die("store_close");
    }
    printf("race_store: %d kills, %llu records of the log, %llu commits\n", rounds,
           (unsigned long long)records, (unsigned long long)commits);
    unlink(path);
    rmdir(dir);
    return records > 0 && commits > 0 ? 0 : 1;
}
