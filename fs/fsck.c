/* fsck.c: fsck.foliofs, the check of a volume and its repair.
 *
 *     parent                                   child, anew for every round
 *     locks the volume
 *     prints lines  <------ pipe -----------   walks the pages, then the records
 *     reads the result <--- shared memory --   repairs what is safe, when it may
 *     again, until a round repairs nothing
 *
 * Whatever the volume's bytes do to the child, the parent lives to say so. A round repairs a bounded
 * number of things, and a repair may reveal the next: hence the rounds.
 */
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include "fs/busy.h"
#include "fs/process.h"
#include "store/check.h"
#include "store/volume_lock.h"

#define ROUNDS_MAX 64u
#define LINES_MAX  1000u /* printed of one kind; the rest is counted */

/* As in fsck(8). */
enum exit_code {
    EXIT_CLEAN = 0,
    EXIT_CORRECTED = 1,
    EXIT_LEFT = 4,
    EXIT_OPERATION = 8,
    EXIT_USAGE = 16,
};

enum option_letter { OPTION_HELP = 256 };

struct options {
    const char *volume;
    bool check_only, verbose;
    unsigned nr_modes; /* -n, -y, -p and -a exclude each other */
};

/* What a round leaves behind, in memory shared with the child. */
struct result {
    struct check_summary summary;
    bool checked, repaired;
    bool opens;         /* the damaged volume, read-only */
    uint64_t corrected; /* findings that were seen to */
    int error;          /* -errno */
    struct store_error why;
};

struct fsck {
    struct options options;
    int fd; /* of the volume, for reading */
    struct result *result;
    unsigned round;
    uint64_t corrected;
    int signal; /* that ended the child; 0: none */
    uint64_t lines[CHECK_NR_KINDS], unprinted[CHECK_NR_KINDS];
    uint64_t *seen; /* hashes of printed lines: a later round repeats what stays */
    size_t nr_seen, max_seen;
};

static const char *const kind_names[CHECK_NR_KINDS] = {
    [CHECK_NOTE] = "notes",
    [CHECK_PAGES] = "LMDB's pages",
    [CHECK_SUPER] = "the superblock",
    [CHECK_RECORD] = "damaged records",
    [CHECK_BLOCK] = "damaged blocks",
    [CHECK_BLOCK_COUNT] = "block counts",
    [CHECK_LOST_BLOCKS] = "blocks of no inode",
    [CHECK_INODE] = "inodes",
    [CHECK_OWNER] = "data with two owners",
    [CHECK_NLINK] = "link counts",
    [CHECK_DIRENT] = "directory entries",
    [CHECK_COOKIE] = "cookies",
    [CHECK_PARENT] = "parent directories",
    [CHECK_UNREACHABLE] = "unreachable inodes",
    [CHECK_ORPHAN] = "orphans",
    [CHECK_SYMLINK] = "symbolic links",
    [CHECK_XATTR] = "extended attributes",
    [CHECK_COUNTER] = "the counter",
    [CHECK_TRIM] = "trims",
    [CHECK_LOG] = "the log",
};

/* ---- options --------------------------------------------------------------------------------- */

static void print_usage(FILE *out)
{
    fputs("Usage: fsck.foliofs [OPTION]... VOLUME\n"
          "Check a FolioFS volume that is not mounted, and repair what can be repaired safely.\n"
          "\n"
          "  -n             check only, change nothing\n"
          "  -y, -p, -a     repair without asking (also without these: it never asks)\n"
          "  -f             check even if clean (it always does)\n"
          "  -v, --verbose  also say how the volume's pages are used\n"
          "      --help     show this\n"
          "  -V, --version  show the version\n"
          "\n"
          "Exit status: 0 clean, 1 repaired, 4 errors left, 8 could not check, 16 wrong usage.\n",
          out);
}

#define LETTERS "nypafvV" /* options */

