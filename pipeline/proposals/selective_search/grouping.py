"""Hierarchical grouping: the two most similar neighbours become one region, until one is left.

Similarities are those of Uijlings et al. (IJCV 2013, 3.2), each between 0 and 1, added up with equal weights: the
intersections of the normalised histograms of colour and of texture, and ``size`` and ``fill``, by which small regions
go first and holes are closed. A grouping may do without colour.

All are whole numbers, ``ONE`` standing for 1, so that the same regions give the same hierarchy on any machine: bins are
rounded to 1/65535 of a channel's pixels, and float32 adds up whole numbers below 2^24 without an error, whatever the
order.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.compiled import compiled
from pipeline.proposals.selective_search.regions import COLOUR, Regions

_PARTS = 65535
_CHANNELS = 24
"""Of texture: three channels, each in eight orientations."""

ONE = _CHANNELS * _PARTS
"""What stands for a similarity of 1."""

_Number = int | np.integer[Any]
"""Of a region: a loop's own, or one that an array holds."""


def group(regions: Regions, colour: bool) -> NDArray[np.int32]:
    """Bounding boxes, int32 (2R - 1, 4), of the R regions and of the R - 1 made from them, in the order of making.

    ``colour``: whether colour counts. Of equally similar pairs, the one with the lowest number goes first, a pair being
    numbered by its lower region, then by its higher one.
    """
    count = len(regions.sizes)
    boxes = np.empty((2 * count - 1, 4), np.int32)
    boxes[:count] = regions.boxes
    counts = regions.counts if colour else regions.counts[:, COLOUR:]
    _group(regions.pixels, regions.sizes.copy(), counts.copy(), regions.pairs, COLOUR if colour else 0, boxes)
    return boxes


