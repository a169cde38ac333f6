"""The task of train-svm that trains: one class, on examples that lie in the object store."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import ray
from numpy.typing import NDArray

from pipeline.detection.svm import SvmProblem, SvmSolver

Places = NDArray[np.int64]

Blocks = Sequence[tuple[ray.ObjectRef, Places, Places]]
"""Where vectors are: a block float16 (n, dim), places in it, and which of the examples these are."""


@dataclass(frozen=True, kw_only=True)
class ClassFit:
    """What a fit gave: weight float32 (dim,), bias, the scores of the negatives, and what is kept of its history.

    ``coefficients`` (N,), positives first, each a sum of two float32 numbers; None of a solver that has none to give.
    ``gap``: how far the objective is from its minimum, relatively, at most; None where the solver cannot say.
    """

    weight: NDArray[np.float32]
    bias: float
    scores: NDArray[np.float64]
    coefficients: NDArray[np.float64] | None
    loss_positive: float
    loss_negative: float
    regulariser: float
    iterations: int
    gap: float | None
    converged: bool


@dataclass(frozen=True)
class Examples:
    """The examples of a class: the first ``positives`` of ``count`` are; where their vectors of ``dim`` numbers are.

    They are multiplied by ``scale``.
    """

    positives: int
    count: int
    dim: int
    scale: float
    blocks: Blocks

    def features(self, dtype: type) -> NDArray[Any]:
        """Their scaled vectors (count, dim)."""
        found: NDArray[Any] = np.empty((self.count, self.dim), dtype)
        for ref, places, numbers in self.blocks:
            found[numbers] = ray.get(ref)[places]
        found *= self.scale
        return found


def fit(solver: SvmSolver, problem: SvmProblem, examples: Examples, start: NDArray[np.float64] | None) -> ClassFit:
    """Train one class. ``start`` (count,): coefficients to begin from."""
    positive = np.arange(examples.count) < examples.positives
    found = solver.fit(examples.features(solver.dtype), positive, problem, start)
    return ClassFit(
        weight=found.weight.astype(np.float32),
        bias=found.bias,
        scores=found.scores[examples.positives :],
        coefficients=found.coefficients,
        loss_positive=found.objective.positive,
        loss_negative=found.objective.negative,
        regulariser=found.objective.regulariser,
        iterations=found.iterations,
        gap=found.gap,
        converged=found.converged,
    )
