"""What runs a body's network, and how precisely: PyTorch one operation after another, or another library's engine."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Literal, Protocol

import torch
from torch import nn

from pipeline.products import one_torch_thread

Engine = Literal["torch", "openvino"]
Precision = Literal["float32", "bfloat16", "float16"]
"""Of a network's weights and of what passes between its layers; maps are float32 whatever it is."""


class EngineError(ValueError):
    """An engine that is not installed, or cannot do what it is asked for. The message says what to do."""


class ConversionError(EngineError):
    """A network that an engine cannot take."""


class Runner(Protocol):
    """A network that is ready to run. Several threads may call it at once, for batches of their own."""

    def __call__(self, batch: torch.Tensor, layers: Sequence[str]) -> dict[str, torch.Tensor]:
        """Some layers of preprocessed images (B, 3, h, w), by name: float32 (B, channels, height, width)."""


class TorchRunner:
    """PyTorch, on any device.

    Parameters
    ----------
    network : ready for inference. It is moved and converted in place.
    last : what the network's own output is called.
    taps : other layers, by name, each with the path of the submodule that puts it out.
    """

    def __init__(
        self, network: nn.Module, last: str, taps: Mapping[str, str], device: torch.device, precision: Precision
    ) -> None:
        self._last, self._device, self._type = last, device, _TYPES[precision]
        self._network = network.to(device=device, dtype=self._type).to(memory_format=torch.channels_last)
        self._asked = threading.local()  # layers of this thread's pass
        for name, path in taps.items():
            self._network.get_submodule(path).register_forward_hook(self._keeping(name))

    def __call__(self, batch: torch.Tensor, layers: Sequence[str]) -> dict[str, torch.Tensor]:
        """See ``Runner``."""
        found: dict[str, torch.Tensor] = {}
        self._asked.layers, self._asked.found = layers, found
        try:
            with self._alone():
                found[self._last] = self._network(batch.to(self._type))
        finally:
            del self._asked.layers, self._asked.found
        return {name: found[name].float() for name in layers}

    def _alone(self) -> AbstractContextManager[None]:
        return one_torch_thread() if self._device.type == "cpu" else nullcontext()

    def _keeping(self, name: str) -> Callable[[nn.Module, object, torch.Tensor], None]:
        """A forward hook that keeps what its module gives, where this thread has asked for it."""

        def keep(module: nn.Module, inputs: object, output: torch.Tensor) -> None:
            if name in getattr(self._asked, "layers", ()):
                self._asked.found[name] = output

        return keep


_TYPES: dict[Precision, torch.dtype] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
