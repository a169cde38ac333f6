"""Feature extraction: the body once per image and scale, then one pooled vector per box (paper 4.1)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from functools import partial
from types import MappingProxyType

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.bodies import Body, BodySpec
from pipeline.boxes import Boxes
from pipeline.errors import BodyError, ContentError, ImageError
from pipeline.images.decode import RGB
from pipeline.phases import PhaseClock
from pipeline.spp import pyramid
from pipeline.spp.windows import Mapping as BoxMapping
from pipeline.spp.windows import ScaleRule, Windows, choose_scales, fitting_scales, map_windows


@dataclass(frozen=True)
class RegionFeatures:
    """Of the N boxes of one image, in their order.

    ``scales``: int32 (N,), the short side at which each box was pooled. ``windows``: int16 (N, 4), inclusive cells of
    the map at that scale. ``vectors``: float16 (N, dim).
    """

    scales: NDArray[np.int32]
    windows: Windows
    vectors: NDArray[np.float16]


@dataclass(frozen=True)
class Wanted:
    """Boxes (N, 4) of which vectors are wanted, at the best scales or at those given, int32 (N,).

    ``out``: a float16 buffer of at least (N, dim) to write to; ``vectors`` is then a view of it. A fresh buffer costs
    more than the pooling, since the system has to hand out its pages.
    """

    boxes: Boxes
    scales: NDArray[np.int32] | None = None
    out: NDArray[np.float16] | None = None


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
    mapping: BoxMapping = "released"
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
        return scales, windows_at(self.body.spec, boxes, height, width, scales, self.mapping)

    def __call__(
        self,
        image: RGB,
        boxes: Boxes,
        out: NDArray[np.float16] | None = None,
        scales: NDArray[np.int32] | None = None,
    ) -> RegionFeatures:
        """Features of ``boxes`` (N, 4) on ``image``: those of one ``Wanted``.

        Raises BodyError if the map is not finite in float16, and what ``windows`` raises.
        """
        (made,) = self.together(image, [Wanted(boxes, scales, out)])
        if isinstance(made, ContentError):
            raise made
        return made

    def together(
        self,
        image: RGB,
        wanted: Sequence[Wanted],
        maps: Mapping[int, NDArray[np.float16]] = MappingProxyType({}),
    ) -> list[RegionFeatures | ContentError]:
        """Features of several sets of boxes, or why one has none; ``image`` passes the body once for each scale.

        ``maps``: those of ``conv_maps`` that are there already, by scale.
        """
        found = [self._placed(image, one) for one in wanted]
        scales = {int(scale) for one in found if isinstance(one, RegionFeatures) for scale in np.unique(one.scales)}
        for scale in sorted(scales):
            own = [
                number
                for number, one in enumerate(found)
                if isinstance(one, RegionFeatures) and (one.scales == scale).any()
            ]
            if not own:
                continue  # those that wanted it have failed at another one
            try:
                pool = self._pool_of(image, scale, maps.get(scale))
            except ContentError as error:
                for number in own:
                    found[number] = error
                continue
            for number in own:
                one = found[number]
                assert isinstance(one, RegionFeatures)
                rows = np.flatnonzero(one.scales == scale)
                pool(one.windows[rows], rows, one.vectors)
        return found

    def _placed(self, image: RGB, wanted: Wanted) -> RegionFeatures | ContentError:
        """Scales, windows, and the vectors' memory. An ImageError is returned: other sets may have none."""
        try:
            scales, windows = self.windows(wanted.boxes, image.shape[0], image.shape[1], wanted.scales)
        except ImageError as error:
            return error
        count = len(wanted.boxes)
        vectors = np.empty((count, self.dim), np.float16) if wanted.out is None else wanted.out[:count]
        return RegionFeatures(scales, windows, vectors)

    def _pool_of(
        self, image: RGB, scale: int, known: NDArray[np.float16] | None
    ) -> Callable[[Windows, NDArray[np.intp], NDArray[np.float16]], None]:
        """What pools windows of the map at ``scale`` into rows of vectors: of a ``known`` map, or of one made now."""
        if known is None:
            conv_map = self._conv_map(image, scale)
            if self.body.device.type != "cpu":
                return partial(self._pool_on_device, conv_map)
            with self.clock.phase("pool"):
                known = pyramid.half(conv_map.permute(1, 2, 0).numpy())
        return partial(self._pool_on_host, known)

    def _pool_on_host(
        self,
        halved: NDArray[np.float16],
        windows: Windows,
        rows: NDArray[np.intp],
        out: NDArray[np.float16],
    ) -> None:
        with self.clock.phase("pool"):
            pyramid.pool(halved, windows, self.levels, threads=self.threads, out=out, rows=rows)

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
        self.clock.passed()
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


def windows_at(
    spec: BodySpec, boxes: Boxes, height: int, width: int, scales: NDArray[np.int32], mapping: BoxMapping
) -> Windows:
    """The window of every box (N, 4) of a ``height`` x ``width`` image on the map of a body at its scale (N,).

    Raises ImageError for an image whose map has more than 32,767 cells along a side.
    """
    windows = np.empty((len(boxes), 4), np.int16)
    for scale in np.unique(scales):
        chosen = scales == scale
        map_size = spec.map_size(height, width, int(scale))
        if max(map_size) > np.iinfo(np.int16).max:
            raise ImageError(f"an image of {width} x {height} pixels is too long and thin for a map; cut it up")
        windows[chosen] = map_windows(boxes[chosen], (height, width), int(scale), spec.geometry, map_size, mapping)
    return windows


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
