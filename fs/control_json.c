#include "fs/control_json.h"

#include <errno.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "fs/attach_door.h"
#include "fs/control.h"
#include "fs/control_inject.h"
#include "fs/data.h"
#include "fs/size.h"

#define PAGES_PER_REPLY  65536u /* visited in one reply to "pages" */
#define RANGES_PER_REPLY 1024u  /* told in one */

__attribute__((format(printf, 1, 2))) static json_t *refuse(const char *format, ...)
{
    char text[512];
    va_list args;
    va_start(args, format);
    (void)vsnprintf(text, sizeof text, format, args);
    va_end(args);
    return json_pack("{s:b, s:i, s:s}", "ok", 0, "protocol", CONTROL_PROTOCOL, "error", text);
}

static json_t *number(uint64_t n)
{
    return json_integer((json_int_t)(n <= INT64_MAX ? n : INT64_MAX));
}

static void put(json_t *object, const char *name, uint64_t n)
{
    (void)json_object_set_new(object, name, number(n));
}

static json_t *accepted(void)
{
    return json_pack("{s:b, s:i}", "ok", 1, "protocol", CONTROL_PROTOCOL);
}

/* ---- version, sync, drop --------------------------------------------------------------------- */

static json_t *answer_version(struct control_commands *c, const json_t *args)
{
    (void)args;
    const struct super_record *super = store_super(c->fs->store);
    char uuid[37];
    char *to = uuid;
    for (unsigned i = 0; i < 16; i++) {
        if (i == 4 || i == 6 || i == 8 || i == 10)
            *to++ = '-';
        to += snprintf(to, 3, "%02x", super->uuid[i]);
    }
    json_t *reply = accepted();
    (void)json_object_set_new(reply, "version", json_string(FOLIO_VERSION));
    put(reply, "pid", (uint64_t)getpid());
    /* A label may be any bytes; JSON wants UTF-8. */
    json_t *label = json_string(super->label);
    (void)json_object_set_new(reply, "label", label != NULL ? label : json_null());
    (void)json_object_set_new(reply, "uuid", json_string(uuid));
    put(reply, "format", super->format_version);
    put(reply, "capacity_bytes", super->capacity);
    return reply;
}

static json_t *answer_sync(struct control_commands *c, const json_t *args)
{
    (void)args;
    int err = fs_sync(c->fs);
    return err == 0 ? accepted() : refuse("sync failed: %s", strerror(-err));
}

static json_t *answer_drop(struct control_commands *c, const json_t *args)
{
    (void)args;
    struct inode_table_stats before, after;
    inode_table_stats(c->fs, &before);
    uint64_t pages = page_cache_drop(c->fs->cache);
    inode_shrink(c->fs, 0);
    inode_table_stats(c->fs, &after);
    json_t *reply = accepted();
    put(reply, "pages", pages);
    put(reply, "inodes", before.inodes > after.inodes ? before.inodes - after.inodes : 0);
    return reply;
}

/* ---- stats ----------------------------------------------------------------------------------- */

static json_t *cache_part(const struct cache_stats *s)
{
    json_t *o = json_object();
    put(o, "pages", s->pages);
    put(o, "limit", s->limit);
    put(o, "active", s->active);
    put(o, "inactive", s->inactive);
    put(o, "free", s->free);
    put(o, "dirty", s->dirty);
    put(o, "writeback", s->writeback);
    put(o, "hits", s->hits);
    put(o, "misses", s->misses);
    put(o, "waits", s->waits);
    put(o, "read_pages", s->read_pages);
    put(o, "written_pages", s->written_pages);
    put(o, "read_errors", s->read_errors);
    put(o, "write_errors", s->write_errors);
    return o;
}

