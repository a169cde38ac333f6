"""Training a whole network on labelled images: epochs, sizes, and the one ``train`` (paper 2.3, 3.1).

Images come at 224 x 224 (``single``), in whole epochs of 224 and of 180 in turn (``multi``), or at a size that every
mini-batch draws from [180, 224] (``random``). Which images a mini-batch holds, at what size and how each is shown is
drawn from the seed, the epoch and the iteration, none from what came before. So a training that is taken up again at a
checkpoint, in the middle of an epoch or not, ends with the weights of one that was never interrupted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import asdict, dataclass
from functools import partial
from typing import Literal

import numpy as np
import torch
from torch import nn

from pipeline.network.spp_network import SIDE, SppNetwork
from pipeline.training.augmentation import PLAIN, SMALL_SIDE, choose
from pipeline.training.descent import Checkpoints, Descent, Fall, Group, Saved, TrainingError, over_workers, seed_of
from pipeline.training.mini_batches import (
    BROKEN,
    Batch,
    Decoded,
    LabelledImages,
    MiniBatches,
    Request,
    bytes_at_256,
    loaded,
)

Sizes = Literal["single", "multi", "random"]

_BIAS_RATE = 2.0
"""Biases learn at twice the rate (Zeiler_conv5.prototxt), without decay, as Caffe's ImageNet networks do."""

_TOP = 5

_MANY = 50
"""Images from which on it is looked at how many cannot be read."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a network is trained; the values are the paper's, ``patience`` (epochs) our own, as it gives none."""

    epochs: int = 70
    batch: int = 128
    rate: float = 0.01
    factor: float = 0.1
    drops: int = 2
    patience: int = 5
    momentum: float = 0.9
    weight_decay: float = 5e-4
    sizes: Sizes = "single"
    flips: bool = True
    colour: bool = True
    seed: int = 0

    def side(self, epoch: int, iteration: int) -> int:
        """The size of the images of an iteration, in an epoch; both count from 0."""
        if self.sizes == "random":
            return int(np.random.default_rng([self.seed, 1, iteration]).integers(SMALL_SIDE, SIDE + 1))
        return SMALL_SIDE if self.sizes == "multi" and epoch % 2 else SIDE


@dataclass(frozen=True, kw_only=True)
class EpochPoint:
    """After ``epoch`` epochs: the size of the last one's images (None: random), its rate and its mean training loss,
    and of held-out images the loss and the shares whose class is the first named, and one of the first five."""

    epoch: int
    size: int | None
    rate: float
    loss: float
    held_out_loss: float | None = None
    top1: float | None = None
    top5: float | None = None


@dataclass(frozen=True)
class Trained:
    """What a training came to: a point per epoch, and the numbers of the images, of those to train on and of those held
    out, that this or another worker could not read in some epoch."""

    curve: list[EpochPoint]
    unread: list[int]
    held_out_unread: list[int]


