"""ResNet-50 as torchvision publishes it, up to C4: ``layer3`` after its last ReLU."""

from __future__ import annotations

import torch
from torch import nn

from pipeline.bodies.body import IMAGENET_MEAN, IMAGENET_STD, BodySpec, State, fold_norm
from pipeline.bodies.weights import download_state
from pipeline.published_weights import URLS
from pipeline.spp.receptive_field import Layer

_BLOCK = Layer(3, padding=1)  # the one convolution of a bottleneck that is not 1x1; shortcuts are centred alike
_STRIDED_BLOCK = Layer(3, stride=2, padding=1)


class ResNet50Body(nn.Module):
    """(B, 3, H, W) to (B, 1024, h, w); parameters are named as in torchvision's ``resnet50``."""

    def __init__(self) -> None:
        from torchvision.models import resnet50  # a second that other bodies do without

        super().__init__()
        whole = resnet50(weights=None)
        self.conv1, self.bn1, self.relu, self.maxpool = whole.conv1, whole.bn1, whole.relu, whole.maxpool
        self.layer1, self.layer2, self.layer3 = whole.layer1, whole.layer2, whole.layer3

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(batch))))  # (B, 64, H / 4, W / 4)
        conv_map: torch.Tensor = self.layer3(self.layer2(self.layer1(x)))
        return conv_map


def _fuse(network: nn.Module) -> nn.Module:
    from torchvision.models.resnet import Bottleneck

    fold_norm(network, "conv1", "bn1")
    for module in network.modules():
        if isinstance(module, Bottleneck):
            for number in "123":
                fold_norm(module, f"conv{number}", f"bn{number}")
            if module.downsample is not None:
                fold_norm(module.downsample, "0", "1")
    return network


def _published() -> State:
    return download_state(URLS["resnet50"])


RESNET50 = BodySpec(
    name="resnet50",
    layers=(
        Layer(7, stride=2, padding=3),
        Layer(3, stride=2, padding=1),
        *(_BLOCK,) * 3,
        *(_STRIDED_BLOCK, *(_BLOCK,) * 3),
        *(_STRIDED_BLOCK, *(_BLOCK,) * 5),
    ),
    channels=1024,
    mean=IMAGENET_MEAN,
    std=IMAGENET_STD,
    build=ResNet50Body,
    published=_published,
    fuse=_fuse,
    last="c4",
)