/* Page faults of attached mappings; of the kernel's only what they dirtied is seen. */
static json_t *faults_part(const struct cache_stats *s)
{
    json_t *o = json_object();
    put(o, "attached_minor", s->faults[FAULT_ATTACHED].minor);
    put(o, "attached_major", s->faults[FAULT_ATTACHED].major);
    put(o, "attached_mkwrite", s->faults[FAULT_ATTACHED].mkwrite);
    put(o, "kernel_mkwrite", s->faults[FAULT_KERNEL].mkwrite);
    return o;
}

static json_t *attach_part(struct fs *fs)
{
    struct attach_stats s;
    attach_door_stats(fs->door, &s);
    json_t *o = json_object();
    put(o, "clients", s.clients);
    put(o, "ranges", s.ranges);
    put(o, "pages", s.pages);
    put(o, "stuck", s.stuck);
    put(o, "refused", s.refused);
    put(o, "queued_faults", s.queued);
    put(o, "poisoned", s.poisoned);
    return o;
}

static json_t *readahead_part(const struct cache_stats *s)
{
    json_t *o = json_object();
    put(o, "sync_windows", s->ra_sync);
    put(o, "async_windows", s->ra_async);
    put(o, "pages", s->ra_pages);
    put(o, "used", s->ra_used);
    put(o, "wasted", s->ra_wasted);
    return o;
}

static json_t *reclaim_part(const struct cache_stats *s)
{
    json_t *o = json_object();
    put(o, "reclaimed", s->reclaimed);
    put(o, "scanned", s->scanned);
    put(o, "activated", s->activated);
    put(o, "direct_reclaims", s->direct_reclaims);
    put(o, "alloc_waits", s->alloc_waits);
    put(o, "refaults", s->refaults);
    put(o, "activations", s->activations);
    put(o, "shadows", s->shadows);
    return o;
}

static json_t *writeback_part(const struct cache_stats *s)
{
    json_t *o = json_object();
    put(o, "passes", s->passes);
    put(o, "throttled", s->throttled);
    put(o, "throttled_ns", s->throttled_ns);
    return o;
}

static json_t *store_part(const struct store_stats *s, const struct store_space *space)
{
    json_t *o = json_object();
    put(o, "commits", s->commits);
    put(o, "commit_errors", s->commit_errors);
    put(o, "commit_ns", s->commit_ns);
    put(o, "log_records", s->log_records);
    put(o, "log_bytes", s->log_bytes);
    put(o, "records_written", s->records_written);
    put(o, "blocks_written", s->blocks_written);
    put(o, "blocks_deleted", s->blocks_deleted);
    put(o, "block_reads", s->block_reads);
    put(o, "pending_trims", s->pending_trims);
    put(o, "read_only", s->read_only ? 1 : 0);
    put(o, "file_bytes", s->file_bytes);
    put(o, "capacity_bytes", space->capacity);
    put(o, "used_bytes", space->used);
    put(o, "available_bytes", space->available);
    return o;
}

/* Errors on purpose: rules there are, blocks and commits that met one. */
static json_t *injected_part(struct device *faults)
{
    struct fault_state states[FAULT_RULES_MAX];
    json_t *o = json_object();
    put(o, "rules", faults != NULL ? dev_fault_list(faults, states) : 0);
    put(o, "hits", faults != NULL ? dev_fault_hits(faults) : 0);
    return o;
}

static json_t *operations_part(struct fs *fs)
{
    static const char *const names[] = {
        [FS_LOOKUPS] = "lookups",
        [FS_CREATES] = "creates",
        [FS_UNLINKS] = "unlinks",
        [FS_READS] = "reads",
        [FS_WRITES] = "writes",
        [FS_FSYNCS] = "fsyncs",
        [FS_MIXED_WRITES] = "mixed_writes",
        [FS_LOST_WRITES] = "lost_writes",
    };
    json_t *o = json_object();
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++)
        put(o, names[i], atomic_load_explicit(&fs->ops[i], memory_order_relaxed));
    return o;
}

