"""The detections of one shard of test images: from stored features, and how they are written."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from jobs.dataset.image_file import ImageFile
from jobs.features.stored import FeatureShard
from jobs.record.versions import PRODUCER
from jobs.shards.attempt import ShardAttempt
from pipeline.detection.detector import Detector, Found
from pipeline.phases import PhaseClock
from storage.columns import box_column, boxes_of, vectors_of
from storage.commits import Commit, LedgerRow
from storage.schemas import VECTOR_COLUMN, schema


@dataclass(frozen=True, kw_only=True)
class DetectShard(ShardAttempt):
    """The test images of one shard, and the shards of features, or files of proposals, that hold them.

    ``failed``: those images that have none, for a failure.
    """

    images: tuple[ImageFile, ...]
    features: tuple[FeatureShard, ...]
    proposals: tuple[str, ...]
    failed: frozenset[str]
    class_names: tuple[str, ...]

    def present(self) -> list[ImageFile]:
        """The images to look at, sorted."""
        return [file for file in self.trial.images(self.images) if file.image_id not in self.failed]


def detect_shard(work: DetectShard, detector: Detector) -> Commit | None:
    """Detections of one shard from stored features, committed (in a trial of one image alone: made, and dropped)."""
    clock = PhaseClock()
    files = {file.image_id: file for file in work.present()}
    found: dict[str, Found] = {}
    for part in work.features:
        with clock.phase("read"):
            boxes = {image_id: boxes_of(table["box"]) for image_id, table in part.windows(list(files)).items()}
        for image_id, parts in _vectors(part, list(files), clock):
            height, width = files[image_id].height_width
            found[image_id] = detector(boxes[image_id], parts, height, width, clock)
    return commit_found(work, list(files), found, work.trial.ledger("detect"), clock)


def commit_found(
    work: DetectShard,
    present: Sequence[str],
    found: Mapping[str, Found],
    ledger: Sequence[LedgerRow],
    clock: PhaseClock,
) -> Commit | None:
    """Write what was found in the images that are ``present``; one without windows has no detections."""
    if work.trial.alone is not None:
        return None
    ids = [image_id for image_id in present for _ in range(len(found[image_id].scores) if image_id in found else 0)]
    parts = [found[image_id] for image_id in present if image_id in found]
    classes = np.concatenate([np.zeros(0, np.int64), *(part.classes for part in parts)])
    table = pa.table(
        [
            pa.array(ids, pa.string()),
            pa.array([work.class_names[number] for number in classes], pa.string()),
            pa.array(np.concatenate([np.zeros(0, np.float32), *(part.scores for part in parts)])),
            box_column(np.concatenate([np.zeros((0, 4), np.float32), *(part.boxes for part in parts)])),
        ],
        schema=schema("detections", metadata={"method": work.method}),
    )
    with work.writer("detections", table.schema) as writer:
        writer.write_shard(table, {i: len(found[i].scores) if i in found else 0 for i in present})
        return writer.commit(
            ledger=ledger, skipped=sorted(work.failed), seconds=clock.seconds, passes=clock.passes, producer=PRODUCER
        )


def _vectors(
    part: FeatureShard, image_ids: Sequence[str], clock: PhaseClock
) -> Iterator[tuple[str, list[NDArray[np.float16]]]]:
    """Every image and its vectors, in the row groups that they are read in."""
    grouped = itertools.groupby(part.scan(image_ids, clock=clock), key=lambda table: table["image_id"][0].as_py())
    for image_id, group in grouped:
        yield image_id, [vectors_of(table[VECTOR_COLUMN]) for table in group]
