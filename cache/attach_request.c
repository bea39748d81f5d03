/* attach_request.c: what a client asks for. Nothing of it is believed. */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include "cache/attach_impl.h"
#include "cache/memfd.h"
#include "cache/reclaim.h"

#define ADDRESS_END ((uint64_t)1 << 56)
#define END_MS      200 /* how often the ranges of a client that hung up are looked at */

struct answer {
    struct attach_reply reply;
    unsigned char bytes[ATTACH_MINCORE_PAGES]; /* follow it */
    size_t nr_bytes;
    int fd;   /* goes with it; -1 */
    bool own; /* and is closed then */
};

/* ---- packets --------------------------------------------------------------------------------- */

/* One packet and at most one descriptor (*fd, -1: none).   Returns 0; -EAGAIN; -ECONNRESET: it is over. */
static int receive(int sock, struct attach_request *rq, int *fd)
{
    union {
        struct cmsghdr align;
        char bytes[CMSG_SPACE(4 * sizeof(int))];
    } control;
    struct iovec iov = { .iov_base = rq, .iov_len = sizeof *rq };
    struct msghdr msg = { .msg_iov = &iov,
                          .msg_iovlen = 1,
                          .msg_control = control.bytes,
                          .msg_controllen = sizeof control.bytes };
    ssize_t n = recvmsg(sock, &msg, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
    *fd = -1;
    if (n < 0)
        return errno == EAGAIN || errno == EINTR ? -EAGAIN : -ECONNRESET;
    for (struct cmsghdr *c = CMSG_FIRSTHDR(&msg); c != NULL; c = CMSG_NXTHDR(&msg, c)) {
        if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS)
            continue;
        for (size_t at = 0; at + sizeof(int) <= c->cmsg_len - CMSG_LEN(0); at += sizeof(int)) {
            int one;
            memcpy(&one, CMSG_DATA(c) + at, sizeof one);
            if (*fd < 0)
                *fd = one;
            else
                close(one);
        }
    }
    if (*fd < 0 && (msg.msg_flags & MSG_CTRUNC))
        *fd = -EMFILE; /* of ours */
    if (*fd == -EMFILE)
        memfd_shrink_soon(); /* who asks again finds more */
    if (n == (ssize_t)sizeof *rq && !(msg.msg_flags & MSG_TRUNC) && rq->version == ATTACH_VERSION)
        return 0;
    if (*fd >= 0)
        close(*fd);
    return -ECONNRESET;
}

static int send_answer(int sock, struct answer *a)
{
    union {
        struct cmsghdr align;
        char bytes[CMSG_SPACE(sizeof(int))];
    } control;
    struct iovec iov[2] = { { .iov_base = &a->reply, .iov_len = sizeof a->reply },
                            { .iov_base = a->bytes, .iov_len = a->nr_bytes } };
    struct msghdr msg = { .msg_iov = iov, .msg_iovlen = a->nr_bytes > 0 ? 2 : 1 };
    if (a->fd >= 0) {
        msg.msg_control = control.bytes;
        msg.msg_controllen = sizeof control.bytes;
        struct cmsghdr *c = CMSG_FIRSTHDR(&msg);
        c->cmsg_level = SOL_SOCKET;
        c->cmsg_type = SCM_RIGHTS;
        c->cmsg_len = CMSG_LEN(sizeof(int));
        memcpy(CMSG_DATA(c), &a->fd, sizeof(int));
    }
    /* Who does not read its answers is not waited for. */
    return sendmsg(sock, &msg, MSG_DONTWAIT | MSG_NOSIGNAL) < 0 ? -ECONNRESET : 0;
}

/* ---- HELLO, OPEN, DROP ----------------------------------------------------------------------- */

static bool is_userfaultfd(int fd)
{
    char path[64], target[64];
    (void)snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    ssize_t n = readlink(path, target, sizeof target - 1);
    if (n < 0)
        return false;
    target[n] = '\0';
    return strcmp(target, "anon_inode:[userfaultfd]") == 0;
}

/* Exactly the features agreed: what else it can be asked for makes it wait for us to read, or its events
 * descriptors of ours. The kernel shows them as "API: api:features:known". */
