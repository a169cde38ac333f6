"""What a network says of whole images: the probabilities of the classes, averaged over views of an image (paper 3.1).

``1-crop``: 224 x 224 from the centre of the image, its short side 256 (``1-crop-180``: the same pixels at 180 x 180).
``10-crop``: the centre and the corners, and their mirror images. ``1-full``: the whole image, its short side 256, its
aspect kept. ``2-full``: that and its mirror image.

``multi``: 96 views of 224 x 224 on six scales, and ``2-full`` (paper 3.1.4). At each scale the centre, the corners and
the middles of the edges, and all mirrored, 18 views; 6 at scale 224, where three places on the longer side are all
there are. They are no crops: the maps of the whole image and of its mirror image are computed once per scale, and
every view is pooled from its window on them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.images.decode import RGB
from pipeline.network.spp_network import SIDE, SppNetwork, pyramid_pool
from pipeline.products import share_out
from pipeline.spp.windows import Mapping, map_windows
from pipeline.training.augmentation import (
    CENTRE,
    FIVE,
    SHORT_SIDE,
    SMALL_SIDE,
    Choice,
    Place,
    at_short_side,
    corner,
    shown,
)

ScoredView = Literal["1-crop", "1-crop-180", "10-crop", "1-full", "2-full", "multi"]
VIEWS: tuple[ScoredView, ...] = get_args(ScoredView)
FIXED_VIEWS: tuple[ScoredView, ...] = ("1-crop", "10-crop")
"""Those that a network without SPP can take: all pixels at 224 x 224."""

SCALES = (224, 256, 300, 360, 448, 560)
"""Short sides of ``multi`` (paper 3.1.4)."""

_NINE: tuple[Place, ...] = tuple((y, x) for y in (0, 0.5, 1) for x in (0, 0.5, 1))
_BATCH = 64
"""Crops that pass the network at a time."""


def needed_side(view: ScoredView) -> int:
    """The short side at which an image must be decoded, at least, if it is that large."""
    return SCALES[-1] if view == "multi" else SHORT_SIDE


def score_views(
    network: SppNetwork, images: Sequence[RGB], view: ScoredView, *, mapping: Mapping = "released"
) -> NDArray[np.float32]:
    """The mean of the class probabilities over one kind of view: float32 (N, classes) of N images.

    The network is to be in evaluation mode. On a CPU threads share out the images, so that what is said of one hangs
    on no other; on a GPU crops go in batches. ``mapping``: from windows to cells, see ``pipeline.spp.windows``. Raises
    InputSizeError for a view that a network without SPP cannot take.
    """
    if view in ("1-crop", "1-crop-180", "10-crop") and network.mean.device.type != "cpu":
        return _of_crops(network, images, view)
    found = np.empty((len(images), _classes(network)), np.float32)

    def score(row: int) -> None:
        if view in ("1-crop", "1-crop-180", "10-crop"):
            found[row] = _of_crops(network, images[row : row + 1], view)[0]
        else:
            found[row] = (_of_scales if view == "multi" else _of_full)(network, images[row], view, mapping)

    share_out(score, range(len(images)))
    return found


@torch.inference_mode()
def _of_crops(network: SppNetwork, images: Sequence[RGB], view: ScoredView) -> NDArray[np.float32]:
    places, flips = (FIVE, (False, True)) if view == "10-crop" else ((CENTRE,), (False,))
    side = SMALL_SIDE if view == "1-crop-180" else SIDE
    choices = [Choice(place, flip, np.zeros(3, np.float32)) for place in places for flip in flips]
    means = np.empty((len(images), _classes(network)), np.float32)
    step = max(1, _BATCH // len(choices))
    for start in range(0, len(images), step):
        part = [at_short_side(image) for image in images[start : start + step]]
        crops = np.stack([shown(image, choice, side) for image in part for choice in choices])
        odds = _odds(network(_on(crops, network)))
        means[start : start + len(part)] = odds.view(len(part), len(choices), -1).mean(dim=1).cpu().numpy()
    return means


@torch.inference_mode()
def _of_full(network: SppNetwork, image: RGB, view: ScoredView, mapping: Mapping) -> NDArray[np.float32]:
    whole = at_short_side(image)
    pixels = np.stack([whole, whole[:, ::-1]] if view == "2-full" else [whole])
    return _odds(network(_on(pixels, network))).mean(dim=0).cpu().numpy()


@torch.inference_mode()
def _of_scales(network: SppNetwork, image: RGB, view: ScoredView, mapping: Mapping) -> NDArray[np.float32]:
    vectors = []
    for scale in SCALES:
        whole = at_short_side(image, scale)
        height, width = whole.shape[:2]
        boxes = view_boxes(height, width)
        for pixels in (whole, whole[:, ::-1]):
            conv_map = network.maps(_on(pixels[None], network))  # (1, channels, h, w)
            cells = conv_map.shape[2:]
            windows = map_windows(boxes, (height, width), scale, network.spec.geometry, (cells[0], cells[1]), mapping)
            if scale == SHORT_SIDE:
                windows = np.concatenate([windows, [[0, 0, cells[1] - 1, cells[0] - 1]]])
            vectors += [
                pyramid_pool(conv_map[:, :, y1 : y2 + 1, x1 : x2 + 1], network.levels)
                for x1, y1, x2, y2 in windows.tolist()
            ]
    return _odds(network.head(torch.cat(vectors))).mean(dim=0).cpu().numpy()


def view_boxes(height: int, width: int) -> NDArray[np.float32]:
    """The views of 224 x 224 of an image of this size: boxes (9, 4), or (3, 4) where that is its short side."""
    places = _NINE
    if min(height, width) <= SIDE:
        places = tuple((0, t) if height <= width else (t, 0) for t in (0, 0.5, 1))
    tops_lefts = np.array([corner(height, width, SIDE, place) for place in places], np.float32)
    lefts_tops = tops_lefts[:, ::-1]
    return np.concatenate([lefts_tops, lefts_tops + SIDE], axis=1)


def _odds(logits: torch.Tensor) -> torch.Tensor:
    return torch.softmax(logits.float(), dim=1)


def _on(pixels: NDArray[np.uint8], network: SppNetwork) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(pixels)).to(network.mean.device)


def _classes(network: SppNetwork) -> int:
    return network.head.size("fc8")
