#include "cache/uffd.h"

#include <errno.h>
#include <sched.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "cache/attach_proto.h"
#include "cache/clock.h"

#define PROBE_ADDRESS ((uint64_t)1 << 20) /* above vm.mmap_min_addr */

static uint64_t address_of(const struct uffd_vma *u, uint32_t index)
{
    return u->addr + ((uint64_t)(index - u->vma.first) << PAGE_SHIFT);
}

/* Nothing is there that could be touched: as good as done. */
static bool nobody_there(int err)
{
    return err == -ENOENT || err == -ESRCH;
}

/* Note that a call begins.   NULL: it is not recorded. */
static struct uffd_call *call_begin(const struct uffd_vma *u)
{
    if (u->space == NULL)
        return NULL;
    uint64_t now = clock_now(&clock_monotonic);
    for (unsigned i = 0; i < UFFD_CALLS; i++) {
        struct uffd_call *call = &u->space->call[i];
        uint64_t none = 0;
        if (atomic_load_explicit(&call->since_ns, memory_order_relaxed) == 0 &&
            atomic_compare_exchange_strong(&call->since_ns, &none, now)) {
            atomic_store_explicit(&call->file, u->file, memory_order_relaxed);
            return call;
        }
    }
    return NULL;
}

static void call_end(struct uffd_call *call)
{
    if (call != NULL)
        atomic_store_explicit(&call->since_ns, 0, memory_order_release);
}

static int call(const struct uffd_vma *u, unsigned long request, void *arg)
{
    struct uffd_call *call = call_begin(u);
    int err = ioctl(u->uffd, request, arg) == 0 ? 0 : -errno;
    call_end(call);
    return err;
}

void uffd_drop(int uffd, struct uffd_space *space)
{
    const struct uffd_vma any = { .uffd = uffd, .space = space };
    struct uffd_call *call = call_begin(&any);
    close(uffd);
    call_end(call);
}

/* A call that is about to end may be taken for one that begins: its file is wrong then, never its age. */
bool uffd_longest(struct uffd_space *space, uint64_t *since_ns, uint64_t *file)
{
    bool any = false;
    for (unsigned i = 0; i < UFFD_CALLS; i++) {
        uint64_t since = atomic_load(&space->call[i].since_ns);
        if (since == 0 || (any && since >= *since_ns))
            continue;
        any = true;
        *since_ns = since;
        *file = atomic_load(&space->call[i].file);
    }
    return any;
}

void uffd_read_begin(struct uffd_space *space)
{
    down_write(&space->moves);
    atomic_fetch_add(&space->reads, 1);
}

void uffd_read_end(struct uffd_space *space)
{
    atomic_fetch_add(&space->reads, 1);
    up_write(&space->moves);
}

void uffd_read_wait(struct uffd_space *space)
{
    down_read(&space->moves);
    up_read(&space->moves);
}

void uffd_close(struct uffd_space *space)
{
    down_write(&space->moves);
    atomic_store(&space->closed, true);
    up_write(&space->moves);
}

static void stay_end(const struct uffd_vma *u)
{
    if (u->space != NULL)
        up_read(&u->space->moves);
}

static bool is_gone(const struct uffd_vma *u)
{
    return atomic_load(&u->gone) || (u->space != NULL && atomic_load(&u->space->closed));
}

/* It is at its address, and stays there until stay_end().
 * Returns 0; -ENOENT: it is not there any more; -EAGAIN: that is being found out. */
static int stay_begin(const struct uffd_vma *u)
{
    if (is_gone(u))
        return -ENOENT;
    if (u->space != NULL && !down_read_trylock(&u->space->moves))
        return -EAGAIN;
    if (!is_gone(u))
        return 0;
    stay_end(u);
    return -ENOENT;
}

static void wake_range(int uffd, uint64_t addr, uint64_t bytes)
{
    struct uffdio_range range = { .start = addr, .len = bytes };
    (void)ioctl(uffd, UFFDIO_WAKE, &range); /* fails only where nobody can wait */
}

