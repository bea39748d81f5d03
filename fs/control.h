/* control.h: the daemon's control socket: what foliofsctl and tests ask a mounted volume.
 *
 * Where. A Unix stream socket named after the device number that the kernel gave the mount, which
 * stat(2) shows for every file in it, so any path inside the mount leads there:
 *
 *     DIRECTORY/MAJOR:MINOR    DIRECTORY: root's daemon   /run/foliofs
 *                                         a user's        /run/user/UID/foliofs
 *                                         else            /tmp/foliofs-UID
 *
 * The directory is 0700 and the daemon's own, the socket 0600, and the peer's uid is asked of the
 * kernel: only the owner of the daemon and root get in. The tool checks the daemon's uid likewise.
 *
 * What is said. The client sends one JSON object in one line and gets one in one line; then the
 * daemon hangs up.
 *
 *     {"protocol": 1, "cmd": NAME, "args": {...}}     args may be left out
 *     {"ok": true, "protocol": 1, ...}  or  {"ok": false, "protocol": 1, "error": TEXT}
 *
 *     version                            "version", "pid", "label", "uuid", "capacity_bytes"
 *     stats                              "stats": objects of numbers, by part; units are the last
 *                                        word of a name (_bytes, _ns, _ms), others are counts
 *     pages  {"ino": N, "index": I}      "ranges": [{"index", "count", "flags": [...]}] of cached
 *                                        pages from I on, "next": where to go on, null at the end
 *     sync                               all that reached the daemon is durable
 *     drop                               "pages", "inodes": clean ones given up
 *                                        "readahead", "read_ahead_kb": what applies to the file
 *     set    {"name": N, "value": TEXT}  "name", "value" as it is now
 *            and may have "ino": N       for that file alone, as long as its inode is in memory:
 *                                        readahead, read_ahead_kb; the value "default" ends it
 *     inject {"kind": K, ...}            errors of the store on purpose, on a mount with -o inject:
 *                                        K eio, enospc, enomem, lost or torn; "reads", "writes",
 *                                        "commits": true, of which; may have "per_million": N,
 *                                        "count": N, "after": N, "ino": N
 *            {"clear": true}, {}         no more errors; a look
 *                                        "rules": [as asked for, with "seen", "hit"], "hits": of all
 *                                        since the mount
 *
 * A reply and a request are bounded, and so is the time a client is waited for.
 */
#ifndef FOLIO_FS_CONTROL_H
#define FOLIO_FS_CONTROL_H

#define CONTROL_PROTOCOL      1
#define CONTROL_REQUEST_BYTES 4096u /* longest request line */

struct control;
struct fs;
struct store_error;

/* Open the socket of the mount at mountpoint_abs and serve it on threads of its own. Call when the
 * kernel shows the mount in /proc/self/mountinfo, and after daemonising.
 * mountpoint_abs: absolute, without symbolic links.
 * Errors: -ENOENT (no such mount), -EACCES (no directory that is ours alone), others of socket(2)
 * and bind(2); error says it in words.   Blocks: never on the mount itself. */
int control_start(struct fs *fs, const char *mountpoint_abs, struct control **out,
                  struct store_error *error);

/* Stop serving and remove the socket; waits for a request under way. NULL is allowed. */
void control_stop(struct control *control);

#endif
