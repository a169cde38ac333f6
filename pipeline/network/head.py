"""The fully connected head fc6, fc7, fc8 on pooled vectors: what is fine-tuned (paper 4.2), and the layers it gives.

A vector passes ``fc8(relu(fc7(relu(fc6(vector)))))``, with dropout before fc7 and fc8 in training. Vectors are those of
``pipeline.spp.pyramid``: levels in the order configured, bins row-major, channels last.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from pipeline.bodies.classifier import Classifier, State, level_columns, over_array, to_bin_major
from pipeline.products import Linear, one_thread, product, share_out
from pipeline.spp.pyramid import bin_count

HeadLayer = Literal["fc6", "fc7", "fc8"]

SIZES = (4096, 4096)
"""Outputs of fc6 and fc7 in the paper (2.3, 4.2) and in AlexNet."""

_BLOCK = 128
"""Rows that go through the head at a time, always so many: another number may be summed in another order, and the
layers of a window would depend on its neighbours. Threads share out the columns (``pipeline.products``)."""

FC8_DEVIATION = 0.01
"""Of fc8's first weights (paper 4.2: "a zero-mean Gaussian of sigma 0.01")."""


class Head(nn.Module):
    """fc6, fc7 and fc8 with their dropout.

    Parameters
    ----------
    fc6, fc7, fc8 : linear layers, or ``truncated`` ones. fc8 has, for detection, an output for the background and
        then one per class.
    scale : what vectors are multiplied by first.
    dropout : share of the outputs of fc6 and fc7 that is left out in training.
    """

    scale: torch.Tensor

    def __init__(
        self, fc6: nn.Module, fc7: nn.Module, fc8: nn.Module, *, scale: float = 1.0, dropout: float = 0.5
    ) -> None:
        super().__init__()
        self.register_buffer("scale", torch.tensor(scale))
        self.fc6, self.fc7, self.fc8 = fc6, fc7, fc8
        self.dropout = nn.Dropout(dropout)

    def forward(self, vectors: torch.Tensor, layer: HeadLayer = "fc8") -> torch.Tensor:
        """Outputs of a layer, (B, size), of float vectors (B, dim); fc6 and fc7 after their ReLU, fc8 as logits."""
        hidden = torch.relu(self.fc6(vectors * self.scale))  # (B, fc6)
        if layer == "fc6":
            return hidden
        hidden = torch.relu(self.fc7(self.dropout(hidden)))  # (B, fc7)
        if layer == "fc7":
            return hidden
        logits: torch.Tensor = self.fc8(self.dropout(hidden))  # (B, outputs)
        return logits

    @property
    def dim(self) -> int:
        """Length of the vectors."""
        return _first(self.fc6).in_features

    def size(self, layer: HeadLayer) -> int:
        """Outputs of a layer."""
        return _last(self.get_submodule(layer)).out_features


def new_head(dim: int, sizes: Sequence[int], outputs: int, *, dropout: float = 0.5, seed: int, rms: float) -> Head:
    """A head that knows nothing: fc6 and fc7 as in He et al. 2015 (eq. 10), fc8 Gaussian, biases 0.

    ``rms``: root mean square of the vectors' values, by which they are divided: the initialisation keeps the variance
    of inputs around 1. Raises ValueError unless it is a positive number.
    """
    if not 0 < rms < math.inf:
        raise ValueError(f"rms must be a positive number, not {rms}")
    head = _empty(dim, sizes, outputs, 1 / rms, dropout)
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for layer in (_first(head.fc6), _first(head.fc7)):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu", generator=random)
            layer.bias.zero_()
        _fresh_fc8(head, random)
    return head


