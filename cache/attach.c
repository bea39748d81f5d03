#include "cache/attach.h"

#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include "cache/attach_impl.h"
#include "cache/memfd.h"

#define WATCH_MS   1000 /* how often clients are looked at that may keep us waiting */
#define SECOND     1000000000u
#define LEAVE_MS   1000 /* how long our end waits for threads that clients may hold, all of them */
#define WANT_MS    10   /* until what was wanting for a new client is looked for again */
#define WANT_TRIES 20   /* then new clients are hung up on */

/* ---- clients --------------------------------------------------------------------------------- */

static struct attach_client *client_of(struct list_head *n)
{
    return list_entry(n, struct attach_client, node);
}

/* A user's clients have one account together; the client's own is for its alone, or for the first of his. Context: the
 * accepting thread, as for the list. */
static void account_join(struct attach_client *c)
{
    uid_t uid = c->peer.uid;
    struct attach_account *own = c->account;
    own->uid = uid;
    own->shared = uid != 0 && uid != geteuid();
    for (struct list_head *n = c->attach->clients.next; own->shared && n != &c->attach->clients;
         n = n->next) {
        struct attach_account *account = client_of(n)->account;
        if (account->shared && account->uid == uid) {
            free(own);
            c->account = account;
            account->clients++;
            return;
        }
    }
}

static void account_put(struct attach_account *account)
{
    if (account != NULL && --account->clients == 0)
        free(account);
}

static void client_free(struct attach_client *c)
{
    if (c->stop >= 0)
        close(c->stop);
    if (c->bell >= 0)
        close(c->bell);
    if (c->space.taken_fd >= 0)
        close(c->space.taken_fd);
    if (c->sock >= 0)
        close(c->sock);
    pthread_mutex_destroy(&c->lock);
    pthread_mutex_destroy(&c->work);
    account_put(c->account);
    free(c->ranges);
    free(c);
}

/* What a client needs, before there is a connection: one that cannot be served yet waits in the listener's queue, and
 * costs nothing. Its thread has nothing to do until client_begin().   -ENOMEM, -EAGAIN, -EMFILE, -ENFILE. */
static int client_prepare(struct attach *a, struct attach_client **out)
{
    struct attach_client *c = calloc(1, sizeof *c);
    if (c == NULL)
        return -ENOMEM;
    c->attach = a;
    c->sock = -1;
    c->uffd = -1;
    c->bell = -1;
    c->account = calloc(1, sizeof *c->account);
    if (c->account != NULL)
        c->account->clients = 1;
    c->stop = eventfd(0, EFD_CLOEXEC);
    c->space.taken_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    pthread_mutex_init(&c->lock, NULL);
    pthread_mutex_init(&c->work, NULL);
    int err = c->stop < 0 || c->space.taken_fd < 0 ? -errno : c->account == NULL ? -ENOMEM : 0;
    if (err == 0)
        err = worker_start(&c->requests, "folio-attach", requests_step, c);
    if (err == 0)
        *out = c;
    else
        client_free(c);
    return err;
}

/* Has that user enough connections? The list is read without its lock: nobody else changes it. */
static bool has_enough(const struct attach *a, uid_t uid)
{
    unsigned nr = 0;
    if (uid == 0 || uid == geteuid())
        return false;
    for (struct list_head *n = a->clients.next; n != &a->clients; n = n->next)
        nr += client_of(n)->peer.uid == uid;
    return nr >= ATTACH_CLIENTS_USER;
}

/* Takes over sock. Who has connections enough is hung up by its own thread: what it has sent already may be slow to
 * close. */
static void client_begin(struct attach_client *c, int sock)
{
    struct attach *a = c->attach;
    c->sock = sock;
    socklen_t size = sizeof c->peer;
    (void)getsockopt(sock, SOL_SOCKET, SO_PEERCRED, &c->peer, &size);
    if (has_enough(a, c->peer.uid)) {
        atomic_store(&c->hung_up, true);
        (void)shutdown(sock, SHUT_RDWR);
        atomic_fetch_add(&a->refused, 1);
    }
    c->hello_ns = clock_now(&clock_monotonic) + ATTACH_HELLO_MS * (uint64_t)1000000;
    account_join(c);
    pthread_mutex_lock(&a->lock);
    list_add(&c->node, &a->clients);
    a->nr_clients++;
    pthread_mutex_unlock(&a->lock);
    atomic_store(&c->begun, true);
    worker_wake(c->requests);
}

