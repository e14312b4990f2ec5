"""asyncio: the bytes of the client, a loop that goes on meanwhile, and requests that end with their task."""

import asyncio
import multiprocessing
import pickle
import subprocess
import sys
import time

import fsspec
import pytest
from fsspec.implementations.asyn_wrapper import AsyncFileSystemWrapper

import millrace


def test_coroutines_are_the_methods_of_the_client(node, folder, content):
    (folder / "file").write_bytes(content)
    path = f"{folder.name}/file"

    async def main():
        client = await millrace.aconnect(node.address)
        file = await client.stat(path)
        assert await client.read(file) == await client.read(path) == content
        assert await client.read(file, len(content) - 3, 100) == content[-3:]
        assert await client.read(file, len(content) + 3) == b""
        assert [each.name for each in await client.list(folder.name)] == ["file"]
        ranges = [(file, at, 1000) for at in range(0, len(content), 50_000)]
        ranges[3] = (path, 150_000, 1000)
        assert await client.read_many(ranges) == [content[at : at + 1000] for _, at, _ in ranges]
        assert (await client.load(path, deadline=20)).file == file
        written = await client.put(f"{folder.name}/new", bytearray(b"new"), if_absent=True)
        moved = await client.rename(written.path, f"{folder.name}/moved")
        assert await client.read(moved) == b"new"
        await client.delete(moved.path, if_version=moved.version)
        assert (await client.status())["request_count"] > 0
        assert await client.ping() > 0

    asyncio.run(main())


def test_errors_of_coroutines_are_those_of_python(node, folder, content):
    (folder / "file").write_bytes(content)
    path = f"{folder.name}/file"

    async def main():
        client = millrace.AsyncClient(node.address)
        with pytest.raises(FileNotFoundError):
            await client.stat(f"{folder.name}/missing")
        with pytest.raises(IsADirectoryError):
            await client.read(folder.name)
        with pytest.raises(NotADirectoryError):
            await client.list(path)
        with pytest.raises(FileExistsError):
            await client.put(path, b"x", if_absent=True)
        ranges = [(path, 0, 4), (f"{folder.name}/missing", 0, 4), (path, 4, 4)]
        first, second, third = await client.read_many(ranges, return_errors=True)
        assert (first, third) == (content[:4], content[4:8])
        assert isinstance(second, FileNotFoundError)
        with pytest.raises(FileNotFoundError):
            await client.read_many(ranges)
        file = await client.stat(path)
        (folder / "new").write_bytes(bytes(len(content)))
        (folder / "new").replace(folder / "file")
        await client.stat(path)
        with pytest.raises(millrace.StaleError, match="has changed"):
            await client.read(file)
        with pytest.raises(ConnectionRefusedError):
            await millrace.aconnect("127.0.0.1:1")
        with pytest.raises(ValueError, match="read_length_max"):
            await millrace.AsyncClient(node.address, read_length_max=10).read(path)

    asyncio.run(main())


@pytest.mark.parametrize("local", [True, False])
def test_many_reads_at_once_are_all_right(node, folder, content, local):
    (folder / "file").write_bytes(content)

    async def main():
        # The first of them connects, and the others wait for it.
        client = millrace.AsyncClient(node.address, local=local)
        file = await client.stat(f"{folder.name}/file")
        offsets = [step * 104_729 % len(content) for step in range(2000)]
        parts = await asyncio.gather(*[client.read(file, at, 5000) for at in offsets])
        assert parts == [content[at : at + 5000] for at in offsets]

    asyncio.run(main())


def test_the_loop_goes_on_while_a_node_is_silent(node, folder):
    (folder / "file").write_bytes(b"x")

    async def main():
        client = await millrace.aconnect(node.address, deadline=60)
        with node.paused():
            request = asyncio.create_task(client.stat(f"{folder.name}/file"))
            for _ in range(10):
                await asyncio.sleep(0.01)
            assert not request.done()
        assert (await request).length == 1

    asyncio.run(main())


def test_a_cancelled_task_drops_its_request(node, folder, content):
    (folder / "file").write_bytes(content)

    async def main():
        # One request may be in flight beside the client's own question for news, so others wait to be sent.
        client = await millrace.aconnect(
            node.address, deadline=60, attempt_timeout=50, local=False, requests_in_flight_max=2
        )
        file = await client.stat(f"{folder.name}/file")
        before = (await client.status())["request_count"]
        with node.paused():
            for _ in range(20):
                with pytest.raises(asyncio.TimeoutError):
                    await asyncio.wait_for(client.read(file, 0, 100_000), 0.02)
            request = asyncio.create_task(client.read_many([(file, 0, 10), (file, 10, 10)]))
            await asyncio.sleep(0.02)
            request.cancel()
            with pytest.raises(asyncio.CancelledError):
                await request
            tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
            assert tasks == []
        assert await client.read(file, 5, 100) == content[5:105]
        # What was on its way is answered, and what waited is never sent: 22 requests were cancelled.
        assert (await client.status())["request_count"] - before < 10

    asyncio.run(main())


def test_a_loop_that_ends_early_harms_nothing(node, folder, content):
    (folder / "file").write_bytes(content)

    async def begin(client, file):
        # Nothing waits for this read when the loop ends.
        client._requests.read(file, 0, None)

    client = millrace.AsyncClient(node.address)
    file = asyncio.run(client.stat(f"{folder.name}/file"))
    for _ in range(20):
        asyncio.run(begin(client, file))
    time.sleep(0.05)
    assert asyncio.run(client.read(file)) == content


def test_an_interpreter_that_ends_between_answers_ends_well(node, folder, content):
    (folder / "file").write_bytes(content[:1000])
    script = f"""
import asyncio, millrace

async def main():
    client = await millrace.aconnect({node.address!r})
    file = await client.stat("{folder.name}/file")
    for _ in range(200):
        client._requests.read(file, 0, None)

asyncio.new_event_loop().run_until_complete(main())
"""
    # Without an order for the end, one in eight of them crashed.
    children = [subprocess.Popen([sys.executable, "-c", script], stderr=subprocess.PIPE) for _ in range(40)]
    errors = [child.communicate()[1] for child in children]
    assert [child.returncode for child in children] == [0] * 40, errors


def read_in_a_child(client, file):
    return asyncio.run(client.read(file, 7, 5000))


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_a_client_goes_on_in_another_process(node, folder, content, method):
    (folder / "file").write_bytes(content)
    client = millrace.AsyncClient(node.address, deadline=20)
    file = asyncio.run(client.stat(f"{folder.name}/file"))
    with multiprocessing.get_context(method).Pool(2) as pool:
        found = pool.starmap(read_in_a_child, [(client, file)] * 4)
    assert found == [content[7:5007]] * 4
    again = pickle.loads(pickle.dumps(client))
    assert (again.address, again.settings) == (client.address, {"deadline": 20})


def test_the_filesystem_serves_fsspec_of_asyncio_through_its_wrapper(node, folder, content):
    (folder / "file").write_bytes(content)
    path = f"{folder.name}/file"

    async def main():
        fs = AsyncFileSystemWrapper(fsspec.filesystem("millrace", address=node.address), asynchronous=True)
        assert (await fs._info(path))["size"] == len(content)
        assert await fs._cat_ranges([path] * 3, [0, 5, 10], [5, 10, 11]) == [
            content[:5],
            content[5:10],
            content[10:11],
        ]

    asyncio.run(main())