/* What the daemon's memory goes to, by name; LMDB's mapped file is not ours to count. */
static json_t *memory_part(const struct cache_stats *cache, const struct store_stats *store,
                           const struct inode_table_stats *inodes)
{
    const struct {
        const char *name;
        uint64_t bytes;
    } parts[] = {
        { "pages_bytes", cache->pages * PAGE_SIZE },
        { "page_structs_bytes", cache->struct_bytes },
        { "tree_nodes_bytes", cache->tree_bytes },
        { "transactions_bytes", store->running_bytes + store->committing_bytes },
        { "inodes_bytes", inodes->bytes },
    };
    json_t *o = json_object();
    uint64_t total = 0;
    for (size_t i = 0; i < sizeof parts / sizeof parts[0]; i++) {
        put(o, parts[i].name, parts[i].bytes);
        total += parts[i].bytes;
    }
    put(o, "total_bytes", total);
    /* What a page costs beside its data. */
    put(o, "per_page_struct_bytes", cache->frame_bytes);
    put(o, "per_page_tree_bytes",
        cache->pages > 0 ? (cache->tree_bytes + cache->pages - 1) / cache->pages : 0);
    put(o, "arena_limit_bytes", cache->arena_bytes);
    put(o, "transactions_limit_bytes", store->txn_limit_bytes);
    return o;
}

static json_t *answer_stats(struct control_commands *c, const json_t *args)
{
    (void)args;
    struct cache_stats cache;
    struct store_stats store;
    struct store_space space;
    struct inode_table_stats inodes;
    page_cache_stats(c->fs->cache, &cache);
    store_stats(c->fs->store, &store);
    store_space(c->fs->store, &space);
    inode_table_stats(c->fs, &inodes);

    json_t *inode_part = json_object();
    put(inode_part, "inodes", inodes.inodes);
    put(inode_part, "unused", inodes.unused);
    json_t *parts =
        json_pack("{s:o, s:o, s:o, s:o, s:o, s:o, s:o, s:o, s:o, s:o, s:o}", "cache",
                  cache_part(&cache), "faults", faults_part(&cache), "attach", attach_part(c->fs),
                  "readahead", readahead_part(&cache), "writeback", writeback_part(&cache),
                  "reclaim", reclaim_part(&cache), "store", store_part(&store, &space), "injected",
                  injected_part(store_faults(c->fs->store)), "inodes", inode_part, "operations",
                  operations_part(c->fs), "memory", memory_part(&cache, &store, &inodes));
    json_t *reply = accepted();
    (void)json_object_set_new(reply, "stats", parts);
    return reply;
}

/* ---- pages ----------------------------------------------------------------------------------- */

#define SHOWN_FLAGS                                                                             \
    (PG_locked | PG_uptodate | PG_dirty | PG_writeback | PG_error | PG_referenced | PG_active | \
     PG_readahead)

static json_t *flag_names(uint32_t flags)
{
    static const struct {
        uint32_t flag;
        const char *name;
    } all[] = {
        { PG_uptodate, "uptodate" },     { PG_dirty, "dirty" },
        { PG_writeback, "writeback" },   { PG_locked, "locked" },
        { PG_error, "error" },           { PG_active, "active" },
        { PG_referenced, "referenced" }, { PG_readahead, "readahead" },
    };
    json_t *names = json_array();
    for (size_t i = 0; i < sizeof all / sizeof all[0]; i++) {
        if (flags & all[i].flag)
            (void)json_array_append_new(names, json_string(all[i].name));
    }
    return names;
}

/* The run of neighbours with the same flags that is being collected; count 0: none yet. */
struct page_run {
    uint64_t index, count;
    uint32_t flags;
};

static void end_run(json_t *ranges, struct page_run *run)
{
    if (run->count > 0)
        (void)json_array_append_new(
            ranges, json_pack("{s:o, s:o, s:o}", "index", number(run->index), "count",
                              number(run->count), "flags", flag_names(run->flags)));
    run->count = 0;
}

