// Trials of what tells that a process is there: nodes that stay while their owner lives, groups,
// services. While servers die the owner's session lives, so such a node must not so much as
// flicker; when the session ends, the recipe brings the node back under the next one.

import static java.util.concurrent.TimeUnit.SECONDS;

import java.util.ArrayList;
import java.util.HashSet;
import java.util.List;
import java.util.Map;
import java.util.Set;
import java.util.TreeMap;
import java.util.concurrent.Executors;
import java.util.concurrent.ScheduledExecutorService;
import java.util.concurrent.atomic.AtomicBoolean;
import java.util.concurrent.atomic.AtomicInteger;
import org.apache.curator.framework.CuratorFramework;
import org.apache.curator.framework.recipes.nodes.GroupMember;
import org.apache.curator.framework.recipes.nodes.PersistentNode;
import org.apache.curator.framework.recipes.nodes.PersistentTtlNode;
import org.apache.curator.x.discovery.ServiceCache;
import org.apache.curator.x.discovery.ServiceDiscovery;
import org.apache.curator.x.discovery.ServiceDiscoveryBuilder;
import org.apache.curator.x.discovery.ServiceInstance;
import org.apache.curator.x.discovery.ServiceProvider;
import org.apache.zookeeper.CreateMode;
import org.apache.zookeeper.data.Stat;

final class Members {
    private static final long TTL_MS = 6_000;
    /** Touched this many times within its time to live. */
    private static final int TOUCHES = 6;
    private static final String SERVICE = "cache";

    private Members() {}

    static void persistentNode(Trial trial) throws Exception {
        CuratorFramework owner = trial.client();
        CuratorFramework observer = trial.client();
        String path = trial.root + "/node";
        PersistentNode node = new PersistentNode(owner, CreateMode.EPHEMERAL, false, path,
                Data.bytes("first"));
        node.start();
        trial.check(node.waitForInitialCreate(45, SECONDS), "the node is created");
        stays(trial, observer, List.of(path));
        node.setData(Data.bytes("second"));
        trial.eventually("the data follows",
                () -> Data.text(observer.getData().forPath(path)).equals("second"));
        observer.delete().forPath(path);
        trial.eventually("a deleted node is back",
                () -> observer.checkExists().forPath(path) != null);
        long session = owner.getZookeeperClient().getZooKeeper().getSessionId();
        trial.expire(owner);
        trial.eventually("the node is back under a new session", () -> {
            Stat stat = observer.checkExists().forPath(path);
            return stat != null && stat.getEphemeralOwner() != session;
        });
        node.close();
        trial.eventually("a closed node is gone",
                () -> observer.checkExists().forPath(path) == null);
    }

    /** Strikes; until all servers run again, none of the nodes goes or is made again. */
    private static void stays(Trial trial, CuratorFramework observer, List<String> paths)
            throws Exception {
        observer.sync().forPath("/");
        Map<String, Long> created = new TreeMap<>();
        for (String path : paths) {
            created.put(path, observer.checkExists().forPath(path).getCzxid());
        }
        AtomicBoolean isOver = new AtomicBoolean();
        AtomicInteger looks = new AtomicInteger();
        List<String> flickers = new ArrayList<>();
        Thread looking = new Thread(() -> {
            while (!isOver.get() && flickers.isEmpty()) {
                try {
                    for (String path : paths) {
                        Stat stat = observer.checkExists().forPath(path);
                        if (stat == null || stat.getCzxid() != created.get(path)) {
                            flickers.add(path + (stat == null ? " is gone" : " was made again"));
                        }
                    }
                    looks.incrementAndGet();
                    Thread.sleep(10);
                } catch (Exception error) {
                    flickers.add("looking failed: " + error);
                }
            }
        }, "looking");
        looking.start();
        trial.strikeAndSettle();
        int before = looks.get();
        trial.eventually("a client looks once more",
                () -> looks.get() > before + 1 || !looking.isAlive());
        isOver.set(true);
        looking.join();
        trial.checkEqual(flickers, List.of(), "the list of nodes that flickered");
    }

    /** Stays longer than its time to live while it is touched, and goes when no client does. */
    static void persistentTtlNode(Trial trial) throws Exception {
        CuratorFramework owner = trial.client();
        CuratorFramework observer = trial.client();
        String path = trial.root + "/node";
        ScheduledExecutorService executor = Executors.newSingleThreadScheduledExecutor();
        try (PersistentTtlNode node = new PersistentTtlNode(owner, executor, path, TTL_MS,
                Data.bytes("here"), PersistentTtlNode.DEFAULT_CHILD_NODE_NAME, TOUCHES)) {
            node.start();
            trial.check(node.waitForInitialCreate(45, SECONDS), "the node is created");
            observer.sync().forPath(path);
            long created = observer.checkExists().forPath(path).getCzxid();
            stays(trial, observer, List.of(path));
            // Longer than the last touch before this would carry it, and the servers' look for it.
            Thread.sleep(TTL_MS + 2_500);
            Stat stat = observer.checkExists().forPath(path);
            trial.check(stat != null && stat.getCzxid() == created, "a touched node stays");
        } finally {
            executor.shutdownNow();
        }
        trial.eventually("an untouched node goes",
                () -> observer.checkExists().forPath(path) == null);
    }

