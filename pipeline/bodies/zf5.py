"""ZF-5, the paper's main body, as released: SPP_net Zeiler_conv5.prototxt:10-459, conv5 after its ReLU.

Its paddings are the released ones, not the floor(kernel / 2) of the paper's appendix A: 224 pixels give 13 cells.
"""

from __future__ import annotations

import torch
from torch import nn

from pipeline.bodies.body import BodySpec, State
from pipeline.bodies.weights import WeightsError
from pipeline.receptive_field import Layer

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


class WithinChannelNorm(nn.Module):
    """Caffe's local response normalisation WITHIN_CHANNEL: x * (1 + alpha * mean of x^2 over size x size)^-beta.

    The mean is over the window of the same channel; beyond the edge stand zeros, and the divisor is always size^2
    (BVLC/caffe lrn_layer.cpp, LayerSetUp). ``torch.nn.LocalResponseNorm`` is another thing: it goes across channels.
    """

    def __init__(self, size: int = 3, alpha: float = 5e-5, beta: float = 0.75) -> None:
        super().__init__()
        self.size, self.alpha, self.beta = size, alpha, beta

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        energy = nn.functional.avg_pool2d(x * x, self.size, 1, self.size // 2, count_include_pad=True)
        return x * (1 + self.alpha * energy).pow(-self.beta)


class ZF5Body(nn.Module):
    """(B, 3, H, W) to (B, 256, h, w); sizes in the comments are those of 224 x 224."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = _initialised(nn.Conv2d(3, 96, 7, stride=2, padding=1), bias=0)
        self.conv2 = _initialised(nn.Conv2d(96, 256, 5, stride=2), bias=1)
        self.conv3 = _initialised(nn.Conv2d(256, 384, 3, padding=1), bias=0)
        self.conv4 = _initialised(nn.Conv2d(384, 384, 3, padding=1), bias=1)
        self.conv5 = _initialised(nn.Conv2d(384, 256, 3, padding=1), bias=1)
        self.pool = nn.MaxPool2d(3, 2, ceil_mode=True)
        self.norm = WithinChannelNorm()
        self.relu = nn.ReLU()

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        x = self.pool(self.norm(self.relu(self.conv1(batch))))  # (B, 96, 55, 55)
        x = self.pool(self.norm(self.relu(self.conv2(x))))  # (B, 256, 13, 13)
        x = self.relu(self.conv3(x))  # (B, 384, 13, 13)
        x = self.relu(self.conv4(x))
        return self.relu(self.conv5(x))  # (B, 256, 13, 13)


def _initialised(conv: nn.Conv2d, bias: float) -> nn.Conv2d:
    """As the release's weight_filler and bias_filler do."""
    assert conv.bias is not None
    nn.init.normal_(conv.weight, std=0.01)
    nn.init.constant_(conv.bias, bias)
    return conv


def _published() -> State:
    raise WeightsError(
        "zf5 has no published weights; use weights: PATH of a state dict of your own, weights: random, or the body "
        "alexnet, whose map is alike"
    )


ZF5 = BodySpec(
    name="zf5",
    layers=ZF5_LAYERS,
    channels=256,
    colour_order="BGR",  # caffe_anysize_test.m:10-17, which subtracts 128 from every value
    mean=(128.0, 128.0, 128.0),
    std=(1.0, 1.0, 1.0),
    build=ZF5Body,
    published=_published,
)
