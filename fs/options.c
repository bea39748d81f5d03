#include "fs/options.h"

#include <errno.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include "fs/fs.h"
#include "fs/fuse_front.h"
#include "fs/fuse_ring.h"
#include "fs/machine.h"
#include "fs/size.h"
#include "cache/memory.h"
#include "store/error.h"

#define MIB            ((uint64_t)1 << 20)
#define DEFAULT_MEMORY (512 * MIB) /* where that is at most half of it */
#define LEAST_MEMORY   (32 * MIB)  /* of the default */

enum option_kind {
    OPT_FLAG,   /* a bool */
    OPT_NUMBER, /* =N, a uint32_t */
    OPT_SIZE,   /* =N with a unit, a uint64_t of bytes */
    OPT_CACHE,
    OPT_READAHEAD,
    OPT_RECLAIM,
    OPT_ON_ERROR,
    OPT_READ_ONLY,
    OPT_READ_WRITE,
    OPT_ATIME,
    OPT_NOATIME,
    OPT_STRICTATIME,
    OPT_NODIRATIME,
    OPT_SYNC,       /* refused */
    OPT_FUSE,       /* libfuse's: passed on as it is */
    OPT_FUSE_VALUE, /* likewise, with a value */
    OPT_FOREIGN,    /* mount(8)'s or fstab's own: accepted, nothing to do */
};

struct option_desc {
    const char *name;
    enum option_kind kind;
    size_t at;                /* in struct options: flags, numbers and sizes */
    uint64_t min, max;        /* numbers and sizes */
    const char *value, *help; /* help NULL: listed without words */
};

#define AT(member) offsetof(struct options, member)

