"""Features for consumers, whichever way they are stored: vectors are read, or pooled from the conv maps while reading.

from jobs.features.stored import scan
for table in scan("/data/spp", "raccoon_kangaroo"):
    vectors = storage.vectors_of(table["feature"])
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.phases import PhaseClock
from storage.columns import vector_column, vectors_of, windows_of
from storage.manifest import Manifest, recorded_manifest
from storage.root import Root, open_root
from storage.runs import RunRecord, read_run
from storage.scan import file_metadata, scan_file
from storage.schemas import MAP_COLUMN, VECTOR_COLUMN

WINDOW_COLUMNS = ("image_id", "proposal_id", "box", "scale", "window")
"""Every column of ``features`` but the vectors."""


def scan(
    root: Root | str, run: str | None = None, image_ids: Collection[str] | None = None, *, threads: int = 1
) -> Iterator[pa.Table]:
    """The rows of ``features``, one table per row group, in image order; from vectors if there are some, else pooled.

    Both give the same numbers, bit for bit.
    """
    root = open_root(root) if isinstance(root, str) else root
    wanted = None if image_ids is None else sorted(image_ids)
    for shard in feature_shards(root, read_run(root, run)):
        if wanted is None or shard.holds_any(wanted):
            yield from shard.scan(wanted, threads=threads)


@dataclass(frozen=True)
class FeatureShard:
    """One shard of a run's features, however they are stored. It can be sent to another process.

    ``key``: the file of ``features``, or that of ``windows`` whose conv maps lie in the file ``maps``. ``first`` and
    ``last``: its first and last image id.
    """

    root: Root
    shard: str
    key: str
    maps: str | None
    first: str
    last: str

    def holds_any(self, image_ids: Sequence[str]) -> bool:
        """Whether any of these could be one of its images."""
        return any(self.first <= image_id <= self.last for image_id in image_ids)

    def scan(
        self, image_ids: Sequence[str] | None = None, *, threads: int = 1, clock: PhaseClock | None = None
    ) -> Iterator[pa.Table]:
        """The rows of these images (sorted; all by default), one table per row group.

        ``clock`` counts the seconds of the phase ``read``, and of ``pool`` where vectors are pooled from conv maps.
        """
        clock = clock or PhaseClock()
        levels: list[int] = []
        tables = scan_file(self.root, self.key, None, image_ids)
        while True:
            with clock.phase("read"):
                table = next(tables, None)
            if table is None:
                return
            if self.maps is None:
                yield table
                continue
            levels = levels or self._levels()
            with clock.phase("read"):
                maps = self._maps_of(table)
            with clock.phase("pool"):
                vectors = pool_maps(table, maps, levels, threads=threads)
            yield with_vectors(table, vectors)

    def windows(self, image_ids: Sequence[str] | None = None) -> dict[str, pa.Table]:
        """Image id to its rows without the vectors, of these images that have rows."""
        tables: dict[str, list[pa.Table]] = {}
        for table in scan_file(self.root, self.key, WINDOW_COLUMNS, image_ids):
            tables.setdefault(table["image_id"][0].as_py(), []).append(table)
        return {image_id: pa.concat_tables(parts).combine_chunks() for image_id, parts in tables.items()}

    def pick(self, wanted: Mapping[str, NDArray[np.integer]]) -> Iterator[tuple[str, NDArray[np.int64], NDArray]]:
        """Image id, proposal ids (n,) ascending, and vectors float16 (n, dim), of the ``wanted`` proposals.

        An image may come in several parts. Vectors that are not wanted are not pooled.
        """
        levels: list[int] = []
        for table in scan_file(self.root, self.key, None, sorted(wanted)):
            image_id = table["image_id"][0].as_py()
            rows = np.flatnonzero(np.isin(table["proposal_id"].to_numpy(), wanted[image_id]))
            if not len(rows):
                continue
            if self.maps is None:
                vectors = vectors_of(table[VECTOR_COLUMN])[rows]
            else:
                levels = levels or self._levels()
                maps = self._maps_of(table)
                table = table.take(rows)
                rows = np.arange(len(rows))
                vectors = pool_maps(table, maps, levels)
            yield image_id, table["proposal_id"].to_numpy()[rows].astype(np.int64), vectors

    def maps_of(self, image_id: str) -> dict[int, NDArray[np.float16]]:
        """The conv maps (height, width, channels) of an image, by scale. Of a shard that stores maps."""
        assert self.maps is not None
        tables = list(scan_file(self.root, self.maps, None, [image_id]))
        return dict(map_rows(pa.concat_tables(tables))) if tables else {}

    def _levels(self) -> list[int]:
        return [int(level) for level in file_metadata(self.root, self.key)["levels"].split(",")]

    def _maps_of(self, table: pa.Table) -> pa.Table:
        assert self.maps is not None
        return pa.concat_tables(scan_file(self.root, self.maps, None, [table["image_id"][0].as_py()]))


def feature_shards(root: Root, record: RunRecord) -> list[FeatureShard]:
    """The shards of a run's features, in image order. StorageError, naming the verb, if they are not complete."""
    manifest, maps = feature_manifest(root, record), None
    if manifest.dataset == "windows":
        stored = recorded_manifest(root, record, "maps")
        maps = {file.shard: file.key for file in stored.files}
    return [
        FeatureShard(root, file.shard, file.key, maps[file.shard] if maps else None, file.first, file.last)
        for file in manifest.files
    ]


