"""The section ``evaluate``: how detections are measured."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from jobs.config.settings import Settings


class EvaluateConfig(Settings):
    """The ``evaluate:`` section of the config."""

    min_overlap: float = Field(0.5, gt=0, le=1)
    """IoU from which a detection finds an object."""
    thresholds: Literal["exact", "arange"] = "exact"
    """Recalls of the 11-point measure: exact tenths, or py-faster-rcnn's floating-point ones."""
