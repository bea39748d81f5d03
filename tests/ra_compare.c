/* ra_compare.c: does our readahead=linux read the same pages at the same steps as the kernel?
 *
 *   ra_compare DIR POLICY KB SEED STEPS         scripted sequences, then random ones
 *   ra_compare DIR POLICY KB PAGES "SEQUENCE"   one, on a file of so many pages, shown step by step
 *
 * POLICY is linux if DIR is on a file system without large folios, linux:large_folios if it has
 * them. Its read_ahead_kb is KB, and its device takes 1 MiB at a time. Each access is done to a file there and to a mapping of our cache, whose device
 * answers at once; then mincore(2) must show the pages that are in our tree. A sequence is:
 *
 *   rPAGE,N[*TIMES[+STEP]]   read N pages at PAGE; so often, going on by STEP pages each time
 *   bOFFSET,LEN[*...]        likewise in bytes
 *   mPAGE[*...] wPAGE        read or write a page of a mapping
 *   sPAGE xPAGE              read it after MADV_SEQUENTIAL, MADV_RANDOM
 *   S R N                    posix_fadvise: sequential, random, normal
 *   D                        drop the file's pages
 *
 * Exit status: 0 the same; 1 not; 2 could not be done.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "cache/page_cache.h"

#define MOST_PAGES 1024u
#define MOST_OPS   800u
#define MOST_READ  (400u * PAGE_SIZE) /* bytes of one read */
#define ATTEMPTS   5u    /* a difference that somebody else made does not come so often */
#define PATIENCE   2000u /* ms until what the kernel has not read is taken as not wanted */

struct op {
    char kind;
    uint64_t at, len; /* pages or bytes */
};

struct sequence {
    struct op ops[MOST_OPS];
    unsigned n;
};

struct sides {
    /* the kernel's */
    int fd;
    void *map;
    unsigned char resident[MOST_PAGES], before[MOST_PAGES];
    /* ours */
    struct page_cache *cache;
    struct device *dev;
    struct address_space m;
    struct file_ra_state ra;
    unsigned char ours[MOST_PAGES];

    char path[4096];
    uint64_t size;
    unsigned pages;
    const struct ra_policy *policy;
    uint32_t ra_pages;
    bool verbose;
    unsigned long steps, sequences, disturbed;
    char *buf;
};

static void die(const char *what)
{
    fprintf(stderr, "ra_compare: %s: %s\n", what, strerror(errno));
    exit(2);
}

static void pause_us(long us)
{
    nanosleep(&(struct timespec){ .tv_nsec = us * 1000 }, NULL);
}

/* ---- what is resident ------------------------------------------------------------------------ */

static void look_at_kernel(struct sides *s)
{
    if (mincore(s->map, s->size, s->resident) != 0)
        die("mincore");
    for (unsigned i = 0; i < s->pages; i++)
        s->resident[i] &= 1;
}

static void look_at_ours(struct sides *s)
{
    for (unsigned i = 0; i < s->pages; i++) {
        struct page *page = find_get_page(&s->m, i);
        s->ours[i] = page != NULL;
        if (page != NULL)
            put_page(s->cache, page);
    }
}

/* Is there a page that a has and b has not? */
static bool has_more(const struct sides *s, const unsigned char *a, const unsigned char *b)
{
    for (unsigned i = 0; i < s->pages; i++)
        if (a[i] && !b[i])
            return true;
    return false;
}

static void print_pages(const struct sides *s, const char *name, const unsigned char *set)
{
    printf("  %s:", name);
    for (unsigned i = 0; i < s->pages; i++) {
        unsigned first = i;
        while (set[i] && i + 1 < s->pages && set[i + 1])
            i++;
        if (set[i])
            printf(i > first ? " %u-%u" : " %u", first, i);
    }
    printf("\n");
}

/* Compare, giving the kernel's reads the time they need. Twice the same, so that nothing comes or
 * goes meanwhile.   1: the same; 0: not; -1: the kernel dropped pages by itself. */
static int compare(struct sides *s)
{
    unsigned same = 0;
    memcpy(s->before, s->resident, s->pages);
    look_at_ours(s);
    for (unsigned tries = 0; tries < PATIENCE * 10; tries++) {
        look_at_kernel(s);
        if (has_more(s, s->resident, s->ours))
            return 0;
        if (has_more(s, s->before, s->resident))
            return -1;
        if (memcmp(s->resident, s->ours, s->pages) != 0)
            pause_us(tries < 100 ? 20 : 100);
        else if (++same == 2)
            return 1;
    }
    return 0;
}

