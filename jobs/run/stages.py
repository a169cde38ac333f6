"""The stages in order, and the map datasets that a config or a recorded run stands for."""

from __future__ import annotations

from jobs.bbox.method import bbox_method
from jobs.config.run_config import RunConfig
from jobs.dataset.index import Index, object_digests
from jobs.dataset.stored import recorded_index
from jobs.detect.method import detect_method
from jobs.evaluate.method import evaluate_method
from jobs.features.known_bodies import BodyIdentity
from jobs.features.method import TRUTH_BOXES_PER_IMAGE, features_method, truth_method, vector_length
from jobs.head.method import embed_method, head_method
from jobs.proposals.box_file import boxes_digest
from jobs.proposals.method import BYTES_PER_BOX, propose_method
from jobs.record.stage import STAGES
from jobs.shards.survey import MapDataset, map_dataset
from jobs.svm.method import svm_method
from storage.root import Root
from storage.runs import RunRecord


def run_stages(config: RunConfig, until: str = STAGES[-1]) -> tuple[str, ...]:
    """The stages that a run of ``config`` goes through up to ``until``: those whose results it asks for."""
    softmax = config.detect.classifier == "softmax"
    unasked = {
        "finetune": not config.needs_head,
        "embed": softmax or config.svm.layer == "pool5",
        "train-svm": softmax,
    }
    return tuple(s for s in STAGES[: STAGES.index(until) + 1] if s == until or not unasked.get(s, False))


def planned_datasets(config: RunConfig, index: Index, index_method: str, body: BodyIdentity | None) -> list[MapDataset]:
    """The map datasets of a config: proposals, and with a body truth_features and features (or windows and maps)."""
    digests = index.digests()
    boxes = config.proposals.max_per_image
    method = propose_method(
        config.proposals, index_method, boxes_digest(config.proposals, config.dataset.storage_options)
    )
    proposals = map_dataset("propose", "proposals", method, digests, boxes * BYTES_PER_BOX)
    if body is None:
        return [proposals]
    vector_bytes = 2 * vector_length(config.features, body)
    maps = config.features.store == "maps"
    features = map_dataset(
        "extract",
        "windows" if maps else "features",
        features_method(config.features, body.digest, method),
        digests,
        boxes * vector_bytes,
        proposals,
        companion="maps" if maps else None,
        only=_stored_images(config, index),
    )
    truth = map_dataset(
        "extract",
        "truth_features",
        truth_method(config.features, body.digest, index_method),
        object_digests(index, config.dataset.train_splits),
        TRUTH_BOXES_PER_IMAGE * vector_bytes,
    )
    return [proposals, truth, features]


def _stored_images(config: RunConfig, index: Index) -> list[str] | None:
    """The images whose features are stored, if not all: those of the test splits may pass by (``detect.source``)."""
    return index.images_in(config.dataset.train_splits) if config.detect.source == "stream" else None


def recorded_datasets(root: Root, record: RunRecord) -> list[MapDataset]:
    """The map datasets of a recorded run, from what it says of them: without weights or images."""
    index = recorded_index(root, record)
    splits = RunConfig.model_validate(record.config).dataset.train_splits
    made: dict[str, MapDataset] = {}
    for name in ("proposals", "truth_features", "windows", "features"):
        entry = record.datasets.get(name)
        if entry is None:
            continue
        digests = object_digests(index, splits) if name == "truth_features" else index.digests()
        upstream = made.get("proposals") if name in ("windows", "features") else None
        companion = "maps" if name == "windows" else None
        only = index.images_in(splits) if entry.partial else None
        made[name] = map_dataset(
            entry.stage, name, entry.method, digests, entry.bytes_per_image, upstream, companion, only
        )
    return list(made.values())


def reduce_method_of(stage: str, config: RunConfig, record: RunRecord, index: Index) -> str:
    """The method id that one of ``REDUCE_STAGES`` has after what is upstream of it in ``record``.

    StorageError, naming the verb, if something upstream is not complete.
    """
    if stage == "finetune":
        finetune = config.finetune if config.finetunes else None
        annotated = object_digests(index, config.dataset.train_splits)
        workers = config.execution.train_workers
        return head_method(config.head, finetune, record, index.class_names(), annotated, workers)
    if stage == "embed":
        return embed_method(config.svm.layer, record, index.images_in(config.dataset.train_splits))
    if stage == "train-svm":
        return svm_method(config.svm, record, index.images_in(config.dataset.train_splits))
    if stage == "train-bbox":
        return bbox_method(config.bbox, record, index.images_in(config.dataset.train_splits))
    if stage == "detect":
        images = index.images_in(config.dataset.test_splits)
        return detect_method(config.detect, config.svm.layer, config.head, record, images)
    return evaluate_method(config.evaluate, record, index.objects_in(config.dataset.test_splits))


def reduce_images(stage: str, config: RunConfig, index: Index) -> list[str]:
    """The images that one of ``REDUCE_STAGES`` looks at."""
    dataset = config.dataset
    return index.images_in(dataset.test_splits if stage in ("detect", "evaluate") else dataset.train_splits)
