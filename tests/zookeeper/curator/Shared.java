// Trials of what processes share: counters, caches of a tree, watches, queues. Acknowledged is
// what an operation answered; only that must be there in the end, and it must be there.

import static java.util.concurrent.TimeUnit.MILLISECONDS;
import static java.util.concurrent.TimeUnit.SECONDS;

import java.util.ArrayList;
import java.util.Collections;
import java.util.HashMap;
import java.util.HashSet;
import java.util.List;
import java.util.Map;
import java.util.Random;
import java.util.Set;
import java.util.TreeMap;
import java.util.concurrent.ConcurrentHashMap;
import java.util.concurrent.atomic.AtomicInteger;
import java.util.concurrent.atomic.AtomicLong;
import org.apache.curator.framework.CuratorFramework;
import org.apache.curator.framework.recipes.atomic.AtomicValue;
import org.apache.curator.framework.recipes.atomic.DistributedAtomicLong;
import org.apache.curator.framework.recipes.cache.ChildData;
import org.apache.curator.framework.recipes.cache.CuratorCache;
import org.apache.curator.framework.recipes.cache.PathChildrenCache;
import org.apache.curator.framework.recipes.cache.TreeCache;
import org.apache.curator.framework.recipes.queue.DistributedQueue;
import org.apache.curator.framework.recipes.queue.MultiItem;
import org.apache.curator.framework.recipes.queue.QueueBuilder;
import org.apache.curator.framework.recipes.queue.QueueConsumer;
import org.apache.curator.framework.recipes.queue.QueuePutListener;
import org.apache.curator.framework.recipes.queue.QueueSerializer;
import org.apache.curator.framework.recipes.queue.SimpleDistributedQueue;
import org.apache.curator.framework.recipes.shared.SharedCount;
import org.apache.curator.framework.recipes.shared.VersionedValue;
import org.apache.curator.framework.recipes.watch.PersistentWatcher;
import org.apache.curator.framework.state.ConnectionState;
import org.apache.curator.retry.RetryNTimes;
import org.apache.zookeeper.KeeperException;
import org.apache.zookeeper.WatchedEvent;
import org.apache.zookeeper.Watcher;

final class Shared {
    private Shared() {}

    /** Every acknowledged increment counts, and no two have the same result. */
    static void atomicLong(Trial trial) throws Exception {
        List<CuratorFramework> clients = trial.clients(3);
        List<DistributedAtomicLong> counters = new ArrayList<>();
        for (CuratorFramework client : clients) {
            counters.add(new DistributedAtomicLong(client, trial.root, new RetryNTimes(50, 10)));
        }
        trial.check(counters.get(0).initialize(0L), "the counter is new");
        Set<Long> results = ConcurrentHashMap.newKeySet();
        trial.contend(counters.size(), worker -> {
            AtomicValue<Long> value = counters.get(worker).increment();
            if (value.succeeded()) {
                trial.checkEqual(value.postValue(), value.preValue() + 1, "an increment");
                trial.check(results.add(value.postValue()), "each result is given once");
            }
        });
        clients.get(0).sync().forPath(trial.root);
        trial.checkBetween(counters.get(0).get().postValue(), results.size(),
                results.size() + trial.unanswered(counters.size()), "the counter");
        trial.check(results.size() >= 2 * counters.size(), "most increments succeed");
    }

    /** Every acknowledged change counts, and every copy of the count gets there. */
    static void sharedCount(Trial trial) throws Exception {
        List<CuratorFramework> clients = trial.clients(3);
        List<SharedCount> counts = new ArrayList<>();
        for (CuratorFramework client : clients) {
            SharedCount count = new SharedCount(client, trial.root, 0);
            count.start();
            counts.add(count);
        }
        AtomicInteger changes = new AtomicInteger();
        trial.contend(counts.size(), worker -> {
            SharedCount count = counts.get(worker);
            VersionedValue<Integer> value = count.getVersionedValue();
            if (count.trySetCount(value, value.getValue() + 1)) {
                changes.incrementAndGet();
            }
        });
        SharedCount truth = new SharedCount(trial.client(), trial.root, 0);
        truth.start();
        trial.checkBetween(truth.getCount(), changes.get(),
                changes.get() + trial.unanswered(counts.size()), "the count");
        for (SharedCount count : counts) {
            trial.eventually("a copy of the count is " + truth.getCount(),
                    () -> count.getCount() == truth.getCount());
        }
        truth.setCount(-5);
        for (SharedCount count : counts) {
            trial.eventually("a copy of the count is -5", () -> count.getCount() == -5);
            count.close();
        }
        truth.close();
    }

