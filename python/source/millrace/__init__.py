"""Reads files of slow stores through the distributed block cache Millrace.

>>> import millrace
>>> client = millrace.connect("127.0.0.1:7070")
>>> file = client.stat("datasets/train.bin")
>>> head = client.read(file, 0, 4096)

A :class:`File` is one version of a file, and bytes of two versions never mix: once the file has changed,
a read of the old version raises :class:`StaleError`. Other errors are those of Python's own files:
FileNotFoundError, PermissionError, TimeoutError, ConnectionError. :class:`AsyncClient` has the same methods
for asyncio, ``millrace.fs`` has a filesystem for fsspec, and ``millrace.safetensors`` reads tensors.
"""

from typing import Any

from ._millrace import Client, File, LoadReport, StaleError, Upload
from .asynchronous import AsyncClient, aconnect

__all__ = ["AsyncClient", "Client", "File", "LoadReport", "StaleError", "Upload", "aconnect", "connect"]


def connect(address: str = "127.0.0.1:7070", **settings: Any) -> Client:
    """Returns a client that is connected to a node, or to a cluster.

    ``address`` is ``host:port``, several of them behind commas, ``unix:PATH``, or
    ``zk://host:port/path``, where the nodes of a cluster register; ``millrace://host:port`` and
    ``millrace+zk://host:port/path`` mean the same. The settings are those of :class:`Client`, which
    connects when it is first used instead.

    Raises ConnectionError if the node cannot be reached, and ValueError for an address or a setting that
    cannot work.
    """
    client = Client(address, **settings)
    client.ping()
    return client
