"""Linear SVMs, one per class: L2-regularised hinge loss with a regularised bias (paper 4.2; spp_train.m:43-45).

With features x already scaled, the objective of a class is

    0.5 |w|^2 + 0.5 (b / bias)^2 + C (positive_weight * sum of hinge over positives + sum of hinge over negatives)

which is what liblinear's ``-s 3 -B bias -w1 positive_weight`` minimises: the bias is the weight of a feature of value
``bias``.

Two solvers find the same minimum. Vectors are much longer than a class has examples, and the dual sees them only
through their products: with the Gram matrix at hand a step of coordinate descent (Hsieh et al. 2008, which liblinear
does on the vectors) touches N numbers instead of ``dim``, and needs a sixth of the memory.
"""

from __future__ import annotations

import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from pipeline.compiled import compiled
from pipeline.products import one_thread


@dataclass(frozen=True)
class SvmProblem:
    """The constants of the objective."""

    C: float = 1e-3
    positive_weight: float = 2.0
    bias: float = 10.0


@dataclass(frozen=True)
class Objective:
    """The objective's three parts, C and the positive weight included."""

    positive: float
    negative: float
    regulariser: float

    @property
    def total(self) -> float:
        """What training makes small."""
        return self.positive + self.negative + self.regulariser


@dataclass(frozen=True)
class SvmFit:
    """A trained SVM: ``weight`` float64 (dim,), ``bias``, the scores (N,) of its examples, and how it was found."""

    weight: NDArray[np.float64]
    bias: float
    scores: NDArray[np.float64]
    objective: Objective
    iterations: int
    converged: bool


class SvmSolver(Protocol):
    """What trains one SVM. ``dtype``: the type of the features that it takes without copying them."""

    dtype: ClassVar[type]

    def fit(self, features: NDArray[np.floating], positive: NDArray[np.bool_], problem: SvmProblem) -> SvmFit:
        """Train on scaled features (N, dim), C-contiguous, of which ``positive`` (N,) says the class.

        Raises ValueError unless there are examples of both kinds.
        """
        ...

    def most_rows(self, memory: int, dim: int) -> int:
        """How many examples can be trained on with so many bytes."""
        ...

    def bytes_needed(self, rows: int, dim: int) -> int:
        """Memory that a fit takes at its highest, the features included."""
        ...


@dataclass(frozen=True)
class GramSolver:
    """Coordinate descent on the dual, over the Gram matrix. ``tolerance``: relative gap to the minimum, at most."""

    dtype: ClassVar[type] = np.float32
    tolerance: float = 1e-4
    max_iterations: int = 10_000
    seed: int = 0

    def fit(self, features: NDArray[np.floating], positive: NDArray[np.bool_], problem: SvmProblem) -> SvmFit:
        _check_kinds(positive)
        with one_thread():
            gram = features @ features.T
            if not np.isfinite(np.einsum("ii->i", gram)).all():
                raise ValueError("features must be finite, and their squares too")
            gram += np.float32(problem.bias**2)
            signs = np.where(positive, 1.0, -1.0)
            most = np.where(positive, problem.C * problem.positive_weight, problem.C)
            alphas, iterations = _descend(gram, signs, most, self.tolerance, self.max_iterations, self.seed)
            coefficients = alphas * signs
            weight = (coefficients.astype(features.dtype) @ features).astype(np.float64)
            bias = problem.bias**2 * float(coefficients.sum())
            scores = (features @ weight.astype(features.dtype)).astype(np.float64) + bias
            parts = objective(weight, bias, scores, positive, problem)
        return SvmFit(weight, bias, scores, parts, iterations, iterations < self.max_iterations)

    def most_rows(self, memory: int, dim: int) -> int:
        return int(((dim + 1) ** 2 + memory) ** 0.5 - (dim + 1)) // 2  # of 4 n (dim + 1) + 4 n n

    def bytes_needed(self, rows: int, dim: int) -> int:
        return 4 * rows * (dim + 1 + rows)  # the features and the Gram matrix


