/* attach_hostile: a client of the attach socket that keeps to no rule (attach_proto.h), on a mount of
 * ours, which is the working directory. After each attack an honest client (libfolio) must find
 * everything right, and the daemon must hold nothing of the attacker. attach_hostile NAME: that attack alone.
 * "slow" and "deaf" are what the daemon meets at its end, with mount_attach.sh.
 *
 * FOLIO_OTHER, FOLIO_OTHER_DAEMON: another FUSE mount, and its process; without them no attack needs them.
 */
#define _GNU_SOURCE
#include "attach_ops.h"

#include <netinet/in.h>
#include <poll.h>
#include <pthread.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/un.h>

#include "cache/attach_proto.h"
#include "cache/folio.h"

#ifndef MREMAP_MAYMOVE
#define MREMAP_MAYMOVE 1
#endif
#define PAGES 64

static struct sockaddr_un place = { .sun_family = AF_UNIX };

static void find_socket(void)
{
    struct stat st;
    unsigned uid = geteuid();
    if (stat(".", &st) != 0)
        give_up("stat");
    unsigned major = major(st.st_dev), minor = minor(st.st_dev);
    (void)snprintf(place.sun_path, sizeof place.sun_path, ATTACH_ROOT_DIRECTORY "/%u:%u", major,
                   minor);
    if (access(place.sun_path, F_OK) != 0)
        (void)snprintf(place.sun_path, sizeof place.sun_path, "/run/user/%u/foliofs/%u:%u.attach",
                       uid, major, minor);
    if (access(place.sun_path, F_OK) != 0)
        (void)snprintf(place.sun_path, sizeof place.sun_path, "/tmp/foliofs-%u/%u:%u.attach", uid,
                       major, minor);
}

static int dial(void)
{
    int s = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
    if (s < 0 || connect(s, (struct sockaddr *)&place, sizeof place) != 0)
        give_up("connect");
    return s;
}

static int send_bytes(int s, const void *bytes, size_t n, const int *fds, unsigned nr)
{
    char control[CMSG_SPACE(200 * sizeof(int))] = { 0 };
    struct iovec iov = { (void *)(uintptr_t)bytes, n };
    struct msghdr msg = { .msg_iov = &iov, .msg_iovlen = 1 };
    if (nr > 0) {
        msg.msg_control = control;
        msg.msg_controllen = CMSG_SPACE(nr * sizeof(int));
        struct cmsghdr *c = CMSG_FIRSTHDR(&msg);
        c->cmsg_level = SOL_SOCKET;
        c->cmsg_type = SCM_RIGHTS;
        c->cmsg_len = CMSG_LEN(nr * sizeof(int));
        memcpy(CMSG_DATA(c), fds, nr * sizeof(int));
    }
    return sendmsg(s, &msg, MSG_NOSIGNAL) < 0 ? -errno : 0;
}

/* Returns what the daemon says, or -ECONNRESET; *fd: what it sent along, or -1. */
static int receive_answer(int s, struct attach_reply *reply, int *fd)
{
    char control[CMSG_SPACE(sizeof(int))] = { 0 };
    struct iovec iov = { reply, sizeof *reply };
    struct msghdr msg = {
        .msg_iov = &iov, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control
    };
    int got = -1;
    ssize_t n = recvmsg(s, &msg, MSG_CMSG_CLOEXEC);
    struct cmsghdr *c = n > 0 ? CMSG_FIRSTHDR(&msg) : NULL;
    if (c != NULL)
        memcpy(&got, CMSG_DATA(c), sizeof got);
    if (fd != NULL)
        *fd = got;
    else if (got >= 0)
        close(got);
    return n < (ssize_t)sizeof *reply ? -ECONNRESET : reply->error;
}

static int ask(int s, struct attach_request rq, int send, struct attach_reply *reply, int *fd)
{
    struct attach_reply mine;
    rq.version = ATTACH_VERSION;
    int err = send_bytes(s, &rq, sizeof rq, &send, send >= 0);
    return err != 0 ? -ECONNRESET : receive_answer(s, reply != NULL ? reply : &mine, fd);
}

static int new_uffd(uint64_t features)
{
    struct uffdio_api api = { .api = UFFD_API, .features = features };
    int fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);
    if (fd < 0 || ioctl(fd, UFFDIO_API, &api) != 0)
        give_up("userfaultfd");
    return fd;
}

static int greet_for_bell(int *uffd, int *bell)
{
    int s = dial();
    *uffd = new_uffd(ATTACH_UFFD_FEATURES);
    CHECK_EQ(ask(s, (struct attach_request){ .op = ATTACH_HELLO }, *uffd, NULL, bell), 0);
    return s;
}

static int greet(int *uffd)
{
    return greet_for_bell(uffd, NULL);
}

static int open_pages(int s, int file, uint64_t *id)
{
    struct attach_reply reply = { 0 };
    int memfd;
    int err = ask(s,
                  (struct attach_request){ .op = ATTACH_OPEN,
                                           .prot = PROT_READ | PROT_WRITE,
                                           .flags = MAP_SHARED,
                                           .length = PAGES * PAGE },
                  file, &reply, &memfd);
    if (err != 0) {
        complain("OPEN: %s", strerrorname_np(-err));
        return -1;
    }
    *id = reply.id;
    return memfd;
}

/* As libfolio does it.   Returns the address. */
static char *map_pages(int s, int uffd, int memfd, uint64_t id)
{
    char *p = mmap(NULL, PAGES * PAGE, PROT_NONE, MAP_SHARED | MAP_NORESERVE, memfd, 0);
    struct uffdio_register area = { .range = { (uintptr_t)p, PAGES * PAGE },
                                    .mode = UFFDIO_REGISTER_MODE_MISSING |
                                            UFFDIO_REGISTER_MODE_MINOR | UFFDIO_REGISTER_MODE_WP };
    if (p == MAP_FAILED || ioctl(uffd, UFFDIO_REGISTER, &area) != 0)
        give_up("register");
    CHECK_EQ(ask(s,
                 (struct attach_request){
                     .op = ATTACH_MAP, .id = id, .addr = (uintptr_t)p, .length = PAGES * PAGE },
                 -1, NULL, NULL),
             0);
    (void)mprotect(p, PAGES * PAGE, PROT_READ | PROT_WRITE);
    return p;
}

