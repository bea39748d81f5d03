/* fuse_front.h: what stands before the volume: a FUSE session on a mount point.
 *
 *     front_create(&front, &options)          fs_options.flush_front = front_flush, .front = front
 *     fs_mount(volume, &fs_options, &fs)
 *     front_mount(front, fs, mountpoint)
 *         front_loop(front, ready)            until unmounted or front_quit()
 *     front_destroy(front)                    no request is answered any more
 *     fs_unmount(fs)
 *
 * No FUSE type appears here. The fuse_*.c files behind it translate: each request is decoded, one
 * function of fs/ is called, and one reply is sent.
 */
#ifndef FOLIO_FS_FUSE_FRONT_H
#define FOLIO_FS_FUSE_FRONT_H

#include <stdio.h>
#include <sys/types.h>

#include "fs/fs.h"

struct front;

struct front_options {
    bool attach;       /* attached mappings are offered: no write may wait in the kernel */
    bool kernel_cache; /* the kernel caches file data, writes included, in front of us */
    bool read_only;
    bool debug;       /* print every request */
    bool io_uring;    /* get requests by io_uring too, if the kernel offers that; see fuse_ring.h */
    uint32_t spin_us; /* look for requests so long before sleeping; see fuse_wire.h */
    unsigned threads; /* at most so many requests are worked on at once */
    uint32_t max_read;   /* largest READ, bytes; up to FRONT_MAX_IO, which is the largest WRITE */
    uint64_t held_bytes; /* so much of reads and writes may wait for the kernel to give up pages */
    const char *fuse_options; /* mount options for libfuse, comma-separated, escaped */
};

/* The largest request: one READ or WRITE moves at most so many bytes. */
#define FRONT_MAX_IO (1u << 20)
/* Memory one thread needs for its request, bytes. */
#define FRONT_THREAD_BYTES (FRONT_MAX_IO + (1u << 16))

/* Errors: -ENOMEM. */
int front_create(struct front **out, const struct front_options *o);

/* Have the kernel write back and forget what it caches of an inode's data. Waits for WRITE requests:
 * called with no lock held, and never on a thread that answers requests.
 * Returns 0 or -errno; an inode the kernel does not know is a success. -ESHUTDOWN: we are about to end. */
int front_flush(void *front, uint64_t ino);
/* Have the kernel forget what it caches of a part of an inode's data: waits for READ requests of it. Same
 * context. */
void front_forget_range(void *front, uint64_t ino, uint64_t offset, uint64_t len);
/* Have the kernel know that an inode's data is at least size bytes long. Waits for READ requests of the last. Same
 * context. */
void front_tell_size(void *front, uint64_t ino, uint64_t size);
/* Have at least nr of the threads that a client may keep waiting (workqueue.h). One thread at a time. */
void front_more_threads(void *front, unsigned nr);
/* Likewise its attributes; any context. */
void front_forget_attributes(void *front, uint64_t ino);

/* Put the session on the mount point (an absolute path).
 * Errors: -EIO, with error in words: nothing is mounted then. */
int front_mount(struct front *front, struct fs *fs, const char *mountpoint,
                struct store_error *error);

/* Answer requests until the file system is unmounted or front_quit() was called. ready is called
 * once, when the kernel and we have agreed on how to talk.
 * Context: the main thread; returns 0 or -errno. */
int front_loop(struct front *front, void (*ready)(void *arg), void *arg);

/* The mount's device number. */
dev_t front_dev(const struct front *front);

/* Unmount; if files are open there, or it is mounted elsewhere, have cached data written back first and
 * detach the mount, or end what others have of it: that fails with ENOTCONN from then on.
 * If something else is mounted there now that stays, and ours ends likewise.
 * Any thread but one that answers requests; waits. */
void front_quit(struct front *front);
/* Did some of that fail? Whose it was will not learn it any more. When front_quit() has returned. */
bool front_has_lost(const struct front *front);

/* Unmount if still mounted: no request is answered any more. Does not wait for what is inside the kernel. */
void front_unmount(struct front *front);
/* The same, and free. Requests that wait for the notifier are finished first. */
void front_destroy(struct front *front);

/* One line per ability of newer kernels that this mount does without. */
void front_print_missing(const struct front *front, FILE *to);

const char *front_library_version(void);

#endif
