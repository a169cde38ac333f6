"""Training a whole network on labelled images: epochs, mini-batches, sizes, and the one ``train`` (paper 2.3, 3.1).

Images come at 224 x 224 (``single``), in whole epochs of 224 and of 180 in turn (``multi``), or at a size that every
mini-batch draws from [180, 224] (``random``). Which images a mini-batch holds, at what size and how each is shown is
drawn from the seed, the epoch and the iteration, none from what came before. So a training that is taken up again at a
checkpoint, in the middle of an epoch or not, ends with the weights of one that was never interrupted.
"""

from __future__ import annotations

import math
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import asdict, dataclass
from functools import partial
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from pipeline.augmentation import PLAIN, SHORT_SIDE, SMALL_SIDE, Choice, at_short_side, choose, shown
from pipeline.errors import ContentError
from pipeline.images import RGB
from pipeline.spp_network import SIDE, SppNetwork
from pipeline.training import (
    Checkpoints,
    Diverged,
    Precision,
    Saved,
    TrainingError,
    over_workers,
    plateau_state,
    restore_state,
    seed_of,
    state_of,
)

Sizes = Literal["single", "multi", "random"]

_BIAS_RATE = 2.0
"""Biases learn at twice the rate (Zeiler_conv5.prototxt), without decay, as Caffe's ImageNet networks do."""

_AHEAD = 3
"""Mini-batches that are being decoded while one is trained on."""

_BLOCKS_AT_ONCE = 4
"""Blocks whose images are mixed; ``jobs.imagefile`` keeps as many row groups at hand."""

_TOP = 5

_MANY = 50
"""Images from which on it is looked at how many cannot be read."""

BROKEN = -100
"""The label of an image that cannot be read: it counts nowhere."""


@dataclass(frozen=True)
class LabelledImages:
    """N images with their classes.

    Parameters
    ----------
    labels : int64 (N,), classes from 0 on.
    read : from the number of an image and a short side to its pixels, decoded at that short side or more if it has so
        much. ContentError for an image that cannot be read. Called from several threads.
    blocks : int64 (N,), the same for images that are best read together; None if each is read alone.
    """

    labels: NDArray[np.int64]
    read: Callable[[int, int], RGB]
    blocks: NDArray[np.int64] | None = None

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
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


@dataclass(frozen=True)
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


class Decoded:
    """Images at the short side 256, kept in memory as long as they are fewer than ``limit`` bytes together.

    ``failed``: the number of every image that could not be read, with the reason.
    """

    def __init__(self, images: LabelledImages, limit: int) -> None:
        self.failed: dict[int, ContentError] = {}
        self._images, self._left = images, limit
        self._kept: dict[int, RGB] = {}
        self._lock = threading.Lock()

    def image(self, number: int) -> RGB | None:
        """An image; None if it cannot be read."""
        found = self._kept.get(number)
        if found is not None:
            return found
        try:
            found = at_short_side(self._images.read(number, SHORT_SIDE))
        except ContentError as error:
            self.failed[number] = error
            return None
        with self._lock:
            if found.nbytes <= self._left and number not in self._kept:
                self._left -= found.nbytes
                self._kept[number] = found
        return found


