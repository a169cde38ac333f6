"""What a worker does to train a head: it reads the training windows, goes through the phases, and publishes the head.

Phases, where the learning rate is chosen: a short trial of each rate on the images that are not held out; one training
at the best rate (at the next best, if the loss is no number there any more), which falls whenever the held-out loss
stands still; and the final one, from the beginning, on all images, through the rates and iterations that were best.
Elsewhere only the last.
"""

from __future__ import annotations

import math
import os
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import nn

from jobs.config.head import FinetuneConfig, HeadConfig
from jobs.dataset.objects import is_held_out
from jobs.execution.checkpoints import newest_checkpoint
from jobs.execution.training import tell_driver
from jobs.record.publish import publish
from jobs.record.versions import PRODUCER
from pipeline.bodies.classifier import Classifier, over_array
from pipeline.network.head import Head, new_head, pretrained_head
from pipeline.phases import PhaseClock
from pipeline.spp.pyramid import bin_count
from pipeline.training.descent import Diverged, Saved, TrainingError
from pipeline.training.finetuning import PAPER, CurvePoint, Plateau, Rules, Step, Trained, TrainingWindows, train
from storage.columns import vectors_of
from storage.root import Root
from storage.scan import scan_file
from storage.schemas import VECTOR_COLUMN, schema
from storage.tensors import drop_checkpoints, save_checkpoint, write_tensors

Tensors = Mapping[str, NDArray[np.float32]]

_RMS_ROWS = 4096
"""Windows from which the size of a vector's values is learned: the first, so that every worker finds the same."""

FINAL = "final"
_FINAL_NUMBER = 0xFFFF
"""Of the phase, in the keys of checkpoints; others count from 0."""


@dataclass(frozen=True, kw_only=True)
class TrainHead:
    """All that a worker needs to know. ``keys``: the files of training windows, of ``rows`` rows. ``channels`` and
    ``levels`` are those of their vectors."""

    root: Root
    method: str
    keys: tuple[str, ...]
    rows: int
    class_names: tuple[str, ...]
    channels: int
    levels: tuple[int, ...]
    head: HeadConfig
    config: FinetuneConfig
    device: str
    threads: int
    checkpoint_seconds: float
    pretrained: bool
    metadata: dict[str, str]

    @property
    def chooses(self) -> bool:
        """Whether rates and iterations are chosen on held-out images."""
        schedule = self.config.schedule
        return schedule == "plateau" or (schedule == "auto" and not self.pretrained)


def train_head(
    work: TrainHead,
    classifier: Classifier | None,
    rank: int = 0,
    workers: int = 1,
    wrap: Callable[[nn.Module], nn.Module] = lambda module: module,
) -> None:
    """Train and publish the head; one of ``workers`` that do this together trains on its part of the windows.

    Raises TrainingError, for which another attempt is of no use.
    """
    torch.set_num_threads(work.threads)
    clock = PhaseClock()
    with tempfile.TemporaryFile() as spool:
        with clock.phase("read"):
            data = _TrainingWindows.read(work, spool, rank, workers)
            data.check(work.chooses)
        story = _Story(work, classifier, data, rank, workers, wrap)
        with clock.phase("train"):
            head = story.tell()
        if rank == 0:
            publish_head(work, head, clock.seconds, story.outcomes)
            drop_checkpoints(work.root, work.method)


def described(point: Mapping[str, Any]) -> str:
    """A point of the curve in words."""
    held_out = ""
    if point["held_out_loss"] is not None:
        held_out = f", held-out loss {point['held_out_loss']:.4f} and accuracy {point['held_out_accuracy']:.3f}"
    return (
        f"{point['phase']}, {point['iteration']:,} iterations at {point['rate']:g}: loss {point['loss']:.4f}{held_out}"
    )


def publish_head(
    work: TrainHead, head: Head, seconds: Mapping[str, float], outcomes: Mapping[str, Trained] | None = None
) -> None:
    """Write the curve and the head; the head last: with it the stage is done."""
    rows = [
        {
            "phase": phase,
            "iteration": point.iteration,
            "learning_rate": point.rate,
            "loss": point.loss,
            "held_out_loss": point.held_out_loss,
            "held_out_accuracy": point.held_out_accuracy,
        }
        for phase, trained in (outcomes or {}).items()
        for point in trained.curve
    ]
    table = pa.Table.from_pylist(rows, schema=schema("training_curve", metadata={"method": work.method}))
    counts = {phase: len(trained.curve) for phase, trained in sorted((outcomes or {}).items())}
    table = table.sort_by([("phase", "ascending"), ("iteration", "ascending")])
    root, method = work.root, work.method
    publish(root, "training_curve", method, table, counts, seconds={})
    tensors = {name: values.float().cpu().numpy() for name, values in head.state_dict().items()}
    write_tensors(root, "head", method, method, tensors, work.metadata, seconds=seconds, producer=PRODUCER)


