"""From a box on the image to a window on the conv map, and the scale at which it is pooled.

Boxes are half-open pixels of the original image (``pipeline.boxes``). Windows are int16 ``cx1 cy1 cx2 cy2``, 0-based,
inclusive cells of the map at the window's own scale.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from pipeline.boxes import Boxes, area
from pipeline.spp.receptive_field import Geometry

ScaleRule = Literal["area", "linear208"]
Mapping = Literal["released", "paper"]
Windows = NDArray[np.int16]

SLACK: dict[str, float] = {"released": 1.5, "paper": 0.0}
"""Pixels by which a cell's centre may lie outside the box. Released: 8 - 6.5 (spm_pool_caffe_mex.cpp:116-120)."""


def scaled_size(height: int, width: int, scale: int) -> tuple[int, int]:
    """Size (height, width) of an image whose short side becomes ``scale``; the long side is rounded up.

    SPP_net spp_features_convX.m:43-52; the rounding as in its Torch port, SPP.lua:127-129.
    """
    short, long = min(height, width), max(height, width)
    other = -(-long * scale // short)
    return (scale, other) if height <= width else (other, scale)


def fitting_scale(height: int, width: int, scale: int, max_pixels: int) -> int:
    """The largest scale <= ``scale`` at which the image has at most ``max_pixels`` pixels (at least 1)."""
    short, long = min(height, width), max(height, width)
    if scale * -(-long * scale // short) <= max_pixels:
        return scale
    fit = min(scale, math.isqrt(max_pixels * short // long) + 1)
    while fit > 1 and fit * -(-long * fit // short) > max_pixels:
        fit -= 1
    return fit


def fitting_scales(height: int, width: int, scales: Sequence[int], max_pixels: int) -> tuple[int, ...]:
    """The scales at which an image is really taken: each made to fit, ascending, without repetition."""
    return tuple(sorted({fitting_scale(height, width, s, max_pixels) for s in scales}))


def choose_scales(
    boxes: Boxes, height: int, width: int, scales: Sequence[int], rule: ScaleRule = "area"
) -> NDArray[np.int32]:
    """The scale of every box, shape (N,), from ``scales`` (ascending); of two equally good ones the smaller.

    ``area``: the scaled box has an area closest to 224 x 224 (paper 4.1; Fast R-CNN lib/fast_rcnn/test.py:85-92).
    ``linear208``: the scale nearest to round(208 * short side / sqrt(area)) (SPP_net spm_expected_scale.m:17-21).
    """
    candidates = np.asarray(scales, dtype=np.int32)
    short = min(height, width)
    pixels = area(boxes).astype(np.float64)
    if rule == "area":
        distance = np.abs(pixels[:, None] * (candidates[None, :] / short) ** 2 - 224.0**2)
    else:
        with np.errstate(divide="ignore"):
            expected = np.floor(208 * short / np.sqrt(pixels) + 0.5)  # MATLAB rounds halves up
        distance = np.abs(candidates[None, :] - expected[:, None])
        distance[pixels == 0] = -candidates[None, :]  # an empty box asks for the largest scale
    chosen: NDArray[np.int32] = candidates[np.argmin(distance, axis=1)]
    return chosen


def map_windows(
    boxes: Boxes,
    image_size: tuple[int, int],
    scale: int,
    field: Geometry,
    map_size: tuple[int, int],
    mapping: Mapping = "released",
) -> Windows:
    """Windows, shape (N, 4), of ``boxes`` on the map of an image of ``image_size`` (height, width) at ``scale``.

    The box's inclusive pixel indices are scaled by (scale - 1) / (short side - 1) on both axes, corner to corner
    (spp_features_convX_to_poolX.m:44-45). Its window holds the cells whose receptive-field centre lies strictly
    inside it, or outside by less than the slack. Where there is none, it is the cell centred on the box's middle or
    nearest below it (spm_pool_caffe_mex.cpp:122-132); then it is clamped to the map (:138-142). A box that covers the
    whole image is the whole map.
    """
    height, width = image_size
    short = min(height, width)
    # multiplied before divided: an edge that falls on a centre is then found there exactly
    numerator, denominator = (scale - 1, short - 1) if short > 1 else (scale, 1)
    inset = field.centre + np.array([SLACK[mapping], -SLACK[mapping]])
    low = (boxes[:, :2].astype(np.float64) * numerator / denominator - inset[0]) / field.stride
    high = ((boxes[:, 2:].astype(np.float64) - 1) * numerator / denominator - inset[1]) / field.stride
    first = np.floor(low).astype(np.int64) + 1
    last = np.ceil(high).astype(np.int64) - 1
    gap = first > last
    first[gap] = last[gap] = np.floor((low + high) / 2).astype(np.int64)[gap]
    limit = np.array([map_size[1] - 1, map_size[0] - 1])
    windows = np.concatenate([np.clip(first, 0, limit), np.clip(last, 0, limit)], axis=1).astype(np.int16)
    whole = (boxes[:, :2] <= 0).all(axis=1) & (boxes[:, 2] >= width) & (boxes[:, 3] >= height)
    windows[whole] = [0, 0, limit[0], limit[1]]
    return windows
