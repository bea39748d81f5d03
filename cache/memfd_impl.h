/* memfd_impl.h: what the files of memfd.h share.
 *
 *     memfd.c           the files, what a client does to them, mapping them   memfd_segment.c  which pages lie there
 *     memfd_idle.c      giving back what nobody has attached
 */
#ifndef FOLIO_CACHE_MEMFD_IMPL_H
#define FOLIO_CACHE_MEMFD_IMPL_H

#include "cache/memfd.h"
#include "cache/page_cache.h"

struct segment_user { /* one account's ranges */
    struct segment_user *next;
    struct memfd_account *account;
    unsigned ranges;
};

struct
    memfd_segment { /* (c) constant  (f) memfd->lock and table, either to read  (t) table  (a) atomic */
    struct memfd *f; /* (c) */
    uint32_t first;  /* (c) its pages in the file */
    uint64_t count;  /* (c) */
    char *frames;    /* (c) they are mapped here */
    char *
        window; /* (c) and here, never touched: there pages are put into the memfd. NULL: they cannot */
    struct memfd_segment *next; /* (f) */
    struct segment_user *users; /* (t; added with lock, too) */
    bool live;                  /* (f) pages that enter the tree come to lie here */
    _Atomic bool
        whole; /* since it is live, every page of it that is in the tree lies in the memfd  (a) */
};

struct memfd {                     /* (c) constant  (l) lock  (f), (t) as above  (i) idle_lock */
    struct address_space *mapping; /* (c) */
    pthread_mutex_t lock;          /* held while a client keeps the files from being resized */
    pthread_mutex_t table;         /* innermost */
    int fd, read_fd;               /* the same file, the second for reading only; -1: none    (f) */
    uint64_t pages;                /* the file's size now; without: what it is to be at least (l) */
    struct memfd_segment *segments; /*                                          (f) */
    _Atomic unsigned nr_segments;
    unsigned
        opens;   /* those who were given it, or may be                (t; added with lock, too) */
    bool listed; /*                                                   (i) */
    bool busy;   /* somebody gives back what is idle                  (i) */
    struct list_head idle; /*                                                   (i) */
    struct memfd *next;    /* of the dead                                       (dead_lock) */
};

/* ---- memfd.c --------------------------------------------------------------------------------- */

int memfd_create_for(struct address_space *m, struct memfd **out); /* without files */
/* Have the files, so many pages long. Context: lock.   Returns 0 or -errno. */
int memfd_open_files(struct memfd *f, uint64_t pages);
void memfd_free(
    struct memfd *f); /* its files may be longer than nothing, and other processes have them */
/* Have another thread call memfd_limit_idle_now(). Any lock may be held. */
void memfd_limit_idle_soon(void);
/* Are there any that memfd_bury() was called for, and that are not free yet? */
bool memfd_burying(void);
/* Map it: frames and window.   Returns 0 or -ENOMEM. */
int segment_map(struct memfd_segment *s);
void segment_unmap(struct memfd_segment *s);

/* ---- memfd_segment.c ------------------------------------------------------------------------- */

static inline void *segment_frame(const struct memfd_segment *s, uint32_t index)
{
    return s->frames + ((uint64_t)(index - s->first) << PAGE_SHIFT);
}

/* Pages are put into a longer one by touching it. */
static inline bool segment_has_window(const struct memfd_segment *s)
{
    return s->count <= (uint64_t)1 << (40 - PAGE_SHIFT);
}

/* A live one that has all those pages, or NULL. Context: lock, or table. */
struct memfd_segment *segment_over(const struct memfd *f, uint32_t first, uint64_t count);
/* The window of that whose frame it is, which page of it that is, and how many there are from it on.   NULL: none. */
const char *segment_window(struct memfd *f, const void *frame, uint64_t *in, uint64_t *rest);
/* Free one that is unmapped, if it was mapped. */
void segment_free(struct memfd_segment *s);
void segments_free(struct memfd *f); /* all; nobody uses it */

/* ---- memfd_idle.c ---------------------------------------------------------------------------- */

/* Something of it may be idle now. Context: table, or nothing. */
void memfd_note_idle(struct memfd *f);
/* Leave no more of them idle than may be. */
void memfd_limit_idle_now(void);
/* Want of something: give back what is idle.   Returns true: try again. tries: how often it was called. */
bool memfd_make_room(unsigned tries);
/* From now on nothing of it is given back. */
void memfd_forget_idle(struct memfd *f);

#endif
