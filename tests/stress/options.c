#include <errno.h>
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "tests/stress/stress.h"

#define EXIT_FAILED 1
#define EXIT_USAGE  2

const char *const op_names[NR_OPS] = {
    [OP_STORE] = "store",   [OP_LOAD] = "load",     [OP_WRITE] = "write",
    [OP_READ] = "read",     [OP_EXTEND] = "extend", [OP_TRUNCATE] = "truncate",
    [OP_PUNCH] = "punch",   [OP_ZERO] = "zero",     [OP_COPY] = "copy",
    [OP_FSYNC] = "fsync",   [OP_MSYNC] = "msync",   [OP_MADVISE] = "madvise",
    [OP_REMAP] = "remap",   [OP_FORK] = "fork",     [OP_RENAME] = "rename",
    [OP_UNLINK] = "unlink", [OP_TAIL] = "tail",     [OP_RACE] = "race",
};

static const char help[] =
    "usage: folio-stress [OPTION]... DIR\n"
    "\n"
    "Stress the filesystem that DIR is on: processes and threads store, load, read, write, "
    "truncate,\n"
    "extend, punch, zero, msync, fsync, madvise, remap, fork, rename over, unlink and "
    "copy_file_range\n"
    "on shared files. Every store carries who, when and where; one that is lost, torn, stale,\n"
    "misplaced or resurrected is named, with a timeline of its page and a seed. All work is done "
    "in a\n"
    "new directory below DIR, which is removed at the end, and kept after a failure.\n"
    "\n"
    "  -s, --seed N          what to draw (default: from the clock). It repeats what each worker "
    "does,\n"
    "                        not how they interleave: only --procs 1 --threads 1 replays exactly\n"
    "  -t, --seconds N       how long (30)\n"
    "  -n, --ops N           stop each worker after N operations, too\n"
    "  -p, --procs N         processes (3)\n"
    "  -j, --threads N       threads of each (2)\n"
    "  -f, --files N         files (8)\n"
    "  -g, --pages N         4 KiB pages of the longest file (256). Files times pages above the "
    "size\n"
    "                        of the cache keeps it under pressure\n"
    "      --only OP,...     do these operations alone (store, load, write, read, extend, "
    "truncate,\n"
    "                        punch, zero, copy, fsync, msync, madvise, remap, fork, rename, "
    "unlink,\n"
    "                        tail: store beyond the end of file, race: stores that race with the\n"
    "                        truncation or hole that removes them).\n"
    "                        On tmpfs and FUSE, which do not do what tail checks (but FUSE with "
    "--attach),\n"
    "                        and on ext4 with blocks smaller than a page, which does not while the "
    "page\n"
    "                        is being written back, it is left out; so is race on ext4 without "
    "data=journal, which keeps "
    "stores\n"
    "                        that race with truncation when it cannot split their large folio\n"
    "      --without OP,...  all but these\n"
    "  -a, --attach[=mixed]  map through libfolio, which must be installed, or beside this program "
    "in\n"
    "                        ../lib, or named by FOLIO_LIB. mixed: each mapping draws whether it\n"
    "                        is libfolio's or the kernel's. With --coherence=fuse the kernel's "
    "are\n"
    "                        for loads alone: what it writes back are whole pages, over what was "
    "stored\n"
    "                        through libfolio's meanwhile\n"
    "      --both            the same as --attach=mixed\n"
    "      --coherence=full  write(2) and mappings of a page agree at all times (default)\n"
    "                 =fuse  what the kernel holds for any FUSE server through its own mappings:\n"
    "                        copy_file_range, if the server has one, drops stores to the same "
    "pages,\n"
    "                        so nobody else uses the target meanwhile; tail is left out. (Where it "
    "lets\n"
    "                        files of direct I/O be mapped, a server must do more that write(2) "
    "is\n"
    "                        not lost beside stores to the same page; FolioFS does)\n";

