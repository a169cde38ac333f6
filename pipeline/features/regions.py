"""Feature extraction: the body once per image and scale, then one pooled vector per box (paper 4.1)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.bodies import Body
from pipeline.boxes import Boxes
from pipeline.errors import BodyError, ImageError
from pipeline.images.decode import RGB
from pipeline.phases import PhaseClock
from pipeline.spp import pyramid
from pipeline.spp.windows import Mapping, ScaleRule, Windows, choose_scales, fitting_scales, map_windows


@dataclass(frozen=True)
class RegionFeatures:
    """Of the N boxes of one image, in their order.

    ``scales``: int32 (N,), the short side at which each box was pooled. ``windows``: int16 (N, 4), inclusive cells of
    the map at that scale. ``vectors``: float16 (N, dim).
    """

    scales: NDArray[np.int32]
    windows: Windows
    vectors: NDArray[np.float16]


@dataclass
class RegionExtractor:
    """Boxes of an image to vectors, with one body and one set of rules.

    Parameters
    ----------
    body : on its device.
    scales : short sides, in pixels.
    scale_rule, mapping : see ``pipeline.spp.windows``.
    levels : of the spatial pyramid, in the order of the vector.
    max_scaled_pixels : an image that would exceed this is taken at the largest smaller size that fits.
    threads : of the pooling on a CPU.
    clock : where the seconds of the phases ``conv``, ``pool`` and ``transfer`` are counted.
    """

    body: Body
    scales: Sequence[int]
    _: KW_ONLY
    scale_rule: ScaleRule = "area"
    mapping: Mapping = "released"
    levels: Sequence[int] = pyramid.LEVELS
    max_scaled_pixels: int = 1200 * 2400
    threads: int = 1
    clock: PhaseClock = field(default_factory=PhaseClock)

    @property
    def dim(self) -> int:
        """Length of a vector."""
        return self.body.spec.channels * pyramid.bin_count(self.levels)

    def scales_of(self, height: int, width: int) -> tuple[int, ...]:
        """The scales at which an image of this size is taken, ascending."""
        return fitting_scales(height, width, self.scales, self.max_scaled_pixels)

    def windows(
        self, boxes: Boxes, height: int, width: int, scales: NDArray[np.int32] | None = None
    ) -> tuple[NDArray[np.int32], Windows]:
        """Scale and window of every box of a ``height`` x ``width`` image.

        ``scales`` (N,), of ``scales_of``, may be given; else each box is taken at the one that the rule finds best.
        Raises ImageError for an image whose map has more than 32,767 cells along a side.
        """
        if scales is None:
            scales = choose_scales(boxes, height, width, self.scales_of(height, width), self.scale_rule)
        windows = np.empty((len(boxes), 4), np.int16)
        for scale in np.unique(scales):
            chosen = scales == scale
            map_size = self.body.spec.map_size(height, width, int(scale))
            if max(map_size) > np.iinfo(np.int16).max:
                raise ImageError(f"an image of {width} x {height} pixels is too long and thin for a map; cut it up")
            windows[chosen] = map_windows(
                boxes[chosen], (height, width), int(scale), self.body.spec.geometry, map_size, self.mapping
            )
        return scales, windows

    def __call__(
        self,
        image: RGB,
        boxes: Boxes,
        out: NDArray[np.float16] | None = None,
        scales: NDArray[np.int32] | None = None,
    ) -> RegionFeatures:
        """Features of ``boxes`` (N, 4) on ``image``, at the best scales or at those given, as for ``windows``.

        ``out``: a float16 buffer of at least (N, dim) to write to; ``vectors`` is then a view of it. A fresh buffer
        costs more than the pooling, since the system has to hand out its pages.

        Raises BodyError if the map is not finite in float16, and what ``windows`` raises.
        """
        scales, windows = self.windows(boxes, image.shape[0], image.shape[1], scales)
        vectors = np.empty((len(boxes), self.dim), np.float16) if out is None else out[: len(boxes)]
        for scale in np.unique(scales):
            rows = np.flatnonzero(scales == scale)
            conv_map = self._conv_map(image, int(scale))
            if self.body.device.type == "cpu":
                with self.clock.phase("pool"):
                    halved = pyramid.half(conv_map.permute(1, 2, 0).numpy())
                    pyramid.pool(halved, windows[rows], self.levels, threads=self.threads, out=vectors, rows=rows)
            else:
                self._pool_on_device(conv_map, windows[rows], rows, vectors)
        return RegionFeatures(scales, windows, vectors)

    def conv_maps(self, image: RGB, scales: NDArray[np.int32]) -> dict[int, NDArray[np.float16]]:
        """The rounded conv maps (height, width, channels) of the different ``scales``, ascending.

        ``pyramid.pool`` of these gives the vectors that a call gives, bit for bit. Raises BodyError as a call does.
        """
        maps = {}
        for scale in np.unique(scales):
            conv_map = self._conv_map(image, int(scale))
            with self.clock.phase("transfer"):
                maps[int(scale)] = pyramid.half(conv_map.permute(1, 2, 0).cpu().numpy())
        return maps

    def _conv_map(self, image: RGB, scale: int) -> torch.Tensor:
        """The map in float16 on its device, checked to be finite."""
        with self.clock.phase("conv"):
            conv_map = rounded(self.body.conv_map(image, scale))
            self._wait()
        return conv_map

    def _pool_on_device(
        self, conv_map: torch.Tensor, windows: Windows, rows: NDArray[np.intp], out: NDArray[np.float16]
    ) -> None:
        """Pool on a GPU, in batches of windows that are halved while they do not fit into its memory."""
        batch, start = len(windows), 0
        while start < len(windows):
            part = slice(start, start + batch)
            try:
                with self.clock.phase("pool"):
                    pooled = pyramid.pool_torch(conv_map, windows[part], self.levels)
                    self._wait()
                with self.clock.phase("transfer"):
                    out[rows[part]] = pooled.cpu().numpy()
            except torch.OutOfMemoryError:
                if batch == 1:
                    raise
                batch //= 2
                torch.cuda.empty_cache()
                continue
            start += batch

    def _wait(self) -> None:
        """Kernels on a GPU run behind; without this the phases' seconds would be those of whoever waits."""
        if self.body.device.type == "cuda":
            torch.cuda.synchronize(self.body.device)


def rounded(maps: torch.Tensor) -> torch.Tensor:
    """Conv maps, of any shape, in float16 on their device. BodyError if one is not finite then.

    Looked at here and not after pooling, since torchvision's roi_pool passes over a NaN.
    """
    halved = maps.half()
    if not torch.isfinite(halved).all():
        raise BodyError(
            "the conv map is not finite in float16 (values beyond 65,504, or NaN); use other weights, or another "
            "features.precision than float16"
        )
    return halved