    /** What a cache holds: the text of each node, by path. */
    private interface View {
        Map<String, String> now();
    }

    static void curatorCache(Trial trial) throws Exception {
        CuratorFramework client = trial.client();
        Map<String, String> heard = new ConcurrentHashMap<>();
        try (CuratorCache cache = CuratorCache.build(client, trial.root)) {
            cache.listenable().addListener((type, before, after) -> {
                if (after == null) {
                    heard.remove(before.getPath());
                } else {
                    heard.put(after.getPath(), Data.text(after.getData()));
                }
            });
            cache.start();
            converges(trial, () -> {
                Map<String, String> held = new HashMap<>();
                cache.stream().forEach(node -> held.put(node.getPath(), Data.text(node.getData())));
                held.remove(trial.root);
                return held;
            });
            heard.remove(trial.root);
            Map<String, String> truth = tree(trial.client(), trial.root);
            trial.eventually("a listener heard how the tree came to be", () -> heard.equals(truth));
        }
    }

    @SuppressWarnings("deprecation") // By CuratorCache; programs that used it still do.
    static void treeCache(Trial trial) throws Exception {
        try (TreeCache cache = new TreeCache(trial.client(), trial.root)) {
            cache.start();
            converges(trial, () -> {
                Map<String, String> held = new HashMap<>();
                Map<String, ChildData> children = cache.getCurrentChildren(trial.root);
                for (ChildData node : children == null ? List.<ChildData>of() : children.values()) {
                    held.put(node.getPath(), Data.text(node.getData()));
                }
                return held;
            });
        }
    }

    @SuppressWarnings("deprecation") // As TreeCache.
    static void pathChildrenCache(Trial trial) throws Exception {
        try (PathChildrenCache cache = new PathChildrenCache(trial.client(), trial.root, true)) {
            cache.start(PathChildrenCache.StartMode.BUILD_INITIAL_CACHE);
            converges(trial, () -> {
                Map<String, String> held = new HashMap<>();
                for (ChildData node : cache.getCurrentData()) {
                    held.put(node.getPath(), Data.text(node.getData()));
                }
                return held;
            });
        }
    }

    /** Two writers change nodes at random; in the end the cache holds what the servers hold. */
    private static void converges(Trial trial, View view) throws Exception {
        List<CuratorFramework> writers = trial.clients(2);
        try {
            writers.get(0).create().creatingParentsIfNeeded().forPath(trial.root);
        } catch (KeeperException.NodeExistsException cacheMadeIt) {
            // TreeCache and PathChildrenCache create their root.
        }
        AtomicInteger serial = new AtomicInteger();
        trial.contend(writers.size(), worker -> {
            CuratorFramework client = writers.get(worker);
            int change = serial.incrementAndGet();
            Random random = new Random(change);
            String path = trial.root + "/node-" + random.nextInt(20);
            try {
                switch (random.nextInt(4)) {
                    case 0:
                        client.delete().forPath(path);
                        break;
                    case 1:
                        client.setData().forPath(path, Data.bytes(change));
                        break;
                    default:
                        client.create().orSetData().forPath(path, Data.bytes(change));
                }
            } catch (KeeperException.NoNodeException nothingToChange) {
                // As good a round as any.
            }
        });
        Map<String, String> truth = tree(writers.get(0), trial.root);
        trial.check(!truth.isEmpty(), "the writers left something");
        trial.eventually("a cache holds " + new TreeMap<>(truth), () -> view.now().equals(truth));
        // And it goes on following.
        writers.get(1).setData().forPath(truth.keySet().iterator().next(), Data.bytes("last"));
        Map<String, String> later = tree(writers.get(1), trial.root);
        trial.eventually("a cache follows one more change", () -> view.now().equals(later));
    }

