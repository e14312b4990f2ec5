"""The filesystem of fsspec: paths, versions, ranges, what goes over the wire."""

import copy
import io
import pickle
from concurrent.futures import ThreadPoolExecutor

import fsspec
import pytest

import millrace
from millrace.fs import MillraceFileSystem


@pytest.fixture
def fs(node):
    return fsspec.filesystem("millrace", address=node.address)


def replace(path, content):
    path.with_name("new").write_bytes(content)
    path.with_name("new").replace(path)


@pytest.mark.parametrize(
    "url, path, options",
    [
        ("millrace://node1:7070/a/b", "a/b", {"address": "node1:7070"}),
        ("millrace://node1/a/b/", "a/b", {"address": "node1:7070"}),
        ("millrace://[::1]:7/a", "a", {"address": "[::1]:7"}),
        ("millrace://[::1]/a", "a", {"address": "[::1]:7070"}),
        ("millrace://node1:7070", "", {"address": "node1:7070"}),
        ("millrace://node1,node2:7/a", "a", {"address": "node1:7070,node2:7"}),
        ("millrace+zk://zk1:1,zk2:2/main/a/b", "a/b", {"address": "zk://zk1:1,zk2:2/main"}),
        ("millrace+zk://zk1:1/main%2Feu/a", "a", {"address": "zk://zk1:1/main/eu"}),
        ("millrace+zk://zk1:1/main", "", {"address": "zk://zk1:1/main"}),
        ("millrace:///a", "a", {}),
        ("/a/b", "a/b", {}),
        ("a", "a", {}),
    ],
)
def test_a_url_names_a_node_and_a_path(url, path, options):
    assert MillraceFileSystem._strip_protocol(url) == path
    assert MillraceFileSystem._get_kwargs_from_urls(url) == options


def test_a_path_has_a_url_again(node):
    fs, path = fsspec.core.url_to_fs(f"millrace://{node.address}/a/b")
    assert fs.unstrip_protocol(path) == f"millrace://{node.address}/a/b"
    for address, url in [
        ("zk://one:2181,two:2181/main/eu", "millrace+zk://one:2181,two:2181/main%2Feu/a"),
        ("millrace+zk://one:2181/main", "millrace+zk://one:2181/main/a"),
        ("one:1,two:2", "millrace://one:1,two:2/a"),
        ("millrace://one:1", "millrace://one:1/a"),
        ("unix:/run/millrace", "millrace:///a"),
    ]:
        fs = MillraceFileSystem(address=address)
        assert fs.unstrip_protocol("a") == url
        assert fs._strip_protocol(url) == "a"


def test_info_has_a_version_that_changes_with_the_bytes(fs, folder):
    (folder / "file").write_bytes(b"one")
    path = f"{folder.name}/file"
    info = fs.info(path)
    assert (info["name"], info["size"], info["type"]) == (path, 3, "file")
    assert abs(info["mtime"] - (folder / "file").stat().st_mtime) < 0.002
    assert fs.modified(path).timestamp() == pytest.approx(info["mtime"])
    before = (info["version"], info["etag"], fs.ukey(path), fs.checksum(path))
    assert before[1] == before[2]
    replace(folder / "file", b"two")
    info = fs.info(path)
    after = (info["version"], info["etag"], fs.ukey(path), fs.checksum(path))
    assert all(old != new for old, new in zip(before, after))
    assert fs.info(folder.name)["type"] == "directory"
    with pytest.raises(FileNotFoundError):
        fs.info(f"{folder.name}/missing")
    assert not fs.exists(f"{folder.name}/missing")