static const char help_errors[] = /* a string of its own: C promises 4,095 bytes */
    "      --errors          EIO, ENOSPC, ENOMEM (memory that cannot be written back is not free) "
    "and\n"
    "                        SIGBUS may come from the filesystem (faults are being injected): "
    "what\n"
    "                        failed may have happened or not, all else must hold.\n"
    "                        unlink, which could not be followed by a new file, and race, whose\n"
    "                        stores a failed truncation leaves behind, are left out\n"
    "      --inject CMD      now and then, run \"CMD on\" and, a moment later, \"CMD off\" by sh: "
    "errors\n"
    "                        may come in between (it implies --errors) and not after the last "
    "\"off\",\n"
    "                        which comes before everything is verified in the end\n"
    "      --crash CMD       now and then, run \"CMD kill\" by sh while the load runs: it must end "
    "the\n"
    "                        daemon (or the machine's power) at once. Then the workers are killed, "
    "and\n"
    "                        \"CMD mount\" must bring DIR back. What fsync or msync made sure of "
    "must\n"
    "                        be there, and nothing that never was. Races are left out\n"
    "      --stable          with --crash: what one write(2) stored in one page is never half "
    "there\n"
    "      --hang N          seconds without any operation ending, or that CMD takes, which count "
    "as "
    "a\n"
    "                        hang (120)\n"
    "      --keep            leave the directory\n"
    "  -h, --help            this\n"
    "  -V, --version         the version\n"
    "\n"
    "exit status: 0 passed, 1 something was lost or failed, 2 usage, 77 something needed is "
    "absent\n";

bool close_output(void)
{
    bool failed = ferror(stdout) != 0;
    errno = 0;
    if (fclose(stdout) == 0 && !failed)
        return true;
    fprintf(stderr, "folio-stress: standard output: %s\n",
            errno != 0 ? strerror(errno) : "not all of it could be written");
    return false;
}

static void usage(const char *why, const char *what)
{
    fprintf(stderr, "folio-stress: %s%s%s; --help says what there is\n", why, what ? ": " : "",
            what ? what : "");
    exit(EXIT_USAGE);
}

static uint64_t number(const char *option, const char *text, uint64_t least, uint64_t most)
{
    char *end;
    errno = 0;
    unsigned long long n = strtoull(text, &end, 0);
    if (errno == 0 && *end == '\0' && *text >= '0' && *text <= '9' && n >= least && n <= most)
        return n;
    fprintf(stderr,
            "folio-stress: %s %s: not a number from %llu to %llu; --help says what there is\n",
            option, text, (unsigned long long)least, (unsigned long long)most);
    exit(EXIT_USAGE);
}

static uint32_t op_set(const char *list)
{
    uint32_t set = 0;
    char *copy = strdup(list), *at = copy;
    for (const char *name; copy != NULL && (name = strsep(&at, ",")) != NULL;) {
        unsigned op = 0;
        while (op < NR_OPS && strcmp(op_names[op], name) != 0)
            op++;
        if (op == NR_OPS)
            usage("no operation has the name", name);
        set |= 1u << op;
    }
    free(copy);
    return set;
}

static enum coherence coherence_of(const char *text)
{
    if (strcmp(text, "full") == 0)
        return COHERENCE_FULL;
    if (strcmp(text, "fuse") != 0)
        usage("--coherence is full or fuse, not", text);
    return COHERENCE_FUSE;
}

static enum attach attach_of(const char *text)
{
    if (text == NULL)
        return ATTACH_ALL;
    if (strcmp(text, "mixed") != 0)
        usage("--attach alone, or mixed, not", text);
    return ATTACH_MIXED;
}

enum {
    LONG_ONLY = 256,
    LONG_WITHOUT,
    LONG_BOTH,
    LONG_COHERENCE,
    LONG_ERRORS,
    LONG_INJECT,
    LONG_CRASH,
    LONG_STABLE,
    LONG_HANG,
    LONG_KEEP
};

