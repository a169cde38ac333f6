"""The dual of a linear SVM with a regularised bias, solved over the products of its examples or over these themselves.

    minimise 0.5 |sum a_i y_i x_i|^2 + 0.5 bias^2 (sum a_i y_i)^2 - sum a_i    over 0 <= a_i <= most_i

Both begin with coordinate descent (Hsieh et al. 2008, algorithm 1, which liblinear uses): one variable after another,
in a new order in each sweep, goes to where it is best. Scores are kept in float64 throughout: in float32 many small
changes drift until no sweep comes nearer.

Where classes overlap, many variables end inside their bounds, and sweeps come nearer ever more slowly. Over products,
where a step is cheap, all that are inside move together between some sweeps, by conjugate gradients over their face of
the box, to where the objective is lowest along the way (Moré and Toraldo 1991, "On the solution of large quadratic
programming problems with bound constraints"). Sweeps find the face, and conjugate gradients the place on it.
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
    """When a descent ends: at a relative gap of ``tolerance``, or after ``max_sweeps``. ``seed``: of their orders."""

    tolerance: float
    max_sweeps: int
    seed: int


_FAST = {"reassoc", "contract", "nsz", "arcp"}
"""Of the products of long vectors: sums in any order; but infinities are what they are."""

_IN_ORDER = {"nsz", "contract"}
"""Of all else: what is compiled now and what was kept from an earlier process otherwise gave other last digits."""

_SWEEPS_BETWEEN = 5
"""Sweeps before the gap is looked at, and the face searched."""

_REST = 0.3
"""The range of gradients at which the first sweeps over examples end; smaller later, as the gap says."""

_MOST_SWEEPS = 30
"""Over examples, until all are looked at again."""

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
def _gap(variables: Variables, scores: NDArray[np.float64]) -> float:
    """By how much the primal objective of the scores exceeds the dual one, relative to the dual one."""
    signs, most, alphas = variables
    squared = loss = total = 0.0
    for i in range(len(signs)):
        squared += alphas[i] * signs[i] * scores[i]
        loss += most[i] * max(0.0, 1.0 - signs[i] * scores[i])
        total += alphas[i]
    dual = total - 0.5 * squared
    return (0.5 * squared + loss - dual) / dual if dual > 0.0 else np.inf


@compiled(fastmath=_IN_ORDER)
def descend_products(
    products: NDArray[np.float32], offset: float, variables: Variables, scores: NDArray[np.float64], stop: Stop
) -> int:
    """Solve over the Gram matrix float32 (N, N), to each of whose numbers ``offset`` (bias^2) belongs; sweeps done.

    The variables, and the ``scores`` (N,) that they give, are where it begins, and change in place.
    """
    signs, most, alphas = variables
    count = len(signs)
    np.random.seed(stop.seed)  # of compiled code, not of NumPy
    sweeps = 0
    while sweeps < stop.max_sweeps and not _gap(variables, scores) <= stop.tolerance:
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


@compiled(fastmath=_FAST)
def weigh(features: NDArray[np.float32], coefficients: NDArray[np.float64], weight: NDArray[np.float64]) -> None:
    """``weight`` (dim,) becomes ``coefficients @ features``, of examples float32 (N, dim), in float64."""
    weight[:] = 0.0
    for i in range(len(features)):
        factor, row = coefficients[i], features[i]
        if factor != 0.0:
            for j in range(len(weight)):
                weight[j] += factor * row[j]


@compiled(fastmath=_FAST)
def score(features: NDArray[np.float32], weight: NDArray[np.float64], bias: float, scores: NDArray[np.float64]) -> None:
    """``scores`` (N,) become ``features @ weight + bias``, in float64."""
    for i in range(len(features)):
        total, row = 0.0, features[i]
        for j in range(len(weight)):
            total += row[j] * weight[j]
        scores[i] = total + bias


@compiled(fastmath=_FAST)
def squares(features: NDArray[np.float32]) -> NDArray[np.float64]:
    """The squared length of each example, (N,), in float64."""
    found = np.empty(len(features))
    for i in range(len(features)):
        total, row = 0.0, features[i]
        for j in range(len(row)):
            total += np.float64(row[j]) * row[j]
        found[i] = total
    return found


@compiled(fastmath=_FAST)
def _sweep(
    features: NDArray[np.float32],
    lengths: NDArray[np.float64],
    bias: float,
    variables: Variables,
    weight: NDArray[np.float64],
    until: tuple[float, int],
) -> int:
    """Sweeps over those that no sweep has found pressed against a bound; how many.

    ``until``: their gradients lie within such a range, or so many sweeps are done.
    """
    count, dim = features.shape
    signs, most, alphas = variables
    rest, max_sweeps = until
    active, sweeps = np.arange(count), 0
    while sweeps < max_sweeps:
        highest, lowest, kept = -np.inf, np.inf, 0
        for place in np.random.permutation(len(active)):
            i = active[place]
            row, total = features[i], bias * weight[dim]
            for j in range(dim):
                total += row[j] * weight[j]
            gradient = signs[i] * total - 1.0
            if (alphas[i] <= 0.0 and gradient >= 0.0) or (alphas[i] >= most[i] and gradient <= 0.0):
                active[place] = -1
                continue
            kept += 1
            highest, lowest = max(highest, gradient), min(lowest, gradient)
            new = min(max(alphas[i] - gradient / (lengths[i] + bias * bias), 0.0), most[i])
            change = (new - alphas[i]) * signs[i]
            alphas[i] = new
            for j in range(dim):
                weight[j] += change * row[j]
            weight[dim] += change * bias
        sweeps += 1
        left = np.empty(kept, np.int64)
        kept = 0
        for i in active:
            if i >= 0:
                left[kept] = i
                kept += 1
        active = left
        if not kept or highest - lowest <= rest:
            break
    return sweeps


@compiled(fastmath=_FAST)
def descend_examples(
    features: NDArray[np.float32], bias: float, variables: Variables, weight: NDArray[np.float64], stop: Stop
) -> int:
    """Solve over the examples float32 (N, dim) themselves; sweeps done.

    The variables, and the ``weight`` (dim + 1,) that they give, the bias feature's the last, change in place. Variables
    at a bound that they are pressed against are left out until the others are at rest (shrinking: Hsieh et al. 2008,
    3.3, without its threshold: all are looked at again before the end).
    """
    dim, scores, lengths = features.shape[1], np.empty(len(features)), squares(features)
    np.random.seed(stop.seed)  # of compiled code, not of NumPy
    rest, sweeps = _REST, 0
    while True:
        score(features, weight[:dim], bias * float(weight[dim]), scores)
        gap = _gap(variables, scores)
        if gap <= stop.tolerance or sweeps >= stop.max_sweeps:
            return sweeps
        if sweeps:
            rest *= min(0.5, max(0.01, 5.0 * stop.tolerance / gap))
        most_now = min(_MOST_SWEEPS, stop.max_sweeps - sweeps)
        sweeps += _sweep(features, lengths, bias, variables, weight, (rest, most_now))