def test_directories_are_listed_searched_and_walked(fs, folder):
    for name in ["a/1.bin", "a/b/2.bin", "c.txt"]:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x")
    top = folder.name
    assert fs.ls(top, detail=False) == [f"{top}/a", f"{top}/c.txt"]
    assert [info["type"] for info in fs.ls(top)] == ["directory", "file"]
    assert fs.ls(f"{top}/c.txt", detail=False) == [f"{top}/c.txt"]
    assert fs.find(top) == [f"{top}/a/1.bin", f"{top}/a/b/2.bin", f"{top}/c.txt"]
    assert fs.glob(f"{top}/**/*.bin") == [f"{top}/a/1.bin", f"{top}/a/b/2.bin"]
    assert fs.du(top) == 3
    with pytest.raises(FileNotFoundError):
        fs.ls(f"{top}/missing")


def test_ranges_are_as_fsspec_means_them(fs, folder):
    content = bytes(range(100))
    (folder / "file").write_bytes(content)
    path = f"{folder.name}/file"
    for start, end in [(None, None), (10, 20), (-10, None), (None, -10), (-20, -10), (90, 200)]:
        assert fs.cat_file(path, start, end) == content[start:end]
    for start, end in [(20, 20), (20, 10), (100, 200), (500, None), (-10, -20)]:
        assert fs.cat_file(path, start, end) == b""
    starts, ends = [0, 50, None, 20, -5], [10, 60, 5, 10, None]
    assert fs.cat_ranges([path] * 5, starts, ends) == [content[s:e] for s, e in zip(starts, ends)]
    assert fs.cat_ranges([path] * 2, 5, 7) == [content[5:7]] * 2
    found, missing = fs.cat_ranges([path, f"{folder.name}/missing"], [0, 0], [1, 1])
    assert found == content[:1]
    assert isinstance(missing, FileNotFoundError)
    with pytest.raises(FileNotFoundError):
        fs.cat_ranges([path, f"{folder.name}/missing"], [0, 0], [1, 1], on_error="raise")
    (folder / "other").write_bytes(b"other")
    assert fs.cat([path, f"{folder.name}/other"]) == {path: content, f"{folder.name}/other": b"other"}


@pytest.mark.parametrize("cache_type", ["none", "readahead", "bytes"])
def test_an_open_file_reads_as_a_local_one(fs, folder, content, cache_type):
    (folder / "file").write_bytes(content)
    local = io.BytesIO(content)
    with fs.open(f"{folder.name}/file", cache_type=cache_type) as file:
        for position, whence, length in [(0, 0, 10), (5, 1, 10), (-7, 2, 100), (1 << 20, 0, 1 << 20)]:
            assert file.seek(position, whence) == local.seek(position, whence)
            assert file.read(length) == local.read(length)
            assert file.tell() == local.tell()
        file.seek(3)
        buffer = bytearray(1000)
        assert file.readinto(buffer) == 1000
        assert (buffer, file.tell()) == (content[3:1003], 1003)
        file.seek(len(content) - 5)
        assert file.readinto(buffer) == 5
        assert file.read() == b""
        file.seek(0)
        assert file.read(-1) == content
    with pytest.raises(ValueError, match="closed"):
        file.read(1)


def test_a_seek_and_its_read_belong_together_in_each_thread(fs, folder, content):
    (folder / "file").write_bytes(content)
    with fs.open(f"{folder.name}/file") as file, ThreadPoolExecutor(1) as other:
        for read in [file.read, lambda length: (file.readinto(buffer := bytearray(length)), bytes(buffer))[1]]:
            file.seek(100_000)
            # Another thread comes in between, as in an engine that shares a file without a lock.
            other.submit(file.seek, 2_000_000).result()
            assert other.submit(read, 1000).result() == content[2_000_000:2_001_000]
            assert file.tell() == 100_000
            assert read(1000) == content[100_000:101_000]
            # Threads that take turns share one position.
            file.seek(500)
            assert other.submit(read, 10).result() == content[500:510]
            assert read(10) == content[510:520]
            assert other.submit(read, 10).result() == content[520:530]
            assert file.tell() == other.submit(file.tell).result() == 530