def pretrained_head(
    classifier: Classifier,
    channels: int,
    levels: Sequence[int],
    *,
    outputs: int | None = None,
    dropout: float = 0.5,
    seed: int = 0,
) -> Head:
    """A head whose fc6 and fc7 come from a classifier: AlexNet's, or that of a body trained with a pyramid.

    fc6's columns go level by level to where the level stands in the pyramid ``levels``, with bins row-major, channels
    last; levels that the classifier does not have begin at zero. ``outputs``: a new fc8, Gaussian, for so many; None
    keeps the classifier's.

    Raises ValueError if the pyramid lacks a level of the classifier, or fc6 is of another size.
    """
    state = classifier.state
    if not set(classifier.levels) <= set(levels):
        raise ValueError(
            f"the pretrained fc6 is of the pyramid {classifier.levels}; the pyramid {tuple(levels)} has not all of its "
            f"levels"
        )
    given = state["fc6.weight"]  # (fc6, channels * bins)
    bins = bin_count(classifier.levels)
    if given.shape[1] != channels * bins:
        raise ValueError(f"fc6 is for vectors of {given.shape[1]} numbers, not of {channels} channels x {bins} bins")
    sizes = (len(given), len(state["fc7.weight"]))
    count = len(state["fc8.weight"]) if outputs is None else outputs
    head = _empty(channels * bin_count(levels), sizes, count, 1.0, dropout)
    places = level_columns(levels, channels)
    with torch.no_grad():
        fc6, fc7, fc8 = _first(head.fc6), _first(head.fc7), _first(head.fc8)
        fc6.weight.zero_()
        for n, columns in level_columns(classifier.levels, channels).items():
            of_level = given[:, columns]
            bin_major = of_level if classifier.order == "bin-major" else to_bin_major(of_level, channels)
            fc6.weight[:, places[n]] = bin_major
        fc6.bias.copy_(state["fc6.bias"])
        fc7.weight.copy_(state["fc7.weight"])
        fc7.bias.copy_(state["fc7.bias"])
        if outputs is None:
            fc8.weight.copy_(state["fc8.weight"])
            fc8.bias.copy_(state["fc8.bias"])
        else:
            _fresh_fc8(head, torch.Generator().manual_seed(seed))
    return head


def head_of(state: State) -> Head:
    """The head with this state (of ``Head.state_dict()``), whose tensors it shares; for inference."""
    head = Head(_layer_of(state, "fc6"), _layer_of(state, "fc7"), _layer_of(state, "fc8")).requires_grad_(False)
    head.load_state_dict(dict(state), assign=True)
    return head.eval()


def compressed(head: Head, ranks: tuple[int, int]) -> Head:
    """``head`` with fc6 and fc7 ``truncated`` to these ranks; for inference."""
    fc6, fc7 = truncated(head.fc6, ranks[0]), truncated(head.fc7, ranks[1])
    return Head(fc6, fc7, head.fc8, scale=head.scale.item()).requires_grad_(False).eval()


def truncated(layer: nn.Module, rank: int) -> nn.Module:
    """A layer as two of ``rank`` between them: W = U S V', first S V' without biases, then U (Fast R-CNN 3.1).

    The layer itself where that would cost no fewer multiplications, or if it is truncated already. The ``rank``
    largest singular values come from the eigenvectors of the smaller of W W' and W' W, in float64.
    """
    if not isinstance(layer, nn.Linear):
        return layer
    weight = layer.weight.detach().double()  # (out, in)
    rows, columns = weight.shape
    if rank * (rows + columns) >= rows * columns:
        return layer
    square = product(weight, weight.T) if rows <= columns else product(weight.T, weight)
    with one_thread():
        _, vectors = torch.linalg.eigh(square)
    top = vectors[:, -rank:].flip(1)  # (out, rank), or (in, rank): an orthonormal basis, the largest value first
    before = Linear(columns, rank, bias=False, device="meta").requires_grad_(False)
    after = Linear(rank, rows, bias=layer.bias is not None, device="meta").requires_grad_(False)
    left, right = (top, product(top.T, weight)) if rows <= columns else (product(weight, top), top.T)
    before.load_state_dict({"weight": right.float()}, assign=True)
    biases = {} if layer.bias is None else {"bias": layer.bias.detach()}
    after.load_state_dict({"weight": left.float().contiguous(), **biases}, assign=True)
    return nn.Sequential(before, after)


