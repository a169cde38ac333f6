"""What the training stages read: the classes, and the training images shard by shard."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from jobs.dataset.objects import ImageObjects, objects_of
from jobs.features.stored import FeatureShard, truth_dataset, vector_shards
from jobs.record.stage import Context
from pipeline.detection.labels import positives
from storage.manifest import recorded_manifest


@dataclass(frozen=True)
class TrainingShard:
    """The training images of one shard of features. ``truth``: the files of ``truth_features`` that may hold them."""

    features: FeatureShard
    truth: tuple[str, ...]
    images: tuple[str, ...]
    objects: Mapping[str, ImageObjects]


@dataclass(frozen=True)
class TrainingData:
    """What the training stages read: classes, and the training images shard by shard, in an order of no meaning."""

    class_names: tuple[str, ...]
    shards: tuple[TrainingShard, ...]

    @classmethod
    def of(cls, context: Context, layer: str = "pool5") -> TrainingData:
        """From a run's index, features and truth_features, or the stored outputs of a layer for both."""
        root, record, ids = context.root, context.record, context.train_images()
        names = tuple(context.index.class_names())
        objects = objects_of(context.index, ids, names)
        manifest = recorded_manifest(root, record, truth_dataset(layer))
        shards = []
        for shard in sorted(vector_shards(root, record, layer), key=lambda s: s.shard):
            images = tuple(image_id for image_id in ids if shard.first <= image_id <= shard.last)
            if images:
                keys = tuple(file.key for file in manifest.files if file.may_hold(images))
                shards.append(TrainingShard(shard, keys, images, {i: objects[i] for i in images if i in objects}))
        return cls(names, tuple(shards))


def positive_rows(table: pa.Table, class_names: Sequence[str], difficult: bool) -> NDArray[np.bool_]:
    """Which rows of ``truth_features`` are positives of which class, (rows, classes)."""
    labels = np.array([class_names.index(name) for name in table["class_name"].to_pylist()], np.int64)
    return positives(labels, table["difficult"].to_numpy(), len(class_names), difficult)
