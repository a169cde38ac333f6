"""The detection actor of ``detect.source: stream``: it extracts the features of test images, and keeps none."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from jobs.detection import DetectShard, commit_found
from jobs.extract import ActorSettings
from jobs.feature_actor import FeatureActor
from pipeline.boxes import Boxes
from pipeline.detection import Detector, Found
from pipeline.errors import ContentError
from pipeline.phases import PhaseClock
from storage.columns import boxes_of
from storage.commits import Commit
from storage.scan import scan_file


class DetectActor(FeatureActor):
    """A body and a detector."""

    def __init__(self, settings: ActorSettings, state: Mapping[str, NDArray], detector: Detector) -> None:
        super().__init__(settings, state)
        self._detector = detector

    def detect(self, work: DetectShard) -> Commit | None:
        """Detections of one shard, committed (in a trial of one image alone: made, and dropped)."""
        clock = PhaseClock()
        files = work.present()
        ledger = work.trial.ledger("detect")
        with clock.phase("read"):
            boxes = self._proposals(work)
        found: dict[str, Found] = {}
        failed: set[str] = set()
        for file, image in self._decoded(files, boxes, (), clock):
            own = boxes[file.image_id]
            if not len(own):
                continue
            try:
                if isinstance(image, ContentError):
                    raise image
                found[file.image_id] = self._detections(image, own, file.height_width, clock)
            except ContentError as error:
                ledger.append(file.ledger_row("detect", error))
                failed.add(file.image_id)
        present = [file.image_id for file in files if file.image_id not in failed]
        return commit_found(work, present, found, ledger, clock)

    def _detections(
        self, image: NDArray[np.uint8], boxes: Boxes, height_width: tuple[int, int], clock: PhaseClock
    ) -> Found:
        features, buffer = self._features(image, boxes, clock)
        try:
            with clock.phase("score"):
                return self._detector(boxes, [features.vectors], *height_width)
        finally:
            self._buffers.put(buffer)

    def _proposals(self, work: DetectShard) -> dict[str, Boxes]:
        """Image id to its proposals, none included."""
        ids = [file.image_id for file in work.present()]
        found: dict[str, list[pa.Table]] = {image_id: [] for image_id in ids}
        for key in work.proposals:
            for table in scan_file(work.root, key, ["image_id", "box"], ids):
                found[table["image_id"][0].as_py()].append(table)
        return {
            image_id: boxes_of(pa.concat_tables(parts)["box"]) if parts else np.zeros((0, 4), np.float32)
            for image_id, parts in found.items()
        }