static const struct option_desc table[] = {
    { "cache", OPT_CACHE, 0, 0, 0, "kernel|direct",
      "kernel: the kernel caches file data too (default); direct: only FolioFS does" },
    { "attach", OPT_FLAG, AT(attach), 0, 0, NULL,
      "offer mappings of the cache's own pages (libfolio); implied by cache=direct; with "
      "cache=kernel, writes do not wait in the kernel then, and only files that are opened "
      "read-only are cached there" },
    { "fault_around", OPT_NUMBER, AT(fault_around), 1, FAULT_AROUND_MOST, "PAGES",
      "pages that an attached mapping's fault maps together (default 16)" },
    { "store_around", OPT_NUMBER, AT(store_around), 1, STORE_AROUND_MOST, "PAGES",
      "pages that the fault of a store makes writable, where an attached mapping is stored to in "
      "order: up to 64 times fewer messages, but a store that changes nothing is not noticed, and "
      "times are those of the fault (default 1)" },
    { "memory", OPT_SIZE, AT(memory), 0, UINT64_MAX, "SIZE",
      "memory for everything, see below (default 512M, or half of what there is)" },
    { "cache_size", OPT_SIZE, AT(cache_size), 1, UINT64_MAX, "SIZE",
      "memory for file pages (default: half of memory)" },
    { "commit", OPT_NUMBER, AT(commit_s), 1, 3600, "SECONDS",
      "changes are durable after this time at the latest (default 5)" },
    { "readahead", OPT_READAHEAD, 0, 0, 0, "NAME[:ARGS]",
      "policy: linux[:large_folios] (default linux), none, fixed[:PAGES], stride, leap, or "
      "./FILE.so" },
    { "reclaim", OPT_RECLAIM, 0, 0, 0, RECLAIM_NAMES,
      "which pages leave the cache first: lru2q (default), as Linux does; s3fifo for scans, "
      "loops" },
    { "read_ahead_kb", OPT_NUMBER, AT(read_ahead_kb), READ_AHEAD_KB_MIN, READ_AHEAD_KB_MAX, "KiB",
      "largest readahead window (default 128; at most 1024 are read at a time)" },
    { "dirty_ratio", OPT_NUMBER, AT(dirty_ratio), 1, 100, "PERCENT",
      "of cache_size: writers wait above it (default 20)" },
    { "dirty_background_ratio", OPT_NUMBER, AT(dirty_background_ratio), 1, 100, "PERCENT",
      "of cache_size: writing back starts above it (default half of dirty_ratio)" },
    { "dirty_expire", OPT_NUMBER, AT(dirty_expire_s), 1, 86400, "SECONDS",
      "a file dirty for so long is written back (default 30)" },
    { "dirty_writeback", OPT_NUMBER, AT(dirty_writeback_s), 1, 86400, "SECONDS",
      "how often to look for such files (default 5)" },
    { "on_error", OPT_ON_ERROR, 0, 0, 0, "retry|clean|ro",
      "a page whose writing failed: stays dirty and is tried again (default); counts as written, "
      "as on most file systems; makes the volume read-only" },
    { "inject", OPT_FLAG, AT(inject), 0, 0, NULL,
      "let \"foliofsctl MOUNTPOINT inject\" make the store fail, to try what programs do then" },
    { "threads", OPT_NUMBER, AT(threads), 2, 256, "N", "requests worked on at once (default 16)" },
    { "spin", OPT_NUMBER, AT(spin_us), 0, 1000, "MICROSECONDS",
      "how long to look for the next request before sleeping; costs that much of a processor "
      "(default 0)" },
    { "io_uring", OPT_FLAG, AT(io_uring), 0, 0, NULL,
      "get requests by io_uring, on the processor that asked: up to three times faster (Linux "
      "6.14; needs /sys/module/fuse/parameters/enable_uring)" },
    { "ro", OPT_READ_ONLY, 0, 0, 0, NULL, "read only; the volume is not changed" },
    { "rw", OPT_READ_WRITE, 0, 0, 0, NULL, "read and write (default)" },
    { "noatime", OPT_NOATIME, 0, 0, 0, NULL,
      "reading leaves atime (default: relatime); by a remount it comes to nothing" },
    { "strictatime", OPT_STRICTATIME, 0, 0, 0, NULL,
      "all that is read from FolioFS sets atime; what the kernel has cached does not" },
    { "nodiratime", OPT_NODIRATIME, 0, 0, 0, NULL, "reading a directory leaves its atime" },
    { "allow_other", OPT_FUSE, 0, 0, 0, NULL, "other users may use the mount too" },
    { "allow_root", OPT_FUSE, 0, 0, 0, NULL, "root may use the mount too" },
    { "auto_unmount", OPT_FUSE, 0, 0, 0, NULL, "unmount if the process dies" },
    { "default_permissions", OPT_FOREIGN, 0, 0, 0, NULL, "always on: the kernel checks modes" },
    { "fsname", OPT_FUSE_VALUE, 0, 0, 0, "NAME",
      "source in /proc/mounts (default: the volume's path)" },
    { "subtype", OPT_FUSE_VALUE, 0, 0, 0, "NAME",
      "type after \"fuse.\" in /proc/mounts (default foliofs)" },
    { "suid", OPT_FUSE, 0, 0, 0, NULL, NULL },
    { "nosuid", OPT_FUSE, 0, 0, 0, NULL, NULL },
    { "dev", OPT_FUSE, 0, 0, 0, NULL, NULL },
    { "nodev", OPT_FUSE, 0, 0, 0, NULL, NULL },
    { "exec", OPT_FUSE, 0, 0, 0, NULL, NULL },
    { "noexec", OPT_FUSE, 0, 0, 0, NULL, NULL },
    { "async", OPT_FUSE, 0, 0, 0, NULL, NULL },
    { "sync", OPT_SYNC, 0, 0, 0, NULL, NULL },
    { "dirsync", OPT_SYNC, 0, 0, 0, NULL, NULL },
    { "atime", OPT_ATIME, 0, 0, 0, NULL, NULL },
    { "diratime", OPT_NODIRATIME, 0, 0, 0, NULL, NULL },
    { "relatime", OPT_FOREIGN, 0, 0, 0, NULL, NULL },
    { "norelatime", OPT_FOREIGN, 0, 0, 0, NULL, NULL },
    { "nostrictatime", OPT_FOREIGN, 0, 0, 0, NULL, NULL },
    { "lazytime", OPT_FOREIGN, 0, 0, 0, NULL, NULL },
    { "nolazytime", OPT_FOREIGN, 0, 0, 0, NULL, NULL },
    { "defaults", OPT_FOREIGN, 0, 0, 0, NULL, NULL },
    { "auto", OPT_FOREIGN, 0, 0, 0, NULL, NULL },
    { "noauto", OPT_FOREIGN, 0, 0, 0, NULL, NULL },
    { "user", OPT_FOREIGN, 0, 0, 0, NULL, NULL },
    { "nouser", OPT_FOREIGN, 0, 0, 0, NULL, NULL },
    { "users", OPT_FOREIGN, 0, 0, 0, NULL, NULL },
    { "owner", OPT_FOREIGN, 0, 0, 0, NULL, NULL },
    { "group", OPT_FOREIGN, 0, 0, 0, NULL, NULL },
    { "nofail", OPT_FOREIGN, 0, 0, 0, NULL, NULL },
    { "_netdev", OPT_FOREIGN, 0, 0, 0, NULL, NULL },
    { "comment", OPT_FOREIGN, 0, 0, 0, NULL, NULL },
    { "x-*", OPT_FOREIGN, 0, 0, 0, NULL, NULL },
};
#define TABLE_LEN (sizeof table / sizeof table[0])

