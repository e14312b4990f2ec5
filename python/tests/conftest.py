"""A real node that serves a directory, and clients of it."""

import contextlib
import os
import pathlib
import signal
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
