"""Clusters: found by their coordination or by several addresses, and read while nodes die and come."""

import multiprocessing
import random
import threading
import time

import fsspec
import pytest

import millrace
from conftest import Cluster

FILES = 12
SIZE = 3_000_000
# Longest wait for what a cluster does by itself, in seconds; a test that waits so long fails.
GUARD = 120


@pytest.fixture(scope="module")
def contents():
    source = random.Random(5)
    return {f"{index}.bin": source.randbytes(SIZE) for index in range(FILES)}


@pytest.fixture
def cluster(tmp_path, contents):
    """A cluster whose two copies of each block are in memory."""
    served = tmp_path / "served"
    served.mkdir()
    for name, content in contents.items():
        (served / name).write_bytes(content)
    cluster = Cluster(tmp_path / "cluster", served)
    try:
        cluster.admin("mount", "/", f"file://{served}", "--replicas", "2")
        client = millrace.connect(cluster.coordination)
        for name in contents:
            client.load(name)
        yield cluster
    finally:
        cluster.stop()


def wait_until(what, is_so):
    end = time.monotonic() + GUARD
    while not is_so():
        assert time.monotonic() < end, f"waited in vain until {what}"
        time.sleep(0.05)


class Reader:
    """A thread that reads ranges at random until it is stopped."""

    def __init__(self, fs, contents, seed):
        self.fs = fs
        self.contents = contents
        self.random = random.Random(seed)
        self.bytes = 0
        self.wrong = []
        self.is_done = threading.Event()
        self.thread = threading.Thread(target=self.run)
        self.thread.start()

    def run(self):
        opened = {name: self.fs.open(name) for name in self.contents}
        while not self.is_done.is_set():
            try:
                self.step(opened)
            except Exception as error:
                self.wrong.append(error)
                return

    def step(self, opened):
        name = self.random.choice(list(self.contents))
        length = self.random.choice([100, 50_000, 1_500_000])
        offset = self.random.randrange(SIZE - length)
        content = self.contents[name][offset : offset + length]
        opened[name].seek(offset)
        found = [opened[name].read(length)]
        found += self.fs.cat_ranges([name] * 2, [offset, offset], [offset + length] * 2)
        if found != [content] * 3:
            self.wrong.append((name, offset, length))
        self.bytes += 3 * length

    def stop(self):
        self.is_done.set()
        self.thread.join()


def read_by_url(url):
    with fsspec.open(url, "rb") as file:
        return file.read()


def test_a_cluster_is_read_by_its_coordination_or_by_several_addresses(cluster, contents):
    content = contents["3.bin"]
    servers, path = cluster.coordination.removeprefix("zk://").split("/")
    nodes = ",".join(["127.0.0.1:1", *cluster.nodes.values()])
    for address in [cluster.coordination, f"millrace+{cluster.coordination}", nodes, f"millrace://{nodes}/"]:
        assert millrace.connect(address).read("3.bin") == content
        fs = fsspec.filesystem("millrace", address=address)
        assert fs.cat_file("3.bin") == content
        assert read_by_url(fs.unstrip_protocol("3.bin")) == content
    urls = [f"millrace+zk://{servers}/{path}/3.bin", f"millrace://{nodes}/3.bin"]
    for method in ("fork", "spawn"):
        with multiprocessing.get_context(method).Pool(2) as pool:
            assert pool.map(read_by_url, urls) == [content] * 2
    with pytest.raises(ConnectionError):
        millrace.connect(f"zk://{servers}/{path}/nothing", connect_timeout=1)


def test_a_node_is_killed_and_one_is_added_under_readers(cluster, contents):
    before = cluster.counters("fill_bytes")
    nodes = ",".join(cluster.nodes.values())
    readers = [
        Reader(fsspec.filesystem("millrace", address=cluster.coordination), contents, 1),
        Reader(fsspec.filesystem("millrace", address=nodes, local=False), contents, 2),
    ]

    def read_on(count):
        """Waits until each reader has read this many bytes more."""
        goals = [reader.bytes + count for reader in readers]
        wait_until("the readers have read on", lambda: (
            any(reader.wrong for reader in readers)
            or all(reader.bytes > goal for reader, goal in zip(readers, goals))
        ))

    try:
        read_on(20 * SIZE)
        epoch = max(cluster.counters("cluster_epoch").values())
        cluster.kill("node-2")
        read_on(20 * SIZE)
        wait_until("the dead node is out", lambda: min(cluster.counters("cluster_epoch").values()) > epoch)
        read_on(20 * SIZE)
        cluster.add("node-4")
        wait_until("the new node has its share", lambda: (
            cluster.counters("peer_fill_bytes")["node-4"] > 0
            and sum(cluster.counters("handover_pending_count").values()) == 0
        ))
        read_on(40 * SIZE)
    finally:
        for reader in readers:
            reader.stop()
    assert [reader.wrong for reader in readers] == [[], []]
    after = cluster.counters("fill_bytes")
    filled = sum(count - before.get(name, 0) for name, count in after.items())
    moved = sum(reader.bytes for reader in readers)
    assert filled <= 0.02 * moved, f"{filled} of {moved} bytes came from the source"
    print(f"{filled} of {moved} bytes came from the source")