    private static Map<String, String> tree(CuratorFramework client, String root) throws Exception {
        client.sync().forPath(root);
        Map<String, String> nodes = new HashMap<>();
        for (String name : client.getChildren().forPath(root)) {
            String path = root + "/" + name;
            nodes.put(path, Data.text(client.getData().forPath(path)));
        }
        return nodes;
    }

    /**
     * A persistent watch tells every change once, in order, and is there again after a reconnect.
     * No event reports what changed while the watcher was away, so nothing changes then.
     */
    static void persistentWatcher(Trial trial) throws Exception {
        // One client each: before ZooKeeper 3.9 a client has one kind of watch on a path.
        List<CuratorFramework> watching = trial.clients(2);
        CuratorFramework writer = trial.client();
        writer.create().forPath(trial.root, Data.bytes(0));
        // A server that lags behind would tell of this create too.
        trial.syncAll();
        List<String> recursive = Collections.synchronizedList(new ArrayList<>());
        List<String> plain = Collections.synchronizedList(new ArrayList<>());
        AtomicInteger resets = new AtomicInteger();
        AtomicInteger reconnects = new AtomicInteger();
        for (CuratorFramework client : watching) {
            client.getConnectionStateListenable().addListener((same, state) -> {
                if (state == ConnectionState.RECONNECTED) {
                    reconnects.incrementAndGet();
                }
            });
        }
        try (PersistentWatcher below = new PersistentWatcher(watching.get(0), trial.root, true);
                PersistentWatcher on = new PersistentWatcher(watching.get(1), trial.root, false)) {
            below.getListenable().addListener(event -> note(recursive, event));
            on.getListenable().addListener(event -> note(plain, event));
            below.getResetListenable().addListener(resets::incrementAndGet);
            on.getResetListenable().addListener(resets::incrementAndGet);
            below.start();
            on.start();
            trial.eventually("both watches are set", () -> resets.get() == 2);
            List<String> expectRecursive = new ArrayList<>();
            List<String> expectPlain = new ArrayList<>();
            change(trial, writer, 0, expectRecursive, expectPlain);
            trial.eventually("events are complete", () -> recursive.size() == expectRecursive.size()
                    && plain.size() == expectPlain.size());
            trial.strikeAndSettle();
            trial.eventually("both watches are set again",
                    () -> resets.get() >= 2 + reconnects.get());
            change(trial, writer, 1, expectRecursive, expectPlain);
            trial.eventually("events are complete again",
                    () -> recursive.size() >= expectRecursive.size()
                            && plain.size() >= expectPlain.size());
            // An answer comes after every event before it: nothing is under way any more.
            trial.syncAll();
            trial.checkEqual(recursive, expectRecursive, "what the recursive watch told");
            trial.checkEqual(plain, expectPlain, "what the plain watch told");
        }
    }

    private static void note(List<String> events, WatchedEvent event) {
        if (event.getType() != Watcher.Event.EventType.None) {
            events.add(event.getType() + " " + event.getPath());
        }
    }

    private static void change(Trial trial, CuratorFramework writer, int turn,
            List<String> expectRecursive, List<String> expectPlain) throws Exception {
        for (int index = 0; index < 10; index++) {
            String path = trial.root + "/" + turn + "-" + index;
            writer.create().forPath(path);
            writer.create().forPath(path + "/deep");
            writer.setData().forPath(path, Data.bytes(index));
            writer.delete().forPath(path + "/deep");
            writer.delete().forPath(path);
            writer.setData().forPath(trial.root, Data.bytes(index));
            expectRecursive.addAll(List.of("NodeCreated " + path, "NodeCreated " + path + "/deep",
                    "NodeDataChanged " + path, "NodeDeleted " + path + "/deep",
                    "NodeDeleted " + path, "NodeDataChanged " + trial.root));
            String children = "NodeChildrenChanged " + trial.root;
            expectPlain.addAll(List.of(children, children, "NodeDataChanged " + trial.root));
        }
    }

