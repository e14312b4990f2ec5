// Trials of what keeps processes apart or together: elections, locks, leases, barriers. Every
// contender has a client of its own; the guards below are in this process, where an overlap can
// be counted.

import static java.util.concurrent.TimeUnit.MILLISECONDS;
import static java.util.concurrent.TimeUnit.SECONDS;

import java.util.ArrayList;
import java.util.HashSet;
import java.util.List;
import java.util.Set;
import java.util.concurrent.atomic.AtomicBoolean;
import java.util.concurrent.atomic.AtomicInteger;
import java.util.concurrent.atomic.AtomicIntegerArray;
import java.util.concurrent.atomic.AtomicLong;
import java.util.concurrent.locks.LockSupport;
import org.apache.curator.framework.CuratorFramework;
import org.apache.curator.framework.recipes.barriers.DistributedDoubleBarrier;
import org.apache.curator.framework.recipes.leader.LeaderLatch;
import org.apache.curator.framework.recipes.leader.LeaderSelector;
import org.apache.curator.framework.recipes.leader.LeaderSelectorListenerAdapter;
import org.apache.curator.framework.recipes.locks.InterProcessMutex;
import org.apache.curator.framework.recipes.locks.InterProcessReadWriteLock;
import org.apache.curator.framework.recipes.locks.InterProcessSemaphoreV2;
import org.apache.curator.framework.recipes.locks.Lease;

final class Locks {
    private static final long PATIENCE_S = 45;

    private Locks() {}

    /** At most `most` are inside at a time. */
    private static final class Guard {
        private final Trial trial;
        private final int most;
        private final AtomicInteger inside = new AtomicInteger();

        Guard(Trial trial, int most) {
            this.trial = trial;
            this.most = most;
        }

        void pass(long stayMs) throws InterruptedException {
            int count = inside.incrementAndGet();
            try {
                trial.check(count <= most, count + " inside where " + most + " may be");
                Thread.sleep(stayMs);
                int later = inside.get();
                trial.check(later <= most, later + " inside where " + most + " may be");
            } finally {
                inside.decrementAndGet();
            }
        }
    }

    /** Never two leaders, always one in the end, and each takes over when the one before ends. */
    static void leaderLatch(Trial trial) throws Exception {
        List<CuratorFramework> clients = trial.clients(3);
        List<LeaderLatch> latches = new ArrayList<>();
        for (int index = 0; index < clients.size(); index++) {
            latches.add(new LeaderLatch(clients.get(index), trial.root, "candidate-" + index));
        }
        AtomicInteger overlaps = new AtomicInteger();
        AtomicBoolean isOver = new AtomicBoolean();
        Thread watcher = new Thread(() -> {
            while (!isOver.get()) {
                overlaps.addAndGet(overlaps(latches));
                LockSupport.parkNanos(100_000);
            }
        }, "overlap-watcher");
        try {
            for (LeaderLatch latch : latches) {
                latch.start();
            }
            watcher.start();
            trial.eventually("one leads", () -> leaders(latches).size() == 1);
            trial.strike(clients.get(leaders(latches).get(0)));
            trial.settle();
            Set<Integer> haveLed = new HashSet<>();
            while (haveLed.size() < latches.size()) {
                trial.eventually("one leads again", () -> leaders(latches).size() == 1);
                int leader = leaders(latches).get(0);
                String id = "candidate-" + leader;
                int left = latches.size() - haveLed.size();
                trial.eventually("the servers know " + left + " candidates and leader " + id, () ->
                        latches.get(leader).getParticipants().size() == left
                                && latches.get(leader).getLeader().getId().equals(id));
                trial.check(haveLed.add(leader), "a client that closed its latch does not lead");
                latches.get(leader).close();
            }
        } finally {
            isOver.set(true);
            watcher.join();
        }
        trial.checkEqual(overlaps.get(), 0, "the count of moments with two leaders");
    }

    private static List<Integer> leaders(List<LeaderLatch> latches) {
        List<Integer> leaders = new ArrayList<>();
        for (int index = 0; index < latches.size(); index++) {
            if (latches.get(index).hasLeadership()) {
                leaders.add(index);
            }
        }
        return leaders;
    }

    /** Pairs that lead at once: one leads before and after the other was seen to lead. */
    private static int overlaps(List<LeaderLatch> latches) {
        int count = 0;
        for (LeaderLatch one : latches) {
            for (LeaderLatch other : latches) {
                boolean isOverlap = one != other && one.hasLeadership() && other.hasLeadership()
                        && one.hasLeadership();
                count += isOverlap ? 1 : 0;
            }
        }
        return count;
    }

