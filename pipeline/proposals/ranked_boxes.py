"""Boxes in an order of merit, with where each comes from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.boxes import Boxes


@dataclass(frozen=True)
class RankedBoxes:
    """N boxes, best first.

    ``boxes``: float32 (N, 4), half-open x1 y1 x2 y2. Of a search with several strategies, ``strategies``: int16 (N,),
    places in ``names`` of the strategy that found each box; of one that builds hierarchies, ``levels``: int32 (N,), the
    place in the hierarchy, 1 being the top. None where a search has none.
    """

    boxes: Boxes
    strategies: NDArray[np.int16] | None = None
    levels: NDArray[np.int32] | None = None
    names: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.boxes)

    def __getitem__(self, chosen: Any) -> RankedBoxes:
        """Those that a slice, a mask or an array of places chooses."""
        strategies = None if self.strategies is None else self.strategies[chosen]
        levels = None if self.levels is None else self.levels[chosen]
        return RankedBoxes(self.boxes[chosen], strategies, levels, self.names)

    def moved_to(self, boxes: Boxes) -> RankedBoxes:
        """The same with other coordinates, (N, 4)."""
        return RankedBoxes(boxes, self.strategies, self.levels, self.names)
