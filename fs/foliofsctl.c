/* foliofsctl: ask and tell the daemon of a mounted FolioFS volume (fs/control.h has the protocol).
 *
 * It must come back whatever state the daemon is in. So it touches the mount only in a child
 * process, which it gives up after a while: a path walk may need an answer from the daemon.
 */
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <inttypes.h>
#include <jansson.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "fs/control.h"
#include "fs/control_path.h"
#include "fs/process.h"

#define ANSWER_MS   10000              /* how long we wait for a look at the mount, a reply */
#define SYNC_MS     (3600 * 1000)      /* sync and drop write and free: as long as it takes */
#define REPLY_BYTES ((size_t)16 << 20) /* more than any reply */

struct client {
    const char *mountpoint; /* as the user wrote it */
    struct mount_entry mount;
    bool json;
    json_t *inject; /* what its options say; NULL: none was given */
};

static const char usage_text[] =
    "usage: foliofsctl [--json] MOUNTPOINT COMMAND\n"
    "Ask and tell the daemon of a mounted FolioFS volume. MOUNTPOINT may be any path inside.\n"
    "\n"
    "  stats             counters of cache, writeback, store and memory\n"
    "  pages FILE        which pages of FILE are cached, and their state\n"
    "  sync              write everything back; durable when it returns\n"
    "  drop              give up every clean cached page and unused inode\n"
    "  set NAME=VALUE    cache_size (bytes; K, M, G), dirty_ratio, dirty_background_ratio (per "
    "cent),\n"
    "                    dirty_expire, dirty_writeback, commit (seconds), fault_around,\n"
    "                    store_around (pages),\n"
    "                    reclaim (policy),\n"
    "                    readahead (linux, linux:large_folios, none, fixed:PAGES, stride, leap,\n"
    "                    ./FILE.so:ARGS), read_ahead_kb (KiB); open files follow at once\n"
    "  set readahead=VALUE FILE, set read_ahead_kb=VALUE FILE\n"
    "                    for FILE alone, whatever is set for the volume; it is not stored: it "
    "ends\n"
    "                    with the value default, the mount, or when the unused file's inode goes\n"
    "  inject --KIND WHAT [HOW] [FILE]\n"
    "                    make the store fail on purpose, for FILE alone or all files, on a mount "
    "with\n"
    "                    -o inject. What applied comes first:\n"
    "                    KIND  eio, enospc, enomem: fail with that error\n"
    "                          lost, torn: lie, as a bad disk does, and so lose data: a write "
    "that\n"
    "                          succeeds and changes nothing, or writes half of a block\n"
    "                    WHAT  --reads, --writes: of blocks of data; --commits: of transactions, "
    "which\n"
    "                          carry data, names and attributes. One or more\n"
    "                    HOW   --per-million=N: so many of them (all); --after=N: not the first "
    "N;\n"
    "                          --count=N: N times at most\n"
    "  inject            the rules there are, and how often each was hit\n"
    "  inject --clear    no more errors. Do it before unmounting: rules hold until the end\n"
    "  version           of the daemon, and the volume's label and UUID\n"
    "\n"
    "  -j, --json        print the daemon's reply as JSON\n"
    "  -h, --help\n"
    "  -V, --version     of this program\n"
    "\n"
    "Exit status: 0, 1 when the daemon refused or did not answer, 2 for a wrong command line.\n";

__attribute__((format(printf, 1, 2), noreturn)) static void die(const char *format, ...)
{
    va_list args;
    (void)fflush(stdout);
    (void)fputs("foliofsctl: ", stderr);
    va_start(args, format);
    (void)vfprintf(stderr, format, args);
    va_end(args);
    (void)fputc('\n', stderr);
    exit(1);
}

__attribute__((format(printf, 1, 2), noreturn)) static void die_usage(const char *format, ...)
{
    va_list args;
    (void)fputs("foliofsctl: ", stderr);
    va_start(args, format);
    (void)vfprintf(stderr, format, args);
    va_end(args);
    (void)fputs(" (foliofsctl --help)\n", stderr);
    exit(2);
}

