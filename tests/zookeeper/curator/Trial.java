// One recipe under trial: its clients, the death of a server in its middle, and the questions it
// is asked. Holds for every recipe: a client keeps its session while servers die and return,
// unless the recipe itself expired it.

import java.util.ArrayList;
import java.util.List;
import java.util.concurrent.ConcurrentHashMap;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.atomic.AtomicBoolean;
import java.util.concurrent.atomic.AtomicIntegerArray;
import java.util.concurrent.atomic.AtomicReference;
import java.util.regex.Matcher;
import java.util.regex.Pattern;
import org.apache.curator.RetryPolicy;
import org.apache.curator.framework.CuratorFramework;
import org.apache.curator.framework.CuratorFrameworkFactory;
import org.apache.curator.framework.imps.CuratorFrameworkState;
import org.apache.curator.retry.RetryUntilElapsed;
import org.apache.zookeeper.Watcher;
import org.apache.zookeeper.ZooKeeper;

final class Trial {
    /** Which server dies. */
    enum Victim { LEADER, FOLLOWER, CONNECTED, NOBODY }

    interface Body {
        void run(Trial trial) throws Exception;
    }

    interface Round {
        void run(int worker) throws Exception;
    }

    interface Condition {
        boolean holds() throws Exception;
    }

    /** Long beside an election, short beside a trial: a client that loses a session here was forgotten. */
    static final int SESSION_TIMEOUT_MS = 15_000;
    private static final int CONNECTION_TIMEOUT_MS = 15_000;
    /** How long a dead server stays dead: an election takes place meanwhile. */
    private static final long DOWN_MS = 1_500;
    /** What should come true, comes true within this, on a loaded machine too. */
    private static final long EVENTUALLY_MS = 45_000;
    /** Rounds of each contender before the kill, and again after the server is back. */
    private static final int ROUNDS = 20;
    private static final Pattern REMOTE = Pattern.compile("remoteserver:[^ ]*:(\\d+)");

    /** Where the recipe keeps its nodes. */
    final String root;
    private final Ensemble ensemble;
    private final Victim victim;
    private final List<CuratorFramework> clients = new ArrayList<>();
    private final ConcurrentHashMap<CuratorFramework, Long> sessions = new ConcurrentHashMap<>();
    private int struck = -1;
    private Thread restarter;

    Trial(Ensemble ensemble, String name, Victim victim) {
        this.ensemble = ensemble;
        this.root = "/" + name;
        this.victim = victim;
    }

    /** A connected client that retries what a lost connection failed for a minute. */
    CuratorFramework client() throws Exception {
        return client(new RetryUntilElapsed(60_000, 100));
    }

    CuratorFramework client(RetryPolicy retryPolicy) throws Exception {
        CuratorFramework client = CuratorFrameworkFactory.newClient(ensemble.connectionString(),
                SESSION_TIMEOUT_MS, CONNECTION_TIMEOUT_MS, retryPolicy);
        clients.add(client);
        client.start();
        check(client.blockUntilConnected(CONNECTION_TIMEOUT_MS, TimeUnit.MILLISECONDS),
                "a client connects");
        return client;
    }

    List<CuratorFramework> clients(int count) throws Exception {
        List<CuratorFramework> added = new ArrayList<>();
        for (int index = 0; index < count; index++) {
            added.add(client());
        }
        return added;
    }

    boolean kills() {
        return victim != Victim.NOBODY;
    }

    /**
     * How many operations may have happened though their answer was lost: each of `inFlight`
     * callers had at most one under way when the server died. Nothing is forgiven without a kill.
     */
    int unanswered(int inFlight) {
        return kills() ? inFlight : 0;
    }

    /** Kills a server while the recipe goes on; another thread starts it again after a while. */
    void strike() throws Exception {
        strike(clients.get(0));
    }

    /** As `strike`; `client` is the one whose server counts as the connected one. */
    void strike(CuratorFramework client) throws Exception {
        for (CuratorFramework each : clients) {
            if (each.getState() == CuratorFrameworkState.STARTED) {
                sessions.put(each, sessionOf(each));
            }
        }
        if (!kills()) {
            return;
        }
        check(struck < 0, "one strike a recipe");
        struck = choose(client);
        ensemble.kill(struck);
        restarter = new Thread(() -> {
            try {
                Thread.sleep(DOWN_MS);
                ensemble.start(struck);
            } catch (Exception error) {
                error.printStackTrace();
            }
        }, "restarter");
        restarter.start();
    }

    private int choose(CuratorFramework client) throws Exception {
        int[] found = {-1};
        eventually("a client leads before the kill", () -> {
            found[0] = ensemble.leader();
            return found[0] >= 0;
        });
        int leader = found[0];
        int connected = serverOf(client);
        switch (victim) {
            case LEADER:
                return leader;
            case CONNECTED:
                return connected;
            default:
                // The follower that this client does not use, where there is a choice.
                int first = (leader + 1) % Ensemble.SIZE;
                return first == connected ? (leader + 2) % Ensemble.SIZE : first;
        }
    }

    private int serverOf(CuratorFramework client) throws Exception {
        client.blockUntilConnected();
        String description = client.getZookeeperClient().getZooKeeper().toString();
        Matcher matcher = REMOTE.matcher(description);
        check(matcher.find(), "a connected client knows its server: " + description);
        return ensemble.serverWithPort(Integer.parseInt(matcher.group(1)));
    }

    private static long sessionOf(CuratorFramework client) throws Exception {
        return client.getZookeeperClient().getZooKeeper().getSessionId();
    }

