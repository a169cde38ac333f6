"""AlexNet's convolutional part as torchvision publishes it: conv5 after its ReLU, before the last pooling."""

from __future__ import annotations

from torch import nn
from torchvision.models import AlexNet_Weights, alexnet

from pipeline.bodies.body import BodySpec, State
from pipeline.bodies.weights import download_state
from pipeline.receptive_field import Layer

_IMAGENET_MEAN = (0.485 * 255, 0.456 * 255, 0.406 * 255)
_IMAGENET_STD = (0.229 * 255, 0.224 * 255, 0.225 * 255)


class AlexNetBody(nn.Module):
    """(B, 3, H, W) to (B, 256, h, w); parameters are named as in torchvision's ``alexnet``."""

    def __init__(self) -> None:
        super().__init__()
        self.features = alexnet(weights=None).features[:12]

    def forward(self, batch):
        return self.features(batch)


def _published() -> State:
    return download_state(AlexNet_Weights.IMAGENET1K_V1.url)


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
    mean=_IMAGENET_MEAN,
    std=_IMAGENET_STD,
    build=AlexNetBody,
    published=_published,
)
