"""The client: bytes, errors, pickles, writes."""

import pickle
import signal
import threading

import pytest

import millrace


def test_reads_are_the_bytes_of_the_file(client, folder, content):
    (folder / "file").write_bytes(content)
    file = client.stat(f"{folder.name}/file")
    assert (file.length, file.kind, file.name) == (len(content), "file", "file")
    assert client.read(file) == content
    assert client.read(file.path) == content
    for offset, length in [(0, 0), (0, 1), (5, 100), (1 << 20, 4096), ((1 << 20) - 1, 2), (3, 1 << 21)]:
        assert client.read(file, offset, length) == content[offset : offset + length]
    assert client.read(file, len(content) - 3, 100) == content[-3:]
    assert client.read(file, len(content) + 3, 100) == b""


def test_a_read_into_a_buffer_fills_what_the_file_has(client, folder, content):
    (folder / "file").write_bytes(content)
    file = client.stat(f"{folder.name}/file")
    buffer = bytearray(b"-" * 100)
    assert client.read_into(file, len(content) - 10, buffer) == 10
    assert buffer == content[-10:] + b"-" * 90
    words = memoryview(bytearray(4_000_000)).cast("I")
    assert client.read_into(file, 0, words) == 4_000_000
    assert words.tolist() == list(range(1_000_000))
    assert client.read_into(file, 0, bytearray()) == 0
    with pytest.raises(BufferError):
        client.read_into(file, 0, bytes(10))
    with pytest.raises(BufferError):
        client.read_into(file, 0, memoryview(bytearray(10))[::2])


def test_many_ranges_come_in_their_order_and_fail_alone(client, folder, content):
    (folder / "file").write_bytes(content)
    file = client.stat(f"{folder.name}/file")
    ranges = [(file, offset, 1000) for offset in range(0, len(content), 50_000)]
    assert client.read_many(ranges) == [content[at : at + 1000] for _, at, _ in ranges]
    ranges = [(file, 0, 4), (f"{folder.name}/missing", 0, 4), (f"{folder.name}/file", 4, 4)]
    first, second, third = client.read_many(ranges, return_errors=True)
    assert (first, third) == (content[:4], content[4:8])
    assert isinstance(second, FileNotFoundError)
    with pytest.raises(FileNotFoundError):
        client.read_many(ranges)


def test_a_directory_comes_whole_or_page_by_page(client, folder):
    names = [f"{index:03}" for index in range(25)]
    for name in names:
        (folder / name).write_bytes(b"x")
    assert sorted(file.name for file in client.list(folder.name)) == names
    pages = list(client.list_pages(folder.name, limit=10))
    assert [len(page) for page in pages] == [10, 10, 5]
    assert sorted(file.name for page in pages for file in page) == names
    assert client.read(pages[0][0]) == b"x"


def test_a_file_of_equal_length_in_its_place_is_another_version(client, folder):
    path = folder / "file"
    path.write_bytes(b"one" * 1000)
    old = client.stat(f"{folder.name}/file")
    assert client.read(old, 0, 3) == b"one"
    path.with_name("new").write_bytes(b"two" * 1000)
    path.with_name("new").replace(path)
    new = client.stat(old.path)
    assert (new.length, new.id) == (old.length, old.id)
    assert new != old
    assert client.read(new) == b"two" * 1000
    with pytest.raises(millrace.StaleError, match="changed"):
        client.read(old)
    with pytest.raises(OSError):
        client.read_into(old, 0, bytearray(10))


def test_errors_are_those_of_python(client, read_only_node, folder):
    (folder / "file").write_bytes(b"x")
    with pytest.raises(FileNotFoundError, match="no such file"):
        client.stat(f"{folder.name}/missing")
    with pytest.raises(IsADirectoryError):
        client.read(folder.name)
    with pytest.raises(NotADirectoryError):
        client.list(f"{folder.name}/file")
    with pytest.raises(PermissionError):
        millrace.connect(read_only_node.address).put("file", b"x")
    with pytest.raises(PermissionError):
        client.stat("../outside")
    with pytest.raises(ConnectionRefusedError, match="check the address"):
        millrace.connect("127.0.0.1:1")
    with pytest.raises(ValueError, match="host:port"):
        millrace.connect("nowhere")
    with pytest.raises(TypeError, match="'colour' is not a setting; choose among deadline"):
        millrace.connect(client.address, colour="red")
    with pytest.raises(ValueError, match="deadline"):
        millrace.connect(client.address, deadline=0)
    with pytest.raises(ValueError, match="read_length_max"):
        millrace.connect(client.address, read_length_max=10).read(_long(folder))
    with pytest.raises(OverflowError):
        client.read(f"{folder.name}/file", -1)