/* ---- one step -------------------------------------------------------------------------------- */

static void drop(struct sides *s)
{
    static const unsigned char none[MOST_PAGES];
    for (unsigned tries = 0; tries < 1000; tries++) {
        if (posix_fadvise(s->fd, 0, 0, POSIX_FADV_DONTNEED) != 0)
            die("POSIX_FADV_DONTNEED");
        look_at_kernel(s);
        if (!has_more(s, s->resident, none)) {
            if (invalidate_inode_pages2_range(&s->m, 0, UINT32_MAX) != 0)
                die("our pages do not go");
            return;
        }
        pause_us(1000);
    }
    die("the kernel's pages do not go");
}

static void read_both(struct sides *s, uint64_t offset, uint64_t len)
{
    if (len > MOST_READ)
        len = MOST_READ;
    ssize_t theirs = pread(s->fd, s->buf, len, (off_t)offset);
    ssize_t ours = filemap_read(&s->m, &s->ra, offset, s->buf, len);
    if (theirs < 0)
        die("pread");
    if (theirs != ours) {
        printf("the kernel reads %zd bytes, we %zd\n", theirs, ours);
        exit(1);
    }
}

static void touch_both(struct sides *s, char kind, uint64_t index)
{
    if (index >= s->pages)
        return;
    static const struct {
        char kind;
        int advice;
        enum ra_how how;
    } all[] = { { 'm', MADV_NORMAL, RA_FAULT },
                { 'w', MADV_NORMAL, RA_FAULT_WRITE },
                { 's', MADV_SEQUENTIAL, RA_FAULT_SEQUENTIAL },
                { 'x', MADV_RANDOM, RA_FAULT_RANDOM } };
    unsigned k = 0;
    while (all[k].kind != kind)
        k++;
    volatile char *p = mmap(NULL, PAGE_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE, s->fd,
                            (off_t)(index << PAGE_SHIFT));
    if (p == MAP_FAILED || madvise((void *)p, PAGE_SIZE, all[k].advice) != 0)
        die("mmap");
    if (kind == 'w')
        *p = 1; /* of our copy, so the file's page stays clean */
    else
        (void)*p;
    munmap((void *)p, PAGE_SIZE);

    enum ra_how how = all[k].how;
    struct page *page;
    bool major;
    if (filemap_fault_page(&s->m, &s->ra, (uint32_t)index, how, &page, &major) != 0)
        die("filemap_fault_page");
    put_page(s->cache, page);
}

static void advise_both(struct sides *s, int advice, enum ra_advice ours)
{
    if (posix_fadvise(s->fd, 0, 0, advice) != 0)
        die("posix_fadvise");
    file_ra_advise(&s->ra, ours);
}

static void do_op(struct sides *s, const struct op *op)
{
    switch (op->kind) {
    case 'r':
        read_both(s, op->at << PAGE_SHIFT, op->len << PAGE_SHIFT);
        break;
    case 'b':
        read_both(s, op->at, op->len);
        break;
    case 'S':
        advise_both(s, POSIX_FADV_SEQUENTIAL, RA_ADVICE_SEQUENTIAL);
        break;
    case 'R':
        advise_both(s, POSIX_FADV_RANDOM, RA_ADVICE_RANDOM);
        break;
    case 'N':
        advise_both(s, POSIX_FADV_NORMAL, RA_ADVICE_NORMAL);
        break;
    case 'D':
        drop(s);
        break;
    default:
        touch_both(s, op->kind, op->at);
    }
}

static void print_op(const struct op *op)
{
    if (op->kind == 'r' || op->kind == 'b')
        printf(" %c%llu,%llu", op->kind, (unsigned long long)op->at, (unsigned long long)op->len);
    else if (strchr("mwsx", op->kind) != NULL)
        printf(" %c%llu", op->kind, (unsigned long long)op->at);
    else
        printf(" %c", op->kind);
}

