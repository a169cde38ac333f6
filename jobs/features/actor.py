"""The extraction actor: it holds a body, and makes one shard of features after another.

Three things run beside each other: threads read and decode images ahead, one thread computes (conv, pool), and a
writer thread encodes behind. A ring of buffers bounds what is in hand. With two shards at once, one is encoded and
published while the next is computed. An actor of several cores computes so many images at once, of different shards:
one image is one thread's, or its map would depend on their number (``pipeline.products``).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from jobs.dataset.image_file import ImageFile
from jobs.features.ring import BUFFERS, ExtractionRing
from jobs.features.shard import ActorSettings, ExtractShard
from jobs.shards.last_revision import Earlier
from pipeline.boxes import Boxes
from pipeline.features.regions import RegionExtractor
from pipeline.images.decode import RGB
from pipeline.phases import PhaseClock
from storage.columns import box_column, boxes_of, map_column, no_rows, vector_column, window_column
from storage.commits import Commit, data_key, read_commits
from storage.scan import scan_file
from storage.schemas import VECTOR_COLUMN, schema
from storage.writer import ShardWriter


class FeatureActor:
    """See the module. ``state`` is the body's weights by name; it comes once per node through Ray's object store."""

    def __init__(self, settings: ActorSettings, state: Mapping[str, NDArray]) -> None:
        self._settings = settings
        self._feed = settings.feed()
        self._ring = ExtractionRing(settings, state)

    def extract(self, work: ExtractShard) -> Commit | None:
        """Make one shard and commit it (in a trial of one image alone: make it, and leave nothing)."""
        clock = PhaseClock()
        root, trial = self._settings.root, work.trial
        earlier = Earlier(root, work.method, trial)
        boxes, columns, skipped = self._boxes(work, clock)
        ledger = trial.ledger("extract")
        files = [file for file in trial.images(work.images) if file.image_id not in skipped]
        with ThreadPoolExecutor(1) as encoder, ExitStack() as stack:
            writers = [stack.enter_context(writer) for writer in self._writers(work)]
            pending: deque[Future[None]] = deque()

            def make(file: ImageFile, image: RGB) -> None:
                buffer = None
                if file.image_id in earlier.images:
                    tables = [earlier.rows(writer.dataset, file.image_id) for writer in writers]
                else:
                    tables, buffer = self._rows(work, image, boxes[file.image_id], columns[file.image_id], clock)
                pending.append(encoder.submit(self._encode, writers, file.image_id, tables, buffer, clock))
                del tables, buffer
                while pending and (pending[0].done() or len(pending) >= BUFFERS):
                    pending.popleft().result()

            without = {image_id for image_id, own in boxes.items() if len(own) == 0}
            try:
                self._feed.each(
                    files, make, stage="extract", ledger=ledger, clock=clock, unread=without.union(earlier.images)
                )
            finally:
                for future in pending:
                    future.exception()  # the buffers must be back before an error goes on
            for future in pending:
                future.result()
            if trial.alone is not None:
                return None
            for writer in writers:  # the maps before the windows, whose commit says that both are there
                commit = writer.commit(
                    ledger=ledger,
                    skipped=skipped,
                    upstream=work.upstream(),
                    seconds=clock.seconds if writer is writers[-1] else {},
                    producer=self._settings.producer,
                )
            return commit

    def _writers(self, work: ExtractShard) -> list[ShardWriter]:
        """The files of a shard: features alone, or maps and windows."""
        names = ["maps", "windows"] if work.dataset == "windows" else [work.dataset]
        dims = {"features": self._ring.dim, "truth_features": self._ring.dim}
        return [
            ShardWriter(
                self._settings.root,
                name,
                work.method,
                work.shard,
                schema(name, dims.get(name), work.metadata),
                revision=work.revision,
            )
            for name in names
        ]

    def _boxes(
        self, work: ExtractShard, clock: PhaseClock
    ) -> tuple[dict[str, Boxes], dict[str, pa.Table], tuple[str, ...]]:
        """Boxes and passed-on columns of every image of the shard, and the images that have none for a failure."""
        with clock.phase("read"):
            if work.dataset == "truth_features":
                assert work.objects is not None
                tables = _by_image(work.objects, [file.image_id for file in work.images])
                skipped: tuple[str, ...] = ()
            else:
                assert work.proposals is not None
                root, method = self._settings.root, work.proposals_method
                (proposed,) = read_commits(root, "proposals", method, [work.proposals])
                failed = {row.image_id for row in proposed.failed}
                ids = [file.image_id for file in work.images]
                skipped = tuple(image_id for image_id in ids if image_id in failed)
                key = data_key("proposals", method, work.proposals)
                groups = list(scan_file(root, key, ["image_id", "proposal_id", "box"], ids))
                tables = _by_image(pa.concat_tables(groups) if groups else _no_proposals(), ids)
        return {image_id: boxes_of(table["box"]) for image_id, table in tables.items()}, tables, skipped

    def _rows(
        self, work: ExtractShard, image: RGB, boxes: Boxes, given: pa.Table, clock: PhaseClock
    ) -> tuple[list[pa.Table], NDArray[np.float16] | None]:
        """One image's rows for each writer, and the buffer of the ring that they lie in."""
        if work.dataset == "windows":
            with self._ring.computing(clock) as extractor:
                assert isinstance(extractor, RegionExtractor)
                scales, windows = extractor.windows(boxes, image.shape[0], image.shape[1])
                maps = extractor.conv_maps(image, scales)
            made = {"scale": pa.array(scales, pa.int32()), "window": window_column(windows)}
            return [_map_rows(given, maps), _window_rows(schema("windows"), given, made)], None
        features, buffer = self._ring.features(image, boxes, clock)
        made = {
            "scale": pa.array(features.scales, pa.int32()),
            "window": window_column(features.windows),
            VECTOR_COLUMN: vector_column(features.vectors),
        }
        return [_window_rows(schema(work.dataset, self._ring.dim, work.metadata), given, made)], buffer

    def _encode(
        self,
        writers: Sequence[ShardWriter],
        image_id: str,
        tables: Sequence[pa.Table | None],
        buffer: NDArray[np.float16] | None,
        clock: PhaseClock,
    ) -> None:
        try:
            with clock.phase("encode"):
                for writer, table in zip(writers, tables, strict=True):
                    writer.write_image(image_id, table)
        finally:
            if buffer is not None:
                self._ring.give_back(buffer)


