"""embed: the outputs of a layer of the head, for the windows of the training images.

    spp embed --config configs/raccoon_kangaroo.yaml --root /data/spp --set svm.layer=ftfc7

Two datasets, ``embeddings`` and ``truth_embeddings``, with the columns of ``features`` and ``truth_features``: SVMs are
trained on them through many passes, for which the head is run once. In detection it is run while scanning. The work is
in jobs/embedding.py.
"""

from __future__ import annotations

from collections.abc import Sequence

from jobs.features import feature_manifest
from jobs.finetune import Layer
from jobs.reduce import ids_digest, reduce_method, stored_features
from storage.manifest import recorded_manifest
from storage.root import Root
from storage.runs import RunRecord, dataset_record
from storage.shards import Shard

VERSION = 1


def embed_method(layer: Layer, record: RunRecord, image_ids: Sequence[str]) -> str:
    """The method id of both datasets. Whether the head is fine-tuned its own method tells."""
    read = [dataset_record(record, "head"), stored_features(record), dataset_record(record, "truth_features")]
    return reduce_method("embed", VERSION, {"layer": layer.removeprefix("ft")}, read, [ids_digest(image_ids)])


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
