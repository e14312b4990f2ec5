"""Millrace as a filesystem of fsspec: what pandas, pyarrow, DuckDB, Dask and others read through.

    millrace://host:port/path                 through the node at host:port (7070 if it names no port)
    millrace://one:7070,two:7070/path         through the first of several that answers
    millrace+zk://host:port/cluster/path      through the nodes that registered at coordination
    millrace:///path                          with storage_options={"address": "host:port"}, or another one

An open file is one version of it: a read after the file has changed raises ``millrace.StaleError``.
Nothing is read ahead (``cache_type="none"``), because a node answers a small read in microseconds, and
engines ask for what they need.
"""

import errno
import threading
from datetime import datetime, timezone
from urllib.parse import quote, unquote

from fsspec.spec import AbstractBufferedFile, AbstractFileSystem

from ._millrace import Client, File

__all__ = ["MillraceFile", "MillraceFileSystem"]

PORT = 7070
SCHEMES = ("millrace+zk://", "millrace://")
# Settings that are those of the client; all others are fsspec's.
SETTINGS = (
    "deadline",
    "connect_timeout",
    "attempt_timeout",
    "connections_per_shard",
    "zone",
    "fallback_roots",
    "verify",
    "requests_in_flight_max",
    "local",
    "leased_bytes_max",
    "read_length_max",
)
# Bytes that are read at once to find the end of a line, and to copy a file.
LINE_CHUNK = 64 << 10
COPY_CHUNK = 8 << 20


