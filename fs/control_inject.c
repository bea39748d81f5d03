#include "fs/control_inject.h"

#include <string.h>

#define KIND_NAMES "eio, enospc, enomem, lost, torn"

static const char *const kinds[] = {
    [FAULT_EIO] = "eio",   [FAULT_ENOSPC] = "enospc", [FAULT_ENOMEM] = "enomem",
    [FAULT_LOST] = "lost", [FAULT_TORN] = "torn",
};
#define NR_KINDS (sizeof kinds / sizeof kinds[0])

static bool find_kind(const char *name, enum fault_kind *out)
{
    for (size_t i = 0; i < NR_KINDS; i++) {
        if (strcmp(kinds[i], name) == 0) {
            *out = (enum fault_kind)i;
            return true;
        }
    }
    return false;
}

/* What makes no sense, or NULL. */
static const char *check_rule(const struct fault_rule *r, bool file)
{
    if (!r->reads && !r->writes && !r->commits)
        return "of what: reads, writes, commits?";
    if ((r->kind == FAULT_LOST || r->kind == FAULT_TORN) && (r->reads || r->commits))
        return "lost and torn are for writes alone";
    if (r->commits && file)
        return "commits are the volume's, not a file's";
    return NULL;
}

static const char *parse_rule(const json_t *args, bool file, struct fault_rule *out)
{
    const char *kind = NULL;
    int reads = 0, writes = 0, commits = 0;
    json_int_t per_million = 1000000, count = 0, after = 0, ino = 0;
    if (json_unpack((json_t *)args, "{s:s, s?b, s?b, s?b, s?I, s?I, s?I, s?I !}", "kind", &kind,
                    "reads", &reads, "writes", &writes, "commits", &commits, "per_million",
                    &per_million, "count", &count, "after", &after, "ino", &ino) != 0)
        return "inject wants no args, {\"clear\": true}, or \"kind\" and what goes with it";
    if (per_million < 1 || per_million > 1000000)
        return "per_million is 1 to 1000000";
    if (count < (json_object_get(args, "count") != NULL ? 1 : 0)) /* 0, if not given: without end */
        return "count is at least 1";
    if (after < 0)
        return "after is not below 0";
    *out = (struct fault_rule){ .reads = reads != 0,
                                .writes = writes != 0,
                                .commits = commits != 0,
                                .last = UINT32_MAX,
                                .after = (uint64_t)after,
                                .count = (uint64_t)count,
                                .per_million = (uint32_t)per_million,
                                .label = (uint64_t)ino };
    return find_kind(kind, &out->kind) ? check_rule(out, file) : "the kinds are " KIND_NAMES;
}

/* The file's data id may change only before or after. */
static int add_for_file(struct device *faults, struct fault_rule *r, struct inode *inode)
{
    pthread_mutex_lock(&inode->i_lock);
    r->object = inode->data_id;
    int err = dev_fault_add(faults, r);
    pthread_mutex_unlock(&inode->i_lock);
    return err;
}

const char *inject_apply(struct device *faults, const json_t *args, struct inode *inode)
{
    struct fault_rule r;
    if (args == NULL || json_object_size(args) == 0)
        return NULL; /* a look */
    if (json_object_size(args) == 1 && json_is_true(json_object_get(args, "clear"))) {
        dev_fault_clear(faults);
        return NULL;
    }
    const char *wrong = parse_rule(args, inode != NULL, &r);
    if (wrong != NULL)
        return wrong;
    int err = inode != NULL ? add_for_file(faults, &r, inode) : dev_fault_add(faults, &r);
    return err == 0 ? NULL : "there are as many rules as there can be: clear them first";
}

json_t *inject_rules(struct device *faults)
{
    struct fault_state states[FAULT_RULES_MAX];
    unsigned nr = dev_fault_list(faults, states);
    json_t *rules = json_array();
    for (unsigned i = 0; i < nr; i++) {
        const struct fault_rule *r = &states[i].rule;
        (void)json_array_append_new(
            rules,
            json_pack("{s:s, s:b, s:b, s:b, s:I, s:I, s:I, s:I, s:I, s:I}", "kind", kinds[r->kind],
                      "reads", r->reads, "writes", r->writes, "commits", r->commits, "ino",
                      (json_int_t)r->label, "per_million", (json_int_t)r->per_million, "after",
                      (json_int_t)r->after, "count", (json_int_t)r->count, "seen",
                      (json_int_t)states[i].seen, "hit", (json_int_t)states[i].hit));
    }
    return rules;
}
