/* attach_proto.h: what libfolio and the daemon say to each other about attached mappings.
 *
 * Where. A Unix socket (SOCK_SEQPACKET) named after the device number of the mount, st_dev of every
 * file in it. The first of these that exists and whose peer is root or the client's own user:
 *
 *     root's daemon   /run/foliofs-attach/MAJOR:MINOR
 *     a user's        /run/user/UID/foliofs/MAJOR:MINOR.attach
 *     else            /tmp/foliofs-UID/MAJOR:MINOR.attach
 *
 * What is said. One connection per process and mount; a user has a quarter of all at most, unless he is root or the
 * daemon's own. Each packet is one struct attach_request,
 * answered in order by one struct attach_reply. Descriptors travel beside them (SCM_RIGHTS). The
 * daemon says nothing unasked but by the bell; that it hangs up is what a client must watch for.
 *
 *     HELLO      version; descriptor: the process's userfaultfd, features ATTACH_UFFD_FEATURES agreed.
 *                Once, first, and within some seconds. Reply: the bell's descriptor, a socket, or none: whoever needs
 *                no bell closes it. A byte comes whenever pages of the client's have been write-protected or
 *                taken out, unless enough lie there unread.
 *     OPEN       prot, flags (MAP_SHARED or MAP_PRIVATE as asked for), offset, length; descriptor: the
 *                file's. Checked as mmap(2) checks. Reply: id, and the descriptor of the inode's pages,
 *                a memfd in which offset = offset in the file and whose size follows the file's.
 *                ATTACH_PRIVATE in the reply's flags: it cannot be written, and is to be mapped
 *                MAP_PRIVATE and registered without write-protection.
 *     MAP        id (used up), addr, length, offset: the client has mapped and registered them there,
 *                with PROT_NONE as yet. On reply the range is tracked: mprotect may follow. What was
 *                tracked there before is forgotten. populate: bring in all pages, and map them; else
 *                those in the cache are mapped.
 *     UNMAP      addr, length: they are not mapped any more.
 *     ADVISE     addr, length, advice: MADV_*. What MADV_WILLNEED is for happens after the answer: up to half of
 *                what the cache holds, until the next request.
 *     MINCORE    addr, length (at most ATTACH_MINCORE_PAGES): a byte for each page behind the reply, in
 *                the same packet.
 *     WRITE      addr, length: start writing what is dirty (MS_ASYNC).
 *     DROP       id, that no MAP will use.
 *
 *      state of a range, seen by its client
 *
 *      nothing -- mmap PROT_NONE, UFFDIO_REGISTER --> registered -- MAP --> tracked -- mprotect --> used
 *         ^                                                                                          |
 *         +----------- munmap, UNMAP; hang-up: an empty memfd mapped over it: SIGBUS ----------------+
 *
 * No page of the memfd may be touched outside a tracked range: the client would see what is not there.
 */
#ifndef FOLIO_CACHE_ATTACH_PROTO_H
#define FOLIO_CACHE_ATTACH_PROTO_H

#include <stdint.h>

#define ATTACH_VERSION        1u
#define ATTACH_ROOT_DIRECTORY "/run/foliofs-attach" /* 0755, the sockets in it 0666 */
#define ATTACH_SOCKET_SUFFIX  ".attach"             /* beside a user's control socket */
#define ATTACH_MINCORE_PAGES  16384u                /* per request */

enum attach_op {
    ATTACH_HELLO = 1,
    ATTACH_OPEN,
    ATTACH_MAP,
    ATTACH_UNMAP,
    ATTACH_ADVISE,
    ATTACH_MINCORE,
    ATTACH_WRITE,
    ATTACH_DROP,
};

#define ATTACH_POPULATE 1u /* MAP: request.flags */
#define ATTACH_PRIVATE  1u /* OPEN: reply.flags */

struct attach_request {
    uint32_t op;
    uint32_t version; /* ATTACH_VERSION, in each */
    uint64_t id;
    uint64_t addr, length, offset; /* bytes; multiples of the page size but for OPEN's length */
    int32_t prot, flags, advice;
    uint32_t reserved; /* 0 */
};

struct attach_reply {
    int32_t error; /* 0 or -errno */
    uint32_t flags;
    uint64_t id;
};

/* ---- userfaultfd, beyond what old headers know ------------------------------------------------ */

#include <linux/userfaultfd.h>

#ifndef UFFDIO_CONTINUE_MODE_WP /* Linux 6.4 */
#define UFFDIO_CONTINUE_MODE_WP ((uint64_t)1 << 1)
#endif
#ifndef UFFD_FEATURE_POISON /* Linux 6.6 */
#define UFFD_FEATURE_POISON ((uint64_t)1 << 14)
#define _UFFDIO_POISON      (0x08)
struct uffdio_poison {
    struct uffdio_range range;
    uint64_t mode;
    int64_t updated;
};
#define UFFDIO_POISON _IOWR(UFFDIO, _UFFDIO_POISON, struct uffdio_poison)
#endif
#ifndef UFFD_FEATURE_WP_HUGETLBFS_SHMEM /* Linux 5.19 */
#define UFFD_FEATURE_WP_HUGETLBFS_SHMEM ((uint64_t)1 << 12)
#endif

/* What both sides need: faults of shared memory, missing, minor and by stores; SIGBUS on purpose; and
 * word of a mapping that is moved. */
#define ATTACH_UFFD_FEATURES                                                                  \
    (UFFD_FEATURE_PAGEFAULT_FLAG_WP | UFFD_FEATURE_MISSING_SHMEM | UFFD_FEATURE_MINOR_SHMEM | \
     UFFD_FEATURE_WP_HUGETLBFS_SHMEM | UFFD_FEATURE_POISON | UFFD_FEATURE_EVENT_REMAP)

#endif