class MiniBatches:
    """Which images each iteration takes: every epoch goes once through all, in an order of its own.

    With several workers each takes its own part of every mini-batch, all parts of one length; of an epoch the images
    that fill no whole mini-batch are left out. Where images come in blocks, a worker goes through some blocks after
    the other, and the order is one of blocks, and of the images of a few of them.

    Raises ValueError if the batch cannot be shared out evenly, TrainingError if there are fewer images than workers.
    """

    def __init__(self, images: LabelledImages, recipe: Recipe, rank: int = 0, workers: int = 1) -> None:
        if recipe.batch % workers:
            raise ValueError(
                f"a batch of {recipe.batch} images cannot be shared out evenly to {workers} workers; choose a number "
                f"of workers that divides it"
            )
        self._own = len(images) // workers
        if not self._own:
            raise TrainingError(f"{len(images)} training images are too few for {workers} workers")
        self._each = min(recipe.batch // workers, self._own)
        self.per_epoch = self._own // self._each
        self.images_per_epoch = self.per_epoch * self._each
        self._images, self._seed, self._rank = images, recipe.seed, rank
        self._order = (-1, np.empty(0, np.int64))

    def rows(self, iteration: int) -> NDArray[np.int64]:
        """The numbers of this worker's images in iteration 0, 1, 2, ..."""
        epoch, place = divmod(iteration, self.per_epoch)
        if self._order[0] != epoch:
            self._order = epoch, self._order_of(epoch)
        return self._order[1][place * self._each : (place + 1) * self._each]

    def _order_of(self, epoch: int) -> NDArray[np.int64]:
        random = np.random.default_rng([self._seed, 2, epoch])
        part = slice(self._rank * self._own, (self._rank + 1) * self._own)
        blocks = self._images.blocks
        if blocks is None:
            return random.permutation(len(self._images))[part]
        names, members = np.unique(blocks, return_inverse=True)
        places = random.permutation(len(names))[members]
        own = np.argsort(places, kind="stable")[part]
        first = places[own[0]]
        group = (places[own] - first) // _BLOCKS_AT_ONCE
        return own[np.lexsort((random.random(len(self._images))[part], group))]


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
    watch: Callable[[EpochPoint, Decoded], None] = lambda point, decoded: None,
) -> list[EpochPoint]:
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
    most_failed : share of the images that may be unreadable, looked at after the first epoch.
    watch : is told every point of the curve, with what was decoded so far.

    Raises Diverged when the loss is no number any more, TrainingError when too many images cannot be read or there are
    too few, and ValueError as ``MiniBatches`` does. Returns the curve, a point per epoch.
    """
    network.to(device).train()
    batches = MiniBatches(images, recipe, rank, workers)
    run = _Run(network, wrap(network), recipe, batches.per_epoch, torch.device(device))
    saved = checkpoints.last() if checkpoints is not None else None
    if saved is not None:
        run.restore(saved)
    decoded = Decoded(images, cache_bytes)
    measured_on = None
    if held_out is not None and len(held_out):
        measured_on = Decoded(held_out, max(0, cache_bytes - _bytes_at_256(images)))

    def requests() -> Iterator[_Request]:
        for iteration in range(run.iteration, recipe.epochs * batches.per_epoch):
            epoch, rows = iteration // batches.per_epoch, batches.rows(iteration)
            choice = partial(choose, recipe.seed, epoch, flips=recipe.flips, colour=recipe.colour)
            yield _Request(decoded, rows, images.labels[rows], choice, recipe.side(epoch, iteration))

    looked = False
    devices = [torch.cuda.current_device()] if run.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices), closing(_loaded(requests(), threads, run.device)) as loaded:
        while not run.finished():
            torch.manual_seed(seed_of(recipe.seed, rank, run.iteration))
            run.step(next(loaded))
            if run.iteration % batches.per_epoch == 0:
                if not looked:
                    looked = True
                    _check_readable(decoded, batches, most_failed, run.device)
                measured = None
                if held_out is not None and measured_on is not None:
                    measured = measure(network, held_out, measured_on, run.device, rank, workers, threads)
                watch(run.point(measured), decoded)
            if checkpoints is not None and checkpoints.due() and not run.finished():
                checkpoints.save(run.saved)
    network.eval()
    return run.curve


@torch.inference_mode()
def measure(
    network: SppNetwork,
    images: LabelledImages,
    decoded: Decoded,
    device: torch.device,
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
    requests = (_Request(decoded, rows, images.labels[rows], lambda number: PLAIN, SIDE) for rows in parts)
    sums = torch.zeros(4, dtype=torch.float64)  # loss, first, first five, images
    with closing(_loaded(requests, threads, device)) as loaded:
        for batch in loaded:
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


def _check_readable(decoded: Decoded, batches: MiniBatches, most: float, device: torch.device) -> None:
    """Raises TrainingError, in all workers or none, if of an epoch's images too many could not be read."""
    counts = torch.tensor([len(decoded.failed), batches.images_per_epoch], dtype=torch.float64, device=device)
    failed, images = over_workers(counts, mean=False).tolist()
    if failed == images or (failed > most * images and images >= _MANY):
        first = next(iter(decoded.failed.values()), None)
        raise TrainingError(
            f"{failed:.0f} of {images:.0f} training images cannot be read" + (f"; the first: {first}" if first else "")
        )


