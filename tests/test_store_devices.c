/* Devices, alone and stacked. */
#include <criterion/criterion.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "store/dev_fault.h"
#include "store/dev_latency.h"
#include "store/dev_trace.h"
#include "store/plug.h"

static uint8_t data[8][BLOCK_SIZE];
static unsigned ended;

static void count_end(struct bio *bio)
{
    (void)bio;
    ended++;
}

static struct bio *request(enum bio_op op, uint32_t first, uint32_t n)
{
    struct bio *bio = bio_alloc(op, 1, 8);
    for (uint32_t i = 0; i < n; i++)
        bio_add(bio, first + i, data[i], NULL);
    bio->end_io = count_end;
    return bio;
}

static void put(struct device *dev, uint32_t index, int byte)
{
    memset(data[0], byte, BLOCK_SIZE);
    struct bio *bio = request(BIO_WRITE, index, 1);
    submit_bio(dev, bio);
    cr_assert_eq(bio->error, 0);
    bio_free(bio);
}

static int get(struct device *dev, uint32_t index)
{
    struct bio *bio = request(BIO_READ, index, 1);
    submit_bio(dev, bio);
    int error = bio->error, hole = bio->vecs[0].flags & BV_HOLE;
    bio_free(bio);
    return error != 0 ? error : hole ? -1 : data[0][0];
}

Test(device, memory_gives_back_what_was_written_and_holes_read_as_zeros)
{
    struct device *m = dev_memory_create();
    put(m, 3, 7);
    cr_assert_eq(get(m, 3), 7);
    cr_assert_eq(get(m, 2), -1);
    dev_memory_discard(m, 1, 3, 3);
    cr_assert_eq(get(m, 3), -1);
    device_destroy(m);
}

Test(device, a_bio_beyond_the_end_fails)
{
    struct device *m = dev_memory_create();
    m->nr_blocks = 10;
    struct bio *bio = request(BIO_WRITE, 7, 4);
    ended = 0;
    submit_bio(m, bio);
    cr_assert(ended == 1 && bio->error == -EFBIG);
    bio_free(bio);
    device_destroy(m);
}

Test(device, a_fault_hits_its_blocks_and_leaves_the_neighbours_alone)
{
    struct device *m = dev_memory_create(), *f = dev_fault_create(m, 1);
    struct fault_rule r = { .kind = FAULT_EIO, .reads = true, .first = 2, .last = 2 };
    for (uint32_t i = 0; i < 4; i++)
        put(f, i, 10 + (int)i);
    dev_fault_add(f, &r);
    struct bio *bio = request(BIO_READ, 0, 4);
    submit_bio(f, bio);
    cr_assert_eq(bio->error, -EIO);
    for (uint32_t i = 0; i < 4; i++) {
        cr_assert_eq(bio->vecs[i].error, i == 2 ? -EIO : 0);
        cr_assert(i == 2 || data[i][0] == 10 + (int)i);
    }
    bio_free(bio);
    dev_fault_clear(f);
    cr_assert_eq(get(f, 2), 12);
    cr_assert_eq(dev_fault_hits(f), 1);
    device_destroy(f);
    device_destroy(m);
}

Test(device, faults_can_lose_tear_start_late_and_end)
{
    struct device *m = dev_memory_create(), *f = dev_fault_create(m, 1);
    struct fault_rule lost = {
        .kind = FAULT_LOST, .writes = true, .last = 9, .after = 1, .count = 1
    };
    dev_fault_add(f, &lost);
    put(f, 0, 1);
    put(f, 0, 2); /* lost */
    cr_assert_eq(get(f, 0), 1);
    put(f, 0, 3);
    cr_assert_eq(get(f, 0), 3);
    struct fault_rule torn = { .kind = FAULT_TORN, .writes = true, .last = 9 };
    dev_fault_add(f, &torn);
    put(f, 1, 5);
    cr_assert_eq(get(f, 1), 5);
    cr_assert_eq(data[0][BLOCK_SIZE - 1], 0);
    device_destroy(f);
    device_destroy(m);
}

