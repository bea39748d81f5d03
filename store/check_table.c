/* check_table.c: the check's hash tables: open addressing, linear probing, at most three quarters
 * full, nothing is ever removed. */
#include "store/check_internal.h"

#include <stdlib.h>
#include <string.h>

#define FIRST_CAPACITY 64u

uint64_t check_hash(uint64_t a, uint64_t b)
{
    uint64_t h = a * UINT64_C(0x9E3779B97F4A7C15) + b; /* splitmix64's finish, twice */

    for (int i = 0; i < 2; i++) {
        h = (h ^ h >> 30) * UINT64_C(0xBF58476D1CE4E5B9);
        h = (h ^ h >> 27) * UINT64_C(0x94D049BB133111EB);
        h ^= h >> 31;
    }
    return h != 0 ? h : 1;
}

static uint64_t slot_key(const uint8_t *slot)
{
    uint64_t key;

    memcpy(&key, slot, sizeof key);
    return key;
}

/* The slot that holds key, or the empty one where it would go. The table has an empty one. */
static uint8_t *slot_find(const struct table *t, uint64_t key)
{
    size_t at = check_hash(key, 0) & (t->capacity - 1);

    for (;; at = (at + 1) & (t->capacity - 1)) {
        uint8_t *slot = t->slots + at * t->entry_size;
        uint64_t found = slot_key(slot);
        if (found == key || found == 0)
            return slot;
    }
}

static bool table_grow(struct table *t)
{
    struct table bigger = {
        .entry_size = t->entry_size,
        .capacity = t->capacity != 0 ? 2 * t->capacity : FIRST_CAPACITY,
        .count = t->count,
    };

    bigger.slots = calloc(bigger.capacity, bigger.entry_size);
    if (bigger.slots == NULL)
        return false;
    for (size_t at = 0; at < t->capacity; at++) {
        const uint8_t *slot = t->slots + at * t->entry_size;
        if (slot_key(slot) != 0)
            memcpy(slot_find(&bigger, slot_key(slot)), slot, t->entry_size);
    }
    free(t->slots);
    *t = bigger;
    return true;
}

void *table_get(const struct table *t, uint64_t key)
{
    uint8_t *slot = key != 0 && t->capacity != 0 ? slot_find(t, key) : NULL;

    return slot != NULL && slot_key(slot) == key ? slot : NULL;
}

void *table_add(struct table *t, uint64_t key)
{
    void *found = table_get(t, key);

    if (found != NULL)
        return found;
    if (4 * (t->count + 1) > 3 * t->capacity && !table_grow(t))
        return NULL;
    uint8_t *slot = slot_find(t, key);
    memcpy(slot, &key, sizeof key);
    t->count++;
    return slot;
}

void *table_next(const struct table *t, size_t *at)
{
    while (*at < t->capacity) {
        uint8_t *slot = t->slots + (*at)++ * t->entry_size;
        if (slot_key(slot) != 0)
            return slot;
    }
    return NULL;
}

void table_free(struct table *t)
{
    free(t->slots);
    *t = (struct table){ .entry_size = t->entry_size };
}
