"""Reading stored layers of whole images, for classification."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pipeline.whole_image import pool_part
from storage.root import Root
from storage.scan import scan_file
from storage.schemas import VECTOR_COLUMN


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
    found: NDArray[np.float16] | None = None
    missing = set(image_ids)
    where = {"view": view, "layer": stored_layer(layer)}
    for key in keys:
        for table in scan_file(root, key, ["image_id", "channels", VECTOR_COLUMN], image_ids, where):
            image_id = table["image_id"][0].as_py()
            values = table[VECTOR_COLUMN].combine_chunks().values.to_numpy(zero_copy_only=True)
            if layer == "pool":
                values = values[pool_part(table["channels"][0].as_py(), levels)]
            if found is None:
                found = np.empty((len(image_ids), len(values)), np.float16)
            found[place[image_id]] = values
            missing.discard(image_id)
    if missing or found is None:
        raise ValueError(f"layer {layer} of view {view} is not stored for image {min(missing)!r}")
    return found
