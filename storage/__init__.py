"""What is on disk: schemas, shards, commits, manifests, runs, scans and SQL, on any fsspec URL.

Knows neither Ray nor the method. The layout under one root::

    runs/<name>.json                                         a run: config, versions, datasets, exit status
    <dataset>/<method>/data/<shard>.r<rev>.<attempt>.parquet the rows, no row group of two images
                       commit/<shard>.r<rev>.<attempt>.json  written last; what has none does not exist
                       manifest/<digest>.parquet             the winning commits of one set of shards
                       segment/<id>.parquet                  what some commits say; a cache
                       part/<shard>.<other>.<attempt>.parquet rows of a shard to come, made with another's; a cache
"""

from storage.columns import boxes_of, vectors_of, windows_of
from storage.root import Root, StorageError, open_root
from storage.runs import RunRecord, read_run
from storage.scan import files, open, scan

__all__ = [
    "Root",
    "RunRecord",
    "StorageError",
    "boxes_of",
    "files",
    "open",
    "open_root",
    "read_run",
    "scan",
    "vectors_of",
    "windows_of",
]
