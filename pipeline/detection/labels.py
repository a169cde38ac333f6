"""Labels: which windows of an image are positives or negatives of which class, all classes at once.

Positives are ground-truth boxes only (SPP_net spp_train.m:395-410). Negatives are the boxes that overlap every
ground-truth box of the class by less than 0.3 (:280, 290-291). Difficult objects are never positives, and always
references: a window on one is no negative of its class.

Boxes are half-open pixels (``pipeline.boxes``); a class is its index, from 0; columns of every result are classes.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pipeline.boxes import Boxes, area, iou
from pipeline.compiled import compiled
from pipeline.spp.windows import Windows

Classes = NDArray[np.integer]
Mask = NDArray[np.bool_]

NEGATIVE_BELOW = 0.3
"""IoU to each ground-truth box of a class below which a box is its negative (spp_train.m neg_ovr_threshs)."""

SAME_ABOVE = 0.7
"""IoU above which two negatives are one too many (paper 4.1: "overlaps another negative sample by more than 70%")."""


def class_overlaps(boxes: Boxes, truth: Boxes, truth_class: Classes, classes: int) -> NDArray[np.float32]:
    """The highest IoU of every box to any ground-truth box of each class, float32 (N, classes); 0 where it has none.

    ``boxes`` is (N, 4); ``truth`` (M, 4) and ``truth_class`` (M,) are all the ground truth of the image, difficult
    objects included. Raises ValueError for a class outside 0 .. ``classes`` - 1, or another length of the two.
    """
    _check_classes(truth, truth_class, classes)
    best = np.zeros((len(boxes), classes), np.float32)
    overlaps = iou(boxes, truth)
    for present in np.unique(truth_class):
        best[:, present] = overlaps[:, truth_class == present].max(axis=1)
    return best


def positives(truth_class: Classes, difficult: Mask, classes: int, difficult_positive: bool = False) -> Mask:
    """Which ground-truth boxes are positives of which class, bool (M, classes): each of its own, unless difficult.

    ``difficult_positive=True``: difficult ones too, as the released code does by default (roidb_from_voc.m:136-140).
    Raises ValueError as ``class_overlaps`` does.
    """
    _check_classes(difficult, truth_class, classes)
    own: Mask = np.asarray(truth_class)[:, None] == np.arange(classes)
    return own if difficult_positive else own & ~np.asarray(difficult, dtype=bool)[:, None]


def negatives(overlaps: NDArray[np.float32], below: float = NEGATIVE_BELOW) -> Mask:
    """Which boxes are negatives of which class, bool (N, classes), from their ``class_overlaps``.

    The rule holds for ground-truth boxes as for proposals: a box of another class is a negative (spp_train.m:280).
    In an image without objects of a class, every box is.
    """
    return overlaps < np.float32(below)


def finetune_labels(
    boxes: Boxes,
    truth: Boxes,
    truth_class: Classes,
    difficult: Mask,
    foreground: float = 0.5,
    background: tuple[float, float] = (0.1, 0.5),
) -> NDArray[np.int64]:
    """What each window is to the head: 1 + its class, 0 for the background, -1 for neither. int64 (N,).

    A window of ``boxes`` (N, 4) is foreground, of the class of the object that it overlaps most (the first of equals),
    from an IoU of ``foreground`` on; background if that IoU is in ``background``, its end left out (paper 4.2;
    spp_finetune_voc.m:48-53, 272-293). One that overlaps a difficult object most is no foreground. ``truth`` (M, 4),
    ``truth_class`` and ``difficult`` (M,) are all objects of the image.
    """
    if not len(truth):
        return np.full(len(boxes), 0 if background[0] <= 0 else -1, np.int64)
    overlaps = iou(boxes, truth)
    best = overlaps.argmax(axis=1)
    most = overlaps[np.arange(len(boxes)), best]
    labels = np.full(len(boxes), -1, np.int64)
    labels[(most >= np.float32(background[0])) & (most < np.float32(background[1]))] = 0
    known = (most >= np.float32(foreground)) & ~np.asarray(difficult, bool)[best]
    labels[known] = 1 + np.asarray(truth_class)[best[known]]
    return labels


def dedupe_negatives(boxes: Boxes, negative: Mask, above: float = SAME_ABOVE) -> Mask:
    """``negative``, bool (N, classes), without those that overlap an earlier remaining negative of the class too much.

    Greedy in the order of the boxes (N, 4), that of the proposals: a negative goes when its IoU to one that stays is
    strictly more than ``above``; one that went removes nothing. The paper takes the rule from Uijlings et al. 2013
    (4.1) and leaves the order open; the released code has ``first_of_cells`` instead. Empty boxes overlap nothing.

    Returns a new mask. Raises ValueError when the two differ in length.
    """
    if negative.ndim != 2 or len(negative) != len(boxes):
        raise ValueError(f"negative must be a mask of shape ({len(boxes)}, classes), got {negative.shape}")
    kept = np.array(negative, dtype=np.bool_, order="C")
    boxes = np.ascontiguousarray(boxes, dtype=np.float32)
    _drop_overlapping(boxes, area(boxes), kept, np.float32(above))
    return kept


def first_of_cells(scales: NDArray[np.integer], windows: Windows) -> NDArray[np.intp]:
    """Indices, ascending, of the first window of every distinct pair of scale and conv window.

    ``scales`` is (N,) and ``windows`` int16 (N, 4), inclusive cells. Windows that pool the same cells have the same
    vector. The released code compares cells before they are clamped to the map (spp_features_convX_to_poolX.m:47-51)
    and so keeps some vectors twice at the borders; here they are those that are pooled.
    """
    pairs = np.column_stack([np.asarray(scales, dtype=np.int64), np.asarray(windows, dtype=np.int64).reshape(-1, 4)])
    order = np.lexsort(pairs.T)  # stable: of equal pairs the first comes first
    ordered = pairs[order]
    first = np.ones(len(pairs), dtype=bool)
    first[1:] = (ordered[1:] != ordered[:-1]).any(axis=1)
    return np.sort(order[first])


def _check_classes(truth: Boxes | Mask, truth_class: Classes, classes: int) -> None:
    if len(truth) != len(truth_class):
        raise ValueError(f"{len(truth)} ground-truth boxes, but {len(truth_class)} classes for them")
    if len(truth_class) and not 0 <= np.min(truth_class) <= np.max(truth_class) < classes:
        raise ValueError(f"classes of ground truth must be 0 .. {classes - 1}, got {np.unique(truth_class).tolist()}")


@compiled(error_model="numpy")
def _drop_overlapping(
    boxes: NDArray[np.float32], areas: NDArray[np.float32], kept: NDArray[np.bool_], above: np.float32
) -> None:
    """Clears ``kept`` (N, classes) in place. One pass serves all classes, as IoUs are the same for each of them.

    The arithmetic is that of ``pipeline.boxes.iou``, in float32 and in its order, so that both agree at the threshold.
    """
    zero = np.float32(0)
    n, classes = kept.shape
    stays = np.empty(n, np.int64)  # boxes that some class keeps: only they can remove a later one
    sides = np.empty((5, n), np.float32)  # their x1, y1, x2, y2 and area, side by side: the loop on them is a vector's
    overlaps = np.empty(n, np.float32)
    count = 0
    for i in range(n):
        left = 0
        for c in range(classes):
            left += kept[i, c]
        if left == 0:
            continue
        x1, y1, x2, y2 = boxes[i]
        for s in range(count):
            width = max(min(x2, sides[2, s]) - max(x1, sides[0, s]), zero)
            height = max(min(y2, sides[3, s]) - max(y1, sides[1, s]), zero)
            shared = width * height
            overlaps[s] = shared / (areas[i] + sides[4, s] - shared)  # of two empty boxes: NaN, never above
        for s in range(count):
            if overlaps[s] > above:
                for c in range(classes):
                    if kept[i, c] and kept[stays[s], c]:
                        kept[i, c] = False
                        left -= 1
                if left == 0:
                    break
        if left > 0:
            stays[count] = i
            sides[:4, count] = boxes[i]
            sides[4, count] = areas[i]
            count += 1
