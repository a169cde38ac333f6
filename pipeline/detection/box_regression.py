"""Box regression: one ridge regression per class, from a window's vector to a better box (R-CNN, appendix C).

A window trains the regressor of the class of its best ground-truth box (``choose``), towards that box in coordinates
relative to the window (``encode``). Constants and rules are those of SPP_net's
bbox_regression/spp_train_bbox_regressor.m. Its lambda is 4000, for vectors scaled to a mean norm of 20; R-CNN's 1000.

Boxes are half-open pixels (``pipeline.boxes``): the sides are ``x2 - x1``, without a "+1". The released code takes the
same difference of inclusive indices, so each of its sides is one pixel shorter.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import LinAlgError, blas, cho_factor, cho_solve

from pipeline.boxes import Boxes, clip, iou
from pipeline.detection.labels import Classes, Mask
from pipeline.products import one_thread

Form = Literal["primal", "dual"]
Float64 = NDArray[np.float64]

LEAST_SIDE = float(np.finfo(np.float64).eps)
"""Pixels; the side of an empty box where one must be divided by (spp_train_bbox_regressor.m:184-199 adds it)."""

LARGEST_LOG = 600.0
"""Limit of a decoded log side: beyond any ratio of two float32 sides, and its exponential is still finite."""

VARIANCE_FLOOR = 1e-3
"""Added to the targets' variances before whitening divides by them (spp_train_bbox_regressor.m:102-110)."""

BLOCK_BYTES = 64 * 2**20
"""Bytes of vectors held in float64 at a time."""

BLAS_BYTES = 64 * 2**20
"""Allowance for the buffers of the BLAS libraries: NumPy and SciPy bring one each (about 20 MB with two threads)."""


class NoExamplesError(ValueError):
    """A class has no window to train its regressor on."""


def encode(boxes: Boxes, targets: Boxes) -> Float64:
    """What turns each box into its target: float64 (N, 4) ``dx, dy, log dw, log dh``.

    Centres move by dx and dy sides of the box, its sides grow by dw and dh (spp_train_bbox_regressor.m:184-199).
    Always finite: an empty or reversed side is a side of ``LEAST_SIDE`` about the same centre.
    """
    from_centre, from_sides = _centres_and_sides(boxes)
    to_centre, to_sides = _centres_and_sides(targets)
    return np.concatenate([(to_centre - from_centre) / from_sides, np.log(to_sides / from_sides)], axis=1)


def decode(boxes: Boxes, deltas: NDArray[np.floating]) -> Boxes:
    """The inverse of ``encode``: ``boxes`` moved by ``deltas`` (N, 4), float32 (N, 4), not clipped to an image.

    Finite deltas give finite boxes, however large: coordinates stop at float32's limits. An empty box moved by small
    deltas stays empty; a reversed one comes out as its centre.
    """
    centre, sides = _centres_and_sides(boxes)
    deltas = np.asarray(deltas, dtype=np.float64)
    with np.errstate(over="ignore"):  # infinity is cut to the limit below
        centre = centre + deltas[:, :2] * sides
    half = sides * np.exp(np.clip(deltas[:, 2:], -LARGEST_LOG, LARGEST_LOG)) / 2
    limit = float(np.finfo(np.float32).max)
    moved: NDArray[np.float32] = np.clip(np.concatenate([centre - half, centre + half], axis=1), -limit, limit).astype(
        np.float32
    )
    return moved


@dataclass(frozen=True, eq=False)
class Examples:
    """Windows that train regressors: K of an image's boxes, in their order.

    ``rows`` (K,) says which boxes, ``classes`` (K,) whose regressor each trains, ``targets`` float32 (K, 4) the
    ground-truth box that it is to become.
    """

    rows: NDArray[np.intp]
    classes: Classes
    targets: Boxes


def choose(
    boxes: Boxes,
    truth: Boxes,
    truth_class: Classes,
    difficult: Mask,
    *,
    above: float = 0.5,
    difficult_positive: bool = False,
) -> Examples:
    """The boxes whose IoU to their best ground-truth box is strictly more than ``above``, each for that box's class.

    The rule is that of spp_train_bbox_regressor.m:90; of equally good ground-truth boxes the first is best. ``boxes``
    (N, 4) are the image's proposals and, as in the released code, its ground-truth boxes, which train standing still.
    ``truth`` (M, 4), ``truth_class`` (M,) and ``difficult`` (M,) are all of the image's ground truth. A box whose best
    is a difficult object trains nothing, unless ``difficult_positive`` (the released code; see ``labels.positives``).

    Raises ValueError when the three descriptions of the ground truth differ in length.
    """
    if not len(truth) == len(truth_class) == len(difficult):
        raise ValueError(
            f"{len(truth)} ground-truth boxes, but {len(truth_class)} classes and {len(difficult)} difficult flags"
        )
    if len(truth) == 0:
        return Examples(np.empty(0, np.intp), np.empty(0, np.asarray(truth_class).dtype), np.empty((0, 4), np.float32))
    overlaps = iou(boxes, truth)
    best = overlaps.argmax(axis=1)
    chosen = overlaps.max(axis=1) > np.float32(above)
    if not difficult_positive:
        chosen &= ~np.asarray(difficult, dtype=bool)[best]
    best = best[chosen]
    return Examples(np.flatnonzero(chosen), np.asarray(truth_class)[best], truth[best])