/* ---- one option ------------------------------------------------------------------------------ */

static const struct option_desc *find_option(const char *name, size_t len)
{
    if (len > 2 && (strncmp(name, "x-", 2) == 0 || strncmp(name, "X-", 2) == 0))
        return &table[TABLE_LEN - 1];
    for (size_t i = 0; i < TABLE_LEN; i++)
        if (strlen(table[i].name) == len && memcmp(table[i].name, name, len) == 0)
            return &table[i];
    return NULL;
}

static int unknown_option(const char *arg, struct store_error *error)
{
    char names[400] = "";
    size_t used = 0;
    if (strcmp(arg, "remount") == 0)
        return store_fail(error, -EINVAL,
                          "remount: unmount, and mount again with other options; many can be "
                          "changed by foliofsctl MOUNTPOINT set");
    for (size_t i = 0; i < TABLE_LEN; i++)
        if (table[i].help != NULL)
            used += (size_t)snprintf(names + used, sizeof names - used, "%s%s", used ? ", " : "",
                                     table[i].name);
    return store_fail(error, -EINVAL, "%s: no such option; there are %s (see foliofs --help)", arg,
                      names);
}

static int set_number(struct options *o, const struct option_desc *d, const char *value,
                      struct store_error *error)
{
    char *end;
    errno = 0;
    unsigned long long n = strtoull(value, &end, 10);
    if (errno != 0 || end == value || *end != '\0' || value[0] < '0' || value[0] > '9' ||
        n < d->min || n > d->max)
        return store_fail(error, -EINVAL, "%s=%s: not a number from %llu to %llu (%s)", d->name,
                          value, (unsigned long long)d->min, (unsigned long long)d->max, d->value);
    *(uint32_t *)((char *)o + d->at) = (uint32_t)n;
    return 0;
}

static int set_size(struct options *o, const struct option_desc *d, const char *value,
                    struct store_error *error)
{
    uint64_t n;
    if (parse_size(value, &n) != 0 || n < d->min)
        return store_fail(error, -EINVAL, "%s=%s: not a size such as 512M or 2G", d->name, value);
    *(uint64_t *)(void *)((char *)o + d->at) = n;
    o->memory_given |= d->at == AT(memory);
    return 0;
}

static int set_cache(struct options *o, const char *value, struct store_error *error)
{
    if (strcmp(value, "kernel") == 0)
        o->cache = CACHE_KERNEL;
    else if (strcmp(value, "direct") == 0)
        o->cache = CACHE_DIRECT;
    else
        return store_fail(error, -EINVAL, "cache=%s: it is either kernel or direct", value);
    return 0;
}

static int set_reclaim(struct options *o, const char *value, struct store_error *error)
{
    const char *name = page_cache_reclaim_name(value);
    if (name == NULL)
        return store_fail(error, -EINVAL, "reclaim=%s: no such policy; there are " RECLAIM_NAMES,
                          value);
    o->reclaim = name;
    return 0;
}

static int set_readahead(struct options *o, const char *value, struct store_error *error)
{
    char why[RA_ERROR_BYTES];
    int err = ra_policy_open(value, &o->readahead, why, sizeof why);
    return err != 0 ? store_fail(error, err, "readahead=%s", why) : 0;
}