static uint64_t now_ms(void)
{
    struct timespec t;
    (void)clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000 + (uint64_t)t.tv_nsec / 1000000;
}

/* Wait for fd until the time has come.   Returns false when it has. */
static bool wait_for(int fd, short events, uint64_t until_ms)
{
    for (;;) {
        uint64_t now = now_ms();
        struct pollfd p = { .fd = fd, .events = events };
        int n = now < until_ms ? poll(&p, 1, (int)(until_ms - now)) : 0;
        if (n > 0)
            return true;
        if (n == 0)
            return false;
    }
}

/* ---- looking at the mount, in a child -------------------------------------------------------- */

struct look {
    int error;
    dev_t dev;
    uint64_t ino;
};

enum look_for {
    LOOK_DEV,  /* where it is: asks for nothing that needs a permission or an answer */
    LOOK_INO,  /* which file it is */
    LOOK_SYNC, /* have the kernel write back what it holds in front of the daemon */
};

static int look_now(const char *path, enum look_for what, struct look *out)
{
    struct statx st;
    if (statx(AT_FDCWD, path, AT_STATX_DONT_SYNC | AT_NO_AUTOMOUNT,
              what == LOOK_INO ? STATX_INO | STATX_TYPE : 0, &st) != 0)
        return -errno;
    out->dev = makedev(st.stx_dev_major, st.stx_dev_minor);
    out->ino = st.stx_ino;
    if (what != LOOK_SYNC)
        return 0;
    int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0)
        return -errno;
    int err = syncfs(fd) == 0 ? 0 : -errno;
    (void)close(fd);
    return err;
}

/* -ETIMEDOUT: the daemon that should have answered did not. */
static int look_at(const char *path, enum look_for what, int timeout_ms, struct look *out)
{
    int fds[2];
    if (pipe2(fds, O_CLOEXEC) != 0)
        return -errno;
    pid_t child = fork();
    if (child < 0)
        return -errno;
    if (child == 0) {
        struct look look = { 0 };
        look.error = look_now(path, what, &look);
        _exit(write(fds[1], &look, sizeof look) == (ssize_t)sizeof look ? 0 : 1);
    }
    (void)close(fds[1]);
    int err = -ETIMEDOUT;
    if (wait_for(fds[0], POLLIN, now_ms() + (uint64_t)timeout_ms))
        err = read(fds[0], out, sizeof *out) == (ssize_t)sizeof *out ? out->error : -EIO;
    (void)kill(child, SIGKILL); /* a process waiting for a FUSE answer can be killed */
    (void)waitpid(child, NULL, 0);
    (void)close(fds[0]);
    return err;
}

static void find_mount(struct client *client, const char *path)
{
    struct look look = { 0 };
    int err = look_at(path, LOOK_DEV, ANSWER_MS, &look);
    client->mountpoint = path;
    if (err == -ETIMEDOUT)
        die("%s: the daemon does not answer", path);
    if (err == -ENOTCONN || err == -ECONNABORTED)
        die("%s: the daemon is gone; unmount with: fusermount3 -u %s", path, path);
    if (err != 0)
        die("%s: %s", path, strerror(-err));
    err = mount_find_dev(look.dev, &client->mount);
    if (err != 0 || !mount_is_fuse(&client->mount))
        die("%s: not on a FolioFS mount", path);
}

/* ---- one request and its reply --------------------------------------------------------------- */

/* Is the peer who it must be: the mount's owner, or root? */
static bool daemon_is_right(int fd, uid_t owner)
{
    struct ucred peer;
    socklen_t len = sizeof peer;
    return getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &len) == 0 &&
           (peer.uid == owner || peer.uid == 0);
}

static int try_connect(const struct client *client, unsigned n)
{
    struct sockaddr_un address = { .sun_family = AF_UNIX };
    char path[CONTROL_PATH_BYTES];
    control_socket(n, client->mount.uid, client->mount.dev, path);
    memcpy(address.sun_path, path, sizeof address.sun_path);
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0)
        return -errno;
    int err = connect(fd, (struct sockaddr *)&address, sizeof address) == 0 ? 0 : -errno;
    if (err == 0 && !daemon_is_right(fd, client->mount.uid))
        err = -EPERM;
    if (err != 0) {
        (void)close(fd);
        return err;
    }
    return fd;
}