static void print_difference(const struct sides *s, const struct sequence *q, unsigned step)
{
    printf("a difference after step %u; the sequence, for a file of %llu bytes:\n", step + 1,
           (unsigned long long)s->size);
    printf("  \"");
    for (unsigned i = 0; i <= step; i++)
        print_op(&q->ops[i]);
    printf("\"\n");
    print_pages(s, "before      ", s->before);
    print_pages(s, "kernel now  ", s->resident);
    print_pages(s, "ours now    ", s->ours);
}

/* ---- a sequence ------------------------------------------------------------------------------ */

static void sides_begin(struct sides *s)
{
    s->fd = open(s->path, O_RDONLY);
    if (s->fd < 0)
        die(s->path);
    s->map = mmap(NULL, s->size, PROT_READ, MAP_SHARED, s->fd, 0);
    if (s->map == MAP_FAILED)
        die("mmap");
    mapping_init(&s->m, s->cache, s->dev, 1, NULL, s->size);
    file_ra_state_init(&s->ra, s->policy, s->ra_pages);
    drop(s);
}

static void sides_end(struct sides *s)
{
    mapping_destroy(&s->m);
    munmap(s->map, s->size);
    close(s->fd);
}

/* A sequence that was given up may have left reads under way: mincore(2) does not show their pages, and
 * nothing drops them. Reading the file waits for them. */
static void settle(struct sides *s)
{
    int fd = open(s->path, O_RDONLY);
    if (fd < 0)
        die(s->path);
    for (uint64_t at = 0; at < s->size; at += MOST_READ)
        if (pread(fd, s->buf, MOST_READ, (off_t)at) < 0)
            die("pread");
    close(fd);
}

/* Every step, and a look whether something comes late.   As compare(); *step: where it ended. */
static int try_sequence(struct sides *s, const struct sequence *q, unsigned *step)
{
    int same = 1;
    sides_begin(s);
    for (*step = 0; *step < q->n; ++*step) {
        do_op(s, &q->ops[*step]);
        if ((same = compare(s)) <= 0)
            return same;
        if (s->verbose) {
            print_op(&q->ops[*step]);
            print_pages(s, "", s->resident);
        }
    }
    --*step;
    pause_us(200);
    return compare(s);
}

/* Memory pressure takes pages away at any time; so what differs must differ again and again. */
static bool run_sequence(struct sides *s, const struct sequence *q)
{
    int same = 0;
    s->sequences++;
    for (unsigned i = 0; i < ATTEMPTS && same <= 0; i++) {
        unsigned step;
        same = try_sequence(s, q, &step);
        s->steps += step + 1;
        s->disturbed += same <= 0;
        if (same == 0 && i + 1 == ATTEMPTS)
            print_difference(s, q, step);
        sides_end(s);
        if (same <= 0)
            settle(s);
    }
    return same != 0;
}

static void add_op(struct sequence *q, char kind, uint64_t at, uint64_t len)
{
    if (q->n < MOST_OPS)
        q->ops[q->n++] = (struct op){ .kind = kind, .at = at, .len = len };
}

/* One word of a sequence.   Returns where it ends; NULL: not understood. */
static const char *parse_op(const char *text, struct sequence *q)
{
    struct op op = { .kind = *text++, .len = 1 };
    char *end = (char *)text;
    long times = 1, step = 0;
    if (op.kind == '\0' || strchr("rbmwsxSRND", op.kind) == NULL)
        return NULL;
    if (strchr("rbmwsx", op.kind) != NULL)
        op.at = strtoul(end, &end, 10);
    if (*end == ',')
        op.len = strtoul(end + 1, &end, 10);
    if (*end == '*')
        times = strtol(end + 1, &end, 10);
    if (*end == '+' || *end == '-')
        step = strtol(end, &end, 10);
    for (long i = 0; i < times; i++)
        add_op(q, op.kind, op.at + (uint64_t)(i * step), op.len);
    return *end == ' ' || *end == '\0' ? end : NULL;
}

static void parse_sequence(const char *text, struct sequence *q)
{
    q->n = 0;
    for (;;) {
        text += strspn(text, " ");
        if (*text == '\0')
            return;
        const char *end = parse_op(text, q);
        if (end == NULL) {
            fprintf(stderr, "ra_compare: not a sequence: %s\n", text);
            exit(2);
        }
        text = end;
    }
}

/* ---- random sequences ------------------------------------------------------------------------ */

static uint64_t random_state;

