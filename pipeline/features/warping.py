"""R-CNN's way to features: every box is warped to the body's input size and passes the body alone (Girshick 2014).

What SPP-net is held against (paper 4.3): ``WarpExtractor`` takes the place of ``RegionExtractor``, and costs as many
passes of the body as there are boxes.

The warp is that of R-CNN's appendix A, in the arithmetic of the released code (BVLC/caffe 079af2c,
src/caffe/layers/window_data_layer.cpp:300-392; rbgirshick/rcnn 51511d0, rcnn_im_crop.m:35-85 is the same, with pixels
counted from 1). The region around a box is so much larger than the box that in the warped frame there are ``context``
pixels of image on each side of it. Its ends are rounded to whole pixels, both of which belong to it: it reaches one
pixel of the image further to the right and below than it should. What of it lies outside the image is filled.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.bodies import Body
from pipeline.boxes import Boxes, as_boxes
from pipeline.features.regions import RegionFeatures, rounded
from pipeline.images.decode import RGB
from pipeline.phases import PhaseClock
from pipeline.spp import pyramid
from pipeline.spp.windows import Windows

CONTEXT = 16
"""Pixels of the warped frame (R-CNN appendix A; crop_padding in rcnn_create_model.m)."""


def warp(image: RGB, box: Boxes, size: int, context: int, fill: Sequence[float]) -> RGB:
    """One box (4,) of an image, warped: uint8 (size, size, 3). Parameters and errors as in ``warp_all``."""
    warped: RGB = warp_all(image, as_boxes(box), size, context, fill)[0]
    return warped


def warp_all(
    image: RGB, boxes: Boxes, size: int, context: int, fill: Sequence[float], out: NDArray[np.uint8] | None = None
) -> NDArray[np.uint8]:
    """Boxes of an image, each warped to ``size`` x ``size`` pixels, whatever its shape.

    Parameters
    ----------
    image : uint8 of shape (height, width, 3).
    boxes : (N, 4), in pixels of the image; they may reach beyond it or lie outside.
    size : sides of the warped frame, in pixels.
    context : pixels of image around the box, on each side of the warped frame; 0: the box alone.
    fill : colour, in the image's order, of what lies outside the image; rounded to whole numbers.
    out : uint8 of shape (M, size, size, 3), M >= N, to write to (default: a new one of N rows).

    Returns
    -------
    uint8 of shape (N, size, size, 3). Bilinear, not antialiased.

    Raises
    ------
    ValueError : a context that leaves no pixel for the box.
    """
    if not 0 <= 2 * context < size:
        raise ValueError(f"a frame of {size} pixels has no room for {context} pixels of context on each side")
    height, width = image.shape[:2]
    colour = np.rint(fill).astype(np.uint8)
    frames = np.empty((len(boxes), size, size, 3), np.uint8) if out is None else out[: len(boxes)]
    for frame, (x1, y1, x2, y2) in zip(frames, boxes.tolist(), strict=True):
        columns = _place(x1, x2, width, size, context)
        rows = _place(y1, y2, height, size, context)
        if not (columns.fills(size) and rows.fills(size)):
            frame[:] = colour
        if columns.count and rows.count:
            inside = image[rows.source, columns.source]
            # the third argument is where it writes to
            cv2.resize(inside, (columns.count, rows.count), frame[rows.target, columns.target], 0, 0, cv2.INTER_LINEAR)
    return frames


@dataclass
class WarpExtractor:
    """Boxes of an image to vectors, each through the body alone; called like a ``RegionExtractor``.

    With ``levels`` (6,), AlexNet's vectors are R-CNN's pool5: the six bins of a map of 13 cells are the windows of its
    last pooling (3 x 3, stride 2).

    Parameters
    ----------
    body : on its device. Boxes are warped to its ``spec.input_size``.
    levels : of the spatial pyramid over the whole map, in the order of the vector.
    context : pixels around the box in the warped frame.
    batch : boxes that pass the body together, always so many: the last few of an image have blank ones beside them, as
        another number may change the last digit of a map's values.
    threads : of the pooling on a CPU.
    clock : where the seconds of the phases ``warp``, ``conv`` and ``pool`` are counted.
    """

    body: Body
    levels: Sequence[int] = pyramid.LEVELS
    context: int = CONTEXT
    batch: int = 32
    threads: int = 1
    clock: PhaseClock = field(default_factory=PhaseClock)

    @property
    def dim(self) -> int:
        """Length of a vector."""
        return self.body.spec.channels * pyramid.bin_count(self.levels)

    @property
    def fill(self) -> tuple[float, float, float]:
        """The body's mean colour in RGB: nearly 0 in its input (off by half a grey level at the most)."""
        first, second, third = self.body.spec.mean
        return (third, second, first) if self.body.spec.colour_order == "BGR" else (first, second, third)

    def scales_of(self, height: int, width: int) -> tuple[int, ...]:
        """The one side that boxes of every image are warped to."""
        return (self.body.spec.input_size,)

    def windows(self, boxes: Boxes, height: int, width: int) -> tuple[NDArray[np.int32], Windows]:
        """Of every box: the side it is warped to, int32 (N,), and the whole map of that, int16 (N, 4)."""
        last = self._cells - 1
        scales = np.full(len(boxes), self.body.spec.input_size, np.int32)
        return scales, np.tile(np.array([0, 0, last, last], np.int16), (len(boxes), 1))

    def __call__(
        self,
        image: RGB,
        boxes: Boxes,
        out: NDArray[np.float16] | None = None,
        scales: NDArray[np.int32] | None = None,
    ) -> RegionFeatures:
        """Features of ``boxes`` (N, 4) on ``image``. ``scales`` may be given as to a ``RegionExtractor``: all are one.

        ``out``: a float16 buffer of at least (N, dim) to write to; ``vectors`` is then a view of it.

        Raises BodyError if a map is not finite in float16.
        """
        scales, windows = self.windows(boxes, image.shape[0], image.shape[1])
        vectors = np.empty((len(boxes), self.dim), np.float16) if out is None else out[: len(boxes)]
        size = self.body.spec.input_size
        # the maps of a batch are pooled as one, whose rows must be numbers of int16
        batch = min(self.batch, np.iinfo(np.int16).max // self._cells)
        frames = np.zeros((batch if len(boxes) else 0, size, size, 3), np.uint8)
        for start in range(0, len(boxes), batch):
            part = slice(start, start + batch)
            with self.clock.phase("warp"):
                warp_all(image, boxes[part], size, self.context, self.fill, out=frames)
            maps = self._conv_maps(frames)[: len(boxes[part])]
            self.clock.passed(len(maps))
            with self.clock.phase("pool"):
                self._pool(maps, windows[part], vectors[part])
        return RegionFeatures(scales, windows, vectors)

    @property
    def _cells(self) -> int:
        return self.body.spec.map_length(self.body.spec.input_size)

    def _conv_maps(self, warped: NDArray[np.uint8]) -> torch.Tensor:
        """Maps (B, channels, cells, cells) in float16 on their device, checked to be finite."""
        with self.clock.phase("conv"):
            maps = self.body.conv_maps_of(self.body.preprocess(warped))
            return rounded(maps[:, :, : self._cells, : self._cells])  # whose check also waits for a GPU

    def _pool(self, maps: torch.Tensor, windows: Windows, out: NDArray[np.float16]) -> None:
        """Each map whole: as a window of the one that they make when laid one below the other."""
        stacked = windows.copy()
        stacked[:, 1::2] += (np.arange(len(maps), dtype=np.int16) * self._cells)[:, None]
        if self.body.device.type == "cpu":
            below = maps.permute(0, 2, 3, 1).flatten(0, 1)  # (B * cells, cells, channels)
            pyramid.pool(pyramid.half(below.numpy()), stacked, self.levels, threads=self.threads, out=out)
        else:
            self._pool_on_device(maps, stacked, out)

    def _pool_on_device(self, maps: torch.Tensor, stacked: Windows, out: NDArray[np.float16]) -> None:
        below = maps.transpose(0, 1).flatten(1, 2)  # (channels, B * cells, cells)
        out[:] = pyramid.pool_torch(below, stacked, self.levels).cpu().numpy()


@dataclass(frozen=True)
class _Placement:
    """Along one axis: which pixels of the image go where in the warped frame. ``count`` 0: none."""

    source: slice
    target: slice

    @property
    def count(self) -> int:
        count: int = self.target.stop - self.target.start
        return count

    def fills(self, size: int) -> bool:
        """Whether the whole frame is image."""
        return self.count == size


def _place(low: float, high: float, length: int, size: int, context: int) -> _Placement:
    """The placement of the box ``[low, high)`` of an image of ``length`` pixels."""
    half = max(high - low, 0) / 2
    centre, grown = low + half, half * size / (size - 2 * context)
    first = _round(centre - grown)
    # without context the release takes the box as it is, without the pixel that its rounding adds
    last = max(first, _round(centre + grown) - (context == 0))
    region = last - first + 1
    before = max(0, -first)
    inside = min(last, length - 1) - max(first, 0) + 1
    start = _share(before, region, size)
    count = max(0, min(_share(inside, region, size), size - start))
    return _Placement(slice(first + before, first + before + inside), slice(start, start + count))


def _share(part: int, whole: int, size: int) -> int:
    """``part / whole`` of ``size``, halves rounded up; 0 for a negative part."""
    return max(0, (2 * part * size + whole) // (2 * whole))


def _round(value: float) -> int:
    """Halves away from 0, as in C."""
    return int(math.copysign(math.floor(abs(value) + 0.5), value))
