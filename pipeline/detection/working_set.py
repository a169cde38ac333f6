"""The dual of an SVM of many examples: sweeps over these find which variables matter, their products do the rest.

Of many examples most end pressed against a bound, the easy ones at 0, the hopeless ones at C, and few are left. So it
goes in turns (working sets: Osuna, Freund and Girosi 1997; Joachims 1999). All examples are scored; those whose
variables are not pressed against a bound, and those that were in the set before, are solved for over their products
(``pipeline.detection.dual``), while the others stay where they are; until the gap over all of them is small. While the
set is too large, at the beginning, it is coordinate descent over the examples themselves, which leaves out what is
pressed against a bound (shrinking: Hsieh et al. 2008, 3.3, without its threshold: all are looked at again each turn).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.compiled import compiled
from pipeline.detection.dual import Stop, Variables, descend_products, dual_of, gap_of
from pipeline.detection.gram import gram


class Examples(NamedTuple):
    """``features`` float32 (N, dim), C-contiguous, squared ``lengths`` (N,), and the value of the bias feature."""

    features: NDArray[np.float32]
    lengths: NDArray[np.float64]
    bias: float


_FAST = {"reassoc", "contract", "nsz", "arcp"}
"""Of the products of long vectors: sums in any order; but infinities are what they are."""

_REST = 0.3
"""The range of gradients at which the first sweeps over examples end; smaller later, as the gap says."""

_MOST_SWEEPS = 30
"""Over examples, until all are looked at again."""

_NEAR = 3e-3
"""The gap from which on working sets are solved for: the right variables are inside, and few others. Before, they are
where sweeps come to nothing."""

_SLOWLY = 0.5
"""Of the last gap: what a turn must leave at most."""

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
    examples: Examples, variables: Variables, weight: NDArray[np.float64], until: tuple[float, int], seed: int
) -> int:
    """Sweeps over those that no sweep has found pressed against a bound; how many.

    ``until``: their gradients lie within such a range, or so many sweeps are done.
    """
    features, lengths, bias = examples
    count, dim = features.shape
    signs, most, alphas = variables
    rest, max_sweeps = until
    np.random.seed(seed)  # of compiled code, not of NumPy
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


def descend_examples(
    examples: Examples,
    variables: Variables,
    weight: NDArray[np.float64],
    scores: NDArray[np.float64],
    stop: Stop,
    most_in_set: int,
) -> int:
    """Solve over the examples; sweeps done.

    The variables, and what they give, the ``weight`` (dim + 1,), the bias feature's the last, and the ``scores`` (N,),
    change in place. ``most_in_set``: how many examples a working set may have.
    """
    in_set, last = np.zeros(len(scores), np.bool_), np.inf
    rest, share, sweeps = _REST, _SHARE, 0
    while True:
        objective, gap = dual_of(variables, scores), gap_of(variables, scores)
        if (objective > 0.0 and gap <= stop.tolerance * objective) or sweeps >= stop.max_sweeps:
            return sweeps
        left, done, slow = stop.max_sweeps - sweeps, 0, gap > _SLOWLY * last
        if objective > 0.0 and (slow or gap <= _NEAR * objective):
            inside = _inside(variables, scores)
            if slow:  # what one set makes good another one spoils: both together
                inside |= in_set
                share *= 0.5
            in_set = inside if np.count_nonzero(inside) <= most_in_set else np.zeros_like(inside)
            if in_set.any():
                within = Stop(share * stop.tolerance, left, stop.seed, objective)
                done = _descend_within(np.flatnonzero(in_set), examples, variables, weight, scores, within)
        last = gap
        if not done:
            if sweeps and objective > 0.0:
                rest *= min(0.5, max(0.01, 5.0 * stop.tolerance * objective / gap))
            until = (rest, min(_MOST_SWEEPS, left))
            done = _sweep(examples, variables, weight, until, stop.seed + sweeps)
        sweeps += done
        score(examples.features, weight[:-1], examples.bias * float(weight[-1]), scores)


def _descend_within(
    rows: NDArray[np.int64],
    examples: Examples,
    variables: Variables,
    weight: NDArray[np.float64],
    scores: NDArray[np.float64],
    stop: Stop,
) -> int:
    """Solve for the variables of some ``rows`` alone, over their products; sweeps done. Scores stay as they were."""
    features, _, bias = examples
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