@dataclass(frozen=True)
class _Request:
    """A mini-batch to be made: numbers of images, their labels, and how each is shown."""

    decoded: Decoded
    rows: NDArray[np.int64]
    labels: NDArray[np.int64]
    choice: Callable[[int], Choice]
    side: int


@dataclass(frozen=True)
class _Batch:
    """A mini-batch: pixels uint8 (B, side, side, 3), shifts float32 (B, 3), labels int64 (B,)."""

    pixels: torch.Tensor
    shifts: torch.Tensor
    labels: torch.Tensor


def _loaded(requests: Iterable[_Request], threads: int, device: torch.device) -> Generator[_Batch, None, None]:
    """The mini-batches of ``requests``, made by threads ahead of their use, on the device."""
    pool = ThreadPoolExecutor(threads, thread_name_prefix="decode")
    waiting: deque[tuple[_Batch, list[Future[None]]]] = deque()
    try:
        for request in requests:
            waiting.append(_begun(request, pool, threads, device))
            if len(waiting) > _AHEAD:
                yield _moved(*waiting.popleft(), device)
        while waiting:
            yield _moved(*waiting.popleft(), device)
    finally:
        pool.shutdown(cancel_futures=True)


def _begun(
    request: _Request, pool: ThreadPoolExecutor, threads: int, device: torch.device
) -> tuple[_Batch, list[Future[None]]]:
    """A mini-batch that threads are filling: several images at a time, as handing over costs as much as a small one."""
    count, side = len(request.rows), request.side
    pixels = torch.empty((count, side, side, 3), dtype=torch.uint8, pin_memory=device.type == "cuda")
    batch = _Batch(pixels, torch.zeros((count, 3)), torch.from_numpy(request.labels.copy()))
    cuts = np.array_split(np.arange(count), min(count, 2 * threads))
    return batch, [pool.submit(_fill, request, batch, part.tolist()) for part in cuts]


def _fill(request: _Request, batch: _Batch, places: list[int]) -> None:
    pixels = batch.pixels.numpy()
    for place in places:
        number = int(request.rows[place])
        image = request.decoded.image(number)
        if image is None:
            pixels[place] = 0
            batch.labels.numpy()[place] = BROKEN
        else:
            choice = request.choice(number)
            shown(image, choice, request.side, out=pixels[place])
            batch.shifts.numpy()[place] = choice.shift


def _moved(batch: _Batch, filling: list[Future[None]], device: torch.device) -> _Batch:
    for part in filling:
        part.result()
    tensors = (batch.pixels, batch.shifts, batch.labels)
    return _Batch(*(tensor.to(device, non_blocking=True) for tensor in tensors))


def _bytes_at_256(images: LabelledImages) -> int:
    """About what all images take at the short side 256, of an aspect of 4 to 3."""
    return len(images) * SHORT_SIDE * SHORT_SIDE * 4


