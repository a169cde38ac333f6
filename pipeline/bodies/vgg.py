"""VGG-16 as torchvision publishes it: conv5_3 after its ReLU, before the last pooling."""

from __future__ import annotations

import torch
from torch import nn

from pipeline.bodies.body import IMAGENET_MEAN, IMAGENET_STD, BodySpec, State
from pipeline.bodies.weights import download_state
from pipeline.published_weights import URLS
from pipeline.spp.receptive_field import Layer

_CONVOLUTION, _POOLING = Layer(3, padding=1), Layer(2, stride=2)


class VGG16Body(nn.Module):
    """(B, 3, H, W) to (B, 512, H // 16, W // 16); parameters are named as in torchvision's ``vgg16``."""

    def __init__(self) -> None:
        from torchvision.models.vgg import cfgs, make_layers  # a second that other bodies do without

        super().__init__()
        # Not vgg16().features: that would first fill 400 MB of fully connected weights with random numbers.
        self.features = make_layers(cfgs["D"], batch_norm=False)[:30]
        for module in self.features:
            if isinstance(module, nn.Conv2d) and module.bias is not None:  # as torchvision's vgg16 begins
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                nn.init.zeros_(module.bias)

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        conv_map: torch.Tensor = self.features(batch)
        return conv_map


def _published() -> State:
    return download_state(URLS["vgg16"])


VGG16 = BodySpec(
    name="vgg16",
    layers=(
        *(_CONVOLUTION, _CONVOLUTION, _POOLING) * 2,
        *(_CONVOLUTION, _CONVOLUTION, _CONVOLUTION, _POOLING) * 2,
        *(_CONVOLUTION, _CONVOLUTION, _CONVOLUTION),
    ),
    channels=512,
    mean=IMAGENET_MEAN,
    std=IMAGENET_STD,
    build=VGG16Body,
    published=_published,
    taps={"conv4": "features.22"},  # conv4_3 after its ReLU, before the pooling: at stride 8
    tap_channels={"conv4": 512},
)
