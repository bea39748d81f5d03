#include "fs/stale.h"

#include <errno.h>
#include <stdlib.h>

#include "fs/data.h"

/* ---- copies given out ------------------------------------------------------------------------ */

void stale_opened(struct open_file *file)
{
    struct inode *inode = file->inode;
    file->copies_seen = atomic_load(&inode->copies);
    atomic_store(&inode->copies_seen, file->copies_seen);
}

bool stale_is_possible(struct open_file *file, uint64_t offset)
{
    uint64_t copies = atomic_load(&file->inode->copies);
    uint64_t eof = atomic_load(&file->inode->mapping.i_size);
    return copies != file->copies_seen || (copies != 0 && eof < offset && eof % PAGE_SIZE != 0);
}

/* Only that there were any matters to those who have it open: one count for all until somebody opens it again. Whoever
 * does so now gets a descriptor after the kernel has locked the page it wants, and will wait for it. */
static void count_copy(struct inode *inode)
{
    if (atomic_load(&inode->copies) != atomic_load(&inode->copies_seen))
        return;
    down_write(&inode->copies_sem);
    atomic_fetch_add(&inode->copies, 1);
    up_write(&inode->copies_sem);
}

/* The bytes of r from end on become a range of their own.   Returns 0 or -ENOMEM. */
static int split(struct stale_range *r, uint64_t end)
{
    struct stale_range *rest = malloc(sizeof *rest);
    if (rest == NULL)
        return -ENOMEM;
    *rest = (struct stale_range){ .next = r->next, .of = r->of, .start = end, .end = r->end };
    r->next = rest;
    return 0;
}

/* Context: i_lock. */
static int make_fresh(struct inode *inode, uint64_t start, uint64_t end)
{
    int err = 0;
    for (struct stale_range *r = inode->stale; r != NULL && err == 0; r = r->next) {
        if (start >= r->end || end <= r->start)
            continue;
        if (end < r->end)
            err = split(r, end);
        if (err == 0)
            r->end = start > r->start ? start : r->start;
    }
    return err;
}

int stale_give(struct inode *inode, uint64_t offset, size_t len)
{
    int err = 0;
    count_copy(inode);
    down_read(&inode->copies_sem);
    pthread_mutex_lock(&inode->i_lock);
    if (inode->copied_end == 0 || offset < inode->copied)
        inode->copied = offset;
    if (offset + len > inode->copied_end)
        inode->copied_end = offset + len;
    if (inode->stale != NULL)
        err = make_fresh(inode, offset, offset + len);
    pthread_mutex_unlock(&inode->i_lock);
    if (err != 0)
        up_read(&inode->copies_sem);
    return err;
}

void stale_gave(struct inode *inode)
{
    up_read(&inode->copies_sem);
}

/* ---- changes --------------------------------------------------------------------------------- */

/* Context: i_lock. */
static void unlink_ranges(struct inode *inode, const struct stale *stale)
{
    for (struct stale_range **p = &inode->stale, *r; (r = *p) != NULL;) {
        if (r->of != stale) {
            p = &r->next;
            continue;
        }
        *p = r->next;
        if (r != &stale->whole)
            free(r);
    }
}

void stale_begin(struct inode *inode, struct stale *stale, uint64_t offset, uint64_t len,
                 uint64_t eof)
{
    pthread_mutex_lock(&inode->i_lock);
    if (stale->begun)
        unlink_ranges(inode, stale);
    if (!stale->begun || eof < stale->eof)
        stale->eof = eof;
    stale->begun = true;
    stale->whole = (struct stale_range){
        .next = inode->stale, .of = stale, .start = offset, .end = offset + len
    };
    inode->stale = &stale->whole;
    pthread_mutex_unlock(&inode->i_lock);
}

void stale_grows(struct inode *inode, struct stale *stale, uint64_t offset, uint64_t eof)
{
    if (!stale->begun) {
        stale_begin(inode, stale, offset, 0, eof);
        return;
    }
    pthread_mutex_lock(&inode->i_lock);
    stale->eof = eof < stale->eof ? eof : stale->eof;
    pthread_mutex_unlock(&inode->i_lock);
}

void stale_end(struct inode *inode, struct stale *stale)
{
    pthread_mutex_lock(&inode->i_lock);
    unlink_ranges(inode, stale);
    stale->begun = false;
    pthread_mutex_unlock(&inode->i_lock);
}

uint64_t stale_until(struct inode *inode, const struct stale *stale)
{
    pthread_mutex_lock(&inode->i_lock);
    uint64_t end = stale->whole.end;
    pthread_mutex_unlock(&inode->i_lock);
    return end;
}

uint64_t stale_size(struct inode *inode, uint64_t size)
{
    pthread_mutex_lock(&inode->i_lock);
    for (const struct stale_range *r = inode->stale; r != NULL; r = r->next)
        size = r->of->eof < size ? r->of->eof : size;
    pthread_mutex_unlock(&inode->i_lock);
    return size;
}

bool stale_is_copied(struct inode *inode, uint64_t offset, size_t *len)
{
    pthread_mutex_lock(&inode->i_lock);
    uint64_t first = inode->copied & PAGE_MASK, end = inode->copied_end;
    pthread_mutex_unlock(&inode->i_lock);
    uint64_t page = offset & PAGE_MASK, most = *len;
    bool copied = page >= first && page < end;
    if (copied)
        most = page + PAGE_SIZE - offset;
    else if (page < first)
        most = first - offset;
    if (most < *len)
        *len = (size_t)most;
    return copied;
}

bool stale_covers(struct inode *inode, uint64_t offset, size_t len)
{
    bool covers = false;
    pthread_mutex_lock(&inode->i_lock);
    for (const struct stale_range *r = inode->stale; r != NULL && !covers; r = r->next)
        covers = r->start < offset + len && r->end > offset && r->start < r->end;
    pthread_mutex_unlock(&inode->i_lock);
    return covers;
}

size_t stale_piece(struct inode *inode, uint64_t offset, size_t len, bool *is_stale)
{
    uint64_t end = offset + len, in_to = offset;
    pthread_mutex_lock(&inode->i_lock);
    for (const struct stale_range *r = inode->stale; r != NULL; r = r->next) {
        if (r->start <= offset && r->end > in_to)
            in_to = r->end;
        else if (r->start > offset && r->start < end && r->start < r->end)
            end = r->start;
    }
    pthread_mutex_unlock(&inode->i_lock);
    *is_stale = in_to > offset;
    if (*is_stale)
        return (size_t)((in_to < offset + len ? in_to : offset + len) - offset);
    return (size_t)(end - offset);
}