    /** Leadership goes round, one leader at a time; a client that loses its server gives it up. */
    static void leaderSelector(Trial trial) throws Exception {
        int count = 3;
        Guard guard = new Guard(trial, 1);
        AtomicIntegerArray terms = new AtomicIntegerArray(count);
        List<String> overlaps = new ArrayList<>();
        List<LeaderSelector> selectors = new ArrayList<>();
        for (int index = 0; index < count; index++) {
            int candidate = index;
            LeaderSelector selector = new LeaderSelector(trial.client(), trial.root,
                    new LeaderSelectorListenerAdapter() {
                        @Override
                        public void takeLeadership(CuratorFramework client) throws Exception {
                            try {
                                guard.pass(30);
                            } catch (AssertionError overlap) {
                                synchronized (overlaps) {
                                    overlaps.add(overlap.getMessage());
                                }
                            }
                            terms.incrementAndGet(candidate);
                        }
                    });
            selector.autoRequeue();
            selector.start();
            selectors.add(selector);
        }
        awaitTerms(trial, terms);
        trial.strikeAndSettle();
        awaitTerms(trial, terms);
        for (LeaderSelector selector : selectors) {
            selector.close();
        }
        trial.checkEqual(overlaps, List.of(), "the list of overlaps");
    }

    private static void awaitTerms(Trial trial, AtomicIntegerArray terms) throws Exception {
        int[] before = new int[terms.length()];
        for (int candidate = 0; candidate < before.length; candidate++) {
            before[candidate] = terms.get(candidate);
        }
        trial.eventually("every client has led three times more", () -> {
            for (int candidate = 0; candidate < before.length; candidate++) {
                if (terms.get(candidate) < before[candidate] + 3) {
                    return false;
                }
            }
            return true;
        });
    }

    /** One holder at a time: what it reads and writes back without a version check is not lost. */
    static void mutex(Trial trial) throws Exception {
        List<CuratorFramework> clients = trial.clients(3);
        String counter = trial.root + "/counter";
        clients.get(0).create().creatingParentsIfNeeded().forPath(counter, Data.bytes(0));
        List<InterProcessMutex> mutexes = new ArrayList<>();
        for (CuratorFramework client : clients) {
            mutexes.add(new InterProcessMutex(client, trial.root + "/lock"));
        }
        Guard guard = new Guard(trial, 1);
        AtomicLong increments = new AtomicLong();
        trial.contend(clients.size(), worker -> {
            CuratorFramework client = clients.get(worker);
            InterProcessMutex mutex = mutexes.get(worker);
            trial.check(mutex.acquire(PATIENCE_S, SECONDS), "a lock is acquired");
            try {
                guard.pass(1);
                long value = Data.number(client.getData().forPath(counter));
                client.setData().forPath(counter, Data.bytes(value + 1));
                increments.incrementAndGet();
            } finally {
                mutex.release();
            }
        });
        clients.get(0).sync().forPath(counter);
        trial.checkEqual(Data.number(clients.get(0).getData().forPath(counter)), increments.get(),
                "the counter");
    }

    /** Readers together, a writer alone: a reader never sees a write half done. */
    static void readWriteLock(Trial trial) throws Exception {
        int writers = 2;
        List<CuratorFramework> clients = trial.clients(4);
        String one = trial.root + "/one";
        String two = trial.root + "/two";
        clients.get(0).create().creatingParentsIfNeeded().forPath(one, Data.bytes(0));
        clients.get(0).create().forPath(two, Data.bytes(0));
        List<InterProcessReadWriteLock> locks = new ArrayList<>();
        for (CuratorFramework client : clients) {
            locks.add(new InterProcessReadWriteLock(client, trial.root + "/lock"));
        }
        readersShare(trial, locks);
        Guard guard = new Guard(trial, 1);
        AtomicLong writes = new AtomicLong();
        trial.contend(clients.size(), worker -> {
            CuratorFramework client = clients.get(worker);
            InterProcessReadWriteLock lock = locks.get(worker);
            boolean isWriter = worker < writers;
            InterProcessMutex mutex = isWriter ? lock.writeLock() : lock.readLock();
            trial.check(mutex.acquire(PATIENCE_S, SECONDS), "a lock is acquired");
            try {
                long value = Data.number(client.getData().forPath(one));
                if (isWriter) {
                    client.setData().forPath(one, Data.bytes(value + 1));
                    guard.pass(2);
                    client.setData().forPath(two, Data.bytes(value + 1));
                    writes.incrementAndGet();
                }
                long other = Data.number(client.getData().forPath(two));
                trial.checkEqual(other, isWriter ? value + 1 : value, "the second value");
            } finally {
                mutex.release();
            }
        });
        clients.get(0).sync().forPath(one);
        trial.checkEqual(Data.number(clients.get(0).getData().forPath(one)), writes.get(),
                "the count of writes");
    }

