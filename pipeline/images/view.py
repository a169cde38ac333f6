"""Views of a whole image, for a network of any input size (paper 3.2, 3.3).

A ``crop`` is the centre of the image at the network's input size, cut from it at a somewhat larger short side, as in
ImageNet training; ``warp`` squeezes the whole image into that square; ``full-S`` is the whole image, its short side S
and its aspect kept. Of a full view only pooled layers are comparable between images, since its map has any size.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from pipeline.spp.windows import fitting_scale, scaled_size

if TYPE_CHECKING:
    from pipeline.images.decode import RGB

CROP_FROM = 256
"""Short side, in pixels, of the image that a crop is cut from, for a network whose input is 224 (paper 3.1)."""

_LONGEST = 4
"""Times its short side that an image is long, at most, before a crop is cut from its middle."""

_FULL = re.compile(r"full-(\d+)")


@dataclass(frozen=True)
class View:
    """How an image is shown to a network: ``kind`` crop, warp or full, and the side or short side in pixels."""

    kind: str
    size: int

    @classmethod
    def parse(cls, text: str, input_size: int = 224) -> View:
        """Of ``crop``, ``warp`` or ``full-S``. Raises ValueError for another text."""
        if text in ("crop", "warp"):
            return cls(text, input_size)
        found = _FULL.fullmatch(text)
        if found is None or not 32 <= int(found[1]) <= 4096:
            raise ValueError(f"{text!r} is no view; the views are crop, warp and full-S, S from 32 to 4096")
        return cls("full", int(found[1]))

    @property
    def fixed(self) -> bool:
        """Whether every image gives a map of the same size."""
        return self.kind != "full"


def show(image: RGB, view: View, max_pixels: int) -> RGB:
    """The pixels of a view, uint8 (H, W, 3): bilinear, not antialiased, as the body's own scaling (``Body.conv_map``).

    A full view of more than ``max_pixels`` is taken at the largest smaller size that fits.
    """
    height, width = image.shape[:2]
    if view.kind == "warp":
        return _resized(image, view.size, view.size)
    if view.kind == "full":
        return _resized(image, *scaled_size(height, width, fitting_scale(height, width, view.size, max_pixels)))
    short = view.size * CROP_FROM // 224
    image = _middle(image)
    height, width = image.shape[:2]
    image = _resized(image, *scaled_size(height, width, short))
    top, left = (image.shape[0] - view.size) // 2, (image.shape[1] - view.size) // 2
    return np.ascontiguousarray(image[top : top + view.size, left : left + view.size])


def _middle(image: RGB) -> RGB:
    """The middle of a very long image: scaled whole, one that is a pixel wide would take gigabytes."""
    height, width = image.shape[:2]
    most = _LONGEST * min(height, width)
    top, left = max(0, height - most) // 2, max(0, width - most) // 2
    return image[top : top + min(height, most), left : left + min(width, most)]


def _resized(image: RGB, height: int, width: int) -> RGB:
    import cv2  # a quarter of a second, and every config asks whether its views are some

    return np.asarray(cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR), np.uint8)
