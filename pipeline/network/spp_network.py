"""A whole classification network: a convolutional body, a spatial pyramid over its map, and fc6, fc7, fc8 (paper 2).

With a pyramid it takes images of every height and width. Without (``fixed``: the paper's no-SPP networks) the last
pooling is one level of 6 x 6 bins and the input always 224 x 224: on the 13 x 13 map of ZF-5 these bins are 3 x 3
windows at stride 2, on Overfeat's 18 x 18 they are 3 x 3 at stride 3 (paper 3.1.1).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import nn

from pipeline.bodies.body import BodySpec, State, network_input
from pipeline.network.head import SIZES, Head, head_of, new_head
from pipeline.spp.pyramid import bin_count

Pooling = Literal["spp", "fixed"]
Initial = Literal["gaussian", "he"]

SIDE = 224
"""Of the square images that networks are trained on, in pixels."""

FIXED_LEVELS = (6,)
"""The only pooling of a network without SPP."""

_DEVIATION = 0.01
_FC_BIAS = 1.0
"""The release's weight_filler and bias_filler (SPP_net Zeiler_conv5.prototxt)."""

_NOISE = 255 / 12**0.5
"""Deviation of pixels that have every value equally often."""

_PROBES = 4
"""Images of noise from which the size of pooled values is learned."""


class InputSizeError(ValueError):
    """An image of a size that the network cannot take."""


def pooling_levels(pooling: Pooling, levels: Sequence[int]) -> tuple[int, ...]:
    """The levels of a network's last pooling; ``levels`` are those of its pyramid."""
    return FIXED_LEVELS if pooling == "fixed" else tuple(levels)


def pyramid_pool(maps: torch.Tensor, levels: Sequence[int]) -> torch.Tensor:
    """The pyramid over whole maps (B, channels, h, w): (B, channels * bins), in the order of ``pipeline.spp.pyramid``.

    Gradients go to the maxima. Numbers keep their type; rounded to float16 they are those of ``pipeline.spp.pyramid``.
    """
    parts = [nn.functional.adaptive_max_pool2d(maps, n).permute(0, 2, 3, 1).flatten(1) for n in levels]
    return torch.cat(parts, dim=1)


