// Curator's recipes against three servers, one of which dies in the middle of each recipe. Prints
// `PASS name seconds` or `FAIL name seconds reason` for each; ends with 0 when all passed. The
// script `run` beside this file compiles and starts it; the trials are in the other files.

import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Comparator;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.concurrent.atomic.AtomicReference;
import java.util.stream.Stream;

final class Recipes {
    /** Longest trial; its own deadlines are shorter, so this ends only what hangs. */
    private static final long TRIAL_DEADLINE_MS = 150_000;
    private static final String USAGE = "usage: run [--server ours|zookeeper] [--no-kill] [--keep]"
            + " [--victim leader|follower|connected] [--only NAME,NAME] [--list]";
    private static final Map<String, Trial.Body> RECIPES = new LinkedHashMap<>();

    static {
        RECIPES.put("creatingParentsIfNeeded", Data::creatingParents);
        RECIPES.put("protectedSequential", Data::protectedSequential);
        RECIPES.put("get", Data::get);
        RECIPES.put("set", Data::set);
        RECIPES.put("guaranteedDelete", Data::guaranteedDelete);
        RECIPES.put("deletingChildrenIfNeeded", Data::deletingChildren);
        RECIPES.put("transaction", Data::transaction);
        RECIPES.put("failedTransaction", Data::failedTransaction);
        RECIPES.put("LeaderLatch", Locks::leaderLatch);
        RECIPES.put("LeaderSelector", Locks::leaderSelector);
        RECIPES.put("InterProcessMutex", Locks::mutex);
        RECIPES.put("InterProcessReadWriteLock", Locks::readWriteLock);
        RECIPES.put("InterProcessSemaphoreV2", Locks::semaphore);
        RECIPES.put("DistributedDoubleBarrier", Locks::doubleBarrier);
        RECIPES.put("DistributedAtomicLong", Shared::atomicLong);
        RECIPES.put("SharedCount", Shared::sharedCount);
        RECIPES.put("CuratorCache", Shared::curatorCache);
        RECIPES.put("TreeCache", Shared::treeCache);
        RECIPES.put("PathChildrenCache", Shared::pathChildrenCache);
        RECIPES.put("PersistentWatcher", Shared::persistentWatcher);
        RECIPES.put("PersistentNode", Members::persistentNode);
        RECIPES.put("PersistentTtlNode", Members::persistentTtlNode);
        RECIPES.put("GroupMember", Members::groupMember);
        RECIPES.put("ServiceDiscovery", Members::serviceDiscovery);
        RECIPES.put("SimpleDistributedQueue", Shared::simpleQueue);
        RECIPES.put("DistributedQueue", Shared::distributedQueue);
    }

    private String server = "ours";
    private List<String> names = new ArrayList<>(RECIPES.keySet());
    /** Takes turns: trial n gets victim n modulo the length. */
    private List<Trial.Victim> victims =
            List.of(Trial.Victim.LEADER, Trial.Victim.FOLLOWER, Trial.Victim.CONNECTED);
    private boolean isKept;
    /** Everything that is written lies below it. */
    private final Path folder = Path.of(System.getProperty("millrace.folder"));
    private Ensemble ensemble;

    public static void main(String[] arguments) throws Exception {
        Recipes recipes = new Recipes();
        Runtime.getRuntime().addShutdownHook(new Thread(recipes::end));
        try {
            recipes.parse(List.of(arguments));
        } catch (IllegalArgumentException error) {
            System.err.println(error.getMessage() + "\n" + USAGE);
            System.exit(2);
        }
        System.exit(recipes.run() ? 0 : 1);
    }

