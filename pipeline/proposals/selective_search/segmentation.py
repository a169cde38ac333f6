"""Felzenszwalb and Huttenlocher's graph-based segmentation, for several k at once.

An image is a graph: a pixel is a node, joined to its eight neighbours by edges that weigh what the colours differ.
Edges are taken from light to heavy, and one between two components joins them if it is no heavier than either's
threshold, ``Int(C) + k / |C|``: the heaviest edge inside the component, and a slack that shrinks as it grows. What is
then smaller than ``min_size`` joins its neighbour across the lightest edge ("Efficient Graph-Based Image Segmentation",
IJCV 2004, 3 and 4; segment-graph.h and segment-image.h of the released code).

Weights are whole numbers, 64 steps to a unit of colour, and so is every comparison: the same bits give the same
segments on any machine. Fewer steps keep components from growing.

An edge is called by one number: its direction in the two highest bits, its first pixel in the others. Every choice of
k sees the same edges in the same order, so they are sorted once.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pipeline.compiled import compiled
from pipeline.proposals.selective_search import MOST_K

STEPS = 64
"""Of a weight, to a unit of colour (of 255)."""

NO_EDGE = np.uint16(65535)
"""The weight of an edge that leads out of the image, or is left out. The heaviest real one has 64 * 255 * sqrt(3)."""

MOST_PIXELS = 1 << 30

_SHIFT = np.uint32(30)
_PIXEL = np.uint32(MOST_PIXELS - 1)
_BLOCK = 256


def edge_weights(planes: NDArray[np.uint16]) -> NDArray[np.uint16]:
    """What neighbouring pixels differ: uint16 (4, H, W), the Euclidean distance of their colours in 64ths of a unit.

    ``planes``: uint16 (3, H, W), colours in 256ths of a unit. ``[d, y, x]`` is the edge from (y, x) to its neighbour on
    the right, below, below on the right, below on the left; NO_EDGE where the image ends.
    """
    weights = np.empty((4, *planes.shape[1:]), np.uint16)
    _weigh(planes, weights)
    return weights


def prune(weights: NDArray[np.uint16]) -> None:
    """Leave out, in place, every edge that is the heaviest of a triangle or square within a block of 2 x 2 pixels.

    Six of ten edges go. The minimum spanning tree of the image stays what it was, as no tree needs the heaviest edge of
    a cycle. Segments are not quite those of the whole graph, where such an edge may join what a component between them
    has kept apart; proposals made from them are nearly as good (docs/proposals.md).
    """
    heaviest = np.zeros(weights.shape, np.bool_)
    _mark_heaviest(weights, heaviest)
    _leave_out(weights.reshape(-1), heaviest.reshape(-1))


def segment(
    weights: NDArray[np.uint16], ks: Sequence[int], min_sizes: Sequence[int] | None = None
) -> list[NDArray[np.int32]]:
    """A segmentation for each k: labels int32 (H, W), numbered from 0 in the order of their first pixels.

    ``weights`` are those of ``edge_weights``. ``min_sizes`` are the ks, if not given. Of equal weights, the edge whose
    direction comes first goes first, then the one whose pixel does.

    Raises ValueError for an image of more than 2^30 pixels, or a k that is not from 1 to 2^25.
    """
    _, height, width = weights.shape
    pixels = height * width
    if pixels > MOST_PIXELS:
        raise ValueError(f"an image of {width} x {height} has more than 2^30 pixels")
    if not all(1 <= k <= MOST_K for k in ks):
        raise ValueError(f"k must be from 1 to 2^25, not {list(ks)}")
    flat = weights.reshape(4, pixels)
    steps = _steps_to_neighbours(width)
    pairs, edges = _sorted_edges(weights, np.uint16(min(min(ks) * STEPS, 65534)))
    labels = []
    for k, min_size in zip(ks, ks if min_sizes is None else min_sizes, strict=True):
        limits = np.uint32(k * STEPS), np.uint32(min_size)
        forest = parent, components = _start(pixels, pairs, flat, steps, limits[0])
        open_edges = np.empty(len(edges), np.uint32)
        count = _join(edges, flat, steps, forest, limits, open_edges)
        _join_small(open_edges[:count], steps, parent, components, limits[1])
        labels.append(_number(parent).reshape(height, width))
    return labels


def _sorted_edges(weights: NDArray[np.uint16], most: np.uint16) -> tuple[NDArray[np.uint32], NDArray[np.uint32]]:
    """The edges that join two single pixels whatever the others do, and all others in their order.

    An edge lighter than every other at both its ends meets them as they began, as single pixels. Those of at most
    ``most``, the threshold of a single pixel, therefore join them, and need not wait for their turn: a sixth of the
    edges, a quarter of the joins.
    """
    flat = weights.reshape(4, -1)
    lightest, second = np.empty(weights.shape[1:], np.uint16), np.empty(weights.shape[1:], np.uint16)
    _two_lightest(weights, lightest, second)
    paired = np.zeros(weights.shape, np.bool_)
    _mark_pairs(weights, lightest, second, most, paired)
    pairs, chosen = np.empty(flat.shape[1] // 2 + 1, np.uint32), np.empty(flat.size, np.uint32)
    pair_count, count = _choose(flat, paired.reshape(4, -1), pairs, chosen)  # memory not written to is not taken
    in_order = np.empty(count, np.uint32)
    _counting_sort(chosen[:count], flat, in_order)
    return pairs[:pair_count], in_order


def _steps_to_neighbours(width: int) -> NDArray[np.uint32]:
    """From a pixel's number to that of its neighbour, by direction."""
    return np.array([1, width, width + 1, width - 1], np.uint32)


