"""Selective search as its papers tell it, slow and plain, for tests to compare ``pipeline.proposals.selective_search``
with.

Sets of pixels and exact fractions in place of union-find, heaps and chained lists; every step looks at all there is and
takes the best. Nothing of the package is used. What the papers leave open (rounding, the order of equals) is as the
package documents it.
"""

from __future__ import annotations

import functools
import itertools
import math
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

NO_EDGE = 65535
STEPS = 64
"""Of a weight, to a unit of colour."""

NEIGHBOURS = ((0, 1), (1, 0), (1, 1), (1, -1))
"""Down and across from a pixel to the other end of its edges, by direction; with their opposites, all eight."""

ORIENTATIONS = ((1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (-1, -1), (1, -1), (-1, 1))
"""Across and down, in the order in which the texture histogram has them."""

COLOUR_BINS, TEXTURE_BINS = 25, 10
STEEPEST = 24
"""Units of colour per pixel at which the ten bins of texture end."""

PARTS = 65535
ONE = 24 * PARTS


# --- the graph of pixels ---


def edge_weights(planes):
    """(4, H, W), of planes in 256ths of a unit: the root of a sum of squares, rounded without an error."""
    _, height, width = planes.shape
    colours = planes.astype(int).tolist()
    weights = np.full((4, height, width), NO_EDGE, np.uint16)
    for direction, (down, across) in enumerate(NEIGHBOURS):
        for y, x in itertools.product(range(height), range(width)):
            if y + down < height and 0 <= x + across < width:
                square = sum((plane[y][x] - plane[y + down][x + across]) ** 2 for plane in colours)
                weights[direction, y, x] = (math.isqrt(square) + 2) // 4  # to the nearest: (root / 4 + 1/2), floored
    return weights


def edge_between(p, q):
    """(direction, y, x) of the edge that joins two touching pixels."""
    p, q = sorted((p, q))
    return (NEIGHBOURS.index((q[0] - p[0], q[1] - p[1])), *p)


def pruned(weights):
    """Without the edges that are heavier than all others of a cycle of three or four pixels of a 2 x 2 block."""
    _, height, width = weights.shape
    kept = weights.copy()
    for y, x in itertools.product(range(height - 1), range(width - 1)):
        block = list(itertools.product((y, y + 1), (x, x + 1)))
        for loop in [*itertools.permutations(block, 3), *itertools.permutations(block, 4)]:
            edges = [edge_between(p, q) for p, q in zip(loop, (*loop[1:], loop[0]), strict=True)]
            *_, second, heaviest = sorted(edges, key=lambda edge: weights[edge])
            if weights[heaviest] > weights[second]:
                kept[heaviest] = NO_EDGE
    return kept


# --- segmentation (Felzenszwalb and Huttenlocher, IJCV 2004) ---


@dataclass(eq=False)
class Component:
    pixels: set
    heaviest: int = 0
    """Int(C): of the edges that joined it."""

    def threshold(self, k):
        return self.heaviest + Fraction(STEPS * k, len(self.pixels))


def segment(weights, k, min_size):
    """Labels (H, W), numbered from 0 in the order of their first pixels."""
    _, height, width = weights.shape
    home = {pixel: Component({pixel}) for pixel in itertools.product(range(height), range(width))}

    def join(a, b, weight):
        small, large = sorted((a, b), key=lambda component: len(component.pixels))
        large.pixels |= small.pixels
        large.heaviest = max(a.heaviest, b.heaviest, weight)
        home.update(dict.fromkeys(small.pixels, large))

    edges = sorted(
        (int(weights[direction, y, x]), direction, y, x) for direction, y, x in np.argwhere(weights != NO_EDGE).tolist()
    )
    joined = [(weight, (y, x), (y + NEIGHBOURS[d][0], x + NEIGHBOURS[d][1])) for weight, d, y, x in edges]
    for weight, p, q in joined:
        a, b = home[p], home[q]
        if a is not b and weight <= min(a.threshold(k), b.threshold(k)):
            join(a, b, weight)
    for weight, p, q in joined:
        a, b = home[p], home[q]
        if a is not b and min(len(a.pixels), len(b.pixels)) < min_size:
            join(a, b, weight)

    numbers = {}
    for component in home.values():  # in the order of pixels
        numbers.setdefault(component, len(numbers))
    return np.array([numbers[home[pixel]] for pixel in home], np.int32).reshape(height, width)


# --- regions (Uijlings et al., IJCV 2013, 3.2) ---


@dataclass(eq=False)
class Region:
    parts: frozenset
    """Numbers of the segments it is made of."""
    size: int
    box: tuple
    colour: np.ndarray
    """Counts of pixels, 25 bins for each channel."""
    texture: np.ndarray
    """Counts of pixels, by channel, orientation and bin."""
    neighbours: set


@functools.cache
def texture_bin(across, down, orientation):
    """Of a gradient: how far it rises along the orientation, in tenths of STEEPEST, whole ones, at most 9.

    ``across`` and ``down``: what the colours of the two pixels on either side differ, in 256ths of a unit, hence
    512ths of a unit per pixel. Squares are compared, so no root is rounded.
    """
    slope = across * orientation[0] + down * orientation[1]
    length_squared = orientation[0] ** 2 + orientation[1] ** 2
    reached = 0
    for level in range(1, TEXTURE_BINS):
        if slope > 0 and (TEXTURE_BINS * slope) ** 2 >= length_squared * (level * STEEPEST * 512) ** 2:
            reached = level
    return reached


def pixel_bins(colours, planes):
    """(H, W, 3) of colour and (H, W, 3, 8) of texture. Beyond the border, the image goes on as it ends."""
    height, width = colours.shape[:2]
    grey = np.pad(planes.astype(int), ((0, 0), (1, 1), (1, 1)), mode="edge").tolist()
    texture = np.empty((height, width, 3, 8), int)
    for channel, y, x in itertools.product(range(3), range(height), range(width)):
        plane = grey[channel]
        across = plane[y + 1][x + 2] - plane[y + 1][x]
        down = plane[y + 2][x + 1] - plane[y][x + 1]
        texture[y, x, channel] = [texture_bin(across, down, orientation) for orientation in ORIENTATIONS]
    return colours.astype(int) * COLOUR_BINS // 256, texture


def describe(labels, colours, planes):
    """A Region for each label."""
    height, width = labels.shape
    label_of = dict(zip(itertools.product(range(height), range(width)), labels.ravel().tolist(), strict=True))
    colour_bins, texture_bins = pixel_bins(colours, planes)
    regions = []
    for number in range(max(label_of.values()) + 1):
        pixels = [pixel for pixel, label in label_of.items() if label == number]
        ys, xs = zip(*pixels, strict=True)
        around = {(y + dy, x + dx) for y, x in pixels for dy, dx in itertools.product((-1, 0, 1), repeat=2)}
        colour, texture = np.zeros((3, COLOUR_BINS), int), np.zeros((3, 8, TEXTURE_BINS), int)
        for pixel in pixels:
            for channel in range(3):
                colour[channel, colour_bins[pixel][channel]] += 1
                for orientation in range(8):
                    texture[channel, orientation, texture_bins[pixel][channel, orientation]] += 1
        regions.append(
            Region(
                frozenset({number}),
                len(pixels),
                (min(xs), min(ys), max(xs) + 1, max(ys) + 1),
                colour.ravel(),
                texture.ravel(),
                {label_of[pixel] for pixel in around if pixel in label_of} - {number},
            )
        )
    return regions


# --- hierarchical grouping (3.1 and 3.2) ---


def around_both(a, b):
    return (*map(min, a[:2], b[:2]), *map(max, a[2:], b[2:]))


def similarity(a, b, pixels, with_colour):
    """ONE stands for 1."""

    def shares(counts, size):
        return np.floor(counts * (PARTS / size) + 0.5).astype(int)

    def intersection(of_a, of_b):
        return int(np.minimum(shares(of_a, a.size), shares(of_b, b.size)).sum())

    x1, y1, x2, y2 = around_both(a.box, b.box)
    both = a.size + b.size
    size = 1 - Fraction(both, pixels)
    fill = 1 - Fraction((x2 - x1) * (y2 - y1) - both, pixels)
    colour = 8 * intersection(a.colour, b.colour) if with_colour else 0  # 3 channels, as much in all as texture's 24
    return colour + intersection(a.texture, b.texture) + math.ceil(ONE * (size + fill))


def group(segments, pixels, with_colour):
    """All regions of the hierarchy in the order of making, the segments first."""
    made = list(segments)
    neighbours = {number: set(segment.neighbours) for number, segment in enumerate(segments)}  # of those still there

    @functools.cache  # regions do not change
    def merit(lower, higher):
        return similarity(made[lower], made[higher], pixels, with_colour)

    while len(neighbours) > 1:
        pairs = [(a, b) for a, others in neighbours.items() for b in others if a < b]
        a, b = min(pairs, key=lambda pair: (-merit(*pair), pair))
        merged = len(made)
        beside = (neighbours.pop(a) | neighbours.pop(b)) - {a, b}
        for other in beside:
            neighbours[other] = neighbours[other] - {a, b} | {merged}
        neighbours[merged] = beside
        one, two = made[a], made[b]
        made.append(
            Region(
                one.parts | two.parts,
                one.size + two.size,
                around_both(one.box, two.box),
                one.colour + two.colour,
                one.texture + two.texture,
                beside,
            )
        )
    return made


# --- the whole search ---


def search(spaces, ks, similarities, seed):
    """[(box, strategy, level)], best first; ``spaces``: the colours, blurred planes and edge weights of each."""
    found = []
    strategies = itertools.count()
    for colours, planes, weights in spaces:
        for k in ks:
            segments = describe(segment(weights, k, k), colours, planes)
            for similar in similarities:
                made = group(segments, weights[0].size, similar == "ctsf")
                strategy = next(strategies)
                found += [(region.box, strategy, len(made) - i) for i, region in enumerate(made)]
    raw = np.random.PCG64(seed).random_raw(len(found)).tolist()
    places = [level * ((number >> 11) / 2**53) for (_, _, level), number in zip(found, raw, strict=True)]
    return [found[i] for i in sorted(range(len(found)), key=lambda i: (places[i], i))]