static int set_on_error(struct options *o, const char *value, struct store_error *error)
{
    if (strcmp(value, "retry") == 0)
        o->on_error = WB_ERROR_RETRY;
    else if (strcmp(value, "clean") == 0)
        o->on_error = WB_ERROR_CLEAN;
    else if (strcmp(value, "ro") == 0)
        o->on_error = WB_ERROR_RO;
    else
        return store_fail(error, -EINVAL, "on_error=%s: it is retry, clean or ro", value);
    return 0;
}

static int set_option(struct options *o, const struct option_desc *d, const char *value,
                      struct store_error *error)
{
    switch (d->kind) {
    case OPT_FLAG:
        *(bool *)((char *)o + d->at) = true;
        return 0;
    case OPT_NUMBER:
        return set_number(o, d, value, error);
    case OPT_SIZE:
        return set_size(o, d, value, error);
    case OPT_CACHE:
        return set_cache(o, value, error);
    case OPT_RECLAIM:
        return set_reclaim(o, value, error);
    case OPT_READAHEAD:
        return set_readahead(o, value, error);
    case OPT_ON_ERROR:
        return set_on_error(o, value, error);
    case OPT_READ_ONLY:
    case OPT_READ_WRITE:
        o->read_only = d->kind == OPT_READ_ONLY;
        return 0;
    case OPT_FUSE_VALUE:
        if (value == NULL || *value == '\0')
            return store_fail(error, -EINVAL, "%s= needs a name behind it, or is to be left out",
                              d->name);
        o->fsname_given |= strcmp(d->name, "fsname") == 0;
        o->subtype_given |= strcmp(d->name, "subtype") == 0;
        return options_add_fuse(o, d->name, value);
    case OPT_ATIME:
    case OPT_STRICTATIME:
    case OPT_NOATIME: /* the kernel leaves it to us, and shows this one in /proc/mounts */
        o->noatime = d->kind == OPT_NOATIME;
        o->strictatime = d->kind == OPT_STRICTATIME;
        return options_add_fuse(o, o->noatime ? "noatime" : "atime", NULL);
    case OPT_NODIRATIME:
        o->nodiratime = d->name[0] == 'n';
        return 0;
    case OPT_SYNC:
        return store_fail(
            error, -EINVAL,
            "%s: durable at once is what fsync(2) was called for, all else within commit= "
            "seconds; leave the option out",
            d->name);
    case OPT_FUSE:
        return options_add_fuse(o, d->name, NULL);
    case OPT_FOREIGN:
        return 0;
    }
    return -EINVAL;
}

/* libfuse splits its options at commas, except behind a backslash. */
int options_add_fuse(struct options *o, const char *name, const char *value)
{
    const char *parts[] = { name, value != NULL ? "=" : "", value != NULL ? value : "" };
    size_t used = o->fuse_options != NULL ? strlen(o->fuse_options) : 0;
    size_t more = 2 * (strlen(parts[0]) + strlen(parts[1]) + strlen(parts[2])) + sizeof ",";
    char *text = realloc(o->fuse_options, used + more);
    if (text == NULL)
        return -ENOMEM;
    o->fuse_options = text;
    if (used > 0)
        text[used++] = ',';
    for (size_t i = 0; i < 3; i++)
        for (const char *c = parts[i]; *c != '\0'; c++) {
            if (*c == ',' || *c == '\\')
                text[used++] = '\\';
            text[used++] = *c;
        }
    text[used] = '\0';
    return 0;
}

/* ---- the command line ------------------------------------------------------------------------ */

struct parsing {
    struct options *o;
    struct store_error *error;
};

static int keep(char **where, const char *arg)
{
    *where = strdup(arg);
    return *where != NULL ? 0 : -ENOMEM;
}

static int parse_flag(struct parsing *p, const char *arg)
{
    struct options *o = p->o;
    if (strcmp(arg, "-f") == 0)
        o->foreground = true;
    else if (strcmp(arg, "-d") == 0)
        o->debug = o->foreground = true;
    else if (strcmp(arg, "-h") == 0 || strcmp(arg, "--help") == 0)
        o->help = true;
    else if (strcmp(arg, "-V") == 0 || strcmp(arg, "--version") == 0)
        o->version = true;
    else
        return store_fail(p->error, -EINVAL, "%s: no such flag; there are -o, -f, -d, -h and -V",
                          arg);
    return 0;
}

