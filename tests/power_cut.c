/* power_cut: what a disk may hold after the power went, from what record_writes.c wrote down.
 *
 *     power_cut RECORD BEFORE IMAGE SEED [ACKS [cache-lies | through-lies]]    makes one that the seed draws
 *     power_cut RECORD BEFORE IMAGE whole                                      the end of the record, nothing lost
 *
 * BEFORE is the file at the beginning of the record; ACKS has moments, a line each, at which somebody was told that
 * something is durable: every other cut comes right then. Prints the moment of the cut, in ns of CLOCK_MONOTONIC, then
 * what became of it. What is on the disk then:
 *
 *   - Everything that had been written when a flush began that had ended by then, and what had been written through.
 *   - Of what was begun since, any part: nothing, all, all but one write, one alone, each as it falls, each sector as
 *     it falls. A sector is 512 bytes or 4 KiB. As what is there is applied in its order, of several writes to a
 *     sector any may be the last: disks that reorder are among these.
 *   - Nothing of what was begun later.
 *
 * Disks that lie are for seeing that somebody notices: with cache-lies a flush does nothing, as if the program had left
 * it out; with through-lies what is written through waits for the next flush. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "tests/recorded.h"

#define PAGE 4096u

struct op {
    const struct recorded *r;
    const uint8_t *bytes;
};

struct disk {
    uint8_t *bytes;
    uint64_t size, room; /* the file's; beyond it bytes are zeros */
};

enum style { KEEP_NONE, KEEP_ALL, KEEP_SOME, KEEP_ALL_BUT_ONE, KEEP_ONE, KEEP_SECTORS, NR_STYLES };

static const char *const style_names[NR_STYLES] = {
    [KEEP_NONE] = "nothing of", [KEEP_ALL] = "all of",
    [KEEP_SOME] = "some of",    [KEEP_ALL_BUT_ONE] = "all but one of",
    [KEEP_ONE] = "one of",      [KEEP_SECTORS] = "sectors of",
};

static void die(const char *what)
{
    perror(what);
    exit(2);
}

/* ---- the record -------------------------------------------------------------------------------- */

static const uint8_t *map_file(const char *path, uint64_t *len)
{
    struct stat st;
    int fd = open(path, O_RDONLY);
    if (fd < 0 || fstat(fd, &st) != 0)
        die(path);
    *len = (uint64_t)st.st_size;
    const uint8_t *p = *len > 0 ? mmap(NULL, *len, PROT_READ, MAP_PRIVATE, fd, 0) : NULL;
    if (p == MAP_FAILED)
        die(path);
    close(fd);
    return p;
}

static int by_begin(const void *a, const void *b)
{
    uint64_t x = ((const struct op *)a)->r->begin, y = ((const struct op *)b)->r->begin;
    return (x > y) - (x < y);
}

/* In the order in which they were begun. The last may have been cut off with its program. */
static struct op *read_record(const char *path, size_t *count)
{
    uint64_t len, at = 0;
    const uint8_t *p = map_file(path, &len);
    struct op *ops = NULL;
    size_t nr = 0, room = 0;
    while (len - at >= sizeof(struct recorded)) {
        /* Writes of odd lengths would leave the next unaligned, but there are none: they are pages. */
        const struct recorded *r = (const struct recorded *)(const void *)(p + at);
        if (len - at - sizeof *r < r->len)
            break;
        if (r->kind >= RECORDED_ALIEN || r->len % 8 != 0) {
            fprintf(stderr, "power_cut: %s: an operation that is not known here\n", path);
            exit(2);
        }
        if (nr == room) {
            room = room * 2 + 1024;
            ops = realloc(ops, room * sizeof *ops);
            if (ops == NULL)
                die("power_cut");
        }
        ops[nr++] = (struct op){ .r = r, .bytes = p + at + sizeof *r };
        at += sizeof *r + r->len;
    }
    if (nr > 0)
        qsort(ops, nr, sizeof *ops, by_begin);
    *count = nr;
    return ops;
}

/* ---- the disk ---------------------------------------------------------------------------------- */