static uint64_t now;

static uint64_t test_now(void *arg)
{
    (void)arg;
    return now;
}

Test(device, latency_answers_when_its_time_has_come_and_seeks_cost)
{
    struct device *m = dev_memory_create();
    struct latency_model model = { .seek_ns = 100, .access_ns = 10, .block_ns = 1, .lanes = 1 };
    struct device *l = dev_latency_create(m, &model, test_now, NULL);
    struct bio *a = request(BIO_WRITE, 5, 2), *b = request(BIO_WRITE, 7, 1);
    now = 1000;
    ended = 0;
    submit_bio(l, a);
    submit_bio(l, b);
    cr_assert_eq(dev_latency_step(l, 1111), 1112);
    cr_assert_eq(ended, 0);
    cr_assert_eq(dev_latency_step(l, 1112), 1123,
                 "the second goes on where the first ended: no seek");
    cr_assert_eq(ended, 1);
    cr_assert_eq(dev_latency_step(l, 2000), UINT64_MAX);
    cr_assert_eq(ended, 2);
    bio_free(a);
    bio_free(b);
    device_destroy(l);
    device_destroy(m);
}

static unsigned seen_in, seen_out;

static void note(void *arg, const struct bio *bio, bool done)
{
    (void)arg;
    (void)bio;
    *(done ? &seen_out : &seen_in) += 1;
}

Test(device, a_stack_of_many_devices_does_not_recurse)
{
    enum { DEEP = 2000 };
    static struct device *stack[DEEP];
    struct device *m = dev_memory_create();
    seen_in = seen_out = 0;
    for (int i = 0; i < DEEP; i++)
        stack[i] = dev_trace_create(i == 0 ? m : stack[i - 1], note, NULL);
    put(stack[DEEP - 1], 1, 9);
    cr_assert_eq(get(stack[DEEP - 1], 1), 9);
    cr_assert(seen_in == 2 * DEEP && seen_out == 2 * DEEP);
    for (int i = 0; i < DEEP; i++)
        device_destroy(stack[i]);
    device_destroy(m);
}

/* ---- plugs ------------------------------------------------------------------------------------- */

/* What reaches the device below a plug, as "1:4+2" for two blocks of object 1 from block 4. */
static char calls[256];

static void note_call(void *arg, const struct bio *bio, bool done)
{
    (void)arg;
    size_t at = strlen(calls);
    if (!done)
        snprintf(calls + at, sizeof calls - at, "%s%s%u:%u+%u", at > 0 ? " " : "",
                 bio->op == BIO_READ ? "r" : "", (unsigned)bio->object, bio->vecs[0].index,
                 bio->nr_vecs);
}

struct plugged {
    struct device *memory, *fault, *trace;
    struct blk_plug plug;
};

static struct plugged plugged_open(void)
{
    struct plugged p = { .memory = dev_memory_create() };
    p.fault = dev_fault_create(p.memory, 1);
    p.trace = dev_trace_create(p.fault, note_call, NULL);
    blk_start_plug(&p.plug);
    calls[0] = '\0';
    ended = 0;
    return p;
}

static void plugged_close(struct plugged *p)
{
    cr_assert(p->plug.first == NULL && p->plug.nr == 0);
    device_destroy(p->trace);
    device_destroy(p->fault);
    device_destroy(p->memory);
}

static struct bio *hold(struct plugged *p, enum bio_op op, uint64_t object, uint32_t first,
                        uint32_t n)
{
    static uint8_t blocks[BIO_MAX_VECS][BLOCK_SIZE];
    struct bio *bio = bio_alloc(op, object, n);
    for (uint32_t i = 0; i < n; i++)
        bio_add(bio, first + i, blocks[i], NULL);
    bio->end_io = count_end;
    submit_bio_plugged(&p->plug, p->trace, bio);
    return bio;
}

static void free_all(struct bio **bios, unsigned n)
{
    for (unsigned i = 0; i < n; i++)
        bio_free(bios[i]);
}

