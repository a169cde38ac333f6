"""The dual of a linear SVM with a regularised bias, solved over the products of its examples.

    minimise 0.5 |sum a_i y_i x_i|^2 + 0.5 bias^2 (sum a_i y_i)^2 - sum a_i    over 0 <= a_i <= most_i

It begins with coordinate descent (Hsieh et al. 2008, algorithm 1, which liblinear uses): one variable after another, in
a new order in each sweep, goes to where it is best. Scores are kept in float64 throughout: in float32 many small
changes drift until no sweep comes nearer.

Where classes overlap, many variables end inside their bounds, and sweeps come nearer ever more slowly. So all that are
inside move together between some sweeps, by conjugate gradients over their face of the box, to where the objective is
lowest along the way (Moré and Toraldo 1991, "On the solution of large quadratic programming problems with bound
constraints"). Sweeps find the face, and conjugate gradients the place on it.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.compiled import compiled


class Variables(NamedTuple):
    """Of the dual, (N,) each: the ``signs`` of the examples, 1 or -1, bounds, and the variables, in [0, ``most``]."""

    signs: NDArray[np.float64]
    most: NDArray[np.float64]
    alphas: NDArray[np.float64]


class Stop(NamedTuple):
    """When a descent ends: at a gap of ``tolerance``, or after ``max_sweeps``. ``seed``: of their orders.

    ``objective``: of the dual, what the tolerance is relative to; 0: as it is at the time.
    """

    tolerance: float
    max_sweeps: int
    seed: int
    objective: float = 0.0


_IN_ORDER = {"nsz", "contract"}
"""Sums in any order gave other last digits compiled now than kept from an earlier process."""

_SWEEPS_BETWEEN = 5
"""Sweeps before the gap is looked at, and the face searched."""

_MOST_STEPS = 100
"""Of conjugate gradients in one search."""

_MOST_OUTSIDE = 0.05
"""Of the variables of a face, those that a search may push over their bounds before it ends: the face is not yet right,
and what is beyond is cut off."""

_RESIDUAL = 0.1
"""What a search leaves of the gradient before it ends."""


@compiled(fastmath=_IN_ORDER)
def _add_up(
    products: NDArray[np.float32],
    offset: float,
    rows: NDArray[np.int64],
    factors: NDArray[np.float64],
    sums: NDArray[np.float64],
) -> None:
    """``sums = factors @ (products[rows] + offset)``, four rows in one pass over the sums."""
    count, taken = len(sums), len(rows)
    total = 0.0
    for k in range(taken):
        total += factors[k]
    for j in range(count):
        sums[j] = offset * total
    whole = taken - taken % 4
    for k in range(0, whole, 4):
        a, b, c, d = products[rows[k]], products[rows[k + 1]], products[rows[k + 2]], products[rows[k + 3]]
        e, f, g, h = factors[k], factors[k + 1], factors[k + 2], factors[k + 3]
        for j in range(count):
            sums[j] += e * a[j] + f * b[j] + g * c[j] + h * d[j]
    for k in range(whole, taken):
        a, e = products[rows[k]], factors[k]
        for j in range(count):
            sums[j] += e * a[j]


@compiled(fastmath=_IN_ORDER)
def _face_step(products: NDArray[np.float32], offset: float, variables: Variables, scores: NDArray[np.float64]) -> None:
    """Move the variables that are inside their bounds together; they and the ``scores`` (N,) change in place."""
    signs, most, alphas = variables
    total = len(alphas)
    inside = np.empty(total, np.int64)
    count = 0
    for i in range(total):
        if 0.0 < alphas[i] < most[i]:
            inside[count] = i
            count += 1
    if count < 2:
        return
    inside = inside[:count]
    step, residual, way, change = np.zeros(count), np.empty(count), np.empty(count), np.empty(count)
    sums = np.empty(total)
    square = 0.0
    for k in range(count):
        i = inside[k]
        residual[k] = way[k] = signs[i] * (1.0 - signs[i] * scores[i])  # all of these with the examples' signs
        square += residual[k] * residual[k]
    first = square
    for _ in range(_MOST_STEPS):
        _add_up(products, offset, inside, way, sums)
        curvature = 0.0
        for k in range(count):
            curvature += way[k] * sums[inside[k]]
        if curvature <= 1e-14 * square:
            break
        length, last, square, outside = square / curvature, square, 0.0, 0
        for k in range(count):
            i = inside[k]
            step[k] += length * way[k]
            residual[k] -= length * sums[i]
            square += residual[k] * residual[k]
            reached = alphas[i] + signs[i] * step[k]
            outside += reached < 0.0 or reached > most[i]
        if outside > _MOST_OUTSIDE * count or square <= _RESIDUAL**2 * first:
            break
        for k in range(count):
            way[k] = residual[k] + (square / last) * way[k]
    for _ in range(12):  # shorter until it is one downwards, cut off at the bounds
        for k in range(count):
            i = inside[k]
            change[k] = signs[i] * (min(max(alphas[i] + signs[i] * step[k], 0.0), most[i]) - alphas[i])
            step[k] *= 0.5
        _add_up(products, offset, inside, change, sums)
        lower = 0.0
        for k in range(count):
            i = inside[k]
            lower += change[k] * (scores[i] - signs[i] + 0.5 * sums[i])
        if lower < 0.0:
            for k in range(count):
                i = inside[k]
                alphas[i] = min(max(alphas[i] + signs[i] * change[k], 0.0), most[i])
            for j in range(total):
                scores[j] += sums[j]
            return


@compiled(fastmath=_IN_ORDER)
def gap_of(variables: Variables, scores: NDArray[np.float64]) -> float:
    """By how much the primal objective exceeds the dual one for these variables, whose ``scores`` (N,) are given: a sum
    over them, to which none contributes that is where it is best."""
    signs, most, alphas = variables
    total = 0.0
    for i in range(len(signs)):
        short = 1.0 - signs[i] * scores[i]
        total += most[i] * max(0.0, short) - alphas[i] * short
    return total


@compiled(fastmath=_IN_ORDER)
def dual_of(variables: Variables, scores: NDArray[np.float64]) -> float:
    """The dual objective (to be made large) of all variables of a problem, from their ``scores`` (N,)."""
    signs, _, alphas = variables
    total = 0.0
    for i in range(len(signs)):
        total += alphas[i] * (1.0 - 0.5 * signs[i] * scores[i])
    return total


@compiled(fastmath=_IN_ORDER)
def _near_enough(variables: Variables, scores: NDArray[np.float64], stop: Stop) -> bool:
    objective = stop.objective if stop.objective > 0.0 else dual_of(variables, scores)
    return objective > 0.0 and gap_of(variables, scores) <= stop.tolerance * objective


@compiled(fastmath=_IN_ORDER)
def descend_products(
    products: NDArray[np.float32], offset: float, variables: Variables, scores: NDArray[np.float64], stop: Stop
) -> int:
    """Solve over the Gram matrix float32 (N, N), to each of whose numbers ``offset`` (bias^2) belongs; sweeps done.

    The variables, and their ``scores`` (N,), are where it begins, and change in place. The scores may hold what other
    variables give, which stay as they are.
    """
    signs, most, alphas = variables
    count = len(signs)
    np.random.seed(stop.seed)  # of compiled code, not of NumPy
    sweeps = 0
    while sweeps < stop.max_sweeps and not _near_enough(variables, scores, stop):
        if sweeps:
            _face_step(products, offset, variables, scores)
        for _ in range(min(_SWEEPS_BETWEEN, stop.max_sweeps - sweeps)):
            for i in np.random.permutation(count):
                gradient = signs[i] * scores[i] - 1.0
                if (alphas[i] <= 0.0 and gradient >= 0.0) or (alphas[i] >= most[i] and gradient <= 0.0):
                    continue
                new = min(max(alphas[i] - gradient / (products[i, i] + offset), 0.0), most[i])
                change = (new - alphas[i]) * signs[i]
                if change == 0.0:
                    continue
                alphas[i] = new
                row, shift = products[i], change * offset
                for j in range(count):
                    scores[j] += change * row[j] + shift
            sweeps += 1
    return sweeps
