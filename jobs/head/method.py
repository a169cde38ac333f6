"""What training windows, heads and embeddings hang on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from jobs.config.head import FinetuneConfig, HeadConfig, Layer
from jobs.features.stored import feature_manifest
from jobs.record.lineage import ids_digest, reduce_method, stored_features
from storage.identity import canonical_json, digest, method_id
from storage.manifest import recorded_manifest
from storage.root import Root, StorageError
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


def window_shards(config: FinetuneConfig, dim: int, annotated: Mapping[str, str]) -> list[Shard]:
    """The shards of ``training_windows``; ``annotated``: training image to a digest of it and its objects."""
    return list(shards(annotated, 2 * dim * config.windows_per_image))


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


def embed_method(layer: Layer, record: RunRecord, image_ids: Sequence[str]) -> str:
    """The method id of both datasets. Whether the head is fine-tuned its own method tells."""
    read = [dataset_record(record, "head"), stored_features(record), dataset_record(record, "truth_features")]
    return reduce_method("embed", EMBED_VERSION, {"layer": layer.removeprefix("ft")}, read, [ids_digest(image_ids)])


def embedded_shards(root: Root, record: RunRecord, image_ids: Sequence[str]) -> dict[str, list[Shard]]:
    """The shards of both datasets: those of the vectors that they are made of, with the images (sorted) of both.

    StorageError, naming the verb, if those vectors are not complete.
    """
    sources = {"embeddings": feature_manifest(root, record)}
    sources["truth_embeddings"] = recorded_manifest(root, record, "truth_features")
    planned: dict[str, list[Shard]] = {}
    for name, manifest in sources.items():
        planned[name] = []
        for row in manifest.table.select(["shard", "first_image", "last_image"]).to_pylist():
            ids = tuple(image_id for image_id in image_ids if row["first_image"] <= image_id <= row["last_image"])
            if ids:
                planned[name].append(Shard(row["shard"], ids))
    return planned