@compiled()
def _group(
    pixels: int,
    sizes: NDArray[np.int64],
    counts: NDArray[np.int32],
    pairs: NDArray[np.int32],
    colour_bins: int,
    boxes: NDArray[np.int32],
) -> None:
    """Fill ``boxes`` from row R on; ``sizes`` and ``counts`` are used up.

    A merged region, numbered R and on, keeps its data in the place of one of its two parts; ``part_of`` leads from the
    place of the other to it. Neighbours are lists of such places, chained through ``following``, two entries to each
    pair; the lists of two parts are joined, and what they have in common is dropped.
    """
    count = sizes.size
    shares = np.empty(counts.shape, np.float32)
    for region in range(count):
        _normalise(counts[region], sizes[region], shares[region])
    part_of, number_at = np.arange(count), np.arange(count)
    place_of = np.arange(2 * count - 1)
    alive = np.ones(2 * count - 1, np.bool_)
    seen_by = np.full(count, -1, np.int64)
    neighbour, following, first = _chain(pairs, count)

    similarities = np.empty(2 * len(pairs) + 64, np.int32)
    heap = np.empty(similarities.size, np.int64)
    waiting = len(pairs)
    for i in range(waiting):
        a, b = np.int64(pairs[i, 0]), np.int64(pairs[i, 1])
        similarities[i] = _similarity((a, b), (a, b), pixels, shares, colour_bins, boxes)
        heap[i] = (a << 32) | b
    for i in range(waiting // 2 - 1, -1, -1):
        _sink(similarities, heap, i, waiting)

    for merged in range(count, 2 * count - 1):
        while True:
            lower, higher = heap[0] >> 32, heap[0] & 0xFFFFFFFF
            waiting -= 1
            similarities[0], heap[0] = similarities[waiting], heap[waiting]
            _sink(similarities, heap, 0, waiting)
            if alive[lower] & alive[higher]:
                break
        alive[lower] = alive[higher] = False
        a, b = place_of[lower], place_of[higher]
        boxes[merged, 0] = min(boxes[lower, 0], boxes[higher, 0])
        boxes[merged, 1] = min(boxes[lower, 1], boxes[higher, 1])
        boxes[merged, 2] = max(boxes[lower, 2], boxes[higher, 2])
        boxes[merged, 3] = max(boxes[lower, 3], boxes[higher, 3])
        sizes[a] += sizes[b]
        for i in range(counts.shape[1]):
            counts[a, i] += counts[b, i]
        _normalise(counts[a], sizes[a], shares[a])
        part_of[b] = a
        number_at[a] = merged
        place_of[merged] = a

        kept = np.int64(-1)
        for entry_of in (first[a], first[b]):
            entry = entry_of
            while entry >= 0:
                place = neighbour[entry]
                while part_of[place] != place:
                    part_of[place] = part_of[part_of[place]]
                    place = part_of[place]
                after = following[entry]
                if place != a and seen_by[place] != merged:
                    seen_by[place] = merged
                    neighbour[entry], following[entry] = place, kept
                    kept = entry
                    other = number_at[place]
                    if waiting == heap.size:
                        similarities, heap, waiting = _make_room(similarities, heap, alive)
                    numbers = merged, other
                    similarities[waiting] = _similarity((a, place), numbers, pixels, shares, colour_bins, boxes)
                    heap[waiting] = (other << 32) | merged
                    _rise(similarities, heap, waiting)
                    waiting += 1
                entry = after
        first[a] = kept


@compiled()
def _chain(pairs: NDArray[np.int32], count: int) -> tuple[NDArray[np.int32], NDArray[np.int64], NDArray[np.int64]]:
    """Lists of neighbours: the place an entry leads to, the one that follows it (-1: none), the first of each list."""
    neighbour = np.empty(2 * len(pairs), np.int32)
    following = np.empty(2 * len(pairs), np.int64)
    first = np.full(count, -1, np.int64)
    for i in range(len(pairs)):
        a, b = pairs[i]
        neighbour[2 * i], following[2 * i], first[a] = b, first[a], 2 * i
        neighbour[2 * i + 1], following[2 * i + 1], first[b] = a, first[b], 2 * i + 1
    return neighbour, following, first


@compiled()
def _normalise(counts: NDArray[np.int32], size: np.int64, shares: NDArray[np.float32]) -> None:
    """Counts of pixels to parts of 65535, whole numbers."""
    factor = _PARTS / size
    for i in range(counts.size):
        shares[i] = np.float32(np.int32(counts[i] * factor + 0.5))


@compiled(fastmath={"reassoc"})
def _shared(a: NDArray[np.float32], b: NDArray[np.float32]) -> np.int64:
    """The intersection of two histograms. Whole numbers: the order of additions is free."""
    total = np.float32(0)
    for i in range(a.size):
        total += min(a[i], b[i])
    return np.int64(total)


@compiled()
def _similarity(
    places: tuple[_Number, _Number],
    numbers: tuple[_Number, _Number],
    pixels: int,
    shares: NDArray[np.float32],
    colour_bins: int,
    boxes: NDArray[np.int32],
) -> np.int32:
    """Of the two regions at ``places``, whose boxes have ``numbers``.

    ``size`` is 1 - |a or b| / pixels, and ``fill`` is 1 - (|their box| - |a or b|) / pixels: together 2 - |their box| /
    pixels, as what they share cancels out.
    """
    (a, b), (number_a, number_b) = places, numbers
    total = _shared(shares[a, colour_bins:], shares[b, colour_bins:])
    if colour_bins:
        total += _shared(shares[a, :colour_bins], shares[b, :colour_bins]) * (_CHANNELS // 3)
    width = np.int64(max(boxes[number_a, 2], boxes[number_b, 2])) - min(boxes[number_a, 0], boxes[number_b, 0])
    height = np.int64(max(boxes[number_a, 3], boxes[number_b, 3])) - min(boxes[number_a, 1], boxes[number_b, 1])
    return np.int32(total + 2 * ONE - np.int64(np.uint64(ONE * width * height) // np.uint64(pixels)))


@compiled()
def _goes_first(similarity: np.int32, pair: np.int64, other_similarity: np.int32, other_pair: np.int64) -> np.bool_:
    return similarity > other_similarity or (similarity == other_similarity and pair < other_pair)


@compiled()
def _sink(similarities: NDArray[np.int32], heap: NDArray[np.int64], i: int, waiting: int) -> None:
    """Put what is at ``i`` where it belongs among what is below."""
    similarity, pair = similarities[i], heap[i]
    child = 2 * i + 1
    while child < waiting:
        if child + 1 < waiting:
            child += int(_goes_first(similarities[child + 1], heap[child + 1], similarities[child], heap[child]))
        if not _goes_first(similarities[child], heap[child], similarity, pair):
            break
        similarities[i], heap[i] = similarities[child], heap[child]
        i = child
        child = 2 * i + 1
    similarities[i], heap[i] = similarity, pair


@compiled()
def _rise(similarities: NDArray[np.int32], heap: NDArray[np.int64], i: int) -> None:
    """Put what is at ``i`` where it belongs among what is above."""
    similarity, pair = similarities[i], heap[i]
    while i > 0:
        parent = (i - 1) // 2
        if not _goes_first(similarity, pair, similarities[parent], heap[parent]):
            break
        similarities[i], heap[i] = similarities[parent], heap[parent]
        i = parent
    similarities[i], heap[i] = similarity, pair


@compiled()
def _make_room(
    similarities: NDArray[np.int32], heap: NDArray[np.int64], alive: NDArray[np.bool_]
) -> tuple[NDArray[np.int32], NDArray[np.int64], int]:
    """A full heap without the pairs that no longer are, in an array of twice as many as remain (and room for more)."""
    waiting = 0
    for i in range(heap.size):
        if alive[heap[i] >> 32] & alive[heap[i] & 0xFFFFFFFF]:
            similarities[waiting], heap[waiting] = similarities[i], heap[i]
            waiting += 1
    room = 2 * waiting + 64
    more_similarities, more = np.empty(room, np.int32), np.empty(room, np.int64)
    more_similarities[:waiting], more[:waiting] = similarities[:waiting], heap[:waiting]
    for i in range(waiting // 2 - 1, -1, -1):
        _sink(more_similarities, more, i, waiting)
    return more_similarities, more, waiting
