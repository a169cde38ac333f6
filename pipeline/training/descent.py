"""What every training shares: gradient descent, checkpoints, numbers that all workers agree on, and seeds."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
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


@dataclass(frozen=True)
class Group:
    """Parameters with their weight decay, and how many times the rate they learn at."""

    parameters: list[nn.Parameter]
    weight_decay: float
    factor: float = 1.0


@dataclass(frozen=True)
class Fall:
    """The rate falls by ``factor`` when an error has not fallen for ``patience`` looks at it."""

    factor: float
    patience: int


class Descent:
    """Stochastic gradient descent with momentum: weights, rate, losses, and all of it in a checkpoint.

    Parameters
    ----------
    network : whose parameters are in ``groups``; ``name``: what its tensors begin with in a checkpoint.
    rate : to begin with.
    fall : when it falls by itself; None: it is set.
    """

    def __init__(
        self,
        network: nn.Module,
        name: str,
        groups: Sequence[Group],
        device: torch.device,
        *,
        rate: float,
        momentum: float,
        fall: Fall | None = None,
    ) -> None:
        self.iteration = 0
        self._network, self._name = network, name
        groups = [group for group in groups if group.parameters]
        self._factors = [group.factor for group in groups]
        self._optimizer = torch.optim.SGD(
            [{"params": group.parameters, "weight_decay": group.weight_decay} for group in groups],
            lr=rate,
            momentum=momentum,
            fused=True,  # one pass over weights and momenta
        )
        self.set_rate(rate)
        self._plateau: torch.optim.lr_scheduler.ReduceLROnPlateau | None = None
        if fall is not None:
            self._plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(
                self._optimizer, factor=fall.factor, patience=fall.patience - 1, threshold=1e-3
            )
        self._precision = Precision(device)
        self._losses = torch.zeros((), dtype=torch.float64, device=device)
        self._counted = 0

    @property
    def rate(self) -> float:
        """The learning rate, of a group whose factor is 1."""
        return float(self._optimizer.param_groups[0]["lr"]) / self._factors[0]

    def set_rate(self, rate: float) -> None:
        """Learn at another rate from now on."""
        for group, factor in zip(self._optimizer.param_groups, self._factors, strict=True):
            group["lr"] = rate * factor

    def step(self, loss: Callable[[], torch.Tensor]) -> None:
        """One iteration down the gradient of what ``loss`` computes."""
        self._optimizer.zero_grad(set_to_none=True)
        with self._precision.products():
            value = loss()
        self._precision.descend(value, self._optimizer)
        self._losses += value.detach().double()
        self._counted += 1
        self.iteration += 1

    def mean_loss(self, held_out: float | None = None) -> float:
        """The mean over all workers since it was last asked for. Diverged if it, or ``held_out``, is no number."""
        loss = float(over_workers(self._losses.clone())) / max(1, self._counted)
        if not math.isfinite(loss) or (held_out is not None and not math.isfinite(held_out)):
            raise Diverged(
                f"the loss is no number after {self.iteration} iterations at a learning rate of {self.rate:g}; train "
                f"at a lower one"
            )
        self._losses.zero_()
        self._counted = 0
        return loss

    def look_at(self, error: float) -> None:
        """The rate may fall, if it is to by itself."""
        if self._plateau is not None:
            self._plateau.step(error)

    def saved(self, progress: Mapping[str, Any]) -> Saved:
        """The state after this iteration, with what else is to be kept, as JSON values."""
        tensors = {f"{self._name}.{name}": values for name, values in self._network.state_dict().items()}
        for name, parameter in self._network.named_parameters():
            momentum = self._optimizer.state[parameter].get("momentum_buffer")
            if momentum is not None:
                tensors[f"momentum.{name}"] = momentum
        own: dict[str, Any] = {
            "losses": float(self._losses),
            "counted": self._counted,
            "rate": self.rate,
            "scaler": self._precision.scaler.state_dict(),
        }
        if self._plateau is not None:
            state = self._plateau.state_dict()
            own["plateau"] = {key: state[key] for key in ("best", "num_bad_epochs", "last_epoch")}
        kept = {name: values.detach().cpu().contiguous() for name, values in tensors.items()}
        return Saved(self.iteration, kept, {**progress, **own})

    def restore(self, saved: Saved) -> None:
        """Go on where ``saved`` was taken."""
        start, progress = f"{self._name}.", saved.progress
        own = {n.removeprefix(start): values for n, values in saved.tensors.items() if n.startswith(start)}
        self._network.load_state_dict(own)
        for name, parameter in self._network.named_parameters():
            momentum = saved.tensors.get(f"momentum.{name}")
            if momentum is not None:  # laid out in memory as the parameter is: fused steps go through both side by side
                buffer = torch.empty_like(parameter).detach().copy_(momentum)
                self._optimizer.state[parameter]["momentum_buffer"] = buffer
        self.iteration = saved.iteration
        self._losses.fill_(progress["losses"])
        self._counted = progress["counted"]
        self.set_rate(progress["rate"])
        if progress["scaler"]:  # none of a training that was begun on another device
            self._precision.scaler.load_state_dict(progress["scaler"])
        if self._plateau is not None:
            self._plateau.load_state_dict({**self._plateau.state_dict(), **progress["plateau"]})


def over_workers(values: torch.Tensor, mean: bool = True) -> torch.Tensor:
    """Mean or sum over all workers, so that each decides the same."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.all_reduce(values)
        return values / torch.distributed.get_world_size() if mean else values
    return values


def seed_of(*numbers: int) -> int:
    """A seed of all these numbers."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> np.uint64(1))