def solve_products(
    gram: NDArray[np.float32],
    positive: NDArray[np.bool_],
    problem: SvmProblem,
    *,
    used: NDArray[np.bool_] | None = None,
    tolerance: float = 1e-4,
    max_iterations: int = 10_000,
    seed: int = 0,
    threads: int = 1,
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """The SVMs of K classes that share their N examples, from the products of these alone.

    Parameters
    ----------
    gram : float32 (N, N), C-contiguous, the products of the (scaled) examples without the bias's.
    positive : (N, K).
    used : (N, K), the examples of each class; by default all. Of the others the coefficient is 0.
    threads : classes that are solved at once.

    Returns
    -------
    Coefficients float64 (N, K), with which the score of an image x is ``coefficients.T @ (products of x with the
    examples + bias^2)``; and the sweeps of each class, ``max_iterations`` for one that did not converge.

    Raises ValueError unless each class has examples of both kinds.
    """
    used = np.ones_like(positive) if used is None else used
    for column, kept in zip(positive.T, used.T, strict=True):
        _check_kinds(column[kept])
    biased = gram + np.float32(problem.bias**2)

    def solve(column: NDArray[np.bool_], kept: NDArray[np.bool_]) -> tuple[NDArray[np.float64], int]:
        signs = np.where(column, 1.0, -1.0)
        bound: NDArray[np.float64] = np.where(column, problem.C * problem.positive_weight, problem.C)
        most = kept * bound
        alphas, sweeps = _descend(biased, signs, most, tolerance, max_iterations, seed)
        return alphas * signs, sweeps

    with ThreadPoolExecutor(threads) as workers:
        solved = list(workers.map(solve, positive.T, used.T))
    return np.stack([coefficients for coefficients, _ in solved], axis=1), np.array([sweeps for _, sweeps in solved])


@dataclass(frozen=True)
class LinearSvcSolver:
    """scikit-learn's LinearSVC: liblinear's dual coordinate descent, as in Fast R-CNN's train_svms.py:205-208."""

    dtype: ClassVar[type] = np.float64
    tolerance: float = 1e-4
    max_iterations: int = 10_000
    seed: int = 0

    def fit(self, features: NDArray[np.floating], positive: NDArray[np.bool_], problem: SvmProblem) -> SvmFit:
        from sklearn.exceptions import ConvergenceWarning  # seconds, which the other solver does without
        from sklearn.svm import LinearSVC

        _check_kinds(positive)
        svc = LinearSVC(
            C=problem.C,
            loss="hinge",
            dual=True,
            class_weight={True: problem.positive_weight, False: 1.0},
            intercept_scaling=problem.bias,
            tol=self.tolerance,
            max_iter=self.max_iterations,
            random_state=self.seed,
        )
        with warnings.catch_warnings(), one_thread():  # liblinear takes its products of vectors from SciPy's BLAS
            warnings.simplefilter("ignore", ConvergenceWarning)  # told by ``converged``
            svc.fit(features, positive)
            weight, bias = svc.coef_[0], float(svc.intercept_[0])
            scores = features @ weight + bias
            iterations = int(np.max(svc.n_iter_))
            parts = objective(weight, bias, scores, positive, problem)
        return SvmFit(weight, bias, scores, parts, iterations, iterations < self.max_iterations)

    def most_rows(self, memory: int, dim: int) -> int:
        return memory // self.bytes_needed(1, dim)

    def bytes_needed(self, rows: int, dim: int) -> int:
        return 24 * rows * (dim + 1)  # float64, and liblinear's copy: an index and a float64 in 16 bytes


def objective(
    weight: NDArray[np.floating],
    bias: float,
    scores: NDArray[np.floating],
    positive: NDArray[np.bool_],
    problem: SvmProblem,
) -> Objective:
    """The objective of an SVM on examples with these ``scores`` (N,) and classes ``positive`` (N,)."""
    regulariser = 0.5 * (float(np.dot(weight, weight)) + (bias / problem.bias) ** 2)
    return Objective(
        problem.C * problem.positive_weight * float(np.maximum(0, 1 - scores[positive]).sum()),
        problem.C * float(np.maximum(0, 1 + scores[~positive]).sum()),
        regulariser,
    )


def _check_kinds(positive: NDArray[np.bool_]) -> None:
    if positive.all() or not positive.any():
        raise ValueError(f"an SVM needs examples of both kinds, not {positive.sum()} positives of {len(positive)}")


_SWEEPS_BETWEEN_CHECKS = 5


@compiled(fastmath=True)
def _descend(
    gram: NDArray[np.float32],
    signs: NDArray[np.float64],
    most: NDArray[np.float64],
    tolerance: float,
    max_iterations: int,
    seed: int,
) -> tuple[NDArray[np.float64], int]:
    """Dual variables (N,) in [0, most], and sweeps done, for the Gram matrix float32 (N, N), bias feature included.

    Ends when the primal objective of the scores exceeds the dual one by no more than ``tolerance`` of itself.
    """
    count = len(signs)
    alphas = np.zeros(count)
    scores = np.zeros(count, np.float32)
    np.random.seed(seed)  # of compiled code, not of NumPy
    sweeps = 0
    while sweeps < max_iterations:
        for i in np.random.permutation(count):
            gradient = signs[i] * scores[i] - 1.0
            if (alphas[i] <= 0.0 and gradient >= 0.0) or (alphas[i] >= most[i] and gradient <= 0.0):
                continue
            new = min(max(alphas[i] - gradient / gram[i, i], 0.0), most[i])
            change = np.float32((new - alphas[i]) * signs[i])
            alphas[i] = new
            row = gram[i]
            for j in range(count):
                scores[j] += change * row[j]
        sweeps += 1
        if sweeps % _SWEEPS_BETWEEN_CHECKS == 0:
            scores[:] = 0.0  # anew: many small changes in float32 have drifted
            for i in range(count):
                if alphas[i] > 0.0:
                    change = np.float32(alphas[i] * signs[i])
                    row = gram[i]
                    for j in range(count):
                        scores[j] += change * row[j]
            squared = 0.0
            loss = 0.0
            total = 0.0
            for i in range(count):
                squared += alphas[i] * signs[i] * scores[i]
                loss += most[i] * max(0.0, 1.0 - signs[i] * scores[i])
                total += alphas[i]
            primal = 0.5 * squared + loss
            if primal - (total - 0.5 * squared) <= tolerance * primal:
                break
    return alphas, sweeps
