"""Manifests: the winning commits of one set of shards, folded into one immutable table.

Its digest is that of the (shard, revision) pairs, so the same content has the same digest on every root.
"""

from __future__ import annotations

import bisect
import io
import json
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import ValidationError

from storage.commits import Commit, CommitName, LedgerRow, commit_key, read_commits
from storage.damage import DamagedFileError, read_file, reading
from storage.identity import METHOD_LENGTH, digest, sha256
from storage.root import Root
from storage.runs import RunRecord, dataset_record
from storage.schemas import VERSION_KEY, check_version
from storage.segments import names_its_data, read_segments
from storage.tables import is_as_sealed, sealed, table_of, without_seal

MANIFEST_VERSION = 2
"""Written into every manifest; the first version did not count passes of the body."""

_SCHEMA = pa.schema(
    [
        ("shard", pa.string()),
        ("revision", pa.int32()),
        ("attempt", pa.string()),
        ("data", pa.string()),
        ("rows", pa.int64()),
        ("bytes", pa.int64()),
        ("sha256", pa.string()),
        ("images", pa.int32()),
        ("first_image", pa.string()),
        ("last_image", pa.string()),
        ("failed", pa.int32()),
        ("ledger", pa.string()),
        ("seconds", pa.string()),
        ("passes", pa.int64()),
    ],
    metadata={VERSION_KEY: str(MANIFEST_VERSION)},
)
_LAYOUTS = {
    "1": _SCHEMA.remove(len(_SCHEMA) - 1).with_metadata({VERSION_KEY: "1"}),
    str(MANIFEST_VERSION): _SCHEMA,
}

LEDGER_KEYS = frozenset({"image_id", "stage", "type", "message", "level"})
"""What every ledger row says, of any version."""


@dataclass(frozen=True)
class DataFile:
    """A data file of a manifest: its shard, its key under the root, and the first and last of its image ids."""

    shard: str
    key: str
    first: str
    last: str

    def may_hold(self, image_ids: Sequence[str]) -> bool:
        """Whether one of ``image_ids`` (sorted) lies between its first and last."""
        place = bisect.bisect_left(image_ids, self.first)
        return place < len(image_ids) and image_ids[place] <= self.last


@dataclass(frozen=True)
class Manifest:
    """The committed files of one dataset and method, in the order of their images.

    ``table`` has one row per shard: its commit's name, data key (relative to the method's folder), rows, bytes,
    SHA-256, number of images, first and last image id, as JSON its ledger and its seconds by phase, and passes of the
    body. ``sha256`` is of its own file; none if it is in memory only. ``counts``: its file says how many passes there
    were; else they are 0.
    """

    dataset: str
    method: str
    digest: str
    table: pa.Table
    sha256: str = ""
    counts: bool = True

    @property
    def rows(self) -> int:
        """Rows of all files."""
        return _total(self.table, "rows")

    @property
    def bytes(self) -> int:
        """Bytes of all files."""
        return _total(self.table, "bytes")

    @property
    def images(self) -> int:
        """Images with a result, those without rows included, failed ones not."""
        return _total(self.table, "images")

    @property
    def keys(self) -> list[str]:
        """Keys of the data files under the root."""
        return [f"{self.dataset}/{self.method}/{data}" for data in self.table["data"].to_pylist()]

    @cached_property
    def files(self) -> list[DataFile]:
        """Its data files, in the order of their images."""
        columns = self.table.select(["shard", "first_image", "last_image"]).to_pydict()
        shards, first, last = columns.values()
        return [DataFile(*row) for row in zip(shards, self.keys, first, last, strict=True)]

    def files_of(self, image_ids: Collection[str]) -> list[DataFile]:
        """Those of ``files`` that may hold some of these images."""
        wanted = sorted(image_ids)
        return [file for file in self.files if file.may_hold(wanted)]

    @property
    def names(self) -> list[CommitName]:
        """The commits that it stands for."""
        return [CommitName(*row.values()) for row in self.table.select(["shard", "revision", "attempt"]).to_pylist()]

    @cached_property
    def ledger(self) -> list[LedgerRow]:
        """Every ledger row. DamagedFileError if one is damaged."""
        try:
            return [LedgerRow.model_validate(row) for rows in self.ledgers() for row in rows]
        except ValidationError as error:
            raise self._damaged_ledger() from error

    def ledgers(self) -> Iterator[list[dict[str, str]]]:
        """The ledger rows of one shard after another, of those that have some: the values of ``LedgerRow`` by name.

        All rows of an image are in one of them. DamagedFileError if one is damaged.
        """
        for text in self.table["ledger"].to_pylist():
            if text == "[]":
                continue
            try:
                rows = json.loads(text)
                whole = all(row.keys() >= LEDGER_KEYS for row in rows)
            except (ValueError, TypeError, AttributeError) as error:  # no JSON, or JSON of something else
                raise self._damaged_ledger() from error
            if not whole:
                raise self._damaged_ledger()
            yield rows

    def _damaged_ledger(self) -> DamagedFileError:
        return DamagedFileError(manifest_key(self.dataset, self.method, self.digest), "its ledger is no list of notes")

    @property
    def failed(self) -> int:
        """Images that failed."""
        return _total(self.table, "failed")

    @property
    def seconds(self) -> dict[str, float]:
        """Seconds by phase, over all shards."""
        total: dict[str, float] = {}
        try:
            for text in self.table["seconds"].to_pylist():
                for phase, value in json.loads(text).items():
                    total[phase] = round(total.get(phase, 0.0) + value, 4)
        except (ValueError, TypeError, AttributeError) as error:  # no JSON, or JSON of something else
            key = manifest_key(self.dataset, self.method, self.digest)
            raise DamagedFileError(key, "its seconds are no numbers by phase") from error
        return total

    @property
    def passes(self) -> int:
        """How often an image passed the body, over all shards."""
        return _total(self.table, "passes")


