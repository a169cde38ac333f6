"""Reading: a pyarrow dataset of the committed files, and a scan that goes row group by row group.

pyarrow's own scanner reads ahead by tens of row groups; ``scan`` holds one, so memory is flat however large the dataset
(benchmarks/scan.py).
"""

from __future__ import annotations

import bisect
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from storage.columns import no_rows
from storage.damage import DamagedFileError, read_files, reading
from storage.identity import sha256
from storage.manifest import Manifest, read_manifest
from storage.root import Root, open_root
from storage.runs import dataset_record, read_run
from storage.schemas import DATASET_KEY, METHOD_KEY, SHARD_KEY, VERSION_KEY, check_version, schema
from storage.tables import table_of

if TYPE_CHECKING:
    import pyarrow.dataset as ds

_TOGETHER = 64
"""Small files that are fetched at once."""


def manifest_of(root: Root | str, dataset: str, run: str | None = None) -> Manifest:
    """The manifest of a complete dataset of a run (of the only run if None)."""
    root = _root(root)
    record = dataset_record(read_run(root, run), dataset)
    assert record.manifest is not None
    return read_manifest(root, dataset, record.method, record.manifest)


def files(root: Root | str, dataset: str, run: str | None = None) -> list[str]:
    """Paths (URLs on a remote root) of the committed Parquet files, for any other tool."""
    root = _root(root)
    return [root.url_of(key) for key in manifest_of(root, dataset, run).keys]


def open(root: Root | str, dataset: str, run: str | None = None) -> ds.Dataset:
    """A ``pyarrow.dataset.Dataset`` of the committed files of a run's dataset."""
    import pyarrow.dataset as ds  # half a second, for it brings in pandas

    root = _root(root)
    paths = [root.path(key) for key in manifest_of(root, dataset, run).keys]
    if not paths:
        return ds.dataset(no_rows(schema(dataset)))
    return ds.dataset(paths, format="parquet", filesystem=root.arrow_fs())


def scan(
    root: Root | str,
    dataset: str,
    run: str | None = None,
    columns: Sequence[str] | None = None,
    image_ids: Collection[str] | None = None,
) -> Iterator[pa.Table]:
    """The rows of a dataset, one table per row group (an image, or a part of a large one), in image order.

    Parameters
    ----------
    columns : the columns to read; all by default.
    image_ids : only these images; files and row groups without any of them are not read.
    """
    root = _root(root)
    yield from scan_manifest(root, manifest_of(root, dataset, run), columns, image_ids)


def scan_manifest(
    root: Root,
    manifest: Manifest,
    columns: Sequence[str] | None = None,
    image_ids: Collection[str] | None = None,
) -> Iterator[pa.Table]:
    """``scan`` of the files of a manifest."""
    wanted = None if image_ids is None else sorted(image_ids)
    for file in manifest.files if wanted is None else manifest.files_of(wanted):
        yield from scan_file(root, file.key, columns, wanted)