    private static void readersShare(Trial trial, List<InterProcessReadWriteLock> locks)
            throws Exception {
        InterProcessMutex reader = locks.get(2).readLock();
        InterProcessMutex other = locks.get(3).readLock();
        InterProcessMutex writer = locks.get(0).writeLock();
        trial.check(reader.acquire(PATIENCE_S, SECONDS), "a reader enters");
        trial.check(other.acquire(PATIENCE_S, SECONDS), "a second reader enters beside it");
        trial.check(!writer.acquire(100, MILLISECONDS), "a writer stays outside");
        reader.release();
        other.release();
        trial.check(writer.acquire(PATIENCE_S, SECONDS), "a writer enters when they are gone");
        writer.release();
    }

    /** As many leases as there are, never more, and none is lost. */
    static void semaphore(Trial trial) throws Exception {
        int leases = 2;
        List<CuratorFramework> clients = trial.clients(4);
        List<InterProcessSemaphoreV2> semaphores = new ArrayList<>();
        for (CuratorFramework client : clients) {
            semaphores.add(new InterProcessSemaphoreV2(client, trial.root, leases));
        }
        allLeases(trial, semaphores, leases);
        Guard guard = new Guard(trial, leases);
        trial.contend(clients.size(), worker -> {
            InterProcessSemaphoreV2 semaphore = semaphores.get(worker);
            Lease lease = semaphore.acquire(PATIENCE_S, SECONDS);
            trial.check(lease != null, "a lease is acquired");
            try {
                guard.pass(10);
            } finally {
                semaphore.returnLease(lease);
            }
        });
        allLeases(trial, semaphores, leases);
    }

    private static void allLeases(Trial trial, List<InterProcessSemaphoreV2> semaphores,
            int leases) throws Exception {
        List<Lease> held = new ArrayList<>();
        for (int index = 0; index < leases; index++) {
            Lease lease = semaphores.get(index).acquire(PATIENCE_S, SECONDS);
            trial.check(lease != null, "lease " + index + " is to be had");
            held.add(lease);
        }
        Lease extra = semaphores.get(leases).acquire(200, MILLISECONDS);
        trial.check(extra == null, "there is no lease more");
        for (int index = 0; index < leases; index++) {
            semaphores.get(index).returnLease(held.get(index));
        }
    }

    /**
     * No client goes in before all have come, and none goes out before all want to. The server dies
     * while all are inside: the recipe itself gives up with ConnectionLoss when it waits.
     */
    static void doubleBarrier(Trial trial) throws Exception {
        int members = 3;
        List<CuratorFramework> clients = trial.clients(members);
        for (int turn = 0; turn < 3; turn++) {
            String path = trial.root + "/turn-" + turn;
            AtomicInteger arrived = new AtomicInteger();
            AtomicInteger leaving = new AtomicInteger();
            List<DistributedDoubleBarrier> barriers = new ArrayList<>();
            for (CuratorFramework client : clients) {
                barriers.add(new DistributedDoubleBarrier(client, path, members));
            }
            together(trial, members, member -> {
                Thread.sleep(50L * member);
                arrived.incrementAndGet();
                trial.check(barriers.get(member).enter(PATIENCE_S, SECONDS), "a member enters");
                trial.checkEqual(arrived.get(), members, "the count of clients that came");
            });
            if (turn == 1) {
                trial.strike();
                trial.syncAll();
            }
            together(trial, members, member -> {
                Thread.sleep(50L * member);
                leaving.incrementAndGet();
                trial.check(barriers.get(member).leave(PATIENCE_S, SECONDS), "a member leaves");
                trial.checkEqual(leaving.get(), members, "the count of clients that want to leave");
            });
            trial.settle();
        }
    }

    /** Runs `round` once on each of `count` threads. */
    private static void together(Trial trial, int count, Trial.Round round) throws Exception {
        List<Throwable> failures = new ArrayList<>();
        List<Thread> threads = new ArrayList<>();
        for (int index = 0; index < count; index++) {
            int member = index;
            Thread thread = new Thread(() -> {
                try {
                    round.run(member);
                } catch (Throwable error) {
                    synchronized (failures) {
                        failures.add(error);
                    }
                }
            }, "member-" + member);
            threads.add(thread);
            thread.start();
        }
        for (Thread thread : threads) {
            thread.join();
        }
        trial.checkEqual(failures, List.of(), "the list of failures");
    }
}
