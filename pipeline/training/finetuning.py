"""Fine-tuning the head on stored windows: mini-batches, schedules, and the one ``train`` function (paper 4.2).

Every random choice is drawn from the seed and the number of the iteration, none from what came before. So a training
that is taken up again at a checkpoint ends with the weights of one that was never interrupted.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from pipeline.network.head import Head
from pipeline.training.descent import Checkpoints, Descent, Fall, Group, Saved, TrainingError, over_workers, seed_of

MOMENTUM = 0.9
WEIGHT_DECAY = 5e-4
BATCH = 128
FOREGROUND = 0.25
"""Of a mini-batch, 32 of 128 windows (spp_finetune_voc.m:48-53)."""

_BIAS_RATE = 2.0
"""Biases learn at twice the rate, fc8's without decay (pascal_finetune_fc_spm_train.prototxt)."""

_MEASURED = 1024
"""Held-out windows that go through the head at a time."""


@dataclass(frozen=True)
class TrainingWindows:
    """N training windows: pooled vectors float16 (N, dim), may be memory-mapped; labels int64 (N,), 0 background."""

    vectors: NDArray[np.float16]
    labels: NDArray[np.int64]


@dataclass(frozen=True)
class Step:
    """So many iterations at a learning rate."""

    rate: float
    iterations: int


PAPER = (Step(1e-4, 250_000), Step(1e-5, 50_000))
"""Paper 4.2, for a head whose fc6 and fc7 are pretrained."""


@dataclass(frozen=True)
class Plateau:
    """A learning rate that falls by ``factor`` whenever the held-out loss has not fallen for ``patience`` measures.

    The training ends with the fall after the last of ``drops``, or at ``most`` iterations.
    """

    rate: float
    most: int
    factor: float = 0.1
    patience: int = 3
    drops: int = 2


@dataclass(frozen=True)
class Rules:
    """What holds in every iteration. ``measure_every``: iterations between two points of the curve."""

    batch: int = BATCH
    foreground: float = FOREGROUND
    momentum: float = MOMENTUM
    weight_decay: float = WEIGHT_DECAY
    measure_every: int = 500
    seed: int = 0


@dataclass(frozen=True)
class CurvePoint:
    """After ``iteration`` iterations: the rate, the mean training loss since the last point, and of held-out windows
    the loss and the share that is classified rightly (foreground and background weighted as in a mini-batch)."""

    iteration: int
    rate: float
    loss: float
    held_out_loss: float | None = None
    held_out_accuracy: float | None = None


@dataclass
class Trained:
    """What a training went through: its curve, and its rates with their iterations."""

    curve: list[CurvePoint] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)

    def best(self) -> CurvePoint:
        """The point of the lowest held-out loss, the first of equals."""
        return min(self.curve, key=lambda point: math.inf if point.held_out_loss is None else point.held_out_loss)

    def steps_until(self, iteration: int) -> tuple[Step, ...]:
        """The steps, cut off after ``iteration`` iterations."""
        kept, left = [], iteration
        for step in self.steps:
            if left > 0:
                kept.append(replace(step, iterations=min(step.iterations, left)))
            left -= step.iterations
        return tuple(kept)


