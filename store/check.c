/* check.c: the order of the passes, findings, and the list of repairs. */
#include "store/check_internal.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "store/bytes.h"
#include "store/crc32c.h"

/* ---- findings -------------------------------------------------------------------------------- */

void check_find(struct check *c, enum check_kind kind, bool fixable, const char *format, ...)
{
    char line[QUOTED_BYTES + 256];
    va_list ap;

    if (kind != CHECK_NOTE) {
        c->summary.found++;
        c->summary.fixable += fixable;
    }
    if (c->report == NULL)
        return;
    va_start(ap, format);
    vsnprintf(line, sizeof line, format, ap);
    va_end(ap);
    c->report(c->ctx, kind, fixable, line);
}

const char *check_quote(char buf[QUOTED_BYTES], const void *name, size_t len)
{
    const uint8_t *bytes = name;
    char *p = buf;

    *p++ = '"';
    for (size_t i = 0; i < len && i < NAME_MAX_BYTES; i++) {
        if (bytes[i] < ' ' || bytes[i] == '"' || bytes[i] == '\\' || bytes[i] == 0x7F)
            p += snprintf(p, 5, "\\x%02X", bytes[i]);
        else
            *p++ = (char)bytes[i];
    }
    *p++ = '"';
    *p = '\0';
    return buf;
}

/* ---- repairs --------------------------------------------------------------------------------- */

static void repair_add(struct check *c, enum repair_kind kind, const struct key *key,
                       const uint8_t *value, size_t len)
{
    struct repair *r;

    if (c->nr_repairs >= CHECK_REPAIRS_MAX)
        return;
    r = calloc(1, sizeof *r);
    if (r == NULL) {
        c->error = -ENOMEM;
        return;
    }
    r->kind = kind;
    r->key = *key;
    r->len = (uint32_t)len;
    if (len > 0)
        memcpy(r->value, value, len);
    *c->repairs_end = r;
    c->repairs_end = &r->next;
    c->nr_repairs++;
}

void check_put(struct check *c, const struct key *key, const uint8_t *value, size_t len)
{
    repair_add(c, REPAIR_PUT, key, value, len);
}

void check_del(struct check *c, const struct key *key)
{
    repair_add(c, REPAIR_DEL, key, NULL, 0);
}

void check_restore(struct check *c, const struct key *key, const uint8_t *value, size_t len)
{
    repair_add(c, REPAIR_RESTORE, key, value, len);
}

/* ---- records --------------------------------------------------------------------------------- */

bool check_envelope(const struct pages_entry *e, const uint8_t **payload, size_t *len)
{
    uint32_t crc;

    if (e->value_len < ENVELOPE_BYTES || e->value[0] != ENVELOPE_VERSION)
        return false;
    *payload = e->value + ENVELOPE_BYTES;
    *len = e->value_len - ENVELOPE_BYTES;
    crc = crc32c(crc32c(0, e->key, e->key_len), *payload, *len);
    return crc == get_le32(e->value + 1);
}

bool check_key(const struct pages_entry *e, struct key *out)
{
    if (e->key_len > KEY_MAX)
        return false;
    out->len = (uint16_t)e->key_len;
    memcpy(out->bytes, e->key, e->key_len);
    return key_is_sane(out);
}

struct inode_entry *check_inode(const struct check *c, uint64_t ino)
{
    struct inode_entry *i = table_get(&c->inodes, ino);

    return i != NULL && i->flags & I_RECORD ? i : NULL;
}

/* ---- passes ---------------------------------------------------------------------------------- */

static void report_page(void *ctx, enum pages_finding kind, const char *line)
{
    struct check *c = ctx;

    check_find(c, kind == PAGES_NOTE ? CHECK_NOTE : CHECK_PAGES, false, "%s", line);
}

static int scan(struct check *c, uint8_t from, uint8_t to,
                void (*entry)(void *ctx, const struct pages_entry *e))
{
    struct pages_ops ops = { .entry = entry };
    int err = pages_scan(c->fd, from, to, &ops, c);

    return err != 0 ? err : c->error;
}

static int run_names(struct check *c)
{
    int err = scan(c, KEY_COOKIE, KEY_DIRENT, check_name);

    if (err != 0 || c->partial)
        return err;
    check_cycles(c);
    if (c->want_names || c->nr_matched < c->twins.count)
        err = scan(c, KEY_COOKIE, KEY_DIRENT, check_name_again);
    if (err == 0 && c->want_xattrs)
        err = scan(c, KEY_XATTR, KEY_XATTR, check_xattr);
    return err;
}

static int run(struct check *c)
{
    struct pages_ops ops = { .entry = check_record, .report = report_page };
    int err = pages_check(c->fd, &ops, c, &c->summary.pages);

    if (err == 0)
        err = c->error;
    if (err != 0)
        return err;
    c->partial = c->summary.pages.damage != 0;
    if (c->partial)
        check_find(c, CHECK_NOTE, false,
                   "names, counts and links are not compared: not all records can be read");
    else
        check_owners(c);
    check_log(c);
    err = run_names(c);
    if (err != 0 || c->partial)
        return err;
    check_data(c);
    check_links(c);
    check_numbers(c);
    return c->error;
}

int check_volume(int fd, check_report *report, void *ctx, struct check **out)
{
    struct check *c = calloc(1, sizeof *c);
    int err;

    if (c == NULL)
        return -ENOMEM;
    c->fd = fd;
    c->report = report;
    c->ctx = ctx;
    c->inodes.entry_size = sizeof(struct inode_entry);
    c->data.entry_size = sizeof(struct data_entry);
    c->twins.entry_size = sizeof(struct twin_entry);
    c->repairs_end = &c->repairs;
    err = run(c);
    if (err != 0) {
        check_free(c);
        return err;
    }
    *out = c;
    return 0;
}

const struct check_summary *check_summary(const struct check *c)
{
    return &c->summary;
}

void check_free(struct check *c)
{
    struct repair *r = c->repairs;

    while (r != NULL) {
        struct repair *next = r->next;
        free(r);
        r = next;
    }
    table_free(&c->inodes);
    table_free(&c->data);
    table_free(&c->twins);
    free(c);
}