/* Returns a socket, or says why there is none. */
static int connect_daemon(const struct client *client)
{
    int worst = -ENOENT;
    for (unsigned n = 0; n < CONTROL_DIRECTORIES; n++) {
        int fd = try_connect(client, n);
        if (fd >= 0)
            return fd;
        if (fd != -ENOENT)
            worst = fd;
    }
    const char *where = client->mountpoint;
    if (worst == -ENOENT)
        die("%s: not a FolioFS mount, or its daemon has no control socket (mount type %s)", where,
            client->mount.type);
    if (worst == -ECONNREFUSED)
        die("%s: the daemon is gone; unmount with: fusermount3 -u %s", where,
            client->mount.mountpoint);
    if (worst == -EAGAIN)
        die("%s: the daemon does not answer", where);
    if (worst == -EACCES || worst == -EPERM)
        die("%s: not permitted: only the owner of the mount (uid %u) and root may control it",
            where, client->mount.uid);
    die("%s: cannot reach the daemon: %s", where, strerror(-worst));
}

static void send_request(const struct client *client, int fd, const char *text, uint64_t until)
{
    size_t len = strlen(text);
    while (len > 0) {
        if (!wait_for(fd, POLLOUT, until))
            die("%s: the daemon does not answer", client->mountpoint);
        ssize_t sent = send(fd, text, len, MSG_NOSIGNAL);
        if (sent < 0 && errno != EAGAIN && errno != EINTR)
            die("%s: the daemon hung up: %s", client->mountpoint, strerror(errno));
        if (sent > 0) {
            text += sent;
            len -= (size_t)sent;
        }
    }
}

/* Everything the daemon says until it hangs up. */
static char *receive_reply(const struct client *client, int fd, uint64_t until, size_t *out_len)
{
    size_t len = 0, size = 65536;
    char *text = malloc(size);
    for (;;) {
        if (len == size && size < REPLY_BYTES) {
            size *= 2;
            char *larger = realloc(text, size);
            if (larger == NULL)
                free(text);
            text = larger;
        }
        if (text == NULL || len == size)
            die("%s: the reply is too large", client->mountpoint);
        if (!wait_for(fd, POLLIN, until))
            die("%s: the daemon does not answer", client->mountpoint);
        ssize_t got = recv(fd, text + len, size - len, 0);
        if (got == 0)
            break;
        if (got < 0 && errno != EAGAIN && errno != EINTR)
            die("%s: the daemon hung up: %s", client->mountpoint, strerror(errno));
        if (got > 0)
            len += (size_t)got;
    }
    if (len == 0)
        die("%s: the daemon hung up without an answer", client->mountpoint);
    *out_len = len;
    return text;
}

/* Send cmd with args (stolen; may be NULL) and return the reply, which says ok. */
static json_t *ask(const struct client *client, const char *cmd, json_t *args, int timeout_ms)
{
    json_t *request =
        json_pack("{s:i, s:s, s:o*}", "protocol", CONTROL_PROTOCOL, "cmd", cmd, "args", args);
    char *text = request != NULL ? json_dumps(request, JSON_COMPACT) : NULL;
    json_decref(request);
    char *line = NULL;
    if (text == NULL || asprintf(&line, "%s\n", text) < 0)
        die("out of memory");
    free(text);

    uint64_t until = now_ms() + (uint64_t)timeout_ms;
    int fd = connect_daemon(client);
    send_request(client, fd, line, until);
    free(line);
    size_t len;
    text = receive_reply(client, fd, until, &len);
    (void)close(fd);

    json_error_t error;
    json_t *reply = json_loadb(text, len, 0, &error);
    free(text);
    if (!json_is_object(reply))
        die("%s: the daemon's reply makes no sense: %s", client->mountpoint, error.text);
    if (!json_is_true(json_object_get(reply, "ok"))) {
        const char *why = json_string_value(json_object_get(reply, "error"));
        die("%s: %s", client->mountpoint, why != NULL ? why : "refused");
    }
    return reply;
}

