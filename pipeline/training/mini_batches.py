"""Mini-batches of labelled images: which images each iteration takes, and their pixels, made ahead by threads.

Which images a mini-batch holds is drawn from the seed and the epoch, not from what came before: a training that is
taken up again at any iteration sees what one that was never interrupted sees.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.errors import ContentError
from pipeline.images.decode import RGB
from pipeline.training.augmentation import SHORT_SIDE, Choice, at_short_side, shown
from pipeline.training.descent import TrainingError

_AHEAD = 3
"""Mini-batches that are being decoded while one is trained on."""

_BLOCKS_AT_ONCE = 4
"""Blocks whose images are mixed; ``jobs.dataset.image_file`` keeps twice as many row groups at hand."""

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

    def __init__(self, images: LabelledImages, batch: int, seed: int, rank: int = 0, workers: int = 1) -> None:
        if batch % workers:
            raise ValueError(
                f"a batch of {batch} images cannot be shared out evenly to {workers} workers; choose a number "
                f"of workers that divides it"
            )
        self._own = len(images) // workers
        if not self._own:
            raise TrainingError(f"{len(images)} training images are too few for {workers} workers")
        self._each = min(batch // workers, self._own)
        self.per_epoch = self._own // self._each
        self.images_per_epoch = self.per_epoch * self._each
        self._images, self._seed, self._rank = images, seed, rank
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


@dataclass(frozen=True)
class Request:
    """A mini-batch to be made: numbers of images, their labels, and how each is shown."""

    decoded: Decoded
    rows: NDArray[np.int64]
    labels: NDArray[np.int64]
    choice: Callable[[int], Choice]
    side: int


@dataclass(frozen=True)
class Batch:
    """A mini-batch: pixels uint8 (B, side, side, 3), shifts float32 (B, 3), labels int64 (B,)."""

    pixels: torch.Tensor
    shifts: torch.Tensor
    labels: torch.Tensor


def loaded(requests: Iterable[Request], threads: int, device: torch.device) -> Generator[Batch, None, None]:
    """The mini-batches of ``requests``, on the device, made by threads ahead of their use."""
    pool = ThreadPoolExecutor(threads, thread_name_prefix="decode")
    waiting: deque[tuple[Batch, list[Future[None]]]] = deque()
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
    request: Request, pool: ThreadPoolExecutor, threads: int, device: torch.device
) -> tuple[Batch, list[Future[None]]]:
    """A mini-batch that threads are filling: several images at a time, as handing over costs as much as a small one."""
    count, side = len(request.rows), request.side
    pixels = torch.empty((count, side, side, 3), dtype=torch.uint8, pin_memory=device.type == "cuda")
    batch = Batch(pixels, torch.zeros((count, 3)), torch.from_numpy(request.labels.copy()))
    cuts = np.array_split(np.arange(count), min(count, 2 * threads))
    return batch, [pool.submit(_fill, request, batch, part.tolist()) for part in cuts]


def _fill(request: Request, batch: Batch, places: list[int]) -> None:
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


def _moved(batch: Batch, filling: list[Future[None]], device: torch.device) -> Batch:
    for part in filling:
        part.result()
    tensors = (batch.pixels, batch.shifts, batch.labels)
    return Batch(*(tensor.to(device, non_blocking=True) for tensor in tensors))


def bytes_at_256(images: LabelledImages) -> int:
    """About what all images take in ``Decoded``, of an aspect of 4 to 3."""
    return len(images) * SHORT_SIDE * SHORT_SIDE * 4
