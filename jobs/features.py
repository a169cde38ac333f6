"""Features for consumers, whichever way they are stored: vectors are read, or pooled from the conv maps while reading.

from jobs import features
for table in features.scan("/data/spp", "raccoon_kangaroo"):
    vectors = storage.vectors_of(table["feature"])
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from jobs.extract import ExtractShard
from pipeline import pyramid
from pipeline.phases import PhaseClock
from storage.columns import vector_column, windows_of
from storage.commits import Commit, data_key, read_commits
from storage.manifest import Manifest, read_manifest
from storage.root import Root, open_root
from storage.runs import DatasetRecord, RunRecord, dataset_record, read_run
from storage.scan import file_metadata, scan_file, scan_manifest
from storage.schemas import MAP_COLUMN, VECTOR_COLUMN, schema
from storage.writer import ShardWriter


def scan(
    root: Root | str, run: str | None = None, image_ids: Collection[str] | None = None, *, threads: int = 1
) -> Iterator[pa.Table]:
    """The rows of ``features``, one table per row group, in image order; from vectors if there are some, else pooled.

    Both give the same numbers, bit for bit.
    """
    root = open_root(root) if isinstance(root, str) else root
    record = read_run(root, run)
    if "windows" not in record.datasets or _complete(record.datasets.get("features")):
        yield from scan_manifest(root, _manifest(root, record, "features"), None, image_ids)
        return
    windows, maps = _manifest(root, record, "windows"), _manifest(root, record, "maps")
    maps_of = dict(zip(maps.table["shard"].to_pylist(), maps.keys, strict=True))
    wanted = None if image_ids is None else sorted(image_ids)
    for shard, key in zip(windows.table["shard"].to_pylist(), windows.keys, strict=True):
        levels = None
        for table in scan_file(root, key, None, wanted):
            levels = levels or [int(level) for level in file_metadata(root, key)["levels"].split(",")]
            image_id = table["image_id"][0].as_py()
            conv_maps = pa.concat_tables(scan_file(root, maps_of[shard], None, [image_id]))
            yield _with_vectors(table, pool_maps(table, conv_maps, levels, threads=threads))


def pool_maps(
    windows: pa.Table,
    maps: pa.Table,
    levels: Sequence[int],
    *,
    threads: int = 1,
    out: NDArray[np.float16] | None = None,
) -> NDArray[np.float16]:
    """Vectors, float16 (N, dim), of one image's rows of ``windows`` from its rows of ``maps``."""
    scales = windows["scale"].to_numpy()
    places = windows_of(windows["window"])
    dim = maps["channels"][0].as_py() * pyramid.bin_count(levels)
    vectors = np.empty((len(windows), dim), np.float16) if out is None else out[: len(windows)]
    for row in range(len(maps)):
        height, width, channels = (maps[name][row].as_py() for name in ("height", "width", "channels"))
        values = maps[MAP_COLUMN][row].values.to_numpy(zero_copy_only=True).reshape(height, width, channels)
        rows = np.flatnonzero(scales == maps["scale"][row].as_py())
        pyramid.pool(values, places[rows], levels, threads=threads, out=vectors, rows=rows)
    return vectors


@dataclass(frozen=True)
class MaterialiseShard:
    """A shard of ``features`` to make from stored windows and maps."""

    root: Root
    work: ExtractShard
    producer: str


def materialise_shard(shard: MaterialiseShard) -> Commit | None:
    """Vectors of one shard from its windows and maps; touches neither images nor a body."""
    root, work = shard.root, shard.work
    assert work.windows is not None
    assert work.maps is not None
    clock = PhaseClock()
    (stored,) = read_commits(root, "windows", work.method, [work.windows])
    windows_key = data_key("windows", work.method, work.windows)
    maps_key = data_key("maps", work.method, work.maps)
    levels = [int(level) for level in work.metadata["levels"].split(",")]
    layout = schema("features", work.dim, work.metadata)
    with ShardWriter(root, "features", work.method, work.shard, layout, revision=work.revision) as writer:
        for image_id, count in stored.images.items():
            if not count:
                writer.write_image(image_id, None)
                continue
            with clock.phase("read"):
                windows = pa.concat_tables(scan_file(root, windows_key, None, [image_id])).combine_chunks()
                maps = pa.concat_tables(scan_file(root, maps_key, None, [image_id]))
            with clock.phase("pool"):
                vectors = pool_maps(windows, maps, levels)
            with clock.phase("encode"):
                writer.write_image(image_id, _with_vectors(windows, vectors).cast(layout))
        return writer.commit(
            ledger=stored.ledger,
            skipped=stored.skipped,
            upstream=stored.upstream,
            seconds=clock.seconds,
            producer=shard.producer,
        )


def _with_vectors(windows: pa.Table, vectors: NDArray[np.float16]) -> pa.Table:
    column = vector_column(vectors)
    return windows.append_column(pa.field(VECTOR_COLUMN, column.type, nullable=False), column)


def _complete(entry: DatasetRecord | None) -> bool:
    return entry is not None and entry.manifest is not None


def _manifest(root: Root, record: RunRecord, dataset: str) -> Manifest:
    entry = dataset_record(record, dataset)
    assert entry.manifest is not None
    return read_manifest(root, dataset, entry.method, entry.manifest)