static void print_json(json_t *reply)
{
    if (json_dumpf(reply, stdout, JSON_INDENT(2)) != 0)
        die("cannot write the reply");
    (void)putchar('\n');
}

/* ---- tables for people ----------------------------------------------------------------------- */

/* 1234567 as "1,234,567". */
static const char *with_commas(uint64_t n, char out[32])
{
    char digits[24];
    int len = snprintf(digits, sizeof digits, "%" PRIu64, n);
    char *to = out;
    for (int i = 0; i < len; i++) {
        if (i > 0 && (len - i) % 3 == 0)
            *to++ = ',';
        *to++ = digits[i];
    }
    *to = '\0';
    return out;
}

static const char *as_size(uint64_t bytes, char out[32])
{
    static const char *const units[] = { "B", "KiB", "MiB", "GiB", "TiB", "PiB" };
    double value = (double)bytes;
    unsigned unit = 0;
    while (value >= 1024 && unit < 5) {
        value /= 1024;
        unit++;
    }
    (void)snprintf(out, 32, unit == 0 ? "%.0f %s" : "%.1f %s", value, units[unit]);
    return out;
}

static bool ends_with(const char *text, const char *end)
{
    size_t n = strlen(text), m = strlen(end);
    return n > m && strcmp(text + n - m, end) == 0;
}

static bool counts_pages(const char *part, const char *name)
{
    static const char *const names[] = { "pages", "limit",     "active",     "inactive",     "free",
                                         "dirty", "writeback", "read_pages", "written_pages" };
    if (strcmp(part, "cache") != 0)
        return false;
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        if (strcmp(names[i], name) == 0)
            return true;
    }
    return false;
}

/* One line: the name, the number, and what it comes to. The last word of a name is its unit. */
static void print_number(const char *part, const char *name, uint64_t n)
{
    char label[64], count[32], meaning[32] = "";
    (void)snprintf(label, sizeof label, "%s", name);
    if (ends_with(name, "_bytes")) {
        label[strlen(label) - strlen("_bytes")] = '\0';
        (void)as_size(n, meaning);
    } else if (ends_with(name, "_ns")) {
        memcpy(label + strlen(label) - strlen("_ns"), " ns", sizeof " ns");
        (void)snprintf(meaning, sizeof meaning, "%.3f s", (double)n / 1e9);
    } else if (counts_pages(part, name)) {
        (void)as_size(n * 4096, meaning);
    }
    for (char *c = label; *c != '\0'; c++)
        *c = *c == '_' ? ' ' : *c;
    (void)printf("  %-22s %20s", label, with_commas(n, count));
    (void)printf(meaning[0] != '\0' ? "   %12s\n" : "%s\n", meaning);
}

static void print_stats(json_t *reply)
{
    const char *part, *name;
    json_t *numbers, *n;
    json_object_foreach(json_object_get(reply, "stats"), part, numbers) {
        (void)printf("%s\n", part);
        json_object_foreach(numbers, name, n)
            print_number(part, name, (uint64_t)json_integer_value(n));
    }
}

static void print_ranges(const json_t *ranges)
{
    size_t i, k;
    json_t *range, *flag;
    json_array_foreach(ranges, i, range) {
        json_int_t index = json_integer_value(json_object_get(range, "index"));
        json_int_t count = json_integer_value(json_object_get(range, "count"));
        (void)printf("%12lld %12lld %10lld  ", (long long)index, (long long)(index + count - 1),
                     (long long)count);
        json_array_foreach(json_object_get(range, "flags"), k, flag)
            (void)printf(" %s", json_string_value(flag));
        (void)putchar('\n');
    }
}

/* ---- commands -------------------------------------------------------------------------------- */

static void show(const struct client *client, json_t *reply, void (*table)(json_t *reply))
{
    if (client->json)
        print_json(reply);
    else if (table != NULL)
        table(reply);
    json_decref(reply);
}

static void do_stats(const struct client *client, char *const *args)
{
    (void)args;
    show(client, ask(client, "stats", NULL, ANSWER_MS), print_stats);
}

