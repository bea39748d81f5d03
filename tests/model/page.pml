/* page.pml: the rules of a page (cache/page.h), searched for every order in which threads can run.
 * tests/lint_model.sh runs it.
 *
 * One mapping with NIDX page indexes over NFR frames. A page holds NHALF units, a unit being what one
 * store writes at once; i_size counts units. Every process runs for ever and may stop between any two
 * operations, so the search covers sequences of operations of every length. When all have stopped, the
 * flusher and reclaim go on until nothing is dirty and nothing is cached; then judge() compares the
 * disk with the ghost: every unit inside i_size holds what was stored last, and beyond it are zeros.
 * If some have not stopped and none can move, that is a deadlock, and spin says so.
 *
 *   reader     filemap_read, filemap_find_page, page_cache_sync_ra; find_get_page step by step
 *   owner      filemap_write, inode_truncate (shrink and grow), punch_pages: who holds i_rwsem. That
 *              admits one at a time, so one process that does any of them in any order is all of them
 *   client     loads and stores through a mapping; handle_mm_fault, page_mkwrite
 *   flusher    write_cache_pages, clear_page_dirty_for_io, the store's copy, write_end_io. One,
 *              since writeback_sem admits one pass at a time
 *   reclaim    shrink_lru, remove_mapping; runs whenever it could find something
 *
 * An atomic block is one step, which others see happen at once. It is one access to what is shared; or
 * what the C code does under the tree_lock; or several accesses under PG_locked of which at most one
 * can be noticed by somebody without it.
 *
 * A store writes 0 or 1, either of them: whatever two values a program could confuse, in some run they
 * differ. Zeros of holes and of truncation are 0; POISON is in a frame that nothing was read into.
 *
 * Left out: errors of reads, the tag of a pass's own pages (TOWRITE), reservations, commits, a second
 * mapping, and memory ordering (the steps of all processes happen in one sequence).
 *
 * Switches:
 *   READER CLIENT RECLAIM    who takes part; owner and flusher always do
 *   NO_PUNCH TO_ZERO         the owner makes no holes; truncates to zero only
 *   NO_ERRORS MKCLEAN_SURE   the store never fails; page_mkclean never fails
 *   LAX                      without the assertion of memory.h's M1, to see what becomes of the store
 *   BREAK_x                  one rule is broken: lint_model.sh says which
 */
#ifndef NIDX
#define NIDX 2 /* pages the file can have */
#endif
#ifndef NHALF
#define NHALF 1 /* units in a page: 2 to see a file end inside a page */
#endif
#ifndef NFR
#define NFR 2 /* frames */
#endif
#define NU (NIDX * NHALF)
#define NONE NFR /* no frame */
#define POISON 2

typedef struct_page {
    byte refs;
    bit locked, uptodate, dirty, writeback;
    bit in_tree; /* page->mapping is the mapping; NULL otherwise */
    bit free;    /* on the free list: a frozen page has no references and is not free yet */
    byte index;
    byte data[NHALF];
};
struct_page page[NFR];

/* The mapping. */
byte slot[NIDX] = NONE; /* the radix tree */
bit tag_dirty[NIDX], tag_writeback[NIDX];
byte i_size;         /* units */
bit invalidate_lock; /* held exclusively; who holds it shared does so for one step only */

/* The client's page table. */
byte pte[NIDX] = NONE;
bit pte_writable[NIDX];

/* The store's blocks: a block that does not exist reads as zeros. */
bit disk[NU];

/* Ghosts: what no program knows. */
bit last[NU]; /* the value stored last; 0 beyond size */
byte size;    /* i_size, as of the moment an operation takes effect */
byte running; /* processes that have not stopped */
#ifdef BREAK_OBJECT
bit object; /* the file's data id; the blocks of any other are deleted */
#endif

#define UNIT(i, h) ((i) * NHALF + (h))
#define BEYOND_EOF(i) (UNIT(i, 0) >= i_size)
#define MAPPED(f) (pte[0] == (f) || pte[NIDX - 1] == (f))

/* Who uses a page for index i holds a reference to a page that is that index's, and no other's. */
#define HELD(f, i) (page[f].refs > 0 && !page[f].free && page[f].index == (i))

/* ---- page.c, frames.c: all inside somebody's atomic step -------------------------------------- */

