"""What the box regressors hang on."""

from __future__ import annotations

from collections.abc import Sequence

from jobs.config.bbox import BboxConfig
from jobs.record.lineage import ids_digest, reduce_method, stored_features
from storage.runs import RunRecord, dataset_record

VERSION = 1


def bbox_method(config: BboxConfig, record: RunRecord, image_ids: Sequence[str]) -> str:
    """The method id; ``image_ids`` are the training images, whose annotations the shards of truth_features hash."""
    read = [stored_features(record), dataset_record(record, "truth_features")]
    return reduce_method("train-bbox", VERSION, config.identity(), read, [ids_digest(image_ids)])
