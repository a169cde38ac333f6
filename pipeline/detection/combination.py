"""Several detectors together (paper 4.4, Table 12): their detections pooled, then suppressed once more per class.

Each detector has scored the windows of an image and moved its boxes by its own regressors. In the pool a more confident
box of one suppresses less confident ones of all, which takes scores that mean the same: detectors of one kind, trained
alike.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.boxes import Boxes
from pipeline.detection.nms import OVERLAP, nms


@dataclass(frozen=True)
class DetectionSet:
    """N detections of any images and classes: ``images`` and ``classes``, int64 (N,), as numbers that are the same for
    all detectors; ``scores`` float32 (N,); ``boxes`` float32 (N, 4), half-open pixels.
    """

    images: NDArray[np.int64]
    classes: NDArray[np.int64]
    scores: NDArray[np.float32]
    boxes: Boxes


def combine(detectors: Sequence[DetectionSet], overlap: float = OVERLAP) -> DetectionSet:
    """The pool of what several detectors found, after ``nms`` of each class in each image.

    The best detection stays and removes every other one, of whichever detector, with which its IoU is above
    ``overlap``. Of equal scores that of the earlier detector goes first, then the box with the lower x1, y1, x2, y2.
    The result is sorted by image, class, and score, best first, and does not depend on the order of any rows given.

    The paper pools all scored windows. Where each detector has suppressed its own first, as
    ``pipeline.detection.detector`` does, a box that lost to one which now loses to another detector's does not come
    back.

    Raises ValueError as ``nms`` does, and for arrays whose lengths differ.
    """
    for number, one in enumerate(detectors):
        lengths = {len(one.images), len(one.classes), len(one.scores), len(one.boxes)}
        if len(lengths) > 1:
            raise ValueError(f"the arrays of detector {number} have different lengths: {sorted(lengths)}")
    images = np.concatenate([np.zeros(0, np.int64), *(one.images for one in detectors)])
    classes = np.concatenate([np.zeros(0, np.int64), *(one.classes for one in detectors)])
    scores = np.concatenate([np.zeros(0, np.float32), *(one.scores for one in detectors)])
    boxes = np.concatenate([np.zeros((0, 4), np.float32), *(one.boxes for one in detectors)])
    owner = np.repeat(np.arange(len(detectors)), [len(one.scores) for one in detectors])

    order = np.lexsort((*boxes.T[::-1], owner, -scores, classes, images))
    images, classes, scores, boxes = images[order], classes[order], scores[order], boxes[order]
    changes = 1 + np.flatnonzero((np.diff(images) != 0) | (np.diff(classes) != 0))
    bounds = itertools.pairwise([0, *changes.tolist(), len(order)])
    kept = [start + nms(boxes[start:end], scores[start:end], overlap) for start, end in bounds]
    rows = np.concatenate([np.zeros(0, np.int64), *kept])
    return DetectionSet(images[rows], classes[rows], scores[rows], boxes[rows])