def read_whole(root: Root, manifest: Manifest, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
    """The files of a small dataset, each read whole and compared with the size and SHA-256 that the manifest states.

    They are fetched some at a time. DamagedFileError if one is missing or is not as it was written.
    """
    stated = manifest.table.select(["bytes", "sha256"]).to_pylist()
    keys = manifest.keys
    for start in range(0, len(keys), _TOGETHER):
        some = keys[start : start + _TOGETHER]
        for key, data, row in zip(some, read_files(root, some), stated[start : start + _TOGETHER], strict=True):
            if len(data) != row["bytes"]:
                raise DamagedFileError(key, f"it has {len(data)} bytes, its commit says {row['bytes']}")
            if sha256(data) != row["sha256"]:
                raise DamagedFileError(key, "its SHA-256 is not the one in its commit")
            with reading(key):
                yield table_of(data, columns)


def scan_file(
    root: Root,
    key: str,
    columns: Sequence[str] | None = None,
    image_ids: Sequence[str] | None = None,
) -> Iterator[pa.Table]:
    """The row groups of one file, those of ``image_ids`` (sorted) if given.

    DamagedFileError if the file is missing, is another, or is not as it was written, as far as what is read shows.
    """
    names = None if columns is None else list(columns)
    with _opened(root, key, names) as parquet:
        for group in range(parquet.num_row_groups):
            first, last = _group_range(parquet.metadata, group)
            if image_ids is not None and not _any_between(image_ids, first, last):
                continue
            if image_ids is None or first == last:
                yield _read(parquet, group, names)
                continue
            rows = _read(parquet, group, names and ["image_id", *names])
            rows = rows.filter(pc.field("image_id").isin(image_ids))
            yield rows if names is None else rows.select(names)


def scan_where(root: Root, key: str, column: str, where: Mapping[str, str]) -> Iterator[tuple[str, pa.Array]]:
    """Image id and values of a column, of the row groups of one file whose columns ``where`` have these texts.

    For datasets with one row to a row group. Statistics tell which they are, so nothing else is read of the file.
    DamagedFileError as by ``scan_file``.
    """
    with _opened(root, key, [column, *where]) as parquet:
        for group in range(parquet.num_row_groups):
            if all(_group_range(parquet.metadata, group, name) == (text, text) for name, text in where.items()):
                values = _read(parquet, group, [column])[column].combine_chunks()
                yield _group_range(parquet.metadata, group)[0], values


def file_metadata(root: Root, key: str) -> dict[str, str]:
    """What a file says of itself: the entries under ``spp.`` of its key/value metadata."""
    with _opened(root, key) as parquet:
        pairs = [(name.decode(), value.decode()) for name, value in (parquet.metadata.metadata or {}).items()]
    return {name.removeprefix("spp."): value for name, value in pairs if name.startswith("spp.")}


@contextmanager
def _opened(root: Root, key: str, columns: Sequence[str] | None = None) -> Iterator[pq.ParquetFile]:
    """A committed file, which is checked to be the one of its key, with these columns (all if None)."""
    with (
        reading(key),
        root.arrow_fs().open_input_file(root.path(key)) as stream,
        pq.ParquetFile(stream, pre_buffer=False, page_checksum_verification=True) as parquet,
    ):
        check_data_file(parquet, key, columns)
        yield parquet


def check_data_file(parquet: pq.ParquetFile, key: str, columns: Sequence[str] | None = None) -> None:
    """DamagedFileError unless the footer is of the file that belongs at ``key``, and has these columns (all if None).

    Version 0.1.0 wrote no method and shard into it. StorageError if its version is newer.
    """
    dataset, method, _, name = key.split("/")
    said = {text.decode(): value.decode() for text, value in (parquet.metadata.metadata or {}).items()}
    stated = [said.get(label) for label in (DATASET_KEY, METHOD_KEY, SHARD_KEY)]
    if VERSION_KEY not in said:
        raise DamagedFileError(key, "it is no file of this software")
    check_version(said[VERSION_KEY], key)
    for found, expected in zip(stated, (dataset, method, name.partition(".")[0]), strict=True):
        if found not in (None, expected):
            raise DamagedFileError(key, f"it is a file of {'/'.join(map(str, filter(None, stated)))}")
    layout, there = schema(dataset), parquet.schema_arrow
    for column in layout.names if columns is None else columns:
        place = there.get_field_index(column)
        known = column in layout.names
        if place < 0 or (known and there.field(place).type != layout.field(column).type):
            raise DamagedFileError(
                key, f"its column {column!r} is {there.field(place).type if place >= 0 else 'not there'}"
            )


def _read(parquet: pq.ParquetFile, group: int, columns: list[str] | None) -> pa.Table:
    """A row group. One column has nearly all the bytes: threads would gain no time, and keep more memory each."""
    return parquet.read_row_group(group, columns=columns, use_threads=False)


def _group_range(metadata: pq.FileMetaData, group: int, column: str | None = None) -> tuple[str, str]:
    """First and last value of a column in a row group, from its statistics; by default of the image id, the first
    column, where they are the same but in images and objects."""
    place = 0 if column is None else metadata.schema.names.index(column)
    statistics = metadata.row_group(group).column(place).statistics
    if statistics is None or not isinstance(statistics.min, str):
        raise pa.ArrowInvalid(f"row group {group} does not say which rows it has")
    return statistics.min, statistics.max


def _any_between(ids: Sequence[str], first: str, last: str) -> bool:
    at = bisect.bisect_left(ids, first)
    return at < len(ids) and ids[at] <= last


def _root(root: Root | str) -> Root:
    return open_root(root) if isinstance(root, str) else root
