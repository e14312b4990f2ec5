"""Engines of many processes over a cluster, one of whose nodes is killed and one added: right answers, no cold start."""

import fsspec
import numpy
import pyarrow
import pyarrow.parquet
import pytest

from conftest import replicated

FILES = 8
ROWS = 100_000


@pytest.fixture(scope="module")
def tables():
    random = numpy.random.default_rng(11)
    columns = [{name: random.integers(0, 1 << 40, ROWS) for name in "ab"} for _ in range(FILES)]
    return [pyarrow.table(each) for each in columns]


@pytest.fixture
def cluster(tmp_path, tables):
    def fill(served):
        for index, table in enumerate(tables):
            pyarrow.parquet.write_table(table, served / f"{index}.parquet", row_group_size=ROWS // 4)

    with replicated(tmp_path, fill) as cluster:
        yield cluster


def check_through_changes(cluster, total, expect):
    """Has an engine read everything before and after a node is killed and one is added."""
    before = cluster.counters("fill_bytes")
    assert total() == expect
    # Once while the others have not noticed yet.
    cluster.kill("node-2")
    assert total() == expect
    assert total() == expect
    cluster.add_one()
    assert total() == expect
    # Four times all of two columns of eight bytes.
    moved = 4 * FILES * ROWS * 16
    assert cluster.filled(before) <= 0.02 * moved


def test_dask_distributed_reads_through_changes(cluster, tables):
    distributed = pytest.importorskip("distributed", reason="pip install 'dask[dataframe,distributed]'")
    dataframe = pytest.importorskip("dask.dataframe", reason="pip install 'dask[dataframe,distributed]'")
    expect = sum(table["a"].to_numpy().sum() for table in tables)
    nodes = ",".join(cluster.nodes.values())
    with (
        distributed.LocalCluster(n_workers=4, threads_per_worker=1, dashboard_address=None) as workers,
        distributed.Client(workers),
    ):

        def total():
            frame = dataframe.read_parquet(f"millrace://{nodes}/*.parquet")
            return frame["a"].sum().compute()

        check_through_changes(cluster, total, expect)


def test_ray_data_reads_through_changes(cluster, tables, tmp_path):
    ray = pytest.importorskip("ray", reason="pip install 'ray[data]'")
    pytest.importorskip("ray.data", reason="pip install 'ray[data]'")
    expect = sum(int(table["a"].to_numpy().sum()) for table in tables)
    fs = fsspec.filesystem("millrace", address=cluster.coordination)
    paths = fs.glob("*.parquet")
    ray.init(
        num_cpus=4,
        include_dashboard=False,
        object_store_memory=100 << 20,
        logging_level="error",
        configure_logging=False,
    )
    try:
        ray.data.DataContext.get_current().enable_progress_bars = False

        def total():
            return ray.data.read_parquet(paths, filesystem=fs).sum("a")

        check_through_changes(cluster, total, expect)
    finally:
        ray.shutdown()
