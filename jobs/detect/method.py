"""What detections hang on."""

from __future__ import annotations

from collections.abc import Sequence

from jobs.config.detect import DetectConfig
from jobs.config.head import HeadConfig, SvmLayer
from jobs.record.lineage import ids_digest, reduce_method, stored_features
from jobs.record.stage import Context
from jobs.shards.survey import ShardedDataset
from storage.runs import DatasetRecord, RunRecord, dataset_record
from storage.shards import Shard, shards

VERSION = 1


def detect_method(
    config: DetectConfig, layer: SvmLayer, head: HeadConfig, record: RunRecord, image_ids: Sequence[str]
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


def planned_detections(context: Context) -> ShardedDataset:
    """``detections``, in shards of 64 images at most, for their rows are small."""
    config, images = context.config, context.test_images()
    method = detect_method(config.detect, config.svm.layer, config.head, context.record, images)

    def cut() -> list[Shard]:
        digests = context.index.digests()
        return list(shards({image_id: digests[image_id] for image_id in images}, 1))

    return ShardedDataset(stage="detect", name="detections", method=method, cut=cut)