def initial_head(work: TrainHead, classifier: Classifier | None, rms: float) -> Head:
    """The head that training starts from."""
    outputs = 1 + len(work.class_names)
    if classifier is not None:
        return pretrained_head(
            classifier, work.channels, work.levels, outputs=outputs, dropout=work.head.dropout, seed=work.head.seed
        )
    dim = work.channels * bin_count(work.levels)
    return new_head(dim, work.head.sizes, outputs, dropout=work.head.dropout, seed=work.head.seed, rms=rms)


@dataclass(frozen=True)
class _TrainingWindows:
    """``all`` windows, of which the first are for the choice of a schedule and the others, of held-out images, to
    measure it; ``rms`` of their values."""

    all: TrainingWindows
    chosen_on: TrainingWindows
    held_out: TrainingWindows
    rms: float

    @classmethod
    def read(cls, work: TrainHead, spool: Any, rank: int, workers: int) -> _TrainingWindows:
        """Into a file mapped to memory: the system keeps of it what fits. A worker takes every ``workers``-th row."""
        dim = work.channels * bin_count(work.levels)
        number = {name: i for i, name in enumerate(work.class_names, 1)}
        count = len(range(rank, work.rows, workers))
        os.posix_fallocate(
            spool.fileno(), 0, 2 * max(count, 1) * dim
        )  # a full disk is an error now, not a signal later
        vectors = np.memmap(spool, np.float16, "w+", shape=(max(count, 1), dim))
        labels = np.empty(count, np.int64)
        front, back, seen, squares, measured = 0, count, 0, 0.0, 0
        for key in work.keys:
            for table in scan_file(work.root, key, ["image_id", "class_name", VECTOR_COLUMN]):
                part = vectors_of(table[VECTOR_COLUMN])
                if measured < _RMS_ROWS:
                    squares += float(np.square(part.astype(np.float32)).sum(dtype=np.float64))
                    measured += len(part)
                mine = np.arange((rank - seen) % workers, len(part), workers)
                seen += len(part)
                names = table["class_name"].to_pylist()
                own = [number[names[row]] if names[row] is not None else 0 for row in mine]
                if work.chooses and is_held_out(work.config.held_out, work.config.seed, table["image_id"][0].as_py()):
                    back -= len(mine)
                    place = slice(back, back + len(mine))
                else:
                    place = slice(front, front + len(mine))
                    front += len(mine)
                vectors[place], labels[place] = part[mine], own
        rms = math.sqrt(squares / (measured * dim)) if measured else 0.0
        whole = TrainingWindows(vectors[:count], labels)
        return cls(
            whole,
            TrainingWindows(vectors[:front], labels[:front]),
            TrainingWindows(vectors[front:count], labels[front:]),
            rms,
        )

    def check(self, chooses: bool) -> None:
        """Raises TrainingError if there is nothing to train on, or to choose by."""
        parts = [("", self.all)]
        if chooses:
            parts = [(" of the images that are held out", self.held_out), (" of those that are not", self.chosen_on)]
        for name, part in parts:
            for kind, there in (("foreground", part.labels > 0), ("background", part.labels == 0)):
                if not there.any():
                    raise TrainingError(
                        f"there is no {kind} window{name}; give more training images"
                        + (", change finetune.held_out, or give finetune.schedule rates and iterations" if name else "")
                    )