@dataclass(frozen=True, eq=False)
class Regressor:
    """A class's regressor: of a vector x of length ``dim``, the deltas ``(weights @ x + bias) @ unwhitening + mean``.

    ``weights`` is float32 (4, dim); ``bias`` (4,), ``mean`` (4,) and ``whitening`` (4, 4) with its inverse
    ``unwhitening`` are float64.
    """

    weights: NDArray[np.float32]
    bias: Float64
    mean: Float64
    whitening: Float64
    unwhitening: Float64

    def predict_deltas(self, features: NDArray[np.floating], scale: float = 1.0) -> Float64:
        """Deltas (n, 4) for vectors (n, dim), which are multiplied by ``scale`` first, as those of ``fit`` were.

        Raises ValueError for vectors of another length than those of the training.
        """
        dim = self.weights.shape[1]
        if features.ndim != 2 or features.shape[1] != dim:
            raise ValueError(f"this regressor takes vectors of length {dim}, got an array of shape {features.shape}")
        whitened = np.empty((len(features), 4))
        weights = self.weights.T.astype(np.float64)
        with one_thread():
            for rows, block in _row_blocks(features, scale):
                whitened[rows] = block @ weights
        return self.unwhiten(whitened + self.bias)

    def unwhiten(self, whitened: Float64) -> Float64:
        """Deltas (n, 4) from ``weights . vector + bias`` (n, 4)."""
        return whitened @ self.unwhitening + self.mean

    def predict(
        self, boxes: Boxes, features: NDArray[np.floating], height: int, width: int, scale: float = 1.0
    ) -> Boxes:
        """Better boxes, float32 (n, 4), clipped to the image (spp_predict_bbox_regressor.m:46-65).

        ``features`` (n, dim) are the vectors of ``boxes`` (n, 4), ``height`` and ``width`` the image's, in pixels. A
        box that is moved out of the image comes back empty. Raises ValueError as ``predict_deltas`` does.
        """
        if len(boxes) != len(features):
            raise ValueError(f"{len(boxes)} boxes, but {len(features)} vectors for them")
        return clip(decode(boxes, self.predict_deltas(features, scale)), height, width)


def fit(
    features: NDArray[np.floating],
    deltas: NDArray[np.floating],
    ridge: float = 1000.0,
    *,
    scale: float = 1.0,
    form: Form | None = None,
) -> Regressor:
    """Ridge regression of a class's targets on its vectors: minimises ``|X w - y|^2 + ridge |w|^2`` per coordinate.

    X has a last column of ones, whose weight is penalised like the others. The targets y are centred by their mean and
    whitened by ``T = V diag(1 / sqrt(D + 0.001)) V'``, where V, D are eigenvectors and -values of their covariance
    (spp_train_bbox_regressor.m:102-110, 251-264).
    As all four share X and ridge, whitening cancels out of predictions; it makes weights comparable with released ones.

    Parameters
    ----------
    features : float16 or float32 of shape (n, dim); converted to float64 block by block, never whole.
    deltas : shape (n, 4), from ``encode``.
    ridge : penalty, > 0.
    scale : the vectors are multiplied by it (20 / their mean norm, in the released code).
    form : "primal" solves for the dim + 1 weights, "dual" for one number per example; None takes the smaller system.
        Both have the same solution.

    Raises
    ------
    NoExamplesError : n is 0.
    ValueError : arrays of other shapes, values that are not finite, or a ridge too small for the system.
    """
    if features.ndim != 2 or np.shape(deltas) != (len(features), 4):
        raise ValueError(f"features must be (n, dim) and deltas (n, 4), got {features.shape} and {np.shape(deltas)}")
    if len(features) == 0:
        raise NoExamplesError("there is no example to fit a box regressor to")
    if not ridge > 0:
        raise ValueError(f"ridge must be positive, got {ridge}")
    deltas = np.asarray(deltas, dtype=np.float64)
    if not np.isfinite(deltas).all():
        raise ValueError("deltas must be finite")
    mean = deltas.mean(axis=0)
    solve = _solve_dual if (form or _smaller_form(*features.shape)) == "dual" else _solve_primal
    with one_thread():
        whitening, unwhitening = _whitening(deltas - mean)
        targets = (deltas - mean) @ whitening
        weights, bias = solve(features, targets, ridge, scale)
    return Regressor(weights, bias, mean, whitening, unwhitening)


def fit_bytes(n: int, dim: int, form: Form | None = None) -> int:
    """Peak memory in bytes of ``fit`` on n vectors of length ``dim``, beyond the vectors themselves.

    The Gram matrix, a block of vectors, what is as long as the examples or the weights, and the BLAS library's buffers.
    """
    order = n if (form or _smaller_form(n, dim)) == "dual" else dim + 1
    block = max(BLOCK_BYTES, 8 * max(n, dim + 1))
    return 8 * order * order + block + 4 * 8 * 4 * (n + dim + 1) + BLAS_BYTES


