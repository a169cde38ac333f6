"""What a run's record says of how good its datasets are, beside how large: one model for each dataset that is measured.

Fields stand in the order in which records have them. What a record says beyond them is kept as it is.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field


class _Said(BaseModel):
    model_config = ConfigDict(extra="allow")


class Quality(_Said):
    """Nothing measured yet, or nothing that this version knows."""


class SplitQuality(_Said):
    """Proposals of a split: recall at an IoU of 0.5 and MABO, None without ``objects``."""

    objects: int
    recall: float | None
    mabo: float | None


class ProposalsQuality(Quality):
    """Of ``proposals``, split by split, measured with the manifest ``objects`` of that dataset."""

    objects: str | None
    splits: dict[str, SplitQuality]


class ClassMetrics(_Said):
    """A class of ``metrics``, without the curves; APs are None where there is no object to find."""

    class_name: str
    ap_11: float | None
    ap_area: float | None
    positives: int
    detections: int
    true_positives: int


class MetricsQuality(Quality):
    """Of ``metrics``: mean APs over the classes that have objects, and a row per class."""

    map_11: float | None
    map_area: float | None
    classes: list[ClassMetrics]


class DetectionsIdentity(_Said):
    """What tells a run's detections from later ones."""

    method: str
    manifest: str | None


class CombinationQuality(Quality):
    """Of the ``detections`` of a combination: the runs that it was made from, and how they were suppressed."""

    runs: dict[str, DetectionsIdentity]
    nms_overlap: float


class ViewQuality(_Said):
    """Shares of ``images`` whose class is the first, and among the first five, that a network says."""

    top1: float
    top5: float
    images: int


class NetworkQuality(Quality):
    """Of ``network``: view to what it says of the images ``tested_on``, which ``identity`` is a digest of.

    ``failed``: image to why it could not be read.
    """

    identity: str
    tested_on: str
    views: dict[str, ViewQuality]
    failed: dict[str, str] = Field(default_factory=dict)


class LayerQuality(_Said):
    """A layer of a view: the mean over splits, and their standard deviation (0 of a single one).

    ``held_out``: the mean on parts of the training images, where a short side is chosen by it.
    """

    view: str
    layer: str
    mean: float
    deviation: float
    splits: int
    held_out: float | None = None


class ClassificationQuality(Quality):
    """Of ``classification``: every layer of every view, by the column ``measure``."""

    measure: str
    layers: list[LayerQuality]


AnyQuality = Annotated[
    ProposalsQuality | MetricsQuality | CombinationQuality | NetworkQuality | ClassificationQuality | Quality,
    Field(union_mode="left_to_right"),
]
"""What a record may say; the keys that a model asks for tell which it is."""