static void print_version(json_t *reply)
{
    char size[32];
    const char *label = json_string_value(json_object_get(reply, "label"));
    (void)printf("foliofs %s, process %lld\n", json_string_value(json_object_get(reply, "version")),
                 (long long)json_integer_value(json_object_get(reply, "pid")));
    (void)printf(
        "volume %s, label \"%s\", capacity %s\n", json_string_value(json_object_get(reply, "uuid")),
        label != NULL ? label : "?",
        as_size((uint64_t)json_integer_value(json_object_get(reply, "capacity_bytes")), size));
}

static void do_version(const struct client *client, char *const *args)
{
    (void)args;
    show(client, ask(client, "version", NULL, ANSWER_MS), print_version);
}

/* First the kernel, which may hold written data in front of the daemon, then the daemon. */
static void do_sync(const struct client *client, char *const *args)
{
    (void)args;
    struct look look;
    json_decref(ask(client, "version", NULL, ANSWER_MS)); /* it is there and lets us */
    int err = look_at(client->mount.mountpoint, LOOK_SYNC, SYNC_MS, &look);
    if (err != 0)
        die("%s: syncfs: %s", client->mountpoint, strerror(-err));
    show(client, ask(client, "sync", NULL, SYNC_MS), NULL);
}

static void print_drop(json_t *reply)
{
    char pages[32], size[32], inodes[32];
    uint64_t n = (uint64_t)json_integer_value(json_object_get(reply, "pages"));
    (void)printf(
        "dropped %s pages (%s) and %s inodes\n", with_commas(n, pages), as_size(n * 4096, size),
        with_commas((uint64_t)json_integer_value(json_object_get(reply, "inodes")), inodes));
}

static void do_drop(const struct client *client, char *const *args)
{
    (void)args;
    show(client, ask(client, "drop", NULL, SYNC_MS), print_drop);
}

static void print_set(json_t *reply)
{
    (void)printf("%s=%s\n", json_string_value(json_object_get(reply, "name")),
                 json_string_value(json_object_get(reply, "value")));
}

/* The number of a file on the mount. */
static json_int_t find_file(const struct client *client, const char *file)
{
    struct look look;
    int err = look_at(file, LOOK_INO, ANSWER_MS, &look);
    if (err == -ETIMEDOUT)
        die("%s: the daemon does not answer", file);
    if (err != 0)
        die("%s: %s", file, strerror(-err));
    if (look.dev != client->mount.dev)
        die("%s: not on the mount %s", file, client->mountpoint);
    return (json_int_t)look.ino;
}

/* A policy's file as the daemon, which is in another directory, finds it; free it. */
static char *absolute_policy(const char *value)
{
    char *cwd = NULL, *absolute = NULL;
    if (value[0] == '/' || memchr(value, '/', strcspn(value, ":")) == NULL)
        absolute = strdup(value);
    else if ((cwd = getcwd(NULL, 0)) == NULL)
        die("the working directory: %s", strerror(errno));
    else if (asprintf(&absolute, "%s/%s", cwd, value) < 0)
        absolute = NULL;
    if (absolute == NULL)
        die("out of memory");
    free(cwd);
    return absolute;
}

static void do_set(const struct client *client, char *const *args)
{
    const char *arg = args[0], *equals = strchr(arg, '=') + 1;
    char *value = strncmp(arg, "readahead=", strlen("readahead=")) == 0 ? absolute_policy(equals)
                                                                        : strdup(equals);
    json_t *request =
        json_pack("{s:s%, s:s?}", "name", arg, (size_t)(equals - 1 - arg), "value", value);
    if (request == NULL)
        die_usage("set: \"%s\" is not UTF-8", arg);
    if (args[1] != NULL)
        (void)json_object_set_new(request, "ino", json_integer(find_file(client, args[1])));
    free(value);
    show(client, ask(client, "set", request, ANSWER_MS), print_set);
}

