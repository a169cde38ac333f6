"""The extraction actor: it holds a body, and makes one shard of features after another.

Three things run beside each other: threads read and decode images ahead, one thread computes (conv, pool), and a
writer thread encodes behind. A ring of buffers bounds what is in hand. With two shards at once, one is encoded and
published while the next is computed. An actor of several cores computes so many images at once, of different shards:
one image is one thread's, or its map would depend on their number (``pipeline.products``).
"""

from __future__ import annotations

import queue
from collections import deque
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import replace

import cv2
import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from jobs.config.features import FeaturesConfig
from jobs.dataset.image_file import ImageFile, read_image
from jobs.features.shard import ActorSettings, ExtractShard
from jobs.shards.last_revision import Earlier
from pipeline.bodies import Body, body_spec
from pipeline.boxes import Boxes
from pipeline.errors import ContentError
from pipeline.features.regions import RegionExtractor, RegionFeatures
from pipeline.features.warping import WarpExtractor
from pipeline.images.decode import RGB
from pipeline.phases import PhaseClock
from pipeline.spp import pyramid
from storage.columns import box_column, boxes_of, map_column, vector_column, window_column
from storage.commits import Commit, data_key, read_commits
from storage.scan import scan_file
from storage.schemas import VECTOR_COLUMN, schema
from storage.writer import ShardWriter

_BUFFERS = 3
"""One being filled, one being encoded, one waiting; one more for each further image that is computed at once."""


class FeatureActor:
    """See the module. ``state`` is the body's weights by name; it comes once per node through Ray's object store."""

    def __init__(self, settings: ActorSettings, state: Mapping[str, NDArray]) -> None:
        torch.set_num_threads(settings.threads)
        cv2.setNumThreads(settings.threads)
        pyramid.warm_up()
        self._settings = settings
        config = settings.config
        weights = {name: torch.from_numpy(np.array(values)) for name, values in state.items()}
        body = Body(body_spec(config.body), weights, settings.device)
        self._extractor = _extractor(body, config)
        self._extractors: queue.SimpleQueue[RegionExtractor | WarpExtractor] = queue.SimpleQueue()
        for _ in range(settings.images_at_once):
            self._extractors.put(replace(self._extractor))  # the same body; each serves one image at a time
        self._buffers: queue.SimpleQueue[NDArray[np.float16]] = queue.SimpleQueue()
        for _ in range(_BUFFERS - 1 + settings.images_at_once):
            self._buffers.put(np.empty((0, self._extractor.dim), np.float16))

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
            try:
                for file, image in self._decoded(files, boxes, earlier.images, clock):
                    buffer = None
                    if file.image_id in earlier.images:
                        tables = [earlier.rows(writer.dataset, file.image_id) for writer in writers]
                    else:
                        try:
                            tables, buffer = self._rows(
                                work, image, boxes[file.image_id], columns[file.image_id], clock
                            )
                        except ContentError as error:
                            ledger.append(file.ledger_row("extract", error))
                            continue
                    pending.append(encoder.submit(self._encode, writers, file.image_id, tables, buffer, clock))
                    del tables, buffer
                    while pending and (pending[0].done() or len(pending) >= _BUFFERS):
                        pending.popleft().result()
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
        dims = {"features": self._extractor.dim, "truth_features": self._extractor.dim}
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

    def _decoded(
        self, files: Sequence[ImageFile], boxes: Mapping[str, Boxes], known: Collection[str], clock: PhaseClock
    ) -> Iterator[tuple[ImageFile, RGB | ContentError]]:
        """The images in order, decoded ahead by threads. One without boxes, or ``known`` already, is not read."""
        settings = self._settings

        def load(file: ImageFile) -> RGB | ContentError:
            if len(boxes[file.image_id]) == 0 or file.image_id in known:
                return np.zeros((1, 1, 3), np.uint8)
            with clock.phase("decode"):
                try:
                    return read_image(file, settings.storage_options)
                except ContentError as error:
                    return error

        with ThreadPoolExecutor(settings.decode_threads) as readers:
            ahead: deque[tuple[ImageFile, Future[RGB | ContentError]]] = deque()
            for file in files:
                ahead.append((file, readers.submit(load, file)))
                if len(ahead) >= settings.decode_ahead:
                    yield self._next(ahead, clock)
            while ahead:
                yield self._next(ahead, clock)

    def _next(
        self, ahead: deque[tuple[ImageFile, Future[RGB | ContentError]]], clock: PhaseClock
    ) -> tuple[ImageFile, RGB | ContentError]:
        file, future = ahead.popleft()
        with clock.phase("wait"):
            return file, future.result()

    def _rows(
        self, work: ExtractShard, image: RGB | ContentError, boxes: Boxes, given: pa.Table, clock: PhaseClock
    ) -> tuple[list[pa.Table], NDArray[np.float16] | None]:
        """One image's rows for each writer, and the buffer of the ring that they lie in."""
        if isinstance(image, ContentError):
            raise image
        if work.dataset == "windows":
            with self._computing(clock) as extractor:
                assert isinstance(extractor, RegionExtractor)
                scales, windows = extractor.windows(boxes, image.shape[0], image.shape[1])
                maps = extractor.conv_maps(image, scales)
            made = {"scale": pa.array(scales, pa.int32()), "window": window_column(windows)}
            return [_map_rows(given, maps), _window_rows(schema("windows"), given, made)], None
        features, buffer = self._features(image, boxes, clock)
        made = {
            "scale": pa.array(features.scales, pa.int32()),
            "window": window_column(features.windows),
            VECTOR_COLUMN: vector_column(features.vectors),
        }
        return [_window_rows(schema(work.dataset, self._extractor.dim, work.metadata), given, made)], buffer

    def _features(self, image: RGB, boxes: Boxes, clock: PhaseClock) -> tuple[RegionFeatures, NDArray[np.float16]]:
        """Features of one image, and the buffer of the ring that their vectors lie in; it must be put back."""
        with self._buffer(len(boxes), clock) as buffer, self._computing(clock) as extractor:
            return extractor(image, boxes, out=buffer), buffer

    @contextmanager
    def _buffer(self, count: int, clock: PhaseClock) -> Iterator[NDArray[np.float16]]:
        """A buffer of the ring for ``count`` vectors. It must be put back; after an error inside it is."""
        with clock.phase("wait"):
            buffer = self._buffers.get()
        try:
            if len(buffer) < count:
                buffer = np.empty((max(count, self._settings.max_boxes), self._extractor.dim), np.float16)
            yield buffer
        except BaseException:
            self._buffers.put(buffer)
            raise

    @contextmanager
    def _computing(self, clock: PhaseClock) -> Iterator[RegionExtractor | WarpExtractor]:
        """An extractor that is ours, and counts its seconds for us."""
        with clock.phase("wait"):
            extractor = self._extractors.get()
        try:
            extractor.clock = clock
            yield extractor
        finally:
            self._extractors.put(extractor)

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
                self._buffers.put(buffer)


def _extractor(body: Body, config: FeaturesConfig) -> RegionExtractor | WarpExtractor:
    if config.source == "warp":
        return WarpExtractor(body, levels=config.pyramid)
    return RegionExtractor(
        body,
        scales=config.scales,
        scale_rule=config.scale_rule,
        mapping=config.mapping,
        levels=config.pyramid,
        max_scaled_pixels=config.max_scaled_pixels,
    )


def _no_proposals() -> pa.Table:
    return schema("proposals").empty_table().select(["image_id", "proposal_id", "box"])


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
