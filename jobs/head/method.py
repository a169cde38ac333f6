"""What training windows, heads and embeddings hang on."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from jobs.config.head import FinetuneConfig, HeadConfig, SvmLayer
from jobs.dataset.index import object_digests
from jobs.errors import UsageError
from jobs.features.body import identify_body
from jobs.features.method import TRUTH_BOXES_PER_IMAGE, truth_method
from jobs.record.lineage import ids_digest, reduce_method, stored_features
from jobs.record.stage import Context
from jobs.shards.survey import ShardedDataset
from storage.identity import canonical_json, digest, method_id
from storage.root import StorageError
from storage.runs import RunRecord, dataset_record
from storage.shards import Shard, shards

VERSION = 1
WINDOWS_VERSION = 1
EMBED_VERSION = 1


def windows_method(config: FinetuneConfig, record: RunRecord) -> str:
    """The method id of ``training_windows``; its shards' keys hash images and annotations."""
    proposals = dataset_record(record, "proposals")
    extracted = dataset_record(record, "truth_features")  # its method stands for body, weights, scales and pyramid
    return method_id(
        "finetune-windows",
        WINDOWS_VERSION,
        config.sampling(),
        upstream=[f"{proposals.method}/{proposals.manifest}", extracted.method],
    )


def planned_windows(context: Context) -> ShardedDataset:
    """``training_windows``, of a run whose features are complete."""
    config, record = context.config.finetune, context.record
    method = windows_method(config, record)
    # the vectors' length, as the record has it: 64 of 2 bytes each are what a shard of truth_features is cut by
    vector_bytes = record.datasets["truth_features"].bytes_per_image // TRUTH_BOXES_PER_IMAGE
    bytes_per_image = vector_bytes * config.windows_per_image

    def cut() -> list[Shard]:
        return list(shards(object_digests(context.index, context.config.dataset.train_splits), bytes_per_image))

    return ShardedDataset(stage="finetune", name="training_windows", method=method, cut=cut)


def check_body(context: Context) -> None:
    """UsageError unless the run's features were made with the body and weights that the config names."""
    config, record = context.config.features, context.record
    body = identify_body(config)
    extracted = dataset_record(record, "truth_features")
    method = truth_method(config, body.digest, dataset_record(record, "images").method)
    if (method, body.classifier) != (extracted.method, extracted.classifier):
        raise UsageError(
            "the features section or the weights are not those that the run's features were made with; run "
            "`spp extract` first, or `spp run`"
        )


def head_method(
    head: HeadConfig,
    config: FinetuneConfig | None,
    record: RunRecord,
    class_names: Sequence[str],
    annotated: Mapping[str, str],
    workers: int,
) -> str:
    """The method id of ``head``: of the fine-tuned one, or (``config`` None) of that which fine-tuning starts from.

    ``annotated``: training image to a digest of it and its objects. ``workers`` that train it together: each has its
    own part of every mini-batch. StorageError, naming the verb, if the recorded training windows are not those that
    they should be.
    """
    values: dict[str, Any] = {"head": head.identity(), "finetune": config.training() if config else None}
    extracted = dataset_record(record, "truth_features")
    also = [extracted.method, extracted.classifier, digest(canonical_json(list(class_names)))]
    if config is None:
        return reduce_method("finetune", VERSION, values, [], also)
    windows = dataset_record(record, "training_windows")
    if windows.method != windows_method(config, record):
        raise StorageError(
            f"the training windows of run {record.name!r} are not those of its proposals, features and config as they "
            f"are now; `spp finetune` makes them"
        )
    also.append(digest(canonical_json(dict(sorted(annotated.items())))))
    if workers > 1:
        values["workers"] = workers
    return reduce_method("finetune", VERSION, values, [windows], also)


def embed_method(layer: SvmLayer, record: RunRecord, image_ids: Sequence[str]) -> str:
    """The method id of both datasets. Whether the head is fine-tuned its own method tells."""
    read = [dataset_record(record, "head"), stored_features(record), dataset_record(record, "truth_features")]
    return reduce_method("embed", EMBED_VERSION, {"layer": layer.removeprefix("ft")}, read, [ids_digest(image_ids)])


def planned_embeddings(context: Context) -> Iterator[ShardedDataset]:
    """Both datasets, cut as the vectors that they are made of, with the training images of those.

    StorageError if those vectors are not complete.
    """
    image_ids = context.train_images()
    method = embed_method(context.config.svm.layer, context.record, image_ids)
    wanted = frozenset(image_ids)
    stored = "windows" if "windows" in context.sharded and not context.record.complete("features") else "features"
    for name, source in (("embeddings", stored), ("truth_embeddings", "truth_features")):
        cut = partial(_cut_alike, context.sharded[source], wanted)
        yield ShardedDataset(stage="embed", name=name, method=method, cut=cut)


def _cut_alike(vectors: ShardedDataset, wanted: Collection[str]) -> list[Shard]:
    """The shards of ``vectors``, with those images alone that are ``wanted``."""
    cut = [Shard(shard.key, tuple(i for i in shard.image_ids if i in wanted)) for shard in vectors.shards]
    return [shard for shard in cut if shard.image_ids]
