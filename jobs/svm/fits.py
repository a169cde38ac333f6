"""The tasks of train-svm that train: the products of examples, and the fit of one class on them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import ray
import torch
from numpy.typing import NDArray

from pipeline.detection.gram import gram
from pipeline.detection.svm import GramSolver, SvmProblem, SvmSolver

Places = NDArray[np.int64]

Blocks = Sequence[tuple[ray.ObjectRef, Places, Places]]
"""Where vectors are: a block float16 (n, dim), places in it, and which of the examples these are."""


@dataclass(frozen=True, kw_only=True)
class ClassFit:
    """What a fit gave: weight float32 (dim,), bias, the scores of the negatives, and what is kept of its history.

    ``coefficients`` (N,), positives first: each is a float32; None of a solver that has none to give. ``gap``: how far
    the objective is from its minimum, relatively, at most; None where the solver cannot say.
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


@dataclass(frozen=True)
class Known:
    """Products that were made before: ``gram`` float32 (M, M), and where in it each example stands, (N,), or -1."""

    gram: ray.ObjectRef
    places: Places


def products(examples: Examples, threads: int) -> NDArray[np.float32]:
    """The products of examples with one another, float32 (count, count)."""
    torch.set_num_threads(threads)
    return gram(examples.features(np.float32))


def fit(
    solver: SvmSolver,
    problem: SvmProblem,
    examples: Examples,
    known: Known | None,
    start: NDArray[np.float64] | None,
    threads: int,
    keep: bool,
) -> tuple[ClassFit, NDArray[np.float32] | None]:
    """Train one class; what came of it, and to ``keep`` the products of its examples if the solver has made them.

    ``start`` (count,): coefficients to begin from. ``threads`` share out the products.
    """
    torch.set_num_threads(threads)
    features = examples.features(solver.dtype)
    positive = np.arange(examples.count) < examples.positives
    made = None
    if isinstance(solver, GramSolver):
        made = gram(features) if known is None else gram(features, ray.get(known.gram), known.places)
        found = solver.fit(features, positive, problem, start, made)
    else:
        found = solver.fit(features, positive, problem, start)
    return (
        ClassFit(
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
        ),
        made if keep else None,
    )
