// Three servers that speak ZooKeeper, as real processes: their configuration files, their ports,
// their deaths by SIGKILL and their returns. Every server is started from an ordinary zoo.cfg;
// which program that is, the caller says. What runs against them is in Trial.java.

import java.io.IOException;
import java.net.InetAddress;
import java.net.InetSocketAddress;
import java.net.ServerSocket;
import java.net.Socket;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.HashSet;
import java.util.List;
import java.util.Random;
import java.util.Set;
import java.util.concurrent.TimeUnit;

final class Ensemble {
    static final int SIZE = 3;
    private static final String HOST = "127.0.0.1";
    /** A JVM on a loaded machine needs seconds to start, an election some more. */
    private static final long QUORUM_DEADLINE_MS = 90_000;
    private static final int PROBE_TIMEOUT_MS = 2_000;

    /** The command without its last argument, which is the configuration file. */
    private final List<String> command;
    private final Path folder;
    private final int[] clientPorts = new int[SIZE];
    private final Process[] processes = new Process[SIZE];
    private boolean isClosed;

    Ensemble(List<String> command, Path folder) throws IOException {
        this.command = command;
        this.folder = folder;
        int[] ports = freePorts(3 * SIZE);
        StringBuilder members = new StringBuilder();
        for (int server = 0; server < SIZE; server++) {
            clientPorts[server] = ports[3 * server];
            // Client addresses belong into the member lines: Curator reads them back from
            // /zookeeper/config and replaces its connection string with what it finds.
            members.append(String.format("server.%d=%s:%d:%d:participant;%s:%d%n", server + 1, HOST,
                    ports[3 * server + 1], ports[3 * server + 2], HOST, clientPorts[server]));
        }
        for (int server = 0; server < SIZE; server++) {
            Path data = Files.createDirectories(serverFolder(server).resolve("data"));
            Files.writeString(data.resolve("myid"), (server + 1) + "\n");
            Files.writeString(configurationFile(server), String.join("\n",
                    "tickTime=1000", "initLimit=20", "syncLimit=10",
                    "dataDir=" + data,
                    "maxClientCnxns=0",
                    "4lw.commands.whitelist=*",
                    "admin.enableServer=false",
                    "extendedTypesEnabled=true",
                    // ZooKeeper reads this one from a system property, see Recipes.java.
                    "znode.container.checkIntervalMs=500",
                    members.toString()));
        }
    }

    /** Ports below the range from which the kernel takes ports of outgoing connections. */
    private static int[] freePorts(int count) throws IOException {
        Random random = new Random();
        Set<Integer> ports = new HashSet<>();
        for (int attempt = 0; ports.size() < count; attempt++) {
            int port = 20_000 + random.nextInt(12_000);
            try (ServerSocket socket = new ServerSocket(port, 1, InetAddress.getByName(HOST))) {
                ports.add(socket.getLocalPort());
            } catch (IOException taken) {
                if (attempt > 1_000) {
                    throw taken;
                }
            }
        }
        return ports.stream().mapToInt(port -> port).toArray();
    }

    private Path serverFolder(int server) {
        return folder.resolve("server-" + (server + 1));
    }

    private Path configurationFile(int server) {
        return serverFolder(server).resolve("zoo.cfg");
    }

    private Path log(int server) {
        return serverFolder(server).resolve("log");
    }

    String connectionString() {
        List<String> addresses = new ArrayList<>();
        for (int port : clientPorts) {
            addresses.add(HOST + ":" + port);
        }
        return String.join(",", addresses);
    }

    /** Starts a server that does not run. */
    synchronized void start(int server) throws IOException {
        if (isClosed || isAlive(server)) {
            return;
        }
        List<String> line = new ArrayList<>(command);
        line.add(configurationFile(server).toString());
        processes[server] = new ProcessBuilder(line)
                .directory(serverFolder(server).toFile())
                .redirectErrorStream(true)
                .redirectOutput(ProcessBuilder.Redirect.appendTo(log(server).toFile()))
                .start();
    }

    void startAll() throws IOException {
        for (int server = 0; server < SIZE; server++) {
            start(server);
        }
    }

    /** Ends a server with SIGKILL; returns when the process is gone. */
    synchronized void kill(int server) throws InterruptedException {
        Process process = processes[server];
        if (process != null) {
            process.destroyForcibly();
            process.waitFor();
        }
    }

    boolean isAlive(int server) {
        return processes[server] != null && processes[server].isAlive();
    }

    /** Role that a server tells by `srvr`: leader, follower, or "" while it does not serve. */
    String mode(int server) {
        try (Socket socket = new Socket()) {
            InetAddress address = InetAddress.getByName(HOST);
            socket.connect(new InetSocketAddress(address, clientPorts[server]), PROBE_TIMEOUT_MS);
            socket.setSoTimeout(PROBE_TIMEOUT_MS);
            socket.getOutputStream().write("srvr".getBytes(StandardCharsets.US_ASCII));
            byte[] reply = socket.getInputStream().readAllBytes();
            for (String line : new String(reply, StandardCharsets.UTF_8).split("\n")) {
                if (line.startsWith("Mode: ")) {
                    return line.substring("Mode: ".length()).trim();
                }
            }
        } catch (IOException notServing) {
            return "";
        }
        return "";
    }

    /** The server that leads now, or -1. */
    int leader() {
        for (int server = 0; server < SIZE; server++) {
            if (mode(server).equals("leader")) {
                return server;
            }
        }
        return -1;
    }

    /** The server with this client port. */
    int serverWithPort(int port) {
        for (int server = 0; server < SIZE; server++) {
            if (clientPorts[server] == port) {
                return server;
            }
        }
        throw new IllegalArgumentException("no server has client port " + port);
    }

    /** Waits until all servers serve, one of them as the leader. */
    void awaitQuorum() throws Exception {
        long deadlineNs = System.nanoTime() + TimeUnit.MILLISECONDS.toNanos(QUORUM_DEADLINE_MS);
        String[] modes = new String[SIZE];
        while (System.nanoTime() < deadlineNs) {
            int leaders = 0;
            int followers = 0;
            for (int server = 0; server < SIZE; server++) {
                if (!isAlive(server)) {
                    throw new AssertionError("server " + (server + 1) + " ended by itself: "
                            + lastLine(server));
                }
                modes[server] = mode(server);
                leaders += modes[server].equals("leader") ? 1 : 0;
                followers += modes[server].equals("follower") ? 1 : 0;
            }
            if (leaders == 1 && followers == SIZE - 1) {
                return;
            }
            Thread.sleep(100);
        }
        throw new AssertionError("no quorum of all servers, modes: " + String.join(", ", modes));
    }

    private String lastLine(int server) throws IOException {
        List<String> lines = Files.readAllLines(log(server), StandardCharsets.ISO_8859_1);
        return lines.isEmpty() ? "(it wrote nothing)" : lines.get(lines.size() - 1);
    }

    /** Ends all servers for good: none can be started after this. */
    synchronized void close() {
        isClosed = true;
        for (Process process : processes) {
            if (process != null) {
                process.destroyForcibly();
                process.onExit().join();
            }
        }
    }
}
