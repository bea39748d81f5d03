#include "tests/sim_model.h"

#include <stdlib.h>
#include <string.h>

#define MAGIC 0xf0u

static uint64_t word_of(const struct model *m, uint32_t unit, uint32_t version)
{
    return (uint64_t)MAGIC << 56 | (uint64_t)(m->id & 0xff) << 48 |
           (uint64_t)(unit & 0xffff) << 32 | version;
}

bool model_init(struct model *m, uint32_t id, uint32_t nr_units)
{
    *m = (struct model){ .id = id, .nr_units = nr_units };
    m->units = calloc(nr_units, sizeof m->units[0]);
    m->max_sizes = 64;
    m->sizes = calloc(m->max_sizes, sizeof m->sizes[0]);
    return m->units != NULL && m->sizes != NULL;
}

void model_destroy(struct model *m)
{
    free(m->units);
    free(m->sizes);
}

void model_write_begin(struct model *m, uint32_t first, uint32_t end, void *buf)
{
    uint64_t *words = buf;
    for (uint32_t u = first; u < end; u++) {
        uint64_t word = word_of(m, u, ++m->units[u].started);
        if ((uint64_t)u * UNIT_BYTES >= m->size)
            m->units[u].extended = m->units[u].started;
        for (uint32_t i = 0; i < UNIT_BYTES / sizeof word; i++)
            *words++ = word;
    }
}

void model_zero_begin(struct model *m, uint32_t first, uint32_t end)
{
    for (uint32_t u = first; u < end && u < m->nr_units; u++)
        m->units[u].zero = ++m->units[u].started;
}

void model_done(struct model *m, uint32_t first, uint32_t end)
{
    for (uint32_t u = first; u < end && u < m->nr_units; u++)
        m->units[u].done = m->units[u].floor = m->units[u].started;
}

void model_discarded(struct model *m, uint32_t first, uint32_t end)
{
    for (uint32_t u = first; u < end && u < m->nr_units; u++)
        m->units[u].on_disk = m->units[u].started;
}

void model_all_done(const struct model *m, uint32_t *done)
{
    for (uint32_t u = 0; u < m->nr_units; u++)
        done[u] = m->units[u].done;
}

void model_synced(struct model *m, const uint32_t *done)
{
    for (uint32_t u = 0; u < m->nr_units; u++) {
        struct unit *unit = &m->units[u];
        if (unit->zero <= done[u] && unit->on_disk < done[u])
            unit->on_disk = done[u];
    }
}

void model_size_begin(struct model *m, uint64_t size)
{
    if (m->nr_sizes == m->max_sizes) {
        m->max_sizes *= 2;
        m->sizes = realloc(m->sizes, m->max_sizes * sizeof m->sizes[0]);
        if (m->sizes == NULL)
            abort();
    }
    m->sizes[m->nr_sizes++] = size;
    m->resizing = true;
}

void model_size_end(struct model *m, uint64_t size)
{
    m->resizing = false;
    m->size = size;
    for (uint64_t u = (size + UNIT_BYTES - 1) / UNIT_BYTES; u < m->nr_units; u++)
        m->units[u].extended = 0;
}

void model_look(const struct model *m, struct model_view *v, uint64_t size)
{
    for (uint32_t i = 0; i < v->count; i++)
        v->floor[i] = m->units[v->first + i].floor;
    v->size = size;
    v->sizes_from = m->nr_sizes - (m->resizing ? 1 : 0);
}

const char *model_judge(const struct model *m, uint32_t unit, const void *bytes, uint32_t oldest,
                        uint32_t *seen)
{
    const uint64_t *words = bytes;
    const struct unit *u = &m->units[unit];
    uint64_t word = words[0];
    for (uint32_t i = 1; i < UNIT_BYTES / sizeof word; i++)
        if (words[i] != word)
            return "torn";
    *seen = (uint32_t)word;
    if (word == 0)
        return u->zero >= oldest ? NULL : "zeros in the place of data";
    if (word >> 32 != word_of(m, unit, 0) >> 32)
        return (word >> 56) == MAGIC ? "the bytes of another place" : "bytes that nobody wrote";
    if (*seen < oldest)
        return "an old version";
    return *seen <= u->started ? NULL : "a version that was never written";
}

static uint64_t start_of(const struct model_view *v)
{
    return (uint64_t)v->first * UNIT_BYTES;
}

/* Is it possible that the file ended here, at a moment between the view and now? */
static const char *judge_length(const struct model *m, const struct model_view *v, uint64_t end,
                                bool is_short)
{
    uint64_t least = v->size, most = v->size;
    for (uint32_t i = v->sizes_from; i < m->nr_sizes; i++) {
        least = m->sizes[i] < least ? m->sizes[i] : least;
        most = m->sizes[i] > most ? m->sizes[i] : most;
    }
    if (is_short && least > end)
        return "the end of the file where it never was";
    return end > most && end > start_of(v) ? "bytes beyond the end of the file" : NULL;
}

const char *model_judge_read(struct model *m, const struct model_view *v, const uint8_t *bytes,
                             uint64_t n, bool partial, uint32_t *unit)
{
    uint32_t seen;
    *unit = v->first;
    if (n % UNIT_BYTES != 0)
        return "a part of a unit";
    for (uint32_t i = 0; i < n / UNIT_BYTES; i++) {
        struct unit *u = &m->units[v->first + i];
        *unit = v->first + i;
        const char *wrong =
            model_judge(m, v->first + i, bytes + (uint64_t)i * UNIT_BYTES, v->floor[i], &seen);
        if (wrong != NULL)
            return wrong;
        if (seen > u->floor)
            u->floor = seen;
    }
    return judge_length(m, v, start_of(v) + n, !partial && n < (uint64_t)v->count * UNIT_BYTES);
}