static void add_page(json_t *ranges, struct page_run *run, uint32_t index, uint32_t flags)
{
    if (run->count > 0 && (run->index + run->count != index || run->flags != flags))
        end_run(ranges, run);
    if (run->count == 0)
        *run = (struct page_run){ .index = index, .flags = flags };
    run->count++;
}

/* Collect from *next on; *next becomes where to go on, beyond UINT32_MAX at the end. A page that
 * leaves the cache meanwhile is told or not: this is a look at a moving thing. */
static void collect_ranges(struct address_space *m, json_t *ranges, uint64_t *next)
{
    struct page *pages[PAGEVEC];
    struct page_run run = { 0 };
    unsigned visited = 0;
    while (*next <= UINT32_MAX && visited < PAGES_PER_REPLY &&
           json_array_size(ranges) + PAGEVEC < RANGES_PER_REPLY) {
        uint64_t from = *next;
        unsigned n = find_get_pages(m, next, UINT32_MAX, pages, PAGEVEC);
        if (n == 0 && *next == from)
            break; /* that page has been on its way out for a while (memfd.h): ask again */
        for (unsigned i = 0; i < n; i++) {
            uint32_t index = atomic_load(&pages[i]->index);
            if (atomic_load(&pages[i]->mapping) == m)
                add_page(ranges, &run, index, atomic_load(&pages[i]->flags) & SHOWN_FLAGS);
            put_page(m->cache, pages[i]);
        }
        visited += n;
    }
    end_run(ranges, &run);
}

/* The regular file of that number, referenced; NULL: *refused says why. */
static struct inode *get_file(struct fs *fs, json_int_t ino, json_t **refused)
{
    struct inode *inode;
    int err = ino > 0 ? inode_get(fs, (uint64_t)ino, &inode) : -ENOENT;
    if (err != 0) {
        *refused = refuse("inode %lld: %s", (long long)ino, strerror(-err));
        return NULL;
    }
    if (S_ISREG(inode->mode))
        return inode;
    inode_put(inode, 1);
    *refused = refuse("inode %lld is not a regular file: it has no pages", (long long)ino);
    return NULL;
}

static json_t *answer_pages(struct control_commands *c, const json_t *args)
{
    json_int_t ino = 0, index = 0;
    if (json_unpack((json_t *)args, "{s:I, s?I}", "ino", &ino, "index", &index) != 0 || ino <= 0 ||
        index < 0)
        return refuse("pages wants args {\"ino\": N} and may have \"index\": I");
    json_t *refused = NULL;
    struct inode *inode = get_file(c->fs, ino, &refused);
    if (inode == NULL)
        return refused;
    struct readahead ra = inode_readahead(inode);
    json_t *ranges = json_array();
    uint64_t next = (uint64_t)index;
    collect_ranges(&inode->mapping, ranges, &next);
    json_t *reply = accepted();
    put(reply, "size_bytes", atomic_load(&inode->mapping.i_size));
    put(reply, "cached", atomic_load(&inode->mapping.nrpages));
    put(reply, "dirty", atomic_load(&inode->mapping.nrdirty));
    (void)json_object_set_new(reply, "readahead", json_string(ra.policy->name));
    put(reply, "read_ahead_kb", (uint64_t)ra.pages * (PAGE_SIZE >> 10));
    inode_put(inode, 1);
    (void)json_object_set_new(reply, "ranges", ranges);
    (void)json_object_set_new(reply, "next", next <= UINT32_MAX ? number(next) : json_null());
    return reply;
}

/* ---- set ------------------------------------------------------------------------------------- */

#define COMMIT_MOST 3600u /* seconds, as for foliofs -o */
#define DIRTY_MOST  86400u

/* Whole seconds from 1 to most, as milliseconds. */
static bool parse_seconds(const char *text, unsigned most, unsigned *out_ms)
{
    char *end;
    unsigned long seconds = strtoul(text, &end, 10);
    if (text[0] < '0' || text[0] > '9' || *end != '\0' || seconds < 1 || seconds > most)
        return false;
    *out_ms = (unsigned)seconds * 1000;
    return true;
}

