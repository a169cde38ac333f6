"""Reading stored layers of whole images, for classification."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from pipeline.features.whole_image import pool_part
from pipeline.spp.pyramid import bin_count
from storage.root import Root
from storage.scan import scan_where
from storage.schemas import VECTOR_COLUMN

_READERS = 4


def stored_layer(layer: str) -> str:
    """The layer that is stored for a layer: the 6 x 6 level is a part of the pyramid."""
    return "spp" if layer == "pool" else layer


def layer_vectors(
    root: Root, keys: Sequence[str], view: str, layer: str, image_ids: Sequence[str], levels: Sequence[int]
) -> NDArray[np.float16]:
    """A layer of a view of some images (sorted), (N, dim), from the files ``keys`` of ``image_features``.

    Only the row groups of that view and layer are read. Raises ValueError if an image has none.
    """
    place = {image_id: row for row, image_id in enumerate(image_ids)}
    made: list[NDArray[np.float16]] = []
    missing = set(image_ids)
    lock = threading.Lock()

    def read(key: str) -> None:
        for image_id, column in scan_where(root, key, VECTOR_COLUMN, {"view": view, "layer": stored_layer(layer)}):
            if image_id not in place:
                continue
            values = column.values.to_numpy(zero_copy_only=True)
            if layer == "pool":
                values = values[pool_part(len(values) // bin_count(levels), levels)]
            with lock:
                if not made:
                    made.append(np.empty((len(image_ids), len(values)), np.float16))
                missing.discard(image_id)
            made[0][place[image_id]] = values

    with ThreadPoolExecutor(_READERS) as readers:  # of a far store: a request waits for its answer
        list(readers.map(read, keys))
    if missing or not made:
        raise ValueError(f"layer {layer} of view {view} is not stored for image {min(missing)!r}")
    return made[0]
