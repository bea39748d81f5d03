/* dev_memory.c: blocks in memory, in one hash table. */
#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "store/device.h"

#define BUCKETS 4096u

struct mem_block {
    struct mem_block *next;
    uint64_t object;
    uint32_t index;
    uint8_t data[BLOCK_SIZE];
};

struct dev_memory {
    struct device dev;
    pthread_mutex_t lock;
    struct mem_block *buckets[BUCKETS]; /* protected by lock */
};

static struct mem_block **find(struct dev_memory *d, uint64_t object, uint32_t index)
{
    uint64_t hash = (object * 0x9e3779b97f4a7c15u) ^ (index * 0xc2b2ae3d27d4eb4fu);
    struct mem_block **b = &d->buckets[(hash >> 32) % BUCKETS];
    while (*b != NULL && ((*b)->object != object || (*b)->index != index))
        b = &(*b)->next;
    return b;
}

static void read_block(struct dev_memory *d, uint64_t object, struct bio_vec *v)
{
    struct mem_block *b = *find(d, object, v->index);
    if (b != NULL) {
        memcpy(v->data, b->data, BLOCK_SIZE);
    } else {
        memset(v->data, 0, BLOCK_SIZE);
        v->flags |= BV_HOLE;
    }
}

static void write_block(struct dev_memory *d, uint64_t object, struct bio_vec *v)
{
    struct mem_block **slot = find(d, object, v->index);
    if (*slot == NULL) {
        *slot = calloc(1, sizeof **slot);
        if (*slot == NULL) {
            v->error = -ENOSPC;
            return;
        }
        (*slot)->object = object;
        (*slot)->index = v->index;
    }
    memcpy((*slot)->data, v->data, BLOCK_SIZE);
}

static void memory_submit(struct device *dev, struct bio *bio)
{
    struct dev_memory *d = (struct dev_memory *)dev;
    pthread_mutex_lock(&d->lock);
    for (uint32_t i = 0; i < bio->nr_vecs; i++) {
        switch (bio->op) {
        case BIO_READ:
            read_block(d, bio->object, &bio->vecs[i]);
            break;
        case BIO_WRITE:
            write_block(d, bio->object, &bio->vecs[i]);
            break;
        }
    }
    pthread_mutex_unlock(&d->lock);
    bio_endio(bio);
}

static void memory_destroy(struct device *dev)
{
    struct dev_memory *d = (struct dev_memory *)dev;
    for (size_t i = 0; i < BUCKETS; i++) {
        while (d->buckets[i] != NULL) {
            struct mem_block *b = d->buckets[i];
            d->buckets[i] = b->next;
            free(b);
        }
    }
    pthread_mutex_destroy(&d->lock);
    free(d);
}

void dev_memory_discard(struct device *dev, uint64_t object, uint32_t first, uint32_t last)
{
    struct dev_memory *d = (struct dev_memory *)dev;
    pthread_mutex_lock(&d->lock);
    for (size_t i = 0; i < BUCKETS; i++) {
        struct mem_block **slot = &d->buckets[i];
        while (*slot != NULL) {
            struct mem_block *b = *slot;
            if (b->object == object && b->index >= first && b->index <= last) {
                *slot = b->next;
                free(b);
            } else {
                slot = &b->next;
            }
        }
    }
    pthread_mutex_unlock(&d->lock);
}

static const struct device_ops memory_ops = { .submit = memory_submit, .destroy = memory_destroy };

struct device *dev_memory_create(void)
{
    struct dev_memory *d = calloc(1, sizeof *d);
    if (d == NULL)
        return NULL;
    d->dev.ops = &memory_ops;
    d->dev.nr_blocks = OBJECT_BLOCKS;
    pthread_mutex_init(&d->lock, NULL);
    return &d->dev;
}