static bool features_agreed(int fd)
{
    char path[64], line[160];
    unsigned long long api, features = 0;
    (void)snprintf(path, sizeof path, "/proc/self/fdinfo/%d", fd);
    FILE *f = fopen(path, "re");
    if (f == NULL)
        return false;
    bool found = false;
    while (!found && fgets(line, sizeof line, f) != NULL)
        found = sscanf(line, "API: %llx:%llx:", &api, &features) == 2; // NOLINT(cert-err34-c)
    (void)fclose(f);
    return found && (features & INT32_MAX) == ATTACH_UFFD_FEATURES; /* above: the kernel's own */
}

/* A bell, and the client's end of it into the answer, if they can be had. (An eventfd is one file for both ends: its
 * client could have us wait for it.) The client sends nothing: what it sent would be slow to close. */
static void make_bell(struct attach_client *c, struct answer *a)
{
    int ends[2], little = 1;
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, ends) != 0)
        return;
    (void)setsockopt(ends[0], SOL_SOCKET, SO_SNDBUF, &little, sizeof little);
    (void)shutdown(ends[0], SHUT_RD);
    c->bell = ends[0];
    a->fd = ends[1];
    a->own = true;
}

/* Keeps the descriptor when it returns 0. */
static int do_hello(struct attach_client *c, int fd, struct answer *a)
{
    if (fd == -EMFILE)
        return -EMFILE;
    if (c->uffd >= 0 || fd < 0 || !is_userfaultfd(fd) || !features_agreed(fd))
        return -EINVAL;
    c->uffd = fd;
    int err = worker_start(&c->events, "folio-uffd", events_step, c);
    if (err != 0)
        c->uffd = -1;
    else
        make_bell(c, a);
    return err;
}

static int do_open(struct attach_client *c, const struct attach_request *rq, int fd,
                   struct answer *a)
{
    unsigned slot = 0;
    while (slot < ATTACH_OPENS_MOST && c->opens[slot] != NULL)
        slot++;
    if (fd < 0)
        return fd == -EMFILE ? -EMFILE : -EBADF;
    if (slot == ATTACH_OPENS_MOST)
        return -ENOMEM;
    struct attach_open *open = calloc(1, sizeof *open);
    if (open == NULL)
        return -ENOMEM;
    memfd_limit_idle();
    int err = c->attach->ops->open(c->attach->arg, fd, rq, &open->file);
    if (err != 0) {
        free(open);
        atomic_fetch_add(&c->attach->refused, 1);
        return err;
    }
    open->id = ++c->next_id;
    atomic_store(&open->refs, 1);
    c->opens[slot] = open;
    a->reply.id = open->id;
    a->reply.flags = open->file.writable ? 0 : ATTACH_PRIVATE;
    a->fd = memfd_descriptor(open->file.mapping, open->file.writable);
    return 0;
}

/* Out of the slots, with the slots' reference.   NULL: no such id. */
static struct attach_open *take_open(struct attach_client *c, uint64_t id)
{
    for (unsigned i = 0; i < ATTACH_OPENS_MOST; i++) {
        struct attach_open *open = c->opens[i];
        if (open != NULL && open->id == id) {
            c->opens[i] = NULL;
            return open;
        }
    }
    return NULL;
}

static int do_drop(struct attach_client *c, const struct attach_request *rq)
{
    struct attach_open *open = take_open(c, rq->id);
    if (open == NULL)
        return -EINVAL;
    open_put(c->attach, open);
    return 0;
}

/* ---- ranges ---------------------------------------------------------------------------------- */

static bool is_range(const struct attach_request *rq)
{
    return rq->addr % PAGE_SIZE == 0 && rq->length % PAGE_SIZE == 0 && rq->length > 0 &&
           rq->addr < ADDRESS_END && rq->length <= ADDRESS_END - rq->addr;
}

/* Does it still wait for pages? Advice gives way to whatever it asks next. */
static bool still_waits(const struct attach_client *c, bool advice)
{
    struct pollfd fd = { .fd = c->sock, .events = POLLRDHUP };
    if (advice)
        fd.events |= POLLIN;
    return poll(&fd, 1, 0) == 0;
}

/* Pages [first, first + n) of the file.   Returns false: that is enough. */
static bool bring_in_part(struct attach_client *c, struct vm_area *vma, uint32_t first, uint32_t n,
                          bool advice)
{
    for (uint32_t i = 0; i < n; i++) {
        struct page *page;
        if (atomic_load(&c->hung_up))
            return false;
        if (filemap_get_page(vma->mapping, NULL, first + i, n - i, &page) != 0)
            return true; /* perhaps others can be had */
        put_page(vma->mapping->cache, page);
        if (i % FAULT_AROUND_MOST != FAULT_AROUND_MOST - 1 && i != n - 1)
            continue;
        vma_map_resident(vma, first + i / FAULT_AROUND_MOST * FAULT_AROUND_MOST,
                         i % FAULT_AROUND_MOST + 1);
        if (!still_waits(c, advice))
            return false;
    }
    return true;
}