static const struct option longs[] = {
    { "seed", required_argument, NULL, 's' },
    { "seconds", required_argument, NULL, 't' },
    { "ops", required_argument, NULL, 'n' },
    { "procs", required_argument, NULL, 'p' },
    { "threads", required_argument, NULL, 'j' },
    { "files", required_argument, NULL, 'f' },
    { "pages", required_argument, NULL, 'g' },
    { "attach", optional_argument, NULL, 'a' },
    { "help", no_argument, NULL, 'h' },
    { "version", no_argument, NULL, 'V' },
    { "only", required_argument, NULL, LONG_ONLY },
    { "without", required_argument, NULL, LONG_WITHOUT },
    { "both", no_argument, NULL, LONG_BOTH },
    { "coherence", required_argument, NULL, LONG_COHERENCE },
    { "errors", no_argument, NULL, LONG_ERRORS },
    { "inject", required_argument, NULL, LONG_INJECT },
    { "crash", required_argument, NULL, LONG_CRASH },
    { "stable", no_argument, NULL, LONG_STABLE },
    { "hang", required_argument, NULL, LONG_HANG },
    { "keep", no_argument, NULL, LONG_KEEP },
    { NULL, 0, NULL, 0 },
};

static void option(struct options *o, int c)
{
    switch (c) {
    case 's':
        o->seed = number("--seed", optarg, 0, UINT64_MAX);
        break;
    case 't':
        o->seconds = (unsigned)number("--seconds", optarg, 1, 1000000);
        break;
    case 'n':
        o->ops = number("--ops", optarg, 1, UINT64_MAX);
        break;
    case 'p':
        o->procs = (unsigned)number("--procs", optarg, 1, 256);
        break;
    case 'j':
        o->threads = (unsigned)number("--threads", optarg, 1, 256);
        break;
    case 'f':
        o->files = (unsigned)number("--files", optarg, 1, 200);
        break;
    case 'g':
        o->pages = (unsigned)number("--pages", optarg, 4, 1u << 19);
        break;
    case 'a':
        o->attach = attach_of(optarg);
        break;
    case LONG_ONLY:
        o->disabled |= ~op_set(optarg);
        break;
    case LONG_WITHOUT:
        o->disabled |= op_set(optarg);
        break;
    case LONG_BOTH:
        o->attach = ATTACH_MIXED;
        break;
    case LONG_COHERENCE:
        o->coherence = coherence_of(optarg);
        break;
    case LONG_ERRORS:
        o->errors = true;
        break;
    case LONG_INJECT:
        o->errors = true;
        o->inject = optarg;
        break;
    case LONG_CRASH:
        o->crash = optarg;
        break;
    case LONG_STABLE:
        o->stable = true;
        break;
    case LONG_HANG:
        o->hang_s = (unsigned)number("--hang", optarg, 1, 1000000);
        break;
    case LONG_KEEP:
        o->keep = true;
        break;
    case 'h':
        fputs(help, stdout);
        fputs(help_errors, stdout);
        exit(close_output() ? 0 : EXIT_FAILED);
    case 'V':
        puts("folio-stress " FOLIO_VERSION);
        exit(close_output() ? 0 : EXIT_FAILED);
    default:
        exit(EXIT_USAGE); /* getopt has said why */
    }
}

void options_parse(struct options *o, int argc, char **argv)
{
    *o = (struct options){ .seed = now_ns(),
                           .seconds = 30,
                           .procs = 3,
                           .threads = 2,
                           .files = 8,
                           .pages = 256,
                           .hang_s = 120 };
    o->seed ^= (uint64_t)getpid() << 32;
    o->seed %= 1000000000;
    for (int c; (c = getopt_long(argc, argv, "s:t:n:p:j:f:g:a::hV", longs, NULL)) != -1;)
        option(o, c);
    if (optind != argc - 1)
        usage(optind < argc ? "more than one directory" : "no directory", NULL);
    o->dir = argv[optind];
    if (o->errors)
        o->disabled |= 1u << OP_UNLINK | 1u << OP_RACE;
    if (o->coherence != COHERENCE_FULL)
        o->disabled |= 1u << OP_TAIL;
    if (o->stable && o->crash == NULL)
        usage("--stable is about --crash", NULL);
    if (o->inject != NULL && o->crash != NULL)
        usage("it is either --inject or --crash", NULL);
    if ((o->disabled & ((1u << OP_RACE) - 1)) == (1u << OP_RACE) - 1)
        usage("no operation is left", NULL);
}