class Embedder:
    """Pooled vectors to the outputs of a layer.

    Parameters
    ----------
    head : its weights are shared, not copied, if it is on the device already.
    layer : fc6, fc7, or fc8: then its softmax, the probabilities of the background and of every class.
    device : a torch device name. The head goes there when it is first used, which may be in another process.

    Pickles as arrays, whose memory processes can share.
    """

    def __init__(self, head: Head, layer: HeadLayer, *, device: str = "cpu") -> None:
        self._head = head.eval()
        self._layer = layer
        self._device = device
        self.dim = head.dim
        self.size = head.size(layer)

    def __reduce__(self) -> tuple[Any, ...]:
        arrays = {name: values.cpu().numpy() for name, values in self._head.state_dict().items()}
        return _embedder, (arrays, self._layer, self._device)

    @torch.inference_mode()
    def __call__(self, vectors: NDArray[np.float16]) -> NDArray[np.float32]:
        """Float32 (N, size) of float16 vectors (N, dim). Each row depends on that row alone.

        Raises ValueError for vectors of another length.
        """
        if vectors.ndim != 2 or vectors.shape[1] != self.dim:
            raise ValueError(f"the head is for vectors of length {self.dim}, got an array of shape {vectors.shape}")
        self._head.to(self._device)
        found = np.empty((len(vectors), self.size), np.float32)

        def make(start: int) -> None:
            part = vectors[start : start + _BLOCK]
            rounded = torch.zeros((_BLOCK, self.dim), dtype=torch.float16)  # torch takes no array that is read-only
            rounded.numpy()[: len(part)] = part
            values = self._head(rounded.to(self._device).float(), self._layer)
            if self._layer == "fc8":
                values = torch.softmax(values, dim=1)
            found[start : start + _BLOCK] = values[: len(part)].cpu().numpy()

        starts = range(0, len(vectors), _BLOCK)
        if self._device == "cpu" and len(starts) > 1:
            share_out(make, starts)  # whole blocks: a tenth faster than the columns of one after another
        else:
            for start in starts:
                make(start)
        return found


def _empty(dim: int, sizes: Sequence[int], outputs: int, scale: float, dropout: float) -> Head:
    """A head without values, which spares filling some hundred megabytes twice."""
    fc6, fc7 = sizes
    layers = [Linear(*shape, device="meta") for shape in ((dim, fc6), (fc6, fc7), (fc7, outputs))]
    return Head(*(layer.to_empty(device="cpu") for layer in layers), scale=scale, dropout=dropout)


def _layer_of(state: State, name: str) -> nn.Module:
    """A layer of the right shape without values: linear, or truncated."""
    parts = [f"{name}.0", f"{name}.1"] if f"{name}.0.weight" in state else [name]
    layers = []
    for part in parts:
        rows, columns = state[f"{part}.weight"].shape
        layers.append(Linear(columns, rows, bias=f"{part}.bias" in state, device="meta"))
    return layers[0] if len(layers) == 1 else nn.Sequential(*layers)


def _embedder(arrays: Mapping[str, NDArray[np.float32]], layer: HeadLayer, device: str) -> Embedder:
    return Embedder(head_of({name: over_array(values) for name, values in arrays.items()}), layer, device=device)


def _first(layer: nn.Module) -> nn.Linear:
    found = layer[0] if isinstance(layer, nn.Sequential) else layer
    assert isinstance(found, nn.Linear)
    return found


def _last(layer: nn.Module) -> nn.Linear:
    found = layer[-1] if isinstance(layer, nn.Sequential) else layer
    assert isinstance(found, nn.Linear)
    return found


def _fresh_fc8(head: Head, random: torch.Generator) -> None:
    nn.init.normal_(head.fc8.weight, std=FC8_DEVIATION, generator=random)  # type: ignore[arg-type]
    nn.init.zeros_(head.fc8.bias)  # type: ignore[arg-type]