def test_lines_are_read_as_those_of_a_local_file(fs, folder):
    lines = [b"x" * (index * 37 % 5000) + b"\n" for index in range(200)] + [b"no end"]
    (folder / "file").write_bytes(b"".join(lines))
    path = f"{folder.name}/file"
    with fs.open(path) as file:
        assert list(file) == lines
        file.seek(0)
        assert file.readline() == lines[0]
        assert file.readline(3) == lines[1][:3]
        assert file.readlines() == [lines[1][3:]] + lines[2:]
    with fs.open(path, "r") as text:
        assert [line.encode() for line in text] == lines


def test_an_open_file_stays_one_version(fs, folder):
    path = folder / "file"
    path.write_bytes(b"one" * 1_000_000)
    with fs.open(f"{folder.name}/file") as file:
        assert file.read(3) == b"one"
        replace(path, b"two" * 1_000_000)
        with fs.open(f"{folder.name}/file") as other:
            assert other.read() == b"two" * 1_000_000
        with pytest.raises(millrace.StaleError):
            file.seek(1_500_000)
            file.read()
        with pytest.raises(millrace.StaleError):
            file.readinto(bytearray(1_000_000))
        again = pickle.dumps(file)
    with pytest.raises(millrace.StaleError):
        pickle.loads(again).read()


def test_filesystems_and_open_files_pickle(fs, folder, content):
    (folder / "file").write_bytes(content)
    assert pickle.loads(pickle.dumps(fs)).cat_file(f"{folder.name}/file") == content
    with fs.open(f"{folder.name}/file") as file:
        file.seek(100)
        assert pickle.loads(pickle.dumps(file)).read() == content[100:]
        assert copy.copy(file).read(1) == content[100:101]


def test_writes_come_as_a_whole(fs, folder, content):
    path = f"{folder.name}/new/file"
    with fs.open(path, "wb") as file:
        file.write(content)
        file.write(content)
        assert not fs.exists(path)
    assert fs.cat_file(path) == content + content
    with pytest.raises(FileExistsError):
        fs.open(path, "xb")
    with pytest.raises(NotImplementedError, match="whole"):
        fs.open(path, "ab")
    fs.pipe_file(path, b"piped")
    assert fs.cat_file(path) == b"piped"
    fs.touch(f"{folder.name}/empty")
    assert fs.info(f"{folder.name}/empty")["size"] == 0
    fs.mv(path, f"{folder.name}/moved")
    fs.cp_file(f"{folder.name}/moved", f"{folder.name}/copied")
    assert not fs.exists(path)
    assert fs.cat_file(f"{folder.name}/moved") == fs.cat_file(f"{folder.name}/copied") == b"piped"
    fs.rm(f"{folder.name}/moved")
    assert not fs.exists(f"{folder.name}/moved")
    with pytest.raises(IsADirectoryError):
        fs.rm(folder.name)
    with fs.transaction:
        with fs.open(f"{folder.name}/late", "wb") as file:
            file.write(b"x")
        assert not fs.exists(f"{folder.name}/late")
    assert fs.cat_file(f"{folder.name}/late") == b"x"


def test_a_write_that_fails_leaves_nothing(fs, folder):
    with pytest.raises(RuntimeError):
        with fs.open(f"{folder.name}/file", "wb") as file:
            file.write(b"half")
            raise RuntimeError
    assert not fs.exists(f"{folder.name}/file")


def test_a_text_file_is_written_and_read(node, folder):
    url = f"millrace://{node.address}/{folder.name}/text"
    with fsspec.open(url, "wt") as file:
        file.write("one\ntwo\n")
    with fsspec.open(url, "rt") as file:
        assert file.read() == "one\ntwo\n"


def test_a_node_that_only_reads_refuses_writes(read_only_node):
    fs = fsspec.filesystem("millrace", address=read_only_node.address)
    with pytest.raises(PermissionError):
        fs.pipe_file("file", b"x")
    with pytest.raises(PermissionError):
        with fs.open("file", "wb") as file:
            file.write(b"x")