def _no_proposals() -> pa.Table:
    return no_rows(schema("proposals")).select(["image_id", "proposal_id", "box"])


def _by_image(table: pa.Table, image_ids: list[str]) -> dict[str, pa.Table]:
    """The rows of each image; the table is sorted by image."""
    ids = table["image_id"].to_numpy(zero_copy_only=False)
    first = np.searchsorted(ids, image_ids, side="left") if len(ids) else [0] * len(image_ids)
    last = np.searchsorted(ids, image_ids, side="right") if len(ids) else [0] * len(image_ids)
    return {i: table.slice(int(a), int(b - a)) for i, a, b in zip(image_ids, first, last, strict=True)}


def _window_rows(layout: pa.Schema, given: pa.Table, made: Mapping[str, pa.Array]) -> pa.Table:
    """Rows of windows or features: the columns of the boxes, and what was made of them."""
    columns = [
        made[name] if name in made else box_column(boxes_of(given[name])) if name == "box" else given[name]
        for name in layout.names
    ]
    return pa.table(columns, schema=layout)


def _map_rows(given: pa.Table, maps: Mapping[int, NDArray[np.float16]]) -> pa.Table:
    """Rows of ``maps``: one per scale of an image."""
    image_ids = given["image_id"].slice(0, 1).to_pylist() * len(maps)
    sizes = np.array([values.shape for values in maps.values()], np.int32).reshape(-1, 3)
    columns = [
        pa.array(image_ids, pa.string()),
        pa.array(list(maps), pa.int32()),
        *(pa.array(sizes[:, axis]) for axis in range(3)),
        map_column(list(maps.values())),
    ]
    return pa.table(columns, schema=schema("maps"))