/* The pages behind the range that starts at addr. By advice, no more than the cache could keep beside others'. */
static void bring_in(struct attach_client *c, const struct attach_request *rq, bool advice)
{
    struct attach_range *r;
    uint64_t done = 0;
    bool more = true;
    for (uint64_t at = rq->addr, end = at + rq->length;
         more && at < end && (r = range_first(c, at, end - at)) != NULL;) {
        struct vm_area *vma = &r->u.vma;
        if (r->u.addr > at)
            at = r->u.addr;
        uint32_t skip = (uint32_t)((at - r->u.addr) >> PAGE_SHIFT);
        uint64_t pages = (end - at) >> PAGE_SHIFT;
        uint64_t most = advice ? atomic_load(&vma->mapping->cache->limit) / 2 : UINT64_MAX;
        most -= done < most ? done : most;
        pages = pages < most ? pages : most;
        uint32_t n = pages < vma->count - skip ? (uint32_t)pages : vma->count - skip;
        more = bring_in_part(c, vma, vma->first + skip, n, advice) && n < most;
        done += n;
        at += (uint64_t)n << PAGE_SHIFT;
        range_put(r);
    }
}

/* Nothing is tracked there any more, and no fault of it is being resolved. What the client moved there before
 * it asked is known: its mremap(2) returned when that had been read.   -ENOMEM. */
static int cut_out(struct attach_client *c, const struct attach_request *rq)
{
    uffd_read_wait(&c->space);
    int err = ranges_cut(c, rq->addr, rq->length, CUT_ASKED, 0);
    ranges_settle(c);
    return err;
}

/* Track n pages from page first on, in two ranges where one cannot count so many: all of the largest file.
 * What is in the cache is mapped, if that is wanted. */
static int add_ranges(struct attach_client *c, struct attach_open *open,
                      struct memfd_segment *segment, const struct attach_request *rq,
                      bool map_resident)
{
    uint64_t first = rq->offset >> PAGE_SHIFT, n = rq->length >> PAGE_SHIFT;
    int err = 0;
    for (uint64_t done = 0, part; err == 0 && done < n; done += part) {
        part = n > UINT32_MAX && done == 0 ? n / 2 : n - done;
        struct span at = { .addr = rq->addr + (done << PAGE_SHIFT),
                           .first = (uint32_t)(first + done),
                           .count = (uint32_t)part };
        err = range_add(c, open, segment, &at);
        if (err != 0 || !map_resident)
            continue;
        struct attach_range *r = range_find(c, at.addr);
        if (r != NULL) { /* it has not been moved at once */
            vma_map_resident(&r->u.vma, r->u.vma.first, r->u.vma.count);
            range_put(r);
        }
    }
    return err;
}

/* With room for its pages in this process: where there is none, it is said before anything is stored. */
static int map_ranges(struct attach_client *c, struct attach_open *open,
                      const struct attach_request *rq)
{
    bool around = atomic_load(&open->file.mapping->cache->fault_around) > 1;
    struct memfd_account *account = &c->account->space;
    struct memfd_segment *segment;
    int err = memfd_reserve(open->file.mapping, (uint32_t)(rq->offset >> PAGE_SHIFT),
                            rq->length >> PAGE_SHIFT, account, &segment);
    if (err != 0)
        return err;
    err = cut_out(c, rq);
    if (err == 0) {
        err = add_ranges(c, open, segment, rq, around && !(rq->flags & (int)ATTACH_POPULATE));
        if (err != 0)
            (void)cut_out(c, rq);
    }
    memfd_release(segment, account);
    return err;
}

static int do_map(struct attach_client *c, const struct attach_request *rq)
{
    struct attach_open *open = take_open(c, rq->id);
    if (open == NULL)
        return -EINVAL;
    uint64_t first = rq->offset >> PAGE_SHIFT, count = rq->length >> PAGE_SHIFT;
    int err = -EINVAL;
    if (c->uffd >= 0 && is_range(rq) && rq->offset % PAGE_SIZE == 0 &&
        first + count <= (uint64_t)UINT32_MAX + 1)
        err = map_ranges(c, open, rq);
    if (err == 0 && (rq->flags & (int)ATTACH_POPULATE))
        bring_in(c, rq, false);
    open_put(c->attach, open);
    return err;
}

