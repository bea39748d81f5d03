#include "fs/machine.h"

#include <limits.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* UINT64_MAX: there is no limit, or no such file. */
static uint64_t read_limit(const char *path)
{
    unsigned long long limit;
    FILE *file = fopen(path, "re");
    if (file == NULL)
        return UINT64_MAX;
    bool found = fscanf(file, "%llu", &limit) == 1; // NOLINT(cert-err34-c): the kernel's; or "max"
    (void)fclose(file);
    return found ? limit : UINT64_MAX;
}

/* Of a group ("/a/b") and all above it. group is used up. */
static uint64_t strictest_limit(const char *mountpoint, char *group, const char *name)
{
    uint64_t least = UINT64_MAX;
    char path[3 * PATH_MAX];
    for (char *slash = group; slash != NULL;) {
        (void)snprintf(path, sizeof path, "%s%s/%s", mountpoint, group, name);
        uint64_t limit = read_limit(path);
        least = limit < least ? limit : least;
        slash = strrchr(group, '/');
        if (slash != NULL)
            *slash = '\0';
    }
    return least;
}

static bool has_memory(char *controllers)
{
    bool found = false;
    char *save = NULL;
    for (char *c = strtok_r(controllers, ",\n", &save); c != NULL && !found;
         c = strtok_r(NULL, ",\n", &save))
        found = strcmp(c, "memory") == 0;
    return found;
}

/*   4:memory:/a/b   or, of cgroup2:   0::/a/b
 * Returns false: we are in none. */
static bool own_group(bool v2, char group[PATH_MAX])
{
    FILE *file = fopen("/proc/self/cgroup", "re");
    char *line = NULL;
    size_t size = 0;
    bool found = false;
    while (file != NULL && !found && getline(&line, &size, file) > 0) {
        char *controllers = strchr(line, ':');
        char *path = controllers != NULL ? strchr(controllers + 1, ':') : NULL;
        if (path == NULL)
            continue;
        *path++ = '\0';
        path[strcspn(path, "\n")] = '\0';
        (void)snprintf(group, PATH_MAX, "%s", path);
        found = v2 ? controllers[1] == '\0' : has_memory(controllers + 1);
    }
    free(line);
    if (file != NULL)
        (void)fclose(file);
    return found;
}

/*   35 31 0:32 /root /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory
 * Where only a part of the tree is mounted, /root, a group's path begins with that. */
static uint64_t limit_of_mount(const char *line)
{
    char root[PATH_MAX], mountpoint[PATH_MAX], type[16], options[256], group[PATH_MAX];
    const char *end = strstr(line, " - ");
    // NOLINTNEXTLINE(cert-err34-c): the kernel's
    if (end == NULL || sscanf(line, "%*d %*d %*s %4095s %4095s", root, mountpoint) != 2 ||
        sscanf(end, " - %15s %*s %255s", type, options) != 2)
        return UINT64_MAX;
    bool v2 = strcmp(type, "cgroup2") == 0;
    if (!v2 && (strcmp(type, "cgroup") != 0 || !has_memory(options)))
        return UINT64_MAX;
    if (!own_group(v2, group))
        return UINT64_MAX;
    size_t above =
        strcmp(root, "/") != 0 && strncmp(group, root, strlen(root)) == 0 ? strlen(root) : 0;
    return strictest_limit(mountpoint, group + above, v2 ? "memory.max" : "memory.limit_in_bytes");
}

uint64_t machine_memory(void)
{
    uint64_t least = (uint64_t)sysconf(_SC_PHYS_PAGES) * (uint64_t)sysconf(_SC_PAGESIZE);
    FILE *file = fopen("/proc/self/mountinfo", "re");
    char *line = NULL;
    size_t size = 0;
    while (file != NULL && getline(&line, &size, file) > 0) {
        uint64_t limit = limit_of_mount(line);
        least = limit < least ? limit : least;
    }
    free(line);
    if (file != NULL)
        (void)fclose(file);
    return least;
}