static int parse_option(struct parsing *p, const char *arg)
{
    size_t len = strcspn(arg, "=");
    const struct option_desc *d = find_option(arg, len);
    const char *value = arg[len] == '=' ? arg + len + 1 : NULL;
    if (d == NULL)
        return unknown_option(arg, p->error);
    if (d->kind != OPT_FOREIGN && (d->value != NULL) != (value != NULL))
        return value != NULL ? store_fail(p->error, -EINVAL, "%s takes no value", d->name)
                             : store_fail(p->error, -EINVAL, "%s needs a value: %s=%s", d->name,
                                          d->name, d->value);
    return set_option(p->o, d, value, p->error);
}

static int parse_argument(struct parsing *p, const char *arg)
{
    if (p->o->volume == NULL)
        return keep(&p->o->volume, arg);
    if (p->o->mountpoint == NULL)
        return keep(&p->o->mountpoint, arg);
    return store_fail(p->error, -EINVAL,
                      "%s: one argument too many; VOLUME and MOUNTPOINT are \"%s\" and \"%s\"", arg,
                      p->o->volume, p->o->mountpoint);
}

/* Cut the first option off a list separated by commas, in place: a backslash takes the next
 * character as it is.   Returns what is left, NULL: that was the last. */
static char *cut_option(char *list)
{
    char *to = list, *from = list;
    while (*from != '\0' && *from != ',') {
        if (*from == '\\' && from[1] != '\0')
            from++;
        *to++ = *from++;
    }
    char *rest = *from == ',' ? from + 1 : NULL;
    *to = '\0';
    return rest;
}

static int parse_list(struct parsing *p, const char *options)
{
    char *copy = strdup(options), *next, *at = copy;
    int err = copy != NULL ? 0 : -ENOMEM;
    for (; err == 0 && at != NULL; at = next) {
        next = cut_option(at);
        if (*at != '\0')
            err = parse_option(p, at);
    }
    free(copy);
    return err;
}

static int parse_arguments(struct parsing *p, int argc, char **argv)
{
    bool flags = true; /* until "--" */
    int err = 0;
    for (int i = 1; err == 0 && i < argc; i++) {
        const char *arg = argv[i];
        if (!flags || arg[0] != '-' || arg[1] == '\0')
            err = parse_argument(p, arg);
        else if (strcmp(arg, "--") == 0)
            flags = false;
        else if (strncmp(arg, "-o", 2) != 0)
            err = parse_flag(p, arg);
        else if (arg[2] != '\0')
            err = parse_list(p, arg + 2);
        else if (++i < argc)
            err = parse_list(p, argv[i]);
        else
            err = store_fail(p->error, -EINVAL, "-o needs its options (see foliofs --help)");
    }
    return err;
}

static int check_options(const struct options *o, struct store_error *error)
{
    if (o->help || o->version)
        return 0;
    if (o->mountpoint == NULL)
        return store_fail(error, -EINVAL, "VOLUME and MOUNTPOINT are needed (see foliofs --help)");
    if (o->dirty_background_ratio > o->dirty_ratio)
        return store_fail(error, -EINVAL, "dirty_background_ratio=%u is above dirty_ratio=%u",
                          o->dirty_background_ratio, o->dirty_ratio);
    if (o->io_uring && o->spin_us != 0)
        return store_fail(error, -EINVAL,
                          "spin= looks for requests that io_uring brings another way: leave one of "
                          "them out");
    return 0;
}

/* Whoever is above his control group's limit is killed by the kernel. */
static uint64_t default_memory(void)
{
    uint64_t half = machine_memory() / 2;
    if (half > DEFAULT_MEMORY)
        return DEFAULT_MEMORY;
    return half > LEAST_MEMORY ? half : LEAST_MEMORY;
}

