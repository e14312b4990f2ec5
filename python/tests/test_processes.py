"""Processes: what `fork` and `spawn` do to a client, and what is started before first use."""

import multiprocessing
import os
import subprocess
import sys
import threading

import fsspec
import pytest

import millrace

LENGTH = 5000


def read_part(client, file, offset):
    return client.read(file, offset, LENGTH)


def read_by_url(url, offset):
    with fsspec.open(url, "rb") as file:
        file.seek(offset)
        return file.read(LENGTH)


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_workers_read_what_the_parent_looked_up(node, client, folder, content, method):
    (folder / "file").write_bytes(content)
    file = client.stat(f"{folder.name}/file")
    assert client.read(file, 0, LENGTH) == content[:LENGTH]
    url = f"millrace://{node.address}/{folder.name}/file"
    offsets = range(0, len(content), 500_000)
    with multiprocessing.get_context(method).Pool(4) as pool:
        parts = pool.starmap(read_part, [(client, file, offset) for offset in offsets])
        by_url = pool.starmap(read_by_url, [(url, offset) for offset in offsets])
    assert parts == by_url == [content[offset : offset + LENGTH] for offset in offsets]


@pytest.mark.parametrize("local", [True, False])
def test_children_read_while_threads_of_the_parent_do(node, folder, content, local):
    (folder / "file").write_bytes(content)
    client = millrace.connect(node.address, local=local)
    opened = fsspec.filesystem("millrace", address=node.address, local=local).open(f"{folder.name}/file")
    file = client.stat(f"{folder.name}/file")
    is_done = threading.Event()
    wrong = []

    def read():
        step = 0
        while not is_done.is_set():
            offset = step * 104_729 % len(content)
            step += 1
            if client.read(file, offset, LENGTH) != content[offset : offset + LENGTH]:
                wrong.append(offset)

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        children = []
        for index in range(12):
            child = os.fork()
            if child == 0:
                offset = index * 300_000
                opened.seek(offset)
                is_right = client.read(file) == content
                is_right = is_right and opened.read(LENGTH) == content[offset : offset + LENGTH]
                os._exit(0 if is_right else 1)
            children.append(child)
        codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    finally:
        is_done.set()
        for thread in threads:
            thread.join()
    assert (codes, wrong) == ([0] * 12, [])
    assert client.read(file) == content


def test_an_upload_of_the_parent_cannot_be_gone_on_with(client, folder):
    upload = client.upload(f"{folder.name}/file")
    upload.write(b"begun")
    child = os.fork()
    if child == 0:
        try:
            upload.finish()
        except ValueError:
            del upload
            os._exit(0)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    upload.finish()
    assert client.read(f"{folder.name}/file") == b"begun"


def test_nothing_is_started_before_first_use(node):
    script = f"""
import os, millrace, millrace.fs
millrace.Client({node.address!r})
filesystem = millrace.fs.MillraceFileSystem(address={node.address!r})
before = len(os.listdir("/proc/self/task"))
filesystem.ls("")
millrace.connect({node.address!r}).stat("")
print(before, len(os.listdir("/proc/self/task")))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["1", "2"]