class _Story:
    """The phases of a training, in order; ``outcomes`` of those that are through."""

    def __init__(
        self,
        work: TrainHead,
        classifier: Classifier | None,
        data: _TrainingWindows,
        rank: int,
        workers: int,
        wrap: Callable[[nn.Module], nn.Module],
    ) -> None:
        self.outcomes: dict[str, Trained] = {}
        self._work, self._classifier, self._data = work, classifier, data
        self._rank, self._workers, self._wrap = rank, workers, wrap
        self._stored = newest_checkpoint(work.root, work.method, work.device, rank, workers)
        self._diverged: set[str] = set()
        if self._stored is not None:
            earlier = self._stored[3]["earlier"]
            self.outcomes = {phase: _trained(values) for phase, values in earlier.items()}
            self._diverged = set(self._stored[3]["diverged"])

    def tell(self) -> Head:
        """The trained head."""
        schedule = self._work.config.schedule
        if self._work.chooses:
            steps = self._choose()
        elif isinstance(schedule, str):
            steps = PAPER
        else:
            steps = [Step(rate, iterations) for rate, iterations in schedule]
        head = self._phase(FINAL, _FINAL_NUMBER, steps, self._data.all, None)
        assert head is not None
        return head

    def _choose(self) -> Sequence[Step]:
        """Rates and iterations that did best on the held-out images."""
        config, data = self._work.config, self._data
        losses = {}
        for number, rate in enumerate(config.learning_rates):
            phase, steps = f"trial {rate:g}", [Step(rate, config.trial_iterations)]
            self._phase(phase, number, steps, data.chosen_on, data.held_out, config.trial_iterations)
            if phase not in self._diverged:
                losses[rate] = self.outcomes[phase].curve[-1].held_out_loss or 0.0
        for number, rate in enumerate(sorted(losses, key=lambda rate: losses[rate]), len(config.learning_rates)):
            phase = f"plateau {rate:g}"
            plateau = Plateau(rate, config.max_iterations, patience=config.patience, drops=config.drops)
            self._phase(phase, number, plateau, data.chosen_on, data.held_out)
            if phase not in self._diverged:
                outcome = self.outcomes[phase]
                return outcome.steps_until(outcome.best().iteration)
        raise TrainingError("the loss was no number at any of finetune.learning_rates; try lower ones")

    def _phase(
        self,
        phase: str,
        number: int,
        schedule: Sequence[Step] | Plateau,
        windows: TrainingWindows,
        held_out: TrainingWindows | None,
        measure_every: int | None = None,
    ) -> Head | None:
        """Go through a phase, unless an earlier attempt did: then there is no head of it."""
        if self._stored is not None and number < self._stored[0]:
            return None
        work, config = self._work, self._work.config
        head = initial_head(work, self._classifier, self._data.rms)
        rules = Rules(
            config.batch,
            config.foreground,
            config.momentum,
            config.weight_decay,
            measure_every or config.measure_every,
            config.seed,
        )
        try:
            self.outcomes[phase] = train(
                head,
                windows,
                schedule,
                rules,
                held_out=held_out,
                checkpoints=_PhaseCheckpoints(self, number),
                wrap=self._wrap,
                rank=self._rank,
                workers=self._workers,
                device=work.device,
                watch=lambda point: self._tell_driver(phase, point),
            )
        except Diverged:
            if phase == FINAL:
                raise
            self._diverged.add(phase)
            self.outcomes[phase] = Trained()
        return head

    def _tell_driver(self, phase: str, point: CurvePoint) -> None:
        if self._rank == 0:
            tell_driver(self._work, {"phase": phase, **asdict(point)})

    def stored(self, number: int) -> Saved | None:
        """The last checkpoint, if it is of this phase."""
        if self._stored is None or self._stored[0] != number:
            return None
        _, iteration, tensors, progress = self._stored
        self._stored = None  # a copy of all weights and momenta is not kept
        return Saved(iteration, {name: over_array(v) for name, v in tensors.items()}, progress["current"])

    def store(self, number: int, saved: Saved) -> None:
        """Publish a checkpoint; of several workers the first does."""
        progress = {
            "earlier": {phase: asdict(trained) for phase, trained in self.outcomes.items()},
            "diverged": sorted(self._diverged),
            "current": saved.progress,
        }
        tensors = {name: values.numpy() for name, values in saved.tensors.items()}
        save_checkpoint(
            self._work.root, self._work.method, number, saved.iteration, tensors, progress, producer=PRODUCER
        )

    @property
    def saves_every(self) -> float:
        """Seconds; of all workers but the first: never."""
        return self._work.checkpoint_seconds if self._rank == 0 else math.inf


class _PhaseCheckpoints:
    """The checkpoints of one phase, as the training asks for them."""

    def __init__(self, story: _Story, number: int) -> None:
        self._story, self._number = story, number
        self._saved = time.monotonic()

    def last(self) -> Saved | None:
        return self._story.stored(self._number)

    def due(self) -> bool:
        return time.monotonic() - self._saved >= self._story.saves_every

    def save(self, saved: Callable[[], Saved]) -> None:
        self._story.store(self._number, saved())
        self._saved = time.monotonic()


def _trained(values: Mapping[str, Any]) -> Trained:
    return Trained([CurvePoint(**point) for point in values["curve"]], [Step(**step) for step in values["steps"]])