static bool parse_percent(const char *text, unsigned *out)
{
    uint64_t n;
    if (parse_size(text, &n) != 0 || n < 1 || n > 100)
        return false;
    *out = (unsigned)n;
    return true;
}

static const char *set_cache_size(struct fs *fs, const char *value)
{
    uint64_t bytes;
    if (parse_size(value, &bytes) != 0)
        return "wants bytes, such as 64M";
    if (page_cache_resize(fs->cache, bytes) == 0)
        return NULL;
    static _Thread_local char wrong[64 + 2 * SIZE_TEXT_BYTES];
    char least[SIZE_TEXT_BYTES], most[SIZE_TEXT_BYTES];
    snprintf(wrong, sizeof wrong, "is from %s to what the mount began with, %s",
             format_size((uint64_t)CACHE_MIN_PAGES << PAGE_SHIFT, least),
             format_size(fs->options.cache.cache_bytes, most));
    return wrong;
}

static const char *set_dirty(struct fs *fs, const struct cache_options *o)
{
    if (o->dirty_background_ratio > o->dirty_ratio)
        return "does not fit: dirty_background_ratio must not be above dirty_ratio";
    fs->options.cache = *o;
    page_cache_set_dirty(fs->cache, o);
    wakeup_flusher(fs->cache);
    return NULL;
}

static const char *set_dirty_ratio(struct fs *fs, const char *value)
{
    struct cache_options o = fs->options.cache;
    if (!parse_percent(value, &o.dirty_ratio))
        return "wants per cent of the cache, 1 to 100";
    return set_dirty(fs, &o);
}

static const char *set_dirty_background_ratio(struct fs *fs, const char *value)
{
    struct cache_options o = fs->options.cache;
    if (!parse_percent(value, &o.dirty_background_ratio))
        return "wants per cent of the cache, 1 to 100";
    return set_dirty(fs, &o);
}

static const char *set_dirty_expire(struct fs *fs, const char *value)
{
    struct cache_options o = fs->options.cache;
    if (!parse_seconds(value, DIRTY_MOST, &o.dirty_expire_ms))
        return "wants whole seconds, 1 to 86400";
    return set_dirty(fs, &o);
}

static const char *set_dirty_writeback(struct fs *fs, const char *value)
{
    struct cache_options o = fs->options.cache;
    if (!parse_seconds(value, DIRTY_MOST, &o.dirty_writeback_ms))
        return "wants whole seconds, 1 to 86400";
    return set_dirty(fs, &o);
}

static const char *set_commit(struct fs *fs, const char *value)
{
    unsigned ms;
    if (!parse_seconds(value, COMMIT_MOST, &ms))
        return "wants whole seconds, 1 to 3600";
    __atomic_store_n(&fs->options.commit_ms, ms, __ATOMIC_RELAXED);
    store_wake(fs->store);
    return NULL;
}

static const char *set_reclaim(struct fs *fs, const char *value)
{
    if (page_cache_set_reclaim(fs->cache, value) != 0)
        return "wants a policy: " RECLAIM_NAMES;
    fs->options.cache.reclaim = page_cache_reclaim_name(value);
    return NULL;
}

static const char *parse_policy(const char *value, const struct ra_policy **out)
{
    static _Thread_local char wrong[20 + RA_ERROR_BYTES];
    char why[RA_ERROR_BYTES];
    if (ra_policy_open(value, out, why, sizeof why) != 0) {
        snprintf(wrong, sizeof wrong, "is not possible: %s", why);
        return wrong;
    }
    return NULL;
}

/* 0 when it is no number: nobody takes so many pages. */
static unsigned parse_pages(const char *value)
{
    char *end;
    unsigned long n = strtoul(value, &end, 10);
    return *end != '\0' || n > UINT32_MAX ? 0 : (unsigned)n;
}

static const char *set_fault_around(struct fs *fs, const char *value)
{
    return page_cache_set_fault_around(fs->cache, parse_pages(value)) == 0
               ? NULL
               : "wants pages, 1 to 512";
}

