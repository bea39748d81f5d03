/* libfolio_preload.c: mmap and its like for programs that know nothing of libfolio.
 *
 *     LD_PRELOAD=libfolio-preload.so sqlite3 /mnt/folio/db
 *
 * MAP_SHARED mappings of files on mounts that offer attaching are attached; all else, and these where
 * it cannot be done, are the kernel's. (What fails for the moment is an error: one process must not store through
 * both.) Before the constructor has run (allocators map early)
 * there is nothing attached, and the system calls are made directly. */
#undef _FILE_OFFSET_BITS /* or mmap below would be called mmap64; off_t has 64 bits anyway */
#include "cache/folio.h"
#include "cache/libfolio.h"

#include <dlfcn.h>
#include <stdarg.h>

/* What these names meant without us; NULL: the system call. */
static struct {
    void *(*mmap)(void *addr, size_t length, int prot, int flags, int fd, off_t offset);
    int (*munmap)(void *addr, size_t length);
    void *(*mremap)(void *addr, size_t old_length, size_t new_length, int flags, ...);
    int (*msync)(void *addr, size_t length, int flags);
    int (*madvise)(void *addr, size_t length, int advice);
    int (*mincore)(void *addr, size_t length, unsigned char *vec);
    int (*mprotect)(void *addr, size_t length, int prot);
    int (*pkey_mprotect)(void *addr, size_t length, int prot, int pkey);
    int (*remap_file_pages)(void *addr, size_t length, int prot, size_t pgoff, int flags);
} next;

/* dlsym may allocate, and so map, in the middle: each is either NULL or right. */
__attribute__((constructor)) static void find_next(void)
{
    *(void **)&next.mmap = dlsym(RTLD_NEXT, "mmap");
    *(void **)&next.munmap = dlsym(RTLD_NEXT, "munmap");
    *(void **)&next.mremap = dlsym(RTLD_NEXT, "mremap");
    *(void **)&next.msync = dlsym(RTLD_NEXT, "msync");
    *(void **)&next.madvise = dlsym(RTLD_NEXT, "madvise");
    *(void **)&next.mincore = dlsym(RTLD_NEXT, "mincore");
    *(void **)&next.mprotect = dlsym(RTLD_NEXT, "mprotect");
    *(void **)&next.pkey_mprotect = dlsym(RTLD_NEXT, "pkey_mprotect");
    *(void **)&next.remap_file_pages = dlsym(RTLD_NEXT, "remap_file_pages");
    folio_whole_tracking(); /* a program that knows nothing of us hands what it maps to system calls */
}

/* What folio_mmap() failed with: will it always, so that all of this process's mappings of that mount are the kernel's?
 * Not where it has attached some, before it was allowed less: by seccomp(2), say. */
static bool is_impossible(int error, int fd)
{
    return (error == EOPNOTSUPP || error == EPERM || error == ENOSYS) && !folio_mount_attached(fd);
}

static void *mmap_next(void *addr, size_t length, int prot, int flags, int fd, off_t offset)
{
    if ((flags & MAP_FIXED) && folio_attached(addr, page_up(length)))
        return folio_mmap_over(addr, length, prot, flags, fd, offset);
    return next.mmap ? next.mmap(addr, length, prot, flags, fd, offset)
                     : sys_mmap(addr, length, prot, flags, fd, offset);
}

FOLIO_EXPORT void *mmap(void *addr, size_t length, int prot, int flags, int fd, off_t offset)
{
    int type = flags & MAP_TYPE;

    if (next.mmap && fd >= 0 && !(flags & MAP_ANONYMOUS) &&
        (type == MAP_SHARED || type == MAP_SHARED_VALIDATE)) {
        int before = errno;
        void *mapped = folio_mmap(addr, length, prot, flags, fd, offset);
        if (mapped != MAP_FAILED || !is_impossible(errno, fd))
            return mapped;
        errno = before;
    }
    return mmap_next(addr, length, prot, flags, fd, offset);
}

FOLIO_EXPORT void *mmap64(void *addr, size_t length, int prot, int flags, int fd, off_t offset)
    __attribute__((alias("mmap")));

FOLIO_EXPORT int munmap(void *addr, size_t length)
{
    if (folio_attached(addr, page_up(length)))
        return folio_munmap(addr, length);
    return next.munmap ? next.munmap(addr, length) : sys_munmap(addr, length);
}

FOLIO_EXPORT void *mremap(void *addr, size_t old_length, size_t new_length, int flags, ...)
{
    void *new_addr = NULL;

    if (flags & ~MREMAP_MAYMOVE) {
        va_list rest;
        va_start(rest, flags);
        new_addr = va_arg(rest, void *);
        va_end(rest);
    }
    if (folio_attached(addr, page_up(old_length > 0 ? old_length : 1)) ||
        ((flags & MREMAP_FIXED) && folio_attached(new_addr, page_up(new_length))))
        return folio_mremap(addr, old_length, new_length, flags, new_addr);
    return next.mremap ? next.mremap(addr, old_length, new_length, flags, new_addr)
                       : sys_mremap(addr, old_length, new_length, flags, new_addr);
}

FOLIO_EXPORT int msync(void *addr, size_t length, int flags)
{
    if (folio_attached(addr, page_up(length)))
        return folio_msync(addr, length, flags);
    return next.msync ? next.msync(addr, length, flags) : sys_msync(addr, length, flags);
}

FOLIO_EXPORT int madvise(void *addr, size_t length, int advice)
{
    if (folio_attached(addr, page_up(length)))
        return folio_madvise(addr, length, advice);
    return next.madvise ? next.madvise(addr, length, advice) : sys_madvise(addr, length, advice);
}

/* An error number, not -1. The advices have the same numbers, but POSIX's DONTNEED destroys nothing:
 * the C library does nothing for it. */
FOLIO_EXPORT int posix_madvise(void *addr, size_t length, int advice)
{
    int before = errno;

    if (advice == POSIX_MADV_DONTNEED)
        return 0;
    int error = madvise(addr, length, advice) ? errno : 0;
    errno = before;
    return error;
}

FOLIO_EXPORT int mincore(void *addr, size_t length, unsigned char *vec)
{
    if (folio_attached(addr, page_up(length)))
        return folio_mincore(addr, length, vec);
    return next.mincore ? next.mincore(addr, length, vec) : sys_mincore(addr, length, vec);
}

FOLIO_EXPORT int mprotect(void *addr, size_t length, int prot)
{
    if (folio_attached(addr, page_up(length)))
        return folio_mprotect(addr, length, prot);
    return next.mprotect ? next.mprotect(addr, length, prot) : sys_mprotect(addr, length, prot);
}

FOLIO_EXPORT int pkey_mprotect(void *addr, size_t length, int prot, int pkey)
{
    if (folio_may_protect(addr, length, prot))
        return -1;
    return next.pkey_mprotect ? next.pkey_mprotect(addr, length, prot, pkey)
                              : (int)syscall(SYS_pkey_mprotect, addr, length, prot, pkey);
}

/* Linux maps anew for it, which nobody would track. */
FOLIO_EXPORT int remap_file_pages(void *addr, size_t length, int prot, size_t pgoff, int flags)
{
    if (folio_attached(addr, page_up(length))) {
        errno = EINVAL;
        return -1;
    }
    return next.remap_file_pages
               ? next.remap_file_pages(addr, length, prot, pgoff, flags)
               : (int)syscall(SYS_remap_file_pages, addr, length, prot, pgoff, flags);
}
