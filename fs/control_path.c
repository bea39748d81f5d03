#include "fs/control_path.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/un.h>
#include <unistd.h>

/* uid alone decides, not the environment: root's tool must find a user's daemon. */
void control_directory(unsigned n, uid_t uid, char path[CONTROL_PATH_BYTES])
{
    if (n > 0)
        (void)snprintf(path, CONTROL_PATH_BYTES, "/tmp/foliofs-%u", uid);
    else if (uid == 0)
        (void)snprintf(path, CONTROL_PATH_BYTES, "/run/foliofs");
    else
        (void)snprintf(path, CONTROL_PATH_BYTES, "/run/user/%u/foliofs", uid);
}

void control_socket(unsigned n, uid_t uid, dev_t dev, char path[CONTROL_PATH_BYTES])
{
    control_directory(n, uid, path);
    size_t len = strlen(path);
    (void)snprintf(path + len, CONTROL_PATH_BYTES - len, "/%u:%u", major(dev), minor(dev));
}

int socket_bind(int sock, const char *path, mode_t mode, int backlog, struct socket_file *out)
{
    struct sockaddr_un address = { .sun_family = AF_UNIX };
    struct stat st;
    if (strlen(path) >= sizeof address.sun_path)
        return -ENAMETOOLONG;
    memcpy(address.sun_path, path, strlen(path) + 1);
    (void)unlink(path);
    if (bind(sock, (struct sockaddr *)&address, sizeof address) != 0)
        return -errno;
    if (chmod(path, mode) == 0 && lstat(path, &st) == 0 && listen(sock, backlog) == 0) {
        *out = (struct socket_file){ .dev = st.st_dev, .ino = st.st_ino };
        return 0;
    }
    int err = -errno;
    (void)unlink(path);
    return err;
}

void socket_unlink(const char *path, const struct socket_file *ours)
{
    struct stat st;
    if (lstat(path, &st) == 0 && st.st_dev == ours->dev && st.st_ino == ours->ino)
        (void)unlink(path);
}

/* mountinfo writes space, tab, newline and backslash as \ooo. */
static void unescape(const char *from, char *to, size_t size)
{
    size_t n = 0;
    while (*from != '\0' && n + 1 < size) {
        unsigned c;
        if (from[0] == '\\' && sscanf(from + 1, "%3o", &c) == 1) {
            to[n++] = (char)c;
            from += 4;
        } else {
            to[n++] = *from++;
        }
    }
    to[n] = '\0';
}

/*   36 35 98:0 /root /mnt rw,noatime master:1 - fuse.foliofs /data/volume rw,user_id=0,...
 *         dev        mountpoint                 type         source       options          */
static bool parse_line(char *line, struct mount_entry *out)
{
    char *separator = strstr(line, " - ");
    if (separator == NULL)
        return false;
    *separator = '\0';
    unsigned dev_major, dev_minor;
    int at = 0;
    if (sscanf(line, "%*d %*d %u:%u %*s %n", &dev_major, &dev_minor, &at) != 2 || at == 0)
        return false;
    char *mountpoint = line + at;
    mountpoint[strcspn(mountpoint, " ")] = '\0';
    unescape(mountpoint, out->mountpoint, sizeof out->mountpoint);

    char *type = separator + 3;
    char *options = type + strcspn(type, " ");
    if (*options != '\0')
        *options++ = '\0';
    (void)snprintf(out->type, sizeof out->type, "%.*s", (int)sizeof out->type - 1, type);
    const char *user = strstr(options, "user_id=");
    out->uid = user != NULL ? (uid_t)strtoul(user + strlen("user_id="), NULL, 10) : 0;
    out->dev = makedev(dev_major, dev_minor);
    return true;
}

/* The last line that matches: a later mount covers an earlier one. */
static int find(const dev_t *dev, const char *mountpoint, struct mount_entry *out)
{
    FILE *file = fopen("/proc/self/mountinfo", "re");
    if (file == NULL)
        return -errno;
    struct mount_entry *entry = malloc(sizeof *entry);
    char *line = NULL;
    size_t size = 0;
    int result = entry != NULL ? -ENOENT : -ENOMEM;
    while (entry != NULL && getline(&line, &size, file) > 0) {
        if (!parse_line(line, entry))
            continue;
        if (dev != NULL ? entry->dev == *dev : strcmp(entry->mountpoint, mountpoint) == 0) {
            *out = *entry;
            result = 0;
        }
    }
    free(line);
    free(entry);
    (void)fclose(file);
    return result;
}

int mount_find_dev(dev_t dev, struct mount_entry *out)
{
    return find(&dev, NULL, out);
}

int mount_find_path(const char *mountpoint, struct mount_entry *out)
{
    return find(NULL, mountpoint, out);
}

bool mount_is_fuse(const struct mount_entry *m)
{
    return strcmp(m->type, "fuse") == 0 || strncmp(m->type, "fuse.", 5) == 0;
}