/* It has ended. */
static void client_bury(struct attach_client *c)
{
    struct attach *a = c->attach;
    pthread_mutex_lock(&a->lock);
    list_del(&c->node);
    a->nr_clients--;
    pthread_mutex_unlock(&a->lock);
    worker_stop(c->requests);
    client_free(c);
}

static void bury_ended(struct attach *a)
{
    for (struct list_head *n = a->clients.next, *next; n != &a->clients; n = next) {
        next = n->next;
        if (atomic_load(&client_of(n)->ended))
            client_bury(client_of(n));
    }
}

/* Write-protect and forget all ranges, and hang up on everybody.   Returns false: a thread is left that is held by what
 * its client sent; it will look at its client once more. */
static bool clients_leave(struct attach *a)
{
    for (struct list_head *n = a->clients.next; n != &a->clients; n = n->next) {
        atomic_store(&client_of(n)->hung_up, true);
        (void)shutdown(client_of(n)->sock, SHUT_RDWR); /* its requests' thread waits there */
    }
    for (struct list_head *n = a->clients.next; n != &a->clients; n = n->next) {
        struct attach_client *c = client_of(n);
        pthread_mutex_lock(&c->work);
        client_end(c);
        c->left = true;
        pthread_mutex_unlock(&c->work);
        worker_wake(c->requests);
    }
    for (unsigned ms = 0; ms < LEAVE_MS && !list_empty(&a->clients); ms++) {
        bury_ended(a);
        (void)poll(NULL, 0, 1);
    }
    return list_empty(&a->clients);
}

/* For how long have we waited for it? Whole seconds; *number: about which file. */
static unsigned client_waited_for(struct attach_client *c, uint64_t *number)
{
    uint64_t since;
    if (!uffd_longest(&c->space, &since, number))
        return 0;
    uint64_t now = clock_now(&clock_monotonic);
    return now > since ? (unsigned)((now - since) / SECOND) : 0;
}

/* Returns the seconds that it has kept us waiting. */
static unsigned client_watch(struct attach_client *c)
{
    uint64_t number = 0;
    unsigned seconds = client_waited_for(c, &number);
    bool stuck = seconds >= ATTACH_STUCK_S;
    if (stuck && !c->told)
        c->attach->ops->stuck(c->attach->arg, c->peer.pid, number, seconds);
    c->told = stuck;
    return seconds;
}

/* Returns how many threads are kept for a second by what some client does to a memfd. */
static unsigned watch_memfds(struct attach *a)
{
    unsigned kept = memfd_kept((uint64_t)ATTACH_STUCK_S * SECOND);
    if (kept > 0 && !a->told_kept)
        a->ops->kept(a->arg, kept, ATTACH_STUCK_S);
    a->told_kept = kept > 0;
    kept = memfd_kept(SECOND);
    if (kept > 0)
        memfd_more_undertakers(2);
    return kept;
}

/* Bury those that have ended, watch the others. The list is read without its lock: nobody else changes it. */
static void look_after_clients(struct attach *a)
{
    unsigned waiting = watch_memfds(a);
    bury_ended(a);
    for (struct list_head *n = a->clients.next; n != &a->clients; n = n->next)
        waiting += client_watch(client_of(n)) > 0;
    if (waiting > 0)
        a->ops->waiting(a->arg, waiting);
}