@compiled()
def _weigh(planes: NDArray[np.uint16], weights: NDArray[np.uint16]) -> None:
    height, width = planes.shape[1:]
    for direction in range(4):
        down, across, first, last = _reach(direction, width)
        weights[direction, height - down :] = NO_EDGE
        for y in range(height - down):
            weights[direction, y, :first] = NO_EDGE
            weights[direction, y, last:] = NO_EDGE
            row = weights[direction, y, first:last]
            a0, b0 = planes[0, y, first:last], planes[0, y + down, first + across : last + across]
            a1, b1 = planes[1, y, first:last], planes[1, y + down, first + across : last + across]
            a2, b2 = planes[2, y, first:last], planes[2, y + down, first + across : last + across]
            for x in range(row.size):
                d0 = np.float32(a0[x]) - np.float32(b0[x])
                d1 = np.float32(a1[x]) - np.float32(b1[x])
                d2 = np.float32(a2[x]) - np.float32(b2[x])
                distance = np.sqrt(d0 * d0 + d1 * d1 + d2 * d2)
                row[x] = np.uint16(distance * np.float32(STEPS / 256) + np.float32(0.5))


@compiled()
def _mark_heaviest(weights: NDArray[np.uint16], heaviest: NDArray[np.bool_]) -> None:
    """Of a block ``a b / c d``: the edges heavier than all others of one of its four triangles and three squares."""
    height, width = weights.shape[1:]
    right, down, falling, rising = weights[0], weights[1], weights[2], weights[3]
    for y in range(height - 1):
        ab, cd = right[y, : width - 1], right[y + 1, : width - 1]
        ac, bd = down[y, : width - 1], down[y, 1:]
        ad, bc = falling[y, : width - 1], rising[y, 1:]
        of_ab, of_cd = heaviest[0, y, : width - 1], heaviest[0, y + 1, : width - 1]
        of_ac, of_bd = heaviest[1, y, : width - 1], heaviest[1, y, 1:]
        of_ad, of_bc = heaviest[2, y, : width - 1], heaviest[3, y, 1:]
        for x in range(width - 1):
            p, q, r, s, t, u = ab[x], cd[x], ac[x], bd[x], ad[x], bc[x]
            of_ab[x] |= p > min(min(max(r, u), max(s, t)), min(max(max(q, r), s), max(max(q, t), u)))
            of_cd[x] |= q > min(min(max(r, t), max(s, u)), min(max(max(p, r), s), max(max(p, t), u)))
            of_ad[x] |= t > min(min(max(p, s), max(q, r)), min(max(max(p, q), u), max(max(r, s), u)))
            of_bc[x] |= u > min(min(max(p, r), max(q, s)), min(max(max(p, q), t), max(max(r, s), t)))
            of_ac[x] |= r > min(min(max(p, u), max(q, t)), min(max(max(p, q), s), max(max(s, t), u)))
        for x in range(width - 1):  # on its own: a block's bd is its neighbour's ac, which would keep both from SIMD
            p, q, r, s, t, u = ab[x], cd[x], ac[x], bd[x], ad[x], bc[x]
            of_bd[x] |= s > min(min(max(p, t), max(q, u)), min(max(max(p, q), r), max(max(r, t), u)))


