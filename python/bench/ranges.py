"""Measures one process that reads warm ranges through a node on this machine, beside the same file read locally.

    python python/bench/ranges.py --millrace target/release/millrace --seconds 3

Starts a node over a file in /dev/shm, loads it, and prints for each way GB/s (10^9 bytes) of 1 MiB ranges in order,
samples of 100 KB a second at random offsets, and the processor time that the reading thread takes for one: medians of
rounds that are interleaved, so that the ways share what the machine does meanwhile. The rivals are `os.preadv` into one
buffer and `os.pread`, from page cache. With --s3 URL and the usual AWS_ variables also s3fs on the same bytes.
"""

import argparse
import os
import pathlib
import random
import statistics
import tempfile
import time

import fsspec

from places import MIB, node, write_random

SAMPLE = 100_000


def measure(read, offsets, length, seconds):
    """Returns the ranges a second that `read` has, over and over in this order, and this thread's seconds for each."""
    count = 0
    start, start_of_thread = time.perf_counter(), time.thread_time()
    while True:
        for offset in offsets:
            read(offset, length)
            count += 1
            if count % 16 == 0 and time.perf_counter() - start > seconds:
                of_thread = time.thread_time() - start_of_thread
                return count / (time.perf_counter() - start), of_thread / count


def ways(folder, address, s3):
    """Returns the ways to read, each a function of offset and length by its name."""
    local = os.open(folder / "file", os.O_RDONLY)
    buffer = bytearray(MIB)
    found = {
        "local preadv": lambda offset, length: os.preadv(local, [memoryview(buffer)[:length]], offset),
        "local pread": lambda offset, length: os.pread(local, length, offset),
    }
    for name, settings in [("same machine", {}), ("TCP only", {"local": False})]:
        fs = fsspec.filesystem("millrace", address=address, **settings)
        client, opened = fs.client, fs.open("file")
        file = client.stat("file")

        def read(offset, length, client=client, file=file):
            return client.read(file, offset, length)

        def read_into(offset, length, client=client, file=file):
            return client.read_into(file, offset, memoryview(buffer)[:length])

        def read_opened(offset, length, opened=opened):
            opened.seek(offset)
            return opened.read(length)

        found |= {f"{name}, read_into": read_into, f"{name}, read": read, f"{name}, fsspec": read_opened}
    if s3:
        fs = fsspec.filesystem("s3", client_kwargs={"endpoint_url": os.environ.get("AWS_ENDPOINT_URL")})
        fs.pipe_file(s3, (folder / "file").read_bytes())
        found["s3fs"] = lambda offset, length: fs.cat_file(s3, start=offset, end=offset + length)
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--millrace", required=True, help="the program, built with --release")
    parser.add_argument("--seconds", type=float, default=2, help="of each round of each way")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--mib", type=int, default=256, help="size of the file in MiB")
    parser.add_argument("--s3", help="BUCKET/KEY to read by s3fs as well")
    arguments = parser.parse_args()
    size = arguments.mib * MIB
    with tempfile.TemporaryDirectory(dir="/dev/shm") as scratch:
        folder = pathlib.Path(scratch) / "served"
        folder.mkdir()
        write_random(folder / "file", arguments.mib)
        # As much may be leased as both clients of this process lease together.
        with node(arguments.millrace, folder, f"{4 * arguments.mib}MiB", scratch) as address:
            report(ways(folder, address, arguments.s3), size, arguments)


def report(found, size, arguments):
    in_order = range(0, size, MIB)
    source = random.Random(2)
    at_random = [source.randrange(size - SAMPLE) for _ in range(4096)]
    rates = {name: ([], [], []) for name in found}
    for _ in range(arguments.rounds):
        for name, read in found.items():
            ordered, samples, costs = rates[name]
            ordered.append(measure(read, in_order, MIB, arguments.seconds)[0] * MIB / 1e9)
            rate, cost = measure(read, at_random, SAMPLE, arguments.seconds)
            samples.append(rate)
            costs.append(cost * 1e6)
    print(f"{'':26}{'1 MiB, GB/s':>12}{'100 KB, 1/s':>13}{'CPU of one, us':>16}")
    for name, columns in rates.items():
        ordered, rate, cost = map(statistics.median, columns)
        print(f"{name:26}{ordered:12.2f}{rate:13.0f}{cost:16.1f}")


if __name__ == "__main__":
    main()