/* Let in what is not in yet, and wake who waits for the first page; what is behind that is a favour.
 * Returns 0; -EAGAIN, -errno: of the first page. */
static int map_readable(const struct uffd_vma *u, uint64_t addr, uint64_t bytes)
{
    uint64_t end = addr + bytes, mode = u->writable ? UFFDIO_CONTINUE_MODE_WP : 0;
    for (uint64_t at = addr; at < end;) {
        struct uffdio_continue c = { .range = { .start = at, .len = end - at }, .mode = mode };
        int err = call(u, UFFDIO_CONTINUE, &c);
        uint64_t done = c.mapped > 0 ? (uint64_t)c.mapped : 0;
        if (err == -EEXIST) {
            if (at + done == addr)
                wake_range(u->uffd, addr, PAGE_SIZE);
            done += PAGE_SIZE; /* this one was there: go on behind it */
        } else if (at == addr && done == 0 && err == -ENOENT && end - at > PAGE_SIZE) {
            end = at + PAGE_SIZE; /* mprotect and the like split a mapping: not across the border */
        } else if (at == addr && done == 0 && nobody_there(err)) {
            wake_range(u->uffd, addr, PAGE_SIZE); /* whoever waits looks at what is there now */
            return 0;
        } else if (done == 0 || err == 0) {
            return at == addr && done == 0 ? err : 0;
        }
        at += done;
    }
    return 0;
}

static int protect_range(const struct uffd_vma *u, uint64_t addr, uint64_t bytes, uint64_t mode)
{
    struct uffdio_writeprotect w = { .range = { .start = addr, .len = bytes }, .mode = mode };
    return call(u, UFFDIO_WRITEPROTECT, &w);
}

/* Make the first page writable, and with the same call, before its client goes on, those behind it that are
 * as it was: there and protected, or not there. The others fault. */
static int try_writable(const struct uffd_vma *u, uint64_t addr, uint64_t bytes, unsigned flags)
{
    int err = -EEXIST;
    if (!(flags & VMA_MAP_PRESENT)) {
        struct uffdio_continue c = { .range = { .start = addr, .len = bytes } };
        err = call(u, UFFDIO_CONTINUE, &c);
        err = c.mapped > 0 ? 0 : err;
    }
    return err == -EEXIST ? protect_range(u, addr, bytes, 0) : err;
}

/* Pages whose first store was granted. */
static int map_writable(const struct uffd_vma *u, uint64_t addr, uint64_t bytes, unsigned flags)
{
    int err = try_writable(u, addr, bytes, flags);
    if (err == -ENOENT && bytes > PAGE_SIZE) /* somebody else's is among those behind */
        err = try_writable(u, addr, PAGE_SIZE, flags);
    if (!nobody_there(err))
        return err;
    wake_range(u->uffd, addr, PAGE_SIZE);
    return 0;
}

static int uffd_map(struct vm_area *vma, uint32_t index, struct page **pages, unsigned n,
                    unsigned flags)
{
    struct uffd_vma *u = (struct uffd_vma *)vma;
    uint64_t addr = address_of(u, index), bytes = (uint64_t)n << PAGE_SHIFT;
    (void)pages; /* they lie in the memfd, at their index */
    int err = stay_begin(u);
    if (err == -ENOENT)
        wake_range(u->uffd, addr, PAGE_SIZE); /* whoever waits looks at what is there now */
    if (err != 0)
        return err == -ENOENT ? 0 : err;
    err =
        flags & VMA_MAP_WRITE ? map_writable(u, addr, bytes, flags) : map_readable(u, addr, bytes);
    stay_end(u);
    return err;
}

