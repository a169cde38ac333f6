"""Average precision as Pascal VOC measures it (VOCevaldet.m; voc_eval.py of py-faster-rcnn).

Detections of a class are taken by descending score. Each is compared with the object of highest IoU in its image,
whether that one is difficult, or already found, or not. Too little overlap: a false positive. A difficult object: the
detection does not count. An object already found: a false positive, even where a second object would fit. Otherwise a
true positive. Difficult objects are no positives.

The devkit asks for IoU >= 0.5; py-faster-rcnn for more than 0.5 (``strict``).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

Thresholds = Literal["exact", "arange"]

OVERLAP = 0.5

_PAIRS_AT_ONCE = 1 << 18
"""Pairs of a detection and an object whose overlaps are in memory together: some 50 MB."""


@dataclass(frozen=True)
class GroundTruth:
    """M annotated objects, in any order.

    ``images`` (M,) holds image ids, whole numbers or strings; ``boxes`` (M, 4) half-open pixels; ``difficult`` (M,)
    bools.
    """

    images: NDArray[Any]
    boxes: NDArray[np.floating]
    difficult: NDArray[np.bool_]


@dataclass(frozen=True)
class Detections:
    """N detections, in any order: ``images`` (N,) and ``boxes`` (N, 4) as in ``GroundTruth``, ``scores`` (N,)."""

    images: NDArray[Any]
    scores: NDArray[np.floating]
    boxes: NDArray[np.floating]


@dataclass(frozen=True)
class MatchedClass:
    """The N detections of one class, best score first, each compared with the objects in its image.

    ``scores`` (N,) and ``images`` (N,), ids as given, say which detection stands where. ``is_true`` (N,) marks
    true positives, ``on_difficult`` (N,) detections that do not count; every other one is a false positive.
    ``positives`` (P,) holds the image of each object that is not difficult.
    """

    scores: NDArray[np.floating]
    images: NDArray[Any]
    is_true: NDArray[np.bool_]
    on_difficult: NDArray[np.bool_]
    positives: NDArray[Any]


@dataclass(frozen=True, kw_only=True)
class ClassResult:
    """What is measured of one class.

    ``scores``, ``recall`` and ``precision``, float64 (n_detections,), have one entry per detection, best score first;
    one on a difficult object repeats the entry before it (0 at the start). Recall is 0 for a class without positives.

    ``ap_11`` is the mean of the best precision at recall >= 0, 0.1 ... 1 (VOC 2007), ``ap_area`` the area under the
    precision made monotone (VOC 2010 and later). Both are None for a class without positives, 0 for one with
    positives and no detections. ``n_positive`` counts objects that are not difficult.
    """

    scores: NDArray[np.floating]
    recall: NDArray[np.float64]
    precision: NDArray[np.float64]
    ap_11: float | None
    ap_area: float | None
    n_positive: int
    n_detections: int
    true_positives: int


def evaluate_class(
    truth: GroundTruth,
    detections: Detections,
    *,
    overlap: float = OVERLAP,
    strict: bool = False,
    thresholds: Thresholds = "exact",
) -> ClassResult:
    """Recall, precision and average precision of one class, from its objects and its detections in all images.

    Equal scores are taken by image id, then in the order given. ``overlap`` is the IoU that a true positive has at
    least, or exceeds if ``strict``; it is compared exactly where corners are whole pixels.

    ``thresholds``: the recalls of ``ap_11`` are exactly k/10, or those of ``numpy.arange(0, 1.1, 0.1)`` in
    py-faster-rcnn, three of which are slightly larger, so that a recall of exactly 3/10 is below 0.3.

    Raises ValueError for arrays whose shapes disagree, image ids that are numbers on one side and strings on the
    other, a score that is NaN, a corner that is not finite, or an overlap that is not above 0 and at most 1.
    """
    return measure(match_class(truth, detections, overlap=overlap, strict=strict), thresholds)


def match_class(
    truth: GroundTruth, detections: Detections, *, overlap: float = OVERLAP, strict: bool = False
) -> MatchedClass:
    """Which detections of one class are right: the first half of ``evaluate_class``, with its rules and errors."""
    if not 0 < overlap <= 1:
        raise ValueError(f"overlap is the IoU of a true positive, above 0 and at most 1, not {overlap}")
    truth, detections = _checked_truth(truth), _checked_detections(detections)
    _, (truth_images, images) = _codes(truth.images, detections.images)
    order = np.lexsort((images, -detections.scores))  # stable: then in the order given
    images, boxes = images[order], detections.boxes[order]

    found = _best_objects(truth_images, truth.boxes, images, boxes, overlap, strict)
    hits_difficult = np.append(truth.difficult, False)[found]  # found is -1 without an object: the False at the end
    hits = np.flatnonzero((found >= 0) & ~hits_difficult)
    first_hits = hits[np.unique(found[hits], return_index=True)[1]]
    is_true = np.zeros(len(order), bool)
    is_true[first_hits] = True
    return MatchedClass(
        scores=detections.scores[order],
        images=detections.images[order],
        is_true=is_true,
        on_difficult=hits_difficult,
        positives=truth.images[~truth.difficult],
    )


def measure(matched: MatchedClass, thresholds: Thresholds = "exact") -> ClassResult:
    """Recall, precision and average precision of one class: the second half of ``evaluate_class``."""
    positives = len(matched.positives)
    is_true = matched.is_true
    true = np.cumsum(is_true, dtype=np.int64)
    counted = np.cumsum(~matched.on_difficult)
    precision = true / np.maximum(counted, 1)  # 0 instead of the devkit's 0/0 before the first that counts
    ceiling = best_precision(precision)
    return ClassResult(
        scores=matched.scores,
        recall=true / max(positives, 1),
        precision=precision,
        ap_11=float(eleven_point(true, ceiling, positives, thresholds)) if positives else None,
        # each true positive raises the recall by 1 / positives
        ap_area=float(ceiling[is_true].sum() / positives) if positives else None,
        n_positive=positives,
        n_detections=len(is_true),
        true_positives=int(np.count_nonzero(is_true)),
    )


def evaluate_classes(
    truth: GroundTruth,
    truth_classes: NDArray[Any],
    detections: Detections,
    detection_classes: NDArray[Any],
    *,
    class_names: Sequence[str] | None = None,
    overlap: float = OVERLAP,
    strict: bool = False,
    thresholds: Thresholds = "exact",
) -> dict[str, ClassResult]:
    """``evaluate_class`` of every class, by name, from the rows of all classes together, in any order.

    ``truth_classes`` (M,) and ``detection_classes`` (N,) hold class names. The result has the classes of
    ``class_names``, in that order, and leaves out all others; by default those that occur, sorted. Image ids are
    compared once for all classes. Raises ValueError as ``evaluate_class`` does.
    """
    matched = match_classes(
        truth,
        truth_classes,
        detections,
        detection_classes,
        class_names=class_names,
        overlap=overlap,
        strict=strict,
    )
    return {name: measure(one, thresholds) for name, one in matched.items()}


def match_classes(
    truth: GroundTruth,
    truth_classes: NDArray[Any],
    detections: Detections,
    detection_classes: NDArray[Any],
    *,
    class_names: Sequence[str] | None = None,
    overlap: float = OVERLAP,
    strict: bool = False,
) -> dict[str, MatchedClass]:
    """``match_class`` of every class, by name, from the arguments of ``evaluate_classes``.

    Image ids that are whole numbers come back as they were given, strings as their numbers in sorted order.
    """
    truth, detections = _checked_truth(truth), _checked_detections(detections)
    _check_length("truth_classes", truth_classes, len(truth.boxes))
    _check_length("detection_classes", detection_classes, len(detections.boxes))
    _, (truth_images, images) = _codes(truth.images, detections.images)
    names, (truth_codes, codes) = _codes(np.asarray(truth_classes, object), np.asarray(detection_classes, object))
    number = {name: i for i, name in enumerate(names.tolist())}
    truth_rows, rows = _rows_of(truth_codes, len(names)), _rows_of(codes, len(names))
    nothing = np.empty(0, np.intp)
    matched = {}
    for name in sorted(number) if class_names is None else class_names:
        of_truth, of_detections = nothing, nothing
        if name in number:
            of_truth, of_detections = truth_rows[number[name]], rows[number[name]]
        matched[name] = match_class(
            GroundTruth(truth_images[of_truth], truth.boxes[of_truth], truth.difficult[of_truth]),
            Detections(images[of_detections], detections.scores[of_detections], detections.boxes[of_detections]),
            overlap=overlap,
            strict=strict,
        )
    return matched


def mean_ap(average_precisions: Iterable[float | None]) -> float | None:
    """The mean over the classes that have positives; None if none has."""
    values = [value for value in average_precisions if value is not None]
    return float(np.mean(values)) if values else None


def best_precision(precision: NDArray[np.float64]) -> NDArray[np.float64]:
    """The best precision (N, ...) at the recall of each detection or a higher one, best score first along axis 0."""
    return np.maximum.accumulate(precision[::-1])[::-1]


def eleven_point(
    true: NDArray[np.int64], ceiling: NDArray[np.float64], positives: int | NDArray[np.int64], thresholds: Thresholds
) -> NDArray[np.float64]:
    """The mean of the ``ceiling`` where recall first reaches each threshold; 0 where it never does.

    ``true`` (N, ...) counts the true positives up to each detection, ``ceiling`` (N, ...) is ``best_precision``;
    axes after the first are measured one by one, and ``positives``, at least 1, and the result have their shape.
    """
    if thresholds == "exact":
        below = (10 * true < k * np.asarray(positives) for k in range(11))  # recall < k/10 in whole numbers
    elif thresholds == "arange":
        below = (true / positives < recall for recall in np.arange(0.0, 1.1, 0.1))
    else:
        raise ValueError(f"thresholds must be 'exact' or 'arange', not {thresholds!r}")
    reached = np.stack([np.count_nonzero(part, axis=0) for part in below])
    never = np.zeros((1, *ceiling.shape[1:]))
    found: NDArray[np.float64] = np.take_along_axis(np.concatenate([ceiling, never]), reached, axis=0)
    mean: NDArray[np.float64] = found.sum(axis=0) / 11
    return mean


def _checked_truth(truth: GroundTruth) -> GroundTruth:
    """With boxes in float64: float32 rounds areas beyond 2**24."""
    boxes = _checked_boxes("the ground truth", truth.boxes)
    _check_length("images of the ground truth", truth.images, len(boxes))
    _check_length("difficult", truth.difficult, len(boxes))
    return GroundTruth(np.asarray(truth.images), boxes, np.asarray(truth.difficult, bool))


def _checked_detections(detections: Detections) -> Detections:
    boxes = _checked_boxes("the detections", detections.boxes)
    _check_length("images of the detections", detections.images, len(boxes))
    _check_length("scores", detections.scores, len(boxes))
    scores = np.asarray(detections.scores, np.float64)
    if np.isnan(scores).any():
        raise ValueError(f"the score of detection {int(np.argmax(np.isnan(scores)))} is NaN; scores must be numbers")
    return Detections(np.asarray(detections.images), scores, boxes)


def _checked_boxes(owner: str, boxes: NDArray[np.floating]) -> NDArray[np.float64]:
    corners = np.asarray(boxes, np.float64).reshape(-1, 4)
    finite = np.isfinite(corners).all(axis=1)
    if not finite.all():
        raise ValueError(f"box {int(np.argmin(finite))} of {owner} is not finite: {corners[np.argmin(finite)]}")
    return corners


def _check_length(name: str, values: NDArray[Any], length: int) -> None:
    if np.shape(values) != (length,):
        raise ValueError(f"{name} must have shape ({length},), as there are boxes, not {np.shape(values)}")


def _codes(*columns: NDArray[Any]) -> tuple[NDArray[Any], list[NDArray[np.int64]]]:
    """The values of all ``columns``, sorted, and each column as positions among them.

    Whole numbers stand for themselves: their order is all that is asked of them.
    """
    filled = [column for column in columns if len(column)]
    whole_numbers = {np.issubdtype(column.dtype, np.integer) for column in filled}
    if len(whole_numbers) > 1:
        raise ValueError("image ids are whole numbers on one side and not on the other; they must be of one kind")
    if True in whole_numbers or not filled:
        return np.empty(0), [column.astype(np.int64) for column in columns]
    # hashing, where np.unique would sort a string per row
    encoded = pa.array(np.concatenate(filled)).dictionary_encode()
    values = encoded.dictionary.to_numpy(zero_copy_only=False)
    ascending = np.argsort(values)
    rank = np.empty(len(values), np.int64)
    rank[ascending] = np.arange(len(values))
    codes = rank[encoded.indices.to_numpy()]
    return values[ascending], np.split(codes, np.cumsum([len(column) for column in columns])[:-1])


def _rows_of(codes: NDArray[np.int64], count: int) -> list[NDArray[np.intp]]:
    """The rows of each code from 0 to ``count`` - 1, ascending."""
    order = np.argsort(codes, kind="stable")
    return np.split(order, np.searchsorted(codes[order], np.arange(1, count))) if count else []


def _best_objects(
    truth_images: NDArray[np.int64],
    truth_boxes: NDArray[np.floating],
    images: NDArray[np.int64],
    boxes: NDArray[np.floating],
    overlap: float,
    strict: bool,
) -> NDArray[np.int64]:
    """The object of highest IoU in its image for each detection, the first of several; -1 if it is too low. (N,)"""
    by_image = np.argsort(truth_images, kind="stable")
    sorted_images = truth_images[by_image]
    start = np.searchsorted(sorted_images, images, side="left")
    count = np.searchsorted(sorted_images, images, side="right") - start
    best = np.full(len(images), -1, np.int64)
    for rows in _pieces(count):
        # one pair per detection and object of its image, a detection's pairs side by side
        counts = count[rows]
        offset = np.cumsum(counts) - counts
        owner = np.repeat(np.arange(len(rows)), counts)
        objects = by_image[np.repeat(start[rows] - offset, counts) + np.arange(len(owner))]
        shared, union = _shared_and_union(boxes[rows][owner], truth_boxes[objects])
        # equal fractions of whole pixels are equal floats: ties are found, and 1/2 is 0.5
        overlaps = np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)
        tops = np.flatnonzero(overlaps == np.maximum.reduceat(overlaps, offset)[owner])
        top = tops[np.unique(owner[tops], return_index=True)[1]]
        enough = overlaps[top] > overlap if strict else overlaps[top] >= overlap
        best[rows[enough]] = objects[top[enough]]
    return best


def _pieces(count: NDArray[np.intp]) -> Iterator[NDArray[np.intp]]:
    """The detections with any object in their image, so many at a time that they have ``_PAIRS_AT_ONCE`` pairs."""
    rows = np.flatnonzero(count)
    piece = np.cumsum(count[rows]) // _PAIRS_AT_ONCE
    if len(rows):
        yield from np.split(rows, np.flatnonzero(np.diff(piece)) + 1)


def _shared_and_union(
    a: NDArray[np.floating], b: NDArray[np.floating]
) -> tuple[NDArray[np.floating], NDArray[np.floating]]:
    """Intersection and union, in square pixels, of each box of ``a`` (N, 4) with the same one of ``b`` (N, 4)."""
    low, high = np.maximum(a[:, :2], b[:, :2]), np.minimum(a[:, 2:], b[:, 2:])
    shared = np.maximum(high - low, 0).prod(axis=1)
    areas = [np.maximum(boxes[:, 2:] - boxes[:, :2], 0).prod(axis=1) for boxes in (a, b)]
    return shared, areas[0] + areas[1] - shared