def train(
    network: SppNetwork,
    images: LabelledImages,
    recipe: Recipe,
    *,
    held_out: LabelledImages | None = None,
    checkpoints: Checkpoints | None = None,
    wrap: Callable[[nn.Module], nn.Module] = lambda module: module,
    rank: int = 0,
    workers: int = 1,
    device: str = "cpu",
    threads: int = 1,
    cache_bytes: int = 0,
    most_failed: float = 1.0,
    watch: Callable[[EpochPoint], None] = lambda point: None,
) -> Trained:
    """Train ``network`` in place, by stochastic gradient descent with momentum on the softmax loss.

    The rate falls by ``recipe.factor`` when the held-out top-1 error (without held-out images: the training loss) has
    not fallen for ``recipe.patience`` epochs; where it would fall once more than ``recipe.drops`` times, the training
    ends. On a GPU products are in bfloat16, or float16 with scaled losses where the GPU has no bfloat16.

    Parameters
    ----------
    images : to train on; with several ``workers`` those of all, of which this, number ``rank``, takes its part.
    held_out : images to measure on, never trained on; of all workers, too.
    checkpoints : the training goes on from the last one.
    wrap : makes of the network what is called, such as DistributedDataParallel.
    threads : that decode and cut images while others are trained on.
    cache_bytes : of memory, for images decoded at the short side 256.
    most_failed : share of the images that may be unreadable, looked at after every epoch.
    watch : is told every point of the curve.

    Raises Diverged when the loss is no number any more, TrainingError when too many images cannot be read or there are
    too few, and ValueError as ``MiniBatches`` does.
    """
    network.to(device).train()
    batches = MiniBatches(images, recipe.batch, recipe.seed, rank, workers)
    run = _Run(network, wrap(network), recipe, batches.per_epoch, torch.device(device))
    saved = checkpoints.last() if checkpoints is not None else None
    if saved is not None:
        run.restore(saved)
    decoded = Decoded(images, cache_bytes)
    measured_on = None
    if held_out is not None and len(held_out):
        measured_on = Decoded(held_out, max(0, cache_bytes - bytes_at_256(images)))

    def requests() -> Iterator[Request]:
        for iteration in range(run.iteration, recipe.epochs * batches.per_epoch):
            epoch, rows = iteration // batches.per_epoch, batches.rows(iteration)
            choice = partial(choose, recipe.seed, epoch, flips=recipe.flips, colour=recipe.colour)
            yield Request(decoded, rows, images.labels[rows], choice, recipe.side(epoch, iteration))

    devices = [torch.cuda.current_device()] if run.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices), closing(loaded(requests(), threads, run.device)) as made:
        while not run.finished():
            torch.manual_seed(seed_of(recipe.seed, rank, run.iteration))
            run.step(next(made))
            if run.iteration % batches.per_epoch == 0:
                unread = _unread(decoded, len(images), run.device)
                _check_readable(unread, decoded, batches.images_per_epoch * workers, most_failed)
                run.unread |= unread
                measured = None
                if held_out is not None and measured_on is not None:
                    among = {"rank": rank, "workers": workers, "threads": threads}
                    measured = measure(network, held_out, measured_on, run.device, **among)
                    run.held_out_unread |= _unread(measured_on, len(held_out), run.device)
                watch(run.point(measured))
            if checkpoints is not None and checkpoints.due() and not run.finished():
                run.unread.update(list(decoded.failed))  # this worker's; the others' are asked for after each epoch
                checkpoints.save(run.saved)
    network.eval()
    return Trained(run.curve, sorted(run.unread), sorted(run.held_out_unread))


@torch.inference_mode()
def measure(
    network: SppNetwork,
    images: LabelledImages,
    decoded: Decoded,
    device: torch.device,
    *,
    rank: int = 0,
    workers: int = 1,
    threads: int = 1,
) -> tuple[float, float, float]:
    """Loss, and shares of images whose class is the first and among the first five, of their centre crops of 224.

    With several workers each looks at its part of the images, and all are told the whole.
    """
    training = network.training
    network.eval()
    own = np.arange(rank, len(images), workers)
    parts = (own[start : start + 64] for start in range(0, len(own), 64))
    requests = (Request(decoded, rows, images.labels[rows], lambda number: PLAIN, SIDE) for rows in parts)
    sums = torch.zeros(4, dtype=torch.float64)  # loss, first, first five, images
    with closing(loaded(requests, threads, device)) as made:
        for batch in made:
            logits, labels = network(batch.pixels).float().cpu(), batch.labels.cpu()
            kept = labels != BROKEN
            logits, labels = logits[kept], labels[kept]
            if len(labels):
                top1, top5 = hits(logits, labels)
                loss = nn.functional.cross_entropy(logits, labels, reduction="sum")
                sums += torch.stack([loss.double(), top1.double().sum(), top5.double().sum(), kept.double().sum()])
    network.train(training)
    loss, first, five, count = over_workers(sums.to(device), mean=False).cpu().tolist()
    if not count:
        raise TrainingError("no held-out image can be read; see that the image files are there and whole")
    return loss / count, first / count, five / count