@compiled()
def _leave_out(weights: NDArray[np.uint16], marked: NDArray[np.bool_]) -> None:
    for i in range(weights.size):
        weights[i] = NO_EDGE if marked[i] else weights[i]


@compiled()
def _two_lightest(weights: NDArray[np.uint16], lightest: NDArray[np.uint16], second: NDArray[np.uint16]) -> None:
    """Of the eight edges at every pixel."""
    height, width = lightest.shape
    lightest[:], second[:] = NO_EDGE, NO_EDGE
    for direction in range(4):
        down, across, first, last = _reach(direction, width)
        for y in range(height - down):
            row = weights[direction, y, first:last]
            for end in range(2):
                shift = end * across
                light = lightest[y + end * down, first + shift : last + shift]
                next_light = second[y + end * down, first + shift : last + shift]
                for x in range(row.size):
                    next_light[x] = min(next_light[x], max(light[x], row[x]))
                    light[x] = min(light[x], row[x])


@compiled()
def _mark_pairs(
    weights: NDArray[np.uint16],
    lightest: NDArray[np.uint16],
    second: NDArray[np.uint16],
    most: np.uint16,
    paired: NDArray[np.bool_],
) -> None:
    """The edges of at most ``most`` that are lighter than any other at both ends."""
    height, width = lightest.shape
    for direction in range(4):
        down, across, first, last = _reach(direction, width)
        for y in range(height - down):
            row, marks = weights[direction, y, first:last], paired[direction, y, first:last]
            light_a, next_a = lightest[y, first:last], second[y, first:last]
            light_b = lightest[y + down, first + across : last + across]
            next_b = second[y + down, first + across : last + across]
            for x in range(row.size):
                lighter = (row[x] < min(next_a[x], next_b[x])) & (row[x] <= min(light_a[x], light_b[x]))
                marks[x] = lighter & (row[x] <= most)


@compiled()
def _reach(direction: int, width: int) -> tuple[int, int, int, int]:
    """How far down and across an edge leads, and the first and last + 1 column it may start from."""
    down = 0 if direction == 0 else 1
    across = 0 if direction == 1 else (-1 if direction == 3 else 1)
    first = 1 if across < 0 else 0
    last = width - 1 if across > 0 else width
    return down, across, first, last


@compiled()
def _choose(
    weights: NDArray[np.uint16], paired: NDArray[np.bool_], pairs: NDArray[np.uint32], chosen: NDArray[np.uint32]
) -> tuple[int, int]:
    """The edges that pair, and the others there are, by direction and pixel; returns their numbers.

    Each is written and then kept or not, as a branch would be guessed wrong too often.
    """
    pair_count = count = 0
    for direction in range(4):
        code = np.uint32(direction) << _SHIFT
        row, marks = weights[direction], paired[direction]
        for pixel in range(row.size):
            pairs[pair_count] = np.uint32(pixel) | code
            chosen[count] = np.uint32(pixel) | code
            pair_count += marks[pixel]
            count += (row[pixel] != NO_EDGE) ^ marks[pixel]  # what pairs is an edge
    return pair_count, count


@compiled()
def _counting_sort(edges: NDArray[np.uint32], weights: NDArray[np.uint16], in_order: NDArray[np.uint32]) -> None:
    """By weight; of equal ones the first stays first."""
    place = np.zeros(NO_EDGE, np.uint32)
    for edge in edges:
        place[weights[edge >> _SHIFT, edge & _PIXEL]] += np.uint32(1)
    total = np.uint32(0)
    for weight in range(place.size):
        count = place[weight]
        place[weight] = total
        total += count
    for edge in edges:
        weight = weights[edge >> _SHIFT, edge & _PIXEL]
        in_order[place[weight]] = edge
        place[weight] += np.uint32(1)


@compiled()
def _root(parent: NDArray[np.uint32], pixel: np.uint32) -> np.uint32:
    """Of the tree of ``pixel``; halves the path on the way."""
    above = parent[pixel]
    while above != pixel:
        above = parent[above]
        parent[pixel] = above
        pixel = above
        above = parent[pixel]
    return pixel