    private void parse(List<String> arguments) {
        for (int index = 0; index < arguments.size(); index++) {
            String flag = arguments.get(index);
            switch (flag) {
                case "--no-kill":
                    victims = List.of(Trial.Victim.NOBODY);
                    continue;
                case "--keep":
                    isKept = true;
                    continue;
                case "--list":
                    RECIPES.keySet().forEach(System.out::println);
                    System.exit(0);
                    continue;
                default:
            }
            index++;
            if (index == arguments.size()) {
                throw new IllegalArgumentException("unknown flag, or no value: " + flag);
            }
            String value = arguments.get(index);
            switch (flag) {
                case "--server":
                    server = value;
                    break;
                case "--victim":
                    victims = List.of(Trial.Victim.valueOf(value.toUpperCase()));
                    break;
                case "--only":
                    names = List.of(value.split(","));
                    break;
                default:
                    throw new IllegalArgumentException("unknown flag: " + flag);
            }
        }
        for (String name : names) {
            if (!RECIPES.containsKey(name)) {
                throw new IllegalArgumentException("unknown recipe: " + name);
            }
        }
        command();
    }

    /** How a server is started; its configuration file follows. */
    private List<String> command() {
        switch (server) {
            case "ours":
                String program = System.getenv("MILLRACE");
                if (!Files.isExecutable(Path.of(program))) {
                    throw new IllegalArgumentException(program + " is not there: build it with"
                            + " cargo build --release, or say in MILLRACE where it is");
                }
                return List.of(program, "coord");
            case "zookeeper":
                return List.of(Path.of(System.getProperty("java.home"), "bin", "java").toString(),
                        "-Xmx192m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1",
                        "-Dznode.container.checkIntervalMs=500",
                        "-cp", System.getProperty("java.class.path"),
                        "org.apache.zookeeper.server.quorum.QuorumPeerMain");
            default:
                throw new IllegalArgumentException("unknown server: " + server);
        }
    }

    private boolean run() throws Exception {
        long startNs = System.nanoTime();
        ensemble = new Ensemble(command(), folder);
        int passed = 0;
        for (int index = 0; index < names.size(); index++) {
            ensemble.startAll();
            passed += tried(names.get(index), victims.get(index % victims.size())) ? 1 : 0;
        }
        boolean isPassed = passed == names.size();
        System.out.printf("%s %d of %d recipes passed on %s in %.0f s%n",
                isPassed ? "PASS" : "FAIL", passed, names.size(), server, seconds(startNs));
        isKept |= !isPassed;
        return isPassed;
    }

    /** Tries one recipe on a thread of its own, so that one that hangs ends too. */
    private boolean tried(String name, Trial.Victim victim) throws Exception {
        long startNs = System.nanoTime();
        AtomicReference<Throwable> failure = new AtomicReference<>();
        Trial trial = new Trial(ensemble, name, victim);
        Thread thread = new Thread(() -> {
            try {
                ensemble.awaitQuorum();
                RECIPES.get(name).run(trial);
                trial.verify();
            } catch (Throwable error) {
                failure.set(error);
            }
        }, name);
        thread.setDaemon(true);
        thread.start();
        thread.join(TRIAL_DEADLINE_MS);
        if (thread.isAlive()) {
            failure.set(new AssertionError("it hangs" + Trial.where(thread)));
            thread.interrupt();
        }
        trial.end();
        Throwable error = failure.get();
        System.out.printf("%s %s %.1f%s%s%n", error == null ? "PASS" : "FAIL", name,
                seconds(startNs), trial.casualty(), error == null ? "" : " " + error);
        if (error != null && !(error instanceof AssertionError)) {
            error.printStackTrace();
        }
        return error == null;
    }

    private static double seconds(long startNs) {
        return (System.nanoTime() - startNs) / 1e9;
    }

    /** However this process ends, short of SIGKILL: no server stays, and files only if wanted. */
    private void end() {
        if (ensemble != null) {
            ensemble.close();
        }
        if (isKept) {
            System.out.println("logs and data: " + folder);
            return;
        }
        try (Stream<Path> walk = Files.walk(folder)) {
            for (Path path : walk.sorted(Comparator.reverseOrder()).toList()) {
                Files.deleteIfExists(path);
            }
        } catch (IOException error) {
            System.err.println("cannot remove " + folder + ": " + error);
        }
    }
}
