// Trials of Curator's own operations: create, read, write, delete and transactions. An operation
// whose answer a dying server took along is retried by Curator and may then find its own work
// done; every trial here distinguishes that case from another client's work.

import static java.nio.charset.StandardCharsets.UTF_8;

import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.Map;
import java.util.Set;
import java.util.concurrent.ConcurrentHashMap;
import java.util.concurrent.atomic.AtomicLong;
import org.apache.curator.framework.CuratorFramework;
import org.apache.curator.framework.api.transaction.CuratorOp;
import org.apache.curator.framework.api.transaction.CuratorTransactionResult;
import org.apache.curator.retry.RetryOneTime;
import org.apache.zookeeper.CreateMode;
import org.apache.zookeeper.KeeperException;
import org.apache.zookeeper.OpResult;
import org.apache.zookeeper.data.Stat;

final class Data {
    private static final int ACCOUNT_START = 1_000_000;

    private Data() {}

    static byte[] bytes(Object value) {
        return value.toString().getBytes(UTF_8);
    }

    static String text(byte[] data) {
        return new String(data, UTF_8);
    }

    static long number(byte[] data) {
        return Long.parseLong(text(data));
    }

    /** What was created with all its parents is there, once, with its data. */
    static void creatingParents(Trial trial) throws Exception {
        List<CuratorFramework> clients = trial.clients(3);
        Set<String> created = ConcurrentHashMap.newKeySet();
        AtomicLong names = new AtomicLong();
        trial.contend(2, worker -> {
            long name = names.incrementAndGet();
            String path = trial.root + "/by-" + worker + "/" + name + "/a/b";
            try {
                String made = clients.get(worker).create().creatingParentsIfNeeded()
                        .forPath(path, bytes(name));
                trial.checkEqual(made, path, "the path of a created node");
            } catch (KeeperException.NodeExistsException error) {
                trial.check(trial.kills(), "no other client creates " + path);
            }
            created.add(path);
        });
        CuratorFramework reader = clients.get(2);
        reader.sync().forPath(trial.root);
        for (String path : created) {
            Stat stat = new Stat();
            String[] parts = path.split("/");
            trial.checkEqual(text(reader.getData().storingStatIn(stat).forPath(path)), parts[3],
                    "the data of " + path);
            trial.checkEqual(stat.getVersion(), 0, "the version of " + path);
            String parent = path.substring(0, path.lastIndexOf('/'));
            Stat parentStat = reader.checkExists().forPath(parent);
            trial.checkEqual(parentStat.getNumChildren(), 1, "the children of " + parent);
            trial.checkEqual(parentStat.getPzxid(), stat.getCzxid(), "the pzxid of " + parent);
        }
    }

    /** A protected create happens exactly once, whatever happens to its answer. */
    static void protectedSequential(Trial trial) throws Exception {
        List<CuratorFramework> clients = trial.clients(3);
        clients.get(0).create().forPath(trial.root);
        Set<String> created = ConcurrentHashMap.newKeySet();
        trial.contend(3, worker -> {
            String path = clients.get(worker).create().withProtection()
                    .withMode(CreateMode.EPHEMERAL_SEQUENTIAL).forPath(trial.root + "/n-");
            trial.check(created.add(path), "no path is given twice: " + path);
        });
        clients.get(0).sync().forPath(trial.root);
        Set<String> present = ConcurrentHashMap.newKeySet();
        for (String name : clients.get(0).getChildren().forPath(trial.root)) {
            present.add(trial.root + "/" + name);
        }
        trial.checkEqual(present, created, "the set of children");
        long suffixes = created.stream().map(path -> path.substring(path.length() - 10))
                .distinct().count();
        trial.checkEqual(suffixes, (long) created.size(), "the count of different suffixes");
    }

    /** A reader never goes back in time, and after `sync` it sees what was acknowledged. */
    static void get(Trial trial) throws Exception {
        List<CuratorFramework> clients = trial.clients(3);
        String path = trial.root;
        clients.get(0).create().forPath(path, bytes(0));
        AtomicLong written = new AtomicLong();
        long[] seen = new long[3];
        trial.contend(3, worker -> {
            CuratorFramework client = clients.get(worker);
            if (worker == 0) {
                long next = written.get() + 1;
                client.setData().forPath(path, bytes(next));
                written.set(next);
                return;
            }
            long floor = written.get();
            if (worker == 1) {
                client.sync().forPath(path);
            } else {
                floor = 0;
            }
            long value = number(client.getData().forPath(path));
            trial.check(value >= floor, "after sync " + value + " is at least " + floor);
            trial.check(value >= seen[worker], value + " is not older than " + seen[worker]);
            seen[worker] = value;
        });
    }