static int do_unmap(struct attach_client *c, const struct attach_request *rq)
{
    return is_range(rq) ? cut_out(c, rq) : -EINVAL;
}

/* Call work for each part of [addr, addr + length) that is tracked, by page of the file.
 * Returns the first error; -ENOMEM where nothing is. */
static int each_part(struct attach_client *c, const struct attach_request *rq,
                     int (*work)(struct attach_range *r, uint32_t first, uint32_t count, void *arg),
                     void *arg)
{
    int err = is_range(rq) ? 0 : -EINVAL;
    for (uint64_t at = rq->addr, end = at + rq->length; err == 0 && at < end;) {
        struct attach_range *r = range_find(c, at);
        if (r == NULL)
            return -ENOMEM;
        uint32_t skip = (uint32_t)((at - r->u.addr) >> PAGE_SHIFT);
        uint64_t pages = (end - at) >> PAGE_SHIFT;
        uint32_t have = r->u.vma.count - skip;
        uint32_t n = pages < have ? (uint32_t)pages : have;
        err = work(r, r->u.vma.first + skip, n, arg);
        at += (uint64_t)n << PAGE_SHIFT;
        range_put(r);
    }
    return err;
}

/* ---- MINCORE, WRITE, ADVISE ------------------------------------------------------------------ */

static int mincore_part(struct attach_range *r, uint32_t first, uint32_t count, void *arg)
{
    struct answer *a = arg;
    struct address_space *m = r->u.vma.mapping;
    for (uint32_t i = 0; i < count; i++) {
        struct page *page = find_get_page(m, first + i);
        a->bytes[a->nr_bytes++] = page != NULL && page_test(page, PG_uptodate);
        if (page != NULL)
            put_page(m->cache, page);
    }
    return 0;
}

static int do_mincore(struct attach_client *c, const struct attach_request *rq, struct answer *a)
{
    if (rq->length > (uint64_t)ATTACH_MINCORE_PAGES << PAGE_SHIFT)
        return -EINVAL;
    int err = each_part(c, rq, mincore_part, a);
    if (err != 0)
        a->nr_bytes = 0;
    return err;
}

static int write_part(struct attach_range *r, uint32_t first, uint32_t count, void *arg)
{
    (void)first;
    (void)count;
    (void)arg;
    (void)filemap_fdatawrite(r->u.vma.mapping, WB_SYNC_NONE); /* msync(MS_SYNC) hears of errors */
    return 0;
}

static int advise_part(struct attach_range *r, uint32_t first, uint32_t count, void *arg)
{
    const int *advice = arg;
    struct address_space *m = r->u.vma.mapping;
    switch (*advice) {
    case MADV_NORMAL:
        vma_advise(&r->u.vma, first, count, RA_ADVICE_NORMAL);
        return 0;
    case MADV_SEQUENTIAL:
        vma_advise(&r->u.vma, first, count, RA_ADVICE_SEQUENTIAL);
        return 0;
    case MADV_RANDOM:
        vma_advise(&r->u.vma, first, count, RA_ADVICE_RANDOM);
        return 0;
    case MADV_WILLNEED: /* when it has been answered */
    case MADV_DONTNEED: /* the client has unmapped them; the pages stay */
        return 0;
#ifdef MADV_COLD
    case MADV_COLD:
        lru_deactivate_range(m, first, first + (count - 1));
        return 0;
    case MADV_PAGEOUT:
        (void)filemap_fdatawrite(m, WB_SYNC_ALL);
        (void)invalidate_inode_pages2_range(m, first, first + (count - 1));
        return 0;
#endif
    default:
        return -EINVAL;
    }
}

/* ---- the thread ------------------------------------------------------------------------------ */

/* *keep: fd stays open, it is the client's now. */
static int dispatch(struct attach_client *c, const struct attach_request *rq, int fd,
                    struct answer *a, bool *keep)
{
    int advice = rq->advice;
    switch (rq->op) {
    case ATTACH_HELLO: {
        int err = do_hello(c, fd, a);
        *keep = err == 0;
        return err;
    }
    case ATTACH_OPEN:
        return do_open(c, rq, fd, a);
    case ATTACH_MAP:
        return do_map(c, rq);
    case ATTACH_UNMAP:
        return do_unmap(c, rq);
    case ATTACH_ADVISE:
        return each_part(c, rq, advise_part, &advice);
    case ATTACH_MINCORE:
        return do_mincore(c, rq, a);
    case ATTACH_WRITE:
        return each_part(c, rq, write_part, NULL);
    case ATTACH_DROP:
        return do_drop(c, rq);
    default:
        return -EOPNOTSUPP;
    }
}

