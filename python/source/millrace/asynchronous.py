"""The client for asyncio: the methods of ``millrace.Client`` as coroutines.

The event loop never waits for a node: requests run on the client's own thread, and each answer comes to the
loop that asked. A task that is cancelled drops its request. There is no ``read_into``, because a read that
was cancelled might still write into the caller's buffer.
"""

import asyncio
import builtins
from collections.abc import Sequence
from typing import Any, Literal, overload

from ._millrace import Client, File, LoadReport, Requests

__all__ = ["AsyncClient", "aconnect"]


class AsyncClient:
    """A client of a node or of a cluster for asyncio; address and settings are those of :class:`Client`.

    It may be used by several event loops, may be pickled, and goes on in a child of ``fork``.
    """

    def __init__(self, address: str, **settings: Any) -> None:
        self._client = Client(address, **settings)
        self._requests = Requests(self._client)

    @property
    def address(self) -> str:
        """Returns the address that the client was made with."""
        return self._client.address

    @property
    def settings(self) -> dict[str, Any]:
        """Returns the settings that the client was made with."""
        return self._client.settings

    def __repr__(self) -> str:
        return f"<millrace.AsyncClient of {self.address}>"

    def __reduce__(self) -> Any:
        return _again, (self.address, self.settings)

    async def ping(self) -> float:
        """Returns the seconds that a message to the node and back takes; it connects if need be."""
        return await self._requests.ping()

    async def stat(self, path: str) -> File:
        """Looks a path up. Raises FileNotFoundError."""
        return await self._requests.stat(path)

    async def list(self, path: str) -> builtins.list[File]:
        """Lists a directory. The files can be read without looking them up again."""
        return await self._requests.list(path)

    async def read(self, file: File | str, offset: int = 0, length: int | None = None) -> bytes:
        """Returns ``length`` bytes from ``offset`` on, fewer where the file ends, or all that follow.

        A path is looked up first. Raises StaleError if the file has changed since it was looked up.
        """
        return await self._requests.read(await self._found(file), offset, length)

    @overload
    async def read_many(
        self, ranges: Sequence[tuple[File | str, int, int]], return_errors: Literal[False] = False
    ) -> builtins.list[bytes]: ...
    @overload
    async def read_many(
        self, ranges: Sequence[tuple[File | str, int, int]], return_errors: bool
    ) -> builtins.list[bytes | Exception]: ...
    async def read_many(self, ranges: Any, return_errors: bool = False) -> Any:
        """Returns the bytes of many ranges (file, offset, length) in their order, which are asked for at once.

        With ``return_errors`` a range that fails has its exception in the list; else the first one is raised.
        """
        ranges = [tuple(each) for each in ranges]
        paths = dict.fromkeys(file for file, _, _ in ranges if isinstance(file, str))
        looked_up = await asyncio.gather(*map(self._found, paths), return_exceptions=True)
        found = dict(zip(paths, looked_up))
        files = [found.get(file, file) if isinstance(file, str) else file for file, _, _ in ranges]
        results: builtins.list[Any] = [file if isinstance(file, BaseException) else None for file in files]
        places = [index for index, result in enumerate(results) if result is None]
        wanted = [(files[index], *ranges[index][1:]) for index in places]
        if return_errors or len(wanted) == len(ranges):
            for index, answer in zip(places, await self._requests.read_many(wanted)):
                results[index] = answer
        for result in results:
            if isinstance(result, BaseException) and not (return_errors and isinstance(result, Exception)):
                raise result
        return results

    async def load(self, path: str, deadline: float | None = None) -> LoadReport:
        """Brings a whole file into the cache; ``deadline`` is the seconds it may take, for a large one."""
        return await self._requests.load(path, deadline)

    async def put(
        self, path: str, data: Any, *, if_absent: bool = False, if_version: int | None = None
    ) -> File:
        """Writes a file as a whole and returns it.

        Raises FileExistsError or StaleError where the condition does not hold. If it is cancelled, the file is
        as it was or as it was to be.
        """
        data = data if isinstance(data, bytes) else bytes(data)
        return await self._requests.put(path, data, if_absent, if_version)

    async def delete(self, path: str, *, if_version: int | None = None) -> None:
        """Deletes a file from its source."""
        await self._requests.delete(path, if_version)

    async def rename(self, path: str, to: str, *, if_absent: bool = False) -> File:
        """Gives a file another path of the same mount, and replaces what is there unless ``if_absent``."""
        return await self._requests.rename(path, to, if_absent)

    async def status(self) -> dict[str, int]:
        """Returns the counters of the node; names carry their unit."""
        return await self._requests.status()

    async def _found(self, file: File | str) -> File:
        return await self.stat(file) if isinstance(file, str) else file


def _again(address: str, settings: dict[str, Any]) -> AsyncClient:
    return AsyncClient(address, **settings)


async def aconnect(address: str = "127.0.0.1:7070", **settings: Any) -> AsyncClient:
    """Returns a client for asyncio that is connected; address, settings and errors are those of ``connect``."""
    client = AsyncClient(address, **settings)
    await client.ping()
    return client