    /** Of conditional writes to one version exactly one succeeds, and none is lost. */
    static void set(Trial trial) throws Exception {
        List<CuratorFramework> clients = trial.clients(3);
        String path = trial.root;
        clients.get(0).create().forPath(path, bytes("start"));
        Map<Integer, String> written = new ConcurrentHashMap<>();
        AtomicLong names = new AtomicLong();
        trial.contend(3, worker -> {
            CuratorFramework client = clients.get(worker);
            Stat stat = new Stat();
            client.getData().storingStatIn(stat).forPath(path);
            String value = worker + "-" + names.incrementAndGet();
            try {
                Stat after = client.setData().withVersion(stat.getVersion())
                        .forPath(path, bytes(value));
                trial.checkEqual(after.getVersion(), stat.getVersion() + 1, "the next version");
                String other = written.put(after.getVersion(), value);
                trial.check(other == null, "version " + after.getVersion() + " is written once");
            } catch (KeeperException.BadVersionException lost) {
                Thread.sleep(5);
            }
        });
        clients.get(0).sync().forPath(path);
        Stat stat = new Stat();
        String value = text(clients.get(0).getData().storingStatIn(stat).forPath(path));
        trial.checkBetween(stat.getVersion(), written.size(),
                written.size() + trial.unanswered(3), "the last version");
        trial.checkEqual(written.getOrDefault(stat.getVersion(), value), value, "the last value");
    }

    /** What `guaranteed` deletes goes in the end, though the call itself may fail. */
    static void guaranteedDelete(Trial trial) throws Exception {
        CuratorFramework patient = trial.client();
        CuratorFramework impatient = trial.client(new RetryOneTime(1));
        patient.create().forPath(trial.root);
        AtomicLong names = new AtomicLong();
        trial.contend(1, worker -> {
            String path = trial.root + "/" + names.incrementAndGet();
            patient.create().forPath(path);
            try {
                impatient.delete().guaranteed().forPath(path);
            } catch (KeeperException.ConnectionLossException
                    | KeeperException.NoNodeException error) {
                // With `guaranteed` the first is a promise; the second a retry that found it kept.
                trial.check(trial.kills(), "a delete answers: " + error);
            }
        });
        trial.eventually("all nodes are deleted",
                () -> patient.getChildren().forPath(trial.root).isEmpty());
    }

    /** A tree is deleted whole, and beside it nothing. */
    static void deletingChildren(Trial trial) throws Exception {
        List<CuratorFramework> clients = trial.clients(2);
        CuratorFramework builder = clients.get(0);
        builder.create().creatingParentsIfNeeded().forPath(trial.root + "/kept/child");
        AtomicLong names = new AtomicLong();
        trial.contend(2, worker -> {
            CuratorFramework client = clients.get(worker);
            String top = trial.root + "/tree-" + names.incrementAndGet();
            for (String leaf : List.of("/a/1", "/a/2", "/b/1")) {
                try {
                    client.create().creatingParentsIfNeeded().forPath(top + leaf);
                } catch (KeeperException.NodeExistsException retried) {
                    trial.check(trial.kills(), "no other client creates " + top + leaf);
                }
            }
            try {
                client.delete().deletingChildrenIfNeeded().forPath(top);
            } catch (KeeperException.NoNodeException retried) {
                trial.check(trial.kills(), "no other client deletes " + top);
            }
            client.sync().forPath(top);
            trial.check(client.checkExists().forPath(top) == null, top + " is deleted");
        });
        builder.sync().forPath(trial.root);
        trial.checkEqual(builder.getChildren().forPath(trial.root), List.of("kept"),
                "what is left");
        trial.check(builder.checkExists().forPath(trial.root + "/kept/child") != null,
                "what no client deleted is there");
    }