static void print_rule(const json_t *rule)
{
    static const char *const what[] = { "reads", "writes", "commits" };
    char of[32] = "", count[32] = "-", ino[32] = "-";
    for (size_t i = 0; i < sizeof what / sizeof what[0]; i++) {
        if (json_is_true(json_object_get(rule, what[i])))
            (void)snprintf(of + strlen(of), sizeof of - strlen(of), "%s%s",
                           of[0] != '\0' ? "," : "", what[i]);
    }
    json_int_t n = json_integer_value(json_object_get(rule, "count"));
    if (n != 0)
        (void)snprintf(count, sizeof count, "%lld", (long long)n);
    n = json_integer_value(json_object_get(rule, "ino"));
    if (n != 0)
        (void)snprintf(ino, sizeof ino, "%lld", (long long)n);
    (void)printf("%-7s %-21s %10s %12lld %8lld %8s %10lld %10lld\n",
                 json_string_value(json_object_get(rule, "kind")), of, ino,
                 (long long)json_integer_value(json_object_get(rule, "per_million")),
                 (long long)json_integer_value(json_object_get(rule, "after")), count,
                 (long long)json_integer_value(json_object_get(rule, "seen")),
                 (long long)json_integer_value(json_object_get(rule, "hit")));
}

static void print_rules(json_t *reply)
{
    size_t i;
    json_t *rule, *rules = json_object_get(reply, "rules");
    if (json_array_size(rules) == 0)
        (void)puts("no errors are injected");
    else
        (void)printf("%-7s %-21s %10s %12s %8s %8s %10s %10s\n", "kind", "of", "inode",
                     "per million", "after", "count", "seen", "hit");
    json_array_foreach(rules, i, rule)
        print_rule(rule);
}

static void do_inject(const struct client *client, char *const *files)
{
    json_t *args = client->inject != NULL ? json_incref(client->inject) : json_object();
    bool rule = json_object_get(args, "kind") != NULL;
    if (json_object_get(args, "clear") != NULL && json_object_size(args) > 1)
        die_usage("inject: --clear goes alone");
    if (!rule && json_object_size(args) > 0 && json_object_get(args, "clear") == NULL)
        die_usage("inject: which kind: --eio, --enospc, --enomem, --lost, --torn?");
    if (!rule && files[0] != NULL)
        die_usage("inject: FILE is for an error of a kind");
    if (files[0] != NULL)
        (void)json_object_set_new(args, "ino", json_integer(find_file(client, files[0])));
    show(client, ask(client, "inject", args, ANSWER_MS), print_rules);
}

/* One reply has a bounded number of ranges; the tool puts them together for --json. */
static void do_pages(const struct client *client, char *const *files)
{
    json_int_t ino = find_file(client, files[0]);
    json_t *all = json_array();
    json_int_t index = 0;
    for (bool first = true;; first = false) {
        json_t *args = json_pack("{s:I, s:I}", "ino", ino, "index", index);
        json_t *reply = ask(client, "pages", args, ANSWER_MS);
        json_t *ranges = json_object_get(reply, "ranges");
        json_t *next = json_incref(json_object_get(reply, "next"));
        if (first && !client->json)
            (void)printf("%12s %12s %10s   state\n", "first page", "last page", "pages");
        if (client->json)
            (void)json_array_extend(all, ranges);
        else
            print_ranges(ranges);
        bool more = json_is_integer(next);
        index = json_integer_value(next);
        json_decref(next);
        if (!more) {
            (void)json_object_set(reply, "ranges", all);
            show(client, reply, NULL);
            break;
        }
        json_decref(reply);
    }
    json_decref(all);
}

static const struct command {
    const char *name;
    const char *arg; /* what it wants after its name; NULL: nothing, or it need not be there */
    int most;        /* arguments at most */
    void (*run)(const struct client *client, char *const *args);
} commands[] = {
    { "stats", NULL, 0, do_stats },     { "pages", "FILE", 1, do_pages },
    { "sync", NULL, 0, do_sync },       { "drop", NULL, 0, do_drop },
    { "set", "NAME=VALUE", 2, do_set }, { "inject", NULL, 1, do_inject },
    { "version", NULL, 0, do_version },
};

static void check_argument(const struct command *command, const char *arg)
{
    if (arg == NULL && command->arg != NULL)
        die_usage("%s wants %s", command->name, command->arg);
    if (command->run == do_set && arg != NULL && (arg[0] == '=' || strchr(arg, '=') == NULL))
        die_usage("set wants NAME=VALUE, not \"%s\"", arg);
}

