"""What a convolutional body is: its layers, its preprocessing, its weights; an image in, a conv map out."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import cv2
import numpy as np
import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from pipeline.bodies.engine import Engine, EngineError, Precision, Runner, TorchRunner
from pipeline.images.decode import RGB
from pipeline.spp.receptive_field import Geometry, Layer, geometry, map_length, smallest_input
from pipeline.spp.windows import scaled_size

State = Mapping[str, torch.Tensor]

IMAGENET_MEAN = (0.485 * 255, 0.456 * 255, 0.406 * 255)
IMAGENET_STD = (0.229 * 255, 0.224 * 255, 0.225 * 255)
"""RGB, in units of 0..255: what torchvision's classifiers were trained with."""


class UnsuitableBodyError(ValueError):
    """A body that does not exist, is not installed, or has no map on which windows could be found."""


@dataclass(frozen=True, kw_only=True)
class BodySpec:
    """A body without its weights.

    ``layers`` are those that move or shrink the map, in one axis, from the image to the map. ``colour_order`` is that
    of the network's input; ``mean`` and ``std`` are in that order, in units of 0..255. The preprocessed image is
    zero-padded right and below to a multiple of ``pad_to``, and to ``least`` pixels. ``build`` makes the network, its
    weights random; ``published`` returns the state of the weights that stand behind ``weights: default``, or raises
    WeightsError. ``fuse`` readies a loaded network for inference. ``input_size``: the sides, in pixels, of what a whole
    classifier takes, to which windows are warped and views of a fixed size cut; a body takes every size.

    ``classifier``: the names of the fully connected layers in a state dict of the whole network: fc6, fc7, fc8 in one
    of ours; others are taken for torchvision's, on 6 x 6 bins. ``last`` is the name of the map itself. ``taps``: layers
    before it, by name, each with the path of the submodule that puts it out (after its activation), which must survive
    ``fuse``; ``tap_channels`` are theirs.
    """

    name: str
    layers: tuple[Layer, ...]
    channels: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    build: Callable[[], nn.Module]
    published: Callable[[], State]
    colour_order: Literal["RGB", "BGR"] = "RGB"
    pad_to: int = 1
    least: int = 1
    fuse: Callable[[nn.Module], nn.Module] = lambda network: network
    classifier: tuple[str, str, str] | None = None
    input_size: int = 224
    taps: Mapping[str, str] = field(default_factory=dict, hash=False)
    tap_channels: Mapping[str, int] = field(default_factory=dict, hash=False)
    last: str = "conv5"

    @cached_property
    def geometry(self) -> Geometry:
        """Stride, centre and size of the receptive fields of the map's cells."""
        return geometry(self.layers)

    @property
    def layer_names(self) -> tuple[str, ...]:
        """What ``Body.layers_of`` can be asked for: the taps and the map."""
        return (*self.taps, self.last)

    def channels_of(self, layer: str) -> int:
        """Channels of a layer of ``layer_names``. Raises UnsuitableBodyError for another."""
        if layer not in self.layer_names:
            raise UnsuitableBodyError(
                f"body {self.name!r} offers no layer {layer!r}; it offers {', '.join(self.layer_names)}"
            )
        return self.channels if layer == self.last else self.tap_channels[layer]

    @cached_property
    def smallest_input(self) -> int:
        """Sides shorter than this are zero-padded to it: below, there would be no cell, or the network fails."""
        return max(self.least, smallest_input(self.layers))

    def padded_length(self, length: int) -> int:
        """The input length, zero padding included, for a scaled image side of ``length`` pixels."""
        return -(-max(length, self.smallest_input) // self.pad_to) * self.pad_to

    def map_length(self, length: int) -> int:
        """Cells of the map along a scaled image side of ``length`` pixels."""
        return self.geometry.cells_that_see(length, map_length(self.layers, self.padded_length(length)))

    def map_size(self, height: int, width: int, scale: int) -> tuple[int, int]:
        """Size (height, width) of the map of an image of ``height`` x ``width`` at ``scale``."""
        scaled = scaled_size(height, width, scale)
        return self.map_length(scaled[0]), self.map_length(scaled[1])


class Body:
    """A body with weights, on a device, ready for inference.

    On a CPU a batch passes it in one thread, since the 1 x 1 convolutions of most bodies are summed differently by
    several (``pipeline.products``); several threads may use one body at once, for batches of their own.

    Parameters
    ----------
    spec : what to build.
    state : its parameters and buffers, by name.
    device : a torch device name. Determinism: the same device and kind of processor give the same bits.
    engine : what runs the network; PyTorch on every device, others on a CPU alone.
    precision : of the network's arithmetic. Maps are float32 all the same.
    at_once : batches that pass at once, for engines that have threads of their own.

    Raises
    ------
    EngineError : the engine is not installed, cannot run this body, or not at this precision.
    """

    def __init__(
        self,
        spec: BodySpec,
        state: State,
        device: str = "cpu",
        *,
        engine: Engine = "torch",
        precision: Precision = "float32",
        at_once: int = 1,
    ) -> None:
        self.spec = spec
        self.device = torch.device(device)
        network = spec.build()
        network.load_state_dict(dict(state))
        self._network = spec.fuse(network.eval())
        self._run = self._runner(engine, precision, at_once)
        self._mean = torch.tensor(spec.mean, device=self.device).view(1, 3, 1, 1)
        self._std = torch.tensor(spec.std, device=self.device).view(1, 3, 1, 1)

    @torch.inference_mode()
    def conv_map(self, image: RGB, scale: int) -> torch.Tensor:
        """The conv map of an image at a scale: float32 (channels, height, width), channels last in memory.

        The image's short side becomes ``scale`` (bilinear, not antialiased: SPP_net spp_features_convX.m:43-52).
        """
        height, width = scaled_size(image.shape[0], image.shape[1], scale)
        resized = np.asarray(cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR), np.uint8)
        return self.conv_map_of(self.preprocess(resized))[
            :, : self.spec.map_length(height), : self.spec.map_length(width)
        ]

    @torch.inference_mode()
    def preprocess(self, resized: RGB) -> torch.Tensor:
        """Uint8 RGB as the network's input: its colour order, normalised, zero-padded; float32 (B, 3, h, w).

        ``resized``: one image (H, W, 3), which gives a batch of one, or B images of the same size (B, H, W, 3).
        """
        height, width = resized.shape[-3:-1]
        pixels = torch.from_numpy(np.ascontiguousarray(resized)).to(self.device).view(-1, height, width, 3)
        return network_input(self.spec, pixels, self._mean, self._std)

    @torch.inference_mode()
    def conv_map_of(self, batch: torch.Tensor) -> torch.Tensor:
        """The whole map of one preprocessed image: float32 (channels, height, width)."""
        return self.conv_maps_of(batch)[0]

    @torch.inference_mode()
    def conv_maps_of(self, batch: torch.Tensor) -> torch.Tensor:
        """The whole maps of preprocessed images, (B, 3, h, w): float32 (B, channels, height, width)."""
        return self._run(batch, (self.spec.last,))[self.spec.last]

    @torch.inference_mode()
    def layers_of(self, batch: torch.Tensor, names: Iterable[str]) -> dict[str, torch.Tensor]:
        """Whole maps of several layers of preprocessed images, (B, 3, h, w), in one pass.

        ``names``: some of ``spec.layer_names``. Each layer is float32 (B, channels, height, width).

        Raises UnsuitableBodyError for a layer that the body does not offer.
        """
        wanted = list(names)
        for name in wanted:
            self.spec.channels_of(name)
        return self._run(batch, wanted)

    def _runner(self, engine: Engine, precision: Precision, at_once: int) -> Runner:
        spec = self.spec
        if engine == "torch":
            return TorchRunner(self._network, spec.last, spec.taps, self.device, precision)
        if self.device.type != "cpu":
            raise EngineError(f"{engine} runs a body on CPUs alone; use features.engine: torch on {self.device.type}")
        from pipeline.bodies.openvino_runner import OpenVinoRunner  # an optional package

        side = spec.padded_length(spec.input_size)
        return OpenVinoRunner(self._network, spec.last, spec.taps, side, precision, at_once)


