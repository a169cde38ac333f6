"""The detection actor of ``detect.source: stream``: it extracts the features of test images, and keeps none."""

from __future__ import annotations

from collections.abc import Mapping

from numpy.typing import NDArray

from jobs.dataset.image_file import ImageFile
from jobs.detect.shard import DetectShard, commit_found
from jobs.features.ring import ExtractionRing
from jobs.features.shard import ActorSettings
from jobs.proposals.stored import proposed_boxes
from pipeline.boxes import Boxes
from pipeline.detection.detector import Detector, Found
from pipeline.images.decode import RGB
from pipeline.phases import PhaseClock
from storage.commits import Commit


class DetectActor:
    """A body and a detector."""

    def __init__(self, settings: ActorSettings, state: Mapping[str, NDArray], detector: Detector) -> None:
        self._feed = settings.feed()
        self._ring = ExtractionRing(settings, state)
        self._detector = detector

    def detect(self, work: DetectShard) -> Commit | None:
        """Detections of one shard, committed (in a trial of one image alone: made, and dropped)."""
        clock = PhaseClock()
        files = work.present()
        ledger = work.trial.ledger("detect")
        with clock.phase("read"):
            boxes = proposed_boxes(work.root, work.proposals, [file.image_id for file in files])
        found: dict[str, Found] = {}

        def make(file: ImageFile, image: RGB) -> None:
            own = boxes[file.image_id]
            if len(own):
                found[file.image_id] = self._detections(image, own, file.height_width, clock)

        without = {image_id for image_id, own in boxes.items() if len(own) == 0}
        self._feed.each(files, make, stage="detect", ledger=ledger, clock=clock, unread=without)
        failed = {row.image_id for row in ledger if row.level == "failed"}
        present = [file.image_id for file in files if file.image_id not in failed]
        return commit_found(work, present, found, ledger, clock)

    def _detections(self, image: RGB, boxes: Boxes, height_width: tuple[int, int], clock: PhaseClock) -> Found:
        features, buffer = self._ring.features(image, boxes, clock)
        try:
            return self._detector(boxes, [features.vectors], *height_width, clock)
        finally:
            self._ring.give_back(buffer)