static const char *set_store_around(struct fs *fs, const char *value)
{
    return page_cache_set_store_around(fs->cache, parse_pages(value)) == 0 ? NULL
                                                                           : "wants pages, 1 to 64";
}

static const char *parse_ra_pages(const char *value, uint32_t *out)
{
    char *end;
    unsigned long kb = strtoul(value, &end, 10);
    if (value[0] < '0' || value[0] > '9' || *end != '\0' || kb < READ_AHEAD_KB_MIN ||
        kb > READ_AHEAD_KB_MAX)
        return "wants KiB, 4 to 1048576";
    *out = (uint32_t)(kb / (PAGE_SIZE >> 10));
    return NULL;
}

static const char *apply_readahead(struct fs *fs, const struct readahead *ra)
{
    return fs_set_readahead(fs, ra) == 0 ? NULL
                                         : "reaches only files opened from now on: out of memory";
}

static const char *set_readahead(struct fs *fs, const char *value)
{
    struct readahead ra = { 0 };
    const char *wrong = parse_policy(value, &ra.policy);
    return wrong != NULL ? wrong : apply_readahead(fs, &ra);
}

static const char *set_read_ahead_kb(struct fs *fs, const char *value)
{
    struct readahead ra = { 0 };
    const char *wrong = parse_ra_pages(value, &ra.pages);
    return wrong != NULL ? wrong : apply_readahead(fs, &ra);
}

#define AS_THE_VOLUME "default" /* ends a file's own choice */

static const char *set_file_readahead(struct inode *inode, const char *value)
{
    const struct ra_policy *policy = NULL;
    const char *wrong = strcmp(value, AS_THE_VOLUME) == 0 ? NULL : parse_policy(value, &policy);
    if (wrong == NULL)
        inode_set_ra_policy(inode, policy);
    return wrong;
}

static const char *set_file_read_ahead_kb(struct inode *inode, const char *value)
{
    uint32_t pages = 0;
    const char *wrong = strcmp(value, AS_THE_VOLUME) == 0 ? NULL : parse_ra_pages(value, &pages);
    if (wrong == NULL)
        inode_set_ra_pages(inode, pages);
    return wrong;
}

/* A setter returns NULL, or what is wrong with the value. Under set_lock. */
struct setting {
    const char *name;
    const char *(*set)(struct fs *fs, const char *value);
    const char *(*set_file)(struct inode *inode, const char *value); /* NULL: not a file's */
};

static const struct setting settings[] = {
    { "cache_size", set_cache_size, NULL },
    { "dirty_ratio", set_dirty_ratio, NULL },
    { "dirty_background_ratio", set_dirty_background_ratio, NULL },
    { "dirty_expire", set_dirty_expire, NULL },
    { "dirty_writeback", set_dirty_writeback, NULL },
    { "commit", set_commit, NULL },
    { "fault_around", set_fault_around, NULL },
    { "store_around", set_store_around, NULL },
    { "readahead", set_readahead, set_file_readahead },
    { "read_ahead_kb", set_read_ahead_kb, set_file_read_ahead_kb },
    { "reclaim", set_reclaim, NULL },
};

static json_t *unknown_setting(const char *name)
{
    char names[256] = "";
    for (size_t i = 0; i < sizeof settings / sizeof settings[0]; i++) {
        strncat(names, i > 0 ? ", " : "", sizeof names - strlen(names) - 1);
        strncat(names, settings[i].name, sizeof names - strlen(names) - 1);
    }
    return refuse("unknown setting \"%.64s\"; there are: %s", name, names);
}

static const struct setting *find_setting(const char *name)
{
    for (size_t i = 0; i < sizeof settings / sizeof settings[0]; i++)
        if (strcmp(settings[i].name, name) == 0)
            return &settings[i];
    return NULL;
}