class MillraceFileSystem(AbstractFileSystem):
    """Files behind a node or a cluster of Millrace.

    ``address`` and the settings are those of ``millrace.Client``. The filesystem may be used by several
    threads, may be pickled, and goes on in a child of ``fork`` with connections of its own.
    """

    protocol = ("millrace", "millrace+zk")
    root_marker = ""
    async_impl = False

    def __init__(self, address=f"127.0.0.1:{PORT}", **options):
        settings = {name: options.pop(name) for name in SETTINGS if name in options}
        super().__init__(address=address, **settings, **options)
        self.address = address
        self.client = Client(address, **settings)

    @classmethod
    def _strip_protocol(cls, path):
        if isinstance(path, (list, tuple)):
            return [cls._strip_protocol(each) for each in path]
        path = str(path) if not hasattr(path, "__fspath__") else path.__fspath__()
        for scheme in SCHEMES:
            if path.startswith(scheme):
                return _split(path, scheme)[1]
        if path.startswith("millrace:"):
            path = path[len("millrace:") :]
        return path.strip("/")

    @staticmethod
    def _get_kwargs_from_urls(path):
        if isinstance(path, (list, tuple)):
            path = path[0]
        for scheme in SCHEMES:
            if str(path).startswith(scheme):
                address = _split(str(path), scheme)[0]
                return {"address": address} if address else {}
        return {}

    def unstrip_protocol(self, name):
        """Returns the whole URL of a path; it names no node if the address is a Unix socket."""
        path = self._strip_protocol(name)
        address = self.address
        if address.startswith("millrace+zk://"):
            address = address.removeprefix("millrace+")
        if address.startswith("zk://"):
            servers, _, cluster = address.removeprefix("zk://").partition("/")
            return f"millrace+zk://{servers}/{quote(cluster, safe='')}/{path}"
        address = address.removeprefix("millrace://").rstrip("/")
        return f"millrace://{'' if 'unix:' in address else address}/{path}"

    @property
    def fsid(self):
        """Names what is served: the address."""
        return f"millrace-{self.address}"

    # Looking up.

    def info(self, path, **kwargs):
        """Returns what is known of a path: name, size, type, mtime, version, etag."""
        return _info(self.client.stat(self._strip_protocol(path)))

    def ls(self, path, detail=True, **kwargs):
        """Lists a directory; a file is listed as itself."""
        path = self._strip_protocol(path)
        try:
            found = [_info(file) for file in self.client.list(path)]
        except NotADirectoryError:
            found = [self.info(path)]
        found.sort(key=lambda info: info["name"])
        return found if detail else [info["name"] for info in found]

    def modified(self, path):
        """Returns the time of the last change, as the source reports it."""
        return datetime.fromtimestamp(self.info(path)["mtime"], tz=timezone.utc)

    def checksum(self, path):
        """Returns a number that is another one once the file has changed."""
        return self.info(path)["version"]

    def ukey(self, path):
        """Returns a text that is another one for each version of each file."""
        return self.info(path)["etag"]

    def refresh(self, path, recursive=False):
        """Has each node look a path up in its source now, whatever it believes of it."""
        return self.client.refresh(self._strip_protocol(path), recursive)

    # Reading.

    def cat_file(self, path, start=None, end=None, **kwargs):
        """Returns the bytes of a file, or of a range of it; a negative position counts from the end."""
        file = self.client.stat(self._strip_protocol(path))
        start, length = _range(file, start, end)
        return self.client.read(file, start, length)

    def cat_ranges(self, paths, starts, ends, max_gap=None, on_error="return", **kwargs):
        """Returns the bytes of many ranges, which the node is asked for at once.

        Nothing between two ranges is read, so ``max_gap`` changes nothing.
        """
        if not isinstance(paths, list):
            raise TypeError("paths is a list")
        starts = starts if isinstance(starts, list) else [starts] * len(paths)
        ends = ends if isinstance(ends, list) else [ends] * len(paths)
        if len(starts) != len(paths) or len(ends) != len(paths):
            raise ValueError("paths, starts and ends are of different lengths")
        files = {}
        results = [None] * len(paths)
        ranges = []
        for index, (path, start, end) in enumerate(zip(paths, starts, ends)):
            try:
                if path not in files:
                    files[path] = self.client.stat(self._strip_protocol(path))
                ranges.append((index, (files[path], *_range(files[path], start, end))))
            except OSError as error:
                if on_error == "raise":
                    raise
                results[index] = error
        wanted = [each for _, each in ranges]
        answers = self.client.read_many(wanted, return_errors=on_error != "raise")
        for (index, _), answer in zip(ranges, answers):
            results[index] = answer
        return results

    def _open(
        self,
        path,
        mode="rb",
        block_size=None,
        autocommit=True,
        cache_options=None,
        cache_type="none",
        **kwargs,
    ):
        if mode == "ab":
            raise NotImplementedError("a file is written as a whole; open it with mode 'wb'")
        return MillraceFile(
            self,
            path,
            mode,
            block_size or self.blocksize,
            autocommit,
            cache_type=cache_type,
            cache_options=cache_options,
            **kwargs,
        )

    # Writing.

    def pipe_file(self, path, value, mode="overwrite", **kwargs):
        """Writes a file as a whole; with ``mode="create"`` only if nothing has the path."""
        self.client.put(self._strip_protocol(path), value, if_absent=mode == "create")

    def touch(self, path, truncate=True, **kwargs):
        """Makes an empty file; without ``truncate`` only if nothing has the path."""
        try:
            self.client.put(self._strip_protocol(path), b"", if_absent=not truncate)
        except FileExistsError:
            raise NotImplementedError("the time of a file changes only with its bytes") from None

    def rm_file(self, path):
        """Deletes a file."""
        self.client.delete(self._strip_protocol(path))

    _rm = rm_file

    def rm(self, path, recursive=False, maxdepth=None):
        """Deletes files; with ``recursive`` those below a directory too. Empty directories stay."""
        for found in reversed(self.expand_path(path, recursive=recursive, maxdepth=maxdepth)):
            try:
                self.rm_file(found)
            except IsADirectoryError:
                if not recursive:
                    raise

    def cp_file(self, path1, path2, **kwargs):
        """Copies a file: its bytes are read and written again. A directory comes with its first file."""
        path1, path2 = self._strip_protocol(path1), self._strip_protocol(path2)
        file = self.client.stat(path1)
        if file.is_directory():
            return
        upload = self.client.upload(path2)
        for offset in range(0, file.length, COPY_CHUNK):
            upload.write(self.client.read(file, offset, COPY_CHUNK))
        upload.finish()

    def mv(self, path1, path2, recursive=False, maxdepth=None, **kwargs):
        """Gives a file or a directory another path: in one step where the node can, else by a copy."""
        to = self._strip_protocol(path2)
        if isinstance(path2, str) and path2.endswith("/"):
            to = f"{to}/{self._strip_protocol(path1).rpartition('/')[2]}"
        if maxdepth is None and isinstance(path1, str) and "*" not in path1:
            try:
                self.client.rename(self._strip_protocol(path1), to)
                return
            except (IsADirectoryError, ValueError):
                pass
            except OSError as error:
                if error.errno != errno.EOPNOTSUPP:
                    raise
        super().mv(path1, path2, recursive=recursive, maxdepth=maxdepth, **kwargs)

    def mkdir(self, path, create_parents=True, **kwargs):
        """Does nothing, because a directory comes with its first file."""

    def makedirs(self, path, exist_ok=False):
        """Does nothing, because a directory comes with its first file."""

    def rmdir(self, path):
        """Does nothing, because directories are the store's to remove."""


