"""The positives of all classes: read by tasks, a block per file of ``truth_features``, and kept in the object store."""

from __future__ import annotations

import numpy as np
import ray
from numpy.typing import NDArray

from jobs.execution.tasks import as_task, results
from jobs.svm import tasks
from jobs.svm.fits import Blocks
from storage.manifest import Manifest
from storage.root import Root


class Positives:
    """The vectors of each class's ground-truth boxes in ``manifest``; difficult ones if they count as positives.

    ``dim``: their length, 0 if there are none. ``norms``: mean norm and number, block by block.
    """

    def __init__(self, root: Root, manifest: Manifest, class_names: tuple[str, ...], difficult: bool) -> None:
        task = as_task(tasks.positives, returns=2)
        refs = [task.remote(root, key, class_names, difficult) for key in manifest.keys]
        told = results("train-svm", [ref for ref, _ in refs])
        found = [(one, vectors) for one, (_, vectors) in zip(told, refs, strict=True) if len(one[0])]
        self._blocks: list[tuple[NDArray[np.int64], ray.ObjectRef]] = [(one[0], vectors) for one, vectors in found]
        self.dim = max((dim for (_, dim, _), _ in found), default=0)
        self.norms = [(norm, len(classes)) for (classes, _, norm), _ in found]

    def count(self, number: int) -> int:
        """Positives of a class."""
        return sum(int((classes == number).sum()) for classes, _ in self._blocks)

    def vectors_of(self, number: int) -> Blocks:
        """Where the positives of a class are: examples from 0 on, in the order of the files and their rows."""
        found, start = [], 0
        for classes, vectors in self._blocks:
            places = np.flatnonzero(classes == number)
            if len(places):
                found.append((vectors, places, np.arange(start, start + len(places))))
                start += len(places)
        return found
