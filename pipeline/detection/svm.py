"""Linear SVMs, one per class: L2-regularised hinge loss with a regularised bias (paper 4.2; spp_train.m:43-45).

With features x already scaled, the objective of a class is

    0.5 |w|^2 + 0.5 (b / bias)^2 + C (positive_weight * sum of hinge over positives + sum of hinge over negatives)

which is what liblinear's ``-s 3 -B bias -w1 positive_weight`` minimises: the bias is the weight of a feature of value
``bias``.

Two solvers find the same minimum. Ours begins where an earlier fit ended, and says how near it is: the gap between the
primal and the dual objective, computed in float64 from the examples themselves.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from math import isqrt
from typing import ClassVar, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from pipeline.detection.dual import Stop, Variables, descend_products
from pipeline.detection.gram import gram
from pipeline.detection.working_set import Examples, descend_examples, score, squares, weigh
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


@dataclass(frozen=True, kw_only=True)
class SvmFit:
    """A trained SVM: ``weight`` float64 (dim,), ``bias``, the scores (N,) of its examples, and how it was found.

    ``coefficients`` (N,): the dual variables, each a sum of two float32 numbers (``as_two``), from which a later fit
    may begin; None of a solver that has none to give. ``gap``: how far, relatively, the objective is from its minimum,
    at most; None of a solver that cannot say. ``iterations``: sweeps.
    """

    weight: NDArray[np.float64]
    bias: float
    scores: NDArray[np.float64]
    objective: Objective
    iterations: int
    gap: float | None
    converged: bool
    coefficients: NDArray[np.float64] | None = None


class SvmSolver(Protocol):
    """What trains one SVM. ``dtype``: the type of the features that it takes without copying them."""

    dtype: ClassVar[type]

    def fit(
        self,
        features: NDArray[np.floating],
        positive: NDArray[np.bool_],
        problem: SvmProblem,
        start: NDArray[np.float64] | None = None,
    ) -> SvmFit:
        """Train on scaled features (N, dim), C-contiguous, of which ``positive`` (N,) says the class.

        ``start`` (N,): the coefficients of an earlier fit, 0 of examples that it had not; where they help.
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
class DualSolver:
    """Descent on the dual: over the products of examples where these are few, else over those of working sets
    (``pipeline.detection.working_set``), in memory that grows with the examples alone.

    ``tolerance``: relative gap to the minimum, at most. ``multiplications``: of the products of all examples, up to
    which these are made: half a second of one core. ``of_a_set``: the same of a working set.
    """

    dtype: ClassVar[type] = np.float32
    tolerance: float = 1e-4
    max_iterations: int = 10_000
    seed: int = 0
    multiplications: int = 4 * 10**10
    of_a_set: int = 3 * 10**11

    def fit(
        self,
        features: NDArray[np.floating],
        positive: NDArray[np.bool_],
        problem: SvmProblem,
        start: NDArray[np.float64] | None = None,
    ) -> SvmFit:
        _check_kinds(positive)
        examples = Examples(features, squares(features), problem.bias)
        if not np.isfinite(examples.lengths).all():
            raise ValueError("features must be finite, and their squares too")
        dim = features.shape[1]
        products = gram(features) if len(features) <= self._most_of_products(dim) else None

        def descend(variables: Variables, svm: _Svm, stop: Stop) -> int:
            if products is not None:
                return descend_products(products, problem.bias**2, variables, svm.scores, stop)
            weight = np.append(svm.weight, svm.bias / problem.bias)
            return descend_examples(examples, variables, weight, svm.scores, stop, self._most_in_set(dim))

        stop = Stop(self.tolerance, self.max_iterations, self.seed)
        return _solved(features, positive, problem, start, descend, stop)

    def most_rows(self, memory: int, dim: int) -> int:
        each, most = dim + _NUMBERS, self._most_in_set(dim)
        if memory >= self.bytes_needed(most, dim):
            return (memory - 4 * most**2) // (4 * each)
        return (isqrt(each**2 + memory) - each) // 2  # of 4 n each + 4 n n

    def bytes_needed(self, rows: int, dim: int) -> int:
        return 4 * rows * (dim + _NUMBERS) + 4 * min(rows, self._most_in_set(dim)) ** 2

    def _most_of_products(self, dim: int) -> int:
        """Up to how many examples are solved over their products: of 2,000 numbers 4,000, of 16,000 numbers 1,581."""
        return min(_MOST_OF_PRODUCTS, isqrt(self.multiplications // dim))

    def _most_in_set(self, dim: int) -> int:
        """How many examples a working set may have: of 16,000 numbers 4,000, of 100,000 numbers 1,732."""
        return min(_MOST_OF_PRODUCTS, isqrt(self.of_a_set // dim))


_NUMBERS = 32
"""Of four bytes, that a fit has of each example beside its features."""

_MOST_OF_PRODUCTS = 4000
"""Examples, whatever their length: 64 MB of products."""


class _Svm(NamedTuple):
    """What coefficients give: weight (dim,) and bias, and the scores (N,) of the examples."""

    weight: NDArray[np.float64]
    bias: float
    scores: NDArray[np.float64]


_CORRECTIONS = 5
"""Times that a descent goes on from exact scores, where those of float32 products called it near enough too early."""


def _solved(
    features: NDArray[np.floating],
    positive: NDArray[np.bool_],
    problem: SvmProblem,
    start: NDArray[np.float64] | None,
    descend: Callable[[Variables, _Svm, Stop], int],
    stop: Stop,
) -> SvmFit:
    """What ``descend`` comes to, which moves the variables and returns its sweeps, measured on the examples."""
    signs = np.where(positive, 1.0, -1.0)
    most: NDArray[np.float64] = np.where(positive, problem.C * problem.positive_weight, problem.C)
    most = most.astype(np.float32).astype(np.float64)  # as coefficients are
    alphas = np.zeros(len(signs)) if start is None else np.clip(start, 0.0, most)
    with one_thread():
        sweeps, wanted = 0, stop.tolerance
        svm = _svm(features, alphas * signs, problem)
        for _ in range(_CORRECTIONS):
            left = stop.max_sweeps - sweeps
            sweeps += descend(Variables(signs, most, alphas), svm, Stop(wanted, left, stop.seed))
            alphas = np.clip(sum_of_two(*as_two(alphas)), 0.0, most)
            svm = _svm(features, alphas * signs, problem)
            parts = objective(svm.weight, svm.bias, svm.scores, positive, problem)
            least = float(alphas.sum()) - parts.regulariser  # the dual objective: no SVM has a lower one
            gap = max(0.0, parts.total - least) / least if least > 0 else np.inf
            if gap <= stop.tolerance or sweeps >= stop.max_sweeps:
                break
            wanted *= 0.5
    return SvmFit(
        weight=svm.weight,
        bias=svm.bias,
        scores=svm.scores,
        objective=parts,
        iterations=sweeps,
        gap=gap,
        converged=gap <= stop.tolerance,
        coefficients=alphas,
    )


def as_two(values: NDArray[np.float64]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """What float32 can hold of some numbers, and of what that leaves."""
    first = values.astype(np.float32)
    return first, (values - first).astype(np.float32)


def sum_of_two(first: NDArray[np.float32], second: NDArray[np.float32]) -> NDArray[np.float64]:
    """The numbers of which ``as_two`` made these, as far as both hold them."""
    return first.astype(np.float64) + second


def _svm(features: NDArray[np.floating], coefficients: NDArray[np.float64], problem: SvmProblem) -> _Svm:
    """The SVM of coefficients (N,) with signs."""
    weight, scores = np.empty(features.shape[1]), np.empty(len(features))
    weigh(features, coefficients, weight)
    bias = problem.bias**2 * float(coefficients.sum())
    score(features, weight, bias, scores)
    return _Svm(weight, bias, scores)


def solve_products(
    products: NDArray[np.float32],
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
    products : float32 (N, N), C-contiguous, those of the (scaled) examples without the bias's.
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

    def solve(column: NDArray[np.bool_], kept: NDArray[np.bool_]) -> tuple[NDArray[np.float64], int]:
        signs = np.where(column, 1.0, -1.0)
        bound: NDArray[np.float64] = np.where(column, problem.C * problem.positive_weight, problem.C)
        alphas, scores = np.zeros(len(signs)), np.zeros(len(signs))
        variables, stop = Variables(signs, kept * bound, alphas), Stop(tolerance, max_iterations, seed)
        sweeps = descend_products(products, problem.bias**2, variables, scores, stop)
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

    def fit(
        self,
        features: NDArray[np.floating],
        positive: NDArray[np.bool_],
        problem: SvmProblem,
        start: NDArray[np.float64] | None = None,
    ) -> SvmFit:
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
        return SvmFit(
            weight=weight,
            bias=bias,
            scores=scores,
            objective=parts,
            iterations=iterations,
            gap=None,
            converged=iterations < self.max_iterations,
        )

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
