"""Engines over the filesystem: right answers, and no more bytes over the wire than they ask for."""

import pickle

import duckdb
import fsspec
import numpy
import pandas
import pyarrow
import pyarrow.dataset
import pyarrow.parquet
import pytest

import millrace
from millrace.fs import MillraceFile

ROWS = 400_000


@pytest.fixture(scope="module")
def table():
    random = numpy.random.default_rng(7)
    columns = {name: random.integers(0, 1 << 40, ROWS) for name in "abc"}
    return pyarrow.table(columns)


@pytest.fixture
def parquet(folder, table):
    """The path of a table of three columns in four row groups."""
    pyarrow.parquet.write_table(table, folder / "table.parquet", row_group_size=ROWS // 4)
    return f"{folder.name}/table.parquet"


@pytest.fixture
def remote(node):
    """The filesystem without shared memory, so that the node counts what it sends."""
    return fsspec.filesystem("millrace", address=node.address, local=False)


class Asked:
    """Counts the bytes that an engine asks of open files."""

    def __init__(self, monkeypatch):
        self.count = 0
        read, readinto = MillraceFile.read, MillraceFile.readinto

        def count(length):
            self.count += length

        def counted_read(file, length=-1):
            data = read(file, length)
            count(len(data))
            return data

        def counted_readinto(file, buffer):
            length = readinto(file, buffer)
            count(length)
            return length

        monkeypatch.setattr(MillraceFile, "read", counted_read)
        monkeypatch.setattr(MillraceFile, "readinto", counted_readinto)


@pytest.mark.parametrize("columns", [["a"], ["b", "c"]])
def test_a_column_costs_what_is_asked_for(remote, client, parquet, table, monkeypatch, columns):
    client.load(parquet)
    asked = Asked(monkeypatch)
    before = client.status()
    found = pyarrow.parquet.read_table(parquet, columns=columns, filesystem=remote)
    after = client.status()
    assert found.equals(table.select(columns))
    sent = sum(after[name] - before[name] for name in ("hit_bytes", "miss_bytes"))
    size = client.stat(parquet).length
    assert size * len(columns) / 3 * 0.9 < asked.count < size * 0.9
    assert asked.count <= sent <= 1.05 * asked.count


def test_pyarrow_filters_a_dataset(remote, parquet, table):
    found = pyarrow.dataset.dataset(parquet, filesystem=remote)
    wanted = pyarrow.compute.field("a") < (1 << 38)
    assert found.count_rows() == ROWS
    assert found.to_table(columns=["b"], filter=wanted).equals(table.filter(wanted).select(["b"]))


def test_pandas_reads_and_writes(node, folder, table):
    frame = table.slice(0, 1000).to_pandas()
    for kind in ("csv", "parquet"):
        url = f"millrace://{node.address}/{folder.name}/frame.{kind}"
        write, read = getattr(frame, f"to_{kind}"), getattr(pandas, f"read_{kind}")
        write(url, index=False)
        assert read(url).equals(frame)


def test_duckdb_joins_and_writes(node, folder, parquet, table):
    database = duckdb.connect()
    database.register_filesystem(fsspec.filesystem("millrace", address=node.address))
    query = f"SELECT count(*), sum(a % 1000) FROM 'millrace:///{parquet}' WHERE b > c"
    a, b, c = (table[name].to_numpy() for name in "abc")
    wanted = b > c
    assert database.sql(query).fetchall() == [(wanted.sum(), (a[wanted] % 1000).sum())]
    copied = f"millrace:///{folder.name}/copy.parquet"
    database.sql(f"COPY (SELECT a FROM 'millrace:///{parquet}' LIMIT 1000) TO '{copied}'")
    assert database.sql(f"SELECT count(*) FROM '{copied}'").fetchall() == [(1000,)]
    # Looked up once more, since DuckDB keeps no version of a file that it has closed.
    pyarrow.parquet.write_table(table.slice(0, 10), folder / "table.parquet")
    assert database.sql(f"SELECT count(*) FROM 'millrace:///{parquet}'").fetchall() == [(10,)]


def test_a_file_replaced_in_the_middle_of_a_query_is_an_error(remote, folder, parquet, table):
    opened = pyarrow.parquet.ParquetFile(remote.open(parquet))
    assert opened.read_row_group(0).num_rows == ROWS // 4
    path = folder / "table.parquet"
    content = path.read_bytes()
    changed = content[:1000] + bytes(reversed(content[1000:2000])) + content[2000:]
    path.with_name("new").write_bytes(changed)
    path.with_name("new").replace(path)
    millrace.connect(remote.address).stat(parquet)
    with pytest.raises(OSError, match="has changed"):
        opened.read_row_group(1)


def test_a_dataset_of_pyarrow_pickles(remote, parquet):
    found = pyarrow.dataset.dataset(parquet, filesystem=remote)
    assert pickle.loads(pickle.dumps(found)).count_rows() == ROWS


def test_dask_reads_in_processes(node, folder, table):
    dask = pytest.importorskip("dask.dataframe")
    for index in range(4):
        part = table.slice(index * 1000, 1000)
        pyarrow.parquet.write_table(part, folder / f"{index}.parquet")
    frame = dask.read_parquet(f"millrace://{node.address}/{folder.name}/*.parquet")
    total = frame["a"].sum().compute(scheduler="processes", num_workers=2)
    assert total == table.slice(0, 4000)["a"].to_numpy().sum()