def _long(folder):
    (folder / "long").write_bytes(bytes(11))
    return f"{folder.name}/long"


def test_a_node_that_answers_nothing_is_a_timeout(node, folder):
    (folder / "file").write_bytes(b"x")
    client = millrace.connect(node.address, deadline=0.3, connect_timeout=0.3, attempt_timeout=0.1)
    with node.paused(), pytest.raises(TimeoutError, match="deadline"):
        client.stat(f"{folder.name}/file")
    assert client.stat(f"{folder.name}/file").length == 1


def test_a_signal_ends_a_wait(node):
    client = millrace.connect(node.address, deadline=600)

    def stop(*_):
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, stop)
    try:
        with node.paused(), pytest.raises(KeyboardInterrupt):
            signal.setitimer(signal.ITIMER_REAL, 0.2)
            client.stat("")
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_writes_are_seen_at_once(client, folder):
    path = f"{folder.name}/deep/file"
    written = client.put(path, b"one")
    assert client.stat(path) == written
    assert client.read(path) == b"one"
    with pytest.raises(FileExistsError):
        client.put(path, b"two", if_absent=True)
    client.put(path, bytearray(b"two"), if_version=written.version)
    with pytest.raises(millrace.StaleError):
        client.put(path, b"three", if_version=written.version)
    with pytest.raises(millrace.StaleError):
        client.delete(path, if_version=written.version)
    moved = client.rename(path, f"{folder.name}/other")
    assert client.read(moved) == b"two"
    client.delete(moved.path)
    with pytest.raises(FileNotFoundError):
        client.stat(moved.path)
    with pytest.raises(ValueError, match="not both"):
        client.put(path, b"x", if_absent=True, if_version=1)


def test_an_upload_is_seen_when_it_is_finished(client, folder, content):
    path = f"{folder.name}/file"
    upload = client.upload(path)
    for start in range(0, len(content), 1_000_000):
        upload.write(memoryview(content)[start : start + 1_000_000])
    with pytest.raises(FileNotFoundError):
        client.stat(path)
    assert client.read(upload.finish()) == content
    with pytest.raises(ValueError, match="ended"):
        upload.write(b"more")
    given_up = client.upload(f"{folder.name}/given-up")
    given_up.write(b"x")
    given_up.abort()
    with pytest.raises(FileNotFoundError):
        client.stat(f"{folder.name}/given-up")


def test_loads_and_refreshes_tell_what_they_did(client, folder, content):
    (folder / "file").write_bytes(content)
    report = client.load(f"{folder.name}/file", deadline=20)
    assert report.block_count == report.filled_count == -(-len(content) // report.file.block_size)
    assert client.load(f"{folder.name}/file").filled_count == 0
    ((_, found),) = client.refresh(f"{folder.name}/file")
    assert found == report.file
    ((_, missing),) = client.refresh(f"{folder.name}/missing")
    assert isinstance(missing, FileNotFoundError)


def test_clients_and_files_pickle(client, folder):
    (folder / "file").write_bytes(b"bytes")
    file = client.stat(f"{folder.name}/file")
    other = millrace.Client(client.address, deadline=7, local=False)
    for value in [other, client]:
        again = pickle.loads(pickle.dumps(value))
        assert (again.address, again.settings) == (value.address, value.settings)
        assert again.read(pickle.loads(pickle.dumps(file))) == b"bytes"
    assert len({file, pickle.loads(pickle.dumps(file))}) == 1


def test_threads_share_a_client(client, folder, content):
    (folder / "file").write_bytes(content)
    file = client.stat(f"{folder.name}/file")
    wrong = []

    def read(seed):
        for step in range(50):
            offset = (seed * 7919 + step * 104_729) % len(content)
            if client.read(file, offset, 5000) != content[offset : offset + 5000]:
                wrong.append(offset)

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
