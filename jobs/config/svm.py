"""The section ``svm``: one linear SVM per class."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from jobs.config.head import SvmLayer
from jobs.config.settings import NOT_IDENTITY, Settings


class SvmConfig(Settings):
    """The ``svm:`` section of the config."""

    layer: SvmLayer = Field("pool5", json_schema_extra=NOT_IDENTITY)
    """What the SVMs see: pool5, the pooled vectors; fc6 or fc7 of the pretrained head; ftfc6 or ftfc7 of the
    fine-tuned one."""
    C: float = Field(1e-3, gt=0)
    """Weight of the losses against the regulariser."""
    positive_weight: float = Field(2.0, gt=0)
    """Weight of a positive's loss against a negative's."""
    bias: float = Field(10.0, gt=0)
    """Value of the feature whose weight is the bias; the larger, the less the bias is regularised."""
    target_norm: float = Field(20.0, gt=0)
    """Features are scaled by one number, so that their mean norm is this."""
    solver: Literal["gram", "sklearn"] = "gram"
    """gram: descent on the dual, over the products of few examples, of many over those that matter; sklearn: LinearSVC.
    Both find the same SVM."""
    tolerance: float = Field(1e-4, gt=0)
    """The solver's; of gram: how far, relatively, the objective may be from its minimum, which is proven in float64."""
    negative_overlap: float = Field(0.3, gt=0, le=1)
    """Windows whose IoU to every ground-truth box of a class is below this are its negatives."""
    negative_dedupe: float | None = Field(None, gt=0, lt=1)
    """Leave out a negative that overlaps an earlier one of its image by more (paper: 0.7); null: keep all."""
    once_per_cells: bool = True
    """Of an image's negatives that cover the same cells of the conv map, keep the first (the released code)."""
    difficult_positive: bool = False
    """Train on difficult objects as positives (the released code does)."""
    start_negatives: int = Field(2000, ge=1)
    """Negatives per class, drawn at random, of the first training."""
    rounds: int = Field(10, ge=1)
    """Groups of shards in one pass over the features; after each the classes are trained again."""
    passes: int | Literal["until_stable"] = 1
    """Passes over the features; until_stable: until one of them finds no hard negative."""
    join_above: float = -1.0001
    """A negative with a higher score joins the cache."""
    leave_below: float = -1.2
    """A cached negative with a lower score leaves after a training."""
    max_per_image: int | None = Field(None, ge=1)
    """Negatives that may join per class, image and pass, the highest scores first; null: all."""
    fit_memory_mb: int = Field(4000, ge=1)
    """Memory of one training. It bounds the cache of a class (4,000 MB: 78,000 vectors of 12,800 numbers); what that
    keeps out is counted and reported."""
    seed: int = Field(0, ge=0)
    """Draws the first negatives, and the order in which the solver goes through its examples."""

    @model_validator(mode="after")
    def _cache_empties(self) -> SvmConfig:
        if self.leave_below > self.join_above:
            raise ValueError(f"leave_below ({self.leave_below:g}) must not be above join_above ({self.join_above:g})")
        if self.passes != "until_stable" and self.passes < 1:
            raise ValueError("passes: give a number from 1 on, or until_stable")
        return self