def network_input(
    spec: BodySpec, pixels: torch.Tensor, mean: torch.Tensor, std: torch.Tensor, shift: torch.Tensor | None = None
) -> torch.Tensor:
    """Uint8 RGB (B, H, W, 3) as the input of the body's network: float32 (B, 3, h, w), channels last in memory.

    ``mean`` and ``std`` are those of ``spec``, (1, 3, 1, 1), where ``pixels`` are. ``shift``: float32 (B, 3), RGB, is
    added to every pixel of an image first. Zeros are padded right and below as ``spec`` says.
    """
    height, width = pixels.shape[1:3]
    if spec.colour_order == "BGR":
        pixels, shift = pixels.flip(3), None if shift is None else shift.flip(1)
    batch = pixels.permute(0, 3, 1, 2).float()  # (B, 3, H, W)
    if shift is not None:
        batch = batch.add_(shift[:, :, None, None])
    batch = batch.sub_(mean).div_(std)
    bottom = spec.padded_length(height) - height
    right = spec.padded_length(width) - width
    if bottom or right:
        batch = nn.functional.pad(batch, (0, right, 0, bottom))
    return batch.contiguous(memory_format=torch.channels_last)


def fold_norm(module: nn.Module, conv: str, norm: str) -> None:
    """Fold the batch normalisation ``norm`` into the convolution ``conv`` before it, both children of ``module``.

    The same function in fewer passes over memory.
    """
    before, after = module.get_submodule(conv), module.get_submodule(norm)
    assert isinstance(before, nn.Conv2d)
    assert isinstance(after, nn.BatchNorm2d)
    setattr(module, conv, fuse_conv_bn_eval(before, after))
    setattr(module, norm, nn.Identity())


def weights_digest(state: State) -> str:
    """SHA-256 over the names, types, shapes and bytes of a state, whatever file it came in."""
    digest = hashlib.sha256()
    for name in sorted(state):
        values = state[name].detach().cpu().contiguous()
        digest.update(f"{name}\0{values.dtype}\0{tuple(values.shape)}\0".encode())
        digest.update(values.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
