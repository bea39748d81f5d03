/* orphan.c: deleting inodes by their records.
 *
 * The update that takes an inode's last name sets nlink 0 and writes KEY_ORPHAN. Until the last
 * reference is gone the inode lives on (inode.c); a crash in between leaves the orphan record, and
 * the next mount deletes what it names. */
#include <errno.h>

#include "fs/names.h"
#include "fs/xattr.h"

int inode_del_records(struct update *u, uint64_t ino, uint32_t mode)
{
    struct key key;
    key_inode(&key, ino);
    update_del(u, &key);
    key_orphan(&key, ino);
    update_del(u, &key);
    if (S_ISLNK(mode)) {
        key_link(&key, ino);
        update_del(u, &key);
    }
    return xattr_del_all(u, ino);
}

/* Nobody has it in memory. One that has names, or no record, is no orphan: only the note goes. */
static int delete_orphan(struct fs *fs, const struct key *orphan)
{
    uint64_t ino = key_u64(orphan, 0);
    struct inode_record r;
    struct update u;
    int err = inode_read_record(fs, ino, &r);
    if (err != 0 && err != -ENOENT)
        return err;
    update_init(&u, fs->store);
    if (err == -ENOENT || r.nlink > 0) {
        update_del(&u, orphan);
        return update_apply(&u, UPDATE_FREES, NULL);
    }
    if (r.data_id != 0)
        update_trim(&u, r.data_id, 0, OBJECT_BLOCKS);
    err = inode_del_records(&u, ino, r.mode);
    if (err != 0) {
        update_abort(&u);
        return err;
    }
    return update_apply(&u, UPDATE_FREES, NULL);
}

/* One that cannot be deleted, because its record is damaged, keeps none of the others. */
int inode_delete_orphans(struct fs *fs)
{
    uint8_t value[1];
    struct key key;
    int first_error = 0;
    if (fs->options.read_only)
        return 0;
    key_orphan(&key, 0);
    for (;;) {
        ssize_t len = store_next(fs->store, &key, 1, value, sizeof(value));
        if (len == -ENOENT)
            return first_error;
        if (len < 0)
            return (int)len;
        int err = delete_orphan(fs, &key);
        if (first_error == 0)
            first_error = err;
    }
}
