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
from jobs.features.beside import Beside, BesideSet, feature_columns
from jobs.features.ring import BUFFERS, ExtractionRing
from jobs.features.shard import ActorSettings, ExtractShard
from jobs.features.truth import StoredTruth, by_image, window_rows
from jobs.shards.last_revision import Earlier
from pipeline.boxes import Boxes
from pipeline.errors import ContentError
from pipeline.features.regions import RegionExtractor, RegionFeatures
from pipeline.images.decode import RGB
from pipeline.phases import PhaseClock
from storage.columns import boxes_of, map_column, no_rows, window_column
from storage.commits import Commit, data_key, read_commits
from storage.scan import scan_file
from storage.schemas import schema
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
        stored = StoredTruth(root, work, columns, earlier.images, clock)
        beside = Beside(root, work, self._ring.dim)
        ledger = trial.ledger("extract")
        files = [file for file in trial.images(work.images) if file.image_id not in skipped]
        with ThreadPoolExecutor(1) as encoder, ExitStack() as stack:
            writers = [stack.enter_context(writer) for writer in self._writers(work)]
            stack.enter_context(beside)
            pending: deque[Future[None]] = deque()

            def make(file: ImageFile, image: RGB) -> None:
                buffer, written = None, list(writers)
                if file.image_id in earlier.images:
                    tables = [earlier.rows(writer.dataset, file.image_id) for writer in writers]
                elif file.image_id in stored.images:
                    tables = [stored.rows(file.image_id)]
                else:
                    own, more = boxes[file.image_id], []
                    if isinstance(self._ring.extractor, RegionExtractor) and len(own):  # without: nothing was read
                        more = beside.of(file.image_id, own, image.shape[:2], self._ring.extractor)
                    maps = stored.maps(file.image_id)
                    tables, others, buffer = self._rows(
                        work, image, own, columns[file.image_id], more=more, known=maps, clock=clock
                    )
                    for one, made in zip(more, others, strict=True):
                        if isinstance(made, RegionFeatures):  # else who makes its shard finds out why
                            written.append(one.writer)
                            tables.append(one.rows(made))
                pending.append(encoder.submit(self._encode, written, file.image_id, tables, buffer, clock))
                del tables, buffer
                while pending and (pending[0].done() or len(pending) >= BUFFERS):
                    pending.popleft().result()

            without = {image_id for image_id, own in boxes.items() if len(own) == 0}
            try:
                self._feed.each(
                    files,
                    make,
                    stage="extract",
                    ledger=ledger,
                    clock=clock,
                    unread=without.union(earlier.images, stored.images),
                )
            finally:
                for future in pending:
                    future.exception()  # the buffers must be back before an error goes on
            for future in pending:
                future.result()
            if trial.alone is not None:
                return None
            beside.publish()  # before the commit that says that these images need no further pass
            for writer in writers:  # the maps before the windows, whose commit says that both are there
                commit = writer.commit(
                    ledger=ledger,
                    skipped=skipped,
                    upstream=work.upstream(),
                    seconds=clock.seconds if writer is writers[-1] else {},
                    passes=clock.passes if writer is writers[-1] else 0,
                    producer=self._settings.producer,
                )
            stored.drop()
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
                tables = by_image(work.objects, [file.image_id for file in work.images])
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
                tables = by_image(pa.concat_tables(groups) if groups else _no_proposals(), ids)
        return {image_id: boxes_of(table["box"]) for image_id, table in tables.items()}, tables, skipped

    def _rows(
        self,
        work: ExtractShard,
        image: RGB,
        boxes: Boxes,
        given: pa.Table,
        *,
        more: Sequence[BesideSet],
        known: Mapping[int, NDArray[np.float16]],
        clock: PhaseClock,
    ) -> tuple[list[pa.Table], list[RegionFeatures | ContentError], NDArray[np.float16] | None]:
        """One image's rows for each writer; what else is wanted of its maps; the buffer that the first ones lie in.

        ``known``: maps of it that need not be made, by scale.
        """
        wanted = [one.wanted for one in more]
        if work.dataset == "windows":
            with self._ring.computing(clock) as extractor:
                assert isinstance(extractor, RegionExtractor)
                scales, windows = extractor.windows(boxes, image.shape[0], image.shape[1])
                maps = extractor.conv_maps(image, scales)
                others = extractor.together(image, wanted, maps)
            made = {"scale": pa.array(scales, pa.int32()), "window": window_column(windows)}
            return [_map_rows(given, maps), window_rows(schema("windows"), given, made)], others, None
        if more or known:
            features, others, buffer = self._ring.features_and(image, boxes, wanted, clock, known)
        else:
            (features, buffer), others = self._ring.features(image, boxes, clock), []
        layout = schema(work.dataset, self._ring.dim, work.metadata)
        return [window_rows(layout, given, feature_columns(features))], others, buffer

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