static json_t *answer_set(struct control_commands *c, const json_t *args)
{
    const char *name, *value, *wrong = NULL;
    json_int_t ino = 0;
    if (json_unpack((json_t *)args, "{s:s, s:s, s?I}", "name", &name, "value", &value, "ino",
                    &ino) != 0)
        return refuse("set wants args {\"name\": TEXT, \"value\": TEXT} and may have \"ino\": N");
    const struct setting *setting = find_setting(name);
    if (setting == NULL)
        return unknown_setting(name);
    json_t *refused = NULL;
    struct inode *inode = ino != 0 ? get_file(c->fs, ino, &refused) : NULL;
    if (ino != 0 && inode == NULL)
        return refused;
    pthread_mutex_lock(&c->set_lock);
    if (inode == NULL)
        wrong = setting->set(c->fs, value);
    else if (setting->set_file != NULL)
        wrong = setting->set_file(inode, value);
    else
        wrong = "is the volume's, not a file's";
    pthread_mutex_unlock(&c->set_lock);
    if (inode != NULL)
        inode_put(inode, 1);
    if (wrong != NULL)
        return refuse("%s=%.64s: %s %s", name, value, name, wrong);
    json_t *reply = accepted();
    (void)json_object_set_new(reply, "name", json_string(name));
    (void)json_object_set_new(reply, "value", json_string(value));
    return reply;
}

/* ---- inject ---------------------------------------------------------------------------------- */

static json_t *answer_inject(struct control_commands *c, const json_t *args)
{
    struct device *faults = store_faults(c->fs->store);
    if (faults == NULL)
        return refuse(INJECT_NEEDS_OPTION);
    const json_t *ino = json_object_get(args, "ino");
    json_t *refused = NULL;
    struct inode *inode = ino != NULL ? get_file(c->fs, json_integer_value(ino), &refused) : NULL;
    if (refused != NULL)
        return refused;
    const char *wrong = inject_apply(faults, args, inode);
    if (inode != NULL)
        inode_put(inode, 1);
    if (wrong != NULL)
        return refuse("inject: %s", wrong);
    json_t *reply = accepted();
    (void)json_object_set_new(reply, "rules", inject_rules(faults));
    put(reply, "hits", dev_fault_hits(faults));
    return reply;
}

/* ---- requests -------------------------------------------------------------------------------- */

static const struct {
    const char *name;
    json_t *(*answer)(struct control_commands *c, const json_t *args);
} commands[] = {
    { "stats", answer_stats },     { "pages", answer_pages }, { "sync", answer_sync },
    { "drop", answer_drop },       { "set", answer_set },     { "inject", answer_inject },
    { "version", answer_version },
};

static json_t *answer_object(struct control_commands *c, const json_t *request)
{
    int protocol = CONTROL_PROTOCOL;
    const char *name;
    json_t *args = NULL;
    if (json_unpack((json_t *)request, "{s?i, s:s, s?o}", "protocol", &protocol, "cmd", &name,
                    "args", &args) != 0)
        return refuse("a request is {\"protocol\": %d, \"cmd\": TEXT, \"args\": {...}}",
                      CONTROL_PROTOCOL);
    if (protocol != CONTROL_PROTOCOL)
        return refuse("the client speaks protocol %d, the daemon protocol %d: use the foliofsctl "
                      "that came with the running foliofs (version " FOLIO_VERSION ")",
                      protocol, CONTROL_PROTOCOL);
    for (size_t i = 0; i < sizeof commands / sizeof commands[0]; i++) {
        if (strcmp(commands[i].name, name) == 0)
            return commands[i].answer(c, args);
    }
    return refuse("unknown command \"%.64s\"", name);
}

json_t *control_answer(struct control_commands *c, const char *line, size_t len)
{
    json_error_t error;
    json_t *request = json_loadb(line, len, JSON_REJECT_DUPLICATES, &error);
    if (request == NULL)
        return refuse("not a JSON object: %s", error.text);
    json_t *reply = answer_object(c, request);
    json_decref(request);
    return reply;
}