    /**
     * What `offer` acknowledged is taken by one consumer. The recipe neither protects its creates
     * nor its deletes: an answer lost with the server makes one item double or takes one away.
     */
    static void simpleQueue(Trial trial) throws Exception {
        int producers = 2;
        int consumers = 2;
        List<CuratorFramework> clients = trial.clients(producers + consumers);
        List<SimpleDistributedQueue> queues = new ArrayList<>();
        for (CuratorFramework client : clients) {
            queues.add(new SimpleDistributedQueue(client, trial.root));
        }
        Set<String> offered = ConcurrentHashMap.newKeySet();
        List<String> taken = Collections.synchronizedList(new ArrayList<>());
        AtomicLong serial = new AtomicLong();
        trial.contend(clients.size(), worker -> {
            SimpleDistributedQueue queue = queues.get(worker);
            if (worker < producers) {
                String item = "item-" + serial.incrementAndGet();
                queue.offer(Data.bytes(item));
                offered.add(item);
                return;
            }
            byte[] item = queue.poll(200, MILLISECONDS);
            if (item != null) {
                taken.add(Data.text(item));
            }
        });
        clients.get(0).sync().forPath(trial.root);
        SimpleDistributedQueue queue = queues.get(0);
        for (byte[] item = queue.poll(); item != null; item = queue.poll()) {
            taken.add(Data.text(item));
        }
        Set<String> different = new HashSet<>(taken);
        Set<String> missing = new HashSet<>(offered);
        missing.removeAll(different);
        trial.checkBetween(missing.size(), 0, trial.unanswered(consumers), "items lost");
        trial.checkBetween(taken.size() - different.size(), 0, trial.unanswered(producers),
                "items taken twice");
        trial.check(offered.containsAll(different), "nothing is taken that no client offered");
    }

    /**
     * With a lock path every acknowledged item is consumed at least once. Consumers that end in
     * the middle of an item leave it to the next one.
     */
    static void distributedQueue(Trial trial) throws Exception {
        Set<String> consumed = ConcurrentHashMap.newKeySet();
        Set<String> acknowledged = ConcurrentHashMap.newKeySet();
        List<CuratorFramework> clients = trial.clients(3);
        DistributedQueue<String> producer = queue(trial, clients.get(0), null);
        producer.getPutListenerContainer().addListener(new QueuePutListener<String>() {
            @Override
            public void putCompleted(String item) {
                acknowledged.add(item);
            }

            @Override
            public void putMultiCompleted(MultiItem<String> items) {}
        });
        DistributedQueue<String> one = queue(trial, clients.get(1), consumed);
        DistributedQueue<String> two = queue(trial, clients.get(2), consumed);
        AtomicLong serial = new AtomicLong();
        trial.contend(1, worker -> producer.put("item-" + serial.incrementAndGet()));
        trial.check(producer.flushPuts(45, SECONDS), "every put is answered");
        producer.close();
        one.close();
        two.close();
        clients.get(1).close();
        clients.get(2).close();
        trial.checkEqual((long) acknowledged.size(), serial.get(),
                "the count of acknowledged items");
        trial.check(!consumed.isEmpty(), "the first consumers consumed");
        DistributedQueue<String> last = queue(trial, trial.client(), consumed);
        trial.eventually("every acknowledged item is consumed",
                () -> consumed.containsAll(acknowledged));
        last.close();
        trial.check(acknowledged.containsAll(consumed), "nothing is consumed that no client put");
    }

    private static DistributedQueue<String> queue(Trial trial, CuratorFramework client,
            Set<String> consumed) throws Exception {
        QueueConsumer<String> consumer = consumed == null ? null : new QueueConsumer<>() {
            @Override
            public void consumeMessage(String item) {
                consumed.add(item);
            }

            @Override
            public void stateChanged(CuratorFramework of, ConnectionState state) {}
        };
        QueueSerializer<String> serializer = new QueueSerializer<>() {
            @Override
            public byte[] serialize(String item) {
                return Data.bytes(item);
            }

            @Override
            public String deserialize(byte[] bytes) {
                return Data.text(bytes);
            }
        };
        DistributedQueue<String> queue = QueueBuilder
                .builder(client, consumer, serializer, trial.root + "/items")
                .lockPath(trial.root + "/locks").buildQueue();
        queue.start();
        return queue;
    }
}
