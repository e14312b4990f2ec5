"""Faults and crowds: right bytes or an error that says why, and no memory that stays."""

import os
import subprocess
import sys
import threading
import time

import fsspec
import pytest

import millrace
from conftest import start

CROWD = 80


def replace(path, content):
    path.with_name("new").write_bytes(content)
    path.with_name("new").replace(path)


def in_children(count, work):
    """Runs `work` in children that begin at the same moment; returns their exit codes."""
    waits, goes = os.pipe()
    children = []
    for index in range(count):
        child = os.fork()
        if child == 0:
            os.close(goes)
            os.read(waits, 1)
            try:
                os._exit(0 if work(index) else 1)
            except BaseException as error:
                sys.stderr.write(f"child {index}: {error!r}\n")
                os._exit(2)
        children.append(child)
    os.close(waits)
    os.close(goes)
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]


@pytest.mark.parametrize("local", [True, False])
def test_a_crowd_that_opens_a_cold_file_costs_one_read_of_each_block(node, client, folder, content, local):
    (folder / "file").write_bytes(content)
    path = f"{folder.name}/file"
    before = client.status()

    def work(index):
        fs = fsspec.filesystem("millrace", address=node.address, local=local)
        with fs.open(path) as file:
            file.seek(index * 1000)
            return file.read() == content[index * 1000 :]

    assert in_children(CROWD, work) == [0] * CROWD
    after = client.status()
    file = client.stat(path)
    assert after["fill_count"] - before["fill_count"] == -(-file.length // file.block_size)
    assert after["fill_bytes"] - before["fill_bytes"] == file.length


@pytest.mark.parametrize("local", [True, False])
def test_a_small_part_that_is_kept_keeps_no_more(node, folder, content, local):
    (folder / "file").write_bytes(content)
    script = f"""
import fsspec, gc, millrace, pathlib, re

def anonymous():
    gc.collect()
    return int(re.search(r"RssAnon:\\s*(\\d+)", pathlib.Path("/proc/self/status").read_text())[1]) << 10

fs = fsspec.filesystem("millrace", address={node.address!r}, local={local})
client, path = fs.client, {folder.name!r} + "/file"
file = client.stat(path)
opened = fs.open(path)
read = 0
kept = []

def keep(data, part):
    global read
    read += len(data) if isinstance(data, bytes) else sum(map(len, data))
    kept.append(part)

def step(index):
    data = client.read(file)
    keep(data, data[index : index + 600])
    many = client.read_many([(file, at, 8000) for at in range(0, file.length, 8000)])
    keep(many, many[index])
    opened.seek(0)
    data = opened.read()
    keep(data, data[index : index + 600])
    small = [client.read(file, at, 700) for at in range(0, 700_000, 700)]
    keep(small, small[index])

step(0)
before, read = anonymous(), 0
for index in range(25):
    step(index)
print(read, anonymous() - before)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    read, grown = map(int, done.stdout.split())
    assert read > 25 * 3 * len(content) * 0.99
    assert grown < read / 20


def test_a_fork_in_the_middle_of_a_read_leaves_both_right(node, folder, content):
    (folder / "file").write_bytes(content)
    client = millrace.connect(node.address, deadline=20)
    file = client.stat(f"{folder.name}/file")
    found = []
    reader = threading.Thread(target=lambda: found.append(client.read(file)))
    with node.paused():
        reader.start()
        # The read has been sent, or is about to be: both are a fork in the middle of it.
        time.sleep(0.05)
        child = os.fork()
        if child == 0:
            os._exit(0 if client.read(file) == content else 1)
    reader.join()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert found == [content]


def test_a_file_replaced_by_one_of_equal_length_is_an_error_and_no_mix(client, node, folder):
    path = folder / "file"
    old, new = b"old-" * 1_500_000, b"new-" * 1_500_000
    ways = {
        "renamed": lambda: replace(path, new),
        "overwritten": lambda: path.write_bytes(new),
    }
    for change in ways.values():
        path.write_bytes(old)
        fs = fsspec.filesystem("millrace", address=node.address, skip_instance_cache=True)
        fs.refresh(f"{folder.name}/file")
        with fs.open(f"{folder.name}/file") as file:
            assert file.read(4000) == old[:4000]
            change()
            # The node has the first block, and finds the change at its source when it needs another one.
            for read in [
                lambda: file.seek(4_500_000) and file.read(4000),
                lambda: file.seek(2_000_000) and file.readinto(bytearray(4_000_000)),
                lambda: fs.client.read_many([(file.version, at, 4) for at in range(0, 6_000_000, 500_000)]),
            ]:
                with pytest.raises(millrace.StaleError, match="has changed"):
                    read()
        assert fs.cat_file(f"{folder.name}/file") == new


def test_an_empty_or_inverted_range_is_empty_even_while_a_node_is_silent(node, folder, content):
    (folder / "file").write_bytes(content)
    fs = fsspec.filesystem("millrace", address=node.address, deadline=0.4, attempt_timeout=0.1, local=False)
    file = fs.open(f"{folder.name}/file")
    version, length = file.version, len(content)
    with node.paused():
        with pytest.raises(TimeoutError):
            fs.client.read(version, 0, 10)
        # What is left of a read when it is tried again may be nothing.
        for offset, count in [(0, 0), (length, 10), (length + 7, 10), (length + 7, 0)]:
            assert fs.client.read(version, offset, count) == b""
            assert fs.client.read_into(version, offset, bytearray(count)) == 0
            assert fs.client.read_many([(version, offset, count)] * 3) == [b""] * 3
        file.seek(length)
        assert (file.read(), file.read(0), file.readinto(bytearray(9))) == (b"", b"", 0)
        file.seek(length + 100)
        assert (file.read(9), file.readinto(bytearray(9))) == (b"", 0)
        assert fs.client.read_many([]) == []
        for wrong in [(-1, 10), (0, -10)]:
            with pytest.raises(OverflowError):
                fs.client.read(version, *wrong)
    path = f"{folder.name}/file"
    assert fs.cat_ranges([path] * 3, [20, 10, 0], [10, 10, 10]) == [b"", b"", content[:10]]
    assert fs.cat_file(path, 20, 10) == b""
    assert fs.client.read(version, 0, 10) == content[:10]


@pytest.mark.parametrize("local", [True, False])
def test_a_node_that_vanishes_between_two_batches(tmp_path, content, local):
    first = start(tmp_path / "served")
    (tmp_path / "served" / "file").write_bytes(content)
    client = millrace.Client(first.address, deadline=30, local=local)
    file = client.stat("file")
    batch = [(file, at, 5000) for at in range(0, len(content), 100_000)]
    expect = [content[at : at + 5000] for _, at, _ in batch]
    assert client.read_many(batch) == expect
    first.kill()
    hasty = millrace.Client(first.address, deadline=0.5, local=local)
    with pytest.raises(ConnectionError):
        hasty.read_many(batch)
    # Back at its address within the deadline, with nothing in memory, the node is waited for.
    found = []
    reader = threading.Thread(target=lambda: found.append(client.read_many(batch)))
    reader.start()
    second = start(tmp_path / "served", listen=first.address)
    try:
        reader.join()
        assert found == [expect]
        assert hasty.read_many(batch) == expect
        second.kill()
        with pytest.raises((ConnectionError, TimeoutError)):
            hasty.read_many(batch)
    finally:
        second.kill()