class _Run:
    """A training in progress: optimiser, rate, curve; everything that a checkpoint holds."""

    def __init__(
        self, network: SppNetwork, called: nn.Module, recipe: Recipe, per_epoch: int, device: torch.device
    ) -> None:
        self.device = device
        self.iteration = 0
        self.curve: list[EpochPoint] = []
        self._network, self._called, self._recipe, self._per_epoch = network, called, recipe, per_epoch
        named = list(network.named_parameters())
        biases = [p for name, p in named if name.endswith("bias")]
        norms = [p for name, p in named if not name.endswith("bias") and p.ndim == 1]
        weights = [p for name, p in named if not name.endswith("bias") and p.ndim > 1]
        groups = [(weights, recipe.weight_decay, 1.0), (biases, 0.0, _BIAS_RATE), (norms, 0.0, 1.0)]
        self._factors = [factor for parameters, _, factor in groups if parameters]
        self._optimizer = torch.optim.SGD(
            [{"params": parameters, "weight_decay": decay} for parameters, decay, _ in groups if parameters],
            lr=recipe.rate,
            momentum=recipe.momentum,
            fused=True,  # one pass over weights and momenta
        )
        self._set_rate(recipe.rate)
        self._plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(
            self._optimizer, factor=recipe.factor, patience=recipe.patience - 1, threshold=1e-3
        )
        self._precision = Precision(device)
        self._losses = torch.zeros((), dtype=torch.float64, device=device)
        self._counted = 0

    def finished(self) -> bool:
        recipe = self._recipe
        lowest = recipe.rate * recipe.factor ** (recipe.drops + 0.5)
        return self.iteration >= recipe.epochs * self._per_epoch or self._rate() < lowest

    def step(self, batch: _Batch) -> None:
        """One iteration on a mini-batch; images that could not be read count for nothing."""
        self._optimizer.zero_grad(set_to_none=True)
        with self._precision.products():
            logits = self._called(batch.pixels, batch.shifts)
            total = nn.functional.cross_entropy(logits.float(), batch.labels, ignore_index=BROKEN, reduction="sum")
            loss = total / (batch.labels != BROKEN).sum().clamp(min=1)
        self._precision.descend(loss, self._optimizer)
        self._losses += loss.detach().double()
        self._counted += 1
        self.iteration += 1

    def point(self, measured: tuple[float, float, float] | None) -> EpochPoint:
        """Close an epoch; the rate may fall."""
        loss = float(over_workers(self._losses.clone())) / max(1, self._counted)
        epoch = self.iteration // self._per_epoch
        if not math.isfinite(loss) or (measured is not None and not math.isfinite(measured[0])):
            raise Diverged(
                f"the loss is no number after {epoch} epochs at a learning rate of {self._rate():g}; train at a lower "
                f"one"
            )
        side = None if self._recipe.sizes == "random" else self._recipe.side(epoch - 1, self.iteration - 1)
        found = EpochPoint(epoch, side, self._rate(), loss, *(measured or ()))
        self.curve.append(found)
        self._losses.zero_()
        self._counted = 0
        self._plateau.step(loss if found.top1 is None else 1 - found.top1)
        return found

    def saved(self) -> Saved:
        """The state after this iteration."""
        progress = {
            "curve": [asdict(point) for point in self.curve],
            "losses": float(self._losses),
            "counted": self._counted,
            "rate": self._rate(),
            "scaler": self._precision.scaler.state_dict(),
            "plateau": plateau_state(self._plateau),
        }
        return Saved(self.iteration, state_of(self._network, self._optimizer, "network"), progress)

    def restore(self, saved: Saved) -> None:
        """Go on where ``saved`` was taken."""
        progress = saved.progress
        restore_state(self._network, self._optimizer, "network", saved.tensors)
        self.iteration = saved.iteration
        self.curve = [EpochPoint(**point) for point in progress["curve"]]
        self._losses.fill_(progress["losses"])
        self._counted = progress["counted"]
        self._set_rate(progress["rate"])
        if progress["scaler"]:  # none of a training that was begun on another device
            self._precision.scaler.load_state_dict(progress["scaler"])
        self._plateau.load_state_dict({**self._plateau.state_dict(), **progress["plateau"]})

    def _rate(self) -> float:
        return float(self._optimizer.param_groups[0]["lr"])

    def _set_rate(self, rate: float) -> None:
        for group, factor in zip(self._optimizer.param_groups, self._factors, strict=True):
            group["lr"] = rate * factor
