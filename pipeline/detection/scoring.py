"""Linear scores of feature vectors: all windows against all classes in one matrix product (``pipeline.products``)."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.products import share_out

_BLOCK = 64
"""Rows converted to float32 at a time: they stay in the processor's cache until they are multiplied."""

_LANES = 32
"""The product is padded to a multiple of so many classes: odd sizes make some libraries sum a row in an order that
depends on its place in the block, and the score of a window would depend on its neighbours."""


class LinearScorer:
    """``score = scale * (vector . weight) + bias`` for K classes.

    Parameters
    ----------
    weights : (K, dim), of features that were scaled by ``scale``.
    biases : (K,).
    scale : what features are multiplied by before the weights apply (SPP-net: 20 / mean norm).
    """

    def __init__(self, weights: NDArray[np.floating], biases: NDArray[np.floating], scale: float) -> None:
        classes, dim = np.shape(weights)
        self._biases = np.asarray(biases, np.float32)
        self._weights = torch.zeros((dim, -(-classes // _LANES) * _LANES), dtype=torch.float32)
        self._weights.numpy()[:, :classes] = np.asarray(weights, np.float64).T * scale

    @property
    def classes(self) -> int:
        """K."""
        return len(self._biases)

    def __call__(self, vectors: NDArray[np.floating]) -> NDArray[np.float32]:
        """Scores float32 (N, K) of vectors (N, dim), in float16 or rounded to it. Each row's depend on that row alone.

        Raises ValueError for vectors of another length than the weights.
        """
        dim, lanes = self._weights.shape
        if not self.classes:
            return np.zeros((len(vectors), 0), np.float32)
        if vectors.ndim != 2 or vectors.shape[1] != dim:
            raise ValueError(f"the weights are for vectors of length {dim}, got an array of shape {vectors.shape}")
        scores = np.empty((len(vectors), lanes), np.float32)
        starts = np.arange(0, len(vectors), _BLOCK)

        def score(starts: NDArray[np.int64]) -> None:
            target = torch.from_numpy(scores)
            rounded = torch.zeros((_BLOCK, dim), dtype=torch.float16)  # torch takes no array that may not be written to
            block = torch.zeros((_BLOCK, dim), dtype=torch.float32)
            for start in starts.tolist():
                part = vectors[start : start + _BLOCK]
                rounded.numpy()[: len(part)] = part
                block[: len(part)].copy_(rounded[: len(part)])
                # always a whole block: another number of rows may be summed in another order
                target[start : start + _BLOCK] = torch.mm(block, self._weights)[: len(part)]

        # a run of blocks for each thread, as each needs buffers
        share_out(score, np.array_split(starts, min(len(starts), torch.get_num_threads()) or 1))
        return scores[:, : self.classes] + self._biases


class Probabilities:
    """The head's probabilities as scores of K classes: what is left of them without the background's, the first."""

    def __init__(self, classes: int) -> None:
        self.classes = classes

    def __call__(self, probabilities: NDArray[np.floating]) -> NDArray[np.float32]:
        """(N, K) of (N, 1 + K)."""
        return np.asarray(probabilities[:, 1:], np.float32)


def mean_norm(vectors: NDArray[np.float16]) -> float:
    """Mean L2 norm of vectors (N, dim)."""
    norms = [np.linalg.norm(vectors[i : i + _BLOCK].astype(np.float64), axis=1) for i in range(0, len(vectors), _BLOCK)]
    return float(np.concatenate(norms).mean())