int uffd_protect(struct uffd_vma *u, uint32_t first, uint32_t last)
{
    uint64_t addr = address_of(u, first), end = address_of(u, last) + PAGE_SIZE;
    if (!u->writable)
        return 0;
    int err = protect_range(u, addr, end - addr, UFFDIO_WRITEPROTECT_MODE_WP);
    if (err == -ESRCH)
        return 0;
    /* Where some of the range is somebody else's by now, that part ends the ioctl, with every later page left
     * as it was: then each page is asked for. */
    for (uint64_t at = addr; err == -ENOENT && end - addr > PAGE_SIZE && at < end;
         at += PAGE_SIZE) {
        int one = protect_range(u, at, PAGE_SIZE, UFFDIO_WRITEPROTECT_MODE_WP);
        if (one != 0 && !nobody_there(one))
            return one;
    }
    if (err != 0 && err != -ENOENT)
        return err;
    /* It may have been at another address just now: see uffd.h. */
    return u->space != NULL && atomic_load(&u->space->reads) % 2 != 0 ? -EAGAIN : 0;
}

/* Has it kept somebody waiting for too long? */
static bool keeps_waiting(struct uffd_space *space)
{
    uint64_t since = 0, file;
    return uffd_longest(space, &since, &file) &&
           clock_now(&clock_monotonic) > since + UFFD_PATIENCE_NS;
}

/* Returns false: whoever is at it is held, or the next would be. */
static bool protect_begin(struct uffd_space *space)
{
    while (!keeps_waiting(space)) {
        bool free = false;
        if (atomic_compare_exchange_strong(&space->protecting, &free, true))
            return true;
        sched_yield();
    }
    return false;
}

/* Who reads the client's events tells it: as many as the client likes may wait at its bell, and to wake 20,000 of them
 * takes 11 ms. */
static void note_taken(struct uffd_vma *u)
{
    if (u->writable && u->space != NULL && !atomic_exchange(&u->space->taken, true))
        (void)eventfd_write(u->space->taken_fd, 1);
}

static int uffd_write_protect(struct vm_area *vma, uint32_t first, uint32_t last)
{
    struct uffd_vma *u = (struct uffd_vma *)vma;
    if (!u->writable)
        return 0;
    if (u->space != NULL && !protect_begin(u->space))
        return -EBUSY;
    int err = uffd_protect(u, first, last);
    if (u->space != NULL)
        atomic_store_explicit(&u->space->protecting, false, memory_order_release);
    note_taken(u);
    return err;
}

/* The memfd's punching takes the page out everywhere. Who is told before that faults all the same, the page
 * being clean and protected, and waits for its lock. */
static int uffd_zap(struct vm_area *vma, uint32_t first, uint32_t last)
{
    (void)first;
    (void)last;
    note_taken((struct uffd_vma *)vma);
    return 0;
}

void uffd_wake(struct uffd_vma *u, uint32_t index)
{
    wake_range(u->uffd, address_of(u, index), PAGE_SIZE);
}

static int poison(struct uffd_vma *u, uint32_t index, bool gone)
{
    if (gone)
        (void)protect_range(u, address_of(u, index), PAGE_SIZE, UFFDIO_WRITEPROTECT_MODE_DONTWAKE);
    struct uffdio_poison p = { .range = { .start = address_of(u, index), .len = PAGE_SIZE } };
    return call(u, UFFDIO_POISON, &p);
}

int uffd_poison(struct uffd_vma *u, uint32_t index, bool gone)
{
    int err = stay_begin(u);
    if (err == -EAGAIN) /* nobody is woken: the caller tries again */
        return err;
    if (err == 0) {
        err = poison(u, index, gone);
        stay_end(u);
    }
    if (err != 0)
        uffd_wake(u, index);
    return nobody_there(err) ? 0 : err;
}

bool uffd_dead(int uffd)
{
    /* Some address that is never refused: whether anything is there is not the question. */
    const struct uffd_vma any = { .uffd = uffd };
    return protect_range(&any, PROBE_ADDRESS, PAGE_SIZE, UFFDIO_WRITEPROTECT_MODE_WP) == -ESRCH;
}

const struct vma_ops uffd_vma_ops = { .map = uffd_map,
                                      .write_protect = uffd_write_protect,
                                      .zap = uffd_zap };