Test(plug, neighbours_go_as_one_whichever_came_first)
{
    struct plugged p = plugged_open();
    struct bio *bios[] = { hold(&p, BIO_READ, 1, 4, 2), hold(&p, BIO_READ, 1, 6, 1),
                           hold(&p, BIO_READ, 1, 0, 3), hold(&p, BIO_READ, 1, 3, 1) };
    cr_assert(ended == 0 && calls[0] == '\0', "held until the plug is flushed");
    blk_finish_plug(&p.plug);
    cr_expect_str_eq(calls, "r1:0+7");
    cr_assert_eq(ended, 4, "each ends by its own end_io");
    free_all(bios, 4);
    plugged_close(&p);
}

Test(plug, only_one_operation_on_one_object_without_a_gap_goes_as_one)
{
    struct plugged p = plugged_open();
    struct bio *bios[] = { hold(&p, BIO_WRITE, 1, 0, 2), hold(&p, BIO_READ, 1, 2, 2),
                           hold(&p, BIO_WRITE, 2, 2, 2), hold(&p, BIO_WRITE, 1, 3, 1),
                           hold(&p, BIO_WRITE, 1, 1, 1) };
    blk_finish_plug(&p.plug);
    cr_expect_str_eq(calls, "r1:2+2 1:0+2 1:1+1 1:3+1 2:2+2");
    cr_assert_eq(ended, 5);
    free_all(bios, 5);
    plugged_close(&p);
}

Test(plug, no_bio_grows_beyond_the_largest)
{
    struct plugged p = plugged_open();
    struct bio *bios[] = { hold(&p, BIO_WRITE, 1, 0, 200), hold(&p, BIO_WRITE, 1, 200, 56),
                           hold(&p, BIO_WRITE, 1, 256, 1) };
    blk_finish_plug(&p.plug);
    cr_expect_str_eq(calls, "1:0+256 1:256+1");
    free_all(bios, 3);
    plugged_close(&p);
}

Test(plug, each_bio_gets_back_what_became_of_its_own_blocks)
{
    struct plugged p = plugged_open();
    struct fault_rule r = { .kind = FAULT_EIO, .reads = true, .first = 3, .last = 3 };
    struct bio *write = hold(&p, BIO_WRITE, 1, 2, 1);
    blk_flush_plug(&p.plug);
    dev_fault_add(p.fault, &r);
    struct bio *a = hold(&p, BIO_READ, 1, 0, 2), *b = hold(&p, BIO_READ, 1, 2, 2),
               *c = hold(&p, BIO_READ, 1, 4, 1);
    blk_finish_plug(&p.plug);
    cr_expect_str_eq(calls, "1:2+1 r1:0+5");
    cr_expect(a->error == 0 && b->error == -EIO && c->error == 0);
    cr_expect(b->vecs[0].error == 0 && b->vecs[1].error == -EIO);
    cr_expect(a->vecs[1].flags == BV_HOLE && b->vecs[0].flags == 0 && c->vecs[0].flags == BV_HOLE);
    bio_free(write);
    bio_free(a);
    bio_free(b);
    bio_free(c);
    plugged_close(&p);
}

Test(plug, a_bio_beyond_the_end_fails_alone)
{
    struct plugged p = plugged_open();
    p.trace->nr_blocks = 4;
    struct bio *in = hold(&p, BIO_WRITE, 1, 0, 4), *out = hold(&p, BIO_WRITE, 1, 4, 2);
    blk_finish_plug(&p.plug);
    cr_expect(in->error == 0 && out->error == -EFBIG);
    cr_expect_str_eq(calls, "1:0+4");
    bio_free(in);
    bio_free(out);
    plugged_close(&p);
}

