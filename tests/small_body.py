"""A convolutional body so small that a test can follow every number of it."""

from __future__ import annotations

from torch import nn

from pipeline.bodies import BodySpec
from pipeline.spp.receptive_field import Layer


class _Network(nn.Module):
    """Stride 4, 5 channels, both signs."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 6, 3, 2, 1)
        self.second = nn.Conv2d(6, 5, 3, 2, 1)

    def forward(self, batch):
        return self.second(self.first(batch).relu())


SMALL_BODY = BodySpec(
    name="small",
    layers=(Layer(3, stride=2, padding=1), Layer(3, stride=2, padding=1)),
    channels=5,
    mean=(120, 120, 120),
    std=(60, 60, 60),
    build=_Network,
    published=dict,
)
