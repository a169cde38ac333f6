"""Proposal methods: an image in, ranked boxes out.

A method is a frozen dataclass of its parameters whose call takes an RGB image and a seed and returns boxes, best first:
``pipeline.proposals.selective_search``, and two programs of others for comparison. ``propose`` adds what is common to
all of them: the size at which an image is searched, the smallest side, exact duplicates, the number kept.
"""

from __future__ import annotations

import hashlib
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np

from pipeline.boxes import Boxes, as_boxes, clip, first_of_duplicates
from pipeline.errors import ProposalError
from pipeline.proposals.opencv_search import OpenCVSearch, SearchCrashed
from pipeline.proposals.ranked_boxes import RankedBoxes

if TYPE_CHECKING:
    from pipeline.images.decode import RGB

# `selectivesearch` runs it on floats. For good, since warnings cannot be silenced for one thread alone.
warnings.filterwarnings("ignore", message="Applying `local_binary_pattern` to floating-point images")

_search = OpenCVSearch()
"""This process's own: one call at a time."""


class ProposalMethod(Protocol):
    """What ``propose`` needs of a method: ranked boxes of an RGB image, the same ones for the same seed."""

    def __call__(self, image: RGB, seed: int) -> RankedBoxes: ...

    def warm_up(self) -> None:
        """Do what takes time only once, before the first image."""


@dataclass(frozen=True)
class OpenCVSelectiveSearch:
    """``cv2.ximgproc`` selective search, fast mode: {HSV, Lab} x 3 values of k x 2 sums of similarities.

    OpenCV uses k = base_k, base_k + inc_k, base_k + 2 inc_k, where the original's fast mode has k = 50 and 100;
    (50, 50) comes nearest to it (selectivesearchsegmentation.cpp, switchToSelectiveSearchFast). It ranks with C's
    ``rand()``, seeded per call, in a process of its own (see ``pipeline.proposals.opencv_search``).

    Raises ProposalError if OpenCV fails on the image.
    """

    base_k: int = 50
    inc_k: int = 50
    sigma: float = 0.8

    def __call__(self, image: RGB, seed: int) -> RankedBoxes:
        try:
            x, y, width, height = _search(image, self.base_k, self.inc_k, self.sigma, seed).astype(np.float32).T
        except SearchCrashed as error:
            raise ProposalError(f"{error}; leave the image out, or use another proposals.method") from error
        return RankedBoxes(np.stack([x, y, x + width, y + height], axis=1))

    def warm_up(self) -> None:
        """Start the process that searches."""
        self(np.zeros((32, 32, 3), np.uint8), 0)


@dataclass(frozen=True)
class AlpacaSelectiveSearch:
    """The PyPI package ``selectivesearch`` 0.4, as it is.

    One colour space and one hierarchy, hence few boxes. Its known defects stay (they are its method): rectangles are
    one pixel short on the right and below, which is mended here; texture and colour histograms use ranges that leave
    most bins empty; neighbours are found by bounding boxes, so merging may stop early and the whole image be missing;
    its time grows with the square of the regions, and all memory with the pixels. Its own order ranks the boxes.
    """

    scale: float = 500.0
    sigma: float = 0.8
    min_size: int = 50

    def __call__(self, image: RGB, seed: int) -> RankedBoxes:
        import selectivesearch

        _, regions = selectivesearch.selective_search(image, self.scale, self.sigma, self.min_size)
        rects = np.array([region["rect"] for region in regions], np.float32).reshape(-1, 4)
        x, y, width, height = rects.T
        return RankedBoxes(np.stack([x, y, x + width + 1, y + height + 1], axis=1))

    def warm_up(self) -> None:
        """Import the package."""
        import selectivesearch  # noqa: F401


def seed_of(image_id: str, seed: int) -> int:
    """A 32-bit seed for one image, the same on every worker and in every order of images."""
    return int.from_bytes(hashlib.sha256(f"{seed}\0{image_id}".encode()).digest()[:4], "little")


def propose(
    method: ProposalMethod,
    image: RGB,
    seed: int,
    *,
    min_side: int = 20,
    max_boxes: int = 2000,
    max_side: int | None = 500,
) -> RankedBoxes:
    """Ranked proposals of one image: N <= ``max_boxes`` boxes, in pixels of ``image``.

    An image longer than ``max_side`` is searched at that size (R-CNN searches at a fixed width,
    rcnn_detect.m:15-19) and its boxes are scaled back. Boxes with a side below ``min_side`` pixels of the searched
    image are dropped, as are exact duplicates (selective_search_boxes.m). An image too small for one such box, or with
    a single row or column of pixels, has none and is not searched.
    """
    height, width = image.shape[:2]
    searched = shrunk(image, max_side)
    h, w = searched.shape[:2]
    if min(h, w) < max(min_side, 2):
        return RankedBoxes(as_boxes([]))
    found = method(searched, seed)
    sides = found.boxes[:, 2:] - found.boxes[:, :2]
    found = found[(sides >= min_side).all(axis=1)]
    found = found[first_of_duplicates(found.boxes)[:max_boxes]]
    factor = np.array([width / w, height / h, width / w, height / h], np.float32)
    return found.moved_to(clip(found.boxes * factor, height, width))


def shrunk(image: RGB, max_side: int | None) -> RGB:
    """The image, or a smaller copy whose longer side is ``max_side``."""
    import cv2  # a plan asks this module for the methods' parameters, and shrinks nothing

    height, width = image.shape[:2]
    longest = max(height, width)
    if max_side is None or longest <= max_side:
        return image
    size = (max(1, round(width * max_side / longest)), max(1, round(height * max_side / longest)))
    return np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), np.uint8)


def keep_given(boxes: Boxes | None, height: int, width: int, *, max_boxes: int = 2000) -> Boxes:
    """Of ranked boxes computed elsewhere (None: there are none), what ``propose`` would keep of its own: cut at the
    image's border, with an area, each once, the first ``max_boxes``."""
    kept = clip(as_boxes([] if boxes is None else boxes), height, width)
    kept = kept[(kept[:, 2:] > kept[:, :2]).all(axis=1)]
    return kept[first_of_duplicates(kept)][:max_boxes]
