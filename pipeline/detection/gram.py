"""Products of examples with one another: the Gram matrix on which SVMs are solved.

A number depends on its two examples alone, not on their places, their neighbours or the number of threads: products are
made in square tiles of one size, each by one thread (``pipeline.products``).
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

_AT_ONCE = 4
"""Tiles that wait for each of the others: one that is gathered from rows far apart is used so many times."""


def gram(features: NDArray[np.float32], rows: NDArray[np.int64] | None = None) -> NDArray[np.float32]:
    """All products of N examples (N, dim), C-contiguous: float32 (N, N), symmetric.

    ``rows`` (M,): those of these examples alone, (M, M), of which no copy is made but tile by tile.
    """
    given, chosen = torch.from_numpy(features), None if rows is None else torch.from_numpy(rows)
    count = len(features if rows is None else rows)
    made = np.empty((count, count), np.float32)

    def tile(start: int) -> torch.Tensor:
        part = given[start : start + TILE] if chosen is None else given[chosen[start : start + TILE]]
        # another number of rows may be summed in another order
        return part if len(part) == TILE else functional.pad(part, (0, 0, 0, TILE - len(part)))

    def fill(start: int) -> None:
        starts = range(start, min(start + _AT_ONCE * TILE, count), TILE)
        lefts = [tile(one) for one in starts]
        for first in range(start, count, TILE):  # one half is the mirror of the other
            right, columns = tile(first), slice(first, min(first + TILE, count))
            for one, left in zip(starts, lefts, strict=True):
                if one <= first:
                    own = slice(one, min(one + TILE, count))
                    part = torch.mm(left, right.T).numpy()[: own.stop - one, : columns.stop - first]
                    made[own, columns] = part
                    made[columns, own] = part.T

    share_out(fill, range(0, count, _AT_ONCE * TILE))
    return made
