"""Whole images as vectors: the layers of a network on a view of an image (paper 3.2, 3.3).

Layers, shallow to deep: the body's last two maps, flattened, where every image's has the same size; ``pool``, the 6 x 6
level alone; ``spp``, the whole pyramid; ``fc6`` and ``fc7`` of a classifier that comes with the weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.bodies import Body, BodySpec
from pipeline.errors import BodyError
from pipeline.images.decode import RGB
from pipeline.images.view import View, show
from pipeline.network.head import Head
from pipeline.phases import PhaseClock
from pipeline.spp import pyramid

POOL_LEVEL = 6


def layers_of(spec: BodySpec, levels: Sequence[int], classifier: bool) -> tuple[str, ...]:
    """Every layer that a body has, shallow to deep."""
    pooled = ["pool"] if POOL_LEVEL in levels else []
    return (*spec.taps, spec.last, *pooled, "spp", *(("fc6", "fc7") if classifier else ()))


def whole_layers(layers: Sequence[str]) -> tuple[str, ...]:
    """Those of ``layers`` that exist for a view of any size."""
    return tuple(layer for layer in layers if layer in ("pool", "spp", "fc6", "fc7"))


@dataclass(frozen=True)
class LayerValues:
    """One layer of one view: ``values`` float16 (dim,), and the size of the map that they are of or were pooled from.

    A flattened map is row-major with channels last; ``spp`` is as ``pipeline.spp.pyramid`` describes.
    """

    values: NDArray[np.float16]
    height: int
    width: int
    channels: int


@dataclass
class WholeImageExtractor:
    """Views of an image to layers, with one body.

    ``head`` gives fc6 and fc7, and is None without a classifier. ``pool`` is not made apart: ``pool_part`` cuts it out
    of ``spp``. Seconds of the phases ``conv``, ``pool`` and ``fc`` go to the ``clock`` of a call.
    """

    body: Body
    levels: Sequence[int]
    head: Head | None
    max_pixels: int

    @torch.inference_mode()
    def __call__(self, image: RGB, view: View, layers: Sequence[str], clock: PhaseClock) -> dict[str, LayerValues]:
        """Some ``layers`` of a view. Raises BodyError where the values are no numbers in float16."""
        spec = self.body.spec
        clock.passed()
        with clock.phase("conv"):
            shown = show(image, view, self.max_pixels)
            names = [layer for layer in (*spec.taps, spec.last) if layer in layers]
            maps = self.body.layers_of(self.body.preprocess(shown), {*names, spec.last})
            cells = spec.map_length(shown.shape[0]), spec.map_length(shown.shape[1])
            found = {}
            for name in {*names, spec.last}:
                values = maps[name][0]
                if values.shape[1:] == maps[spec.last].shape[2:]:  # cells that see padding only are no part of it
                    values = values[:, : cells[0], : cells[1]]
                try:
                    found[name] = pyramid.half(values.permute(1, 2, 0).cpu().numpy())
                except ValueError as error:
                    raise BodyError(
                        f"layer {name}: {error}; the weights do not fit the body's preprocessing"
                    ) from error
        made = {name: _values(found[name].reshape(-1), found[name]) for name in names}
        last = found[spec.last]
        if {"spp", "pool", "fc6", "fc7"}.intersection(layers):
            with clock.phase("pool"):
                window = np.array([[0, 0, last.shape[1] - 1, last.shape[0] - 1]], np.int16)
                vector = pyramid.pool(last, window, self.levels)
            if {"spp", "pool"}.intersection(layers):
                made["spp"] = _values(vector[0], last)
            with clock.phase("fc"):
                for name in ("fc6", "fc7"):
                    if name in layers:
                        assert self.head is not None
                        pooled = torch.from_numpy(vector).float().to(self.body.device)
                        outputs = self.head(pooled, name)[0].half().cpu().numpy()
                        made[name] = _values(outputs, last)
        return made


def _values(values: NDArray[np.float16], conv_map: NDArray[np.float16]) -> LayerValues:
    return LayerValues(values, *conv_map.shape)


def pool_part(channels: int, levels: Sequence[int]) -> slice:
    """Where the 6 x 6 level stands in a vector of the pyramid."""
    before = pyramid.bin_count(levels[: list(levels).index(POOL_LEVEL)])
    return slice(before * channels, (before + POOL_LEVEL * POOL_LEVEL) * channels)
