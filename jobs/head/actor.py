"""The actor that makes ``training_windows``: it draws windows of an image, and pools each at its scale and side."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from jobs.config.head import FinetuneConfig
from jobs.dataset.image_file import ImageFile
from jobs.dataset.objects import ImageObjects, order_key
from jobs.features.ring import ExtractionRing
from jobs.features.shard import ActorSettings
from jobs.proposals.stored import proposed_boxes
from jobs.shards.attempt import ShardAttempt
from pipeline.boxes import Boxes
from pipeline.detection.labels import finetune_labels
from pipeline.detection.window_sampling import Drawn, draw_windows, mirrored
from pipeline.images.decode import RGB
from pipeline.phases import PhaseClock
from storage.columns import box_column, vector_column, window_column
from storage.commits import Commit
from storage.schemas import VECTOR_COLUMN, schema


@dataclass(frozen=True, kw_only=True)
class WindowShard(ShardAttempt):
    """The training images of one shard, the files of proposals that hold them, and their objects.

    ``failed``: those images that have no proposals, for a failure.
    """

    images: tuple[ImageFile, ...]
    proposals: tuple[str, ...]
    objects: Mapping[str, ImageObjects]
    failed: frozenset[str]
    class_names: tuple[str, ...]
    config: FinetuneConfig
    metadata: dict[str, str]


@dataclass(frozen=True)
class _Chosen:
    """What was drawn of an image: the windows, their boxes (N, 4) and their labels (N,)."""

    drawn: Drawn
    boxes: Boxes
    labels: NDArray[np.int64]


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
        chosen = {file.image_id: self._choose(work, file, proposed[file.image_id]) for file in files}
        layout = schema("training_windows", self._ring.dim, work.metadata)
        with work.writer("training_windows", layout) as writer:

            def make(file: ImageFile, image: RGB) -> None:
                rows, buffer = self._pooled(work, file.image_id, image, chosen[file.image_id], clock)
                try:
                    with clock.phase("encode"):
                        writer.write_image(file.image_id, rows.cast(layout))
                finally:
                    self._ring.give_back(buffer)

            without = {image_id for image_id, one in chosen.items() if len(one.boxes) == 0}
            self._feed.each(files, make, stage="finetune", ledger=ledger, clock=clock, unread=without)
            if work.trial.alone is not None:
                return None
            return writer.commit(
                ledger=ledger,
                skipped=sorted(work.failed),
                seconds=clock.seconds,
                passes=clock.passes,
                producer=self._producer,
            )

    def _choose(self, work: WindowShard, file: ImageFile, proposed: Boxes) -> _Chosen:
        """Windows of an image, drawn from the seed and the image id; those of the image as it is come first."""
        config, objects = work.config, work.objects.get(file.image_id)
        truth = objects.boxes if objects else np.zeros((0, 4), np.float32)
        candidates = np.concatenate([truth, proposed])
        labels = finetune_labels(
            candidates,
            truth,
            objects.classes if objects else np.zeros(0, np.int64),
            objects.difficult if objects else np.zeros(0, np.bool_),
            config.foreground_overlap,
            config.background_overlap,
        )
        seed = int.from_bytes(order_key(config.seed, file.image_id)[:8], "little")
        drawn = draw_windows(
            labels,
            self._ring.extractor.scales_of(*file.height_width),
            config.windows_per_image,
            config.foreground,
            config.flips,
            np.random.default_rng(seed),
        )
        order = np.argsort(drawn.flipped, kind="stable")
        drawn = Drawn(drawn.rows[order], drawn.scales[order], drawn.flipped[order])
        return _Chosen(drawn, candidates[drawn.rows], labels[drawn.rows])

    def _pooled(
        self, work: WindowShard, image_id: str, image: RGB, chosen: _Chosen, clock: PhaseClock
    ) -> tuple[pa.Table, NDArray[np.float16]]:
        """The rows of an image, and the buffer of the ring that their vectors lie in."""
        drawn, boxes = chosen.drawn, chosen.boxes
        plain = int(np.count_nonzero(~drawn.flipped))
        with self._ring.buffer(len(boxes), clock) as buffer, self._ring.computing(clock) as extractor:
            first = extractor(image, boxes[:plain], out=buffer, scales=drawn.scales[:plain])
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
            "window": window_column(np.concatenate([first.windows, second.windows])),
            VECTOR_COLUMN: vector_column(buffer[: len(boxes)]),
        }
        layout = schema("training_windows", self._ring.dim)
        return pa.table([columns[name] for name in layout.names], schema=layout), buffer
