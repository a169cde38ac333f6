"""Fully connected layers that were trained with a body, and in which order their fc6 takes a pooled vector."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import torch
from numpy.typing import NDArray

State = Mapping[str, torch.Tensor]
Order = Literal["bin-major", "channel-major"]
"""Of the columns of one level. bin-major: bins row-major, channels last, as in ``pipeline.spp.pyramid``; channel-major:
channels, and in each its bins row-major, as a map of (channels, n, n) is flattened by Caffe and torchvision."""

Weight = TypeVar("Weight", torch.Tensor, NDArray[Any])


@dataclass(frozen=True)
class Classifier:
    """The layers fc6, fc7 and fc8 of a whole network.

    Pickles as arrays, whose memory processes can share.

    Parameters
    ----------
    state : their weights and biases, named as in ``pipeline.network.head.Head``; fc6.weight has the shape
        (outputs, channels * sum of n * n).
    levels : of the pyramid that fc6 was trained on, in the order of its columns.
    order : of the columns within each level.
    """

    state: State
    levels: tuple[int, ...]
    order: Order

    def __reduce__(self) -> tuple[Any, ...]:
        arrays = {name: values.cpu().numpy() for name, values in self.state.items()}
        return _classifier, (arrays, self.levels, self.order)


def level_columns(levels: Sequence[int], channels: int) -> dict[int, slice]:
    """Where the columns of each level stand in a vector of ``levels``, in that order."""
    places, first = {}, 0
    for n in levels:
        places[n] = slice(first, first + n * n * channels)
        first += n * n * channels
    return places


def to_bin_major(columns: Weight, channels: int) -> Weight:
    """The columns of one level, shape (rows, channels * bins), from channel-major to bin-major."""
    return columns.reshape(len(columns), channels, -1).swapaxes(1, 2).reshape(columns.shape)


def to_channel_major(columns: Weight, channels: int) -> Weight:
    """The columns of one level, shape (rows, bins * channels), from bin-major to channel-major."""
    return columns.reshape(len(columns), -1, channels).swapaxes(1, 2).reshape(columns.shape)


def over_array(values: NDArray[Any]) -> torch.Tensor:
    """A tensor over an array's memory. That may be read-only: nobody may write to the tensor."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return torch.from_numpy(values)


def _classifier(arrays: Mapping[str, NDArray[Any]], levels: tuple[int, ...], order: Order) -> Classifier:
    return Classifier({name: over_array(values) for name, values in arrays.items()}, levels, order)
