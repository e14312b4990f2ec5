"""Clusters: found by their coordination or by several addresses, and read while nodes die and come."""

import multiprocessing
import random
import threading

import fsspec
import pytest

import millrace
from conftest import replicated, wait_until

FILES = 12
SIZE = 3_000_000


@pytest.fixture(scope="module")
def contents():
    source = random.Random(5)
    return {f"{index}.bin": source.randbytes(SIZE) for index in range(FILES)}


@pytest.fixture
def cluster(tmp_path, contents):
    def fill(served):
        for name, content in contents.items():
            (served / name).write_bytes(content)

    with replicated(tmp_path, fill) as cluster:
        yield cluster


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
    with pytest.raises(ConnectionError, match="no cluster"):
        millrace.connect(f"zk://{servers}/{path}/nothing")


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
        cluster.kill_one()
        read_on(20 * SIZE)
        cluster.add_one()
        read_on(40 * SIZE)
    finally:
        for reader in readers:
            reader.stop()
    assert [reader.wrong for reader in readers] == [[], []]
    filled = cluster.filled(before)
    moved = sum(reader.bytes for reader in readers)
    assert filled <= 0.02 * moved, f"{filled} of {moved} bytes came from the source"