class MillraceFile(AbstractBufferedFile):
    """A file that is read in one version, or written as a whole.

    ``version``, a ``millrace.File``, chooses the version to read; else it is the one that is there now.

    A ``seek`` and the read that follows it in one thread belong together, whatever other threads do with the
    file meanwhile, because engines such as DuckDB read one file by several threads without a lock.
    """

    def __init__(self, fs, path, mode="rb", block_size="default", *args, version=None, **kwargs):
        self._version = None
        self._upload = None
        self._lines = (0, b"")
        # Where each thread that has not read since its last seek reads next.
        self._sought = {}
        if mode == "rb":
            found = fs.client.stat(path) if version is None else version
            if found.is_directory():
                raise IsADirectoryError(errno.EISDIR, f"'{path}' is a directory")
            self._version = found
            self._details = _info(found)
            kwargs["size"] = found.length
        if mode == "xb" and fs.exists(path):
            raise FileExistsError(errno.EEXIST, f"'{path}' is there already")
        kwargs.setdefault("cache_type", "none")
        super().__init__(fs, path, mode, block_size, *args, **kwargs)
        self._is_direct = mode == "rb" and self.cache.name in ("none", None)

    @property
    def version(self):
        """The ``millrace.File`` that is read; after a write the one that was written."""
        return self._version

    def seek(self, loc, whence=0):
        """Sets the position of the next read: from the start, from here (1) or from the end (2)."""
        if self.mode != "rb":
            raise OSError(errno.ESPIPE, "a file that is being written has no position to choose")
        if whence not in (0, 1, 2):
            raise ValueError(f"whence is {whence}; choose 0, 1 or 2")
        position = int(loc) + (0, self.tell(), self.size)[whence]
        if position < 0:
            raise ValueError("a position before the start of the file")
        self.loc = self._sought[threading.get_ident()] = position
        return position

    def tell(self):
        """Returns the position of the next read of this thread."""
        return self._sought.get(threading.get_ident(), self.loc)

    def _take_position(self):
        position = self._sought.pop(threading.get_ident(), None)
        if position is None:
            # Threads that read in turns go on where the last one ended.
            self._sought.clear()
            return self.loc
        return position

    def read(self, length=-1):
        """Returns the next bytes: as many as are asked for, unless the file ends."""
        if not self._is_direct:
            if self.mode == "rb":
                self.loc = self._take_position()
            return super().read(length)
        self._check_open()
        position = self._take_position()
        length = -1 if length is None else int(length)
        left = max(self.size - position, 0)
        length = left if length < 0 else min(length, left)
        data = self.fs.client.read(self._version, position, length) if length else b""
        self.loc = position + len(data)
        return data

    def readinto(self, b):
        """Reads the next bytes into a buffer, without another copy; returns how many there were."""
        if not self._is_direct:
            return super().readinto(b)
        self._check_open()
        position = self._take_position()
        count = self.fs.client.read_into(self._version, position, b)
        self.loc = position + count
        return count

    def readline(self, size=-1):
        """Returns the next line with its end, or what ``size`` bytes have of it."""
        if self.mode != "rb":
            raise ValueError("File not in read mode")
        self._check_open()
        position = self._take_position()
        parts = []
        found = 0
        size = -1 if size is None else size
        while size < 0 or found < size:
            start, chunk = self._lines
            if not start <= position < start + len(chunk):
                start, chunk = position, self._fetch_range(position, position + LINE_CHUNK)
                self._lines = (start, chunk)
            at = position - start
            end = chunk.find(b"\n", at) + 1
            part = chunk[at : end or len(chunk)]
            part = part if size < 0 else part[: size - found]
            if not part:
                break
            parts.append(part)
            found += len(part)
            position += len(part)
            if part.endswith(b"\n"):
                break
        self.loc = position
        return b"".join(parts)

    def _check_open(self):
        if self.closed:
            raise ValueError("I/O operation on closed file.")

    def _fetch_range(self, start, end):
        start = min(start, self.size)
        end = min(end, self.size)
        return self.fs.client.read(self._version, start, max(end - start, 0))

    def _initiate_upload(self):
        self._upload = self.fs.client.upload(self.path, if_absent=self.mode == "xb")

    def _upload_chunk(self, final=False):
        self._upload.write(self.buffer.getbuffer())
        if final and self.autocommit:
            self.commit()
        return True

    def commit(self):
        """Has the store acknowledge the file that was written."""
        if self._upload is not None:
            upload, self._upload = self._upload, None
            self._version = upload.finish()

    def discard(self):
        """Ends a write that leaves nothing."""
        if self._upload is not None:
            self._upload.abort()
            self._upload = None

    def __exit__(self, kind, error, trace):
        if kind is not None and self.mode != "rb" and not self.closed:
            # What was written so far is not the file that was meant.
            self.discard()
            self.closed = True
        self.close()

    def __reduce__(self):
        if self.mode != "rb":
            raise RuntimeError("a file that is being written cannot be pickled")
        cache = self.cache.name if self.cache else None
        return _reopen, (self.fs, self.path, self.blocksize, self.tell(), cache or "none", self._version)


