"""AlexNet's convolutional part as torchvision publishes it: conv5 after its ReLU, before the last pooling."""

from __future__ import annotations

import torch
from torch import nn

from pipeline.bodies.body import IMAGENET_MEAN, IMAGENET_STD, BodySpec, State
from pipeline.bodies.weights import download_state
from pipeline.published_weights import URLS
from pipeline.spp.receptive_field import Layer


class AlexNetBody(nn.Module):
    """(B, 3, H, W) to (B, 256, h, w); parameters are named as in torchvision's ``alexnet``."""

    def __init__(self) -> None:
        super().__init__()
        # Not alexnet().features: that would first fill 230 MB of fully connected weights with random numbers.
        self.features = nn.Sequential(
            nn.Conv2d(3, 64, 11, stride=4, padding=2),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(3, 2),
            nn.Conv2d(64, 192, 5, padding=2),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(3, 2),
            nn.Conv2d(192, 384, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(384, 256, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(256, 256, 3, padding=1),
            nn.ReLU(inplace=True),
        )

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        conv_map: torch.Tensor = self.features(batch)
        return conv_map


def _published() -> State:
    return download_state(URLS["alexnet"])


ALEXNET = BodySpec(
    name="alexnet",
    layers=(
        Layer(11, stride=4, padding=2),
        Layer(3, stride=2),
        Layer(5, padding=2),
        Layer(3, stride=2),
        Layer(3, padding=1),
        Layer(3, padding=1),
        Layer(3, padding=1),
    ),
    channels=256,
    mean=IMAGENET_MEAN,
    std=IMAGENET_STD,
    build=AlexNetBody,
    published=_published,
    classifier=("classifier.1", "classifier.4", "classifier.6"),
    taps={"conv4": "features.9"},
    tap_channels={"conv4": 256},
)
