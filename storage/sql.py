"""SQL over a run: a DuckDB connection with one view per complete dataset."""

from __future__ import annotations

import glob

import duckdb

from storage.columns import no_rows
from storage.manifest import read_manifest
from storage.root import Root, StorageError
from storage.runs import read_run
from storage.schemas import schema


def connect(root: Root, run: str | None = None) -> duckdb.DuckDBPyConnection:
    """A DuckDB connection whose views are the run's datasets.

    DuckDB reads the files itself; float16 vectors come as FLOAT[]. Of a store of conv maps, ``features`` has every
    column but ``feature``. StorageError if the run has no dataset yet.
    """
    record = read_run(root, run)
    connection = duckdb.connect()
    if not root.is_local:
        connection.register_filesystem(root.fs)
    found = False
    for dataset, entry in record.datasets.items():
        if entry.manifest is None:
            continue
        found = True
        keys = read_manifest(root, dataset, entry.method, entry.manifest).keys
        if not keys:
            connection.register(dataset, no_rows(schema(dataset)))
            continue
        paths = ", ".join("'" + _pattern(root, key).replace("'", "''") + "'" for key in keys)
        connection.execute(f"create view {dataset} as select * from read_parquet([{paths}])")
    names = {row[0] for row in connection.execute("select view_name from duckdb_views() where not internal").fetchall()}
    if "windows" in names and "features" not in names:
        connection.execute("create view features as select * from windows")
    if not found:
        raise StorageError(f"run {record.name!r} has no complete dataset yet; `spp run` makes them")
    return connection


def _pattern(root: Root, key: str) -> str:
    """What DuckDB finds ``key`` by. It takes a path that does not lie on this machine for a pattern."""
    return root.url_of(key) if root.is_local else glob.escape(root.url_of(key))
