/* sim_vma.c: files that are mapped: a page table, and loads and stores through it. A store finds the
 * page writable or faults, and nobody comes in between, as with hardware. */
#include <errno.h>
#include <string.h>

#include "tests/sim_world.h"

static struct sim_file *file_of_vma(struct vm_area *vma)
{
    return file_of(vma->mapping);
}

/* A client's address space changes now and then: whoever meets that begins again. */
static bool is_busy(struct sim_file *f)
{
    return sched_chance(&f->world->sched, f->world->o.vma_busy, 1000);
}

static int sim_map(struct vm_area *vma, uint32_t index, struct page **pages, unsigned n,
                   unsigned flags)
{
    struct sim_file *f = file_of_vma(vma);
    bool writable = flags & VMA_MAP_WRITE;
    cache_yield();
    if (is_busy(f))
        return -EAGAIN;
    if (writable && n > 1 && sched_chance(&f->world->sched, 1, 4))
        n = 1 + sched_random(&f->world->sched, n); /* those behind the first are a favour */
    for (unsigned i = 0; i < n; i++)
        if (writable || f->ptes[index + i].page == NULL)
            f->ptes[index + i] = (struct sim_pte){ .page = pages[i], .writable = writable };
    return 0;
}

/* Now and then nobody knows whether it has worked (it has not): the page must stay dirty. */
static int sim_write_protect(struct vm_area *vma, uint32_t first, uint32_t last)
{
    struct sim_file *f = file_of_vma(vma);
    struct world *w = f->world;
    if (w->faults && sched_chance(&w->sched, w->o.protect_fails, 1000))
        return -EIO;
    if (is_busy(f))
        return -EAGAIN;
    for (uint32_t i = first; i <= last; i++)
        f->ptes[i].writable = false;
    return 0;
}

static int sim_zap(struct vm_area *vma, uint32_t first, uint32_t last)
{
    if (is_busy(file_of_vma(vma)))
        return -EAGAIN;
    for (uint32_t i = first; i <= last; i++)
        file_of_vma(vma)->ptes[i] = (struct sim_pte){ .page = NULL };
    return 0;
}

static const struct vma_ops sim_vma_ops = { .map = sim_map,
                                            .write_protect = sim_write_protect,
                                            .zap = sim_zap };

void file_map(struct sim_file *f)
{
    f->vma =
        (struct vm_area){ .mapping = &f->m, .ops = &sim_vma_ops, .count = f->world->o.file_pages };
    vma_insert(&f->vma);
}

void file_unmap(struct sim_file *f)
{
    vma_remove(&f->vma);
}

/* Sometimes as whoever reads a client's events does: first without sleeping. */
static int fault(struct sim_file *f, uint32_t index, bool write)
{
    struct sched *s = &f->world->sched;
    unsigned flags = (write ? FAULT_WRITE : 0) | (f->ptes[index].page != NULL ? FAULT_PRESENT : 0);
    int err = -EAGAIN;
    if (sched_chance(s, 1, 2)) {
        struct task *t = s->current;
        t->nowait = true;
        err = handle_mm_fault(&f->vma, index, flags | FAULT_NOWAIT);
        t->nowait = false;
        if (err > 0) {
            vma_readahead(&f->vma, index);
            err = 0;
        }
    }
    return err == -EAGAIN ? handle_mm_fault(&f->vma, index, flags) : err;
}

int file_access(struct sim_file *f, uint32_t unit, void *buf, bool write)
{
    uint32_t index = unit / UNITS_PER_PAGE;
    const struct sim_pte *pte = &f->ptes[index];
    cache_yield();
    while (pte->page == NULL || (write && !pte->writable)) {
        int err = fault(f, index, write);
        if (err != 0)
            return err;
    }
    uint8_t *at = page_address(pte->page);
    at += unit % UNITS_PER_PAGE * UNIT_BYTES;
    memcpy(write ? (void *)at : buf, write ? buf : at, UNIT_BYTES);
    return 0;
}