def hits(scores: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Whether the class of each image has the highest score, and one of the highest five: bool (N,) of (N, classes)."""
    ranked = scores.topk(min(_TOP, scores.shape[1]), dim=1).indices  # (N, 5)
    found = ranked == labels[:, None]
    return found[:, 0], found.any(dim=1)


def _unread(decoded: Decoded, count: int, device: torch.device) -> set[int]:
    """Which of ``count`` images some worker could not read."""
    failed = torch.zeros(count, device=device)
    failed[list(decoded.failed)] = 1
    return set(over_workers(failed, mean=False).nonzero()[:, 0].tolist())


def _check_readable(unread: set[int], decoded: Decoded, seen: int, most: float) -> None:
    """Raises TrainingError if of the ``seen`` images of an epoch, or of some more, too many could not be read."""
    if len(unread) >= seen or (len(unread) > most * seen and seen >= _MANY):
        first = next(iter(decoded.failed.values()), None)  # another worker's has another message
        raise TrainingError(
            f"{len(unread)} of {seen} training images cannot be read" + (f"; the first: {first}" if first else "")
        )


class _Run:
    """A training in progress: optimiser, rate, curve; everything that a checkpoint holds."""

    def __init__(
        self, network: SppNetwork, called: nn.Module, recipe: Recipe, per_epoch: int, device: torch.device
    ) -> None:
        self.device = device
        self.curve: list[EpochPoint] = []
        self.unread: set[int] = set()
        self.held_out_unread: set[int] = set()
        self._called, self._recipe, self._per_epoch = called, recipe, per_epoch
        named = list(network.named_parameters())
        biases = [p for name, p in named if name.endswith("bias")]
        norms = [p for name, p in named if not name.endswith("bias") and p.ndim == 1]
        weights = [p for name, p in named if not name.endswith("bias") and p.ndim > 1]
        self._descent = Descent(
            network,
            "network",
            [Group(weights, recipe.weight_decay), Group(biases, 0.0, _BIAS_RATE), Group(norms, 0.0)],
            device,
            rate=recipe.rate,
            momentum=recipe.momentum,
            fall=Fall(recipe.factor, recipe.patience),
        )

    @property
    def iteration(self) -> int:
        """How many were done."""
        return self._descent.iteration

    def finished(self) -> bool:
        recipe = self._recipe
        lowest = recipe.rate * recipe.factor ** (recipe.drops + 0.5)
        return self.iteration >= recipe.epochs * self._per_epoch or self._descent.rate < lowest

    def step(self, batch: Batch) -> None:
        """One iteration on a mini-batch; images that could not be read count for nothing."""

        def loss() -> torch.Tensor:
            logits = self._called(batch.pixels, batch.shifts)
            total = nn.functional.cross_entropy(logits.float(), batch.labels, ignore_index=BROKEN, reduction="sum")
            return total / (batch.labels != BROKEN).sum().clamp(min=1)

        self._descent.step(loss)

    def point(self, measured: tuple[float, float, float] | None) -> EpochPoint:
        """Close an epoch; the rate may fall."""
        rate, loss = self._descent.rate, self._descent.mean_loss(measured[0] if measured is not None else None)
        epoch = self.iteration // self._per_epoch
        side = None if self._recipe.sizes == "random" else self._recipe.side(epoch - 1, self.iteration - 1)
        held_out_loss, top1, top5 = measured or (None, None, None)
        found = EpochPoint(
            epoch=epoch, size=side, rate=rate, loss=loss, held_out_loss=held_out_loss, top1=top1, top5=top5
        )
        self.curve.append(found)
        self._descent.look_at(loss if found.top1 is None else 1 - found.top1)
        return found

    def saved(self) -> Saved:
        """The state after this iteration."""
        return self._descent.saved(
            {
                "curve": [asdict(point) for point in self.curve],
                "unread": sorted(self.unread),
                "held_out_unread": sorted(self.held_out_unread),
            }
        )

    def restore(self, saved: Saved) -> None:
        """Go on where ``saved`` was taken."""
        self._descent.restore(saved)
        self.curve = [EpochPoint(**point) for point in saved.progress["curve"]]
        self.unread, self.held_out_unread = (set(saved.progress[name]) for name in ("unread", "held_out_unread"))
