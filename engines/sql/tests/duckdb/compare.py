"""Compares the answers of TPC-H through a node with DuckDB's over the same files.

Numbers may differ in what comes of a division: one engine has decimals there, the other binary fractions.
"""

import csv
import io
import pathlib
import subprocess
import sys

import duckdb

TABLES = "customer lineitem nation orders part partsupp region supplier".split()
# The most that two numbers may be apart, of their size or as they are.
RELATIVE, ABSOLUTE = 1e-9, 1e-5


def number(cell):
    """Returns a cell as a number, None if it is not one."""
    try:
        return float(cell)
    except (TypeError, ValueError):
        return None


def is_alike(ours, theirs):
    """True if two cells say the same."""
    first, second = number(ours), number(theirs)
    if first is None or second is None:
        return ours == ("" if theirs is None else str(theirs))
    return abs(first - second) <= max(ABSOLUTE, RELATIVE * abs(second))


def key(row):
    """Returns what rows are sorted by, because a query may leave the order of equals open."""
    cells = []
    for cell in row:
        value = number(cell)
        cells.append(("", round(value, 1)) if value is not None else (str(cell), 0.0))
    return cells


def main():
    program, address, data = sys.argv[1:]
    theirs = duckdb.connect()
    create = ""
    for table in TABLES:
        path = pathlib.Path(data) / f"{table}.parquet"
        theirs.execute(f"CREATE VIEW {table} AS SELECT * FROM '{path}'")
        create += f"CREATE EXTERNAL TABLE {table} STORED AS PARQUET LOCATION '{table}.parquet';\n"
    queries = sorted((pathlib.Path(__file__).parent.parent / "tpch").glob("q*.sql"))
    assert len(queries) == 22, queries
    wrong = 0
    for query in queries:
        text = query.read_text()
        command = [program, "--node", address, "-q", "--format", "csv", "-c", create + text]
        output = subprocess.run(command, capture_output=True, text=True)
        assert output.returncode == 0, f"{query.name}: {output.stderr}"
        ours = sorted(list(csv.reader(io.StringIO(output.stdout)))[1:], key=key)
        answer = sorted(theirs.execute(text).fetchall(), key=key)
        same = len(ours) == len(answer) and all(
            len(first) == len(second) and all(map(is_alike, first, second))
            for first, second in zip(ours, answer)
        )
        print(f"{query.stem}: {len(answer)} rows, {'equal' if same else 'DIFFERENT'}")
        if not same:
            wrong += 1
            for first, second in zip(ours, answer):
                if not all(map(is_alike, first, second)):
                    print(f"  millrace {first}\n  duckdb   {second}")
                    break
    sys.exit(wrong > 0)


if __name__ == "__main__":
    main()
