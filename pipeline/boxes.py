"""Boxes: float32 ``x1 y1 x2 y2``, 0-based, half-open, in pixels of the original image.

A box covers the pixels ``x1 <= x < x2``, so its width is ``x2 - x1`` and no formula needs a "+1". Only readers and
writers of foreign formats convert (``from_inclusive``, ``to_inclusive``).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Boxes = NDArray[np.float32]


def as_boxes(values: object) -> Boxes:
    """``values`` as a float32 array of shape (N, 4); an empty input gives shape (0, 4)."""
    return np.asarray(values, dtype=np.float32).reshape(-1, 4)


def from_inclusive(boxes: object, base: int = 1) -> Boxes:
    """Half-open boxes from inclusive pixel indices that count from ``base`` (VOC: 1), shape (N, 4).

    VOC's (xmin, ymin, xmax, ymax) becomes (xmin - 1, ymin - 1, xmax, ymax).
    """
    shift = np.array([-base, -base, 1 - base, 1 - base], dtype=np.float32)
    return as_boxes(boxes) + shift


def to_inclusive(boxes: object, base: int = 1) -> Boxes:
    """The inverse of ``from_inclusive``."""
    shift = np.array([base, base, base - 1, base - 1], dtype=np.float32)
    return as_boxes(boxes) + shift


def area(boxes: Boxes) -> NDArray[np.float32]:
    """Areas in square pixels, shape (N,); 0 for an empty or reversed box."""
    sides: NDArray[np.float32] = np.maximum(boxes[:, 2:] - boxes[:, :2], 0)
    return sides[:, 0] * sides[:, 1]


def iou(a: Boxes, b: Boxes) -> NDArray[np.float32]:
    """Intersection over union of every box of ``a`` (N, 4) with every box of ``b`` (M, 4), shape (N, M).

    Equals the VOC devkit's measure on the same boxes in inclusive coordinates (VOCevaldet.m). Two empty boxes have 0.
    """
    low = np.maximum(a[:, None, :2], b[None, :, :2])
    high = np.minimum(a[:, None, 2:], b[None, :, 2:])
    sides: NDArray[np.float32] = np.maximum(high - low, 0)
    shared = sides[..., 0] * sides[..., 1]
    union = area(a)[:, None] + area(b)[None, :] - shared
    overlaps: NDArray[np.float32] = np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)
    return overlaps


def clip(boxes: Boxes, height: int, width: int) -> Boxes:
    """Boxes cut at the borders of a ``height`` x ``width`` image."""
    limit = np.array([width, height, width, height], dtype=np.float32)
    return np.clip(boxes, 0, limit)


def first_of_duplicates(boxes: Boxes) -> NDArray[np.intp]:
    """Indices, ascending, of the boxes that remain when exact repetitions of an earlier box are dropped."""
    # two 8-byte numbers a box sort far faster than rows do; adding 0 makes +0 of -0
    halves = np.ascontiguousarray(boxes + np.float32(0), np.float32).view(np.uint64)
    order = np.lexsort((halves[:, 1], halves[:, 0]))  # stable: the first of equal boxes stays first
    in_order = halves[order]
    first = np.ones(len(boxes), np.bool_)
    first[1:] = (in_order[1:] != in_order[:-1]).any(axis=1)
    return np.sort(order[first])
