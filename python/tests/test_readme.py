"""The examples of README.md, run as they are printed."""

import pathlib
import re

import numpy
import pandas
import pytest
from safetensors.numpy import save_file

README = pathlib.Path(__file__).resolve().parents[1] / "README.md"
BLOCKS = re.findall(r"## ([^\n]+)\n(?:(?!\n## ).)*?```python\n(.*?)```", README.read_text(), re.DOTALL)
# Names of an example whose values are checked, as they are for the frame below.
RESULTS = {
    "From plain Python": {"magic": b"PAR1", "head": b"PAR1", "tail": b"PAR1", "count": 1024},
    "DuckDB": {"total": [(499_500,)]},
    "Dask": {"total": 499_500},
    "pyarrow": {"rows": 1000},
    "asyncio": {"head": b"PAR1", "tail": b"PAR1"},
    "Ray": {"total": 499_500},
    "Training samples": {"first": b"x,y\n0,0.0\n1,0.14285714285714285\n2,0.2857142857142857\n"},
}


@pytest.fixture(scope="module")
def served(node):
    datasets = node.folder / "datasets"
    datasets.mkdir()
    frame = pandas.DataFrame({"x": numpy.arange(1000), "y": numpy.arange(1000) / 7})
    frame.to_parquet(datasets / "points.parquet")
    frame.to_csv(datasets / "points.csv", index=False)
    (node.folder / "models").mkdir()
    save_file({"x": numpy.arange(10)}, node.folder / "models" / "small.safetensors")
    return node


def test_each_engine_has_an_example():
    assert [title for title, _ in BLOCKS]== [
        "From plain Python",
        "asyncio",
        "pandas",
        "pyarrow",
        "DuckDB",
        "Polars",
        "Dask",
        "Ray",
        "Training samples",
        "Tensors",
    ]


@pytest.mark.parametrize("title, code", BLOCKS, ids=[title for title, _ in BLOCKS])
def test_an_example_runs(served, title, code):
    for module in re.findall(r"^import (\w+)", code, re.MULTILINE):
        pytest.importorskip(module)
    names = {}
    exec(code.replace("node1:7070", served.address), names)
    if "ray" in names:
        names["ray"].shutdown()
    for name, value in RESULTS.get(title, {}).items():
        found = names[name][: len(value)] if isinstance(value, bytes) else names[name]
        assert found == value