def _centres_and_sides(boxes: Boxes) -> tuple[Float64, Float64]:
    """Centres (N, 2) and sides (N, 2), both x first, in float64; sides at least ``LEAST_SIDE``."""
    low, high = boxes[:, :2].astype(np.float64), boxes[:, 2:].astype(np.float64)
    return (low + high) / 2, np.maximum(high - low, LEAST_SIDE)


def _whitening(centred: Float64) -> tuple[Float64, Float64]:
    """T and its inverse, (4, 4) each, for targets (n, 4) of mean 0. Both are symmetric."""
    variances, axes = np.linalg.eigh(centred.T @ centred / len(centred))
    deviations = np.sqrt(np.maximum(variances, 0) + VARIANCE_FLOOR)  # rounding can make a variance of 0 negative
    return (axes / deviations) @ axes.T, (axes * deviations) @ axes.T


def _smaller_form(n: int, dim: int) -> Form:
    return "dual" if n < dim + 1 else "primal"


def _solve_primal(
    features: NDArray[np.floating], targets: Float64, ridge: float, scale: float
) -> tuple[NDArray[np.float32], Float64]:
    """Weights float32 (4, dim) and bias (4,) from ``(X'X + ridge I) w = X'y``, X by blocks of rows."""
    order = features.shape[1] + 1
    gram = np.zeros((order, order), order="F")
    moments = np.zeros((order, 4))
    for rows, block in _row_blocks(features, scale, ones=True):
        # syrk adds to the matrix where it lies, and only to its lower half; `gram += block.T @ block` needs a second
        gram = blas.dsyrk(1.0, block.T, beta=1.0, c=gram, lower=True, overwrite_c=True)
        moments += block.T @ targets[rows]
    solution = _solve(gram, moments, ridge)
    return np.ascontiguousarray(solution[:-1].T, dtype=np.float32), solution[-1].copy()


def _solve_dual(
    features: NDArray[np.floating], targets: Float64, ridge: float, scale: float
) -> tuple[NDArray[np.float32], Float64]:
    """Weights float32 (4, dim) and bias (4,) as ``w = X'a``, ``(XX' + ridge I) a = y``, X by blocks of columns."""
    solution = _solve(_kernel(features, scale), targets, ridge)
    weights = np.empty((4, features.shape[1]), np.float32)
    for columns, block in _column_blocks(features, scale):
        weights[:, columns] = solution.T @ block
    return weights, solution.sum(axis=0)


def _kernel(features: NDArray[np.floating], scale: float) -> Float64:
    """``X X'``, shape (n, n), its lower half only, with what the column of ones contributes."""
    gram = np.ones((len(features), len(features)), order="F")
    for _, block in _column_blocks(features, scale):
        gram = blas.dsyrk(1.0, block.T, trans=True, beta=1.0, c=gram, lower=True, overwrite_c=True)
    return gram


def _solve(gram: Float64, right: Float64, ridge: float) -> Float64:
    """Solves ``(gram + ridge I) x = right``, shape (order, 4), in the place of ``gram``, whose lower half counts."""
    diagonal = np.einsum("ii->i", gram)  # a writable view
    # a vector that is not finite has a norm that is not: no scan, and no copy, of the whole matrix
    if not np.isfinite(diagonal).all():
        raise ValueError("features must be finite")
    diagonal += ridge
    try:
        factor = cho_factor(gram, lower=True, overwrite_a=True, check_finite=False)
    except LinAlgError as error:
        raise ValueError(f"ridge {ridge} is too small for vectors of this size; take a larger one") from error
    solved: Float64 = cho_solve(factor, right, check_finite=False)
    return solved


def _row_blocks(features: NDArray[np.floating], scale: float, ones: bool = False) -> Iterator[tuple[slice, Float64]]:
    """Slices of rows, and these rows times ``scale`` in float64, C-contiguous, in one buffer that is used again.

    ``ones`` appends a column of ones.
    """
    n, dim = features.shape
    step = max(1, min(n, BLOCK_BYTES // (8 * (dim + 1))))
    buffer = np.ones((step, dim + ones))
    for start in range(0, n, step):
        rows = slice(start, min(start + step, n))
        block = buffer[: rows.stop - start]
        np.multiply(features[rows], scale, out=block[:, :dim], dtype=np.float64)
        yield rows, block


def _column_blocks(features: NDArray[np.floating], scale: float) -> Iterator[tuple[slice, Float64]]:
    """Slices of columns, and these columns (n, up to step) times ``scale`` in float64, C-contiguous."""
    n, dim = features.shape
    step = max(1, min(dim, BLOCK_BYTES // (8 * n)))
    buffer = np.empty(n * step)
    for start in range(0, dim, step):
        columns = slice(start, min(start + step, dim))
        block = buffer[: n * (columns.stop - start)].reshape(n, -1)
        np.multiply(features[:, columns], scale, out=block, dtype=np.float64)
        yield columns, block