    /**
     * Waits until every client's server has what was written before; so a leader is there again,
     * whether or not the dead server is.
     */
    void syncAll() throws Exception {
        for (CuratorFramework client : clients) {
            if (client.getState() == CuratorFrameworkState.STARTED) {
                client.sync().forPath("/");
            }
        }
    }

    /** Waits until the dead server is back, all servers serve and every client reaches one. */
    void settle() throws Exception {
        if (restarter != null) {
            restarter.join();
            restarter = null;
        }
        ensemble.awaitQuorum();
        syncAll();
    }

    /** Strikes, then waits until everything is well again. */
    void strikeAndSettle() throws Exception {
        strike();
        settle();
    }

    /**
     * Runs `round` again and again on threads of its own, one for each worker: some rounds of each
     * before the kill, then through it, then some of each after the server is back.
     */
    void contend(int workers, Round round) throws Exception {
        AtomicIntegerArray rounds = new AtomicIntegerArray(workers);
        AtomicBoolean isOver = new AtomicBoolean();
        AtomicReference<Throwable> failure = new AtomicReference<>();
        List<Thread> threads = new ArrayList<>();
        for (int index = 0; index < workers; index++) {
            int worker = index;
            Thread thread = new Thread(() -> {
                try {
                    while (!isOver.get()) {
                        round.run(worker);
                        rounds.incrementAndGet(worker);
                        Thread.sleep(5);
                    }
                } catch (Throwable error) {
                    failure.compareAndSet(null, error);
                    isOver.set(true);
                }
            }, "worker-" + worker);
            threads.add(thread);
            thread.start();
        }
        try {
            awaitRounds(rounds, failure);
            strikeAndSettle();
            awaitRounds(rounds, failure);
            isOver.set(true);
            for (Thread thread : threads) {
                thread.join(EVENTUALLY_MS);
                check(!thread.isAlive(), "a worker ends its round: " + where(thread));
            }
        } finally {
            isOver.set(true);
            threads.forEach(Thread::interrupt);
        }
        rethrow(failure);
    }

    private void awaitRounds(AtomicIntegerArray rounds, AtomicReference<Throwable> failure)
            throws Exception {
        int[] goals = new int[rounds.length()];
        for (int worker = 0; worker < goals.length; worker++) {
            goals[worker] = rounds.get(worker) + ROUNDS;
        }
        eventually("every worker gets on", () -> {
            rethrow(failure);
            for (int worker = 0; worker < goals.length; worker++) {
                if (rounds.get(worker) < goals[worker]) {
                    return false;
                }
            }
            return true;
        });
    }

    private static void rethrow(AtomicReference<Throwable> failure) throws Exception {
        Throwable error = failure.get();
        if (error instanceof Error) {
            throw (Error) error;
        }
        if (error != null) {
            throw (Exception) error;
        }
    }

    /** Lets a client's session end: a second connection takes it over and closes it. */
    void expire(CuratorFramework client) throws Exception {
        ZooKeeper original = client.getZookeeperClient().getZooKeeper();
        long session = original.getSessionId();
        CountDownLatch isConnected = new CountDownLatch(1);
        ZooKeeper twin = new ZooKeeper(ensemble.connectionString(), SESSION_TIMEOUT_MS, event -> {
            if (event.getState() == Watcher.Event.KeeperState.SyncConnected) {
                isConnected.countDown();
            }
        }, session, original.getSessionPasswd());
        try {
            check(isConnected.await(EVENTUALLY_MS, TimeUnit.MILLISECONDS), "a session moves");
            check(twin.getSessionId() == session, "a session moves as it is");
        } finally {
            twin.close();
        }
        sessions.remove(client);
        eventually("a client notices that its session is over", () -> sessionOf(client) != session);
    }

    void check(boolean holds, String claim) {
        if (!holds) {
            throw new AssertionError("not so: " + claim);
        }
    }

    void checkEqual(Object found, Object expected, String what) {
        if (!expected.equals(found)) {
            throw new AssertionError(what + " is " + found + ", should be " + expected);
        }
    }

    void checkBetween(long found, long low, long high, String what) {
        if (found < low || found > high) {
            throw new AssertionError(
                    what + " is " + found + ", should be from " + low + " to " + high);
        }
    }

    void eventually(String claim, Condition condition) throws Exception {
        long deadlineNs = System.nanoTime() + TimeUnit.MILLISECONDS.toNanos(EVENTUALLY_MS);
        while (!condition.holds()) {
            if (System.nanoTime() > deadlineNs) {
                throw new AssertionError("never came true: " + claim);
            }
            Thread.sleep(20);
        }
    }

    /** The questions asked of every recipe when it is through. */
    void verify() throws Exception {
        settle();
        check(!sessions.isEmpty(), "the recipe was struck");
        for (CuratorFramework client : clients) {
            Long session = sessions.get(client);
            if (session != null && client.getState() == CuratorFrameworkState.STARTED) {
                check(sessionOf(client) == session,
                        String.format("a client keeps its session 0x%x", session));
            }
        }
    }

    /** What died, for the report. */
    String casualty() {
        return struck < 0 ? "" : String.format(" (killed the %s, server %d)",
                victim.name().toLowerCase(), struck + 1);
    }

    static String where(Thread thread) {
        StringBuilder stack = new StringBuilder();
        for (StackTraceElement element : thread.getStackTrace()) {
            stack.append("\n        at ").append(element);
        }
        return stack.toString();
    }

    /** Leaves nothing behind: no client, and no thread that starts a server later. */
    void end() throws InterruptedException {
        if (restarter != null) {
            restarter.join();
        }
        for (CuratorFramework client : clients) {
            if (client.getState() == CuratorFrameworkState.STARTED) {
                client.close();
            }
        }
    }
}
