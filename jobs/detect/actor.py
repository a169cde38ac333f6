"""The detection actor of ``detect.source: stream``: it extracts the features of test images, and keeps none."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from jobs.detect.shard import DetectShard, commit_found
from jobs.features.actor import FeatureActor
from jobs.features.shard import ActorSettings
from jobs.proposals.stored import proposed_boxes
from pipeline.boxes import Boxes
from pipeline.detection.detector import Detector, Found
from pipeline.errors import ContentError
from pipeline.phases import PhaseClock
from storage.commits import Commit


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
            boxes = proposed_boxes(work.root, work.proposals, [file.image_id for file in files])
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
            return self._detector(boxes, [features.vectors], *height_width, clock)
        finally:
            self._buffers.put(buffer)
