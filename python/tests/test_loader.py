"""Loaders of training samples: four workers, forked or spawned, that read a data set made in their parent."""

import multiprocessing
import random

import pytest

import millrace

SAMPLE = 20_000


class Samples:
    """A data set as torch has it: samples by their index."""

    def __init__(self, address, path):
        self.client = millrace.connect(address)
        self.file = self.client.stat(path)

    def __len__(self):
        return self.file.length // SAMPLE

    def __getitem__(self, index):
        return index, self.client.read(self.file, index * SAMPLE, SAMPLE)


def hold(samples):
    hold.samples = samples


def get(index):
    return hold.samples[index]


def check(pairs, content):
    found = dict(pairs)
    assert len(found) == len(content) // SAMPLE
    assert all(data == content[index * SAMPLE :][:SAMPLE] for index, data in found.items())


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_workers_read_every_sample_and_the_source_is_read_once(client, folder, content, method):
    (folder / "file").write_bytes(content)
    samples = Samples(client.address, f"{folder.name}/file")
    assert samples[3][1] == content[3 * SAMPLE : 4 * SAMPLE]
    before = client.status()["fill_bytes"]
    context = multiprocessing.get_context(method)
    for epoch in range(3):
        order = list(range(len(samples)))
        random.Random(epoch).shuffle(order)
        # As a DataLoader does, each epoch has workers of its own.
        with context.Pool(4, hold, [samples]) as pool:
            check(pool.imap_unordered(get, order, chunksize=8), content)
    assert client.status()["fill_bytes"] - before <= len(content)
    assert samples[5][1] == content[5 * SAMPLE : 6 * SAMPLE]


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_a_data_loader_of_torch_reads_every_sample(client, folder, content, method):
    data = pytest.importorskip("torch.utils.data", reason="pip install torch")
    (folder / "file").write_bytes(content)
    samples = Samples(client.address, f"{folder.name}/file")
    loader = data.DataLoader(
        samples, batch_size=16, shuffle=True, num_workers=4, multiprocessing_context=method, collate_fn=list
    )
    for _ in range(2):
        check([pair for batch in loader for pair in batch], content)
