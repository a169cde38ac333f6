"""How good proposals are: recall at an overlap, and mean average best overlap (MABO)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.boxes import Boxes, iou


def best_overlaps(truth: Boxes, proposals: Boxes) -> NDArray[np.float32]:
    """The highest IoU that any proposal has with each ground-truth box, shape (N,); 0 without proposals."""
    if len(proposals) == 0:
        return np.zeros(len(truth), np.float32)
    best: NDArray[np.float32] = iou(truth, proposals).max(axis=1)
    return best


@dataclass(frozen=True)
class ProposalQuality:
    """Over ``objects`` ground-truth boxes (difficult ones left out).

    ``recall`` is the share of objects that some proposal overlaps with IoU >= 0.5; ``mabo`` the mean over classes of
    the mean best overlap of a class's objects (Uijlings et al. 2013, 5). Both are None where there is no object.
    """

    objects: int
    recall: float | None
    mabo: float | None


def proposal_quality(class_names: Sequence[str], overlaps: NDArray[np.floating]) -> ProposalQuality:
    """Recall and MABO from the class and the best overlap of every object, both of length N."""
    if len(overlaps) == 0:
        return ProposalQuality(0, None, None)
    names = np.asarray(class_names)
    averages = [float(np.mean(overlaps[names == name], dtype=np.float64)) for name in np.unique(names)]
    return ProposalQuality(len(overlaps), float(np.mean(overlaps >= 0.5)), float(np.mean(averages)))