/* What a client sends (a socket that lingers, a file whose server does not answer) holds whoever receives or closes it
 * for as long as the client likes. So that is done without work, and our end need not wait for it.
 * Returns false: we have ended, and the client with us. */
static bool work_begin(struct attach_client *c)
{
    pthread_mutex_lock(&c->work);
    if (!c->left)
        return true;
    pthread_mutex_unlock(&c->work);
    return false;
}

static void work_end(struct attach_client *c)
{
    pthread_mutex_unlock(&c->work);
}

static unsigned hang_up(struct attach_client *c)
{
    atomic_store(&c->hung_up, true);
    (void)shutdown(c->sock, SHUT_RDWR);
    return 0;
}

/* How long may it be silent? poll(2)'s milliseconds. */
static int patience(const struct attach_client *c)
{
    uint64_t now = clock_now(&clock_monotonic);
    if (c->uffd >= 0)
        return -1;
    return now < c->hello_ns ? (int)((c->hello_ns - now) / 1000000) + 1 : 0;
}

/* Its events are read until its ranges are write-protected: who does that needs them read. */
void client_end(struct attach_client *c)
{
    ranges_end(c);
    (void)eventfd_write(c->stop, 1);
    worker_stop(c->events);
    c->events = NULL;
    for (unsigned i = 0; i < ATTACH_OPENS_MOST; i++)
        if (c->opens[i] != NULL)
            open_put(c->attach, c->opens[i]);
    memset(c->opens, 0, sizeof c->opens);
}

/* Its userfaultfd, and its socket with the descriptors in it that nobody has received. The socket's number stays: it
 * may be shut down still. */
static void let_go(struct attach_client *c)
{
    if (c->uffd >= 0)
        uffd_drop(c->uffd, &c->space);
    c->uffd = -1;
    (void)dup3(c->stop, c->sock, O_CLOEXEC);
}

/* Until no store of its can come any more. Asking may take as long as the client likes, and ending it as
 * long as others like: nobody else must wait for that. */
static unsigned await_end(struct attach_client *c)
{
    if (atomic_load(&c->ended))
        return 60000; /* who accepts buries it */
    if (work_begin(c)) {
        pthread_mutex_lock(&c->lock);
        bool none = c->nr_ranges == 0;
        pthread_mutex_unlock(&c->lock);
        bool over = none || uffd_dead(c->uffd);
        if (over)
            client_end(c);
        work_end(c);
        if (!over)
            return END_MS;
    }
    let_go(c);
    atomic_store(&c->ended, true);
    (void)eventfd_write(c->attach->wake, 1);
    return 60000;
}

/* Returns 0; -ECONNRESET. */
static int carry_out(struct attach_client *c, const struct attach_request *rq, int fd)
{
    static _Thread_local struct answer a;
    bool keep = false;
    a.reply = (struct attach_reply){ 0 };
    a.nr_bytes = 0;
    a.fd = -1;
    a.own = false;
    if (work_begin(c)) {
        a.reply.error = dispatch(c, rq, fd, &a, &keep);
        work_end(c);
    }
    if (fd >= 0 && !keep)
        close(fd);
    bool works = work_begin(c);
    int err = works ? send_answer(c->sock, &a) : -ECONNRESET;
    if (a.own)
        close(a.fd);
    if (!works)
        return err;
    if (err == 0 && rq->op == ATTACH_ADVISE && rq->advice == MADV_WILLNEED && a.reply.error == 0)
        bring_in(c, rq, true);
    work_end(c);
    return err;
}

unsigned requests_step(void *arg)
{
    struct attach_client *c = arg;
    if (!atomic_load(&c->begun))
        return 60000; /* who accepts wakes it */
    struct pollfd fd_in = { .fd = c->sock, .events = POLLIN };
    if (atomic_load(&c->hung_up))
        return await_end(c);
    int ms = patience(c), ready = ms != 0 ? poll(&fd_in, 1, ms) : 0;
    if (ready <= 0)
        return ready == 0 ? hang_up(c) : 0;
    struct attach_request rq;
    int fd, err = receive(c->sock, &rq, &fd);
    if (err == 0)
        err = carry_out(c, &rq, fd);
    return err == 0 || err == -EAGAIN ? 0 : hang_up(c);
}