    static void groupMember(Trial trial) throws Exception {
        List<CuratorFramework> clients = trial.clients(3);
        CuratorFramework observer = trial.client();
        List<GroupMember> members = new ArrayList<>();
        List<String> paths = new ArrayList<>();
        for (int index = 0; index < clients.size(); index++) {
            members.add(join(trial, clients.get(index), index));
            paths.add(trial.root + "/member-" + index);
        }
        Set<String> all = Set.of("member-0", "member-1", "member-2");
        everybodySees(trial, members, all);
        stays(trial, observer, paths);
        everybodySees(trial, members, all);
        trial.expire(clients.get(1));
        members.get(2).setThisData(Data.bytes("changed"));
        everybodySees(trial, members, all);
        trial.eventually("a member's data is seen", () -> {
            byte[] data = members.get(0).getCurrentMembers().get("member-2");
            return data != null && Data.text(data).equals("changed");
        });
        members.get(2).close();
        everybodySees(trial, members.subList(0, 2), Set.of("member-0", "member-1"));
        members.set(2, join(trial, clients.get(2), 2));
        everybodySees(trial, members, all);
        clients.get(0).close();
        everybodySees(trial, members.subList(1, 3), Set.of("member-1", "member-2"));
        members.get(1).close();
        members.get(2).close();
    }

    private static GroupMember join(Trial trial, CuratorFramework client, int index) {
        GroupMember member = new GroupMember(client, trial.root, "member-" + index,
                Data.bytes(index));
        member.start();
        return member;
    }

    private static void everybodySees(Trial trial, List<GroupMember> members, Set<String> names)
            throws Exception {
        for (GroupMember member : members) {
            trial.eventually("a member sees " + names,
                    () -> member.getCurrentMembers().keySet().equals(names));
        }
    }

    /** Services stay registered, and a client that looks for them finds all that live. */
    static void serviceDiscovery(Trial trial) throws Exception {
        List<CuratorFramework> clients = trial.clients(3);
        List<ServiceDiscovery<String>> discoveries = new ArrayList<>();
        Set<String> ids = new HashSet<>();
        for (int index = 0; index < clients.size(); index++) {
            ServiceDiscovery<String> discovery = discovery(trial, clients.get(index),
                    instance(index, "new"));
            discovery.start();
            discoveries.add(discovery);
            ids.add("instance-" + index);
        }
        try (ServiceDiscovery<String> seeking = discovery(trial, trial.client(), null);
                ServiceCache<String> cache = seeking.serviceCacheBuilder().name(SERVICE).build();
                ServiceProvider<String> provider =
                        seeking.serviceProviderBuilder().serviceName(SERVICE).build()) {
            seeking.start();
            cache.start();
            provider.start();
            found(trial, seeking, cache, ids);
            trial.strikeAndSettle();
            found(trial, seeking, cache, ids);
            ServiceInstance<String> chosen = provider.getInstance();
            trial.check(chosen != null && ids.contains(chosen.getId()), "a service is chosen");
            discoveries.get(1).updateService(instance(1, "changed"));
            trial.eventually("a changed instance is found", () -> {
                ServiceInstance<String> instance = seeking.queryForInstance(SERVICE, "instance-1");
                return instance != null && instance.getPayload().equals("changed");
            });
            trial.expire(clients.get(2));
            found(trial, seeking, cache, ids);
            discoveries.get(0).unregisterService(instance(0, "new"));
            ids.remove("instance-0");
            found(trial, seeking, cache, ids);
            trial.checkEqual(List.copyOf(seeking.queryForNames()), List.of(SERVICE),
                    "the list of services");
        }
        for (ServiceDiscovery<String> discovery : discoveries) {
            discovery.close();
        }
    }

    private static ServiceInstance<String> instance(int index, String payload) throws Exception {
        return ServiceInstance.<String>builder().name(SERVICE).id("instance-" + index)
                .address("127.0.0.1").port(7000 + index).payload(payload).build();
    }

    private static ServiceDiscovery<String> discovery(Trial trial, CuratorFramework client,
            ServiceInstance<String> own) {
        return ServiceDiscoveryBuilder.builder(String.class).client(client).basePath(trial.root)
                .thisInstance(own).build();
    }

    private static void found(Trial trial, ServiceDiscovery<String> seeking,
            ServiceCache<String> cache, Set<String> ids) throws Exception {
        trial.eventually("a query finds " + ids,
                () -> idsOf(List.copyOf(seeking.queryForInstances(SERVICE))).equals(ids));
        trial.eventually("a cache holds " + ids, () -> idsOf(cache.getInstances()).equals(ids));
    }

    private static Set<String> idsOf(List<ServiceInstance<String>> instances) {
        Set<String> ids = new HashSet<>();
        for (ServiceInstance<String> instance : instances) {
            ids.add(instance.getId());
        }
        return ids;
    }
}