int options_parse(int argc, char **argv, struct options *o, struct store_error *error)
{
    struct parsing p = { .o = o, .error = error };
    *o = (struct options){
        .commit_s = 5,
        .memory = default_memory(),
        .readahead = &ra_linux,
        .read_ahead_kb = RA_DEFAULT_PAGES * (PAGE_SIZE >> 10),
        .dirty_ratio = 20,
        .dirty_expire_s = 30,
        .dirty_writeback_s = 5,
        .threads = 16,
    };
    int err = parse_arguments(&p, argc, argv);
    if (err == -ENOMEM)
        store_fail(error, err, "not enough memory");
    if (o->dirty_background_ratio == 0)
        o->dirty_background_ratio = (o->dirty_ratio + 1) / 2;
    o->attach = o->attach || o->cache == CACHE_DIRECT;
    return err == 0 ? check_options(o, error) : err;
}

void options_free(struct options *o)
{
    free(o->volume);
    free(o->mountpoint);
    free(o->fuse_options);
}

/* ---- memory ---------------------------------------------------------------------------------- */

/* Beside every page: 64 bytes of struct page and its share of the radix tree. */
#define BYTES_PER_PAGE_STRUCT 96u
#define BYTES_PER_INODE       1024u /* struct inode, its place in the table, the root of its tree */
#define MIN_PAGES             (1 * MIB)
#define MIN_TRANSACTIONS      (8 * MIB)
#define MIN_INODES            (1 * MIB)
#define MIN_READ              (4 * PAGE_SIZE) /* the smallest max_read, bytes */

static uint64_t structs_for(uint64_t pages)
{
    return pages / PAGE_SIZE * BYTES_PER_PAGE_STRUCT;
}

/* Requests that can be worked on at once. */
static uint64_t requests_at_once(const struct options *o)
{
    return o->threads + (o->io_uring ? ring_threads(o->threads) : 0);
}

/* What the other parts need at least. */
static uint64_t min_others(const struct options *o)
{
    return requests_at_once(o) * FRONT_THREAD_BYTES + MIN_TRANSACTIONS + MIN_INODES;
}

static uint64_t min_pages(const struct options *o)
{
    uint64_t bytes = requests_at_once(o) * MIN_READ * 2;
    return bytes > MIN_PAGES ? bytes : MIN_PAGES;
}

/* Half of memory, or as much as the others leave when there is little of it. */
static uint64_t default_pages(const struct options *o)
{
    uint64_t others = min_others(o);
    uint64_t left = o->memory > others ? o->memory - others : 0;
    uint64_t most = left / (PAGE_SIZE + BYTES_PER_PAGE_STRUCT) * PAGE_SIZE;
    uint64_t pages = most < o->memory / 2 ? most : o->memory / 2;
    return pages > min_pages(o) ? pages : min_pages(o);
}

/* A request holds on to the pages it reads until its reply is sent; all of them together leave half
 * of the pages free. A power of two. */
static uint32_t max_read(const struct options *o, uint64_t pages)
{
    uint32_t io = FRONT_MAX_IO;
    while (io > MIN_READ && io * requests_at_once(o) * 2 > pages)
        io /= 2;
    return io;
}

static int check_budget(const struct options *o, const struct budget *b, struct store_error *error)
{
    char have[SIZE_TEXT_BYTES], want[SIZE_TEXT_BYTES], least[SIZE_TEXT_BYTES];
    uint64_t machine = machine_memory();
    uint64_t given = o->cache_size != 0 ? o->cache_size : b->pages, need;
    if (b->memory > machine)
        return store_fail(
            error, -EINVAL,
            "memory: %s is more than this machine has, or lets this control group have "
            "(%s)",
            format_size(b->memory, want), format_size(machine, have));
    if (b->pages < min_pages(o))
        return store_fail(error, -EINVAL, "cache_size: %s is too small; at least %s",
                          format_size(given, want), format_size(min_pages(o), least));
    need = b->pages + structs_for(b->pages) + min_others(o);
    need = (need + MIB - 1) / MIB * MIB;
    if (b->memory < need)
        return store_fail(error, -EINVAL,
                          "memory: %s is too small for %s of pages and %u threads; at least %s",
                          format_size(b->memory, have), format_size(b->pages, want),
                          (unsigned)requests_at_once(o), format_size(need, least));
    return 0;
}

