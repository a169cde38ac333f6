"""Verification: committed files against what their commits and their upstream say of them."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator

import pyarrow.parquet as pq

from storage.commits import Commit, commit_key, data_key, read_commits
from storage.manifest import manifest_key, read_manifest
from storage.root import Root, StorageError
from storage.runs import RunRecord
from storage.schemas import ONE_GROUP, unit_column
from storage.tables import table_of

_CHUNK = 16 * 1024 * 1024
_UNIT_NAMES = {
    "image_id": ("image", "images"),
    "class_name": ("class", "classes"),
    "name": ("tensor", "tensors"),
    "phase": ("phase", "phases"),
}


def check_dataset(root: Root, record: RunRecord, dataset: str) -> Iterator[str]:
    """What is wrong with a run's dataset, one line each; nothing if all is well.

    Re-reads every file: size, SHA-256, footer, rows of every image, row groups of one image each; then that every
    image of the dataset stands in exactly one shard.
    """
    entry = record.datasets[dataset]
    if entry.manifest is None:
        yield f"{dataset}: not complete; `spp {entry.stage}` goes on with it"
        return
    try:
        manifest = read_manifest(root, dataset, entry.method, entry.manifest)
    except FileNotFoundError:
        yield f"{manifest_key(dataset, entry.method, entry.manifest)}: the file is missing"
        return
    except StorageError as error:
        yield str(error)
        return
    if len(manifest.table) != entry.shards:
        yield f"{dataset}: the manifest has {len(manifest.table)} shards, the run {entry.shards}"
    seen: Counter[str] = Counter()
    for name in manifest.names:
        try:
            (commit,) = read_commits(root, dataset, entry.method, [name])
        except FileNotFoundError:
            yield f"{commit_key(dataset, entry.method, name)}: the file is missing"
            continue
        except StorageError as error:
            yield str(error)
            continue
        seen.update([*commit.images, *(row.image_id for row in commit.failed), *commit.skipped])
        yield from _check_file(root, commit)
    unit, _ = _UNIT_NAMES[unit_column(dataset)]
    yield from (f"{dataset}: {unit} {name!r} stands in {n} shards" for name, n in seen.items() if n > 1)
    if dataset in ("proposals", "features", "windows", "maps"):
        expected = _indexed_images(root, record)
        missing = sorted(expected - seen.keys()) if not entry.partial else ()
        yield from (f"{dataset}: image {image_id!r} is missing" for image_id in missing)
        yield from (f"{dataset}: image {image_id!r} is not in images" for image_id in sorted(seen.keys() - expected))


def _check_file(root: Root, commit: Commit) -> Iterator[str]:
    key = data_key(commit.dataset, commit.method, commit.name)
    try:
        size = root.size(key)
    except FileNotFoundError:
        yield f"{key}: the file is missing"
        return
    if size != commit.bytes:
        yield f"{key}: {size} bytes, its commit says {commit.bytes}"
        return
    if _sha256(root, key) != commit.sha256:
        yield f"{key}: its SHA-256 is not the one in its commit"
        return
    name = unit_column(commit.dataset)
    with root.open(key) as stream, pq.ParquetFile(stream, pre_buffer=False) as parquet:
        rows: Counter[str] = Counter()
        for group in range(parquet.num_row_groups):
            values = parquet.read_row_group(group, columns=[name], use_threads=False)[name].value_counts().to_pylist()
            if len(values) != 1 and commit.dataset not in ONE_GROUP:
                yield f"{key}: row group {group} holds {len(values)} images"
            rows.update({value["values"]: value["counts"] for value in values})
    if dict(rows) != {i: n for i, n in commit.images.items() if n}:
        yield f"{key}: the rows of its {_UNIT_NAMES[name][1]} are not those of its commit"


def _sha256(root: Root, key: str) -> str:
    total = hashlib.sha256()
    with root.open(key) as stream:
        while chunk := stream.read(_CHUNK):
            total.update(chunk)
    return total.hexdigest()


def _indexed_images(root: Root, record: RunRecord) -> set[str]:
    entry = record.datasets["images"]
    assert entry.manifest is not None
    manifest = read_manifest(root, "images", entry.method, entry.manifest)
    ids: set[str] = set()
    for key in manifest.keys:
        ids.update(table_of(root.read(key), ["image_id"])["image_id"].to_pylist())
    return ids
