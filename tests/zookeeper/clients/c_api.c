/* Calls the C client's synchronous functions against the server at HOST:PORT.
 *
 * The server is a member of an ensemble and takes TTL nodes. Ends with 0 when every answer was as
 * claimed, names the first one that was not otherwise. */

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <zookeeper/zookeeper.h>

#define CHECK(claim) \
    do { \
        if (!(claim)) { \
            fprintf(stderr, "FAIL line %d: %s\n", __LINE__, #claim); \
            exit(1); \
        } \
    } while (0)
#define CALL(expected, call) \
    do { \
        int code_ = (call); \
        if (code_ != (expected)) { \
            fprintf(stderr, "FAIL line %d: %s = %s, not %s\n", __LINE__, #call, zerror(code_), \
                    zerror(expected)); \
            exit(1); \
        } \
    } while (0)

enum { TIMEOUT_MS = 10000, WAIT_MS_MAX = 30000 };

/* What a watcher saw last; watchers run on the client's own thread. */
struct seen {
    volatile int count;
    volatile int type;
    volatile int state;
};

static void watcher(zhandle_t *zk, int type, int state, const char *path, void *context) {
    struct seen *seen = context != NULL ? context : (struct seen *)zoo_get_context(zk);
    (void)path;
    seen->type = type;
    seen->state = state;
    __sync_fetch_and_add(&seen->count, 1);
}

static void wait_for_count(const struct seen *seen, int count) {
    for (int waited_ms = 0; seen->count < count; waited_ms += 5) {
        CHECK(waited_ms < WAIT_MS_MAX);
        usleep(5000);
    }
}

static void wait_for_state(zhandle_t *zk, int state) {
    for (int waited_ms = 0; zoo_state(zk) != state; waited_ms += 5) {
        CHECK(waited_ms < WAIT_MS_MAX);
        usleep(5000);
    }
}

static char root[64];

static const char *at(const char *name) {
    static char paths[8][128];
    static int next;
    char *path = paths[next++ % 8];
    snprintf(path, sizeof paths[0], "%s%s", root, name);
    return path;
}

static void nodes(zhandle_t *zk) {
    char path[128], data[128];
    int size;
    struct Stat stat;
    struct String_vector children;
    const struct ACL_vector *open = &ZOO_OPEN_ACL_UNSAFE;

    CALL(ZOK, zoo_create(zk, root, "data", 4, open, ZOO_PERSISTENT, path, sizeof path));
    CHECK(strcmp(path, root) == 0);
    CALL(ZNODEEXISTS, zoo_create(zk, root, "", 0, open, ZOO_PERSISTENT, NULL, 0));
    CALL(ZNONODE, zoo_create(zk, at("/none/x"), "", 0, open, ZOO_PERSISTENT, NULL, 0));
    CALL(ZOK, zoo_create2(zk, at("/s-"), "s", 1, open, ZOO_PERSISTENT_SEQUENTIAL, path,
                          sizeof path, &stat));
    CHECK(strcmp(path, at("/s-0000000000")) == 0);
    CHECK(stat.version == 0 && stat.dataLength == 1 && stat.czxid == stat.pzxid);
    CALL(ZOK, zoo_create(zk, at("/e"), NULL, -1, open, ZOO_EPHEMERAL, NULL, 0));
    CALL(ZNOCHILDRENFOREPHEMERALS,
         zoo_create(zk, at("/e/x"), "", 0, open, ZOO_PERSISTENT, NULL, 0));
    CALL(ZOK, zoo_create(zk, at("/c"), "", 0, open, ZOO_CONTAINER, NULL, 0));
    CALL(ZOK, zoo_create_ttl(zk, at("/t"), "", 0, open, ZOO_PERSISTENT_WITH_TTL, 600000, NULL, 0));

    size = sizeof data;
    CALL(ZOK, zoo_get(zk, root, 0, data, &size, &stat));
    CHECK(size == 4 && memcmp(data, "data", 4) == 0);
    CHECK(stat.numChildren == 4 && stat.cversion == 4 && stat.ephemeralOwner == 0);
    size = sizeof data;
    CALL(ZOK, zoo_get(zk, at("/e"), 0, data, &size, &stat));
    CHECK(size == -1 && stat.ephemeralOwner == zoo_client_id(zk)->client_id);
    size = sizeof data;
    CALL(ZOK, zoo_get(zk, at("/c"), 0, data, &size, NULL));
    CHECK(size == 0);
    CALL(ZOK, zoo_set2(zk, root, "new", 3, 0, &stat));
    CHECK(stat.version == 1 && stat.mzxid > stat.czxid);
    CALL(ZBADVERSION, zoo_set(zk, root, "x", 1, 0));
    CALL(ZOK, zoo_exists(zk, root, 0, &stat));
    CALL(ZNONODE, zoo_exists(zk, at("/none"), 0, &stat));
    CALL(ZOK, zoo_get_children2(zk, root, 0, &children, &stat));
    CHECK(children.count == 4 && stat.numChildren == 4);
    deallocate_String_vector(&children);
    CALL(ZNOTEMPTY, zoo_delete(zk, root, -1));
    CALL(ZBADVERSION, zoo_delete(zk, at("/c"), 5));
    CALL(ZOK, zoo_delete(zk, at("/c"), 0));
}

static void watches(zhandle_t *zk) {
    char data[16];
    int size = sizeof data;
    struct seen node = {0, 0, 0}, child = {0, 0, 0}, removed = {0, 0, 0};
    struct String_vector children;
    const struct ACL_vector *open = &ZOO_OPEN_ACL_UNSAFE;

    CALL(ZNONODE, zoo_wexists(zk, at("/w"), watcher, &node, NULL));
    CALL(ZOK, zoo_create(zk, at("/w"), "", 0, open, ZOO_PERSISTENT, NULL, 0));
    wait_for_count(&node, 1);
    CHECK(node.type == ZOO_CREATED_EVENT);
    CALL(ZOK, zoo_wget_children(zk, at("/w"), watcher, &child, &children));
    deallocate_String_vector(&children);
    CALL(ZOK, zoo_create(zk, at("/w/x"), "", 0, open, ZOO_PERSISTENT, NULL, 0));
    wait_for_count(&child, 1);
    CHECK(child.type == ZOO_CHILD_EVENT);
    CALL(ZOK, zoo_delete(zk, at("/w/x"), -1));
    CALL(ZOK, zoo_wget(zk, at("/w"), watcher, &node, data, &size, NULL));
    CALL(ZOK, zoo_set(zk, at("/w"), "1", 1, -1));
    wait_for_count(&node, 2);
    CHECK(node.type == ZOO_CHANGED_EVENT);
    size = sizeof data;
    CALL(ZOK, zoo_wget(zk, at("/w"), watcher, &removed, data, &size, NULL));
    CALL(ZOK, zoo_remove_watches(zk, at("/w"), ZWATCHTYPE_DATA, watcher, &removed, 0));
    CALL(ZNOWATCHER, zoo_remove_watches(zk, at("/w"), ZWATCHTYPE_DATA, watcher, &removed, 0));
    size = sizeof data;
    CALL(ZOK, zoo_wget(zk, at("/w"), watcher, &node, data, &size, NULL));
    CALL(ZOK, zoo_delete(zk, at("/w"), -1));
    wait_for_count(&node, 3);
    CHECK(node.type == ZOO_DELETED_EVENT);
    /* One-shot: none came twice, and to the removed one nothing came. */
    CHECK(node.count == 3 && child.count == 1 && removed.count == 0);
}

static void transactions(zhandle_t *zk) {
    zoo_op_t ops[4];
    zoo_op_result_t results[4];
    char path[128];
    struct Stat stat;
    const struct ACL_vector *open = &ZOO_OPEN_ACL_UNSAFE;

    zoo_create_op_init(&ops[0], at("/m-"), "1", 1, open, ZOO_SEQUENCE, path, sizeof path);
    zoo_create_op_init(&ops[1], at("/m"), "1", 1, open, 0, NULL, 0);
    zoo_set_op_init(&ops[2], at("/m"), "22", 2, 0, &stat);
    zoo_check_op_init(&ops[3], at("/m"), 1);
    CALL(ZOK, zoo_multi(zk, 4, ops, results));
    CHECK(strncmp(path, at("/m-"), strlen(at("/m-"))) == 0 && strlen(path) > strlen(at("/m-")));
    CHECK(stat.version == 1 && stat.dataLength == 2 && stat.czxid == stat.mzxid);

    zoo_set_op_init(&ops[0], at("/m"), "333", 3, -1, NULL);
    zoo_delete_op_init(&ops[1], at("/none"), -1);
    zoo_check_op_init(&ops[2], at("/m"), 7);
    CALL(ZNONODE, zoo_multi(zk, 3, ops, results));
    CHECK(results[0].err == 0 && results[1].err == ZNONODE);
    CHECK(results[2].err == ZRUNTIMEINCONSISTENCY);
    CALL(ZOK, zoo_exists(zk, at("/m"), 0, &stat));
    CHECK(stat.version == 1);

    zoo_delete_op_init(&ops[0], at("/m"), 1);
    zoo_delete_op_init(&ops[1], path, 0);
    CALL(ZOK, zoo_multi(zk, 2, ops, results));
    CALL(ZNONODE, zoo_exists(zk, at("/m"), 0, NULL));
}

static volatile int auth_code = 1, synced = 1;

static void auth_done(int code, const void *data) {
    (void)data;
    auth_code = code;
}

static void sync_done(int code, const char *path, const void *data) {
    (void)path;
    (void)data;
    synced = code;
}

static void permissions(const char *address, zhandle_t *zk) {
    struct seen seen = {0, 0, 0};
    struct ACL_vector acl;
    struct Stat stat;
    zhandle_t *other = zookeeper_init(address, watcher, TIMEOUT_MS, NULL, &seen, 0);
    char data[16];
    int size = sizeof data;

    CHECK(other != NULL);
    wait_for_state(other, ZOO_CONNECTED_STATE);
    CALL(ZINVALIDACL, zoo_create(zk, at("/mine"), "", 0, &ZOO_CREATOR_ALL_ACL, 0, NULL, 0));
    CALL(ZOK, zoo_add_auth(zk, "digest", "user:pass", 9, auth_done, NULL));
    CALL(ZOK, zoo_create(zk, at("/mine"), "", 0, &ZOO_CREATOR_ALL_ACL, 0, NULL, 0));
    CHECK(auth_code == ZOK); /* Answers come in order. */
    CALL(ZOK, zoo_get_acl(zk, at("/mine"), &acl, &stat));
    CHECK(acl.count == 1 && acl.data[0].perms == ZOO_PERM_ALL);
    CHECK(strcmp(acl.data[0].id.scheme, "digest") == 0);
    CHECK(strcmp(acl.data[0].id.id, "user:smGaoVKd/cQkjm7b88GyorAUz20=") == 0);
    deallocate_ACL_vector(&acl);
    /* The other client may be on another server: it has to catch up first. */
    CALL(ZOK, zoo_async(other, root, sync_done, NULL));
    CALL(ZNOAUTH, zoo_get(other, at("/mine"), 0, data, &size, NULL));
    CHECK(synced == ZOK);
    CALL(ZNOAUTH, zoo_set(other, at("/mine"), "", 0, -1));
    CALL(ZOK, zoo_set_acl(zk, at("/mine"), 0, &ZOO_OPEN_ACL_UNSAFE));
    CALL(ZBADVERSION, zoo_set_acl(zk, at("/mine"), 0, &ZOO_OPEN_ACL_UNSAFE));
    CALL(ZOK, zoo_set(other, at("/mine"), "", 0, -1));
    CALL(ZOK, zoo_delete(zk, at("/mine"), -1));
    CALL(ZOK, zookeeper_close(other));
}

static void configuration(zhandle_t *zk) {
    char data[4096];
    int size = sizeof data - 1;

    CALL(ZOK, zoo_getconfig(zk, 0, data, &size, NULL));
    CHECK(size > 0);
    data[size] = 0;
    CHECK(strncmp(data, "server.", 7) == 0 && strstr(data, "\nversion=") != NULL);
    size = sizeof data;
    CALL(ZBADVERSION, zoo_reconfig(zk, NULL, "9", NULL, 7, data, &size, NULL));
    CALL(ZNOAUTH, zoo_reconfig(zk, NULL, "9", NULL, -1, data, &size, NULL));
}

/* A session goes on at another connection, with its ephemerals; not with a wrong password. */
static void sessions(const char *address) {
    struct seen seen = {0, 0, 0}, moved = {0, 0, 0}, denied = {0, 0, 0};
    struct Stat stat;
    clientid_t id, wrong;
    zhandle_t *first = zookeeper_init(address, watcher, TIMEOUT_MS, NULL, &seen, 0);

    CHECK(first != NULL);
    wait_for_state(first, ZOO_CONNECTED_STATE);
    CALL(ZOK, zoo_create(first, at("/live"), "", 0, &ZOO_OPEN_ACL_UNSAFE, ZOO_EPHEMERAL, NULL, 0));
    id = *zoo_client_id(first);
    wrong = id;
    wrong.passwd[0] ^= 1;

    zhandle_t *thief = zookeeper_init(address, watcher, TIMEOUT_MS, &wrong, &denied, 0);
    CHECK(thief != NULL);
    wait_for_state(thief, ZOO_EXPIRED_SESSION_STATE);
    zookeeper_close(thief);

    zhandle_t *second = zookeeper_init(address, watcher, TIMEOUT_MS, &id, &moved, 0);
    CHECK(second != NULL);
    wait_for_state(second, ZOO_CONNECTED_STATE);
    CHECK(zoo_client_id(second)->client_id == id.client_id);
    CALL(ZOK, zoo_exists(second, at("/live"), 0, &stat));
    CHECK(stat.ephemeralOwner == id.client_id);
    CALL(ZOK, zookeeper_close(second));
    /* The first one's session is closed: it learns so when it connects again. */
    wait_for_state(first, ZOO_EXPIRED_SESSION_STATE);
    zookeeper_close(first);
}

int main(int argc, char **argv) {
    struct seen seen = {0, 0, 0};

    if (argc != 2) {
        fprintf(stderr, "usage: %s HOST:PORT\n", argv[0]);
        return 2;
    }
    zoo_set_debug_level(0); /* Some of the sessions are meant to end. */
    snprintf(root, sizeof root, "/c_api-%d", (int)getpid());
    zhandle_t *zk = zookeeper_init(argv[1], watcher, TIMEOUT_MS, NULL, &seen, 0);
    CHECK(zk != NULL);
    wait_for_state(zk, ZOO_CONNECTED_STATE);
    nodes(zk);
    watches(zk);
    transactions(zk);
    permissions(argv[1], zk);
    configuration(zk);
    sessions(argv[1]);
    CALL(ZNONODE, zoo_exists(zk, at("/live"), 0, NULL));
    CALL(ZOK, zoo_delete(zk, at("/e"), -1));
    CALL(ZOK, zoo_delete(zk, at("/t"), -1));
    CALL(ZOK, zoo_delete(zk, at("/s-0000000000"), -1));
    CALL(ZOK, zoo_delete(zk, root, -1));
    CALL(ZOK, zookeeper_close(zk));
    return 0;
}
