"""What grouping needs to know of segments: size, bounding box, histograms of colour and texture, neighbours.

Histograms are those of Uijlings et al. (IJCV 2013, 3.2): 25 bins for each of three colour channels; for the texture of
each channel, 10 bins for each of 8 orientations. The orientations are those of central differences of the blurred
channels, in steps of 45 degrees; the paper takes Gaussian derivatives, and found no real loss with local binary
patterns.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.compiled import compiled

COLOUR_BINS = 25
TEXTURE_BINS = 10
COLOUR = 3 * COLOUR_BINS
TEXTURE = 3 * 8 * TEXTURE_BINS
"""Counts of bins: of the colour histogram, and of the texture histogram that follows it in a row."""

_CODES = 3 + 3 * 4
_ORIENTED = 2 * TEXTURE_BINS - 1
"""Codes of an axis: -9 to 9, for an orientation and its opposite together."""

_STEEPEST = 24.0
"""Slopes up to so many units a pixel are cut into the bins of texture; steeper ones, rare in what is blurred, fall into
the last."""


@dataclass(frozen=True)
class Regions:
    """R regions that together cover an image of ``pixels``.

    ``sizes``: int64 (R,), in pixels. ``boxes``: int32 (R, 4), half-open x1 y1 x2 y2. ``counts``: int32
    (R, COLOUR + TEXTURE), of pixels. ``pairs``: int32 (P, 2), the regions that touch, also at a corner, each pair once,
    the lower number first, in ascending order.
    """

    pixels: int
    sizes: NDArray[np.int64]
    boxes: NDArray[np.int32]
    counts: NDArray[np.int32]
    pairs: NDArray[np.int32]


def pixel_codes(colours: NDArray[np.uint8], planes: NDArray[np.uint16]) -> NDArray[np.uint8]:
    """The bins a pixel falls into: uint8 (15, H, W), three of colour, then four axes of texture for each channel.

    ``colours``: uint8 (H, W, 3). ``planes``: uint16 (3, H, W), the same blurred, in 256ths of a unit. An axis (across,
    down, falling, rising) has the code 9 where the channel is level, up to 18 where it rises along the axis and down to
    0 where it falls.
    """
    codes = np.empty((_CODES, *colours.shape[:2]), np.uint8)
    _encode(colours, planes, codes)
    return codes


def describe(labels: NDArray[np.int32], codes: NDArray[np.uint8]) -> Regions:
    """The regions of ``labels``, int32 (H, W), numbered from 0 without a gap; ``codes`` are those of its pixels."""
    count = int(labels.max()) + 1
    coded = np.zeros((count, COLOUR + 3 * 4 * _ORIENTED), np.int32)
    _accumulate(labels.reshape(-1), codes.reshape(_CODES, -1), coded)
    counts = np.empty((count, COLOUR + TEXTURE), np.int32)
    _unfold(coded, counts)
    sizes, boxes = _measure(labels, count)
    return Regions(labels.size, sizes, boxes, counts, _touching(labels, count))


@compiled()
def _encode(colours: NDArray[np.uint8], planes: NDArray[np.uint16], codes: NDArray[np.uint8]) -> None:
    height, width = planes.shape[1:]
    scale = np.float32(TEXTURE_BINS / (2 * 256 * _STEEPEST))
    diagonal = np.float32(np.sqrt(0.5))
    across, down = np.empty(width, np.float32), np.empty(width, np.float32)
    for channel in range(3):
        for y in range(height):
            row = planes[channel, y]
            above, below = planes[channel, max(y - 1, 0)], planes[channel, min(y + 1, height - 1)]
            for x in range(1, width - 1):
                across[x] = (np.float32(row[x + 1]) - np.float32(row[x - 1])) * scale
            across[0] = (np.float32(row[min(1, width - 1)]) - np.float32(row[0])) * scale
            across[width - 1] = (np.float32(row[width - 1]) - np.float32(row[max(width - 2, 0)])) * scale
            for x in range(width):
                down[x] = (np.float32(below[x]) - np.float32(above[x])) * scale
            first = 3 + 4 * channel
            colour, shade = colours[y], codes[channel, y]
            for x in range(width):
                shade[x] = (np.uint32(colour[x, channel]) * np.uint32(COLOUR_BINS)) >> np.uint32(8)
            level, upright = codes[first, y], codes[first + 1, y]
            falling, rising = codes[first + 2, y], codes[first + 3, y]
            for x in range(width):
                dx, dy = across[x], down[x]
                level[x] = _signed_bin(dx)
                upright[x] = _signed_bin(dy)
                falling[x] = _signed_bin((dx + dy) * diagonal)
                rising[x] = _signed_bin((dx - dy) * diagonal)


@compiled()
def _signed_bin(slope: np.float32) -> np.uint8:
    highest = np.float32(TEXTURE_BINS - 1)
    return np.uint8(np.int32(min(max(slope, -highest), highest)) + np.int32(TEXTURE_BINS - 1))


@compiled()
def _measure(labels: NDArray[np.int32], count: int) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """Sizes and boxes, run by run: a label is looked up where it changes."""
    height, width = labels.shape
    sizes = np.zeros(count, np.int64)
    boxes = np.empty((count, 4), np.int32)
    boxes[:, 0], boxes[:, 1], boxes[:, 2], boxes[:, 3] = width, height, 0, 0
    for y in range(height):
        start = 0
        for x in range(1, width + 1):
            if x == width or labels[y, x] != labels[y, start]:
                region = labels[y, start]
                sizes[region] += x - start
                box = boxes[region]
                box[0], box[1] = min(box[0], start), min(box[1], y)
                box[2], box[3] = max(box[2], x), max(box[3], y + 1)
                start = x
    return sizes, boxes


@compiled()
def _accumulate(labels: NDArray[np.int32], codes: NDArray[np.uint8], raw: NDArray[np.int32]) -> None:
    for pixel in range(labels.size):
        row = raw[labels[pixel]]
        for channel in range(3):
            row[np.uint32(channel * COLOUR_BINS + codes[channel, pixel])] += np.int32(1)
        for axis in range(12):
            row[np.uint32(COLOUR + axis * _ORIENTED + codes[3 + axis, pixel])] += np.int32(1)


@compiled()
def _unfold(raw: NDArray[np.int32], counts: NDArray[np.int32]) -> None:
    """Codes of axes to bins of orientations: what rises along one falls, in bin 0, along its opposite."""
    for region in range(raw.shape[0]):
        counts[region, :COLOUR] = raw[region, :COLOUR]
        for axis in range(12):
            codes = raw[region, COLOUR + axis * _ORIENTED :]
            bins = counts[region, COLOUR + axis * 2 * TEXTURE_BINS :]
            rising, falling = np.int32(0), np.int32(0)
            for level in range(1, TEXTURE_BINS):
                bins[level] = codes[TEXTURE_BINS - 1 + level]
                bins[TEXTURE_BINS + level] = codes[TEXTURE_BINS - 1 - level]
                rising += bins[level]
                falling += bins[TEXTURE_BINS + level]
            bins[0] = codes[TEXTURE_BINS - 1] + falling
            bins[TEXTURE_BINS] = codes[TEXTURE_BINS - 1] + rising


def _touching(labels: NDArray[np.int32], count: int) -> NDArray[np.int32]:
    keys = np.sort(_pairs(labels, count))
    return np.stack([keys >> 32, keys & 0xFFFFFFFF], axis=1).astype(np.int32)


@compiled()
def _pairs(labels: NDArray[np.int32], count: int) -> NDArray[np.int64]:
    """Every pair of touching regions once, lower number << 32 | higher number, in no order. A hash set in an array.

    There are about three pairs to a region; more only where regions cross, as lines that touch at corners can.
    """
    height, width = labels.shape
    keys = np.full(_power_of_two(8 * max(count, width)), -1, np.int64)
    found = 0
    for y in range(height):
        if 2 * (found + 4 * width) > keys.size:  # as many as a row can add
            keys = _rehashed(keys, _power_of_two(4 * (found + 4 * width)))
        row, below = labels[y], labels[min(y + 1, height - 1)]
        for x in range(width):
            right = min(x + 1, width - 1)
            a, b, c, d = row[x], row[right], below[x], below[right]
            if a != b:
                found += _insert(keys, _key(a, b))
            if a != c:
                found += _insert(keys, _key(a, c))
            # if two neighbours of the block are one region, a diagonal adds nothing to its sides
            if ((a != b) & (c != d)) & ((a != c) & (b != d)):
                if a != d:
                    found += _insert(keys, _key(a, d))
                if b != c:
                    found += _insert(keys, _key(b, c))
    return keys[keys >= 0]


@compiled()
def _key(a: np.int32, b: np.int32) -> np.int64:
    return (np.int64(min(a, b)) << 32) | np.int64(max(a, b))


@compiled()
def _insert(keys: NDArray[np.int64], key: np.int64) -> int:
    """1 if the key is new, else 0."""
    mask = np.uint64(keys.size - 1)
    place = (np.uint64(key) * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(32) & mask
    while keys[place] != key:
        if keys[place] < 0:
            keys[place] = key
            return 1
        place = (place + np.uint64(1)) & mask
    return 0


@compiled()
def _rehashed(keys: NDArray[np.int64], capacity: int) -> NDArray[np.int64]:
    larger = np.full(capacity, -1, np.int64)
    for key in keys:
        if key >= 0:
            _insert(larger, key)
    return larger


@compiled()
def _power_of_two(least: int) -> int:
    power = 1
    while power < least:
        power *= 2
    return power