/* Returns false: exit with *code. */
static bool parse_options(int argc, char **argv, struct options *o, int *code)
{
    static const struct option long_options[] = {
        { "help", no_argument, NULL, OPTION_HELP },
        { "verbose", no_argument, NULL, 'v' },
        { "version", no_argument, NULL, 'V' },
        { NULL, 0, NULL, 0 },
    };
    int letter;

    *code = EXIT_USAGE;
    opterr = 0;
    while ((letter = getopt_long(argc, argv, LETTERS, long_options, NULL)) != -1) {
        if (letter == 'n' || letter == 'y' || letter == 'p' || letter == 'a') {
            o->nr_modes++;
            o->check_only = letter == 'n';
        } else if (letter == 'v') {
            o->verbose = true;
        } else if (letter == 'V') {
            puts("fsck.foliofs " FOLIO_VERSION);
            *code = EXIT_CLEAN;
            return false;
        } else if (letter != 'f') {
            if (letter == OPTION_HELP) {
                print_usage(stdout);
                *code = EXIT_CLEAN;
            } else {
                fprintf(stderr, "fsck.foliofs: %s: no such option; try --help\n",
                        process_bad_option(argv, LETTERS));
            }
            return false;
        }
    }
    if (optind + 1 == argc && o->nr_modes <= 1) {
        o->volume = argv[optind];
        return true;
    }
    fprintf(stderr, "fsck.foliofs: %s; try --help\n",
            o->nr_modes > 1 ? "only one of -n, -y, -p, -a" : "exactly one volume is expected");
    return false;
}

/* ---- the child ------------------------------------------------------------------------------- */

/* On the pipe, a line is kind, 0 or 1 for fixable, and the text. */
static void send_line(void *ctx, enum check_kind kind, bool fixable, const char *line)
{
    fprintf(ctx, "%c%c%s\n", 'A' + (int)kind, fixable ? '1' : '0', line);
}

/* What waits in the log comes first: a round without it sees to the rest. */
static void repair_log(const struct fsck *f)
{
    struct result *r = f->result;
    struct store_options o = { .locked = true, .cut_log = true };
    struct store *s;

    r->error = store_open(f->options.volume, &o, &s, &r->why);
    if (r->error == 0 && (r->error = store_close(s)) != 0)
        snprintf(r->why.text, sizeof r->why.text, "the log: %s", strerror(-r->error));
    r->repaired = r->error == 0;
    r->corrected = r->summary.log_damaged;
}

static void repair(const struct fsck *f, struct check *c)
{
    struct result *r = f->result;
    struct lmdb *l;

    r->error = lmdb_open(f->options.volume, false, &l, &r->why);
    if (r->error != 0)
        return;
    r->error = check_repair(c, l);
    if (r->error != 0)
        snprintf(r->why.text, sizeof r->why.text, "repairing stopped: %s", strerror(-r->error));
    else
        r->repaired = true;
    r->corrected = r->summary.fixable;
    lmdb_close(l);
}

/* Would foliofs -o ro take it? A file that is cut off it does not, for one. */
static bool opens_read_only(const struct fsck *f)
{
    struct store_options o = { .locked = true, .read_only = true };
    struct store_error error;
    struct store *s;

    if (store_open(f->options.volume, &o, &s, &error) != 0)
        return false;
    (void)store_close(s);
    return true;
}

_Noreturn static void child(const struct fsck *f, int pipe_fd, bool may_repair)
{
    struct rlimit no_core = { 0, 0 };
    struct result *r = f->result;
    FILE *out = fdopen(pipe_fd, "w");
    struct check *c;

    setrlimit(RLIMIT_CORE, &no_core);
    if (out == NULL)
        _exit(EXIT_OPERATION);
    r->error = check_volume(f->fd, send_line, out, &c);
    if (r->error != 0) {
        snprintf(r->why.text, sizeof r->why.text, "checking stopped: %s", strerror(-r->error));
        _exit(EXIT_OPERATION);
    }
    fflush(out);
    r->summary = *check_summary(c);
    r->checked = true;
    bool sound = r->summary.pages.damage == 0;
    r->opens = !sound && opens_read_only(f);
    if (may_repair && sound && (r->summary.log_changes > 0 || r->summary.log_damaged))
        repair_log(f);
    else if (may_repair && sound && r->summary.fixable > 0)
        repair(f, c);
    check_free(c);
    fclose(out);
    _exit(0);
}

