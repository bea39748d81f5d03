/* folio.h: mappings of a FolioFS mount's files onto the cache's own pages (libfolio).
 *
 * usage:
 *     int fd = open("/mnt/folio/data", O_RDWR);
 *     char *p = folio_mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
 *     p[0] = 'x';                                       asks the cache first, like any first store
 *     folio_msync(p, length, MS_SYNC);                  durable
 *     folio_munmap(p, length);
 *
 * Each call has the meaning, the arguments, the result and the errors of the system call of its name.
 * The mount must offer attaching (cache=direct, or -o attach); fd may be closed once it is mapped.
 * Thread-safe. Ranges may be parts of what was mapped. A range mapped by folio_mmap is to be unmapped,
 * moved and so on by these functions; loading, storing and mprotect need nothing special. But read(2) into it may
 * lose what it reads, where the file it reads is open for direct I/O, as on cache=direct: see CAVEATS in folio(3).
 *
 * More than the system calls say:
 *     EOPNOTSUPP  folio_mmap: fd is of no FolioFS mount that offers attaching
 *     EPERM       folio_mmap: this process may not use userfaultfd (see vm.unprivileged_userfaultfd)
 *     EAGAIN      folio_mmap: the daemon takes no further client at the moment (and see folio(3))
 *     SIGBUS      beyond the end of the file; no room for the store; the page cannot be read; the
 *                 daemon is gone
 * MAP_PRIVATE with PROT_WRITE is the kernel's own mapping of the file, not attached.
 * A child after fork() has the mappings attached anew, or, where that fails, none (SIGSEGV).
 */
#ifndef FOLIO_H
#define FOLIO_H

#include <stddef.h>
#include <sys/types.h>

#ifdef __cplusplus
extern "C" {
#endif

void *folio_mmap(void *addr, size_t length, int prot, int flags, int fd, off_t offset);
int folio_munmap(void *addr, size_t length);
int folio_msync(void *addr, size_t length, int flags);
int folio_madvise(void *addr, size_t length, int advice);
int folio_mincore(void *addr, size_t length, unsigned char *vec);
/* mprotect(2) is as good, but for what came from a read-only descriptor: the kernel would allow
 * PROT_WRITE there, and the stores would be lost; this says EACCES. So it does to PROT_EXEC on a noexec mount. */
int folio_mprotect(void *addr, size_t length, int prot);
/* flags: MREMAP_*, but not MREMAP_DONTUNMAP. A range that was not attached is handed to mremap(2). */
void *folio_mremap(void *addr, size_t old_length, size_t new_length, int flags, void *new_addr);

/* Is any page of the range attached?   1, 0. */
int folio_attached(const void *addr, size_t length);

#ifdef __cplusplus
}
#endif
#endif