/* As a thread does that is to sleep for what it holds. */
Test(plug, a_flushed_plug_holds_nothing_and_may_be_used_on)
{
    struct plugged p = plugged_open();
    struct bio *first = hold(&p, BIO_WRITE, 1, 0, 1);
    blk_flush_plug(&p.plug);
    cr_assert_eq(ended, 1);
    struct bio *second = hold(&p, BIO_WRITE, 1, 1, 1);
    cr_assert_eq(ended, 1);
    blk_finish_plug(&p.plug);
    cr_expect_str_eq(calls, "1:0+1 1:1+1");
    bio_free(first);
    bio_free(second);
    plugged_close(&p);
}

Test(plug, a_full_one_and_one_that_meets_another_device_send_what_they_hold)
{
    struct plugged p = plugged_open();
    struct bio *bios[BLK_PLUG_MAX + 2];
    for (uint32_t i = 0; i <= BLK_PLUG_MAX; i++)
        bios[i] = hold(&p, BIO_WRITE, 1, i, 1);
    cr_expect_str_eq(calls, "1:0+32");
    bios[BLK_PLUG_MAX + 1] = request(BIO_WRITE, 33, 1);
    submit_bio_plugged(&p.plug, p.memory, bios[BLK_PLUG_MAX + 1]);
    cr_expect_str_eq(calls, "1:0+32 1:32+1");
    cr_expect_eq(ended, BLK_PLUG_MAX + 1);
    blk_finish_plug(&p.plug);
    cr_expect_eq(ended, BLK_PLUG_MAX + 2);
    free_all(bios, BLK_PLUG_MAX + 2);
    plugged_close(&p);
}

Test(plug, one_plug_within_another_leaves_it_alone)
{
    struct plugged p = plugged_open();
    struct blk_plug inner;
    struct bio *outer = hold(&p, BIO_WRITE, 1, 0, 1), *other = request(BIO_WRITE, 1, 1);
    blk_start_plug(&inner);
    submit_bio_plugged(&inner, p.trace, other);
    blk_finish_plug(&inner);
    cr_expect_str_eq(calls, "1:1+1");
    cr_expect_eq(p.plug.nr, 1);
    blk_finish_plug(&p.plug);
    cr_expect_str_eq(calls, "1:1+1 1:0+1");
    bio_free(outer);
    bio_free(other);
    plugged_close(&p);
}

/* The parts of a bio end from wherever the device ends it. */
Test(plug, what_was_joined_may_end_later)
{
    struct device *m = dev_memory_create();
    struct latency_model model = { .access_ns = 10, .block_ns = 1, .lanes = 1 };
    struct device *l = dev_latency_create(m, &model, test_now, NULL);
    struct blk_plug plug;
    struct bio *a = request(BIO_WRITE, 2, 2), *b = request(BIO_WRITE, 0, 2);
    now = 1000;
    ended = 0;
    blk_start_plug(&plug);
    submit_bio_plugged(&plug, l, a);
    submit_bio_plugged(&plug, l, b);
    blk_finish_plug(&plug);
    cr_assert_eq(ended, 0);
    cr_assert_eq(dev_latency_step(l, 1014), UINT64_MAX, "four blocks, one access");
    cr_assert_eq(ended, 2);
    bio_free(a);
    bio_free(b);
    device_destroy(l);
    device_destroy(m);
}

static void send_next(struct bio *bio)
{
    struct plugged *p = bio->private;
    struct bio *next = bio_alloc(BIO_WRITE, 1, 1);
    bio_add(next, bio->vecs[0].index + 1, data[0], NULL);
    next->end_io = bio_free;
    ended++;
    submit_bio_plugged(&p->plug, p->trace, next);
    bio_free(bio);
}

Test(plug, what_an_end_io_adds_is_sent_too)
{
    struct plugged p = plugged_open();
    struct bio *bio = bio_alloc(BIO_WRITE, 1, 1);
    bio_add(bio, 5, data[0], NULL);
    bio->private = &p;
    bio->end_io = send_next;
    submit_bio_plugged(&p.plug, p.trace, bio);
    blk_finish_plug(&p.plug);
    cr_expect_str_eq(calls, "1:5+1 1:6+1");
    plugged_close(&p);
}
