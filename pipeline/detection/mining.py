"""Hard negatives: which windows to take into the caches that SVMs are trained on (paper 4.2; spp_train.m:135-240).

A window scored above -1.0001 by a class of which it is a negative joins that class's cache; after a fit those below
-1.2 leave it. One set of windows serves all classes: each has the list of classes for which it is cached.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.detection.labels import dedupe_negatives, first_of_cells, negatives

Mask = NDArray[np.bool_]
"""(N, K): windows x classes."""


@dataclass(frozen=True)
class NegativeRules:
    """Which windows are negatives.

    ``overlap``: IoU to every ground-truth box of the class is below it. ``dedupe``: one that overlaps an earlier
    negative by more is left out (the paper's text; None: all stay). ``once_per_cells``: of windows on the same conv
    cells of the same scale the first is taken, since their vectors are the same (spp_features_convX_to_poolX.m:47-51).
    """

    overlap: float = 0.3
    dedupe: float | None = None
    once_per_cells: bool = True

    def of(
        self,
        boxes: NDArray[np.float32],
        scales: NDArray[np.int32],
        windows: NDArray[np.int16],
        overlaps: NDArray[np.float32],
    ) -> Mask:
        """Of which classes each window of an image is a negative; ``overlaps`` (N, K) as of ``class_overlaps``."""
        mask = negatives(overlaps, self.overlap)
        if self.once_per_cells:
            # the first of the negatives: one that lies on an object's cells, too near to it, stands for no other
            for number in range(mask.shape[1]):
                rows = np.flatnonzero(mask[:, number])
                first = rows[first_of_cells(scales[rows], windows[rows])]
                mask[:, number] = False
                mask[first, number] = True
        if self.dedupe is not None:
            mask = dedupe_negatives(boxes, mask, self.dedupe)
        return mask


def hard_negatives(
    scores: NDArray[np.float32], candidates: Mask, threshold: float, most: int | None
) -> tuple[Mask, NDArray[np.int64]]:
    """Which ``candidates`` (N, K) of an image join the caches, and how many per class a cap kept out.

    Of more than ``most`` above the threshold the best-scored join, of equals the earlier.
    """
    hard = candidates & (scores > threshold)
    left_out = np.zeros(hard.shape[1], np.int64)
    if most is not None:
        for number in np.flatnonzero(hard.sum(axis=0) > most):
            rows = np.flatnonzero(hard[:, number])
            order = np.argsort(-scores[rows, number], kind="stable")
            hard[rows[order[most:]], number] = False
            left_out[number] = len(rows) - most
    return hard, left_out


class NegativeCache:
    """Which windows are cached for which classes. Their vectors are kept elsewhere, in numbered blocks.

    A window is (image id, window id); it has one row, however many classes it is cached for.
    """

    def __init__(self, classes: int) -> None:
        self._rows: dict[str, dict[int, int]] = {}
        self._member = np.zeros((0, classes), np.bool_)
        self._image: list[str] = []
        self._window = np.zeros(0, np.int64)
        self._block = np.zeros(0, np.int64)
        self._place = np.zeros(0, np.int64)

    def count(self) -> NDArray[np.int64]:
        """Windows cached for each class, (K,)."""
        counts: NDArray[np.int64] = self._member.sum(axis=0)
        return counts

    def known(self, image_ids: Iterable[str]) -> dict[str, tuple[NDArray[np.int64], Mask]]:
        """Of these images the windows that have a row: ids (M,) and classes (M, K)."""
        found = {}
        for image_id in image_ids:
            rows = self._rows.get(image_id)
            if rows:
                found[image_id] = (np.array(list(rows), np.int64), self._member[list(rows.values())])
        return found

    def row(self, image_id: str, window: int) -> int | None:
        """The row of a window, if it has one."""
        return self._rows.get(image_id, {}).get(window)

    def add(
        self, block: int, image_ids: Sequence[str], windows: Sequence[int], places: Sequence[int] | None = None
    ) -> NDArray[np.int64]:
        """Rows of new windows, cached for no class yet. Their vectors lie in ``block`` at ``places``, by default one
        after another.
        """
        first = len(self._member)
        for number, (image_id, window) in enumerate(zip(image_ids, windows, strict=True)):
            rows = self._rows.setdefault(image_id, {})
            if window in rows:
                raise ValueError(f"window {window} of image {image_id!r} is cached already")
            rows[window] = first + number
        count = len(image_ids)
        self._member = np.concatenate([self._member, np.zeros((count, self._member.shape[1]), np.bool_)])
        self._image += image_ids
        self._window = np.concatenate([self._window, np.array(windows, np.int64)])
        self._block = np.concatenate([self._block, np.full(count, block)])
        self._place = np.concatenate([self._place, np.arange(count) if places is None else np.array(places, np.int64)])
        return np.arange(first, first + count)

    def join(self, number: int, rows: NDArray[np.int64]) -> None:
        """Cache ``rows`` for class ``number``."""
        if self._member[rows, number].any():
            raise ValueError("a window is cached for this class already")
        self._member[rows, number] = True

    def evict(self, number: int, rows: NDArray[np.int64]) -> None:
        """Drop ``rows`` from the cache of class ``number``."""
        self._member[rows, number] = False

    def rows_of(self, number: int) -> NDArray[np.int64]:
        """The rows of class ``number``, by image id and window id: in whatever order they joined."""
        rows = np.flatnonzero(self._member[:, number])
        images = np.array([self._image[row] for row in rows], np.str_)
        return rows[np.lexsort((self._window[rows], images))]

    def windows_of(self, rows: NDArray[np.int64]) -> tuple[list[str], NDArray[np.int64]]:
        """Image ids and window ids of rows."""
        return [self._image[row] for row in rows], self._window[rows]

    def places(self, rows: NDArray[np.int64]) -> list[tuple[int, NDArray[np.int64], NDArray[np.int64]]]:
        """Where the vectors of rows are: blocks, ascending, with places in them and the rows' numbers in ``rows``."""
        if not len(rows):
            return []
        order = np.lexsort((self._place[rows], self._block[rows]))
        blocks, starts = np.unique(self._block[rows][order], return_index=True)
        return [
            (int(block), self._place[rows][held], held)
            for block, held in zip(blocks, np.split(order, starts[1:]), strict=True)
        ]

    def unused(self, blocks: Mapping[int, object]) -> list[int]:
        """Blocks of which no class has a window; forgets those windows."""
        used = set(self._block[self._member.any(axis=1)].tolist())
        dead = [block for block in blocks if block not in used]
        if dead:
            gone = np.isin(self._block, dead)
            for image_id, rows in list(self._rows.items()):
                kept = {window: row for window, row in rows.items() if not gone[row]}
                if kept:
                    self._rows[image_id] = kept
                else:
                    del self._rows[image_id]
        return dead
