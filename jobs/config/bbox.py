"""The section ``bbox``: box regressors."""

from __future__ import annotations

from pydantic import Field

from jobs.config.settings import Settings


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
    """Draws the windows to learn from, where there are more than are used."""
