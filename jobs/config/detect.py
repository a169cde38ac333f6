"""The section ``detect``: how test images are detected on."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from jobs.config.settings import ADDED_LATER, Settings


class DetectConfig(Settings):
    """The ``detect:`` section of the config."""

    source: Literal["stored", "stream"] = "stored"
    """stored: features of the test images come from the dataset; stream: they are computed and not stored."""
    classifier: Literal["svm", "softmax"] = Field("svm", json_schema_extra=ADDED_LATER)
    """svm: the SVMs' scores; softmax: the fine-tuned head's probabilities, without SVMs."""
    regress: bool = True
    """Move boxes by the box regressors."""
    score_above: float = -1.5
    """A window is a detection of a class if its score is higher. Probabilities are from 0 to 1: try 0.01."""
    nms_overlap: float = Field(0.3, ge=0, le=1)
    """Of detections of a class whose IoU is above this, the best stays."""
    max_per_class: int = Field(100, ge=1)
    """Detections per class and image."""
