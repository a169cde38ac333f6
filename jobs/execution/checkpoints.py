"""Where the checkpoints of a training lie, and when it is time for one."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed

from jobs.record.versions import PRODUCER
from pipeline.bodies.classifier import over_array
from pipeline.training.descent import Saved
from storage.root import Root
from storage.tensors import Tensors, last_checkpoint, save_checkpoint

Stored = tuple[int, int, Tensors, dict[str, Any]]
"""Phase, iteration, tensors and progress of a checkpoint."""


def newest_checkpoint(root: Root, method: str, device: str, rank: int, workers: int) -> Stored | None:
    """The newest checkpoint of a training; of several workers all take the one that the first has found."""
    found = last_checkpoint(root, method) if rank == 0 else None
    if workers == 1:
        return found
    place = torch.tensor(found[:2] if found else (-1, -1), dtype=torch.int64, device=device)
    torch.distributed.broadcast(place, src=0)
    phase, iteration = place.tolist()
    if rank == 0 or phase < 0:
        return found
    return last_checkpoint(root, method, (phase, iteration))


class StoredCheckpoints:
    """The checkpoints of a training of one phase (``pipeline.training.descent.Checkpoints``); of several workers the
    first
    writes them, every ``seconds``."""

    def __init__(self, root: Root, method: str, device: str, seconds: float, rank: int, workers: int) -> None:
        self._root, self._method, self._rank = root, method, rank
        self._every = seconds if rank == 0 else math.inf
        self._newest = newest_checkpoint(root, method, device, rank, workers)
        self._saved = time.monotonic()

    def last(self) -> Saved | None:
        """What was saved last."""
        newest, self._newest = self._newest, None  # a copy of all weights and momenta is not kept
        if newest is None:
            return None
        _, iteration, tensors, progress = newest
        return Saved(iteration, {name: over_array(values) for name, values in tensors.items()}, progress)

    def due(self) -> bool:
        """Whether it is time to save again."""
        return time.monotonic() - self._saved >= self._every

    def save(self, saved: Callable[[], Saved]) -> None:
        """Publish a checkpoint."""
        found = saved()
        tensors = {name: values.float().numpy() for name, values in found.tensors.items()}
        save_checkpoint(self._root, self._method, 0, found.iteration, tensors, found.progress, producer=PRODUCER)
        self._saved = time.monotonic()