inline page_free(f)
{
    assert(!page[f].in_tree && !page[f].dirty && !page[f].writeback && !page[f].locked);
#if !defined(BREAK_UNMAP) && !defined(BREAK_UNMAP_ONCE)
    assert(!MAPPED(f));
#endif
    page[f].refs = 0;
    page[f].free = 1;
    page[f].uptodate = 0;
    page[f].index = 0;
    page[f].data[0] = POISON;
    page[f].data[NHALF - 1] = POISON
}

inline put_page(f)
{
    assert(page[f].refs > 0);
    page[f].refs--;
    if
    :: page[f].refs == 0 -> page_free(f)
    :: else
    fi
}

/* page_alloc(wait): sleeps while there is no frame. */
inline page_alloc(f)
{
    if
    :: page[0].free -> f = 0
#if NFR > 1
    :: !page[0].free && page[1].free -> f = 1
#endif
#if NFR > 2
    :: !page[0].free && !page[1].free && page[2].free -> f = 2
#endif
    fi;
    assert(page[f].refs == 0);
    page[f].free = 0;
    page[f].refs = 1
}

/* ---- filemap.c ------------------------------------------------------------------------------------ */

/* find_get_page: f is NONE when there is no page. */
inline find_get_page(i, f)
{
    do
    :: atomic {
        f = slot[i];
        if
        :: f == NONE -> break
        :: else
        fi };
       atomic { /* get_page_unless_zero */
        if
        :: page[f].refs == 0 -> f = NONE /* being freed: look again */
        :: else ->
            page[f].refs++;
#ifdef BREAK_RECHECK
            break
#endif
        fi };
#ifndef BREAK_RECHECK
       atomic {
        if
        :: f == NONE
        :: f != NONE && slot[i] == f -> break
        :: f != NONE && slot[i] != f -> put_page(f); f = NONE
        fi }
#endif
    od
}

/* The same in one step, for everybody but the reader. (That a look-up of several steps amounts to one
 * at the moment of its last is what the reader shows.) */
inline find_get_page_at_once(i, f)
{
    atomic {
        f = slot[i];
        if
        :: f == NONE
        :: else -> page[f].refs++
        fi
    }
}

/* lock_page, and the check that it has not left the tree meanwhile; f is NONE if it has. Inside an
 * atomic step, which blocks here. */
inline lock_page_in_tree(i, f)
{
    !page[f].locked;
    assert(HELD(f, i));
    if
#ifndef BREAK_MAPPING_CHECK
    :: !page[f].in_tree -> put_page(f); f = NONE
    :: page[f].in_tree -> page[f].locked = 1
#else
    :: true -> page[f].locked = 1
#endif
    fi
}

/* add_to_page_cache_lru, inside an atomic step: f is NONE if another page was there. */
inline add_to_page_cache(i, f)
{
    if
    :: slot[i] != NONE -> put_page(f); f = NONE
    :: else ->
        page[f].locked = 1;
        page[f].index = i;
        page[f].in_tree = 1;
        page[f].refs++;
        slot[i] = f
    fi
}

/* What read_page_locked leaves: the block's bytes in the page, the page uptodate. */
inline read_page(i, f)
{
    page[f].data[0] = disk[UNIT(i, 0)];
    page[f].data[NHALF - 1] = disk[UNIT(i, NHALF - 1)];
    page[f].uptodate = 1
}

/* Nobody has read it yet: a growing file's last page, that was only locked. */
inline make_uptodate(i, f)
{
    if
    :: page[f].uptodate
    :: else -> read_page(i, f)
    fi
}

/* find_or_create_page: f locked, in the tree, referenced. Context: i_rwsem. */
inline find_or_create_page(i, f)
{
    do
    :: find_get_page_at_once(i, f);
       if
       :: f == NONE ->
           atomic {
            page_alloc(f);
            add_to_page_cache(i, f);
            if
            :: f != NONE -> break
            :: else
            fi }
       :: else ->
           atomic {
            lock_page_in_tree(i, f);
            if
            :: f != NONE -> break
            :: else
            fi }
       fi
    od
}

/* A miss: page_cache_sync_ra for one page. It lets the invalidate_lock go when the locked page is in
 * the tree, before its read has ended: that is enough, since who removes the page locks it first. */
