"""detect: the SVMs and box regressors on the proposals of the test splits.

    spp detect --config configs/raccoon_kangaroo.yaml --root /data/spp [--voc FOLDER] [--coco FILE]

The work is in jobs/detection.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pydantic import Field

from jobs.finetune import HeadConfig, Layer
from jobs.index import Index
from jobs.reduce import ids_digest, reduce_method, stored_features
from jobs.settings import ADDED_LATER, Settings
from storage.runs import DatasetRecord, RunRecord, dataset_record
from storage.shards import Shard, shards

VERSION = 1


class DetectConfig(Settings):
    """The ``detect:`` section of the config."""

    source: Literal["stored", "stream"] = "stored"
    """stored: features of the test images come from the dataset; stream: they are computed and not stored."""
    classifier: Literal["svm", "softmax"] = Field("svm", json_schema_extra=ADDED_LATER)
    """svm: the SVMs' scores; softmax: the fine-tuned head's probabilities, without SVMs."""
    regress: bool = True
    """Move boxes by the box regressors."""
    score_above: float = -1.5
    """A window is a detection of a class if its score is higher. Probabilities are from 0 to 1: try 0.01."""
    nms_overlap: float = Field(0.3, ge=0, le=1)
    """Of detections of a class whose IoU is above this, the best stays."""
    max_per_class: int = Field(100, ge=1)
    """Detections per class and image."""


def detect_method(
    config: DetectConfig, layer: Layer, head: HeadConfig, record: RunRecord, image_ids: Sequence[str]
) -> str:
    """The method id: of the features and the models, for these test images. Their annotations do not enter."""
    if config.source == "stream":
        features = DatasetRecord(stage="extract", method=stored_features(record).method)
        read = [dataset_record(record, "proposals"), features]
    else:
        read = [stored_features(record)]
    if config.classifier == "svm":
        read.append(dataset_record(record, "svms"))
    if config.regress:
        read.append(dataset_record(record, "regressors"))
    values = config.identity()
    if config.classifier == "softmax" or layer != "pool5":
        read.append(dataset_record(record, "head"))
        values["svd_rank"] = head.svd_rank
    return reduce_method("detect", VERSION, values, read, [ids_digest(image_ids)])


def detection_shards(index: Index, image_ids: Sequence[str]) -> list[Shard]:
    """The shards of ``detections``: of 64 images at most, for their rows are small."""
    digests = index.digests()
    return list(shards({image_id: digests[image_id] for image_id in image_ids}, 1))
