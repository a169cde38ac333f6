"""Vectors of drawn windows that are stored already: those of proposals and annotated boxes, at the scale of these.

A window that is drawn at the scale at which its box was pooled for ``features`` or ``truth_features`` has the very
vector that stands there; where conv maps are stored, every window whose scale has one is pooled from it; and what
neither has may have been pooled with the features, into parts of the training windows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from jobs.features.drawing import Chosen
from jobs.features.stored import FeatureShard
from storage.columns import boxes_of, vectors_of
from storage.parts import part_rows
from storage.root import Root
from storage.scan import scan_file
from storage.schemas import VECTOR_COLUMN


class StoredVectors:
    """Of the images that windows are ``chosen`` of: which vectors need no pass of the body, and these.

    ``features``: the shards that may hold the images; ``truth``: the files of ``truth_features`` that may; ``parts``:
    those of the shard of training windows.
    """

    def __init__(
        self,
        root: Root,
        features: Sequence[FeatureShard],
        truth: Sequence[str],
        parts: Sequence[str],
        chosen: Mapping[str, Chosen],
    ) -> None:
        self._root, self._truth, self._chosen = root, truth, chosen
        self._shards: dict[str, FeatureShard] = {}
        self._scales = {image_id: np.zeros(len(one.candidates), np.int32) for image_id, one in chosen.items()}
        self._mapped: dict[str, list[int]] = {}
        self._parts: dict[str, list[tuple[NDArray[np.int32], NDArray[np.float16]]]] = {}
        ids = sorted(chosen)
        for shard in features:
            if shard.maps is None:
                self._note(shard, shard.windows(ids))
            else:
                for table in scan_file(root, shard.maps, ["image_id", "scale"], ids):
                    image_id = table["image_id"][0].as_py()
                    self._shards[image_id] = shard
                    self._mapped.setdefault(image_id, []).extend(table["scale"].to_pylist())
        objects: dict[str, list[pa.Table]] = {}
        for key in truth:
            for table in scan_file(root, key, ["image_id", "box", "scale"], ids):
                objects.setdefault(table["image_id"][0].as_py(), []).append(table)
        for image_id, tables in objects.items():
            self._note_truth(image_id, pa.concat_tables(tables))
        for table in part_rows(root, parts, ids):
            self._note_part(table)

    def known(self, image_id: str) -> NDArray[np.bool_]:
        """Which of the drawn windows, (N,), have a vector here. A mirrored one has none."""
        drawn = self._chosen[image_id].drawn
        stored = self._scales[image_id][drawn.rows] == drawn.scales
        stored |= np.isin(drawn.scales, self._mapped.get(image_id, []))
        for rows, _ in self._parts.get(image_id, []):
            stored[rows] = True
        return ~drawn.flipped & stored

    def maps(self, image_id: str) -> dict[int, NDArray[np.float16]]:
        """The stored conv maps (height, width, channels) of an image, by scale; none in a store of vectors."""
        return self._shards[image_id].maps_of(image_id) if image_id in self._mapped else {}

    def fill(self, image_id: str, out: NDArray[np.float16]) -> NDArray[np.bool_]:
        """Write the stored vectors of drawn windows to their rows of ``out``, (>= N, dim); which rows they are, (N,).

        Those that are known by their maps alone are not among them.
        """
        drawn, objects = self._chosen[image_id].drawn, self._chosen[image_id].objects
        filled = ~drawn.flipped & (self._scales[image_id][drawn.rows] == drawn.scales)
        of_truth = np.flatnonzero(filled & (drawn.rows < objects))
        if len(of_truth):
            tables = [t for key in self._truth for t in scan_file(self._root, key, None, [image_id])]
            out[of_truth] = vectors_of(pa.concat_tables(tables)[VECTOR_COLUMN])[drawn.rows[of_truth]]
        rows = np.flatnonzero(filled & (drawn.rows >= objects))
        if len(rows):
            wanted = drawn.rows[rows] - objects
            for _, places, vectors in self._shards[image_id].pick({image_id: np.unique(wanted)}):
                here = np.isin(wanted, places)
                out[rows[here]] = vectors[np.searchsorted(places, wanted[here])]
        for pooled, vectors in self._parts.pop(image_id, []):
            out[pooled] = vectors
            filled[pooled] = True
        return filled

    def _note(self, shard: FeatureShard, windows: Mapping[str, pa.Table]) -> None:
        """Remember at which scales proposals are stored."""
        for image_id, table in windows.items():
            one = self._chosen[image_id]
            if np.array_equal(boxes_of(table["box"]), one.candidates[one.objects :]) and _is_count(
                table["proposal_id"]
            ):
                self._shards[image_id] = shard
                self._scales[image_id][one.objects :] = table["scale"].to_numpy()

    def _note_truth(self, image_id: str, table: pa.Table) -> None:
        """Remember at which scales the objects of an image are stored."""
        one = self._chosen[image_id]
        if np.array_equal(boxes_of(table["box"]), one.candidates[: one.objects]):
            self._scales[image_id][: one.objects] = table["scale"].to_numpy()

    def _note_part(self, table: pa.Table) -> None:
        """Remember rows of a part, which were drawn as they are now."""
        image_id = table["image_id"][0].as_py()
        one, rows = self._chosen[image_id], table["window_id"].to_numpy()
        if rows.max() < one.plain:
            same = np.array_equal(boxes_of(table["box"]), one.boxes[rows])
            if same and np.array_equal(table["scale"].to_numpy(), one.drawn.scales[rows]):
                self._parts.setdefault(image_id, []).append((rows, vectors_of(table[VECTOR_COLUMN])))


def _is_count(ids: pa.ChunkedArray) -> bool:
    return np.array_equal(ids.to_numpy(), np.arange(len(ids)))