static unsigned below(unsigned n)
{
    random_state = random_state * 6364136223846793005u + 1442695040888963407u;
    return (unsigned)((random_state >> 33) % n);
}

/* One of the readers that a sequence interleaves. */
struct actor {
    char kind;
    int64_t at, step; /* bytes for 'b', else pages */
    unsigned len;
    bool jumps;
};

static void draw_actor(struct actor *a, unsigned pages, bool bytes, bool faults)
{
    static const unsigned lengths[] = { 1, 1, 1, 1, 2, 3, 4, 5, 8, 13, 16, 31, 32, 33, 64, 100 };
    unsigned unit = bytes ? PAGE_SIZE : 1;
    *a = (struct actor){ .kind = bytes ? 'b' : 'r' };
    a->len = below(10) == 0 ? 1 + below(300 * unit)
                            : lengths[below(16)] * unit - (bytes ? below(PAGE_SIZE) : 0);
    if (faults && below(2) == 0) {
        a->kind = "mmmmwwsx"[below(8)];
        a->len = 1;
        unit = 1;
    }
    a->at = below(3) == 0 ? 0 : below(pages * unit);
    switch (below(6)) {
    case 0:
        a->jumps = true;
        break;
    case 1:
        a->step = -(int64_t)a->len;
        break;
    case 2:
        a->step = (int64_t)below(40 * unit) - (int64_t)(10 * unit);
        break;
    default:
        a->step = a->len;
    }
}

static void step_actor(struct actor *a, unsigned pages, struct sequence *q)
{
    int64_t end = (int64_t)pages * (a->kind == 'b' ? PAGE_SIZE : 1);
    if (a->at < 0 || a->at >= end + 2 || a->jumps || below(40) == 0)
        a->at = below((unsigned)end);
    add_op(q, a->kind, (uint64_t)a->at, a->len);
    a->at += a->step;
}

static void draw_sequence(struct sequence *q, unsigned pages)
{
    struct actor actors[3];
    unsigned nr = 1 + below(3), len = 10 + below(60), turn = 0;
    bool bytes = below(4) == 0, faults = below(3) == 0, mixed = below(2), advice = below(4) == 0;
    q->n = 0;
    for (unsigned i = 0; i < nr; i++)
        draw_actor(&actors[i], pages, bytes, faults);
    while (q->n < len) {
        turn = mixed ? below(nr) : (turn + 1) % nr;
        step_actor(&actors[turn], pages, q);
        if (advice && below(15) == 0)
            add_op(q, "SRND"[below(4)], 0, 0);
    }
}

/* ---- main ------------------------------------------------------------------------------------ */

static const char *const scripted[] = {
    "r0,1*400+1",                       /* sequential from the start */
    "r300,1*300+1",                     /* from the middle */
    "r7,3*200+3",                       /* three pages at a time */
    "r0,64*16+64",                      /* requests larger than the window */
    "r0,300*3+300",                     /* and than the device takes */
    "r512,400 r912,10*4+10",            /* the same from the middle, over the end of the file */
    "r900,1*120-1",                     /* backward */
    "r500,4*60-4",                      /* the same in blocks */
    "r0,1*200+5",                       /* strided */
    "r100,2*100+3",                     /* strides with small gaps */
    "r9,1 r700,1 r30,1 r512,1 r1023,1", /* random */
    "b100,50*300+2000",                 /* less than a page at a time, unaligned */
    "m500 m500 m508 m524 m525*200+1",   /* read-around and on */
    "m3 m1020 m100*300+3",              /* likewise at both ends of the file */
    "s100*100+1",                       /* MADV_SEQUENTIAL */
    "x100*50+1 m130*20+1",              /* MADV_RANDOM */
    "S r0,1*300+1 N r400,1*100+1",      /* POSIX_FADV_SEQUENTIAL */
    "R r0,1*50+1 r100,40*3+40 m500 N r600,1*50+1", /* POSIX_FADV_RANDOM */
    "r0,32 r32,1*40+1 D r72,1*40+1",               /* dropped under way */
    "r0,1*64+1 m20*64+1 r64,1*64+1",               /* reads and faults of one file */
};

