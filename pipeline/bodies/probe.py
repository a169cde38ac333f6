"""Where the cells of a network's map look, measured on the network itself, for networks that come without a layer list.

The network's own ``forward`` runs as an average of averages: convolutions, linear layers and poolings average what they
see, sums and products average their terms, activations and normalisations do nothing. No term is negative, so the
gradient of one cell touches exactly the pixels that the cell sees. Gates that summarise the whole image, as
squeeze-and-excitation does, say how much, not where, and are left out. What is none of this, such as attention, is
refused.

If every cell sees the same neighbourhood around its own centre, whatever the size of the image, the whole network has
the geometry of one convolution, and that one layer is the answer. Otherwise windows cannot be found on its map.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from pipeline.spp.receptive_field import Layer, map_length

MAX_SIZE = 4096
"""Receptive fields of more pixels count as the whole image."""


class NoGeometryError(ValueError):
    """The cells of a network's map have no constant stride and centre. The message says what was found."""


_OF_NETWORKS = (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)
"""What foreign networks, and torch, raise at an image that does not suit them."""


class _CannotTakeError(NoGeometryError):
    """Of one size of image."""


class Measured(NamedTuple):
    """What is found of a network.

    ``layer`` has its geometry, for images whose sides are multiples of ``pad_to`` and at least ``least``.
    """

    layer: Layer
    pad_to: int
    least: int


def measure(network: nn.Module, stride: int) -> Measured:
    """The one layer that has a network's geometry, and the lengths for which it has it.

    Parameters
    ----------
    network : (1, 3, H, W) to (1, channels, h, w). It is changed, and of no other use afterwards.
    stride : what is claimed of it; measured all the same.

    Raises
    ------
    NoGeometryError : the cells of its map have no constant stride or centre.
    """
    network = network.eval().double()
    for parameter in network.parameters():
        parameter.requires_grad = False  # what needs a gradient is then what depends on pixels
    probe = _Probe(network, stride)
    try:
        return probe.measured(pad_to=1)
    except NoGeometryError as first:
        try:  # padding that depends on the length, as TensorFlow's, is constant over multiples of the stride
            return probe.measured(pad_to=stride)
        except NoGeometryError:
            raise first from None


