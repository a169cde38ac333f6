"""Verification: committed files against what their manifest, their commits and their upstream say of them."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import pyarrow.parquet as pq

from storage.commits import Commit, CommitName, commit_key, data_key, read_commits, winners
from storage.damage import MISSING, DamagedFileError, reading
from storage.manifest import Manifest, manifest_key, read_manifest, rows_of
from storage.root import Root, StorageError
from storage.runs import RunRecord
from storage.scan import check_data_file, read_whole
from storage.schemas import ONE_GROUP, unit_column

_CHUNK = 16 * 1024 * 1024
_TOGETHER = 64
"""Commits that are read at once."""
_UNIT_NAMES = {
    "image_id": ("image", "images"),
    "class_name": ("class", "classes"),
    "name": ("tensor", "tensors"),
    "phase": ("phase", "phases"),
}


class Problem(NamedTuple):
    """What is wrong, in a line, and the files without which the next run makes what is missing then."""

    text: str
    drops: tuple[str, ...] = ()


def check_dataset(root: Root, record: RunRecord, dataset: str) -> Iterator[Problem]:
    """What is wrong with a run's dataset; nothing if all is well.

    Re-reads every file: the manifest against the run's record and the commits; size, SHA-256, footer, rows of every
    image, row groups of one image each; then that every image of the dataset stands in exactly one shard.
    """
    entry = record.datasets[dataset]
    manifest = None
    if entry.manifest is None:
        yield Problem(f"{dataset}: not complete; `spp {entry.stage}` goes on with it")
    else:
        key = manifest_key(dataset, entry.method, entry.manifest)
        try:
            manifest = read_manifest(root, dataset, entry.method, entry.manifest)
        except DamagedFileError as error:
            yield Problem(str(error), (key,))
        except StorageError as error:
            yield Problem(str(error))
            return
    if manifest is None:
        yield from check_shards(root, dataset, entry.method, sorted(winners(root, dataset, entry.method).values()))
        return
    if entry.manifest_sha256 not in ("", manifest.sha256):
        yield Problem(f"{key}: its SHA-256 is not the one in the record of run {record.name!r}", (key,))
    if len(manifest.table) != entry.shards:
        yield Problem(f"{dataset}: the manifest has {len(manifest.table)} shards, the run {entry.shards}")
    seen: Counter[str] = Counter()
    yield from check_shards(root, dataset, entry.method, manifest.names, manifest, seen)
    unit, _ = _UNIT_NAMES[unit_column(dataset)]
    yield from (Problem(f"{dataset}: {unit} {name!r} stands in {n} shards") for name, n in seen.items() if n > 1)
    if dataset in ("proposals", "features", "windows", "maps"):
        expected = _indexed_images(root, record)
        if expected is not None:
            missing = sorted(expected - seen.keys()) if not entry.partial else ()
            yield from (Problem(f"{dataset}: image {image_id!r} is missing") for image_id in missing)
            strange = sorted(seen.keys() - expected)
            yield from (Problem(f"{dataset}: image {image_id!r} is not in images") for image_id in strange)


def check_shards(
    root: Root,
    dataset: str,
    method: str,
    names: Sequence[CommitName],
    manifest: Manifest | None = None,
    seen: Counter[str] | None = None,
) -> Iterator[Problem]:
    """What is wrong with some shards: their commits, their files, and their rows in ``manifest`` if it is given.

    ``seen`` gets the names of what their rows are of.
    """
    stated = {} if manifest is None else {row["shard"]: row for row in manifest.table.to_pylist()}
    for name, found in _commits(root, dataset, method, names):
        files = commit_key(dataset, method, name), data_key(dataset, method, name)
        if isinstance(found, DamagedFileError):
            yield Problem(str(found), files)
            continue
        if isinstance(found, StorageError):  # of a newer version
            yield Problem(str(found))
            continue
        if seen is not None:
            seen.update([*found.images, *(row.image_id for row in found.failed), *found.skipped])
        if manifest is not None and not _is_row_of(found, stated[name.shard], manifest.counts):
            key = manifest_key(dataset, method, manifest.digest)
            yield Problem(f"{key}: its row of shard {name.shard} is not what the commit says", (key,))
        yield from (Problem(text, files) for text in _check_file(root, found))


def _is_row_of(commit: Commit, row: Mapping[str, object], counts: bool) -> bool:
    """Whether a manifest's row is that of a commit; of passes only if the manifest ``counts`` them."""
    (own,) = rows_of([commit]).to_pylist()
    return all(own[name] == value for name, value in row.items() if counts or name != "passes")


def _commits(
    root: Root, dataset: str, method: str, names: Sequence[CommitName]
) -> Iterator[tuple[CommitName, Commit | StorageError]]:
    for start in range(0, len(names), _TOGETHER):
        some = names[start : start + _TOGETHER]
        try:
            yield from zip(some, read_commits(root, dataset, method, some), strict=True)
        except StorageError:
            for name in some:  # which?
                try:
                    yield name, read_commits(root, dataset, method, [name])[0]
                except StorageError as error:
                    yield name, error


def _check_file(root: Root, commit: Commit) -> Iterator[str]:
    key = data_key(commit.dataset, commit.method, commit.name)
    try:
        size = root.size(key)
    except FileNotFoundError:
        yield f"{key}: {MISSING}"
        return
    if size != commit.bytes:
        yield f"{key}: {size} bytes, its commit says {commit.bytes}"
        return
    if _sha256(root, key) != commit.sha256:
        yield f"{key}: its SHA-256 is not the one in its commit"
        return
    try:
        yield from _check_rows(root, key, commit)
    except DamagedFileError as error:
        yield str(error)


def _check_rows(root: Root, key: str, commit: Commit) -> Iterable[str]:
    name = unit_column(commit.dataset)
    problems = []
    rows: Counter[str] = Counter()
    with reading(key), root.open(key) as stream, pq.ParquetFile(stream, pre_buffer=False) as parquet:
        check_data_file(parquet, key, [name])
        for group in range(parquet.num_row_groups):
            values = parquet.read_row_group(group, columns=[name], use_threads=False)[name].value_counts().to_pylist()
            if len(values) != 1 and commit.dataset not in ONE_GROUP:
                problems.append(f"{key}: row group {group} holds {len(values)} images")
            rows.update({value["values"]: value["counts"] for value in values})
    if dict(rows) != {i: n for i, n in commit.images.items() if n}:
        problems.append(f"{key}: the rows of its {_UNIT_NAMES[name][1]} are not those of its commit")
    return problems


def _sha256(root: Root, key: str) -> str:
    total = hashlib.sha256()
    with root.open(key) as stream:
        while chunk := stream.read(_CHUNK):
            total.update(chunk)
    return total.hexdigest()


def _indexed_images(root: Root, record: RunRecord) -> set[str] | None:
    """The ids of the index; None if that is damaged itself, which the check of ``images`` tells."""
    entry = record.datasets.get("images")
    if entry is None or entry.manifest is None:
        return None
    try:
        manifest = read_manifest(root, "images", entry.method, entry.manifest)
        return {i for table in read_whole(root, manifest, ["image_id"]) for i in table["image_id"].to_pylist()}
    except DamagedFileError:
        return None