inline read_missing_page(i, f)
{
#ifdef BREAK_OBJECT
    obj = object; /* the bio is made before the lock is taken */
#endif
    atomic { page_alloc(f) };
    atomic {
#ifndef BREAK_INVALIDATE_LOCK
        !invalidate_lock;
#endif
        add_to_page_cache(i, f)
    };
    if
    :: f != NONE ->
        atomic { /* read_end_io */
            read_page(i, f);
#ifdef BREAK_OBJECT
            if
            :: obj != object -> page[f].data[0] = 0; page[f].data[NHALF - 1] = 0
            :: else
            fi;
            obj = 0;
#endif
            page[f].locked = 0;
            put_page(f);
            f = NONE
        }
    :: else
    fi
}

/* ---- writeback.c ----------------------------------------------------------------------------------- */

inline set_page_dirty(f)
{
    assert(page[f].in_tree && page[f].uptodate && page[f].locked);
    assert(tag_dirty[page[f].index] == page[f].dirty);
    page[f].dirty = 1;
    tag_dirty[page[f].index] = 1
}

#ifdef BREAK_STABLE
#define STABLE(f) true
#else
#define STABLE(f) (!page[f].writeback) /* wait_on_page_writeback */
#endif

/* ---- the client's page table ------------------------------------------------------------------------ */

inline unmap_page(i)
{
    pte[i] = NONE;
    pte_writable[i] = 0
}

/* ---- processes --------------------------------------------------------------------------------------- */

#ifdef READER
/* clamp_to_size, the copy. Bytes of a page that was truncated meanwhile may be old ones. */
inline copy_out(i, f)
{
    assert(HELD(f, i));
    assert(BEYOND_EOF(i) || UNIT(i, 0) >= size || !page[f].in_tree ||
           page[f].data[0] == last[UNIT(i, 0)]);
    assert(UNIT(i, NHALF - 1) >= i_size || UNIT(i, NHALF - 1) >= size || !page[f].in_tree ||
           page[f].data[NHALF - 1] == last[UNIT(i, NHALF - 1)]);
    put_page(f);
    f = NONE
}

proctype reader()
{
    byte i, f = NONE;
#ifdef BREAK_OBJECT
    bit obj;
#endif
idle:
    if
    :: goto stopped
    :: i = 0
#if NIDX > 1
    :: i = 1
#endif
    fi;
    do
    :: atomic { /* filemap_get_page: beyond_eof */
        if
        :: BEYOND_EOF(i) -> i = 0; goto idle
        :: else
        fi };
       find_get_page(i, f);
       if
       :: f == NONE -> read_missing_page(i, f)
       :: else ->
           if
           :: atomic { page[f].uptodate -> copy_out(i, f); i = 0; goto idle }
           :: atomic { !page[f].uptodate -> /* page_make_uptodate: wait for who reads it */
               lock_page_in_tree(i, f);
               if
               :: f != NONE ->
                   make_uptodate(i, f);
                   page[f].locked = 0;
                   copy_out(i, f);
                   i = 0;
                   goto idle
               :: else
               fi }
           fi
       fi
    od;
stopped:
    running--;
end_stopped:
    false
}
#endif