static void reach(struct disk *d, uint64_t size)
{
    if (size > d->room) {
        uint64_t room = size * 2;
        d->bytes = realloc(d->bytes, room);
        if (d->bytes == NULL)
            die("power_cut");
        memset(d->bytes + d->room, 0, room - d->room);
        d->room = room;
    }
    if (size > d->size)
        d->size = size;
}

static void put(struct disk *d, const struct op *o, uint64_t from, uint64_t to)
{
    reach(d, o->r->offset + to);
    memcpy(d->bytes + o->r->offset + from, o->bytes + from, to - from);
}

static void apply(struct disk *d, const struct op *o)
{
    switch ((enum recorded_kind)o->r->kind) {
    case RECORDED_WRITE:
        put(d, o, 0, o->r->len);
        break;
    case RECORDED_CUT:
        if (o->r->offset < d->size) {
            memset(d->bytes + o->r->offset, 0, d->size - o->r->offset);
            d->size = o->r->offset;
        }
        reach(d, o->r->offset);
        break;
    case RECORDED_GROW:
        reach(d, o->r->offset);
        break;
    case RECORDED_FLUSH:
    case RECORDED_ALIEN:
        break;
    }
}

static void read_disk(struct disk *d, const char *path)
{
    uint64_t len;
    const uint8_t *p = map_file(path, &len);
    reach(d, len);
    memcpy(d->bytes, p, len);
}

static void write_disk(const struct disk *d, const char *path)
{
    static const uint8_t zeros[PAGE];
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0600);
    if (fd < 0 || ftruncate(fd, (off_t)d->size) != 0)
        die(path);
    for (uint64_t at = 0; at < d->size; at += PAGE) {
        uint64_t n = d->size - at < PAGE ? d->size - at : PAGE;
        if (memcmp(d->bytes + at, zeros, n) != 0 &&
            pwrite(fd, d->bytes + at, n, (off_t)at) != (ssize_t)n)
            die(path);
    }
    if (close(fd) != 0)
        die(path);
}

/* ---- the cut ----------------------------------------------------------------------------------- */

static uint64_t state;

static uint64_t draw(uint64_t below)
{
    state = state * 6364136223846793005u + 1442695040888963407u;
    return below == 0 ? 0 : (state >> 33) % below;
}

/* While something is under way, mostly what makes durable; or in the time from its end to the beginning of the next. */
static uint64_t draw_moment(const struct op *ops, size_t nr)
{
    size_t i = draw(nr);
    if (nr == 0) /* nothing was to be done */
        return 0;
    if (draw(3) != 0)
        while (i > 0 && ops[i].r->kind != RECORDED_FLUSH && !ops[i].r->through)
            i--;
    uint64_t begin = ops[i].r->begin, end = ops[i].r->end;
    if (draw(2) == 0)
        return begin + draw(end - begin);
    uint64_t next = i + 1 < nr && ops[i + 1].r->begin > end ? ops[i + 1].r->begin : end + 1;
    return end + draw(next - end);
}

/* A line of the file, each as likely as any other. */
static uint64_t draw_ack(const char *path)
{
    FILE *f = fopen(path, "r");
    unsigned long long at, drawn = 0;
    if (f == NULL)
        die(path);
    for (uint64_t n = 1; fscanf(f, "%llu", &at) == 1; n++)
        if (draw(n) == 0)
            drawn = at;
    fclose(f);
    return drawn;
}

static bool tell_truth(const struct recorded *r, const char *lie)
{
    return lie == NULL ||
           strcmp(lie, r->kind == RECORDED_FLUSH ? "cache-lies" : "through-lies") != 0;
}

/* What had ended by then is on the disk. */
static uint64_t flushed_until(const struct op *ops, size_t nr, uint64_t moment, const char *lie)
{
    uint64_t until = 0;
    for (size_t i = 0; i < nr; i++) {
        const struct recorded *r = ops[i].r;
        if (r->kind == RECORDED_FLUSH && r->end <= moment && r->begin > until && tell_truth(r, lie))
            until = r->begin;
    }
    return until;
}

