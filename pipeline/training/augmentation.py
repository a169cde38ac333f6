"""What a training image becomes in one epoch: a crop of 224 x 224, perhaps mirrored, its colours shifted (paper 3.1).

The short side of the image becomes 256; the crop is one of five, from the centre or a corner of the whole image. In
multi-size training the same crop is resized (paper 2.3), so that only its resolution differs.

Every choice is drawn from the seed, the epoch and the number of the image: neither the order in which images are read
nor an interruption changes it.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.images.decode import RGB
from pipeline.network.spp_network import SIDE
from pipeline.spp.windows import scaled_size

SHORT_SIDE = 256
"""Of an image that crops are taken from."""

SMALL_SIDE = 180
"""The other size that crops come at in multi-size training (paper 2.3)."""

Place = tuple[float, float]
"""Where a crop lies in its image, from top to bottom and from left to right: 0 at its edge, 0.5 in the middle, 1."""

CENTRE: Place = (0.5, 0.5)
FIVE: tuple[Place, ...] = (CENTRE, (0, 0), (0, 1), (1, 0), (1, 1))
"""The centre and the four corners."""

_MOST_LENGTH = 16
"""Times its short side: of a longer image the middle is taken. It would need gigabytes at the short side 256."""

_VALUES = np.array([0.2175, 0.0188, 0.0045]) * 255
_VECTORS = np.array(
    [
        [-0.5675, 0.7192, 0.4009],
        [-0.5808, -0.0045, -0.8140],
        [-0.5836, -0.6948, 0.4203],
    ]
)
"""Eigenvalues, in units of 0..255, and eigenvectors (columns; rows R, G, B) of the covariance of ImageNet's pixels, as
published with facebook/fb.resnet.torch (datasets/imagenet.lua)."""

_COLOUR_DEVIATION = 0.1


@dataclass(frozen=True)
class Choice:
    """How an image is shown: where its crop lies, if that is mirrored, and what is added to every pixel: (3,), RGB."""

    place: Place
    flip: bool
    shift: NDArray[np.float32]


PLAIN = Choice(CENTRE, False, np.zeros(3, np.float32))
"""How images are shown that a network is measured on."""


def choose(seed: int, epoch: int, number: int, *, flips: bool = True, colour: bool = True) -> Choice:
    """How image ``number`` is shown in an epoch.

    ``colour``: a multiple of each principal component of ImageNet's colours is added, N(0, 0.1) times its eigenvalue
    (Krizhevsky et al. 2012, 4.1).
    """
    random = np.random.default_rng([seed, epoch, number])
    place = FIVE[random.integers(len(FIVE))]
    mirrored = bool(random.random() < 0.5)
    shift = _VECTORS @ (_VALUES * random.normal(0, _COLOUR_DEVIATION, 3))
    return Choice(place, mirrored and flips, shift.astype(np.float32) if colour else PLAIN.shift)


def at_short_side(image: RGB, short: int = SHORT_SIDE) -> RGB:
    """The whole image with its short side at ``short`` pixels, as ``Body.conv_map`` resizes it."""
    height, width = image.shape[:2]
    most = _MOST_LENGTH * min(height, width)
    if max(height, width) > most:
        top, left = max(0, height - most) // 2, max(0, width - most) // 2
        image = image[top : top + most, left : left + most]
        height, width = image.shape[:2]
    size = scaled_size(height, width, short)
    if size == (height, width):
        return image
    return np.asarray(cv2.resize(image, size[::-1], interpolation=cv2.INTER_LINEAR), np.uint8)


def corner(height: int, width: int, side: int, place: Place) -> tuple[int, int]:
    """Top and left edge of the square crop of ``side`` at a place."""
    return int((height - side) * place[0]), int((width - side) * place[1])


def crop(image: RGB, place: Place, side: int = SIDE) -> RGB:
    """The square of ``side`` pixels at a place; a view of the image."""
    top, left = corner(image.shape[0], image.shape[1], side, place)
    return image[top : top + side, left : left + side]


def shown(image: RGB, choice: Choice, side: int, out: RGB | None = None) -> RGB:
    """The crop of an image ``at_short_side``, mirrored as chosen, at ``side`` pixels: uint8 (side, side, 3).

    ``out``: where to write it. The shift is not added: sums are no uint8.
    """
    found = crop(image, choice.place)
    if choice.flip:
        found = found[:, ::-1]
    if side != SIDE:
        found = np.asarray(cv2.resize(np.ascontiguousarray(found), (side, side), interpolation=cv2.INTER_LINEAR))
    if out is None:
        return np.array(found, np.uint8)
    out[...] = found
    return out