#ifdef CLIENT
/* Each access is tried, faults, and is tried again, as the hardware does it. */
proctype client()
{
    byte i, h, f = NONE;
    bit store, value;
#ifdef BREAK_OBJECT
    bit obj;
#endif
idle:
    if
    :: goto stopped
    :: i = 0
#if NIDX > 1
    :: i = 1
#endif
    fi;
access: /* after a fault this may be another access to the same page */
    atomic {
        if
        :: store = 0
        :: store = 1; value = 0
        :: store = 1; value = 1
        fi;
        if
        :: h = 0
#if NHALF > 1
        :: h = 1
#endif
        fi;
        if
        :: pte[i] == NONE || store && !pte_writable[i] -> h = 0; value = 0; goto fault
        :: else -> f = pte[i]
        fi;
        /* The access itself: a frame that is mapped is neither free nor anybody else's. */
        assert(!page[f].free && page[f].index == i && page[f].uptodate);
        if
        :: store ->
#ifndef LAX
            assert(page[f].dirty); /* invariant M1 of memory.h */
#endif
            page[f].data[h] = value;
            if
            :: UNIT(i, h) < size -> last[UNIT(i, h)] = value
            :: else /* beyond the end: to be forgotten */
            fi
        :: else ->
            assert(UNIT(i, h) >= i_size || UNIT(i, h) >= size ||
                   !page[f].in_tree && invalidate_lock || page[f].data[h] == last[UNIT(i, h)])
        fi;
        f = NONE; i = 0; h = 0; store = 0; value = 0;
        goto idle
    };

fault: /* handle_mm_fault, fault_get_page, filemap_fault_page */
    find_get_page_at_once(i, f);
    if
    :: f == NONE ->
        atomic {
            if
            :: BEYOND_EOF(i) -> goto sigbus
            :: else
            fi
        };
        read_missing_page(i, f);
        goto fault
    :: else
    fi;
    atomic {
        lock_page_in_tree(i, f);
        if
        :: f == NONE -> goto fault
        :: else -> make_uptodate(i, f)
        fi;
        if
        :: BEYOND_EOF(i) -> page[f].locked = 0; put_page(f); f = NONE; goto sigbus
        :: else
        fi
    };
    atomic {
        if
        :: store -> /* page_mkwrite */
            STABLE(f);
            set_page_dirty(f)
        :: else
        fi;
#ifdef BREAK_UNLOCK_BEFORE_WRITABLE
        page[f].locked = 0
#endif
    };
    atomic { /* vma->ops->map */
        assert(HELD(f, i));
        pte[i] = f;
        pte_writable[i] = store;
#ifndef BREAK_UNLOCK_BEFORE_WRITABLE
        page[f].locked = 0;
#endif
        put_page(f);
        f = NONE; store = 0;
        goto access
    };
sigbus:
    i = 0; store = 0;
    goto idle;
stopped:
    running--;
end_stopped:
    false
}
#endif

/* The size from here on, for the ghost: units beyond it are zeros when the file grows again. */
inline ghost_shrink(s)
{
    size = s;
    u = s;
    do
    :: u < NU -> last[u] = 0; u++
    :: else -> break
    od;
    u = 0
}

/* Zero a locked page from unit s on. */
inline zero_tail(i, f, s)
{
    if
    :: UNIT(i, 0) >= s -> page[f].data[0] = 0
    :: else
    fi;
    if
    :: UNIT(i, NHALF - 1) >= s -> page[f].data[NHALF - 1] = 0
    :: else
    fi
}

/* truncate_page for one index, with the invalidate_lock held. */
inline truncate_page(i, f)
{
    find_get_page_at_once(i, f);
    if
    :: f == NONE
    :: else ->
        atomic { lock_page_in_tree(i, f) };
        if
        :: f == NONE
        :: else ->
            atomic {
#ifndef BREAK_TRUNCATE_NO_WAIT
                !page[f].writeback;
#endif
                assert(HELD(f, i) && page[f].in_tree);
#ifndef BREAK_UNMAP_ONCE
                unmap_page(i);
#endif
                assert(tag_dirty[i] == page[f].dirty); /* cancel_dirty_page */
                page[f].dirty = 0;
                tag_dirty[i] = 0;
                tag_writeback[i] = 0;
#ifdef BREAK_TRUNCATE_NO_WAIT
                page[f].writeback = 0;
#endif
                slot[i] = NONE; /* remove_from_page_cache */
                page[f].in_tree = 0;
                page[f].refs--;
                last[UNIT(i, 0)] = 0; /* for a hole: here it takes effect */
                last[UNIT(i, NHALF - 1)] = 0;
                page[f].locked = 0;
                put_page(f);
                f = NONE
            }
        fi
    fi
}

