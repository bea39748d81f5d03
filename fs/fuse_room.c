/* fuse_room.c: ENOSPC at the write, where the kernel caches writes.
 *
 * It takes them without asking whether there is room, and when there was none only fsync or close say so: a shell
 * that redirects does neither. But before it takes a write it wants the file's attributes (in Linux,
 * fuse_cache_write_iter), and names the descriptor as it asks for them; and what that answers is what the writer gets.
 * So the last of the room is kept for what the kernel has taken already. When less than that is left,
 *
 *     - the attributes it has of files that are open for writing are said to be old, and new ones are good for no time;
 *     - who asks for those of a descriptor that can only write gets ENOSPC.
 *
 * stat(2) and fstat(2) name no descriptor. Reading up to the end of a file does, so descriptors that can read are
 * answered: who writes by such a one (a database) is told by fsync, as before. lseek(2) to the end names it, too, and
 * gets ENOSPC by a descriptor that can only write. More than was kept may be under way in the kernel: then close or
 * fsync is where it is said. */
#include "fs/data.h"
#include "fs/fuse_ops.h"
#include "fs/names.h"

#include <errno.h>
#include <poll.h>
#include <stdlib.h>

#include "cache/clock.h"

#define KEPT_SHARE 16u                  /* of what is used and left: one in so many */
#define KEPT_MOST  ((uint64_t)64 << 20) /* bytes */
#define LOOK_SHIFT 18                   /* once in 256 KiB */

/* A deleted file goes a moment after unlink(2): when the kernel forgets it. So long is it waited for, in such steps. */
#define SETTLE_NS 300000000u
#define SETTLE_MS 20

/* Without KILLPRIV_V2 the kernel asks so in order to clear suid, too: for truncating, say. */
static bool room_is_kept(const struct front *front)
{
    return atomic_load(&front->kernel_cache) && wire_agreed(&front->wire, WIRE_KILLPRIV_V2);
}

uint64_t room_kept(const struct front *front, const struct store_space *space)
{
    uint64_t kept = (space->used + space->available) / KEPT_SHARE;
    if (!room_is_kept(front))
        return 0;
    return kept < KEPT_MOST ? kept : KEPT_MOST;
}

/* Those that are opened from now on get attributes that are old at once. Without memory to list them they ask when the
 * file is opened next. */
static void forget_all_attributes(struct front *front)
{
    struct inode **inodes;
    ssize_t nr = inode_list_used(front->fs, &inodes);
    for (ssize_t i = 0; i < nr; i++) {
        if (inode_has_writers(inodes[i]))
            front_forget_attributes(front, inodes[i]->ino);
        inode_put(inodes[i], 1);
    }
    if (nr >= 0)
        free(inodes);
}

bool room_is_short(struct front *front)
{
    struct store_space space;
    if (!room_is_kept(front))
        return false;
    pthread_mutex_lock(&front->room_lock);
    store_space(front->fs->store, &space);
    bool was = atomic_load(&front->room_short);
    uint64_t kept = room_kept(front, &space);
    bool is = space.available < (was ? kept + kept / 4 : kept); /* it does not come and go */
    atomic_store(&front->room_short, is);
    pthread_mutex_unlock(&front->room_lock);
    if (is && !was)
        forget_all_attributes(front);
    return is;
}

void room_note_write(struct front *front, size_t size)
{
    uint64_t before = atomic_fetch_add_explicit(&front->room_written, size, memory_order_relaxed);
    if (before >> LOOK_SHIFT != (before + size) >> LOOK_SHIFT)
        (void)room_is_short(front);
}

void room_note_free(struct front *front)
{
    atomic_store(&front->room_freed_ns, clock_now(&clock_monotonic));
}

/* Have what was deleted really be free. Once in vain is enough, until somebody deletes something. */
static void make_room(struct front *front)
{
    uint64_t freed = atomic_load(&front->room_freed_ns), now;
    if (atomic_load(&front->room_vain_ns) > freed + SETTLE_NS)
        return;
    do {
        fs_make_room(front->fs);
        if (!room_is_short(front))
            return;
        now = clock_now(&clock_monotonic);
    } while (now <= freed + SETTLE_NS && poll(NULL, 0, SETTLE_MS) == 0);
    atomic_store(&front->room_vain_ns, now);
}

bool room_refuses(struct front *front, const struct open_file *file)
{
    if (!file->only_writes || !room_is_short(front))
        return false;
    make_room(front);
    return room_is_short(front);
}