class SppNetwork(nn.Module):
    """A body, pooling and a head, from pixels to the logits of the classes.

    Parameters
    ----------
    spec : the body's; its preprocessing is part of the network.
    body : what ``spec.build()`` gives, not fused.
    head : fc6, fc7 and fc8, with an output per class.
    levels : of the pooling, in the order of the vector.
    fixed : only images of 224 x 224 are taken.
    gain : what the preprocessed input is multiplied by.
    """

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(
        self, spec: BodySpec, body: nn.Module, head: Head, levels: Sequence[int], *, fixed: bool, gain: float = 1.0
    ) -> None:
        super().__init__()
        self.spec, self.levels, self.fixed, self.gain = spec, tuple(levels), fixed, gain
        self.body = body.to(memory_format=torch.channels_last)
        self.head = head
        self.register_buffer("mean", torch.tensor(spec.mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(spec.std).view(1, 3, 1, 1) / gain, persistent=False)

    def forward(self, pixels: torch.Tensor, shift: torch.Tensor | None = None) -> torch.Tensor:
        """Logits (B, classes) of images of one size: uint8 (B, h, w, 3), RGB.

        ``shift``: float32 (B, 3), RGB in units of 0..255, added to every pixel of an image. Raises InputSizeError.
        """
        logits: torch.Tensor = self.head(pyramid_pool(self.maps(pixels, shift), self.levels))
        return logits

    def maps(self, pixels: torch.Tensor, shift: torch.Tensor | None = None) -> torch.Tensor:
        """The conv maps of images as ``forward`` takes them: (B, channels, h', w'), of cells that see the image."""
        height, width = pixels.shape[1:3]
        if self.fixed and (height, width) != (SIDE, SIDE):
            raise InputSizeError(
                f"this network has no spatial pyramid: it takes images of {SIDE} x {SIDE} pixels only, not "
                f"{height} x {width}; crop or resize them, or train with pooling: spp"
            )
        batch = network_input(self.spec, pixels, self.mean, self.std, shift)
        maps: torch.Tensor = self.body(batch)
        return maps[:, :, : self.spec.map_length(height), : self.spec.map_length(width)]

    def exported(self) -> dict[str, torch.Tensor]:
        """Its state: the body's entries as ``spec.build()`` names them, and fc6, fc7, fc8.

        They make the same network without a gain and without what the head multiplies vectors by: these are folded
        into the first convolution and into fc6.
        """
        body, head = self.body.state_dict(), self.head.state_dict()
        scale = head.pop("scale")
        head["fc6.weight"] = head["fc6.weight"] * scale
        first = next(name for name, module in self.body.named_modules() if isinstance(module, nn.Conv2d))
        body[f"{first}.weight"] = body[f"{first}.weight"] * self.gain
        return {n: v.detach().cpu().contiguous() for n, v in {**body, **head}.items()}


def network_of(spec: BodySpec, state: State, levels: Sequence[int], *, fixed: bool) -> SppNetwork:
    """The network with this state (of ``SppNetwork.exported()``), for inference; fc6 to fc8 share its memory."""
    fc = {name: values for name, values in state.items() if name.startswith(("fc6.", "fc7.", "fc8."))}
    body = spec.build()
    body.load_state_dict({name: values for name, values in state.items() if name not in fc})
    head = head_of({**fc, "scale": torch.tensor(1.0)})
    return SppNetwork(spec, body, head, levels, fixed=fixed).requires_grad_(False).eval()


def new_network(
    spec: BodySpec,
    pooling: Pooling,
    levels: Sequence[int],
    classes: int,
    *,
    sizes: Sequence[int] = SIZES,
    initial: Initial = "gaussian",
    dropout: float = 0.5,
    seed: int = 0,
) -> SppNetwork:
    """A network that knows nothing.

    Parameters
    ----------
    levels : of the pyramid, where ``pooling`` is spp.
    sizes : outputs of fc6 and fc7.
    initial : gaussian, as in the release: all weights N(0, 0.01), biases of the convolutions as the body has them, of
        fc6 to fc8 one. he: convolutions, fc6 and fc7 as in He et al. 2015 (eq. 10), fc8 Gaussian, biases zero. That
        keeps the size of values, which for biases and learning rates to fit must be about one: so the input, of some
        bodies as large as pixels are, is divided by its deviation, and vectors by their root mean square, both of
        images of noise.
    """
    taken = pooling_levels(pooling, levels)
    dim = spec.channels * bin_count(taken)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        body = spec.build()
        for module in body.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                if initial == "he":
                    nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                    if module.bias is not None:
                        module.bias.zero_()
                else:
                    nn.init.normal_(module.weight, std=_DEVIATION)
        gain = 1.0
        if initial == "gaussian":
            head = Head(*(_gaussian(*shape) for shape in _shapes(dim, sizes, classes)), dropout=dropout)
        else:
            gain = sum(spec.std) / 3 / _NOISE
            rms = _rms(spec, body, taken, gain)
            head = new_head(dim, sizes, classes, dropout=dropout, seed=seed, rms=rms)
    return SppNetwork(spec, body, head, taken, fixed=pooling == "fixed", gain=gain)


def _shapes(dim: int, sizes: Sequence[int], classes: int) -> tuple[tuple[int, int], ...]:
    return (dim, sizes[0]), (sizes[0], sizes[1]), (sizes[1], classes)


def _gaussian(inputs: int, outputs: int) -> nn.Linear:
    layer = nn.Linear(inputs, outputs, device="meta").to_empty(device="cpu")
    nn.init.normal_(layer.weight, std=_DEVIATION)
    nn.init.constant_(layer.bias, _FC_BIAS)
    return layer


def _rms(spec: BodySpec, body: nn.Module, levels: Sequence[int], gain: float) -> float:
    """Root mean square of the pooled values of noise."""
    headless = Head(nn.Identity(), nn.Identity(), nn.Identity())
    probe = SppNetwork(spec, body, headless, levels, fixed=False, gain=gain).eval()
    noise = torch.randint(0, 256, (_PROBES, SIDE, SIDE, 3), dtype=torch.uint8)
    return float(pyramid_pool(probe.maps(noise), levels).double().pow(2).mean().sqrt())