proctype owner()
{
    byte i, f = NONE, u, s;
idle:
    if
    :: goto stopped
    :: goto write
    :: goto truncate
#ifndef NO_PUNCH
    :: goto punch
#endif
    fi;

write: /* filemap_write of one unit */
    if
    :: i = 0
#if NIDX > 1
    :: i = 1
#endif
    fi;
    find_or_create_page(i, f);
    atomic {
        STABLE(f);
        assert(HELD(f, i));
        if /* write_begin */
        :: page[f].uptodate
        :: !page[f].uptodate && !BEYOND_EOF(i) -> read_page(i, f)
        :: !page[f].uptodate && BEYOND_EOF(i) ->
            page[f].data[0] = 0;
            page[f].data[NHALF - 1] = 0;
            page[f].uptodate = 1
        fi;
        if
        :: u = UNIT(i, 0)
#if NHALF > 1
        :: u = UNIT(i, 1)
#endif
        fi;
        if
        :: last[u] = 0
        :: last[u] = 1
        fi;
        page[f].data[u % NHALF] = last[u];
        set_page_dirty(f);
        if
        :: u >= size -> size = u + 1
        :: else
        fi;
#ifdef BREAK_ISIZE
        page[f].locked = 0;
        put_page(f);
        f = NONE
    };
    atomic {
#endif
        if
        :: u >= i_size -> i_size = u + 1
        :: else
        fi;
#ifndef BREAK_ISIZE
        page[f].locked = 0;
        put_page(f);
#endif
        f = NONE; i = 0; u = 0;
        goto idle
    };

truncate:
    if
    :: s = 0
#ifndef TO_ZERO
    :: s = 1
#if NU > 1
    :: s = 2
#endif
#endif
    fi;
    if
    :: s > i_size -> goto grow /* i_size is the owner's: nobody else changes it */
    :: else
    fi;
#if NHALF > 1
    /* The page that the new end cuts is brought in while nothing has changed yet, and zeroed when the
     * size has (BREAK_TAIL: zeroed here and not again). It stays referenced in between, for nobody may
     * wait for memory with the invalidate_lock held: a reader keeps a frame while it waits for that
     * lock. */
    if
    :: s % NHALF != 0 ->
#ifdef BREAK_ALLOC_LOCKED
        invalidate_lock = 1;
#endif
        find_or_create_page(s / NHALF, f);
        atomic {
            !page[f].writeback;
            if
            :: page[f].uptodate
            :: else -> read_page(s / NHALF, f)
            fi;
#ifdef BREAK_TAIL
            zero_tail(s / NHALF, f, s);
            size = s;
            set_page_dirty(f);
#endif
            page[f].locked = 0
        }
    :: else
    fi;
#endif
    atomic {
        invalidate_lock = 1;
        ghost_shrink(s);
#ifndef BREAK_ISIZE_SHRINK
        i_size = s;
#endif
        i = (s + NHALF - 1) / NHALF
    };
#ifdef BREAK_UNMAP_ONCE
    atomic {
        u = i;
        do
        :: u < NIDX -> unmap_page(u); u++
        :: else -> break
        od;
        u = 0
    };
#endif
#if NHALF > 1
    if
    :: f != NONE ->
#ifdef BREAK_TAIL
        atomic { put_page(f); f = NONE }
#else
        atomic { !page[f].locked -> page[f].locked = 1 };
        atomic {
            !page[f].writeback;
            assert(HELD(f, s / NHALF) && page[f].in_tree);
            zero_tail(s / NHALF, f, s);
            set_page_dirty(f);
            page[f].locked = 0;
            put_page(f);
            f = NONE
        }
#endif
    :: else
    fi;
#endif
    do
    :: atomic { i < NIDX -> skip };
       truncate_page(i, f);
       i++
    :: atomic { i >= NIDX -> break }
    od;
    atomic { /* update_trim: the blocks */
        u = (s + NHALF - 1) / NHALF * NHALF;
        do
        :: u < NU -> disk[u] = 0; u++
        :: else -> break
        od;
#ifdef BREAK_OBJECT
        if
        :: s == 0 -> object = 1 - object
        :: else
        fi;
#endif
        invalidate_lock = 0;
#ifdef BREAK_ISIZE_SHRINK
    };
    atomic {
        i_size = s;
#endif
        i = 0; u = 0; s = 0;
        goto idle
    };

grow: /* the bytes between the old end and its page's end may have been stored to */
#if NHALF > 1 && !defined(BREAK_GROW)
    if
    :: i_size % NHALF != 0 -> /* lock_eof_page: not read, if it was not there, as nobody can map it */
        i = i_size / NHALF;
        find_or_create_page(i, f);
        atomic { /* forget_beyond_eof */
            !page[f].writeback;
            assert(HELD(f, i));
            if
            :: page[f].dirty ->
#ifndef BREAK_GROW_PROTECT
                pte_writable[i] = (pte[i] == f -> 0 : pte_writable[i]);
#endif
                zero_tail(i, f, i_size)
            :: else /* nobody has stored to it since it was written, with zeros there */
            fi
        };
#ifdef BREAK_GROW_UNLOCKED
        atomic { page[f].locked = 0 };
#endif
        atomic {
            size = s;
            i_size = s;
#ifndef BREAK_GROW_UNLOCKED
            page[f].locked = 0;
#endif
            put_page(f);
            f = NONE; i = 0; s = 0;
            goto idle
        }
    :: else
    fi;
#endif
    atomic { size = s; i_size = s; s = 0; goto idle };

punch: /* punch_pages of one page: the size stays */
    if
    :: i = 0
#if NIDX > 1
    :: i = 1
#endif
    fi;
    atomic {
        invalidate_lock = 1;
#ifdef BREAK_UNMAP_ONCE
        unmap_page(i)
#endif
    };
    truncate_page(i, f);
    atomic {
        disk[UNIT(i, 0)] = 0;
        disk[UNIT(i, NHALF - 1)] = 0;
        last[UNIT(i, 0)] = 0;
        last[UNIT(i, NHALF - 1)] = 0;
        invalidate_lock = 0;
        i = 0;
        goto idle
    };
stopped:
    running--;
end_stopped:
    false
}

