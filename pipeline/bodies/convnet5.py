"""Convnet*-5 of the paper's Table 1: AlexNet's filters without its groups, its first two poolings a layer later.

The table gives filters, strides and the sides of the maps at 224 pixels, 55 55 27 13 13 13, and no paddings; section
2.3 adds 10 cells at 180. Conv1 of 11 pixels and stride 4 gives 55 only if padded by 2 or by 3; 2 is what torchvision's
AlexNet has. Poolings of 3 and stride 2 give 27 and 13 rounded either way, but at 180 pixels 44, 21, 10 only if their
lengths are rounded down: Caffe's rounding up would give 44, 22, 11.

ReLU stands before normalisation, and the normalisation is that within channels: as in the released ZF-5
(SPP_net Zeiler_conv5.prototxt, relu1 and norm1), whose first weights this body has too.
"""

from __future__ import annotations

import functools

import torch
from torch import nn

from pipeline.bodies.body import BodySpec
from pipeline.bodies.caffe_layers import RELEASED_MEAN, RELEASED_STD, WithinChannelNorm, initialised
from pipeline.bodies.weights import FC_LAYERS, unpublished
from pipeline.spp.receptive_field import Layer


class Convnet5Body(nn.Module):
    """(B, 3, H, W) to (B, 256, h, w); sizes in the comments are those of 224 x 224."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = initialised(nn.Conv2d(3, 96, 11, stride=4, padding=2), bias=0)
        self.conv2 = initialised(nn.Conv2d(96, 256, 5, padding=2), bias=1)
        self.conv3 = initialised(nn.Conv2d(256, 384, 3, padding=1), bias=0)
        self.conv4 = initialised(nn.Conv2d(384, 384, 3, padding=1), bias=1)
        self.conv5 = initialised(nn.Conv2d(384, 256, 3, padding=1), bias=1)
        self.pool = nn.MaxPool2d(3, 2)
        self.norm = WithinChannelNorm()
        self.relu1, self.relu2, self.relu3, self.relu4, self.relu5 = (nn.ReLU() for _ in range(5))

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        x = self.norm(self.relu1(self.conv1(batch)))  # (B, 96, 55, 55)
        x = self.pool(self.norm(self.relu2(self.conv2(x))))  # (B, 256, 27, 27)
        x = self.pool(self.relu3(self.conv3(x)))  # (B, 384, 13, 13)
        x = self.relu4(self.conv4(x))
        conv_map: torch.Tensor = self.relu5(self.conv5(x))  # (B, 256, 13, 13)
        return conv_map


CONVNET5 = BodySpec(
    name="convnet5",
    layers=(
        Layer(11, stride=4, padding=2),
        Layer(5, padding=2),
        Layer(3, stride=2),
        Layer(3, padding=1),
        Layer(3, stride=2),
        Layer(3, padding=1),
        Layer(3, padding=1),
    ),
    channels=256,
    colour_order="BGR",
    mean=RELEASED_MEAN,
    std=RELEASED_STD,
    build=Convnet5Body,
    published=functools.partial(unpublished, "convnet5"),
    classifier=FC_LAYERS,
    taps={"conv4": "relu4"},
    tap_channels={"conv4": 384},
)