/* So many write faults that miss that read-around ends, and now and then enough hits to begin again. */
static void fault_storm(struct sequence *q)
{
    q->n = 0;
    while (q->n + 2 < MOST_OPS) {
        add_op(q, 'D', 0, 0);
        unsigned at = below(MOST_PAGES), hits = below(60) == 0 ? 10 + below(10) : 0;
        add_op(q, "wwwwwwwwwmsx"[below(12)], at, 1);
        for (unsigned i = 0; i < hits; i++)
            add_op(q, "mmwsx"[below(5)], at + below(12), 1);
    }
}

static void make_file(struct sides *s, const char *dir, uint64_t size)
{
    int n = snprintf(s->path, sizeof s->path, "%s/%llu", dir, (unsigned long long)size);
    s->size = size;
    s->pages = (unsigned)((size + PAGE_SIZE - 1) >> PAGE_SHIFT);
    if (n < 0 || (size_t)n >= sizeof s->path || s->pages > MOST_PAGES)
        die("DIR or size too large");
    int fd = open(s->path, O_RDWR | O_CREAT, 0600);
    if (fd < 0)
        die(s->path);
    memset(s->buf, 0, PAGE_SIZE);
    for (uint64_t at = (uint64_t)lseek(fd, 0, SEEK_END); at < size; at += PAGE_SIZE)
        if (pwrite(fd, s->buf, size - at < PAGE_SIZE ? size - at : PAGE_SIZE, (off_t)at) < 0)
            die("write");
    if (fsync(fd) != 0)
        die("fsync");
    close(fd);
}

static bool run_all(struct sides *s, const char *dir, unsigned long steps)
{
    static const uint64_t sizes[] = { MOST_PAGES * PAGE_SIZE, MOST_PAGES * PAGE_SIZE,
                                      333 * PAGE_SIZE + 1000, 40 * PAGE_SIZE, 5 * PAGE_SIZE + 1 };
    struct sequence q;
    make_file(s, dir, sizes[0]);
    for (size_t i = 0; i < sizeof scripted / sizeof scripted[0]; i++) {
        parse_sequence(scripted[i], &q);
        if (!run_sequence(s, &q))
            return false;
    }
    for (unsigned i = 0; i < 4; i++) {
        fault_storm(&q);
        if (!run_sequence(s, &q))
            return false;
    }
    while (s->steps < steps) {
        make_file(s, dir, sizes[below(5)]);
        draw_sequence(&q, s->pages);
        if (!run_sequence(s, &q))
            return false;
    }
    return true;
}

static bool run_one(struct sides *s, const char *dir, unsigned long pages, const char *text)
{
    struct sequence q;
    s->verbose = true;
    make_file(s, dir, pages << PAGE_SHIFT);
    parse_sequence(text, &q);
    return run_sequence(s, &q);
}

int main(int argc, char **argv)
{
    static struct sides s;
    struct cache_options o = { .cache_bytes = (uint64_t)4 * MOST_PAGES << PAGE_SHIFT };
    char error[RA_ERROR_BYTES];
    if (argc != 6) {
        fprintf(stderr,
                "usage: ra_compare DIR POLICY KB SEED STEPS | DIR POLICY KB PAGES SEQUENCE\n");
        return 2;
    }
    if (ra_policy_open(argv[2], &s.policy, error, sizeof error) != 0) {
        fprintf(stderr, "ra_compare: %s\n", error);
        return 2;
    }
    unsigned long number = strtoul(argv[4], NULL, 10), steps = strtoul(argv[5], NULL, 10);
    s.ra_pages = (uint32_t)(strtoul(argv[3], NULL, 10) * 1024 / PAGE_SIZE);
    random_state = number;
    s.buf = malloc(MOST_READ);
    s.dev = dev_memory_create();
    if (s.buf == NULL || s.dev == NULL || page_cache_create(&s.cache, &o) != 0)
        die("no memory");
    bool same = steps > 0 ? run_all(&s, argv[1], steps) : run_one(&s, argv[1], number, argv[5]);
    printf("%lu steps in %lu sequences; %lu times again because the kernel dropped pages\n",
           s.steps, s.sequences, s.disturbed);
    page_cache_destroy(s.cache);
    device_destroy(s.dev);
    free(s.buf);
    if (same && s.disturbed * 5 > s.sequences) {
        fprintf(stderr, "ra_compare: that is too often: memory is short here\n");
        return 2;
    }
    return same ? 0 : 1;
}
