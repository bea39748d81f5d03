/* fail_alloc.c: a library for LD_PRELOAD that lets a program's memory run out now and then: its heap and mmap(2).
 *
 * FOLIO_FAIL_ALLOC names a file of two 32-bit numbers, which is mapped: how many of a million allocations fail (to
 * be written from outside), and how many have. Only those that foliofs and LMDB themselves ask for fail:
 * what the C library and libfuse do when theirs fail is not what is tested. (libfuse answers ENOMEM then, and of what
 * the kernel writes back that loses a page, as the next fsync says.)
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <link.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

void *__libc_malloc(size_t size);
void *__libc_calloc(size_t n, size_t size);
void *__libc_realloc(void *old, size_t size);

static struct {
    _Atomic uint32_t per_million, failed;
} nothing, *control = &nothing;

static struct {
    uintptr_t start, end;
} callers[8];
static unsigned nr_callers;

static int note_caller(struct dl_phdr_info *info, size_t size, void *arg)
{
    (void)size;
    (void)arg;
    /* The program itself has no name here. */
    if (info->dlpi_name[0] != '\0' && strstr(info->dlpi_name, "lmdb") == NULL)
        return 0;
    for (unsigned i = 0; i < info->dlpi_phnum && nr_callers < 8; i++)
        if (info->dlpi_phdr[i].p_type == PT_LOAD && (info->dlpi_phdr[i].p_flags & PF_X)) {
            callers[nr_callers].start = info->dlpi_addr + info->dlpi_phdr[i].p_vaddr;
            callers[nr_callers].end = callers[nr_callers].start + info->dlpi_phdr[i].p_memsz;
            nr_callers++;
        }
    return 0;
}

__attribute__((constructor)) static void begin(void)
{
    const char *path = getenv("FOLIO_FAIL_ALLOC");
    int fd = path != NULL ? open(path, O_RDWR | O_CLOEXEC) : -1;
    if (fd < 0)
        return;
    void *at = mmap(NULL, sizeof nothing, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    close(fd);
    if (at == MAP_FAILED)
        return;
    (void)dl_iterate_phdr(note_caller, NULL);
    control = at;
}

static int fails(const void *caller)
{
    static _Thread_local uint64_t x;
    uint32_t per_million = atomic_load_explicit(&control->per_million, memory_order_relaxed);
    unsigned i = 0;
    if (per_million == 0)
        return 0;
    while (i < nr_callers &&
           ((uintptr_t)caller < callers[i].start || (uintptr_t)caller >= callers[i].end))
        i++;
    if (i == nr_callers)
        return 0;
    if (x == 0)
        x = (uintptr_t)&x | 1; /* of each thread's own */
    x ^= x << 13;
    x ^= x >> 7;
    x ^= x << 17;
    if ((x >> 20) % 1000000 >= per_million)
        return 0;
    atomic_fetch_add(&control->failed, 1);
    errno = ENOMEM;
    return 1;
}

void *malloc(size_t size)
{
    return fails(__builtin_return_address(0)) ? NULL : __libc_malloc(size);
}

void *calloc(size_t n, size_t size)
{
    return fails(__builtin_return_address(0)) ? NULL : __libc_calloc(n, size);
}

void *realloc(void *old, size_t size)
{
    return fails(__builtin_return_address(0)) ? NULL : __libc_realloc(old, size);
}

/* The headers call it mmap64 where offsets are made 64 bits wide. */
void *failing_mmap(void *at, size_t len, int prot, int flags, int fd, off_t offset) __asm__("mmap");
void *failing_mmap64(void *at, size_t len, int prot, int flags, int fd,
                     off_t offset) __asm__("mmap64");

static void *map(const void *caller, void *at, size_t len, int prot, int flags, int fd,
                 off_t offset)
{
    if (fails(caller))
        return MAP_FAILED;
    return (void *)syscall(SYS_mmap, at, len, prot, flags, fd, offset);
}

void *failing_mmap(void *at, size_t len, int prot, int flags, int fd, off_t offset)
{
    return map(__builtin_return_address(0), at, len, prot, flags, fd, offset);
}

void *failing_mmap64(void *at, size_t len, int prot, int flags, int fd, off_t offset)
{
    return map(__builtin_return_address(0), at, len, prot, flags, fd, offset);
}
