"""A real node that serves a directory, and clients of it."""

import contextlib
import json
import os
import pathlib
import random
import signal
import socket
import subprocess
import time

import pytest

import millrace

TREE = pathlib.Path(__file__).resolve().parents[2]


def program():
    """Returns the path of the program `millrace`: $MILLRACE, or what was built last in this tree."""
    given = os.environ.get("MILLRACE")
    if given:
        return given
    built = [TREE / "target" / kind / "millrace" for kind in ("debug", "release")]
    built = [path for path in built if path.exists()]
    if not built:
        pytest.exit("build the node first: cargo build --bin millrace, or set MILLRACE to its path")
    return str(max(built, key=lambda path: path.stat().st_mtime))


class Node:
    """A node that serves a directory."""

    def __init__(self, folder, *options, listen="127.0.0.1:0"):
        self.folder = folder
        command = [program(), "node", "--source", str(folder), "--listen", listen]
        command += ["--memory", "256MiB", "--admin", str(folder.parent / "admin.sock"), *options]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        line = self.process.stdout.readline()
        assert line.startswith("listening on "), f"the node did not start: {line!r}"
        self.address = line.split()[-1]

    @contextlib.contextmanager
    def paused(self):
        """Has the node answer nothing inside of a block."""
        os.kill(self.process.pid, signal.SIGSTOP)
        try:
            # The signal is on its way until all threads have stopped.
            tasks = pathlib.Path(f"/proc/{self.process.pid}/task").iterdir()
            for stat in [task / "stat" for task in tasks]:
                while stat.read_text().rpartition(")")[2].split()[0] not in "Tt":
                    time.sleep(0.001)
            yield
        finally:
            os.kill(self.process.pid, signal.SIGCONT)

    def stop(self):
        self.process.terminate()
        self._wait()

    def kill(self):
        """Ends the node as a crash would."""
        self.process.kill()
        self._wait()

    def _wait(self):
        self.process.wait()
        self.process.stdout.close()


def start(folder, *options, **more):
    folder.mkdir(parents=True, exist_ok=True)
    return Node(folder, *options, **more)


class Cluster:
    """A cluster of three nodes and one replica of coordination, as `millrace cluster up` starts it."""

    def __init__(self, folder, source, *flags):
        self.folder = folder
        self.source = source
        self.added = []
        # Ports are taken a hundred apart, and coordination's a thousand above.
        self.port = free_ports()
        command = [program(), "cluster", "up", "--json", "--nodes", "3", "--replicas", "1"]
        command += ["--dir", str(folder), "--source", str(source), "--port", str(self.port)]
        flags = ["--admin-token=" + str(folder / "token"), *flags]
        folder.mkdir()
        (folder / "token").write_text("a token of the nodes of a test cluster")
        (folder / "token").chmod(0o600)
        command += [f"--node-flag={flag}" for flag in flags]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        # The list is all that it prints, over several lines.
        text = ""
        while not text.rstrip().endswith("]"):
            line = self.process.stdout.readline()
            assert line, "the cluster did not start"
            text += line
        members = {each["name"]: each for each in json.loads(text)}
        self.pids = {name: each["pid"] for name, each in members.items()}
        self.nodes = {name: each["address"] for name, each in members.items() if "node" in name}
        self.coordination = f"zk://{members['coord-1']['address']}/millrace"

    def admin(self, *arguments):
        """Runs `millrace admin` with the token of the nodes."""
        address = next(iter(self.nodes.values()))
        command = [program(), "admin", *arguments, "--node", address]
        command += ["--admin-token", str(self.folder / "token")]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)

    def kill(self, name):
        """Ends a node as a crash would."""
        os.kill(self.pids[name], signal.SIGKILL)
        del self.nodes[name]

    def add(self, name):
        """Starts one more node, as the first one was."""
        command = (self.folder / "node-1" / "command").read_text().split()
        number = int(name.rpartition("-")[2])
        address = f"127.0.0.1:{self.port + 100 * (number - 1)}"
        for option, value in {
            "--listen": address,
            "--node-id": name,
            "--data": str(self.folder / name / "data"),
        }.items():
            command[command.index(option) + 1] = value
        node = subprocess.Popen([program(), *command[1:]], stdout=subprocess.PIPE, text=True)
        self.added.append(node)
        assert node.stdout.readline().startswith("listening on "), f"{name} did not start"
        self.nodes[name] = address

    def counters(self, name):
        """Returns a counter of each node."""
        found = {}
        for node, address in self.nodes.items():
            found[node] = millrace.connect(address).status()[name]
        return found

    def kill_one(self):
        """Kills the second node, and waits until the others have put it out."""
        epoch = max(self.counters("cluster_epoch").values())
        self.kill("node-2")
        wait_until("the dead node is out", lambda: min(self.counters("cluster_epoch").values()) > epoch)

    def add_one(self):
        """Adds a node, and waits until it has taken its share over."""
        self.add("node-4")
        wait_until("the new node has its share", lambda: (
            self.counters("peer_fill_bytes")["node-4"] > 0
            and sum(self.counters("handover_pending_count").values()) == 0
        ))

    def filled(self, before):
        """Returns the bytes that came from the source since `before`, by the nodes that are alive."""
        after = self.counters("fill_bytes")
        return sum(count - before.get(name, 0) for name, count in after.items())

    def stop(self):
        for process in [*self.added, self.process]:
            process.terminate()
        for process in [*self.added, self.process]:
            process.wait()
            process.stdout.close()


@contextlib.contextmanager
def replicated(folder, fill):
    """Starts a cluster of three nodes with two copies of each block of what `fill` writes, all of it in memory."""
    served = folder / "served"
    served.mkdir()
    fill(served)
    cluster = Cluster(folder / "cluster", served)
    try:
        cluster.admin("mount", "/", f"file://{served}", "--replicas", "2")
        client = millrace.connect(cluster.coordination)
        for file in client.list(""):
            client.load(file.path)
        yield cluster
    finally:
        cluster.stop()


def wait_until(what, is_so):
    """Waits for what a cluster does by itself; a test that waits too long fails."""
    end = time.monotonic() + 120
    while not is_so():
        assert time.monotonic() < end, f"waited in vain until {what}"
        time.sleep(0.05)


def free_ports():
    """Returns a port from which on a cluster finds the ports that it takes free."""
    while True:
        first = random.randrange(20_000, 30_000, 10)
        wanted = [first + 100 * index for index in range(5)] + [first + 1000]
        with contextlib.ExitStack() as stack:
            try:
                for port in wanted:
                    stack.enter_context(socket.create_server(("127.0.0.1", port)))
            except OSError:
                continue
            return first


@pytest.fixture(scope="session")
def node(tmp_path_factory):
    """A node that may be written to."""
    node = start(tmp_path_factory.mktemp("node") / "served", "--writable")
    yield node
    node.stop()


@pytest.fixture(scope="session")
def read_only_node(tmp_path_factory):
    node = start(tmp_path_factory.mktemp("read-only") / "served")
    yield node
    node.stop()


@pytest.fixture
def client(node):
    return millrace.connect(node.address)


@pytest.fixture
def folder(node, request):
    """A directory of the served ones for one test; its name is the path to read it by."""
    folder = node.folder / request.node.name.replace("/", "-").replace("[", "-").replace("]", "")
    folder.mkdir()
    return folder


@pytest.fixture(scope="session")
def content():
    """Bytes that differ everywhere, longer than a block."""
    word = b"".join(index.to_bytes(4, "little") for index in range(1_300_000))
    return word + b"the end"