def _reopen(fs, path, block_size, position, cache_type, version):
    file = MillraceFile(fs, path, "rb", block_size, cache_type=cache_type, version=version)
    file.seek(position)
    return file


def _split(url, scheme):
    """Returns the address that a URL names, empty if it names none, and the path."""
    host, _, path = url[len(scheme) :].partition("/")
    if scheme == "millrace+zk://":
        # The place of a cluster is one part of the path: a slash in it is written %2F.
        cluster, _, path = path.partition("/")
        return f"zk://{host}/{unquote(cluster)}", path.strip("/")
    return ",".join(map(_with_port, host.split(","))) if host else "", path.strip("/")


def _with_port(host):
    has_port = host.rpartition(":")[2].isdigit() and not host.endswith("]")
    return host if has_port else f"{host}:{PORT}"


def _info(file):
    info = {
        "name": file.path.strip("/"),
        "size": file.length,
        "type": file.kind,
        "mtime": file.modified_ms / 1000,
    }
    if not file.is_directory():
        info["version"] = file.version
        info["etag"] = f"{file.id:032x}-{file.version:016x}"
    return info


def _range(file: File, start, end):
    """Returns offset and length of a range as fsspec gives it; an inverted one is empty."""
    start = 0 if start is None else start
    end = file.length if end is None else end
    start = max(start + file.length, 0) if start < 0 else start
    end = end + file.length if end < 0 else end
    return start, max(min(end, file.length) - start, 0)