/* Not where the whole page is beyond the end: a truncation is about to remove it. */
inline zero_beyond_eof(i, f)
{
    if
    :: !BEYOND_EOF(i) -> zero_tail(i, f, i_size)
    :: else
    fi
}

/* write_cache_pages, page by page. Any write may fail. */
proctype flusher()
{
    byte i, f = NONE;
    bit failed;
    byte sum[NHALF]; /* the bytes when the store began to copy: their checksum, so to say */
end_idle:
    atomic { /* find_get_pages_tag */
        if
        :: tag_dirty[0] -> i = 0
#if NIDX > 1
        :: tag_dirty[1] -> i = 1
#endif
        fi
    };
    find_get_page_at_once(i, f);
    atomic {
        if
        :: f == NONE -> i = 0; goto end_idle
        :: else
        fi };
    atomic {
        lock_page_in_tree(i, f);
        if
        :: f == NONE -> i = 0; goto end_idle
        :: f != NONE && !page[f].dirty ->
            page[f].locked = 0; put_page(f); f = NONE; i = 0; goto end_idle
        :: else
        fi;
#ifdef BREAK_ZERO_FIRST
        zero_beyond_eof(i, f)
    };
    atomic {
#endif
#ifdef BREAK_MKCLEAN_AFTER_CLEAR
        page[f].dirty = 0;
        tag_dirty[i] = 0
    };
    atomic {
#endif
#ifndef BREAK_MKCLEAN_AFTER_COPY
        if /* page_mkclean */
        :: pte[i] == f -> pte_writable[i] = 0
#ifndef MKCLEAN_SURE
        :: pte[i] == f && pte_writable[i] -> /* it did not reach every mapping */
#ifndef BREAK_MKCLEAN_FAILS
            page[f].locked = 0; put_page(f); f = NONE; i = 0; goto end_idle
#else
            skip
#endif
#endif
        :: pte[i] != f
        fi
#endif
    };
    atomic { /* clear_page_dirty_for_io */
        assert(HELD(f, i) && !page[f].writeback && page[f].in_tree && page[f].uptodate);
#ifndef BREAK_MKCLEAN_AFTER_CLEAR
        assert(page[f].dirty && tag_dirty[i]);
#endif
        assert(!tag_writeback[i]);
#ifndef BREAK_ZERO_FIRST
        zero_beyond_eof(i, f);
#endif
        page[f].dirty = 0;
        tag_dirty[i] = 0;
        page[f].writeback = 1;
        tag_writeback[i] = 1;
        sum[0] = page[f].data[0];
        sum[NHALF - 1] = page[f].data[NHALF - 1];
        page[f].locked = 0
    };
    atomic { /* the store copies */
        assert(HELD(f, i));
        assert(page[f].data[0] == sum[0]);
        assert(page[f].data[NHALF - 1] == sum[NHALF - 1]);
        if
        :: disk[UNIT(i, 0)] = page[f].data[0]; disk[UNIT(i, NHALF - 1)] = page[f].data[NHALF - 1]
#ifndef NO_ERRORS
        :: failed = 1
#endif
        fi;
#if defined(BREAK_TAG)
        page[f].dirty = page[f].dirty | failed;
#endif
#if defined(BREAK_TAG) || defined(BREAK_REDIRTY_LATE)
        page[f].writeback = 0;
        tag_writeback[i] = 0
    };
    atomic {
#endif
#ifndef BREAK_REDIRTY
        if /* dirty again first */
        :: failed -> assert(page[f].in_tree); page[f].dirty = 1; tag_dirty[i] = 1
        :: else
        fi;
#endif
#ifdef BREAK_MKCLEAN_AFTER_COPY
        failed = 0
    };
    atomic {
        pte_writable[i] = (pte[i] == f -> 0 : pte_writable[i]);
#endif
        page[f].writeback = 0; /* end_page_writeback */
        tag_writeback[i] = 0;
        put_page(f);
        f = NONE; i = 0; failed = 0; sum[0] = 0; sum[NHALF - 1] = 0;
        goto end_idle
    }
}

