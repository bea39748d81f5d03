/* Devices, alone and stacked. */
#include <criterion/criterion.h>
#include <errno.h>
#include <string.h>

#include "store/dev_fault.h"
#include "store/dev_latency.h"
#include "store/dev_trace.h"

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
