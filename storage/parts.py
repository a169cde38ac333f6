"""Parts: rows of a shard that whoever made a shard of another dataset had at hand, kept until the shard itself is made.

``<dataset>/<method>/part/<shard>.<source>.<attempt>.parquet``: rows of the shard ``shard``, made with the shard
``source`` of another dataset. A part is published whole and never changed. No commit names it, and no reader of the
dataset sees it: it is a cache, which may be lost or deleted at any time, and what is missing then is made again. Who
commits the shard deletes its parts; what is left behind goes with a collection.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import pyarrow as pa

from storage.damage import DamagedFileError
from storage.root import Root, store_errors
from storage.scan import scan_file

FOLDER = "part"


def part_key(dataset: str, method: str, shard: str, source: str, attempt: str) -> str:
    """Key of a part."""
    return f"{dataset}/{method}/{FOLDER}/{shard}.{source}.{attempt}.parquet"


def parts_of(root: Root, dataset: str, method: str) -> dict[str, list[str]]:
    """Shard to the keys of its parts, from one listing."""
    found: dict[str, list[str]] = {}
    for name in root.hashed_names(f"{dataset}/{method}/{FOLDER}"):
        if name.endswith(".parquet"):
            found.setdefault(name.partition(".")[0], []).append(f"{dataset}/{method}/{FOLDER}/{name}")
    return found


def part_rows(root: Root, keys: Sequence[str], image_ids: Sequence[str]) -> Iterator[pa.Table]:
    """The rows of these images (sorted) in some parts, row group by row group; parts lost or damaged have none."""
    for key in keys:
        try:
            yield from scan_file(root, key, None, image_ids)
        except DamagedFileError:  # or deleted just now, by who committed the shard
            continue


def drop_parts(root: Root, keys: Iterable[str]) -> None:
    """Delete parts of a shard that is committed. Where the store refuses they stay, for a collection."""
    try:
        root.delete_many(list(keys))
    except store_errors():
        return