/* ---- the parent ------------------------------------------------------------------------------ */

static uint64_t line_hash(const char *line)
{
    uint64_t h = UINT64_C(0xCBF29CE484222325); /* FNV-1a */

    for (; *line != '\0'; line++)
        h = (h ^ (uint8_t)*line) * UINT64_C(0x100000001B3);
    return h;
}

/* Has a line been printed?   If not, it counts as printed from now on. */
static bool seen_before(struct fsck *f, const char *line)
{
    uint64_t hash = line_hash(line);

    for (size_t i = 0; i < f->nr_seen; i++)
        if (f->seen[i] == hash)
            return true;
    if (f->nr_seen < f->max_seen)
        f->seen[f->nr_seen++] = hash;
    return false;
}

static void print_line(struct fsck *f, char *line)
{
    unsigned kind = (unsigned char)line[0] - 'A';
    bool fixable = line[1] == '1';
    const char *what = !fixable ? "" : f->options.check_only ? " (repairable)" : " (repairing)";

    if (kind >= CHECK_NR_KINDS)
        return;
    if (f->lines[kind] >= LINES_MAX) {
        f->unprinted[kind] += f->round == 0;
        return;
    }
    if (seen_before(f, line))
        return;
    f->lines[kind]++;
    printf("%s%s%s\n", kind == CHECK_NOTE ? "note: " : "", line + 2, what);
}

static void print_lines(struct fsck *f, int pipe_fd)
{
    FILE *in = fdopen(pipe_fd, "r");
    char *line = NULL;
    size_t size = 0;

    if (in == NULL) {
        close(pipe_fd);
        return;
    }
    while (getline(&line, &size, in) > 2) {
        line[strcspn(line, "\n")] = '\0';
        print_line(f, line);
    }
    free(line);
    fclose(in);
}

/* Run one round.   Returns 0 when there is a result, or the exit code. */
static int run_round(struct fsck *f, bool may_repair)
{
    int ends[2], status;
    pid_t pid;

    *f->result = (struct result){ 0 };
    fflush(stdout);
    if (pipe2(ends, O_CLOEXEC) != 0 || (pid = fork()) < 0) {
        fprintf(stderr, "fsck.foliofs: cannot start: %s\n", strerror(errno));
        return EXIT_OPERATION;
    }
    if (pid == 0)
        child(f, ends[1], may_repair);
    close(ends[1]);
    print_lines(f, ends[0]);
    while (waitpid(pid, &status, 0) < 0 && errno == EINTR)
        continue;
    f->signal = WIFSIGNALED(status) ? WTERMSIG(status) : 0;
    if (f->signal != 0)
        printf(
            "the volume made the check die (%s): it is damaged in a way that is not understood\n",
            strsignal(f->signal));
    else if (f->result->error != 0)
        fprintf(stderr, "fsck.foliofs: %s: %s\n", f->options.volume, f->result->why.text);
    if (f->signal != 0)
        return EXIT_LEFT;
    return f->result->error != 0 ? EXIT_OPERATION : 0;
}

/* Neither meta page could be used, so nothing was looked at. */
static bool no_volume(const struct fsck *f)
{
    return f->result->checked && f->result->summary.pages.last_page == 0;
}

static int run_rounds(struct fsck *f)
{
    for (f->round = 0;; f->round++) {
        bool may_repair = !f->options.check_only && f->round < ROUNDS_MAX;
        int code = run_round(f, may_repair);
        if (code != 0)
            return code | (f->corrected > 0 ? EXIT_CORRECTED : 0);
        if (!f->result->repaired)
            break;
        f->corrected += f->result->corrected;
    }
    return (f->corrected > 0 ? EXIT_CORRECTED : 0) | (no_volume(f) ? EXIT_OPERATION
                                                      : f->result->summary.found > 0 ? EXIT_LEFT
                                                                                     : 0);
}

/* ---- the end --------------------------------------------------------------------------------- */

static void print_unprinted(const struct fsck *f)
{
    for (unsigned kind = 0; kind < CHECK_NR_KINDS; kind++)
        if (f->unprinted[kind] > 0)
            printf("... and %" PRIu64 " more lines about %s\n", f->unprinted[kind],
                   kind_names[kind]);
}

