"""Overfeat-5 and Overfeat-7 of the paper's Table 1: conv5 and conv7 after their ReLU, 512 channels at stride 12.

The table gives filters, strides and sides of the maps at 224 pixels: 36 after pool1, 18 from pool2 on; no paddings.
Two choices give 18:

- conv1 without padding, conv2 padded by 1, pooling lengths rounded up as in Caffe: 224 -> 109 -> 37 -> 35 -> 18, and
  cell 0 is centred on pixel 14;
- conv1 without padding, conv2 padded by 2, pooling lengths rounded down: 224 -> 109 -> 36 -> 36 -> 18, and cell 0 is
  centred on pixel 8.

A configuration of the authors' Overfeat was left in their code (SPP_net utils/subsample_images.m:78): offset0 = 15, the
1-based centre of cell 1, at step_standard 12 and sz_conv_standard 18. That is the first choice, and so is this body,
though the table has 36 where it has 37: as with ZF-5, what was released goes before what was printed. 180 pixels give
14 cells, which the paper does not say.

Pool1 comes before the normalisation (Table 1). ReLU stands before both, and the normalisation is that within channels:
as in the released ZF-5 (SPP_net Zeiler_conv5.prototxt, relu1 and norm1), whose first weights this body has too: biases
0 in conv1 and conv3, 1 in the others.
"""

from __future__ import annotations

import functools

import torch
from torch import nn

from pipeline.bodies.body import BodySpec
from pipeline.bodies.caffe_layers import RELEASED_MEAN, RELEASED_STD, WithinChannelNorm, initialised
from pipeline.bodies.weights import FC_LAYERS, unpublished
from pipeline.spp.receptive_field import Layer

_CHANNELS = 512


class OverfeatBody(nn.Module):
    """(B, 3, H, W) to (B, 512, h, w), with ``depth`` convolutions; sizes in the comments are those of 224 x 224."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        self.depth = depth
        self.conv1 = initialised(nn.Conv2d(3, 96, 7, stride=2), bias=0)
        self.conv2 = initialised(nn.Conv2d(96, 256, 5, padding=1), bias=1)
        for number in range(3, depth + 1):
            conv = nn.Conv2d(256 if number == 3 else _CHANNELS, _CHANNELS, 3, padding=1)
            self.add_module(f"conv{number}", initialised(conv, bias=0 if number == 3 else 1))
        self.pool1 = nn.MaxPool2d(3, 3, ceil_mode=True)
        self.pool2 = nn.MaxPool2d(2, 2, ceil_mode=True)
        self.norm = WithinChannelNorm()
        self.relu1, self.relu2 = nn.ReLU(), nn.ReLU()
        for number in range(3, depth + 1):
            self.add_module(f"relu{number}", nn.ReLU())

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        x: torch.Tensor = self.norm(self.pool1(self.relu1(self.conv1(batch))))  # (B, 96, 37, 37)
        x = self.pool2(self.relu2(self.conv2(x)))  # (B, 256, 18, 18)
        for number in range(3, self.depth + 1):
            x = self.get_submodule(f"relu{number}")(self.get_submodule(f"conv{number}")(x))  # (B, 512, 18, 18)
        return x


def _spec(depth: int) -> BodySpec:
    return BodySpec(
        name=f"overfeat{depth}",
        layers=(
            Layer(7, stride=2),
            Layer(3, stride=3, ceil=True),
            Layer(5, padding=1),
            Layer(2, stride=2, ceil=True),
            *(Layer(3, padding=1),) * (depth - 2),
        ),
        channels=_CHANNELS,
        colour_order="BGR",
        mean=RELEASED_MEAN,
        std=RELEASED_STD,
        build=functools.partial(OverfeatBody, depth),
        published=functools.partial(unpublished, f"overfeat{depth}"),
        classifier=FC_LAYERS,
        taps={f"conv{depth - 1}": f"relu{depth - 1}"},
        tap_channels={f"conv{depth - 1}": _CHANNELS},
        last=f"conv{depth}",
    )


OVERFEAT5, OVERFEAT7 = _spec(5), _spec(7)
