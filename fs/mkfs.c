/* mkfs.c: mkfs.foliofs, which makes a volume. */
#include <ctype.h>
#include <errno.h>
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "fs/process.h"
#include "fs/size.h"
#include "store/store.h"

#define LETTERS "L:s:" /* options */

enum { EXIT_USAGE = 2 };
enum { OPT_FORCE = 256, OPT_HELP, OPT_VERSION };

static const struct option long_options[] = {
    { "label", required_argument, NULL, 'L' },     { "size", required_argument, NULL, 's' },
    { "force", no_argument, NULL, OPT_FORCE },     { "help", no_argument, NULL, OPT_HELP },
    { "version", no_argument, NULL, OPT_VERSION }, { NULL, 0, NULL, 0 },
};

static void usage(FILE *to)
{
    fputs("usage: mkfs.foliofs [-L LABEL] [-s CAPACITY] [--force] VOLUME\n"
          "Make VOLUME, a file, an empty FolioFS volume. It grows as it is filled.\n"
          "\n"
          "  -L, --label LABEL     a name of at most 64 bytes\n"
          "  -s, --size CAPACITY   the most it may hold: bytes, or with K, M, G, T (default 1T,\n"
          "                        from 4M to 64T)\n"
          "      --force           replace what is there\n"
          "      --help            this text\n"
          "      --version         the version\n",
          to);
}

static int usage_error(const char *text, const char *what)
{
    fprintf(stderr, "mkfs.foliofs: %s%s; see mkfs.foliofs --help\n", what, text);
    return EXIT_USAGE;
}

/* Returns -1: go on; else the exit status. */
static int parse_options(int argc, char **argv, struct store_format *f)
{
    int c;
    opterr = 0;
    while ((c = getopt_long(argc, argv, LETTERS, long_options, NULL)) != -1) {
        switch (c) {
        case 'L':
            for (const char *p = optarg; *p != '\0'; p++)
                if (iscntrl((unsigned char)*p))
                    return usage_error(": a label has no control characters", "-L");
            f->label = optarg;
            break;
        case 's':
            if (parse_size(optarg, &f->capacity) != 0 || f->capacity == 0)
                return usage_error(": is not a size such as 500M, 20G or 1T", optarg);
            break;
        case OPT_FORCE:
            f->force = true;
            break;
        case OPT_HELP:
            usage(stdout);
            return EXIT_SUCCESS;
        case OPT_VERSION:
            puts("mkfs.foliofs " FOLIO_VERSION);
            return EXIT_SUCCESS;
        default:
            return usage_error(": no such option, or one with a value too few or too many",
                               process_bad_option(argv, LETTERS));
        }
    }
    if (argc - optind != 1)
        return usage_error(argc == optind ? "no VOLUME given" : "more than one VOLUME given", "");
    return -1;
}

static void print_volume(const char *path, const struct super_record *s)
{
    char size[SIZE_TEXT_BYTES];
    const uint8_t *u = s->uuid;
    printf("%s: UUID=%02x%02x%02x%02x-%02x%02x-%02x%02x-%02x%02x-%02x%02x%02x%02x%02x%02x", path,
           u[0], u[1], u[2], u[3], u[4], u[5], u[6], u[7], u[8], u[9], u[10], u[11], u[12], u[13],
           u[14], u[15]);
    printf(" capacity %s", format_size(s->capacity, size));
    if (s->label[0] != '\0')
        printf(" label \"%s\"", s->label);
    putchar('\n');
}

/* Read back what was written: a volume that cannot be opened is not made. */
static int show(const char *path, struct store_error *error)
{
    struct store *s;
    struct store_options options = { .read_only = true };
    int rc = store_open(path, &options, &s, error);
    if (rc != 0)
        return rc;
    print_volume(path, store_super(s));
    (void)store_close(s);
    return 0;
}

int main(int argc, char **argv)
{
    struct store_format format = { .root_uid = getuid(), .root_gid = getgid() };
    struct store_error error = { .text = "" };
    if (!process_start())
        return EXIT_FAILURE;
    int status = parse_options(argc, argv, &format);
    if (status >= 0)
        return process_close_output("mkfs.foliofs") ? status : EXIT_FAILURE;
    const char *path = argv[optind];
    int rc = store_format(path, &format, &error);
    if (rc == 0)
        rc = show(path, &error);
    if (rc != 0) {
        fprintf(stderr, "mkfs.foliofs: %s\n", error.text[0] != '\0' ? error.text : strerror(-rc));
        return EXIT_FAILURE;
    }
    return process_close_output("mkfs.foliofs") ? EXIT_SUCCESS : EXIT_FAILURE;
}
