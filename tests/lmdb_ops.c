/* lmdb_ops: an LMDB environment with MDB_WRITEMAP, stored to through its map.
 *
 *     lmdb_ops fill FILE      20 transactions of puts and deletes, each durable
 *     lmdb_ops verify FILE    exactly what fill left is there
 */
#include <lmdb.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define ROUNDS 20u
#define KEYS   500u

static void must(int err, const char *what)
{
    if (err == 0)
        return;
    printf("%s: %s\n", what, mdb_strerror(err));
    exit(1);
}

static size_t length_of(uint32_t key, uint32_t round)
{
    return 10 + (key * 37 + round * 101) % 3000;
}
static unsigned char byte_of(uint32_t key, uint32_t round)
{
    return (unsigned char)(key * 7 + round);
}
/* In each round every third of the keys is put anew, and every seventh is deleted. */
static int last_round(uint32_t key)
{
    int last = -1;
    for (uint32_t round = 0; round < ROUNDS; round++) {
        if ((key + round) % 3 == 0)
            last = (int)round;
        if ((key + round) % 7 == 0)
            last = -1;
    }
    return last;
}

static void fill(MDB_env *env)
{
    static unsigned char value[4096];
    for (uint32_t round = 0; round < ROUNDS; round++) {
        MDB_txn *txn;
        MDB_dbi dbi;
        must(mdb_txn_begin(env, NULL, 0, &txn), "begin");
        must(mdb_dbi_open(txn, NULL, MDB_INTEGERKEY, &dbi), "open");
        for (uint32_t key = 0; key < KEYS; key++) {
            MDB_val k = { sizeof key, &key }, v = { length_of(key, round), value };
            memset(value, byte_of(key, round), v.mv_size);
            if ((key + round) % 3 == 0)
                must(mdb_put(txn, dbi, &k, &v, 0), "put");
            int err = (key + round) % 7 == 0 ? mdb_del(txn, dbi, &k, NULL) : 0;
            must(err == MDB_NOTFOUND ? 0 : err, "delete");
        }
        must(mdb_txn_commit(txn), "commit");
    }
}

static void verify(MDB_env *env)
{
    MDB_txn *txn;
    MDB_dbi dbi;
    must(mdb_txn_begin(env, NULL, MDB_RDONLY, &txn), "begin");
    must(mdb_dbi_open(txn, NULL, MDB_INTEGERKEY, &dbi), "open");
    for (uint32_t key = 0; key < KEYS; key++) {
        MDB_val k = { sizeof key, &key }, v;
        int err = mdb_get(txn, dbi, &k, &v), round = last_round(key);
        if (err != (round < 0 ? MDB_NOTFOUND : 0)) {
            printf("key %u: %s\n", key, mdb_strerror(err));
            exit(1);
        }
        const unsigned char *bytes = round < 0 ? NULL : v.mv_data;
        size_t wrong = round < 0 || v.mv_size == length_of(key, (uint32_t)round) ? 0 : 1;
        for (size_t i = 0; bytes != NULL && i < v.mv_size; i++)
            wrong += bytes[i] != byte_of(key, (uint32_t)round);
        if (wrong > 0) {
            printf("key %u has %zu wrong bytes\n", key, wrong);
            exit(1);
        }
    }
    mdb_txn_abort(txn);
}

int main(int argc, char **argv)
{
    MDB_env *env;
    if (argc != 3)
        return 2;
    must(mdb_env_create(&env), "create");
    must(mdb_env_set_mapsize(env, 32u << 20), "size");
    must(mdb_env_open(env, argv[2], MDB_NOSUBDIR | MDB_WRITEMAP, 0644), "open");
    if (strcmp(argv[1], "fill") == 0)
        fill(env);
    else
        verify(env);
    mdb_env_close(env);
    return 0;
}