/* An honest client, and the mount, beside it: is all well? */
static void all_is_well(const char *after)
{
    static unsigned round;
    int fd = open("honest", O_RDWR);
    double begun = seconds();
    char *p = folio_mmap(NULL, 8 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (p == MAP_FAILED) {
        complain("after %s: folio_mmap: %s", after, strerrorname_np(errno));
        close(fd);
        return;
    }
    round++;
    for (size_t i = 0; i < 8; i++) {
        CHECK_EQ(store(p + i * PAGE, (char)round), 0);
        CHECK_EQ(byte_at(fd, (off_t)(i * PAGE)), (unsigned char)round);
    }
    CHECK_EQ(fsync(fd), 0);
    CHECK_EQ(folio_munmap(p, 8 * PAGE), 0);
    close(fd);
    if (seconds() - begun > 20)
        complain("after %s: an honest client takes %.1f s", after, seconds() - begun);
}

/* ---- packets -------------------------------------------------------------------------------------------- */

static void attack_garbage(void)
{
    unsigned char bytes[4000];
    unsigned x = 12345;
    for (int round = 0; round < 200; round++) {
        int s = dial();
        for (size_t i = 0; i < sizeof bytes; i++)
            bytes[i] = (unsigned char)((x = x * 1103515245 + 12345) >> 16);
        (void)send_bytes(
            s, bytes, round % 3 == 0 ? sizeof(struct attach_request) : x % sizeof bytes, NULL, 0);
        close(s);
    }
    int uffd, s = greet(&uffd);
    for (int round = 0; round < 3000; round++) { /* the right form, any content */
        struct attach_request rq;
        for (size_t i = 0; i < sizeof rq; i++)
            ((unsigned char *)&rq)[i] = (unsigned char)((x = x * 1103515245 + 12345) >> 16);
        rq.op = 1 + x / 7 % 9;
        if (round % 2) {
            rq.addr &= ~(PAGE - 1) & ((1ull << 47) - 1);
            rq.length = (rq.length & ~(PAGE - 1)) >> (x / 3 % 64);
            rq.length &= ~(PAGE - 1);
            rq.offset &= ~(PAGE - 1);
        }
        if (ask(s, rq, -1, NULL, NULL) == -ECONNRESET) {
            complain("round %d, op %u: it hung up", round, rq.op);
            break;
        }
    }
    close(s);
    close(uffd);
}

static void attack_descriptors(int file)
{
    int uffd, s = greet(&uffd), null = open("/dev/null", O_RDWR), pair[2];
    struct attach_request hello = { .op = ATTACH_HELLO, .version = ATTACH_VERSION };
    struct attach_request rq = { .op = ATTACH_OPEN,
                                 .version = ATTACH_VERSION,
                                 .flags = MAP_SHARED,
                                 .prot = PROT_READ,
                                 .length = PAGE };
    (void)!pipe2(pair, O_CLOEXEC);
    int wrong[] = { null, pair[0], pair[1], s, uffd };
    for (unsigned i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        int other = dial();
        CHECK(ask(s, rq, wrong[i], NULL, NULL) < 0);
        if (wrong[i] != uffd)
            CHECK_EQ(ask(other, hello, wrong[i], NULL, NULL), -EINVAL);
        CHECK(ask(other, rq, file, NULL, NULL) == 0); /* before HELLO it may ask, */
        CHECK(ask(other, (struct attach_request){ .op = ATTACH_MAP, .id = 1, .length = PAGE }, -1,
                  NULL, NULL) < 0); /* but not map */
        close(other);
    }
    CHECK_EQ(ask(s, hello, uffd, NULL, NULL), -EINVAL); /* twice */
    int crowd[100];
    for (int i = 0; i < 100; i++)
        crowd[i] = null;
    for (int i = 0; i < 50; i++) {
        (void)send_bytes(s, &rq, sizeof rq, crowd, 100);
        struct attach_reply reply = { 0 };
        (void)receive_answer(s, &reply, NULL);
    }
    int old = new_uffd(UFFD_FEATURE_EVENT_FORK | ATTACH_UFFD_FEATURES), other = dial();
    CHECK_EQ(ask(other, hello, old, NULL, NULL), -EINVAL); /* its events would be descriptors */
    close(other);
    close(old);
    for (int i = 0; i < 2; i++)
        close(pair[i]);
    close(null);
    close(s);
    close(uffd);
}

/* Well-formed, and wrong. */
static void attack_requests(int file)
{
    int uffd, s = greet(&uffd);
    const struct {
        int fd, err;
        int prot;
        off_t offset;
    } opens[] = {
        { open("target", O_WRONLY), -EACCES, PROT_READ, 0 },
        { open("target", O_RDONLY), -EACCES, PROT_READ | PROT_WRITE, 0 },
        { open("target", O_PATH), -EBADF, PROT_READ, 0 },
        { open(".", O_RDONLY), -ENODEV, PROT_READ, 0 },
        /* A regular file, elsewhere: its number may be one of ours, too. */
        { (int)memfd_create("target", 0), -EOPNOTSUPP, PROT_READ, 0 },
        { file, -EOVERFLOW, PROT_READ, INT64_MAX & ~(off_t)(PAGE - 1) },
    };
    for (unsigned i = 0; i < sizeof opens / sizeof *opens; i++) {
        struct attach_request rq = { .op = ATTACH_OPEN,
                                     .prot = opens[i].prot,
                                     .flags = MAP_SHARED,
                                     .offset = (uint64_t)opens[i].offset,
                                     .length = PAGE };
        CHECK_EQ(ask(s, rq, opens[i].fd, NULL, NULL), opens[i].err);
        if (opens[i].fd != file)
            close(opens[i].fd);
    }
    const struct {
        uint64_t addr, length, offset;
    } ranges[] = {
        { 1ull << 40, 0, 0 },
        { (1ull << 40) + 1, PAGE, 0 },
        { 1ull << 40, PAGE + 1, 0 },
        { -PAGE, PAGE, 0 },
        { 1ull << 40, -PAGE, 0 },
        { (1ull << 56) - PAGE, 2 * PAGE, 0 },
        { 1ull << 40, PAGE, 1 },
        { 1ull << 40, PAGE, (uint64_t)1 << 44 },
        { 1ull << 40, 2 * PAGE, ((uint64_t)1 << 44) - PAGE },
    };
    for (unsigned i = 0; i < sizeof ranges / sizeof *ranges; i++) {
        uint64_t id = 0;
        close(open_pages(s, file, &id)); /* each can be mapped once, be it in vain */
        struct attach_request rq = { .op = ATTACH_MAP,
                                     .id = id,
                                     .addr = ranges[i].addr,
                                     .length = ranges[i].length,
                                     .offset = ranges[i].offset };
        CHECK_EQ(ask(s, rq, -1, NULL, NULL), -EINVAL);
        CHECK_EQ(ask(s, rq, -1, NULL, NULL), -EINVAL);
        if (ranges[i].offset != 0)
            continue;
        for (rq.op = ATTACH_UNMAP; rq.op <= ATTACH_WRITE; rq.op++)
            CHECK_EQ(ask(s, rq, -1, NULL, NULL), -EINVAL);
    }
    CHECK_EQ(ask(s, (struct attach_request){ .op = ATTACH_DROP, .id = 1 }, -1, NULL, NULL),
             -EINVAL);
    close(s);
    close(uffd);
}

/* More pages than an answer has room for. */
static void attack_mincore(void)
{
    enum { MANY = ATTACH_MINCORE_PAGES + PAGES };
    int file = open("many", O_RDWR | O_CREAT, 0644), uffd, s = greet(&uffd), memfd;
    CHECK_EQ(ftruncate(file, MANY * (off_t)PAGE), 0);
    struct attach_reply reply = { 0 };
    struct attach_request open_rq = {
        .op = ATTACH_OPEN, .prot = PROT_READ, .flags = MAP_SHARED, .length = MANY * PAGE
    };
    CHECK_EQ(ask(s, open_rq, file, &reply, &memfd), 0);
    struct attach_request rq = {
        .op = ATTACH_MAP, .id = reply.id, .addr = 1ull << 40, .length = MANY * PAGE
    };
    CHECK_EQ(ask(s, rq, -1, NULL, NULL), 0);
    rq.op = ATTACH_MINCORE;
    for (rq.length = (ATTACH_MINCORE_PAGES + 1) * PAGE; rq.length <= MANY * PAGE; rq.length += PAGE)
        CHECK_EQ(ask(s, rq, -1, NULL, NULL), -EINVAL);
    CHECK_EQ(unlink("many"), 0);
    close(memfd);
    close(file);
    close(s);
    close(uffd);
}

static void attack_flood(int file)
{
    int uffd, s = greet(&uffd);
    struct attach_request rq = { .op = ATTACH_OPEN,
                                 .version = ATTACH_VERSION,
                                 .flags = MAP_SHARED,
                                 .prot = PROT_READ,
                                 .length = PAGE };
    int errors = 0;
    for (int i = 0; i < 300; i++)
        errors += ask(s, rq, file, NULL, NULL) < 0;
    CHECK(errors >= 200);
    close(s);
    close(uffd);
    for (int i = 0; i < 100; i++) { /* and never reads an answer */
        s = dial();
        for (int j = 0; j < 5; j++)
            (void)send_bytes(s, &rq, sizeof rq, &file, 1);
        close(s);
    }
}

/* ---- the memfd ------------------------------------------------------------------------------------------- */

static void *read_file(void *arg)
{
    _Atomic bool *stop = arg;
    static char buf[PAGES * 4096];
    int fd = open("target", O_RDWR);
    while (!*stop) {
        /* While pages vanish the kernel may find none to copy: an error, and never less than all. */
        ssize_t n = pread(fd, buf, sizeof buf, 0);
        if (n != (ssize_t)sizeof buf && (n >= 0 || errno != EIO))
            complain("a read gave %zd, %s", n, strerrorname_np(errno));
        if (pwrite(fd, "w", 1, 5 * PAGE) != 1)
            complain("write: %s", strerrorname_np(errno));
        if (fsync(fd) != 0)
            complain("fsync: %s", strerrorname_np(errno));
    }
    close(fd);
    return NULL;
}

static void attack_memfd(int file)
{
    _Atomic bool stop = false;
    uint64_t id = 0;
    int uffd, s = greet(&uffd), memfd = open_pages(s, file, &id);
    char *p = map_pages(s, uffd, memfd, id);
    pthread_t t;
    CHECK(fcntl(memfd, F_ADD_SEALS, F_SEAL_FUTURE_WRITE) == -1);
    CHECK(fcntl(memfd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW) == -1);
    if (pthread_create(&t, NULL, read_file, &stop) != 0)
        give_up("pthread_create");
    for (int i = 0; i < 300; i++) {
        (void)store(p + (size_t)i % PAGES * PAGE, (char)i);
        (void)ftruncate(memfd, (off_t)((size_t)i % 5 * PAGE));
        (void)load(p + (size_t)i % PAGES * PAGE);
        (void)ftruncate(memfd, i % 2 ? PAGES * (off_t)PAGE : 0);
        (void)fallocate(memfd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, 8 * PAGE);
        (void)!pwrite(memfd, "x", 1, 1000 * PAGE);
    }
    stop = true;
    pthread_join(t, NULL);
    (void)munmap(p, PAGES * PAGE);
    close(memfd);
    close(s);
    close(uffd);
    /* The daemon's own view is whole again: what is written is read. */
    static char want[PAGES * 4096], got[PAGES * 4096];
    memset(want, 'q', sizeof want);
    CHECK_EQ(pwrite(file, want, sizeof want, 0), sizeof want);
    CHECK_EQ(pread(file, got, sizeof got, 0), sizeof got);
    CHECK(memcmp(want, got, sizeof want) == 0);
    CHECK_EQ(fsync(file), 0);
    control("drop");
    CHECK_EQ(pread(file, got, sizeof got, 0), sizeof got);
    CHECK(memcmp(want, got, sizeof want) == 0);
}

/* A bell that nobody reads, and that is to be written to: pages are written back and taken out as ever. */
static void attack_bell(int file)
{
    uint64_t id = 0;
    int bell, null = open("/dev/null", O_RDWR), uffd, s = greet_for_bell(&uffd, &bell);
    int memfd = open_pages(s, file, &id);
    char *p = map_pages(s, uffd, memfd, id), byte;
    CHECK(bell >= 0);
    CHECK_EQ(fcntl(bell, F_SETFL, 0), 0);
    CHECK(send(bell, "x", 1, MSG_NOSIGNAL) == -1 && errno == EPIPE);
    CHECK_EQ(send_bytes(bell, "x", 1, &null, 1), -EPIPE);
    for (int i = 0; i < 200; i++) {
        CHECK_EQ(store(p + (size_t)i % PAGES * PAGE, (char)i), 0);
        CHECK_EQ(fsync(file), 0);
    }
    CHECK_EQ(recv(bell, &byte, 1, MSG_DONTWAIT), 1);
    control("drop");
    CHECK_EQ(store(p, 'b'), 0);
    CHECK_EQ(shutdown(bell, SHUT_RDWR), 0);
    CHECK_EQ(fsync(file), 0);
    close(bell);
    CHECK_EQ(store(p, 'c'), 0);
    CHECK_EQ(fsync(file), 0);
    CHECK_EQ(byte_at(file, 0), 'c');
    (void)munmap(p, PAGES * PAGE);
    close(memfd);
    close(s);
    close(uffd);
    close(null);
}

/* Every other page of a large file, of a memfd that was cut to nothing. */
static void attack_patches(void)
{
    enum { HUGE_PAGES = 70000 };
    uint64_t id = 0;
    int file = open("large", O_RDWR | O_CREAT, 0644);
    CHECK_EQ(ftruncate(file, (off_t)HUGE_PAGES * 2 * (off_t)PAGE), 0);
    int uffd, s = greet(&uffd), memfd = open_pages(s, file, &id);
    int ok = 0;
    for (off_t i = 0; i < HUGE_PAGES; i++) {
        if (i % 512 == 0)
            (void)ftruncate(memfd, 0);
        ok += byte_at(file, i * 2 * (off_t)PAGE) == 0;
    }
    CHECK_EQ(ok, HUGE_PAGES);
    close(memfd);
    close(s);
    close(uffd);
    close(file);
    CHECK_EQ(unlink("large"), 0);
}

/* Who may only read must not write, whatever he does with the descriptor. */
static void reader(int in, int out)
{
    struct attach_reply reply = { 0 };
    char path[64];
    int memfd = -1;
    (void)in;
    (void)out;
    if (geteuid() == 0 && (setgid(65534) != 0 || setuid(65534) != 0))
        give_up("setuid");
    int file = open("readable", O_RDONLY);
    if (file < 0)
        give_up("open");
    int s = dial();
    struct attach_request rq = {
        .op = ATTACH_OPEN, .flags = MAP_SHARED, .prot = PROT_READ, .length = PAGE
    };
    CHECK_EQ(ask(s, rq, file, &reply, &memfd), 0);
    CHECK_EQ(reply.flags, ATTACH_PRIVATE);
    CHECK(mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, memfd, 0) == MAP_FAILED);
    CHECK(ftruncate(memfd, 0) != 0);
    (void)snprintf(path, sizeof path, "/proc/self/fd/%d", memfd);
    CHECK(open(path, O_RDWR) == -1);
    CHECK(open(path, O_RDONLY | O_TRUNC) == -1);
    CHECK(fchmod(memfd, 0666) == -1);
    rq.prot = PROT_READ | PROT_WRITE;
    CHECK_EQ(ask(s, rq, file, NULL, NULL), -EACCES);
}

