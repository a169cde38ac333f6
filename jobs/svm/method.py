"""What the SVMs hang on."""

from __future__ import annotations

from collections.abc import Sequence

from jobs.config.svm import SvmConfig
from jobs.record.lineage import ids_digest, reduce_method, stored_features
from storage.runs import RunRecord, dataset_record

VERSION = 1


def svm_method(config: SvmConfig, record: RunRecord, image_ids: Sequence[str]) -> str:
    """The method id; ``image_ids`` are the training images, whose annotations the shards of truth_features hash."""
    if config.layer == "pool5":
        read = [stored_features(record), dataset_record(record, "truth_features")]
    else:  # their methods tell the layer
        read = [dataset_record(record, "embeddings"), dataset_record(record, "truth_embeddings")]
    return reduce_method("train-svm", VERSION, config.identity(), read, [ids_digest(image_ids)])