    /** A transaction moves one unit between two accounts and leaves a marker: all three or none. */
    static void transaction(Trial trial) throws Exception {
        List<CuratorFramework> clients = trial.clients(2);
        String from = trial.root + "/from";
        String to = trial.root + "/to";
        String markers = trial.root + "/markers";
        clients.get(0).create().creatingParentsIfNeeded().forPath(markers);
        clients.get(0).create().forPath(from, bytes(ACCOUNT_START));
        clients.get(0).create().forPath(to, bytes(0));
        Set<String> committed = ConcurrentHashMap.newKeySet();
        AtomicLong names = new AtomicLong();
        trial.contend(2, worker -> {
            CuratorFramework client = clients.get(worker);
            Stat fromStat = new Stat();
            Stat toStat = new Stat();
            long fromValue = number(client.getData().storingStatIn(fromStat).forPath(from));
            long toValue = number(client.getData().storingStatIn(toStat).forPath(to));
            String marker = markers + "/" + names.incrementAndGet();
            List<CuratorOp> operations = List.of(
                    client.transactionOp().check().forPath(trial.root),
                    client.transactionOp().setData().withVersion(fromStat.getVersion())
                            .forPath(from, bytes(fromValue - 1)),
                    client.transactionOp().setData().withVersion(toStat.getVersion())
                            .forPath(to, bytes(toValue + 1)),
                    client.transactionOp().create().forPath(marker, bytes(worker)));
            try {
                List<CuratorTransactionResult> results =
                        client.transaction().forOperations(operations);
                trial.checkEqual(results.size(), 4, "the count of results");
                trial.checkEqual(results.get(1).getResultStat().getVersion(),
                        fromStat.getVersion() + 1, "the version after a transaction");
                trial.checkEqual(results.get(3).getResultPath(), marker, "the created path");
                committed.add(marker);
            } catch (KeeperException.BadVersionException lost) {
                Thread.sleep(5);
            }
        });
        CuratorFramework reader = clients.get(0);
        reader.sync().forPath(trial.root);
        List<String> present = reader.getChildren().forPath(markers);
        for (String marker : committed) {
            trial.check(present.contains(marker.substring(markers.length() + 1)),
                    marker + " was acknowledged and is there");
        }
        trial.checkBetween(present.size(), committed.size(),
                committed.size() + trial.unanswered(2), "the count of markers");
        trial.checkEqual(number(reader.getData().forPath(from)),
                (long) ACCOUNT_START - present.size(), "one account");
        trial.checkEqual(number(reader.getData().forPath(to)), (long) present.size(),
                "the other account");
    }

    /** Of a transaction that fails nothing happens, and each operation tells its part in it. */
    static void failedTransaction(Trial trial) throws Exception {
        List<CuratorFramework> clients = trial.clients(2);
        String path = trial.root + "/untouched";
        clients.get(0).create().creatingParentsIfNeeded().forPath(path, bytes("as it was"));
        AtomicLong names = new AtomicLong();
        trial.contend(2, worker -> {
            CuratorFramework client = clients.get(worker);
            String made = trial.root + "/made-" + names.incrementAndGet();
            List<CuratorOp> operations = List.of(
                    client.transactionOp().create().forPath(made),
                    client.transactionOp().setData().forPath(path, bytes("changed")),
                    client.transactionOp().check().withVersion(77).forPath(path),
                    client.transactionOp().delete().forPath(made));
            try {
                client.transaction().forOperations(operations);
                trial.check(false, "a transaction with a wrong version fails");
            } catch (KeeperException.BadVersionException error) {
                trial.checkEqual(errors(error),
                        Arrays.asList(0, 0, KeeperException.Code.BADVERSION.intValue(),
                                KeeperException.Code.RUNTIMEINCONSISTENCY.intValue()),
                        "the list of errors");
            }
        });
        clients.get(0).sync().forPath(path);
        Stat stat = new Stat();
        trial.checkEqual(text(clients.get(0).getData().storingStatIn(stat).forPath(path)),
                "as it was", "the data");
        trial.checkEqual(stat.getVersion(), 0, "the version");
        trial.checkEqual(clients.get(0).getChildren().forPath(trial.root), List.of("untouched"),
                "the list of children");
    }

    private static List<Integer> errors(KeeperException error) {
        List<Integer> codes = new ArrayList<>();
        for (OpResult result : error.getResults()) {
            codes.add(((OpResult.ErrorResult) result).getErr());
        }
        return codes;
    }
}
