"""Places that hold the same files: a directory, a node that serves it, and an S3 server on this machine."""

import contextlib
import os
import pathlib
import random
import signal
import socket
import subprocess
import sys
import time

import fsspec

import millrace

# Programs of packages that pip installed beside this Python.
os.environ["PATH"] = os.path.dirname(sys.executable) + os.pathsep + os.environ["PATH"]

BUCKET = "bench"
MIB = 1 << 20


class Place:
    """Files under one URL, as engines name them."""

    def __init__(self, name, prefix, options):
        self.name = name
        self.prefix = prefix
        self.options = options

    def url(self, path):
        return f"{self.prefix}/{path}"

    def filesystem(self):
        """Returns the filesystem of fsspec, and the function from a path to its name there."""
        fs, root = fsspec.core.url_to_fs(self.prefix, **self.options)
        return fs, lambda path: f"{root.rstrip('/')}/{path}".lstrip("/" if "millrace" in fs.protocol else "")


@contextlib.contextmanager
def node(program, folder, memory, scratch):
    """Starts a node over a directory, has it load everything, and ends it at last; the value is its address."""
    command = [program, "node", "--source", str(folder), "--listen", "127.0.0.1:0"]
    # Readers on this machine may lease most of it, because there are several of them.
    command += ["--memory", memory, "--lease-percent", "90", "--admin", f"{scratch}/admin"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        address = process.stdout.readline().split()[-1]
        fs = fsspec.filesystem("millrace", address=address)
        for path in fs.find(""):
            fs.client.load(path, deadline=600)
        yield address
    finally:
        process.terminate()
        process.wait()


@contextlib.contextmanager
def s3_server(folder, scratch):
    """Starts SeaweedFS with the files of a directory in a bucket; the value is its URL."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    store = pathlib.Path(scratch) / "weed"
    store.mkdir()
    command = ["weed", "mini", "-ip", "127.0.0.1", "-ip.bind", "127.0.0.1", "-bucket", BUCKET]
    command += ["-dir", str(store), f"-s3.port={port}"]
    key, secret = "bench", "bench-secret"
    environment = {**os.environ, "AWS_ACCESS_KEY_ID": key, "AWS_SECRET_ACCESS_KEY": secret}
    with open(f"{scratch}/weed.log", "wb") as log:
        process = subprocess.Popen(
            command, stdout=log, stderr=log, env=environment, start_new_session=True
        )
    url = f"http://127.0.0.1:{port}"
    try:
        options = {"key": key, "secret": secret, "client_kwargs": {"endpoint_url": url}}
        fs = fsspec.filesystem("s3", **options)
        for attempt in range(100):
            try:
                fs.pipe_file(f"{BUCKET}/ready", b"ready")
                break
            except Exception:
                if attempt == 99 or process.poll() is not None:
                    raise
                time.sleep(0.3)
        for path in pathlib.Path(folder).rglob("*"):
            if path.is_file():
                fs.put_file(str(path), f"{BUCKET}/{path.relative_to(folder)}")
        yield options
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait()


@contextlib.contextmanager
def places(program, folder, memory, scratch, s3):
    """Starts what holds the files of a directory; the value is the places, by their names."""
    with contextlib.ExitStack() as stack:
        address = stack.enter_context(node(program, folder, memory, scratch))
        found = [
            Place("local", f"file://{folder}", {}),
            Place("millrace", f"millrace://{address}", {}),
            Place("millrace, TCP", f"millrace://{address}", {"local": False}),
        ]
        if s3:
            options = stack.enter_context(s3_server(folder, scratch))
            found.append(Place("s3fs", f"s3://{BUCKET}", options))
        yield {place.name: place for place in found}


def write_random(path, mib):
    """Writes a file that nothing compresses."""
    source = random.Random(1)
    with open(path, "wb") as file:
        for _ in range(mib):
            file.write(source.randbytes(MIB))


def counters(place):
    """Returns the bytes that a node has sent over its sockets."""
    address = place.prefix.removeprefix("millrace://")
    status = millrace.connect(address).status()
    return status["hit_bytes"] + status["miss_bytes"]
