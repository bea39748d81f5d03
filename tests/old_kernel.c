/* old_kernel.so: for LD_PRELOAD into foliofs: the kernel's INIT does not offer the flags in FOLIO_WITHHOLD (hexadecimal,
 * FUSE_* of both words), as one would that does not know them. */
#include <dlfcn.h>
#include <linux/fuse.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

struct init { /* since protocol 7.36 */
    struct fuse_in_header header;
    uint32_t major, minor, max_readahead, flags, flags2;
};

ssize_t read(int fd, void *buf, size_t size)
{
    static ssize_t (*next)(int, void *, size_t);
    if (next == NULL)
        *(void **)&next = dlsym(RTLD_NEXT, "read");
    ssize_t n = next(fd, buf, size);
    struct init init;
    if (n < (ssize_t)sizeof init)
        return n;
    memcpy(&init, buf, sizeof init);
    const char *text = getenv("FOLIO_WITHHOLD");
    if (text != NULL && init.header.len == n && init.header.opcode == FUSE_INIT) {
        uint64_t flags = strtoull(text, NULL, 16);
        init.flags &= ~(uint32_t)flags;
        init.flags2 &= ~(uint32_t)(flags >> 32);
        memcpy(buf, &init, sizeof init);
    }
    return n;
}
