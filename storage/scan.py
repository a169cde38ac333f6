"""Reading: a pyarrow dataset of the committed files, and a scan that goes row group by row group.

pyarrow's own scanner reads ahead by tens of row groups; ``scan`` holds one, so memory is flat however large the dataset
(benchmarks/scan.py).
"""

from __future__ import annotations

import bisect
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from storage.columns import no_rows
from storage.manifest import Manifest, read_manifest
from storage.root import Root, open_root
from storage.runs import dataset_record, read_run
from storage.schemas import VERSION_KEY, check_version, schema

if TYPE_CHECKING:
    import pyarrow.dataset as ds


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


def scan_file(
    root: Root,
    key: str,
    columns: Sequence[str] | None = None,
    image_ids: Sequence[str] | None = None,
) -> Iterator[pa.Table]:
    """The row groups of one file, those of ``image_ids`` (sorted) if given."""
    with root.arrow_fs().open_input_file(root.path(key)) as stream, pq.ParquetFile(stream, pre_buffer=False) as parquet:
        check_version((parquet.metadata.metadata or {}).get(VERSION_KEY.encode(), b"?").decode(), key)
        names = None if columns is None else list(columns)
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
    """
    with root.arrow_fs().open_input_file(root.path(key)) as stream, pq.ParquetFile(stream, pre_buffer=False) as parquet:
        check_version((parquet.metadata.metadata or {}).get(VERSION_KEY.encode(), b"?").decode(), key)
        for group in range(parquet.num_row_groups):
            if all(_group_range(parquet.metadata, group, name) == (text, text) for name, text in where.items()):
                values = _read(parquet, group, [column])[column].combine_chunks()
                yield _group_range(parquet.metadata, group)[0], values


def file_metadata(root: Root, key: str) -> dict[str, str]:
    """What a file says of itself: the entries under ``spp.`` of its key/value metadata."""
    with root.arrow_fs().open_input_file(root.path(key)) as stream:
        entries = pq.read_metadata(stream).metadata or {}
    pairs = ((name.decode(), value.decode()) for name, value in entries.items() if name.startswith(b"spp."))
    return {name.removeprefix("spp."): value for name, value in pairs}


def _read(parquet: pq.ParquetFile, group: int, columns: list[str] | None) -> pa.Table:
    """A row group. One column has nearly all the bytes: threads would gain no time, and keep more memory each."""
    return parquet.read_row_group(group, columns=columns, use_threads=False)


def _group_range(metadata: pq.FileMetaData, group: int, column: str | None = None) -> tuple[str, str]:
    """First and last value of a column in a row group, from its statistics; by default of the image id, the first
    column, where they are the same but in images and objects."""
    place = 0 if column is None else metadata.schema.names.index(column)
    statistics = metadata.row_group(group).column(place).statistics
    return statistics.min, statistics.max


def _any_between(ids: Sequence[str], first: str, last: str) -> bool:
    at = bisect.bisect_left(ids, first)
    return at < len(ids) and ids[at] <= last


def _root(root: Root | str) -> Root:
    return open_root(root) if isinstance(root, str) else root
