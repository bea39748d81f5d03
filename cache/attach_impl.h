/* attach_impl.h: what the files of attach.h share.
 *
 *     attach.c        starting, accepting, watching      attach_fault.c   events, the pool
 *     attach_range.c  a client's ranges                  attach_request.c packets
 */
#ifndef FOLIO_CACHE_ATTACH_IMPL_H
#define FOLIO_CACHE_ATTACH_IMPL_H

#include <sys/socket.h>

#include "cache/attach.h"
#include "cache/attach_proto.h"
#include "cache/memfd.h"
#include "cache/page_cache.h"
#include "cache/uffd.h"

#define ATTACH_CLIENTS_MOST  4096u
#define ATTACH_CLIENTS_USER  1024u  /* of them of one user, but of root and our own */
#define ATTACH_HELLO_MS      10000  /* who has not said it by then is hung up */
#define ATTACH_RANGES_MOST   65536u /* per client, as vm.max_map_count */
#define ATTACH_OPENS_MOST    64u    /* per client, not mapped yet */
#define FAULT_WORKERS_MOST   128u
#define FAULT_STORING_MOST   96u /* of them, so that loads do not wait for throttled stores */
#define FAULT_WORKERS_CLIENT 16u /* of them for one client, which may keep them */
#define FAULT_STORING_CLIENT 12u

struct attach_open { /* counted by its ranges, and until it is mapped */
    struct attach_file file;
    uint64_t id;
    _Atomic uint32_t refs;
};

enum job_kind { JOB_FAULT, JOB_READAHEAD, JOB_HEAL, JOB_RELEASE };

struct attach_job {
    struct attach_job *next;
    struct attach_range *range; /* a reference */
    enum job_kind kind;
    uint32_t index;
    unsigned flags, tries;
    uint64_t due_ns;
};

struct attach_range {
    struct uffd_vma u; /* first */
    struct attach_client *client;
    struct attach_open *open;
    struct memfd_segment *segment; /* has its pages */
    _Atomic uint32_t refs;         /* one of the client's list, one of each job */
    bool forgotten;                /* (attach->lock) */
    _Atomic uint32_t readaheads;   /* jobs (a) */
    struct attach_job release;
};

struct attach_account {         /* of one client; or of all of one user, but of root and our own */
    struct memfd_account space; /* first */
    uid_t uid;
    bool shared;
    unsigned clients; /* the accepting thread's */
};

struct attach_client {     /* (c) constant  (l) lock  (a) atomic  (q) its requests' thread, work */
    struct attach *attach; /* (c) */
    struct list_head node; /* attach->clients                                 (attach->lock) */
    int sock, stop;        /* (c) stop: an eventfd, readable when its threads shall end */
    struct ucred peer;     /* (c) who connected */
    struct attach_account *account; /* (c) */
    uint64_t hello_ns;              /* (c) when it must have said HELLO */
    int uffd;                       /* (q) -1 before HELLO, and when it was let go */
    int bell;                /* (q) a socket, which its events' thread sends to; -1: it has none */
    struct worker *requests; /* (c) */
    pthread_mutex_t work;    /* that thread's, but while it waits, or closes what was sent */
    bool left;               /* by us, who end: it is to do no more than close that  (work) */
    struct worker *events;   /* (q) NULL before HELLO */
    uint64_t stray;          /* its events' thread's: see on_stray() */
    struct attach_open *opens[ATTACH_OPENS_MOST]; /* (q) */
    uint64_t next_id;                             /* (q) */
    _Atomic bool begun;                           /* (a) there is a connection */
    _Atomic bool hung_up, ended; /* (a) ended: its requests' thread has nothing more to do */
    struct uffd_space space;     /* (a) */
    unsigned workers; /* of the pool that are busy for it                  (attach->lock) */
    unsigned storing; /* of them with a store's fault                      (attach->lock) */
    bool told;        /* the accepting thread's: it was said that it is stuck */
    pthread_mutex_t lock;
    struct attach_range **ranges; /* by address, apart from each other                     (l) */
    size_t nr_ranges, room;       /*                                                       (l) */
    _Atomic uint32_t dying;       /* ranges taken out and not free yet                     (a) */
};

struct attach {                   /* (c) constant  (l) lock  (a) atomic */
    const struct attach_ops *ops; /* (c) */
    void *arg;                    /* (c) */
    int listener, wake;           /* (c) wake: an eventfd for the accepting thread */
    bool told_kept;               /* the accepting thread's */
    unsigned wanting;             /* likewise: so often in a row a new client could not be served */
    struct worker *accept;        /* (c) */
    pthread_mutex_t lock;
    struct list_head clients; /* (l) */
    unsigned nr_clients;      /* (l) */
    struct attach_job *jobs;  /* soonest first                                             (l) */
    struct fault_worker {
        struct attach *attach;
        struct worker *worker;
        bool idle; /* (l) */
    } workers[FAULT_WORKERS_MOST];
    unsigned nr_workers; /* (l) */
    unsigned nr_storing; /* workers with a store's fault, which may be throttled              (l) */
    _Atomic uint64_t nr_ranges, nr_pages, refused, queued, poisoned; /* (a) */
};

/* ---- attach_range.c -------------------------------------------------------------------------- */

/* The first range that lies in [addr, addr + length), or reaches into it; referenced, or NULL. */
struct attach_range *range_first(struct attach_client *c, uint64_t addr, uint64_t length);
/* The range around an address, likewise. */
struct attach_range *range_find(struct attach_client *c, uint64_t addr);
/* The part of a range that was cut which has this page of the file now, likewise: NULL: it is unmapped. */
struct attach_range *range_part(struct attach_range *cut, uint32_t index);
void range_put(struct attach_range *r);
struct span { /* in a client, and in the file */
    uint64_t addr;
    uint32_t first, count;
};
/* Track a range, whose pages that segment has. Takes over nothing.   -ENOMEM; -EEXIST: another is there. */
int range_add(struct attach_client *c, struct attach_open *open, struct memfd_segment *segment,
              const struct span *at);
enum cut_why {
    CUT_ASKED,   /* unmapped or mapped over, by a request; may be refused */
    CUT_COVERED, /* something has moved there */
    CUT_MOVED,   /* away */
};
/* Forget what lies in [addr, addr + length), or, when moved, track it at to instead.   -ENOMEM. */
int ranges_cut(struct attach_client *c, uint64_t addr, uint64_t length, enum cut_why why,
               uint64_t to);
/* Wait until nothing is done any more to ranges that were cut off. Not on a thread of events. */
void ranges_settle(struct attach_client *c);
/* Write-protect them all and forget them. */
void ranges_end(struct attach_client *c);
void open_put(struct attach *a, struct attach_open *open);

/* ---- attach_fault.c -------------------------------------------------------------------------- */

unsigned events_step(void *client);
/* Give a job to the pool. */
void pool_add(struct attach *a, struct attach_job *job);
/* Drop the jobs of a range that are not due yet, and let none of it be put off any more. */
void pool_forget(struct attach *a, struct attach_range *r);
/* Start the first worker. 0 or -errno. */
int pool_start(struct attach *a);
void pool_stop(struct attach *a);

/* ---- attach_request.c ------------------------------------------------------------------------ */

unsigned requests_step(void *client);
/* Write-protect and forget its ranges, and what it has open, and stop reading its events. Once or more.
 * Context: work. */
void client_end(struct attach_client *c);

#endif