def manifest_digest(names: Iterable[CommitName]) -> str:
    """Digest of the winning shards and revisions."""
    return digest(*(f"{name.shard}.r{name.revision}".encode() for name in sorted(names)))[:METHOD_LENGTH]


def fold(root: Root, dataset: str, method: str, names: Sequence[CommitName]) -> Manifest:
    """The manifest of the commits ``names``, read from its file or made and published.

    One that names a commit which is there no more is made anew: that of a damaged shard was removed to have it redone.
    DamagedFileError if its file, or a commit, is damaged.
    """
    ident = manifest_digest(names)
    key = manifest_key(dataset, method, ident)
    if root.exists(key):
        manifest = read_manifest(root, dataset, method, ident)
        if all(root.exists(commit_key(dataset, method, name)) for name in set(manifest.names) - set(names)):
            return manifest
    manifest = in_memory(root, dataset, method, names)
    buffer = io.BytesIO()
    pq.write_table(sealed(manifest.table, dataset, method), buffer, compression="zstd", write_page_checksum=True)
    data = buffer.getvalue()
    root.write(key, data)
    return replace(manifest, sha256=sha256(data))


def in_memory(root: Root, dataset: str, method: str, names: Sequence[CommitName]) -> Manifest:
    """The same, without publishing it: a view of shards that are not all there yet."""
    known = read_segments(root, dataset, method, _SCHEMA, [name.stem for name in names])
    there = {CommitName(*row.values()) for row in known.select(["shard", "revision", "attempt"]).to_pylist()}
    others = rows_of(read_commits(root, dataset, method, [name for name in names if name not in there]))
    table = pa.concat_tables([known, others]).sort_by([("first_image", "ascending"), ("shard", "ascending")])
    return Manifest(dataset, method, manifest_digest(names), table.combine_chunks())


def rows_of(commits: Iterable[Commit]) -> pa.Table:
    """The rows of a manifest for these commits."""
    return pa.Table.from_pylist([_row(commit) for commit in commits], schema=_SCHEMA)


def recorded_manifest(root: Root, record: RunRecord, dataset: str) -> Manifest:
    """The manifest of a complete dataset of a run. StorageError, naming the verb that makes it, if it is not."""
    entry = dataset_record(record, dataset)
    assert entry.manifest is not None
    return read_manifest(root, dataset, entry.method, entry.manifest)


def read_manifest(root: Root, dataset: str, method: str, ident: str) -> Manifest:
    """A published manifest.

    Raises StorageError if its version is newer, DamagedFileError if it is missing, is no manifest, is that of another
    dataset, or is not as it was sealed. (Version 0.1.0 sealed none; ``storage.check`` compares those with the commits.)
    """
    key = manifest_key(dataset, method, ident)
    data = read_file(root, key)
    with reading(key):
        table = table_of(data)
    version = (table.schema.metadata or {}).get(VERSION_KEY.encode())
    if version is not None:
        check_version(version.decode("ascii", "replace"), key, MANIFEST_VERSION)
    layout = _LAYOUTS.get((version or b"").decode("ascii", "replace"))
    if layout is None or not without_seal(table).schema.equals(layout, True):
        raise DamagedFileError(key, "it is no manifest")
    with reading(key):
        table.validate(full=True)  # version 0.1.0 wrote no checksums: texts may be none
    if is_as_sealed(table, dataset, method) is False:
        raise DamagedFileError(key, "its rows are not those that its digest is of")
    rows = without_seal(table)
    if layout is not _SCHEMA:
        rows = rows.append_column(_SCHEMA.field("passes"), _zeros(len(rows)))
    found = Manifest(
        dataset, method, ident, rows.replace_schema_metadata(_SCHEMA.metadata), sha256(data), layout is _SCHEMA
    )
    _check(found, key)
    return found


def _check(manifest: Manifest, key: str) -> None:
    """DamagedFileError unless a manifest's rows have the form that they are given, and those commits its digest."""
    right = names_its_data(manifest.table)
    if not all(right):
        named = str(manifest.table["data"][right.index(False)].as_py())[:120]
        raise DamagedFileError(key, f"{named!r} is no name of a data file")
    if any(column.null_count for column in manifest.table.columns):
        raise DamagedFileError(key, "a value is missing in it")
    if manifest_digest(manifest.names) != manifest.digest:
        raise DamagedFileError(key, "it is that of other shards")


def manifest_key(dataset: str, method: str, ident: str) -> str:
    """Key of a manifest."""
    return f"{dataset}/{method}/manifest/{ident}.parquet"


def _row(commit: Commit) -> dict[str, object]:
    ids = _ids(commit)
    return {
        "shard": commit.shard,
        "revision": commit.revision,
        "attempt": commit.attempt,
        "data": commit.name.data,
        "rows": commit.rows,
        "bytes": commit.bytes,
        "sha256": commit.sha256,
        "images": len(commit.images),
        "first_image": min(ids, default=""),
        "last_image": max(ids, default=""),
        "failed": len(commit.failed),
        "ledger": json.dumps([row.model_dump() for row in commit.ledger]),
        "seconds": json.dumps(commit.seconds),
        "passes": commit.passes,
    }


def _zeros(count: int) -> pa.Array:
    """So many times 0, without pandas (see ``storage.columns.no_rows``)."""
    return pa.Array.from_buffers(pa.int64(), count, [None, pa.py_buffer(bytes(8 * count))])


def _ids(commit: Commit) -> list[str]:
    return [*commit.images, *(row.image_id for row in commit.ledger), *commit.skipped]


def _total(table: pa.Table, column: str) -> int:
    return sum(table[column].to_pylist())