def vector_shards(root: Root, record: RunRecord, layer: str) -> list[FeatureShard]:
    """The shards of what SVMs on ``layer`` see: features, or stored outputs of the head."""
    if layer == "pool5":
        return feature_shards(root, record)
    files = recorded_manifest(root, record, "embeddings").files
    return [FeatureShard(root, file.shard, file.key, None, file.first, file.last) for file in files]


def truth_dataset(layer: str) -> str:
    """The dataset of what SVMs on ``layer`` see of ground-truth boxes."""
    return "truth_features" if layer == "pool5" else "truth_embeddings"


def feature_manifest(root: Root, record: RunRecord) -> Manifest:
    """The manifest of ``features``, or that of ``windows`` in a store of conv maps: both have the same digest."""
    stored = "windows" not in record.datasets or record.complete("features")
    return recorded_manifest(root, record, "features" if stored else "windows")


def pool_maps(
    windows: pa.Table,
    maps: pa.Table,
    levels: Sequence[int],
    *,
    threads: int = 1,
    out: NDArray[np.float16] | None = None,
) -> NDArray[np.float16]:
    """Vectors, float16 (N, dim), of one image's rows of ``windows`` from its rows of ``maps``."""
    from pipeline.spp import pyramid  # compiled code, which a store of vectors has no use for

    scales = windows["scale"].to_numpy()
    places = windows_of(windows["window"])
    dim = maps["channels"][0].as_py() * pyramid.bin_count(levels)
    vectors = np.empty((len(windows), dim), np.float16) if out is None else out[: len(windows)]
    for scale, values in map_rows(maps):
        rows = np.flatnonzero(scales == scale)
        pyramid.pool(values, places[rows], levels, threads=threads, out=vectors, rows=rows)
    return vectors


def map_rows(maps: pa.Table) -> Iterator[tuple[int, NDArray[np.float16]]]:
    """Scale and conv map (height, width, channels) of each row of ``maps``, over its own memory."""
    for row in range(len(maps)):
        height, width, channels = (maps[name][row].as_py() for name in ("height", "width", "channels"))
        values = maps[MAP_COLUMN][row].values.to_numpy(zero_copy_only=True).reshape(height, width, channels)
        yield maps["scale"][row].as_py(), values


def with_vectors(windows: pa.Table, vectors: NDArray[np.float16]) -> pa.Table:
    """Rows of ``windows`` with the column that makes them rows of ``features``."""
    column = vector_column(vectors)
    return windows.append_column(pa.field(VECTOR_COLUMN, column.type, nullable=False), column)
