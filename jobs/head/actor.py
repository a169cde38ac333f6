"""The actor that makes ``training_windows``: it draws windows of an image, and pools each at its scale and side."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from jobs.config.head import FinetuneConfig
from jobs.dataset.image_file import ImageFile
from jobs.dataset.objects import ImageObjects
from jobs.features.drawing import Chosen, choose
from jobs.features.ring import ExtractionRing
from jobs.features.shard import ActorSettings
from jobs.features.stored import FeatureShard
from jobs.head.stored_vectors import StoredVectors
from jobs.proposals.stored import proposed_boxes
from jobs.shards.attempt import ShardAttempt
from pipeline.detection.window_sampling import mirrored
from pipeline.errors import ContentError
from pipeline.features.regions import Wanted
from pipeline.features.warping import WarpExtractor
from pipeline.images.decode import RGB
from pipeline.phases import PhaseClock
from storage.columns import box_column, vector_column, window_column
from storage.commits import Commit
from storage.parts import drop_parts
from storage.schemas import VECTOR_COLUMN, schema


@dataclass(frozen=True, kw_only=True)
class WindowShard(ShardAttempt):
    """The training images of one shard, the files of proposals that hold them, and their objects.

    ``failed``: those images that have no proposals, for a failure. ``features`` and ``truth``: the shards of stored
    features, and the files of ``truth_features``, that may hold vectors of them; ``parts`` of the shard that were made
    with its features.
    """

    images: tuple[ImageFile, ...]
    proposals: tuple[str, ...]
    objects: Mapping[str, ImageObjects]
    failed: frozenset[str]
    class_names: tuple[str, ...]
    config: FinetuneConfig
    metadata: dict[str, str]
    features: tuple[FeatureShard, ...]
    truth: tuple[str, ...]
    parts: tuple[str, ...]


class WindowActor:
    """A body that pools what is drawn."""

    def __init__(self, settings: ActorSettings, state: Mapping[str, NDArray]) -> None:
        self._producer = settings.producer
        self._feed = settings.feed()
        self._ring = ExtractionRing(settings, state)

    def draw(self, work: WindowShard) -> Commit | None:
        """The training windows of one shard, committed (in a trial of one image alone: made, and dropped)."""
        clock = PhaseClock()
        ledger = work.trial.ledger("finetune")
        files = [file for file in work.trial.images(work.images) if file.image_id not in work.failed]
        with clock.phase("read"):
            proposed = proposed_boxes(work.root, work.proposals, [file.image_id for file in files])
        chosen = {
            file.image_id: choose(
                work.config,
                file.image_id,
                work.objects.get(file.image_id),
                proposed[file.image_id],
                self._ring.extractor.scales_of(*file.height_width),
            )
            for file in files
        }
        with clock.phase("read"):
            stored = StoredVectors(work.root, work.features, work.truth, work.parts, chosen)
        without = {image_id for image_id in chosen if stored.known(image_id).all()}
        layout = schema("training_windows", self._ring.dim, work.metadata)
        with work.writer("training_windows", layout) as writer:

            def make(file: ImageFile, image: RGB) -> None:
                if file.image_id in without:  # no pixel of it is asked for, but its size is
                    image = np.broadcast_to(image, (*file.height_width, 3))
                rows, buffer = self._pooled(work, file, image, chosen[file.image_id], stored, clock)
                try:
                    with clock.phase("encode"):
                        writer.write_image(file.image_id, rows.cast(layout))
                finally:
                    self._ring.give_back(buffer)

            self._feed.each(files, make, stage="finetune", ledger=ledger, clock=clock, unread=without)
            if work.trial.alone is not None:
                return None
            commit = writer.commit(
                ledger=ledger,
                skipped=sorted(work.failed),
                seconds=clock.seconds,
                passes=clock.passes,
                producer=self._producer,
            )
        drop_parts(work.root, work.parts)
        return commit

    def _pooled(
        self,
        work: WindowShard,
        file: ImageFile,
        image: RGB,
        chosen: Chosen,
        stored: StoredVectors,
        clock: PhaseClock,
    ) -> tuple[pa.Table, NDArray[np.float16]]:
        """The rows of an image, and the buffer of the ring that their vectors lie in."""
        drawn, boxes, image_id = chosen.drawn, chosen.boxes, file.image_id
        plain = chosen.plain
        with self._ring.buffer(len(boxes), clock) as buffer:
            with clock.phase("read"):
                left = np.flatnonzero(~stored.fill(image_id, buffer)[:plain])
                maps = stored.maps(image_id) if len(left) else {}
            with self._ring.computing(clock) as extractor:
                if isinstance(extractor, WarpExtractor):
                    first = extractor(image, boxes[:plain], out=buffer, scales=drawn.scales[:plain]).windows
                else:
                    height, width = image.shape[:2]
                    _, first = extractor.windows(boxes[:plain], height, width, drawn.scales[:plain])
                    (made,) = extractor.together(image, [Wanted(boxes[left], drawn.scales[left])], maps)
                    if isinstance(made, ContentError):
                        raise made
                    buffer[left] = made.vectors
                other = np.ascontiguousarray(image[:, ::-1])
                second = extractor(
                    other, mirrored(boxes[plain:], image.shape[1]), out=buffer[plain:], scales=drawn.scales[plain:]
                )
        names = [work.class_names[label - 1] if label else None for label in chosen.labels]
        columns = {
            "image_id": pa.array([image_id] * len(boxes), pa.string()),
            "window_id": pa.array(np.arange(len(boxes), dtype=np.int32)),
            "class_name": pa.array(names, pa.string()),
            "flipped": pa.array(drawn.flipped),
            "box": box_column(boxes),
            "scale": pa.array(drawn.scales, pa.int32()),
            "window": window_column(np.concatenate([first, second.windows])),
            VECTOR_COLUMN: vector_column(buffer[: len(boxes)]),
        }
        layout = schema("training_windows", self._ring.dim)
        return pa.table([columns[name] for name in layout.names], schema=layout), buffer
