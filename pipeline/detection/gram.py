"""Products of examples with one another: the Gram matrix that SVMs are solved on, grown by rows as examples join.

A number depends on its two examples alone, not on their places, their neighbours or the number of threads: products are
made in square tiles of one size, each by one thread (``pipeline.products``). So a matrix may be grown, cut and shared,
and is what it would be if it were made at once.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from pipeline.products import share_out

TILE = 192
"""Rows and columns of a tile: whole registers of every kind of processor (4 of 48 of MKL's rows with AVX-512, 8 of 24
with AVX2). Of 128 or 512 some rows would be summed by other code than their neighbours."""


def gram(
    features: NDArray[np.float32], known: NDArray[np.float32] | None = None, places: NDArray[np.int64] | None = None
) -> NDArray[np.float32]:
    """All products of N examples, float32 (N, N), symmetric.

    Parameters
    ----------
    features : (N, dim), C-contiguous.
    known : (M, M), products of examples that were made before.
    places : (N,), where each example stands in ``known``; -1 for one that does not.
    """
    count = len(features)
    made = np.empty((count, count), np.float32)
    if known is None or places is None:
        _fill(made, features, np.arange(count))
        return made
    old = np.flatnonzero(places >= 0)
    for start in range(0, len(old), TILE):
        rows = old[start : start + TILE]
        made[np.ix_(rows, old)] = known[np.ix_(places[rows], places[old])]
    _fill(made, features, np.flatnonzero(places < 0))
    return made


def _fill(made: NDArray[np.float32], features: NDArray[np.float32], new: NDArray[np.int64]) -> None:
    """Products of the ``new`` examples, ascending, with all."""
    given, every = torch.from_numpy(features), len(new) == len(features)

    def fill(start: int) -> None:
        rows = new[start : start + TILE]
        left = _whole(given[start : start + TILE] if every else given[torch.from_numpy(rows)])
        # of all with all, one half is the mirror of the other
        for first in range(start if every else 0, len(features), TILE):
            part = torch.mm(left, _whole(given[first : first + TILE]).T).numpy()[: len(rows)]
            columns = slice(first, min(first + TILE, len(features)))
            part = part[:, : columns.stop - first]
            if every:
                made[start : start + TILE, columns] = part
                made[columns, start : start + TILE] = part.T
            else:
                made[rows, columns] = part
                made[columns, rows] = part.T

    share_out(fill, range(0, len(new), TILE))


def _whole(rows: torch.Tensor) -> torch.Tensor:
    """With zeros up to a whole tile: another number of rows may be summed in another order."""
    return rows if len(rows) == TILE else functional.pad(rows, (0, 0, 0, TILE - len(rows)))
