"""The dual of an SVM of many examples: sweeps over these find which variables matter, their products do the rest.

Of many examples most end pressed against a bound, the easy ones at 0, the hopeless ones at C, and few are left. So it
goes in turns (working sets: Osuna, Freund and Girosi 1997; Joachims 1999). All examples are scored; those whose
variables are not pressed against a bound, and those that were in the set before, are solved for over their products
(``pipeline.detection.dual``), while the others stay where they are; until the gap over all of them is small. While the
set is too large, at the beginning, it is coordinate descent over the examples themselves, which leaves out what is
pressed against a bound (shrinking: Hsieh et al. 2008, 3.3, without its threshold: all are looked at again each turn).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pipeline.compiled import compiled
from pipeline.detection.dual import Stop, Variables, descend_products, dual_of, gap_of
from pipeline.detection.gram import gram

_FAST = {"reassoc", "contract", "nsz", "arcp"}
"""Of the products of long vectors: sums in any order; but infinities are what they are."""

_REST = 0.3
"""The range of gradients at which the first sweeps over examples end; smaller later, as the gap says."""

_MOST_SWEEPS = 30
"""Over examples, until all are looked at again."""

_SHARE = 0.3
"""Of the gap that is asked for: what a working set may leave of it; the rest is for the others."""


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


@compiled()
def _inside(variables: Variables, scores: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Which variables are not pressed against a bound, (N,)."""
    signs, most, alphas = variables
    found = np.empty(len(signs), np.bool_)
    for i in range(len(signs)):
        gradient = signs[i] * scores[i] - 1.0
        pressed = (alphas[i] <= 0.0 and gradient >= 0.0) or (alphas[i] >= most[i] and gradient <= 0.0)
        found[i] = not pressed
    return found


@compiled(fastmath=_FAST)
def _swept(
    features: NDArray[np.float32],
    lengths: NDArray[np.float64],
    bias: float,
    variables: Variables,
    weight: NDArray[np.float64],
    until: tuple[float, int],
    seed: int,
) -> int:
    """``_sweep``, in an order that the seed gives."""
    np.random.seed(seed)  # of compiled code, not of NumPy
    return _sweep(features, lengths, bias, variables, weight, until)


def descend_examples(
    features: NDArray[np.float32],
    bias: float,
    variables: Variables,
    weight: NDArray[np.float64],
    stop: Stop,
    most_in_set: int,
) -> int:
    """Solve over the examples float32 (N, dim); sweeps done.

    The variables, and the ``weight`` (dim + 1,) that they give, the bias feature's the last, change in place.
    ``most_in_set``: how many examples a working set may have.
    """
    dim, scores, lengths = features.shape[1], np.empty(len(features)), squares(features)
    in_set = np.zeros(len(features), np.bool_)
    rest, share, sweeps = _REST, _SHARE, 0
    while True:
        score(features, weight[:dim], bias * float(weight[dim]), scores)
        objective, gap = dual_of(variables, scores), gap_of(variables, scores)
        if (objective > 0.0 and gap <= stop.tolerance * objective) or sweeps >= stop.max_sweeps:
            return sweeps
        left = stop.max_sweeps - sweeps
        inside = _inside(variables, scores)
        if np.count_nonzero(inside | in_set) > most_in_set:
            in_set[:] = False
        done = 0
        if objective > 0.0 and np.count_nonzero(inside | in_set) <= most_in_set:
            share = share if (inside & ~in_set).any() else 0.5 * share  # the same set again: it was left too early
            in_set |= inside
            within = Stop(share * stop.tolerance, left, stop.seed, objective)
            done = _descend_within(features, bias, variables, scores, weight, np.flatnonzero(in_set), within)
        if not done:
            if sweeps and objective > 0.0:
                rest *= min(0.5, max(0.01, 5.0 * stop.tolerance * objective / gap))
            until = (rest, min(_MOST_SWEEPS, left))
            done = _swept(features, lengths, bias, variables, weight, until, stop.seed + sweeps)
        sweeps += done


def _descend_within(
    features: NDArray[np.float32],
    bias: float,
    variables: Variables,
    scores: NDArray[np.float64],
    weight: NDArray[np.float64],
    rows: NDArray[np.int64],
    stop: Stop,
) -> int:
    """Solve for the variables of some ``rows`` alone, over their products; sweeps done. Scores stay as they were."""
    signs, most, alphas = (values[rows] for values in variables)
    before = alphas.copy()
    sweeps = descend_products(gram(features, rows), bias**2, Variables(signs, most, alphas), scores[rows], stop)
    change, moved = np.zeros(len(features)), np.empty(features.shape[1])
    change[rows] = signs * (alphas - before)
    weigh(features, change, moved)
    weight[:-1] += moved
    weight[-1] += bias * change.sum()
    variables.alphas[rows] = alphas
    return int(sweeps)
