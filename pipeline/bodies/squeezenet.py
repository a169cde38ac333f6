"""SqueezeNet 1.1 as torchvision publishes it: fire9, the last module before the classifier."""

from __future__ import annotations

import torch
from torch import nn

from pipeline.bodies.body import IMAGENET_MEAN, IMAGENET_STD, BodySpec, State
from pipeline.bodies.weights import download_state
from pipeline.published_weights import URLS
from pipeline.spp.receptive_field import Layer

_POOLING = Layer(3, stride=2, ceil=True)
_FIRE = Layer(3, padding=1)  # the wider of its two branches; the other is 1x1, and centred alike


class SqueezeNetBody(nn.Module):
    """(B, 3, H, W) to (B, 512, h, w); parameters are named as in torchvision's ``squeezenet1_1``."""

    def __init__(self) -> None:
        from torchvision.models import squeezenet1_1  # a second that other bodies do without

        super().__init__()
        self.features = squeezenet1_1(weights=None).features

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        conv_map: torch.Tensor = self.features(batch)
        return conv_map


def _published() -> State:
    return download_state(URLS["squeezenet1_1"])


SQUEEZENET1_1 = BodySpec(
    name="squeezenet1_1",
    layers=(Layer(3, stride=2), _POOLING, _FIRE, _FIRE, _POOLING, _FIRE, _FIRE, _POOLING, *(_FIRE,) * 4),
    channels=512,
    mean=IMAGENET_MEAN,
    std=IMAGENET_STD,
    build=SqueezeNetBody,
    published=_published,
    last="fire9",
)
