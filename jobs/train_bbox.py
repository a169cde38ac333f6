"""train-bbox: one box regressor per class (paper 4.2; spp_train_bbox_regressor.m).

    spp train-bbox --config configs/raccoon_kangaroo.yaml --root /data/spp

Which windows train is decided from the box columns; then one task per class reads the vectors of its own windows only,
and solves the smaller of the primal and the dual system. The story is told in jobs/bbox_training.py.
"""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import Field

from jobs.reduce import ids_digest, reduce_method, stored_features
from jobs.settings import Settings
from storage.runs import RunRecord, dataset_record

VERSION = 1


class BboxConfig(Settings):
    """The ``bbox:`` section of the config."""

    ridge: float = Field(1000.0, gt=0)
    """Penalty on the weights (R-CNN's; the released SPP-net code has 4000)."""
    min_overlap: float = Field(0.5, ge=0, lt=1)
    """A window trains if its IoU to its best ground-truth box is above this."""
    target_norm: float = Field(20.0, gt=0)
    """Features are scaled by one number, so that the mean norm of the ground-truth boxes' vectors is this."""
    difficult_positive: bool = False
    """Train towards difficult objects too (the released code does)."""
    max_windows: int = Field(10_000, ge=1)
    """Windows per class: its ground-truth boxes, and proposals drawn at random."""
    seed: int = Field(0, ge=0)
    """Of the draw."""


def bbox_method(config: BboxConfig, record: RunRecord, image_ids: Sequence[str]) -> str:
    """The method id; ``image_ids`` are the training images, whose annotations the shards of truth_features hash."""
    read = [stored_features(record), dataset_record(record, "truth_features")]
    return reduce_method("train-bbox", VERSION, config.identity(), read, [ids_digest(image_ids)])