static const struct command *find_command(const char *name)
{
    for (size_t i = 0; i < sizeof commands / sizeof commands[0]; i++) {
        if (strcmp(commands[i].name, name) == 0)
            return &commands[i];
    }
    die_usage("unknown command \"%s\"", name);
}

enum { OPTION_KIND = 256, OPTION_FLAG, OPTION_NUMBER };

static const struct option long_options[] = {
    { "json", no_argument, NULL, 'j' },
    { "help", no_argument, NULL, 'h' },
    { "version", no_argument, NULL, 'V' },
    { "eio", no_argument, NULL, OPTION_KIND },
    { "enospc", no_argument, NULL, OPTION_KIND },
    { "enomem", no_argument, NULL, OPTION_KIND },
    { "lost", no_argument, NULL, OPTION_KIND },
    { "torn", no_argument, NULL, OPTION_KIND },
    { "clear", no_argument, NULL, OPTION_FLAG },
    { "reads", no_argument, NULL, OPTION_FLAG },
    { "writes", no_argument, NULL, OPTION_FLAG },
    { "commits", no_argument, NULL, OPTION_FLAG },
    { "per-million", required_argument, NULL, OPTION_NUMBER },
    { "count", required_argument, NULL, OPTION_NUMBER },
    { "after", required_argument, NULL, OPTION_NUMBER },
    { NULL, 0, NULL, 0 },
};

static json_t *parse_number(const char *name, const char *text)
{
    char *end;
    errno = 0;
    long long n = strtoll(text, &end, 10);
    if (errno != 0 || text[0] < '0' || text[0] > '9' || *end != '\0')
        die_usage("--%s=%s: not a number", name, text);
    return json_integer(n);
}

/* An option of inject becomes what the daemon is asked for. */
static void inject_option(struct client *client, int c, const char *name)
{
    char key[16];
    (void)snprintf(key, sizeof key, "%s", c == OPTION_KIND ? "kind" : name);
    for (char *at = key; *at != '\0'; at++)
        *at = *at == '-' ? '_' : *at;
    if (client->inject == NULL)
        client->inject = json_object();
    if (json_object_get(client->inject, key) != NULL)
        die_usage("--%s: %s", name, c == OPTION_KIND ? "one kind at a time" : "given twice");
    json_t *value = c == OPTION_KIND   ? json_string(name)
                    : c == OPTION_FLAG ? json_true()
                                       : parse_number(name, optarg);
    (void)json_object_set_new(client->inject, key, value);
}

#define LETTERS "jhV" /* options */

static void parse_options(struct client *client, int argc, char **argv)
{
    int c, which;
    opterr = 0;
    while ((c = getopt_long(argc, argv, LETTERS, long_options, &which)) != -1) {
        if (c == 'h' || c == 'V') {
            (void)fputs(c == 'h' ? usage_text : "foliofsctl " FOLIO_VERSION "\n", stdout);
            exit(process_close_output("foliofsctl") ? 0 : 1);
        }
        if (c == '?')
            die_usage("%s: no such option, or one with a value too few or too many",
                      process_bad_option(argv, LETTERS));
        if (c == 'j')
            client->json = true;
        else
            inject_option(client, c, long_options[which].name);
    }
}

int main(int argc, char **argv)
{
    static struct client client;
    if (!process_start())
        return EXIT_FAILURE;
    parse_options(&client, argc, argv);
    char **rest = argv + optind;
    int nr = argc - optind;
    if (nr < 2)
        die_usage(nr == 0 ? "MOUNTPOINT and COMMAND are missing" : "COMMAND is missing");
    const struct command *command = find_command(rest[1]);
    check_argument(command, rest[2]); /* argv ends with a NULL */
    if (nr > 2 + command->most)
        die_usage("too many arguments: \"%s\"", rest[2 + command->most]);
    if (client.inject != NULL && command->run != do_inject)
        die_usage("%s has no such option: it is for inject", command->name);
    find_mount(&client, rest[0]);
    command->run(&client, rest + 2);
    return process_close_output("foliofsctl") ? 0 : 1;
}