static void attack_read_only(void)
{
    int fd = make_file("readable", 2);
    (void)fchmod(fd, 0644);
    if (geteuid() == 0) { /* else it is the daemon's own user, who may do all this anyway */
        struct child c = start_child(reader);
        end_child(&c);
    }
    CHECK_EQ(byte_at(fd, 0), 1);
    close(fd);
}

/* ---- address spaces that do not stand still --------------------------------------------------------------- */

static struct {
    char *p;
    _Atomic bool stop;
} moving;

static void *mover(void *arg)
{
    char *at = moving.p, *other = arg;
    while (!moving.stop) {
        if (mremap(at, PAGES * PAGE, PAGES * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, other) ==
            MAP_FAILED)
            give_up("mremap");
        char *t = at;
        at = other;
        other = t;
    }
    return NULL;
}

/* Moved without end, while it is mapped anew, unmapped, advised, stored to and written back. */
static void attack_moves(int file)
{
    uint64_t id = 0;
    int uffd, s = greet(&uffd), memfd = open_pages(s, file, &id);
    char *other = mmap(NULL, PAGES * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    moving.p = map_pages(s, uffd, memfd, id);
    moving.stop = false;
    pthread_t t;
    if (pthread_create(&t, NULL, mover, other) != 0)
        give_up("pthread_create");
    for (int i = 0; i < 400; i++) {
        struct attach_request map = {
            .op = ATTACH_MAP, .addr = (uintptr_t)moving.p, .length = PAGES * PAGE, .flags = i % 2
        };
        int fd = open_pages(s, file, &map.id);
        int err = ask(s, map, -1, NULL, NULL);
        CHECK(err == 0 || err == -EEXIST); /* it has moved there again */
        if (i % 8 == 0)
            (void)ask(s,
                      (struct attach_request){ .op = ATTACH_UNMAP,
                                               .addr = (uintptr_t)other,
                                               .length = PAGES * PAGE / 2 },
                      -1, NULL, NULL);
        close(fd);
        if (pwrite(file, "m", 1, i % PAGES * (off_t)PAGE) != 1 || fsync(file) != 0)
            complain("write: %s", strerrorname_np(errno));
    }
    moving.stop = true;
    pthread_join(t, NULL);
    close(memfd);
    close(s);
    close(uffd);
    (void)munmap(moving.p, PAGES * PAGE);
    (void)munmap(other, PAGES * PAGE);
}

/* Two mappings that change places by mremap(2) while threads add one to words of theirs: whichever page an
 * addition meets, the file has it in the end. */
static struct {
    char *places[2], *spare;
    int files[2];
    pthread_barrier_t
        begin; /* what is mapped meanwhile, a stack say, must not lie where they move to */
    _Atomic bool stop;
    _Atomic uint64_t added;
} swapped;

static bool add_one(uint64_t *at)
{
    bool done = false;
    if (sigsetjmp(bus_exit, 1) == 0) {
        bus_awaited = 1;
        (void)__atomic_fetch_add(at, 1, __ATOMIC_SEQ_CST);
        done = true;
    }
    bus_awaited = 0;
    return done;
}

static void *adder(void *arg)
{
    uint64_t seed = (uint64_t)(uintptr_t)arg, n = 0;
    (void)pthread_barrier_wait(&swapped.begin);
    while (!swapped.stop) {
        seed = seed * 6364136223846793005u + 1442695040888963407u;
        size_t page = (seed >> 40) % PAGES;
        n += add_one((uint64_t *)(swapped.places[seed >> 63] + page * PAGE));
    }
    swapped.added += n;
    return NULL;
}

static void *swapper(void *arg)
{
    const size_t size = PAGES * PAGE;
    char *const way[] = { swapped.places[0], swapped.spare, swapped.places[1],
                          swapped.places[0], swapped.spare, swapped.places[1] };
    (void)arg;
    (void)pthread_barrier_wait(&swapped.begin);
    while (!swapped.stop)
        for (int i = 0; i < 6; i += 2)
            if (mremap(way[i], size, size, MREMAP_MAYMOVE | MREMAP_FIXED, way[i + 1]) == MAP_FAILED)
                give_up("mremap");
    if (mmap(swapped.spare, size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) ==
        MAP_FAILED)
        give_up("mmap");
    return NULL;
}

static void *syncer(void *arg)
{
    (void)arg;
    (void)pthread_barrier_wait(&swapped.begin);
    while (!swapped.stop)
        if (fsync(swapped.files[0]) != 0 || fsync(swapped.files[1]) != 0)
            complain("fsync: %s", strerrorname_np(errno));
    return NULL;
}

static uint64_t sum_of_files(void)
{
    uint64_t sum = 0, word;
    for (int f = 0; f < 2; f++)
        for (size_t i = 0; i < PAGES; i++) {
            CHECK_EQ(pread(swapped.files[f], &word, sizeof word, (off_t)(i * PAGE)), sizeof word);
            sum += word;
        }
    return sum;
}

static void attack_swaps(void)
{
    enum { ROUNDS = 25, ADDERS = 3 };
    uint64_t id = 0;
    int uffd, s = greet(&uffd);
    (void)signal(SIGSEGV, on_bus); /* between two moves nothing is there */
    for (int f = 0; f < 2; f++) {
        swapped.files[f] = open(f == 0 ? "swap.0" : "swap.1", O_RDWR | O_CREAT | O_TRUNC, 0644);
        CHECK_EQ(ftruncate(swapped.files[f], PAGES * PAGE), 0);
        int memfd = open_pages(s, swapped.files[f], &id);
        swapped.places[f] = map_pages(s, uffd, memfd, id);
        close(memfd);
    }
    (void)pthread_barrier_init(&swapped.begin, NULL, ADDERS + 2);
    swapped.spare = mmap(NULL, PAGES * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    for (int round = 0; round < ROUNDS && failures == 0; round++) {
        pthread_t threads[ADDERS + 2];
        void *(*const work[ADDERS + 2])(void *) = { adder, adder, adder, swapper, syncer };
        swapped.stop = false;
        for (int i = 0; i < ADDERS + 2; i++)
            if (pthread_create(&threads[i], NULL, work[i],
                               (void *)(uintptr_t)(round * 97 + i + 1)) != 0)
                give_up("pthread_create");
        pause_ms(50);
        swapped.stop = true;
        for (int i = 0; i < ADDERS + 2; i++)
            pthread_join(threads[i], NULL);
        control("sync");
        control("drop");
        CHECK_EQ(sum_of_files(), swapped.added);
    }
    close(s);
    close(uffd);
}

/* The events' descriptor, shared with the daemon, made blocking: a read of it must not stop anybody. */
static void blocking_client(int in, int out)
{
    uint64_t id = 0;
    int file = open("target", O_RDWR), uffd, s = greet(&uffd), memfd = open_pages(s, file, &id);
    char *p = map_pages(s, uffd, memfd, id);
    for (int i = 0; i < 50; i++) {
        (void)fcntl(uffd, F_SETFL, O_NONBLOCK);
        (void)store(p + (size_t)i * PAGE, 'n');
        (void)fcntl(uffd, F_SETFL, 0);
    }
    say(out);
    (void)hear(in);
}

/* Processor time of the daemon, in ticks. */
static long daemon_ticks(void)
{
    char path[64];
    long user = 0, system = 0;
    (void)snprintf(path, sizeof path, "/proc/%d/stat", (int)daemon_pid());
    FILE *f = fopen(path, "re");
    if (f == NULL || fscanf(f, "%*d (%*[^)]) %*c %*d %*d %*d %*d %*d %*d %*d %*d %*d %*d %ld %ld",
                            &user, &system) != 2)
        give_up("%s", path);
    (void)fclose(f);
    return user + system;
}

static void attack_blocking(int file)
{
    struct child c = start_child(blocking_client);
    if (!WITHIN(0.1, false))
        CHECK(hear(c.from));
    long before = daemon_ticks();
    pause_ms(500);
    CHECK((daemon_ticks() - before) * 1000 / sysconf(_SC_CLK_TCK) < 250); /* nothing happens */
    CHECK_EQ(pwrite(file, "b", 1, 0), 1);
    CHECK_EQ(fsync(file), 0);
    kill_child(&c);
}

/* write(2) into a memfd, of a byte that never comes: meanwhile nobody else can punch or cut that memfd. */
#define HELD_FILES 40

static struct {
    int memfd;
    const char *byte;
} held[HELD_FILES];

static void *hold(void *arg)
{
    size_t i = (size_t)(uintptr_t)arg;
    (void)!pwrite(held[i].memfd, held[i].byte, 1, 0);
    return NULL;
}

static bool held_unmapped;

static void holder(int in, int out)
{
    char name[20];
    uint64_t id;
    int uffd, s = greet(&uffd), never = new_uffd(0);
    char *bytes =
        mmap(NULL, HELD_FILES * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    struct uffdio_register area = { .range = { (uintptr_t)bytes, HELD_FILES * PAGE },
                                    .mode = UFFDIO_REGISTER_MODE_MISSING };
    if (bytes == MAP_FAILED || ioctl(never, UFFDIO_REGISTER, &area) != 0)
        give_up("register");
    for (size_t i = 0; i < HELD_FILES; i++) {
        (void)snprintf(name, sizeof name, "held%zu", i);
        int file = make_file(name, PAGES);
        held[i].memfd = open_pages(s, file, &id);
        held[i].byte = bytes + i * PAGE;
        if (held_unmapped) {
            struct attach_request drop = { .op = ATTACH_DROP, .id = id };
            CHECK_EQ(ask(s, drop, -1, NULL, NULL), 0);
            continue;
        }
        (void)map_pages(s, uffd, held[i].memfd, id);
        for (off_t k = 0; k < PAGES; k++) /* its pages lie in the memfd */
            CHECK_EQ(byte_at(file, k * (off_t)PAGE), k + 1);
    }
    for (size_t i = 0; i < HELD_FILES; i++) {
        pthread_t t;
        if (pthread_create(&t, NULL, hold, (void *)(uintptr_t)i) != 0) // NOLINT
            give_up("pthread_create");
    }
    pause_ms(100);
    say(out);
    (void)hear(in);
}

/* More than fits into the cache, in a file of its own. */
static void presser(int in, int out)
{
    enum { MIB = 24 };
    static char mib[1 << 20], got[1 << 20];
    char name[30];
    (void)snprintf(name, sizeof name, "pressure%d", (int)getpid());
    int fd = open(name, O_RDWR | O_CREAT, 0644);
    for (int i = 0; i < MIB; i++) {
        memset(mib, i + 1, sizeof mib);
        CHECK_EQ(pwrite(fd, mib, sizeof mib, (off_t)i << 20), sizeof mib);
    }
    CHECK_EQ(fsync(fd), 0);
    for (int i = 0; i < MIB; i++) {
        memset(mib, i + 1, sizeof mib);
        CHECK_EQ(pread(fd, got, sizeof got, (off_t)i << 20), sizeof got);
        CHECK(memcmp(mib, got, sizeof got) == 0);
    }
    CHECK_EQ(unlink(name), 0);
    say(out);
    (void)hear(in);
}

/* What is asked of those files waits, perhaps. */
static void *meddle(void *arg)
{
    size_t i = (size_t)(uintptr_t)arg;
    char name[20];
    (void)snprintf(name, sizeof name, "held%zu", i);
    int fd = open(name, O_RDWR);
    switch (i % 4) {
    case 0:
        CHECK_EQ(ftruncate(fd, 2 * PAGES * PAGE), 0);
        break;
    case 1:
        CHECK_EQ(ftruncate(fd, 0), 0);
        break;
    case 2:
        for (off_t k = 0; k < PAGES; k++)
            CHECK(byte_at(fd, k * (off_t)PAGE) >= 0);
        break;
    default:
        CHECK_EQ(unlink(name), 0);
        break;
    }
    close(fd);
    return NULL;
}

static void meddler(int in, int out)
{
    enum { MEDDLERS = 12 };
    pthread_t t[MEDDLERS];
    for (size_t i = 0; i < MEDDLERS; i++)
        if (pthread_create(&t[i], NULL, meddle, (void *)(uintptr_t)i) != 0) // NOLINT
            give_up("pthread_create");
    say(out);
    for (size_t i = 0; i < MEDDLERS; i++)
        pthread_join(t[i], NULL);
    (void)hear(in);
}

static void dropper(int in, int out)
{
    control("drop");
    say(out);
    (void)hear(in);
}

/* Who is the first to free such a page is kept, and who wants something of those files; nobody else. */
static void attack_inodes(void)
{
    enum { OTHERS = 4 };
    struct child c = start_child(holder), others[OTHERS];
    CHECK(hear(c.from));
    struct child d = start_child(dropper);
    CHECK(WITHIN(20, stat_of("attach", "stuck") == 1));
    struct child m = start_child(meddler);
    CHECK(hear(m.from));
    pause_ms(500); /* let them come to where they wait, if they do */
    double begun = seconds();
    for (int i = 0; i < OTHERS; i++)
        others[i] = start_child(presser);
    for (int i = 0; i < OTHERS; i++)
        CHECK(hear(others[i].from));
    control("drop");
    CHECK(seconds() - begun < 40);
    all_is_well("pages that cannot go");
    kill_child(&c);
    CHECK(hear(d.from));
    end_child(&d);
    end_child(&m);
    for (int i = 0; i < OTHERS; i++)
        end_child(&others[i]);
    CHECK_EQ(stat_of("attach", "stuck"), 0);
    for (size_t i = 0; i < HELD_FILES; i++) {
        char name[20];
        (void)snprintf(name, sizeof name, "held%zu", i);
        CHECK(unlink(name) == 0 || errno == ENOENT);
    }
}

/* More than can be tracked, and no end of moves. */
static void attack_ranges(int file)
{
    uint64_t id = 0;
    int uffd, s = greet(&uffd), memfd = open_pages(s, file, &id);
    char *p =
        mmap(NULL, 65600 * 2 * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    struct attach_request drop = { .op = ATTACH_DROP, .id = id };
    CHECK_EQ(ask(s, drop, -1, NULL, NULL), 0);
    CHECK_EQ(ask(s, drop, -1, NULL, NULL), -EINVAL);
    struct attach_request huge = { .op = ATTACH_MAP, .addr = (uintptr_t)p, .length = 1ull << 40 };
    close(open_pages(s, file, &huge.id));
    (void)ask(s, huge, -1, NULL, NULL);
    close(open_pages(s, file, &id));
    char *real = map_pages(s, uffd, memfd, id);
    int refused = 0;
    for (uint64_t i = 0; i < 65600 && refused < 3;
         i++) { /* every other page of the huge one cut out */
        struct attach_request cut = { .op = ATTACH_UNMAP,
                                      .addr = (uintptr_t)p + 2 * i * PAGE,
                                      .length = PAGE };
        refused += ask(s, cut, -1, NULL, NULL) != 0;
    }
    CHECK(refused > 0);
    /* No room for more, and then one moves into the middle of another. */
    char *to = p + 2 * 65560 * PAGE;
    CHECK(mremap(real, PAGES * PAGE, PAGES * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, to) == to);
    CHECK_EQ(store(to + PAGE, 'r'), 0);
    CHECK_EQ(fsync(file), 0);
    CHECK_EQ(byte_at(file, PAGE), 'r');
    close(memfd);
    close(s);
    close(uffd);
    (void)munmap(p, 65600 * 2 * PAGE);
}

static void attack_endings(void)
{
    for (int round = 0; round < 60; round++) {
        int file = open("target", O_RDWR), uffd, s = greet(&uffd);
        uint64_t id = 0;
        int memfd = open_pages(s, file, &id);
        struct attach_request map = { .op = ATTACH_MAP,
                                      .version = ATTACH_VERSION,
                                      .id = id,
                                      .addr = 1ull << 40,
                                      .length = PAGES * PAGE,
                                      .flags = (int)ATTACH_POPULATE };
        for (int i = 0; i < 4; i++)
            (void)send_bytes(s, &map, sizeof map, NULL, 0);
        if (round % 2)
            close(uffd);
        close(s); /* in the middle of it */
        if (round % 2 == 0)
            close(uffd);
        close(memfd);
        close(file);
    }
}

/* ---- address spaces that are locked ----------------------------------------------------------------------- */

static int locked_socket;

/* Its userfaultfd is the daemon's alone. Then it maps something over a file of the other mount that was stored to:
 * that waits for the other daemon. */
static void locker(int in, int out)
{
    char name[4096];
    (void)snprintf(name, sizeof name, "%s/locked", getenv("FOLIO_OTHER"));
    int far = open(name, O_RDWR | O_CREAT, 0644), uffd = new_uffd(ATTACH_UFFD_FEATURES);
    if (far < 0 || ftruncate(far, PAGE) != 0)
        give_up("%s", name);
    char *k = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, far, 0);
    if (k == MAP_FAILED)
        give_up("mmap");
    CHECK_EQ(ask(locked_socket, (struct attach_request){ .op = ATTACH_HELLO }, uffd, NULL, NULL),
             0);
    close(uffd);
    close(locked_socket);
    *(volatile char *)k = 'k';
    say(out);
    (void)hear(in);
    CHECK(mmap(k, PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == k);
    say(out);
}

static void greeter(int in, int out)
{
    int uffd;
    (void)in;
    close(greet(&uffd));
    say(out);
}

static bool heard_within(int from, int seconds)
{
    struct pollfd fds = { .fd = from, .events = POLLIN };
    return poll(&fds, 1, seconds * 1000) == 1 && hear(from);
}

/* It hangs up: what the daemon has of it cannot be closed. That keeps nobody else waiting, and is told. */
static void attack_locked(void)
{
    pid_t other = (pid_t)strtol(getenv("FOLIO_OTHER_DAEMON"), NULL, 10);
    locked_socket = dial();
    struct child c = start_child(locker);
    CHECK(hear(c.from));
    (void)kill(other, SIGSTOP);
    pause_ms(300); /* until it has stopped */
    say(c.to);
    pause_ms(300); /* until it is in mmap(2) */
    close(locked_socket);
    pause_ms(300); /* until the daemon knows */
    struct child late = start_child(greeter);
    bool greeted = heard_within(late.from, 3);
    bool told = greeted && WITHIN(20, stat_of("attach", "stuck") == 1);
    pause_ms(told ? 1500 : 0); /* the log is a second late */
    (void)kill(other, SIGCONT);
    CHECK(greeted);
    CHECK(told);
    CHECK(hear(c.from));
    end_child(&late);
    end_child(&c);
    CHECK(WITHIN(20, stat_of("attach", "stuck") == 0));
}

/* ---- what takes long -------------------------------------------------------------------------------------- */

/* A range of a file of holes whose pages take the daemon half a minute, and what is to be sent for it. */
#define HOLES_BYTES ((size_t)4 << 30)

static int map_holes(int *uffd, unsigned flags, struct attach_request *map)
{
    struct attach_reply reply = { 0 };
    int file = open("holes", O_RDWR | O_CREAT, 0644), s = greet(uffd), memfd = -1;
    CHECK_EQ(ftruncate(file, (off_t)HOLES_BYTES), 0);
    CHECK_EQ(
        ask(s,
            (struct attach_request){
                .op = ATTACH_OPEN, .prot = PROT_READ, .flags = MAP_PRIVATE, .length = HOLES_BYTES },
            file, &reply, &memfd),
        0);
    *map = (struct attach_request){ .op = ATTACH_MAP,
                                    .version = ATTACH_VERSION,
                                    .id = reply.id,
                                    .addr = 1ull << 40,
                                    .length = HOLES_BYTES,
                                    .flags = (int)flags };
    close(memfd);
    close(file);
    return s;
}

/* Advice gives way to the next request, and has an end of its own; */
static void adviser(int in, int out)
{
    int uffd;
    struct attach_request rq;
    int s = map_holes(&uffd, 0, &rq);
    CHECK_EQ(ask(s, rq, -1, NULL, NULL), 0);
    rq = (struct attach_request){
        .op = ATTACH_ADVISE, .addr = rq.addr, .length = rq.length, .advice = MADV_WILLNEED
    };
    double begun = seconds();
    for (int i = 0; i < 3; i++)
        CHECK_EQ(ask(s, rq, -1, NULL, NULL), 0);
    CHECK(seconds() - begun < 5);
    say(out);
    (void)hear(in);
    CHECK_EQ(ask(s, rq, -1, NULL, NULL), 0);
    say(out);
    (void)hear(in);
}

/* and so has what must be brought in all, with who wanted it. */
static void populater(int in, int out)
{
    int uffd;
    struct attach_request rq;
    int s = map_holes(&uffd, ATTACH_POPULATE, &rq);
    struct pollfd answer = { .fd = s, .events = POLLIN };
    CHECK_EQ(send_bytes(s, &rq, sizeof rq, NULL, 0), 0);
    CHECK_EQ(poll(&answer, 1, 500), 0);
    say(out);
    (void)hear(in);
}

static void attack_holes(void)
{
    control("drop");
    struct child c = start_child(adviser);
    CHECK(hear(c.from));
    long long now = 0, before = -1;
    while (now != before) {
        pause_ms(1000);
        before = now;
        now = stat_of("cache", "pages");
    }
    CHECK(now > 1000);
    CHECK(now < stat_of("cache", "limit") * 3 / 4);
    control("drop");
    say(c.to);
    CHECK(hear(c.from));
    kill_child(&c);
    CHECK(WITHIN(5, stat_of("attach", "clients") == 1));
    c = start_child(populater);
    CHECK(hear(c.from));
    kill_child(&c);
    CHECK(WITHIN(5, stat_of("attach", "clients") == 1));
    CHECK_EQ(unlink("holes"), 0);
}

/* ---- crowds ------------------------------------------------------------------------------------------------ */

/* As many connections of one user as the daemon takes of all, which say nothing. */
static void crowd(int in, int out)
{
    enum { CROWD = 4200 };
    static struct pollfd s[CROWD];
    nfds_t n = 10; /* the daemon's own user may have any number */
    if (geteuid() == 0) {
        const struct rlimit files = { 2 * CROWD, 2 * CROWD };
        n = CROWD;
        if (setrlimit(RLIMIT_NOFILE, &files) != 0 || setgid(65534) != 0 || setuid(65534) != 0)
            give_up("setuid");
    }
    for (nfds_t i = 0; i < n; i++)
        s[i] = (struct pollfd){ .fd = dial(), .events = POLLIN };
    say(out);
    CHECK(WITHIN(30, poll(s, n, 0) == (int)n)); /* hung up */
    say(out);
    (void)hear(in);
}

/* They shut nobody else out, and do not stay. */
static void attack_crowd(void)
{
    struct child c = start_child(crowd);
    CHECK(hear(c.from));
    struct child late = start_child(greeter);
    CHECK(heard_within(late.from, 5));
    end_child(&late);
    CHECK(WITHIN(5, stat_of("attach", "clients") <= 1100));
    CHECK(hear(c.from));
    CHECK(WITHIN(10, stat_of("attach", "clients") == 1));
    end_child(&c);
}

/* ---- more than there is ------------------------------------------------------------------------------------- */

#define TIB ((off_t)1 << 40)

/* The last page of a file as long as any. */
static char *attach_last(int i)
{
    char name[20];
    (void)snprintf(name, sizeof name, "vast%d", i);
    int fd = open(name, O_RDWR | O_CREAT, 0644);
    if (fd < 0 || ftruncate(fd, 16 * TIB) != 0)
        give_up("%s", name);
    char *p =
        folio_mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 16 * TIB - (off_t)PAGE);
    close(fd);
    return p;
}

enum { VAST = 150 };

/* All the room that one client gets. */
static void hoarder(int in, int out)
{
    char *had[VAST];
    int nr = 0;
    for (; nr < VAST && (had[nr] = attach_last(nr)) != MAP_FAILED; nr++)
        CHECK_EQ(store(had[nr], 'y'), 0);
    CHECK(nr >= 16 && nr < VAST && errno == ENOMEM);
    say(out);
    (void)hear(in);
    for (int i = 0; i < nr; i++)
        CHECK(load(had[i]) == 'y' && folio_munmap(had[i], PAGE) == 0);
}

/* Whoever stores has room: where there is none, mapping fails. And what is not mapped any more takes none. */
static void attack_room(void)
{
    for (int i = 0; i < VAST; i++) {
        char *p = attach_last(i);
        CHECK(p != MAP_FAILED && store(p, 'x') == 0 && folio_munmap(p, PAGE) == 0);
    }
    struct child c = start_child(hoarder);
    CHECK(hear(c.from));
    all_is_well("all the room for one client");
    end_child(&c);
    for (int i = 0; i < VAST; i++) {
        char name[20];
        (void)snprintf(name, sizeof name, "vast%d", i);
        CHECK_EQ(unlink(name), 0);
    }
    control("sync"); /* what is dirty keeps its file */
}

/* Files one after the other, more than there would be descriptors for, were they kept. */
static void attack_files(void)
{
    enum { FILES = 1000 };
    unsigned before = daemon_has("fd");
    for (int round = 0; round < 2; round++) /* the second finds them in the cache */
        for (int i = 0; i < FILES; i++) {
            char name[20];
            (void)snprintf(name, sizeof name, "one%d", i);
            int fd = open(name, O_RDWR | O_CREAT, 0644);
            if (fd < 0 || ftruncate(fd, PAGE) != 0)
                give_up("%s", name);
            char *p = folio_mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
            CHECK(p != MAP_FAILED && load(p) == (round > 0 ? 'x' : 0));
            CHECK(store(p, 'x') == 0 && folio_munmap(p, PAGE) == 0);
            CHECK_EQ(byte_at(fd, 0), 'x');
            close(fd);
        }
    CHECK(WITHIN(10, daemon_has("fd") < before + 600));
    for (int i = 0; i < FILES; i++) {
        char name[20];
        (void)snprintf(name, sizeof name, "one%d", i);
        CHECK_EQ(unlink(name), 0);
    }
    control("sync");
}

/* Beside memfds that nobody can cut. */
static void attack_kept(void)
{
    held_unmapped = true;
    struct child c = start_child(holder);
    CHECK(hear(c.from));
    attack_files();
    kill_child(&c);
    for (size_t i = 0; i < HELD_FILES; i++) {
        char name[20];
        (void)snprintf(name, sizeof name, "held%zu", i);
        CHECK(unlink(name) == 0 || errno == ENOENT);
    }
}

/* ---- descriptors that are slow to close --------------------------------------------------------------------- */

/* A connection whose other end reads nothing: its last close waits until that has, 45 s at most. */
static int slow_socket(void)
{
    static char bytes[65536];
    struct sockaddr_in here = { .sin_family = AF_INET, .sin_addr = { htonl(INADDR_LOOPBACK) } };
    socklen_t size = sizeof here;
    const struct linger linger = { .l_onoff = 1, .l_linger = 45 };
    int listener = socket(AF_INET, SOCK_STREAM, 0), s = socket(AF_INET, SOCK_STREAM, 0);
    if (bind(listener, (struct sockaddr *)&here, size) != 0 || listen(listener, 1) != 0 ||
        getsockname(listener, (struct sockaddr *)&here, &size) != 0 ||
        connect(s, (struct sockaddr *)&here, size) != 0 || accept(listener, NULL, NULL) < 0 ||
        setsockopt(s, SOL_SOCKET, SO_LINGER, &linger, sizeof linger) != 0)
        give_up("a socket");
    while (send(s, bytes, sizeof bytes, MSG_DONTWAIT) > 0)
        ;
    return s;
}

/* Descriptors that the daemon closes, that it has no room for, and that it has not received, when it is to end. Speaks
 * with the script. */
static int slow_client(void)
{
    enum { SLOW = 7 };
    struct attach_request rq = { .op = ATTACH_OPEN, .version = ATTACH_VERSION, .length = PAGE };
    int fds[SLOW];
    for (int i = 0; i < SLOW; i++)
        fds[i] = slow_socket();
    if (chdir("/") != 0)
        give_up("chdir");
    (void)kill(daemon_pid(), SIGSTOP); /* or ours is the last close */
    pause_ms(300);
    int s = dial();
    CHECK_EQ(send_bytes(s, &rq, sizeof rq, fds, 1), 0);
    CHECK_EQ(send_bytes(s, &rq, sizeof rq, fds + 1, 1), 0);
    s = dial();
    CHECK_EQ(send_bytes(s, &rq, sizeof rq, fds + 2, SLOW - 2), 0);
    for (int i = 0; i < SLOW; i++)
        close(fds[i]);
    (void)kill(daemon_pid(), SIGCONT);
    pause_ms(300); /* until it has them */
    printf("ready\n");
    (void)fflush(stdout);
    (void)hear(STDIN_FILENO);
    return failures > 0;
}

/* ---- stores until the end ----------------------------------------------------------------------------------- */

static struct {
    char *p;
    int uffd;
    uint64_t stored[PAGES]; /* the last that was not a SIGBUS */
} deaf;

enum { DEAF_THREADS = 4 };

static void *deaf_racer(void *arg)
{
    size_t first = (uintptr_t)arg * (PAGES / DEAF_THREADS);
    for (uint64_t n = 1;; n++) {
        size_t page = first + n % (PAGES / DEAF_THREADS);
        if (store_word((uint64_t *)(void *)(deaf.p + page * PAGE), n) != 0)
            return NULL;
        deaf.stored[page] = n;
    }
}

/* What happens to the address space, once the daemon does not read it any more. */
static void *deaf_reader(void *arg)
{
    struct uffd_msg msg;
    struct pollfd fd = { .fd = deaf.uffd, .events = POLLIN };
    (void)arg;
    while (poll(&fd, 1, -1) >= 0)
        (void)!read(deaf.uffd, &msg, sizeof msg);
    return NULL;
}

/* Notices 0.5 s late that the daemon ends, where libfolio would at once, and stores meanwhile; nobody syncs. Speaks with
 * the script; "attach_ends raced" looks for what is noted in FOLIO_NOTES. */
static int deaf_client(void)
{
    pthread_t threads[DEAF_THREADS];
    uint64_t id = 0;
    const char *path = getenv("FOLIO_NOTES");
    int file = open("racing", O_RDWR | O_CREAT | O_TRUNC, 0644), s = greet(&deaf.uffd),
        notes = path != NULL ? open(path, O_CREAT | O_TRUNC | O_WRONLY, 0600) : -1;
    if (file < 0 || notes < 0 || ftruncate(file, PAGES * (off_t)PAGE) != 0)
        give_up("racing, FOLIO_NOTES");
    int memfd = open_pages(s, file, &id);
    deaf.p = map_pages(s, deaf.uffd, memfd, id);
    close(memfd);
    close(file);
    if (chdir("/") != 0)
        give_up("chdir");
    for (uintptr_t i = 0; i < DEAF_THREADS; i++)
        threads[i] = start(deaf_racer, (void *)i);
    printf("ready\n");
    (void)fflush(stdout);
    struct pollfd hup = { .fd = s };
    CHECK(poll(&hup, 1, 60000) == 1);
    pause_ms(500);
    (void)start(deaf_reader, NULL);
    CHECK(mmap(deaf.p, PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED,
               (int)memfd_create("empty", 0), 0) == deaf.p);
    struct uffdio_range all = { (uintptr_t)deaf.p, PAGES * PAGE };
    CHECK_EQ(ioctl(deaf.uffd, UFFDIO_WAKE, &all), 0);
    for (unsigned i = 0; i < DEAF_THREADS; i++)
        pthread_join(threads[i], NULL);
    CHECK(write(notes, deaf.stored, sizeof deaf.stored) == sizeof deaf.stored);
    close(s);
    return failures > 0;
}

/* ---- all ---------------------------------------------------------------------------------------------------- */

/* Each attack in a process of its own: what it leaves behind dies with it. */
#define ATTACK(name, call)                                                     \
    do {                                                                       \
        if (argc > 1 && strcmp(argv[1], name) != 0)                            \
            break;                                                             \
        test_now = name;                                                       \
        pid_t pid = fork();                                                    \
        if (pid == 0) {                                                        \
            failures = 0;                                                      \
            alarm(100);                                                        \
            call;                                                              \
            _exit(failures > 0);                                               \
        }                                                                      \
        int status;                                                            \
        if (waitpid(pid, &status, 0) != pid || status != 0)                    \
            complain("the attacker ended with status 0x%x", (unsigned)status); \
        all_is_well(name);                                                     \
    } while (0)

int main(int argc, char **argv)
{
    (void)signal(SIGPIPE, SIG_IGN);
    catch_bus();
    find_socket();
    if (argc > 1 && strcmp(argv[1], "slow") == 0)
        return slow_client();
    if (argc > 1 && strcmp(argv[1], "deaf") == 0)
        return deaf_client();
    close(make_file("honest", 8));
    int file = make_file("target", PAGES);
    all_is_well("nothing");
    unsigned fds = daemon_has("fd");
    ATTACK("garbage", attack_garbage());
    ATTACK("descriptors", attack_descriptors(file));
    ATTACK("requests", attack_requests(file));
    ATTACK("mincore", attack_mincore());
    ATTACK("flood", attack_flood(file));
    ATTACK("bell", attack_bell(file));
    ATTACK("memfd", attack_memfd(file));
    ATTACK("patches", attack_patches());
    ATTACK("read_only", attack_read_only());
    ATTACK("moves", attack_moves(file));
    ATTACK("swaps", attack_swaps());
    ATTACK("blocking", attack_blocking(file));
    ATTACK("inodes", attack_inodes());
    ATTACK("ranges", attack_ranges(file));
    ATTACK("endings", attack_endings());
    ATTACK("holes", attack_holes());
    ATTACK("room", attack_room());
    ATTACK("files", attack_files());
    ATTACK("kept", attack_kept());
    ATTACK("crowd", attack_crowd());
    if (getenv("FOLIO_OTHER") != NULL)
        ATTACK("locked", attack_locked());
    test_now = "the end";
    close(file);
    /* Our own connection is one. */
    CHECK(WITHIN(20, stat_of("attach", "ranges") == 0 && stat_of("attach", "clients") == 1));
    control("drop");
    CHECK(WITHIN(20, daemon_has("fd") <= fds + 8));
    return failures > 0;
}