@compiled()
def _start(
    pixels: int, pairs: NDArray[np.uint32], weights: NDArray[np.uint16], steps: NDArray[np.uint32], k: np.uint32
) -> tuple[NDArray[np.uint32], NDArray[np.uint32]]:
    """Trees and components: single pixels, and those that ``pairs`` join."""
    parent, components = np.empty(pixels, np.uint32), np.empty((pixels, 2), np.uint32)
    for pixel in range(pixels):
        parent[pixel] = pixel
        components[pixel, 0] = 1
        components[pixel, 1] = k
    for edge in pairs:
        a = edge & _PIXEL
        parent[a + steps[edge >> _SHIFT]] = a
        components[a, 0] = 2
        components[a, 1] = weights[edge >> _SHIFT, a] + k // np.uint32(2)
    return parent, components


@compiled()
def _join(
    edges: NDArray[np.uint32],
    weights: NDArray[np.uint16],
    steps: NDArray[np.uint32],
    forest: tuple[NDArray[np.uint32], NDArray[np.uint32]],
    limits: tuple[np.uint32, np.uint32],
    open_edges: NDArray[np.uint32],
) -> int:
    """Join components along sorted edges; returns the number of ``open_edges``, which a small component may yet need.

    ``forest``: parents (pixels,), and components (pixels, 2): size and threshold, at roots. ``limits``: k, and the size
    from which a component is not small. A threshold is a whole number, as weights are: of ``k / size`` only what is
    whole can matter.

    Edges go in blocks. A first loop without branches drops those whose ends are known to be together, most of them,
    and brings what the others need into the cache, many at a time; the second decides, one after another.
    """
    (parent, components), (k, min_size) = forest, limits
    first_root, second_root = np.empty(_BLOCK, np.uint32), np.empty(_BLOCK, np.uint32)
    remaining, remaining_weight = np.empty(_BLOCK, np.uint32), np.empty(_BLOCK, np.uint32)
    opened = 0
    for start in range(0, edges.size, _BLOCK):
        count = 0
        for i in range(start, min(start + _BLOCK, edges.size)):
            edge = edges[i]
            a = edge & _PIXEL
            b = a + steps[edge >> _SHIFT]
            above_a, above_b = parent[parent[a]], parent[parent[b]]
            parent[a], parent[b] = above_a, above_b
            first_root[count], second_root[count], remaining[count] = above_a, above_b, edge
            count += above_a != above_b
        for i in range(count):
            edge = remaining[i]
            remaining_weight[i] = weights[edge >> _SHIFT, edge & _PIXEL]
        for i in range(count):
            a, b = _root(parent, first_root[i]), _root(parent, second_root[i])
            if a == b:
                continue
            weight = remaining_weight[i]
            size_a, size_b = components[a, 0], components[b, 0]
            if (weight <= components[a, 1]) & (weight <= components[b, 1]):
                if size_a < size_b:
                    a, b = b, a
                size = size_a + size_b
                parent[b] = a
                components[a, 0] = size
                components[a, 1] = weight + k // size
            else:
                open_edges[opened] = remaining[i]
                opened += (size_a < min_size) | (size_b < min_size)
    return opened


@compiled()
def _join_small(
    edges: NDArray[np.uint32],
    steps: NDArray[np.uint32],
    parent: NDArray[np.uint32],
    components: NDArray[np.uint32],
    min_size: np.uint32,
) -> None:
    for edge in edges:
        a = edge & _PIXEL
        b = a + steps[edge >> _SHIFT]
        a, b = _root(parent, a), _root(parent, b)
        if a != b:
            size_a, size_b = components[a, 0], components[b, 0]
            if (size_a < min_size) | (size_b < min_size):
                if size_a < size_b:
                    a, b = b, a
                parent[b] = a
                components[a, 0] = size_a + size_b


@compiled()
def _number(parent: NDArray[np.uint32]) -> NDArray[np.int32]:
    """The trees' numbers, int32, from 0 in the order of their first pixels."""
    numbers = np.full(parent.size, -1, np.int32)  # of roots that have one
    labels = np.empty(parent.size, np.int32)
    count = np.int32(0)
    for pixel in range(parent.size):
        root = _root(parent, np.uint32(pixel))
        if numbers[root] < 0:
            numbers[root] = count
            count += np.int32(1)
        labels[pixel] = numbers[root]
    return labels