/* Returns 0; -EAGAIN: nobody waits; or what is wanting: -ENOMEM, -EMFILE, -ENFILE. */
static int accept_one(struct attach *a)
{
    struct attach_client *c = NULL;
    int err = client_prepare(a, &c);
    if (err != 0)
        return err == -EAGAIN ? -ENOMEM : err; /* no thread */
    int sock = accept4(a->listener, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
    err = sock < 0 ? -errno : 0;
    if (err == 0) {
        client_begin(c, sock);
    } else {
        worker_stop(c->requests);
        client_free(c);
    }
    return err;
}

/* Where memory or descriptors are wanting, for a moment as a rule, a new client waits in the listener's queue: until it
 * has lasted too long, and then nobody does. */
static unsigned accept_wanting(struct attach *a, int err)
{
    if (err != -ENOMEM)
        memfd_shrink_soon();
    if (a->wanting < WANT_TRIES) {
        a->wanting++;
        return WANT_MS;
    }
    int sock = accept4(a->listener, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
    if (sock >= 0) {
        atomic_fetch_add(&a->refused, 1);
        close(sock);
    }
    return WANT_MS;
}

static unsigned accept_step(void *arg)
{
    struct attach *a = arg;
    eventfd_t count;
    look_after_clients(a);
    struct pollfd fds[2] = { { .fd = a->listener, .events = POLLIN },
                             { .fd = a->wake, .events = POLLIN } };
    if (poll(fds, 2, a->nr_clients > 0 || memfd_any() ? WATCH_MS : -1) <= 0)
        return 0;
    if (fds[1].revents != 0)
        (void)eventfd_read(a->wake, &count);
    if (fds[0].revents == 0)
        return 0;
    int err = a->nr_clients < ATTACH_CLIENTS_MOST ? accept_one(a) : -ENOMEM;
    if (err == -ENOMEM || err == -EMFILE || err == -ENFILE)
        return accept_wanting(a, err);
    a->wanting = 0;
    return 0;
}

/* ---- starting and stopping ------------------------------------------------------------------- */

int attach_start(struct attach **out, int listener, const struct attach_ops *ops, void *arg)
{
    struct attach *a = calloc(1, sizeof *a);
    if (a == NULL)
        return -ENOMEM;
    a->ops = ops;
    a->arg = arg;
    a->listener = listener;
    a->wake = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    pthread_mutex_init(&a->lock, NULL);
    list_init(&a->clients);
    int err = a->wake < 0 ? -errno : pool_start(a);
    if (err == 0)
        err = worker_start(&a->accept, "folio-accept", accept_step, a);
    if (err != 0) {
        pool_stop(a);
        if (a->wake >= 0)
            close(a->wake);
        pthread_mutex_destroy(&a->lock);
        free(a);
        return err;
    }
    *out = a;
    return 0;
}

void attach_stop(struct attach *a)
{
    if (a == NULL)
        return;
    (void)shutdown(a->listener, SHUT_RDWR);
    (void)eventfd_write(a->wake, 1);
    worker_stop(a->accept);
    int err;
    while ((err = accept_one(a)) == 0) /* closing what they have sent may wait, too */
        ;
    /* Those for whom something is wanting are the kernel's to hang up on, when this process ends. */
    bool all = clients_leave(a) && (err == -EAGAIN || err == -EINVAL);
    pool_stop(a);
    if (!all)
        return;
    close(a->listener);
    close(a->wake);
    pthread_mutex_destroy(&a->lock);
    free(a);
}

void attach_stats(struct attach *a, struct attach_stats *out)
{
    *out = (struct attach_stats){ .ranges = atomic_load(&a->nr_ranges),
                                  .pages = atomic_load(&a->nr_pages),
                                  .refused = atomic_load(&a->refused),
                                  .queued = atomic_load(&a->queued),
                                  .poisoned = atomic_load(&a->poisoned) };
    out->stuck = memfd_kept((uint64_t)ATTACH_STUCK_S * SECOND) > 0;
    pthread_mutex_lock(&a->lock);
    out->clients = a->nr_clients;
    for (struct list_head *n = a->clients.next; n != &a->clients; n = n->next) {
        uint64_t number;
        out->stuck += client_waited_for(client_of(n), &number) >= ATTACH_STUCK_S;
    }
    pthread_mutex_unlock(&a->lock);
}