static void keep_sectors(struct disk *d, const struct op *o, uint64_t sector)
{
    for (uint64_t at = 0; at < o->r->len; at += sector)
        if (draw(2) == 0)
            put(d, o, at, o->r->len - at < sector ? o->r->len : at + sector);
}

/* Of one that is in doubt, what the style keeps. */
static void keep(struct disk *d, const struct op *o, enum style style, bool the_one,
                 uint64_t sector)
{
    bool whole = false;
    switch (style) {
    case KEEP_NONE:
    case NR_STYLES:
        break;
    case KEEP_ALL:
        whole = true;
        break;
    case KEEP_SOME:
        whole = draw(2) == 0;
        break;
    case KEEP_ALL_BUT_ONE:
        whole = !the_one;
        break;
    case KEEP_ONE:
        whole = the_one;
        break;
    case KEEP_SECTORS:
        whole = o->r->kind != RECORDED_WRITE && draw(2) == 0;
        if (o->r->kind == RECORDED_WRITE)
            keep_sectors(d, o, sector);
        break;
    }
    if (whole)
        apply(d, o);
}

/* A lie is to be told to somebody, and what it costs is not to be there by chance. */
static void cut(struct disk *d, const struct op *ops, size_t nr, const char *acks, const char *lie)
{
    bool told = acks != NULL && (lie != NULL || draw(2) == 0);
    uint64_t moment = told ? draw_ack(acks) : draw_moment(ops, nr);
    uint64_t flushed = flushed_until(ops, nr, moment, lie);
    enum style style = lie != NULL || draw(4) == 0 ? KEEP_NONE : (enum style)draw(NR_STYLES);
    uint64_t sector = draw(2) == 0 ? 512 : PAGE;
    size_t doubtful = 0, begun = 0, *list = malloc((nr + 1) * sizeof *list);
    if (list == NULL)
        die("power_cut");
    for (; begun < nr && ops[begun].r->begin <= moment; begun++) {
        const struct recorded *r = ops[begun].r;
        bool through = r->through && r->end <= moment && tell_truth(r, lie);
        if (r->kind != RECORDED_FLUSH && r->end > flushed && !through)
            list[doubtful++] = begun;
    }
    size_t one = draw(doubtful), next = 0;
    for (size_t i = 0; i < begun; i++)
        if (next < doubtful && list[next] == i)
            keep(d, &ops[i], style, next++ == one, sector);
        else
            apply(d, &ops[i]);
    printf(
        "%llu %safter %zu of %zu operations: %s %zu not yet flushed is kept, sectors of %llu%s%s\n",
        (unsigned long long)moment, told ? "acknowledged, " : "", begun, nr, style_names[style],
        doubtful, (unsigned long long)sector, lie != NULL ? ", " : "", lie != NULL ? lie : "");
    free(list);
}

int main(int argc, char **argv)
{
    const char *acks = argc > 5 ? argv[5] : NULL, *lie = argc > 6 ? argv[6] : NULL;
    if (argc < 5 || argc > 7 ||
        (lie != NULL && strcmp(lie, "cache-lies") != 0 && strcmp(lie, "through-lies") != 0)) {
        fputs(
            "usage: power_cut RECORD BEFORE IMAGE SEED|whole [ACKS [cache-lies | through-lies]]\n",
            stderr);
        return 2;
    }
    struct disk d = { 0 };
    size_t nr;
    struct op *ops = read_record(argv[1], &nr);
    read_disk(&d, argv[2]);
    if (strcmp(argv[4], "whole") == 0) {
        for (size_t i = 0; i < nr; i++)
            apply(&d, &ops[i]);
        printf("%llu after all of %zu operations\n",
               (unsigned long long)(nr > 0 ? ops[nr - 1].r->end : 0), nr);
    } else {
        state = strtoull(argv[4], NULL, 10) * 0x9e3779b97f4a7c15u;
        for (int i = 0; i < 8; i++) /* seeds that lie beside each other draw apart */
            (void)draw(2);
        cut(&d, ops, nr, acks, lie);
    }
    write_disk(&d, argv[3]);
    free(d.bytes);
    free(ops);
    return 0;
}