static void print_way_out(const struct fsck *f)
{
    if (f->signal == 0 && f->result->summary.pages.damage == 0)
        return;
    if (f->signal == 0 && no_volume(f)) {
        fprintf(stderr,
                "fsck.foliofs: %s: is not a FolioFS volume, or both of its first pages are "
                "destroyed; check the name, or restore a backup\n",
                f->options.volume);
        return;
    }
    puts("The pages of the database itself are damaged; repairing them would be guessing.");
    if (f->signal == 0 && !f->result->opens)
        puts("Way out: restore a backup. So damaged, it cannot be mounted, not even read-only.");
    else
        printf("Way out: restore a backup; or mount it read-only (foliofs -o ro %s DIR), copy off\n"
               "what reads, and make a new volume with mkfs.foliofs.\n",
               f->options.volume);
}

static void print_pages(const struct fsck *f)
{
    const struct pages_info *p = &f->result->summary.pages;

    printf("%s: %" PRIu64 " bytes, last page %" PRIu64 ", %" PRIu64 " pages free, %" PRIu64
           " leaked, %" PRIu64 " records, transaction %" PRIu64 "\n",
           f->options.volume, p->file_bytes, p->last_page, p->free_pages, p->leaked_pages,
           p->entries, p->txnid);
}

static void print_count(const char *before, uint64_t n, const char *one, const char *many)
{
    printf("%s%" PRIu64 " %s", before, n, n == 1 ? one : many);
}

static void print_summary(const struct fsck *f)
{
    const struct check_summary *s = &f->result->summary;

    if (!f->result->checked || no_volume(f))
        return;
    printf("%s: ", f->options.volume);
    if (f->corrected > 0)
        printf("%" PRIu64 " repaired, ", f->corrected);
    if (s->found > 0)
        print_count("", s->found, "error left", "errors left");
    else
        printf("clean");
    print_count(": ", s->files, "file", "files");
    print_count(", ", s->directories, "directory", "directories");
    print_count(", ", s->symlinks, "symbolic link", "symbolic links");
    print_count(", ", s->others, "other", "others");
    print_count(", ", s->blocks, "block", "blocks");
    print_count(", ", s->orphans, "orphan", "orphans");
    if (s->trims > 0)
        print_count(", ", s->trims, "trim pending", "trims pending");
    if (s->extending > 0)
        print_count(", ", s->extending, "file being extended", "files being extended");
    putchar('\n');
}

static bool fsck_init(struct fsck *f)
{
    f->max_seen = (size_t)CHECK_NR_KINDS * LINES_MAX;
    f->seen = calloc(f->max_seen, sizeof f->seen[0]);
    f->result =
        mmap(NULL, sizeof *f->result, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    f->fd = open(f->options.volume, O_RDONLY | O_CLOEXEC);
    if (f->seen != NULL && f->result != MAP_FAILED && f->fd >= 0)
        return true;
    fprintf(stderr, "fsck.foliofs: %s: %s\n", f->options.volume, strerror(errno));
    return false;
}

int main(int argc, char **argv)
{
    struct fsck f = { 0 };
    struct store_error error;
    int code, lock;

    if (!process_start())
        return EXIT_OPERATION;
    if (!parse_options(argc, argv, &f.options, &code))
        return process_close_output("fsck.foliofs") ? code : EXIT_OPERATION;
    unsigned tries = 0;
    do
        lock = volume_lock(f.options.volume, false, &error);
    while (lock == -EBUSY && busy_wait(f.options.volume, &tries));
    if (lock < 0) {
        fprintf(stderr, "fsck.foliofs: %s\n", error.text);
        return EXIT_OPERATION;
    }
    if (!fsck_init(&f)) {
        free(f.seen);
        return EXIT_OPERATION;
    }
    code = run_rounds(&f);
    print_unprinted(&f);
    print_way_out(&f);
    if (f.options.verbose && f.result->checked)
        print_pages(&f);
    print_summary(&f);
    free(f.seen);
    if (!process_close_output("fsck.foliofs"))
        code |= EXIT_OPERATION;
    return code; /* the lock goes with the process */
}
