"""Selective search, fast mode: boxes that may hold an object of any class (Uijlings et al., IJCV 2013).

An image is segmented in {HSV, Lab} x k {50, 100}; each segmentation is grouped twice, with and without colour. That
makes eight hierarchies, whose regions, from single segments to the whole image, give the boxes
(selective_search_boxes.m of the R-CNN code: sigma 0.8, min_size = k). A box from high up a hierarchy goes before one
from low down, up to chance: its place is its level times a random number (3.3), so that the first 2,000 boxes of an
image are a good 2,000.

The story is in ``SelectiveSearch``; ``conversion``, ``segmentation``, ``regions`` and ``grouping`` are its chapters.
They are only imported, and compiled, to search an image: a plan wants no more than the parameters. Everything after
OpenCV's conversion of colours is done in whole numbers, or in single operations that are rounded alike everywhere: from
the same colours and seed any machine finds the same boxes. One image takes one core (OpenCV's conversion too, after
``cv2.setNumThreads(1)``), and the GIL is released.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from pipeline.phases import PhaseClock
from pipeline.proposals.ranked_boxes import RankedBoxes

Colour = Literal["hsv", "lab", "rgb"]
Similarity = Literal["ctsf", "tsf"]
"""Colour, Texture, Size and Fill; or all but colour."""

COLOURS: tuple[Colour, ...] = get_args(Colour)
SIMILARITIES: tuple[Similarity, ...] = get_args(Similarity)

MOST_K = 1 << 25
"""Of a segmentation, in whose whole numbers more finds no room."""

MOST_SIGMA = 16.0
"""Of the blur. Beyond, its kernel's parts are too small for their fixed point."""


@dataclass(frozen=True)
class SelectiveSearch:
    """All combinations of ``colours``, ``ks`` and ``similarities``; the defaults are the paper's fast mode.

    ``ks``: of the segmentations, each also the number of pixels of its smallest segment; below 10, an image has so many
    regions that grouping them takes minutes. ``sigma``: of the blur before segmenting. ``prune``: whether the pixel
    graph goes without the edges that no minimum spanning tree needs, which takes a quarter less time for boxes that are
    nearly as good (see ``segmentation.prune``).

    Raises ValueError for an unknown name, a value out of its range, an empty list or one that repeats itself.
    """

    colours: Sequence[Colour] = ("hsv", "lab")
    ks: Sequence[int] = (50, 100)
    similarities: Sequence[Similarity] = ("ctsf", "tsf")
    sigma: float = 0.8
    prune: bool = False

    def __post_init__(self) -> None:
        for name, known in (("colours", COLOURS), ("similarities", SIMILARITIES)):
            values = getattr(self, name)
            if isinstance(values, str) or not values or not set(values) <= set(known):
                raise ValueError(f"{name} must be some of {', '.join(known)}, as a list, not {values!r}")
        object.__setattr__(self, "ks", tuple(operator.index(k) for k in self.ks))
        if not self.ks or not 1 <= min(self.ks) <= max(self.ks) <= MOST_K:
            raise ValueError(f"ks must be from 1 to {MOST_K}, at least one, not {self.ks}")
        if not 0 <= self.sigma <= MOST_SIGMA:
            raise ValueError(f"sigma must be from 0 to {MOST_SIGMA}, not {self.sigma}")
        for name in ("colours", "ks", "similarities"):
            if len(set(getattr(self, name))) < len(getattr(self, name)):
                raise ValueError(f"{name} repeats itself: {getattr(self, name)}")

    @property
    def strategies(self) -> tuple[str, ...]:
        """Their names, such as ``hsv-50-ctsf``, in the order of the hierarchies."""
        return tuple(f"{c}-{k}-{s}" for c in self.colours for k in self.ks for s in self.similarities)

    def __call__(self, image: NDArray[np.uint8], seed: int, clock: PhaseClock | None = None) -> RankedBoxes:
        """Every region of every hierarchy of an RGB image, uint8 (H, W, 3), of any size from 1 x 1 to 2^30 pixels.

        A box that several regions have comes several times. ``clock`` counts the seconds of convert, weigh, segment,
        describe, group and rank. Raises ValueError for anything that is no such image.
        """
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
            raise ValueError(f"an RGB image is uint8 (height, width, 3), not {image.dtype} {image.shape}")
        clock = clock or PhaseClock()
        hierarchies = [boxes for colour in self.colours for boxes in self._hierarchies(image, colour, clock)]
        with clock.phase("rank"):
            return _rank(hierarchies, seed, self.strategies)

    def _hierarchies(self, image: NDArray[np.uint8], colour: Colour, clock: PhaseClock) -> Iterator[NDArray[np.int32]]:
        """The boxes of each, in one colour space. What is large is dropped as soon as it has been used."""
        from pipeline.proposals.selective_search import (  # here: see the module
            conversion,
            grouping,
            regions,
            segmentation,
        )

        with clock.phase("convert"):
            colours, planes = conversion.converted(image, colour, self.sigma)
        with clock.phase("describe"):
            codes = regions.pixel_codes(colours, planes)
            del colours
        with clock.phase("weigh"):
            weights = segmentation.edge_weights(planes)
            del planes
            if self.prune:
                segmentation.prune(weights)
        with clock.phase("segment"):
            segmented = segmentation.segment(weights, self.ks)
            del weights
        for labels in segmented:
            with clock.phase("describe"):
                segments = regions.describe(labels, codes)
            for similarity in self.similarities:
                with clock.phase("group"):
                    boxes = grouping.group(segments, similarity == "ctsf")
                yield boxes

    def warm_up(self) -> None:
        """Compile everything, or load it from the cache, outside the time of the first image."""
        _keep_freed_memory()
        self(np.arange(16 * 16 * 3, dtype=np.uint8).reshape(16, 16, 3), 0)


def _keep_freed_memory() -> None:
    """Have the C library keep what one image has freed for the next: mapping it anew takes a tenth of the time.

    glibc returns a freed block to the system if it is larger than any that it has freed before, up to 32 MB. Other
    libraries take no notice.
    """
    np.empty(31 << 20, np.uint8)


def _rank(hierarchies: Sequence[NDArray[np.int32]], seed: int, names: tuple[str, ...]) -> RankedBoxes:
    boxes = np.concatenate(hierarchies)
    strategies = np.repeat(np.arange(len(hierarchies), dtype=np.int16), [len(made) for made in hierarchies])
    levels = np.concatenate([np.arange(len(made), 0, -1, dtype=np.int32) for made in hierarchies])
    # from raw numbers, which NumPy promises not to change
    chance = (np.random.PCG64(seed).random_raw(len(boxes)) >> np.uint64(11)) * 2.0**-53
    order = np.argsort(levels * chance, kind="stable")
    return RankedBoxes(boxes.astype(np.float32), strategies, levels, names)[order]
