"""ZF-5, the paper's main body, as released: SPP_net Zeiler_conv5.prototxt:10-459, conv5 after its ReLU.

Its paddings are the released ones, not the floor(kernel / 2) of the paper's appendix A: 224 pixels give 13 cells.
"""

from __future__ import annotations

import functools

import torch
from torch import nn

from pipeline.bodies.body import BodySpec
from pipeline.bodies.caffe_layers import RELEASED_MEAN, RELEASED_STD, WithinChannelNorm, initialised
from pipeline.bodies.weights import FC_LAYERS, unpublished
from pipeline.spp.receptive_field import Layer

ZF5_LAYERS = (
    Layer(7, stride=2, padding=1),
    Layer(3, stride=2, ceil=True),
    Layer(5, stride=2),
    Layer(3, stride=2, ceil=True),
    Layer(3, padding=1),
    Layer(3, padding=1),
    Layer(3, padding=1),
)
"""Without the two normalisations: their 3x3 windows are centred, so they move no centre."""


class ZF5Body(nn.Module):
    """(B, 3, H, W) to (B, 256, h, w); sizes in the comments are those of 224 x 224."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = initialised(nn.Conv2d(3, 96, 7, stride=2, padding=1), bias=0)
        self.conv2 = initialised(nn.Conv2d(96, 256, 5, stride=2), bias=1)
        self.conv3 = initialised(nn.Conv2d(256, 384, 3, padding=1), bias=0)
        self.conv4 = initialised(nn.Conv2d(384, 384, 3, padding=1), bias=1)
        self.conv5 = initialised(nn.Conv2d(384, 256, 3, padding=1), bias=1)
        self.pool = nn.MaxPool2d(3, 2, ceil_mode=True)
        self.norm = WithinChannelNorm()
        # one each, so that a layer's output can be had by the name of its ReLU
        self.relu1, self.relu2, self.relu3, self.relu4, self.relu5 = (nn.ReLU() for _ in range(5))

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        x = self.pool(self.norm(self.relu1(self.conv1(batch))))  # (B, 96, 55, 55)
        x = self.pool(self.norm(self.relu2(self.conv2(x))))  # (B, 256, 13, 13)
        x = self.relu3(self.conv3(x))  # (B, 384, 13, 13)
        x = self.relu4(self.conv4(x))
        conv_map: torch.Tensor = self.relu5(self.conv5(x))  # (B, 256, 13, 13)
        return conv_map


ZF5 = BodySpec(
    name="zf5",
    layers=ZF5_LAYERS,
    channels=256,
    colour_order="BGR",
    mean=RELEASED_MEAN,
    std=RELEASED_STD,
    build=ZF5Body,
    published=functools.partial(unpublished, "zf5"),
    classifier=FC_LAYERS,
    taps={"conv4": "relu4"},
    tap_channels={"conv4": 384},
)
