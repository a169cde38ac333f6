"""What every training shares: checkpoints, numbers that all workers agree on, seeds, and the precision on a GPU."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
import torch.distributed
from torch import nn


class TrainingError(RuntimeError):
    """The training cannot go on. The message names the remedy."""


class Diverged(TrainingError):
    """The loss is no number any more."""


@dataclass(frozen=True)
class Saved:
    """A training between two iterations: weights and momenta by name, and the rest as JSON values."""

    iteration: int
    tensors: dict[str, torch.Tensor]
    progress: dict[str, Any]


class Checkpoints(Protocol):
    """Where a training is kept."""

    def last(self) -> Saved | None:
        """What was saved last."""
        ...

    def due(self) -> bool:
        """Whether it is time to save again."""
        ...

    def save(self, saved: Callable[[], Saved]) -> None:
        """Keep what ``saved`` returns."""
        ...


class Precision:
    """Products in bfloat16 on a GPU, or in float16 with scaled losses where the GPU has no bfloat16; else float32."""

    def __init__(self, device: torch.device) -> None:
        half = device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False)
        self.scaler = torch.amp.GradScaler(device.type, enabled=half)
        self._device = device
        self._type = torch.float16 if half else torch.bfloat16

    def products(self) -> AbstractContextManager[Any]:
        """Inside, a network computes in it."""
        return torch.autocast("cuda", dtype=self._type) if self._device.type == "cuda" else nullcontext()

    def descend(self, loss: torch.Tensor, optimizer: torch.optim.Optimizer) -> None:
        """The gradients of ``loss``, and a step along them."""
        self.scaler.scale(loss).backward()
        self.scaler.step(optimizer)
        self.scaler.update()


def state_of(network: nn.Module, optimizer: torch.optim.Optimizer, prefix: str) -> dict[str, torch.Tensor]:
    """Weights and buffers (``prefix`` before their names) and momenta (``momentum.``), on the CPU."""
    tensors = {f"{prefix}.{name}": values for name, values in network.state_dict().items()}
    for name, parameter in network.named_parameters():
        momentum = optimizer.state[parameter].get("momentum_buffer")
        if momentum is not None:
            tensors[f"momentum.{name}"] = momentum
    return {name: values.detach().cpu().contiguous() for name, values in tensors.items()}


def restore_state(
    network: nn.Module, optimizer: torch.optim.Optimizer, prefix: str, tensors: Mapping[str, torch.Tensor]
) -> None:
    """Take over what ``state_of`` gave."""
    start = f"{prefix}."
    network.load_state_dict({n.removeprefix(start): v for n, v in tensors.items() if n.startswith(start)})
    for name, parameter in network.named_parameters():
        momentum = tensors.get(f"momentum.{name}")
        if momentum is not None:  # laid out in memory as the parameter is: fused steps go through both side by side
            optimizer.state[parameter]["momentum_buffer"] = torch.empty_like(parameter).detach().copy_(momentum)


def plateau_state(plateau: torch.optim.lr_scheduler.ReduceLROnPlateau) -> dict[str, Any]:
    """What a plateau rule remembers, as JSON values."""
    state = plateau.state_dict()
    return {key: state[key] for key in ("best", "num_bad_epochs", "last_epoch")}


def over_workers(values: torch.Tensor, mean: bool = True) -> torch.Tensor:
    """Mean or sum over all workers, so that each decides the same."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.all_reduce(values)
        return values / torch.distributed.get_world_size() if mean else values
    return values


def seed_of(*numbers: int) -> int:
    """A seed of all these numbers."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> np.uint64(1))