#ifdef RECLAIM
/* One page at a time: what looks clean and unused. */
#define LOOKS_CLEAN(f) (page[f].in_tree && page[f].refs == 1 && !page[f].locked && \
                        !page[f].dirty && !page[f].writeback)

proctype reclaim()
{
    byte i, f = NONE;
end_idle:
    atomic { /* isolate_pages */
        if
        :: LOOKS_CLEAN(0) -> f = 0
#if NFR > 1
        :: LOOKS_CLEAN(1) -> f = 1
#endif
#if NFR > 2
        :: LOOKS_CLEAN(2) -> f = 2
#endif
        fi;
        i = page[f].index;
        page[f].refs++
    };
    atomic { /* trylock_page, remove_mapping */
        if
        :: page[f].locked || !page[f].in_tree -> put_page(f); f = NONE; i = 0; goto end_idle
        :: else -> page[f].locked = 1
        fi;
#if !defined(BREAK_UNMAP) && !defined(BREAK_UNMAP_LATE)
        unmap_page(i);
#endif
        if
        :: !page[f].dirty && !page[f].writeback && page[f].refs == 2
        :: else -> page[f].locked = 0; put_page(f); f = NONE; i = 0; goto end_idle
        fi;
#ifdef BREAK_FREEZE
    };
    atomic {
#endif
        page[f].refs = 0; /* page_ref_freeze */
        slot[i] = NONE;
        page[f].in_tree = 0;
#ifdef BREAK_UNMAP_LATE
    };
    atomic {
        unmap_page(i);
#endif
        page[f].locked = 0;
        page_free(f);
#ifdef BREAK_UNMAP
    };
    atomic {
        pte[0] = (pte[0] == f -> NONE : pte[0]);
        pte[NIDX - 1] = (pte[NIDX - 1] == f -> NONE : pte[NIDX - 1]);
#endif
        f = NONE; i = 0;
        goto end_idle
    }
}
#endif

/* Runs when nobody else can. If somebody has not stopped this one stays blocked too: a deadlock. */
proctype judge()
{
    byte u;
end_wait:
    atomic {
        timeout -> running == 0 -> 
        assert(i_size == size && !invalidate_lock);
        do
        :: u < NU ->
            assert(disk[u] == last[u]);
            assert(u < size || last[u] == 0);
            u++
        :: else -> break
        od;
        u = 0;
        do
        :: u < NIDX ->
#ifdef RECLAIM
            assert(slot[u] == NONE && pte[u] == NONE);
#endif
            assert(!tag_dirty[u] && !tag_writeback[u]);
            u++
        :: else -> break
        od;
        u = 0;
        do
        :: u < NFR ->
            assert(!page[u].dirty && !page[u].writeback && !page[u].locked);
            assert(page[u].free == !page[u].in_tree && page[u].refs == page[u].in_tree);
            u++
        :: else -> break
        od
    };
end_done:
    false
}

init {
    atomic {
        byte n = 0;
        do
        :: n < NFR ->
            page[n].free = 1;
            page[n].data[0] = POISON;
            page[n].data[NHALF - 1] = POISON;
            n++
        :: else -> break
        od;
        n = 0;
        running = 1;
#ifdef READER
        running++;
        run reader();
#endif
#ifdef CLIENT
        running++;
        run client();
#endif
        run owner();
        run flusher();
#ifdef RECLAIM
        run reclaim();
#endif
        run judge()
    }
}