/* Without memory= a large cache_size= makes the budget grow with it. */
int budget_split(const struct options *o, struct budget *out, struct store_error *error)
{
    struct budget b = { .memory = o->memory };
    b.pages = o->cache_size != 0 ? o->cache_size : default_pages(o);
    b.pages = b.pages / PAGE_SIZE * PAGE_SIZE;
    if (!o->memory_given && b.memory / 2 < b.pages)
        b.memory = b.pages < UINT64_MAX / 2 ? 2 * b.pages : UINT64_MAX;
    int err = check_budget(o, &b, error);
    if (err != 0)
        return err;
    b.page_structs = structs_for(b.pages);
    b.requests = requests_at_once(o) * FRONT_THREAD_BYTES;
    uint64_t rest = b.memory - b.pages - b.page_structs - b.requests;
    b.transactions = b.memory / 4 < rest / 4 * 3 ? b.memory / 4 : rest / 4 * 3;
    if (b.transactions < MIN_TRANSACTIONS)
        b.transactions = MIN_TRANSACTIONS;
    b.inodes = rest - b.transactions;
    b.max_inodes = b.inodes / BYTES_PER_INODE;
    b.max_read = max_read(o, b.pages);
    b.held = b.memory / 16 > FRONT_MAX_IO ? b.memory / 16 : FRONT_MAX_IO;
    *out = b;
    return 0;
}

static void print_part(FILE *to, const char *name, uint64_t bytes, const char *what)
{
    fprintf(to, "  %-14s %10.1f MiB  %s\n", name, (double)bytes / (double)MIB, what);
}

void budget_print(const struct budget *b, FILE *to)
{
    char inodes[80];
    snprintf(inodes, sizeof inodes, "about %llu inodes that nobody uses at the moment",
             (unsigned long long)b->max_inodes);
    print_part(to, "pages", b->pages, "file data (cache_size)");
    print_part(to, "page structs", b->page_structs, "what describes the pages, and their trees");
    print_part(to, "transactions", b->transactions, "changes that are not durable yet");
    print_part(to, "requests", b->requests, "one buffer per thread");
    print_part(to, "inodes", b->inodes, inodes);
    print_part(to, "memory", b->memory, "in all");
}

/* ---- help ------------------------------------------------------------------------------------ */

static void print_others(FILE *to, bool foreign)
{
    for (size_t i = 0; i < TABLE_LEN; i++)
        if (table[i].help == NULL && table[i].kind != OPT_SYNC &&
            (table[i].kind == OPT_FOREIGN) == foreign)
            fprintf(to, " %s", table[i].name);
}

void options_print_help(FILE *to)
{
    fprintf(to,
            "usage: foliofs [-o OPTIONS] [-f] [-d] [-h] [-V] VOLUME MOUNTPOINT\n\n"
            "Mount a FolioFS volume (made by mkfs.foliofs). The order of the arguments is free.\n\n"
            "  -o OPTIONS  options, separated by commas\n"
            "  -f          stay in the foreground\n"
            "  -d          print every request (and stay in the foreground)\n"
            "  -h          this text (--help)\n"
            "  -V          versions (--version)\n\n"
            "options:\n");
    for (size_t i = 0; i < TABLE_LEN; i++) {
        char name[64];
        if (table[i].help == NULL)
            continue;
        snprintf(name, sizeof name, table[i].value != NULL ? "%s=%s" : "%s", table[i].name,
                 table[i].value);
        fprintf(to, "  %-32s %s\n", name, table[i].help);
    }
    fprintf(to, "\nLike every mount also:");
    print_others(to, false);
    fprintf(to, "\n(nosuid and nodev unless suid or dev is given). Accepted, and without effect:");
    print_others(to, true);
    fprintf(
        to,
        "\nsync and dirsync are refused: what is durable at once is what fsync(2) was called for.\n"
        "\nSizes are bytes, or have a unit: K, M, G, T. Where the default memory goes:\n");
    struct options o;
    struct budget b;
    char name[] = "foliofs", help[] = "-h";
    char *argv[] = { name, help, NULL };
    if (options_parse(2, argv, &o, NULL) == 0 && budget_split(&o, &b, NULL) == 0)
        budget_print(&b, to);
    options_free(&o);
    fprintf(to, "\nUnmount with umount (root) or fusermount3 -u; SIGTERM does the same, but leaves "
                "alone what else is mounted there by then.\n");
}
