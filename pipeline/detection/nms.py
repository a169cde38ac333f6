"""Greedy non-maximum suppression (paper 4.1; nms/nms_mex.cpp of the released code).

Boxes overlap too much when their IoU is strictly above the limit: at 0.3, a pair with exactly 3/10 stays
(nms_mex.cpp:55-63). The released code counts pixels with "+1" on inclusive boxes, which is the same IoU.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pipeline.boxes import Boxes
from pipeline.compiled import compiled

OVERLAP = 0.3
"""Of the released code and of R-CNN."""


def nms(boxes: Boxes, scores: NDArray[np.floating], overlap: float = OVERLAP) -> NDArray[np.int64]:
    """Indices of the boxes that stay, best score first; of equal scores the lower index goes first.

    ``boxes`` is (N, 4), half-open pixels; ``scores`` (N,). The best remaining box stays and removes every other one
    with which its IoU is above ``overlap``, until none remains. A box without area neither removes nor is removed.

    Raises ValueError for lengths that differ, a score that is NaN, a corner that is not finite, or an overlap
    outside 0 to 1.
    """
    if not 0 <= overlap <= 1:
        raise ValueError(f"an overlap is an IoU from 0 to 1, not {overlap}")
    corners, values = np.asarray(boxes, np.float64).reshape(-1, 4), np.asarray(scores)
    if values.shape != (len(corners),):
        raise ValueError(f"{len(corners)} boxes need as many scores, in one dimension, not shape {values.shape}")
    if np.isnan(values).any() or not np.isfinite(corners).all():
        raise ValueError("scores must not be NaN, and the corners of boxes must be finite")
    order = np.lexsort((-values.astype(np.float64),))  # stable, which settles equal scores
    return order[_stay(corners[order], float(overlap))].astype(np.int64, copy=False)


@compiled()
def _stay(boxes: NDArray[np.float64], overlap: float) -> NDArray[np.bool_]:
    """Which of float64 boxes (N, 4), best first, remain.

    In float64 the areas of whole pixels are exact, and so is the comparison: 3/10 as a quotient of areas is rounded to
    the same float as the 0.3 of a program, and quotients next to it to others.
    """
    count = boxes.shape[0]
    areas = np.empty(count)
    for i in range(count):
        areas[i] = max(boxes[i, 2] - boxes[i, 0], 0.0) * max(boxes[i, 3] - boxes[i, 1], 0.0)
    stays = np.ones(count, np.bool_)
    for i in range(count):
        if not stays[i]:
            continue
        x1, y1, x2, y2 = boxes[i]
        for j in range(i + 1, count):
            if not stays[j]:
                continue
            width = min(x2, boxes[j, 2]) - max(x1, boxes[j, 0])
            height = min(y2, boxes[j, 3]) - max(y1, boxes[j, 1])
            if width > 0 and height > 0:
                shared = width * height
                if shared / (areas[i] + areas[j] - shared) > overlap:
                    stays[j] = False
    return stays
