/* ra_load.c: from "NAME:ARGS" or "./FILE.so:ARGS" to a policy. */
#include <assert.h>
#include <dlfcn.h>
#include <errno.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cache/readahead.h"

static const struct ra_policy *const built_in[] = { &ra_linux, &ra_none, &ra_fixed, &ra_stride,
                                                    &ra_leap };
#define BUILT_IN (sizeof built_in / sizeof built_in[0])

/* Policies with arguments and loaded ones. They are the process's, for a shared object is; and they
 * stay, for nobody counts the open files that use one. */
struct opened {
    struct ra_policy policy; /* a copy, with its own config */
    struct opened *next;
    char spec[];
};
static struct opened *all_opened; /* (opened_lock) */
static pthread_mutex_t opened_lock = PTHREAD_MUTEX_INITIALIZER;

__attribute__((format(printf, 3, 4))) static int fail(char *error, size_t n, const char *format,
                                                      ...)
{
    va_list args;
    va_start(args, format);
    /* NOLINTNEXTLINE(clang-analyzer-valist.Uninitialized): clang 14 errs */
    vsnprintf(error, n, format, args);
    va_end(args);
    return -EINVAL;
}

static int no_such_policy(const char *name, size_t len, char *error, size_t n)
{
    char names[100] = "";
    size_t used = 0;
    for (size_t i = 0; i < BUILT_IN && used < sizeof names; i++)
        used += (size_t)snprintf(names + used, sizeof names - used, "%s, ", built_in[i]->name);
    return fail(error, n,
                "%.*s: no such readahead policy; there are %sand ./FILE.so or /DIR/FILE.so",
                (int)(len < 64 ? len : 64), name, names);
}

static const struct ra_policy *find_built_in(const char *name, size_t len)
{
    for (size_t i = 0; i < BUILT_IN; i++)
        if (strlen(built_in[i]->name) == len && memcmp(built_in[i]->name, name, len) == 0)
            return built_in[i];
    return NULL;
}

static int check_loaded(const char *path, const struct ra_policy *policy, char *error, size_t n)
{
    if (policy == NULL)
        return fail(error, n, "%s: it has no symbol %s, so it is not a readahead policy", path,
                    RA_POLICY_SYMBOL);
    if (policy->abi != RA_ABI)
        return fail(error, n,
                    "%s: made for version %u of cache/readahead.h, but this is version %u:"
                    " compile it again",
                    path, policy->abi, RA_ABI);
    if (policy->name == NULL || policy->access == NULL)
        return fail(error, n, "%s: its %s has no %s", path, RA_POLICY_SYMBOL,
                    policy->name == NULL ? "name" : "access()");
    return 0;
}

/* The shared object's policy; it stays loaded. */
static int load(const char *path, const struct ra_policy **out, char *error, size_t n)
{
    void *object = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (object == NULL) {
        const char *why = dlerror(); /* usually begins with the path */
        return strncmp(why, path, strlen(path)) == 0 ? fail(error, n, "%s", why)
                                                     : fail(error, n, "%s: %s", path, why);
    }
    const struct ra_policy *policy = dlsym(object, RA_POLICY_SYMBOL);
    int err = check_loaded(path, policy, error, n);
    if (err != 0)
        dlclose(object);
    else
        *out = policy;
    return err;
}

/* Where the name of the policy ends in spec, and its arguments begin after a ':'. */
static size_t name_length(const char *spec)
{
    for (const char *so = spec; (so = strstr(so, ".so")) != NULL; so += 3)
        if (strchr(spec, '/') < so && (so[3] == ':' || so[3] == '\0'))
            return (size_t)(so - spec) + 3;
    return strcspn(spec, ":");
}

static int find_policy(const char *spec, size_t len, const struct ra_policy **out, char *error,
                       size_t n)
{
    if (memchr(spec, '/', len) == NULL) {
        *out = find_built_in(spec, len);
        return *out != NULL ? 0 : no_such_policy(spec, len, error, n);
    }
    char *path = strndup(spec, len);
    if (path == NULL)
        return -ENOMEM;
    int err = load(path, out, error, n);
    free(path);
    return err;
}

static int init_policy(struct ra_policy *policy, const char *args, char *error, size_t n)
{
    if (policy->init == NULL)
        return fail(error, n, "%s: this readahead policy takes no arguments", policy->name);
    return policy->init(policy->config, args, error, n);
}

/* A new copy of what spec names. Context: opened_lock. */
static int open_spec(const char *spec, struct opened **out, char *error, size_t n)
{
    const struct ra_policy *policy = NULL;
    size_t len = name_length(spec);
    int err = find_policy(spec, len, &policy, error, n);
    if (err != 0)
        return err;
    assert(policy != NULL);
    struct opened *o = calloc(1, sizeof *o + strlen(spec) + 1);
    if (o == NULL)
        return -ENOMEM;
    o->policy = *policy;
    memset(o->policy.config, 0, sizeof o->policy.config);
    strcpy(o->spec, spec);
    if (spec[len] == ':' && (err = init_policy(&o->policy, spec + len + 1, error, n)) != 0) {
        free(o);
        return err;
    }
    *out = o;
    return 0;
}

int ra_policy_open(const char *spec, const struct ra_policy **out, char *error, size_t n)
{
    const struct ra_policy *policy = find_built_in(spec, strlen(spec));
    if (policy != NULL) {
        *out = policy;
        return 0;
    }
    if (n > 0)
        error[0] = '\0';
    int err = 0;
    pthread_mutex_lock(&opened_lock);
    struct opened *o = all_opened;
    while (o != NULL && strcmp(o->spec, spec) != 0)
        o = o->next;
    if (o == NULL && (err = open_spec(spec, &o, error, n)) == 0) {
        o->next = all_opened;
        all_opened = o;
    }
    pthread_mutex_unlock(&opened_lock);
    if (err == 0)
        *out = &o->policy;
    else if (n > 0 && error[0] == '\0')
        snprintf(error, n, "%.100s: %s", spec, strerror(-err));
    return err;
}