class _Probe:
    def __init__(self, network: nn.Module, stride: int) -> None:
        self.network, self.stride = network, stride
        self.across = 4 * stride
        """The side that is not looked at: short, to be quick, but long enough for the network."""
        while not self._takes(self.across) and self.across < 32 * stride:
            self.across *= 2

    def measured(self, pad_to: int) -> Measured:
        """Raises NoGeometryError if the geometry depends on the length, among multiples of ``pad_to``."""
        first, size = self._field()
        shortest = -(-(size + 6 * self.stride) // self.stride) * self.stride
        steps = (0, 1, self.stride // 2 + 1, self.stride - 1) if pad_to == 1 else (0, pad_to, 2 * pad_to, 3 * pad_to)
        for step in steps:
            self._check(2, shortest + step, first, size)
            self._check(3, shortest + step, first, size)
        layer = Layer(size, self.stride, -first, padding_after=self._padding_after(first, size, pad_to))
        for length in range(self.across + self.stride, self.across + 2 * self.stride, pad_to):
            if not self._as_announced(layer, length):
                raise NoGeometryError(f"the map of an image of {length} pixels has another size than others suggest")
        least = self.across
        while least > pad_to and self._as_announced(layer, least - pad_to):
            least -= pad_to
        return Measured(layer, pad_to, least)

    def _field(self) -> tuple[int, int]:
        """First pixel that cell 0 would see of an endless image, and the size of the receptive field."""
        length = 4 * self.across
        while length <= MAX_SIZE:
            cells, see = self._see(2, length)
            middle = cells // 2
            first, last = see(middle)
            if first > 0 and last < length - 1:
                return first - middle * self.stride, last - first + 1
            length *= 2
        raise NoGeometryError(f"a cell sees the whole image, or more than {MAX_SIZE} pixels of it")

    def _check(self, axis: int, length: int, first: int, size: int) -> None:
        """Some cells of an image of ``length`` along ``axis``: do they see what they should?"""
        cells, see = self._see(axis, length)
        inside = [i for i in range(cells) if first + i * self.stride >= 0 and first + i * self.stride + size <= length]
        if len(inside) < 3:
            raise NoGeometryError(f"{length} pixels give {cells} cells, which is not a stride of {self.stride}")
        for cell in (inside[0], inside[1], inside[-1]):
            found, begin = see(cell), first + cell * self.stride
            if found != (begin, begin + size - 1):
                raise NoGeometryError(
                    f"cell {cell} of an image of {length} pixels sees pixels {found[0]} to {found[1]}, other cells or "
                    f"lengths suggest {begin} to {begin + size - 1}"
                )

    def _padding_after(self, first: int, size: int, pad_to: int) -> int:
        """From the length at which the map gets a cell more."""
        if pad_to > 1:
            return size - self.stride + first  # length / stride cells
        lengths = range(self.across, self.across + self.stride + 1)
        cells = [self._map_size(length, self.across)[0] for length in lengths]
        longer = [n for n, before, after in zip(lengths[1:], cells, cells[1:], strict=False) if after > before]
        if len(longer) != 1:
            raise NoGeometryError(f"maps do not grow by one cell for every {self.stride} pixels")
        return (cells[-1] - 1) * self.stride - longer[0] + size + first

    def _see(self, axis: int, length: int) -> tuple[int, Callable[[int], tuple[int, int]]]:
        """Cells along ``axis`` for ``length`` pixels, and what gives the first and last pixel that a cell sees."""
        shape = (length, self.across) if axis == 2 else (self.across, length)
        image = torch.ones(1, 3, *shape, dtype=torch.float64, requires_grad=True)
        conv_map = self._run(image)
        if not conv_map.requires_grad:
            raise NoGeometryError("its map does not depend on single pixels")
        across = conv_map.shape[5 - axis] // 2

        def see(cell: int) -> tuple[int, int]:
            at = (cell, across) if axis == 2 else (across, cell)
            (gradient,) = torch.autograd.grad(conv_map[0, :, at[0], at[1]].sum(), image, retain_graph=True)
            pixels = gradient[0].sum(dim=(0, 4 - axis)).nonzero().flatten()
            if not len(pixels):
                raise NoGeometryError("some cell sees nothing")
            return int(pixels[0]), int(pixels[-1])

        return conv_map.shape[axis], see

    def _takes(self, length: int) -> bool:
        try:
            return all(self._map_size(length, length))
        except _CannotTakeError:
            return False

    def _as_announced(self, layer: Layer, length: int) -> bool:
        cells = map_length([layer], length)
        try:
            return cells > 0 and self._map_size(length, length) == (cells, cells)
        except _CannotTakeError:
            return False

    def _map_size(self, height: int, width: int) -> tuple[int, int]:
        found = self._run(torch.ones(1, 3, height, width, dtype=torch.float64, requires_grad=True))
        return found.shape[2], found.shape[3]

    def _run(self, image: torch.Tensor) -> torch.Tensor:
        try:
            with _Averages():
                found: torch.Tensor = self.network(image * 1)  # not the leaf itself: some networks normalise in place
        except NoGeometryError:
            raise
        except _OF_NETWORKS as error:
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            raise _CannotTakeError(f"it cannot take {image.shape[2]} x {image.shape[3]} pixels ({reason})") from error
        if found.ndim != 4:
            raise NoGeometryError(f"what it gives is no map, but of shape {tuple(found.shape)}")
        return found


class _Averages(TorchFunctionMode):
    """Replaces functions of what depends on pixels by what is said above, while the network runs."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if not any(map(_depends, (*args, *kwargs.values()))) or name in _PLACING:
            return func(*args, **kwargs)
        if name.rstrip("_") in _NOTHING:
            return args[0] if args else kwargs["input"]
        if name.strip("_") in _MIXING:
            return _mix(name, *args, **kwargs)
        if name in _REPLACED:
            return _REPLACED[name](func, *args, **kwargs)
        if name in _SUMMARIES:
            summary = func(*args, **kwargs)
            if _lost_its_place(args[0], summary):
                return summary.detach()
            if name in ("mean", "sum"):
                return summary
        raise NoGeometryError(f"it uses {name}, which is no convolution, pooling or gate")


def _depends(argument: Any) -> bool:
    """Whether a function's argument depends on single pixels."""
    if isinstance(argument, (list, tuple)):
        return any(map(_depends, argument))
    return isinstance(argument, torch.Tensor) and argument.requires_grad


# fmt: off
_PLACING = {
    "cat", "concat", "stack", "split", "chunk", "unbind", "tensor_split", "split_with_sizes", "narrow", "select",
    "__getitem__", "view", "view_as", "reshape", "reshape_as", "flatten", "unflatten", "squeeze", "unsqueeze",
    "permute", "transpose", "movedim", "swapaxes", "swapdims", "expand", "expand_as", "repeat", "contiguous", "clone",
    "to", "float", "double", "type", "type_as", "roll", "pad", "pixel_unshuffle", "channel_shuffle", "avg_pool2d",
    "dim", "size", "numel", "stride", "is_contiguous", "is_floating_point", "__get__", "__len__",
}
"""What moves values, averages them, or tells a shape: left as it is."""

_NOTHING = {
    "relu", "relu6", "leaky_relu", "prelu", "rrelu", "elu", "celu", "selu", "gelu", "silu", "mish", "softplus",
    "softsign", "sigmoid", "logsigmoid", "tanh", "hardtanh", "hardswish", "hardsigmoid", "hardshrink", "softshrink",
    "threshold", "clamp", "clip", "clamp_min", "clamp_max", "dropout", "dropout1d", "dropout2d", "pow", "square",
    "sqrt", "rsqrt", "exp", "log", "abs", "neg", "reciprocal", "batch_norm", "layer_norm", "group_norm",
    "instance_norm", "rms_norm", "local_response_norm", "normalize",
}
"""Activations, other functions of one value, and normalisations."""

_MIXING = {
    "add", "radd", "iadd", "sub", "rsub", "mul", "rmul", "div", "rdiv", "truediv", "true_divide", "addcmul",
    "maximum", "minimum",
}
"""Sums and products."""

_SUMMARIES = {
    "mean", "sum", "amax", "amin", "norm", "vector_norm", "std", "var", "logsumexp",
    "adaptive_avg_pool2d", "adaptive_max_pool2d",
}
"""What gates are made of, where it leaves nothing of a map's height and width."""
# fmt: on


def _lost_its_place(image: Any, summary: Any) -> bool:
    """Whether both axes of a map, channels first or last, are gone."""
    if not (isinstance(image, torch.Tensor) and isinstance(summary, torch.Tensor) and image.ndim == 4):
        return False
    return summary.ndim <= 2 or any(set(summary.shape[i : i + 2]) == {1} for i in (1, 2))


def _mix(name: str, *terms: Any, **options: Any) -> torch.Tensor:
    """The average of the terms that depend on pixels, in the shape that all of them make."""
    tensors = [term for term in (*terms, *options.values()) if isinstance(term, torch.Tensor)]
    depending = [term for term in tensors if term.requires_grad]
    mixed = depending[0] / len(depending)
    for term in depending[1:]:
        mixed = mixed + term / len(depending)
    mixed = mixed.expand(torch.broadcast_shapes(*(term.shape for term in tensors)))
    in_place = name.endswith("_") and not name.startswith("__")
    return terms[0].copy_(mixed) if in_place else mixed


def _conv(
    func: Callable[..., torch.Tensor],
    input: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> torch.Tensor:
    """Every output channel of a group is the average of all that it could see, computed once."""
    window = weight.shape[2:]
    grouped = input.unflatten(1, (groups, -1)).mean(2)  # (B, groups, H, W)
    kernel = grouped.new_full((1, 1, *window), 1 / window.numel())
    averaged = func(grouped.flatten(0, 1)[:, None], kernel, None, stride, padding, dilation)
    images: torch.Tensor = averaged[:, 0].unflatten(0, grouped.shape[:2])  # (B, groups, h, w)
    return images.repeat_interleave(weight.shape[0] // groups, dim=1)


def _linear(
    func: Callable[..., torch.Tensor], input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None
) -> torch.Tensor:
    return input.mean(-1, keepdim=True).repeat_interleave(weight.shape[0], dim=-1)


def _max_pool(
    func: Callable[..., torch.Tensor],
    input: torch.Tensor,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> torch.Tensor:
    if dilation not in (1, (1, 1)) or return_indices:
        raise NotImplementedError("dilated or indexed max pooling")
    return nn.functional.avg_pool2d(input, kernel_size, stride, padding, ceil_mode)


_REPLACED: dict[str, Callable[..., torch.Tensor]] = {
    "conv1d": _conv,
    "conv2d": _conv,
    "linear": _linear,
    "max_pool2d": _max_pool,
}
