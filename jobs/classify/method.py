"""What stored layers, predictions and measures of whole images hang on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from jobs.config.classify import ClassifyConfig
from jobs.config.features import FeaturesConfig
from jobs.record.lineage import reduce_method
from storage.identity import canonical_json, digest, method_id
from storage.runs import DatasetRecord

VERSION = 1
FEATURES_VERSION = 1


def image_features_method(
    features: FeaturesConfig, views: Sequence[str], layers: Sequence[str], weights: str, classifier: str
) -> str:
    """The method id of ``image_features``, made with ``weights`` and ``classifier`` (digests). Not of the images."""
    identity = features.identity()
    kept = {key: identity[key] for key in ("body", "pyramid", "max_scaled_pixels")}
    values = {**kept, "views": list(views), "layers": list(layers)}
    return method_id("classify-features", FEATURES_VERSION, values, weights=weights, upstream=[classifier])


def classify_method(
    config: ClassifyConfig,
    features: DatasetRecord,
    layers: Sequence[str],
    labels: Mapping[str, Sequence[Any]],
    splits: Sequence[Sequence[Sequence[str]]],
) -> str:
    """The method id of ``classification`` and ``image_scores``.

    ``labels``: image to its classes; ``splits``: the images that each trains on and is tested on.
    """
    also = [digest(canonical_json(dict(sorted(labels.items())))), digest(canonical_json(list(splits)))]
    return reduce_method("classify", VERSION, {**config.measuring(), "layers": list(layers)}, [features], also)
