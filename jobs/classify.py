"""classify: whole images by linear SVMs on the layers of a network (paper 3.2 and 3.3, Tables 6 and 7).

    spp classify --config configs/caltech101.yaml --root /data/spp --set dataset.path=/data/101_ObjectCategories

The story: actors show every image to the body once per view, and store each layer of each view in ``image_features``.
The products of all images' vectors are then computed once per layer and view, and serve every split and every class:
an SVM whose examples are fewer than its dimensions sees nothing else of them. Layers and views are tasks side by side;
the classes of a split, milliseconds each, are shared out to a task's threads. What was predicted stands in
``image_scores``, what was measured in ``classification``.

Protocols: ``voc07``, one SVM per class, average precision on the test splits; ``caltech101``, 30 images of each class
to train on and at most 50 to test on, in 10 random splits, mean class accuracy; ``folder``, the same with all others to
test on, or with the data set's own splits where it has some.

The driver is jobs/classifying.py, the actor jobs/view_actor.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pydantic import Field, field_validator

from jobs.extract import FeaturesConfig
from jobs.reduce import reduce_method
from jobs.settings import Settings
from pipeline.image_view import View
from storage.identity import canonical_json, digest, method_id
from storage.runs import DatasetRecord

VERSION = 1
FEATURES_VERSION = 1

CALTECH_TEST = 50
"""Test images of a class, at most, in the Caltech-101 protocol (paper 3.3)."""


class ClassifyConfig(Settings):
    """The ``classify:`` section of the config."""

    protocol: Literal["voc07", "caltech101", "folder"] = "folder"
    """voc07: average precision per class on the test splits; caltech101 and folder: accuracy on random splits."""
    views: tuple[str, ...] = ("crop", "full-224")
    """crop: 224 x 224 from the centre of the image at short side 256; warp: the whole image squeezed into 224 x 224
    (or what the body was trained at, and the short side in proportion);
    full-S: the whole image at short side S."""
    layers: tuple[str, ...] | None = None
    """Some of the body's layers (conv4, conv5, pool, spp, fc6, fc7; c4, c5 of the efficientnets); null: all."""
    C: float = Field(1.0, gt=0)
    """Weight of the losses against the regulariser; vectors are divided by their norm."""
    bias: float = Field(1.0, gt=0)
    """Value of the feature whose weight is the bias; the larger, the less the bias is regularised."""
    solver: Literal["auto", "gram", "sklearn"] = "auto"
    """gram: over the products of the images; sklearn: LinearSVC on the vectors; auto: gram while the images are fewer
    than twice the dimensions and their products fit ``memory_mb``."""
    tolerance: float = Field(1e-3, gt=0)
    """The solver's; of gram: how far, relatively, the objective may be from its minimum."""
    train_per_class: int = Field(30, ge=1)
    """Of random splits: images of each class to train on."""
    test_per_class: int | None = Field(None, ge=1)
    """Of random splits: images of each class to test on, at most; null: 50 in caltech101, all others in folder."""
    splits: int = Field(10, ge=1)
    """Number of random splits."""
    seed: int = Field(0, ge=0)
    """Of the splits."""
    held_out: float = Field(0.2, gt=0, lt=1)
    """Share of the training images on which the best short side of full views is chosen."""
    memory_mb: int = Field(6000, ge=1)
    """Memory of one task: the vectors of a layer and view, and the products of all images."""
    no_spp_weights: str | None = None
    """Of `spp table --classification`: weights of the body trained without SPP, for the first column."""

    @field_validator("views")
    @classmethod
    def _views_are_views(cls, views: tuple[str, ...]) -> tuple[str, ...]:
        if not views or len(set(views)) != len(views):
            raise ValueError("give one or more distinct views, such as [crop, full-224]")
        for text in views:
            View.parse(text)
        return views

    @property
    def most_tested(self) -> int | None:
        """Test images of a class, at most."""
        return CALTECH_TEST if self.protocol == "caltech101" and self.test_per_class is None else self.test_per_class

    def measuring(self) -> dict[str, Any]:
        """The values that decide what is measured of stored layers."""
        values = self.identity()
        for key in ("memory_mb", "no_spp_weights", "views", "layers"):
            del values[key]
        return values


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