class MiniBatches:
    """Rows of the windows that each iteration takes: a fixed share foreground, the rest background.

    Both are gone through in an order of their own, drawn anew each time they are exhausted (an epoch). With several
    workers each has windows of its own and takes its part of the batch.

    Raises TrainingError if foreground or background is missing, ValueError if a worker's part of either is no whole
    number.
    """

    def __init__(self, labels: NDArray[np.int64], rules: Rules, rank: int = 0, workers: int = 1) -> None:
        foreground = round(rules.batch * rules.foreground)
        background = rules.batch - foreground
        if foreground % workers or background % workers:
            raise ValueError(
                f"a batch of {foreground} foreground and {background} background windows cannot be shared out evenly "
                f"to {workers} workers; choose a number of workers that divides both"
            )
        self._parts = []
        for number, (name, rows, count) in enumerate(
            (
                ("foreground", np.flatnonzero(labels > 0), foreground),
                ("background", np.flatnonzero(labels == 0), background),
            )
        ):
            if not len(rows) and count:
                raise TrainingError(f"there is no {name} window to train on; draw more windows, or change the overlaps")
            self._parts.append(_Cycle(rows, count // workers, (rules.seed, rank, number)))

    def rows(self, iteration: int) -> NDArray[np.int64]:
        """Of iteration 0, 1, 2, ...: its foreground, then its background."""
        return np.concatenate([part.rows(iteration) for part in self._parts])


class _Cycle:
    """Rows, so many each iteration, through one shuffled order after another."""

    def __init__(self, rows: NDArray[np.int64], count: int, seed: tuple[int, ...]) -> None:
        self._rows, self._count, self._seed = rows, count, seed
        self._orders: dict[int, NDArray[np.int64]] = {}

    def rows(self, iteration: int) -> NDArray[np.int64]:
        if not self._count:
            return self._rows[:0]
        places = np.arange(iteration * self._count, (iteration + 1) * self._count)
        epochs, places = np.divmod(places, len(self._rows))
        self._orders = {epoch: self._order(epoch) for epoch in np.unique(epochs).tolist()}
        return np.array([self._orders[e][p] for e, p in zip(epochs.tolist(), places.tolist(), strict=True)], np.int64)

    def _order(self, epoch: int) -> NDArray[np.int64]:
        if epoch not in self._orders:
            return self._rows[np.random.default_rng([*self._seed, epoch]).permutation(len(self._rows))]
        return self._orders[epoch]


def train(
    head: Head,
    windows: TrainingWindows,
    schedule: Sequence[Step] | Plateau,
    rules: Rules,
    *,
    held_out: TrainingWindows | None = None,
    checkpoints: Checkpoints | None = None,
    wrap: Callable[[nn.Module], nn.Module] = lambda module: module,
    rank: int = 0,
    workers: int = 1,
    device: str = "cpu",
    watch: Callable[[CurvePoint], None] = lambda point: None,
) -> Trained:
    """Train ``head`` in place, by stochastic gradient descent with momentum on the softmax loss.

    On a GPU products are in bfloat16, or float16 with scaled losses where the GPU has no bfloat16.

    Parameters
    ----------
    windows : to train on; with several ``workers`` the own ones of this, which is number ``rank``.
    schedule : rates and their iterations; or a plateau rule, which asks for ``held_out``.
    held_out : windows to measure on, never trained on; with several workers this one's own, too.
    checkpoints : the training goes on from the last one.
    wrap : makes of the head what is called, such as DistributedDataParallel.
    watch : is told every point of the curve.

    Raises Diverged when the loss is no number any more, and what ``MiniBatches`` raises.
    """
    if isinstance(schedule, Plateau) and held_out is None:
        raise ValueError("a plateau is one of the held-out loss: give held_out")
    head.to(device).train()
    run = _Run(head, wrap(head), schedule, rules, torch.device(device))
    saved = checkpoints.last() if checkpoints is not None else None
    if saved is not None:
        run.restore(saved)
    batches = MiniBatches(windows.labels, rules, rank, workers)
    devices = [torch.cuda.current_device()] if run.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        while not run.finished():
            rows = batches.rows(run.iteration)
            torch.manual_seed(seed_of(rules.seed, rank, run.iteration))
            run.step(_on(windows.vectors[rows], run.device), torch.from_numpy(windows.labels[rows]).to(run.device))
            if run.iteration % rules.measure_every == 0 or run.finished():
                measured = measure(head, held_out, rules.foreground, run.device) if held_out is not None else None
                watch(run.point(measured))
            if checkpoints is not None and checkpoints.due() and not run.finished():
                checkpoints.save(run.saved)
    head.eval()
    return run.trained


@torch.inference_mode()
def measure(head: Head, windows: TrainingWindows, foreground: float, device: torch.device) -> tuple[float, float]:
    """Loss and share classified rightly of windows, weighted so that ``foreground`` of them are foreground.

    With several workers over the windows of all of them.
    """
    training = head.training
    head.eval()
    sums = torch.zeros((2, 3), dtype=torch.float64)  # background and foreground: loss, right ones, number
    for start in range(0, len(windows.labels), _MEASURED):
        part = slice(start, start + _MEASURED)
        labels = torch.from_numpy(windows.labels[part])
        logits = head(_on(windows.vectors[part], device)).float().cpu()
        losses = nn.functional.cross_entropy(logits, labels, reduction="none").double()
        right = (logits.argmax(dim=1) == labels).double()
        for kind, chosen in enumerate((labels == 0, labels > 0)):
            sums[kind] += torch.stack([losses[chosen].sum(), right[chosen].sum(), chosen.sum().double()])
    head.train(training)
    sums = over_workers(sums.to(device), mean=False).cpu()
    shares = torch.tensor([1 - foreground, foreground], dtype=torch.float64) * (sums[:, 2] > 0)
    means = sums[:, :2] / sums[:, 2:].clamp(min=1)
    loss, right = (shares[:, None] * means).sum(dim=0) / shares.sum()
    return float(loss), float(right)


class _Run:
    """A training in progress: optimiser, rate, curve; everything that a checkpoint holds."""

    def __init__(
        self, head: Head, called: nn.Module, schedule: Sequence[Step] | Plateau, rules: Rules, device: torch.device
    ) -> None:
        self.device = device
        self.trained = Trained()
        self._called, self._schedule = called, schedule
        biases = [p for name, p in head.named_parameters() if name.endswith("bias") and not name.startswith("fc8")]
        last = [p for name, p in head.named_parameters() if name.endswith("bias") and name.startswith("fc8")]
        weights = [p for name, p in head.named_parameters() if name.endswith("weight")]
        self._descent = Descent(
            head,
            "head",
            [
                Group(weights, rules.weight_decay),
                Group(biases, rules.weight_decay, _BIAS_RATE),
                Group(last, 0.0, _BIAS_RATE),
            ],
            device,
            rate=schedule.rate if isinstance(schedule, Plateau) else schedule[0].rate,
            momentum=rules.momentum,
            fall=Fall(schedule.factor, schedule.patience) if isinstance(schedule, Plateau) else None,
        )

    @property
    def iteration(self) -> int:
        """How many were done."""
        return self._descent.iteration

    def finished(self) -> bool:
        schedule = self._schedule
        if isinstance(schedule, Plateau):
            lowest = schedule.rate * schedule.factor ** (schedule.drops + 0.5)
            return self.iteration >= schedule.most or self._descent.rate < lowest
        return self.iteration >= sum(step.iterations for step in schedule)

    def step(self, vectors: torch.Tensor, labels: torch.Tensor) -> None:
        """One iteration on a mini-batch: float (B, dim) and int64 (B,)."""
        if not isinstance(self._schedule, Plateau):
            ends = itertools.accumulate(step.iterations for step in self._schedule)
            self._descent.set_rate(
                next(s.rate for s, end in zip(self._schedule, ends, strict=True) if self.iteration < end)
            )
        self._note_step()
        self._descent.step(lambda: nn.functional.cross_entropy(self._called(vectors), labels))

    def point(self, measured: tuple[float, float] | None) -> CurvePoint:
        """Close the curve's last stretch; a plateau may lower the rate."""
        rate, loss = self._descent.rate, self._descent.mean_loss(measured[0] if measured is not None else None)
        found = CurvePoint(self.iteration, rate, loss, *(measured or ()))
        self.trained.curve.append(found)
        if measured is not None:
            self._descent.look_at(measured[0])
        return found

    def saved(self) -> Saved:
        """The state after this iteration."""
        curve, steps = self.trained.curve, self.trained.steps
        return self._descent.saved(
            {"curve": [asdict(point) for point in curve], "steps": [asdict(step) for step in steps]}
        )

    def restore(self, saved: Saved) -> None:
        """Go on where ``saved`` was taken."""
        self._descent.restore(saved)
        self.trained.curve = [CurvePoint(**point) for point in saved.progress["curve"]]
        self.trained.steps = [Step(**step) for step in saved.progress["steps"]]

    def _note_step(self) -> None:
        steps, rate = self.trained.steps, self._descent.rate
        if steps and steps[-1].rate == rate:
            steps[-1] = replace(steps[-1], iterations=steps[-1].iterations + 1)
        else:
            steps.append(Step(rate, 1))


def _on(vectors: NDArray[np.float16], device: torch.device) -> torch.Tensor:
    """Float16 vectors as float32 on a device; they travel as float16."""
    return torch.from_numpy(np.array(vectors)).to(device).float()
