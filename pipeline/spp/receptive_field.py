"""Where a cell of a conv map looks: stride, centre and size of its receptive field, from the list of layers.

Nothing here is typed in per body; ``tests/unit/pipeline/spp/test_receptive_field.py`` proves every body's numbers with
gradients.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Layer:
    """One convolution or pooling layer, in one axis.

    ``padding`` is what stands before the first pixel; ``padding_after`` what stands behind the last (the same where
    it is not given). ``ceil``: the output length is rounded up, as in Caffe's pooling.
    """

    kernel: int
    stride: int = 1
    padding: int = 0
    dilation: int = 1
    padding_after: int | None = None
    ceil: bool = False

    def length(self, n: int) -> int:
        """Cells that the layer gives for ``n`` inputs; 0 if its kernel does not fit.

        With ``ceil`` the last window must begin inside the input or its padding, as in Caffe and PyTorch.
        """
        after = self.padding if self.padding_after is None else self.padding_after
        room = n + self.padding + after - self.dilation * (self.kernel - 1) - 1
        if room < 0 and not (self.ceil and room + self.stride > 0):
            return 0
        cells = -(-room // self.stride) + 1 if self.ceil else room // self.stride + 1
        if self.ceil and (cells - 1) * self.stride >= n + self.padding:
            cells -= 1
        return max(cells, 0)


@dataclass(frozen=True)
class Geometry:
    """Receptive fields of one conv map, in pixels of the body's input, 0-based.

    Cell ``i`` is centred on pixel ``centre + i * stride`` and sees ``size`` pixels around it.
    """

    stride: int
    centre: float
    size: int

    def cells_that_see(self, length: int, cells: int) -> int:
        """How many of the first ``cells`` cells see at least one of ``length`` pixels (the rest see padding only)."""
        first = self.centre - (self.size - 1) / 2  # leftmost pixel of cell 0
        last = int((length - 1 - first) // self.stride)  # last cell whose leftmost pixel is inside
        return max(min(cells, last + 1), 1)


def geometry(layers: Sequence[Layer]) -> Geometry:
    """Stride, centre of cell 0 and size of the receptive field after ``layers``.

    The recurrence of the paper's appendix A, without its assumption that every padding is floor(kernel / 2): a layer
    moves the centre by half its extent less its leading padding, in units of the stride before it.
    """
    stride, centre, size = 1, 0.0, 1
    for layer in layers:
        extent = layer.dilation * (layer.kernel - 1)
        centre += (extent / 2 - layer.padding) * stride
        size += extent * stride
        stride *= layer.stride
    return Geometry(stride, centre, size)


def map_length(layers: Sequence[Layer], n: int) -> int:
    """Cells along one axis of the map after ``layers`` for an input of ``n`` pixels; 0 if a layer does not fit."""
    for layer in layers:
        n = layer.length(n)
    return n


def smallest_input(layers: Sequence[Layer]) -> int:
    """The smallest input length that gives a map of at least one cell."""
    n = 1
    while map_length(layers, n) < 1:
        n += 1
    return n
